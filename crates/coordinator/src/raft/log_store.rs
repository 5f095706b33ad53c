//! The log and the vote of a member, kept in memory and in one file.
//!
//! # Theory
//! Every change is a record at the end of the file: a vote, an entry, a cut of the end, a purge of
//! the beginning. What the file says is what its records say one after the other. When most of it
//! is dead, and at every start, it is written anew and takes the old one's place.
//! # Invariants
//! L2 Nothing is acknowledged before a sync that began after its record was written.
//! L3 After a start nothing counts as durable until it was written and synced again: a page cache
//!    proves nothing after a failed sync (S-4).
//! # Failure
//! A failed write or sync ends the member: openraft stops, and `run` returns.
//! # Source
//! S-3, S-4.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::rc::Rc;

use braid_env::{File, Folder, OpenMode};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{LogState, RaftLogReader};
use serde::{Deserialize, Serialize};

use super::log_file::{self, LogFault, LogIdentity};
use super::stored::{Ballot, EntryId, LogEntry, decode, encode};
use super::{Entry, LogId, TypeConfig, Vote};

/// The store; clones share it.
#[derive(Clone)]
pub(crate) struct LogStore(Rc<Inner>);

struct Inner {
    folder: Folder,
    identity: LogIdentity,
    state: RefCell<State>,
}

struct State {
    file: File,
    /// Which file it is: a rewrite begins a new one.
    generation: u64,
    length: u64,
    synced: u64,
    content: LogContent,
    /// Bytes that a rewritten file would have, about.
    live: u64,
    waiting: Vec<IOFlushed<TypeConfig>>,
    is_syncing: bool,
    has_failed: bool,
}

/// What the records say.
#[derive(Default)]
struct LogContent {
    vote: Option<Ballot>,
    purged: Option<EntryId>,
    entries: BTreeMap<u64, Kept>,
}

struct Kept {
    entry: Entry,
    size: u64,
}

/// A record of the file. Stored: new kinds are added at the end.
#[derive(Serialize, Deserialize)]
enum LogRecord {
    Vote(Ballot),
    Entry(LogEntry),
    /// Entries above this index are gone; all of them without one.
    CutAbove(Option<u64>),
    Purged(EntryId),
}

/// Why there is no store.
#[derive(Debug)]
pub(crate) enum OpenError {
    Io(io::Error),
    Fault(LogFault),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl LogStore {
    /// Opens the log, or makes one.
    pub(crate) async fn open(folder: Folder, identity: LogIdentity) -> Result<Self, OpenError> {
        let content = match folder.length(LOG)? {
            Some(_) => {
                let bytes = folder.read_file(LOG)?;
                let (bodies, end) = log_file::read(&bytes, identity).map_err(OpenError::Fault)?;
                if end < bytes.len() as u64 {
                    let cut = bytes.len() as u64 - end;
                    tracing::info!(bytes = cut, "the log ends in the middle of a record");
                }
                LogContent::replay(&bodies).map_err(OpenError::Fault)?
            }
            None => LogContent::default(),
        };
        let (file, length, live) = rewrite(&folder, identity, &content).await?;
        let state = State {
            file,
            generation: 0,
            length,
            synced: length,
            content,
            live,
            waiting: Vec::new(),
            is_syncing: false,
            has_failed: false,
        };
        Ok(Self(Rc::new(Inner { folder, identity, state: RefCell::new(state) })))
    }

    /// Whether nothing was ever stored.
    pub(crate) fn is_new(&self) -> bool {
        let content = &self.0.state.borrow().content;
        content.vote.is_none() && content.purged.is_none() && content.entries.is_empty()
    }

    /// Writes records at the end, in one piece; they are durable only after a sync.
    fn write(&self, records: &[LogRecord]) -> io::Result<()> {
        let state = &mut *self.0.state.borrow_mut();
        if state.has_failed {
            return Err(io::Error::other("the log failed before"));
        }
        let mut bytes = Vec::new();
        for record in records {
            log_file::put_record(&mut bytes, state.synced, &encode(record));
        }
        state.file.write_at(&[&bytes], state.length).inspect_err(|_| state.has_failed = true)?;
        state.length += bytes.len() as u64;
        Ok(())
    }

    /// Makes everything durable that was written before the call.
    async fn sync(&self) -> io::Result<()> {
        let (file, generation, length) = {
            let state = self.0.state.borrow();
            (state.file.clone(), state.generation, state.length)
        };
        let result = file.sync_data().await;
        let state = &mut *self.0.state.borrow_mut();
        match &result {
            Ok(()) if state.generation == generation => state.synced = state.synced.max(length),
            Ok(()) => {}
            Err(_) => state.has_failed = true,
        }
        result
    }

    /// Syncs as long as somebody waits; one sync for all who wait when it begins.
    async fn sync_for_all(self) {
        loop {
            let waiting = {
                let state = &mut *self.0.state.borrow_mut();
                state.is_syncing = !state.waiting.is_empty();
                std::mem::take(&mut state.waiting)
            };
            if waiting.is_empty() {
                return;
            }
            let result = self.sync().await;
            for flushed in waiting {
                flushed.io_completed(result.as_ref().map_err(copy_error).copied());
            }
        }
    }

    /// Writes the file anew when most of it is dead. Nothing else is written meanwhile: openraft
    /// waits for each call.
    async fn compact(&self) -> io::Result<()> {
        let length = {
            let state = self.0.state.borrow();
            if state.length < COMPACT_MIN || state.length < 2 * state.live {
                return Ok(());
            }
            state.length
        };
        let bytes = image(self.0.identity, &self.0.state.borrow().content);
        let file = replace(&self.0.folder, &bytes).await?;
        let state = &mut *self.0.state.borrow_mut();
        assert_eq!(state.length, length, "the log grew while it was written anew");
        state.file = file;
        state.generation += 1;
        state.length = bytes.len() as u64;
        state.synced = state.length;
        state.live = state.length;
        Ok(())
    }
}

impl LogContent {
    fn replay(bodies: &[&[u8]]) -> Result<Self, LogFault> {
        let mut content = Self::default();
        for body in bodies {
            // Its checksum was good: written by another version, or by a bug.
            let record = decode(body).ok_or(LogFault::Damaged(0))?;
            match record {
                LogRecord::Vote(vote) => content.vote = Some(vote),
                LogRecord::Entry(entry) => {
                    let next = content.last().map_or(entry.id.index, |last| last.index + 1);
                    if entry.id.index != next {
                        return Err(LogFault::Damaged(0));
                    }
                    let kept = Kept { entry: entry.into(), size: body.len() as u64 };
                    content.entries.insert(next, kept);
                }
                LogRecord::CutAbove(index) => content.cut_above(index),
                LogRecord::Purged(id) => content.purge(id),
            }
        }
        Ok(content)
    }

    fn last(&self) -> Option<EntryId> {
        let last = self.entries.last_key_value().map(|(_, kept)| kept.entry.log_id.into());
        last.or(self.purged)
    }

    fn cut_above(&mut self, index: Option<u64>) {
        self.entries.split_off(&index.map_or(0, |index| index + 1));
    }

    fn purge(&mut self, id: EntryId) {
        self.entries = self.entries.split_off(&(id.index + 1));
        if self.purged.is_none_or(|purged| purged.index < id.index) {
            self.purged = Some(id);
        }
    }

    fn size(&self) -> u64 {
        self.entries.values().map(|kept| kept.size + RECORD_OVERHEAD).sum()
    }
}

/// The bytes of a file that says just this.
fn image(identity: LogIdentity, content: &LogContent) -> Vec<u8> {
    let mut bytes = log_file::header(identity);
    let mut put = |record: &LogRecord| {
        log_file::put_record(&mut bytes, log_file::HEADER_SIZE as u64, &encode(record));
    };
    content.purged.iter().for_each(|id| put(&LogRecord::Purged(*id)));
    content.vote.iter().for_each(|vote| put(&LogRecord::Vote(*vote)));
    for kept in content.entries.values() {
        put(&LogRecord::Entry((&kept.entry).into()));
    }
    bytes
}

async fn replace(folder: &Folder, bytes: &[u8]) -> io::Result<File> {
    folder.replace_file(LOG, bytes).await?;
    folder.open(LOG, OpenMode::Write)
}

async fn rewrite(
    folder: &Folder,
    identity: LogIdentity,
    content: &LogContent,
) -> io::Result<(File, u64, u64)> {
    let bytes = image(identity, content);
    let file = replace(folder, &bytes).await?;
    Ok((file, bytes.len() as u64, bytes.len() as u64))
}

fn copy_error(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        let state = self.0.state.borrow();
        Ok(state.content.entries.range(range).map(|(_, kept)| kept.entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.state.borrow().content.vote.map(Into::into))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let state = self.0.state.borrow();
        let mut left = READ_BYTES_MAX;
        let mut entries = Vec::new();
        for (_, kept) in state.content.entries.range(start..end) {
            if !entries.is_empty() && left < kept.size {
                break;
            }
            left = left.saturating_sub(kept.size);
            entries.push(kept.entry.clone());
        }
        Ok(entries)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let content = &self.0.state.borrow().content;
        Ok(LogState {
            last_purged_log_id: content.purged.map(Into::into),
            last_log_id: content.last().map(Into::into),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let ballot = Ballot::from(*vote);
        self.write(&[LogRecord::Vote(ballot)])?;
        self.0.state.borrow_mut().content.vote = Some(ballot);
        self.sync().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry>,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let before = self.0.state.borrow().length;
        let records: Vec<_> = entries.iter().map(|entry| LogRecord::Entry(entry.into())).collect();
        self.write(&records)?;
        let state = &mut *self.0.state.borrow_mut();
        let grown = state.length - before;
        state.live += grown;
        let size = grown / entries.len().max(1) as u64;
        for entry in entries {
            let index = entry.log_id.index;
            if let Some(last) = state.content.last() {
                assert_eq!(last.index + 1, index, "entries follow one another");
            }
            state.content.entries.insert(index, Kept { entry, size });
        }
        state.waiting.push(callback);
        if !state.is_syncing {
            state.is_syncing = true;
            tokio::task::spawn_local(self.clone().sync_for_all());
        }
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let index = last_log_id.map(|id| id.index);
        // Durable with whatever is acknowledged next: records keep their order.
        self.write(&[LogRecord::CutAbove(index)])?;
        let state = &mut *self.0.state.borrow_mut();
        state.content.cut_above(index);
        state.live = state.content.size();
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        self.write(&[LogRecord::Purged(log_id.into())])?;
        {
            let state = &mut *self.0.state.borrow_mut();
            state.content.purge(log_id.into());
            state.live = state.content.size();
        }
        self.compact().await
    }
}

/// Its name in the folder.
pub(crate) const LOG: &str = "log";

/// A smaller file is not worth writing anew.
const COMPACT_MIN: u64 = 512 << 10;

/// Bytes of a record beside its entry.
const RECORD_OVERHEAD: u64 = 24;

/// About as many bytes of entries are sent in one message.
const READ_BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
#[path = "log_store_test.rs"]
mod test;
