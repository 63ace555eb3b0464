//! What a peer can do wrong.

use super::channel::{Channel, Kind};

/// A message that breaks the protocol. There is no way to go on: the vchan is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A type that there is not.
    #[error("no message has the type {0:#x}")]
    Type(u32),
    /// A type that there is, but not in this direction or in this version.
    #[error("{kind:?} has no place {channel}")]
    Misplaced {
        /// The type.
        kind: Kind,
        /// The direction.
        channel: Channel,
    },
    /// Something else before the hello, or a second hello.
    #[error("{0:?} where the other end was to say hello first, and once")]
    Order(Kind),
    /// More or fewer bytes than the type may have.
    #[error("{kind:?} of {length} bytes; it has {least} to {most}")]
    Length {
        /// The type.
        kind: Kind,
        /// The length in its header.
        length: u32,
        /// The least.
        least: usize,
        /// The most.
        most: usize,
    },
    /// A string without its NUL, or with bytes after it where there may be none.
    #[error("{0:?}: a string does not end where it should")]
    Unterminated(Kind),
    /// A request's identifier that is empty, or has other characters than `A-Z a-z 0-9 _ . : -`.
    #[error("{0:?}: the identifier of a request is none")]
    Ident(Kind),
    /// A domain id that no qube has.
    #[error("{kind:?} names domain {domain}, which there cannot be")]
    Domain {
        /// The type.
        kind: Kind,
        /// The number.
        domain: u32,
    },
    /// A port that is none for data.
    #[error("{kind:?} names port {port}; those of data begin with 513")]
    Port {
        /// The type.
        kind: Kind,
        /// The number.
        port: u32,
    },
    /// Neither the caller's end of a call nor the service's.
    #[error("{0:?}: a call has no such end")]
    Role(Kind),
    /// A peer that is too old.
    #[error("the other end speaks protocol version {0}; 2 is the oldest that is spoken here")]
    Version(u32),
    /// What is to be encoded is longer than the message may be, or has a NUL in it.
    #[error("{0:?}: what is to be sent does not fit")]
    Unsendable(Kind),
}
