//! Detaching devices: closing their backends, undoing what stands behind them, removing their records.

use super::attach::is_disk_default;
use super::{Action, Address, DeviceError, Kind, Script, address, nic, pci, script_path, state};
use crate::qubes::{QubeError, Qubes};
use crate::store::{self, libxl_path};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use xen::{DomId, PciAddress, Transaction};

/// How long a frontend may take to let go of a device (`LIBXL_DESTROY_TIMEOUT`).
const LIMIT: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(10) };

/// What is done about a guest that does not let go of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Release {
    /// It keeps it, and that is an error.
    Asked,
    /// It is asked first.
    AskedThenForced,
    /// It is not asked: its half is removed at once.
    Forced,
}

/// What there is to undo when the backend is closed.
enum Behind {
    Nothing,
    Loop(u32),
    Script(Script),
    Pci(Vec<PciAddress>),
}

/// The devices of a domain.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Those that can be detached here.
    pub(crate) managed: Vec<Address>,
    /// The kinds of those that cannot.
    pub(crate) foreign: Vec<String>,
}

impl Qubes {
    /// The devices of a domain, by the toolstacks' records.
    pub(crate) fn devices(&self, domid: DomId) -> Result<Found, QubeError> {
        let mut found = Found::default();
        for kind in self.directory(&format!("{}/device", libxl_path(domid)))? {
            match Kind::ALL.into_iter().find(|known| known.name() == kind) {
                None => found.foreign.push(kind),
                Some(kind) => {
                    for (address, path) in self.backends(domid, kind)? {
                        match address {
                            // The first console, which goes with the domain.
                            _ if kind == Kind::Channel && is_first_console(&path) => {}
                            // A channel of dom0's is served by a process of QEMU.
                            Some(Address { kind: Kind::Channel, backend: DomId::DOM0, .. }) => {
                                found.foreign.push("channel".to_owned());
                            }
                            // And so is such a file system.
                            Some(Address { kind: Kind::P9, backend: DomId::DOM0, .. }) => {
                                found.foreign.push(kind.name().to_owned());
                            }
                            Some(address) => found.managed.push(address),
                            // Such as qdisk: that of a process of qemu.
                            None => {
                                found.foreign.push(path.split('/').nth(5).unwrap_or("unknown").to_owned())
                            }
                        }
                    }
                }
            }
        }
        // libxl keeps no record of these here.
        if !found.managed.iter().any(|device| device.kind == Kind::Pci)
            && !self.claimed_pcis(domid)?.is_empty()
        {
            found.managed.push(pci::address(domid));
        }
        Ok(found)
    }

    /// The backends of a domain's devices of a kind, and what the records call them. As libxl, it passes over records
    /// that name none.
    pub(super) fn backends(
        &self,
        domid: DomId,
        kind: Kind,
    ) -> Result<Vec<(Option<Address>, String)>, QubeError> {
        let folder = Address::folder(domid, kind);
        let mut backends = Vec::new();
        for name in self.directory(&folder)? {
            let devid = address::devid(&name)?;
            if let Some(path) = self.read(&format!("{folder}/{name}/backend"))? {
                backends.push((Address::of_backend_path(domid, kind, devid, &path), path));
            }
        }
        Ok(backends)
    }

    /// Detaches one device.
    pub(super) fn detach(&self, address: Address, release: Release) -> Result<(), QubeError> {
        let problems = self.close(&[address], release)?;
        xen::transaction(&*self.store, |tx| {
            for path in [address.frontend_path(), address.libxl_path(), address.backend_path()] {
                store::remove_with_empty_parents(&*self.store, tx, &path)?;
            }
            Ok::<_, xen::Error>(())
        })?;
        problems.into_iter().next().map_or(Ok(()), |problem| Err(problem.into()))
    }

    /// Closes the backends of devices and undoes what stands behind them; their records stay. What could not be undone
    /// is the answer.
    pub(crate) fn close(&self, devices: &[Address], release: Release) -> Result<Vec<DeviceError>, QubeError> {
        let behind: Vec<Behind> =
            devices.iter().map(|device| self.behind(*device)).collect::<Result<_, _>>()?;
        let mut problems = Vec::new();
        let open = self.begin_to_close(devices, release == Release::Forced)?;
        let paths: Vec<String> = open.iter().map(|device| closing_path(*device)).collect();
        let late = self.settle(&paths, LIMIT, |at| {
            let state = self.read(&paths[at])?;
            Ok(state.is_none_or(|state| open[at].backend == DomId::DOM0 && state == state::CLOSED))
        })?;
        if let Some(first) = late.first() {
            let (address, waited) = (open[*first], LIMIT);
            let asked = self.read(&format!("{}/backend", address.frontend_path()))?.is_some();
            match release {
                Release::Asked if asked => return Err(DeviceError::NotReleased { address, waited }.into()),
                Release::AskedThenForced => return self.close(devices, Release::Forced),
                Release::Asked | Release::Forced => problems.push(DeviceError::NotClosed { address, waited }),
            }
        }
        for (domid, behind) in devices.iter().map(|device| device.domid).zip(behind) {
            let undone = match behind {
                Behind::Nothing => Ok(()),
                Behind::Loop(number) => self.plumbing.detach_loop(number),
                Behind::Pci(pcis) => self.take_pcis_back(domid, &pcis),
                Behind::Script(script) => self.plumbing.run(&script, Action::Remove),
            };
            problems.extend(undone.err());
        }
        Ok(problems)
    }

    /// Tells the backends to close, in one transaction; the answer are those to be waited for.
    fn begin_to_close(&self, devices: &[Address], forced: bool) -> Result<Vec<Address>, xen::Error> {
        xen::transaction(&*self.store, |tx| {
            let mut open = Vec::new();
            for device in devices {
                let backend = device.backend_path();
                let path = format!("{backend}/state");
                let state = store::read_if_there(&*self.store, tx, &path)?;
                if forced || self.is_alone(tx, *device, state.as_deref())? {
                    store::remove_if_there(&*self.store, tx, &device.frontend_path())?;
                }
                let Some(state) = state else { continue };
                self.store.write(tx, &format!("{backend}/online"), b"0")?;
                if state != state::CLOSED.as_bytes() {
                    self.store.write(tx, &path, state::CLOSING.as_bytes())?;
                }
                // What no driver of the backend's has taken, nobody closes, either.
                if state != state::INITIALISING.as_bytes() {
                    open.push(*device);
                }
            }
            Ok(open)
        })
    }

    /// Whether the guest has not come to its device, so that nobody would close it: it is starting, has no driver, or has not
    /// noticed that the device is another than the one that was there before (older Linux). Nothing of its memory is
    /// mapped then, whatever it says itself; and one that is just about to come finds the device gone.
    fn is_alone(&self, tx: Transaction, device: Address, backend: Option<&[u8]>) -> Result<bool, xen::Error> {
        let is = |state: Option<&[u8]>, expected: &str| state == Some(expected.as_bytes());
        if !is(backend, state::CLOSING) {
            return Ok(is(backend, state::INITIALISING) || is(backend, state::INIT_WAIT));
        }
        // Somebody asked for its end before; a guest that lies here loses its own device.
        let frontend = store::read_if_there(&*self.store, tx, &format!("{}/state", device.frontend_path()))?;
        Ok(is(frontend.as_deref(), state::INITIALISING))
    }

    fn behind(&self, device: Address) -> Result<Behind, QubeError> {
        if device.backend != DomId::DOM0 {
            return Ok(Behind::Nothing);
        }
        let (libxl, backend) = (device.libxl_path(), device.backend_path());
        let script = self.read(&format!("{libxl}/script"))?;
        match device.kind {
            Kind::Vbd if is_disk_default(script.as_deref()) => {
                let node = self.read(&format!("{backend}/node"))?;
                let number = node.and_then(|node| node.strip_prefix("/dev/loop")?.parse().ok());
                let Some(number) = number else { return Ok(Behind::Nothing) };
                let image = self.read(&format!("{libxl}/params"))?.unwrap_or_default();
                Ok(if self.has_image(number, &image)? { Behind::Loop(number) } else { Behind::Nothing })
            }
            Kind::Vif if script.as_deref().is_none_or(|script| script == script_path(nic::SCRIPT)) => {
                let name = self.read(&format!("{libxl}/vifname"))?.unwrap_or_else(|| device.vif());
                let connected = self.read(&format!("{backend}/hotplug-status"))?;
                // netback takes its interface from the bridge; the script's filters only the script finds.
                if connected.as_deref() != Some("connected") || self.plumbing.is_connected_here(&name) {
                    return Ok(Behind::Nothing);
                }
                Ok(Behind::Script(self.script(device, script_path(nic::SCRIPT))?))
            }
            Kind::Pci => Ok(Behind::Pci(self.claimed_pcis(device.domid)?)),
            Kind::Vkb | Kind::Channel | Kind::P9 => Ok(Behind::Nothing),
            Kind::Vbd | Kind::Vif => Ok(Behind::Script(self.script(device, script.unwrap_or_default())?)),
        }
    }

    fn script(&self, address: Address, path: String) -> Result<Script, QubeError> {
        let gatewaydev = match address.kind {
            Kind::Vbd | Kind::Vkb | Kind::Channel | Kind::P9 | Kind::Pci => None,
            Kind::Vif => self.read(&format!("{}/gatewaydev", address.libxl_path()))?,
        };
        Ok(Script { address, path, gatewaydev })
    }

    /// Whether a loop device is still that of the image: it may have been detached behind our back, and its number be
    /// another's since. An image that is gone can be nobody else's.
    fn has_image(&self, number: u32, image: &str) -> Result<bool, DeviceError> {
        let Ok(image) = fs::metadata(image) else { return Ok(true) };
        let loops = self.plumbing.loops()?;
        Ok(loops.iter().any(|known| known.number == number && known.file == (image.dev(), image.ino())))
    }
}

/// Whether that is the backend's half of a domain's first console.
fn is_first_console(path: &str) -> bool {
    path.rsplit('/').next() == Some("0")
}

/// What shows that a backend is closed: its state; of another domain's, whose toolstack has still to undo what stands
/// behind it, the removal of its records.
fn closing_path(device: Address) -> String {
    let backend = device.backend_path();
    if device.backend == DomId::DOM0 { format!("{backend}/state") } else { backend }
}

impl Qubes {
    /// Stops a domain, and closes all its devices without asking it.
    pub(crate) fn close_all(&self, domid: DomId, devices: &[Address]) -> Result<Vec<DeviceError>, QubeError> {
        if devices.is_empty() {
            return Ok(Vec::new());
        }
        match self.control.pause(domid) {
            // Gone already; its devices may still be there.
            Err(error) if error.kind() != xen::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.close(devices, Release::Forced)
    }

    /// Whether a device of a domain is recorded.
    pub(super) fn is_recorded(&self, tx: Transaction, address: Address) -> Result<bool, xen::Error> {
        Ok(store::read_if_there(&*self.store, tx, &address.libxl_path())?.is_some())
    }
}
