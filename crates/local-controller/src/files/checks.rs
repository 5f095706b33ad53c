//! Bounds of what comes from outside: names, attributes, bytes, layouts, replacements.
//!
//! # Failure
//! Everything here is refused with a reason, before anything changes.
//! # Source
//! DESIGN 9: bad input gets a precise error and changes nothing.

use std::collections::BTreeMap;

use braid_terms::{DeviceId, GroupLayout, INLINE_MAX_DEFAULT, SYMLINK_MAX};
use braid_wire::lcc::{
    AttributeChanges, DirectoryEntry, FileData, FileKind, IfExists, LccRefusal, NewAttributes,
};
use bytes::Bytes;

use super::record::is_name;

/// Whether a rename may put `source` in the place of `target`; a directory must be empty for it.
pub fn check_replace(
    source: &DirectoryEntry,
    target: &DirectoryEntry,
    if_exists: IfExists,
) -> Result<(), LccRefusal> {
    let is_directory = |entry: &DirectoryEntry| entry.kind == FileKind::Directory;
    match (is_directory(source), is_directory(target)) {
        _ if if_exists == IfExists::Fail => Err(LccRefusal::Exists { kind: target.kind }),
        _ if source.id == target.id => Ok(()),
        (false, false) | (true, true) => Ok(()),
        (false, true) => Err(LccRefusal::IsDirectory),
        (true, false) => Err(LccRefusal::NotDirectory),
    }
}

/// Extended attributes after a change.
pub fn changed_xattrs(
    old: &[(Bytes, Bytes)],
    changes: &AttributeChanges,
) -> Result<Vec<(Bytes, Bytes)>, LccRefusal> {
    if changes.set_xattrs.is_empty() && changes.remove_xattrs.is_empty() {
        return Ok(old.to_vec());
    }
    let mut xattrs: BTreeMap<Bytes, Bytes> = old.iter().cloned().collect();
    for name in &changes.remove_xattrs {
        if xattrs.remove(name).is_none() {
            return Err(LccRefusal::NotFound);
        }
    }
    xattrs.extend(changes.set_xattrs.iter().cloned());
    let xattrs: Vec<_> = xattrs.into_iter().collect();
    check_xattrs(&xattrs)?;
    Ok(xattrs)
}

/// A name that something is to get.
pub fn check_name(name: &[u8]) -> Result<(), LccRefusal> {
    if is_name(name) {
        return Ok(());
    }
    Err(bad("a name has 1 to 255 bytes, no '/', no NUL, and is not '.' or '..'"))
}

/// Attributes of what is to be made, which is no directory.
pub fn check_new(new: &NewAttributes) -> Result<(), LccRefusal> {
    if new.kind == FileKind::Directory {
        return Err(bad("a directory is begun in its own group and entered here"));
    }
    let has_target = new.target.as_ref().map(|target| target.len());
    match (new.kind, has_target) {
        (FileKind::Symlink, Some(1..=SYMLINK_MAX)) => {}
        (FileKind::Symlink, _) => return Err(bad("a symlink's target has 1 to 4095 bytes")),
        (_, Some(_)) => return Err(bad("only a symlink has a target")),
        (_, None) => {}
    }
    if new.kind != FileKind::File && (new.data != FileData::None || new.size != 0) {
        return Err(bad("only a regular file has bytes"));
    }
    if new.id == Some(DeviceId(0)) {
        return Err(bad("no file has the number 0"));
    }
    check_data(&new.data, new.size)?;
    check_xattrs(&new.xattrs)
}

/// Bytes of a file, and as many as are told.
pub fn check_data(data: &FileData, size: u64) -> Result<(), LccRefusal> {
    if size > i64::MAX as u64 {
        return Err(LccRefusal::TooBig);
    }
    match data {
        FileData::None if size == 0 => Ok(()),
        FileData::None => Err(bad("a file without bytes has size 0")),
        FileData::Inline(bytes) if bytes.len() > INLINE_MAX_DEFAULT => {
            Err(bad("at most 4096 bytes stand inline"))
        }
        FileData::Inline(bytes) if bytes.len() as u64 == size => Ok(()),
        FileData::Inline(_) => Err(bad("inline bytes are as many as the size says")),
        FileData::Device(layout) => check_file_layout(layout),
    }
}

/// The layout of a file's group, from outside.
pub fn check_file_layout(layout: &GroupLayout) -> Result<(), LccRefusal> {
    check_layout(layout)?;
    if layout.devices.len() == 1 { Ok(()) } else { Err(bad("a file has one device")) }
}

/// The layout of a directory's group, from outside.
pub fn check_directory_layout(layout: &GroupLayout) -> Result<(), LccRefusal> {
    check_layout(layout)?;
    if layout.devices.len() == 2 { Ok(()) } else { Err(bad("a directory has two devices")) }
}

/// Any layout from outside.
pub fn check_layout(layout: &GroupLayout) -> Result<(), LccRefusal> {
    layout.check().map_err(|error| LccRefusal::BadRequest { reason: error.to_string() })
}

/// Extended attributes together: at most 1,024, of at most 64 KiB.
pub fn check_xattrs(xattrs: &[(Bytes, Bytes)]) -> Result<(), LccRefusal> {
    let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    let names_fit = xattrs.iter().all(|(name, _)| (1..=255).contains(&name.len()));
    if !names_fit {
        return Err(bad("extended attributes have names of 1 to 255 bytes"));
    }
    // As where a local file system has no more room for them.
    let fits = bytes <= XATTR_BYTES_MAX && xattrs.len() <= XATTRS_MAX;
    if fits { Ok(()) } else { Err(LccRefusal::NoSpace) }
}

/// A request that contradicts itself or a bound.
pub fn bad(reason: &str) -> LccRefusal {
    LccRefusal::BadRequest { reason: reason.to_owned() }
}

const XATTR_BYTES_MAX: usize = 64 << 10;
const XATTRS_MAX: usize = 1024;
