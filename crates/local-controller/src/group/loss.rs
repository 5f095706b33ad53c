//! Loss that is told: writes that were answered, held, and did not survive.
//! # Theory
//! More than m portions that lose what was only held, as when a site loses its power, lose answered
//! writes, often without a trace. So clients say which they were told of, and the history says whether
//! those count: it has the *end* of each former grant, its last write that counts.
//! ```text
//! grant 4: 1 2 3 4 5     power cut     grant 6: 1 2 ...      ends: (4,3)
//!                ^ ^ lost                                    written (4,5)? lost    (4,2)? counts
//!                                                            written (5,1)? lost: nothing counts of 5
//! ```
//! # Invariants
//! L1 A sync that names a write which does not count is refused, whoever is the owner by then.
//! # Failure
//! An owner that finds more portions without what it decided than the scheme tolerates gives the
//! group up: who opens it next judges what is left (W-6).
//! # Source
//! W-9; hole 21 of the design's reasons. Departure: numbers in place of a loss number.

use braid_terms::{GrantNumber, WriteNumber, planted};
use braid_wire::io::ENDS_MAX;

use super::{Group, WriteError};

impl Group {
    /// What a client is told that a change is written at; none where no write of this owner is decided,
    /// so that the change needed none.
    pub(crate) fn written(&self) -> Option<WriteNumber> {
        Some(self.marks().0).filter(|decided| decided.grant == self.grant && decided.sequence > 0)
    }

    /// Whether writes that a client was told of still count.
    ///
    /// Errors: `HeldLost`; `LostOwnership` where a later owner told of one; `Unavailable` while it may be
    /// in a local journal.
    pub(crate) fn check_written(&self, written: &[WriteNumber]) -> Result<(), WriteError> {
        let ends = self.state.borrow().ends.clone();
        for number in written {
            if self.grant < number.grant {
                return Err(WriteError::LostOwnership);
            }
            let is_void = number.grant == self.grant && self.take_void(*number);
            if (is_void || is_lost(*number, self.grant, &ends)) && !planted!("W-9/loss-is-not-told")
            {
                // A server that is away may have it: nobody knows yet.
                self.may_come_back()?;
                tracing::warn!(group = %self.layout.group(), %number, "an answered write is lost");
                return Err(WriteError::HeldLost);
            }
        }
        Ok(())
    }
}

/// Whether a write was lost, by the ends of the grants before `current`.
///
/// | grant of the write                 | lost                          |
/// |------------------------------------|-------------------------------|
/// | the current one                    | no: it is in our own sequence |
/// | one with an end                    | above that end                |
/// | before all of a full list          | no: older than what is known  |
/// | any other                          | yes: nothing counts of it     |
pub(super) fn is_lost(number: WriteNumber, current: GrantNumber, ends: &[WriteNumber]) -> bool {
    if number.grant == current {
        return false;
    }
    match ends.iter().find(|end| end.grant == number.grant) {
        Some(end) => *end < number,
        None => {
            let is_older = ends.first().is_some_and(|first| number.grant < first.grant);
            !(is_older && ends.len() == ENDS_MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(counter: u64, sequence: u64) -> WriteNumber {
        WriteNumber { grant: GrantNumber { term: 1, counter }, sequence }
    }

    #[test] // Proves: W-9.
    fn what_does_not_count_is_lost() {
        let ends = [number(3, 7), number(5, 2)];
        let lost =
            |counter, sequence| is_lost(number(counter, sequence), number(8, 0).grant, &ends);
        let expect = [
            ((3, 7), false),
            ((3, 8), true),
            ((4, 1), true),
            ((5, 2), false),
            ((5, 3), true),
            ((7, 1), true),
            ((2, 1), true),
            ((8, 9), false),
        ];
        for ((counter, sequence), expected) in expect {
            assert_eq!(lost(counter, sequence), expected, "{counter}/{sequence}");
        }
    }

    #[test] // Proves: W-9.
    fn what_is_older_than_the_list_is_not_judged() {
        let ends: Vec<_> = (10..10 + ENDS_MAX as u64).map(|counter| number(counter, 1)).collect();
        assert!(!is_lost(number(9, 5), number(99, 0).grant, &ends));
        assert!(is_lost(number(9, 5), number(99, 0).grant, &ends[1..]));
    }
}
