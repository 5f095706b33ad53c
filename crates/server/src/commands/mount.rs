//! `braid mount`: the FUSE mount, in the background unless it is told to stay.
//!
//! The background process is this program again with `--foreground`: a process that has threads
//! cannot fork itself. Its parent waits until it serves, so that whoever mounts may go on at once.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitCode, Stdio};

use braid_fuse::{MountError, MountOptions};

use super::{Outcome, cluster_path};
use crate::cli::{Global, Mount};
use crate::output::Failure;

/// What the process in the background says when it serves; anything else is why it does not.
const SERVES: &str = "serves";
/// Set for the process in the background: it says how it went on its standard output.
const REPORT: &str = "BRAID_MOUNT_REPORT";

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        match error {
            MountError::Option { .. } => Self::Usage(error.to_string()),
            MountError::Cluster(_) => Self::Unreachable(error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}

/// Mounts.
pub fn run(global: &Global, mount: &Mount) -> Outcome {
    let cluster_file = cluster_path(global)?;
    if !mount.foreground {
        return start_in_background(&cluster_file, mount);
    }
    let options = MountOptions {
        cluster_file,
        directory: mount.directory.clone(),
        options: mount.options.clone(),
    };
    let mounted = braid_fuse::start(&options)?;
    if std::env::var_os(REPORT).is_some() {
        println!("{SERVES}");
    }
    braid_fuse::serve(mounted)?;
    Ok(ExitCode::SUCCESS)
}

fn start_in_background(cluster_file: &std::path::Path, mount: &Mount) -> Outcome {
    use std::os::unix::process::CommandExt;
    let directory = std::fs::canonicalize(&mount.directory)
        .map_err(|error| Failure::Failed(format!("{}: {error}", mount.directory.display())))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--cluster").arg(std::fs::canonicalize(cluster_file)?);
    command.args(["mount", "--foreground"]).arg(directory);
    for options in &mount.options {
        command.arg("-o").arg(options);
    }
    // A group of its own: Ctrl-C in the terminal is not meant for it.
    let mut child = command
        .env(REPORT, "1")
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    if line.trim() == SERVES {
        return Ok(ExitCode::SUCCESS);
    }
    let mut reason = String::new();
    if let Some(mut err) = child.stderr.take() {
        err.read_to_string(&mut reason)?;
    }
    let code = child.wait()?.code();
    let reason = reason.trim().trim_start_matches("braid: ").to_owned();
    Err(match code {
        Some(2) => Failure::Usage(reason),
        Some(3) => Failure::Unreachable(reason),
        _ => Failure::Failed(reason),
    })
}
