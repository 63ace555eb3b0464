//! Attaching, detaching and listing the devices of a qube that runs.

use super::json::{self, List};
use super::{Address, DeviceError, Devices, Disk, Kind, Mac, Nic, Release, Requested, Vdev};
use crate::config::{QubeConfig, disk_record, nic_record};
use crate::events::Step;
use crate::qubes::{Qube, QubeError, Qubes};
use crate::store::{self, libxl_path};
use crate::userdata::Kind as File;
use xen::DomId;

/// A disk that a domain has. What the guest itself says may be anything, or missing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachedDisk {
    /// Where it is.
    pub address: Address,
    /// The backend's records, as the toolstack names them.
    pub backend_path: String,
    /// The frontend's state.
    pub state: Option<u32>,
    /// Its event channel.
    pub event_channel: Option<u32>,
    /// Its ring.
    pub ring_ref: Option<u32>,
}

/// A network interface that a domain has. What the guest itself says may be anything, or missing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachedNic {
    /// Where it is.
    pub address: Address,
    /// Its Ethernet address.
    pub mac: Mac,
    /// The backend's records, as the toolstack names them.
    pub backend_path: String,
    /// The frontend's state.
    pub state: Option<u32>,
    /// Its event channel.
    pub event_channel: Option<u32>,
    /// Its rings: the one on which the guest sends, and the one on which it receives.
    pub ring_refs: (Option<u32>, Option<u32>),
}

impl Qubes {
    /// Gives a domain another disk.
    ///
    /// # Errors
    /// [`DeviceError`] in [`QubeError::Device`]; nothing is left of it then.
    pub fn attach_disk(&self, qube: &Qube, disk: &Disk) -> Result<(), QubeError> {
        self.attach(qube, std::slice::from_ref(disk), &[])?;
        self.change_configs(
            qube,
            List::Disks,
            disk.vdev.name(),
            Some(disk_record(&disk.into())),
            |config| {
                config.disks.retain(|other| other.vdev != disk.vdev.name());
                config.disks.push(disk.into());
            },
        )?;
        self.tell(qube, Step::Attached { device: format!("disk {}", disk.vdev.name()) });
        Ok(())
    }

    /// Takes a disk away.
    ///
    /// # Errors
    /// [`DeviceError::NotAttached`], or [`DeviceError::NotReleased`] when the guest keeps it.
    pub fn detach_disk(&self, qube: &Qube, vdev: &Vdev, release: Release) -> Result<(), QubeError> {
        let address = self.find_device(qube, Kind::Vbd, vdev.devid(), vdev.name())?;
        // As somebody else may have written it: 51712 is xvda.
        let name = self.read(&format!("{}/dev", address.libxl_path()))?;
        let name = name.unwrap_or_else(|| vdev.name().to_owned());
        self.detach(address, release)?;
        self.change_configs(qube, List::Disks, &name, None, |config| {
            let is_it = |name: &str| Vdev::parse(name).is_ok_and(|other| other.devid() == vdev.devid());
            config.disks.retain(|disk| !is_it(&disk.vdev));
        })?;
        self.tell(qube, Step::Detached { device: format!("disk {name}") });
        Ok(())
    }

    /// The disks of a domain.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn list_disks(&self, qube: &Qube) -> Result<Vec<AttachedDisk>, QubeError> {
        let mut disks = Vec::new();
        for (address, backend_path) in self.attached(qube.info.domid, Kind::Vbd)? {
            let number = |name: &str| self.number(&address, name);
            let (state, event_channel) = (number("state")?, number("event-channel")?);
            let ring_ref = number("ring-ref")?;
            disks.push(AttachedDisk { address, backend_path, state, event_channel, ring_ref });
        }
        Ok(disks)
    }

    /// Gives a domain another network interface. Number and address are chosen where they are not given.
    ///
    /// # Errors
    /// [`DeviceError`] in [`QubeError::Device`]; nothing is left of it then.
    pub fn attach_nic(&self, qube: &Qube, nic: &Nic) -> Result<(), QubeError> {
        let attached = self.backends(qube.info.domid, Kind::Vif)?;
        let numbers = attached.into_iter().filter_map(|(address, _)| Some(address?.devid));
        let nic = nic.settled(numbers.max().map_or(0, |last| last.saturating_add(1)));
        self.attach(qube, &[], std::slice::from_ref(&nic))?;
        let devid = nic.devid.unwrap_or_default().to_string();
        self.change_configs(qube, List::Nics, &devid, Some(nic_record(&(&nic).into())), |config| {
            config.nics.push((&nic).into());
        })?;
        self.tell(qube, Step::Attached { device: format!("interface {devid}") });
        Ok(())
    }

    /// Takes a network interface away.
    ///
    /// # Errors
    /// [`DeviceError::NotAttached`], or [`DeviceError::NotReleased`] when the guest keeps it.
    pub fn detach_nic(&self, qube: &Qube, devid: u32, release: Release) -> Result<(), QubeError> {
        let name = devid.to_string();
        let address = self.find_device(qube, Kind::Vif, devid, &name)?;
        self.detach(address, release)?;
        self.change_configs(qube, List::Nics, &name, None, |config| {
            config.nics.retain(|nic| nic.devid != Some(devid));
        })?;
        self.tell(qube, Step::Detached { device: format!("interface {name}") });
        Ok(())
    }

    /// The network interfaces of a domain.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn list_nics(&self, qube: &Qube) -> Result<Vec<AttachedNic>, QubeError> {
        let mut nics = Vec::new();
        for (address, backend_path) in self.attached(qube.info.domid, Kind::Vif)? {
            let number = |name: &str| self.number(&address, name);
            let mac = self.read(&format!("{}/mac", address.libxl_path()))?;
            nics.push(AttachedNic {
                address,
                mac: mac.map_or(Ok(Mac([0; 6])), |mac| mac.parse())?,
                backend_path,
                state: number("state")?,
                event_channel: number("event-channel")?,
                ring_refs: (number("tx-ring-ref")?, number("rx-ring-ref")?),
            });
        }
        Ok(nics)
    }

    /// All devices of a kind, those with a backend that is not managed here among them.
    fn attached(&self, domid: DomId, kind: Kind) -> Result<Vec<(Address, String)>, QubeError> {
        let folder = Address::folder(domid, kind);
        let mut attached = Vec::new();
        for name in self.directory(&folder)? {
            let devid = super::address::devid(&name)?;
            let Some(path) = self.read(&format!("{folder}/{name}/backend"))? else { continue };
            let backend =
                path.strip_prefix("/local/domain/").and_then(|rest| rest.split('/').next()?.parse().ok());
            let backend = DomId(backend.ok_or_else(|| DeviceError::Devid(path.clone()))?);
            attached.push((Address { domid, kind, devid, backend }, path));
        }
        Ok(attached)
    }

    /// A number in the guest's half of a device.
    fn number(&self, address: &Address, name: &str) -> Result<Option<u32>, xen::Error> {
        let value = self.read(&format!("{}/{name}", address.frontend_path()))?;
        Ok(value.and_then(|value| value.parse().ok()))
    }

    fn find_device(&self, qube: &Qube, kind: Kind, devid: u32, name: &str) -> Result<Address, QubeError> {
        let domid = qube.info.domid;
        let folder = Address::folder(domid, kind);
        let path = self.read(&format!("{folder}/{devid}/backend"))?;
        let path = path.ok_or_else(|| DeviceError::NotAttached { domid, device: name.to_owned() })?;
        let kinds = || path.split('/').nth(5).unwrap_or("unknown").to_owned();
        Address::of_backend_path(domid, kind, devid, &path)
            .ok_or_else(|| QubeError::ForeignDevices { domid, kinds: kinds() })
    }

    fn attach(&self, qube: &Qube, disks: &[Disk], nics: &[Nic]) -> Result<(), QubeError> {
        let domid = qube.info.domid;
        let pv = self.read(&format!("{}/type", libxl_path(domid)))?.as_deref() == Some("pv");
        let mut devices =
            Devices::prepare(self, domid, Requested { pv, disks, nics, ..Requested::default() })?;
        let (addresses, records) = (devices.addresses(), devices.records());
        xen::transaction(&*self.store, |tx| {
            for address in &addresses {
                if self.is_recorded(tx, *address)? {
                    let device = match disks.first() {
                        Some(disk) => disk.vdev.name().to_owned(),
                        None => address.devid.to_string(),
                    };
                    return Err(QubeError::from(DeviceError::Exists { domid, device }));
                }
            }
            Ok(store::write_in(&*self.store, tx, &records)?)
        })?;
        let connected = devices.recorded().and_then(|()| devices.connect());
        connected.map_err(|error| {
            for address in addresses {
                // The error that led here is the one to report.
                let _ = self.detach(address, Release::Forced);
            }
            error.into()
        })
    }

    /// Puts a device into the stored configurations, or takes it out: libxl's, which `xl list -l` shows, and that from
    /// which the watcher makes the qube again.
    pub(super) fn change_configs(
        &self,
        qube: &Qube,
        list: List,
        key: &str,
        device: Option<serde_json::Value>,
        change: impl FnOnce(&mut QubeConfig),
    ) -> Result<(), QubeError> {
        let (domid, uuid) = (qube.info.domid, qube.uuid());
        let _lock = self.userdata.lock_domain(domid, uuid)?;
        let damaged = |kind: &str, error: serde_json::Error| QubeError::UserData {
            path: format!("stored configuration ({kind}) of domain {domid}").into(),
            source: error.into(),
        };
        if let Some(text) = self.userdata.read(File::Libxl, domid, uuid)? {
            let changed = json::change(&text, list, key, device).map_err(|error| damaged("libxl", error))?;
            self.userdata.write(File::Libxl, domid, uuid, &changed)?;
        }
        if let Some(text) = self.userdata.read(File::Nxl, domid, uuid)? {
            let mut config = serde_json::from_str(&text).map_err(|error| damaged("nxl", error))?;
            change(&mut config);
            let text = serde_json::to_string(&config).map_err(|error| damaged("nxl", error))?;
            self.userdata.write(File::Nxl, domid, uuid, &text)?;
        }
        Ok(())
    }
}
