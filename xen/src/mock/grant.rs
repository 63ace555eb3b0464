//! Grant tables that check what Xen checks.

use super::Domain;
use crate::memory::Owner;
use crate::{
    Access, DomId, Error, GrantMap, GrantRef, GrantShare, Mapping, PAGE_SIZE, Result, SharedPages,
    UnmapNotify,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The first reference that is not reserved (`GNTTAB_NR_RESERVED_ENTRIES`).
const FIRST_FREE: u32 = 8;

/// Status of a grant operation (`GNTST_*`, xen/include/public/grant_table.h) that is no success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// `GNTST_bad_gntref`: unknown or revoked.
    BadReference,
    /// `GNTST_permission_denied` in spirit: shared with somebody else, or read-only.
    Denied,
    /// `GNTST_bad_handle`: not mapped (any more).
    BadHandle,
    /// No frame or reference is left.
    Full,
}

impl Refusal {
    fn errno(self) -> i32 {
        match self {
            Self::BadReference | Self::BadHandle => libc::EINVAL,
            Self::Denied => libc::EACCES,
            Self::Full => libc::ENOSPC,
        }
    }
}

/// A mapping of one reference, to be unmapped once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Handle(u64);

#[derive(Debug)]
struct Entry {
    to: DomId,
    frame: u64,
    access: Access,
    /// The sharer took it back: no new mapping; the frame stays until the last one is gone.
    revoked: bool,
    mappings: u32,
}

/// The grant tables of all domains, and who mapped what.
#[derive(Debug)]
pub(super) struct Tables {
    entries: BTreeMap<(DomId, GrantRef), Entry>,
    mapped: BTreeMap<Handle, (DomId, GrantRef)>,
    next_handle: u64,
    free: Vec<u64>,
}

impl Tables {
    pub(super) fn new(frames: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            mapped: BTreeMap::new(),
            next_handle: 0,
            free: (0..frames).rev().collect(),
        }
    }

    pub(super) fn inventory(&self) -> Vec<String> {
        self.entries
            .iter()
            .map(|((domid, gref), entry)| {
                format!(
                    "grant {gref} of domain {domid} to {}, {:?}, {} mappings{}",
                    entry.to,
                    entry.access,
                    entry.mappings,
                    if entry.revoked { ", revoked" } else { "" }
                )
            })
            .collect()
    }

    /// A new reference of `from` for `to`, and its frame.
    fn share(
        &mut self,
        from: DomId,
        to: DomId,
        access: Access,
    ) -> std::result::Result<(GrantRef, u64), Refusal> {
        let gref = (FIRST_FREE..u32::MAX)
            .map(GrantRef)
            .find(|gref| !self.entries.contains_key(&(from, *gref)))
            .ok_or(Refusal::Full)?;
        let frame = self.free.pop().ok_or(Refusal::Full)?;
        self.entries.insert((from, gref), Entry { to, frame, access, revoked: false, mappings: 0 });
        Ok((gref, frame))
    }

    /// Takes a reference back. Returns the frame when nobody maps it any more.
    fn revoke(&mut self, from: DomId, gref: GrantRef) -> std::result::Result<Option<u64>, Refusal> {
        let entry = self.entries.get_mut(&(from, gref)).filter(|entry| !entry.revoked);
        entry.ok_or(Refusal::BadReference)?.revoked = true;
        Ok(self.free_unused(from, gref))
    }

    /// Maps a reference of `from` for `by`.
    fn map(
        &mut self,
        by: DomId,
        from: DomId,
        gref: GrantRef,
        access: Access,
    ) -> std::result::Result<(Handle, u64), Refusal> {
        let entry = self.entries.get_mut(&(from, gref)).filter(|entry| !entry.revoked);
        let entry = entry.ok_or(Refusal::BadReference)?;
        if entry.to != by || (access == Access::ReadWrite && entry.access == Access::ReadOnly) {
            return Err(Refusal::Denied);
        }
        entry.mappings += 1;
        let handle = Handle(self.next_handle);
        self.next_handle += 1;
        self.mapped.insert(handle, (from, gref));
        Ok((handle, entry.frame))
    }

    /// Unmaps. Returns the frame when it was revoked and this was the last mapping.
    fn unmap(&mut self, handle: Handle) -> std::result::Result<Option<u64>, Refusal> {
        let (from, gref) = self.mapped.remove(&handle).ok_or(Refusal::BadHandle)?;
        if let Some(entry) = self.entries.get_mut(&(from, gref)) {
            entry.mappings -= 1;
        }
        Ok(self.free_unused(from, gref))
    }

    fn free_unused(&mut self, from: DomId, gref: GrantRef) -> Option<u64> {
        let entry = self.entries.get(&(from, gref)).filter(|entry| entry.revoked && entry.mappings == 0)?;
        let frame = entry.frame;
        self.entries.remove(&(from, gref));
        self.free.push(frame);
        Some(frame)
    }
}

impl Domain {
    /// Runs what the kernel does when a page goes: the byte, then the event.
    fn unmap_notify(&self, frame: u64, notify: UnmapNotify) {
        if let Some(offset) = notify.clear_byte {
            self.machine.0.frames.clear_byte(frame, offset);
        }
        if let Some(port) = notify.event {
            self.machine.0.state.lock().events.notify(self.domid, port);
        }
    }

    fn discard(&self, frames: impl IntoIterator<Item = u64>) {
        frames.into_iter().for_each(|frame| self.machine.0.frames.discard(frame));
    }
}

/// Whether the byte to be cleared lies in the page.
fn valid(notify: UnmapNotify) -> bool {
    notify.clear_byte.is_none_or(|offset| usize::from(offset) < PAGE_SIZE)
}

pub(super) struct Share(pub(super) Domain);

/// Takes the references back when the mapping of the sharer goes.
struct Shared {
    domain: Domain,
    pages: Vec<(GrantRef, u64)>,
    notify: UnmapNotify,
}

impl Owner for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        for (_, frame) in &self.pages {
            self.domain.unmap_notify(*frame, self.notify);
        }
        let mut state = self.domain.machine.0.state.lock();
        let unused: Vec<u64> = self
            .pages
            .iter()
            .filter_map(|(gref, _)| state.grants.revoke(self.domain.domid, *gref).ok().flatten())
            .collect();
        self.domain.discard(unused);
    }
}

impl Share {
    fn share(
        &self,
        call: &'static str,
        domid: DomId,
        count: usize,
        access: Access,
        notify: UnmapNotify,
    ) -> Result<SharedPages> {
        let args = || format!("domid {domid}, {count} pages");
        self.0.machine.enter(call, args)?;
        if count == 0 || !valid(notify) {
            return Err(Error::errno(call, args(), libc::EINVAL));
        }
        let mut shared = Shared { domain: self.0.clone(), pages: Vec::new(), notify };
        for _ in 0..count {
            let page = self.0.machine.0.state.lock().grants.share(self.0.domid, domid, access);
            shared.pages.push(page.map_err(|refusal| {
                // What was shared so far was never seen by anybody: no notification is due.
                shared.notify = UnmapNotify::default();
                Error::errno(call, args(), refusal.errno())
            })?);
        }
        let (grefs, frames): (Vec<_>, Vec<_>) = shared.pages.iter().copied().unzip();
        let memory = self.0.machine.0.frames.map(&frames, Access::ReadWrite, Box::new(shared))?;
        Ok(SharedPages::new(grefs, memory))
    }
}

impl GrantShare for Share {
    fn share_pages(&self, domid: DomId, count: usize, access: Access) -> Result<SharedPages> {
        self.share("xengntshr_share_pages", domid, count, access, UnmapNotify::default())
    }
    fn share_page_notify(&self, domid: DomId, access: Access, notify: UnmapNotify) -> Result<SharedPages> {
        self.share("xengntshr_share_page_notify", domid, 1, access, notify)
    }
}

pub(super) struct Map(pub(super) Domain);

/// Unmaps the references when the mapping goes.
struct Mapped {
    domain: Domain,
    pages: Vec<(Handle, u64)>,
    notify: UnmapNotify,
}

impl Owner for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        for (_, frame) in &self.pages {
            self.domain.unmap_notify(*frame, self.notify);
        }
        let mut state = self.domain.machine.0.state.lock();
        let unused: Vec<u64> =
            self.pages.iter().filter_map(|(handle, _)| state.grants.unmap(*handle).ok().flatten()).collect();
        self.domain.discard(unused);
    }
}

impl GrantMap for Map {
    fn map(
        &self,
        domid: DomId,
        grefs: &[GrantRef],
        access: Access,
        notify: Option<UnmapNotify>,
    ) -> Result<Mapping> {
        let call = if notify.is_some() {
            "xengnttab_map_grant_ref_notify"
        } else {
            "xengnttab_map_domain_grant_refs"
        };
        let args = || format!("domid {domid}, {} grefs, {access:?}", grefs.len());
        self.0.machine.enter(call, args)?;
        if grefs.is_empty() || notify.is_some_and(|notify| grefs.len() != 1 || !valid(notify)) {
            return Err(Error::errno(call, args(), libc::EINVAL));
        }
        let mut mapped = Mapped { domain: self.0.clone(), pages: Vec::new(), notify: UnmapNotify::default() };
        for gref in grefs {
            let page = self.0.machine.0.state.lock().grants.map(self.0.domid, domid, *gref, access);
            mapped.pages.push(page.map_err(|refusal| Error::errno(call, args(), refusal.errno()))?);
        }
        mapped.notify = notify.unwrap_or_default();
        let frames: Vec<u64> = mapped.pages.iter().map(|(_, frame)| *frame).collect();
        let frames_file = Arc::clone(&self.0.machine.0.frames);
        frames_file.map(&frames, access, Box::new(mapped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::Machine;
    use crate::{ErrorKind, Platform};

    const ALICE: DomId = DomId(1);
    const BOB: DomId = DomId(2);

    fn tables() -> Tables {
        Tables::new(4)
    }

    #[test]
    fn only_the_named_domain_may_map() {
        let mut tables = tables();
        let (gref, _) = tables.share(ALICE, BOB, Access::ReadWrite).unwrap();
        assert_eq!(tables.map(DomId(3), ALICE, gref, Access::ReadOnly), Err(Refusal::Denied));
        assert!(tables.map(BOB, ALICE, gref, Access::ReadWrite).is_ok());
    }

    #[test]
    fn unknown_references_and_granters_are_refused() {
        let mut tables = tables();
        let (gref, _) = tables.share(ALICE, BOB, Access::ReadWrite).unwrap();
        assert_eq!(
            tables.map(BOB, ALICE, GrantRef(gref.0 + 1), Access::ReadOnly),
            Err(Refusal::BadReference)
        );
        assert_eq!(tables.map(BOB, DomId(3), gref, Access::ReadOnly), Err(Refusal::BadReference));
    }

    #[test]
    fn a_read_only_grant_cannot_be_mapped_for_writing() {
        let mut tables = tables();
        let (gref, _) = tables.share(ALICE, BOB, Access::ReadOnly).unwrap();
        assert_eq!(tables.map(BOB, ALICE, gref, Access::ReadWrite), Err(Refusal::Denied));
        assert!(tables.map(BOB, ALICE, gref, Access::ReadOnly).is_ok());
    }

    #[test]
    fn a_revoked_reference_cannot_be_mapped_and_lives_until_the_last_unmap() {
        let mut tables = tables();
        let (gref, frame) = tables.share(ALICE, BOB, Access::ReadWrite).unwrap();
        let (handle, _) = tables.map(BOB, ALICE, gref, Access::ReadWrite).unwrap();
        assert_eq!(tables.revoke(ALICE, gref), Ok(None));
        assert_eq!(tables.map(BOB, ALICE, gref, Access::ReadWrite), Err(Refusal::BadReference));
        assert_eq!(tables.revoke(ALICE, gref), Err(Refusal::BadReference));
        assert_eq!(tables.unmap(handle), Ok(Some(frame)));
        assert!(tables.inventory().is_empty());
    }

    #[test]
    fn unmapping_twice_is_refused() {
        let mut tables = tables();
        let (gref, _) = tables.share(ALICE, BOB, Access::ReadWrite).unwrap();
        let (handle, _) = tables.map(BOB, ALICE, gref, Access::ReadWrite).unwrap();
        assert_eq!(tables.unmap(handle), Ok(None));
        assert_eq!(tables.unmap(handle), Err(Refusal::BadHandle));
    }

    #[test]
    fn a_full_table_says_so() {
        let mut tables = tables();
        (0..4).for_each(|_| assert!(tables.share(ALICE, BOB, Access::ReadWrite).is_ok()));
        assert_eq!(tables.share(ALICE, BOB, Access::ReadWrite), Err(Refusal::Full));
    }

    #[test]
    fn a_shared_page_is_zeroed_even_when_its_frame_was_used_before() {
        let machine = Machine::new();
        let alice = machine.domain(ALICE).grant_share().unwrap();
        let first = alice.share_pages(BOB, 1, Access::ReadWrite).unwrap();
        first.memory().copy_from(0, &[1; PAGE_SIZE]);
        drop(first);
        let second = alice.share_pages(BOB, 1, Access::ReadWrite).unwrap();
        let mut bytes = [1; PAGE_SIZE];
        second.memory().copy_to(0, &mut bytes);
        assert_eq!(bytes, [0; PAGE_SIZE]);
    }

    #[test]
    fn going_away_clears_the_byte_and_sends_the_event() {
        let machine = Machine::new();
        let (alice, bob) = (machine.domain(ALICE), machine.domain(BOB));
        let before = machine.inventory();
        let (events, remote) = (alice.event_channels().unwrap(), bob.event_channels().unwrap());
        let port = events.bind_unbound(BOB).unwrap();
        let remote_port = remote.bind_interdomain(ALICE, port).unwrap();
        assert_eq!(remote.pending().unwrap(), remote_port, "a new binding is told to look once");
        remote.unmask(remote_port).unwrap();

        let notify = UnmapNotify { clear_byte: Some(21), event: Some(port) };
        let shared = alice.grant_share().unwrap().share_page_notify(BOB, Access::ReadWrite, notify).unwrap();
        shared.memory().copy_from(20, &[7, 7, 7]);
        let mapped = bob.grant_map().unwrap().map(ALICE, shared.grefs(), Access::ReadWrite, None).unwrap();
        drop(shared);
        let mut bytes = [0; 3];
        mapped.copy_to(20, &mut bytes);
        assert_eq!(bytes, [7, 0, 7]);
        assert_eq!(remote.pending().unwrap(), remote_port);
        drop((mapped, events, remote));
        assert_eq!(machine.inventory(), before);
    }

    #[test]
    fn mapping_a_revoked_page_through_the_handles_is_an_error() {
        let machine = Machine::new();
        let shared =
            machine.domain(ALICE).grant_share().unwrap().share_pages(BOB, 2, Access::ReadWrite).unwrap();
        let grefs = shared.grefs().to_vec();
        drop(shared);
        let error =
            machine.domain(BOB).grant_map().unwrap().map(ALICE, &grefs, Access::ReadWrite, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}
