//! The scrub: every stored block of the disk is verified against its checksum, pass after pass.
//! # Theory
//! ```text
//! due (14 days after the last pass began, or asked for)
//!   -> portions in the order of their names, paced, the place kept in the file `scrub`
//!   -> bad blocks: told with each renewal of the lease, so that the owner writes them anew
//!   -> looked at again every few seconds, until they are good
//! ```
//! No byte leaves the disk's server. A pass that a restart cuts off goes on where it was.
//! # Invariants
//! I1 `verified` is the beginning of a pass that looked at every portion that was there all along.
//! # Not here
//! Writing blocks anew: the owner, `heal.rs` of the local controller. Parity: not verified.
//! # Source
//! F-6.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use braid_terms::{BLOCK_SIZE, PortionName};
use braid_wire::coordinator::BAD_MAX;
use braid_wire::io::{BadBlocks, BlockRange, IoRefusal, IoReply, ScrubStatus};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::inventory::verify_group;
use crate::portion_page::GROUP_BLOCKS;
use crate::store::Store;

/// The scrub of one disk; clones share it.
#[derive(Clone)]
pub(crate) struct Scrub {
    store: Rc<RefCell<Store>>,
    state: Rc<RefCell<State>>,
    asked: Rc<Notify>,
    found: Rc<Notify>,
}

#[derive(Default)]
struct State {
    kept: Kept,
    /// Not in its file yet.
    is_new: bool,
    /// At full speed.
    hurry: bool,
    /// A pass that begins after the one under way.
    again: bool,
    passes: u64,
    bad: BTreeMap<PortionName, Vec<BlockRange>>,
    /// Which of them are told next.
    turn: usize,
}

/// What the file `scrub` keeps; times in milliseconds since 1970.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Kept {
    /// When the last complete pass began.
    verified: u64,
    /// When the one under way began, 0 where there is none.
    began: u64,
    /// The portion that it verified last.
    after: Option<PortionName>,
    /// Blocks that it verified, or the last one did.
    blocks: u64,
}

impl Scrub {
    pub fn new(store: Rc<RefCell<Store>>) -> Self {
        let kept = store.borrow().folder.read_file(FILE).ok();
        let kept = kept.and_then(|bytes| Kept::parse(&String::from_utf8_lossy(&bytes)));
        let is_new = kept.is_none();
        let now = unix_ms(&store);
        // A new disk has nothing to verify; nor can a clock that was wrong put a pass off for ever.
        let mut kept = kept.unwrap_or(Kept { verified: now, ..Kept::default() });
        kept.verified = kept.verified.min(now);
        let state = State { kept, is_new, ..State::default() };
        Self {
            store,
            state: Rc::new(RefCell::new(state)),
            asked: Rc::default(),
            found: Rc::default(),
        }
    }

    pub fn status(&self) -> ScrubStatus {
        let state = self.state.borrow();
        ScrubStatus {
            verified: state.kept.verified,
            running: state.kept.began != 0 || state.hurry,
            blocks: state.kept.blocks,
            bad_blocks: state.bad.values().flatten().map(|range| range.count).sum(),
            passes: state.passes,
        }
    }

    /// Begins a pass now.
    pub fn ask(&self) {
        let mut state = self.state.borrow_mut();
        // One that is under way has passed by what was there before.
        state.again = state.kept.began != 0;
        state.hurry = true;
        drop(state);
        self.asked.notify_one();
    }

    /// Some of the bad blocks, others at each call.
    pub fn take_bad(&self) -> Vec<BadBlocks> {
        let mut state = self.state.borrow_mut();
        let all: Vec<_> = state
            .bad
            .iter()
            .flat_map(|(name, ranges)| ranges.iter().map(move |range| (*name, *range)))
            .collect();
        if all.is_empty() {
            return Vec::new();
        }
        let begin = state.turn % all.len();
        state.turn = begin + BAD_MAX.min(all.len());
        drop(state);
        let some = all.iter().cycle().skip(begin).take(BAD_MAX.min(all.len()));
        let mut store = self.store.borrow_mut();
        let with_layout = some.filter_map(|(name, range)| match store.describe(*name) {
            Ok(IoReply::Portion(portion)) => {
                Some(BadBlocks { layout: portion.layout, slot: name.index, range: *range })
            }
            _ => None,
        });
        with_layout.collect()
    }

    /// Passes, and second looks at what was bad.
    pub async fn run(&self) -> std::convert::Infallible {
        tokio::select! {
            never = self.passes() => never,
            never = self.look_again() => never,
        }
    }

    async fn passes(&self) -> std::convert::Infallible {
        if self.state.borrow().is_new {
            self.save().await;
        }
        loop {
            let interval = self.store.borrow().limits.scrub_interval;
            let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
            let now = unix_ms(&self.store);
            let (under_way, due) = {
                let state = self.state.borrow();
                let due = state.kept.verified.saturating_add(interval_ms);
                (state.kept.began != 0 || state.hurry, due)
            };
            if !under_way && now < due {
                let left = Duration::from_millis(due - now);
                let _ = timeout(left.min(LOOK_EVERY), self.asked.notified()).await;
                continue;
            }
            if self.state.borrow().kept.began == 0 {
                let verified = self.state.borrow().kept.verified;
                let kept = Kept { verified, began: now.max(1), ..Kept::default() };
                self.state.borrow_mut().kept = kept;
                self.save().await;
            }
            if self.pass(interval).await {
                self.state.borrow_mut().end_pass();
                self.save().await;
            } else {
                sleep(TROUBLE_WAIT).await;
            }
        }
    }

    /// Whether it came to the end.
    async fn pass(&self, interval: Duration) -> bool {
        let mut unsaved = 0;
        loop {
            let after = self.state.borrow().kept.after;
            let listed = self.store.borrow().list_portions(after, NAMES);
            let Ok(IoReply::Portions { names, end }) = listed else { return false };
            for name in names {
                let Ok(blocks) = self.portion(name, interval).await else { return false };
                self.state.borrow_mut().kept.after = Some(name);
                unsaved += blocks + 1;
                if SAVE_BLOCKS < unsaved {
                    self.save().await;
                    unsaved = 0;
                }
            }
            if end {
                return true;
            }
        }
    }

    /// Verifies one portion; its number of blocks.
    ///
    /// Errors: the disk does not answer now.
    async fn portion(&self, name: PortionName, interval: Duration) -> Result<u64, IoRefusal> {
        let (mut blocks, mut bad) = (0, Vec::new());
        let mut group = 0;
        loop {
            match verify_group(&self.store, name, group).await {
                Ok(Some(seen)) => {
                    blocks += seen.blocks;
                    self.state.borrow_mut().kept.blocks += seen.blocks;
                    bad.extend(seen.bad);
                    self.pace(seen.blocks, interval).await;
                }
                Ok(None) => break,
                // Removed meanwhile.
                Err(IoRefusal::UnknownGroup) => break,
                Err(IoRefusal::Unreadable { reason }) => {
                    // Its header: found as lost by the next open of its group.
                    tracing::error!(portion = %name, reason, "a portion cannot be read");
                    break;
                }
                Err(refusal) => return Err(refusal),
            }
            group += 1;
        }
        self.learn(name, bad);
        Ok(blocks)
    }

    fn learn(&self, name: PortionName, bad: Vec<BlockRange>) {
        let mut state = self.state.borrow_mut();
        if bad.is_empty() {
            state.bad.remove(&name);
            return;
        }
        if !state.bad.contains_key(&name) {
            let blocks: u64 = bad.iter().map(|range| range.count).sum();
            tracing::warn!(portion = %name, blocks, "the scrub found bad blocks");
        }
        // More than that wait for the next pass: a disk with so many is to be replaced.
        if state.bad.len() < BAD_PORTIONS_MAX || state.bad.contains_key(&name) {
            state.bad.insert(name, bad);
            drop(state);
            self.found.notify_one();
        }
    }

    /// A pass takes half of the time between two, or less.
    async fn pace(&self, blocks: u64, interval: Duration) {
        if self.state.borrow().hurry || blocks == 0 {
            return;
        }
        let used = {
            let store = self.store.borrow();
            store.bytes_total.saturating_sub(store.bytes_usable())
        };
        let rate = (used as f64 / (interval.as_secs_f64() / 2.0)).max(RATE_MIN);
        let span = Duration::from_secs_f64((blocks * BLOCK_SIZE as u64) as f64 / rate);
        let _ = timeout(span, self.asked.notified()).await;
    }

    async fn look_again(&self) -> std::convert::Infallible {
        loop {
            if self.state.borrow().bad.is_empty() {
                self.found.notified().await;
            }
            sleep(LOOK_AGAIN).await;
            let all = self.state.borrow().bad.clone();
            for (name, ranges) in all {
                let mut groups: Vec<u64> =
                    ranges.iter().map(|range| range.first / GROUP_BLOCKS).collect();
                groups.dedup();
                let mut bad = Vec::new();
                for group in groups {
                    if let Ok(Some(seen)) = verify_group(&self.store, name, group).await {
                        bad.extend(seen.bad);
                    }
                }
                self.learn(name, bad);
            }
        }
    }

    async fn save(&self) {
        let (folder, text) = {
            let store = self.store.borrow();
            (store.folder.clone(), self.state.borrow().kept.text())
        };
        // Without it a restart begins anew.
        if let Err(error) = folder.replace_file(FILE, text.as_bytes()).await {
            tracing::debug!(%error, "the scrub's place was not kept");
        }
    }
}

impl State {
    fn end_pass(&mut self) {
        self.kept.verified = self.kept.began;
        (self.kept.began, self.kept.after) = (0, None);
        self.hurry = std::mem::take(&mut self.again);
        self.passes += 1;
    }
}

impl Kept {
    fn text(&self) -> String {
        let mut text = format!(
            "# How far the scrub is; see docs/format/disk.md.\n\
             verified = {}\nbegan = {}\nblocks = {}\n",
            self.verified, self.began, self.blocks
        );
        if let Some(after) = self.after {
            let _ = writeln!(text, "after = \"{after}\"");
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            let mut found = pairs.filter(|(found, _)| found.trim() == key);
            found.next().map(|(_, value)| value.trim().trim_matches('"'))
        };
        let number = |key: &str| value(key)?.parse().ok();
        let after = match value("after") {
            None => None,
            Some(name) => Some(name.parse().ok()?),
        };
        Some(Self {
            verified: number("verified")?,
            began: number("began")?,
            blocks: number("blocks")?,
            after,
        })
    }
}

fn unix_ms(store: &Rc<RefCell<Store>>) -> u64 {
    let time = store.borrow().env.wall_time();
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds.saturating_mul(1000) + u64::from(time.nanoseconds / 1_000_000)
}

/// In the disk's folder.
const FILE: &str = "scrub";

/// Portions listed at a time.
const NAMES: u32 = 1000;

/// Blocks and portions after which the place is kept.
const SAVE_BLOCKS: u64 = 1 << 16;

/// Portions with bad blocks that are remembered.
const BAD_PORTIONS_MAX: usize = 4096;

/// Slowest pace, in bytes per second.
const RATE_MIN: f64 = 4.0 * (1 << 20) as f64;

/// How often the time of day is asked for.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// How soon bad blocks are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Pause after the disk did not answer.
const TROUBLE_WAIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_prints_and_parses() {
        let name = "727-3-4".parse().expect("a name");
        let kept = Kept { verified: 7, began: 9, blocks: 11, after: Some(name) };
        assert_eq!(Kept::parse(&kept.text()), Some(kept.clone()));
        let first = Kept { after: None, ..kept };
        assert_eq!(Kept::parse(&first.text()), Some(first));
        for text in ["", "verified = 1\nbegan = 2\n", "verified = x\nbegan = 1\nblocks = 1\n"] {
            assert_eq!(Kept::parse(text), None, "{text}");
        }
    }
}
