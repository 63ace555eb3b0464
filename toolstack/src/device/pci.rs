//! PCI devices of a PV qube, which pciback in dom0 passes through.
//!
//! To xenbus, all of a qube's devices are one, with the number 0: the backend's half has a list of them, and a node for each
//! property with the place in the list behind its name (`dev-0`, `opts-0`). libxl keeps no record of its own of it; what it
//! keeps is `/libxl/pci/DEVICE/domid`, by which nobody else is given the device.
//!
//! Besides being told where its devices are, the guest must be allowed to use their ports, memory and interrupts, and the IOMMU
//! must let them reach the guest's memory, and no other.

use super::json::List;
use super::{Address, DeviceError, Kind, Release, state};
use crate::config::{
    GuestType, Passthrough, PciConfig, PciDevice, PciOptions, QubeConfig, RdmPolicy, pci_record,
};
use crate::events::Step;
use crate::pciback::{self, Pciback, PcibackError};
use crate::qubes::{Qube, QubeError, Qubes};
use crate::store::{self, Record, libxl_path};
use std::time::Duration;
use xen::{DomId, ErrorKind, Hardware, PciAddress, Permissions, Reserved};

#[cfg(test)]
mod tests;

/// How long guest and backend may take to agree on a change (`LIBXL_INIT_TIMEOUT`).
const LIMIT: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(10) };

/// The backend's states: it has exported what is in the list; the guest has taken it; the list has changed.
const EXPORTED: &str = "3";
const CONNECTED: &str = "4";
const RECONFIGURING: &str = "7";

/// The nodes of one device in the list, without its place.
const NODES: [&str; 7] = ["key", "dev", "vdevfn", "name", "opts", "state", "vdev"];

/// A PCI device that a domain has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AttachedPci {
    /// Where it is on the host.
    pub device: PciAddress,
    /// Device (upper five bits) and function in the guest, as the toolstack asked for; 0 where it left that to pciback.
    pub vdevfn: u8,
    /// The name by which it was asked for.
    pub name: Option<String>,
}

/// One function that is to be passed through.
#[derive(Clone, Debug)]
struct Function {
    device: PciAddress,
    vdevfn: u8,
    name: Option<String>,
    options: PciOptions,
    rdm_policy: RdmPolicy,
}

impl Function {
    fn nodes(&self, place: usize) -> Vec<(String, String)> {
        let PciOptions { permissive, msitranslate, power_mgmt, .. } = self.options;
        let flag = u8::from;
        let policy = match self.rdm_policy {
            RdmPolicy::Strict => "strict",
            RdmPolicy::Relaxed => "relaxed",
        };
        let mut nodes = vec![("key", self.device.to_string()), ("dev", self.device.to_string())];
        if self.vdevfn != 0 {
            nodes.push(("vdevfn", format!("{:x}", self.vdevfn)));
        }
        nodes.extend(self.name.iter().map(|name| ("name", name.clone())));
        let options = format!(
            "msitranslate={},power_mgmt={},permissive={},rdm_policy={policy}",
            flag(msitranslate),
            flag(power_mgmt),
            flag(permissive)
        );
        nodes.extend([("opts", options), ("state", state::INITIALISING.to_owned())]);
        nodes.into_iter().map(|(name, value)| (format!("{name}-{place}"), value)).collect()
    }
}

/// The functions that texts of a configuration ask for, each of which can be given to a qube.
fn functions(pciback: &Pciback<'_>, configs: &[PciConfig]) -> Result<Vec<Function>, PcibackError> {
    let mut functions: Vec<Function> = Vec::new();
    for config in configs {
        let slot = config.slot.unwrap_or(0) << 3;
        let function = |device: PciAddress, vdevfn, name| Function {
            device,
            vdevfn,
            name,
            options: config.options,
            rdm_policy: config.rdm_policy,
        };
        let mut found = Vec::new();
        match &config.device {
            PciDevice::Name(name) => {
                let device = pciback.named(name)?.ok_or_else(|| PcibackError::Unknown(name.clone()))?;
                found.push(function(device, slot, Some(name.clone())));
            }
            PciDevice::Address(address) => {
                let first = first_function(*address);
                match address.function {
                    Some(number) => {
                        found.push(function(PciAddress { devfn: first.devfn | number, ..first }, slot, None));
                    }
                    // Without a slot, each of them would be a device of its own in the guest.
                    None if slot == 0 => return Err(PcibackError::Slot(first)),
                    None => {
                        for device in pciback.functions(first)? {
                            found.push(function(device, slot | device.devfn & 7, None));
                        }
                    }
                }
            }
        }
        for function in found {
            let device = function.device;
            if functions.iter().any(|other| other.device == device) {
                return Err(PcibackError::Twice(device));
            }
            if let Some(domid) = pciback.owner(device)? {
                return Err(PcibackError::Assigned { device, domid });
            }
            if !pciback.is_held(device)? {
                if !pciback.exists(device)? {
                    return Err(PcibackError::NoDevice(device));
                }
                if !function.options.seize {
                    return Err(PcibackError::NotAssignable(device));
                }
            }
            functions.push(function);
        }
        if functions.is_empty() {
            return Err(PcibackError::Unknown(text_of(&config.device)));
        }
    }
    Ok(functions)
}

fn first_function(address: crate::config::PciAddress) -> PciAddress {
    PciAddress { segment: address.domain, bus: address.bus, devfn: address.device << 3 }
}

fn text_of(device: &PciDevice) -> String {
    match device {
        PciDevice::Address(address) => address.to_string(),
        PciDevice::Name(name) => name.clone(),
    }
}

impl QubeConfig {
    /// Whether the IOMMU is to translate for it: it has devices, or is to be given some later.
    pub(crate) fn wants_iommu(&self) -> bool {
        let later = matches!(
            self.passthrough,
            Some(Passthrough::Enabled | Passthrough::SyncPt | Passthrough::SharePt)
        );
        later || !self.pcis.is_empty()
    }

    /// Whether it sees the holes of the machine's memory map.
    pub(crate) fn sees_host_map(&self) -> bool {
        self.guest == GuestType::Pv && (!self.pcis.is_empty() || self.stated.get("e820_host") == Some(&1))
    }
}

/// Refuses early what cannot be given to a qube.
pub(crate) fn check(qubes: &Qubes, config: &QubeConfig) -> Result<(), QubeError> {
    if !config.wants_iommu() {
        return Ok(());
    }
    if !qubes.control.phys_info()?.gives_devices() {
        return Err(DeviceError::from(PcibackError::NoPassthrough).into());
    }
    functions(&qubes.pciback(), &config.pcis).map_err(DeviceError::from)?;
    Ok(())
}

/// Devices on their way into a domain: taken back with the value, unless they are recorded.
pub(crate) struct Given<'a> {
    qubes: &'a Qubes,
    domid: DomId,
    functions: Vec<Function>,
    /// Taken from their drivers for this.
    seized: Vec<PciAddress>,
    claimed: bool,
    /// How many of them the domain has, or may have in part.
    granted: usize,
}

impl<'a> Given<'a> {
    /// Gives a domain all that is behind its devices; nothing of them is in its part of xenstore yet.
    pub(crate) fn prepare(
        qubes: &'a Qubes,
        domid: DomId,
        configs: &[PciConfig],
    ) -> Result<Self, DeviceError> {
        let (seized, claimed, granted) = (Vec::new(), false, 0);
        if configs.is_empty() {
            return Ok(Self { qubes, domid, functions: Vec::new(), seized, claimed, granted });
        }
        let pciback = qubes.pciback();
        let functions = functions(&pciback, configs)?;
        let mut given = Self { qubes, domid, functions, seized, claimed, granted };
        for function in &given.functions {
            if !pciback.is_held(function.device)? {
                pciback.add(function.device, None)?;
                given.seized.push(function.device);
            }
        }
        let devices: Vec<PciAddress> = given.functions.iter().map(|function| function.device).collect();
        pciback.claim(&devices, domid)?;
        given.claimed = true;
        for function in &given.functions {
            given.granted += 1;
            grant(&pciback, qubes, domid, function)?;
        }
        Ok(given)
    }

    fn address(&self) -> Address {
        address(self.domid)
    }

    /// Both halves, with all devices in the list.
    pub(crate) fn records(&self, name: &str) -> Vec<Record> {
        if self.functions.is_empty() {
            return Vec::new();
        }
        let (frontend, backend) = (self.address().frontend_path(), self.address().backend_path());
        let mut records = Vec::new();
        let mut add = |path: String, value: &str, permissions: Option<Permissions>| {
            records.push(Record { path, value: value.to_owned(), permissions });
        };
        add(backend.clone(), "", Some(Permissions::readable_by(DomId::DOM0, self.domid)));
        for (name, value) in [
            ("frontend", frontend.as_str()),
            ("frontend-id", &self.domid.to_string()),
            ("online", "1"),
            ("state", state::INITIALISING),
            ("domain", name),
        ] {
            add(format!("{backend}/{name}"), value, None);
        }
        add(frontend.clone(), "", Some(Permissions::readable_by(self.domid, DomId::DOM0)));
        for (name, value) in
            [("backend", backend.as_str()), ("backend-id", "0"), ("state", state::INITIALISING)]
        {
            add(format!("{frontend}/{name}"), value, None);
        }
        for (place, function) in self.functions.iter().enumerate() {
            for (name, value) in function.nodes(place) {
                add(format!("{backend}/{name}"), &value, None);
            }
        }
        add(format!("{backend}/num_devs"), &self.functions.len().to_string(), None);
        records
    }

    /// They are recorded: they stay from now on, until they are detached.
    pub(crate) fn recorded(&mut self) {
        (self.claimed, self.granted) = (false, 0);
        self.seized.clear();
    }

    /// Waits until pciback has exported them. The guest may take its time.
    pub(crate) fn connect(&self) -> Result<(), DeviceError> {
        if self.functions.is_empty() {
            return Ok(());
        }
        self.qubes.await_pciback(self.domid, &[EXPORTED, CONNECTED], "what does `dmesg` say of pciback?")
    }
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        // The error that led here is the one to report.
        let pciback = self.qubes.pciback();
        for function in &self.functions[..self.granted] {
            let _ = revoke(&pciback, self.qubes, self.domid, function.device);
            let _ = take_back(&pciback, self.qubes, self.domid, function.device);
        }
        if self.claimed {
            for function in &self.functions[self.granted..] {
                let _ = pciback.disclaim(function.device);
            }
        }
        for device in &self.seized {
            let _ = pciback.remove(&device.to_string(), true);
        }
    }
}

/// Lets a domain use a device, and the device the domain's memory.
fn grant(
    pciback: &Pciback<'_>,
    qubes: &Qubes,
    domid: DomId,
    function: &Function,
) -> Result<(), PcibackError> {
    let Function { device, options, rdm_policy, .. } = *function;
    pciback.reset(device);
    for piece in pciback.hardware(device)? {
        qubes.control.set_access(domid, piece, true)?;
    }
    if let Some(interrupt) = pciback.interrupt(device)? {
        let own = qubes.control.map_interrupt(domid, interrupt)?;
        qubes.control.set_access(domid, Hardware::Interrupt(own), true)?;
    }
    if options.permissive {
        pciback.set_permissive(device)?;
    }
    let reserved = match rdm_policy {
        RdmPolicy::Strict => Reserved::Strict,
        RdmPolicy::Relaxed => Reserved::Relaxed,
    };
    qubes.control.assign_device(domid, device, reserved).map_err(|error| match error.kind() {
        ErrorKind::Unavailable => PcibackError::NotTranslated { device, domid },
        _ => error.into(),
    })
}

/// The domain uses the device no longer. The first error is the answer, and all is tried.
fn revoke(
    pciback: &Pciback<'_>,
    qubes: &Qubes,
    domid: DomId,
    device: PciAddress,
) -> Result<(), PcibackError> {
    let mut result = Ok(());
    let mut note = |outcome: Result<(), xen::Error>| {
        if let Err(error) = outcome
            && result.is_ok()
        {
            result = Err(error.into());
        }
    };
    for piece in pciback.hardware(device)? {
        note(qubes.control.set_access(domid, piece, false));
    }
    if let Some(interrupt) = pciback.interrupt(device)? {
        note(qubes.control.unmap_interrupt(domid, interrupt));
        note(qubes.control.set_access(domid, Hardware::Interrupt(interrupt), false));
    }
    result
}

/// The device reaches the domain's memory no longer, and can be given to another.
fn take_back(
    pciback: &Pciback<'_>,
    qubes: &Qubes,
    domid: DomId,
    device: PciAddress,
) -> Result<(), PcibackError> {
    pciback.reset(device);
    match qubes.control.deassign_device(domid, device) {
        // It never had it, or is gone: then Xen itself has taken it back.
        Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound) => {}
        other => other?,
    }
    pciback.disclaim(device)
}

/// Where a domain's PCI devices are.
pub(super) fn address(domid: DomId) -> Address {
    Address { domid, kind: Kind::Pci, devid: 0, backend: DomId::DOM0 }
}

impl Qubes {
    fn pciback(&self) -> Pciback<'_> {
        Pciback::new(self, &*self.sysfs)
    }

    /// The PCI devices of a domain.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn list_pcis(&self, qube: &Qube) -> Result<Vec<AttachedPci>, QubeError> {
        Ok(self.pcis(qube.info.domid)?)
    }

    /// The same of a domain by its id. What makes no sense is passed over: nobody but the toolstacks writes there.
    fn pcis(&self, domid: DomId) -> Result<Vec<AttachedPci>, xen::Error> {
        let backend = address(domid).backend_path();
        let read = |name: &str, place: usize| self.read(&format!("{backend}/{name}-{place}"));
        let count = self.read(&format!("{backend}/num_devs"))?.and_then(|count| count.parse().ok());
        let mut found = Vec::new();
        for place in 0..count.unwrap_or(0) {
            let Some(device) = read("dev", place)?.and_then(|device| PciAddress::parse(&device)) else {
                continue;
            };
            let vdevfn = read("vdevfn", place)?.and_then(|vdevfn| u8::from_str_radix(&vdevfn, 16).ok());
            found.push(AttachedPci { device, vdevfn: vdevfn.unwrap_or(0), name: read("name", place)? });
        }
        Ok(found)
    }

    /// The devices that nobody else is given as long as they are recorded as this domain's: those that it has, and those that
    /// whoever died over it was about to give it.
    pub(super) fn claimed_pcis(&self, domid: DomId) -> Result<Vec<PciAddress>, xen::Error> {
        let claims = pciback::claims(self)?.into_iter();
        Ok(claims.filter(|(_, owner, _)| *owner == domid).map(|(device, ..)| device).collect())
    }

    /// Takes back all that a domain has behind its PCI devices, whose backend is closed.
    pub(super) fn take_pcis_back(&self, domid: DomId, devices: &[PciAddress]) -> Result<(), DeviceError> {
        let pciback = self.pciback();
        let mut result = Ok(());
        for device in devices {
            result = result.and(take_back(&pciback, self, domid, *device));
        }
        Ok(result?)
    }

    /// Waits until pciback is in one of the states.
    fn await_pciback(&self, domid: DomId, wanted: &[&str], hint: &str) -> Result<(), DeviceError> {
        let path = format!("{}/state", address(domid).backend_path());
        let late = self.settle(std::slice::from_ref(&path), LIMIT, |_| {
            Ok(self.read(&path)?.is_some_and(|state| wanted.contains(&state.as_str())))
        })?;
        if late.is_empty() {
            return Ok(());
        }
        let after = format!("within {} s", LIMIT.as_secs());
        Err(DeviceError::Backend { address: address(domid), after, reason: hint.to_owned() })
    }

    /// Gives a PV domain that runs another PCI device.
    ///
    /// # Errors
    /// [`DeviceError::Pciback`] in [`QubeError::Device`]; nothing is left of it then.
    pub fn attach_pci(&self, qube: &Qube, config: &PciConfig) -> Result<(), QubeError> {
        let domid = qube.info.domid;
        let kind = self.read(&format!("{}/type", libxl_path(domid)))?;
        if kind.as_deref() != Some("pv") {
            return Err(DeviceError::from(PcibackError::NotPv(domid)).into());
        }
        let had = self.read(&format!("{}/num_devs", address(domid).backend_path()))?;
        if had.is_some() {
            self.await_pciback(domid, &[CONNECTED], "does the qube have the module xen-pcifront?")?;
        }
        let mut given = Given::prepare(self, domid, std::slice::from_ref(config))?;
        match had.and_then(|had| had.parse::<usize>().ok()) {
            None => {
                let records = given.records(qube.display_name());
                store::write(&*self.store, &records)?;
                if let Err(error) = given.connect() {
                    // The error that led here is the one to report. What the guest may use goes with `given`.
                    let _ = self.detach(address(domid), Release::Forced);
                    return Err(error.into());
                }
                given.recorded();
            }
            Some(had) => {
                let backend = address(domid).backend_path();
                let nodes = given.functions.iter().enumerate();
                let mut nodes: Vec<_> =
                    nodes.flat_map(|(place, function)| function.nodes(had + place)).collect();
                nodes.push(("num_devs".to_owned(), (had + given.functions.len()).to_string()));
                nodes.push(("state".to_owned(), RECONFIGURING.to_owned()));
                xen::transaction(&*self.store, |tx| {
                    nodes.iter().try_for_each(|(name, value)| {
                        self.store.write(tx, &format!("{backend}/{name}"), value.as_bytes())
                    })
                })
                .map_err(|error: xen::Error| error)?;
                given.recorded();
            }
        }
        let key = key_of(config);
        self.change_configs(qube, List::Pcis, &key, Some(pci_record(config)), |stored| {
            stored.pcis.retain(|other| key_of(other) != key);
            stored.pcis.push(config.clone());
        })?;
        self.tell(qube, Step::Attached { device: format!("PCI device {key}") });
        Ok(())
    }

    /// Takes a PCI device, or all functions of one, from a domain. With [`Release::Forced`] the guest is asked as well, and
    /// not heeded.
    ///
    /// # Errors
    /// [`PcibackError::NotOf`], or [`DeviceError::NotReleased`] when the guest keeps it.
    pub fn detach_pci(&self, qube: &Qube, which: &PciDevice, release: Release) -> Result<(), QubeError> {
        let domid = qube.info.domid;
        let is_it = |pci: &AttachedPci| match which {
            PciDevice::Name(name) => pci.name.as_ref() == Some(name),
            PciDevice::Address(address) => {
                let first = first_function(*address);
                let mask = if address.function.is_some() { 0xff } else { 0xf8 };
                let devfn = first.devfn | address.function.unwrap_or(0);
                (pci.device.segment, pci.device.bus, pci.device.devfn & mask)
                    == (first.segment, first.bus, devfn)
            }
        };
        let found: Vec<AttachedPci> = self.pcis(domid)?.into_iter().filter(is_it).collect();
        if found.is_empty() {
            let device = text_of(which);
            return Err(DeviceError::from(PcibackError::NotOf { device, domid }).into());
        }
        for pci in found {
            self.detach_function(domid, pci.device, release)?;
            let key = pci.name.clone().unwrap_or_else(|| pci.device.to_string());
            self.change_configs(qube, List::Pcis, &key, None, |stored| {
                stored.pcis.retain(|other| key_of(other) != key);
            })?;
            self.tell(qube, Step::Detached { device: format!("PCI device {key}") });
        }
        Ok(())
    }

    fn detach_function(&self, domid: DomId, device: PciAddress, release: Release) -> Result<(), QubeError> {
        let backend = address(domid).backend_path();
        let listed: Vec<PciAddress> = self.pcis(domid)?.into_iter().map(|pci| pci.device).collect();
        let Some(place) = listed.iter().position(|other| *other == device) else { return Ok(()) };
        let asked = self.ask_for(domid, place);
        match asked {
            Err(DeviceError::Backend { address, .. }) if release != Release::Forced => {
                return Err(DeviceError::NotReleased { address, waited: LIMIT }.into());
            }
            Err(DeviceError::Backend { .. }) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
        let pciback = self.pciback();
        revoke(&pciback, self, domid, device).map_err(DeviceError::from)?;
        if listed.len() == 1 {
            // The last one: what is behind it goes with its backend.
            return self.detach(address(domid), Release::Forced);
        }
        take_back(&pciback, self, domid, device).map_err(DeviceError::from)?;
        // Those behind it move up.
        Ok(xen::transaction(&*self.store, |tx| {
            for to in place..listed.len() {
                for name in NODES {
                    let at = |place: usize| format!("{backend}/{name}-{place}");
                    match store::read_if_there(&*self.store, tx, &at(to + 1))? {
                        Some(value) => self.store.write(tx, &at(to), &value)?,
                        None => store::remove_if_there(&*self.store, tx, &at(to))?,
                    }
                }
            }
            let left = (listed.len() - 1).to_string();
            self.store.write(tx, &format!("{backend}/num_devs"), left.as_bytes())
        })?)
    }

    /// Asks a guest to let go of the device in that place of the list, and waits until it has.
    fn ask_for(&self, domid: DomId, place: usize) -> Result<(), DeviceError> {
        let backend = address(domid).backend_path();
        let hint = "does the qube have the module xen-pcifront?";
        self.await_pciback(domid, &[CONNECTED], hint)?;
        xen::transaction(&*self.store, |tx| {
            self.store.write(tx, &format!("{backend}/state-{place}"), state::CLOSING.as_bytes())?;
            self.store.write(tx, &format!("{backend}/state"), RECONFIGURING.as_bytes())
        })
        .map_err(|error: xen::Error| error)?;
        self.await_pciback(domid, &[CONNECTED], hint)
    }
}

/// By what a device is known in stored configurations.
fn key_of(config: &PciConfig) -> String {
    match &config.device {
        PciDevice::Name(name) => name.clone(),
        PciDevice::Address(address) => {
            let first = first_function(*address);
            PciAddress { devfn: first.devfn | address.function.unwrap_or(0), ..first }.to_string()
        }
    }
}
