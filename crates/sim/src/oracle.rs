//! What a file may contain, by what clients were told.
//! # Theory
//! Each name has a list of contents that it may have now. A change that was acknowledged leaves one;
//! a change whose outcome is unknown adds what it would have made; a read must find one of them, and
//! leaves that one. With one client per name this is exact.
//! # Source
//! W-3, W-9, DESIGN 12.

use std::collections::BTreeMap;

/// The bytes of a file, or that there is none.
pub type Content = Option<Vec<u8>>;

/// Every name, and what it may contain.
#[derive(Default)]
pub struct Oracle {
    names: BTreeMap<String, Vec<Content>>,
    /// Reads that were compared.
    pub reads: u64,
}

impl Oracle {
    /// What a name may contain now.
    #[must_use]
    pub fn candidates(&self, name: &str) -> Vec<Content> {
        self.names.get(name).cloned().unwrap_or_else(|| vec![None])
    }

    /// A change was sent: `apply` makes the new content of an old one. `known` when it was
    /// acknowledged.
    pub fn changed(&mut self, name: &str, known: bool, apply: impl Fn(&Content) -> Content) {
        let old = self.candidates(name);
        let mut new: Vec<Content> = old.iter().map(apply).collect();
        if !known {
            new.extend(old);
        }
        new.sort();
        new.dedup();
        self.names.insert(name.to_owned(), new);
    }

    /// A read found this.
    ///
    /// Errors: what is wrong, for people.
    pub fn read(&mut self, name: &str, found: &Content) -> Result<(), String> {
        self.reads += 1;
        let candidates = self.candidates(name);
        if candidates.contains(found) {
            self.names.insert(name.to_owned(), vec![found.clone()]);
            return Ok(());
        }
        let show = |content: &Content| match content {
            None => "nothing".to_owned(),
            Some(bytes) => {
                format!("{} bytes beginning with {:?}", bytes.len(), &bytes[..bytes.len().min(8)])
            }
        };
        let expected: Vec<String> = candidates.iter().map(show).collect();
        let mut text = format!("{name}: read {}, expected {}", show(found), expected.join(" or "));
        if let (Some(found), Some(Some(expected))) = (found, candidates.first())
            && let Some(at) =
                (0..found.len().min(expected.len())).find(|at| found[*at] != expected[*at])
        {
            text += &format!("; first difference at byte {at}");
        }
        Err(text)
    }

    /// All names that were ever used.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_allows_both_and_a_read_decides() {
        let mut oracle = Oracle::default();
        oracle.changed("a", true, |_| Some(vec![1]));
        oracle.changed("a", false, |_| Some(vec![2]));
        assert!(oracle.read("a", &Some(vec![3])).is_err());
        assert!(oracle.read("a", &Some(vec![2])).is_ok());
        assert!(oracle.read("a", &Some(vec![1])).is_err());
        assert!(oracle.read("b", &None).is_ok());
        assert!(oracle.read("b", &Some(vec![])).is_err());
    }
}
