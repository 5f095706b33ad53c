use super::*;

/// Strips with bytes from a small generator, of the given lengths.
fn strips(lengths: &[usize], seed: u64) -> Vec<Vec<u8>> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    lengths.iter().map(|length| (0..*length).map(|_| next()).collect()).collect()
}

fn slices(strips: &[Vec<u8>]) -> Vec<&[u8]> {
    strips.iter().map(Vec::as_slice).collect()
}

fn encode(code: &Code, data: &[Vec<u8>], size: usize) -> Vec<Vec<u8>> {
    let mut parity = vec![vec![0xa5; size]; code.parity()];
    let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    code.encode(&slices(data), &mut outputs);
    parity
}

/// The definition, byte by byte, without any of the code above but the coefficient.
fn encode_by_definition(data: &[Vec<u8>], parity: usize, size: usize) -> Vec<Vec<u8>> {
    let byte = |strip: &Vec<u8>, at: usize| strip.get(at).copied().unwrap_or(0);
    (0..parity)
        .map(|i| {
            (0..size)
                .map(|at| {
                    let products = data.iter().enumerate();
                    products.fold(0, |sum, (j, strip)| {
                        sum ^ mul(parity_coefficient(i, j), byte(strip, at))
                    })
                })
                .collect()
        })
        .collect()
}

#[test] // Proves: G-3.
fn every_kernel_decodes_every_loss_pattern() {
    for units in 1..=14 {
        for data_count in 1..=units {
            let parity_count = units - data_count;
            let patterns: Vec<UnitSet> = (0..1_u32 << units)
                .map(UnitSet::from_bits)
                .filter(|present| present.count() >= data_count)
                .collect();
            // Short of a vector, a vector, wide columns with tails.
            for size in [1, 31, 64, 67, 257] {
                let data = strips(&vec![size; data_count], (units * 100 + data_count) as u64);
                let expect = encode_by_definition(&data, parity_count, size);
                let mut all = data.clone();
                all.extend(expect.iter().cloned());
                for kernel in Kernel::available() {
                    let code = Code::with_kernel(data_count, parity_count, kernel).unwrap();
                    assert_eq!(encode(&code, &data, size), expect, "{code:?} {size}");
                    patterns.iter().for_each(|present| check_decode(&code, *present, &all));
                }
            }
        }
    }
}

/// Computes all units that are not present, and compares them.
#[track_caller]
fn check_decode(code: &Code, present: UnitSet, all: &[Vec<u8>]) {
    let wanted = UnitSet::first(code.units()).without(present);
    let decoder = code.decoder(present, wanted).unwrap();
    assert!(decoder.sources().without(present).is_empty());
    assert!(decoder.sources().count() <= code.data());
    let sources: Vec<&[u8]> = decoder.sources().iter().map(|unit| all[unit].as_slice()).collect();
    let mut buffer = vec![0x5a; wanted.count() * 257];
    let mut outputs: Vec<&mut [u8]> = Vec::new();
    for (unit, chunk) in wanted.iter().zip(buffer.chunks_mut(257)) {
        outputs.push(&mut chunk[..all[unit].len()]);
    }
    decoder.apply(&sources, &mut outputs);
    for (unit, output) in wanted.iter().zip(&outputs) {
        assert_eq!(*output, all[unit].as_slice(), "{code:?} unit {unit} from {present:?}");
    }
}

#[test] // Proves: G-9.
fn short_strips_are_strips_that_end_in_zeros() {
    let lengths = [257, 0, 131, 64, 1, 200];
    for kernel in Kernel::available() {
        for parity_count in [1, 2, 5, 9] {
            let code = Code::with_kernel(lengths.len(), parity_count, kernel).unwrap();
            let data = strips(&lengths, 7);
            let parity = encode(&code, &data, 300);
            assert_eq!(parity, encode_by_definition(&data, parity_count, 300));
            // Parity without its zeros at the end, data strips of all lengths.
            let mut all = data.clone();
            all.extend(parity.iter().map(|strip| strip[..257].to_vec()));
            for lost in 0..1_u32 << code.units().min(10) {
                let lost = UnitSet::from_bits(lost);
                if lost.count() <= parity_count {
                    check_decode(&code, UnitSet::first(code.units()).without(lost), &all);
                }
            }
            assert!(code.matches(&slices(&data), &slices(&parity)));
        }
    }
}

#[test] // Proves: G-3.
fn delta_equals_a_new_encode() {
    for kernel in Kernel::available() {
        let code = Code::with_kernel(5, 6, kernel).unwrap();
        for (unit, old_length, new_length) in [(0, 257, 257), (3, 100, 257), (4, 0, 67), (1, 64, 0)]
        {
            let mut lengths = [257; 5];
            lengths[unit] = old_length;
            let mut data = strips(&lengths, 3);
            let mut parity = encode(&code, &data, 257);
            let old = data[unit].clone();
            data[unit] = strips(&[new_length], 4).remove(0);
            let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
            code.delta(unit, &old, &data[unit], &mut outputs);
            assert_eq!(parity, encode(&code, &data, 257), "{kernel:?} {unit}");
        }
    }
}

#[test] // Proves: F-6.
fn matches_sees_each_flipped_bit() {
    let code = Code::new(4, 6).unwrap();
    let data = strips(&[5000, 5000, 4097, 12], 9);
    let parity = encode(&code, &data, 5000);
    assert!(code.matches(&slices(&data), &slices(&parity)));
    for at in [0, 11, 2047, 2048, 4999] {
        for unit in 0..6 {
            let mut bad = parity.clone();
            bad[unit][at] ^= 1;
            assert!(!code.matches(&slices(&data), &slices(&bad)));
        }
        let mut bad = data.clone();
        bad[0][at] ^= 0x80;
        assert!(!code.matches(&slices(&bad), &slices(&parity)));
    }
    // A parity strip that ends early stands for zeros, which these are not.
    let mut bad = parity.clone();
    bad[5].truncate(4990);
    assert!(!code.matches(&slices(&data), &slices(&bad)));
}

#[test] // Proves: G-3.
fn xor_and_copies_are_special_cases() {
    for unit in 0..31 {
        assert_eq!(parity_coefficient(0, unit), 1, "raid5 is rs/k+1");
        assert_eq!(parity_coefficient(unit, 0), 1, "raid1 is rs/1+m");
    }
    let of = |text: &str| Code::of_scheme(text.parse().unwrap()).unwrap();
    assert_eq!(of("raid5/4+1"), of("rs/4+1"));
    assert_eq!(of("raid6/4+2"), of("rs/4+2"));
    assert_eq!(of("raid1/3"), of("rs/1+2"));
    assert_eq!((of("raid0/4").data(), of("raid0/4").parity()), (4, 0));
}

#[test] // Proves: G-3. The numbers of docs/format/code.md.
fn coefficients_stay_as_documented() {
    let row = |i: usize| (0..8).map(|j| parity_coefficient(i, j)).collect::<Vec<_>>();
    let table: Vec<Vec<u8>> = (0..4).map(row).collect();
    assert_eq!(table, DOCUMENTED, "the bytes on all disks depend on these");
}

#[test] // Proves: G-3.
fn all_losses_of_the_widest_codes_up_to_five_can_be_decoded() {
    // Narrower codes are corners of these, and m = 5 counts each square part of up to 5 by 5.
    for parity_count in [1, 2, 5] {
        let code = Code::new(PORTIONS_MAX - parity_count, parity_count).unwrap();
        let units = UnitSet::first(PORTIONS_MAX);
        let mut bits = (1_u32 << parity_count) - 1;
        let mut pattern_count = 0;
        loop {
            let lost = UnitSet::from_bits(bits);
            // Panics inside if the part of the matrix has no inverse.
            let rebuilt = code.decoder(units.without(lost), lost).map(|plan| plan.wanted());
            assert_eq!(rebuilt, Ok(lost));
            pattern_count += 1;
            // The next higher number with as many bits (Gosper).
            let low = bits & bits.wrapping_neg();
            let Some(carried) = bits.checked_add(low) else { break };
            bits = (((carried ^ bits) >> 2) / low) | carried;
        }
        let expect = [0, 32, 496, 0, 0, 201_376][parity_count];
        assert_eq!(pattern_count, expect);
    }
}

#[test] // Proves: G-3.
fn square_parts_along_the_edge_of_the_table_invert() {
    for size in 2..=16_usize {
        let mut part = [[0; PORTIONS_MAX]; PORTIONS_MAX];
        for first in 0..=32 - 2 * size {
            for (i, row) in part[..size].iter_mut().enumerate() {
                for (j, coefficient) in row[..size].iter_mut().enumerate() {
                    *coefficient = parity_coefficient(i, first + j);
                }
            }
            assert!(invert(part, size).is_some(), "{size} from {first}");
        }
    }
}

#[test]
fn wide_codes_decode_the_worst_losses() {
    for (data_count, parity_count) in [(16, 16), (28, 4), (1, 31), (31, 1), (20, 12)] {
        let code = Code::new(data_count, parity_count).unwrap();
        let data = strips(&vec![67; data_count], 5);
        let mut all = data.clone();
        all.extend(encode(&code, &data, 67));
        let units = UnitSet::first(32);
        for shift in 0..32 {
            let lost = UnitSet::first(parity_count).bits().rotate_left(shift);
            check_decode(&code, units.without(UnitSet::from_bits(lost)), &all);
            let spread = (0..parity_count).map(|i| (i * 5 + shift as usize) % 32);
            check_decode(&code, units.without(spread.collect()), &all);
        }
    }
}

#[test]
fn refusals_name_their_reason() {
    for (data, parity) in [(0, 2), (33, 0), (30, 3), (usize::MAX, 1), (1, usize::MAX)] {
        assert_eq!(Code::new(data, parity), Err(CodeError::Counts { data, parity }));
    }
    let code = Code::new(4, 2).unwrap();
    let three = UnitSet::first(3);
    let error = CodeError::TooFew { present: 3, needed: 4 };
    assert_eq!(code.decoder(three, UnitSet::from_bits(8)), Err(error));
    assert_eq!(
        code.reconstruct(&[(0, &[][..])], &mut []),
        Err(CodeError::TooFew { present: 1, needed: 4 })
    );
    let error = CodeError::NoSuchUnit { unit: 6, units: 6 };
    assert_eq!(code.decoder(UnitSet::first(7), three), Err(error));
    assert_eq!(code.reconstruct(&[(6, &[][..])], &mut []), Err(error));
}

#[test]
fn reconstruct_takes_units_in_any_order() {
    let code = Code::new(3, 2).unwrap();
    let data = strips(&[100, 100, 40], 8);
    let parity = encode(&code, &data, 100);
    let (mut lost_parity, mut lost_data) = (vec![0; 100], vec![0; 40]);
    let present = [(4, &parity[1][..]), (1, &data[1][..]), (0, &data[0][..])];
    code.reconstruct(&present, &mut [(3, &mut lost_parity[..]), (2, &mut lost_data[..])]).unwrap();
    assert_eq!((lost_parity, lost_data), (parity[0].clone(), data[2].clone()));
}

#[test] // Proves: G-3. The worked row of docs/format/code.md.
fn the_documented_row_encodes_as_written() {
    let data = [b"BraidFS".to_vec(), b"keeps".to_vec(), b"all".to_vec(), b"bytes".to_vec()];
    let parity = encode(&Code::new(4, 2).unwrap(), &data, 7);
    assert_eq!(parity, DOCUMENTED_PARITY);
    let mut lost = [vec![0; 7], vec![0; 3]];
    let [first, third] = &mut lost;
    let present = [(1, &data[1][..]), (3, &data[3][..]), (4, &parity[0]), (5, &parity[1])];
    let code = Code::new(4, 2).unwrap();
    code.reconstruct(&present, &mut [(0, &mut first[..]), (2, &mut third[..])]).unwrap();
    assert_eq!(lost, [data[0].clone(), data[2].clone()]);
}

const DOCUMENTED_PARITY: [[u8; 7]; 2] =
    [[0x2a, 0x02, 0x1c, 0x7c, 0x64, 0x46, 0x53], [0xa7, 0x8e, 0x59, 0x31, 0xb8, 0x46, 0x53]];

/// Rows 0 to 3, columns 0 to 7.
const DOCUMENTED: [[u8; 8]; 4] = [
    [0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01],
    [0x01, 0xe8, 0xdc, 0xf0, 0xc2, 0x0e, 0x7c, 0xaa],
    [0x01, 0xdc, 0x82, 0x20, 0x0a, 0x86, 0x15, 0xb6],
    [0x01, 0xf0, 0x20, 0x6b, 0xfb, 0xa1, 0x75, 0x1a],
];
