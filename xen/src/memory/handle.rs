//! Parts of a mapping that were checked once and are used often.

use super::{Access, Mapping, VolatileSlice, VolatileSliceMut, copy};
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32};

/// A synchronising word of a mapping, which stays mapped as long as this lives.
pub struct Word<T> {
    at: NonNull<T>,
    _mapping: Arc<Mapping>,
}

// SAFETY: an address of shared memory that is only accessed atomically, and the mapping that keeps it valid.
unsafe impl<T> Send for Word<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Word<T> {}

impl<T> Deref for Word<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `at` was checked when the word was made, and `_mapping` keeps it mapped. T is an atomic, the one
        // reference that allows others to write.
        unsafe { self.at.as_ref() }
    }
}

impl<T: fmt::Debug> fmt::Debug for Word<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// A part of a mapping, which stays mapped as long as this lives. All offsets are bytes from the part's start; methods
/// panic, as indexing does, when an offset lies outside.
pub struct Window {
    start: NonNull<u8>,
    len: usize,
    access: Access,
    _mapping: Arc<Mapping>,
}

// SAFETY: as of the mapping, which is Send and Sync; all accesses are such that others may write meanwhile.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Mapping {
    /// The byte at `offset`, for synchronisation.
    ///
    /// # Panics
    /// When it lies outside, or the mapping is read-only.
    #[must_use]
    pub fn word_u8(self: &Arc<Self>, offset: usize) -> Word<AtomicU8> {
        Word { at: NonNull::from(self.atomic_u8(offset)), _mapping: Arc::clone(self) }
    }

    /// The 32-bit word at `offset`, for synchronisation.
    ///
    /// # Panics
    /// When it lies outside or is not aligned, or the mapping is read-only.
    #[must_use]
    pub fn word_u32(self: &Arc<Self>, offset: usize) -> Word<AtomicU32> {
        Word { at: NonNull::from(self.atomic_u32(offset)), _mapping: Arc::clone(self) }
    }

    /// The `len` bytes from `offset` on.
    ///
    /// # Panics
    /// When they lie outside.
    #[must_use]
    pub fn window(self: &Arc<Self>, offset: usize, len: usize) -> Window {
        self.check(offset, len);
        // SAFETY: `check` put the range inside the mapping.
        let start = unsafe { self.base.add(offset) };
        Window { start, len, access: self.access, _mapping: Arc::clone(self) }
    }
}

impl Window {
    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "{len} bytes at {offset} of a window of {} bytes",
            self.len
        );
        // SAFETY: inside of the window, which was checked to lie inside of the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    #[inline]
    fn at_mut(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(self.access == Access::ReadWrite, "write to a read-only mapping");
        self.at(offset, len)
    }

    /// As [`Mapping::copy_from`].
    #[inline]
    pub fn copy_from(&self, offset: usize, bytes: &[u8]) {
        let to = self.at_mut(offset, bytes.len());
        // SAFETY: checked by `at_mut`; `bytes` is private memory.
        unsafe { copy::copy(to, bytes.as_ptr(), bytes.len()) }
    }

    /// As [`Mapping::copy_to`].
    #[inline]
    pub fn copy_to(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: checked by `at`; `bytes` is private memory.
        unsafe { copy::copy(bytes.as_mut_ptr(), from, bytes.len()) }
    }

    /// Tells the processor that these bytes will be written soon, so that it takes their cache lines away from the other
    /// side in time. Changes nothing.
    #[inline]
    pub fn prefetch_write(&self, offset: usize, len: usize) {
        let at = self.at(offset, len);
        // SAFETY: checked by `at`.
        unsafe { copy::prefetch_write(at, len) }
    }

    /// A view of some bytes, for reading.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        let at = self.at(offset, len);
        // SAFETY: checked by `at`; the window outlives the borrow.
        unsafe { VolatileSlice::new(at, len) }
    }

    /// A view of some bytes, for writing. (Others may have such a view, too: another domain does.)
    #[must_use]
    pub fn slice_mut(&self, offset: usize, len: usize) -> VolatileSliceMut<'_> {
        let at = self.at_mut(offset, len);
        // SAFETY: checked by `at_mut`; the window outlives the borrow.
        unsafe { VolatileSliceMut::new(at, len) }
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("len", &self.len).field("access", &self.access).finish_non_exhaustive()
    }
}
