//! Sizes and bounds that formats, wire and roles agree on.

/// Bytes of a block: the unit of checksums, of journal images and of portion content.
pub const BLOCK_SIZE: usize = 4096;
/// `BLOCK_SIZE` as the exponent of two.
pub const BLOCK_SHIFT: u32 = 12;
/// Smallest strip. Source: G-2.
pub const STRIP_SIZE_MIN: u32 = 512;
/// Largest strip. Source: G-2.
pub const STRIP_SIZE_MAX: u32 = 4 << 20;
/// Strip size of a new device where no policy says otherwise. Source: G-2.
pub const STRIP_SIZE_DEFAULT: u32 = 64 << 10;
/// Most portions of one device, data and parity together.
pub const PORTIONS_MAX: usize = 32;
/// Longest name of a directory entry in bytes.
pub const NAME_MAX: usize = 255;
/// Longest path in bytes.
pub const PATH_MAX: usize = 4096;
/// Longest target of a symbolic link in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// Bytes of a file that live in its meta-data record. Source: G-7.
pub const INLINE_MAX_DEFAULT: usize = 4096;
/// Largest payload of one frame on the wire, in bytes.
pub const PAYLOAD_MAX: usize = 16 << 20;
/// Largest single read or write that a client asks of an owner, in bytes.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;
/// Milliseconds that a lease lasts from when it was asked for. Source: O-4.
pub const LEASE_MS: u64 = 2_000;

/// How often a lease is renewed, in milliseconds: three times before it is over.
pub const RENEW_MS: u64 = 600;
/// Device numbers that one lease of a range covers. Source: O-2.
pub const NUMBER_RANGE_SIZE: u64 = 1 << 20;
