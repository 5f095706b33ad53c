//! `cat`, `ls`, `stat`, `mkdir`, `rm`, `mv`, `cp`, `du`, `find`.

use std::io::Write;
use std::process::ExitCode;

use braid_client::{Client, EntryAttributes, Error, FileKind, ListedEntry, Node, RenameOptions};
use serde_json::json;

use super::Outcome;
use crate::output::{Failure, json as print_json, rfc3339, size};

/// Writes files to standard output.
pub async fn cat(client: &Client, paths: &[String]) -> Outcome {
    let mut output = std::io::stdout().lock();
    for path in paths {
        let mut reader = client.open(path).await?.reader().await?;
        while let Some(bytes) = reader.next().await? {
            match output.write_all(&bytes) {
                // Who reads has had enough.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                    return Ok(ExitCode::SUCCESS);
                }
                written => written?,
            }
        }
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn kind_word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::BlockDevice => "block_device",
        FileKind::CharacterDevice => "character_device",
    }
}

fn mode_text(kind: FileKind, mode: u32) -> String {
    let letter = match kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::BlockDevice => 'b',
        FileKind::CharacterDevice => 'c',
    };
    let mut text = String::from(letter);
    for (shift, special, marks) in [(6, 0o4000, "sS"), (3, 0o2000, "sS"), (0, 0o1000, "tT")] {
        text.push(if mode >> shift & 4 != 0 { 'r' } else { '-' });
        text.push(if mode >> shift & 2 != 0 { 'w' } else { '-' });
        let runs = mode >> shift & 1 != 0;
        let mark = marks.as_bytes()[usize::from(!runs)];
        text.push(match (mode & special != 0, runs) {
            (true, _) => char::from(mark),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn node_json(name: &str, node: &Node) -> serde_json::Value {
    let a = &node.attributes;
    json!({
        "name": name,
        "id": a.id.0,
        "type": kind_word(a.kind),
        "mode": format!("{:04o}", a.mode & 0o7777),
        "uid": a.uid,
        "gid": a.gid,
        "size": a.size,
        "nlink": a.nlink,
        "mtime": rfc3339(a.mtime.seconds),
        "atime": rfc3339(a.atime.seconds),
        "ctime": rfc3339(a.ctime.seconds),
        "target": a.target.as_ref().map(|target| String::from_utf8_lossy(target).into_owned()),
    })
}

fn long_line(name: &str, node: &Node) -> String {
    let a = &node.attributes;
    let target = a
        .target
        .as_ref()
        .map_or_else(String::new, |target| format!(" -> {}", String::from_utf8_lossy(target)));
    format!(
        "{} {:>3} {:>5} {:>5} {:>12} {} {name}{target}",
        mode_text(a.kind, a.mode),
        a.nlink,
        a.uid,
        a.gid,
        a.size,
        rfc3339(a.mtime.seconds)
    )
}

/// An entry with its attributes, wherever they are kept.
async fn node_of(directory: &braid_client::Directory, entry: &ListedEntry) -> Result<Node, Error> {
    match &entry.attributes {
        Some(attributes) => Ok(Node { home: entry.home.clone(), attributes: attributes.clone() }),
        None => directory.lookup(&entry.name).await,
    }
}

/// Lists directories and files.
pub async fn ls(client: &Client, paths: &[String], long: bool, as_json: bool) -> Outcome {
    let mut rows = Vec::new();
    for path in paths {
        let node = client.lookup(path).await?;
        if !node.is_directory() {
            rows.push(if as_json {
                node_json(path, &node)
            } else {
                json!(if long { long_line(path, &node) } else { path.clone() })
            });
            continue;
        }
        if paths.len() > 1 && !as_json {
            rows.push(json!(format!("{path}:")));
        }
        let directory = client.directory_of(&node)?;
        let mut entries = client.list_directory(&directory, long || as_json).all().await?;
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        for entry in &entries {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            if long || as_json {
                match node_of(&directory, entry).await {
                    Ok(node) if as_json => rows.push(node_json(&name, &node)),
                    Ok(node) => rows.push(json!(long_line(&name, &node))),
                    // Removed just now.
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            } else {
                rows.push(json!(name));
            }
        }
    }
    if as_json {
        print_json(&json!(rows));
    } else {
        for row in rows {
            println!("{}", row.as_str().unwrap_or_default());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows attributes.
pub async fn stat(client: &Client, paths: &[String], as_json: bool) -> Outcome {
    let mut rows = Vec::new();
    for path in paths {
        let node = client.lookup(path).await?;
        if as_json {
            rows.push(node_json(path, &node));
        } else {
            let a = &node.attributes;
            println!("{path}");
            println!("  type {}, id {}, size {}", kind_word(a.kind), a.id, a.size);
            println!(
                "  mode {:04o} ({}), uid {}, gid {}, links {}",
                a.mode & 0o7777,
                mode_text(a.kind, a.mode),
                a.uid,
                a.gid,
                a.nlink
            );
            println!(
                "  modified {}, changed {}, accessed {}",
                rfc3339(a.mtime.seconds),
                rfc3339(a.ctime.seconds),
                rfc3339(a.atime.seconds)
            );
        }
    }
    if as_json {
        print_json(&if rows.len() == 1 { rows.remove(0) } else { json!(rows) });
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes directories.
pub async fn mkdir(client: &Client, paths: &[String], parents: bool) -> Outcome {
    let new = EntryAttributes { mode: 0o755, ..own_ids() };
    for path in paths {
        if parents {
            client.mkdir_all(path, &new).await?;
        } else {
            client.mkdir(path, &new).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn own_ids() -> EntryAttributes {
    EntryAttributes {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        ..EntryAttributes::default()
    }
}

/// Removes files and trees.
pub async fn rm(client: &Client, paths: &[String], recursive: bool, force: bool) -> Outcome {
    for path in paths {
        let node = match client.lookup(path).await {
            Err(Error::NotFound { .. }) if force => continue,
            found => found?,
        };
        if !node.is_directory() {
            client.unlink(path).await?;
        } else if recursive {
            if path.trim_matches('/').is_empty() {
                return Err(Failure::Failed("the root directory cannot be removed".to_owned()));
            }
            client.remove_tree(path).await?;
        } else {
            return Err(Failure::Failed(format!("{path} is a directory; use rm -r")));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The target of a move or copy of `source`: into a directory under its own name.
async fn target_of(
    client: &Client,
    source: &str,
    target: &str,
    many: bool,
) -> Result<String, Failure> {
    match client.stat(target).await {
        Ok(node) if node.is_directory() => {
            let name = source.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
            Ok(format!("{}/{name}", target.trim_end_matches('/')))
        }
        Ok(_) if many => Err(Failure::Failed(format!("{target}: not a directory"))),
        Err(Error::NotFound { .. }) if many => {
            Err(Failure::Failed(format!("{target}: no such directory")))
        }
        Ok(_) | Err(Error::NotFound { .. }) => Ok(target.to_owned()),
        Err(error) => Err(error.into()),
    }
}

/// Renames.
pub async fn mv(client: &Client, paths: &[String]) -> Outcome {
    let (target, sources) = paths.split_last().expect("clap asks for two");
    for source in sources {
        let to = target_of(client, source, target, sources.len() > 1).await?;
        client.rename(source, &to, RenameOptions::default()).await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Copies within the store.
pub async fn cp(client: &Client, paths: &[String], recursive: bool) -> Outcome {
    let (target, sources) = paths.split_last().expect("clap asks for two");
    for source in sources {
        let to = target_of(client, source, target, sources.len() > 1).await?;
        let node = client.stat(source).await?;
        if !node.is_directory() {
            client.copy(source, &to, true).await?;
            continue;
        }
        if !recursive {
            return Err(Failure::Failed(format!("{source} is a directory; use cp -r")));
        }
        let inside = format!("{}/", source.trim_end_matches('/'));
        if format!("{}/", to.trim_end_matches('/')).starts_with(&inside) {
            return Err(Failure::Failed(format!("{to} lies within {source}")));
        }
        let mut stack = vec![(source.clone(), to, node)];
        while let Some((from, to, node)) = stack.pop() {
            let new = EntryAttributes {
                mode: node.attributes.mode,
                uid: node.attributes.uid,
                gid: node.attributes.gid,
                ..EntryAttributes::default()
            };
            client.mkdir_all(&to, &new).await?;
            let directory = client.directory_of(&node)?;
            for entry in client.list_directory(&directory, false).all().await? {
                let name = String::from_utf8_lossy(&entry.name).into_owned();
                let (from, to) = (format!("{from}/{name}"), format!("{to}/{name}"));
                match entry.kind {
                    FileKind::Directory => {
                        let node = client.lookup(&from).await?;
                        stack.push((from, to, node));
                    }
                    FileKind::Symlink => {
                        let target = client.readlink(&from).await?;
                        client.symlink(&target, &to, &own_ids()).await?;
                    }
                    _ => {
                        client.copy(&from, &to, true).await?;
                    }
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Every entry of a tree, its root first.
pub async fn walk(
    client: &Client,
    path: &str,
    visit: &mut dyn FnMut(&str, &Node),
) -> Result<(), Failure> {
    let node = client.lookup(path).await?;
    let mut stack = vec![(path.to_owned(), node)];
    while let Some((path, node)) = stack.pop() {
        visit(&path, &node);
        if node.is_directory() {
            let directory = client.directory_of(&node)?;
            let mut entries = client.list_directory(&directory, true).all().await?;
            entries.sort_by(|left, right| right.name.cmp(&left.name));
            for entry in entries {
                let name = String::from_utf8_lossy(&entry.name);
                let below = format!("{}/{name}", path.trim_end_matches('/'));
                match node_of(&directory, &entry).await {
                    Ok(node) => stack.push((below, node)),
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    Ok(())
}

/// Sums up sizes.
pub async fn du(client: &Client, paths: &[String], as_json: bool) -> Outcome {
    let mut rows = Vec::new();
    for path in paths {
        let (mut bytes, mut files, mut directories) = (0, 0_u64, 0_u64);
        walk(client, path, &mut |_, node| {
            if node.is_directory() {
                directories += 1;
            } else {
                files += 1;
                bytes += node.attributes.size;
            }
        })
        .await?;
        if !as_json {
            println!("{:>12}  {files} files, {directories} directories  {path}", size(bytes));
        }
        rows.push(
            json!({"path": path, "bytes": bytes, "files": files, "directories": directories}),
        );
    }
    if as_json {
        print_json(&json!(rows));
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds by name and type.
pub async fn find(
    client: &Client,
    path: &str,
    name: Option<&str>,
    kind: Option<char>,
    as_json: bool,
) -> Outcome {
    let kind = match kind {
        None => None,
        Some('f') => Some(FileKind::File),
        Some('d') => Some(FileKind::Directory),
        Some('l') => Some(FileKind::Symlink),
        Some(other) => return Err(Failure::Usage(format!("--type is f, d or l, not {other}"))),
    };
    let mut rows = Vec::new();
    walk(client, path, &mut |path, node| {
        let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let fits = name.is_none_or(|glob| {
            braid_local_controller::policy::glob_matches(glob.as_bytes(), last.as_bytes())
        });
        if fits && kind.is_none_or(|kind| kind == node.kind()) {
            if as_json {
                let mut row = node_json(last, node);
                row["path"] = json!(path);
                rows.push(row);
            } else {
                println!("{path}");
            }
        }
    })
    .await?;
    if as_json {
        print_json(&json!(rows));
    }
    Ok(ExitCode::SUCCESS)
}
