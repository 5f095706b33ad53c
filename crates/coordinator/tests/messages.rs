//! Ring 1: messages among members that no member sends, given to one that works: they are refused,
//! and change nothing.
#![allow(clippy::unwrap_used)]

mod common;

use braid_env::{Payload, simulated};
use braid_wire::coordinator::*;
use braid_wire::rpc::{Client, ClientOptions, Hello, Peer, Role};
use bytes::Bytes;
use common::*;
use serde::Serialize;
use tokio::time::sleep;

/// As `raft/network.rs` has it on the wire.
#[derive(Clone, Serialize, Debug)]
enum Message {
    Append(Ballot, Option<Id>, Vec<(Id, Content)>, Option<Id>),
    Vote(Ballot, Option<Id>, bool),
    PreVote(Ballot, Option<Id>, bool),
    Snapshot(Ballot, Head, u64, u64),
}

/// Term, node, committed.
type Ballot = (u64, u64, bool);
/// Term, index.
type Id = (u64, u64);
/// Last entry, entry of the members, members.
type Head = (Option<Id>, Option<Id>, (Vec<Vec<u64>>, Vec<(u64, u8)>));

#[derive(Clone, Serialize, Debug)]
enum Content {
    Blank,
}

/// Messages to member `own`, which leads in `term`; another one is `other`.
fn impossible(own: u64, other: u64, term: u64) -> Vec<(Message, &'static [u8])> {
    let mut all: Vec<(Message, &'static [u8])> = Vec::new();
    let mut add = |ballot: Ballot, id: Id, next: Id| {
        let (at, entries) = (Some(id), vec![(next, Content::Blank)]);
        all.push((Message::Append(ballot, at, vec![], at), b""));
        all.push((Message::Append(ballot, at, entries, None), b""));
        for transfer in [false, true] {
            all.push((Message::Vote((ballot.0, ballot.1, false), at, transfer), b""));
            all.push((Message::PreVote((ballot.0, ballot.1, false), at, transfer), b""));
        }
        all.push((Message::Snapshot(ballot, (at, at, (vec![], vec![])), 0, 0), b""));
    };
    // Of itself.
    for at in [term, term + 1, term + 9] {
        add((at, own, true), (term, 0), (term, 1));
    }
    // Where nobody counts further.
    for far in [1 << 49, u64::MAX - 1, u64::MAX] {
        add((far, other, true), (term, 0), (term, 1));
        add((term + 1, other, true), (term, far), (term, far.wrapping_add(1)));
    }
    // Of an entry of a later term.
    add((term + 1, other, true), (term + 2, 9), (term + 2, 10));
    // A claim to lead that is none, and votes asked for by who leads.
    all.push((Message::Append((term + 1, other, false), None, vec![], None), b""));
    all.push((Message::Vote((term + 1, other, true), Some((term, 9)), true), b""));
    // Entries with holes.
    let hole = vec![((term + 1, 7), Content::Blank)];
    all.push((Message::Append((term + 1, other, true), Some((term, 5)), hole.clone(), None), b""));
    all.push((Message::Append((term + 1, other, true), None, hole, None), b""));
    // A snapshot that is none, and one beyond its end.
    let head = (Some((term, 1 << 40)), None, (vec![], vec![]));
    all.push((Message::Snapshot((term + 1, other, true), head.clone(), 0, 3), b"\xff\xff\xff"));
    all.push((Message::Snapshot((term + 1, other, true), head.clone(), 0, 2), b"abc"));
    all.push((Message::Snapshot((term + 1, other, true), head, u64::MAX, 2), b"abc"));
    all
}

#[test]
fn what_no_member_says_is_refused_and_changes_nothing() {
    for count in [1, 3] {
        simulated::run(8, async |simulation| {
            let group = Group::start(&simulation, count);
            group.register_lc(1, 1).await;
            let own = group.leader().await;
            let status = async || {
                let statuses = group.client.statuses(SECOND).await;
                statuses.into_iter().flatten().find(|status| status.server.0 == own).unwrap()
            };
            let before = status().await;
            let env = simulation.machine(9).env();
            let hello = Hello::new(CLUSTER, Role::Coordinator, 0, Peer::Unknown);
            let to = simulation.machine(own).address(7400);
            let connect =
                Client::<Coordinator>::connect_with(&env, to, hello, ClientOptions::default());
            let client = connect.await.unwrap();
            for (message, piece) in impossible(own.into(), u64::from(own % 3 + 1), before.term) {
                let mut bytes = postcard::to_stdvec(&message).unwrap();
                bytes.extend_from_slice(piece);
                let payload = Payload::from(Bytes::from(bytes));
                let answer = client.call(&CoordinatorRequest::Raft, payload, SECOND).await;
                let (_, bytes) = answer.unwrap();
                assert_eq!(bytes[..], [REFUSED], "{message:?}");
            }
            sleep(4 * SECOND).await;
            assert!(group.ends.borrow().is_empty(), "{:?}", group.ends);
            let after = status().await;
            let say = |status: &CoordinatorStatus| (status.term, status.leader, status.applied);
            assert_eq!(say(&after), say(&before));
            group.map().await;
        });
    }
}

/// `PeerReply::Refused`.
const REFUSED: u8 = 6;
