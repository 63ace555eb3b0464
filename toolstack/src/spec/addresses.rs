//! Addresses of qubes behind netvms: those of declared ones are in the document, and a disposable qube gets one that is free.

use crate::qubes::{QubeError, Qubes};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use uuid::Uuid;

/// The lengths that a prefix may have: shorter ones are more than anybody has, and longer ones leave too few.
const LENGTHS: std::ops::RangeInclusive<u32> = 8..=28;

/// No range of addresses: `10.137.0.0/16` is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a range of IPv4 addresses: 10.137.0.0/16; a length of 8 to 28, and nothing beyond it")]
pub struct PrefixError(String);

/// A range of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    first: u32,
    length: u32,
}

impl Prefix {
    fn size(self) -> u32 {
        1 << (32 - self.length)
    }

    /// Whether it is an address that a qube can have: the first and the last mean something else.
    #[must_use]
    pub fn has(self, address: Ipv4Addr) -> bool {
        let place = u32::from(address).wrapping_sub(self.first);
        (1..self.size() - 1).contains(&place)
    }

    /// Whether some address is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        let shared = self.length.min(other.length);
        (self.first ^ other.first) >> (32 - shared) == 0
    }

    /// One for a qube of that UUID that is not taken; `None` when all are taken.
    pub(super) fn free(self, uuid: Uuid, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        let bytes = uuid.as_bytes();
        let drawn = u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        let there = self.size() - 2;
        (0..there)
            .map(|more| Ipv4Addr::from(self.first + 1 + (drawn % there + more) % there))
            .find(|address| !taken.contains(address))
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let parse = || {
            let (first, length) = text.split_once('/')?;
            let first = u32::from(first.parse::<Ipv4Addr>().ok()?);
            let length = length.parse().ok().filter(|length| LENGTHS.contains(length))?;
            let prefix = Self { first, length };
            (first % prefix.size() == 0).then_some(prefix)
        };
        parse().filter(|prefix| prefix.to_string() == text).ok_or_else(|| PrefixError(text.to_owned()))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.length)
    }
}

impl TryFrom<String> for Prefix {
    type Error = PrefixError;

    fn try_from(text: String) -> Result<Self, PrefixError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl Qubes {
    /// The addresses that interfaces of the host have.
    pub(super) fn addresses_in_use(&self) -> Result<BTreeSet<Ipv4Addr>, QubeError> {
        let mut taken = BTreeSet::new();
        for qube in self.list()? {
            for nic in self.list_nics(&qube)? {
                // Not by the backend's record, which is its domain's to write.
                let given = self.read(&format!("{}/ip", nic.address.libxl_path()))?;
                taken.extend(given.and_then(|given| given.parse::<Ipv4Addr>().ok()));
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_written_in_one_way() {
        for good in ["10.137.0.0/16", "10.0.0.0/8", "192.168.7.16/28"] {
            assert_eq!(good.parse::<Prefix>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "10.137.0.0",
            "10.137.0.0/",
            "10.137.0.0/7",
            "10.137.0.0/29",
            "10.137.0.1/16",
            "10.137.0/16",
            "10.137.0.0/016",
            "10.137.0.0/+16",
            "10.137.0.0/16 ",
            "::/16",
        ] {
            assert_eq!(bad.parse::<Prefix>(), Err(PrefixError(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn the_first_and_the_last_are_nobodys() {
        let prefix: Prefix = "192.168.7.16/28".parse().unwrap();
        let has = |last: u8| prefix.has(Ipv4Addr::new(192, 168, 7, last));
        assert_eq!((15..=32).filter(|last| has(*last)).collect::<Vec<_>>(), (17..=30).collect::<Vec<_>>());
    }

    #[test]
    fn ranges_overlap_when_one_is_in_the_other() {
        let overlap = |one: &str, other: &str| {
            let (one, other): (Prefix, Prefix) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(one.overlaps(other), other.overlaps(one));
            one.overlaps(other)
        };
        assert!(overlap("10.137.0.0/16", "10.136.0.0/14"));
        assert!(overlap("10.137.0.0/16", "10.137.255.240/28"));
        assert!(overlap("10.137.0.0/16", "10.137.0.0/16"));
        assert!(!overlap("10.137.0.0/16", "10.138.0.0/16"));
        assert!(!overlap("10.137.0.0/28", "10.137.0.16/28"));
    }

    #[test]
    fn each_free_address_is_found_once_and_then_there_is_none() {
        let prefix: Prefix = "192.168.7.16/28".parse().unwrap();
        let mut taken = BTreeSet::new();
        while let Some(address) = prefix.free(Uuid::max(), &taken) {
            assert!(prefix.has(address) && taken.insert(address), "{address}");
        }
        assert_eq!(taken.len(), 14);
    }
}
