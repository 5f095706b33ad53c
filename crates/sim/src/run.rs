//! One seed: clients at work, faults beside them, then healing, then every file is read.
//! # Theory
//! ```text
//! round:  clients work | faults: kills, pauses, partitions, power cuts of at most m machines
//!         faults stop, everything comes back
//!         no suspect and no pending fact within HEAL_WAIT, every file as the oracle knows it
//! ```
//! At most m machines are touched by power cuts and partitions in a round, and the next round begins
//! only when all is healed: more is not promised.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use braid_client::{Client, Error, PutOptions};
use braid_env::simulated::{self, Simulation};
use braid_terms::RaidScheme;
use bytes::Bytes;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::cluster::{CLIENTS, Cluster, Role};
use crate::oracle::{Content, Oracle};

/// How a seed is run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Servers.
    pub servers: u32,
    /// Scheme of files.
    pub scheme: RaidScheme,
    /// Clients, each with names of its own.
    pub clients: u32,
    /// Operations of all clients together, at least.
    pub operations: u64,
    /// Rounds of faults.
    pub rounds: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            servers: 6,
            scheme: RaidScheme::Rs { data: 4, parity: 2 },
            clients: 3,
            operations: 200,
            rounds: 2,
        }
    }
}

/// What a seed came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Hash of all that happened.
    pub trace: u64,
    /// Operations done.
    pub operations: u64,
    /// Reads that were compared.
    pub reads: u64,
    /// Which interesting states were reached, how often.
    pub reached: BTreeMap<&'static str, u64>,
    /// What was wrong, if anything.
    pub violation: Option<String>,
}

#[derive(Clone)]
struct World {
    simulation: Simulation,
    cluster: Rc<Cluster>,
    oracle: Rc<RefCell<Oracle>>,
    reached: Rc<RefCell<BTreeMap<&'static str, u64>>>,
    operations: Rc<Cell<u64>>,
    violation: Rc<RefCell<Option<String>>>,
    stop: Rc<Cell<bool>>,
}

/// Runs one seed in a world of its own.
#[must_use]
pub fn run_seed(seed: u64, settings: Settings) -> Outcome {
    simulated::run(seed, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, settings.servers, settings.scheme).await;
        let world = World {
            cluster: Rc::new(cluster),
            oracle: Rc::default(),
            reached: Rc::default(),
            operations: Rc::default(),
            violation: Rc::default(),
            stop: Rc::default(),
            simulation,
        };
        for round in 0..settings.rounds {
            world.round(settings, round).await;
            if world.violation.borrow().is_some() {
                break;
            }
        }
        Outcome {
            trace: world.simulation.trace(),
            operations: world.operations.get(),
            reads: world.oracle.borrow().reads,
            reached: world.reached.borrow().clone(),
            violation: world.violation.borrow().clone(),
        }
    })
}

impl World {
    fn reach(&self, what: &'static str) {
        *self.reached.borrow_mut().entry(what).or_insert(0) += 1;
    }

    fn random(&self, bound: u64) -> u64 {
        self.simulation.random_below(bound)
    }

    fn violate(&self, what: String) {
        self.violation.borrow_mut().get_or_insert(what);
        self.stop.set(true);
    }

    async fn round(&self, settings: Settings, round: u32) {
        self.stop.set(false);
        let target = settings.operations * u64::from(round + 1) / u64::from(settings.rounds);
        let mut tasks = Vec::new();
        for number in 0..settings.clients {
            let world = self.clone();
            tasks.push(spawn_local(async move { world.client(number).await }));
        }
        // Both end by themselves: the clients when told, the faults with their list.
        let faults = self.faults(settings);
        let work = async {
            while self.operations.get() < target && !self.stop.get() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let both = async { tokio::join!(faults, work) };
        if timeout(ROUND_MAX, both).await.is_err() {
            self.violate("the clients stand still under faults".to_owned());
        }
        self.cluster.bring_back();
        self.stop.set(true);
        for task in tasks {
            if timeout(ROUND_MAX, task).await.is_err() {
                self.violate("an operation does not end after the faults".to_owned());
            }
        }
        if self.violation.borrow().is_none() {
            self.healed().await;
        }
        if self.violation.borrow().is_none() {
            self.read_all().await;
        }
    }

    async fn faults(&self, settings: Settings) {
        let touched: Vec<u32> = {
            let mut servers: Vec<u32> = (1..=settings.servers).collect();
            let count = settings.scheme.parity();
            (0..count)
                .map(|_| servers.swap_remove(self.random(servers.len() as u64) as usize))
                .collect()
        };
        for _ in 0..3 + self.random(5) {
            sleep(Duration::from_millis(self.random(1500))).await;
            let any = 1 + self.random(u64::from(settings.servers)) as u32;
            let role = [Role::Coordinator, Role::Io, Role::Lc][self.random(3) as usize];
            let one = touched.get(self.random(touched.len().max(1) as u64) as usize).copied();
            match (self.random(6), one) {
                (0, Some(server)) => {
                    self.reach("power cut");
                    self.cluster.power_cut(server);
                    sleep(Duration::from_millis(self.random(6000))).await;
                    self.simulation.machine(server).power_on();
                    self.cluster.start_server(server);
                }
                (1, Some(server)) => {
                    self.reach("partition");
                    for other in (1..=settings.servers).chain(CLIENTS..CLIENTS + settings.clients) {
                        match self.random(3) {
                            0 => self.simulation.partition(server, other),
                            1 => self.simulation.partition(other, server),
                            _ => self.simulation.partition_both(server, other),
                        }
                    }
                    sleep(Duration::from_millis(self.random(6000))).await;
                    self.simulation.heal_all();
                }
                (2, Some(server)) => {
                    self.reach("pause");
                    self.cluster.set_paused(server, role, true);
                    sleep(Duration::from_millis(self.random(5000))).await;
                    self.cluster.set_paused(server, role, false);
                }
                _ => {
                    self.reach(match role {
                        Role::Coordinator => "coordinator killed",
                        Role::Io => "I/O server killed",
                        Role::Lc => "LC killed",
                    });
                    self.cluster.kill(any, role);
                    sleep(Duration::from_millis(20 + self.random(400))).await;
                    self.cluster.start_process(any, role);
                }
            }
        }
    }

    async fn client(&self, number: u32) {
        let client = loop {
            match self.cluster.client(number).await {
                Ok(client) => break client,
                Err(_) if self.stop.get() => return,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        while !self.stop.get() {
            self.operation(&client, number).await;
            self.operations.set(self.operations.get() + 1);
            sleep(Duration::from_millis(self.random(30))).await;
        }
    }

    fn bytes(&self, length: u64) -> Vec<u8> {
        let mut word = self.simulation.random();
        let next = |_| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (word >> 56) as u8
        };
        (0..length).map(next).collect()
    }

    async fn operation(&self, client: &Client, number: u32) {
        let name = format!("/c{number}-f{}", self.random(4));
        match self.random(8) {
            0 | 1 => {
                let length = [0, 100, 4096, 5000, 100_000, 400_000][self.random(6) as usize];
                let bytes = self.bytes(length);
                let options = PutOptions { replace: true, ..PutOptions::default() };
                let put = client.put_bytes(&name, Bytes::from(bytes.clone()), options).await;
                self.note("put", &put);
                self.oracle.borrow_mut().changed(&name, put.is_ok(), |_| Some(bytes.clone()));
            }
            2 | 3 => self.write(client, &name).await,
            4 => {
                let removed = client.unlink(&name).await;
                self.note("unlink", &removed);
                let known = matches!(removed, Ok(()) | Err(Error::NotFound { .. }));
                self.oracle.borrow_mut().changed(&name, known, |_| None);
            }
            _ => {
                if let Some(found) = self.read(client, &name).await {
                    let checked = self.oracle.borrow_mut().read(&name, &found);
                    if let Err(wrong) = checked {
                        self.violate(wrong);
                    }
                }
            }
        }
    }

    /// Overwrites or extends a part of a file.
    async fn write(&self, client: &Client, name: &str) {
        let bytes = self.bytes(1 + self.random(9000));
        let file = match client.open(name).await {
            Ok(file) => file,
            // Nothing was changed.
            Err(_) => return,
        };
        let at = self.random(20_000);
        let written = file.write(at, Bytes::from(bytes.clone())).await;
        let flushed = match &written {
            Ok(()) => file.flush().await,
            Err(error) => Err(error.clone()),
        };
        self.note("write", &flushed);
        self.oracle.borrow_mut().changed(name, flushed.is_ok(), |old| {
            let mut content = old.clone()?;
            let end = at as usize + bytes.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[at as usize..end].copy_from_slice(&bytes);
            Some(content)
        });
    }

    fn note<T>(&self, what: &'static str, result: &Result<T, Error>) {
        match result {
            Ok(_) => self.reach(what),
            Err(error) if error.is_unavailable() => self.reach("outcome unknown"),
            Err(_) => {}
        }
    }

    /// `None` where it could not be read now.
    async fn read(&self, client: &Client, name: &str) -> Option<Content> {
        match client.get_bytes(name).await {
            Ok(bytes) => {
                self.reach("read");
                Some(Some(bytes.to_vec()))
            }
            Err(Error::NotFound { .. }) => Some(None),
            Err(error) => {
                if !error.is_unavailable() {
                    self.violate(error.to_string());
                }
                None
            }
        }
    }

    async fn healed(&self) {
        let healed = async {
            loop {
                match self.cluster.open_facts().await {
                    Some((0, 0)) => return,
                    Some((suspects, _)) if suspects > 0 => self.reach("repair"),
                    _ => {}
                }
                sleep(Duration::from_millis(500)).await;
            }
        };
        if timeout(HEAL_WAIT, healed).await.is_err() {
            let left = self.cluster.open_facts().await;
            self.violate(format!("not healed: (suspect, pending) facts left {left:?}"));
        }
    }

    async fn read_all(&self) {
        let Ok(client) = self.cluster.client(0).await else {
            self.violate("no client can connect after healing".to_owned());
            return;
        };
        let names = self.oracle.borrow().names();
        for name in names {
            match self.read(&client, &name).await {
                Some(found) => {
                    let checked = self.oracle.borrow_mut().read(&name, &found);
                    if let Err(wrong) = checked {
                        self.violate(format!("after healing: {wrong}"));
                    }
                }
                None => self.violate(format!("after healing: {name} cannot be read")),
            }
        }
    }
}

/// Longest round, in simulated time.
const ROUND_MAX: Duration = Duration::from_secs(300);

/// Longest healing, in simulated time.
const HEAL_WAIT: Duration = Duration::from_secs(120);
