//! What the records of a directory's two logs say.
//!
//! # Failure
//! Bytes from a device are parsed or refused; a record that cannot be parsed is damage.
//! # Source
//! DESIGN 8, N-3, N-4, F-9. Bytes: `docs/format/directory.md`.

use braid_terms::{
    DeviceId, DiskId, GrantNumber, GroupLayout, LayoutGeneration, NAME_MAX, WriteNumber,
};
use braid_wire::joint::JointId;
use braid_wire::lcc::{Attributes, DirectoryEntry, FileData, FileKind, FileTime, OperationId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::bytes_le::{Malformed, Reader, put_long, put_short};
use super::log::{LogRole, Record};
use super::steps::Intent;

/// One change of a directory's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A name stands for this.
    Enter(DirectoryEntry),
    /// A name stands for nothing.
    RemoveName(Bytes),
    /// The next cookie to give.
    NextCookie(u64),
    /// Attributes of an id.
    Attributes(Box<Attributes>),
    /// An id is unknown.
    RemoveAttributes(DeviceId),
    /// A device is being written that has no name yet.
    Upload(Upload),
    /// It has a name, or was given up.
    UploadEnded(DeviceId),
    /// Nothing names this group any more.
    ToRemove(GroupLayout),
    /// Its portions are gone.
    Removed(DeviceId),
    /// An operation was done, and answered so.
    Operation(OperationId, Answer),
    /// The directory's own state.
    Directory(OwnState),
    /// What is to be done if the primary of a change over several groups decides so. Source: W-7.
    Intent(Box<Intent>),
    /// It was done, or is not to be done.
    IntentEnded(JointId),
    /// A change over several groups was decided here; these others are to finish it.
    Joint(JointId, Vec<GroupLayout>),
    /// They all have finished it.
    JointEnded(JointId),
    /// A change over several groups was not made, and never will be.
    JointVoid(JointId),
}

/// A device that is being written and has no name yet. Source: F-9.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upload {
    /// Seconds since 1970.
    pub begun: i64,
    /// The device's group.
    pub layout: GroupLayout,
}

/// A directory's own state beside its attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnState {
    /// It was removed, or is about to be.
    pub retired: bool,
    /// The parent's group; the root's is its own.
    pub parent: GroupLayout,
}

/// How an operation was answered, without what can be looked up. Source: L2 of `wire::lcc`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// `Done`.
    Done,
    /// `Entry`.
    Entry {
        /// The entry that was made.
        entry: DirectoryEntry,
        /// None; kept for the form of the record.
        replaced: Option<DirectoryEntry>,
    },
    /// `Removed`; inline bytes are left out.
    Removed {
        /// The entry that was removed.
        entry: Option<DirectoryEntry>,
        /// Its attributes of before, where they were kept here.
        attributes: Option<Box<Attributes>>,
    },
    /// `Attributes` of this id, which is still here.
    Attributes(DeviceId),
    /// `Attributes` of an id that is here no more.
    Last(Box<Attributes>),
}

impl Change {
    /// In which of the two logs it stands.
    pub fn role(&self) -> LogRole {
        match self {
            Self::Enter(_) | Self::RemoveName(_) | Self::NextCookie(_) => LogRole::Names,
            _ => LogRole::Attributes,
        }
    }

    /// As a record.
    pub fn encode(&self) -> Record {
        let mut body = Vec::new();
        let kind = match self {
            Self::Enter(entry) => {
                body.extend_from_slice(&entry.cookie.to_le_bytes());
                body.extend_from_slice(&entry.id.0.to_le_bytes());
                body.push(kind_byte(entry.kind));
                put_short(&mut body, &entry.name);
                match &entry.home {
                    None => body.push(0),
                    Some(home) => put_layout(&mut body, home),
                }
                KIND_ENTER
            }
            Self::RemoveName(name) => {
                put_short(&mut body, name);
                KIND_REMOVE_NAME
            }
            Self::NextCookie(cookie) => {
                body.extend_from_slice(&cookie.to_le_bytes());
                KIND_NEXT_COOKIE
            }
            Self::Attributes(attributes) => {
                put_attributes(&mut body, attributes);
                KIND_ATTRIBUTES
            }
            Self::RemoveAttributes(id) => {
                body.extend_from_slice(&id.0.to_le_bytes());
                KIND_REMOVE_ATTRIBUTES
            }
            Self::Upload(upload) => {
                body.extend_from_slice(&upload.begun.to_le_bytes());
                put_layout(&mut body, &upload.layout);
                KIND_UPLOAD
            }
            Self::UploadEnded(device) => {
                body.extend_from_slice(&device.0.to_le_bytes());
                KIND_UPLOAD_ENDED
            }
            Self::ToRemove(layout) => {
                put_layout(&mut body, layout);
                KIND_TO_REMOVE
            }
            Self::Removed(device) => {
                body.extend_from_slice(&device.0.to_le_bytes());
                KIND_REMOVED
            }
            Self::Operation(operation, answer) => {
                body.extend_from_slice(&operation.client.to_le_bytes());
                body.extend_from_slice(&operation.counter.to_le_bytes());
                put_long(&mut body, &postcard::to_stdvec(answer).expect("it has a finite form"));
                KIND_OPERATION
            }
            Self::Directory(own) => {
                body.push(own.retired.into());
                put_layout(&mut body, &own.parent);
                KIND_DIRECTORY
            }
            Self::Intent(intent) => {
                put_joint_id(&mut body, intent.joint.id);
                put_layout(&mut body, &intent.joint.primary);
                put_long(&mut body, &postcard::to_stdvec(intent).expect("it has a finite form"));
                KIND_INTENT
            }
            Self::IntentEnded(id) => {
                put_joint_id(&mut body, *id);
                KIND_INTENT_ENDED
            }
            Self::Joint(id, secondaries) => {
                put_joint_id(&mut body, *id);
                body.push(u8::try_from(secondaries.len()).expect("a change has few groups"));
                secondaries.iter().for_each(|layout| put_layout(&mut body, layout));
                KIND_JOINT
            }
            Self::JointEnded(id) => {
                put_joint_id(&mut body, *id);
                KIND_JOINT_ENDED
            }
            Self::JointVoid(id) => {
                put_joint_id(&mut body, *id);
                KIND_JOINT_VOID
            }
        };
        Record { kind, body }
    }

    /// From a record of the log `role`.
    pub fn decode(role: LogRole, record: &Record) -> Result<Self, Malformed> {
        let mut reader = Reader::new(&record.body);
        let change = match record.kind {
            KIND_ENTER => {
                let cookie = reader.u64()?;
                let id = DeviceId(reader.u64()?);
                let kind = read_kind(&mut reader)?;
                let name = read_name(&mut reader)?;
                let home = read_layout_or_none(&mut reader)?;
                Self::Enter(DirectoryEntry { name, id, kind, home, cookie })
            }
            KIND_REMOVE_NAME => Self::RemoveName(read_name(&mut reader)?),
            KIND_NEXT_COOKIE => Self::NextCookie(reader.u64()?),
            KIND_ATTRIBUTES => Self::Attributes(Box::new(read_attributes(&mut reader)?)),
            KIND_REMOVE_ATTRIBUTES => Self::RemoveAttributes(DeviceId(reader.u64()?)),
            KIND_UPLOAD => {
                let begun = reader.i64()?;
                Self::Upload(Upload { begun, layout: read_layout(&mut reader)? })
            }
            KIND_UPLOAD_ENDED => Self::UploadEnded(DeviceId(reader.u64()?)),
            KIND_TO_REMOVE => Self::ToRemove(read_layout(&mut reader)?),
            KIND_REMOVED => Self::Removed(DeviceId(reader.u64()?)),
            KIND_OPERATION => {
                let operation = OperationId { client: reader.u64()?, counter: reader.u64()? };
                let answer = postcard::from_bytes(&reader.long()?).map_err(|_| Malformed)?;
                Self::Operation(operation, answer)
            }
            KIND_DIRECTORY => {
                let retired = reader.u8()? != 0;
                Self::Directory(OwnState { retired, parent: read_layout(&mut reader)? })
            }
            KIND_INTENT => {
                let (id, primary) = (read_joint_id(&mut reader)?, read_layout(&mut reader)?);
                let intent: Intent =
                    postcard::from_bytes(&reader.long()?).map_err(|_| Malformed)?;
                if (intent.joint.id, &intent.joint.primary) != (id, &primary) {
                    return Err(Malformed);
                }
                Self::Intent(Box::new(intent))
            }
            KIND_INTENT_ENDED => Self::IntentEnded(read_joint_id(&mut reader)?),
            KIND_JOINT => {
                let id = read_joint_id(&mut reader)?;
                let count = reader.u8()?;
                let secondaries =
                    (0..count).map(|_| read_layout(&mut reader)).collect::<Result<_, _>>()?;
                Self::Joint(id, secondaries)
            }
            KIND_JOINT_ENDED => Self::JointEnded(read_joint_id(&mut reader)?),
            KIND_JOINT_VOID => Self::JointVoid(read_joint_id(&mut reader)?),
            _ => return Err(Malformed),
        };
        reader.end()?;
        if change.role() == role { Ok(change) } else { Err(Malformed) }
    }
}

fn put_joint_id(target: &mut Vec<u8>, id: JointId) {
    target.extend_from_slice(&id.driver.to_le_bytes());
    target.extend_from_slice(&id.counter.to_le_bytes());
}

fn read_joint_id(reader: &mut Reader<'_>) -> Result<JointId, Malformed> {
    Ok(JointId { driver: reader.u64()?, counter: reader.u64()? })
}

fn kind_byte(kind: FileKind) -> u8 {
    match kind {
        FileKind::File => 1,
        FileKind::Directory => 2,
        FileKind::Symlink => 3,
        FileKind::Fifo => 4,
        FileKind::Socket => 5,
        FileKind::BlockDevice => 6,
        FileKind::CharacterDevice => 7,
    }
}

fn read_kind(reader: &mut Reader<'_>) -> Result<FileKind, Malformed> {
    Ok(match reader.u8()? {
        1 => FileKind::File,
        2 => FileKind::Directory,
        3 => FileKind::Symlink,
        4 => FileKind::Fifo,
        5 => FileKind::Socket,
        6 => FileKind::BlockDevice,
        7 => FileKind::CharacterDevice,
        _ => return Err(Malformed),
    })
}

fn read_name(reader: &mut Reader<'_>) -> Result<Bytes, Malformed> {
    let name = reader.short()?;
    if is_name(&name) { Ok(name) } else { Err(Malformed) }
}

/// Whether these bytes may be a name in a directory.
pub fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
        && name != b"."
        && name != b".."
}

fn put_layout(target: &mut Vec<u8>, layout: &GroupLayout) {
    let count = |count: usize| u8::try_from(count).expect("a checked layout");
    target.push(count(layout.devices.len()));
    layout.devices.iter().for_each(|device| target.extend_from_slice(&device.0.to_le_bytes()));
    put_short(target, layout.scheme.to_string().as_bytes());
    target.extend_from_slice(&layout.strip_size.to_le_bytes());
    target.extend_from_slice(&layout.generation.0.to_le_bytes());
    target.push(count(layout.disks.len()));
    layout.disks.iter().for_each(|disk| target.extend_from_slice(&disk.0.to_le_bytes()));
}

fn read_layout(reader: &mut Reader<'_>) -> Result<GroupLayout, Malformed> {
    read_layout_or_none(reader)?.ok_or(Malformed)
}

fn read_layout_or_none(reader: &mut Reader<'_>) -> Result<Option<GroupLayout>, Malformed> {
    let device_count = reader.u8()?;
    if device_count == 0 {
        return Ok(None);
    }
    let devices =
        (0..device_count).map(|_| reader.u64().map(DeviceId)).collect::<Result<_, _>>()?;
    let scheme = reader.short()?;
    let scheme = std::str::from_utf8(&scheme).ok().and_then(|text| text.parse().ok());
    let scheme = scheme.ok_or(Malformed)?;
    let strip_size = reader.u32()?;
    let generation = LayoutGeneration(reader.u32()?);
    let disk_count = reader.u8()?;
    let disks = (0..disk_count).map(|_| reader.u32().map(DiskId)).collect::<Result<_, _>>()?;
    let layout = GroupLayout { devices, scheme, strip_size, generation, disks };
    layout.check().map_err(|_| Malformed)?;
    Ok(Some(layout))
}

fn put_attributes(target: &mut Vec<u8>, attributes: &Attributes) {
    target.extend_from_slice(&attributes.id.0.to_le_bytes());
    target.push(kind_byte(attributes.kind));
    for number in [attributes.mode, attributes.uid, attributes.gid] {
        target.extend_from_slice(&number.to_le_bytes());
    }
    target.extend_from_slice(&attributes.size.to_le_bytes());
    target.extend_from_slice(&attributes.nlink.to_le_bytes());
    for time in [attributes.atime, attributes.mtime, attributes.ctime, attributes.btime] {
        target.extend_from_slice(&time.seconds.to_le_bytes());
        target.extend_from_slice(&time.nanoseconds.to_le_bytes());
    }
    target.extend_from_slice(&attributes.rdev.to_le_bytes());
    target.extend_from_slice(&attributes.version.to_le_bytes());
    match &attributes.data {
        FileData::None => target.push(0),
        FileData::Inline(bytes) => {
            target.push(1);
            put_long(target, bytes);
        }
        FileData::Device(layout) => {
            target.push(2);
            put_layout(target, layout);
            target.extend_from_slice(&attributes.writers.to_le_bytes());
            let WriteNumber { grant, sequence } = attributes.size_number;
            for number in [grant.term, grant.counter, sequence] {
                target.extend_from_slice(&number.to_le_bytes());
            }
        }
    }
    match &attributes.target {
        None => target.push(0),
        Some(link) => {
            target.push(1);
            let length = u16::try_from(link.len()).expect("bounded when it came in");
            target.extend_from_slice(&length.to_le_bytes());
            target.extend_from_slice(link);
        }
    }
    let count = u16::try_from(attributes.xattrs.len()).expect("bounded when they came in");
    target.extend_from_slice(&count.to_le_bytes());
    for (name, value) in &attributes.xattrs {
        put_short(target, name);
        put_long(target, value);
    }
}

fn read_attributes(reader: &mut Reader<'_>) -> Result<Attributes, Malformed> {
    let id = DeviceId(reader.u64()?);
    let kind = read_kind(reader)?;
    let [mode, uid, gid] = [reader.u32()?, reader.u32()?, reader.u32()?];
    let size = reader.u64()?;
    let nlink = reader.u32()?;
    let mut time = || Ok(FileTime { seconds: reader.i64()?, nanoseconds: reader.u32()? });
    let [atime, mtime, ctime, btime] = [time()?, time()?, time()?, time()?];
    let rdev = reader.u64()?;
    let version = reader.u64()?;
    let (mut writers, mut size_number) = (0, WriteNumber::NONE);
    let data = match reader.u8()? {
        0 => FileData::None,
        1 => FileData::Inline(reader.long()?),
        2 => {
            let layout = read_layout(reader)?;
            writers = reader.u32()?;
            let grant = GrantNumber { term: reader.u64()?, counter: reader.u64()? };
            size_number = WriteNumber { grant, sequence: reader.u64()? };
            FileData::Device(layout)
        }
        _ => return Err(Malformed),
    };
    let target = match reader.u8()? {
        0 => None,
        1 => {
            let length = reader.u16()?;
            Some(Bytes::copy_from_slice(reader.take(length.into())?))
        }
        _ => return Err(Malformed),
    };
    let count = reader.u16()?;
    let xattrs =
        (0..count).map(|_| Ok((reader.short()?, reader.long()?))).collect::<Result<_, _>>()?;
    Ok(Attributes {
        id,
        kind,
        mode,
        uid,
        gid,
        size,
        nlink,
        atime,
        mtime,
        ctime,
        btime,
        rdev,
        version,
        writers,
        size_number,
        data,
        target,
        xattrs,
    })
}

const KIND_ENTER: u8 = 1;
const KIND_REMOVE_NAME: u8 = 2;
const KIND_NEXT_COOKIE: u8 = 3;
const KIND_ATTRIBUTES: u8 = 16;
const KIND_REMOVE_ATTRIBUTES: u8 = 17;
const KIND_UPLOAD: u8 = 18;
const KIND_UPLOAD_ENDED: u8 = 19;
const KIND_TO_REMOVE: u8 = 20;
const KIND_REMOVED: u8 = 21;
const KIND_OPERATION: u8 = 22;
const KIND_DIRECTORY: u8 = 23;
/// From this kind on, records are of format 2.
pub const KIND_INTENT: u8 = 24;
const KIND_INTENT_ENDED: u8 = 25;
const KIND_JOINT: u8 = 26;
const KIND_JOINT_ENDED: u8 = 27;
const KIND_JOINT_VOID: u8 = 28;

#[cfg(test)]
mod tests {
    use braid_terms::RaidScheme;
    use braid_wire::joint::{Joint, JointAnswer, JointStep};

    use super::*;

    fn layout(device: u64) -> GroupLayout {
        GroupLayout {
            devices: vec![DeviceId(device)],
            scheme: RaidScheme::Rs { data: 4, parity: 2 },
            strip_size: 65536,
            generation: LayoutGeneration(1),
            disks: (1..=6).map(DiskId).collect(),
        }
    }

    fn changes() -> Vec<Change> {
        let time = FileTime { seconds: -5, nanoseconds: 17 };
        let entry = DirectoryEntry {
            name: Bytes::from_static(b"a name"),
            id: DeviceId(9),
            kind: FileKind::Directory,
            home: Some(layout(8)),
            cookie: 77,
        };
        let attributes = Attributes {
            id: DeviceId(9),
            kind: FileKind::File,
            mode: 0o644,
            uid: 1,
            gid: 2,
            size: 3,
            nlink: 1,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            rdev: 4,
            version: 5,
            writers: 0,
            size_number: WriteNumber::NONE,
            data: FileData::Inline(Bytes::from_static(b"xyz")),
            target: Some(Bytes::from_static(b"to")),
            xattrs: vec![(Bytes::from_static(b"user.a"), Bytes::from_static(b"v"))],
        };
        let grant = GrantNumber { term: 3, counter: 4 };
        let device = Attributes {
            writers: 2,
            size_number: WriteNumber { grant, sequence: 6 },
            data: FileData::Device(layout(9)),
            ..attributes.clone()
        };
        let operation = OperationId { client: 1, counter: 2 };
        let id = JointId { driver: 5, counter: 6 };
        let joint = Joint {
            id,
            operation,
            answer: JointAnswer::Entry(entry.clone()),
            time,
            primary: layout(7),
            secondaries: vec![layout(9)],
        };
        let leave = JointStep::Leave { name: entry.name.clone(), id: entry.id };
        let intent = Intent { joint, steps: vec![leave, JointStep::Retire] };
        vec![
            Change::Enter(entry.clone()),
            Change::Enter(DirectoryEntry { home: None, ..entry.clone() }),
            Change::RemoveName(entry.name.clone()),
            Change::NextCookie(4),
            Change::Attributes(Box::new(attributes.clone())),
            Change::Attributes(Box::new(device.clone())),
            Change::RemoveAttributes(DeviceId(3)),
            Change::Upload(Upload { begun: 12, layout: layout(9) }),
            Change::UploadEnded(DeviceId(9)),
            Change::ToRemove(layout(9)),
            Change::Removed(DeviceId(9)),
            Change::Operation(operation, Answer::Done),
            Change::Operation(
                operation,
                Answer::Removed { entry: Some(entry), attributes: Some(Box::new(device)) },
            ),
            Change::Directory(OwnState { retired: true, parent: layout(2) }),
            Change::Intent(Box::new(intent)),
            Change::IntentEnded(id),
            Change::Joint(id, vec![layout(9), layout(12)]),
            Change::JointEnded(id),
            Change::JointVoid(id),
        ]
    }

    #[test] // Proves: N-3.
    fn changes_come_back_from_their_bytes() {
        for change in changes() {
            assert_eq!(Change::decode(change.role(), &change.encode()), Ok(change));
        }
    }

    #[test]
    fn short_long_and_broken_bodies_are_refused_and_never_panic() {
        for change in changes() {
            let record = change.encode();
            for length in 0..record.body.len() {
                let body = record.body[..length].to_vec();
                let cut = Record { kind: record.kind, body };
                assert_eq!(Change::decode(change.role(), &cut), Err(Malformed));
            }
            let mut body = record.body.clone();
            body.push(0);
            let long = Record { kind: record.kind, body };
            assert_eq!(Change::decode(change.role(), &long), Err(Malformed));
            for place in 0..record.body.len() * 8 {
                let mut flipped = record.clone();
                flipped.body[place / 8] ^= 1 << (place % 8);
                let _ = Change::decode(change.role(), &flipped);
            }
        }
    }

    #[test]
    fn names_are_bounded() {
        assert!(is_name(b"a") && is_name(&[b'x'; 255]) && is_name(b"..."));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(!is_name(bad));
        }
    }
}
