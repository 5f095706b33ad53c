//! Syncs: one is under way, the next collects all who wait meanwhile.
//! # Theory
//! A round takes the list of what was written and the newest position, waits until all of it is on
//! the medium, then says so: `synced` moves, a marker follows in the journal, waiters wake.
//! # Invariants
//! Y1 `synced` moves only after everything written before the round began is on the medium.
//! # Failure
//! A failed sync is never repeated or ignored: the store is marked as failed and the process ends;
//! what the next start finds counts as not synced.
//! # Source
//! S-3, S-4, W-9.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use braid_env::{File, Folder};
use braid_terms::{JournalPosition, planted, sometimes};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinSet;

use crate::direct::written;
use crate::journal_body::Kind;
use crate::portion_file::Unsynced;
use crate::store::Store;

/// Where those who wait for the medium meet.
#[derive(Clone)]
pub(crate) struct Syncer {
    store: Rc<RefCell<Store>>,
    wanted: Rc<Notify>,
    done: Rc<watch::Sender<JournalPosition>>,
    // Rounds never overlap: the later one would end first and speak for the earlier one (Y1).
    turn: Rc<Mutex<()>>,
}

/// The medium failed; the process must end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MediumFailed;

impl Syncer {
    /// A syncer whose rounds `run` makes.
    pub fn new(store: Rc<RefCell<Store>>) -> Self {
        let (done, _) = watch::channel(store.borrow().synced);
        Self { store, wanted: Rc::default(), done: Rc::new(done), turn: Rc::default() }
    }

    /// Waits until all positions up to `position` are on the medium, or all that are there.
    pub async fn sync_to(&self, position: JournalPosition) -> Result<(), MediumFailed> {
        let target = {
            let store = self.store.borrow();
            if store.failed.is_some() {
                return Err(MediumFailed);
            }
            position.min(store.journal.needed)
        };
        let mut done = self.done.subscribe();
        if target <= *done.borrow() {
            return Ok(());
        }
        self.wanted.notify_one();
        let result = done.wait_for(|synced| target <= *synced).await;
        if self.store.borrow().failed.is_some() || result.is_err() {
            return Err(MediumFailed);
        }
        Ok(())
    }

    /// Waits until all that was written until now is on the medium, also what no position names.
    pub async fn sync_all(&self) -> Result<(), MediumFailed> {
        // A round that is under way may have begun before: its end is not enough.
        self.round().await
    }

    /// Makes rounds for as long as someone waits.
    pub async fn run(&self) -> MediumFailed {
        loop {
            self.wanted.notified().await;
            if self.round().await.is_err() {
                return MediumFailed;
            }
        }
    }

    /// One round.
    pub async fn round(&self) -> Result<(), MediumFailed> {
        let _turn = self.turn.lock().await;
        let (folder, target, segments, unsynced, tickets) = {
            let mut store = self.store.borrow_mut();
            if store.failed.is_some() {
                return Err(MediumFailed);
            }
            let mut segments = std::mem::take(&mut store.unsynced_segments);
            let unsynced = std::mem::take(&mut store.files.unsynced);
            store.journal.fill_ahead();
            segments.push(store.journal.file.clone());
            let tickets = store.direct.open();
            (store.folder.clone(), store.last_position(), segments, unsynced, tickets)
        };
        // A sync covers only what was written before it began (D1).
        written(&self.store, &tickets).await;
        if self.store.borrow().failed.is_some() {
            self.done.send_replace(JournalPosition(u64::MAX));
            return Err(MediumFailed);
        }
        let mut result = match planted!("S-3/synced-without-a-sync") {
            true => Ok(()),
            false => make_durable(folder, segments, unsynced).await,
        };
        if planted!("S-4/a-failed-sync-is-ignored") {
            result = Ok(());
        }
        let mut store = self.store.borrow_mut();
        if let Err(error) = result {
            sometimes!("S-4: a sync failed");
            store.failed.get_or_insert(format!("a sync of the disk failed: {error}"));
            store.bell.notify_one();
            self.done.send_replace(JournalPosition(u64::MAX));
            return Err(MediumFailed);
        }
        store.status.syncs += 1;
        let news = store.synced < store.journal.needed;
        store.synced = store.synced.max(target);
        if news {
            // Tells a later start that what stands before is no torn tail. It needs no sync itself.
            let synced = store.synced;
            let _ = store.journal.append(Kind::Synced, synced, &[], &[]);
        }
        let synced = store.synced;
        drop(store);
        self.done.send_if_modified(|done| std::mem::replace(done, synced.max(*done)) < synced);
        Ok(())
    }
}

/// Waits until all of it is on the medium.
async fn make_durable(folder: Folder, segments: Vec<File>, unsynced: Unsynced) -> io::Result<()> {
    if unsynced.everything {
        folder.sync_all().await?;
    }
    let mut tasks = JoinSet::new();
    for file in segments.into_iter().chain(unsynced.files.into_values()) {
        tasks.spawn_local(async move { file.sync_data().await });
    }
    for number in unsynced.folders {
        let folder = folder.clone();
        tasks.spawn_local(
            async move { folder.sync_folder(&format!("portions/{number:02x}")).await },
        );
    }
    // All are waited for, also after a failure, so that nothing of this round goes on behind it.
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()));
        result = result.and(ended);
    }
    result
}
