//! What the two halves of a channel have in common: the shared pages, the event channel, and the end of both.

use crate::deadline::Deadline;
use crate::hub::{Line, Switchboard};
use crate::keys::Published;
use crate::liveness::Liveness;
use crate::page::LIVE_GONE;
use crate::port::BoundPort;
use crate::wait::{Ticket, Waiter, Woken};
use crate::warden;
use crate::wire::Pages;
use crate::{Error, Orders, Result, State, Violation};
use parking_lot::Mutex;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use xen::DomId;

/// One side of a channel, without the positions in its rings.
pub(crate) struct Link {
    // The order matters: the pages go before the port through which the kernel tells the peer that they went.
    pages: Arc<Pages>,
    orders: Orders,
    /// A hub's channel's.
    _line: Option<Line>,
    waiter: Arc<Waiter>,
    liveness: Arc<Liveness>,
    /// A server's; until the channel is closed.
    keys: Mutex<Option<Published>>,
    closed: AtomicBool,
    /// False once it is closed or a violation was noticed: what every operation looks at.
    usable: AtomicBool,
    /// The first violation that was noticed: from then on there is no other answer.
    violation: OnceLock<Violation>,
}

impl Link {
    /// With the peer's port and the own domain.
    pub(crate) fn new(
        pages: Arc<Pages>,
        orders: Orders,
        (bound, own): (BoundPort, DomId),
        liveness: Liveness,
        hub: Option<&Arc<Switchboard>>,
    ) -> Arc<Self> {
        let waiter =
            Arc::new(if hub.is_some() { Waiter::of_hub(bound, own) } else { Waiter::new(bound, own) });
        let link = Arc::new(Self {
            pages,
            orders,
            _line: hub.map(|hub| Line::new(hub, &waiter)),
            waiter,
            liveness: Arc::new(liveness),
            keys: Mutex::new(None),
            closed: AtomicBool::new(false),
            usable: AtomicBool::new(true),
            violation: OnceLock::new(),
        });
        warden::look_after(&link.waiter, &link.liveness);
        link
    }

    /// Keeps a server's keys until the channel is closed.
    pub(crate) fn keep(&self, keys: Published) {
        *self.keys.lock() = Some(keys);
    }

    pub(crate) fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    pub(crate) fn orders(&self) -> Orders {
        self.orders
    }

    pub(crate) fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    /// Whether [`check_open`](Self::check_open) says yes.
    #[inline]
    pub(crate) fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    /// Whether [`check_peer`](Self::check_peer) says yes for certain.
    #[inline]
    pub(crate) fn is_peer_here(&self) -> bool {
        self.pages.is_here() && !self.liveness.is_dead()
    }

    /// Whether the channel can be used at all, by what this side knows.
    #[inline]
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_usable() { Ok(()) } else { self.why_unusable() }
    }

    #[cold]
    fn why_unusable(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::ClosedHere);
        }
        match self.violation.get() {
            Some(violation) => Err(Error::Violation(*violation)),
            None => Ok(()),
        }
    }

    /// Remembers that the peer broke the protocol; the other half, if it sleeps, wakes to learn of it.
    pub(crate) fn check<T>(&self, result: std::result::Result<T, Violation>) -> Result<T> {
        result.map_err(|violation| {
            let first = *self.violation.get_or_init(|| {
                tracing::warn!(domid = self.liveness.peer().0, %violation, "the peer broke the protocol");
                violation
            });
            self.usable.store(false, Ordering::Release);
            // Fails only where no bell could be hung: then no other half can sleep, either.
            let _ = self.waiter.interrupt();
            Error::Violation(first)
        })
    }

    /// An error when the peer has gone.
    #[inline]
    pub(crate) fn check_peer(&self) -> Result<()> {
        if self.is_peer_here() {
            return Ok(());
        }
        match self.state()? {
            State::Closed => Err(Error::Closed),
            State::Open | State::Waiting => Ok(()),
        }
    }

    /// Whether the peer is there.
    pub(crate) fn state(&self) -> Result<State> {
        self.check_open()?;
        let state = self.check(self.pages.peer())?;
        if state != State::Closed {
            self.check_alive()?;
        }
        Ok(state)
    }

    /// An error once the peer's domain was found to be gone.
    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.liveness.is_dead() { Err(Error::PeerDied(self.liveness.peer())) } else { Ok(()) }
    }

    /// The life of the peer's domain.
    pub(crate) fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Looks whether the peer's domain still exists.
    pub(crate) fn probe(&self) -> Result<()> {
        self.liveness.probe(Instant::now());
        self.check_alive()
    }

    /// Sleeps until there was an event since `ticket`. The caller looks again at what it waits for, and at whether the
    /// channel was closed or the peer's domain died: for that, too, the sleep ends.
    pub(crate) fn sleep(&self, ticket: Ticket, deadline: &mut Deadline) -> Result<()> {
        if self.waiter.sleep(ticket, deadline.at())? == Woken::TimedOut {
            deadline.passed()?;
        }
        Ok(())
    }

    /// Closes the channel: tells the peer, ends the sleep of the other half, takes the keys back. What was sent can
    /// still be received by the peer. The pages stay mapped until the last half is dropped, since it may be about to
    /// touch them.
    pub(crate) fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        tracing::debug!(domid = self.liveness.peer().0, "closed");
        self.usable.store(false, Ordering::Release);
        self.pages.set_own_live(LIVE_GONE);
        let told = self.waiter.bound().notify();
        let woken = self.waiter.interrupt();
        let keys = self.keys.lock().take();
        let removed = keys.map_or(Ok(()), |keys| keys.remove());
        told.and(woken).and(removed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Whoever wants to know whether it went well calls close.
        let _ = self.close();
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("side", &self.pages.side())
            .field("peer", &self.liveness.peer())
            .field("port", &self.waiter.bound().port())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
