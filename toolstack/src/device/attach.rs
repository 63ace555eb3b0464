//! Attaching devices: what stands behind them, their records, and the wait for their backends.

use super::address::Entries;
use super::sharing::{Is, LOOP_MAJOR, Target, in_use, physical_device};
use super::{Action, Address, DeviceError, Disk, Hold, Kind, Nic, Plumbing, Port, Script};
use super::{channel, disk, loop_device, p9, script_path, state, vkb};
use crate::config::{ChannelConfig, P9Config, VkbConfig};
use crate::qubes::{QubeError, Qubes, wait_readable};
use crate::store::{self, Record, home};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use xen::{DomId, Transaction};

/// How long a backend may take to get ready (`LIBXL_INIT_TIMEOUT`).
const LIMIT: Duration = if cfg!(test) { Duration::from_secs(1) } else { Duration::from_secs(10) };

/// What is to be attached to one domain, which may be a PV guest.
#[derive(Clone, Copy, Default)]
pub(crate) struct Requested<'a> {
    pub(crate) pv: bool,
    pub(crate) disks: &'a [Disk],
    /// [Settled](Nic::settled).
    pub(crate) nics: &'a [Nic],
    pub(crate) vkbs: &'a [VkbConfig],
    pub(crate) channels: &'a [ChannelConfig],
    pub(crate) p9s: &'a [P9Config],
}

/// Devices that are being attached to one domain.
pub(crate) struct Devices<'a> {
    qubes: &'a Qubes,
    devices: Vec<Device>,
    /// Held from the first look at who uses the images until it is recorded that this domain does.
    lock: Option<File>,
}

struct Device {
    address: Address,
    entries: Entries,
    /// What is to be done when its backend is ready.
    then: Then,
    /// The loop device that stays when it is recorded.
    hold: Option<Box<dyn Hold>>,
}

enum Then {
    Nothing,
    Connect(Port),
    Run(Script),
}

/// Refuses early what cannot be attached: a disk's target that cannot be opened, a bridge that is not there.
pub(crate) fn check(plumbing: &dyn Plumbing, disks: &[Disk], nics: &[Nic]) -> Result<(), DeviceError> {
    for disk in disks.iter().filter(|disk| disk.backend.is_none() && disk.script.is_none()) {
        Target::open(disk)?;
    }
    for nic in nics.iter().filter(|nic| nic.backend.is_none() && nic.script_to_run().is_none()) {
        plumbing.bridge_mtu(nic.bridge())?;
    }
    Ok(())
}

impl<'a> Devices<'a> {
    /// Gets ready what stands behind the devices of a domain; nothing is in xenstore yet, and what was made goes with
    /// the value.
    pub(crate) fn prepare(
        qubes: &'a Qubes,
        domid: DomId,
        requested: Requested<'_>,
    ) -> Result<Self, QubeError> {
        let Requested { pv, disks, nics, vkbs, channels, p9s } = requested;
        let mut devices = Self { qubes, devices: Vec::new(), lock: None };
        let mut opened = Vec::new();
        for disk in disks {
            let backend = qubes.backend_domid(disk.backend.as_deref())?;
            let address = Address { domid, kind: Kind::Vbd, devid: disk.vdev.devid(), backend };
            devices.unique(address, disk.vdev.name())?;
            let device = devices.disk(address, disk, pv, &mut opened)?;
            devices.devices.push(device);
        }
        for nic in nics {
            let backend = qubes.backend_domid(nic.backend.as_deref())?;
            let address = Address { domid, kind: Kind::Vif, devid: nic.devid.unwrap_or_default(), backend };
            devices.unique(address, &address.devid.to_string())?;
            devices.devices.push(nic_device(address, nic));
        }
        let mut record = |address, entries| {
            devices.devices.push(Device { address, entries, then: Then::Nothing, hold: None });
        };
        for (vkb, devid) in vkbs.iter().zip(0..) {
            let backend = qubes.backend_domid(vkb.backend.as_deref())?;
            record(Address { domid, kind: Kind::Vkb, devid, backend }, vkb::entries(vkb, domid, backend));
        }
        // The first console is none.
        for (channel, devid) in channels.iter().zip(1..) {
            let backend = qubes.backend_domid(channel.backend.as_deref())?;
            if backend == DomId::DOM0 {
                return Err(channel::of_dom0(channel).into());
            }
            let entries = channel::entries(channel, devid, domid, backend);
            record(Address { domid, kind: Kind::Channel, devid, backend }, entries);
        }
        for (p9, devid) in p9s.iter().zip(0..) {
            let backend = qubes.backend_domid(p9.backend.as_deref())?;
            if backend == DomId::DOM0 {
                return Err(p9::of_dom0(p9).into());
            }
            record(Address { domid, kind: Kind::P9, devid, backend }, p9::entries(p9, domid, backend));
        }
        Ok(devices)
    }

    fn unique(&self, address: Address, name: &str) -> Result<(), DeviceError> {
        let same =
            |other: &Device| (other.address.kind, other.address.devid) == (address.kind, address.devid);
        if self.devices.iter().any(same) {
            return Err(DeviceError::Exists { domid: address.domid, device: name.to_owned() });
        }
        Ok(())
    }

    /// `opened` has the targets of this call, and whether they are written: they are not in xenstore yet.
    fn disk(
        &mut self,
        address: Address,
        disk: &Disk,
        pv: bool,
        opened: &mut Vec<(Is, bool)>,
    ) -> Result<Device, DeviceError> {
        let mut entries = disk.entries(address.domid, address.backend, pv);
        let device = |entries, then, hold| Device { address, entries, then, hold };
        if address.backend != DomId::DOM0 {
            return Ok(device(entries, Then::Nothing, None));
        }
        if let Some(script) = &disk.script {
            let script = Script { address, path: script_path(script), gatewaydev: None };
            return Ok(device(entries, Then::Run(script), None));
        }
        let plumbing = &*self.qubes.plumbing;
        let target = Target::open(disk)?;
        if self.lock.is_none() {
            self.lock = plumbing.lock_disks()?;
        }
        if opened.iter().any(|(other, written)| *other == target.is && (*written || !disk.readonly)) {
            return Err(in_use(disk, format!("another disk of domain {}", address.domid)));
        }
        target.check_sharing(disk, &*self.qubes.store, plumbing)?;
        opened.push((target.is, !disk.readonly));
        let (number, path, hold) = match target.is {
            Is::Device(number) => (number, target.path.to_string_lossy().into_owned(), None),
            Is::Image(_) => {
                let hold = plumbing.attach_loop(&target.file, &target.path, disk.readonly)?;
                let path = loop_device::path(hold.number());
                entries.hotplug.push(("node", path.clone()));
                ((LOOP_MAJOR, hold.number()), path, Some(hold))
            }
        };
        entries.hotplug.extend([
            ("physical-device", physical_device(number)),
            ("physical-device-path", path),
            ("hotplug-status", "connected".to_owned()),
        ]);
        Ok(device(entries, Then::Nothing, hold))
    }

    /// Where the devices are.
    pub(super) fn addresses(&self) -> Vec<Address> {
        self.devices.iter().map(|device| device.address).collect()
    }

    /// The records of all devices, to be written in one transaction.
    pub(crate) fn records(&self) -> Vec<Record> {
        self.devices.iter().flat_map(|device| device.address.records(&device.entries)).collect()
    }

    /// The records are written: what stands behind the devices stays from now on, until they are detached.
    pub(crate) fn recorded(&mut self) -> Result<(), DeviceError> {
        self.lock = None;
        self.devices.iter_mut().filter_map(|device| device.hold.take()).try_for_each(Hold::keep)
    }

    /// Waits until the backends have taken their devices, and connects what is left to connect. What programs serve,
    /// nobody waits for: they may come later.
    pub(crate) fn connect(self) -> Result<(), DeviceError> {
        let driven = |device: &&Device| device.address.kind.module().is_some();
        let devices: Vec<&Device> = self.devices.iter().filter(driven).collect();
        let backends: Vec<String> = devices.iter().map(|device| device.address.backend_path()).collect();
        let states: Vec<String> = backends.iter().map(|backend| format!("{backend}/state")).collect();
        let late = self.qubes.settle(&states, LIMIT, |at| {
            let address = devices[at].address;
            match self.qubes.read(&states[at])?.as_deref() {
                Some(state) if state::READY.contains(&state) => Ok(true),
                Some(state::INITIALISING) => Ok(false),
                state => {
                    let state = one_line(state.unwrap_or("none"));
                    Err(self.refused(address, format!("but in state {state}")))
                }
            }
        })?;
        if let Some(first) = late.first() {
            let after = format!("within {} s", LIMIT.as_secs());
            return Err(self.refused(devices[*first].address, after));
        }
        for (device, backend) in devices.iter().zip(&backends) {
            match &device.then {
                Then::Nothing => {}
                Then::Connect(port) => self.connect_port(device.address, backend, port)?,
                Then::Run(script) => self.qubes.plumbing.run(script, Action::Add).map_err(|error| {
                    let said = self.qubes.read(&format!("{backend}/hotplug-error"));
                    with_words(error, said.ok().flatten())
                })?,
            }
        }
        Ok(())
    }

    fn connect_port(&self, address: Address, backend: &str, port: &Port) -> Result<(), DeviceError> {
        let mtu = self.qubes.plumbing.connect(&address.vif(), port)?;
        let store = &self.qubes.store;
        let frontend = address.frontend_path();
        store.write(Transaction::NONE, &format!("{frontend}/mtu"), mtu.to_string().as_bytes())?;
        Ok(store.write(Transaction::NONE, &format!("{backend}/hotplug-status"), b"connected")?)
    }

    /// Why a backend did not take its device: by its own word, if it left one (`xenbus_dev_error`), which is not kept.
    fn refused(&self, address: Address, after: String) -> DeviceError {
        let place = format!("{}/error/{}", home(address.backend), address.script_path());
        let said = self.qubes.read(&format!("{place}/error")).ok().flatten();
        let module = address.kind.module().unwrap_or("with its driver");
        let reason = said.unwrap_or_else(|| format!("is the module {module} loaded there?"));
        // The refusal is what there is to report.
        let _ = xen::transaction(&*self.qubes.store, |tx| {
            store::remove_with_empty_parents(&*self.qubes.store, tx, &place)
        });
        DeviceError::Backend { address, after, reason: one_line(&reason) }
    }
}

fn nic_device(address: Address, nic: &Nic) -> Device {
    let then = match nic.script_to_run() {
        _ if address.backend != DomId::DOM0 => Then::Nothing,
        Some(path) => Then::Run(Script { address, path, gatewaydev: nic.gatewaydev.clone() }),
        None => Then::Connect(Port {
            bridge: nic.bridge().to_owned(),
            mtu: nic.mtu,
            name: nic.vifname.clone(),
            device: address.to_string(),
        }),
    };
    Device { address, entries: nic.entries(address.domid, address.backend), then, hold: None }
}

/// A script's failure with what it left in xenstore.
pub(super) fn with_words(error: DeviceError, said: Option<String>) -> DeviceError {
    match (error, said) {
        (DeviceError::Script { address, script, reason }, Some(said)) => {
            DeviceError::Script { address, script, reason: format!("{reason}: {}", one_line(&said)) }
        }
        (error, _) => error,
    }
}

/// What another domain, or a script, wrote: on one line, and not too much of it.
pub(super) fn one_line(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Qubes {
    /// The domain with a backend: dom0 unless another is named.
    pub(super) fn backend_domid(&self, which: Option<&str>) -> Result<DomId, QubeError> {
        which.map_or(Ok(DomId::DOM0), |which| Ok(self.find(which)?.info.domid))
    }

    /// Looks at each path when it changes, until it is settled; at most `limit`. The answer are those that are not. It has
    /// a connection of its own to xenstored: another wait of this process shall not take its events.
    pub(super) fn settle(
        &self,
        paths: &[String],
        limit: Duration,
        mut look: impl FnMut(usize) -> Result<bool, DeviceError>,
    ) -> Result<Vec<usize>, DeviceError> {
        let mut waiting: BTreeSet<usize> = (0..paths.len()).collect();
        if waiting.is_empty() {
            return Ok(Vec::new());
        }
        let begun = Instant::now();
        let watches = self.platform.xenstore()?;
        for (at, path) in paths.iter().enumerate() {
            watches.watch(path, &at.to_string())?;
        }
        loop {
            let mut changed = BTreeSet::new();
            while let Some(event) = watches.watch_event()? {
                changed.extend(event.token.parse::<usize>());
            }
            for at in changed {
                if waiting.contains(&at) && look(at)? {
                    waiting.remove(&at);
                }
            }
            let left = limit.saturating_sub(begun.elapsed());
            if waiting.is_empty() || left.is_zero() {
                return Ok(waiting.into_iter().collect());
            }
            wait_readable(watches.as_fd(), Some(left))
                .map_err(|source| DeviceError::System { what: "waiting for xenstore".to_owned(), source })?;
        }
    }
}

/// Whether a record names the script whose work is done here.
pub(super) fn is_disk_default(script: Option<&str>) -> bool {
    script.is_none_or(|script| script == script_path(disk::SCRIPT))
}
