//! The FUSE mount: the store as a file system of the local machine.
//!
//! # Theory
//! ```text
//! kernel <-> kernel.rs (its protocol) <-> session.rs
//!               |  answers what is here: attributes, bytes read ahead, writes into memory
//!               |  starts a task for anything else; all on the one thread of the client library
//!            vfs.rs: names.rs listing.rs attributes.rs open.rs read.rs around.rs write.rs space.rs
//!                    recalls.rs
//!               |
//!            store.rs: cluster.rs (client library) | memory.rs (tests)
//! ```
//! # Invariants
//! M1 A write that was answered is in the mount's memory or held; after close held, after fsync
//!    stable (W-9).
//! M2 A failure to write back is reported by the next write, fsync and close of every open file.
//! M3 What another mount wrote and closed is seen by every read, `stat` and listing that comes after.
//! # Source
//! DESIGN 2, 8, 9, 13; W-9, N-1.

mod acl;
mod around;
mod attach;
mod attributes;
mod bridge;
mod buffer;
mod clock;
mod cluster;
mod errno;
mod inode;
mod kernel;
mod listing;
mod locks;
#[doc(hidden)]
pub mod memory;
mod mount;
mod names;
mod open;
mod read;
mod recalls;
mod session;
mod space;
#[doc(hidden)]
pub mod store;
mod unborn;
mod vfs;
mod write;

pub use cluster::{ClusterStore, mount, serve, start};
pub use mount::{Flags, MountError, MountOptions, Mounted};
pub use vfs::Tuning;
