//! Domain control: how dom0 makes, fills, inspects and ends domains.

use crate::{Diagnostics, DomId, Gfn, PciAddress, Pfn, Port, Result, Scheduling, Suspension};

/// How a guest's privileged instructions and page tables come about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GuestKind {
    /// In hardware: virtualisation with nested paging and a local APIC, no device model.
    Pvh,
    /// By hypercalls, without any hardware for it: the guest knows the machine's frames, and its kernel is one of 64
    /// bits (what Xen takes a new PV domain for).
    Pv,
}

/// What a new domain is given for life (`xen_domctl_createdomain`, xen/include/public/domctl.h).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateDomain {
    /// The kind of guest.
    pub kind: GuestKind,
    /// The UUID, big-endian.
    pub uuid: [u8; 16],
    /// 1 to 128 for PVH, 1 to 8,192 for PV.
    pub max_vcpus: u32,
    /// The highest event-channel port; libxl's default is 1,023.
    pub max_event_channel_port: u32,
    /// Frames of the grant table; `None` for the hypervisor's default (64).
    pub max_grant_frames: Option<u32>,
    /// Frames for tracking mapped grants; `None` for the hypervisor's default (1,024).
    pub max_maptrack_frames: Option<u32>,
    /// The highest version of the grant table's interface that it may use: 1 or 2, which is libxl's default.
    pub max_grant_version: u32,
    /// The pool of CPUs that it belongs to, by number.
    pub cpupool: u32,
    /// Whether the IOMMU translates for it, which it must for a domain that is to be given devices: with tables of its own.
    pub iommu: bool,
    /// The id that it is to have, if no domain has it; `None` for the next that is free.
    pub domid: Option<DomId>,
}

impl CreateDomain {
    /// With libxl's defaults for all else: event-channel ports up to 1,023, the hypervisor's own sizes of the grant table, whose
    /// versions 1 and 2 it may use, pool 0, no translation by the IOMMU, and an id that Xen chooses.
    #[must_use]
    pub const fn new(kind: GuestKind, uuid: [u8; 16], max_vcpus: u32) -> Self {
        Self {
            kind,
            uuid,
            max_vcpus,
            max_event_channel_port: 1_023,
            max_grant_frames: None,
            max_maptrack_frames: None,
            max_grant_version: 2,
            cpupool: 0,
            iommu: false,
            domid: None,
        }
    }
}

/// The HVM parameters that a builder sets (xen/include/public/hvm/params.h).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the header's own names")]
#[repr(u32)]
pub enum HvmParam {
    StorePfn = xen_sys::HVM_PARAM_STORE_PFN,
    StoreEvtchn = xen_sys::HVM_PARAM_STORE_EVTCHN,
    IoreqPfn = xen_sys::HVM_PARAM_IOREQ_PFN,
    BufioreqPfn = xen_sys::HVM_PARAM_BUFIOREQ_PFN,
    TimerMode = xen_sys::HVM_PARAM_TIMER_MODE,
    IdentPt = xen_sys::HVM_PARAM_IDENT_PT,
    ConsolePfn = xen_sys::HVM_PARAM_CONSOLE_PFN,
    ConsoleEvtchn = xen_sys::HVM_PARAM_CONSOLE_EVTCHN,
    PagingRingPfn = xen_sys::HVM_PARAM_PAGING_RING_PFN,
    MonitorRingPfn = xen_sys::HVM_PARAM_MONITOR_RING_PFN,
    SharingRingPfn = xen_sys::HVM_PARAM_SHARING_RING_PFN,
}

/// What a range of guest-physical memory is (xen/include/public/hvm/e820.h).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum E820Kind {
    /// Usable memory.
    Ram = xen_sys::E820_RAM,
    /// Not for the guest's allocator.
    Reserved = xen_sys::E820_RESERVED,
    /// ACPI tables.
    Acpi = xen_sys::E820_ACPI,
    /// What the firmware keeps for itself over a suspension.
    Nvs = xen_sys::E820_NVS,
    /// Memory that is none of the guest's, and no hole either, in which devices could be.
    Unusable = xen_sys::E820_UNUSABLE,
}

impl E820Kind {
    /// What a number of a memory map means. What this version does not know, a guest had better leave alone.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        match code {
            xen_sys::E820_RAM => Self::Ram,
            xen_sys::E820_ACPI => Self::Acpi,
            xen_sys::E820_NVS => Self::Nvs,
            xen_sys::E820_UNUSABLE => Self::Unusable,
            _ => Self::Reserved,
        }
    }
}

/// A range of the guest's memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct E820Entry {
    /// Guest-physical address of the first byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: E820Kind,
}

/// What a guest reads when it asks for the time stamp counter (`TSC_MODE_*`, xen/include/asm/time.h), by Xen's number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u32)]
pub enum TscMode {
    /// The processor's where it is fit for that, else Xen's.
    #[default]
    Default = 0,
    /// Xen's: each reading is an exit.
    AlwaysEmulate = 1,
    /// The processor's.
    Native = 2,
}

/// A piece of the machine that a domain may be allowed to use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Hardware {
    /// I/O ports.
    Ports {
        /// The first.
        first: u32,
        /// How many.
        count: u32,
    },
    /// Frames of the machine, which are a device's.
    Frames {
        /// The first.
        first: u64,
        /// How many.
        count: u64,
    },
    /// An interrupt, by the number that it has for the domain that allows it.
    Interrupt(u32),
}

/// What happens when memory that the firmware reserved for a device is in use in the domain that is to have the device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reserved {
    /// The domain does not get it.
    Strict,
    /// It gets it all the same.
    Relaxed,
}

/// How the first vCPU of a PV guest begins: in 64-bit mode on the guest's own page tables, with the address of start_info
/// in rsi (`vcpu_guest_context`, xen/include/public/arch-x86/xen.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PvStart {
    /// The first instruction, a virtual address.
    pub entry: u64,
    /// The end of the stack, a virtual address.
    pub stack: u64,
    /// start_info, a virtual address.
    pub start_info: u64,
    /// The level-4 page table, which is [pinned](DomainControl::pin_page_tables).
    pub page_table: Gfn,
}

/// Why a domain shut down (`SHUTDOWN_*`, xen/include/public/sched.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShutdownReason {
    /// The guest powered itself off.
    Poweroff,
    /// The guest asked to be restarted.
    Reboot,
    /// The guest is suspended.
    Suspend,
    /// The guest crashed.
    Crash,
    /// A watchdog ended it.
    Watchdog,
    /// The guest asked for a soft reset.
    SoftReset,
    /// A number that this version does not know.
    Unknown(u8),
}

impl ShutdownReason {
    /// From Xen's number.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Poweroff,
            1 => Self::Reboot,
            2 => Self::Suspend,
            3 => Self::Crash,
            4 => Self::Watchdog,
            5 => Self::SoftReset,
            other => Self::Unknown(other),
        }
    }

    /// Xen's number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Poweroff => 0,
            Self::Reboot => 1,
            Self::Suspend => 2,
            Self::Crash => 3,
            Self::Watchdog => 4,
            Self::SoftReset => 5,
            Self::Unknown(code) => code,
        }
    }
}

/// What Xen says of a domain (`XEN_DOMCTL_getdomaininfo`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DomainInfo {
    /// Its id.
    pub domid: DomId,
    /// Its UUID, big-endian.
    pub uuid: [u8; 16],
    /// Hardware-virtualised (HVM or PVH), not PV.
    pub hvm: bool,
    /// Being torn down.
    pub dying: bool,
    /// Paused by the toolstack.
    pub paused: bool,
    /// All vCPUs wait for events.
    pub blocked: bool,
    /// A vCPU runs.
    pub running: bool,
    /// It shut down, and why.
    pub shutdown: Option<ShutdownReason>,
    /// Pages that it has now.
    pub pages: u64,
    /// Pages that it may have.
    pub max_pages: u64,
    /// Pages claimed and not yet allocated.
    pub outstanding_pages: u64,
    /// Pages shared by memory sharing.
    pub shared_pages: u64,
    /// Pages paged out.
    pub paged_pages: u64,
    /// CPU time, in nanoseconds.
    pub cpu_time: u64,
    /// vCPUs on line.
    pub online_vcpus: u32,
    /// The highest vCPU id; `None` before any vCPU was made.
    pub max_vcpu_id: Option<u32>,
    /// The page that the domain shares with Xen (`shared_info`).
    pub shared_info: Gfn,
    /// XSM security id.
    pub ssidref: u32,
    /// The CPU pool.
    pub cpupool: u32,
}

/// What Xen says of the machine (`XEN_SYSCTL_physinfo`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PhysInfo {
    /// Hardware threads a core.
    pub threads_per_core: u32,
    /// Cores a socket.
    pub cores_per_socket: u32,
    /// CPUs on line.
    pub cpus: u32,
    /// The highest CPU id.
    pub max_cpu_id: u32,
    /// NUMA nodes.
    pub nodes: u32,
    /// CPU clock in kHz.
    pub cpu_khz: u32,
    /// CPUID words as `xl info` prints them.
    pub hw_caps: [u32; 8],
    /// `XEN_SYSCTL_PHYSCAP_*` bits: 0 HVM, 1 PV, 2 direct I/O, 3 HAP, 4 shadow …
    pub capabilities: u32,
    /// Memory in pages.
    pub total_pages: u64,
    /// Free pages, those still to be scrubbed included.
    pub free_pages: u64,
    /// Pages to be scrubbed.
    pub scrub_pages: u64,
    /// Pages claimed and not yet allocated.
    pub outstanding_pages: u64,
}

impl PhysInfo {
    /// Whether the machine can run PVH domains: hardware virtualisation and nested paging.
    #[must_use]
    pub fn runs_pvh(&self) -> bool {
        let needed = xen_sys::XEN_SYSCTL_PHYSCAP_hvm | xen_sys::XEN_SYSCTL_PHYSCAP_hap;
        self.capabilities & needed == needed
    }

    /// Whether Xen uses an IOMMU, so that devices can be given to domains.
    #[must_use]
    pub fn gives_devices(&self) -> bool {
        self.capabilities & xen_sys::XEN_SYSCTL_PHYSCAP_directio != 0
    }

    /// Whether the machine can run PV domains: any can, unless its Xen was built without them.
    #[must_use]
    pub fn runs_pv(&self) -> bool {
        self.capabilities & xen_sys::XEN_SYSCTL_PHYSCAP_pv != 0
    }
}

/// What else `xl info` tells of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostInfo {
    /// The scheduler's number (`XEN_SCHEDULER_*`, xen/include/public/domctl.h).
    pub scheduler: u32,
    /// Pages that memory sharing saved.
    pub sharing_freed_pages: u64,
    /// Frames that are shared.
    pub sharing_used_frames: u64,
    /// CPUs in no pool.
    pub free_cpus: u32,
}

impl HostInfo {
    /// The scheduler's name.
    #[must_use]
    pub fn scheduler_name(&self) -> &'static str {
        crate::scheduler_name(self.scheduler)
    }
}

/// How a range of guest memory gets its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Populate {
    /// Now.
    Now,
    /// When the guest first touches them (`XENMEMF_populate_on_demand`), out of the pages that
    /// [`DomainControl::set_pod_target`] gave it: for a guest that starts with less memory than it may have.
    OnDemand,
}

/// What Xen says of itself (`XENVER_*`, xen/include/public/version.h).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct XenVersion {
    /// Such as 4.
    pub major: u16,
    /// Such as 17.
    pub minor: u16,
    /// Such as `.4`.
    pub extra: String,
    /// Kinds of guests, such as `xen-3.0-x86_64 hvm-3.0-x86_32`.
    pub capabilities: String,
    /// The source's revision.
    pub changeset: String,
    /// Xen's command line.
    pub command_line: String,
    /// Who compiled it, where, with what and when.
    pub compiler: String,
    /// Who compiled it.
    pub compile_by: String,
    /// Where.
    pub compile_domain: String,
    /// When.
    pub compile_date: String,
    /// Bytes of a page.
    pub page_size: u64,
    /// Where the hypervisor's part of the address space begins.
    pub virt_start: u64,
    /// The linker's build id, in hexadecimal; empty when it has none.
    pub build_id: String,
}

/// What dom0's toolstack may do with domains. One method is one hypercall of libxenctrl unless it says otherwise.
pub trait DomainControl: Scheduling + Diagnostics + Suspension + Send + Sync {
    /// Makes an empty domain, paused, and returns the id that Xen chose.
    fn create_domain(&self, domain: &CreateDomain) -> Result<DomId>;
    /// Ends a domain: Xen frees all of it. Returns when that is done.
    fn destroy(&self, domid: DomId) -> Result<()>;
    /// Stops a domain's vCPUs; counts, as `unpause` does.
    fn pause(&self, domid: DomId) -> Result<()>;
    /// Takes one `pause` back.
    fn unpause(&self, domid: DomId) -> Result<()>;
    /// The number of vCPUs; once, before anything runs.
    fn set_max_vcpus(&self, domid: DomId, vcpus: u32) -> Result<()>;
    /// The most memory the domain may have, in KiB.
    fn set_max_mem(&self, domid: DomId, kib: u64) -> Result<()>;
    /// Memory for the domain's nested page tables, in bytes.
    fn set_paging_mempool_size(&self, domid: DomId, bytes: u64) -> Result<()>;
    /// Gives the domain the host's default CPUID and MSR policy for its kind. Five hypercalls (libxenguest).
    fn apply_default_cpu_policy(&self, domid: DomId) -> Result<()>;
    /// A port of `domid` to which `remote` may bind.
    fn alloc_unbound_port(&self, domid: DomId, remote: DomId) -> Result<Port>;
    /// Sets an HVM parameter.
    fn set_hvm_param(&self, domid: DomId, param: HvmParam, value: u64) -> Result<()>;
    /// Reads an HVM parameter.
    fn hvm_param(&self, domid: DomId, param: HvmParam) -> Result<u64>;
    /// What the domain gets when it asks for its memory map.
    fn set_memory_map(&self, domid: DomId, map: &[E820Entry]) -> Result<()>;
    /// Sets `pages` of host memory aside for the domain, all or none; 0 gives back what was not used.
    fn claim_pages(&self, domid: DomId, pages: u64) -> Result<()>;
    /// Puts new memory at each of `gfns`, `1 << order` pages each, and returns for how many of them there was memory:
    /// the first so many have it.
    fn populate_physmap(&self, domid: DomId, order: u32, gfns: &[Gfn], kind: Populate) -> Result<usize>;
    /// Gives a PV domain new memory for each of `pfns`, `1 << order` pages each, and returns the first frame of each
    /// extent that there was memory for: that of the first so many.
    fn populate_pv(&self, domid: DomId, order: u32, pfns: &[Pfn]) -> Result<Vec<Gfn>>;
    /// Has Xen fill a page of a PV domain with its hypercall entries.
    fn init_hypercall_page(&self, domid: DomId, page: Gfn) -> Result<()>;
    /// Makes a page of a PV domain a level-4 page table for good (`MMUEXT_PIN_L4_TABLE`). Xen checks it and all tables
    /// that it leads to: they name frames of the domain alone, and nobody has any of the tables mapped for writing.
    fn pin_page_tables(&self, domid: DomId, level4: Gfn) -> Result<()>;
    /// Sets how a PV domain's first vCPU begins.
    fn set_pv_start(&self, domid: DomId, start: &PvStart) -> Result<()>;
    /// What a domain that has not run yet reads as its time stamp counter.
    fn set_tsc_mode(&self, domid: DomId, mode: TscMode) -> Result<()>;
    /// How many pages a domain that is populated on demand has to live with (`XENMEM_set_pod_target`).
    fn set_pod_target(&self, domid: DomId, pages: u64) -> Result<()>;
    /// Gives a PCI device, which must be nobody else's, to a domain, so that it reaches that domain's memory alone;
    /// [`Unavailable`](crate::ErrorKind::Unavailable) without an IOMMU, or when the domain was made without
    /// ([`CreateDomain::iommu`]). Given to [`DomId::IO`] it reaches none.
    fn assign_device(&self, domid: DomId, device: PciAddress, reserved: Reserved) -> Result<()>;
    /// Takes a PCI device from a domain.
    fn deassign_device(&self, domid: DomId, device: PciAddress) -> Result<()>;
    /// Lets a domain use a piece of the machine, or no longer.
    fn set_access(&self, domid: DomId, piece: Hardware, allowed: bool) -> Result<()>;
    /// Gives a domain an interrupt of the machine; the answer is the domain's own number for it.
    fn map_interrupt(&self, domid: DomId, interrupt: u32) -> Result<u32>;
    /// Takes an interrupt from a domain, by the domain's own number.
    fn unmap_interrupt(&self, domid: DomId, interrupt: u32) -> Result<()>;
    /// The machine's own memory map.
    fn machine_memory_map(&self) -> Result<Vec<E820Entry>>;
    /// The domain's vCPU and platform state as HVM save records. Two hypercalls (size, then content).
    fn hvm_context(&self, domid: DomId) -> Result<Vec<u8>>;
    /// Loads HVM save records.
    fn set_hvm_context(&self, domid: DomId, records: &[u8]) -> Result<()>;
    /// What Xen says of one domain; [`NotFound`](crate::ErrorKind::NotFound) when there is none of that id.
    fn domain_info(&self, domid: DomId) -> Result<DomainInfo>;
    /// What Xen says of all domains, by id. One hypercall for each 1,024 domains.
    fn domains(&self) -> Result<Vec<DomainInfo>>;
    /// What Xen says of the machine.
    fn phys_info(&self) -> Result<PhysInfo>;
    /// What Xen says of itself. Nine hypercalls.
    fn version(&self) -> Result<XenVersion>;
    /// What else `xl info` tells of the machine. Four hypercalls.
    fn host_info(&self) -> Result<HostInfo>;
}
