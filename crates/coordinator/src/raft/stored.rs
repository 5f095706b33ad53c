//! Our own encoding of what openraft keeps and sends: postcard of the types here.
//!
//! Bytes are decoded into these types and then turned into openraft's; what does not decode is
//! refused by the caller.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, Membership};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Entry, LeaderId, LogId, Member, SnapshotMeta, StoredMembership, Vote};
use crate::command::Batch;

/// Term and index of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct EntryId {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

/// A vote, or the claim of a leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Ballot {
    pub(crate) term: u64,
    pub(crate) node: u64,
    pub(crate) committed: bool,
}

/// Who belongs to the group: joint configurations, and where the nodes are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Members {
    pub(crate) configs: Vec<BTreeSet<u64>>,
    pub(crate) nodes: BTreeMap<u64, SocketAddr>,
}

/// A log entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LogEntry {
    pub(crate) id: EntryId,
    pub(crate) content: Content,
}

/// What a log entry carries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Content {
    /// The first entry of a leader.
    Blank,
    /// Commands to the state machine.
    Commands(Batch),
    /// A change of the group.
    Members(Members),
}

/// What a snapshot stands for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotHead {
    pub(crate) last: Option<EntryId>,
    pub(crate) members_at: Option<EntryId>,
    pub(crate) members: Members,
}

impl From<LogId> for EntryId {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl From<EntryId> for LogId {
    fn from(id: EntryId) -> Self {
        // The node is not part of a committed leader: a term has one leader.
        Self { leader_id: LeaderId::new(id.term, 0).to_committed(), index: id.index }
    }
}

impl From<Vote> for Ballot {
    fn from(vote: Vote) -> Self {
        let id = vote.leader_id;
        Self { term: id.term, node: id.voted_for, committed: vote.committed }
    }
}

impl From<Ballot> for Vote {
    fn from(ballot: Ballot) -> Self {
        let leader_id = LeaderId::new(ballot.term, ballot.node);
        Self { leader_id, committed: ballot.committed }
    }
}

impl From<&Membership<u64, Member>> for Members {
    fn from(membership: &Membership<u64, Member>) -> Self {
        let nodes = membership.nodes().map(|(id, member)| (*id, member.address));
        Self { configs: membership.get_joint_config().clone(), nodes: nodes.collect() }
    }
}

impl From<Members> for Membership<u64, Member> {
    fn from(members: Members) -> Self {
        let nodes = members.nodes.into_iter().map(|(id, address)| (id, Member { address }));
        let nodes: BTreeMap<_, _> = nodes.collect();
        // A configuration that names a node without an address is none.
        Self::new(members.configs, nodes).unwrap_or_default()
    }
}

impl From<&Entry> for LogEntry {
    fn from(entry: &Entry) -> Self {
        let content = match &entry.payload {
            EntryPayload::Blank => Content::Blank,
            EntryPayload::Normal(batch) => Content::Commands(batch.clone()),
            EntryPayload::Membership(membership) => Content::Members(membership.into()),
        };
        Self { id: entry.log_id.into(), content }
    }
}

impl From<LogEntry> for Entry {
    fn from(entry: LogEntry) -> Self {
        let payload = match entry.content {
            Content::Blank => EntryPayload::Blank,
            Content::Commands(batch) => EntryPayload::Normal(batch),
            Content::Members(members) => EntryPayload::Membership(members.into()),
        };
        Self { log_id: entry.id.into(), payload }
    }
}

impl From<&SnapshotMeta> for SnapshotHead {
    fn from(meta: &SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.map(Into::into),
            members_at: (*meta.last_membership.log_id()).map(Into::into),
            members: meta.last_membership.membership().into(),
        }
    }
}

impl From<SnapshotHead> for SnapshotMeta {
    fn from(head: SnapshotHead) -> Self {
        let members_at = head.members_at.map(Into::into);
        Self {
            last_log_id: head.last.map(Into::into),
            last_membership: StoredMembership::new(members_at, head.members.into()),
        }
    }
}

/// Bytes of one of these types.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data always encodes")
}

/// The value and what follows it, if the bytes begin with one.
pub(crate) fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, &[u8])> {
    postcard::take_from_bytes(bytes).ok()
}

/// The value, if the bytes are exactly one.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    decode_prefix(bytes).filter(|(_, rest)| rest.is_empty()).map(|(value, _)| value)
}
