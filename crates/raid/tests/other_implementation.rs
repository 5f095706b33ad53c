//! The code against an implementation that shares nothing with ours but the matrix.

use braid_raid::{Code, UnitSet, parity_coefficient};
use rusty_erasure::{Coder, Matrix};

const SIZE: usize = 101;

/// The other implementation, on k unit rows and our m rows.
fn other(data: usize, parity: usize) -> Coder {
    let mut bytes = Vec::new();
    for unit in 0..data {
        bytes.extend((0..data).map(|column| u8::from(column == unit)));
    }
    for parity_index in 0..parity {
        bytes.extend((0..data).map(|unit| parity_coefficient(parity_index, unit)));
    }
    let matrix = Matrix::from_bytes(data + parity, data, bytes).expect("dimensions are right");
    Coder::new(matrix).expect("there is parity")
}

fn row(data: usize) -> Vec<Vec<u8>> {
    (0..data)
        .map(|unit| (0..SIZE).map(|at| ((at + 3) * (at + 7 * unit + 1) % 251) as u8).collect())
        .collect()
}

fn slices(strips: &[Vec<u8>]) -> Vec<&[u8]> {
    strips.iter().map(Vec::as_slice).collect()
}

fn slices_mut(strips: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    strips.iter_mut().map(Vec::as_mut_slice).collect()
}

#[test] // Proves: G-3.
fn both_encode_and_decode_the_same_bytes() {
    for units in 2..=9 {
        for data_count in 1..units {
            let parity_count = units - data_count;
            let ours = Code::new(data_count, parity_count).unwrap();
            let theirs = other(data_count, parity_count);
            let data = row(data_count);
            let mut parity = vec![vec![0; SIZE]; parity_count];
            ours.encode(&slices(&data), &mut slices_mut(&mut parity));
            let mut their_parity = vec![vec![0; SIZE]; parity_count];
            theirs.encode(&slices(&data), &mut slices_mut(&mut their_parity)).unwrap();
            assert_eq!(parity, their_parity, "{ours:?}");

            let mut all = data;
            all.extend(parity);
            for present in (0..1_u32 << units).map(UnitSet::from_bits) {
                compare_decode(&ours, &theirs, present, &all);
            }
        }
    }
}

fn compare_decode(ours: &Code, theirs: &Coder, present: UnitSet, all: &[Vec<u8>]) {
    let lost = UnitSet::first(ours.units()).without(present);
    let rebuild: Vec<usize> = lost.iter().collect();
    let shards: Vec<Option<&[u8]>> = all
        .iter()
        .enumerate()
        .map(|(unit, strip)| present.contains(unit).then_some(strip.as_slice()))
        .collect();
    let mut their_strips = vec![vec![0; SIZE]; rebuild.len()];
    let their_answer = theirs.recover(&shards, &rebuild, &mut slices_mut(&mut their_strips));
    let Ok(decoder) = ours.decoder(present, lost) else {
        assert!(present.count() < ours.data(), "{ours:?} refuses {present:?}");
        assert!(their_answer.is_err());
        return;
    };
    their_answer.expect("we can decode this");
    let sources: Vec<&[u8]> = decoder.sources().iter().map(|unit| all[unit].as_slice()).collect();
    let mut strips = vec![vec![0; SIZE]; rebuild.len()];
    decoder.apply(&sources, &mut slices_mut(&mut strips));
    assert_eq!(strips, their_strips, "{ours:?} {present:?}");
    for (unit, strip) in rebuild.iter().zip(&strips) {
        assert_eq!(*strip, all[*unit]);
    }
}
