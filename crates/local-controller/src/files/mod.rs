//! The file controllers: directories, attributes and file bytes, over the groups of an LCC.
//!
//! | part            | question it answers                                                      |
//! |-----------------|--------------------------------------------------------------------------|
//! | `requests.rs`   | who answers a request of a client, and with what                         |
//! | `batch.rs`      | when changes of a directory are decided: group commit, checkpoints       |
//! | `rules.rs`      | what an operation on a directory changes                                 |
//! | `steps.rs`      | what a change over several directories locks and does at one of them     |
//! | `plan.rs`       | what each directory does in such a change                                |
//! | `joint.rs`      | who asks whom for it                                                     |
//! | `pending.rs`    | what is changed and not yet decided                                      |
//! | `checks.rs`     | what is refused                                                          |
//! | `state.rs`      | a directory as decided                                                   |
//! | `record.rs`     | what its log's records say                                               |
//! | `log.rs`        | how records, checkpoints and roots stand on a device                     |
//! | `file.rs`       | bytes of file devices                                                    |
//! | `locks.rs`      | who holds locks of files                                                 |
//! | `touched.rs`    | of whose copies a change makes old ones                                  |
//! | `copies.rs`     | what the local journal has of groups, and how the cluster gets it        |
//! | `removal.rs`    | how devices that nothing names go away                                   |
//! | `root.rs`       | how the root directory comes to be                                       |
//! | `uses.rs`       | where a group's requests come from, and where it is to go                |
//! | `moves.rs`      | how it goes there                                                        |
//! | `access.rs`     | what these need of a group, and the group that gives it                  |

pub(crate) mod access;
mod batch;
pub(crate) mod bytes_le;
mod checks;
mod copies;
mod file;
mod joint;
mod locks;
mod log;
mod moves;
mod pending;
mod plan;
mod record;
mod removal;
mod requests;
mod root;
mod rules;
mod state;
mod steps;
mod touched;
mod uses;

pub use batch::Losses;
pub(crate) use checks::bad;
pub use requests::Files;
pub(crate) use requests::serve_one_of;
pub use uses::{Asker, Caller};

pub use crate::caches::Session;
