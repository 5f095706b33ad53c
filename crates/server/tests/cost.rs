//! What the common path costs, counted on a real cluster (DESIGN 13).
#![allow(clippy::unwrap_used)]

mod common;

use braid_client::{Client, ClusterFile, PutOptions};
use braid_env::machine;
use braid_wire::coordinator::CoordinatorStatus;
use braid_wire::coordinator_client::CoordinatorClient;
use braid_wire::lcc::LccStatus;
use braid_wire::rpc::Peer;
use bytes::Bytes;
use common::Cluster;
use futures_util::future::join_all;

const FILES: u64 = 512;

struct Counts {
    lcc: LccStatus,
    /// Log entries and grants of the leader.
    entries: u64,
    grants: u64,
}

async fn counts(client: &Client, coordinators: &CoordinatorClient) -> Counts {
    let mut lcc = LccStatus::default();
    for (_, one) in client.lcc_statuses().await {
        lcc.writes += one.writes;
        lcc.prepares += one.prepares;
        lcc.coordinator_calls += one.coordinator_calls;
        lcc.syncs_asked += one.syncs_asked;
    }
    let statuses = coordinators.statuses(std::time::Duration::from_secs(5)).await;
    let leads = |status: &CoordinatorStatus| status.leader == Some(status.server);
    let leader = statuses.into_iter().flatten().find(leads).unwrap();
    Counts { lcc, entries: leader.entries_proposed, grants: leader.grants }
}

/// Round trips are what a small file costs; only the syncs in the background go on without being
/// asked for, one a second and disk, whatever the number of files.
#[test] // Proves: O-2, W-9.
fn a_small_file_costs_no_consensus_no_grant_and_shares_its_round_of_prepares() {
    let cluster = Cluster::started(6);
    cluster.ok(&["mkdir", "/d"]);
    cluster.wait_status("health", |status| status["health"] == "ok");
    let text = std::fs::read_to_string(cluster.path("braid-data/client.toml")).unwrap();
    let file = ClusterFile::parse(&text).unwrap();
    machine::run(async {
        let env = machine::env(Default::default());
        let addresses = file.servers.iter().map(|server| server.coordinator).collect();
        let coordinators =
            CoordinatorClient::new(env.clone(), file.cluster, Peer::Unknown, addresses);
        let client = Client::connect(env, &file).await.unwrap();
        let put = async |number: u64| {
            let options = PutOptions::default();
            client.put_bytes(format!("/d/{number}"), Bytes::from(vec![3; 3000]), options).await
        };
        // The directory's owner is known, numbers are leased, connections stand.
        put(1_000_000).await.unwrap();
        let before = counts(&client, &coordinators).await;
        let made = join_all((0..FILES).map(put)).await;
        made.into_iter().for_each(|made| drop(made.unwrap()));
        let after = counts(&client, &coordinators).await;
        let writes = after.lcc.writes - before.lcc.writes;
        let prepares = after.lcc.prepares - before.lcc.prepares;
        let calls = after.lcc.coordinator_calls - before.lcc.coordinator_calls;
        println!(
            "{FILES} files at once: {writes} cluster writes, {prepares} prepares, {calls} calls"
        );
        assert_eq!(after.entries, before.entries, "log entries");
        assert_eq!(after.grants, before.grants, "grants");
        assert_eq!(calls, 0, "calls of the global controller");
        assert!(writes <= FILES / 8, "{writes} cluster writes");
        assert!(prepares <= 6 * writes, "{prepares} prepares of {writes} writes");

        // One after the other each has a round of its own, and nothing else.
        let before = counts(&client, &coordinators).await;
        for number in FILES..FILES + 50 {
            put(number).await.unwrap();
        }
        let after = counts(&client, &coordinators).await;
        assert_eq!(after.entries, before.entries, "log entries");
        assert!(after.lcc.writes - before.lcc.writes <= 50 + 2, "more than a write a file");

        // Asked for, a sync is one a disk, not one a file.
        let stable = PutOptions { stable: true, ..PutOptions::default() };
        client.put_bytes("/d/stable", Bytes::from(vec![3; 3000]), stable).await.unwrap();
        let synced = counts(&client, &coordinators).await;
        assert!(after.lcc.syncs_asked < synced.lcc.syncs_asked, "no sync was asked for");
        drop(client);
    })
    .unwrap();
}
