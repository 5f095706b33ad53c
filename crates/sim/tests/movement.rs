//! Ring 2: ownership that moves, and mounts as owners (O-6). `docs/simulator.md` lists them.
//!
//! X is the old owner, N the next one. With `raid5/2+1` on servers 1, 2 and 3, block b is in D1 at
//! server 1 where b is even, in D2 at server 2 where it is odd; the parity P is at server 3.

#[path = "common/found.rs"]
mod found;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use braid_client::{Client, EntryAttributes, PutOptions};
use braid_env::simulated::SimProcess;
use braid_sim::scripted::{Failed, Message, Script, Seen, block};
use braid_terms::{DeviceId, GroupLayout};
use braid_wire::coordinator::CoordinatorRequest;
use braid_wire::io::IoReply;
use braid_wire::lcc::LccRefusal;
use bytes::Bytes;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

fn blocks(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| block(*byte)).collect()
}

fn is_promise(seen: &Seen, from: u32, to: u32) -> bool {
    let promise = matches!(&seen.message, Message::FromIo(Ok(IoReply::Promised { .. })));
    promise && (seen.from, seen.to) == (from, to)
}

fn is_release(seen: &Seen, from: u32) -> bool {
    let is_it = matches!(
        &seen.message,
        Message::ToCoordinator(
            CoordinatorRequest::Release { .. } | CoordinatorRequest::GiveUpNumbers { .. }
        )
    );
    is_it && seen.from == from
}

/// A device on servers 1, 2 and 3 that X made at server 4, with one block for each byte.
async fn device_of_x(script: &Script, bytes: &[u8]) -> GroupLayout {
    let device = script.device(&[1, 2, 3]);
    script.write_at_last(4, &device, 0, &blocks(bytes)).await;
    script.stable_everywhere(4, &device).await;
    device
}

async fn pass(script: &Script, time: Duration) {
    let end = script.simulation.elapsed() + time;
    script.until("time passes", async |script| end <= script.simulation.elapsed()).await;
}

/// N's client alone uses the device for so long, four times a second.
async fn use_alone(script: &Script, n: &Script, device: &GroupLayout, time: Duration) {
    let end = script.simulation.elapsed() + time;
    while script.simulation.elapsed() < end {
        n.read(4, device, 2 * BLOCK, 4096).await.expect("X serves");
        pass(script, Duration::from_millis(250)).await;
    }
}

const BLOCK: u64 = 4096;
const SLOW: Duration = Duration::from_secs(3);

/// O-6: an owner gives up a group with a write that is not decided.
///
/// 1. A client in the process of server 5's LCC alone uses X's device for three seconds.
/// 2. A write of it has no promise of P yet when the device is to move. What comes now waits.
/// 3. X must not tell the global controller before the write is decided.
/// 4. The write is answered; who waited hears of N; N has the write.
#[test] // Proves: O-6.
fn an_undecided_write_is_never_given_up() {
    Script::run(60, 5, "raid5/2+1", async |script| {
        let device = device_of_x(&script, &[1, 2, 3, 4]).await;
        let n = script.in_process_of(5);
        let released = script.note(|seen| is_release(seen, 4));
        use_alone(&script, &n, &device, Duration::from_millis(2600)).await;
        let held = script.hold(|seen| is_promise(seen, 3, 4));
        let writing = n.begin_write(4, &device, 0, block(9));
        held.reached(1).await;
        pass(&script, Duration::from_millis(500)).await;
        n.read(4, &device, 2 * BLOCK, 4096).await.expect("a row without a write");
        let (asking, of) = (n.clone(), device.clone());
        let waiting = spawn_local(async move { asking.read(4, &of, 2 * BLOCK, 4096).await });
        pass(&script, Duration::from_millis(500)).await;
        assert!(!waiting.is_finished(), "the device does not leave");
        assert_eq!(released.get(), 0, "an undecided write was given up");
        held.release();
        writing.await.expect("no panic").expect("the write is decided");
        let heard = waiting.await.expect("no panic");
        let Err(Failed::Refused(LccRefusal::NotOwner { owner: Some((owner, _)) })) = heard else {
            panic!("who waited hears {heard:?}");
        };
        assert_eq!((owner.server.0, released.get()), (5, 1));
        assert!(n.read_at_last(5, &device, 0, 8192).await == blocks(&[9, 2]));
        assert_eq!(script.known_owner(device.group()).await, Some(5));
        script.check_all_ways(5, &device, &blocks(&[9, 2, 3, 4])).await;
    });
}

/// Hole 35: a busy owner never becomes idle, so what it owns never moves; or what two use moves to
/// and fro.
///
/// 1. Four writers in one process use X's device without a pause: it moves to them all the same.
/// 2. Two processes use another device of X: it stays.
#[test] // Proves: O-6.
fn hole_35_a_busy_group_moves_and_a_shared_one_stays() {
    Script::run(61, 5, "raid5/2+1", async |script| {
        let device = device_of_x(&script, &[1, 2, 3, 4]).await;
        let is_over = Rc::new(Cell::new(false));
        let writers: Vec<_> = (0..4)
            .map(|number: u64| {
                let (n, device, is_over) =
                    (script.in_process_of(5), device.clone(), is_over.clone());
                spawn_local(async move {
                    let mut byte = 0;
                    while !is_over.get() {
                        byte += 1;
                        n.write_at_last(4, &device, number * BLOCK, &block(byte)).await;
                    }
                    byte
                })
            })
            .collect();
        let group = device.group();
        let moved = async |script: &Script| script.known_owner(group).await == Some(5);
        script.until("it is at its user", moved).await;
        is_over.set(true);
        let mut written = Vec::new();
        for writer in writers {
            written.push(writer.await.expect("no panic"));
        }
        script.check_all_ways(5, &device, &blocks(&written)).await;

        let shared = device_of_x(&script, &[5, 6, 7, 8]).await;
        let released = script.note(|seen| is_release(seen, 4));
        let n = script.in_process_of(5);
        for _ in 0..20 {
            use_alone(&script, &n, &shared, Duration::from_secs(1)).await;
            script.read(4, &shared, 0, 4096).await.expect("X serves");
        }
        assert_eq!(released.get(), 0, "it moved though two use it");
    });
}

const MADE: &str = "/of-the-mount/file";

/// A mount that makes a directory and a file, then reads the file again and again, and keeps what it
/// saw last.
fn mount_that_made(script: &Script, saw: &Rc<RefCell<Bytes>>) -> SimProcess {
    let saw = saw.clone();
    script.mount(1, async move |client| {
        client.mkdir("/of-the-mount", &EntryAttributes::default()).await.expect("it is made");
        put(&client, 1).await;
        loop {
            if let Ok(bytes) = get(&client).await {
                *saw.borrow_mut() = bytes;
            }
            sleep(Duration::from_millis(100)).await;
        }
    })
}

async fn put(client: &Client, byte: u8) {
    let bytes = Bytes::from(vec![byte; 100_000]);
    let options = PutOptions { replace: true, ..PutOptions::default() };
    client.put_bytes(MADE, bytes, options).await.expect("it is put");
}

async fn get(client: &Client) -> Result<Bytes, braid_client::Error> {
    client.get_bytes(MADE).await
}

/// Hole 39: a mount as the owner of a directory sleeps, and blocks it for others; and hole 11: it
/// wakes and goes on with what it knew.
///
/// 1. The mount makes a directory and a file: it owns both without asking.
/// 2. It stands still. Another client gets the file within little more than a lease, and changes it.
/// 3. The mount goes on. From its first answer on it sees the change.
#[test] // Proves: O-4, O-6.
fn hole_39_a_mount_that_sleeps_blocks_others_for_a_lease() {
    Script::run(62, 5, "raid5/2+1", async |script| {
        let saw = Rc::new(RefCell::new(Bytes::new()));
        let mount = mount_that_made(&script, &saw);
        script.until("the mount made its file", async |_| !saw.borrow().is_empty()).await;
        let other = script.cluster.client(2).await.expect("the cluster is there");
        let group: DeviceId =
            other.directory("/of-the-mount").await.expect("it is there").layout().group();
        let owner = script.known_owner(group).await;
        assert!(owner.is_some_and(|server| 5 < server), "{owner:?} is not the mount");

        mount.pause();
        let paused = script.simulation.elapsed();
        assert_eq!(get(&other).await.expect("others go on")[0], 1);
        let waited = script.simulation.elapsed() - paused;
        assert!(waited < Duration::from_secs(5), "blocked for {waited:?}");
        put(&other, 2).await;
        saw.borrow_mut().clear();
        mount.resume();
        script.until("the mount goes on", async |_| !saw.borrow().is_empty()).await;
        assert_eq!(saw.borrow()[0], 2, "it shows what was before");
        script.healed().await;
    });
}

/// A mount that was killed: what it owned has new owners after its lease, what it left unfinished is
/// swept, and it is in the map no more.
#[test] // Proves: O-5, O-8, F-3.
fn a_mount_that_was_killed_leaves_nothing() {
    Script::run(63, 5, "raid5/2+1", async |script| {
        let made = Rc::new(Cell::new(false));
        let is_made = made.clone();
        let process = script.mount(1, async move |client| {
            client.mkdir("/of-the-mount", &EntryAttributes::default()).await.expect("it is made");
            put(&client, 1).await;
            is_made.set(true);
            std::future::pending::<()>().await;
        });
        script.until("the mount made its file", async |_| made.get()).await;
        process.kill();
        let other = script.cluster.client(2).await.expect("the cluster is there");
        let got = timeout(2 * SLOW, get(&other)).await.expect("others go on");
        assert_eq!(got.expect("it is there").len(), 100_000);
        let gone = async |script: &Script| {
            let map = other.map().await.expect("the cluster is there");
            map.servers.values().all(|server| !server.is_mount)
                && script.cluster.open_facts().await == Some((0, 0))
        };
        script.until("nothing is left of it", gone).await;
    });
}

/// A rule that these scripts guard, taken out: the script must fail.
#[test] // Proves: O-6.
fn the_planted_bug_is_found() {
    found::each_is_found(&[("O-6/give-up-undecided", an_undecided_write_is_never_given_up)]);
}
