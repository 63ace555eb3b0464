//! Frames of a pair channel: all calls from one qube to another, over one vchan.
//!
//! A frame is a header of 16 bytes, `u64 call`, `u32 kind`, `u32 len`, little-endian, and `len` bytes. The caller's agent
//! begins a call with [`Kind::Open`]; the target's answers with [`Kind::Credit`] when dom0 has announced the call to it,
//! too (unless the caller has said all by then), and ends it with [`Kind::Exit`]. Either end can break it off with [`Kind::Reset`].
//!
//! Data costs credit, byte for byte; the end of a stream (no bytes) costs none. Credit is given for bytes that went where
//! they belong, so what an end has to keep of a call is never more than what it gave. The caller's end has a little from the
//! start ([`EARLY`]): a short request goes with the frame that opens the call, and nobody is waited for.
//!
//! ```
//! use nexus::wire::pair::{Header, Kind};
//!
//! let header = Header { call: 7, kind: Kind::Stdout, length: 5 };
//! assert_eq!(Header::parse(&header.encode())?, header);
//! # Ok::<(), nexus::wire::pair::PairError>(())
//! ```

use super::control::CallId;

/// The port of the channel: `data/vchan/TARGET/510`, below the domain of the caller, whose agent is the server.
pub const PAIR_PORT: u32 = 510;
/// The bytes of a header.
pub const HEADER: usize = 16;
/// The most data in one frame, in bytes.
pub const MAX_DATA: usize = 65_536;
/// The most credit that an end gives a call, in bytes, and that the other end believes.
pub const MAX_CREDIT: u32 = 1 << 20;

/// The credit that the caller's end has before it is given any, in bytes.
pub const EARLY: u32 = 4096;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// The caller's first: `u32`, how many bytes the target may send.
    Open = 0x4e58_0001,
    /// `u32`: how many bytes more the other end may send.
    Credit = 0x4e58_0002,
    /// `u32`, a [`Reset`]: the call is over.
    Reset = 0x4e58_0003,
    /// Data for the service; nothing: its end.
    Stdin = 0x190,
    /// Data of its stdout; nothing: its end.
    Stdout = 0x191,
    /// Data of its stderr; nothing: its end.
    Stderr = 0x192,
    /// `u32`: how it ended. The target's last.
    Exit = 0x193,
}

/// Why an end breaks a call off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reset {
    /// The caller is gone.
    Gone = 0,
    /// dom0 has announced no such call.
    Unknown = 1,
    /// It has as many calls as it takes.
    Busy = 2,
}

impl Reset {
    /// By number; others are as good as [`Reset::Gone`].
    #[must_use]
    pub fn of(number: u32) -> Self {
        match number {
            1 => Self::Unknown,
            2 => Self::Busy,
            _ => Self::Gone,
        }
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// The call.
    pub call: CallId,
    /// What it is.
    pub kind: Kind,
    /// How many bytes follow: 4, or for data at most [`MAX_DATA`].
    pub length: u32,
}

/// A frame that breaks the protocol. There is no way to go on: the channel is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// There is no such kind.
    #[error("no frame has the kind {0:#x}")]
    Kind(u32),
    /// Another length than the kind has.
    #[error("{kind:?} of {length} bytes")]
    Length {
        /// The kind.
        kind: Kind,
        /// The length.
        length: u32,
    },
}

impl Header {
    /// Checks a header.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, PairError> {
        const ALL: [Kind; 7] =
            [Kind::Open, Kind::Credit, Kind::Reset, Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::Exit];
        let [c0, c1, c2, c3, c4, c5, c6, c7, k0, k1, k2, k3, l0, l1, l2, l3] = *bytes;
        let number = u32::from_le_bytes([k0, k1, k2, k3]);
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let kind = ALL.into_iter().find(|kind| *kind as u32 == number).ok_or(PairError::Kind(number))?;
        let lengths = if kind.is_data() { 0..=MAX_DATA as u32 } else { 4..=4 };
        if !lengths.contains(&length) {
            return Err(PairError::Length { kind, length });
        }
        Ok(Self { call: u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]), kind, length })
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.call.to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[12..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// A whole frame of a kind that has a number: all but data.
    #[must_use]
    pub fn with_number(call: CallId, kind: Kind, number: u32) -> [u8; HEADER + 4] {
        let mut bytes = [0; HEADER + 4];
        bytes[..HEADER].copy_from_slice(&Self { call, kind, length: 4 }.encode());
        bytes[HEADER..].copy_from_slice(&number.to_le_bytes());
        bytes
    }
}

impl Kind {
    /// Whether it carries data, and so costs credit.
    #[must_use]
    pub fn is_data(self) -> bool {
        matches!(self, Self::Stdin | Self::Stdout | Self::Stderr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_laid_out_as_documented() {
        let header = Header { call: 0x0102_0304_0506_0708, kind: Kind::Stdin, length: 65_536 };
        let bytes = header.encode();
        assert_eq!(bytes, [8, 7, 6, 5, 4, 3, 2, 1, 0x90, 1, 0, 0, 0, 0, 1, 0]);
        assert_eq!(Header::parse(&bytes), Ok(header));
        let frame = Header::with_number(1, Kind::Open, 0x10_000);
        assert_eq!(frame, [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x58, 0x4e, 4, 0, 0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn other_kinds_and_lengths_are_refused() {
        let with = |kind: u32, length: u32| {
            let mut bytes = [0; HEADER];
            bytes[8..12].copy_from_slice(&kind.to_le_bytes());
            bytes[12..].copy_from_slice(&length.to_le_bytes());
            Header::parse(&bytes)
        };
        for kind in [0, 0x18f, 0x194, 0x200, 0x4e58_0000, 0x4e58_0004, u32::MAX] {
            assert_eq!(with(kind, 4), Err(PairError::Kind(kind)));
        }
        assert_eq!(with(0x191, 65_537), Err(PairError::Length { kind: Kind::Stdout, length: 65_537 }));
        for length in [0, 3, 5, u32::MAX] {
            assert_eq!(with(0x193, length), Err(PairError::Length { kind: Kind::Exit, length }));
            assert_eq!(with(0x4e58_0001, length), Err(PairError::Length { kind: Kind::Open, length }));
        }
        assert!(with(0x190, 0).is_ok());
        assert_eq!([0, 1, 2, 3].map(Reset::of), [Reset::Gone, Reset::Unknown, Reset::Busy, Reset::Gone]);
    }
}
