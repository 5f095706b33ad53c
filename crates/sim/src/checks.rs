//! After the faults: the cluster heals completely, and nothing is wrong.

use std::time::Duration;

use braid_client::{Client, Error};
use tokio::time::{sleep, timeout};

use crate::faults::Rules;
use crate::operations::{DIRECTORIES, LOGS, directory_of, read_all, slashed};
use crate::oracle::Sight;
use crate::run::World;

impl World {
    /// Facts close; everything is read, synced, and from then on known for sure.
    pub async fn check_healed(&self, _rules: &Rules) {
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
        for name in names {
            self.check_name(&client, &name).await;
            if self.violation.borrow().is_some() {
                return;
            }
        }
        for log in LOGS {
            self.check_log(&client, log).await;
        }
        for path in DIRECTORIES {
            let synced = async { client.directory(slashed(path)).await?.sync().await };
            if let Err(error) = synced.await {
                self.violate(format!("after healing: sync of {}: {error}", slashed(path)));
            }
        }
        // What was found bad while everything was read is repaired, too.
        self.heals().await;
    }

    async fn heals(&self) -> bool {
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
        let is_healed = timeout(HEAL_WAIT, healed).await.is_ok();
        if !is_healed {
            let left = self.cluster.open_facts().await;
            self.violate(format!("not healed: (suspect, pending) facts left {left:?}"));
        }
        is_healed
    }

    /// A name stands for what it may, its file reads right, and is synced.
    async fn check_name(&self, client: &Client, name: &str) {
        let is_file = name.rsplit('/').next().is_some_and(|last| last.starts_with('f'));
        if !is_file {
            let found = self.look(client, name).await;
            let maker = found.as_ref().and_then(crate::operations::maker_of);
            return self.oracle.borrow_mut().settle_name(name, maker);
        }
        let begin = self.oracle.borrow_mut().now();
        let file = match client.open(name).await {
            Ok(file) => file,
            Err(Error::NotFound { .. }) => {
                let mut oracle = self.oracle.borrow_mut();
                let checked = oracle.saw_name(name, begin, Sight::Nothing);
                oracle.settle_name(name, None);
                drop(oracle);
                if let Err(wrong) = checked {
                    self.violate(format!("after healing: {wrong}"));
                }
                return;
            }
            Err(error) => return self.violate(format!("after healing: open {name}: {error}")),
        };
        drop(file);
        let Some((op, bytes)) = self.read(client, name).await else {
            if self.violation.borrow().is_none() {
                self.unreadable(client, name).await;
            }
            return;
        };
        if self.was_cut.get() {
            let checked = self.oracle.borrow().check_prefix(op);
            if let Err(wrong) = checked {
                self.violate(format!("after the power cut of the site: {name}: {wrong}"));
            }
        }
        let synced = async { client.open(name).await?.sync().await };
        if let Err(error) = synced.await {
            return self.violate(format!("after healing: sync of {name}: {error}"));
        }
        let mut oracle = self.oracle.borrow_mut();
        oracle.settle_name(name, Some(op));
        oracle.settle_file(op, &bytes);
    }

    /// Only what was never synced may be lost in a power cut of the site.
    async fn unreadable(&self, client: &Client, name: &str) {
        let found = self.look(client, name).await;
        let maker = found.as_ref().and_then(crate::operations::maker_of);
        let may_be = maker.is_some_and(|op| self.oracle.borrow().may_be_lost(op));
        if !self.was_cut.get() || !may_be {
            return self.violate(format!("after healing: {name} cannot be read"));
        }
        self.reach("a file that was never synced is lost");
        if let Err(error) = client.unlink(name).await {
            return self.violate(format!("after healing: unlink of {name}: {error}"));
        }
        self.oracle.borrow_mut().settle_name(name, None);
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

/// Longest healing, in simulated time.
const HEAL_WAIT: Duration = Duration::from_secs(120);
