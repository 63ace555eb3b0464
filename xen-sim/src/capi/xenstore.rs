//! xenstore.h, and what programs use of xenstore_lib.h. What has to do with the paths of a real xenstored
//! (`xs_daemon_rundir` and the like) is left to the real library.
#![allow(unsafe_code, reason = "the C ABI: exported names, and pointers from C")]

use super::{call, close, domid, open, slice};
use crate::guest::store::{StoreHandle, Transaction};
use crate::wire::Permission;
use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::ptr;

/// `XS_UNWATCH_FILTER`.
const UNWATCH_FILTER: c_ulong = 1 << 2;
const PERM_READ: c_uint = 1;
const PERM_WRITE: c_uint = 2;
/// `XS_PERM_IGNORE`.
const PERM_IGNORE: c_uint = 0x10;

/// `struct xs_permissions` (xenstore_lib.h).
#[repr(C)]
struct XsPermissions {
    id: c_uint,
    perms: c_uint,
}

/// # Safety
/// `text` is null or a C string.
unsafe fn string<'a>(text: *const c_char) -> Result<&'a [u8], Errno> {
    if text.is_null() {
        return Err(Errno::INVAL);
    }
    // SAFETY: the caller's word.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// # Safety
/// `place` is null or may be written to.
unsafe fn put<T>(place: *mut T, value: T) {
    if !place.is_null() {
        // SAFETY: the caller's word.
        unsafe { place.write(value) };
    }
}

/// A function that says whether it worked.
fn worked(body: impl FnOnce() -> Result<(), Errno>) -> bool {
    call(false, || body().map(|()| true))
}

/// Memory for the program to free(), uninitialised.
fn malloc(bytes: usize) -> Result<*mut u8, Errno> {
    // SAFETY: any size is fine.
    let memory: *mut u8 = unsafe { libc::malloc(bytes.max(1)) }.cast();
    if memory.is_null() { Err(Errno::NOMEM) } else { Ok(memory) }
}

/// The bytes and a NUL.
fn malloc_string(bytes: &[u8]) -> Result<*mut u8, Errno> {
    let memory = malloc(bytes.len() + 1)?;
    // SAFETY: there is room for the bytes and the NUL, in memory that nobody else knows of yet.
    unsafe {
        memory.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        memory.add(bytes.len()).write(0);
    }
    Ok(memory)
}

/// An array of C strings that is freed in one go: the pointers first, then what they point to.
fn malloc_strings(strings: &[&[u8]]) -> Result<*mut *mut c_char, Errno> {
    let pointers = strings.len() * size_of::<*mut c_char>();
    let memory = malloc(pointers + strings.iter().map(|string| string.len() + 1).sum::<usize>())?;
    let array: *mut *mut c_char = memory.cast();
    let mut offset = pointers;
    for (index, string) in strings.iter().enumerate() {
        // SAFETY: the sizes were added up above, one pointer and one string with its NUL each; malloc aligns for pointers.
        unsafe {
            let place = memory.add(offset);
            place.copy_from_nonoverlapping(string.as_ptr(), string.len());
            place.add(string.len()).write(0);
            array.add(index).write(place.cast());
        }
        offset += string.len() + 1;
    }
    Ok(array)
}

fn permission(given: &XsPermissions) -> Result<Permission, Errno> {
    if given.perms & !(PERM_READ | PERM_WRITE | PERM_IGNORE) != 0 {
        return Err(Errno::INVAL);
    }
    Ok(Permission {
        domid: domid(given.id)?,
        read: given.perms & PERM_READ != 0,
        write: given.perms & PERM_WRITE != 0,
    })
}

fn event((path, token): (String, Vec<u8>)) -> Result<*mut *mut c_char, Errno> {
    malloc_strings(&[path.as_bytes(), &token])
}

/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_open(flags: c_ulong) -> *mut StoreHandle {
    call(ptr::null_mut(), || {
        StoreHandle::open(flags & UNWATCH_FILTER != 0).map(|handle| Box::into_raw(Box::new(handle)))
    })
}

/// # Safety
/// Nothing to keep.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_daemon_open() -> *mut StoreHandle {
    // SAFETY: any argument is fine.
    unsafe { xs_open(0) }
}

/// # Safety
/// Nothing to keep.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_daemon_open_readonly() -> *mut StoreHandle {
    // SAFETY: any argument is fine.
    unsafe { xs_open(0) }
}

/// # Safety
/// Nothing to keep.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_domain_open() -> *mut StoreHandle {
    // SAFETY: any argument is fine.
    unsafe { xs_open(0) }
}

/// # Safety
/// `h` is null or open, and not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_close(h: *mut StoreHandle) {
    call((), || {
        // SAFETY: the caller's word.
        unsafe { close(h) };
        Ok(())
    });
}

/// # Safety
/// `h` is null or open, and not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_daemon_close(h: *mut StoreHandle) {
    // SAFETY: the caller's word.
    unsafe { xs_close(h) };
}

/// # Safety
/// `h` is null or open, and not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_daemon_destroy_postfork(h: *mut StoreHandle) {
    // SAFETY: the caller's word. (In a forked child a handle knows that it is not the child's.)
    unsafe { xs_close(h) };
}

/// # Safety
/// `h` is null or open; `path` is null or a C string; `len` is null or may be written to.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_read(
    h: *mut StoreHandle,
    t: Transaction,
    path: *const c_char,
    len: *mut c_uint,
) -> *mut c_void {
    call(ptr::null_mut(), || {
        // SAFETY: the caller's word.
        let value = unsafe { open(h)?.read(t, string(path)?) }?;
        let memory = malloc_string(&value)?;
        // SAFETY: the caller's word.
        unsafe { put(len, value.len() as c_uint) };
        Ok(memory.cast())
    })
}

/// # Safety
/// `h` is null or open; `path` is null or a C string; `data` is null or has `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_write(
    h: *mut StoreHandle,
    t: Transaction,
    path: *const c_char,
    data: *const c_void,
    len: c_uint,
) -> bool {
    // SAFETY: the caller's word.
    worked(|| unsafe { open(h)?.write(t, string(path)?, slice(data.cast(), len as usize)?) })
}

/// # Safety
/// `h` is null or open; `path` is null or a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_mkdir(h: *mut StoreHandle, t: Transaction, path: *const c_char) -> bool {
    // SAFETY: the caller's word.
    worked(|| unsafe { open(h)?.mkdir(t, string(path)?) })
}

/// # Safety
/// `h` is null or open; `path` is null or a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_rm(h: *mut StoreHandle, t: Transaction, path: *const c_char) -> bool {
    // SAFETY: the caller's word.
    worked(|| unsafe { open(h)?.remove(t, string(path)?) })
}

/// # Safety
/// `h` is null or open; `path` is null or a C string; `num` is null or may be written to.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_directory(
    h: *mut StoreHandle,
    t: Transaction,
    path: *const c_char,
    num: *mut c_uint,
) -> *mut *mut c_char {
    call(ptr::null_mut(), || {
        // SAFETY: the caller's word.
        let names = unsafe { open(h)?.list(t, string(path)?) }?;
        let strings: Vec<&[u8]> = names.iter().map(String::as_bytes).collect();
        let array = malloc_strings(&strings)?;
        // SAFETY: the caller's word.
        unsafe { put(num, strings.len() as c_uint) };
        Ok(array)
    })
}

/// # Safety
/// `h` is null or open; `path` is null or a C string; `num` is null or may be written to.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_get_permissions(
    h: *mut StoreHandle,
    t: Transaction,
    path: *const c_char,
    num: *mut c_uint,
) -> *mut XsPermissions {
    call(ptr::null_mut(), || {
        // SAFETY: the caller's word.
        let permissions = unsafe { open(h)?.permissions(t, string(path)?) }?;
        let array: *mut XsPermissions = malloc(permissions.len() * size_of::<XsPermissions>())?.cast();
        for (index, permission) in permissions.iter().enumerate() {
            let perms =
                if permission.read { PERM_READ } else { 0 } | if permission.write { PERM_WRITE } else { 0 };
            // SAFETY: room for that many was allocated just now.
            unsafe { array.add(index).write(XsPermissions { id: permission.domid.into(), perms }) };
        }
        // SAFETY: the caller's word.
        unsafe { put(num, permissions.len() as c_uint) };
        Ok(array)
    })
}

/// # Safety
/// `h` is null or open; `path` is null or a C string; `perms` is null or has `count` entries.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_set_permissions(
    h: *mut StoreHandle,
    t: Transaction,
    path: *const c_char,
    perms: *mut XsPermissions,
    count: c_uint,
) -> bool {
    worked(|| {
        // SAFETY: the caller's word.
        let (handle, path, given) =
            unsafe { (open(h)?, string(path)?, slice(perms.cast_const(), count as usize)?) };
        handle.set_permissions(t, path, given.iter().map(permission).collect::<Result<_, _>>()?)
    })
}

/// Removed from xenstore in Xen 4.9; the real one fails too.
///
/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_restrict(_h: *mut StoreHandle, _domid: c_uint) -> bool {
    false
}

/// # Safety
/// `h` is null or open; `path` and `token` are null or C strings.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_watch(h: *mut StoreHandle, path: *const c_char, token: *const c_char) -> bool {
    // SAFETY: the caller's word.
    worked(|| unsafe { open(h)?.watch(string(path)?, string(token)?) })
}

/// # Safety
/// `h` is null or open; `path` and `token` are null or C strings.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_unwatch(h: *mut StoreHandle, path: *const c_char, token: *const c_char) -> bool {
    // SAFETY: the caller's word.
    worked(|| unsafe { open(h)?.unwatch(string(path)?, string(token)?) })
}

/// # Safety
/// `h` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_fileno(h: *mut StoreHandle) -> c_int {
    // SAFETY: the caller's word.
    call(-1, || Ok(unsafe { open(h) }?.as_fd().as_raw_fd()))
}

/// # Safety
/// `h` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_check_watch(h: *mut StoreHandle) -> *mut *mut c_char {
    // SAFETY: the caller's word.
    call(ptr::null_mut(), || event(unsafe { open(h) }?.event()?))
}

/// # Safety
/// `h` is null or open; `num` is null or may be written to.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_read_watch(h: *mut StoreHandle, num: *mut c_uint) -> *mut *mut c_char {
    call(ptr::null_mut(), || {
        // SAFETY: the caller's word.
        let array = event(unsafe { open(h) }?.wait_event()?)?;
        // SAFETY: the caller's word.
        unsafe { put(num, 2) };
        Ok(array)
    })
}

/// # Safety
/// `h` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_transaction_start(h: *mut StoreHandle) -> Transaction {
    // SAFETY: the caller's word.
    call(0, || unsafe { open(h) }?.begin())
}

/// # Safety
/// `h` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_transaction_end(h: *mut StoreHandle, t: Transaction, abort: bool) -> bool {
    // SAFETY: the caller's word.
    worked(|| unsafe { open(h) }?.end(t, !abort))
}

/// # Safety
/// `h` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_introduce_domain(
    h: *mut StoreHandle,
    domid: c_uint,
    _mfn: c_ulong,
    port: c_uint,
) -> bool {
    worked(|| {
        if port == 0 {
            return Err(Errno::INVAL);
        }
        // SAFETY: the caller's word.
        unsafe { open(h) }?.introduce(super::domid(domid)?)
    })
}

/// # Safety
/// `h` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_set_target(h: *mut StoreHandle, domid: c_uint, target: c_uint) -> bool {
    // SAFETY: the caller's word.
    worked(|| unsafe { open(h) }?.set_target(super::domid(domid)?, super::domid(target)?))
}

/// # Safety
/// `h` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_resume_domain(h: *mut StoreHandle, domid: c_uint) -> bool {
    // SAFETY: the caller's word.
    worked(|| unsafe { open(h) }?.resume(super::domid(domid)?))
}

/// # Safety
/// `h` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_release_domain(h: *mut StoreHandle, domid: c_uint) -> bool {
    // SAFETY: the caller's word.
    worked(|| unsafe { open(h) }?.release(super::domid(domid)?))
}

/// # Safety
/// `h` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_is_domain_introduced(h: *mut StoreHandle, domid: c_uint) -> bool {
    // SAFETY: the caller's word.
    call(false, || unsafe { open(h) }?.is_introduced(super::domid(domid)?))
}

/// # Safety
/// `h` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_get_domain_path(h: *mut StoreHandle, domid: c_uint) -> *mut c_char {
    call(ptr::null_mut(), || {
        // SAFETY: the caller's word.
        unsafe { open(h) }?;
        malloc_string(format!("/local/domain/{domid}").as_bytes()).map(<*mut u8>::cast)
    })
}

/// # Safety
/// `parent` and `child` are null or C strings.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_path_is_subpath(parent: *const c_char, child: *const c_char) -> bool {
    call(false, || {
        // SAFETY: the caller's word.
        let (parent, child) = unsafe { (string(parent)?, string(child)?) };
        Ok(child.strip_prefix(parent).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/")))
    })
}

/// "r1", "n0" and so on, one C string after the other.
///
/// # Safety
/// `perms` is null or has room for `count` entries; `strings` is null or has `count` C strings, one after the other.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_strings_to_perms(
    perms: *mut XsPermissions,
    count: c_uint,
    strings: *const c_char,
) -> bool {
    worked(|| {
        if perms.is_null() {
            return Err(Errno::INVAL);
        }
        let mut next = strings;
        for index in 0..count as usize {
            // SAFETY: the caller's word.
            let text = unsafe { string(next) }?;
            let (letter, id) = text.split_first().ok_or(Errno::INVAL)?;
            let bits = match letter {
                b'n' => 0,
                b'r' => PERM_READ,
                b'w' => PERM_WRITE,
                b'b' => PERM_READ | PERM_WRITE,
                _ => return Err(Errno::INVAL),
            };
            let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()).ok_or(Errno::INVAL)?;
            // SAFETY: room for `count` entries is the caller's word, and after each string but the last comes another.
            unsafe {
                perms.add(index).write(XsPermissions { id, perms: bits });
                next = next.add(text.len() + 1);
            }
        }
        Ok(())
    })
}

/// The port of the domain's suspend channel, as its entry in the store says; -1 when it says nothing.
///
/// # Safety
/// Nothing to keep.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_suspend_evtchn_port(domid: c_int) -> c_int {
    call(-1, || {
        let path = format!("/local/domain/{domid}/device/suspend/event-channel");
        let value = StoreHandle::open(false)?.read(0, path.as_bytes())?;
        std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok()).ok_or(Errno::INVAL)
    })
}

/// The simulated xenstored has no commands of this kind.
///
/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_control_command(
    _h: *mut StoreHandle,
    _command: *const c_char,
    _data: *mut c_void,
    _len: c_uint,
) -> *mut c_char {
    call(ptr::null_mut(), || Err(Errno::NOSYS))
}

/// See [`xs_control_command`].
///
/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xs_debug_command(
    _h: *mut StoreHandle,
    _command: *const c_char,
    _data: *mut c_void,
    _len: c_uint,
) -> *mut c_char {
    call(ptr::null_mut(), || Err(Errno::NOSYS))
}
