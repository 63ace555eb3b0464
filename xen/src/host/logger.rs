//! A logger for Xen's C libraries that says nothing: what goes wrong is in the [`Error`](crate::Error) that we return,
//! and a library does not write to its program's stderr. (Given no logger, the libraries make one that does.)
#![allow(unsafe_code, reason = "the C libraries take a table of functions")]

use std::os::raw::{c_char, c_int, c_ulong};
use std::ptr;
use xen_sys::{__va_list_tag, xentoollog_level, xentoollog_logger};

struct Silent(xentoollog_logger);

// SAFETY: the table is never written, by the libraries neither.
unsafe impl Sync for Silent {}

static SILENT: Silent =
    Silent(xentoollog_logger { vmessage: Some(message), progress: Some(progress), destroy: Some(destroy) });

/// The logger, to be given to the `*_open` functions; it lives for ever.
pub(super) fn silent() -> *mut xentoollog_logger {
    ptr::from_ref(&SILENT.0).cast_mut()
}

unsafe extern "C" fn message(
    _: *mut xentoollog_logger,
    _: xentoollog_level,
    _: c_int,
    _: *const c_char,
    _: *const c_char,
    _: *mut __va_list_tag,
) {
}

unsafe extern "C" fn progress(
    _: *mut xentoollog_logger,
    _: *const c_char,
    _: *const c_char,
    _: c_int,
    _: c_ulong,
    _: c_ulong,
) {
}

unsafe extern "C" fn destroy(_: *mut xentoollog_logger) {}
