//! Machines: a clock that drifts, disks, power.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use super::disk::SimDisk;
use super::network::Goodbye;
use super::process::ProcessState;
use crate::{Address, Env, Moment, WallTime};

/// A machine; clones share it.
#[derive(Clone)]
pub struct SimMachine {
    pub(super) state: Rc<MachineState>,
    shared: Rc<Shared>,
}

impl SimMachine {
    pub(super) fn of(shared: &Rc<Shared>, number: u32) -> Self {
        let known = shared.machines.borrow().get(&number).cloned();
        let state = known.unwrap_or_else(|| {
            let state = Rc::new(MachineState::new(number));
            shared.machines.borrow_mut().insert(number, state.clone());
            state
        });
        Self { state, shared: shared.clone() }
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.state.number
    }

    /// Its address with this port: 10.0.x.y of its number.
    #[must_use]
    pub fn address(&self, port: u16) -> Address {
        Address::Tcp(SocketAddr::new(address_of(self.state.number), port))
    }

    /// A world outside of every process that faults can hit, for the scenario itself; its tasks
    /// are those of the caller.
    #[must_use]
    pub fn env(&self) -> Env {
        ProcessState::new(&self.shared, &self.state, "scenario").env(&self.shared)
    }

    /// Adds a disk of `size` bytes that is found at `path`.
    pub fn add_disk(&self, path: impl AsRef<Path>, size: u64) -> SimDisk {
        let disk = SimDisk::new(&self.shared, self.state.number, size);
        self.state.disks.borrow_mut().insert(path.as_ref().to_owned(), disk.clone());
        disk
    }

    /// The disk at `path`.
    ///
    /// Errors: `NotFound`.
    pub fn disk(&self, path: impl AsRef<Path>) -> io::Result<SimDisk> {
        let disk = self.state.disks.borrow().get(path.as_ref()).cloned();
        disk.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// How much faster its clock of leases runs, in parts per billion; may be negative. It does not
    /// change timers, which are tokio's.
    pub fn set_drift(&self, parts_per_billion: i64) {
        self.state.rebase();
        self.state.drift_ppb.set(parts_per_billion);
    }

    /// Moves its time of day.
    pub fn jump_wall_time(&self, seconds: i64) {
        self.state.wall_offset_seconds.set(self.state.wall_offset_seconds.get() + seconds);
    }

    /// Takes the power away: all processes end without a word to anybody, disks keep what was
    /// synced and a random part of the rest.
    pub fn power_cut(&self) {
        let processes: Vec<_> = self.shared.processes.borrow().clone();
        self.state.is_up.set(false);
        self.shared.trace_event("power cut", u64::from(self.state.number), 0, &[], 0);
        for process in processes.iter().filter(|process| process.machine.number == self.number()) {
            process.kill(&self.shared, Goodbye::Silence);
        }
        for disk in self.state.disks.borrow().values() {
            disk.power_cut();
        }
    }

    /// Gives the power back; processes are started by the scenario.
    pub fn power_on(&self) {
        self.state.is_up.set(true);
        self.state.base.set((Instant::now(), BOOT_NANOS));
        self.shared.network.changed();
    }

    /// Whether it has power.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state.is_up.get()
    }
}

pub(super) struct MachineState {
    pub(super) number: u32,
    pub(super) is_up: Cell<bool>,
    disks: RefCell<BTreeMap<PathBuf, SimDisk>>,
    /// At this time its clock showed that many nanoseconds.
    base: Cell<(Instant, u64)>,
    drift_ppb: Cell<i64>,
    wall_offset_seconds: Cell<i64>,
    begin: Instant,
    pub(super) next_port: Cell<u16>,
}

impl MachineState {
    fn new(number: u32) -> Self {
        assert!((1..1 << 16).contains(&number), "machines count from 1");
        let begin = Instant::now();
        // Machines have been up for different times, so that nobody compares their clocks.
        let nanos = BOOT_NANOS + u64::from(number) * 1_000_003_000_000;
        Self {
            number,
            is_up: Cell::new(true),
            disks: RefCell::default(),
            base: Cell::new((begin, nanos)),
            drift_ppb: Cell::new(0),
            wall_offset_seconds: Cell::new(0),
            begin,
            next_port: Cell::new(FIRST_FREE_PORT),
        }
    }

    pub(super) fn now(&self) -> Moment {
        let (since, nanos) = self.base.get();
        let elapsed = i128::try_from(since.elapsed().as_nanos()).expect("a simulation is short");
        let drifted = elapsed + elapsed * i128::from(self.drift_ppb.get()) / 1_000_000_000;
        Moment(nanos + u64::try_from(drifted).expect("a clock does not run backwards"))
    }

    fn rebase(&self) {
        self.base.set((Instant::now(), self.now().0));
    }

    pub(super) fn wall_time(&self) -> WallTime {
        let elapsed = self.begin.elapsed();
        let seconds = i64::try_from(elapsed.as_secs()).expect("a simulation is short");
        WallTime {
            seconds: WALL_BEGIN + seconds + self.wall_offset_seconds.get(),
            nanoseconds: elapsed.subsec_nanos(),
        }
    }

    /// The disk that holds `path`, and the path in it.
    pub(super) fn find_disk(&self, path: &Path) -> io::Result<(SimDisk, String)> {
        let disks = self.disks.borrow();
        let mut found = None;
        for (at, disk) in &*disks {
            // The longest wins, and it comes last.
            if let Ok(inner) = path.strip_prefix(at) {
                found = inner.to_str().map(|inner| (disk.clone(), inner.to_owned()));
            }
        }
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The address of a machine.
pub(super) fn address_of(number: u32) -> IpAddr {
    let [_, _, high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 0, high, low).into()
}

/// The machine that an address names, seen from `from`.
pub(super) fn machine_of(address: IpAddr, from: u32) -> Option<u32> {
    match address {
        IpAddr::V4(v4) if v4.is_loopback() || v4.is_unspecified() => Some(from),
        IpAddr::V4(v4) => match v4.octets() {
            [10, 0, high, low] => Some(u32::from_be_bytes([0, 0, high, low])),
            _ => None,
        },
        IpAddr::V6(v6) => (v6.is_loopback() || v6.is_unspecified()).then_some(from),
    }
}

/// A machine has run for some seconds when its first process starts.
const BOOT_NANOS: u64 = 10_000_000_000;

/// Time of day at the beginning: some day in 2026.
const WALL_BEGIN: i64 = 1_790_000_000;

const FIRST_FREE_PORT: u16 = 40_000;

/// What is left of the wait for a machine that does not answer.
pub(super) const CONNECT_WAIT: Duration = Duration::from_secs(2);
