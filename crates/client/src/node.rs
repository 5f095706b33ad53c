//! The store by directory and name: what gateways call, and what paths are made of.
//!
//! # Failure
//! Where a change needs two owners, the order is chosen so that a stop between them leaks at the
//! most: names are entered before they are removed, counted up before they are entered, and counted
//! down after they are removed. What comes first is on the disks before the second is asked for, so
//! that a power cut of all servers keeps that order, too. See the head of `lib.rs`.
//! # Source
//! DESIGN 8, W-7 (its intents are not built), N-4, F-9.

use std::rc::Rc;

use braid_env::Payload;
use braid_terms::{DeviceId, GroupLayout, PolicyQuestion, WriteNumber};
use braid_wire::lcc::{
    AttributeChanges, Attributes, DirectoryEntry, DirectoryOp, FileData, FileKind, FileTime,
    IfExists, LccReply, LccRequest, NewAttributes,
};
use bytes::Bytes;

use crate::namespace::{Client, Inner, ListedEntry};
use crate::path::text;
use crate::put::{PutOptions, PutWriter};
use crate::{Error, File};

/// Something in the store, as it was when it was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// The directory group that keeps its attributes; of a directory its own.
    pub home: GroupLayout,
    /// Its attributes.
    pub attributes: Attributes,
}

/// Attributes of what is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryAttributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of bytes, if not now.
    pub mtime: Option<FileTime>,
    /// Extended attributes.
    pub xattrs: Vec<(Bytes, Bytes)>,
}

impl Default for EntryAttributes {
    fn default() -> Self {
        Self { mode: 0o644, uid: 0, gid: 0, mtime: None, xattrs: Vec::new() }
    }
}

/// How a rename treats what has the new name.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RenameOptions {
    /// `Exists` if something has it (RENAME_NOREPLACE).
    pub no_replace: bool,
    /// Both names stay, exchanged (RENAME_EXCHANGE); only within one directory.
    pub exchange: bool,
}

/// A directory, whatever its path becomes. Clones are the same directory.
#[derive(Clone)]
pub struct Directory {
    pub(crate) inner: Rc<Inner>,
    layout: GroupLayout,
}

impl Node {
    /// Inode number.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.attributes.id
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        self.attributes.kind
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind() == FileKind::Directory
    }
}

impl Directory {
    pub(crate) fn new(inner: Rc<Inner>, layout: GroupLayout) -> Self {
        Self { inner, layout }
    }

    /// Its group.
    #[must_use]
    pub fn layout(&self) -> &GroupLayout {
        &self.layout
    }

    /// Its inode number.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.layout.group()
    }

    /// Its own attributes.
    pub async fn node(&self) -> Result<Node, Error> {
        self.inner.attributes(&self.layout, self.id()).await
    }

    /// What a name stands for.
    pub async fn lookup(&self, name: &[u8]) -> Result<Node, Error> {
        let mut gone = None;
        loop {
            let (entry, attributes) = self.entry(name).await?;
            match self.inner.node_of(&self.layout, &entry, attributes).await {
                // Replaced since its entry was read, or a name of nothing.
                Err(Error::NotFound { .. }) if gone != Some(entry.id) => gone = Some(entry.id),
                Err(Error::NotFound { .. }) => {
                    gone = None;
                    self.mend(name, &entry).await.map_err(|error| error.about(text(name)))?;
                }
                found => return found.map_err(|error| error.about(text(name))),
            }
        }
    }

    /// A name whose directory or record nobody knows: a power cut of all servers took what was never
    /// synced. A directory begins anew, empty, with the attributes of the one above; the name of a
    /// file goes.
    async fn mend(&self, name: &[u8], entry: &DirectoryEntry) -> Result<(), Error> {
        tracing::warn!(directory = %self.id(), name = %text(name), "a name of nothing is mended");
        let Some(child) = self.child(entry) else {
            let flags = UnlinkFlags { keep: true, directory: false };
            return match self.ask(self.unlink_op(name, Some(entry.id), flags)).await {
                Ok(_) | Err(Error::NotFound { .. } | Error::Conflict { .. }) => Ok(()),
                Err(error) => Err(error),
            };
        };
        let Attributes { mode, uid, gid, .. } = self.node().await?.attributes;
        let like = EntryAttributes { mode, uid, gid, ..EntryAttributes::default() };
        let begin = DirectoryOp::Begin {
            operation: self.inner.reach.operation(),
            attributes: new_attributes(FileKind::Directory, &like),
            parent: self.layout.clone(),
        };
        match child.ask(begin).await {
            Ok(_) | Err(Error::Exists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn entry(
        &self,
        name: &[u8],
    ) -> Result<(DirectoryEntry, Option<Box<Attributes>>), Error> {
        check_name(name)?;
        let op = DirectoryOp::Lookup { name: Bytes::copy_from_slice(name) };
        match self.ask(op).await.map_err(|error| error.about(text(name)))? {
            LccReply::Entry { entry, attributes, .. } => Ok((entry, attributes)),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Entries behind a cookie (0 from the start), and whether nothing follows. With `attributes`,
    /// those that are kept here come along, without inline bytes.
    pub async fn list(
        &self,
        after: u64,
        limit: u32,
        attributes: bool,
    ) -> Result<(Vec<ListedEntry>, bool), Error> {
        match self.ask(DirectoryOp::List { after, limit, attributes }).await? {
            LccReply::Entries { entries, end } => {
                let listed = entries.into_iter().map(|(entry, attributes)| ListedEntry {
                    name: entry.name,
                    id: entry.id,
                    kind: entry.kind,
                    cookie: entry.cookie,
                    home: entry.home.unwrap_or_else(|| self.layout.clone()),
                    attributes,
                });
                Ok((listed.collect(), end))
            }
            reply => Err(unexpected(&reply)),
        }
    }

    /// The directory above; the root's is itself.
    pub async fn parent(&self) -> Result<Self, Error> {
        match self.ask(DirectoryOp::Parent).await? {
            LccReply::Layouts(mut layouts) if layouts.len() == 1 => {
                let layout = layouts.pop().expect("there is one");
                layout.check().map_err(|error| protocol(&error.to_string()))?;
                Ok(Self::new(self.inner.clone(), layout))
            }
            reply => Err(unexpected(&reply)),
        }
    }

    /// Makes a directory.
    ///
    /// The new one is recorded here as an upload while it has no name, so that nothing is left of it
    /// if we stop.
    pub async fn make_directory(&self, name: &[u8], new: &EntryAttributes) -> Result<Self, Error> {
        check_name(name)?;
        let layout = self.inner.directories.take(&PolicyQuestion::default()).await?;
        let upload = DirectoryOp::BeginUploads {
            operation: self.inner.reach.operation(),
            layouts: vec![layout.clone()],
        };
        let begin = DirectoryOp::Begin {
            operation: self.inner.reach.operation(),
            attributes: new_attributes(FileKind::Directory, new),
            parent: self.layout.clone(),
        };
        let made = Self::new(self.inner.clone(), layout.clone());
        let (recorded, begun) = tokio::join!(self.ask(upload), made.ask(begin));
        let entered = match (recorded, begun) {
            (Ok(_), Ok(_)) => {
                let enter = DirectoryOp::Enter {
                    operation: self.inner.reach.operation(),
                    name: Bytes::copy_from_slice(name),
                    id: made.id(),
                    kind: FileKind::Directory,
                    home: layout.clone(),
                    if_exists: IfExists::Fail,
                    replaced_directory: None,
                };
                self.ask(enter).await
            }
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        match entered {
            Ok(_) => Ok(made),
            Err(error) => {
                // If nobody knows whether it was entered, the owner finds out: an entered directory
                // is no upload any more.
                if !error.is_unavailable() {
                    self.inner.abandon(&self.layout, made.id());
                }
                Err(error.about(text(name)))
            }
        }
    }

    /// Makes a symbolic link.
    pub async fn make_symlink(
        &self,
        name: &[u8],
        target: &[u8],
        new: &EntryAttributes,
    ) -> Result<Node, Error> {
        let target = Some(Bytes::copy_from_slice(target));
        let attributes = NewAttributes { target, ..new_attributes(FileKind::Symlink, new) };
        self.create(name, attributes, IfExists::Fail, false).await
    }

    /// Makes an empty file, a pipe, a socket or a device node.
    pub async fn make_node(
        &self,
        name: &[u8],
        kind: FileKind,
        rdev: u64,
        new: &EntryAttributes,
    ) -> Result<Node, Error> {
        let attributes = NewAttributes { rdev, ..new_attributes(kind, new) };
        self.create(name, attributes, IfExists::Fail, false).await
    }

    /// Makes an entry with attributes and bytes.
    pub(crate) async fn create(
        &self,
        name: &[u8],
        attributes: NewAttributes,
        if_exists: IfExists,
        stable: bool,
    ) -> Result<Node, Error> {
        check_name(name)?;
        let operation = self.inner.reach.operation();
        let given = attributes.clone();
        let name = Bytes::copy_from_slice(name);
        let shown = text(&name);
        let op = DirectoryOp::Create { operation, name, attributes, if_exists, stable };
        match self.ask(op).await.map_err(|error| error.about(shown))? {
            LccReply::Entry { entry, attributes, replaced } => {
                self.count_down(replaced).await?;
                // Without attributes the answer is to a repeat, and it was removed meanwhile.
                let attributes = attributes.map_or_else(|| last_known(&entry, given), |a| *a);
                Ok(Node { home: self.layout.clone(), attributes })
            }
            reply => Err(unexpected(&reply)),
        }
    }

    /// A writer of a new file; it has its name, whole, when the writer is finished.
    pub async fn put(&self, name: &[u8], options: PutOptions) -> Result<PutWriter, Error> {
        check_name(name)?;
        Ok(PutWriter::new(self.clone(), Bytes::copy_from_slice(name), options))
    }

    /// Removes a name of something that is no directory.
    pub async fn unlink(&self, name: &[u8]) -> Result<(), Error> {
        self.unlink_only(name, None).await
    }

    pub(crate) async fn unlink_only(
        &self,
        name: &[u8],
        only_id: Option<DeviceId>,
    ) -> Result<(), Error> {
        check_name(name)?;
        let op = self.unlink_op(name, only_id, UnlinkFlags { keep: false, directory: false });
        match self.ask(op).await.map_err(|error| error.about(text(name)))? {
            LccReply::Removed { entry, .. } => self.count_down(entry).await,
            reply => Err(unexpected(&reply)),
        }
    }

    /// Removes an empty directory.
    pub async fn remove_directory(&self, name: &[u8]) -> Result<(), Error> {
        let (entry, _) = self.entry(name).await?;
        let shown = || text(name);
        let Some(child) = self.child(&entry) else {
            return Err(Error::NotDirectory { path: shown() });
        };
        child.retire().await.map_err(|error| error.about(shown()))?;
        let flags = UnlinkFlags { keep: false, directory: true };
        let unlinked = self.ask(self.unlink_op(name, Some(entry.id), flags)).await;
        if let Err(error) = unlinked {
            self.revive(&child, &error).await;
            return Err(error.about(shown()));
        }
        Ok(())
    }

    /// Gives something a new name, here or in another directory.
    ///
    /// Not atomic over a stop of this client when the directories differ: both names may stay, as
    /// two links of one file, or the count of its names is one too high.
    pub async fn rename(
        &self,
        from: &[u8],
        target: &Self,
        to: &[u8],
        options: RenameOptions,
    ) -> Result<(), Error> {
        check_name(from)?;
        check_name(to)?;
        if self.id() == target.id() {
            return self.rename_here(from, to, options).await;
        }
        if options.exchange {
            let reason = "names in different directories cannot be exchanged".into();
            return Err(Error::Invalid { path: text(from), reason });
        }
        self.rename_across(from, target, to, options).await
    }

    async fn rename_here(
        &self,
        from: &[u8],
        to: &[u8],
        options: RenameOptions,
    ) -> Result<(), Error> {
        let if_exists = if options.no_replace { IfExists::Fail } else { IfExists::Replace };
        let rename = |replaced_directory| DirectoryOp::Rename {
            operation: self.inner.reach.operation(),
            from: Bytes::copy_from_slice(from),
            to: Bytes::copy_from_slice(to),
            exchange: options.exchange,
            if_exists,
            replaced_directory,
        };
        let mut renamed = self.ask(rename(None)).await;
        if matches!(renamed, Err(Error::Exists { .. })) && !options.no_replace {
            let child = self.retire_replaced(from, to).await?;
            renamed = self.ask(rename(Some(child.id()))).await;
            if let Err(error) = &renamed {
                self.revive(&child, error).await;
            }
        }
        let about = |error: Error| match error {
            Error::NotFound { .. } => error.about(text(from)),
            error => error.about(text(to)),
        };
        match renamed.map_err(about)? {
            LccReply::Removed { entry, .. } => self.count_down(entry).await,
            reply => Err(unexpected(&reply)),
        }
    }

    /// A directory is to take the place of another: that one must be empty and take nothing more.
    async fn retire_replaced(&self, from: &[u8], to: &[u8]) -> Result<Self, Error> {
        let (target, _) = self.entry(to).await?;
        let child = self.child(&target);
        let child = child.ok_or_else(|| Error::NotDirectory { path: text(to) })?;
        tracing::debug!(from = %text(from), to = %text(to), "retires the directory replaced");
        child.retire().await.map_err(|error| error.about(text(to)))?;
        Ok(child)
    }

    async fn rename_across(
        &self,
        from: &[u8],
        target: &Self,
        to: &[u8],
        options: RenameOptions,
    ) -> Result<(), Error> {
        let (entry, there) = tokio::join!(self.entry(from), target.entry(to));
        let (entry, _) = entry?;
        if let Ok((there, _)) = there
            && there.id == entry.id
            && entry.kind != FileKind::Directory
        {
            return self
                .rename_onto_itself(from, &entry, options)
                .await
                .map_err(|e| e.about(text(to)));
        }
        let moved = self.child(&entry);
        if let Some(moved) = &moved {
            target.check_not_below(moved, to).await?;
        }
        let if_exists = if options.no_replace { IfExists::Fail } else { IfExists::Replace };
        let home = entry.home.clone().unwrap_or_else(|| self.layout.clone());
        let enter = |replaced_directory| DirectoryOp::Enter {
            operation: self.inner.reach.operation(),
            name: Bytes::copy_from_slice(to),
            id: entry.id,
            kind: entry.kind,
            home: home.clone(),
            if_exists,
            replaced_directory,
        };
        if moved.is_none() {
            // The new name counts before it is there: who removes or replaces the old one meanwhile
            // must not take the file with it.
            self.inner.count_up(&home, entry.id).await.map_err(|e| e.about(text(from)))?;
        }
        let mut entered = target.ask(enter(None)).await;
        if matches!(entered, Err(Error::Exists { .. })) && !options.no_replace {
            let child = target.retire_replaced(from, to).await?;
            entered = target.ask(enter(Some(child.id()))).await;
            if let Err(error) = &entered {
                self.revive(&child, error).await;
            }
        }
        if let Err(error) = &entered
            && moved.is_none()
            && !error.is_unavailable()
        {
            self.inner.count(&home, entry.id, -1, false).await?;
        }
        let replaced = match entered.map_err(|error| error.about(text(to)))? {
            LccReply::Entry { replaced, .. } => replaced,
            reply => return Err(unexpected(&reply)),
        };
        // The new name is on the disks before the old one is removed.
        target.sync().await.map_err(|error| error.about(text(to)))?;
        let flags = UnlinkFlags { keep: moved.is_some(), directory: moved.is_some() };
        let unlinked = self.ask(self.unlink_op(from, Some(entry.id), flags)).await;
        match unlinked {
            Ok(LccReply::Removed { entry, .. }) => self.count_down(entry).await?,
            Ok(reply) => return Err(unexpected(&reply)),
            // Somebody else removed or replaced the old name meanwhile, and counted it.
            Err(Error::NotFound { .. } | Error::Conflict { .. }) => {}
            Err(error) => return Err(error.about(text(from))),
        }
        if let Some(moved) = moved {
            let operation = self.inner.reach.operation();
            let parent = target.layout.clone();
            moved.ask(DirectoryOp::SetParent { operation, parent }).await?;
        }
        target.count_down(replaced).await
    }

    /// Both are names of one file: POSIX says that nothing happens. If it has only one, a rename was
    /// interrupted between its two steps, and is finished.
    async fn rename_onto_itself(
        &self,
        from: &[u8],
        entry: &DirectoryEntry,
        options: RenameOptions,
    ) -> Result<(), Error> {
        if options.no_replace {
            return Err(Error::Exists { path: text(from) });
        }
        let node = self.inner.node_of(&self.layout, entry, None).await?;
        if 1 < node.attributes.nlink {
            return Ok(());
        }
        let flags = UnlinkFlags { keep: true, directory: false };
        self.ask(self.unlink_op(from, Some(entry.id), flags)).await.map(|_| ())
    }

    /// A directory cannot become its own descendant.
    async fn check_not_below(&self, moved: &Self, to: &[u8]) -> Result<(), Error> {
        let mut above = self.clone();
        for _ in 0..DEPTH_MAX {
            if above.id() == moved.id() {
                let reason = "a directory cannot be moved into itself".into();
                return Err(Error::Invalid { path: text(to), reason });
            }
            let next = above.parent().await?;
            if next.id() == above.id() {
                return Ok(());
            }
            above = next;
        }
        Err(Error::Invalid { path: text(to), reason: "too many directories above".into() })
    }

    /// Gives a file one more name.
    pub async fn link(&self, node: &Node, name: &[u8]) -> Result<(), Error> {
        check_name(name)?;
        if node.is_directory() {
            let reason = "a directory has one name only".into();
            return Err(Error::Invalid { path: text(name), reason });
        }
        self.inner.count_up(&node.home, node.id()).await?;
        let enter = DirectoryOp::Enter {
            operation: self.inner.reach.operation(),
            name: Bytes::copy_from_slice(name),
            id: node.id(),
            kind: node.kind(),
            home: node.home.clone(),
            if_exists: IfExists::Fail,
            replaced_directory: None,
        };
        match self.ask(enter).await {
            Ok(_) => Ok(()),
            Err(error) => {
                if !error.is_unavailable() {
                    self.inner.count(&node.home, node.id(), -1, false).await?;
                }
                Err(error.about(text(name)))
            }
        }
    }

    /// A handle on the bytes of a file here.
    pub async fn open(&self, name: &[u8]) -> Result<File, Error> {
        let node = self.lookup(name).await?;
        self.client().open_node(&node).map_err(|error| error.about(text(name)))
    }

    /// Waits until all names here that were answered are on the disks.
    pub async fn sync(&self) -> Result<(), Error> {
        self.ask(DirectoryOp::Sync).await.map(|_| ())
    }

    /// The client that it came from.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::from_inner(self.inner.clone())
    }

    /// The directory that an entry names, if it is one.
    pub(crate) fn child(&self, entry: &DirectoryEntry) -> Option<Self> {
        let home = entry.home.as_ref().filter(|_| entry.kind == FileKind::Directory)?;
        Some(Self::new(self.inner.clone(), home.clone()))
    }

    /// From now on nothing can be made there; a directory that has something is `NotEmpty`.
    async fn retire(&self) -> Result<(), Error> {
        let operation = self.inner.reach.operation();
        match self.ask(DirectoryOp::Retire { operation }).await {
            // A power cut of all servers left its name and not the directory.
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The name of a retired directory could not be removed: it comes back, unless it is not known
    /// whether the name went.
    async fn revive(&self, child: &Self, error: &Error) {
        if error.is_unavailable() {
            return;
        }
        let operation = self.inner.reach.operation();
        if let Err(error) = child.ask(DirectoryOp::Revive { operation }).await {
            tracing::warn!(directory = %child.id(), %error, "a directory stays retired");
        }
    }

    /// A name here is gone; if the attributes of what it named are kept elsewhere, it is counted down
    /// there once the removal is on the disks.
    async fn count_down(&self, entry: Option<DirectoryEntry>) -> Result<(), Error> {
        let Some(DirectoryEntry { id, home: Some(home), kind, .. }) = entry else {
            return Ok(());
        };
        if kind == FileKind::Directory {
            return Ok(());
        }
        self.sync().await?;
        match self.inner.count(&home, id, -1, false).await {
            // Somebody else's count went down to nothing: there is nothing left to count.
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn unlink_op(
        &self,
        name: &[u8],
        only_id: Option<DeviceId>,
        UnlinkFlags { keep, directory }: UnlinkFlags,
    ) -> DirectoryOp {
        let operation = self.inner.reach.operation();
        let name = Bytes::copy_from_slice(name);
        DirectoryOp::Unlink { operation, name, only_id, keep, directory }
    }

    pub(crate) async fn ask(&self, op: DirectoryOp) -> Result<LccReply, Error> {
        self.inner.ask_directory(&self.layout, op).await
    }
}

struct UnlinkFlags {
    keep: bool,
    directory: bool,
}

impl Inner {
    pub(crate) async fn ask_directory(
        &self,
        layout: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<LccReply, Error> {
        let request = LccRequest::Directory { layout: layout.clone(), op };
        self.reach.ask(&request, Payload::empty()).await.map(|(reply, _)| reply)
    }

    /// Attributes of an id that are kept in a directory's group.
    pub(crate) async fn attributes(&self, home: &GroupLayout, id: DeviceId) -> Result<Node, Error> {
        match self.ask_directory(home, DirectoryOp::GetAttributes { id }).await? {
            LccReply::Attributes(attributes) => {
                Ok(Node { home: home.clone(), attributes: *attributes })
            }
            reply => Err(unexpected(&reply)),
        }
    }

    /// What an entry of the directory `layout` names.
    pub(crate) async fn node_of(
        &self,
        layout: &GroupLayout,
        entry: &DirectoryEntry,
        attributes: Option<Box<Attributes>>,
    ) -> Result<Node, Error> {
        let home = entry.home.as_ref().unwrap_or(layout);
        match attributes {
            Some(attributes) => Ok(Node { home: home.clone(), attributes: *attributes }),
            None => self.attributes(home, entry.id).await,
        }
    }

    pub(crate) async fn set_attributes(
        &self,
        home: &GroupLayout,
        id: DeviceId,
        changes: AttributeChanges,
        stable: bool,
    ) -> Result<Attributes, Error> {
        let operation = self.reach.operation();
        let op = DirectoryOp::SetAttributes { operation, id, changes, stable };
        match self.ask_directory(home, op).await? {
            LccReply::Attributes(attributes) => Ok(*attributes),
            // A repeat whose object was removed meanwhile.
            LccReply::Done => Err(Error::NotFound { path: format!("file {id}") }),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn count(
        &self,
        home: &GroupLayout,
        id: DeviceId,
        nlink: i32,
        stable: bool,
    ) -> Result<(), Error> {
        let changes = AttributeChanges { nlink, ..AttributeChanges::default() };
        self.set_attributes(home, id, changes, stable).await.map(|_| ())
    }

    /// One name more, on the disks before it is entered elsewhere.
    async fn count_up(&self, home: &GroupLayout, id: DeviceId) -> Result<(), Error> {
        self.count(home, id, 1, true).await
    }
}

pub(crate) fn new_attributes(kind: FileKind, new: &EntryAttributes) -> NewAttributes {
    NewAttributes {
        id: None,
        kind,
        mode: new.mode,
        uid: new.uid,
        gid: new.gid,
        made: None,
        atime: None,
        mtime: new.mtime,
        rdev: 0,
        data: FileData::None,
        size: 0,
        target: None,
        xattrs: new.xattrs.clone(),
    }
}

/// Attributes as they were made, of what is not there any more.
fn last_known(entry: &DirectoryEntry, given: NewAttributes) -> Attributes {
    let time = given.mtime.unwrap_or_default();
    Attributes {
        id: entry.id,
        kind: given.kind,
        mode: given.mode,
        uid: given.uid,
        gid: given.gid,
        size: given.size,
        nlink: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        rdev: given.rdev,
        version: 0,
        writers: 0,
        size_number: WriteNumber::NONE,
        data: given.data,
        target: given.target,
        xattrs: given.xattrs,
    }
}

pub(crate) fn check_name(name: &[u8]) -> Result<(), Error> {
    if name.len() > braid_terms::NAME_MAX {
        return Err(Error::NameTooLong { path: text(&name[..60]) });
    }
    if name.is_empty()
        || name == b"."
        || name == b".."
        || name.iter().any(|b| matches!(b, b'/' | 0))
    {
        let reason = "a name is not empty, '.' or '..', and has no '/' or NUL".into();
        return Err(Error::Invalid { path: text(name), reason });
    }
    Ok(())
}

pub(crate) fn unexpected(reply: &LccReply) -> Error {
    let reply = format!("{reply:?}");
    protocol(&reply.chars().take(80).collect::<String>())
}

fn protocol(reason: &str) -> Error {
    Error::Protocol { path: "a local controller".into(), reason: reason.into() }
}

/// Directories above each other, at most: as many as a path can name.
const DEPTH_MAX: usize = 2048;
