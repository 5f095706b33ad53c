//! Our tools: `cargo xtask ci|fix|rules|wire|sim|drill|posix|bench`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

mod bench;
mod bench_fuse;
mod posix;
mod rules;
mod wire;

const HELP: &str = "\
cargo xtask COMMAND

  ci               what must be green before a change goes in; writes nothing
  fix              formats, and applies what clippy can repair
  rules            which numbered rules have code and tests; fails on a rule with neither
  wire             writes the message tables of docs/wire.md anew from the types
  sim [ARGS]       the simulator: --seeds N, --seed S, ... (see `cargo xtask sim --help`)
  drill [ARGS]     real processes die, are cut off and rot under clients that remember every byte:
                   --minutes N (10), --seed S, --out FILE (target/drill/SEED.md), --only WORD,WORD
                   (faults by name), --no-limits (long stalls are told, and are no failure),
                   --no-mount (no client has a mount)
  posix [--quick] [WORD...]
                   what others' suites and programs say of the mount; with words only those scripts
                   of xtask/posix whose names have one of them
  bench [--tiny]   figures of this machine and of a cluster on it, in one run
  bench --fuse [--tiny] [--only WORD]
                   the same of the mount, beside a do-nothing FUSE file system and the local one";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let rest: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("ci") => ci(),
        Some("fix") => fix(),
        Some("rules") => rules::check(&root()),
        Some("wire") => wire::run(&root(), false),
        Some("sim") => {
            // The feature also counts which states of the roles are reached.
            let fixed = ["run", "--release", "--quiet", "--package", "braid-sim"];
            cargo(&[&fixed[..], &["--features", "planted", "--"], &rest].concat())
        }
        Some("bench") if rest.first() == Some(&"--fuse") => bench_fuse::run(&root(), &rest[1..]),
        Some("bench") => bench::run(&root(), &rest),
        Some("drill") => drill(&rest),
        Some("posix") => posix::run(&root(), &rest),
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn ci() -> Result<(), String> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"])?;
    rules::check(&root())?;
    wire::run(&root(), true)?;
    if installed("cargo-deny") {
        cargo(&["deny", "--all-features", "check", "--hide-inclusion-graph"])?;
    } else {
        println!("skipped: cargo-deny is not installed (licences and sources of dependencies)");
    }
    if installed("cargo-nextest") {
        cargo(&["nextest", "run", "--workspace"])
    } else {
        cargo(&["test", "--workspace"])
    }
}

/// Errors: bad arguments; what the drill found.
fn drill(arguments: &[&str]) -> Result<(), String> {
    let (mut minutes, mut seed) = (10.0_f64, u64::from(std::process::id()));
    let (mut out, mut only, mut has_limits, mut has_mount) = (None, String::new(), true, true);
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| format!("{name} takes a value"));
        match *name {
            "--minutes" => match value()?.parse() {
                Ok(number) if number > 0.0 && number < 1e6 => minutes = number,
                _ => return Err("--minutes takes a number".to_owned()),
            },
            "--seed" => {
                seed = value()?.parse().map_err(|_| "--seed takes a number".to_owned())?;
            }
            "--out" => out = Some(root().join(value()?)),
            "--only" => only = (*value()?).to_owned(),
            "--no-limits" => has_limits = false,
            "--no-mount" => has_mount = false,
            other => return Err(format!("{other} is no option of drill; see `cargo xtask`")),
        }
    }
    let report = out.unwrap_or_else(|| root().join(format!("target/drill/{seed}.md")));
    let mut command = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(["test", "--release", "--package", "braid", "--test", "drill", "--"]);
    command.arg("--nocapture").current_dir(root());
    command.env("BRAID_DRILL_SECONDS", format!("{:.0}", (minutes * 60.0).max(1.0)));
    command.env("BRAID_DRILL_REPORT", &report);
    command.env("BRAID_DRILL_SEED", seed.to_string());
    command.env("BRAID_DRILL_ONLY", only);
    if has_limits {
        command.env("BRAID_DRILL_LIMITS", "1");
    }
    if has_mount {
        command.env("BRAID_DRILL_MOUNT", "1");
    }
    let status = command.status().map_err(|error| format!("cargo cannot be started: {error}"))?;
    println!("report: {}", report.display());
    if status.success() {
        return Ok(());
    }
    Err(format!("the drill found something; again with `cargo xtask drill --seed {seed}`"))
}

fn fix() -> Result<(), String> {
    let clippy = ["clippy", "--fix", "--allow-dirty", "--allow-staged", "--workspace"];
    cargo(&[&clippy[..], &["--all-targets", "--quiet"]].concat())?;
    cargo(&["fmt", "--all"])
}

/// Runs cargo in the project's root.
///
/// Errors: the command, where it fails.
pub(crate) fn cargo(arguments: &[&str]) -> Result<(), String> {
    let program = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .status()
        .map_err(|error| format!("cargo cannot be started: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("cargo {} failed", arguments.join(" "))) }
}

fn installed(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|paths| env::split_paths(&paths).any(|path| path.join(program).is_file()))
}

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("xtask lies in the root").to_path_buf()
}
