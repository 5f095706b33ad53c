//! The glossary as types: numbers, units, limits, portion names, schemes, layouts and policies.
//!
//! No logic beyond parsing, printing and checking lives here; every other crate speaks in these
//! words. The words themselves are explained in `docs/glossary.md`.

mod facts;
mod layout;
mod limits;
mod map;
mod numbers;
mod planted;
mod policy;
mod portion_name;
mod scheme;

pub use facts::{Fact, FactKind};
pub use layout::{GroupLayout, LayoutError, PortionPlace};
pub use limits::*;
pub use map::{ClusterMap, DiskInfo, DiskState, ServerInfo, ServerState};
pub use numbers::*;
pub use planted::*;
pub use policy::{
    AckMode, DataType, Policy, PolicyQuestion, SCHEME_DEFAULT, STRIP_DEFAULT, Spread,
};
pub use portion_name::{PortionName, PortionNameError};
pub use scheme::{RaidScheme, SchemeError};
