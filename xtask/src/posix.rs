//! What other people's suites and programs say of the mount: `cargo xtask posix`.
//!
//! # Theory
//! Each file in `xtask/posix` is one script, run with a folder of its own on a mount of a cluster of
//! six servers:
//! ```text
//! MOUNT, OTHER    the same folder by two mounts of the cluster
//! SCRATCH         a local folder
//! BRAID, CLUSTER  the program, and the cluster's client.toml
//! SOURCE, TOOLS   this project, and the folder of the scripts
//! exit 0 passes, 77 is skipped, else it fails; the last line says what was done, or why not
//! ```
//! Nothing is installed: what is missing is said.
//! # Not here
//! Continuous integration: it takes hours, and programs that not every machine has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PORT_BASE: &str = "18500";
const SKIPPED: i32 = 77;

/// What is done less in a quick run.
const QUICK: [(&str, &str); 9] = [
    ("FSX_OPERATIONS", "20000"),
    ("STRESS_SECONDS", "1"),
    ("FIO_SIZE", "8m"),
    ("DBENCH_SECONDS", "5"),
    ("SQLITE_KILLS", "3"),
    ("PG_SECONDS", "4"),
    ("TREE_FILES", "2000"),
    ("BUILD_PACKAGE", "braid-terms"),
    ("KILL_OPERATIONS", "20000"),
];

struct Row {
    name: String,
    outcome: &'static str,
    seconds: u64,
    said: String,
}

struct Run {
    braid: PathBuf,
    tools: PathBuf,
    root: PathBuf,
    folder: PathBuf,
    is_quick: bool,
}

/// Runs the scripts and prints a table.
///
/// Errors: what could not be started; that a script failed.
pub fn run(root: &Path, arguments: &[&str]) -> Result<(), String> {
    let words: Vec<&str> = arguments.iter().filter(|a| !a.starts_with('-')).copied().collect();
    if let Some(other) = arguments.iter().find(|a| a.starts_with('-') && **a != "--quick") {
        return Err(format!("posix knows --quick and words of scripts' names, not {other}"));
    }
    crate::cargo(&["build", "--release", "--package", "braid"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let folder = std::env::temp_dir().join(format!("braid-posix-{}", std::process::id()));
    let run = Run {
        braid: target.join("release/braid"),
        tools: root.join("xtask/posix"),
        root: root.to_owned(),
        folder,
        is_quick: arguments.contains(&"--quick"),
    };
    let rows = run.start().and_then(|()| run.scripts(&words));
    run.end();
    let rows = rows?;
    println!("\n| script | outcome | time | |\n|---|---|---|---|");
    for row in &rows {
        println!("| {} | {} | {} s | {} |", row.name, row.outcome, row.seconds, row.said);
    }
    let failed = rows.iter().filter(|row| row.outcome == "FAILS").count();
    if failed == 0 { Ok(()) } else { Err(format!("{failed} of {} scripts failed", rows.len())) }
}

impl Run {
    fn cluster(&self) -> PathBuf {
        self.folder.join("data/client.toml")
    }

    fn braid(&self, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new(&self.braid);
        let status = command
            .arg("--cluster")
            .arg(self.cluster())
            .args(arguments)
            .current_dir(&self.folder)
            .stdout(Stdio::null())
            .status()
            .map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("braid {} failed", arguments.join(" "))) }
    }

    fn start(&self) -> Result<(), String> {
        for name in ["mount", "other"] {
            fs::create_dir_all(self.folder.join(name)).map_err(|error| error.to_string())?;
        }
        self.braid(&["up", "--detach", "--dir", "data", "--port-base", PORT_BASE])?;
        self.braid(&["mount", "mount"])?;
        self.braid(&["mount", "other"])
    }

    fn end(&self) {
        for name in ["mount", "other"] {
            let at = self.folder.join(name);
            let ended = Command::new("umount").arg(&at).stderr(Stdio::null()).status();
            if !ended.is_ok_and(|status| status.success()) {
                let _ = Command::new("umount").arg("-l").arg(&at).stderr(Stdio::null()).status();
            }
        }
        let _ = self.braid(&["down", "--dir", "data"]);
        let _ = fs::remove_dir_all(&self.folder);
    }

    fn scripts(&self, words: &[&str]) -> Result<Vec<Row>, String> {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.tools)
            .map_err(|error| error.to_string())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| name(path) != "common")
            .filter(|path| words.is_empty() || words.iter().any(|word| name(path).contains(word)))
            .collect();
        files.sort();
        files.iter().map(|file| self.script(file)).collect()
    }

    #[allow(clippy::disallowed_methods, reason = "the time of a suite is real time")]
    fn script(&self, file: &Path) -> Result<Row, String> {
        let name = name(file);
        eprintln!("{name} ...");
        let (mount, scratch) = (self.folder.join("mount").join(&name), self.folder.join("scratch"));
        for folder in [&mount, &scratch] {
            fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        }
        let is_python = file.extension().is_some_and(|extension| extension == "py");
        let mut command = Command::new(if is_python { "python3" } else { "bash" });
        command.arg(file);
        command.env("MOUNT", &mount).env("OTHER", self.folder.join("other").join(&name));
        command.env("SCRATCH", &scratch).env("BRAID", &self.braid);
        command.env("CLUSTER", self.cluster()).env("TOOLS", &self.tools);
        command.env("SOURCE", &self.root).stdin(Stdio::null());
        if self.is_quick {
            command.envs(QUICK);
        }
        let begun = Instant::now();
        let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
        let seconds = begun.elapsed().max(Duration::ZERO).as_secs();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        let outcome = match output.status.code() {
            Some(0) => "passes",
            Some(SKIPPED) => "skipped",
            _ => "FAILS",
        };
        if outcome == "FAILS" {
            eprintln!("{text}");
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let said = said.lines().last().unwrap_or_default().replace('|', "/");
        let _ = fs::remove_dir_all(&scratch);
        if outcome != "FAILS" {
            let _ = fs::remove_dir_all(&mount);
        }
        Ok(Row { name, outcome, seconds, said })
    }
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
