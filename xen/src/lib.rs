//! Safe handles to what Xen offers a domain: grants, event channels, xenstore, domain control and foreign memory.
//!
//! Each resource is a trait in a file of its own, with two implementations beside each other:
//!
//! * [`host`] goes through Xen's C libraries (and so, under `LD_PRELOAD=libxensim.so`, through a simulated host);
//! * [`mock`] keeps a whole machine of domains in memory, checks what Xen checks, counts what it is asked and can be
//!   told to fail the N-th call.
//!
//! [`Platform`] opens them. Code above this crate takes a `&dyn Platform` (or the handles that it needs) and never
//! learns which of the two it talks to.
//!
//! No raw pointer (but those which the C ABIs of `vchan/capi` hand on) and no errno integer leaves this crate: memory that
//! another domain can write is a [`Mapping`], with bounds-checked volatile access, and a failure is an [`Error`] that names
//! the call and its arguments.
//!
//! ```
//! use xen::{Access, DomId, Platform, mock::Machine};
//!
//! let machine = Machine::new();
//! let (alice, bob) = (machine.domain(DomId(1)), machine.domain(DomId(2)));
//! let shared = alice.grant_share()?.share_pages(DomId(2), 1, Access::ReadWrite)?;
//! let mapped = bob.grant_map()?.map(DomId(1), shared.grefs(), Access::ReadOnly, None)?;
//! shared.memory().copy_from(0, b"hello");
//! let mut seen = [0; 5];
//! mapped.copy_to(0, &mut seen);
//! assert_eq!(&seen, b"hello");
//! # Ok::<(), xen::Error>(())
//! ```

mod control;
mod cpu_set;
mod diagnostics;
mod error;
mod event;
mod foreign;
mod grant;
pub mod host;
pub mod hvm_context;
mod id;
mod memory;
pub mod mock;
mod scheduling;
mod store;
mod suspension;

pub use control::{
    CreateDomain, DomainControl, DomainInfo, E820Entry, E820Kind, GuestKind, Hardware, HostInfo, HvmParam,
    PhysInfo, Populate, PvStart, Reserved, ShutdownReason, TscMode, XenVersion,
};
pub use cpu_set::CpuSet;
pub use diagnostics::{Diagnostics, Trigger};
pub use error::{Error, ErrorKind, Here, Result, WrongRelease};
pub use event::EventChannels;
pub use foreign::ForeignMemory;
pub use grant::{GrantMap, GrantShare, SharedPages, UnmapNotify};
pub use id::{DomId, Gfn, GrantRef, PAGE_SHIFT, PAGE_SIZE, Pfn, Port};
pub use memory::{
    Access, Mapping, VolatileSlice, VolatileSliceMut, Window, Word, full_fence, read_from_fd,
    read_from_fd_then, write_to_fd,
};
pub use scheduling::{
    Affinity, Core, CpuPool, CpuShare, NumaNode, PciAddress, Scheduling, VcpuInfo, scheduler_name,
};
pub use store::{Change, Permission, Permissions, Transaction, WatchEvent, Xenstore, transaction};
pub use suspension::{RestoredRings, RingEnds, Suspension};

use std::sync::Arc;

/// Opens the resources of the machine, as the domain that runs this program sees them.
///
/// Each call opens a handle of its own: what is bound or shared through one handle goes when that handle goes.
pub trait Platform: Send + Sync {
    /// Shares pages of this domain with others (Linux: `/dev/xen/gntalloc`).
    fn grant_share(&self) -> Result<Arc<dyn GrantShare>>;
    /// Maps pages that other domains share with this one (Linux: `/dev/xen/gntdev`).
    fn grant_map(&self) -> Result<Arc<dyn GrantMap>>;
    /// Event channels (Linux: `/dev/xen/evtchn`).
    fn event_channels(&self) -> Result<Arc<dyn EventChannels>>;
    /// A connection to xenstored (in dom0 its socket, elsewhere `/dev/xen/xenbus`).
    fn xenstore(&self) -> Result<Arc<dyn Xenstore>>;
    /// Domain control; dom0 alone may use it (Linux: `/dev/xen/privcmd`).
    fn domain_control(&self) -> Result<Arc<dyn DomainControl>>;
    /// Mappings of other domains' memory; dom0 alone may use it (Linux: `/dev/xen/privcmd`).
    fn foreign_memory(&self) -> Result<Arc<dyn ForeignMemory>>;
}
