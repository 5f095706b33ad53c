//! Checkpoints: apply what is stable, begin a new segment, remove the old ones.
//! # Theory
//! ```text
//! 1 sync            what is applied must be on the medium in the journal, older pages in the files
//! 2 apply           group by group; prepares go on in between
//! 3 new segment     picture of all that headers do not say, kept records repeated
//! 4 sync            portion files, new segment, its name
//! 5 remove          older segments, oldest first
//! ```
//! A stop anywhere leaves either the old segments, from which everything is repeated, or the new one
//! alone.
//! # Invariants
//! C1 A segment is removed only when all in it is in portion files or a later segment, on the medium.
//! # Failure
//! A full disk leaves the old segments; the next checkpoint tries again.
//! # Source
//! W-9, S-1, S-3.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use braid_env::File;
use braid_terms::{BLOCK_SIZE, JournalPosition};
use tokio::task::yield_now;

use crate::group::{Entry, Source};
use crate::journal::{Journal, segment_path, segments};
use crate::journal_body::{Kind, Picture, Prepared, Rebuilt, Shape, SlotKey};
use crate::portion_file::PortionError;
use crate::store::Store;
use crate::sync::{MediumFailed, Syncer};

/// Bytes that are applied before others get their turn.
const TURN_BYTES: u64 = 4 << 20;

/// What a checkpoint came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Old segments are gone.
    Done,
    /// Some group could not be applied, or no new segment be begun; all is kept.
    Kept,
}

/// Makes one checkpoint. Never two at a time.
pub(crate) async fn checkpoint(
    store: &Rc<RefCell<Store>>,
    syncer: &Syncer,
) -> Result<Outcome, MediumFailed> {
    syncer.sync_all().await?;
    let keys: Vec<SlotKey> = {
        let mut store = store.borrow_mut();
        store.unapplied = false;
        let synced = store.synced;
        let groups = store.groups.values();
        groups
            .filter(|group| group.header_dirty || 0 < group.applicable(synced))
            .map(|group| group.key)
            .collect()
    };
    let mut outcome = Outcome::Done;
    let mut copied = 0;
    for (index, key) in keys.iter().enumerate() {
        let applied = store.borrow_mut().apply_group(*key);
        match applied {
            Ok(bytes) => copied += bytes,
            Err(error) => {
                report_failure(&mut store.borrow_mut(), *key, &error);
                outcome = Outcome::Kept;
            }
        }
        if TURN_BYTES < copied || index % 64 == 63 {
            copied = 0;
            store.borrow_mut().files.trim();
            yield_now().await;
        }
    }
    let begun = store.borrow_mut().begin_segment();
    if let Err(error) = begun {
        tracing::warn!(%error, "no new journal segment; the old ones stay");
        store.borrow_mut().unapplied = true;
        return Ok(Outcome::Kept);
    }
    syncer.sync_all().await?;
    sync_journal_folder(store).await?;
    remove_old_segments(store).await?;
    let mut store = store.borrow_mut();
    let keep = store.limits.groups_max;
    store.evict_above = 0;
    store.evict(keep);
    Ok(outcome)
}

fn report_failure(store: &mut Store, key: SlotKey, error: &PortionError) {
    tracing::warn!(group = %key.group, slot = %key.slot, %error, "records stay in the journal");
    let is_lost = matches!(error, PortionError::PageLost { .. } | PortionError::FileLost);
    // What is lost stays so, however often it is tried.
    store.unapplied |= !is_lost;
    if let (true, Some(group)) = (is_lost, store.groups.get_mut(&key)) {
        // Its blocks are lost here; the owner must open it anew, and hears it then.
        group.damaged_after = Some(braid_terms::WriteNumber::NONE);
        group.opened = false;
    }
}

/// Makes the names of segments durable.
pub(crate) async fn sync_journal_folder(store: &Rc<RefCell<Store>>) -> Result<(), MediumFailed> {
    let folder = store.borrow().folder.clone();
    let result = folder.sync_folder("journal").await;
    result.map_err(|error| {
        let mut store = store.borrow_mut();
        store.failed.get_or_insert(format!("a sync of the journal folder failed: {error}"));
        store.bell.notify_one();
        MediumFailed
    })
}

/// Removes all segments but the one that is written, oldest first (C1). Each removal is on the medium
/// before the next one, so that what a crash leaves is never with a hole.
pub(crate) async fn remove_old_segments(store: &Rc<RefCell<Store>>) -> Result<(), MediumFailed> {
    let (folder, current) = {
        let store = store.borrow();
        (store.folder.clone(), store.journal.segment)
    };
    let old = segments(&folder).unwrap_or_default();
    for (index, segment) in old.into_iter().filter(|segment| *segment < current).enumerate() {
        if 0 < index {
            sync_journal_folder(store).await?;
        }
        if let Err(error) = folder.remove(&segment_path(segment)) {
            // The rest must stay as well: segments are read from the oldest on.
            tracing::warn!(segment, %error, "a journal segment cannot be removed");
            return Ok(());
        }
    }
    store.borrow_mut().journal.older_bytes = 0;
    Ok(())
}

impl Store {
    /// Begins the next segment with a picture and the kept records, and goes on there.
    ///
    /// Errors: of the disk; the old segment goes on then.
    pub fn begin_segment(&mut self) -> io::Result<()> {
        let salt = self.env.random();
        let next = self.journal.begin_next(&self.folder, self.synced, salt);
        let path = segment_path(self.journal.segment + 1);
        let written = next.and_then(|mut next| {
            let places = self.write_picture(&mut next)?;
            Ok((next, places))
        });
        let (next, places) = match written {
            Ok(written) => written,
            Err(error) => {
                let _ = self.folder.remove(&path);
                return Err(error);
            }
        };
        let old = std::mem::replace(&mut self.journal, next);
        self.take_places(places);
        self.unsynced_segments.push(old.file);
        Ok(())
    }

    /// Completes the segment that recovery began: from then on it holds everything.
    ///
    /// Returns whether there are kept entries.
    pub fn finish_first_segment(&mut self) -> io::Result<bool> {
        let mut journal = self.journal.handle();
        let places = self.write_picture(&mut journal)?;
        let kept = !places.is_empty() || self.groups.values().any(|group| group.header_dirty);
        self.journal = journal;
        self.take_places(places);
        Ok(kept)
    }

    fn take_places(&mut self, places: Vec<(JournalPosition, u64)>) {
        let mut places = places.into_iter();
        let file = self.journal.file.clone();
        for group in self.groups.values_mut() {
            for entry in &mut group.entries {
                let (position, images_at) = places.next().expect("one place for each entry");
                move_entry(entry, position, images_at, &file);
            }
        }
    }

    /// Whether it is time for a checkpoint.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        let entries: usize = self.groups.values().map(|group| group.entries.len()).sum();
        let full = self.limits.journal_bytes_max < self.journal.new_bytes();
        let idle = self.limits.idle <= self.env.now() - self.busy_at;
        full || self.limits.entries_max < entries || (idle && self.unapplied)
    }

    /// Writes the state into a new segment; returns the new places of all kept entries in order.
    pub fn write_picture(&mut self, next: &mut Journal) -> io::Result<Vec<(JournalPosition, u64)>> {
        let now = self.env.now();
        self.tombstones.retain(|_, (_, until)| now < *until);
        let picture = Picture {
            damages: self.damages,
            tombstones: self.tombstones.iter().map(|(key, (grant, _))| (*key, *grant)).collect(),
        };
        let synced = self.synced;
        next.append(Kind::Picture, synced, &encoded(&picture)?, &[])?;
        let mut places = Vec::new();
        for group in self.groups.values() {
            if group.is_clean() {
                continue;
            }
            next.append(Kind::PictureGroup, synced, &encoded(&group.picture())?, &[])?;
            for entry in &group.entries {
                let appended = repeat_entry(next, synced, group.key, group.shape(), entry)?;
                places.push(appended);
            }
        }
        next.append(Kind::PictureEnd, synced, &[], &[])?;
        next.end_picture();
        Ok(places)
    }
}

fn move_entry(entry: &mut Entry, position: JournalPosition, images_at: u64, file: &File) {
    entry.position = position;
    entry.journal = file.clone();
    let mut at = images_at;
    for piece in &mut entry.pieces {
        if let Source::Image(_) = piece.source {
            piece.source = Source::Image(at);
            at += piece.range.count * BLOCK_SIZE as u64;
        }
    }
}

fn repeat_entry(
    next: &mut Journal,
    synced: JournalPosition,
    key: SlotKey,
    shape: Shape,
    entry: &Entry,
) -> io::Result<(JournalPosition, u64)> {
    let (changes, direct) = entry.to_changes();
    let mut images = Vec::new();
    for piece in &entry.pieces {
        if let Source::Image(at) = piece.source {
            let length = piece.crcs.len() * BLOCK_SIZE;
            let from = images.len();
            images.resize(from + length, 0);
            entry.journal.read_exact_at(&mut images[from..], at)?;
        }
    }
    let (kind, body) = match &entry.record {
        Some(record) => {
            let mut record = record.clone();
            record.changes = changes;
            let prepared = Prepared {
                key,
                grant: record.number.grant,
                shape,
                decided: Default::default(),
                stable: Default::default(),
                create: None,
                record,
                direct,
            };
            (Kind::Prepare, encoded(&prepared)?)
        }
        None => {
            let rebuilt = Rebuilt { key, shape, decided: entry.number, changes, direct };
            (Kind::Rebuild, encoded(&rebuilt)?)
        }
    };
    let appended = next.append(kind, synced, &body, &[&images])?;
    Ok((appended.position, appended.images_at))
}

/// A body's bytes.
pub(crate) fn encoded(body: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    postcard::to_stdvec(body).map_err(|error| io::Error::other(error.to_string()))
}
