//! The C functions, as the headers of Debian's libxen-dev 4.17 declare them. Nothing but translation: arguments in,
//! errno and return value out.
//!
//! No pointer is followed that was not compared with null before, and no panic crosses into C.
#![allow(unsafe_code, reason = "the C ABI: exported names, and pointers from C")]

mod gnttab;
mod xenevtchn;
mod xenstore;

use crate::wire::{Domid, PAGE_SIZE, Port};
use rustix::io::Errno;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs the body of a C function. An error goes into errno, and `failed` is returned.
fn call<T>(failed: T, body: impl FnOnce() -> Result<T, Errno>) -> T {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return value,
        Ok(Err(error)) => error,
        Err(_) => Errno::IO,
    };
    // SAFETY: libc returns the address of this thread's errno.
    unsafe { *libc::__errno_location() = error.raw_os_error() };
    failed
}

/// A C function that returns 0 or -1.
fn done(body: impl FnOnce() -> Result<(), Errno>) -> libc::c_int {
    call(-1, || body().map(|()| 0))
}

/// # Safety
/// `handle` is null or came from the matching open function and was not closed.
unsafe fn open<'a, T>(handle: *mut T) -> Result<&'a T, Errno> {
    // SAFETY: the caller's word; our handles are used through shared references alone.
    unsafe { handle.as_ref() }.ok_or(Errno::INVAL)
}

/// # Safety
/// `handle` is null or came from the matching open function, was not closed, and is not used again.
unsafe fn close<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: the caller's word; the open functions make handles with `Box::into_raw`.
        drop(unsafe { Box::from_raw(handle) });
    }
}

/// # Safety
/// `first` is null or points to `count` values that nobody writes to during the call.
unsafe fn slice<'a, T>(first: *const T, count: usize) -> Result<&'a [T], Errno> {
    if first.is_null() {
        return if count == 0 { Ok(&[]) } else { Err(Errno::INVAL) };
    }
    // SAFETY: the caller's word.
    Ok(unsafe { std::slice::from_raw_parts(first, count) })
}

/// C's 32-bit domid.
fn domid(domid: u32) -> Result<Domid, Errno> {
    Domid::try_from(domid).map_err(|_| Errno::INVAL)
}

/// The C functions' way to say "no such action": an offset outside of the pages, and port -1.
fn notify(offset: u32, port: Port) -> crate::wire::Notify {
    crate::wire::Notify {
        clear_byte: Some(offset).filter(|offset| (*offset as usize) < PAGE_SIZE),
        event: Some(port).filter(|port| *port != Port::MAX),
    }
}

/// The address range may hold granted pages, in whatever number: they are taken off the list before the addresses can be
/// used again, and the host is told when they are unmapped.
///
/// # Safety
/// As munmap(2): nothing uses the range any more.
unsafe fn unmap(address: *mut c_void, bytes: usize) -> Result<(), Errno> {
    if bytes == 0 || !(address as usize).is_multiple_of(PAGE_SIZE) {
        return Err(Errno::INVAL);
    }
    let pages = crate::guest::grants::Unmapped::take(address as usize, bytes);
    // SAFETY: the caller's word.
    match unsafe { rustix::mm::munmap(address, bytes) } {
        Ok(()) => {
            pages.done();
            Ok(())
        }
        Err(error) => {
            pages.undo();
            Err(error)
        }
    }
}

/// munmap(2), which also is how a program takes leave of granted pages.
///
/// # Safety
/// As munmap(2): nothing uses the range any more.
#[cfg(not(test))]
#[unsafe(no_mangle)]
unsafe extern "C" fn munmap(address: *mut c_void, bytes: usize) -> libc::c_int {
    // SAFETY: the caller's word.
    done(|| unsafe { unmap(address, bytes) })
}
