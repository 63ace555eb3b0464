//! Mappings of another domain's memory, for the domain that builds it.

use crate::{Access, DomId, Gfn, Mapping, Result};

/// Maps memory of other domains by frame number, without their consent: dom0's privilege.
pub trait ForeignMemory: Send + Sync {
    /// Maps `gfns` (at least 1) of `domid`, contiguously and in that order. All or nothing.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) when the domain is unknown, [`Invalid`](crate::ErrorKind::Invalid)
    /// when a frame is not populated.
    fn map(&self, domid: DomId, gfns: &[Gfn], access: Access) -> Result<Mapping>;
    /// Maps `frames` frames of the domain's shared grant table from `first` on, read-write
    /// (`XENMEM_resource_grant_table`).
    fn map_grant_table(&self, domid: DomId, first: u64, frames: usize) -> Result<Mapping>;
}
