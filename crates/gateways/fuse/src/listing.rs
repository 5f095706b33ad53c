//! Listing of directories.
//!
//! # Theory
//! The place in a listing is the cookie of the last entry told, which the owner gives in the order
//! of making and never changes: a listing goes on at the right place whatever was made or removed
//! meanwhile, and after any pause.
//! ```text
//! place   1   2    cookie + 2 ...
//! entry   .   ..   the owner's
//! ```
//! Entries come in batches with their records, so that `ls -l` asks once per batch. Records of
//! sub-directories and links live elsewhere and are asked for at the same time.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use braid_terms::{DeviceId, GroupLayout};
use braid_wire::lcc::{Attributes, DirectoryEntry, DirectoryOp, FileKind, LccReply};
use bytes::Bytes;
use futures_util::future::join_all;

use crate::errno::{Errno, Outcome};
use crate::store::{Right, Store};
use crate::vfs::{Handle, Vfs};

/// Entries fetched and not yet told.
#[derive(Default)]
pub struct Listing {
    /// The place behind what was told last.
    place: u64,
    entries: VecDeque<Listed>,
    is_end: bool,
}

/// An entry to tell.
#[derive(Clone)]
pub struct Listed {
    /// Its name.
    pub name: Bytes,
    /// Inode number.
    pub id: DeviceId,
    /// What it is.
    pub kind: FileKind,
    /// The place behind it.
    pub place: u64,
    /// What to tell with it, where that is known: with that the kernel counts a lookup.
    pub known: Option<(GroupLayout, Attributes, Right)>,
    /// The right to believe the name; and recalls of the directory when it was heard.
    pub right: (Right, u64),
}

const BATCH: u32 = 256;
const DOTS: u64 = 2;

impl<S: Store> Vfs<S> {
    /// Tells entries behind `place` until `tell` is full. `tell` says whether it took the entry.
    pub async fn list(
        self: &Rc<Self>,
        handle: &Handle,
        place: u64,
        with_records: bool,
        mut tell: impl FnMut(&Listed) -> bool,
    ) -> Outcome<()> {
        let listing = std::mem::take(&mut *handle.listing.lock().expect("no holder panics"));
        let fits = listing.place == place && place >= DOTS;
        let mut listing = if fits { listing } else { Listing { place, ..Listing::default() } };
        for dot in self.dots(handle, place) {
            if !tell(&dot) {
                return Ok(());
            }
            listing.place = dot.place;
        }
        loop {
            while let Some(entry) = listing.entries.front() {
                if !tell(entry) {
                    *handle.listing.lock().expect("no holder panics") = listing;
                    return Ok(());
                }
                listing.place = entry.place;
                listing.entries.pop_front();
            }
            if listing.is_end {
                *handle.listing.lock().expect("no holder panics") = listing;
                return Ok(());
            }
            self.fetch_batch(handle, &mut listing, with_records).await?;
        }
    }

    fn dots(&self, handle: &Handle, place: u64) -> Vec<Listed> {
        let own = handle.inode.id;
        let parent = DeviceId(handle.inode.parent.load(Ordering::Relaxed));
        let parent = if parent.0 == 0 { own } else { parent };
        let dot = |place, name: &'static [u8], id| Listed {
            name: Bytes::from_static(name),
            id,
            kind: FileKind::Directory,
            place,
            known: None,
            right: (None, 0),
        };
        let all = [dot(1, b".", own), dot(2, b"..", parent)];
        all.into_iter().filter(|dot| dot.place > place).collect()
    }

    async fn fetch_batch(
        self: &Rc<Self>,
        handle: &Handle,
        listing: &mut Listing,
        with_records: bool,
    ) -> Outcome<()> {
        self.settle_in(handle.inode.id).await;
        let home = &handle.inode.home;
        let op = DirectoryOp::List {
            after: listing.place - DOTS,
            limit: BATCH,
            attributes: with_records,
        };
        let recalls = handle.inode.recalls.load(Ordering::Relaxed);
        let (entries, end, right) = match self.look(home, op).await {
            Ok((LccReply::Entries { entries, end }, right)) => (entries, end, right),
            Ok(_) => return Err(Errno::IO),
            // Removed while it was open: it is empty.
            Err(Errno::NOENT) => (Vec::new(), true, None),
            Err(error) => return Err(error),
        };
        let last_place = entries.last().map(|(entry, _)| entry.cookie + DOTS);
        listing.is_end = end || entries.is_empty();
        let right = &right;
        let all = entries.into_iter().map(|(entry, record)| async move {
            let known = match with_records {
                true => Some(self.know(handle, &entry, record, right.clone()).await?),
                false => None,
            };
            let place = entry.cookie + DOTS;
            let right = (right.clone(), recalls);
            Ok(Listed { name: entry.name, id: entry.id, kind: entry.kind, place, known, right })
        });
        for entry in join_all(all).await {
            match entry {
                Ok(entry) => listing.entries.push_back(entry),
                Err(Errno::NOENT) => {} // Removed meanwhile.
                Err(error) => return Err(error),
            }
        }
        // Also past what was left out.
        if listing.entries.is_empty() {
            listing.place = last_place.unwrap_or(listing.place);
        }
        Ok(())
    }

    /// The record of an entry.
    async fn know(
        &self,
        handle: &Handle,
        entry: &DirectoryEntry,
        record: Option<Attributes>,
        right: Right,
    ) -> Outcome<(GroupLayout, Attributes, Right)> {
        let home = entry.home.as_ref().unwrap_or(&handle.inode.home);
        let (record, right) = match record {
            Some(record) if record.writers == 0 => (record, right),
            // Told later: until then its own group may recall it.
            _ => (self.fetch_record(home, entry.id).await?.0, None),
        };
        Ok((home.clone(), record, right))
    }
}
