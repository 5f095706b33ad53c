//! The coordinators: the consensus group that keeps map and facts, and the global controller.
//!
//! # Theory
//! ```text
//! requests -> driver -> global_controller   leases, grants: of the elected one, not in the log
//!                    -> proposals -> raft -> state_machine, facts   in the log, of all alike
//! ```
//! `command.rs` has what the log says. [`run`] is a coordinator from its start to its end.

mod command;
mod driver;
mod facts;
mod global_controller;
mod proposals;
mod raft;
mod requests;
mod state_machine;

pub use driver::{CoordinatorConfig, CoordinatorFatal, run};
