//! Ring 2: the client library over real LCs and I/O servers in the simulated world.
#![allow(clippy::unwrap_used)]

#[path = "../../local-controller/tests/common/mod.rs"]
mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use braid_client::{
    AttributeChanges, Client, ClientOptions, ClusterFile, EntryAttributes, Error, FileData,
    FileKind, PutOptions, RenameOptions, ServerEntry,
};
use braid_env::simulated::{SimProcess, Simulation, run};
use braid_terms::ServerId;
use bytes::Bytes;
use common::{CLUSTER, Cluster};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

/// Six I/O servers, two LCs as processes, and a client.
struct World {
    cluster: Cluster,
    lcs: RefCell<Vec<SimProcess>>,
}

const SERVERS: u32 = 6;

impl World {
    async fn start(simulation: &Simulation) -> (Self, Client) {
        let cluster = Cluster::start(simulation, SERVERS, "rs/4+2").await;
        let lcs = RefCell::new((1..=2).map(|which| cluster.start_lc_process(which)).collect());
        let world = Self { cluster, lcs };
        let client = world.client().await;
        (world, client)
    }

    async fn client(&self) -> Client {
        let servers = (1..=2).map(|which| ServerEntry {
            id: ServerId(SERVERS + which),
            lc: self.cluster.lc_address(which),
            coordinator: self.cluster.coordinator_address(),
            main: self.cluster.lc_address(which),
        });
        let file =
            ClusterFile { cluster: CLUSTER, name: "test".into(), servers: servers.collect() };
        let env = self.cluster.simulation.machine(90).env();
        let options = ClientOptions { deadline: Duration::from_secs(20), ..Default::default() };
        Client::connect_with(env, &file, options).await.unwrap()
    }

    fn restart_lc(&self, which: u32) {
        let place = which as usize - 1;
        self.lcs.borrow()[place].kill();
        self.lcs.borrow_mut()[place] = self.cluster.start_lc_process(which);
    }

    /// All machines lose what was not synced; a client of after that.
    async fn power_cut_of_all(&self) -> Client {
        (1..=SERVERS).for_each(|number| self.cluster.power_cut(number));
        for which in [1, 2] {
            self.lcs.borrow()[which - 1].kill();
        }
        sleep(Duration::from_secs(1)).await;
        (1..=SERVERS).for_each(|number| self.cluster.power_on(number));
        for which in [1, 2] {
            self.lcs.borrow_mut()[which as usize - 1] = self.cluster.start_lc_process(which);
        }
        self.client().await
    }
}

fn directory() -> EntryAttributes {
    EntryAttributes { mode: 0o755, ..EntryAttributes::default() }
}

fn replace() -> PutOptions {
    PutOptions { replace: true, ..PutOptions::default() }
}

fn pattern(size: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

/// Equal, without printing them.
#[track_caller]
fn same(found: &[u8], expect: &[u8], what: impl std::fmt::Debug) {
    assert_eq!(found.len(), expect.len(), "{what:?}");
    let wrong = (0..found.len()).find(|at| found[*at] != expect[*at]);
    assert_eq!(wrong, None, "{what:?}: the first wrong byte");
}

async fn names(client: &Client, path: &str) -> Vec<String> {
    let mut names: Vec<_> = client
        .list(path, false)
        .await
        .unwrap()
        .all()
        .await
        .unwrap()
        .into_iter()
        .map(|entry| String::from_utf8(entry.name.to_vec()).unwrap())
        .collect();
    names.sort();
    names
}

async fn names_and_kinds(client: &Client) {
    let c = client;
    c.mkdir("/a", &directory()).await.unwrap();
    c.mkdir_all("/a/b/c", &directory()).await.unwrap();
    c.mkdir_all("/a/b/c", &directory()).await.unwrap();
    assert!(matches!(c.mkdir("/a", &directory()).await, Err(Error::Exists { .. })));
    assert!(matches!(c.mkdir("/x/y", &directory()).await, Err(Error::NotFound { .. })));
    c.put_bytes("/a/file", Bytes::from_static(b"hello"), PutOptions::default()).await.unwrap();
    assert_eq!(&c.get_bytes("/a/file").await.unwrap()[..], b"hello");
    assert_eq!(&c.get_bytes("/a/b/../file").await.unwrap()[..], b"hello");
    for bad in ["/a/file/", "/a/file/x", "/a/file/..", "/a/file/."] {
        assert!(matches!(c.stat(bad).await, Err(Error::NotDirectory { .. })), "{bad}");
    }
    assert!(matches!(c.open("/a").await, Err(Error::IsDirectory { .. })));
    assert!(matches!(c.rmdir("/a").await, Err(Error::NotEmpty { .. })));
    assert!(matches!(c.unlink("/a/b").await, Err(Error::IsDirectory { .. })));
    assert!(matches!(c.rmdir("/a/file").await, Err(Error::NotDirectory { .. })));
    assert_eq!(c.stat("/a").await.unwrap().attributes.nlink, 3);
    assert_eq!(c.stat("/").await.unwrap().attributes.nlink, 3);
    assert_eq!(names(c, "/a").await, ["b", "file"]);

    c.symlink(b"/a/b", "/a/link", &directory()).await.unwrap();
    c.symlink(b"../../file", "/a/b/c/up", &directory()).await.unwrap();
    c.symlink(b"loop", "/a/loop", &directory()).await.unwrap();
    assert_eq!(&c.get_bytes("/a/link/c/up").await.unwrap()[..], b"hello");
    assert_eq!(&c.readlink("/a/link").await.unwrap()[..], b"/a/b");
    assert_eq!(c.lookup("/a/link").await.unwrap().kind(), FileKind::Symlink);
    assert_eq!(c.lookup("/a/link/").await.unwrap().kind(), FileKind::Directory);
    assert!(matches!(c.stat("/a/loop").await, Err(Error::SymlinkLoop { .. })));

    let changes = AttributeChanges { mode: Some(0o600), uid: Some(7), ..Default::default() };
    let node = c.set_attributes("/a/file", changes).await.unwrap();
    assert_eq!((node.attributes.mode, node.attributes.uid), (0o600, 7));
    c.set_xattr("/a/file", b"user.k", b"v").await.unwrap();
    assert_eq!(c.stat("/a/file").await.unwrap().attributes.xattrs.len(), 1);
    c.remove_xattr("/a/file", b"user.k").await.unwrap();
    let gone = c.remove_xattr("/a/file", b"user.k").await;
    assert!(matches!(gone, Err(Error::NoAttribute { .. })), "{gone:?}");
    assert_eq!(c.remove_tree("/a").await.unwrap(), 7);
    assert!(names(c, "/").await.is_empty());
}

#[test] // Proves: DESIGN 8, 9.
fn names_links_and_attributes() {
    run(1, async |simulation| {
        let (_world, client) = World::start(&simulation).await;
        names_and_kinds(&client).await;
    });
}

#[test] // Proves: W-7 (within a directory; across, in the order documented).
fn renames_and_hard_links() {
    run(2, async |simulation| {
        let (_world, c) = World::start(&simulation).await;
        for path in ["/one", "/two", "/one/sub", "/two/empty", "/two/full"] {
            c.mkdir(path, &directory()).await.unwrap();
        }
        c.put_bytes("/one/f", pattern(10_000, 1), PutOptions::default()).await.unwrap();
        c.put_bytes("/two/full/x", Bytes::new(), PutOptions::default()).await.unwrap();
        let plain = RenameOptions::default();
        let id = c.stat("/one/f").await.unwrap().id();

        c.rename("/one/f", "/one/g", plain).await.unwrap();
        c.rename("/one/g", "/two/h", plain).await.unwrap();
        assert_eq!(c.stat("/two/h").await.unwrap().id(), id);
        same(&c.get_bytes("/two/h").await.unwrap(), &pattern(10_000, 1), "/two/h");
        assert_eq!(names(&c, "/one").await, ["sub"]);
        c.link("/two/h", "/one/again").await.unwrap();
        c.link("/two/h", "/two/third").await.unwrap();
        assert_eq!(c.stat("/one/again").await.unwrap().attributes.nlink, 3);
        c.unlink("/two/h").await.unwrap();
        c.rename("/one/again", "/one/back", plain).await.unwrap();
        assert_eq!(c.stat("/two/third").await.unwrap().attributes.nlink, 2);
        // The file's home is /one: it goes, and the file stays.
        let into_itself = c.rename("/one", "/one/sub/deep", plain).await;
        assert!(matches!(into_itself, Err(Error::Invalid { .. })), "{into_itself:?}");
        let no_replace = RenameOptions { no_replace: true, ..plain };
        let taken = c.rename("/two/third", "/one/back", no_replace).await;
        assert!(matches!(taken, Err(Error::Exists { .. })));
        c.unlink("/one/back").await.unwrap();

        c.rename("/one/sub", "/two/empty", plain).await.unwrap();
        let full = c.rename("/one", "/two/full", plain).await;
        assert!(matches!(full, Err(Error::NotEmpty { .. })), "{full:?}");
        assert_eq!(
            c.directory("/two/empty/..").await.unwrap().id(),
            c.stat("/two").await.unwrap().id()
        );
        c.rename("/two/full", "/two/empty", plain).await.unwrap();
        assert_eq!(names(&c, "/two").await, ["empty", "third"]);
        assert_eq!(names(&c, "/two/empty").await, ["x"]);
        c.rmdir("/one").await.unwrap();
        same(&c.get_bytes("/two/third").await.unwrap(), &pattern(10_000, 1), "/two/third");
        let exchange = RenameOptions { exchange: true, ..plain };
        c.rename("/two/third", "/two/empty", exchange).await.unwrap();
        assert_eq!(names(&c, "/two/third").await, ["x"]);
        assert_eq!(c.remove_tree("/two").await.unwrap(), 4);
    });
}

#[test] // Proves: F-9, G-7, N-2.
fn files_of_all_sizes_grow_shrink_and_go() {
    run(3, async |simulation| {
        let (world, c) = World::start(&simulation).await;
        for (number, size) in [0, 1, 4096, 4097, 65_536, 262_144, 300_001, 4 << 20, (9 << 20) + 5]
            .into_iter()
            .enumerate()
        {
            let path = format!("/f{number}");
            let bytes = pattern(size, number as u64);
            let mut writer = c.put(&path, PutOptions::default()).await.unwrap();
            for piece in bytes.chunks(100_000) {
                writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            assert!(matches!(c.stat(&path).await, Err(Error::NotFound { .. })));
            let node = writer.finish().await.unwrap();
            assert_eq!(node.attributes.size, size as u64);
            let inline = matches!(node.attributes.data, FileData::None | FileData::Inline(_));
            assert_eq!(inline, size <= 4096);
            same(&c.get_bytes(&path).await.unwrap(), &bytes, &path);
        }
        let taken = c.put_bytes("/f1", pattern(5, 9), PutOptions::default()).await;
        assert!(matches!(taken, Err(Error::Exists { .. })));
        c.put_bytes("/f8", pattern(50_000, 77), replace()).await.unwrap();
        same(&c.get_bytes("/f8").await.unwrap(), &pattern(50_000, 77), "/f8");

        // In place: small to large, holes, cuts.
        let mut model = vec![0; 0];
        let file = c.open("/f0").await.unwrap();
        for (at, size) in
            [(0, 10), (100, 50), (3000, 1096), (9000, 20_000), (400_000, 7), (5, 70_000)]
        {
            let bytes = pattern(size, at as u64);
            model.resize(model.len().max(at + size), 0);
            model[at..at + size].copy_from_slice(&bytes);
            file.write(at as u64, bytes).await.unwrap();
            assert_eq!(file.size().await.unwrap(), model.len() as u64);
            same(&c.get_bytes("/f0").await.unwrap(), &model, "/f0");
        }
        assert_eq!(file.append(Bytes::from_static(b"end")).await.unwrap(), 400_007);
        model.extend_from_slice(b"end");
        file.flush().await.unwrap();
        assert_eq!(c.lookup("/f0").await.unwrap().attributes.writers, 0);
        for size in [400_000, 10, 123_456, 0, 5000] {
            file.truncate(size).await.unwrap();
            model.resize(size as usize, 0);
            same(&c.get_bytes("/f0").await.unwrap(), &model, "/f0");
        }
        file.write(0, pattern(300_000, 5)).await.unwrap();
        file.punch(4096, 280_000).await.unwrap();
        let mut model = pattern(300_000, 5).to_vec();
        model[4096..284_096].fill(0);
        same(&c.get_bytes("/f0").await.unwrap(), &model, "/f0");
        file.sync().await.unwrap();
        c.copy("/f0", "/copy", false).await.unwrap();
        same(&c.get_bytes("/copy").await.unwrap(), &model, "/copy");

        // Another client sees the same.
        let other = world.client().await;
        same(&other.get_bytes("/f0").await.unwrap(), &model, "/f0");
        assert_eq!(names(&other, "/").await.len(), 10);
        for name in names(&other, "/").await {
            other.unlink(format!("/{name}")).await.unwrap();
        }
        assert!(names(&c, "/").await.is_empty());
        // Who has it open may finish; then it is gone, and says so.
        sleep(Duration::from_secs(15)).await;
        assert!(matches!(file.read(0, 10).await, Err(Error::NotFound { .. })));
    });
}

#[test] // Proves: N-2: two writers of one file; the size is the device's whenever it is asked for.
fn sizes_are_right_with_two_writers() {
    run(11, async |simulation| {
        let (world, c) = World::start(&simulation).await;
        let other = world.client().await;
        c.put_bytes("/f", pattern(20_000, 1), PutOptions::default()).await.unwrap();
        let ours = c.open("/f").await.unwrap();
        let theirs = other.open("/f").await.unwrap();
        ours.write(30_000, pattern(10, 2)).await.unwrap();
        theirs.write(40_000, pattern(10, 3)).await.unwrap();
        ours.flush().await.unwrap();
        theirs.write(50_000, pattern(10, 4)).await.unwrap();
        assert_eq!(c.stat("/f").await.unwrap().attributes.size, 50_010, "they are still at it");
        ours.truncate(100).await.unwrap();
        assert_eq!(other.stat("/f").await.unwrap().attributes.size, 100);
        theirs.flush().await.unwrap();
        let node = c.lookup("/f").await.unwrap();
        assert_eq!((node.attributes.size, node.attributes.writers), (100, 0));
        // At once, over and over: in the end the record says what the device has.
        for round in 0..20 {
            let (cut, write) = futures_util::future::join(
                ours.truncate(1000 + round),
                theirs.write(60_000, pattern(10, 5)),
            )
            .await;
            cut.and(write).unwrap();
            theirs.flush().await.unwrap();
            let node = c.lookup("/f").await.unwrap();
            let length = c.get_bytes("/f").await.unwrap().len() as u64;
            assert_eq!((node.attributes.size, node.attributes.writers), (length, 0));
            assert!([1000 + round, 60_010].contains(&length), "{length}");
        }
    });
}

#[test] // Proves: DESIGN 13: many small files share cluster writes, and ask no coordinator.
fn many_creates_at_once_share_writes() {
    run(4, async |simulation| {
        let (world, c) = World::start(&simulation).await;
        let directory = c.mkdir("/d", &directory()).await.unwrap();
        c.put_bytes("/d/first", pattern(10, 1), PutOptions::default()).await.unwrap();
        let status = |statuses: Vec<(_, braid_wire::lcc::LccStatus)>| {
            let writes: u64 = statuses.iter().map(|(_, status)| status.writes).sum();
            let calls: u64 = statuses.iter().map(|(_, status)| status.coordinator_calls).sum();
            (writes, calls)
        };
        let before = status(c.lcc_statuses().await);
        let puts = (0..256).map(|number| {
            let directory = directory.clone();
            async move {
                let name = format!("f{number}");
                let mut writer =
                    directory.put(name.as_bytes(), PutOptions::default()).await.unwrap();
                writer.write(pattern(100 + number, number as u64)).await.unwrap();
                writer.finish().await.unwrap();
            }
        });
        join_all(puts).await;
        let after = status(c.lcc_statuses().await);
        assert!(after.0 - before.0 <= 8, "{} cluster writes for 256 files", after.0 - before.0);
        assert_eq!(after.1, before.1, "coordinators were asked");
        assert_eq!(names(&c, "/d").await.len(), 257);
        same(&c.get_bytes("/d/f200").await.unwrap(), &pattern(300, 200), "/d/f200");
        drop(world);
    });
}

#[test] // Proves: N-4, F-9. What is removed gives its place back.
fn removed_devices_go_away() {
    run(5, async |simulation| {
        let (_world, c) = World::start(&simulation).await;
        let node = c.put_bytes("/f", pattern(100_000, 1), PutOptions::default()).await.unwrap();
        let FileData::Device(device) = node.attributes.data else { panic!("it is large") };
        let directory = c.mkdir("/d", &directory()).await.unwrap();
        let layout = directory.layout().clone();
        // A writer that gives up.
        let mut writer = c.put("/never", PutOptions::default()).await.unwrap();
        writer.write(pattern(50_000, 3)).await.unwrap();
        drop(writer);
        c.unlink("/f").await.unwrap();
        c.rmdir("/d").await.unwrap();
        sleep(Duration::from_secs(15)).await;
        for layout in [device, layout] {
            let found = c.describe_group(&layout).await;
            assert!(matches!(found, Err(Error::NotFound { .. })), "{found:?}");
        }
        let made = directory.make_directory(b"x", &directory_attributes()).await;
        assert!(matches!(made, Err(Error::NotFound { .. })));
    });
}

fn directory_attributes() -> EntryAttributes {
    directory()
}

#[test] // Proves: O-5, W-6, L2 of wire::lcc. A killed owner loses nothing and costs seconds.
fn owners_die_under_load_and_nothing_answered_is_lost() {
    for seed in 10..14 {
        run(seed, async |simulation| {
            let (world, c) = World::start(&simulation).await;
            let directory = c.mkdir("/d", &directory()).await.unwrap();
            let done = RefCell::new(BTreeMap::new());
            let longest = RefCell::new(Duration::ZERO);
            let put = |number: u64| {
                let (directory, done, longest) = (directory.clone(), &done, &longest);
                async move {
                    for round in 0..6 {
                        let begun = Instant::now();
                        let name = format!("f{number}-{round}");
                        let size = [100, 30_000, 3000, 600_000][(number + round) as usize % 4];
                        let bytes = pattern(size, number * 100 + round);
                        let mut writer =
                            directory.put(name.as_bytes(), PutOptions::default()).await.unwrap();
                        writer.write(bytes.clone()).await.unwrap();
                        writer.finish().await.unwrap();
                        done.borrow_mut().insert(name, bytes);
                        let took = begun.elapsed();
                        longest.replace_with(|longest| took.max(*longest));
                        sleep(Duration::from_millis(100 + 13 * number)).await;
                    }
                }
            };
            let killer = async {
                for which in [1, 2, 1, 2] {
                    let pause = simulation.random_below(300);
                    sleep(Duration::from_millis(150 + pause)).await;
                    world.restart_lc(which);
                }
            };
            tokio::join!(join_all((0..12).map(put)), killer);
            assert!(*longest.borrow() < Duration::from_secs(8), "{:?}", longest.borrow());
            let fresh = world.client().await;
            let listed = names(&fresh, "/d").await;
            let expect: Vec<_> = done.borrow().keys().cloned().collect();
            assert_eq!(listed, expect);
            for (name, bytes) in &done.take() {
                same(&fresh.get_bytes(format!("/d/{name}")).await.unwrap(), bytes, name);
            }
        });
    }
}

#[test] // Proves: W-3, F-2. Two servers of six are gone: reading and writing go on.
fn files_live_with_two_servers_away() {
    run(20, async |simulation| {
        let (world, c) = World::start(&simulation).await;
        c.put_bytes("/before", pattern(700_000, 1), PutOptions::default()).await.unwrap();
        world.cluster.power_cut(2);
        world.cluster.power_cut(5);
        same(&c.get_bytes("/before").await.unwrap(), &pattern(700_000, 1), "/before");
        sleep(Duration::from_secs(5)).await;
        c.put_bytes("/after", pattern(700_000, 2), PutOptions::default()).await.unwrap();
        c.mkdir("/d", &directory()).await.unwrap();
        same(&c.get_bytes("/after").await.unwrap(), &pattern(700_000, 2), "/after");
        assert_eq!(names(&c, "/").await, ["after", "before", "d"]);
        world.restart_lc(1);
        world.restart_lc(2);
        same(&c.get_bytes("/before").await.unwrap(), &pattern(700_000, 1), "/before");
        same(&c.get_bytes("/after").await.unwrap(), &pattern(700_000, 2), "/after");
    });
}

#[test] // Proves: W-9, W-10, S-4. What was synced survives a power cut of all servers.
fn what_was_synced_survives_a_power_cut_of_all() {
    for seed in 30..34 {
        run(seed, async |simulation| {
            let (world, c) = World::start(&simulation).await;
            c.mkdir_all("/a/b", &directory()).await.unwrap();
            c.sync("/a").await.unwrap();
            c.sync("/a/b").await.unwrap();
            let stable = PutOptions { stable: true, ..PutOptions::default() };
            for (number, size) in [100, 10_000, 800_000].into_iter().enumerate() {
                let path = format!("/a/b/f{number}");
                c.put_bytes(&path, pattern(size, size as u64), stable.clone()).await.unwrap();
            }
            let file = c.open("/a/b/f1").await.unwrap();
            file.write(9_000, pattern(5_000, 7)).await.unwrap();
            file.sync().await.unwrap();
            // Not synced: may be there or not, whole.
            c.put_bytes("/a/b/held", pattern(3_000, 3), PutOptions::default()).await.unwrap();
            let c = world.power_cut_of_all().await;
            for (number, size) in [(0, 100), (2, 800_000)] {
                let found = c.get_bytes(format!("/a/b/f{number}")).await.unwrap();
                same(&found, &pattern(size, size as u64), number);
            }
            let mut expect = pattern(10_000, 10_000)[..9_000].to_vec();
            expect.extend_from_slice(&pattern(5_000, 7));
            same(&c.get_bytes("/a/b/f1").await.unwrap(), &expect, "f1");
            match c.get_bytes("/a/b/held").await {
                Ok(found) => same(&found, &pattern(3_000, 3), "held"),
                Err(error) => assert!(matches!(error, Error::NotFound { .. }), "{error:?}"),
            }
            c.put_bytes("/a/b/new", pattern(9_000, 1), PutOptions::default()).await.unwrap();
        });
    }
}

/// A directory's name was synced, the directory itself was not: it begins anew, and can be used.
#[test] // Proves: W-10, N-4.
fn a_directory_of_which_a_power_cut_left_the_name_begins_anew() {
    for seed in 40..44 {
        run(seed, async |simulation| {
            let (world, c) = World::start(&simulation).await;
            c.mkdir("/d", &directory()).await.unwrap();
            c.root().sync().await.unwrap();
            let c = world.power_cut_of_all().await;
            assert!(c.lookup("/d").await.unwrap().is_directory());
            assert_eq!(names(&c, "/d").await, Vec::<String>::new());
            c.put_bytes("/d/f", pattern(100, 1), PutOptions::default()).await.unwrap();
            assert_eq!(names(&c, "/d").await, ["f"]);
        });
    }
}

/// Synced bytes move from the record to a device of their own. The record that says so is on the disks,
/// so they must be, too.
#[test] // Proves: W-9, W-10, G-7.
fn synced_bytes_that_outgrow_the_record_survive_a_power_cut() {
    for seed in 50..54 {
        run(seed, async |simulation| {
            let (world, c) = World::start(&simulation).await;
            let stable = PutOptions { stable: true, ..PutOptions::default() };
            c.put_bytes("/f", pattern(3000, 1), stable).await.unwrap();
            let file = c.open("/f").await.unwrap();
            file.write(9000, pattern(500, 2)).await.unwrap();
            file.flush().await.unwrap();
            c.root().sync().await.unwrap();
            let c = world.power_cut_of_all().await;
            let found = c.get_bytes("/f").await.unwrap();
            same(&found[..3000], &pattern(3000, 1), "what was synced");
        });
    }
}
