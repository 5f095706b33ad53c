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

/// The device of which the next request ends its LCC by a panic; of all threads, so that a test can say it
/// of an LCC in another one. None where it is 0.
#[cfg(feature = "planted")]
static PANIC_AT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// The next request about this device panics.
#[cfg(feature = "planted")]
pub fn plant_panic(device: crate::DeviceId) {
    PANIC_AT.store(device.0, std::sync::atomic::Ordering::SeqCst);
}

/// Panics where [`plant_panic`] asked for it, once; nothing without the feature `planted`.
#[cfg(feature = "planted")]
pub fn panic_at(device: crate::DeviceId) {
    let order = std::sync::atomic::Ordering::SeqCst;
    let is_planted = device.0 != 0 && PANIC_AT.compare_exchange(device.0, 0, order, order).is_ok();
    assert!(!is_planted, "a planted panic");
}

/// See above.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn panic_at(_device: crate::DeviceId) {}

/// Notes that an interesting state was reached: a simulation that never reaches it proves nothing of
/// it. Counted like [`planted!`](crate::planted): in the simulator only.
#[macro_export]
macro_rules! sometimes {
    ($name:literal) => {
        $crate::note_reached($name)
    };
}

#[cfg(feature = "planted")]
thread_local! {
    static REACHED: std::cell::RefCell<std::collections::BTreeMap<&'static str, u64>> =
        const { std::cell::RefCell::new(std::collections::BTreeMap::new()) };
}

/// See [`sometimes!`](crate::sometimes).
#[cfg(feature = "planted")]
pub fn note_reached(name: &'static str) {
    REACHED.with_borrow_mut(|reached| *reached.entry(name).or_insert(0) += 1);
}

/// See [`sometimes!`](crate::sometimes).
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn note_reached(_name: &'static str) {}

/// What this thread reached since this was asked last, and how often.
#[cfg(feature = "planted")]
#[must_use]
pub fn take_reached() -> std::collections::BTreeMap<&'static str, u64> {
    REACHED.take()
}

/// What this thread reached: nothing is counted here.
#[cfg(not(feature = "planted"))]
#[must_use]
pub const fn take_reached() -> std::collections::BTreeMap<&'static str, u64> {
    std::collections::BTreeMap::new()
}
