//! What all coordinators know alike: the map, incarnations, number ranges, facts.
//!
//! # Theory
//! The state changes by committed commands only, in their order; it has no clock and no randomness,
//! so every member has the same state after the same entries. Leases and grants are not here: they
//! belong to the elected one alone (`global_controller.rs`).
//! # Invariants
//! C1 An incarnation, a device number, a server number and a fact number are given once, ever.
//! C2 An LCC incarnation is valid exactly while the map names it.
//! C3 A mount is in the map exactly while its LC is valid.
//! C4 Facts of an invalid incarnation are refused from the entry on that made it invalid (O-5).
//! # Source
//! O-2, O-3, O-5, F-1, F-3, S-7.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use braid_terms::{
    ClusterMap, DeviceId, DiskId, DiskState, GrantNumber, GroupLayout, Incarnation, LccId,
    NUMBER_RANGE_SIZE, Policy, ServerId, ServerInfo, ServerState,
};
use braid_wire::coordinator::{CoordinatorRefusal, FactCounts, FactRefusal, MapChange};
use serde::{Deserialize, Serialize};

use crate::command::{Command, Outcome};
use crate::facts::FactTable;

/// The replicated state.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StateMachine {
    map: ClusterMap,
    /// The last incarnation given.
    last_incarnation: u64,
    /// The last server number given.
    last_server: u32,
    /// All device numbers up to this one are leased.
    last_device: u64,
    /// Ranges of valid LCCs, by their first number.
    ranges: BTreeMap<DeviceId, NumberRange>,
    facts: FactTable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct NumberRange {
    lcc: Incarnation,
    grant: GrantNumber,
}

impl StateMachine {
    /// Carries out one committed command.
    pub fn apply(&mut self, command: Command) -> Outcome {
        let done = match command {
            Command::Begin { map } => self.begin(*map),
            Command::RegisterLc { server, lccs } => self.register_lc(server, lccs),
            Command::RegisterMount { name, lc_address, lccs } => {
                self.register_mount(name, lc_address, lccs)
            }
            Command::RegisterLcc { lc, index } => self.register_lcc(lc, index),
            Command::UnregisterLc { lc } => self.unregister_lc(lc),
            Command::Invalidate { lc } => {
                self.invalidate(lc);
                Ok(Outcome::Done)
            }
            Command::RegisterIo { disk, identity } => self.register_io(disk, identity),
            Command::LeaseNumbers { lcc, grant } => self.lease_numbers(lcc, grant),
            Command::RecordFacts { lcc, facts } => {
                let is_valid = self.is_valid_lcc(lcc);
                let record = |(grant, kind)| match is_valid {
                    true => self.facts.record(lcc, grant, kind),
                    false => Err(FactRefusal::InvalidIncarnation),
                };
                Ok(Outcome::Recorded(facts.into_iter().map(record).collect()))
            }
            Command::CloseFacts { lcc, facts } => {
                let is_valid =
                    self.is_valid_lcc(lcc) || braid_terms::planted!("F-1/a-former-owner-may-close");
                let close = |(number, grant)| match is_valid {
                    true => self.facts.close(number, grant),
                    false => Err(FactRefusal::InvalidIncarnation),
                };
                Ok(Outcome::Closed(facts.into_iter().map(close).collect()))
            }
            Command::CloseSweep { lcc, dead } => self.close_sweep(lcc, dead),
            Command::SetRoot { layout } => self.set_root(*layout),
            Command::Change(change) => self.change(*change),
        };
        done.unwrap_or_else(Outcome::Refused)
    }

    fn begin(&mut self, map: ClusterMap) -> Done {
        if self.map.version == 0 {
            let incarnations = map
                .servers
                .values()
                .flat_map(|server| server.lccs.iter().copied().flatten().chain(server.lc));
            let disks = map.disks.values().filter_map(|disk| disk.incarnation);
            let last = incarnations.chain(disks).map(|incarnation| incarnation.0).max();
            self.last_incarnation = last.unwrap_or(0);
            self.last_server = map.servers.keys().map(|server| server.0).max().unwrap_or(0);
            self.last_device = DEVICES_RESERVED;
            self.map = map;
            self.map.version = self.map.version.max(1);
        }
        Ok(Outcome::Done)
    }

    fn next_incarnation(&mut self) -> Incarnation {
        self.last_incarnation += 1;
        Incarnation(self.last_incarnation)
    }

    /// The former incarnations of the server are invalid from here on. Source: O-5, F-3.
    fn register_lc(&mut self, server: ServerId, lccs: u8) -> Done {
        let Some(info) = self.map.servers.get(&server) else {
            return Err(unknown(format!("server {server} is not in the map")));
        };
        self.end_lccs(&info.lccs.clone());
        let lc = self.next_incarnation();
        let new: Vec<_> = (0..lccs.max(1)).map(|_| self.next_incarnation()).collect();
        new.iter().for_each(|lcc| self.facts.record_pending(*lcc));
        if let Some(info) = self.map.servers.get_mut(&server) {
            info.lc = Some(lc);
            info.lccs = new.iter().copied().map(Some).collect();
        }
        self.map.version += 1;
        Ok(Outcome::Registered { incarnation: lc, lccs: new })
    }

    /// The same name at the same address is the same mount: a request may be sent again. What a lost
    /// answer leaves ends with its first lease.
    fn register_mount(&mut self, name: String, lc_address: SocketAddr, lccs: u8) -> Done {
        let mut servers = self.map.servers.values();
        let is_it = |server: &&ServerInfo| {
            server.is_mount && (&server.name, server.lc_address) == (&name, lc_address)
        };
        if let Some(known) = servers.find(is_it).map(|server| server.id) {
            return self.register_lc(known, lccs);
        }
        self.last_server += 1;
        let id = ServerId(self.last_server);
        let server = ServerInfo {
            id,
            name,
            lc_address,
            coordinator_address: lc_address,
            main_address: lc_address,
            state: ServerState::InUse,
            is_mount: true,
            lc: None,
            lccs: Vec::new(),
        };
        self.map.servers.insert(id, server);
        self.register_lc(id, lccs)
    }

    fn register_lcc(&mut self, lc: Incarnation, index: u8) -> Done {
        let server = self.server_of_lc(lc).ok_or(CoordinatorRefusal::InvalidIncarnation)?;
        let old = self.map.servers[&server].lccs.get(usize::from(index)).copied();
        let Some(old) = old else {
            return Err(bad(format!("the LC has no LCC {index}")));
        };
        self.end_lccs(&[old]);
        let new = self.next_incarnation();
        self.facts.record_pending(new);
        let info = self.map.servers.get_mut(&server);
        if let Some(place) = info.and_then(|info| info.lccs.get_mut(usize::from(index))) {
            *place = Some(new);
        }
        self.map.version += 1;
        Ok(Outcome::Registered { incarnation: lc, lccs: vec![new] })
    }

    /// A clean end leaves nothing pending.
    fn unregister_lc(&mut self, lc: Incarnation) -> Done {
        let lccs = self.lccs_of(lc);
        if !self.invalidate(lc) {
            return Err(CoordinatorRefusal::InvalidIncarnation);
        }
        lccs.into_iter().for_each(|lcc| self.facts.close_pending(lcc));
        Ok(Outcome::Done)
    }

    /// `false` where it was not valid any more.
    fn invalidate(&mut self, lc: Incarnation) -> bool {
        let Some(server) = self.server_of_lc(lc) else { return false };
        if let Some(info) = self.map.servers.get_mut(&server) {
            info.lc = None;
            let lccs = std::mem::take(&mut info.lccs);
            info.lccs = vec![None; lccs.len()];
            let is_mount = info.is_mount;
            self.end_lccs(&lccs);
            if is_mount {
                self.map.servers.remove(&server);
            }
        }
        self.map.version += 1;
        true
    }

    /// Their numbers are grantable like any others from here on.
    fn end_lccs(&mut self, lccs: &[Option<Incarnation>]) {
        self.ranges.retain(|_, range| !lccs.contains(&Some(range.lcc)));
    }

    fn register_io(&mut self, disk: DiskId, identity: u128) -> Done {
        let incarnation = Incarnation(self.last_incarnation + 1);
        let Some(info) = self.map.disks.get_mut(&disk) else {
            return Err(unknown(format!("disk {disk} is not in the map")));
        };
        if info.identity != identity {
            return Err(unknown(format!("disk {disk} has another identity")));
        }
        if info.state == DiskState::Failed {
            return Err(unknown(format!("disk {disk} was declared lost")));
        }
        info.incarnation = Some(incarnation);
        self.last_incarnation = incarnation.0;
        self.map.version += 1;
        Ok(Outcome::Registered { incarnation, lccs: Vec::new() })
    }

    fn lease_numbers(&mut self, lcc: Incarnation, grant: GrantNumber) -> Done {
        if !self.is_valid_lcc(lcc) {
            return Err(CoordinatorRefusal::InvalidIncarnation);
        }
        let Some(last) = self.last_device.checked_add(NUMBER_RANGE_SIZE) else {
            return Err(bad("all device numbers are given".to_owned()));
        };
        let first = DeviceId(self.last_device + 1);
        self.last_device = last;
        self.ranges.insert(first, NumberRange { lcc, grant });
        Ok(Outcome::Numbers { first, grant })
    }

    fn close_sweep(&mut self, lcc: Incarnation, dead: Incarnation) -> Done {
        if !self.is_valid_lcc(lcc) {
            return Err(CoordinatorRefusal::InvalidIncarnation);
        }
        if self.is_valid_lcc(dead) {
            return Err(bad(format!("LCC incarnation {dead} is valid")));
        }
        self.facts.close_pending(dead);
        Ok(Outcome::Done)
    }

    fn set_root(&mut self, layout: GroupLayout) -> Done {
        layout.check().map_err(|error| bad(error.to_string()))?;
        if self.map.root.is_none() {
            self.map.root = Some(layout);
            self.map.version += 1;
        }
        Ok(Outcome::Done)
    }

    fn change(&mut self, change: MapChange) -> Done {
        match change {
            MapChange::SetPolicy(policy) => self.set_policy(policy)?,
            MapChange::UnsetPolicy { name } => {
                let Some(at) = self.map.policies.iter().position(|policy| policy.name == name)
                else {
                    return Err(unknown(format!("there is no policy {name}")));
                };
                self.map.policies.remove(at);
            }
            MapChange::SetDiskState { disk, state } => {
                let Some(info) = self.map.disks.get_mut(&disk) else {
                    return Err(unknown(format!("disk {disk} is not in the map")));
                };
                if info.state == DiskState::Failed && state != DiskState::Failed {
                    return Err(bad(format!("disk {disk} was declared lost")));
                }
                info.state = state;
                if state == DiskState::Failed {
                    info.incarnation = None;
                }
            }
            MapChange::SetServerState { server, state } => {
                let Some(info) = self.map.servers.get_mut(&server) else {
                    return Err(unknown(format!("server {server} is not in the map")));
                };
                info.state = state;
            }
        }
        self.map.version += 1;
        Ok(Outcome::Done)
    }

    fn set_policy(&mut self, policy: Policy) -> Result<(), CoordinatorRefusal> {
        let policies = &mut self.map.policies;
        match policies.iter().position(|known| known.name == policy.name) {
            Some(at) => policies[at] = policy,
            None if policies.len() < POLICIES_MAX => policies.push(policy),
            None => return Err(bad(format!("there are {POLICIES_MAX} policies already"))),
        }
        Ok(())
    }

    /// The map.
    #[must_use]
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// The open facts.
    #[must_use]
    pub fn facts(&self) -> &FactTable {
        &self.facts
    }

    /// Open facts by kind.
    #[must_use]
    pub fn fact_counts(&self) -> FactCounts {
        self.facts.counts(|lcc| self.is_valid_lcc(lcc))
    }

    /// The last incarnation given.
    #[must_use]
    pub fn last_incarnation(&self) -> Incarnation {
        Incarnation(self.last_incarnation)
    }

    /// The server whose valid LC has this incarnation.
    #[must_use]
    pub fn server_of_lc(&self, lc: Incarnation) -> Option<ServerId> {
        let mut servers = self.map.servers.values();
        servers.find(|server| server.lc == Some(lc)).map(|server| server.id)
    }

    /// Incarnations of a valid LC's LCCs.
    #[must_use]
    pub fn lccs_of(&self, lc: Incarnation) -> Vec<Incarnation> {
        let server = self.server_of_lc(lc);
        let info = server.and_then(|server| self.map.servers.get(&server));
        info.into_iter().flat_map(|info| info.lccs.iter().copied().flatten()).collect()
    }

    /// Where a valid LCC is, and its LC's incarnation.
    #[must_use]
    pub fn find_lcc(&self, lcc: Incarnation) -> Option<(LccId, Incarnation)> {
        self.map.servers.values().find_map(|server| {
            let index = server.lccs.iter().position(|known| *known == Some(lcc))?;
            let id = LccId { server: server.id, index: u8::try_from(index).ok()? };
            Some((id, server.lc?))
        })
    }

    /// Whether an LCC incarnation is valid.
    #[must_use]
    pub fn is_valid_lcc(&self, lcc: Incarnation) -> bool {
        self.find_lcc(lcc).is_some()
    }

    /// The valid LCC that leased the range of this number. Source: O-2.
    #[must_use]
    pub fn range_owner(&self, device: DeviceId) -> Option<Incarnation> {
        let (first, range) = self.ranges.range(..=device).next_back()?;
        (device.0 - first.0 < NUMBER_RANGE_SIZE).then_some(range.lcc)
    }
}

type Done = Result<Outcome, CoordinatorRefusal>;

fn unknown(what: String) -> CoordinatorRefusal {
    CoordinatorRefusal::Unknown { what }
}

fn bad(reason: String) -> CoordinatorRefusal {
    CoordinatorRefusal::BadRequest { reason }
}

/// Device numbers that are in no range: a device that the whole cluster knows by its number gets one
/// of them. Source: O-7.
const DEVICES_RESERVED: u64 = 15;

/// Every LC reads the list for each new file.
const POLICIES_MAX: usize = 1000;

#[cfg(test)]
#[path = "state_machine_test.rs"]
pub(crate) mod test;
