//! Protocol versions.

use super::error::WireError;

/// A version that both ends speak: the lower of the two that they say in their hellos.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// Chunks of 4 KiB, and services of at most 63 bytes.
    V2,
    /// Chunks of 64 KiB, and services of at most [`MAX_SERVICE`](crate::policy::service::MAX_SERVICE) bytes.
    V3,
}

impl Version {
    /// What we say in our hello. Version 4 adds one message, by which a qube calls in the name of another that lies behind
    /// it; a peer of version 4 speaks version 3 with us and does not send it.
    pub const OURS: Self = Self::V3;

    /// The number in a hello.
    pub fn number(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }

    /// What is spoken with a peer that says this number in its hello.
    ///
    /// # Errors
    /// [`WireError::Version`] for a peer from before version 2.
    pub fn with_peer(number: u32) -> Result<Self, WireError> {
        match number {
            0..=1 => Err(WireError::Version(number)),
            2 => Ok(Self::V2),
            3.. => Ok(Self::V3),
        }
    }

    /// The most bytes of data in one message (`MAX_DATA_CHUNK_V2` and `MAX_DATA_CHUNK_V3`).
    pub fn max_chunk(self) -> usize {
        match self {
            Self::V2 => 4_096,
            Self::V3 => 65_536,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_version_is_spoken() {
        assert_eq!(Version::with_peer(2).unwrap(), Version::V2);
        for number in [3, 4, u32::MAX] {
            assert_eq!(Version::with_peer(number).unwrap(), Version::V3);
        }
        assert_eq!(Version::with_peer(1), Err(WireError::Version(1)));
        assert_eq!([Version::V2.max_chunk(), Version::V3.max_chunk()], [4_096, 65_536]);
    }
}
