//! A directory as its two logs say it: names, attributes, uploads, what is to be removed.
//!
//! # Theory
//! `apply` takes one change; all decided changes in order give the state, and `checkpoint` gives
//! changes that lead to the same state again. Nothing undecided is ever in here.
//! # Invariants
//! D1 `cookies` has each name of `names` under its cookie, and nothing else.
//! D2 `operation_order` has each key of `operations` once, oldest first.
//! # Source
//! DESIGN 8, F-9, N-3, N-4.
//! # Not here
//! What may be changed: `rules.rs`. When it is decided: `batch.rs`.

use std::collections::{BTreeMap, VecDeque};

use braid_terms::{DeviceId, GroupLayout};
use braid_wire::joint::JointId;
use braid_wire::lcc::{Attributes, DirectoryEntry, FileData, FileKind, LccReply, OperationId};
use bytes::Bytes;

use super::log::{HEAD_SIZE, LogRole, Record};
use super::record::{Answer, Change, OwnState, Upload};
use super::steps::{Intent, LockKey};

/// The decided state of one directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// The group: also the id of the directory's own attributes.
    pub id: DeviceId,
    /// Entries by name.
    pub names: BTreeMap<Bytes, DirectoryEntry>,
    cookies: BTreeMap<u64, Bytes>,
    /// Above every cookie ever given.
    pub next_cookie: u64,
    /// Entries that are directories.
    pub subdirectories: u32,
    /// Attributes by id, also of files whose names are elsewhere.
    pub attributes: BTreeMap<DeviceId, Attributes>,
    /// Devices that are being written.
    pub uploads: BTreeMap<DeviceId, Upload>,
    /// Groups that nothing names any more.
    pub to_remove: BTreeMap<DeviceId, GroupLayout>,
    /// The newest operations.
    pub operations: BTreeMap<OperationId, Answer>,
    operation_order: VecDeque<OperationId>,
    /// Changes over several groups that are not settled here. Source: W-7.
    pub intents: BTreeMap<JointId, Intent>,
    /// What they lock.
    pub locked: BTreeMap<LockKey, JointId>,
    /// Such changes that were decided here, with the groups that may not have finished them.
    pub joints: BTreeMap<JointId, Vec<GroupLayout>>,
    /// The newest ones that were not made.
    voids: VecDeque<JointId>,
    /// None until the directory is begun.
    pub own: Option<OwnState>,
    live: [u64; 2],
}

impl State {
    /// Of a directory that was never begun.
    pub fn new(id: DeviceId) -> Self {
        Self {
            id,
            names: BTreeMap::new(),
            cookies: BTreeMap::new(),
            next_cookie: 1,
            subdirectories: 0,
            attributes: BTreeMap::new(),
            uploads: BTreeMap::new(),
            to_remove: BTreeMap::new(),
            operations: BTreeMap::new(),
            operation_order: VecDeque::new(),
            intents: BTreeMap::new(),
            locked: BTreeMap::new(),
            joints: BTreeMap::new(),
            voids: VecDeque::new(),
            own: None,
            live: [0; 2],
        }
    }

    /// Takes a decided change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Enter(entry) => {
                self.remove_name(&entry.name.clone());
                self.next_cookie = self.next_cookie.max(entry.cookie.saturating_add(1));
                self.cookies.insert(entry.cookie, entry.name.clone());
                self.subdirectories += u32::from(entry.kind == FileKind::Directory);
                self.live[0] += entry_size(&entry);
                self.names.insert(entry.name.clone(), entry);
            }
            Change::RemoveName(name) => self.remove_name(&name),
            Change::NextCookie(cookie) => self.next_cookie = self.next_cookie.max(cookie),
            Change::Attributes(attributes) => {
                self.remove_attributes(attributes.id);
                self.live[1] += attributes_size(&attributes);
                self.attributes.insert(attributes.id, *attributes);
            }
            Change::RemoveAttributes(id) => self.remove_attributes(id),
            Change::Upload(upload) => {
                self.uploads.insert(upload.layout.group(), upload);
            }
            Change::UploadEnded(device) => {
                self.uploads.remove(&device);
            }
            Change::ToRemove(layout) => {
                self.to_remove.insert(layout.group(), layout);
            }
            Change::Removed(device) => {
                self.to_remove.remove(&device);
            }
            Change::Operation(operation, answer) => self.add_operation(operation, answer),
            Change::Directory(own) => self.own = Some(own),
            Change::Intent(intent) => {
                let id = intent.joint.id;
                self.locked.extend(intent.keys().into_iter().map(|key| (key, id)));
                self.intents.insert(id, *intent);
            }
            Change::IntentEnded(id) => {
                let intent = self.intents.remove(&id);
                for key in intent.iter().flat_map(Intent::keys) {
                    self.locked.remove(&key);
                }
            }
            Change::Joint(id, secondaries) => {
                self.joints.insert(id, secondaries);
            }
            Change::JointEnded(id) => {
                self.joints.remove(&id);
            }
            Change::JointVoid(id) => {
                self.voids.push_back(id);
                if self.voids.len() > VOIDS_KEPT {
                    self.voids.pop_front();
                }
            }
        }
    }

    /// Whether a change over several groups was made void here.
    pub fn is_void(&self, id: JointId) -> bool {
        self.voids.contains(&id)
    }

    fn remove_name(&mut self, name: &Bytes) {
        if let Some(entry) = self.names.remove(name) {
            self.cookies.remove(&entry.cookie);
            self.subdirectories -= u32::from(entry.kind == FileKind::Directory);
            self.live[0] -= entry_size(&entry);
        }
    }

    fn remove_attributes(&mut self, id: DeviceId) {
        if let Some(attributes) = self.attributes.remove(&id) {
            self.live[1] -= attributes_size(&attributes);
        }
    }

    fn add_operation(&mut self, operation: OperationId, answer: Answer) {
        if self.operations.insert(operation, answer).is_none() {
            self.operation_order.push_back(operation);
        }
        if self.operation_order.len() > OPERATIONS_KEPT {
            let oldest = self.operation_order.pop_front().expect("there are many");
            self.operations.remove(&oldest);
        }
    }

    /// Bytes of the state as records of a log, about.
    pub fn live(&self, role: LogRole) -> u64 {
        let joints = self.intents.len() + self.joints.len() + self.voids.len();
        let rest = self.uploads.len() + self.to_remove.len() + self.operations.len() + joints;
        match role {
            LogRole::Names => self.live[0],
            LogRole::Attributes => self.live[1] + rest as u64 * OTHER_SIZE,
        }
    }

    /// The state as records of one log.
    pub fn checkpoint(&self, role: LogRole) -> Vec<Record> {
        match role {
            LogRole::Names => std::iter::once(Change::NextCookie(self.next_cookie).encode())
                .chain(self.names.values().map(|entry| Change::Enter(entry.clone()).encode()))
                .collect(),
            LogRole::Attributes => {
                let own = self.own.iter().cloned().map(Change::Directory);
                let attributes =
                    self.attributes.values().map(|a| Change::Attributes(Box::new(a.clone())));
                let uploads = self.uploads.values().cloned().map(Change::Upload);
                let to_remove = self.to_remove.values().cloned().map(Change::ToRemove);
                let operations = self.operation_order.iter().map(|operation| {
                    Change::Operation(*operation, self.operations[operation].clone())
                });
                let intents = self.intents.values().cloned().map(Box::new).map(Change::Intent);
                let joints = self.joints.iter().map(|(id, of)| Change::Joint(*id, of.clone()));
                let voids = self.voids.iter().copied().map(Change::JointVoid);
                own.chain(attributes)
                    .chain(uploads)
                    .chain(to_remove)
                    .chain(operations)
                    .chain(intents)
                    .chain(joints)
                    .chain(voids)
                    .map(|change| change.encode())
                    .collect()
            }
        }
    }

    /// Attributes of an id; the directory's own with its size and number of names.
    pub fn attributes_of(&self, id: DeviceId) -> Option<Attributes> {
        let mut attributes = self.attributes.get(&id)?.clone();
        if id == self.id {
            let retired = self.own.as_ref().is_some_and(|own| own.retired);
            attributes.size = self.names.len() as u64;
            attributes.nlink = if retired { 0 } else { 2 + self.subdirectories };
        }
        Some(attributes)
    }

    /// Attributes of what an entry names, where they are kept here.
    pub fn attributes_at(&self, entry: &DirectoryEntry) -> Option<Box<Attributes>> {
        match entry.home {
            Some(_) => None,
            None => self.attributes_of(entry.id).map(Box::new),
        }
    }

    /// Entries behind a cookie, in order, and whether nothing follows.
    pub fn list(&self, after: u64, limit: usize, with_attributes: bool) -> LccReply {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let behind = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        for name in self.cookies.range(behind).map(|(_, name)| name) {
            if entries.len() == limit || bytes > LIST_BYTES_MAX {
                return LccReply::Entries { entries, end: false };
            }
            let entry = self.names[name].clone();
            let attributes = if with_attributes { self.attributes_at(&entry) } else { None };
            let attributes = attributes.map(|attributes| without_inline(*attributes));
            bytes += entry_size(&entry) + attributes.as_ref().map_or(0, attributes_size);
            entries.push((entry, attributes));
        }
        LccReply::Entries { entries, end: true }
    }

    /// The reply to a repeated operation. Source: L2 of `wire::lcc`.
    pub fn reply(&self, answer: &Answer) -> LccReply {
        match answer {
            Answer::Done => LccReply::Done,
            Answer::Entry { entry, .. } => {
                LccReply::Entry { entry: entry.clone(), attributes: self.attributes_at(entry) }
            }
            Answer::Removed { entry, attributes } => {
                LccReply::Removed { entry: entry.clone(), attributes: attributes.clone() }
            }
            Answer::Attributes(id) => match self.attributes_of(*id) {
                Some(attributes) => LccReply::Attributes(Box::new(attributes)),
                None => LccReply::Done,
            },
            Answer::Last(attributes) => LccReply::Attributes(attributes.clone()),
        }
    }

    /// Whether a retired directory keeps nothing that anyone may still want.
    pub fn is_disposable(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.retired)
            && self.names.is_empty()
            && self.uploads.is_empty()
            && self.to_remove.is_empty()
            && self.intents.is_empty()
            && self.joints.is_empty()
            && self.attributes.keys().all(|id| *id == self.id)
    }
}

/// Attributes without inline bytes: the size stays.
pub fn without_inline(mut attributes: Attributes) -> Attributes {
    if matches!(attributes.data, FileData::Inline(_)) {
        attributes.data = FileData::None;
    }
    attributes
}

fn layout_size(layout: &GroupLayout) -> u64 {
    32 + 4 * layout.disks.len() as u64
}

fn entry_size(entry: &DirectoryEntry) -> u64 {
    let home = entry.home.as_ref().map_or(1, layout_size);
    (HEAD_SIZE + 18 + entry.name.len()) as u64 + home
}

fn attributes_size(attributes: &Attributes) -> u64 {
    let data = match &attributes.data {
        FileData::None => 1,
        FileData::Inline(bytes) => 5 + bytes.len() as u64,
        FileData::Device(layout) => 1 + layout_size(layout),
    };
    let target = attributes.target.as_ref().map_or(1, |target| 3 + target.len());
    let xattrs: usize = attributes.xattrs.iter().map(|(n, v)| 5 + n.len() + v.len()).sum();
    (HEAD_SIZE + 102 + target + xattrs) as u64 + data
}

/// Operations that are remembered, so that a repeat is answered as the first.
pub const OPERATIONS_KEPT: usize = 8192;

/// Changes over several groups that are remembered as not made: a driver that comes late with one is
/// refused. It waits for no answer that long.
pub const VOIDS_KEPT: usize = 8192;

/// Bytes of a record that is neither a name nor attributes, about.
const OTHER_SIZE: u64 = 100;

/// Bytes of one answer to `List`, above which it ends.
const LIST_BYTES_MAX: u64 = 1 << 20;
