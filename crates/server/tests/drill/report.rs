//! What a drill did and found, as a text that is kept.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::faults::Fault;
use crate::workload::{COLUMNS, Shared};
use crate::world::SERVERS;

/// One fault that was done.
pub struct Done {
    pub at: Duration,
    pub name: &'static str,
    pub what: String,
    /// From its end, or its return, to full health.
    pub took: Duration,
    pub stall: Duration,
    /// Longest time for which a thread that had nothing to wait for did not run.
    pub machine_stall: Duration,
}

pub struct Report<'a> {
    pub seed: u64,
    pub took: Duration,
    pub clients: u64,
    pub has_namespaces: bool,
    pub has_limits: bool,
    pub faults: &'a [Fault],
    pub done: &'a [Done],
    pub skipped: &'a [String],
    pub shared: &'a Shared,
}

impl Report<'_> {
    pub fn text(&self) -> String {
        let mut text = String::new();
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let shared = self.shared;
        let place = if self.has_namespaces { "network namespaces" } else { "loopback" };
        let build = if cfg!(debug_assertions) { "dev" } else { "release" };
        writeln!(text, "# Drill\n")?;
        writeln!(
            text,
            "Seed {}, {:.1} minutes, {} faults, {SERVERS} servers in {place} of one machine, {} \
             clients, {build} build.\n",
            self.seed,
            self.took.as_secs_f64() / 60.0,
            self.done.len(),
            self.clients
        )?;
        writeln!(text, "| lost or wrong bytes | {} |", count(&shared.lost_bytes))?;
        writeln!(text, "|---|---|")?;
        writeln!(text, "| violations | {} |", shared.violations().len())?;
        writeln!(text, "| bytes acknowledged | {} |", count(&shared.acknowledged_bytes))?;
        writeln!(text, "| bytes read and compared | {} |", count(&shared.verified_bytes))?;
        writeln!(text, "| operations | {} |", count(&shared.operations))?;
        writeln!(text, "| refused while a disk was full | {} |\n", count(&shared.refused))?;
        for what in shared.violations() {
            writeln!(text, "- VIOLATION: {what}")?;
        }
        for what in self.skipped {
            writeln!(text, "- skipped: {what}")?;
        }
        self.stalls(text)?;
        self.list(text)
    }

    fn stalls(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n## How long operations took\n")?;
        let enforced = if self.has_limits { "" } else { " (not enforced)" };
        write!(text, "| fault | times | longest | allowed{enforced} |")?;
        for end in COLUMNS {
            match end {
                u64::MAX => write!(text, " longer |")?,
                end => write!(text, " up to {} s |", end as f64 / 1000.0)?,
            }
        }
        writeln!(text, "\n|---|---|---|---|{}", "---|".repeat(COLUMNS.len()))?;
        for (name, stalls) in self.shared.stalls.lock().unwrap().iter() {
            let times = self.done.iter().filter(|done| done.name == *name).count();
            let limit = self.faults.iter().find(|fault| fault.name == *name);
            let limit = limit.and_then(|fault| fault.limit).map_or_else(String::new, seconds);
            let columns = stalls.columns.map(|count| count.to_string()).join(" | ");
            let longest = seconds(stalls.longest);
            writeln!(text, "| {name} | {times} | {longest} | {limit} | {columns} |")?;
        }
        Ok(())
    }

    fn list(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "\n## Faults\n")?;
        writeln!(
            text,
            "| at | fault | where, how long | until healed | longest stall | of which the machine did not run |"
        )?;
        writeln!(text, "|---|---|---|---|---|---|")?;
        for done in self.done {
            writeln!(text, "| {} |", done.row())?;
        }
        Ok(())
    }
}

impl Done {
    pub fn row(&self) -> String {
        let [at, took, stall, machine] =
            [self.at, self.took, self.stall, self.machine_stall].map(seconds);
        format!("{at} | {} | {} | {took} | {stall} | {machine}", self.name, self.what)
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
