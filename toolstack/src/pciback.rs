//! The host's PCI devices that qubes may be given: those that dom0's driver pciback holds, and no driver of dom0's own
//! (`xl pci-assignable-add` and its like).
//!
//! As with libxl, `/libxl/pci/DEVICE` remembers the driver that a device came from and a name for it, and Xen gives a
//! device that nobody has to a domain without memory, so that it reaches nobody's: it is quarantined.

use crate::qubes::Qubes;
use crate::store;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use xen::{DomId, ErrorKind, Hardware, PAGE_SHIFT, PciAddress, Reserved, Transaction};

/// Where the kernel shows PCI devices, and the driver.
const DEVICES: &str = "/sys/bus/pci/devices";
const PCIBACK: &str = "/sys/bus/pci/drivers/pciback";
/// libxl's records of devices.
const RECORDS: &str = "/libxl/pci";
/// The longest name that libxl takes.
const NAME_LIMIT: usize = 64;
/// Lines of a device's file `resource` that are its own: six base address registers, and its ROM.
const RESOURCES: usize = 7;
/// `IORESOURCE_IO`, include/linux/ioport.h: ports, and not memory.
const IS_PORTS: u64 = 0x100;

/// Why the assignable devices could not be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum PcibackError {
    /// The driver is not there.
    #[error("the driver pciback is not there: `modprobe xen-pciback` loads it")]
    NotLoaded,
    /// No device of that address.
    #[error("this host has no PCI device {0}")]
    NoDevice(PciAddress),
    /// Neither a device's address nor the name of an assignable one.
    #[error("{0:?} is neither the name of an assignable device nor an address such as 0000:03:00.0")]
    Unknown(String),
    /// No name for a device.
    #[error("{0:?} is no name for a device: 1 to 64 printable characters without blanks")]
    Name(String),
    /// It is not assignable.
    #[error("{0} is not assignable: pciback does not hold it")]
    NotAssignable(PciAddress),
    /// A domain has it.
    #[error("{device} is domain {domid}'s: `nxl pci-detach {domid} {device}` takes it away")]
    Assigned {
        /// Which device.
        device: PciAddress,
        /// Whose.
        domid: String,
    },
    /// Nothing keeps the device from the memory of others.
    #[error(
        "{0} cannot be kept from the memory of others: this machine has no IOMMU, or Xen does not use it"
    )]
    NoIommu(PciAddress),
    /// Nothing keeps any device from the memory of others.
    #[error(
        "no PCI device can be given to a qube: this machine has no IOMMU, or Xen does not use it (virt_caps in `nxl info`)"
    )]
    NoPassthrough,
    /// The domain was not made for it.
    #[error(
        "{device} cannot be given to domain {domid}: it was made without a device and without passthrough=\"enabled\""
    )]
    NotTranslated {
        /// Which device.
        device: PciAddress,
        /// To whom.
        domid: DomId,
    },
    /// It is no PV guest.
    #[error("domain {0} is no PV guest: libxl gives PVH guests no PCI devices, and nxl neither")]
    NotPv(DomId),
    /// It is to be given twice.
    #[error("{0} is asked for twice")]
    Twice(PciAddress),
    /// All functions, and nowhere to put them.
    #[error("all functions of {0} are one device in the qube only in a slot that is given: such as @5")]
    Slot(PciAddress),
    /// The domain has no such device.
    #[error("domain {domid} has no PCI device {device}")]
    NotOf {
        /// Its address or name.
        device: String,
        /// Which domain.
        domid: DomId,
    },
    /// The kernel tells of a device what cannot be.
    #[error("{path}: {text:?} makes no sense", path = path.display())]
    Sysfs {
        /// Which file.
        path: PathBuf,
        /// What it says.
        text: String,
    },
    /// The kernel refused.
    #[error("{path}: {source}", path = path.display())]
    System {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// A device that can be given to a qube.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignable {
    /// Where it is.
    pub device: PciAddress,
    /// What it was called when it became assignable.
    pub name: Option<String>,
}

/// What this asks of the kernel's sysfs: for tests, one in memory.
pub trait Sysfs {
    /// The names in a folder.
    ///
    /// # Errors
    /// What the kernel says.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// Where a link leads.
    ///
    /// # Errors
    /// What the kernel says.
    fn target(&self, link: &Path) -> io::Result<PathBuf>;
    /// A file's text.
    ///
    /// # Errors
    /// What the kernel says.
    fn read(&self, file: &Path) -> io::Result<String>;
    /// Writes to a file, which makes the kernel do something.
    ///
    /// # Errors
    /// What the kernel says.
    fn write(&self, file: &Path, text: &str) -> io::Result<()>;
}

/// The running kernel's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KernelSysfs;

impl Sysfs for KernelSysfs {
    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
    fn target(&self, link: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(link)
    }
    fn read(&self, file: &Path) -> io::Result<String> {
        fs::read_to_string(file)
    }
    fn write(&self, file: &Path, text: &str) -> io::Result<()> {
        // Neither made nor cut off: both mean something else there.
        io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(file)?, text.as_bytes())
    }
}

/// An address with or without its segment, as `xl` takes it.
#[must_use]
pub fn parse_address(text: &str) -> Option<PciAddress> {
    PciAddress::parse(text).or_else(|| PciAddress::parse(&format!("0000:{text}")))
}

/// `/libxl/pci/0000-03-00-0`
fn record(device: PciAddress) -> String {
    format!("{RECORDS}/{}", device.to_string().replace([':', '.'], "-"))
}

/// The devices of which that is recorded (`driver_path`, `name`, `domid`), and what.
fn recorded(qubes: &Qubes, what: &str) -> Result<Vec<(PciAddress, String)>, xen::Error> {
    let mut found = Vec::new();
    for name in qubes.directory(RECORDS)? {
        let address = name.replacen('-', ":", 2).replacen('-', ".", 1);
        if let Some(device) = PciAddress::parse(&address)
            && let Some(value) = qubes.read(&format!("{}/{what}", record(device)))?
        {
            found.push((device, value));
        }
    }
    Ok(found)
}

/// The devices that are recorded as a domain's, whose domain each is, and where that stands.
pub(crate) fn claims(qubes: &Qubes) -> Result<Vec<(PciAddress, DomId, String)>, xen::Error> {
    let claim = |(device, domid): (PciAddress, String)| {
        Some((device, DomId(domid.parse().ok()?), format!("{}/domid", record(device))))
    };
    Ok(recorded(qubes, "domid")?.into_iter().filter_map(claim).collect())
}

/// The host's devices as they may be given away.
pub struct Pciback<'a> {
    qubes: &'a Qubes,
    sysfs: &'a dyn Sysfs,
}

impl<'a> Pciback<'a> {
    /// Through that sysfs.
    #[must_use]
    pub fn new(qubes: &'a Qubes, sysfs: &'a dyn Sysfs) -> Self {
        Self { qubes, sysfs }
    }

    /// The devices that can be given to a qube, by address; those that a qube has are none of them.
    ///
    /// # Errors
    /// [`PcibackError::NotLoaded`], or what the kernel or xenstored says.
    pub fn list(&self) -> Result<Vec<Assignable>, PcibackError> {
        let mut assignable = Vec::new();
        for device in self.held()? {
            let read = |name: &str| self.qubes.read(&format!("{}/{name}", record(device)));
            if read("domid")?.is_none() {
                assignable.push(Assignable { device, name: read("name")? });
            }
        }
        assignable.sort_by_key(|assignable| {
            (assignable.device.segment, assignable.device.bus, assignable.device.devfn)
        });
        Ok(assignable)
    }

    /// Takes a device from its driver, gives it to pciback and has Xen keep it from all memory. One that pciback has
    /// already gets the name alone. When something fails, its driver has it again.
    ///
    /// # Errors
    /// See [`PcibackError`].
    pub fn add(&self, device: PciAddress, name: Option<&str>) -> Result<(), PcibackError> {
        let bad = |name: &&str| {
            !(1..=NAME_LIMIT).contains(&name.len()) || !name.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if let Some(bad) = name.filter(bad) {
            return Err(PcibackError::Name(bad.to_owned()));
        }
        if !self.exists(device)? {
            return Err(PcibackError::NoDevice(device));
        }
        let taken = if self.held()?.contains(&device) { None } else { Some(self.take(device)?) };
        let kept = self.name(device, name).and_then(|()| self.quarantine(device));
        if kept.is_err()
            && let Some(driver) = taken
        {
            // The error that led here is the one to report.
            let _ = self.release(device).and_then(|()| self.give_back(device, driver.as_deref()));
            let _ = self.forget(device, &["name"]);
        }
        kept
    }

    /// Takes a device, by address or name, from pciback. With `rebind` the driver has it again that had it before.
    ///
    /// # Errors
    /// See [`PcibackError`].
    pub fn remove(&self, which: &str, rebind: bool) -> Result<(), PcibackError> {
        let device = match self.named(which)? {
            Some(device) => device,
            None => parse_address(which).ok_or_else(|| PcibackError::Unknown(which.to_owned()))?,
        };
        if let Some(domid) = self.qubes.read(&format!("{}/domid", record(device)))? {
            return Err(PcibackError::Assigned { device, domid });
        }
        if !self.held()?.contains(&device) {
            return Err(PcibackError::NotAssignable(device));
        }
        match self.qubes.control.deassign_device(DomId::IO, device) {
            // Never in quarantine, or no IOMMU for one: it can be given back all the same.
            Err(error) if error.kind() == ErrorKind::Unavailable => {}
            other => other?,
        }
        self.release(device)?;
        if rebind {
            let driver = self.qubes.read(&format!("{}/driver_path", record(device)))?;
            self.give_back(device, driver.as_deref().map(Path::new))?;
        }
        self.forget(device, &["name"])
    }

    /// Whether there is such a device.
    pub(crate) fn exists(&self, device: PciAddress) -> Result<bool, PcibackError> {
        Ok(self.names(Path::new(DEVICES))?.contains(&device.to_string()))
    }

    /// Whether pciback has a device.
    pub(crate) fn is_held(&self, device: PciAddress) -> Result<bool, PcibackError> {
        Ok(self.held()?.contains(&device))
    }

    /// Which domain has a device, as xenstore says it.
    pub(crate) fn owner(&self, device: PciAddress) -> Result<Option<String>, PcibackError> {
        Ok(self.qubes.read(&format!("{}/domid", record(device)))?)
    }

    /// Records devices as a domain's, unless somebody else was faster with one of them.
    pub(crate) fn claim(&self, devices: &[PciAddress], domid: DomId) -> Result<(), PcibackError> {
        let store = &*self.qubes.store;
        xen::transaction(store, |tx| {
            for device in devices {
                let path = format!("{}/domid", record(*device));
                if let Some(other) = store::read_if_there(store, tx, &path)? {
                    let domid = String::from_utf8_lossy(&other).into_owned();
                    return Err(PcibackError::Assigned { device: *device, domid });
                }
                store.write(tx, &path, domid.to_string().as_bytes())?;
            }
            Ok(())
        })
    }

    /// A device is nobody's again.
    pub(crate) fn disclaim(&self, device: PciAddress) -> Result<(), PcibackError> {
        self.forget(device, &["domid"])
    }

    /// All functions that a device has; `first` is one of them, be it there or not.
    pub(crate) fn functions(&self, first: PciAddress) -> Result<Vec<PciAddress>, PcibackError> {
        let names = self.names(Path::new(DEVICES))?;
        let mut found: Vec<PciAddress> = names.iter().filter_map(|name| PciAddress::parse(name)).collect();
        found.retain(|other| {
            (other.segment, other.bus, other.devfn >> 3) == (first.segment, first.bus, first.devfn >> 3)
        });
        found.sort_by_key(|device| device.devfn);
        if found.is_empty() { Err(PcibackError::NoDevice(first)) } else { Ok(found) }
    }

    /// The ports and the memory of a device.
    pub(crate) fn hardware(&self, device: PciAddress) -> Result<Vec<Hardware>, PcibackError> {
        let (path, text) = self.told(device, "resource")?;
        let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
        let parse = |line: &str| {
            let mut words = line.split_whitespace().map(number);
            let (start, end, flags) = (words.next()??, words.next()??, words.next()??);
            if flags & IS_PORTS == 0 {
                let first = start >> PAGE_SHIFT;
                return Some(Hardware::Frames { first, count: (end >> PAGE_SHIFT).checked_sub(first)? + 1 });
            }
            let first = u32::try_from(start).ok()?;
            Some(Hardware::Ports { first, count: u32::try_from(end.checked_sub(start)? + 1).ok()? })
        };
        let used = |line: &&str| !line.starts_with("0x0000000000000000 ");
        text.lines()
            .take(RESOURCES)
            .filter(used)
            .map(|line| {
                let error = || PcibackError::Sysfs { path: path.clone(), text: line.to_owned() };
                parse(line).ok_or_else(error)
            })
            .collect()
    }

    /// The interrupt line of a device.
    pub(crate) fn interrupt(&self, device: PciAddress) -> Result<Option<u32>, PcibackError> {
        let (path, text) = self.told(device, "irq")?;
        let interrupt = text.trim().parse().map_err(|_| PcibackError::Sysfs { path, text })?;
        Ok(Some(interrupt).filter(|interrupt| *interrupt != 0))
    }

    /// Puts a device into the state that it has when the machine is switched on, if it can be.
    pub(crate) fn reset(&self, device: PciAddress) {
        // Many a device has no way to do it: libxl goes on then, too.
        let _ = self.sysfs.write(&Path::new(DEVICES).join(device.to_string()).join("reset"), "1");
    }

    /// Lets whoever has the device write all of its configuration space, until pciback has it back.
    pub(crate) fn set_permissive(&self, device: PciAddress) -> Result<(), PcibackError> {
        self.write(&Path::new(PCIBACK).join("permissive"), device)
    }

    /// A file of a device.
    fn told(&self, device: PciAddress, file: &str) -> Result<(PathBuf, String), PcibackError> {
        let path = Path::new(DEVICES).join(device.to_string()).join(file);
        match self.sysfs.read(&path) {
            Ok(text) => Ok((path, text)),
            Err(source) => Err(PcibackError::System { path, source }),
        }
    }

    /// The devices that pciback has.
    fn held(&self) -> Result<Vec<PciAddress>, PcibackError> {
        match self.sysfs.names(Path::new(PCIBACK)) {
            Ok(names) => Ok(names.iter().filter_map(|name| PciAddress::parse(name)).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(PcibackError::NotLoaded),
            Err(source) => Err(PcibackError::System { path: PCIBACK.into(), source }),
        }
    }

    /// The device of a name.
    pub(crate) fn named(&self, name: &str) -> Result<Option<PciAddress>, PcibackError> {
        let found = recorded(self.qubes, "name")?.into_iter().find(|(_, found)| found == name);
        Ok(found.map(|(device, _)| device))
    }

    /// Takes a device from its driver, which is the answer, and has pciback take it.
    fn take(&self, device: PciAddress) -> Result<Option<PathBuf>, PcibackError> {
        let link = Path::new(DEVICES).join(device.to_string()).join("driver");
        let driver = match self.sysfs.target(&link) {
            Ok(driver) => Some(driver),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(PcibackError::System { path: link, source }),
        };
        if let Some(driver) = &driver {
            // First, so that it is known whoever dies meanwhile.
            let (path, value) = (format!("{}/driver_path", record(device)), driver.display().to_string());
            self.qubes.store.write(Transaction::NONE, &path, value.as_bytes())?;
            if let Err(error) = self.write(&driver.join("unbind"), device) {
                let _ = self.forget(device, &["driver_path"]);
                return Err(error);
            }
        }
        let bind = || {
            // Each time that it is written makes another slot of the same device.
            if !self.has_slot(device)? {
                self.write(&Path::new(PCIBACK).join("new_slot"), device)?;
            }
            self.write(&Path::new(PCIBACK).join("bind"), device)
        };
        if let Err(error) = bind() {
            let _ = self.remove_slot(device);
            let _ = self.give_back(device, driver.as_deref());
            return Err(error);
        }
        Ok(driver)
    }

    /// Takes a device from pciback.
    fn release(&self, device: PciAddress) -> Result<(), PcibackError> {
        self.write(&Path::new(PCIBACK).join("unbind"), device)?;
        self.remove_slot(device)
    }

    fn remove_slot(&self, device: PciAddress) -> Result<(), PcibackError> {
        if self.has_slot(device)? {
            self.write(&Path::new(PCIBACK).join("remove_slot"), device)?;
        }
        Ok(())
    }

    /// Gives a device to the driver that it had, if there was one, which is forgotten then.
    fn give_back(&self, device: PciAddress, driver: Option<&Path>) -> Result<(), PcibackError> {
        if let Some(driver) = driver {
            self.write(&driver.join("bind"), device)?;
        }
        self.forget(device, &["driver_path"])
    }

    fn has_slot(&self, device: PciAddress) -> Result<bool, PcibackError> {
        let path = Path::new(PCIBACK).join("slots");
        let slots = self.sysfs.read(&path).map_err(|source| PcibackError::System { path, source })?;
        Ok(slots.lines().any(|slot| PciAddress::parse(slot.trim()) == Some(device)))
    }

    fn name(&self, device: PciAddress, name: Option<&str>) -> Result<(), PcibackError> {
        match name {
            Some(name) => Ok(self.qubes.store.write(
                Transaction::NONE,
                &format!("{}/name", record(device)),
                name.as_bytes(),
            )?),
            None => self.forget(device, &["name"]),
        }
    }

    fn quarantine(&self, device: PciAddress) -> Result<(), PcibackError> {
        // What is reserved in a domain's address space for a device is no matter to one that has none.
        self.qubes.control.assign_device(DomId::IO, device, Reserved::Relaxed).map_err(|error| {
            match error.kind() {
                ErrorKind::Unavailable => PcibackError::NoIommu(device),
                _ => PcibackError::Xen(error),
            }
        })
    }

    /// Removes records of a device, and the folders that are empty then.
    fn forget(&self, device: PciAddress, names: &[&str]) -> Result<(), PcibackError> {
        let store = &*self.qubes.store;
        Ok(xen::transaction(store, |tx| {
            for name in names {
                let path = format!("{}/{name}", record(device));
                if store::read_if_there(store, tx, &path)?.is_some() {
                    store::remove_with_empty_parents(store, tx, &path)?;
                }
            }
            Ok::<_, xen::Error>(())
        })?)
    }

    fn names(&self, folder: &Path) -> Result<Vec<String>, PcibackError> {
        self.sysfs.names(folder).map_err(|source| PcibackError::System { path: folder.to_owned(), source })
    }

    fn write(&self, path: &Path, device: PciAddress) -> Result<(), PcibackError> {
        let written = self.sysfs.write(path, &device.to_string());
        written.map_err(|source| PcibackError::System { path: path.to_owned(), source })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::create::tests::{Host, host};
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex, MutexGuard};

    /// A kernel with three devices: of e1000e, of ahci, and of no driver.
    #[derive(Clone)]
    pub(crate) struct Kernel(Arc<Mutex<State>>);

    struct State {
        /// Whose each device is.
        drivers: BTreeMap<String, Option<&'static str>>,
        slots: Vec<String>,
        loaded: bool,
        /// How many writes go well before one fails.
        until_failure: Option<usize>,
        /// What was reset, and what was made permissive, in this order.
        done: Vec<String>,
    }

    pub(crate) const NIC: &str = "0000:03:00.0";
    const DISK: &str = "0000:00:1f.2";
    pub(crate) const BARE: &str = "0001:04:00.1";

    impl Kernel {
        pub(crate) fn new() -> Self {
            let drivers = [(NIC, Some("e1000e")), (DISK, Some("ahci")), (BARE, None)];
            Self(Arc::new(Mutex::new(State {
                drivers: drivers.map(|(device, driver)| (device.to_owned(), driver)).into(),
                slots: Vec::new(),
                loaded: true,
                until_failure: None,
                done: Vec::new(),
            })))
        }

        fn state(&self) -> MutexGuard<'_, State> {
            self.0.lock().unwrap()
        }

        /// Lets so many writes go well, and the next one fail.
        pub(crate) fn fail_after(&self, writes: usize) {
            self.state().until_failure = Some(writes);
        }

        /// What was reset (a device) or made permissive (behind a plus) since this was asked last.
        pub(crate) fn done(&self) -> Vec<String> {
            std::mem::take(&mut self.state().done)
        }

        pub(crate) fn driver(&self, device: &str) -> Option<&'static str> {
            self.state().drivers[device]
        }

        pub(crate) fn slots(&self) -> usize {
            self.state().slots.len()
        }
    }

    fn refused(errno: rustix::io::Errno) -> io::Error {
        errno.into()
    }

    impl Sysfs for Kernel {
        fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
            let state = self.state();
            match folder.to_str().unwrap() {
                DEVICES => Ok(state.drivers.keys().cloned().collect()),
                PCIBACK if state.loaded => {
                    let held = |(device, driver): (&String, &Option<_>)| {
                        (*driver == Some("pciback")).then(|| device.clone())
                    };
                    let files = ["bind", "module", "new_slot", "slots"].map(str::to_owned);
                    Ok(files.into_iter().chain(state.drivers.iter().filter_map(held)).collect())
                }
                _ => Err(refused(rustix::io::Errno::NOENT)),
            }
        }
        fn target(&self, link: &Path) -> io::Result<PathBuf> {
            let device = link.strip_prefix(DEVICES).unwrap().parent().unwrap().to_str().unwrap();
            let driver = self.driver(device).ok_or_else(|| refused(rustix::io::Errno::NOENT))?;
            Ok(Path::new("/sys/bus/pci/drivers").join(driver))
        }
        fn read(&self, file: &Path) -> io::Result<String> {
            // A NIC has registers in memory and in ports, and a ROM; the others have a page of memory, and no interrupt.
            let nic = file.starts_with(Path::new(DEVICES).join(NIC));
            let line =
                |(start, end, flags): (u64, u64, u64)| format!("{start:#018x} {end:#018x} {flags:#018x}\n");
            match (file.file_name().unwrap().to_str().unwrap(), nic) {
                ("resource", true) => {
                    let lines = [
                        (0xf710_0000, 0xf711_ffff, 0x40200),
                        (0, 0, 0),
                        (0xf020, 0xf03f, 0x40101),
                        (0xf712_4800, 0xf712_48ff, 0x40200),
                        (0, 0, 0),
                        (0, 0, 0),
                        (0xf700_0000, 0xf701_ffff, 0x46200),
                        (0xdead_0000, 0xdead_ffff, 0x200),
                    ];
                    return Ok(lines.map(line).concat());
                }
                ("resource", false) => return Ok(line((0xf712_5000, 0xf712_5fff, 0x40200))),
                ("irq", nic) => return Ok(if nic { "17\n" } else { "0\n" }.to_owned()),
                _ => assert_eq!(file, Path::new(PCIBACK).join("slots")),
            }
            Ok(self.state().slots.iter().map(|slot| format!("{slot}\n")).collect())
        }
        fn write(&self, file: &Path, text: &str) -> io::Result<()> {
            let mut state = self.state();
            let left = state.until_failure;
            state.until_failure = left.and_then(|left| left.checked_sub(1));
            if left == Some(0) {
                return Err(refused(rustix::io::Errno::IO));
            }
            match file.file_name().unwrap().to_str().unwrap() {
                "reset" => {
                    let device = file.parent().unwrap().file_name().unwrap().to_string_lossy();
                    state.done.push(device.into_owned());
                    return Ok(());
                }
                "permissive" => {
                    state.done.push(format!("+{text}"));
                    return Ok(());
                }
                _ => {}
            }
            let driver = file.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
            let driver = ["e1000e", "ahci", "pciback"].into_iter().find(|known| **known == driver);
            let now = state.drivers[text];
            match file.file_name().unwrap().to_str().unwrap() {
                "unbind" if now == driver => drop(state.drivers.insert(text.to_owned(), None)),
                // pciback takes what has a slot; other drivers what they know.
                "bind"
                    if now.is_none()
                        && (driver != Some("pciback") || state.slots.contains(&text.to_owned())) =>
                {
                    state.drivers.insert(text.to_owned(), driver);
                }
                "new_slot" => state.slots.push(text.to_owned()),
                "remove_slot" if state.slots.contains(&text.to_owned()) => {
                    state.slots.retain(|slot| slot != text)
                }
                _ => return Err(refused(rustix::io::Errno::NODEV)),
            }
            Ok(())
        }
    }

    pub(crate) fn address(text: &str) -> PciAddress {
        PciAddress::parse(text).unwrap()
    }

    fn shown(pciback: &Pciback<'_>) -> Vec<String> {
        let one = |found: &Assignable| format!("{} {}", found.device, found.name.as_deref().unwrap_or("-"));
        pciback.list().unwrap().iter().map(one).collect()
    }

    fn quarantined(host: &Host) -> Vec<PciAddress> {
        host.machine
            .assigned_devices()
            .into_iter()
            .filter(|(domid, _)| *domid == DomId::IO)
            .map(|(_, device)| device)
            .collect()
    }

    #[test]
    fn a_device_goes_to_pciback_and_back_to_its_driver() {
        let (host, kernel) = (host(), Kernel::new());
        let pciback = Pciback::new(&host.qubes, &kernel);
        let before = host.inventory();
        assert!(shown(&pciback).is_empty());
        pciback.add(address(NIC), Some("wan")).unwrap();
        pciback.add(address(BARE), None).unwrap();
        assert_eq!(shown(&pciback), ["0000:03:00.0 wan", "0001:04:00.1 -"]);
        assert_eq!((kernel.driver(NIC), kernel.slots()), (Some("pciback"), 2));
        assert_eq!(quarantined(&host), [address(NIC), address(BARE)]);
        let driver = host.qubes.read("/libxl/pci/0000-03-00-0/driver_path").unwrap();
        assert_eq!(driver.as_deref(), Some("/sys/bus/pci/drivers/e1000e"));
        // Another name, and not a second slot.
        pciback.add(address(NIC), Some("lan")).unwrap();
        assert_eq!((shown(&pciback)[0].as_str(), kernel.slots()), ("0000:03:00.0 lan", 2));

        // A qube's is none that can be given away, or back.
        let domid = "/libxl/pci/0000-03-00-0/domid";
        host.qubes.store.write(Transaction::NONE, domid, b"7").unwrap();
        assert_eq!(shown(&pciback), ["0001:04:00.1 -"]);
        assert!(matches!(pciback.remove(NIC, true), Err(PcibackError::Assigned { .. })));
        host.qubes.store.remove(Transaction::NONE, domid).unwrap();

        pciback.remove("lan", true).unwrap();
        pciback.remove("0001:04:00.1", true).unwrap();
        assert_eq!((kernel.driver(NIC), kernel.driver(BARE), kernel.slots()), (Some("e1000e"), None, 0));
        assert_eq!((quarantined(&host), host.inventory()), (Vec::new(), before));
    }

    #[test]
    fn what_is_not_bound_again_can_be_later() {
        let (host, kernel) = (host(), Kernel::new());
        let pciback = Pciback::new(&host.qubes, &kernel);
        let before = host.inventory();
        pciback.add(address(DISK), None).unwrap();
        pciback.remove("00:1f.2", false).unwrap();
        assert_eq!((kernel.driver(DISK), kernel.slots()), (None, 0));
        // Its driver is still known. Whoever else took it has not put it into quarantine.
        kernel.state().slots.push(DISK.to_owned());
        kernel.write(&Path::new(PCIBACK).join("bind"), DISK).unwrap();
        pciback.remove(DISK, false).unwrap();
        assert_eq!((kernel.driver(DISK), kernel.slots()), (None, 0));
        pciback.add(address(DISK), None).unwrap();
        pciback.remove("00:1f.2", true).unwrap();
        assert_eq!((kernel.driver(DISK), host.inventory()), (Some("ahci"), before));
    }

    #[test]
    fn whatever_fails_the_driver_has_its_device_again() {
        for nth in 0..3 {
            let (host, kernel) = (host(), Kernel::new());
            let before = host.inventory();
            kernel.state().until_failure = Some(nth);
            let error = Pciback::new(&host.qubes, &kernel).add(address(NIC), Some("wan")).unwrap_err();
            assert!(error.to_string().starts_with("/sys/bus/pci/drivers/"), "write {nth}: {error}");
            assert_eq!((kernel.driver(NIC), kernel.slots()), (Some("e1000e"), 0), "write {nth}");
            assert_eq!(host.inventory(), before, "write {nth}");
        }
        for (kind, expected) in
            [(ErrorKind::Unavailable, "has no IOMMU"), (ErrorKind::Other, "xc_assign_device")]
        {
            let (host, kernel) = (host(), Kernel::new());
            let before = host.inventory();
            host.machine.fail(Some("xc_assign_device"), 0, kind);
            let error =
                Pciback::new(&host.qubes, &kernel).add(address(NIC), Some("wan")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!((kernel.driver(NIC), kernel.slots(), host.inventory()), (Some("e1000e"), 0, before));
        }
    }

    #[test]
    fn what_cannot_be_is_told_before_anything_is_done() {
        let (host, kernel) = (host(), Kernel::new());
        let pciback = Pciback::new(&host.qubes, &kernel);
        let before = host.inventory();
        let error = |result: Result<(), PcibackError>| result.unwrap_err().to_string();
        assert_eq!(
            error(pciback.add(address("0000:99:00.0"), None)),
            "this host has no PCI device 0000:99:00.0"
        );
        assert!(error(pciback.add(address(NIC), Some("two words"))).contains("is no name for a device"));
        assert!(error(pciback.add(address(NIC), Some(&"x".repeat(65)))).contains("is no name for a device"));
        assert!(error(pciback.remove("wan", false)).contains("neither the name"));
        assert_eq!(
            error(pciback.remove(NIC, false)),
            format!("{NIC} is not assignable: pciback does not hold it")
        );
        kernel.state().loaded = false;
        assert!(error(pciback.add(address(NIC), None)).contains("modprobe xen-pciback"));
        assert!(matches!(pciback.list(), Err(PcibackError::NotLoaded)));
        assert_eq!((kernel.driver(NIC), host.inventory()), (Some("e1000e"), before));
    }
}
