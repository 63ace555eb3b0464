//! Noticing that the peer's domain was destroyed.
//!
//! A process that ends, however, is told to its peer by its kernel (the live byte and an event). A domain that ends is
//! told to nobody: no byte is cleared, no event is sent, and Linux offers a guest no call that asks. So who has waited for
//! a while without an event looks for traces, none of which costs anything while there is traffic:
//!
//! 1. **Xen does not know the domain any more.** Binding port 0 of a domain always fails, but with `ESRCH` only when there
//!    is no such domain. Needs no privilege. It decides for a *server*; not always for a *client*, because a destroyed
//!    domain stays, as a shell, while somebody maps its pages.
//! 2. **xenstored does not know it any more.** Only dom0 may ask; a destroyed domain is forgotten at once.
//! 3. **The server's keys have gone from xenstore**, where xenstored removes all that a destroyed domain owned, while its
//!    live byte still says "here". For clients. libxenvchan's servers and ours keep their keys as long as they live, but
//!    Qubes' libvchan removes its own soon after the client came; so this trace counts only if the keys were still there
//!    when it was looked for before, and can be switched off ([`ConnectOptions`](crate::ConnectOptions)).
//!
//! Only a change counts: what was never seen alive is not declared dead.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use xen::{DomId, ErrorKind, EventChannels, Port, Transaction, Xenstore};

/// How often it is looked whether the domain of a peer still exists for whose events somebody sleeps. Its end is noticed
/// after one to two of these.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Looks after the life of the peer's domain.
pub(crate) struct Liveness {
    own: DomId,
    peer: DomId,
    events: Arc<dyn EventChannels>,
    store: Arc<dyn Xenstore>,
    traced: Traced,
    interval: Duration,
    /// A hub's: what its other channels to that domain have seen.
    sighting: Option<Arc<Sighting>>,
    before: Mutex<Traces>,
    dead: AtomicBool,
}

/// Whose domain it is, by which traces differ in weight.
pub(crate) enum Traced {
    /// A client's, of which this side keeps no memory mapped.
    Client,
    /// A server's, with a key that is there as long as it lives.
    Server { key: Option<String> },
}

/// What a hub's channels know of a domain together: they look once an interval, all of them at about the same time, so
/// what is younger than half of that suffices.
#[derive(Debug, Default)]
pub(crate) struct Sighting {
    /// When it was last certain that the domain lives.
    alive: Mutex<Option<Instant>>,
    /// When its traces were looked at, and what they were; without a key, of which each channel has its own.
    traces: Mutex<Option<(Instant, Traces)>>,
}

/// What was seen of the domain.
#[derive(Clone, Copy, Debug, Default)]
struct Traces {
    known_to_xen: bool,
    known_to_xenstored: bool,
    key: bool,
}

impl Liveness {
    /// Begins to look after `peer`; it is looked at once, so that its end is noticed later.
    pub(crate) fn new(
        (own, peer): (DomId, DomId),
        events: Arc<dyn EventChannels>,
        store: Arc<dyn Xenstore>,
        traced: Traced,
        interval: Duration,
        sighting: Option<Arc<Sighting>>,
    ) -> Self {
        let liveness = Self {
            own,
            peer,
            events,
            store,
            traced,
            interval,
            sighting,
            before: Mutex::new(Traces::default()),
            dead: AtomicBool::new(false),
        };
        // A key that Qubes' libvchan will soon remove is no trace of life yet.
        *liveness.before.lock() = liveness.look_at_domain(Instant::now());
        liveness
    }

    pub(crate) fn peer(&self) -> DomId {
        self.peer
    }

    /// How long to wait between two looks.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether the domain was found to be gone.
    #[inline]
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Looks; returns whether the domain is gone.
    pub(crate) fn probe(&self, now: Instant) -> bool {
        if self.is_dead() {
            return true;
        }
        let mut before = self.before.lock();
        let is_recent = |seen: Instant| now.saturating_duration_since(seen) < self.interval / 2;
        // A key of which it is not known yet that it is there cannot be missed later.
        let knows_all = before.key || !matches!(&self.traced, Traced::Server { key: Some(_) });
        if knows_all
            && self.sighting.as_ref().is_some_and(|sighting| sighting.alive.lock().is_some_and(is_recent))
        {
            return false;
        }
        let traces = Traces {
            key: matches!(&self.traced, Traced::Server { key: Some(path) } if self.has_key(path)),
            ..self.look_at_domain(now)
        };
        let lost = before.known_to_xen && !traces.known_to_xen
            || before.known_to_xenstored && !traces.known_to_xenstored
            || before.key && !traces.key;
        *before = traces;
        if lost {
            tracing::warn!(domid = self.peer.0, "the peer's domain is gone");
            self.dead.store(true, Ordering::Release);
        } else if let Some(sighting) = self.sighting.as_ref().filter(|_| self.proves_life(traces)) {
            *sighting.alive.lock() = Some(now);
        }
        lost
    }

    /// Whether no channel to the same domain need look for itself.
    fn proves_life(&self, traces: Traces) -> bool {
        traces.known_to_xenstored
            || traces.key
            || traces.known_to_xen && matches!(self.traced, Traced::Client)
    }

    /// Looks, or takes what another channel of the hub has just seen.
    fn look_at_domain(&self, now: Instant) -> Traces {
        let Some(sighting) = &self.sighting else { return self.ask() };
        let mut known = sighting.traces.lock();
        match *known {
            Some((seen, traces)) if now.saturating_duration_since(seen) < self.interval / 2 => traces,
            _ => {
                let traces = self.ask();
                *known = Some((now, traces));
                traces
            }
        }
    }

    fn ask(&self) -> Traces {
        Traces {
            known_to_xen: self.known_to_xen(),
            // Whoever may not ask is told "no" of every domain, its own included.
            known_to_xenstored: self.introduced(self.own) && self.introduced(self.peer),
            key: false,
        }
    }

    fn known_to_xen(&self) -> bool {
        match self.events.bind_interdomain(self.peer, Port(0)) {
            Ok(port) => {
                // Nobody offers port 0; but a port that was bound is to be closed.
                let _ = self.events.unbind(port);
                true
            }
            Err(error) => error.kind() != ErrorKind::NotFound,
        }
    }

    fn introduced(&self, domid: DomId) -> bool {
        self.store.is_introduced(domid).unwrap_or(false)
    }

    fn has_key(&self, path: &str) -> bool {
        match self.store.read(Transaction::NONE, path) {
            Ok(_) => true,
            // A key that was readable and is refused has gone: what stands above it is not for us to read.
            Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied),
        }
    }
}
