//! Where a group lives: its devices, scheme, strip size, and the disk of every portion.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    DeviceId, DiskId, LayoutGeneration, PortionIndex, PortionName, RaidScheme, STRIP_SIZE_MAX,
    STRIP_SIZE_MIN, SchemeError,
};

/// The definition of a group's devices: one file device, or a directory device and its meta-data
/// device, which share scheme, strip size and disks, so that *slot* K of the group keeps portion K
/// of each of its devices on one disk.
///
/// Source: O-1, F-8. In a request it is only a hint where to look.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct GroupLayout {
    /// One device, or directory device then meta-data device. The first one names the group.
    pub devices: Vec<DeviceId>,
    /// How the devices are spread.
    pub scheme: RaidScheme,
    /// Bytes of a strip: a power of two from 512 to 4 MiB.
    pub strip_size: u32,
    /// Grows with each relocation.
    pub generation: LayoutGeneration,
    /// The disk of slot 1, 2, ... n.
    pub disks: Vec<DiskId>,
}

/// Where one byte of a device is: a slot and the byte in that portion's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortionPlace {
    /// The slot.
    pub slot: PortionIndex,
    /// The byte in the portion's content.
    pub at: u64,
}

/// Why bytes from outside are no layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum LayoutError {
    /// Not one or two devices, or a device number of 0.
    Devices,
    /// The scheme's counts are out of bounds.
    Scheme(SchemeError),
    /// Strip size is no power of two in bounds.
    StripSize,
    /// Not one disk for each portion.
    Disks,
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices => f.write_str("a group has one or two devices with numbers above 0"),
            Self::Scheme(error) => error.fmt(f),
            Self::StripSize => {
                f.write_str("a strip size is a power of two from 512 bytes to 4 MiB")
            }
            Self::Disks => f.write_str("a layout names one disk for each portion"),
        }
    }
}

impl std::error::Error for LayoutError {}

impl GroupLayout {
    /// The number that names the group: that of its first device.
    #[must_use]
    pub fn group(&self) -> DeviceId {
        self.devices[0]
    }

    /// Name of the portion file of device `device_index` (0 or 1) at `slot`.
    #[must_use]
    pub fn portion_name(&self, device_index: usize, slot: PortionIndex) -> PortionName {
        PortionName {
            device: self.devices[device_index],
            index: slot,
            count: u8::try_from(self.scheme.portions()).expect("checked with the scheme"),
        }
    }

    /// All slots, from 1.
    pub fn slots(&self) -> impl Iterator<Item = PortionIndex> + use<> {
        (0..self.scheme.portions()).map(PortionIndex::from_zero_based)
    }

    /// The disk of `slot`.
    #[must_use]
    pub fn disk(&self, slot: PortionIndex) -> DiskId {
        self.disks[slot.zero_based()]
    }

    /// Checks what a decoder let through; every layout from disk or wire passes here before use.
    ///
    /// Errors: the first `LayoutError` found.
    pub fn check(&self) -> Result<(), LayoutError> {
        if !(1..=2).contains(&self.devices.len()) || self.devices.iter().any(|d| d.0 == 0) {
            return Err(LayoutError::Devices);
        }
        self.scheme.check().map_err(LayoutError::Scheme)?;
        let size = self.strip_size;
        if !size.is_power_of_two() || !(STRIP_SIZE_MIN..=STRIP_SIZE_MAX).contains(&size) {
            return Err(LayoutError::StripSize);
        }
        if self.disks.len() != self.scheme.portions() {
            return Err(LayoutError::Disks);
        }
        Ok(())
    }
}
