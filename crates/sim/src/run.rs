//! One seed: clients at work, faults beside them, then healing, then everything is checked.
//! # Theory
//! ```text
//! round:  clients work | faults, several at once (`faults.rs`)
//!         faults stop, everything comes back
//!         no suspect and no pending fact within HEAL_WAIT, everything as the oracle knows it,
//!         parity of every row right, no portion that nobody knows (`checks.rs`)
//! ```
//! The next round begins only when all is healed: more is not promised.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use braid_env::simulated::{self, SimProcess, Simulation};
use braid_terms::RaidScheme;
use tokio::time::{sleep, timeout};

use crate::cluster::{CLIENTS, Cluster};
use crate::faults::{RoundKind, Rules};
use crate::oracle::{Oracle, Process};
use crate::planted::Planted;

/// How a seed is run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Servers.
    pub servers: u32,
    /// Scheme of files.
    pub scheme: RaidScheme,
    /// Clients; they share all names.
    pub clients: u32,
    /// Operations of all clients together, at least.
    pub operations: u64,
    /// Rounds of faults.
    pub rounds: u32,
    /// Whether what happens is printed.
    pub trace: bool,
    /// The bug that is planted; only in builds with the feature `planted`.
    pub planted: Option<Planted>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            servers: 6,
            scheme: RaidScheme::Rs { data: 4, parity: 2 },
            clients: 3,
            operations: 200,
            rounds: 2,
            trace: false,
            planted: None,
        }
    }
}

impl Settings {
    /// So many servers, with a scheme that they can keep.
    #[must_use]
    pub fn with_servers(self, servers: u32) -> Self {
        let scheme = match servers {
            0..6 => RaidScheme::Raid5 { data: 2 },
            _ => RaidScheme::Rs { data: 4, parity: 2 },
        };
        Self { servers, scheme, ..self }
    }

    /// One of the clusters that are promised to work, by the seed's number: 3 to 12 servers, each family
    /// of schemes, none to three lost portions.
    #[must_use]
    pub fn mixed(self, seed: u64) -> Self {
        let place = seed % MIXED.len() as u64;
        let (servers, scheme) = MIXED[usize::try_from(place).expect("below a length")];
        Self { servers, scheme, ..self }
    }

    /// The command that runs a seed again.
    #[must_use]
    pub fn command(&self, seed: u64) -> String {
        let Self { servers, scheme, clients, operations, rounds, .. } = self;
        let planted = self.planted.map_or_else(String::new, |p| format!(" --plant {}", p.name));
        format!(
            "cargo xtask sim --seed {seed} --servers {servers} --scheme {scheme} --clients {clients} --ops {operations} --rounds {rounds}{planted}"
        )
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

/// What all parts of a run share.
#[derive(Clone)]
pub struct World {
    pub simulation: Simulation,
    pub cluster: Rc<Cluster>,
    pub oracle: Rc<RefCell<Oracle>>,
    pub clients: Rc<RefCell<BTreeMap<u32, SimProcess>>>,
    pub operations: Rc<Cell<u64>>,
    pub violation: Rc<RefCell<Option<String>>>,
    /// Clients end after what they do now.
    pub stop: Rc<Cell<bool>>,
    /// The site lost its power in this round.
    pub was_cut: Rc<Cell<bool>>,
    /// A directory began anew after one, in this round or before: it does not tell who made it.
    pub has_unmade: Rc<Cell<bool>>,
    /// Some clients keep copies of what owners say, as mounts do. Not where the site loses its power: what
    /// was not synced may be gone while they still have it.
    pub keeps_copies: Rc<Cell<bool>>,
    /// Bits were flipped in files of disks.
    pub has_rotted: Rc<Cell<bool>>,
    /// Writes to some files are answered from memory, or from local journals.
    pub memory: Rc<Cell<bool>>,
    /// From local journals.
    pub local: Rc<Cell<bool>>,
    reached: Rc<RefCell<BTreeMap<&'static str, u64>>>,
    trace: bool,
    /// The client process that this is of; each has its own.
    pub process: Process,
}

/// Runs one seed in a world of its own.
#[must_use]
pub fn run_seed(seed: u64, settings: Settings) -> Outcome {
    #[cfg(feature = "planted")]
    braid_terms::plant(settings.planted.map(|planted| planted.name));
    simulated::run(seed, async |simulation: Simulation| {
        let cluster = Cluster::start(&simulation, settings.servers, settings.scheme).await;
        let world = World {
            cluster: Rc::new(cluster),
            oracle: Rc::default(),
            clients: Rc::default(),
            operations: Rc::default(),
            violation: Rc::default(),
            stop: Rc::default(),
            was_cut: Rc::default(),
            has_unmade: Rc::default(),
            keeps_copies: Rc::default(),
            has_rotted: Rc::default(),
            memory: Rc::new(Cell::new(seed.is_multiple_of(3))),
            local: Rc::new(Cell::new(seed.is_multiple_of(6))),
            reached: Rc::default(),
            trace: settings.trace,
            process: 0,
            simulation,
        };
        world.prepare().await;
        for round in 0..settings.rounds {
            if world.violation.borrow().is_some() {
                break;
            }
            world.round(settings, round).await;
        }
        for (what, count) in braid_terms::take_reached() {
            *world.reached.borrow_mut().entry(what).or_insert(0) += count;
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
    pub fn reach(&self, what: &'static str) {
        *self.reached.borrow_mut().entry(what).or_insert(0) += 1;
    }

    pub fn random(&self, bound: u64) -> u64 {
        self.simulation.random_below(bound)
    }

    /// Says what happens, where somebody wants to know.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            let tick = self.oracle.borrow_mut().now();
            println!("{:>9.3} s, {tick:>5}: {}", self.simulation.elapsed().as_secs_f64(), what());
        } else {
            // The same ticks with and without.
            self.oracle.borrow_mut().now();
        }
    }

    pub fn violate(&self, what: String) {
        self.tell(|| format!("VIOLATION: {what}"));
        self.violation.borrow_mut().get_or_insert(what);
        self.stop.set(true);
    }

    async fn round(&self, settings: Settings, round: u32) {
        let rules = self.draw_rules(settings, round + 1 == settings.rounds);
        self.tell(|| format!("round {round}: {rules:?}"));
        self.stop.set(false);
        self.was_cut.set(false);
        self.keeps_copies.set(rules.kind != RoundKind::Site);
        let target = settings.operations * u64::from(round + 1) / u64::from(settings.rounds);
        (0..settings.clients).for_each(|number| self.start_client(number));
        if timeout(ROUND_MAX, self.under_faults(settings, &rules, target)).await.is_err() {
            self.violate("the clients stand still under faults".to_owned());
        }
        self.stop.set(true);
        self.end_faults(settings);
        let ended = async {
            while self.clients.borrow().values().any(SimProcess::is_alive) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(ROUND_MAX, ended).await.is_err() {
            self.violate("an operation does not end after the faults".to_owned());
        }
        if self.violation.borrow().is_none() {
            self.check_healed(settings).await;
        }
    }

    /// Ends early where something was wrong.
    async fn under_faults(&self, settings: Settings, rules: &Rules, target: u64) {
        let work = async {
            while self.operations.get() < target {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let both = async { tokio::join!(self.faults(settings, rules), work) };
        let wrong = async {
            while self.violation.borrow().is_none() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            _ = both => {}
            () = wrong => {}
        }
    }

    /// A client in a process of its own.
    pub fn start_client(&self, number: u32) {
        let machine = self.simulation.machine(CLIENTS + number);
        let mut world = self.clone();
        world.process = self.oracle.borrow_mut().now();
        let main = async move |env| world.client(env, number).await;
        let process = self.simulation.spawn_process(&machine, "client", main);
        self.clients.borrow_mut().insert(number, process);
    }
}

/// Servers and the scheme of their files. Their number has no common factor with those by which seeds
/// choose something else.
const MIXED: [(u32, RaidScheme); 13] = [
    (3, RaidScheme::Raid5 { data: 2 }),
    (3, RaidScheme::Raid1 { copies: 2 }),
    (3, RaidScheme::Raid0 { data: 2 }),
    (3, RaidScheme::Raid1 { copies: 3 }),
    (4, RaidScheme::Raid6 { data: 2 }),
    (5, RaidScheme::Raid5 { data: 4 }),
    (5, RaidScheme::Rs { data: 3, parity: 2 }),
    (6, RaidScheme::Rs { data: 4, parity: 2 }),
    (7, RaidScheme::Rs { data: 4, parity: 3 }),
    (8, RaidScheme::Raid6 { data: 4 }),
    (9, RaidScheme::Raid0 { data: 4 }),
    (10, RaidScheme::Rs { data: 8, parity: 2 }),
    (12, RaidScheme::Rs { data: 4, parity: 2 }),
];

/// Longest round, in simulated time.
const ROUND_MAX: Duration = Duration::from_secs(300);
