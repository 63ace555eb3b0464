//! The daemon of a mock driver domain, with scripts that are run.

use super::*;
use crate::config::Mac;
use crate::device::{Disk, Nic, Vdev};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;
use xen::mock::{Backends, Machine};

const BACKEND: DomId = DomId(5);
const GUEST: DomId = DomId(7);
const VIF: Address = Address { domid: GUEST, kind: Kind::Vif, devid: 0, backend: BACKEND };
const VBD: Address = Address { domid: GUEST, kind: Kind::Vbd, devid: 51712, backend: BACKEND };

/// A driver domain, a guest of it, and dom0's connection to xenstored.
struct Host {
    machine: Machine,
    dom0: Arc<dyn Xenstore>,
    folder: TempDir,
    told: Mutex<Vec<String>>,
    stop: AtomicBool,
}

fn host(backends: Backends) -> Host {
    let machine = Machine::new();
    let dom0 = machine.domain(DomId::DOM0).xenstore().unwrap();
    for domid in [BACKEND, GUEST] {
        drop(machine.domain(domid).xenstore().unwrap());
    }
    machine.run_backends(backends);
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("devd")).unwrap();
    Host { machine, dom0, folder, told: Mutex::default(), stop: AtomicBool::new(false) }
}

impl Host {
    fn devd(&self) -> Devd {
        Devd::open(&self.machine.domain(BACKEND), &self.folder.path().join("devd")).unwrap()
    }

    /// A script that notes that it ran, and does what `text` says.
    fn script(&self, text: &str) -> String {
        let path = self.folder.path().join("script");
        let ran = self.folder.path().join("ran").display().to_string();
        fs::write(&path, format!("#!/bin/sh\necho \"$1 $XENBUS_PATH ${{vif-}}\" >> {ran}\n{text}\n"))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    fn ran(&self) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("ran")).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// As a toolstack in dom0 writes them.
    fn attach(&self, address: Address, script: &str) {
        let entries = match address.kind {
            Kind::Vif => Nic { mac: Some(Mac([0; 6])), script: Some(script.to_owned()), ..Nic::default() }
                .settled(address.devid)
                .entries(GUEST, BACKEND),
            _ => Disk { script: Some(script.to_owned()), ..Disk::new("x", Vdev::parse("xvda").unwrap()) }
                .entries(GUEST, BACKEND, false),
        };
        store::write(&*self.dom0, &address.records(&entries)).unwrap();
    }

    fn set(&self, address: Address, name: &str, value: &str) {
        let path = format!("{}/{name}", address.backend_path());
        self.dom0.write(Transaction::NONE, &path, value.as_bytes()).unwrap();
    }

    fn get(&self, address: Address, name: &str) -> Option<String> {
        store::text_if_there(&*self.dom0, &format!("{}/{name}", address.backend_path())).unwrap()
    }

    /// As a toolstack asks for a device's end.
    fn detach(&self, address: Address) {
        self.set(address, "online", "0");
        self.set(address, "state", "5");
    }

    fn wait(&self, what: &str, is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "{what}; told: {:?}",
                self.told.lock().unwrap()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_gone(&self, address: Address) -> bool {
        self.get(address, "state").is_none()
    }

    fn journals(&self) -> usize {
        fs::read_dir(self.folder.path().join("devd")).unwrap().count() - 1
    }

    /// Runs a daemon while `body` does.
    fn serve(&self, body: impl FnOnce()) {
        struct Stop<'a>(&'a Host);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.stop.store(true, Ordering::SeqCst);
                let poke = format!("/local/domain/{BACKEND}/backend/stop");
                self.0.dom0.write(Transaction::NONE, &poke, b"").unwrap();
            }
        }
        self.stop.store(false, Ordering::SeqCst);
        let tell = |told: Told| self.told.lock().unwrap().push(told.to_string());
        let (is_ready, ready) = channel();
        thread::scope(|scope| {
            let devd = scope.spawn(|| {
                let go_on = || !self.stop.load(Ordering::SeqCst);
                self.devd().run(|| is_ready.send(()).unwrap(), &tell, go_on)
            });
            let stop = Stop(self);
            ready.recv().unwrap();
            body();
            drop(stop);
            devd.join().unwrap().unwrap();
        });
    }
}

#[test]
fn devices_are_connected_by_their_scripts_and_taken_away_with_their_records() {
    let host = host(Backends::Prompt);
    let script = host.script("exit 0");
    // One is there before the daemon.
    host.attach(VIF, &script);
    let before = host.dom0.directory(Transaction::NONE, &format!("/local/domain/{BACKEND}/backend"));
    assert_eq!(before.unwrap(), ["vif"]);
    host.serve(|| {
        host.wait("the interface", || host.get(VIF, "hotplug-status").as_deref() == Some("connected"));
        host.attach(VBD, &script);
        host.wait("the disk", || host.get(VBD, "hotplug-status").as_deref() == Some("connected"));
        for address in [VIF, VBD] {
            host.set(address, "state", "4");
            host.set(address, "online", "1");
        }
        host.detach(VIF);
        host.wait("the interface is gone", || host.is_gone(VIF));
        host.detach(VBD);
        host.wait("the disk is gone", || host.is_gone(VBD));
        host.wait("it is told", || host.told.lock().unwrap().len() == 4);
    });
    assert_eq!(
        host.ran(),
        [
            "online backend/vif/7/0 vif7.0",
            "add backend/vbd/7/51712",
            "offline backend/vif/7/0 vif7.0",
            "remove backend/vbd/7/51712"
        ]
    );
    assert_eq!(
        *host.told.lock().unwrap(),
        [
            "vif 0 of domain 7: connected",
            "vbd 51712 of domain 7: connected",
            "vif 0 of domain 7: taken away",
            "vbd 51712 of domain 7: taken away"
        ]
    );
    assert_eq!(host.journals(), 0);
}

#[test]
fn one_that_was_killed_is_followed_by_one_that_runs_no_script_twice_and_forgets_none() {
    let host = host(Backends::Prompt);
    let script = host.script("exit 0");
    for address in [VIF, VBD] {
        host.attach(address, &script);
    }
    // Ends like one that is killed: nothing is taken away.
    let connected = || {
        [VIF, VBD].map(|one| host.get(one, "hotplug-status"))
            == [Some("connected".into()), Some("connected".into())]
    };
    host.serve(|| host.wait("both", connected));
    assert_eq!((host.ran().len(), host.journals()), (2, 2));
    host.detach(VBD);
    host.serve(|| {
        host.wait("the disk is gone", || host.is_gone(VBD));
        host.set(VIF, "state", "4");
    });
    assert_eq!(host.ran()[2..], ["remove backend/vbd/7/51712"]);
    // Removed while nobody watched, by a toolstack that would not wait.
    host.dom0.remove(Transaction::NONE, &VIF.backend_path()).unwrap();
    host.serve(|| host.wait("offline", || host.journals() == 0));
    assert_eq!(host.ran()[3..], ["offline backend/vif/7/0 vif7.0"]);
}

#[test]
fn a_script_that_outlives_who_started_it_is_waited_for_and_its_end_counts() {
    for (status, recorded) in [(0, "connected"), (3, "error")] {
        let host = host(Backends::Prompt);
        let script = host.script(&format!("sleep 0.5; exit {status}"));
        host.attach(VIF, &script);
        // The script of a daemon that is killed right after it started it.
        let devd = host.devd();
        let mut journal = Journal::open(&devd.folder, VIF).unwrap();
        let started = Script { address: VIF, path: script, gatewaydev: None };
        assert!(devd.begin(&started, &mut journal).unwrap());
        thread::scope(|scope| {
            let started = &started;
            scope.spawn(move || journal.run(started, Action::Add));
            host.wait("it runs", || host.ran().len() == 1);
            host.serve(|| {
                host.wait("its end", || host.get(VIF, "hotplug-status").as_deref() == Some(recorded))
            });
        });
        assert_eq!(host.ran().len(), 1, "it ran once");
    }
}

#[test]
fn an_interrupted_script_is_run_again_and_a_journal_of_another_device_is_not_believed() {
    let host = host(Backends::Prompt);
    let script = host.script("exit 0");
    host.attach(VIF, &script);
    host.attach(VBD, &script);
    let devd = host.devd();
    for (address, mark, then) in [(VIF, None, "add\n"), (VBD, Some("another"), "add\nended 0\n")] {
        let mut journal = Journal::open(&devd.folder, address).unwrap();
        let started = Script { address, path: script.clone(), gatewaydev: None };
        devd.begin(&started, &mut journal).unwrap();
        drop(journal);
        let path = devd.folder.join(format!("{}-7-{}", address.kind.name(), address.devid));
        fs::write(&path, fs::read_to_string(&path).unwrap() + then).unwrap();
        if let Some(mark) = mark {
            host.set(address, MARK, mark);
        }
    }
    host.serve(|| {
        for address in [VIF, VBD] {
            host.wait("connected", || host.get(address, "hotplug-status").as_deref() == Some("connected"));
        }
    });
    let mut ran = host.ran();
    ran.sort();
    assert_eq!(ran, ["add backend/vbd/7/51712", "online backend/vif/7/0 vif7.0"]);
}

#[test]
fn a_script_that_fails_is_recorded_for_the_toolstack_and_not_tried_again() {
    let host = host(Backends::Prompt);
    let script = host.script("exit 3");
    host.attach(VIF, &script);
    host.attach(VBD, "");
    host.serve(|| {
        for address in [VIF, VBD] {
            host.wait("an error", || host.get(address, "hotplug-status").as_deref() == Some("error"));
        }
        host.set(VIF, "state", "4");
    });
    assert!(host.get(VIF, "hotplug-error").unwrap().contains("online ended with exit status: 3"));
    assert!(
        host.get(VBD, "hotplug-error").unwrap().contains("script"),
        "{:?}",
        host.get(VBD, "hotplug-error")
    );
    host.serve(|| {
        host.detach(VIF);
        host.wait("gone", || host.is_gone(VIF));
    });
    assert_eq!(host.ran(), ["online backend/vif/7/0 vif7.0", "offline backend/vif/7/0 vif7.0"]);
}

#[test]
fn a_backend_without_a_driver_is_told_of_and_served_when_that_comes() {
    let host = host(Backends::Absent);
    host.attach(VIF, &host.script("exit 0"));
    host.serve(|| {
        host.wait("it is told", || host.told.lock().unwrap().iter().any(|told| told.contains("xen-netback")));
        assert_eq!(host.ran(), [""; 0]);
        host.set(VIF, "state", "2");
        host.wait("connected", || host.get(VIF, "hotplug-status").as_deref() == Some("connected"));
        // The guest's half is still there: it may come back.
        host.set(VIF, "state", "6");
        host.set(VIF, "online", "1");
        thread::sleep(Duration::from_millis(50));
        assert!(!host.is_gone(VIF));
        // It ended, and nobody asked for it.
        host.dom0.remove(Transaction::NONE, &VIF.frontend_path()).unwrap();
        host.set(VIF, "state", "6");
        host.wait("gone", || host.is_gone(VIF));
    });
    assert_eq!(host.ran().len(), 2);
    assert!(host.machine.inventory().iter().all(|line| !line.starts_with("/local/domain/5/backend/vif/7/0")));
}

#[test]
fn a_second_one_is_refused() {
    let host = host(Backends::Prompt);
    host.serve(|| {
        let second = host.devd().run(|| {}, &|_| {}, || true);
        assert!(matches!(second, Err(DevdError::AtWork)), "{second:?}");
    });
}

#[test]
fn only_devices_of_its_kinds_and_canonical_names_are_taken_for_such() {
    let top = "/local/domain/5/backend";
    let of = |path: &str| concerned(top, BACKEND, &format!("{top}{path}"));
    assert_eq!(of(""), Concerned::All);
    assert_eq!(of("/vif"), Concerned::All);
    assert_eq!(of("/vif/7"), Concerned::All);
    assert_eq!(of("/vif/7/0"), Concerned::One(VIF));
    assert_eq!(of("/vbd/7/51712/state"), Concerned::One(VBD));
    for other in
        ["/console/7/0/state", "/vif/7/00", "/vif/+7/0", "/vif/7/x", "/vif/70000/0", "/vkbd", "/qdisk/7"]
    {
        assert_eq!(of(other), Concerned::Nobody(None), "{other}");
    }
    assert_eq!(of("/qdisk/7/51712/state"), Concerned::Nobody(Some(format!("{top}/qdisk/7/51712"))));
    for no in ["vif-7-00", "vif-7", "lock", "vif-7-0-1", "pci-7-0", ""] {
        assert_eq!(journal::device_of(no, BACKEND), None, "{no}");
    }
    assert_eq!(journal::device_of("vbd-7-51712", BACKEND), Some(VBD));
}
