//! Ring 2: changes over several directory groups (W-7, O-7), with stops at each of their moments.
//! `docs/simulator.md` lists them.
//!
//! Copies of directories are on servers 1, 2 and 3, owners at servers 4, 5 and 6. The directory that is
//! made first has the lower number: it is the primary.

#[path = "common/found.rs"]
mod found;

use std::time::Duration;

use braid_sim::scripted::{Failed, Message, Role, Script, Seen};
use braid_terms::{DeviceId, GroupLayout};
use braid_wire::joint::{Joint, JointAnswer, JointId, JointStep};
use braid_wire::lcc::{
    DirectoryOp, FileKind, FileTime, IfExists, LccRefusal, LccReply, LccRequest, OperationId,
};
use bytes::Bytes;
use tokio::time::timeout;

const COPIES: [u32; 3] = [1, 2, 3];
const SLOW: Duration = Duration::from_secs(3);

fn name(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn rename(script: &Script, from: &str, target: &GroupLayout, to: &str) -> DirectoryOp {
    DirectoryOp::Rename {
        operation: script.operation(),
        from: name(from),
        target: Some(target.clone()),
        to: name(to),
        exchange: false,
        if_exists: IfExists::Replace,
        only_replaces: None,
        keep: false,
    }
}

fn exchange(script: &Script, from: &str, target: &GroupLayout, to: &str) -> DirectoryOp {
    match rename(script, from, target, to) {
        DirectoryOp::Rename {
            operation, from, target, to, if_exists, only_replaces, keep, ..
        } => {
            let exchange = true;
            DirectoryOp::Rename {
                operation,
                from,
                target,
                to,
                exchange,
                if_exists,
                only_replaces,
                keep,
            }
        }
        _ => unreachable!(),
    }
}

fn unlink(script: &Script, entry: &str, directory: bool) -> DirectoryOp {
    let (operation, name) = (script.operation(), name(entry));
    DirectoryOp::Unlink { operation, name, only_id: None, keep: false, directory }
}

fn link(script: &Script, entry: &str, home: &GroupLayout, id: DeviceId) -> DirectoryOp {
    let (operation, name, home) = (script.operation(), name(entry), home.clone());
    DirectoryOp::Link { operation, name, id, kind: FileKind::File, home }
}

fn asks(seen: &Seen, of: impl Fn(&DirectoryOp) -> bool) -> bool {
    match &seen.message {
        Message::ToLcc(request) => match &**request {
            LccRequest::Directory { op, .. } => of(op),
            _ => false,
        },
        _ => false,
    }
}

/// The moments of a change at which something stops: a message between servers is held.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// An intent is asked for.
    Intend,
    /// The owner of the secondary was asked for it, and has the I/O servers write it.
    IntentWritten,
    /// The intent is stable, the driver does not know.
    Intended,
    /// The decision is on its way to the primary's I/O servers.
    Decided,
    /// The secondary is told.
    Finish,
}

const MOMENTS: [Moment; 5] =
    [Moment::Intend, Moment::IntentWritten, Moment::Intended, Moment::Decided, Moment::Finish];

impl Moment {
    /// Between servers 4, which drives and owns the primary, and 5, which owns the secondary.
    fn is(self, seen: &Seen) -> bool {
        let between = (seen.from, seen.to);
        let prepare = matches!(&seen.message, Message::ToIo(braid_wire::io::IoRequest::Prepare(_)));
        match self {
            Self::Intend => {
                between == (4, 5) && asks(seen, |op| matches!(op, DirectoryOp::Intend { .. }))
            }
            Self::IntentWritten => seen.from == 5 && prepare,
            Self::Intended => {
                let done = |reply: &Result<LccReply, _>| matches!(reply, Ok(LccReply::Done));
                between == (5, 4) && matches!(&seen.message, Message::FromLcc(reply) if done(reply))
            }
            Self::Decided => seen.from == 4 && prepare,
            Self::Finish => {
                between == (4, 5) && asks(seen, |op| matches!(op, DirectoryOp::Finish { .. }))
            }
        }
    }
}

/// What stops.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Driver,
    Secondary,
    Both,
    /// Every machine, without what was not synced.
    Site,
}

const STOPS: [Stop; 4] = [Stop::Driver, Stop::Secondary, Stop::Both, Stop::Site];

impl Stop {
    async fn happen(self, script: &Script) {
        match self {
            Self::Driver => script.cluster.kill(4, Role::Lc),
            Self::Secondary => script.cluster.kill(5, Role::Lc),
            Self::Both => {
                script.cluster.kill(4, Role::Lc);
                script.cluster.kill(5, Role::Lc);
            }
            Self::Site => script.power_cut(&script.servers()),
        }
    }

    async fn end(self, script: &Script) {
        match self {
            Self::Driver => script.cluster.start_process(4, Role::Lc),
            Self::Secondary => script.cluster.start_process(5, Role::Lc),
            Self::Both => {
                script.cluster.start_process(4, Role::Lc);
                script.cluster.start_process(5, Role::Lc);
            }
            Self::Site => script.power_on(&script.servers()),
        }
    }
}

/// Two directories, of which the first is the primary and at 4, the second at 5, with all that is in them
/// on the disks.
async fn two_directories(script: &Script) -> (GroupLayout, GroupLayout) {
    let root = script.root();
    let one = script.directory(&COPIES, 4, &root).await;
    let other = script.directory(&COPIES, 5, &root).await;
    (one, other)
}

async fn synced(script: &Script, directories: &[&GroupLayout]) {
    for directory in directories {
        script.names_at_last(4, directory, DirectoryOp::SYNC).await.expect("it can be synced");
    }
}

/// Asks server 4 for a change of the first directory, stops something at a moment, and gives what the
/// client was told; then looks at the outcome, asks again, and looks once more.
async fn stop_at(
    script: &Script,
    directory: &GroupLayout,
    op: DirectoryOp,
    (moment, stop): (Moment, Stop),
    is_made: impl AsyncFn(&Script) -> bool,
) {
    let held = script.hold(move |seen| moment.is(seen));
    let asked = script.begin_names(4, directory, op.clone());
    held.reached(1).await;
    let was_told = asked.is_finished();
    stop.happen(script).await;
    held.release();
    stop.end(script).await;
    let answer = asked.await.expect("no panic");
    let made = is_made(script).await;
    let may_be_lost = matches!(stop, Stop::Site);
    if answer.is_ok() && !may_be_lost {
        assert!(made, "{moment:?}, {stop:?}: it was answered, and is not there");
    }
    if was_told {
        assert!(answer.is_ok(), "{moment:?}, {stop:?}: {answer:?}");
    }
    // The client asks again, and gets the answer of the first time.
    let again = script.names_at_last(4, directory, op).await;
    assert!(again.is_ok(), "{moment:?}, {stop:?}, again: {again:?}");
    assert!(is_made(script).await, "{moment:?}, {stop:?}: asked twice, and not made");
}

/// Runs a script for each moment and each stop.
fn at_each_moment(seed: u64, body: impl AsyncFn(&Script, (Moment, Stop))) {
    for (m, moment) in MOMENTS.into_iter().enumerate() {
        for (s, stop) in STOPS.into_iter().enumerate() {
            let seed = seed + 10 * m as u64 + s as u64;
            Script::run(seed, 6, "raid5/2+1", async |script| body(&script, (moment, stop)).await);
        }
    }
}

/// Hole 12: a rename is in both or in neither directory.
///
/// A file moves from the primary to the secondary, over a file that is there. Each of both owners, both,
/// or the whole site stop at each moment. After that the name is in one directory, the file that was
/// replaced is gone with its record or is there, and asked again the client is told that it is done.
#[test] // Proves: W-7, L2 of wire::lcc.
fn hole_12_a_rename_is_in_one_directory_whoever_stops_when() {
    at_each_moment(100, async |script, at| {
        let (one, other) = two_directories(script).await;
        let moved = script.make(4, &one, "f").await;
        let replaced = script.make(5, &other, "g").await;
        synced(script, &[&one, &other]).await;
        let op = rename(script, "f", &other, "g");
        stop_at(script, &one, op, at, async |script| {
            let from = script.entry(4, &one, "f").await;
            let to = script.entry(5, &other, "g").await;
            let made = from.is_none();
            assert_eq!(to, Some(if made { moved } else { replaced }), "{at:?}: from is {from:?}");
            assert_eq!(script.link_count(4, &one, moved).await, Some(1), "{at:?}");
            let count = if made { None } else { Some(1) };
            assert_eq!(script.link_count(5, &other, replaced).await, count, "{at:?}");
            made
        })
        .await;
    });
}

/// The same with an exchange: both names stand for what the other stood for, or neither.
#[test] // Proves: W-7.
fn an_exchange_over_two_directories_is_whole() {
    at_each_moment(200, async |script, at| {
        let (one, other) = two_directories(script).await;
        let f = script.make(4, &one, "f").await;
        let g = script.make(5, &other, "g").await;
        synced(script, &[&one, &other]).await;
        let op = exchange(script, "f", &other, "g");
        stop_at(script, &one, op, at, async |script| {
            let here = script.entry(4, &one, "f").await.expect("it stays a name");
            let there = script.entry(5, &other, "g").await.expect("it stays a name");
            let made = here == g;
            assert_eq!((here, there), if made { (g, f) } else { (f, g) }, "{at:?}");
            assert_eq!(script.link_count(4, &one, f).await, Some(1));
            assert_eq!(script.link_count(5, &other, g).await, Some(1));
            made
        })
        .await;
    });
}

/// A link into another directory: the name is there and counted, or neither.
#[test] // Proves: W-7.
fn a_link_is_entered_and_counted_or_neither() {
    at_each_moment(300, async |script, at| {
        let (one, other) = two_directories(script).await;
        let id = script.make(5, &other, "f").await;
        synced(script, &[&one, &other]).await;
        let op = link(script, "l", &other, id);
        stop_at(script, &one, op, at, async |script| {
            let made = script.entry(4, &one, "l").await.is_some();
            let count = script.link_count(5, &other, id).await;
            assert_eq!(count, Some(if made { 2 } else { 1 }), "{at:?}");
            made
        })
        .await;
    });
}

/// The removal of a name whose count is kept elsewhere: gone and counted, or neither; the last one takes
/// the record along.
#[test] // Proves: W-7, N-4.
fn a_name_is_removed_and_counted_or_neither() {
    at_each_moment(400, async |script, at| {
        let (one, other) = two_directories(script).await;
        let id = script.make(5, &other, "f").await;
        let moved = rename(script, "f", &one, "f");
        script.names_at_last(5, &other, moved).await.expect("nothing is in the way");
        synced(script, &[&one, &other]).await;
        let op = unlink(script, "f", false);
        stop_at(script, &one, op, at, async |script| {
            let made = script.entry(4, &one, "f").await.is_none();
            let count = script.link_count(5, &other, id).await;
            assert_eq!(count, if made { None } else { Some(1) }, "{at:?}");
            made
        })
        .await;
    });
}

/// A directory is removed: its name is gone, or it is there and can be used.
#[test] // Proves: W-7, F-9.
fn a_directory_is_removed_or_can_be_used() {
    at_each_moment(500, async |script, at| {
        let root = script.root();
        let one = script.directory(&COPIES, 4, &root).await;
        let child = script.directory(&COPIES, 5, &one).await;
        script.enter(4, &one, "d", &child).await;
        synced(script, &[&one, &child]).await;
        let op = unlink(script, "d", true);
        stop_at(script, &one, op, at, async |script| {
            if script.entry(4, &one, "d").await.is_none() {
                return true;
            }
            let id = script.make(5, &child, "f").await;
            assert_eq!(script.link_count(5, &child, id).await, Some(1), "{at:?}");
            script.names_at_last(5, &child, unlink(script, "f", false)).await.expect("it is there");
            false
        })
        .await;
    });
}

/// A power cut does not take a rename after the client was told: it may sync either directory, and neither
/// sync would know that the rename is lost (simulator, seed 2108 of six servers).
///
/// 1. The disks of the primary sync slowly, those of the secondary at once.
/// 2. The rename is answered; at the secondary nobody waits, somebody looks, or the primary is synced.
/// 3. All machines lose their power. The rename is on both sides.
#[test] // Proves: W-7, W-10.
fn no_power_cut_leaves_one_side_of_a_rename() {
    for (seed, what) in ["told", "looked at", "synced"].into_iter().enumerate() {
        Script::run(600 + seed as u64, 6, "raid5/2+1", async |script| {
            let root = script.root();
            let one = script.directory(&[1, 2], 4, &root).await;
            let other = script.directory(&[3, 6], 5, &root).await;
            let id = script.make(4, &one, "f").await;
            synced(&script, &[&one, &other]).await;
            script.set_sync_time(&[1, 2], SLOW);
            let op = rename(&script, "f", &other, "f");
            script.names_at_last(4, &one, op).await.expect("nothing is in the way");
            match what {
                "looked at" => assert_eq!(script.entry(5, &other, "f").await, Some(id)),
                "synced" => synced(&script, &[&one]).await,
                _ => {}
            }
            script.power_cut(&script.servers());
            script.power_on(&script.servers());
            let from = script.entry(4, &one, "f").await;
            let to = script.entry(5, &other, "f").await;
            assert!(from.is_some() != to.is_some(), "{what}: from {from:?} to {to:?}");
            assert_eq!(script.link_count(4, &one, id).await, Some(1), "{what}");
            assert_eq!(to, Some(id), "{what}: it was answered");
        });
    }
}

/// An intent without its primary: what it locks is in doubt, all else goes on.
///
/// 1. The secondary has an intent; then the primary's owner and its copies are away.
/// 2. Other names of the secondary can be made and looked at. The one concerned is not answered.
/// 3. They are back: the primary says no, and the name is free.
#[test] // Proves: W-7.
fn an_unreachable_primary_blocks_only_the_names_concerned() {
    Script::run(700, 6, "raid5/2+1", async |script| {
        let root = script.root();
        let one = script.directory(&[1, 2], 4, &root).await;
        let other = script.directory(&[3, 6], 5, &root).await;
        script.make(4, &one, "f").await;
        synced(&script, &[&one, &other]).await;
        let answer = script.hold(|seen| Moment::Intended.is(seen));
        let asked = script.begin_names(4, &one, rename(&script, "f", &other, "x"));
        answer.reached(1).await;
        script.power_cut(&[1, 2, 4]);
        answer.release();
        asked.abort();

        let made = script.make(5, &other, "y").await;
        assert_eq!(script.entry(5, &other, "y").await, Some(made));
        let look = DirectoryOp::Lookup { name: name("x") };
        let looked = script.names(5, &other, look).await;
        // The second one: two coordinators of five are left, and no lease is renewed.
        let is_unanswered = matches!(
            looked,
            Err(Failed::Refused(LccRefusal::Unavailable { .. } | LccRefusal::OutcomeUnknown))
        );
        assert!(is_unanswered, "{looked:?}");

        script.power_on(&[1, 2, 4]);
        assert_eq!(script.entry(5, &other, "x").await, None);
        assert!(script.entry(4, &one, "f").await.is_some());
        script.make(5, &other, "x").await;
    });
}

/// A driver that comes late: its change was made void when the secondary asked.
///
/// 1. The secondary has an intent, and hears nothing for a while: it asks the primary, which does not
///    know it, and says no.
/// 2. The driver, which was only slow, has the primary decide. It must be refused, also by the primary's
///    next owner, after a power cut of all machines.
#[test] // Proves: W-7.
fn what_the_secondary_was_told_is_void_stays_so() {
    Script::run(710, 6, "raid5/2+1", async |script| {
        let (one, other) = two_directories(&script).await;
        let id = script.make(4, &one, "f").await;
        synced(&script, &[&one, &other]).await;
        let joint = Box::new(Joint {
            id: JointId { driver: 5, counter: 1 },
            operation: OperationId { client: 5, counter: 1 },
            answer: JointAnswer::Removed { entry: None, attributes: None },
            time: FileTime::default(),
            primary: one.clone(),
            secondaries: vec![other.clone()],
        });
        let (kind, home) = (FileKind::File, one.clone());
        let enter = JointStep::Enter { name: name("f"), id, kind, home, replaces: None };
        let intend = DirectoryOp::Intend { joint: joint.clone(), steps: vec![enter] };
        script.names(5, &other, intend).await.expect("the name is free");
        // Waits until the intent has ended.
        assert_eq!(script.entry(5, &other, "f").await, None);
        script.power_cut(&script.servers());
        script.power_on(&script.servers());

        let steps = vec![JointStep::Leave { name: name("f"), id }];
        let decided = script.names_at_last(6, &one, DirectoryOp::Decide { joint, steps }).await;
        assert_eq!(decided.unwrap_err(), LccRefusal::Conflict);
        assert_eq!(script.entry(6, &one, "f").await, Some(id), "in neither directory");
    });
}

/// A secondary finishes what the primary decided, however late it hears of it: not before it has asked.
///
/// 1. The intent is stable; the primary refuses, since the name that moves is gone meanwhile.
/// 2. The secondary's owner dies before it hears of that, and the next one must ask.
#[test] // Proves: W-7.
fn the_next_owner_of_a_secondary_asks_before_it_finishes() {
    Script::run(720, 6, "raid5/2+1", async |script| {
        let (one, other) = two_directories(&script).await;
        let id = script.make(4, &one, "f").await;
        synced(&script, &[&one, &other]).await;
        let answer = script.hold(|seen| Moment::Intended.is(seen));
        let asked = script.begin_names(4, &one, rename(&script, "f", &other, "g"));
        answer.reached(1).await;
        script.names(4, &one, unlink(&script, "f", false)).await.expect("it is there");
        script.cluster.kill(5, Role::Lc);
        script.cluster.kill(4, Role::Lc);
        answer.release();
        asked.abort();
        assert_eq!(script.entry(6, &other, "g").await, None, "a name of what is gone");
        assert_eq!(script.link_count(6, &one, id).await, None);
        script.cluster.start_process(4, Role::Lc);
        script.cluster.start_process(5, Role::Lc);
    });
}

/// Directories `x/a` and `y/b`, each a group of its own, entered below the root; `x` and `y` are what
/// moves.
async fn two_trees(script: &Script) -> [GroupLayout; 4] {
    let root = script.root();
    let x = script.directory(&COPIES, 4, &root).await;
    let a = script.directory(&COPIES, 4, &x).await;
    let y = script.directory(&COPIES, 5, &root).await;
    let b = script.directory(&COPIES, 5, &y).await;
    script.enter(4, &root, "x", &x).await;
    script.enter(4, &root, "y", &y).await;
    script.enter(4, &x, "a", &a).await;
    script.enter(5, &y, "b", &b).await;
    [x, a, y, b]
}

/// Whether the root is above a directory, by the records of those between.
async fn hangs_below_root(script: &Script, directory: &GroupLayout, all: &[&GroupLayout]) -> bool {
    let root = script.root().group();
    let mut at = directory.group();
    for _ in 0..=all.len() {
        if at == root {
            return true;
        }
        let layout = all.iter().find(|layout| layout.group() == at).expect("a known directory");
        at = script.parent(4, layout).await;
    }
    false
}

/// Two moves that make a circle together: `x` to `y/b/x` and `y` to `x/a/y`, at once, from two servers.
/// No group is in both. The first stands still before its intents are taken.
#[test] // Proves: O-7.
fn two_moves_make_no_circle() {
    for seed in 0..4 {
        Script::run(730 + seed, 6, "raid5/2+1", async |script| {
            let root = script.root();
            let [x, a, y, b] = two_trees(&script).await;
            let held =
                script.hold(|seen| asks(seen, |op| matches!(op, DirectoryOp::Intend { .. })));
            let one = rename(&script, "x", &b, "x");
            let other = rename(&script, "y", &a, "y");
            let first = script.clone();
            let (to_root, op) = (root.clone(), one);
            let first =
                tokio::task::spawn_local(async move { first.names_at_last(4, &to_root, op).await });
            held.reached(1).await;
            let second = script.clone();
            let mut second =
                tokio::task::spawn_local(
                    async move { second.names_at_last(5, &root, other).await },
                );
            let early = timeout(Duration::from_secs(1), &mut second).await;
            assert!(early.is_err(), "decided while another move was under way: {early:?}");
            held.release();
            let first = first.await.expect("no panic");
            let second = second.await.expect("no panic");
            assert!(first.is_ok() != second.is_ok(), "{first:?} and {second:?}");
            for directory in [&x, &a, &y, &b] {
                let all = [&x, &a, &y, &b];
                assert!(hangs_below_root(&script, directory, &all).await, "a circle");
            }
        });
    }
}

/// Hole 36: who holds the rename device dies while it moves a directory. It is neither held for ever nor
/// in two hands.
///
/// 1. The owner of the root stops at each moment of a move; so does a coordinator that leads.
/// 2. The directory has one name, its parent is the one that has it, and it can be moved again.
#[test] // Proves: O-7, W-7.
fn hole_36_the_rename_device_is_never_lost() {
    for seed in 0..6 {
        Script::run(740 + seed, 6, "raid5/2+1", async |script| {
            let root = script.root();
            let [x, a, y, b] = two_trees(&script).await;
            let owner = script.owner(&root).await;
            synced(&script, &[&root, &x, &a, &y, &b]).await;
            let nth = Some(seed as u32 % 3 + 1);
            let count = std::cell::Cell::new(0);
            let held = script.hold(move |seen| {
                let intends = asks(seen, |op| matches!(op, DirectoryOp::Intend { .. }));
                let finishes = asks(seen, |op| matches!(op, DirectoryOp::Finish { .. }));
                let counts = (intends || finishes) && seen.from == owner;
                count.set(count.get() + u32::from(counts));
                counts && nth.is_none_or(|nth| nth <= count.get())
            });
            let op = rename(&script, "a", &b, "a");
            let moving = script.clone();
            let (from, again) = (x.clone(), op.clone());
            let asked = tokio::task::spawn_local(async move { moving.names(4, &from, op).await });
            held.reached(1).await;
            script.cluster.kill(owner, Role::Lc);
            if seed >= 3 {
                let leader = script.leader().await;
                script.cluster.kill(leader, Role::Coordinator);
                script.cluster.start_process(leader, Role::Coordinator);
            }
            held.release();
            script.cluster.start_process(owner, Role::Lc);
            let _ = asked.await;
            let from = script.entry(4, &x, "a").await;
            let to = script.entry(5, &b, "a").await;
            assert!(from.is_some() != to.is_some(), "from {from:?} to {to:?}");
            let parent = if from.is_some() { x.group() } else { b.group() };
            assert_eq!(script.parent(4, &a).await, parent);
            script.names_at_last(4, &x, again).await.expect("it is done, or is done now");
            assert_eq!(script.parent(4, &a).await, b.group());
            let back = rename(&script, "a", &x, "a");
            script.names_at_last(4, &b, back).await.expect("the device is free");
            assert_eq!(script.parent(4, &a).await, x.group());
        });
    }
}

/// Directories change places, and one takes the place of an empty one; not of one that has something,
/// and none moves below itself.
#[test] // Proves: W-7, O-7.
fn directories_move_replace_and_change_places() {
    Script::run(750, 6, "raid5/2+1", async |script| {
        let root = script.root();
        let [x, a, y, b] = two_trees(&script).await;
        let into_itself = rename(&script, "x", &a, "x");
        let refused = script.names_at_last(4, &root, into_itself).await;
        assert!(matches!(refused, Err(LccRefusal::BadRequest { .. })), "{refused:?}");
        let below = exchange(&script, "x", &x, "a");
        let refused = script.names_at_last(4, &root, below).await;
        assert!(matches!(refused, Err(LccRefusal::BadRequest { .. })), "{refused:?}");

        script.names_at_last(4, &x, exchange(&script, "a", &y, "b")).await.expect("both are there");
        assert_eq!(script.entry(4, &x, "a").await, Some(b.group()));
        assert_eq!(script.entry(5, &y, "b").await, Some(a.group()));
        assert_eq!(script.parent(4, &a).await, y.group());
        assert_eq!(script.parent(4, &b).await, x.group());

        let f = script.make(5, &b, "f").await;
        let onto = rename(&script, "b", &x, "a");
        let refused = script.names_at_last(5, &y, onto).await;
        assert_eq!(refused.unwrap_err(), LccRefusal::NotEmpty);
        assert_eq!(script.parent(4, &a).await, y.group());
        script.names_at_last(5, &b, unlink(&script, "f", false)).await.expect("it is there");
        assert_eq!(script.link_count(5, &b, f).await, None);
        let onto = rename(&script, "b", &x, "a");
        script.names_at_last(5, &y, onto).await.expect("it is empty now");
        assert_eq!(script.entry(4, &x, "a").await, Some(a.group()));
        assert_eq!(script.entry(5, &y, "b").await, None);
        assert_eq!(script.parent(4, &a).await, x.group());
        let made = DirectoryOp::GetAttributes { id: b.group() };
        script
            .until("the replaced directory is gone", async |script| {
                matches!(
                    script.names(5, &b, made.clone()).await,
                    Err(Failed::Refused(LccRefusal::NotFound))
                )
            })
            .await;
    });
}

/// What a rename costs: the client asks once, owners ask each other for one look and one intent before
/// it is answered.
#[test] // Proves: W-7.
fn a_rename_is_one_request_of_the_client() {
    Script::run(760, 6, "raid5/2+1", async |script| {
        let (one, other) = two_directories(&script).await;
        script.make(4, &one, "f").await;
        synced(&script, &[&one, &other]).await;
        let between = script.note(|seen| (seen.from, seen.to) == (4, 5) && asks(seen, |_| true));
        let finish = script.note(|seen| asks(seen, |op| matches!(op, DirectoryOp::Finish { .. })));
        script.names(4, &one, rename(&script, "f", &other, "f")).await.expect("a rename");
        let before_answer = between.get() - finish.get();
        assert_eq!(before_answer, 2, "a look and an intent");
        // The primary forgets it when it is finished.
        script.counted("told, and finished", &finish, 2).await;
    });
}

/// An intent is on the disks before the primary decides.
///
/// 1. The disks of the secondary sync slowly, those of the primary at once.
/// 2. A rename is answered and the primary synced; then all machines lose their power.
/// 3. The secondary must still know what it is to do: else the file is in neither directory.
#[test] // Proves: W-7, W-10.
fn an_intent_is_stable_before_the_decision() {
    Script::run(770, 6, "raid5/2+1", async |script| {
        let root = script.root();
        let one = script.directory(&[1, 2], 4, &root).await;
        let other = script.directory(&[3, 6], 5, &root).await;
        let id = script.make(4, &one, "f").await;
        synced(&script, &[&one, &other]).await;
        script.set_sync_time(&[3, 6], SLOW);
        let op = rename(&script, "f", &other, "f");
        script.names_at_last(4, &one, op).await.expect("nothing is in the way");
        synced(&script, &[&one]).await;
        script.power_cut(&script.servers());
        script.power_on(&script.servers());
        assert_eq!(script.entry(4, &one, "f").await, None);
        assert_eq!(script.entry(5, &other, "f").await, Some(id));
    });
}

/// Each rule that these scripts guard, taken out: its script must fail.
#[test] // Proves: W-7, O-7.
fn each_planted_bug_is_found() {
    found::each_is_found(&[
        ("W-7/decisions-are-not-stable", no_power_cut_leaves_one_side_of_a_rename),
        ("W-7/the-secondary-does-not-ask", the_next_owner_of_a_secondary_asks_before_it_finishes),
        ("W-7/no-void-record", what_the_secondary_was_told_is_void_stays_so),
        ("W-7/intents-are-not-stable", an_intent_is_stable_before_the_decision),
        ("O-7/moves-without-the-lock", two_moves_make_no_circle),
    ]);
}
