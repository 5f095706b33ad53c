//! What each command does.

mod cluster;
mod demo;
mod files;
mod get;
mod health;
mod mount;
mod policy;
mod progress;
mod put;
mod scrub;
mod where_is;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use braid_client::{Client, ClientOptions, ClusterFile};
use braid_env::{Env, machine};
use clap::CommandFactory;

use crate::cli::{Cli, Command, Global};
use crate::output::Failure;
use crate::{main_controller, role};

/// What a command gives back: its exit code, or why it failed.
pub type Outcome = Result<ExitCode, Failure>;

/// Runs a command.
pub fn run(arguments: Cli) -> Outcome {
    let Cli { global, command } = arguments;
    match command {
        Command::Up(up) => cluster::up(&up),
        Command::Down { dir } => cluster::down(&dir),
        Command::Demo(demo) => demo::run(&demo),
        Command::Put(put) => with_client(&global, async |client, _| put::run(client, &put).await),
        Command::Get(get) => with_client(&global, async |client, _| get::run(client, &get).await),
        Command::Mount(options) => mount::run(&global, &options),
        Command::Cat { paths } => with_client(&global, async |c, _| files::cat(c, &paths).await),
        Command::Ls { long, json, paths } => {
            with_client(&global, async |c, _| files::ls(c, &paths, long, json).await)
        }
        Command::Stat { json, paths } => {
            with_client(&global, async |c, _| files::stat(c, &paths, json).await)
        }
        Command::Mkdir { parents, paths } => {
            with_client(&global, async |c, _| files::mkdir(c, &paths, parents).await)
        }
        Command::Rm { recursive, force, paths } => {
            with_client(&global, async |c, _| files::rm(c, &paths, recursive, force).await)
        }
        Command::Mv { paths } => with_client(&global, async |c, _| files::mv(c, &paths).await),
        Command::Cp { recursive, paths } => {
            with_client(&global, async |c, _| files::cp(c, &paths, recursive).await)
        }
        Command::Du { json, paths } => {
            with_client(&global, async |c, _| files::du(c, &paths, json).await)
        }
        Command::Df { json } => health::df(&global, json),
        Command::Find { path, name, kind, json } => with_client(&global, async |c, _| {
            files::find(c, &path, name.as_deref(), kind, json).await
        }),
        Command::Where { path, json, meta } => {
            with_client(&global, async |c, _| where_is::run(c, &path, json, meta).await)
        }
        Command::Policy(policy) => with_client(&global, async |c, _| policy::run(c, &policy).await),
        Command::Status { json, watch } => health::status(&global, json, watch),
        Command::Facts { discard: Some(number), .. } => health::discard(&global, number),
        Command::Facts { json, discard: None } => health::facts(&global, json),
        Command::Repair { wait } => health::repair(&global, wait),
        Command::Scrub { wait, path: None } => scrub::disks(&global, wait),
        Command::Scrub { path: Some(path), .. } => {
            with_client(&global, async |c, _| scrub::below(c, &path).await)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "braid", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { to } => man(to.as_deref()),
        Command::Serve { dir } => {
            main_controller::run(&dir)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Role { role, dir, disk } => {
            role::run(&role, &dir, disk)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Man pages of this program, generated from its command line.
fn man(to: Option<&Path>) -> Outcome {
    match to {
        Some(folder) => clap_mangen::generate_to(Cli::command(), folder)?,
        None => clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs what needs a client of the cluster.
fn with_client(global: &Global, work: impl AsyncFnOnce(&Client, &Env) -> Outcome) -> Outcome {
    let file = cluster_file(global)?;
    machine::run(async {
        let env = machine::env(Default::default());
        let options =
            ClientOptions { priority: global.client_priority, ..ClientOptions::default() };
        let client = Client::connect_with(env.clone(), &file, options).await?;
        work(&client, &env).await
    })?
}

/// The cluster file that counts.
pub fn cluster_file(global: &Global) -> Result<ClusterFile, Failure> {
    read_cluster_file(&cluster_path(global)?)
}

/// Where the cluster file is that counts: given, of the environment, of this folder, of the machine.
pub fn cluster_path(global: &Global) -> Result<PathBuf, Failure> {
    if let Some(path) = &global.cluster {
        return Ok(path.clone());
    }
    let usual = ["braid-data/client.toml", "/etc/braid/client.toml"];
    let found = usual.iter().map(Path::new).find(|path| path.is_file());
    found.map(PathBuf::from).ok_or_else(|| {
        Failure::Unreachable(
            "no cluster file: start a cluster with `braid up`, or name one with --cluster"
                .to_owned(),
        )
    })
}

fn read_cluster_file(path: &Path) -> Result<ClusterFile, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::Failed(format!(
            "{}: {error}; name the client.toml of a cluster with --cluster",
            path.display()
        ))
    })?;
    ClusterFile::parse(&text)
        .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}
