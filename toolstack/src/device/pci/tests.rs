//! PCI devices of qubes against the mock: a kernel with a NIC (memory, ports, an interrupt) and a device that has a page of
//! memory alone.

use super::*;
use crate::config::Settings;
use crate::create::CreateError;
use crate::create::tests::{Host, host};
use crate::image::synthetic::SyntheticElf;
use crate::pciback::tests::{BARE, Kernel, NIC, address as device};
use std::fs;
use xen::mock::Backends;
use xen::{E820Kind, Transaction};

const SETUP: &str = "type='pv'\nmemory=16\n";

/// A host that runs pciback, whose devices are assignable: the NIC, by the name `wan`, and the other.
fn with_devices(backends: Backends) -> (Host, Kernel) {
    let (host, kernel) = bare();
    host.machine.run_backends(backends);
    let pciback = Pciback::new(&host.qubes, &kernel);
    pciback.add(device(NIC), Some("wan")).unwrap();
    pciback.add(device(BARE), None).unwrap();
    host.machine.reset_counts();
    (host, kernel)
}

/// The same before anything was made assignable.
fn bare() -> (Host, Kernel) {
    let kernel = Kernel::new();
    let mut host = host();
    host.qubes = host.qubes.with_sysfs(kernel.clone());
    fs::write(host.folder.path().join("kernel"), SyntheticElf::pv().build()).unwrap();
    host.machine.run_backends(Backends::Prompt);
    host.machine.reset_counts();
    (host, kernel)
}

fn create(host: &Host, name: &str, more: &str) -> Result<Qube, CreateError> {
    host.qubes.create(&host.config_with(name, &format!("{SETUP}{more}")), true, &*host.foreign)
}

fn pci(text: &str) -> PciConfig {
    PciConfig::parse(text, PciOptions::default()).unwrap()
}

fn value(host: &Host, path: &str) -> Option<String> {
    host.qubes.read(path).unwrap()
}

fn listed(host: &Host, qube: &Qube) -> Vec<(String, u8)> {
    let listed = host.qubes.list_pcis(qube).unwrap();
    listed.into_iter().map(|pci| (pci.device.to_string(), pci.vdevfn)).collect()
}

fn owners(host: &Host) -> Vec<(u16, String)> {
    host.machine.assigned_devices().iter().map(|(domid, device)| (domid.0, device.to_string())).collect()
}

fn quarantined() -> Vec<(u16, String)> {
    vec![(DomId::IO.0, NIC.to_owned()), (DomId::IO.0, BARE.to_owned())]
}

/// What stands below a path, with permissions.
fn below(host: &Host, path: &str) -> Vec<String> {
    host.inventory().into_iter().filter(|line| line.starts_with(path)).collect()
}

#[test]
fn the_records_are_those_of_libxl() {
    let (host, kernel) = with_devices(Backends::Prompt);
    let more =
        "pci=['name=wan@5,permissive=1', '0001:04:00.1,rdm_policy=relaxed,msitranslate=1,power_mgmt=1']";
    // A name has no slot behind it: that is said by itself.
    let more = more.replace("name=wan@5", "name=wan,vslot=5");
    let qube = create(&host, "work", &more).unwrap();
    let id = qube.info.domid;
    let backend = format!("/local/domain/0/backend/pci/{id}/0");
    let frontend = format!("/local/domain/{id}/device/pci/0");
    for (name, expected) in [
        ("frontend", frontend.as_str()),
        ("frontend-id", &id.to_string()),
        ("online", "1"),
        ("state", "4"),
        ("domain", "work"),
        ("key-0", NIC),
        ("dev-0", NIC),
        ("vdevfn-0", "28"),
        ("name-0", "wan"),
        ("opts-0", "msitranslate=0,power_mgmt=0,permissive=1,rdm_policy=strict"),
        ("state-0", "1"),
        ("key-1", BARE),
        ("dev-1", BARE),
        ("opts-1", "msitranslate=1,power_mgmt=1,permissive=0,rdm_policy=relaxed"),
        ("state-1", "1"),
        ("num_devs", "2"),
    ] {
        assert_eq!(value(&host, &format!("{backend}/{name}")).as_deref(), Some(expected), "{name}");
    }
    // And nothing else: the half itself, what is listed above, and the frontend's four.
    assert_eq!(below(&host, &backend).len(), 17);
    for (name, expected) in [("backend", backend.as_str()), ("backend-id", "0"), ("state", "1")] {
        assert_eq!(value(&host, &format!("{frontend}/{name}")).as_deref(), Some(expected), "{name}");
    }
    assert_eq!(below(&host, &frontend).len(), 4);
    assert!(below(&host, &format!("/libxl/{id}/device/pci")).is_empty());
    for record in ["/libxl/pci/0000-03-00-0/domid", "/libxl/pci/0001-04-00-1/domid"] {
        assert_eq!(value(&host, record), Some(id.to_string()));
    }
    let readers = |path: &str| host.qubes.store.permissions(Transaction::NONE, path).unwrap();
    assert_eq!(readers(&backend), Permissions::readable_by(DomId::DOM0, id));
    assert_eq!(readers(&frontend), Permissions::readable_by(id, DomId::DOM0));

    // The NIC's pages, the last of which it has a part of, its ports, its ROM, its interrupt; the other's page.
    assert_eq!(
        host.machine.guest(id).unwrap().hardware,
        [
            Hardware::Ports { first: 0xf020, count: 0x20 },
            Hardware::Frames { first: 0xf7000, count: 0x20 },
            Hardware::Frames { first: 0xf7100, count: 0x20 },
            Hardware::Frames { first: 0xf7124, count: 1 },
            Hardware::Frames { first: 0xf7125, count: 1 },
            Hardware::Interrupt(17),
        ]
    );
    assert_eq!(owners(&host), [(id.0, NIC.to_owned()), (id.0, BARE.to_owned())]);
    assert_eq!(kernel.done(), [NIC.to_owned(), format!("+{NIC}"), BARE.to_owned()]);
    assert_eq!(listed(&host, &qube), [(NIC.to_owned(), 0x28), (BARE.to_owned(), 0)]);
}

#[test]
fn a_qube_with_devices_sees_the_machines_holes_and_one_without_does_not() {
    let (host, _) = with_devices(Backends::Prompt);
    let map = |qube: &Qube| host.machine.guest(qube.info.domid).unwrap().memory_map;
    let plain = create(&host, "plain", "").unwrap();
    assert_eq!(map(&plain).len(), 1);
    let seeing = create(&host, "seeing", "e820_host=1\nmaxmem=24").unwrap();
    let driving = create(&host, "driving", &format!("pci=['{NIC}']\nmaxmem=24")).unwrap();
    let kinds: Vec<E820Kind> = map(&driving).iter().map(|entry| entry.kind).collect();
    let expected =
        [E820Kind::Ram, E820Kind::Unusable, E820Kind::Acpi, E820Kind::Nvs, E820Kind::Reserved, E820Kind::Ram];
    assert_eq!(kinds, expected);
    assert_eq!((map(&driving)[0].size, map(&driving)[5].size), (16 << 20, 8 << 20));
    assert_eq!(map(&seeing), map(&driving));
}

#[test]
fn one_device_takes_seven_hypercalls_and_few_requests_more() {
    let (host, _) = with_devices(Backends::Prompt);
    create(&host, "plain", "passthrough='enabled'\ne820_host=1").unwrap();
    let plain = host.machine.counts();
    host.machine.reset_counts();
    create(&host, "work", &format!("pci=['{NIC}']")).unwrap();
    let counts = host.machine.counts();
    // Three of memory, one of ports, two for the interrupt, one for the IOMMU.
    assert_eq!(counts.hypercalls - plain.hypercalls, 7, "{:?}", counts.calls);
    // libxl has a transaction for each device; that which claims them all is ours alone.
    assert_eq!(counts.xenstore_transactions() - plain.xenstore_transactions(), 1);
}

#[test]
fn whichever_call_fails_nothing_is_left() {
    let more = format!("pci=['name=wan','{BARE}']");
    let calls: u64 = {
        let (host, _) = with_devices(Backends::Prompt);
        create(&host, "work", &more).unwrap();
        host.machine.counts().calls.values().sum()
    };
    assert!(calls > 100, "{calls}");
    for nth in 0..calls {
        let (host, kernel) = with_devices(Backends::Prompt);
        let before = host.inventory();
        host.machine.fail(None, nth, ErrorKind::Other);
        assert!(create(&host, "work", &more).is_err(), "call {nth} of {calls}");
        assert_eq!(host.inventory(), before, "call {nth} of {calls}");
        assert_eq!((owners(&host), host.files()), (quarantined(), 0), "call {nth} of {calls}");
        assert_eq!(kernel.slots(), 2);
    }
}

#[test]
fn a_device_that_is_seized_has_its_driver_again_when_the_qube_does_not_come_about() {
    let more = format!("pci=['{NIC},seize=1']");
    let (host, kernel) = bare();
    let before = host.inventory();
    let qube = create(&host, "work", &more).unwrap();
    assert_eq!((kernel.driver(NIC), owners(&host)), (Some("pciback"), vec![(qube.info.domid.0, NIC.into())]));
    // As with libxl, it stays assignable.
    host.qubes.destroy(&qube).unwrap();
    assert_eq!((kernel.driver(NIC), owners(&host)), (Some("pciback"), vec![(DomId::IO.0, NIC.into())]));
    Pciback::new(&host.qubes, &kernel).remove(NIC, true).unwrap();
    assert_eq!((kernel.driver(NIC), host.inventory()), (Some("e1000e"), before.clone()));

    for call in ["xc_domain_ioport_permission", "xc_physdev_map_pirq"] {
        host.machine.fail(Some(call), 0, ErrorKind::Other);
        assert!(create(&host, "work", &more).is_err());
        assert_eq!((kernel.driver(NIC), kernel.slots()), (Some("e1000e"), 0), "{call}");
        assert_eq!((host.inventory(), owners(&host)), (before.clone(), Vec::new()), "{call}");
    }
    // unbind, new_slot
    for writes in 0..2 {
        kernel.fail_after(writes);
        assert!(create(&host, "work", &more).is_err());
        assert_eq!(
            (kernel.driver(NIC), host.inventory()),
            (Some("e1000e"), before.clone()),
            "write {writes}"
        );
    }
}

#[test]
fn what_cannot_be_given_is_told_before_anything_is_made() {
    let (host, _) = with_devices(Backends::Prompt);
    let work = create(&host, "work", &format!("pci=['{BARE}']")).unwrap();
    let domid = work.info.domid;
    let before = host.inventory();
    for (more, message) in [
        ("pci=['00:1f.2']".to_owned(), "0000:00:1f.2 is not assignable: pciback does not hold it".to_owned()),
        ("pci=['00:1e.0']".to_owned(), "this host has no PCI device 0000:00:1e.0".to_owned()),
        ("pci=['00:1e.*@4']".to_owned(), "this host has no PCI device 0000:00:1e.0".to_owned()),
        ("pci=['03:00.*']".to_owned(), "all functions of 0000:03:00.0 are one device".to_owned()),
        (format!("pci=['{BARE}']"), format!("{BARE} is domain {domid}'s: `nxl pci-detach {domid} {BARE}`")),
        (format!("pci=['{NIC}','name=wan']"), format!("{NIC} is asked for twice")),
        ("pci=['name=lan']".to_owned(), "\"lan\" is neither the name".to_owned()),
    ] {
        let error = create(&host, "other", &more).unwrap_err().to_string();
        assert!(error.starts_with(&message), "{error}");
        assert_eq!(host.inventory(), before, "{more}");
    }
    host.machine.without_iommu();
    for more in ["pci=['03:00.0']", "passthrough='sync_pt'"] {
        let error = create(&host, "other", more).unwrap_err().to_string();
        assert!(error.contains("no IOMMU"), "{error}");
        assert_eq!(host.inventory(), before);
    }
    let settings =
        Settings::parse("a.cfg", b"type='pvh'\nname='a'\nkernel='/k'\npci=['3:0.0']", &[""; 0]).unwrap();
    let error = QubeConfig::from_settings("a.cfg", &settings, None).unwrap_err().to_string();
    assert_eq!(
        error,
        "a.cfg:4:1: no qube can be made with `pci', since libxl gives PVH guests no PCI devices"
    );
}

#[test]
fn destroy_leaves_every_device_assignable() {
    let (host, kernel) = with_devices(Backends::Prompt);
    let before = host.inventory();
    let qube = create(&host, "work", &format!("pci=['name=wan','{BARE}']")).unwrap();
    kernel.done();
    host.qubes.destroy(&qube).unwrap();
    assert_eq!((host.inventory(), owners(&host)), (before.clone(), quarantined()));
    assert_eq!(kernel.done(), [NIC, BARE]);
    // The same when somebody else ended the domain, and nobody its devices.
    let qube = create(&host, "work", &format!("pci=['{NIC}']")).unwrap();
    host.qubes.control.destroy(qube.info.domid).unwrap();
    host.qubes.destroy(&qube).unwrap();
    assert_eq!((host.inventory(), owners(&host), host.files()), (before, quarantined(), 0));
}

#[test]
fn devices_come_and_go_and_the_stored_configurations_know() {
    let (host, _) = with_devices(Backends::Prompt);
    let qube = create(&host, "work", "passthrough='enabled'").unwrap();
    let before = host.inventory();
    let stored = || {
        let text = host.qubes.stored_config(&qube).unwrap().unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["pcidevs"].as_array().map_or(0, Vec::len)
    };
    let kept = || {
        let text = host.qubes.userdata.read(crate::userdata::Kind::Nxl, qube.info.domid, qube.uuid());
        serde_json::from_str::<QubeConfig>(&text.unwrap().unwrap()).unwrap().pcis.len()
    };
    host.qubes.attach_pci(&qube, &pci("name=wan,permissive=1")).unwrap();
    assert_eq!((stored(), kept()), (1, 1));
    host.qubes.attach_pci(&qube, &pci(&format!("{BARE}@7"))).unwrap();
    assert_eq!(listed(&host, &qube), [(NIC.to_owned(), 0), (BARE.to_owned(), 0x38)]);
    assert_eq!((stored(), kept()), (2, 2));
    let error = host.qubes.attach_pci(&qube, &pci(BARE)).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{BARE} is domain")), "{error}");

    // The first goes, and the second takes its place.
    host.qubes.detach_pci(&qube, &pci(NIC).device, Release::Asked).unwrap();
    assert_eq!(listed(&host, &qube), [(BARE.to_owned(), 0x38)]);
    assert_eq!((stored(), kept()), (1, 1));
    let backend = format!("/local/domain/0/backend/pci/{}/0", qube.info.domid);
    for name in ["key-1", "dev-1", "vdevfn-1", "opts-1", "state-1", "name-0"] {
        assert_eq!(value(&host, &format!("{backend}/{name}")), None, "{name}");
    }
    assert_eq!(host.machine.guest(qube.info.domid).unwrap().hardware.len(), 1);
    let error = host.qubes.detach_pci(&qube, &pci(NIC).device, Release::Asked).unwrap_err().to_string();
    assert_eq!(error, format!("domain {} has no PCI device {NIC}", qube.info.domid));
    host.qubes.detach_pci(&qube, &pci("0001:04:00.*@1").device, Release::Asked).unwrap();
    assert_eq!((stored(), kept(), host.inventory()), (0, 0, before));
    assert_eq!(
        (owners(&host), host.machine.guest(qube.info.domid).unwrap().hardware),
        (quarantined(), vec![])
    );
}

#[test]
fn a_guest_that_keeps_its_device_keeps_it_until_it_is_forced() {
    let (host, _) = with_devices(Backends::Clinging);
    let qube = create(&host, "work", &format!("pci=['{NIC}','{BARE}']")).unwrap();
    let id = qube.info.domid.0;
    let error = host.qubes.detach_pci(&qube, &pci(NIC).device, Release::Asked).unwrap_err();
    assert!(matches!(error, QubeError::Device(DeviceError::NotReleased { .. })), "{error}");
    assert_eq!(owners(&host), [(id, NIC.to_owned()), (id, BARE.to_owned())]);
    host.qubes.detach_pci(&qube, &pci(NIC).device, Release::Forced).unwrap();
    assert_eq!(owners(&host), [(DomId::IO.0, NIC.to_owned()), (id, BARE.to_owned())]);
    assert_eq!(listed(&host, &qube), [(BARE.to_owned(), 0)]);
}

#[test]
fn a_device_attached_to_a_running_qube_is_whole_or_not_there() {
    let prepared = || {
        let (host, kernel) = with_devices(Backends::Prompt);
        let qube = create(&host, "work", "passthrough='enabled'").unwrap();
        host.machine.reset_counts();
        (host, kernel, qube)
    };
    let calls: u64 = {
        let (host, _, qube) = prepared();
        host.qubes.attach_pci(&qube, &pci(NIC)).unwrap();
        host.machine.counts().calls.values().sum()
    };
    assert!(calls > 20, "{calls}");
    for nth in 0..calls {
        let (host, _, qube) = prepared();
        let before = host.inventory();
        host.machine.fail(None, nth, ErrorKind::Other);
        assert!(host.qubes.attach_pci(&qube, &pci(NIC)).is_err(), "call {nth} of {calls}");
        assert_eq!((host.inventory(), owners(&host)), (before, quarantined()), "call {nth} of {calls}");
        assert!(host.machine.guest(qube.info.domid).unwrap().hardware.is_empty(), "call {nth} of {calls}");
    }
}

#[test]
fn a_qube_that_was_not_made_for_devices_is_told_so() {
    let (host, _) = with_devices(Backends::Prompt);
    let plain = create(&host, "plain", "").unwrap();
    let before = host.inventory();
    let error = host.qubes.attach_pci(&plain, &pci(NIC)).unwrap_err().to_string();
    assert!(error.contains("without passthrough=\"enabled\""), "{error}");
    assert_eq!((host.inventory(), owners(&host)), (before, quarantined()));
    let path = format!("/libxl/{}/type", plain.info.domid);
    host.qubes.store.write(Transaction::NONE, &path, b"pvh").unwrap();
    let error = host.qubes.attach_pci(&plain, &pci(NIC)).unwrap_err().to_string();
    assert!(error.contains("is no PV guest"), "{error}");
}

#[test]
fn what_a_program_that_died_over_a_qube_has_claimed_is_nobodys_again() {
    let more = format!("pci=['name=wan','{BARE}']");
    let calls: u64 = {
        let (host, _) = with_devices(Backends::Prompt);
        create(&host, "work", &more).unwrap();
        host.machine.counts().calls.values().sum()
    };
    // Each of them takes a host; the steps of the devices are the last third.
    for nth in (calls / 2..calls).step_by(3) {
        let (host, kernel) = with_devices(Backends::Prompt);
        let before = host.inventory();
        host.machine.kill_after(nth);
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| create(&host, "work", &more)));
        assert!(died.is_err(), "after {nth} of {calls} calls");
        let mut host = crate::create::tests::next_program(host);
        host.qubes = host.qubes.with_sysfs(kernel.clone());
        for leftover in host.qubes.leftovers().unwrap() {
            host.qubes.repair(&leftover).unwrap();
        }
        assert_eq!(
            (host.inventory(), owners(&host)),
            (before, quarantined()),
            "after {nth} of {calls} calls"
        );
    }
}

#[test]
fn the_claims_of_a_domain_that_is_gone_are_left_over() {
    let (host, _) = with_devices(Backends::Prompt);
    let before = host.inventory();
    host.qubes.store.write(Transaction::NONE, "/libxl/pci/0000-03-00-0/domid", b"7").unwrap();
    let found = host.qubes.leftovers().unwrap();
    let path = "/libxl/pci/0000-03-00-0/domid".to_owned();
    assert_eq!(found, [crate::doctor::Leftover::Records { path }]);
    host.qubes.repair(&found[0]).unwrap();
    assert_eq!(host.inventory(), before);
}
