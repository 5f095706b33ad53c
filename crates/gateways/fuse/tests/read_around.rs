//! Random and sequential reads: how much is asked of the owners, and that what is kept is right.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use braid_fuse::memory::MemoryStore;
use common::TestMount;
use rand::{RngExt, SeedableRng, rngs::StdRng};

const BLOCK: usize = 4096;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251 + seed) as u8).collect()
}

/// Reads single blocks anywhere; panics where they are not those of `expect`.
fn read_blocks(file: &File, expect: &[u8], count: usize, random: &mut StdRng) {
    let mut block = [0; BLOCK];
    for _ in 0..count {
        let at = random.random_range(0..expect.len() / BLOCK) * BLOCK;
        file.read_exact_at(&mut block, at as u64).expect("it is read");
        assert!(block == expect[at..at + BLOCK], "at {at}");
    }
}

fn write_through_mapping(file: &File, at: usize, bytes: &[u8]) {
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let len = bytes.len();
    // SAFETY: a new mapping at an address that the kernel chooses, `len` long, ended here; nobody
    // else knows of it.
    unsafe {
        let place = mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file, at as u64);
        let place = place.expect("it maps");
        std::slice::from_raw_parts_mut(place.cast::<u8>(), len).copy_from_slice(bytes);
        munmap(place, len).expect("it is unmapped");
    }
}

#[test]
fn random_reads_of_a_file_that_fits_bring_it_into_the_kernels_pages() {
    let store = MemoryStore::default();
    let Some(mount) = TestMount::start(&store, "") else { return };
    let expect = pattern((24 << 20) + 100, 0);
    fs::write(mount.path("file"), &expect).expect("it is written");
    let mount = mount.again(&store);
    let file = File::open(mount.path("file")).expect("it opens");
    let before = store.reads();
    read_blocks(&file, &expect, 20_000, &mut StdRng::seed_from_u64(1));
    let asked = store.reads() - before;
    assert!(asked < 300, "20,000 reads of 24 MiB asked the owner {asked} times");
    assert!(fs::read(mount.path("file")).expect("it is read") == expect);
}

/// A handle that jumped about had megabytes fetched ahead of each place, again and again, and the
/// owners ran out of memory and time. Found by stress-ng.
#[test]
fn a_reader_that_jumps_about_has_nothing_fetched_twice() {
    let store = MemoryStore::default();
    let Some(mount) = TestMount::start(&store, "") else { return };
    let expect = pattern(32 << 20, 1);
    fs::write(mount.path("file"), &expect).expect("it is written");
    let mount = mount.again(&store);
    let file = File::open(mount.path("file")).expect("it opens");
    let before = store.reads();
    let mut random = StdRng::seed_from_u64(2);
    let mut bytes = vec![0; 64 << 10];
    for _ in 0..500 {
        let at = random.random_range(0..(31 << 20) / BLOCK) * BLOCK;
        // Two reads in a row look like a sequence.
        for at in [at, at + bytes.len()] {
            file.read_exact_at(&mut bytes, at as u64).expect("it is read");
            assert!(bytes == expect[at..at + bytes.len()], "at {at}");
        }
    }
    let asked = store.reads() - before;
    assert!(asked < 1000, "1,000 reads asked the owner {asked} times");
}

#[test]
fn what_was_read_around_gives_way_to_what_another_mount_wrote() {
    let store = MemoryStore::default();
    let Some(one) = TestMount::start(&store, "") else { return };
    let Some(other) = TestMount::start(&store, "") else { return };
    let mut random = StdRng::seed_from_u64(3);
    for round in 0..6 {
        let expect = pattern((3 << 20) + round * 5000, round);
        fs::write(one.path("file"), &expect).expect("one writes");
        let file = File::open(other.path("file")).expect("the other opens");
        read_blocks(&file, &expect, 3000, &mut random);
    }
}

/// What is put into the kernel's pages must not go over pages written through a mapping.
#[test]
fn writes_beside_random_reads_are_kept() {
    let store = MemoryStore::default();
    let Some(mount) = TestMount::start(&store, "") else { return };
    let mut expect = pattern(16 << 20, 0);
    fs::write(mount.path("file"), &expect).expect("it is written");
    let mount = mount.again(&store);
    let reader = File::open(mount.path("file")).expect("it opens");
    let mut random = StdRng::seed_from_u64(4);
    for round in 0..40_u8 {
        read_blocks(&reader, &expect, 20, &mut random);
        let writer = OpenOptions::new().read(true).write(true).open(mount.path("file"));
        let writer = writer.expect("it opens");
        let at = random.random_range(0..expect.len() / BLOCK) * BLOCK;
        write_through_mapping(&writer, at, &[round; BLOCK]);
        expect[at..at + BLOCK].fill(round);
        drop(writer);
        if round % 8 == 0 {
            let length = expect.len() - 3 * BLOCK;
            expect.truncate(length);
            let file = OpenOptions::new().write(true).open(mount.path("file")).expect("it opens");
            file.set_len(length as u64).expect("it is cut");
        }
    }
    assert!(fs::read(mount.path("file")).expect("it is read") == expect);
    drop(reader);
    let mount = mount.again(&store);
    assert!(fs::read(mount.path("file")).expect("it is read") == expect);
}
