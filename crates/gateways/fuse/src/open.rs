//! Opening and closing.
//!
//! # Theory
//! Close to open: what another mount wrote and closed is seen by an open that comes after. While the
//! owner grants the record, it recalls it before others change it, and an open asks nobody. Else it
//! asks the owner, unless the lookup of the same call has just done so, and the kernel keeps its pages
//! only if the bytes are still those that they show.

use std::rc::Rc;
use std::sync::Arc;

use braid_terms::DeviceId;
use braid_wire::lcc::{DirectoryOp, FileKind};
use bytes::Bytes;

use crate::around::Changing;
use crate::clock::now_ms;
use crate::errno::{Errno, Outcome};
use crate::inode::{Inode, Names};
use crate::names::{Found, Making, NewNode};
use crate::store::Store;
use crate::vfs::{Shared, Vfs, may_write};
use crate::write::Depth;

/// Something that was opened.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Its number.
    pub handle: u64,
    /// The kernel's pages of it are still right.
    pub keep_pages: bool,
}

/// How long a lookup's answer serves the open that it was made for, in milliseconds. The kernel does
/// not say what a lookup is for: an open that soon after a `stat` of its name may see what was closed
/// before the `stat`, and not what was closed between.
const CREDIT_MS: u64 = 2;
pub(crate) const O_TRUNC: i32 = 0o1000;
pub(crate) const O_EXCL: i32 = 0o200;
pub(crate) const O_APPEND: i32 = 0o2000;
pub(crate) const O_DSYNC: i32 = 0o10000;
/// What `O_SYNC` has above `O_DSYNC`.
pub(crate) const O_SYNC_TOO: i32 = 0o4_000_000;

impl Shared {
    /// Whether an open may do without asking the owner; used up by asking.
    pub fn take_open_credit(&self, inode: &Inode) -> bool {
        let mut state = inode.state();
        if state.is_recalled() {
            return true;
        }
        let since = std::mem::take(&mut state.open_credit_ms);
        now_ms() < since + CREDIT_MS
    }

    /// A handle for what was checked.
    pub fn open_checked(&self, inode: &Arc<Inode>, flags: i32) -> Opened {
        let keep_pages = std::mem::replace(&mut inode.state().pages_valid, true);
        Opened { handle: self.add_handle(inode.clone(), flags), keep_pages }
    }
}

impl Shared {
    /// Closes, where that leaves little to do.
    pub fn release_here(&self, number: u64) -> Released {
        let Ok(handle) = self.handle(number) else { return Released::Done };
        {
            let state = handle.inode.state();
            if state.is_dirty() || state.names != Names::Some || state.is_held {
                return Released::Ask;
            }
        }
        let Some((handle, true)) = self.remove_handle(number) else { return Released::Done };
        let names = {
            let mut state = handle.inode.state();
            state.chunks.clear();
            state.names
        };
        if names.has_record_only() {
            // Its last name went just now.
            return Released::Kept(handle.inode.clone());
        }
        self.inodes.forget(handle.inode.id, 0);
        Released::Done
    }
}

/// What a FUSE thread made of a close.
pub enum Released {
    /// All of it.
    Done,
    /// Nothing: bytes wait, or a record.
    Ask,
    /// It is closed, and its record is to go: see [`Vfs::drop_kept`].
    Kept(Arc<Inode>),
}

impl<S: Store> Vfs<S> {
    /// Opens a file.
    pub async fn open(self: &Rc<Self>, id: DeviceId, flags: i32) -> Outcome<Opened> {
        let inode = self.shared.inode(id)?;
        let is_unborn = inode.state().unborn.is_some();
        let has_credit = self.shared.take_open_credit(&inode) || is_unborn;
        if !has_credit && inode.state().names == Names::Some {
            self.see_changes(&inode).await?;
        }
        if flags & O_TRUNC != 0 && inode.kind == FileKind::File {
            self.truncate(&inode, 0).await?;
        }
        // By now its number may stand for another.
        let inode = self.shared.inode(id)?;
        let _changing = match may_write(flags) {
            true => Some(Changing::settled(&inode).await),
            false => None,
        };
        Ok(self.shared.open_checked(&inode, flags))
    }

    /// Asks the owner of a file, and has the kernel forget what is not right any more before it goes
    /// on.
    pub async fn see_changes(self: &Rc<Self>, inode: &Arc<Inode>) -> Outcome<()> {
        let told = inode.state().told();
        self.refetch(inode).await?;
        if inode.state().told() != told {
            // Else the kernel would go by the size that it was told before.
            self.shared.drop_pages(inode.id);
            self.shared.pages_dropped().await;
        }
        Ok(())
    }

    /// Makes a file and opens it; opens the one that is there unless `O_EXCL` is given.
    pub async fn create(
        self: &Rc<Self>,
        parent: DeviceId,
        name: Bytes,
        node: NewNode,
        flags: i32,
    ) -> Outcome<(Found, Opened)> {
        let how = if flags & O_EXCL == 0 { Making::Soon { flags } } else { Making::Now };
        match self.make(parent, name.clone(), node, how).await {
            Ok(found) => {
                let opened = self.shared.open_checked(&found.inode, flags);
                Ok((found, opened))
            }
            Err(Errno::EXIST) if flags & O_EXCL == 0 => {
                // Somebody else was faster.
                let found = self.lookup(parent, name).await?;
                let opened = self.open(found.inode.id, flags).await;
                if opened.is_err() {
                    self.shared.inodes.forget(found.inode.id, 1);
                }
                // Others may have had it meanwhile.
                Ok((Found { right: None, ..found }, opened?))
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a file without a name and opens it (`O_TMPFILE`).
    pub async fn create_unnamed(
        self: &Rc<Self>,
        parent: DeviceId,
        node: NewNode,
        flags: i32,
    ) -> Outcome<(Found, Opened)> {
        let found = self.make(parent, Bytes::new(), node, Making::Now).await?;
        found.inode.state().names = Names::NotYet;
        let opened = self.shared.open_checked(&found.inode, flags);
        Ok((found, opened))
    }

    /// Closes in the background what is left to do of it.
    pub fn close_later(self: &Rc<Self>, released: Released, number: u64) {
        self.closing.set(self.closing.get() + 1);
        let vfs = self.clone();
        tokio::task::spawn_local(async move {
            match released {
                Released::Done => {}
                Released::Ask => vfs.release(number).await,
                Released::Kept(inode) => vfs.drop_kept(&inode).await,
            }
            vfs.closing.set(vfs.closing.get() - 1);
            vfs.closed.notify_waiters();
        });
    }

    /// The mount has ended: all is closed, also what the kernel did not tell any more.
    pub async fn close_all(self: &Rc<Self>) {
        for inode in self.shared.inodes.kept() {
            inode.state().opens = 0;
            self.drop_kept(&inode).await;
        }
        while self.closing.get() > 0 {
            self.closed.notified().await;
        }
    }

    /// The last close of a file that its owner keeps for this mount. Source: N-4.
    async fn let_go(&self, inode: &Arc<Inode>) {
        if std::mem::take(&mut inode.state().is_held) {
            let op = DirectoryOp::Closed { id: inode.id };
            if let Err(error) = self.directory(&inode.home, op).await {
                tracing::debug!(id = %inode.id, %error, "kept until the lease of this mount ends");
            }
        }
    }

    /// The last file descriptor of an open is gone.
    pub async fn release(self: &Rc<Self>, number: u64) {
        let Some((handle, is_last)) = self.shared.remove_handle(number) else { return };
        let inode = &handle.inode;
        if !is_last {
            return;
        }
        if inode.state().names == Names::Some {
            // Pages of a mapping may have come after the flush; there is nobody left to tell.
            if inode.state().is_dirty()
                && let Err(error) = self.flush(inode, Depth::Held).await
            {
                tracing::warn!(id = %inode.id, ?error, "bytes written through a mapping are lost");
            }
        } else {
            self.discard(inode);
            self.drop_kept(inode).await;
        }
        if inode.state().opens == 0 {
            inode.state().chunks.clear();
            self.let_go(inode).await;
        }
        // It stayed for its bytes; the kernel may have forgotten it before.
        self.shared.inodes.forget(inode.id, 0);
    }
}
