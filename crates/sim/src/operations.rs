//! What clients do: everything that the client library has, on names and files that all share.
//! # Theory
//! Whatever is made carries the number of its making as an extended attribute, so that a look at it
//! tells the oracle what it is.

use std::time::Duration;

use braid_client::{Client, EntryAttributes, Error, File, Node, PutOptions, RenameOptions};
use braid_env::Env;
use braid_terms::{AckMode, Policy};
use braid_wire::coordinator::{CoordinatorRequest, MapChange};
use bytes::Bytes;
use tokio::time::sleep;

use crate::oracle::{LOG_RECORD, OpId, Sight, Tick, fill, fill_record};
use crate::run::World;

impl World {
    /// Makes what every client needs.
    pub async fn prepare(&self) {
        let made = async {
            let client = self.cluster.client(0).await?;
            for directory in &DIRECTORIES[1..] {
                client.mkdir(directory, &EntryAttributes::default()).await?;
            }
            for log in LOGS {
                let options = PutOptions { stable: true, ..PutOptions::default() };
                client.put_bytes(log, Bytes::new(), options).await?;
                self.oracle.borrow_mut().make_log(log);
            }
            if self.memory.get() {
                let policy = Policy {
                    name: "memory".to_owned(),
                    path_glob: Some(format!("{MEMORY}/**")),
                    data_type: None,
                    size_min: None,
                    client: None,
                    priority: None,
                    scheme: None,
                    strip_size: None,
                    ack: Some(if self.local.get() { AckMode::Local } else { AckMode::Memory }),
                    spread: None,
                    lccs: None,
                };
                let change = CoordinatorRequest::Change(MapChange::SetPolicy(policy));
                let set = client.coordinators().call(&change, Duration::from_secs(10)).await;
                assert!(set.is_ok(), "without any fault: {set:?}");
            }
            client.root().sync().await
        };
        if let Err(error) = made.await {
            self.violate(format!("without any fault: {error}"));
        }
    }

    /// A client's process.
    pub async fn client(&self, env: Env, number: u32) {
        let client = loop {
            match self.cluster.client_in(env.clone()).await {
                Ok(client) => break client,
                Err(_) if self.stop.get() => return,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        let keeps = self.keeps_copies.get() && matches!(number % 4, 1 | 2);
        let _copies = keeps.then(|| client.keep_caches(None));
        // Every other client is a mount.
        let hosted = match number % 2 {
            0 => Some(self.cluster.host(&client, number).await),
            _ => None,
        };
        while !self.stop.get() {
            self.operation(&client, number).await;
            self.operations.set(self.operations.get() + 1);
            sleep(Duration::from_millis(self.random(30))).await;
        }
        if let Some(hosted) = hosted {
            self.reach(if hosted.end().await { "mount ended" } else { "mount did not end well" });
        }
    }

    fn file_name(&self) -> String {
        format!("{}/f{}", self.any(&DIRECTORIES), self.random(3))
    }

    fn directory_name(&self) -> String {
        format!("{}/d{}", self.any(&DIRECTORIES[..2]), self.random(2))
    }

    fn any<T: Copy>(&self, of: &[T]) -> T {
        of[self.random(of.len() as u64) as usize]
    }

    async fn operation(&self, client: &Client, number: u32) {
        match self.random(32) {
            0..=4 => self.put(client, number).await,
            5..=12 => self.change(client, number).await,
            13 | 14 => self.unlink(client, number).await,
            15 | 16 => self.rename(client, number).await,
            17 => self.link(client, number).await,
            18 | 19 => self.make_or_remove_directory(client, number).await,
            20 => self.list(client, self.any(&DIRECTORIES)).await,
            21 => self.sync_directory(client).await,
            22..=24 => self.log(client, number).await,
            _ => {
                let name = self.file_name();
                self.read(client, &name).await;
            }
        }
    }

    /// Notes how an operation went; `None` where its outcome is not known.
    fn note<T>(&self, what: &'static str, result: &Result<T, Error>) {
        match result {
            Ok(_) => self.reach(what),
            Err(Error::Unavailable { .. }) => self.reach("outcome unknown"),
            Err(Error::NoSpace { .. } | Error::NoPlace { .. }) => self.reach("no space"),
            Err(
                Error::NotFound { .. }
                | Error::Exists { .. }
                | Error::Conflict { .. }
                | Error::NotEmpty { .. },
            ) => self.reach("refused"),
            Err(Error::Lost { .. }) if self.was_cut.get() => self.reach("lost in a power cut"),
            // It takes what portions remember of changes, too.
            Err(Error::Unsure { .. }) if self.was_cut.get() => {
                self.reach("unsure after a power cut");
            }
            Err(Error::HeldLost { .. }) if self.was_cut.get() || self.memory.get() => {
                self.reach("told of a loss");
                self.oracle.borrow_mut().told_of_loss(self.process);
            }
            Err(error) => self.violate(format!("{what}: {error}")),
        }
        self.tell(|| match result {
            Ok(_) => format!("   {what} done"),
            Err(error) => format!("   {what}: {error}"),
        });
    }

    fn now(&self) -> Tick {
        self.oracle.borrow_mut().now()
    }

    fn tell_op(&self, number: u32, op: OpId) {
        self.oracle.borrow_mut().by(op, self.process);
        self.tell(|| format!("client {number}: {}", self.oracle.borrow().describe(op)));
    }

    async fn put(&self, client: &Client, number: u32) {
        let name = self.file_name();
        let length = self.any(&[0, 100, 4096, 5000, 40_000, 100_000, 400_000]);
        let stable = self.random(4) == 0;
        let op = self.oracle.borrow_mut().begin_make(&name, Some(length));
        self.tell_op(number, op);
        let mut bytes = vec![0; length as usize];
        fill(op, 0, &mut bytes);
        let options =
            PutOptions { replace: true, stable, attributes: made_by(op), ..PutOptions::default() };
        let put = client.put_bytes(&name, bytes.into(), options).await;
        self.note(if stable { "put, stable" } else { "put" }, &put);
        if put.is_ok() {
            let mut oracle = self.oracle.borrow_mut();
            oracle.ended(op);
            if stable {
                let now = oracle.now();
                oracle.synced_file(op, now, self.process);
                oracle.synced_names(now, self.process, |other| other == name);
            }
        }
    }

    async fn unlink(&self, client: &Client, number: u32) {
        let name = self.file_name();
        let op = self.oracle.borrow_mut().begin_remove(&name);
        self.tell_op(number, op);
        let removed = client.unlink(&name).await;
        self.note("unlink", &removed);
        if matches!(removed, Ok(()) | Err(Error::NotFound { .. })) {
            self.oracle.borrow_mut().ended(op);
        }
    }

    async fn rename(&self, client: &Client, number: u32) {
        let (from, to) = if self.random(4) == 0 {
            (self.directory_name(), self.directory_name())
        } else {
            (self.file_name(), self.file_name())
        };
        if from == to {
            return;
        }
        let options = RenameOptions { exchange: self.random(5) == 0, ..RenameOptions::default() };
        let op = match options.exchange {
            true => self.oracle.borrow_mut().begin_exchange(&from, &to),
            false => self.oracle.borrow_mut().begin_move(&from, &to, false),
        };
        self.tell_op(number, op);
        let renamed = client.rename(&from, &to, options).await;
        self.note(
            match (directory_of(&from) == directory_of(&to), options.exchange) {
                (true, false) => "rename",
                (true, true) => "exchange",
                (false, false) => "rename across directories",
                (false, true) => "exchange across directories",
            },
            &renamed,
        );
        let mut oracle = self.oracle.borrow_mut();
        match renamed {
            Ok(()) => oracle.ended(op),
            // One request, so it did nothing.
            Err(Error::NotFound { .. } | Error::NotEmpty { .. }) => oracle.refused(op),
            Err(_) => {}
        }
    }

    async fn link(&self, client: &Client, number: u32) {
        let (from, to) = (self.file_name(), self.file_name());
        if from == to {
            return;
        }
        let op = self.oracle.borrow_mut().begin_move(&from, &to, true);
        self.tell_op(number, op);
        let linked = client.link(&from, &to).await;
        self.note("link", &linked);
        if linked.is_ok() {
            self.oracle.borrow_mut().ended(op);
        }
    }

    async fn make_or_remove_directory(&self, client: &Client, number: u32) {
        let name = self.directory_name();
        if self.random(2) == 0 {
            let op = self.oracle.borrow_mut().begin_make(&name, None);
            self.tell_op(number, op);
            let made = client.mkdir(&name, &made_by(op)).await.map(|_| ());
            self.note("mkdir", &made);
            if made.is_ok() {
                self.oracle.borrow_mut().ended(op);
            }
        } else {
            let op = self.oracle.borrow_mut().begin_remove(&name);
            self.tell_op(number, op);
            let removed = client.rmdir(&name).await;
            self.note("rmdir", &removed);
            if removed.is_ok() {
                self.oracle.borrow_mut().ended(op);
            }
        }
        self.look(client, &self.directory_name()).await;
    }

    /// Looks at a name, whatever it is.
    pub async fn look(&self, client: &Client, name: &str) -> Option<Node> {
        let begin = self.now();
        let found = client.lookup(name).await;
        self.saw(name, begin, &found);
        found.ok()
    }

    fn saw(&self, name: &str, begin: Tick, found: &Result<Node, Error>) -> Option<OpId> {
        let sight = match found {
            Ok(node) => match maker_of(node) {
                Some(op) => Sight::Thing(op),
                // One that was lost before it was synced begins anew, without its maker.
                None if node.is_directory() && (self.was_cut.get() || self.has_unmade.get()) => {
                    self.has_unmade.set(true);
                    self.reach("a directory that was never synced begins anew");
                    Sight::Something
                }
                None => {
                    self.violate(format!("{name} does not tell who made it"));
                    return None;
                }
            },
            Err(Error::NotFound { .. }) => Sight::Nothing,
            Err(_) => {
                self.note("look", found);
                return None;
            }
        };
        let checked = self.oracle.borrow_mut().saw_name(name, begin, sight);
        self.tell(|| {
            let id =
                found.as_ref().map_or_else(|_| String::new(), |node| format!(", {}", node.id()));
            format!("   {name} is {sight:?}{id}")
        });
        if let Err(wrong) = checked {
            self.violate(wrong);
        }
        match sight {
            Sight::Thing(op) => Some(op),
            _ => None,
        }
    }

    /// Opens what a name stands for.
    async fn open(&self, client: &Client, name: &str) -> Option<(File, OpId)> {
        let begin = self.now();
        let file = client.open(name).await;
        let node = file.as_ref().map(File::node).map_err(Clone::clone);
        let op = self.saw(name, begin, &node)?;
        Some((file.ok()?, op))
    }

    /// Reads a file by its name; its bytes and what it is, where that could be found out.
    pub async fn read(&self, client: &Client, name: &str) -> Option<(OpId, Bytes)> {
        let begin = self.now();
        let (file, op) = self.open(client, name).await?;
        let read = read_all(file).await;
        self.note("read", &read);
        let bytes = read.ok()?;
        let checked = self.oracle.borrow_mut().saw_file(op, begin, &bytes);
        if let Err(wrong) = checked {
            self.violate(format!("{name}: {wrong}"));
        }
        Some((op, bytes))
    }

    /// Some changes of a file, through one handle.
    async fn change(&self, client: &Client, number: u32) {
        let name = self.file_name();
        let Some((file, made)) = self.open(client, &name).await else { return };
        for _ in 0..1 + self.random(3) {
            match self.random(10) {
                0 => {
                    let length = self.random(self.any(&[5000, 50_000, 300_000]));
                    let op = self.oracle.borrow_mut().begin_truncate(made, length);
                    self.tell_op(number, op);
                    let cut = file.truncate(length).await;
                    self.changed("truncate", op, &cut);
                }
                1 => {
                    let (at, length) = (self.random(50_000), 1 + self.random(30_000));
                    let op = self.oracle.borrow_mut().begin_punch(made, at, length);
                    self.tell_op(number, op);
                    let punched = file.punch(at, length).await;
                    self.changed("punch", op, &punched);
                }
                2 => {
                    let begin = self.now();
                    self.tell(|| format!("client {number}: sync of file {made}"));
                    let synced = file.sync().await;
                    self.note("sync", &synced);
                    if synced.is_ok() {
                        self.oracle.borrow_mut().synced_file(made, begin, self.process);
                    }
                }
                _ => self.write(&file, (&name, made), number).await,
            }
            if self.stop.get() {
                return;
            }
        }
    }

    async fn write(&self, file: &File, (name, made): (&str, OpId), number: u32) {
        let at = self.random(self.any(&[5000, 20_000, 100_000, 400_000]));
        let length = 1 + self.random(self.any(&[100, 9000, 9000, 70_000]));
        let op = self.oracle.borrow_mut().begin_write(made, at, length);
        self.tell_op(number, op);
        let mut bytes = vec![0; length as usize];
        fill(op, at, &mut bytes);
        let written = file.write(at, bytes.into()).await;
        let written = match written {
            Ok(()) => file.flush().await,
            failed => failed,
        };
        if self.memory.get() && directory_of(name) == MEMORY {
            let from_local = "write, answered from a local journal";
            let from = if self.local.get() { from_local } else { "write, answered from memory" };
            self.note(from, &written);
            if written.is_ok() {
                self.oracle.borrow_mut().answered_ahead(op);
            }
        } else {
            self.changed("write", op, &written);
        }
    }

    fn changed(&self, what: &'static str, op: OpId, result: &Result<(), Error>) {
        self.note(what, result);
        if result.is_ok() {
            self.oracle.borrow_mut().changed(op);
        }
    }

    async fn sync_directory(&self, client: &Client) {
        let path = self.any(&DIRECTORIES);
        let Ok(directory) = client.directory(slashed(path)).await else { return };
        let begin = self.now();
        let synced = directory.sync().await;
        self.note("sync of a directory", &synced);
        if synced.is_ok() {
            let process = self.process;
            let mut oracle = self.oracle.borrow_mut();
            oracle.synced_names(begin, process, |name| directory_of(name) == path);
        }
    }

    /// Appends to a log, or reads it.
    async fn log(&self, client: &Client, number: u32) {
        let log = self.any(&LOGS);
        let Ok(file) = client.open(log).await else { return };
        if self.random(3) == 0 {
            let begin = self.now();
            let read = read_all(file).await;
            self.note("read of a log", &read);
            if let Ok(bytes) = read {
                self.saw_log(log, begin, &bytes);
            }
            return;
        }
        let op = self.oracle.borrow_mut().begin_append(log);
        self.tell_op(number, op);
        let mut record = vec![0; LOG_RECORD];
        fill_record(op, &mut record);
        let appended = file.append(record.into()).await;
        let flushed = match appended {
            Ok(at) => file.flush().await.map(|()| at),
            Err(error) => Err(error),
        };
        self.note("append", &flushed);
        let Ok(at) = flushed else { return };
        self.tell(|| format!("   append {op} went to {at}"));
        self.oracle.borrow_mut().appended(log, op, at);
        if self.random(3) == 0 {
            let begin = self.now();
            let synced = file.sync().await;
            self.note("sync", &synced);
            if synced.is_ok() {
                self.oracle.borrow_mut().synced_log(log, begin, self.process);
            }
        }
    }

    pub fn saw_log(&self, log: &str, begin: Tick, bytes: &[u8]) {
        let checked = self.oracle.borrow_mut().saw_log(log, begin, bytes);
        if let Err(wrong) = checked {
            self.violate(wrong);
        }
    }

    /// Lists a directory: each name is there or not, all at one time.
    pub async fn list(&self, client: &Client, path: &str) {
        let begin = self.now();
        let listed = async { client.list(slashed(path), false).await?.all().await };
        let listed = listed.await;
        self.note("list", &listed);
        let Ok(entries) = listed else { return };
        let mut there: Vec<String> = Vec::new();
        for entry in &entries {
            there.push(format!("{path}/{}", String::from_utf8_lossy(&entry.name)));
        }
        for (index, name) in there.iter().enumerate() {
            if there[..index].contains(name) {
                self.violate(format!("{name} is listed twice"));
            }
        }
        let known = self.oracle.borrow().names();
        let fixed = |name: &String| LOGS.contains(&&**name) || DIRECTORIES.contains(&&**name);
        for name in there.iter().filter(|name| !fixed(name)) {
            if !known.contains(name) {
                self.violate(format!("{name} is listed, nobody made it"));
            }
        }
        for name in known.iter().filter(|name| directory_of(name) == path) {
            let sight = if there.contains(name) { Sight::Something } else { Sight::Nothing };
            let checked = self.oracle.borrow_mut().saw_name(name, begin, sight);
            if let Err(wrong) = checked {
                self.violate(format!("listed: {wrong}"));
            }
        }
    }
}

/// All bytes of a file.
pub async fn read_all(file: File) -> Result<Bytes, Error> {
    let mut reader = file.reader().await?;
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.into())
}

fn made_by(op: OpId) -> EntryAttributes {
    let number = Bytes::from(op.0.to_string());
    EntryAttributes { xattrs: vec![(Bytes::from_static(MAKER), number)], ..Default::default() }
}

/// The operation that made what was found.
pub fn maker_of(node: &Node) -> Option<OpId> {
    let (_, number) = node.attributes.xattrs.iter().find(|(name, _)| name == MAKER)?;
    std::str::from_utf8(number).ok()?.parse().ok().map(OpId)
}

/// The directory of a name, as in `DIRECTORIES`.
pub fn directory_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// A directory of `DIRECTORIES` as a path.
pub fn slashed(directory: &str) -> &str {
    if directory.is_empty() { "/" } else { directory }
}

/// Directories that are always there, without the slash at the end.
pub const DIRECTORIES: [&str; 3] = ["", "/a", "/b"];
/// Files that only grow.
pub const LOGS: [&str; 2] = ["/log", "/a/log"];
/// Where writes are answered from memory or from local journals, if anywhere.
const MEMORY: &str = "/b";
const MAKER: &[u8] = b"user.maker";
