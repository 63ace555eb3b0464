//! How a qube is born: the [`Plan`], which is a plain value and needs no Xen, and [`build`], which carries it out.
//!
//! What both kinds of guests have is here; what one kind alone has is in a folder of its own. PVH leans on hardware, and
//! leaves the guest to make its own page tables. A PV guest begins with page tables made of the machine's own frames,
//! which only Xen may write from then on.

mod build;
#[cfg(test)]
mod fixture;
mod guest_memory;
mod placement;
mod plan;
mod pv;
mod pvh;
mod restore;

pub use build::{BuildError, Built, Initrd, Limits, Payload, build};
pub use guest_memory::Loaded;
pub use placement::{Placement, Share, ShareScheduler};
pub use plan::{Guest, Plan, PlanError, PvhOptions, Request, Sizes};
pub use pv::{P2m, PageTables, PvInitrd, PvPlan};
pub use pvh::{ACPI_START, Extents, HIGH_MEMORY_START, PvhPlan, SPECIAL_PAGES, Segment, SpecialPage};
pub use restore::{Saved, restore};
