//! Event channels: Xen's one-bit interrupts between domains.

use crate::{DomId, Port, Result};
use std::os::fd::AsFd;

/// A set of event-channel ports behind one file descriptor.
///
/// The descriptor is readable while a port of the set has an event that was not taken by [`pending`]. A port that was
/// taken stays masked until [`unmask`]; events that arrive meanwhile coalesce into one. Closing the handle closes its
/// ports. Spurious events are legal: whoever wakes looks again at what it waited for.
///
/// [`pending`]: EventChannels::pending
/// [`unmask`]: EventChannels::unmask
pub trait EventChannels: AsFd + Send + Sync {
    /// A new port to which `remote`, and nobody else, may bind (`EVTCHNOP_alloc_unbound`).
    fn bind_unbound(&self, remote: DomId) -> Result<Port>;
    /// A new local port joined to `remote_port`, which `remote` allocated for this domain (`EVTCHNOP_bind_interdomain`).
    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port>;
    /// Closes a local port; the other end falls back to unbound.
    fn unbind(&self, port: Port) -> Result<()>;
    /// Sends an event to the other end of a local port.
    fn notify(&self, port: Port) -> Result<()>;
    /// Takes the next port that has an event, and masks it; blocks while there is none.
    fn pending(&self) -> Result<Port>;
    /// Lets a port deliver again.
    fn unmask(&self, port: Port) -> Result<()>;
}
