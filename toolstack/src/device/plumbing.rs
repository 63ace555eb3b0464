//! What stands behind the devices in the domain of their backends: loop devices, bridges, scripts, locks.

use super::script::{Action, Script};
use super::{DeviceError, link, loop_device, mapper};
use crate::lock;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The lock under which libxl's block script looks who uses an image, and takes it.
const DISKS_LOCK: &str = "/run/xen-hotplug/block";

/// A loop device that goes when the value does, or the process.
pub trait Hold: Send {
    /// Its number.
    fn number(&self) -> u32;
    /// Lets it stay until somebody detaches it.
    ///
    /// # Errors
    /// What the kernel says; it goes then.
    fn keep(self: Box<Self>) -> Result<(), DeviceError>;
}

/// A block device that is put together from parts of files. It goes when the value does, or the process, unless a backend
/// has opened it; then it goes when that closes it.
pub trait Composed: Send {
    /// Its major and minor number.
    fn number(&self) -> (u32, u32);
    /// Its path.
    fn node(&self) -> String;
    /// Waits until a backend has it open.
    ///
    /// # Errors
    /// What the kernel says, or that none came; it goes then.
    fn hand_over(self: Box<Self>) -> Result<(), DeviceError>;
}

/// A part of a file, which is a part of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Which of the files.
    pub file: usize,
    /// Where it begins there, in bytes: a multiple of 512.
    pub offset: u64,
    /// In bytes: a multiple of 512.
    pub len: u64,
}

/// A loop device and the file that it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoopInfo {
    /// Its number.
    pub number: u32,
    /// Device and inode of the file, as stat(2) has them.
    pub file: (u64, u64),
}

/// How an interface is put on a bridge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// The bridge.
    pub bridge: String,
    /// Its MTU; `None` for the bridge's.
    pub mtu: Option<u32>,
    /// The name that it gets.
    pub name: Option<String>,
    /// What it is for, to be seen in its alias.
    pub device: String,
}

/// The kernel, and the file system, of the domain with the backends.
pub trait Plumbing: Send + Sync {
    /// Waits until nobody else, be it a script of libxl's, is between looking who uses an image and recording that it is
    /// used; the lock is held as long as the file.
    ///
    /// # Errors
    /// What the file system says.
    fn lock_disks(&self) -> Result<Option<File>, DeviceError>;
    /// Makes a loop device over an open image.
    ///
    /// # Errors
    /// What the kernel says.
    fn attach_loop(&self, image: &File, name: &Path, readonly: bool) -> Result<Box<dyn Hold>, DeviceError>;
    /// Puts parts of files together to a block device that cannot be written, under a name that is the device's own.
    ///
    /// # Errors
    /// What the kernel says.
    fn compose(
        &self,
        name: &str,
        files: &[(PathBuf, File)],
        extents: &[Extent],
    ) -> Result<Box<dyn Composed>, DeviceError>;
    /// Takes such a device away, now or as soon as nobody has it open; that there is none is no error.
    ///
    /// # Errors
    /// What the kernel says.
    fn take_apart(&self, name: &str) -> Result<(), DeviceError>;
    /// All loop devices.
    ///
    /// # Errors
    /// What the kernel says.
    fn loops(&self) -> Result<Vec<LoopInfo>, DeviceError>;
    /// Lets a loop device be as large as its file has become; a backend that has it open tells its guest.
    ///
    /// # Errors
    /// What the kernel says.
    fn grow_loop(&self, number: u32) -> Result<(), DeviceError>;
    /// Takes the file from a loop device; that it has none is no error.
    ///
    /// # Errors
    /// What the kernel says.
    fn detach_loop(&self, number: u32) -> Result<(), DeviceError>;
    /// Whether a block device (major, minor) is mounted, and if so, whether it can be written.
    ///
    /// # Errors
    /// What the kernel says.
    fn mounted(&self, device: (u32, u32)) -> Result<Option<bool>, DeviceError>;
    /// The MTU of a bridge.
    ///
    /// # Errors
    /// [`DeviceError::Bridge`] when there is none of that name.
    fn bridge_mtu(&self, bridge: &str) -> Result<u32, DeviceError>;
    /// Puts an interface on a bridge; the answer is its MTU.
    ///
    /// # Errors
    /// [`DeviceError::Bridge`] or [`DeviceError::Link`].
    fn connect(&self, interface: &str, port: &Port) -> Result<u32, DeviceError>;
    /// Whether an interface was connected by [`connect`](Self::connect), and by no script.
    fn is_connected_here(&self, interface: &str) -> bool;
    /// Runs a script.
    ///
    /// # Errors
    /// [`DeviceError::Script`].
    fn run(&self, script: &Script, action: Action) -> Result<(), DeviceError>;
}

/// The domain that this runs in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dom0;

impl Plumbing for Dom0 {
    fn lock_disks(&self) -> Result<Option<File>, DeviceError> {
        let error = |source| DeviceError::System { what: format!("lock {DISKS_LOCK}"), source };
        lock::wait(Path::new(DISKS_LOCK)).map(Some).map_err(error)
    }

    fn attach_loop(&self, image: &File, name: &Path, readonly: bool) -> Result<Box<dyn Hold>, DeviceError> {
        loop_device::attach(image, name, readonly).map_err(DeviceError::Loop)
    }

    fn compose(
        &self,
        name: &str,
        files: &[(PathBuf, File)],
        extents: &[Extent],
    ) -> Result<Box<dyn Composed>, DeviceError> {
        mapper::compose(name, files, extents).map_err(DeviceError::Mapper)
    }

    fn take_apart(&self, name: &str) -> Result<(), DeviceError> {
        mapper::take_apart(name).map_err(DeviceError::Mapper)
    }

    fn loops(&self) -> Result<Vec<LoopInfo>, DeviceError> {
        loop_device::all().map_err(DeviceError::Loop)
    }

    fn grow_loop(&self, number: u32) -> Result<(), DeviceError> {
        loop_device::grow(number).map_err(DeviceError::Loop)
    }

    fn detach_loop(&self, number: u32) -> Result<(), DeviceError> {
        loop_device::detach(number).map_err(DeviceError::Loop)
    }

    fn mounted(&self, device: (u32, u32)) -> Result<Option<bool>, DeviceError> {
        let what = || "/proc/self/mountinfo".to_owned();
        let mounts =
            fs::read_to_string(what()).map_err(|source| DeviceError::System { what: what(), source })?;
        Ok(mounted_in(&mounts, device))
    }

    fn bridge_mtu(&self, bridge: &str) -> Result<u32, DeviceError> {
        link::bridge_mtu(bridge)
    }

    fn connect(&self, interface: &str, port: &Port) -> Result<u32, DeviceError> {
        link::connect(interface, port)
    }

    fn is_connected_here(&self, interface: &str) -> bool {
        link::is_connected_here(interface)
    }

    fn run(&self, script: &Script, action: Action) -> Result<(), DeviceError> {
        script.run(action)
    }
}

/// Whether a device is mounted, and if so, whether it can be written, by a text in the format of proc_pid_mountinfo(5).
fn mounted_in(mounts: &str, (major, minor): (u32, u32)) -> Option<bool> {
    let device = format!("{major}:{minor}");
    let writable = mounts.lines().filter(|line| line.split(' ').nth(2) == Some(&device)).map(|line| {
        let options = line.rsplit(' ').next().unwrap_or_default();
        !options.split(',').any(|option| option == "ro")
    });
    writable.reduce(|one, other| one || other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_device() {
        let mounts = "22 1 7:3 / /mnt rw,relatime shared:1 - ext4 /dev/loop3 ro,errors=continue\n\
                      23 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n24 1 8:1 /x /x ro - ext4 /dev/sda1 rw\n";
        assert_eq!(mounted_in(mounts, (7, 3)), Some(false));
        assert_eq!(mounted_in(mounts, (8, 1)), Some(true));
        assert_eq!(mounted_in(mounts, (7, 30)), None);
        assert_eq!(mounted_in("", (7, 3)), None);
        assert_eq!(Dom0.mounted((4_000, 4_000)).unwrap(), None);
    }
}
