//! Domain control: straight to the kernel what is done the most, and what libxenctrl has no function for; through libxenctrl
//! the rest; through libxenguest the CPUID policy (and cores).
#![allow(unsafe_code, reason = "calls of the C libraries")]

use super::hypercall::Hypercalls;
use super::logger;
use super::release::{control_library, guest_library};
use crate::{
    CreateDomain, DomId, DomainControl, DomainInfo, E820Entry, E820Kind, Error, ErrorKind, Gfn, GuestKind,
    Hardware, HostInfo, HvmParam, PciAddress, Pfn, PhysInfo, Populate, Port, PvStart, Reserved, Result,
    ShutdownReason, TscMode, XenVersion,
};
use std::ffi::CStr;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use xen_sys::{self as sys, xc_interface};

/// Entries of the machine's memory map, at most (`E820MAX`).
const MACHINE_MAP_LIMIT: usize = 128;

/// libxenctrl's handle.
pub(super) struct Libxenctrl {
    library: &'static sys::ControlLibrary,
    raw: NonNull<xc_interface>,
}

// SAFETY: the handle is file descriptors, loggers and a lock-protected cache of hypercall buffers; hypercalls are ioctls.
unsafe impl Send for Libxenctrl {}
// SAFETY: as above (the buffer cache is kept by libxencall under a mutex; the last-error field is thread-local).
unsafe impl Sync for Libxenctrl {}

impl Drop for Libxenctrl {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, and not used afterwards.
        unsafe { self.library.xc_interface_close(self.handle()) };
    }
}

impl Libxenctrl {
    fn open() -> Result<Self> {
        let library = control_library()?;
        // SAFETY: the logger lives for ever; no flags.
        let raw = unsafe { library.xc_interface_open(logger::silent(), logger::silent(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("xc_interface_open", ""))?;
        Ok(Self { library, raw })
    }

    pub(super) fn handle(&self) -> *mut xc_interface {
        self.raw.as_ptr()
    }
}

impl Deref for Libxenctrl {
    type Target = sys::ControlLibrary;

    fn deref(&self) -> &sys::ControlLibrary {
        self.library
    }
}

pub(super) struct Control {
    calls: Hypercalls,
    /// From its first use on: with what it brings along, it takes longer to open than the domains to list.
    libxenctrl: OnceLock<Libxenctrl>,
}

/// Domains that are asked for in one hypercall by [`DomainControl::domains`] where they are more than go into a page.
const DOMAINS_AT_ONCE: usize = 1_024;

impl Control {
    pub(super) fn open() -> Result<Self> {
        Ok(Self { calls: Hypercalls::open()?, libxenctrl: OnceLock::new() })
    }

    pub(super) fn libxenctrl(&self) -> Result<&Libxenctrl> {
        if let Some(libxenctrl) = self.libxenctrl.get() {
            return Ok(libxenctrl);
        }
        let libxenctrl = Libxenctrl::open()?;
        Ok(self.libxenctrl.get_or_init(|| libxenctrl))
    }

    /// A string of Xen's version interface.
    fn version_text<const N: usize>(&self, command: u32) -> Result<String> {
        let mut text = [0_u8; N];
        self.version_into(command, text.as_mut_ptr().cast())?;
        Ok(text_of(&text))
    }

    /// The build id, whose length is not known beforehand.
    fn build_id(&self) -> Result<String> {
        /// `xen_build_id_t` with room for any hash that a linker makes.
        #[repr(C)]
        struct BuildId {
            len: u32,
            bytes: [u8; 64],
        }
        let mut id = BuildId { len: 64, bytes: [0; 64] };
        match self.version_into(sys::XENVER_build_id, (&raw mut id).cast()) {
            Ok(len) => {
                let len = usize::try_from(len).unwrap_or(0).min(id.bytes.len());
                Ok(id.bytes[..len].iter().map(|byte| format!("{byte:02x}")).collect())
            }
            // A hypervisor linked without one.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unavailable) => {
                Ok(String::new())
            }
            Err(error) => Err(error),
        }
    }

    /// `out` must be what the header says for `command`.
    fn version_into(&self, command: u32, out: *mut libc::c_void) -> Result<libc::c_int> {
        let xc = self.libxenctrl()?;
        // SAFETY: each caller passes the type that version.h gives for the command.
        let result = unsafe { xc.xc_version(xc.handle(), command as libc::c_int, out) };
        if result < 0 { Err(Error::last("xc_version", format!("command {command}"))) } else { Ok(result) }
    }
}

/// `EFLAGS.IF`, and no other flag.
const INTERRUPTS_ENABLED: u64 = 1 << 9;

/// The text before the first NUL.
pub(super) fn text_of(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map_or_else(
        |_| String::from_utf8_lossy(bytes).into_owned(),
        |text| text.to_string_lossy().into_owned(),
    )
}

fn bytes_of(chars: &[libc::c_char]) -> Vec<u8> {
    chars.iter().map(|c| *c as u8).collect()
}

/// The functions' 0 for success and -1 for failure.
pub(super) fn done(result: libc::c_int, call: &'static str, args: impl FnOnce() -> String) -> Result<()> {
    if result < 0 { Err(Error::last(call, args())) } else { Ok(()) }
}

fn domain_info(raw: &sys::xen_domctl_getdomaininfo) -> DomainInfo {
    let flag = |bit: u32| raw.flags & bit != 0;
    let code = raw.flags >> sys::XEN_DOMINF_shutdownshift & sys::XEN_DOMINF_shutdownmask;
    DomainInfo {
        domid: DomId(raw.domain),
        uuid: raw.handle,
        hvm: flag(sys::XEN_DOMINF_hvm_guest),
        dying: flag(sys::XEN_DOMINF_dying),
        paused: flag(sys::XEN_DOMINF_paused),
        blocked: flag(sys::XEN_DOMINF_blocked),
        running: flag(sys::XEN_DOMINF_running),
        shutdown: flag(sys::XEN_DOMINF_shutdown).then(|| ShutdownReason::from_code(code as u8)),
        pages: raw.tot_pages,
        max_pages: raw.max_pages,
        outstanding_pages: raw.outstanding_pages,
        shared_pages: raw.shr_pages,
        paged_pages: raw.paged_pages,
        cpu_time: raw.cpu_time,
        online_vcpus: raw.nr_online_vcpus,
        max_vcpu_id: (raw.max_vcpu_id != u32::MAX).then_some(raw.max_vcpu_id),
        shared_info: Gfn(raw.shared_info_frame),
        ssidref: raw.ssidref,
        cpupool: raw.cpupool,
    }
}

impl DomainControl for Control {
    fn create_domain(&self, domain: &CreateDomain) -> Result<DomId> {
        let xc = self.libxenctrl()?;
        // The two limits are signed in the ABI, with -1 for the hypervisor's default.
        let frames =
            |limit: Option<u32>| limit.map_or(-1, |frames| i32::try_from(frames).unwrap_or(i32::MAX));
        let (flags, emulation_flags) = match domain.kind {
            GuestKind::Pvh => (sys::XEN_DOMCTL_CDF_hvm | sys::XEN_DOMCTL_CDF_hap, sys::XEN_X86_EMU_LAPIC),
            GuestKind::Pv => (0, 0),
        };
        let iommu = (sys::XEN_DOMCTL_CDF_iommu, sys::XEN_DOMCTL_IOMMU_no_sharept);
        let (iommu_flag, iommu_opts) = if domain.iommu { iommu } else { (0, 0) };
        let mut config = sys::xen_domctl_createdomain {
            handle: domain.uuid,
            flags: flags | iommu_flag,
            iommu_opts,
            max_vcpus: domain.max_vcpus,
            max_evtchn_port: domain.max_event_channel_port,
            max_grant_frames: frames(domain.max_grant_frames),
            max_maptrack_frames: frames(domain.max_maptrack_frames),
            // XEN_DOMCTL_GRANT_version
            grant_opts: domain.max_grant_version & sys::XEN_DOMCTL_GRANT_version_mask,
            cpupool_id: domain.cpupool,
            arch: sys::xen_arch_domainconfig { emulation_flags, misc_flags: 0 },
            ..Default::default()
        };
        // 0 asks Xen to choose the id.
        let mut domid = domain.domid.map_or(0, |domid| domid.0.into());
        // SAFETY: both pointers are to live values of the types that the function takes.
        let result = unsafe { xc.xc_domain_create(xc.handle(), &raw mut domid, &raw mut config) };
        done(result, "xc_domain_create", || format!("{} vCPUs", domain.max_vcpus))?;
        Ok(DomId(domid as u16))
    }

    fn destroy(&self, domid: DomId) -> Result<()> {
        self.calls.domctl_of(domid, sys::XEN_DOMCTL_destroydomain, "XEN_DOMCTL_destroydomain")
    }

    fn pause(&self, domid: DomId) -> Result<()> {
        self.calls.domctl_of(domid, sys::XEN_DOMCTL_pausedomain, "XEN_DOMCTL_pausedomain")
    }

    fn unpause(&self, domid: DomId) -> Result<()> {
        self.calls.domctl_of(domid, sys::XEN_DOMCTL_unpausedomain, "XEN_DOMCTL_unpausedomain")
    }

    fn set_max_vcpus(&self, domid: DomId, vcpus: u32) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: plain values to an open handle.
        let result = unsafe { xc.xc_domain_max_vcpus(xc.handle(), domid.0.into(), vcpus) };
        done(result, "xc_domain_max_vcpus", || format!("domid {domid}, {vcpus} vCPUs"))
    }

    fn set_max_mem(&self, domid: DomId, kib: u64) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: plain values to an open handle.
        let result = unsafe { xc.xc_domain_setmaxmem(xc.handle(), domid.0.into(), kib) };
        done(result, "xc_domain_setmaxmem", || format!("domid {domid}, {kib} KiB"))
    }

    fn set_paging_mempool_size(&self, domid: DomId, bytes: u64) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: plain values to an open handle.
        let result = unsafe { xc.xc_set_paging_mempool_size(xc.handle(), domid.0.into(), bytes) };
        done(result, "xc_set_paging_mempool_size", || format!("domid {domid}, {bytes} bytes"))
    }

    fn apply_default_cpu_policy(&self, domid: DomId) -> Result<()> {
        let xc = self.libxenctrl()?;
        let library = guest_library()?;
        // SAFETY: the null pointers stand for "no featureset, no CPUID edits, no MSR edits", as the function documents.
        let result = unsafe {
            library.xc_cpuid_apply_policy(
                xc.handle(),
                domid.0.into(),
                false,
                ptr::null(),
                0,
                true,
                false,
                false,
                ptr::null(),
                ptr::null(),
            )
        };
        // This function alone returns a negative errno.
        if result < 0 {
            return Err(Error::errno("xc_cpuid_apply_policy", format!("domid {domid}"), -result));
        }
        Ok(())
    }

    fn alloc_unbound_port(&self, domid: DomId, remote: DomId) -> Result<Port> {
        let xc = self.libxenctrl()?;
        // SAFETY: plain values to an open handle.
        let result = unsafe { xc.xc_evtchn_alloc_unbound(xc.handle(), domid.0.into(), remote.0.into()) };
        done(result, "xc_evtchn_alloc_unbound", || format!("domid {domid}, remote {remote}"))?;
        Ok(Port(result as u32))
    }

    fn set_hvm_param(&self, domid: DomId, param: HvmParam, value: u64) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: plain values to an open handle.
        let result = unsafe { xc.xc_hvm_param_set(xc.handle(), domid.0.into(), param as u32, value) };
        done(result, "xc_hvm_param_set", || format!("domid {domid}, {param:?} = {value:#x}"))
    }

    fn hvm_param(&self, domid: DomId, param: HvmParam) -> Result<u64> {
        let xc = self.libxenctrl()?;
        let mut value = 0;
        // SAFETY: `value` is live and of the type that the function writes.
        let result =
            unsafe { xc.xc_hvm_param_get(xc.handle(), domid.0.into(), param as u32, &raw mut value) };
        done(result, "xc_hvm_param_get", || format!("domid {domid}, {param:?}"))?;
        Ok(value)
    }

    fn set_memory_map(&self, domid: DomId, map: &[E820Entry]) -> Result<()> {
        let xc = self.libxenctrl()?;
        let mut entries: Vec<sys::e820entry> = map
            .iter()
            .map(|entry| sys::e820entry { addr: entry.start, size: entry.size, type_: entry.kind as u32 })
            .collect();
        let count = entries.len() as u32;
        // SAFETY: the function reads `count` entries.
        let result =
            unsafe { xc.xc_domain_set_memory_map(xc.handle(), domid.0.into(), entries.as_mut_ptr(), count) };
        done(result, "xc_domain_set_memory_map", || format!("domid {domid}, {count} entries"))
    }

    fn claim_pages(&self, domid: DomId, pages: u64) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: plain values to an open handle.
        let result = unsafe { xc.xc_domain_claim_pages(xc.handle(), domid.0.into(), pages) };
        done(result, "xc_domain_claim_pages", || format!("domid {domid}, {pages} pages"))
    }

    fn populate_physmap(&self, domid: DomId, order: u32, gfns: &[Gfn], kind: Populate) -> Result<usize> {
        let xc = self.libxenctrl()?;
        let mut extents: Vec<sys::xen_pfn_t> = gfns.iter().map(|gfn| gfn.0).collect();
        let flags = match kind {
            Populate::Now => 0,
            Populate::OnDemand => sys::XENMEMF_populate_on_demand,
        };
        // SAFETY: the function reads and writes `extents.len()` frame numbers.
        let result = unsafe {
            xc.xc_domain_populate_physmap(
                xc.handle(),
                domid.0.into(),
                extents.len() as libc::c_ulong,
                order,
                flags,
                extents.as_mut_ptr(),
            )
        };
        done(result, "xc_domain_populate_physmap", || {
            format!("domid {domid}, {} extents of order {order}", gfns.len())
        })?;
        Ok(result as usize)
    }

    fn populate_pv(&self, domid: DomId, order: u32, pfns: &[Pfn]) -> Result<Vec<Gfn>> {
        let xc = self.libxenctrl()?;
        let mut extents: Vec<sys::xen_pfn_t> = pfns.iter().map(|pfn| pfn.0).collect();
        // SAFETY: the function reads and writes `extents.len()` frame numbers.
        let result = unsafe {
            xc.xc_domain_populate_physmap(
                xc.handle(),
                domid.0.into(),
                extents.len() as libc::c_ulong,
                order,
                0,
                extents.as_mut_ptr(),
            )
        };
        done(result, "xc_domain_populate_physmap", || {
            format!("domid {domid}, {} extents of order {order}", pfns.len())
        })?;
        // Of a PV domain, Xen leaves the machine's frames in the place of the guest's.
        extents.truncate(result as usize);
        Ok(extents.into_iter().map(Gfn).collect())
    }

    fn init_hypercall_page(&self, domid: DomId, page: Gfn) -> Result<()> {
        let mut call =
            sys::xen_domctl { cmd: sys::XEN_DOMCTL_hypercall_init, domain: domid.0, ..Default::default() };
        call.u.hypercall_init = sys::xen_domctl_hypercall_init { gmfn: page.0 };
        self.calls.domctl(call, "XEN_DOMCTL_hypercall_init", || format!("domid {domid}, frame {page}"))
    }

    fn pin_page_tables(&self, domid: DomId, level4: Gfn) -> Result<()> {
        let xc = self.libxenctrl()?;
        let mut operation = sys::mmuext_op { cmd: sys::MMUEXT_PIN_L4_TABLE, ..Default::default() };
        operation.arg1.mfn = level4.0;
        // SAFETY: one operation, as is said.
        let result = unsafe { xc.xc_mmuext_op(xc.handle(), &raw mut operation, 1, domid.0.into()) };
        done(result, "xc_mmuext_op", || format!("domid {domid}, MMUEXT_PIN_L4_TABLE, frame {level4}"))
    }

    fn set_pv_start(&self, domid: DomId, start: &PvStart) -> Result<()> {
        let xc = self.libxenctrl()?;
        let flags = (sys::VGCF_in_kernel | sys::VGCF_online).into();
        let mut context = sys::vcpu_guest_context { flags, ..Default::default() };
        let registers = &mut context.user_regs;
        registers.__bindgen_anon_14.rsi = start.start_info;
        registers.__bindgen_anon_16.rip = start.entry;
        registers.__bindgen_anon_18.rsp = start.stack;
        registers.__bindgen_anon_17.rflags = INTERRUPTS_ENABLED;
        // The other segments are null selectors.
        registers.cs = sys::FLAT_RING3_CS64 as u16;
        registers.ss = sys::FLAT_RING3_SS64 as u16;
        context.kernel_ss = sys::FLAT_RING3_SS64.into();
        context.kernel_sp = start.stack;
        context.debugreg[6] = 0xffff_0ff0;
        context.debugreg[7] = 0x400;
        // A frame's number is its address' upper part, where there are 64 bits (xen_pfn_to_cr3).
        context.ctrlreg[3] = start.page_table.address();
        let mut context = sys::vcpu_guest_context_any_t { c: context };
        // SAFETY: the function reads the context of a 64-bit vCPU, which is the native one.
        let result = unsafe { xc.xc_vcpu_setcontext(xc.handle(), domid.0.into(), 0, &raw mut context) };
        done(result, "xc_vcpu_setcontext", || format!("domid {domid}, vCPU 0"))
    }

    fn assign_device(&self, domid: DomId, device: PciAddress, reserved: Reserved) -> Result<()> {
        let xc = self.libxenctrl()?;
        let flags = match reserved {
            Reserved::Strict => 0,
            Reserved::Relaxed => sys::XEN_DOMCTL_DEV_RDM_RELAXED,
        };
        // SAFETY: plain values to an open handle.
        let result = unsafe { xc.xc_assign_device(xc.handle(), domid.0.into(), device.sbdf(), flags) };
        done(result, "xc_assign_device", || format!("domid {domid}, {device}"))
    }

    fn deassign_device(&self, domid: DomId, device: PciAddress) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: plain values to an open handle.
        let result = unsafe { xc.xc_deassign_device(xc.handle(), domid.0.into(), device.sbdf()) };
        done(result, "xc_deassign_device", || format!("domid {domid}, {device}"))
    }

    fn set_access(&self, domid: DomId, piece: Hardware, allowed: bool) -> Result<()> {
        let domain = domid.0.into();
        let xc = self.libxenctrl()?;
        let handle = xc.handle();
        let (result, call) = match piece {
            Hardware::Ports { first, count } => (
                // SAFETY: plain values to an open handle.
                unsafe { xc.xc_domain_ioport_permission(handle, domain, first, count, allowed.into()) },
                "xc_domain_ioport_permission",
            ),
            Hardware::Frames { first, count } => (
                // SAFETY: plain values to an open handle.
                unsafe { xc.xc_domain_iomem_permission(handle, domain, first, count, allowed.into()) },
                "xc_domain_iomem_permission",
            ),
            Hardware::Interrupt(interrupt) => (
                // SAFETY: plain values to an open handle.
                unsafe { xc.xc_domain_irq_permission(handle, domain, interrupt, allowed) },
                "xc_domain_irq_permission",
            ),
        };
        done(result, call, || format!("domid {domid}, {piece:?}, {allowed}"))
    }

    fn map_interrupt(&self, domid: DomId, interrupt: u32) -> Result<u32> {
        let xc = self.libxenctrl()?;
        let mut own = interrupt.cast_signed();
        // SAFETY: `own` is live and of the type that the function reads and writes.
        let result = unsafe {
            xc.xc_physdev_map_pirq(xc.handle(), domid.0.into(), interrupt.cast_signed(), &raw mut own)
        };
        done(result, "xc_physdev_map_pirq", || format!("domid {domid}, interrupt {interrupt}"))?;
        Ok(own.cast_unsigned())
    }

    fn unmap_interrupt(&self, domid: DomId, interrupt: u32) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: plain values to an open handle.
        let result =
            unsafe { xc.xc_physdev_unmap_pirq(xc.handle(), domid.0.into(), interrupt.cast_signed()) };
        done(result, "xc_physdev_unmap_pirq", || format!("domid {domid}, interrupt {interrupt}"))
    }

    fn machine_memory_map(&self) -> Result<Vec<E820Entry>> {
        let xc = self.libxenctrl()?;
        let mut entries = [sys::e820entry::default(); MACHINE_MAP_LIMIT];
        // SAFETY: the function writes at most as many entries as it is told that there is room for.
        let result = unsafe {
            xc.xc_get_machine_memory_map(xc.handle(), entries.as_mut_ptr(), MACHINE_MAP_LIMIT as u32)
        };
        done(result, "xc_get_machine_memory_map", String::new)?;
        let found = entries.iter().take(result as usize);
        Ok(found
            .map(|entry| E820Entry {
                start: entry.addr,
                size: entry.size,
                kind: E820Kind::from_code(entry.type_),
            })
            .collect())
    }

    fn set_tsc_mode(&self, domid: DomId, mode: TscMode) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: plain values to an open handle.
        let result = unsafe { xc.xc_domain_set_tsc_info(xc.handle(), domid.0.into(), mode as u32, 0, 0, 0) };
        done(result, "xc_domain_set_tsc_info", || format!("domid {domid}, {mode:?}"))
    }

    fn set_pod_target(&self, domid: DomId, pages: u64) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: the null pointers stand for answers that are not wanted.
        let result = unsafe {
            xc.xc_domain_set_pod_target(
                xc.handle(),
                domid.0.into(),
                pages,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        done(result, "xc_domain_set_pod_target", || format!("domid {domid}, {pages} pages"))
    }

    fn hvm_context(&self, domid: DomId) -> Result<Vec<u8>> {
        let xc = self.libxenctrl()?;
        let args = || format!("domid {domid}");
        // SAFETY: a null buffer asks for the size.
        let size = unsafe { xc.xc_domain_hvm_getcontext(xc.handle(), domid.0.into(), ptr::null_mut(), 0) };
        done(size, "xc_domain_hvm_getcontext", args)?;
        let mut records = vec![0; size as usize];
        // SAFETY: `records` has room for `size` bytes.
        let used = unsafe {
            xc.xc_domain_hvm_getcontext(xc.handle(), domid.0.into(), records.as_mut_ptr(), size as u32)
        };
        done(used, "xc_domain_hvm_getcontext", args)?;
        records.truncate(used as usize);
        Ok(records)
    }

    fn set_hvm_context(&self, domid: DomId, records: &[u8]) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: the function reads `records.len()` bytes (and writes none, in spite of its type).
        let result = unsafe {
            xc.xc_domain_hvm_setcontext(
                xc.handle(),
                domid.0.into(),
                records.as_ptr().cast_mut(),
                records.len() as u32,
            )
        };
        done(result, "xc_domain_hvm_setcontext", || format!("domid {domid}, {} bytes", records.len()))
    }

    fn domain_info(&self, domid: DomId) -> Result<DomainInfo> {
        // The call answers with the domains from that id on.
        match self.calls.domains(domid.0.into(), 1)?.first() {
            Some(info) if info.domain == domid.0 => Ok(domain_info(info)),
            _ => {
                let args = format!("domid {domid}");
                Err(Error::errno("XEN_SYSCTL_getdomaininfolist", args, libc::ESRCH))
            }
        }
    }

    fn domains(&self) -> Result<Vec<DomainInfo>> {
        let mut domains: Vec<DomainInfo> = Vec::new();
        let mut at_once = Hypercalls::IN_A_PAGE;
        loop {
            let first = domains.last().map_or(0, |last| u32::from(last.domid.0) + 1);
            let part = self.calls.domains(first, at_once)?;
            domains.extend(part.iter().map(domain_info));
            if part.len() < at_once {
                return Ok(domains);
            }
            at_once = DOMAINS_AT_ONCE;
        }
    }

    fn phys_info(&self) -> Result<PhysInfo> {
        let xc = self.libxenctrl()?;
        let mut raw = sys::xen_sysctl_physinfo::default();
        // SAFETY: `raw` is live and of the type that the function writes.
        let result = unsafe { xc.xc_physinfo(xc.handle(), &raw mut raw) };
        done(result, "xc_physinfo", String::new)?;
        Ok(PhysInfo {
            threads_per_core: raw.threads_per_core,
            cores_per_socket: raw.cores_per_socket,
            cpus: raw.nr_cpus,
            max_cpu_id: raw.max_cpu_id,
            nodes: raw.nr_nodes,
            cpu_khz: raw.cpu_khz,
            hw_caps: raw.hw_cap,
            capabilities: raw.capabilities,
            total_pages: raw.total_pages,
            free_pages: raw.free_pages,
            scrub_pages: raw.scrub_pages,
            outstanding_pages: raw.outstanding_pages,
        })
    }

    fn version(&self) -> Result<XenVersion> {
        let number = self.version_into(sys::XENVER_version, ptr::null_mut())?;
        let page_size = self.version_into(sys::XENVER_pagesize, ptr::null_mut())?;
        let mut compile = sys::xen_compile_info::default();
        self.version_into(sys::XENVER_compile_info, (&raw mut compile).cast())?;
        let mut platform = sys::xen_platform_parameters::default();
        self.version_into(sys::XENVER_platform_parameters, (&raw mut platform).cast())?;
        Ok(XenVersion {
            major: (number >> 16) as u16,
            minor: number as u16,
            extra: self.version_text::<{ size_of::<sys::xen_extraversion_t>() }>(sys::XENVER_extraversion)?,
            capabilities: self
                .version_text::<{ size_of::<sys::xen_capabilities_info_t>() }>(sys::XENVER_capabilities)?,
            changeset: self
                .version_text::<{ size_of::<sys::xen_changeset_info_t>() }>(sys::XENVER_changeset)?,
            command_line: self
                .version_text::<{ size_of::<sys::xen_commandline_t>() }>(sys::XENVER_commandline)?,
            compiler: text_of(&bytes_of(&compile.compiler)),
            compile_by: text_of(&bytes_of(&compile.compile_by)),
            compile_domain: text_of(&bytes_of(&compile.compile_domain)),
            compile_date: text_of(&bytes_of(&compile.compile_date)),
            page_size: page_size as u64,
            virt_start: platform.virt_start,
            build_id: self.build_id()?,
        })
    }

    fn host_info(&self) -> Result<HostInfo> {
        let xc = self.libxenctrl()?;
        let mut scheduler = 0;
        // SAFETY: `scheduler` is live and of the type that the function writes.
        let result = unsafe { xc.xc_sched_id(xc.handle(), &raw mut scheduler) };
        done(result, "xc_sched_id", String::new)?;
        // SAFETY: an open handle. A hypervisor without memory sharing answers with an error, and shares nothing.
        let [freed, used] =
            unsafe { [xc.xc_sharing_freed_pages(xc.handle()), xc.xc_sharing_used_frames(xc.handle())] };
        // SAFETY: an open handle.
        let size = unsafe { xc.xc_get_cpumap_size(xc.handle()) };
        done(size, "xc_get_cpumap_size", String::new)?;
        // SAFETY: an open handle; the answer is `size` bytes from malloc, or null.
        let map = unsafe { xc.xc_cpupool_freeinfo(xc.handle()) };
        let map = NonNull::new(map).ok_or_else(|| Error::last("xc_cpupool_freeinfo", ""))?;
        // SAFETY: as above.
        let free_cpus = unsafe { std::slice::from_raw_parts(map.as_ptr(), size as usize) }
            .iter()
            .map(|byte| byte.count_ones())
            .sum();
        // SAFETY: came from malloc, and is not used afterwards.
        unsafe { libc::free(map.as_ptr().cast()) };
        Ok(HostInfo {
            scheduler: scheduler as u32,
            sharing_freed_pages: u64::try_from(freed).unwrap_or(0),
            sharing_used_frames: u64::try_from(used).unwrap_or(0),
            free_cpus,
        })
    }
}
