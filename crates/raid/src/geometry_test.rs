use proptest::prelude::*;

use super::*;

fn geometry(scheme: &str, strip_size: u32) -> Geometry {
    Geometry::new(scheme.parse().unwrap(), strip_size).unwrap()
}

#[track_caller]
fn check_locate(scheme: &str, at: u64, expect: (u64, u8, u64)) {
    let found = geometry(scheme, 512).locate(at);
    assert_eq!((found.stripe, found.slot.0, found.portion_at), expect);
}

#[test] // Proves: G-1.
fn bytes_are_dealt_out_in_strips() {
    check_locate("rs/3+2", 0, (0, 1, 0));
    check_locate("rs/3+2", 511, (0, 1, 511));
    check_locate("rs/3+2", 512, (0, 2, 0));
    check_locate("rs/3+2", 1535, (0, 3, 511));
    check_locate("rs/3+2", 1536, (1, 1, 512));
    check_locate("raid1/3", 5000, (9, 1, 5000));
    check_locate("rs/3+2", u64::MAX, (u64::MAX / 1536, 2, u64::MAX / 1536 * 512 + 511));
}

#[test] // Proves: G-9.
fn parity_is_as_long_as_the_longest_strip() {
    let check = |scheme: &str, length: u64, expect: &[u64]| {
        let geometry = geometry(scheme, 512);
        let lengths: Vec<u64> = (0..geometry.portions())
            .map(|unit| geometry.portion_length(length, geometry.slot(unit)))
            .collect();
        assert_eq!(lengths, expect, "{scheme} {length}");
    };
    check("rs/3+2", 0, &[0, 0, 0, 0, 0]);
    check("rs/3+2", 100, &[100, 0, 0, 100, 100]);
    check("rs/3+2", 600, &[512, 88, 0, 512, 512]);
    check("rs/3+2", 1536, &[512, 512, 512, 512, 512]);
    check("rs/3+2", 1537, &[513, 512, 512, 513, 513]);
    check("raid1/2", 1537, &[1537, 1537]);
    check("raid0/2", 1537, &[1024, 513]);
}

#[test]
fn bad_strip_sizes_are_refused() {
    let scheme = "rs/4+2".parse().unwrap();
    for size in [0, 1, 256, 513, 768, 8 << 20, u32::MAX] {
        assert_eq!(Geometry::new(scheme, size), Err(GeometryError::StripSize(size)));
    }
    let scheme = RaidScheme::Rs { data: 31, parity: 2 };
    assert!(matches!(Geometry::new(scheme, 512), Err(GeometryError::Scheme(_))));
}

fn geometries() -> impl Strategy<Value = Geometry> {
    let scheme = prop_oneof![
        (1_u8..=32).prop_map(|data| RaidScheme::Raid0 { data }),
        (1_u8..=32).prop_map(|copies| RaidScheme::Raid1 { copies }),
        (1_u8..=31).prop_map(|data| RaidScheme::Raid5 { data }),
        (1_u8..=30).prop_map(|data| RaidScheme::Raid6 { data }),
        (1_u8..=31)
            .prop_flat_map(|data| (Just(data), 1..=32 - data))
            .prop_map(|(data, parity)| RaidScheme::Rs { data, parity }),
    ];
    (scheme, 9_u32..=22).prop_map(|(scheme, shift)| Geometry::new(scheme, 1 << shift).unwrap())
}

/// Numbers of all magnitudes.
fn numbers() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0_u32..64).prop_map(|(number, shift)| number >> shift)
}

proptest! {
    #[test] // Proves: G-1.
    fn locate_and_content_are_inverses(geometry in geometries(), at in numbers()) {
        let found = geometry.locate(at);
        prop_assert!(geometry.holds_data(found.slot));
        prop_assert_eq!(
            geometry.content(found.slot, found.portion_at),
            Some(Content::Data { device_at: at })
        );
        prop_assert!(geometry.stripe_range(found.stripe).contains(&at) || at == u64::MAX);
        prop_assert_eq!(found.portion_at / u64::from(geometry.strip_size()), found.stripe);
    }

    #[test] // Proves: G-1.
    fn content_and_locate_are_inverses(
        geometry in geometries(), portion_at in numbers(), pick in any::<prop::sample::Index>(),
    ) {
        let slot = geometry.slot(pick.index(geometry.portions()));
        let stripe = portion_at / u64::from(geometry.strip_size());
        match geometry.content(slot, portion_at) {
            Some(Content::Data { device_at }) => {
                let found = geometry.locate(device_at);
                prop_assert_eq!((found.stripe, found.portion_at), (stripe, portion_at));
                prop_assert!(found.slot == slot || geometry.data() == 1);
            }
            Some(Content::Parity { stripe: of, parity_index }) => {
                prop_assert_eq!(of, stripe);
                prop_assert_eq!(geometry.data() + parity_index, geometry.unit(slot));
            }
            None => prop_assert!(
                u128::from(stripe + 1) * u128::from(geometry.stripe_size()) > u128::from(u64::MAX)
            ),
        }
    }

    #[test] // Proves: G-9.
    fn data_portions_are_together_as_long_as_the_device(
        geometry in geometries(), length in numbers(),
    ) {
        let of = |unit| geometry.portion_length(length, geometry.slot(unit));
        let sum: u128 = (0..geometry.data()).map(|unit| u128::from(of(unit))).sum();
        prop_assert_eq!(sum, u128::from(length));
        for unit in geometry.data()..geometry.portions() {
            prop_assert_eq!(of(unit), of(0));
        }
        if length > 0 {
            let last = geometry.place(length - 1);
            prop_assert_eq!(geometry.portion_length(length, last.slot), last.at + 1);
        }
        let stripe = length / geometry.stripe_size();
        for unit in 0..geometry.portions() {
            let slot = geometry.slot(unit);
            prop_assert_eq!(
                geometry.strip_length(length, stripe, slot),
                of(unit) - stripe * u64::from(geometry.strip_size())
            );
        }
    }

    #[test] // Proves: G-1.
    fn segments_cover_the_range_once(
        geometry in geometries(), start in numbers(), strips in 0_u64..70, odd in 0_u64..5000,
    ) {
        let size = (strips * u64::from(geometry.strip_size()) + odd).min(u64::MAX - start);
        let range = start..start + size;
        let stripes = geometry.stripes(range.clone());
        let mut at = start;
        let mut touched = Vec::new();
        for segment in geometry.segments(range.clone()) {
            prop_assert_eq!(segment.device_at, at);
            prop_assert!(segment.size > 0 && segment.size <= geometry.strip_size());
            let last = geometry.locate(segment.device_range().end - 1);
            prop_assert_eq!(
                (last.slot, last.portion_at + 1), (segment.slot, segment.portion_range().end)
            );
            prop_assert!(stripes.contains(&segment.stripe));
            let row = geometry.row_range(segment.stripe, range.clone());
            prop_assert!(row.start <= segment.portion_at);
            prop_assert!(segment.portion_range().end <= row.end);
            if touched.last() != Some(&segment.stripe) {
                touched.push(segment.stripe);
            }
            at = segment.device_range().end;
        }
        prop_assert_eq!(at, range.end);
        prop_assert_eq!(touched, stripes.clone().collect::<Vec<_>>());
        let full = geometry.full_stripes(range.clone());
        for stripe in stripes {
            let whole = geometry.stripe_range(stripe);
            // The stripe at the very end of the numbers is never whole.
            let holds = range.start <= whole.start && whole.end <= range.end
                && whole.end - whole.start == geometry.stripe_size();
            prop_assert_eq!(full.contains(&stripe), holds);
        }
        let aligned = size > 0 && (full.end - full.start) * geometry.stripe_size() == size;
        prop_assert_eq!(geometry.is_full_stripes(range), aligned);
    }
}
