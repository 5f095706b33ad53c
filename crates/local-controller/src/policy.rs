//! What a new object gets: the first policy that matches decides.
//! # Theory
//! A policy matches where everything that it names fits: data type, path, expected size, the client's
//! address and its priority. What is not known of an object fits no policy that asks for it.
//! # Source
//! G-5; DESIGN 4, acknowledgement modes.

use std::net::IpAddr;

use braid_terms::{
    AckMode, ClusterMap, DataType, GroupLayout, Policy, PolicyQuestion, RaidScheme, SCHEME_DEFAULT,
    STRIP_DEFAULT, Spread,
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
    /// When a writer of its bytes is answered.
    pub ack: AckMode,
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
    let mut policies = map.policies.iter().filter(|policy| decides(policy));
    let policy = policies.find(|policy| matches(policy, data_type, question));
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
        ack: policy.and_then(|policy| policy.ack).unwrap_or_default(),
    }
}

/// Whether a policy says anything of a new object: not where it only reserves LCCs.
#[must_use]
pub fn decides(policy: &Policy) -> bool {
    policy.lccs.is_none()
        || policy.scheme.is_some()
        || policy.strip_size.is_some()
        || policy.ack.is_some()
        || policy.spread.is_some()
}

/// The LCCs of an LC that are for a data type, by index, of `count` that it has.
///
/// | policies with `lccs`         | that type          | all others              |
/// |------------------------------|--------------------|-------------------------|
/// | none                         | all                | all                     |
/// | of that type                 | those              | what is left            |
/// | more than there are but one  | what there was     | the first one at least  |
///
/// They are taken from the end, in the order of the policies; a directory and its meta-data are one type.
/// Source: O-7.
#[must_use]
pub fn lccs_for(map: &ClusterMap, count: u8, data_type: DataType) -> Vec<u8> {
    let is_file = |data_type| data_type == DataType::File;
    let mut free = count.max(1);
    let mut own = Vec::new();
    for policy in &map.policies {
        let (Some(of), Some(wanted)) = (policy.data_type, policy.lccs) else { continue };
        let taken = wanted.min(free - 1);
        if is_file(of) == is_file(data_type) {
            own.extend(free - taken..free);
        }
        free -= taken;
    }
    if own.is_empty() { (0..free).collect() } else { own }
}

/// The type of data that a group has.
#[must_use]
pub fn data_type_of(layout: &GroupLayout) -> DataType {
    if layout.devices.len() == 1 { DataType::File } else { DataType::Directory }
}

/// Which of an LC's LCCs is to own a group that nobody owns; always the same one. Source: O-7.
#[must_use]
pub fn lcc_of(map: &ClusterMap, count: u8, layout: &GroupLayout) -> u8 {
    let lccs = lccs_for(map, count, data_type_of(layout));
    lccs[usize::try_from(layout.group().0 % lccs.len() as u64).expect("below a length")]
}

fn matches(policy: &Policy, data_type: DataType, question: &PolicyQuestion) -> bool {
    // A policy that names no type is about files: a scheme for directories is asked for by name. A
    // directory and its meta-data are one group, so they have one scheme.
    let is_file = |data_type| data_type == DataType::File;
    let fits_type = is_file(policy.data_type.unwrap_or(DataType::File)) == is_file(data_type);
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
    let fits_client = match (&policy.client, question.client) {
        (None, _) => true,
        (Some(network), Some(client)) => is_within(client, network),
        (Some(_), None) => false,
    };
    let fits_priority = policy.priority.is_none() || policy.priority == question.priority;
    fits_type && fits_path && fits_size && fits_client && fits_priority
}

/// Whether an address is of a network, as `ADDRESS/BITS` or one address; never of what is no network.
#[must_use]
pub fn is_within(client: IpAddr, network: &str) -> bool {
    let (address, bits) = match network.split_once('/') {
        Some((address, bits)) => (address, bits.parse::<u32>().ok()),
        None => (network, Some(128)),
    };
    let (Ok(address), Some(bits)) = (address.parse::<IpAddr>(), bits) else { return false };
    // The same address in both of its forms.
    let (client, address) = (client.to_canonical(), address.to_canonical());
    let (client, address, width) = match (client, address) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits().into(), other.to_bits().into(), 32),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits(), other.to_bits(), 128),
        _ => return false,
    };
    let differs: u128 = client ^ address;
    differs.checked_shr(width - bits.min(width)).unwrap_or(0) == 0
}

/// Whether a text is a network that [`is_within`] understands.
#[must_use]
pub fn is_network(network: &str) -> bool {
    let address = network.split_once('/').map_or(network, |(address, _)| address);
    address.parse().is_ok_and(|address: IpAddr| {
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = network.split_once('/').map(|(_, bits)| bits.parse::<u32>());
        bits.is_none_or(|bits| bits.is_ok_and(|bits| bits <= width))
    })
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
            lccs: None,
        };
        let map = ClusterMap {
            policies: vec![policy("a", Some("/big/**"), "rs/8+3"), policy("b", None, "raid5/2+1")],
            ..ClusterMap::default()
        };
        let scheme = |path: &str, data_type| {
            let question = PolicyQuestion { path: Some(path.into()), ..Default::default() };
            choose(&map, data_type, &question).scheme.to_string()
        };
        assert_eq!(scheme("/big/x", DataType::File), "rs/8+3");
        assert_eq!(scheme("/x", DataType::File), "raid5/2+1");
        assert_eq!(scheme("/x", DataType::Directory), "raid1/3");
    }

    #[test] // Proves: O-7.
    fn some_lccs_are_for_one_type_alone() {
        let policy = |data_type, lccs| Policy {
            name: String::new(),
            path_glob: None,
            data_type: Some(data_type),
            size_min: None,
            client: None,
            priority: None,
            scheme: None,
            strip_size: None,
            ack: None,
            spread: None,
            lccs: Some(lccs),
        };
        let check = |policies: &[(DataType, u8)], count, files: &[u8], directories: &[u8]| {
            let policies = policies.iter().map(|(of, lccs)| policy(*of, *lccs)).collect();
            let map = ClusterMap { policies, ..ClusterMap::default() };
            assert_eq!(lccs_for(&map, count, DataType::File), files);
            assert_eq!(lccs_for(&map, count, DataType::Directory), directories);
            assert_eq!(lccs_for(&map, count, DataType::Metadata), directories);
        };
        let (file, directory) = (DataType::File, DataType::Directory);
        check(&[], 3, &[0, 1, 2], &[0, 1, 2]);
        check(&[(directory, 1)], 3, &[0, 1], &[2]);
        check(&[(DataType::Metadata, 1), (directory, 1)], 4, &[0, 1], &[3, 2]);
        check(&[(directory, 1), (file, 1)], 4, &[2], &[3]);
        check(&[(directory, 9)], 3, &[0], &[1, 2]);
        check(&[(directory, 0)], 3, &[0, 1, 2], &[0, 1, 2]);
        check(&[(directory, 1)], 1, &[0], &[0]);
        check(&[(directory, 1)], 0, &[0], &[0]);
    }

    #[test] // Proves: G-5.
    fn a_client_is_of_a_network() {
        let check = |client: &str, network: &str, expect: bool| {
            let client = client.parse().expect("an address");
            assert_eq!(is_within(client, network), expect, "{client} {network}");
        };
        check("10.0.3.7", "10.0.0.0/16", true);
        check("10.1.3.7", "10.0.0.0/16", false);
        check("::ffff:10.0.3.7", "10.0.3.0/24", true);
        check("10.0.3.7", "10.0.3.7", true);
        check("10.0.3.8", "10.0.3.7", false);
        check("1.2.3.4", "0.0.0.0/0", true);
        check("fd00::1", "fd00::/8", true);
        check("fd00::1", "::/0", true);
        check("fd00::1", "0.0.0.0/0", false);
        check("1.2.3.4", "here", false);
        for (network, expect) in
            [("10.0.0.0/8", true), ("10.0.0.0/33", false), ("fd00::/64", true), ("x/8", false)]
        {
            assert_eq!(is_network(network), expect, "{network}");
        }
    }

    #[test] // Proves: G-5.
    fn everything_that_a_policy_names_must_fit() {
        let policy = Policy {
            name: "all".into(),
            path_glob: Some("**.db".into()),
            data_type: Some(DataType::File),
            size_min: Some(100),
            client: Some("10.0.0.0/8".into()),
            priority: Some(3),
            scheme: None,
            strip_size: None,
            ack: Some(AckMode::Memory),
            spread: None,
            lccs: None,
        };
        let map = ClusterMap { policies: vec![policy], ..ClusterMap::default() };
        let fits = PolicyQuestion {
            path: Some("/x/y.db".into()),
            size: Some(100),
            client: "10.9.9.9".parse().ok(),
            priority: Some(3),
        };
        let ack = |data_type, question: PolicyQuestion| choose(&map, data_type, &question).ack;
        assert_eq!(ack(DataType::File, fits.clone()), AckMode::Memory);
        let others = [
            PolicyQuestion { path: Some("/x/y.txt".into()), ..fits.clone() },
            PolicyQuestion { path: None, ..fits.clone() },
            PolicyQuestion { size: Some(99), ..fits.clone() },
            PolicyQuestion { client: "11.0.0.1".parse().ok(), ..fits.clone() },
            PolicyQuestion { client: None, ..fits.clone() },
            PolicyQuestion { priority: Some(4), ..fits.clone() },
        ];
        for other in others {
            assert_eq!(ack(DataType::File, other.clone()), AckMode::Cluster, "{other:?}");
        }
        assert_eq!(ack(DataType::Directory, fits), AckMode::Cluster);
    }
}
