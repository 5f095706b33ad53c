//! A directory at its owner: group commit of its changes, reading and checkpointing of its logs.
//!
//! # Theory
//! An operation is checked and becomes part of the batch being collected as soon as it arrives; at
//! most one batch is on its way, and while it is, the next one collects. So one operation alone
//! waits for one cluster write, and a thousand at once share a few.
//! ```text
//! operations --> [ collecting ] --close--> [ on its way: one cluster write ] --decided--> State
//!                                                                                answers, readers
//! ```
//! Where clients have copies of what it changes, a decided batch waits until they have none (N-1).
//!
//! A mount in this process may be answered *ahead*: as soon as its operation is part of a batch. It
//! alone sees what is not decided; whoever else looks waits until all that was answered is. A batch for
//! which nobody waits collects a little longer.
//! # Invariants
//! B1 An operation that is not answered ahead is answered after its batch is decided, and after it is
//!    stable where asked; a refused one after all batches are decided that it was judged by.
//! B2 Batches are decided in the order of their numbers; `State` is the newest decided one.
//! B3 After a batch failed nothing more is written or answered from here: whoever wants the directory
//!    reads it again from its devices.
//! B4 What was answered ahead and did not survive is told by the mount's next sync.
//! B5 What was answered ahead waits, as long as the group is owned, for a lease and for portions that
//!    are away: neither makes a batch fail.
//! # Failure
//! Lost ownership, full disks, damage: all that waits gets the refusal, and B3. A lease that ran out
//! while a batch was on its way: it is decided, and answered when there is a lease again.
//! # Source
//! DESIGN 8 (group commit), N-3, W-7, W-9, W-12.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use braid_terms::{DeviceId, GroupLayout};
use braid_wire::joint::{JointId, JointStep};
use braid_wire::lcc::{DirectoryOp, FileKind, IfExists, LccRefusal, LccReply, OperationId};
use bytes::Bytes;
use futures_util::future::{try_join, try_join_all};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::access::{GroupAccess, Part};
use super::log::{Checkpoint, Log, LogRole, LogWrite, Replay, Step};
use super::pending::{self, BatchNumber, Pending, laid_over};
use super::record::{Change, KIND_INTENT};
use super::rules::{self, Circumstances, Verdict};
use super::state::State;
use super::steps;
use super::touched::{self, Asked};

/// A directory of which this LCC is the owner.
pub struct Directory<G> {
    group: G,
    core: RefCell<Core>,
    /// The newest decided batch, or why there will be none.
    progress: watch::Sender<Progress>,
    /// The newest batch with an operation that was answered ahead, and who is told if it is lost.
    ahead: Cell<BatchNumber>,
    losses: RefCell<Losses>,
    /// The newest batch that somebody waits for; told when it is a newer one.
    wanted: Cell<BatchNumber>,
    is_wanted: Notify,
    /// A task writes batches.
    is_writing: Cell<bool>,
    /// A task writes a checkpoint of these logs.
    is_checkpointing: [Cell<bool>; 2],
}

/// Groups of which changes that were answered ahead are lost; clones share it. Source: W-9.
#[derive(Clone, Default)]
pub struct Losses(Rc<RefCell<BTreeSet<DeviceId>>>);

impl Losses {
    fn note(&self, group: DeviceId) {
        self.0.borrow_mut().insert(group);
    }

    /// Whether something of the group was lost since it was asked last.
    pub fn take(&self, group: DeviceId) -> bool {
        self.0.borrow_mut().remove(&group)
    }
}

struct Core {
    state: State,
    pending: Pending,
    /// Operations of the batch that is being collected.
    asked: Vec<Asked>,
    /// None until the directory is begun.
    logs: Option<[Log; 2]>,
}

#[derive(Clone, Debug)]
struct Progress {
    decided: BatchNumber,
    failed: Option<LccRefusal>,
}

/// What became of a changing operation.
#[derive(Debug)]
pub enum Changed {
    /// It is done.
    Done(LccReply),
    /// What it concerns is locked by this intent: nothing is done.
    Blocked(JointId),
    /// It concerns other groups, too: nothing is done.
    Joint,
}

impl<G: GroupAccess> Directory<G> {
    /// Reads the directory from its devices.
    ///
    /// Errors: damage is `Lost`; what reading gives.
    pub async fn load(group: G) -> Result<Rc<Self>, LccRefusal> {
        let id = group.layout().group();
        let lengths = group.lengths();
        let state = RefCell::new(State::new(id));
        let mut logs = None;
        if lengths.iter().any(|length| *length > 0) {
            let read = |role| replay(&group, role, &lengths, &state);
            let (names, attributes) =
                try_join(read(LogRole::Names), read(LogRole::Attributes)).await?;
            logs = Some([names, attributes]);
        }
        let state = state.into_inner();
        let pending = Pending::new(&state);
        Ok(Rc::new(Self {
            group,
            core: RefCell::new(Core { state, pending, asked: Vec::new(), logs }),
            progress: watch::Sender::new(Progress { decided: 0, failed: None }),
            ahead: Cell::new(0),
            losses: RefCell::default(),
            wanted: Cell::new(0),
            is_wanted: Notify::new(),
            is_writing: Cell::new(false),
            is_checkpointing: [Cell::new(false), Cell::new(false)],
        }))
    }

    /// Whether it must be read again from its devices.
    pub fn has_failed(&self) -> bool {
        self.progress.borrow().failed.is_some()
    }

    /// The group.
    pub fn group(&self) -> &G {
        &self.group
    }

    /// Does a changing operation. What is before the first wait happens in the order of the calls.
    /// With `ahead` it is answered when it is part of a batch, and that is told if the batch comes to
    /// nothing. Source: W-9.
    pub async fn change(
        self: Rc<Self>,
        op: DirectoryOp,
        around: Circumstances,
        ahead: Option<Losses>,
    ) -> Result<Changed, LccRefusal> {
        let stable = matches!(
            op,
            DirectoryOp::Create { stable: true, .. }
                | DirectoryOp::SetAttributes { stable: true, .. }
        );
        let asked = Asked::new(around.session, &op).that_waits(stable);
        let judge =
            |state: &State, pending: &mut _| rules::change(state, pending, op.clone(), &around);
        let is_ahead = ahead.is_some() && !stable;
        let changed = self.carry_out(asked, judge, ahead.filter(|_| !stable)).await?;
        if stable && matches!(changed, Changed::Done(_)) {
            self.group.sync().await?;
        }
        if !is_ahead {
            self.check_answer()?;
        }
        Ok(changed)
    }

    /// Does what another owner asks for a change over several groups. Source: W-7.
    pub async fn change_joint(self: Rc<Self>, op: DirectoryOp) -> Result<Changed, LccRefusal> {
        let judge = |state: &State, pending: &mut _| steps::change_joint(state, pending, &op);
        let stable = match &op {
            // Where it is lost the directory has no name, and goes as such.
            DirectoryOp::Intend { steps, .. } if *steps == [JointStep::Retire] => false,
            DirectoryOp::Intend { .. } => !braid_terms::planted!("W-7/intents-are-not-stable"),
            DirectoryOp::Outcome { .. } => true,
            _ => false,
        };
        let asked = Asked::new(0, &op).that_waits(stable);
        let changed = self.carry_out(asked, judge, None).await?;
        if stable && matches!(changed, Changed::Done(_)) {
            self.group.sync().await?;
        }
        Ok(changed)
    }

    async fn carry_out(
        self: &Rc<Self>,
        asked: Asked,
        judge: impl Fn(&State, &mut Pending) -> Result<Verdict, LccRefusal>,
        ahead: Option<Losses>,
    ) -> Result<Changed, LccRefusal> {
        loop {
            self.check()?;
            if BATCH_BYTES_MAX < self.core.borrow().pending.bytes {
                self.next_batch().await;
                continue;
            }
            let (verdict, newest) = {
                let core = &mut *self.core.borrow_mut();
                let verdict = judge(&core.state, &mut core.pending);
                if let Ok(Verdict::Batched(..)) = verdict {
                    core.asked.push(asked.clone());
                }
                (verdict, core.pending.newest())
            };
            match verdict {
                Err(refusal) => {
                    // It may come from what is not decided yet.
                    if ahead.is_none() {
                        self.decided(newest).await?;
                    }
                    return Err(refusal);
                }
                Ok(Verdict::Repeated(reply)) => return Ok(Changed::Done(reply)),
                Ok(Verdict::Batched(batch, reply)) => {
                    self.begin_writing();
                    match ahead {
                        Some(losses) => {
                            self.ahead.set(batch);
                            *self.losses.borrow_mut() = losses;
                        }
                        None => self.decided(batch).await?,
                    }
                    return Ok(Changed::Done(reply));
                }
                Ok(Verdict::RepeatedIn(batch)) => self.decided(batch).await?,
                Ok(Verdict::Blocked(intent)) => return Ok(Changed::Blocked(intent)),
                Ok(Verdict::Joint) => {
                    // Who looks at what it concerns sees what is decided.
                    self.decided(newest).await?;
                    return Ok(Changed::Joint);
                }
            }
        }
    }

    /// Whether an operation was done here before, and its answer; or the intent that will do it.
    pub async fn done_before(
        self: &Rc<Self>,
        operation: OperationId,
    ) -> Result<Option<Changed>, LccRefusal> {
        loop {
            self.check()?;
            let verdict = {
                let core = self.core.borrow();
                let open = core.state.locked.get(&steps::LockKey::Operation(operation));
                match open {
                    Some(intent) => Some(Verdict::Blocked(*intent)),
                    None => rules::repeated(&core.state, &core.pending, operation),
                }
            };
            return Ok(match verdict {
                Some(Verdict::RepeatedIn(batch)) => {
                    self.decided(batch).await?;
                    continue;
                }
                Some(Verdict::Repeated(reply)) => Some(Changed::Done(reply)),
                Some(Verdict::Blocked(intent)) => Some(Changed::Blocked(intent)),
                _ => None,
            });
        }
    }

    /// The intent that must end before a look can be answered.
    pub fn look_waits_for(&self, op: &DirectoryOp) -> Option<JointId> {
        steps::seen_by(&self.core.borrow().state, op)
    }

    /// Intents that have not ended, with the groups that decide them.
    pub fn intents(&self) -> Vec<(JointId, GroupLayout)> {
        let core = self.core.borrow();
        let intents = core.state.intents.iter();
        intents.map(|(id, intent)| (*id, intent.joint.primary.clone())).collect()
    }

    /// Whether an intent has not ended.
    pub fn has_intent(&self, id: JointId) -> bool {
        let core = self.core.borrow();
        core.state.intents.contains_key(&id)
            || matches!(core.pending.intents.get(&id), Some((_, Some(_))))
    }

    /// Waits until an intent has ended, which may not be decided yet.
    pub async fn intent_ended(&self, id: JointId) -> Result<(), LccRefusal> {
        let mut progress = self.progress.subscribe();
        loop {
            self.check()?;
            if !self.has_intent(id) {
                return Ok(());
            }
            progress.changed().await.expect("the sender is ours");
        }
    }

    /// Changes over several groups that were decided here, with those that are to finish them.
    pub fn joints(&self) -> Vec<(JointId, Vec<GroupLayout>)> {
        let core = self.core.borrow();
        core.state.joints.iter().map(|(id, of)| (*id, of.clone())).collect()
    }

    /// These are finished and stable everywhere.
    pub async fn forget_joints(self: Rc<Self>, ids: Vec<JointId>) -> Result<(), LccRefusal> {
        self.check()?;
        let batch = {
            let core = &mut *self.core.borrow_mut();
            steps::forget(&core.state, &mut core.pending, &ids);
            core.pending.newest()
        };
        self.begin_writing();
        self.decided(batch).await
    }

    /// Waits until all that was answered ahead is decided. Source: W-9.
    pub async fn all_decided(&self) -> Result<(), LccRefusal> {
        self.decided(self.ahead.get()).await
    }

    /// As `look`, for anybody: nothing that was answered is missing.
    pub async fn look_decided(&self, op: &DirectoryOp) -> Result<LccReply, LccRefusal> {
        if !braid_terms::planted!("W-9/what-was-answered-ahead-is-not-seen") {
            self.all_decided().await?;
        }
        self.look(op)
    }

    /// As `look`, for whoever is answered ahead.
    pub async fn look_ahead(&self, op: &DirectoryOp) -> Result<LccReply, LccRefusal> {
        self.check()?;
        if self.progress.borrow().decided < self.ahead.get()
            && let Some(seen) = self.look_undecided(op)
        {
            return seen;
        }
        self.look_decided(op).await
    }

    /// What is not decided counts as well; `None` where that cannot be said here.
    fn look_undecided(&self, op: &DirectoryOp) -> Option<Result<LccReply, LccRefusal>> {
        let core = self.core.borrow();
        let (state, pending) = (&core.state, &core.pending);
        let kept = |id: &DeviceId| {
            laid_over(&pending.attributes, &state.attributes, id).cloned().map(Box::new)
        };
        state.own.as_ref()?;
        Some(match op {
            DirectoryOp::Lookup { name } => {
                let entry = laid_over(&pending.names, &state.names, name).cloned();
                entry.ok_or(LccRefusal::NotFound).map(|entry| {
                    let attributes = if entry.home.is_none() { kept(&entry.id) } else { None };
                    LccReply::Entry { entry, attributes }
                })
            }
            DirectoryOp::GetAttributes { id } => {
                let mut attributes = kept(id).ok_or(LccRefusal::NotFound);
                if let Ok(attributes) = &mut attributes
                    && *id == state.id
                {
                    (attributes.size, attributes.nlink) = pending.counted(state);
                }
                attributes.map(LccReply::Attributes)
            }
            _ => return None,
        })
    }

    /// Answers an operation that changes nothing, from what is decided.
    pub fn look(&self, op: &DirectoryOp) -> Result<LccReply, LccRefusal> {
        self.check()?;
        let core = self.core.borrow();
        let state = &core.state;
        let own = state.own.as_ref().ok_or(LccRefusal::NotFound)?;
        match op {
            DirectoryOp::Lookup { name } => {
                let entry = state.names.get(name).cloned().ok_or(LccRefusal::NotFound)?;
                let attributes = state.attributes_at(&entry);
                Ok(LccReply::Entry { entry, attributes })
            }
            DirectoryOp::List { after, limit, attributes } => match limit {
                1..=LIST_MAX => Ok(state.list(*after, *limit as usize, *attributes)),
                _ => Err(LccRefusal::BadRequest { reason: "1 to 4096 entries are listed".into() }),
            },
            DirectoryOp::GetAttributes { id } => state
                .attributes_of(*id)
                .map(|attributes| LccReply::Attributes(Box::new(attributes)))
                .ok_or(LccRefusal::NotFound),
            DirectoryOp::Parent => Ok(LccReply::Layouts(vec![own.parent.clone()])),
            _ => Err(LccRefusal::BadRequest { reason: "this operation is no look".into() }),
        }
    }

    /// What a name stands for, if its attributes are kept here.
    pub fn id_of(&self, name: &Bytes) -> Option<DeviceId> {
        let core = self.core.borrow();
        core.state.names.get(name).filter(|entry| entry.home.is_none()).map(|entry| entry.id)
    }

    /// The regular file, kept here, whose last name an operation may take.
    pub fn last_name_in(&self, op: &DirectoryOp) -> Option<DeviceId> {
        let id = match op {
            DirectoryOp::Unlink { name, keep: false, directory: false, .. } => self.id_of(name)?,
            DirectoryOp::Rename { to, target: None, exchange: false, keep: false, .. } => {
                self.id_of(to)?
            }
            DirectoryOp::Create { name, if_exists: IfExists::Replace, .. } => self.id_of(name)?,
            DirectoryOp::SetAttributes { id, changes, .. } if changes.nlink < 0 => *id,
            _ => return None,
        };
        let core = self.core.borrow();
        let attributes = core.state.attributes.get(&id)?;
        (attributes.kind == FileKind::File && attributes.nlink == 1).then_some(id)
    }

    /// Waits until all that was answered is stable. Source: W-9.
    pub async fn sync(&self) -> Result<LccReply, LccRefusal> {
        self.check()?;
        self.group.sync().await?;
        Ok(LccReply::Done)
    }

    /// Groups that nothing names any more.
    pub fn to_remove(&self) -> Vec<GroupLayout> {
        self.core.borrow().state.to_remove.values().cloned().collect()
    }

    /// Whether nothing of a retired directory is wanted by anyone; `None` where it was never begun.
    pub fn is_disposable(&self) -> Option<bool> {
        let core = self.core.borrow();
        core.state.own.is_some().then(|| core.state.is_disposable() && core.pending.is_empty())
    }

    /// The portions of a group on the to-remove list are gone.
    pub async fn removed(self: Rc<Self>, device: DeviceId) -> Result<(), LccRefusal> {
        self.check()?;
        let batch = pending::removed(&mut self.core.borrow_mut().pending, device);
        self.begin_writing();
        self.decided(batch).await
    }

    /// Gives up uploads that were begun before `before` (seconds since 1970); how many.
    pub fn abandon_old_uploads(self: &Rc<Self>, before: i64) -> usize {
        let count = {
            let core = &mut *self.core.borrow_mut();
            pending::abandon_old(&core.state, &mut core.pending, before)
        };
        if count > 0 {
            self.begin_writing();
        }
        count
    }

    /// Whether it may be answered for.
    ///
    /// Errors: why not.
    pub fn check(&self) -> Result<(), LccRefusal> {
        if let Some(refusal) = self.progress.borrow().failed.clone() {
            return Err(refusal);
        }
        self.group.check()
    }

    fn want(&self, batch: BatchNumber) {
        if self.wanted.get() < batch {
            self.wanted.set(batch);
            self.is_wanted.notify_one();
        }
    }

    async fn decided(&self, batch: BatchNumber) -> Result<(), LccRefusal> {
        self.want(batch);
        let mut progress = self.progress.subscribe();
        let reached =
            progress.wait_for(|progress| batch <= progress.decided || progress.failed.is_some());
        let progress = reached.await.expect("the sender is ours").clone();
        match progress.failed {
            Some(refusal) if progress.decided < batch => Err(refusal),
            _ => Ok(()),
        }
    }

    /// Whether what is decided may be answered: somebody else may own the group by now, and answer.
    /// Source: O-4.
    pub fn check_answer(&self) -> Result<(), LccRefusal> {
        self.group.check().map_err(|_| LccRefusal::OutcomeUnknown)
    }

    /// Waits until the batch being collected is another one.
    async fn next_batch(&self) {
        self.want(self.core.borrow().pending.newest());
        let mut progress = self.progress.subscribe();
        if progress.borrow_and_update().failed.is_none() {
            progress.changed().await.expect("the sender is ours");
        }
    }

    fn begin_writing(self: &Rc<Self>) {
        if !self.is_writing.replace(true) {
            // A task: operations that arrive in the same turn are collected before it runs.
            spawn_local(self.clone().write_batches());
        }
    }

    async fn write_batches(self: Rc<Self>) {
        let outcome = loop {
            if self.has_failed() {
                break Ok(());
            }
            self.collect().await;
            match self.write_batch().await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(refusal) => break Err(refusal),
            }
        };
        self.is_writing.set(false);
        if let Err(refusal) = outcome {
            self.fail(refusal);
        }
    }

    /// Waits a little for more, while nobody waits for what there is.
    async fn collect(&self) {
        let newest = {
            let core = self.core.borrow();
            if core.pending.is_empty() || BATCH_BYTES_MAX / 2 < core.pending.bytes {
                return;
            }
            core.pending.newest()
        };
        let end = Instant::now() + COLLECT_MAX;
        while self.ahead.get() == newest && self.wanted.get() < newest {
            let left = end.saturating_duration_since(Instant::now());
            if timeout(left, self.is_wanted.notified()).await.is_err() {
                return;
            }
        }
    }

    /// One batch; `false` where there was nothing to write.
    async fn write_batch(self: &Rc<Self>) -> Result<bool, LccRefusal> {
        let (batch, changes, parts, asked) = {
            let core = &mut *self.core.borrow_mut();
            if core.pending.is_empty() {
                return Ok(false);
            }
            let (batch, changes) = core.pending.close();
            let layout = self.group.layout();
            let parts = append(&mut core.logs, &layout, core.state.next_cookie, &changes);
            (batch, changes, parts, std::mem::take(&mut core.asked))
        };
        self.write_parts(parts, asked.iter().any(|asked| asked.stable)).await?;
        let changing = if self.group.has_copies() {
            let own = self.core.borrow().state.id;
            self.group.before_change(touched::changed(own, &changes, &asked)).await
        } else {
            None
        };
        {
            let core = &mut *self.core.borrow_mut();
            let before = core.state.names.len();
            changes.into_iter().for_each(|change| core.state.apply(change));
            core.pending.decided(batch, &core.state, before);
        }
        drop(changing);
        self.progress.send_modify(|progress| progress.decided = batch);
        for role in ROLES {
            self.checkpoint_if_due(role).await?;
        }
        Ok(true)
    }

    /// One cluster write; where it cannot begin, and something was answered that is not decided, it
    /// waits until it can.
    async fn write_parts(&self, parts: Vec<Part>, stable_soon: bool) -> Result<(), LccRefusal> {
        loop {
            let refusal = match self.group.write(parts.clone(), stable_soon).await {
                Ok(()) => return Ok(()),
                Err(refusal) => refusal,
            };
            // With these it has no number, or a void one.
            let may_wait =
                matches!(refusal, LccRefusal::NotOwner { .. } | LccRefusal::Unavailable { .. });
            let is_owed = self.progress.borrow().decided < self.ahead.get();
            if !may_wait || !is_owed || !self.group.is_alive() {
                return Err(refusal);
            }
            braid_terms::sometimes!(
                "W-9: what was answered ahead waited until it could be written"
            );
            sleep(BEGIN_PAUSE).await;
        }
    }

    fn fail(&self, refusal: LccRefusal) {
        if self.progress.borrow().decided < self.ahead.get() {
            let group = self.core.borrow().state.id;
            tracing::warn!(directory = %group, "changes that were answered ahead are lost");
            braid_terms::sometimes!(
                "W-9: changes of a directory that were answered ahead were lost"
            );
            if !braid_terms::planted!("W-9/a-loss-ahead-is-not-told") {
                self.losses.borrow().note(group);
            }
            // Who was told of them may have kept it.
            self.group.take_copies_back();
        }
        self.progress.send_modify(|progress| {
            progress.failed.get_or_insert(refusal);
        });
    }

    /// Begins a checkpoint where the log has grown enough. Called while no batch is on its way: the
    /// state is what the log says.
    async fn checkpoint_if_due(self: &Rc<Self>, role: LogRole) -> Result<(), LccRefusal> {
        let place = usize::from(role.device_index());
        let checkpoint = {
            let core = &mut *self.core.borrow_mut();
            let log = &mut core.logs.as_mut().expect("a batch was written")[place];
            let is_due = log.wants_checkpoint(core.state.live(role));
            if !is_due || self.is_checkpointing[place].get() {
                return Ok(());
            }
            log.begin_checkpoint(&core.state.checkpoint(role))
        };
        self.group.write(vec![part(role, &checkpoint.jump)], false).await?;
        self.is_checkpointing[place].set(true);
        spawn_local(self.clone().write_checkpoint(role, checkpoint));
        Ok(())
    }

    async fn write_checkpoint(self: Rc<Self>, role: LogRole, checkpoint: Checkpoint) {
        let outcome = self.try_write_checkpoint(role, &checkpoint).await;
        self.is_checkpointing[usize::from(role.device_index())].set(false);
        match outcome {
            // The log goes on without it, and the next one will do.
            Ok(()) | Err(LccRefusal::NoSpace) => {}
            Err(refusal) => self.fail(refusal),
        }
    }

    async fn try_write_checkpoint(
        &self,
        role: LogRole,
        checkpoint: &Checkpoint,
    ) -> Result<(), LccRefusal> {
        let LogWrite { at, bytes } = &checkpoint.body;
        for from in (0..bytes.len()).step_by(CHECKPOINT_PIECE) {
            self.check()?;
            let piece = bytes.slice(from..bytes.len().min(from + CHECKPOINT_PIECE));
            let piece = LogWrite { at: at + from as u64, bytes: piece };
            self.group.write(vec![part(role, &piece)], false).await?;
        }
        self.check()?;
        let switch = {
            let core = &mut *self.core.borrow_mut();
            let logs = core.logs.as_mut().expect("a checkpoint was begun");
            logs[usize::from(role.device_index())].switch(checkpoint)
        };
        // All bytes of the checkpoint are decided, so they have lower numbers; and the punch gets a
        // higher one than the switch (hole 29).
        self.group.write(vec![part(role, &switch.root)], false).await?;
        let device_index = role.device_index();
        let (at, length) = (switch.punch_at, switch.punch_length);
        if length > 0 {
            self.group.write(vec![Part::Punch { device_index, at, length }], false).await?;
        }
        Ok(())
    }
}

/// The changes of a batch as records at the ends of both logs, which are made where there are none.
fn append(
    logs: &mut Option<[Log; 2]>,
    layout: &GroupLayout,
    next_cookie: u64,
    changes: &[Change],
) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut records = [Vec::new(), Vec::new()];
    for change in changes {
        records[usize::from(change.role().device_index())].push(change.encode());
    }
    let logs = logs.get_or_insert_with(|| {
        // A log without any record would be shorter than its root slots.
        records[0].push(Change::NextCookie(next_cookie).encode());
        ROLES.map(|role| {
            let device = layout.devices[usize::from(role.device_index())];
            let (log, root) = Log::create(device, role);
            parts.push(part(role, &root));
            log
        })
    });
    for role in ROLES {
        let place = usize::from(role.device_index());
        if records[place].iter().any(|record| KIND_INTENT <= record.kind) {
            parts.extend(logs[place].upgrade().map(|root| part(role, &root)));
        }
        if !records[place].is_empty() {
            parts.push(part(role, &logs[place].append(&records[place])));
        }
    }
    parts
}

fn part(role: LogRole, write: &LogWrite) -> Part {
    let LogWrite { at, bytes } = write.clone();
    Part::Write { device_index: role.device_index(), at, bytes }
}

async fn replay<G: GroupAccess>(
    group: &G,
    role: LogRole,
    lengths: &[u64],
    state: &RefCell<State>,
) -> Result<Log, LccRefusal> {
    let layout = group.layout();
    let place = usize::from(role.device_index());
    let device = layout.devices.get(place).copied();
    let (Some(device), Some(length)) = (device, lengths.get(place)) else {
        return Err(LccRefusal::NotDirectory);
    };
    let damaged = |what: &dyn std::fmt::Display| {
        let reason = format!("directory device {device} is damaged: {what}");
        tracing::error!(%reason, "a directory cannot be read");
        LccRefusal::Lost { reason }
    };
    let mut replay = Replay::new(device, role, *length);
    loop {
        match replay.next().map_err(|damage| damaged(&damage))? {
            Step::Read { at, length } => {
                // Several requests at once: the way to the disks is longer than their work.
                let pieces = (0..length).step_by(READ_PIECE).map(|from| {
                    let piece = (length - from).min(READ_PIECE as u64);
                    group.read(role.device_index(), at + from, piece)
                });
                let pieces = try_join_all(pieces).await?;
                if pieces.iter().map(|piece| piece.len() as u64).sum::<u64>() != length {
                    return Err(damaged(&"it is shorter than its length"));
                }
                replay.feed(pieces.iter().flat_map(|piece| &piece.pieces).map(|piece| &piece[..]));
            }
            Step::Record(record) => match Change::decode(role, &record) {
                Ok(change) => state.borrow_mut().apply(change),
                Err(_) => return Err(damaged(&"a record says nothing that is known")),
            },
            Step::End(log) => return Ok(*log),
        }
    }
}

const ROLES: [LogRole; 2] = [LogRole::Names, LogRole::Attributes];

/// Bytes of changes above which a batch takes no more; each change may add some 100 KiB.
const BATCH_BYTES_MAX: usize = 2 << 20;

/// How long a batch collects for which nobody waits. Some cluster writes long, so that many changes
/// share one; short, since a crash of the mount takes what it has.
const COLLECT_MAX: Duration = Duration::from_millis(20);

/// Pause before a batch that could not begin is written again.
const BEGIN_PAUSE: Duration = Duration::from_millis(20);

/// Bytes of a checkpoint in one cluster write.
const CHECKPOINT_PIECE: usize = 1 << 20;

/// Bytes of a log in one read.
const READ_PIECE: usize = 1 << 20;

const LIST_MAX: u32 = 4096;

#[cfg(test)]
#[path = "batch_test.rs"]
mod test;
