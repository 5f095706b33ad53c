//! The I/O server: keeps the portions of one disk.
//!
//! # Theory
//! Owners (LCCs) send records; the I/O server writes them to its journal, promises, and later moves
//! what is stable into portion files. It decides nothing about a write: it only holds what it was
//! told, in order, and says truthfully what it holds.
//! ```text
//! Prepare -> prepare.rs -> journal.rs         promise
//!                       -> portion_file.rs    large new runs, straight to their place
//! Read    -> read.rs                          applied blocks + kept records
//! Sync    -> sync.rs                          one for all who wait
//! Marks   -> group.rs, checkpoint.rs, apply.rs
//! start   -> disk.rs, recovery.rs
//! ```
//! # Invariants
//! See `store.rs`, `group.rs`, `recovery.rs`.
//! # Source
//! Sections 4, 5, 7 of the design; the bytes are in `docs/format/`.

mod apply;
mod bytes_le;
mod checkpoint;
mod checksum;
mod direct;
mod disk;
mod driver;
mod fence;
mod group;
mod inventory;
mod journal;
mod journal_body;
mod miss_map;
mod portion_file;
mod portion_page;
mod prepare;
mod range_set;
mod read;
mod recovery;
mod requests;
mod scrub;
mod store;
mod sync;

pub use checksum::crc32c;
pub use disk::{DiskError, DiskIdentity, check_disk, format_disk, read_identity};
pub use driver::{IoConfig, IoFatal, IoServer, Never, run, run_until};
pub use store::Limits;
