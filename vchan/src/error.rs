//! How an operation on a channel can fail.

use crate::{Ring, Side};
use std::io;
use std::time::Duration;
use xen::DomId;

/// The result of an operation on a channel.
pub type Result<T> = std::result::Result<T, Error>;

/// How an operation on a channel failed.
///
/// The end of the stream is no error: [`Receiver::recv`](crate::Receiver::recv) says 0 then, after the last byte.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A non-blocking operation can do nothing now. The descriptor becomes readable when that changes.
    #[error("the operation would have to wait")]
    WouldBlock,
    /// The operation's timeout passed.
    #[error("nothing happened within {0:?}")]
    TimedOut(Duration),
    /// The peer has closed the channel, or its process has ended: nothing can be sent any more, or less came than had to.
    #[error("the peer has closed the channel")]
    Closed,
    /// The channel was closed at this end, by the other half of a [split](crate::Channel::split).
    #[error("the channel is closed at this end")]
    ClosedHere,
    /// The peer's domain was destroyed. Xen tells nobody, so this is noticed with some delay.
    #[error("domain {0} is gone")]
    PeerDied(DomId),
    /// The peer broke the protocol. The channel stays unusable.
    #[error("the peer broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// A ring of that size is not possible.
    #[error("a ring of {asked} bytes is too large (at most {})", crate::MAX_RING)]
    RingTooLarge {
        /// Bytes.
        asked: usize,
    },
    /// More bytes are to be in the ring at once than it can hold.
    #[error("a ring of {size} bytes never holds {asked} at once")]
    RingTooSmall {
        /// Bytes.
        asked: usize,
        /// Bytes.
        size: u32,
    },
    /// A channel to the own domain: Linux' grant driver does not survive it.
    #[error("domain {0} is this domain; a vchan needs two")]
    Loopback(DomId),
    /// No domain can have this id.
    #[error("domain {0} cannot exist (the largest id is {max})", max = DomId::FIRST_RESERVED - 1)]
    ReservedDomain(DomId),
    /// The keys of a server are not there.
    #[error("domain {domid} offers no vchan at {path} (or not to this domain)")]
    NoServer {
        /// The domain that was asked for.
        domid: DomId,
        /// The path of the key that is missing.
        path: String,
    },
    /// A key of the server does not hold what it should.
    #[error("{path} in xenstore is {value:?}, not a positive number")]
    BadKey {
        /// The key's path.
        path: String,
        /// Its value, or the first part of it.
        value: String,
    },
    /// A call to Xen failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// Which.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        use io::ErrorKind as Kind;
        let kind = match error {
            Error::WouldBlock => Kind::WouldBlock,
            Error::TimedOut(_) => Kind::TimedOut,
            Error::Closed | Error::ClosedHere => Kind::BrokenPipe,
            Error::PeerDied(_) => Kind::ConnectionReset,
            Error::Violation(_) | Error::BadKey { .. } => Kind::InvalidData,
            Error::RingTooLarge { .. }
            | Error::RingTooSmall { .. }
            | Error::Loopback(_)
            | Error::ReservedDomain(_) => Kind::InvalidInput,
            Error::NoServer { .. } => Kind::NotFound,
            Error::Xen(error) => return error.into(),
            Error::System { ref source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// What a peer wrote into the shared pages that the protocol does not allow, with the values that were seen.
///
/// A peer can write anything there at any time. The first such value that is noticed ends the channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The peer's index went back, or further than the ring allows.
    #[error("{ring} ring of {size} bytes: prod {prod:#x}, cons {cons:#x}")]
    Indices {
        /// Of which ring.
        ring: Ring,
        /// The producer's index.
        prod: u32,
        /// The consumer's index.
        cons: u32,
        /// The ring's size in bytes.
        size: u32,
    },
    /// The orders are outside of 10 to 20, or the two rings and the list of references do not fit together.
    #[error("ring orders {left} and {right}")]
    Orders {
        /// Of the left ring.
        left: u16,
        /// Of the right ring.
        right: u16,
    },
    /// A live byte that says neither "here" (1) nor "gone" (0), nor, of a client that never was here, "awaited" (2).
    #[error("live byte of the {side}: {value}")]
    Live {
        /// Whose.
        side: Side,
        /// The byte.
        value: u8,
    },
    /// Bits in a notify byte that have no meaning.
    #[error("notify byte {bits:#04x}")]
    Notify {
        /// The byte.
        bits: u8,
    },
}

/// An operation on many bytes that ended before it had done them all.
#[derive(Debug, thiserror::Error)]
#[error("after {done} bytes: {error}")]
pub struct Partial {
    /// How many were done: sent, or received into the beginning of the buffer.
    pub done: usize,
    /// Why there are not more.
    #[source]
    pub error: Error,
}

impl From<Partial> for io::Error {
    fn from(partial: Partial) -> Self {
        let kind = Self::from(partial.error).kind();
        Self::new(kind, format!("only {} bytes", partial.done))
    }
}
