//! What can go wrong for a user of the store: one case per thing that the user can do about it.

use braid_wire::lcc::LccRefusal;

/// Why an operation on the store was not done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing has that name.
    #[error("{path}: no such file or directory")]
    NotFound {
        /// The path or name.
        path: String,
    },
    /// Something has that name.
    #[error("{path}: exists already; remove it first or choose another name")]
    Exists {
        /// The path or name.
        path: String,
    },
    /// Something else where a directory must be.
    #[error("{path}: not a directory")]
    NotDirectory {
        /// The path or name.
        path: String,
    },
    /// A directory where none may be.
    #[error("{path}: is a directory")]
    IsDirectory {
        /// The path or name.
        path: String,
    },
    /// The directory has entries.
    #[error("{path}: the directory is not empty; remove what is in it first")]
    NotEmpty {
        /// The path or name.
        path: String,
    },
    /// The path is not absolute, or has a NUL in it.
    #[error("{path:?}: a path in the store begins with '/' and has no NUL")]
    BadPath {
        /// As it was given.
        path: String,
    },
    /// A component of a path has more than 255 bytes, or the path more than 4096.
    #[error("{path}: a name may have 255 bytes and a path 4096")]
    NameTooLong {
        /// Its beginning.
        path: String,
    },
    /// More than 40 symbolic links on the way.
    #[error("{path}: too many symbolic links, perhaps a circle")]
    SymlinkLoop {
        /// The path.
        path: String,
    },
    /// It makes no sense: a bound, or an argument against another.
    #[error("{path}: {reason}")]
    Invalid {
        /// The path or name.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// It changed meanwhile, and what was asked for was bound to how it was.
    #[error("{path}: it was changed by someone else meanwhile; look again and retry")]
    Conflict {
        /// The path or name.
        path: String,
    },
    /// No such extended attribute.
    #[error("{path}: no such extended attribute")]
    NoAttribute {
        /// The path or name.
        path: String,
    },
    /// The disks are full.
    #[error("{path}: no space left in the cluster; remove files or add a disk (braid disk add)")]
    NoSpace {
        /// The path or name.
        path: String,
    },
    /// New files need more servers than are up.
    #[error("{path}: no place for new files: {reason}; start servers or lower the scheme's m")]
    NoPlace {
        /// The path or name.
        path: String,
        /// What is missing.
        reason: String,
    },
    /// The file would be longer than a file can be.
    #[error("{path}: too big")]
    TooBig {
        /// The path or name.
        path: String,
    },
    /// More portions are lost than the scheme tolerates.
    #[error("{path}: bytes are lost: {reason}; bring the missing disks back (braid status)")]
    Lost {
        /// The path or name.
        path: String,
        /// What.
        reason: String,
    },
    /// Changes that were answered were lost before they were on the disks: more servers than the
    /// scheme tolerates lost their power. Told once.
    #[error("{path}: changes were lost when several servers lost their power; write them again")]
    HeldLost {
        /// The path or name.
        path: String,
    },
    /// The cluster did not answer in time. A change may have been done all the same.
    #[error("{path}: the cluster does not answer: {reason}; see braid status, then retry")]
    Unavailable {
        /// The path or name.
        path: String,
        /// What the last attempt said.
        reason: String,
    },
    /// An attempt whose answer was lost may have done it; whether it did, nobody knows any more.
    #[error("{path}: the change may have been made; look before you make it again")]
    Unsure {
        /// The path or name.
        path: String,
    },
    /// A server said what it should not: another version, or a bug.
    #[error("{path}: unexpected answer from the cluster: {reason}")]
    Protocol {
        /// The path or name.
        path: String,
        /// What.
        reason: String,
    },
}

impl Error {
    /// A refusal of the owner, about `path`.
    #[must_use]
    pub(crate) fn refused(refusal: LccRefusal, path: impl Into<String>) -> Self {
        let path = path.into();
        match refusal {
            LccRefusal::NotFound | LccRefusal::Retired => Self::NotFound { path },
            LccRefusal::Exists { .. } => Self::Exists { path },
            LccRefusal::IsDirectory => Self::IsDirectory { path },
            LccRefusal::NotDirectory => Self::NotDirectory { path },
            LccRefusal::NotEmpty => Self::NotEmpty { path },
            LccRefusal::Conflict => Self::Conflict { path },
            LccRefusal::NoSpace => Self::NoSpace { path },
            LccRefusal::NoPlace { reason } => Self::NoPlace { path, reason },
            LccRefusal::Lost { reason } => Self::Lost { path, reason },
            LccRefusal::HeldLost => Self::HeldLost { path },
            LccRefusal::Forgotten => Self::Unsure { path },
            LccRefusal::BadRequest { reason } => Self::Invalid { path, reason },
            LccRefusal::TooBig => Self::TooBig { path },
            LccRefusal::Unavailable { reason } => Self::Unavailable { path, reason },
            LccRefusal::NotOwner { .. } | LccRefusal::OutcomeUnknown => {
                Self::Unavailable { path, reason: "its owner is changing".into() }
            }
            refusal => Self::Protocol { path, reason: format!("{refusal:?}") },
        }
    }

    /// The same about another path: the one that the caller knows.
    #[must_use]
    pub fn about(mut self, path: impl Into<String>) -> Self {
        *self.path_mut() = path.into();
        self
    }

    /// Whether the cluster, not the request, is at fault, and a retry may help.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// The number that POSIX has for it (Linux values).
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::NotFound { .. } => 2,
            Self::Unavailable { .. }
            | Self::Lost { .. }
            | Self::HeldLost { .. }
            | Self::Unsure { .. }
            | Self::Protocol { .. } => 5,
            Self::Conflict { .. } => 16,
            Self::Exists { .. } => 17,
            Self::NotDirectory { .. } => 20,
            Self::IsDirectory { .. } => 21,
            Self::BadPath { .. } | Self::Invalid { .. } => 22,
            Self::TooBig { .. } => 27,
            Self::NoSpace { .. } | Self::NoPlace { .. } => 28,
            Self::NameTooLong { .. } => 36,
            Self::NotEmpty { .. } => 39,
            Self::SymlinkLoop { .. } => 40,
            Self::NoAttribute { .. } => 61,
        }
    }

    const fn path_mut(&mut self) -> &mut String {
        match self {
            Self::NotFound { path }
            | Self::Exists { path }
            | Self::NotDirectory { path }
            | Self::IsDirectory { path }
            | Self::NotEmpty { path }
            | Self::BadPath { path }
            | Self::NameTooLong { path }
            | Self::SymlinkLoop { path }
            | Self::Invalid { path, .. }
            | Self::Conflict { path }
            | Self::NoAttribute { path }
            | Self::NoSpace { path }
            | Self::NoPlace { path, .. }
            | Self::TooBig { path }
            | Self::HeldLost { path }
            | Self::Unsure { path }
            | Self::Lost { path, .. }
            | Self::Unavailable { path, .. }
            | Self::Protocol { path, .. } => path,
        }
    }
}
