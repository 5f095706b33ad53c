//! `braid mount`: the FUSE mount, in the background unless it is told to stay.
//!
//! The background process is this program again with `--foreground`: a process that has threads
//! cannot fork itself. Its parent waits until it serves, so that whoever mounts may go on at once.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use braid_fuse::{Flags, MountError, MountOptions};
use tokio::time::{Instant, sleep};

use super::{Outcome, cluster_path, read_cluster_file};
use crate::cli::{Global, Mount};
use crate::layout::ServerFile;
use crate::output::Failure;

/// What the process in the background says when it serves; anything else is why it does not.
const SERVES: &str = "serves";
/// In a cluster's folder: the process of the mount that `up` began.
const MOUNT_PID: &str = "mount.pid";
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
    let flags = Flags::parse(mount.options.iter().map(String::as_str))?;
    if flags.remount {
        flags.remount(&mount.directory)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cluster_file = cluster_path(global)?;
    if !mount.foreground {
        start_in_background(&cluster_file, mount)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Servers of this machine have cheaper sockets.
    let here = cluster_file.parent().unwrap_or(Path::new("."));
    let io_sockets = ServerFile::io_sockets(here, read_cluster_file(&cluster_file)?.cluster, None);
    let options = MountOptions {
        io_sockets,
        cluster_file,
        directory: mount.directory.clone(),
        options: mount.options.clone(),
    };
    let mounted = braid_fuse::start(&options)?;
    if std::env::var_os(REPORT).is_some() {
        println!("{SERVES}");
        // Whoever started it stops listening: a line to a pipe without a reader would end the mount.
        let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&nowhere).map_err(std::io::Error::from)?;
        rustix::stdio::dup2_stderr(&nowhere).map_err(std::io::Error::from)?;
    }
    braid_fuse::serve(mounted)?;
    Ok(ExitCode::SUCCESS)
}

/// Mounts the embedded cluster of a folder, in the background; its `down` ends that.
pub fn start_of_cluster(dir: &Path, cluster_file: &Path, directory: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(directory)?;
    let options = vec![];
    let mount = Mount { directory: directory.to_owned(), options, foreground: false };
    let pid = start_in_background(cluster_file, &mount)?;
    Ok(std::fs::write(dir.join(MOUNT_PID), pid.to_string())?)
}

/// Ends the mount that `start_of_cluster` began, if it is still there, and waits until it has sent
/// what it kept.
///
/// Errors: it goes on after `wait`.
pub async fn end_of_cluster(dir: &Path, wait: Duration) -> Result<(), Failure> {
    let file = dir.join(MOUNT_PID);
    let Ok(text) = std::fs::read_to_string(&file) else { return Ok(()) };
    let pid = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid.filter(|pid| is_mount(*pid)) {
        // Gone meanwhile is as good.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let end = Instant::now() + wait;
        while is_mount(pid) {
            if end <= Instant::now() {
                let pid = pid.as_raw_pid();
                let reason = "does not end; what it has written may not be stored yet";
                return Err(Failure::Failed(format!("the mount (process {pid}) {reason}")));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(std::fs::remove_file(file)?)
}

/// Whether a process is a mount of this program; the number may be another's by now.
fn is_mount(pid: rustix::process::Pid) -> bool {
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0);
    let mine = words.next().is_some_and(|name| name.ends_with(b"braid"));
    mine && words.any(|word| word == b"mount")
}

/// Returns its process when it serves.
fn start_in_background(cluster_file: &Path, mount: &Mount) -> Result<u32, Failure> {
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
        return Ok(child.id());
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
