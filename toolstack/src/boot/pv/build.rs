//! Carrying out a [`PvPlan`].

use super::plan::PvPlan;
use super::start_info::{Chosen, start_info};
use crate::boot::build::{BuildError, Building, Payload, Ports, Rings};
use crate::boot::guest_memory::GuestMemory;
use crate::boot::plan::{SUPERPAGE, SUPERPAGE_ORDER};
use std::ops::Range;
use xen::{Access, Gfn, PAGE_SHIFT, PAGE_SIZE, Pfn, PvStart};

/// vCPUs whose information is in shared_info (`XEN_LEGACY_MAX_VCPUS`); the guest finds a place for the others itself.
const SHARED_VCPUS: usize = 32;
/// Bytes of `struct vcpu_info`.
const VCPU_INFO: usize = 64;
/// `offsetof(struct vcpu_info, evtchn_upcall_mask)`
const UPCALL_MASK: usize = 1;

pub(in crate::boot) fn build(
    plan: &PvPlan,
    payload: Payload<'_>,
    building: &Building<'_>,
) -> Result<(Ports, Rings), BuildError> {
    let Building { domid, control, foreign, .. } = *building;
    control.claim_pages(domid, plan.pages).map_err(|error| building.exhausted(error))?;
    let p2m = populate(plan.pages, building)?;
    let machine = |pfn: Pfn| p2m[pfn.0 as usize];

    let ports = building.ports()?;
    let rings = Rings { store: machine(plan.store_ring), console: machine(plan.console_ring) };
    let shared_info = control.domain_info(domid)?.shared_info;
    let chosen =
        Chosen { shared_info, store: (rings.store, ports.store), console: (rings.console, ports.console) };

    // Gone when this returns, and with it dom0's mapping: Xen takes nothing for a page table that somebody may write,
    // neither those of the plan nor those that the kernel brings along or makes of the initrd's pages when it runs.
    load(plan, payload, &p2m, &chosen, building)?;
    if let Some(page) = plan.hypercall_page {
        control.init_hypercall_page(domid, machine(page))?;
    }
    let page_table = machine(Pfn(plan.page_table_frames.start));
    control.pin_page_tables(domid, page_table)?;

    // New, and so zero but for what Xen writes there when it likes: no slice over this page.
    let shared = foreign.map(domid, &[shared_info], Access::ReadWrite)?;
    for vcpu in 0..SHARED_VCPUS {
        shared.copy_from(vcpu * VCPU_INFO + UPCALL_MASK, &[1]);
    }
    drop(shared);

    building.seed_grants(rings)?;
    control.set_pv_start(
        domid,
        &PvStart {
            entry: plan.entry,
            stack: plan.address_of(plan.stack.0 + 1),
            start_info: plan.address_of(plan.start_info.0),
            page_table,
        },
    )?;
    Ok((ports, rings))
}

/// Puts memory into the guest, in large extents where the host has them. Returns the machine's frames.
fn populate(pages: u64, building: &Building<'_>) -> Result<Vec<Gfn>, BuildError> {
    let Building { domid, control, .. } = *building;
    let large: Vec<Pfn> = (0..pages / SUPERPAGE).map(|nth| Pfn(nth * SUPERPAGE)).collect();
    let mut p2m = Vec::with_capacity(pages as usize);
    if !large.is_empty() {
        for first in control.populate_pv(domid, SUPERPAGE_ORDER, &large)? {
            p2m.extend((first.0..first.0 + SUPERPAGE).map(Gfn));
        }
    }
    let rest: Vec<Pfn> = (p2m.len() as u64..pages).map(Pfn).collect();
    if !rest.is_empty() {
        p2m.extend(control.populate_pv(domid, 0, &rest)?);
    }
    if p2m.len() as u64 == pages { Ok(p2m) } else { Err(building.no_memory()) }
}

/// Fills kernel, start_info, rings, page tables, stack, initrd and p2m through one mapping.
fn load(
    plan: &PvPlan,
    payload: Payload<'_>,
    p2m: &[Gfn],
    chosen: &Chosen,
    building: &Building<'_>,
) -> Result<(), BuildError> {
    let frames = &p2m[plan.image.start as usize..plan.image.end as usize];
    let mut memory = GuestMemory::map_frames(building.foreign, building.domid, frames)?;
    let memory = memory.as_mut_slice();
    let start = plan.image.start << PAGE_SHIFT;
    let within = |range: Range<u64>| (range.start - start) as usize..(range.end - start) as usize;
    let of_frames = |frames: Range<u64>| within(frames.start << PAGE_SHIFT..frames.end << PAGE_SHIFT);

    let (kernel, path) = payload.kernel;
    let loaded = kernel.load_into(&mut memory[within(plan.kernel.clone())]);
    loaded.map_err(|source| BuildError::Kernel { path, source })?;

    for page in [plan.start_info, plan.store_ring, plan.console_ring, plan.stack] {
        memory[of_frames(page.0..page.0 + 1)].fill(0);
    }
    memory[of_frames(plan.page_table_frames.clone())].fill(0);
    memory[of_frames(plan.p2m.frames.clone())].fill(0);

    let bytes = start_info(plan, chosen);
    memory[of_frames(plan.start_info.0..plan.start_info.0 + 1)][..bytes.len()].copy_from_slice(&bytes);
    let list = &mut memory[of_frames(plan.p2m.frames.clone())];
    for (entry, frame) in list.as_chunks_mut::<{ size_of::<u64>() }>().0.iter_mut().zip(p2m) {
        *entry = frame.0.to_le_bytes();
    }
    plan.page_tables.write(
        |frame| p2m[frame as usize],
        |table, at, entry| memory[of_frames(table..table + 1)][at..at + entry.len()].copy_from_slice(&entry),
    );

    if let (Some(place), Some((mut initrd, path))) = (&plan.initrd, payload.initrd) {
        let whole = within(place.range.start..place.range.end.next_multiple_of(PAGE_SIZE as u64));
        let (bytes, rest) = memory[whole].split_at_mut((place.range.end - place.range.start) as usize);
        // Shorter than when the plan was made: an error, as everything else that keeps it from being read.
        initrd.read_exact(bytes).map_err(|source| BuildError::Initrd { path, source })?;
        rest.fill(0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::fixture::{INITRD, build_from, initrd};
    use crate::boot::{Built, Guest as GuestRequest, Placement, Plan, Request};
    use crate::image::Kernel;
    use crate::image::synthetic::{PV_ENTRY, PV_VIRT_BASE, SyntheticElf};
    use xen::mock::{Guest, Machine};
    use xen::{CreateDomain, DomId, ErrorKind, GuestKind, Platform};

    fn build_on(
        machine: &Machine,
        elf: &SyntheticElf,
        memory_kib: u64,
        max_memory_kib: u64,
    ) -> Result<(PvPlan, Built), BuildError> {
        let image = elf.build();
        let kernel = Kernel::open(&image).unwrap();
        let pv = kernel.pv().unwrap().unwrap();
        let plan = Plan::new(&Request {
            memory_kib,
            max_memory_kib,
            vcpus: 4,
            max_vcpus: 4,
            cmdline: "console=hvc0",
            kernel: kernel.footprint(),
            initrd: Some(INITRD.len() as u64),
            placement: Placement::default(),
            guest: GuestRequest::Pv(&pv),
        })
        .unwrap();
        let built = build_from(machine, &plan, kernel, &initrd())?;
        match plan {
            Plan::Pv(plan) => Ok((plan, built)),
            Plan::Pvh(plan) => panic!("{plan:?}"),
        }
    }

    fn word(guest: &Guest, address: u64) -> u64 {
        u64::from_le_bytes(guest.read(address, 8).try_into().unwrap())
    }

    /// Where a virtual address leads from the vCPU's page table on, as the processor goes, and whether it may be written.
    fn walk(guest: &Guest, address: u64) -> Option<(Pfn, bool)> {
        let mut frame = guest.frame(guest.start?.page_table)?;
        for shift in [39, 30, 21, 12] {
            let entry = word(guest, (frame.0 << PAGE_SHIFT) + (address >> shift & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            frame = guest.frame(Gfn((entry & ((1 << 52) - 1)) >> PAGE_SHIFT))?;
            if shift == 12 {
                return Some((frame, entry & 2 != 0));
            }
        }
        None
    }

    fn without(elf: SyntheticElf, kinds: &[u32]) -> SyntheticElf {
        // The notes of the synthetic kernel have a name of 4 bytes and a value of at most 20.
        let mut notes = Vec::new();
        let mut rest = &elf.notes[..];
        while !rest.is_empty() {
            let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            let len = 16 + number(4).next_multiple_of(4) as usize;
            if !kinds.contains(&number(8)) {
                notes.extend_from_slice(&rest[..len]);
            }
            rest = &rest[len..];
        }
        SyntheticElf { notes, ..elf }
    }

    fn check(elf: &SyntheticElf, memory_kib: u64) -> (PvPlan, Guest) {
        let machine = Machine::new();
        let (plan, built) = build_on(&machine, elf, memory_kib, memory_kib).unwrap();
        let guest = machine.guest(built.domid).unwrap();
        assert_eq!((guest.pages, guest.vcpus), (memory_kib >> 2, 4));
        assert!(guest.cpu_policy && !guest.running);

        let start = guest.start.unwrap();
        assert_eq!(start.entry, PV_ENTRY);
        let at = |address: u64| {
            let (frame, writable) = walk(&guest, address).unwrap();
            assert!(writable, "{address:#x}");
            (frame.0 << PAGE_SHIFT) + address % PAGE_SIZE as u64
        };
        // The kernel, where it was linked to be.
        for load in &elf.loads {
            for (nth, page) in load.data.chunks(PAGE_SIZE).enumerate() {
                let address = PV_VIRT_BASE + load.address + (nth * PAGE_SIZE) as u64;
                if Some(Pfn(at(address) >> PAGE_SHIFT)) != plan.hypercall_page {
                    assert_eq!(guest.read(at(address), page.len()), page);
                }
            }
        }
        let frame_of = |pfn: Pfn| guest.machine_frame(pfn).unwrap().0;

        // start_info, by its fields (xen/include/public/xen.h).
        let info = at(start.start_info);
        assert_eq!(guest.read(info, 32), *b"xen-3.0-x86_64\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        let field = |offset: u64| word(&guest, info + offset);
        assert_eq!(field(32), plan.pages);
        let shared_info = machine.domain(DomId::DOM0).domain_control().unwrap();
        let shared_info = shared_info.domain_info(built.domid).unwrap().shared_info;
        assert_eq!(field(40), shared_info.address());
        let by_frame = plan.initrd.as_ref().unwrap().by_frame;
        assert_eq!(field(48), 16 | u64::from(by_frame) << 3);
        assert_eq!((field(56), field(64)), (frame_of(plan.store_ring), built.store_port.0.into()));
        assert_eq!((field(72), field(80)), (frame_of(plan.console_ring), built.console_port.0.into()));
        assert_eq!((built.store_ring.0, built.console_ring.0), (field(56), field(72)));
        let (tables, count) = (field(88), field(96));
        let initrd = if by_frame { field(112) << PAGE_SHIFT } else { at(field(112)) };
        assert_eq!(guest.read(initrd, field(120) as usize), INITRD);
        assert_eq!(guest.read(info + 128, 13), b"console=hvc0\0");
        let apart = field(1_152)..field(1_152) + field(1_160);
        assert_eq!(!apart.is_empty(), plan.p2m.apart);

        // The tables: the root first, behind each other, none of them writable by any address.
        assert_eq!(walk(&guest, tables), guest.frame(start.page_table).map(|root| (root, false)));
        for nth in 0..count {
            let table = walk(&guest, tables + nth * PAGE_SIZE as u64).unwrap();
            assert_eq!(table, (Pfn(plan.page_table_frames.start + nth), false));
        }
        // 512 KiB are free behind the stack, and mapped.
        let free = start.stack + (512 << 10) - 1;
        assert_eq!(at(free), ((plan.stack.0 + 1) << PAGE_SHIFT) + (512 << 10) - 1);
        // The p2m names each frame.
        for pfn in (0..plan.pages).step_by(997).chain([plan.pages - 1]) {
            assert_eq!(word(&guest, at(field(104) + 8 * pfn)), frame_of(Pfn(pfn)), "{pfn:#x}");
        }
        // Upcalls are masked for all vCPUs that shared_info has room for, and nothing else is there.
        let shared = guest.read_shared_info(0, PAGE_SIZE);
        let set: Vec<usize> = (0..PAGE_SIZE).filter(|at| shared[*at] != 0).collect();
        assert_eq!(set, (0..32).map(|vcpu| vcpu * 64 + 1).collect::<Vec<_>>());
        // Entry 0 is the console's: permit access, domain 0, its frame.
        let entry = |frame: u64| [&[1, 0, 0, 0], &(frame as u32).to_le_bytes()[..]].concat();
        assert_eq!(guest.read_grant_table(0, 8), entry(field(72)));
        assert_eq!(guest.read_grant_table(8, 8), entry(field(56)));
        (plan, guest)
    }

    #[test]
    fn the_guest_finds_what_its_kernel_asks_for() {
        let (plan, guest) = check(&SyntheticElf::pv(), 512 << 10);
        assert!(plan.p2m.apart && plan.p2m.address == 0x80_0000_0000);
        // push rcx: Xen filled it.
        let page = plan.hypercall_page.unwrap();
        assert_eq!(guest.read(page.0 << PAGE_SHIFT, 4), [0x51, 0x41, 0x53, 0xb8]);
    }

    #[test]
    fn a_kernel_without_the_optional_notes_finds_all_beside_itself() {
        let (plan, _) = check(&without(SyntheticElf::pv(), &[2, 15, 16]), 512 << 10);
        assert!(!plan.p2m.apart && !plan.initrd.unwrap().by_frame && plan.hypercall_page.is_none());
    }

    #[test]
    fn memory_may_end_within_a_large_extent() {
        check(&SyntheticElf::pv(), (64 << 10) + 4 * 77);
    }

    #[test]
    fn a_512_mib_guest_takes_at_most_22_hypercalls() {
        let machine = Machine::new();
        build_on(&machine, &SyntheticElf::pv(), 512 << 10, 512 << 10).unwrap();
        let counts = machine.counts();
        assert!(counts.hypercalls <= 22, "{} hypercalls: {:?}", counts.hypercalls, counts.calls);
    }

    #[test]
    fn memory_does_not_change_the_number_of_hypercalls() {
        let count = |memory_kib| {
            let machine = Machine::with_memory(64 << 18);
            build_on(&machine, &SyntheticElf::pv(), memory_kib, memory_kib).unwrap();
            machine.counts().hypercalls
        };
        assert_eq!(count(128 << 10), count(8 << 20));
    }

    #[test]
    fn a_guest_may_start_with_less_than_its_most() {
        let machine = Machine::new();
        let (plan, built) = build_on(&machine, &SyntheticElf::pv(), 256 << 10, 512 << 10).unwrap();
        let guest = machine.guest(built.domid).unwrap();
        assert_eq!((guest.pages, plan.pages), (256 << 8, 256 << 8));
        assert_eq!(guest.memory_map[0].size, 512 << 20);
    }

    #[test]
    fn whichever_call_fails_nothing_is_left() {
        let elf = SyntheticElf::pv();
        // Not whole large extents, so that all calls are made.
        let memory = (64 << 10) + 4;
        let machine = Machine::new();
        build_on(&machine, &elf, memory, memory).unwrap();
        let calls: u64 = machine.counts().calls.values().sum();
        assert!(calls > 18);
        for nth in 0..calls {
            let machine = Machine::new();
            let _dom0 = machine.domain(DomId::DOM0);
            let before = machine.inventory();
            machine.fail(None, nth, ErrorKind::Other);
            let error = build_on(&machine, &elf, memory, memory).unwrap_err();
            assert!(matches!(error, BuildError::Xen(_)), "call {nth}: {error}");
            assert_eq!(machine.inventory(), before, "call {nth}: {error}");
        }
    }

    #[test]
    fn memory_that_the_host_has_not_is_an_error_before_anything_is_made() {
        let machine = Machine::with_memory(100 << 8);
        let error = build_on(&machine, &SyntheticElf::pv(), 512 << 10, 512 << 10).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not enough memory: the qube needs 512 MiB, and 100 MiB are free; shut a qube down or give this one less"
        );
        assert_eq!(machine.counts().of("xc_domain_create"), 0);
    }

    #[test]
    fn an_initrd_that_shrank_is_an_error_and_leaves_nothing() {
        let machine = Machine::new();
        let _dom0 = machine.domain(DomId::DOM0);
        let before = machine.inventory();
        let image = SyntheticElf::pv().build();
        let kernel = Kernel::open(&image).unwrap();
        let pv = kernel.pv().unwrap().unwrap();
        let plan = Plan::new(&Request {
            memory_kib: 64 << 10,
            max_memory_kib: 64 << 10,
            vcpus: 1,
            max_vcpus: 1,
            cmdline: "",
            kernel: kernel.footprint(),
            initrd: Some(INITRD.len() as u64 + 1),
            placement: Placement::default(),
            guest: GuestRequest::Pv(&pv),
        })
        .unwrap();
        let error = build_from(&machine, &plan, kernel, &initrd()).unwrap_err();
        assert!(matches!(error, BuildError::Initrd { .. }), "{error}");
        assert_eq!(machine.inventory(), before);
    }

    #[test]
    fn a_host_without_large_extents_gives_single_pages_and_says_when_it_has_none() {
        let machine = Machine::new();
        let dom0 = machine.domain(DomId::DOM0);
        let (control, foreign) = (dom0.domain_control().unwrap(), dom0.foreign_memory().unwrap());
        let create = CreateDomain::new(GuestKind::Pv, [0; 16], 1);
        let domid = control.create_domain(&create).unwrap();
        // Room for one large extent and a half.
        control.set_max_mem(domid, 768 << 2).unwrap();
        let building = Building::new(domid, (DomId::DOM0, DomId::DOM0), &*control, &*foreign);
        assert_eq!(populate(600, &building).unwrap().len(), 600);
        let domid = control.create_domain(&create).unwrap();
        control.set_max_mem(domid, 768 << 2).unwrap();
        let building = Building::new(domid, (DomId::DOM0, DomId::DOM0), &*control, &*foreign);
        assert!(matches!(populate(1_024, &building), Err(BuildError::Memory { .. })));
        assert_eq!(machine.guest(domid).unwrap().pages, 768);
    }
}
