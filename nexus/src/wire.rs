//! qrexec's messages, as they lie on a vchan.
//!
//! Every message is a header, `u32 type` and `u32 len`, and `len` bytes; numbers are little-endian, as Xen's qubes are
//! (`struct msg_header`, libqrexec/qrexec.h). [`Decoder`] makes whole [`Frame`]s of bytes as they come, [`Message`] says
//! what a frame means, and [`Message::encode`] is the way back.
//!
//! Between nexusd and our agents there is more ([`control`]), and between two of our agents one vchan for all calls
//! ([`pair`]).
//!
//! What a direction may carry is [`Channel`]'s to say: a type that does not belong there is an error before its length is
//! believed, and no more than one frame is ever kept.
//!
//! ```
//! use nexus::wire::{Channel, Decoder, Message, Version};
//!
//! let mut bytes = Vec::new();
//! Message::Hello(Version::V3.number()).encode(&mut bytes)?;
//! assert_eq!(bytes, [0, 3, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0]);
//!
//! let mut decoder = Decoder::new(Channel::FromAgent);
//! let mut input = &bytes[..];
//! let frame = decoder.decode(&mut input)?.expect("all of it is there");
//! assert_eq!(Message::parse(&frame)?, Message::Hello(3));
//! # Ok::<(), nexus::wire::WireError>(())
//! ```

mod channel;
pub mod control;
mod decoder;
mod error;
mod header;
mod message;
pub mod pair;
mod version;

pub use channel::{Channel, Kind};
pub use decoder::{Decoder, Frame};
pub use error::WireError;
pub use header::{HEADER, Header};
pub use message::{Execute, Ident, Link, Message, Source, Trigger};
pub use version::{MAX_CHUNK, Version};

/// Where a qube's agent serves the control vchan for dom0, below the qube's home in xenstore: as libxenvchan names the
/// port 512 (`VCHAN_BASE_PORT`, libqrexec/qrexec.h).
pub const CONTROL_PATH: &str = "data/vchan/0/512";
/// The first port of a vchan that carries a call's data.
pub const FIRST_DATA_PORT: u32 = 513;
/// The longest command, in bytes, its NUL included.
pub const MAX_COMMAND: usize = 65_535;

/// The exit code of a call that failed in the machinery and not in the service.
pub const EXIT_PROBLEM: u8 = 125;
/// The exit code of a call that policy refused.
pub const EXIT_REFUSED: u8 = 126;
/// The exit code of a service that does not exist.
pub const EXIT_NO_SERVICE: u8 = 127;
