//! Geometry: which portion keeps device byte `at`, and the way back.
//! # Theory
//! A device is cut into strips, dealt out to the k data portions in turn; k strips are a stripe.
//! Stripe `s` has its strips at the same place of every portion, from `s * strip_size`:
//! ```text
//! rs/3+2, strips of 4   slot 1   slot 2   slot 3   slot 4   slot 5
//! stripe 0              0..4     4..8     8..12    parity 0 parity 1    portion bytes 0..4
//! stripe 1              12..16   16..20   20..24   parity 0 parity 1    portion bytes 4..8
//! ```
//! Parity stays on the last m slots: which disks these are is drawn for each device, so parity
//! spreads over the cluster without turning inside a device, a file shorter than a strip needs
//! its first portion and the parity only, and data portion `u` is the same bytes for every reader.
//! A mirror is k = 1: all slots hold the device's bytes as they are.
//!
//! Units: a *unit* counts a row's strips from 0, data before parity; unit `u` lies on slot `u + 1`.
//! # Invariants
//! G1 `locate` and `content` are inverses on data.
//! G2 The content of all data portions of a device is as long as the device.
//! # Source
//! G-1, G-2, G-9. Departure: none.

use std::fmt;
use std::ops::Range;

use braid_terms::{
    GroupLayout, PortionIndex, PortionPlace, RaidScheme, STRIP_SIZE_MAX, STRIP_SIZE_MIN,
    SchemeError,
};

/// How the bytes of a device lie on its portions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Geometry {
    /// Checked.
    scheme: RaidScheme,
    /// k, 1 to 32.
    data: u64,
    /// Exponent of two of the strip size, 9 to 22.
    strip_shift: u32,
}

/// Why a scheme and a strip size are no geometry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GeometryError {
    /// The scheme's counts are out of bounds.
    Scheme(SchemeError),
    /// Not a power of two from 512 bytes to 4 MiB.
    StripSize(u32),
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme(error) => error.fmt(f),
            Self::StripSize(size) => {
                write!(f, "strip size {size} is no power of two from 512 bytes to 4 MiB")
            }
        }
    }
}

impl std::error::Error for GeometryError {}

/// What a byte of a portion's content is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// This byte of the device (with mirrors in each slot).
    Data { device_at: u64 },
    /// A byte of parity `parity_index` (from 0) of `stripe`.
    Parity { stripe: u64, parity_index: usize },
}

/// Bytes that follow each other both in the device and in one portion: part of one strip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The stripe.
    pub stripe: u64,
    /// The data unit, 0 to k-1.
    pub unit: usize,
    /// The slot of that unit.
    pub slot: PortionIndex,
    /// First byte, in the portion's content.
    pub portion_at: u64,
    /// First byte, in the device.
    pub device_at: u64,
    /// Bytes, 1 to the strip size.
    pub size: u32,
}

impl Segment {
    /// The segment in bytes of the portion's content.
    #[must_use]
    pub fn portion_range(&self) -> Range<u64> {
        self.portion_at..self.portion_at + u64::from(self.size)
    }

    /// The segment in device bytes.
    #[must_use]
    pub fn device_range(&self) -> Range<u64> {
        self.device_at..self.device_at + u64::from(self.size)
    }
}

impl Geometry {
    /// Errors: the scheme's counts or the strip size (bytes) are out of bounds.
    pub fn new(scheme: RaidScheme, strip_size: u32) -> Result<Self, GeometryError> {
        let scheme = scheme.check().map_err(GeometryError::Scheme)?;
        if !strip_size.is_power_of_two() || !(STRIP_SIZE_MIN..=STRIP_SIZE_MAX).contains(&strip_size)
        {
            return Err(GeometryError::StripSize(strip_size));
        }
        let data = u64::try_from(scheme.data()).expect("at most 32");
        Ok(Self { scheme, data, strip_shift: strip_size.trailing_zeros() })
    }

    /// The geometry of a group's devices.
    ///
    /// Errors: as `new`; none for a layout that passed its `check`.
    pub fn of_layout(layout: &GroupLayout) -> Result<Self, GeometryError> {
        Self::new(layout.scheme, layout.strip_size)
    }

    /// The scheme.
    #[must_use]
    pub fn scheme(&self) -> RaidScheme {
        self.scheme
    }

    /// Bytes of a strip.
    #[must_use]
    pub fn strip_size(&self) -> u32 {
        1 << self.strip_shift
    }

    /// Device bytes of a stripe: k strips.
    #[must_use]
    pub fn stripe_size(&self) -> u64 {
        self.data << self.strip_shift
    }

    /// k.
    #[must_use]
    pub fn data(&self) -> usize {
        self.scheme.data()
    }

    /// m.
    #[must_use]
    pub fn parity(&self) -> usize {
        self.scheme.parity()
    }

    /// k + m.
    #[must_use]
    pub fn portions(&self) -> usize {
        self.scheme.portions()
    }

    /// The slot of `unit`, which is below k + m.
    #[must_use]
    pub fn slot(&self, unit: usize) -> PortionIndex {
        assert!(unit < self.portions(), "unit {unit} of {}", self.portions());
        PortionIndex::from_zero_based(unit)
    }

    /// The unit that `slot` holds in every stripe; data below k, parity from k.
    #[must_use]
    pub fn unit(&self, slot: PortionIndex) -> usize {
        let unit = slot.zero_based();
        assert!(unit < self.portions(), "slot {slot} of {}", self.portions());
        unit
    }

    /// Whether `slot` holds device bytes as they are: a data portion, or any copy of a mirror.
    #[must_use]
    pub fn holds_data(&self, slot: PortionIndex) -> bool {
        self.unit(slot) < self.data() || self.data == 1
    }

    /// Finds the place of the device byte `at`, with the `size` of what follows it in its strip.
    ///
    /// Units: `at` in device bytes, `portion_at` in bytes of the portion's content.
    /// Errors: none; every `at` has a place. Source: G-1.
    #[must_use]
    pub fn locate(&self, at: u64) -> Segment {
        let strip_index = at >> self.strip_shift;
        let in_strip = at & self.strip_mask();
        let stripe = strip_index / self.data;
        let unit = usize::try_from(strip_index % self.data).expect("below k");
        Segment {
            stripe,
            unit,
            slot: self.slot(unit),
            // Cannot overflow: a portion's content is never longer than its device.
            portion_at: (stripe << self.strip_shift) | in_strip,
            device_at: at,
            size: self.strip_size() - u32::try_from(in_strip).expect("below the strip size"),
        }
    }

    /// `locate` as slot and byte only.
    #[must_use]
    pub fn place(&self, at: u64) -> PortionPlace {
        let found = self.locate(at);
        PortionPlace { slot: found.slot, at: found.portion_at }
    }

    /// What the byte `portion_at` of the content of `slot` is: the way back from `locate`.
    ///
    /// Units: bytes of the portion's content. `None`: the device byte would be above 2^64 - 1.
    /// Source: G-1.
    #[must_use]
    pub fn content(&self, slot: PortionIndex, portion_at: u64) -> Option<Content> {
        let unit = self.unit(slot);
        let stripe = portion_at >> self.strip_shift;
        if !self.holds_data(slot) {
            return Some(Content::Parity { stripe, parity_index: unit - self.data() });
        }
        let data_unit = if self.data == 1 { 0 } else { u64::try_from(unit).ok()? };
        let strip_index = stripe.checked_mul(self.data)?.checked_add(data_unit)?;
        let strip_at = strip_index.checked_mul(u64::from(self.strip_size()))?;
        Some(Content::Data { device_at: strip_at | (portion_at & self.strip_mask()) })
    }

    /// Bytes of the content of `slot` when the device is `device_length` bytes long. Parity is as
    /// long as the longest data strip of its row.
    ///
    /// Source: G-9.
    #[must_use]
    pub fn portion_length(&self, device_length: u64, slot: PortionIndex) -> u64 {
        let stripe = device_length / self.stripe_size();
        // Cannot overflow: strips before the length are part of the device.
        (stripe << self.strip_shift) + self.strip_length(device_length, stripe, slot)
    }

    /// Bytes of the strip of `slot` in `stripe` when the device is `device_length` bytes long, 0
    /// to the strip size.
    ///
    /// Source: G-9.
    #[must_use]
    pub fn strip_length(&self, device_length: u64, stripe: u64, slot: PortionIndex) -> u64 {
        let strip_size = u64::from(self.strip_size());
        let Some(stripe_at) = stripe.checked_mul(self.stripe_size()) else { return 0 };
        let unit = self.unit(slot);
        // Parity is as long as the first data strip: no other is longer.
        let data_unit = if unit < self.data() { u64::try_from(unit).expect("below 32") } else { 0 };
        let before = data_unit * strip_size;
        device_length.saturating_sub(stripe_at).saturating_sub(before).min(strip_size)
    }

    /// The device bytes of `stripe`, cut off at 2^64 - 1.
    #[must_use]
    pub fn stripe_range(&self, stripe: u64) -> Range<u64> {
        let start = stripe.saturating_mul(self.stripe_size());
        start..start.saturating_add(self.stripe_size())
    }

    /// The stripes that the device bytes `range` touch; none for no bytes.
    #[must_use]
    pub fn stripes(&self, range: Range<u64>) -> Range<u64> {
        let first = range.start / self.stripe_size();
        if range.is_empty() {
            return first..first;
        }
        first..(range.end - 1) / self.stripe_size() + 1
    }

    /// The stripes of which the device bytes `range` hold every byte.
    #[must_use]
    pub fn full_stripes(&self, range: Range<u64>) -> Range<u64> {
        let first = range.start.div_ceil(self.stripe_size());
        first..(range.end / self.stripe_size()).max(first)
    }

    /// Whether the device bytes `range` are whole stripes, and at least one.
    #[must_use]
    pub fn is_full_stripes(&self, range: Range<u64>) -> bool {
        let stripe_size = self.stripe_size();
        !range.is_empty()
            && range.start.is_multiple_of(stripe_size)
            && range.end.is_multiple_of(stripe_size)
    }

    /// Cuts the device bytes `range` at strip edges, upwards.
    ///
    /// Source: G-1.
    #[must_use]
    pub fn segments(&self, range: Range<u64>) -> Segments {
        Segments { geometry: *self, rest: range }
    }

    /// The smallest range of portion bytes that holds all that the device bytes `range` have in
    /// `stripe`, over all units: what of each strip of the row a write of `range` has to look at.
    /// Empty if they have nothing there.
    #[must_use]
    pub fn row_range(&self, stripe: u64, range: Range<u64>) -> Range<u64> {
        let stripe_range = self.stripe_range(stripe);
        let start = range.start.max(stripe_range.start);
        let end = range.end.min(stripe_range.end);
        let row_at = stripe.saturating_mul(u64::from(self.strip_size()));
        if start >= end {
            return row_at..row_at;
        }
        let first = self.locate(start).portion_range();
        if end - start <= first.end - first.start {
            return first.start..first.start + (end - start);
        }
        // The first strip is touched to its end and the next one from its start.
        row_at..first.end
    }

    fn strip_mask(&self) -> u64 {
        u64::from(self.strip_size()) - 1
    }
}

/// The segments of a range of device bytes; see [`Geometry::segments`].
#[derive(Clone, Debug)]
pub struct Segments {
    geometry: Geometry,
    rest: Range<u64>,
}

impl Iterator for Segments {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        if self.rest.is_empty() {
            return None;
        }
        let mut segment = self.geometry.locate(self.rest.start);
        let left = self.rest.end - self.rest.start;
        segment.size = segment.size.min(u32::try_from(left).unwrap_or(u32::MAX));
        self.rest.start += u64::from(segment.size);
        Some(segment)
    }
}

#[cfg(test)]
#[path = "geometry_test.rs"]
mod tests;
