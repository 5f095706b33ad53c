//! `status`, `facts`, `repair`, `df`: what a cluster says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use braid_client::{ClusterFile, ServerEntry};
use braid_env::{Address, Env, Payload, machine};
use braid_terms::{
    ClusterMap, DiskId, DiskState, Fact, FactKind, FactNumber, ServerId, ServerState,
};
use braid_wire::coordinator::{CoordinatorReply, CoordinatorRequest, CoordinatorStatus};
use braid_wire::coordinator_client::CoordinatorClient;
use braid_wire::io::ScrubStatus;
use braid_wire::lcc::{Answer, FileOp, Lcc, LccReply, LccRequest, LccStatus};
use braid_wire::main_controller::{MainController, MainReply, MainRequest, ProcessInfo};
use braid_wire::rpc::{Client, Hello, Peer, Role, Service};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{Outcome, cluster_file};
use crate::cli::Global;
use crate::main_controller::role_name;
use crate::output::{Failure, json as print_json, size};

/// How a cluster is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Health {
    Ok,
    Degraded,
    AtRisk,
    Unavailable,
}

impl Health {
    /// The word that scripts rely on.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::AtRisk => "at_risk",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What was seen of a cluster.
#[derive(Default)]
pub struct Seen {
    pub map: Option<ClusterMap>,
    /// What the elected coordinator says.
    pub leader: Option<CoordinatorStatus>,
    pub coordinators_up: usize,
    pub coordinators: usize,
    pub processes: BTreeMap<ServerId, Vec<ProcessInfo>>,
    pub lccs: BTreeMap<ServerId, LccStatus>,
    pub facts: Vec<Fact>,
    /// Time of day here, in milliseconds since 1970.
    pub now: u64,
    /// Why nothing is known, if so.
    pub unreachable: Option<String>,
}

/// Looks at everything once.
pub async fn look(env: &Env, file: &ClusterFile, deadline: Duration) -> Seen {
    let addresses = file.servers.iter().map(|server| server.coordinator).collect();
    let coordinators = CoordinatorClient::new(env.clone(), file.cluster, Peer::Unknown, addresses);
    let mains = file.servers.iter().map(|server| async {
        let reply = timeout(deadline, ask_main(env, file, server, &MainRequest::Processes)).await;
        match reply {
            Ok(Some(MainReply::Processes { processes, .. })) => Some((server.id, processes)),
            _ => None,
        }
    });
    let lccs = file.servers.iter().map(|server| async {
        let asked = ask::<Lcc>(env, file, server.lc, &LccRequest::Status);
        match timeout(deadline, asked).await {
            Ok(Some(Ok(Answer { reply: LccReply::Status(status), .. }))) => {
                Some((server.id, status))
            }
            _ => None,
        }
    });
    let (statuses, mains, lccs, map) = futures_util::join!(
        coordinators.statuses(deadline),
        futures_util::future::join_all(mains),
        futures_util::future::join_all(lccs),
        coordinators.call(&CoordinatorRequest::Map { linearizable: false }, deadline),
    );
    let mut seen = Seen {
        processes: mains.into_iter().flatten().collect(),
        lccs: lccs.into_iter().flatten().collect(),
        now: u64::try_from(env.wall_time().seconds).unwrap_or(0) * 1000,
        ..Seen::default()
    };
    match map {
        Ok(CoordinatorReply::Map(map)) => seen.map = Some(*map),
        Ok(_) => seen.unreachable = Some("a coordinator gave another answer".to_owned()),
        Err(error) => seen.unreachable = Some(error.to_string()),
    }
    let mounts = seen.map.iter().flat_map(|map| map.servers.values());
    let mounts = mounts.filter(|server| server.is_mount).map(|mount| async {
        let asked = ask::<Lcc>(env, file, mount.lc_address, &LccRequest::Status);
        match timeout(deadline.min(MOUNT_WAIT), asked).await {
            Ok(Some(Ok(Answer { reply: LccReply::Status(status), .. }))) => {
                Some((mount.id, status))
            }
            _ => None,
        }
    });
    let mounts = futures_util::future::join_all(mounts).await;
    seen.lccs.extend(mounts.into_iter().flatten());
    let known: Vec<CoordinatorStatus> = statuses.into_iter().flatten().collect();
    let term = known.iter().map(|status| status.term).max().unwrap_or(0);
    let leads =
        |status: &&CoordinatorStatus| status.term == term && status.leader == Some(status.server);
    seen.leader = known.iter().find(leads).cloned();
    let members: BTreeSet<ServerId> =
        seen.map.iter().flat_map(|map| map.coordinators.iter().copied()).collect();
    seen.coordinators = members.len();
    seen.coordinators_up = known.iter().filter(|status| members.contains(&status.server)).count();
    if seen.map.is_some() {
        seen.facts = all_facts(&coordinators, deadline).await.unwrap_or_default();
    }
    seen
}

/// Longest wait for a mount: it may have gone.
const MOUNT_WAIT: Duration = Duration::from_millis(500);

async fn all_facts(coordinators: &CoordinatorClient, deadline: Duration) -> Option<Vec<Fact>> {
    let mut all = Vec::new();
    let mut after = FactNumber(0);
    loop {
        let request = CoordinatorRequest::Facts { after, limit: 4096 };
        match coordinators.call(&request, deadline).await {
            Ok(CoordinatorReply::Facts { facts, end }) => {
                after = facts.last().map_or(after, |fact| fact.number);
                let empty = facts.is_empty();
                all.extend(facts);
                if end || empty {
                    return Some(all);
                }
            }
            _ => return None,
        }
    }
}

/// Asks a server's main controller; `None` where it does not answer.
pub async fn ask_main(
    env: &Env,
    file: &ClusterFile,
    server: &ServerEntry,
    request: &MainRequest,
) -> Option<MainReply> {
    ask::<MainController>(env, file, server.main, request).await
}

async fn ask<S: Service>(
    env: &Env,
    file: &ClusterFile,
    to: std::net::SocketAddr,
    request: &S::Request,
) -> Option<S::Reply> {
    let hello = Hello::new(file.cluster, S::ROLE, 0, Peer::Unknown);
    let _: Role = S::ROLE;
    let client = Client::<S>::connect(env, Address::Tcp(to), hello).await.ok()?;
    let answer = client.call(request, Payload::empty(), Duration::from_secs(30)).await;
    answer.ok().map(|(reply, _)| reply)
}

impl Seen {
    fn live_disks(&self) -> BTreeMap<DiskId, (u64, u64)> {
        let disks = self.leader.iter().flat_map(|leader| leader.disks.iter());
        disks.map(|(disk, total, free)| (*disk, (*total, *free))).collect()
    }

    fn live_servers(&self) -> BTreeSet<ServerId> {
        self.leader.iter().flat_map(|leader| leader.servers.iter().copied()).collect()
    }

    /// Open facts about portions.
    pub fn suspects(&self) -> usize {
        self.facts.iter().filter(|fact| matches!(fact.kind, FactKind::Suspect { .. })).count()
    }

    /// Most portions that one group lacks, and whether some group lacks as many as it may.
    fn worst_group(&self) -> (usize, bool) {
        let mut lacking: BTreeMap<_, (usize, usize)> = BTreeMap::new();
        for fact in &self.facts {
            if let FactKind::Suspect { layout, .. } = &fact.kind {
                let entry = lacking.entry(layout.group()).or_insert((0, layout.scheme.parity()));
                entry.0 += 1;
            }
        }
        let most = lacking.values().map(|(count, _)| *count).max().unwrap_or(0);
        (most, lacking.values().any(|(count, parity)| parity <= count))
    }

    /// How the cluster is.
    pub fn health(&self) -> Health {
        let Some(map) = &self.map else { return Health::Unavailable };
        if self.leader.is_none() {
            return Health::Unavailable;
        }
        let live = self.live_disks();
        let dead: BTreeSet<ServerId> = map
            .disks
            .values()
            .filter(|disk| disk.state != DiskState::Failed && !live.contains_key(&disk.id))
            .map(|disk| disk.server)
            .collect();
        let parity = map.scheme_default.map_or(2, |scheme| scheme.parity());
        let (_, bare) = self.worst_group();
        if parity < dead.len() {
            Health::Unavailable
        } else if bare || (!dead.is_empty() && parity <= dead.len()) {
            Health::AtRisk
        } else if self.reasons().is_empty() {
            Health::Ok
        } else {
            Health::Degraded
        }
    }

    /// What is wrong, in words.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let Some(map) = &self.map else {
            reasons.push(self.unreachable.clone().unwrap_or_else(|| "nobody answers".to_owned()));
            return reasons;
        };
        if self.leader.is_none() {
            reasons.push("no global controller is elected".to_owned());
        }
        let (live_disks, live_servers) = (self.live_disks(), self.live_servers());
        // A mount comes and goes.
        for server in map.servers.values().filter(|server| !server.is_mount) {
            if !self.processes.contains_key(&server.id) {
                reasons.push(format!("{} does not answer", server.name));
            } else if !live_servers.contains(&server.id) {
                reasons.push(format!("the local controller of {} is not up", server.name));
            }
        }
        for disk in map.disks.values() {
            let answers = self.processes.contains_key(&disk.server);
            if disk.state != DiskState::Failed && answers && !live_disks.contains_key(&disk.id) {
                reasons.push(format!("disk {} is not up", disk.id));
            }
        }
        if self.coordinators_up < self.coordinators {
            let (up, all) = (self.coordinators_up, self.coordinators);
            reasons.push(format!("{up} of {all} coordinators answer"));
        }
        let suspects = self.suspects();
        if suspects > 0 {
            reasons.push(format!("{suspects} portions lack writes and are to be rebuilt"));
        }
        let pending = self.leader.as_ref().map_or(0, |leader| leader.facts.pending);
        if pending > 0 {
            reasons.push(format!("{pending} ended controllers may have left writes unfinished"));
        }
        let bad = self.bad_blocks();
        if bad > 0 {
            reasons.push(format!(
                "{bad} blocks do not fit their checksums and are to be written anew"
            ));
        }
        let waiting: u64 = self.lccs.values().map(|lcc| lcc.waiting_writes).sum();
        if waiting > 0 {
            reasons.push(format!("writes of {waiting} devices wait for portions"));
        }
        reasons
    }

    /// What will happen by itself, in words.
    fn next(&self) -> Option<&'static str> {
        match self.health() {
            Health::Ok => None,
            _ if self.suspects() > 0 => {
                Some("portions are rebuilt as soon as their disks answer; nothing needs to be done")
            }
            Health::Unavailable => Some("start the servers that do not answer"),
            _ => Some("what is down is started again by its main controller, or by `braid up`"),
        }
    }

    fn to_json(&self, file: &ClusterFile) -> serde_json::Value {
        let live = self.live_disks();
        let live_servers = self.live_servers();
        let map = self.map.clone().unwrap_or_default();
        let servers = file.servers.iter().map(|server| {
            let info = map.servers.get(&server.id);
            let processes = self.processes.get(&server.id);
            let up = processes.is_some() && live_servers.contains(&server.id);
            let state = match info.map(|info| info.state) {
                Some(ServerState::Draining) if up => "draining",
                _ if up => "up",
                _ => "down",
            };
            let processes = processes.into_iter().flatten().map(|process| {
                let mut value = json!({
                    "role": role_name(process.role),
                    "pid": process.pid,
                    "restarts": process.restarts,
                    "last_end": process.last_end,
                });
                if let Some(disk) = process.disk {
                    value["disk"] = json!(disk.0);
                }
                value
            });
            json!({
                "id": server.id.0,
                "name": info.map_or_else(|| server.id.to_string(), |info| info.name.clone()),
                "state": state,
                "rear": server.lc.to_string(),
                "coordinator": server.coordinator.to_string(),
                "main": server.main.to_string(),
                "s3": null, "nfs": null, "smb": null, "webdav": null, "console": null,
                "processes": processes.collect::<Vec<_>>(),
            })
        });
        let disks = map.disks.values().map(|disk| {
            let space = live.get(&disk.id);
            let state = match disk.state {
                DiskState::Failed => "failed",
                _ if space.is_none() => "missing",
                DiskState::Draining => "draining",
                DiskState::InUse => "in_use",
            };
            let (total, free) = space.copied().unwrap_or((0, 0));
            json!({
                "id": disk.id.0, "server": disk.server.0, "path": disk.path, "state": state,
                "bytes_total": total, "bytes_used": total - free.min(total), "bytes_free": free,
            })
        });
        let counts = self.leader.as_ref().map(|leader| leader.facts).unwrap_or_default();
        let sum = |field: fn(&LccStatus) -> u64| self.lccs.values().map(field).sum::<u64>();
        let devices: BTreeSet<_> = self.facts.iter().filter_map(|fact| fact.kind.group()).collect();
        json!({
            "health": self.health().word(),
            "reasons": self.reasons(),
            "next": self.next(),
            "cluster": {"name": file.name, "id": file.cluster.to_string(), "map_version": map.version},
            "global_controller": self.leader.as_ref().map(|leader| {
                json!({"server": leader.server.0, "term": leader.term})
            }),
            "coordinators": map.coordinators.iter().map(|id| id.0).collect::<Vec<_>>(),
            "servers": servers.collect::<Vec<_>>(),
            "disks": disks.collect::<Vec<_>>(),
            "mounts": map.servers.values().filter(|server| server.is_mount).map(|mount| json!({
                "id": mount.id.0, "name": mount.name, "lc": mount.lc_address.to_string(),
                "groups_open": self.lccs.get(&mount.id).map(|lcc| lcc.groups),
            })).collect::<Vec<_>>(),
            "facts": {"pending": counts.pending, "suspect": counts.suspect, "local_copy": counts.local_copy},
            "repair": {
                "devices_left": devices.len(),
                "bytes_left": null, "bytes_per_second": null, "eta_seconds": null,
                "running": sum(|lcc| lcc.repairs),
                "blocks_rebuilt": sum(|lcc| lcc.blocks_rebuilt),
            },
            "scrub": self.scrub(),
            "counters": {
                "cluster_writes": sum(|lcc| lcc.writes),
                "prepares": sum(|lcc| lcc.prepares),
                "coordinator_calls": sum(|lcc| lcc.coordinator_calls),
                "syncs_asked": sum(|lcc| lcc.syncs_asked),
                "bytes_read": sum(|lcc| lcc.bytes_read),
                "groups_open": sum(|lcc| lcc.groups),
                "log_entries_proposed": self.leader.as_ref().map_or(0, |leader| leader.entries_proposed),
                "grants": self.leader.as_ref().map_or(0, |leader| leader.grants),
            },
        })
    }

    /// How long ago the disks were verified, by the clock of this machine.
    fn scrub(&self) -> serde_json::Value {
        let scrubs: Vec<_> = self.leader.iter().flat_map(|leader| leader.scrubs.iter()).collect();
        let oldest = scrubs.iter().map(|(_, scrub)| scrub.verified).min();
        let seconds = |verified: u64| self.now.saturating_sub(verified) / 1000;
        json!({
            "running": scrubs.iter().filter(|(_, scrub)| scrub.running).count(),
            "oldest_seconds": oldest.map(seconds),
            "bad_blocks": self.bad_blocks(),
            "disks": scrubs.iter().map(|(disk, scrub)| json!({
                "id": disk.0, "running": scrub.running, "blocks": scrub.blocks,
                "bad_blocks": scrub.bad_blocks, "age_seconds": seconds(scrub.verified),
            })).collect::<Vec<_>>(),
        })
    }

    fn bad_blocks(&self) -> u64 {
        let scrubs = self.leader.iter().flat_map(|leader| leader.scrubs.iter());
        scrubs.map(|(_, scrub)| scrub.bad_blocks).sum()
    }

    fn to_text(&self, file: &ClusterFile) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let health = self.health();
        let paint = |code: &str, word: &str| {
            if color { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
        };
        let word = match health {
            Health::Ok => paint("32", "ok"),
            Health::Degraded => paint("33", "degraded"),
            Health::AtRisk => paint("31", "at risk"),
            Health::Unavailable => paint("31;1", "unavailable"),
        };
        let _ = writeln!(text, "cluster {}: {word}", file.name);
        for reason in self.reasons() {
            let _ = writeln!(text, "  - {reason}");
        }
        if let Some(next) = self.next() {
            let _ = writeln!(text, "  next: {next}");
        }
        if let Some(leader) = &self.leader {
            let _ = writeln!(
                text,
                "global controller: server {} (term {}), {} of {} coordinators answer",
                leader.server, leader.term, self.coordinators_up, self.coordinators
            );
            let facts = leader.facts;
            let _ = writeln!(
                text,
                "facts: {} pending, {} suspect, {} local copy",
                facts.pending, facts.suspect, facts.local_copy
            );
        }
        let live = self.live_disks();
        let live_servers = self.live_servers();
        let map = self.map.clone().unwrap_or_default();
        let _ = writeln!(text, "\n{:<12} {:<6} {:<22} processes", "server", "state", "address");
        for server in &file.servers {
            let info = map.servers.get(&server.id);
            let name = info.map_or_else(|| server.id.to_string(), |info| info.name.clone());
            let processes = self.processes.get(&server.id);
            let up = processes.is_some() && live_servers.contains(&server.id);
            let list = processes.into_iter().flatten().map(|process| {
                let pid = process.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
                let disk = process.disk.map_or_else(String::new, |disk| format!("-{disk}"));
                let restarts = match process.restarts {
                    0 => String::new(),
                    count => format!(" (restarted {count})"),
                };
                format!("{}{disk}:{pid}{restarts}", role_name(process.role))
            });
            let list = list.collect::<Vec<_>>().join(" ");
            let state = if up { "up" } else { "down" };
            let _ = writeln!(text, "{name:<12} {state:<6} {:<22} {list}", server.lc.to_string());
        }
        let _ = writeln!(
            text,
            "\n{:<6} {:<8} {:<9} {:>12} {:>12}  verified",
            "disk", "server", "state", "used", "total"
        );
        let scrubs: BTreeMap<_, _> =
            self.leader.iter().flat_map(|leader| leader.scrubs.iter().copied()).collect();
        for disk in map.disks.values() {
            let (state, used, total) = match live.get(&disk.id) {
                Some((total, free)) => ("in use", size(total - free.min(total)), size(*total)),
                None => ("missing", "-".to_owned(), "-".to_owned()),
            };
            let verified = scrubs
                .get(&disk.id)
                .map_or_else(|| "-".to_owned(), |scrub| verified(scrub, self.now));
            let _ = writeln!(
                text,
                "{:<6} {:<8} {state:<9} {used:>12} {total:>12}  {verified}",
                disk.id.0, disk.server.0
            );
        }
        let mut mounts = map.servers.values().filter(|server| server.is_mount).peekable();
        if mounts.peek().is_some() {
            let _ = writeln!(text, "\n{:<6} {:<22} mount", "server", "address");
            for mount in mounts {
                let address = mount.lc_address.to_string();
                let _ = writeln!(text, "{:<6} {address:<22} {}", mount.id.0, mount.name);
            }
        }
        text
    }
}

/// `braid status`.
pub fn status(global: &Global, as_json: bool, watch: bool) -> Outcome {
    let file = cluster_file(global)?;
    machine::run(async {
        let env = machine::env(Default::default());
        loop {
            let seen = look(&env, &file, Duration::from_secs(3)).await;
            if as_json {
                print_json(&seen.to_json(&file));
            } else {
                if watch && std::io::stdout().is_terminal() {
                    print!("\x1b[H\x1b[2J");
                }
                print!("{}", seen.to_text(&file));
            }
            if !watch {
                if seen.processes.is_empty() && seen.map.is_none() {
                    let reason = "no server of the cluster answers; `braid up` starts it";
                    return Err(Failure::Unreachable(reason.to_owned()));
                }
                return Ok(ExitCode::SUCCESS);
            }
            sleep(Duration::from_secs(1)).await;
        }
    })?
}

/// `braid facts`.
pub fn facts(global: &Global, as_json: bool) -> Outcome {
    let file = cluster_file(global)?;
    machine::run(async {
        let env = machine::env(Default::default());
        let seen = look(&env, &file, Duration::from_secs(3)).await;
        if seen.map.is_none() {
            return Err(Failure::Unreachable(seen.reasons().join("; ")));
        }
        let rows: Vec<_> = seen.facts.iter().map(fact_row).collect();
        if as_json {
            print_json(&json!(rows));
        } else if rows.is_empty() {
            println!("no facts: nothing is known to be wrong or unfinished");
        } else {
            for row in rows {
                println!("{}", row["text"].as_str().unwrap_or_default());
            }
        }
        Ok(ExitCode::SUCCESS)
    })?
}

/// `braid facts --discard`: an operator gives up what a server has in its local journal. Source: W-13.
pub fn discard(global: &Global, number: u64) -> Outcome {
    let file = cluster_file(global)?;
    machine::run(async {
        let env = machine::env(Default::default());
        let seen = look(&env, &file, Duration::from_secs(3)).await;
        if seen.map.is_none() {
            return Err(Failure::Unreachable(seen.reasons().join("; ")));
        }
        let fact = seen.facts.iter().find(|fact| fact.number.0 == number);
        let Some(FactKind::LocalCopy { layout, .. }) = fact.map(|fact| &fact.kind) else {
            return Err(Failure::Failed(format!("{number} is no local copy: see braid facts")));
        };
        let client = braid_client::Client::connect(env.clone(), &file).await?;
        let op = FileOp::EndCopy { fact: FactNumber(number) };
        client.file_op(layout, op, Payload::empty()).await?;
        println!("device {} may be changed again", layout.group());
        Ok(ExitCode::SUCCESS)
    })?
}

fn fact_row(fact: &Fact) -> serde_json::Value {
    let number = fact.number.0;
    match &fact.kind {
        FactKind::Pending { incarnation } => json!({
            "number": number, "kind": "pending", "incarnation": incarnation.0,
            "text": format!("{number}: pending: controller start {incarnation} may have unfinished writes"),
        }),
        FactKind::Suspect { layout, slot, after, whole } => {
            let name = layout.portion_name(0, *slot);
            json!({
                "number": number, "kind": "suspect", "device": layout.group().0, "portion": slot.0,
                "disk": layout.disk(*slot).0, "name": name.to_string(), "whole": whole,
                "after": after.to_string(),
                "text": format!("{number}: suspect: portion {name} on disk {} may lack writes after {after}", layout.disk(*slot)),
            })
        }
        FactKind::LocalCopy { layout, server, .. } => json!({
            "number": number, "kind": "local_copy", "device": layout.group().0, "server": server.0,
            "text": format!("{number}: local copy: bytes of device {} may be only on server {server}", layout.group()),
        }),
    }
}

/// `braid repair`: the LCs do it by themselves; this asks the owners at once and may wait.
pub fn repair(global: &Global, wait: bool) -> Outcome {
    let file = cluster_file(global)?;
    machine::run(async {
        let env = machine::env(Default::default());
        let client = braid_client::Client::connect(env.clone(), &file).await?;
        let mut last = usize::MAX;
        loop {
            let seen = look(&env, &file, Duration::from_secs(3)).await;
            if seen.map.is_none() {
                return Err(Failure::Unreachable(seen.reasons().join("; ")));
            }
            let left = seen.suspects();
            if left != last {
                println!("{left} portions to be rebuilt");
                last = left;
            }
            if left == 0 {
                return Ok(ExitCode::SUCCESS);
            }
            let groups: BTreeMap<_, _> = seen
                .facts
                .iter()
                .filter_map(|fact| match &fact.kind {
                    FactKind::Suspect { layout, .. } => Some((layout.group(), layout.clone())),
                    _ => None,
                })
                .take(64)
                .collect();
            let asked = groups.values().map(|layout| client.repair_group(layout));
            let asked = futures_util::future::join_all(asked);
            let _ = timeout(Duration::from_secs(5), asked).await;
            if !wait {
                return Ok(ExitCode::SUCCESS);
            }
            sleep(Duration::from_millis(300)).await;
        }
    })?
}

/// When a disk was verified last, for people.
fn verified(scrub: &ScrubStatus, now: u64) -> String {
    let seconds = now.saturating_sub(scrub.verified) / 1000;
    let ago = match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    };
    let bad = match scrub.bad_blocks {
        0 => String::new(),
        bad => format!(", {bad} blocks bad"),
    };
    format!("{ago}{}{bad}", if scrub.running { ", now again" } else { "" })
}

/// `braid df`.
pub fn df(global: &Global, as_json: bool) -> Outcome {
    let file = cluster_file(global)?;
    machine::run(async {
        let env = machine::env(Default::default());
        let seen = look(&env, &file, Duration::from_secs(3)).await;
        let Some(map) = &seen.map else {
            return Err(Failure::Unreachable(seen.reasons().join("; ")));
        };
        let live = seen.live_disks();
        let total: u64 = live.values().map(|(total, _)| total).sum();
        let free: u64 = live.values().map(|(_, free)| free).sum();
        let scheme = map.scheme_default.unwrap_or(braid_terms::SCHEME_DEFAULT);
        let usable = |bytes: u64| bytes / scheme.portions() as u64 * scheme.data() as u64;
        if as_json {
            print_json(&json!({
                "bytes_total": total, "bytes_free": free, "bytes_used": total - free.min(total),
                "scheme": scheme.to_string(),
                "usable_bytes_total": usable(total), "usable_bytes_free": usable(free),
                "disks": live.iter().map(|(disk, (total, free))| json!({
                    "id": disk.0, "bytes_total": total, "bytes_free": free,
                })).collect::<Vec<_>>(),
            }));
        } else {
            println!("{:<10} {:>12} {:>12} {:>12}", "", "total", "used", "free");
            for (disk, (total, free)) in &live {
                let name = format!("disk {disk}");
                println!(
                    "{name:<10} {:>12} {:>12} {:>12}",
                    size(*total),
                    size(total - free),
                    size(*free)
                );
            }
            println!(
                "{:<10} {:>12} {:>12} {:>12}",
                "all disks",
                size(total),
                size(total - free.min(total)),
                size(free)
            );
            println!(
                "for files of the default scheme {scheme}: {} of {} free",
                size(usable(free)),
                size(usable(total))
            );
        }
        Ok(ExitCode::SUCCESS)
    })?
}

/// Disks whose I/O servers hold a lease; `None` where nobody knows.
pub async fn live_disks(client: &braid_client::Client) -> Option<BTreeSet<DiskId>> {
    let statuses = client.coordinators().statuses(Duration::from_secs(2)).await;
    let known: Vec<CoordinatorStatus> = statuses.into_iter().flatten().collect();
    let term = known.iter().map(|status| status.term).max()?;
    let leader =
        known.iter().find(|status| status.term == term && status.leader == Some(status.server))?;
    Some(leader.disks.iter().map(|(disk, _, _)| *disk).collect())
}
