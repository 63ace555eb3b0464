//! Domain control through libxenctrl, libxenguest for the CPUID policy (and cores), and libxencall for a domctl that libxenctrl has
//! no function for.
#![allow(unsafe_code, reason = "calls of the C libraries")]

use super::logger;
use super::release::{check_hypervisor, control_library, guest_library};
use crate::{
    CreateDomain, DomId, DomainControl, DomainInfo, E820Entry, E820Kind, Error, ErrorKind, Gfn, GuestKind,
    Hardware, HostInfo, HvmParam, PciAddress, Pfn, PhysInfo, Populate, Port, PvStart, Reserved, Result,
    ShutdownReason, XenVersion,
};
use std::ffi::CStr;
use std::ptr::{self, NonNull};
use xen_sys::{self as sys, xc_interface};

/// Entries of the machine's memory map, at most (`E820MAX`).
const MACHINE_MAP_LIMIT: usize = 128;

pub(super) struct Control {
    pub(super) library: &'static sys::ControlLibrary,
    raw: NonNull<xc_interface>,
}

// SAFETY: the handle is file descriptors, loggers and a lock-protected cache of hypercall buffers; hypercalls are ioctls.
unsafe impl Send for Control {}
// SAFETY: as above (the buffer cache is kept by libxencall under a mutex; the last-error field is thread-local).
unsafe impl Sync for Control {}

impl Drop for Control {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, and not used afterwards.
        unsafe { self.library.xc_interface_close(self.handle()) };
    }
}

/// Domains that are asked for in one hypercall by [`DomainControl::domains`].
const DOMAINS_AT_ONCE: usize = 1_024;

impl Control {
    pub(super) fn open() -> Result<Self> {
        let library = control_library()?;
        // SAFETY: the logger lives for ever; no flags.
        let raw = unsafe { library.xc_interface_open(logger::silent(), logger::silent(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("xc_interface_open", ""))?;
        let control = Self { library, raw };
        check_hypervisor(library, control.handle())?;
        Ok(control)
    }

    pub(super) fn handle(&self) -> *mut xc_interface {
        self.raw.as_ptr()
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
        // SAFETY: each caller passes the type that version.h gives for the command.
        let result = unsafe { self.library.xc_version(self.handle(), command as libc::c_int, out) };
        if result < 0 { Err(Error::last("xc_version", format!("command {command}"))) } else { Ok(result) }
    }
}

/// `EFLAGS.IF`, and no other flag.
const INTERRUPTS_ENABLED: u64 = 1 << 9;

/// Hypercalls that libxenctrl has no function for.
struct Hypercalls(NonNull<sys::xencall_handle>);

impl Drop for Hypercalls {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, and not used afterwards.
        unsafe { sys::xencall_close(self.0.as_ptr()) };
    }
}

impl Hypercalls {
    fn open() -> Result<Self> {
        // SAFETY: the logger lives for ever; no flags.
        let raw = unsafe { sys::xencall_open(logger::silent(), 0) };
        NonNull::new(raw).map(Self).ok_or_else(|| Error::last("xencall_open", ""))
    }

    /// One `XEN_DOMCTL_*` without an answer.
    fn domctl(
        &self,
        call: &sys::xen_domctl,
        name: &'static str,
        args: impl FnOnce() -> String,
    ) -> Result<()> {
        // SAFETY: an open handle. The buffer is memory that the hypervisor may read, or null.
        let buffer = unsafe { sys::xencall_alloc_buffer(self.0.as_ptr(), size_of_val(call)) };
        let Some(buffer) = NonNull::new(buffer) else {
            return Err(Error::last("xencall_alloc_buffer", format!("{} bytes", size_of_val(call))));
        };
        let buffer = buffer.cast::<sys::xen_domctl>();
        // SAFETY: the buffer has the size of a `xen_domctl` and the alignment of a page, and nobody else knows of it; the
        // hypercall takes its address and reads and writes a `xen_domctl`.
        let result = unsafe {
            buffer.write(*call);
            sys::xencall1(self.0.as_ptr(), sys::__HYPERVISOR_domctl, buffer.as_ptr() as u64)
        };
        let result = done(result, name, args);
        // SAFETY: allocated above from this handle, and not used afterwards.
        unsafe { sys::xencall_free_buffer(self.0.as_ptr(), buffer.as_ptr().cast()) };
        result
    }
}

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
        let mut domid = 0;
        // SAFETY: both pointers are to live values of the types that the function takes.
        let result = unsafe { self.library.xc_domain_create(self.handle(), &raw mut domid, &raw mut config) };
        done(result, "xc_domain_create", || format!("{} vCPUs", domain.max_vcpus))?;
        Ok(DomId(domid as u16))
    }

    fn destroy(&self, domid: DomId) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { self.library.xc_domain_destroy(self.handle(), domid.0.into()) };
        done(result, "xc_domain_destroy", || format!("domid {domid}"))
    }

    fn pause(&self, domid: DomId) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { self.library.xc_domain_pause(self.handle(), domid.0.into()) };
        done(result, "xc_domain_pause", || format!("domid {domid}"))
    }

    fn unpause(&self, domid: DomId) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { self.library.xc_domain_unpause(self.handle(), domid.0.into()) };
        done(result, "xc_domain_unpause", || format!("domid {domid}"))
    }

    fn set_max_vcpus(&self, domid: DomId, vcpus: u32) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { self.library.xc_domain_max_vcpus(self.handle(), domid.0.into(), vcpus) };
        done(result, "xc_domain_max_vcpus", || format!("domid {domid}, {vcpus} vCPUs"))
    }

    fn set_max_mem(&self, domid: DomId, kib: u64) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { self.library.xc_domain_setmaxmem(self.handle(), domid.0.into(), kib) };
        done(result, "xc_domain_setmaxmem", || format!("domid {domid}, {kib} KiB"))
    }

    fn set_paging_mempool_size(&self, domid: DomId, bytes: u64) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { self.library.xc_set_paging_mempool_size(self.handle(), domid.0.into(), bytes) };
        done(result, "xc_set_paging_mempool_size", || format!("domid {domid}, {bytes} bytes"))
    }

    fn apply_default_cpu_policy(&self, domid: DomId) -> Result<()> {
        let library = guest_library()?;
        // SAFETY: the null pointers stand for "no featureset, no CPUID edits, no MSR edits", as the function documents.
        let result = unsafe {
            library.xc_cpuid_apply_policy(
                self.handle(),
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
        // SAFETY: plain values to an open handle.
        let result =
            unsafe { self.library.xc_evtchn_alloc_unbound(self.handle(), domid.0.into(), remote.0.into()) };
        done(result, "xc_evtchn_alloc_unbound", || format!("domid {domid}, remote {remote}"))?;
        Ok(Port(result as u32))
    }

    fn set_hvm_param(&self, domid: DomId, param: HvmParam, value: u64) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result =
            unsafe { self.library.xc_hvm_param_set(self.handle(), domid.0.into(), param as u32, value) };
        done(result, "xc_hvm_param_set", || format!("domid {domid}, {param:?} = {value:#x}"))
    }

    fn hvm_param(&self, domid: DomId, param: HvmParam) -> Result<u64> {
        let mut value = 0;
        // SAFETY: `value` is live and of the type that the function writes.
        let result = unsafe {
            self.library.xc_hvm_param_get(self.handle(), domid.0.into(), param as u32, &raw mut value)
        };
        done(result, "xc_hvm_param_get", || format!("domid {domid}, {param:?}"))?;
        Ok(value)
    }

    fn set_memory_map(&self, domid: DomId, map: &[E820Entry]) -> Result<()> {
        let mut entries: Vec<sys::e820entry> = map
            .iter()
            .map(|entry| sys::e820entry { addr: entry.start, size: entry.size, type_: entry.kind as u32 })
            .collect();
        let count = entries.len() as u32;
        // SAFETY: the function reads `count` entries.
        let result = unsafe {
            self.library.xc_domain_set_memory_map(self.handle(), domid.0.into(), entries.as_mut_ptr(), count)
        };
        done(result, "xc_domain_set_memory_map", || format!("domid {domid}, {count} entries"))
    }

    fn claim_pages(&self, domid: DomId, pages: u64) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { self.library.xc_domain_claim_pages(self.handle(), domid.0.into(), pages) };
        done(result, "xc_domain_claim_pages", || format!("domid {domid}, {pages} pages"))
    }

    fn populate_physmap(&self, domid: DomId, order: u32, gfns: &[Gfn], kind: Populate) -> Result<usize> {
        let mut extents: Vec<sys::xen_pfn_t> = gfns.iter().map(|gfn| gfn.0).collect();
        let flags = match kind {
            Populate::Now => 0,
            Populate::OnDemand => sys::XENMEMF_populate_on_demand,
        };
        // SAFETY: the function reads and writes `extents.len()` frame numbers.
        let result = unsafe {
            self.library.xc_domain_populate_physmap(
                self.handle(),
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
        let mut extents: Vec<sys::xen_pfn_t> = pfns.iter().map(|pfn| pfn.0).collect();
        // SAFETY: the function reads and writes `extents.len()` frame numbers.
        let result = unsafe {
            self.library.xc_domain_populate_physmap(
                self.handle(),
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
        let mut call = sys::xen_domctl {
            cmd: sys::XEN_DOMCTL_hypercall_init,
            interface_version: sys::XEN_DOMCTL_INTERFACE_VERSION,
            domain: domid.0,
            ..Default::default()
        };
        call.u.hypercall_init = sys::xen_domctl_hypercall_init { gmfn: page.0 };
        Hypercalls::open()?
            .domctl(&call, "XEN_DOMCTL_hypercall_init", || format!("domid {domid}, frame {page}"))
    }

    fn pin_page_tables(&self, domid: DomId, level4: Gfn) -> Result<()> {
        let mut operation = sys::mmuext_op { cmd: sys::MMUEXT_PIN_L4_TABLE, ..Default::default() };
        operation.arg1.mfn = level4.0;
        // SAFETY: one operation, as is said.
        let result =
            unsafe { self.library.xc_mmuext_op(self.handle(), &raw mut operation, 1, domid.0.into()) };
        done(result, "xc_mmuext_op", || format!("domid {domid}, MMUEXT_PIN_L4_TABLE, frame {level4}"))
    }

    fn set_pv_start(&self, domid: DomId, start: &PvStart) -> Result<()> {
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
        let result =
            unsafe { self.library.xc_vcpu_setcontext(self.handle(), domid.0.into(), 0, &raw mut context) };
        done(result, "xc_vcpu_setcontext", || format!("domid {domid}, vCPU 0"))
    }

    fn assign_device(&self, domid: DomId, device: PciAddress, reserved: Reserved) -> Result<()> {
        let flags = match reserved {
            Reserved::Strict => 0,
            Reserved::Relaxed => sys::XEN_DOMCTL_DEV_RDM_RELAXED,
        };
        // SAFETY: plain values to an open handle.
        let result =
            unsafe { self.library.xc_assign_device(self.handle(), domid.0.into(), device.sbdf(), flags) };
        done(result, "xc_assign_device", || format!("domid {domid}, {device}"))
    }

    fn deassign_device(&self, domid: DomId, device: PciAddress) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { self.library.xc_deassign_device(self.handle(), domid.0.into(), device.sbdf()) };
        done(result, "xc_deassign_device", || format!("domid {domid}, {device}"))
    }

    fn set_access(&self, domid: DomId, piece: Hardware, allowed: bool) -> Result<()> {
        let domain = domid.0.into();
        let (library, handle) = (self.library, self.handle());
        let (result, call) = match piece {
            Hardware::Ports { first, count } => (
                // SAFETY: plain values to an open handle.
                unsafe { library.xc_domain_ioport_permission(handle, domain, first, count, allowed.into()) },
                "xc_domain_ioport_permission",
            ),
            Hardware::Frames { first, count } => (
                // SAFETY: plain values to an open handle.
                unsafe { library.xc_domain_iomem_permission(handle, domain, first, count, allowed.into()) },
                "xc_domain_iomem_permission",
            ),
            Hardware::Interrupt(interrupt) => (
                // SAFETY: plain values to an open handle.
                unsafe { library.xc_domain_irq_permission(handle, domain, interrupt, allowed) },
                "xc_domain_irq_permission",
            ),
        };
        done(result, call, || format!("domid {domid}, {piece:?}, {allowed}"))
    }

    fn map_interrupt(&self, domid: DomId, interrupt: u32) -> Result<u32> {
        let mut own = interrupt.cast_signed();
        // SAFETY: `own` is live and of the type that the function reads and writes.
        let result = unsafe {
            self.library.xc_physdev_map_pirq(
                self.handle(),
                domid.0.into(),
                interrupt.cast_signed(),
                &raw mut own,
            )
        };
        done(result, "xc_physdev_map_pirq", || format!("domid {domid}, interrupt {interrupt}"))?;
        Ok(own.cast_unsigned())
    }

    fn unmap_interrupt(&self, domid: DomId, interrupt: u32) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe {
            self.library.xc_physdev_unmap_pirq(self.handle(), domid.0.into(), interrupt.cast_signed())
        };
        done(result, "xc_physdev_unmap_pirq", || format!("domid {domid}, interrupt {interrupt}"))
    }

    fn machine_memory_map(&self) -> Result<Vec<E820Entry>> {
        let mut entries = [sys::e820entry::default(); MACHINE_MAP_LIMIT];
        // SAFETY: the function writes at most as many entries as it is told that there is room for.
        let result = unsafe {
            self.library.xc_get_machine_memory_map(
                self.handle(),
                entries.as_mut_ptr(),
                MACHINE_MAP_LIMIT as u32,
            )
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

    fn set_pod_target(&self, domid: DomId, pages: u64) -> Result<()> {
        // SAFETY: the null pointers stand for answers that are not wanted.
        let result = unsafe {
            self.library.xc_domain_set_pod_target(
                self.handle(),
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
        let args = || format!("domid {domid}");
        // SAFETY: a null buffer asks for the size.
        let size = unsafe {
            self.library.xc_domain_hvm_getcontext(self.handle(), domid.0.into(), ptr::null_mut(), 0)
        };
        done(size, "xc_domain_hvm_getcontext", args)?;
        let mut records = vec![0; size as usize];
        // SAFETY: `records` has room for `size` bytes.
        let used = unsafe {
            self.library.xc_domain_hvm_getcontext(
                self.handle(),
                domid.0.into(),
                records.as_mut_ptr(),
                size as u32,
            )
        };
        done(used, "xc_domain_hvm_getcontext", args)?;
        records.truncate(used as usize);
        Ok(records)
    }

    fn set_hvm_context(&self, domid: DomId, records: &[u8]) -> Result<()> {
        // SAFETY: the function reads `records.len()` bytes (and writes none, in spite of its type).
        let result = unsafe {
            self.library.xc_domain_hvm_setcontext(
                self.handle(),
                domid.0.into(),
                records.as_ptr().cast_mut(),
                records.len() as u32,
            )
        };
        done(result, "xc_domain_hvm_setcontext", || format!("domid {domid}, {} bytes", records.len()))
    }

    fn domain_info(&self, domid: DomId) -> Result<DomainInfo> {
        let mut info = sys::xen_domctl_getdomaininfo::default();
        // SAFETY: room for the one entry that is asked for.
        let found =
            unsafe { self.library.xc_domain_getinfolist(self.handle(), domid.0.into(), 1, &raw mut info) };
        let args = || format!("domid {domid}");
        done(found, "xc_domain_getinfolist", args)?;
        // The call answers with the first domain from that id on.
        if found == 0 || info.domain != domid.0 {
            return Err(Error::errno("xc_domain_getinfolist", args(), libc::ESRCH));
        }
        Ok(domain_info(&info))
    }

    fn domains(&self) -> Result<Vec<DomainInfo>> {
        let mut domains = Vec::new();
        let mut first = 0;
        loop {
            let mut part = vec![sys::xen_domctl_getdomaininfo::default(); DOMAINS_AT_ONCE];
            // SAFETY: room for as many entries as are asked for.
            let found = unsafe {
                self.library.xc_domain_getinfolist(
                    self.handle(),
                    first,
                    DOMAINS_AT_ONCE as u32,
                    part.as_mut_ptr(),
                )
            };
            done(found, "xc_domain_getinfolist", || format!("from domid {first}"))?;
            domains.extend(part[..found as usize].iter().map(domain_info));
            match domains.last() {
                Some(last) if found as usize == DOMAINS_AT_ONCE => first = u32::from(last.domid.0) + 1,
                _ => return Ok(domains),
            }
        }
    }

    fn phys_info(&self) -> Result<PhysInfo> {
        let mut raw = sys::xen_sysctl_physinfo::default();
        // SAFETY: `raw` is live and of the type that the function writes.
        let result = unsafe { self.library.xc_physinfo(self.handle(), &raw mut raw) };
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
        let mut scheduler = 0;
        // SAFETY: `scheduler` is live and of the type that the function writes.
        let result = unsafe { self.library.xc_sched_id(self.handle(), &raw mut scheduler) };
        done(result, "xc_sched_id", String::new)?;
        // SAFETY: an open handle. A hypervisor without memory sharing answers with an error, and shares nothing.
        let [freed, used] = unsafe {
            [
                self.library.xc_sharing_freed_pages(self.handle()),
                self.library.xc_sharing_used_frames(self.handle()),
            ]
        };
        // SAFETY: an open handle.
        let size = unsafe { self.library.xc_get_cpumap_size(self.handle()) };
        done(size, "xc_get_cpumap_size", String::new)?;
        // SAFETY: an open handle; the answer is `size` bytes from malloc, or null.
        let map = unsafe { self.library.xc_cpupool_freeinfo(self.handle()) };
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
