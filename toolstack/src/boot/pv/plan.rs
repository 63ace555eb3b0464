//! The plan of a PV qube: where in its own numbering of frames, which begins at 0 and has no holes, everything goes, and
//! what its first page tables map.

use super::page_tables::PageTables;
use super::start_info;
use crate::boot::placement::Placement;
use crate::boot::plan::{PlanError, Request, Sizes, page_up};
use crate::image::PvKernel;
use std::ops::Range;
use xen::{E820Entry, E820Kind, PAGE_SHIFT, PAGE_SIZE, Pfn};

/// What is mapped and free behind all that the guest begins with, at least (xen/include/public/xen.h: "at least 512kB
/// padding").
const PADDING: u64 = (512 << 10) >> PAGE_SHIFT;
/// What the mapping's end is a multiple of (there: "4MB-aligned").
const MAPPING_ALIGNMENT: u64 = (4 << 20) >> PAGE_SHIFT;

/// An initrd of a PV guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PvInitrd {
    /// Where it is, pseudo-physical.
    pub range: Range<u64>,
    /// The kernel finds it by its frame, and it is not mapped.
    pub by_frame: bool,
}

/// The list of the machine's frames, one for each of the guest's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct P2m {
    /// Its virtual address.
    pub address: u64,
    /// Its frames. Where it stands apart, those of the page tables that map it follow, and are included.
    pub frames: Range<u64>,
    /// It is mapped where the kernel asked for it, apart from all else.
    pub apart: bool,
}

/// The plan of a PV qube. Frames are the guest's own unless said otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PvPlan {
    /// How large it is.
    pub sizes: Sizes,
    /// Where its vCPUs run.
    pub placement: Placement,
    /// Its pages at the start.
    pub pages: u64,
    /// What the guest is told of its address space.
    pub memory_map: Vec<E820Entry>,
    /// Where the kernel is, pseudo-physical.
    pub kernel: Range<u64>,
    /// The first instruction, a virtual address.
    pub entry: u64,
    /// The virtual address of frame 0.
    pub virt_base: u64,
    /// The page that Xen fills with hypercall entries.
    pub hypercall_page: Option<Pfn>,
    /// The initrd.
    pub initrd: Option<PvInitrd>,
    /// The list of frames.
    pub p2m: P2m,
    /// start_info's page.
    pub start_info: Pfn,
    /// The page of the connection to xenstored.
    pub store_ring: Pfn,
    /// The console's page.
    pub console_ring: Pfn,
    /// The page tables, but for those of a p2m that stands apart. The root is the first.
    pub page_table_frames: Range<u64>,
    /// The page of the stack that the guest begins with.
    pub stack: Pfn,
    /// What the page tables map.
    pub page_tables: PageTables,
    /// From the kernel's first frame to the last that is filled: mapped at once.
    pub image: Range<u64>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// Frames given out behind each other.
struct Frames {
    next: u64,
}

impl Frames {
    fn take(&mut self, count: u64) -> Range<u64> {
        let start = self.next;
        self.next = start.saturating_add(count);
        start..self.next
    }
}

impl PvPlan {
    /// The longest command line, in bytes.
    pub(in crate::boot) const CMDLINE_LIMIT: usize = start_info::CMDLINE - 1;

    /// The order is libxc's: kernel, what else is to be mapped, page tables, stack; then an initrd and a p2m that are not
    /// to be mapped beside the kernel.
    pub(in crate::boot) fn new(
        request: &Request<'_>,
        kernel: &PvKernel,
        sizes: Sizes,
    ) -> Result<Self, PlanError> {
        let pages = sizes.memory_kib >> (PAGE_SHIFT - 10);
        let memory_kib = sizes.memory_kib;
        // Of whole pages; the image saw to it that the offset is not larger than the start.
        let memory = &request.kernel.memory;
        let place = memory.start - kernel.paddr_offset..memory.end - kernel.paddr_offset;
        let too_large = |frames: u64| PlanError::KernelDoesNotFit {
            range: place.start..frames.saturating_mul(PAGE_SIZE as u64),
            memory_kib,
        };
        let p2m_pages = (pages * size_of::<u64>() as u64).div_ceil(PAGE_SIZE as u64);

        let mut frames = Frames { next: place.end >> PAGE_SHIFT };
        let take_initrd = |frames: &mut Frames| -> Result<Option<PvInitrd>, PlanError> {
            let Some(bytes) = request.initrd else { return Ok(None) };
            let start = frames.take(page_up(bytes) >> PAGE_SHIFT).start << PAGE_SHIFT;
            let end = start.saturating_add(bytes);
            if frames.next > pages {
                let available = (pages << PAGE_SHIFT).saturating_sub(start);
                return Err(PlanError::InitrdDoesNotFit { bytes, available, end });
            }
            Ok(Some(PvInitrd { range: start..end, by_frame: kernel.initrd_by_frame }))
        };
        let mut initrd = if kernel.initrd_by_frame { None } else { take_initrd(&mut frames)? };
        let p2m_apart = kernel.init_p2m.filter(|address| {
            let below =
                address.checked_add(p2m_pages << PAGE_SHIFT).is_some_and(|end| end <= kernel.virt_base);
            below && PageTables::mappable(*address, p2m_pages)
        });
        let p2m_mapped = if p2m_apart.is_some() { 0..0 } else { frames.take(p2m_pages) };
        let [start_info, store_ring, console_ring] = [(); 3].map(|()| Pfn(frames.take(1).start));

        let mut page_tables = PageTables::default();
        let unmappable = |mapped: u64| PlanError::Unmappable {
            virt_base: kernel.virt_base,
            bytes: mapped.saturating_mul(PAGE_SIZE as u64),
        };
        // The tables map themselves: with each try as many as the last one took.
        let mut tables = 0;
        let mapped = loop {
            let mapped = (frames.next + tables + 1 + PADDING).next_multiple_of(MAPPING_ALIGNMENT);
            if mapped > pages {
                return Err(too_large(mapped));
            }
            if !PageTables::mappable(kernel.virt_base, mapped) {
                return Err(unmappable(mapped));
            }
            let needed = page_tables.needed(kernel.virt_base, mapped);
            if frames.next + needed + 1 + PADDING <= mapped {
                tables = needed;
                break mapped;
            }
            tables = needed;
        };
        let page_table_frames = frames.take(tables);
        page_tables.map(kernel.virt_base, 0, mapped, page_table_frames.start);
        let stack = Pfn(frames.take(1).start);
        let mut image_end = frames.next;

        frames.next = mapped;
        if kernel.initrd_by_frame {
            initrd = take_initrd(&mut frames)?;
            image_end = frames.next;
        }
        let address_of = |frame: u64| kernel.virt_base.wrapping_add(frame << PAGE_SHIFT);
        let p2m = match p2m_apart {
            None => P2m { address: address_of(p2m_mapped.start), frames: p2m_mapped, apart: false },
            Some(address) => {
                let list = frames.take(p2m_pages);
                let needed = page_tables.needed(address, p2m_pages);
                let own_tables = frames.take(needed);
                page_tables.map(address, list.start, p2m_pages, own_tables.start);
                image_end = frames.next;
                P2m { address, frames: list.start..own_tables.end, apart: true }
            }
        };
        if frames.next > pages {
            return Err(match &initrd {
                Some(initrd) => PlanError::InitrdDoesNotFit {
                    bytes: initrd.range.end - initrd.range.start,
                    available: (pages + initrd_pages(initrd)).saturating_sub(frames.next) << PAGE_SHIFT,
                    end: frames.next << PAGE_SHIFT,
                },
                None => too_large(frames.next),
            });
        }
        Ok(Self {
            sizes,
            placement: request.placement.clone(),
            pages,
            memory_map: vec![E820Entry { start: 0, size: sizes.max_memory_kib << 10, kind: E820Kind::Ram }],
            image: place.start >> PAGE_SHIFT..image_end,
            kernel: place,
            entry: kernel.entry,
            virt_base: kernel.virt_base,
            // In the kernel: the image saw to it.
            hypercall_page: kernel.hypercall_page.map(|at| Pfn((at - kernel.virt_base) >> PAGE_SHIFT)),
            initrd,
            p2m,
            start_info,
            store_ring,
            console_ring,
            page_table_frames,
            stack,
            page_tables,
            cmdline: request.cmdline.to_owned(),
        })
    }

    /// The virtual address of a frame that is mapped beside the kernel.
    #[must_use]
    pub fn address_of(&self, frame: u64) -> u64 {
        self.virt_base.wrapping_add(frame << PAGE_SHIFT)
    }
}

fn initrd_pages(initrd: &PvInitrd) -> u64 {
    page_up(initrd.range.end - initrd.range.start) >> PAGE_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::{Guest, Plan};
    use crate::image::Footprint;
    use crate::image::synthetic::PV_VIRT_BASE;
    use proptest::prelude::*;

    static FOOTPRINT: Footprint =
        Footprint { memory: 0x100_0000..0x420_0000, cmdline_limit: Some(2_047), relocation: None };

    const KERNEL: PvKernel = PvKernel {
        entry: PV_VIRT_BASE + 0x100_0000,
        virt_base: PV_VIRT_BASE,
        paddr_offset: 0,
        hypercall_page: None,
        init_p2m: Some(0x80_0000_0000),
        initrd_by_frame: true,
    };

    fn request(memory_kib: u64) -> Request<'static> {
        Request {
            memory_kib,
            max_memory_kib: memory_kib,
            vcpus: 1,
            max_vcpus: 1,
            cmdline: "console=hvc0",
            kernel: &FOOTPRINT,
            initrd: Some(16 << 20),
            placement: Placement::default(),
            guest: Guest::Pv(&KERNEL),
        }
    }

    fn plan(request: &Request<'_>) -> Result<PvPlan, PlanError> {
        match Plan::new(request)? {
            Plan::Pv(plan) => Ok(plan),
            Plan::Pvh(plan) => panic!("{plan:?}"),
        }
    }

    #[test]
    fn the_plan_of_512_mib_is_that_of_xl() {
        let plan = plan(&request(512 << 10)).unwrap();
        // tests/golden/pv.hypercalls.txt, whose frames are those of the guest and 0x200000.
        assert_eq!((plan.pages, plan.sizes.max_mem_kib()), (131_072, 525_312));
        assert_eq!(plan.memory_map, [E820Entry { start: 0, size: 512 << 20, kind: E820Kind::Ram }]);
        assert_eq!(plan.start_info, Pfn(0x4200));
        assert_eq!((plan.store_ring, plan.console_ring), (Pfn(0x4201), Pfn(0x4202)));
        assert_eq!(plan.page_table_frames, 0x4203..0x4203 + 37);
        assert_eq!(plan.stack, Pfn(0x4228));
        assert_eq!(plan.initrd, Some(PvInitrd { range: 0x440_0000..0x540_0000, by_frame: true }));
        let p2m = P2m { address: 0x80_0000_0000, frames: 0x5400..0x5400 + 259, apart: true };
        assert_eq!(plan.p2m, p2m);
        assert_eq!(plan.image, 0x1000..0x5503);
    }

    #[test]
    fn a_kernel_that_wants_all_beside_itself_has_it_there() {
        let kernel = PvKernel { init_p2m: None, initrd_by_frame: false, ..KERNEL };
        let plan = plan(&Request { guest: Guest::Pv(&kernel), ..request(512 << 10) }).unwrap();
        assert_eq!(plan.initrd, Some(PvInitrd { range: 0x420_0000..0x520_0000, by_frame: false }));
        let p2m = P2m { address: PV_VIRT_BASE + 0x520_0000, frames: 0x5200..0x5300, apart: false };
        assert_eq!(plan.p2m, p2m);
        assert_eq!(plan.start_info, Pfn(0x5300));
        assert_eq!(plan.image.end, plan.stack.0 + 1);
    }

    #[test]
    fn a_place_for_the_p2m_that_runs_into_the_kernel_or_xen_is_not_used() {
        for init_p2m in [PV_VIRT_BASE - 0x1000, 0xffff_8000_0000_0000, 0x7fff_ffff_f000] {
            let kernel = PvKernel { init_p2m: Some(init_p2m), ..KERNEL };
            let plan = plan(&Request { guest: Guest::Pv(&kernel), ..request(512 << 10) }).unwrap();
            assert!(!plan.p2m.apart, "{init_p2m:#x}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_could() {
        let base = request(512 << 10);
        let long = "x".repeat(1_024);
        let error = plan(&Request { cmdline: &long, ..base.clone() }).unwrap_err();
        assert_eq!(error, PlanError::Cmdline { len: 1_024, limit: 1_023 });
        plan(&Request { cmdline: &long[1..], ..base.clone() }).unwrap();
        assert!(matches!(plan(&request(66 << 10)), Err(PlanError::KernelDoesNotFit { .. })));
        let error = plan(&request(80 << 10)).unwrap_err();
        assert!(matches!(error, PlanError::InitrdDoesNotFit { .. }), "{error}");
        assert!(error.to_string().contains("at least 84 MiB"), "{error}");
        for virt_base in [0xffff_8000_0000_0000, 0xffff_ffff_f000_0000 + (252 << 20), 1 << 50] {
            let kernel = PvKernel { virt_base, init_p2m: None, ..KERNEL };
            let error = plan(&Request { guest: Guest::Pv(&kernel), ..base.clone() }).unwrap_err();
            assert!(matches!(error, PlanError::Unmappable { .. }), "{virt_base:#x}: {error}");
        }
    }

    proptest! {
        /// Whatever is asked for: an error, or a plan whose parts lie in memory and do not overlap, and of which all but
        /// an initrd by frame and a p2m apart is mapped.
        #[test]
        fn plans_are_consistent(
            memory_kib in 0_u64..1 << 22,
            start in 0_u64..1 << 28,
            size in 1_u64..1 << 28,
            initrd in proptest::option::of(0_u64..1 << 29),
            init_p2m in proptest::option::of(0_u64..1 << 35),
            initrd_by_frame: bool,
            virt_base in prop_oneof![Just(PV_VIRT_BASE), Just(0), (0_u64..1 << 36).prop_map(|page| page << 12)],
        ) {
            let page = PAGE_SIZE as u64;
            let memory = start / page * page..(start + size).next_multiple_of(page);
            let init_p2m = init_p2m.map(|at| at << 12).filter(|at| *at < virt_base);
            let kernel = PvKernel { virt_base, init_p2m, initrd_by_frame, ..KERNEL };
            let footprint = Footprint { memory: memory.clone(), cmdline_limit: None, relocation: None };
            let request =
                Request { kernel: &footprint, initrd, guest: Guest::Pv(&kernel), ..request(memory_kib) };
            let Ok(plan) = plan(&request) else { return Ok(()) };
            let pages = |range: &Range<u64>| range.start >> PAGE_SHIFT..range.end.div_ceil(page);
            let mut parts = vec![pages(&plan.kernel), plan.page_table_frames.clone(), plan.p2m.frames.clone()];
            for single in [plan.start_info, plan.store_ring, plan.console_ring, plan.stack] {
                parts.push(single.0..single.0 + 1);
            }
            parts.extend(plan.initrd.iter().map(|initrd| pages(&initrd.range)));
            parts.retain(|part| !part.is_empty());
            parts.sort_by_key(|part| part.start);
            for pair in parts.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start, "{:?}", parts);
            }
            prop_assert_eq!(parts[0].start, plan.image.start);
            prop_assert!(parts.iter().all(|part| part.end <= plan.image.end));
            prop_assert!(plan.image.end <= plan.pages);
            prop_assert!(plan.p2m.frames.end - plan.p2m.frames.start >= (plan.pages * 8).div_ceil(page));
            prop_assert_eq!(plan.page_tables.root(), Some(plan.page_table_frames.start));
        }
    }
}
