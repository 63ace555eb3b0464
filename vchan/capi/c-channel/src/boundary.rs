//! What stands between C and Rust: nothing but checks and conversions.
#![allow(unsafe_code, reason = "pointers from C callers, and errno")]

use crate::{Failure, Outcome};
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

/// Runs the body of a function that C calls. A failure is left in errno and as the thread's last one, and `failed` is
/// returned; a panic, which would be a defect of this library, is such a failure as well.
#[inline]
pub fn guard<T>(failed: T, body: impl FnOnce() -> Outcome<T>) -> T {
    // Whatever the body left half-changed is in a channel whose locks a panic releases; what the peer sees is only ever
    // changed by single stores.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => value,
        Ok(Err(failure)) => tell(failure, failed),
        Err(_) => tell(Failure::new(libc::EIO, "a defect of this library: it panicked"), failed),
    }
}

#[cold]
fn tell<T>(failure: Failure, failed: T) -> T {
    failure.tell();
    failed
}

pub(crate) fn set_errno(errno: i32) {
    // SAFETY: the C library returns the address of the thread's own errno, valid as long as the thread.
    unsafe { *libc::__errno_location() = errno };
}

/// The bytes that a caller gave to be sent.
///
/// # Safety
/// `data` is null or points to `size` bytes that nobody writes during `'a`.
#[inline]
pub unsafe fn bytes<'a>(data: *const c_void, size: usize) -> Outcome<&'a [u8]> {
    match size {
        0 => Ok(&[]),
        _ if data.is_null() || isize::try_from(size).is_err() => Err(null("data")),
        // SAFETY: the caller's word; neither null nor longer than an object can be.
        _ => Ok(unsafe { slice::from_raw_parts(data.cast(), size) }),
    }
}

/// The buffer that a caller gave to be filled; it is only written.
///
/// # Safety
/// `data` is null or points to `size` bytes that nobody else touches during `'a`.
#[inline]
pub unsafe fn bytes_mut<'a>(data: *mut c_void, size: usize) -> Outcome<&'a mut [u8]> {
    match size {
        0 => Ok(&mut []),
        _ if data.is_null() || isize::try_from(size).is_err() => Err(null("data")),
        // SAFETY: the caller's word; neither null nor longer than an object can be.
        _ => Ok(unsafe { slice::from_raw_parts_mut(data.cast(), size) }),
    }
}

/// A text that a caller gave.
///
/// # Safety
/// `text` is null or a C string that nobody writes during `'a`.
pub unsafe fn text<'a>(text: *const c_char) -> Outcome<&'a str> {
    if text.is_null() {
        return Err(null("path"));
    }
    // SAFETY: the caller's word.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::new(libc::EINVAL, format!("the path {text:?} is no UTF-8")))
}

/// A descriptor that a caller gave.
///
/// # Safety
/// `fd` stays open during `'a`, if it is open at all.
pub unsafe fn descriptor<'a>(fd: i32) -> Outcome<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(Failure::new(libc::EBADF, format!("{fd} is no descriptor")));
    }
    // SAFETY: not -1; the caller's word. If it is not open the kernel says so.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// The calling thread's last failure: its text, until the thread's next failure, and its number. None: null and 0.
///
/// # Safety
/// `errno` is null or may be written.
pub unsafe fn last_error(errno: *mut c_int) -> *const c_char {
    let (number, text) = crate::failure::last();
    if !errno.is_null() {
        // SAFETY: the caller's word.
        unsafe { errno.write(number) };
    }
    text
}

fn null(what: &str) -> Failure {
    Failure::new(libc::EINVAL, format!("{what} is a null pointer"))
}

/// The handles that were given out and not closed: what a caller passes is looked up before it is used, so a null pointer and
/// a closed handle are errors. (Unless a new one was made at the same address since.)
pub struct Handles {
    live: RwLock<BTreeSet<usize>>,
    /// Some of them, each at its own [place](Self::place): a look there is all that most calls need. Written under the lock.
    at_hand: [AtomicUsize; PLACES],
}

/// Places for handles that are found at once.
const PLACES: usize = 64;

impl Handles {
    /// None yet.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        Self { live: RwLock::new(BTreeSet::new()), at_hand: [const { AtomicUsize::new(0) }; PLACES] }
    }

    /// Where a handle may be at hand. (Handles are hundreds of bytes, and lie apart as the allocator likes.)
    #[inline]
    fn place(&self, addr: usize) -> &AtomicUsize {
        &self.at_hand[(addr >> 4 ^ addr >> 10) % PLACES]
    }

    /// Gives a handle out.
    pub fn open<T>(&self, handle: T) -> *mut T {
        let raw = Box::into_raw(Box::new(handle));
        self.live.write().insert(raw.addr());
        raw
    }

    /// An error unless the handle was given out and not closed.
    #[inline]
    pub fn check<T>(&self, raw: *const T) -> Outcome<()> {
        if self.place(raw.addr()).load(Ordering::Relaxed) == raw.addr() && !raw.is_null() {
            Ok(())
        } else {
            self.find(raw.addr())
        }
    }

    #[cold]
    fn find(&self, addr: usize) -> Outcome<()> {
        if addr == 0 {
            return Err(null("the handle"));
        }
        let live = self.live.read();
        if !live.contains(&addr) {
            return Err(Failure::new(libc::EBADF, "the handle is closed, or was never one"));
        }
        self.place(addr).store(addr, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a handle back.
    ///
    /// # Safety
    /// All handles in this table are of the type `T`, and nobody uses this one now.
    pub unsafe fn close<T>(&self, raw: *mut T) -> Outcome<Box<T>> {
        self.check(raw)?;
        let mut live = self.live.write();
        if !live.remove(&raw.addr()) {
            return Err(Failure::new(libc::EBADF, "the handle is closed"));
        }
        // Whatever is there: one too few at hand is found again.
        self.place(raw.addr()).store(0, Ordering::Relaxed);
        drop(live);
        // SAFETY: it was in the table, so it came from `Box::into_raw` of a `Box<T>` (the caller's word for the type), and
        // this call alone took it out.
        Ok(unsafe { Box::from_raw(raw) })
    }
}

/// Has `child` called in every process that is forked from this one.
pub(crate) fn on_fork(child: extern "C" fn()) {
    // SAFETY: the function stores a flag, which is all that may be done between fork and exec; it stays loaded, since the
    // libraries are linked with `-z nodelete`. Failure (no memory) leaves the child as it would be without.
    unsafe { pthread_atfork(None, None, Some(child)) };
}

unsafe extern "C" {
    /// pthread.h, of glibc; the crate libc does not declare it.
    fn pthread_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
    ) -> libc::c_int;
}
