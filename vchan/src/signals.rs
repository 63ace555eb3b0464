//! For callers that ask for signals and wait for them by themselves, as those of libxenvchan's C functions do: they look how
//! much there is, hold the descriptor, and take events in their own time.
//!
//! What the halves do by themselves before they sleep, such a caller does in steps: [ask](Receiver::ask), which also looks,
//! and then [wait](Signals::wait), or wait for the descriptor. Whatever the peer does after the look is a new event.

use crate::deadline::Deadline;
use crate::link::Link;
use crate::notify;
use crate::ring::End;
use crate::wait::Ticket;
use crate::wire::Pages;
use crate::{Receiver, Result, Sender, State};
use parking_lot::Mutex;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

/// The signals of a channel, beside its halves ([`Channel::into_parts`](crate::Channel::into_parts)).
///
/// The channel is closed when both halves are closed or dropped; its descriptor stays open as long as this lives.
#[derive(Debug)]
pub struct Signals {
    link: Arc<Link>,
    /// The events of which the caller knows.
    known: Mutex<Ticket>,
}

impl Signals {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        let known = Mutex::new(link.waiter().ticket());
        Self { link, known }
    }

    /// Waits until there was an event since this was called last: also one that an operation of a half took while it
    /// slept. Takes it. Returns now and then without one.
    ///
    /// # Errors
    /// [`TimedOut`](crate::Error::TimedOut), [`PeerDied`](crate::Error::PeerDied), [`ClosedHere`](crate::Error::ClosedHere),
    /// [`Violation`](crate::Error::Violation), or a failed call.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        self.link.check_open()?;
        let known = *self.known.lock();
        let slept = self.link.sleep(known, &mut Deadline::new(timeout));
        let now = self.link.waiter().ticket();
        *self.known.lock() = now;
        slept?;
        self.link.check_open()?;
        self.link.check_alive()
    }

    /// The descriptor to wait for; see [`Channel::event_fd`](crate::Channel::event_fd).
    #[must_use]
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.waiter().event_fd()
    }

    /// Whether the peer is there.
    ///
    /// # Errors
    /// [`Violation`](crate::Error::Violation), [`PeerDied`](crate::Error::PeerDied), [`ClosedHere`](crate::Error::ClosedHere).
    pub fn state(&self) -> Result<State> {
        self.link.state()
    }

    /// Looks whether the peer's domain still exists; see [`Channel::probe`](crate::Channel::probe).
    ///
    /// # Errors
    /// [`PeerDied`](crate::Error::PeerDied).
    pub fn probe(&self) -> Result<()> {
        self.link.probe()
    }

    /// Whether a server outlives its clients, from now on; see [`ListenOptions::persist`](crate::ListenOptions::persist).
    pub fn set_persist(&self, persist: bool) {
        self.link.pages().set_persist(persist);
    }

    /// From now on the end of the peer lasts no longer than its live byte says so. For servers of several clients one after
    /// another that see the end of each (as libxenvchan's do, without any setting).
    pub fn set_reopens(&self) {
        self.link.pages().set_reopens();
    }
}

impl Receiver {
    /// Asks the peer for an event when it sends next, and looks: how many bytes are ready now. If the caller takes them
    /// all, or wants more, the event tells it when to look again.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), but for having to wait.
    pub fn ask(&mut self) -> Result<usize> {
        self.half.begin()?;
        arm(&self.half.link, &self.consumer);
        self.available(usize::MAX)
    }

    /// How many bytes are ready, as far as is known; looks only if fewer than `want` are.
    ///
    /// # Errors
    /// As [`ready`](Self::ready).
    #[inline]
    pub fn available(&mut self, want: usize) -> Result<usize> {
        available(&self.half.link, &mut self.consumer, want)
    }

    /// How many bytes were ready when it was looked last.
    #[must_use]
    pub fn known(&self) -> usize {
        self.consumer.known() as usize
    }

    /// Bytes that were received and whose room was not given back yet; see [`give_back`](Self::give_back).
    #[must_use]
    #[inline]
    pub fn held_back(&self) -> usize {
        self.consumer.held_back() as usize
    }
}

impl Sender {
    /// Asks the peer for an event when it receives next, and looks: how much room there is now.
    ///
    /// # Errors
    /// As [`send`](Self::send), but for having to wait.
    pub fn ask(&mut self) -> Result<usize> {
        self.half.begin()?;
        arm(&self.half.link, &self.producer);
        self.available(usize::MAX)
    }

    /// How much room there is, as far as is known; looks only if less than `want` is.
    ///
    /// # Errors
    /// As [`room`](Self::room).
    #[inline]
    pub fn available(&mut self, want: usize) -> Result<usize> {
        available(&self.half.link, &mut self.producer, want)
    }

    /// Sends all of a few bytes if the peer is here and, as far as is known, there is room for them. False: nothing was done.
    ///
    /// # Errors
    /// When the peer could not be signalled; they are sent all the same.
    #[inline]
    pub fn send_at_once(&mut self, bytes: &[u8]) -> Result<bool> {
        Ok(self.send_short(bytes) && self.half.said().map(|()| true)?)
    }

    /// Whether [`state`](Self::state) says [`Open`](State::Open) for certain: a short form for the usual case.
    #[must_use]
    #[inline]
    pub fn is_open(&self) -> bool {
        self.half.link.is_usable() && self.half.link.is_peer_here()
    }

    /// How much room there was when it was looked last.
    #[must_use]
    pub fn known(&self) -> usize {
        self.producer.known() as usize
    }
}

fn arm<E: End>(link: &Link, _: &E) {
    notify::arm::<Pages>(link.pages(), E::AWAITS);
}

#[inline]
fn available<E: End>(link: &Link, end: &mut E, want: usize) -> Result<usize> {
    link.check_open()?;
    let known = end.known();
    if known as usize >= want {
        return Ok(known as usize);
    }
    // More than any ring holds: a look in any case but that of a full one, which cannot have become fuller.
    let want = u32::try_from(want).unwrap_or(u32::MAX);
    Ok(link.check(end.available(want))? as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Channel, ConnectOptions, Error, ListenOptions, Listener, State};
    use xen::DomId;
    use xen::mock::Machine;

    const LONG: Option<Duration> = Some(Duration::from_secs(20));
    const SHORT: Option<Duration> = Some(Duration::from_millis(20));
    const PATH: &str = "data/vchan/2/1";

    fn server(machine: &Machine) -> (Sender, Receiver, Signals) {
        let options = ListenOptions { read_min: 4096, write_min: 4096, ..ListenOptions::default() };
        Listener::open(&machine.domain(DomId(1)), DomId(2), PATH, &options)
            .unwrap()
            .into_channel()
            .into_parts()
    }

    fn client(machine: &Machine) -> Channel {
        Channel::connect(&machine.domain(DomId(2)), DomId(1), PATH, &ConnectOptions::default()).unwrap()
    }

    /// Takes all events that are there.
    fn quiet(signals: &Signals) {
        while signals.wait(SHORT).is_ok() {}
    }

    #[test]
    fn who_asked_is_told_once() {
        let machine = Machine::new();
        let (mut sender, mut receiver, signals) = server(&machine);
        let mut client = client(&machine);
        assert_eq!((receiver.ask().unwrap(), receiver.known()), (0, 0));
        quiet(&signals);
        client.send_all(b"one").unwrap();
        signals.wait(LONG).unwrap();
        assert_eq!(receiver.available(1).unwrap(), 3);
        client.send_all(b"two").unwrap();
        assert!(matches!(signals.wait(SHORT), Err(Error::TimedOut(_))), "it was not asked again");
        assert_eq!(receiver.available(3).unwrap(), 3, "that much is known");
        assert_eq!(receiver.ask().unwrap(), 6, "a look comes with it");

        sender.send_all(&[1; 4096]).unwrap();
        assert_eq!((sender.known(), sender.ask().unwrap()), (0, 0));
        client.recv_exact(&mut [0; 4000]).unwrap();
        client.give_back().unwrap();
        signals.wait(LONG).unwrap();
        assert_eq!(sender.available(1).unwrap(), 4000);
    }

    #[test]
    fn what_was_received_and_not_given_back_is_counted() {
        let machine = Machine::new();
        let (_sender, mut receiver, _signals) = server(&machine);
        client(&machine).send_all(&[1; 100]).unwrap();
        receiver.recv_exact(&mut [0; 10]).unwrap();
        assert_eq!(receiver.held_back(), 10);
        receiver.give_back().unwrap();
        assert_eq!(receiver.held_back(), 0);
    }

    #[test]
    fn an_event_that_an_operation_took_counts() {
        let machine = Machine::new();
        let (_sender, mut receiver, signals) = server(&machine);
        receiver.set_spinning(false);
        let mut client = client(&machine);
        quiet(&signals);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(SHORT.unwrap());
                client.send_all(b"one").unwrap();
            });
            assert_eq!(receiver.recv(&mut [0; 10]).unwrap(), 3);
        });
        signals.wait(SHORT).unwrap();
        assert!(matches!(signals.wait(SHORT), Err(Error::TimedOut(_))));
    }

    #[test]
    fn a_channel_that_reopens_has_an_end_for_each_client() {
        let machine = Machine::new();
        let (sender, mut receiver, signals) = server(&machine);
        signals.set_reopens();
        let mut byte = [0];
        for round in 1..4 {
            assert_eq!(
                signals.state().unwrap(),
                if round == 1 { State::Waiting } else { State::Closed },
                "before client {round}"
            );
            let mut client = client(&machine);
            assert_eq!(signals.state().unwrap(), State::Open);
            client.send_all(&[round]).unwrap();
            client.close().unwrap();
            assert_eq!((receiver.recv(&mut byte).unwrap(), byte[0]), (1, round));
            assert_eq!(receiver.recv(&mut byte).unwrap(), 0);
        }
        signals.set_persist(true);
        assert_eq!(sender.state().unwrap(), State::Waiting);
        signals.set_persist(false);
        assert_eq!(sender.state().unwrap(), State::Closed);
    }
}
