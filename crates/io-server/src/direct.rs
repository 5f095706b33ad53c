//! Blocks on their way to their places: writes that an answer waits for.
//! # Theory
//! A large run of new blocks goes to its place past the page cache, which takes the medium's time.
//! The record that names it is journalled meanwhile, so that the order of the connection stays; what
//! is delayed is only the answer, and with it the promise.
//! ```text
//! prepare -> begin (ticket 7) -> journal append -> state        | blocks are written
//! answer  <------------- ticket 7 done <------------------------/
//! sync    -> waits for all tickets that were begun -> medium
//! ```
//! A process that ends in between has promised nothing: recovery finds that the blocks do not fit
//! their checksums and takes the record back.
//! # Invariants
//! D1 Nothing says that a record is held, and no sync round covers it, before its blocks are written.
//! D2 Two writes under way never meet: blocks that a record has, or had until a sync, are not written
//!    directly (`Group::covered`, `Group::aborted`).
//! # Failure
//! Blocks that cannot be written are a failed medium: their record stands already.
//! # Source
//! W-2, W-8, W-9, S-4.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use braid_terms::PortionName;
use braid_wire::io::BlockRange;
use futures_util::future::LocalBoxFuture;
use tokio::sync::Notify;

use crate::store::Store;

/// Counts direct writes up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Ticket(u64);

/// See the module.
#[derive(Default)]
pub(crate) struct DirectWrites {
    last: u64,
    open: BTreeMap<Ticket, (PortionName, BlockRange)>,
    begun: Vec<(Ticket, LocalBoxFuture<'static, io::Result<()>>)>,
    changed: Rc<Notify>,
}

impl DirectWrites {
    /// A write that was begun; somebody must `take_begun` it.
    pub fn begin(
        &mut self,
        name: PortionName,
        range: BlockRange,
        write: LocalBoxFuture<'static, io::Result<()>>,
    ) {
        self.last += 1;
        let ticket = Ticket(self.last);
        self.open.insert(ticket, (name, range));
        self.begun.push((ticket, write));
    }

    /// All that are under way, or that `take_begun` would give.
    pub fn open(&self) -> Vec<Ticket> {
        self.open.keys().copied().collect()
    }

    /// Those under way that meet blocks of a portion.
    pub fn meeting(&self, name: PortionName, range: BlockRange) -> Vec<Ticket> {
        let meets = |other: &BlockRange| {
            other.first < range.first + range.count && range.first < other.first + other.count
        };
        let open = self.open.iter().filter(|(_, (of, other))| *of == name && meets(other));
        open.map(|(ticket, _)| *ticket).collect()
    }
}

/// Sees to the writes that were begun since the last call; what an answer must wait for.
pub(crate) fn take_begun(store: &Rc<RefCell<Store>>) -> Vec<Ticket> {
    let begun = std::mem::take(&mut store.borrow_mut().direct.begun);
    let tickets = begun.iter().map(|(ticket, _)| *ticket).collect();
    for (ticket, write) in begun {
        let store = store.clone();
        tokio::task::spawn_local(async move {
            let written = write.await;
            let mut store = store.borrow_mut();
            store.direct.open.remove(&ticket);
            store.direct.changed.notify_waiters();
            if let Err(error) = written {
                store.failed.get_or_insert(format!("blocks cannot be written: {error}"));
                store.bell.notify_one();
            }
        });
    }
    tickets
}

/// Waits until these are written, or the medium failed.
pub(crate) async fn written(store: &Rc<RefCell<Store>>, tickets: &[Ticket]) {
    let changed = store.borrow().direct.changed.clone();
    loop {
        let change = changed.notified();
        {
            let store = store.borrow();
            let open = &store.direct.open;
            if store.failed.is_some() || !tickets.iter().any(|ticket| open.contains_key(ticket)) {
                return;
            }
        }
        change.await;
    }
}
