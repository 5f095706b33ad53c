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
    /// The script that finds it; empty where none does yet.
    pub script: &'static str,
    /// The file of `tests` with that script, where a test checks that it finds it; or the model of the
    /// coordinators.
    pub file: &'static str,
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

/// One that a script of `tests/holes.rs` finds, as `tests/common/planted.rs` checks.
const fn by_script(name: &'static str, what: &'static str, script: &'static str) -> Planted {
    Planted { name, what, script, file: "holes" }
}

/// One that `ownership_model.rs` of the coordinators finds, as a test there checks.
const fn by_model(name: &'static str, what: &'static str) -> Planted {
    let (script, file) = ("each_planted_bug_is_found", "ownership_model");
    Planted { name, what, script, file }
}

impl Planted {
    /// One whose script is in another file.
    const fn of(self, file: &'static str) -> Self {
        Self { file, ..self }
    }
}

/// All of them, in the order of their rules.
pub const ALL: &[Planted] = &[
    by_model("O-2/a-grant-number-comes-twice", "grant numbers of a term do not grow"),
    by_script(
        "O-2/numbers-of-ranges-are-free",
        "a number of a leased range is granted to others",
        "a_number_of_a_leased_range_has_its_owner",
    ),
    by_script(
        "O-3/grant-before-all-told",
        "a new global controller grants at once",
        "a_new_global_controller_grants_nothing_that_is_owned",
    ),
    by_model("O-4/a-new-term-counts-no-lease", "a new global controller takes all leases for over"),
    by_script(
        "O-4/answer-without-a-lease",
        "an owner answers when its lease is over",
        "hole_9_the_lease_is_checked_after_the_bytes_are_there",
    ),
    by_model(
        "O-5/grant-before-the-invalidation",
        "what an owner without a lease has is granted before it is invalid in the log",
    ),
    by_script(
        "O-5/no-fence",
        "a portion takes requests below its grant",
        "what_reached_an_untouched_slot_late_is_not_believed",
    ),
    by_model("O-6/a-late-release-counts", "a release of an earlier grant ends a later one"),
    by_script(
        "O-6/give-up-undecided",
        "an owner gives up a group with undecided writes",
        "an_undecided_write_is_never_given_up",
    )
    .of("movement"),
    by_script(
        "O-6/copies-outlive-a-move",
        "an owner gives up a group of which clients have copies",
        "copies_of_what_moves_away_from_their_mount_are_taken_back",
    )
    .of("caches"),
    by_script(
        "O-8/a-sweep-closes-too-early",
        "a sweep ends though disks did not answer",
        "a_sweep_settles_every_group_and_waits_for_every_disk",
    ),
    by_script(
        "O-8/clean-while-a-sweep-is-due",
        "a grant is clean though a dead owner was not swept",
        "nothing_is_clean_while_a_sweep_is_due",
    ),
    by_script(
        "O-8/untouched-slots-are-believed",
        "a slot that a clean open left out is not looked at",
        "what_reached_an_untouched_slot_late_is_not_believed",
    ),
    by_script(
        "W-1/a-gap-is-taken",
        "a portion takes a record whose `prev` it lacks",
        "a_full_disk_makes_no_gap_and_costs_no_fact",
    ),
    by_script(
        "W-3/answer-before-all-promised",
        "a write is decided by one promise",
        "hole_4_answers_follow_the_numbers",
    ),
    by_script(
        "G-8/below-the-quorum",
        "writes are decided with fewer than k slots in sync",
        "two_portions_of_one_parity_are_not_both_removed",
    ),
    by_script(
        "W-4/the-shadow-says-stable",
        "a shadow lets portions apply what is not stable",
        "a_shadow_says_what_a_dead_writer_had_decided",
    )
    .of("shadow"),
    by_script(
        "W-5/take-back-what-lacks-a-write",
        "a slot that lacks a decided write stays in sync",
        "what_a_restarted_portion_lacks_is_not_read_from_it",
    ),
    by_script(
        "W-6/what-is-held-is-forgotten",
        "a new owner keeps only what is stable",
        "hole_1_who_lost_a_record_is_not_asked_whether_it_counts",
    ),
    by_script(
        "W-6/a-lost-promise-is-a-veto",
        "a lost record counts as one never promised",
        "hole_1_who_lost_a_record_is_not_asked_whether_it_counts",
    ),
    by_script(
        "W-6/keep-what-was-never-promised",
        "a record that one lacks is kept",
        "hole_2_what_one_owner_aborted_no_later_one_commits",
    ),
    by_script(
        "W-6/keep-above-an-aborted-write",
        "writes above an aborted one are kept",
        "hole_4_nothing_survives_above_what_was_aborted",
    ),
    by_script(
        "W-6/what-an-outcome-left-out-comes-back",
        "void records count again",
        "hole_2_what_one_owner_aborted_no_later_one_commits",
    ),
    by_script(
        "W-6/answer-before-the-outcome-is-stable",
        "an owner answers at once",
        "hole_2_an_outcome_is_on_the_disks_before_the_first_answer",
    ),
    by_script(
        "W-6/what-was-lost-is-not-rebuilt",
        "a slot that lacks a kept record stays in sync",
        "hole_1_who_lost_a_record_is_not_asked_whether_it_counts",
    ),
    by_script(
        "W-6/the-silent-are-not-waited-for",
        "lost records are judged without the silent",
        "silent_portions_are_waited_for_where_others_lost_what_may_be_answered",
    ),
    by_script(
        "W-6/restarted-portions-are-believed",
        "who was restarted is taken for one that has all",
        "a_restarted_portion_is_not_believed_alone",
    ),
    by_script(
        "W-7/decisions-are-not-stable",
        "a change of several directories is answered before it is on the disks",
        "no_power_cut_leaves_one_side_of_a_rename",
    )
    .of("joint"),
    by_script(
        "W-7/the-secondary-does-not-ask",
        "a secondary takes each intent for decided",
        "the_next_owner_of_a_secondary_asks_before_it_finishes",
    )
    .of("joint"),
    by_script(
        "W-7/no-void-record",
        "a primary that is asked promises nothing",
        "what_the_secondary_was_told_is_void_stays_so",
    )
    .of("joint"),
    by_script(
        "W-7/intents-are-not-stable",
        "a power cut may take an intent of what is decided",
        "an_intent_is_stable_before_the_decision",
    )
    .of("joint"),
    by_script(
        "O-7/moves-without-the-lock",
        "directories are moved by any owner at any time",
        "two_moves_make_no_circle",
    )
    .of("joint"),
    by_script(
        "W-8/direct-over-blocks-that-exist",
        "new bytes go over blocks that exist",
        "hole_13_an_aborted_write_leaves_the_old_bytes",
    ),
    by_script(
        "W-9/what-was-answered-ahead-is-not-seen",
        "a look of others does not wait for what the owner's process was answered ahead",
        "what_was_answered_ahead_is_seen_by_all",
    )
    .of("ahead_names"),
    by_script(
        "W-9/a-loss-ahead-is-not-told",
        "a sync says nothing of changes of names that were answered ahead and are lost",
        "what_was_answered_ahead_and_is_lost_is_told_by_the_next_sync",
    )
    .of("ahead_names"),
    by_script(
        "W-9/what-was-lost-is-shown",
        "an owner shows what restarted portions lost",
        "an_owner_does_not_show_what_restarted_portions_lost",
    )
    .of("loss"),
    by_script(
        "W-9/loss-is-not-told",
        "a sync says nothing of answered writes that are lost",
        "hole_21_a_sync_says_that_answered_writes_are_lost",
    )
    .of("loss"),
    by_script(
        "W-9/stable-before-the-medium",
        "an owner takes what is held for stable",
        "hole_20_a_failed_sync_is_no_sync",
    ),
    by_script(
        "W-9/apply-before-stable",
        "a portion applies what is not stable",
        "hole_25_a_power_cut_of_the_site_leaves_a_prefix",
    ),
    by_script(
        "W-11/rows-are-not-locked",
        "two writes of one row happen at once",
        "two_writes_of_one_row_are_both_in_the_parity",
    ),
    by_script(
        "W-12/read-what-is-not-decided",
        "a read shows records above the mark",
        "what_is_not_decided_is_not_read",
    ),
    by_script(
        "W-12/what-was-answered-is-not-seen",
        "a look does not wait for what memory answered",
        "what_is_answered_from_memory_is_seen_by_the_next_look",
    )
    .of("ahead"),
    by_script(
        "W-13/answer-before-the-fact",
        "a local journal answers, and no fact says so",
        "nothing_is_answered_before_its_fact_and_its_record",
    )
    .of("local"),
    by_script(
        "W-13/the-local-journal-is-not-synced",
        "a local journal answers before its medium",
        "an_answer_from_a_local_journal_outlives_a_power_cut",
    )
    .of("local"),
    by_script(
        "W-13/kept-until-it-is-decided",
        "a local journal forgets what is only held",
        "a_local_journal_keeps_what_is_not_on_the_disks_of_the_cluster",
    )
    .of("local"),
    by_script(
        "W-13/written-over-a-local-copy",
        "others write while a local copy may be away",
        "what_a_local_journal_has_is_laid_by_the_next_owner",
    )
    .of("local"),
    by_script(
        "W-13/laid-without-its-fact",
        "an old local copy is laid over newer bytes",
        "what_may_not_be_laid_becomes_a_file_beside",
    )
    .of("local"),
    by_script(
        "F-1/a-former-owner-may-close",
        "a fact is closed under a lower grant",
        "hole_5_a_late_close_is_refused",
    ),
    by_script(
        "F-2/answer-before-the-fact",
        "a write is answered while the fact is on its way",
        "no_answer_before_the_fact_is_recorded",
    ),
    by_script(
        "F-2/nothing-is-noted-as-missed",
        "portions keep no miss map",
        "hole_22_what_a_removed_portion_lost_is_rebuilt_too",
    ),
    by_script(
        "F-2/the-miss-map-is-ignored",
        "a repair reads no miss map",
        "hole_22_what_a_removed_portion_lost_is_rebuilt_too",
    ),
    by_script(
        "F-2/kept-records-are-not-missed",
        "a repair reads no kept records",
        "hole_1_who_lost_a_record_is_not_asked_whether_it_counts",
    ),
    by_script(
        "F-2/the-mark-is-too-high",
        "a fact names the decided mark, not the stable one",
        "hole_1_who_lost_a_record_is_not_asked_whether_it_counts",
    ),
    by_script(
        "F-4/a-rejoin-keeps-its-records",
        "a returning portion drops nothing",
        "a_returning_portion_drops_what_nobody_else_has",
    ),
    by_script(
        "F-2/what-others-missed-is-not-told",
        "a slot rejoins and is not told what others missed",
        "what_others_missed_is_told_to_a_slot_that_rejoins",
    )
    .of("rejoins"),
    by_script(
        "F-4/close-before-the-rebuild",
        "a fact is closed and nothing was rebuilt",
        "hole_22_what_a_removed_portion_lost_is_rebuilt_too",
    ),
    by_script(
        "F-4/not-required-while-closing",
        "a slot gets no writes while its close is proposed",
        "hole_23_while_a_close_is_proposed_the_portion_is_required",
    ),
    by_script(
        "F-5/an-absent-file-is-zeros",
        "a lost portion file reads as never written",
        "hole_16_a_portion_file_that_is_gone_is_lost_not_empty",
    ),
    by_script(
        "S-2/blocks-are-not-verified",
        "the owner believes every block",
        "a_rotten_block_is_not_passed_on",
    ),
    by_script(
        "S-3/synced-without-a-sync",
        "an I/O server says synced and syncs nothing",
        "hole_21_a_sync_says_that_answered_writes_are_lost",
    )
    .of("loss"),
    by_script(
        "S-3/damage-is-taken-for-a-torn-tail",
        "bad records before good ones are cut",
        "a_rotten_record_of_the_journal_is_a_loss_not_an_end",
    ),
    by_script(
        "S-4/a-failed-sync-is-ignored",
        "a failed sync counts as done",
        "hole_20_a_failed_sync_is_no_sync",
    ),
    by_script(
        "N-1/recall-not-waited-for",
        "a change is answered while a recall is on its way",
        "a_change_is_answered_when_nobody_shows_what_was_before",
    )
    .of("caches"),
    by_script(
        "N-1/first-copy-is-not-told",
        "nobody hears that an owner gave copies",
        "a_new_owner_waits_for_copies_of_which_it_does_not_know",
    )
    .of("caches"),
    by_script(
        "N-1/caches-outlive-their-lease",
        "a client uses copies after its lease",
        "hole_11_a_paused_mount_shows_nothing_old_when_it_wakes",
    )
    .of("caches"),
    by_script(
        "N-1/new-owner-does-not-wait",
        "a new owner changes what old copies say at once",
        "a_new_owner_waits_for_copies_of_which_it_does_not_know",
    )
    .of("caches"),
    by_script(
        "N-3/a-repeated-write-is-done-again",
        "a write that is sent again is done again",
        "a_write_that_is_sent_again_is_done_once",
    )
    .of("repeats"),
    by_script(
        "N-3/an-operation-is-done-twice",
        "a repeated directory operation is done again",
        "a_repeated_directory_operation_is_answered_as_the_first",
    ),
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
