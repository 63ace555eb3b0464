//! The plan of a qube: all that is to be decided, decided, before Xen is asked for anything.

use super::placement::Placement;
use super::pv::{PvPlan, host_map};
use super::pvh::PvhPlan;
use crate::image::{Footprint, PvKernel};
use std::ops::Range;
use xen::{E820Entry, GuestKind, PAGE_SHIFT, PAGE_SIZE};

/// The most vCPUs of a PVH domain (`HVM_MAX_VCPUS`). A PV domain could have more, which nobody has asked for.
const MAX_VCPUS: u32 = 128;
/// The most memory, in KiB: 16 TiB, what Xen's own limit of host memory is on x86.
const MAX_MEMORY_KIB: u64 = 16 << 30;
/// The longest command line of a kernel that does not say, in bytes: Linux' limit on x86 (`COMMAND_LINE_SIZE`).
const DEFAULT_CMDLINE_LIMIT: usize = 2_047;
/// log2 of the pages of a 2 MiB extent.
pub(super) const SUPERPAGE_ORDER: u32 = 9;
/// Pages of a 2 MiB extent.
pub(super) const SUPERPAGE: u64 = 1 << SUPERPAGE_ORDER;
/// What a domain may have beyond its memory, in KiB (`LIBXL_MAXMEM_CONSTANT`): special pages, ACPI and slack.
const MAX_MEM_SLACK_KIB: u64 = 1_024;

/// What a qube is to have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    /// Memory at the start, in KiB.
    pub memory_kib: u64,
    /// The most memory that it may have later, in KiB.
    pub max_memory_kib: u64,
    /// vCPUs at the start.
    pub vcpus: u32,
    /// The most vCPUs that it may have later.
    pub max_vcpus: u32,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// The memory that the kernel wants.
    pub kernel: &'a Footprint,
    /// Bytes of the initrd, if there is one.
    pub initrd: Option<u64>,
    /// Where its vCPUs run.
    pub placement: Placement,
    /// The kind of guest, and what it alone has.
    pub guest: Guest<'a>,
}

/// A kind of guest, and what it alone has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guest<'a> {
    /// A PVH guest.
    Pvh(PvhOptions),
    /// A PV guest whose kernel says this of itself.
    Pv(&'a PvKernel),
}

/// What is to be chosen of a PVH guest alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PvhOptions {
    /// What becomes of missed timer ticks (`HVMPTM_*`, xen/include/public/hvm/params.h).
    pub timer_mode: u64,
    /// Memory for the nested page tables, in MiB; `None` for what libxl would compute.
    pub paging_memory_mib: Option<u64>,
    /// The hole below 4 GiB, in MiB, 64 (which is also what `None` means) to 3,840.
    pub mmio_hole_mib: Option<u64>,
}

/// Why there is no plan.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlanError {
    /// A number of vCPUs that no guest can have.
    #[error(
        "vcpus is {vcpus} and maxvcpus is {max_vcpus}: a qube has 1 to {MAX_VCPUS}, and vcpus is at most maxvcpus"
    )]
    Vcpus {
        /// At the start.
        vcpus: u32,
        /// At the most.
        max_vcpus: u32,
    },
    /// Maximum below the start.
    #[error("maxmem ({max_memory_kib} KiB) is less than memory ({memory_kib} KiB)")]
    MaxMemory {
        /// At the start.
        memory_kib: u64,
        /// At the most.
        max_memory_kib: u64,
    },
    /// More memory than any host has.
    #[error("maxmem is {max_memory_kib} KiB; at most {MAX_MEMORY_KIB} KiB (16 TiB) are possible")]
    TooMuchMemory {
        /// At the most.
        max_memory_kib: u64,
    },
    /// The kernel needs memory that the qube has not.
    #[error(
        "the kernel takes guest memory from {:#x} to {:#x}, but the qube has {memory_kib} KiB: give it at least {} MiB",
        range.start, range.end, needed_mib(range.end)
    )]
    KernelDoesNotFit {
        /// What the kernel takes.
        range: Range<u64>,
        /// What there is.
        memory_kib: u64,
    },
    /// The initrd does not fit.
    #[error(
        "the initrd of {bytes} bytes does not fit: {available} bytes are left behind the kernel; give the qube at least {} MiB",
        needed_mib(*end)
    )]
    InitrdDoesNotFit {
        /// Its size.
        bytes: u64,
        /// What is left.
        available: u64,
        /// Where memory would have to end.
        end: u64,
    },
    /// The command line is too long.
    #[error("the kernel's command line has {len} bytes; at most {limit} reach this kernel")]
    Cmdline {
        /// Its length.
        len: usize,
        /// What the kernel reads, or what start_info of a PV guest has room for.
        limit: usize,
    },
    /// A PV guest's kernel lies where the page tables that it begins with cannot map all that it is to find.
    #[error(
        "the kernel maps itself at {virt_base:#x}, and the {bytes} bytes that it is to find there cannot be mapped behind that"
    )]
    Unmappable {
        /// Where the kernel wants its first frame to be mapped.
        virt_base: u64,
        /// What is to be mapped from there on.
        bytes: u64,
    },
    /// The command line has a NUL.
    #[error("the kernel's command line has a NUL byte at position {at}")]
    CmdlineNul {
        /// Where.
        at: usize,
    },
}

/// The MiB that a guest needs for its memory to reach `end`.
fn needed_mib(end: u64) -> u64 {
    end.div_ceil(1 << 20)
}

/// How large a qube is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// vCPUs at the start.
    pub vcpus: u32,
    /// vCPUs at the most.
    pub max_vcpus: u32,
    /// Memory at the start, in KiB.
    pub memory_kib: u64,
    /// The most memory that it may have later, in KiB.
    pub max_memory_kib: u64,
}

impl Sizes {
    /// The limit that Xen is told, in KiB. A guest that starts with less than its most never has more than its target:
    /// libxl's limit is that, too.
    #[must_use]
    pub fn max_mem_kib(&self) -> u64 {
        self.memory_kib + MAX_MEM_SLACK_KIB
    }
}

/// The plan of a qube: a plain value, to be printed, compared and carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Of a PVH guest.
    Pvh(PvhPlan),
    /// Of a PV guest.
    Pv(PvPlan),
}

impl Plan {
    /// Decides all that is to be decided.
    ///
    /// # Errors
    /// See [`PlanError`]: what was asked for is not possible.
    pub fn new(request: &Request<'_>) -> Result<Self, PlanError> {
        let sizes = sizes(request)?;
        let kernel_limit = request.kernel.cmdline_limit.map_or(DEFAULT_CMDLINE_LIMIT, |limit| limit as usize);
        let limit = match request.guest {
            Guest::Pvh(_) => kernel_limit,
            Guest::Pv(_) => kernel_limit.min(PvPlan::CMDLINE_LIMIT),
        };
        let cmdline = request.cmdline;
        if cmdline.len() > limit {
            return Err(PlanError::Cmdline { len: cmdline.len(), limit });
        }
        if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
            return Err(PlanError::CmdlineNul { at });
        }
        Ok(match request.guest {
            Guest::Pvh(options) => Self::Pvh(PvhPlan::new(request, options, sizes)?),
            Guest::Pv(kernel) => Self::Pv(PvPlan::new(request, kernel, sizes)?),
        })
    }

    /// The kind of guest.
    #[must_use]
    pub fn kind(&self) -> GuestKind {
        match self {
            Self::Pvh(_) => GuestKind::Pvh,
            Self::Pv(_) => GuestKind::Pv,
        }
    }

    /// How large the qube is.
    #[must_use]
    pub fn sizes(&self) -> &Sizes {
        match self {
            Self::Pvh(plan) => &plan.sizes,
            Self::Pv(plan) => &plan.sizes,
        }
    }

    /// Where its vCPUs run.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        match self {
            Self::Pvh(plan) => &plan.placement,
            Self::Pv(plan) => &plan.placement,
        }
    }

    /// What the guest is told of its address space.
    #[must_use]
    pub fn memory_map(&self) -> &[E820Entry] {
        match self {
            Self::Pvh(plan) => &plan.memory_map,
            Self::Pv(plan) => &plan.memory_map,
        }
    }

    /// The same for a PV guest that drives devices, and so has the holes of the machine's memory map. A PVH guest's map is
    /// its own.
    #[must_use]
    pub fn with_host_map(self, machine: &[E820Entry]) -> Self {
        match self {
            Self::Pvh(_) => self,
            Self::Pv(plan) => {
                let Sizes { memory_kib, max_memory_kib, .. } = plan.sizes;
                let memory_map = host_map(machine, memory_kib << 10, max_memory_kib << 10);
                Self::Pv(PvPlan { memory_map, ..plan })
            }
        }
    }

    /// What the host needs for it, nested page tables included, in KiB.
    #[must_use]
    pub fn needed_kib(&self) -> u64 {
        match self {
            Self::Pvh(plan) => (plan.claim_pages << (PAGE_SHIFT - 10)) + (plan.paging_mempool_bytes >> 10),
            Self::Pv(plan) => plan.pages << (PAGE_SHIFT - 10),
        }
    }
}

fn sizes(request: &Request<'_>) -> Result<Sizes, PlanError> {
    let Request { memory_kib, max_memory_kib, vcpus, max_vcpus, .. } = *request;
    if vcpus == 0 || vcpus > max_vcpus || max_vcpus > MAX_VCPUS {
        return Err(PlanError::Vcpus { vcpus, max_vcpus });
    }
    if max_memory_kib < memory_kib {
        return Err(PlanError::MaxMemory { memory_kib, max_memory_kib });
    }
    if max_memory_kib > MAX_MEMORY_KIB {
        return Err(PlanError::TooMuchMemory { max_memory_kib });
    }
    Ok(Sizes { vcpus, max_vcpus, memory_kib, max_memory_kib })
}

pub(super) fn page_up(address: u64) -> u64 {
    address.saturating_add(PAGE_SIZE as u64 - 1) & !(PAGE_SIZE as u64 - 1)
}

pub(super) fn page_down(address: u64) -> u64 {
    address & !(PAGE_SIZE as u64 - 1)
}
