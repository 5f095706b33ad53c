//! Little endian bytes, written and parsed: what the pages of `docs/format/` are made of.
//!
//! # Failure
//! A `Reader` refuses what is too short; it never panics and never allocates more than it was given.

use bytes::Bytes;

/// Bytes from outside do not have the form that they should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Takes values from the front of bytes.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from their start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N).map(|taken| taken.try_into().expect("taken with this length"))
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Eight bytes with a sign.
    pub fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A length in one byte, then so many bytes.
    pub fn short(&mut self) -> Result<Bytes, Malformed> {
        let length = self.u8()?;
        self.take(length.into()).map(Bytes::copy_from_slice)
    }

    /// A length in four bytes, then so many bytes.
    pub fn long(&mut self) -> Result<Bytes, Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        self.take(length).map(Bytes::copy_from_slice)
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// A name or another byte string of at most 255 bytes behind its length.
pub fn put_short(target: &mut Vec<u8>, bytes: &[u8]) {
    target.push(u8::try_from(bytes.len()).expect("checked when it came in"));
    target.extend_from_slice(bytes);
}

/// A byte string behind its length.
pub fn put_long(target: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("checked when it came in");
    target.extend_from_slice(&length.to_le_bytes());
    target.extend_from_slice(bytes);
}
