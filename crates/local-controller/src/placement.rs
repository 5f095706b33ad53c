//! Where a new group goes: different servers, weighted by free space.
//! # Theory
//! Servers are drawn one after the other, each with a chance by the free space of its disks, then a
//! disk of it likewise. The first drawn are the data portions: drawn at random, so which disks get
//! parity is drawn too (G-1). With fewer servers than portions the scheme gets narrower at the same
//! m (F-7); where even that does not fit, or a policy spreads over disks only, portions share servers,
//! as evenly as the disks allow.
//! # Source
//! G-4, F-7.

use std::collections::BTreeMap;

use braid_terms::{DiskId, RaidScheme, ServerId, Spread};

/// A disk that may be drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The disk.
    pub disk: DiskId,
    /// Its server.
    pub server: ServerId,
    /// Bytes that may still be written.
    pub free: u64,
}

/// Draws disks for a new group; `random(bound)` gives a number below `bound`.
///
/// Errors: what is missing.
pub fn draw(
    candidates: &[Candidate],
    scheme: RaidScheme,
    spread: Spread,
    random: impl Fn(u64) -> u64,
) -> Result<(RaidScheme, Vec<DiskId>), String> {
    let mut servers: BTreeMap<ServerId, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        servers.entry(candidate.server).or_default().push(*candidate);
    }
    if spread != Spread::Disk
        && let Some(scheme) = scheme.narrowed(servers.len())
    {
        let mut left: Vec<Vec<Candidate>> = servers.into_values().collect();
        let mut disks = Vec::new();
        for _ in 0..scheme.portions() {
            let weights = left.iter().map(|disks| disks.iter().map(|disk| disk.free).sum());
            let server = left.swap_remove(weighted(&weights.collect::<Vec<_>>(), &random));
            let weights: Vec<u64> = server.iter().map(|disk| disk.free).collect();
            disks.push(server[weighted(&weights, &random)].disk);
        }
        return Ok((scheme, disks));
    }
    // A cluster of one server, or of too few: it survives disks, not servers.
    let Some(scheme) = scheme.narrowed(candidates.len()) else {
        let (count, needed) = (candidates.len(), scheme.parity() + 1);
        return Err(format!("{count} disks are up, {scheme} needs at least {needed}"));
    };
    let mut left = candidates.to_vec();
    let mut drawn: BTreeMap<ServerId, usize> = BTreeMap::new();
    let mut disks = Vec::new();
    for _ in 0..scheme.portions() {
        // A server gets its next portion when all others have as many, or no more disks.
        let count = |disk: &Candidate| drawn.get(&disk.server).copied().unwrap_or(0);
        let least = left.iter().map(count).min().unwrap_or(0);
        let fewest: Vec<usize> = (0..left.len()).filter(|at| count(&left[*at]) == least).collect();
        let weights: Vec<u64> = fewest.iter().map(|at| left[*at].free).collect();
        let disk = left.swap_remove(fewest[weighted(&weights, &random)]);
        *drawn.entry(disk.server).or_default() += 1;
        disks.push(disk.disk);
    }
    Ok((scheme, disks))
}

/// Draws a place with a chance by its weight; evenly where all are 0.
fn weighted(weights: &[u64], random: impl Fn(u64) -> u64) -> usize {
    // In MiB: sums of many disks stay far below 64 bits.
    let weight = |at: usize| (weights[at] >> 20).max(1);
    let total = (0..weights.len()).map(weight).sum();
    let mut drawn = random(total);
    for at in 0..weights.len() {
        if drawn < weight(at) {
            return at;
        }
        drawn -= weight(at);
    }
    weights.len() - 1
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeSet;

    use super::*;

    fn random() -> impl Fn(u64) -> u64 {
        let state = Cell::new(7_u64);
        move |bound| {
            state.set(state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            (state.get() >> 33) % bound
        }
    }

    fn candidates(servers: u32, disks: u32, free: impl Fn(u32) -> u64) -> Vec<Candidate> {
        let all = (0..servers * disks).map(|at| Candidate {
            disk: DiskId(at + 1),
            server: ServerId(at / disks + 1),
            free: free(at) << 20,
        });
        all.collect()
    }

    #[test] // Proves: G-4.
    fn portions_are_on_different_servers_by_free_space() {
        let scheme: RaidScheme = "rs/4+2".parse().expect("a scheme");
        let all = candidates(8, 2, |at| if at < 2 { 1 } else { 1000 });
        let random = random();
        let mut first_server = 0;
        for _ in 0..500 {
            let (found, disks) = draw(&all, scheme, Spread::Server, &random).expect("places");
            assert_eq!(found, scheme);
            let servers: BTreeSet<u32> = disks.iter().map(|disk| (disk.0 - 1) / 2).collect();
            assert_eq!(servers.len(), 6);
            first_server += u32::from(servers.contains(&0));
        }
        assert!(first_server < 25, "a full server is drawn seldom: {first_server}");
    }

    #[test] // Proves: G-4.
    fn portions_that_share_servers_are_spread_evenly() {
        let scheme: RaidScheme = "rs/4+2".parse().expect("a scheme");
        let random = random();
        for (servers, most) in [(1, 6), (2, 3), (4, 2), (6, 1)] {
            let all = candidates(servers, 6, |at| u64::from(at) + 1);
            for _ in 0..50 {
                let (_, disks) = draw(&all, scheme, Spread::Disk, &random).expect("places");
                assert_eq!(disks.iter().collect::<BTreeSet<_>>().len(), 6);
                let server = |disk: &DiskId| (disk.0 - 1) / 6;
                let count = |one| disks.iter().filter(|disk| server(disk) == one).count();
                assert_eq!((0..servers).map(count).max(), Some(most));
            }
        }
    }

    #[test] // Proves: F-7.
    fn too_few_servers_narrow_the_scheme_then_share() {
        let scheme: RaidScheme = "rs/4+2".parse().expect("a scheme");
        let found = |servers, disks| {
            let all = candidates(servers, disks, |_| 100);
            draw(&all, scheme, Spread::Server, random()).map(|(scheme, _)| scheme.to_string())
        };
        assert_eq!(found(5, 1).as_deref(), Ok("rs/3+2"));
        assert_eq!(found(3, 4).as_deref(), Ok("raid1/3"));
        assert_eq!(found(1, 6).as_deref(), Ok("rs/4+2"));
        assert!(found(1, 2).is_err());
        assert!(found(0, 0).is_err());
    }
}
