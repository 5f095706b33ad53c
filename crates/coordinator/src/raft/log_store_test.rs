use std::time::Duration;

use braid_env::Env;
use braid_env::simulated::{self, SimDisk, Simulation};
use braid_terms::{ClusterId, ServerId};
use openraft::EntryPayload;
use openraft::async_runtime::Oneshot;
use openraft::type_config::alias::OneshotOf;
use tokio::time::sleep;

use super::super::stored::Content;
use super::*;
use crate::command::{Batch, Command};

const OURS: LogIdentity = LogIdentity { cluster: ClusterId(7), server: ServerId(1) };

fn id(term: u64, index: u64) -> EntryId {
    EntryId { term, index }
}

fn entry(term: u64, index: u64) -> Entry {
    let lcc = braid_terms::Incarnation(index);
    let commands = vec![Command::LeaseNumbers { lcc, grant: Default::default() }];
    LogEntry { id: id(term, index), content: Content::Commands(Batch(commands)) }.into()
}

fn ballot(term: u64) -> Ballot {
    Ballot { term, node: 1, committed: true }
}

async fn open(env: &Env) -> Result<LogStore, OpenError> {
    LogStore::open(env.folder("/log".as_ref()).unwrap(), OURS).await
}

/// Appends and waits until it is said to be durable.
async fn append(store: &mut LogStore, entries: Vec<Entry>) -> io::Result<()> {
    let (sender, receiver) = OneshotOf::<TypeConfig>::channel();
    store.append(entries, IOFlushed::signal(sender)).await?;
    receiver.await.map_err(io::Error::other)?
}

fn indexes(store: &LogStore) -> Vec<(u64, u64)> {
    let state = store.0.state.borrow();
    let ids = state.content.entries.values().map(|kept| EntryId::from(kept.entry.log_id));
    ids.map(|id| (id.term, id.index)).collect()
}

fn world(simulation: &Simulation) -> (Env, SimDisk) {
    let machine = simulation.machine(1);
    let disk = machine.add_disk("/log", 64 << 20);
    (machine.env(), disk)
}

#[test]
fn a_log_is_what_its_records_say() {
    simulated::run(1, async |simulation| {
        let (env, _) = world(&simulation);
        let mut store = open(&env).await.unwrap();
        assert!(store.is_new());
        store.save_vote(&ballot(1).into()).await.unwrap();
        append(&mut store, (1..=10).map(|index| entry(1, index)).collect()).await.unwrap();
        store.truncate_after(Some(id(1, 7).into())).await.unwrap();
        append(&mut store, vec![entry(2, 8), entry(2, 9)]).await.unwrap();
        store.save_vote(&ballot(2).into()).await.unwrap();
        store.purge(id(1, 3).into()).await.unwrap();
        let expect = [(1, 4), (1, 5), (1, 6), (1, 7), (2, 8), (2, 9)];
        for _ in 0..3 {
            assert_eq!(indexes(&store), expect);
            assert_eq!(store.read_vote().await.unwrap(), Some(ballot(2).into()));
            let log = store.get_log_state().await.unwrap();
            assert_eq!(log.last_purged_log_id, Some(id(1, 3).into()));
            assert_eq!(log.last_log_id, Some(id(2, 9).into()));
            let read = store.try_get_log_entries(5..=8).await.unwrap();
            assert_eq!(read.len(), 4);
            assert!(matches!(&read[0].payload, EntryPayload::Normal(batch) if batch.0.len() == 1));
            store = open(&env).await.unwrap();
        }
        store.purge(id(2, 9).into()).await.unwrap();
        let mut store = open(&env).await.unwrap();
        let log = store.get_log_state().await.unwrap();
        assert_eq!(log.last_log_id, Some(id(2, 9).into()));
        append(&mut store, vec![entry(2, 10)]).await.unwrap();
        store.truncate_after(None).await.unwrap();
        assert!(indexes(&open(&env).await.unwrap()).is_empty());
    });
}

#[test] // Proves: S-3. What was said to be durable is there after a power cut, in order.
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    for seed in 1..=60 {
        simulated::run(seed, async |simulation| {
            let (mut env, _) = world(&simulation);
            let (mut next, mut term) = (1, 1);
            for _ in 0..4 {
                let mut store = open(&env).await.unwrap();
                let found = indexes(&store);
                let count = found.len() as u64;
                assert!(count + 1 >= next, "seed {seed}: {count} of {next}");
                assert_eq!(found, (1..=count).map(|index| (1, index)).collect::<Vec<_>>());
                let vote = store.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id.term);
                assert!(vote + 1 >= term, "seed {seed}: vote {vote}");
                next = count + 1;
                let acknowledged = Rc::new(std::cell::Cell::new((next, term)));
                let told = acknowledged.clone();
                let writer = tokio::task::spawn_local(async move {
                    loop {
                        let (next, term) = told.get();
                        let entries = (next..next + next % 4 + 1).map(|index| entry(1, index));
                        append(&mut store, entries.collect()).await.unwrap();
                        told.set((next + next % 4 + 1, term));
                        if next % 7 == 0 {
                            store.save_vote(&ballot(term).into()).await.unwrap();
                            told.set((told.get().0, term + 1));
                        }
                    }
                });
                sleep(Duration::from_millis(20 + simulation.random_below(100))).await;
                writer.abort();
                let _ = writer.await;
                (next, term) = acknowledged.get();
                let machine = simulation.machine(1);
                machine.power_cut();
                machine.power_on();
                env = machine.env();
            }
        });
    }
}

#[test] // Proves: S-4.
fn a_failed_sync_is_told_and_nothing_is_written_after_it() {
    simulated::run(1, async |simulation| {
        let (env, disk) = world(&simulation);
        let mut store = open(&env).await.unwrap();
        append(&mut store, vec![entry(1, 1)]).await.unwrap();
        disk.fail_syncs(1);
        assert!(append(&mut store, vec![entry(1, 2)]).await.is_err());
        assert!(append(&mut store, vec![entry(1, 3)]).await.is_err());
        assert!(store.save_vote(&ballot(1).into()).await.is_err());
    });
}

#[test]
fn a_dead_beginning_is_given_back() {
    simulated::run(1, async |simulation| {
        let (env, disk) = world(&simulation);
        let mut store = open(&env).await.unwrap();
        for round in 0..40u64 {
            let first = round * 1000 + 1;
            append(&mut store, (first..first + 1000).map(|index| entry(1, index)).collect())
                .await
                .unwrap();
            store.purge(id(1, first + 900).into()).await.unwrap();
        }
        let length = disk.content(LOG).unwrap().len() as u64;
        assert!(length < 2 * COMPACT_MIN, "{length} bytes");
        assert_eq!(indexes(&open(&env).await.unwrap()).len(), 99);
    });
}

#[test] // Proves: S-3, S-7.
fn damage_and_others_logs_are_refused() {
    simulated::run(1, async |simulation| {
        let (env, disk) = world(&simulation);
        let mut store = open(&env).await.unwrap();
        append(&mut store, vec![entry(1, 1)]).await.unwrap();
        append(&mut store, vec![entry(1, 2)]).await.unwrap();
        append(&mut store, vec![entry(1, 3)]).await.unwrap();
        let theirs = LogIdentity { server: ServerId(2), ..OURS };
        let folder = env.folder("/log".as_ref()).unwrap();
        let fault = LogStore::open(folder, theirs).await.err();
        assert!(matches!(fault, Some(OpenError::Fault(LogFault::Identity(OURS)))));
        let first = log_file::HEADER_SIZE as u64;
        disk.flip_bit(LOG, first + 2, 0);
        let fault = open(&env).await.err();
        assert!(matches!(fault, Some(OpenError::Fault(LogFault::Damaged(at))) if at == first));
    });
}
