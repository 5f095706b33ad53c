//! Progress of long work: a bar on a terminal, a line every few seconds otherwise, or nothing.

use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::output::size;

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counts bytes and files, and shows them.
pub struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    verb: &'static str,
    started: Instant,
    last_line: Cell<Instant>,
    bytes: Cell<u64>,
    files: Cell<u64>,
    failures: RefCell<Vec<String>>,
}

impl Progress {
    /// Of work whose bytes are known, or not.
    pub fn new(verb: &'static str, quiet: bool, total: Option<u64>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (!quiet && terminal).then(|| {
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            let template = "{msg} {bytes}/{total_bytes} {wide_bar} {bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(template);
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Self {
            bar,
            lines: !quiet && !terminal,
            verb,
            started: now,
            last_line: Cell::new(now),
            bytes: Cell::new(0),
            files: Cell::new(0),
            failures: RefCell::default(),
        }
    }

    /// Some bytes went over.
    pub fn add_bytes(&self, count: u64) {
        self.bytes.set(self.bytes.get() + count);
        if let Some(bar) = &self.bar {
            bar.inc(count);
        }
        if self.lines && self.last_line.get().elapsed() >= LINE_EVERY {
            self.last_line.set(Instant::now());
            eprintln!("{}", self.line());
        }
    }

    /// A file is done.
    pub fn add_file(&self) {
        self.files.set(self.files.get() + 1);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{} files", self.files.get()));
        }
    }

    /// A file could not be done; told at once and counted.
    pub fn fail(&self, reason: String) {
        match &self.bar {
            Some(bar) => bar.println(format!("braid: {reason}")),
            None => eprintln!("braid: {reason}"),
        }
        self.failures.borrow_mut().push(reason);
    }

    /// Ends the display; returns how many files failed.
    pub fn finish(&self) -> usize {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.bar.is_some() || self.lines {
            eprintln!("{}", self.line());
        }
        self.failures.borrow().len()
    }

    fn line(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let bytes = self.bytes.get();
        format!(
            "{} {} in {} files, {:.1} s, {}/s",
            self.verb,
            size(bytes),
            self.files.get(),
            seconds,
            size((bytes as f64 / seconds) as u64)
        )
    }
}
