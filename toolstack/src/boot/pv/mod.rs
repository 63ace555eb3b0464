//! PV guests: by hypercalls, without any hardware for it.
//!
//! The guest's view of what we leave in its memory is `start_info` and what is said above it in
//! xen/include/public/xen.h; the order of the parts is libxc's.

mod build;
mod host_map;
mod page_tables;
mod plan;
mod start_info;

pub(super) use build::build;
pub(super) use host_map::host_map;
pub use page_tables::PageTables;
pub use plan::{P2m, PvInitrd, PvPlan};
