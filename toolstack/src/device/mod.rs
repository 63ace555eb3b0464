//! Devices of a qube: disks, network interfaces, keyboards and channels, with no shell script on the path.
//!
//! A [`Disk`] or [`Nic`] is a plain value that says what is to be attached. Its xenstore records are those that libxl
//! writes, so that `xl block-list`, `xl network-detach` or `xl destroy` find an ordinary device; what libxl leaves to
//! the scripts in /etc/xen/scripts (a loop device for an image, a port on a bridge) is done right here, through
//! [`Plumbing`]. Only a script that the configuration names is run.
//!
//! Attaching is two steps. First a disk's image gets its block device, and the records of all devices are written, with
//! the block devices already in them, in one transaction. Then one wait, on watches, for all the backends at once; what
//! an interface still needs is done when netback has made it. A loop device lives, until its records are written, only
//! as long as the process that made it: a toolstack that dies leaves none behind.
//!
//! What is read back comes from below `/libxl`, where no guest writes; of the guest's half only numbers are shown.

mod address;
mod attach;
pub(crate) mod channel;
mod detach;
mod devd;
mod disk;
mod error;
mod json;
mod link;
mod loop_device;
mod manage;
mod mapper;
mod nic;
pub(crate) mod p9;
pub(crate) mod pci;
mod plumbing;
mod script;
mod sharing;
pub mod spec;
#[cfg(test)]
pub(crate) mod tests;
mod vdev;
pub(crate) mod vkb;

pub use crate::config::{Mac, NicRate};
pub use address::{Address, Kind};
pub use detach::Release;
pub use devd::{Devd, DevdError, FOLDER as DEVD_FOLDER, Told};
pub use disk::Disk;
pub use error::DeviceError;
pub use manage::{AttachedDisk, AttachedNic};
pub use nic::Nic;
pub use pci::AttachedPci;
pub use plumbing::{Composed, Dom0, Extent, Hold, LoopInfo, Plumbing, Port};
pub use script::{Action, Script};
pub use vdev::Vdev;

pub(crate) use attach::{Devices, Requested, check};
pub(crate) use script::wait;

/// Where libxl looks for a script that is named without its folder.
const SCRIPTS: &str = "/etc/xen/scripts";

/// The states that xenbus drivers go through (`enum xenbus_state`, xen/include/public/io/xenbus.h).
pub(crate) mod state {
    pub(crate) const INITIALISING: &str = "1";
    /// A backend that waits for its frontend: nothing of the guest is mapped.
    pub(crate) const INIT_WAIT: &str = "2";
    pub(crate) const CLOSING: &str = "5";
    pub(crate) const CLOSED: &str = "6";
    /// A backend that has taken its device, whatever the frontend did meanwhile.
    pub(crate) const READY: [&str; 3] = ["2", "3", "4"];
}

/// The absolute path of a script.
fn script_path(name: &str) -> String {
    if name.starts_with('/') { name.to_owned() } else { format!("{SCRIPTS}/{name}") }
}
