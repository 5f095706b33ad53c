//! RAID schemes as pure maths: where a byte is, what parity is, how lost strips come back.
//!
//! No I/O, no clock, and no allocation where strips pass. The bytes that this crate computes are a
//! format: `docs/format/code.md` writes them down for readers that share no code with us.
//!
//! | file          | question it answers                                              |
//! |---------------|------------------------------------------------------------------|
//! | `geometry.rs` | which portion keeps device byte `at`, and the way back           |
//! | `gf.rs`       | arithmetic of GF(2^8)                                            |
//! | `code.rs`     | parity of data strips, lost strips from the others               |
//! | `kernels/`    | the same sums of products, as fast as the CPU has instructions   |

mod code;
mod geometry;
mod gf;
mod kernels;
mod units;

pub use code::{Code, CodeError, Decoder, parity_coefficient};
pub use geometry::{Content, Geometry, GeometryError, Segment, Segments};
pub use kernels::Kernel;
pub use units::UnitSet;
