//! How devices go away that nothing names any more.
//!
//! # Theory
//! A delete puts the device on its directory's to-remove list. After a while, so that who reads it
//! may finish, the directory's owner asks the device's owner, who takes the portions away under its
//! grant: every older grant is refused there from then on, so a slow writer cannot bring them back.
//! Then the entry leaves the list.
//! ```text
//! to-remove list --delay--> Remove at all slots, tombstones, synced --> facts closed --> off the list
//! ```
//! Synced, because a portion that a power cut brings back is named by nothing any more.
//! # Failure
//! A slot that does not answer: the entry stays, and all is asked again later; a repeat is harmless.
//! A stop in between: whoever reads the directory next finds the list.
//! # Source
//! F-9, N-4, O-5.

use std::rc::Rc;
use std::time::Duration;

use braid_env::Payload;
use braid_terms::{DiskState, GroupLayout, Incarnation, PortionIndex};
use braid_wire::io::{Fence, IoReply, IoRequest};
use braid_wire::lcc::LccRefusal;
use futures_util::future::join_all;

use super::access::own_refusal;
use super::checks::check_layout;
use crate::disks::DiskUp;
use crate::{Lcc, OwnError};

/// Removes the portions of a group that nothing names, wherever they are.
///
/// Errors: `NotOwner`: ask that one; `Unavailable`: not all of them answer, ask again later.
pub async fn remove_group(lcc: &Rc<Lcc>, layout: &GroupLayout) -> Result<(), LccRefusal> {
    check_layout(layout)?;
    let mut disks = Vec::new();
    for slot in layout.slots() {
        let disk = layout.disk(slot);
        let state = lcc.map().disks.get(&disk).map(|disk| disk.state);
        if matches!(state, None | Some(DiskState::Failed)) {
            // Whatever was there is declared lost.
            continue;
        }
        let reason = || format!("disk {disk} does not answer, its portion stays for now");
        let up = lcc.disks.connect(disk).await;
        disks.push((slot, up.ok_or_else(|| LccRefusal::Unavailable { reason: reason() })?));
    }
    let (grant, facts) = match lcc.grant_to_remove(layout.group()).await {
        Ok(granted) => granted,
        Err(OwnError::Unknown) => return Ok(()),
        Err(error) => return Err(own_refusal(error)),
    };
    let removals = disks.iter().map(|(slot, up)| {
        let incarnation = up.incarnation;
        let fence = Fence { group: layout.group(), slot: *slot, grant, incarnation };
        remove_slot(lcc, up, fence, layout)
    });
    for ((slot, up), removed) in disks.iter().zip(join_all(removals).await) {
        if let Err(reason) = removed {
            let reason = failed(*slot, up.incarnation, &reason);
            return Err(LccRefusal::Unavailable { reason });
        }
    }
    lcc.local.settle(layout.group(), |_| true);
    for fact in facts {
        // A fact that stays is met by whoever works it off: no portion knows the group.
        let _ = lcc.close_fact(fact.number, grant).await;
    }
    Ok(())
}

fn failed(slot: PortionIndex, incarnation: Incarnation, reason: &str) -> String {
    format!("portion {slot} was not removed by incarnation {incarnation}: {reason}")
}

async fn remove_slot(
    lcc: &Lcc,
    up: &DiskUp,
    fence: Fence,
    layout: &GroupLayout,
) -> Result<(), String> {
    let disk = layout.disk(fence.slot);
    let request = IoRequest::Remove { fence, layout: Box::new(layout.clone()) };
    match up.client.call(&request, Payload::empty(), REMOVE_WAIT).await {
        Ok((Ok(IoReply::Promised { position, synced }), _)) => {
            lcc.disks.link(disk).note_synced(up.incarnation, synced);
            let stable = lcc.disks.sync(disk, up.incarnation, position).await;
            stable.then_some(()).ok_or_else(|| "its medium does not answer".into())
        }
        Ok((answer, _)) => Err(format!("{answer:?}")),
        Err(error) => Err(error.to_string()),
    }
}

const REMOVE_WAIT: Duration = Duration::from_secs(5);
