//! Why a device could not be attached or detached.

use super::Address;
use crate::pciback::PcibackError;
use std::io;
use std::time::Duration;
use xen::DomId;

/// Why a device could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No virtual disk's name.
    #[error("{0:?} names no virtual disk: xvda, xvdb3, d5p1, hda, sda or a number does")]
    Vdev(String),
    /// No Ethernet address.
    #[error("{0:?} is no MAC address: six bytes in hexadecimal, such as 00:16:3e:12:34:56")]
    Mac(String),
    /// No number of a device.
    #[error("{0:?} is no number of a device")]
    Devid(String),
    /// A line of a configuration that describes no device.
    #[error("{spec:?}: {problem}")]
    Spec {
        /// The line.
        spec: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is a device of that number already.
    #[error("domain {domid} has a device {device} already")]
    Exists {
        /// Which domain.
        domid: DomId,
        /// Its name or number.
        device: String,
    },
    /// There is none.
    #[error("domain {domid} has no device {device}")]
    NotAttached {
        /// Which domain.
        domid: DomId,
        /// Its name, number or address.
        device: String,
    },
    /// A disk's target cannot be opened.
    #[error("disk {vdev}: {target}: {source}")]
    Target {
        /// Which disk.
        vdev: String,
        /// What was to be attached.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// A disk's target is no disk.
    #[error("disk {vdev}: {target} is neither a regular file nor a block device")]
    NotADisk {
        /// Which disk.
        vdev: String,
        /// What was to be attached.
        target: String,
    },
    /// Somebody uses it in a way that does not go together with this one.
    #[error(
        "disk {vdev}: {target} is in use by {user}: an image is shared only when everybody attaches it read-only"
    )]
    InUse {
        /// Which disk.
        vdev: String,
        /// What was to be attached.
        target: String,
        /// By whom.
        user: String,
    },
    /// No loop device.
    #[error("loop device: {0}")]
    Loop(#[source] io::Error),
    /// No device put together from parts of files.
    #[error("device mapper: {0}")]
    Mapper(#[source] io::Error),
    /// There is no such bridge.
    #[error("{0} is no bridge of this domain (`ip link add {0} type bridge' makes one)")]
    Bridge(String),
    /// An interface could not be set up.
    #[error("interface {interface}: {source}")]
    Link {
        /// Which.
        interface: String,
        /// Why.
        source: io::Error,
    },
    /// The backend did not take the device.
    #[error("{address}: its backend in domain {} was not ready {after}: {reason}", .address.backend)]
    Backend {
        /// Which device.
        address: Address,
        /// When it was given up.
        after: String,
        /// What it says, or what to look at.
        reason: String,
    },
    /// The guest does not let go.
    #[error("{address} was not released within {} s; -f takes it away", waited.as_secs())]
    NotReleased {
        /// Which device.
        address: Address,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The backend does not.
    #[error("{address}: its backend in domain {} did not close within {} s", .address.backend, waited.as_secs())]
    NotClosed {
        /// Which device.
        address: Address,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A script failed.
    #[error("{address}: script {script}: {reason}")]
    Script {
        /// For which device.
        address: Address,
        /// Its path.
        script: String,
        /// How.
        reason: String,
    },
    /// A PCI device cannot be given away or taken back.
    #[error(transparent)]
    Pciback(#[from] PcibackError),
    /// A lock, or a wait, failed.
    #[error("{what}: {source}")]
    System {
        /// What was done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}
