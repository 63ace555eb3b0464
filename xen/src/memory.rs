//! Memory that another domain can write while we look at it.
//!
//! The two rules of such memory stand here, once:
//!
//! 1. **It is never a `&[u8]` or `&mut [u8]`.** A reference promises the compiler that nobody else writes; a peer keeps
//!    no promises. So bytes are copied in and out by accesses that the compiler does not look into, and the few words that both sides use to
//!    synchronise are atomics. What was copied out is private, and only that is looked at ("read once, check, use").
//! 2. **It lives as long as the [`Mapping`].** The mapping owns what keeps the pages mapped and gives it up when it is
//!    dropped.
#![allow(unsafe_code, reason = "the one place where shared pages are touched")]

mod copy;
mod frames;
mod handle;
mod volatile;

use crate::PAGE_SIZE;
pub use copy::full_fence;
pub(crate) use frames::Frames;
pub use handle::{Window, Word};
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32};
pub use volatile::{VolatileSlice, VolatileSliceMut, read_from_fd, read_from_fd_then, write_to_fd};

/// What a mapping may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading; a write is refused by the processor.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

impl Access {
    /// The C libraries' `PROT_*`.
    pub(crate) fn prot(self) -> libc::c_int {
        match self {
            Self::ReadOnly => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// What unmaps the pages when it is dropped.
pub(crate) trait Owner: Send + Sync {}

/// A run of pages that somebody else may write at the same time.
///
/// All offsets are bytes from the first page's start. They are the caller's own: a method panics, as indexing does,
/// when an offset lies outside; a value that a peer chose is to be checked before it becomes an offset.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    access: Access,
    _owner: Box<dyn Owner>,
}

// SAFETY: a mapping is an address that stays valid until `_owner` (itself Send) is dropped, from any thread.
unsafe impl Send for Mapping {}
// SAFETY: every access through `&self` is volatile or atomic, as memory that others write concurrently demands anyway;
// the thread on the other side may as well be one of ours.
unsafe impl Sync for Mapping {}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("len", &self.len)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

impl Mapping {
    /// Takes charge of `len` bytes at `base`.
    ///
    /// # Safety
    /// `base` is page-aligned and `len` bytes from it stay mapped for `access` until `owner` is dropped.
    pub(crate) unsafe fn new(base: NonNull<u8>, len: usize, access: Access, owner: Box<dyn Owner>) -> Self {
        debug_assert!(base.as_ptr().addr().is_multiple_of(PAGE_SIZE));
        Self { base, len, access, _owner: owner }
    }

    /// Bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a mapping has at least a page")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where the first byte is: for those who tell C callers. It stays there as long as the mapping lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// What it may be used for.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// The byte at `offset`, for synchronisation.
    ///
    /// # Panics
    /// When `offset` lies outside, or the mapping is read-only.
    #[must_use]
    #[inline]
    pub fn atomic_u8(&self, offset: usize) -> &AtomicU8 {
        let at = self.word(offset, 1);
        // SAFETY: `word` checked bounds, alignment and write access; an atomic is the one reference that allows others
        // to write, and the mapping outlives the borrow of self.
        unsafe { AtomicU8::from_ptr(at) }
    }

    /// The 16-bit word at `offset`, for synchronisation.
    ///
    /// # Panics
    /// When the word lies outside or is not aligned, or the mapping is read-only.
    #[must_use]
    #[inline]
    pub fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        let at = self.word(offset, 2);
        // SAFETY: as in `atomic_u8`.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    /// The 32-bit word at `offset`, for synchronisation.
    ///
    /// # Panics
    /// When the word lies outside or is not aligned, or the mapping is read-only.
    #[must_use]
    #[inline]
    pub fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        let at = self.word(offset, 4);
        // SAFETY: as in `atomic_u8`.
        unsafe { AtomicU32::from_ptr(at.cast()) }
    }

    /// Copies `bytes` to `offset`. A reader may see them arrive in any order until a release store tells it of them.
    ///
    /// # Panics
    /// When they do not fit, or the mapping is read-only.
    #[inline]
    pub fn copy_from(&self, offset: usize, bytes: &[u8]) {
        assert_eq!(self.access, Access::ReadWrite, "write to a read-only mapping");
        self.check(offset, bytes.len());
        // SAFETY: `check` put the whole range inside the mapping, which is writable; `bytes` is private memory.
        unsafe { copy::copy(self.base.as_ptr().add(offset), bytes.as_ptr(), bytes.len()) }
    }

    /// Copies bytes from `offset` out to `bytes`: each is read once.
    ///
    /// # Panics
    /// When the range lies outside.
    #[inline]
    pub fn copy_to(&self, offset: usize, bytes: &mut [u8]) {
        self.check(offset, bytes.len());
        // SAFETY: `check` put the whole range inside the mapping; `bytes` is private memory.
        unsafe { copy::copy(bytes.as_mut_ptr(), self.base.as_ptr().add(offset), bytes.len()) }
    }

    /// Sets `len` bytes from `offset` to 0.
    ///
    /// # Panics
    /// When the range lies outside, or the mapping is read-only.
    pub fn zero(&self, offset: usize, len: usize) {
        assert_eq!(self.access, Access::ReadWrite, "write to a read-only mapping");
        self.check(offset, len);
        // SAFETY: `check` put the whole range inside the mapping, which is writable.
        unsafe { copy::fill(self.base.as_ptr().add(offset), 0, len) }
    }

    /// The memory as a slice, for a builder that fills it.
    ///
    /// # Safety
    /// Until the borrow ends nobody else reads or writes these pages: they belong to a domain that has never run, and
    /// no other mapping of them exists. Never for pages that a running domain can reach.
    ///
    /// # Panics
    /// When the mapping is read-only.
    pub unsafe fn as_mut_slice(&mut self) -> &mut [u8] {
        assert_eq!(self.access, Access::ReadWrite, "write to a read-only mapping");
        // SAFETY: base and len describe memory mapped for writing as long as self; exclusive by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }

    #[inline]
    fn word(&self, offset: usize, size: usize) -> *mut u8 {
        assert_eq!(self.access, Access::ReadWrite, "a synchronising word in a read-only mapping");
        assert!(offset.is_multiple_of(size), "offset {offset} is not aligned to {size}");
        self.check(offset, size);
        // SAFETY: `check` put the offset inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    #[inline]
    fn check(&self, offset: usize, len: usize) {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "{len} bytes at {offset} of a mapping of {} bytes",
            self.len
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::Arc;

    struct Nothing;
    impl Owner for Nothing {}

    fn pages(frames: &[u64], access: Access) -> (Arc<Frames>, Mapping) {
        let pool = Arc::new(Frames::new(16).unwrap());
        let mapping = pool.map(frames, access, Box::new(Nothing)).unwrap();
        (pool, mapping)
    }

    #[test]
    fn bytes_come_back_from_every_alignment_and_length() {
        let (_pool, mapping) = pages(&[3, 4], Access::ReadWrite);
        let pattern: Vec<u8> = (0..97).map(|i| i as u8 ^ 0x5a).collect();
        for offset in (0..40).chain(PAGE_SIZE - 72..PAGE_SIZE + 8) {
            for len in 0..pattern.len() {
                mapping.zero(offset.saturating_sub(16), 160);
                mapping.copy_from(offset, &pattern[..len]);
                let mut back = vec![0; len + 1];
                mapping.copy_to(offset, &mut back);
                assert_eq!(back[..len], pattern[..len]);
                assert_eq!(back[len], 0, "nothing is written past the end");
            }
        }
    }

    #[test]
    fn frames_are_mapped_in_the_order_given() {
        let (pool, mapping) = pages(&[5, 2, 3], Access::ReadWrite);
        for (i, frame) in [5_u64, 2, 3].into_iter().enumerate() {
            mapping.copy_from(i * PAGE_SIZE, &[frame as u8]);
        }
        for frame in [2_u64, 3, 5] {
            let single = pool.map(&[frame], Access::ReadOnly, Box::new(Nothing)).unwrap();
            let mut byte = [0];
            single.copy_to(0, &mut byte);
            assert_eq!(u64::from(byte[0]), frame);
        }
        pool.discard(5);
        let mut byte = [1];
        mapping.copy_to(0, &mut byte);
        assert_eq!(byte[0], 0);
    }

    #[test]
    fn frames_outside_the_pool_are_refused() {
        let pool = Arc::new(Frames::new(16).unwrap());
        for frames in [&[][..], &[16], &[0, u64::MAX]] {
            assert!(pool.map(frames, Access::ReadOnly, Box::new(Nothing)).is_err());
        }
    }

    #[test]
    #[should_panic(expected = "2 bytes at 4095 of a mapping of 4096 bytes")]
    fn an_offset_outside_panics() {
        pages(&[0], Access::ReadWrite).1.copy_from(PAGE_SIZE - 1, &[0, 0]);
    }

    #[test]
    #[should_panic(expected = "write to a read-only mapping")]
    fn writing_to_a_read_only_mapping_panics() {
        pages(&[0], Access::ReadOnly).1.copy_from(0, &[0]);
    }

    #[test]
    fn atomics_are_seen_through_another_mapping_of_the_page() {
        let (pool, mapping) = pages(&[7], Access::ReadWrite);
        let other = pool.map(&[7], Access::ReadWrite, Box::new(Nothing)).unwrap();
        mapping.atomic_u32(8).store(0xdead_beef, std::sync::atomic::Ordering::Release);
        assert_eq!(other.atomic_u32(8).load(std::sync::atomic::Ordering::Acquire), 0xdead_beef);
        assert_eq!(other.atomic_u8(8).load(std::sync::atomic::Ordering::Relaxed), 0xef);
        assert_eq!(other.atomic_u16(10).load(std::sync::atomic::Ordering::Relaxed), 0xdead);
    }

    #[test]
    fn views_are_checked_and_hand_out_copies() {
        let (pool, mapping) = pages(&[2, 3], Access::ReadWrite);
        let mapping = Arc::new(mapping);
        let window = mapping.window(PAGE_SIZE - 100, 200);
        let pattern: Vec<u8> = (0..200).collect();
        window.copy_from(0, &pattern);
        let view = window.slice(10, 150);
        assert_eq!(view.bytes().collect::<Vec<_>>(), pattern[10..160]);
        assert_eq!(view.array::<3>(5), [15, 16, 17]);
        let lines: Vec<[u64; 8]> = view.lines().collect();
        assert_eq!((lines.len(), lines[1][7].to_le_bytes()[7]), (2, 137));
        let (first, second) = view.split_at(149);
        assert_eq!((first.len(), second.byte(0), second.is_empty()), (149, 159, false));

        for len in 0..200 {
            let mut room = window.slice_mut(0, 200);
            room.fill(0, 200, 1);
            room.fill(0, len, 9);
            assert!(
                room.as_read().bytes().enumerate().all(|(at, byte)| byte == if at < len { 9 } else { 1 })
            );
        }
        let read_only = Arc::new(pool.map(&[2], Access::ReadOnly, Box::new(Nothing)).unwrap());
        for outside in [
            Box::new(|| {
                let _ = window.slice(1, 200).len();
            }) as Box<dyn Fn()>,
            Box::new(|| {
                let _ = window.slice_mut(200, 1).len();
            }),
            Box::new(|| {
                let _ = view.array::<2>(149);
            }),
            Box::new(|| {
                let _ = view.split_at(151);
            }),
            Box::new(|| window.slice_mut(0, 9).copy_from(1, &[0; 9])),
            Box::new(|| window.slice_mut(0, 9).fill(usize::MAX, 2, 0)),
            Box::new(|| {
                let _ = mapping.window(2 * PAGE_SIZE, 1).slice(0, 1).len();
            }),
            Box::new(|| {
                let _ = read_only.window(0, 9).slice_mut(0, 1).len();
            }),
            Box::new(|| read_only.window(0, 9).copy_from(0, &[1])),
        ] {
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(outside)).is_err());
        }
    }

    #[test]
    fn words_keep_their_page_mapped() {
        let (pool, mapping) = pages(&[4], Access::ReadWrite);
        let mapping = Arc::new(mapping);
        let (byte, word) = (mapping.word_u8(21), mapping.word_u32(20));
        drop(mapping);
        word.store(0x0102_0304, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(byte.load(std::sync::atomic::Ordering::Relaxed), 3);
        drop(pool);
    }

    #[test]
    fn descriptors_are_read_into_views_and_written_from_them() {
        let (_pool, mapping) = pages(&[0, 1], Access::ReadWrite);
        let window = Arc::new(mapping).window(0, 2 * PAGE_SIZE);
        let (from, to) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&to, b"hello, world").unwrap();
        let mut views = [window.slice_mut(0, 5), window.slice_mut(4096, 100)];
        assert_eq!(read_from_fd(from.as_fd(), &mut views).unwrap(), 12);
        let views = [window.slice(4096, 7), window.slice(0, 5)];
        assert_eq!(write_to_fd(to.as_fd(), &views).unwrap(), 12);
        let mut back = [0; 20];
        assert_eq!(rustix::io::read(&from, &mut back).unwrap(), 12);
        assert_eq!(&back[..12], b", worldhello");
    }
}
