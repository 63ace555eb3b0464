//! Sleeping until the peer signals, from one thread or from two.
//!
//! A channel has one event channel and one descriptor for both directions, and Xen hands each event out once: were two
//! threads to read the descriptor, each would take events that the other waits for. So one of them, the *leader*,
//! sleeps on the descriptor for both; the other, if there is one, sleeps on a condition variable. Whatever the leader
//! wakes for, it counts the event and wakes the other, and each looks at its own ring. When the leader leaves without
//! an event (its time is up), the other takes its place.
//!
//! A task ([`poll`](crate::half::HasHalf::poll)) follows, too: it leaves its waker, and the ticket keeps it from waiting for what has been.
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
//!
//! Of a [hub](crate::Hub)'s channels, whose ports share one descriptor, none is ever led by a sleeper: the hub's own
//! thread takes the events of all, and everybody else follows.

use crate::Result;
use crate::deadline::poll_until;
use crate::port::{Bell, BoundPort};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::task::{Wake, Waker};
use std::time::Instant;
use xen::{DomId, ErrorKind};

/// How many events there were before a thread or task looked whether it has to wait.
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

/// The tasks that a channel can have: one for each half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    Sender = 0,
    Receiver = 1,
}

/// Lets the threads and tasks of a channel wait until its peer signals.
pub(crate) struct Waiter {
    // Before the peer's port: what is dropped last takes the handle along.
    bell: Mutex<Option<Bell>>,
    own: DomId,
    bound: BoundPort,
    /// A hub's thread leads, for good.
    of_hub: bool,
    /// Whether there is a leader ([`LED`]: a thread that sleeps on the descriptor, or takes an event from it), and above
    /// that the count of events. In one word, so that who wants to lead learns in one step whether an event was counted.
    state: AtomicU64,
    others: Mutex<Others>,
    /// The leader left, or an event was counted.
    turned: Condvar,
    /// Whether there are others. Set before one of them looks at the state, read after the state was changed: one of the
    /// two sees the other.
    awaited: AtomicBool,
}

/// Who waits beside the leader.
#[derive(Default)]
struct Others {
    /// Threads that follow, or are about to.
    threads: usize,
    tasks: [Option<Waker>; 2],
}

impl Others {
    fn are_there(&self) -> bool {
        self.threads > 0 || self.tasks.iter().any(Option::is_some)
    }
}

/// In [`Waiter::state`]: there is a leader.
const LED: u64 = 1;
/// In [`Waiter::state`]: one event.
const EVENT: u64 = 2;

impl Waiter {
    /// For a port that has its descriptor for itself.
    pub(crate) fn new(bound: BoundPort, own: DomId) -> Self {
        Self {
            bell: Mutex::new(None),
            own,
            bound,
            of_hub: false,
            state: AtomicU64::new(0),
            others: Mutex::default(),
            turned: Condvar::new(),
            awaited: AtomicBool::new(false),
        }
    }

    /// For a port whose events a hub takes, and [hands on](Self::arrived).
    pub(crate) fn of_hub(bound: BoundPort, own: DomId) -> Self {
        Self { of_hub: true, state: AtomicU64::new(LED), ..Self::new(bound, own) }
    }

    pub(crate) fn bound(&self) -> &BoundPort {
        &self.bound
    }

    /// The descriptor that is readable when there is an event. A hub's channels have none of their own.
    pub(crate) fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.of_hub).then(|| self.bound.events().as_fd())
    }

    /// To be called before more than one thread uses the channel: afterwards an interruption does not fail.
    pub(crate) fn allow_interruption(&self) -> Result<()> {
        if self.of_hub {
            return Ok(());
        }
        let mut bell = self.bell.lock();
        if bell.is_none() {
            *bell = Some(Bell::hang(self.bound.events(), self.own)?);
        }
        Ok(())
    }

    /// Wakes whoever waits. What for is to be seen before this is called: who wakes looks.
    pub(crate) fn interrupt(&self) -> Result<()> {
        let before = self.state.fetch_add(EVENT, SeqCst);
        self.wake_all();
        if before & LED != 0 && !self.of_hub {
            // Somebody sleeps on the descriptor, or is about to: the event waits there.
            self.allow_interruption()?;
            if let Some(bell) = &*self.bell.lock() {
                bell.ring()?;
            }
        }
        Ok(())
    }

    /// The events so far, if somebody waits for one now.
    pub(crate) fn asleep(&self) -> Option<Ticket> {
        let state = self.state.load(Relaxed);
        let awaited = state & LED != 0 && !self.of_hub || self.awaited.load(Relaxed);
        awaited.then_some(Ticket(state & !LED))
    }

    /// To be taken before the look that decides whether to wait.
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
        let mut others = self.others.lock();
        others.threads += 1;
        self.awaited.store(true, SeqCst);
        let woken = loop {
            let state = self.state.load(SeqCst);
            if state & !LED != ticket.0 {
                break Some(Woken::Look);
            }
            if state & LED == 0 {
                break None;
            }
            match until {
                None => self.turned.wait(&mut others),
                Some(until) if self.turned.wait_until(&mut others, until).timed_out() => {
                    let counted = self.state.load(SeqCst) & !LED != ticket.0;
                    break Some(if counted { Woken::Look } else { Woken::TimedOut });
                }
                Some(_) => {}
            }
        };
        others.threads -= 1;
        self.awaited.store(others.are_there(), SeqCst);
        woken
    }

    /// Has a task woken by the next event after `ticket`. False: there was one, so it looks again.
    pub(crate) fn wake_later(&self, ticket: Ticket, task: Task, waker: &Waker) -> bool {
        let mut others = self.others.lock();
        let place = &mut others.tasks[task as usize];
        match place {
            Some(known) => known.clone_from(waker),
            None => *place = Some(waker.clone()),
        }
        self.awaited.store(true, SeqCst);
        let later = self.state.load(SeqCst) & !LED == ticket.0;
        if !later {
            others.tasks[task as usize] = None;
            self.awaited.store(others.are_there(), SeqCst);
        }
        later
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

    /// An event was taken by the hub.
    pub(crate) fn arrived(&self) {
        self.state.fetch_add(EVENT, SeqCst);
        self.wake_all();
    }

    /// The hub takes no events any more: who waits finds out why.
    pub(crate) fn abandon(&self) {
        self.state.fetch_and(!LED, SeqCst);
        self.wake_all();
    }

    fn stop_leading(&self, taken: &Result<bool>) {
        if matches!(taken, Ok(true)) {
            self.state.fetch_add(EVENT.wrapping_sub(LED), SeqCst);
            self.wake_all();
        } else {
            self.state.fetch_sub(LED, SeqCst);
            // Tasks do not lead, and nothing has come for them.
            if self.awaited.load(SeqCst) {
                let others = self.others.lock();
                self.turned.notify_all();
                drop(others);
            }
        }
    }

    /// Wakes the threads that follow, and the tasks.
    fn wake_all(&self) {
        if self.awaited.load(SeqCst) {
            let mut others = self.others.lock();
            self.turned.notify_all();
            let tasks = std::mem::take(&mut others.tasks);
            self.awaited.store(others.are_there(), SeqCst);
            drop(others);
            tasks.into_iter().flatten().for_each(Waker::wake);
        }
    }

    /// Sleeps on the descriptor and takes an event from it; false when the time was up before there was one.
    fn take_event(&self, until: Option<Instant>) -> Result<bool> {
        let events = self.bound.events();
        if until.is_some() {
            let event = PollFd::from_borrowed_fd(events.as_fd(), PollFlags::IN);
            if !poll_until(&mut [event], until)?[0] {
                return Ok(false);
            }
        }
        // Blocks only if no end was set: readable means that there is an event (or that the descriptor is broken, which
        // this call then says), and nobody else takes events.
        let port = loop {
            match events.pending() {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                taken => break taken?,
            }
        };
        events.unmask(port)?;
        Ok(true)
    }
}

/// Has the tasks of the channel look again. Who holds such a waker keeps no channel open.
impl Wake for Waiter {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use std::thread;
    use std::time::Duration;
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
}
