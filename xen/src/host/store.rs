//! Xenstore through libxenstore.
#![allow(unsafe_code, reason = "calls of the C library")]

use crate::{
    DomId, Error, ErrorKind, Gfn, Permission, Permissions, Port, Result, Transaction, WatchEvent, Xenstore,
};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::slice;
use xen_sys::{self as sys, xs_handle};

pub(super) struct Store {
    raw: NonNull<xs_handle>,
    watch_fd: libc::c_int,
}

// SAFETY: libxenstore locks the handle in every request ("xs_handle is thread-safe", tools/libs/store/xs.c, built with
// USE_PTHREAD as Debian's is).
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, and not used afterwards.
        unsafe { sys::xs_close(self.raw.as_ptr()) };
    }
}

/// Something that the library allocated with malloc.
struct Malloced<T>(NonNull<T>);

impl<T> Malloced<T> {
    fn new(raw: *mut T) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// # Safety
    /// The library said that there are `len` initialised values at the pointer.
    unsafe fn as_slice(&self, len: usize) -> &[T] {
        // SAFETY: the caller's word; the memory is ours until it is freed on drop.
        unsafe { slice::from_raw_parts(self.0.as_ptr(), len) }
    }
}

impl<T> Drop for Malloced<T> {
    fn drop(&mut self) {
        // SAFETY: came from the C library, whose documentation says free().
        unsafe { libc::free(self.0.as_ptr().cast()) };
    }
}

fn c_string(call: &'static str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::errno(call, format!("{text:?}"), libc::EINVAL))
}

impl Store {
    pub(super) fn open() -> Result<Self> {
        // SAFETY: no arguments but the flags.
        let raw = unsafe { sys::xs_open(0) };
        let raw = NonNull::new(raw).ok_or_else(|| Error::last("xs_open", ""))?;
        // SAFETY: an open handle. The library makes a pipe on the first call, and keeps it as long as the handle.
        let watch_fd = unsafe { sys::xs_fileno(raw.as_ptr()) };
        let store = Self { raw, watch_fd };
        if watch_fd < 0 {
            return Err(Error::last("xs_fileno", ""));
        }
        Ok(store)
    }

    /// Runs a request on a path that answers yes or no.
    fn request(
        &self,
        call: &'static str,
        path: &str,
        run: impl FnOnce(*mut xs_handle, *const libc::c_char) -> bool,
    ) -> Result<()> {
        let c_path = c_string(call, path)?;
        if run(self.raw.as_ptr(), c_path.as_ptr()) { Ok(()) } else { Err(Error::last(call, path)) }
    }

    /// Runs a request on a path that answers with an array.
    fn array<T>(
        &self,
        call: &'static str,
        path: &str,
        run: impl FnOnce(*mut xs_handle, *const libc::c_char, *mut libc::c_uint) -> *mut T,
    ) -> Result<(Malloced<T>, usize)> {
        let c_path = c_string(call, path)?;
        let mut len = 0;
        let raw = run(self.raw.as_ptr(), c_path.as_ptr(), &raw mut len);
        let array = Malloced::new(raw).ok_or_else(|| Error::last(call, path))?;
        Ok((array, len as usize))
    }
}

impl AsFd for Store {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the handle's, open as long as self.
        unsafe { BorrowedFd::borrow_raw(self.watch_fd) }
    }
}

impl Xenstore for Store {
    fn read(&self, tx: Transaction, path: &str) -> Result<Vec<u8>> {
        let (value, len) = self.array("xs_read", path, |h, path, len| {
            // SAFETY: handle, C string and length are valid for the call.
            unsafe { sys::xs_read(h, tx.0, path, len) }.cast::<u8>()
        })?;
        // SAFETY: the library returned `len` bytes.
        Ok(unsafe { value.as_slice(len) }.to_vec())
    }

    fn write(&self, tx: Transaction, path: &str, value: &[u8]) -> Result<()> {
        let Ok(len) = libc::c_uint::try_from(value.len()) else {
            return Err(Error::errno("xs_write", path, libc::E2BIG));
        };
        // SAFETY: handle, C string and the value's bytes are valid for the call.
        self.request("xs_write", path, |h, path| unsafe {
            sys::xs_write(h, tx.0, path, value.as_ptr().cast(), len)
        })
    }

    fn mkdir(&self, tx: Transaction, path: &str) -> Result<()> {
        // SAFETY: handle and C string are valid for the call.
        self.request("xs_mkdir", path, |h, path| unsafe { sys::xs_mkdir(h, tx.0, path) })
    }

    fn remove(&self, tx: Transaction, path: &str) -> Result<()> {
        // SAFETY: handle and C string are valid for the call.
        self.request("xs_rm", path, |h, path| unsafe { sys::xs_rm(h, tx.0, path) })
    }

    fn directory(&self, tx: Transaction, path: &str) -> Result<Vec<String>> {
        // SAFETY: handle, C string and length are valid for the call.
        let (names, len) = self
            .array("xs_directory", path, |h, path, len| unsafe { sys::xs_directory(h, tx.0, path, len) })?;
        // SAFETY: the library returned `len` pointers to C strings, inside of the same allocation.
        let names = unsafe { names.as_slice(len) }
            .iter()
            // SAFETY: as above.
            .map(|name| unsafe { CStr::from_ptr(*name) }.to_string_lossy().into_owned())
            .collect();
        Ok(names)
    }

    fn permissions(&self, tx: Transaction, path: &str) -> Result<Permissions> {
        // SAFETY: handle, C string and length are valid for the call.
        let (entries, len) = self.array("xs_get_permissions", path, |h, path, len| unsafe {
            sys::xs_get_permissions(h, tx.0, path, len)
        })?;
        // SAFETY: the library returned `len` entries.
        let mut entries = unsafe { entries.as_slice(len) }.iter().map(|entry| {
            let permission = match entry.perms & (sys::XS_PERM_READ | sys::XS_PERM_WRITE) {
                sys::XS_PERM_NONE => Permission::None,
                sys::XS_PERM_READ => Permission::Read,
                sys::XS_PERM_WRITE => Permission::Write,
                _ => Permission::Both,
            };
            (DomId(entry.id as u16), permission)
        });
        let (owner, others) =
            entries.next().ok_or_else(|| Error::errno("xs_get_permissions", path, libc::EINVAL))?;
        Ok(Permissions { owner, others, domains: entries.collect() })
    }

    fn set_permissions(&self, tx: Transaction, path: &str, permissions: &Permissions) -> Result<()> {
        let mut entries: Vec<sys::xs_permissions> = std::iter::once((permissions.owner, permissions.others))
            .chain(permissions.domains.iter().copied())
            .map(|(domid, permission)| sys::xs_permissions {
                id: domid.0.into(),
                perms: match permission {
                    Permission::None => sys::XS_PERM_NONE,
                    Permission::Read => sys::XS_PERM_READ,
                    Permission::Write => sys::XS_PERM_WRITE,
                    Permission::Both => sys::XS_PERM_READ | sys::XS_PERM_WRITE,
                },
            })
            .collect();
        // SAFETY: handle, C string and the entries are valid for the call.
        self.request("xs_set_permissions", path, |h, path| unsafe {
            sys::xs_set_permissions(h, tx.0, path, entries.as_mut_ptr(), entries.len() as libc::c_uint)
        })
    }

    fn begin(&self) -> Result<Transaction> {
        // SAFETY: an open handle.
        match unsafe { sys::xs_transaction_start(self.raw.as_ptr()) } {
            0 => Err(Error::last("xs_transaction_start", "")),
            id => Ok(Transaction(id)),
        }
    }

    fn end(&self, tx: Transaction, commit: bool) -> Result<()> {
        // SAFETY: an open handle and a number.
        if unsafe { sys::xs_transaction_end(self.raw.as_ptr(), tx.0, !commit) } {
            Ok(())
        } else {
            Err(Error::last("xs_transaction_end", if commit { "commit" } else { "abandon" }))
        }
    }

    fn watch(&self, path: &str, token: &str) -> Result<()> {
        let token = c_string("xs_watch", token)?;
        // SAFETY: handle and C strings are valid for the call.
        self.request("xs_watch", path, |h, path| unsafe { sys::xs_watch(h, path, token.as_ptr()) })
    }

    fn unwatch(&self, path: &str, token: &str) -> Result<()> {
        let token = c_string("xs_unwatch", token)?;
        // SAFETY: handle and C strings are valid for the call.
        self.request("xs_unwatch", path, |h, path| unsafe { sys::xs_unwatch(h, path, token.as_ptr()) })
    }

    fn watch_event(&self) -> Result<Option<WatchEvent>> {
        // SAFETY: an open handle.
        let raw = unsafe { sys::xs_check_watch(self.raw.as_ptr()) };
        let Some(strings) = Malloced::new(raw) else {
            let error = Error::last("xs_check_watch", "");
            return if error.kind() == ErrorKind::Again { Ok(None) } else { Err(error) };
        };
        // SAFETY: the library returns two C strings, path and token, in one allocation.
        let [path, token] = unsafe { [*strings.0.as_ptr(), *strings.0.as_ptr().add(1)] }
            // SAFETY: as above.
            .map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
        Ok(Some(WatchEvent { path, token }))
    }

    fn introduce(&self, domid: DomId, ring: Gfn, port: Port) -> Result<()> {
        // SAFETY: an open handle and numbers.
        if unsafe { sys::xs_introduce_domain(self.raw.as_ptr(), domid.0.into(), ring.0, port.0) } {
            Ok(())
        } else {
            Err(Error::last("xs_introduce_domain", format!("domid {domid}, gfn {ring}, port {port}")))
        }
    }

    fn release(&self, domid: DomId) -> Result<()> {
        // SAFETY: an open handle and a number.
        if unsafe { sys::xs_release_domain(self.raw.as_ptr(), domid.0.into()) } {
            Ok(())
        } else {
            Err(Error::last("xs_release_domain", format!("domid {domid}")))
        }
    }

    fn resume(&self, domid: DomId) -> Result<()> {
        // SAFETY: plain values to an open handle.
        if unsafe { sys::xs_resume_domain(self.raw.as_ptr(), domid.0.into()) } {
            Ok(())
        } else {
            Err(Error::last("xs_resume_domain", format!("domid {domid}")))
        }
    }

    fn is_introduced(&self, domid: DomId) -> Result<bool> {
        // SAFETY: an open handle and a number. (A failed request answers false, as an unknown domain does.)
        Ok(unsafe { sys::xs_is_domain_introduced(self.raw.as_ptr(), domid.0.into()) })
    }
}
