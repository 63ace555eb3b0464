//! The plan of a PVH qube.

use super::layout::{
    ACPI_START, HIGH_MEMORY_START, MMIO_HOLE_MIB, SPECIAL_PAGES, SPECIAL_SIZE, SPECIAL_START, SpecialPage,
};
use super::{acpi, start_info};
use crate::boot::placement::Placement;
use crate::boot::plan::{
    PlanError, PvhOptions, Request, SUPERPAGE, SUPERPAGE_ORDER, Sizes, page_down, page_up,
};
use acpi_tables::rsdp::Rsdp;
use std::ops::Range;
use xen::{E820Entry, E820Kind, Gfn, HvmParam, PAGE_SHIFT, Populate};

/// Where a guest finds the RSDP that does not take it from start_info: at the end of the BIOS area it scans.
const LEGACY_RSDP: u64 = 0x10_0000 - 64;

/// What lies below is the BIOS area.
const KERNEL_FLOOR: u64 = 0x10_0000;

/// Memory to be put into the guest's address space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extents {
    /// log2 of the pages of each extent.
    pub order: u32,
    /// The first frame of each extent.
    pub gfns: Vec<Gfn>,
    /// Whether it is there from the start.
    pub populate: Populate,
}

impl Extents {
    /// Pages of all extents together.
    #[must_use]
    pub fn pages(&self) -> u64 {
        (self.gfns.len() as u64) << self.order
    }
}

/// Bytes at a place of the guest's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Guest-physical address of the first byte; page-aligned unless said otherwise.
    pub address: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// The plan of a PVH qube.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PvhPlan {
    /// How large it is.
    pub sizes: Sizes,
    /// Where its vCPUs run.
    pub placement: Placement,
    /// Memory for the nested page tables, in bytes.
    pub paging_mempool_bytes: u64,
    /// Pages to be claimed before any is taken: all that are there from the start.
    pub claim_pages: u64,
    /// Memory, largest extents first.
    pub extents: Vec<Extents>,
    /// Pages that a guest which is populated on demand has to live with.
    pub pod_target_pages: Option<u64>,
    /// What the guest is told of its address space.
    pub memory_map: Vec<E820Entry>,
    /// Parameters that do not depend on what Xen answers. (The two event channels do.)
    pub params: Vec<(HvmParam, u64)>,
    /// The frames from the kernel's first to the initrd's last: mapped at once, to be filled.
    pub image: Range<u64>,
    /// Where the kernel is.
    pub kernel: Range<u64>,
    /// How many bytes that is below where it was linked to be; so much lower is its entry.
    pub moved_down: u64,
    /// start_info and what it points to; inside of `image`.
    pub start_info: Segment,
    /// Where the initrd is; inside of `image`.
    pub initrd: Option<Range<u64>>,
    /// Pages outside of `image`, to be filled with these bytes and zeros: ACPI tables, the identity page table, the
    /// rings of console and xenstore, and a copy of the RSDP (the one that is not page-aligned) in the BIOS area for
    /// kernels that look for it there.
    pub pages: Vec<Segment>,
}

impl PvhPlan {
    pub(in crate::boot) fn new(
        request: &Request<'_>,
        options: PvhOptions,
        sizes: Sizes,
    ) -> Result<Self, PlanError> {
        let Request { cmdline, kernel, initrd, .. } = *request;
        let Sizes { vcpus, max_vcpus, memory_kib, max_memory_kib } = sizes;
        let hole = options.mmio_hole_mib.unwrap_or(MMIO_HOLE_MIB).max(MMIO_HOLE_MIB) << 20;
        let ram = ram(max_memory_kib, HIGH_MEMORY_START.saturating_sub(hole));
        let low_end = ram[0].end.min(memory_kib << 10);
        let linked = &kernel.memory;
        // A guest's memory begins at 0 without a hole: a kernel need not be moved unless it was linked for more of it.
        let lowest = || kernel.relocation.and_then(|relocation| relocation.lowest(linked, KERNEL_FLOOR));
        let kernel = if linked.end > low_end { lowest() } else { None }.unwrap_or_else(|| linked.clone());
        if kernel.end > low_end {
            return Err(PlanError::KernelDoesNotFit { range: kernel, memory_kib });
        }

        let acpi = Segment { address: ACPI_START, bytes: acpi::tables(ACPI_START, vcpus, max_vcpus) };
        let acpi_size = page_up(acpi.bytes.len() as u64);
        let memory_map = memory_map(&ram, acpi_size);

        // Kernel, start_info, initrd: one after the other, each from a page of its own.
        let start_info_at = page_up(kernel.end);
        let module_at = |start_info_len: u64| page_up(start_info_at + start_info_len);
        // The length does not depend on the addresses in it.
        let bytes_with = |module: Option<&Range<u64>>| {
            start_info::start_info(start_info_at, cmdline, ACPI_START, module, &memory_map)
        };
        let module = initrd.map(|len| {
            let start = module_at(bytes_with(Some(&(0..0))).len() as u64);
            start..start.saturating_add(len)
        });
        let start_info = Segment { address: start_info_at, bytes: bytes_with(module.as_ref()) };
        let image_end = module.as_ref().map_or(module_at(start_info.bytes.len() as u64), |module| module.end);
        if let (Some(module), true) = (&module, image_end > low_end) {
            return Err(PlanError::InitrdDoesNotFit {
                bytes: module.end - module.start,
                available: low_end.saturating_sub(module.start),
                end: image_end,
            });
        }
        if image_end > low_end {
            return Err(PlanError::KernelDoesNotFit { range: kernel.start..image_end, memory_kib });
        }

        // Kernels of before 5.0 scan for it. Whether this one does is in notes that are unpacked later than this is
        // decided, so it is there for all: the place is in the BIOS area, which Linux leaves alone.
        let legacy_rsdp = Segment { address: LEGACY_RSDP, bytes: acpi.bytes[..Rsdp::len()].to_vec() };
        let pages = vec![
            legacy_rsdp,
            acpi,
            Segment { address: SpecialPage::IdentPt.gfn().address(), bytes: ident_pt() },
            Segment { address: SpecialPage::Xenstore.gfn().address(), bytes: Vec::new() },
            Segment { address: SpecialPage::Console.gfn().address(), bytes: Vec::new() },
        ];
        let on_demand = max_memory_kib > memory_kib;
        let extents = extents(&ram, on_demand, acpi_size >> PAGE_SHIFT);
        let ram_pages = memory_kib >> (PAGE_SHIFT - 10);
        let other_pages = (acpi_size >> PAGE_SHIFT) + SPECIAL_PAGES.len() as u64;
        Ok(Self {
            sizes,
            placement: request.placement.clone(),
            paging_mempool_bytes: paging_mempool_bytes(options.paging_memory_mib, &sizes),
            claim_pages: ram_pages + other_pages,
            extents,
            pod_target_pages: on_demand.then_some(ram_pages),
            memory_map,
            params: params(options.timer_mode),
            image: page_down(kernel.start)..page_up(image_end),
            moved_down: linked.start - kernel.start,
            kernel,
            start_info,
            initrd: module,
            pages,
        })
    }
}

/// The ranges of RAM: one below the hole, and one above 4 GiB for what does not fit there.
fn ram(memory_kib: u64, low_end: u64) -> Vec<Range<u64>> {
    let bytes = page_down(memory_kib << 10);
    let low = 0..bytes.min(low_end);
    let rest = bytes - low.end;
    if rest == 0 { vec![low] } else { vec![low, HIGH_MEMORY_START..HIGH_MEMORY_START + rest] }
}

fn memory_map(ram: &[Range<u64>], acpi_size: u64) -> Vec<E820Entry> {
    let entry = |range: &Range<u64>| E820Entry {
        start: range.start,
        size: range.end - range.start,
        kind: E820Kind::Ram,
    };
    let mut map = vec![entry(&ram[0])];
    map.push(E820Entry { start: ACPI_START, size: acpi_size, kind: E820Kind::Acpi });
    map.push(E820Entry { start: SPECIAL_START, size: SPECIAL_SIZE, kind: E820Kind::Reserved });
    map.extend(ram[1..].iter().map(entry));
    map
}

/// RAM in as many 2 MiB extents as there are, and single pages for its ends, the ACPI tables and the special pages: two
/// hypercalls, or three when RAM comes on demand.
fn extents(ram: &[Range<u64>], on_demand: bool, acpi_pages: u64) -> Vec<Extents> {
    let populate = if on_demand { Populate::OnDemand } else { Populate::Now };
    let mut large = Vec::new();
    let mut small = Vec::new();
    for range in ram {
        let (first, end) = (range.start >> PAGE_SHIFT, range.end >> PAGE_SHIFT);
        let large_end = end / SUPERPAGE * SUPERPAGE;
        large.extend((first..large_end).step_by(SUPERPAGE as usize).map(Gfn));
        small.extend((large_end.max(first)..end).map(Gfn));
    }
    let acpi = ACPI_START >> PAGE_SHIFT;
    let fixed = (acpi..acpi + acpi_pages).map(Gfn).chain(SPECIAL_PAGES.map(SpecialPage::gfn));
    let mut extents = vec![Extents { order: SUPERPAGE_ORDER, gfns: large, populate }];
    if on_demand {
        extents.push(Extents { order: 0, gfns: small, populate });
        extents.push(Extents { order: 0, gfns: fixed.collect(), populate: Populate::Now });
    } else {
        small.extend(fixed);
        extents.push(Extents { order: 0, gfns: small, populate });
    }
    extents.retain(|extents| !extents.gfns.is_empty());
    extents
}

/// What is asked for, in MiB, or what libxl sets aside for nested paging (libxl__get_required_paging_memory): 1 MiB a vCPU and a
/// page for each MiB of memory.
pub(in crate::boot) fn paging_mempool_bytes(asked_mib: Option<u64>, sizes: &Sizes) -> u64 {
    let pages = 256 * u64::from(sizes.max_vcpus) + sizes.max_memory_kib.div_ceil(1_024);
    asked_mib.map_or(pages << PAGE_SHIFT, |mib| mib << 20)
}

fn params(timer_mode: u64) -> Vec<(HvmParam, u64)> {
    let page = |page: SpecialPage| page.gfn().0;
    vec![
        (HvmParam::TimerMode, timer_mode),
        (HvmParam::StorePfn, page(SpecialPage::Xenstore)),
        (HvmParam::ConsolePfn, page(SpecialPage::Console)),
        // An address, unlike the others.
        (HvmParam::IdentPt, SpecialPage::IdentPt.gfn().address()),
        (HvmParam::PagingRingPfn, page(SpecialPage::Paging)),
        (HvmParam::MonitorRingPfn, page(SpecialPage::Monitor)),
        (HvmParam::SharingRingPfn, page(SpecialPage::Sharing)),
    ]
}

/// A page table that maps the first 4 GiB to themselves: 1,024 entries of 4 MiB, present, writable, user, accessed,
/// dirty, large.
fn ident_pt() -> Vec<u8> {
    const FLAGS: u32 = 0xe7;
    (0..1_024_u32).flat_map(|i| (i << 22 | FLAGS).to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{Guest, Plan};
    use crate::image::{Footprint, Phys32Reloc};
    use proptest::prelude::*;
    use xen::PAGE_SIZE;

    static KERNEL: Footprint =
        Footprint { memory: 0x100_0000..0x420_0000, cmdline_limit: None, relocation: None };

    const OPTIONS: PvhOptions = PvhOptions { timer_mode: 1, paging_memory_mib: None, mmio_hole_mib: None };

    fn request(memory_kib: u64) -> Request<'static> {
        Request {
            memory_kib,
            max_memory_kib: memory_kib,
            vcpus: 1,
            max_vcpus: 1,
            cmdline: "console=hvc0",
            kernel: &KERNEL,
            initrd: Some(16 << 20),
            placement: Placement::default(),
            guest: Guest::Pvh(OPTIONS),
        }
    }

    fn plan(request: &Request<'_>) -> Result<PvhPlan, PlanError> {
        match Plan::new(request)? {
            Plan::Pvh(plan) => Ok(plan),
            Plan::Pv(plan) => panic!("{plan:?}"),
        }
    }

    #[test]
    fn the_plan_of_512_mib_is_that_of_xl_where_it_must_be() {
        let plan = plan(&request(512 << 10)).unwrap();
        // tests/golden/pvh.hypercalls.txt
        assert_eq!(plan.sizes.max_mem_kib(), 525_312);
        assert_eq!(plan.paging_mempool_bytes, 3_145_728);
        assert_eq!(plan.start_info.address, 0x420_0000);
        assert_eq!(plan.initrd, Some(0x420_1000..0x520_1000));
        assert_eq!(plan.extents[0].order, 9);
        assert_eq!(plan.extents[0].gfns.len(), 256);
        assert_eq!(plan.extents.len(), 2, "two populate hypercalls");
        assert_eq!(plan.extents.iter().map(Extents::pages).sum::<u64>(), plan.claim_pages);
        assert_eq!(plan.memory_map[0], E820Entry { start: 0, size: 0x2000_0000, kind: E820Kind::Ram });
        assert!(plan.params.contains(&(HvmParam::IdentPt, 0xfeff_e000)));
        assert!(plan.params.contains(&(HvmParam::ConsolePfn, 0xf_efff)));
    }

    #[test]
    fn memory_continues_above_the_hole() {
        let plan = plan(&request(5 << 20)).unwrap();
        let ram: Vec<_> =
            plan.memory_map.iter().filter(|e| e.kind == E820Kind::Ram).map(|e| (e.start, e.size)).collect();
        assert_eq!(ram, [(0, 0xfc00_0000), (1 << 32, (5 << 30) - 0xfc00_0000)]);
        assert!(plan.memory_map.is_sorted_by_key(|entry| entry.start));
    }

    #[test]
    fn a_larger_hole_moves_memory_above_it() {
        let plan = plan(&Request {
            guest: Guest::Pvh(PvhOptions { mmio_hole_mib: Some(2_048), ..OPTIONS }),
            ..request(3 << 20)
        })
        .unwrap();
        let ram: Vec<_> =
            plan.memory_map.iter().filter(|e| e.kind == E820Kind::Ram).map(|e| (e.start, e.size)).collect();
        assert_eq!(ram, [(0, 2 << 30), (1 << 32, 1 << 30)]);
    }

    #[test]
    fn less_memory_than_the_most_comes_on_demand() {
        let plan = plan(&Request { max_memory_kib: 1 << 20, ..request(512 << 10) }).unwrap();
        assert_eq!(plan.pod_target_pages, Some(512 << 8));
        assert_eq!(plan.memory_map[0].size, 1 << 30);
        assert_eq!(plan.extents[0].populate, Populate::OnDemand);
        assert_eq!(plan.extents.last().unwrap().populate, Populate::Now);
    }

    #[test]
    fn what_does_not_fit_is_said_with_what_would() {
        let error = plan(&request(32 << 10)).unwrap_err();
        assert!(matches!(error, PlanError::KernelDoesNotFit { .. }), "{error}");
        assert!(error.to_string().contains("at least 66 MiB"), "{error}");
        let error = plan(&request(80 << 10)).unwrap_err();
        assert!(matches!(error, PlanError::InitrdDoesNotFit { .. }), "{error}");
        assert!(error.to_string().contains("at least 83 MiB"), "{error}");
    }

    #[test]
    fn a_kernel_that_can_be_moved_is_moved_when_it_was_linked_for_more_memory() {
        let relocation = Phys32Reloc { align: 0x20_0000, min: 0x100_0000, max: 0x3fff_ffff };
        let far =
            Footprint { memory: 0x4000_0000..0x4320_0000, relocation: Some(relocation), ..KERNEL.clone() };
        let request = Request { kernel: &far, ..request(256 << 10) };
        let moved = plan(&request).unwrap();
        assert_eq!((moved.kernel, moved.moved_down), (0x100_0000..0x420_0000, 0x3f00_0000));
        assert_eq!(moved.start_info.address, 0x420_0000);
        let roomy =
            plan(&Request { memory_kib: 2 << 20, max_memory_kib: 2 << 20, ..request.clone() }).unwrap();
        assert_eq!((roomy.kernel, roomy.moved_down), (far.memory.clone(), 0));
        let fixed = Footprint { relocation: None, ..far.clone() };
        let error = plan(&Request { kernel: &fixed, ..request }).unwrap_err();
        assert!(matches!(error, PlanError::KernelDoesNotFit { .. }), "{error}");
    }

    #[test]
    fn impossible_requests_are_refused() {
        let base = request(512 << 10);
        for (vcpus, max_vcpus) in [(0, 1), (2, 1), (1, 129), (0, 0)] {
            assert!(matches!(
                plan(&Request { vcpus, max_vcpus, ..base.clone() }),
                Err(PlanError::Vcpus { .. })
            ));
        }
        let long = "x".repeat(2_048);
        assert!(matches!(
            plan(&Request { cmdline: &long, ..base.clone() }),
            Err(PlanError::Cmdline { len: 2_048, limit: 2_047 })
        ));
        assert!(matches!(
            plan(&Request { cmdline: "a\0b", ..base.clone() }),
            Err(PlanError::CmdlineNul { at: 1 })
        ));
        assert!(matches!(
            plan(&Request { max_memory_kib: 1 << 10, ..base }),
            Err(PlanError::MaxMemory { .. })
        ));
    }

    #[test]
    fn a_kernel_that_scans_for_the_rsdp_finds_one() {
        let plan = plan(&request(512 << 10)).unwrap();
        let legacy = plan.pages.iter().find(|page| page.address == 0xf_ffc0).unwrap();
        let acpi = plan.pages.iter().find(|page| page.address == ACPI_START).unwrap();
        assert!(legacy.bytes.starts_with(b"RSD PTR ") && acpi.bytes.starts_with(&legacy.bytes));
    }

    proptest! {
        /// Whatever is asked for: an error, or a plan whose parts lie in populated memory and do not overlap.
        #[test]
        fn plans_are_consistent(
            memory_kib in 0_u64..1 << 24,
            more_kib in prop_oneof![Just(0), 0_u64..1 << 22],
            start in 0_u64..1 << 28,
            size in 0_u64..1 << 28,
            initrd in proptest::option::of(0_u64..1 << 30),
            max_vcpus in 0_u32..140,
        ) {
            let page = PAGE_SIZE as u64;
            let memory = start / page * page..(start + size).next_multiple_of(page);
            let request = Request {
                memory_kib,
                max_memory_kib: memory_kib + more_kib,
                vcpus: 1,
                max_vcpus,
                kernel: &Footprint { memory, cmdline_limit: None, relocation: None },
                initrd,
                ..request(0)
            };
            let Ok(plan) = plan(&request) else { return Ok(()) };
            let populated = |address: u64| {
                plan.extents.iter().any(|extents| {
                    extents.gfns.iter().any(|gfn| (gfn.0..gfn.0 + (1 << extents.order)).contains(&(address >> PAGE_SHIFT)))
                })
            };
            prop_assert!(plan.kernel.end <= plan.start_info.address);
            let start_info_end = plan.start_info.address + plan.start_info.bytes.len() as u64;
            if let Some(initrd) = &plan.initrd {
                prop_assert!(start_info_end <= initrd.start && initrd.end <= plan.image.end);
            }
            prop_assert!(start_info_end <= plan.image.end);
            prop_assert!(plan.image.end <= request.memory_kib << 10);
            prop_assert!(populated(plan.image.start) && populated(plan.image.end - 1));
            for page in &plan.pages {
                prop_assert!(populated(page.address));
                prop_assert!(page.address >= plan.image.end || page.address == LEGACY_RSDP);
            }
        }
    }
}
