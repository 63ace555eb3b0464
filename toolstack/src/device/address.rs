//! Where a device is in xenstore.

use super::DeviceError;
use crate::store::{Record, home, libxl_path};
use std::fmt;
use xen::{DomId, Permissions};

/// A kind of device, by its backend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// A disk.
    Vbd,
    /// A network interface.
    Vif,
    /// A keyboard and pointer.
    Vkb,
    /// A 9P file system.
    P9,
    /// A console with a name, other than the first.
    Channel,
    /// All PCI devices that it has.
    Pci,
}

impl Kind {
    /// All that are managed here, in the order in which libxl attaches them.
    pub const ALL: [Self; 6] = [Self::Vbd, Self::Channel, Self::P9, Self::Vkb, Self::Vif, Self::Pci];

    /// As it is written in the paths of the guest's half and of the toolstacks' record.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vbd => "vbd",
            Self::Vif => "vif",
            Self::Vkb => "vkbd",
            Self::P9 => "9pfs",
            Self::Channel => "console",
            Self::Pci => "pci",
        }
    }

    /// As it is written in the path of the backend's half.
    fn backend_name(self) -> &'static str {
        match self {
            Self::Vkb => "vinput",
            other => other.name(),
        }
    }

    /// The kernel module with its backend driver; `None` for those that programs serve.
    pub(super) fn module(self) -> Option<&'static str> {
        match self {
            Self::Vbd => Some("xen-blkback"),
            Self::Vif => Some("xen-netback"),
            Self::Pci => Some("xen-pciback"),
            Self::Vkb | Self::Channel | Self::P9 => None,
        }
    }
}

/// A device of a qube.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Address {
    /// The qube.
    pub domid: DomId,
    /// The kind.
    pub kind: Kind,
    /// Its number among the qube's devices of that kind.
    pub devid: u32,
    /// The domain with the backend.
    pub backend: DomId,
}

impl Address {
    /// The guest's half.
    #[must_use]
    pub fn frontend_path(&self) -> String {
        format!("{}/device/{}/{}", home(self.domid), self.kind.name(), self.devid)
    }

    /// The backend's half.
    #[must_use]
    pub fn backend_path(&self) -> String {
        format!("{}/{}", home(self.backend), self.script_path())
    }

    /// The backend's half, as its domain sees it.
    pub(super) fn script_path(&self) -> String {
        format!("backend/{}/{}/{}", self.kind.backend_name(), self.domid, self.devid)
    }

    /// The toolstacks' own record, which neither of the two can write.
    #[must_use]
    pub fn libxl_path(&self) -> String {
        format!("{}/{}", Self::folder(self.domid, self.kind), self.devid)
    }

    /// The toolstacks' records of all devices of a kind.
    pub(super) fn folder(domid: DomId, kind: Kind) -> String {
        format!("{}/device/{}", libxl_path(domid), kind.name())
    }

    /// The device whose toolstacks' record names that backend; `None` if it is not one of that kind and place.
    pub(super) fn of_backend_path(domid: DomId, kind: Kind, devid: u32, path: &str) -> Option<Self> {
        let backend = path.strip_prefix("/local/domain/")?.split('/').next()?.parse().ok()?;
        let address = Self { domid, kind, devid, backend: DomId(backend) };
        (address.backend_path() == path).then_some(address)
    }

    /// The interface that netback makes for it in its domain.
    #[must_use]
    pub fn vif(&self) -> String {
        format!("vif{}.{}", self.domid, self.devid)
    }

    /// The records of both halves and of the toolstack, in the order in which libxl writes them. `hotplug` is the part of
    /// the backend's half that libxl leaves to its scripts.
    pub(super) fn records(&self, entries: &Entries) -> Vec<Record> {
        let (frontend, backend) = (self.frontend_path(), self.backend_path());
        let frontends_own = Permissions::readable_by(self.domid, self.backend);
        let backends_own = Permissions::readable_by(self.backend, self.domid);
        let mut records = Vec::new();
        let mut add = |path: String, value: &str, permissions: Option<&Permissions>| {
            records.push(Record { path, value: value.to_owned(), permissions: permissions.cloned() });
        };

        let libxl = self.libxl_path();
        add(format!("{libxl}/frontend"), &frontend, None);
        add(format!("{libxl}/backend"), &backend, None);

        add(frontend.clone(), "", Some(&frontends_own));
        add(format!("{frontend}/backend"), &backend, None);
        for (name, value) in &entries.front {
            add(format!("{frontend}/{name}"), value, None);
        }
        for (name, value) in &entries.read_only_front {
            add(format!("{frontend}/{name}"), value, Some(&backends_own));
        }

        add(backend.clone(), "", Some(&backends_own));
        add(format!("{backend}/frontend"), &frontend, None);
        for (name, value) in entries.back.iter().chain(&entries.hotplug) {
            add(format!("{backend}/{name}"), value, None);
        }
        for (name, value) in &entries.back {
            add(format!("{libxl}/{name}"), value, None);
        }
        records
    }
}

/// Such as `vbd 51712 of domain 3`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of domain {}", self.kind.name(), self.devid, self.domid)
    }
}

/// Names and values of a device's nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Entries {
    /// The guest's half, which is the guest's to change.
    pub(super) front: Vec<(&'static str, String)>,
    /// What the guest may only read.
    pub(super) read_only_front: Vec<(&'static str, String)>,
    /// The backend's half; the toolstack keeps a copy.
    pub(super) back: Vec<(&'static str, String)>,
    /// What libxl's scripts add to the backend's half.
    pub(super) hotplug: Vec<(&'static str, String)>,
}

/// The number of a device, as it stands in a path.
pub(super) fn devid(name: &str) -> Result<u32, DeviceError> {
    name.parse().map_err(|_| DeviceError::Devid(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_backend_of_that_very_device_is_taken_for_it() {
        let of = |path| Address::of_backend_path(DomId(3), Kind::Vbd, 51712, path);
        let address = Address { domid: DomId(3), kind: Kind::Vbd, devid: 51712, backend: DomId(7) };
        assert_eq!(of("/local/domain/7/backend/vbd/3/51712"), Some(address));
        let vkb = Address { kind: Kind::Vkb, devid: 0, ..address };
        assert_eq!(vkb.frontend_path(), "/local/domain/3/device/vkbd/0");
        assert_eq!(vkb.backend_path(), "/local/domain/7/backend/vinput/3/0");
        for other in [
            "/local/domain/7/backend/qdisk/3/51712",
            "/local/domain/7/backend/vbd/4/51712",
            "/local/domain/7/backend/vbd/3/51728",
            "/local/domain/7/backend/vbd/3/51712/..",
            "/local/domain/x/backend/vbd/3/51712",
            "/vm/7/backend/vbd/3/51712",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
