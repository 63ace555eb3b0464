//! The hypercalls of the commands that are run the most (list, destroy, pause, unpause), and those that libxenctrl has no
//! function for, straight to the kernel's devices: a program that needs no more than these loads none of Xen's libraries.
//!
//! The kernel's part is one for all releases of Xen (include/uapi/xen/privcmd.h). What a hypercall carries is that of the
//! headers' release, of which the hypervisor must be.
#![allow(unsafe_code, reason = "hypercalls")]

use super::control::done;
use super::release;
use crate::{DomId, Error, PAGE_SIZE, Result};
use rustix::mm::{self, MapFlags, ProtFlags};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use xen_sys as sys;

/// Takes hypercalls.
const PRIVCMD: &str = "/dev/xen/privcmd";
/// Gives memory that stays where it is: what a hypercall's pointers may point to.
const BUFFERS: &str = "/dev/xen/hypercall";

/// `struct privcmd_hypercall`
#[repr(C)]
struct Hypercall {
    op: u64,
    arg: [u64; 5],
}

/// `IOCTL_PRIVCMD_HYPERCALL`: `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`
const PRIVCMD_HYPERCALL: libc::c_ulong = (size_of::<Hypercall>() as libc::c_ulong) << 16 | 0x50 << 8;

pub(super) struct Hypercalls {
    privcmd: File,
    buffers: File,
}

/// Pages that the hypervisor may read and write while it is called. Zero at first.
struct Buffer {
    base: NonNull<libc::c_void>,
    len: usize,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: mapped by `buffer`, with this length, and not used afterwards.
        let _ = unsafe { mm::munmap(self.base.as_ptr(), self.len) };
    }
}

fn open_device(path: &'static str) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| Error::new("open", path, error))
}

type Info = sys::xen_domctl_getdomaininfo;

impl Hypercalls {
    /// Where [`Self::domains`] has its answer, in bytes from its call.
    const HEAD: usize = size_of::<sys::xen_sysctl>().next_multiple_of(align_of::<Info>());
    /// How many of [`Self::domains`] go into a page with the call: each page of a buffer takes its time.
    pub(super) const IN_A_PAGE: usize = (PAGE_SIZE - Self::HEAD) / size_of::<Info>();

    /// An error when the hypervisor is of another release than this was built for.
    pub(super) fn open() -> Result<Self> {
        let calls = Self { privcmd: open_device(PRIVCMD)?, buffers: open_device(BUFFERS)? };
        // SAFETY: this command takes no argument and returns the version.
        let version = unsafe { calls.call(sys::__HYPERVISOR_xen_version, [sys::XENVER_version.into(), 0]) };
        done(version, "XENVER_version", String::new)?;
        release::check(version)?;
        Ok(calls)
    }

    /// # Safety
    /// The arguments are what the hypercall takes; what is an address among them leads into a [`Buffer`] with room for
    /// all that the hypercall reads and writes.
    unsafe fn call<const N: usize>(&self, op: u32, arguments: [u64; N]) -> libc::c_int {
        let mut call = Hypercall { op: op.into(), arg: [0; 5] };
        call.arg[..N].copy_from_slice(&arguments);
        // SAFETY: an open descriptor of the device, and a live value of the type that the request takes; the caller's word
        // for the rest.
        unsafe { libc::ioctl(self.privcmd.as_raw_fd(), PRIVCMD_HYPERCALL, &raw mut call) }
    }

    /// At least so many bytes, page-aligned.
    fn buffer(&self, bytes: usize) -> Result<Buffer> {
        let len = bytes.next_multiple_of(PAGE_SIZE);
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping where the kernel likes; it replaces nothing.
        let base = unsafe { mm::mmap(std::ptr::null_mut(), len, prot, flags, self.buffers.as_fd(), 0) };
        let base =
            base.map_err(|errno| Error::new("mmap", format!("{BUFFERS}, {len} bytes"), errno.into()))?;
        let base = NonNull::new(base).ok_or_else(|| Error::errno("mmap", BUFFERS, libc::ENOMEM))?;
        Ok(Buffer { base, len })
    }

    /// One `XEN_DOMCTL_*` without an answer. `call`'s version is filled in.
    pub(super) fn domctl(
        &self,
        mut call: sys::xen_domctl,
        name: &'static str,
        args: impl FnOnce() -> String,
    ) -> Result<()> {
        call.interface_version = sys::XEN_DOMCTL_INTERFACE_VERSION;
        let buffer = self.buffer(size_of_val(&call))?;
        let place = buffer.base.cast::<sys::xen_domctl>();
        // SAFETY: the buffer has the size of a `xen_domctl` and the alignment of a page, and nobody else knows of it; the
        // hypercall takes its address and reads and writes a `xen_domctl`.
        let result = unsafe {
            place.write(call);
            self.call(sys::__HYPERVISOR_domctl, [place.as_ptr() as u64])
        };
        done(result, name, args)
    }

    /// One `XEN_DOMCTL_*` that takes no more than a domain.
    pub(super) fn domctl_of(&self, domid: DomId, cmd: u32, name: &'static str) -> Result<()> {
        let call = sys::xen_domctl { cmd, domain: domid.0, ..Default::default() };
        self.domctl(call, name, || format!("domid {domid}"))
    }

    /// What Xen says of the domains from the id `first` on, by id; of at most `most` (`XEN_SYSCTL_getdomaininfolist`).
    pub(super) fn domains(&self, first: u32, most: usize) -> Result<Vec<Info>> {
        // The call, and behind it the room for its answer.
        let bytes = Self::HEAD + most * size_of::<Info>();
        let buffer = self.buffer(bytes)?;
        let place = buffer.base.cast::<sys::xen_sysctl>();
        // SAFETY: `HEAD` is within the buffer, and aligned as the entries want it.
        let answer = unsafe { buffer.base.byte_add(Self::HEAD) }.cast::<Info>();
        let mut call = sys::xen_sysctl {
            cmd: sys::XEN_SYSCTL_getdomaininfolist,
            interface_version: sys::XEN_SYSCTL_INTERFACE_VERSION,
            ..Default::default()
        };
        let mut list = sys::xen_sysctl_getdomaininfolist {
            first_domain: first as sys::domid_t,
            max_domains: most as u32,
            ..Default::default()
        };
        list.buffer.p = answer.as_ptr();
        call.u.getdomaininfolist = list;
        // SAFETY: the buffer has the size of a `xen_sysctl`, and behind it that of `most` entries, and nobody else knows of it;
        // the hypercall takes its address, reads and writes a `xen_sysctl` and at most `most` entries.
        let result = unsafe {
            place.write(call);
            self.call(sys::__HYPERVISOR_sysctl, [place.as_ptr() as u64])
        };
        done(result, "XEN_SYSCTL_getdomaininfolist", || format!("from domid {first}"))?;
        // SAFETY: Xen wrote into the member that it was called with, and as many entries as it says there.
        Ok(unsafe {
            let found = place.as_ref().u.getdomaininfolist.num_domains as usize;
            std::slice::from_raw_parts(answer.as_ptr(), found.min(most)).to_vec()
        })
    }
}
