//! `where`: the virtual device of a file, and its portions.

use std::process::ExitCode;

use braid_client::{Client, FileData, FileKind};
use serde_json::json;

use super::Outcome;
use crate::output::{Failure, json as print_json};

/// Shows where a path's bytes are.
pub async fn run(client: &Client, path: &str, as_json: bool, meta: bool) -> Outcome {
    let node = client.stat(path).await?;
    let (layout, kind, index, inline) = match (&node.attributes.data, node.kind()) {
        (_, FileKind::Directory) => {
            let layout = client.directory(path).await?.layout().clone();
            let (kind, index) = if meta { ("metadata", 1) } else { ("directory", 0) };
            (layout, kind, index, false)
        }
        (FileData::Device(layout), _) if !meta => (layout.clone(), "file", 0, false),
        // Attributes, and bytes up to 4 KiB, stand in the meta-data device of the home directory.
        _ => (node.home.clone(), "metadata", 1, true),
    };
    let map = client.map().await?;
    let described = client.describe_group(&layout).await;
    let described = described.map_err(Failure::from)?;
    let layout = described.layout;
    let device = layout.devices[index.min(layout.devices.len() - 1)];
    let live = super::health::live_disks(client).await;
    let portions: Vec<_> = layout
        .slots()
        .map(|slot| {
            let disk = layout.disk(slot);
            let info = map.disks.get(&disk);
            let name = layout.portion_name(index, slot);
            let state = if described.absent.contains(&slot) {
                "suspect"
            } else if live.as_ref().is_some_and(|live| !live.contains(&disk)) {
                "missing"
            } else {
                "in_sync"
            };
            json!({
                "name": name.to_string(),
                "k": slot.0,
                "server": info.map_or(0, |info| info.server.0),
                "disk": disk.0,
                "file": info.map(|info| format!("{}/{}", info.path, name.path())),
                "state": state,
            })
        })
        .collect();
    if as_json {
        print_json(&json!({
            "device": device.0,
            "type": kind,
            "scheme": layout.scheme.to_string(),
            "strip_size": layout.strip_size,
            "mode": "cluster",
            "id": node.id().0,
            "size": node.attributes.size,
            "inline": inline && kind == "metadata" && node.kind() == FileKind::File,
            "generation": layout.generation.0,
            "owner": {"server": described.owner.server.0, "lcc": described.owner.index},
            "portions": portions,
        }));
    } else {
        println!(
            "device {device} ({kind}), {}, strips of {} bytes",
            layout.scheme, layout.strip_size
        );
        if inline && node.kind() == FileKind::File {
            println!("the bytes of {path} stand in this meta-data device, in record {}", node.id());
        }
        println!("owner: server {} LCC {}", described.owner.server, described.owner.index);
        for portion in &portions {
            println!(
                "  {:<16} server {:<3} disk {:<3} {:<8} {}",
                portion["name"].as_str().unwrap_or_default(),
                portion["server"],
                portion["disk"],
                portion["state"].as_str().unwrap_or_default(),
                portion["file"].as_str().unwrap_or("-"),
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
