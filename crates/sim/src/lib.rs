//! The whole cluster in one thread: network, disks, faults, clients, and an oracle that knows every
//! acknowledged byte.
//!
//! | file            | what it is                                                            |
//! |-----------------|-----------------------------------------------------------------------|
//! | `cluster.rs`    | servers with all their roles on simulated machines                    |
//! | `operations.rs` | what clients do                                                       |
//! | `faults.rs`     | what goes wrong meanwhile                                             |
//! | `oracle.rs`     | what clients may see, by what they did and were told                  |
//! | `checks.rs`     | what must hold when the faults are over                               |
//! | `coverage.rs`   | which states must be reached by seeds                                 |
//! | `run.rs`        | one seed: rounds of all that                                          |
//! | `scripted.rs`   | scripts: chosen faults at chosen messages                             |
//! | `main.rs`       | `cargo xtask sim`: many seeds, or one                                 |

mod checks;
mod cluster;
pub mod coverage;
mod faults;
mod operations;
mod oracle;
pub mod planted;
mod run;
pub mod scripted;

pub use cluster::{Cluster, Role};
pub use oracle::Oracle;
pub use run::{Outcome, Settings, run_seed};
