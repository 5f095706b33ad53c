//! Paths in the store: absolute, of bytes, resolved component by component.
//!
//! # Theory
//! Nothing is resolved by text alone: `a/..` is the parent of what `a` names, which may be elsewhere
//! when `a` is a symbolic link. So a path is only cut here; the walk is in `namespace.rs`.

use std::fmt;

use braid_terms::{NAME_MAX, PATH_MAX};
use bytes::Bytes;

use crate::Error;

/// An absolute path, cut into names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StorePath {
    /// Names without empty ones and `.`; `..` stays.
    pub names: Vec<Bytes>,
    /// It ended in `/`, `.` or `..`: only a directory is meant.
    pub directory: bool,
}

impl StorePath {
    /// Cuts an absolute path.
    ///
    /// Errors: `BadPath`, `NameTooLong`.
    pub fn parse(path: impl AsRef<[u8]>) -> Result<Self, Error> {
        let path = path.as_ref();
        if path.first() != Some(&b'/') || path.contains(&0) {
            return Err(Error::BadPath { path: text(path) });
        }
        Self::cut(path)
    }

    /// Cuts a symlink's target; relative if it does not begin with `/`.
    pub(crate) fn cut(path: &[u8]) -> Result<Self, Error> {
        let too_long = || Error::NameTooLong { path: text(&path[..path.len().min(60)]) };
        if PATH_MAX <= path.len() {
            return Err(too_long());
        }
        let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        let names: Vec<_> =
            parts.clone().filter(|part| *part != b".").map(Bytes::copy_from_slice).collect();
        if names.iter().any(|name| NAME_MAX < name.len()) {
            return Err(too_long());
        }
        let last = parts.next_back();
        let directory = path.ends_with(b"/") || matches!(last, None | Some(b"." | b".."));
        Ok(Self { names, directory })
    }

    /// The directory and the name in it.
    ///
    /// Errors: the root and paths that end in `..` have no name that could be made or removed.
    pub fn split_last(mut self) -> Result<(Self, Bytes), Error> {
        let whole = self.to_string();
        match self.names.pop() {
            Some(name) if name != b".."[..] => {
                self.directory = true;
                Ok((self, name))
            }
            _ => Err(Error::Invalid { path: whole, reason: "this is no name to change".into() }),
        }
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return f.write_str("/");
        }
        self.names.iter().try_for_each(|name| write!(f, "/{}", text(name)))
    }
}

/// Bytes for people.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, names: &[&str], directory: bool) {
        let names = names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
        assert_eq!(StorePath::parse(path), Ok(StorePath { names, directory }));
    }

    #[test]
    fn paths_are_cut() {
        check("/", &[], true);
        check("//", &[], true);
        check("/a", &["a"], false);
        check("//a//b/", &["a", "b"], true);
        check("/a/./b", &["a", "b"], false);
        check("/a/../b", &["a", "..", "b"], false);
        check("/a/.", &["a"], true);
        check("/a/..", &["a", ".."], true);
        check("/.", &[], true);
    }

    #[test]
    fn bad_paths_are_refused() {
        for path in ["", "a", "a/b", "/a\0b"] {
            assert!(matches!(StorePath::parse(path), Err(Error::BadPath { .. })), "{path:?}");
        }
        let name = "x".repeat(255);
        check(&format!("/{name}"), &[&name], false);
        let long = [format!("/{name}x"), "/a".repeat(2048)];
        for path in long {
            assert!(matches!(StorePath::parse(&path), Err(Error::NameTooLong { .. })));
        }
        assert!(StorePath::parse("/").unwrap().split_last().is_err());
        assert!(StorePath::parse("/a/..").unwrap().split_last().is_err());
        let (parent, name) = StorePath::parse("/a/b/").unwrap().split_last().unwrap();
        assert_eq!((parent.to_string(), &name[..]), ("/a".into(), &b"b"[..]));
    }
}
