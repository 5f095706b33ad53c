//! The journal of a disk: segments of records (`docs/format/journal.md`).
//! # Theory
//! One sequential file at a time. `append` writes a record with one vectored write; from then on it
//! survives the process. A sync, elsewhere, makes it survive the machine.
//! ```text
//! 000017.log   | segment head | picture | kept records, repeated | records as they come | zeros
//! ```
//! Where syncs are asked for, zeros are written ahead of the records: a record over bytes that are
//! there needs its own blocks synced and nothing of the file system's, which costs far less.
//! # Invariants
//! J1 Positions grow; each start begins above every position that an earlier one can have given.
//! J2 Behind the last record are zeros only, or the rests of one record that was not promised.
//! J3 A failed append leaves the journal's end where it was; the next record overwrites its rests.
//! # Failure
//! What a reader finds is told record by record ([`Found`]); `recovery.rs` judges it.
//! # Source
//! S-3, S-6, S-7.

use std::io;

use braid_env::{File, Folder, OpenMode};
use braid_terms::{BLOCK_SIZE, JournalPosition};

use crate::bytes_le::{Get, Put};
use crate::checksum::{crc32c, crc32c_of};
use crate::disk::{DiskIdentity, FORMAT};
use crate::journal_body::{Kind, Picture};

/// Bytes of a record's head.
pub const HEAD_SIZE: usize = 48;
/// Bytes of a segment's head.
pub const SEGMENT_HEAD_SIZE: u64 = 128;
/// Longest body.
pub const BODY_MAX: usize = 16 << 20;
/// Most images of one record.
pub const IMAGES_MAX: u32 = 1 << 13;

const MAGIC: &[u8; 4] = b"BRJR";
const SEGMENT_MAGIC: &[u8; 8] = b"BRAIDJNL";

/// The segment that is being written.
pub struct Journal {
    identity: DiskIdentity,
    /// Its number.
    pub segment: u64,
    /// Its file.
    pub file: File,
    end: u64,
    /// Bytes that the file has, the zeros ahead included.
    filled: u64,
    salt: u64,
    next: u64,
    /// Position of the newest record that says something: not a `Synced`.
    pub needed: JournalPosition,
    /// Bytes in older segments.
    pub older_bytes: u64,
    /// Bytes of its picture and repeated records.
    pub picture_bytes: u64,
}

/// Where an appended record is.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// Its position.
    pub position: JournalPosition,
    /// Byte of its first image in the segment's file.
    pub images_at: u64,
}

impl Journal {
    /// Begins segment `segment`; its first record gets position `first`.
    pub fn begin(
        folder: &Folder,
        identity: DiskIdentity,
        segment: u64,
        first: u64,
        synced: JournalPosition,
        salt: u64,
    ) -> io::Result<Self> {
        let file = folder.open(&segment_path(segment), OpenMode::CreateNew)?;
        let mut head = [0; SEGMENT_HEAD_SIZE as usize];
        let mut put = Put(&mut head);
        put.bytes(0, SEGMENT_MAGIC);
        put.u32(8, FORMAT);
        put.u32(12, identity.disk.0);
        put.u128(16, identity.cluster.0);
        put.u128(32, identity.identity);
        put.u64(48, segment);
        put.u64(56, first);
        put.u64(64, synced.0);
        put.u64(72, salt);
        let crc = crc32c(&head[..124]);
        Put(&mut head).u32(124, crc);
        file.write_at(&[&head], 0)?;
        Ok(Self {
            identity,
            segment,
            file,
            end: SEGMENT_HEAD_SIZE,
            filled: SEGMENT_HEAD_SIZE,
            salt,
            next: first,
            needed: synced,
            older_bytes: 0,
            picture_bytes: 0,
        })
    }

    /// Begins the first segment of a new disk, with an empty picture; what an earlier attempt left
    /// is replaced. Returns its file.
    pub fn begin_empty(folder: &Folder, identity: DiskIdentity, salt: u64) -> io::Result<File> {
        for segment in segments(folder)? {
            folder.remove(&segment_path(segment))?;
        }
        let none = JournalPosition(0);
        let mut journal = Self::begin(folder, identity, 1, 1 << 32, none, salt)?;
        let picture = postcard::to_stdvec(&Picture::default());
        let picture = picture.map_err(|error| io::Error::other(error.to_string()))?;
        journal.append(Kind::Picture, none, &picture, &[])?;
        journal.append(Kind::PictureEnd, none, &[], &[])?;
        Ok(journal.file)
    }

    /// The same segment once more, while the state that names it is borrowed.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self { file: self.file.clone(), ..*self }
    }

    /// Begins the segment behind this one.
    pub fn begin_next(
        &self,
        folder: &Folder,
        synced: JournalPosition,
        salt: u64,
    ) -> io::Result<Self> {
        let (segment, first) = (self.segment + 1, self.next);
        let mut next = Self::begin(folder, self.identity, segment, first, synced, salt)?;
        next.older_bytes = self.older_bytes + self.end;
        Ok(next)
    }

    /// Writes one record; the images are whole blocks, in any number of pieces.
    ///
    /// Errors: of the file; nothing counts as written then (J3).
    pub fn append(
        &mut self,
        kind: Kind,
        synced: JournalPosition,
        body: &[u8],
        images: &[&[u8]],
    ) -> io::Result<Appended> {
        let image_bytes: usize = images.iter().map(|piece| piece.len()).sum();
        assert_eq!(image_bytes % BLOCK_SIZE, 0, "images are whole blocks");
        let image_count = u32::try_from(image_bytes / BLOCK_SIZE).unwrap_or(u32::MAX);
        if body.len() > BODY_MAX || image_count > IMAGES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut head = [0; HEAD_SIZE];
        let mut put = Put(&mut head);
        put.bytes(0, MAGIC);
        put.bytes(8, &[kind as u8]);
        put.u32(12, u32::try_from(body.len()).expect("below BODY_MAX"));
        put.u32(16, image_count);
        put.u64(24, self.next);
        put.u64(32, synced.0);
        put.u64(40, self.salt);
        let crc = crc32c_of(&[&head[8..], body]);
        Put(&mut head).u32(4, crc);
        let padding = [0; 8];
        let padding = &padding[..padded(body.len()) - body.len()];
        let mut pieces = Vec::with_capacity(3 + images.len());
        pieces.extend_from_slice(&[&head, body, padding]);
        pieces.extend_from_slice(images);
        self.file.write_at(&pieces, self.end)?;
        let images_at = self.end + (HEAD_SIZE + padded(body.len())) as u64;
        let position = JournalPosition(self.next);
        if kind != Kind::Synced {
            self.needed = position;
        }
        self.next += 1;
        self.end = images_at + image_bytes as u64;
        self.filled = self.filled.max(self.end);
        Ok(Appended { position, images_at })
    }

    /// Writes zeros ahead of the records, where few are left; for before a sync.
    pub fn fill_ahead(&mut self) {
        if self.filled - self.end < FILL_BELOW {
            let zeros = [0; 1 << 16];
            let pieces = [&zeros[..]; FILL / (1 << 16)];
            // A full disk: it goes on without.
            if self.file.write_at(&pieces, self.filled).is_ok() {
                self.filled += FILL as u64;
            }
        }
    }

    /// Position of the newest record.
    #[must_use]
    pub fn last(&self) -> JournalPosition {
        JournalPosition(self.next - 1)
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.older_bytes + self.end
    }

    /// Bytes of this segment behind its picture.
    #[must_use]
    pub fn new_bytes(&self) -> u64 {
        self.end - self.picture_bytes
    }

    /// All so far is the picture.
    pub fn end_picture(&mut self) {
        self.picture_bytes = self.end;
    }
}

/// Path of a segment below the disk's folder.
#[must_use]
pub fn segment_path(segment: u64) -> String {
    format!("journal/{segment:06}.log")
}

/// Numbers of the segments that are there, in order.
pub fn segments(folder: &Folder) -> io::Result<Vec<u64>> {
    let mut numbers: Vec<u64> = folder
        .list("journal")?
        .iter()
        .filter_map(|name| name.strip_suffix(".log")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// A record as found in a segment.
pub struct FoundRecord {
    /// What it is.
    pub kind: Kind,
    /// Its position.
    pub position: JournalPosition,
    /// What its head says is on the medium.
    pub synced: JournalPosition,
    /// Its body; the checksum fits.
    pub body: Vec<u8>,
    /// Byte of its first image.
    pub images_at: u64,
    /// Number of its images, all within the file; their checksums are not looked at here.
    pub image_count: u32,
}

/// What a reader meets next.
pub enum Found {
    /// A record whose head and body are good.
    Record(FoundRecord),
    /// Bytes that are no record, up to the next good record or the end of the file.
    Gap,
    /// The end of the file.
    End,
}

/// Reads one segment from its beginning.
pub struct SegmentReader {
    /// Its file.
    pub file: File,
    /// Position that its first record must have.
    pub first: u64,
    /// What its head says is on the medium.
    pub synced: JournalPosition,
    salt: u64,
    at: u64,
    length: u64,
}

impl SegmentReader {
    /// Opens a segment; `None` where its head is not good or of another disk.
    pub fn open(folder: &Folder, identity: DiskIdentity, segment: u64) -> io::Result<Option<Self>> {
        let file = folder.open(&segment_path(segment), OpenMode::Write)?;
        let length = file.length()?;
        if length < SEGMENT_HEAD_SIZE {
            return Ok(None);
        }
        let mut head = [0; SEGMENT_HEAD_SIZE as usize];
        file.read_exact_at(&mut head, 0)?;
        let get = Get(&head);
        let good = head[..8] == *SEGMENT_MAGIC
            && get.u32(124) == crc32c(&head[..124])
            && get.u32(8) == FORMAT
            && get.u32(12) == identity.disk.0
            && get.u128(16) == identity.cluster.0
            && get.u128(32) == identity.identity
            && get.u64(48) == segment;
        let (first, synced) = (get.u64(56), JournalPosition(get.u64(64)));
        let salt = get.u64(72);
        let at = SEGMENT_HEAD_SIZE;
        Ok(good.then_some(Self { file, first, synced, salt, at, length }))
    }

    /// The next thing in the segment.
    pub fn next(&mut self) -> io::Result<Found> {
        if self.at >= self.length {
            return Ok(Found::End);
        }
        if let Some(record) = self.record_at(self.at)? {
            self.at = record.images_at + u64::from(record.image_count) * BLOCK_SIZE as u64;
            return Ok(Found::Record(record));
        }
        if self.is_zero_behind()? {
            self.at = self.length;
            return Ok(Found::End);
        }
        // Where a head is lost, so is the way to the next one: it is found by its magic and salt.
        self.at = self.find_record(self.at + 8)?.unwrap_or(self.length);
        Ok(Found::Gap)
    }

    fn record_at(&self, at: u64) -> io::Result<Option<FoundRecord>> {
        if at + HEAD_SIZE as u64 > self.length {
            return Ok(None);
        }
        let mut head = [0; HEAD_SIZE];
        self.file.read_exact_at(&mut head, at)?;
        let get = Get(&head);
        let (body_length, image_count) = (get.u32(12) as usize, get.u32(16));
        let plausible = head[..4] == *MAGIC
            && get.u64(40) == self.salt
            && body_length <= BODY_MAX
            && image_count <= IMAGES_MAX;
        let images_at = at + (HEAD_SIZE + padded(body_length)) as u64;
        let end = images_at + u64::from(image_count) * BLOCK_SIZE as u64;
        if !plausible || end > self.length {
            return Ok(None);
        }
        let mut body = vec![0; body_length];
        self.file.read_exact_at(&mut body, at + HEAD_SIZE as u64)?;
        if get.u32(4) != crc32c_of(&[&head[8..], &body]) {
            return Ok(None);
        }
        let Some(kind) = Kind::of(head[8]) else { return Ok(None) };
        let (position, synced) = (JournalPosition(get.u64(24)), JournalPosition(get.u64(32)));
        Ok(Some(FoundRecord { kind, position, synced, body, images_at, image_count }))
    }

    /// Whether nothing was written from here on.
    fn is_zero_behind(&self) -> io::Result<bool> {
        let mut window = vec![0; 1 << 16];
        let mut at = self.at;
        while at < self.length {
            let count = self.file.read_at(&mut window, at)?;
            if window[..count].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            if count == 0 {
                break;
            }
            at += count as u64;
        }
        Ok(true)
    }

    fn find_record(&self, from: u64) -> io::Result<Option<u64>> {
        let mut window = vec![0; 1 << 16];
        let mut at = from;
        while at < self.length {
            let count = self.file.read_at(&mut window, at)?;
            if count == 0 {
                return Ok(None);
            }
            for place in (0..count.saturating_sub(3)).step_by(8) {
                let here = at + place as u64;
                if window[place..place + 4] == *MAGIC && self.record_at(here)?.is_some() {
                    return Ok(Some(here));
                }
            }
            at += (count as u64).next_multiple_of(8);
        }
        Ok(None)
    }
}

/// Zeros that are written ahead at a time, in bytes.
const FILL: usize = 1 << 20;

/// So few are few: less than two small records.
const FILL_BELOW: u64 = 16 << 10;

fn padded(length: usize) -> usize {
    length.next_multiple_of(8)
}
