//! What helps to find out what is wrong: Xen's messages, its debug keys, interrupts out of the blue, core dumps.

use crate::{DomId, Result};
use std::path::Path;

/// What can be set off in a domain (`XEN_DOMCTL_SENDTRIGGER_*`, xen/include/public/domctl.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Trigger {
    /// A non-maskable interrupt.
    Nmi = xen_sys::XEN_DOMCTL_SENDTRIGGER_NMI,
    /// A reset: Xen has none, and answers with an error.
    Reset = xen_sys::XEN_DOMCTL_SENDTRIGGER_RESET,
    /// An INIT to a vCPU (hardware-virtualised domains alone).
    Init = xen_sys::XEN_DOMCTL_SENDTRIGGER_INIT,
    /// The ACPI power button (HVM alone).
    Power = xen_sys::XEN_DOMCTL_SENDTRIGGER_POWER,
    /// The ACPI sleep button (HVM alone).
    Sleep = xen_sys::XEN_DOMCTL_SENDTRIGGER_SLEEP,
}

/// What dom0's toolstack may ask for a diagnosis. One method is one hypercall of libxenctrl unless it says otherwise.
pub trait Diagnostics {
    /// Xen's console ring; `clear` forgets what was read. One hypercall for each 16 KiB, one more, and one with `clear`.
    fn console_ring(&self, clear: bool) -> Result<Vec<u8>>;
    /// Presses keys on Xen's console: `h` writes to it what each does. One hypercall.
    fn send_debug_keys(&self, keys: &str) -> Result<()>;
    /// Sets something off in a domain, on a vCPU where that makes a difference.
    fn send_trigger(&self, domid: DomId, trigger: Trigger, vcpu: u32) -> Result<()>;
    /// Writes a domain's memory and vCPUs to a file, as an ELF core (docs/misc/dump-core-format.txt). Many hypercalls and
    /// mappings; the domain should not run meanwhile.
    fn dump_core(&self, domid: DomId, file: &Path) -> Result<()>;
    /// The label of an XSM security id; `None` when the hypervisor has no labels.
    fn security_label(&self, ssidref: u32) -> Result<Option<String>>;
}
