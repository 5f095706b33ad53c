//! Rules that scripts guard, taken out: each script must fail.
//! # Source
//! DESIGN 12.

use std::panic::catch_unwind;

use braid_sim::planted::Planted;

/// Checks that each of these bugs fails its script.
pub fn each_is_found(scripts: &[(&'static str, fn())]) {
    let mut silent = Vec::new();
    for (bug, script) in scripts {
        assert!(Planted::find(bug).is_some(), "{bug} is not in the list");
        braid_terms::plant(Some(bug));
        let passed = catch_unwind(script).is_ok();
        braid_terms::plant(None);
        if passed {
            silent.push(*bug);
        }
    }
    assert!(silent.is_empty(), "these planted bugs are not found: {silent:?}");
}
