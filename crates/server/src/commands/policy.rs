//! `policy`: which scheme, strip size and spread new files get.

use std::process::ExitCode;
use std::time::Duration;

use braid_client::Client;
use braid_terms::{AckMode, DataType, Policy, RaidScheme, STRIP_SIZE_MAX, STRIP_SIZE_MIN, Spread};
use braid_wire::coordinator::{CoordinatorReply, CoordinatorRequest, MapChange};
use braid_wire::coordinator_client::CoordinatorError;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Outcome;
use crate::cli::{self, PolicySet};
use crate::output::{Failure, json as print_json};

/// Runs a policy command.
pub async fn run(client: &Client, command: &cli::Policy) -> Outcome {
    match command {
        cli::Policy::List { json } => list(client, *json).await,
        cli::Policy::Set(set) => {
            let policy = policy_of(set).map_err(Failure::Usage)?;
            change(client, MapChange::SetPolicy(policy)).await
        }
        cli::Policy::Unset { name } => {
            let map = client.map().await?;
            if !map.policies.iter().any(|policy| policy.name == *name) {
                return Err(Failure::Failed(format!("there is no policy {name}")));
            }
            change(client, MapChange::UnsetPolicy { name: name.clone() }).await
        }
        cli::Policy::Test { path } => test(client, path).await,
    }
}

async fn change(client: &Client, change: MapChange) -> Outcome {
    let request = CoordinatorRequest::Change(change);
    match client.coordinators().call(&request, Duration::from_secs(10)).await {
        Ok(CoordinatorReply::Map(map)) => wait_known(client, map.version).await,
        Ok(_) => {}
        Err(CoordinatorError::Unreachable) => {
            return Err(Failure::Unreachable("no elected coordinator answers".to_owned()));
        }
        Err(error) => return Err(Failure::Failed(error.to_string())),
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until every local controller that answers has the change, so that the next put follows it.
async fn wait_known(client: &Client, version: u64) {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let statuses = client.lcc_statuses().await;
        if statuses.iter().all(|(_, status)| version <= status.map_version) {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    eprintln!("warning: not all local controllers have the change yet");
}

fn policy_of(set: &PolicySet) -> Result<Policy, String> {
    let scheme = set
        .scheme
        .as_ref()
        .map(|text| text.parse::<RaidScheme>().map_err(|error| format!("{text}: {error}")));
    let strip_size = match set.strip {
        None => None,
        Some(size) => {
            let strip = u32::try_from(size).ok().filter(|size| {
                size.is_power_of_two() && (STRIP_SIZE_MIN..=STRIP_SIZE_MAX).contains(size)
            });
            Some(strip.ok_or("a strip is a power of two from 512 bytes to 4M")?)
        }
    };
    let data_type = match set.data_type.as_deref() {
        None => None,
        Some("file") => Some(DataType::File),
        Some("directory" | "metadata") => Some(DataType::Directory),
        Some(other) => return Err(format!("--type is file or directory, not {other}")),
    };
    let spread = match set.spread.as_deref() {
        None => None,
        Some("server") => Some(Spread::Server),
        Some("disk") => Some(Spread::Disk),
        Some(other) => return Err(format!("--spread is server or disk, not {other}")),
    };
    Ok(Policy {
        name: set.name.clone(),
        path_glob: set.path_glob.clone(),
        data_type,
        size_min: set.min_size,
        client: None,
        priority: None,
        scheme: scheme.transpose()?,
        strip_size,
        ack: Some(AckMode::Cluster),
        spread,
    })
}

fn row(policy: &Policy) -> serde_json::Value {
    json!({
        "name": policy.name,
        "match": policy.path_glob,
        "type": policy.data_type.map(|kind| match kind {
            DataType::File => "file",
            DataType::Directory | DataType::Metadata => "directory",
        }),
        "min_size": policy.size_min,
        "scheme": policy.scheme.map(|scheme| scheme.to_string()),
        "strip_size": policy.strip_size,
        "spread": policy.spread.map(|spread| match spread {
            Spread::Disk => "disk",
            Spread::Server => "server",
            Spread::Rack => "rack",
        }),
        "ack": "cluster",
    })
}

async fn list(client: &Client, as_json: bool) -> Outcome {
    let map = client.map().await?;
    let rows: Vec<_> = map.policies.iter().map(row).collect();
    if as_json {
        print_json(&json!(rows));
    } else {
        for policy in &map.policies {
            let show = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            println!(
                "{:<16} match {:<24} scheme {:<10} strip {}",
                policy.name,
                show(policy.path_glob.clone()),
                show(policy.scheme.map(|scheme| scheme.to_string())),
                show(policy.strip_size.map(|size| size.to_string())),
            );
        }
        let scheme = map.scheme_default.unwrap_or(braid_terms::SCHEME_DEFAULT);
        println!(
            "{:<16} everything else: scheme {scheme}, strip {}",
            "(default)",
            braid_terms::STRIP_DEFAULT
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn test(client: &Client, path: &str) -> Outcome {
    let map = client.map().await?;
    let question = braid_terms::PolicyQuestion { path: Some(path.to_owned()), size: None };
    let choice = braid_local_controller::policy::choose(&map, DataType::File, &question);
    let name = choice.policy.unwrap_or("(default)");
    println!("{path}: policy {name}, scheme {}, strip {}", choice.scheme, choice.strip_size);
    Ok(ExitCode::SUCCESS)
}
