//! `libxenvchan.so`: Xen's C interface to vchan, over ours. `docs/c-libraries.md` says what differs.
//!
//! Nothing is decided here: each function finds the [`Channel`], says whether the caller wants to block, and translates the
//! outcome.
#![allow(unsafe_code, reason = "the C ABI: pointers that callers give, and names for the linker")]

mod handle;

use c_channel::{Channel, Handles, Outcome, State, domid, guard};
use handle::{Flags, Handle};
use std::arch::global_asm;
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

static HANDLES: Handles = Handles::new();

/// Gives functions their names in the library, as jumps to them. Were they given in Rust, rustc's own linker script would
/// take them, and leave them without a version (build.rs).
macro_rules! export {
    ($($function:ident)*) => {$(
        global_asm!(
            concat!(".pushsection .text.", stringify!($function), ",\"ax\",@progbits"),
            concat!(".globl ", stringify!($function)),
            concat!(".type ", stringify!($function), ",@function"),
            concat!(stringify!($function), ":"),
            "jmp {function}",
            concat!(".size ", stringify!($function), ", . - ", stringify!($function)),
            ".popsection",
            function = sym $function,
        );
    )*};
}

export! {
    libxenvchan_server_init libxenvchan_client_init libxenvchan_close libxenvchan_recv libxenvchan_read libxenvchan_send
    libxenvchan_write libxenvchan_wait libxenvchan_fd_for_select libxenvchan_is_open libxenvchan_data_ready
    libxenvchan_buffer_space close_xs_srv
    libxenvchan_read_from_fd libxenvchan_write_to_fd libxenvchan_wait_timeout libxenvchan_last_error
}

/// The channel of a handle, and its flags.
///
/// # Safety
/// `ctrl` is null or was returned by one of the two functions that make handles, and is not being closed.
#[inline]
unsafe fn channel<'a>(ctrl: *const Handle) -> Outcome<(&'a Arc<Channel>, Flags)> {
    HANDLES.check(ctrl)?;
    // SAFETY: it is in the table of live handles, all of them of this type; the caller's word that it stays one.
    Ok(unsafe { (&(*ctrl).channel, Handle::flags(ctrl)) })
}

/// Runs an operation whose result is a number of bytes.
///
/// # Safety
/// As [`channel`].
#[inline]
unsafe fn bytes(ctrl: *const Handle, operation: impl FnOnce(&Arc<Channel>, bool) -> Outcome<usize>) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's word.
        let (channel, flags) = unsafe { channel(ctrl) }?;
        if flags.persist() != channel.persists() {
            channel.set_persist(flags.persist());
        }
        let count = operation(channel, flags.blocking())?;
        // As libxenvchan's, and a ring is no larger; a blocking write may be.
        Ok(c_int::try_from(count).unwrap_or(c_int::MAX))
    })
}

extern "C" fn libxenvchan_server_init(
    _logger: *mut c_void,
    domain: c_int,
    xs_path: *const c_char,
    read_min: usize,
    write_min: usize,
) -> *mut Handle {
    guard(ptr::null_mut(), || {
        // SAFETY: the caller's C string.
        let path = unsafe { c_channel::text(xs_path) }?;
        let channel = Channel::listen(domid(domain)?, path, read_min, write_min)?;
        Ok(HANDLES.open(Handle::new(channel, CString::new(path).ok())))
    })
}

extern "C" fn libxenvchan_client_init(
    _logger: *mut c_void,
    domain: c_int,
    xs_path: *const c_char,
) -> *mut Handle {
    guard(ptr::null_mut(), || {
        // SAFETY: the caller's C string.
        let path = unsafe { c_channel::text(xs_path) }?;
        Ok(HANDLES.open(Handle::new(Channel::connect(domid(domain)?, path)?, None)))
    })
}

extern "C" fn libxenvchan_close(ctrl: *mut Handle) {
    if ctrl.is_null() {
        return;
    }
    guard((), || {
        // SAFETY: all handles in the table are of this type; who closes a handle uses it no more.
        let handle = unsafe { HANDLES.close(ctrl) }?;
        handle.channel.close();
        Ok(())
    });
}

extern "C" fn libxenvchan_recv(ctrl: *mut Handle, data: *mut c_void, size: usize) -> c_int {
    // SAFETY: the caller's handle, and its buffer of that size.
    unsafe { bytes(ctrl, |channel, blocking| channel.recv(c_channel::bytes_mut(data, size)?, blocking)) }
}

extern "C" fn libxenvchan_read(ctrl: *mut Handle, data: *mut c_void, size: usize) -> c_int {
    // SAFETY: the caller's handle, and its buffer of that size.
    unsafe { bytes(ctrl, |channel, blocking| channel.read(c_channel::bytes_mut(data, size)?, blocking)) }
}

extern "C" fn libxenvchan_send(ctrl: *mut Handle, data: *const c_void, size: usize) -> c_int {
    // SAFETY: the caller's handle, and its bytes.
    unsafe { bytes(ctrl, |channel, blocking| channel.send(c_channel::bytes(data, size)?, blocking)) }
}

extern "C" fn libxenvchan_write(ctrl: *mut Handle, data: *const c_void, size: usize) -> c_int {
    // SAFETY: the caller's handle, and its bytes.
    unsafe { bytes(ctrl, |channel, blocking| channel.write(c_channel::bytes(data, size)?, blocking)) }
}

extern "C" fn libxenvchan_data_ready(ctrl: *mut Handle) -> c_int {
    // SAFETY: the caller's handle.
    unsafe { bytes(ctrl, |channel, blocking| channel.data_ready(blocking)) }
}

extern "C" fn libxenvchan_buffer_space(ctrl: *mut Handle) -> c_int {
    // SAFETY: the caller's handle.
    unsafe { bytes(ctrl, |channel, blocking| channel.buffer_space(blocking)) }
}

extern "C" fn libxenvchan_wait(ctrl: *mut Handle) -> c_int {
    // SAFETY: the caller's handle.
    unsafe { bytes(ctrl, |channel, _| channel.wait(None).map(|()| 0)) }
}

extern "C" fn libxenvchan_fd_for_select(ctrl: *mut Handle) -> c_int {
    guard(-1, || {
        // SAFETY: the caller's handle.
        unsafe { channel(ctrl) }?.0.descriptor()
    })
}

extern "C" fn libxenvchan_is_open(ctrl: *mut Handle) -> c_int {
    // SAFETY: the caller's handle.
    let open = unsafe {
        bytes(ctrl, |channel, _| match channel.state()? {
            State::Closed => Ok(0),
            State::Waiting if !channel.persists() => Ok(2),
            State::Waiting | State::Open => Ok(1),
        })
    };
    // To callers, what is not open is closed; why not is in errno.
    open.max(0)
}

/// What libxenvchan exports by accident: takes a server's keys back.
extern "C" fn close_xs_srv(ctrl: *mut Handle) {
    guard((), || {
        // SAFETY: the caller's handle.
        let (channel, _) = unsafe { channel(ctrl) }?;
        channel.unpublish()
    });
}

extern "C" fn libxenvchan_read_from_fd(ctrl: *mut Handle, fd: c_int, max: usize) -> c_int {
    // SAFETY: the caller's handle and its descriptor.
    unsafe {
        bytes(ctrl, |channel, blocking| channel.read_from_fd(c_channel::descriptor(fd)?, max, blocking))
    }
}

extern "C" fn libxenvchan_write_to_fd(ctrl: *mut Handle, fd: c_int, max: usize) -> c_int {
    // SAFETY: the caller's handle and its descriptor.
    unsafe { bytes(ctrl, |channel, blocking| channel.write_to_fd(c_channel::descriptor(fd)?, max, blocking)) }
}

extern "C" fn libxenvchan_wait_timeout(ctrl: *mut Handle, milliseconds: c_int) -> c_int {
    // SAFETY: the caller's handle.
    unsafe { bytes(ctrl, |channel, _| channel.wait(timeout(milliseconds)).map(|()| 0)) }
}

extern "C" fn libxenvchan_last_error(error: *mut c_int) -> *const c_char {
    // SAFETY: the caller's number, if it wants one.
    unsafe { c_channel::last_error(error) }
}

/// As poll(2) has it: for ever if negative.
fn timeout(milliseconds: c_int) -> Option<Duration> {
    u64::try_from(milliseconds).ok().map(Duration::from_millis)
}
