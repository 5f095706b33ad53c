//! Reads of a group: from the slots that have the bytes, or computed from k others.
//! # Theory
//! A read asks only the slots whose data it wants. What they do not give, because they are not in
//! sync, do not answer, or answer with a block that does not fit its checksum, is computed from k
//! slots' blocks of the same rows.
//! # Invariants
//! R1 No byte leaves that was not verified against the checksum its writer computed.
//! R2 The lease was valid after the last byte was gathered (O-4).
//! # Failure
//! Bad blocks of more than m slots, each in other rows: then every row is computed by itself.
//! # Source
//! W-12, S-2, F-6, G-9.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use braid_raid::UnitSet;
use braid_terms::{BLOCK_SIZE, DiskId, PortionIndex, WriteNumber, sometimes};
use braid_wire::Payload;
use braid_wire::io::{BlockRange, Fence, IoRefusal, IoReply, IoRequest, Read};
use bytes::Bytes;
use tokio::time::timeout;

use super::images::{BLOCK, crc, rows_of};
use super::row_locks::Rows;
use super::{Dead, Group, Link, ReadError, WriteError};
use crate::disks::CALL_WAIT;

/// A run of blocks of one unit; blocks that were never written are zeros.
#[derive(Clone)]
pub(super) struct Run {
    first: u64,
    bytes: Bytes,
}

impl Run {
    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

/// Why a slot gave no blocks.
pub(super) enum Miss {
    Silent,
    /// These blocks do not fit their checksums, or cannot be read.
    Bad(Vec<u64>),
}

/// What a slot says.
pub(super) enum SlotReply {
    Silent,
    /// Nothing was ever written there.
    Nothing,
    Unreadable,
    /// To `Read`.
    Blocks(Vec<Option<u32>>, Bytes),
    /// To `Seek`.
    Sought(u64, bool),
}

/// Bad blocks by unit.
type Bad = BTreeMap<usize, Vec<u64>>;

impl Group {
    /// Reads device bytes; shorter at the end of the device. Pieces are in order.
    ///
    /// Errors: `ReadError`.
    pub async fn read(
        self: &Rc<Self>,
        device_index: u8,
        at: u64,
        length: u64,
    ) -> Result<Payload, ReadError> {
        let end = at.saturating_add(length).min(self.length(device_index));
        if end <= at {
            self.check_lease()?;
            return Ok(Payload::empty());
        }
        let range = at..end;
        let rows = rows_of(&self.geometry, range.clone());
        let guard = self.locks.lock(vec![Rows { device_index, range: rows.clone() }], true).await;
        // What was cut while we waited is not there any more.
        let end = end.min(self.length(device_index));
        if end <= at {
            self.check_lease()?;
            return Ok(Payload::empty());
        }
        let range = at..end;
        // Each unit's own rows.
        let mut wanted: BTreeMap<usize, Range<u64>> = BTreeMap::new();
        for segment in self.geometry.segments(range.clone()) {
            let portion = segment.portion_range();
            let rows = portion.start / BLOCK..portion.end.div_ceil(BLOCK);
            let unit = wanted.entry(segment.unit).or_insert_with(|| rows.clone());
            *unit = unit.start.min(rows.start)..unit.end.max(rows.end);
        }
        let runs = self.fetch(device_index, &wanted).await?;
        drop(guard);
        self.check_lease()?;
        let mut payload = Payload::empty();
        for segment in self.geometry.segments(range) {
            let run = &runs[&segment.unit];
            let from = (segment.portion_at - run.first * BLOCK) as usize;
            payload.push(run.bytes.slice(from..from + segment.size as usize));
        }
        if let Ok(lcc) = self.lcc() {
            lcc.count(|counters| counters.bytes_read += payload.len() as u64);
        }
        Ok(payload)
    }

    /// The k data units' bytes of some rows. The caller holds their lock.
    pub(crate) async fn read_rows(
        self: &Rc<Self>,
        device_index: u8,
        rows: Range<u64>,
    ) -> Result<Vec<Bytes>, ReadError> {
        let wanted = (0..self.geometry.data()).map(|unit| (unit, rows.clone())).collect();
        let runs = self.fetch(device_index, &wanted).await?;
        Ok(runs.into_values().map(|run| run.bytes).collect())
    }

    /// The k data units' bytes of many runs of rows, each with its device; by one request to each slot
    /// where nothing is missing. The caller holds their locks.
    pub(crate) async fn read_many(
        self: &Rc<Self>,
        runs: &[(u8, Range<u64>)],
    ) -> Result<Vec<Vec<Bytes>>, ReadError> {
        if 1 < runs.len() {
            let units = 0..self.geometry.data();
            let reads = units.map(|unit| self.read_slot_many(self.geometry.slot(unit), runs));
            let read = futures_util::future::join_all(reads).await;
            let read: Vec<_> = read.into_iter().collect::<Result<_, _>>()?;
            if let Ok(of_units) = read.into_iter().collect::<Result<Vec<Vec<Run>>, Miss>>() {
                let of_run =
                    |index: usize| of_units.iter().map(|runs| runs[index].bytes.clone()).collect();
                return Ok((0..runs.len()).map(of_run).collect());
            }
        }
        // What one slot does not give is computed.
        let mut all = Vec::with_capacity(runs.len());
        for (device_index, rows) in runs {
            all.push(self.read_rows(*device_index, rows.clone()).await?);
        }
        Ok(all)
    }

    /// Blocks of one unit, computed from others: for the rebuild of its slot. The caller holds the
    /// rows' lock.
    pub(crate) async fn compute_unit(
        self: &Rc<Self>,
        device_index: u8,
        unit: usize,
        rows: Range<u64>,
    ) -> Result<Bytes, ReadError> {
        let wanted = BTreeMap::from([(unit, rows)]);
        let mut runs =
            self.fetch_without(device_index, &wanted, UnitSet::from_bits(1 << unit)).await?;
        Ok(runs.remove(&unit).expect("it was wanted").bytes)
    }

    async fn fetch(
        self: &Rc<Self>,
        device_index: u8,
        wanted: &BTreeMap<usize, Range<u64>>,
    ) -> Result<BTreeMap<usize, Run>, ReadError> {
        self.fetch_without(device_index, wanted, UnitSet::EMPTY).await
    }

    async fn fetch_without(
        self: &Rc<Self>,
        device_index: u8,
        wanted: &BTreeMap<usize, Range<u64>>,
        not: UnitSet,
    ) -> Result<BTreeMap<usize, Run>, ReadError> {
        let mut bad = Bad::new();
        let mut fetched = self.fetch_together(device_index, wanted, not, &mut bad).await;
        if matches!(fetched, Err(ReadError::Lost(_))) {
            fetched = self.fetch_by_rows(device_index, wanted, not, &mut bad).await;
        }
        for (unit, blocks) in bad {
            self.report_bad(self.geometry.slot(unit), device_index, blocks);
        }
        fetched
    }

    async fn fetch_by_rows(
        self: &Rc<Self>,
        device_index: u8,
        wanted: &BTreeMap<usize, Range<u64>>,
        not: UnitSet,
        bad: &mut Bad,
    ) -> Result<BTreeMap<usize, Run>, ReadError> {
        let start = wanted.values().map(|rows| rows.start).min().unwrap_or(0);
        let end = wanted.values().map(|rows| rows.end).max().unwrap_or(0);
        let mut found: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for row in start..end {
            let units = wanted.iter().filter(|(_, rows)| rows.contains(&row));
            let of_row: BTreeMap<_, _> = units.map(|(unit, _)| (*unit, row..row + 1)).collect();
            for (unit, run) in self.fetch_together(device_index, &of_row, not, bad).await? {
                found.entry(unit).or_default().extend_from_slice(&run.bytes);
            }
        }
        let run = |(unit, bytes): (usize, Vec<u8>)| {
            (unit, Run { first: wanted[&unit].start, bytes: bytes.into() })
        };
        Ok(found.into_iter().map(run).collect())
    }

    async fn fetch_together(
        self: &Rc<Self>,
        device_index: u8,
        wanted: &BTreeMap<usize, Range<u64>>,
        not: UnitSet,
        bad: &mut Bad,
    ) -> Result<BTreeMap<usize, Run>, ReadError> {
        let mut failed = not;
        let mut found: BTreeMap<usize, Run> = BTreeMap::new();
        // First what is wanted, from the slots that have it.
        let readable = self.readable();
        let direct: Vec<_> = wanted
            .iter()
            .filter(|(unit, _)| readable.contains(**unit) && !failed.contains(**unit))
            .map(|(unit, rows)| (*unit, rows.clone()))
            .collect();
        self.gather(device_index, direct, &mut found, &mut failed, bad).await?;
        let lost: Vec<usize> =
            wanted.keys().copied().filter(|unit| !found.contains_key(unit)).collect();
        if lost.is_empty() {
            return Ok(found);
        }
        // Then the rest, computed over the rows that any of it needs.
        let start = lost.iter().map(|unit| wanted[unit].start).min().expect("not empty");
        let end = lost.iter().map(|unit| wanted[unit].end).max().expect("not empty");
        let rows = start..end;
        let mut sources: BTreeMap<usize, Run> = BTreeMap::new();
        let k = self.geometry.data();
        loop {
            let readable = self.readable().without(failed);
            let fits = |run: &Run| {
                run.first <= start && end * BLOCK <= run.first * BLOCK + run.bytes.len() as u64
            };
            for (unit, run) in
                found.iter().filter(|(unit, run)| fits(run) && !failed.contains(**unit))
            {
                sources.entry(*unit).or_insert_with(|| run.clone());
            }
            if k <= sources.len() {
                break;
            }
            let more: Vec<_> = readable
                .iter()
                .filter(|unit| !sources.contains_key(unit))
                .take(k - sources.len())
                .map(|unit| (unit, rows.clone()))
                .collect();
            if more.is_empty() {
                let count = sources.len();
                let reason = format!("{count} of the {k} portions needed can be read");
                let is_bad = failed.iter().any(|unit| bad.contains_key(&unit));
                return Err(if is_bad {
                    ReadError::Lost(reason)
                } else {
                    ReadError::Unavailable(reason)
                });
            }
            self.gather(device_index, more, &mut sources, &mut failed, bad).await?;
        }
        let present: UnitSet = sources.keys().copied().take(k).collect();
        let lost_units: UnitSet = lost.iter().copied().collect();
        let decoder = self.code.decoder(present, lost_units).expect("k units are present");
        let size = (end - start) as usize * BLOCK_SIZE;
        let mut outputs = vec![vec![0_u8; size]; lost.len()];
        {
            let slice = |unit: usize| {
                let run = &sources[&unit];
                let from = ((start - run.first) * BLOCK) as usize;
                &run.bytes[from..from + size]
            };
            let inputs: Vec<&[u8]> = decoder.sources().iter().map(slice).collect();
            let mut outputs: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
            decoder.apply(&inputs, &mut outputs);
        }
        if let Ok(lcc) = self.lcc() {
            lcc.count(|counters| counters.degraded_reads += 1);
        }
        for (unit, bytes) in decoder.wanted().iter().zip(outputs) {
            found.insert(unit, Run { first: start, bytes: bytes.into() });
        }
        Ok(found)
    }

    /// Units whose slots are believed.
    fn readable(&self) -> UnitSet {
        let state = self.state.borrow();
        let in_sync = state.slots.iter().filter(|slot| slot.condition.in_sync());
        in_sync.map(|slot| slot.index).collect()
    }

    async fn gather(
        self: &Rc<Self>,
        device_index: u8,
        wanted: Vec<(usize, Range<u64>)>,
        found: &mut BTreeMap<usize, Run>,
        failed: &mut UnitSet,
        bad: &mut Bad,
    ) -> Result<(), ReadError> {
        let reads = wanted.into_iter().map(|(unit, rows)| async move {
            let run = self.read_slot(device_index, self.geometry.slot(unit), rows).await;
            (unit, run)
        });
        for (unit, run) in futures_util::future::join_all(reads).await {
            match run? {
                Ok(run) => {
                    found.insert(unit, run);
                }
                Err(Miss::Silent) => failed.insert(unit),
                Err(Miss::Bad(blocks)) => {
                    failed.insert(unit);
                    bad.entry(unit).or_default().extend(blocks);
                }
            }
        }
        Ok(())
    }

    pub(super) async fn read_slot(
        self: &Rc<Self>,
        device_index: u8,
        slot: PortionIndex,
        rows: Range<u64>,
    ) -> Result<Result<Run, Miss>, ReadError> {
        let read = self.read_slot_many(slot, &[(device_index, rows)]).await?;
        Ok(read.map(|mut runs| runs.pop().expect("one was asked for")))
    }

    /// Runs of rows, each with its device, of one slot. `Bad` tells blocks of the first bad run.
    async fn read_slot_many(
        self: &Rc<Self>,
        slot: PortionIndex,
        runs: &[(u8, Range<u64>)],
    ) -> Result<Result<Vec<Run>, Miss>, ReadError> {
        let count = |rows: &Range<u64>| (rows.end - rows.start) as usize;
        let range = |(device_index, rows): &(u8, Range<u64>)| BlockRange {
            device_index: *device_index,
            first: rows.start,
            count: rows.end - rows.start,
        };
        let request = |fence, decided| {
            let ranges = runs.iter().map(range).collect();
            IoRequest::Read(Box::new(Read { fence, decided, ranges }))
        };
        Ok(match self.ask_slot(slot, request).await? {
            SlotReply::Silent => Err(Miss::Silent),
            SlotReply::Nothing => {
                let zeros = |(_, rows): &(u8, Range<u64>)| Run {
                    first: rows.start,
                    bytes: zeros(count(rows)),
                };
                Ok(runs.iter().map(zeros).collect())
            }
            SlotReply::Unreadable => Err(Miss::Bad(runs[0].1.clone().collect())),
            SlotReply::Blocks(crcs, payload) => verify_all(runs, &crcs, payload),
            SlotReply::Sought(..) => Err(Miss::Silent),
        })
    }

    /// Asks a slot in sync, as it is up to the decided mark.
    pub(super) async fn ask_slot(
        self: &Rc<Self>,
        slot: PortionIndex,
        request: impl Fn(Fence, WriteNumber) -> IoRequest,
    ) -> Result<SlotReply, ReadError> {
        for _ in 0..READ_TRIES {
            self.touch(slot).await;
            let (up, decided, unknown) = {
                let state = self.state.borrow();
                if state.dead.is_some() {
                    return Err(ReadError::LostOwnership);
                }
                let found = state.slot(slot);
                if !found.condition.in_sync() {
                    return Ok(SlotReply::Silent);
                }
                if !found.seen {
                    let disk = found.disk;
                    drop(state);
                    self.look_again(slot, disk);
                    return Ok(SlotReply::Silent);
                }
                let unknown = found.prev == Default::default();
                match &found.link {
                    Link::Up(up) if !up.client.is_closed() => {
                        (Some(up.clone()), state.decided, unknown)
                    }
                    Link::Up(up) => {
                        let incarnation = up.incarnation;
                        drop(state);
                        self.slot_failed(slot, incarnation);
                        continue;
                    }
                    Link::Down | Link::Opening => (None, state.decided, unknown),
                }
            };
            if unknown {
                return Ok(SlotReply::Nothing);
            }
            let Some(up) = up else {
                self.open_or_wait(slot).await;
                continue;
            };
            let request = request(self.fence(slot, &up), decided);
            match up.client.call(&request, Payload::empty(), CALL_WAIT).await {
                Ok((Ok(IoReply::Blocks { crcs }), payload)) => {
                    return Ok(SlotReply::Blocks(crcs, payload));
                }
                Ok((Ok(IoReply::Sought { at, found }), _)) => {
                    return Ok(SlotReply::Sought(at, found));
                }
                Ok((Err(IoRefusal::Fenced { .. }), _)) => {
                    self.kill(Dead::LostOwnership);
                    return Err(ReadError::LostOwnership);
                }
                Ok((Err(IoRefusal::Unreadable { reason }), _)) => {
                    tracing::warn!(group = %self.layout.group(), %slot, %reason, "cannot be read");
                    return Ok(SlotReply::Unreadable);
                }
                answer => {
                    tracing::debug!(group = %self.layout.group(), %slot, ?answer, "no blocks");
                    self.slot_failed(slot, up.incarnation);
                }
            }
        }
        Ok(SlotReply::Silent)
    }

    /// Opens a slot that a clean open left out. Source: O-8.
    async fn touch(self: &Rc<Self>, index: PortionIndex) {
        let disk = {
            let state = self.state.borrow();
            let slot = state.slot(index);
            if !slot.untouched {
                return;
            }
            slot.disk
        };
        if self.lcc().is_ok_and(|lcc| !lcc.is_dead(disk)) {
            self.open_again(index);
            let _ = timeout(REOPEN_WAIT, self.opened(index)).await;
        }
    }

    /// A slot that was silent when the group was opened: reads go on without it, and it is opened
    /// once its disk is there again.
    fn look_again(self: &Rc<Self>, slot: PortionIndex, disk: DiskId) {
        if self.lcc().is_ok_and(|lcc| !lcc.is_dead(disk)) {
            self.open_again(slot);
        }
    }

    /// A read does not wait long for a slot that others can replace.
    async fn open_or_wait(self: &Rc<Self>, slot: PortionIndex) {
        let changed = self.changed.notified();
        let down = matches!(self.state.borrow().slot(slot).link, Link::Down);
        if down {
            let group = self.clone();
            tokio::task::spawn_local(async move {
                let _ = group.links_ready().await;
            });
        }
        let _ = timeout(REOPEN_WAIT, changed).await;
    }

    /// Whether what is known of the group may be told: under the lease, and not while slots were
    /// restarted that may have lost what was answered. Source: O-4, W-9.
    ///
    /// Errors: `LostOwnership`, `Unavailable`.
    pub(crate) fn check_lease(&self) -> Result<(), ReadError> {
        let alive = self.state.borrow().dead.is_none();
        let valid = self.lcc().is_ok_and(|lcc| lcc.lease_valid());
        if !alive || !valid {
            return Err(ReadError::LostOwnership);
        }
        if !self.state.borrow().vouches(self.geometry.data()) {
            sometimes!("W-9: nothing is told while restarted portions may have lost it");
            let reason = "portions were restarted, and what they keep is looked at";
            return Err(ReadError::Unavailable(reason.to_owned()));
        }
        Ok(())
    }
}

/// The answer to a request for several runs.
fn verify_all(
    runs: &[(u8, Range<u64>)],
    crcs: &[Option<u32>],
    payload: Bytes,
) -> Result<Vec<Run>, Miss> {
    if let [(_, rows)] = runs {
        let count = (rows.end - rows.start) as usize;
        return verify(rows.start, count, crcs, payload).map(|run| vec![run]);
    }
    let (mut crcs, mut payload, mut all) = (crcs, payload, Vec::with_capacity(runs.len()));
    for (_, rows) in runs {
        let count = (rows.end - rows.start) as usize;
        let (own, rest) = crcs.split_at_checked(count).unwrap_or((crcs, &[]));
        let bytes = own.iter().flatten().count() * BLOCK_SIZE;
        let own_bytes = payload.split_to(bytes.min(payload.len()));
        all.push(verify(rows.start, count, own, own_bytes)?);
        crcs = rest;
    }
    Ok(all)
}

fn verify(first: u64, count: usize, crcs: &[Option<u32>], payload: Bytes) -> Result<Run, Miss> {
    let present = crcs.iter().flatten().count();
    if crcs.len() != count || payload.len() != present * BLOCK_SIZE {
        return Err(Miss::Bad((first..first + count as u64).collect()));
    }
    let mut blocks = payload.chunks_exact(BLOCK_SIZE);
    let mut bad = Vec::new();
    for (index, expected) in crcs.iter().enumerate() {
        if let Some(expected) = expected
            && blocks.next().is_none_or(|block| crc(block) != *expected)
            && !braid_terms::planted!("S-2/blocks-are-not-verified")
        {
            bad.push(first + index as u64);
        }
    }
    if !bad.is_empty() {
        return Err(Miss::Bad(bad));
    }
    if present == count {
        return Ok(Run { first, bytes: payload });
    }
    let mut whole = vec![0; count * BLOCK_SIZE];
    let mut blocks = payload.chunks_exact(BLOCK_SIZE);
    for (index, _) in crcs.iter().enumerate().filter(|(_, crc)| crc.is_some()) {
        let block = blocks.next().expect("counted above");
        whole[index * BLOCK_SIZE..(index + 1) * BLOCK_SIZE].copy_from_slice(block);
    }
    Ok(Run { first, bytes: whole.into() })
}

fn zeros(count: usize) -> Bytes {
    static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
    let length = count * BLOCK_SIZE;
    if length <= ZEROS.len() {
        Bytes::from_static(&ZEROS[..length])
    } else {
        vec![0; length].into()
    }
}

impl From<ReadError> for WriteError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::LostOwnership => Self::LostOwnership,
            ReadError::Unavailable(reason) => Self::Unavailable(reason),
            ReadError::Lost(reason) => Self::Lost(reason),
        }
    }
}

/// Attempts at one slot before its blocks are computed.
const READ_TRIES: usize = 2;

/// How long a read waits for a slot that is being opened again.
const REOPEN_WAIT: std::time::Duration = std::time::Duration::from_millis(200);
