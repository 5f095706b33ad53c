//! The store by path.
//!
//! # Theory
//! A path is walked from the root, one look-up at a time; a symbolic link puts its target in front
//! of the rest. Nothing is kept between calls, unless [`Client::keep_caches`] is asked for (N-1).
//! Who works much in one directory opens it once ([`Client::directory`]) and names what is in it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use braid_env::Env;
use braid_terms::{ClusterMap, DataType, DeviceId, GroupLayout, REQUEST_BYTES_MAX};
use braid_wire::coordinator_client::CoordinatorClient;
use braid_wire::lcc::{
    AttributeChanges, Attributes, DirectoryOp, FileData, FileKind, GroupDescription, LccReply,
    LccRequest, LccStatus, RowPlace, SetTime, Verified,
};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::layouts::Stock;
use crate::node::unexpected;
use crate::path::text;
use crate::reach::Reach;
use crate::{
    Caches, ClusterFile, Directory, EntryAttributes, Error, File, Node, PutOptions, PutWriter,
    RenameOptions, StorePath,
};

/// How a client behaves.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// How long an operation is tried again while the cluster does not answer.
    pub deadline: Duration,
    /// Bytes of one request to a file; a multiple of 1 MiB, at most 4 MiB.
    pub request_bytes: usize,
    /// Requests under way for one file that is written or read from end to end.
    pub requests_ahead: usize,
    /// What policies may choose by. Source: G-5.
    pub priority: Option<u8>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        let deadline = Duration::from_secs(30);
        Self { deadline, request_bytes: REQUEST_BYTES_MAX, requests_ahead: 4, priority: None }
    }
}

/// A client of one cluster; clones share connections. Belongs to one thread with a `LocalSet`.
#[derive(Clone)]
pub struct Client(Rc<Inner>);

pub(crate) struct Inner {
    pub reach: Rc<Reach>,
    pub files: Rc<Stock>,
    pub directories: Rc<Stock>,
    pub options: ClientOptions,
    /// What owners said, if it is kept. Source: N-1.
    pub caches: RefCell<Option<Rc<Caches>>>,
    root: GroupLayout,
    /// Uploads that are given up: told by a task, since `drop` cannot wait.
    abandoned: mpsc::UnboundedSender<(GroupLayout, DeviceId)>,
}

/// An entry of a directory as a listing shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedEntry {
    /// Its name.
    pub name: Bytes,
    /// Inode number.
    pub id: DeviceId,
    /// What it is.
    pub kind: FileKind,
    /// Where to continue behind it.
    pub cookie: u64,
    /// The directory group that keeps its attributes; of a sub-directory its own.
    pub home: GroupLayout,
    /// Its attributes without inline bytes, if asked for and kept in the listed directory.
    pub attributes: Option<Attributes>,
}

/// Lists a directory page by page.
pub struct DirectoryLister {
    directory: Directory,
    after: u64,
    attributes: bool,
    end: bool,
}

impl Client {
    /// Finds the cluster and its root directory, with the usual options.
    pub async fn connect(env: Env, file: &ClusterFile) -> Result<Self, Error> {
        Self::connect_with(env, file, ClientOptions::default()).await
    }

    /// Finds the cluster and its root directory.
    ///
    /// Errors: `Unavailable` if no coordinator answers, or there is no root directory yet.
    pub async fn connect_with(
        env: Env,
        file: &ClusterFile,
        options: ClientOptions,
    ) -> Result<Self, Error> {
        assert!((1..=REQUEST_BYTES_MAX).contains(&options.request_bytes), "see ClientOptions");
        assert!(options.requests_ahead >= 1, "see ClientOptions");
        let reach = Rc::new(Reach::new(env, file, options.deadline));
        let end = Instant::now() + options.deadline;
        let root = loop {
            let left = end.saturating_duration_since(Instant::now());
            let map = reach.fresh_map(left).await?;
            if let Some(root) = map.root.clone() {
                break root;
            }
            if Instant::now() >= end {
                let reason = "no server has made the root directory yet".into();
                return Err(Error::Unavailable { path: "/".into(), reason });
            }
            sleep(ROOT_PAUSE).await;
        };
        let (abandoned, given_up) = mpsc::unbounded_channel();
        let inner = Rc::new(Inner {
            files: Stock::new(reach.clone(), DataType::File, FILES_AHEAD, options.priority),
            directories: Stock::new(
                reach.clone(),
                DataType::Directory,
                DIRECTORIES_AHEAD,
                options.priority,
            ),
            reach: reach.clone(),
            options,
            caches: RefCell::default(),
            root,
            abandoned,
        });
        spawn_local(tell_abandoned(reach, given_up));
        Ok(Self(inner))
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(crate) fn from_inner(inner: Rc<Inner>) -> Self {
        Self(inner)
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Directory {
        Directory::new(self.0.clone(), self.0.root.clone())
    }

    /// The map of the cluster, at most some seconds old.
    pub async fn map(&self) -> Result<Rc<ClusterMap>, Error> {
        self.0.reach.map().await
    }

    /// The coordinators, for what is not about files.
    #[must_use]
    pub fn coordinators(&self) -> &CoordinatorClient {
        self.0.reach.coordinators()
    }

    /// How it behaves.
    #[must_use]
    pub fn options(&self) -> ClientOptions {
        self.0.options
    }

    /// What a path names; symbolic links are followed.
    pub async fn stat(&self, path: impl AsRef<[u8]>) -> Result<Node, Error> {
        let path = StorePath::parse(path)?;
        self.resolve(&path, true).await.map_err(|error| error.about(path.to_string()))
    }

    /// What a path names; a symbolic link at its end is not followed, unless the path ends in `/`.
    pub async fn lookup(&self, path: impl AsRef<[u8]>) -> Result<Node, Error> {
        let path = StorePath::parse(path)?;
        self.resolve(&path, path.directory).await.map_err(|error| error.about(path.to_string()))
    }

    /// The directory at a path.
    pub async fn directory(&self, path: impl AsRef<[u8]>) -> Result<Directory, Error> {
        let path = StorePath::parse(path)?;
        self.resolve_directory(&path).await.map_err(|error| error.about(path.to_string()))
    }

    /// Lists the directory at a path, page by page; with attributes if `attributes`.
    pub async fn list(
        &self,
        path: impl AsRef<[u8]>,
        attributes: bool,
    ) -> Result<DirectoryLister, Error> {
        let directory = self.directory(path).await?;
        Ok(DirectoryLister { directory, after: 0, attributes, end: false })
    }

    /// The directory that a node is.
    ///
    /// Errors: `NotDirectory`.
    pub fn directory_of(&self, node: &Node) -> Result<Directory, Error> {
        if node.is_directory() {
            Ok(Directory::new(self.0.clone(), node.home.clone()))
        } else {
            Err(Error::NotDirectory { path: node.id().to_string() })
        }
    }

    /// Lists a directory, page by page; with attributes if `attributes`.
    #[must_use]
    pub fn list_directory(&self, directory: &Directory, attributes: bool) -> DirectoryLister {
        DirectoryLister { directory: directory.clone(), after: 0, attributes, end: false }
    }

    /// Makes a directory.
    pub async fn mkdir(
        &self,
        path: impl AsRef<[u8]>,
        new: &EntryAttributes,
    ) -> Result<Directory, Error> {
        let (path, parent, name) = self.parent_of(path).await?;
        let path = path.to_string();
        let new = EntryAttributes { path: Some(path.clone()), ..new.clone() };
        parent.make_directory(&name, &new).await.map_err(|error| error.about(path))
    }

    /// Makes a directory and those above it; what is there already is no error.
    pub async fn mkdir_all(
        &self,
        path: impl AsRef<[u8]>,
        new: &EntryAttributes,
    ) -> Result<Directory, Error> {
        let path = StorePath::parse(path)?;
        let mut directory = self.root();
        for depth in 1..=path.names.len() {
            let above = StorePath { names: path.names[..depth].to_vec(), directory: true };
            let about = |error: Error| error.about(above.to_string());
            directory = match self.resolve_directory(&above).await {
                Err(Error::NotFound { .. }) => {
                    let name = &above.names[depth - 1];
                    let path = Some(above.to_string());
                    let new = EntryAttributes { path, ..new.clone() };
                    match directory.make_directory(name, &new).await {
                        // Somebody else was faster.
                        Err(Error::Exists { .. }) => {
                            self.resolve_directory(&above).await.map_err(about)?
                        }
                        made => made.map_err(about)?,
                    }
                }
                found => found.map_err(about)?,
            };
        }
        Ok(directory)
    }

    /// A writer of a new file; it has its name, whole, when the writer is finished.
    pub async fn put(
        &self,
        path: impl AsRef<[u8]>,
        options: PutOptions,
    ) -> Result<PutWriter, Error> {
        let path = StorePath::parse(path)?;
        if path.directory {
            return Err(Error::IsDirectory { path: path.to_string() });
        }
        let (shown, parent, name) = self.parent_of_path(path).await?;
        let options = PutOptions { path: options.path.or(Some(shown.to_string())), ..options };
        parent.put(&name, options).await.map_err(|error| error.about(shown.to_string()))
    }

    /// Writes a whole small or large file.
    pub async fn put_bytes(
        &self,
        path: impl AsRef<[u8]>,
        bytes: Bytes,
        options: PutOptions,
    ) -> Result<Node, Error> {
        let mut writer = self.put(path, options).await?;
        writer.write(bytes).await?;
        writer.finish().await
    }

    /// Opens a file for reading and writing; symbolic links are followed.
    pub async fn open(&self, path: impl AsRef<[u8]>) -> Result<File, Error> {
        let path = StorePath::parse(path)?;
        let node = self.resolve(&path, true).await;
        let file = node.and_then(|node| self.open_node(&node));
        let file = file.map_err(|error| error.about(path.to_string()))?;
        Ok(file.known_as(path.to_string()))
    }

    /// Opens a file that was looked up.
    pub fn open_node(&self, node: &Node) -> Result<File, Error> {
        match node.kind() {
            FileKind::File => Ok(File::new(self.0.clone(), node.clone())),
            FileKind::Directory => Err(Error::IsDirectory { path: format!("file {}", node.id()) }),
            kind => {
                let reason = format!("a {kind:?} has no bytes");
                Err(Error::Invalid { path: format!("file {}", node.id()), reason })
            }
        }
    }

    /// All bytes of a file.
    pub async fn get_bytes(&self, path: impl AsRef<[u8]>) -> Result<Bytes, Error> {
        let mut reader = self.open(path).await?.reader().await?;
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await? {
            if bytes.is_empty() && reader.is_at_end() {
                return Ok(piece);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.into())
    }

    /// Cuts a file or extends it with zeros.
    pub async fn truncate(&self, path: impl AsRef<[u8]>, size: u64) -> Result<(), Error> {
        let shown = text(path.as_ref());
        let file = self.open(path).await?;
        file.truncate(size).await.map_err(|error| error.about(shown))
    }

    /// Removes a name of something that is no directory.
    pub async fn unlink(&self, path: impl AsRef<[u8]>) -> Result<(), Error> {
        let path = StorePath::parse(path)?;
        if path.directory {
            let node = self.resolve(&path, true).await.map_err(|e| e.about(path.to_string()))?;
            assert!(node.is_directory(), "a path that ends in / names a directory");
            return Err(Error::IsDirectory { path: path.to_string() });
        }
        let (path, parent, name) = self.parent_of_path(path).await?;
        parent.unlink(&name).await.map_err(|error| error.about(path.to_string()))
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, path: impl AsRef<[u8]>) -> Result<(), Error> {
        let (path, parent, name) = self.parent_of(path).await?;
        parent.remove_directory(&name).await.map_err(|error| error.about(path.to_string()))
    }

    /// Gives something a new path.
    pub async fn rename(
        &self,
        from: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
        options: RenameOptions,
    ) -> Result<(), Error> {
        let (from_path, source, from_name) = self.parent_of(from).await?;
        let (to_path, target, to_name) = self.parent_of(to).await?;
        if from_path.directory || to_path.directory {
            // Only a directory may be meant by a path that ends in `/`.
            let node = source.lookup(&from_name).await;
            let node = node.map_err(|error| error.about(from_path.to_string()))?;
            if !node.is_directory() {
                return Err(Error::NotDirectory { path: from_path.to_string() });
            }
        }
        let renamed = source.rename(&from_name, &target, &to_name, options).await;
        renamed.map_err(|error| match error {
            Error::NotFound { .. } => error.about(from_path.to_string()),
            error => error.about(to_path.to_string()),
        })
    }

    /// Gives a file one more path. A symbolic link at `existing` is not followed.
    pub async fn link(
        &self,
        existing: impl AsRef<[u8]>,
        path: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        let node = self.lookup(existing).await?;
        let (path, parent, name) = self.parent_of(path).await?;
        parent.link(&node, &name).await.map_err(|error| error.about(path.to_string()))
    }

    /// Makes a symbolic link at `path`.
    pub async fn symlink(
        &self,
        target: &[u8],
        path: impl AsRef<[u8]>,
        new: &EntryAttributes,
    ) -> Result<Node, Error> {
        let (path, parent, name) = self.parent_of(path).await?;
        let made = parent.make_symlink(&name, target, new).await;
        made.map_err(|error| error.about(path.to_string()))
    }

    /// Target of the symbolic link at a path.
    pub async fn readlink(&self, path: impl AsRef<[u8]>) -> Result<Bytes, Error> {
        let shown = text(path.as_ref());
        let node = self.lookup(path).await?;
        let reason = "it is no symbolic link".into();
        node.attributes.target.ok_or(Error::Invalid { path: shown, reason })
    }

    /// Changes attributes of what a path names; symbolic links are followed.
    pub async fn set_attributes(
        &self,
        path: impl AsRef<[u8]>,
        changes: AttributeChanges,
    ) -> Result<Node, Error> {
        let shown = text(path.as_ref());
        let node = self.stat(path).await?;
        self.set_node_attributes(&node, changes).await.map_err(|error| error.about(shown))
    }

    /// Changes attributes of a node; bytes and size are changed by a [`File`].
    pub async fn set_node_attributes(
        &self,
        node: &Node,
        changes: AttributeChanges,
    ) -> Result<Node, Error> {
        let attributes = self.0.set_attributes(&node.home, node.id(), changes, false).await?;
        Ok(Node { home: node.home.clone(), attributes })
    }

    /// A node as it is now, with the size that its data device has.
    pub async fn refresh(&self, node: &Node) -> Result<Node, Error> {
        let node = self.0.attributes(&node.home, node.id()).await?;
        self.0.with_true_size(node).await
    }

    /// Sets an extended attribute.
    pub async fn set_xattr(
        &self,
        path: impl AsRef<[u8]>,
        name: &[u8],
        value: &[u8],
    ) -> Result<(), Error> {
        let pair = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
        let changes = AttributeChanges { set_xattrs: vec![pair], ..AttributeChanges::default() };
        self.set_attributes(path, changes).await.map(|_| ())
    }

    /// Removes an extended attribute.
    pub async fn remove_xattr(&self, path: impl AsRef<[u8]>, name: &[u8]) -> Result<(), Error> {
        let shown = text(path.as_ref());
        let node = self.stat(path).await?;
        let remove_xattrs = vec![Bytes::copy_from_slice(name)];
        let changes = AttributeChanges { remove_xattrs, ..AttributeChanges::default() };
        match self.set_node_attributes(&node, changes).await {
            Ok(_) => Ok(()),
            Err(Error::NotFound { .. }) => Err(Error::NoAttribute { path: shown }),
            Err(error) => Err(error.about(shown)),
        }
    }

    /// Sets the times of last access and last change.
    pub async fn set_times(
        &self,
        path: impl AsRef<[u8]>,
        atime: Option<SetTime>,
        mtime: Option<SetTime>,
    ) -> Result<(), Error> {
        let changes = AttributeChanges { atime, mtime, ..AttributeChanges::default() };
        self.set_attributes(path, changes).await.map(|_| ())
    }

    /// Waits until bytes, attributes and name of what a path names are on the disks. Source: W-9.
    pub async fn sync(&self, path: impl AsRef<[u8]>) -> Result<(), Error> {
        let path = StorePath::parse(path)?;
        let about = |error: Error| error.about(path.to_string());
        let node = self.resolve(&path, true).await.map_err(about)?;
        if let FileData::Device(_) = &node.attributes.data {
            self.open_node(&node).map_err(about)?.sync().await.map_err(about)?;
        } else {
            self.0.ask_directory(&node.home, DirectoryOp::SYNC).await.map_err(about)?;
        }
        let Ok((parent, _)) = path.clone().split_last() else { return Ok(()) };
        let parent = self.resolve_directory(&parent).await.map_err(about)?;
        if *parent.layout() == node.home { Ok(()) } else { parent.sync().await.map_err(about) }
    }

    /// Where a group is and in what state its portions are.
    pub async fn describe_group(&self, layout: &GroupLayout) -> Result<GroupDescription, Error> {
        let request = LccRequest::DescribeGroup { layout: layout.clone() };
        match self.0.reach.ask(&request, braid_env::Payload::empty()).await? {
            (LccReply::Group(description), _) => Ok(*description),
            (reply, _) => Err(unexpected(&reply)),
        }
    }

    /// Repairs a group now; done when none of its facts is left, or it cannot go on.
    pub async fn repair_group(&self, layout: &GroupLayout) -> Result<(), Error> {
        let request = LccRequest::Repair { layout: layout.clone() };
        self.0.reach.ask(&request, braid_env::Payload::empty()).await.map(|_| ())
    }

    /// Verifies a whole group at its owner, see [`Verified`]. Source: F-6.
    pub async fn verify_group(&self, layout: &GroupLayout) -> Result<Verified, Error> {
        let mut sum = Verified { next: Some(RowPlace::default()), ..Verified::default() };
        while let Some(from) = sum.next {
            let request = LccRequest::Verify { layout: layout.clone(), from };
            let seen = match self.0.reach.ask(&request, braid_env::Payload::empty()).await? {
                (LccReply::Verified(seen), _) => seen,
                (reply, _) => return Err(unexpected(&reply)),
            };
            sum.blocks += seen.blocks;
            sum.bad_blocks += seen.bad_blocks;
            sum.unfit_rows += seen.unfit_rows;
            sum.rows_left += seen.rows_left;
            sum.next = seen.next;
        }
        Ok(sum)
    }

    /// State of each server's LCC that answers.
    pub async fn lcc_statuses(&self) -> Vec<(std::net::SocketAddr, LccStatus)> {
        let mut statuses = Vec::new();
        for place in self.0.reach.places() {
            if let Ok(LccReply::Status(status)) =
                self.0.reach.ask_at(place, &LccRequest::Status).await
            {
                statuses.push((place.0, status));
            }
        }
        statuses
    }

    /// The directory and name that a path means to change.
    async fn parent_of(
        &self,
        path: impl AsRef<[u8]>,
    ) -> Result<(StorePath, Directory, Bytes), Error> {
        self.parent_of_path(StorePath::parse(path)?).await
    }

    async fn parent_of_path(
        &self,
        path: StorePath,
    ) -> Result<(StorePath, Directory, Bytes), Error> {
        let (parent, name) = path.clone().split_last()?;
        let directory = self.resolve_directory(&parent).await;
        let directory = directory.map_err(|error| error.about(parent.to_string()))?;
        Ok((path, directory, name))
    }

    async fn resolve_directory(&self, path: &StorePath) -> Result<Directory, Error> {
        match self.walk(path, true).await? {
            Walked::Directory(directory) => Ok(directory),
            Walked::Other(_) => Err(Error::NotDirectory { path: path.to_string() }),
        }
    }

    async fn resolve(&self, path: &StorePath, follow: bool) -> Result<Node, Error> {
        match self.walk(path, follow).await? {
            Walked::Directory(directory) => match (directory.node().await, path.names.last()) {
                // A name of nothing is mended by who looks at it.
                (Err(Error::NotFound { .. }), Some(name)) if name[..] != b".."[..] => {
                    self.parent_of_path(path.clone()).await?.1.lookup(name).await
                }
                (node, _) => node,
            },
            Walked::Other(_) if path.directory => {
                Err(Error::NotDirectory { path: path.to_string() })
            }
            Walked::Other(node) => self.0.with_true_size(*node).await,
        }
    }

    /// Walks a path; `follow` a symbolic link at its end.
    async fn walk(&self, path: &StorePath, follow: bool) -> Result<Walked, Error> {
        let shown = || path.to_string();
        let mut left: VecDeque<Bytes> = path.names.iter().cloned().collect();
        let mut directory = self.root();
        let mut above: Option<(Directory, Bytes)> = None;
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == b".."[..] {
                directory = directory.parent().await?;
                above = None;
                continue;
            }
            let (entry, attributes) = match (directory.entry(&name).await, above.take()) {
                // Is there no such name, or no such directory?
                (Err(Error::NotFound { .. }), Some((parent, own))) => {
                    if directory.node().await.is_err() {
                        parent.lookup(&own).await?;
                    }
                    directory.entry(&name).await?
                }
                (found, _) => found?,
            };
            if let Some(child) = directory.child(&entry) {
                above = Some((std::mem::replace(&mut directory, child), name));
                continue;
            }
            let is_link = entry.kind == FileKind::Symlink && (!left.is_empty() || follow);
            if !left.is_empty() && !is_link {
                return Err(Error::NotDirectory { path: shown() });
            }
            let node = match self.0.node_of(directory.layout(), &entry, attributes).await {
                // Replaced since its entry was read? Then the name stands for something else.
                Err(Error::NotFound { .. }) if directory.entry(&name).await?.0.id != entry.id => {
                    left.push_front(name);
                    continue;
                }
                node => node?,
            };
            if !is_link {
                return Ok(Walked::Other(Box::new(node)));
            }
            links += 1;
            if links > SYMLINKS_MAX {
                return Err(Error::SymlinkLoop { path: shown() });
            }
            let target = node.attributes.target.unwrap_or_default();
            let cut = StorePath::cut(&target)?;
            if target.is_empty() {
                return Err(Error::NotFound { path: shown() });
            }
            if target.starts_with(b"/") {
                directory = self.root();
            }
            cut.names.into_iter().rev().for_each(|name| left.push_front(name));
        }
        Ok(Walked::Directory(directory))
    }
}

enum Walked {
    Directory(Directory),
    Other(Box<Node>),
}

impl Inner {
    /// Gives up a device or directory that was to get a name in `home`.
    pub fn abandon(&self, home: &GroupLayout, device: DeviceId) {
        // Without the task the owner does it after a day.
        let _ = self.abandoned.send((home.clone(), device));
    }
}

/// Tells owners of uploads that are given up.
async fn tell_abandoned(
    reach: Rc<Reach>,
    mut given_up: mpsc::UnboundedReceiver<(GroupLayout, DeviceId)>,
) {
    while let Some((layout, device)) = given_up.recv().await {
        let operation = reach.operation();
        let op = DirectoryOp::AbandonUploads { operation, devices: vec![device] };
        let request = LccRequest::Directory { layout, op };
        if let Err(error) = reach.ask(&request, braid_env::Payload::empty()).await {
            tracing::debug!(%device, %error, "an upload is left to its owner");
        }
    }
}

impl DirectoryLister {
    /// The next entries; empty at the end.
    pub async fn next_page(&mut self) -> Result<Vec<ListedEntry>, Error> {
        while !self.end {
            let (entries, end) =
                self.directory.list(self.after, PAGE_ENTRIES, self.attributes).await?;
            self.end = end;
            if let Some(last) = entries.last() {
                self.after = last.cookie;
                return Ok(entries);
            }
        }
        Ok(Vec::new())
    }

    /// All entries that are left.
    pub async fn all(mut self) -> Result<Vec<ListedEntry>, Error> {
        let mut all = Vec::new();
        loop {
            let page = self.next_page().await?;
            if page.is_empty() {
                return Ok(all);
            }
            all.extend(page);
        }
    }

    /// The directory that is listed.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }
}

const SYMLINKS_MAX: usize = 40;
const PAGE_ENTRIES: u32 = 1024;
const FILES_AHEAD: u32 = 32;
const DIRECTORIES_AHEAD: u32 = 4;
const ROOT_PAUSE: Duration = Duration::from_millis(100);
