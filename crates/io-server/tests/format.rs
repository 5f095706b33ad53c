//! Ring 4: portion files and the journal read by the numbers of `docs/format/` alone.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use braid_env::machine;
use braid_terms::{PortionIndex, WriteNumber};
use common::*;

const NONE: WriteNumber = WriteNumber::NONE;

/// CRC-32C bit by bit, as the index page defines it.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
        })
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The newest valid slot of a block group, and its blocks' content.
fn read_group(file: &[u8], group: usize) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let base = group * 514 * 4096;
    let magic: &[u8] = if group == 0 { b"BRAIDPRT" } else { b"BRAIDSUM" };
    let page = (0..2)
        .filter_map(|slot| file.get(base + slot * 4096..base + (slot + 1) * 4096))
        .filter(|page| &page[..8] == magic && crc(&page[..4092]) == u32_at(page, 4092))
        .max_by_key(|page| u64_at(page, 48))?;
    let content = (0..512).map(|index| {
        if page[1920 + index / 8] >> (index % 8) & 1 == 0 {
            return vec![0; 4096];
        }
        let at = base + 8192 + index * 4096;
        let block = file[at..at + 4096].to_vec();
        assert_eq!(crc(&block), u32_at(page, 1984 + 4 * index));
        block
    });
    Some((page.to_vec(), content.collect()))
}

#[test] // Proves: S-1, S-5.
fn a_portion_file_is_read_by_the_document() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let env = machine::env(Default::default());
        format(&env, folder.path()).await;
        let server = start(&env, folder.path(), 1).await;
        let owner = Owner::new(&server, 727, 1, 1);
        let bytes = blocks(1, 40);
        for (sequence, first) in [(1, 3), (2, 500), (3, 20)] {
            let prev = if sequence == 1 { NONE } else { number(1, sequence - 1) };
            let record = record(number(1, sequence), prev, vec![write(first, &bytes)]);
            owner.prepare(record, &bytes, prev, NONE).await.unwrap();
        }
        owner.sync().await;
        owner.marks(number(1, 3), number(1, 3), vec![]).await;
        server.checkpoint().await.unwrap();
        check_portion(folder.path(), &bytes);
        check_journal(folder.path());
    });
}

fn check_portion(folder: &Path, bytes: &[u8]) {
    let hash = 727u64.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    let file = std::fs::read(folder.join(format!("portions/{hash:02x}/727-1-2"))).unwrap();
    let (header, mut content) = read_group(&file, 0).unwrap();
    assert_eq!((u32_at(&header, 8), u32_at(&header, 12)), (1, 2));
    assert_eq!((u64_at(&header, 16), u64_at(&header, 24)), (1, 0));
    assert_eq!((u64_at(&header, 32), u64_at(&header, 56)), (77, 727));
    assert_eq!(header[64..68], [1, 2, 0, 1]);
    assert_eq!((u32_at(&header, 68), u32_at(&header, 96)), (1, 65536));
    assert_eq!(&header[72..80], b"raid1/2\0");
    assert_eq!((u32_at(&header, 100), u64_at(&header, 104)), (3, 9));
    assert_eq!((u64_at(&header, 112), u64_at(&header, 120)), (727, 3 * 4096));
    let last = [u64_at(&header, 128), u64_at(&header, 136), u64_at(&header, 144)];
    assert_eq!(last, [1, 1, 3]);
    assert_eq!((u64_at(&header, 224), u64_at(&header, 232)), (727, 0));
    assert_eq!([u32_at(&header, 240), u32_at(&header, 244), u32_at(&header, 248)], [2, 3, 0]);
    let (page, more) = read_group(&file, 1).unwrap();
    assert_eq!((u64_at(&page, 56), u64_at(&page, 72)), (727, 1));
    content.extend(more);
    let content = content.concat();
    let mut expect = vec![0; content.len()];
    for first in [3, 500, 20] {
        expect[first * 4096..(first + 40) * 4096].copy_from_slice(bytes);
    }
    assert!(content == expect, "the content is what was written last");
    assert_eq!(PortionIndex(1).zero_based(), 0);
}

// Heads follow each other, then zeros to the end of the file; after a checkpoint only a picture is there.
fn check_journal(folder: &Path) {
    let names: Vec<_> = std::fs::read_dir(folder.join("journal")).unwrap().collect();
    assert_eq!(names.len(), 1);
    let file = std::fs::read(names[0].as_ref().unwrap().path()).unwrap();
    assert_eq!(&file[..8], b"BRAIDJNL");
    assert_eq!(crc(&file[..124]), u32_at(&file, 124));
    let (mut at, mut position, mut kinds) = (128, u64_at(&file, 56), Vec::new());
    while file[at..].iter().any(|byte| *byte != 0) {
        let (body, images) = (u32_at(&file, at + 12) as usize, u32_at(&file, at + 16) as usize);
        assert_eq!(&file[at..at + 4], b"BRJR");
        assert_eq!(u32_at(&file, at + 4), crc(&file[at + 8..at + 48 + body]));
        assert_eq!((u64_at(&file, at + 24), u64_at(&file, at + 40)), (position, u64_at(&file, 72)));
        kinds.push(file[at + 8]);
        position += 1;
        at += 48 + body.next_multiple_of(8) + images * 4096;
    }
    assert!(at <= file.len());
    assert_eq!(kinds, vec![1, 3, 10]);
}
