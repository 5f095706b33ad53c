//! A change over several groups, at one of them: what locks, what decides, what is done.
//!
//! # Theory
//! ```text
//! at a secondary, by what it has of the change
//!                 Intend               Finish Stable         Finish Void
//! nothing         check: intent        nothing               nothing
//! intent          repeated             steps, intent ends    intent ends
//!
//! at the primary, by what it has of the change
//!                 Decide               Outcome               forget
//! nothing         check: steps, made   void; not made        nothing
//! made            repeated             made                  nothing is left
//! void            Conflict             not made              nothing
//! ```
//! An intent locks what its steps need: names, counts, the directory's being there, its parent.
//! Whoever wants to change or to see that waits until the intent ends; all else goes on.
//! # Invariants
//! J1 of `wire::joint`, and:
//! K1 What an intent was checked against stays so until it ends: two intents lock nothing in common.
//! K2 `State::locked` has each key of each intent of `State::intents`, and nothing else.
//! # Source
//! W-7, O-7, L2 of `wire::lcc`.
//! # Not here
//! Who asks whom, and when: `joint.rs`.

use braid_terms::DeviceId;
use braid_wire::joint::{Joint, JointAnswer, JointId, JointNews, JointStep};
use braid_wire::lcc::{
    Attributes, DirectoryEntry, DirectoryOp, FileData, FileKind, IfExists, LccRefusal, LccReply,
    OperationId,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::checks::{bad, check_directory_layout, check_name, check_new};
use super::pending::Pending;
use super::record::{Answer, OwnState};
use super::rules::{Circumstances, Draft, Verdict, fresh_attributes, operation_of};
use super::state::State;

/// What a secondary promised.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// The change.
    pub joint: Joint,
    /// What is done here.
    pub steps: Vec<JointStep>,
}

/// What an intent keeps as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LockKey {
    /// What a name stands for.
    Name(Bytes),
    /// How many names a file has.
    Count(DeviceId),
    /// That the directory is empty, and takes nothing.
    Empty,
    /// The directory's parent, and that it stays.
    Parent,
    /// That this operation was not done.
    Operation(OperationId),
}

impl Intent {
    /// What it locks.
    pub fn keys(&self) -> Vec<LockKey> {
        keys(&self.joint, &self.steps)
    }
}

fn keys(joint: &Joint, steps: &[JointStep]) -> Vec<LockKey> {
    let mut keys = vec![LockKey::Operation(joint.operation)];
    for step in steps {
        match step {
            JointStep::Leave { name, .. }
            | JointStep::Enter { name, .. }
            | JointStep::Make { name, .. } => keys.push(LockKey::Name(name.clone())),
            JointStep::Count { id, .. } => keys.push(LockKey::Count(*id)),
            JointStep::Retire => keys.extend([LockKey::Empty, LockKey::Parent]),
            JointStep::SetParent { .. } => keys.push(LockKey::Parent),
            JointStep::Touch { .. } | JointStep::Drop { .. } => {}
        }
    }
    keys
}

/// Does what owners of directories ask of each other, or refuses it.
///
/// Errors: the refusal; nothing changed.
pub fn change_joint(
    state: &State,
    pending: &mut Pending,
    op: &DirectoryOp,
) -> Result<Verdict, LccRefusal> {
    let time = match op {
        DirectoryOp::Decide { joint, .. } => joint.time,
        DirectoryOp::Finish { id, .. } => {
            state.intents.get(id).map(|intent| intent.joint.time).unwrap_or_default()
        }
        _ => Default::default(),
    };
    let around = Circumstances { now: time, new_id: DeviceId(0), session: 0 };
    let mut draft = Draft { state, pending, around: &around };
    match op {
        DirectoryOp::Intend { joint, steps } => draft.intend(joint, steps),
        DirectoryOp::Decide { joint, steps } => draft.decide(joint, steps),
        DirectoryOp::Finish { id, news } => Ok(draft.finish(*id, *news)),
        DirectoryOp::Outcome { id } => draft.outcome(*id),
        _ => Err(bad("this operation is no part of a change over several groups")),
    }
}

/// Changes that are finished and stable at all their secondaries need not be known any more.
pub fn forget(state: &State, pending: &mut Pending, ids: &[JointId]) {
    let batch = pending.batch;
    let known = ids.iter().filter(|id| state.joints.contains_key(id));
    pending.joints.extend(known.map(|id| (*id, (batch, None))));
}

impl Draft<'_> {
    // At a secondary.

    fn intend(&mut self, joint: &Joint, steps: &[JointStep]) -> Result<Verdict, LccRefusal> {
        if let Some((batch, _)) = self.pending.intents.get(&joint.id) {
            return Ok(Verdict::RepeatedIn(*batch));
        }
        if self.state.intents.contains_key(&joint.id) {
            return Ok(Verdict::Repeated(LccReply::Done));
        }
        if let Some(other) = self.check_joint(joint, steps)? {
            return Ok(Verdict::Blocked(other));
        }
        let intent = Intent { joint: joint.clone(), steps: steps.to_vec() };
        self.pending.intents.insert(joint.id, (self.pending.batch, Some(intent)));
        Ok(self.batched(LccReply::Done))
    }

    fn finish(&mut self, id: JointId, news: JointNews) -> Verdict {
        if let Some((batch, _)) = self.pending.intents.get(&id) {
            return Verdict::RepeatedIn(*batch);
        }
        let state = self.state;
        let (Some(intent), true) = (state.intents.get(&id), news != JointNews::Decided) else {
            return Verdict::Repeated(LccReply::Done);
        };
        if news == JointNews::Stable {
            self.do_steps(&intent.joint, &intent.steps);
        }
        self.pending.intents.insert(id, (self.pending.batch, None));
        self.batched(LccReply::Done)
    }

    // At the primary.

    fn decide(&mut self, joint: &Joint, steps: &[JointStep]) -> Result<Verdict, LccRefusal> {
        if let Some((batch, _)) = self.pending.joints.get(&joint.id) {
            return Ok(Verdict::RepeatedIn(*batch));
        }
        if self.state.joints.contains_key(&joint.id) {
            return Ok(Verdict::Repeated(LccReply::Done));
        }
        if self.state.is_void(joint.id) || self.pending.voids.contains_key(&joint.id) {
            return Err(LccRefusal::Conflict);
        }
        if let Some(other) = self.check_joint(joint, steps)? {
            return Ok(Verdict::Blocked(other));
        }
        self.do_steps(joint, steps);
        if !joint.secondaries.is_empty() {
            let made = (self.pending.batch, Some(joint.secondaries.clone()));
            self.pending.joints.insert(joint.id, made);
        }
        Ok(self.batched(LccReply::Done))
    }

    fn outcome(&mut self, id: JointId) -> Result<Verdict, LccRefusal> {
        if self.own().is_none() {
            return Err(LccRefusal::NotFound);
        }
        let made = self.pending.joints.get(&id).map(|(batch, _)| *batch);
        let void = self.pending.voids.get(&id).map(|(batch, _)| *batch);
        if let Some(batch) = made.or(void) {
            return Ok(Verdict::RepeatedIn(batch));
        }
        if self.state.joints.contains_key(&id) {
            return Ok(Verdict::Repeated(LccReply::Outcome(true)));
        }
        let is_silent = braid_terms::planted!("W-7/no-void-record");
        if self.state.is_void(id) || is_silent {
            return Ok(Verdict::Repeated(LccReply::Outcome(false)));
        }
        self.pending.voids.insert(id, (self.pending.batch, Some(())));
        Ok(self.batched(LccReply::Outcome(false)))
    }

    fn batched(&mut self, reply: LccReply) -> Verdict {
        self.pending.bytes += super::rules::ATTRIBUTES_BYTES;
        Verdict::Batched(self.pending.batch, reply)
    }

    // What is locked.

    /// The intent that locks a key.
    fn lock_of(&self, key: &LockKey) -> Option<JointId> {
        let decided = self.state.locked.get(key).copied();
        let decided = decided.filter(|id| !matches!(self.pending.intents.get(id), Some((_, None))));
        decided.or_else(|| {
            let mut open = self.pending.intents.iter();
            open.find_map(|(id, (_, intent))| {
                intent.as_ref().filter(|intent| intent.keys().contains(key)).map(|_| *id)
            })
        })
    }

    /// An intent on any name here.
    fn lock_of_any_name(&self) -> Option<JointId> {
        let names =
            |intent: &Intent| intent.keys().into_iter().find(|key| matches!(key, LockKey::Name(_)));
        let open = self.pending.intents.values().filter_map(|(_, intent)| intent.as_ref());
        let mut open = self.state.intents.values().chain(open);
        open.find_map(|intent| names(intent).and_then(|key| self.lock_of(&key)))
    }

    /// The intent that an operation must wait for.
    pub(super) fn blocked(&self, op: &DirectoryOp) -> Option<JointId> {
        let mut keys: Vec<_> = operation_of(op).map(LockKey::Operation).into_iter().collect();
        let mut name = |name: &Bytes| {
            keys.push(LockKey::Name(name.clone()));
            if let Some(entry) = self.entry(name).filter(|entry| entry.home.is_none()) {
                keys.push(LockKey::Count(entry.id));
            }
        };
        match op {
            DirectoryOp::Create { name: new, .. } | DirectoryOp::Enter { name: new, .. } => {
                name(new);
                keys.push(LockKey::Empty);
            }
            DirectoryOp::Link { name: new, id, .. } => {
                name(new);
                keys.extend([LockKey::Empty, LockKey::Count(*id)]);
            }
            DirectoryOp::Unlink { name: old, .. } => name(old),
            DirectoryOp::Rename { from, to, target: None, .. } => {
                name(from);
                name(to);
            }
            DirectoryOp::BeginUploads { .. } => keys.push(LockKey::Empty),
            DirectoryOp::SetAttributes { id, changes, .. } if changes.nlink != 0 => {
                keys.push(LockKey::Count(*id));
            }
            DirectoryOp::Retire { .. } => {
                keys.extend([LockKey::Empty, LockKey::Parent]);
                if let Some(id) = self.lock_of_any_name() {
                    return Some(id);
                }
            }
            _ => {}
        }
        keys.iter().find_map(|key| self.lock_of(key))
    }

    /// Whether an operation concerns other groups, too: what else it would be refused for is for the
    /// rules to say.
    pub(super) fn is_joint(&self, op: &DirectoryOp) -> bool {
        let is_elsewhere = |name: &Bytes| {
            let entry = self.entry(name).filter(|entry| entry.home.is_some());
            entry.map(|entry| (entry.id, entry.kind == FileKind::Directory))
        };
        match op {
            DirectoryOp::Create { name, if_exists, .. } => {
                *if_exists == IfExists::Replace && matches!(is_elsewhere(name), Some((_, false)))
            }
            DirectoryOp::Link { home, .. } => home.group() != self.state.id,
            DirectoryOp::Unlink { name, only_id, directory, .. } => {
                is_elsewhere(name).is_some_and(|(id, is_directory)| {
                    only_id.is_none_or(|only| only == id) && is_directory == *directory
                })
            }
            DirectoryOp::Rename { target: Some(_), .. } => true,
            DirectoryOp::Rename { from, to, exchange: false, if_exists, .. } => {
                *if_exists == IfExists::Replace
                    && is_elsewhere(to).is_some_and(|(id, is_directory)| {
                        self.entry(from).is_some_and(|source| {
                            source.id != id && is_directory == (source.kind == FileKind::Directory)
                        })
                    })
            }
            _ => false,
        }
    }

    // Steps.

    /// Whether all steps can be made; the intent that must end before that is known.
    fn check_joint(
        &self,
        joint: &Joint,
        steps: &[JointStep],
    ) -> Result<Option<JointId>, LccRefusal> {
        let own = self.own().ok_or(LccRefusal::NotFound)?;
        let mut wanted = keys(joint, steps);
        let adds =
            |step: &JointStep| matches!(step, JointStep::Enter { .. } | JointStep::Make { .. });
        if steps.iter().any(adds) {
            wanted.push(LockKey::Empty);
        }
        let ends = steps.contains(&JointStep::Retire);
        let other = wanted.iter().find_map(|key| self.lock_of(key));
        let other = other.or_else(|| if ends { self.lock_of_any_name() } else { None });
        if other.is_some() {
            return Ok(other);
        }
        if self.is_done(joint.operation) {
            // By another attempt.
            return Err(LccRefusal::Conflict);
        }
        steps.iter().try_for_each(|step| self.check_step(step, &own))?;
        Ok(None)
    }

    fn check_step(&self, step: &JointStep, own: &OwnState) -> Result<(), LccRefusal> {
        let names = |name: &Bytes| self.entry(name).map(|entry| entry.id);
        let fits = |fits: bool| if fits { Ok(()) } else { Err(LccRefusal::Conflict) };
        match step {
            JointStep::Leave { name, id } => fits(names(name) == Some(*id)),
            JointStep::Enter { name, home, replaces, .. } => {
                check_name(name)?;
                check_directory_layout(home)?;
                self.check_not_retired()?;
                fits(names(name) == *replaces)
            }
            JointStep::Make { name, id, attributes, replaces } => {
                check_name(name)?;
                check_new(attributes)?;
                self.check_not_retired()?;
                fits(names(name) == *replaces)?;
                fits(self.attributes(*id).is_none() && !self.is_to_remove(*id))
            }
            JointStep::Count { id, by, before, .. } => {
                let count = self.attributes(*id).map(|attributes| attributes.nlink);
                fits((count.is_some() || *by < 0) && (before.is_none() || *before == count))
            }
            JointStep::Touch { .. } | JointStep::Drop { .. } => Ok(()),
            JointStep::Retire if own.parent.group() == self.state.id => {
                Err(bad("the root directory stays"))
            }
            JointStep::Retire if self.entry_count() > 0 => Err(LccRefusal::NotEmpty),
            JointStep::Retire => Ok(()),
            JointStep::SetParent { parent } => {
                check_directory_layout(parent)?;
                self.check_not_retired()
            }
        }
    }

    fn do_steps(&mut self, joint: &Joint, steps: &[JointStep]) {
        for step in steps {
            self.do_step(step);
        }
        let answer = (self.pending.batch, Some(Answer::from(&joint.answer)));
        self.pending.operations.insert(joint.operation, answer);
        self.pending.operations_new.push(joint.operation);
    }

    fn do_step(&mut self, step: &JointStep) {
        match step {
            JointStep::Leave { name, id } => match self.entry(name).cloned() {
                Some(entry) if entry.id == *id => {
                    self.remove_entry(&entry);
                    self.touch_directory();
                }
                other => tracing::error!(%id, ?other, "a name that was locked has changed"),
            },
            JointStep::Enter { name, id, kind, home, .. } => {
                let is_here = home.group() == self.state.id && *kind != FileKind::Directory;
                let home = (!is_here).then(|| home.clone());
                let entry =
                    DirectoryEntry { name: name.clone(), id: *id, kind: *kind, home, cookie: 0 };
                let old = self.entry(name).cloned();
                self.put_entry(entry, old.as_ref());
                self.touch_directory();
            }
            JointStep::Make { name, id, attributes, .. } => {
                if let FileData::Device(layout) = &attributes.data {
                    self.end_upload(layout.group());
                }
                let kind = attributes.kind;
                let made = fresh_attributes(*id, (**attributes).clone(), self.around.now);
                self.put_attributes(made);
                let entry =
                    DirectoryEntry { name: name.clone(), id: *id, kind, home: None, cookie: 0 };
                let old = self.entry(name).cloned();
                self.put_entry(entry, old.as_ref());
                self.touch_directory();
            }
            JointStep::Count { id, by, keep_last, .. } => self.count(*id, *by, *keep_last),
            JointStep::Touch { id } => self.touch(*id),
            JointStep::Drop { directory } => self.put_to_remove(directory.clone()),
            JointStep::Retire => {
                if let Some(own) = self.own() {
                    self.set_own(OwnState { retired: true, ..own });
                }
            }
            JointStep::SetParent { parent } => {
                if let Some(own) = self.own() {
                    self.set_own(OwnState { parent: parent.clone(), ..own });
                }
            }
        }
    }

    /// One name more or less. Without one left the file goes, unless its record is kept.
    pub(super) fn count(&mut self, id: DeviceId, by: i32, keep_last: bool) {
        let Some(old) = self.attributes(id).cloned() else { return };
        let nlink = old.nlink.saturating_add_signed(by);
        if nlink == 0 && !keep_last {
            return self.drop_file(&old);
        }
        let (version, ctime) = (old.version + 1, self.around.now);
        self.put_attributes(Attributes { nlink: nlink.max(1), version, ctime, ..old });
    }
}

impl From<&JointAnswer> for Answer {
    fn from(answer: &JointAnswer) -> Self {
        match answer.clone() {
            JointAnswer::Entry(entry) => Self::Entry { entry, replaced: None },
            JointAnswer::Removed { entry, attributes } => Self::Removed { entry, attributes },
        }
    }
}

/// What of a directory a look needs to be settled.
pub fn seen_by(state: &State, op: &DirectoryOp) -> Option<JointId> {
    let locked = |key: &LockKey| state.locked.get(key).copied();
    let any_name = || {
        let from_first = LockKey::Name(Bytes::new())..LockKey::Count(DeviceId(0));
        state.locked.range(from_first).next().map(|(_, id)| *id)
    };
    match op {
        DirectoryOp::Lookup { name } => locked(&LockKey::Name(name.clone())).or_else(|| {
            let entry = state.names.get(name).filter(|entry| entry.home.is_none())?;
            locked(&LockKey::Count(entry.id))
        }),
        DirectoryOp::List { .. } => any_name(),
        // Its times, and how many entries and subdirectories it has.
        DirectoryOp::GetAttributes { id } if *id == state.id => {
            any_name().or_else(|| locked(&LockKey::Empty))
        }
        DirectoryOp::GetAttributes { id } => locked(&LockKey::Count(*id)),
        DirectoryOp::Parent => locked(&LockKey::Parent),
        _ => None,
    }
}

#[cfg(test)]
#[path = "steps_test.rs"]
mod test;
