//! Random operations on one file, compared with an array after each, through the kernel.
//!
//! As `fsx` does. `FSX_SEED` and `FSX_OPERATIONS` repeat or lengthen a run.

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use braid_fuse::memory::MemoryStore;
use common::TestMount;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::fs::FallocateFlags;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

const SIZE_MAX: usize = 400_000;

#[test]
fn random_operations_agree_with_an_array() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let operations = number("FSX_OPERATIONS").unwrap_or(1_500);
    let seeds = match number("FSX_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..5,
    };
    for seed in seeds {
        let store = MemoryStore::default();
        let Some(mount) = TestMount::start(&store, "write_memory=1") else { return };
        run(mount, &store, seed, operations);
    }
}

fn run(mut mount: TestMount, store: &MemoryStore, seed: u64, operations: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    // Small files, too: their bytes move from the record to a device and back.
    let size_max = if seed.is_multiple_of(2) { 9_000 } else { SIZE_MAX };
    let mut model: Vec<u8> = Vec::new();
    let mut file = open(&mount);
    for operation in 0..operations {
        let place = format!("seed {seed}, operation {operation}");
        let at = random.random_range(0..size_max);
        let len = random.random_range(1..=(size_max - at).min(70_000));
        match random.random_range(0..100) {
            0..35 => {
                let byte = random.random_range(1..=255);
                let bytes: Vec<u8> = (0..len).map(|i| byte ^ (i / 512) as u8).collect();
                file.write_all_at(&bytes, at as u64).expect("it is written");
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].copy_from_slice(&bytes);
            }
            35..70 => check(&file, &model, at, len, &place),
            70..76 => {
                file.set_len(at as u64).expect("the size is set");
                model.resize(at, 0);
            }
            76..82 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&file, flags, at as u64, len as u64).expect("it is punched");
                let end = model.len().min(at + len);
                model[at.min(end)..end].fill(0);
            }
            82..86 => {
                let flags = FallocateFlags::ZERO_RANGE;
                rustix::fs::fallocate(&file, flags, at as u64, len as u64).expect("it is zeroed");
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].fill(0);
            }
            86..90 => mapped_write(&file, &mut model, at, len, &mut random),
            90..93 => file.sync_all().expect("it is stable"),
            93..97 => {
                drop(file);
                file = open(&mount);
            }
            97..99 => {
                assert_eq!(
                    file.metadata().expect("it is there").len(),
                    model.len() as u64,
                    "{place}"
                );
                check(&file, &model, 0, size_max, &place);
            }
            _ => {
                drop(file);
                mount = mount.again(store);
                file = open(&mount);
                check(&file, &model, 0, size_max, &place);
            }
        }
    }
    check(&file, &model, 0, size_max, "the end");
}

fn open(mount: &TestMount) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(mount.path("file"))
        .expect("it opens")
}

#[track_caller]
fn check(file: &File, model: &[u8], at: usize, len: usize, place: &str) {
    let mut bytes = vec![0; len];
    let mut read = 0;
    while read < len {
        match file.read_at(&mut bytes[read..], (at + read) as u64).expect("it is read") {
            0 => break,
            count => read += count,
        }
    }
    let end = model.len().min(at + len);
    let expect = &model[at.min(end)..end];
    assert_eq!(read, expect.len(), "{place}: length of a read at {at}");
    let wrong = bytes[..read].iter().zip(expect).position(|(one, other)| one != other);
    assert_eq!(wrong.map(|wrong| at + wrong), None, "{place}: a wrong byte");
}

fn mapped_write(file: &File, model: &mut [u8], at: usize, len: usize, random: &mut StdRng) {
    let end = model.len().min(at + len);
    if at >= end {
        return;
    }
    let byte = random.random_range(1..=255);
    let start = at - at % 4096;
    // SAFETY: a new shared mapping within the file, touched by this thread only, ended here.
    unsafe {
        let address = mmap(
            std::ptr::null_mut(),
            end - start,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file,
            start as u64,
        )
        .expect("it maps");
        let bytes = std::slice::from_raw_parts_mut(address.cast::<u8>(), end - start);
        bytes[at - start..].fill(byte);
        msync(address, end - start, MsyncFlags::SYNC).expect("it is synced");
        munmap(address, end - start).expect("it is unmapped");
    }
    model[at..end].fill(byte);
}
