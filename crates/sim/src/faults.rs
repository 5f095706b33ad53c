//! What goes wrong while clients work.
//! # Theory
//! Several *mishaps* run at once, each a list of faults with pauses between. What a round may do
//! follows from what is promised:
//! ```text
//! Machines  disks of at most m servers lose what was not synced, rot, fill up, fail or are gone;
//!           their I/O servers stop; LCs and coordinators stop anywhere
//! Network   no byte is lost: processes anywhere stop or pause, links are cut in one direction or
//!           both, slow disks, full disks, failing syncs, drifting clocks
//! Site      as Network, and all machines lose their power at once
//! ```
//! The first and the second are never one: an owner that is cut off may rightly give up portions of
//! untouched machines, and then m lost disks are more than is promised.
//! Rot comes only in the last round: what nobody reads is not repaired before another disk is lost.

use std::time::Duration;

use tokio::time::sleep;

use crate::cluster::{CLIENTS, Role};
use crate::run::{Settings, World};

/// What a round may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoundKind {
    Machines,
    Network,
    Site,
}

/// A round's rules.
#[derive(Clone, Debug)]
pub struct Rules {
    pub kind: RoundKind,
    /// Servers whose disks may lose something.
    pub touched: Vec<u32>,
    pub rot: bool,
}

impl World {
    /// Draws what the next round may do.
    pub fn draw_rules(&self, settings: Settings, is_last: bool) -> Rules {
        let kind = match self.random(5) {
            0 | 1 => RoundKind::Machines,
            2 | 3 => RoundKind::Network,
            _ => RoundKind::Site,
        };
        let mut servers: Vec<u32> = (1..=settings.servers).collect();
        let touched = (0..settings.scheme.parity())
            .map(|_| servers.swap_remove(self.random(servers.len() as u64) as usize))
            .collect();
        Rules { kind, touched, rot: is_last && self.random(2) == 0 }
    }

    /// All faults of a round; at their end some may still last.
    pub async fn faults(&self, settings: Settings, rules: &Rules) {
        let site = async {
            if rules.kind == RoundKind::Site {
                sleep(Duration::from_millis(1000 + self.random(5000))).await;
                self.site_power_cut(settings).await;
            }
        };
        tokio::join!(
            self.mishap(settings, rules),
            self.mishap(settings, rules),
            self.mishap(settings, rules),
            site
        );
    }

    async fn mishap(&self, settings: Settings, rules: &Rules) {
        for _ in 0..1 + self.random(4) {
            sleep(self.span(1500)).await;
            match rules.kind {
                RoundKind::Machines => self.machine_fault(settings, rules).await,
                RoundKind::Network | RoundKind::Site => self.network_fault(settings).await,
            }
        }
    }

    fn span(&self, milliseconds: u64) -> Duration {
        Duration::from_millis(self.random(milliseconds))
    }

    fn any_server(&self, settings: Settings) -> u32 {
        1 + self.random(u64::from(settings.servers)) as u32
    }

    async fn machine_fault(&self, settings: Settings, rules: &Rules) {
        let any = self.any_server(settings);
        let Some(server) =
            rules.touched.get(self.random(rules.touched.len().max(1) as u64) as usize).copied()
        else {
            return self.kill(any, Role::Lc).await;
        };
        match self.random(14) {
            0..=2 => self.power_cut(server).await,
            3 | 4 => self.kill(server, Role::Io).await,
            5 => self.pause(server, Role::Io).await,
            6 => self.slow_disk(server).await,
            7 => self.full_disk(server).await,
            8 => self.failing_syncs(server).await,
            9 => self.gone_disk(server).await,
            10 if rules.rot => self.rot(server),
            10 | 11 => self.kill(any, Role::Lc).await,
            12 => self.kill(any, Role::Coordinator).await,
            _ => self.kill_client(settings).await,
        }
    }

    async fn network_fault(&self, settings: Settings) {
        let server = self.any_server(settings);
        let role = [Role::Coordinator, Role::Io, Role::Lc][self.random(3) as usize];
        let client = CLIENTS + self.random(u64::from(settings.clients)) as u32;
        match self.random(16) {
            0..=2 => self.kill(server, role).await,
            3 | 4 => self.pause(server, role).await,
            5 | 6 => self.cut_off(settings, server).await,
            14 => self.pause_client(client - CLIENTS).await,
            15 => self.cut_off(settings, client).await,
            7 => self.delay(settings, server).await,
            8 => self.slow_disk(server).await,
            9 => self.full_disk(server).await,
            10 => self.failing_syncs(server).await,
            11 => self.kill_all(settings, role).await,
            12 => self.clocks(settings),
            _ => self.kill_client(settings).await,
        }
    }

    async fn power_cut(&self, server: u32) {
        if !self.simulation.machine(server).is_up() {
            return;
        }
        self.reach("power cut of a machine");
        self.tell(|| format!("power cut of server {server}"));
        self.cluster.power_cut(server);
        if self.random(4) == 0
            && let Some(path) = self.cluster.disk(server).lose_random_file("portions/")
        {
            self.reach("portion file lost");
            self.tell(|| format!("{path} of server {server} is lost"));
        }
        sleep(self.span(6000)).await;
        if !self.simulation.machine(server).is_up() {
            self.simulation.machine(server).power_on();
        }
        self.tell(|| format!("power for server {server}"));
        self.cluster.start_server(server);
    }

    /// All machines at once: what was not synced may be lost anywhere.
    async fn site_power_cut(&self, settings: Settings) {
        self.reach("power cut of the site");
        self.tell(|| "power cut of the site".to_owned());
        for server in 1..=settings.servers {
            self.cluster.power_cut(server);
        }
        self.oracle.borrow_mut().power_cut();
        self.was_cut.set(true);
        sleep(self.span(3000)).await;
        // An owner that outlives it, of a mount, shows what it has until it finds that out.
        self.oracle.borrow_mut().power_cut();
        for server in 1..=settings.servers {
            if self.random(2) == 0 {
                sleep(self.span(500)).await;
            }
            if !self.simulation.machine(server).is_up() {
                self.simulation.machine(server).power_on();
            }
            self.cluster.start_server(server);
        }
        self.tell(|| "power for the site".to_owned());
    }

    async fn kill(&self, server: u32, role: Role) {
        if !self.cluster.runs(server, role) {
            return;
        }
        self.reach(match role {
            Role::Coordinator => "coordinator killed",
            Role::Io => "I/O server killed",
            Role::Lc => "LC killed",
        });
        self.tell(|| format!("{role:?} of server {server} killed"));
        self.cluster.kill(server, role);
        let long = self.random(4) == 0;
        sleep(self.span(if long { 4000 } else { 400 })).await;
        self.cluster.start_process(server, role);
    }

    /// Every process of a role on some servers, or on all.
    async fn kill_all(&self, settings: Settings, role: Role) {
        self.reach("a role killed on many servers");
        let servers: Vec<u32> = (1..=settings.servers).filter(|_| self.random(4) != 0).collect();
        self.tell(|| format!("{role:?} of servers {servers:?} killed"));
        servers.iter().for_each(|server| self.cluster.kill(*server, role));
        sleep(self.span(2000)).await;
        servers.iter().for_each(|server| self.cluster.start_process(*server, role));
    }

    async fn pause(&self, server: u32, role: Role) {
        self.reach("pause");
        self.tell(|| format!("{role:?} of server {server} paused"));
        self.cluster.set_paused(server, role, true);
        sleep(self.span(5000)).await;
        self.tell(|| format!("{role:?} of server {server} goes on"));
        self.cluster.set_paused(server, role, false);
    }

    async fn cut_off(&self, settings: Settings, server: u32) {
        let way = self.random(4);
        self.reach(match way {
            0 => "partition, frames out are held",
            1 => "partition, frames in are held",
            2 => "partition, both ways",
            _ => "partition, some links",
        });
        self.tell(|| format!("machine {server} cut off, way {way}"));
        let others: Vec<u32> = (1..=settings.servers)
            .chain(CLIENTS..CLIENTS + settings.clients)
            .filter(|other| *other != server)
            .collect();
        for other in &others {
            match if way == 3 { self.random(4) } else { way } {
                0 => self.simulation.partition(server, *other),
                1 => self.simulation.partition(*other, server),
                2 => self.simulation.partition_both(server, *other),
                _ => {}
            }
        }
        sleep(self.span(6000)).await;
        for other in &others {
            self.simulation.heal(server, *other);
            self.simulation.heal(*other, server);
        }
        self.tell(|| format!("machine {server} no longer cut off"));
    }

    async fn delay(&self, settings: Settings, server: u32) {
        self.reach("slow links");
        let most = [20, 200, 1500][self.random(3) as usize];
        self.tell(|| format!("links of server {server} slower by up to {most} ms"));
        for other in (1..=settings.servers).filter(|other| *other != server) {
            self.simulation.set_delay(server, other, self.span(most));
            self.simulation.set_delay(other, server, self.span(most));
        }
        sleep(self.span(4000)).await;
        for other in (1..=settings.servers).filter(|other| *other != server) {
            self.simulation.heal(server, other);
            self.simulation.heal(other, server);
        }
    }

    async fn slow_disk(&self, server: u32) {
        self.reach("slow disk");
        let most = [50, 500, 3000][self.random(3) as usize];
        self.tell(|| format!("syncs of server {server} take up to {most} ms"));
        let disk = self.cluster.disk(server);
        disk.set_sync_latency(Duration::from_millis(most / 2)..Duration::from_millis(most));
        sleep(self.span(5000)).await;
        disk.set_usual_sync_latency();
    }

    async fn full_disk(&self, server: u32) {
        self.reach("full disk");
        let disk = self.cluster.disk(server);
        let left = self.random(40) << 20;
        self.tell(|| format!("disk of server {server} has {left} bytes left"));
        disk.set_size(disk.used() + left);
        sleep(self.span(4000)).await;
        disk.set_size(crate::cluster::DISK_SIZE);
    }

    async fn failing_syncs(&self, server: u32) {
        self.reach("failing sync");
        self.tell(|| format!("syncs of server {server} fail"));
        self.cluster.disk(server).fail_syncs(1 + self.random(2) as u32);
        sleep(self.span(1000)).await;
        self.cluster.disk(server).fail_syncs(0);
    }

    async fn gone_disk(&self, server: u32) {
        self.reach("disk gone for a while");
        self.tell(|| format!("disk of server {server} gone"));
        self.cluster.disk(server).set_gone(true);
        sleep(self.span(4000)).await;
        self.cluster.disk(server).set_gone(false);
        self.tell(|| format!("disk of server {server} back"));
    }

    fn rot(&self, server: u32) {
        for _ in 0..1 + self.random(4) {
            let folder = if self.random(4) == 0 { "journal/" } else { "portions/" };
            if let Some((path, at)) = self.cluster.disk(server).flip_random_bit(folder) {
                self.reach("bit rot");
                self.has_rotted.set(true);
                self.tell(|| format!("rot on server {server}: {path} at {at}"));
            }
        }
    }

    /// Within what leases allow: 1 % between any two.
    fn clocks(&self, settings: Settings) {
        self.reach("clocks drift");
        let server = self.any_server(settings);
        let drift = self.random(10_000_000) as i64 - 5_000_000;
        self.tell(|| format!("clock of server {server} drifts by {drift} ppb"));
        self.simulation.machine(server).set_drift(drift);
        self.simulation.machine(server).jump_wall_time(self.random(200) as i64 - 100);
    }

    /// A client machine that sleeps, with what its LCC owns.
    async fn pause_client(&self, number: u32) {
        let Some(client) = self.clients.borrow().get(&number).cloned() else { return };
        self.reach("client paused");
        self.tell(|| format!("client {number} paused"));
        client.pause();
        sleep(self.span(6000)).await;
        self.tell(|| format!("client {number} goes on"));
        client.resume();
    }

    async fn kill_client(&self, settings: Settings) {
        let number = self.random(u64::from(settings.clients)) as u32;
        let killed = self.clients.borrow_mut().remove(&number);
        let Some(killed) = killed else { return };
        self.reach("client killed");
        self.tell(|| format!("client {number} killed"));
        killed.kill();
        sleep(self.span(1000)).await;
        if !self.stop.get() {
            self.start_client(number);
        }
    }

    /// Everything is whole again, from outside.
    pub fn end_faults(&self, settings: Settings) {
        self.tell(|| "faults end".to_owned());
        for server in 1..=settings.servers {
            let disk = self.cluster.disk(server);
            disk.set_gone(false);
            disk.fail_syncs(0);
            disk.set_size(crate::cluster::DISK_SIZE);
            disk.set_usual_sync_latency();
        }
        self.cluster.bring_back();
    }
}
