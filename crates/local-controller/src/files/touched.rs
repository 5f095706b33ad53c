//! What a batch of changes makes old of the copies that clients have, and who asked for it.
//!
//! # Theory
//! The changes of a batch say which names and attributes they are about; the operations of the batch
//! say who asked. A client need not be told of what only it changed itself: it knows, and its kernel
//! holds the directory until the change is answered.
//! # Source
//! N-1.

use braid_terms::DeviceId;
use braid_wire::lcc::{DirectoryOp, IfExists};
use bytes::Bytes;

use super::record::Change;
use super::steps::LockKey;
use crate::caches::{Authors, Changed, Session};

/// An operation of a batch: who asked, and what it names.
#[derive(Clone)]
pub struct Asked {
    session: Session,
    names: Vec<Bytes>,
    ids: Vec<DeviceId>,
    /// Attributes of files that it does not name may change, too.
    any: bool,
    /// Who asked waits until it is stable.
    pub stable: bool,
}

impl Asked {
    pub fn new(session: Session, op: &DirectoryOp) -> Self {
        let (names, ids, any) = match op {
            DirectoryOp::Create { name, attributes, if_exists, .. } => {
                let ids = attributes.id.into_iter().collect();
                (vec![name.clone()], ids, *if_exists == IfExists::Replace)
            }
            DirectoryOp::Enter { name, id, .. } | DirectoryOp::Link { name, id, .. } => {
                (vec![name.clone()], vec![*id], true)
            }
            DirectoryOp::Unlink { name, only_id, .. } => {
                (vec![name.clone()], only_id.iter().copied().collect(), only_id.is_none())
            }
            DirectoryOp::Rename { from, to, .. } => (vec![from.clone(), to.clone()], vec![], true),
            DirectoryOp::SetAttributes { id, .. } => (vec![], vec![*id], false),
            _ => (vec![], vec![], false),
        };
        Self { session, names, ids, any, stable: false }
    }

    /// Who asked waits until it is stable, or does not.
    pub fn that_waits(self, stable: bool) -> Self {
        Self { stable, ..self }
    }
}

/// What the changes of a batch change for whom.
pub fn changed(own: DeviceId, changes: &[Change], asked: &[Asked]) -> Changed {
    let mut changed = Changed::default();
    let by = |name: &Bytes| -> Authors {
        let named = asked.iter().filter(|asked| asked.names.contains(name));
        named.map(|asked| asked.session).collect()
    };
    for change in changes {
        match change {
            Change::Enter(entry) => {
                changed.names.entry(entry.name.clone()).or_default().extend(by(&entry.name));
            }
            Change::RemoveName(name) => {
                changed.names.entry(name.clone()).or_default().extend(by(name));
            }
            Change::Attributes(attributes) => {
                let authors = authors_of(attributes.id, own, asked);
                changed.ids.entry(attributes.id).or_default().extend(authors);
            }
            Change::RemoveAttributes(id) => {
                changed.ids.entry(*id).or_default().extend(authors_of(*id, own, asked));
            }
            Change::Directory(_) => {
                changed.ids.entry(own).or_default().extend(authors_of(own, own, asked));
            }
            Change::NextCookie(_)
            | Change::Upload(_)
            | Change::UploadEnded(_)
            | Change::ToRemove(_)
            | Change::Removed(_)
            | Change::Operation(..)
            | Change::IntentEnded(_)
            | Change::Joint(..)
            | Change::JointEnded(_)
            | Change::JointVoid(_) => {}
            // Who looks at it from now on waits until it ends.
            Change::Intent(intent) => {
                for key in intent.keys() {
                    match key {
                        LockKey::Name(name) => {
                            changed.names.entry(name).or_default();
                            changed.ids.entry(own).or_default();
                        }
                        LockKey::Count(id) => drop(changed.ids.entry(id).or_default()),
                        LockKey::Empty => drop(changed.ids.entry(own).or_default()),
                        LockKey::Parent | LockKey::Operation(_) => {}
                    }
                }
            }
        }
    }
    changed
}

/// Who may have changed these attributes.
fn authors_of(id: DeviceId, own: DeviceId, asked: &[Asked]) -> Authors {
    let may = asked.iter().filter(|asked| id == own || asked.any || asked.ids.contains(&id));
    may.map(|asked| asked.session).collect()
}

#[cfg(test)]
mod tests {
    use braid_wire::lcc::{DirectoryEntry, FileKind, OperationId};

    use super::*;

    const OWN: DeviceId = DeviceId(1);

    fn unlink(name: &'static str, only_id: Option<u64>) -> DirectoryOp {
        DirectoryOp::Unlink {
            operation: OperationId { client: 1, counter: 1 },
            name: Bytes::from_static(name.as_bytes()),
            only_id: only_id.map(DeviceId),
            keep: false,
            directory: false,
        }
    }

    fn enter(name: &'static str) -> Change {
        Change::Enter(DirectoryEntry {
            name: Bytes::from_static(name.as_bytes()),
            id: DeviceId(9),
            kind: FileKind::File,
            home: None,
            cookie: 1,
        })
    }

    #[test] // Proves: N-1.
    fn each_name_has_its_authors_and_attributes_have_all_who_may_have_changed_them() {
        let asked = [Asked::new(7, &unlink("a", Some(5))), Asked::new(8, &unlink("b", None))];
        let changes = [
            Change::RemoveName(Bytes::from_static(b"a")),
            enter("b"),
            Change::RemoveAttributes(DeviceId(5)),
            Change::RemoveAttributes(DeviceId(6)),
            enter("nobody's"),
        ];
        let changed = changed(OWN, &changes, &asked);
        assert_eq!(changed.names[&b"a"[..]], [7].into());
        assert_eq!(changed.names[&b"b"[..]], [8].into());
        assert_eq!(changed.names[&b"nobody's"[..]], [].into());
        assert_eq!(changed.ids[&DeviceId(5)], [7, 8].into(), "8 may have meant it");
        assert_eq!(changed.ids[&DeviceId(6)], [8].into());
    }
}
