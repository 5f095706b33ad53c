//! Figures of the mount beside a do-nothing FUSE file system and the local one, all in one run.
//!
//! # Theory
//! Each row is the same work in three folders: the local file system, libfuse's `passthrough_ll`
//! over it (built here from the examples of Debian's libfuse3-dev; left out where those are
//! missing), and a mount of a cluster of six servers on this machine. What FUSE itself costs is in
//! the second, so the ratio of the third to it is what the mount and the servers make of it.
//! Cold: both mounts are made anew and the kernel's caches dropped before the work.
//! # Not here
//! Assertions on time: with `--tiny` it only shows that it works.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bench::{children_cpu, median, process_cpu};

/// How much is done, and what.
struct Options {
    large_bytes: u64,
    file_count: u64,
    random_time: Duration,
    runs: usize,
    only: Option<String>,
    /// For the mount, as after `-o`.
    mount_options: Option<String>,
    out: Option<PathBuf>,
}

/// Runs the benchmark and prints a table; writes it with `--out FILE`.
///
/// Errors: what could not be started, or did not come back identical.
pub fn run(root: &Path, arguments: &[&str]) -> Result<(), String> {
    let options = parse(arguments)?;
    crate::cargo(&["build", "--release", "--package", "braid"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let folder = std::env::temp_dir().join(format!("braid-bench-fuse-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let mut bench = Bench {
        braid: target.join("release/braid"),
        passthrough: build_passthrough(&folder),
        folder,
        options,
        places: Vec::new(),
        pids: Vec::new(),
        rows: Vec::new(),
    };
    let result = bench.start().and_then(|()| bench.measure());
    bench.end();
    let report = bench.report();
    println!("{report}");
    if let Some(out) = &bench.options.out {
        fs::write(out, &report).map_err(|e| format!("{}: {e}", out.display()))?;
    }
    result
}

fn parse(arguments: &[&str]) -> Result<Options, String> {
    let mut options = Options {
        large_bytes: 1 << 30,
        file_count: 2000,
        random_time: Duration::from_secs(3),
        runs: 3,
        only: None,
        mount_options: None,
        out: None,
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "--tiny" => {
                (options.large_bytes, options.file_count) = (8 << 20, 40);
                (options.runs, options.random_time) = (1, Duration::from_millis(50));
            }
            "--runs" => {
                let count = rest.next().and_then(|text| text.parse().ok());
                options.runs = count.filter(|c| *c > 0).ok_or("--runs needs a number above 0")?;
            }
            "--only" => {
                options.only = Some((*rest.next().ok_or("--only needs a word")?).to_owned());
            }
            "--options" => {
                let list = *rest.next().ok_or("--options needs options of the mount")?;
                options.mount_options = Some(list.to_owned());
            }
            "--out" => options.out = Some(rest.next().ok_or("--out needs a file")?.into()),
            other => {
                return Err(format!(
                    "bench --fuse knows --tiny, --runs N, --only WORD, --options LIST, \
                     --out FILE, not {other}"
                ));
            }
        }
    }
    Ok(options)
}

/// The first of the ports that six servers take, where all of them are free.
fn free_port_base() -> Result<u16, String> {
    let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut bases = (17500..30000).step_by(usize::from(PORTS));
    let free = bases.find(|base| (*base..base + PORTS).all(is_free));
    free.ok_or_else(|| "there are no free ports".to_owned())
}

/// Ports of six servers.
const PORTS: u16 = 120;

/// `passthrough_ll` from the examples of libfuse3-dev.
fn build_passthrough(folder: &Path) -> Option<PathBuf> {
    let source = Path::new("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c");
    let program = folder.join("passthrough_ll");
    let flags = ["-O2", "-w", "-D_FILE_OFFSET_BITS=64", "-DHAVE_COPY_FILE_RANGE=1"];
    let built = Command::new("cc")
        .args(flags)
        .args(["-I/usr/include/fuse3", "-o"])
        .args([&program, Path::new(source)])
        .args(["-lfuse3", "-lpthread"])
        .stderr(Stdio::null())
        .status();
    let is_built = built.is_ok_and(|status| status.success());
    if !is_built {
        eprintln!("passthrough_ll cannot be built (is libfuse3-dev installed?): left out");
    }
    is_built.then_some(program)
}

/// One of the three folders.
struct Place {
    kind: Kind,
    folder: PathBuf,
    process: Option<Child>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Local,
    Passthrough,
    Mount,
}

struct Row {
    name: String,
    unit: &'static str,
    /// By place; medians.
    rates: Vec<f64>,
    /// Of the mount.
    cpu: (f64, &'static str),
}

struct Bench {
    braid: PathBuf,
    passthrough: Option<PathBuf>,
    folder: PathBuf,
    options: Options,
    places: Vec<Place>,
    /// The servers' processes.
    pids: Vec<u32>,
    rows: Vec<Row>,
}

impl Bench {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.braid);
        command.args(arguments).current_dir(&self.folder).env_remove("BRAID_CLUSTER");
        command
    }

    fn start(&mut self) -> Result<(), String> {
        let base = free_port_base()?.to_string();
        let mut up = self.command(&["up", "--detach", "--port-base", &base]);
        let up = up.stdout(Stdio::null()).status().map_err(|e| e.to_string())?;
        if !up.success() {
            return Err("the cluster does not come up".to_owned());
        }
        let status = self.command(&["status", "--json"]).output().map_err(|e| e.to_string())?;
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        let number = |text: &str| {
            text.trim_start().chars().take_while(char::is_ascii_digit).collect::<String>()
        };
        self.pids =
            status.split("\"pid\":").skip(1).filter_map(|rest| number(rest).parse().ok()).collect();
        let mut kinds = vec![Kind::Local];
        kinds.extend(self.passthrough.is_some().then_some(Kind::Passthrough));
        kinds.push(Kind::Mount);
        for kind in kinds {
            let name = match kind {
                Kind::Local | Kind::Passthrough => "local",
                Kind::Mount => "mount",
            };
            let mut folder = self.folder.join(name);
            fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
            if kind == Kind::Passthrough {
                folder = self.folder.join("passthrough");
                fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
            }
            self.places.push(Place { kind, folder, process: None });
        }
        self.remount()
    }

    /// Ends the mounts and makes them anew.
    fn remount(&mut self) -> Result<(), String> {
        self.unmount();
        for at in 0..self.places.len() {
            let folder = self.places[at].folder.clone();
            let mut command = match self.places[at].kind {
                Kind::Local => continue,
                Kind::Passthrough => {
                    let program = self.passthrough.as_ref().expect("the place is there for it");
                    let mut command = Command::new(program);
                    let source = format!("source={}", self.folder.join("local").display());
                    command.args(["-f", "-o", &source, "-o", "cache=auto", "-o", "timeout=1"]);
                    command.arg(&folder);
                    command
                }
                Kind::Mount => {
                    let mut command = self.command(&["mount", "--foreground"]);
                    command.arg(&folder);
                    if let Some(list) = &self.options.mount_options {
                        command.args(["-o", list]);
                    }
                    command
                }
            };
            let outside = device(&folder)?;
            let child = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|e| e.to_string())?;
            self.places[at].process = Some(child);
            for _ in 0..3000 {
                if device(&folder)? != outside {
                    break;
                }
                wait(Duration::from_millis(10));
            }
            if device(&folder)? == outside {
                return Err(format!("{} is not mounted", folder.display()));
            }
        }
        Ok(())
    }

    fn unmount(&mut self) {
        for place in &mut self.places {
            let Some(mut process) = place.process.take() else { continue };
            let _ = Command::new("umount").arg(&place.folder).status();
            let _ = process.wait();
        }
    }

    fn end(&mut self) {
        self.unmount();
        let _ = self.command(&["down"]).stdout(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.folder);
    }

    fn cpu(&self) -> f64 {
        let mounts = self.places.iter().filter_map(|place| Some(place.process.as_ref()?.id()));
        let own = process_cpu(std::process::id(), 13) + children_cpu();
        own + mounts.chain(self.pids.iter().copied()).map(|pid| process_cpu(pid, 13)).sum::<f64>()
    }

    /// One row: `work` in each folder, `runs` times; it says how much it did.
    fn row(
        &mut self,
        name: &str,
        (unit, per): (&'static str, (f64, &'static str)),
        is_cold: bool,
        prepare: impl Fn(&Path) -> Result<(), String>,
        work: impl Fn(&Path) -> Result<f64, String>,
    ) -> Result<(), String> {
        if self.options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            return Ok(());
        }
        let mut rates = vec![Vec::new(); self.places.len()];
        let mut costs = Vec::new();
        for _ in 0..self.options.runs {
            for (at, rates) in rates.iter_mut().enumerate() {
                let folder = self.places[at].folder.join("work");
                // What was there may belong to the other name of the same folder.
                let _ = fs::remove_dir_all(&folder);
                fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
                prepare(&folder)?;
                if is_cold {
                    self.remount()?;
                    let _ = Command::new("sync").status();
                    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
                }
                let cpu = self.cpu();
                let (amount, time) = timed(|| work(&folder))?;
                rates.push(amount / time.as_secs_f64());
                if self.places[at].kind == Kind::Mount {
                    costs.push((self.cpu() - cpu) / amount * per.0);
                }
                fs::remove_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            }
        }
        let rates: Vec<f64> = rates.into_iter().map(median).collect();
        let row = Row { name: name.to_owned(), unit, rates, cpu: (median(costs), per.1) };
        eprintln!("{}", self.line(&row));
        self.rows.push(row);
        Ok(())
    }

    fn measure(&mut self) -> Result<(), String> {
        let large = self.options.large_bytes;
        let time = self.options.random_time;
        let bytes = ("MiB/s", (1024.0, "s/GiB"));
        let small = ("/s", (1000.0, "s/1000"));
        for jobs in [1, 4] {
            let s = plural(jobs, "job");
            let each = large / jobs;
            self.row(
                &format!("write, {s}"),
                bytes,
                false,
                |_| Ok(()),
                |at| threads(jobs, |job| write_large(&at.join(job.to_string()), each)),
            )?;
            self.row(
                &format!("read cold, {s}"),
                bytes,
                true,
                |at| threads(jobs, |job| write_large(&at.join(job.to_string()), each)).map(drop),
                |at| threads(jobs, |job| read_large(&at.join(job.to_string()), each)),
            )?;
        }
        let prepare = |at: &Path| write_large(&at.join("0"), large / 4).map(drop);
        for (name, kind) in
            [("read", Random::Read), ("write", Random::Write), ("synced write", Random::Synced)]
        {
            for jobs in [1, 4] {
                self.row(
                    &format!("random {name} of 4 KiB, {}", plural(jobs, "job")),
                    small,
                    true,
                    prepare,
                    |at| threads(jobs, |job| random(&at.join("0"), kind, (job, large / 4), time)),
                )?;
            }
        }
        let count = self.options.file_count;
        for jobs in [1, 4] {
            let s = plural(jobs, "thread");
            let each = count / jobs;
            let nothing = |at: &Path| make_folders(at, jobs);
            let made = |at: &Path| {
                make_folders(at, jobs)?;
                threads(jobs, |job| files(at, job, each, |path| make(path, false))).map(drop)
            };
            let do_files = |at: &Path, work: &(dyn Fn(&Path) -> Result<(), String> + Sync)| {
                threads(jobs, |job| files(at, job, each, work))
            };
            self.row(&format!("create 4 KiB, {s}"), small, false, nothing, |at| {
                do_files(at, &|path| make(path, false))
            })?;
            self.row(&format!("create and fsync, {s}"), small, false, nothing, |at| {
                do_files(at, &|path| make(path, true))
            })?;
            self.row(&format!("stat cold, {s}"), small, true, made, |at| {
                do_files(at, &|path| same(text(fs::metadata(path))?.len(), 4096))
            })?;
            self.row(&format!("read 4 KiB cold, {s}"), small, true, made, |at| {
                do_files(at, &|path| same(text(fs::read(path))?.len() as u64, 4096))
            })?;
            self.row(&format!("list cold, {s}"), small, true, made, |at| {
                threads(jobs, |job| {
                    let names = text(fs::read_dir(at.join(job.to_string())))?;
                    let listed = names.filter(Result::is_ok).count() as u64;
                    same(listed, each).map(|()| listed as f64)
                })
            })?;
            self.row(&format!("rename, {s}"), small, false, made, |at| {
                do_files(at, &|path| text(fs::rename(path, path.with_extension("new"))))
            })?;
            self.row(&format!("delete, {s}"), small, false, made, |at| {
                do_files(at, &|path| text(fs::remove_file(path)))
            })?;
        }
        self.tree(small)
    }

    /// A tree of sources, as `tar` sees it.
    fn tree(&mut self, small: (&'static str, (f64, &'static str))) -> Result<(), String> {
        let source = self.folder.join("source");
        let count = self.options.file_count / 2;
        make_tree(&source, count)?;
        let archive = self.folder.join("source.tar");
        tar(&["-cf", &shown(&archive), "-C", &shown(&source), "."])?;
        let amount = count as f64;
        let unpack = |at: &Path| tar(&["-xf", &shown(&archive), "-C", &shown(at)]);
        self.row("tree: unpack", small, false, |_| Ok(()), |at| unpack(at).map(|()| amount))?;
        self.row("tree: walk cold", small, true, unpack, |at| {
            run_quiet(Command::new("find").arg(at).args(["-size", "+1000k"])).map(|()| amount)
        })?;
        self.row("tree: tar cold", small, true, unpack, |at| {
            // Not to /dev/null, which tar knows and reads nothing for.
            let out = self_shown(&archive, "out");
            tar(&["-cf", &out, "-C", &shown(at), "."]).map(|()| amount)
        })?;
        self.row("tree: delete", small, false, unpack, |at| {
            let all = text(fs::read_dir(at))?;
            for entry in all {
                text(entry.and_then(|entry| fs::remove_dir_all(entry.path())))?;
            }
            Ok(amount)
        })
    }

    fn line(&self, row: &Row) -> String {
        let mut line = format!("| {} |", row.name);
        for rate in &row.rates {
            let _ = write!(line, " {rate:.0} {} |", row.unit);
        }
        let mount = row.rates.last().copied().unwrap_or(0.0);
        for rate in &row.rates[..row.rates.len().saturating_sub(1)] {
            let _ = write!(line, " {:.2} |", mount / rate);
        }
        let _ = write!(line, " {:.2} {} |", row.cpu.0, row.cpu.1);
        line
    }

    fn report(&self) -> String {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let mut text = format!(
            "six servers and the mount on one machine, {} MiB, {} files, medians of {}, load at \
             the end {}\n\n",
            self.options.large_bytes >> 20,
            self.options.file_count,
            self.options.runs,
            load.split(' ').next().unwrap_or("not known"),
        );
        let is_full = self.passthrough.is_some();
        let head = if is_full {
            "| work | local | passthrough_ll | mount | of local | of passthrough | CPU, all |"
        } else {
            "| work | local | mount | of local | CPU, all |"
        };
        let columns = head.matches('|').count() - 1;
        let _ = writeln!(text, "{head}\n|{}", "---|".repeat(columns));
        for row in &self.rows {
            let _ = writeln!(text, "{}", self.line(row));
        }
        text
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Random {
    Read,
    Write,
    Synced,
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn text<T>(result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

fn same(found: u64, expected: u64) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found} instead of {expected}")) }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn self_shown(path: &Path, extension: &str) -> String {
    shown(&path.with_extension(extension))
}

fn device(folder: &Path) -> Result<u64, String> {
    // While a mount is coming about, `stat` may be refused.
    Ok(fs::metadata(folder).map(|metadata| metadata.dev()).unwrap_or(0))
}

#[allow(clippy::disallowed_methods)] // A benchmark measures real time.
fn timed<T>(work: impl FnOnce() -> Result<T, String>) -> Result<(T, Duration), String> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed()))
}

#[allow(clippy::disallowed_methods)] // Waits for another process's mount.
fn wait(span: Duration) {
    std::thread::sleep(span);
}

/// Runs `work` in so many threads; adds up what they did.
fn threads(jobs: u64, work: impl Fn(u64) -> Result<f64, String> + Sync) -> Result<f64, String> {
    std::thread::scope(|scope| {
        let work = &work;
        let all: Vec<_> = (0..jobs).map(|job| scope.spawn(move || work(job))).collect();
        let done = all.into_iter().map(|thread| {
            thread.join().unwrap_or_else(|_| Err("a thread of the benchmark failed".to_owned()))
        });
        done.sum()
    })
}

const BLOCK: usize = 1 << 20;

fn next_random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Each block of 8 bytes tells its place, so that a reader can check.
fn fill(at: u64, block: &mut [u8]) {
    for (index, word) in block.chunks_exact_mut(8).enumerate() {
        let place = at + index as u64 * 8;
        word.copy_from_slice(&place.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

/// Gives MiB.
fn write_large(path: &Path, length: u64) -> Result<f64, String> {
    let mut file = text(File::create(path))?;
    let mut block = vec![0; BLOCK];
    fill(0, &mut block);
    for at in (0..length).step_by(BLOCK) {
        // Its first page tells which block it is; filling all of it would be measured too.
        fill(at, &mut block[..4096]);
        text(file.write_all(&block))?;
    }
    Ok(length as f64 / BLOCK as f64)
}

fn read_large(path: &Path, length: u64) -> Result<f64, String> {
    let mut file = text(File::open(path))?;
    let (mut block, mut expected) = (vec![0; BLOCK], vec![0; 4096]);
    for at in (0..length).step_by(BLOCK) {
        text(file.read_exact(&mut block))?;
        fill(at, &mut expected);
        if block[..4096] != expected[..] {
            return Err(format!("{}: wrong bytes at {at}", path.display()));
        }
    }
    Ok(length as f64 / BLOCK as f64)
}

/// Works on random places for that long; gives how often.
fn random(path: &Path, kind: Random, of: (u64, u64), time: Duration) -> Result<f64, String> {
    let (job, length) = of;
    const O_DSYNC: i32 = 0o10000;
    let mut options = OpenOptions::new();
    options.read(kind == Random::Read).write(kind != Random::Read);
    options.custom_flags(if kind == Random::Synced { O_DSYNC } else { 0 });
    let file = text(options.open(path))?;
    let mut state = (job + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut block = vec![0; 4096];
    #[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
    let end = Instant::now() + time;
    let mut count = 0;
    loop {
        #[allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]
        if count > 0 && Instant::now() >= end {
            break;
        }
        let at = next_random(&mut state) % (length / 4096) * 4096;
        match kind {
            Random::Read => text(file.read_exact_at(&mut block, at))?,
            Random::Write | Random::Synced => text(file.write_all_at(&block, at))?,
        }
        count += 1;
    }
    drop(file);
    Ok(f64::from(count))
}

fn make_folders(at: &Path, jobs: u64) -> Result<(), String> {
    (0..jobs).try_for_each(|job| text(fs::create_dir(at.join(job.to_string()))))
}

fn make(path: &Path, sync: bool) -> Result<(), String> {
    let mut file = text(File::create(path))?;
    text(file.write_all(&[7; 4096]))?;
    if sync { text(file.sync_all()) } else { Ok(()) }
}

/// Does something with each file of a job; gives their number.
fn files(
    at: &Path,
    job: u64,
    count: u64,
    work: impl Fn(&Path) -> Result<(), String>,
) -> Result<f64, String> {
    let folder = at.join(job.to_string());
    for index in 0..count {
        let path = folder.join(index.to_string());
        work(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(count as f64)
}

/// Folders of 25 files of 1 to 32 KiB.
fn make_tree(folder: &Path, count: u64) -> Result<(), String> {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    for index in 0..count {
        let inside = folder.join((index / 100).to_string()).join((index / 25).to_string());
        text(fs::create_dir_all(&inside))?;
        let mut bytes = vec![0; 1024 << (next_random(&mut state) % 6)];
        fill(index, &mut bytes);
        text(fs::write(inside.join(index.to_string()), bytes))?;
    }
    Ok(())
}

fn run_quiet(command: &mut Command) -> Result<(), String> {
    let status = text(command.stdout(Stdio::null()).status())?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} failed")) }
}

fn tar(arguments: &[&str]) -> Result<(), String> {
    run_quiet(Command::new("tar").args(arguments))
}
