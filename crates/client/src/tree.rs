//! Whole trees: removing, copying.

use std::cell::Cell;

use braid_wire::lcc::{FileKind, SetTime};
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::{TryStreamExt, iter};

use crate::namespace::{Client, ListedEntry};
use crate::node::Directory;
use crate::path::text;
use crate::{EntryAttributes, Error, Node, PutOptions, StorePath};

impl Client {
    /// Removes what a path names and all that is below; how many entries. Symbolic links are removed,
    /// not followed.
    ///
    /// Errors: the first; what was removed before stays removed.
    pub async fn remove_tree(&self, path: impl AsRef<[u8]>) -> Result<u64, Error> {
        let path = StorePath::parse(path)?;
        let shown = path.to_string();
        let (parent, name) = path.split_last()?;
        let parent = self.directory(parent.to_string()).await?;
        let count = Cell::new(0);
        let (entry, _) = parent.entry(&name).await.map_err(|error| error.about(shown.clone()))?;
        let removed = match parent.child(&entry) {
            None => parent.unlink(&name).await,
            Some(child) => {
                empty(child, shown.clone(), &count).await?;
                parent.remove_directory(&name).await
            }
        };
        removed.map_err(|error| error.about(shown))?;
        Ok(count.get() + 1)
    }

    /// Copies a file with its mode, owner, time of change and extended attributes.
    pub async fn copy(
        &self,
        from: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
        replace: bool,
    ) -> Result<Node, Error> {
        let shown = text(from.as_ref());
        let file = self.open(from).await?;
        let node = file.refresh().await?;
        let about = |error: Error| error.about(shown.clone());
        let attributes = EntryAttributes {
            mode: node.attributes.mode,
            uid: node.attributes.uid,
            gid: node.attributes.gid,
            mtime: Some(node.attributes.mtime),
            xattrs: node.attributes.xattrs.clone(),
            path: None,
        };
        let size = Some(node.attributes.size);
        let options = PutOptions { attributes, replace, size, ..PutOptions::default() };
        let mut writer = self.put(to, options).await?;
        let mut reader = file.reader().await.map_err(about)?;
        while let Some(bytes) = reader.next().await.map_err(about)? {
            writer.write(bytes).await?;
        }
        writer.finish().await
    }

    /// Makes an empty file where there is none, and sets its time of change.
    pub async fn touch(&self, path: impl AsRef<[u8]>) -> Result<Node, Error> {
        let path = path.as_ref();
        match self.put_bytes(path, Bytes::new(), PutOptions::default()).await {
            Err(Error::Exists { .. }) => {
                self.set_times(path, None, Some(SetTime::Now)).await?;
                self.stat(path).await
            }
            made => made,
        }
    }
}

/// Removes all that is in a directory, many entries at once.
fn empty(
    directory: Directory,
    path: String,
    count: &Cell<u64>,
) -> LocalBoxFuture<'_, Result<(), Error>> {
    Box::pin(async move {
        loop {
            // Always from the start: what was listed is gone when the next page is asked for.
            let (entries, _) = directory.list(0, PAGE_ENTRIES, false).await?;
            if entries.is_empty() {
                return Ok(());
            }
            iter(entries.into_iter().map(Ok))
                .try_for_each_concurrent(AT_ONCE, |entry| {
                    remove_entry(&directory, entry, &path, count)
                })
                .await?;
        }
    })
}

async fn remove_entry(
    directory: &Directory,
    entry: ListedEntry,
    path: &str,
    count: &Cell<u64>,
) -> Result<(), Error> {
    let shown = format!("{path}/{}", text(&entry.name));
    let removed = if entry.kind == FileKind::Directory {
        let child = Directory::new(directory.inner.clone(), entry.home);
        empty(child, shown.clone(), count).await?;
        directory.remove_directory(&entry.name).await
    } else {
        directory.unlink(&entry.name).await
    };
    match removed {
        // Somebody else was faster.
        Ok(()) | Err(Error::NotFound { .. }) => {
            count.set(count.get() + 1);
            Ok(())
        }
        Err(error) => Err(error.about(shown)),
    }
}

const PAGE_ENTRIES: u32 = 1024;
const AT_ONCE: usize = 32;
