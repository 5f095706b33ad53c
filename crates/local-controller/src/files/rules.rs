//! What an operation on a directory changes, and when it is refused.
//!
//! # Theory
//! Operations are checked against the decided state with all undecided changes laid over it, in the
//! order in which they arrive. What they change becomes part of the batch that is being collected;
//! a batch is one cluster write, so all of it happens or nothing.
//! ```text
//! readers   -> State                                     decided
//! operations-> State + Pending (batch in flight, batch being collected) -> Pending
//! decided   -> the batch's changes go from Pending to State
//! ```
//! # Invariants
//! P1 A refused operation changed nothing.
//! P2 An operation id is done once: a repeat is answered as the first, or waits for it.
//! # Source
//! DESIGN 8, W-7 (inside a group), F-9, N-4; L2 of `wire::lcc`.
//! # Not here
//! What concerns other groups, too: `steps.rs`.

use braid_terms::{DeviceId, GroupLayout, WriteNumber};
use braid_wire::joint::JointId;
use braid_wire::lcc::{
    AttributeChanges, Attributes, DirectoryEntry, DirectoryOp, FileData, FileKind, FileTime,
    IfExists, LccRefusal, LccReply, NewAttributes, OperationId, SetTime,
};
use bytes::Bytes;

use super::checks::{
    bad, changed_xattrs, check_data, check_directory_layout, check_layout, check_name, check_new,
    check_replace, check_xattrs,
};
use super::pending::{BatchNumber, Pending, laid_over};
use super::record::{Answer, OwnState, Upload};
use super::state::{State, without_inline};

/// What becomes of an operation.
#[derive(Debug)]
pub enum Verdict {
    /// It is part of this batch; the reply counts when that is decided.
    Batched(BatchNumber, LccReply),
    /// It was done before; decided.
    Repeated(LccReply),
    /// It was done before, in a batch that is not decided: when it is, ask again.
    RepeatedIn(BatchNumber),
    /// What it concerns is locked: when this intent has ended, ask again.
    Blocked(JointId),
    /// It concerns other groups, too.
    Joint,
}

/// Where and when an operation happens.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// Time of day.
    pub now: FileTime,
    /// A number that no device has, for a file whose bytes are inline.
    pub new_id: DeviceId,
    /// The client process that asks, 0 for one that keeps no copies. Source: N-1.
    pub session: u64,
}

/// Does a changing operation, or refuses it.
///
/// Errors: the refusal; nothing changed.
pub fn change(
    state: &State,
    pending: &mut Pending,
    op: DirectoryOp,
    around: &Circumstances,
) -> Result<Verdict, LccRefusal> {
    let operation = operation_of(&op).ok_or_else(|| bad("this operation changes nothing"))?;
    if !braid_terms::planted!("N-3/an-operation-is-done-twice")
        && let Some(verdict) = repeated(state, pending, operation)
    {
        return Ok(verdict);
    }
    let bytes = weight(&op);
    let mut draft = Draft { state, pending, around };
    if let Some(intent) = draft.blocked(&op) {
        return Ok(Verdict::Blocked(intent));
    }
    if draft.is_joint(&op) {
        return Ok(Verdict::Joint);
    }
    let (reply, answer) = draft.apply(op)?;
    let batch = pending.batch;
    pending.bytes += bytes;
    pending.operations.insert(operation, (batch, Some(answer)));
    pending.operations_new.push(operation);
    Ok(Verdict::Batched(batch, reply))
}

/// The id of an operation that changes something.
pub fn operation_of(op: &DirectoryOp) -> Option<OperationId> {
    match op {
        DirectoryOp::Begin { operation, .. }
        | DirectoryOp::Create { operation, .. }
        | DirectoryOp::BeginUploads { operation, .. }
        | DirectoryOp::AbandonUploads { operation, .. }
        | DirectoryOp::Enter { operation, .. }
        | DirectoryOp::Link { operation, .. }
        | DirectoryOp::Unlink { operation, .. }
        | DirectoryOp::Rename { operation, .. }
        | DirectoryOp::SetAttributes { operation, .. }
        | DirectoryOp::Retire { operation } => Some(*operation),
        DirectoryOp::Lookup { .. }
        | DirectoryOp::List { .. }
        | DirectoryOp::GetAttributes { .. }
        | DirectoryOp::MoveDirectory { .. }
        | DirectoryOp::Intend { .. }
        | DirectoryOp::Decide { .. }
        | DirectoryOp::Finish { .. }
        | DirectoryOp::Outcome { .. }
        | DirectoryOp::Parent
        | DirectoryOp::Sync { .. }
        | DirectoryOp::Writes { .. }
        | DirectoryOp::Closed { .. }
        | DirectoryOp::Remove
        | DirectoryOp::Lock { .. }
        | DirectoryOp::Unlock { .. }
        | DirectoryOp::TestLock { .. }
        | DirectoryOp::KeepLocks { .. } => None,
    }
}

/// Bytes that an operation adds to its batch, about.
fn weight(op: &DirectoryOp) -> usize {
    let xattrs = |xattrs: &[(Bytes, Bytes)]| -> usize {
        xattrs.iter().map(|(name, value)| name.len() + value.len()).sum()
    };
    let data = |data: &FileData| match data {
        FileData::Inline(bytes) => bytes.len(),
        FileData::None | FileData::Device(_) => 0,
    };
    CHANGE_BYTES
        + match op {
            DirectoryOp::Create { attributes, .. } => {
                data(&attributes.data) + xattrs(&attributes.xattrs)
            }
            DirectoryOp::BeginUploads { layouts, .. } => layouts.len() * CHANGE_BYTES,
            DirectoryOp::AbandonUploads { devices, .. } => devices.len() * CHANGE_BYTES,
            // All attributes of the id are written again, with what they were.
            DirectoryOp::SetAttributes { .. } | DirectoryOp::Rename { .. } => ATTRIBUTES_BYTES,
            _ => 0,
        }
}

/// Whether an operation was done before.
pub fn repeated(state: &State, pending: &Pending, operation: OperationId) -> Option<Verdict> {
    if let Some((batch, _)) = pending.operations.get(&operation) {
        return Some(Verdict::RepeatedIn(*batch));
    }
    state.operations.get(&operation).map(|answer| Verdict::Repeated(state.reply(answer)))
}

type Outcome = Result<(LccReply, Answer), LccRefusal>;

/// A change that is being judged and made.
pub(super) struct Draft<'a> {
    pub state: &'a State,
    pub pending: &'a mut Pending,
    pub around: &'a Circumstances,
}

impl Draft<'_> {
    fn apply(&mut self, op: DirectoryOp) -> Outcome {
        if let DirectoryOp::Begin { attributes, parent, .. } = op {
            return self.begin(&attributes, parent);
        }
        let own = self.own().ok_or(LccRefusal::NotFound)?;
        match op {
            DirectoryOp::Create { name, attributes, if_exists, .. } => {
                self.create(&name, attributes, if_exists)
            }
            DirectoryOp::BeginUploads { layouts, .. } => self.begin_uploads(layouts),
            DirectoryOp::AbandonUploads { devices, .. } => self.abandon_uploads(&devices),
            DirectoryOp::Enter { name, id, kind, home, .. } => {
                let entry = DirectoryEntry { name, id, kind, home: Some(home), cookie: 0 };
                self.enter(entry)
            }
            DirectoryOp::Link { name, id, .. } => self.link(&name, id),
            DirectoryOp::Unlink { name, only_id, keep, directory, .. } => {
                self.unlink(&name, only_id, &UnlinkOptions { keep, directory })
            }
            DirectoryOp::Rename { from, to, exchange, if_exists, only_replaces, keep, .. } => {
                if exchange {
                    return self.exchange(&from, &to);
                }
                if only_replaces.is_some() && only_replaces != self.entry(&to).map(|old| old.id) {
                    return Err(LccRefusal::Conflict);
                }
                self.rename(&from, &to, if_exists, keep)
            }
            DirectoryOp::SetAttributes { id, changes, .. } => self.set_attributes(id, &changes),
            DirectoryOp::Retire { .. } => self.retire(own),
            _ => Err(bad("this operation changes nothing")),
        }
    }

    fn begin(&mut self, new: &NewAttributes, parent: GroupLayout) -> Outcome {
        check_directory_layout(&parent)?;
        if self.own().is_some() {
            return Err(LccRefusal::Exists { kind: FileKind::Directory });
        }
        let is_plain =
            new.kind == FileKind::Directory && new.data == FileData::None && new.target.is_none();
        if !is_plain {
            return Err(bad("a directory has no bytes and no target"));
        }
        check_xattrs(&new.xattrs)?;
        let attributes = fresh_attributes(self.state.id, new.clone(), self.around.now);
        let shown = Attributes { nlink: 2, ..attributes.clone() };
        self.put_attributes(attributes);
        self.set_own(OwnState { retired: false, parent });
        Ok((LccReply::Attributes(Box::new(shown)), Answer::Attributes(self.state.id)))
    }

    fn create(&mut self, name: &Bytes, new: NewAttributes, if_exists: IfExists) -> Outcome {
        let is_named = !name.is_empty() || new.kind != FileKind::File;
        self.check_not_retired()?;
        check_new(&new)?;
        let old = if is_named {
            check_name(name)?;
            self.may_take(name, new.kind, if_exists)?
        } else {
            None
        };
        let id = match &new.data {
            FileData::Device(layout) => layout.group(),
            FileData::None | FileData::Inline(_) => new.id.unwrap_or(self.around.new_id),
        };
        if self.attributes(id).is_some() || self.is_to_remove(id) {
            return Err(LccRefusal::Conflict);
        }
        self.release(old.as_ref(), false);
        if let FileData::Device(layout) = &new.data {
            self.end_upload(layout.group());
        }
        let kind = new.kind;
        let attributes = fresh_attributes(id, new, self.around.now);
        self.put_attributes(attributes.clone());
        let mut entry = DirectoryEntry { name: name.clone(), id, kind, home: None, cookie: 0 };
        if is_named {
            entry = self.put_entry(entry, old.as_ref());
            self.touch_directory();
        }
        let answer = Answer::Entry { entry: entry.clone(), replaced: None };
        Ok((LccReply::Entry { entry, attributes: Some(Box::new(attributes)) }, answer))
    }

    fn begin_uploads(&mut self, layouts: Vec<GroupLayout>) -> Outcome {
        self.check_not_retired()?;
        if !(1..=UPLOADS_AT_ONCE_MAX).contains(&layouts.len()) {
            return Err(bad("1 to 4096 uploads are begun at once"));
        }
        layouts.iter().try_for_each(check_layout)?;
        if layouts.iter().any(|layout| self.attributes(layout.group()).is_some()) {
            return Err(LccRefusal::Conflict);
        }
        let begun = self.around.now.seconds;
        for layout in layouts {
            let upload = Upload { begun, layout: layout.clone() };
            self.pending.uploads.insert(layout.group(), (self.pending.batch, Some(upload)));
        }
        done()
    }

    fn abandon_uploads(&mut self, devices: &[DeviceId]) -> Outcome {
        for device in devices {
            let upload = laid_over(&self.pending.uploads, &self.state.uploads, device).cloned();
            if let Some(upload) = upload {
                self.end_upload(*device);
                self.put_to_remove(upload.layout);
            }
        }
        done()
    }

    fn enter(&mut self, mut entry: DirectoryEntry) -> Outcome {
        check_name(&entry.name)?;
        self.check_not_retired()?;
        let home = entry.home.take().expect("given with the operation");
        check_directory_layout(&home)?;
        if home.group() == self.state.id {
            // It gets its name where its attributes are.
            let kind = self.attributes(entry.id).ok_or(LccRefusal::NotFound)?.kind;
            if kind != entry.kind || kind == FileKind::Directory {
                return Err(bad("this is not what the id stands for here"));
            }
        } else {
            entry.home = Some(home);
        }
        if entry.home.as_ref().is_some_and(|home| self.is_to_remove(home.group())) {
            return Err(LccRefusal::Conflict);
        }
        if let Some(old) = self.entry(&entry.name) {
            return Err(LccRefusal::Exists { kind: old.kind });
        }
        if let Some(home) = &entry.home {
            self.end_upload(home.group());
        }
        Ok(self.entered(entry))
    }

    /// One more name for a file whose attributes are kept here.
    fn link(&mut self, name: &Bytes, id: DeviceId) -> Outcome {
        check_name(name)?;
        self.check_not_retired()?;
        let kind = self.attributes(id).ok_or(LccRefusal::NotFound)?.kind;
        if kind == FileKind::Directory {
            return Err(bad("a directory has one name only"));
        }
        if let Some(old) = self.entry(name) {
            return Err(LccRefusal::Exists { kind: old.kind });
        }
        self.count(id, 1, false);
        let name = name.clone();
        Ok(self.entered(DirectoryEntry { name, id, kind, home: None, cookie: 0 }))
    }

    fn entered(&mut self, entry: DirectoryEntry) -> (LccReply, Answer) {
        let entry = self.put_entry(entry, None);
        self.touch_directory();
        let attributes = self.attributes_at(&entry);
        let answer = Answer::Entry { entry: entry.clone(), replaced: None };
        (LccReply::Entry { entry, attributes }, answer)
    }

    fn unlink(
        &mut self,
        name: &Bytes,
        only_id: Option<DeviceId>,
        options: &UnlinkOptions,
    ) -> Outcome {
        let entry = self.entry(name).cloned().ok_or(LccRefusal::NotFound)?;
        if only_id.is_some_and(|id| id != entry.id) {
            return Err(LccRefusal::Conflict);
        }
        match (entry.kind == FileKind::Directory, options.directory) {
            (true, false) => return Err(LccRefusal::IsDirectory),
            (false, true) => return Err(LccRefusal::NotDirectory),
            (true, true) | (false, false) => {}
        }
        let attributes = self.attributes_at(&entry);
        self.release(Some(&entry), options.keep);
        self.remove_entry(&entry);
        self.touch_directory();
        Ok(removed_reply(Some(entry), attributes))
    }

    fn rename(&mut self, from: &Bytes, to: &Bytes, if_exists: IfExists, keep: bool) -> Outcome {
        check_name(to)?;
        self.check_not_retired()?;
        let source = self.entry(from).cloned().ok_or(LccRefusal::NotFound)?;
        let target = self.entry(to).cloned();
        if let Some(target) = &target {
            check_replace(&source, target, if_exists)?;
            if target.id == source.id {
                // Two names of one file: POSIX says that nothing happens.
                return Ok(removed_reply(None, None));
            }
        }
        let attributes = target.as_ref().and_then(|target| self.attributes_at(target));
        self.release(target.as_ref(), keep);
        self.remove_entry(&source);
        let moved = DirectoryEntry { name: to.clone(), ..source };
        self.touch_moved(&moved);
        self.put_entry(moved, target.as_ref());
        self.touch_directory();
        Ok(removed_reply(target, attributes))
    }

    fn exchange(&mut self, from: &Bytes, to: &Bytes) -> Outcome {
        self.check_not_retired()?;
        let one = self.entry(from).cloned().ok_or(LccRefusal::NotFound)?;
        let other = self.entry(to).cloned().ok_or(LccRefusal::NotFound)?;
        if from == to {
            return Ok(removed_reply(None, None));
        }
        for (entry, place) in [(&one, &other), (&other, &one)] {
            let moved = DirectoryEntry { name: place.name.clone(), ..entry.clone() };
            self.touch_moved(&moved);
            self.put_entry(moved, Some(place));
        }
        self.touch_directory();
        Ok(removed_reply(None, None))
    }

    fn set_attributes(&mut self, id: DeviceId, changes: &AttributeChanges) -> Outcome {
        let old = self.attributes(id).cloned().ok_or(LccRefusal::NotFound)?;
        if changes.only_version.is_some_and(|version| version != old.version) {
            return Err(LccRefusal::Conflict);
        }
        let is_file = old.kind == FileKind::File;
        if !is_file && (changes.data.is_some() || changes.device.is_some()) {
            return Err(match old.kind {
                FileKind::Directory => LccRefusal::IsDirectory,
                _ => bad("only a regular file has bytes"),
            });
        }
        if id == self.state.id && changes.nlink != 0 {
            return Err(bad("names of a directory are counted by themselves"));
        }
        if let Some((data, size)) = &changes.data {
            check_data(data, *size)?;
            if matches!(data, FileData::Device(layout) if self.is_to_remove(layout.group())) {
                return Err(LccRefusal::Conflict);
            }
        }
        if changes
            .device
            .and_then(|news| news.length)
            .is_some_and(|length| length.bytes > i64::MAX as u64)
        {
            return Err(LccRefusal::TooBig);
        }
        let xattrs = changed_xattrs(&old.xattrs, changes)?;
        let nlink = i64::from(old.nlink) + i64::from(changes.nlink);
        let nlink = u32::try_from(nlink.max(0)).map_err(|_| bad("too many names"))?;

        let mut new = Attributes { xattrs, nlink, ..old.clone() };
        self.change_fields(&mut new, changes);
        if id != self.state.id && nlink == 0 {
            self.drop_file(&old);
            let last = Box::new(without_inline(new.clone()));
            return Ok((LccReply::Attributes(Box::new(new)), Answer::Last(last)));
        }
        self.change_data(&old, changes.data.as_ref());
        self.put_attributes(new.clone());
        let shown = if id == self.state.id { self.own_attributes(new) } else { new };
        Ok((LccReply::Attributes(Box::new(shown)), Answer::Attributes(id)))
    }

    /// All fields that need no check.
    fn change_fields(&self, new: &mut Attributes, changes: &AttributeChanges) {
        let now = self.around.now;
        let time = |set: Option<SetTime>, old: FileTime| match set {
            None => old,
            Some(SetTime::Now) => now,
            Some(SetTime::To(time)) => time,
        };
        let size_before = new.size;
        if let Some((data, size)) = &changes.data {
            if device_of(data) != device_of(&new.data) {
                (new.writers, new.size_number) = (0, WriteNumber::NONE);
            }
            new.data = data.clone();
            new.size = *size;
        }
        if let Some(news) = changes.device
            && device_of(&new.data) == Some(news.device)
        {
            new.writers = new.writers.saturating_add_signed(news.writers);
            if let Some(length) = news.length
                && new.size_number <= length.number
            {
                (new.size, new.size_number) = (length.bytes, length.number);
            }
        }
        let bytes_changed = changes.data.is_some() || new.size != size_before;
        new.atime = time(changes.atime, new.atime);
        new.mtime = time(changes.mtime, if bytes_changed { now } else { new.mtime });
        new.mode = changes.mode.map_or(new.mode, |mode| mode & MODE_BITS);
        new.uid = changes.uid.unwrap_or(new.uid);
        new.gid = changes.gid.unwrap_or(new.gid);
        let only_atime = AttributeChanges { atime: changes.atime, ..AttributeChanges::default() };
        if *changes != only_atime {
            new.ctime = now;
        }
        new.version += 1;
    }

    /// New bytes in place of the old ones: the old device goes, the new one is an upload no more.
    fn change_data(&mut self, old: &Attributes, data: Option<&(FileData, u64)>) {
        let Some((data, _)) = data else { return };
        let new_device = device_of(data);
        if let Some(device) = new_device {
            self.end_upload(device);
        }
        if let FileData::Device(layout) = &old.data
            && new_device != Some(layout.group())
        {
            self.put_to_remove(layout.clone());
        }
    }

    fn retire(&mut self, own: OwnState) -> Outcome {
        if own.parent.group() == self.state.id {
            return Err(bad("the root directory stays"));
        }
        if self.entry_count() > 0 {
            return Err(LccRefusal::NotEmpty);
        }
        // Again is all right: whoever retired it before may have died before the name was removed.
        self.set_own(OwnState { retired: true, ..own });
        done()
    }

    // What is there.

    pub(super) fn is_done(&self, operation: OperationId) -> bool {
        self.pending.operations.contains_key(&operation)
            || self.state.operations.contains_key(&operation)
    }

    pub(super) fn own(&self) -> Option<OwnState> {
        match &self.pending.own {
            Some((_, own)) => Some(own.clone()),
            None => self.state.own.clone(),
        }
    }

    pub(super) fn entry(&self, name: &Bytes) -> Option<&DirectoryEntry> {
        laid_over(&self.pending.names, &self.state.names, name)
    }

    pub(super) fn attributes(&self, id: DeviceId) -> Option<&Attributes> {
        laid_over(&self.pending.attributes, &self.state.attributes, &id)
    }

    fn attributes_at(&self, entry: &DirectoryEntry) -> Option<Box<Attributes>> {
        match entry.home {
            Some(_) => None,
            None => self.attributes(entry.id).cloned().map(Box::new),
        }
    }

    /// It was given up or removed: it never gets a name again.
    pub(super) fn is_to_remove(&self, device: DeviceId) -> bool {
        laid_over(&self.pending.to_remove, &self.state.to_remove, &device).is_some()
    }

    pub(super) fn entry_count(&self) -> i64 {
        self.state.names.len() as i64 + self.pending.entries_added
    }

    /// The directory's own attributes as they are shown.
    fn own_attributes(&self, attributes: Attributes) -> Attributes {
        let size = u64::try_from(self.entry_count()).unwrap_or(0);
        // The number of sub-directories is that of the decided state: a hint, as in most systems.
        Attributes { size, nlink: 2 + self.state.subdirectories, ..attributes }
    }

    pub(super) fn check_not_retired(&self) -> Result<(), LccRefusal> {
        if self.own().is_some_and(|own| own.retired) {
            return Err(LccRefusal::Retired);
        }
        Ok(())
    }

    /// Whether something of this kind may be entered under a name; what it replaces.
    fn may_take(
        &self,
        name: &Bytes,
        kind: FileKind,
        if_exists: IfExists,
    ) -> Result<Option<DirectoryEntry>, LccRefusal> {
        let Some(old) = self.entry(name) else {
            return Ok(None);
        };
        match if_exists {
            IfExists::Fail => Err(LccRefusal::Exists { kind: old.kind }),
            IfExists::Replace if old.kind == FileKind::Directory => Err(LccRefusal::IsDirectory),
            IfExists::Replace if kind == FileKind::Directory => Err(LccRefusal::NotDirectory),
            IfExists::Replace => Ok(Some(old.clone())),
        }
    }

    // What is changed.

    pub(super) fn put_attributes(&mut self, attributes: Attributes) {
        self.pending.attributes.insert(attributes.id, (self.pending.batch, Some(attributes)));
    }

    /// Enters a name; it keeps the cookie of the entry that it replaces.
    pub(super) fn put_entry(
        &mut self,
        mut entry: DirectoryEntry,
        replaced: Option<&DirectoryEntry>,
    ) -> DirectoryEntry {
        entry.cookie = match replaced {
            Some(replaced) => replaced.cookie,
            None => {
                self.pending.next_cookie += 1;
                self.pending.next_cookie - 1
            }
        };
        if self.entry(&entry.name).is_none() {
            self.pending.entries_added += 1;
        }
        let change = (self.pending.batch, Some(entry.clone()));
        self.pending.names.insert(entry.name.clone(), change);
        entry
    }

    pub(super) fn remove_entry(&mut self, entry: &DirectoryEntry) {
        assert!(self.entry(&entry.name).is_some(), "only what is there is removed");
        self.pending.entries_added -= 1;
        self.pending.names.insert(entry.name.clone(), (self.pending.batch, None));
    }

    /// A file whose attributes are kept here has one name less; others are counted by `steps.rs`.
    fn release(&mut self, entry: Option<&DirectoryEntry>, keep_last: bool) {
        if let Some(entry) = entry.filter(|entry| entry.home.is_none()) {
            self.count(entry.id, -1, keep_last);
        }
    }

    /// The last name of a file is gone. Source: F-9, N-4.
    pub(super) fn drop_file(&mut self, attributes: &Attributes) {
        self.pending.attributes.insert(attributes.id, (self.pending.batch, None));
        if let FileData::Device(layout) = &attributes.data {
            self.put_to_remove(layout.clone());
        }
    }

    pub(super) fn put_to_remove(&mut self, layout: GroupLayout) {
        self.pending.to_remove.insert(layout.group(), (self.pending.batch, Some(layout)));
    }

    pub(super) fn end_upload(&mut self, device: DeviceId) {
        if laid_over(&self.pending.uploads, &self.state.uploads, &device).is_some() {
            self.pending.uploads.insert(device, (self.pending.batch, None));
        }
    }

    pub(super) fn set_own(&mut self, own: OwnState) {
        self.pending.own = Some((self.pending.batch, own));
    }

    /// Names changed: so did the directory.
    pub(super) fn touch_directory(&mut self) {
        let own = self.attributes(self.state.id).cloned();
        let own = own.expect("a directory that was begun has attributes");
        let now = self.around.now;
        self.put_attributes(Attributes { mtime: now, ctime: now, version: own.version + 1, ..own });
    }

    /// A renamed file has a new time of change.
    fn touch_moved(&mut self, entry: &DirectoryEntry) {
        if entry.home.is_none() {
            self.touch(entry.id);
        }
    }

    pub(super) fn touch(&mut self, id: DeviceId) {
        if let Some(attributes) = self.attributes(id).cloned() {
            let version = attributes.version + 1;
            self.put_attributes(Attributes { ctime: self.around.now, version, ..attributes });
        }
    }
}

/// Attributes of what is made.
pub fn fresh_attributes(id: DeviceId, new: NewAttributes, now: FileTime) -> Attributes {
    let made = new.made.unwrap_or(now);
    let size = match new.kind {
        FileKind::Symlink => new.target.as_ref().map_or(0, |target| target.len() as u64),
        _ => new.size,
    };
    let mut xattrs = new.xattrs;
    xattrs.sort();
    Attributes {
        id,
        kind: new.kind,
        mode: new.mode & MODE_BITS,
        uid: new.uid,
        gid: new.gid,
        size,
        nlink: 1,
        atime: new.atime.unwrap_or(made),
        mtime: new.mtime.unwrap_or(made),
        ctime: made,
        btime: made,
        rdev: new.rdev,
        version: 1,
        writers: 0,
        size_number: WriteNumber::NONE,
        data: new.data,
        target: new.target,
        xattrs,
    }
}

struct UnlinkOptions {
    keep: bool,
    directory: bool,
}

fn device_of(data: &FileData) -> Option<DeviceId> {
    data.device().map(GroupLayout::group)
}

fn done() -> Outcome {
    Ok((LccReply::Done, Answer::Done))
}

fn removed_reply(
    entry: Option<DirectoryEntry>,
    attributes: Option<Box<Attributes>>,
) -> (LccReply, Answer) {
    let kept = attributes.clone().map(|attributes| Box::new(without_inline(*attributes)));
    let answer = Answer::Removed { entry: entry.clone(), attributes: kept };
    (LccReply::Removed { entry, attributes }, answer)
}

/// Bytes of the records of a small change, about.
const CHANGE_BYTES: usize = 512;
/// Bytes of large attributes.
pub(super) const ATTRIBUTES_BYTES: usize = 8 << 10;
const MODE_BITS: u32 = 0o7777;
const UPLOADS_AT_ONCE_MAX: usize = 4096;

#[cfg(test)]
#[path = "rules_test.rs"]
pub(super) mod test;
