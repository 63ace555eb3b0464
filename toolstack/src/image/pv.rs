//! What a kernel says of itself as a PV guest: where it begins and how it wants its memory mapped.

use super::elf::Elf;
use super::notes::{FEATURE_DOM0, XenNotes};
use super::{ImageError, Result};
use xen::PAGE_SIZE;

/// A kernel that can be a PV guest, by its notes. Addresses are virtual: a PV guest begins with its page tables on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PvKernel {
    /// The first instruction.
    pub entry: u64,
    /// The address of the guest's first frame.
    pub virt_base: u64,
    /// What is to be subtracted from the segments' physical addresses; 0 in Linux.
    pub paddr_offset: u64,
    /// The page that Xen fills with hypercall entries. Newer kernels have none: they make their own.
    pub hypercall_page: Option<u64>,
    /// Where the kernel wants the list of its frames (p2m) mapped; `None` for beside all else.
    pub init_p2m: Option<u64>,
    /// The kernel finds an initrd by its frame, which need not be mapped.
    pub initrd_by_frame: bool,
}

impl PvKernel {
    pub(super) fn new(elf: &Elf, notes: &XenNotes) -> Result<Self> {
        if notes.requires(FEATURE_DOM0) {
            return Err(ImageError::Dom0Only);
        }
        let entry = notes.entry.ok_or(ImageError::NotPv)?;
        if !elf.is_64_bit() {
            return Err(ImageError::Pv32Bit);
        }
        // libelf's defaults. An offset without a base has no meaning.
        if notes.paddr_offset.is_some() && notes.virt_base.is_none() {
            return Err(ImageError::PvNote { note: "PADDR_OFFSET", value: notes.paddr_offset.unwrap_or(0) });
        }
        let virt_base = notes.virt_base.unwrap_or(0);
        let paddr_offset = notes.paddr_offset.unwrap_or(0);
        let page = PAGE_SIZE as u64;
        for (note, value) in [("VIRT_BASE", virt_base), ("PADDR_OFFSET", paddr_offset)] {
            if !value.is_multiple_of(page) {
                return Err(ImageError::PvNote { note, value });
            }
        }
        if paddr_offset > elf.memory().start {
            return Err(ImageError::PvNote { note: "PADDR_OFFSET", value: paddr_offset });
        }
        let physical =
            |address: u64| address.checked_sub(virt_base).and_then(|at| at.checked_add(paddr_offset));
        let in_segment = |address: u64| {
            physical(address).is_some_and(|at| elf.segments.iter().any(|s| s.memory.contains(&at)))
        };
        if !in_segment(entry) {
            return Err(ImageError::PvNote { note: "ENTRY", value: entry });
        }
        if let Some(value) = notes.hypercall_page
            && !(value.is_multiple_of(page) && in_segment(value))
        {
            return Err(ImageError::PvNote { note: "HYPERCALL_PAGE", value });
        }
        // As libxc: one that cannot be had is passed over, and the kernel finds the list where start_info says.
        let init_p2m = notes.init_p2m.filter(|at| *at < virt_base && at.is_multiple_of(page));
        Ok(Self {
            entry,
            virt_base,
            paddr_offset,
            hypercall_page: notes.hypercall_page,
            init_p2m,
            initrd_by_frame: notes.mod_start_pfn,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Kernel;
    use crate::image::synthetic::{Class, PV_ENTRY, PV_VIRT_BASE, SyntheticElf, xen_note};

    fn kernel(elf: &SyntheticElf) -> Result<PvKernel> {
        // What no kind of guest can start is not even opened; a plain file's notes are known then.
        Kernel::open(&elf.build())?.pv().unwrap()
    }

    fn with_note(kind: u32, value: u64) -> SyntheticElf {
        let mut elf = SyntheticElf::pv();
        elf.notes.extend(xen_note(kind, &value.to_le_bytes()));
        elf
    }

    #[test]
    fn a_linux_kernel_says_where_it_wants_its_memory() {
        let expected = PvKernel {
            entry: PV_ENTRY,
            virt_base: PV_VIRT_BASE,
            paddr_offset: 0,
            hypercall_page: Some(PV_VIRT_BASE + 0x10_1000),
            init_p2m: Some(0x80_0000_0000),
            initrd_by_frame: true,
        };
        assert_eq!(kernel(&SyntheticElf::pv()).unwrap(), expected);
    }

    #[test]
    fn a_kernel_that_cannot_be_a_pv_guest_says_why() {
        assert!(matches!(kernel(&SyntheticElf::pvh()), Err(ImageError::NotPv)));
        let narrow = SyntheticElf { class: Class::Elf32, ..SyntheticElf::pv() };
        assert!(matches!(kernel(&narrow), Err(ImageError::Pv32Bit)));
        let mut dom0 = SyntheticElf::pv();
        dom0.notes.extend(xen_note(10, b"!dom0\0"));
        assert!(matches!(kernel(&dom0), Err(ImageError::Dom0Only)));
    }

    #[test]
    fn notes_that_lead_out_of_the_kernel_are_errors() {
        for (kind, value) in [
            (1, PV_VIRT_BASE),
            (1, 0),
            (2, PV_VIRT_BASE + 0x10_1008),
            (2, 0x1000),
            (3, PV_VIRT_BASE + 8),
            (4, 0x10_1000),
            (4, 8),
        ] {
            let error = kernel(&with_note(kind, value)).unwrap_err();
            assert!(matches!(error, ImageError::PvNote { .. }), "{kind} {value:#x}: {error}");
        }
    }

    #[test]
    fn a_place_for_the_p2m_that_cannot_be_had_is_passed_over() {
        for place in [PV_VIRT_BASE, u64::MAX, 0x80_0000_0008] {
            assert_eq!(kernel(&with_note(15, place)).unwrap().init_p2m, None);
        }
    }
}
