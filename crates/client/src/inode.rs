//! The store by group and inode number: for gateways that keep names and bytes in their own caches.
//!
//! # Theory
//! Operations of `wire::lcc` as they stand, sent to the owner with this client's search for it and
//! its retries. What needs several of them is the caller's.
//! # Not here
//! Names and paths: `node.rs`, `namespace.rs`.

use std::rc::Rc;

use braid_env::Payload;
use braid_terms::{AckMode, DataType, DiskId, GroupLayout, PolicyQuestion, SCHEME_DEFAULT};
use braid_wire::coordinator::{CoordinatorReply, CoordinatorRequest};
use braid_wire::lcc::{Chosen, DirectoryOp, FileOp, LccReply, LccRequest, OperationId};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{Caches, Change, Client, Error, Notice};

/// Bytes of the whole cluster, as users count them: without parity.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ClusterSpace {
    /// That fit into it.
    pub total: u64,
    /// That still fit.
    pub free: u64,
}

impl Client {
    /// A new identity of a change. Source: L2 of `wire::lcc`.
    #[must_use]
    pub fn operation(&self) -> OperationId {
        self.inner().reach.operation()
    }

    /// Keeps what owners say from now on, as long as they grant it; with `notices` a gateway hears what
    /// it is to drop of its own copies.
    #[must_use]
    pub fn keep_caches(&self, notices: Option<mpsc::UnboundedSender<Notice>>) -> Rc<Caches> {
        let caches = Caches::new(self.inner().reach.clone(), notices);
        *self.inner().caches.borrow_mut() = Some(caches.clone());
        caches
    }

    /// Does it at the owner of a directory's group.
    pub async fn directory_op(
        &self,
        layout: &GroupLayout,
        op: DirectoryOp,
    ) -> Result<LccReply, Error> {
        let request = LccRequest::Directory { layout: layout.clone(), op };
        self.inner().reach.ask(&request, Payload::empty()).await.map(|(reply, _)| reply)
    }

    /// Does it at the owner of a file's group.
    pub async fn file_op(
        &self,
        layout: &GroupLayout,
        op: FileOp,
        payload: Payload,
    ) -> Result<(LccReply, Bytes), Error> {
        self.inner().ask_file(layout, op, payload).await
    }

    /// Begins a change of a file's group, to be asked for until it is answered; none where doing it twice
    /// does no harm.
    #[must_use]
    pub fn change(&self, layout: &GroupLayout, op: &FileOp) -> Option<Change> {
        self.inner().reach.change(layout.group(), op)
    }

    /// As `file_op`; with the same change it is done once, however often it is called.
    pub async fn file_change(
        &self,
        layout: &GroupLayout,
        op: FileOp,
        change: Option<&Change>,
        payload: Payload,
    ) -> Result<(LccReply, Bytes), Error> {
        self.inner().ask_file_as(layout, op, change, payload).await
    }

    /// A layout for a new device that nobody else has.
    pub async fn new_layout(
        &self,
        data_type: DataType,
        question: &PolicyQuestion,
    ) -> Result<GroupLayout, Error> {
        match data_type {
            DataType::File => self.inner().files.take(question).await,
            DataType::Directory | DataType::Metadata => {
                self.inner().directories.take(question).await
            }
        }
    }

    /// What a new object would get by policy. Source: G-5.
    pub async fn chosen(
        &self,
        data_type: DataType,
        question: PolicyQuestion,
    ) -> Result<Chosen, Error> {
        match data_type {
            DataType::File => self.inner().files.choose(question).await,
            DataType::Directory | DataType::Metadata => {
                self.inner().directories.choose(question).await
            }
        }
    }

    /// When a writer of a file of that path is answered, by policy. Source: DESIGN 4.
    pub async fn ack(&self, path: Option<String>) -> AckMode {
        self.inner().files.ack(path).await
    }

    /// A layout for a new file's device that nobody else has, if one is at hand without asking and no
    /// policy depends on the file's path.
    #[must_use]
    pub fn ready_file_layout(&self) -> Option<GroupLayout> {
        self.inner().files.take_ready()
    }

    /// How full the cluster is, by its disks and the default scheme.
    pub async fn space(&self) -> Result<ClusterSpace, Error> {
        let map = self.map().await?;
        let request = CoordinatorRequest::Status;
        let deadline = self.options().deadline;
        let unavailable = |reason| Error::Unavailable { path: "space".into(), reason };
        let disks: Vec<(DiskId, u64, u64)> =
            match self.coordinators().call(&request, deadline).await {
                Ok(CoordinatorReply::Status(status)) => status.disks,
                Ok(_) => return Err(unavailable("a coordinator answers something else".into())),
                Err(error) => return Err(unavailable(error.to_string())),
            };
        let scheme = map.scheme_default.unwrap_or(SCHEME_DEFAULT);
        let (data, portions) = (scheme.data() as u64, scheme.portions() as u64);
        let total: u64 = disks.iter().map(|(_, total, _)| total).sum();
        let free: u64 = disks.iter().map(|(_, _, free)| free).sum();
        Ok(ClusterSpace { total: total / portions * data, free: free / portions * data })
    }
}
