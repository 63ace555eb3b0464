//! Mappings of the mock's domains.

use super::Machine;
use crate::memory::Owner;
use crate::{Access, DomId, Error, ForeignMemory, Gfn, Mapping, Result};
use std::sync::Arc;

pub(super) struct Foreign(pub(super) Machine);

/// Domain memory goes with the domain and with the last mapping, whichever is later: nothing is to be released here.
struct Nothing;
impl Owner for Nothing {}

impl ForeignMemory for Foreign {
    fn map(&self, domid: DomId, gfns: &[Gfn], access: Access) -> Result<Mapping> {
        let args = || format!("domid {domid}, {} frames", gfns.len());
        self.0.enter("xenforeignmemory_map", args)?;
        let error = |errno| Error::errno("xenforeignmemory_map", args(), errno);
        let memory = {
            let state = self.0.0.state.lock();
            let domain = state.domains.get(&domid).ok_or_else(|| error(libc::ESRCH))?;
            if !gfns.iter().all(|gfn| domain.is_populated(*gfn)) {
                return Err(error(libc::EINVAL));
            }
            Arc::clone(domain.memory())
        };
        let frames: Vec<u64> = gfns.iter().map(|gfn| gfn.0).collect();
        memory.map(&frames, access, Box::new(Nothing))
    }

    fn map_grant_table(&self, domid: DomId, first: u64, frames: usize) -> Result<Mapping> {
        let args = || format!("domid {domid}, {frames} frames from {first}");
        self.0.enter("xenforeignmemory_map_resource", args)?;
        let table = {
            let state = self.0.0.state.lock();
            let domain = state.domains.get(&domid);
            let domain =
                domain.ok_or_else(|| Error::errno("xenforeignmemory_map_resource", args(), libc::ESRCH))?;
            Arc::clone(domain.grant_table())
        };
        let frames: Vec<u64> = (first..first.saturating_add(frames as u64)).collect();
        table.map(&frames, Access::ReadWrite, Box::new(Nothing))
    }
}
