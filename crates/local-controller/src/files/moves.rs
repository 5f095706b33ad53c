//! Giving a group up to where its requests come from.
//!
//! # Theory
//! ```text
//! recalled  copies of clients are taken back, and none are granted; what comes is answered
//! leaving   what comes waits
//! drained   what was under way has ended, directory and locks are forgotten,
//!           all that was numbered is decided, stable on all in-sync slots, and they were told
//! given up  the group is dead here, the global controller is told
//! given     who waited, and who comes, hears of the next owner
//! ```
//! The next owner opens the group as any: it finds a prefix in which nothing is in doubt.
//! # Invariants
//! M1 An undecided write is never given up.
//! M2 Nobody has copies of what is given up, but with an owner's grant (N-1).
//! # Failure
//! What cannot be drained in time stays here (another attempt comes later), and so does what the
//! global controller was not told of. Locks are told to the next owner by their holders (`locks.rs`);
//! uploads, lists of removals and remembered operations are in the directory's log.
//! # Source
//! O-6, N-1.

use std::rc::Rc;
use std::time::Duration;

use braid_terms::{DeviceId, LccId, planted};
use braid_wire::lcc::{DirectoryOp, LccRefusal, LccRequest};
use futures_util::stream::{StreamExt, iter};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::requests::Files;
use super::uses::{Caller, Entry, Move, Place, UnderWay};
use crate::Group;
use crate::policy::lcc_of;

impl Files {
    /// A request of a group begins; it waits while the group leaves.
    ///
    /// Errors: `NotOwner`, with the next owner.
    pub(super) async fn enter(
        self: &Rc<Self>,
        group: DeviceId,
        caller: Caller,
    ) -> Result<UnderWay, LccRefusal> {
        loop {
            match self.uses.enter(group, caller, self.is_mount) {
                Entry::Begun(under_way, wanted) => {
                    if let Some(wanted) = wanted {
                        self.begin_move(group, wanted);
                    }
                    return Ok(under_way);
                }
                Entry::Wait(bell) => bell.notified().await,
                Entry::Gone(owner) => return Err(LccRefusal::NotOwner { owner: Some(owner) }),
            }
        }
    }

    fn begin_move(self: &Rc<Self>, device: DeviceId, wanted: Move) {
        let Some(to) = self.target(device, wanted) else { return };
        if self.lcc.open_group(device).is_none() || !self.uses.begin_recall(device) {
            return;
        }
        let files = self.clone();
        spawn_local(async move { files.move_group(device, to).await });
    }

    /// The group leaves; whether it is gone.
    async fn move_group(self: &Rc<Self>, device: DeviceId, to: Place) -> bool {
        let with_removals = self.with_removals();
        let removing = with_removals.into_iter().find(|layout| layout.group() == device);
        // Whoever has copies may need the group to give them back.
        let _nobody_has_copies = match planted!("O-6/copies-outlive-a-move") {
            true => None,
            false => Some(self.lcc.caches.end_group(device).await),
        };
        self.uses.begin_leaving(device);
        let gone = match timeout(DRAIN_WAIT, self.drain(device)).await {
            Ok(Some(group)) => self.lcc.give_up(&group).await,
            Ok(None) | Err(_) => false,
        };
        tracing::debug!(%device, to = %to.0, gone, "a group moves");
        self.uses.end_leaving(device, gone.then_some(to));
        // Its removals go on where it is read; who does not answer reads it at its next use.
        match removing {
            Some(layout) if gone => {
                let request = LccRequest::Directory { layout, op: DirectoryOp::Parent };
                let _ = self.ask_peer(to.0, to.1, &request).await;
            }
            Some(layout) => self.look_after(&layout).await,
            None => {}
        }
        gone
    }

    /// A mount ends: servers take over its directories in which removed files wait for the removal of
    /// their portions, which nobody else would look at before somebody uses them. Source: N-4.
    pub(crate) async fn hand_over_removals(self: &Rc<Self>) {
        if !self.is_mount {
            return;
        }
        let handed = self.with_removals().into_iter().map(|layout| async move {
            let device = layout.group();
            let Some(to) = self.target(device, Move::ToServer) else { return };
            if self.uses.begin_recall(device) {
                self.move_group(device, to).await;
            }
        });
        iter(handed).buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    /// The LCC that is to own the group.
    fn target(&self, device: DeviceId, wanted: Move) -> Option<Place> {
        let map = self.lcc.map();
        let serves = |server: &&braid_terms::ServerInfo| {
            server.id != self.lcc.id().server && server.lccs.iter().any(Option::is_some)
        };
        let server = match wanted {
            Move::To(server) => map.servers.get(&server).filter(serves)?,
            Move::ToServer => {
                let servers = map.servers.values().filter(|server| !server.is_mount);
                let servers: Vec<_> = servers.filter(serves).collect();
                let count = u64::try_from(servers.len()).ok().filter(|count| *count > 0)?;
                servers[usize::try_from(device.0 % count).ok()?]
            }
        };
        let count = u8::try_from(server.lccs.len()).ok()?;
        let index = lcc_of(&map, count, self.lcc.open_group(device)?.layout());
        Some((LccId { server: server.id, index }, server.lc_address))
    }

    /// Waits until nothing of the group is under way or in doubt; `None` where it is gone already.
    async fn drain(&self, device: DeviceId) -> Option<Rc<Group>> {
        if planted!("O-6/give-up-undecided") {
            return self.lcc.open_group(device);
        }
        self.uses.ended(device).await;
        // Batches, checkpoints and removals that the directory began by itself.
        while self.is_busy(device) {
            sleep(LOOK_AGAIN).await;
        }
        // Who has removed files open is known here alone. Source: N-4.
        if self.lcc.caches.has_held(device) {
            return None;
        }
        self.forget(device);
        self.locks.forget(device);
        loop {
            let group = self.lcc.open_group(device)?;
            group.drain().await.ok()?;
            self.lcc.send_marks().await;
            // One here, one in the table: no repair or rebuild has it.
            if group.is_idle() && !group.has_facts() && Rc::strong_count(&group) <= 2 {
                return Some(group);
            }
            drop(group);
            sleep(LOOK_AGAIN).await;
        }
    }
}

/// Longest time in which requests of a group wait for its move.
const DRAIN_WAIT: Duration = Duration::from_secs(3);

/// Groups that are handed over at once.
const AT_ONCE: usize = 32;

const LOOK_AGAIN: Duration = Duration::from_millis(5);
