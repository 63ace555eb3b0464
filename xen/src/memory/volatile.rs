//! Views of memory that another domain may write at the same time.

use super::{Mapping, copy};
use rustix::fd::BorrowedFd;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

/// Bytes between a line that is looked at and the one that is asked for meanwhile.
const AHEAD: usize = 2048;

/// A run of bytes that somebody else may change at any time; for reading.
///
/// It is no `&[u8]`, and cannot be turned into one: such a reference is a promise to the compiler that the bytes stay as
/// they are, on the strength of which it may read one twice, check the first value and use the second. Here each access
/// gives out a private copy, which then stays what it is. So check the copy, and use the copy.
///
/// All offsets are bytes from the view's start. A method panics, as indexing does, when an offset lies outside.
#[derive(Clone, Copy)]
pub struct VolatileSlice<'a> {
    start: *const u8,
    len: usize,
    mapping: PhantomData<&'a Mapping>,
}

/// A run of bytes that somebody else may change at any time; for writing. (See [`VolatileSlice`].)
///
/// What is written may be seen by the other side at once, in any order, and may be changed by it.
#[derive(Debug)]
pub struct VolatileSliceMut<'a>(VolatileSlice<'a>);

// SAFETY: the view of a mapping, which is Sync: all accesses are such that others may write meanwhile.
unsafe impl Send for VolatileSlice<'_> {}
// SAFETY: as above.
unsafe impl Sync for VolatileSlice<'_> {}

fn check(offset: usize, len: usize, of: usize) {
    assert!(offset <= of && len <= of - offset, "{len} bytes at {offset} of a view of {of} bytes");
}

impl<'a> VolatileSlice<'a> {
    /// # Safety
    /// `len` bytes at `start` lie in a mapping that outlives `'a`.
    pub(super) unsafe fn new(start: *const u8, len: usize) -> Self {
        Self { start, len, mapping: PhantomData }
    }

    /// Bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes before `at`, and those from there on.
    ///
    /// # Panics
    /// When `at` lies behind the end.
    #[must_use]
    #[inline]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        check(at, 0, self.len);
        // SAFETY: both parts lie inside of this view.
        unsafe { (Self::new(self.start, at), Self::new(self.start.add(at), self.len - at)) }
    }

    /// Copies the bytes from `offset` on out, as many as `to` holds.
    ///
    /// # Panics
    /// When there are fewer.
    #[inline]
    pub fn copy_to(&self, offset: usize, to: &mut [u8]) {
        check(offset, to.len(), self.len);
        // SAFETY: checked; `to` is private memory.
        unsafe { copy::copy(to.as_mut_ptr(), self.start.add(offset), to.len()) }
    }

    /// A copy of the `N` bytes from `offset` on: of a number, with `from_le_bytes`, or a part of a larger sum.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    #[inline]
    pub fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.copy_to(offset, &mut bytes);
        bytes
    }

    /// A copy of the byte at `offset`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[inline]
    pub fn byte(&self, offset: usize) -> u8 {
        let [byte] = self.array(offset);
        byte
    }

    /// Copies of the bytes, one after another. Each is read when its turn comes.
    pub fn bytes(self) -> impl ExactSizeIterator<Item = u8> + 'a {
        (0..self.len).map(move |at| self.byte(at))
    }

    /// Copies of 64 bytes each, as eight words in native byte order, one after another, as many as are whole; the rest is at
    /// the end of the view. The fastest way to look through many bytes: no copy of them is written anywhere.
    #[inline]
    pub fn lines(self) -> impl ExactSizeIterator<Item = [u64; 8]> + 'a {
        (0..self.len / 64).map(move |at| {
            let line = self.start.wrapping_add(at * 64);
            // The processor's own prefetching stops at each page, and the lines are another processor's.
            copy::prefetch_read(line.wrapping_add(AHEAD));
            // SAFETY: (at + 1) * 64 <= len.
            unsafe { copy::line(line) }
        })
    }
}

impl<'a> VolatileSliceMut<'a> {
    /// # Safety
    /// `len` bytes at `start` lie in a writable mapping that outlives `'a`.
    pub(super) unsafe fn new(start: *mut u8, len: usize) -> Self {
        // SAFETY: the caller's word, of more than this needs.
        Self(unsafe { VolatileSlice::new(start, len) })
    }

    /// Bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes before `at`, and those from there on.
    ///
    /// # Panics
    /// When `at` lies behind the end.
    #[must_use]
    #[inline]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let (before, from_there) = self.0.split_at(at);
        (Self(before), Self(from_there))
    }

    /// Where the bytes begin: writable, as `new` was promised.
    fn start(&self) -> *mut u8 {
        self.0.start.cast_mut()
    }

    /// Copies `from` to `offset`.
    ///
    /// # Panics
    /// When it does not fit.
    #[inline]
    pub fn copy_from(&mut self, offset: usize, from: &[u8]) {
        check(offset, from.len(), self.len());
        // SAFETY: checked; `from` is private memory.
        unsafe { copy::copy(self.start().add(offset), from.as_ptr(), from.len()) }
    }

    /// Sets `len` bytes from `offset` on to `value`.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn fill(&mut self, offset: usize, len: usize, value: u8) {
        check(offset, len, self.len());
        // SAFETY: checked.
        unsafe { copy::fill(self.start().add(offset), value, len) }
    }

    /// The view for reading, for as long as nothing is written through it.
    #[must_use]
    pub fn as_read(&self) -> VolatileSlice<'_> {
        self.0
    }
}

impl fmt::Debug for VolatileSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolatileSlice").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Reads from a descriptor straight into shared memory: into the first view, and when that is full into the second.
/// Returns how many bytes it were; 0 at the end of the file.
///
/// The kernel alone touches the bytes, and does not mind that another domain does, too.
///
/// # Errors
/// Those of readv(2).
pub fn read_from_fd(fd: BorrowedFd<'_>, to: &mut [VolatileSliceMut<'_>; 2]) -> io::Result<usize> {
    let parts = to.each_mut().map(|view| libc::iovec { iov_base: view.start().cast(), iov_len: view.len() });
    // SAFETY: both parts are mapped for writing during the call.
    moved(|| unsafe { libc::readv(fd.as_raw_fd(), parts.as_ptr(), 2) })
}

/// The same, and what follows into memory of our own: for a header behind what goes into shared memory.
///
/// # Errors
/// Those of readv(2).
pub fn read_from_fd_then(
    fd: BorrowedFd<'_>,
    to: &mut [VolatileSliceMut<'_>; 2],
    then: &mut [u8],
) -> io::Result<usize> {
    let [first, second] =
        to.each_mut().map(|view| libc::iovec { iov_base: view.start().cast(), iov_len: view.len() });
    let then = libc::iovec { iov_base: then.as_mut_ptr().cast(), iov_len: then.len() };
    let parts = [first, second, then];
    // SAFETY: the first two parts are mapped for writing during the call, and the third is borrowed for as long.
    moved(|| unsafe { libc::readv(fd.as_raw_fd(), parts.as_ptr(), 3) })
}

/// Writes shared memory straight to a descriptor: the first view, then the second. Returns how many bytes it were.
///
/// # Errors
/// Those of writev(2).
pub fn write_to_fd(fd: BorrowedFd<'_>, from: &[VolatileSlice<'_>; 2]) -> io::Result<usize> {
    let parts = from.map(|view| libc::iovec { iov_base: view.start.cast_mut().cast(), iov_len: view.len });
    // SAFETY: both parts are mapped for reading during the call, which does not write to them.
    moved(|| unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr(), 2) })
}

/// How many bytes a system call moved; repeats it when a signal interrupted it.
fn moved(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(n) => return Ok(n),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
