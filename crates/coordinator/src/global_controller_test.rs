use crate::command::Command;
use crate::state_machine::test::{lease, register, state, suspect_of};

use braid_terms::PortionIndex;
use braid_wire::io::BlockRange;

use super::*;

const LEASE: Duration = lease_at_gc();
const MS: Duration = Duration::from_millis(1);
const START: Moment = Moment(1_000_000_000_000);

/// Two LCs with two LCCs each, known before the election.
struct World {
    state: StateMachine,
    gc: GlobalController,
    lcs: Vec<Incarnation>,
    lccs: Vec<Vec<Incarnation>>,
    effects: Vec<Effect>,
}

impl World {
    fn new() -> Self {
        let mut state = state();
        let (lcs, lccs) = (1..=2).map(|server| register(&mut state, server)).unzip();
        let gc = GlobalController::new(5, START, Duration::ZERO, &state);
        Self { state, gc, lcs, lccs, effects: Vec::new() }
    }

    fn elect(&mut self, term: u64, now: Moment) {
        self.gc = GlobalController::new(term, now, Duration::ZERO, &self.state);
    }

    fn tell(&mut self, now: Moment, lc: usize, groups: &[(DeviceId, GrantNumber, u8)]) {
        let told = Told { term: self.gc.term(), groups, last: true };
        self.gc.holdings(now, &self.state, self.lcs[lc], &told).unwrap();
    }

    fn all_told(mut self) -> Self {
        self.tell(START, 0, &[]);
        self.tell(START, 1, &[]);
        self
    }

    fn grant(&mut self, now: Moment, lcc: Incarnation, group: u64) -> Ownership {
        self.pass(now);
        self.gc.grant(now, &self.state, lcc, DeviceId(group), &mut self.effects)
    }

    fn renew(&mut self, now: Moment, lc: usize) -> Result<Renewal, Refused> {
        self.pass(now);
        self.gc.renew(now, now, &self.state, self.lcs[lc], None)
    }

    fn tick(&mut self, now: Moment) -> Vec<Effect> {
        self.pass(now);
        let mut effects = Vec::new();
        self.gc.tick(now, &self.state, &mut effects);
        effects
    }

    /// Lets time pass in which it is there.
    fn pass(&mut self, until: Moment) {
        while self.gc.present < until {
            let next = (self.gc.present + 500 * MS).min(until);
            self.gc.follow_map(next, &self.state);
        }
    }

    fn invalidate(&mut self, lc: usize) {
        self.state.apply(Command::Invalidate { lc: self.lcs[lc] });
    }
}

fn granted(ownership: Ownership) -> GrantNumber {
    match ownership {
        Ownership::Granted(grant) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

fn must_wait(ownership: Ownership) -> bool {
    matches!(ownership, Ownership::Wait(_))
}

#[test] // Proves: O-1, O-2.
fn a_group_has_one_owner_until_it_is_released() {
    let mut world = World::new().all_told();
    let (a, b) = (world.lccs[0][0], world.lccs[1][0]);
    let first = granted(world.grant(START, a, 7));
    assert_eq!(world.grant(START, b, 7), Ownership::OwnedBy(a));
    let second = granted(world.grant(START, a, 7));
    assert!(second > first, "asking again gives a higher grant");
    world.gc.release(&world.state, b, &[(DeviceId(7), second)]);
    assert_eq!(world.grant(START, b, 7), Ownership::OwnedBy(a), "not b's to release");
    world.gc.release(&world.state, a, &[(DeviceId(7), first)]);
    assert_eq!(world.grant(START, b, 7), Ownership::OwnedBy(a), "a late release of before");
    world.gc.release(&world.state, a, &[(DeviceId(7), second)]);
    assert!(granted(world.grant(START, b, 7)) > second);
    assert!(world.effects.is_empty());
}

/// Clients keep copies no longer than the lease of the LC that gave them: a new owner need not wait
/// where that has run out, and must where the LC was started again before.
#[test] // Proves: N-1.
fn copies_live_as_long_as_the_lease_of_who_gave_them() {
    let mut world = World::new().all_told();
    assert_eq!(world.gc.caches_left_ms(START, &world.state), milliseconds(LEASE), "of before");
    world.renew(START + LEASE, 1).unwrap();
    assert_eq!(world.gc.caches_left_ms(START + LEASE, &world.state), 0);
    world.renew(START + LEASE, 0).unwrap();
    world.invalidate(0);
    let left = world.gc.caches_left_ms(START + LEASE + 500 * MS, &world.state);
    assert_eq!(left, milliseconds(LEASE) - 500);
    assert_eq!(world.gc.caches_left_ms(START + LEASE + LEASE, &world.state), 0);
}

/// Who ends cleanly has taken its copies back.
#[test] // Proves: N-1.
fn nobody_waits_for_copies_of_an_lc_that_ended_cleanly() {
    let mut world = World::new().all_told();
    assert_eq!(world.gc.caches_left_ms(START + LEASE, &world.state), 0);
    world.renew(START + LEASE, 0).unwrap();
    world.gc.took_copies_back(world.lcs[0]);
    world.invalidate(0);
    assert_eq!(world.gc.caches_left_ms(START + LEASE, &world.state), 0);
}

/// Who has told this term that it gave none is not waited for; a word of it that comes late, or of
/// another term, does not count.
#[test] // Proves: N-1.
fn nobody_waits_for_copies_that_were_never_given() {
    let left = |told: &[Option<u64>]| {
        let mut world = World::new().all_told();
        let now = START + LEASE;
        for no_copies in told {
            world.gc.renew(now, now, &world.state, world.lcs[0], *no_copies).unwrap();
        }
        world.invalidate(0);
        world.gc.caches_left_ms(now, &world.state)
    };
    let term = World::new().gc.term();
    assert_eq!(left(&[Some(term)]), 0);
    assert_eq!(left(&[Some(term), Some(term)]), 0);
    for told in [&[][..], &[Some(term - 1)], &[Some(term), None], &[None, Some(term)]] {
        assert_ne!(left(told), 0, "{told:?}");
    }
}

/// An LCC that panicked is registered anew while its LC lives on. What it owned is free at once, and the
/// copies that it gave live as long as the lease that its LC had then.
#[test] // Proves: N-1, O-3.
fn an_lcc_that_is_registered_anew_leaves_groups_and_copies() {
    let mut world = World::new().all_told();
    let (gone, other) = (world.lccs[0][1], world.lccs[1][0]);
    granted(world.grant(START, gone, 7));
    let now = START + LEASE + 100 * MS;
    world.renew(START + LEASE, 0).unwrap();
    assert_eq!(world.gc.caches_left_ms(now, &world.state), 0, "it may still give some");
    world.state.apply(Command::RegisterLcc { lc: world.lcs[0], index: 1 });
    let left = world.gc.caches_left_ms(now, &world.state);
    assert_eq!(left, milliseconds(LEASE) - 100);
    granted(world.grant(now, other, 7));
    assert_eq!(world.grant(now, gone, 8), Ownership::Invalid);
    world.renew(now, 0).unwrap();
    let left = world.gc.caches_left_ms(now, &world.state);
    assert_eq!(left, milliseconds(LEASE) - 100, "a later lease is none of what it gave");
}

/// The old global controller granted d to A, the reply was delayed. The new one asks A, which does
/// not list d. Only when all have told does it grant d, under a term above A's late grant.
#[test] // Proves: O-3. Hole 6.
fn an_unlisted_group_waits_until_all_have_told_this_term() {
    let mut world = World::new();
    let (a, b) = (world.lccs[0][0], world.lccs[1][0]);
    let old = granted(World::new().all_told().grant(START, a, 7));
    world.elect(6, START);
    assert!(must_wait(world.grant(START, b, 7)));
    world.tell(START, 1, &[]);
    assert!(must_wait(world.grant(START, b, 7)), "A may own it");
    let late = Told { term: 5, groups: &[], last: true };
    assert_eq!(world.gc.holdings(START, &world.state, world.lcs[0], &late), Err(Refused));
    let part = Told { term: 6, groups: &[], last: false };
    assert_eq!(world.gc.holdings(START, &world.state, world.lcs[0], &part), Ok(()));
    assert!(must_wait(world.grant(START, b, 7)), "A has not told all");
    world.tell(START, 0, &[]);
    assert!(granted(world.grant(START, b, 7)) > old);
    assert!(world.effects.is_empty(), "nobody's lease is over");
}

#[test] // Proves: O-3.
fn listed_groups_are_served_while_others_wait() {
    let mut world = World::new();
    let a = world.lccs[0][1];
    let held = GrantNumber { term: 3, counter: 9 };
    world.tell(START, 0, &[(DeviceId(7), held, 1), (DeviceId(8), held, 5)]);
    let b = world.lccs[1][0];
    assert_eq!(world.grant(START, b, 7), Ownership::OwnedBy(a));
    assert!(must_wait(world.grant(START, b, 8)), "there is no LCC 5");
    assert!(granted(world.grant(START, a, 7)) > held);
    assert!(world.renew(START, 0).is_ok_and(|renewal| !renewal.tell_holdings));
    assert!(world.renew(START, 1).is_ok_and(|renewal| renewal.tell_holdings));
}

/// A paused LC's lease is over, and nothing has invalidated it: it may wake up and write.
#[test] // Proves: O-3, O-5. Hole 7.
fn a_lease_that_is_over_is_not_enough_to_take_a_group() {
    let mut world = World::new().all_told();
    let (a, b) = (world.lccs[0][0], world.lccs[1][0]);
    granted(world.grant(START, a, 7));
    let late = START + LEASE;
    world.renew(late, 1).unwrap();
    assert!(must_wait(world.grant(late, b, 7)));
    assert_eq!(world.effects, [Effect::Invalidate(world.lcs[0])]);
    assert!(must_wait(world.grant(late + 5 * LEASE, b, 7)), "not before it is committed");
    world.invalidate(0);
    granted(world.grant(late, b, 7));
    assert_eq!(world.grant(late, a, 7), Ownership::Invalid);
}

#[test] // Proves: O-4. Hole 7: once given up, a renewal in flight does not bring it back.
fn a_condemned_lc_gets_no_lease_any_more() {
    let mut world = World::new().all_told();
    let late = START + LEASE + LEASE_OVERDUE;
    let arrived = START + (LEASE - MS);
    assert_eq!(world.tick(late).len(), 2);
    let (state, lc) = (&world.state, world.lcs[0]);
    assert_eq!(world.gc.renew(late, arrived, state, lc, None), Err(Refused));
    assert_eq!(world.grant(late, world.lccs[0][0], 7), Ownership::Invalid);
    assert_eq!(world.tick(late).len(), 2, "until it is committed");
    world.invalidate(0);
    assert_eq!(world.tick(late), [Effect::Invalidate(world.lcs[1])]);
}

#[test] // Proves: O-4. Hole 10 (a), (c): counted from the arrival, with a margin for drift.
fn a_lease_runs_from_the_arrival_of_its_renewal() {
    let mut world = World::new().all_told();
    let (a, b) = (world.lccs[0][0], world.lccs[1][0]);
    granted(world.grant(START, a, 7));
    let arrived = START + Duration::from_secs(1);
    let answered = START + Duration::from_secs(2);
    world.pass(answered);
    world.gc.renew(answered, arrived, &world.state, world.lcs[0], None).unwrap();
    world.renew(answered, 1).unwrap();
    assert_eq!(world.grant(arrived + (LEASE - MS), b, 7), Ownership::OwnedBy(a));
    assert!(world.tick(arrived + (LEASE + LEASE_OVERDUE - MS)).is_empty());
    assert!(must_wait(world.grant(arrived + LEASE, b, 7)));
    assert_eq!(world.effects, [Effect::Invalidate(world.lcs[0])]);
    let of_lc = Duration::from_millis(LEASE_MS);
    assert!(LEASE >= of_lc + of_lc / 50, "2 % above what the LC counts");
}

/// Who elected it had heard no leader for a while: renewals that one answered are older than that.
#[test] // Proves: O-4. Hole 10 (d).
fn the_silence_before_an_election_counts_for_the_leases_of_before_it() {
    let mut world = World::new();
    let silence = Duration::from_millis(880);
    world.gc = GlobalController::new(6, START, silence, &world.state);
    let b = world.lccs[1][0];
    world.tell(START, 1, &[]);
    world.renew(START, 1).unwrap();
    assert!(must_wait(world.grant(START + (LEASE - silence - MS), b, 7)));
    assert!(world.effects.is_empty());
    assert!(must_wait(world.grant(START + (LEASE - silence), b, 7)));
    assert_eq!(world.effects, [Effect::Invalidate(world.lcs[0])]);
    // Whoever registers later has all of it.
    let (lc, _) = register(&mut world.state, 1);
    world.lcs[0] = lc;
    assert!(world.tick(START + (LEASE - silence)).is_empty());
}

#[test] // Proves: O-4. Hole 10 (d): a new global controller does not know the last renewals.
fn a_new_term_begins_with_one_full_lease_for_everybody() {
    let mut world = World::new();
    let b = world.lccs[1][0];
    world.tell(START, 1, &[]);
    world.renew(START + (LEASE - MS), 1).unwrap();
    assert!(must_wait(world.grant(START + (LEASE - MS), b, 7)));
    assert!(world.effects.is_empty(), "the silent one may have renewed just before the election");
    assert!(must_wait(world.grant(START + LEASE, b, 7)));
    assert_eq!(world.effects, [Effect::Invalidate(world.lcs[0])]);
    world.invalidate(0);
    granted(world.grant(START + LEASE, b, 7));
}

#[test] // Proves: O-3.
fn an_lc_that_starts_in_this_term_has_nothing_to_tell() {
    let mut world = World::new();
    world.tell(START, 1, &[]);
    let (lc, lccs) = register(&mut world.state, 1);
    (world.lcs[0], world.lccs[0]) = (lc, lccs);
    granted(world.grant(START, world.lccs[0][0], 7));
    assert!(world.renew(START, 0).is_ok_and(|renewal| !renewal.tell_holdings));
    let late = START + 10 * LEASE;
    world.pass(late);
    let (lc, lccs) = register(&mut world.state, 2);
    (world.lcs[1], world.lccs[1]) = (lc, lccs);
    assert_eq!(world.tick(late), [Effect::Invalidate(world.lcs[0])], "its lease begins now");
}

/// The only coordinator was stopped for ten seconds, with everybody else (a laptop was closed).
#[test]
fn who_could_not_renew_because_nobody_listened_is_not_silent() {
    let mut world = World::new().all_told();
    let (a, b) = (world.lccs[0][0], world.lccs[1][0]);
    granted(world.grant(START, a, 7));
    let woken = START + 10 * LEASE;
    let mut effects = Vec::new();
    world.gc.tick(woken, &world.state, &mut effects);
    world.renew(woken, 1).unwrap();
    assert_eq!(world.grant(woken, b, 7), Ownership::OwnedBy(a));
    world.renew(woken + 1000 * MS, 0).unwrap();
    assert!(world.tick(woken + LEASE).is_empty() && effects.is_empty() && world.effects.is_empty());
    assert_eq!(world.tick(woken + 3 * LEASE).len(), 2);
}

#[test] // Proves: O-2.
fn numbers_of_a_live_range_belong_to_its_lcc() {
    let mut world = World::new().all_told();
    let (a, b) = (world.lccs[0][0], world.lccs[1][0]);
    let first = lease(&mut world.state, a, 1).0;
    assert_eq!(world.grant(START, b, first + 5), Ownership::OwnedBy(a));
    world.gc.give_up(&world.state, b, &[DeviceId(first + 5)]);
    assert_eq!(world.grant(START, b, first + 5), Ownership::OwnedBy(a), "not b's to give up");
    world.gc.give_up(&world.state, a, &[DeviceId(first + 5)]);
    let grant = granted(world.grant(START, b, first + 5));
    assert_eq!(world.grant(START, a, first + 5), Ownership::OwnedBy(b));
    assert_eq!(world.grant(START, b, first + 6), Ownership::OwnedBy(a));
    world.gc.release(&world.state, b, &[(DeviceId(first + 5), grant)]);
    granted(world.grant(START, b, first + 5));
    world.renew(START + (LEASE - MS), 1).unwrap();
    assert!(must_wait(world.grant(START + LEASE, b, first + 6)));
    world.invalidate(0);
    granted(world.grant(START + LEASE, b, first + 6));
}

/// A gave a number of its range up and B was granted it. After an election A asks for it, before B
/// has told that it owns it.
#[test] // Proves: O-2, O-3.
fn a_number_of_its_own_range_that_an_lcc_asks_for_may_be_anothers() {
    let mut world = World::new();
    let (a, b) = (world.lccs[0][0], world.lccs[1][0]);
    let first = lease(&mut world.state, a, 1).0;
    world.elect(6, START);
    world.tell(START, 0, &[]);
    assert!(must_wait(world.grant(START, a, first + 5)));
    assert_eq!(world.grant(START, b, first + 5), Ownership::OwnedBy(a), "a hint: A will ask");
    let held = GrantNumber { term: 3, counter: 9 };
    world.tell(START, 1, &[(DeviceId(first + 5), held, 0)]);
    assert_eq!(world.grant(START, a, first + 5), Ownership::OwnedBy(b));
    granted(world.grant(START, a, first + 6));
}

#[test] // Proves: F-4.
fn each_fact_is_worked_off_by_one_live_lc_when_its_disk_is_there() {
    let mut world = World::new().all_told();
    let (a, b) = (world.lccs[0][0], world.lccs[1][0]);
    let facts = (1..=100).map(|device| (GrantNumber::default(), suspect_of(device, 1)));
    world.state.apply(Command::RecordFacts { lcc: a, facts: facts.collect() });
    granted(world.grant(START, b, 3));
    let work = |world: &mut World, now, lc: usize| {
        let work = world.gc.work(now, &world.state, world.lcs[lc]);
        work.facts.iter().map(|fact| fact.kind.group().unwrap().0).collect::<Vec<_>>()
    };
    assert!(work(&mut world, START, 0).is_empty(), "no I/O server of disk 1 is registered");
    world.state.apply(Command::RegisterIo { disk: DiskId(1), identity: 1 });
    let (of_a, of_b) = (work(&mut world, START, 0), work(&mut world, START, 1));
    assert!(of_b.contains(&3), "its owner works it off");
    assert!(of_a.len() > 20 && of_b.len() > 20);
    let mut all = [of_a, of_b].concat();
    all.sort_unstable();
    assert_eq!(all, (1..=100).collect::<Vec<_>>());
    // What a lost LC would have done falls to the other.
    let late = START + LEASE;
    world.renew(late, 1).unwrap();
    let io = world.state.map().disks[&DiskId(1)].incarnation.unwrap();
    let space = DiskNews { bytes_total: 10, bytes_free: 5, ..DiskNews::default() };
    world.gc.renew_io(late, late, &world.state, io, space).unwrap();
    assert_eq!(work(&mut world, late, 1).len(), 100);
    assert!(work(&mut world, late, 0).is_empty());
}

#[test] // Proves: F-4. A fact that cannot be worked off keeps no other waiting.
fn work_goes_round_all_facts() {
    let mut world = World::new().all_told();
    let (lc, lcc) = (world.lcs[0], world.lccs[0][0]);
    world.state.apply(Command::RegisterIo { disk: DiskId(1), identity: 1 });
    let count = 3 * WORK_MAX as u64;
    let facts = (1..=count).map(|device| (GrantNumber::default(), suspect_of(device, 1)));
    world.state.apply(Command::RecordFacts { lcc, facts: facts.collect() });
    world.invalidate(1);
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let work = world.gc.work(START, &world.state, lc);
        assert_eq!(work.facts.len(), WORK_MAX);
        seen.extend(work.facts.into_iter().map(|fact| fact.number));
    }
    assert_eq!(seen.len() as u64, count);
}

#[test] // Proves: O-8.
fn a_dead_lcc_is_swept_by_one_lc_and_closed_one_lease_later() {
    let mut world = World::new().all_told();
    let dead = world.lccs[0].clone();
    world.invalidate(0);
    let sweeps = |world: &mut World, now| {
        let mut all: Vec<_> = Vec::new();
        for lc in world.lcs.clone() {
            all.extend(world.gc.work(now, &world.state, lc).sweeps);
        }
        all.sort_unstable();
        all
    };
    assert!(sweeps(&mut world, START).is_empty());
    assert!(world.gc.may_close_sweep(START, &world.state, dead[0]).is_err());
    let (lc, lccs) = register(&mut world.state, 1);
    (world.lcs[0], world.lccs[0]) = (lc, lccs);
    let later = START + LEASE;
    world.renew(later, 1).unwrap();
    world.renew(later, 0).unwrap();
    assert_eq!(sweeps(&mut world, later), dead, "each by one of the two");
    assert_eq!(world.gc.may_close_sweep(later, &world.state, dead[0]), Ok(()));
    let close = Command::CloseSweep { lcc: world.lccs[1][0], dead: dead[0] };
    world.state.apply(close);
    assert_eq!(sweeps(&mut world, later), dead[1..]);
}

#[test]
fn disks_are_live_by_their_leases_and_after_an_election_for_a_while_without() {
    let mut world = World::new();
    world.state.apply(Command::RegisterIo { disk: DiskId(1), identity: 1 });
    world.state.apply(Command::RegisterIo { disk: DiskId(2), identity: 2 });
    world.elect(6, START);
    let io = world.state.map().disks[&DiskId(1)].incarnation.unwrap();
    let space = DiskNews { bytes_total: 10, bytes_free: 5, ..DiskNews::default() };
    world.gc.renew_io(START, START, &world.state, io, space.clone()).unwrap();
    let live = |world: &World, now| {
        let disks = world.gc.live_disks(now, &world.state);
        disks.map(|live| (live.disk, live.bytes_free)).collect::<Vec<_>>()
    };
    assert_eq!(live(&world, START), [(DiskId(1), 5), (DiskId(2), 5)]);
    assert_eq!(live(&world, START + UNHEARD_DISK), [(DiskId(1), 5)]);
    assert_eq!(live(&world, START + LEASE), []);
    assert_eq!(world.gc.disk_spaces(START), [(DiskId(1), 10, 5)]);
    let wrong = Incarnation(999);
    assert_eq!(world.gc.renew_io(START, START, &world.state, wrong, space), Err(Refused));
}

#[test] // Proves: F-6.
fn bad_blocks_are_for_the_owner_while_their_disk_tells_of_them() {
    let mut world = World::new().all_told();
    world.state.apply(Command::RegisterIo { disk: DiskId(1), identity: 1 });
    let owner = world.lccs[1][0];
    granted(world.grant(START, owner, 77));
    let layout = match suspect_of(77, 1) {
        FactKind::Suspect { layout, .. } => layout,
        other => panic!("{other:?}"),
    };
    let range = BlockRange { device_index: 0, first: 5, count: 2 };
    let bad = BadBlocks { layout, slot: PortionIndex(1), range };
    let mut foreign = bad.clone();
    foreign.layout.devices.clear();
    let elsewhere = BadBlocks { slot: PortionIndex(99), ..bad.clone() };
    let io = world.state.map().disks[&DiskId(1)].incarnation.unwrap();
    let told = vec![foreign, elsewhere, bad.clone()];
    let news = DiskNews { bad: told, ..DiskNews::default() };
    world.gc.renew_io(START, START, &world.state, io, news).unwrap();
    let of = |world: &mut World, lc: usize| {
        let lc = world.lcs[lc];
        world.gc.work(START, &world.state, lc).bad
    };
    assert_eq!(of(&mut world, 0), []);
    assert_eq!(of(&mut world, 1), [bad]);
    world.gc.renew_io(START, START, &world.state, io, DiskNews::default()).unwrap();
    assert_eq!(of(&mut world, 1), []);
}
