//! What the mount needs of the cluster: names, attributes and bytes by group.
//!
//! The words are those of `wire::lcc`; finding the owner, retries and operation ids are the client
//! library's. A trait, so that the mount is tested without a cluster (`memory.rs`).

use std::sync::Arc;

use braid_client::{Change, Grant, Notice, Pins};
use braid_env::Payload;
use braid_terms::{AckMode, DataType, DeviceId, GroupLayout};
use braid_wire::lcc::{DirectoryOp, FileOp, LccReply, OperationId};
use bytes::Bytes;

use crate::errno::Errno;

/// The right to keep an answer, if there is one.
pub type Right = Option<Arc<Grant>>;

/// Why a request was not done.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The owner refused.
    #[error("refused: {0}")]
    Refused(Errno),
    /// Changes of the group that were answered are lost. Told once. Source: W-9.
    #[error("answered changes are lost")]
    HeldLost,
    /// No owner could be reached in time; whether it was done is not known.
    #[error("unreachable: {reason}")]
    Unreachable {
        /// What was tried.
        reason: String,
    },
}

/// Bytes of the whole cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// User bytes that it can hold.
    pub total: u64,
    /// User bytes that still fit.
    pub free: u64,
}

/// A cluster as the mount sees it. Futures run on one thread.
#[allow(async_fn_in_trait, reason = "one thread: no caller wants `Send`")]
pub trait Store: 'static {
    /// The root directory's group.
    async fn root(&self) -> Result<GroupLayout, StoreError>;
    /// Does it at the owner of a directory's group; the answer may be kept under the right that comes
    /// along. Also a refusal may be told from what is kept.
    async fn directory(
        &self,
        group: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<(LccReply, Right), StoreError>;
    /// The same for a change that may be answered before it is decided, where this process owns the
    /// group. Nobody else sees the directory without it, and what is lost is told by the next sync.
    /// Source: W-9.
    async fn directory_soon(
        &self,
        group: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<(LccReply, Right), StoreError> {
        self.directory(group, op).await
    }
    /// The right to keep what is known of a directory's group.
    fn right(&self, group: DeviceId) -> Right;
    /// Which groups' copies are used without asking the store.
    fn pins(&self) -> Arc<Pins>;
    /// Finds out whether the lease of anything that was given is over; before each answer.
    fn drop_lost(&self);
    /// What is to be dropped, if there is anything now. Source: N-1.
    fn notice_now(&self) -> Option<Notice>;
    /// The same; waits for it. None: there will be nothing.
    async fn notice(&self) -> Option<Notice>;
    /// Begins a change of a file's group, to be asked for until it is answered.
    fn change(&self, group: &GroupLayout, op: &FileOp) -> Option<Change>;
    /// Does it at the owner of a file's group; with the same change once, however often it is asked.
    async fn file(
        &self,
        group: &GroupLayout,
        op: FileOp,
        change: Option<&Change>,
        payload: Payload,
    ) -> Result<(LccReply, Bytes), StoreError>;
    /// The layout of a new device, by policy.
    async fn new_device(
        &self,
        data_type: DataType,
        path: Option<String>,
    ) -> Result<GroupLayout, StoreError>;
    /// When a writer of that path is answered, by policy.
    async fn ack(&self, path: Option<String>) -> AckMode;
    /// The layout of a new device for a file, if one is at hand and needs no policy.
    fn ready_device(&self) -> Option<GroupLayout>;
    /// A number of this client process that no other has.
    fn session(&self) -> u64;
    /// A new identity of a change.
    fn operation(&self) -> OperationId;
    /// How full the cluster is.
    async fn space(&self) -> Result<Space, StoreError>;
    /// Nothing is asked any more: what this process owns is given up.
    async fn end(&self) {}
}
