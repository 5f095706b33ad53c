//! What each group is to do in a change over several groups.
//!
//! # Theory
//! ```text
//!                      directory        other directory    home of the file    directory itself
//! link                                  Enter              Count +1
//! unlink               Leave                               Count -1
//! removal of a directory  Leave, Drop                                          Retire
//! create over a name   Make                                Count -1
//! rename               Leave            Enter              Count -1 (replaced) SetParent; Retire, Drop (replaced)
//! exchange             Enter            Enter                                  SetParent
//! ```
//! Each step says what must be so before; what is seen here without a lock is judged there again.
//! Two columns that are one group are one share.
//! # Source
//! W-7, O-7, N-4, F-9.

use std::collections::BTreeMap;
use std::rc::Rc;

use braid_terms::{DeviceId, GroupLayout};
use braid_wire::joint::{JointAnswer, JointStep};
use braid_wire::lcc::{
    Attributes, DirectoryEntry, DirectoryOp, FileData, FileKind, IfExists, LccRefusal, LccReply,
};
use bytes::Bytes;

use super::checks::{bad, check_directory_layout, check_name, check_replace};
use super::requests::Files;
use super::rules::fresh_attributes;
use super::state::without_inline;

/// What is to be done.
pub(super) enum Planned {
    /// Nothing, and this is the answer.
    Nothing(LccReply),
    /// The owner of the rename device does it.
    Move,
    /// This.
    Change(Plan),
}

/// A change over several groups.
pub(super) struct Plan {
    /// By group: where it is, and what it does.
    pub shares: BTreeMap<DeviceId, (GroupLayout, Vec<JointStep>)>,
    /// For repeats.
    pub answer: JointAnswer,
    /// For the first time.
    pub reply: LccReply,
}

/// What a name stands for, with the group that keeps the attributes.
struct Found {
    entry: DirectoryEntry,
    home: GroupLayout,
    /// If they are there: a power cut of all servers may have left the name alone.
    attributes: Option<Box<Attributes>>,
}

impl Found {
    fn is_directory(&self) -> bool {
        self.entry.kind == FileKind::Directory
    }
}

impl Plan {
    fn new() -> Self {
        let answer = JointAnswer::Removed { entry: None, attributes: None };
        let reply = LccReply::Removed { entry: None, attributes: None };
        Self { shares: BTreeMap::new(), answer, reply }
    }

    fn add(&mut self, group: &GroupLayout, step: JointStep) {
        let share = self.shares.entry(group.group());
        share.or_insert_with(|| (group.clone(), Vec::new())).1.push(step);
    }

    fn removes(mut self, found: Option<Found>) -> Self {
        let file = found.as_ref().filter(|found| !found.is_directory());
        let attributes = file.and_then(|found| found.attributes.clone());
        let attributes = attributes.map(|attributes| Box::new(without_inline(*attributes)));
        let entry = found.map(|found| found.entry);
        self.answer = JointAnswer::Removed { entry: entry.clone(), attributes: attributes.clone() };
        self.reply = LccReply::Removed { entry, attributes };
        self
    }

    fn makes(mut self, entry: DirectoryEntry, attributes: Attributes) -> Self {
        self.answer = JointAnswer::Entry(entry.clone());
        self.reply = LccReply::Entry { entry, attributes: Some(Box::new(attributes)) };
        self
    }

    /// What is found loses its name in `directory`.
    fn lose(&mut self, directory: &GroupLayout, found: &Found, keep_last: bool) {
        if found.is_directory() {
            self.add(directory, JointStep::Drop { directory: found.home.clone() });
            if found.attributes.is_some() {
                self.add(&found.home, JointStep::Retire);
            }
        } else if let Some(attributes) = &found.attributes {
            let (id, before) = (found.entry.id, Some(attributes.nlink));
            self.add(&found.home, JointStep::Count { id, by: -1, before, keep_last });
        }
    }

    fn enter(
        &mut self,
        directory: &GroupLayout,
        name: &Bytes,
        found: &Found,
        replaces: Option<&Found>,
    ) {
        let (id, kind, home) = (found.entry.id, found.entry.kind, found.home.clone());
        let replaces = replaces.map(|replaced| replaced.entry.id);
        let enter = JointStep::Enter { name: name.clone(), id, kind, home, replaces };
        self.add(directory, enter);
    }

    /// What is found was moved from one directory to another. A file's new time of change is part of it
    /// where its attributes are in one of them.
    fn moved(&mut self, from: &GroupLayout, to: &GroupLayout, found: &Found) {
        let id = found.entry.id;
        if found.is_directory() {
            if from.group() != to.group() {
                self.add(&found.home, JointStep::SetParent { parent: to.clone() });
                self.add(&found.home, JointStep::Touch { id });
            }
        } else if self.shares.contains_key(&found.home.group()) {
            self.add(&found.home, JointStep::Touch { id });
        }
    }
}

impl Files {
    /// What an operation that `asked` was asked for means for each group. `root`: the directory may
    /// move, this is the owner of the rename device.
    pub(super) async fn plan(
        self: &Rc<Self>,
        asked: &GroupLayout,
        op: &DirectoryOp,
        new_id: DeviceId,
        root: Option<&GroupLayout>,
    ) -> Result<Planned, LccRefusal> {
        match op {
            DirectoryOp::Rename { target, from, to, .. } => {
                check_name(from)?;
                check_name(to)?;
                let target = target.as_ref().unwrap_or(asked);
                check_directory_layout(target)?;
                self.plan_rename(asked, target, op, root).await
            }
            DirectoryOp::Unlink { name, only_id, keep, directory, .. } => {
                let found = self.found(asked, name).await?.ok_or(LccRefusal::NotFound)?;
                if only_id.is_some_and(|id| id != found.entry.id) {
                    return Err(LccRefusal::Conflict);
                }
                match (found.is_directory(), *directory) {
                    (true, false) => return Err(LccRefusal::IsDirectory),
                    (false, true) => return Err(LccRefusal::NotDirectory),
                    (true, true) | (false, false) => {}
                }
                let mut plan = Plan::new();
                let (name, id) = (name.clone(), found.entry.id);
                plan.add(asked, JointStep::Leave { name, id });
                plan.lose(asked, &found, *keep);
                Ok(Planned::Change(plan.removes(Some(found))))
            }
            DirectoryOp::Link { name, id, home, .. } => {
                check_name(name)?;
                check_directory_layout(home)?;
                let LccReply::Attributes(attributes) =
                    self.ask_directory(home, DirectoryOp::GetAttributes { id: *id }).await?
                else {
                    return Err(LccRefusal::NotFound);
                };
                let kind = attributes.kind;
                if kind == FileKind::Directory {
                    return Err(bad("a directory has one name only"));
                }
                if let Some(taken) = self.found(asked, name).await? {
                    return Err(LccRefusal::Exists { kind: taken.entry.kind });
                }
                let (id, home) = (*id, home.clone());
                let (name, cookie) = (name.clone(), 0);
                let entry = DirectoryEntry { name, id, kind, home: Some(home.clone()), cookie };
                let mut plan = Plan::new();
                let name = entry.name.clone();
                let enter = JointStep::Enter { name, id, kind, home: home.clone(), replaces: None };
                plan.add(asked, enter);
                let count = JointStep::Count { id, by: 1, before: None, keep_last: false };
                plan.add(&home, count);
                let nlink = attributes.nlink + 1;
                Ok(Planned::Change(plan.makes(entry, Attributes { nlink, ..*attributes })))
            }
            DirectoryOp::Create { name, attributes, if_exists, .. } => {
                let replaced = self.found(asked, name).await?;
                match &replaced {
                    Some(old) if *if_exists == IfExists::Fail => {
                        return Err(LccRefusal::Exists { kind: old.entry.kind });
                    }
                    Some(old) if old.is_directory() => return Err(LccRefusal::IsDirectory),
                    _ => {}
                }
                let id = match &attributes.data {
                    FileData::Device(layout) => layout.group(),
                    FileData::None | FileData::Inline(_) => attributes.id.unwrap_or(new_id),
                };
                let kind = attributes.kind;
                let made = fresh_attributes(id, attributes.clone(), self.now());
                let mut plan = Plan::new();
                let replaces = replaced.as_ref().map(|old| old.entry.id);
                let attributes = Box::new(attributes.clone());
                plan.add(asked, JointStep::Make { name: name.clone(), id, attributes, replaces });
                if let Some(old) = &replaced {
                    plan.lose(asked, old, false);
                }
                let name = name.clone();
                let entry = DirectoryEntry { name, id, kind, home: None, cookie: 0 };
                Ok(Planned::Change(plan.makes(entry, made)))
            }
            _ => Err(bad("this operation concerns one group")),
        }
    }

    async fn plan_rename(
        self: &Rc<Self>,
        source: &GroupLayout,
        target: &GroupLayout,
        op: &DirectoryOp,
        root: Option<&GroupLayout>,
    ) -> Result<Planned, LccRefusal> {
        let DirectoryOp::Rename { from, to, exchange, if_exists, only_replaces, keep, .. } = op
        else {
            unreachable!("asked for a rename only");
        };
        let (moved, taken) =
            futures_util::future::join(self.found(source, from), self.found(target, to)).await;
        let moved = moved?.ok_or(LccRefusal::NotFound)?;
        let taken = taken?;
        if *exchange && taken.is_none() {
            return Err(LccRefusal::NotFound);
        }
        if only_replaces.is_some() && *only_replaces != taken.as_ref().map(|old| old.entry.id) {
            return Err(LccRefusal::Conflict);
        }
        if let Some(taken) = &taken {
            if !exchange {
                check_replace(&moved.entry, &taken.entry, *if_exists)?;
            }
            if taken.entry.id == moved.entry.id {
                // Two names of one file: POSIX says that nothing happens.
                let reply = LccReply::Removed { entry: None, attributes: None };
                return Ok(Planned::Nothing(reply));
            }
        }
        let mut plan = Plan::new();
        let is_across = source.group() != target.group();
        let comes = |found: &Found| is_across && found.is_directory();
        let comes_back = taken.as_ref().filter(|_| *exchange);
        if comes(&moved) || comes_back.is_some_and(comes) {
            let is_free = braid_terms::planted!("O-7/moves-without-the-lock");
            match root {
                Some(root) => {
                    // Its record decides, whether or not anything changes there.
                    plan.shares.insert(root.group(), (root.clone(), Vec::new()));
                }
                None if is_free => {}
                None => return Ok(Planned::Move),
            }
            if comes(&moved) {
                self.check_not_below(moved.entry.id, target).await?;
            }
            if let Some(back) = comes_back.filter(|back| comes(back)) {
                self.check_not_below(back.entry.id, source).await?;
            }
        }
        match &taken {
            Some(back) if *exchange => {
                plan.enter(source, from, back, Some(&moved));
                plan.enter(target, to, &moved, Some(back));
                plan.moved(target, source, back);
                plan.moved(source, target, &moved);
                Ok(Planned::Change(plan))
            }
            _ => {
                let (name, id) = (from.clone(), moved.entry.id);
                plan.add(source, JointStep::Leave { name, id });
                plan.enter(target, to, &moved, taken.as_ref());
                if let Some(taken) = &taken {
                    plan.lose(target, taken, *keep);
                }
                plan.moved(source, target, &moved);
                Ok(Planned::Change(plan.removes(taken)))
            }
        }
    }

    /// What a name stands for; none if for nothing.
    async fn found(
        self: &Rc<Self>,
        directory: &GroupLayout,
        name: &Bytes,
    ) -> Result<Option<Found>, LccRefusal> {
        let op = DirectoryOp::Lookup { name: name.clone() };
        let (entry, attributes) = match self.ask_directory(directory, op).await {
            Ok(LccReply::Entry { entry, attributes }) => (entry, attributes),
            Ok(_) => return Err(bad("a look-up is answered by an entry")),
            // Of a directory that is gone the steps are refused.
            Err(LccRefusal::NotFound) => return Ok(None),
            Err(refusal) => return Err(refusal),
        };
        let home = entry.home.clone().unwrap_or_else(|| directory.clone());
        let attributes = match attributes {
            None => {
                let look = DirectoryOp::GetAttributes { id: entry.id };
                match self.ask_directory(&home, look).await {
                    Ok(LccReply::Attributes(attributes)) => Some(attributes),
                    // A name of nothing.
                    Ok(_) | Err(LccRefusal::NotFound) => None,
                    Err(refusal) => return Err(refusal),
                }
            }
            attributes => attributes,
        };
        Ok(Some(Found { entry, home, attributes }))
    }

    /// A directory cannot become its own descendant.
    async fn check_not_below(
        self: &Rc<Self>,
        moved: DeviceId,
        target: &GroupLayout,
    ) -> Result<(), LccRefusal> {
        let mut above = target.clone();
        for _ in 0..DEPTH_MAX {
            if above.group() == moved {
                return Err(bad("a directory cannot be moved into itself"));
            }
            let next = match self.ask_directory(&above, DirectoryOp::Parent).await? {
                LccReply::Layouts(parents) => parents.into_iter().next(),
                _ => None,
            };
            let next = next.ok_or_else(|| bad("a directory has one parent"))?;
            if next.group() == above.group() {
                return Ok(());
            }
            above = next;
        }
        Err(bad("too many directories above"))
    }
}

/// Directories above each other, at most: as many as a path can name.
const DEPTH_MAX: usize = 2048;
