//! `policy`: which scheme, strip size, acknowledgement and spread new files get.

use std::process::ExitCode;
use std::time::Duration;

use braid_client::Client;
use braid_local_controller::policy::is_network;
use braid_terms::{
    AckMode, DataType, Policy, PolicyQuestion, RaidScheme, STRIP_SIZE_MAX, STRIP_SIZE_MIN, Spread,
};
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
        cli::Policy::Test { path, data_type, size, client: address, priority, json } => {
            let data_type = data_type_of(data_type).map_err(Failure::Usage)?;
            let question = PolicyQuestion {
                path: Some(path.clone()),
                size: *size,
                client: *address,
                priority: *priority,
            };
            test(client, data_type, question, *json).await
        }
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
    let data_type = set.data_type.as_deref().map(data_type_of).transpose()?;
    if let Some(network) = set.client.as_deref().filter(|network| !is_network(network)) {
        return Err(format!("--client is a network as 10.0.0.0/8, or an address, not {network}"));
    }
    let ack = match set.ack.as_deref() {
        None => None,
        Some("cluster") => Some(AckMode::Cluster),
        Some("memory") => Some(AckMode::Memory),
        Some("local") => Some(AckMode::Local),
        Some(other) => return Err(format!("--ack is memory, local or cluster, not {other}")),
    };
    let is_more = set.path_glob.is_some()
        || set.min_size.is_some()
        || set.client.is_some()
        || set.priority.is_some();
    if set.lccs.is_some() && (is_more || data_type.is_none()) {
        return Err(
            "--lccs reserves LCCs for a --type, and goes with no other condition".to_owned()
        );
    }
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
        client: set.client.clone(),
        priority: set.priority,
        scheme: scheme.transpose()?,
        strip_size,
        ack,
        spread,
        lccs: set.lccs,
    })
}

fn data_type_of(text: &str) -> Result<DataType, String> {
    match text {
        "file" => Ok(DataType::File),
        "directory" => Ok(DataType::Directory),
        "metadata" => Ok(DataType::Metadata),
        other => Err(format!("--type is file, directory or metadata, not {other}")),
    }
}

fn ack_text(ack: AckMode) -> &'static str {
    match ack {
        AckMode::Memory => "memory",
        AckMode::Local => "local",
        AckMode::Cluster => "cluster",
    }
}

fn spread_text(spread: Spread) -> &'static str {
    match spread {
        Spread::Disk => "disk",
        Spread::Server => "server",
        Spread::Rack => "rack",
    }
}

fn row(policy: &Policy) -> serde_json::Value {
    json!({
        "name": policy.name,
        "match": policy.path_glob,
        "type": policy.data_type,
        "min_size": policy.size_min,
        "client": policy.client,
        "priority": policy.priority,
        "scheme": policy.scheme.map(|scheme| scheme.to_string()),
        "strip_size": policy.strip_size,
        "spread": policy.spread.map(spread_text),
        "ack": policy.ack.map(ack_text),
        "lccs": policy.lccs,
    })
}

/// A policy on one line: what it matches, and what it gives.
fn line(policy: &Policy) -> String {
    let mut parts = vec![format!("{:<16}", policy.name)];
    let data_type = policy.data_type.map(|data_type| match data_type {
        DataType::File => "file",
        DataType::Directory => "directory",
        DataType::Metadata => "metadata",
    });
    let shown = [
        ("match", policy.path_glob.clone()),
        ("type", data_type.map(str::to_owned)),
        ("min-size", policy.size_min.map(|size| size.to_string())),
        ("client", policy.client.clone()),
        ("priority", policy.priority.map(|priority| priority.to_string())),
        ("scheme", policy.scheme.map(|scheme| scheme.to_string())),
        ("strip", policy.strip_size.map(|size| size.to_string())),
        ("ack", policy.ack.map(|ack| ack_text(ack).to_owned())),
        ("spread", policy.spread.map(|spread| spread_text(spread).to_owned())),
        ("lccs", policy.lccs.map(|lccs| lccs.to_string())),
    ];
    parts.extend(shown.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?))));
    parts.join(" ")
}

async fn list(client: &Client, as_json: bool) -> Outcome {
    let map = client.map().await?;
    if as_json {
        print_json(&json!(map.policies.iter().map(row).collect::<Vec<_>>()));
        return Ok(ExitCode::SUCCESS);
    }
    map.policies.iter().for_each(|policy| println!("{}", line(policy)));
    let scheme = map.scheme_default.unwrap_or(braid_terms::SCHEME_DEFAULT);
    let strip = braid_terms::STRIP_DEFAULT;
    println!("{:<16} everything else: scheme {scheme}, strip {strip}, ack cluster", "(default)");
    Ok(ExitCode::SUCCESS)
}

async fn test(
    client: &Client,
    data_type: DataType,
    question: PolicyQuestion,
    as_json: bool,
) -> Outcome {
    let path = question.path.clone().unwrap_or_default();
    let chosen = client.chosen(data_type, question).await?;
    let (ack, spread) = (ack_text(chosen.ack), spread_text(chosen.spread));
    if as_json {
        print_json(&json!({
            "path": path,
            "policy": chosen.policy,
            "scheme": chosen.scheme.to_string(),
            "strip_size": chosen.strip_size,
            "ack": ack,
            "spread": spread,
        }));
    } else {
        let name = chosen.policy.as_deref().unwrap_or("(default)");
        println!(
            "{path}: policy {name}, scheme {}, strip {}, ack {ack}, spread {spread}",
            chosen.scheme, chosen.strip_size
        );
    }
    Ok(ExitCode::SUCCESS)
}
