//! When one side signals the other: the two notify bits, and why no wake-up is lost.
//!
//! Each side has a byte in the control page in which the *other* sets bits: "tell me when you have written" and "tell
//! me when you have read". Whoever writes or reads looks there, takes the bit back, and only then sends an event; so a
//! busy peer is left alone.
//!
//! Sleeping is a race between two sides that each write one word and read another's:
//!
//! | who sleeps ([`arm`]) | who makes progress ([`due`]) |
//! |---|---|
//! | set the bit | store the index |
//! | **fence** | **fence** |
//! | read the index again | read the bit |
//!
//! Without both fences each could miss the other's store (the store-buffering pattern), the one sleeping on bytes that
//! are there, the other believing that nobody sleeps. With them at least one sees the other. Acquire and release do not
//! do: they order nothing between a store and a later load of another word.

use crate::Violation;
use crate::wire::Wire;

/// What a side asks to be told (`VCHAN_NOTIFY_WRITE`, `VCHAN_NOTIFY_READ`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Notify {
    /// That bytes were written.
    Write,
    /// That bytes were read, and so room was made.
    Read,
}

impl Notify {
    pub(crate) const fn bit(self) -> u8 {
        match self {
            Self::Write => 1,
            Self::Read => 2,
        }
    }
}

const MEANINGFUL: u8 = Notify::Write.bit() | Notify::Read.bit();

/// Asks the peer for a signal. The caller has to look at the peer's index once more before it sleeps.
pub(crate) fn arm<W: Wire + ?Sized>(wire: &W, what: Notify) {
    wire.set_peer_notify(what.bit());
    wire.fence();
}

/// Whether the peer wants to be told of what was just published, and so has to be sent an event. It is told once.
#[inline]
pub(crate) fn due<W: Wire + ?Sized>(wire: &W, what: Notify) -> Result<bool, Violation> {
    wire.fence();
    // A look first: the atomic clear costs as much as the whole rest, and mostly nobody sleeps.
    let bits = wire.own_notify();
    if bits & (!MEANINGFUL | what.bit()) == 0 { Ok(false) } else { take(wire, what, bits) }
}

#[cold]
fn take<W: Wire + ?Sized>(wire: &W, what: Notify, bits: u8) -> Result<bool, Violation> {
    if bits & !MEANINGFUL != 0 {
        return Err(Violation::Notify { bits });
    }
    Ok(bits & what.bit() != 0 && wire.clear_own_notify(what.bit()) & what.bit() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Side;
    use crate::fixture::shared;
    use std::sync::atomic::Ordering::SeqCst;

    #[test]
    fn each_side_asks_in_the_others_byte() {
        let shared = shared(0, 0);
        let byte = |side: Side| shared.raw.atomic_u8(side.notify_offset()).load(SeqCst);
        assert_eq!((byte(Side::Client), byte(Side::Server)), (1, 0), "as a server leaves them");
        arm(&*shared.server, Notify::Read);
        assert_eq!((byte(Side::Client), byte(Side::Server)), (3, 0));
        arm(&*shared.client, Notify::Write);
        assert_eq!((byte(Side::Client), byte(Side::Server)), (3, 1));
        assert_eq!(due(&*shared.client, Notify::Write), Ok(true));
        assert_eq!((byte(Side::Client), byte(Side::Server)), (2, 1), "the other request stays");
        assert_eq!(due(&*shared.client, Notify::Write), Ok(false));
        assert_eq!(due(&*shared.server, Notify::Write), Ok(true));
        assert_eq!((byte(Side::Client), byte(Side::Server)), (2, 0));
    }

    #[test]
    fn bits_without_a_meaning_are_a_violation() {
        let shared = shared(0, 0);
        for bits in 0..=u8::MAX {
            shared.raw.atomic_u8(Side::Client.notify_offset()).store(bits, SeqCst);
            let expected = if bits <= 3 { Ok(bits & 1 != 0) } else { Err(Violation::Notify { bits }) };
            assert_eq!(due(&*shared.client, Notify::Write), expected);
        }
    }
}
