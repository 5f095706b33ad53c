//! The thread of the client library: it serves the kernel, and jobs of other threads.
//!
//! # Theory
//! One thread with a current-thread runtime and a local tasks reads the kernel's requests, answers what
//! is here, and starts a task for what must be asked for. Other threads (the one that unmounts) send
//! it *jobs*.
//! # Failure
//! When the thread ends, jobs and tasks are dropped; the kernel's connection closes with it.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::errno::Outcome;
use crate::session::Session;
use crate::store::{Store, StoreError};
use crate::vfs::{Shared, Stale, Tuning, Vfs};
use crate::write::Depth;

/// What another thread wants done.
type Job<S> = Box<dyn FnOnce(Rc<Vfs<S>>) + Send>;

/// Another thread's way to the client library's thread.
pub struct Bridge<S> {
    jobs: mpsc::UnboundedSender<Job<S>>,
    /// What both see.
    pub shared: Arc<Shared>,
}

impl<S> Clone for Bridge<S> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone(), shared: self.shared.clone() }
    }
}

impl<S: Store> Bridge<S> {
    /// Has a task started there.
    pub fn run<F, T>(&self, task: F)
    where
        F: FnOnce(Rc<Vfs<S>>) -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        let job: Job<S> = Box::new(move |vfs| {
            tokio::task::spawn_local(task(vfs));
        });
        // The thread is gone: the job is dropped, and its answer is `EIO`.
        let _ = self.jobs.send(job);
    }
}

/// A mount's side at the client library, before it serves.
pub struct Serving<S> {
    jobs: mpsc::UnboundedReceiver<Job<S>>,
    vfs: Rc<Vfs<S>>,
}

/// Reaches the root, and makes both ends of the bridge.
pub async fn begin<S: Store>(
    store: S,
    tuning: Tuning,
    stale: (std::sync::mpsc::Sender<Stale>, std::sync::mpsc::Sender<Stale>),
) -> Result<(Bridge<S>, Serving<S>), StoreError> {
    let root = store.root().await?;
    let shared = Arc::new(Shared::new(tuning, root.group(), stale, store.pins()));
    let vfs = Vfs::new(shared.clone(), store);
    vfs.begin(&root).await.map_err(|error| StoreError::Unreachable {
        reason: format!("the root directory cannot be read: {error}"),
    })?;
    let (sender, jobs) = mpsc::unbounded_channel();
    Ok((Bridge { jobs: sender, shared }, Serving { jobs, vfs }))
}

impl<S: Store> Serving<S> {
    /// Serves a mount until it is unmounted, says so to `end`, then sends what still waits. With
    /// `only`, nobody but that user and root is served.
    pub async fn serve(
        mut self,
        fd: OwnedFd,
        only: Option<u32>,
        end: std::sync::mpsc::Sender<std::io::Result<()>>,
    ) {
        // Without it the kernel believes what it was told as long as it was told.
        *self.vfs.notices.borrow_mut() = fd.try_clone().ok();
        let recalls = tokio::task::spawn_local(self.vfs.clone().attend_notices());
        let session = Session::new(self.vfs.clone(), fd, only);
        let jobs = async {
            while let Some(job) = self.jobs.recv().await {
                job(self.vfs.clone());
            }
            // Whoever could send jobs is gone; the kernel is served on.
            std::future::pending().await
        };
        let outcome = tokio::select! {
            outcome = session.serve() => outcome,
            () = jobs => Ok(()),
        };
        self.vfs.notices.borrow_mut().take();
        // Nobody listens: the process is ending.
        let _ = end.send(outcome);
        if let Err(error) = self.vfs.flush_all(Depth::Stable).await {
            tracing::error!(%error, "not all written bytes reached the cluster");
        }
        self.vfs.close_all().await;
        // Its own LCC, too, takes back what was given here.
        self.vfs.store.end().await;
        recalls.abort();
    }
}

impl<S: Store> Vfs<S> {
    /// Flushes every file.
    pub async fn flush_all(self: &Rc<Self>, depth: Depth) -> Outcome<()> {
        let all = self.shared.inodes.dirty();
        let flushed = all.iter().map(|inode| self.flush(inode, depth));
        futures_util::future::join_all(flushed).await.into_iter().collect()
    }
}
