//! A disk in memory that forgets what was not synced, tears blocks, gets full, and fails syncs.
//!
//! Names and bytes are durable by their own syncs only. A power cut keeps of each 4 KiB page the old
//! or the new state, or a new beginning and an old end; of each name the old or the new state.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;

use braid_env::*;
use bytes::Bytes;

const PAGE: usize = 4096;

type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;

/// A seeded stream of numbers (splitmix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Pages that a failed sync marked clean: no later sync writes them until they change.
    forgotten: BTreeSet<usize>,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, Rc<RefCell<Inode>>>,
    durable: BTreeMap<String, Rc<RefCell<Inode>>>,
    folders: BTreeSet<String>,
    bytes_total: u64,
    fail_syncs: bool,
    /// Syncs that still end; later ones wait for ever. None: all end.
    syncs_left: Option<u64>,
}

/// The disk; clones share it.
#[derive(Clone)]
pub struct TestDisk(Rc<RefCell<State>>);

impl TestDisk {
    pub fn new() -> Self {
        let state = State { bytes_total: 1 << 40, ..State::default() };
        Self(Rc::new(RefCell::new(state)))
    }

    pub fn env(&self, seed: u64) -> Env {
        Env::new(Rc::new(TestWorld { disk: self.clone(), random: RefCell::new(Random(seed)) }))
    }

    pub fn fail_syncs(&self, fail: bool) {
        self.0.borrow_mut().fail_syncs = fail;
    }

    /// Lets only so many more syncs end, or all.
    pub fn allow_syncs(&self, count: Option<u64>) {
        self.0.borrow_mut().syncs_left = count;
    }

    async fn turn(&self) {
        tokio::task::yield_now().await;
        let may_end = match &mut self.0.borrow_mut().syncs_left {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        };
        if !may_end {
            std::future::pending::<()>().await;
        }
    }

    /// Leaves so many bytes free.
    pub fn leave_free(&self, bytes: u64) {
        let used = self.used();
        self.0.borrow_mut().bytes_total = used + bytes;
    }

    fn used(&self) -> u64 {
        self.0.borrow().names.values().map(|inode| inode.borrow().bytes.len() as u64).sum()
    }

    /// All names with their bytes, as they are now.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let state = self.0.borrow();
        state.names.iter().map(|(n, inode)| (n.clone(), inode.borrow().bytes.clone())).collect()
    }

    /// Flips one bit of a file, also on the medium.
    pub fn flip(&self, name: &str, at: usize, bit: u8) {
        let state = self.0.borrow();
        let mut inode = state.names[name].borrow_mut();
        inode.bytes[at] ^= 1 << bit;
        if at < inode.durable.len() {
            inode.durable[at] ^= 1 << bit;
        }
    }

    /// Removes a file, also from the medium.
    pub fn lose(&self, name: &str) {
        let mut state = self.0.borrow_mut();
        state.names.remove(name).unwrap();
        state.durable.remove(name);
    }

    /// A disk of its own with the same bytes, all of them durable.
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        let state = self.0.borrow();
        let mut to = copy.0.borrow_mut();
        to.folders.clone_from(&state.folders);
        for (name, inode) in &state.names {
            let bytes = inode.borrow().bytes.clone();
            let inode = Inode { durable: bytes.clone(), bytes, ..Inode::default() };
            let inode = Rc::new(RefCell::new(inode));
            to.names.insert(name.clone(), inode.clone());
            to.durable.insert(name.clone(), inode);
        }
        drop(to);
        copy
    }

    /// What is not durable is there, torn or gone, by chance.
    pub fn cut_power(&self, random: &mut Random) {
        let mut state = self.0.borrow_mut();
        let all: BTreeSet<String> =
            state.names.keys().chain(state.durable.keys()).cloned().collect();
        let mut names = BTreeMap::new();
        for name in all {
            let (new, old) = (state.names.get(&name), state.durable.get(&name));
            let kept = if random.below(2) == 0 { new } else { old };
            if let Some(inode) = kept {
                names.insert(name, inode.clone());
            }
        }
        for inode in names.values() {
            inode.borrow_mut().cut(random);
        }
        state.durable.clone_from(&names);
        state.names = names;
    }
}

impl Inode {
    fn cut(&mut self, random: &mut Random) {
        let lengths = [self.durable.len(), self.bytes.len()];
        let (short, long) = (lengths[0].min(lengths[1]), lengths[0].max(lengths[1]));
        let length = match random.below(3) {
            0 => lengths[0],
            1 => lengths[1],
            _ => short + usize::try_from(random.below((long - short) as u64 + 1)).unwrap(),
        };
        let mut found = self.durable.clone();
        found.resize(length, 0);
        for page in 0..length.div_ceil(PAGE) {
            let (from, to) = (page * PAGE, ((page + 1) * PAGE).min(length));
            if self.forgotten.contains(&page) {
                continue;
            }
            let torn = match random.below(3) {
                0 => from,
                1 => to,
                _ => (from + usize::try_from(random.below(9)).unwrap() * 512).min(to),
            };
            let new = from.min(self.bytes.len())..torn.min(self.bytes.len());
            found[from..torn].fill(0);
            found[from..from + new.len()].copy_from_slice(&self.bytes[new]);
        }
        self.bytes.clone_from(&found);
        self.durable = found;
        self.forgotten.clear();
    }

    fn sync(&mut self, snapshot: &[u8]) {
        self.durable.resize(snapshot.len(), 0);
        for page in 0..snapshot.len().div_ceil(PAGE) {
            let (from, to) = (page * PAGE, ((page + 1) * PAGE).min(snapshot.len()));
            if !self.forgotten.contains(&page) {
                self.durable[from..to].copy_from_slice(&snapshot[from..to]);
            }
        }
    }

    fn forget(&mut self) {
        for page in 0..self.bytes.len().div_ceil(PAGE) {
            let (from, to) = (page * PAGE, ((page + 1) * PAGE).min(self.bytes.len()));
            if self.durable.get(from..to) != Some(&self.bytes[from..to]) {
                self.forgotten.insert(page);
            }
        }
    }

    fn touch(&mut self, at: usize, length: usize) {
        for page in at / PAGE..(at + length).div_ceil(PAGE) {
            self.forgotten.remove(&page);
        }
    }
}

struct TestWorld {
    disk: TestDisk,
    random: RefCell<Random>,
}

impl World for TestWorld {
    fn now(&self) -> Moment {
        Moment(1)
    }

    fn wall_time(&self) -> WallTime {
        WallTime { seconds: 1_000_000, nanoseconds: 0 }
    }

    fn random(&self) -> u64 {
        self.random.borrow_mut().next()
    }

    fn connect(&self, _: Address) -> Boxed<io::Result<Connection>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn listen(&self, _: Address) -> Boxed<io::Result<Listener>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }

    fn folder(&self, _: &Path) -> io::Result<Folder> {
        Ok(Folder(Rc::new(self.disk.clone())))
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl FolderOps for TestDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<File> {
        let mut state = self.0.borrow_mut();
        let found = state.names.get(path).cloned();
        let inode = match (found, mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(inode), _) => inode,
            (None, OpenMode::Read | OpenMode::Write) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            (None, OpenMode::Create | OpenMode::CreateNew) => {
                let inode: Rc<RefCell<Inode>> = Rc::default();
                state.names.insert(path.to_owned(), inode.clone());
                inode
            }
        };
        Ok(File(Rc::new(TestFile { disk: self.clone(), inode })))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let state = self.0.borrow();
        let names = state.names.keys().filter(|name| parent(name) == path);
        Ok(names.map(|name| name.rsplit('/').next().unwrap().to_owned()).collect())
    }

    fn create_folder(&self, path: &str) -> io::Result<()> {
        self.0.borrow_mut().folders.insert(path.to_owned());
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let removed = self.0.borrow_mut().names.remove(path);
        removed.map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn length(&self, path: &str) -> io::Result<Option<u64>> {
        let state = self.0.borrow();
        Ok(state.names.get(path).map(|inode| inode.borrow().bytes.len() as u64))
    }

    fn sync_folder(&self, path: &str) -> Boxed<io::Result<()>> {
        let (disk, path) = (self.clone(), path.to_owned());
        Box::pin(async move {
            disk.turn().await;
            let mut state = disk.0.borrow_mut();
            if state.fail_syncs {
                return Err(io::Error::other("the medium failed"));
            }
            let State { names, durable, .. } = &mut *state;
            durable.retain(|name, _| parent(name) != path);
            let here = names.iter().filter(|(name, _)| parent(name) == path);
            durable.extend(here.map(|(name, inode)| (name.clone(), inode.clone())));
            Ok(())
        })
    }

    fn sync_all(&self) -> Boxed<io::Result<()>> {
        let disk = self.clone();
        Box::pin(async move {
            let snapshot: Vec<_> = {
                let state = disk.0.borrow();
                let files = state.names.iter();
                files.map(|(n, i)| (n.clone(), i.clone(), i.borrow().bytes.clone())).collect()
            };
            disk.turn().await;
            let mut state = disk.0.borrow_mut();
            if state.fail_syncs {
                state.names.values().for_each(|inode| inode.borrow_mut().forget());
                return Err(io::Error::other("the medium failed"));
            }
            state.durable.clear();
            for (name, inode, bytes) in snapshot {
                inode.borrow_mut().sync(&bytes);
                state.durable.insert(name, inode);
            }
            Ok(())
        })
    }

    fn space(&self) -> io::Result<Space> {
        let total = self.0.borrow().bytes_total;
        Ok(Space { total, free: total.saturating_sub(self.used()) })
    }

    fn take_exclusively(&self) -> io::Result<bool> {
        Ok(true)
    }
}

struct TestFile {
    disk: TestDisk,
    inode: Rc<RefCell<Inode>>,
}

impl FileOps for TestFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let inode = self.inode.borrow();
        let at = usize::try_from(at).unwrap().min(inode.bytes.len());
        let count = buffer.len().min(inode.bytes.len() - at);
        buffer[..count].copy_from_slice(&inode.bytes[at..at + count]);
        Ok(count)
    }

    fn read(&self, at: u64, length: usize) -> Boxed<io::Result<Bytes>> {
        let mut bytes = vec![0; length];
        let count = self.read_at(&mut bytes, at);
        Box::pin(async move {
            bytes.truncate(count?);
            Ok(bytes.into())
        })
    }

    fn write_at(&self, pieces: &[&[u8]], at: u64) -> io::Result<()> {
        let space = self.disk.space()?;
        let mut free = usize::try_from(space.free).unwrap();
        let mut inode = self.inode.borrow_mut();
        let mut at = usize::try_from(at).unwrap();
        for piece in pieces {
            let end = at + piece.len();
            let grows = end.saturating_sub(inode.bytes.len());
            if free < grows {
                return Err(io::ErrorKind::StorageFull.into());
            }
            free -= grows;
            if inode.bytes.len() < end {
                inode.bytes.resize(end, 0);
            }
            inode.bytes[at..end].copy_from_slice(piece);
            inode.touch(at, piece.len());
            at = end;
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.inode.borrow().bytes.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.inode.borrow_mut().bytes.resize(usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn punch(&self, at: u64, length: u64) -> io::Result<()> {
        let mut inode = self.inode.borrow_mut();
        let (at, length) = (usize::try_from(at).unwrap(), usize::try_from(length).unwrap());
        let end = (at + length).min(inode.bytes.len());
        if at < end {
            inode.bytes[at..end].fill(0);
            inode.touch(at, end - at);
        }
        Ok(())
    }

    fn sync_data(&self) -> Boxed<io::Result<()>> {
        let (disk, inode) = (self.disk.clone(), self.inode.clone());
        let snapshot = inode.borrow().bytes.clone();
        Box::pin(async move {
            disk.turn().await;
            if disk.0.borrow().fail_syncs {
                inode.borrow_mut().forget();
                return Err(io::Error::other("the medium failed"));
            }
            inode.borrow_mut().sync(&snapshot);
            Ok(())
        })
    }

    fn start_writeback(&self, _: u64, _: u64) {}
}
