//! A coordinator from its start to its end: opens the store, joins the group, follows elections.
//!
//! # Theory
//! ```text
//! open log and snapshot -> openraft -> new cluster: first members, first map
//! elected: quorum round, so that everything committed before is applied -> global controller
//! not elected any more: the global controller is dropped, with all that it knew
//! ```
//! # Failure
//! A failed write or sync, or damage, ends the coordinator with a reason; its main controller
//! starts it again where that can help.
//! # Source
//! O-3, O-4, 10 of the design.
//! # Not here
//! What is answered to whom: `requests.rs`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use braid_env::{Address, Env, Moment};
use braid_terms::{ClusterId, ClusterMap, Incarnation, ServerId};
use braid_wire::coordinator::Coordinator;
use braid_wire::rpc::serve;
use openraft::async_runtime::{Instant, WatchReceiver};
use openraft::{ServerState, SnapshotPolicy};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;

use crate::command::Command;
use crate::global_controller::{Effect, GlobalController};
use crate::proposals::{Haste, Proposals, Rounds};
use crate::raft::log_file::{LogFault, LogIdentity};
use crate::raft::log_store::{LogStore, OpenError};
use crate::raft::network::{Incoming, Network};
use crate::raft::state_store::{SNAPSHOT, StateStore};
use crate::raft::{Member, Raft, Runtime};
use crate::state_machine::StateMachine;

/// What a coordinator is told at its start.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Its server.
    pub server: ServerId,
    /// The cluster.
    pub cluster: ClusterId,
    /// Where it listens.
    pub listen: Vec<Address>,
    /// The folder of its log; it exists.
    pub folder: PathBuf,
    /// The members with which a new group begins, and where members are now; this one among them.
    pub members: Vec<(ServerId, SocketAddr)>,
    /// The first map of a new cluster; without effect in one that has a map.
    pub first_map: Option<ClusterMap>,
}

/// Why a coordinator ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoordinatorFatal {
    /// An address cannot be listened at.
    #[error("cannot listen at {address}: {error}")]
    CannotListen {
        /// Which.
        address: Address,
        /// Why.
        error: io::Error,
    },
    /// Another process has the folder.
    #[error("another process works in the coordinator's folder")]
    FolderTaken,
    /// The folder or the media did not do what was asked.
    #[error("the coordinator's folder fails: {0}")]
    Storage(#[from] io::Error),
    /// The log or the snapshot is damaged, missing, of another version, or another cluster's.
    #[error("the coordinator's log cannot be used: {0}")]
    Log(String),
    /// The consensus library stopped.
    #[error("consensus stopped: {0}")]
    Consensus(String),
}

/// Runs a coordinator until its end; ends only for a reason.
pub async fn run(env: Env, config: CoordinatorConfig) -> Result<(), CoordinatorFatal> {
    let seed = env.random();
    Runtime::scope(seed, Box::pin(run_seeded(env, config))).await
}

async fn run_seeded(env: Env, config: CoordinatorConfig) -> Result<(), CoordinatorFatal> {
    let mut listeners = Vec::new();
    for address in &config.listen {
        let listener = env.listen(address.clone()).await;
        listeners.push(
            listener.map_err(|error| CoordinatorFatal::CannotListen {
                address: address.clone(),
                error,
            })?,
        );
    }
    let driver = Driver::start(env, config).await?;
    let mut tasks = Tasks::default();
    let raft = driver.raft.clone();
    tasks.spawn(driver.proposals.clone().run(raft.clone()));
    tasks.spawn(driver.rounds.clone().run(raft));
    tasks.spawn(driver.clone().follow_elections());
    tasks.spawn(driver.clone().begin_group());
    for listener in listeners {
        tasks.spawn(serve::<Coordinator, Driver>(listener, driver.clone()));
    }
    driver.tick_until_failure().await
}

/// Tasks that end with the coordinator.
#[derive(Default)]
struct Tasks(Vec<JoinHandle<()>>);

impl Tasks {
    fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        self.0.push(spawn_local(task));
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// A running coordinator.
pub(crate) struct Driver {
    pub(crate) env: Env,
    pub(crate) config: CoordinatorConfig,
    pub(crate) raft: Raft,
    pub(crate) state: Rc<RefCell<StateMachine>>,
    /// The term of the newest entry that the state has.
    pub(crate) state_term: Rc<Cell<u64>>,
    pub(crate) controller: RefCell<Option<GlobalController>>,
    pub(crate) incoming: Incoming,
    pub(crate) proposals: Rc<Proposals>,
    pub(crate) rounds: Rc<Rounds>,
    /// When this member started, and whether it may have heard a leader in an earlier start.
    started: Moment,
    is_restarted: bool,
    /// Commands that this global controller proposed.
    pub(crate) proposed: Cell<u64>,
    /// LCs whose invalidation is proposed.
    invalidating: RefCell<BTreeSet<Incarnation>>,
}

impl Driver {
    async fn start(env: Env, config: CoordinatorConfig) -> Result<Rc<Self>, CoordinatorFatal> {
        let folder = env.folder(&config.folder)?;
        if !folder.take_exclusively()? {
            return Err(CoordinatorFatal::FolderTaken);
        }
        let state = Rc::new(RefCell::new(StateMachine::default()));
        let identity = LogIdentity { cluster: config.cluster, server: config.server };
        let state_term = Rc::<Cell<u64>>::default();
        let state_store =
            StateStore::open(folder.clone(), config.cluster, state.clone(), state_term.clone());
        let state_store = state_store.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => CoordinatorFatal::Log(error.to_string()),
            _ => CoordinatorFatal::Storage(error),
        })?;
        let log_store = LogStore::open(folder.clone(), identity).await.map_err(log_fatal)?;
        let (started, is_restarted) = (env.now(), !log_store.is_new());
        if log_store.is_new() && folder.length(SNAPSHOT)?.is_some() {
            // Whoever forgets its vote can vote twice.
            return Err(CoordinatorFatal::Log("there is a snapshot without a log".to_owned()));
        }
        let addresses: BTreeMap<_, _> =
            config.members.iter().map(|(server, at)| (u64::from(server.0), *at)).collect();
        let network = Network {
            env: env.clone(),
            cluster: config.cluster,
            server: config.server,
            addresses,
            connections: Rc::default(),
        };
        let settings = settings(config.cluster);
        let node = u64::from(config.server.0);
        let raft = Raft::new(node, settings, network, log_store, state_store).await;
        let raft = raft.map_err(|error| CoordinatorFatal::Consensus(error.to_string()))?;
        Ok(Rc::new(Self {
            env,
            config,
            raft,
            state,
            state_term,
            controller: RefCell::default(),
            incoming: Incoming::default(),
            proposals: Rc::default(),
            rounds: Rc::default(),
            started,
            is_restarted,
            proposed: Cell::new(0),
            invalidating: RefCell::default(),
        }))
    }

    /// Begins a new group with its first members, and an election where there is only one member.
    async fn begin_group(self: Rc<Self>) {
        let node = u64::from(self.config.server.0);
        let members = self.config.members.iter();
        let members: BTreeMap<_, _> =
            members.map(|(server, at)| (u64::from(server.0), Member { address: *at })).collect();
        if !members.contains_key(&node) || self.config.first_map.is_none() {
            self.stand_alone(node).await;
            return;
        }
        if members.first_key_value().map(|(first, _)| *first) != Some(node) {
            // One of them is enough; the others only where it stays away.
            sleep(BEGIN_LATER).await;
        }
        match self.raft.is_initialized().await {
            Ok(false) => {
                if let Err(error) = self.raft.initialize(members).await {
                    tracing::debug!(%error, "another member began the group");
                }
            }
            _ => self.stand_alone(node).await,
        }
    }

    /// Without others there is nobody to wait for.
    async fn stand_alone(&self, node: u64) {
        let metrics = self.raft.server_metrics();
        let is_alone = {
            let members = &metrics.borrow_watched().membership_config;
            members.voter_ids().eq([node])
        };
        if is_alone {
            let _ = self.raft.trigger().elect(false).await;
        }
    }

    /// Makes and drops the global controller as elections go.
    async fn follow_elections(self: Rc<Self>) {
        let mut metrics = self.raft.server_metrics();
        loop {
            let leading = {
                let metrics = metrics.borrow_and_update();
                (metrics.state == ServerState::Leader).then_some(metrics.vote.leader_id.term)
            };
            let known = self.term();
            if known != leading {
                self.controller.replace(None);
            }
            if let Some(term) = leading.filter(|_| known != leading)
                && !self.take_office(term).await
            {
                sleep(OFFICE_RETRY).await;
                continue;
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// `false` where it should be tried again.
    async fn take_office(&self, term: u64) -> bool {
        // Everything that was committed before is applied after this.
        if !self.rounds.wait(Haste::Now).await {
            return false;
        }
        if self.state.borrow().map().version == 0
            && let Some(map) = self.config.first_map.clone()
        {
            let command = Command::Begin { map: Box::new(map) };
            if self.proposals.propose(term, command).await.is_none() {
                return false;
            }
        }
        tracing::info!(term, "this coordinator is the global controller");
        self.proposed.set(0);
        let (now, silence) = (self.env.now(), self.silence_before_election());
        let new = GlobalController::new(term, now, silence, &self.state.borrow());
        self.controller.replace(Some(new));
        true
    }

    /// Whether it may vote for another member. A member that hears a leader votes for nobody for
    /// `VOTE_SILENCE`; one that was restarted does not know when it heard one last. Source: O-4.
    pub(crate) fn may_vote(&self) -> bool {
        !self.is_restarted || VOTE_SILENCE <= self.env.now() - self.started
    }

    /// How long all who elected us had heard no former leader by then: no round of one that they
    /// confirmed began later than that before now. Source: O-4.
    fn silence_before_election(&self) -> Duration {
        let own = match self.is_restarted {
            true => self.env.now() - self.started,
            false => VOTE_SILENCE,
        };
        // Clocks of members drift by 2 % at most.
        own.min(VOTE_SILENCE) * 49 / 50
    }

    /// The term of the global controller that is here.
    pub(crate) fn term(&self) -> Option<u64> {
        self.controller.borrow().as_ref().map(GlobalController::term)
    }

    async fn tick_until_failure(self: Rc<Self>) -> Result<(), CoordinatorFatal> {
        let metrics = self.raft.metrics();
        loop {
            sleep(if self.term().is_some() { TICK } else { TICK_IDLE }).await;
            if let Err(error) = &metrics.borrow_watched().running_state {
                return Err(CoordinatorFatal::Consensus(error.to_string()));
            }
            let mut effects = Vec::new();
            if self.has_quorum()
                && let Some(controller) = &mut *self.controller.borrow_mut()
            {
                controller.tick(self.env.now(), &self.state.borrow(), &mut effects);
            }
            self.run_effects(effects);
        }
    }

    /// Whether the group listens to us, if we lead it: a leader that is cut off does not know that
    /// another was elected. It is safe to answer (O-4), but no use.
    pub(crate) fn has_quorum(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let is_alone = metrics.membership_config.voter_ids().count() <= 1;
        let heard = metrics.last_quorum_acked;
        is_alone || heard.is_none_or(|heard| heard.elapsed() < QUORUM_SILENCE)
    }

    /// Does what the global controller wants; no effect waits for another.
    pub(crate) fn run_effects(self: &Rc<Self>, effects: Vec<Effect>) {
        let Some(term) = self.term() else { return };
        for Effect::Invalidate(lc) in effects {
            if !self.invalidating.borrow_mut().insert(lc) {
                continue;
            }
            let driver = self.clone();
            spawn_local(async move {
                let outcome = driver.propose(term, Command::Invalidate { lc }).await;
                tracing::info!(%lc, ?outcome, "the lease of an LC is over");
                driver.invalidating.borrow_mut().remove(&lc);
            });
        }
    }

    /// See [`Proposals::propose`].
    pub(crate) async fn propose(
        &self,
        term: u64,
        command: Command,
    ) -> Option<crate::command::Outcome> {
        self.proposed.set(self.proposed.get() + 1);
        self.proposals.propose(term, command).await
    }
}

fn log_fatal(error: OpenError) -> CoordinatorFatal {
    match error {
        OpenError::Io(error) => CoordinatorFatal::Storage(error),
        OpenError::Fault(fault @ LogFault::Identity(_)) => {
            CoordinatorFatal::Log(format!("{fault}, not ours"))
        }
        OpenError::Fault(fault) => CoordinatorFatal::Log(fault.to_string()),
    }
}

/// A follower waits 0.6 to 0.9 s for its leader, through two heartbeats. openraft wakes up
/// five times for each heartbeat interval, which is most of what an idle member costs.
fn settings(cluster: ClusterId) -> Arc<openraft::Config> {
    let settings = openraft::Config {
        cluster_name: cluster.to_string(),
        heartbeat_interval: 300,
        // A quorum round for leases is as good as a heartbeat.
        heartbeat_min_interval: Some(150),
        election_timeout_min: 600,
        // Also the time for which who heard a leader votes for nobody.
        election_timeout_max: VOTE_SILENCE.as_millis() as u64,
        enable_pre_vote: Some(true),
        // See the invariant in `raft.rs`.
        enable_leader_restore: Some(false),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(1000),
        max_in_snapshot_log_to_keep: 500,
        purge_batch_size: 200,
        // With the weight of an entry: a message stays below the largest payload.
        max_payload_entries: 32,
        ..openraft::Config::default()
    };
    Arc::new(settings.validate().expect("the settings fit each other"))
}

/// Silence of a leader before a member votes for another one.
const VOTE_SILENCE: Duration = Duration::from_millis(900);

/// How often leases are looked at.
const TICK: Duration = Duration::from_millis(250);

/// How often a member that keeps no leases looks whether it still works.
const TICK_IDLE: Duration = Duration::from_secs(1);

/// Heartbeats are answered about three times a second.
const QUORUM_SILENCE: Duration = Duration::from_millis(1500);

/// How long a member waits for the first one to begin the group.
const BEGIN_LATER: Duration = Duration::from_secs(2);

/// Pause between attempts to make a quorum round after an election.
const OFFICE_RETRY: Duration = Duration::from_millis(50);
