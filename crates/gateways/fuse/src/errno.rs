//! What an operation of the mount fails with, and how an owner's refusal becomes it.

use braid_wire::lcc::LccRefusal;
pub use rustix::io::Errno;

use crate::store::StoreError;

/// Outcome of an operation of the mount.
pub type Outcome<T> = Result<T, Errno>;

/// The error number that stands for an owner's refusal.
///
/// | refusal                       | error                | because                                  |
/// |-------------------------------|----------------------|------------------------------------------|
/// | name or id unknown, retired   | `ENOENT`             | it is not there, or no longer            |
/// | the disks are full, no place  | `ENOSPC`             | freeing or adding space helps            |
/// | conflict                      | `ESTALE`             | it changed meanwhile; callers try again  |
/// | unavailable, unknown owner    | `EIO`                | `soft`: the wait is over; `hard` waits   |
/// | lost                          | `EIO`                | bytes are gone                           |
pub fn of_refusal(refusal: &LccRefusal) -> Errno {
    match refusal {
        LccRefusal::NotFound | LccRefusal::Retired => Errno::NOENT,
        LccRefusal::Exists { .. } => Errno::EXIST,
        LccRefusal::IsDirectory => Errno::ISDIR,
        LccRefusal::NotDirectory => Errno::NOTDIR,
        LccRefusal::NotEmpty => Errno::NOTEMPTY,
        LccRefusal::Conflict => Errno::STALE,
        LccRefusal::NoSpace | LccRefusal::NoPlace { .. } => Errno::NOSPC,
        LccRefusal::BadRequest { .. } => Errno::INVAL,
        LccRefusal::TooBig => Errno::FBIG,
        _ => Errno::IO,
    }
}

/// The error number of a failed request.
pub fn of_store(error: &StoreError) -> Errno {
    match error {
        StoreError::Refused(refusal) => of_refusal(refusal),
        StoreError::Unreachable { .. } => Errno::IO,
    }
}
