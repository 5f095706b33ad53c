//! What the local journal of a former start has, and how the cluster gets it.
//! # Theory
//! ```text
//! journal read -> owner here:      laid when it is opened (`group/copies.rs`)
//!              -> owner elsewhere: LayCopy, one after the other, then EndCopy
//!              -> may not be laid: a file beside the one that it is of, found from the root down
//! ```
//! The file has the lost writes at their places and nothing else, and is named after the other:
//! `NAME.local-copy-SECONDS`, by the time of day at which it is made.
//! # Invariants
//! Y1 A record goes from the local journal only when the cluster has it on its media, or nothing names
//!    its device any more.
//! # Failure
//! Who does not answer is asked again later; the records stay. A stop while a file is made: it is made
//! again under another name, and what has no name is given up as any upload (F-9).
//! # Source
//! W-13; DESIGN 4, acknowledgement modes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use braid_env::Payload;
use braid_terms::{DataType, DeviceId, FactNumber, GroupLayout, PolicyQuestion};
use braid_wire::lcc::{
    Attributes, DirectoryEntry, DirectoryOp, FileData, FileKind, FileOp, IfExists, LccRefusal,
    LccReply, LccRequest, NewAttributes,
};
use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::access::{own_refusal, place_refusal, write_refusal};
use super::checks::bad;
use super::requests::Files;
use crate::GroupWrite;
use crate::lcc::OwnError;
use crate::local::Kept;

/// A file whose device has writes that may not be laid.
struct Beside {
    directory: GroupLayout,
    name: Bytes,
    attributes: Attributes,
}

impl Files {
    /// Brings what the local journal has to the cluster, as long as the LCC.
    pub async fn lay_copies(self: Rc<Self>) {
        loop {
            // What an ended group leaves is told; what is left is tried again.
            let told = self.lcc.local.bell.notified();
            match self.lcc.local.is_empty() {
                true => told.await,
                false => {
                    let _ = timeout(LAY_AGAIN, told).await;
                }
            }
            if !self.lcc.lease_valid() {
                sleep(LOOK_AGAIN).await;
                self.lcc.local.bell.notify_one();
                continue;
            }
            let mut all = true;
            for (device, fact) in self.lcc.local.devices() {
                let open = self.lcc.open_group(device);
                let is_used = open.is_some_and(|group| group.is_busy_under(fact));
                if !is_used && let Err(refusal) = self.lay_copy(device).await {
                    tracing::debug!(%device, ?refusal, "a local copy is laid later");
                    all = false;
                }
            }
            if let Err(refusal) = self.keep_conflicts().await {
                tracing::debug!(?refusal, "a local copy becomes a file later");
                all = false;
            }
            if !all {
                sleep(LAY_AGAIN).await;
            }
        }
    }

    /// Lays what there is of a device, here or where its owner is.
    async fn lay_copy(self: &Rc<Self>, device: DeviceId) -> Result<(), LccRefusal> {
        let kept: Vec<Kept> =
            self.lcc.local.of(device).into_iter().filter(|kept| !kept.is_conflict).collect();
        let Some(layout) = kept.last().map(|kept| kept.copy.layout.clone()) else { return Ok(()) };
        let owner = match self.lcc.group(&layout).await {
            // It was laid when it was opened.
            Ok(_) => return Ok(()),
            Err(OwnError::NotOwner(Some(owner))) => owner,
            // It was removed.
            Err(OwnError::Unknown) => {
                self.lcc.local.settle(device, |_| true);
                return Ok(());
            }
            Err(error) => return Err(own_refusal(error)),
        };
        let mut facts = BTreeSet::new();
        let mut conflicts = Vec::new();
        for kept in &kept {
            let copy = &kept.copy;
            let bytes = self.lcc.local.bytes_of(kept).map_err(|error| {
                let reason = format!("the local journal cannot be read: {error}");
                LccRefusal::Unavailable { reason }
            })?;
            let (fact, number, home) = (copy.fact, copy.number, copy.home);
            let (parts, operation) = (copy.parts.clone(), copy.operation);
            let op = FileOp::LayCopy { fact, number, parts, home, operation };
            let request = LccRequest::File { layout: layout.clone(), op, change: None };
            match self.tell_peer(owner, &request, Payload::from(bytes)).await {
                Ok(_) => {}
                Err(LccRefusal::Conflict) => conflicts.push(number),
                Err(refusal) => return Err(refusal),
            }
            facts.insert(fact);
        }
        for fact in facts {
            let request = LccRequest::File {
                layout: layout.clone(),
                op: FileOp::EndCopy { fact },
                change: None,
            };
            self.tell_peer(owner, &request, Payload::empty()).await?;
        }
        conflicts.iter().for_each(|number| self.lcc.local.set_conflict(device, *number));
        let numbers: BTreeSet<_> = kept.iter().map(|kept| kept.copy.number).collect();
        self.lcc
            .local
            .settle(device, |kept| !kept.is_conflict && numbers.contains(&kept.copy.number));
        Ok(())
    }

    /// Closes facts under which no local journal has anything.
    pub(crate) async fn end_copies(self: &Rc<Self>, facts: Vec<(GroupLayout, FactNumber)>) {
        for (layout, fact) in facts {
            let device = layout.group();
            let op = FileOp::EndCopy { fact };
            let ended = self
                .ask_owner(&layout, LccRequest::File { layout: layout.clone(), op, change: None });
            match ended.await {
                Ok(_) => tracing::info!(%device, ?fact, "nothing is left in a local journal"),
                Err(refusal) => tracing::debug!(%device, ?refusal, "a fact stays for now"),
            }
        }
    }

    /// Makes files of what may not be laid.
    async fn keep_conflicts(self: &Rc<Self>) -> Result<(), LccRefusal> {
        let devices = self.lcc.local.conflicts();
        if devices.is_empty() {
            return Ok(());
        }
        let found = self.find_files(&devices).await?;
        let mut outcome = Ok(());
        for device in devices {
            let done = match found.get(&device) {
                Some(beside) => self.make_copy(device, beside).await,
                None => self.is_removed(device).await,
            };
            match done {
                Ok(()) => self.lcc.local.settle(device, |kept| kept.is_conflict),
                Err(refusal) => outcome = Err(refusal),
            }
        }
        outcome
    }

    /// No name was found for a device: that it was removed is known when no portion knows it. Else its
    /// name may have moved while the directories were looked through.
    ///
    /// Errors: `Unavailable` where it is there, or nobody says.
    async fn is_removed(self: &Rc<Self>, device: DeviceId) -> Result<(), LccRefusal> {
        let kept = self.lcc.local.of(device);
        let Some(layout) = kept.last().map(|kept| kept.copy.layout.clone()) else { return Ok(()) };
        match self.ask_owner(&layout, LccRequest::DescribeGroup { layout: layout.clone() }).await {
            Err(LccRefusal::NotFound) => Ok(()),
            Ok(_) => {
                let reason = format!("no name is found for device {device}, which is there");
                Err(LccRefusal::Unavailable { reason })
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// The files that have these devices, by the devices; from the root down.
    async fn find_files(
        self: &Rc<Self>,
        devices: &[DeviceId],
    ) -> Result<BTreeMap<DeviceId, Beside>, LccRefusal> {
        let mut found = BTreeMap::new();
        let root = self.lcc.map().root.clone();
        let mut directories: VecDeque<GroupLayout> = root.into_iter().collect();
        while let Some(directory) = directories.pop_front() {
            let mut after = 0;
            loop {
                let op = DirectoryOp::List { after, limit: ENTRIES_AT_ONCE, attributes: true };
                let (entries, end) = match self.ask_directory(&directory, op).await {
                    Ok(LccReply::Entries { entries, end }) => (entries, end),
                    // Removed meanwhile.
                    Err(LccRefusal::NotFound | LccRefusal::Retired) => break,
                    Ok(reply) => return Err(bad(&format!("a list is answered with {reply:?}"))),
                    Err(refusal) => return Err(refusal),
                };
                for (entry, attributes) in entries {
                    after = entry.cookie;
                    match entry.kind {
                        FileKind::Directory => directories.extend(entry.home.clone()),
                        FileKind::File => {
                            let attributes = match attributes {
                                Some(attributes) => Some(attributes),
                                None => self.attributes_of(&entry).await?,
                            };
                            let Some(attributes) = attributes else { continue };
                            let device = attributes.device().map(GroupLayout::group);
                            let Some(device) = device.filter(|of| devices.contains(of)) else {
                                continue;
                            };
                            let (directory, name) = (directory.clone(), entry.name);
                            found.insert(device, Beside { directory, name, attributes });
                        }
                        _ => {}
                    }
                }
                if end || found.len() == devices.len() {
                    break;
                }
            }
            if found.len() == devices.len() {
                break;
            }
        }
        Ok(found)
    }

    /// Attributes that are kept in another directory than the name.
    async fn attributes_of(
        self: &Rc<Self>,
        entry: &DirectoryEntry,
    ) -> Result<Option<Attributes>, LccRefusal> {
        let Some(home) = &entry.home else { return Ok(None) };
        match self.ask_directory(home, DirectoryOp::GetAttributes { id: entry.id }).await {
            Ok(LccReply::Attributes(attributes)) => Ok(Some(*attributes)),
            Ok(_) | Err(LccRefusal::NotFound | LccRefusal::Retired) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Makes a file of the writes of a device that may not be laid.
    async fn make_copy(
        self: &Rc<Self>,
        device: DeviceId,
        beside: &Beside,
    ) -> Result<(), LccRefusal> {
        let kept: Vec<Kept> =
            self.lcc.local.of(device).into_iter().filter(|kept| kept.is_conflict).collect();
        let size = kept.iter().map(Kept::end).max().unwrap_or(0);
        let question = PolicyQuestion { size: Some(size), ..PolicyQuestion::default() };
        let layouts = self.lcc.new_layouts(DataType::File, &question, 1).await;
        let layout = layouts.map_err(place_refusal)?.into_iter().next().expect("one was asked for");
        let operation = self.new_operation();
        let begin = DirectoryOp::BeginUploads { operation, layouts: vec![layout.clone()] };
        self.ask_directory(&beside.directory, begin).await?;
        let home = beside.directory.devices.last().copied().unwrap_or_default();
        let group = self.lcc.create_group(&layout, home).map_err(own_refusal)?;
        for kept in &kept {
            let writes = self.lcc.local.writes_of(kept).map_err(|error| {
                let reason = format!("the local journal cannot be read: {error}");
                LccRefusal::Unavailable { reason }
            })?;
            let change = GroupWrite { writes, ..GroupWrite::default() };
            group.write(change).await.map_err(write_refusal)?;
        }
        group.sync().await.map_err(write_refusal)?;
        let of = &beside.attributes;
        let attributes = NewAttributes {
            id: None,
            kind: FileKind::File,
            mode: of.mode,
            uid: of.uid,
            gid: of.gid,
            made: None,
            atime: None,
            mtime: None,
            rdev: 0,
            data: FileData::Device(layout),
            size,
            target: None,
            xattrs: Vec::new(),
        };
        for attempt in 0..NAMES_MAX {
            let create = DirectoryOp::Create {
                operation: self.new_operation(),
                name: copy_name(&beside.name, self.now().seconds, attempt),
                attributes: attributes.clone(),
                if_exists: IfExists::Fail,
                stable: true,
            };
            match self.ask_directory(&beside.directory, create).await {
                Err(LccRefusal::Exists { .. }) => {}
                made => {
                    made?;
                    tracing::warn!(%device, "a local copy became a file of its own");
                    return Ok(());
                }
            }
        }
        Err(LccRefusal::Unavailable { reason: "no name is free for a local copy".into() })
    }
}

/// `NAME.local-copy-SECONDS`, at most 255 bytes.
fn copy_name(name: &[u8], seconds: i64, attempt: u32) -> Bytes {
    let suffix = match attempt {
        0 => format!(".local-copy-{seconds}"),
        attempt => format!(".local-copy-{seconds}-{attempt}"),
    };
    let mut copy = name[..name.len().min(NAME_MAX - suffix.len())].to_vec();
    copy.extend_from_slice(suffix.as_bytes());
    copy.into()
}

const NAME_MAX: usize = 255;

/// Names that are tried for one file.
const NAMES_MAX: u32 = 100;

/// Entries of a directory that are asked for at a time.
const ENTRIES_AT_ONCE: u32 = 1024;

/// How often it is tried to lay what is left.
const LAY_AGAIN: Duration = Duration::from_secs(1);

/// How soon it looks again for its first lease.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // Proves: W-13.
    fn a_copy_is_named_after_its_file_and_fits() {
        assert_eq!(copy_name(b"a.db", 17, 0), &b"a.db.local-copy-17"[..]);
        assert_eq!(copy_name(b"a.db", 17, 2), &b"a.db.local-copy-17-2"[..]);
        let long = copy_name(&[b'x'; 255], 1_764_532_299, 99);
        assert_eq!(long.len(), 255);
        assert!(long.ends_with(b"x.local-copy-1764532299-99"));
    }
}
