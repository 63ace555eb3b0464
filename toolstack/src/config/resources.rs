//! Pieces of the host that a guest may use without a PCI device: `ioports`, `irqs`, `iomem`.

use serde::{Deserialize, Serialize};

/// What is wrong with such a piece.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// No ports.
    #[error("{0:?} is no port or range of ports in hexadecimal digits (2f8-2ff)")]
    Ports(String),
    /// No interrupt.
    #[error("{0:?} is no number of an interrupt")]
    Irq(String),
    /// No memory.
    #[error(
        "{0:?} is no range of page frames in hexadecimal digits (FIRST,COUNT or FIRST,COUNT@FRAME-IN-THE-GUEST)"
    )]
    Memory(String),
}

/// I/O ports, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoPorts {
    /// The first.
    pub first: u32,
    /// How many; not 0.
    pub number: u32,
}

impl IoPorts {
    /// Reads `2f8` or `2f8-2ff`.
    ///
    /// # Errors
    /// That it is neither.
    pub fn parse(text: &str) -> Result<Self, ResourceError> {
        let parse = || {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let port =
                |text| hex(text).and_then(|port| u32::try_from(port).ok()).filter(|port| *port < u32::MAX);
            let (first, last) = (port(first)?, port(last)?);
            Some(Self { first, number: last.checked_sub(first)? + 1 })
        };
        parse().ok_or_else(|| ResourceError::Ports(text.to_owned()))
    }
}

/// Reads the number of an interrupt, in decimal digits.
pub(super) fn irq(text: &str) -> Result<u32, ResourceError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|number| digits && *number < u32::MAX);
    number.ok_or_else(|| ResourceError::Irq(text.to_owned()))
}

/// Page frames of the host's memory, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoMemory {
    /// The first.
    pub first: u64,
    /// How many.
    pub number: u64,
    /// Where the first is in the guest; `None` for the same place.
    pub gfn: Option<u64>,
}

impl IoMemory {
    /// Reads `a0,20` or `a0,20@1000`.
    ///
    /// # Errors
    /// That it is neither.
    pub fn parse(text: &str) -> Result<Self, ResourceError> {
        let parse = || {
            let (first, rest) = text.split_once(',')?;
            let (number, gfn) = match rest.split_once('@') {
                Some((number, gfn)) => (number, Some(hex(gfn)?)),
                None => (rest, None),
            };
            Some(Self { first: hex(first)?, number: hex(number)?, gfn })
        };
        parse().ok_or_else(|| ResourceError::Memory(text.to_owned()))
    }
}

fn hex(text: &str) -> Option<u64> {
    let text = text.strip_prefix("0x").unwrap_or(text);
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_those_of_xl() {
        assert_eq!(IoPorts::parse("2f8"), Ok(IoPorts { first: 0x2f8, number: 1 }));
        assert_eq!(IoPorts::parse("2f8-2FF"), Ok(IoPorts { first: 0x2f8, number: 8 }));
        assert_eq!(irq("42"), Ok(42));
        assert_eq!(IoMemory::parse("a0,20"), Ok(IoMemory { first: 0xa0, number: 0x20, gfn: None }));
        assert_eq!(
            IoMemory::parse("0xa0,20@1000"),
            Ok(IoMemory { first: 0xa0, number: 0x20, gfn: Some(0x1000) })
        );
        for wrong in ["", "-", "2ff-2f8", "2f8-", "x", "+1", "ffffffff", "0-ffffffff", "1-2-3"] {
            assert_eq!(IoPorts::parse(wrong), Err(ResourceError::Ports(wrong.to_owned())));
        }
        for wrong in ["", "-1", "a", "4294967295", "+1"] {
            assert_eq!(irq(wrong), Err(ResourceError::Irq(wrong.to_owned())));
        }
        for wrong in ["", "a0", "a0,", ",20", "a0,20@", "a0,20,30", "a0,20@1@2", "10000000000000000,1"] {
            assert_eq!(IoMemory::parse(wrong), Err(ResourceError::Memory(wrong.to_owned())));
        }
    }
}
