//! Messages among the members, on calls of `CoordinatorRequest::Raft`.
//!
//! # Theory
//! A message is postcard of [`PeerRequest`], of a snapshot followed by a piece of its bytes; the
//! answer is postcard of [`PeerReply`]. One connection to each member carries everything.
//! # Failure
//! A lost message is asked again by openraft. What does not decode, contradicts itself or what is
//! committed here, is refused before openraft sees it: its assertions would end this member.
//! # Not here
//! Whether a member says the truth: who knows the cluster's number can speak as one of its members.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Env, Payload};
use braid_terms::{ClusterId, Incarnation, ServerId};
use braid_wire::coordinator::{Coordinator, CoordinatorReply, CoordinatorRequest};
use braid_wire::rpc::{Client, ClientOptions, Hello, Peer, Role};
use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::stored::{Ballot, EntryId, LogEntry, SnapshotHead, decode, decode_prefix, encode};
use super::{Member, Raft, Snapshot, TypeConfig, Vote};
use crate::state_machine::StateMachine;

/// What a member asks another.
#[derive(Serialize, Deserialize)]
enum PeerRequest {
    Append {
        ballot: Ballot,
        previous: Option<EntryId>,
        entries: Vec<LogEntry>,
        committed: Option<EntryId>,
    },
    Vote(VoteAsked),
    PreVote(VoteAsked),
    /// A piece of a snapshot follows, from `offset` on.
    Snapshot {
        ballot: Ballot,
        head: SnapshotHead,
        offset: u64,
        total: u64,
    },
}

#[derive(Serialize, Deserialize)]
struct VoteAsked {
    ballot: Ballot,
    last: Option<EntryId>,
    transfer: bool,
}

/// What a member answers.
#[derive(Serialize, Deserialize)]
enum PeerReply {
    Appended,
    AppendedPart(Option<EntryId>),
    Conflict,
    Higher(Ballot),
    Vote {
        ballot: Ballot,
        granted: bool,
        last: Option<EntryId>,
    },
    /// Also to a piece that is not the last one.
    Snapshot(Ballot),
    /// It cannot, or did not understand.
    Refused,
}

/// Makes connections to members.
pub(crate) struct Network {
    pub(crate) env: Env,
    pub(crate) cluster: ClusterId,
    pub(crate) server: ServerId,
    /// Addresses of the configuration go before those that the log remembers.
    pub(crate) addresses: BTreeMap<u64, SocketAddr>,
    pub(crate) connections: Connections,
}

/// Connections to members, by number.
pub(crate) type Connections = Rc<RefCell<BTreeMap<u64, Client<Coordinator>>>>;

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Member) -> Link {
        let peer =
            Peer::Server { server: self.server, incarnation: Incarnation(0), stream: PEER_STREAM };
        Link {
            env: self.env.clone(),
            hello: Hello::new(self.cluster, Role::Coordinator, 0, peer),
            target,
            address: self.addresses.get(&target).copied().unwrap_or(node.address),
            connections: self.connections.clone(),
        }
    }
}

/// The way to one member.
pub(crate) struct Link {
    env: Env,
    hello: Hello,
    target: u64,
    address: SocketAddr,
    connections: Connections,
}

type CallResult<T> = Result<T, RPCError<TypeConfig>>;

impl Link {
    async fn ask(
        &self,
        request: &PeerRequest,
        bytes: Bytes,
        deadline: Duration,
    ) -> CallResult<PeerReply> {
        let client = self.client(deadline).await?;
        let mut payload = Payload::from(Bytes::from(encode(request)));
        payload.push(bytes);
        let answer = client.call(&CoordinatorRequest::Raft, payload, deadline).await;
        match answer {
            Ok((Ok(CoordinatorReply::Raft), bytes)) => {
                decode(&bytes).ok_or_else(|| network("an answer was not understood"))
            }
            Ok(_) => Err(network("another answer than to a member's message")),
            Err(error) => {
                // A peer that stands still would hold up the next message as well.
                self.connections.borrow_mut().remove(&self.target);
                Err(network(error))
            }
        }
    }

    async fn client(&self, deadline: Duration) -> CallResult<Client<Coordinator>> {
        let known = self.connections.borrow().get(&self.target).cloned();
        if let Some(client) = known.filter(|client| !client.is_closed()) {
            return Ok(client);
        }
        let options = ClientOptions::default();
        let to = Address::Tcp(self.address);
        let connect = Client::connect_with(&self.env, to, self.hello.clone(), options);
        let client = match timeout(deadline, connect).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(RPCError::Unreachable(Unreachable::new(&error))),
            Err(late) => return Err(RPCError::Unreachable(Unreachable::new(&late))),
        };
        self.connections.borrow_mut().insert(self.target, client.clone());
        Ok(client)
    }

    async fn ask_vote(
        &self,
        wrap: fn(VoteAsked) -> PeerRequest,
        rpc: VoteRequest<TypeConfig>,
        option: &RPCOption,
    ) -> CallResult<VoteResponse<TypeConfig>> {
        let request = wrap(VoteAsked {
            ballot: rpc.vote.into(),
            last: rpc.last_log_id.map(Into::into),
            transfer: rpc.leadership_transfer,
        });
        match self.ask(&request, Bytes::new(), option.hard_ttl()).await? {
            PeerReply::Vote { ballot, granted, last } => {
                Ok(VoteResponse::new(Vote::from(ballot), last.map(Into::into), granted))
            }
            _ => Err(network("no answer to a vote")),
        }
    }
}

fn network(why: impl ToString) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string(why))
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> CallResult<AppendEntriesResponse<TypeConfig>> {
        let request = PeerRequest::Append {
            ballot: rpc.vote.into(),
            previous: rpc.prev_log_id.map(Into::into),
            entries: rpc.entries.iter().map(Into::into).collect(),
            committed: rpc.leader_commit.map(Into::into),
        };
        match self.ask(&request, Bytes::new(), option.hard_ttl()).await? {
            PeerReply::Appended => Ok(AppendEntriesResponse::Success),
            PeerReply::AppendedPart(id) => {
                Ok(AppendEntriesResponse::PartialSuccess(id.map(Into::into)))
            }
            PeerReply::Conflict if rpc.prev_log_id.is_some() => Ok(AppendEntriesResponse::Conflict),
            PeerReply::Higher(ballot) => Ok(AppendEntriesResponse::HigherVote(ballot.into())),
            _ => Err(network("no answer to entries")),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> CallResult<VoteResponse<TypeConfig>> {
        self.ask_vote(PeerRequest::Vote, rpc, &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> CallResult<VoteResponse<TypeConfig>> {
        self.ask_vote(PeerRequest::PreVote, rpc, &option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let send = async {
            let head = SnapshotHead::from(&snapshot.meta);
            let total = snapshot.snapshot.len();
            let mut offset = 0;
            loop {
                let end = total.min(offset + SNAPSHOT_PIECE);
                let request = PeerRequest::Snapshot {
                    ballot: vote.into(),
                    head: head.clone(),
                    offset: offset as u64,
                    total: total as u64,
                };
                let piece = snapshot.snapshot.slice(offset..end);
                let deadline = option.hard_ttl().max(SNAPSHOT_WAIT);
                match self.ask(&request, piece, deadline).await? {
                    PeerReply::Snapshot(ballot) => {
                        let higher = Ballot::from(vote) != ballot;
                        if end == total || higher {
                            return Ok(SnapshotResponse::new(ballot.into()));
                        }
                    }
                    _ => return Err(network("no answer to a snapshot").into()),
                }
                offset = end;
            }
        };
        tokio::select! {
            biased;
            sent = send => sent,
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }
}

/// A snapshot that is coming in.
#[derive(Default)]
pub(crate) struct Incoming(RefCell<Option<Parts>>);

struct Parts {
    ballot: Ballot,
    last: Option<EntryId>,
    bytes: Vec<u8>,
}

/// Answers a message of a member; one that asks for our vote only where we `may_vote`.
pub(crate) async fn answer(
    raft: &Raft,
    incoming: &Incoming,
    message: Bytes,
    may_vote: bool,
) -> Bytes {
    let reply = match decode_prefix(&message) {
        Some((PeerRequest::Vote(_) | PeerRequest::PreVote(_), _)) if !may_vote => None,
        Some((request, piece)) => answer_request(raft, incoming, request, piece).await,
        None => None,
    };
    encode(&reply.unwrap_or(PeerReply::Refused)).into()
}

async fn answer_request(
    raft: &Raft,
    incoming: &Incoming,
    request: PeerRequest,
    piece: &[u8],
) -> Option<PeerReply> {
    if !is_possible(*raft.node_id(), &request) {
        return None;
    }
    match request {
        PeerRequest::Append { ballot, previous, entries, committed } => {
            if !ballot.committed || !follow(previous, &entries) {
                return None;
            }
            let rpc = AppendEntriesRequest {
                vote: ballot.into(),
                prev_log_id: previous.map(Into::into),
                entries: entries.into_iter().map(Into::into).collect(),
                leader_commit: committed.map(Into::into),
            };
            Some(match raft.append_entries(rpc).await.ok()? {
                AppendEntriesResponse::Success => PeerReply::Appended,
                AppendEntriesResponse::PartialSuccess(id) => {
                    PeerReply::AppendedPart(id.map(Into::into))
                }
                AppendEntriesResponse::Conflict => PeerReply::Conflict,
                AppendEntriesResponse::HigherVote(vote) => PeerReply::Higher(vote.into()),
            })
        }
        PeerRequest::Vote(asked) => {
            Some(vote_reply(&raft.vote(asked.try_into().ok()?).await.ok()?))
        }
        PeerRequest::PreVote(asked) => {
            Some(vote_reply(&raft.pre_vote(asked.try_into().ok()?).await.ok()?))
        }
        PeerRequest::Snapshot { ballot, head, offset, total } => {
            if !ballot.committed {
                return None;
            }
            let Some(bytes) = incoming.take_piece(ballot, &head, offset, total, piece)? else {
                return Some(PeerReply::Snapshot(ballot));
            };
            // A state that cannot be taken over would end this member.
            decode::<StateMachine>(&bytes)?;
            let committed = raft.metrics().borrow_watched().local_committed.map(Into::into);
            if !goes_with(head.last, committed) {
                return None;
            }
            let snapshot = Snapshot { meta: head.into(), snapshot: bytes };
            let answer = raft.install_full_snapshot(ballot.into(), snapshot).await.ok()?;
            Some(PeerReply::Snapshot(answer.vote.into()))
        }
    }
}

/// Whether another member can have said this to `node`. openraft asserts all of it.
fn is_possible(node: u64, request: &PeerRequest) -> bool {
    let (ballot, ids) = match request {
        PeerRequest::Append { ballot, previous, entries, committed } => {
            let last = entries.last().map(|entry| entry.id);
            (ballot, [*previous, last, *committed])
        }
        PeerRequest::Vote(asked) | PeerRequest::PreVote(asked) => {
            (&asked.ballot, [asked.last, None, None])
        }
        PeerRequest::Snapshot { ballot, head, .. } => (ballot, [head.last, head.members_at, None]),
    };
    // Nobody has an entry of a term above its own.
    let has = |id: &EntryId| id.term <= ballot.term && id.index <= COUNT_MAX;
    // Who leads, or stands for election, sends nothing to itself.
    ballot.node != node && ballot.term <= COUNT_MAX && ids.iter().flatten().all(has)
}

/// Whether a snapshot up to `last` goes with what is committed here: it is behind that, or is that,
/// or goes on from there.
fn goes_with(last: Option<EntryId>, committed: Option<EntryId>) -> bool {
    match (last, committed) {
        (Some(last), Some(committed)) if last.index <= committed.index => {
            last.term <= committed.term && (last.index < committed.index || last == committed)
        }
        _ => true,
    }
}

/// Whether entries follow each other, and the first one the previous one. Without one it is the
/// first of the log.
fn follow(previous: Option<EntryId>, entries: &[LogEntry]) -> bool {
    let mut before = previous;
    entries.iter().all(|entry| {
        let goes_on = match before {
            None => entry.id.index == 0,
            Some(before) => {
                entry.id.index.checked_sub(1) == Some(before.index) && before.term <= entry.id.term
            }
        };
        before = Some(entry.id);
        goes_on
    })
}

impl TryFrom<VoteAsked> for VoteRequest<TypeConfig> {
    type Error = ();

    fn try_from(asked: VoteAsked) -> Result<Self, ()> {
        if asked.ballot.committed {
            return Err(()); // A claim to lead is no request for votes.
        }
        let mut request = Self::new(asked.ballot.into(), asked.last.map(Into::into));
        request.leadership_transfer = asked.transfer;
        Ok(request)
    }
}

fn vote_reply(response: &VoteResponse<TypeConfig>) -> PeerReply {
    PeerReply::Vote {
        ballot: response.vote.into(),
        granted: response.vote_granted,
        last: response.last_log_id.map(Into::into),
    }
}

impl Incoming {
    /// Takes a piece in; all bytes, when it was the last one. Nothing where it does not fit.
    fn take_piece(
        &self,
        ballot: Ballot,
        head: &SnapshotHead,
        offset: u64,
        total: u64,
        piece: &[u8],
    ) -> Option<Option<Bytes>> {
        let slot = &mut *self.0.borrow_mut();
        if offset == 0 {
            *slot = Some(Parts { ballot, last: head.last, bytes: Vec::new() });
        }
        let parts = slot.as_mut()?;
        let is_next = (parts.ballot, parts.last) == (ballot, head.last)
            && parts.bytes.len() as u64 == offset
            && offset + piece.len() as u64 <= total;
        if !is_next {
            return None;
        }
        parts.bytes.extend_from_slice(piece);
        if (parts.bytes.len() as u64) < total {
            return Some(None);
        }
        let parts = slot.take()?;
        Some(Some(parts.bytes.into()))
    }
}

/// Which of the connections of two servers it is.
const PEER_STREAM: u8 = 1;

/// No group counts so far, neither terms nor entries; whoever adds to it does not overflow.
const COUNT_MAX: u64 = 1 << 48;

/// Bytes of one piece of a snapshot.
const SNAPSHOT_PIECE: usize = 4 << 20;

/// Longest wait for the answer to one piece.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::super::stored::Content;
    use super::*;

    fn entries(ids: &[(u64, u64)]) -> Vec<LogEntry> {
        let ids = ids.iter().map(|(term, index)| EntryId { term: *term, index: *index });
        ids.map(|id| LogEntry { id, content: Content::Blank }).collect()
    }

    #[test]
    fn entries_with_holes_are_refused() {
        let third = Some(EntryId { term: 2, index: 3 });
        assert!(follow(third, &[]));
        assert!(follow(third, &entries(&[(2, 4), (2, 5), (7, 6)])));
        assert!(follow(None, &entries(&[(0, 0), (1, 1)])));
        for ids in [&[(2, 5)][..], &[(2, 3)], &[(1, 4)], &[(2, 4), (2, 6)], &[(3, 4), (2, 5)]] {
            assert!(!follow(third, &entries(ids)), "{ids:?}");
        }
        assert!(!follow(None, &entries(&[(1, 1)])));
    }

    #[test]
    fn a_snapshot_does_not_contradict_what_is_committed() {
        let id = |(term, index)| EntryId { term, index };
        let committed = Some(id((3, 10)));
        for good in [(3, 10), (3, 9), (2, 9), (3, 11), (4, 11)] {
            assert!(goes_with(Some(id(good)), committed), "{good:?}");
        }
        for bad in [(4, 10), (4, 9), (2, 10)] {
            assert!(!goes_with(Some(id(bad)), committed), "{bad:?}");
        }
        assert!(goes_with(Some(id((4, 0))), None));
        assert!(goes_with(None, committed));
    }

    #[test]
    fn pieces_of_a_snapshot_are_taken_in_order_only() {
        let ballot = Ballot { term: 1, node: 1, committed: true };
        let members = super::super::stored::Members { configs: vec![], nodes: BTreeMap::new() };
        let head = SnapshotHead { last: None, members_at: None, members };
        let incoming = Incoming::default();
        let take = |ballot, offset, piece: &[u8]| {
            incoming
                .take_piece(ballot, &head, offset, 4, piece)
                .map(|bytes| bytes.map(|b| b.to_vec()))
        };
        assert_eq!(take(ballot, 2, b"cd"), None);
        assert_eq!(take(ballot, 0, b"ab"), Some(None));
        assert_eq!(take(ballot, 1, b"bc"), None);
        assert_eq!(take(Ballot { term: 2, ..ballot }, 2, b"cd"), None);
        assert_eq!(take(ballot, 2, b"cde"), None, "more than there is");
        assert_eq!(take(ballot, 2, b"cd"), Some(Some(b"abcd".to_vec())));
        assert_eq!(take(ballot, 2, b"cd"), None);
        assert_eq!(incoming.take_piece(ballot, &head, 0, 0, b"").unwrap().unwrap().len(), 0);
    }
}
