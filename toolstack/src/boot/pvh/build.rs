//! Carrying out a [`PvhPlan`].

use super::layout::SpecialPage;
use super::plan::{Extents, PvhPlan};
use crate::boot::build::{BuildError, Building, Initrd, Payload, Ports, Rings};
use crate::boot::guest_memory::{GuestMemory, Loaded};
use crate::image::FilePages;
use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;
use xen::{DomId, DomainControl, ForeignMemory, Gfn, HvmParam, PAGE_SHIFT, PAGE_SIZE, Populate, hvm_context};

pub(in crate::boot) fn build(
    plan: &PvhPlan,
    payload: Payload<'_>,
    building: &Building<'_>,
) -> Result<(Ports, Rings, Loaded), BuildError> {
    let Building { domid, control, foreign, .. } = *building;
    let exhausted = |error| building.exhausted(error);

    control.set_paging_mempool_size(domid, plan.paging_mempool_bytes).map_err(exhausted)?;
    control.claim_pages(domid, plan.claim_pages).map_err(exhausted)?;
    if let Some(pages) = plan.pod_target_pages {
        control.set_pod_target(domid, pages).map_err(exhausted)?;
    }
    for extents in &plan.extents {
        if !populate(control, domid, extents)? {
            return Err(building.no_memory());
        }
    }

    let (entry, loaded) = load_image(plan, payload, domid, foreign)?;
    load_pages(plan, domid, foreign)?;

    let ports = building.ports()?;
    for (param, value) in &plan.params {
        control.set_hvm_param(domid, *param, *value)?;
    }
    control.set_hvm_param(domid, HvmParam::StoreEvtchn, ports.store.0.into())?;
    control.set_hvm_param(domid, HvmParam::ConsoleEvtchn, ports.console.0.into())?;
    let rings = Rings { store: SpecialPage::Xenstore.gfn(), console: SpecialPage::Console.gfn() };
    building.seed_grants(rings)?;

    let context = control.hvm_context(domid)?;
    // Guest-physical addresses below 4 GiB: the plan saw to that.
    let start_info = plan.start_info.address as u32;
    let context = hvm_context::pvh_start(&context, plan.sizes.max_vcpus, entry, start_info)?;
    control.set_hvm_context(domid, &context)?;
    Ok((ports, rings, loaded))
}

/// Puts memory into the guest; large extents as single pages where the host has no more large ones. False when it has
/// no more at all.
fn populate(control: &dyn DomainControl, domid: DomId, extents: &Extents) -> Result<bool, xen::Error> {
    let done = control.populate_physmap(domid, extents.order, &extents.gfns, extents.populate)?;
    let rest = &extents.gfns[done..];
    if rest.is_empty() {
        return Ok(true);
    }
    if extents.order == 0 || extents.populate == Populate::OnDemand {
        return Ok(false);
    }
    let pages: Vec<Gfn> =
        rest.iter().flat_map(|gfn| (gfn.0..gfn.0 + (1 << extents.order)).map(Gfn)).collect();
    Ok(control.populate_physmap(domid, 0, &pages, extents.populate)? == pages.len())
}

/// Fills kernel, start_info and initrd, which lie behind each other, through one mapping. Returns the kernel's entry, and
/// the mapping.
fn load_image(
    plan: &PvhPlan,
    payload: Payload<'_>,
    domid: DomId,
    foreign: &dyn ForeignMemory,
) -> Result<(u32, Loaded), BuildError> {
    let (kernel, path) = payload.kernel;
    let kernel_error = |source| BuildError::Kernel { path, source };
    let mut guest_memory;
    let (loaded, behind) =
        match kernel.file_pages().and_then(|pages| Some((in_file_order(plan, &pages)?, pages))) {
            Some((mut gfns, pages)) => {
                let file_len = gfns.len() * PAGE_SIZE;
                let kernel_gfns: HashSet<Gfn> = gfns.iter().copied().collect();
                gfns.extend(frames(&plan.kernel).filter(|gfn| !kernel_gfns.contains(gfn)));
                let kernel_len = gfns.len() * PAGE_SIZE;
                gfns.extend(frames(&(plan.kernel.end..plan.image.end)));
                guest_memory = GuestMemory::map_frames(foreign, domid, &gfns)?;
                let (kernel_memory, behind) = guest_memory.as_mut_slice().split_at_mut(kernel_len);
                let (file, rest) = kernel_memory.split_at_mut(file_len);
                rest.fill(0);
                (kernel.unpack_in_place(&pages, file), behind)
            }
            None => {
                guest_memory = GuestMemory::map_range(foreign, domid, &plan.image)?;
                let kernel_len = (plan.kernel.end - plan.image.start) as usize;
                let (memory, behind) = guest_memory.as_mut_slice().split_at_mut(kernel_len);
                (kernel.load_into(memory), behind)
            }
        };
    let entry = loaded.and_then(|loaded| loaded.pvh_entry()).map_err(kernel_error)?;
    // In a segment, and so not below what the kernel was moved by.
    let entry = entry - plan.moved_down as u32;
    load_behind(plan, payload.initrd, behind)?;
    Ok((entry, guest_memory.into_loaded()))
}

fn frames(range: &Range<u64>) -> impl Iterator<Item = Gfn> + use<> {
    (range.start >> PAGE_SHIFT..range.end >> PAGE_SHIFT).map(Gfn)
}

/// The guest's frames in the order of the kernel's file. For what is in the file alone, memory behind the image serves, which
/// nobody uses yet; `None` where there is too little.
fn in_file_order(plan: &PvhPlan, pages: &FilePages) -> Option<Vec<Gfn>> {
    let memory_end = plan.memory_map.first()?.size.min(plan.sizes.memory_kib << 10);
    let mut spare = frames(&(plan.image.end..memory_end.max(plan.image.end)));
    let gfn = |address: &Option<u64>| match address {
        Some(address) => Some(Gfn((address - plan.moved_down) >> PAGE_SHIFT)),
        None => spare.next(),
    };
    pages.addresses().iter().map(gfn).collect()
}

/// Fills what is behind the kernel: start_info and initrd.
fn load_behind(
    plan: &PvhPlan,
    initrd: Option<(Initrd<'_>, PathBuf)>,
    memory: &mut [u8],
) -> Result<(), BuildError> {
    let offset = |address: u64| (address - plan.kernel.end) as usize;
    let start_info = offset(plan.start_info.address);
    memory[..start_info].fill(0);
    let bytes = &plan.start_info.bytes;
    memory[start_info..start_info + bytes.len()].copy_from_slice(bytes);

    let mut end = start_info + bytes.len();
    if let (Some(range), Some((mut initrd, path))) = (&plan.initrd, initrd) {
        let range = offset(range.start)..offset(range.end);
        memory[end..range.start].fill(0);
        end = range.end;
        // Shorter than when the plan was made: an error, as everything else that keeps it from being read.
        initrd.read_exact(&mut memory[range]).map_err(|source| BuildError::Initrd { path, source })?;
    }
    memory[end..].fill(0);
    Ok(())
}

/// Fills the pages that stand apart.
fn load_pages(plan: &PvhPlan, domid: DomId, foreign: &dyn ForeignMemory) -> Result<(), BuildError> {
    let mut gfns = Vec::new();
    for segment in &plan.pages {
        let first = segment.address >> PAGE_SHIFT;
        let count = segment.bytes.len().div_ceil(PAGE_SIZE).max(1) as u64;
        gfns.extend((first..first + count).map(Gfn));
    }
    gfns.sort_unstable();
    let mut memory = GuestMemory::map_frames(foreign, domid, &gfns)?;
    memory.as_mut_slice().fill(0);
    for segment in &plan.pages {
        let mut offset = segment.address as usize % PAGE_SIZE;
        let mut rest = segment.bytes.as_slice();
        let mut gfn = Gfn(segment.address >> PAGE_SHIFT);
        while let (false, Ok(page)) = (rest.is_empty(), gfns.binary_search(&gfn)) {
            let (part, after) = rest.split_at(rest.len().min(PAGE_SIZE - offset));
            memory.page(page)[offset..offset + part.len()].copy_from_slice(part);
            (rest, offset, gfn) = (after, 0, Gfn(gfn.0 + 1));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::fixture::{INITRD, build_from, initrd};
    use crate::boot::{Built, Guest, Placement, Plan, PvhOptions, Request};
    use crate::image::synthetic::{ENTRY, SyntheticElf, packed_bzimage, xen_note};
    use crate::image::{Codec, Kernel};
    use std::io::Seek;
    use xen::mock::Machine;
    use xen::{CreateDomain, ErrorKind, GuestKind, Platform};

    fn plan(kernel: &Kernel<'_>, memory_kib: u64, max_memory_kib: u64, vcpus: u32) -> Plan {
        Plan::new(&Request {
            memory_kib,
            max_memory_kib,
            vcpus,
            max_vcpus: vcpus,
            cmdline: "console=hvc0",
            kernel: kernel.footprint(),
            initrd: Some(INITRD.len() as u64),
            placement: Placement::default(),
            guest: Guest::Pvh(PvhOptions { timer_mode: 1, paging_memory_mib: None, mmio_hole_mib: None }),
        })
        .unwrap()
    }

    fn build_on(
        machine: &Machine,
        image: &[u8],
        memory_kib: u64,
        max_memory_kib: u64,
    ) -> Result<(PvhPlan, Built), BuildError> {
        build_with(machine, image, (memory_kib, max_memory_kib), 1)
    }

    fn build_with(
        machine: &Machine,
        image: &[u8],
        (memory_kib, max_memory_kib): (u64, u64),
        vcpus: u32,
    ) -> Result<(PvhPlan, Built), BuildError> {
        let kernel = Kernel::open(image).unwrap();
        let plan = plan(&kernel, memory_kib, max_memory_kib, vcpus);
        let built = build_from(machine, &plan, kernel, &initrd())?;
        match plan {
            Plan::Pvh(plan) => Ok((plan, built)),
            Plan::Pv(plan) => panic!("{plan:?}"),
        }
    }

    fn image() -> Vec<u8> {
        packed_bzimage(Codec::Xz, &SyntheticElf::pvh().build())
    }

    #[test]
    fn a_kernel_is_unpacked_where_it_belongs_or_its_file_beside() {
        let elf = SyntheticElf::paged();
        let image = packed_bzimage(Codec::Zstd, &elf.build());
        // Of the second guest nothing is left for what is in the file alone; and the third is populated on demand.
        let pvh = |memory_kib, most| match plan(&Kernel::open(&image).unwrap(), memory_kib, most, 1) {
            Plan::Pvh(plan) => plan,
            Plan::Pv(_) => panic!("a PV plan"),
        };
        let smallest = pvh(64 << 10, 64 << 10).image.end >> 10;
        for (memory_kib, most) in [(64 << 10, 64 << 10), (smallest, smallest), (64 << 10, 128 << 10)] {
            let machine = Machine::new();
            let kernel = Kernel::open(&image).unwrap();
            let plan = pvh(memory_kib, most);
            let in_order = in_file_order(&plan, &kernel.file_pages().unwrap());
            assert_eq!(in_order.is_some(), memory_kib != smallest);
            let kept = std::cell::RefCell::new(Vec::new());
            let kernel = kernel.keep_with(|file| kept.borrow_mut().extend_from_slice(file));
            let built = build_from(&machine, &Plan::Pvh(plan.clone()), kernel, &initrd()).unwrap();
            assert!(*kept.borrow() == elf.build());
            let guest = machine.guest(built.domid).unwrap();
            let mut expected = vec![0; (plan.kernel.end - plan.kernel.start) as usize];
            for load in &elf.loads {
                let at = (load.address - plan.kernel.start) as usize;
                expected[at..at + load.data.len()].copy_from_slice(&load.data);
            }
            assert!(guest.read(plan.kernel.start, expected.len()) == expected);
            assert_eq!(
                guest.read(plan.start_info.address, plan.start_info.bytes.len()),
                plan.start_info.bytes
            );
            assert_eq!(guest.read(plan.initrd.clone().unwrap().start, INITRD.len()), INITRD);
            let behind = guest.read(plan.image.end, (memory_kib << 10) as usize - plan.image.end as usize);
            assert!(behind.iter().all(|byte| *byte == 0), "nothing of the file is left behind the image");
        }
    }

    #[test]
    fn the_guest_finds_what_the_plan_says() {
        let machine = Machine::new();
        let (plan, built) = build_on(&machine, &image(), 512 << 10, 512 << 10).unwrap();
        let guest = machine.guest(built.domid).unwrap();
        let elf = SyntheticElf::pvh();
        for load in &elf.loads {
            assert_eq!(guest.read(load.address, load.data.len()), load.data);
        }
        assert_eq!(guest.read(plan.start_info.address, plan.start_info.bytes.len()), plan.start_info.bytes);
        assert_eq!(guest.read(plan.initrd.as_ref().unwrap().start, INITRD.len()), INITRD);
        for page in &plan.pages {
            assert_eq!(guest.read(page.address, page.bytes.len()), page.bytes);
        }
        assert_eq!(guest.pages, plan.claim_pages);
        assert_eq!(guest.memory_map, plan.memory_map);
        assert_eq!(guest.param(HvmParam::StoreEvtchn), Some(u64::from(built.store_port.0)));
        assert_eq!(guest.param(HvmParam::ConsoleEvtchn), Some(u64::from(built.console_port.0)));
        assert!(guest.cpu_policy && !guest.running && guest.vcpus == 1);
        assert!(guest.context.windows(4).any(|bytes| bytes == ENTRY.to_le_bytes()), "rip");
        // Entry 0 is the console's: permit access, domain 0, its frame.
        assert_eq!(guest.read_grant_table(0, 8), [1, 0, 0, 0, 0xff, 0xef, 0x0f, 0]);
        assert_eq!(guest.read_grant_table(8, 8), [1, 0, 0, 0, 0xfc, 0xef, 0x0f, 0]);
    }

    #[test]
    fn a_kernel_that_was_moved_begins_where_it_is() {
        let mut elf = SyntheticElf::pvh();
        for load in &mut elf.loads {
            load.address += 1 << 30;
        }
        elf.notes.extend(xen_note(18, &(ENTRY + (1 << 30)).to_le_bytes()));
        elf.notes.extend(xen_note(19, &[0x1000_u32, 0x20_0000, u32::MAX].map(u32::to_le_bytes).concat()));
        let machine = Machine::new();
        let (plan, built) = build_on(&machine, &elf.build(), 64 << 10, 64 << 10).unwrap();
        let guest = machine.guest(built.domid).unwrap();
        assert_eq!(plan.kernel.start, 0x20_0000);
        let moved = |address: u64| address - plan.moved_down;
        for load in &elf.loads {
            assert_eq!(guest.read(moved(load.address), load.data.len()), load.data);
        }
        let entry = moved(u64::from(ENTRY) + (1 << 30));
        assert!(guest.context.windows(8).any(|bytes| bytes == entry.to_le_bytes()), "rip");
    }

    #[test]
    fn guests_of_1_to_64_vcpus_are_told_of_all_of_them() {
        for vcpus in [1, 2, 63, 64] {
            let machine = Machine::new();
            let (plan, built) = build_with(&machine, &image(), (64 << 10, 64 << 10), vcpus).unwrap();
            let guest = machine.guest(built.domid).unwrap();
            assert_eq!(guest.vcpus, vcpus);
            // Save records: the header, the memory types of each vCPU, the first vCPU's registers, the end.
            let mut records = Vec::new();
            let mut rest = &guest.context[..];
            while let Some((head, after)) = rest.split_first_chunk::<8>() {
                records
                    .push((u16::from_le_bytes([head[0], head[1]]), u16::from_le_bytes([head[2], head[3]])));
                rest = &after[u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize..];
            }
            let mut expected = vec![(1, 0)];
            expected.extend((0..vcpus).map(|vcpu| (14, vcpu as u16)));
            expected.extend([(2, 0), (0, 0)]);
            assert_eq!(records, expected);
            // The local APICs of the ACPI tables, by their ids: twice the vCPU's number.
            let acpi = plan.pages.iter().find(|page| page.bytes.windows(4).any(|at| at == b"APIC")).unwrap();
            let tables = guest.read(acpi.address, acpi.bytes.len());
            let madt = tables.windows(4).position(|at| at == b"APIC").unwrap();
            let apics: Vec<u8> =
                tables[madt + 44..].chunks(8).take(vcpus as usize).map(|apic| apic[3]).collect();
            assert_eq!(apics, (0..vcpus).map(|vcpu| (2 * vcpu) as u8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_512_mib_guest_takes_at_most_34_hypercalls() {
        let machine = Machine::new();
        build_on(&machine, &image(), 512 << 10, 512 << 10).unwrap();
        let counts = machine.counts();
        assert!(counts.hypercalls <= 34, "{} hypercalls: {:?}", counts.hypercalls, counts.calls);
    }

    #[test]
    fn memory_does_not_change_the_number_of_hypercalls() {
        let count = |memory_kib| {
            let machine = Machine::with_memory(64 << 18);
            build_on(&machine, &image(), memory_kib, memory_kib).unwrap();
            machine.counts().hypercalls
        };
        assert_eq!(count(128 << 10), count(16 << 20));
    }

    #[test]
    fn a_guest_may_start_with_less_than_its_most() {
        let machine = Machine::new();
        let (plan, built) = build_on(&machine, &image(), 256 << 10, 512 << 10).unwrap();
        let guest = machine.guest(built.domid).unwrap();
        assert_eq!(guest.pages, plan.claim_pages);
        assert_eq!(guest.memory_map[0].size, 512 << 20);
    }

    #[test]
    fn whichever_call_fails_nothing_is_left() {
        let machine = Machine::new();
        build_on(&machine, &image(), 512 << 10, 512 << 10).unwrap();
        let calls: u64 = machine.counts().calls.values().sum();
        assert!(calls > 20);
        for nth in 0..calls {
            let machine = Machine::new();
            let _dom0 = machine.domain(DomId::DOM0);
            let before = machine.inventory();
            machine.fail(None, nth, ErrorKind::Other);
            let error = build_on(&machine, &image(), 512 << 10, 512 << 10).unwrap_err();
            assert!(matches!(error, BuildError::Xen(_)), "call {nth}: {error}");
            assert_eq!(machine.inventory(), before, "call {nth}: {error}");
        }
    }

    #[test]
    fn memory_that_the_host_has_not_is_an_error_before_anything_is_made() {
        let machine = Machine::with_memory(100 << 8);
        let error = build_on(&machine, &image(), 512 << 10, 512 << 10).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not enough memory: the qube needs 516 MiB, and 100 MiB are free; shut a qube down or give this one less"
        );
        assert_eq!(machine.counts().of("xc_domain_create"), 0);
    }

    #[test]
    fn a_host_without_large_extents_gives_single_pages() {
        let machine = Machine::new();
        let kernel = image();
        // The first populate call finds no large extent at all.
        machine.fail(Some("xc_domain_populate_physmap"), 0, ErrorKind::Other);
        assert!(build_on(&machine, &kernel, 512 << 10, 512 << 10).is_err());
        let dom0 = machine.domain(DomId::DOM0);
        let control = dom0.domain_control().unwrap();
        let domid = control.create_domain(&CreateDomain::new(GuestKind::Pvh, [0; 16], 1)).unwrap();
        // Room for one extent and a half: what is left over of the second comes as pages, until there are no more.
        control.set_max_mem(domid, 768 << 2).unwrap();
        let extents = Extents { order: 9, gfns: vec![Gfn(0), Gfn(512)], populate: Populate::Now };
        assert!(!populate(&*control, domid, &extents).unwrap());
        assert_eq!(machine.guest(domid).unwrap().pages, 768);
    }

    #[test]
    fn a_kernel_that_is_damaged_behind_its_head_leaves_nothing() {
        let mut image = image();
        let end = image.len();
        image[end - 60..end - 40].fill(0x55);
        let machine = Machine::new();
        let _dom0 = machine.domain(DomId::DOM0);
        let before = machine.inventory();
        let error = build_on(&machine, &image, 512 << 10, 512 << 10).unwrap_err();
        assert!(matches!(error, BuildError::Kernel { .. }), "{error}");
        assert!(error.to_string().starts_with("kernel: "), "{error}");
        assert_eq!(machine.inventory(), before);
    }

    #[test]
    fn an_initrd_that_shrank_is_an_error_and_leaves_nothing() {
        let machine = Machine::new();
        let _dom0 = machine.domain(DomId::DOM0);
        let before = machine.inventory();
        let image = image();
        let kernel = Kernel::open(&image).unwrap();
        let plan = plan(&kernel, 512 << 10, 512 << 10, 1);
        let mut file = initrd();
        file.seek(std::io::SeekFrom::Start(3)).unwrap();
        let error = build_from(&machine, &plan, kernel, &file).unwrap_err();
        assert!(matches!(error, BuildError::Initrd { .. }), "{error}");
        assert_eq!(machine.inventory(), before);
    }
}
