//! Names: looking up, making, removing, renaming, linking.
//!
//! # Theory
//! Each change of names is one request to the owner of the directory; what concerns other groups, too,
//! the owners do among themselves (W-7). A new directory is begun in its own group first, listed as an
//! upload at its parent meanwhile, then entered there.
//! Where this mount owns the directory, it is answered before that is decided ([`Vfs::soon`], W-9).
//! Removing the last name of a file that is open here leaves its record until the last close.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use braid_terms::{DataType, DeviceId, GroupLayout, NAME_MAX, SYMLINK_MAX};
use braid_wire::lcc::{
    AttributeChanges, Attributes, DirectoryEntry, DirectoryOp, FileData, FileKind, IfExists,
    LccReply, NewAttributes,
};
use bytes::Bytes;

use crate::acl::{ACCESS, DEFAULT};
use crate::errno::{Errno, Outcome};
use crate::inode::{Inode, Names};
use crate::store::{Right, Store};
use crate::vfs::Vfs;
use crate::write::Depth;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What is to be made.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Those that it does not get, unless its directory has a default list.
    pub umask: u32,
    /// Number of a device node.
    pub rdev: u64,
    /// A symlink's target.
    pub target: Option<Bytes>,
    /// By whom.
    pub caller: Caller,
}

/// What a name stands for.
pub struct Found {
    /// The inode.
    pub inode: Arc<Inode>,
    /// The right to believe that the name stands for it.
    pub right: Right,
}

/// How a rename treats a taken name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// It fails.
    NoReplace,
    /// Both are exchanged.
    Exchange,
}

/// When the owner of the directory is to hear of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Making {
    /// Before it is answered.
    Now,
    /// A file without `O_EXCL`, opened with these flags: see `unborn.rs`.
    Soon {
        /// `O_` flags.
        flags: i32,
    },
}

/// A directory that the kernel has locked; until this is dropped.
struct Busy(Option<Arc<Inode>>);

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(inode) = &self.0 {
            inode.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

const SETGID: u32 = 0o2000;
/// How often an operation is tried again when a name changed under it.
const RACES_MAX: u32 = 16;

pub(crate) fn check_name(name: &[u8]) -> Outcome<()> {
    if name.len() > NAME_MAX { Err(Errno::NAMETOOLONG) } else { Ok(()) }
}

impl<S: Store> Vfs<S> {
    /// What a name stands for.
    pub async fn lookup(self: &Rc<Self>, parent: DeviceId, name: Bytes) -> Outcome<Found> {
        check_name(&name)?;
        if let Some(inode) = self.unborn(parent, &name) {
            inode.lookups.fetch_add(1, Ordering::Relaxed);
            let right = self.store.right(inode.home.group());
            return Ok(Found { inode, right });
        }
        let parent = self.shared.inode(parent)?;
        let found = match self.lookup_owner(&parent, name.clone()).await {
            Err(Errno::NOENT) => self.lookup_again(&parent, name).await?,
            found => found?,
        };
        let inode = &found.inode;
        if self.has_unborn(inode.id) {
            // They change its times.
            self.settle_in(inode.id).await;
            self.refetch(inode).await?;
        }
        inode.state().open_credit_ms = crate::clock::now_ms();
        Ok(found)
    }

    /// What a name stands for at the owner of the directory.
    pub async fn lookup_owner(&self, parent: &Inode, name: Bytes) -> Outcome<Found> {
        let (entry, record, right) = self.find(&parent.home, name).await?;
        let recalls = parent.recalls.load(Ordering::Relaxed);
        let inode = self.hear_entry(parent, &entry, record.map(|r| (r, right.clone()))).await?;
        let is_same = recalls == parent.recalls.load(Ordering::Relaxed);
        Ok(Found { inode, right: right.filter(|_| is_same) })
    }

    /// A lookup found no name, or a name whose record or directory nobody knows. The second is mended
    /// if it stays: a power cut of all servers took what was never synced. A directory begins anew,
    /// empty, with the attributes of the one above; the name of a file goes.
    async fn lookup_again(&self, parent: &Inode, name: Bytes) -> Outcome<Found> {
        let (entry, record, _) = self.find(&parent.home, name.clone()).await?;
        match self.hear_entry(parent, &entry, record.map(|record| (record, None))).await {
            Err(Errno::NOENT) => {}
            found => return Ok(Found { inode: found?, right: None }),
        }
        tracing::warn!(directory = %parent.id, id = %entry.id, "a name of nothing is mended");
        let Ok(group) = Self::directory_group(&entry) else {
            self.unlink_nothing(parent, name, entry.id).await?;
            return Err(Errno::NOENT);
        };
        let new = {
            let like = parent.state().record.clone();
            NewAttributes {
                id: None,
                kind: FileKind::Directory,
                mode: like.mode,
                uid: like.uid,
                gid: like.gid,
                made: None,
                atime: None,
                mtime: None,
                rdev: 0,
                data: FileData::None,
                size: 0,
                target: None,
                xattrs: Vec::new(),
            }
        };
        let (operation, above) = (self.store.operation(), parent.home.clone());
        let begin = DirectoryOp::Begin { operation, attributes: new, parent: above };
        match self.directory(&group, begin).await {
            Ok(_) | Err(Errno::EXIST) => self.lookup_owner(parent, name).await,
            Err(error) => Err(error),
        }
    }

    /// Removes a name of nothing, if it still is that. Somebody else may have done so.
    async fn unlink_nothing(&self, parent: &Inode, name: Bytes, id: DeviceId) -> Outcome<()> {
        let unlink = DirectoryOp::Unlink {
            operation: self.store.operation(),
            name,
            only_id: Some(id),
            keep: true,
            directory: false,
        };
        match self.directory(&parent.home, unlink).await {
            Ok(_) | Err(Errno::NOENT | Errno::STALE) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The inode of an entry, with its record where that came along.
    async fn hear_entry(
        &self,
        parent: &Inode,
        entry: &DirectoryEntry,
        record: Option<(Attributes, Right)>,
    ) -> Outcome<Arc<Inode>> {
        let home = entry.home.as_ref().unwrap_or(&parent.home);
        let (record, right) = match record {
            Some((record, right)) if record.writers == 0 => (record, right),
            _ => self.fetch_record(home, entry.id).await?,
        };
        let inode = self.hear(home, record, right);
        inode.found(parent.id, &entry.name);
        Ok(inode)
    }

    async fn find(
        &self,
        group: &GroupLayout,
        name: Bytes,
    ) -> Outcome<(DirectoryEntry, Option<Attributes>, Right)> {
        match self.look(group, DirectoryOp::Lookup { name }).await? {
            (LccReply::Entry { entry, attributes, .. }, right) => {
                Ok((entry, attributes.map(|a| *a), right))
            }
            _ => Err(Errno::IO),
        }
    }

    /// The parent's attributes are older than what was just done in it.
    fn touch(directory: &Inode) {
        directory.state().right = None;
    }

    /// Attributes of something new: the group of a setgid directory is inherited.
    async fn new_attributes(&self, parent: &Arc<Inode>, node: &NewNode) -> Outcome<NewAttributes> {
        let (parent_mode, parent_gid, names, default) = {
            let state = parent.state();
            (state.record.mode, state.record.gid, state.names, state.acl(DEFAULT))
        };
        if names != Names::Some {
            return Err(Errno::NOENT);
        }
        let inherits = parent_mode & SETGID != 0;
        let is_directory = node.kind == FileKind::Directory;
        let mut xattrs = Vec::new();
        let mode = match default {
            Some(default) if node.kind != FileKind::Symlink => {
                let (mode, access) = default.clone().inherit(node.mode);
                if !access.is_minimal() {
                    xattrs.push((Bytes::from_static(ACCESS), access.bytes()));
                }
                if is_directory {
                    xattrs.push((Bytes::from_static(DEFAULT), default.bytes()));
                }
                mode
            }
            _ => node.mode & !node.umask,
        };
        Ok(NewAttributes {
            id: None,
            kind: node.kind,
            mode: mode & 0o7777 | if inherits && is_directory { SETGID } else { 0 },
            uid: node.caller.uid,
            gid: if inherits { parent_gid } else { node.caller.gid },
            made: None,
            atime: None,
            mtime: None,
            rdev: node.rdev,
            data: FileData::None,
            size: 0,
            target: node.target.clone(),
            xattrs,
        })
    }

    /// Makes a file, link, pipe, socket, node or directory. `EEXIST` where the name is taken.
    pub async fn make(
        self: &Rc<Self>,
        parent: DeviceId,
        name: Bytes,
        node: NewNode,
        how: Making,
    ) -> Outcome<Found> {
        check_name(&name)?;
        if let Some(inode) = self.unborn(parent, &name) {
            self.settle(&inode).await?;
        }
        if node.target.as_ref().is_some_and(|target| target.len() > SYMLINK_MAX) {
            return Err(Errno::NAMETOOLONG);
        }
        let parent = self.shared.inode(parent)?;
        let attributes = self.new_attributes(&parent, &node).await?;
        if node.kind == FileKind::Directory {
            return self.make_directory(&parent, name, attributes).await;
        }
        if let Making::Soon { flags } = how
            && let Some(inode) = self.conceive(&parent, &name, &attributes, flags)
        {
            let right = self.store.right(parent.home.group());
            return Ok(Found { inode, right });
        }
        let op = DirectoryOp::Create {
            operation: self.store.operation(),
            name,
            attributes,
            if_exists: IfExists::Fail,
            stable: false,
        };
        let reply = self.soon(&parent.home, op).await;
        Self::touch(&parent);
        let (LccReply::Entry { entry, attributes: Some(record), .. }, right) = reply? else {
            return Err(Errno::IO);
        };
        let heard = Some((*record, right.clone()));
        let inode = self.hear_entry(&parent, &entry, heard).await?;
        let mut state = inode.state();
        state.record_unstable = true;
        state.pages_valid = true;
        drop(state);
        Ok(Found { inode, right })
    }

    async fn make_directory(
        &self,
        parent: &Arc<Inode>,
        name: Bytes,
        attributes: NewAttributes,
    ) -> Outcome<Found> {
        let path = self.path_below(parent, &name);
        let layout = self.new_device(DataType::Directory, path).await?;
        let upload = DirectoryOp::BeginUploads {
            operation: self.store.operation(),
            layouts: vec![layout.clone()],
        };
        let begin = DirectoryOp::Begin {
            operation: self.store.operation(),
            attributes,
            parent: parent.home.clone(),
        };
        let (listed, begun) =
            futures_util::future::join(self.soon(&parent.home, upload), self.look(&layout, begin))
                .await;
        let (record, own) = match (listed, begun) {
            (Ok(_), Ok((LccReply::Attributes(record), own))) => (record, own),
            (Ok(_), Ok(_)) => return Err(Errno::IO),
            (Err(error), _) | (_, Err(error)) => {
                self.give_up_directory(parent, &layout, error).await;
                return Err(error);
            }
        };
        let enter = DirectoryOp::Enter {
            operation: self.store.operation(),
            name: name.clone(),
            id: layout.group(),
            kind: FileKind::Directory,
            home: layout.clone(),
        };
        let entered = self.soon(&parent.home, enter).await;
        Self::touch(parent);
        let right = match entered {
            Ok((_, right)) => right,
            Err(error) => {
                self.give_up_directory(parent, &layout, error).await;
                return Err(error);
            }
        };
        let inode = self.hear(&layout, *record, own);
        inode.found(parent.id, &name);
        inode.state().record_unstable = true;
        Ok(Found { inode, right })
    }

    /// A directory that got no name goes; where that is not known, the owner of its parent finds out.
    async fn give_up_directory(&self, parent: &Inode, layout: &GroupLayout, error: Errno) {
        if error == Errno::IO {
            return;
        }
        let op = DirectoryOp::AbandonUploads {
            operation: self.store.operation(),
            devices: vec![layout.group()],
        };
        if let Err(error) = self.directory(&parent.home, op).await {
            tracing::debug!(group = %layout.group(), ?error, "an upload is left to its owner");
        }
    }

    /// Removes a name of anything but a directory.
    pub async fn unlink(self: &Rc<Self>, parent: DeviceId, name: Bytes) -> Outcome<()> {
        check_name(&name)?;
        if let Some(inode) = self.unborn(parent, &name) {
            self.settle(&inode).await?;
        }
        let parent = self.shared.inode(parent)?;
        for _ in 0..RACES_MAX {
            // Without open files nothing can need its record after its last name.
            let open = if self.shared.any_file_open() {
                let (entry, ..) = self.find(&parent.home, name.clone()).await?;
                if entry.kind == FileKind::Directory {
                    return Err(Errno::ISDIR);
                }
                Some((entry.id, self.shared.inodes.get(entry.id)))
            } else {
                None
            };
            let only_id = open.as_ref().map(|(id, _)| *id);
            let is_open = open.and_then(|(_, inode)| inode).is_some_and(|i| i.is_open_file());
            match self.unlink_once(&parent, name.clone(), only_id, is_open).await {
                Err(Errno::STALE) => {}
                outcome => return outcome,
            }
        }
        Err(Errno::BUSY)
    }

    async fn unlink_once(
        &self,
        parent: &Inode,
        name: Bytes,
        only_id: Option<DeviceId>,
        keep: bool,
    ) -> Outcome<()> {
        let op = DirectoryOp::Unlink {
            operation: self.store.operation(),
            name,
            only_id,
            keep,
            directory: false,
        };
        let reply = self.soon(&parent.home, op).await;
        Self::touch(parent);
        let (LccReply::Removed { entry: Some(entry), attributes }, _) = reply? else {
            return Err(Errno::IO);
        };
        self.lost_name(&entry, attributes.as_deref(), keep).await;
        Ok(())
    }

    /// A name is gone; `before`: its record as it was. `kept`: without a name left it is still there.
    async fn lost_name(&self, entry: &DirectoryEntry, before: Option<&Attributes>, kept: bool) {
        let Some(inode) = self.shared.inodes.get(entry.id) else { return };
        inode.state().right = None;
        if before.is_some_and(|record| 1 < record.nlink) {
            return;
        }
        inode.state().names = if kept { Names::Kept } else { Names::Gone };
        if kept {
            // It may have been closed while the owner was asked.
            self.drop_kept(&inode).await;
        }
    }

    /// Adds to the number of names in a record.
    async fn count_names(
        &self,
        home: &GroupLayout,
        id: DeviceId,
        change: i32,
    ) -> Outcome<(Attributes, Right)> {
        let changes = AttributeChanges { nlink: change, ..AttributeChanges::default() };
        self.set_record(home, id, changes, false).await
    }

    /// The last close of a file that has no name: its record goes.
    pub async fn drop_kept(&self, inode: &Arc<Inode>) {
        {
            let mut state = inode.state();
            if state.opens > 0 || !state.names.has_record_only() {
                return;
            }
            state.names = Names::Gone;
        }
        if let Err(error) = self.count_names(&inode.home, inode.id, -1).await {
            tracing::warn!(id = %inode.id, ?error, "a removed file's record is left behind");
        }
    }

    /// Removes an empty directory.
    pub async fn rmdir(self: &Rc<Self>, parent: DeviceId, name: Bytes) -> Outcome<()> {
        check_name(&name)?;
        let parent = self.shared.inode(parent)?;
        for _ in 0..RACES_MAX {
            let (entry, ..) = self.find(&parent.home, name.clone()).await?;
            let group = Self::directory_group(&entry)?;
            let _busy = self.busy(entry.id);
            self.settle_in(group.group()).await;
            let op = DirectoryOp::Unlink {
                operation: self.store.operation(),
                name: name.clone(),
                only_id: Some(entry.id),
                keep: false,
                directory: true,
            };
            let removed = self.soon(&parent.home, op).await;
            Self::touch(&parent);
            match removed {
                Err(Errno::STALE) => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    self.directory_gone(entry.id);
                    return Ok(());
                }
            }
        }
        Err(Errno::BUSY)
    }

    /// The kernel locks what it removes or moves, too, until that is answered. See `recalls.rs`.
    fn busy(&self, id: DeviceId) -> Busy {
        let inode = self.shared.inodes.get(id);
        if let Some(inode) = &inode {
            inode.busy.fetch_add(1, Ordering::Relaxed);
        }
        Busy(inode)
    }

    fn directory_group(entry: &DirectoryEntry) -> Outcome<GroupLayout> {
        if entry.kind != FileKind::Directory {
            return Err(Errno::NOTDIR);
        }
        entry.home.clone().ok_or(Errno::IO)
    }

    fn directory_gone(&self, id: DeviceId) {
        if let Some(inode) = self.shared.inodes.get(id) {
            inode.state().names = Names::Gone;
        }
    }

    /// Gives a file another name.
    pub async fn link(
        self: &Rc<Self>,
        id: DeviceId,
        parent: DeviceId,
        name: Bytes,
    ) -> Outcome<Found> {
        check_name(&name)?;
        self.settle(&self.shared.inode(id)?).await?;
        self.settle_in(parent).await;
        let parent = self.shared.inode(parent)?;
        let inode = self.shared.inode(id)?;
        if inode.kind == FileKind::Directory {
            return Err(Errno::PERM);
        }
        let names = inode.state().names;
        let (operation, home, kind) = (self.store.operation(), inode.home.clone(), inode.kind);
        let op = match names {
            Names::Some => DirectoryOp::Link { operation, name, id, kind, home },
            // It is counted as if it had a name. What was synced before is to be there with it.
            Names::NotYet => {
                self.flush(&inode, Depth::Held).await?;
                DirectoryOp::Enter { operation, name, id, kind, home }
            }
            Names::Kept | Names::Gone => return Err(Errno::NOENT),
        };
        let entered = self.soon(&parent.home, op).await;
        Self::touch(&parent);
        let (_, right) = entered?;
        inode.state().names = Names::Some;
        self.refetch(&inode).await?;
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(Found { inode, right })
    }

    /// Renames.
    pub async fn rename(
        self: &Rc<Self>,
        source: (DeviceId, Bytes),
        target: (DeviceId, Bytes),
        mode: RenameMode,
    ) -> Outcome<()> {
        check_name(&source.1)?;
        check_name(&target.1)?;
        self.settle_in(source.0).await;
        self.settle_in(target.0).await;
        let source_parent = self.shared.inode(source.0)?;
        let target_parent = self.shared.inode(target.0)?;
        for _ in 0..RACES_MAX {
            let one = (source_parent.clone(), source.1.clone());
            let other = (target_parent.clone(), target.1.clone());
            match self.rename_once(one, other, mode).await {
                Err(Errno::STALE) => {}
                outcome => {
                    Self::touch(&source_parent);
                    Self::touch(&target_parent);
                    return outcome;
                }
            }
        }
        Err(Errno::BUSY)
    }

    async fn rename_once(
        self: &Rc<Self>,
        source: (Arc<Inode>, Bytes),
        target: (Arc<Inode>, Bytes),
        mode: RenameMode,
    ) -> Outcome<()> {
        let (moved, taken) = futures_util::future::join(
            self.find(&source.0.home, source.1.clone()),
            self.find(&target.0.home, target.1.clone()),
        )
        .await;
        let (moved, ..) = moved?;
        let taken = match taken {
            Ok((entry, ..)) => Some(entry),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        match (mode, &taken) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if let Some(taken) = &taken {
            if taken.id == moved.id {
                return Ok(()); // Two names of one file: nothing happens.
            }
            if mode != RenameMode::Exchange && taken.kind == FileKind::Directory {
                self.settle_in(taken.id).await;
            }
        }
        let _busy = [Some(&moved), taken.as_ref()].map(|entry| {
            let entry = entry.filter(|entry| entry.kind == FileKind::Directory);
            entry.map(|entry| self.busy(entry.id))
        });
        let is_open = |id| self.shared.inodes.get(id).is_some_and(|inode| inode.is_open_file());
        let keep = mode != RenameMode::Exchange && taken.as_ref().is_some_and(|t| is_open(t.id));
        let is_across = source.0.home.group() != target.0.home.group();
        let op = DirectoryOp::Rename {
            operation: self.store.operation(),
            from: source.1,
            target: is_across.then(|| target.0.home.clone()),
            to: target.1,
            exchange: mode == RenameMode::Exchange,
            if_exists: if taken.is_some() { IfExists::Replace } else { IfExists::Fail },
            only_replaces: taken.as_ref().map(|entry| entry.id),
            keep,
        };
        let replaced = match self.soon(&source.0.home, op).await {
            // Somebody made it meanwhile.
            Err(Errno::EXIST) if mode == RenameMode::Replace => return Err(Errno::STALE),
            Ok((LccReply::Removed { entry, attributes }, _)) => {
                entry.map(|entry| (entry, attributes))
            }
            Ok(_) => return Err(Errno::IO),
            Err(error) => return Err(error),
        };
        match &replaced {
            Some((entry, _)) if entry.kind == FileKind::Directory => self.directory_gone(entry.id),
            Some((entry, before)) => self.lost_name(entry, before.as_deref(), keep).await,
            None => {}
        }
        let back = taken.filter(|_| mode == RenameMode::Exchange);
        let both = [source.0.home.group(), target.0.home.group()];
        for (entry, parent) in
            std::iter::once((moved, &target.0)).chain(back.map(|back| (back, &source.0)))
        {
            if let Some(inode) = self.shared.inodes.get(entry.id) {
                inode.parent.store(parent.id.0, Ordering::Relaxed);
                inode.state().right = None;
            }
            let is_touched = match &entry.home {
                None => true,
                Some(_) if entry.kind == FileKind::Directory => is_across,
                Some(home) => is_across && both.contains(&home.group()),
            };
            if !is_touched {
                self.touch_renamed(&entry).await;
            }
        }
        Ok(())
    }

    /// What got a new name has a new time of change. Where its record is in neither directory of the
    /// rename, their owners did not see to that.
    async fn touch_renamed(&self, entry: &DirectoryEntry) {
        let Some(inode) = self.shared.inodes.get(entry.id) else { return };
        let mode = Some(inode.state().record.mode);
        let changes = AttributeChanges { mode, ..AttributeChanges::default() };
        if let Err(error) = self.change_record(&inode, changes, false).await {
            tracing::debug!(id = %entry.id, ?error, "renamed, and its time of change is old");
        }
    }
}
