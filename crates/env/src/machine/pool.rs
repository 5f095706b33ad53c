//! A few threads for what waits for the medium: reads past the page cache, and syncs.
//!
//! # Theory
//! A role is one thread; a sync would hold it up for milliseconds. The threads start with the first
//! job that finds none idle and end with the pool. Jobs of one file may run in any order: who needs
//! an order waits for the first.
//! # Failure
//! A job whose asker is gone runs to its end, its result is dropped.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The threads of one role.
pub(super) struct Pool {
    shared: Arc<Shared>,
    thread_count: Cell<usize>,
}

impl Pool {
    /// No thread starts before there is work.
    pub(super) fn new() -> Self {
        Self { shared: Arc::default(), thread_count: Cell::new(0) }
    }

    /// Queues the job at once; the future only waits for its result.
    pub(super) fn run<T, J>(&self, job: J) -> impl Future<Output = io::Result<T>> + use<T, J>
    where
        T: Send + 'static,
        J: FnOnce() -> io::Result<T> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let queued = self.push(Box::new(move || {
            // The asker may be gone; then nobody wants to know.
            let _ = sender.send(job());
        }));
        async move {
            queued?;
            receiver.await.map_err(|_| io::Error::other("the job ended without a result"))?
        }
    }

    fn push(&self, job: Job) -> io::Result<()> {
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        if queue.idle < queue.jobs.len()
            && self.thread_count.get() < THREADS_MAX
            && let Err(error) = self.start_thread()
            && self.thread_count.get() == 0
        {
            queue.jobs.pop_back();
            return Err(error);
        }
        drop(queue);
        self.shared.wake.notify_one();
        Ok(())
    }

    fn start_thread(&self) -> io::Result<()> {
        let shared = self.shared.clone();
        // A thread outside of the role's runtime: it touches nothing but the job's own descriptor.
        std::thread::Builder::new().name("disk".to_owned()).spawn(move || work(&shared))?;
        self.thread_count.set(self.thread_count.get() + 1);
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.wake.notify_all();
    }
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No job runs under the lock, so a panic cannot have left the queue half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(shared: &Shared) {
    let mut queue = shared.lock();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job();
            queue = shared.lock();
        } else if queue.ended {
            return;
        } else {
            queue.idle += 1;
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}

const THREADS_MAX: usize = 4;
