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
        let (memory, frames, owner) = {
            let state = self.0.0.state.lock();
            let domain = state.domains.get(&domid).ok_or_else(|| error(libc::ESRCH))?;
            let frames: Option<Vec<u64>> = gfns.iter().map(|gfn| domain.frame(*gfn)).collect();
            let frames = frames.ok_or_else(|| error(libc::EINVAL))?;
            let owner: Box<dyn Owner> = match domain.pv() {
                Some(pv) if access == Access::ReadWrite => Box::new(pv.map_writable(&frames).map_err(error)?),
                _ => Box::new(Nothing),
            };
            (Arc::clone(domain.memory()), frames, owner)
        };
        memory.map(&frames, access, owner)
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
