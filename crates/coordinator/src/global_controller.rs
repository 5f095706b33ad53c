//! The global controller: leases, grants, and who works what off. A core with explicit time.
//!
//! # Theory
//! The elected coordinator has one of these for its term and drops it when the term ends. Nothing
//! of it is in the log: leases run out by themselves, and owners tell what they own (O-3).
//! ```text
//! LC in the map  -Renew, quorum round-> lease until arrival + 3.06 s
//!                -no renewal-> lease over -somebody wants its groups, or 1.5 s more-> condemned
//!                -`Invalidate` committed-> out of the map: its groups may be granted
//! ```
//! | group                      | asked by its LCC     | asked by another                           |
//! |----------------------------|----------------------|--------------------------------------------|
//! | granted, holder valid      | a new grant          | the holder, or wait where its lease is over|
//! | in a live range            | as if unknown        | the LCC of the range, or wait likewise     |
//! | unknown, not all LCs heard | wait                 | wait                                       |
//! | unknown, all heard         | a new grant          | a new grant                                |
//! # Invariants
//! G1 A group is granted to another LCC only after its holder is out of the map, or released it.
//! G2 A condemned LC gets no lease any more.
//! G3 A device that nobody listed is granted only when every LC of the map has told its holdings to
//!    this term (O-3).
//! G4 Grant numbers of a term grow.
//! # Failure
//! A new term begins with all leases whole: one full lease from its election (O-4). After a time in
//! which it could not be asked (it was stopped, or without a quorum) it waits a moment before it
//! counts anybody as silent.
//! # Source
//! O-2, O-3, O-4, O-5, O-6, O-8, F-4. DESIGN-REASONS 6, 7, 10.
//! # Not here
//! Quorum rounds and proposals: `driver.rs`. What may be recorded: `facts.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use braid_env::Moment;
use braid_terms::{
    DeviceId, DiskId, DiskState, Fact, FactKind, FactNumber, GrantNumber, Incarnation, LEASE_MS,
    ServerId, sometimes,
};

use braid_wire::coordinator::{BAD_MAX, LiveDisk};
use braid_wire::io::{BadBlocks, ScrubStatus};

use crate::state_machine::StateMachine;

/// The global controller of one term.
#[derive(Clone, Debug)]
pub struct GlobalController {
    term: u64,
    /// Grants given in this term.
    counter: u64,
    /// Incarnations above it began in this term, so they own nothing that was not granted by us.
    last_incarnation_before: Incarnation,
    /// When it was asked anything last; several times a second while the group listens to it.
    present: Moment,
    /// The map for which the tables below were looked through.
    map_version: u64,
    lcs: BTreeMap<Incarnation, LcLease>,
    /// Valid LCCs, and of which LC.
    lccs: BTreeMap<Incarnation, Incarnation>,
    /// Until when clients may have copies of what owners gave that are gone: a copy lives no longer
    /// than the lease of the LC that gave it. Source: N-1.
    caches_until: Moment,
    ios: BTreeMap<Incarnation, IoLease>,
    holders: BTreeMap<DeviceId, Holding>,
    /// Numbers of live ranges that their LCC does not own any more.
    given_up: BTreeSet<DeviceId>,
    /// When we first knew that a pending LCC incarnation is invalid.
    dead_since: BTreeMap<Incarnation, Moment>,
    /// Where the next answer to an LC's `Work` begins.
    work_cursors: BTreeMap<Incarnation, FactNumber>,
}

#[derive(Clone, Copy, Debug)]
struct LcLease {
    until: Moment,
    /// Told what its LCCs own.
    told: bool,
    /// Its invalidation was ordered.
    condemned: bool,
    copies: Copies,
}

/// Whether clients may have copies that an LC gave. Source: N-1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Copies {
    /// It has not told this term: they may.
    Unknown,
    None,
    /// For the rest of the term: what it told before may come late.
    Some,
}

#[derive(Clone, Debug)]
struct IoLease {
    disk: DiskId,
    until: Moment,
    bytes_total: u64,
    /// None where it was not heard in this term.
    bytes_free: Option<u64>,
    scrub: Option<ScrubStatus>,
    bad: Vec<BadBlocks>,
}

#[derive(Clone, Copy, Debug)]
struct Holding {
    lcc: Incarnation,
    grant: GrantNumber,
}

/// What the driver is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Propose that this LC is invalid.
    Invalidate(Incarnation),
}

/// The answer to who owns a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ownership {
    /// The asking LCC does, from now on.
    Granted(GrantNumber),
    /// This LCC incarnation does.
    OwnedBy(Incarnation),
    /// Nobody is known to.
    Nobody,
    /// To be asked again after so many milliseconds.
    Wait(u32),
    /// The asking LCC is not valid.
    Invalid,
}

impl GlobalController {
    /// Begins a term, with the state as of its first entry.
    ///
    /// A former global controller answered renewals after a quorum round that began when they had
    /// arrived. Who elected us had heard of no such round for `silence`: so the last lease of before
    /// was asked for `silence` ago at the latest. Source: O-4.
    #[must_use]
    pub fn new(term: u64, now: Moment, silence: Duration, state: &StateMachine) -> Self {
        let mut new = Self {
            term,
            counter: 0,
            last_incarnation_before: state.last_incarnation(),
            present: now,
            map_version: 0,
            lcs: BTreeMap::new(),
            lccs: BTreeMap::new(),
            // Of LCs that went in an earlier term nothing is known.
            caches_until: now + lease_at_gc(),
            ios: BTreeMap::new(),
            holders: BTreeMap::new(),
            given_up: BTreeSet::new(),
            dead_since: BTreeMap::new(),
            work_cursors: BTreeMap::new(),
        };
        new.follow_map(now, state);
        let left = match braid_terms::planted!("O-4/a-new-term-counts-no-lease") {
            false => lease_at_gc().saturating_sub(silence),
            true => Duration::ZERO,
        };
        new.lcs.values_mut().for_each(|lease| lease.until = now + left);
        new
    }

    /// Takes over who is in the map and who is not any more.
    fn follow_map(&mut self, now: Moment, state: &StateMachine) {
        let was_away = now - std::mem::replace(&mut self.present, now) > AWAY;
        if was_away {
            let until = now + RETURN_WAIT;
            self.lcs.values_mut().for_each(|lease| lease.until = lease.until.max(until));
            self.ios.values_mut().for_each(|lease| lease.until = lease.until.max(until));
        }
        let map = state.map();
        if map.version == self.map_version {
            return;
        }
        self.map_version = map.version;
        let valid: BTreeSet<_> = map.servers.values().filter_map(|server| server.lc).collect();
        let lccs = map.servers.values().flat_map(|server| {
            let lccs = server.lccs.iter().copied().flatten();
            lccs.filter_map(|lcc| Some((lcc, server.lc?)))
        });
        let lccs: BTreeMap<_, _> = lccs.collect();
        // Copies that an LCC gave end with the lease that its LC had then, also where that lives on.
        let ended = self.lccs.iter().filter(|(lcc, _)| !lccs.contains_key(lcc));
        let leases = ended
            .filter_map(|(_, lc)| self.lcs.get(lc))
            .filter(|lease| lease.copies != Copies::None);
        let last = leases.map(|lease| lease.until).max();
        self.caches_until = self.caches_until.max(last.unwrap_or_default());
        self.lccs = lccs;
        self.lcs.retain(|lc, _| valid.contains(lc));
        self.work_cursors.retain(|lc, _| valid.contains(lc));
        for lc in valid {
            let told = lc > self.last_incarnation_before;
            let until = now + lease_at_gc();
            let lease = LcLease { until, told, condemned: false, copies: Copies::Unknown };
            self.lcs.entry(lc).or_insert(lease);
        }
        let disks = map.disks.values().filter_map(|disk| Some((disk.incarnation?, disk.id)));
        let valid: BTreeMap<_, _> = disks.collect();
        self.ios.retain(|io, _| valid.contains_key(io));
        for (io, disk) in valid {
            let until = now + UNHEARD_DISK;
            let (bytes_free, scrub, bad) = Default::default();
            let lease = IoLease { disk, until, bytes_total: 0, bytes_free, scrub, bad };
            self.ios.entry(io).or_insert(lease);
        }
        let lccs: BTreeSet<_> = self.lccs.keys().copied().collect();
        self.holders.retain(|_, holding| lccs.contains(&holding.lcc));
        self.given_up.retain(|group| state.range_owner(*group).is_some());
        let pending: BTreeSet<_> = state.facts().pending().collect();
        self.dead_since.retain(|dead, _| pending.contains(dead));
        for dead in pending.difference(&lccs) {
            self.dead_since.entry(*dead).or_insert(now);
        }
    }

    /// Looks whether anybody's lease is over for long; called several times a second.
    pub fn tick(&mut self, now: Moment, state: &StateMachine, effects: &mut Vec<Effect>) {
        self.follow_map(now, state);
        for (lc, lease) in &mut self.lcs {
            if lease.condemned || now >= lease.until + LEASE_OVERDUE {
                sometimes!("O-5: an LC was given up");
                lease.condemned = true;
                // Also again: a proposal may have come to nothing.
                effects.push(Effect::Invalidate(*lc));
            }
        }
    }

    /// Renews an LC's lease, which was asked for at `arrived`, after a quorum round begun later.
    ///
    /// With `no_copies` of this term it has given none to clients. Errors: the LC is invalid or about
    /// to be. Source: O-4, N-1.
    pub fn renew(
        &mut self,
        now: Moment,
        arrived: Moment,
        state: &StateMachine,
        lc: Incarnation,
        no_copies: Option<u64>,
    ) -> Result<Renewal, Refused> {
        self.follow_map(now, state);
        let Some(lease) = self.lcs.get_mut(&lc).filter(|lease| !lease.condemned) else {
            return Err(Refused);
        };
        lease.until = lease.until.max(arrived + lease_at_gc());
        lease.copies = match no_copies {
            None => Copies::Some,
            Some(term) if term == self.term && lease.copies == Copies::Unknown => Copies::None,
            Some(_) => lease.copies,
        };
        Ok(Renewal { tell_holdings: !lease.told })
    }

    /// Renews the lease of an I/O server.
    ///
    /// Errors: it is invalid.
    pub fn renew_io(
        &mut self,
        now: Moment,
        arrived: Moment,
        state: &StateMachine,
        io: Incarnation,
        mut news: DiskNews,
    ) -> Result<(), Refused> {
        self.follow_map(now, state);
        let lease = self.ios.get_mut(&io).ok_or(Refused)?;
        lease.until = arrived + lease_at_gc();
        lease.bytes_total = news.bytes_total;
        lease.bytes_free = Some(news.bytes_free);
        lease.scrub = Some(news.scrub);
        news.bad.truncate(BAD_MAX);
        lease.bad = news.bad;
        Ok(())
    }

    /// Asks for the owner of a group, to become it where there is none. Source: O-2, O-3.
    pub fn grant(
        &mut self,
        now: Moment,
        state: &StateMachine,
        lcc: Incarnation,
        group: DeviceId,
        effects: &mut Vec<Effect>,
    ) -> Ownership {
        self.follow_map(now, state);
        let Some((_, lc)) = state.find_lcc(lcc) else {
            return Ownership::Invalid;
        };
        if self.lcs.get(&lc).is_none_or(|lease| lease.condemned) {
            return Ownership::Invalid;
        }
        let owner = self.owner(state, group);
        match owner {
            Some(owner) if owner != lcc => {
                return self.point_to(now, state, owner, effects);
            }
            // It asks although it was granted: the answer was lost. Or it does not count a number
            // of its own range as its own: then somebody else may, whom we may not know yet.
            Some(_) if self.holders.contains_key(&group) => {}
            _ => {
                if let Some(wait) = self.wait_for_holdings(now, effects) {
                    return wait;
                }
            }
        }
        let grant = self.next_grant();
        self.holders.insert(group, Holding { lcc, grant });
        Ownership::Granted(grant)
    }

    /// An LC ends, and clients have given back all copies that it gave. Source: N-1.
    pub fn took_copies_back(&mut self, lc: Incarnation) {
        if let Some(lease) = self.lcs.get_mut(&lc) {
            lease.copies = Copies::None;
        }
    }

    /// How long clients may still have copies of what owners gave that are gone. Source: N-1.
    pub fn caches_left_ms(&mut self, now: Moment, state: &StateMachine) -> u32 {
        self.follow_map(now, state);
        milliseconds(self.caches_until - now)
    }

    /// Only looks who owns a group.
    pub fn find_owner(
        &mut self,
        now: Moment,
        state: &StateMachine,
        group: DeviceId,
        effects: &mut Vec<Effect>,
    ) -> Ownership {
        self.follow_map(now, state);
        match self.owner(state, group) {
            Some(owner) => self.point_to(now, state, owner, effects),
            None => Ownership::Nobody,
        }
    }

    /// The LCC that owns a group, as far as is known in this term.
    fn owner(&self, state: &StateMachine, group: DeviceId) -> Option<Incarnation> {
        let holder = self.holders.get(&group).map(|holding| holding.lcc);
        let of_range = || {
            let owner = state.range_owner(group).filter(|_| !self.given_up.contains(&group));
            owner.filter(|_| !braid_terms::planted!("O-2/numbers-of-ranges-are-free"))
        };
        let is_condemned = |lcc: &Incarnation| {
            let lease = self.lccs.get(lcc).and_then(|lc| self.lcs.get(lc));
            lease.is_some_and(|lease| lease.condemned)
        };
        let owner = holder.or_else(of_range).filter(|lcc| state.is_valid_lcc(*lcc));
        owner.filter(|lcc| {
            !braid_terms::planted!("O-5/grant-before-the-invalidation") || !is_condemned(lcc)
        })
    }

    /// The owner, while its LC's lease runs; after it the LC is condemned.
    fn point_to(
        &mut self,
        now: Moment,
        state: &StateMachine,
        owner: Incarnation,
        effects: &mut Vec<Effect>,
    ) -> Ownership {
        let lease = state.find_lcc(owner).and_then(|(_, lc)| Some((lc, self.lcs.get_mut(&lc)?)));
        match lease {
            Some((_, lease)) if now < lease.until && !lease.condemned => Ownership::OwnedBy(owner),
            Some((lc, lease)) => {
                if !lease.condemned {
                    lease.condemned = true;
                    effects.push(Effect::Invalidate(lc));
                }
                Ownership::Wait(WAIT_SHORT)
            }
            None => Ownership::Wait(WAIT_SHORT),
        }
    }

    /// While an LC of the map has not told what it owns, a device that nobody listed may be its.
    fn wait_for_holdings(&mut self, now: Moment, effects: &mut Vec<Effect>) -> Option<Ownership> {
        let mut wait = None;
        if braid_terms::planted!("O-3/grant-before-all-told") {
            return None;
        }
        for (lc, lease) in self.lcs.iter_mut().filter(|(_, lease)| !lease.told) {
            wait = Some(Ownership::Wait(WAIT_SHORT));
            sometimes!("O-3: a grant waited for what LCs own");
            if now >= lease.until && !lease.condemned {
                lease.condemned = true;
                effects.push(Effect::Invalidate(*lc));
            }
        }
        wait
    }

    /// A number above every earlier grant of the cluster. Source: O-2.
    pub fn next_grant(&mut self) -> GrantNumber {
        if !braid_terms::planted!("O-2/a-grant-number-comes-twice") {
            self.counter += 1;
        }
        GrantNumber { term: self.term, counter: self.counter }
    }

    /// Takes over what an LC says that its LCCs own. Source: O-3.
    ///
    /// Errors: the LC is invalid, or speaks of another term.
    pub fn holdings(
        &mut self,
        now: Moment,
        state: &StateMachine,
        lc: Incarnation,
        told: &Told<'_>,
    ) -> Result<(), Refused> {
        self.follow_map(now, state);
        let lease = self.lcs.get_mut(&lc).filter(|lease| !lease.condemned).ok_or(Refused)?;
        if told.term != self.term {
            return Err(Refused);
        }
        lease.told |= told.last;
        let server = state.server_of_lc(lc).and_then(|server| state.map().servers.get(&server));
        let lccs = server.map_or(&[][..], |server| &server.lccs);
        for (group, grant, index) in told.groups {
            let Some(lcc) = lccs.get(usize::from(*index)).copied().flatten() else { continue };
            let holding = Holding { lcc, grant: *grant };
            let known = self.holders.entry(*group).or_insert(holding);
            if known.lcc != lcc {
                tracing::error!(%group, ?known, ?holding, "a group has two holders");
            }
            if known.grant < *grant {
                *known = holding;
            }
        }
        Ok(())
    }

    /// The LCC owns these no more. A later grant of the same group stays. Source: O-6.
    pub fn release(
        &mut self,
        state: &StateMachine,
        lcc: Incarnation,
        groups: &[(DeviceId, GrantNumber)],
    ) {
        for (group, grant) in groups {
            let held = self.holders.get(group);
            let is_late = |held: &Holding| {
                *grant < held.grant && !braid_terms::planted!("O-6/a-late-release-counts")
            };
            if held.is_some_and(|held| held.lcc == lcc && !is_late(held)) {
                self.holders.remove(group);
                // Whoever leased its number has not had it since it was granted.
                if state.range_owner(*group).is_some() {
                    self.given_up.insert(*group);
                }
            }
        }
    }

    /// The LCC owns these numbers of its ranges no more.
    pub fn give_up(&mut self, state: &StateMachine, lcc: Incarnation, groups: &[DeviceId]) {
        for group in groups {
            if state.range_owner(*group) == Some(lcc) {
                self.given_up.insert(*group);
            }
        }
    }

    /// Whether the pending fact of a dead LCC may be closed: one lease after we knew. Source: O-8.
    pub fn may_close_sweep(
        &mut self,
        now: Moment,
        state: &StateMachine,
        dead: Incarnation,
    ) -> Result<(), u32> {
        self.follow_map(now, state);
        let since = self.dead_since.get(&dead).copied().unwrap_or_default();
        let left = lease_at_gc().saturating_sub(now - since);
        if left.is_zero() { Ok(()) } else { Err(milliseconds(left).clamp(WAIT_SHORT, 500)) }
    }

    /// What this LC is to work off now. Source: F-4, O-8.
    pub fn work(&mut self, now: Moment, state: &StateMachine, lc: Incarnation) -> Work {
        self.follow_map(now, state);
        let mut live: Vec<Incarnation> = Vec::new();
        for (other, lease) in &self.lcs {
            if now < lease.until && !lease.condemned {
                live.push(*other);
            }
        }
        if !live.contains(&lc) {
            return Work::default();
        }
        // A mount's way to the disks is not ours to load; it looks after what it owns.
        let is_mount = |lc: &Incarnation| {
            let server = state.server_of_lc(*lc);
            server.is_some_and(|server| state.map().servers[&server].is_mount)
        };
        let servers: Vec<_> = live.iter().copied().filter(|lc| !is_mount(lc)).collect();
        let chosen = |number: u64| {
            let count = servers.len().max(1) as u64;
            servers.get(usize::try_from(mix(number) % count).unwrap_or(0)).copied()
        };
        let mut lc_of = BTreeMap::new();
        for server in state.map().servers.values() {
            for lcc in server.lccs.iter().flatten() {
                lc_of.insert(*lcc, server.lc);
            }
        }
        let is_mine = |group: DeviceId| {
            let owner = self.owner(state, group).and_then(|owner| lc_of.get(&owner).copied());
            owner.flatten().filter(|owner| live.contains(owner)).or_else(|| chosen(group.0))
                == Some(lc)
        };
        let disks: BTreeSet<_> = self.live_disks(now, state).map(|live| live.disk).collect();
        let can_work = |fact: &Fact| match &fact.kind {
            FactKind::Pending { .. } => false,
            FactKind::Suspect { layout, slot, .. } => {
                disks.contains(&layout.disk(*slot)) && is_mine(layout.group())
            }
            FactKind::LocalCopy { server, .. } => {
                state.map().servers.get(server).and_then(|server| server.lc) == Some(lc)
            }
        };
        // Each answer goes on where the last one ended, so that a fact that cannot be worked off
        // does not keep others waiting.
        let begin = self.work_cursors.get(&lc).copied().unwrap_or_default();
        let facts = state.facts();
        let behind = facts.above(begin);
        let before = facts.above(FactNumber(0)).take_while(|fact| fact.number <= begin);
        let mut work = Work::default();
        let mut cursor = FactNumber(0);
        for (scanned, fact) in behind.chain(before).enumerate() {
            if scanned == WORK_SCAN_MAX || work.facts.len() == WORK_MAX {
                break;
            }
            cursor = fact.number;
            if can_work(fact) {
                work.facts.push(fact.clone());
            }
        }
        let is_due = |dead: Incarnation, since: Moment| {
            now - since >= lease_at_gc() && facts.is_pending(dead) && chosen(dead.0) == Some(lc)
        };
        let due = self.dead_since.iter().filter(|(dead, since)| is_due(**dead, **since));
        work.sweeps = due.map(|(dead, _)| *dead).take(SWEEPS_MAX).collect();
        let heard = self.ios.values().filter(|io| now < io.until);
        let found = heard.flat_map(|io| io.bad.iter().map(move |bad| (io.disk, bad)));
        let is_its = |disk: DiskId, bad: &BadBlocks| {
            bad.layout.check().is_ok()
                && (1..=bad.layout.disks.len()).contains(&usize::from(bad.slot.0))
                && bad.layout.disk(bad.slot) == disk
        };
        let mine = found.filter(|(disk, bad)| is_its(*disk, bad) && is_mine(bad.layout.group()));
        work.bad = mine.map(|(_, bad)| bad.clone()).take(WORK_MAX).collect();
        self.work_cursors.insert(lc, cursor);
        work
    }

    /// Disks whose I/O servers hold a lease.
    pub fn live_disks(&self, now: Moment, state: &StateMachine) -> impl Iterator<Item = LiveDisk> {
        let heard = self.ios.values().filter_map(|lease| lease.bytes_free);
        // Placement weighs by it; a disk that was not heard yet in this term gets its share.
        let free_usual = heard.max().unwrap_or(FREE_UNHEARD);
        self.ios.iter().filter_map(move |(incarnation, lease)| {
            let is_lost = state.map().disks.get(&lease.disk)?.state == DiskState::Failed;
            let is_live = now < lease.until && !is_lost;
            let bytes_free = lease.bytes_free.unwrap_or(free_usual);
            is_live.then_some(LiveDisk { disk: lease.disk, incarnation: *incarnation, bytes_free })
        })
    }

    /// Disks with total and free bytes, for people.
    #[must_use]
    pub fn disk_spaces(&self, now: Moment) -> Vec<(DiskId, u64, u64)> {
        let live = self.ios.values().filter(|lease| now < lease.until);
        let heard =
            live.filter_map(|lease| Some((lease.disk, lease.bytes_total, lease.bytes_free?)));
        let mut spaces: Vec<_> = heard.collect();
        spaces.sort_unstable();
        spaces
    }

    /// How far the scrubs of live disks are.
    #[must_use]
    pub fn scrubs(&self, now: Moment) -> Vec<(DiskId, ScrubStatus)> {
        let live = self.ios.values().filter(|lease| now < lease.until);
        let mut scrubs: Vec<_> = live.filter_map(|io| Some((io.disk, io.scrub?))).collect();
        scrubs.sort_unstable_by_key(|(disk, _)| *disk);
        scrubs
    }

    /// Servers whose LC holds a lease.
    #[must_use]
    pub fn live_servers(&self, now: Moment, state: &StateMachine) -> Vec<ServerId> {
        let servers = state.map().servers.values().filter(|server| {
            let lease = server.lc.and_then(|lc| self.lcs.get(&lc));
            lease.is_some_and(|lease| now < lease.until && !lease.condemned)
        });
        servers.map(|server| server.id).collect()
    }

    /// Its term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Grants given in this term.
    #[must_use]
    pub fn grants(&self) -> u64 {
        self.counter
    }

    /// Groups with a known owner, number ranges not counted.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.holders.len() as u64
    }
}

/// The lease is renewed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Renewal {
    /// The LC has not told its holdings to this term.
    pub tell_holdings: bool,
}

/// The sender is not valid, or speaks of another term.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused;

/// What an I/O server tells of its disk.
#[derive(Clone, Debug, Default)]
pub struct DiskNews {
    /// Space in bytes.
    pub bytes_total: u64,
    /// Free of that.
    pub bytes_free: u64,
    /// How far its scrub is.
    pub scrub: ScrubStatus,
    /// What it found bad.
    pub bad: Vec<BadBlocks>,
}

/// One message of `Holdings`.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The term that asked.
    pub term: u64,
    /// Group, grant, LCC index.
    pub groups: &'a [(DeviceId, GrantNumber, u8)],
    /// Nothing follows.
    pub last: bool,
}

/// What an LC is to work off.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Facts.
    pub facts: Vec<Fact>,
    /// Dead LCC incarnations.
    pub sweeps: Vec<Incarnation>,
    /// Blocks that a scrub found bad.
    pub bad: Vec<BadBlocks>,
}

/// A lease as we count it: from the arrival of the renewal, and 2 % for drift. Source: O-4.
const fn lease_at_gc() -> Duration {
    Duration::from_millis(LEASE_MS + LEASE_MS / 50)
}

fn milliseconds(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// Spreads consecutive numbers.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A lease that is over for so long ends the LC although nobody wants its groups.
const LEASE_OVERDUE: Duration = Duration::from_millis(1500);

/// Not asked for so long, it was away.
const AWAY: Duration = Duration::from_millis(1000);

/// How long it then waits for renewals that could not reach it.
const RETURN_WAIT: Duration = Duration::from_millis(2000);

/// How long an I/O server of the map counts as live before it was heard.
const UNHEARD_DISK: Duration = Duration::from_millis(1200);

/// Milliseconds after which an invalidation or the holdings may be there.
const WAIT_SHORT: u32 = 50;

/// Bytes that count as free on a disk when none was heard yet.
const FREE_UNHEARD: u64 = 1 << 40;

/// Facts in one answer to `Work`.
const WORK_MAX: usize = 256;

/// Facts looked at for one answer to `Work`.
const WORK_SCAN_MAX: usize = 20_000;

/// Dead LCCs in one answer to `Work`.
const SWEEPS_MAX: usize = 16;

#[cfg(test)]
#[path = "global_controller_test.rs"]
mod test;

#[cfg(test)]
#[path = "ownership_model.rs"]
mod model;
