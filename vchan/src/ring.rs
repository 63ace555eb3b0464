//! The two ends of a ring: free-running indices, of which each side owns one and is only told the other.
//!
//! An index counts bytes modulo 2^32; `prod - cons` is how many are in the ring, 0 to its size, full included. A side
//! never reads its own index back from the shared page, where the peer could have changed it: it keeps it here, and
//! beside it what it saw last of the peer's. The peer's is read again only when what was seen last does not suffice,
//! and a new value must lie between the last one and the limit of the ring: one that goes back, or too far, is a violation,
//! and what was seen last stays.
//!
//! All indices and notify bits of a channel stand in one cache line, and two processors hand a line over in the time in
//! which one copies kilobytes. So what is done (bytes filled in, bytes taken) is counted here first, and *published*
//! when it is time to: that is the caller's choice, see [`End::publish`].
//!
//! Both ends offer two primitives, under everything that moves bytes:
//! reserve ([`Producer::room`], [`Producer::fill`]) and [`commit`](Producer::commit); peek ([`Consumer::ready`],
//! [`Consumer::peek`]) and [`consume`](Consumer::consume).

use crate::notify::{self, Notify};
use crate::wire::{Pages, Wire};
use crate::{Ring, Violation};
use std::ops::{Deref, Range};
use std::sync::Arc;
use xen::{VolatileSlice, VolatileSliceMut};

/// Bytes of a message that is short: longer ones keep the processor busy while their lines come.
const SHORT: usize = 512;
/// Bytes between what is filled in and what is fetched: enough messages that their lines come in the meantime.
const AHEAD: u32 = 1024;

/// What a side found when it looked a last time before sleeping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outlook {
    /// As many bytes (of room, or to be read) as it waits for, or more.
    Enough(u32),
    /// The peer has gone; there are so many, fewer than it waits for, and there will never be more.
    Final(u32),
    /// Too few. The peer was asked for a signal and will give it: the side may sleep.
    Wait,
}

impl Outlook {
    /// How many there are for certain.
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::Enough(bytes) | Self::Final(bytes) => bytes,
            Self::Wait => 0,
        }
    }
}

/// Either end of a ring, for who waits at it.
pub(crate) trait End {
    /// How many bytes of room, or to be read, there are as far as is known.
    fn known(&self) -> u32;

    /// How many bytes are in the ring as far as is known.
    fn in_ring(&self) -> u32;

    /// How many bytes of room, or to be read, there are; looks at the peer's index if fewer than `want` are known.
    fn available(&mut self, want: u32) -> Result<u32, Violation>;

    /// Bytes that were filled in or taken, and not published.
    fn held_back(&self) -> u32;

    /// Lets the peer know all that was done. Whether it must be signalled.
    fn publish(&mut self) -> Result<bool, Violation>;

    /// What this end waits for.
    const AWAITS: Notify;

    /// The step before sleeping until `want` bytes are available: asks for a signal, and looks again. When the peer has
    /// gone it looks once more after it saw that, so that nothing is lost which it did before.
    fn before_sleep(&mut self, want: u32) -> Result<Outlook, Violation>;
}

/// The end that fills a ring.
#[derive(Debug)]
pub(crate) struct Producer<W> {
    wire: W,
    ring: Ring,
    size: u32,
    /// Ours.
    prod: u32,
    /// What the shared page says: at most `size` behind `prod`.
    published: u32,
    /// What we saw last of the consumer's: at most `size` behind `prod`.
    cons: u32,
}

impl<W: Deref<Target: Wire>> Producer<W> {
    /// Attaches to a ring of `size` bytes (a power of 2) where it stands. A client may come to a ring that another
    /// client left, so the indices need not be 0.
    pub(crate) fn attach(wire: W, ring: Ring, size: u32) -> Result<Self, Violation> {
        let (prod, cons) = (wire.load_prod(ring), wire.load_cons(ring));
        if prod.wrapping_sub(cons) > size {
            return Err(Violation::Indices { ring, prod, cons, size });
        }
        Ok(Self { wire, ring, size, prod, published: prod, cons })
    }

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// How many bytes can be filled in, up to the size. Looks at the consumer's index only when fewer than `want` are
    /// known to be free.
    pub(crate) fn room(&mut self, want: u32) -> Result<u32, Violation> {
        if self.size - self.used() < want {
            self.look()?;
        }
        Ok(self.size - self.used())
    }

    /// Copies bytes into the reserved room, `skip` bytes from its start. They must lie inside of what
    /// [`room`](Self::room) said.
    #[inline]
    pub(crate) fn fill(&self, skip: u32, bytes: &[u8]) {
        debug_assert!(u64::from(skip) + bytes.len() as u64 <= u64::from(self.size - self.used()));
        let at = self.prod.wrapping_add(skip) & (self.size - 1);
        let to_end = (self.size - at) as usize;
        if bytes.len() <= to_end {
            self.wire.copy_in(self.ring, at, bytes);
        } else {
            let (first, rest) = bytes.split_at(to_end);
            self.wire.copy_in(self.ring, at, first);
            self.wire.copy_in(self.ring, 0, rest);
        }
        if bytes.len() <= SHORT {
            self.prefetch(skip + bytes.len() as u32 + AHEAD, bytes.len() as u32);
        }
    }

    /// Tells the processor what will be filled in some messages later, `skip` bytes from the start of the room. Without
    /// that each short message waits for its line, which the consumer has in its cache, and the fence after it for that.
    /// Never what may be unread: the consumer has use for those lines.
    #[inline]
    fn prefetch(&self, skip: u32, len: u32) {
        let at = self.prod.wrapping_add(skip) & (self.size - 1);
        if skip + len <= self.size - self.used() && at + len <= self.size {
            self.wire.prefetch(self.ring, at, len);
        }
    }

    /// Counts the first `n` bytes of the reserved room as produced. The consumer learns of them by
    /// [`publish`](End::publish).
    #[inline]
    pub(crate) fn commit(&mut self, n: u32) {
        debug_assert!(n <= self.size - self.used());
        self.prod = self.prod.wrapping_add(n);
    }

    /// Bytes that the consumer has not taken, as far as we know.
    #[inline]
    pub(crate) fn used(&self) -> u32 {
        self.prod.wrapping_sub(self.cons)
    }

    /// Looks at the consumer's index, once. It cannot have passed what was published.
    fn look(&mut self) -> Result<(), Violation> {
        let cons = self.wire.load_cons(self.ring);
        if self.published.wrapping_sub(cons) > self.published.wrapping_sub(self.cons) {
            return Err(Violation::Indices { ring: self.ring, prod: self.prod, cons, size: self.size });
        }
        self.cons = cons;
        Ok(())
    }
}

impl Producer<Arc<Pages>> {
    /// A part of the reserved room itself: up to the end of the ring, and from its start.
    #[inline]
    pub(crate) fn reserved(&self, part: Range<u32>) -> [VolatileSliceMut<'_>; 2] {
        debug_assert!(part.start <= part.end && part.end <= self.size - self.used());
        let at = self.prod.wrapping_add(part.start) & (self.size - 1);
        let len = part.end - part.start;
        let first = len.min(self.size - at);
        [(at, first), (0, len - first)].map(|(at, len)| self.wire.slice_mut(self.ring, at, len))
    }
}

impl<W: Deref<Target: Wire>> End for Producer<W> {
    const AWAITS: Notify = Notify::Read;

    #[inline]
    fn known(&self) -> u32 {
        self.size - self.used()
    }

    fn in_ring(&self) -> u32 {
        self.used()
    }

    fn available(&mut self, want: u32) -> Result<u32, Violation> {
        self.room(want)
    }

    #[inline]
    fn held_back(&self) -> u32 {
        self.prod.wrapping_sub(self.published)
    }

    #[inline]
    fn publish(&mut self) -> Result<bool, Violation> {
        self.wire.store_prod(self.ring, self.prod);
        self.published = self.prod;
        notify::due(&*self.wire, Notify::Write)
    }

    fn before_sleep(&mut self, want: u32) -> Result<Outlook, Violation> {
        before_sleep(self, want, |end| &*end.wire)
    }
}

/// The end that empties a ring.
#[derive(Debug)]
pub(crate) struct Consumer<W> {
    wire: W,
    ring: Ring,
    size: u32,
    /// Ours.
    cons: u32,
    /// What the shared page says: at most `size` behind `cons`.
    published: u32,
    /// What we saw last of the producer's: at most `size` ahead of `published`.
    prod: u32,
}

impl<W: Deref<Target: Wire>> Consumer<W> {
    /// Attaches to a ring of `size` bytes (a power of 2) where it stands.
    pub(crate) fn attach(wire: W, ring: Ring, size: u32) -> Result<Self, Violation> {
        let (prod, cons) = (wire.load_prod(ring), wire.load_cons(ring));
        if prod.wrapping_sub(cons) > size {
            return Err(Violation::Indices { ring, prod, cons, size });
        }
        Ok(Self { wire, ring, size, cons, published: cons, prod })
    }

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// How many bytes can be read, up to the size. Looks at the producer's index only when fewer than `want` are known
    /// to be there.
    pub(crate) fn ready(&mut self, want: u32) -> Result<u32, Violation> {
        if self.known() < want {
            self.look()?;
        }
        Ok(self.known())
    }

    /// Copies bytes out without consuming them, from `skip` bytes after the first unread one on. They must lie inside
    /// of what [`ready`](Self::ready) said.
    #[inline]
    pub(crate) fn peek(&self, skip: u32, bytes: &mut [u8]) {
        debug_assert!(u64::from(skip) + bytes.len() as u64 <= u64::from(self.known()));
        let at = self.cons.wrapping_add(skip) & (self.size - 1);
        let to_end = (self.size - at) as usize;
        if bytes.len() <= to_end {
            self.wire.copy_out(self.ring, at, bytes);
        } else {
            let (first, rest) = bytes.split_at_mut(to_end);
            self.wire.copy_out(self.ring, at, first);
            self.wire.copy_out(self.ring, 0, rest);
        }
    }

    /// Counts the first `n` unread bytes as taken. The producer gets their room back by [`publish`](End::publish).
    #[inline]
    pub(crate) fn consume(&mut self, n: u32) {
        debug_assert!(n <= self.known());
        self.cons = self.cons.wrapping_add(n);
    }

    /// Looks at the producer's index, once. It may use the room that was given back to it, and no more.
    fn look(&mut self) -> Result<(), Violation> {
        let prod = self.wire.load_prod(self.ring);
        let claimed = prod.wrapping_sub(self.published);
        if claimed < self.prod.wrapping_sub(self.published) || claimed > self.size {
            return Err(Violation::Indices { ring: self.ring, prod, cons: self.cons, size: self.size });
        }
        self.prod = prod;
        Ok(())
    }
}

impl Consumer<Arc<Pages>> {
    /// A part of the unread bytes themselves: up to the end of the ring, and from its start.
    #[inline]
    pub(crate) fn unread(&self, part: Range<u32>) -> [VolatileSlice<'_>; 2] {
        debug_assert!(part.start <= part.end && part.end <= self.known());
        let at = self.cons.wrapping_add(part.start) & (self.size - 1);
        let len = part.end - part.start;
        let first = len.min(self.size - at);
        [(at, first), (0, len - first)].map(|(at, len)| self.wire.slice(self.ring, at, len))
    }
}

impl<W: Deref<Target: Wire>> End for Consumer<W> {
    const AWAITS: Notify = Notify::Write;

    #[inline]
    fn known(&self) -> u32 {
        self.prod.wrapping_sub(self.cons)
    }

    fn in_ring(&self) -> u32 {
        self.known()
    }

    fn available(&mut self, want: u32) -> Result<u32, Violation> {
        self.ready(want)
    }

    #[inline]
    fn held_back(&self) -> u32 {
        self.cons.wrapping_sub(self.published)
    }

    #[inline]
    fn publish(&mut self) -> Result<bool, Violation> {
        self.wire.store_cons(self.ring, self.cons);
        self.published = self.cons;
        notify::due(&*self.wire, Notify::Read)
    }

    fn before_sleep(&mut self, want: u32) -> Result<Outlook, Violation> {
        before_sleep(self, want, |end| &*end.wire)
    }
}

fn before_sleep<E: End, W: Wire + ?Sized>(
    end: &mut E,
    want: u32,
    wire: impl Fn(&E) -> &W,
) -> Result<Outlook, Violation> {
    notify::arm(wire(end), E::AWAITS);
    let mut gone = false;
    loop {
        let there = end.available(want)?;
        if there >= want {
            return Ok(Outlook::Enough(there));
        }
        if gone {
            return Ok(Outlook::Final(there));
        }
        // What the peer did before it went still counts: look once more.
        gone = wire(end).peer_gone()?;
        if !gone {
            return Ok(Outlook::Wait);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{SIZES, Shared, pattern, shared};
    use crate::page::{LIVE_GONE, LIVE_HERE, Side};
    use crate::wire::Pages;
    use proptest::prelude::*;
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::atomic::Ordering::SeqCst;

    /// Who fills a ring, and who empties it.
    type Pair = (Producer<Arc<Pages>>, Consumer<Arc<Pages>>);

    /// Both ends of both rings.
    struct Ends {
        shared: Shared,
        rings: [Pair; 2],
    }

    /// With all indices at `start`.
    fn ends(left_min: usize, right_min: usize, start: u32) -> Ends {
        let shared = shared(left_min, right_min);
        let orders =
            [Ring::Left, Ring::Right].map(|ring| shared.raw.atomic_u16(ring.order_offset()).load(SeqCst));
        for ring in [Ring::Left, Ring::Right] {
            shared.raw.atomic_u32(ring.prod_offset()).store(start, SeqCst);
            shared.raw.atomic_u32(ring.cons_offset()).store(start, SeqCst);
        }
        let attach = |ring, from: &Arc<Pages>, to: &Arc<Pages>, order: u16| {
            (
                Producer::attach(Arc::clone(from), ring, 1 << order).unwrap(),
                Consumer::attach(Arc::clone(to), ring, 1 << order).unwrap(),
            )
        };
        let rings = [
            attach(Ring::Left, &shared.client, &shared.server, orders[0]),
            attach(Ring::Right, &shared.server, &shared.client, orders[1]),
        ];
        Ends { shared, rings }
    }

    /// Fills in and counts what there is room for.
    fn produce(producer: &mut Producer<Arc<Pages>>, bytes: &[u8]) -> u32 {
        let len = bytes.len() as u32;
        let n = producer.room(len).unwrap().min(len);
        producer.fill(0, &bytes[..n as usize]);
        producer.commit(n);
        n
    }

    fn send(producer: &mut Producer<Arc<Pages>>, bytes: &[u8]) -> u32 {
        let n = produce(producer, bytes);
        let _ = producer.publish().unwrap();
        n
    }

    fn receive(consumer: &mut Consumer<Arc<Pages>>, len: u32) -> Vec<u8> {
        let n = consumer.ready(len).unwrap().min(len);
        let mut bytes = vec![0; n as usize];
        consumer.peek(0, &mut bytes);
        consumer.consume(n);
        let _ = consumer.publish().unwrap();
        bytes
    }

    #[test]
    fn bytes_arrive_through_every_pair_of_rings_and_round_the_end() {
        for (left_min, right_min, left, right) in SIZES {
            let mut ends = ends(left_min, right_min, 0);
            for ((producer, consumer), order) in ends.rings.iter_mut().zip([left, right]) {
                assert_eq!(producer.size(), 1 << order);
                let size = producer.size() as usize;
                // A length that is no divisor of the size, so that the ends fall everywhere.
                let (mut sent, part) = (0, size / 3 + 1);
                while sent < 4 * size {
                    let bytes = pattern(sent, part);
                    assert_eq!(send(producer, &bytes) as usize, part);
                    assert_eq!(receive(consumer, part as u32), bytes);
                    sent += part;
                }
            }
        }
    }

    #[test]
    fn the_rings_of_a_channel_do_not_touch_each_other_nor_the_header() {
        for (left_min, right_min, ..) in SIZES {
            let mut ends = ends(left_min, right_min, 0);
            let mut before = vec![0; 24];
            let fills: Vec<Vec<u8>> = ends
                .rings
                .iter_mut()
                .enumerate()
                .map(|(i, (producer, _))| vec![0xa0 + i as u8; producer.size() as usize])
                .collect();
            for ((producer, _), fill) in ends.rings.iter_mut().zip(&fills) {
                assert_eq!(send(producer, fill) as usize, fill.len());
                assert_eq!(send(producer, &[0]), 0, "full");
            }
            ends.shared.raw.copy_to(0, &mut before);
            for ((_, consumer), fill) in ends.rings.iter_mut().zip(&fills) {
                assert_eq!(&receive(consumer, u32::MAX), fill);
            }
            let order = |at: usize| u16::from_ne_bytes([before[at], before[at + 1]]);
            assert_eq!(
                (1 << order(16), 1 << order(18)),
                (fills[0].len(), fills[1].len()),
                "the header was not overwritten"
            );
        }
    }

    #[test]
    fn indices_go_on_past_the_largest_number() {
        for back in 0..=2048_u32 {
            let mut ends = ends(0, 0, 0_u32.wrapping_sub(back));
            let (producer, consumer) = &mut ends.rings[0];
            let bytes = pattern(back as usize, 1024);
            assert_eq!(send(producer, &bytes), 1024);
            assert_eq!(producer.room(1).unwrap(), 0);
            assert_eq!(consumer.ready(2000).unwrap(), 1024, "a full ring can be read");
            assert_eq!(receive(consumer, 5000), bytes);
            assert_eq!(consumer.ready(1).unwrap(), 0);
            assert_eq!(producer.room(1).unwrap(), 1024);
        }
    }

    #[test]
    fn what_was_not_published_is_not_seen_and_a_peek_consumes_nothing() {
        let mut ends = ends(0, 0, u32::MAX - 10);
        let (producer, consumer) = &mut ends.rings[0];
        producer.fill(0, b"hello, ");
        producer.fill(7, b"world");
        producer.commit(12);
        assert_eq!(consumer.ready(1).unwrap(), 0);
        assert_eq!(producer.held_back(), 12);
        let _ = producer.publish().unwrap();
        assert_eq!(producer.held_back(), 0);
        assert_eq!(consumer.ready(1).unwrap(), 12);
        let mut bytes = [0; 5];
        consumer.peek(7, &mut bytes);
        assert_eq!(&bytes, b"world");
        consumer.peek(0, &mut bytes);
        assert_eq!(&bytes, b"hello");
        assert_eq!(producer.room(1024).unwrap(), 1024 - 12);
        consumer.consume(7);
        assert_eq!(producer.room(1024).unwrap(), 1024 - 12);
        assert_eq!(consumer.held_back(), 7);
        let _ = consumer.publish().unwrap();
        assert_eq!(producer.room(1024).unwrap(), 1024 - 5);
        assert_eq!(receive(consumer, 99), b"world");
    }

    #[test]
    fn the_peers_index_is_read_only_when_what_is_known_does_not_suffice() {
        let mut ends = ends(0, 0, 0);
        let (producer, consumer) = &mut ends.rings[0];
        send(producer, &[1; 100]);
        assert_eq!(consumer.ready(50).unwrap(), 100);
        send(producer, &[2; 100]);
        assert_eq!(consumer.ready(100).unwrap(), 100);
        assert_eq!(consumer.ready(101).unwrap(), 200);
        receive(consumer, 200);
        assert_eq!(producer.room(824).unwrap(), 824);
        assert_eq!(producer.room(825).unwrap(), 1024);
    }

    #[test]
    fn the_own_index_is_never_read_back() {
        let mut ends = ends(0, 0, 0);
        let Ends { shared, rings } = &mut ends;
        let (producer, consumer) = &mut rings[0];
        let bytes = pattern(0, 600);
        send(producer, &bytes);
        assert_eq!(receive(consumer, 300), bytes[..300]);
        shared.raw.atomic_u32(Ring::Left.cons_offset()).store(0xdead_beef, SeqCst);
        assert_eq!(receive(consumer, 300), bytes[300..]);
        shared.raw.atomic_u32(Ring::Left.prod_offset()).store(0xdead_beef, SeqCst);
        send(producer, &bytes);
        assert_eq!(receive(consumer, 600), bytes);
    }

    #[test]
    fn whoever_goes_to_sleep_has_asked_for_a_signal_and_looked_again() {
        let mut ends = ends(0, 0, 0);
        let Ends { shared, rings } = &mut ends;
        shared.raw.atomic_u8(Side::Client.live_offset()).store(LIVE_HERE, SeqCst);
        shared.raw.atomic_u8(Side::Client.notify_offset()).store(0, SeqCst);
        let (producer, consumer) = &mut rings[0];
        assert_eq!(consumer.before_sleep(1).unwrap(), Outlook::Wait);
        assert_eq!(shared.raw.atomic_u8(Side::Client.notify_offset()).load(SeqCst), 1);
        produce(producer, &[1; 1024]);
        assert!(producer.publish().unwrap());
        assert!(!producer.publish().unwrap(), "once");
        assert_eq!(consumer.before_sleep(1).unwrap(), Outlook::Enough(1024));

        assert_eq!(producer.before_sleep(1).unwrap(), Outlook::Wait);
        assert_eq!(shared.raw.atomic_u8(Side::Server.notify_offset()).load(SeqCst), 2);
        consumer.consume(10);
        assert!(consumer.publish().unwrap());
        assert!(!consumer.publish().unwrap(), "once");
        assert_eq!(producer.before_sleep(10).unwrap(), Outlook::Enough(10));
    }

    /// A ring's words with a peer that acts at the worst moment, and a record of what was done to them.
    #[derive(Default)]
    struct Scripted {
        prod: Cell<u32>,
        cons: Cell<u32>,
        own_notify: Cell<u8>,
        /// The indices after the peer was asked for a signal; and after it was seen to have gone, if it goes.
        at_arm: Option<(u32, u32)>,
        at_end: Option<(u32, u32)>,
        log: RefCell<Vec<&'static str>>,
    }

    impl Scripted {
        fn note(&self, what: &'static str) {
            self.log.borrow_mut().push(what);
        }

        fn act(&self, indices: Option<(u32, u32)>) {
            if let Some((prod, cons)) = indices {
                self.prod.set(prod);
                self.cons.set(cons);
            }
        }
    }

    impl Wire for Scripted {
        fn load_prod(&self, _: Ring) -> u32 {
            self.note("load prod");
            self.prod.get()
        }
        fn load_cons(&self, _: Ring) -> u32 {
            self.note("load cons");
            self.cons.get()
        }
        fn store_prod(&self, _: Ring, prod: u32) {
            self.note("store prod");
            self.prod.set(prod);
        }
        fn store_cons(&self, _: Ring, cons: u32) {
            self.note("store cons");
            self.cons.set(cons);
        }
        fn copy_in(&self, _: Ring, _: u32, _: &[u8]) {
            self.note("copy in");
        }
        fn prefetch(&self, _: Ring, _: u32, _: u32) {}
        fn copy_out(&self, _: Ring, _: u32, _: &mut [u8]) {
            self.note("copy out");
        }
        fn own_notify(&self) -> u8 {
            self.note("look at the own byte");
            self.own_notify.get()
        }
        fn clear_own_notify(&self, bit: u8) -> u8 {
            self.note("clear the own bit");
            self.own_notify.replace(self.own_notify.get() & !bit)
        }
        fn set_peer_notify(&self, _: u8) {
            self.note("set the peer's bit");
            self.act(self.at_arm);
        }
        fn peer_gone(&self) -> Result<bool, Violation> {
            self.note("look for the end");
            self.act(self.at_end);
            Ok(self.at_end.is_some())
        }
        fn fence(&self) {
            self.note("fence");
        }
    }

    #[test]
    fn what_comes_between_the_look_and_the_request_is_seen() {
        let wire = Scripted { at_arm: Some((5, 0)), ..Scripted::default() };
        let mut consumer = Consumer::attach(&wire, Ring::Left, 1024).unwrap();
        assert_eq!(consumer.ready(1).unwrap(), 0);
        wire.log.take();
        assert_eq!(consumer.before_sleep(1).unwrap(), Outlook::Enough(5));
        assert_eq!(wire.log.take(), ["set the peer's bit", "fence", "load prod"]);

        let wire = Scripted { prod: Cell::new(1024), at_arm: Some((1024, 5)), ..Scripted::default() };
        let mut producer = Producer::attach(&wire, Ring::Left, 1024).unwrap();
        assert_eq!(producer.room(1).unwrap(), 0);
        wire.log.take();
        assert_eq!(producer.before_sleep(1).unwrap(), Outlook::Enough(5));
        assert_eq!(wire.log.take(), ["set the peer's bit", "fence", "load cons"]);
    }

    #[test]
    fn what_a_peer_did_right_before_its_end_is_seen() {
        for (sent, outlook) in [(0, Outlook::Final(0)), (3, Outlook::Final(3)), (9, Outlook::Enough(9))] {
            let wire = Scripted { at_end: Some((sent, 0)), ..Scripted::default() };
            let mut consumer = Consumer::attach(&wire, Ring::Left, 1024).unwrap();
            assert_eq!(consumer.before_sleep(9).unwrap(), outlook);

            let wire = Scripted { prod: Cell::new(1024), at_end: Some((1024, sent)), ..Scripted::default() };
            let mut producer = Producer::attach(&wire, Ring::Left, 1024).unwrap();
            assert_eq!(producer.before_sleep(9).unwrap(), outlook);
        }
    }

    #[test]
    fn bytes_are_published_after_they_were_copied_and_signals_sent_after_that() {
        let wire = Scripted { own_notify: Cell::new(3), ..Scripted::default() };
        let mut producer = Producer::attach(&wire, Ring::Left, 1024).unwrap();
        let mut consumer = Consumer::attach(&wire, Ring::Left, 1024).unwrap();
        wire.log.take();
        producer.fill(0, &[0; 10]);
        producer.commit(10);
        assert!(producer.publish().unwrap());
        assert_eq!(
            wire.log.take(),
            ["copy in", "store prod", "fence", "look at the own byte", "clear the own bit"]
        );
        assert!(!producer.publish().unwrap());
        assert_eq!(
            wire.log.take(),
            ["store prod", "fence", "look at the own byte"],
            "no atomic clear without need"
        );

        consumer.ready(10).unwrap();
        consumer.peek(0, &mut [0; 10]);
        consumer.consume(10);
        assert!(consumer.publish().unwrap());
        assert_eq!(
            wire.log.take(),
            ["load prod", "copy out", "store cons", "fence", "look at the own byte", "clear the own bit"]
        );
    }

    #[test]
    fn the_room_that_a_peer_makes_before_it_goes_counts() {
        let mut ends = ends(0, 0, 0);
        let Ends { shared, rings } = &mut ends;
        let (producer, consumer) = &mut rings[0];
        send(producer, &[1; 1024]);
        receive(consumer, 24);
        shared.raw.atomic_u8(Side::Server.live_offset()).store(LIVE_GONE, SeqCst);
        assert_eq!(producer.before_sleep(1024).unwrap(), Outlook::Final(24));
    }

    /// Where a run begins: anywhere, with most runs round the largest number.
    fn start() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), (0..5000_u32).prop_map(|back| 2500_u32.wrapping_sub(back))]
    }

    proptest! {
        #[test]
        fn a_ring_is_a_queue(
            start in start(),
            pair in 0..SIZES.len() - 1,
            left in any::<bool>(),
            steps in prop::collection::vec((any::<bool>(), 0..6000_usize), 1..60),
        ) {
            let (left_min, right_min, ..) = SIZES[pair];
            let mut ends = ends(left_min, right_min, start);
            let (producer, consumer) = &mut ends.rings[usize::from(left)];
            let mut model = VecDeque::new();
            let mut sent = 0;
            for (sending, len) in steps {
                if sending {
                    let bytes = pattern(sent, len);
                    let n = send(producer, &bytes) as usize;
                    prop_assert_eq!(n, len.min(producer.size() as usize - model.len()));
                    model.extend(&bytes[..n]);
                    sent += n;
                } else {
                    let expected: Vec<u8> = model.drain(..len.min(model.len())).collect();
                    prop_assert_eq!(receive(consumer, len as u32), expected);
                }
            }
        }

        #[test]
        fn a_consumer_believes_no_impossible_index(
            start in start(),
            known in 0..=1024_u32,
            consumed in 0..=1024_u32,
            claimed in prop_oneof![any::<u32>(), 0..4096_u32],
        ) {
            let consumed = consumed.min(known);
            let mut ends = ends(0, 0, start);
            let Ends { shared, rings } = &mut ends;
            let consumer = &mut rings[0].1;
            let prod = shared.raw.atomic_u32(Ring::Left.prod_offset());
            prod.store(start.wrapping_add(known), SeqCst);
            prop_assert_eq!(consumer.ready(1024).unwrap(), known);
            consumer.consume(consumed);
            let _ = consumer.publish().unwrap();

            let cons = start.wrapping_add(consumed);
            let claim = cons.wrapping_add(claimed);
            prod.store(claim, SeqCst);
            let legal = claimed >= known - consumed && claimed <= 1024;
            let looked = known - consumed < 1024;
            let answer = consumer.ready(1024);
            if !looked {
                prop_assert_eq!(answer, Ok(1024));
            } else if legal {
                prop_assert_eq!(answer, Ok(claimed));
            } else {
                let violation = Violation::Indices { ring: Ring::Left, prod: claim, cons, size: 1024 };
                prop_assert_eq!(answer, Err(violation));
                prop_assert_eq!(consumer.ready(0), Ok(known - consumed), "what was seen before stays");
            }
        }

        #[test]
        fn a_producer_believes_no_impossible_index(
            start in start(),
            used in 0..=1024_u32,
            freed in 0..=1024_u32,
            claimed in prop_oneof![any::<u32>(), 0..4096_u32],
        ) {
            let freed = freed.min(used);
            let mut ends = ends(0, 0, start);
            let Ends { shared, rings } = &mut ends;
            let producer = &mut rings[0].0;
            let cons = shared.raw.atomic_u32(Ring::Left.cons_offset());
            producer.commit(used);
            let _ = producer.publish().unwrap();
            cons.store(start.wrapping_add(freed), SeqCst);
            prop_assert_eq!(producer.room(1024).unwrap(), 1024 - used + freed);

            let left = used - freed;
            let claim = start.wrapping_add(freed).wrapping_add(claimed);
            cons.store(claim, SeqCst);
            let answer = producer.room(1024);
            if left == 0 {
                prop_assert_eq!(answer, Ok(1024));
            } else if claimed <= left {
                prop_assert_eq!(answer, Ok(1024 - left + claimed));
            } else {
                let prod = start.wrapping_add(used);
                let violation = Violation::Indices { ring: Ring::Left, prod, cons: claim, size: 1024 };
                prop_assert_eq!(answer, Err(violation));
                prop_assert_eq!(producer.room(0), Ok(1024 - left), "what was seen before stays");
            }
        }

        #[test]
        fn attaching_to_impossible_indices_is_refused(prod in any::<u32>(), cons in any::<u32>()) {
            let shared = shared(0, 0);
            shared.raw.atomic_u32(Ring::Right.prod_offset()).store(prod, SeqCst);
            shared.raw.atomic_u32(Ring::Right.cons_offset()).store(cons, SeqCst);
            let possible = prod.wrapping_sub(cons) <= 2048;
            let consumer = Consumer::attach(Arc::clone(&shared.client), Ring::Right, 2048);
            prop_assert_eq!(consumer.is_ok(), possible);
            let producer = Producer::attach(Arc::clone(&shared.server), Ring::Right, 2048);
            prop_assert_eq!(producer.is_ok(), possible);
        }
    }
}
