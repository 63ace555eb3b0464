//! The shared memory itself: the slot table of the event channels, and the mapping of granted pages.
#![allow(unsafe_code, reason = "maps memory that other processes map too")]

use crate::slot::Slot;
use crate::wire::PAGE_SIZE;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::ptr::{self, NonNull};

/// Ports of all domains of a host together.
pub(crate) const SLOTS: u32 = 4096;

/// The slots of all event channels of a host, in one file that every process with an event channel handle maps.
#[derive(Debug)]
pub(crate) struct SlotTable {
    base: NonNull<Slot>,
}

const TABLE_BYTES: usize = SLOTS as usize * size_of::<Slot>();

// SAFETY: the table is reached through shared references to atomics alone, from any thread as from any process.
unsafe impl Send for SlotTable {}
// SAFETY: as above.
unsafe impl Sync for SlotTable {}

impl SlotTable {
    /// A new file for a table: all slots are of no port.
    pub(crate) fn create() -> Result<OwnedFd, Errno> {
        let file = memfd_create("xensim-ports", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, TABLE_BYTES as u64)?;
        Ok(file)
    }

    /// Maps the table that `create` made.
    pub(crate) fn map(file: impl AsFd) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap(
                ptr::null_mut(),
                TABLE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file.as_fd(),
                0,
            )?
        };
        Ok(Self { base: NonNull::new(base.cast()).ok_or(Errno::NOMEM)? })
    }

    /// None: there is no such slot.
    pub(crate) fn slot(&self, index: u32) -> Option<&Slot> {
        // SAFETY: inside of the mapping, which lives as long as self and is a page-aligned array of `SLOTS` slots; a
        // slot is nothing but atomics, valid for every bit pattern that another process may store.
        (index < SLOTS).then(|| unsafe { self.base.add(index as usize).as_ref() })
    }
}

impl Drop for SlotTable {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; the references that `slot` gave out have ended with self's borrow.
        // It cannot fail for a whole mapping, and there would be nothing to do.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), TABLE_BYTES) };
    }
}

/// Consecutive pages of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) page: u32,
    pub(crate) count: u32,
}

/// Mapped granted pages, unmapped on drop unless handed out.
#[derive(Debug)]
pub(crate) struct Area {
    base: *mut c_void,
    bytes: usize,
}

impl Area {
    /// Maps the parts one after the other, in one piece.
    ///
    /// # Errors
    /// `INVAL` for no page at all; else those of mmap(2).
    pub(crate) fn map(parts: &[Part<'_>], protection: ProtFlags) -> Result<Self, Errno> {
        let bytes = parts.iter().map(|part| part.count as usize * PAGE_SIZE).sum();
        if bytes == 0 {
            return Err(Errno::INVAL);
        }
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let area = Self { base, bytes };
        let mut address = base;
        for part in parts {
            let length = part.count as usize * PAGE_SIZE;
            let offset = u64::from(part.page) * PAGE_SIZE as u64;
            // SAFETY: replaces a piece of the reservation above, which nobody else knows of; the lengths add up to its
            // size.
            unsafe {
                mmap(address, length, protection, MapFlags::SHARED | MapFlags::FIXED, part.file, offset)?;
            }
            address = address.wrapping_byte_add(length);
        }
        Ok(area)
    }

    /// A forked child does not inherit the pages, as it does not from the kernel's gntdev.
    pub(crate) fn keep_from_children(&self) -> Result<(), Errno> {
        // SAFETY: the area is mapped, and the advice changes nothing in this process.
        unsafe { madvise(self.base, self.bytes, Advice::LinuxDontFork) }
    }

    /// Hands the pages out: the caller has them from now on.
    pub(crate) fn into_address(self) -> *mut c_void {
        let address = self.base;
        std::mem::forget(self);
        address
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length and handed out to nobody. It cannot fail for a whole mapping.
        let _ = unsafe { munmap(self.base, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn two_mappings_of_the_table_are_the_same_slots() {
        let file = SlotTable::create().unwrap();
        let here = SlotTable::map(&file).unwrap();
        let there = SlotTable::map(&file).unwrap();
        for index in [0, SLOTS - 1] {
            here.slot(index).unwrap().reset(3);
            assert!(there.slot(index).unwrap().raise(3));
            assert!(!here.slot(index).unwrap().raise(3));
        }
        assert!(here.slot(SLOTS).is_none());
    }

    #[test]
    fn pages_of_several_files_appear_in_the_order_asked_for() {
        let files = ["a", "b"].map(|name| {
            let file = std::fs::File::from(memfd_create(name, MemfdFlags::CLOEXEC).unwrap());
            file.set_len(3 * PAGE_SIZE as u64).unwrap();
            for page in 0..3 {
                file.write_at(format!("{name}{page}").as_bytes(), page * PAGE_SIZE as u64).unwrap();
            }
            file
        });
        let part = |file: usize, page, count| Part { file: files[file].as_fd(), page, count };
        let area = Area::map(&[part(0, 1, 2), part(1, 0, 1), part(0, 0, 1)], ProtFlags::READ).unwrap();
        // SAFETY: mapped just now; nobody writes to the files any more.
        let bytes = unsafe { std::slice::from_raw_parts(area.base.cast::<u8>(), area.bytes) };
        let starts: Vec<&[u8]> = bytes.chunks(PAGE_SIZE).map(|page| &page[..2]).collect();
        assert_eq!(starts, [b"a1", b"a2", b"b0", b"a0"]);
    }

    #[test]
    fn nothing_cannot_be_mapped() {
        assert_eq!(Area::map(&[], ProtFlags::READ).unwrap_err(), Errno::INVAL);
    }
}
