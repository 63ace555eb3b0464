//! Other domains' memory through libxenforeignmemory.
#![allow(unsafe_code, reason = "calls of the C library")]

use super::logger;
use super::release::foreign_library;
use crate::memory::Owner;
use crate::{Access, DomId, Error, ForeignMemory, Gfn, Mapping, PAGE_SIZE, Result};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use xen_sys::{self as sys, xenforeignmemory_handle, xenforeignmemory_resource_handle};

struct Handle {
    library: &'static sys::ForeignLibrary,
    raw: NonNull<xenforeignmemory_handle>,
}

// SAFETY: the handle is a file descriptor, a logger and (on Linux) nothing else; mapping is an mmap and an ioctl.
unsafe impl Send for Handle {}
// SAFETY: as above. (The library's own bookkeeping of closed handles has a lock.)
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened by `Foreign::open`, and not used afterwards.
        unsafe { self.library.xenforeignmemory_close(self.raw.as_ptr()) };
    }
}

pub(super) struct Foreign(Arc<Handle>);

impl Foreign {
    pub(super) fn open() -> Result<Self> {
        let library = foreign_library()?;
        // SAFETY: the logger lives for ever; no flags.
        let raw = unsafe { library.xenforeignmemory_open(logger::silent(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("xenforeignmemory_open", ""))?;
        Ok(Self(Arc::new(Handle { library, raw })))
    }
}

struct Pages {
    handle: Arc<Handle>,
    base: NonNull<libc::c_void>,
    count: usize,
}

// SAFETY: an address range and a handle that may be used from any thread.
unsafe impl Send for Pages {}
// SAFETY: nothing of it can be reached through a shared reference.
unsafe impl Sync for Pages {}
impl Owner for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this count, and the `Mapping` is being dropped.
        unsafe {
            self.handle.library.xenforeignmemory_unmap(
                self.handle.raw.as_ptr(),
                self.base.as_ptr(),
                self.count,
            )
        };
    }
}

struct Resource {
    handle: Arc<Handle>,
    raw: NonNull<xenforeignmemory_resource_handle>,
}

// SAFETY: a handle that may be used from any thread and is used once, on drop.
unsafe impl Send for Resource {}
// SAFETY: nothing of it can be reached through a shared reference.
unsafe impl Sync for Resource {}
impl Owner for Resource {}

impl Drop for Resource {
    fn drop(&mut self) {
        // SAFETY: made by `map_grant_table`, and its `Mapping` is being dropped.
        unsafe {
            self.handle.library.xenforeignmemory_unmap_resource(self.handle.raw.as_ptr(), self.raw.as_ptr())
        };
    }
}

impl ForeignMemory for Foreign {
    fn map(&self, domid: DomId, gfns: &[Gfn], access: Access) -> Result<Mapping> {
        let args = || match gfns {
            [] => format!("domid {domid}, no frames"),
            [first, ..] => format!("domid {domid}, {} frames from {first}", gfns.len()),
        };
        let frames: Vec<sys::xen_pfn_t> = gfns.iter().map(|gfn| gfn.0).collect();
        if frames.is_empty() {
            return Err(Error::errno("xenforeignmemory_map", args(), libc::EINVAL));
        }
        // SAFETY: the library reads `frames.len()` frame numbers; without an error array it maps all or nothing.
        let base = unsafe {
            self.0.library.xenforeignmemory_map(
                self.0.raw.as_ptr(),
                domid.0.into(),
                access.prot(),
                frames.len(),
                frames.as_ptr(),
                ptr::null_mut(),
            )
        };
        let base = NonNull::new(base).ok_or_else(|| Error::last("xenforeignmemory_map", args()))?;
        let owner = Pages { handle: Arc::clone(&self.0), base, count: frames.len() };
        // SAFETY: the library mapped a whole page for each frame, for `access`; `owner` unmaps them.
        Ok(unsafe { Mapping::new(base.cast(), frames.len() * PAGE_SIZE, access, Box::new(owner)) })
    }

    fn map_grant_table(&self, domid: DomId, first: u64, frames: usize) -> Result<Mapping> {
        let error = || {
            Error::last(
                "xenforeignmemory_map_resource",
                format!("domid {domid}, grant table, {frames} frames from {first}"),
            )
        };
        let mut base = ptr::null_mut();
        // SAFETY: `base` is null, so that the library chooses the place and writes it there.
        let raw = unsafe {
            self.0.library.xenforeignmemory_map_resource(
                self.0.raw.as_ptr(),
                domid.0,
                sys::XENMEM_resource_grant_table,
                sys::XENMEM_resource_grant_table_id_shared,
                first,
                frames as libc::c_ulong,
                &raw mut base,
                Access::ReadWrite.prot(),
                0,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(error)?;
        let owner = Resource { handle: Arc::clone(&self.0), raw };
        let base = NonNull::new(base).ok_or_else(error)?;
        // SAFETY: the library mapped `frames` whole pages for reading and writing; `owner` unmaps them.
        Ok(unsafe { Mapping::new(base.cast(), frames * PAGE_SIZE, Access::ReadWrite, Box::new(owner)) })
    }
}
