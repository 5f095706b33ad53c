//! What a coordinator answers to each request.
//!
//! # Theory
//! | request                                   | answered after                                    |
//! |-------------------------------------------|---------------------------------------------------|
//! | `Raft`, `Status`                          | at once, by every member                          |
//! | `Grant`, `FindOwner`, `Work`, `Facts`     | at once, by the global controller from its tables |
//! | `Renew`, `RenewIo`, `Map{linearizable}`   | a quorum round that began after it arrived        |
//! | all that changes map, numbers or facts    | its entry is committed and applied                |
//!
//! A map that need not be the newest is told by any member while nobody is elected, so that people
//! see something.
//! # Source
//! O-2 to O-8, F-1, F-4.

use std::rc::Rc;

use braid_env::{Address, Payload};
use braid_terms::{
    DeviceId, FactKind, FactNumber, GrantNumber, Incarnation, Policy, STRIP_SIZE_MAX,
    STRIP_SIZE_MIN, ServerId,
};
use braid_wire::coordinator::{
    Coordinator, CoordinatorRefusal, CoordinatorReply, CoordinatorRequest, CoordinatorStatus,
    FactRefusal, MapChange,
};
use braid_wire::rpc::{Handler, Hello, HelloReply};
use bytes::Bytes;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;

use crate::command::{Command, Outcome};
use crate::driver::Driver;
use crate::global_controller::{
    DiskNews, Effect, GlobalController, Ownership, Refused, Told, Work,
};
use crate::proposals::{Haste, WEIGHT_MAX};
use crate::raft::network;
use crate::state_machine::StateMachine;

type Answer = Result<CoordinatorReply, CoordinatorRefusal>;

impl Handler<Coordinator> for Driver {
    type Session = ();

    fn hello(&self, hello: &Hello) -> Result<(), HelloReply> {
        let cluster = self.config.cluster;
        if hello.cluster == cluster { Ok(()) } else { Err(HelloReply::WrongCluster { cluster }) }
    }

    async fn handle(
        self: Rc<Self>,
        _: Rc<()>,
        request: CoordinatorRequest,
        payload: Bytes,
    ) -> (Answer, Payload) {
        if matches!(request, CoordinatorRequest::Raft) {
            let may_vote = self.may_vote();
            let answer = network::answer(&self.raft, &self.incoming, payload, may_vote).await;
            return (Ok(CoordinatorReply::Raft), answer.into());
        }
        (self.answer(request).await, Payload::empty())
    }
}

impl Driver {
    async fn answer(self: &Rc<Self>, request: CoordinatorRequest) -> Answer {
        match request {
            CoordinatorRequest::Raft => Err(bad("a member's message without a payload")),
            CoordinatorRequest::Status => Ok(CoordinatorReply::Status(Box::new(self.status()))),
            CoordinatorRequest::Map { linearizable } => self.on_map(linearizable).await,
            CoordinatorRequest::RegisterLc { server, lccs } => {
                if !(1..=LCCS_MAX).contains(&lccs) {
                    return Err(bad("an LC has 1 to 64 LCCs"));
                }
                self.change(Command::RegisterLc { server, lccs }).await
            }
            CoordinatorRequest::RegisterMount { name, lc_address, lccs } => {
                if !(1..=LCCS_MAX).contains(&lccs) || !is_name(&name) {
                    return Err(bad("a mount has a name of 1 to 255 bytes and 1 to 64 LCCs"));
                }
                // An owner that nobody can reach would block what it owns.
                if self.env.connect(Address::Tcp(lc_address)).await.is_err() {
                    return Err(bad(format!("nothing can be reached at {lc_address}")));
                }
                self.change(Command::RegisterMount { name, lc_address, lccs }).await
            }
            CoordinatorRequest::RegisterLcc { lc, index } => {
                self.change(Command::RegisterLcc { lc, index }).await
            }
            CoordinatorRequest::UnregisterLc { lc } => {
                self.lead(|controller, _, _| controller.took_copies_back(lc))?;
                self.change(Command::UnregisterLc { lc }).await
            }
            CoordinatorRequest::RegisterIo { disk, identity } => {
                self.change(Command::RegisterIo { disk, identity }).await
            }
            CoordinatorRequest::Renew { lc, map_version, no_copies } => {
                self.on_renew(lc, map_version, no_copies).await
            }
            CoordinatorRequest::RenewIo {
                io,
                map_version,
                bytes_total,
                bytes_free,
                scrub,
                bad,
            } => {
                let news = DiskNews { bytes_total, bytes_free, scrub, bad };
                self.on_renew_io(io, map_version, news).await
            }
            CoordinatorRequest::Holdings { lc, term, groups, ranges: _, last } => {
                let now = self.env.now();
                let told = Told { term, groups: &groups, last };
                self.lead(|gc, state, _| gc.holdings(now, state, lc, &told))?.map_err(invalid)?;
                Ok(CoordinatorReply::Done)
            }
            CoordinatorRequest::Grant { lcc, group } => self.on_grant(lcc, group),
            CoordinatorRequest::FindOwner { group } => self.on_find_owner(group),
            CoordinatorRequest::Release { lcc, groups } => {
                self.lead(|gc, state, _| gc.release(state, lcc, &groups))?;
                Ok(CoordinatorReply::Done)
            }
            CoordinatorRequest::LeaseNumbers { lcc } => {
                let grant = self.lead(|gc, _, _| gc.next_grant())?;
                self.change(Command::LeaseNumbers { lcc, grant }).await
            }
            CoordinatorRequest::GiveUpNumbers { lcc, groups } => {
                self.lead(|gc, state, _| gc.give_up(state, lcc, &groups))?;
                Ok(CoordinatorReply::Done)
            }
            CoordinatorRequest::RecordFacts { lcc, facts } => self.on_record(lcc, facts).await,
            CoordinatorRequest::CloseFacts { lcc, facts } => self.on_close(lcc, facts).await,
            CoordinatorRequest::CloseSweep { lcc, dead } => {
                let now = self.env.now();
                self.lead(|gc, state, _| gc.may_close_sweep(now, state, dead))?
                    .map_err(|milliseconds| CoordinatorRefusal::Wait { milliseconds })?;
                self.change(Command::CloseSweep { lcc, dead }).await
            }
            CoordinatorRequest::Facts { after, limit } => self.on_facts(after, limit),
            CoordinatorRequest::Work { lc } => {
                let now = self.env.now();
                let work = self.lead(|gc, state, _| gc.work(now, state, lc))?;
                let Work { facts, sweeps, bad } = work;
                Ok(CoordinatorReply::Work { facts, sweeps, bad })
            }
            CoordinatorRequest::SetRoot { layout } => {
                layout.check().map_err(|error| bad(error.to_string()))?;
                self.change(Command::SetRoot { layout }).await?;
                Ok(self.map())
            }
            CoordinatorRequest::Change(change) => {
                check_change(&change)?;
                self.change(Command::Change(Box::new(change))).await?;
                Ok(self.map())
            }
        }
    }

    /// Asks the global controller that is here, and does what it wants done.
    fn lead<T>(
        self: &Rc<Self>,
        ask: impl FnOnce(&mut GlobalController, &StateMachine, &mut Vec<Effect>) -> T,
    ) -> Result<T, CoordinatorRefusal> {
        if !self.has_quorum() {
            return Err(self.not_leader());
        }
        let mut effects = Vec::new();
        let answer = match &mut *self.controller.borrow_mut() {
            // The state of a later term has LCs that this one must not take for its own: what they own
            // was told to another. Source: O-3.
            Some(controller) if self.state_term.get() <= controller.term() => {
                ask(controller, &self.state.borrow(), &mut effects)
            }
            _ => return Err(self.not_leader()),
        };
        self.run_effects(effects);
        Ok(answer)
    }

    fn not_leader(&self) -> CoordinatorRefusal {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let node = u64::from(self.config.server.0);
        if metrics.state == ServerState::Leader {
            let is_cut_off = !self.has_quorum() || !self.rounds.last_succeeded();
            return match is_cut_off {
                true => CoordinatorRefusal::NotLeader { leader: None },
                // Elected, and not yet in office.
                false => CoordinatorRefusal::Wait { milliseconds: 20 },
            };
        }
        let leader = metrics.current_leader.filter(|leader| *leader != node).and_then(|leader| {
            let server = ServerId(u32::try_from(leader).ok()?);
            let listed = self.config.members.iter().find(|(member, _)| *member == server);
            let logged = || metrics.membership_config.get_node(&leader).map(|node| node.address);
            Some((server, listed.map(|(_, address)| *address).or_else(logged)?))
        });
        CoordinatorRefusal::NotLeader { leader }
    }

    /// Proposes a command and answers what became of it.
    async fn change(self: &Rc<Self>, command: Command) -> Answer {
        let term = self.term().ok_or_else(|| self.not_leader())?;
        let Some(outcome) = self.propose(term, command).await else {
            return Err(self.not_leader());
        };
        match outcome {
            Outcome::Done => Ok(CoordinatorReply::Done),
            Outcome::Refused(refusal) => Err(refusal),
            Outcome::Registered { incarnation, lccs } => {
                let map = Box::new(self.state.borrow().map().clone());
                Ok(CoordinatorReply::Registered { incarnation, lccs, map })
            }
            Outcome::Numbers { first, grant } => Ok(CoordinatorReply::Numbers { first, grant }),
            Outcome::Recorded(results) => Ok(CoordinatorReply::Recorded(results)),
            Outcome::Closed(results) => Ok(CoordinatorReply::Closed(results)),
        }
    }

    fn map(&self) -> CoordinatorReply {
        CoordinatorReply::Map(Box::new(self.state.borrow().map().clone()))
    }

    async fn on_map(self: &Rc<Self>, linearizable: bool) -> Answer {
        if linearizable {
            self.quorum_round(Haste::Now).await?;
            return Ok(self.map());
        }
        if self.term().is_none() {
            let refusal = self.not_leader();
            let nobody = matches!(refusal, CoordinatorRefusal::NotLeader { leader: None });
            if !nobody || self.state.borrow().map().version == 0 {
                return Err(refusal);
            }
        }
        Ok(self.map())
    }

    /// Waits for a quorum round that begins now or later, in one term of office.
    async fn quorum_round(self: &Rc<Self>, haste: Haste) -> Result<(), CoordinatorRefusal> {
        let term = self.term();
        if term.is_some() && self.rounds.wait(haste).await && self.term() == term {
            Ok(())
        } else {
            Err(self.not_leader())
        }
    }

    async fn on_renew(
        self: &Rc<Self>,
        lc: Incarnation,
        map_version: u64,
        no_copies: Option<u64>,
    ) -> Answer {
        let arrived = self.env.now();
        self.quorum_round(Haste::Soon).await?;
        let now = self.env.now();
        let renewal = self
            .lead(|gc, state, _| gc.renew(now, arrived, state, lc, no_copies))?
            .map_err(invalid)?;
        self.renewed(map_version, renewal.tell_holdings)
    }

    async fn on_renew_io(
        self: &Rc<Self>,
        io: Incarnation,
        map_version: u64,
        news: DiskNews,
    ) -> Answer {
        let arrived = self.env.now();
        self.quorum_round(Haste::Soon).await?;
        let now = self.env.now();
        self.lead(|gc, state, _| gc.renew_io(now, arrived, state, io, news))?.map_err(invalid)?;
        self.renewed(map_version, false)
    }

    fn renewed(self: &Rc<Self>, map_version: u64, tell_holdings: bool) -> Answer {
        let now = self.env.now();
        self.lead(|gc, state, _| {
            let map = state.map();
            CoordinatorReply::Renewed {
                term: gc.term(),
                map: (map.version > map_version).then(|| Box::new(map.clone())),
                disks: gc.live_disks(now, state).collect(),
                servers: gc.live_servers(now, state),
                tell_holdings,
                facts_version: state.facts().version(),
            }
        })
    }

    fn on_grant(self: &Rc<Self>, lcc: Incarnation, group: DeviceId) -> Answer {
        if group.0 == 0 {
            return Err(bad("0 is no device"));
        }
        let now = self.env.now();
        let owner = self.lead(|gc, state, effects| gc.grant(now, state, lcc, group, effects))?;
        self.ownership(group, owner)
    }

    fn on_find_owner(self: &Rc<Self>, group: DeviceId) -> Answer {
        let now = self.env.now();
        let owner = self.lead(|gc, state, effects| gc.find_owner(now, state, group, effects))?;
        self.ownership(group, owner)
    }

    fn ownership(self: &Rc<Self>, group: DeviceId, owner: Ownership) -> Answer {
        let state = self.state.borrow();
        match owner {
            Ownership::Granted(grant) => {
                let facts = state.facts().of_group(group);
                // No dead LCC may have left anything of this group unfinished. Source: O-8.
                let clean = state.facts().pending().all(|lcc| state.is_valid_lcc(lcc))
                    || braid_terms::planted!("O-8/clean-while-a-sweep-is-due");
                let now = self.env.now();
                let caches_ms = self.lead(|gc, state, _| gc.caches_left_ms(now, state))?;
                Ok(CoordinatorReply::Granted { grant, facts, clean, caches_ms })
            }
            Ownership::OwnedBy(incarnation) => {
                let place = state.find_lcc(incarnation).and_then(|(lcc, _)| {
                    Some((lcc, state.map().servers.get(&lcc.server)?.lc_address))
                });
                // Invalid since: its groups can be had.
                let (lcc, address) = place.ok_or(CoordinatorRefusal::Wait { milliseconds: 10 })?;
                Ok(CoordinatorReply::OwnedBy { lcc, incarnation, address })
            }
            Ownership::Nobody => Ok(CoordinatorReply::Done),
            Ownership::Wait(milliseconds) => Err(CoordinatorRefusal::Wait { milliseconds }),
            Ownership::Invalid => Err(CoordinatorRefusal::InvalidIncarnation),
        }
    }

    async fn on_record(
        self: &Rc<Self>,
        lcc: Incarnation,
        facts: Vec<(GrantNumber, FactKind)>,
    ) -> Answer {
        // More than fits an entry: several; each fact is answered for itself.
        let commands = facts
            .chunks(WEIGHT_MAX)
            .map(|some| self.change(Command::RecordFacts { lcc, facts: some.to_vec() }));
        let mut results: Vec<Result<FactNumber, FactRefusal>> = Vec::new();
        for answer in futures_util::future::join_all(commands).await {
            match answer? {
                CoordinatorReply::Recorded(some) => results.extend(some),
                other => return Ok(other),
            }
        }
        Ok(CoordinatorReply::Recorded(results))
    }

    async fn on_close(
        self: &Rc<Self>,
        lcc: Incarnation,
        facts: Vec<(FactNumber, GrantNumber)>,
    ) -> Answer {
        let commands = facts
            .chunks(WEIGHT_MAX)
            .map(|some| self.change(Command::CloseFacts { lcc, facts: some.to_vec() }));
        let mut results: Vec<Result<(), FactRefusal>> = Vec::new();
        for answer in futures_util::future::join_all(commands).await {
            match answer? {
                CoordinatorReply::Closed(some) => results.extend(some),
                other => return Ok(other),
            }
        }
        Ok(CoordinatorReply::Closed(results))
    }

    /// Pending facts of valid LCCs are no news: every running LCC has one.
    fn on_facts(self: &Rc<Self>, after: FactNumber, limit: u32) -> Answer {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).clamp(1, FACTS_MAX);
        self.lead(|_, state, _| {
            let mut facts: Vec<_> = state
                .facts()
                .above(after)
                .filter(|fact| match fact.kind {
                    FactKind::Pending { incarnation } => !state.is_valid_lcc(incarnation),
                    _ => true,
                })
                .take(limit + 1)
                .cloned()
                .collect();
            let end = facts.len() <= limit;
            facts.truncate(limit);
            CoordinatorReply::Facts { facts, end }
        })
    }

    fn status(&self) -> CoordinatorStatus {
        let now = self.env.now();
        let state = self.state.borrow();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let server = |node: u64| u32::try_from(node).ok().map(ServerId);
        let mut status = CoordinatorStatus {
            server: self.config.server,
            term: metrics.current_term,
            leader: metrics.current_leader.and_then(server),
            applied: metrics.last_applied.map_or(0, |id| id.index),
            members: metrics.membership_config.voter_ids().filter_map(server).collect(),
            map_version: state.map().version,
            facts: state.fact_counts(),
            ..CoordinatorStatus::default()
        };
        if let Some(controller) = &*self.controller.borrow() {
            status.disks = controller.disk_spaces(now);
            status.scrubs = controller.scrubs(now);
            status.servers = controller.live_servers(now, &state);
            status.groups = controller.groups();
            status.grants = controller.grants();
            status.entries_proposed = self.proposed.get();
        }
        status
    }
}

fn invalid(_: Refused) -> CoordinatorRefusal {
    CoordinatorRefusal::InvalidIncarnation
}

fn bad(reason: impl Into<String>) -> CoordinatorRefusal {
    CoordinatorRefusal::BadRequest { reason: reason.into() }
}

/// Refuses what would make no sense in the map for ever.
fn check_change(change: &MapChange) -> Result<(), CoordinatorRefusal> {
    match change {
        MapChange::SetPolicy(policy) => check_policy(policy),
        _ => Ok(()),
    }
}

fn check_policy(policy: &Policy) -> Result<(), CoordinatorRefusal> {
    if !is_name(&policy.name) {
        return Err(bad("a policy's name has 1 to 255 bytes"));
    }
    let texts = [&policy.path_glob, &policy.client];
    if texts.into_iter().flatten().any(|text| text.len() > TEXT_MAX) {
        return Err(bad("a policy's patterns have at most 4096 bytes"));
    }
    if let Some(scheme) = policy.scheme {
        scheme.check().map_err(|error| bad(error.to_string()))?;
    }
    let is_strip =
        |size: u32| size.is_power_of_two() && (STRIP_SIZE_MIN..=STRIP_SIZE_MAX).contains(&size);
    if policy.strip_size.is_some_and(|size| !is_strip(size)) {
        return Err(bad("a strip size is a power of two from 512 bytes to 4 MiB"));
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
}

/// LCCs of one LC.
const LCCS_MAX: u8 = 64;

/// Facts in one answer: they fit a frame's head.
const FACTS_MAX: usize = 4096;

/// Bytes of a text in the map.
const TEXT_MAX: usize = 4096;
