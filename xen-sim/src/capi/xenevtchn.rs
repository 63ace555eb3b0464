//! xenevtchn.h.
#![allow(unsafe_code, reason = "the C ABI: exported names, and pointers from C")]

use super::{call, close, domid, done, open};
use crate::guest::events::EventHandle;
use crate::wire::{Domid, Port};
use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

/// `XENEVTCHN_NO_CLOEXEC`.
const NO_CLOEXEC: c_uint = 1;

fn port(port: Port) -> Result<c_int, Errno> {
    c_int::try_from(port).map_err(|_| Errno::PROTO)
}

/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_open(_logger: *mut c_void, flags: c_uint) -> *mut EventHandle {
    call(ptr::null_mut(), || {
        if flags & !NO_CLOEXEC != 0 {
            return Err(Errno::INVAL);
        }
        EventHandle::open(flags & NO_CLOEXEC != 0).map(|handle| Box::into_raw(Box::new(handle)))
    })
}

/// A descriptor alone is no handle here.
///
/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_fdopen(_logger: *mut c_void, _fd: c_int, _flags: c_uint) -> *mut EventHandle {
    call(ptr::null_mut(), || Err(Errno::OPNOTSUPP))
}

/// # Safety
/// `xce` is null or open, and not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_close(xce: *mut EventHandle) -> c_int {
    done(|| {
        // SAFETY: the caller's word.
        unsafe { close(xce) };
        Ok(())
    })
}

/// # Safety
/// `xce` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_fd(xce: *mut EventHandle) -> c_int {
    // SAFETY: the caller's word.
    call(-1, || Ok(unsafe { open(xce) }?.as_fd().as_raw_fd()))
}

/// # Safety
/// `xce` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_notify(xce: *mut EventHandle, port: Port) -> c_int {
    // SAFETY: the caller's word.
    done(|| unsafe { open(xce) }?.notify(port))
}

/// # Safety
/// `xce` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_bind_unbound_port(xce: *mut EventHandle, remote: u32) -> c_int {
    // SAFETY: the caller's word.
    call(-1, || port(unsafe { open(xce) }?.bind_unbound(domid(remote)?)?))
}

/// # Safety
/// `xce` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_bind_interdomain(
    xce: *mut EventHandle,
    remote: u32,
    remote_port: Port,
) -> c_int {
    // SAFETY: the caller's word.
    call(-1, || port(unsafe { open(xce) }?.bind_interdomain(domid(remote)?, remote_port)?))
}

/// # Safety
/// `xce` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_bind_virq(xce: *mut EventHandle, virq: c_uint) -> c_int {
    // SAFETY: the caller's word.
    call(-1, || port(unsafe { open(xce) }?.bind_virq(virq)?))
}

/// # Safety
/// `xce` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_unbind(xce: *mut EventHandle, port: Port) -> c_int {
    // SAFETY: the caller's word.
    done(|| unsafe { open(xce) }?.unbind(port))
}

/// # Safety
/// `xce` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_pending(xce: *mut EventHandle) -> c_int {
    // SAFETY: the caller's word.
    call(-1, || port(unsafe { open(xce) }?.pending()?))
}

/// # Safety
/// `xce` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_unmask(xce: *mut EventHandle, port: Port) -> c_int {
    // SAFETY: the caller's word.
    done(|| unsafe { open(xce) }?.unmask(port))
}

/// # Safety
/// `xce` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xenevtchn_restrict(xce: *mut EventHandle, domid: Domid) -> c_int {
    // SAFETY: the caller's word.
    done(|| unsafe { open(xce) }?.restrict(domid))
}
