//! Changes of a directory that are not decided: the batch on its way and the one being collected.
//!
//! # Theory
//! Each key has its newest undecided value, with the batch that gave it. A batch that is decided
//! leaves its changes to the state, and takes with it all values that are not of a later batch.
//! # Invariants
//! P3 Of what a key was given in several batches, the newest is here.
//! # Source
//! DESIGN 8 (group commit), W-7.

use std::collections::BTreeMap;

use braid_terms::{DeviceId, GroupLayout};
use braid_wire::joint::JointId;
use braid_wire::lcc::{Attributes, DirectoryEntry, FileKind, OperationId};
use bytes::Bytes;

use super::record::{Answer, Change, OwnState, Upload};
use super::state::State;
use super::steps::Intent;

/// Number of a batch, in the order of deciding.
pub type BatchNumber = u64;

/// Changes that are not decided yet, by what they change.
#[derive(Default)]
pub struct Pending {
    /// The batch that is being collected.
    pub batch: BatchNumber,
    pub names: Overlay<Bytes, DirectoryEntry>,
    pub attributes: Overlay<DeviceId, Attributes>,
    pub uploads: Overlay<DeviceId, Upload>,
    pub to_remove: Overlay<DeviceId, GroupLayout>,
    pub operations: Overlay<OperationId, Answer>,
    pub intents: Overlay<JointId, Intent>,
    pub joints: Overlay<JointId, Vec<GroupLayout>>,
    pub voids: Overlay<JointId, ()>,
    pub own: Option<(BatchNumber, OwnState)>,
    /// In the order of their doing, in the batch that is being collected.
    pub operations_new: Vec<OperationId>,
    /// Above those given, if any was given since the start.
    pub next_cookie: u64,
    /// Entries with all changes, minus those that are decided.
    pub entries_added: i64,
    /// Of the batch that is being collected, about.
    pub bytes: usize,
}

/// Undecided values by key, with the batch in which each was given; `None` is removed.
pub type Overlay<K, V> = BTreeMap<K, (BatchNumber, Option<V>)>;

impl Pending {
    /// For a state without undecided changes.
    pub fn new(state: &State) -> Self {
        Self { batch: 1, next_cookie: state.next_cookie, ..Self::default() }
    }

    /// The newest batch that has changes.
    pub fn newest(&self) -> BatchNumber {
        if self.is_empty() { self.batch - 1 } else { self.batch }
    }

    /// Whether the batch being collected has any change.
    pub fn is_empty(&self) -> bool {
        self.operations_new.is_empty() && self.changed_keys() == 0
    }

    fn changed_keys(&self) -> usize {
        let batch = self.batch;
        fn count<K, V>(overlay: &Overlay<K, V>, batch: BatchNumber) -> usize {
            overlay.values().filter(|(of, _)| *of == batch).count()
        }
        count(&self.uploads, batch)
            + count(&self.to_remove, batch)
            + count(&self.attributes, batch)
            + count(&self.names, batch)
            + count(&self.intents, batch)
            + count(&self.joints, batch)
            + count(&self.voids, batch)
    }

    /// Entries of the directory, and its names, with all undecided changes.
    pub fn counted(&self, state: &State) -> (u64, u32) {
        let is_directory = |entry: &DirectoryEntry| entry.kind == FileKind::Directory;
        let change = |(name, (_, entry)): (&Bytes, &(BatchNumber, Option<DirectoryEntry>))| {
            let after = i64::from(entry.as_ref().is_some_and(is_directory));
            after - i64::from(state.names.get(name).is_some_and(is_directory))
        };
        let subdirectories = self.names.iter().map(change).sum::<i64>();
        let own = self.own.as_ref().map(|(_, own)| own).or(state.own.as_ref());
        let names = match own.is_some_and(|own| own.retired) {
            true => 0,
            false => 2 + i64::from(state.subdirectories) + subdirectories,
        };
        let entries = state.names.len() as i64 + self.entries_added;
        (u64::try_from(entries).unwrap_or(0), u32::try_from(names).unwrap_or(0))
    }

    /// Ends the batch being collected: its number and changes. A next one begins.
    pub fn close(&mut self) -> (BatchNumber, Vec<Change>) {
        let batch = self.batch;
        let mut changes = Vec::new();
        let own = self.own.iter().filter(|(of, _)| *of == batch);
        changes.extend(own.map(|(_, own)| Change::Directory(own.clone())));
        // Removals of names go first: an entry may take over the cookie of a removed one.
        let names = in_batch(&self.names, batch);
        let (entered, removed): (Vec<_>, Vec<_>) = names.partition(|(_, entry)| entry.is_some());
        changes.extend(removed.iter().map(|(name, _)| Change::RemoveName((*name).clone())));
        changes.extend(entered.into_iter().filter_map(|(_, e)| e.clone()).map(Change::Enter));
        changes.extend(in_batch(&self.attributes, batch).map(
            |(id, attributes)| match attributes {
                Some(attributes) => Change::Attributes(Box::new(attributes.clone())),
                None => Change::RemoveAttributes(*id),
            },
        ));
        changes.extend(in_batch(&self.uploads, batch).map(|(device, upload)| match upload {
            Some(upload) => Change::Upload(upload.clone()),
            None => Change::UploadEnded(*device),
        }));
        changes.extend(in_batch(&self.to_remove, batch).map(|(device, layout)| match layout {
            Some(layout) => Change::ToRemove(layout.clone()),
            None => Change::Removed(*device),
        }));
        changes.extend(in_batch(&self.intents, batch).map(|(id, intent)| match intent {
            Some(intent) => Change::Intent(Box::new(intent.clone())),
            None => Change::IntentEnded(*id),
        }));
        changes.extend(in_batch(&self.joints, batch).map(|(id, secondaries)| match secondaries {
            Some(secondaries) => Change::Joint(*id, secondaries.clone()),
            None => Change::JointEnded(*id),
        }));
        changes.extend(in_batch(&self.voids, batch).map(|(id, _)| Change::JointVoid(*id)));
        for operation in std::mem::take(&mut self.operations_new) {
            let (_, answer) = &self.operations[&operation];
            let answer = answer.clone().expect("operations are only added");
            changes.push(Change::Operation(operation, answer));
        }
        self.batch += 1;
        self.bytes = 0;
        (batch, changes)
    }

    /// A batch is decided, and its changes are in the state: they are not pending any more.
    pub fn decided(&mut self, batch: BatchNumber, state: &State, entries_before: usize) {
        fn settle<K: Ord, V>(overlay: &mut Overlay<K, V>, batch: BatchNumber) {
            overlay.retain(|_, (of, _)| *of > batch);
        }
        settle(&mut self.names, batch);
        settle(&mut self.attributes, batch);
        settle(&mut self.uploads, batch);
        settle(&mut self.to_remove, batch);
        settle(&mut self.operations, batch);
        settle(&mut self.intents, batch);
        settle(&mut self.joints, batch);
        settle(&mut self.voids, batch);
        self.own.take_if(|(of, _)| *of <= batch);
        self.entries_added -= state.names.len() as i64 - entries_before as i64;
    }
}

fn in_batch<K, V>(
    overlay: &Overlay<K, V>,
    batch: BatchNumber,
) -> impl Iterator<Item = (&K, &Option<V>)> {
    overlay.iter().filter(move |(_, (of, _))| *of == batch).map(|(key, (_, value))| (key, value))
}

/// What a key stands for with all undecided changes.
pub fn laid_over<'a, K: Ord, V>(
    overlay: &'a Overlay<K, V>,
    below: &'a BTreeMap<K, V>,
    key: &K,
) -> Option<&'a V> {
    match overlay.get(key) {
        Some((_, value)) => value.as_ref(),
        None => below.get(key),
    }
}

/// The portions of a removed group are gone: it leaves the to-remove list.
pub fn removed(pending: &mut Pending, device: DeviceId) -> BatchNumber {
    pending.to_remove.insert(device, (pending.batch, None));
    pending.batch
}

/// Uploads that were begun before `before` are given up; how many.
pub fn abandon_old(state: &State, pending: &mut Pending, before: i64) -> usize {
    let old: Vec<_> =
        state.uploads.values().filter(|u| u.begun < before).map(|u| u.layout.clone()).collect();
    let mut count = 0;
    for layout in old {
        let device = layout.group();
        if laid_over(&pending.uploads, &state.uploads, &device).is_some() {
            pending.uploads.insert(device, (pending.batch, None));
            pending.to_remove.insert(device, (pending.batch, Some(layout)));
            count += 1;
        }
    }
    count
}
