//! The client library: paths, names, puts and gets over the owners of directories and devices.
//!
//! # Theory
//! A path is walked by look-ups at the owners of its directories. Bytes of up to 4 KiB stand in the
//! attributes; more bytes go to a device of their own, at the LCC that gave its number, so that load
//! and ownership spread over the servers.
//! ```text
//! Client ------ paths: resolve, stat, list, mkdir, put, get, rename ...     (namespace.rs, path.rs)
//!   |---------- nodes: the same by directory and name, for gateways         (node.rs)
//!   |---------- PutWriter, File, FileReader: bytes                          (put.rs, file.rs)
//!   |-- Reach - who owns a group, redirects, retries until a deadline       (reach.rs)
//!   `-- Hosted - an LCC of the client's own                                 (host.rs)
//! ```
//! All calls take `&self`; a caller runs many at once, and changes of one directory that are under
//! way together share cluster writes.
//! # Failure
//! An owner that dies is found out by its connection; the next one is asked for until the deadline.
//! Changes of names and of bytes carry an operation id, so that asking twice does it once.
//! A rename across directories enters the new name first and then removes the old one: a crash of
//! the client between the two leaves both names. The same for a hard link: its count may be too high,
//! never too low.
//! # Source
//! DESIGN 8, 9, 13; L1, L2 of `wire::lcc`.

mod caches;
mod change;
mod cluster_file;
mod error;
mod file;
mod host;
mod inode;
mod layouts;
mod namespace;
mod node;
mod path;
mod put;
mod reach;
mod told;
mod tree;

pub use braid_wire::lcc::{AttributeChanges, Attributes, FileData, FileKind, FileTime, SetTime};
pub use caches::{Caches, Grant, Notice, Pins, Recalled};
pub use change::Change;
pub use cluster_file::{ClusterFile, ClusterFileError, ServerEntry};
pub use error::Error;
pub use file::{File, FileReader};
pub use host::{HostOptions, Hosted};
pub use inode::ClusterSpace;
pub use namespace::{Client, ClientOptions, DirectoryLister, ListedEntry};
pub use node::{Directory, EntryAttributes, Node, RenameOptions};
pub use path::StorePath;
pub use put::{PutOptions, PutWriter};
