//! What an operation of the mount fails with.

pub use rustix::io::Errno;

use crate::store::StoreError;

/// Outcome of an operation of the mount.
pub type Outcome<T> = Result<T, Errno>;

/// The error number of a failed request.
pub fn of_store(error: &StoreError) -> Errno {
    match error {
        StoreError::Refused(errno) => *errno,
        StoreError::HeldLost | StoreError::Unreachable { .. } => Errno::IO,
    }
}
