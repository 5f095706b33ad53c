//! POSIX access control lists: what they do to modes, and what new files inherit.
//!
//! # Theory
//! A list is kept as the extended attribute in which the kernel hands it over; the kernel checks
//! permissions by it. The mode shows a part of it, so each change of one changes the other:
//! ```text
//! mode    rwx          rwx              rwx
//! list    user::       mask:: (group::) other::      and named users and groups, under the mask
//! ```
//! What is made in a directory with a default list gets that one, cut to the mode that was asked for;
//! the umask counts only where there is none.
//! # Source
//! acl(5); the kernel's `posix_acl_xattr.h`.

use bytes::Bytes;

use crate::errno::{Errno, Outcome};

/// Name of the list that is checked.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// Name of the list that new files get.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Whether an extended attribute is a list.
pub fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// A list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl(Vec<Entry>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

impl Acl {
    /// Reads a list as the kernel writes it.
    ///
    /// Errors: `EINVAL` for what is none, also where an entry is missing.
    pub fn parse(value: &[u8]) -> Outcome<Self> {
        let (version, entries) = value.split_at_checked(4).ok_or(Errno::INVAL)?;
        if version != VERSION.to_le_bytes() || entries.len() % 8 != 0 {
            return Err(Errno::INVAL);
        }
        let entries = entries.chunks_exact(8).map(|bytes| Entry {
            tag: u16::from_le_bytes([bytes[0], bytes[1]]),
            permissions: u16::from_le_bytes([bytes[2], bytes[3]]),
            id: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        });
        let acl = Self(entries.collect());
        let count = |tag| acl.0.iter().filter(|entry| entry.tag == tag).count();
        let is_named = count(USER) + count(GROUP) > 0;
        let known = [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER];
        let is_good = acl.0.iter().all(|e| known.contains(&e.tag) && e.permissions <= 7)
            && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1)
            && count(MASK) <= 1
            && (!is_named || count(MASK) == 1);
        if is_good { Ok(acl) } else { Err(Errno::INVAL) }
    }

    /// As the kernel reads it.
    pub fn bytes(&self) -> Bytes {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            bytes.extend_from_slice(&entry.id.to_le_bytes());
        }
        bytes.into()
    }

    /// Whether it says no more than a mode.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    fn classes(&mut self) -> [&mut u16; 3] {
        let has_mask = self.0.iter().any(|entry| entry.tag == MASK);
        let group = if has_mask { MASK } else { GROUP_OBJ };
        let mut found = [None, None, None];
        for entry in &mut self.0 {
            let class = [USER_OBJ, group, OTHER].iter().position(|tag| *tag == entry.tag);
            if let Some(class) = class {
                found[class] = Some(&mut entry.permissions);
            }
        }
        found.map(|permissions| permissions.expect("each is there once: see `parse`"))
    }

    /// The mode that shows it, with the other bits of `mode`.
    pub fn mode(&self, mode: u32) -> u32 {
        let mut acl = self.clone();
        let [user, group, other] = acl.classes().map(|permissions| u32::from(*permissions));
        mode & !0o777 | user << 6 | group << 3 | other
    }

    /// Changed by `chmod`.
    pub fn with_mode(mut self, mode: u32) -> Self {
        for (class, shift) in self.classes().into_iter().zip([6, 3, 0]) {
            *class = (mode >> shift & 7) as u16;
        }
        self
    }

    /// What something gets that is made with this mode under this default list: its mode and list.
    pub fn inherit(mut self, mode: u32) -> (u32, Self) {
        for (class, shift) in self.classes().into_iter().zip([6, 3, 0]) {
            *class &= (mode >> shift & 7) as u16;
        }
        (self.mode(mode), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        let entries = entries.iter().map(|(tag, permissions, id)| Entry {
            tag: *tag,
            permissions: *permissions,
            id: *id,
        });
        Acl(entries.collect())
    }

    fn rich() -> Acl {
        let none = u32::MAX;
        acl(&[
            (USER_OBJ, 7, none),
            (USER, 6, 1000),
            (GROUP_OBJ, 5, none),
            (MASK, 6, none),
            (OTHER, 4, none),
        ])
    }

    #[test]
    fn lists_come_back_from_their_bytes() {
        let bytes = rich().bytes();
        assert_eq!(Acl::parse(&bytes), Ok(rich()));
        for length in 0..bytes.len() {
            assert_eq!(Acl::parse(&bytes[..length]), Err(Errno::INVAL), "{length}");
        }
        let no_mask = acl(&[(USER_OBJ, 7, 0), (USER, 6, 1000), (GROUP_OBJ, 5, 0), (OTHER, 4, 0)]);
        assert_eq!(Acl::parse(&no_mask.bytes()), Err(Errno::INVAL), "named users need a mask");
    }

    #[test]
    fn modes_and_lists_follow_each_other() {
        assert_eq!(rich().mode(0o2000), 0o2764);
        let changed = rich().with_mode(0o640);
        assert_eq!(changed.mode(0), 0o640);
        assert_eq!(changed.0[2].permissions, 5, "the group's own entry stays under the mask");
        let plain = acl(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 0, 0)]);
        assert!(plain.is_minimal());
        assert_eq!(plain.with_mode(0o604).mode(0), 0o604);
    }

    #[test]
    fn what_is_made_gets_what_both_allow() {
        let (mode, list) = rich().inherit(0o100_666);
        assert_eq!(mode, 0o100_664);
        assert_eq!(list.mode(0), 0o664);
        assert_eq!(list.0[1].permissions, 6, "named entries stay under the mask");
    }
}
