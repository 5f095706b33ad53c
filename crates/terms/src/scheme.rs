//! RAID schemes by name: `raid0/k`, `raid1/n`, `raid5/k+1`, `raid6/k+2`, `rs/k+m`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::PORTIONS_MAX;

/// How a device is spread: k data portions, m parity portions (or copies).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum RaidScheme {
    /// k data portions, nothing to lose.
    Raid0 { data: u8 },
    /// n copies.
    Raid1 { copies: u8 },
    /// k data portions and one XOR parity.
    Raid5 { data: u8 },
    /// k data portions and two parities.
    Raid6 { data: u8 },
    /// k data portions and m parities, systematic Cauchy.
    Rs { data: u8, parity: u8 },
}

/// Why a text or a pair of counts is no scheme.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SchemeError {
    /// The text has none of the five forms.
    Form,
    /// A count is 0 or there are more than `PORTIONS_MAX` portions.
    Count,
}

impl fmt::Display for SchemeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Form => "a scheme is raid0/K, raid1/N, raid5/K+1, raid6/K+2 or rs/K+M",
            Self::Count => "a scheme has at least one data portion and at most 32 portions",
        })
    }
}

impl std::error::Error for SchemeError {}

impl RaidScheme {
    /// k: portions of which any that many rebuild the rest.
    #[must_use]
    pub fn data(self) -> usize {
        usize::from(match self {
            Self::Raid0 { data } | Self::Raid5 { data } | Self::Raid6 { data } => data,
            Self::Rs { data, .. } => data,
            Self::Raid1 { .. } => 1,
        })
    }

    /// m: portions that may be lost.
    #[must_use]
    pub fn parity(self) -> usize {
        match self {
            Self::Raid0 { .. } => 0,
            Self::Raid1 { copies } => usize::from(copies).saturating_sub(1),
            Self::Raid5 { .. } => 1,
            Self::Raid6 { .. } => 2,
            Self::Rs { parity, .. } => usize::from(parity),
        }
    }

    /// n = k + m.
    #[must_use]
    pub fn portions(self) -> usize {
        self.data() + self.parity()
    }

    /// Whether counts are within bounds; every scheme from outside passes here.
    ///
    /// Errors: `Count`.
    pub fn check(self) -> Result<Self, SchemeError> {
        let copies_bad = matches!(self, Self::Raid1 { copies: 0 });
        if copies_bad || self.data() == 0 || self.portions() > PORTIONS_MAX {
            return Err(SchemeError::Count);
        }
        if matches!(self, Self::Rs { parity: 0, .. }) {
            return Err(SchemeError::Count);
        }
        Ok(self)
    }

    /// The scheme for a new group when only `domains` failure domains are up: the same m with a
    /// smaller k, `raid1` of m+1 copies at the least; `None` where even that does not fit.
    ///
    /// Source: F-7.
    #[must_use]
    pub fn narrowed(self, domains: usize) -> Option<Self> {
        if self.portions() <= domains {
            return Some(self);
        }
        let parity = self.parity();
        let data = domains.checked_sub(parity).filter(|data| *data >= 1)?;
        let data = u8::try_from(data).ok()?;
        Some(match self {
            Self::Raid1 { .. } => return None,
            Self::Raid0 { .. } => Self::Raid0 { data },
            _ if data == 1 => Self::Raid1 { copies: u8::try_from(parity + 1).ok()? },
            Self::Raid5 { .. } => Self::Raid5 { data },
            Self::Raid6 { .. } => Self::Raid6 { data },
            Self::Rs { parity, .. } => Self::Rs { data, parity },
        })
    }
}

impl fmt::Display for RaidScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raid0 { data } => write!(f, "raid0/{data}"),
            Self::Raid1 { copies } => write!(f, "raid1/{copies}"),
            Self::Raid5 { data } => write!(f, "raid5/{data}+1"),
            Self::Raid6 { data } => write!(f, "raid6/{data}+2"),
            Self::Rs { data, parity } => write!(f, "rs/{data}+{parity}"),
        }
    }
}

impl FromStr for RaidScheme {
    type Err = SchemeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (family, counts) = text.split_once('/').ok_or(SchemeError::Form)?;
        let number = |part: &str| -> Result<u8, SchemeError> {
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(SchemeError::Form);
            }
            part.parse().map_err(|_| SchemeError::Count)
        };
        let scheme = match (family, counts.split_once('+')) {
            ("raid0", None) => Self::Raid0 { data: number(counts)? },
            ("raid1", None) => Self::Raid1 { copies: number(counts)? },
            ("raid5", Some((data, "1"))) => Self::Raid5 { data: number(data)? },
            ("raid6", Some((data, "2"))) => Self::Raid6 { data: number(data)? },
            ("rs", Some((data, parity))) => {
                Self::Rs { data: number(data)?, parity: number(parity)? }
            }
            _ => return Err(SchemeError::Form),
        };
        scheme.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_print_and_parse() {
        for text in ["raid0/3", "raid1/3", "raid5/4+1", "raid6/4+2", "rs/4+2", "rs/28+4", "raid1/1"]
        {
            assert_eq!(text.parse::<RaidScheme>().map(|s| s.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "rs", "rs/4", "raid5/4+2", "raid1/2+1", "rs/x+1", "rs/4+2+1", "raid7/3"] {
            assert_eq!(text.parse::<RaidScheme>(), Err(SchemeError::Form), "{text}");
        }
        for text in ["rs/0+2", "rs/4+0", "raid1/0", "rs/30+3", "rs/300+1", "raid0/0"] {
            assert_eq!(text.parse::<RaidScheme>(), Err(SchemeError::Count), "{text}");
        }
    }

    #[test] // Proves: F-7.
    fn narrowing_keeps_m() {
        let check = |domains, expect: Option<&str>| {
            let scheme = RaidScheme::Rs { data: 4, parity: 2 };
            assert_eq!(scheme.narrowed(domains).map(|s| s.to_string()).as_deref(), expect);
        };
        check(9, Some("rs/4+2"));
        check(6, Some("rs/4+2"));
        check(5, Some("rs/3+2"));
        check(4, Some("rs/2+2"));
        check(3, Some("raid1/3"));
        check(2, None);
    }
}
