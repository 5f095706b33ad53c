//! Ring 2: changes of names and attributes that a mount is answered before they are decided (W-9).
//!
//! A *mount* owns a directory that it made, and is answered ahead; others are a client elsewhere and
//! the mount's own next sync.

#[path = "common/found.rs"]
mod found;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use braid_client::{Client, EntryAttributes};
use braid_env::simulated::SimProcess;
use braid_sim::scripted::{Message, Script, Seen};
use braid_terms::GroupLayout;
use braid_wire::io::IoRequest;
use braid_wire::lcc::{AttributeChanges, DirectoryOp};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

const DIRECTORY: &str = "/of-the-mount";

/// What the mount has done.
#[derive(Default)]
struct Done {
    /// Changes that were answered.
    answered: Cell<u32>,
    /// What its syncs said.
    syncs: RefCell<Vec<Result<(), String>>>,
    /// The next step.
    go_on: Notify,
}

fn chmod(client: &Client, layout: &GroupLayout, mode: u32, stable: bool) -> DirectoryOp {
    let changes = AttributeChanges { mode: Some(mode), ..AttributeChanges::default() };
    let (operation, id) = (client.operation(), layout.group());
    DirectoryOp::SetAttributes { operation, id, changes, stable }
}

/// Makes the directory with mode 1, changes it to 2 at the first step, syncs it twice at the next; the
/// first time by a stable change to mode 3, if so asked.
fn mount(script: &Script, by_change: bool) -> (SimProcess, Rc<Done>) {
    let done = Rc::new(Done::default());
    let of_mount = done.clone();
    let process = script.mount(1, async move |client| {
        let attributes = EntryAttributes { mode: 1, ..EntryAttributes::default() };
        client.mkdir(DIRECTORY, &attributes).await.expect("it is made");
        let layout = client.directory(DIRECTORY).await.expect("it is there").layout().clone();
        client.directory_op(&layout, DirectoryOp::SYNC).await.expect("it is synced");
        of_mount.answered.set(1);
        of_mount.go_on.notified().await;
        let ahead = chmod(&client, &layout, 2, false);
        let caches = client.keep_caches(None);
        caches.directory_op(&layout, ahead, true).await.0.expect("it is answered");
        of_mount.answered.set(2);
        of_mount.go_on.notified().await;
        for is_first in [true, false] {
            let op = match is_first && by_change {
                true => chmod(&client, &layout, 3, true),
                false => DirectoryOp::SYNC,
            };
            let synced = client.directory_op(&layout, op).await;
            let said = synced.map(drop).map_err(|error| error.to_string());
            of_mount.syncs.borrow_mut().push(said);
        }
        std::future::pending::<()>().await;
    });
    (process, done)
}

/// A record on its way from the mount.
fn is_prepare_of_mount(seen: &Seen) -> bool {
    let prepare = matches!(&seen.message, Message::ToIo(IoRequest::Prepare(_)));
    prepare && SERVERS < seen.from
}

const SERVERS: u32 = 5;

async fn mode(client: &Client) -> u32 {
    client.stat(DIRECTORY).await.expect("others see it").attributes.mode
}

/// Who looks sees all that was answered, and waits for it.
///
/// 1. The mount is answered a change of which no portion has heard.
/// 2. Another client looks, and must not be told what was before.
/// 3. The portions hear of it: it is told the new mode.
#[test] // Proves: W-9.
fn what_was_answered_ahead_is_seen_by_all() {
    Script::run(70, SERVERS, "raid5/2+1", async |script| {
        let (_process, done) = mount(&script, false);
        script.until("the directory is made", async |_| done.answered.get() == 1).await;
        let other = script.cluster.client(2).await.expect("the cluster is there");
        let held = script.hold(is_prepare_of_mount);
        done.go_on.notify_one();
        script.until("the mount was answered", async |_| done.answered.get() == 2).await;
        assert!(timeout(Duration::from_millis(300), mode(&other)).await.is_err(), "it waits");
        held.release();
        assert_eq!(mode(&other).await, 2);
        done.go_on.notify_one();
        script.until("the mount synced", async |_| done.syncs.borrow().len() == 2).await;
        assert_eq!(*done.syncs.borrow(), [Ok(()), Ok(())]);
        script.healed().await;
    });
}

/// What is lost is told once.
///
/// 1. The mount is answered a change of which no portion has heard, and stands still for longer than
///    its lease.
/// 2. Another client owns the directory meanwhile, and sees the mode of before.
/// 3. The mount goes on: its first sync, or stable change of attributes, says that something is lost; the
///    next one that all is well.
#[test] // Proves: W-9, O-4.
fn what_was_answered_ahead_and_is_lost_is_told_by_the_next_sync() {
    for (seed, by_change) in [(71, false), (73, true)] {
        Script::run(seed, SERVERS, "raid5/2+1", async move |script| {
            let (process, done) = mount(&script, by_change);
            script.until("the directory is made", async |_| done.answered.get() == 1).await;
            let other = script.cluster.client(2).await.expect("the cluster is there");
            let held = script.hold(is_prepare_of_mount);
            done.go_on.notify_one();
            script.until("the mount was answered", async |_| done.answered.get() == 2).await;
            process.pause();
            sleep(Duration::from_secs(4)).await;
            assert_eq!(mode(&other).await, 1, "nobody heard of it");
            held.release();
            process.resume();
            done.go_on.notify_one();
            script.until("the mount synced", async |_| done.syncs.borrow().len() == 2).await;
            let syncs = done.syncs.borrow().clone();
            assert!(syncs[0].is_err(), "by a change: {by_change}, {syncs:?}");
            assert_eq!(syncs[1], Ok(()));
            assert_eq!(mode(&other).await, if by_change { 3 } else { 1 });
            script.healed().await;
        });
    }
}

/// A mount that is killed takes only what it was answered ahead: all before is there.
#[test] // Proves: W-9, W-10.
fn a_mount_that_is_killed_takes_only_what_nobody_heard() {
    Script::run(72, SERVERS, "raid5/2+1", async |script| {
        let (process, done) = mount(&script, false);
        script.until("the directory is made", async |_| done.answered.get() == 1).await;
        let _held = script.hold(is_prepare_of_mount);
        done.go_on.notify_one();
        script.until("the mount was answered", async |_| done.answered.get() == 2).await;
        process.kill();
        let other = script.cluster.client(2).await.expect("the cluster is there");
        assert_eq!(mode(&other).await, 1);
    });
}

/// Rules that these scripts guard, taken out: the script must fail.
#[test] // Proves: W-9.
fn each_planted_bug_is_found() {
    found::each_is_found(&[
        ("W-9/what-was-answered-ahead-is-not-seen", what_was_answered_ahead_is_seen_by_all),
        (
            "W-9/a-loss-ahead-is-not-told",
            what_was_answered_ahead_and_is_lost_is_told_by_the_next_sync,
        ),
    ]);
}
