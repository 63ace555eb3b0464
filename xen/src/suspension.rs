//! A suspended domain: its state as a stream, a new domain out of that, and one that goes on where it is.

use crate::{DomId, Gfn, Port, Result};
use std::os::fd::BorrowedFd;

/// Where the pages lead that a domain shares with the daemons: the domain's own port, and who serves it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingEnds {
    /// xenstored's.
    pub store: (Port, DomId),
    /// xenconsoled's.
    pub console: (Port, DomId),
}

/// The pages that a restored domain shares with the daemons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestoredRings {
    /// xenstored's.
    pub store: Gfn,
    /// xenconsoled's.
    pub console: Gfn,
}

/// What dom0's toolstack may do with suspended domains. A domain is suspended when it shut itself down for
/// [that reason](crate::ShutdownReason::Suspend), on its toolstack's request.
pub trait Suspension {
    /// Writes the state of a suspended domain (memory, vCPUs, what Xen keeps of it) as a stream of Xen's format
    /// (docs/specs/libxc-migration-stream.pandoc), from where the descriptor stands. Many hypercalls and mappings. The domain
    /// stays as it is.
    fn save_domain(&self, domid: DomId, to: BorrowedFd<'_>) -> Result<()>;
    /// Fills an empty domain, whose limits are set, from such a stream, which is read to its own end and no further. The
    /// domain is as it was when it suspended itself; its grant table has the rings.
    fn restore_domain(&self, domid: DomId, from: BorrowedFd<'_>, ends: RingEnds) -> Result<RestoredRings>;
    /// Lets a suspended domain go on as if it had not been suspended: its request is answered with "cancelled". For each vCPU
    /// of a PV domain, and the first one of a PVH domain, some hypercalls.
    fn resume_domain(&self, domid: DomId) -> Result<()>;
}
