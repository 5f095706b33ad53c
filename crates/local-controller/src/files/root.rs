//! How the root directory comes to be.
//!
//! # Theory
//! The map names it. Where it does not, the LC of the lowest server makes a directory and offers it;
//! the coordinators take the first that is offered, and who was later removes its own. The others
//! that have registered wait, and longer the higher their number, in case the lowest are away.

use std::rc::Rc;
use std::time::Duration;

use braid_terms::{DataType, GroupLayout, PolicyQuestion};
use braid_wire::coordinator::{CoordinatorReply, CoordinatorRequest};
use braid_wire::lcc::{DirectoryOp, FileData, FileKind, LccRefusal, NewAttributes, OperationId};
use tokio::time::{Instant, sleep};

use super::access::place_refusal;
use super::removal::remove_group;
use super::requests::Files;

/// Makes the root directory, unless there is one or another server does it.
pub async fn ensure_root(files: Rc<Files>) {
    let lcc = files.lcc().clone();
    let is_mount = lcc.map().servers.get(&lcc.id().server).is_some_and(|server| server.is_mount);
    if lcc.id().index != 0 || is_mount {
        return;
    }
    let begun = Instant::now();
    while lcc.map().root.is_none() {
        let map = lcc.map();
        let lower = map.servers.range(..lcc.id().server);
        let lower = lower.filter(|(_, server)| server.lc.is_some()).count();
        let turn = TURN * u32::try_from(lower).unwrap_or(u32::MAX);
        if lcc.lease_valid() && turn <= begun.elapsed() {
            match make_root(&files).await {
                Ok(()) => return,
                Err(refusal) => tracing::debug!(?refusal, "the root directory is not yet made"),
            }
        }
        sleep(PAUSE).await;
    }
}

async fn make_root(files: &Rc<Files>) -> Result<(), LccRefusal> {
    let lcc = files.lcc();
    let question = PolicyQuestion { path: Some("/".into()), ..PolicyQuestion::default() };
    let layouts =
        lcc.new_layouts(DataType::Directory, &question, 1).await.map_err(place_refusal)?;
    let layout = layouts.into_iter().next().expect("one was asked for");
    let begin = DirectoryOp::Begin {
        operation: OperationId { client: lcc.env().random(), counter: 1 },
        attributes: NewAttributes {
            id: None,
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            made: None,
            atime: None,
            mtime: None,
            rdev: 0,
            data: FileData::None,
            size: 0,
            target: None,
            xattrs: Vec::new(),
        },
        parent: layout.clone(),
    };
    files.directory_op(0, &layout, begin).await?;
    files.directory_op(0, &layout, DirectoryOp::Sync { written: Vec::new() }).await?;
    match offer(files, &layout).await {
        Some(root) if root == layout => {
            tracing::info!(directory = %layout.group(), "made the root directory");
            Ok(())
        }
        Some(_) => {
            // Somebody else was faster.
            files.forget(layout.group());
            if let Err(refusal) = remove_group(lcc, &layout).await {
                tracing::warn!(device = %layout.group(), ?refusal, "a spare root directory stays");
            }
            Ok(())
        }
        None => Err(LccRefusal::Unavailable { reason: "no coordinator took the root".into() }),
    }
}

/// The root directory that counts.
async fn offer(files: &Rc<Files>, layout: &GroupLayout) -> Option<GroupLayout> {
    let request = CoordinatorRequest::SetRoot { layout: Box::new(layout.clone()) };
    // Asked again until it is known: a root that is in the map must not be made twice.
    for _ in 0..OFFERS_MAX {
        match files.lcc().coordinators().call(&request, OFFER_WAIT).await {
            Ok(CoordinatorReply::Map(map)) => return map.root,
            Ok(_) | Err(_) => sleep(PAUSE).await,
        }
    }
    None
}

const PAUSE: Duration = Duration::from_millis(200);
const OFFER_WAIT: Duration = Duration::from_secs(5);
const OFFERS_MAX: u32 = 100;
/// How much longer each next server waits.
const TURN: Duration = Duration::from_secs(5);
