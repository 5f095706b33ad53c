//! Ring 2: random operations against a plain model, while owners and I/O servers die.
#![allow(clippy::unwrap_used)]

#[path = "../../local-controller/tests/common/mod.rs"]
mod common;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use braid_client::{
    Client, ClientOptions, ClusterFile, EntryAttributes, Error, FileKind, PutOptions,
    RenameOptions, ServerEntry,
};
use braid_env::simulated::{SimProcess, Simulation, run};
use braid_terms::ServerId;
use bytes::Bytes;
use common::{CLUSTER, Cluster};
use futures_util::future::{Either, select};
use tokio::time::sleep;

const SERVERS: u32 = 6;

/// The store in the plainest way.
#[derive(Default)]
struct Model {
    /// Path to what is there; the root is not in it.
    paths: BTreeMap<String, Object>,
    /// Bytes of files by number.
    files: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Object {
    Directory,
    File(u64),
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').unwrap().0
}

impl Model {
    fn has_parent(&self, path: &str) -> bool {
        let parent = parent(path);
        parent.is_empty() || self.paths.get(parent) == Some(&Object::Directory)
    }

    fn is_empty(&self, path: &str) -> bool {
        !self.paths.keys().any(|other| other.starts_with(&format!("{path}/")))
    }

    fn file(&self, path: &str) -> Option<u64> {
        match self.paths.get(path) {
            Some(Object::File(file)) => Some(*file),
            _ => None,
        }
    }

    fn may_rename(&self, from: &str, to: &str) -> bool {
        let Some(source) = self.paths.get(from) else { return false };
        if !self.has_parent(to) || to.starts_with(&format!("{from}/")) {
            return false;
        }
        match (source, self.paths.get(to)) {
            _ if from == to => true,
            (_, None) => true,
            (Object::File(_), Some(target)) => *target != Object::Directory,
            (Object::Directory, Some(Object::Directory)) => self.is_empty(to),
            (Object::Directory, Some(Object::File(_))) => false,
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        if from == to || self.file(from).is_some() && self.paths.get(from) == self.paths.get(to) {
            return;
        }
        let inside = format!("{from}/");
        let moved: Vec<_> = self
            .paths
            .keys()
            .filter(|path| *path == from || path.starts_with(&inside))
            .cloned()
            .collect();
        for path in moved {
            let object = self.paths.remove(&path).unwrap();
            self.paths.insert(format!("{to}{}", &path[from.len()..]), object);
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        (0..depth).map(|_| format!("/n{}", self.below(3))).collect()
    }

    fn bytes(&mut self) -> Bytes {
        let size = [0, 10, 3000, 5000, 70_000, 300_000][self.below(6) as usize];
        let salt = self.below(256);
        (0..size).map(|at: u64| (at.wrapping_mul(31) ^ at >> 8 ^ salt) as u8).collect()
    }
}

async fn connect(cluster: &Cluster) -> Client {
    let servers = (1..=2).map(|which| ServerEntry {
        id: ServerId(SERVERS + which),
        lc: cluster.lc_address(which),
        coordinator: cluster.coordinator_address(),
        main: cluster.lc_address(which),
    });
    let file = ClusterFile { cluster: CLUSTER, name: "m".into(), servers: servers.collect() };
    let env = cluster.simulation.machine(90).env();
    let options = ClientOptions { deadline: Duration::from_secs(60), ..Default::default() };
    Client::connect_with(env, &file, options).await.unwrap()
}

/// One random operation at the store and at the model: both do it or both refuse it.
async fn step(c: &Client, model: &mut Model, random: &mut Random) {
    let (one, other) = (random.path(), random.path());
    let directory = EntryAttributes { mode: 0o755, ..EntryAttributes::default() };
    let (what, may, done) = match random.below(8) {
        0 => {
            let may = model.has_parent(&one) && !model.paths.contains_key(&one);
            let done = c.mkdir(&one, &directory).await.map(|_| ());
            if may {
                model.paths.insert(one.clone(), Object::Directory);
            }
            ("mkdir", may, done)
        }
        1 | 2 => {
            let replace = random.below(2) == 0;
            let bytes = random.bytes();
            let old = model.paths.get(&one);
            let free = old.is_none() || replace && old != Some(&Object::Directory);
            let may = model.has_parent(&one) && free;
            let options = PutOptions { replace, ..PutOptions::default() };
            let done = c.put_bytes(&one, bytes.clone(), options).await.map(|_| ());
            if may {
                model.next += 1;
                model.paths.insert(one.clone(), Object::File(model.next));
                model.files.insert(model.next, bytes.to_vec());
            }
            ("put", may, done)
        }
        3 => {
            let may = model.file(&one).is_some();
            let done = c.unlink(&one).await;
            if may {
                model.paths.remove(&one);
            }
            ("unlink", may, done)
        }
        4 => {
            let may = model.paths.get(&one) == Some(&Object::Directory) && model.is_empty(&one);
            let done = c.rmdir(&one).await;
            if may {
                model.paths.remove(&one);
            }
            ("rmdir", may, done)
        }
        5 => {
            let may = model.may_rename(&one, &other);
            let done = c.rename(&one, &other, RenameOptions::default()).await;
            if may {
                model.rename(&one, &other);
            }
            ("rename", may, done)
        }
        6 => {
            let source = model.file(&one);
            let may =
                source.is_some() && model.has_parent(&other) && !model.paths.contains_key(&other);
            let done = c.link(&one, &other).await;
            if may {
                model.paths.insert(other.clone(), Object::File(source.unwrap()));
            }
            ("link", may, done)
        }
        _ => {
            let file = model.file(&one);
            let (at, bytes) = (random.below(200_000), random.bytes());
            let cut = random.below(3) == 0;
            let done = change(c, &one, cut, at, bytes.clone()).await;
            if let Some(file) = file {
                let content = model.files.get_mut(&file).unwrap();
                let end = at as usize + bytes.len();
                if cut {
                    content.resize(at as usize, 0);
                } else if !bytes.is_empty() {
                    content.resize(content.len().max(end), 0);
                    content[at as usize..end].copy_from_slice(&bytes);
                }
            }
            ("change", file.is_some(), done)
        }
    };
    assert_eq!(done.is_ok(), may, "{what} {one} {other}: {done:?}");
    assert!(!matches!(done, Err(Error::Unavailable { .. } | Error::Protocol { .. })), "{done:?}");
}

async fn change(c: &Client, path: &str, cut: bool, at: u64, bytes: Bytes) -> Result<(), Error> {
    let file = c.open(path).await?;
    if cut {
        return file.truncate(at).await;
    }
    file.write(at, bytes).await?;
    file.flush().await
}

/// All of the store is as the model says.
async fn check(c: &Client, model: &Model) {
    let mut left = vec![String::new()];
    let mut found = BTreeMap::new();
    while let Some(path) = left.pop() {
        let shown = if path.is_empty() { "/" } else { &path };
        for entry in c.list(shown, false).await.unwrap().all().await.unwrap() {
            let below = format!("{path}/{}", str::from_utf8(&entry.name).unwrap());
            found.insert(below.clone(), entry.kind == FileKind::Directory);
            if entry.kind == FileKind::Directory {
                left.push(below);
            }
        }
    }
    let expect: BTreeMap<_, _> = model
        .paths
        .iter()
        .map(|(path, object)| (path.clone(), *object == Object::Directory))
        .collect();
    assert_eq!(found, expect);
    for path in model.paths.keys() {
        let Some(file) = model.file(path) else { continue };
        let content = &model.files[&file];
        let node = c.stat(path).await.unwrap();
        assert_eq!(node.attributes.size, content.len() as u64, "{path}");
        let names = model.paths.values().filter(|other| **other == Object::File(file)).count();
        assert_eq!(node.attributes.nlink as usize, names, "names of {path}");
        let bytes = c.get_bytes(path).await.unwrap();
        assert_eq!(bytes.len(), content.len(), "{path}");
        let wrong = (0..bytes.len()).find(|at| bytes[*at] != content[*at]);
        assert_eq!(wrong, None, "{path}: the first wrong byte");
    }
}

struct Harm {
    lcs: bool,
    io: bool,
}

fn try_seed(seed: u64, steps: u64, harm: &Harm) {
    run(seed, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, SERVERS, "rs/4+2").await;
        let lcs: RefCell<Vec<SimProcess>> =
            RefCell::new((1..=2).map(|which| cluster.start_lc_process(which)).collect());
        let client = connect(&cluster).await;
        let model = RefCell::new(Model::default());
        let over = Cell::new(false);
        let work = async {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let mut own = model.take();
            for _ in 0..steps {
                step(&client, &mut own, &mut random).await;
                sleep(Duration::from_millis(random.below(60))).await;
            }
            model.replace(own);
            over.set(true);
        };
        let killer = async {
            while !over.get() {
                sleep(Duration::from_millis(300 + simulation.random_below(1500))).await;
                if harm.lcs {
                    let place = simulation.random_below(2) as usize;
                    lcs.borrow()[place].kill();
                    let new = cluster.start_lc_process(place as u32 + 1);
                    lcs.borrow_mut()[place] = new;
                }
                if harm.io {
                    let number = 1 + simulation.random_below(u64::from(SERVERS)) as u32;
                    cluster.kill_io(number);
                    sleep(Duration::from_millis(simulation.random_below(2500))).await;
                    cluster.start_io(number);
                }
            }
        };
        match select(Box::pin(work), Box::pin(killer)).await {
            Either::Left(_) | Either::Right(_) => {}
        }
        let model = model.take();
        check(&client, &model).await;
        let fresh = connect(&cluster).await;
        check(&fresh, &model).await;
    });
}

#[test] // Proves: DESIGN 8.
fn random_operations_are_those_of_the_model() {
    for seed in 100..106 {
        try_seed(seed, 150, &Harm { lcs: false, io: false });
    }
}

#[test] // Proves: O-5, W-6, L2 of wire::lcc.
fn they_are_so_while_owners_die() {
    for seed in 200..206 {
        try_seed(seed, 150, &Harm { lcs: true, io: false });
    }
}

#[test] // Proves: W-3, F-2, F-4.
fn they_are_so_while_io_servers_and_owners_die() {
    for seed in 300..306 {
        try_seed(seed, 150, &Harm { lcs: true, io: true });
    }
}
