//! The test of the scripts: each fails when its rule is taken out.
//! # Source
//! DESIGN 12. Which script finds what: `braid_sim::planted`.

use std::panic::catch_unwind;

use braid_sim::planted::ALL;

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), super::$name as fn())),*]
    };
}

const SCRIPTS: &[(&str, fn())] = scripts![
    nothing_is_clean_while_a_sweep_is_due,
    what_reached_an_untouched_slot_late_is_not_believed,
    a_number_of_a_leased_range_has_its_owner,
    a_repeated_directory_operation_is_answered_as_the_first,
    a_restarted_portion_is_not_believed_alone,
    a_returning_portion_drops_what_nobody_else_has,
    a_full_disk_makes_no_gap_and_costs_no_fact,
    a_new_global_controller_grants_nothing_that_is_owned,
    a_rotten_block_is_not_passed_on,
    a_rotten_record_of_the_journal_is_a_loss_not_an_end,
    a_sweep_settles_every_group_and_waits_for_every_disk,
    hole_13_an_aborted_write_leaves_the_old_bytes,
    hole_16_a_portion_file_that_is_gone_is_lost_not_empty,
    hole_1_who_lost_a_record_is_not_asked_whether_it_counts,
    hole_20_a_failed_sync_is_no_sync,
    hole_22_what_a_removed_portion_lost_is_rebuilt_too,
    hole_23_while_a_close_is_proposed_the_portion_is_required,
    hole_25_a_power_cut_of_the_site_leaves_a_prefix,
    hole_2_an_outcome_is_on_the_disks_before_the_first_answer,
    hole_2_what_one_owner_aborted_no_later_one_commits,
    hole_4_answers_follow_the_numbers,
    hole_4_nothing_survives_above_what_was_aborted,
    hole_5_a_late_close_is_refused,
    hole_9_the_lease_is_checked_after_the_bytes_are_there,
    no_answer_before_the_fact_is_recorded,
    silent_portions_are_waited_for_where_others_lost_what_may_be_answered,
    two_portions_of_one_parity_are_not_both_removed,
    two_writes_of_one_row_are_both_in_the_parity,
    what_a_restarted_portion_lacks_is_not_read_from_it,
    what_is_not_decided_is_not_read,
];

#[test] // Proves: O-2, O-3, O-4, O-5, O-8, W-1, W-3, W-5, W-6, W-8, W-9, W-11, W-12.
fn each_planted_bug_fails_its_script() {
    check_share(0);
}

#[test] // Proves: F-1, F-2, F-4, F-5, S-2, S-3, S-4, G-8.
fn each_other_planted_bug_fails_its_script() {
    check_share(1);
}

/// Every second of them; with `BRAID_PLANTED=NAME` in the environment only that one.
fn check_share(share: usize) {
    let only = std::env::var("BRAID_PLANTED").ok();
    let mut silent = Vec::new();
    let wanted = |planted: &str| only.as_ref().is_none_or(|name| name == planted);
    let all = ALL.iter().enumerate().filter(|(index, _)| index % 2 == share);
    for (_, planted) in all.filter(|(_, planted)| wanted(planted.name)) {
        if planted.file != "holes" {
            continue;
        }
        let name = planted.script;
        let script = SCRIPTS.iter().find(|(known, _)| *known == name);
        let (_, script) = script.unwrap_or_else(|| panic!("there is no script {name}"));
        braid_terms::plant(Some(planted.name));
        if catch_unwind(script).is_ok() {
            silent.push((planted.name, name));
        }
        braid_terms::plant(None);
    }
    assert!(silent.is_empty(), "these planted bugs are not found: {silent:#?}");
    for (name, _) in SCRIPTS {
        assert!(ALL.iter().any(|planted| planted.script == *name), "{name} finds nothing");
    }
}
