//! Names: looking up, making, removing, renaming, linking.
//!
//! # Theory
//! A directory's owner changes names and the records made there in one write. What concerns two
//! groups is a sequence of such writes whose first step decides and whose last step may be missing
//! after a crash:
//! ```text
//! mkdir             Begin at the new group, then Enter at the parent
//! rmdir             Retire (only if empty), then Unlink at the parent
//! link              one name more in the record, then Enter
//! rename            Enter at the target, then Unlink at the source (the record stays at home)
//! unlink of a link  Unlink, then one name less in the record
//! ```
//! Removing the last name of a file that is open here leaves its record until the last close.
//! # Failure
//! After a crash between two steps a record may count a name too many (bytes stay, nothing is lost).

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
use crate::store::Store;
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

const SETGID: u32 = 0o2000;
/// How often an operation is tried again when a name changed under it.
const RACES_MAX: u32 = 16;

pub(crate) fn check_name(name: &[u8]) -> Outcome<()> {
    if name.len() > NAME_MAX { Err(Errno::NAMETOOLONG) } else { Ok(()) }
}

impl<S: Store> Vfs<S> {
    /// What a name stands for.
    pub async fn lookup(self: &Rc<Self>, parent: DeviceId, name: Bytes) -> Outcome<Arc<Inode>> {
        check_name(&name)?;
        if let Some(inode) = self.unborn(parent, &name) {
            inode.lookups.fetch_add(1, Ordering::Relaxed);
            return Ok(inode);
        }
        let parent = self.shared.inode(parent)?;
        let inode = match self.lookup_owner(&parent, name.clone()).await {
            Err(Errno::NOENT) => self.lookup_again(&parent, name).await?,
            found => found?,
        };
        if self.has_unborn(inode.id) {
            // They change its times.
            self.settle_in(inode.id).await;
            self.refetch(&inode).await?;
        }
        inode.state().open_credit_ms = crate::clock::now_ms();
        Ok(inode)
    }

    /// What a name stands for at the owner of the directory.
    pub async fn lookup_owner(&self, parent: &Inode, name: Bytes) -> Outcome<Arc<Inode>> {
        let (entry, record) = self.find(&parent.home, name).await?;
        self.hear_entry(parent, &entry, record).await
    }

    /// A lookup found no name, or a name whose record or directory nobody knows. The second is mended
    /// if it stays: a power cut of all servers took what was never synced. A directory begins anew,
    /// empty, with the attributes of the one above; the name of a file goes.
    async fn lookup_again(&self, parent: &Inode, name: Bytes) -> Outcome<Arc<Inode>> {
        let (entry, record) = self.find(&parent.home, name.clone()).await?;
        match self.hear_entry(parent, &entry, record).await {
            Err(Errno::NOENT) => {}
            found => return found,
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
        record: Option<Attributes>,
    ) -> Outcome<Arc<Inode>> {
        let home = entry.home.as_ref().unwrap_or(&parent.home);
        let record = match record {
            Some(record) if record.writers == 0 => record,
            _ => self.fetch_record(home, entry.id).await?,
        };
        let inode = self.hear(home, record);
        inode.parent.store(parent.id.0, Ordering::Relaxed);
        Ok(inode)
    }

    async fn find(
        &self,
        group: &GroupLayout,
        name: Bytes,
    ) -> Outcome<(DirectoryEntry, Option<Attributes>)> {
        match self.directory(group, DirectoryOp::Lookup { name }).await? {
            LccReply::Entry { entry, attributes, .. } => Ok((entry, attributes.map(|a| *a))),
            _ => Err(Errno::IO),
        }
    }

    /// The parent's attributes are older than what was just done in it.
    fn touch(directory: &Inode) {
        directory.state().fetched_ms = 0;
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
    ) -> Outcome<Arc<Inode>> {
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
            return Ok(inode);
        }
        let op = DirectoryOp::Create {
            operation: self.store.operation(),
            name,
            attributes,
            if_exists: IfExists::Fail,
            stable: false,
        };
        let reply = self.directory(&parent.home, op).await;
        Self::touch(&parent);
        let LccReply::Entry { entry, attributes: Some(record), .. } = reply? else {
            return Err(Errno::IO);
        };
        let inode = self.hear_entry(&parent, &entry, Some(*record)).await?;
        let mut state = inode.state();
        state.record_unstable = true;
        state.pages_valid = true;
        drop(state);
        Ok(inode)
    }

    async fn make_directory(
        &self,
        parent: &Arc<Inode>,
        name: Bytes,
        attributes: NewAttributes,
    ) -> Outcome<Arc<Inode>> {
        let layout = self.new_device(DataType::Directory).await?;
        let begin = DirectoryOp::Begin {
            operation: self.store.operation(),
            attributes,
            parent: parent.home.clone(),
        };
        let LccReply::Attributes(record) = self.directory(&layout, begin).await? else {
            return Err(Errno::IO);
        };
        let enter = DirectoryOp::Enter {
            operation: self.store.operation(),
            name,
            id: layout.group(),
            kind: FileKind::Directory,
            home: layout.clone(),
            if_exists: IfExists::Fail,
            replaced_directory: None,
        };
        let entered = self.directory(&parent.home, enter).await;
        Self::touch(parent);
        if let Err(error) = entered {
            self.remove_directory(&layout).await;
            return Err(error);
        }
        let inode = self.hear(&layout, *record);
        inode.parent.store(parent.id.0, Ordering::Relaxed);
        inode.state().record_unstable = true;
        Ok(inode)
    }

    /// Removes a directory's group that has no name; what fails is left to the owner's scan.
    async fn remove_directory(&self, layout: &GroupLayout) {
        let retire = DirectoryOp::Retire { operation: self.store.operation() };
        let retired = self.directory(layout, retire).await;
        let removed = match retired {
            Ok(_) | Err(Errno::NOENT) => self.directory(layout, DirectoryOp::Remove).await,
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::debug!(group = %layout.group(), ?error, "a removed directory is left behind");
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
                let (entry, _) = self.find(&parent.home, name.clone()).await?;
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
        let reply = self.directory(&parent.home, op).await;
        Self::touch(parent);
        let LccReply::Removed { entry: Some(entry), attributes } = reply? else {
            return Err(Errno::IO);
        };
        let kept_elsewhere = entry.home.is_some();
        self.lost_name(parent, &entry, attributes.map(|a| a.nlink), keep || kept_elsewhere).await
    }

    /// An entry is gone: counts down in the record where the owner of the names did not.
    async fn lost_name(
        &self,
        parent: &Inode,
        entry: &DirectoryEntry,
        names_before: Option<u32>,
        count_here: bool,
    ) -> Outcome<()> {
        let home = entry.home.as_ref().unwrap_or(&parent.home);
        let inode = self.shared.inodes.get(entry.id);
        if let Some(inode) = &inode {
            inode.state().fetched_ms = 0;
        }
        if !count_here {
            if let Some(inode) = &inode
                && names_before.is_none_or(|count| count <= 1)
            {
                inode.state().names = Names::Gone;
            }
            return Ok(());
        }
        let open = inode.filter(|inode| inode.state().opens > 0);
        let Some(inode) = open else {
            return self.count_names(home, entry.id, -1).await.map(drop);
        };
        let names = match names_before {
            Some(count) => count,
            None => self.fetch_record(home, entry.id).await?.nlink,
        };
        if names <= 1 {
            inode.state().names = Names::Kept;
            // It may have been closed while the owner was asked.
            self.drop_kept(&inode).await;
            return Ok(());
        }
        let record = self.count_names(home, entry.id, -1).await?;
        self.absorb(&inode, record, true);
        Ok(())
    }

    /// Adds to the number of names in a record.
    async fn count_names(
        &self,
        home: &GroupLayout,
        id: DeviceId,
        change: i32,
    ) -> Outcome<Attributes> {
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
        let (entry, _) = self.find(&parent.home, name.clone()).await?;
        let group = Self::directory_group(&entry)?;
        self.retire(&group).await?;
        let op = DirectoryOp::Unlink {
            operation: self.store.operation(),
            name,
            only_id: Some(entry.id),
            keep: false,
            directory: true,
        };
        let removed = self.directory(&parent.home, op).await;
        Self::touch(&parent);
        if let Err(error) = removed {
            self.revive(&group).await;
            return Err(error);
        }
        self.directory_gone(entry.id);
        Ok(())
    }

    fn directory_group(entry: &DirectoryEntry) -> Outcome<GroupLayout> {
        if entry.kind != FileKind::Directory {
            return Err(Errno::NOTDIR);
        }
        entry.home.clone().ok_or(Errno::IO)
    }

    async fn retire(self: &Rc<Self>, group: &GroupLayout) -> Outcome<()> {
        self.settle_in(group.group()).await;
        let op = DirectoryOp::Retire { operation: self.store.operation() };
        self.directory(group, op).await.map(drop)
    }

    async fn revive(&self, group: &GroupLayout) {
        let op = DirectoryOp::Revive { operation: self.store.operation() };
        if let Err(error) = self.directory(group, op).await {
            tracing::warn!(group = %group.group(), ?error, "a directory stays retired");
        }
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
    ) -> Outcome<Arc<Inode>> {
        check_name(&name)?;
        self.settle(&self.shared.inode(id)?).await?;
        self.settle_in(parent).await;
        let parent = self.shared.inode(parent)?;
        let inode = self.shared.inode(id)?;
        if inode.kind == FileKind::Directory {
            return Err(Errno::PERM);
        }
        // A file that was made without a name is counted as if it had one.
        let names = inode.state().names;
        match names {
            Names::Some => self.count_names(&inode.home, id, 1).await.map(drop)?,
            // What was synced before it had a name is to be there with it.
            Names::NotYet => self.flush(&inode, Depth::Held).await?,
            Names::Kept | Names::Gone => return Err(Errno::NOENT),
        }
        let enter = DirectoryOp::Enter {
            operation: self.store.operation(),
            name,
            id,
            kind: inode.kind,
            home: inode.home.clone(),
            if_exists: IfExists::Fail,
            replaced_directory: None,
        };
        let entered = self.directory(&parent.home, enter).await;
        Self::touch(&parent);
        if let Err(error) = entered {
            if names == Names::Some {
                self.count_names(&inode.home, id, -1).await?;
            }
            return Err(error);
        }
        inode.state().names = Names::Some;
        self.refetch(&inode).await?;
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(inode)
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
        let (moved, _) = moved?;
        let taken = match taken {
            Ok((entry, _)) => Some(entry),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        match (mode, &taken) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if mode != RenameMode::Exchange
            && let Some(taken) = &taken
        {
            if taken.id == moved.id {
                return Ok(()); // Two names of one file: nothing happens.
            }
            match (moved.kind == FileKind::Directory, taken.kind == FileKind::Directory) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                _ => {}
            }
        }
        let homes = [source.0.home.group(), target.0.home.group()];
        let touched: Vec<_> = match &taken {
            Some(taken) if mode == RenameMode::Exchange => vec![moved.clone(), taken.clone()],
            _ => vec![moved.clone()],
        };
        if mode == RenameMode::Exchange {
            self.exchange(source, target, moved, taken.ok_or(Errno::NOENT)?).await?;
        } else {
            self.replace(source, target, moved, taken).await?;
        }
        for entry in touched {
            let within = homes[0] == homes[1] && entry.home.is_none();
            self.touch_renamed(&entry, within).await;
        }
        Ok(())
    }

    /// What got a new name has a new time of change. Where its record is not in the directory of the
    /// rename, the owner of the names did not see to that.
    async fn touch_renamed(&self, entry: &DirectoryEntry, is_done: bool) {
        let Some(inode) = self.shared.inodes.get(entry.id) else { return };
        inode.state().fetched_ms = 0;
        if is_done {
            return;
        }
        let mode = Some(inode.state().record.mode);
        let changes = AttributeChanges { mode, ..AttributeChanges::default() };
        if let Err(error) = self.change_record(&inode, changes, false).await {
            tracing::debug!(id = %entry.id, ?error, "renamed, and its time of change is old");
        }
    }

    /// A rename that replaces what has the name.
    async fn replace(
        self: &Rc<Self>,
        source: (Arc<Inode>, Bytes),
        target: (Arc<Inode>, Bytes),
        moved: DirectoryEntry,
        taken: Option<DirectoryEntry>,
    ) -> Outcome<()> {
        let replaced_group = match &taken {
            Some(entry) if entry.kind == FileKind::Directory => Some(Self::directory_group(entry)?),
            _ => None,
        };
        if let Some(group) = &replaced_group {
            self.retire(group).await?;
        }
        let within = source.0.id == target.0.id;
        let outcome = if within {
            self.replace_within(&source.0, source.1, target.1, taken.as_ref()).await
        } else {
            self.replace_across(&source, &target, &moved, taken.as_ref()).await
        };
        match (&outcome, replaced_group, taken) {
            (Ok(()), Some(_), Some(entry)) => self.directory_gone(entry.id),
            (Err(_), Some(group), _) => self.revive(&group).await,
            _ => {}
        }
        outcome
    }

    async fn replace_within(
        &self,
        parent: &Arc<Inode>,
        from: Bytes,
        to: Bytes,
        taken: Option<&DirectoryEntry>,
    ) -> Outcome<()> {
        let is_open = taken
            .and_then(|entry| self.shared.inodes.get(entry.id))
            .is_some_and(|inode| inode.is_open_file());
        if is_open && let Some(taken) = taken {
            // The owner would drop the record; the exchange is as atomic for who looks at `to`.
            self.rename_op(parent, from.clone(), to, true, None).await?;
            return self.unlink_once(parent, from, Some(taken.id), true).await;
        }
        let directory = taken.filter(|entry| entry.kind == FileKind::Directory);
        let reply = self.rename_op(parent, from, to, false, directory.map(|e| e.id)).await?;
        if let LccReply::Removed { entry: Some(entry), attributes } = reply
            && entry.kind != FileKind::Directory
        {
            let kept_elsewhere = entry.home.is_some();
            self.lost_name(parent, &entry, attributes.map(|a| a.nlink), kept_elsewhere).await?;
        }
        Ok(())
    }

    async fn rename_op(
        &self,
        parent: &Inode,
        from: Bytes,
        to: Bytes,
        exchange: bool,
        replaced_directory: Option<DeviceId>,
    ) -> Outcome<LccReply> {
        let op = DirectoryOp::Rename {
            operation: self.store.operation(),
            from,
            to,
            exchange,
            if_exists: IfExists::Replace,
            replaced_directory,
        };
        self.directory(&parent.home, op).await
    }

    /// Enters the name at the target, then removes the one at the source.
    async fn replace_across(
        &self,
        source: &(Arc<Inode>, Bytes),
        target: &(Arc<Inode>, Bytes),
        moved: &DirectoryEntry,
        taken: Option<&DirectoryEntry>,
    ) -> Outcome<()> {
        if moved.kind == FileKind::Directory {
            self.check_not_below(moved.id, &target.0).await?;
        }
        let replaced_directory =
            taken.filter(|entry| entry.kind == FileKind::Directory).map(|entry| entry.id);
        if let Some(taken) = taken
            && self.shared.inodes.get(taken.id).is_some_and(|inode| inode.is_open_file())
        {
            // The owner would drop its record.
            self.unlink_once(&target.0, target.1.clone(), Some(taken.id), true).await?;
        }
        let home = moved.home.clone().unwrap_or_else(|| source.0.home.clone());
        let enter = DirectoryOp::Enter {
            operation: self.store.operation(),
            name: target.1.clone(),
            id: moved.id,
            kind: moved.kind,
            home: home.clone(),
            if_exists: if taken.is_some() { IfExists::Replace } else { IfExists::Fail },
            replaced_directory,
        };
        let entered = match self.directory(&target.0.home, enter).await {
            Err(Errno::EXIST) => return Err(Errno::STALE),
            outcome => outcome?,
        };
        if let LccReply::Entry { replaced: Some(entry), .. } = entered
            && entry.kind != FileKind::Directory
        {
            self.lost_name(&target.0, &entry, None, true).await?;
        }
        let unlink = DirectoryOp::Unlink {
            operation: self.store.operation(),
            name: source.1.clone(),
            only_id: Some(moved.id),
            keep: true,
            directory: moved.kind == FileKind::Directory,
        };
        self.directory(&source.0.home, unlink).await?;
        self.moved(moved.id, &home, &target.0, moved.kind).await;
        Ok(())
    }

    /// Both names are exchanged.
    async fn exchange(
        &self,
        source: (Arc<Inode>, Bytes),
        target: (Arc<Inode>, Bytes),
        moved: DirectoryEntry,
        taken: DirectoryEntry,
    ) -> Outcome<()> {
        if source.0.id == target.0.id {
            return self.rename_op(&source.0, source.1, target.1, true, None).await.map(drop);
        }
        for (entry, into) in [(&moved, &target.0), (&taken, &source.0)] {
            if entry.kind == FileKind::Directory {
                self.check_not_below(entry.id, into).await?;
            }
        }
        // Over two groups there is no exchange in one write: by way of a third name.
        self.unique.set(self.unique.get() + 1);
        let hidden = format!(".braid-exchange-{}-{}", taken.id, self.unique.get());
        let aside = (source.0.clone(), Bytes::from(hidden));
        self.replace_across(&target, &aside, &taken, None).await?;
        self.replace_across(&source, &target, &moved, None).await?;
        self.replace_within(&source.0, aside.1, source.1, None).await
    }

    /// A directory cannot move below itself.
    async fn check_not_below(&self, id: DeviceId, into: &Arc<Inode>) -> Outcome<()> {
        let mut at = into.home.clone();
        loop {
            if at.group() == id {
                return Err(Errno::INVAL);
            }
            if at.group() == self.shared.root {
                return Ok(());
            }
            let LccReply::Layouts(parents) = self.directory(&at, DirectoryOp::Parent).await? else {
                return Err(Errno::IO);
            };
            at = parents.into_iter().next().ok_or(Errno::IO)?;
        }
    }

    async fn moved(&self, id: DeviceId, home: &GroupLayout, parent: &Inode, kind: FileKind) {
        if let Some(inode) = self.shared.inodes.get(id) {
            inode.parent.store(parent.id.0, Ordering::Relaxed);
            inode.state().fetched_ms = 0;
        }
        if kind != FileKind::Directory {
            return;
        }
        let op = DirectoryOp::SetParent {
            operation: self.store.operation(),
            parent: parent.home.clone(),
        };
        if let Err(error) = self.directory(home, op).await {
            tracing::warn!(%id, ?error, "a renamed directory does not know its parent");
        }
    }
}
