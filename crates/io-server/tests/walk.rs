//! Ring 4: random walks of one I/O server against a model, over a disk that forgets and tears.
//!
//! The model is the chain of records that were promised. After a process crash all of it must be
//! there; after a power cut a prefix with all that was synced; what is read must be what the chain
//! says, at the stable mark and at its end.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use braid_env::Env;
use braid_io_server::Limits;
use braid_terms::{DeviceId, WriteNumber};
use braid_wire::io::*;
use braid_wire::operations::Operations;
use common::disk::{Random, TestDisk};
use common::*;

const NONE: WriteNumber = WriteNumber::NONE;
/// Blocks of each group's portion: more than one block group.
const BLOCKS: u64 = 600;
const GROUPS: u64 = 3;

type Content = BTreeMap<u64, Rc<Vec<u8>>>;

/// Something that entered the journal for a group, in order.
#[derive(Clone)]
struct Event {
    number: WriteNumber,
    kind: RecordKind,
    /// What a write makes of the content.
    content: Rc<Content>,
    synced: bool,
}

/// One record of the chain that events make.
#[derive(Clone)]
struct Link {
    number: WriteNumber,
    kind: RecordKind,
    content: Rc<Content>,
}

#[derive(Default)]
struct ModelGroup {
    /// State at the stable mark, and what came since.
    base: Rc<Content>,
    base_number: WriteNumber,
    events: Vec<Event>,
    decided: WriteNumber,
    sequence: u64,
}

impl ModelGroup {
    fn chain_of(&self, count: usize) -> Vec<Link> {
        let mut chain: Vec<Link> = Vec::new();
        for Event { number, kind, content, .. } in &self.events[..count] {
            let mut content = content.clone();
            match kind {
                RecordKind::Write => {}
                RecordKind::Void => {
                    chain.retain(|link| link.number != *number);
                    content = chain.last().map_or(&self.base, |link| &link.content).clone();
                }
                RecordKind::Outcome { ends_at } => {
                    chain.retain(|link| link.number <= *ends_at);
                    content = chain.last().map_or(&self.base, |link| &link.content).clone();
                }
            }
            chain.push(Link { number: *number, kind: *kind, content });
        }
        chain
    }

    fn chain(&self) -> Vec<Link> {
        self.chain_of(self.events.len())
    }

    fn last(&self) -> WriteNumber {
        self.chain().last().map_or(self.base_number, |link| link.number)
    }

    fn content(&self) -> Rc<Content> {
        self.chain().last().map_or_else(|| self.base.clone(), |link| link.content.clone())
    }

    fn push(&mut self, number: WriteNumber, kind: RecordKind, content: Content) {
        let content = Rc::new(content);
        self.events.push(Event { number, kind, content, synced: false });
    }

    fn make_stable(&mut self, count: usize) {
        let chain = self.chain();
        for link in &chain[..count] {
            self.base.clone_from(&link.content);
            self.base_number = link.number;
        }
        let event = |link: &Link| Event {
            number: link.number,
            kind: link.kind,
            content: link.content.clone(),
            synced: true,
        };
        self.events = chain[count..].iter().map(event).collect();
        self.decided = self.decided.max(self.base_number);
    }

    /// The longest beginning of the events that a report fits, with all that is synced.
    fn fit(&self, report: &Report) -> Option<usize> {
        let reported: Vec<_> =
            report.records.iter().map(|head| (head.record.number, head.record.kind)).collect();
        let synced = self.events.iter().rposition(|event| event.synced).map_or(0, |at| at + 1);
        (synced..=self.events.len()).rev().find(|count| {
            let chain = self.chain_of(*count);
            let last = chain.last().map_or(self.base_number, |link| link.number);
            let unstable = chain.iter().filter(|link| report.stable < link.number);
            let unstable: Vec<_> = unstable.map(|link| (link.number, link.kind)).collect();
            // The slot may not have heard of the newest stable mark: it then reports more.
            last == report.last && reported.ends_with(&unstable)
        })
    }
}

struct Walk {
    seed: u64,
    random: Random,
    disk: TestDisk,
    env: Env,
    server: Option<Started>,
    start: u64,
    groups: Vec<ModelGroup>,
    seeds: u64,
}

fn limits(random: &mut Random) -> Limits {
    Limits {
        groups_max: usize::try_from(1 + random.below(4)).unwrap(),
        reserve_bytes: 0,
        direct_blocks_min: 4,
        uncached_blocks_min: 6,
        ..Limits::default()
    }
}

impl Walk {
    async fn new(seed: u64) -> Self {
        let disk = TestDisk::new();
        let env = disk.env(seed);
        format(&env, Path::new("/disk")).await;
        let groups = (0..GROUPS).map(|_| ModelGroup::default()).collect();
        let random = Random(seed);
        let mut walk = Self { seed, random, disk, env, server: None, start: 0, groups, seeds: 1 };
        walk.restart(false).await;
        walk
    }

    fn owner(&self, group: u64) -> Owner {
        Owner::new(self.server.as_ref().unwrap(), 10 + group, self.start, self.start)
    }

    /// Ends the process, cuts the power or not, starts again and compares.
    async fn restart(&mut self, power: bool) {
        self.server = None;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        if power {
            self.disk.cut_power(&mut self.random);
        }
        self.start += 1;
        let mut config = config(Path::new("/disk"));
        config.limits = limits(&mut self.random);
        self.server = Some(start_with(&self.env, &config, self.start).await);
        for group in 0..GROUPS {
            self.reopen(group, power).await;
        }
    }

    async fn reopen(&mut self, group: u64, power: bool) {
        let (seed, start) = (self.seed, self.start);
        let report = self.owner(group).open().await.unwrap();
        assert_eq!(report.damaged_after, None, "seed {seed}: nothing was damaged");
        let model = &mut self.groups[usize::try_from(group).unwrap()];
        assert!(report.stable <= model.decided, "seed {seed}");
        let fit = model.fit(&report);
        let fit = fit.unwrap_or_else(|| panic!("seed {seed} start {start}: {report:?}"));
        assert!(power || fit == model.events.len(), "seed {seed} start {start}: lost by a crash");
        model.events.truncate(fit);
        // What was found is on the medium now, or written to it again.
        model.events.iter_mut().for_each(|event| event.synced = true);
        model.decided = model.decided.min(model.last());
        model.sequence = 0;
        self.compare(group).await;
        // Part of what is not decided is dropped, by an outcome record, as a new owner would.
        let model = &mut self.groups[usize::try_from(group).unwrap()];
        let chain = model.chain();
        if !chain.is_empty() && self.random.below(2) == 0 {
            let undecided = chain.iter().filter(|link| model.decided < link.number).count();
            let dropped = usize::try_from(self.random.below(undecided as u64 + 1)).unwrap();
            let keep = chain[..chain.len() - dropped].last();
            let ends_at = keep.map_or(model.base_number, |link| link.number);
            let mut outcome = record(number(start, 0), model.last(), vec![]);
            outcome.kind = RecordKind::Outcome { ends_at };
            let kind = outcome.kind;
            self.owner(group).prepare(outcome, &[], NONE, NONE).await.unwrap();
            let model = &mut self.groups[usize::try_from(group).unwrap()];
            model.push(number(start, 0), kind, Content::new());
        }
    }

    async fn compare(&self, group: u64) {
        let model = &self.groups[usize::try_from(group).unwrap()];
        for (decided, content) in
            [(model.last(), model.content()), (model.base_number, model.base.clone())]
        {
            if model.last() == NONE {
                return;
            }
            let found = self.owner(group).read(decided, 0, BLOCKS).await.unwrap();
            for (index, block) in found.chunks(4096).enumerate() {
                let expect = content.get(&(index as u64));
                let good = match expect {
                    Some(expect) => block == **expect,
                    None => block.iter().all(|byte| *byte == 0),
                };
                assert!(good, "seed {} group {group} block {index} at {decided}", self.seed);
            }
        }
    }

    fn draw_changes(&mut self, content: &mut Content) -> (Vec<Change>, Vec<u8>) {
        let (mut changes, mut payload) = (Vec::new(), Vec::new());
        for _ in 0..1 + self.random.below(3) {
            let count = match self.random.below(3) {
                0 => 1,
                1 => 1 + self.random.below(8),
                _ => 1 + self.random.below(90),
            };
            let first = self.random.below(BLOCKS - count);
            if self.random.below(4) == 0 {
                changes.push(Change::Punch(BlockRange { device_index: 0, first, count }));
                (first..first + count).for_each(|block| drop(content.remove(&block)));
                continue;
            }
            self.seeds += count;
            let bytes = blocks(self.seeds, count);
            changes.push(write(first, &bytes));
            payload.extend_from_slice(&bytes);
            for (index, block) in bytes.chunks(4096).enumerate() {
                content.insert(first + index as u64, Rc::new(block.to_vec()));
            }
        }
        (changes, payload)
    }

    async fn prepare(&mut self, group: u64) {
        let at = usize::try_from(group).unwrap();
        let mut content = (*self.groups[at].content()).clone();
        let (changes, payload) = self.draw_changes(&mut content);
        let model = &mut self.groups[at];
        model.sequence += 1;
        let (number, prev) = (number(self.start, model.sequence), model.last());
        let record = record(number, prev, changes);
        let (decided, stable) = (model.decided, model.base_number);
        let answer = self.owner(group).prepare(record, &payload, decided, stable).await;
        let model = &mut self.groups[at];
        match answer {
            Ok(_) => model.push(number, RecordKind::Write, content),
            Err(IoRefusal::Full) => model.sequence -= 1,
            Err(other) => panic!("seed {}: {other:?}", self.seed),
        }
    }

    /// Withdraws the newest record, if it is of this owner and not decided.
    async fn void(&mut self, group: u64) {
        let at = usize::try_from(group).unwrap();
        let model = &mut self.groups[at];
        let chain = model.chain();
        let Some(last) = chain.last().map(|link| link.number) else { return };
        if last.sequence == 0 || last.grant != grant(self.start) || last <= model.decided {
            return;
        }
        let before = chain[..chain.len() - 1].last();
        let mut void = record(last, before.map_or(model.base_number, |link| link.number), vec![]);
        void.kind = RecordKind::Void;
        self.owner(group).prepare(void, &[], NONE, NONE).await.unwrap();
        self.groups[at].push(last, RecordKind::Void, Content::new());
    }

    async fn sync(&mut self) {
        // What is promised before the call is covered by it.
        self.owner(0).sync().await;
        for model in &mut self.groups {
            model.events.iter_mut().for_each(|event| event.synced = true);
        }
    }

    async fn marks(&mut self, group: u64) {
        let at = usize::try_from(group).unwrap();
        let model = &mut self.groups[at];
        if model.events.iter().all(|event| event.synced) {
            let count = self.random.below(model.chain().len() as u64 + 1);
            model.make_stable(usize::try_from(count).unwrap());
        }
        if let Some(link) = model.chain().get(usize::try_from(self.random.below(4)).unwrap()) {
            model.decided = model.decided.max(link.number);
        }
        let (decided, stable) = (model.decided, model.base_number);
        self.owner(group).marks(decided, stable, vec![]).await;
    }

    /// Ends the process in the middle of a checkpoint.
    async fn break_checkpoint(&mut self) {
        self.sync().await;
        for group in 0..GROUPS {
            self.marks(group).await;
        }
        let server = self.server.as_ref().unwrap().server.clone();
        let task = tokio::task::spawn_local(async move {
            let _ = server.checkpoint().await;
        });
        // It stops at one of its syncs, while prepares go on.
        self.disk.allow_syncs(Some(self.random.below(12)));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        for _ in 0..self.random.below(4) {
            let group = self.random.below(GROUPS);
            self.prepare(group).await;
        }
        task.abort();
        tokio::task::yield_now().await;
        self.disk.allow_syncs(None);
        let power = self.random.below(2) == 0;
        self.restart(power).await;
    }

    /// The slot begins anew and gets back all that the group has, as by a rebuild.
    async fn rejoin(&mut self, group: u64) {
        let at = usize::try_from(group).unwrap();
        let owner = self.owner(group);
        let model = &mut self.groups[at];
        if model.last() == NONE {
            return;
        }
        let (after, content) = (model.base_number, model.content());
        let decided = model.last();
        let whole = self.random.below(2) == 0;
        let request = IoRequest::Rejoin {
            fence: owner.fence(),
            rejoin: Box::new(Rejoin {
                layout: layout(owner.device),
                after,
                prev: decided,
                decided,
                lengths: vec![1],
                home: DeviceId(9),
                whole,
                operations: Operations::default(),
                missed: Vec::new(),
            }),
        };
        report(owner.ask(request, &[]).await.0).unwrap();
        let mut first = 0;
        while first < BLOCKS {
            let count = (1 + self.random.below(100)).min(BLOCKS - first);
            let (mut changes, mut payload) = (Vec::new(), Vec::new());
            for block in first..first + count {
                match content.get(&block) {
                    Some(bytes) => payload.extend_from_slice(bytes),
                    None => {
                        let range = BlockRange { device_index: 0, first: block, count: 1 };
                        changes.push(Change::Punch(range));
                    }
                }
            }
            let mut run = Vec::new();
            let mut writes = Vec::new();
            for block in first..=first + count {
                match content.get(&block).filter(|_| block < first + count) {
                    Some(bytes) => run.extend_from_slice(bytes),
                    None if !run.is_empty() => {
                        writes.push(write(block - run.len() as u64 / 4096, &run));
                        run.clear();
                    }
                    None => {}
                }
            }
            changes.extend(writes);
            let request = IoRequest::Rebuild { fence: owner.fence(), decided, changes };
            let answer = owner.ask(request, &payload).await.0;
            assert!(answer.is_ok(), "seed {}: {answer:?}", self.seed);
            first += count;
        }
        self.sync().await;
        let model = &mut self.groups[at];
        let count = model.chain().len();
        model.make_stable(count);
        model.decided = decided;
        self.compare(group).await;
    }

    async fn step(&mut self) {
        let group = self.random.below(GROUPS);
        let what = self.random.below(40);
        if std::env::var("BRAID_WALK_TRACE").is_ok() {
            let (last, model) = (&self.groups[group as usize].last(), &self.groups[group as usize]);
            eprintln!("{what} at group {group}: last {last} stable {}", model.base_number);
        }
        match what {
            0..=17 => self.prepare(group).await,
            18 | 19 => self.void(group).await,
            20..=23 => self.sync().await,
            24..=29 => self.marks(group).await,
            30 | 31 => self.server.as_ref().unwrap().checkpoint().await.unwrap(),
            32 => self.restart(false).await,
            33 => self.restart(true).await,
            34 | 35 => self.break_checkpoint().await,
            36 => self.rejoin(group).await,
            _ => self.compare(group).await,
        }
    }
}

fn walk(seeds: std::ops::Range<u64>, steps: u64) {
    for seed in seeds {
        run(async {
            let mut walk = Walk::new(seed).await;
            for _ in 0..steps {
                walk.step().await;
            }
            walk.restart(true).await;
        });
    }
}

#[test] // Proves: W-1, W-2, W-8, W-9, W-12, S-1, S-3.
fn promised_records_survive_crashes_and_synced_ones_power_cuts() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let from = number("BRAID_WALK_FROM").unwrap_or(0);
    walk(from..from + number("BRAID_WALK_SEEDS").unwrap_or(6), 120);
}

#[test]
fn one_seed() {
    if let Some(seed) = std::env::var("BRAID_WALK_SEED").ok().and_then(|text| text.parse().ok()) {
        walk(seed..seed + 1, 120);
    }
}
