//! Who uses an image: what libxl's block script looks at before it attaches one.

use super::{DeviceError, Disk, Plumbing};
use crate::store::{self, home};
use rustix::fs::{major, minor};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use xen::{DomId, Transaction, Xenstore};

/// A disk's target, opened as the qube will use it.
pub(super) struct Target {
    pub(super) file: File,
    /// Without links.
    pub(super) path: PathBuf,
    pub(super) is: Is,
}

/// What a target is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Is {
    /// A regular file: its device and inode.
    Image((u64, u64)),
    /// A block device: its major and minor number.
    Device((u32, u32)),
}

impl Target {
    /// Opens the target of a disk of this domain.
    pub(super) fn open(disk: &Disk) -> Result<Self, DeviceError> {
        let open = || {
            let path = fs::canonicalize(&disk.target)?;
            let file = OpenOptions::new().read(true).write(!disk.readonly).open(&path)?;
            let metadata = file.metadata()?;
            Ok((path, file, metadata))
        };
        let (vdev, target) = (disk.vdev.name().to_owned(), disk.target.clone());
        let (path, file, metadata) = match open() {
            Ok(opened) => opened,
            Err(source) => return Err(DeviceError::Target { vdev, target, source }),
        };
        let is = if metadata.is_file() {
            Is::Image((metadata.dev(), metadata.ino()))
        } else if metadata.file_type().is_block_device() {
            Is::Device((major(metadata.rdev()), minor(metadata.rdev())))
        } else {
            return Err(DeviceError::NotADisk { vdev, target });
        };
        Ok(Self { file, path, is })
    }

    /// Refuses what somebody else writes, and what somebody else uses when it is to be written.
    pub(super) fn check_sharing(
        &self,
        disk: &Disk,
        store: &dyn Xenstore,
        plumbing: &dyn Plumbing,
    ) -> Result<(), DeviceError> {
        let devices = match self.is {
            Is::Device(device) => vec![device],
            Is::Image(file) => plumbing
                .loops()?
                .into_iter()
                .filter(|other| other.file == file)
                .map(|other| (LOOP_MAJOR, other.number))
                .collect(),
        };
        match user(store, plumbing, &devices, !disk.readonly)? {
            None => Ok(()),
            Some(user) => Err(in_use(disk, user)),
        }
    }
}

/// The major number of loop devices (Documentation/admin-guide/devices.txt).
pub(super) const LOOP_MAJOR: u32 = 7;

pub(super) fn in_use(disk: &Disk, user: String) -> DeviceError {
    DeviceError::InUse { vdev: disk.vdev.name().to_owned(), target: disk.target.clone(), user }
}

/// Numbers of a block device as they stand in xenstore.
pub(super) fn physical_device((major, minor): (u32, u32)) -> String {
    format!("{major:x}:{minor:x}")
}

/// Who uses one of the devices, and writes, or does not but would be surprised by somebody who does.
fn user(
    store: &dyn Xenstore,
    plumbing: &dyn Plumbing,
    devices: &[(u32, u32)],
    writing: bool,
) -> Result<Option<String>, DeviceError> {
    if devices.is_empty() {
        return Ok(None);
    }
    for device in devices {
        if plumbing.mounted(*device)?.is_some_and(|written| written || writing) {
            return Ok(Some("this domain, which has it mounted".to_owned()));
        }
    }
    let numbers: Vec<String> = devices.iter().map(|device| physical_device(*device)).collect();
    let backends = format!("{}/backend/vbd", home(DomId::DOM0));
    let names =
        |path: &str| store::directory_if_there(store, Transaction::NONE, path).map(Option::unwrap_or_default);
    for domid in names(&backends)? {
        for devid in names(&format!("{backends}/{domid}"))? {
            let read =
                |name: &str| store::text_if_there(store, &format!("{backends}/{domid}/{devid}/{name}"));
            let used = read("physical-device")?.is_some_and(|number| numbers.contains(&number));
            if used && (writing || read("mode")?.is_some_and(|mode| mode.contains('w'))) {
                return Ok(Some(format!("domain {domid}, as its disk {devid}")));
            }
        }
    }
    Ok(None)
}
