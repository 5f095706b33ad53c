//! This program as the helper of `mount(8)`: `mount -t fuse.braid CLIENT_TOML DIRECTORY`.
//!
//! # Theory
//! `mount` starts `/sbin/mount.fuse.braid`, a link to this program, and hands its own options over:
//! ```text
//! mount.fuse.braid SOURCE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]
//! braid --cluster SOURCE mount DIRECTORY [-o OPTIONS]
//! ```

use std::ffi::OsString;
use std::path::Path;

/// Names under which this program is the helper.
const NAMES: [&str; 2] = ["mount.fuse.braid", "mount.braid"];

/// What the arguments mean.
#[derive(PartialEq, Eq, Debug)]
pub enum Called {
    /// As they stand, or by the helper's name, translated.
    With(Vec<OsString>),
    /// `mount -f`: nothing is done.
    Fake,
}

/// Translates the arguments of the helper; others stay.
///
/// Errors: what is missing or not known.
pub fn translate(arguments: Vec<OsString>) -> Result<Called, String> {
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    if !name.is_some_and(|name| NAMES.iter().any(|known| name == *known)) {
        return Ok(Called::With(arguments));
    }
    let mut rest = arguments.into_iter().skip(1);
    let (mut places, mut options) = (Vec::new(), Vec::new());
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy().into_owned();
        match text.strip_prefix('-') {
            None | Some("") => places.push(argument),
            Some("o") => options.push(rest.next().ok_or("-o names no options")?),
            Some("t" | "N") => drop(rest.next()),
            Some(flags) if flags.contains('f') && flags.chars().all(is_flag) => {
                return Ok(Called::Fake);
            }
            Some(flags) if flags.chars().all(is_flag) => {}
            Some(_) => return Err(format!("{text} is not known")),
        }
    }
    let [source, directory] = <[OsString; 2]>::try_from(places).map_err(|_| {
        "a source (the cluster's client.toml) and a directory are needed".to_owned()
    })?;
    let mut translated = vec![OsString::from("braid")];
    if source != "none" && source != "braid" {
        translated.extend(["--cluster".into(), source]);
    }
    translated.extend(["mount".into(), directory]);
    for list in options {
        translated.extend(["-o".into(), list]);
    }
    Ok(Called::With(translated))
}

fn is_flag(letter: char) -> bool {
    matches!(letter, 's' | 'f' | 'n' | 'v')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(line: &str) -> Result<Called, String> {
        translate(line.split(' ').map(OsString::from).collect())
    }

    #[track_caller]
    fn check(line: &str, expect: &str) {
        let expect = expect.split(' ').map(OsString::from).collect();
        assert_eq!(called(line), Ok(Called::With(expect)), "{line}");
    }

    #[test]
    fn the_helper_is_known_by_its_name() {
        check(
            "/sbin/mount.fuse.braid /etc/c.toml /mnt -n -o rw,soft -t fuse.braid",
            "braid --cluster /etc/c.toml mount /mnt -o rw,soft",
        );
        check("mount.braid none /mnt", "braid mount /mnt");
        check("/usr/bin/braid status --json", "/usr/bin/braid status --json");
        assert_eq!(called("mount.fuse.braid a b -sf"), Ok(Called::Fake));
    }

    #[test]
    fn what_is_missing_is_said() {
        for line in ["mount.fuse.braid", "mount.fuse.braid a", "mount.fuse.braid a b -o"] {
            assert!(called(line).is_err(), "{line}");
        }
        assert!(called("mount.fuse.braid a b -x").is_err_and(|reason| reason.contains("-x")));
    }
}
