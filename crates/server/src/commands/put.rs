//! `put`: local files and trees into the store, many at once.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use braid_client::{Client, Directory, EntryAttributes, Error, FileTime, PutOptions};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::Outcome;
use super::progress::Progress;
use crate::cli::Put;
use crate::output::Failure;

/// Files under way at once.
pub const FILES_AT_ONCE: usize = 64;

/// Bytes read from a local file at a time.
const READ_BYTES: usize = 4 << 20;

/// A local file that is to be stored.
pub struct LocalFile {
    pub path: PathBuf,
    pub directory: Directory,
    pub name: Vec<u8>,
    /// Path in the store, for policies and messages.
    pub target: String,
    pub kind: LocalKind,
    pub size: u64,
}

/// What a local file is.
pub enum LocalKind {
    File,
    Symlink,
}

/// Runs the command.
pub async fn run(client: &Client, put: &Put) -> Outcome {
    let (target, sources) = put.paths.split_last().expect("clap asks for two");
    if !target.starts_with('/') {
        return Err(Failure::Usage(format!("{target}: the path in the store begins with '/'")));
    }
    if sources.len() == 1 && sources[0] == "-" {
        return from_standard_input(client, target, put).await;
    }
    let mut files = Vec::new();
    for source in sources {
        let source = Path::new(source);
        let metadata = fs::symlink_metadata(source)
            .map_err(|error| Failure::Failed(format!("{}: {error}", source.display())))?;
        if metadata.is_dir() && !put.recursive {
            let name = source.display();
            return Err(Failure::Failed(format!("{name} is a directory; use put -r")));
        }
        collect_source(client, source, &metadata, target, sources.len() > 1, &mut files).await?;
    }
    let total = files.iter().map(|file| file.size).sum();
    let progress = Rc::new(Progress::new("stored", put.quiet, Some(total)));
    let failed = store_all(client, files, put.sync, &progress).await;
    progress.finish();
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        count => Err(Failure::Failed(format!("{count} files were not stored"))),
    }
}

/// What one source becomes: `put -r tree /x` makes `/x` a copy of the tree, or, where `/x` is a
/// directory already, `/x/tree`; the same for files.
async fn collect_source(
    client: &Client,
    source: &Path,
    metadata: &fs::Metadata,
    target: &str,
    many: bool,
    files: &mut Vec<LocalFile>,
) -> Result<(), Failure> {
    let name = source.canonicalize().ok();
    let name = name.as_deref().and_then(Path::file_name).or_else(|| source.file_name());
    let name = name.map(|name| name.as_bytes().to_vec());
    let into = match client.stat(target).await {
        Ok(node) if node.is_directory() => true,
        Ok(_) if many => return Err(Failure::Failed(format!("{target}: not a directory"))),
        Ok(_) => false,
        Err(Error::NotFound { .. }) if !many && !target.ends_with('/') => false,
        Err(Error::NotFound { .. }) => {
            return Err(Failure::Failed(format!(
                "{target}: no such directory; make it with `braid mkdir -p {target}`"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    let (parent, name, shown) = if into {
        let name = name.ok_or_else(|| Failure::Failed("a source has no name".to_owned()))?;
        let shown = format!("{}/{}", target.trim_end_matches('/'), String::from_utf8_lossy(&name));
        (client.directory(target).await?, name, shown)
    } else {
        let (parent, name) = target.rsplit_once('/').expect("it begins with '/'");
        let parent = if parent.is_empty() { "/" } else { parent };
        (client.directory(parent).await?, name.as_bytes().to_vec(), target.to_owned())
    };
    if metadata.is_dir() {
        let directory = make_directory(&parent, &name, metadata, &shown).await?;
        collect_tree(source, directory, &shown, files).await
    } else {
        collect_file(source, metadata, &parent, name, shown, files);
        Ok(())
    }
}

/// Makes the directories of a tree and lists its files.
pub async fn collect_tree(
    source: &Path,
    directory: Directory,
    shown: &str,
    files: &mut Vec<LocalFile>,
) -> Result<(), Failure> {
    let mut stack = vec![(source.to_owned(), directory, shown.to_owned())];
    while let Some((folder, directory, shown)) = stack.pop() {
        let entries = fs::read_dir(&folder)
            .map_err(|error| Failure::Failed(format!("{}: {error}", folder.display())))?;
        let mut folders = Vec::new();
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path)
                .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))?;
            let name = entry.file_name().into_vec();
            let below =
                format!("{}/{}", shown.trim_end_matches('/'), String::from_utf8_lossy(&name));
            if metadata.is_dir() {
                folders.push((path, metadata, name, below));
            } else {
                collect_file(&path, &metadata, &directory, name, below, files);
            }
        }
        // Directories of one parent are made together: they share its cluster writes.
        let made = folders.into_iter().map(|(path, metadata, name, below)| {
            let directory = directory.clone();
            async move {
                let made = make_directory(&directory, &name, &metadata, &below).await?;
                Ok::<_, Failure>((path, made, below))
            }
        });
        for made in futures_util::future::join_all(made).await {
            stack.push(made?);
        }
    }
    Ok(())
}

fn collect_file(
    path: &Path,
    metadata: &fs::Metadata,
    directory: &Directory,
    name: Vec<u8>,
    target: String,
    files: &mut Vec<LocalFile>,
) {
    let kind = if metadata.is_symlink() {
        LocalKind::Symlink
    } else if metadata.is_file() {
        LocalKind::File
    } else {
        eprintln!("braid: {}: neither file nor directory, left out", path.display());
        return;
    };
    files.push(LocalFile {
        path: path.to_owned(),
        directory: directory.clone(),
        name,
        target,
        kind,
        size: metadata.len(),
    });
}

async fn make_directory(
    parent: &Directory,
    name: &[u8],
    metadata: &fs::Metadata,
    shown: &str,
) -> Result<Directory, Failure> {
    let new = EntryAttributes { path: Some(shown.to_owned()), ..attributes_of(metadata) };
    match parent.make_directory(name, &new).await {
        Err(Error::Exists { .. }) => {
            let node = parent.lookup(name).await.map_err(|error| error.about(shown))?;
            if !node.is_directory() {
                return Err(Failure::Failed(format!("{shown}: exists and is no directory")));
            }
            Ok(parent.client().directory_of(&node)?)
        }
        made => Ok(made.map_err(|error| error.about(shown))?),
    }
}

/// Stores files, many at once; returns how many failed.
pub async fn store_all(
    client: &Client,
    files: Vec<LocalFile>,
    sync: bool,
    progress: &Rc<Progress>,
) -> usize {
    let mut files = files.into_iter();
    let mut running = FuturesUnordered::new();
    let mut failed = 0;
    loop {
        while running.len() < FILES_AT_ONCE
            && let Some(file) = files.next()
        {
            let progress = progress.clone();
            running.push(async move {
                let stored = store_file(&file, sync, &progress).await;
                stored.map_err(|error| format!("{}: {error}", file.path.display()))
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
    let _ = client;
    failed
}

async fn store_file(file: &LocalFile, sync: bool, progress: &Progress) -> Result<(), Failure> {
    if matches!(file.kind, LocalKind::Symlink) {
        let target = fs::read_link(&file.path)?.into_os_string().into_vec();
        let new = EntryAttributes { mode: 0o777, ..EntryAttributes::default() };
        match file.directory.make_symlink(&file.name, &target, &new).await {
            Err(Error::Exists { .. }) => {
                file.directory.unlink(&file.name).await?;
                file.directory.make_symlink(&file.name, &target, &new).await?;
            }
            made => {
                made?;
            }
        }
        return Ok(());
    }
    let mut local = fs::File::open(&file.path)?;
    let metadata = local.metadata()?;
    let options = PutOptions {
        attributes: attributes_of(&metadata),
        replace: true,
        stable: sync,
        size: Some(metadata.len()),
        path: Some(file.target.clone()),
    };
    let mut writer = file.directory.put(&file.name, options).await?;
    let expected = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
    loop {
        let wanted = READ_BYTES.min((expected + 1).max(4096));
        let bytes = read_some(&mut local, wanted)?;
        if bytes.is_empty() {
            break;
        }
        let count = bytes.len() as u64;
        writer.write(bytes).await?;
        progress.add_bytes(count);
    }
    writer.finish().await?;
    Ok(())
}

/// Up to `wanted` bytes; none at the end.
pub fn read_some(source: &mut impl Read, wanted: usize) -> std::io::Result<Bytes> {
    let mut buffer = BytesMut::zeroed(wanted);
    let mut filled = 0;
    while filled < wanted {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok(buffer.freeze())
}

async fn from_standard_input(client: &Client, target: &str, put: &Put) -> Outcome {
    let options = PutOptions { replace: true, stable: put.sync, ..PutOptions::default() };
    let mut writer = client.put(target, options).await?;
    let progress = Progress::new("stored", put.quiet, None);
    let mut input = std::io::stdin().lock();
    loop {
        let bytes = read_some(&mut input, 1 << 20)?;
        if bytes.is_empty() {
            break;
        }
        progress.add_bytes(bytes.len() as u64);
        writer.write(bytes).await?;
    }
    writer.finish().await?;
    progress.add_file();
    progress.finish();
    Ok(ExitCode::SUCCESS)
}

/// Mode, owner and time of a local file.
pub fn attributes_of(metadata: &fs::Metadata) -> EntryAttributes {
    EntryAttributes {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: Some(FileTime {
            seconds: metadata.mtime(),
            nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        }),
        xattrs: Vec::new(),
        path: None,
    }
}
