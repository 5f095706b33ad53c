//! The bytes of the log file: a header, then framed records, each with its checksum.
//!
//! # Theory
//! ```text
//! | "braidlog" | version 4 | cluster 16 | server 4 | CRC-32C 4 | record | record | ...
//! record: | magic 4 | length 4 | synced 8 | CRC-32C 4 | body ... |
//! ```
//! little endian; the checksum of a record covers length, `synced` and body. `synced` is a length of
//! the file that was durable when the record was written: it tells a torn tail, which may be cut,
//! from damage, which may not.
//! # Invariants
//! L1 What was synced is never cut: a bad record below a later good one's `synced` is damage.
//! # Source
//! S-3, S-6.

use std::fmt;

use braid_terms::{ClusterId, ServerId};
use bytes::{Buf, BufMut};
use crc_fast::CrcAlgorithm;

/// Bytes of the header.
pub(crate) const HEADER_SIZE: usize = 36;

/// Whose log it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogIdentity {
    pub(crate) cluster: ClusterId,
    pub(crate) server: ServerId,
}

/// Why a log file cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LogFault {
    /// Its header is not ours, or not whole.
    Header,
    /// It is of a version that we do not read.
    Version(u32),
    /// It belongs to another cluster or server.
    Identity(LogIdentity),
    /// What was durable is damaged, from this byte on.
    Damaged(u64),
}

impl fmt::Display for LogFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("it does not begin as a log does"),
            Self::Version(version) => write!(f, "it is of version {version}"),
            Self::Identity(identity) => {
                write!(f, "it is of server {} of cluster {}", identity.server, identity.cluster)
            }
            Self::Damaged(at) => write!(f, "it is damaged at byte {at}"),
        }
    }
}

/// The header of a log.
pub(crate) fn header(identity: LogIdentity) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_SIZE);
    bytes.put_slice(LOG_MAGIC);
    bytes.put_u32_le(LOG_VERSION);
    bytes.put_u128_le(identity.cluster.0);
    bytes.put_u32_le(identity.server.0);
    bytes.put_u32_le(crc32c(&[&bytes]));
    assert_eq!(bytes.len(), HEADER_SIZE);
    bytes
}

/// Appends a record's frame to `bytes`.
pub(crate) fn put_record(bytes: &mut Vec<u8>, synced: u64, body: &[u8]) {
    let length = u32::try_from(body.len()).expect("an entry is far below 4 GiB");
    bytes.put_u32_le(RECORD_MAGIC);
    bytes.put_u32_le(length);
    bytes.put_u64_le(synced);
    bytes.put_u32_le(record_crc(length, synced, body));
    bytes.put_slice(body);
}

/// The bodies of all whole records, and the length up to which the file is good.
///
/// Errors: `LogFault`.
pub(crate) fn read(bytes: &[u8], identity: LogIdentity) -> Result<(Vec<&[u8]>, u64), LogFault> {
    check_header(bytes, identity)?;
    let mut bodies = Vec::new();
    let mut at = HEADER_SIZE;
    while let Some(record) = record_at(bytes, at) {
        bodies.push(record.body);
        at = record.end;
    }
    // Behind the first bad record: nothing that is good may say that it was durable.
    for later in at + 1..bytes.len() {
        if record_at(bytes, later).is_some_and(|record| record.synced > at as u64) {
            return Err(LogFault::Damaged(at as u64));
        }
    }
    Ok((bodies, at as u64))
}

fn check_header(bytes: &[u8], identity: LogIdentity) -> Result<(), LogFault> {
    let head = bytes.get(..HEADER_SIZE).ok_or(LogFault::Header)?;
    let mut fields = head.strip_prefix(LOG_MAGIC.as_slice()).ok_or(LogFault::Header)?;
    let version = fields.get_u32_le();
    let cluster = ClusterId(fields.get_u128_le());
    let found = LogIdentity { cluster, server: ServerId(fields.get_u32_le()) };
    if fields.get_u32_le() != crc32c(&[&head[..HEADER_SIZE - 4]]) {
        return Err(LogFault::Header);
    }
    if version != LOG_VERSION {
        return Err(LogFault::Version(version));
    }
    if found == identity { Ok(()) } else { Err(LogFault::Identity(found)) }
}

struct Record<'a> {
    synced: u64,
    body: &'a [u8],
    end: usize,
}

/// The record that begins at `at`, if one does.
fn record_at(bytes: &[u8], at: usize) -> Option<Record<'_>> {
    let mut head = bytes.get(at..)?.get(..RECORD_HEAD)?;
    if head.get_u32_le() != RECORD_MAGIC {
        return None;
    }
    let length = head.get_u32_le();
    let synced = head.get_u64_le();
    let crc = head.get_u32_le();
    let begin = at + RECORD_HEAD;
    let end = begin.checked_add(usize::try_from(length).ok()?)?;
    let body = bytes.get(begin..end)?;
    (record_crc(length, synced, body) == crc).then_some(Record { synced, body, end })
}

fn record_crc(length: u32, synced: u64, body: &[u8]) -> u32 {
    crc32c(&[&length.to_le_bytes(), &synced.to_le_bytes(), body])
}

/// CRC-32C of several pieces, one behind the other.
pub(crate) fn crc32c(pieces: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    pieces.iter().for_each(|piece| digest.update(piece));
    u32::try_from(digest.finalize()).expect("32 bits of result")
}

const LOG_MAGIC: &[u8; 8] = b"braidlog";

const LOG_VERSION: u32 = 1;

const RECORD_MAGIC: u32 = 0xb1a1_d109;

/// Bytes of a record before its body.
const RECORD_HEAD: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: LogIdentity = LogIdentity { cluster: ClusterId(7), server: ServerId(3) };

    fn three_records(synced_of_last: u64) -> Vec<u8> {
        let mut bytes = header(OURS);
        for (number, synced) in [(0, 36), (1, 36), (2, synced_of_last)] {
            put_record(&mut bytes, synced, &[number; 50]);
        }
        bytes
    }

    #[test]
    fn records_come_back_in_order() {
        let bytes = three_records(36);
        let (bodies, end) = read(&bytes, OURS).unwrap();
        assert_eq!(bodies, [[0; 50], [1; 50], [2; 50]]);
        assert_eq!(end, bytes.len() as u64);
    }

    #[test] // Proves: S-3.
    fn a_tail_torn_anywhere_is_cut_to_whole_records() {
        let bytes = three_records(36);
        for length in HEADER_SIZE..bytes.len() {
            let (bodies, end) = read(&bytes[..length], OURS).unwrap();
            assert_eq!(bodies.len(), (length - HEADER_SIZE) / 70);
            assert_eq!(end as usize, HEADER_SIZE + bodies.len() * 70);
        }
    }

    #[test] // Proves: S-3.
    fn damage_of_what_was_durable_is_not_a_torn_tail() {
        // The last record says that the first two were durable when it was written.
        let bytes = three_records(36 + 2 * 70);
        for at in HEADER_SIZE..HEADER_SIZE + 2 * 70 {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            let begin = HEADER_SIZE + (at - HEADER_SIZE) / 70 * 70;
            assert_eq!(read(&bad, OURS).unwrap_err(), LogFault::Damaged(begin as u64));
        }
        for at in HEADER_SIZE + 2 * 70..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert_eq!(read(&bad, OURS).unwrap().0.len(), 2);
        }
    }

    #[test]
    fn a_log_of_others_is_refused() {
        let theirs = LogIdentity { server: ServerId(4), ..OURS };
        let bytes = three_records(36);
        assert_eq!(read(&bytes, theirs).unwrap_err(), LogFault::Identity(OURS));
        for at in 0..HEADER_SIZE {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(read(&bad, OURS).unwrap_err(), LogFault::Header);
        }
        assert_eq!(read(&bytes[..20], OURS).unwrap_err(), LogFault::Header);
    }
}
