//! Event channels through libxenevtchn.
#![allow(unsafe_code, reason = "calls of the C library")]

use super::logger;
use crate::{DomId, Error, EventChannels, Port, Result};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use xen_sys::{self as sys, xenevtchn_handle};

/// A handle of libxenevtchn.
pub struct Events {
    raw: NonNull<xenevtchn_handle>,
    fd: libc::c_int,
}

// SAFETY: the handle is a file descriptor and a logger; the library's functions on it are ioctls, reads and writes,
// which the kernel serialises.
unsafe impl Send for Events {}
// SAFETY: as above.
unsafe impl Sync for Events {}

impl Events {
    /// Opens the device.
    ///
    /// # Errors
    /// When there is none, or it may not be opened.
    pub fn open() -> Result<Self> {
        // SAFETY: the logger lives for ever; no flags.
        let raw = unsafe { sys::xenevtchn_open(logger::silent(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("xenevtchn_open", ""))?;
        // SAFETY: an open handle has a descriptor, which stays open until the handle is closed.
        let fd = unsafe { sys::xenevtchn_fd(raw.as_ptr()) };
        Ok(Self { raw, fd })
    }

    /// The C library's handle, valid as long as this lives: for those who offer it to C callers in turn.
    #[must_use]
    pub fn as_raw(&self) -> *mut xenevtchn_handle {
        self.raw.as_ptr()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, and not used afterwards.
        unsafe { sys::xenevtchn_close(self.raw.as_ptr()) };
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the handle's, open as long as self.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

/// A port, or the error that the C functions say with -1.
fn port(result: libc::c_int, error: impl FnOnce() -> Error) -> Result<Port> {
    u32::try_from(result).map(Port).map_err(|_| error())
}

fn done(result: libc::c_int, error: impl FnOnce() -> Error) -> Result<()> {
    port(result, error).map(|_| ())
}

impl EventChannels for Events {
    fn bind_unbound(&self, remote: DomId) -> Result<Port> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { sys::xenevtchn_bind_unbound_port(self.raw.as_ptr(), remote.0.into()) };
        port(result, || Error::last("xenevtchn_bind_unbound_port", format!("domid {remote}")))
    }

    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port> {
        // SAFETY: plain values to an open handle.
        let result =
            unsafe { sys::xenevtchn_bind_interdomain(self.raw.as_ptr(), remote.0.into(), remote_port.0) };
        port(result, || {
            Error::last("xenevtchn_bind_interdomain", format!("domid {remote}, port {remote_port}"))
        })
    }

    fn unbind(&self, port: Port) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { sys::xenevtchn_unbind(self.raw.as_ptr(), port.0) };
        done(result, || Error::last("xenevtchn_unbind", format!("port {port}")))
    }

    fn notify(&self, port: Port) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { sys::xenevtchn_notify(self.raw.as_ptr(), port.0) };
        done(result, || Error::last("xenevtchn_notify", format!("port {port}")))
    }

    fn pending(&self) -> Result<Port> {
        // SAFETY: an open handle; the function reads one port from its descriptor.
        let result = unsafe { sys::xenevtchn_pending(self.raw.as_ptr()) };
        port(result, || Error::last("xenevtchn_pending", ""))
    }

    fn unmask(&self, port: Port) -> Result<()> {
        // SAFETY: plain values to an open handle.
        let result = unsafe { sys::xenevtchn_unmask(self.raw.as_ptr(), port.0) };
        done(result, || Error::last("xenevtchn_unmask", format!("port {port}")))
    }
}
