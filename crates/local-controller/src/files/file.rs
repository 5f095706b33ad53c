//! Bytes of file devices.
//!
//! # Theory
//! Reads and writes go straight to the group. A device that was never written is made by its first
//! write: at once where this LCC gave its number out, else after all its portions were asked.
//! # Failure
//! Appends of one device follow each other, each at the end that the one before left.
//! # Source
//! DESIGN 8, W-8, W-9.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use braid_env::Payload;
use braid_terms::{DeviceId, GroupLayout, REQUEST_BYTES_MAX};
use braid_wire::lcc::{FileOp, LccRefusal, LccReply};
use bytes::Bytes;
use tokio::sync::Mutex;

use super::access::{own_refusal, read_refusal, write_refusal};
use super::checks::{bad, check_file_layout};
use crate::{DeviceWrite, Group, GroupWrite, Lcc};

/// File devices of one LCC.
pub struct FileDevices {
    lcc: Rc<Lcc>,
    /// Appends under way, by device.
    appends: RefCell<BTreeMap<DeviceId, Rc<Mutex<()>>>>,
}

type Answer = Result<(LccReply, Payload), LccRefusal>;

impl FileDevices {
    pub fn new(lcc: Rc<Lcc>) -> Self {
        Self { lcc, appends: RefCell::default() }
    }

    /// Does everything but `Remove`.
    pub async fn handle(&self, layout: &GroupLayout, op: FileOp, payload: Bytes) -> Answer {
        check_file_layout(layout)?;
        match op {
            FileOp::Write { at, home, fresh, stable, append } => {
                let group = self.to_write(layout, home, fresh).await?;
                let write = Write { at, stable, append, bytes: payload };
                self.write(&group, write).await
            }
            FileOp::Truncate { length, home } => {
                let group = self.to_write(layout, home, false).await?;
                let change = GroupWrite { lengths: vec![(0, length)], ..GroupWrite::default() };
                group.write(change).await.map_err(write_refusal)?;
                told(LccReply::Length(group.length(0)))
            }
            FileOp::Read { at, length, stable } => {
                let group = self.group(layout).await?;
                read(&group, at, length, stable).await
            }
            FileOp::Length => {
                let group = self.group(layout).await?;
                group.check_lease().map_err(read_refusal)?;
                told(LccReply::Length(group.length(0)))
            }
            FileOp::Punch { at, length } => {
                let group = self.group(layout).await?;
                punch(&group, at, length).await
            }
            FileOp::Seek { at, hole } => {
                let group = self.group(layout).await?;
                group.check_lease().map_err(read_refusal)?;
                // All of it counts as data: right, if not as fine as it could be.
                let length = group.length(0);
                told(LccReply::Length(if hole { length } else { at.min(length) }))
            }
            FileOp::Sync => {
                let group = self.group(layout).await?;
                group.sync().await.map_err(write_refusal)?;
                told(LccReply::Length(group.length(0)))
            }
            FileOp::Remove => Err(bad("a removal is done elsewhere")),
        }
    }

    async fn group(&self, layout: &GroupLayout) -> Result<Rc<Group>, LccRefusal> {
        self.lcc.group(layout).await.map_err(own_refusal)
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

    async fn write(&self, group: &Rc<Group>, write: Write) -> Answer {
        let Write { at, stable, append, bytes } = write;
        if bytes.is_empty() || REQUEST_BYTES_MAX < bytes.len() {
            return Err(bad("a write has 1 byte to 4 MiB"));
        }
        let size = bytes.len() as u64;
        // A task would be needed if this were dropped half way; but what is numbered goes on.
        let (at, number) = if append {
            let device = group.layout().group();
            let turn = self.appends.borrow_mut().entry(device).or_default().clone();
            let written = {
                let _turn = turn.lock().await;
                let at = group.length_ahead(0);
                write_at(group, at, bytes).await.map(|number| (at, number))
            };
            drop(turn);
            self.appends.borrow_mut().retain(|_, turn| Rc::strong_count(turn) > 1);
            written?
        } else {
            (at, write_at(group, at, bytes).await?)
        };
        self.lcc.count(|counters| counters.bytes_written += size);
        if stable {
            group.stable(number).await.map_err(write_refusal)?;
        }
        told(LccReply::Written { at, length: group.length(0) })
    }
}

struct Write {
    at: u64,
    stable: bool,
    append: bool,
    bytes: Bytes,
}

fn told(reply: LccReply) -> Answer {
    Ok((reply, Payload::empty()))
}

async fn write_at(
    group: &Rc<Group>,
    at: u64,
    bytes: Bytes,
) -> Result<braid_terms::WriteNumber, LccRefusal> {
    if at.checked_add(bytes.len() as u64).is_none_or(|end| i64::MAX as u64 <= end) {
        return Err(LccRefusal::TooBig);
    }
    let writes = vec![DeviceWrite { device_index: 0, at, bytes }];
    let change = GroupWrite { writes, ..GroupWrite::default() };
    group.write(change).await.map_err(write_refusal)
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
    Ok((LccReply::Read { length: group.length(0) }, payload))
}

/// Whole stripes give their space back, the ends are written with zeros.
async fn punch(group: &Rc<Group>, at: u64, length: u64) -> Answer {
    let end = at.saturating_add(length).min(group.length(0));
    if at < end {
        let whole = group.punchable(at..end);
        let mut change = GroupWrite::default();
        let ends = match whole.is_empty() {
            true => vec![at..end],
            false => vec![at..whole.start, whole.end..end],
        };
        for range in ends.into_iter().filter(|range| !range.is_empty()) {
            let size = range.end - range.start;
            let zeros = usize::try_from(size).map_err(|_| LccRefusal::TooBig)?;
            let bytes = Bytes::from(vec![0; zeros]);
            change.writes.push(DeviceWrite { device_index: 0, at: range.start, bytes });
        }
        if !whole.is_empty() {
            change.punches.push((0, whole));
        }
        group.write(change).await.map_err(write_refusal)?;
    }
    told(LccReply::Length(group.length(0)))
}
