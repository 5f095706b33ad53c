//! Ring 5: what a local journal answered, when its process and all portions' are killed.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use braid_client::{Client, ClusterFile, PutOptions};
use braid_env::machine;
use bytes::Bytes;
use common::{Cluster, kill};
use tokio::time::Instant;

/// Behind the end of the file, so that nothing is read to write there.
const FAR: u64 = 8 << 20;

#[test] // Proves: W-13.
fn an_answer_from_a_local_journal_outlives_all_processes_but_the_coordinators() {
    let cluster = Cluster::started(3);
    cluster.ok(&["policy", "set", "local", "--match", "/f", "--ack", "local"]);
    let text = std::fs::read_to_string(cluster.path("braid-data/client.toml")).unwrap();
    let file = ClusterFile::parse(&text).unwrap();
    let pids = |role| (1..=3).flat_map(|id| cluster.pids(id, role)).collect::<Vec<_>>();
    let (ios, lcs) = (pids("io"), pids("lc"));
    assert!(3 <= ios.len() && lcs.len() == 3);
    let bytes = |byte: u8| Bytes::from(vec![byte; 100_000]);
    machine::run(async {
        let client = Client::connect(machine::env(Default::default()), &file).await.unwrap();
        let stable = PutOptions { stable: true, ..PutOptions::default() };
        client.put_bytes("/f", bytes(1), stable).await.unwrap();
        let file = client.open("/f").await.unwrap();
        // The first write of a handle counts it as a writer, in the directory.
        file.write(0, bytes(2)).await.unwrap();
        ios.iter().for_each(|pid| kill(*pid, "STOP"));
        let begun = Instant::now();
        file.write(FAR, bytes(3)).await.unwrap();
        println!("answered without any portion in {:?}", begun.elapsed());
        lcs.iter().chain(&ios).for_each(|pid| kill(*pid, "KILL"));
        let end = Instant::now() + Duration::from_secs(60);
        let back = loop {
            match file.read(FAR, 100_000).await {
                Ok(back) if back.len() == 100_000 => break back,
                other => assert!(Instant::now() < end, "never read: {:?}", other.map(|b| b.len())),
            }
        };
        assert!(back == bytes(3), "an answered write is another");
        file.sync().await.unwrap();
        assert!(file.read(0, 100_000).await.unwrap() == bytes(2));
    })
    .unwrap();
    cluster.wait_status("health", |status| status["health"] == "ok");
    let facts = || cluster.json(&["facts", "--json"]);
    let is_copy = |fact: &serde_json::Value| fact["kind"] == "local_copy";
    let end = Instant::now() + Duration::from_secs(60);
    while facts().as_array().unwrap().iter().any(is_copy) {
        assert!(Instant::now() < end, "a fact stays open: {:#}", facts());
    }
}
