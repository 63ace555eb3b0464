//! Sleeping until the peer signals, from one thread or from two.
//!
//! A channel has one event channel and one descriptor for both directions, and Xen hands each event out once: were two
//! threads to read the descriptor, each would take events that the other waits for. So one of them, the *leader*,
//! sleeps on the descriptor for both; the other, if there is one, sleeps on a condition variable. Whatever the leader
//! wakes for, it counts the event and wakes the other, and each looks at its own ring. When the leader leaves without
//! an event (its time is up), the other takes its place.
//!
//! What makes this safe against lost wake-ups is the [`Ticket`]: the count of events, taken *before* a thread looks at
//! the shared page for the last time. If an event was counted since, the thread does not sleep: what the event told of
//! may have come after the look.
//!
//! The leader takes an event and unmasks the port before anybody looks at the shared page, so what happens after that
//! look is a new event.
//!
//! Without an end to its time a leader sleeps in the read that takes the event, as libxenvchan does: one system call. Who
//! wants to wake it without the peer sends it an event of its own, through an event channel that has both ends at this
//! handle (the *bell*).

use crate::{Error, Result};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};
use xen::{DomId, ErrorKind, EventChannels, Port};

/// A local port, closed when this is dropped.
pub(crate) struct BoundPort {
    events: Arc<dyn EventChannels>,
    port: Port,
}

impl BoundPort {
    pub(crate) fn new(events: Arc<dyn EventChannels>, port: Port) -> Self {
        Self { events, port }
    }

    pub(crate) fn port(&self) -> Port {
        self.port
    }

    /// Signals the peer.
    pub(crate) fn notify(&self) -> Result<()> {
        Ok(self.events.notify(self.port)?)
    }
}

impl Drop for BoundPort {
    fn drop(&mut self) {
        // Fails only if the port is not open: then there is nothing to close.
        let _ = self.events.unbind(self.port);
    }
}

/// How many events there were before a thread looked whether it has to sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket(u64);

/// How a sleep ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Woken {
    /// There was an event since the ticket was taken: look again.
    Look,
    /// The time was up.
    TimedOut,
}

/// An event channel from this domain to itself.
struct Bell {
    /// Where its event arrives; held to be closed.
    _arrival: BoundPort,
    rope: BoundPort,
}

impl Bell {
    fn hang(events: &Arc<dyn EventChannels>, own: DomId) -> Result<Self> {
        let arrival = BoundPort::new(Arc::clone(events), events.bind_unbound(own)?);
        let rope = events.bind_interdomain(own, arrival.port())?;
        Ok(Self { _arrival: arrival, rope: BoundPort::new(Arc::clone(events), rope) })
    }
}

/// Lets the threads of a channel sleep until its peer signals.
pub(crate) struct Waiter {
    // Before the peer's port: what is dropped last takes the handle along.
    bell: Mutex<Option<Bell>>,
    own: DomId,
    bound: BoundPort,
    /// Whether there is a leader ([`LED`]: a thread that sleeps on the descriptor, or takes an event from it), and above
    /// that the count of events. In one word, so that who wants to lead learns in one step whether an event was counted.
    state: AtomicU64,
    /// Threads that follow, or are about to.
    followers: Mutex<usize>,
    /// The leader left, or an event was counted.
    turned: Condvar,
    /// Whether there are followers. Set before a follower looks at the state, read after the state was changed: one of the
    /// two sees the other.
    followed: AtomicBool,
}

/// In [`Waiter::state`]: there is a leader.
const LED: u64 = 1;
/// In [`Waiter::state`]: one event.
const EVENT: u64 = 2;

impl Waiter {
    pub(crate) fn new(bound: BoundPort, own: DomId) -> Self {
        Self {
            bell: Mutex::new(None),
            own,
            bound,
            state: AtomicU64::new(0),
            followers: Mutex::new(0),
            turned: Condvar::new(),
            followed: AtomicBool::new(false),
        }
    }

    pub(crate) fn bound(&self) -> &BoundPort {
        &self.bound
    }

    /// The descriptor that is readable when there is an event.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.bound.events.as_fd()
    }

    /// To be called before more than one thread uses the channel: afterwards an interruption does not fail.
    pub(crate) fn allow_interruption(&self) -> Result<()> {
        let mut bell = self.bell.lock();
        if bell.is_none() {
            *bell = Some(Bell::hang(&self.bound.events, self.own)?);
        }
        Ok(())
    }

    /// Wakes whoever sleeps. What for is to be seen before this is called: who wakes looks.
    pub(crate) fn interrupt(&self) -> Result<()> {
        let before = self.state.fetch_add(EVENT, SeqCst);
        self.wake_followers();
        if before & LED != 0 {
            // Somebody sleeps on the descriptor, or is about to: the event waits there.
            self.allow_interruption()?;
            if let Some(bell) = &*self.bell.lock() {
                bell.rope.notify()?;
            }
        }
        Ok(())
    }

    /// The events so far, if a thread sleeps on the descriptor now.
    pub(crate) fn asleep(&self) -> Option<Ticket> {
        let state = self.state.load(Relaxed);
        (state & LED != 0).then_some(Ticket(state & !LED))
    }

    /// To be taken before the look that decides whether to sleep.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(self.state.load(Acquire) & !LED)
    }

    /// Sleeps until there was an event since `ticket`, or until the time is up.
    pub(crate) fn sleep(&self, ticket: Ticket, until: Option<Instant>) -> Result<Woken> {
        loop {
            match self.state.compare_exchange(ticket.0, ticket.0 | LED, SeqCst, SeqCst) {
                Ok(_) => break,
                Err(state) if state & !LED != ticket.0 => return Ok(Woken::Look),
                Err(_) => match self.follow(ticket, until) {
                    Some(woken) => return Ok(woken),
                    None => continue,
                },
            }
        }
        let taken = self.take_event(until);
        self.stop_leading(&taken);
        Ok(if taken? { Woken::Look } else { Woken::TimedOut })
    }

    /// Sleeps while another thread leads. None: nobody leads any more.
    fn follow(&self, ticket: Ticket, until: Option<Instant>) -> Option<Woken> {
        let mut followers = self.followers.lock();
        *followers += 1;
        self.followed.store(true, SeqCst);
        let woken = loop {
            let state = self.state.load(SeqCst);
            if state & !LED != ticket.0 {
                break Some(Woken::Look);
            }
            if state & LED == 0 {
                break None;
            }
            match until {
                None => self.turned.wait(&mut followers),
                Some(until) if self.turned.wait_until(&mut followers, until).timed_out() => {
                    let counted = self.state.load(SeqCst) & !LED != ticket.0;
                    break Some(if counted { Woken::Look } else { Woken::TimedOut });
                }
                Some(_) => {}
            }
        };
        *followers -= 1;
        if *followers == 0 {
            self.followed.store(false, SeqCst);
        }
        woken
    }

    /// Takes an event that has arrived, if there is one, so that the descriptor is readable for later ones alone. Does
    /// not sleep. (Where another thread sleeps on the descriptor, it takes the event.)
    pub(crate) fn drain(&self) -> Result<()> {
        if self.state.fetch_or(LED, SeqCst) & LED != 0 {
            return Ok(());
        }
        let taken = self.take_event(Some(Instant::now()));
        self.stop_leading(&taken);
        taken.map(|_| ())
    }

    fn stop_leading(&self, taken: &Result<bool>) {
        let change = if matches!(taken, Ok(true)) { EVENT.wrapping_sub(LED) } else { LED.wrapping_neg() };
        self.state.fetch_add(change, SeqCst);
        self.wake_followers();
    }

    fn wake_followers(&self) {
        if self.followed.load(SeqCst) {
            let followers = self.followers.lock();
            self.turned.notify_all();
            drop(followers);
        }
    }

    /// Sleeps on the descriptor and takes an event from it; false when the time was up before there was one.
    fn take_event(&self, until: Option<Instant>) -> Result<bool> {
        if until.is_some() {
            let event = PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN);
            if !poll_until(&mut [event], until)?[0] {
                return Ok(false);
            }
        }
        // Blocks only if no end was set: readable means that there is an event (or that the descriptor is broken, which
        // this call then says), and nobody else takes events.
        let port = loop {
            match self.bound.events.pending() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                taken => break taken?,
            }
        };
        self.bound.events.unmask(port)?;
        Ok(true)
    }
}

/// Sleeps until a descriptor is ready or in error, or the time is up; says which are. Starts over after a signal.
pub(crate) fn poll_until<const N: usize>(
    fds: &mut [PollFd<'_>; N],
    until: Option<Instant>,
) -> Result<[bool; N]> {
    loop {
        let left = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        match poll(fds, left.as_ref()) {
            Ok(_) => return Ok(fds.each_ref().map(|fd| !fd.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::System { call: "poll", source: errno.into() }),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// When an operation has to end that may take `timeout`: counted from the first time that it has to wait, so that an
/// operation which need not wait does not look at the clock.
#[derive(Debug)]
pub(crate) struct Deadline {
    timeout: Option<Duration>,
    at: Option<Instant>,
}

impl Deadline {
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        Self { timeout, at: None }
    }

    /// The time; none if the operation may take for ever.
    pub(crate) fn at(&mut self) -> Option<Instant> {
        if self.at.is_none() {
            self.at = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        }
        self.at
    }

    /// The error when the time is up.
    pub(crate) fn passed(&mut self) -> Result<()> {
        match (self.at(), self.timeout) {
            (Some(at), Some(timeout)) if at <= Instant::now() => Err(Error::TimedOut(timeout)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use xen::mock::Machine;
    use xen::{DomId, Platform};

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(20);

    struct Ends {
        machine: Machine,
        near: Waiter,
        far: BoundPort,
    }

    fn ends() -> Ends {
        let machine = Machine::new();
        let near = machine.domain(DomId(1)).event_channels().unwrap();
        let port = near.bind_unbound(DomId(2)).unwrap();
        let far = machine.domain(DomId(2)).event_channels().unwrap();
        let far_port = far.bind_interdomain(DomId(1), port).unwrap();
        let near = Waiter::new(BoundPort::new(near, port), DomId(1));
        machine.reset_counts();
        Ends { machine, near, far: BoundPort::new(far, far_port) }
    }

    fn soon() -> Option<Instant> {
        Some(Instant::now() + SHORT)
    }

    fn late() -> Option<Instant> {
        Some(Instant::now() + LONG)
    }

    #[test]
    fn an_event_ends_a_sleep_and_is_taken() {
        let Ends { near, far, .. } = ends();
        let ticket = near.ticket();
        assert_eq!(near.sleep(ticket, soon()).unwrap(), Woken::TimedOut);
        far.notify().unwrap();
        assert_eq!(near.sleep(ticket, late()).unwrap(), Woken::Look);
        assert_eq!(near.sleep(ticket, late()).unwrap(), Woken::Look, "since the ticket there was one");
        assert_eq!(near.sleep(near.ticket(), soon()).unwrap(), Woken::TimedOut);
        far.notify().unwrap();
        assert_eq!(near.sleep(near.ticket(), late()).unwrap(), Woken::Look, "the port was unmasked");
    }

    #[test]
    fn an_event_that_another_thread_took_since_the_ticket_prevents_the_sleep() {
        let Ends { near, far, machine } = ends();
        let ticket = near.ticket();
        far.notify().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| assert_eq!(near.sleep(near.ticket(), late()).unwrap(), Woken::Look));
        });
        assert_eq!(near.sleep(ticket, late()).unwrap(), Woken::Look);
        assert_eq!(machine.counts().of("xenevtchn_pending"), 1, "it was taken once");
    }

    #[test]
    fn one_event_wakes_both_sleepers() {
        let Ends { near, far, machine } = ends();
        thread::scope(|scope| {
            let ticket = near.ticket();
            let near = &near;
            let sleepers = [(); 2].map(|()| scope.spawn(move || near.sleep(ticket, late()).unwrap()));
            thread::sleep(SHORT);
            far.notify().unwrap();
            for sleeper in sleepers {
                assert_eq!(sleeper.join().unwrap(), Woken::Look);
            }
        });
        assert_eq!(machine.counts().of("xenevtchn_pending"), 1, "one slept on the descriptor for both");
    }

    #[test]
    fn the_follower_leads_when_the_leader_leaves() {
        let Ends { near, far, .. } = ends();
        thread::scope(|scope| {
            let (near, ticket) = (&near, near.ticket());
            let leader =
                scope.spawn(move || near.sleep(near.ticket(), Some(Instant::now() + 2 * SHORT)).unwrap());
            thread::sleep(SHORT);
            let follower = scope.spawn(move || near.sleep(ticket, late()).unwrap());
            assert_eq!(leader.join().unwrap(), Woken::TimedOut);
            far.notify().unwrap();
            assert_eq!(follower.join().unwrap(), Woken::Look);
        });
    }

    #[test]
    fn a_follower_gives_up_in_time() {
        let Ends { near, far, .. } = ends();
        thread::scope(|scope| {
            let leader = scope.spawn(|| near.sleep(near.ticket(), late()).unwrap());
            thread::sleep(SHORT);
            let begin = Instant::now();
            assert_eq!(near.sleep(near.ticket(), soon()).unwrap(), Woken::TimedOut);
            assert!(begin.elapsed() < LONG / 2);
            far.notify().unwrap();
            assert_eq!(leader.join().unwrap(), Woken::Look);
        });
    }

    #[test]
    fn draining_takes_what_is_there_and_does_not_sleep() {
        let Ends { near, far, machine } = ends();
        near.drain().unwrap();
        assert_eq!(machine.counts().of("xenevtchn_pending"), 0);
        let ticket = near.ticket();
        far.notify().unwrap();
        near.drain().unwrap();
        assert_eq!(near.sleep(ticket, late()).unwrap(), Woken::Look, "it was counted");
        assert_eq!(near.sleep(near.ticket(), soon()).unwrap(), Woken::TimedOut, "and taken");
    }

    #[test]
    fn an_interruption_wakes_both_sleepers_with_and_without_an_end() {
        for until in [late(), None] {
            let Ends { near, far, .. } = ends();
            thread::scope(|scope| {
                let (near, ticket) = (&near, near.ticket());
                let sleepers = [(); 2].map(|()| scope.spawn(move || near.sleep(ticket, until).unwrap()));
                while near.asleep().is_none() {
                    thread::yield_now();
                }
                near.interrupt().unwrap();
                for sleeper in sleepers {
                    assert_eq!(sleeper.join().unwrap(), Woken::Look);
                }
            });
            drop(far);
        }
    }

    #[test]
    fn an_interruption_since_the_ticket_prevents_the_sleep() {
        let Ends { near, far, machine } = ends();
        let ticket = near.ticket();
        near.interrupt().unwrap();
        assert_eq!(near.sleep(ticket, None).unwrap(), Woken::Look);
        assert_eq!(near.sleep(near.ticket(), soon()).unwrap(), Woken::TimedOut, "and only that one");
        assert_eq!(machine.counts().of("xenevtchn_notify"), 0, "nobody slept");
        drop(far);
    }

    #[test]
    fn a_leader_that_fails_says_so_and_lets_the_next_one_try() {
        let Ends { near, far, machine } = ends();
        far.notify().unwrap();
        machine.fail(Some("xenevtchn_pending"), 0, ErrorKind::Other);
        assert!(matches!(near.sleep(near.ticket(), late()), Err(Error::Xen(_))));
        assert_eq!(near.sleep(near.ticket(), late()).unwrap(), Woken::Look);
    }

    #[test]
    fn a_deadline_counts_from_the_first_wait() {
        let mut deadline = Deadline::new(Some(SHORT));
        thread::sleep(SHORT);
        deadline.passed().unwrap();
        thread::sleep(SHORT);
        assert!(matches!(deadline.passed(), Err(Error::TimedOut(SHORT))));
        for mut deadline in [Deadline::new(None), Deadline::new(Some(Duration::MAX))] {
            assert_eq!(deadline.at(), None);
            deadline.passed().unwrap();
        }
    }
}
