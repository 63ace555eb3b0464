//! The ring, the notify bits and the close, as they ship, under every order in which two threads can take their steps and
//! see each other's stores (loom).
//!
//! What is modelled are the words of the control page and the event; what runs are [`Producer`], [`Consumer`] and what they
//! call. A thread that sleeps and is not woken is a deadlock, which loom reports. The properties are those of the TLA+
//! model of vchan (talex5/spec-vchan): no wake-up is lost, no byte is lost, nobody waits for ever.

use crate::page::{LIVE_GONE, LIVE_HERE};
use crate::ring::{Consumer, End, Outlook, Producer};
use crate::wire::Wire;
use crate::{Ring, Side, Violation};
use loom::sync::Arc;
use loom::sync::Notify as Event;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use loom::sync::atomic::{AtomicU8, AtomicU32, fence};
use loom::thread;

/// Bytes of the ring that is modelled: it is full, and wraps, soon.
const SIZE: u32 = 2;

/// One ring (from the client to the server) and what belongs to it.
struct Memory {
    prod: AtomicU32,
    cons: AtomicU32,
    bytes: [AtomicU8; SIZE as usize],
    client: Words,
    server: Words,
}

/// What the control page has of each side; and the event channel's end of it.
struct Words {
    live: AtomicU8,
    notify: AtomicU8,
    event: Event,
}

impl Words {
    fn new() -> Self {
        Self { live: AtomicU8::new(LIVE_HERE), notify: AtomicU8::new(0), event: Event::new() }
    }
}

/// A side's view of it.
struct View {
    memory: Arc<Memory>,
    side: Side,
    /// Without them the protocol is wrong; the tests show that they would notice.
    fences: bool,
}

impl View {
    fn words(&self, side: Side) -> &Words {
        match side {
            Side::Client => &self.memory.client,
            Side::Server => &self.memory.server,
        }
    }

    fn signal(&self) {
        self.words(self.side.peer()).event.notify();
    }

    fn sleep(&self) {
        self.words(self.side).event.wait();
    }

    fn close(&self) {
        self.words(self.side).live.store(LIVE_GONE, Release);
        self.signal();
    }
}

impl Wire for View {
    fn load_prod(&self, _: Ring) -> u32 {
        self.memory.prod.load(Acquire)
    }
    fn load_cons(&self, _: Ring) -> u32 {
        self.memory.cons.load(Acquire)
    }
    fn store_prod(&self, _: Ring, prod: u32) {
        self.memory.prod.store(prod, Release);
    }
    fn store_cons(&self, _: Ring, cons: u32) {
        self.memory.cons.store(cons, Release);
    }
    fn copy_in(&self, _: Ring, at: u32, bytes: &[u8]) {
        for (place, byte) in self.memory.bytes[at as usize..].iter().zip(bytes) {
            place.store(*byte, Relaxed);
        }
    }
    fn prefetch(&self, _: Ring, _: u32, _: u32) {}
    fn copy_out(&self, _: Ring, at: u32, bytes: &mut [u8]) {
        for (place, byte) in self.memory.bytes[at as usize..].iter().zip(bytes) {
            *byte = place.load(Relaxed);
        }
    }
    fn own_notify(&self) -> u8 {
        self.words(self.side).notify.load(Relaxed)
    }
    fn clear_own_notify(&self, bit: u8) -> u8 {
        self.words(self.side).notify.fetch_and(!bit, AcqRel)
    }
    fn set_peer_notify(&self, bit: u8) {
        self.words(self.side.peer()).notify.fetch_or(bit, AcqRel);
    }
    fn peer_gone(&self) -> Result<bool, Violation> {
        Ok(self.words(self.side.peer()).live.load(Acquire) == LIVE_GONE)
    }
    fn fence(&self) {
        if self.fences {
            fence(SeqCst);
        }
    }
}

/// Publishes, and signals if that is due, as a half of a channel does.
fn publish<E: End>(end: &mut E, view: &View) {
    if end.held_back() > 0 && end.publish().expect("the model keeps the rules") {
        view.signal();
    }
}

/// Waits as a half of a channel does; false when the peer has gone.
fn wait<E: End>(end: &mut E, view: &View) -> bool {
    publish(end, view);
    loop {
        match end.before_sleep(1).expect("the model keeps the rules") {
            Outlook::Enough(_) => return true,
            Outlook::Final(there) => return there > 0,
            Outlook::Wait => view.sleep(),
        }
    }
}

/// Sends the bytes 1, 2, …, published one by one, and closes if told to.
fn send(view: &View, count: u8, close: bool) {
    let mut producer = Producer::attach(view, Ring::Left, SIZE).expect("an empty ring");
    for byte in 1..=count {
        if producer.room(1).expect("the model keeps the rules") == 0 {
            assert!(wait(&mut producer, view), "the consumer stays");
        }
        producer.fill(0, &[byte]);
        producer.commit(1);
        publish(&mut producer, view);
    }
    if close {
        view.close();
    }
}

/// Receives until so many have come, or until the end; and says how many they were.
fn receive(view: &View, count: u8) -> u8 {
    let mut consumer = Consumer::attach(view, Ring::Left, SIZE).expect("an empty ring");
    let mut got = 0;
    while got < count {
        if consumer.ready(1).expect("the model keeps the rules") == 0 && !wait(&mut consumer, view) {
            break;
        }
        let mut byte = [0];
        consumer.peek(0, &mut byte);
        consumer.consume(1);
        got += 1;
        assert_eq!(byte, [got], "in order and whole");
        // As a half does: when all that is known was taken.
        if consumer.known() == 0 {
            publish(&mut consumer, view);
        }
    }
    got
}

/// A sender and a receiver of `count` bytes, who have fences or not.
fn converse(count: u8, close: bool, sender_fences: bool, receiver_fences: bool) {
    let mut builder = loom::model::Builder::new();
    // Enough for every interleaving in which the two get in each other's way; all of them would take hours.
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let memory = Arc::new(Memory {
            prod: AtomicU32::new(0),
            cons: AtomicU32::new(0),
            bytes: [AtomicU8::new(0), AtomicU8::new(0)],
            client: Words::new(),
            server: Words::new(),
        });
        let client = View { memory: Arc::clone(&memory), side: Side::Client, fences: sender_fences };
        let server = View { memory, side: Side::Server, fences: receiver_fences };
        let sending = thread::spawn(move || send(&client, count, close));
        // Of a sender that closes, more is awaited than comes.
        let wanted = if close { u8::MAX } else { count };
        assert_eq!(receive(&server, wanted), count, "no byte is lost");
        sending.join().expect("the sender ends");
    });
}

#[test]
fn no_wake_up_of_a_receiver_is_lost() {
    converse(2, false, true, true);
}

#[test]
fn no_wake_up_of_a_sender_is_lost() {
    converse(SIZE as u8 + 1, false, true, true);
}

#[test]
fn no_byte_before_a_close_is_lost() {
    converse(1, true, true, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_senders_fence_a_wake_up_is_lost() {
    converse(1, false, false, true);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_receivers_fence_a_wake_up_is_lost() {
    converse(1, false, true, false);
}
