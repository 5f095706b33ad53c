//! Ring 1: messages among members that no member sends, given to one that works.
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
    Append { ballot: Ballot, previous: Option<Id>, entries: Vec<(Id, Content)>, committed: Option<Id> },
    Vote(Ballot, Option<Id>, bool),
    PreVote(Ballot, Option<Id>, bool),
    Snapshot { ballot: Ballot, head: (Option<Id>, Option<Id>, Members), offset: u64, total: u64 },
}

/// Term, node, committed.
type Ballot = (u64, u64, bool);
/// Term, index.
type Id = (u64, u64);
type Members = (Vec<Vec<u64>>, Vec<(u64, u8)>);

#[derive(Clone, Serialize, Debug)]
enum Content {
    Blank,
}

fn messages() -> Vec<Message> {
    let mut all = Vec::new();
    for term in [0, 1, 2, 9, 1 << 40, 1 << 48, u64::MAX - 1, u64::MAX] {
        for index in [0, 1, 2, 3, 4, 1 << 40, 1 << 48, u64::MAX - 1, u64::MAX] {
            for node in [1, 2, 9, u64::MAX] {
                for lower in [0, 1] {
                    let id = Some((term - term.min(lower), index));
                    let ballot = (term, node, true);
                    let next = index.wrapping_add(1);
                    let entries = vec![((term, next), Content::Blank)];
                    for committed in [None, id, Some((term, next)), Some((term, u64::MAX))] {
                        all.push(Message::Append { ballot, previous: id, entries: vec![], committed });
                        all.push(Message::Append { ballot, previous: id, entries: entries.clone(), committed });
                    }
                    all.push(Message::Append { ballot, previous: None, entries: vec![], committed: id });
                    all.push(Message::Append { ballot, previous: None, entries, committed: id });
                    for transfer in [false, true] {
                        all.push(Message::Vote((term, node, false), id, transfer));
                        all.push(Message::PreVote((term, node, false), id, transfer));
                    }
                    let heads = [(id, id, (vec![], vec![])), (id, None, (vec![vec![1]], vec![])), (None, id, (vec![], vec![]))];
                    for head in heads {
                        all.push(Message::Snapshot { ballot, head, offset: 0, total: 0 });
                    }
                }
            }
        }
    }
    all
}

#[test]
fn probe() {
  for count in [1, 3] { println!("== {count}");
    let hook = std::panic::take_hook();
    thread_local!(static AT: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) });
    std::panic::set_hook(Box::new(|info| {
        let m = info.payload().downcast_ref::<String>().cloned().or(info.payload().downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
        let l = info.location().map(|l| format!("{}:{}", l.file().rsplit("alpha.37").next().unwrap(), l.line())).unwrap_or_default();
        AT.with(|at| at.borrow_mut().push(format!("{l} {}", m.chars().take(150).collect::<String>())));
    }));
    let mut kinds = std::collections::BTreeMap::new();
    for message in messages() {
        let shown = format!("{message:?}");
        let outcome = std::panic::catch_unwind(|| simulated::run(1, async |simulation| {
            let group = Group::start(&simulation, count);
            group.register_lc(1, 1).await;
            let env = simulation.machine(9).env();
            let hello = Hello::new(CLUSTER, Role::Coordinator, 0, Peer::Unknown);
            let to = simulation.machine(1).address(7400);
            let client = Client::<braid_wire::coordinator::Coordinator>::connect_with(&env, to, hello, ClientOptions::default()).await.unwrap();
            let payload = Payload::from(Bytes::from(postcard::to_stdvec(&message).unwrap()));
            let answer = client.call(&CoordinatorRequest::Raft, payload, SECOND).await;
            sleep(4 * SECOND).await;
            let alive = group.client.call(&CoordinatorRequest::Map { linearizable: true }, 8 * SECOND).await.is_ok();
            let refused = matches!(&answer, Ok((Ok(_), bytes)) if bytes[..] == [6]);
            (refused, alive, group.ends.borrow().clone())
        }));
        let line = match outcome {
            Ok((refused, alive, ends)) => format!("refused {refused} alive {alive} ends {ends:?}"),
            Err(_) => format!("PANIC {:?}", AT.with(|at| at.take()).first()),
        };
        AT.with(|at| at.take());
        kinds.entry(line).or_insert_with(Vec::new).push(shown);
    }
    std::panic::set_hook(hook);
    for (line, which) in kinds {
        println!("{} x {line}", which.len());
        for w in which.iter().take(6) { println!("      {w}"); }
    }
  }
}
