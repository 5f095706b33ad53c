//! Ring 2: clients that keep copies, as mounts do, never see what is not so any more.
//!
//! A *holder* looks at one file's mode again and again, from its copies where they are granted; a
//! *writer* without copies changes that mode to 1, 2, 3 ... A look that began after the change to n was
//! answered must see n or more.

#[path = "common/found.rs"]
mod found;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use braid_client::{AttributeChanges, PutOptions};
use braid_env::simulated::SimProcess;
use braid_sim::scripted::{Message, Role, Script};
use braid_wire::lcc::{LccRefusal, LccReply, LccRequest};
use tokio::time::{Instant, sleep};

const HOLDER: u32 = 150;
const FILE: &str = "/file";
/// So long a holder looks before it can learn of a change.
const LOOKS: Duration = Duration::from_millis(200);

/// One look: when it began, when it ended, what it saw.
#[derive(Clone, Copy, Debug)]
struct Look {
    began: Instant,
    ended: Instant,
    mode: u32,
}

struct Holder {
    process: SimProcess,
    looks: Rc<RefCell<Vec<Look>>>,
}

impl Holder {
    /// A process of its own that looks every millisecond.
    fn start(script: &Script) -> Self {
        let looks: Rc<RefCell<Vec<Look>>> = Rc::default();
        let (cluster, seen) = (script.cluster.clone(), looks.clone());
        let machine = script.simulation.machine(HOLDER);
        let process = script.simulation.spawn_process(&machine, "mount", move |env| async move {
            let Ok(client) = cluster.client_in(env).await else { return };
            let _caches = client.keep_caches(None);
            loop {
                let began = Instant::now();
                if let Ok(node) = client.stat(FILE).await {
                    let mode = node.attributes.mode;
                    seen.borrow_mut().push(Look { began, ended: Instant::now(), mode });
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
        Self { process, looks }
    }

    /// Waits until it answers from its copies.
    async fn keeps(&self, script: &Script) {
        let from = self.looks.borrow().len();
        script
            .until("the holder answers by itself", async |_| {
                self.looks.borrow()[from..].iter().any(|look| look.began == look.ended)
            })
            .await;
    }

    fn newest(&self) -> u32 {
        self.looks.borrow().last().map_or(0, |look| look.mode)
    }

    fn check(&self, answered: &[(Instant, u32)]) {
        check(&self.looks.borrow(), answered);
    }
}

/// No look may show less than what was answered before it began.
fn check(looks: &[Look], answered: &[(Instant, u32)]) {
    for look in looks {
        let before = answered.iter().filter(|(when, _)| *when <= look.began);
        let least = before.map(|(_, mode)| *mode).max().unwrap_or_default();
        assert!(least <= look.mode, "{look:?} after {least} was answered");
    }
}

async fn put(client: &braid_client::Client, path: &str) {
    let (bytes, options) = (bytes::Bytes::from_static(b"bytes"), PutOptions::default());
    client.put_bytes(path, bytes, options).await.expect("made");
}

struct Writer {
    client: braid_client::Client,
    path: &'static str,
    next: Cell<u32>,
    answered: Rc<RefCell<Vec<(Instant, u32)>>>,
}

impl Writer {
    async fn start(script: &Script) -> Self {
        let client = script.cluster.client(2).await.expect("the cluster is there");
        put(&client, FILE).await;
        let writer = Self { client, path: FILE, next: Cell::new(1), answered: Rc::default() };
        // What it was made with counts for less than any other.
        writer.change().await;
        writer
    }

    async fn change(&self) -> u32 {
        let mode = self.next.replace(self.next.get() + 1);
        let changes = AttributeChanges { mode: Some(mode), ..AttributeChanges::default() };
        self.client.set_attributes(self.path, changes).await.expect("it is changed");
        self.answered.borrow_mut().push((Instant::now(), mode));
        mode
    }
}

/// What is recalled is gone before the change is answered, and copies are used meanwhile.
#[test] // Proves: N-1.
fn a_change_is_answered_when_nobody_shows_what_was_before() {
    Script::run(61, 3, "raid5/2+1", async |script| {
        let writer = Writer::start(&script).await;
        let holder = Holder::start(&script);
        // Recalls take longer than answers to the writer.
        for server in 1..=3 {
            script.simulation.set_delay(server, HOLDER, Duration::from_millis(40));
        }
        for _ in 0..10 {
            holder.keeps(&script).await;
            let mode = writer.change().await;
            script.until("the holder sees it", async |_| holder.newest() == mode).await;
        }
        holder.check(&writer.answered.borrow());
        let looks = holder.looks.borrow().len();
        let by_itself =
            holder.looks.borrow().iter().filter(|look| look.began == look.ended).count();
        assert!(looks < 2 * by_itself, "{by_itself} of {looks} looks asked nobody");
    });
}

/// Hole 11: a mount goes on serving its copies after it was paused.
///
/// 1. The holder has a copy and stands still; its recall is not answered.
/// 2. The change is answered when the holder's lease is over, not before.
/// 3. The holder wakes up, and must not show its copy.
#[test] // Proves: N-1, O-4.
fn hole_11_a_paused_mount_shows_nothing_old_when_it_wakes() {
    Script::run(62, 3, "raid5/2+1", async |script| {
        let writer = Writer::start(&script).await;
        let holder = Holder::start(&script);
        holder.keeps(&script).await;
        holder.process.pause();
        let mode = writer.change().await;
        holder.process.resume();
        script.until("the holder sees it", async |_| holder.newest() == mode).await;
        holder.check(&writer.answered.borrow());
    });
}

/// Hole 11, with the network for the pause: a holder that is cut off serves its copies until its lease
/// is over, and no longer.
#[test] // Proves: N-1, O-4.
fn hole_11_a_mount_that_is_cut_off_shows_its_copies_no_longer_than_its_lease() {
    Script::run(63, 3, "raid5/2+1", async |script| {
        let writer = Writer::start(&script).await;
        let holder = Holder::start(&script);
        holder.keeps(&script).await;
        for server in 1..=3 {
            script.simulation.black_hole(server, HOLDER);
            script.simulation.black_hole(HOLDER, server);
        }
        let mode = writer.change().await;
        script.simulation.heal_all();
        script.until("the holder sees it", async |_| holder.newest() == mode).await;
        holder.check(&writer.answered.borrow());
    });
}

/// The same, but only what prolongs the lease does not arrive, and no recall: the connection is whole.
#[test] // Proves: N-1, O-4.
fn a_lease_that_is_not_prolonged_ends() {
    Script::run(66, 3, "raid5/2+1", async |script| {
        let writer = Writer::start(&script).await;
        let holder = Holder::start(&script);
        holder.keeps(&script).await;
        let is_kept = |message: &Message| match message {
            Message::ToLcc(request) => matches!(**request, LccRequest::KeepCaches { .. }),
            // Nor that its registration has ended.
            Message::FromLcc(reply) => {
                matches!(**reply, Ok(LccReply::Recalls(_)) | Err(LccRefusal::NotFound))
            }
            _ => false,
        };
        let held = script.hold(move |seen| is_kept(&seen.message));
        let mode = writer.change().await;
        sleep(LOOKS).await;
        held.release();
        script.until("the holder sees it", async |_| holder.newest() == mode).await;
        holder.check(&writer.answered.borrow());
    });
}

/// The owner dies with its knowledge of who has copies, and is started again at once.
///
/// 1. The holder has a copy and is cut off, so that it does not notice what happens to the owner.
/// 2. All LCs are killed and started again: their groups have new owners before the lease that the old
///    ones gave is over.
/// 3. The new owner must not answer a change before that.
#[test] // Proves: N-1, O-4.
fn a_new_owner_waits_for_copies_of_which_it_does_not_know() {
    Script::run(64, 3, "raid5/2+1", async |script| {
        let writer = Writer::start(&script).await;
        let holder = Holder::start(&script);
        holder.keeps(&script).await;
        // Not lost frames, which would break its connection: it hears nothing at all.
        for server in 1..=3 {
            script.simulation.partition_both(server, HOLDER);
        }
        for server in 1..=3 {
            script.cluster.kill(server, Role::Lc);
            script.cluster.start_process(server, Role::Lc);
        }
        let mode = writer.change().await;
        sleep(LOOKS).await;
        script.simulation.heal_all();
        script.until("the holder sees it", async |_| holder.newest() == mode).await;
        holder.check(&writer.answered.borrow());
    });
}

const MADE: &str = "/of-the-mount/file";

/// What a mount owns itself it keeps, too; and its copies end when another becomes the owner.
///
/// 1. The holder is a mount with an LCC of its own: it made the file, and owns the directory.
/// 2. Another client changes the file some times a second, so that the directory moves to a server.
/// 3. From the first change there on, the holder must not show what it knew as the owner.
#[test] // Proves: N-1, O-6.
fn copies_of_what_moves_away_from_their_mount_are_taken_back() {
    Script::run(65, 5, "raid5/2+1", async |script| {
        let looks: Rc<RefCell<Vec<Look>>> = Rc::default();
        let seen = looks.clone();
        let _mount = script.mount(1, async move |client| {
            let _caches = client.keep_caches(None);
            let of_mount = braid_client::EntryAttributes::default();
            client.mkdir("/of-the-mount", &of_mount).await.expect("it is made");
            put(&client, MADE).await;
            loop {
                let began = Instant::now();
                if let Ok(node) = client.stat(MADE).await {
                    let mode = node.attributes.mode;
                    seen.borrow_mut().push(Look { began, ended: Instant::now(), mode });
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
        script.until("the mount made its file", async |_| !looks.borrow().is_empty()).await;
        let client = script.cluster.client(2).await.expect("the cluster is there");
        let directory = client.directory("/of-the-mount").await.expect("it is there");
        let group = directory.layout().group();
        let owner = script.known_owner(group).await;
        assert!(owner.is_some_and(|server| 5 < server), "{owner:?} is not the mount");

        let writer = Writer { client, path: MADE, next: Cell::new(1), answered: Rc::default() };
        let mut after_move = 0;
        while after_move < 20 {
            let mode = writer.change().await;
            let newest =
                async |_: &Script| looks.borrow().last().is_some_and(|look| look.mode == mode);
            script.until("the holder sees it", newest).await;
            sleep(Duration::from_millis(250)).await;
            assert!(mode < 400, "the directory stays where it is");
            let owner = script.known_owner(group).await;
            after_move += u32::from(owner.is_some_and(|server| server <= 5));
        }
        check(&looks.borrow(), &writer.answered.borrow());
    });
}

/// Rules that these scripts guard, taken out: the script must fail.
#[test] // Proves: N-1, O-6.
fn each_planted_bug_is_found() {
    found::each_is_found(&[
        ("N-1/recall-not-waited-for", a_change_is_answered_when_nobody_shows_what_was_before),
        ("N-1/caches-outlive-their-lease", hole_11_a_paused_mount_shows_nothing_old_when_it_wakes),
        ("N-1/new-owner-does-not-wait", a_new_owner_waits_for_copies_of_which_it_does_not_know),
        ("N-1/first-copy-is-not-told", a_new_owner_waits_for_copies_of_which_it_does_not_know),
        ("O-6/copies-outlive-a-move", copies_of_what_moves_away_from_their_mount_are_taken_back),
    ]);
}
