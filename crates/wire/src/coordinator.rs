//! What the other roles say to the coordinators: registration, leases, grants, facts, the map.
//!
//! # Theory
//! Every member of the consensus group answers `Status` and passes Raft's own messages; all else is
//! answered by the elected one, the global controller. Others say who that is, as far as they know.
//! ```text
//! LC        RegisterLc, Renew every second, Grant, LeaseNumbers, Record and Close facts
//! I/O       RegisterIo, RenewIo every second
//! client    Map, Policy, Facts
//! ```
//! # Invariants
//! C1 An incarnation is given once and never again, in the log.
//! C2 A lease is renewed only by a quorum round begun after the renewal arrived (O-4).
//! # Not here
//! Grants are not in the log; they are told again by the LCs to a new global controller (O-3).

use std::net::SocketAddr;

use braid_terms::{
    ClusterMap, DeviceId, DiskId, DiskState, Fact, FactKind, FactNumber, GrantNumber, GroupLayout,
    Incarnation, LccId, Policy, ServerId, ServerState,
};
use serde::{Deserialize, Serialize};

use crate::io::{BadBlocks, ScrubStatus};
use crate::rpc::{Role, Service};

/// The service of a coordinator.
pub enum Coordinator {}

impl Service for Coordinator {
    type Request = CoordinatorRequest;
    type Reply = Result<CoordinatorReply, CoordinatorRefusal>;

    const ROLE: Role = Role::Coordinator;
}

/// A request to a coordinator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CoordinatorRequest {
    /// A message of the consensus protocol; the body is the payload. Answer: `Raft`.
    Raft,
    /// Any member answers. Answer: `Status`.
    Status,
    /// The map; read through a quorum when `linearizable`. Answer: `Map`.
    Map {
        /// Newer than any change that was answered before the request was sent.
        linearizable: bool,
    },
    /// An LC starts: its LC and LCC incarnations of before are invalid from then on, new ones are
    /// given and recorded as pending. Answer: `Registered`. Source: O-3, F-3.
    RegisterLc {
        /// Which server.
        server: ServerId,
        /// How many LCCs it hosts.
        lccs: u8,
    },
    /// The LC of a mount starts: it becomes a server of its own, with a number of its own, that is in
    /// the map as long as the LC is valid. Refused where it cannot be reached at its address. Asked again with the same name and address it keeps its
    /// number. Answer: `Registered`. Source: DESIGN 2.
    RegisterMount {
        /// Its name, for people.
        name: String,
        /// Where others reach its LC.
        lc_address: SocketAddr,
        /// How many LCCs it hosts.
        lccs: u8,
    },
    /// One LCC starts anew within its LC: the old incarnation is invalid from then on. Answer:
    /// `Registered`, with the one new LCC incarnation.
    RegisterLcc {
        /// The LC that asks.
        lc: Incarnation,
        /// Which LCC.
        index: u8,
    },
    /// A clean end: all groups are given up, nothing is unfinished, no client has copies. Closes the
    /// LCCs' pending facts and ends their validity. Answer: `Done`.
    UnregisterLc {
        /// The LC that ends.
        lc: Incarnation,
    },
    /// An I/O server starts: gets a new incarnation and the map, read after a quorum round.
    /// Answer: `Registered`. Source: O-5.
    RegisterIo {
        /// Which disk.
        disk: DiskId,
        /// Its random identity. Source: S-7.
        identity: u128,
    },
    /// An LC renews its lease. Answer: `Renewed`. Source: O-4.
    Renew {
        /// Who.
        lc: Incarnation,
        /// The map that it has.
        map_version: u64,
        /// In this term no client has copies that it gave, and none gets any before a renewal without
        /// this was answered in this term or a later one. Source: N-1.
        no_copies: Option<u64>,
    },
    /// What the LC's LCCs own, told to a global controller that asked by `Renewed::tell_holdings`.
    /// Several messages, the last one with `last`. Having told a term, the LC takes no grant of a
    /// lower one. Answer: `Done`. Source: O-3.
    Holdings {
        /// Who.
        lc: Incarnation,
        /// The term that asked.
        term: u64,
        /// Group, grant, LCC index.
        groups: Vec<(DeviceId, GrantNumber, u8)>,
        /// Number ranges that the LC still uses, by their first number.
        ranges: Vec<DeviceId>,
        /// Nothing follows.
        last: bool,
    },
    /// An I/O server renews its lease and tells its space. Answer: `Renewed`.
    RenewIo {
        /// Who.
        io: Incarnation,
        /// The map that it has.
        map_version: u64,
        /// Space of its disk in bytes.
        bytes_total: u64,
        /// Free of that.
        bytes_free: u64,
        /// How far its scrub is.
        scrub: ScrubStatus,
        /// Blocks that it found bad, for their owners; at most [`BAD_MAX`] at a time. Source: F-6.
        bad: Vec<BadBlocks>,
    },
    /// Asks for the owner of a group, becoming it where there is none. Answer: `Granted`, `OwnedBy`.
    /// Source: O-2.
    Grant {
        /// The LCC that asks.
        lcc: Incarnation,
        /// The group.
        group: DeviceId,
    },
    /// Only looks; never grants. Answer: `OwnedBy` or `Done` where no one is known to own it.
    FindOwner {
        /// The group.
        group: DeviceId,
    },
    /// The LCC owns these no more: everything of them is decided, stable and applied. Answer: `Done`.
    /// Source: O-6.
    Release {
        /// Who.
        lcc: Incarnation,
        /// Groups and the grants under which they were held.
        groups: Vec<(DeviceId, GrantNumber)>,
    },
    /// A range of device numbers for an LCC, under one grant number. Answer: `Numbers`. Source: O-2.
    LeaseNumbers {
        /// Who.
        lcc: Incarnation,
    },
    /// The LCC gave up these numbers of its ranges (released or moved), so that the global
    /// controller may grant them. Answer: `Done`.
    GiveUpNumbers {
        /// Who.
        lcc: Incarnation,
        /// The groups.
        groups: Vec<DeviceId>,
    },
    /// Records facts, all in one entry. Answer: `Recorded`, one result each. Source: F-1.
    RecordFacts {
        /// The LCC that records; an invalid one is refused.
        lcc: Incarnation,
        /// The group's grant and what is said. A repeat is answered as the first.
        facts: Vec<(GrantNumber, FactKind)>,
    },
    /// Closes facts by number. Answer: `Closed`, one result each. Source: F-1, F-4.
    CloseFacts {
        /// The LCC that closes.
        lcc: Incarnation,
        /// Fact and the group's grant.
        facts: Vec<(FactNumber, GrantNumber)>,
    },
    /// The sweep of a dead LCC incarnation is complete: closes its pending fact. Answer: `Done`.
    /// Source: O-8.
    CloseSweep {
        /// The LCC that swept.
        lcc: Incarnation,
        /// The dead one.
        dead: Incarnation,
    },
    /// Facts above a number, in order. Answer: `Facts`.
    Facts {
        /// Continue above this number.
        after: FactNumber,
        /// At most this many.
        limit: u32,
    },
    /// Facts that this LC is to work off now, dead LCCs that it is to sweep, and bad blocks that it is
    /// to write anew. Answer: `Work`. Source: F-4, F-6, O-8.
    Work {
        /// Who asks.
        lc: Incarnation,
    },
    /// Stores where the root directory is, if nothing is stored yet. Answer: `Map`, whoever won.
    SetRoot {
        /// The root's group.
        layout: Box<GroupLayout>,
    },
    /// Changes the map for an operator. Answer: `Map`.
    Change(MapChange),
}

/// What an operator changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MapChange {
    /// Adds or replaces a policy by name, at the end of the list or at its place.
    SetPolicy(Policy),
    /// Removes a policy.
    UnsetPolicy {
        /// Its name.
        name: String,
    },
    /// Sets the state of a disk.
    SetDiskState {
        /// Which.
        disk: DiskId,
        /// To what.
        state: DiskState,
    },
    /// Sets the state of a server.
    SetServerState {
        /// Which.
        server: ServerId,
        /// To what.
        state: ServerState,
    },
}

/// A disk whose I/O server holds a lease.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LiveDisk {
    /// Which.
    pub disk: DiskId,
    /// Who serves it.
    pub incarnation: Incarnation,
    /// Free space in bytes.
    pub bytes_free: u64,
}

/// An answer of a coordinator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum CoordinatorReply {
    /// Done.
    Done,
    /// To `Raft`; the body is the payload.
    Raft,
    /// To `Status`.
    Status(Box<CoordinatorStatus>),
    /// To `Map` and changes.
    Map(Box<ClusterMap>),
    /// To `Register*`.
    Registered {
        /// The new incarnation of the LC or I/O server.
        incarnation: Incarnation,
        /// The new incarnations of its LCCs, by index.
        lccs: Vec<Incarnation>,
        /// The map in which they stand.
        map: Box<ClusterMap>,
    },
    /// To `Renew*`: the lease runs `LEASE_MS` from when the request was **sent**.
    Renewed {
        /// The global controller's term.
        term: u64,
        /// A newer map, if there is one.
        map: Option<Box<ClusterMap>>,
        /// Disks whose I/O servers hold a lease now.
        disks: Vec<LiveDisk>,
        /// Servers whose LC holds a lease now.
        servers: Vec<ServerId>,
        /// The global controller wants `Holdings` for this term.
        tell_holdings: bool,
        /// Grows with every fact recorded or closed.
        facts_version: u64,
    },
    /// To `Grant`: the asking LCC owns the group from now on.
    Granted {
        /// The fence.
        grant: GrantNumber,
        /// The group's open facts.
        facts: Vec<Fact>,
        /// No dead incarnation is pending for it: portions need not all be opened. Source: O-8.
        clean: bool,
        /// For so many milliseconds from now clients may have copies of what owners gave that are gone.
        /// Source: N-1.
        caches_ms: u32,
    },
    /// To `Grant`, `FindOwner`: somebody owns it.
    OwnedBy {
        /// Which LCC.
        lcc: LccId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Where its LC listens.
        address: SocketAddr,
    },
    /// To `LeaseNumbers`.
    Numbers {
        /// First of `NUMBER_RANGE_SIZE` numbers.
        first: DeviceId,
        /// The grant under which all of them are owned.
        grant: GrantNumber,
    },
    /// To `RecordFacts`.
    Recorded(Vec<Result<FactNumber, FactRefusal>>),
    /// To `CloseFacts`.
    Closed(Vec<Result<(), FactRefusal>>),
    /// To `Facts`.
    Facts {
        /// In order of their numbers.
        facts: Vec<Fact>,
        /// Nothing follows.
        end: bool,
    },
    /// To `Work`.
    Work {
        /// Facts to work off.
        facts: Vec<Fact>,
        /// Dead LCC incarnations to sweep.
        sweeps: Vec<Incarnation>,
        /// Blocks that a scrub found bad.
        bad: Vec<BadBlocks>,
    },
}

/// Runs of bad blocks that an I/O server tells at a time.
pub const BAD_MAX: usize = 64;

/// What a coordinator knows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// Its server.
    pub server: ServerId,
    /// Its term.
    pub term: u64,
    /// The global controller, as far as it knows.
    pub leader: Option<ServerId>,
    /// Number of the last applied log entry.
    pub applied: u64,
    /// Members of the group.
    pub members: Vec<ServerId>,
    /// Version of its map.
    pub map_version: u64,
    /// Open facts: pending, suspect, local copy.
    pub facts: FactCounts,
    /// On the leader: disks whose I/O servers hold a lease, with total and free bytes.
    pub disks: Vec<(DiskId, u64, u64)>,
    /// On the leader: how far the scrubs of those disks are that it heard.
    pub scrubs: Vec<(DiskId, ScrubStatus)>,
    /// On the leader: servers whose LC holds a lease.
    pub servers: Vec<ServerId>,
    /// On the leader: groups that have an owner, not counting number ranges.
    pub groups: u64,
    /// Log entries that this leader proposed since it was elected, and grants it gave.
    pub entries_proposed: u64,
    /// See above.
    pub grants: u64,
}

/// Open facts by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FactCounts {
    /// LCC starts that may have unfinished writes, of incarnations that are not valid any more.
    pub pending: u64,
    /// Portions not to be believed.
    pub suspect: u64,
    /// Acknowledged bytes in one server's local journal only.
    pub local_copy: u64,
}

/// Why a fact was not taken. Source: F-1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FactRefusal {
    /// The recorder's incarnation is invalid.
    InvalidIncarnation,
    /// A higher grant of the group was seen.
    LowerGrant {
        /// That grant.
        seen: GrantNumber,
    },
    /// There is no such fact, or the portion has another one.
    OtherFact,
}

/// Why a coordinator did not do it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CoordinatorRefusal {
    /// Another one is the global controller, or nobody known.
    NotLeader {
        /// Who, and where its coordinator listens.
        leader: Option<(ServerId, SocketAddr)>,
    },
    /// The sender's incarnation is invalid: it must start anew. Source: O-5.
    InvalidIncarnation,
    /// Owners of before have not all been heard, or their leases run: try again. Source: O-3.
    Wait {
        /// Milliseconds after which it is worth it.
        milliseconds: u32,
    },
    /// The map knows no such server or disk, or another disk has that identity. Source: S-7.
    Unknown {
        /// What.
        what: String,
    },
    /// The request contradicts itself or the map.
    BadRequest {
        /// How.
        reason: String,
    },
}
