//! The whole cluster in one thread: network, disks, faults, clients, and an oracle that knows every
//! acknowledged byte.
//!
//! | file           | what it is                                                             |
//! |----------------|------------------------------------------------------------------------|
//! | `cluster.rs`   | servers with all their roles on simulated machines                     |
//! | `oracle.rs`    | what a file may contain, by what clients were told                     |
//! | `run.rs`       | one seed: clients, faults, healing, checks                             |
//! | `main.rs`      | `cargo xtask sim`: many seeds, or one                                  |

mod cluster;
mod oracle;
mod run;

pub use cluster::Cluster;
pub use oracle::Oracle;
pub use run::{Outcome, Settings, run_seed};
