//! Which scheme and strip size a new object gets: the first matching policy decides.
//! # Source
//! G-5.

use braid_terms::{
    ClusterMap, DataType, Policy, PolicyQuestion, RaidScheme, SCHEME_DEFAULT, STRIP_DEFAULT, Spread,
};

/// What a new object gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice<'a> {
    /// The policy that decided; none for the cluster's default.
    pub policy: Option<&'a str>,
    /// Scheme.
    pub scheme: RaidScheme,
    /// Bytes of a strip.
    pub strip_size: u32,
    /// What no two portions share.
    pub spread: Spread,
}

/// Chooses for a new object. Directories without a policy of their own have as many copies as
/// survive what the default file scheme survives.
#[must_use]
pub fn choose<'a>(
    map: &'a ClusterMap,
    data_type: DataType,
    question: &PolicyQuestion,
) -> Choice<'a> {
    let default = map.scheme_default.unwrap_or(SCHEME_DEFAULT);
    let policy = map.policies.iter().find(|policy| matches(policy, data_type, question));
    let fallback = match data_type {
        DataType::File => default,
        DataType::Directory | DataType::Metadata => {
            let copies = u8::try_from(default.parity() + 1).expect("at most 32 portions");
            RaidScheme::Raid1 { copies }
        }
    };
    Choice {
        policy: policy.map(|policy| policy.name.as_str()),
        scheme: policy.and_then(|policy| policy.scheme).unwrap_or(fallback),
        strip_size: policy.and_then(|policy| policy.strip_size).unwrap_or(STRIP_DEFAULT),
        spread: policy.and_then(|policy| policy.spread).unwrap_or_default(),
    }
}

fn matches(policy: &Policy, data_type: DataType, question: &PolicyQuestion) -> bool {
    // A policy that names no type is about files: a scheme for directories is asked for by name.
    let fits_type = policy.data_type.unwrap_or(DataType::File) == data_type;
    let fits_path = match (&policy.path_glob, &question.path) {
        (None, _) => true,
        (Some(glob), Some(path)) => glob_matches(glob.as_bytes(), path.as_bytes()),
        (Some(_), None) => false,
    };
    let fits_size = match (policy.size_min, question.size) {
        (None, _) => true,
        (Some(least), Some(size)) => least <= size,
        (Some(_), None) => false,
    };
    // What is not known of a client matches no policy that asks for it.
    fits_type && fits_path && fits_size && policy.client.is_none() && policy.priority.is_none()
}

/// Whether `text` is matched whole: `*` any run without `/`, `**` any run, `?` one byte but `/`.
#[must_use]
pub fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    // Where the match stands in `text` for each prefix of `glob`: no recursion, so that a hostile
    // pattern costs at most the product of the lengths.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    let mut at = 0;
    while at < glob.len() {
        let mut next = vec![false; text.len() + 1];
        let deep = glob[at..].starts_with(b"**");
        match glob[at] {
            b'*' => {
                let mut open = false;
                for place in 0..=text.len() {
                    open |= reached[place];
                    next[place] = open;
                    if !deep && place < text.len() && text[place] == b'/' {
                        open = false;
                    }
                }
                at += usize::from(deep);
            }
            byte => {
                for place in 0..text.len() {
                    let fits = byte == text[place] || (byte == b'?' && text[place] != b'/');
                    next[place + 1] = reached[place] && fits;
                }
            }
        }
        reached = next;
        at += 1;
    }
    reached[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test] // Proves: G-5.
    fn globs_match_whole_paths() {
        let check = |glob: &str, text: &str, expect: bool| {
            assert_eq!(glob_matches(glob.as_bytes(), text.as_bytes()), expect, "{glob} {text}");
        };
        check("/a/*.jpg", "/a/b.jpg", true);
        check("/a/*.jpg", "/a/b/c.jpg", false);
        check("/a/**.jpg", "/a/b/c.jpg", true);
        check("**/tmp/**", "/x/tmp/y", true);
        check("/?", "/x", true);
        check("/?", "//", false);
        check("", "", true);
        check("*", "", true);
        check("/a", "/ab", false);
    }

    #[test] // Proves: G-5.
    fn the_first_match_wins() {
        let policy = |name: &str, glob: Option<&str>, scheme: &str| Policy {
            name: name.into(),
            path_glob: glob.map(str::to_owned),
            data_type: None,
            size_min: None,
            client: None,
            priority: None,
            scheme: scheme.parse().ok(),
            strip_size: None,
            ack: None,
            spread: None,
        };
        let map = ClusterMap {
            policies: vec![policy("a", Some("/big/**"), "rs/8+3"), policy("b", None, "raid5/2+1")],
            ..ClusterMap::default()
        };
        let scheme = |path: &str, data_type| {
            let question = PolicyQuestion { path: Some(path.into()), size: None };
            choose(&map, data_type, &question).scheme.to_string()
        };
        assert_eq!(scheme("/big/x", DataType::File), "rs/8+3");
        assert_eq!(scheme("/x", DataType::File), "raid5/2+1");
        assert_eq!(scheme("/x", DataType::Directory), "raid1/3");
    }
}
