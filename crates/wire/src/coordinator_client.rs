//! How everybody reaches the global controller: finds it, follows it, asks again.
//!
//! # Theory
//! Any coordinator may be asked; one that is not elected names the one that is. A call goes to the
//! last one that answered, then to the others in turn, until the deadline. One that takes long may be
//! cut off from those that elect: the others are asked beside it then.
//! # Failure
//! A call may have been carried out although it failed: every request of the service may be sent
//! again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use braid_env::{Address, Env, Payload};
use braid_terms::{ClusterId, ClusterMap};
use tokio::time::{Instant, sleep, timeout};

use crate::coordinator::{
    Coordinator, CoordinatorRefusal, CoordinatorReply, CoordinatorRequest, CoordinatorStatus,
};
use crate::rpc::{Client, ClientOptions, Hello, Peer, Role};

/// Why the coordinators did not answer.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CoordinatorError {
    /// Nobody that is elected answered before the deadline. It may have been done all the same.
    Unreachable,
    /// The global controller refused.
    Refused(CoordinatorRefusal),
}

impl std::fmt::Display for CoordinatorError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable => f.write_str("no elected coordinator answers"),
            Self::Refused(refusal) => write!(f, "the global controller refused: {refusal:?}"),
        }
    }
}

impl std::error::Error for CoordinatorError {}

/// Access to the coordinators; clones share connections.
#[derive(Clone)]
pub struct CoordinatorClient(Rc<Inner>);

struct Inner {
    env: Env,
    cluster: ClusterId,
    peer: Peer,
    state: RefCell<State>,
}

struct State {
    addresses: Vec<SocketAddr>,
    /// Whom to ask first.
    preferred: usize,
    clients: BTreeMap<SocketAddr, Client<Coordinator>>,
    /// Those that did not answer, and until when they are not asked while there are others.
    silent: BTreeMap<SocketAddr, Instant>,
}

impl State {
    fn is_silent(&self, address: &SocketAddr) -> bool {
        self.silent.get(address).is_some_and(|until| Instant::now() < *until)
    }

    fn fell_silent(&mut self, address: SocketAddr) {
        self.clients.remove(&address);
        self.silent.insert(address, Instant::now() + SILENT);
    }
}

impl CoordinatorClient {
    /// For the coordinators at `addresses`, of which there is at least one.
    #[must_use]
    pub fn new(env: Env, cluster: ClusterId, peer: Peer, addresses: Vec<SocketAddr>) -> Self {
        let state =
            State { addresses, preferred: 0, clients: BTreeMap::new(), silent: BTreeMap::new() };
        Self(Rc::new(Inner { env, cluster, peer, state: RefCell::new(state) }))
    }

    /// Takes over the coordinators of a newer map.
    pub fn learn(&self, map: &ClusterMap) {
        let servers = map.coordinators.iter().filter_map(|server| map.servers.get(server));
        let addresses: Vec<_> = servers.map(|server| server.coordinator_address).collect();
        if !addresses.is_empty() {
            let mut state = self.0.state.borrow_mut();
            let preferred = state.addresses.get(state.preferred).copied();
            let place = addresses.iter().position(|address| Some(*address) == preferred);
            state.preferred = place.unwrap_or(0);
            state.clients.retain(|address, _| addresses.contains(address));
            state.addresses = addresses;
        }
    }

    /// Asks the global controller; waits and asks again where it says so.
    ///
    /// Errors: `CoordinatorError`.
    pub async fn call(
        &self,
        request: &CoordinatorRequest,
        deadline: Duration,
    ) -> Result<CoordinatorReply, CoordinatorError> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CoordinatorError::Unreachable);
            }
            let address = self.preferred();
            let asked = self.ask(address, request, left.min(ATTEMPT_MAX));
            let answer = tokio::select! {
                answer = asked => answer,
                elsewhere = self.ask_others(address, request) => {
                    // Who was asked first may stand still, or be cut off from those that elect.
                    self.0.state.borrow_mut().fell_silent(address);
                    elsewhere
                }
            };
            let pause = match answer {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(CoordinatorRefusal::NotLeader { leader })) => {
                    self.follow(address, leader.map(|(_, address)| address))
                }
                Some(Err(CoordinatorRefusal::Wait { milliseconds })) => {
                    Duration::from_millis(u64::from(milliseconds).clamp(10, 1000))
                }
                Some(Err(refusal)) => return Err(CoordinatorError::Refused(refusal)),
                None => self.follow(address, None),
            };
            let left = end.saturating_duration_since(Instant::now());
            sleep(pause.min(left)).await;
        }
    }

    /// The coordinators that it knows.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.state.borrow().addresses.clone()
    }

    /// What each coordinator says of itself, in the order of their addresses; `None` where it does
    /// not answer in time.
    pub async fn statuses(&self, deadline: Duration) -> Vec<Option<CoordinatorStatus>> {
        let addresses = self.0.state.borrow().addresses.clone();
        let asked = addresses.into_iter().map(|address| async move {
            match self.ask(address, &CoordinatorRequest::Status, deadline).await {
                Some(Ok(CoordinatorReply::Status(status))) => Some(*status),
                _ => None,
            }
        });
        futures_util::future::join_all(asked).await
    }

    fn preferred(&self) -> SocketAddr {
        let state = self.0.state.borrow();
        state.addresses[state.preferred % state.addresses.len()]
    }

    /// Whom to ask next, and how long to wait before.
    fn follow(&self, asked: SocketAddr, leader: Option<SocketAddr>) -> Duration {
        let mut state = self.0.state.borrow_mut();
        // Others name a leader that stands still until they have elected another one.
        let leader = leader.filter(|leader| !state.is_silent(leader));
        if let Some(new) = leader.filter(|leader| !state.addresses.contains(leader)) {
            // Of a map that is newer than ours.
            state.addresses.push(new);
        }
        let known = leader.and_then(|leader| state.addresses.iter().position(|a| *a == leader));
        if let Some(place) = known.filter(|place| state.addresses[*place] != asked) {
            state.preferred = place;
            return Duration::from_millis(1);
        }
        let count = state.addresses.len();
        for _ in 0..count {
            state.preferred = (state.preferred + 1) % count;
            if !state.is_silent(&state.addresses[state.preferred]) {
                break;
            }
        }
        // After a round of all of them an election may be under way.
        let jitter = self.0.env.random_below(20);
        Duration::from_millis(if state.preferred == 0 { 50 } else { 5 } + jitter)
    }

    /// While `asked` owes an answer: asks the others, one after the other, until one of them answers as
    /// the global controller, or names another one than `asked`.
    async fn ask_others(
        &self,
        asked: SocketAddr,
        request: &CoordinatorRequest,
    ) -> Option<Result<CoordinatorReply, CoordinatorRefusal>> {
        sleep(OTHERS_AFTER).await;
        loop {
            let others = self.addresses().into_iter().filter(|address| *address != asked);
            for address in others {
                if !self.0.state.borrow().is_silent(&address) {
                    match self.ask(address, request, OTHERS_WAIT).await {
                        None | Some(Err(CoordinatorRefusal::NotLeader { leader: None })) => {}
                        Some(Err(CoordinatorRefusal::NotLeader { leader: Some((_, leader)) }))
                            if leader == asked => {}
                        named @ Some(Err(CoordinatorRefusal::NotLeader { .. })) => return named,
                        said => {
                            self.prefer(address);
                            return said;
                        }
                    }
                }
                sleep(OTHERS_PAUSE).await;
            }
            sleep(OTHERS_PAUSE).await;
        }
    }

    fn prefer(&self, address: SocketAddr) {
        let mut state = self.0.state.borrow_mut();
        if let Some(place) = state.addresses.iter().position(|known| *known == address) {
            state.preferred = place;
        }
    }

    /// `None` where there is no answer.
    async fn ask(
        &self,
        address: SocketAddr,
        request: &CoordinatorRequest,
        deadline: Duration,
    ) -> Option<Result<CoordinatorReply, CoordinatorRefusal>> {
        let connected = timeout(deadline.min(CONNECT_MAX), self.client(address)).await;
        let Ok(Some(client)) = connected else {
            self.0.state.borrow_mut().fell_silent(address);
            return None;
        };
        match client.call(request, Payload::empty(), deadline).await {
            Ok((reply, _)) => {
                self.0.state.borrow_mut().silent.remove(&address);
                Some(reply)
            }
            Err(error) => {
                tracing::debug!(%address, %error, "a coordinator does not answer");
                // A peer that stands still would hold up the next call as well.
                self.0.state.borrow_mut().fell_silent(address);
                None
            }
        }
    }

    async fn client(&self, address: SocketAddr) -> Option<Client<Coordinator>> {
        let known = self.0.state.borrow().clients.get(&address).cloned();
        if let Some(client) = known.filter(|client| !client.is_closed()) {
            return Some(client);
        }
        let hello = Hello::new(self.0.cluster, Role::Coordinator, 0, self.0.peer);
        let options = ClientOptions {
            ping_after: PING_AFTER,
            broken_after: BROKEN_AFTER,
            ..ClientOptions::default()
        };
        let to = Address::Tcp(address);
        let client = Client::connect_with(&self.0.env, to, hello, options).await.ok()?;
        self.0.state.borrow_mut().clients.insert(address, client.clone());
        Some(client)
    }
}

/// Longest wait for one coordinator before another is asked.
const ATTEMPT_MAX: Duration = Duration::from_millis(1500);

/// How long one may owe an answer before others are asked as well: longer than a busy global
/// controller takes, and short beside a lease.
const OTHERS_AFTER: Duration = Duration::from_millis(300);

/// Longest wait for one of the others.
const OTHERS_WAIT: Duration = Duration::from_millis(500);

/// Between two of them.
const OTHERS_PAUSE: Duration = Duration::from_millis(60);

/// Longest wait for a connection to one.
const CONNECT_MAX: Duration = Duration::from_millis(600);

/// One that owes an answer is asked for a sign of life after so long.
const PING_AFTER: Duration = Duration::from_millis(300);

/// Without one it counts as silent.
const BROKEN_AFTER: Duration = Duration::from_millis(900);

/// How long one that was silent is not asked, while others are.
const SILENT: Duration = Duration::from_millis(1000);
