//! Bugs that are planted on purpose: each must be found, or the simulator has a hole.
//! # Source
//! DESIGN 12. The table of what was found when is in `docs/simulator.md`.

/// A rule that can be broken.
#[derive(Clone, Copy, Debug)]
pub struct Planted {
    /// As in `braid_terms::planted!`; begins with the rule.
    pub name: &'static str,
    /// What is broken.
    pub what: &'static str,
}

impl Planted {
    /// The one of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|planted| planted.name == name)
    }

    /// The rule that is broken.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        self.name.split_once('/').map_or(self.name, |(rule, _)| rule)
    }
}

const fn planted(name: &'static str, what: &'static str) -> Planted {
    Planted { name, what }
}

/// All of them, in the order of their rules.
pub const ALL: &[Planted] = &[
    planted("O-3/grant-before-all-told", "a new global controller grants at once"),
    planted("O-4/answer-without-a-lease", "an owner answers when its lease is over"),
    planted("O-5/no-fence", "a portion takes requests below its grant"),
    planted("O-8/clean-while-a-sweep-is-due", "a grant is clean though a dead owner was not swept"),
    planted(
        "O-8/untouched-slots-are-believed",
        "a slot that a clean open left out is not looked at",
    ),
    planted("W-1/a-gap-is-taken", "a portion takes a record whose `prev` it lacks"),
    planted("W-3/answer-before-all-promised", "a write is decided by one promise"),
    planted("G-8/below-the-quorum", "writes are decided with fewer than k slots in sync"),
    planted("W-5/take-back-what-lacks-a-write", "a slot that lacks a decided write stays in sync"),
    planted("W-6/what-is-held-is-forgotten", "a new owner keeps only what is stable"),
    planted("W-6/a-lost-promise-is-a-veto", "a lost record counts as one never promised"),
    planted("W-6/keep-what-was-never-promised", "a record that one lacks is kept"),
    planted("W-6/keep-above-an-aborted-write", "writes above an aborted one are kept"),
    planted("W-6/what-an-outcome-left-out-comes-back", "void records count again"),
    planted("W-6/answer-before-the-outcome-is-stable", "an owner answers at once"),
    planted("W-6/what-was-lost-is-not-rebuilt", "a slot that lacks a kept record stays in sync"),
    planted("W-6/the-silent-are-not-waited-for", "lost records are judged without the silent"),
    planted("W-7/the-secondary-does-not-ask", "a secondary takes each intent for decided"),
    planted("W-7/no-void-record", "a primary that is asked promises nothing"),
    planted("W-7/intents-are-not-stable", "a power cut may take an intent of what is decided"),
    planted("O-7/moves-without-the-lock", "directories are moved by any owner at any time"),
    planted("W-8/direct-over-blocks-that-exist", "new bytes go over blocks that exist"),
    planted("W-9/stable-before-the-medium", "an owner takes what is held for stable"),
    planted("W-9/apply-before-stable", "a portion applies what is not stable"),
    planted("W-11/rows-are-not-locked", "two writes of one row happen at once"),
    planted("W-12/read-what-is-not-decided", "a read shows records above the mark"),
    planted("F-1/a-former-owner-may-close", "a fact is closed under a lower grant"),
    planted("F-2/answer-before-the-fact", "a write is answered while the fact is on its way"),
    planted("F-2/nothing-is-noted-as-missed", "portions keep no miss map"),
    planted("F-2/the-miss-map-is-ignored", "a repair reads no miss map"),
    planted("F-2/kept-records-are-not-missed", "a repair reads no kept records"),
    planted("F-2/the-mark-is-too-high", "a fact names the decided mark, not the stable one"),
    planted("F-4/a-rejoin-keeps-its-records", "a returning portion drops nothing"),
    planted("F-4/close-before-the-rebuild", "a fact is closed and nothing was rebuilt"),
    planted("F-5/an-absent-file-is-zeros", "a lost portion file reads as never written"),
    planted("S-2/blocks-are-not-verified", "the owner believes every block"),
    planted("S-3/synced-without-a-sync", "an I/O server says synced and syncs nothing"),
    planted("S-3/damage-is-taken-for-a-torn-tail", "bad records before good ones are cut"),
    planted("S-4/a-failed-sync-is-ignored", "a failed sync counts as done"),
    planted("N-1/recall-not-waited-for", "a change is answered while a recall is on its way"),
    planted("N-1/caches-outlive-their-lease", "a client uses copies after its lease"),
    planted("N-1/new-owner-does-not-wait", "a new owner changes what old copies say at once"),
    planted("N-3/an-operation-is-done-twice", "a repeated directory operation is done again"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_begin_with_a_rule() {
        for (index, planted) in ALL.iter().enumerate() {
            assert!(planted.rule().len() < planted.name.len(), "{planted:?}");
            assert!(ALL[..index].iter().all(|other| other.name != planted.name), "{planted:?}");
        }
    }
}
