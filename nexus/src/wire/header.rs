//! What every message begins with.

use super::channel::{Channel, Kind};
use super::error::WireError;
use super::version::Version;

/// The bytes of a header (`struct msg_header`, libqrexec/qrexec.h).
pub const HEADER: usize = 8;

/// The beginning of a message: what it is, and how many bytes follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// How many bytes follow: as many as [`Channel::lengths`] lets the kind have.
    pub length: usize,
}

impl Header {
    /// Checks a header that came by a channel. `version`: none before the other end's hello.
    ///
    /// # Errors
    /// There is no such message, it has no place there or then, or another length.
    pub fn parse(bytes: [u8; HEADER], channel: Channel, version: Option<Version>) -> Result<Self, WireError> {
        let [k0, k1, k2, k3, length @ ..] = bytes;
        let kind = Kind::of(u32::from_le_bytes([k0, k1, k2, k3]))?;
        let lengths = channel.lengths(kind, version)?;
        let length = u32::from_le_bytes(length);
        match usize::try_from(length).ok().filter(|length| lengths.contains(length)) {
            Some(length) => Ok(Self { kind, length }),
            None => {
                let (least, most) = lengths.into_inner();
                Err(WireError::Length { kind, length, least, most })
            }
        }
    }

    /// Its bytes. No message has more than 64 KiB and a few bytes: the length fits.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[4..].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_checked_by_where_and_when_it_comes() {
        let bytes = [0x91, 1, 0, 0, 0, 0, 1, 0];
        let header = Header { kind: Kind::Stdout, length: 65_536 };
        assert_eq!(header.encode(), bytes);
        let parse = |channel, version| Header::parse(bytes, channel, version);
        assert_eq!(parse(Channel::ToCaller, Some(Version::V3)), Ok(header));
        assert_eq!(
            parse(Channel::ToCaller, Some(Version::V2)),
            Err(WireError::Length { kind: Kind::Stdout, length: 65_536, least: 0, most: 4096 })
        );
        assert_eq!(parse(Channel::ToCaller, None), Err(WireError::Order(Kind::Stdout)));
        assert_eq!(
            parse(Channel::ToService, Some(Version::V3)),
            Err(WireError::Misplaced { kind: Kind::Stdout, channel: Channel::ToService })
        );
        let none = [0x94, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(Header::parse(none, Channel::ToCaller, Some(Version::V3)), Err(WireError::Type(0x194)));
        let endless = [0x93, 1, 0, 0, 255, 255, 255, 255];
        assert_eq!(
            Header::parse(endless, Channel::ToCaller, Some(Version::V3)),
            Err(WireError::Length { kind: Kind::ExitCode, length: u32::MAX, least: 4, most: 4 })
        );
    }
}
