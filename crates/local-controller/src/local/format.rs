//! Bytes of a local journal's segments (`docs/format/local-journal.md`): made and parsed, nothing else.
//! # Theory
//! ```text
//! 000007.log   | head | record | record | ... | rests of a record that was not answered
//! ```
//! Each record says up to which byte its file was on the medium when it was written. So what does not
//! fit is told apart: below such a byte it is damage, else it was not answered.
//! # Failure
//! Bytes that are no segment of this server give nothing; no bytes make it panic.
//! # Source
//! W-13, S-3, S-6.

use braid_terms::{ClusterId, DeviceId, FactNumber, GroupLayout, ServerId, WriteNumber};
use braid_wire::operations::Operation;
use crc_fast::{CrcAlgorithm, Digest};
use serde::{Deserialize, Serialize};

use crate::files::bytes_le::Reader;

/// Whose segment it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Of which cluster.
    pub cluster: ClusterId,
    /// Of which server.
    pub server: ServerId,
}

/// What a record says of its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Copy {
    /// The fact under which it was answered.
    pub fact: FactNumber,
    /// The number that the write was given.
    pub number: WriteNumber,
    /// Of which device, and where that lives.
    pub layout: GroupLayout,
    /// Home of the file, for the portions' headers. Source: F-9.
    pub home: DeviceId,
    /// Where each part of the bytes begins in the device, and its length.
    pub parts: Vec<(u64, u32)>,
    /// The change of a client that the write is. Source: N-3.
    pub operation: Option<Operation>,
}

impl Copy {
    /// Whether its parts are these bytes, and within a device.
    fn fits(&self, length: u32) -> bool {
        let sum: u64 = self.parts.iter().map(|(_, size)| u64::from(*size)).sum();
        let is_within = |(at, size): &(u64, u32)| at.checked_add(u64::from(*size)).is_some();
        sum == u64::from(length) && self.parts.iter().all(is_within)
    }
}

/// A record as found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// What it says.
    pub copy: Copy,
    /// First of its bytes in the file.
    pub bytes_at: u64,
    /// How many.
    pub length: u32,
    /// Their CRC-32C.
    pub crc: u32,
}

/// What a segment has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Parsed {
    /// Records that are whole, in order.
    pub records: Vec<Found>,
    /// Something that was on the medium is not whole.
    pub is_damaged: bool,
}

/// Bytes of a segment's head.
pub const SEGMENT_HEAD: usize = 64;

const RECORD_HEAD: usize = 48;
const FORMAT: u32 = 1;
const SEGMENT_MAGIC: &[u8; 8] = b"BRAIDLCL";
const RECORD_MAGIC: &[u8; 4] = b"BRLR";

/// The head of a segment.
#[must_use]
pub fn segment_head(identity: Identity, segment: u64) -> Vec<u8> {
    let mut head = Vec::with_capacity(SEGMENT_HEAD);
    head.extend_from_slice(SEGMENT_MAGIC);
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(&identity.server.0.to_le_bytes());
    head.extend_from_slice(&identity.cluster.0.to_le_bytes());
    head.extend_from_slice(&segment.to_le_bytes());
    head.resize(SEGMENT_HEAD - 4, 0);
    let crc = crc32c_of(&[&head]);
    head.extend_from_slice(&crc.to_le_bytes());
    head
}

/// A record without its bytes, which follow it, and zeros up to a multiple of 8 behind them. `synced`:
/// up to where the file is on the medium. Gives the CRC-32C of the bytes too.
#[must_use]
pub fn record(copy: &Copy, bytes: &[&[u8]], segment: u64, synced: u64) -> (Vec<u8>, u32) {
    let body = postcard::to_stdvec(copy).expect("a record can be encoded");
    let length: usize = bytes.iter().map(|piece| piece.len()).sum();
    let length = u32::try_from(length).expect("a request has at most 4 MiB");
    assert!(copy.fits(length), "the parts are the bytes");
    let body_length = u32::try_from(body.len()).expect("a layout is short");
    let crc = crc32c_of(bytes);
    let mut rest = Vec::with_capacity(RECORD_HEAD + body.len() + 8);
    rest.extend_from_slice(&body_length.to_le_bytes());
    rest.extend_from_slice(&length.to_le_bytes());
    rest.extend_from_slice(&segment.to_le_bytes());
    rest.extend_from_slice(&synced.to_le_bytes());
    rest.extend_from_slice(&crc.to_le_bytes());
    rest.resize(RECORD_HEAD - 8, 0);
    rest.extend_from_slice(&body);
    rest.resize(rest.len().next_multiple_of(8), 0);
    let mut record = Vec::with_capacity(8 + rest.len());
    record.extend_from_slice(RECORD_MAGIC);
    record.extend_from_slice(&crc32c_of(&[&rest]).to_le_bytes());
    record.extend_from_slice(&rest);
    (record, crc)
}

/// Zeros behind a record's bytes.
#[must_use]
pub fn padding(length: usize) -> &'static [u8] {
    &[0; 8][..length.next_multiple_of(8) - length]
}

/// What a segment's file has; nothing where it is none of this server.
#[must_use]
pub fn parse(file: &[u8], identity: Identity, segment: u64) -> Parsed {
    let mut parsed = Parsed::default();
    if file.get(..SEGMENT_HEAD) != Some(&segment_head(identity, segment)[..]) {
        parsed.is_damaged = !file.is_empty();
        return parsed;
    }
    let mut at = SEGMENT_HEAD;
    // Here something did not fit: damage, where a later record says that it was synced.
    let mut bad_at = None;
    while at < file.len() {
        let Some((found, end, synced)) = record_at(file, at, segment) else {
            bad_at.get_or_insert(at as u64);
            match next_record(file, at + 8) {
                Some(next) => at = next,
                None => break,
            }
            continue;
        };
        parsed.is_damaged |= bad_at.is_some_and(|bad| bad < synced);
        match found {
            // Behind a record that was never synced none was answered; to lay it all the same is no harm.
            Some(found) => parsed.records.push(found),
            None => {
                bad_at.get_or_insert(at as u64);
            }
        }
        at = end;
    }
    parsed
}

/// A record whose head fits, its end, and what it says is synced; none inside where its bytes do not fit.
fn record_at(file: &[u8], at: usize, segment: u64) -> Option<(Option<Found>, usize, u64)> {
    let mut reader = Reader::new(file.get(at..)?);
    if reader.take(4).ok()? != RECORD_MAGIC {
        return None;
    }
    let crc = reader.u32().ok()?;
    let body_length = usize::try_from(reader.u32().ok()?).ok()?;
    let length = reader.u32().ok()?;
    let is_of = reader.u64().ok()? == segment;
    let synced = reader.u64().ok()?;
    let bytes_crc = reader.u32().ok()?;
    let body_at = at + RECORD_HEAD;
    let bytes_at = body_at.checked_add(body_length)?.checked_next_multiple_of(8)?;
    if !is_of || crc != crc32c_of(&[file.get(at + 8..bytes_at)?]) {
        return None;
    }
    let copy: Copy = postcard::from_bytes(file.get(body_at..body_at + body_length)?).ok()?;
    copy.layout.check().ok()?;
    if !copy.fits(length) {
        return None;
    }
    let end = bytes_at.checked_add(usize::try_from(length).ok()?)?;
    let bytes = file.get(bytes_at..end).filter(|bytes| crc32c_of(&[bytes]) == bytes_crc);
    let found = bytes.map(|_| Found { copy, bytes_at: bytes_at as u64, length, crc: bytes_crc });
    Some((found, end.checked_next_multiple_of(8)?, synced))
}

fn next_record(file: &[u8], from: usize) -> Option<usize> {
    let mut places = (from..file.len()).step_by(8);
    places.find(|at| file.get(*at..*at + 4) == Some(&RECORD_MAGIC[..]))
}

/// CRC-32C of pieces, one behind the other.
#[must_use]
pub fn crc32c_of(pieces: &[&[u8]]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    pieces.iter().for_each(|piece| digest.update(piece));
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use braid_terms::{DiskId, GrantNumber, LayoutGeneration, RaidScheme};

    use super::*;

    const IDENTITY: Identity = Identity { cluster: ClusterId(77), server: ServerId(4) };

    fn copy(sequence: u64, length: u32) -> Copy {
        Copy {
            fact: FactNumber(9),
            number: WriteNumber { grant: GrantNumber { term: 1, counter: 2 }, sequence },
            layout: GroupLayout {
                devices: vec![DeviceId(7)],
                scheme: RaidScheme::Raid1 { copies: 2 },
                strip_size: 4096,
                generation: LayoutGeneration(1),
                disks: vec![DiskId(1), DiskId(2)],
            },
            home: DeviceId(3),
            parts: vec![(10 * sequence, 1), (1000, length - 1)],
            operation: None,
        }
    }

    /// A segment with records of these bytes; where each begins. The file is synced before each record.
    fn segment(records: &[&[u8]], is_synced: bool) -> (Vec<u8>, Vec<usize>) {
        let mut file = segment_head(IDENTITY, 5);
        let mut places = Vec::new();
        for (bytes, sequence) in records.iter().zip(1..) {
            places.push(file.len());
            let synced = if is_synced { file.len() as u64 } else { 0 };
            let length = u32::try_from(bytes.len()).expect("a short one");
            let (head, _) = record(&copy(sequence, length), &[bytes], 5, synced);
            file.extend_from_slice(&head);
            file.extend_from_slice(bytes);
            file.extend_from_slice(padding(bytes.len()));
        }
        (file, places)
    }

    fn sequences(parsed: &Parsed) -> Vec<u64> {
        parsed.records.iter().map(|found| found.copy.number.sequence).collect()
    }

    #[test] // Proves: W-13.
    fn records_come_back_with_their_bytes() {
        let (file, _) = segment(&[b"one", b"twelve bytes", b"12345678"], true);
        let parsed = parse(&file, IDENTITY, 5);
        assert!(!parsed.is_damaged);
        assert_eq!(sequences(&parsed), [1, 2, 3]);
        let found = &parsed.records[1];
        let from = usize::try_from(found.bytes_at).expect("a short file");
        assert_eq!(&file[from..from + found.length as usize], b"twelve bytes");
        assert_eq!(found.copy, copy(2, 12));
    }

    #[test] // Proves: W-13, S-3.
    fn a_torn_tail_is_the_end_at_every_byte() {
        let (file, places) = segment(&[b"one", b"twelve bytes", b"12345678"], true);
        for end in 0..file.len() {
            let ends = places.iter().skip(1).copied().chain([file.len()]);
            let whole = ends.filter(|at| *at <= end);
            let parsed = parse(&file[..end], IDENTITY, 5);
            // The zeros behind the bytes may be missing.
            let count = sequences(&parsed).len();
            let least = whole.count();
            assert!((least..=least + 1).contains(&count), "{end}: {count} of {least}");
            assert_eq!(parsed.is_damaged, (1..SEGMENT_HEAD).contains(&end), "{end}");
        }
    }

    #[test] // Proves: W-13, S-3.
    fn any_flipped_bit_costs_its_record_and_is_told_if_it_was_synced() {
        for is_synced in [true, false] {
            let (file, places) = segment(&[b"one", b"twelve bytes", b"12345678"], is_synced);
            let second = places[1]..places[2];
            for at in second {
                let mut rotten = file.clone();
                rotten[at] ^= 1 << (at % 8);
                let parsed = parse(&rotten, IDENTITY, 5);
                // A bit of the zeros behind the bytes costs nothing.
                if sequences(&parsed) == [1, 2, 3] {
                    assert!(places[2] - 4 <= at, "{at}");
                    continue;
                }
                assert_eq!(sequences(&parsed), [1, 3], "{at}");
                assert_eq!(parsed.is_damaged, is_synced, "{at}");
            }
        }
    }

    #[test] // Proves: S-7.
    fn a_segment_of_another_server_or_number_is_none() {
        let (file, _) = segment(&[b"one"], true);
        let other = Identity { server: ServerId(5), ..IDENTITY };
        assert_eq!(sequences(&parse(&file, other, 5)), [] as [u64; 0]);
        assert_eq!(sequences(&parse(&file, IDENTITY, 6)), [] as [u64; 0]);
        assert_eq!(parse(&[], IDENTITY, 5), Parsed::default());
    }
}
