//! Changes over several groups: who asks whom. The protocol is in `braid_wire::joint`.
//!
//! # Theory
//! The owner that is asked for a change looks at the names that it concerns, writes down what each
//! group is to do (`plan.rs`), takes the intents, and has the primary decide. A group where something
//! is not as it was seen refuses, and all begins anew. Whoever drives has no say in the outcome: it may
//! stop at any moment.
//! ```text
//! asked --Intend--> secondaries, from the highest number down
//!       --Decide--> primary (it syncs)
//! the client is answered
//!       --Finish Decided--> secondaries          who asks for the names there need not wait long
//! secondaries --Outcome--> primary (it syncs)    soon, at once where somebody waits
//! primary --Finish Stable--> secondaries (they sync), and forgets the change
//! ```
//! Directories that get another parent: the root's group is the rename device (O-7). Its owner does
//! all such moves, one after the other, and it is their primary, so that a move is decided under its
//! grant: of an owner that lost it nothing can be decided any more, and no two moves make a circle.
//! # Invariants
//! D1 Intents are taken from the highest number down, and only then the primary decides: who waits for
//!    a lock holds none that is below.
//! D2 A secondary whose intent is old, or was there when the directory was read, asks the primary until
//!    it knows.
//! # Failure
//! A primary that is not reached: its intents stay, what they lock is `Unavailable`, all else goes on.
//! # Source
//! W-7, O-7; holes 12, 35, 36 of the design's reasons.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use braid_terms::{DeviceId, GroupLayout, planted};
use braid_wire::joint::{Joint, JointId, JointNews, JointStep};
use braid_wire::lcc::{DirectoryOp, LccRefusal, LccReply, LccRequest, OperationId};
use futures_util::future::{LocalBoxFuture, join_all};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::access::OwnedGroup;
use super::batch::{Changed, Directory, Losses};
use super::plan::{Plan, Planned};
use super::requests::Files;
use super::rules::{Circumstances, operation_of};

/// An intent that is not settled.
#[derive(Default)]
pub(super) struct Settling {
    /// Somebody waits for what it locks.
    wanted: Cell<bool>,
    /// The primary is known to have decided.
    told: Cell<bool>,
    /// Told when one of these changes, or the intent has ended.
    bell: Notify,
}

/// What this LCC knows of changes over several groups.
#[derive(Default)]
pub(super) struct Joints {
    /// Intents at directories of which it is the owner.
    settling: std::cell::RefCell<BTreeMap<(DeviceId, JointId), Rc<Settling>>>,
    /// Operations that it drives: a repeat waits for the first.
    driving: std::cell::RefCell<BTreeMap<OperationId, Rc<tokio::sync::Mutex<()>>>>,
    /// Moves of directories, one at a time.
    moves: tokio::sync::Mutex<()>,
    /// Since when changes are seen that are not forgotten.
    seen: std::cell::RefCell<BTreeMap<JointId, Instant>>,
    attempts: Cell<u64>,
}

type Held = Rc<Directory<OwnedGroup>>;

impl Files {
    /// Does a changing operation, also one that concerns other groups; with `ahead` it may be answered
    /// before it is decided, where it does not.
    pub(super) async fn change(
        self: &Rc<Self>,
        directory: Held,
        op: DirectoryOp,
        around: Circumstances,
        ahead: Option<Losses>,
    ) -> Result<LccReply, LccRefusal> {
        let end = Instant::now() + BLOCKED_WAIT;
        loop {
            match directory.clone().change(op.clone(), around.clone(), ahead.clone()).await? {
                Changed::Done(reply) => return Ok(reply),
                Changed::Blocked(intent) => self.settled(&directory, intent, end).await?,
                Changed::Joint => {
                    let layout = directory.group().0.layout().clone();
                    return self.drive(layout, op, around.new_id).await;
                }
            }
        }
    }

    /// Waits until a look is not in doubt.
    pub(super) async fn look_is_settled(
        self: &Rc<Self>,
        directory: &Held,
        op: &DirectoryOp,
    ) -> Result<(), LccRefusal> {
        let end = Instant::now() + BLOCKED_WAIT;
        while let Some(intent) = directory.look_waits_for(op) {
            self.settled(directory, intent, end).await?;
        }
        Ok(())
    }

    /// All that was answered of changes over several groups is written here: a sync saves it.
    pub(super) async fn all_settled(self: &Rc<Self>, directory: &Held) -> Result<(), LccRefusal> {
        let end = Instant::now() + BLOCKED_WAIT;
        for (intent, _) in directory.intents() {
            self.settled(directory, intent, end).await?;
        }
        Ok(())
    }

    async fn settled(
        self: &Rc<Self>,
        directory: &Held,
        intent: JointId,
        end: Instant,
    ) -> Result<(), LccRefusal> {
        let key = (directory.group().0.layout().group(), intent);
        let settling = self.joints.settling.borrow().get(&key).cloned();
        if let Some(settling) = settling {
            settling.wanted.set(true);
            settling.bell.notify_one();
        }
        let left = end.saturating_duration_since(Instant::now());
        timeout(left, directory.intent_ended(intent)).await.unwrap_or_else(|_| {
            let reason = "a change over several directories is not settled yet".into();
            Err(LccRefusal::Unavailable { reason })
        })
    }

    // As a participant.

    /// What another owner asks for a change over several groups.
    pub(super) async fn take_part(
        self: &Rc<Self>,
        directory: Held,
        op: DirectoryOp,
    ) -> Result<LccReply, LccRefusal> {
        let end = Instant::now() + BLOCKED_WAIT;
        let reply = loop {
            match directory.clone().change_joint(op.clone()).await? {
                Changed::Done(reply) => break reply,
                Changed::Blocked(intent) => self.settled(&directory, intent, end).await?,
                Changed::Joint => unreachable!("it is one"),
            }
        };
        match op {
            DirectoryOp::Intend { joint, .. } => {
                self.begin_settling(&directory, (joint.id, joint.primary), ASK_AFTER);
            }
            DirectoryOp::Finish { id, news } => {
                let key = (directory.group().0.layout().group(), id);
                if let Some(settling) = self.joints.settling.borrow().get(&key) {
                    settling.told.set(true);
                    settling.bell.notify_one();
                }
                if news == JointNews::Stable {
                    directory.sync().await?;
                }
            }
            // Who is told of the change syncs one directory or another of it, and knows nothing of this
            // one: it must not be lost any more (simulator, seed 2108 of six servers).
            DirectoryOp::Decide { steps, .. }
                if !is_told_here(&steps) && !planted!("W-7/decisions-are-not-stable") =>
            {
                directory.sync().await.map_err(|_| LccRefusal::OutcomeUnknown)?;
            }
            _ => {}
        }
        // Not before an intent is looked after: it is there, whoever hears of it.
        directory.check_answer()?;
        Ok(reply)
    }

    /// A directory was read: its intents are asked about.
    pub(super) fn settle_all(self: &Rc<Self>, directory: &Held) {
        for intent in directory.intents() {
            self.begin_settling(directory, intent, Duration::ZERO);
        }
    }

    fn begin_settling(
        self: &Rc<Self>,
        directory: &Held,
        (id, primary): (JointId, GroupLayout),
        ask_after: Duration,
    ) {
        let key = (directory.group().0.layout().group(), id);
        let settling = Rc::new(Settling::default());
        self.joints.settling.borrow_mut().insert(key, settling.clone());
        let (files, directory) = (self.clone(), directory.clone());
        spawn_local(async move {
            files.settle(&directory, id, &primary, &settling, ask_after).await;
            let mut all = files.joints.settling.borrow_mut();
            if all.get(&key).is_some_and(|now| Rc::ptr_eq(now, &settling)) {
                all.remove(&key);
            }
        });
    }

    async fn settle(
        self: &Rc<Self>,
        directory: &Held,
        id: JointId,
        primary: &GroupLayout,
        settling: &Settling,
        ask_after: Duration,
    ) {
        let mut ask_at = Instant::now() + ask_after;
        let mut was_told = false;
        loop {
            loop {
                let is_open = directory.has_intent(id);
                let counts = !directory.has_failed() && directory.group().0.is_alive();
                if !is_open || !counts {
                    return;
                }
                if settling.told.get() && !was_told {
                    was_told = true;
                    ask_at = ask_at.min(Instant::now() + FINISH_AFTER);
                }
                if ask_at <= Instant::now() || was_told && settling.wanted.get() {
                    break;
                }
                let left = ask_at.saturating_duration_since(Instant::now());
                let _ = timeout(left, settling.bell.notified()).await;
            }
            if let Ok(made) = self.outcome(primary, id).await {
                let news = if made { JointNews::Stable } else { JointNews::Void };
                let finish = DirectoryOp::Finish { id, news };
                if directory.clone().change_joint(finish).await.is_ok() {
                    return;
                }
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// Whether a change was made, from its primary; known to be stable there.
    async fn outcome(
        self: &Rc<Self>,
        primary: &GroupLayout,
        id: JointId,
    ) -> Result<bool, LccRefusal> {
        if braid_terms::planted!("W-7/the-secondary-does-not-ask") {
            return Ok(true);
        }
        match self.ask_directory(primary, DirectoryOp::Outcome { id }).await {
            Ok(LccReply::Outcome(made)) => Ok(made),
            // It would be there as long as we have not finished.
            Err(LccRefusal::NotFound) => Ok(false),
            Ok(reply) => Err(LccRefusal::Unavailable { reason: format!("{reply:?}") }),
            Err(refusal) => Err(refusal),
        }
    }

    /// Primaries forget what all secondaries have finished.
    pub(super) async fn work_off_joints(self: &Rc<Self>) {
        let now = Instant::now();
        let mut seen = BTreeSet::new();
        let mut due = Vec::new();
        for directory in self.all() {
            let mut of_directory = Vec::new();
            for (id, secondaries) in directory.joints() {
                seen.insert(id);
                let since = *self.joints.seen.borrow_mut().entry(id).or_insert(now);
                if since + FORGET_AFTER <= now {
                    of_directory.push((id, secondaries));
                }
            }
            if !of_directory.is_empty() {
                due.push((directory, of_directory));
            }
        }
        self.joints.seen.borrow_mut().retain(|id, _| seen.contains(id));
        join_all(due.into_iter().map(|(directory, of)| self.work_off(directory, of))).await;
    }

    async fn work_off(self: &Rc<Self>, directory: Held, made: Vec<(JointId, Vec<GroupLayout>)>) {
        // J2: nobody is to finish what is not stable here.
        if directory.sync().await.is_err() {
            return;
        }
        let mut finished = Vec::new();
        for pieces in made.chunks(FORGET_AT_ONCE) {
            let all = pieces.iter().map(|(id, secondaries)| async move {
                let finish = DirectoryOp::Finish { id: *id, news: JointNews::Stable };
                let all = secondaries.iter().map(|of| self.ask_directory(of, finish.clone()));
                let is_finished = join_all(all).await.iter().all(|answer| {
                    // A group that is gone had finished: it goes not before.
                    matches!(answer, Ok(_) | Err(LccRefusal::NotFound))
                });
                is_finished.then_some(*id)
            });
            finished.extend(join_all(all).await.into_iter().flatten());
        }
        if !finished.is_empty() {
            // A refusal comes again with the next look.
            let _ = directory.forget_joints(finished).await;
        }
    }

    // As the driver.

    /// A task: it goes on when the client does not wait any more.
    async fn drive(
        self: &Rc<Self>,
        asked: GroupLayout,
        op: DirectoryOp,
        new_id: DeviceId,
    ) -> Result<LccReply, LccRefusal> {
        let files = self.clone();
        let task = spawn_local(async move {
            let operation = operation_of(&op).expect("it changes something");
            let turn = files.joints.driving.borrow_mut().entry(operation).or_default().clone();
            let done = {
                let _turn = turn.lock().await;
                files.attempts(&asked, &op, new_id, false).await
            };
            drop(turn);
            files.joints.driving.borrow_mut().retain(|_, turn| Rc::strong_count(turn) > 1);
            done
        });
        task.await.unwrap_or_else(|_| Err(ended()))
    }

    /// The owner of the rename device moves a directory. Source: O-7.
    pub(super) async fn move_directory(
        self: &Rc<Self>,
        root: GroupLayout,
        source: GroupLayout,
        rename: DirectoryOp,
    ) -> Result<LccReply, LccRefusal> {
        if self.lcc().map().root.as_ref().is_none_or(|known| known.group() != root.group()) {
            return Err(LccRefusal::Unavailable { reason: "this is not the root".into() });
        }
        let files = self.clone();
        let task = spawn_local(async move {
            let _turn = files.joints.moves.lock().await;
            files.attempts(&source, &rename, DeviceId(0), true).await
        });
        task.await.unwrap_or_else(|_| Err(ended()))
    }

    async fn attempts(
        self: &Rc<Self>,
        asked: &GroupLayout,
        op: &DirectoryOp,
        new_id: DeviceId,
        is_move: bool,
    ) -> Result<LccReply, LccRefusal> {
        let operation = operation_of(op).expect("it changes something");
        let root = self.lcc().map().root.clone();
        let root = root.ok_or_else(|| unavailable("there is no root yet"))?;
        let mut refusal = unavailable("names change too often");
        for attempt in 0..ATTEMPTS_MAX {
            let known = if is_move { &root } else { asked };
            if let Some(reply) = self.done_before(known, operation).await? {
                // It may be that nobody was told of it yet.
                let synced = self.directory(known).await?.sync().await;
                return synced.map(|_| reply).map_err(|_| LccRefusal::OutcomeUnknown);
            }
            let plan = match self.plan(asked, op, new_id, is_move.then_some(&root)).await? {
                Planned::Nothing(reply) => return Ok(reply),
                Planned::Move => {
                    let rename = Box::new(op.clone());
                    let op = DirectoryOp::MoveDirectory { source: asked.clone(), rename };
                    return self.ask_directory(&root, op).await;
                }
                Planned::Change(plan) => plan,
            };
            match self.make(operation, plan, root.group()).await {
                Err(LccRefusal::Conflict) => refusal = LccRefusal::Conflict,
                made => return made,
            }
            sleep(CONFLICT_PAUSE * attempt).await;
        }
        Err(refusal)
    }

    /// How an operation was answered before, if it was done.
    async fn done_before(
        self: &Rc<Self>,
        layout: &GroupLayout,
        operation: OperationId,
    ) -> Result<Option<LccReply>, LccRefusal> {
        let end = Instant::now() + BLOCKED_WAIT;
        let directory = self.directory(layout).await?;
        loop {
            match directory.done_before(operation).await? {
                Some(Changed::Done(reply)) => return Ok(Some(reply)),
                Some(Changed::Blocked(intent)) => self.settled(&directory, intent, end).await?,
                Some(Changed::Joint) | None => return Ok(None),
            }
        }
    }

    /// Makes a change. `Conflict`: nothing was done, what it was made for is not so any more.
    async fn make(
        self: &Rc<Self>,
        operation: OperationId,
        plan: Plan,
        root: DeviceId,
    ) -> Result<LccReply, LccRefusal> {
        self.joints.attempts.set(self.joints.attempts.get() + 1);
        let Plan { shares, answer, reply } = plan;
        // The root's number counts as the lowest.
        let mut shares: Vec<(GroupLayout, Vec<JointStep>)> = shares.into_values().collect();
        shares.sort_by_key(|(layout, _)| (layout.group() != root, layout.group()));
        let mut shares = shares.into_iter();
        let (primary, decided) = shares.next().expect("a change concerns a group");
        let joint = Joint {
            id: JointId { driver: self.random(), counter: self.joints.attempts.get() },
            operation,
            answer,
            time: self.now(),
            primary: primary.clone(),
            secondaries: shares.clone().map(|(layout, _)| layout).collect(),
        };
        let mut taken = Vec::new();
        for (layout, steps) in shares.rev() {
            let intend = DirectoryOp::Intend { joint: Box::new(joint.clone()), steps };
            match self.ask_directory(&layout, intend).await {
                Ok(_) => taken.push(layout),
                Err(refusal) => {
                    // It may have been taken.
                    taken.push(layout);
                    self.tell(&taken, joint.id, JointNews::Void).await;
                    return Err(refusal);
                }
            }
        }
        let id = joint.id;
        let decide = DirectoryOp::Decide { joint: Box::new(joint), steps: decided };
        match self.ask_directory(&primary, decide).await {
            Ok(_) => {}
            Err(refusal) => {
                let is_unknown = matches!(
                    refusal,
                    LccRefusal::Unavailable { .. }
                        | LccRefusal::NotOwner { .. }
                        | LccRefusal::OutcomeUnknown
                        | LccRefusal::Lost { .. }
                );
                if !is_unknown {
                    self.tell(&taken, id, JointNews::Void).await;
                }
                return Err(refusal);
            }
        }
        let files = self.clone();
        spawn_local(async move { files.tell(&taken, id, JointNews::Decided).await });
        Ok(reply)
    }

    /// Secondaries that do not hear it ask.
    async fn tell(self: &Rc<Self>, taken: &[GroupLayout], id: JointId, news: JointNews) {
        let finish = DirectoryOp::Finish { id, news };
        let told = taken.iter().map(|layout| self.ask_directory(layout, finish.clone()));
        join_all(told).await;
    }

    /// Asks the owner of a directory.
    pub(super) fn ask_directory<'a>(
        self: &'a Rc<Self>,
        layout: &'a GroupLayout,
        op: DirectoryOp,
    ) -> LocalBoxFuture<'a, Result<LccReply, LccRefusal>> {
        let request = LccRequest::Directory { layout: layout.clone(), op };
        Box::pin(self.ask_owner(layout, request))
    }
}

/// Whether a client is told of the primary's group itself, whose sync it will ask: the removal of a
/// directory, which leaves nothing else to be synced.
fn is_told_here(steps: &[JointStep]) -> bool {
    matches!(steps, [JointStep::Leave { .. }, JointStep::Drop { .. }])
}

fn ended() -> LccRefusal {
    unavailable("the local controller ends")
}

pub(super) fn unavailable(reason: &str) -> LccRefusal {
    LccRefusal::Unavailable { reason: reason.to_owned() }
}

/// Longest wait for what an intent locks; shorter than an owner waits for another.
const BLOCKED_WAIT: Duration = Duration::from_secs(8);

/// An intent of which nothing was heard for so long is asked about.
const ASK_AFTER: Duration = Duration::from_secs(2);
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// What is decided is written at a secondary after so long, if nobody waits for it: by then one sync of
/// the primary serves many.
const FINISH_AFTER: Duration = Duration::from_secs(1);

/// What is decided is forgotten after so long: by then it is finished and stable without being asked.
const FORGET_AFTER: Duration = Duration::from_secs(5);
const FORGET_AT_ONCE: usize = 64;

const ATTEMPTS_MAX: u32 = 16;
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);
