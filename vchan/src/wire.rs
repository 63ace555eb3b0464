//! Everything that both sides of a channel touch, reduced to the accesses that the protocol makes.
//!
//! The ring, the notify bits and the close protocol are written over [`Wire`], and so can run over something else than
//! shared pages: a model checker's memory.

use crate::notify::Notify;
use crate::page::{GRANTS_OFFSET, LIVE_AWAITED, LIVE_GONE, LIVE_HERE};
use crate::{Orders, Ring, Side, Violation};
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32};
use xen::{GrantRef, Mapping, VolatileSlice, VolatileSliceMut, Window, Word};

/// One side's access to what it shares with the other. The names of the words are those of the control page.
pub(crate) trait Wire {
    /// A ring's producer index; what was produced up to it may be read afterwards (acquire).
    fn load_prod(&self, ring: Ring) -> u32;
    /// A ring's consumer index; what was consumed up to it may be overwritten afterwards (acquire).
    fn load_cons(&self, ring: Ring) -> u32;
    /// Publishes what was copied in before (release).
    fn store_prod(&self, ring: Ring, prod: u32);
    /// Gives back what was copied out before (release).
    fn store_cons(&self, ring: Ring, cons: u32);
    /// Copies bytes to the position `at` of a ring, all below its end.
    fn copy_in(&self, ring: Ring, at: u32, bytes: &[u8]);
    /// Bytes at the position `at` of a ring, all below its end, will be written soon.
    fn prefetch(&self, ring: Ring, at: u32, len: u32);
    /// Copies bytes from the position `at` of a ring, all below its end.
    fn copy_out(&self, ring: Ring, at: u32, bytes: &mut [u8]);
    /// What the peer asks to be told.
    fn own_notify(&self) -> u8;
    /// Atomically takes a request of the peer's back; returns the byte before.
    fn clear_own_notify(&self, bit: u8) -> u8;
    /// Atomically asks the peer.
    fn set_peer_notify(&self, bit: u8);
    /// Whether the peer has gone; what it did before is seen afterwards (acquire).
    fn peer_gone(&self) -> Result<bool, Violation>;
    /// A sequentially consistent fence.
    fn fence(&self);
}

/// Whether the other side is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// No client is here: none has come yet, or the server [persists](crate::ListenOptions::persist) and the last one
    /// left. What is sent waits in the ring.
    Waiting,
    /// Both sides are here.
    Open,
    /// The peer has closed, or its process has ended. What it sent before can still be received.
    Closed,
}

/// Where a ring's bytes are.
#[derive(Debug)]
pub(crate) enum RingMemory {
    /// In the control page, from this byte on.
    Inline(usize),
    /// In pages of their own.
    Own(Mapping),
}

/// The shared pages of a channel, as one side maps them.
#[derive(Debug)]
pub(crate) struct Pages {
    side: Side,
    /// A server that outlives its clients.
    persist: AtomicBool,
    /// Whoever was closed may be here again.
    reopens: AtomicBool,
    /// The peer was here; from then on it cannot be awaited.
    seen: AtomicBool,
    /// The peer was seen to have gone. It does not come back, even if the byte says so: its successor would get, and
    /// give us, half a conversation.
    gone: AtomicBool,
    own: Words,
    peer: Words,
    left: RingWords,
    right: RingWords,
}

/// What the control page has of a side.
#[derive(Debug)]
struct Words {
    live: Word<AtomicU8>,
    /// What it is to tell the other.
    notify: Word<AtomicU8>,
}

/// What there is of a ring.
#[derive(Debug)]
struct RingWords {
    prod: Word<AtomicU32>,
    cons: Word<AtomicU32>,
    bytes: Window,
}

impl Pages {
    /// A server's new channel: fills the control page, which is all zeros. `grefs` are the references of the two
    /// rings' pages.
    pub(crate) fn of_server(
        orders: Orders,
        page: Mapping,
        rings: (RingMemory, RingMemory),
        grefs: &[GrantRef],
        persist: bool,
    ) -> Self {
        let list: Vec<u8> = grefs.iter().flat_map(|gref| gref.0.to_ne_bytes()).collect();
        page.copy_from(GRANTS_OFFSET, &list);
        for ring in [Ring::Left, Ring::Right] {
            page.atomic_u16(ring.order_offset()).store(orders.order(ring), Relaxed);
        }
        page.atomic_u8(Side::Client.live_offset()).store(LIVE_AWAITED, Relaxed);
        page.atomic_u8(Side::Server.live_offset()).store(LIVE_HERE, Relaxed);
        // The server wants to hear of the first bytes, whether or not it has looked before they come.
        page.atomic_u8(Side::Client.notify_offset()).store(Notify::Write.bit(), Relaxed);
        Self::new(Side::Server, persist, orders, page, rings)
    }

    /// A client's view of a server's channel.
    pub(crate) fn of_client(orders: Orders, page: Mapping, rings: (RingMemory, RingMemory)) -> Self {
        Self::new(Side::Client, false, orders, page, rings)
    }

    fn new(
        side: Side,
        persist: bool,
        orders: Orders,
        page: Mapping,
        (left, right): (RingMemory, RingMemory),
    ) -> Self {
        let page = Arc::new(page);
        let words = |side: Side| Words {
            live: page.word_u8(side.live_offset()),
            notify: page.word_u8(side.notify_offset()),
        };
        let ring = |ring: Ring, memory: RingMemory| {
            let len = orders.size(ring) as usize;
            let bytes = match memory {
                RingMemory::Inline(start) => page.window(start, len),
                RingMemory::Own(memory) => Arc::new(memory).window(0, len),
            };
            RingWords {
                prod: page.word_u32(ring.prod_offset()),
                cons: page.word_u32(ring.cons_offset()),
                bytes,
            }
        };
        Self {
            side,
            persist: AtomicBool::new(persist),
            reopens: AtomicBool::new(false),
            seen: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            own: words(side),
            peer: words(side.peer()),
            left: ring(Ring::Left, left),
            right: ring(Ring::Right, right),
        }
    }

    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// Whether this (a server) outlives its clients, from now on.
    pub(crate) fn set_persist(&self, persist: bool) {
        self.persist.store(persist, Relaxed);
    }

    /// From now on the end of the peer lasts no longer than its live byte says so: another one may come after it.
    pub(crate) fn set_reopens(&self) {
        self.reopens.store(true, Relaxed);
    }

    /// Whether the peer is there, for certain: a short form of [`peer`](Self::peer) for the usual case.
    #[inline]
    pub(crate) fn is_here(&self) -> bool {
        self.peer.live.load(Relaxed) == LIVE_HERE && self.seen.load(Relaxed) && !self.gone.load(Relaxed)
    }

    /// Whether the peer is there, by its live byte. What it did before is seen afterwards (acquire).
    pub(crate) fn peer(&self) -> Result<State, Violation> {
        if self.gone.load(Acquire) {
            return Ok(State::Closed);
        }
        let side = self.side.peer();
        match self.peer.live.load(Acquire) {
            LIVE_AWAITED
                if side == Side::Client && (!self.seen.load(Relaxed) || self.reopens.load(Relaxed)) =>
            {
                Ok(State::Waiting)
            }
            LIVE_HERE => {
                self.seen.store(true, Relaxed);
                Ok(State::Open)
            }
            LIVE_GONE if self.persist.load(Relaxed) => Ok(State::Waiting),
            LIVE_GONE => {
                self.gone.store(!self.reopens.load(Relaxed), Release);
                Ok(State::Closed)
            }
            value => Err(Violation::Live { side, value }),
        }
    }

    /// Whether nobody has been at this end yet, whom the server would have missed.
    pub(crate) fn is_awaited(&self) -> bool {
        self.own.live.load(Acquire) == LIVE_AWAITED
    }

    /// Sets the own live byte; what this side did before is seen by whoever sees it.
    pub(crate) fn set_own_live(&self, value: u8) {
        self.own.live.store(value, Release);
    }

    /// Sets the peer's notify byte, whatever it was: what a client does once, when it attaches.
    pub(crate) fn reset_peer_notify(&self, what: Notify) {
        self.peer.notify.store(what.bit(), Relaxed);
    }

    /// Bytes of a ring from the position `at` on, for reading.
    pub(crate) fn slice(&self, ring: Ring, at: u32, len: u32) -> VolatileSlice<'_> {
        self.ring(ring).bytes.slice(at as usize, len as usize)
    }

    /// Bytes of a ring from the position `at` on, for writing.
    pub(crate) fn slice_mut(&self, ring: Ring, at: u32, len: u32) -> VolatileSliceMut<'_> {
        self.ring(ring).bytes.slice_mut(at as usize, len as usize)
    }

    #[inline]
    fn ring(&self, ring: Ring) -> &RingWords {
        match ring {
            Ring::Left => &self.left,
            Ring::Right => &self.right,
        }
    }
}

impl Wire for Pages {
    #[inline]
    fn load_prod(&self, ring: Ring) -> u32 {
        self.ring(ring).prod.load(Acquire)
    }

    #[inline]
    fn load_cons(&self, ring: Ring) -> u32 {
        self.ring(ring).cons.load(Acquire)
    }

    #[inline]
    fn store_prod(&self, ring: Ring, prod: u32) {
        self.ring(ring).prod.store(prod, Release);
    }

    #[inline]
    fn store_cons(&self, ring: Ring, cons: u32) {
        self.ring(ring).cons.store(cons, Release);
    }

    #[inline]
    fn copy_in(&self, ring: Ring, at: u32, bytes: &[u8]) {
        self.ring(ring).bytes.copy_from(at as usize, bytes);
    }

    #[inline]
    fn prefetch(&self, ring: Ring, at: u32, len: u32) {
        self.ring(ring).bytes.prefetch_write(at as usize, len as usize);
    }

    #[inline]
    fn copy_out(&self, ring: Ring, at: u32, bytes: &mut [u8]) {
        self.ring(ring).bytes.copy_to(at as usize, bytes);
    }

    #[inline]
    fn own_notify(&self) -> u8 {
        self.own.notify.load(Relaxed)
    }

    fn clear_own_notify(&self, bit: u8) -> u8 {
        self.own.notify.fetch_and(!bit, AcqRel)
    }

    fn set_peer_notify(&self, bit: u8) {
        self.peer.notify.fetch_or(bit, AcqRel);
    }

    fn peer_gone(&self) -> Result<bool, Violation> {
        Ok(self.peer()? == State::Closed)
    }

    #[inline]
    fn fence(&self) {
        xen::full_fence();
    }
}
