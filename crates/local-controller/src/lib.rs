//! The local controller: it owns groups, and does all reads and writes of them.
//!
//! | part                | question it answers                                                  |
//! |---------------------|----------------------------------------------------------------------|
//! | `lc.rs`             | how an LC starts, keeps its lease, works off facts, and ends         |
//! | `worker.rs`         | one LCC's thread, and what the LC says to it                         |
//! | `lcc.rs`            | which groups an LCC owns, and where new ones go                      |
//! | `group/`            | RAID controller: cluster writes, reads, opens, repair of one group   |
//! | `caches.rs`         | which clients have copies of what it says, and how they are recalled |
//! | `disks.rs`          | connections to I/O servers, syncs and marks for all groups           |
//! | `files/`            | file controllers: directories, attributes, file bytes                |
//! | `local/`            | the local journal: writes that are answered before the cluster has them |
//! | `shadow.rs`         | what it finishes for writers of other servers that are silent        |
//! | `placement.rs`      | which disks a new group gets                                         |
//! | `ranges.rs`         | which device numbers are its own without asking                      |

mod caches;
mod disks;
pub mod files;
mod group;
pub mod lc;
mod lcc;
mod local;
mod placement;
pub mod policy;
mod ranges;
mod shadow;
mod worker;

pub use group::{DeviceWrite, Group, GroupWrite, ReadError, WriteError};
pub use lcc::{Lcc, OwnError, PlaceError};
