//! Names of portion files: `DEVICE-K-N`, as in `727-3-4`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{DeviceId, PORTIONS_MAX, PortionIndex};

/// The K-th (from 1) of the N portions of a device; prints and parses as `727-3-4`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PortionName {
    /// The device.
    pub device: DeviceId,
    /// K, from 1.
    pub index: PortionIndex,
    /// N.
    pub count: u8,
}

/// Why a text is no portion name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PortionNameError {
    /// Not three decimal numbers without leading zeros, joined by `-`.
    Form,
    /// A device number of 0, a K outside 1 to N, or an N above `PORTIONS_MAX`.
    Range,
}

impl fmt::Display for PortionNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "a portion name is DEVICE-K-N in decimal numbers, like 727-3-4",
            Self::Range => "a portion name counts K from 1 to N, and N is at most 32",
        })
    }
}

impl std::error::Error for PortionNameError {}

impl PortionName {
    /// The subfolder of `portions/` that keeps this portion: a hash of the device number, 0 to 255.
    ///
    /// The upper byte of the device number times the 64-bit golden ratio (see `docs/format/`).
    #[must_use]
    pub fn folder(&self) -> u8 {
        (self.device.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
    }

    /// The path below the disk's folder, like `portions/3f/727-3-4`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("portions/{:02x}/{self}", self.folder())
    }
}

impl fmt::Display for PortionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.device, self.index, self.count)
    }
}

impl FromStr for PortionName {
    type Err = PortionNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        fn number<T: FromStr>(part: Option<&str>) -> Result<T, PortionNameError> {
            let part = part.ok_or(PortionNameError::Form)?;
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if !digits || (part.len() > 1 && part.starts_with('0')) {
                return Err(PortionNameError::Form);
            }
            part.parse().map_err(|_| PortionNameError::Range)
        }
        let mut parts = text.split('-');
        let device = DeviceId(number(parts.next())?);
        let index = PortionIndex(number(parts.next())?);
        let count: u8 = number(parts.next())?;
        if parts.next().is_some() {
            return Err(PortionNameError::Form);
        }
        let in_range =
            device.0 > 0 && (1..=count).contains(&index.0) && usize::from(count) <= PORTIONS_MAX;
        if in_range { Ok(Self { device, index, count }) } else { Err(PortionNameError::Range) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_and_parse() {
        let name = PortionName { device: DeviceId(727), index: PortionIndex(3), count: 4 };
        assert_eq!(name.to_string(), "727-3-4");
        assert_eq!("727-3-4".parse(), Ok(name));
    }

    #[test]
    fn bad_names_are_refused() {
        for text in
            ["", "727", "727-3", "727-3-4-5", "727-3-x", "0727-3-4", "-3-4", "+7-3-4", "7-3-4 "]
        {
            assert_eq!(text.parse::<PortionName>(), Err(PortionNameError::Form), "{text}");
        }
        for text in
            ["727-0-4", "727-5-4", "0-1-1", "727-1-33", "727-1-300", "99999999999999999999-1-2"]
        {
            assert_eq!(text.parse::<PortionName>(), Err(PortionNameError::Range), "{text}");
        }
    }
}
