//! Diagnostics through libxenctrl.
#![allow(unsafe_code, reason = "calls of the C libraries")]

use super::control::{Control, done, text_of};
use super::release::guest_library;
use crate::{Diagnostics, DomId, Error, ErrorKind, Result, Trigger};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What is read of the console ring in one hypercall.
const RING_PART: usize = 16 << 10;
/// The longest label that XSM makes, with room to spare.
const LABEL: usize = 1_024;

fn c_string(call: &'static str, bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::errno(call, String::from_utf8_lossy(bytes), libc::EINVAL))
}

impl Control {
    /// What the console ring has from `index` on, at most a part, and the index behind it.
    fn console_ring_part(&self, clear: bool, index: &mut u32) -> Result<Vec<u8>> {
        let xc = self.libxenctrl()?;
        let mut part = vec![0_u8; RING_PART];
        let mut len = RING_PART as u32;
        // SAFETY: the buffer has the room that `len` says; both numbers are live.
        let result = unsafe {
            xc.xc_readconsolering(xc.handle(), part.as_mut_ptr().cast(), &raw mut len, clear.into(), 1, index)
        };
        done(result, "xc_readconsolering", || format!("from {index}"))?;
        part.truncate(len as usize);
        Ok(part)
    }
}

impl Diagnostics for Control {
    fn console_ring(&self, clear: bool) -> Result<Vec<u8>> {
        let (mut ring, mut index) = (Vec::new(), 0);
        loop {
            let part = self.console_ring_part(false, &mut index)?;
            if part.is_empty() {
                break;
            }
            ring.extend(part);
        }
        // Clearing forgets all that there is, not only what was read: so it comes when all was read.
        if clear {
            ring.extend(self.console_ring_part(true, &mut index)?);
        }
        Ok(ring)
    }

    fn send_debug_keys(&self, keys: &str) -> Result<()> {
        let xc = self.libxenctrl()?;
        let text = c_string("xc_send_debug_keys", keys.as_bytes())?;
        // SAFETY: a string that ends with a NUL.
        let result = unsafe { xc.xc_send_debug_keys(xc.handle(), text.as_ptr()) };
        done(result, "xc_send_debug_keys", || keys.to_owned())
    }

    fn send_trigger(&self, domid: DomId, trigger: Trigger, vcpu: u32) -> Result<()> {
        let xc = self.libxenctrl()?;
        // SAFETY: plain values to an open handle.
        let result = unsafe { xc.xc_domain_send_trigger(xc.handle(), domid.0.into(), trigger as u32, vcpu) };
        done(result, "xc_domain_send_trigger", || format!("domid {domid}, {trigger:?}, vCPU {vcpu}"))
    }

    fn dump_core(&self, domid: DomId, file: &Path) -> Result<()> {
        let xc = self.libxenctrl()?;
        let path = c_string("xc_domain_dumpcore", file.as_os_str().as_bytes())?;
        let library = guest_library()?;
        // SAFETY: a string that ends with a NUL.
        let result = unsafe { library.xc_domain_dumpcore(xc.handle(), domid.0.into(), path.as_ptr()) };
        done(result, "xc_domain_dumpcore", || format!("domid {domid}, {}", file.display()))
    }

    fn security_label(&self, ssidref: u32) -> Result<Option<String>> {
        let xc = self.libxenctrl()?;
        let mut label = [0_u8; LABEL];
        // SAFETY: the buffer has the room that the function is told of.
        let result = unsafe {
            xc.xc_flask_sid_to_context(
                xc.handle(),
                ssidref as libc::c_int,
                label.as_mut_ptr().cast(),
                LABEL as u32,
            )
        };
        if result < 0 {
            let error = Error::last("xc_flask_sid_to_context", format!("id {ssidref}"));
            // A hypervisor without XSM knows neither the hypercall nor the label of any id.
            return match error.kind() {
                ErrorKind::Unavailable | ErrorKind::Invalid => Ok(None),
                _ => Err(error),
            };
        }
        Ok(Some(text_of(&label)))
    }
}
