//! Suspended domains through libxenguest.
#![allow(unsafe_code, reason = "calls of the C libraries")]

use super::control::{Control, done};
use super::logger;
use super::release::guest_library;
use crate::suspension::{RestoredRings, RingEnds, Suspension};
use crate::{DomId, Error, Gfn, Result};
use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use xen_sys as sys;

/// No second descriptor: what only checkpoints that follow each other need.
const NO_DESCRIPTOR: c_int = -1;

/// The domain is to be suspended: it is already.
unsafe extern "C" fn suspended(_: *mut c_void) -> c_int {
    1
}

/// A device model is to note which pages it writes: there is none.
unsafe extern "C" fn no_device_model(_: u32, _: c_uint, _: *mut c_void) -> c_int {
    0
}

/// All that does not change in a domain's life was read. Before Xen 4.14 the CPUID policy was not in a stream, and nobody knows
/// which one the guest had.
unsafe extern "C" fn static_data_done(missing: c_uint, _: *mut c_void) -> c_int {
    if missing == 0 { 0 } else { -1 }
}

/// The functions' 0 and -1, with what the library has logged of a failure: its errno says next to nothing.
fn explained(call: &'static str, args: impl FnOnce() -> String, body: impl FnOnce() -> c_int) -> Result<()> {
    let (result, said) = logger::first_error(body);
    match said {
        Some(said) if result < 0 => Err(Error::new(call, args(), io::Error::other(said))),
        _ => done(result, call, args),
    }
}

impl Suspension for Control {
    fn save_domain(&self, domid: DomId, to: BorrowedFd<'_>) -> Result<()> {
        let xc = self.libxenctrl()?;
        let library = guest_library()?;
        let mut callbacks = sys::save_callbacks {
            suspend: Some(suspended),
            switch_qemu_logdirty: Some(no_device_model),
            ..Default::default()
        };
        explained(
            "xc_domain_save",
            || format!("domid {domid}"),
            || {
                // SAFETY: an open handle and descriptor; the callbacks live as long as the call, and are all that a plain stream
                // of a domain that is not live asks for.
                unsafe {
                    library.xc_domain_save(
                        xc.handle(),
                        to.as_raw_fd(),
                        domid.0.into(),
                        0,
                        &raw mut callbacks,
                        sys::xc_stream_type_t_XC_STREAM_PLAIN,
                        NO_DESCRIPTOR,
                    )
                }
            },
        )
    }

    fn restore_domain(&self, domid: DomId, from: BorrowedFd<'_>, ends: RingEnds) -> Result<RestoredRings> {
        let xc = self.libxenctrl()?;
        let library = guest_library()?;
        let mut callbacks =
            sys::restore_callbacks { static_data_done: Some(static_data_done), ..Default::default() };
        let (mut store, mut console) = (0, 0);
        explained(
            "xc_domain_restore",
            || format!("domid {domid}"),
            || {
                // SAFETY: an open handle and descriptor; what the pointers lead to is live, and of the types that the function
                // takes.
                unsafe {
                    library.xc_domain_restore(
                        xc.handle(),
                        from.as_raw_fd(),
                        domid.0.into(),
                        ends.store.0.0,
                        &raw mut store,
                        ends.store.1.0.into(),
                        ends.console.0.0,
                        &raw mut console,
                        ends.console.1.0.into(),
                        sys::xc_stream_type_t_XC_STREAM_PLAIN,
                        &raw mut callbacks,
                        NO_DESCRIPTOR,
                    )
                }
            },
        )?;
        Ok(RestoredRings { store: Gfn(store), console: Gfn(console) })
    }

    fn resume_domain(&self, domid: DomId) -> Result<()> {
        /// The guest's request is answered, rather than its connections made anew.
        const COOPERATIVE: c_int = 1;
        let xc = self.libxenctrl()?;
        let library = guest_library()?;
        explained(
            "xc_domain_resume",
            || format!("domid {domid}"),
            || {
                // SAFETY: plain values to an open handle.
                unsafe { library.xc_domain_resume(xc.handle(), domid.0.into(), COOPERATIVE) }
            },
        )
    }
}
