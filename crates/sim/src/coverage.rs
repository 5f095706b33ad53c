//! Which interesting states seeds should reach: one that is never reached is not tested.
//! # Source
//! DESIGN 12. Where they are: `braid_terms::sometimes!`, and `reach` of this crate.

/// To be reached by some hundred seeds of three and of six servers.
pub const REQUIRED: &[&str] = &[
    "O-3: a grant waited for what LCs own",
    "O-5: a request below the fence was refused",
    "O-5: an LC was given up",
    "W-1: a record came twice",
    "W-1: writes were withdrawn",
    "W-3: a write was decided without a participant that was removed",
    "W-5: a restarted portion lacks what is decided",
    "W-5: undecided records were sent again",
    "W-6: a portion had lost what counts",
    "W-6: a write that was never promised ends the prefix",
    "W-6: an outcome was written",
    "W-6: the silent are waited for",
    "F-2: a portion was removed by a fact",
    "F-4: a join failed",
    "F-4: a portion is whole again",
    "F-5: a portion was rebuilt as a whole",
    "S-3: a torn end was cut",
    "S-4: a sync failed",
    "I/O server killed",
    "LC killed",
    "a role killed on many servers",
    "bit rot",
    "client killed",
    "clocks drift",
    "coordinator killed",
    "disk gone for a while",
    "everything read without m servers",
    "failing sync",
    "full disk",
    "no space",
    "outcome unknown",
    "partition, both ways",
    "partition, frames in are held",
    "partition, frames out are held",
    "partition, some links",
    "pause",
    "portion file lost",
    "power cut of a machine",
    "power cut of the site",
    "repair",
    "slow disk",
    "slow links",
];

/// Reached by scripts, and by seeds now and then.
pub const RARE: &[&str] = &[
    "O-3: a late grant was refused",
    "F-1: a late close was refused",
    "F-4: a portion failed while closing",
    "S-3: a journal was damaged",
    "W-1: a record with a gap before it was refused",
];
