//! Figures of a cluster on this machine beside the machine's own limits, all in one run.
//!
//! # Theory
//! A number alone says little: every row stands beside the same work on the local file system,
//! measured just before, and beside the CPU seconds of *all* processes (servers and client). Rows
//! are medians of `--runs` (default 3).
//! # Not here
//! Assertions on time: the tests run the tiny version only to see that it works.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Options {
    large_bytes: u64,
    file_count: u32,
    runs: usize,
    idle_seconds: u64,
    out: Option<PathBuf>,
}

/// One measured thing.
struct Row {
    name: &'static str,
    unit: &'static str,
    cluster: f64,
    local: f64,
    cpu_seconds_per: Option<(f64, &'static str)>,
}

/// Runs the benchmark and prints a table; writes it with `--out FILE`.
///
/// Errors: what could not be started or did not come back identical.
pub fn run(root: &Path, arguments: &[&str]) -> Result<(), String> {
    let options = parse(arguments)?;
    crate::cargo(&["build", "--release", "--package", "braid"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let folder = std::env::temp_dir().join(format!("braid-bench-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let bench = Bench { braid: target.join("release/braid"), folder, options };
    let result = bench.measure();
    let _ = bench.braid_command(&["down"]).status();
    let _ = fs::remove_dir_all(&bench.folder);
    let report = result?;
    println!("{report}");
    if let Some(out) = &bench.options.out {
        fs::write(out, &report).map_err(|e| format!("{}: {e}", out.display()))?;
    }
    Ok(())
}

fn parse(arguments: &[&str]) -> Result<Options, String> {
    let mut options =
        Options { large_bytes: 1 << 30, file_count: 5000, runs: 3, idle_seconds: 20, out: None };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "--tiny" => {
                (options.large_bytes, options.file_count) = (16 << 20, 100);
                (options.runs, options.idle_seconds) = (1, 1);
            }
            "--runs" => {
                let count = rest.next().and_then(|text| text.parse().ok());
                options.runs = count.filter(|c| *c > 0).ok_or("--runs needs a number above 0")?;
            }
            "--out" => options.out = Some(rest.next().ok_or("--out needs a file")?.into()),
            other => return Err(format!("bench knows --tiny, --runs N, --out FILE, not {other}")),
        }
    }
    Ok(options)
}

struct Bench {
    braid: PathBuf,
    folder: PathBuf,
    options: Options,
}

impl Bench {
    fn braid_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.braid);
        command.args(arguments).current_dir(&self.folder).env_remove("BRAID_CLUSTER");
        command.stdout(Stdio::null());
        command
    }

    fn braid(&self, arguments: &[&str]) -> Result<(), String> {
        let status = self.braid_command(arguments).status().map_err(|e| e.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("braid {} failed", arguments.join(" "))) }
    }

    fn measure(&self) -> Result<String, String> {
        let (gib, files) =
            (self.options.large_bytes as f64 / GIB, f64::from(self.options.file_count));
        let large = self.folder.join("large");
        let small = self.folder.join("small");
        make_large(&large, self.options.large_bytes).map_err(|e| e.to_string())?;
        make_small(&small, self.options.file_count).map_err(|e| e.to_string())?;
        let (_, up) = timed(|| self.braid(&["up", "--detach", "--port-base", "17400"]))?;
        let mut rows = Vec::new();
        let [mut put, mut get, mut create, mut fetch] = [(); 4].map(|()| Series::default());
        for round in 0..self.options.runs {
            let copy = self.folder.join("large.copy");
            let local = timed(|| copy_file(&large, &copy))?.1;
            let name = format!("/large-{round}");
            put.add(local, self.costed(|| self.braid(&["put", "--quiet", "large", &name]))?);
            let local = timed(|| copy_file(&large, &copy))?.1;
            get.add(local, self.costed(|| self.braid(&["get", "--quiet", &name, "large.copy"]))?);
            same(&large, &copy)?;
            let tree = self.folder.join("small.copy");
            let local = timed(|| copy_tree(&small, &tree))?.1;
            let name = format!("/small-{round}");
            create
                .add(local, self.costed(|| self.braid(&["put", "-r", "--quiet", "small", &name]))?);
            fs::remove_dir_all(&tree).map_err(|e| e.to_string())?;
            let local = timed(|| copy_tree(&small, &tree))?.1;
            fs::remove_dir_all(&tree).map_err(|e| e.to_string())?;
            let got = self.costed(|| self.braid(&["get", "-r", "--quiet", &name, "small.copy"]))?;
            fetch.add(local, got);
            for index in 0..self.options.file_count {
                same(&small.join(index.to_string()), &tree.join(index.to_string()))?;
            }
            fs::remove_dir_all(&tree).map_err(|e| e.to_string())?;
        }
        let mib = gib * 1024.0;
        rows.push(put.row("put, one large file", "MiB/s", mib, (gib, "CPU s/GiB")));
        rows.push(get.row("get, one large file", "MiB/s", mib, (gib, "CPU s/GiB")));
        let thousand = (files / 1000.0, "CPU s/1000 files");
        rows.push(create.row("put -r, files of 4 KiB", "files/s", files, thousand));
        rows.push(fetch.row("get -r, files of 4 KiB", "files/s", files, thousand));
        let idle = self.idle()?;
        Ok(self.report(&rows, up, &idle))
    }

    /// CPU share of one core and resident MiB per server of the idle cluster.
    fn idle(&self) -> Result<String, String> {
        // What was just written is applied in the background first: wait until that is over.
        let mut before = self.server_cpu()?;
        let span = Duration::from_secs(self.options.idle_seconds);
        let mut share = f64::MAX;
        for _ in 0..4 {
            wait(span);
            let now = self.server_cpu()?;
            share = share.min((now - before) / span.as_secs_f64());
            before = now;
        }
        let pids = self.pids()?;
        let resident: f64 = pids.iter().map(|pid| proportional_mib(*pid)).sum();
        Ok(format!(
            "idle: {:.1} % of one core for all servers, {:.0} MiB resident (proportional) in {} processes",
            share * 100.0,
            resident,
            pids.len()
        ))
    }

    fn costed(&self, work: impl FnMut() -> Result<(), String>) -> Result<(Duration, f64), String> {
        let before = self.server_cpu()? + children_cpu();
        let (_, time) = timed(work)?;
        Ok((time, self.server_cpu()? + children_cpu() - before))
    }

    fn pids(&self) -> Result<Vec<u32>, String> {
        let output = Command::new(&self.braid)
            .args(["status", "--json"])
            .current_dir(&self.folder)
            .env_remove("BRAID_CLUSTER")
            .output()
            .map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let pids = text.split("\"pid\":").skip(1).filter_map(|rest| {
            let digits: String =
                rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
            digits.parse().ok()
        });
        let pids: Vec<u32> = pids.collect();
        if pids.is_empty() { Err("braid status names no process".to_owned()) } else { Ok(pids) }
    }

    fn server_cpu(&self) -> Result<f64, String> {
        Ok(self.pids()?.into_iter().map(|pid| process_cpu(pid, 13)).sum())
    }

    fn report(&self, rows: &[Row], up: Duration, idle: &str) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "six servers on one machine, rs/4+2, {} MiB large file, {} small files, medians of {}\n",
            self.options.large_bytes >> 20,
            self.options.file_count,
            self.options.runs
        );
        let _ =
            writeln!(text, "| work | cluster | local file system | ratio | CPU, all processes |");
        let _ = writeln!(text, "|---|---|---|---|---|");
        for row in rows {
            let cpu =
                row.cpu_seconds_per.map_or(String::new(), |(v, unit)| format!("{v:.2} {unit}"));
            let _ = writeln!(
                text,
                "| {} | {:.0} {u} | {:.0} {u} | {:.2} | {cpu} |",
                row.name,
                row.cluster,
                row.local,
                row.cluster / row.local,
                u = row.unit
            );
        }
        let _ = writeln!(text, "\nup to healthy: {:.1} s\n{idle}", up.as_secs_f64());
        text
    }
}

#[derive(Default)]
struct Series {
    local: Vec<f64>,
    cluster: Vec<f64>,
    cpu: Vec<f64>,
}

impl Series {
    fn add(&mut self, local: Duration, cluster: (Duration, f64)) {
        self.local.push(local.as_secs_f64());
        self.cluster.push(cluster.0.as_secs_f64());
        self.cpu.push(cluster.1);
    }

    fn row(
        self,
        name: &'static str,
        unit: &'static str,
        work: f64,
        per: (f64, &'static str),
    ) -> Row {
        let cluster = work / median(self.cluster);
        let cpu_seconds_per = Some((median(self.cpu) / per.0, per.1));
        Row { name, unit, cluster, local: work / median(self.local), cpu_seconds_per }
    }
}

const GIB: f64 = (1u64 << 30) as f64;

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[allow(clippy::disallowed_methods)] // A benchmark measures real time.
fn timed<T>(mut work: impl FnMut() -> Result<T, String>) -> Result<(T, Duration), String> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed()))
}

#[allow(clippy::disallowed_methods)] // Idle use is what is measured.
fn wait(span: Duration) {
    std::thread::sleep(span);
}

/// CPU seconds of a process: fields `from` and `from + 1` (counted from 0) of its `stat`.
pub(crate) fn process_cpu(pid: u32, from: usize) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name stands in parentheses and may hold blanks: fields count from behind it.
    let fields: Vec<&str> =
        text.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let field = |at: usize| fields.get(at - 2).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    // The kernel counts in hundredths of a second on every Linux that we know.
    (field(from) + field(from + 1)) / 100.0
}

pub(crate) fn children_cpu() -> f64 {
    process_cpu(std::process::id(), 15)
}

fn proportional_mib(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Bytes that no layer can shrink, from a small generator.
fn make_large(path: &Path, length: u64) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut buffer = vec![0; 1 << 20];
    let mut left = length;
    while left > 0 {
        for word in buffer.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let count = left.min(buffer.len() as u64);
        file.write_all(&buffer[..count as usize])?;
        left -= count;
    }
    Ok(())
}

fn make_small(folder: &Path, count: u32) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    for index in 0..count {
        let bytes: Vec<u8> =
            (0..4096_u32).map(|at| (at.wrapping_mul(index + 7) >> 3) as u8).collect();
        fs::write(folder.join(index.to_string()), bytes)?;
    }
    Ok(())
}

fn copy_file(source: &Path, target: &Path) -> Result<(), String> {
    // Plain reads and writes: `fs::copy` would let the kernel share or splice.
    let work = || -> std::io::Result<()> {
        let (mut from, mut to) = (fs::File::open(source)?, fs::File::create(target)?);
        let mut buffer = vec![0; 1 << 20];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                count => to.write_all(&buffer[..count])?,
            }
        }
    };
    work().map_err(|e| e.to_string())
}

fn copy_tree(source: &Path, target: &Path) -> Result<(), String> {
    fs::create_dir_all(target).map_err(|e| e.to_string())?;
    for entry in fs::read_dir(source).map_err(|e| e.to_string())?.flatten() {
        copy_file(&entry.path(), &target.join(entry.file_name()))?;
    }
    Ok(())
}

fn same(left: &Path, right: &Path) -> Result<(), String> {
    let open = |path: &Path| fs::File::open(path).map_err(|e| format!("{}: {e}", path.display()));
    let (mut one, mut other) = (open(left)?, open(right)?);
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = one.read(&mut a).map_err(|e| e.to_string())?;
        if count == 0 {
            let end = other.read(&mut b).map_err(|e| e.to_string())? == 0;
            return if end { Ok(()) } else { Err(format!("{} is longer", right.display())) };
        }
        let equal = other.read_exact(&mut b[..count]).is_ok() && a[..count] == b[..count];
        if !equal {
            return Err(format!("{} differs from {}", right.display(), left.display()));
        }
    }
}
