//! Whose disk a folder is: `disk.toml` (`docs/format/disk.md`).
//! # Theory
//! A folder is believed to be a disk only by its `disk.toml`. A mount point whose drive is away has
//! none: the disk is then *missing*, and nothing is made in the folder.
//! # Failure
//! Every doubt is a [`DiskError`]; the process ends with it and nothing is written.
//! # Source
//! S-6, S-7.

use std::path::Path;

use braid_env::{Env, Folder, OpenMode};
use braid_terms::{ClusterId, DiskId};

use crate::journal::Journal;

/// Version of everything below the folder. Source: S-6.
pub const FORMAT: u32 = 1;

/// Which disk of which cluster. Source: S-7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// Number of the disk in it.
    pub disk: DiskId,
    /// 128 random bits, made when the disk was formatted.
    pub identity: u128,
}

/// Why a folder is not the disk that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// No `disk.toml`: the drive is not mounted, or was never formatted.
    #[error("the folder has no disk.toml: the disk is missing (not mounted?) or was never added")]
    Missing,
    /// A disk of another cluster.
    #[error("the disk belongs to cluster {found}, not to {expected}")]
    OtherCluster {
        /// In `disk.toml`.
        found: ClusterId,
        /// As configured.
        expected: ClusterId,
    },
    /// Another disk of the cluster.
    #[error("the folder holds disk {found}, not disk {expected}")]
    OtherDisk {
        /// In `disk.toml`.
        found: DiskId,
        /// As configured.
        expected: DiskId,
    },
    /// Written by a newer version.
    #[error("the disk has format {found}; this version reads up to {FORMAT}")]
    Format {
        /// In `disk.toml`.
        found: u32,
    },
    /// `disk.toml` cannot be understood.
    #[error("disk.toml is damaged: {key} is missing or wrong")]
    Damaged {
        /// Which key.
        key: &'static str,
    },
    /// It is a disk already.
    #[error("the folder is disk {found} of cluster {cluster} already")]
    Formatted {
        /// In `disk.toml`.
        found: DiskId,
        /// In `disk.toml`.
        cluster: ClusterId,
    },
    /// Another process serves it.
    #[error("another process has the disk")]
    Taken,
    /// The folder cannot be read or written.
    #[error("the disk's folder: {0}")]
    Io(#[from] std::io::Error),
}

/// Makes a folder a disk, durably: sub-folders and an empty journal first, `disk.toml` last.
///
/// Errors: `Formatted` where it is one already; `Io`.
pub async fn format_disk(env: &Env, path: &Path, identity: DiskIdentity) -> Result<(), DiskError> {
    let folder = env.folder(path)?;
    match read_identity(&folder) {
        Err(DiskError::Missing) => {}
        Ok(found) => {
            return Err(DiskError::Formatted { found: found.disk, cluster: found.cluster });
        }
        Err(error) => return Err(error),
    }
    folder.create_folder("journal")?;
    for number in 0..=255 {
        folder.create_folder(&format!("portions/{number:02x}"))?;
    }
    folder.sync_folder("portions").await?;
    folder.sync_folder("").await?;
    let first = Journal::begin_empty(&folder, identity, env.random())?;
    first.sync_data().await?;
    folder.sync_folder("journal").await?;
    folder.replace_file("disk.toml", identity_text(identity).as_bytes()).await?;
    Ok(())
}

/// Reads whose disk a folder is.
///
/// Errors: `Missing`, `Format`, `Damaged`, `Io`.
pub fn read_identity(folder: &Folder) -> Result<DiskIdentity, DiskError> {
    match folder.open("disk.toml", OpenMode::Read) {
        Ok(file) if file.length()? <= 1 << 16 => {}
        Ok(_) => return Err(DiskError::Damaged { key: "length" }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(DiskError::Missing);
        }
        Err(error) => return Err(error.into()),
    }
    parse_identity(&String::from_utf8_lossy(&folder.read_file("disk.toml")?))
}

/// Checks that a folder is the disk that is meant.
///
/// Errors: those of [`read_identity`], `OtherCluster`, `OtherDisk`.
pub fn check_disk(
    folder: &Folder,
    cluster: ClusterId,
    disk: DiskId,
) -> Result<DiskIdentity, DiskError> {
    let found = read_identity(folder)?;
    if found.cluster != cluster {
        return Err(DiskError::OtherCluster { found: found.cluster, expected: cluster });
    }
    if found.disk != disk {
        return Err(DiskError::OtherDisk { found: found.disk, expected: disk });
    }
    Ok(found)
}

fn identity_text(identity: DiskIdentity) -> String {
    format!(
        "# A disk of BraidFS; see docs/format/disk.md. Do not edit.\n\
         format = {FORMAT}\ncluster = \"{}\"\ndisk = {}\nidentity = \"{:032x}\"\n",
        identity.cluster, identity.disk, identity.identity
    )
}

fn parse_identity(text: &str) -> Result<DiskIdentity, DiskError> {
    let value = |key: &'static str| -> Result<&str, DiskError> {
        text.lines()
            .filter_map(|line| line.split('#').next()?.split_once('='))
            .find(|(found, _)| found.trim() == key)
            .map(|(_, value)| value.trim().trim_matches('"'))
            .ok_or(DiskError::Damaged { key })
    };
    let hex = |key: &'static str| -> Result<u128, DiskError> {
        u128::from_str_radix(value(key)?, 16).map_err(|_| DiskError::Damaged { key })
    };
    let format = value("format")?.parse().map_err(|_| DiskError::Damaged { key: "format" })?;
    if format != FORMAT {
        return Err(DiskError::Format { found: format });
    }
    let disk = value("disk")?.parse().map_err(|_| DiskError::Damaged { key: "disk" })?;
    Ok(DiskIdentity {
        cluster: ClusterId(hex("cluster")?),
        disk: DiskId(disk),
        identity: hex("identity")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // Proves: S-7.
    fn identities_print_and_parse() {
        let identity = DiskIdentity { cluster: ClusterId(7), disk: DiskId(3), identity: 1 << 127 };
        let text = identity_text(identity);
        assert_eq!(parse_identity(&text).expect("own text"), identity);
        let newer = text.replace("format = 1", "format = 2");
        assert!(matches!(parse_identity(&newer), Err(DiskError::Format { found: 2 })));
        for key in ["format", "cluster", "disk", "identity"] {
            let without = text.replace(key, "other");
            assert!(matches!(parse_identity(&without), Err(DiskError::Damaged { .. })), "{key}");
        }
    }
}
