//! How a PVH qube is born: the [`Plan`], which is a plain value and needs no Xen, and [`build`](build::build), which
//! carries it out.
//!
//! The guest's view of what we leave in its memory is Xen's PVH boot ABI (docs/misc/pvh.pandoc,
//! xen/include/public/arch-x86/hvm/start_info.h).

mod acpi;
mod build;
mod guest_memory;
mod layout;
mod plan;
mod start_info;

pub use build::{BuildError, Built, Initrd, Limits, Payload, build};
pub use layout::{ACPI_START, HIGH_MEMORY_START, SPECIAL_PAGES, SpecialPage};
pub use plan::{Extents, Plan, PlanError, Request, Segment};
