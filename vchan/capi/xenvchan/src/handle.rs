//! `struct libxenvchan`, as callers see it, and what is ours behind it.

use c_channel::{Channel, Raw};
use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::{offset_of, size_of};
use std::ptr;
use std::sync::Arc;
use vchan::{Orders, Ring, Side};

/// `struct libxenvchan_ring` of libxenvchan.h.
#[repr(C)]
pub(crate) struct RingView {
    /// `struct ring_shared` in the control page: `cons`, then `prod`.
    shr: *mut c_void,
    buffer: *mut c_void,
    order: c_int,
}

/// `struct libxenvchan` of libxenvchan.h. Callers look at all of it and change the flags.
#[repr(C)]
pub(crate) struct Public {
    /// `xengntshr_handle` of a server, `xengnttab_handle` of a client.
    grants: *mut c_void,
    /// The control page, `struct vchan_interface`.
    ring: *mut c_void,
    /// `xenevtchn_handle`.
    event: *mut c_void,
    event_port: u32,
    flags: u32,
    read: RingView,
    write: RingView,
    /// A server's.
    xs_path: *mut c_char,
}

/// The bit fields, as the x86-64 ABI places them.
const IS_SERVER: u32 = 1;
const SERVER_PERSIST: u32 = 2;
const BLOCKING: u32 = 4;

const _: () = {
    assert!(size_of::<Public>() == 88 && size_of::<RingView>() == 24);
    assert!(offset_of!(Public, ring) == 8 && offset_of!(Public, event) == 16);
    assert!(offset_of!(Public, event_port) == 24 && offset_of!(Public, flags) == 28);
    assert!(offset_of!(Public, read) == 32 && offset_of!(Public, write) == 56);
    assert!(offset_of!(Public, xs_path) == 80);
    assert!(offset_of!(RingView, buffer) == 8 && offset_of!(RingView, order) == 16);
};

/// What a caller holds a pointer to.
#[repr(C)]
pub(crate) struct Handle {
    public: Public,
    /// Ours alone.
    pub(crate) channel: Arc<Channel>,
    /// What `xs_path` points to.
    _path: Option<CString>,
}

impl Handle {
    pub(crate) fn new((channel, raw): (Arc<Channel>, Raw), path: Option<CString>) -> Self {
        let server = channel.side() == Side::Server;
        let view = |ring: Ring| RingView {
            shr: raw.page.wrapping_add(if ring == Ring::Left { 0 } else { 8 }).cast(),
            buffer: buffer(&raw, channel.orders(), ring).cast(),
            order: channel.orders().order(ring).into(),
        };
        let public = Public {
            grants: raw.grants.cast(),
            ring: raw.page.cast(),
            event: raw.events.cast(),
            event_port: raw.port,
            flags: if server { IS_SERVER } else { 0 },
            read: view(channel.side().receives()),
            write: view(channel.side().sends()),
            xs_path: path.as_ref().map_or(ptr::null_mut(), |path| path.as_ptr().cast_mut()),
        };
        Self { public, channel, _path: path }
    }

    /// The flags as they are now.
    ///
    /// # Safety
    /// `handle` points to a handle.
    #[inline]
    pub(crate) unsafe fn flags(handle: *const Self) -> Flags {
        // SAFETY: the caller's word. A copy, not a reference: between two calls, and from another thread, C may change it.
        Flags(unsafe { (&raw const (*handle).public.flags).read_volatile() })
    }
}

/// What callers set.
#[derive(Clone, Copy)]
pub(crate) struct Flags(u32);

impl Flags {
    #[inline]
    pub(crate) fn blocking(self) -> bool {
        self.0 & BLOCKING != 0
    }

    #[inline]
    pub(crate) fn persist(self) -> bool {
        self.0 & SERVER_PERSIST != 0
    }
}

/// Where a ring's bytes are.
fn buffer(raw: &Raw, orders: Orders, ring: Ring) -> *mut u8 {
    match (orders.order(ring), ring) {
        // In the control page, at an offset of its size.
        (10 | 11, _) => raw.page.wrapping_add(orders.size(ring) as usize),
        (_, Ring::Left) => raw.left,
        (_, Ring::Right) => raw.right,
    }
}
