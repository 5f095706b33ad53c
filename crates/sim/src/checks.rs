//! After the faults: the cluster heals completely, and nothing is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use braid_client::{Client, Error, FileKind};
use braid_terms::{DeviceId, DiskId};
use tokio::time::{sleep, timeout};

use crate::cluster::Role;
use crate::operations::{DIRECTORIES, LOGS, directory_of, maker_of, read_all, slashed};
use crate::oracle::{OpId, Sight};
use crate::run::{Settings, World};

impl World {
    /// Facts close; everything is read, synced, and from then on known for sure.
    pub async fn check_healed(&self, settings: Settings) {
        if !self.heals().await {
            return;
        }
        let Ok(client) = self.cluster.client(0).await else {
            return self.violate("no client can connect after healing".to_owned());
        };
        for directory in DIRECTORIES {
            self.list(&client, directory).await;
        }
        let names = self.oracle.borrow().names();
        let mut settled = Vec::new();
        for name in names {
            let found = self.check_name(&client, &name).await;
            if self.violation.borrow().is_some() {
                return;
            }
            settled.push((name, found));
        }
        // Only now: what a name may be follows from what others were.
        for (name, found) in settled {
            self.oracle.borrow_mut().settle_name(&name, found);
        }
        self.check_link_counts(&client).await;
        for log in LOGS {
            self.check_log(&client, log).await;
        }
        for path in DIRECTORIES {
            let synced = async { client.directory(slashed(path)).await?.sync().await };
            if let Err(error) = synced.await {
                self.violate(format!("after healing: sync of {}: {error}", slashed(path)));
            }
        }
        // What was found bad while everything was read is repaired, too, and what only scrubs find.
        if self.has_rotted.get() && !self.is_scrubbed(settings.servers as usize).await {
            return;
        }
        if self.heals().await && self.violation.borrow().is_none() {
            self.check_redundancy(settings).await;
        }
    }

    /// Each file counts as many names as it has, and each directory as many directories. What was under
    /// way when its client was killed may go on for a while. Source: W-7.
    async fn check_link_counts(&self, client: &Client) {
        let mut wrong = None;
        for _ in 0..COUNT_LOOKS {
            wrong = match self.wrong_link_count(client).await {
                Ok(wrong) => wrong,
                Err(error) => Some(format!("link counts cannot be looked at: {error}")),
            };
            if wrong.is_none() {
                return self.reach("link counts compared");
            }
            sleep(LOOK_EVERY).await;
        }
        wrong.into_iter().for_each(|wrong| self.violate(wrong));
    }

    async fn wrong_link_count(&self, client: &Client) -> Result<Option<String>, Error> {
        let mut files: BTreeMap<DeviceId, (u32, Vec<String>)> = BTreeMap::new();
        for directory in DIRECTORIES {
            let entries = client.list(slashed(directory), false).await?.all().await?;
            let directories = entries.iter().filter(|entry| entry.kind == FileKind::Directory);
            let expected = 2 + directories.count() as u32;
            let node = client.lookup(slashed(directory)).await?;
            if node.attributes.nlink != expected {
                let found = node.attributes.nlink;
                return Ok(Some(format!("{directory}/ counts {found}, not {expected}")));
            }
            for entry in entries.iter().filter(|entry| entry.kind == FileKind::File) {
                let name = format!("{directory}/{}", String::from_utf8_lossy(&entry.name));
                let node = client.lookup(&name).await?;
                let (count, names) = files.entry(node.id()).or_default();
                *count = node.attributes.nlink;
                names.push(name);
            }
        }
        let mut wrong =
            files.into_iter().filter(|(_, (count, names))| *count as usize != names.len());
        Ok(wrong.next().map(|(id, (count, names))| {
            format!("file {id} counts {count} names and has {names:?}")
        }))
    }

    /// Two scrubs of each disk end, the second of which begins now at the earliest, and find nothing
    /// that is still bad.
    async fn is_scrubbed(&self, disks: usize) -> bool {
        let passes = async {
            let mut seen: BTreeMap<DiskId, BTreeSet<u64>> = BTreeMap::new();
            loop {
                let scrubs = self.cluster.scrubs().await;
                let bad: u64 = scrubs.iter().map(|(_, scrub)| scrub.bad_blocks).sum();
                for (disk, scrub) in scrubs {
                    seen.entry(disk).or_default().insert(scrub.verified);
                }
                let done = seen.values().filter(|passes| 3 <= passes.len()).count();
                if disks <= done && bad == 0 {
                    return;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        let is_scrubbed = timeout(SCRUB_WAIT, passes).await.is_ok();
        if !is_scrubbed {
            let scrubs = self.cluster.scrubs().await;
            self.violate(format!("what rotted is not found and healed: {scrubs:?}"));
        }
        is_scrubbed
    }

    /// Everything reads right without any m servers: parity is right wherever it is needed. Several
    /// sets of servers, together all or nearly all of them.
    async fn check_redundancy(&self, settings: Settings) {
        let all = || (1..=settings.servers).collect::<Vec<u32>>();
        let mut servers = all();
        let parity = settings.scheme.parity();
        for _ in 0..2 {
            if servers.len() < parity {
                servers = all();
            }
            let out: Vec<u32> = (0..parity)
                .map(|_| servers.swap_remove(self.random(servers.len() as u64) as usize))
                .collect();
            self.tell(|| format!("everything is read without the I/O servers {out:?}"));
            out.iter().for_each(|server| self.cluster.kill(*server, Role::Io));
            let Ok(client) = self.cluster.client(0).await else {
                return self.violate("no client can connect while m are out".to_owned());
            };
            let names = self.oracle.borrow().names();
            for name in names.iter().filter(|name| is_file(name)) {
                if self.oracle.borrow().stands_for_something(name)
                    && self.read(&client, name).await.is_none()
                {
                    self.violate(format!("{name} cannot be read without {out:?}"));
                }
            }
            self.reach("everything read without m servers");
            self.cluster.bring_back();
            if self.violation.borrow().is_some() || !self.heals().await {
                return;
            }
        }
    }

    /// Whether no fact is left, for so long that nobody can be about to record one: an owner looks
    /// for a slot for a while before it removes it, also when it has just come back.
    async fn heals(&self) -> bool {
        let healed = async {
            let mut quiet = 0;
            while quiet < QUIET_LOOKS {
                quiet += 1;
                match self.cluster.open_facts().await {
                    Some((0, 0)) if self.cluster.local_copies().await == Some(Vec::new()) => {}
                    Some((suspects, _)) if suspects > 0 => {
                        self.reach("repair");
                        quiet = 0;
                    }
                    _ => quiet = 0,
                }
                sleep(LOOK_EVERY).await;
            }
        };
        let is_healed = timeout(HEAL_WAIT, healed).await.is_ok();
        if !is_healed {
            let left = self.cluster.open_facts().await;
            let copies = self.cluster.local_copies().await;
            self.violate(format!(
                "not healed: (suspect, pending) facts left {left:?}, local copies {copies:?}"
            ));
        }
        is_healed
    }

    /// A name stands for what it may, its file reads right, and is synced; what made it.
    async fn check_name(&self, client: &Client, name: &str) -> Sight {
        if !is_file(name) {
            return match self.look(client, name).await {
                None => Sight::Nothing,
                Some(node) => maker_of(&node).map_or(Sight::Something, Sight::Thing),
            };
        }
        let Some(maker) = self.look(client, name).await.as_ref().and_then(maker_of) else {
            let begin = self.oracle.borrow_mut().now();
            match client.open(name).await {
                Err(Error::NotFound { .. }) => {
                    let checked = self.oracle.borrow_mut().saw_name(name, begin, Sight::Nothing);
                    checked.err().into_iter().for_each(|wrong| self.violate(wrong));
                }
                _ => self.violate(format!("after healing: {name} cannot be looked up")),
            }
            return Sight::Nothing;
        };
        let Some((op, bytes)) = self.read(client, name).await else {
            if self.violation.borrow().is_none() {
                self.unreadable(client, name, maker).await;
            }
            return Sight::Nothing;
        };
        // What a local journal laid again may have stood behind what was only held.
        if self.was_cut.get() && !self.local.get() {
            let checked = self.oracle.borrow().check_prefix(op);
            if let Err(wrong) = checked {
                self.violate(format!("after the power cut of the site: {name}: {wrong}"));
            }
        }
        let synced = async { client.open(name).await?.sync().await };
        if let Err(error) = synced.await {
            self.violate(format!("after healing: sync of {name}: {error}"));
        }
        self.oracle.borrow_mut().settle_file(op, &bytes);
        Sight::Thing(op)
    }

    /// Only what was never synced may be lost in a power cut of the site.
    async fn unreadable(&self, client: &Client, name: &str, maker: OpId) {
        let may_be = self.oracle.borrow().may_be_unreadable(maker);
        if !self.was_cut.get() || !may_be {
            return self.violate(format!("after healing: {name} cannot be read"));
        }
        self.reach("a file that was never synced is lost");
        if let Err(error) = client.unlink(name).await {
            self.violate(format!("after healing: unlink of {name}: {error}"));
        }
    }

    async fn check_log(&self, client: &Client, log: &str) {
        let begin = self.oracle.borrow_mut().now();
        let read = async {
            let bytes = read_all(client.open(log).await?).await?;
            let synced = self.oracle.borrow_mut().now();
            client.open(log).await?.sync().await?;
            Ok::<_, Error>((bytes, synced))
        };
        match read.await {
            Ok((bytes, synced)) => {
                self.saw_log(log, begin, &bytes);
                self.oracle.borrow_mut().settle_log(log, &bytes, synced);
            }
            Err(error) => self.violate(format!("after healing: {log}: {error}")),
        }
        assert!(DIRECTORIES.contains(&directory_of(log)), "logs are where nothing is removed");
    }
}

/// Whether a name is one that only files have.
fn is_file(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|last| last.starts_with('f'))
}

/// Longest wait for two scrubs, which begin every 20 s.
const SCRUB_WAIT: Duration = Duration::from_secs(200);

/// Longest healing, in simulated time.
const HEAL_WAIT: Duration = Duration::from_secs(120);

/// Looks at link counts until they must be right.
const COUNT_LOOKS: u32 = 40;

/// How often facts are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Looks without a fact after which the cluster is at rest: longer than an owner looks for a slot.
const QUIET_LOOKS: u32 = 8;
