//! Devices against mock backends, and mock plumbing behind them.

mod soak;

use super::*;
use crate::config::QubeConfig;
use crate::create::CreateError;
use crate::create::tests::{Host, host};
use crate::image::synthetic::SyntheticElf;
use crate::qubes::{Qube, QubeError};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use xen::mock::Backends;
use xen::{DomId, ErrorKind, Platform, Transaction};

/// Loop devices, bridges and scripts in memory: what there is, and what was asked.
#[derive(Clone, Default)]
pub(crate) struct Kernel(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// As the kernel does, a loop device keeps its file: no other gets its inode meanwhile, also if it has no name any more.
    loops: BTreeMap<u32, File>,
    /// Devices that are put together, by name.
    composed: Vec<String>,
    mounted: BTreeMap<(u32, u32), bool>,
    /// Interfaces that are on a bridge.
    ports: Vec<String>,
    calls: Vec<String>,
    /// How many calls go well before one fails.
    until_failure: Option<usize>,
}

impl Kernel {
    fn call(&self, what: String) -> Result<std::sync::MutexGuard<'_, State>, DeviceError> {
        let mut state = self.0.lock().unwrap();
        state.calls.push(what.clone());
        match state.until_failure {
            Some(0) => {
                state.until_failure = None;
                let source = std::io::Error::other("made to fail");
                return Err(DeviceError::System { what, source });
            }
            Some(left) => state.until_failure = Some(left - 1),
            None => {}
        }
        Ok(state)
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    pub(crate) fn composed(&self) -> Vec<String> {
        self.0.lock().unwrap().composed.clone()
    }

    pub(crate) fn loop_count(&self) -> usize {
        self.0.lock().unwrap().loops.len()
    }
}

struct OfParts(Kernel, String, bool);

impl Composed for OfParts {
    fn number(&self) -> (u32, u32) {
        (254, 3)
    }
    fn node(&self) -> String {
        "/dev/dm-3".to_owned()
    }
    fn hand_over(mut self: Box<Self>) -> Result<(), DeviceError> {
        drop(self.0.call(format!("hand over {}", self.1))?);
        self.2 = true;
        Ok(())
    }
}

impl Drop for OfParts {
    fn drop(&mut self) {
        if !self.2 {
            self.0.0.lock().unwrap().composed.retain(|name| *name != self.1);
        }
    }
}

struct Loop(Kernel, u32, bool);

impl Hold for Loop {
    fn number(&self) -> u32 {
        self.1
    }
    fn keep(mut self: Box<Self>) -> Result<(), DeviceError> {
        drop(self.0.call(format!("keep {}", self.1))?);
        self.2 = true;
        Ok(())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if !self.2 {
            self.0.0.lock().unwrap().loops.remove(&self.1);
        }
    }
}

impl Plumbing for Kernel {
    fn lock_disks(&self) -> Result<Option<File>, DeviceError> {
        self.call("lock".into()).map(|_| File::open("/dev/null").ok())
    }
    fn attach_loop(&self, image: &File, _: &Path, readonly: bool) -> Result<Box<dyn Hold>, DeviceError> {
        let mut state = self.call(format!("attach {}", if readonly { "r" } else { "w" }))?;
        let number = (0..).find(|number| !state.loops.contains_key(number)).unwrap();
        state.loops.insert(number, image.try_clone().unwrap());
        Ok(Box::new(Loop(self.clone(), number, false)))
    }
    fn compose(
        &self,
        name: &str,
        files: &[(PathBuf, File)],
        extents: &[Extent],
    ) -> Result<Box<dyn Composed>, DeviceError> {
        let mut state = self.call(format!("compose {name} {} {}", files.len(), extents.len()))?;
        state.composed.push(name.to_owned());
        Ok(Box::new(OfParts(self.clone(), name.to_owned(), false)))
    }
    fn take_apart(&self, name: &str) -> Result<(), DeviceError> {
        self.call(format!("take apart {name}"))?.composed.retain(|other| other != name);
        Ok(())
    }
    fn loops(&self) -> Result<Vec<LoopInfo>, DeviceError> {
        let state = self.call("loops".into())?;
        let info = |(number, file): (&u32, &File)| {
            let file = file.metadata().unwrap();
            LoopInfo { number: *number, file: (file.dev(), file.ino()) }
        };
        Ok(state.loops.iter().map(info).collect())
    }
    fn grow_loop(&self, number: u32) -> Result<(), DeviceError> {
        self.call(format!("grow {number}")).map(|_| ())
    }
    fn detach_loop(&self, number: u32) -> Result<(), DeviceError> {
        self.call(format!("detach {number}"))?.loops.remove(&number);
        Ok(())
    }
    fn mounted(&self, device: (u32, u32)) -> Result<Option<bool>, DeviceError> {
        Ok(self.call(format!("mounted {device:?}"))?.mounted.get(&device).copied())
    }
    fn bridge_mtu(&self, bridge: &str) -> Result<u32, DeviceError> {
        drop(self.call(format!("bridge {bridge}"))?);
        if bridge == "none" { Err(DeviceError::Bridge(bridge.into())) } else { Ok(1400) }
    }
    fn connect(&self, interface: &str, port: &Port) -> Result<u32, DeviceError> {
        let mut state =
            self.call(format!("connect {interface} {} {:?} {:?}", port.bridge, port.mtu, port.name))?;
        state.ports.push(port.name.clone().unwrap_or_else(|| interface.to_owned()));
        Ok(port.mtu.unwrap_or(1400))
    }
    fn is_connected_here(&self, interface: &str) -> bool {
        self.0.lock().unwrap().ports.iter().any(|port| port == interface)
    }
    fn run(&self, script: &Script, action: Action) -> Result<(), DeviceError> {
        self.call(format!("{action:?} {} {}", script.path, script.address)).map(|_| ())
    }
}

/// A host with backends, and images `a` and `b`.
fn with_backends(backends: Backends) -> (Host, Kernel) {
    let kernel = Kernel::default();
    let mut host = host();
    host.qubes = host.qubes.with_plumbing(kernel.clone());
    host.machine.run_backends(backends);
    for image in ["a", "b"] {
        fs::write(host.folder.path().join(image), image).unwrap();
    }
    host.machine.reset_counts();
    (host, kernel)
}

/// A line of a configuration, in which `@` stands for the host's folder.
fn config(host: &Host, name: &str, more: &str) -> QubeConfig {
    host.config_with(name, &more.replace('@', &host.folder.path().display().to_string()))
}

const TWO_DISKS_AND_AN_INTERFACE: &str =
    "disk=['@/a,raw,xvda,r','@/b,raw,xvdb,w']\nvif=['mac=00:16:3e:00:00:01,bridge=xenbr0']";

fn create(host: &Host, name: &str, more: &str) -> Result<Qube, CreateError> {
    host.qubes.create(&config(host, name, more), true, &*host.foreign)
}

fn image(host: &Host, name: &str) -> String {
    host.folder.path().join(name).display().to_string()
}

fn value(host: &Host, path: &str) -> Option<String> {
    host.qubes.read(path).unwrap()
}

#[test]
fn two_disks_and_an_interface_take_one_transaction_and_leave_nothing() {
    let (host, kernel) = with_backends(Backends::Prompt);
    let before = host.inventory();
    let qube = create(&host, "work", TWO_DISKS_AND_AN_INTERFACE).unwrap();
    let counts = host.machine.counts();
    // What it is today, so that a change is noticed.
    assert_eq!((counts.xenstore_transactions(), counts.hypercalls), (1, 33), "{:?}", counts.calls);
    assert_eq!((counts.xenstore_requests(), counts.of("xs_watch")), (187, 3), "{:?}", counts.calls);
    let early = kernel.calls();
    assert_eq!(
        early,
        [
            "bridge xenbr0",
            "lock",
            "loops",
            "attach r",
            "loops",
            "attach w",
            "keep 0",
            "keep 1",
            "connect vif1.0 xenbr0 None None"
        ]
    );
    let backend = "/local/domain/0/backend/vbd/1/51728";
    for (name, expected) in
        [("node", "/dev/loop1"), ("physical-device", "7:1"), ("hotplug-status", "connected")]
    {
        assert_eq!(value(&host, &format!("{backend}/{name}")).as_deref(), Some(expected), "{name}");
    }
    assert_eq!(value(&host, "/local/domain/0/backend/vif/1/0/hotplug-status").as_deref(), Some("connected"));
    assert_eq!(value(&host, "/local/domain/1/device/vif/0/mtu").as_deref(), Some("1400"), "the bridge's");

    host.qubes.destroy(&qube).unwrap();
    assert_eq!(kernel.calls(), ["loops", "loops", "detach 0", "detach 1"]);
    assert_eq!((host.inventory(), host.files(), kernel.loop_count()), (before, 0, 0));
}

#[test]
fn the_ring_of_a_pv_guests_disk_has_its_protocol() {
    let (host, _) = with_backends(Backends::Prompt);
    fs::write(host.folder.path().join("pv"), SyntheticElf::pv().build()).unwrap();
    let disk = "disk=['@/a,raw,xvda,r']";
    create(&host, "one", disk).unwrap();
    create(&host, "two", &format!("{disk}\ntype='pv'\nkernel='@/pv'\nmemory=16")).unwrap();
    let protocol = |domid| value(&host, &format!("/local/domain/{domid}/device/vbd/51712/protocol"));
    assert_eq!((protocol(1), protocol(2).as_deref()), (None, Some("x86_64-abi")));
}

#[test]
fn whichever_call_fails_nothing_is_left() {
    let calls: u64 = {
        let (host, _) = with_backends(Backends::Prompt);
        create(&host, "work", TWO_DISKS_AND_AN_INTERFACE).unwrap();
        host.machine.counts().calls.values().sum()
    };
    // Those before the domain is there are tested without devices.
    for nth in calls - 190..calls {
        let (host, kernel) = with_backends(Backends::Prompt);
        let before = host.inventory();
        host.machine.fail(None, nth, ErrorKind::Other);
        assert!(create(&host, "work", TWO_DISKS_AND_AN_INTERFACE).is_err(), "call {nth} of {calls}");
        assert_eq!((host.inventory(), kernel.loop_count()), (before, 0), "call {nth} of {calls}");
        assert_eq!(host.files(), 0, "call {nth} of {calls}");
    }
    for nth in 0..9 {
        let (host, kernel) = with_backends(Backends::Prompt);
        let before = host.inventory();
        kernel.0.lock().unwrap().until_failure = Some(nth);
        assert!(create(&host, "work", TWO_DISKS_AND_AN_INTERFACE).is_err(), "plumbing call {nth}");
        assert_eq!(
            (host.inventory(), kernel.loop_count(), host.files()),
            (before, 0, 0),
            "plumbing call {nth}"
        );
    }
}

#[test]
fn a_device_attached_to_a_running_qube_is_whole_or_not_there() {
    let attach = |host: &Host, qube: &Qube| -> Result<(), QubeError> {
        host.qubes.attach_disk(qube, &Disk::new(image(host, "a"), Vdev::parse("xvdc").unwrap()))?;
        host.qubes.attach_nic(qube, &Nic::default())
    };
    let started = || {
        let (host, kernel) = with_backends(Backends::Prompt);
        let qube = create(&host, "work", "").unwrap();
        host.machine.reset_counts();
        (host, kernel, qube)
    };
    let calls: u64 = {
        let (host, _, qube) = started();
        attach(&host, &qube).unwrap();
        host.machine.counts().calls.values().sum()
    };
    assert!(calls > 80);
    for nth in 0..calls {
        let (host, kernel, qube) = started();
        let before = host.inventory();
        host.machine.fail(None, nth, ErrorKind::Other);
        attach(&host, &qube).unwrap_err();
        for disk in host.qubes.list_disks(&qube).unwrap() {
            let vdev = Vdev::parse(&disk.address.devid.to_string()).unwrap();
            host.qubes.detach_disk(&qube, &vdev, Release::Asked).unwrap();
        }
        assert_eq!((host.inventory(), kernel.loop_count()), (before, 0), "call {nth} of {calls}");
    }
}

#[test]
fn devices_that_come_and_go_are_events() {
    let (mut host, _) = with_backends(Backends::Prompt);
    let told = crate::events::tests::Told::default();
    host.qubes.events = crate::events::EventLog::to([Box::new(told.clone())]);
    let qube = create(&host, "work", "").unwrap();
    assert_eq!(told.words()[..1], ["work (domain 1): created"]);
    let disk = Disk { readonly: true, ..Disk::new(image(&host, "a"), Vdev::parse("xvda").unwrap()) };
    host.qubes.attach_disk(&qube, &disk).unwrap();
    host.qubes.attach_nic(&qube, &Nic::default()).unwrap();
    host.qubes.attach_disk(&qube, &disk).unwrap_err();
    host.qubes.detach_disk(&qube, &Vdev::parse("51712").unwrap(), Release::Asked).unwrap();
    host.qubes.detach_nic(&qube, 0, Release::AskedThenForced).unwrap();
    assert_eq!(
        told.words(),
        ["attached, disk xvda", "attached, interface 0", "detached, disk xvda", "detached, interface 0"]
            .map(|step| format!("work (domain 1): {step}"))
    );
}

#[test]
fn devices_come_and_go_and_the_stored_configurations_know() {
    let (host, kernel) = with_backends(Backends::Prompt);
    let qube = create(&host, "work", "").unwrap();
    let before = (host.inventory(), host.qubes.stored_config(&qube).unwrap());
    let disk = Disk { readonly: true, ..Disk::new(image(&host, "a"), Vdev::parse("xvda").unwrap()) };
    host.qubes.attach_disk(&qube, &disk).unwrap();
    host.qubes.attach_nic(&qube, &Nic::default()).unwrap();
    host.qubes.attach_nic(&qube, &Nic { vifname: Some("work1".into()), ..Nic::default() }).unwrap();
    let error = host.qubes.attach_disk(&qube, &disk).unwrap_err();
    assert_eq!(error.to_string(), "domain 1 has a device xvda already");
    let stored = host.qubes.stored_config(&qube).unwrap().unwrap();
    let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
    assert_eq!((&stored["disks"][0]["vdev"], &stored["nics"][1]["devid"]), (&"xvda".into(), &1.into()));

    let disks = host.qubes.list_disks(&qube).unwrap();
    assert_eq!((disks.len(), disks[0].state, disks[0].ring_ref), (1, Some(1), None));
    let nics = host.qubes.list_nics(&qube).unwrap();
    assert_eq!(nics.iter().map(|nic| nic.address.devid).collect::<Vec<_>>(), [0, 1]);

    // A qube that is made again has them.
    host.machine.shut_down(qube.info.domid, xen::ShutdownReason::Reboot);
    assert_eq!(crate::watch::tests::watch(&host).len(), 1);
    let again = host.qubes.find("work").unwrap();
    assert_eq!(host.qubes.list_nics(&again).unwrap()[0].mac, nics[0].mac);

    let number = Vdev::parse("51712").unwrap();
    host.qubes.detach_disk(&again, &number, Release::Asked).unwrap();
    host.qubes.detach_nic(&again, 0, Release::AskedThenForced).unwrap();
    host.qubes.detach_nic(&again, 1, Release::AskedThenForced).unwrap();
    let error = host.qubes.detach_nic(&again, 1, Release::Asked).unwrap_err();
    assert_eq!(error.to_string(), "domain 1 has no device 1");
    assert_eq!(host.qubes.stored_config(&again).unwrap(), before.1);
    assert_eq!((kernel.loop_count(), host.inventory().len()), (0, before.0.len()));
}

#[test]
fn an_image_has_one_writer_or_many_readers() {
    let (host, kernel) = with_backends(Backends::Prompt);
    let reader = "disk=['@/a,raw,xvda,r']";
    create(&host, "one", reader).unwrap();
    create(&host, "two", reader).unwrap();
    let before = host.inventory();
    let refused = |more: &str, user: &str| {
        let error = create(&host, "other", more).unwrap_err().to_string();
        assert!(error.contains(&format!("/a is in use by {user}")), "{error}");
        assert_eq!(host.inventory(), before);
    };
    refused("disk=['@/a,raw,xvda,w']", "domain 1, as its disk 51712");
    refused("disk=['@/b,raw,xvda,w','@/a,raw,xvdb,w']", "domain 1, as its disk 51712");
    kernel.0.lock().unwrap().mounted.insert((7, 0), true);
    refused(reader, "this domain, which has it mounted");
    kernel.0.lock().unwrap().mounted.insert((7, 0), false);
    create(&host, "three", reader).unwrap();

    let (host, _) = with_backends(Backends::Prompt);
    let before = host.inventory();
    for second in ["r", "w"] {
        let error =
            create(&host, "one", &format!("disk=['@/a,raw,xvda,w','@/a,raw,xvdb,{second}']")).unwrap_err();
        assert!(error.to_string().contains("/a is in use by another disk of domain 1"), "{error}");
    }
    create(&host, "one", "disk=['@/a,raw,xvda,w']").unwrap();
    let error = create(&host, "two", reader).unwrap_err();
    assert!(error.to_string().contains("in use by domain"), "{error}");
    host.qubes.destroy(&host.qubes.find("one").unwrap()).unwrap();
    assert_eq!(host.inventory(), before);
}

#[test]
fn what_cannot_be_attached_is_told_before_anything_is_made() {
    let (host, _) = with_backends(Backends::Prompt);
    let before = host.inventory();
    for (more, message) in [
        ("disk=['@/none,raw,xvda,r']", "disk xvda: "),
        ("disk=['@,raw,xvda,r']", "neither a regular file nor a block device"),
        ("vif=['bridge=none']", "none is no bridge"),
    ] {
        let error = create(&host, "work", more).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    // Each time the names of the domains that there are.
    assert_eq!(host.machine.counts().hypercalls, 3);
    let error = create(&host, "work", "disk=['@/a,raw,xvda,r','@/b,raw,51712,r']").unwrap_err().to_string();
    assert_eq!(error, "domain 1 has a device 51712 already");
    let error = create(&host, "work", "disk=['@/a,raw,xvda,r,backend=sys-disk']").unwrap_err().to_string();
    assert!(error.contains("sys-disk is an invalid domain identifier"), "{error}");
    assert_eq!(host.inventory(), before);
}

#[test]
fn a_backend_that_is_late_is_waited_for_and_one_that_is_absent_is_not_waited_for_for_ever() {
    let (host, kernel) = with_backends(Backends::Absent);
    let before = host.inventory();
    let dom0 = host.machine.domain(DomId::DOM0).xenstore().unwrap();
    let state = "/local/domain/0/backend/vbd/1/51712/state";
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while dom0.read(Transaction::NONE, state).is_err() {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(50));
            // As blkback: something else first.
            dom0.write(Transaction::NONE, "/local/domain/0/backend/vbd/1/51712/feature-barrier", b"1")
                .unwrap();
            dom0.write(Transaction::NONE, state, b"2").unwrap();
        });
        create(&host, "work", "disk=['@/a,raw,xvda,r']").unwrap();
    });
    host.machine.run_backends(Backends::Prompt);
    host.qubes.destroy(&host.qubes.find("work").unwrap()).unwrap();
    assert_eq!(host.inventory(), before);

    host.machine.run_backends(Backends::Absent);
    let said = "/local/domain/0/error/backend/vbd/1/51712/error";
    let error = create(&host, "work", "disk=['@/a,raw,xvda,r']").unwrap_err().to_string();
    assert!(error.starts_with("vbd 51712 of domain 1: its backend in domain 0 was not ready"), "{error}");
    assert!(error.ends_with("is the module xen-blkback loaded there?"), "{error}");
    assert_eq!((host.inventory(), kernel.loop_count()), (before.clone(), 0));

    // What the driver says of it comes along, on one line, and goes.
    dom0.write(Transaction::NONE, said, b"22 creating\nvbd").unwrap();
    let error = create(&host, "work", "disk=['@/a,raw,xvda,r']").unwrap_err().to_string();
    assert!(error.ends_with("22 creating vbd"), "{error}");
    assert_eq!(host.inventory(), before);
}

#[test]
fn a_guest_that_keeps_its_disk_keeps_it_until_it_is_forced() {
    let (host, kernel) = with_backends(Backends::Clinging);
    let before = host.inventory();
    let qube = create(&host, "work", TWO_DISKS_AND_AN_INTERFACE).unwrap();
    let vdev = Vdev::parse("xvda").unwrap();
    let error = host.qubes.detach_disk(&qube, &vdev, Release::Asked).unwrap_err();
    assert!(matches!(error, QubeError::Device(DeviceError::NotReleased { .. })), "{error}");
    assert_eq!((host.qubes.list_disks(&qube).unwrap().len(), kernel.loop_count()), (2, 2));
    // Even a driver that never answers loses its device, and that is told.
    let error = host.qubes.detach_disk(&qube, &vdev, Release::Forced).unwrap_err();
    assert!(matches!(error, QubeError::Device(DeviceError::NotClosed { .. })), "{error}");
    assert_eq!((host.qubes.list_disks(&qube).unwrap().len(), kernel.loop_count()), (1, 1));
    host.machine.run_backends(Backends::Prompt);
    host.qubes.destroy(&qube).unwrap();
    assert_eq!((host.inventory(), kernel.loop_count()), (before, 0));
}

/// One that is starting, or has no driver; a detach that somebody else began is finished, too.
#[test]
fn a_guest_that_never_came_to_its_disk_is_not_waited_for() {
    for begun in [None, Some("5")] {
        let (host, kernel) = with_backends(Backends::Alone);
        let before = host.inventory();
        let qube = create(&host, "work", TWO_DISKS_AND_AN_INTERFACE).unwrap();
        if let Some(state) = begun {
            let path = "/local/domain/0/backend/vbd/1/51712/state";
            host.qubes.store.write(Transaction::NONE, path, state.as_bytes()).unwrap();
            assert_eq!(value(&host, path).as_deref(), begun, "it waits for the guest");
        }
        host.qubes.detach_disk(&qube, &Vdev::parse("xvda").unwrap(), Release::Asked).unwrap();
        assert_eq!((host.qubes.list_disks(&qube).unwrap().len(), kernel.loop_count()), (1, 1));
        host.qubes.destroy(&qube).unwrap();
        assert_eq!((host.inventory(), kernel.loop_count()), (before, 0));
    }
}

#[test]
fn what_a_guest_writes_is_not_believed() {
    let (host, kernel) = with_backends(Backends::Prompt);
    let before = host.inventory();
    let qube = create(&host, "work", TWO_DISKS_AND_AN_INTERFACE).unwrap();
    let guest = host.machine.domain(qube.info.domid).xenstore().unwrap();
    let victim = "/local/domain/0/backend/vbd/9/51712";
    let write = |path: &str, value: &str| guest.write(Transaction::NONE, path, value.as_bytes()).unwrap();
    write("device/vbd/51712/backend", victim);
    write("device/vbd/51712/state", "-1");
    write("device/vbd/51712/ring-ref", "18446744073709551616");
    write("device/vbd/51712/event-channel", "9; rm -rf /");
    write("device/vif/0/mac", "ff:ff:ff:ff:ff:ff");
    assert!(guest.write(Transaction::NONE, "device/vif/0/mtu", b"9").is_err(), "the MTU is not the guest's");
    let disk = &host.qubes.list_disks(&qube).unwrap()[0];
    assert_eq!(disk.backend_path, "/local/domain/0/backend/vbd/1/51712");
    assert_eq!((disk.state, disk.event_channel, disk.ring_ref), (None, None, None));
    assert_eq!(host.qubes.list_nics(&qube).unwrap()[0].mac.to_string(), "00:16:3e:00:00:01");
    host.qubes.store.write(Transaction::NONE, victim, b"").unwrap();
    host.qubes.destroy(&qube).unwrap();
    assert_eq!(value(&host, victim).as_deref(), Some(""), "somebody else's backend stays");
    host.qubes.store.remove(Transaction::NONE, "/local/domain/0/backend/vbd").unwrap();
    assert_eq!((host.inventory(), kernel.loop_count()), (before, 0));
}

#[test]
fn scripts_that_are_named_are_run_and_others_are_not() {
    let (host, kernel) = with_backends(Backends::Prompt);
    let before = host.inventory();
    let qube = create(
        &host,
        "work",
        "disk=['script=block-nix,vdev=xvda,target=system']\nvif=['script=/opt/vif', 'ip=10.0.0.1', 'bridge=br1,vifname=w']",
    )
    .unwrap();
    assert_eq!(
        kernel.calls(),
        [
            "bridge br1",
            "Add /etc/xen/scripts/block-nix vbd 51712 of domain 1",
            "Add /opt/vif vif 0 of domain 1",
            "Add /etc/xen/scripts/vif-bridge vif 1 of domain 1",
            "connect vif1.2 br1 None Some(\"w\")",
        ]
    );
    // That is what the script would have written.
    host.qubes
        .store
        .write(Transaction::NONE, "/local/domain/0/backend/vif/1/1/hotplug-status", b"connected")
        .unwrap();
    host.qubes.destroy(&qube).unwrap();
    assert_eq!(
        kernel.calls(),
        [
            "Remove /etc/xen/scripts/block-nix vbd 51712 of domain 1",
            "Remove /opt/vif vif 0 of domain 1",
            "Remove /etc/xen/scripts/vif-bridge vif 1 of domain 1",
        ]
    );
    assert_eq!(host.inventory(), before);
}

#[test]
fn a_loop_device_that_has_another_image_by_now_is_left_alone() {
    let (host, kernel) = with_backends(Backends::Prompt);
    let qube = create(&host, "work", "disk=['@/a,raw,xvda,r']").unwrap();
    let other = File::open(host.folder.path().join("b")).unwrap();
    kernel.0.lock().unwrap().loops.insert(0, other);
    host.qubes.destroy(&qube).unwrap();
    assert_eq!(kernel.loop_count(), 1);
}

#[test]
fn a_driver_domain_does_its_own_part() {
    let (host, kernel) = with_backends(Backends::Prompt);
    let driver = create(&host, "sys-disk", "driver_domain=1").unwrap();
    let before = host.inventory();
    let qube = create(&host, "work", "disk=['/not/here,raw,xvda,r,backend=sys-disk']").unwrap();
    assert_eq!(kernel.calls(), [""; 0], "nothing of it is in dom0");
    let backend = format!("/local/domain/{}/backend/vbd/{}/51712", driver.info.domid, qube.info.domid);
    assert_eq!(value(&host, &format!("{backend}/params")).as_deref(), Some("/not/here"));
    assert_eq!(value(&host, &format!("{backend}/physical-device")), None);
    let permissions = host.qubes.store.permissions(Transaction::NONE, &backend).unwrap().to_string();
    assert_eq!(permissions, format!("n{},r{}", driver.info.domid, qube.info.domid));
    let dom0 = host.machine.domain(DomId::DOM0).xenstore().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Its toolstack undoes what stands behind the disk, and removes the records then.
            let state = format!("{backend}/state");
            while dom0.read(Transaction::NONE, &state).is_ok_and(|state| state != b"6") {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(30));
            dom0.remove(Transaction::NONE, &backend).unwrap();
        });
        host.qubes.destroy(&qube).unwrap();
    });
    assert_eq!(host.inventory(), before);
}

#[test]
fn what_cannot_be_undone_keeps_no_qube_from_ending_or_from_being_made_again() {
    let (host, kernel) = with_backends(Backends::Prompt);
    let before = host.inventory();
    let qube = create(&host, "work", "disk=['@/a,raw,xvda,r']").unwrap();
    // The look at the loop devices goes well, to detach one does not.
    kernel.0.lock().unwrap().until_failure = Some(1);
    let error = host.qubes.destroy(&qube).unwrap_err();
    assert!(matches!(error, QubeError::LeftBehind { .. }), "{error}");
    assert_eq!((host.inventory(), host.files(), kernel.loop_count()), (before, 0, 1));

    let qube = create(&host, "work", "disk=['@/b,raw,xvda,r']").unwrap();
    host.qubes.unpause(&qube).unwrap();
    host.machine.shut_down(qube.info.domid, xen::ShutdownReason::Reboot);
    kernel.0.lock().unwrap().until_failure = Some(1);
    let done = crate::watch::tests::watch(&host);
    assert!(done[0].left_behind.as_ref().is_some_and(|left| left.contains("made to fail")), "{done:?}");
    assert!(host.qubes.find("work").is_ok());
}

/// What stock `xl` was seen to leave of the devices of domain N, without what the drivers write.
const GOLDEN: &str = include_str!("../../tests/golden/devices.xenstore.txt");

#[test]
fn the_records_are_those_of_stock_xl() {
    let (host, _) = with_backends(Backends::Prompt);
    fs::write(host.folder.path().join("disk"), "").unwrap();
    fs::write(host.folder.path().join("disk2"), "").unwrap();
    create(
        &host,
        "work",
        "disk=['@/disk,raw,xvda,w', '@/disk2,raw,xvdb,r']\nvif=['mac=00:16:3e:00:00:01,bridge=xenbr0']",
    )
    .unwrap();
    // The bridge of that host had an MTU of 1500.
    host.qubes.store.write(Transaction::NONE, "/local/domain/1/device/vif/0/mtu", b"1500").unwrap();
    let ours: Vec<String> = host
        .inventory()
        .into_iter()
        .filter(|line| line.contains("/device/v") || line.contains("/backend/v"))
        .map(|line| {
            let line = line.replace(&host.folder.path().display().to_string(), "/run/img");
            // The tools put more blanks in front of permissions, and the mock's dom0 may read what is its own.
            line.replace(" (", "   (").replace("(n0,r0)", "(n0)")
        })
        .collect();
    let drivers = ["/feature-", "/max-ring-page-order", "/multi-queue-max-queues"];
    let (mut theirs, mut loops) = (Vec::new(), Vec::new());
    for line in GOLDEN.lines().filter(|line| line.starts_with('/')) {
        if !drivers.iter().any(|part| line.contains(part)) {
            theirs.push(as_domain_1(line));
        }
    }
    let mut ours: Vec<String> = ours.iter().map(|line| without_loop(line, &mut loops)).collect();
    assert_eq!(loops, ["0", "0", "0", "1", "1", "1"], "each disk has its own");
    let mut theirs: Vec<String> = theirs.iter().map(|line| without_loop(line, &mut loops)).collect();
    ours.sort();
    theirs.sort();
    assert!(theirs.len() > 100, "the golden file was read");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
}

fn as_domain_1(line: &str) -> String {
    let line = line.replace("/domain/N", "/domain/1").replace("/libxl/N", "/libxl/1");
    let line = line.replace("vbd/N", "vbd/1").replace("vif/N", "vif/1").replace("id = \"N\"", "id = \"1\"");
    line.replace("(nN,r0)", "(n1,r0)").replace("(n0,rN)", "(n0,r1)")
}

/// The line without the number of a loop device, which goes to `loops`.
fn without_loop(line: &str, loops: &mut Vec<String>) -> String {
    for prefix in ["\"/dev/loop", "\"7:"] {
        if let Some((before, after)) = line.split_once(prefix) {
            let (number, rest) = after.split_once('"').unwrap();
            loops.push(number.to_owned());
            return format!("{before}{prefix}L\"{rest}");
        }
    }
    line.to_owned()
}

#[test]
fn a_pv_guest_is_told_the_layout_of_its_ring() {
    let (host, _) = with_backends(Backends::Prompt);
    let qube = create(&host, "work", "").unwrap();
    let protocol = |vdev: &str| {
        let vdev = Vdev::parse(vdev).unwrap();
        let disk = Disk { readonly: true, ..Disk::new(image(&host, "a"), vdev.clone()) };
        host.qubes.attach_disk(&qube, &disk).unwrap();
        value(&host, &format!("/local/domain/1/device/vbd/{}/protocol", vdev.devid()))
    };
    assert_eq!(protocol("xvda"), None);
    host.qubes.store.write(Transaction::NONE, "/libxl/1/type", b"pv").unwrap();
    assert_eq!(protocol("xvdb").as_deref(), Some("x86_64-abi"));
}

#[test]
fn qubes_made_at_once_share_an_image_and_each_waits_for_its_own_backends() {
    let (host, kernel) = with_backends(Backends::Prompt);
    let before = host.inventory();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let host = &host;
            scope.spawn(move || {
                let name = format!("work-{number}");
                let qube = create(host, &name, "disk=['@/a,raw,xvda,r']\nvif=['bridge=xenbr0']").unwrap();
                assert_eq!(host.qubes.list_disks(&qube).unwrap().len(), 1);
            });
        }
    });
    assert_eq!(kernel.loop_count(), 8);
    std::thread::scope(|scope| {
        for qube in host.qubes.list().unwrap() {
            let host = &host;
            scope.spawn(move || host.qubes.destroy(&qube).unwrap());
        }
    });
    assert_eq!((host.inventory(), kernel.loop_count(), host.files()), (before, 0, 0));
}

/// A keyboard, two channels and a file system that the domain `files` serves, and nobody as yet.
const SERVED_BY_PROGRAMS: &str = "vkb=['backend-type=linux,unique-id=T0,feature-abs-pointer=1,width=800,height=600,backend=files']\n\
    channel=['connection=pty,name=org.example.a,backend=files','connection=socket,path=/run/b,name=org.example.b,backend=files']\n\
    p9=['tag=home,path=/srv/home,security_model=none,backend=files']";

#[test]
fn what_programs_serve_is_recorded_and_not_waited_for() {
    let (host, _) = with_backends(Backends::Absent);
    let files = create(&host, "files", "").unwrap();
    let before = host.inventory();
    let qube = create(&host, "work", SERVED_BY_PROGRAMS).unwrap();
    let back = "/local/domain/1/backend";
    for (path, expected) in [
        (format!("{back}/vinput/2/0/unique-id"), "T0"),
        (format!("{back}/vinput/2/0/feature-abs-pointer"), "1"),
        (format!("{back}/vinput/2/0/width"), "800"),
        ("/local/domain/2/device/vkbd/0/backend-id".to_owned(), "1"),
        ("/libxl/2/device/vkbd/0/backend".to_owned(), "/local/domain/1/backend/vinput/2/0"),
        (format!("{back}/console/2/1/connection"), "pty"),
        (format!("{back}/console/2/2/path"), "/run/b"),
        ("/local/domain/2/device/console/1/name".to_owned(), "org.example.a"),
        ("/local/domain/2/device/console/1/output".to_owned(), "pty"),
        ("/local/domain/2/device/console/2/output".to_owned(), "chardev:libxl-channel2"),
        (format!("{back}/9pfs/2/0/path"), "/srv/home"),
        (format!("{back}/9pfs/2/0/security_model"), "none"),
        ("/local/domain/2/device/9pfs/0/tag".to_owned(), "home"),
        ("/libxl/2/device/9pfs/0/backend".to_owned(), "/local/domain/1/backend/9pfs/2/0"),
    ] {
        assert_eq!(value(&host, &path).as_deref(), Some(expected), "{path}");
    }
    assert_eq!(value(&host, &format!("{back}/vinput/2/0/feature-raw-pointer")), None);
    let channels = host.qubes.channels(&qube).unwrap();
    assert_eq!(channels.iter().map(|channel| channel.backend).collect::<Vec<_>>(), [1, 1]);
    let begun = std::time::Instant::now();
    host.qubes.destroy(&qube).unwrap();
    assert!(begun.elapsed() < Duration::from_millis(500), "nobody was to be waited for");
    assert_eq!(host.inventory(), before);
    host.qubes.destroy(&files).unwrap();
}

#[test]
fn what_only_qemu_serves_is_refused_before_anything_is_made() {
    let (host, _) = with_backends(Backends::Prompt);
    let refused = |more: &str| {
        let text = format!("type='pvh'\nname='work'\nkernel='/k'\n{more}\n");
        let settings = crate::config::Settings::parse("work.cfg", text.as_bytes(), &[""; 0]).unwrap();
        QubeConfig::from_settings("work.cfg", &settings, None).unwrap_err().to_string()
    };
    let error = refused("vkb=['backend-type=qemu']");
    assert!(error.contains("nxl starts no QEMU") && error.starts_with("work.cfg:4:6: "), "{error}");
    let error = refused("channel=['connection=pty,name=a']");
    assert!(error.contains("nxl starts no QEMU, which serves the channels of domain 0"), "{error}");
    let error = refused("channel=['connection=pty,backend=files']");
    assert!(error.contains("a channel needs a name"), "{error}");
    let error = refused("p9=['tag=t,path=/srv,security_model=none']");
    assert!(error.contains("nxl starts no QEMU, which serves the 9P file systems of domain 0"), "{error}");
    // Whose the channel is to be is known only now.
    let before = host.inventory();
    let error =
        create(&host, "work", "channel=['connection=pty,name=a,backend=nobody']").unwrap_err().to_string();
    assert!(error.contains("nobody is an invalid domain identifier"), "{error}");
    assert_eq!(host.inventory(), before);
}

#[test]
fn a_channel_or_file_system_of_dom0s_is_its_toolstacks_to_take_away() {
    let (host, _) = with_backends(Backends::Prompt);
    let qube = create(&host, "work", "").unwrap();
    let channel = "/libxl/1/device/console/1/backend";
    host.qubes.store.write(Transaction::NONE, channel, b"/local/domain/0/backend/console/1/1").unwrap();
    let error = host.qubes.destroy(&qube).unwrap_err().to_string();
    assert_eq!(error, "domain 1 has devices that nxl does not manage (channel): use `xl destroy 1`");
    let p9 = "/libxl/1/device/9pfs/0/backend";
    host.qubes.store.remove(Transaction::NONE, channel).unwrap();
    host.qubes.store.write(Transaction::NONE, p9, b"/local/domain/0/backend/9pfs/1/0").unwrap();
    let error = host.qubes.destroy(&qube).unwrap_err().to_string();
    assert_eq!(error, "domain 1 has devices that nxl does not manage (9pfs): use `xl destroy 1`");
}
