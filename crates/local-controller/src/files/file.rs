//! Bytes of file devices.
//!
//! # Theory
//! Reads and writes go straight to the group. A device that was never written is made by its first
//! write: at once where this LCC gave its number out, else after all its portions were asked.
//! A cut gives back what lies behind the new end, so that it reads as zeros if the file grows again.
//! Cuts, punches and appends of a device happen alone; plain writes happen at once (the group orders
//! those that meet). A change that a client sends again is done once (`group/repeat.rs`).
//! # Source
//! DESIGN 8, W-8, W-9, N-3.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use braid_env::Payload;
use braid_terms::{AckMode, BLOCK_SIZE, DeviceId, GroupLayout, REQUEST_BYTES_MAX, WriteNumber};
use braid_wire::lcc::{
    DeviceLength, FileChange, FileOp, LccRefusal, LccReply, OperationId, PARTS_MAX,
};
use braid_wire::operations::{Done, Operation};
use bytes::Bytes;
use tokio::sync::{Mutex, RwLock};

use super::access::{own_refusal, read_refusal, write_refusal};
use super::checks::{bad, check_file_layout};
use crate::group::Laid;
use crate::{DeviceWrite, Group, GroupWrite, Lcc, OwnError};

/// File devices of one LCC.
pub struct FileDevices {
    lcc: Rc<Lcc>,
    /// Changes under way, by device: shared by writes, alone for what depends on the length.
    turns: RefCell<BTreeMap<DeviceId, Rc<RwLock<()>>>>,
    /// Changes of clients under way: a repeat waits for the first.
    repeats: RefCell<BTreeMap<OperationId, Rc<Mutex<()>>>>,
}

/// With the mark at which a change is decided.
type Answer = Result<(LccReply, Option<WriteNumber>, Payload), LccRefusal>;

impl FileDevices {
    pub fn new(lcc: Rc<Lcc>) -> Self {
        Self { lcc, turns: RefCell::default(), repeats: RefCell::default() }
    }

    /// Does everything but `Remove`.
    pub async fn handle(
        &self,
        layout: &GroupLayout,
        op: FileOp,
        change: Option<FileChange>,
        payload: Bytes,
    ) -> Answer {
        check_file_layout(layout)?;
        let Some(change) = change else { return self.once(layout, op, None, payload).await };
        let id = change.operation;
        let repeat = self.repeats.borrow_mut().entry(id).or_default().clone();
        let _end = Repeat { of: &self.repeats, id };
        let _first = repeat.lock().await;
        self.once(layout, op, Some(change), payload).await
    }

    async fn once(
        &self,
        layout: &GroupLayout,
        op: FileOp,
        change: Option<FileChange>,
        payload: Bytes,
    ) -> Answer {
        match op {
            FileOp::Write { at, home, fresh, stable, append, ack } => {
                let group = self.to_change(layout, home, fresh).await?;
                if let Some(done) = repeated(&group, change.as_ref()).await? {
                    if stable {
                        group.stable(done.number).await.map_err(write_refusal)?;
                    }
                    return written_before(&group, &done);
                }
                let ack = if stable { AckMode::Cluster } else { ack };
                let write = Write { at, stable, append, ack, bytes: payload, change };
                self.write(&group, write).await
            }
            FileOp::WriteMany { parts, home, fresh, ack } => {
                let writes = cut(&parts, payload)?;
                let group = self.to_change(layout, home, fresh).await?;
                if let Some(done) = repeated(&group, change.as_ref()).await? {
                    return written_before(&group, &done);
                }
                let turn = self.turn(&group);
                let _shared = turn.read().await;
                let size: u64 = writes.iter().map(|write| write.bytes.len() as u64).sum();
                let operation = operation_of(change.as_ref(), parts[0].0);
                let (number, length) = write_all(&group, (writes, operation), ack, false).await?;
                self.lcc.count(|counters| counters.bytes_written += size);
                Ok((LccReply::Written { at: parts[0].0, length }, Some(number), Payload::empty()))
            }
            FileOp::Truncate { length, home } => {
                let group = self.to_change(layout, home, false).await?;
                if let Some(done) = repeated(&group, change.as_ref()).await? {
                    return changed_before(&group, &done);
                }
                let turn = self.turn(&group);
                let _alone = turn.write().await;
                set_length(&group, length, operation_of(change.as_ref(), 0)).await
            }
            FileOp::Read { at, length, stable } => {
                let group = self.group(layout).await?;
                read(&group, at, length, stable).await
            }
            FileOp::Length => {
                let group = self.group(layout).await?;
                group.check_lease().map_err(read_refusal)?;
                told(LccReply::Length(length_of(&group)))
            }
            FileOp::Punch { at, length } => {
                let group = self.group(layout).await?;
                group.check_no_copies().map_err(write_refusal)?;
                if let Some(done) = repeated(&group, change.as_ref()).await? {
                    return changed_before(&group, &done);
                }
                let turn = self.turn(&group);
                let _alone = turn.write().await;
                punch(&group, at, length, operation_of(change.as_ref(), at)).await
            }
            FileOp::Seek { at, hole } => {
                let group = self.group(layout).await?;
                told(LccReply::Place(group.seek(0, at, hole).await.map_err(read_refusal)?))
            }
            FileOp::Sync { written } => {
                let group = match self.group(layout).await {
                    // Not even that it was made has survived.
                    Err(LccRefusal::NotFound) if !written.is_empty() => {
                        return Err(LccRefusal::HeldLost);
                    }
                    group => group?,
                };
                group.check_written(&written).map_err(write_refusal)?;
                group.sync().await.map_err(write_refusal)?;
                told(LccReply::Length(length_of(&group)))
            }
            FileOp::LayCopy { fact, number, parts, home, operation } => {
                let writes = cut(&parts, payload)?;
                let group = match self.lcc.group(layout).await {
                    // What was answered may be all that was ever written.
                    Err(OwnError::Unknown) => {
                        let is_open = self.lcc.is_open_fact(layout.group(), fact).await;
                        if !is_open.map_err(own_refusal)? {
                            return told(LccReply::Done);
                        }
                        self.lcc.group_or_create(layout, home).await
                    }
                    group => group,
                };
                let group = group.map_err(own_refusal)?;
                if !group.has_number(number) {
                    let laid = group.lay((fact, number), (writes, operation)).await;
                    if laid.map_err(write_refusal)? == Laid::Conflict {
                        return Err(LccRefusal::Conflict);
                    }
                }
                told(LccReply::Done)
            }
            FileOp::EndCopy { fact } => {
                match self.lcc.group(layout).await {
                    Ok(group) => group.end_copy(fact).await.map_err(write_refusal)?,
                    Err(OwnError::Unknown) => {
                        let closed = self.lcc.close_of_unknown(layout.group(), fact).await;
                        closed.map_err(own_refusal)?;
                    }
                    Err(error) => return Err(own_refusal(error)),
                }
                told(LccReply::Done)
            }
            FileOp::Remove => Err(bad("a removal is done elsewhere")),
        }
    }

    /// The group, made where it never was, if it may be changed.
    async fn to_change(
        &self,
        layout: &GroupLayout,
        home: DeviceId,
        fresh: bool,
    ) -> Result<Rc<Group>, LccRefusal> {
        let group = self.to_write(layout, home, fresh).await?;
        group.check_no_copies().map_err(write_refusal)?;
        Ok(group)
    }

    /// The group, all that was answered of it decided.
    async fn group(&self, layout: &GroupLayout) -> Result<Rc<Group>, LccRefusal> {
        let group = self.lcc.group(layout).await.map_err(own_refusal)?;
        group.ahead_settled().await.map_err(|dead| write_refusal(dead.into()))?;
        Ok(group)
    }

    /// The group, made where it never was.
    ///
    /// | number of ours, not seen | the client says fresh | no portion knows it | it is          |
    /// |--------------------------|-----------------------|---------------------|----------------|
    /// | yes                      | yes                   | not asked           | made, at once  |
    /// | any                      | yes                   | yes                 | made           |
    /// | yes                      | no                    | yes                 | made           |
    /// | no                       | no                    | yes                 | `NotFound`     |
    async fn to_write(
        &self,
        layout: &GroupLayout,
        home: DeviceId,
        fresh: bool,
    ) -> Result<Rc<Group>, LccRefusal> {
        if fresh
            && self.lcc.may_be_fresh(layout)
            && let Ok(group) = self.lcc.create_group(layout, home)
        {
            return Ok(group);
        }
        let is_ours = self.lcc.may_be_fresh(layout);
        let group = match fresh || is_ours {
            true => self.lcc.group_or_create(layout, home).await,
            false => self.lcc.group(layout).await,
        };
        group.map_err(own_refusal)
    }

    /// The order of changes of a device.
    fn turn(&self, group: &Group) -> Rc<RwLock<()>> {
        let mut turns = self.turns.borrow_mut();
        if TURNS_KEPT < turns.len() {
            turns.retain(|_, turn| Rc::strong_count(turn) > 1);
        }
        turns.entry(group.layout().group()).or_default().clone()
    }

    async fn write(&self, group: &Rc<Group>, write: Write) -> Answer {
        let Write { at, stable, append, ack, bytes, change } = write;
        check_payload(&bytes)?;
        let size = bytes.len() as u64;
        // Not a task: what is numbered goes on if this is dropped half way.
        let turn = self.turn(group);
        let (at, (number, length)) = if append {
            let _alone = turn.write().await;
            let at = group.length_ahead(0);
            let operation = operation_of(change.as_ref(), at);
            (at, write_at(group, at, (bytes, operation), ack, stable).await?)
        } else {
            let _shared = turn.read().await;
            let operation = operation_of(change.as_ref(), at);
            (at, write_at(group, at, (bytes, operation), ack, stable).await?)
        };
        self.lcc.count(|counters| counters.bytes_written += size);
        if stable {
            group.stable(number).await.map_err(write_refusal)?;
        }
        Ok((LccReply::Written { at, length }, Some(number), Payload::empty()))
    }
}

struct Write {
    at: u64,
    stable: bool,
    append: bool,
    /// When it is answered.
    ack: AckMode,
    bytes: Bytes,
    change: Option<FileChange>,
}

/// A change of a client under way.
struct Repeat<'a> {
    of: &'a RefCell<BTreeMap<OperationId, Rc<Mutex<()>>>>,
    id: OperationId,
}

impl Drop for Repeat<'_> {
    fn drop(&mut self) {
        let mut all = self.of.borrow_mut();
        // The handler's own, and the one here.
        if all.get(&self.id).is_some_and(|turn| Rc::strong_count(turn) <= 2) {
            all.remove(&self.id);
        }
    }
}

/// What a change did that was sent before, if it was done.
async fn repeated(
    group: &Rc<Group>,
    change: Option<&FileChange>,
) -> Result<Option<Done>, LccRefusal> {
    let Some(change) = change else { return Ok(None) };
    let done = group.repeated(change).await.map_err(write_refusal)?;
    if done.is_some() {
        group.check_lease().map_err(read_refusal)?;
    }
    Ok(done)
}

/// What a record says of the change; its bytes go to `at`.
fn operation_of(change: Option<&FileChange>, at: u64) -> Option<Operation> {
    change.map(|change| Operation { id: change.operation, answered: change.answered, at })
}

fn written_before(group: &Group, done: &Done) -> Answer {
    let reply = LccReply::Written { at: done.operation.at, length: length_of(group) };
    Ok((reply, Some(done.number), Payload::empty()))
}

fn changed_before(group: &Group, done: &Done) -> Answer {
    Ok((LccReply::Length(length_of(group)), Some(done.number), Payload::empty()))
}

fn check_payload(bytes: &Bytes) -> Result<(), LccRefusal> {
    let fits = (1..=REQUEST_BYTES_MAX).contains(&bytes.len());
    if fits { Ok(()) } else { Err(bad("a write has 1 byte to 4 MiB")) }
}

/// Under an owner that changed nothing yet the number is that of its opening: a power cut may have
/// taken what earlier ones told of.
fn length_of(group: &Group) -> DeviceLength {
    let opening = WriteNumber { grant: group.grant(), sequence: 0 };
    DeviceLength { number: group.marks().0.max(opening), bytes: group.length(0) }
}

fn told(reply: LccReply) -> Answer {
    Ok((reply, None, Payload::empty()))
}

fn changed(group: &Group) -> Answer {
    Ok((LccReply::Length(length_of(group)), group.written(), Payload::empty()))
}

async fn write_at(
    group: &Rc<Group>,
    at: u64,
    (bytes, operation): (Bytes, Option<Operation>),
    ack: AckMode,
    stable_soon: bool,
) -> Result<(WriteNumber, DeviceLength), LccRefusal> {
    let writes = vec![DeviceWrite { device_index: 0, at, bytes }];
    write_all(group, (writes, operation), ack, stable_soon).await
}

/// The parts of a payload.
fn cut(parts: &[(u64, u32)], payload: Bytes) -> Result<Vec<DeviceWrite>, LccRefusal> {
    let sizes = parts.iter().map(|(_, size)| *size as usize);
    let fits = (1..=PARTS_MAX).contains(&parts.len())
        && sizes.clone().all(|size| size > 0)
        && sizes.sum::<usize>() == payload.len()
        && payload.len() <= REQUEST_BYTES_MAX;
    if !fits {
        return Err(bad("a write has 1 to 1024 parts of at least 1 byte, together at most 4 MiB"));
    }
    let mut rest = payload;
    let part = |(at, size): &(u64, u32)| {
        let bytes = rest.split_to(*size as usize);
        DeviceWrite { device_index: 0, at: *at, bytes }
    };
    Ok(parts.iter().map(part).collect())
}

async fn write_all(
    group: &Rc<Group>,
    (writes, operation): (Vec<DeviceWrite>, Option<Operation>),
    ack: AckMode,
    stable_soon: bool,
) -> Result<(WriteNumber, DeviceLength), LccRefusal> {
    let end = |write: &DeviceWrite| write.at.checked_add(write.bytes.len() as u64);
    if writes.iter().any(|write| end(write).is_none_or(|end| i64::MAX as u64 <= end)) {
        return Err(LccRefusal::TooBig);
    }
    let many = |writes| GroupWrite { writes, operation, stable_soon, ..GroupWrite::default() };
    let answered = match ack {
        AckMode::Cluster => {
            let number = group.write(many(writes)).await.map_err(write_refusal)?;
            return Ok((number, length_of(group)));
        }
        AckMode::Memory => group.write_ahead(many(writes)).await,
        AckMode::Local => group.write_local(many(writes)).await,
    };
    let (number, bytes) = answered.map_err(write_refusal)?;
    Ok((number, DeviceLength { number, bytes }))
}

async fn read(group: &Rc<Group>, at: u64, length: u32, stable: bool) -> Answer {
    if REQUEST_BYTES_MAX < length as usize {
        return Err(bad("a read asks for at most 4 MiB"));
    }
    let payload = group.read(0, at, length.into()).await.map_err(read_refusal)?;
    if stable {
        // What was read is decided: it must be on the media before it is shown.
        group.sync().await.map_err(write_refusal)?;
    }
    Ok((LccReply::Read { length: group.length(0) }, None, payload))
}

/// Cuts or extends; what is behind the new end is given back.
async fn set_length(group: &Rc<Group>, length: u64, operation: Option<Operation>) -> Answer {
    if i64::MAX as u64 <= length {
        return Err(LccRefusal::TooBig);
    }
    let old = group.length_ahead(0);
    let mut change = GroupWrite { lengths: vec![(0, length)], operation, ..GroupWrite::default() };
    if length < old {
        // Behind the old end are zeros, up to the end of its last rows.
        let layout = group.layout();
        let strip = u64::from(layout.strip_size).max(BLOCK_SIZE as u64);
        let rows_end = old.next_multiple_of(strip * layout.scheme.data() as u64);
        let whole = group.punchable(length..rows_end);
        let cut_end = if whole.is_empty() { old } else { whole.start.min(old) };
        change.writes.extend(zeros(length..cut_end));
        if !whole.is_empty() {
            change.punches.push((0, whole));
        }
    }
    group.write(change).await.map_err(write_refusal)?;
    changed(group)
}

fn zeros(range: std::ops::Range<u64>) -> Option<DeviceWrite> {
    let size = usize::try_from(range.end.saturating_sub(range.start)).ok()?;
    let bytes = Bytes::from(vec![0; size]);
    (size > 0).then_some(DeviceWrite { device_index: 0, at: range.start, bytes })
}

/// Whole stripes give their space back, the ends are written with zeros.
async fn punch(group: &Rc<Group>, at: u64, length: u64, operation: Option<Operation>) -> Answer {
    let end = at.saturating_add(length).min(group.length(0));
    if at < end {
        let whole = group.punchable(at..end);
        let mut change = GroupWrite { operation, ..GroupWrite::default() };
        if whole.is_empty() {
            change.writes.extend(zeros(at..end));
        } else {
            change.writes.extend(zeros(at..whole.start));
            change.writes.extend(zeros(whole.end..end));
            change.punches.push((0, whole));
        }
        group.write(change).await.map_err(write_refusal)?;
    }
    changed(group)
}

/// Orders that are kept though nobody waits.
const TURNS_KEPT: usize = 1024;
