//! What both halves of a channel do besides moving bytes: wait, signal, and say later what could not be said at once.

use crate::deadline::Deadline;
use crate::give_way::GiveWay;
use crate::link::Link;
use crate::metrics::Metrics;
use crate::ring::{End, Outlook};
use crate::spin::{Spin, Spun};
use crate::wait::Task;
use crate::{Error, Result, Violation};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The part of a [`Sender`](crate::Sender) or [`Receiver`](crate::Receiver) that is the same in both.
#[derive(Debug)]
pub(crate) struct Half {
    pub(crate) link: Arc<Link>,
    pub(crate) nonblocking: bool,
    /// How long an operation may wait.
    pub(crate) timeout: Option<Duration>,
    spin: Spin,
    give_way: GiveWay,
    pub(crate) metrics: Metrics,
    /// The peer could not be signalled of what was counted as done: told by the next operation.
    unsaid: Option<Error>,
}

impl Half {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            nonblocking: false,
            timeout: None,
            spin: Spin::new(),
            give_way: GiveWay::new(true),
            metrics: Metrics::default(),
            unsaid: None,
        }
    }

    pub(crate) fn deadline(&self) -> Deadline {
        Deadline::new(self.timeout)
    }

    /// Whether sleeps are put off at all.
    pub(crate) fn set_spinning(&mut self, spinning: bool) {
        self.spin.enable(spinning);
        self.give_way = GiveWay::new(spinning);
    }

    /// Whether an operation can begin without more ado.
    #[inline]
    pub(crate) fn is_clear(&self) -> bool {
        self.unsaid.is_none() && self.link.is_usable()
    }

    /// What every operation begins with.
    #[inline]
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.link.check_open()?;
        self.said()
    }

    /// An error that was not told yet.
    #[inline]
    pub(crate) fn said(&mut self) -> Result<()> {
        if self.unsaid.is_some() {
            return self.unsaid.take().map_or(Ok(()), Err);
        }
        Ok(())
    }

    /// Lets the peer know what was done, if it does not yet, and signals it if it asked for that.
    #[inline]
    pub(crate) fn publish<E: End>(&mut self, end: &mut E) {
        if end.held_back() == 0 {
            return;
        }
        match end.publish() {
            Ok(false) => self.metrics.notifications_suppressed += 1,
            due => self.signal(due),
        }
    }

    #[cold]
    fn signal(&mut self, due: std::result::Result<bool, Violation>) {
        match self.link.check(due).and_then(|_| self.link.waiter().bound().notify()) {
            Ok(()) => self.metrics.notifications_sent += 1,
            Err(error) => self.unsaid = Some(error),
        }
    }

    /// How many bytes are available at `end`: at least `want` (at most the ring's size), for which it waits, and if they
    /// are there at once up to `like`. Fewer than `want` when the peer has gone: then there will never be more.
    #[inline]
    pub(crate) fn obtain<E: End>(
        &mut self,
        end: &mut E,
        want: u32,
        like: u32,
        deadline: &mut Deadline,
    ) -> Result<Outlook> {
        let known = end.known();
        if known >= like {
            Ok(Outlook::Enough(known))
        } else {
            let outlook = if known >= want {
                Outlook::Enough(self.link.check(end.available(like))?)
            } else {
                self.wait(end, want, deadline)?
            };
            self.metrics.high_water = self.metrics.high_water.max(end.in_ring());
            Ok(outlook)
        }
    }

    fn wait<E: End>(&mut self, end: &mut E, want: u32, deadline: &mut Deadline) -> Result<Outlook> {
        // Whatever the peer may be waiting for, it gets before we wait for the peer.
        self.publish(end);
        if self.nonblocking {
            let there = self.link.check(end.available(want))?;
            if there >= want {
                return Ok(Outlook::Enough(there));
            }
        } else {
            let spun = self.spin.look(want, || end.available(want));
            match self.link.check(spun)? {
                Spun::AtOnce(there) => return Ok(Outlook::Enough(there)),
                Spun::Found(there) => {
                    self.metrics.spins_won += 1;
                    return Ok(Outlook::Enough(there));
                }
                Spun::Failed => self.metrics.spins_lost += 1,
                Spun::Skipped => {}
            }
            let found = self.give_way.look(want, || end.available(want));
            if let Some(there) = self.link.check(found)? {
                self.metrics.yields_won += 1;
                return Ok(Outlook::Enough(there));
            }
        }
        self.sleep(end, want, deadline)
    }

    #[cold]
    fn sleep<E: End>(&mut self, end: &mut E, want: u32, deadline: &mut Deadline) -> Result<Outlook> {
        loop {
            if self.nonblocking {
                self.link.waiter().drain()?;
            }
            let ticket = self.link.waiter().ticket();
            match self.link.check(end.before_sleep(want))? {
                Outlook::Wait => {}
                outlook => return Ok(outlook),
            }
            self.link.check_open()?;
            self.link.check_alive()?;
            if self.nonblocking {
                return Err(Error::WouldBlock);
            }
            self.metrics.sleeps += 1;
            self.link.sleep(ticket, deadline)?;
            // Mostly what it was woken for is there. If not, another signal is asked for.
            self.link.check_open()?;
            let there = self.link.check(end.available(want))?;
            if there >= want {
                return Ok(Outlook::Enough(there));
            }
        }
    }
}

/// A [`Sender`](crate::Sender) or a [`Receiver`](crate::Receiver).
pub(crate) trait HasHalf {
    /// Whose tasks it wakes.
    const TASK: Task;

    fn half(&mut self) -> &mut Half;

    /// Tries an operation without blocking; when it would block, has the task woken when it is worth trying again.
    fn poll<T>(
        &mut self,
        context: &Context<'_>,
        mut operation: impl FnMut(&mut Self) -> Result<T>,
    ) -> Poll<Result<T>> {
        let nonblocking = std::mem::replace(&mut self.half().nonblocking, true);
        let polled = loop {
            let ticket = self.half().link.waiter().ticket();
            match operation(self) {
                Err(Error::WouldBlock) => {
                    if self.half().link.waiter().wake_later(ticket, Self::TASK, context.waker()) {
                        break Poll::Pending;
                    }
                }
                result => break Poll::Ready(result),
            }
        };
        self.half().nonblocking = nonblocking;
        polled
    }
}
