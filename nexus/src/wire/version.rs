//! Protocol versions.

use super::error::WireError;

/// A version that both ends speak: the lower of the two that they say in their hellos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// Chunks of 4 KiB, and services of at most 63 bytes.
    V2,
    /// Chunks of 64 KiB, and services of at most [`MAX_SERVICE`](crate::policy::service::MAX_SERVICE) bytes.
    V3,
    /// A request names its caller, too: a qube that lies behind the one that asks.
    V4,
    /// Ours, between nexusd and nexus-agent: version 4, containers, and calls by number. Its number is above all of
    /// qrexec's, so that a peer that does not know it speaks its own, as it does with any that is newer.
    Nexus,
}

/// What we say for [`Version::Nexus`]: `N`, `X`, and its own version.
const NEXUS: u32 = 0x4e58_0001;

impl Version {
    /// The number in a hello.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
            Self::V4 => 4,
            Self::Nexus => NEXUS,
        }
    }

    /// The newest that a peer speaks who says this number in its hello.
    ///
    /// # Errors
    /// [`WireError::Version`] for a peer from before version 2.
    pub fn of_peer(number: u32) -> Result<Self, WireError> {
        match number {
            0..=1 => Err(WireError::Version(number)),
            2 => Ok(Self::V2),
            3 => Ok(Self::V3),
            4..NEXUS => Ok(Self::V4),
            NEXUS.. => Ok(Self::Nexus),
        }
    }

    /// The most bytes of data in one message (`MAX_DATA_CHUNK_V2` and `MAX_DATA_CHUNK_V3`).
    #[must_use]
    pub fn max_chunk(self) -> usize {
        match self {
            Self::V2 => 4_096,
            Self::V3 | Self::V4 | Self::Nexus => MAX_CHUNK,
        }
    }
}

/// The most bytes of data in one message of any version.
pub const MAX_CHUNK: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_speaks_the_newest_version_that_we_know_of_those_up_to_its_number() {
        for (number, version) in [
            (2, Version::V2),
            (3, Version::V3),
            (4, Version::V4),
            (5, Version::V4),
            (NEXUS - 1, Version::V4),
            (NEXUS, Version::Nexus),
            (u32::MAX, Version::Nexus),
        ] {
            assert_eq!(Version::of_peer(number), Ok(version));
        }
        assert_eq!(Version::of_peer(1), Err(WireError::Version(1)));
        assert_eq!(
            [Version::V2, Version::V3, Version::Nexus].map(Version::max_chunk),
            [4_096, 65_536, 65_536]
        );
        for version in [Version::V2, Version::V3, Version::V4, Version::Nexus] {
            assert_eq!(Version::of_peer(version.number()), Ok(version));
        }
    }
}
