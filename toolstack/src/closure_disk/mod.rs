//! Disks that are NixOS closures: what the script `block-nix` does for a disk line with `script=block-nix`.
//!
//! The target is a path of the Nix store. The qube gets a read-only erofs file system with the closure's store paths at its
//! root, as it would find them in `/nix/store`: an image that is kept for the next qube. Images that have store paths in
//! common have their data in common, in files that are called layers; a device of the kernel's device mapper puts the
//! parts of an image together, and nothing else of the layers can be reached through it.
//!
//! The contract is that of libxl's block scripts (docs/misc/block-scripts.txt, tools/hotplug/Linux/block-common.sh):
//! `add` or `remove`, the device's backend in `XENBUS_PATH`; `physical-device` and `hotplug-status` tell blkback and
//! libxl what there is, `hotplug-error` tells why not.

mod erofs;
mod images;
mod layer;
mod requisites;
mod tree;

pub use crate::device::Extent;
use crate::device::{DeviceError, Plumbing, state};
use crate::store::text_if_there;
pub use images::{CLOSURE_IMAGES, CLOSURE_IMAGES_LIMIT, ClosureImage, ClosureImages, Made, StorePath};
use std::io;
use std::path::{Path, PathBuf};
use xen::{Transaction, Xenstore};

/// Why a closure is no disk.
#[derive(Debug, thiserror::Error)]
pub enum ClosureDiskError {
    /// The target is no path of the Nix store.
    #[error("{target} cannot be a disk of block-nix: {reason}", target = .target.display())]
    Target {
        /// As the configuration has it.
        target: PathBuf,
        /// Why.
        reason: String,
    },
    /// A disk that is to be written.
    #[error("{vdev} is to be writable, but a closure cannot be written: its disk needs access=r")]
    Writable {
        /// The disk, as the guest knows it.
        vdev: String,
    },
    /// The device is not one that waits for its script.
    #[error("{path} is no device that waits for its script: its state is {state}")]
    Backend {
        /// `XENBUS_PATH`
        path: String,
        /// As it is in xenstore, or `none`.
        state: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could have put something there.
    #[error("{path} must be a folder of user {user} with mode 0700: remove it, and it is made anew", path = .path.display())]
    NotPrivate {
        /// The folder.
        path: PathBuf,
        /// Who runs this.
        user: u32,
    },
    /// Something that no store path has.
    #[error("{path} is {what}: a store path has files, folders and links", path = .path.display())]
    Special {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// An erofs file system has at most 2^32 blocks of 4 KiB.
    #[error("{target} needs {blocks} blocks of 4 KiB for data, and an image has at most 2^32 in all", target = .target.display())]
    TooLarge {
        /// The store path.
        target: PathBuf,
        /// Of its closure.
        blocks: u64,
    },
    /// The process that makes the image failed.
    #[error("no image of {target}: {reason}", target = .target.display())]
    Preparation {
        /// As the configuration has it.
        target: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The image is not ready yet.
    #[error(
        "the image of {target} is still being made after {seconds} s; it goes on: try again later, or wait with `block-nix prepare {target}'",
        target = .target.display()
    )]
    Unfinished {
        /// As the configuration has it.
        target: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// What stands behind the disk.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// xenstored said no.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// The hotplug script of one disk.
pub struct ClosureDisk<'a> {
    /// xenstore, as the domain with the backend sees it.
    pub store: &'a dyn Xenstore,
    /// That domain's kernel.
    pub plumbing: &'a dyn Plumbing,
    /// `XENBUS_PATH`: the backend's half, from the root or from the domain's home.
    pub path: &'a str,
}

impl ClosureDisk<'_> {
    fn read(&self, name: &str) -> Result<Option<String>, xen::Error> {
        text_if_there(self.store, &format!("{}/{name}", self.path))
    }

    fn write(&self, name: &str, value: &str) -> Result<(), xen::Error> {
        self.store.write(Transaction::NONE, &format!("{}/{name}", self.path), value.as_bytes())
    }

    /// Connects the disk. `image_of` finds the target's image, or has it made.
    ///
    /// # Errors
    /// See [`ClosureDiskError`]; [`Self::report`] tells libxl.
    pub fn add(
        &self,
        image_of: impl FnOnce(&Path) -> Result<ClosureImage, ClosureDiskError>,
    ) -> Result<(), ClosureDiskError> {
        if self.read("physical-device")?.is_some() {
            // The script may be run twice.
            return Ok(());
        }
        self.check_state()?;
        if self.read("mode")?.is_none_or(|mode| mode.contains('w')) {
            let vdev = self.read("dev")?.unwrap_or_else(|| self.path.to_owned());
            return Err(ClosureDiskError::Writable { vdev });
        }
        let target = self.read("params")?.unwrap_or_default();
        let image = image_of(Path::new(&target))?;

        // It took its time: the qube may be gone.
        self.check_state()?;
        let lock = self.plumbing.lock_disks()?;
        let composed = self.plumbing.compose(&self.device_name(), image.files(), image.extents())?;
        drop(lock);
        let (node, (major, minor)) = (composed.node(), composed.number());
        // Until blkback has opened it, the device goes with this process; from then on, with blkback's.
        self.write("node", &node)?;
        self.write("physical-device-path", &node)?;
        self.write("physical-device", &format!("{major:x}:{minor:x}"))?;
        composed.hand_over()?;
        Ok(self.write("hotplug-status", "connected")?)
    }

    /// The name of the qube's device, after domain and disk: XENBUS_PATH ends in both.
    fn device_name(&self) -> String {
        let mut parts = self.path.rsplit('/');
        let (devid, domid) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        format!("{domid}-{devid}")
    }

    fn check_state(&self) -> Result<(), ClosureDiskError> {
        let state = self.read("state")?;
        match state.as_deref() {
            Some(ready) if state::READY.contains(&ready) => Ok(()),
            _ => {
                let state = state.unwrap_or_else(|| "none".to_owned());
                Err(ClosureDiskError::Backend { path: self.path.to_owned(), state })
            }
        }
    }

    /// Takes away what [`Self::add`] has connected, if it has.
    ///
    /// # Errors
    /// What xenstored and the kernel say.
    pub fn remove(&self) -> Result<(), ClosureDiskError> {
        Ok(self.plumbing.take_apart(&self.device_name())?)
    }

    /// Leaves an error where libxl looks for it.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn report(&self, error: &ClosureDiskError) -> Result<(), xen::Error> {
        self.write("hotplug-error", &error.to_string())?;
        self.write("hotplug-status", "error")
    }
}

#[cfg(test)]
mod tests;
