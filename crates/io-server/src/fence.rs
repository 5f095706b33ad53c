//! The fence: who may speak for a group here.
//! # Theory
//! An open raises the group's grant; from then on every request below it is refused. A start
//! forgets which groups were opened, and its new incarnation number makes every owner open again.
//! # Invariants
//! F1 A group's grant never goes down while this start lasts.
//! # Source
//! O-2, O-5. Departure: none.
//! # Not here
//! Whether the opener's incarnation is valid: `driver.rs` asks the map.

use braid_terms::{GrantNumber, Incarnation, sometimes};
use braid_wire::io::{Fence, IoRefusal};

/// What is known here of a group's fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// Grant that opened the group; none if it was not opened since this start.
    pub opened: Option<GrantNumber>,
    /// Highest grant seen, also by earlier starts.
    pub seen: GrantNumber,
    /// Grants up to here were removed with the group.
    pub removed: Option<GrantNumber>,
}

/// What a request wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// To become the one who speaks: open, create, rejoin, remove.
    Raise,
    /// To be served under an open that was made.
    Use,
    /// Only to look.
    Look,
}

/// Judges a request's fence.
///
/// | removed at | grant against highest seen | wish    | opened at that grant | answer             |
/// |------------|----------------------------|---------|----------------------|--------------------|
/// | or above   | any                        | any     | any                  | `Fenced`           |
/// | below      | lower                      | any     | any                  | `Fenced`           |
/// | below      | equal or higher            | `Raise` | any                  | ok                 |
/// | below      | equal or higher            | `Look`  | any                  | ok                 |
/// | below      | equal or higher            | `Use`   | yes                  | ok                 |
/// | below      | equal or higher            | `Use`   | no                   | `UnknownGroup`     |
///
/// Errors: as in the table; `WrongIncarnation` before all.
pub fn check(
    known: Known,
    fence: &Fence,
    wish: Wish,
    current: Incarnation,
) -> Result<(), IoRefusal> {
    let any = wish == Wish::Raise && fence.incarnation == Incarnation(0);
    if fence.incarnation != current && !any {
        return Err(IoRefusal::WrongIncarnation { current });
    }
    if let Some(removed) = known.removed.filter(|removed| fence.grant <= *removed) {
        return Err(IoRefusal::Fenced { grant: removed });
    }
    if fence.grant < known.seen && !braid_terms::planted!("O-5/no-fence") {
        sometimes!("O-5: a request below the fence was refused");
        return Err(IoRefusal::Fenced { grant: known.seen });
    }
    match wish {
        Wish::Raise | Wish::Look => Ok(()),
        Wish::Use if known.opened == Some(fence.grant) => Ok(()),
        Wish::Use if known.opened.is_some() && braid_terms::planted!("O-5/no-fence") => Ok(()),
        Wish::Use => Err(IoRefusal::UnknownGroup),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use braid_terms::{DeviceId, PortionIndex};

    #[test] // Proves: O-5.
    fn the_table_is_walked() {
        let grant = |counter| GrantNumber { term: 1, counter };
        let current = Incarnation(7);
        for (removed, seen, opened, asked) in
            (0..81u64).map(|n| (n % 3, n / 3 % 3, n / 9 % 3, n / 27))
        {
            for wish in [Wish::Raise, Wish::Use, Wish::Look] {
                let known = Known {
                    opened: (0 < opened).then(|| grant(opened)),
                    seen: grant(seen.max(opened)),
                    removed: (0 < removed).then(|| grant(removed)),
                };
                let fence = Fence {
                    group: DeviceId(1),
                    slot: PortionIndex(1),
                    grant: grant(asked),
                    incarnation: current,
                };
                let expect = if 0 < removed && asked <= removed || asked < known.seen.counter {
                    "fenced"
                } else if wish != Wish::Use || (0 < opened && asked == opened) {
                    "ok"
                } else {
                    "unknown"
                };
                let found = match check(known, &fence, wish, current) {
                    Ok(()) => "ok",
                    Err(IoRefusal::Fenced { .. }) => "fenced",
                    Err(_) => "unknown",
                };
                assert_eq!(found, expect, "{known:?} {fence:?} {wish:?}");
                let other = Fence { incarnation: Incarnation(6), ..fence };
                let refusal = check(known, &other, wish, current);
                assert_eq!(refusal, Err(IoRefusal::WrongIncarnation { current }));
            }
        }
    }
}
