//! A qube's private volume: one of those that `nxl volume` lists, made when it is not there and grown when more is
//! declared. A block device of dom0 is as it is.

use super::document::Private;
use crate::qubes::Qubes;
use crate::volume::{Format, Name, RAW, VolumeError, Volumes};
use std::ffi::OsStr;
use std::path::Path;

/// Where block devices are.
const DEVICES: &str = "/dev/";

/// The folder and the name of the volume that a target is; `None` of what is none.
fn place(target: &str) -> Option<(&Path, Name)> {
    let path = Path::new(target);
    let stem = path.file_stem().filter(|_| path.extension() == Some(OsStr::new(RAW)))?;
    Some((path.parent()?, stem.to_str()?.parse().ok()?))
}

/// Whether a target can be a private volume: it is one of `Volumes`, or a block device.
pub(super) fn is_one(target: &str) -> bool {
    target.starts_with(DEVICES) || place(target).is_some()
}

/// The volume, among those of its folder.
pub(super) struct PrivateVolume {
    volumes: Volumes,
    name: Name,
    /// In bytes.
    declared: u64,
    format: Option<Format>,
}

impl PrivateVolume {
    /// `None` for a block device, of which nothing is to be made.
    pub(super) fn of(qubes: &Qubes, private: &Private) -> Option<Self> {
        let (folder, name) = place(&private.target).filter(|_| !private.target.starts_with(DEVICES))?;
        let volumes = Volumes::new(folder).sharing(qubes.plumbing.clone());
        Some(Self { volumes, name, declared: private.size << 20, format: private.format })
    }

    /// The bytes that it has and those that it is to have, if that is not the same. One that is not there is made with the
    /// qube.
    pub(super) fn difference(&self) -> Result<Option<(u64, u64)>, VolumeError> {
        let there = self.volumes.size(&self.name)?;
        Ok(there.filter(|size| *size != self.declared).map(|size| (size, self.declared)))
    }

    /// Makes it, or lets it grow.
    pub(super) fn ensure(&self) -> Result<(), VolumeError> {
        let volume = self.volumes.ensure(&self.name, self.declared, self.format)?;
        if volume.image.size != self.declared {
            self.volumes.resize(&self.name, self.declared)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_volume_or_a_block_device() {
        for right in ["/var/lib/nxl/volumes/work.raw", "/dev/vg/work", "/srv/a.b.raw"] {
            assert!(is_one(right), "{right}");
        }
        for wrong in [
            "/var/lib/nexus/private/work.img",
            "/srv/.raw",
            "/srv/-x.raw",
            "/srv/work@now.raw",
            "/srv/raw",
            "/",
        ] {
            assert!(!is_one(wrong), "{wrong}");
        }
    }
}
