//! The consensus group by openraft: its types, storage, network and clock behind our `env`.
//!
//! # Theory
//! ```text
//! driver -commands-> openraft -entries-> log_store -> log_file -> env
//!                             -applied-> state_store -> state machine, snapshot file
//!                             -messages-> network -> `CoordinatorRequest::Raft` of the others
//! ```
//! No type of openraft is stored or sent in its own encoding: `stored.rs` has ours, so that another
//! version of the library, or another library, reads what is there.
//! # Invariants
//! A restarted leader stands for election anew: a term has one global controller, and its grants
//! are numbered once (O-2).
//! # Source
//! 10 of the design; DEPENDENCIES 7.

pub(crate) mod log_file;
pub(crate) mod log_store;
pub(crate) mod network;
pub(crate) mod state_store;
pub(crate) mod stored;

use std::net::SocketAddr;

use crate::command::{Batch, Outcome};

/// A member of the group, as openraft keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Rear address of its coordinator.
    pub address: SocketAddr,
}

/// Randomness from a seed, so that a run repeats; one thread; tokio's clock, which may stand still.
pub(crate) type Runtime =
    openraft_rt::deterministic_rng::DeterministicRng<openraft_rt_tokio::TokioRuntime>;

pub(crate) type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;

openraft::declare_raft_types!(
    /// What openraft works with.
    pub TypeConfig:
        D = Batch,
        R = Vec<Outcome>,
        NodeId = u64,
        Node = Member,
        Term = u64,
        LeaderId = LeaderId,
        AsyncRuntime = Runtime,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, state_store::StateStore>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, bytes::Bytes>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
