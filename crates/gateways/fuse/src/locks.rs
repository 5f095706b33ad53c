//! Locks of files, across mounts.
//!
//! # Theory
//! The owner of a file's home directory gives locks; this mount keeps a copy of what it holds, tells
//! the owner [`KEEP_EVERY`] that it still does, and so brings its locks to a new owner as well.
//! ```text
//! close of any descriptor  fcntl locks of the process go     FLUSH names it
//! last close of an open    its flock goes                    RELEASE names it
//! ```
//! # Failure
//! A mount that was cut off for ten seconds may find its locks given to others; that is logged. An
//! interrupted wait ends at once; a lock that comes after it is given back.
//! # Source
//! DESIGN 9.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use braid_terms::{DeviceId, GroupLayout};
use braid_wire::lcc::{DirectoryOp, FileLock, LccReply, LockKind};
use braid_wire::locks::LockTable;

use crate::errno::{Errno, Outcome};
use crate::inode::Inode;
use crate::kernel::Running;
use crate::store::Store;
use crate::vfs::Vfs;
use crate::write::Depth;

/// How often owners hear what is held here.
const KEEP_EVERY: Duration = Duration::from_millis(500);

/// How long a mount that appends keeps others from it: its appends go together.
const TURN: Duration = Duration::from_millis(100);

/// Locks that this mount holds.
#[derive(Default)]
pub struct HeldLocks {
    table: RefCell<LockTable>,
    /// Homes of files with locks.
    homes: RefCell<BTreeMap<DeviceId, GroupLayout>>,
    /// A task tells owners.
    is_kept: Cell<bool>,
}

impl<S: Store> Vfs<S> {
    /// Takes a lock, or waits for it until a signal comes.
    ///
    /// Errors: `EAGAIN` where somebody else has it and nobody waits, `EINTR`.
    pub async fn lock(
        self: &Rc<Self>,
        inode: &Arc<Inode>,
        lock: FileLock,
        waiting: Option<Rc<Running>>,
    ) -> Outcome<()> {
        let inode = &self.settled(inode).await?;
        let lock = FileLock { id: inode.id, ..lock };
        loop {
            let op = DirectoryOp::Lock { lock, wait: waiting.is_some() };
            let (vfs, home) = (self.clone(), inode.home.clone());
            let mut asking = Box::pin(async move { vfs.directory(&home, op).await });
            let reply = match &waiting {
                None => asking.await,
                Some(running) => tokio::select! {
                    reply = &mut asking => reply,
                    () = running.interrupted.notified() => {
                        self.give_back(inode, lock, asking);
                        return Err(Errno::INTR);
                    }
                },
            };
            match reply? {
                LccReply::Lock(None) => {
                    self.holds(inode, lock);
                    // What the last holder wrote is to be seen, also by who has it open already.
                    return self.see_changes(inode).await;
                }
                LccReply::Lock(Some(_)) if waiting.is_none() => return Err(Errno::AGAIN),
                LccReply::Lock(Some(_)) => {}
                _ => return Err(Errno::IO),
            }
        }
    }

    /// Nobody waits for it any more: if it comes, it goes.
    fn give_back(
        self: &Rc<Self>,
        inode: &Arc<Inode>,
        lock: FileLock,
        asking: impl Future<Output = Outcome<LccReply>> + 'static,
    ) {
        let (vfs, inode) = (self.clone(), inode.clone());
        tokio::task::spawn_local(async move {
            if let Ok(LccReply::Lock(None)) = asking.await {
                // Whatever it had in the range before was replaced, as the owner sees it.
                let _ = vfs.give_up(&inode, lock).await;
            }
        });
    }

    /// Gives locks of a holder up in a range.
    pub async fn unlock(self: &Rc<Self>, inode: &Arc<Inode>, lock: FileLock) -> Outcome<()> {
        // The next holder is to see what was written.
        let flushed = self.flush(inode, Depth::Held).await;
        self.locks.forget(&lock);
        let unlocked = self.directory(&inode.home, DirectoryOp::Unlock { lock }).await;
        flushed.and(unlocked.map(drop))
    }

    /// Waits until no other mount appends; this one may then for [`TURN`]. What others appended before
    /// is known after this.
    ///
    /// Called while the kernel waits for a write: its pages cannot be dropped before that is answered.
    pub async fn take_turn(self: &Rc<Self>, inode: &Arc<Inode>) -> Outcome<()> {
        let _one = inode.turn.lock().await;
        if inode.state().has_turn {
            return Ok(());
        }
        let lock = FileLock {
            id: inode.id,
            session: self.session,
            owner: 0,
            kind: LockKind::Append,
            exclusive: true,
            from: 0,
            to: u64::MAX,
            pid: 0,
        };
        loop {
            match self.directory(&inode.home, DirectoryOp::Lock { lock, wait: true }).await? {
                LccReply::Lock(None) => break,
                LccReply::Lock(Some(_)) => {}
                _ => return Err(Errno::IO),
            }
        }
        self.holds(inode, lock);
        let (vfs, inode) = (self.clone(), inode.clone());
        let fetched = vfs.refetch(&inode).await;
        inode.state().has_turn = fetched.is_ok();
        tokio::task::spawn_local(async move {
            if fetched.is_ok() {
                tokio::time::sleep(TURN).await;
            }
            let _one = inode.turn.lock().await;
            inode.state().has_turn = false;
            if let Err(error) = vfs.unlock(&inode, lock).await {
                tracing::debug!(file = %inode.id, %error, "a turn to append ends with the session");
            }
        });
        fetched
    }

    /// Gives locks up of a file whose bytes were sent.
    async fn give_up(&self, inode: &Inode, lock: FileLock) -> Outcome<()> {
        self.directory(&inode.home, DirectoryOp::Unlock { lock }).await.map(drop)
    }

    /// A lock that is in the way of this one.
    pub async fn test_lock(
        self: &Rc<Self>,
        inode: &Arc<Inode>,
        lock: FileLock,
    ) -> Outcome<Option<FileLock>> {
        let inode = &self.settled(inode).await?;
        let lock = FileLock { id: inode.id, ..lock };
        match self.directory(&inode.home, DirectoryOp::TestLock { lock }).await? {
            LccReply::Lock(held) => Ok(held),
            _ => Err(Errno::IO),
        }
    }

    /// A lock of that holder and kind over the whole file, if it has any.
    pub fn locks_of(&self, id: DeviceId, owner: u64, kind: LockKind) -> Option<FileLock> {
        let table = self.locks.table.borrow();
        let mut of_file = table.of_file(id);
        let some = of_file.find(|held| held.owner == owner && held.kind == kind)?;
        Some(FileLock { from: 0, to: u64::MAX, ..*some })
    }

    fn holds(self: &Rc<Self>, inode: &Inode, lock: FileLock) {
        if let Err(held) = self.locks.table.borrow_mut().lock(lock) {
            tracing::warn!(?lock, ?held, "two of this mount hold one lock");
        }
        self.locks.homes.borrow_mut().insert(lock.id, inode.home.clone());
        if !self.locks.is_kept.replace(true) {
            let vfs = self.clone();
            tokio::task::spawn_local(async move { vfs.keep_locks().await });
        }
    }

    async fn keep_locks(self: Rc<Self>) {
        loop {
            tokio::time::sleep(KEEP_EVERY).await;
            let by_home = self.locks.by_home();
            if by_home.is_empty() {
                self.locks.is_kept.set(false);
                return;
            }
            let vfs = &self;
            let told = by_home.into_iter().map(|(home, locks)| async move {
                let op = DirectoryOp::KeepLocks { session: vfs.session, locks };
                // An owner that is not there is asked again; it hears of the locks then.
                if let Ok((LccReply::LostLocks(lost), _)) = vfs.store.directory(&home, op).await {
                    lost
                } else {
                    Vec::new()
                }
            });
            for lost in futures_util::future::join_all(told).await.into_iter().flatten() {
                tracing::error!(file = %lost.id, "a lock was lost while the mount was cut off");
                self.locks.forget(&lost);
            }
        }
    }
}

impl HeldLocks {
    fn forget(&self, lock: &FileLock) {
        let mut table = self.table.borrow_mut();
        table.unlock(lock);
        if table.of_file(lock.id).next().is_none() {
            self.homes.borrow_mut().remove(&lock.id);
        }
    }

    fn by_home(&self) -> Vec<(GroupLayout, Vec<FileLock>)> {
        let (table, homes) = (self.table.borrow(), self.homes.borrow());
        let mut all: BTreeMap<DeviceId, (GroupLayout, Vec<FileLock>)> = BTreeMap::new();
        for lock in table.all() {
            if let Some(home) = homes.get(&lock.id) {
                let entry = all.entry(home.group()).or_insert_with(|| (home.clone(), Vec::new()));
                entry.1.push(*lock);
            }
        }
        all.into_values().collect()
    }
}
