//! What a PV domain of the mock has besides others: frames of the machine, page tables that Xen checks, and a page
//! shared with Xen.

use super::control::Domain;
use crate::memory::{Frames, Owner};
use crate::{Gfn, PAGE_SHIFT, PAGE_SIZE, PvStart};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// The machine's frames are handed out from here on downwards, so that they run against the guest's own numbering.
const FIRST_MACHINE_FRAME: u64 = 1 << 30;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
/// What an entry of a table may have: present, writable, user, two cache bits, accessed, dirty, the bit that is PAT in a
/// level-1 entry and "large page" elsewhere, global, three bits of the guest's own, and no-execute.
const FLAGS: u64 = 0xfff | 1 << 63;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = ((1 << 52) - 1) & !0xfff;
/// The entries of a level-4 table that are the hypervisor's (`ROOT_PAGETABLE_FIRST_XEN_SLOT` …).
const XEN_SLOTS: std::ops::RangeInclusive<usize> = 256..=271;

/// Bytes of an entry of the hypercall page.
const HYPERCALL_ENTRY: usize = 32;

/// The machine's frames that no domain had yet.
#[derive(Debug)]
pub(super) struct MachineFrames {
    end: u64,
}

impl Default for MachineFrames {
    fn default() -> Self {
        Self { end: FIRST_MACHINE_FRAME }
    }
}

impl MachineFrames {
    /// The first of `count` frames behind each other, aligned to their number.
    pub(super) fn take(&mut self, count: u64) -> u64 {
        self.end = (self.end - count) / count * count;
        self.end
    }
}

/// A PV domain's part of a [`Domain`].
#[derive(Debug)]
pub(super) struct Pv {
    /// Runs of the machine's frames: the first of each, to the domain's own first and their number.
    machine: BTreeMap<u64, (u64, u64)>,
    /// The frames of dom0's writable mappings, and in how many each is.
    mapped: Arc<Mutex<HashMap<u64, usize>>>,
    /// The frames of pinned page tables, by the domain's own number, and their levels.
    tables: HashMap<u64, u8>,
    pinned: Option<Gfn>,
    start: Option<PvStart>,
}

/// Counts a writable mapping for as long as it lives.
pub(super) struct WritableMapping {
    frames: Vec<u64>,
    mapped: Arc<Mutex<HashMap<u64, usize>>>,
}

impl Owner for WritableMapping {}

impl Drop for WritableMapping {
    fn drop(&mut self) {
        let mut mapped = self.mapped.lock();
        for frame in &self.frames {
            if let Some(count) = mapped.get_mut(frame) {
                *count -= 1;
                if *count == 0 {
                    mapped.remove(frame);
                }
            }
        }
    }
}

impl Pv {
    /// A domain with nothing but the page that it shares with Xen: frame `shared_info` of its own.
    pub(super) fn new(shared_info: u64, frames: &mut MachineFrames) -> (Self, Gfn) {
        let mut pv = Self {
            machine: BTreeMap::new(),
            mapped: Arc::default(),
            tables: HashMap::new(),
            pinned: None,
            start: None,
        };
        let frame = pv.add_run(shared_info, 1, frames);
        (pv, frame)
    }

    pub(super) fn add_run(&mut self, start: u64, len: u64, frames: &mut MachineFrames) -> Gfn {
        let first = frames.take(len);
        self.machine.insert(first, (start, len));
        Gfn(first)
    }

    /// The domain's own number of a frame of the machine.
    pub(super) fn frame(&self, gfn: Gfn) -> Option<u64> {
        let (first, (start, len)) = self.machine.range(..=gfn.0).next_back()?;
        (gfn.0 - first < *len).then(|| start + (gfn.0 - first))
    }

    /// All runs: the machine's first frame, the domain's own first, and their number.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.machine.iter().map(|(first, (start, len))| (*first, *start, *len))
    }

    pub(super) fn start(&self) -> Option<PvStart> {
        self.start
    }

    /// A writable mapping of the frames, unless one of them is a page table.
    pub(super) fn map_writable(&self, frames: &[u64]) -> Result<WritableMapping, i32> {
        if frames.iter().any(|frame| self.tables.contains_key(frame)) {
            return Err(libc::EINVAL);
        }
        let mut mapped = self.mapped.lock();
        for frame in frames {
            *mapped.entry(*frame).or_default() += 1;
        }
        Ok(WritableMapping { frames: frames.to_vec(), mapped: Arc::clone(&self.mapped) })
    }

    /// Fills a page with hypercall entries, as Xen does for ring-3 kernels: save rcx and r11, which `syscall` overwrites,
    /// and come back.
    pub(super) fn init_hypercall_page(&self, page: Gfn, memory: &Frames) -> Result<(), i32> {
        let frame = self.frame(page).filter(|frame| !self.tables.contains_key(frame)).ok_or(libc::EINVAL)?;
        let mut bytes = [0xcc; PAGE_SIZE];
        for (number, entry) in bytes.chunks_exact_mut(HYPERCALL_ENTRY).enumerate() {
            let number = (number as u32).to_le_bytes();
            let code =
                [&[0x51, 0x41, 0x53, 0xb8], &number[..], &[0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3]].concat();
            entry[..code.len()].copy_from_slice(&code);
        }
        memory.write(frame, &bytes).map_err(|_| libc::EFAULT)
    }

    /// Checks the tables that `level4` leads to as Xen does, and keeps them.
    pub(super) fn pin(&mut self, level4: Gfn, memory: &Frames) -> Result<(), i32> {
        let mut check = Check { pv: self, memory, tables: HashMap::new(), writable: HashSet::new() };
        check.table(level4, 4)?;
        let Check { tables, writable, .. } = check;
        let mapped = self.mapped.lock();
        // A page is a page table or writable, by whomever, and never both.
        if tables.keys().any(|frame| writable.contains(frame) || mapped.contains_key(frame)) {
            return Err(libc::EINVAL);
        }
        drop(mapped);
        self.tables = tables;
        self.pinned = Some(level4);
        Ok(())
    }

    pub(super) fn set_start(&mut self, start: &PvStart) -> Result<(), i32> {
        // Xen takes any level-4 table; a builder has one, and has pinned it.
        if self.pinned != Some(start.page_table) {
            return Err(libc::EINVAL);
        }
        self.start = Some(*start);
        Ok(())
    }
}

struct Check<'a> {
    pv: &'a Pv,
    memory: &'a Frames,
    tables: HashMap<u64, u8>,
    writable: HashSet<u64>,
}

impl Check<'_> {
    fn table(&mut self, gfn: Gfn, level: u8) -> Result<(), i32> {
        let frame = self.pv.frame(gfn).ok_or(libc::EINVAL)?;
        match self.tables.insert(frame, level) {
            Some(other) if other != level => return Err(libc::EINVAL),
            Some(_) => return Ok(()),
            None => {}
        }
        let page = self.memory.read(frame << PAGE_SHIFT, PAGE_SIZE);
        for (slot, entry) in page.as_chunks().0.iter().enumerate() {
            let entry = u64::from_le_bytes(*entry);
            if entry & PRESENT == 0 {
                continue;
            }
            let large = level > 1 && entry & LARGE != 0;
            if entry & !(FRAME | FLAGS) != 0 || large || level == 4 && XEN_SLOTS.contains(&slot) {
                return Err(libc::EINVAL);
            }
            let gfn = Gfn((entry & FRAME) >> PAGE_SHIFT);
            if level > 1 {
                self.table(gfn, level - 1)?;
                continue;
            }
            let target = self.pv.frame(gfn).ok_or(libc::EINVAL)?;
            if entry & WRITABLE != 0 {
                self.writable.insert(target);
            }
        }
        Ok(())
    }
}

impl Domain {
    /// The frame of the domain's memory that `gfn` names, where there is one.
    pub(super) fn frame(&self, gfn: Gfn) -> Option<u64> {
        match &self.pv {
            Some(pv) => pv.frame(gfn),
            None => self.is_populated(gfn).then_some(gfn.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::mock::Machine;
    use crate::{
        Access, CreateDomain, DomId, DomainControl, ErrorKind, ForeignMemory, Gfn, GuestKind, HvmParam,
        Mapping, Pfn, Platform, Populate, PvStart, Result,
    };
    use std::sync::Arc;

    struct Built {
        machine: Machine,
        control: Arc<dyn DomainControl>,
        foreign: Arc<dyn ForeignMemory>,
        domid: DomId,
        /// Of the domain's first pages.
        frames: Vec<Gfn>,
    }

    fn domain(pages: u64) -> Built {
        let machine = Machine::new();
        let dom0 = machine.domain(DomId::DOM0);
        let (control, foreign) = (dom0.domain_control().unwrap(), dom0.foreign_memory().unwrap());
        let create = CreateDomain::new(GuestKind::Pv, [7; 16], 1);
        let domid = control.create_domain(&create).unwrap();
        control.set_max_vcpus(domid, 1).unwrap();
        control.set_max_mem(domid, pages << 2).unwrap();
        let pfns: Vec<Pfn> = (0..pages).map(Pfn).collect();
        let frames = control.populate_pv(domid, 0, &pfns).unwrap();
        Built { machine, control, foreign, domid, frames }
    }

    impl Built {
        fn map(&self, pfn: usize) -> Mapping {
            self.foreign.map(self.domid, &[self.frames[pfn]], Access::ReadWrite).unwrap()
        }

        fn entry(&self, table: usize, slot: usize, value: u64) {
            self.map(table).copy_from(slot * 8, &value.to_le_bytes());
        }

        /// Pages 0 to 3 are tables of levels 4 to 1, which map page 4 and, without writing, the tables.
        fn tables(&self) {
            for table in 0..3 {
                self.entry(table, 0, self.frames[table + 1].address() | 0x67);
            }
            for page in 0..4 {
                self.entry(3, page, self.frames[page].address() | 0x21);
            }
            self.entry(3, 4, self.frames[4].address() | 0x23);
        }

        fn pin(&self) -> Option<ErrorKind> {
            kind(self.control.pin_page_tables(self.domid, self.frames[0]))
        }
    }

    fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    #[test]
    fn good_page_tables_are_pinned_and_are_nobodys_to_write_from_then_on() {
        let built = domain(8);
        built.tables();
        assert_eq!(built.pin(), None);
        let map = |pfn: usize, access| kind(built.foreign.map(built.domid, &[built.frames[pfn]], access));
        assert_eq!(map(0, Access::ReadWrite), Some(ErrorKind::Invalid));
        assert_eq!(map(0, Access::ReadOnly), None);
        assert_eq!(map(4, Access::ReadWrite), None);
        let start = PvStart { entry: 0, stack: 0, start_info: 0, page_table: built.frames[0] };
        built.control.set_pv_start(built.domid, &start).unwrap();
        assert_eq!(built.machine.guest(built.domid).unwrap().start, Some(start));
        let other = PvStart { page_table: built.frames[4], ..start };
        assert_eq!(kind(built.control.set_pv_start(built.domid, &other)), Some(ErrorKind::Invalid));
    }

    #[test]
    fn bad_page_tables_are_not_pinned() {
        type Spoil = fn(&Built);
        let spoil: [(&str, Spoil); 8] = [
            ("a table mapped for writing", |built| built.entry(3, 7, built.frames[2].address() | 0x23)),
            ("a frame of nobody", |built| built.entry(3, 7, 0x1234_5000 | 0x21)),
            ("a table of two levels", |built| built.entry(1, 7, built.frames[3].address() | 0x67)),
            ("a loop", |built| built.entry(2, 7, built.frames[2].address() | 0x67)),
            ("a large page", |built| built.entry(2, 7, built.frames[4].address() | 0xe7)),
            ("a slot of the hypervisor's", |built| built.entry(0, 260, built.frames[1].address() | 0x67)),
            ("an address beyond all", |built| built.entry(3, 7, 1 << 60 | built.frames[4].address() | 1)),
            ("a data page as a table", |built| {
                built.entry(4, 0, 0x1234_5001);
                built.entry(2, 7, built.frames[4].address() | 0x67);
            }),
        ];
        for (what, spoil) in spoil {
            let built = domain(8);
            built.tables();
            spoil(&built);
            assert_eq!(built.pin(), Some(ErrorKind::Invalid), "{what}");
        }
    }

    #[test]
    fn a_table_that_dom0_still_has_mapped_is_not_pinned() {
        let built = domain(8);
        built.tables();
        let mapping = built.map(2);
        assert_eq!(built.pin(), Some(ErrorKind::Invalid));
        drop(mapping);
        assert_eq!(built.pin(), None);
    }

    #[test]
    fn frames_are_the_machines_and_lead_to_the_guests_pages() {
        let built = domain(600);
        assert!(built.frames.is_sorted_by(|a, b| a > b), "against the guest's numbering");
        built.map(3).copy_from(0, b"three");
        let guest = built.machine.guest(built.domid).unwrap();
        assert_eq!(guest.read(3 << 12, 5), b"three");
        assert_eq!(guest.frame(built.frames[3]), Some(Pfn(3)));
        assert_eq!(guest.machine_frame(Pfn(3)), Some(built.frames[3]));
        assert_eq!(guest.frame(Gfn(3)), None);
        assert_eq!(
            kind(built.foreign.map(built.domid, &[Gfn(3)], Access::ReadOnly)),
            Some(ErrorKind::Invalid)
        );
        built.control.set_max_mem(built.domid, 2_048 << 2).unwrap();
        let large = built.control.populate_pv(built.domid, 9, &[Pfn(1_024)]).unwrap();
        assert_eq!(built.machine.guest(built.domid).unwrap().frame(Gfn(large[0].0 + 511)), Some(Pfn(1_535)));
    }

    #[test]
    fn the_hypercall_page_is_xens_to_fill() {
        let built = domain(8);
        built.control.init_hypercall_page(built.domid, built.frames[5]).unwrap();
        let guest = built.machine.guest(built.domid).unwrap();
        // Entry 1: push rcx, push r11, mov $1, eax, syscall …
        assert_eq!(guest.read((5 << 12) + 32, 10), [0x51, 0x41, 0x53, 0xb8, 1, 0, 0, 0, 0x0f, 0x05]);
        let outside = built.control.init_hypercall_page(built.domid, Gfn(1));
        assert_eq!(kind(outside), Some(ErrorKind::Invalid));
    }

    #[test]
    fn each_kind_of_guest_has_calls_that_the_other_has_not() {
        let built = domain(8);
        let (control, domid) = (&built.control, built.domid);
        assert!(!control.domain_info(domid).unwrap().hvm);
        assert!(control.set_hvm_param(domid, HvmParam::StorePfn, 1).is_err());
        assert!(control.set_paging_mempool_size(domid, 1 << 20).is_err());
        assert!(control.hvm_context(domid).is_err());
        assert!(control.populate_physmap(domid, 0, &[Gfn(9)], Populate::Now).is_err());
        let create = CreateDomain::new(GuestKind::Pvh, [8; 16], 1);
        let pvh = control.create_domain(&create).unwrap();
        assert!(control.populate_pv(pvh, 0, &[Pfn(0)]).is_err());
        assert!(control.pin_page_tables(pvh, Gfn(0)).is_err());
        assert!(control.init_hypercall_page(pvh, Gfn(0)).is_err());
    }
}
