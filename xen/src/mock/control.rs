//! Domain control of the mock: domains with memory that is limited, claimed and populated as Xen does it.

use super::Machine;
use super::pv::{MachineFrames, Pv};
use crate::memory::Frames;
use crate::{
    CreateDomain, DomId, DomainControl, DomainInfo, E820Entry, E820Kind, Error, Gfn, GuestKind, Hardware,
    HostInfo, HvmParam, PAGE_SHIFT, PAGE_SIZE, PciAddress, Pfn, PhysInfo, Populate, Port, PvStart, Reserved,
    Result, ShutdownReason, TscMode, XenVersion,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Frames of a domain's address space that can be populated: the first 64 GiB. Sparse, so that it costs nothing.
const ADDRESS_SPACE: u64 = 64 << 18;
/// Behind them, the page that a domain shares with Xen.
const SHARED_INFO: u64 = ADDRESS_SPACE;
/// Frames of a grant table, at most.
const GRANT_TABLE_FRAMES: u64 = 64;
/// The most vCPUs of a PVH domain (`HVM_MAX_VCPUS`).
const MAX_VCPUS: u32 = 128;
/// The most vCPUs of a PV domain (`MAX_VIRT_CPUS`).
const MAX_PV_VCPUS: u32 = 8_192;

/// Save records, `struct hvm_save_descriptor` and the type codes of xen/include/public/arch-x86/hvm/save.h.
const RECORD_HEADER: u16 = 1;
const RECORD_END: u16 = 0;

/// The machine's memory map: as of a PC with 8 GiB, of which 3 are below the devices.
const MACHINE_MAP: [(u64, u64, E820Kind); 7] = [
    (0, 0x9_fc00, E820Kind::Ram),
    (0xf_0000, 0x10_0000, E820Kind::Reserved),
    (0x10_0000, 0xbffd_f000, E820Kind::Ram),
    (0xbffd_f000, 0xc000_0000, E820Kind::Acpi),
    (0xc000_0000, 0xc010_0000, E820Kind::Nvs),
    (0xfeff_c000, 0xff00_0000, E820Kind::Reserved),
    (0x1_0000_0000, 0x2_4000_0000, E820Kind::Ram),
];

/// The machine's memory, in pages.
#[derive(Debug)]
pub(super) struct HostMemory {
    total: u64,
    free: u64,
    claimed: u64,
    frames: MachineFrames,
}

impl HostMemory {
    pub(super) fn new(pages: u64) -> Self {
        Self { total: pages, free: pages, claimed: 0, frames: MachineFrames::default() }
    }

    /// All and what is free, in bytes.
    pub(super) fn bytes(&self, page: u64) -> (u64, u64) {
        (self.total * page, self.free * page)
    }

    pub(super) fn inventory(&self) -> Vec<String> {
        vec![format!("{} pages free, {} claimed", self.free, self.claimed)]
    }
}

/// A domain.
#[derive(Debug)]
pub(super) struct Domain {
    memory: Arc<Frames>,
    grant_table: Arc<Frames>,
    uuid: [u8; 16],
    max_vcpus: u32,
    pub(super) vcpus: u32,
    pub(super) cpupool: u32,
    pub(super) scheduling: super::scheduling::Part,
    /// Runs from their first frame, not overlapping.
    populated: BTreeMap<u64, u64>,
    pages: u64,
    max_pages: u64,
    claimed: u64,
    pool_pages: u64,
    /// Populated on demand, in part: it may get what [`DomainControl::set_pod_target`] says.
    on_demand: bool,
    pub(super) pauses: u32,
    shutdown: Option<ShutdownReason>,
    /// Somebody has memory of it, and so it stays.
    pub(super) held: bool,
    dying: bool,
    cpu_policy: bool,
    params: HashMap<HvmParam, u64>,
    memory_map: Vec<E820Entry>,
    context: Vec<u8>,
    shared_info: Gfn,
    iommu: bool,
    hardware: BTreeSet<Hardware>,
    interrupts: BTreeSet<u32>,
    tsc_mode: TscMode,
    /// What a PV domain has, and a PVH domain has not.
    pub(super) pv: Option<Pv>,
}

/// What a test may look at of a domain.
#[derive(Clone, Debug)]
pub struct Guest {
    /// vCPUs.
    pub vcpus: u32,
    /// Pages that it has.
    pub pages: u64,
    /// Its memory map.
    pub memory_map: Vec<E820Entry>,
    /// The HVM save records that were loaded last.
    pub context: Vec<u8>,
    /// Whether a CPUID policy was applied.
    pub cpu_policy: bool,
    /// Whether it may run.
    pub running: bool,
    /// What of the machine it may use.
    pub hardware: Vec<Hardware>,
    /// What it reads as its time stamp counter.
    pub tsc_mode: TscMode,
    /// How a PV domain's first vCPU begins.
    pub start: Option<PvStart>,
    /// Of a PV domain: its first frame of each run, to the machine's and their number.
    runs: BTreeMap<u64, (u64, u64)>,
    params: HashMap<HvmParam, u64>,
    memory: Arc<Frames>,
    grant_table: Arc<Frames>,
}

impl Guest {
    /// An HVM parameter that was set.
    #[must_use]
    pub fn param(&self, param: HvmParam) -> Option<u64> {
        self.params.get(&param).copied()
    }

    /// Which of a PV domain's own frames a frame of the machine is.
    #[must_use]
    pub fn frame(&self, gfn: Gfn) -> Option<Pfn> {
        let run = self.runs.iter().find(|(_, (first, len))| (*first..first + len).contains(&gfn.0));
        run.map(|(pfn, (first, _))| Pfn(pfn + gfn.0 - first))
    }

    /// Which frame of the machine one of a PV domain's own is.
    #[must_use]
    pub fn machine_frame(&self, pfn: Pfn) -> Option<Gfn> {
        let (start, (first, len)) = self.runs.range(..=pfn.0).next_back()?;
        (pfn.0 - start < *len).then(|| Gfn(first + pfn.0 - start))
    }

    /// Bytes of the page that it shares with Xen.
    #[must_use]
    pub fn read_shared_info(&self, offset: u64, len: usize) -> Vec<u8> {
        self.memory.read((SHARED_INFO << PAGE_SHIFT) + offset, len)
    }

    /// Bytes of its memory, by guest-physical (of a PV domain: pseudo-physical) address; what was never populated or written reads as zeros.
    #[must_use]
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        self.memory.read(address, len)
    }

    /// Bytes of its grant table.
    #[must_use]
    pub fn read_grant_table(&self, offset: u64, len: usize) -> Vec<u8> {
        self.grant_table.read(offset, len)
    }
}

impl Domain {
    pub(super) fn memory(&self) -> &Arc<Frames> {
        &self.memory
    }

    pub(super) fn grant_table(&self) -> &Arc<Frames> {
        &self.grant_table
    }

    pub(super) fn pv(&self) -> Option<&Pv> {
        self.pv.as_ref()
    }

    pub(super) fn is_populated(&self, gfn: Gfn) -> bool {
        let run = self.populated.range(..=gfn.0).next_back();
        run.is_some_and(|(start, len)| gfn.0 - start < *len)
    }

    pub(super) fn inventory(&self, domid: DomId) -> String {
        format!(
            "domain {domid}: {} pages, {} claimed, {} for paging",
            self.pages, self.claimed, self.pool_pages
        )
    }

    pub(super) fn guest(&self) -> Guest {
        Guest {
            start: self.pv.as_ref().and_then(Pv::start),
            runs: self.pv.iter().flat_map(Pv::runs).map(|(gfn, pfn, len)| (pfn, (gfn, len))).collect(),
            vcpus: self.vcpus,
            pages: self.pages,
            memory_map: self.memory_map.clone(),
            context: self.context.clone(),
            cpu_policy: self.cpu_policy,
            running: self.pauses == 0,
            hardware: self.hardware.iter().copied().collect(),
            tsc_mode: self.tsc_mode,
            params: self.params.clone(),
            memory: Arc::clone(&self.memory),
            grant_table: Arc::clone(&self.grant_table),
        }
    }

    /// Takes pages from the host for this domain: claimed ones first.
    fn take(&mut self, host: &mut HostMemory, pages: u64) -> bool {
        let others = host.claimed - self.claimed;
        if self.pages + pages > self.max_pages || pages > host.free - others {
            return false;
        }
        let claimed = self.claimed.min(pages);
        host.free -= pages;
        host.claimed -= claimed;
        self.claimed -= claimed;
        self.pages += pages;
        true
    }

    /// Puts a run of memory at `start`, unless something is there.
    fn add_run(&mut self, start: u64, len: u64) -> bool {
        let end = start.saturating_add(len);
        let free = end <= ADDRESS_SPACE
            && self.populated.range(..end).next_back().is_none_or(|(at, pages)| at + pages <= start);
        if free {
            self.populated.insert(start, len);
        }
        free
    }

    pub(super) fn shut_down(&mut self, reason: ShutdownReason) {
        self.shutdown = Some(reason);
    }

    pub(super) fn shutdown_reason(&self) -> Option<ShutdownReason> {
        self.shutdown
    }

    /// Goes on after it was suspended.
    pub(super) fn resume(&mut self) -> std::result::Result<(), i32> {
        match self.shutdown {
            Some(ShutdownReason::Suspend) => {
                self.shutdown = None;
                Ok(())
            }
            _ => Err(libc::EINVAL),
        }
    }

    /// Where memory is: first frame and length of each run.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.populated.iter().map(|(start, len)| (*start, *len))
    }

    pub(super) fn param(&self, param: HvmParam) -> Option<u64> {
        self.params.get(&param).copied()
    }

    fn info(&self, domid: DomId) -> DomainInfo {
        DomainInfo {
            domid,
            uuid: self.uuid,
            hvm: self.pv.is_none(),
            dying: self.dying,
            paused: self.pauses > 0,
            blocked: self.pauses == 0,
            running: false,
            shutdown: self.shutdown,
            pages: self.pages,
            max_pages: self.max_pages,
            outstanding_pages: self.claimed,
            shared_pages: 0,
            paged_pages: 0,
            cpu_time: 0,
            online_vcpus: u32::from(self.pauses == 0) * self.vcpus,
            max_vcpu_id: self.vcpus.checked_sub(1),
            shared_info: self.shared_info,
            ssidref: 0,
            cpupool: self.cpupool,
        }
    }
}

pub(super) struct Control(pub(super) Machine);

impl Control {
    /// Runs `body` on whose each PCI device is, and whether the domain's accesses are translated, after counting the call; its error is an errno.
    fn on_device(
        &self,
        call: &'static str,
        domid: DomId,
        device: PciAddress,
        body: impl FnOnce(&mut BTreeMap<PciAddress, DomId>, bool) -> std::result::Result<(), i32>,
    ) -> Result<()> {
        let args = || format!("domid {domid}, {device}");
        self.0.enter(call, args)?;
        let mut state = self.0.0.state.lock();
        let translated = match state.domains.get(&domid) {
            Some(domain) => Some(domain.iommu),
            None => (domid == DomId::IO).then_some(true),
        };
        let result = translated.map_or(Err(libc::ESRCH), |translated| body(&mut state.devices, translated));
        result.map_err(|errno| Error::errno(call, args(), errno))
    }

    /// Runs `body` on a domain, after counting the call; its error is an errno.
    pub(super) fn on_domain<T>(
        &self,
        call: &'static str,
        domid: DomId,
        args: &str,
        body: impl FnOnce(&mut Domain, &mut HostMemory) -> std::result::Result<T, i32>,
    ) -> Result<T> {
        let args =
            || if args.is_empty() { format!("domid {domid}") } else { format!("domid {domid}, {args}") };
        self.0.enter(call, args)?;
        let mut state = self.0.0.state.lock();
        let state = &mut *state;
        let result = match state.domains.get_mut(&domid) {
            Some(domain) => body(domain, &mut state.host),
            None => Err(libc::ESRCH),
        };
        result.map_err(|errno| Error::errno(call, args(), errno))
    }
}

/// Whether the records begin with a header, follow each other and close with an end.
fn well_formed(records: &[u8]) -> bool {
    let mut rest = records;
    let mut first = true;
    loop {
        let Some((descriptor, after)) = rest.split_first_chunk::<8>() else { return false };
        let kind = u16::from_le_bytes([descriptor[0], descriptor[1]]);
        let len = u32::from_le_bytes([descriptor[4], descriptor[5], descriptor[6], descriptor[7]]) as usize;
        if first != (kind == RECORD_HEADER) || after.len() < len {
            return false;
        }
        first = false;
        rest = &after[len..];
        if kind == RECORD_END {
            return rest.is_empty() && len == 0;
        }
    }
}

/// A header record as Xen writes it, and an end.
fn initial_context() -> Vec<u8> {
    let mut records = Vec::new();
    records.extend(RECORD_HEADER.to_le_bytes());
    records.extend(0_u16.to_le_bytes());
    records.extend((size_of::<xen_sys::hvm_save_header>() as u32).to_le_bytes());
    // HVM_FILE_MAGIC, HVM_FILE_VERSION, then changeset, CPUID and TSC frequency of this machine.
    records.extend(0x5452_4345_u32.to_le_bytes());
    records.extend(2_u32.to_le_bytes());
    records.extend([0x17; 16]);
    // HVM_SAVE_CODE(MTRR) of vCPU 0: PAT, 16 variable and 11 fixed registers, capabilities, default type.
    records.extend(14_u16.to_le_bytes());
    records.extend(0_u16.to_le_bytes());
    records.extend((size_of::<xen_sys::hvm_hw_mtrr>() as u32).to_le_bytes());
    records.extend(0x0007_0406_0007_0406_u64.to_le_bytes());
    records.extend([0; 27 * 8]);
    records.extend(0x508_u64.to_le_bytes());
    records.extend(0_u64.to_le_bytes());
    records.extend([0; 8]);
    records
}

impl DomainControl for Control {
    fn create_domain(&self, domain: &CreateDomain) -> Result<DomId> {
        let args = || format!("{} vCPUs", domain.max_vcpus);
        self.0.enter("xc_domain_create", args)?;
        let most = match domain.kind {
            GuestKind::Pvh => MAX_VCPUS,
            GuestKind::Pv => MAX_PV_VCPUS,
        };
        if domain.max_vcpus == 0 || domain.max_vcpus > most || !(1..=2).contains(&domain.max_grant_version) {
            return Err(Error::errno("xc_domain_create", args(), libc::EINVAL));
        }
        let memory = Arc::new(Frames::new(SHARED_INFO + 1)?);
        let grant_table = Arc::new(Frames::new(GRANT_TABLE_FRAMES)?);
        let mut state = self.0.0.state.lock();
        if state.pools.scheduler(domain.cpupool).is_none() {
            return Err(Error::errno("xc_domain_create", args(), libc::ESRCH));
        }
        let is_free = |domid: &DomId| !state.domains.contains_key(domid);
        let domid = match domain.domid {
            Some(domid) => Some(domid).filter(is_free).ok_or(libc::EEXIST),
            None => (1..DomId::FIRST_RESERVED).map(DomId).find(is_free).ok_or(libc::ENOMEM),
        };
        let domid = domid.map_err(|errno| Error::errno("xc_domain_create", args(), errno))?;
        let (pv, shared_info) = match domain.kind {
            GuestKind::Pvh => (None, Gfn(state.host.frames.take(1))),
            GuestKind::Pv => {
                let (pv, shared_info) = Pv::new(SHARED_INFO, &mut state.host.frames);
                (Some(pv), shared_info)
            }
        };
        state.domains.insert(
            domid,
            Domain {
                memory,
                grant_table,
                uuid: domain.uuid,
                max_vcpus: domain.max_vcpus,
                vcpus: 0,
                cpupool: domain.cpupool,
                scheduling: super::scheduling::Part::default(),
                populated: BTreeMap::new(),
                pages: 0,
                max_pages: 0,
                claimed: 0,
                pool_pages: 0,
                on_demand: false,
                pauses: 1,
                shutdown: None,
                held: false,
                dying: false,
                cpu_policy: false,
                params: HashMap::new(),
                memory_map: Vec::new(),
                context: initial_context(),
                shared_info,
                iommu: domain.iommu,
                hardware: BTreeSet::new(),
                tsc_mode: TscMode::Default,
                interrupts: BTreeSet::new(),
                pv,
            },
        );
        Ok(domid)
    }

    fn destroy(&self, domid: DomId) -> Result<()> {
        self.on_domain("xc_domain_destroy", domid, "", |domain, host| {
            host.free += domain.pages + domain.pool_pages;
            host.claimed -= domain.claimed;
            (domain.pages, domain.pool_pages, domain.claimed) = (0, 0, 0);
            domain.dying = true;
            Ok(())
        })?;
        let mut state = self.0.0.state.lock();
        state.domains.retain(|id, domain| *id != domid || domain.held);
        // What it has of devices goes into quarantine.
        state.devices.values_mut().filter(|owner| **owner == domid).for_each(|owner| *owner = DomId::IO);
        state.events.close_all(domid);
        state.store.domain_gone(domid);
        Ok(())
    }

    fn pause(&self, domid: DomId) -> Result<()> {
        self.on_domain("xc_domain_pause", domid, "", |domain, _| {
            domain.pauses += 1;
            Ok(())
        })
    }

    fn unpause(&self, domid: DomId) -> Result<()> {
        self.on_domain("xc_domain_unpause", domid, "", |domain, _| {
            domain.pauses = domain.pauses.checked_sub(1).ok_or(libc::EINVAL)?;
            Ok(())
        })
    }

    fn set_max_vcpus(&self, domid: DomId, vcpus: u32) -> Result<()> {
        self.on_domain("xc_domain_max_vcpus", domid, &format!("{vcpus} vCPUs"), |domain, _| {
            if vcpus == 0 || vcpus != domain.max_vcpus || domain.vcpus != 0 {
                return Err(libc::EINVAL);
            }
            domain.vcpus = vcpus;
            Ok(())
        })
    }

    fn set_max_mem(&self, domid: DomId, kib: u64) -> Result<()> {
        self.on_domain("xc_domain_setmaxmem", domid, &format!("{kib} KiB"), |domain, _| {
            domain.max_pages = kib >> (PAGE_SHIFT - 10);
            Ok(())
        })
    }

    fn set_paging_mempool_size(&self, domid: DomId, bytes: u64) -> Result<()> {
        self.on_domain("xc_set_paging_mempool_size", domid, &format!("{bytes} bytes"), |domain, host| {
            if domain.pv.is_some() {
                return Err(libc::EOPNOTSUPP);
            }
            if !bytes.is_multiple_of(PAGE_SIZE as u64) {
                return Err(libc::EINVAL);
            }
            let pages = bytes >> PAGE_SHIFT;
            host.free =
                (host.free + domain.pool_pages - host.claimed).checked_sub(pages).ok_or(libc::ENOMEM)?
                    + host.claimed;
            domain.pool_pages = pages;
            Ok(())
        })
    }

    fn apply_default_cpu_policy(&self, domid: DomId) -> Result<()> {
        let args = || format!("domid {domid}");
        self.0.enter_hypercalls("xc_cpuid_apply_policy", 5, args)?;
        let mut state = self.0.0.state.lock();
        let domain = state.domains.get_mut(&domid);
        domain.ok_or_else(|| Error::errno("xc_cpuid_apply_policy", args(), libc::ESRCH))?.cpu_policy = true;
        Ok(())
    }

    fn alloc_unbound_port(&self, domid: DomId, remote: DomId) -> Result<Port> {
        self.on_domain("xc_evtchn_alloc_unbound", domid, &format!("remote {remote}"), |_, _| Ok(()))?;
        Ok(self.0.0.state.lock().events.allocate(domid, remote))
    }

    fn set_hvm_param(&self, domid: DomId, param: HvmParam, value: u64) -> Result<()> {
        self.on_domain("xc_hvm_param_set", domid, &format!("{param:?} = {value:#x}"), |domain, _| {
            if domain.pv.is_some() {
                return Err(libc::EINVAL);
            }
            domain.params.insert(param, value);
            Ok(())
        })
    }

    fn hvm_param(&self, domid: DomId, param: HvmParam) -> Result<u64> {
        self.on_domain("xc_hvm_param_get", domid, &format!("{param:?}"), |domain, _| {
            Ok(domain.params.get(&param).copied().unwrap_or(0))
        })
    }

    fn set_memory_map(&self, domid: DomId, map: &[E820Entry]) -> Result<()> {
        self.on_domain("xc_domain_set_memory_map", domid, &format!("{} entries", map.len()), |domain, _| {
            domain.memory_map = map.to_vec();
            Ok(())
        })
    }

    fn claim_pages(&self, domid: DomId, pages: u64) -> Result<()> {
        self.on_domain("xc_domain_claim_pages", domid, &format!("{pages} pages"), |domain, host| {
            if pages == 0 {
                host.claimed -= std::mem::take(&mut domain.claimed);
                return Ok(());
            }
            if domain.claimed != 0 || pages < domain.pages || pages > domain.max_pages {
                return Err(libc::EINVAL);
            }
            let claim = pages - domain.pages;
            if claim > host.free - host.claimed {
                return Err(libc::ENOMEM);
            }
            domain.claimed = claim;
            host.claimed += claim;
            Ok(())
        })
    }

    fn populate_physmap(&self, domid: DomId, order: u32, gfns: &[Gfn], kind: Populate) -> Result<usize> {
        let args = format!("{} extents of order {order}", gfns.len());
        self.on_domain("xc_domain_populate_physmap", domid, &args, |domain, host| {
            let pages = 1 << order;
            domain.on_demand |= kind == Populate::OnDemand;
            for (done, gfn) in gfns.iter().enumerate() {
                if !gfn.0.is_multiple_of(pages) {
                    return Err(libc::EINVAL);
                }
                if domain.pv.is_some() {
                    return Err(libc::EINVAL);
                }
                if kind == Populate::Now && !domain.take(host, pages) {
                    return Ok(done);
                }
                if !domain.add_run(gfn.0, pages) {
                    return Err(libc::EINVAL);
                }
            }
            Ok(gfns.len())
        })
    }

    fn populate_pv(&self, domid: DomId, order: u32, pfns: &[Pfn]) -> Result<Vec<Gfn>> {
        let args = format!("{} extents of order {order}", pfns.len());
        self.on_domain("xc_domain_populate_physmap", domid, &args, |domain, host| {
            let pages = 1 << order;
            let mut frames = Vec::with_capacity(pfns.len());
            for pfn in pfns {
                if domain.pv.is_none() || !pfn.0.is_multiple_of(pages) {
                    return Err(libc::EINVAL);
                }
                if !domain.take(host, pages) {
                    break;
                }
                if !domain.add_run(pfn.0, pages) {
                    return Err(libc::EINVAL);
                }
                frames.extend(domain.pv.as_mut().map(|pv| pv.add_run(pfn.0, pages, &mut host.frames)));
            }
            Ok(frames)
        })
    }

    fn init_hypercall_page(&self, domid: DomId, page: Gfn) -> Result<()> {
        self.on_domain("XEN_DOMCTL_hypercall_init", domid, &format!("frame {page}"), |domain, _| {
            domain.pv.as_ref().ok_or(libc::EINVAL)?.init_hypercall_page(page, &domain.memory)
        })
    }

    fn pin_page_tables(&self, domid: DomId, level4: Gfn) -> Result<()> {
        self.on_domain("xc_mmuext_op", domid, &format!("frame {level4}"), |domain, _| {
            domain.pv.as_mut().ok_or(libc::EINVAL)?.pin(level4, &domain.memory)
        })
    }

    fn set_pv_start(&self, domid: DomId, start: &PvStart) -> Result<()> {
        self.on_domain("xc_vcpu_setcontext", domid, "vCPU 0", |domain, _| {
            if domain.vcpus == 0 {
                return Err(libc::EINVAL);
            }
            domain.pv.as_mut().ok_or(libc::EINVAL)?.set_start(start)
        })
    }

    fn assign_device(&self, domid: DomId, device: PciAddress, _: Reserved) -> Result<()> {
        self.on_device("xc_assign_device", domid, device, |devices, translated| {
            // One that nobody has but the quarantine can be given away.
            match devices.get(&device).copied() {
                _ if !translated => Err(libc::EOPNOTSUPP),
                Some(other) if other != DomId::IO => Err(libc::EBUSY),
                _ => {
                    devices.insert(device, domid);
                    Ok(())
                }
            }
        })
    }

    fn deassign_device(&self, domid: DomId, device: PciAddress) -> Result<()> {
        self.on_device("xc_deassign_device", domid, device, |devices, _| {
            if devices.get(&device) != Some(&domid) {
                return Err(libc::ENODEV);
            }
            // From a domain into quarantine, from which alone it is nobody's.
            if domid == DomId::IO {
                devices.remove(&device);
            } else {
                devices.insert(device, DomId::IO);
            }
            Ok(())
        })
    }

    fn set_access(&self, domid: DomId, piece: Hardware, allowed: bool) -> Result<()> {
        let call = match piece {
            Hardware::Ports { .. } => "xc_domain_ioport_permission",
            Hardware::Frames { .. } => "xc_domain_iomem_permission",
            Hardware::Interrupt(_) => "xc_domain_irq_permission",
        };
        self.on_domain(call, domid, &format!("{piece:?}, {allowed}"), |domain, _| {
            if allowed {
                domain.hardware.insert(piece)
            } else {
                domain.hardware.remove(&piece)
            };
            Ok(())
        })
    }

    fn map_interrupt(&self, domid: DomId, interrupt: u32) -> Result<u32> {
        self.on_domain("xc_physdev_map_pirq", domid, &format!("interrupt {interrupt}"), |domain, _| {
            domain.interrupts.insert(interrupt);
            Ok(interrupt)
        })
    }

    fn unmap_interrupt(&self, domid: DomId, interrupt: u32) -> Result<()> {
        self.on_domain("xc_physdev_unmap_pirq", domid, &format!("interrupt {interrupt}"), |domain, _| {
            if domain.interrupts.remove(&interrupt) { Ok(()) } else { Err(libc::EINVAL) }
        })
    }

    fn machine_memory_map(&self) -> Result<Vec<E820Entry>> {
        self.0.enter("xc_get_machine_memory_map", String::new)?;
        let entry = |(start, end, kind)| E820Entry { start, size: end - start, kind };
        Ok(MACHINE_MAP.map(entry).to_vec())
    }

    fn set_tsc_mode(&self, domid: DomId, mode: TscMode) -> Result<()> {
        self.on_domain("xc_domain_set_tsc_info", domid, &format!("{mode:?}"), |domain, _| {
            domain.tsc_mode = mode;
            Ok(())
        })
    }

    fn set_pod_target(&self, domid: DomId, pages: u64) -> Result<()> {
        self.on_domain("xc_domain_set_pod_target", domid, &format!("{pages} pages"), |domain, host| {
            // Nothing to do for a domain that has all its memory (p2m_pod_set_mem_target).
            if domain.pages > 0 && !domain.on_demand {
                return Ok(());
            }
            // What it gives back was never in its address space.
            host.free += domain.pages.saturating_sub(pages);
            domain.pages = domain.pages.min(pages);
            if domain.take(host, pages - domain.pages) { Ok(()) } else { Err(libc::ENOMEM) }
        })
    }

    fn hvm_context(&self, domid: DomId) -> Result<Vec<u8>> {
        self.0.enter_hypercalls("xc_domain_hvm_getcontext", 2, || format!("domid {domid}"))?;
        let state = self.0.0.state.lock();
        let domain = state.domains.get(&domid);
        let error = |errno| Error::errno("xc_domain_hvm_getcontext", format!("domid {domid}"), errno);
        let domain = domain.ok_or_else(|| error(libc::ESRCH))?;
        if domain.pv.is_some() {
            return Err(error(libc::EINVAL));
        }
        Ok(domain.context.clone())
    }

    fn set_hvm_context(&self, domid: DomId, records: &[u8]) -> Result<()> {
        self.on_domain("xc_domain_hvm_setcontext", domid, &format!("{} bytes", records.len()), |domain, _| {
            if domain.pv.is_some() || !well_formed(records) {
                return Err(libc::EINVAL);
            }
            domain.context = records.to_vec();
            Ok(())
        })
    }

    fn domain_info(&self, domid: DomId) -> Result<DomainInfo> {
        self.on_domain("xc_domain_getinfolist", domid, "", |domain, _| Ok(domain.info(domid)))
    }

    fn domains(&self) -> Result<Vec<DomainInfo>> {
        self.0.enter("xc_domain_getinfolist", String::new)?;
        let state = self.0.0.state.lock();
        Ok(state.domains.iter().map(|(domid, domain)| domain.info(*domid)).collect())
    }

    fn phys_info(&self) -> Result<PhysInfo> {
        self.0.enter("xc_physinfo", String::new)?;
        let state = self.0.0.state.lock();
        Ok(PhysInfo {
            threads_per_core: 1,
            cores_per_socket: 2,
            cpus: 2,
            max_cpu_id: 1,
            nodes: 1,
            cpu_khz: 2_000_000,
            hw_caps: [0; 8],
            capabilities: xen_sys::XEN_SYSCTL_PHYSCAP_hvm
                | xen_sys::XEN_SYSCTL_PHYSCAP_hap
                | xen_sys::XEN_SYSCTL_PHYSCAP_pv
                | if state.iommu { xen_sys::XEN_SYSCTL_PHYSCAP_directio } else { 0 },
            total_pages: state.host.total,
            free_pages: state.host.free,
            scrub_pages: 0,
            outstanding_pages: state.host.claimed,
        })
    }

    fn version(&self) -> Result<XenVersion> {
        self.0.enter_hypercalls("xc_version", 9, String::new)?;
        Ok(XenVersion {
            major: 4,
            minor: 17,
            extra: ".0-mock".to_owned(),
            capabilities: "hvm-3.0-x86_32 hvm-3.0-x86_64".to_owned(),
            changeset: String::new(),
            command_line: String::new(),
            compiler: String::new(),
            compile_by: String::new(),
            compile_domain: String::new(),
            compile_date: String::new(),
            page_size: PAGE_SIZE as u64,
            virt_start: 0,
            build_id: String::new(),
        })
    }

    fn host_info(&self) -> Result<HostInfo> {
        self.0.enter_hypercalls("xc_sched_id", 4, String::new)?;
        Ok(HostInfo { scheduler: 6, sharing_freed_pages: 0, sharing_used_frames: 0, free_cpus: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, ErrorKind, Platform};

    fn domain(machine: &Machine, pages: u64) -> (Arc<dyn DomainControl>, DomId) {
        let control = machine.domain(DomId::DOM0).domain_control().unwrap();
        let create = CreateDomain::new(GuestKind::Pvh, [7; 16], 1);
        let domid = control.create_domain(&create).unwrap();
        control.set_max_vcpus(domid, 1).unwrap();
        control.set_max_mem(domid, pages << 2).unwrap();
        (control, domid)
    }

    fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    fn populate(control: &Arc<dyn DomainControl>, domid: DomId, order: u32, gfn: u64) -> Option<usize> {
        control.populate_physmap(domid, order, &[Gfn(gfn)], Populate::Now).ok()
    }

    #[test]
    fn memory_is_bounded_by_the_domain_and_by_the_machine() {
        let machine = Machine::with_memory(1_024);
        let (control, domid) = domain(&machine, 600);
        assert_eq!(populate(&control, domid, 9, 0), Some(1));
        assert_eq!(populate(&control, domid, 9, 512), Some(0), "over the domain's limit");
        control.set_max_mem(domid, 4_096 << 2).unwrap();
        assert_eq!(populate(&control, domid, 9, 512), Some(1));
        assert_eq!(populate(&control, domid, 0, 1_024), Some(0), "the machine has no more");
        control.destroy(domid).unwrap();
        assert_eq!(control.phys_info().unwrap().free_pages, 1_024);
    }

    #[test]
    fn a_claim_is_kept_from_other_domains() {
        let machine = Machine::with_memory(1_000);
        let (control, first) = domain(&machine, 900);
        let (_, second) = domain(&machine, 900);
        control.claim_pages(first, 800).unwrap();
        assert_eq!(kind(control.claim_pages(second, 300)), Some(ErrorKind::Exhausted));
        assert_eq!(populate(&control, second, 8, 0), Some(0));
        assert_eq!(populate(&control, first, 9, 0), Some(1));
        control.claim_pages(first, 0).unwrap();
        assert_eq!(populate(&control, second, 8, 0), Some(1));
    }

    #[test]
    fn only_populated_frames_can_be_mapped() {
        let machine = Machine::new();
        let (control, domid) = domain(&machine, 1_024);
        control.populate_physmap(domid, 0, &[Gfn(3), Gfn(5)], Populate::Now).unwrap();
        let foreign = machine.domain(DomId::DOM0).foreign_memory().unwrap();
        foreign.map(domid, &[Gfn(5), Gfn(3)], Access::ReadWrite).unwrap().copy_from(0, b"five");
        assert_eq!(machine.guest(domid).unwrap().read(5 << 12, 4), b"five");
        assert_eq!(kind(foreign.map(domid, &[Gfn(4)], Access::ReadWrite)), Some(ErrorKind::Invalid));
        assert_eq!(kind(foreign.map(DomId(99), &[Gfn(3)], Access::ReadWrite)), Some(ErrorKind::NotFound));
        assert_eq!(populate(&control, domid, 0, 3), None, "taken");
        assert_eq!(populate(&control, domid, 9, 1), None, "not aligned");
    }

    #[test]
    fn save_records_are_checked() {
        let machine = Machine::new();
        let (control, domid) = domain(&machine, 0);
        let context = control.hvm_context(domid).unwrap();
        control.set_hvm_context(domid, &context).unwrap();
        for bad in [&context[..context.len() - 8], &context[1..], &[][..]] {
            assert_eq!(kind(control.set_hvm_context(domid, bad)), Some(ErrorKind::Invalid));
        }
    }

    #[test]
    fn domain_control_is_dom0s_alone() {
        let guest = Machine::new().domain(DomId(4));
        assert_eq!(kind(guest.domain_control()), Some(ErrorKind::PermissionDenied));
        assert_eq!(kind(guest.foreign_memory()), Some(ErrorKind::PermissionDenied));
    }

    #[test]
    fn a_domain_that_is_populated_on_demand_has_its_target() {
        let machine = Machine::with_memory(2_048);
        let (control, domid) = domain(&machine, 4_096);
        assert_eq!(control.populate_physmap(domid, 9, &[Gfn(0), Gfn(512)], Populate::OnDemand).unwrap(), 2);
        assert_eq!(machine.guest(domid).unwrap().pages, 0);
        control.set_pod_target(domid, 700).unwrap();
        assert_eq!(machine.guest(domid).unwrap().pages, 700);
        assert_eq!(kind(control.set_pod_target(domid, 3_000)), Some(ErrorKind::Exhausted));
    }

    #[test]
    fn a_destroyed_domain_leaves_nothing() {
        let machine = Machine::new();
        let before = machine.domain(DomId::DOM0).machine.inventory();
        let (control, domid) = domain(&machine, 1_024);
        control.alloc_unbound_port(domid, DomId::DOM0).unwrap();
        control.set_paging_mempool_size(domid, 1 << 20).unwrap();
        control.claim_pages(domid, 600).unwrap();
        assert_eq!(populate(&control, domid, 9, 0), Some(1));
        assert_ne!(machine.inventory(), before);
        control.destroy(domid).unwrap();
        assert_eq!(machine.inventory(), before);
    }
}
