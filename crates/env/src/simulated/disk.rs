//! Disks that keep only what was synced.
//!
//! # Theory
//! Each file has two images: what processes see (*cached*) and what is on the medium (*durable*),
//! and between them, page by page, the changes that are not yet synced, in order. Names of files and
//! folders are kept in the same way: two trees and the changes between.
//! ```text
//! page 7   durable --change--change--change--> cached
//!                  ^ power cut: one of these ^, now and then some 512-byte sectors of another
//! ```
//! A sync takes the changes that were there when it was called over to the durable image when it
//! ends. A kill of a process changes nothing.
//! # Invariants
//! K1 After a power cut each sector of a page is one of the page's contents since the last sync.
//! K2 A file's length after a power cut is one that it had since the last sync, and bytes that a cut
//!    to a shorter length removed are gone if and only if the shorter length is there.
//! K3 Names that were not synced may each have come through or not; a rename is never half done.
//! # Failure
//! A failed sync drops the changes of its pages and keeps the cached image, as Linux does: a
//! second sync succeeds and saves nothing of them (S-4).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Component, Path};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::time::sleep;

use super::Shared;
use super::process::ProcessState;
use super::trace::Random;
use crate::{File, FileOps, FolderOps, OpenMode, Space};

/// A disk of a machine; clones share it. Paths are relative to the disk.
#[derive(Clone)]
pub struct SimDisk(Rc<DiskState>);

struct DiskState {
    number: u64,
    shared: Weak<Shared>,
    size: Cell<u64>,
    names: RefCell<Names>,
    /// All changes are numbered in their order.
    sequence: Cell<u64>,
    sync_latency: RefCell<Range<Duration>>,
    syncs_to_fail: Cell<u32>,
    is_gone: Cell<bool>,
    is_unlucky: Cell<bool>,
    holders: RefCell<BTreeMap<String, Weak<Hold>>>,
    /// Pages of all files; none where it must be counted again.
    used_pages: Cell<Option<u64>>,
}

impl SimDisk {
    pub(super) fn new(shared: &Rc<Shared>, machine: u32, size: u64) -> Self {
        let number = shared.number();
        shared.trace_event("disk", u64::from(machine), number, &[], size);
        Self(Rc::new(DiskState {
            number,
            shared: Rc::downgrade(shared),
            size: Cell::new(size),
            names: RefCell::default(),
            sequence: Cell::new(0),
            sync_latency: RefCell::new(SYNC_LATENCY),
            syncs_to_fail: Cell::new(0),
            is_gone: Cell::new(false),
            is_unlucky: Cell::new(false),
            holders: RefCell::default(),
            used_pages: Cell::new(None),
        }))
    }

    /// How long a sync takes.
    pub fn set_sync_latency(&self, range: Range<Duration>) {
        *self.0.sync_latency.borrow_mut() = range;
    }

    /// A sync takes as long as it did at the beginning.
    pub fn set_usual_sync_latency(&self) {
        self.set_sync_latency(SYNC_LATENCY);
    }

    /// The next `count` syncs fail with EIO, and what they should have saved is lost at a power cut.
    pub fn fail_syncs(&self, count: u32) {
        self.0.syncs_to_fail.set(count);
    }

    /// A disk that is gone answers everything with EIO.
    pub fn set_gone(&self, is_gone: bool) {
        self.0.is_gone.set(is_gone);
    }

    /// Of an unlucky disk nothing comes through a power cut that was not synced.
    pub fn set_unlucky(&self, is_unlucky: bool) {
        self.0.is_unlucky.set(is_unlucky);
    }

    /// Changes its size; below what is used nothing more can be written.
    pub fn set_size(&self, bytes: u64) {
        self.0.size.set(bytes);
    }

    /// Bytes that its files occupy, in whole pages.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.used()
    }

    /// Paths of all files.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        self.0.names.borrow().cached.files.keys().cloned().collect()
    }

    /// The bytes of a file as processes see them; none where there is no such file.
    #[must_use]
    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        let inode = self.0.names.borrow().cached.files.get(path).cloned()?;
        let content = inode.content.borrow();
        let mut bytes = vec![0; usize::try_from(content.cached.length).ok()?];
        content.cached.read(&mut bytes, 0);
        Some(bytes)
    }

    /// Flips one bit on the medium; also what the cache had of it is forgotten.
    pub fn flip_bit(&self, path: &str, at: u64, bit: u8) {
        let Some(inode) = self.0.names.borrow().cached.files.get(path).cloned() else { return };
        let content = &mut *inode.content.borrow_mut();
        for image in [&mut content.cached, &mut content.durable] {
            if let Some(page) = image.pages.get_mut(&(at / PAGE)) {
                page[in_page(at)] ^= 1 << (bit % 8);
            }
        }
        self.0.trace("rot", path.as_bytes(), at);
    }

    /// Flips a random bit of a file whose path starts with `prefix`, and says where.
    pub fn flip_random_bit(&self, prefix: &str) -> Option<(String, u64)> {
        let shared = self.0.shared.upgrade()?;
        let names = self.0.names.borrow();
        let mut places = Vec::new();
        for (path, inode) in names.cached.files.iter().filter(|(path, _)| path.starts_with(prefix))
        {
            let content = inode.content.borrow();
            places.extend(content.cached.pages.keys().map(|page| (path.clone(), *page)));
        }
        drop(names);
        if places.is_empty() {
            return None;
        }
        let mut random = shared.random.borrow_mut();
        let (path, page) = places.swap_remove(random.index(places.len()));
        let at = page * PAGE + random.below(PAGE);
        let bit = u8::try_from(random.below(8)).expect("below 8");
        drop(random);
        self.flip_bit(&path, at, bit);
        Some((path, at))
    }

    /// A random file whose path starts with `prefix` is gone from the medium, as after a repair of
    /// a damaged file system; for disks that nobody uses now. Says which.
    pub fn lose_random_file(&self, prefix: &str) -> Option<String> {
        let shared = self.0.shared.upgrade()?;
        let mut names = self.0.names.borrow_mut();
        let mut paths: Vec<String> =
            names.cached.files.keys().filter(|path| path.starts_with(prefix)).cloned().collect();
        if paths.is_empty() {
            return None;
        }
        let path = paths.swap_remove(shared.random.borrow_mut().index(paths.len()));
        names.cached.files.remove(&path);
        names.durable.files.remove(&path);
        drop(names);
        self.0.used_pages.set(None);
        self.0.trace("lost file", path.as_bytes(), 0);
        Some(path)
    }

    /// Keeps what is durable and a random part of the rest.
    pub(super) fn power_cut(&self) {
        let Some(shared) = self.0.shared.upgrade() else { return };
        let random = &mut *shared.random.borrow_mut();
        let drawn = Luck::draw(random);
        let luck = if self.0.is_unlucky.get() { Luck::Nothing } else { drawn };
        self.0.names.borrow_mut().power_cut(luck, random);
        self.0.holders.borrow_mut().clear();
        self.0.used_pages.set(None);
    }
}

/// How much of what was not synced comes through a power cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Luck {
    Nothing,
    All,
    /// Everything up to a point.
    Prefix,
    /// Each on its own.
    Some,
}

impl Luck {
    fn draw(random: &mut Random) -> Self {
        [Self::Nothing, Self::All, Self::Prefix, Self::Some, Self::Some][random.index(5)]
    }

    /// How many of `count` ordered changes come through, when only a prefix can; at least `min`.
    fn prefix(self, min: usize, count: usize, random: &mut Random) -> usize {
        match self {
            Self::Nothing => min,
            Self::All => count,
            Self::Prefix | Self::Some => min + random.index(count - min + 1),
        }
    }
}

impl DiskState {
    fn used(&self) -> u64 {
        self.used_pages() * PAGE
    }

    fn used_pages(&self) -> u64 {
        let count = self.used_pages.get().unwrap_or_else(|| {
            let names = self.names.borrow();
            let inodes = names.cached.files.values();
            inodes.map(|inode| inode.content.borrow().cached.pages.len() as u64).sum()
        });
        self.used_pages.set(Some(count));
        count
    }

    fn next_sequence(&self) -> u64 {
        self.sequence.set(self.sequence.get() + 1);
        self.sequence.get()
    }

    fn trace(&self, what: &str, bytes: &[u8], count: u64) {
        if let Some(shared) = self.shared.upgrade() {
            shared.trace_event(what, self.number, 0, bytes, count);
        }
    }

    fn check(&self, process: &ProcessState) -> io::Result<()> {
        process.check_alive()?;
        if self.is_gone.get() { Err(eio()) } else { Ok(()) }
    }

    /// A sync: takes its time, then does `save` with the number of the last change before the call
    /// and whether it fails.
    fn sync(
        self: &Rc<Self>,
        process: &Rc<ProcessState>,
        what: String,
        save: impl FnOnce(&Self, u64, bool) + 'static,
    ) -> LocalBoxFuture<'static, io::Result<()>> {
        let (disk, process) = (self.clone(), process.clone());
        let until = self.sequence.get();
        let range = self.sync_latency.borrow().clone();
        let span = self.shared.upgrade().map_or(range.start, |shared| shared.random_span(&range));
        async move {
            disk.check(&process)?;
            sleep(span).await;
            disk.check(&process)?;
            let fails = disk.syncs_to_fail.get() > 0;
            disk.syncs_to_fail.set(disk.syncs_to_fail.get().saturating_sub(1));
            disk.trace(if fails { "sync fails" } else { "sync" }, what.as_bytes(), until);
            save(&disk, until, fails);
            if fails { Err(eio()) } else { Ok(()) }
        }
        .boxed_local()
    }
}

#[derive(Default)]
struct Names {
    cached: Tree,
    durable: Tree,
    changes: Vec<(u64, NameChange)>,
}

#[derive(Clone, Default)]
struct Tree {
    files: BTreeMap<String, Rc<Inode>>,
    folders: BTreeSet<String>,
}

#[derive(Clone)]
enum NameChange {
    Create(String, Rc<Inode>),
    Remove(String),
    Rename(String, String, Rc<Inode>),
    CreateFolder(String),
}

impl NameChange {
    /// Whether a sync of `folder` must save it.
    fn concerns(&self, folder: &str) -> bool {
        match self {
            Self::Create(path, _) | Self::Remove(path) => parent(path) == folder,
            Self::Rename(from, to, _) => parent(from) == folder || parent(to) == folder,
            // Or the folder itself would not be there.
            Self::CreateFolder(path) => {
                parent(path) == folder || Path::new(folder).starts_with(path)
            }
        }
    }
}

impl Tree {
    fn has_folder(&self, path: &str) -> bool {
        path.is_empty() || self.folders.contains(path)
    }

    /// What cannot be done, because what it builds upon did not come through, is left out.
    fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Create(path, inode) => {
                if self.has_folder(parent(path)) {
                    self.files.insert(path.clone(), inode.clone());
                }
            }
            NameChange::Remove(path) => {
                self.files.remove(path);
            }
            NameChange::Rename(from, to, inode) => {
                let is_there = self.files.get(from).is_some_and(|at| Rc::ptr_eq(at, inode));
                if is_there && self.has_folder(parent(to)) {
                    self.files.remove(from);
                    self.files.insert(to.clone(), inode.clone());
                }
            }
            NameChange::CreateFolder(path) => {
                if self.has_folder(parent(path)) {
                    self.folders.insert(path.clone());
                }
            }
        }
    }
}

impl Names {
    fn change(&mut self, sequence: u64, change: NameChange) {
        self.cached.apply(&change);
        self.changes.push((sequence, change));
    }

    fn save(&mut self, until: u64, which: impl Fn(&NameChange) -> bool) {
        let durable = &mut self.durable;
        self.changes.retain(|(sequence, change)| {
            let is_saved = *sequence <= until && which(change);
            if is_saved {
                durable.apply(change);
            }
            !is_saved
        });
    }

    fn power_cut(&mut self, luck: Luck, random: &mut Random) {
        let changes = std::mem::take(&mut self.changes);
        let first = luck.prefix(0, changes.len(), random);
        for (index, (_, change)) in changes.iter().enumerate() {
            let came_through = match luck {
                Luck::Some => random.chance(50),
                Luck::Nothing | Luck::All | Luck::Prefix => index < first,
            };
            if came_through {
                self.durable.apply(change);
            }
        }
        self.cached = self.durable.clone();
        for inode in self.cached.files.values() {
            inode.content.borrow_mut().power_cut(luck, random);
        }
    }
}

struct Inode {
    number: u64,
    content: RefCell<Content>,
}

#[derive(Default)]
struct Content {
    cached: Image,
    durable: Image,
    changes: BTreeMap<u64, Vec<Change>>,
    lengths: Vec<(u64, u64)>,
    /// Pages whose changes a failed sync has dropped: the next change saves all of the page.
    dropped: BTreeSet<u64>,
}

/// A change of one page.
struct Change {
    sequence: u64,
    at: usize,
    length: usize,
    /// None is zeros.
    bytes: Option<Vec<u8>>,
    /// It belongs to a new, shorter length (K2).
    is_cut: bool,
}

#[derive(Clone, Default)]
struct Image {
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    length: u64,
}

impl Image {
    fn read(&self, buffer: &mut [u8], at: u64) -> usize {
        let available = self.length.saturating_sub(at).min(buffer.len() as u64);
        let count = usize::try_from(available).expect("at most the buffer");
        for (page, offset, range) in pieces(at, count) {
            match self.pages.get(&page) {
                Some(bytes) => {
                    let length = range.len();
                    buffer[range].copy_from_slice(&bytes[offset..offset + length]);
                }
                None => buffer[range].fill(0),
            }
        }
        count
    }

    fn apply(&mut self, page: u64, change: &Change) {
        if change.bytes.is_none() && change.length == PAGE as usize {
            self.pages.remove(&page);
            return;
        }
        let target = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
        let target = &mut target[change.at..change.at + change.length];
        match &change.bytes {
            Some(bytes) => target.copy_from_slice(bytes),
            None => target.fill(0),
        }
    }

    /// Takes a length; what lies behind is gone.
    fn cut(&mut self, length: u64) {
        self.length = length;
        drop(self.pages.split_off(&length.div_ceil(PAGE)));
        if let Some(page) = self.pages.get_mut(&(length / PAGE)) {
            page[in_page(length)..].fill(0);
        }
    }
}

impl Content {
    fn change(&mut self, page: u64, mut change: Change) {
        self.cached.apply(page, &change);
        if self.dropped.remove(&page) {
            let whole = self.cached.pages.get(&page).map(|bytes| bytes.to_vec());
            change = Change { at: 0, length: PAGE as usize, bytes: whole, ..change };
        }
        self.changes.entry(page).or_default().push(change);
    }

    fn set_length(&mut self, sequence: u64, length: u64) {
        let old = self.cached.length;
        if length < old {
            let first = length / PAGE;
            let pages: Vec<u64> = self.cached.pages.range(first..).map(|(page, _)| *page).collect();
            for page in pages {
                let at = if page == first { in_page(length) } else { 0 };
                let change =
                    Change { sequence, at, length: PAGE as usize - at, bytes: None, is_cut: true };
                self.change(page, change);
            }
        }
        if length != old {
            self.cached.length = length;
            self.lengths.push((sequence, length));
        }
    }

    fn save(&mut self, until: u64) {
        let Self { durable, changes, lengths, .. } = self;
        changes.retain(|page, changes| {
            let count = changes.partition_point(|change| change.sequence <= until);
            changes.drain(..count).for_each(|change| durable.apply(*page, &change));
            !changes.is_empty()
        });
        let count = lengths.partition_point(|(sequence, _)| *sequence <= until);
        if let Some((_, length)) = lengths.drain(..count).next_back() {
            durable.length = length;
        }
    }

    fn drop_changes(&mut self, until: u64) {
        let Self { changes, dropped, .. } = self;
        changes.retain(|page, changes| {
            let count = changes.partition_point(|change| change.sequence <= until);
            if count > 0 {
                changes.drain(..count);
                dropped.insert(*page);
            }
            !changes.is_empty()
        });
    }

    fn power_cut(&mut self, luck: Luck, random: &mut Random) {
        let kept = luck.prefix(0, self.lengths.len(), random);
        // Changes of shorter lengths from this one on did not happen.
        let undone = self.lengths.get(kept).map_or(u64::MAX, |(sequence, _)| *sequence);
        let length = self.lengths[..kept].last().map_or(self.durable.length, |(_, length)| *length);
        for (page, changes) in std::mem::take(&mut self.changes) {
            let is_done = |change: &Change| change.is_cut && change.sequence < undone;
            let is_undone = |change: &Change| change.is_cut && change.sequence >= undone;
            let min = changes.iter().rposition(is_done).map_or(0, |index| index + 1);
            let max = changes.iter().position(is_undone).unwrap_or(changes.len());
            let one = luck.prefix(min, max, random);
            let mut saved = Image::default();
            if let Some(bytes) = self.durable.pages.get(&page) {
                saved.pages.insert(page, bytes.clone());
            }
            let mut other = saved.clone();
            changes[..one].iter().for_each(|change| saved.apply(page, change));
            if luck == Luck::Some && random.chance(30) {
                let another = luck.prefix(min, max, random);
                changes[..another].iter().for_each(|change| other.apply(page, change));
                tear(&mut saved, &other, page, random);
            }
            match saved.pages.remove(&page) {
                Some(bytes) => self.durable.pages.insert(page, bytes),
                None => self.durable.pages.remove(&page),
            };
        }
        self.lengths.clear();
        self.dropped.clear();
        self.durable.cut(length);
        self.cached = self.durable.clone();
    }
}

/// Takes some sectors of `other`'s page.
fn tear(image: &mut Image, other: &Image, page: u64, random: &mut Random) {
    let zeros = Box::new([0; PAGE as usize]);
    let source = other.pages.get(&page).unwrap_or(&zeros);
    let target = image.pages.entry(page).or_insert_with(|| Box::new([0; PAGE as usize]));
    for (to, from) in target.chunks_mut(SECTOR).zip(source.chunks(SECTOR)) {
        if random.chance(50) {
            to.copy_from_slice(from);
        }
    }
}

/// A folder as one process has it open.
pub(super) struct SimFolder {
    disk: Rc<DiskState>,
    process: Rc<ProcessState>,
    /// Its path on the disk.
    root: String,
    hold: RefCell<Option<Rc<Hold>>>,
}

/// A folder that is held for one process, while this lives and the process does.
struct Hold(Rc<ProcessState>);

impl SimFolder {
    pub(super) fn open(process: &Rc<ProcessState>, disk: &SimDisk, root: &str) -> io::Result<Self> {
        let disk = disk.0.clone();
        disk.check(process)?;
        if !disk.names.borrow().cached.has_folder(root) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (process, root) = (process.clone(), root.to_owned());
        Ok(Self { disk, process, root, hold: RefCell::default() })
    }

    /// The path on the disk; refuses paths that leave the folder.
    fn full(&self, path: &str) -> io::Result<String> {
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(match (self.root.is_empty(), path.is_empty()) {
            (true, _) => path.to_owned(),
            (false, true) => self.root.clone(),
            (false, false) => format!("{}/{path}", self.root),
        })
    }

    fn file_path(&self, path: &str) -> io::Result<String> {
        self.disk.check(&self.process)?;
        if path.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.full(path)
    }

    fn change(&self, change: NameChange, path: &str, what: &str) {
        let sequence = self.disk.next_sequence();
        self.disk.names.borrow_mut().change(sequence, change);
        self.disk.used_pages.set(None);
        self.disk.trace(what, path.as_bytes(), sequence);
    }
}

impl FolderOps for SimFolder {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<File> {
        let path = self.file_path(path)?;
        let names = self.disk.names.borrow();
        let found = names.cached.files.get(&path).cloned();
        let has_parent = names.cached.has_folder(parent(&path));
        let is_folder = names.cached.folders.contains(&path);
        drop(names);
        let inode = match (found, mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, _) if is_folder => return Err(io::ErrorKind::IsADirectory.into()),
            (None, OpenMode::Read | OpenMode::Write) => return Err(io::ErrorKind::NotFound.into()),
            (None, _) if !has_parent => return Err(io::ErrorKind::NotFound.into()),
            (None, OpenMode::Create | OpenMode::CreateNew) => {
                let number = self.disk.next_sequence();
                let inode = Rc::new(Inode { number, content: RefCell::default() });
                self.change(NameChange::Create(path.clone(), inode.clone()), &path, "create");
                inode
            }
        };
        let is_writable = mode != OpenMode::Read;
        let (disk, process) = (self.disk.clone(), self.process.clone());
        Ok(File(Rc::new(SimFile { disk, process, inode, is_writable })))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.disk.check(&self.process)?;
        let path = self.full(path)?;
        let names = self.disk.names.borrow();
        if !names.cached.has_folder(&path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let all = names.cached.files.keys().chain(&names.cached.folders);
        let mut found: Vec<String> =
            all.filter(|name| parent(name) == path).map(|name| last(name).to_owned()).collect();
        found.sort_unstable();
        Ok(found)
    }

    fn create_folder(&self, path: &str) -> io::Result<()> {
        self.disk.check(&self.process)?;
        let path = self.full(path)?;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for folder in ends.map(|end| &path[..end]) {
            let names = self.disk.names.borrow();
            let is_file = names.cached.files.contains_key(folder);
            let is_there = names.cached.has_folder(folder);
            drop(names);
            if is_file {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            if !is_there {
                self.change(NameChange::CreateFolder(folder.to_owned()), folder, "create folder");
            }
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let path = self.file_path(path)?;
        if !self.disk.names.borrow().cached.files.contains_key(&path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(NameChange::Remove(path.clone()), &path, "remove");
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.file_path(from)?, self.file_path(to)?);
        let names = self.disk.names.borrow();
        let inode = names.cached.files.get(&from).cloned();
        let has_parent = names.cached.has_folder(parent(&to));
        let is_folder = names.cached.folders.contains(&to);
        drop(names);
        let Some(inode) = inode.filter(|_| has_parent) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if is_folder {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if from != to {
            self.change(NameChange::Rename(from, to.clone(), inode), &to, "rename");
        }
        Ok(())
    }

    fn length(&self, path: &str) -> io::Result<Option<u64>> {
        let path = self.file_path(path)?;
        let names = self.disk.names.borrow();
        Ok(names.cached.files.get(&path).map(|inode| inode.content.borrow().cached.length))
    }

    fn sync_folder(&self, path: &str) -> LocalBoxFuture<'static, io::Result<()>> {
        let folder = match self.full(path) {
            Ok(folder) if self.disk.names.borrow().cached.has_folder(&folder) => folder,
            Ok(_) => return failed(io::ErrorKind::NotFound),
            Err(error) => return failed(error.kind()),
        };
        self.disk.sync(&self.process, format!("folder {folder}"), move |disk, until, fails| {
            if !fails {
                disk.names.borrow_mut().save(until, |change| change.concerns(&folder));
            }
        })
    }

    fn sync_all(&self) -> LocalBoxFuture<'static, io::Result<()>> {
        self.disk.sync(&self.process, "all".to_owned(), |disk, until, fails| {
            let mut names = disk.names.borrow_mut();
            for inode in names.cached.files.values() {
                inode.sync(until, fails);
            }
            if !fails {
                names.save(until, |_| true);
            }
        })
    }

    fn space(&self) -> io::Result<Space> {
        self.disk.check(&self.process)?;
        let total = self.disk.size.get();
        Ok(Space { total, free: total.saturating_sub(self.disk.used()) })
    }

    fn take_exclusively(&self) -> io::Result<bool> {
        self.open("lock", OpenMode::Create)?;
        if self.hold.borrow().is_some() {
            return Ok(true);
        }
        let mut holders = self.disk.holders.borrow_mut();
        let holder = holders.get(&self.root).and_then(Weak::upgrade);
        if holder.is_some_and(|hold| hold.0.is_alive.get()) {
            return Ok(false);
        }
        let hold = Rc::new(Hold(self.process.clone()));
        holders.insert(self.root.clone(), Rc::downgrade(&hold));
        *self.hold.borrow_mut() = Some(hold);
        Ok(true)
    }
}

impl Inode {
    fn sync(&self, until: u64, fails: bool) {
        let mut content = self.content.borrow_mut();
        if fails { content.drop_changes(until) } else { content.save(until) }
    }
}

/// A file as one process has it open.
struct SimFile {
    disk: Rc<DiskState>,
    process: Rc<ProcessState>,
    inode: Rc<Inode>,
    is_writable: bool,
}

impl SimFile {
    fn check_writable(&self) -> io::Result<()> {
        self.disk.check(&self.process)?;
        if self.is_writable { Ok(()) } else { Err(io::Error::from_raw_os_error(EBADF)) }
    }

    fn trace(&self, what: &str, bytes: &[u8], at: u64) {
        if let Some(shared) = self.disk.shared.upgrade() {
            let shown = &bytes[..bytes.len().min(TRACED_BYTES)];
            shared.trace_event(what, self.disk.number, self.inode.number, shown, at);
        }
    }
}

impl FileOps for SimFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.disk.check(&self.process)?;
        Ok(self.inode.content.borrow().cached.read(buffer, at))
    }

    fn read(&self, at: u64, length: usize) -> LocalBoxFuture<'static, io::Result<Bytes>> {
        let shared = self.disk.shared.upgrade().filter(|_| self.process.is_alive.get());
        // Now and then the bytes are not in memory.
        let wait = shared.and_then(|shared| {
            let mut random = shared.random.borrow_mut();
            random.chance(READ_WAITS_PERCENT).then(|| random.span(&READ_LATENCY))
        });
        let (disk, process, inode) = (self.disk.clone(), self.process.clone(), self.inode.clone());
        async move {
            if let Some(wait) = wait {
                sleep(wait).await;
            }
            disk.check(&process)?;
            let mut bytes = vec![0; length];
            let count = inode.content.borrow().cached.read(&mut bytes, at);
            bytes.truncate(count);
            Ok(bytes.into())
        }
        .boxed_local()
    }

    fn write_at(&self, slices: &[&[u8]], at: u64) -> io::Result<()> {
        self.check_writable()?;
        let bytes = slices.concat();
        let sequence = self.disk.next_sequence();
        self.trace("write", &bytes, at);
        let mut used_pages = self.disk.used_pages();
        let content = &mut *self.inode.content.borrow_mut();
        for (page, offset, range) in pieces(at, bytes.len()) {
            if !content.cached.pages.contains_key(&page) {
                if (used_pages + 1) * PAGE > self.disk.size.get() {
                    // What was written before stays written, as with a real disk.
                    return Err(io::ErrorKind::StorageFull.into());
                }
                used_pages += 1;
                self.disk.used_pages.set(Some(used_pages));
            }
            let end = at + range.end as u64;
            let piece = Some(bytes[range.clone()].to_vec());
            let length = range.len();
            content
                .change(page, Change { sequence, at: offset, length, bytes: piece, is_cut: false });
            if end > content.cached.length {
                content.cached.length = end;
                // One entry per call: a length in the middle of a call is as good as torn pages.
                match content.lengths.last_mut() {
                    Some((last, length)) if *last == sequence => *length = end,
                    _ => content.lengths.push((sequence, end)),
                }
            }
        }
        Ok(())
    }

    fn reserve(&self, at: u64, length: u64) -> io::Result<()> {
        self.check_writable()?;
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::StorageFull)?;
        for (page, offset, range) in pieces(at, length) {
            let is_there = self.inode.content.borrow().cached.pages.contains_key(&page);
            if !is_there {
                self.write_at(&[&vec![0; range.len()]], page * PAGE + offset as u64)?;
            }
        }
        Ok(())
    }

    fn write_uncached(
        &self,
        pieces: Vec<Bytes>,
        at: u64,
    ) -> LocalBoxFuture<'static, io::Result<()>> {
        let shared = self.disk.shared.upgrade().filter(|_| self.process.is_alive.get());
        let wait = shared.map(|shared| shared.random.borrow_mut().span(&READ_LATENCY));
        let file = Self {
            disk: self.disk.clone(),
            process: self.process.clone(),
            inode: self.inode.clone(),
            is_writable: self.is_writable,
        };
        let bytes = pieces.concat();
        // A process that ends meanwhile leaves a part.
        let begun = bytes.len() / 2 / PAGE as usize * PAGE as usize;
        let first = self.write_at(&[&bytes[..begun]], at);
        async move {
            first?;
            if let Some(wait) = wait {
                sleep(wait).await;
            }
            file.write_at(&[&bytes[begun..]], at + begun as u64)
        }
        .boxed_local()
    }

    fn length(&self) -> io::Result<u64> {
        self.disk.check(&self.process)?;
        Ok(self.inode.content.borrow().cached.length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.check_writable()?;
        let sequence = self.disk.next_sequence();
        self.trace("set length", &[], length);
        self.disk.used_pages.set(None);
        self.inode.content.borrow_mut().set_length(sequence, length);
        Ok(())
    }

    fn punch(&self, at: u64, length: u64) -> io::Result<()> {
        self.check_writable()?;
        let sequence = self.disk.next_sequence();
        self.trace("punch", &length.to_le_bytes(), at);
        self.disk.used_pages.set(None);
        let content = &mut *self.inode.content.borrow_mut();
        let end = at.saturating_add(length);
        let touched = at / PAGE..end.div_ceil(PAGE);
        let pages: Vec<u64> = content.cached.pages.range(touched).map(|(page, _)| *page).collect();
        for page in pages {
            let from = in_page(at.max(page * PAGE));
            let until = usize::try_from((end - page * PAGE).min(PAGE)).expect("within a page");
            if from < until {
                let length = until - from;
                content.change(
                    page,
                    Change { sequence, at: from, length, bytes: None, is_cut: false },
                );
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> LocalBoxFuture<'static, io::Result<()>> {
        let inode = self.inode.clone();
        let what = format!("data {}", inode.number);
        self.disk.sync(&self.process, what, move |_, until, fails| inode.sync(until, fails))
    }

    // What was written back early came through by luck, which a power cut draws anyway.
    fn start_writeback(&self, _: u64, _: u64) {}
}

/// Cuts `length` bytes at `at` at page borders: page, offset in it, range of the bytes.
fn pieces(at: u64, length: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let position = at + done as u64;
        let offset = in_page(position);
        let count = (PAGE as usize - offset).min(length - done);
        let range = done..done + count;
        done += count;
        Some((position / PAGE, offset, range))
    })
}

fn in_page(at: u64) -> usize {
    usize::try_from(at % PAGE).expect("below a page")
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn last(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(EIO)
}

fn failed(kind: io::ErrorKind) -> LocalBoxFuture<'static, io::Result<()>> {
    futures_util::future::ready(Err(kind.into())).boxed_local()
}

const PAGE: u64 = 4096;
const SECTOR: usize = 512;
const EIO: i32 = 5;
const EBADF: i32 = 9;
const SYNC_LATENCY: Range<Duration> = Duration::from_millis(1)..Duration::from_millis(8);
const READ_LATENCY: Range<Duration> = Duration::from_micros(100)..Duration::from_millis(4);
const READ_WAITS_PERCENT: u64 = 25;
const TRACED_BYTES: usize = 4096;
