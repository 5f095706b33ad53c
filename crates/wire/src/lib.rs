//! What the roles say to each other, and its bytes.
//!
//! One module per role that answers: [`io`], [`coordinator`], [`lcc`], [`main_controller`]; [`joint`]
//! has what owners of directories tell each other, [`operations`] what a repeat is answered from. Calls, framing and flow control are in [`rpc`]. The bytes are in `docs/wire.md`.

pub mod coordinator;
pub mod coordinator_client;
pub mod header;
pub mod io;
pub mod joint;
pub mod lcc;
pub mod locks;
pub mod main_controller;
pub mod operations;
pub mod rpc;

pub use braid_env::{Address, Payload};
