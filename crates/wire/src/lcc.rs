//! What client processes ask of local child controllers: names, attributes, file bytes.
//!
//! # Theory
//! Each request names the group that it is about with the layout under which the client knows it (a
//! hint, F-8). The LCC that owns the group does it; any other becomes the owner where there is none,
//! and else says who is (`NotOwner`). A directory's group has the names and the attributes of the
//! files made in it; a file's bytes are a group of their own, or stand inline in its attributes.
//! ```text
//! put of a large file        new device     primary LCC (ahead, many at once)
//!                            upload entry   owner of the directory      } at the same time
//!                            writes         owner of the data device    }
//!                            commit         owner of the directory: name, attributes, size at once
//! put of a small file        create         owner of the directory, bytes inline
//! ```
//! # Invariants
//! L1 An answered change is decided (held), but for writes that ask for `AckMode::Memory` or
//! `AckMode::Local`; `Sync` and `stable` requests wait for the medium (W-9).
//! L2 A request with an operation id is done once, however often it is sent.
//! # Not here
//! Paths: the client library resolves them.

use std::net::SocketAddr;

use braid_terms::{
    AckMode, DataType, DeviceId, DiskId, FactNumber, GrantNumber, GroupLayout, Incarnation, LccId,
    PolicyQuestion, PortionIndex, RaidScheme, ServerId, Spread, WriteNumber,
};
use serde::{Deserialize, Serialize};

use crate::joint::{Joint, JointId, JointNews, JointStep};
use crate::operations::Operation;
use crate::rpc::{Role, Service};

/// The service of an LCC.
pub enum Lcc {}

impl Service for Lcc {
    type Request = LccRequest;
    type Reply = Result<Answer, LccRefusal>;

    const ROLE: Role = Role::Lcc;
}

/// A request to an LCC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum LccRequest {
    /// Layouts for new devices that this LCC owns from the start. Answer: `Layouts`. Source: O-2.
    NewDevices {
        /// What for.
        data_type: DataType,
        /// What the policy is chosen by.
        question: PolicyQuestion,
        /// How many, 1 to 256.
        count: u32,
    },
    /// What a new object would get by policy. Answer: `Chosen`. Source: G-5.
    Choose {
        /// What for.
        data_type: DataType,
        /// What the policy is chosen by.
        question: PolicyQuestion,
    },
    /// Names and attributes. Answer: by operation.
    Directory {
        /// The directory's group.
        layout: GroupLayout,
        /// What.
        op: DirectoryOp,
    },
    /// Bytes of a file device. Answer: by operation.
    File {
        /// The file's group.
        layout: GroupLayout,
        /// What.
        op: FileOp,
        /// L2, of a change; none where nobody else can change or see the device yet.
        change: Option<FileChange>,
    },
    /// Where a group is and in what state its portions are, for `where`. Answer: `Group`.
    DescribeGroup {
        /// The group.
        layout: GroupLayout,
    },
    /// Works off a group's facts now; answered when none is left or it cannot go on. Answer: `Done`.
    Repair {
        /// The group.
        layout: GroupLayout,
    },
    /// Verifies some rows of a group: every block against its checksum, and the parity of each row
    /// against its data; what is bad is written anew. Answer: `Verified`. Source: F-6.
    Verify {
        /// The group.
        layout: GroupLayout,
        /// Where to begin; the first device's first row, or what the last answer said.
        from: RowPlace,
    },
    /// To the shadow of some groups: what their owner has decided and not told all portions (*ready*),
    /// and what all heard since (*done*). Answer: `Done`. Source: W-4.
    Shadow {
        /// The owner.
        writer: Incarnation,
        /// What is ready; replaces what was ready of the same group.
        ready: Vec<Ready>,
        /// What is done, up to these numbers.
        done: Vec<(DeviceId, WriteNumber)>,
    },
    /// State of the LCC. Answer: `Status`.
    Status,
    /// A client process with caches waits for recalls; the owner answers when there are some, or after
    /// a while with none. One at a time: the next one ends it. Answer: `Recalls`; `NotFound` where the
    /// registration has ended. Source: N-1.
    Watch {
        /// Of this client process at this LCC, drawn by it anew for each.
        registration: u64,
        /// It begins: nothing that an earlier one was given is kept any more.
        begins: bool,
        /// To recalls of before.
        answers: Vec<RecallAnswer>,
    },
    /// The client process uses what it was given. Answer: `Lease`; `NotFound` where the registration
    /// has ended. Source: N-1.
    KeepCaches {
        /// See `Watch`.
        registration: u64,
    },
}

/// What an owner takes back that a client process may have copies of. Source: N-1.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Recall {
    /// Grows with each of a registration.
    pub number: u64,
    /// The directory's group.
    pub group: DeviceId,
    /// What these names stand for, or that they stand for nothing.
    pub names: Vec<bytes::Bytes>,
    /// Attributes and bytes of these.
    pub ids: Vec<DeviceId>,
    /// All of the group.
    pub all: bool,
    /// Bytes of these that wait at the client are asked for: to be held when this is answered, and from
    /// then on none wait unless it says so anew. Nothing else is named then. Source: W-9.
    pub unsent: Vec<DeviceId>,
    /// Whether any of these is open at the client is asked; nothing else is named then. Source: N-4.
    pub open: Vec<DeviceId>,
}

/// To a recall: nothing of it is kept any more. Source: N-1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecallAnswer {
    /// Which.
    pub number: u64,
    /// Of this group nothing is kept at all: it is not watched any more.
    pub released: Option<DeviceId>,
    /// One that was asked about is open: it is to stay until `Closed`.
    pub is_open: bool,
}

/// A decided mark that not all portions have heard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// The group.
    pub group: DeviceId,
    /// Its owner's grant.
    pub grant: GrantNumber,
    /// The mark.
    pub decided: WriteNumber,
    /// Slots that take part, and where they are.
    pub slots: Vec<(PortionIndex, DiskId)>,
}

/// A row of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RowPlace {
    /// Which device of the group, 0 or 1.
    pub device_index: u8,
    /// The row, in blocks of 4 KiB of each portion's content.
    pub row: u64,
}

/// What a verification saw. Source: F-6.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Verified {
    /// Blocks of 4 KiB looked at, data and parity.
    pub blocks: u64,
    /// Blocks that did not fit their checksums.
    pub bad_blocks: u64,
    /// Rows whose blocks all fit their checksums, but whose parity does not fit its data.
    pub unfit_rows: u64,
    /// Rows that could not be compared: a portion is away or not in sync, or a block was bad.
    pub rows_left: u64,
    /// Where to go on; none at the end.
    pub next: Option<RowPlace>,
}

/// Identity of a change that a client may send again after a lost answer. Unique per client process
/// (random) and change (counter). Source: L2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct OperationId {
    /// Random, per client process.
    pub client: u64,
    /// Grows by one with each change of that client process.
    pub counter: u64,
}

/// Identity of a change of a file's device, and what its owner must know to answer a repeat of it as the
/// first. Source: L2, N-3.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileChange {
    /// Which.
    pub operation: OperationId,
    /// Changes of this client process and device with counters below are answered, or nobody waits for
    /// them any more: they are not sent again.
    pub answered: u64,
    /// A write of the device that has its number before this was first sent; the newest that is known.
    pub since: WriteNumber,
    /// It was sent before, and may have been done.
    pub again: bool,
}

/// What a directory entry names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// Block device node.
    BlockDevice,
    /// Character device node.
    CharacterDevice,
}

/// A point in time: seconds since 1970 and nanoseconds below 10^9.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct FileTime {
    /// Whole seconds, may be negative.
    pub seconds: i64,
    /// The rest.
    pub nanoseconds: u32,
}

/// Where a file's bytes are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FileData {
    /// No bytes: not a regular file, or an empty one.
    None,
    /// In the meta-data record; at most `inline_max` bytes.
    Inline(bytes::Bytes),
    /// In a device of its own.
    Device(GroupLayout),
}

/// A meta-data record: attributes and where the bytes are. For a directory it is in the directory's
/// own meta-data device. Source: DESIGN 8.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attributes {
    /// Inode number: the number of the first data device; for a directory, of its group.
    pub id: DeviceId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: the lower 12 bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file; length of a symlink's target; number of entries of a directory.
    pub size: u64,
    /// Number of names; of a directory, 2 plus its sub-directories.
    pub nlink: u32,
    /// Last access.
    pub atime: FileTime,
    /// Last change of bytes.
    pub mtime: FileTime,
    /// Last change of attributes.
    pub ctime: FileTime,
    /// Made.
    pub btime: FileTime,
    /// Number of a device node.
    pub rdev: u64,
    /// Grows with every change of bytes or attributes.
    pub version: u64,
    /// Writers that may make the data device longer; while there is one, the size is asked of the
    /// device. Source: N-2.
    pub writers: u32,
    /// The write of the data device after which it was as long as the size says.
    pub size_number: WriteNumber,
    /// Bytes, or where they are.
    pub data: FileData,
    /// A symlink's target.
    pub target: Option<bytes::Bytes>,
    /// Extended attributes by name, sorted.
    pub xattrs: Vec<(bytes::Bytes, bytes::Bytes)>,
}

impl Attributes {
    /// The data device, if the bytes have one.
    #[must_use]
    pub fn device(&self) -> Option<&GroupLayout> {
        self.data.device()
    }
}

impl FileData {
    /// The data device, if the bytes have one.
    #[must_use]
    pub fn device(&self) -> Option<&GroupLayout> {
        match self {
            Self::Device(layout) => Some(layout),
            Self::None | Self::Inline(_) => None,
        }
    }
}

/// Where an entry's attributes are kept when not in the directory's own group: the *home*.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// The name, 1 to 255 bytes, without `/` and NUL.
    pub name: bytes::Bytes,
    /// Inode number.
    pub id: DeviceId,
    /// What it is.
    pub kind: FileKind,
    /// For a sub-directory: its group. For a file whose attributes are kept elsewhere: that home
    /// directory's group. None: kept here.
    pub home: Option<GroupLayout>,
    /// Grows with the order of making within the directory; the cookie of `List`.
    pub cookie: u64,
}

/// Attributes given when something is made; times are the LCC's unless given.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewAttributes {
    /// Its number, one that `NewDevices` gave to this client and that it used for nothing else; else a
    /// new one, or the data device's.
    pub id: Option<DeviceId>,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was made, if not now.
    pub made: Option<FileTime>,
    /// Last access, if not when it was made.
    pub atime: Option<FileTime>,
    /// Last change of bytes, if not when it was made.
    pub mtime: Option<FileTime>,
    /// Number of a device node.
    pub rdev: u64,
    /// Bytes, or where they are.
    pub data: FileData,
    /// Bytes of the file.
    pub size: u64,
    /// A symlink's target, 1 to 4095 bytes.
    pub target: Option<bytes::Bytes>,
    /// Extended attributes.
    pub xattrs: Vec<(bytes::Bytes, bytes::Bytes)>,
}

/// What becomes of an entry that has the name already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum IfExists {
    /// `Exists` is answered.
    Fail,
    /// It is replaced if it is not a directory.
    Replace,
}

/// An operation on a directory's group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum DirectoryOp {
    /// Makes the group of a new directory, empty, with its own attributes. The layout was given by
    /// `NewDevices` to this LCC. Answer: `Attributes`.
    Begin {
        /// L2.
        operation: OperationId,
        /// Its attributes.
        attributes: NewAttributes,
        /// The parent directory's group; for the root, its own.
        parent: GroupLayout,
    },
    /// Answer: `Entry`.
    Lookup {
        /// The name.
        name: bytes::Bytes,
    },
    /// Entries behind a cookie. Answer: `Entries`.
    List {
        /// 0 from the start, else the last cookie seen.
        after: u64,
        /// At most this many, 1 to 4096.
        limit: u32,
        /// With the attributes that are kept here, but without inline bytes (their size stays).
        attributes: bool,
    },
    /// Makes a file with its attributes; the id is the data device's, or a new number. A `Device`
    /// whose upload was begun here is committed by it. Answer: `Entry`.
    Create {
        /// L2.
        operation: OperationId,
        /// The name; empty for a regular file without one, whose record counts a name all the same: the one
        /// that it may get by `Enter`, or give up by `SetAttributes`.
        name: bytes::Bytes,
        /// Its attributes and bytes.
        attributes: NewAttributes,
        /// What if it is there.
        if_exists: IfExists,
        /// Answer only when stable.
        stable: bool,
    },
    /// Records devices that are being written, or directories being made, that have no name yet.
    /// Answer: `Done`. Source: F-9.
    BeginUploads {
        /// L2.
        operation: OperationId,
        /// Their groups.
        layouts: Vec<GroupLayout>,
    },
    /// Gives uploads up: they go on the to-remove list. Answer: `Done`.
    AbandonUploads {
        /// L2.
        operation: OperationId,
        /// Their numbers.
        devices: Vec<DeviceId>,
    },
    /// Enters a free name for something whose attributes are kept elsewhere and that counts a name which
    /// it does not have yet: a directory just begun, or a file that was made without a name. Answer:
    /// `Entry`.
    Enter {
        /// L2.
        operation: OperationId,
        /// The name.
        name: bytes::Bytes,
        /// Inode number.
        id: DeviceId,
        /// What it is.
        kind: FileKind,
        /// Where its attributes are.
        home: GroupLayout,
    },
    /// One more name for a file, in this directory. Answer: `Entry`. Source: W-7.
    Link {
        /// L2.
        operation: OperationId,
        /// The name; it must be free.
        name: bytes::Bytes,
        /// The file.
        id: DeviceId,
        /// What it is; no directory.
        kind: FileKind,
        /// Where its attributes are.
        home: GroupLayout,
    },
    /// Removes a name. Without a name left the data device goes on the to-remove list; so does a
    /// directory, which must be empty. Answer: `Removed`. Source: W-7.
    Unlink {
        /// L2.
        operation: OperationId,
        /// The name.
        name: bytes::Bytes,
        /// Only if it names this.
        only_id: Option<DeviceId>,
        /// A file without a name left keeps its record, which counts one name: it is open.
        keep: bool,
        /// A directory is meant; else a directory is refused.
        directory: bool,
    },
    /// Gives something here another name. Answer: `Removed`, what was replaced. Source: W-7.
    Rename {
        /// L2.
        operation: OperationId,
        /// Old name, in this directory.
        from: bytes::Bytes,
        /// The directory of the new name, if it is another one.
        target: Option<GroupLayout>,
        /// New name.
        to: bytes::Bytes,
        /// Both names stay, exchanged.
        exchange: bool,
        /// What if `to` is there; a directory is replaced only by a directory, and must be empty.
        if_exists: IfExists,
        /// What is replaced must be this, else `Conflict`.
        only_replaces: Option<DeviceId>,
        /// A replaced file without a name left keeps its record, as in `Unlink`.
        keep: bool,
    },
    /// To the owner of the root directory, whose group is the rename device: does a `Rename` of a
    /// directory to another directory. Such renames happen one after the other. Answer: `Removed`.
    /// Source: O-7.
    MoveDirectory {
        /// The directory of the old name.
        source: GroupLayout,
        /// The `Rename` that it was asked for.
        rename: Box<Self>,
    },
    /// To a secondary: these steps are to be made if the primary decides so. Answer: `Done` when that is
    /// stable. `Conflict`: names or counts are not what they must be before. Source: W-7.
    Intend {
        /// The change.
        joint: Box<Joint>,
        /// What is done here.
        steps: Vec<JointStep>,
    },
    /// To the primary: the change is made. Answer: `Done`. `Conflict`: as in `Intend`, or it was made
    /// void. Source: W-7.
    Decide {
        /// The change.
        joint: Box<Joint>,
        /// What is done here.
        steps: Vec<JointStep>,
    },
    /// To a secondary: what became of a change. Answer: `Done`. Source: W-7.
    Finish {
        /// Which.
        id: JointId,
        /// What.
        news: JointNews,
    },
    /// To the primary: whether a change was made. One that it does not know is made void. Answer:
    /// `Outcome` when that is stable. Source: W-7.
    Outcome {
        /// Which.
        id: JointId,
    },
    /// Answer: `Attributes`.
    GetAttributes {
        /// Which; the directory's own id is the group's number.
        id: DeviceId,
    },
    /// Changes attributes. Answer: `Attributes`.
    SetAttributes {
        /// L2.
        operation: OperationId,
        /// Which.
        id: DeviceId,
        /// What.
        changes: AttributeChanges,
        /// Answer only when stable.
        stable: bool,
    },
    /// A directory without a name ends if it is empty: from then on nothing can be made in it. Answer:
    /// `Done`.
    Retire {
        /// L2.
        operation: OperationId,
    },
    /// The parent's group. Answer: `Layouts` with one.
    Parent,
    /// Waits until all that was answered is stable. Answer: `Done`. Source: W-9.
    Sync {
        /// Newest changes that the client was told of, one for each grant: `HeldLost` if one of them
        /// does not count any more.
        written: Vec<WriteNumber>,
    },
    /// A client process that is registered is going to keep bytes of a file that it has not sent: who
    /// looks at the file has them sent first. Answer: `Done`; `Conflict` where it is not registered.
    /// Source: W-9.
    Writes {
        /// The file, whose attributes are kept here.
        id: DeviceId,
    },
    /// A file is not open any more that the client process said was. Answer: `Done`. Source: N-4.
    Closed {
        /// The file, whose attributes are kept here.
        id: DeviceId,
    },
    /// Removes the portions of a retired directory that no name is left of. Answer: `Done`.
    Remove,
    /// Locks a file whose attributes are kept here. A wait ends after some seconds: then ask again.
    /// Answer: `Lock`, none where it was got, else one that is in the way.
    Lock {
        /// What is wanted; its holder has it as long as `KeepLocks` is heard from it.
        lock: FileLock,
        /// Wait for it.
        wait: bool,
    },
    /// Gives locks up in a range. Answer: `Done`.
    Unlock {
        /// Of this holder and kind, in its range.
        lock: FileLock,
    },
    /// Whether a lock could be had. Answer: `Lock`, none if so, else one that is in the way.
    TestLock {
        /// What would be wanted.
        lock: FileLock,
    },
    /// A client process is alive and holds these locks here; also tells them to a new owner. Answer:
    /// `LostLocks`.
    KeepLocks {
        /// The client process.
        session: u64,
        /// All that it holds in this directory.
        locks: Vec<FileLock>,
    },
}

/// Which of the kinds, that do not see each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum LockKind {
    /// `flock`: the whole file.
    Whole,
    /// `fcntl`: a range of bytes.
    Range,
    /// The turn to write at the end of the file (`O_APPEND`); between client processes only.
    Append,
}

/// A lock that is held or wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileLock {
    /// The file.
    pub id: DeviceId,
    /// The client process; its locks live as long as it says so.
    pub session: u64,
    /// Who within that process.
    pub owner: u64,
    /// The kind.
    pub kind: LockKind,
    /// Nobody else may have one that overlaps; else all others that have this unset may.
    pub exclusive: bool,
    /// First byte.
    pub from: u64,
    /// Last byte.
    pub to: u64,
    /// Told to who asks, 0 if not known.
    pub pid: u32,
}

/// Changes of attributes; `None` leaves as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AttributeChanges {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of bytes.
    pub mtime: Option<SetTime>,
    /// Bytes of the file, with where they are.
    pub data: Option<(FileData, u64)>,
    /// What a writer of the data device tells.
    pub device: Option<DeviceNews>,
    /// Adds to the number of names; with none left the file is removed as by `Unlink`.
    pub nlink: i32,
    /// Extended attributes to set.
    pub set_xattrs: Vec<(bytes::Bytes, bytes::Bytes)>,
    /// Extended attributes to remove.
    pub remove_xattrs: Vec<bytes::Bytes>,
    /// Only if the version is this one, else `Conflict`.
    pub only_version: Option<u64>,
}

/// Length of a file's data device after one of its writes: of two, the one with the higher number is
/// newer. Source: N-2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub struct DeviceLength {
    /// The last decided write.
    pub number: WriteNumber,
    /// Length after it.
    pub bytes: u64,
}

/// What a writer of a file's data device tells the file's record. Means nothing to a record that
/// names another device by now. Source: N-2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceNews {
    /// The device.
    pub device: DeviceId,
    /// Its length; taken if it is newer than what is recorded.
    pub length: Option<DeviceLength>,
    /// Adds to the number of writers.
    pub writers: i32,
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SetTime {
    /// The LCC's time of day.
    Now,
    /// This one.
    To(FileTime),
}

/// An operation on a file device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FileOp {
    /// Writes the payload. Answer: `Written`.
    Write {
        /// First byte.
        at: u64,
        /// Home of the file, for the portions' headers. Source: F-9.
        home: DeviceId,
        /// The client knows that the device was never written, by anyone: saves the open.
        fresh: bool,
        /// Answer only when stable.
        stable: bool,
        /// At the end of the device instead of `at`.
        append: bool,
        /// When it is answered; `stable` counts first. Source: DESIGN 4.
        ack: AckMode,
    },
    /// Reads. The payload is shorter than asked at the end of the device. Answer: `Read`.
    Read {
        /// First byte.
        at: u64,
        /// Bytes, at most `REQUEST_BYTES_MAX`.
        length: u32,
        /// Only what is stable.
        stable: bool,
    },
    /// Answer: `Length`.
    Length,
    /// Cuts or extends with zeros. Answer: `Length`.
    Truncate {
        /// The new length in bytes.
        length: u64,
        /// Home of the file.
        home: DeviceId,
    },
    /// Gives a range back; it reads as zeros, the length stays. Answer: `Length`.
    Punch {
        /// First byte.
        at: u64,
        /// Bytes.
        length: u64,
    },
    /// Next place with data (or without) at or behind `at`; the device's end for none. Answer: `Place`.
    Seek {
        /// From here.
        at: u64,
        /// A hole is looked for, not data.
        hole: bool,
    },
    /// Waits until all that was answered is stable. Answer: `Length`. Source: W-9.
    Sync {
        /// As in `DirectoryOp::Sync`.
        written: Vec<WriteNumber>,
    },
    /// Removes the device's portions. Answer: `Done`. Source: F-9.
    Remove,
    /// Writes the payload's parts, one after the other, in one cluster write: all or none of it. Where
    /// they meet, the later one counts. Answer: `Written`, with the first place.
    WriteMany {
        /// Where each part begins, and its bytes; 1 to `PARTS_MAX`, none empty.
        parts: Vec<(u64, u32)>,
        /// As in `Write`.
        home: DeviceId,
        /// As in `Write`.
        fresh: bool,
        /// As in `Write`.
        ack: AckMode,
    },
    /// The local journal of a server has this write, which was answered; the payload is its bytes. The
    /// owner lays it, unless the cluster has it. Answer: `Done`; `Conflict` where the cluster lacks it and
    /// it may not be laid any more. Source: W-13.
    LayCopy {
        /// The fact under which it was answered.
        fact: FactNumber,
        /// The number that it was given.
        number: WriteNumber,
        /// Where each of its parts begins, and its bytes, as in `WriteMany`.
        parts: Vec<(u64, u32)>,
        /// Home of the file.
        home: DeviceId,
        /// The change of a client that it is. Source: N-3.
        operation: Option<Operation>,
    },
    /// Nothing more comes from a local journal under this fact, as its server or an operator says: what was
    /// laid is made stable and the fact is closed. Answer: `Done`. Source: W-13.
    EndCopy {
        /// Which fact.
        fact: FactNumber,
    },
}

/// Most parts of one `FileOp::WriteMany`.
pub const PARTS_MAX: usize = 1024;

impl FileOp {
    /// `Sync` of what the client library knows to be written.
    pub const SYNC: Self = Self::Sync { written: Vec::new() };
}

impl DirectoryOp {
    /// See [`FileOp::SYNC`].
    pub const SYNC: Self = Self::Sync { written: Vec::new() };
}

/// An answer of an LCC.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked for.
    pub reply: LccReply,
    /// To what changes a group: its decided mark, which is at the change or above it. Who asks for
    /// `Sync` later names it. Source: W-9.
    pub written: Option<WriteNumber>,
}

/// What a new object gets by policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Chosen {
    /// The policy that decided; none for the cluster's default.
    pub policy: Option<String>,
    /// Scheme.
    pub scheme: RaidScheme,
    /// Bytes of a strip.
    pub strip_size: u32,
    /// What no two portions share.
    pub spread: Spread,
    /// When a writer of its bytes is answered.
    pub ack: AckMode,
}

/// What an LCC says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum LccReply {
    /// Done.
    Done,
    /// Layouts.
    Layouts(Vec<GroupLayout>),
    /// To `Choose`.
    Chosen(Box<Chosen>),
    /// An entry, with the attributes where they are kept here.
    Entry {
        /// The entry.
        entry: DirectoryEntry,
        /// Its attributes.
        attributes: Option<Box<Attributes>>,
    },
    /// Entries in the order of their cookies.
    Entries {
        /// With their attributes, where asked for and kept here.
        entries: Vec<(DirectoryEntry, Option<Attributes>)>,
        /// Nothing follows.
        end: bool,
    },
    /// What a name named; none where nothing was replaced.
    Removed {
        /// The entry.
        entry: Option<DirectoryEntry>,
        /// Its attributes of before, without inline bytes; none of a directory.
        attributes: Option<Box<Attributes>>,
    },
    /// To `Outcome`: whether the change was made.
    Outcome(bool),
    /// Attributes.
    Attributes(Box<Attributes>),
    /// To `Write`.
    Written {
        /// Where the bytes went.
        at: u64,
        /// Length of the device with it, or with later ones.
        length: DeviceLength,
    },
    /// To `Read`; the bytes are the payload.
    Read {
        /// Length of the device, in bytes.
        length: u64,
    },
    /// Length of the device.
    Length(DeviceLength),
    /// A place in the device, in bytes.
    Place(u64),
    /// To `DescribeGroup`.
    Group(Box<GroupDescription>),
    /// To `Verify`.
    Verified(Verified),
    /// To `Status`.
    Status(LccStatus),
    /// A lock that is in the way.
    Lock(Option<FileLock>),
    /// Locks that somebody else got meanwhile.
    LostLocks(Vec<FileLock>),
    /// To a look of a client process that is registered: an answer that it may keep until it is
    /// recalled, or its lease is over. Source: N-1.
    Granted(Box<Result<LccReply, LccRefusal>>),
    /// To `Watch`.
    Recalls(Vec<Recall>),
    /// To `KeepCaches`: what was given may be kept for so many milliseconds from when it was asked.
    Lease(u32),
}

/// State of a group at its owner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupDescription {
    /// The layout that counts.
    pub layout: GroupLayout,
    /// Its owner.
    pub owner: LccId,
    /// Lengths of its devices, in bytes.
    pub lengths: Vec<u64>,
    /// The decided mark.
    pub decided: WriteNumber,
    /// The stable mark.
    pub stable: WriteNumber,
    /// Slots that are not in sync.
    pub absent: Vec<PortionIndex>,
}

/// State of an LCC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LccStatus {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Version of the map that it has.
    pub map_version: u64,
    /// Groups that it owns and has open.
    pub groups: u64,
    /// Cluster writes decided since its start.
    pub writes: u64,
    /// Prepares sent since its start.
    pub prepares: u64,
    /// Requests to coordinators since its start, without renewals of the lease.
    pub coordinator_calls: u64,
    /// `Sync` requests sent to I/O servers since its start, by writers that asked for stable.
    pub syncs_asked: u64,
    /// Payload bytes written and read for clients since its start.
    pub bytes_written: u64,
    /// See above.
    pub bytes_read: u64,
    /// Groups being repaired.
    pub repairs: u64,
    /// Blocks rebuilt since its start.
    pub blocks_rebuilt: u64,
    /// Writes that wait because too few portions are there.
    pub waiting_writes: u64,
    /// Messages to shadows since its start.
    pub shadow_calls: u64,
}

/// Why an LCC did not do it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LccRefusal {
    /// Another LCC owns the group.
    NotOwner {
        /// Who and where, if known; else ask again soon.
        owner: Option<(LccId, SocketAddr)>,
    },
    /// Too few portions answer, or there is no lease now: ask again, the operation may be done.
    Unavailable {
        /// What is missing.
        reason: String,
    },
    /// No such name or id.
    NotFound,
    /// The name is taken.
    Exists {
        /// By what.
        kind: FileKind,
    },
    /// A directory where none may be.
    IsDirectory,
    /// Something else where a directory must be.
    NotDirectory,
    /// The directory has entries.
    NotEmpty,
    /// The directory was removed.
    Retired,
    /// `only_version` or `only_id` did not fit.
    Conflict,
    /// The disks are full.
    NoSpace,
    /// Fewer failure domains are up than the scheme needs.
    NoPlace {
        /// What is missing.
        reason: String,
    },
    /// More is lost than the scheme tolerates.
    Lost {
        /// What.
        reason: String,
    },
    /// A name, size or count is out of bounds.
    BadRequest {
        /// Which.
        reason: String,
    },
    /// The device would be longer than a device can be.
    TooBig,
    /// Changes that were answered were lost before they were on the media, more portions than the
    /// scheme tolerates having lost them: a `Sync` that names one. Source: W-9.
    HeldLost,
    /// The group's owner is changing, and the change may have been made. Where making it twice does
    /// harm, it must not be asked for again.
    OutcomeUnknown,
    /// A change that was sent before: whether it was done is not known any more. It is not done now, and
    /// must not be asked for again.
    Forgotten,
}

/// A server that clients can begin with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EntryPoint {
    /// Which server.
    pub server: ServerId,
    /// Where its LC listens.
    pub lc_address: SocketAddr,
    /// Where its coordinator listens.
    pub coordinator_address: SocketAddr,
}
