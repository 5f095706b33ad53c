//! The state machine as openraft sees it, and its snapshot file.
//!
//! # Theory
//! The state is in memory; a snapshot of it is in a file that is replaced as a whole. After a start
//! it is the snapshot's, and committed entries of the log above it are applied again.
//! ```text
//! | "braidsnp" | version 4 | cluster 16 | CRC-32C of what follows 4 | head | state |
//! ```
//! little endian; head and state are postcard.
//! # Invariants
//! N1 The file never goes back to an older state: the log may be purged up to the newer.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use braid_env::Folder;
use braid_terms::ClusterId;
use bytes::{Buf, BufMut, Bytes};
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, RaftSnapshotBuilder};
use tokio::sync::Mutex;

use super::log_file::crc32c;
use super::stored::{EntryId, SnapshotHead, decode, decode_prefix, encode};
use super::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::state_machine::StateMachine;

/// The state of this member.
pub(crate) struct StateStore {
    file: Rc<SnapshotFile>,
    state: Rc<RefCell<StateMachine>>,
    /// Of the newest entry that the state has.
    term: Rc<Cell<u64>>,
    applied: Option<LogId>,
    members: StoredMembership,
}

struct SnapshotFile {
    folder: Folder,
    cluster: ClusterId,
    /// What it stands for; one at a time writes it.
    saved: Mutex<Cell<Option<EntryId>>>,
}

impl StateStore {
    /// Loads the snapshot, if there is one.
    ///
    /// Errors: `InvalidData` where it is damaged or not ours.
    pub(crate) fn open(
        folder: Folder,
        cluster: ClusterId,
        state: Rc<RefCell<StateMachine>>,
        term: Rc<Cell<u64>>,
    ) -> io::Result<Self> {
        let file = SnapshotFile { folder, cluster, saved: Mutex::default() };
        let mut new = Self {
            file: Rc::new(file),
            state,
            term,
            applied: None,
            members: StoredMembership::default(),
        };
        if let Some((head, state)) = new.file.load()? {
            let file = Rc::get_mut(&mut new.file).expect("nobody else has it yet");
            file.saved.get_mut().set(head.last);
            let state = decode(&state).ok_or_else(|| bad("the state of the snapshot"))?;
            new.take(head.into(), state);
        }
        Ok(new)
    }

    fn take(&mut self, meta: SnapshotMeta, state: StateMachine) {
        self.note_applied(meta.last_log_id);
        self.members = meta.last_membership;
        *self.state.borrow_mut() = state;
    }

    fn note_applied(&mut self, entry: Option<LogId>) {
        self.applied = entry;
        self.term.set(entry.map_or(0, |entry| EntryId::from(entry).term));
    }

    fn head(&self) -> SnapshotHead {
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.members.clone() };
        (&meta).into()
    }
}

impl SnapshotFile {
    fn load(&self) -> io::Result<Option<(SnapshotHead, Bytes)>> {
        if self.folder.length(SNAPSHOT)?.is_none() {
            return Ok(None);
        }
        let bytes = Bytes::from(self.folder.read_file(SNAPSHOT)?);
        let mut head = bytes.get(..HEAD_SIZE).ok_or_else(|| bad("the snapshot's head"))?;
        let magic = head.copy_to_bytes(SNAPSHOT_MAGIC.len());
        let version = head.get_u32_le();
        let cluster = ClusterId(head.get_u128_le());
        if magic != SNAPSHOT_MAGIC.as_slice() || version != SNAPSHOT_VERSION {
            return Err(bad("the snapshot's version"));
        }
        if cluster != self.cluster {
            return Err(bad("the snapshot's cluster"));
        }
        let body = bytes.slice(HEAD_SIZE..);
        if head.get_u32_le() != crc32c(&[&body]) {
            return Err(bad("the snapshot's checksum"));
        }
        let (head, state) = decode_prefix(&body).ok_or_else(|| bad("the snapshot's content"))?;
        Ok(Some((head, body.slice_ref(state))))
    }

    async fn save(&self, head: &SnapshotHead, state: &[u8]) -> io::Result<()> {
        let saved = self.saved.lock().await;
        if saved.get().map(|id| id.index) > head.last.map(|id| id.index) {
            return Ok(());
        }
        let head_bytes = encode(head);
        let mut bytes = Vec::with_capacity(HEAD_SIZE + head_bytes.len() + state.len());
        bytes.put_slice(SNAPSHOT_MAGIC);
        bytes.put_u32_le(SNAPSHOT_VERSION);
        bytes.put_u128_le(self.cluster.0);
        bytes.put_u32_le(crc32c(&[&head_bytes, state]));
        bytes.put_slice(&head_bytes);
        bytes.put_slice(state);
        self.folder.replace_file(SNAPSHOT, &bytes).await?;
        saved.set(head.last);
        Ok(())
    }
}

/// A view of the state at one entry, to be saved.
pub(crate) struct SnapshotBuilder {
    file: Rc<SnapshotFile>,
    head: SnapshotHead,
    state: Bytes,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.file.save(&self.head, &self.state).await?;
        Ok(Snapshot { meta: self.head.clone().into(), snapshot: self.state.clone() })
    }
}

impl RaftStateMachine<TypeConfig> for StateStore {
    type SnapshotData = Bytes;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.members.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin,
    {
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            self.note_applied(Some(entry.log_id));
            let outcomes = match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Membership(members) => {
                    self.members = StoredMembership::new(Some(entry.log_id), members);
                    Vec::new()
                }
                EntryPayload::Normal(batch) => {
                    let state = &mut *self.state.borrow_mut();
                    batch.0.into_iter().map(|command| state.apply(command)).collect()
                }
            };
            if let Some(responder) = responder {
                responder.send(outcomes);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let state = encode(&*self.state.borrow()).into();
        SnapshotBuilder { file: self.file.clone(), head: self.head(), state }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        let state = decode(&snapshot).ok_or_else(|| bad("the state of a received snapshot"))?;
        self.file.save(&meta.into(), &snapshot).await?;
        self.take(meta.clone(), state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let loaded = self.file.load()?;
        Ok(loaded.map(|(head, state)| Snapshot { meta: head.into(), snapshot: state }))
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is damaged or not ours"))
}

/// Its name in the folder.
pub(crate) const SNAPSHOT: &str = "snapshot";

const SNAPSHOT_MAGIC: &[u8; 8] = b"braidsnp";

const SNAPSHOT_VERSION: u32 = 1;

/// Bytes before head and state.
const HEAD_SIZE: usize = 32;
