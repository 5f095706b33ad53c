//! The clocks of a mount: for ages, for leases, and for file times.
//!
//! A mount is a front end on a machine, not a role: FUSE threads need the time too, and `Env` lives
//! on the client library's thread only.

use braid_env::Moment;
use braid_wire::lcc::FileTime;
use rustix::time::{ClockId, clock_gettime};

/// Milliseconds of a clock that never jumps; above 0.
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000 + 1
}

/// The clock of leases: counts suspended time. Source: O-4.
pub fn lease_now() -> Moment {
    let now = clock_gettime(ClockId::Boottime);
    Moment(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// Time of day.
pub fn wall() -> FileTime {
    let now = clock_gettime(ClockId::Realtime);
    FileTime { seconds: now.tv_sec, nanoseconds: now.tv_nsec as u32 }
}
