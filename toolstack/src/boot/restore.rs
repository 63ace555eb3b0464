//! A domain out of what was saved of one.

use super::build::{BuildError, Built, Empty, Limits, Ports, free_kib};
use super::placement::Placement;
use super::plan::Sizes;
use super::pvh::paging_mempool_bytes;
use std::os::fd::BorrowedFd;
use xen::{DomId, DomainControl, ErrorKind, GuestKind, HvmParam, PAGE_SHIFT, RingEnds};

/// What a domain that is restored is given, beyond what was saved of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    /// The kind of guest that was saved.
    pub kind: GuestKind,
    /// How large it is to be.
    pub sizes: Sizes,
    /// Pages that it had: more than its sizes say when it had not given all of them back yet.
    pub pages: u64,
    /// Where its vCPUs run.
    pub placement: Placement,
    /// Memory for a PVH guest's nested page tables, in MiB; `None` for what libxl would compute.
    pub paging_memory_mib: Option<u64>,
    /// What becomes of a PVH guest's missed timer ticks.
    pub timer_mode: u64,
    /// The id that it is to have; `None` for one that Xen chooses.
    pub domid: Option<DomId>,
}

/// Makes a domain out of the stream, which is read to its end and no further. On failure nothing is left of it.
///
/// `daemons` are the domains where xenstored and xenconsoled run.
///
/// # Errors
/// See [`BuildError`].
pub fn restore(
    saved: &Saved,
    stream: BorrowedFd<'_>,
    uuid: [u8; 16],
    limits: Limits,
    daemons: (DomId, DomId),
    control: &dyn DomainControl,
) -> Result<Built, BuildError> {
    let pages_kib = |pages: u64| pages << (PAGE_SHIFT - 10);
    let paging_bytes = match saved.kind {
        GuestKind::Pvh => paging_mempool_bytes(saved.paging_memory_mib, &saved.sizes),
        GuestKind::Pv => 0,
    };
    let needed_kib = pages_kib(saved.pages).max(saved.sizes.memory_kib) + (paging_bytes >> 10);
    let free_kib = free_kib(control, saved.kind, needed_kib)?;
    let max_mem_kib = saved.sizes.max_mem_kib();
    let empty = Empty {
        kind: saved.kind,
        uuid,
        max_vcpus: saved.sizes.max_vcpus,
        max_mem_kib: max_mem_kib.max(pages_kib(saved.pages)),
        placement: &saved.placement,
        limits,
        domid: saved.domid,
    };
    let unfinished = empty.make(control)?;
    let domid = unfinished.domid;
    let exhausted = |error: xen::Error| match error.kind() {
        ErrorKind::Exhausted => BuildError::Memory { needed_kib, free_kib },
        _ => BuildError::Xen(error),
    };
    if saved.kind == GuestKind::Pvh {
        control.set_paging_mempool_size(domid, paging_bytes).map_err(exhausted)?;
        // The stream does not have it.
        control.set_hvm_param(domid, HvmParam::TimerMode, saved.timer_mode)?;
    }
    let ports = Ports::of(domid, daemons, control)?;
    let ends = RingEnds { store: (ports.store, daemons.0), console: (ports.console, daemons.1) };
    let rings = control.restore_domain(domid, stream, ends).map_err(exhausted)?;
    if empty.max_mem_kib != max_mem_kib {
        // It gives the rest back as soon as it runs, and does not get it again.
        control.set_max_mem(domid, max_mem_kib)?;
    }
    std::mem::forget(unfinished);
    Ok(Built {
        domid,
        store_port: ports.store,
        console_port: ports.console,
        store_ring: rings.store,
        console_ring: rings.console,
    })
}
