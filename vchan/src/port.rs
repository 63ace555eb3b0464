//! Ports that are closed when nobody holds them any more.

use crate::Result;
use std::sync::Arc;
use xen::{DomId, EventChannels, Port};

/// A local port, closed when this is dropped.
pub(crate) struct BoundPort {
    events: Arc<dyn EventChannels>,
    port: Port,
}

impl BoundPort {
    pub(crate) fn new(events: Arc<dyn EventChannels>, port: Port) -> Self {
        Self { events, port }
    }

    /// The handle that the port belongs to.
    pub(crate) fn events(&self) -> &Arc<dyn EventChannels> {
        &self.events
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

/// An event channel from this domain to itself.
pub(crate) struct Bell {
    /// Where its event arrives; held to be closed.
    _arrival: BoundPort,
    rope: BoundPort,
}

impl Bell {
    /// A bell whose event arrives at `events`, a handle of the domain `own`.
    pub(crate) fn hang(events: &Arc<dyn EventChannels>, own: DomId) -> Result<Self> {
        let arrival = BoundPort::new(Arc::clone(events), events.bind_unbound(own)?);
        let rope = events.bind_interdomain(own, arrival.port())?;
        Ok(Self { _arrival: arrival, rope: BoundPort::new(Arc::clone(events), rope) })
    }

    /// Sends the event.
    pub(crate) fn ring(&self) -> Result<()> {
        self.rope.notify()
    }
}
