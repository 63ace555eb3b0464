//! Grants through libxengnttab.
#![allow(unsafe_code, reason = "calls of the C library")]

use super::logger;
use crate::memory::Owner;
use crate::{
    Access, DomId, Error, GrantMap, GrantRef, GrantShare, Mapping, PAGE_SIZE, Result, SharedPages,
    UnmapNotify,
};
use std::ptr::NonNull;
use std::sync::Arc;
use xen_sys::{xengntdev_handle, xengntshr_close, xengntshr_open, xengnttab_close, xengnttab_open};

/// "No such action" in the C functions (`-1` there).
const NO_NOTIFY: u32 = u32::MAX;

fn notify_words(notify: UnmapNotify) -> (u32, u32) {
    (notify.clear_byte.map_or(NO_NOTIFY, u32::from), notify.event.map_or(NO_NOTIFY, |port| port.0))
}

/// An open handle of either device, closed when the last mapping through it is gone.
struct Handle {
    raw: NonNull<xengntdev_handle>,
    close: unsafe extern "C" fn(*mut xengntdev_handle) -> libc::c_int,
}

// SAFETY: the handle is a file descriptor and a logger; the library's functions on it are ioctls and mmaps, which the
// kernel serialises.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened by `Share::open` or `Map::open` with the matching close, and not used afterwards.
        unsafe { (self.close)(self.raw.as_ptr()) };
    }
}

/// Undoes one share or map call.
struct Pages {
    handle: Arc<Handle>,
    base: NonNull<libc::c_void>,
    count: u32,
    undo: unsafe extern "C" fn(*mut xengntdev_handle, *mut libc::c_void, u32) -> libc::c_int,
}

// SAFETY: an address range and a handle that may be used from any thread.
unsafe impl Send for Pages {}
// SAFETY: nothing of it can be reached through a shared reference.
unsafe impl Sync for Pages {}
impl Owner for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the pages were shared or mapped through this handle, with this count, and their `Mapping` is being
        // dropped. Failure would mean that they are not mapped: nothing is left to do.
        unsafe { (self.undo)(self.handle.raw.as_ptr(), self.base.as_ptr(), self.count) };
    }
}

/// A handle of libxengnttab, to share pages.
pub struct Share(Arc<Handle>);

impl Share {
    /// The C library's handle, valid as long as this or a page shared through it lives: for those who offer it to C
    /// callers in turn.
    #[must_use]
    pub fn as_raw(&self) -> *mut xengntdev_handle {
        self.0.raw.as_ptr()
    }

    /// Opens the device.
    ///
    /// # Errors
    /// When there is none, or it may not be opened.
    pub fn open() -> Result<Self> {
        // SAFETY: the logger lives for ever; no flags.
        let raw = unsafe { xengntshr_open(logger::silent(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("xengntshr_open", ""))?;
        Ok(Self(Arc::new(Handle { raw, close: xengntshr_close })))
    }

    fn shared(
        &self,
        base: *mut libc::c_void,
        grefs: Vec<u32>,
        error: impl FnOnce() -> Error,
    ) -> Result<SharedPages> {
        let base = NonNull::new(base).ok_or_else(error)?;
        let count = grefs.len();
        let owner = Pages {
            handle: Arc::clone(&self.0),
            base,
            count: count as u32,
            undo: xen_sys::xengntshr_unshare,
        };
        // SAFETY: the library mapped `count` whole pages for reading and writing; `owner` unmaps them.
        let memory =
            unsafe { Mapping::new(base.cast(), count * PAGE_SIZE, Access::ReadWrite, Box::new(owner)) };
        Ok(SharedPages::new(grefs.into_iter().map(GrantRef).collect(), memory))
    }
}

impl GrantShare for Share {
    fn share_pages(&self, domid: DomId, count: usize, access: Access) -> Result<SharedPages> {
        let error =
            |errno| Error::errno("xengntshr_share_pages", format!("domid {domid}, {count} pages"), errno);
        let Some(pages) = libc::c_int::try_from(count).ok().filter(|pages| *pages > 0) else {
            return Err(error(libc::EINVAL));
        };
        let mut grefs = vec![0; count];
        let writable = libc::c_int::from(access == Access::ReadWrite);
        // SAFETY: `grefs` has room for `count` references.
        let base = unsafe {
            xen_sys::xengntshr_share_pages(
                self.0.raw.as_ptr(),
                domid.0.into(),
                pages,
                grefs.as_mut_ptr(),
                writable,
            )
        };
        self.shared(base, grefs, || {
            Error::last("xengntshr_share_pages", format!("domid {domid}, {count} pages"))
        })
    }

    fn share_page_notify(&self, domid: DomId, access: Access, notify: UnmapNotify) -> Result<SharedPages> {
        let mut grefs = vec![0];
        let writable = libc::c_int::from(access == Access::ReadWrite);
        let (offset, port) = notify_words(notify);
        // SAFETY: `grefs` has room for the one reference.
        let base = unsafe {
            xen_sys::xengntshr_share_page_notify(
                self.0.raw.as_ptr(),
                domid.0.into(),
                grefs.as_mut_ptr(),
                writable,
                offset,
                port,
            )
        };
        self.shared(base, grefs, || {
            Error::last("xengntshr_share_page_notify", format!("domid {domid}, {notify:?}"))
        })
    }
}

/// A handle of libxengnttab, to map pages that others share.
pub struct Map(Arc<Handle>);

/// How often a page that is being paged in is asked for again.
const PAGED_OUT_ATTEMPTS: u32 = 1_000;

impl Map {
    /// The C library's handle, valid as long as this or a page mapped through it lives: for those who offer it to C
    /// callers in turn.
    #[must_use]
    pub fn as_raw(&self) -> *mut xengntdev_handle {
        self.0.raw.as_ptr()
    }

    /// Opens the device.
    ///
    /// # Errors
    /// When there is none, or it may not be opened.
    pub fn open() -> Result<Self> {
        // SAFETY: the logger lives for ever; no flags.
        let raw = unsafe { xengnttab_open(logger::silent(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("xengnttab_open", ""))?;
        Ok(Self(Arc::new(Handle { raw, close: xengnttab_close })))
    }

    fn map_once(
        &self,
        domid: DomId,
        grefs: &[u32],
        access: Access,
        notify: Option<UnmapNotify>,
    ) -> *mut libc::c_void {
        let handle = self.0.raw.as_ptr();
        match (grefs, notify) {
            ([gref], Some(notify)) => {
                let (offset, port) = notify_words(notify);
                // SAFETY: plain values; the library returns null or a mapped page.
                unsafe {
                    xen_sys::xengnttab_map_grant_ref_notify(
                        handle,
                        domid.0.into(),
                        *gref,
                        access.prot(),
                        offset,
                        port,
                    )
                }
            }
            // SAFETY: the library reads `grefs.len()` references and writes none.
            _ => unsafe {
                xen_sys::xengnttab_map_domain_grant_refs(
                    handle,
                    grefs.len() as u32,
                    domid.0.into(),
                    grefs.as_ptr().cast_mut(),
                    access.prot(),
                )
            },
        }
    }
}

impl GrantMap for Map {
    fn map(
        &self,
        domid: DomId,
        grefs: &[GrantRef],
        access: Access,
        notify: Option<UnmapNotify>,
    ) -> Result<Mapping> {
        let args = || match grefs {
            [one] => format!("domid {domid}, gref {one}, {access:?}"),
            _ => format!("domid {domid}, {} grefs, {access:?}", grefs.len()),
        };
        if grefs.is_empty() || u32::try_from(grefs.len()).is_err() || (notify.is_some() && grefs.len() != 1) {
            return Err(Error::errno("xengnttab_map_domain_grant_refs", args(), libc::EINVAL));
        }
        let words: Vec<u32> = grefs.iter().map(|gref| gref.0).collect();
        let mut attempt = 0;
        let base = loop {
            match NonNull::new(self.map_once(domid, &words, access, notify)) {
                Some(base) => break base,
                None => {
                    let error = Error::last("xengnttab_map_domain_grant_refs", args());
                    // GNTST_eagain: the page is paged out, and on its way in.
                    if error.kind() != crate::ErrorKind::Again || attempt == PAGED_OUT_ATTEMPTS {
                        return Err(error);
                    }
                    attempt += 1;
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
        };
        let owner = Pages {
            handle: Arc::clone(&self.0),
            base,
            count: grefs.len() as u32,
            undo: xen_sys::xengnttab_unmap,
        };
        // SAFETY: the library mapped a whole page for each reference, for `access`; `owner` unmaps them.
        Ok(unsafe { Mapping::new(base.cast(), grefs.len() * PAGE_SIZE, access, Box::new(owner)) })
    }
}
