//! vchan: a byte stream in both directions between two Xen domains, over pages that one of them shares with the other.
//!
//! Compatible on the wire with Xen's libxenvchan 4.17: either side may be the C library. What differs is what a peer
//! cannot see: no byte is lost at a close, a peer that breaks the protocol gets an error and not a hang, the two
//! directions may be used by two threads, every wait can have an end, and no path is too long. `docs/vchan.md` has the
//! protocol, and the C library's faults.
//!
//! * A server opens a [`Listener`] for one client and [accepts](Listener::accept) it; a client
//!   [connects](Channel::connect). Both get a [`Channel`].
//! * A channel implements [`Read`](std::io::Read) and [`Write`](std::io::Write), blocks or not, and
//!   [splits](Channel::split) into a [`Sender`] and a [`Receiver`].
//! * Bytes can be made and looked at in the ring ([`Channel::reserve`], [`Channel::peek`]) and moved straight between it and
//!   descriptors ([`Channel::read_from_fd`], [`Channel::write_to_fd`]).
//! * A [`Hub`] carries any number of channels over six descriptors, and wakes the tasks of any executor.
//! * A [`Pump`] does that in both directions until the conversation is over.
//! * With the feature `tokio`, `AsyncChannel` is an `AsyncRead` and `AsyncWrite`.
//! * The end of the stream is a success (0 bytes), having to wait is [`Error::WouldBlock`], and everything else is an
//!   error of its own: see [`Error`].
//!
//! # The peer is not trusted
//! It can write anything into the shared pages at any time. Every value that it owns is read once, checked, and then used
//! from private memory; what this side owns is never read back. The bytes themselves are copied out before anybody looks
//! at them.
#![forbid(unsafe_code)]

#[cfg(feature = "tokio")]
mod asynchronous;
mod backoff;
mod channel;
mod connect;
mod deadline;
mod error;
#[cfg(test)]
mod fixture;
mod give_way;
mod half;
mod hub;
mod keys;
mod link;
mod listener;
mod liveness;
mod metrics;
#[cfg(test)]
mod model;
mod notify;
mod page;
mod port;
pub mod programs;
mod pump;
mod receiver;
mod ring;
mod sender;
mod signals;
mod spin;
mod wait;
mod warden;
mod watches;
mod wire;

#[cfg(feature = "tokio")]
pub use asynchronous::AsyncChannel;
pub use channel::Channel;
pub use connect::{ConnectOptions, Connector};
pub use error::{Error, Partial, Result, Violation};
pub use hub::Hub;
pub use keys::own_domid;
pub use listener::{ListenOptions, Listener};
pub use liveness::PROBE_INTERVAL;
pub use metrics::Metrics;
pub use page::{MAX_RING, Orders, Ring, Side};
pub use pump::{EndedBy, Pump, PumpError, Pumped};
pub use receiver::{ReadChunk, Receiver};
pub use sender::{Sender, WriteChunk};
pub use signals::Signals;
pub use wire::State;
pub use xen::{VolatileSlice, VolatileSliceMut};
