//! Attributes and extended attributes.

use std::rc::Rc;
use std::sync::Arc;

use braid_terms::{DeviceId, GroupLayout};
use braid_wire::lcc::{AttributeChanges, Attributes, DirectoryOp, FileKind, LccReply, SetTime};
use bytes::Bytes;

use crate::acl::{ACCESS, Acl, is_acl};
use crate::errno::{Errno, Outcome};
use crate::inode::{Inode, Names, State};
use crate::store::{Right, Store};
use crate::vfs::{Shared, Vfs};
use crate::write::Depth;

/// What `setattr` changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes of the file.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of bytes.
    pub mtime: Option<SetTime>,
    /// Set-user-id, set-group-id and capabilities of a file go.
    pub kill_privileges: bool,
}

/// How `setxattr` treats a name that is there, or is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XattrMode {
    /// It is set.
    Any,
    /// It must not be there.
    Create,
    /// It must be there.
    Replace,
}

/// Longest value of an extended attribute, in bytes.
const XATTR_VALUE_MAX: usize = 64 << 10;
/// Extended attributes of one file, names and values, in bytes: they live in its record.
const XATTR_ALL_MAX: usize = 64 << 10;

impl Shared {
    /// Attributes, where they are here and believed.
    pub fn attributes_here(&self, id: DeviceId) -> Option<Attributes> {
        let inode = self.inodes.get(id)?;
        let state = inode.state();
        let here = state.is_fresh() || state.names != Names::Some || state.unborn.is_some();
        here.then(|| state.shown())
    }

    /// An extended attribute, where the record is here and believed.
    pub fn xattr_here(&self, id: DeviceId, name: &[u8]) -> Option<Outcome<Bytes>> {
        if let Err(error) = check_xattr_name(name) {
            return Some(Err(error));
        }
        let inode = self.inodes.get(id)?;
        let state = inode.state();
        state.is_fresh().then(|| find_xattr(&state.record, name))
    }
}

impl State {
    /// Whether a write changes more than bytes: capabilities go by any, the mode only where the kernel
    /// says that the writer may not keep it.
    pub fn loses_privileges(&self, of_mode: bool) -> bool {
        let record = &self.record;
        (of_mode && privileges(record.mode) != 0)
            || (!record.xattrs.is_empty() && find_xattr(record, CAPABILITIES).is_ok())
    }

    /// A list of the file.
    pub fn acl(&self, name: &[u8]) -> Option<Acl> {
        // What is no list was refused when it was set.
        find_xattr(&self.record, name).ok().and_then(|value| Acl::parse(&value).ok())
    }

    /// What takes the privileges away that a program in this file gives, if it has `mode` or its own.
    pub fn without_privileges(&self, mode: Option<u32>) -> AttributeChanges {
        let mode = mode.unwrap_or(self.record.mode);
        let lost = privileges(mode);
        let has_capabilities = find_xattr(&self.record, CAPABILITIES).is_ok();
        AttributeChanges {
            mode: (lost != 0).then_some(mode & !lost),
            remove_xattrs: has_capabilities
                .then(|| Bytes::from_static(CAPABILITIES))
                .into_iter()
                .collect(),
            ..AttributeChanges::default()
        }
    }
}

const CAPABILITIES: &[u8] = b"security.capability";

/// Bits that give a program's user more than he has: set-user-id, and set-group-id of what the group
/// may start (else it stands for mandatory locks).
fn privileges(mode: u32) -> u32 {
    let group = if mode & 0o0010 != 0 { mode & 0o2000 } else { 0 };
    mode & 0o4000 | group
}

fn find_xattr(record: &Attributes, name: &[u8]) -> Outcome<Bytes> {
    let found = record.xattrs.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.clone()).ok_or(Errno::NODATA)
}

/// Which names are kept.
fn check_xattr_name(name: &[u8]) -> Outcome<()> {
    if is_acl(name) {
        return Ok(());
    }
    let known = [b"user.".as_slice(), b"trusted.", b"security."];
    match known.iter().find(|prefix| name.starts_with(prefix)) {
        Some(prefix) if name.len() > prefix.len() => Ok(()),
        Some(_) => Err(Errno::INVAL),
        None => Err(Errno::OPNOTSUPP),
    }
}

impl<S: Store> Vfs<S> {
    /// Attributes.
    pub async fn attributes(self: &Rc<Self>, id: DeviceId) -> Outcome<Attributes> {
        // They change its times.
        self.settle_in(id).await;
        let inode = self.shared.inode(id)?;
        self.refresh(&inode).await?;
        let shown = inode.state().shown();
        Ok(shown)
    }

    /// Changes a record at its home.
    pub async fn set_record(
        &self,
        home: &GroupLayout,
        id: DeviceId,
        changes: AttributeChanges,
        stable: bool,
    ) -> Outcome<(Attributes, Right)> {
        let operation = self.store.operation();
        // Where a file's bytes are is held before they are sent there. How many there are, who looks asks
        // their device while the record counts us as a writer: before that, and without it, what it says
        // is held. Source: N-2, W-9.
        let is_counted = changes.device.is_none_or(|news| news.writers < 0);
        let waits = stable || changes.data.is_some() || !is_counted;
        let op = DirectoryOp::SetAttributes { operation, id, changes, stable };
        let reply = if waits { self.look(home, op).await } else { self.soon(home, op).await };
        match reply? {
            (LccReply::Attributes(record), right) => Ok((*record, right)),
            _ => Err(Errno::IO),
        }
    }

    /// Changes the record of an inode.
    pub async fn change_record(
        &self,
        inode: &Arc<Inode>,
        changes: AttributeChanges,
        stable: bool,
    ) -> Outcome<()> {
        let (record, right) = self.set_record(&inode.home, inode.id, changes, stable).await?;
        self.absorb(inode, record, true, right);
        inode.state().record_unstable = !stable;
        Ok(())
    }

    /// Changes attributes; the size, too.
    pub async fn set_attributes(
        self: &Rc<Self>,
        id: DeviceId,
        mut changes: Changes,
    ) -> Outcome<Attributes> {
        let mut inode = self.shared.inode(id)?;
        if self.change_unborn(&inode, &changes) {
            return Ok(inode.state().shown());
        }
        self.settle(&inode).await?;
        // It may go by another number now.
        inode = self.shared.inode(id)?;
        if let Some(size) = changes.size.take() {
            if inode.kind != FileKind::File {
                return Err(Errno::INVAL);
            }
            self.truncate(&inode, size).await?;
        }
        if changes.mtime.is_some() && inode.state().is_dirty() {
            // Written before, told before: else the time of that write came over this one.
            self.flush(&inode, Depth::Held).await?;
        }
        let kills = changes.kill_privileges && inode.kind != FileKind::Directory;
        if kills {
            self.refresh(&inode).await?;
        }
        let mut change = AttributeChanges {
            mode: changes.mode.map(|mode| mode & 0o7777),
            uid: changes.uid,
            gid: changes.gid,
            atime: changes.atime,
            mtime: changes.mtime,
            ..AttributeChanges::default()
        };
        if let Some(mode) = change.mode {
            self.refresh(&inode).await?;
            change.set_xattrs = inode.state().acl(ACCESS).map_or_else(Vec::new, |acl| {
                vec![(Bytes::from_static(ACCESS), acl.with_mode(mode).bytes())]
            });
        }
        if kills {
            let state = inode.state();
            let without = state.without_privileges(change.mode);
            change.mode = without.mode.or(change.mode);
            change.remove_xattrs = without.remove_xattrs;
        }
        if change != AttributeChanges::default() {
            self.change_record(&inode, change, false).await?;
        }
        let shown = inode.state().shown();
        Ok(shown)
    }

    /// A write to a file ends its set-user-id, set-group-id and capabilities.
    pub async fn kill_privileges(&self, inode: &Arc<Inode>) -> Outcome<()> {
        let change = inode.state().without_privileges(None);
        if change == AttributeChanges::default() {
            return Ok(());
        }
        self.change_record(inode, change, false).await
    }

    /// A symlink's target.
    pub async fn readlink(&self, id: DeviceId) -> Outcome<Bytes> {
        let inode = self.shared.inode(id)?;
        let target = inode.state().record.target.clone();
        match target {
            Some(target) => Ok(target),
            None if inode.kind == FileKind::Symlink => Err(Errno::IO),
            None => Err(Errno::INVAL),
        }
    }

    /// An extended attribute's value.
    pub async fn xattr(self: &Rc<Self>, id: DeviceId, name: Bytes) -> Outcome<Bytes> {
        check_xattr_name(&name)?;
        let inode = self.shared.inode(id)?;
        self.refresh(&inode).await?;
        find_xattr(&inode.state().record, &name)
    }

    /// Names of the extended attributes, each with a NUL behind it.
    pub async fn xattr_names(self: &Rc<Self>, id: DeviceId) -> Outcome<Vec<u8>> {
        let inode = self.shared.inode(id)?;
        self.refresh(&inode).await?;
        let mut names = Vec::new();
        for (name, _) in &inode.state().record.xattrs {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    /// Sets an extended attribute.
    pub async fn set_xattr(
        self: &Rc<Self>,
        id: DeviceId,
        name: Bytes,
        value: Bytes,
        mode: XattrMode,
        kill_sgid: bool,
    ) -> Outcome<()> {
        check_xattr_name(&name)?;
        let acl = if is_acl(&name) { Some(Acl::parse(&value)?) } else { None };
        if name.len() > braid_terms::NAME_MAX {
            return Err(Errno::RANGE);
        }
        if value.len() > XATTR_VALUE_MAX {
            return Err(Errno::TOOBIG);
        }
        self.settle(&self.shared.inode(id)?).await?;
        let inode = self.shared.inode(id)?;
        self.refetch(&inode).await?;
        {
            let state = inode.state();
            let is_there = find_xattr(&state.record, &name).is_ok();
            match mode {
                XattrMode::Create if is_there => return Err(Errno::EXIST),
                XattrMode::Replace if !is_there => return Err(Errno::NODATA),
                _ => {}
            }
            let size = |(key, value): &(Bytes, Bytes)| key.len() + value.len();
            let all: usize = state.record.xattrs.iter().map(size).sum();
            if all + name.len() + value.len() > XATTR_ALL_MAX {
                return Err(Errno::NOSPC);
            }
        }
        let mut changes = AttributeChanges::default();
        let acl = acl.filter(|_| name == ACCESS);
        let says_no_more = acl.as_ref().is_some_and(Acl::is_minimal);
        if let Some(acl) = acl {
            let old = inode.state().record.mode;
            changes.mode = Some(acl.mode(old) & if kill_sgid { !0o2000 } else { !0 });
        }
        if says_no_more {
            let was_there = find_xattr(&inode.state().record, &name).is_ok();
            changes.remove_xattrs.extend(was_there.then_some(name));
        } else {
            changes.set_xattrs.push((name, value));
        }
        self.change_record(&inode, changes, false).await
    }

    /// Removes an extended attribute.
    pub async fn remove_xattr(self: &Rc<Self>, id: DeviceId, name: Bytes) -> Outcome<()> {
        check_xattr_name(&name)?;
        self.settle(&self.shared.inode(id)?).await?;
        let inode = self.shared.inode(id)?;
        self.refetch(&inode).await?;
        find_xattr(&inode.state().record, &name)?;
        let changes = AttributeChanges { remove_xattrs: vec![name], ..AttributeChanges::default() };
        self.change_record(&inode, changes, false).await
    }
}
