//! `scrub`: verifies what is stored.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use braid_client::{Client, ClusterFile, FileData};
use braid_env::{Address, Env, Payload, machine};
use braid_terms::{ClusterMap, DiskId, DiskState};
use braid_wire::io::{Io, IoReply, IoRequest, ScrubStatus};
use braid_wire::rpc::{Client as RpcClient, Hello, Peer, Role};
use tokio::time::sleep;

use super::{Outcome, cluster_file};
use crate::cli::Global;
use crate::output::Failure;

/// What is waited for at one disk.
struct Wanted {
    seen: ScrubStatus,
    /// Passes that are still to begin or to end.
    left: u64,
}

/// Begins a pass on all disks; with `wait` until all of them are through.
pub fn disks(global: &Global, wait: bool) -> Outcome {
    let file = cluster_file(global)?;
    machine::run(async {
        let env = machine::env(Default::default());
        let client = Client::connect(env.clone(), &file).await?;
        let map = client.map().await?;
        let mut wanted = BTreeMap::new();
        let mut silent = Vec::new();
        for disk in in_use(&map) {
            match ask(&env, &file, &map, disk, &IoRequest::Scrub).await {
                // One that is under way began before: the one after it counts.
                Some(seen) => {
                    let left = 1 + u64::from(seen.running);
                    wanted.insert(disk, Wanted { seen, left });
                }
                None => silent.push(disk.to_string()),
            }
        }
        println!("{} disks verify their blocks", wanted.len());
        while wait && wanted.values().any(|disk| disk.left > 0) {
            sleep(Duration::from_millis(200)).await;
            for (disk, wanted) in wanted.iter_mut().filter(|(_, wanted)| wanted.left > 0) {
                let Some(now) = ask(&env, &file, &map, *disk, &IoRequest::Status).await else {
                    return Err(Failure::Failed(format!("disk {disk} does not answer any more")));
                };
                if now.verified != wanted.seen.verified {
                    wanted.left -= 1;
                } else if !now.running
                    && ask(&env, &file, &map, *disk, &IoRequest::Scrub).await.is_none()
                {
                    // A restart forgot what was asked.
                    continue;
                }
                wanted.seen = now;
            }
        }
        if wait {
            let blocks: u64 = wanted.values().map(|disk| disk.seen.blocks).sum();
            let bad: u64 = wanted.values().map(|disk| disk.seen.bad_blocks).sum();
            println!("{blocks} blocks verified, {bad} bad");
            if bad > 0 {
                println!("they are written anew by their owners; see `braid status`");
            }
        }
        if silent.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        Err(Failure::Failed(format!(
            "not verified, for they do not answer: disks {}",
            silent.join(", ")
        )))
    })?
}

/// Verifies all files and directories below a path, at their owners.
pub async fn below(client: &Client, path: &str) -> Outcome {
    let mut groups = BTreeMap::new();
    super::files::walk(client, path, &mut |_, node| {
        if let FileData::Device(layout) = &node.attributes.data {
            groups.insert(layout.group(), layout.clone());
        }
        groups.insert(node.home.group(), node.home.clone());
        if let Ok(directory) = client.directory_of(node) {
            groups.insert(directory.layout().group(), directory.layout().clone());
        }
    })
    .await?;
    let (mut blocks, mut bad, mut unfit, mut left) = (0, 0, 0, 0);
    for layout in groups.values() {
        let seen = client.verify_group(layout).await?;
        blocks += seen.blocks;
        bad += seen.bad_blocks;
        unfit += seen.unfit_rows;
        left += seen.rows_left;
    }
    println!("{} devices, {blocks} blocks verified, {bad} bad", groups.len());
    if left > 0 {
        println!("{left} rows could not be compared with their parity: not all portions are there");
    }
    if unfit > 0 {
        return Err(Failure::Failed(format!(
            "the parity of {unfit} rows does not fit their data; the logs of their owners name them"
        )));
    }
    Ok(ExitCode::SUCCESS)
}

fn in_use(map: &ClusterMap) -> impl Iterator<Item = DiskId> {
    map.disks.values().filter(|disk| disk.state != DiskState::Failed).map(|disk| disk.id)
}

async fn ask(
    env: &Env,
    file: &ClusterFile,
    map: &ClusterMap,
    disk: DiskId,
    request: &IoRequest,
) -> Option<ScrubStatus> {
    let hello = Hello::new(file.cluster, Role::Io, 0, Peer::Unknown);
    let address = Address::Tcp(map.disks.get(&disk)?.address);
    let client = RpcClient::<Io>::connect(env, address, hello).await.ok()?;
    let answer = client.call(request, Payload::empty(), Duration::from_secs(5)).await;
    match answer {
        Ok((Ok(IoReply::Status(status)), _)) => Some(status.scrub),
        _ => None,
    }
}
