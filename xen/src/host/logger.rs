//! A logger for Xen's C libraries that says nothing: what goes wrong is in the [`Error`](crate::Error) that we return,
//! and a library does not write to its program's stderr. (Given no logger, the libraries make one that does.) Of functions
//! whose errno says too little, the first error that they log is kept.
#![allow(unsafe_code, reason = "the C libraries take a table of functions")]

use std::cell::RefCell;
use std::ffi::CStr;
use std::io;
use std::os::raw::{c_char, c_int, c_ulong};
use std::ptr;
use xen_sys::{self as sys, __va_list_tag, xentoollog_level, xentoollog_logger};

/// Bytes of a message that are kept.
const LONGEST: usize = 512;

thread_local! {
    /// The first error since somebody began to listen, if anybody does.
    static FIRST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Does something, and says which was the first error that a library logged meanwhile, on this thread: of several it is the one
/// that led to the others.
pub(super) fn first_error<T>(body: impl FnOnce() -> T) -> (T, Option<String>) {
    FIRST.set(Some(String::new()));
    let result = body();
    (result, FIRST.take().filter(|said| !said.is_empty()))
}

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
    level: xentoollog_level,
    errno: c_int,
    _: *const c_char,
    format: *const c_char,
    arguments: *mut __va_list_tag,
) {
    if level < sys::xentoollog_level_XTL_ERROR {
        return;
    }
    FIRST.with_borrow_mut(|first| {
        let Some(said) = first.as_mut().filter(|said| said.is_empty()) else { return };
        let mut text: [c_char; LONGEST] = [0; LONGEST];
        // SAFETY: the buffer has the room that the function is told of, and the arguments are those of the format, as
        // xentoollog.h has it.
        if unsafe { sys::vsnprintf(text.as_mut_ptr(), LONGEST as _, format, arguments) } < 0 {
            return;
        }
        // SAFETY: the function has ended what it wrote with a NUL, within the buffer.
        let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy();
        *said = text.trim_end().to_owned();
        // -1 stands for none.
        if errno > 0 {
            *said += &format!(": {}", io::Error::from_raw_os_error(errno));
        }
    });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_library_logs_is_kept_while_somebody_listens() {
        let say = |level: xentoollog_level, errno: c_int, text: &CStr| {
            // SAFETY: the logger lives for ever; a format without conversions takes no arguments.
            unsafe { sys::xtl_log(silent(), level, errno, c"test".as_ptr(), text.as_ptr()) };
        };
        say(sys::xentoollog_level_XTL_ERROR, -1, c"nobody listens");
        let ((), said) = first_error(|| {
            say(sys::xentoollog_level_XTL_WARN, -1, c"a warning");
            say(sys::xentoollog_level_XTL_ERROR, libc::ENOENT, c"the cause 100%%\n");
            say(sys::xentoollog_level_XTL_ERROR, -1, c"what followed from it");
        });
        assert_eq!(said.as_deref(), Some("the cause 100%: No such file or directory (os error 2)"));
        assert_eq!(first_error(|| ()).1, None);
    }
}
