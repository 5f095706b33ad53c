//! GiB/s of data per core: schemes by kernels by strip sizes, encode, decode of m losses, delta.
//!
//! ```text
//! cargo run --release -p braid-raid --example code [-- MILLISECONDS]
//! ```
//! A line of arithmetic before the numbers: 4+2 reads 4 and writes 2 bytes for 4 of data, 1.5 times
//! the traffic; a core that moves 32 bytes a cycle in its second-level cache at 3 GHz has about
//! 60 GiB/s of data at most, and 5 bytes a cycle of memory traffic leaves about 10.
//!
//! `hot` repeats one row, which stays in the second-level cache, as a strip does that a client just
//! sent; `cold` walks over 256 MiB of rows.

// The one program that is about time.
#![allow(clippy::disallowed_methods)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use braid_raid::{Code, Kernel, UnitSet};

const GIB: f64 = (1_u64 << 30) as f64;

fn main() {
    let milliseconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(60);
    let budget = Duration::from_millis(milliseconds);
    println!("GiB/s of data on one core; best kernel here: {}", Kernel::best().name());
    println!("scheme   strip KiB  kernel        encode  decode   delta");
    for (data, parity) in [(4, 1), (4, 2), (8, 3), (10, 4), (16, 6), (1, 2)] {
        for strip_kib in [4, 64, 1024] {
            for kernel in Kernel::available() {
                let code = Code::with_kernel(data, parity, kernel).expect("small counts");
                print!("{data:>2}+{parity:<6} {strip_kib:>8}  {:<12}", kernel.name());
                let mut row = Row::new(&code, strip_kib << 10);
                for rate in [row.encode(budget), row.decode(budget), row.delta(budget)] {
                    print!(" {rate:>7.1}");
                }
                println!();
            }
        }
    }
    println!("\ncold: rows over 256 MiB, strips of 64 KiB");
    for (data, parity) in [(4, 1), (4, 2), (10, 4)] {
        for kernel in Kernel::available() {
            let code = Code::with_kernel(data, parity, kernel).expect("small counts");
            let rate = cold(&code, 64 << 10, budget);
            println!("{data:>2}+{parity:<6} {:>8}  {:<12} {rate:>7.1}", 64, kernel.name());
        }
    }
    let code = Code::new(4, 2).expect("small counts");
    let started = Instant::now();
    let rounds = 100_000;
    for _ in 0..rounds {
        let present = black_box(UnitSet::first(6).without(UnitSet::first(2)));
        black_box(code.decoder(present, UnitSet::first(2)).expect("four are present"));
    }
    println!("\na decoder for two lost of 4+2: {:?}", started.elapsed() / rounds);
}

/// One row of strips, all in one piece of memory.
struct Row<'a> {
    code: &'a Code,
    size: usize,
    units: Vec<Vec<u8>>,
}

impl<'a> Row<'a> {
    fn new(code: &'a Code, size: usize) -> Self {
        let strip = |unit: usize| (0..size).map(move |at| (at * 7 + unit * 31 + at / 251) as u8);
        Self { code, size, units: (0..code.units()).map(|u| strip(u).collect()).collect() }
    }

    fn encode(&mut self, budget: Duration) -> f64 {
        let (data, parity) = self.units.split_at_mut(self.code.data());
        let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        let code = self.code;
        measure(budget, self.size * code.data(), || code.encode(black_box(&data), &mut parity))
    }

    /// The first units lost, as many as can be.
    fn decode(&mut self, budget: Duration) -> f64 {
        let all = UnitSet::first(self.code.units());
        let lost = UnitSet::first(self.code.parity().min(self.code.data()));
        let decoder = self.code.decoder(all.without(lost), lost).expect("k are present");
        let (wanted, present) = self.units.split_at_mut(lost.count());
        let sources: Vec<&[u8]> =
            decoder.sources().iter().map(|unit| present[unit - lost.count()].as_slice()).collect();
        let mut wanted: Vec<&mut [u8]> = wanted.iter_mut().map(Vec::as_mut_slice).collect();
        measure(budget, self.size * self.code.data(), || {
            decoder.apply(black_box(&sources), &mut wanted);
        })
    }

    /// A whole strip changed; its bytes count once.
    fn delta(&mut self, budget: Duration) -> f64 {
        let new = vec![9; self.size];
        let (data, parity) = self.units.split_at_mut(self.code.data());
        let mut parity: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        let code = self.code;
        let old = data.last().expect("k is at least 1").as_slice();
        let unit = code.data() - 1;
        measure(budget, self.size, || code.delta(unit, black_box(old), &new, &mut parity))
    }
}

fn cold(code: &Code, size: usize, budget: Duration) -> f64 {
    let mut memory = vec![1_u8; 256 << 20];
    let row_size = size * code.units();
    let row_count = memory.len() / row_size;
    let mut row_index = 0;
    measure(budget * 4, size * code.data(), || {
        let row = &mut memory[row_index * row_size..][..row_size];
        let (data, parity) = row.split_at_mut(size * code.data());
        let data: Vec<&[u8]> = data.chunks(size).collect();
        let mut parity: Vec<&mut [u8]> = parity.chunks_mut(size).collect();
        code.encode(black_box(&data), &mut parity);
        row_index = (row_index + 1) % row_count;
    })
}

/// GiB/s of the fastest of some rounds that fill `budget` together: others use this machine too.
fn measure(budget: Duration, bytes: usize, mut work: impl FnMut()) -> f64 {
    work();
    let repeats = ((4 << 20) / bytes).max(1);
    let started = Instant::now();
    let mut best = Duration::MAX;
    while started.elapsed() < budget {
        let round = Instant::now();
        for _ in 0..repeats {
            work();
        }
        best = best.min(round.elapsed());
    }
    (bytes * repeats) as f64 / GIB / best.as_secs_f64()
}
