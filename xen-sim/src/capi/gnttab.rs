//! xengnttab.h.
#![allow(unsafe_code, reason = "the C ABI: exported names, and pointers from C")]

use super::{call, close, domid, done, notify, open, slice, unmap};
use crate::guest::grants::{GrantHandle, is_mapped};
use crate::wire::{Gref, Notify, PAGE_SIZE, Port};
use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;
use rustix::mm::ProtFlags;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

fn new_handle() -> *mut GrantHandle {
    call(ptr::null_mut(), || GrantHandle::open().map(|handle| Box::into_raw(Box::new(handle))))
}

fn protection(prot: c_int) -> ProtFlags {
    ProtFlags::from_bits_retain(prot.cast_unsigned())
}

fn map(
    handle: &GrantHandle,
    domids: impl Iterator<Item = u32>,
    refs: &[Gref],
    prot: c_int,
    notify: Notify,
) -> Result<*mut c_void, Errno> {
    let refs: Vec<_> =
        domids.zip(refs).map(|(of, gref)| Ok((domid(of)?, *gref))).collect::<Result<_, Errno>>()?;
    if refs.is_empty() {
        return Err(Errno::INVAL);
    }
    handle.map(&refs, protection(prot), notify)
}

/// # Safety
/// `refs` is null or has room for `count` references.
unsafe fn share(
    handle: &GrantHandle,
    grantee: u32,
    count: c_int,
    refs: *mut Gref,
    writable: c_int,
    notify: Notify,
) -> Result<*mut c_void, Errno> {
    let count =
        u32::try_from(count).ok().filter(|count| *count > 0 && !refs.is_null()).ok_or(Errno::INVAL)?;
    let (address, first) = handle.share(domid(grantee)?, count, writable != 0, notify)?;
    for index in 0..count {
        // SAFETY: not null, and room for `count` references is the caller's word.
        unsafe { refs.add(index as usize).write(first + index) };
    }
    Ok(address)
}

/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_open(_logger: *mut c_void, _flags: c_uint) -> *mut GrantHandle {
    new_handle()
}

/// # Safety
/// `xgt` is null or open, and not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_close(xgt: *mut GrantHandle) -> c_int {
    done(|| {
        // SAFETY: the caller's word.
        unsafe { close(xgt) };
        Ok(())
    })
}

/// # Safety
/// `xgt` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_fd(xgt: *mut GrantHandle) -> c_int {
    // SAFETY: the caller's word.
    call(-1, || Ok(unsafe { open(xgt) }?.as_fd().as_raw_fd()))
}

/// Kernels since 2.6.37 have no such limit, and the library makes that a success.
///
/// # Safety
/// `xgt` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_set_max_grants(xgt: *mut GrantHandle, _count: u32) -> c_int {
    // SAFETY: the caller's word.
    done(|| unsafe { open(xgt) }.map(drop))
}

/// # Safety
/// `xgt` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_map_grant_ref(
    xgt: *mut GrantHandle,
    domid: u32,
    gref: Gref,
    prot: c_int,
) -> *mut c_void {
    call(ptr::null_mut(), || {
        // SAFETY: the caller's word.
        let handle = unsafe { open(xgt) }?;
        map(handle, [domid].into_iter(), &[gref], prot, Notify::default())
    })
}

/// # Safety
/// `xgt` is null or open; `domids` and `refs` are null or have `count` entries.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_map_grant_refs(
    xgt: *mut GrantHandle,
    count: u32,
    domids: *mut u32,
    refs: *mut Gref,
    prot: c_int,
) -> *mut c_void {
    call(ptr::null_mut(), || {
        // SAFETY: the caller's word.
        let (handle, domids, refs) =
            unsafe { (open(xgt)?, slice(domids, count as usize)?, slice(refs, count as usize)?) };
        map(handle, domids.iter().copied(), refs, prot, Notify::default())
    })
}

/// # Safety
/// `xgt` is null or open; `refs` is null or has `count` entries.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_map_domain_grant_refs(
    xgt: *mut GrantHandle,
    count: u32,
    domid: u32,
    refs: *mut Gref,
    prot: c_int,
) -> *mut c_void {
    call(ptr::null_mut(), || {
        // SAFETY: the caller's word.
        let (handle, refs) = unsafe { (open(xgt)?, slice(refs, count as usize)?) };
        map(handle, std::iter::repeat(domid), refs, prot, Notify::default())
    })
}

/// # Safety
/// `xgt` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_map_grant_ref_notify(
    xgt: *mut GrantHandle,
    domid: u32,
    gref: Gref,
    prot: c_int,
    notify_offset: u32,
    notify_port: Port,
) -> *mut c_void {
    call(ptr::null_mut(), || {
        // SAFETY: the caller's word.
        let handle = unsafe { open(xgt) }?;
        map(handle, [domid].into_iter(), &[gref], prot, notify(notify_offset, notify_port))
    })
}

/// # Safety
/// `xgt` is null or open; nothing uses the pages any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_unmap(xgt: *mut GrantHandle, start: *mut c_void, count: u32) -> c_int {
    done(|| {
        // SAFETY: the caller's word.
        unsafe { open(xgt) }?;
        if !is_mapped(start as usize, count) {
            return Err(Errno::INVAL);
        }
        // SAFETY: these are mapped pages of ours, and that nothing uses them is the caller's word.
        unsafe { unmap(start, count as usize * PAGE_SIZE) }
    })
}

/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengntshr_open(_logger: *mut c_void, _flags: c_uint) -> *mut GrantHandle {
    new_handle()
}

/// # Safety
/// `xgs` is null or open, and not used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengntshr_close(xgs: *mut GrantHandle) -> c_int {
    done(|| {
        // SAFETY: the caller's word.
        unsafe { close(xgs) };
        Ok(())
    })
}

/// # Safety
/// `xgs` is null or open.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengntshr_fd(xgs: *mut GrantHandle) -> c_int {
    // SAFETY: the caller's word.
    call(-1, || Ok(unsafe { open(xgs) }?.as_fd().as_raw_fd()))
}

/// # Safety
/// `xgs` is null or open; `refs` is null or has room for `count` references.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengntshr_share_pages(
    xgs: *mut GrantHandle,
    domid: u32,
    count: c_int,
    refs: *mut Gref,
    writable: c_int,
) -> *mut c_void {
    // SAFETY: the caller's word.
    call(ptr::null_mut(), || unsafe { share(open(xgs)?, domid, count, refs, writable, Notify::default()) })
}

/// # Safety
/// `xgs` is null or open; `gref` is null or has room for a reference.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengntshr_share_page_notify(
    xgs: *mut GrantHandle,
    domid: u32,
    gref: *mut Gref,
    writable: c_int,
    notify_offset: u32,
    notify_port: Port,
) -> *mut c_void {
    let notify = notify(notify_offset, notify_port);
    // SAFETY: the caller's word.
    call(ptr::null_mut(), || unsafe { share(open(xgs)?, domid, 1, gref, writable, notify) })
}

/// As in the C library, this is munmap.
///
/// # Safety
/// `xgs` is null or open; nothing uses the pages any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengntshr_unshare(xgs: *mut GrantHandle, start: *mut c_void, count: u32) -> c_int {
    done(|| {
        // SAFETY: the caller's word.
        unsafe { open(xgs) }?;
        // SAFETY: the caller's word.
        unsafe { unmap(start, count as usize * PAGE_SIZE) }
    })
}

/// The simulated gntdev is one without this ioctl.
///
/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_grant_copy(
    _xgt: *mut GrantHandle,
    _count: u32,
    _segments: *mut c_void,
) -> c_int {
    done(|| Err(Errno::NOTTY))
}

/// The simulated gntdev is one without DMA buffers (`CONFIG_XEN_GNTDEV_DMABUF`).
///
/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_dmabuf_exp_from_refs(
    _xgt: *mut GrantHandle,
    _domid: u32,
    _flags: u32,
    _count: u32,
    _refs: *const Gref,
    _fd: *mut u32,
) -> c_int {
    done(|| Err(Errno::NOTTY))
}

/// See [`xengnttab_dmabuf_exp_from_refs`].
///
/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_dmabuf_exp_wait_released(
    _xgt: *mut GrantHandle,
    _fd: u32,
    _wait_ms: u32,
) -> c_int {
    done(|| Err(Errno::NOTTY))
}

/// See [`xengnttab_dmabuf_exp_from_refs`].
///
/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_dmabuf_imp_to_refs(
    _xgt: *mut GrantHandle,
    _domid: u32,
    _fd: u32,
    _count: u32,
    _refs: *mut Gref,
) -> c_int {
    done(|| Err(Errno::NOTTY))
}

/// See [`xengnttab_dmabuf_exp_from_refs`].
///
/// # Safety
/// Any argument is fine.
#[unsafe(no_mangle)]
unsafe extern "C" fn xengnttab_dmabuf_imp_release(_xgt: *mut GrantHandle, _fd: u32) -> c_int {
    done(|| Err(Errno::NOTTY))
}
