//! `get`: files and trees out of the store, many at once.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use braid_client::{Client, FileKind, Node};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::Outcome;
use super::progress::Progress;
use super::put::FILES_AT_ONCE;
use crate::cli::Get;
use crate::output::Failure;

/// A file that is to be fetched.
pub struct Wanted {
    pub node: Node,
    pub shown: String,
    pub local: PathBuf,
}

/// Runs the command.
pub async fn run(client: &Client, get: &Get) -> Outcome {
    let (target, sources) = get.paths.split_last().expect("clap asks for two");
    if target == "-" {
        return to_standard_output(client, sources).await;
    }
    let local = Path::new(target);
    let into = local.is_dir();
    if sources.len() > 1 && !into {
        return Err(Failure::Failed(format!("{target}: no such directory for several files")));
    }
    let mut wanted = Vec::new();
    let mut folders = Vec::new();
    for source in sources {
        let node = client.lookup(source).await?;
        let name = source.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let place = if into && !name.is_empty() { local.join(name) } else { local.to_owned() };
        if node.is_directory() {
            if !get.recursive {
                return Err(Failure::Failed(format!("{source} is a directory; use get -r")));
            }
            collect_tree(client, source, node, place, &mut wanted, &mut folders).await?;
        } else {
            wanted.push(Wanted { node, shown: source.clone(), local: place });
        }
    }
    let total = wanted.iter().map(|file| file.node.attributes.size).sum();
    let progress = Rc::new(Progress::new("fetched", get.quiet, Some(total)));
    let failed = fetch_all(client, wanted, &progress).await;
    // Times of folders last: their files changed them.
    for (folder, node) in folders.iter().rev() {
        apply_attributes(folder, node)?;
    }
    progress.finish();
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        count => Err(Failure::Failed(format!("{count} files were not fetched"))),
    }
}

/// Makes the local folders of a tree and lists its files.
pub async fn collect_tree(
    client: &Client,
    source: &str,
    node: Node,
    local: PathBuf,
    wanted: &mut Vec<Wanted>,
    folders: &mut Vec<(PathBuf, Node)>,
) -> Result<(), Failure> {
    let mut stack = vec![(source.trim_end_matches('/').to_owned(), node, local)];
    while let Some((shown, node, local)) = stack.pop() {
        fs::create_dir_all(&local)
            .map_err(|error| Failure::Failed(format!("{}: {error}", local.display())))?;
        let directory = client.directory_of(&node)?;
        folders.push((local.clone(), node));
        let names: Vec<_> = client.list_directory(&directory, true).all().await?;
        let nodes = names.into_iter().map(|entry| {
            let directory = directory.clone();
            async move {
                let node = match entry.attributes {
                    // Inline bytes are not listed: they come with the file.
                    Some(attributes) => Node { home: entry.home.clone(), attributes },
                    None => directory.lookup(&entry.name).await?,
                };
                Ok::<_, braid_client::Error>((entry.name, node))
            }
        });
        let mut nodes = futures_util::stream::iter(nodes).buffered(FILES_AT_ONCE);
        while let Some(found) = nodes.next().await {
            let (name, node) = found?;
            let below = format!("{shown}/{}", String::from_utf8_lossy(&name));
            let place = local.join(std::ffi::OsStr::from_bytes(&name));
            if node.is_directory() {
                stack.push((below, node, place));
            } else {
                wanted.push(Wanted { node, shown: below, local: place });
            }
        }
    }
    Ok(())
}

/// Fetches files, many at once; returns how many failed.
pub async fn fetch_all(client: &Client, wanted: Vec<Wanted>, progress: &Rc<Progress>) -> usize {
    let mut wanted = wanted.into_iter();
    let mut running = FuturesUnordered::new();
    let mut failed = 0;
    loop {
        while running.len() < FILES_AT_ONCE
            && let Some(file) = wanted.next()
        {
            let (client, progress) = (client.clone(), progress.clone());
            running.push(async move {
                let fetched = fetch(&client, &file, &progress).await;
                fetched.map_err(|error| format!("{}: {error}", file.shown))
            });
        }
        match running.next().await {
            Some(Ok(())) => progress.add_file(),
            Some(Err(reason)) => {
                failed += 1;
                progress.fail(reason);
            }
            None => break,
        }
    }
    failed
}

async fn fetch(client: &Client, wanted: &Wanted, progress: &Progress) -> Result<(), Failure> {
    let node = &wanted.node;
    match node.kind() {
        FileKind::File => {}
        FileKind::Symlink => {
            let target = node.attributes.target.clone();
            let target = match target {
                Some(target) => target,
                None => client.refresh(node).await?.attributes.target.unwrap_or_default(),
            };
            // What is there is replaced, as a file would be.
            match fs::remove_file(&wanted.local) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::Failed(format!("{}: {error}", wanted.local.display())));
                }
                _ => {}
            }
            std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&target), &wanted.local)?;
            return Ok(());
        }
        kind => {
            return Err(Failure::Failed(format!("a {kind:?} cannot be fetched; left out")));
        }
    }
    let name = wanted.local.file_name().unwrap_or_default().to_owned();
    let mut aside = std::ffi::OsString::from(".");
    aside.push(&name);
    aside.push(format!(".braid-{}", std::process::id()));
    let aside = wanted.local.with_file_name(aside);
    let result = write_file(client, node, &aside, progress).await;
    let result = result.and_then(|()| {
        apply_attributes(&aside, node)?;
        fs::rename(&aside, &wanted.local)
            .map_err(|error| Failure::Failed(format!("{}: {error}", wanted.local.display())))
    });
    if result.is_err() {
        // No half file stays.
        let _ = fs::remove_file(&aside);
    }
    result
}

async fn write_file(
    client: &Client,
    node: &Node,
    path: &Path,
    progress: &Progress,
) -> Result<(), Failure> {
    let local = |error: std::io::Error| Failure::Failed(format!("{}: {error}", path.display()));
    let mut file = fs::File::create(path).map_err(local)?;
    let mut reader = client.open_node(node)?.reader().await?;
    while let Some(bytes) = reader.next().await? {
        file.write_all(&bytes).map_err(local)?;
        progress.add_bytes(bytes.len() as u64);
    }
    Ok(())
}

fn apply_attributes(path: &Path, node: &Node) -> Result<(), Failure> {
    let attributes = &node.attributes;
    let say = |error: std::io::Error| Failure::Failed(format!("{}: {error}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(attributes.mode & 0o7777)).map_err(say)?;
    let time = attributes.mtime;
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let base = if time.seconds >= 0 { UNIX_EPOCH + seconds } else { UNIX_EPOCH - seconds };
    let modified = base + Duration::from_nanos(u64::from(time.nanoseconds));
    let file = fs::File::open(path).map_err(say)?;
    file.set_modified(modified).map_err(say)
}

async fn to_standard_output(client: &Client, sources: &[String]) -> Outcome {
    super::files::cat(client, sources).await
}
