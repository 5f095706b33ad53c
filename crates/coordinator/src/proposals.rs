//! What waits for the group: commands for the next log entry, renewals for the next quorum round.
//!
//! # Theory
//! One entry, and one round, is under way at a time; all who come meanwhile share the next one.
//! A caller that has gone away before its command was proposed is left out.
//! # Invariants
//! R1 A command is proposed only in the term in which it was decided: what a global controller of
//!    an earlier term saw may not hold any more.
//! R2 A round begins after everybody arrived who is answered by it. Source: O-4.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use openraft::impls::ProgressResponder;
use openraft::raft::ClientWriteResult;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::command::{Batch, Command, Outcome};
use crate::raft::{Raft, TypeConfig};

/// Commands that wait.
#[derive(Default)]
pub(crate) struct Proposals {
    waiting: RefCell<Vec<Waiting>>,
    bell: Notify,
}

struct Waiting {
    term: u64,
    command: Command,
    done: oneshot::Sender<Outcome>,
}

impl Proposals {
    /// Proposes a command in a term; nothing where it was not committed or nobody knows.
    pub(crate) async fn propose(&self, term: u64, command: Command) -> Option<Outcome> {
        let (done, outcome) = oneshot::channel();
        self.waiting.borrow_mut().push(Waiting { term, command, done });
        self.bell.notify_one();
        outcome.await.ok()
    }

    /// Proposes whatever waits, for ever.
    pub(crate) async fn run(self: Rc<Self>, raft: Raft) {
        loop {
            let Some((term, batch, waiting)) = self.next_batch() else {
                self.bell.notified().await;
                continue;
            };
            match write(&raft, term, batch).await {
                Some(outcomes) => waiting.into_iter().zip(outcomes).for_each(|(done, outcome)| {
                    let _ = done.send(outcome); // Whoever waited may have gone.
                }),
                None => tracing::debug!(term, "an entry was not committed, or nobody knows"),
            }
        }
    }

    /// The commands of one entry, all of one term.
    fn next_batch(&self) -> Option<(u64, Batch, Vec<oneshot::Sender<Outcome>>)> {
        let mut queue = self.waiting.borrow_mut();
        queue.retain(|waiting| !waiting.done.is_closed());
        let term = queue.first()?.term;
        let mut weight = 0;
        let fits = |waiting: &&Waiting| {
            let is_first = weight == 0;
            weight += waiting.command.weight();
            waiting.term == term && (is_first || weight <= WEIGHT_MAX)
        };
        let count = queue.iter().take_while(fits).count();
        let (commands, dones) =
            queue.drain(..count).map(|waiting| (waiting.command, waiting.done)).unzip();
        Some((term, Batch(commands), dones))
    }
}

/// Commits one entry, if the group is led by us in this term.
async fn write(raft: &Raft, term: u64, batch: Batch) -> Option<Vec<Outcome>> {
    let (responder, written) = ProgressResponder::complete_only();
    raft.write(batch).with_leader(term).responder(responder).await.ok()?;
    let written: ClientWriteResult<TypeConfig> = written.await.ok()?;
    written.ok().map(|written| written.data)
}

/// Who waits for a quorum round.
///
/// A renewal of a lease has time: its round may collect others. Each round costs a message to every
/// member, and six servers renew twelve leases in a second.
#[derive(Default)]
pub(crate) struct Rounds {
    waiting: RefCell<Vec<oneshot::Sender<()>>>,
    bell: Notify,
    /// When a round begins that need not begin at once.
    due: Cell<Option<Instant>>,
    has_failed: Cell<bool>,
}

/// How soon a round is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Haste {
    /// Somebody waits for the answer.
    Now,
    /// Within [`COLLECT`].
    Soon,
}

impl Rounds {
    /// Waits for a round that begins after this call; `false` where we do not lead.
    pub(crate) async fn wait(&self, haste: Haste) -> bool {
        let (done, round) = oneshot::channel();
        self.waiting.borrow_mut().push(done);
        let due = match haste {
            Haste::Now => Instant::now(),
            Haste::Soon => Instant::now() + COLLECT,
        };
        if self.due.get().is_none_or(|before| due < before) {
            self.due.set(Some(due));
            self.bell.notify_one();
        }
        round.await.is_ok()
    }

    /// Whether the last round did not fail.
    pub(crate) fn last_succeeded(&self) -> bool {
        !self.has_failed.get()
    }

    /// Makes rounds as long as somebody waits, for ever.
    pub(crate) async fn run(self: Rc<Self>, raft: Raft) {
        loop {
            match self.due.get() {
                None => {
                    self.bell.notified().await;
                    continue;
                }
                Some(due) if Instant::now() < due => {
                    // A bell that rings meanwhile may bring the round forward.
                    let _ = timeout_at(due, self.bell.notified()).await;
                    continue;
                }
                Some(_) => self.due.set(None),
            }
            let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
            let round = raft.ensure_linearizable(openraft::ReadPolicy::ReadIndex).await;
            self.has_failed.set(round.is_err());
            match round {
                Ok(_) => waiting.into_iter().for_each(|done| {
                    let _ = done.send(());
                }),
                Err(error) => tracing::debug!(%error, "no quorum round"),
            }
        }
    }
}

/// How long renewals are collected for one round.
const COLLECT: Duration = Duration::from_millis(200);

/// Facts in one entry, about.
pub(crate) const WEIGHT_MAX: usize = 512;
