//! The start of every frame's head, and the bytes of messages.
//!
//! # Theory
//! ```text
//! head   | kind 1 | flags 1 | 0 0 | deadline_ms 4 | id 8 | body: postcard ... |
//! ```
//! little endian. The body is one message in postcard, with nothing behind it.
//! # Failure
//! Bytes from a peer are parsed or refused; no bytes make this panic or allocate more than a small
//! multiple of their own length.

use bytes::{Buf, BufMut, Bytes};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes in front of each body.
pub const HEADER_SIZE: usize = 16;

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// First frame in both directions: who is there, and whether it is welcome.
    Hello = 1,
    /// A call.
    Request = 2,
    /// The end of a call.
    Reply = 3,
    /// The caller does not wait any longer.
    Cancel = 4,
    /// Is somebody there?
    Ping = 5,
    /// Yes.
    Pong = 6,
}

impl FrameKind {
    fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Reply,
            4 => Self::Cancel,
            5 => Self::Ping,
            6 => Self::Pong,
            _ => return None,
        })
    }
}

/// What every head starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the frame is for.
    pub kind: FrameKind,
    /// Of a reply: [`FLAG_UNDECODABLE`], [`FLAG_TOO_LARGE`]; else 0.
    pub flags: u8,
    /// Of a request: how long the caller waits, in milliseconds from its arrival; 0 is not told.
    pub deadline_ms: u32,
    /// Which call; unique within the connection. 0 where there is no call.
    pub id: u64,
}

impl Header {
    /// A header without a call.
    #[must_use]
    pub const fn plain(kind: FrameKind) -> Self {
        Self { kind, flags: 0, deadline_ms: 0, id: 0 }
    }

    /// Splits a head into its header and its body.
    pub fn parse(head: &[u8]) -> Result<(Self, &[u8]), Undecodable> {
        let (mut header, body) = head.split_at_checked(HEADER_SIZE).ok_or(Undecodable)?;
        let kind = FrameKind::parse(header.get_u8()).ok_or(Undecodable)?;
        let flags = header.get_u8();
        // Reserved; a later version may use it, so it is not looked at.
        header.get_u16_le();
        let deadline_ms = header.get_u32_le();
        let id = header.get_u64_le();
        Ok((Self { kind, flags, deadline_ms, id }, body))
    }

    fn put(&self, head: &mut Vec<u8>) {
        head.put_u8(self.kind as u8);
        head.put_u8(self.flags);
        head.put_u16_le(0);
        head.put_u32_le(self.deadline_ms);
        head.put_u64_le(self.id);
    }

    /// A head without a body.
    #[must_use]
    pub fn alone(&self) -> Bytes {
        let mut head = Vec::with_capacity(HEADER_SIZE);
        self.put(&mut head);
        head.into()
    }

    /// A head with `message` as its body.
    #[must_use]
    pub fn with<T: Serialize>(&self, message: &T) -> Bytes {
        let mut head = Vec::with_capacity(HEAD_USUAL);
        self.put(&mut head);
        append(head, message).into()
    }
}

/// A message in bytes.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    append(Vec::with_capacity(HEAD_USUAL), message)
}

/// A message from all of the bytes.
///
/// Errors: the bytes are no such message, or there are bytes behind it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Undecodable> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) | Err(_) => Err(Undecodable),
    }
}

fn append<T: Serialize>(head: Vec<u8>, message: &T) -> Vec<u8> {
    postcard::serialize_with_flavor(message, Append(head))
        .expect("our messages have only sequences of known length, and memory has room")
}

struct Append(Vec<u8>);

impl postcard::ser_flavors::Flavor for Append {
    type Output = Vec<u8>;

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// Bytes that are not what they should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undecodable;

impl std::fmt::Display for Undecodable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the bytes are no message that we know")
    }
}

impl std::error::Error for Undecodable {}

/// The request could not be decoded; the reply has no body.
pub const FLAG_UNDECODABLE: u8 = 1;

/// The answer would be too long; the reply has no body.
pub const FLAG_TOO_LARGE: u8 = 2;

/// Most heads are shorter, in bytes.
const HEAD_USUAL: usize = 128;

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        for kind in 0..=255 {
            let Some(kind) = FrameKind::parse(kind) else { continue };
            let header = Header { kind, flags: 3, deadline_ms: 0x0102_0304, id: u64::MAX - 1 };
            let head = header.with(&("message", 7u32));
            let (again, body) = Header::parse(&head).unwrap();
            assert_eq!(again, header);
            assert_eq!(decode::<(String, u32)>(body).unwrap(), ("message".to_owned(), 7));
        }
    }

    #[test]
    fn trailing_and_missing_bytes_are_refused() {
        let bytes = encode(&(1u64, vec![1u16, 2, 3]));
        assert!(decode::<(u64, Vec<u16>)>(&bytes).is_ok());
        assert_eq!(decode::<(u64, Vec<u16>)>(&bytes[..bytes.len() - 1]), Err(Undecodable));
        assert_eq!(decode::<(u64, Vec<u16>)>(&[&bytes[..], &[0]].concat()), Err(Undecodable));
        assert_eq!(Header::parse(&[2; HEADER_SIZE - 1]), Err(Undecodable));
        assert_eq!(Header::parse(&[0; HEADER_SIZE]), Err(Undecodable));
        assert_eq!(Header::parse(&[7; HEADER_SIZE]), Err(Undecodable));
    }
}
