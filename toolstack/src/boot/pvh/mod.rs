//! PVH guests: in hardware, without a device model.
//!
//! The guest's view of what we leave in its memory is Xen's PVH boot ABI (docs/misc/pvh.pandoc,
//! xen/include/public/arch-x86/hvm/start_info.h).

mod acpi;
mod build;
mod layout;
mod plan;
mod start_info;

pub(super) use build::build;
pub use layout::{ACPI_START, HIGH_MEMORY_START, SPECIAL_PAGES, SpecialPage};
pub(super) use plan::paging_mempool_bytes;
pub use plan::{Extents, PvhPlan, Segment};
