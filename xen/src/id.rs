//! The numbers that Xen names things by, each a type of its own.

use std::fmt;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page of x86 and of the Xen ABI.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// A domain id, 0 to 32,751 for real domains (`domid_t`, xen/include/public/xen.h).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomId(pub u16);

impl DomId {
    /// The first id that no domain can have (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: u16 = 0x7ff0;
    /// Who has what nobody may reach: memory for devices, and devices in quarantine (`DOMID_IO`).
    pub const IO: Self = Self(0x7ff1);
    /// The control domain.
    pub const DOM0: Self = Self(0);
}

/// A grant reference: an index into the granting domain's grant table (`grant_ref_t`). 0 and 1 are the console's and
/// xenstore's (`GNTTAB_RESERVED_CONSOLE`, `GNTTAB_RESERVED_XENSTORE`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GrantRef(pub u32);

/// An event-channel port of one domain (`evtchn_port_t`). 0 is never a valid port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Port(pub u32);

/// A guest frame number: what names a page of a domain to Xen and to others. Of a PVH guest, a guest-physical address
/// divided by [`PAGE_SIZE`]; of a PV guest, a frame of the machine (MFN), which Xen chose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Gfn(pub u64);

impl Gfn {
    /// The guest-physical address of the frame's first byte.
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 << PAGE_SHIFT
    }
}

/// A frame of a PV guest's own numbering, which begins at 0 and has no holes ("pseudo-physical"). Its list from these to
/// [`Gfn`]s is the p2m. (A PVH guest has no such second numbering.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pfn(pub u64);

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for GrantRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}
