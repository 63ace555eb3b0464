//! Sharing and mapping pages: `xengntshr_*` and `xengnttab_*`.
//!
//! As in the kernel's drivers, what was mapped through a handle outlives it and is undone by unmapping, in whatever way
//! the program does that: libxenvchan unmaps its rings with plain munmap(2). So all mappings of the process are known
//! here by their addresses, and `munmap` is one of the functions that the library offers.

use super::link::Link;
use crate::memory::{Area, Part};
use crate::wire::{Domid, Gref, MAX_REFS, Notify, PAGE_SIZE, Reply, Request, Role};
use parking_lot::Mutex;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::mm::ProtFlags;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// An open gntdev or gntalloc.
#[derive(Debug)]
pub(crate) struct GrantHandle {
    link: Arc<Link>,
}

/// What is behind an address range.
#[derive(Debug)]
struct Pages {
    link: Arc<Link>,
    /// The host's names for it; several for a long list of references.
    ids: Vec<u64>,
    kind: Kind,
    /// Which pages are still mapped.
    mapped: Vec<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Shared,
    Mapped,
}

/// All shared and mapped pages of this process, by address.
static PAGES: Mutex<BTreeMap<usize, Pages>> = Mutex::new(BTreeMap::new());
/// How many ranges there are: an munmap of a program that has none is not slowed down.
static RANGES: AtomicUsize = AtomicUsize::new(0);

fn remember(area: Area, pages: Pages) -> *mut c_void {
    let address = area.into_address();
    RANGES.fetch_add(1, SeqCst);
    PAGES.lock().insert(address as usize, pages);
    address
}

impl Pages {
    fn release(self) {
        // A forked child that unmaps what it inherited takes nothing away from its parent.
        for id in &self.ids {
            let _ = self.link.tell(&Request::Release { id: *id });
        }
    }
}

/// Ranges that an munmap(2) is about to take away entirely.
#[derive(Debug, Default)]
pub(crate) struct Unmapped(Vec<(usize, Pages)>);

impl Unmapped {
    /// Takes what lies in `bytes` from `address` on out of the list, before somebody else can get these addresses.
    pub(crate) fn take(address: usize, bytes: usize) -> Self {
        if RANGES.load(SeqCst) == 0 {
            return Self::default();
        }
        let end = address.saturating_add(bytes.next_multiple_of(PAGE_SIZE));
        let mut all = PAGES.lock();
        let mut gone = Vec::new();
        for (base, pages) in all.range_mut(..end) {
            if base + pages.mapped.len() * PAGE_SIZE <= address {
                continue;
            }
            for (index, mapped) in pages.mapped.iter_mut().enumerate() {
                *mapped &= !(address..end).contains(&(base + index * PAGE_SIZE));
            }
            if !pages.mapped.contains(&true) {
                gone.push(*base);
            }
        }
        RANGES.fetch_sub(gone.len(), SeqCst);
        Self(gone.into_iter().filter_map(|base| all.remove_entry(&base)).collect())
    }

    /// They are unmapped: tells the host, and does not return before unmap notifications are sent.
    pub(crate) fn done(self) {
        for (_, pages) in self.0 {
            pages.release();
        }
    }

    /// They are not, after all.
    pub(crate) fn undo(self) {
        for (base, mut pages) in self.0 {
            pages.mapped.fill(true);
            RANGES.fetch_add(1, SeqCst);
            PAGES.lock().insert(base, pages);
        }
    }
}

/// Whether `count` mapped pages, as one call mapped them, start at an address.
pub(crate) fn is_mapped(address: usize, count: u32) -> bool {
    let all = PAGES.lock();
    let found = all.get(&address).filter(|pages| pages.kind == Kind::Mapped && pages.link.is_ours());
    found.is_some_and(|pages| pages.mapped.len() == count as usize)
}

impl GrantHandle {
    pub(crate) fn open() -> Result<Self, Errno> {
        let (link, _) = Link::open(Role::Grants)?;
        Ok(Self { link: Arc::new(link) })
    }

    /// Grants pages and returns where they are mapped, with the first of their consecutive references.
    pub(crate) fn share(
        &self,
        grantee: Domid,
        count: u32,
        writable: bool,
        notify: Notify,
    ) -> Result<(*mut c_void, Gref), Errno> {
        let asked = self.link.ask(&Request::Share { grantee, count, writable, notify })?;
        let (Reply::Shared { id, first }, fds) = asked else { return Err(Errno::PROTO) };
        let held = Held { link: &self.link, ids: vec![id] };
        let file = fds.first().ok_or(Errno::PROTO)?.as_fd();
        let area = Area::map(&[Part { file, page: 0, count }], ProtFlags::READ | ProtFlags::WRITE)?;
        Ok((remember(area, held.keep(Kind::Shared, count as usize)), first))
    }

    /// Maps granted pages in one piece, in the order of their references.
    pub(crate) fn map(
        &self,
        refs: &[(Domid, Gref)],
        protection: ProtFlags,
        notify: Notify,
    ) -> Result<*mut c_void, Errno> {
        let writable = protection.contains(ProtFlags::WRITE);
        let mut held = Held { link: &self.link, ids: Vec::new() };
        let mut mapped = Vec::new();
        for (index, some) in refs.chunks(MAX_REFS).enumerate() {
            // A notification is about the first page.
            let notify = if index == 0 { notify } else { Notify::default() };
            let asked = self.link.ask(&Request::Map { refs: some.to_vec(), writable, notify })?;
            let (Reply::Mapped { id, runs }, fds) = asked else { return Err(Errno::PROTO) };
            held.ids.push(id);
            mapped.push((runs, fds));
        }
        let mut parts = Vec::new();
        for (runs, fds) in &mapped {
            for run in runs {
                let file = fds.get(run.file as usize).ok_or(Errno::PROTO)?.as_fd();
                parts.push(Part { file, page: run.page, count: run.count });
            }
        }
        let area = Area::map(&parts, protection)?;
        area.keep_from_children()?;
        Ok(remember(area, held.keep(Kind::Mapped, refs.len())))
    }
}

impl AsFd for GrantHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

/// What the host holds for this call, given back if the call fails.
struct Held<'a> {
    link: &'a Arc<Link>,
    ids: Vec<u64>,
}

impl Held<'_> {
    fn keep(mut self, kind: Kind, count: usize) -> Pages {
        Pages {
            link: Arc::clone(self.link),
            ids: std::mem::take(&mut self.ids),
            kind,
            mapped: vec![true; count],
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for id in &self.ids {
            let _ = self.link.tell(&Request::Release { id: *id });
        }
    }
}
