//! The store by directory and name: what gateways call, and what paths are made of.
//!
//! # Failure
//! A change of names is one request; where it concerns several directories their owners see to it that
//! all of it happens or nothing (W-7).
//! # Source
//! DESIGN 8, W-7, N-4, F-9.

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
    /// Path of a directory that is made, for the policy; known by itself where a path was given.
    pub path: Option<String>,
}

impl Default for EntryAttributes {
    fn default() -> Self {
        Self { mode: 0o644, uid: 0, gid: 0, mtime: None, xattrs: Vec::new(), path: None }
    }
}

/// How a rename treats what has the new name.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RenameOptions {
    /// `Exists` if something has it (RENAME_NOREPLACE).
    pub no_replace: bool,
    /// Both names stay, exchanged (RENAME_EXCHANGE).
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
        let question = PolicyQuestion { path: new.path.clone(), ..PolicyQuestion::default() };
        let layout = self.inner.directories.take(&question).await?;
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
            LccReply::Entry { entry, attributes } => {
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
            LccReply::Removed { .. } => Ok(()),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Removes an empty directory.
    pub async fn remove_directory(&self, name: &[u8]) -> Result<(), Error> {
        check_name(name)?;
        let op = self.unlink_op(name, None, UnlinkFlags { keep: false, directory: true });
        self.ask(op).await.map(|_| ()).map_err(|error| error.about(text(name)))
    }

    /// Gives something a new name, here or in another directory. All of it happens or nothing.
    pub async fn rename(
        &self,
        from: &[u8],
        target: &Self,
        to: &[u8],
        options: RenameOptions,
    ) -> Result<(), Error> {
        check_name(from)?;
        check_name(to)?;
        let rename = DirectoryOp::Rename {
            operation: self.inner.reach.operation(),
            from: Bytes::copy_from_slice(from),
            target: (self.id() != target.id()).then(|| target.layout.clone()),
            to: Bytes::copy_from_slice(to),
            exchange: options.exchange,
            if_exists: if options.no_replace { IfExists::Fail } else { IfExists::Replace },
            only_replaces: None,
            keep: false,
        };
        let renamed = self.ask(rename).await.map_err(|error| match error {
            Error::NotFound { .. } => error.about(text(from)),
            error => error.about(text(to)),
        });
        match renamed? {
            LccReply::Removed { .. } => Ok(()),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Gives a file one more name.
    pub async fn link(&self, node: &Node, name: &[u8]) -> Result<(), Error> {
        check_name(name)?;
        let link = DirectoryOp::Link {
            operation: self.inner.reach.operation(),
            name: Bytes::copy_from_slice(name),
            id: node.id(),
            kind: node.kind(),
            home: node.home.clone(),
        };
        if node.is_directory() {
            let reason = "a directory has one name only".into();
            return Err(Error::Invalid { path: text(name), reason });
        }
        self.ask(link).await.map(|_| ()).map_err(|error| error.about(text(name)))
    }

    /// A handle on the bytes of a file here.
    pub async fn open(&self, name: &[u8]) -> Result<File, Error> {
        let node = self.lookup(name).await?;
        self.client().open_node(&node).map_err(|error| error.about(text(name)))
    }

    /// Waits until all names here that were answered are on the disks.
    pub async fn sync(&self) -> Result<(), Error> {
        self.ask(DirectoryOp::SYNC).await.map(|_| ())
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
        let caches = self.caches.borrow().clone();
        if let Some(caches) = caches {
            caches.drop_lost();
            return caches.directory_op(layout, op, false).await.0;
        }
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
