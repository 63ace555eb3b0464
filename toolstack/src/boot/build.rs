//! Carrying out a [`Plan`].

use super::guest_memory::Loaded;
use super::placement::Placement;
use super::plan::Plan;
use super::{pv, pvh};
use crate::image::{ImageError, Kernel};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use xen::hvm_context::MissingRecord;
use xen::{
    CreateDomain, DomId, DomainControl, ErrorKind, ForeignMemory, Gfn, GuestKind, PAGE_SHIFT, Port, TscMode,
};

/// Entries of the grant table that a guest finds filled (`GNTTAB_RESERVED_*`), 8 bytes each in version 1.
const GRANT_CONSOLE: usize = 0;
const GRANT_XENSTORE: usize = 1;
const GRANT_ENTRY: usize = 8;
/// `GTF_permit_access`
const GRANT_PERMIT_ACCESS: u16 = 1;

/// What is loaded into the guest.
#[derive(Debug)]
pub struct Payload<'a> {
    /// The kernel that the plan was made for, and its name for messages.
    pub kernel: (Kernel<'a>, PathBuf),
    /// The initrd that the plan was made for, and its name for messages.
    pub initrd: Option<(Initrd<'a>, PathBuf)>,
}

/// An initrd.
#[derive(Debug)]
pub enum Initrd<'a> {
    /// A file, from where it stands.
    File(&'a File),
    /// A part of another.
    Bytes(&'a [u8]),
}

impl Initrd<'_> {
    pub(super) fn read_exact(&mut self, memory: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact(memory),
            Self::Bytes(bytes) => bytes.read_exact(memory),
        }
    }
}

/// What a domain may take of Xen's own tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The highest event-channel port; libxl's default is 1,023.
    pub max_event_channel_port: u32,
    /// Frames of the grant table; `None` for the hypervisor's default.
    pub max_grant_frames: Option<u32>,
    /// Frames for tracking mapped grants; `None` for the hypervisor's default.
    pub max_maptrack_frames: Option<u32>,
    /// The highest version of the grant table's interface: 1 or 2.
    pub max_grant_version: u32,
    /// Whether the IOMMU translates for it.
    pub iommu: bool,
    /// What it reads as its time stamp counter.
    pub tsc_mode: TscMode,
}

/// A domain that was built: paused, unknown to xenstore.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Built {
    /// Its id.
    pub domid: DomId,
    /// Its event channel to xenstored.
    pub store_port: Port,
    /// Its event channel to xenconsoled.
    pub console_port: Port,
    /// The page of its connection to xenstored.
    pub store_ring: Gfn,
    /// The page of its console.
    pub console_ring: Gfn,
}

/// Why a plan could not be carried out. Whatever was made is gone.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// This host cannot run PVH guests.
    #[error(
        "this host cannot run PVH qubes: Xen has no hardware virtualisation with nested paging (virt_caps in `nxl info`); a PV qube needs none (type=\"pv\")"
    )]
    NoPvh,
    /// This host cannot run PV guests.
    #[error("this host cannot run PV qubes: its Xen was built without them (virt_caps in `nxl info`)")]
    NoPv,
    /// Not enough memory.
    #[error(
        "not enough memory: the qube needs {} MiB, and {} MiB are free; shut a qube down or give this one less",
        needed_kib.div_ceil(1024), free_kib / 1024
    )]
    Memory {
        /// What the qube takes, nested page tables included.
        needed_kib: u64,
        /// What the host has.
        free_kib: u64,
    },
    /// The kernel could not be loaded.
    #[error("{path}: {source}")]
    Kernel {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
    /// The initrd could not be read.
    #[error("{path}: the initrd could not be read: {source}")]
    Initrd {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Xen's answer lacks what a start needs.
    #[error(transparent)]
    Context(#[from] MissingRecord),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// The host's free memory in KiB, when it is enough, and this host can run guests of that kind. Xen is asked for good later; this
/// is for an answer before anything was begun.
pub(super) fn free_kib(
    control: &dyn DomainControl,
    kind: GuestKind,
    needed_kib: u64,
) -> Result<u64, BuildError> {
    let host = control.phys_info()?;
    match kind {
        GuestKind::Pvh if !host.runs_pvh() => return Err(BuildError::NoPvh),
        GuestKind::Pv if !host.runs_pv() => return Err(BuildError::NoPv),
        _ => {}
    }
    let free_kib = host.free_pages.saturating_sub(host.outstanding_pages) << (PAGE_SHIFT - 10);
    if needed_kib > free_kib { Err(BuildError::Memory { needed_kib, free_kib }) } else { Ok(free_kib) }
}

/// A domain before there is anything in it.
pub(super) struct Empty<'a> {
    pub(super) kind: GuestKind,
    pub(super) uuid: [u8; 16],
    pub(super) max_vcpus: u32,
    pub(super) max_mem_kib: u64,
    pub(super) placement: &'a Placement,
    pub(super) limits: Limits,
    /// The id that it is to have; `None` for one that Xen chooses.
    pub(super) domid: Option<DomId>,
}

impl Empty<'_> {
    /// Makes it; it is gone again unless it is finished.
    pub(super) fn make<'a>(&self, control: &'a dyn DomainControl) -> Result<Unfinished<'a>, xen::Error> {
        let domid = control.create_domain(&CreateDomain {
            kind: self.kind,
            uuid: self.uuid,
            max_vcpus: self.max_vcpus,
            max_event_channel_port: self.limits.max_event_channel_port,
            max_grant_frames: self.limits.max_grant_frames,
            max_maptrack_frames: self.limits.max_maptrack_frames,
            max_grant_version: self.limits.max_grant_version,
            cpupool: self.placement.pool,
            iommu: self.limits.iommu,
            domid: self.domid,
        })?;
        let unfinished = Unfinished { control, domid };
        control.set_max_vcpus(domid, self.max_vcpus)?;
        self.placement.apply(domid, control)?;
        control.set_max_mem(domid, self.max_mem_kib)?;
        Ok(unfinished)
    }
}

/// Destroys the domain unless it was finished.
pub(super) struct Unfinished<'a> {
    control: &'a dyn DomainControl,
    pub(super) domid: DomId,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // The error that led here is the one to report.
        let _ = self.control.destroy(self.domid);
    }
}

/// A domain that is being built: made, sized, and empty.
pub(super) struct Building<'a> {
    pub(super) domid: DomId,
    pub(super) control: &'a dyn DomainControl,
    pub(super) foreign: &'a dyn ForeignMemory,
    store_domid: DomId,
    console_domid: DomId,
    needed_kib: u64,
    free_kib: u64,
}

/// Event channels of a domain.
#[derive(Clone, Copy)]
pub(super) struct Ports {
    pub(super) store: Port,
    pub(super) console: Port,
}

impl Ports {
    /// Ports to which xenstored's and xenconsoled's domains may bind.
    pub(super) fn of(
        domid: DomId,
        (store_domid, console_domid): (DomId, DomId),
        control: &dyn DomainControl,
    ) -> Result<Self, xen::Error> {
        let store = control.alloc_unbound_port(domid, store_domid)?;
        let console = control.alloc_unbound_port(domid, console_domid)?;
        Ok(Self { store, console })
    }
}

/// Pages that a domain shares with the daemons.
#[derive(Clone, Copy)]
pub(super) struct Rings {
    pub(super) store: Gfn,
    pub(super) console: Gfn,
}

impl<'a> Building<'a> {
    pub(super) fn new(
        domid: DomId,
        (store_domid, console_domid): (DomId, DomId),
        control: &'a dyn DomainControl,
        foreign: &'a dyn ForeignMemory,
    ) -> Self {
        Self { domid, control, foreign, store_domid, console_domid, needed_kib: 0, free_kib: 0 }
    }

    /// What it means when the host's memory comes to its end.
    pub(super) fn no_memory(&self) -> BuildError {
        BuildError::Memory { needed_kib: self.needed_kib, free_kib: self.free_kib }
    }

    /// The same as a call's error.
    pub(super) fn exhausted(&self, error: xen::Error) -> BuildError {
        match error.kind() {
            ErrorKind::Exhausted => self.no_memory(),
            _ => BuildError::Xen(error),
        }
    }

    /// Ports to which the daemons may bind.
    pub(super) fn ports(&self) -> Result<Ports, xen::Error> {
        Ports::of(self.domid, (self.store_domid, self.console_domid), self.control)
    }

    /// Grants the daemons their rings, so that neither needs to be privileged.
    pub(super) fn seed_grants(&self, rings: Rings) -> Result<(), BuildError> {
        let table = self.foreign.map_grant_table(self.domid, 0, 1)?;
        for (entry, frame, to) in [
            (GRANT_CONSOLE, rings.console, self.console_domid),
            (GRANT_XENSTORE, rings.store, self.store_domid),
        ] {
            // struct grant_entry_v1: flags, domid, frame. The flags make it valid, so they come last.
            let at = entry * GRANT_ENTRY;
            table.copy_from(at + 4, &(frame.0 as u32).to_le_bytes());
            table.copy_from(at + 2, &to.0.to_le_bytes());
            table.atomic_u16(at).store(GRANT_PERMIT_ACCESS, Ordering::Release);
        }
        Ok(())
    }
}

/// Builds the domain of `plan`. On failure nothing is left of it.
///
/// What comes with it is best dropped when the domain runs, and before it is destroyed.
///
/// `daemons` are the domains where xenstored and xenconsoled run.
///
/// # Errors
/// See [`BuildError`].
pub fn build(
    plan: &Plan,
    uuid: [u8; 16],
    limits: Limits,
    payload: Payload<'_>,
    daemons: (DomId, DomId),
    control: &dyn DomainControl,
    foreign: &dyn ForeignMemory,
) -> Result<(Built, Loaded), BuildError> {
    let needed_kib = plan.needed_kib();
    let free_kib = free_kib(control, plan.kind(), needed_kib)?;
    let empty = Empty {
        domid: None,
        kind: plan.kind(),
        uuid,
        max_vcpus: plan.sizes().max_vcpus,
        max_mem_kib: plan.sizes().max_mem_kib(),
        placement: plan.placement(),
        limits,
    };
    let unfinished = empty.make(control)?;
    let domid = unfinished.domid;
    // A new domain has the default.
    if limits.tsc_mode != TscMode::Default {
        control.set_tsc_mode(domid, limits.tsc_mode)?;
    }
    control.apply_default_cpu_policy(domid)?;
    control.set_memory_map(domid, plan.memory_map())?;

    let building = Building { needed_kib, free_kib, ..Building::new(domid, daemons, control, foreign) };
    let (ports, rings, loaded) = match plan {
        Plan::Pvh(plan) => pvh::build(plan, payload, &building)?,
        Plan::Pv(plan) => {
            let (ports, rings) = pv::build(plan, payload, &building)?;
            (ports, rings, Loaded::default())
        }
    };
    std::mem::forget(unfinished);
    let built = Built {
        domid,
        store_port: ports.store,
        console_port: ports.console,
        store_ring: rings.store,
        console_ring: rings.console,
    };
    Ok((built, loaded))
}
