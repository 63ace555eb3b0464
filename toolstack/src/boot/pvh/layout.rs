//! Where things are in a PVH guest's physical address space. The fixed places are those that libxl uses, so that tools
//! that know them (and people who read hypercall traces) find them.

use xen::Gfn;

/// The first address above 4 GiB.
pub const HIGH_MEMORY_START: u64 = 1 << 32;

/// The hole below 4 GiB that holds no memory but the ACPI tables, the local APIC and the special pages, in MiB, unless
/// more is asked for.
pub(super) const MMIO_HOLE_MIB: u64 = 64;

/// The ACPI tables begin here.
pub const ACPI_START: u64 = 0xfc00_0000;

/// The pages that Xen, xenstored and xenconsoled share with the guest: the last eight below this frame.
const SPECIAL_END: u64 = 0xf_f000;

/// A special page, by its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum SpecialPage {
    /// Ring for memory paging (vm_event).
    Paging = 0,
    /// Ring for memory access and introspection (vm_event).
    Monitor = 1,
    /// Ring for memory sharing (vm_event).
    Sharing = 2,
    /// The guest's connection to xenstored.
    Xenstore = 4,
    /// The page table of a vCPU that runs without paging on hardware without "unrestricted guest".
    IdentPt = 6,
    /// The guest's console.
    Console = 7,
}

/// The frames of all special pages. Those that stand for an HVM device model's rings (buffered I/O at 3, I/O at 5) stay
/// without memory: PVH has no device model.
pub const SPECIAL_PAGES: [SpecialPage; 6] = [
    SpecialPage::Paging,
    SpecialPage::Monitor,
    SpecialPage::Sharing,
    SpecialPage::Xenstore,
    SpecialPage::IdentPt,
    SpecialPage::Console,
];

/// How many frames are set aside for special pages.
const SPECIAL_COUNT: u64 = 8;

/// The address range that the memory map reserves for special pages.
pub(super) const SPECIAL_START: u64 = (SPECIAL_END - SPECIAL_COUNT) << xen::PAGE_SHIFT;
/// Its length.
pub(super) const SPECIAL_SIZE: u64 = SPECIAL_COUNT << xen::PAGE_SHIFT;

impl SpecialPage {
    /// Its frame.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn(SPECIAL_END - SPECIAL_COUNT + self as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_pages_are_where_libxl_puts_them() {
        // tests/golden/pvh.hypercalls.txt
        assert_eq!(SpecialPage::Paging.gfn(), Gfn(0xf_eff8));
        assert_eq!(SpecialPage::Xenstore.gfn(), Gfn(0xf_effc));
        assert_eq!(SpecialPage::IdentPt.gfn(), Gfn(0xf_effe));
        assert_eq!(SpecialPage::Console.gfn(), Gfn(0xf_efff));
        assert_eq!((SPECIAL_START, SPECIAL_SIZE), (0xfeff_8000, 0x8000));
    }
}
