//! Bugs on purpose: the test of the tests.
//!
//! # Theory
//! A place that guards data asks [`planted!`](crate::planted) whether its rule is to be broken. In
//! builds without the feature `planted`, which is all that is ever installed, that is the constant
//! `false`, and the compiler leaves nothing of it. With the feature, the simulator breaks one rule
//! in its thread and must find a violation.
//! # Not here
//! Which bugs there are: `braid_sim::planted`.

/// Whether the bug of this name is planted in this thread. Names begin with the rule: `W-3/...`.
#[macro_export]
macro_rules! planted {
    ($name:literal) => {
        $crate::is_planted($name)
    };
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<&'static str>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in this thread, or none.
#[cfg(feature = "planted")]
pub fn plant(name: Option<&'static str>) {
    PLANTED.set(name);
}

/// See [`planted!`](crate::planted).
#[cfg(feature = "planted")]
#[must_use]
pub fn is_planted(name: &str) -> bool {
    PLANTED.get() == Some(name)
}

/// See [`planted!`](crate::planted).
#[cfg(not(feature = "planted"))]
#[inline(always)]
#[must_use]
pub const fn is_planted(_name: &str) -> bool {
    false
}
