//! The grant table: who may map whose pages, and what is to be done when a page is unmapped.
//!
//! What one call shares is one memory file. The kernel counts its mappings, so the pages live as long as the last of
//! them, whoever unmapped or revoked first, and are free when it is gone.

use super::ConnectionId;
use super::ports::PortKey;
use crate::wire::{DOMID_FIRST_RESERVED, Domid, Gref, PAGE_SIZE, Run};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create, open};
use rustix::io::{Errno, pwrite};
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::rc::Rc;

/// References that Xen keeps for itself (`GNTTAB_NR_RESERVED_ENTRIES`, xen/grant_table.h): 0 is none of ours.
const FIRST_GREF: Gref = 8;

/// Pages of one sharing call: zeroed, and given back to the kernel with the last mapping.
#[derive(Debug)]
struct Memory {
    writable: OwnedFd,
    /// A description of its own: what is mapped through it cannot be made writable by mprotect(2) either.
    readonly: OwnedFd,
}

impl Memory {
    fn new(pages: u32) -> Result<Self, Errno> {
        let writable = memfd_create("xensim-grant", MemfdFlags::CLOEXEC)?;
        ftruncate(&writable, u64::from(pages) * PAGE_SIZE as u64)?;
        let again = format!("/proc/self/fd/{}", writable.as_raw_fd());
        let readonly = open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { writable, readonly })
    }
}

/// What is left to do when a page goes.
#[derive(Debug, Default)]
pub(super) struct OnUnmap {
    /// Offset in the page of the byte to be zeroed.
    pub(super) clear_byte: Option<u32>,
    /// The port to send an event through; whoever fires this gives up its hold of the port.
    pub(super) event: Option<PortKey>,
}

#[derive(Debug)]
struct Entry {
    grantee: Domid,
    writable: bool,
    memory: Rc<Memory>,
    page: u32,
}

/// What one `share` or `map` made.
#[derive(Debug)]
struct Held {
    by: ConnectionId,
    /// Empty for a mapping.
    granted: Vec<(Domid, Gref)>,
    /// The notified page: its file and its number there.
    notified: Option<(Rc<Memory>, u32)>,
    on_unmap: OnUnmap,
}

#[derive(Debug, Default)]
struct Granter {
    next: Gref,
    pages: u32,
}

/// All grants of a host.
#[derive(Debug)]
pub(super) struct GrantTable {
    /// Pages that one domain may have granted at a time: gntalloc's module parameter `limit`.
    limit: u32,
    granters: HashMap<Domid, Granter>,
    entries: HashMap<(Domid, Gref), Entry>,
    held: HashMap<u64, Held>,
    next_id: u64,
}

/// The answer to `share`.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: u64,
    pub(super) first: Gref,
}

/// The answer to `map`.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) id: u64,
    pub(super) runs: Vec<Run>,
    files: Vec<Rc<Memory>>,
    writable: bool,
}

impl Mapped {
    /// The files that the runs count in.
    pub(super) fn files(&self) -> Vec<BorrowedFd<'_>> {
        let files = self.files.iter();
        files.map(|file| if self.writable { file.writable.as_fd() } else { file.readonly.as_fd() }).collect()
    }
}

impl GrantTable {
    pub(super) fn new(limit: u32) -> Self {
        Self { limit, granters: HashMap::new(), entries: HashMap::new(), held: HashMap::new(), next_id: 1 }
    }

    fn hold(&mut self, held: Held) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.held.insert(id, held);
        id
    }

    /// Grants `count` zeroed pages of `granter` to `grantee`. A notification goes with the first page.
    ///
    /// # Errors
    /// `INVAL` for no page or no domain; `NOSPC` when the domain's limit does not allow it.
    pub(super) fn share(
        &mut self,
        by: ConnectionId,
        granter: Domid,
        grantee: Domid,
        count: u32,
        writable: bool,
        on_unmap: OnUnmap,
    ) -> Result<Shared, Errno> {
        if count == 0 || grantee >= DOMID_FIRST_RESERVED {
            return Err(Errno::INVAL);
        }
        let domain = self.granters.entry(granter).or_insert(Granter { next: FIRST_GREF, pages: 0 });
        if domain.pages.checked_add(count).is_none_or(|pages| pages > self.limit) {
            return Err(Errno::NOSPC);
        }
        // References are not used again: a stale one is unknown for ever, and a test that uses one fails every time.
        let first = domain.next;
        let next = first.checked_add(count).ok_or(Errno::NOSPC)?;
        let memory = Rc::new(Memory::new(count)?);
        domain.next = next;
        domain.pages += count;
        let granted: Vec<_> = (first..next).map(|gref| (granter, gref)).collect();
        for (page, key) in (0..).zip(&granted) {
            self.entries.insert(*key, Entry { grantee, writable, memory: Rc::clone(&memory), page });
        }
        let id = self.hold(Held { by, granted, notified: Some((memory, 0)), on_unmap });
        Ok(Shared { id, first })
    }

    /// The memory of what was shared just now.
    pub(super) fn memory(&self, shared: &Shared) -> Option<BorrowedFd<'_>> {
        let (memory, _) = self.held.get(&shared.id)?.notified.as_ref()?;
        Some(memory.writable.as_fd())
    }

    /// Maps pages that were granted to `grantee`. A notification goes with the first page.
    ///
    /// # Errors
    /// `INVAL`, as from the kernel whatever Xen's complaint is: no such reference, not granted to this domain, granted
    /// for reading alone, or no reference at all.
    pub(super) fn map(
        &mut self,
        by: ConnectionId,
        grantee: Domid,
        refs: &[(Domid, Gref)],
        writable: bool,
        on_unmap: OnUnmap,
    ) -> Result<Mapped, Errno> {
        let mut files: Vec<Rc<Memory>> = Vec::new();
        let mut runs: Vec<Run> = Vec::new();
        for key in refs {
            let entry = self.entries.get(key).ok_or(Errno::INVAL)?;
            if entry.grantee != grantee || (writable && !entry.writable) {
                return Err(Errno::INVAL);
            }
            let known = files.iter().position(|file| Rc::ptr_eq(file, &entry.memory));
            let file = known.unwrap_or_else(|| {
                files.push(Rc::clone(&entry.memory));
                files.len() - 1
            }) as u32;
            match runs.last_mut() {
                Some(run) if run.file == file && run.page + run.count == entry.page => run.count += 1,
                _ => runs.push(Run { file, page: entry.page, count: 1 }),
            }
        }
        let notified = files.first().zip(runs.first()).map(|(file, run)| (Rc::clone(file), run.page));
        if notified.is_none() {
            return Err(Errno::INVAL);
        }
        let id = self.hold(Held { by, granted: Vec::new(), notified, on_unmap });
        Ok(Mapped { id, runs, files, writable })
    }

    /// Undoes a `share` or a `map`: clears the byte, and returns the port to send the event through.
    ///
    /// # Errors
    /// `INVAL`: this handle holds no such thing.
    pub(super) fn release(&mut self, by: ConnectionId, id: u64) -> Result<Option<PortKey>, Errno> {
        if self.held.get(&id).is_none_or(|held| held.by != by) {
            return Err(Errno::INVAL);
        }
        let Some(held) = self.held.remove(&id) else { return Err(Errno::INVAL) };
        for key in &held.granted {
            self.entries.remove(key);
            if let Some(granter) = self.granters.get_mut(&key.0) {
                granter.pages -= 1;
            }
        }
        if let Some((memory, page)) = &held.notified
            && let Some(offset) = held.on_unmap.clear_byte
        {
            let offset = u64::from(*page) * PAGE_SIZE as u64 + u64::from(offset);
            pwrite(&memory.writable, &[0], offset)?;
        }
        Ok(held.on_unmap.event)
    }

    /// Undoes all that was done through a handle; in the order in which it was done, as the kernel walks its list.
    pub(super) fn release_all(&mut self, by: ConnectionId) -> Vec<PortKey> {
        let mut ids: Vec<u64> =
            self.held.iter().filter(|(_, held)| held.by == by).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| self.release(by, id).ok().flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::pread;

    const SERVER: ConnectionId = 1;
    const CLIENT: ConnectionId = 2;

    fn share(table: &mut GrantTable, count: u32, writable: bool) -> Shared {
        table.share(SERVER, 1, 2, count, writable, OnUnmap::default()).unwrap()
    }

    fn map(table: &mut GrantTable, grantee: Domid, gref: Gref, writable: bool) -> Result<Mapped, Errno> {
        table.map(CLIENT, grantee, &[(1, gref)], writable, OnUnmap::default())
    }

    #[test]
    fn only_the_named_domain_maps_and_only_as_it_was_granted() {
        let mut table = GrantTable::new(16);
        let shared = share(&mut table, 1, false);
        assert!(shared.first > 0, "0 is no reference");
        assert!(map(&mut table, 2, shared.first, false).is_ok());
        assert_eq!(map(&mut table, 2, shared.first, true).unwrap_err(), Errno::INVAL, "granted for reading");
        assert_eq!(map(&mut table, 3, shared.first, false).unwrap_err(), Errno::INVAL, "granted to domain 2");
        assert_eq!(map(&mut table, 2, shared.first + 1, false).unwrap_err(), Errno::INVAL, "unknown");
        let of_another = table.map(CLIENT, 2, &[(7, shared.first)], false, OnUnmap::default());
        assert_eq!(of_another.unwrap_err(), Errno::INVAL, "references are per granting domain");
    }

    #[test]
    fn a_revoked_reference_is_unknown_and_is_not_used_again() {
        let mut table = GrantTable::new(16);
        let shared = share(&mut table, 2, true);
        assert_eq!(table.release(CLIENT, shared.id), Err(Errno::INVAL), "not what that handle shared");
        table.release(SERVER, shared.id).unwrap();
        assert_eq!(table.release(SERVER, shared.id), Err(Errno::INVAL), "twice");
        assert_eq!(map(&mut table, 2, shared.first, false).unwrap_err(), Errno::INVAL);
        assert!(share(&mut table, 2, true).first >= shared.first + 2);
    }

    #[test]
    fn pages_are_zeroed_and_the_same_on_both_sides() {
        let mut table = GrantTable::new(16);
        let shared = share(&mut table, 3, true);
        let mine = table.memory(&shared).unwrap().try_clone_to_owned().unwrap();
        let mut page = vec![1; 3 * PAGE_SIZE];
        assert_eq!(pread(&mine, &mut page, 0).unwrap(), 3 * PAGE_SIZE);
        assert!(page.iter().all(|byte| *byte == 0));
        pwrite(&mine, b"hello", PAGE_SIZE as u64).unwrap();
        let mapped = map(&mut table, 2, shared.first + 1, false).unwrap();
        assert_eq!(mapped.runs, [Run { file: 0, page: 1, count: 1 }]);
        let mut bytes = [0; 5];
        pread(mapped.files()[0], &mut bytes, PAGE_SIZE as u64).unwrap();
        assert_eq!(&bytes, b"hello");
        assert!(pwrite(mapped.files()[0], b"x", 0).is_err(), "a read-only mapping has a read-only file");
    }

    #[test]
    fn consecutive_pages_come_in_one_piece() {
        let mut table = GrantTable::new(16);
        let (a, b) = (share(&mut table, 4, true), share(&mut table, 2, true));
        let refs: Vec<_> = [a.first, a.first + 1, a.first + 2, b.first, b.first + 1, a.first + 3]
            .map(|gref| (1, gref))
            .into();
        let mapped = table.map(CLIENT, 2, &refs, true, OnUnmap::default()).unwrap();
        let run = |file, page, count| Run { file, page, count };
        assert_eq!(mapped.runs, [run(0, 0, 3), run(1, 0, 2), run(0, 3, 1)]);
        assert_eq!(mapped.files().len(), 2);
    }

    #[test]
    fn a_domain_grants_no_more_pages_than_its_limit() {
        let mut table = GrantTable::new(4);
        let three = share(&mut table, 3, true);
        let more = |table: &mut GrantTable, count| table.share(SERVER, 1, 2, count, true, OnUnmap::default());
        assert_eq!(more(&mut table, 2).unwrap_err(), Errno::NOSPC);
        assert_eq!(more(&mut table, u32::MAX).unwrap_err(), Errno::NOSPC);
        assert_eq!(more(&mut table, 0).unwrap_err(), Errno::INVAL);
        more(&mut table, 1).unwrap();
        assert!(
            table.share(SERVER, 9, 2, 4, true, OnUnmap::default()).is_ok(),
            "the limit is a domain's own"
        );
        table.release(SERVER, three.id).unwrap();
        more(&mut table, 3).unwrap();
    }

    #[test]
    fn unmapping_clears_the_byte_and_names_the_port() {
        let mut table = GrantTable::new(16);
        let shared = share(&mut table, 2, true);
        let memory = table.memory(&shared).unwrap().try_clone_to_owned().unwrap();
        pwrite(&memory, &[7; 2 * PAGE_SIZE], 0).unwrap();
        let on_unmap = OnUnmap { clear_byte: Some(20), event: Some((2, 33)) };
        let mapped = table.map(CLIENT, 2, &[(1, shared.first + 1)], true, on_unmap).unwrap();
        assert_eq!(table.release(CLIENT, mapped.id), Ok(Some((2, 33))));
        let mut pages = [0; 2 * PAGE_SIZE];
        pread(&memory, &mut pages, 0).unwrap();
        let cleared: Vec<usize> = (0..pages.len()).filter(|at| pages[*at] == 0).collect();
        assert_eq!(cleared, [PAGE_SIZE + 20]);
    }

    #[test]
    fn a_handle_that_goes_takes_back_all_that_it_did_and_no_more() {
        let mut table = GrantTable::new(16);
        let notify = |port| OnUnmap { clear_byte: None, event: Some((1, port)) };
        let first = table.share(SERVER, 1, 2, 1, true, notify(5)).unwrap();
        let second = table.share(SERVER, 1, 2, 1, true, notify(6)).unwrap();
        let other = table.share(CLIENT, 1, 2, 1, true, notify(7)).unwrap();
        assert_eq!(table.release_all(SERVER), [(1, 5), (1, 6)]);
        for revoked in [first, second] {
            assert!(map(&mut table, 2, revoked.first, true).is_err());
        }
        assert!(map(&mut table, 2, other.first, true).is_ok());
    }
}
