//! Little endian fields at fixed offsets of a page.

use braid_terms::{GrantNumber, WriteNumber};

/// A page of bytes that is being written; offsets beyond its end are our bug.
pub struct Put<'a>(pub &'a mut [u8]);

impl Put<'_> {
    /// Writes raw bytes.
    pub fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a `u32`.
    pub fn u32(&mut self, at: usize, value: u32) {
        self.bytes(at, &value.to_le_bytes());
    }

    /// Writes a `u64`.
    pub fn u64(&mut self, at: usize, value: u64) {
        self.bytes(at, &value.to_le_bytes());
    }

    /// Writes a `u128`.
    pub fn u128(&mut self, at: usize, value: u128) {
        self.bytes(at, &value.to_le_bytes());
    }

    /// Writes a grant number: term, counter.
    pub fn grant(&mut self, at: usize, value: GrantNumber) {
        self.u64(at, value.term);
        self.u64(at + 8, value.counter);
    }

    /// Writes a write number: grant number, sequence.
    pub fn number(&mut self, at: usize, value: WriteNumber) {
        self.grant(at, value.grant);
        self.u64(at + 16, value.sequence);
    }
}

/// A page of bytes that is being read; offsets beyond its end are our bug.
pub struct Get<'a>(pub &'a [u8]);

impl Get<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0[at..at + N].try_into().expect("the slice has that length")
    }

    /// Reads a `u32`.
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    /// Reads a `u64`.
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    /// Reads a `u128`.
    pub fn u128(&self, at: usize) -> u128 {
        u128::from_le_bytes(self.array(at))
    }

    /// Reads a grant number.
    pub fn grant(&self, at: usize) -> GrantNumber {
        GrantNumber { term: self.u64(at), counter: self.u64(at + 8) }
    }

    /// Reads a write number.
    pub fn number(&self, at: usize) -> WriteNumber {
        WriteNumber { grant: self.grant(at), sequence: self.u64(at + 16) }
    }
}
