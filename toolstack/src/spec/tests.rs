//! The document, and what a host makes of it: on the mock.

use super::*;
use crate::create::tests::{Host as MockHost, host as mock_host, next_program};
use crate::device::tests::Kernel;
use crate::qubes::Qubes;
use crate::userdata::Kind;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;
use xen::mock::Backends;
use xen::{DomId, Platform};

const FULL: &str = include_str!("../../../nixos/tests/full.json");

fn full() -> Value {
    let mut full: Value = serde_json::from_str(FULL).unwrap();
    full["qubes"]["net"]["pci"] = json!([]);
    full
}

fn parse(value: &Value) -> Result<Spec, SpecError> {
    Spec::parse("qubes.json", serde_json::to_string_pretty(value).unwrap().as_bytes())
}

// --- reading

#[test]
fn what_nix_writes_is_read_to_the_last_attribute() {
    let spec = parse(&full()).unwrap();
    assert_eq!(serde_json::to_value(spec.document()).unwrap(), full());
    assert_eq!(spec.document().qubes.len(), 5);
}

#[test]
fn what_nxl_cannot_do_is_refused_at_its_line() {
    let error = Spec::parse("qubes.json", FULL.as_bytes()).unwrap_err();
    let line = 1 + FULL[..FULL.find("\"pci\": [\n").unwrap()].matches('\n').count();
    assert_eq!(
        error.to_string(),
        format!(
            "qubes.json:{line}:13: qubes.net.pci: nxl passes no PCI devices through yet; `xl pci-attach` does"
        )
    );
}

/// The document with one attribute changed.
fn with(pointer: &str, value: Value) -> Value {
    let mut changed = full();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = changed.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
    match (parent, key.parse::<usize>()) {
        (Value::Array(list), Ok(number)) => list[number] = value,
        (parent, _) => parent[key.replace("~1", "/")] = value,
    }
    changed
}

#[test]
fn each_fault_names_its_attribute() {
    let shop = full()["qubes"]["shop"].clone();
    let spare = |more: Value| {
        let mut qube = full()["qubes"]["viewer"].clone();
        for (key, value) in more.as_object().unwrap() {
            qube[key] = value.clone();
        }
        qube
    };
    for (pointer, value, says) in [
        ("/version", json!(2), "version 2 of qubes.json; this nxl reads 1"),
        ("/version", json!("1"), "version \"1\" of qubes.json"),
        ("/more", json!(1), "more: unknown field `more`"),
        ("/qubes/shop/memory", json!("384"), "qubes.shop.memory: invalid type: string \"384\", expected u64"),
        ("/qubes/shop/memory", json!(-1), "qubes.shop.memory: invalid value: integer `-1`"),
        ("/qubes/shop/memmory", json!(1), "qubes.shop.memmory: unknown field `memmory`"),
        (
            "/qubes/shop/class",
            json!("debian"),
            "qubes.shop.class: unknown variant `debian`, expected `nixos` or `whonix`",
        ),
        ("/qubes/a b", spare(json!({})), "qubes.\"a b\": \"a b\" is not the name of a qube"),
        ("/qubes/dom0", spare(json!({})), "qubes.dom0: \"dom0\" is not the name of a qube"),
        (
            "/qubes/shop/system",
            Value::Null,
            "qubes.shop.system: is missing: a qube of class \"nixos\" boots from it",
        ),
        ("/qubes/shop/system", json!("/etc"), "qubes.shop.system: \"/etc\" is not a path in /nix/store"),
        ("/qubes/shop/system", json!("/nix/store/../../etc/x"), "is not a path in /nix/store"),
        (
            "/qubes/shop/boot",
            json!({"kernel": "/k", "initrd": null, "cmdline": ""}),
            "qubes.shop.boot: a qube of class \"nixos\" has none",
        ),
        (
            "/qubes/whonix/boot",
            Value::Null,
            "qubes.whonix.boot: is missing: a qube of class \"whonix\" boots from it",
        ),
        (
            "/qubes/whonix/system",
            json!("/nix/store/x"),
            "qubes.whonix.system: a qube of class \"whonix\" has none",
        ),
        (
            "/qubes/whonix/containers",
            shop["containers"].clone(),
            "qubes.whonix.containers: a qube of class \"whonix\" has none",
        ),
        ("/qubes/whonix/boot/kernel", json!("k"), "qubes.whonix.boot.kernel: \"k\" is not an absolute path"),
        ("/qubes/whonix/boot/cmdline", json!("a\" \nmemory=1"), "qubes.whonix.boot.cmdline:"),
        ("/qubes/shop/memory", json!(16), "qubes.shop.memory: 16 is not within 32 to 16777216"),
        (
            "/qubes/shop/max_memory",
            json!(256),
            "qubes.shop.max_memory: 256 is less than memory, which is 384",
        ),
        ("/qubes/shop/vcpus", json!(0), "qubes.shop.vcpus: 0 is not within 1 to 128"),
        ("/qubes/shop/max_vcpus", json!(1), "qubes.shop.max_vcpus: 1 is less than vcpus, which is 2"),
        ("/host/memory", json!(1200), "qubes: 1664 MiB cannot be met: there are 1200 MiB for qubes"),
        ("/host/memory", json!(1000), "qubes.whonix.memory: 1024 MiB cannot be met"),
        ("/qubes/shop/netvm", json!("gone"), "qubes.shop.netvm: there is no qube \"gone\""),
        ("/qubes/net/netvm", json!("shop"), "qubes.net.netvm: net -> shop -> net is a cycle"),
        (
            "/qubes/shop/networks/0/backend",
            json!("gone"),
            "qubes.shop.networks[0].backend: there is no qube \"gone\"",
        ),
        (
            "/qubes/shop/networks/0/backend",
            json!("vault"),
            "qubes.shop.networks[0].backend: is no driver domain",
        ),
        (
            "/qubes/shop/networks/0/mac",
            json!("00:16"),
            "qubes.shop.networks[0].mac: \"00:16\" is not a MAC address",
        ),
        (
            "/qubes/shop/networks/0/mac",
            full()["qubes"]["net"]["networks"][0]["mac"].clone(),
            "qubes.shop.networks[0].mac: 00:16:3e:",
        ),
        (
            "/qubes/net/networks/0/bridge",
            json!("a/b"),
            "qubes.net.networks[0].bridge: \"a/b\" is not the name of an interface",
        ),
        (
            "/qubes/shop/disks/0/target",
            json!("/a,b"),
            "qubes.shop.disks[0].target: \"/a,b\" is not an absolute path",
        ),
        ("/qubes/shop/disks/0/vdev", json!("xvdd"), "qubes.shop.disks[1].vdev: xvdd is taken already"),
        ("/qubes/shop/disks/0/vdev", json!("sda"), "qubes.shop.disks[0].vdev: \"sda\" is not a virtual disk"),
        (
            "/qubes/shop/disks/1/target",
            json!("/var/lib/whonix/root.img"),
            "qubes.whonix.disks[0].target: /var/lib/whonix/root.img (written by shop) is taken already",
        ),
        ("/qubes/shop/private/size", json!(1), "qubes.shop.private.size: 1 is not within 16"),
        ("/qubes/shop/tags", json!(["a b"]), "qubes.shop.tags: \"a b\" is not a tag"),
        ("/qubes/shop/services", json!([""]), "qubes.shop.services: \"\" is not the name of a service"),
        (
            "/qubes/shop/default_disposable",
            json!("vault"),
            "qubes.shop.default_disposable: vault is no template of disposables",
        ),
        (
            "/qubes/shop/default_disposable",
            json!("gone"),
            "qubes.shop.default_disposable: there is no qube \"gone\"",
        ),
        (
            "/qubes/shop/containers/a.b",
            shop["containers"]["orders"].clone(),
            "qubes.shop.containers.\"a.b\": \"a.b\" is not the name of a container",
        ),
        (
            "/qubes/shop/containers/front/system",
            json!("/x"),
            "qubes.shop.containers.front.system: \"/x\" is not a path in /nix/store",
        ),
        (
            "/qubes/shop/containers/front/calls/2/target",
            json!("vault:web"),
            "qubes.shop.containers.front.calls[2].target: there is no container \"vault:web\"",
        ),
        (
            "/qubes/shop/containers/front/calls/2/target",
            json!("gone"),
            "qubes.shop.containers.front.calls[2].target: there is no qube \"gone\"",
        ),
        (
            "/qubes/shop/containers/front/calls/2/target",
            json!("@dispvm:vault"),
            "calls[2].target: vault is no template of disposables",
        ),
        (
            "/qubes/shop/containers/front/calls/2/service",
            json!("nexus.Cut"),
            "qubes.shop.containers.front.calls[2].service: vault:gpg has no service \"nexus.Cut\"",
        ),
        (
            "/qubes/shop/calls/0/argument",
            json!("a b"),
            "qubes.shop.calls[0].argument: \"a b\" is not an argument",
        ),
        (
            "/qubes/shop/policy",
            json!({"x": ""}),
            "qubes.shop.policy.x: \"x\" is not the name of a policy file",
        ),
        (
            "/policy",
            json!({"../x.policy": ""}),
            "policy.\"../x.policy\": \"../x.policy\" is not the name of a policy file",
        ),
    ] {
        let error = parse(&with(pointer, value)).map(drop).unwrap_err().to_string();
        assert!(error.contains(says), "{pointer}: {error}\ninstead of: {says}");
    }
}

#[test]
fn a_call_to_a_disposable_wants_one() {
    let mut changed = with("/qubes/shop/default_disposable", Value::Null);
    changed["qubes"]["viewer"]["services"] = json!([]);
    let error = parse(&changed).unwrap_err().to_string();
    assert!(error.contains("qubes.shop.calls[1].target: there is no default_disposable"), "{error}");
}

#[test]
fn what_is_no_document_is_refused() {
    for (text, says) in [
        ("", "qubes.json:1:0: EOF while parsing a value"),
        ("{\n \"version\": 1,\n", "qubes.json:3:0: EOF while parsing a value"),
        ("{}", "version null of qubes.json"),
        ("[1]", "version null of qubes.json"),
        ("{\"version\":1,\n\"version\":1}", "qubes.json:2:1: version: is there twice"),
        (
            "{\"version\":1,\"host\":{\"memory\":null},\"policy\":{},\n\"qubes\":{\"work\":{},\"work\":{}}}",
            "qubes.json:2:20: qubes.work: is there twice",
        ),
        ("{\"version\":1,\"qubes\":[]}", "qubes.json:1:14: qubes: invalid type: sequence, expected a map"),
    ] {
        let error = Spec::parse("qubes.json", text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(says) || error.starts_with(&format!("qubes.json: {says}")), "{error}");
    }
    let deep = format!("{{\"version\":1,\"qubes\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(Spec::parse("x", deep.as_bytes()), Err(SpecError::Syntax { .. })));
    assert!(matches!(Spec::parse("x", b"{\"version\":1,\"\xff\":1}"), Err(SpecError::Syntax { .. })));
}

#[test]
fn every_byte_that_is_cut_off_is_missed() {
    let text = full().to_string();
    for end in (0..text.len()).step_by(7) {
        assert!(Spec::parse("x", &text.as_bytes()[..end]).is_err(), "{end}");
    }
}

#[test]
fn a_closure_is_a_nixos_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["kernel", "initrd", "init", "kernel-params"] {
        std::fs::write(folder.path().join(file), "x").unwrap();
    }
    let open = || closure("qubes.work.system", folder.path()).map_err(|error| error.to_string());
    let error = open().unwrap_err();
    assert!(
        error.starts_with("qubes.work.system: ") && error.contains("is no NixOS: it has no nixos-version"),
        "{error}"
    );
    std::fs::write(folder.path().join("nixos-version"), "25.05").unwrap();
    assert_eq!(open().unwrap().initrd_secrets, None);
    std::fs::write(folder.path().join("append-initrd-secrets"), "#!/bin/sh\necho x >> $1\n").unwrap();
    let error = open().unwrap_err();
    assert!(error.contains("has initrd secrets"), "{error}");
    std::fs::remove_file(folder.path().join("kernel")).unwrap();
    assert!(open().is_err());
}

#[test]
fn a_declared_qube_is_known_by_its_uuid() {
    assert!(is_declared(uuid_of("work")) && uuid_of("work") != uuid_of("vault"));
    assert!(!is_declared(Uuid::from_u128(1)) && !is_declared(Uuid::new_v4()));
}

// --- a host

/// A mock host with backends, and what is behind them.
struct Site {
    host: MockHost,
    kernel: Kernel,
}

impl std::ops::Deref for Site {
    type Target = MockHost;

    fn deref(&self) -> &MockHost {
        &self.host
    }
}

fn site() -> Site {
    behind(mock_host(), Kernel::default())
}

fn behind(host: MockHost, kernel: Kernel) -> Site {
    host.machine.run_backends(Backends::Prompt);
    let qubes = host.qubes.with_plumbing(kernel.clone());
    Site { host: MockHost { qubes, ..host }, kernel }
}

/// A qube that boots what the mock host has, with some attributes changed.
fn qube(host: &Site, more: &Value) -> Value {
    let folder = host.folder.path().display();
    let mut qube = full()["qubes"]["whonix"].clone();
    qube["boot"] = json!({ "kernel": format!("{folder}/kernel"), "initrd": format!("{folder}/initrd"), "cmdline": "quiet" });
    for key in ["disks", "networks"] {
        qube[key] = json!([]);
    }
    qube["netvm"] = Value::Null;
    for (key, value) in [("memory", 128), ("max_memory", 256), ("vcpus", 1), ("max_vcpus", 2)] {
        qube[key] = json!(value);
    }
    for (key, value) in more.as_object().unwrap() {
        qube[key] = value.clone();
    }
    qube
}

/// A document with these qubes, and a policy.
fn spec(host: &Site, qubes: &[(&str, Value)]) -> Spec {
    let qubes: serde_json::Map<_, _> =
        qubes.iter().map(|(name, more)| ((*name).to_owned(), qube(host, more))).collect();
    let policy = json!({ "50-nexus.policy": "q.A * work vault allow\n" });
    parse(&json!({ "version": 1, "host": { "memory": null }, "qubes": qubes, "policy": policy })).unwrap()
}

fn image(host: &Site, name: &str) -> Value {
    let path = host.folder.path().join(name);
    std::fs::write(&path, [0; 4096]).unwrap();
    path.display().to_string().into()
}

fn how(host: &Site, jobs: usize) -> Host {
    let policy = PolicyFolder(host.folder.path().join("policy.d"));
    Host { policy, jobs, patience: Duration::ZERO }
}

fn plan(host: &Site, spec: &Spec, prune: bool) -> Plan {
    Plan::of(&host.qubes, spec, &spec.configs().unwrap(), &how(host, 1).policy, prune).unwrap()
}

fn open(host: &Site) -> Result<(Qubes, std::sync::Arc<dyn xen::ForeignMemory>), xen::Error> {
    let dom0 = host.machine.domain(DomId::DOM0);
    let userdata = crate::UserData::in_folder(host.folder.path().join("userdata"));
    Ok((Qubes::open(&dom0, userdata)?.with_plumbing(host.kernel.clone()), dom0.foreign_memory()?))
}

/// Plans and applies; what was done, in the order in which it began.
fn apply_with(host: &Site, spec: &Spec, prune: bool, jobs: usize) -> (Vec<String>, Vec<(String, Failure)>) {
    let lock = host.qubes.lock_apply().unwrap().expect("nobody else applies");
    let configs = spec.configs().unwrap();
    let how = how(host, jobs);
    let plan = Plan::of(&host.qubes, spec, &configs, &how.policy, prune).unwrap();
    assert_eq!(plan.conflicts, []);
    let done = Mutex::new(Vec::new());
    let hooks = Hooks {
        open: &|| open(host),
        make_room: &|_, _| Ok(()),
        report: &|event| {
            if let Event::Begun(step) = event {
                done.lock().unwrap().push(format!("{} {}", step.work.name(), step.name));
            }
        },
    };
    let outcome = plan.apply(&lock, spec, &configs, &how, &hooks).unwrap();
    (done.into_inner().unwrap(), outcome.failures)
}

fn apply(host: &Site, spec: &Spec) -> Vec<String> {
    let (done, failures) = apply_with(host, spec, false, 1);
    assert!(failures.is_empty(), "{failures:?}");
    done
}

fn names(host: &Site) -> Vec<String> {
    let qubes = host.qubes.list().unwrap().into_iter().filter(|qube| qube.info.domid != DomId::DOM0);
    qubes.map(|qube| qube.display_name().to_owned()).collect()
}

/// Asserts that nothing has to be done, and that to find out changed nothing.
fn is_as_declared(host: &Site, spec: &Spec) {
    let before = host.inventory();
    host.machine.reset_counts();
    let found = plan(host, spec, true);
    assert!(found.is_empty(), "{found:#?}");
    let counts = host.machine.counts();
    let reading = [
        "xc_domain_getinfolist",
        "xc_domain_getinfo",
        "xs_read",
        "xs_directory",
        "xs_transaction_start",
        "xs_transaction_end",
        "xs_open",
    ];
    let changing: Vec<_> = counts.calls.keys().filter(|call| !reading.contains(call)).collect();
    assert!(changing.is_empty(), "{changing:?}");
    assert_eq!(host.inventory(), before);
    assert!(host.qubes.list().unwrap().iter().all(|qube| !qube.info.paused));
}

#[test]
fn a_host_becomes_what_is_declared_and_a_second_apply_does_nothing() {
    let host = site();
    let spec = spec(
        &host,
        &[
            (
                "work",
                json!({ "private": { "size": 16, "target": host.folder.path().join("p/work.img"), "vdev": "xvdb" } }),
            ),
            ("vault", json!({})),
            ("spare", json!({ "autostart": false })),
        ],
    );
    assert_eq!(apply(&host, &spec), ["create vault", "create work"]);
    assert_eq!(names(&host), ["vault", "work"]);
    assert_eq!(std::fs::metadata(host.folder.path().join("p/work.img")).unwrap().len(), 16 << 20);
    let policy = std::fs::read_to_string(host.folder.path().join("policy.d/50-nexus.policy")).unwrap();
    assert!(policy.ends_with("\nq.A * work vault allow\n"), "{policy}");
    assert_eq!(plan(&host, &spec, false).halted, ["spare"]);
    is_as_declared(&host, &spec);
    assert_eq!(apply(&host, &spec), [""; 0]);
}

#[test]
fn memory_vcpus_and_disks_change_while_a_qube_runs() {
    let host = site();
    let (one, two) = (image(&host, "one"), image(&host, "two"));
    let disk = |target: &Value, vdev: &str| json!({ "target": target, "vdev": vdev, "access": "r" });
    let before = spec(&host, &[("work", json!({ "disks": [disk(&one, "xvda"), disk(&two, "xvdc")] }))]);
    apply(&host, &before);
    let domid = host.qubes.find("work").unwrap().info.domid;
    let after = spec(
        &host,
        &[("work", json!({ "memory": 256, "vcpus": 2, "disks": [disk(&two, "xvda"), disk(&one, "xvdd")] }))],
    );
    let planned = plan(&host, &after, false);
    let [Step { work: Work::Change(changes), wave: 1, .. }] = &*planned.steps else { panic!("{planned:?}") };
    let said: Vec<_> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "memory: 128 MiB -> 256 MiB".to_owned(),
            "vcpus: 1 -> 2".to_owned(),
            "disk xvda: detached".to_owned(),
            "disk xvdc: detached".to_owned(),
            format!("disk xvda: attached, {}", two.as_str().unwrap()),
            format!("disk xvdd: attached, {}", one.as_str().unwrap()),
            "what a restart makes of it".to_owned(),
        ]
    );
    assert_eq!(apply(&host, &after), ["change work"]);
    assert_eq!(host.qubes.find("work").unwrap().info.domid, domid, "it was not restarted");
    is_as_declared(&host, &after);
}

#[test]
fn what_cannot_be_changed_is_restarted_and_says_why() {
    let host = site();
    apply(&host, &spec(&host, &[("work", json!({})), ("vault", json!({}))]));
    let vault = host.qubes.find("vault").unwrap().info.domid;
    let after = spec(&host, &[("work", json!({ "max_memory": 512 })), ("vault", json!({}))]);
    let planned = plan(&host, &after, false);
    let [Step { work: Work::Restart { why }, .. }] = &*planned.steps else { panic!("{planned:?}") };
    assert_eq!(why.iter().map(ToString::to_string).collect::<Vec<_>>(), ["max_memory: 256 MiB -> 512 MiB"]);
    assert_eq!(planned.unchanged, ["vault"]);
    host.machine.reset_counts();
    assert_eq!(apply(&host, &after), ["restart work"]);
    assert_eq!(host.machine.counts().of("xc_domain_create"), 1);
    assert_eq!(host.qubes.find("work").unwrap().uuid(), uuid_of("work"));
    assert_eq!(host.qubes.find("vault").unwrap().info.domid, vault, "left alone");
    is_as_declared(&host, &after);
}

#[test]
fn nothing_is_removed_unasked_and_by_prune_only_what_was_declared_once() {
    let host = site();
    apply(&host, &spec(&host, &[("work", json!({})), ("vault", json!({}))]));
    let by_hand = host.qubes.create(&host.config_with("mine", ""), true, &*host.foreign).unwrap();
    host.qubes.unpause(&by_hand).unwrap();
    let after = spec(&host, &[("work", json!({}))]);
    assert_eq!(plan(&host, &after, false).undeclared, ["vault", "mine"]);
    assert_eq!(apply(&host, &after), [""; 0]);
    let (done, failures) = apply_with(&host, &after, true, 1);
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(done, ["remove vault"]);
    assert_eq!(names(&host), ["work", "mine"]);
    is_as_declared(&host, &after);
}

#[test]
fn a_name_that_somebody_else_has_is_a_conflict() {
    let host = site();
    host.qubes.create(&host.config_with("work", ""), true, &*host.foreign).unwrap();
    let found = plan(&host, &spec(&host, &[("work", json!({}))]), true);
    assert_eq!(found.steps, []);
    assert!(found.conflicts[0].to_string().contains("which no `nxl apply' made: rename or destroy it"));
}

#[test]
fn a_qube_is_known_whatever_it_is_called() {
    let host = site();
    let spec = spec(&host, &[("work", json!({}))]);
    apply(&host, &spec);
    host.qubes.rename(&host.qubes.find("work").unwrap(), "play").unwrap();
    let planned = plan(&host, &spec, false);
    let [Step { work: Work::Change(changes), .. }] = &*planned.steps else { panic!("{planned:?}") };
    assert_eq!(changes[0].to_string(), "name: it is called play");
    apply(&host, &spec);
    assert_eq!(names(&host), ["work"]);
    is_as_declared(&host, &spec);
}

#[test]
fn one_that_ended_is_made_again_and_one_that_is_paused_is_let_be() {
    let host = site();
    let spec = spec(&host, &[("work", json!({}))]);
    apply(&host, &spec);
    let qube = host.qubes.find("work").unwrap();
    host.machine.shut_down(qube.info.domid, xen::ShutdownReason::Crash);
    assert_eq!(apply(&host, &spec), ["restart work"]);
    is_as_declared(&host, &spec);
}

#[test]
fn two_do_not_apply_at_once() {
    let host = site();
    let held = host.qubes.lock_apply().unwrap();
    assert!(held.is_some());
    assert!(open(&host).unwrap().0.lock_apply().unwrap().is_none());
    drop(held);
    assert!(open(&host).unwrap().0.lock_apply().unwrap().is_some());
}

#[test]
fn who_has_its_network_from_a_qube_comes_after_it() {
    let host = site();
    let to = |name: &str, number: u8| json!({ "netvm": name, "networks": [{ "backend": name, "bridge": null, "mac": format!("00:16:3e:00:00:{number:02}") }] });
    let spec = spec(
        &host,
        &[
            ("a", to("b", 1)),
            ("b", {
                let mut firewall = to("c", 2);
                firewall["driver_domain"] = json!(true);
                firewall
            }),
            ("c", json!({ "driver_domain": true })),
        ],
    );
    let planned = plan(&host, &spec, false);
    let waves: Vec<_> = planned.steps.iter().map(|step| (step.name.as_str(), step.wave)).collect();
    assert_eq!(waves, [("c", 2), ("b", 3), ("a", 4)]);
    host.machine.fail(Some("xc_domain_create"), 0, xen::ErrorKind::Exhausted);
    let (_, failures) = apply_with(&host, &spec, false, 2);
    let said: Vec<_> = failures.iter().map(|(name, failure)| format!("{name}: {failure}")).collect();
    assert_eq!(said[1..], ["b: its netvm c could not be made", "a: its netvm b could not be made"]);
    assert_eq!(apply(&host, &spec), ["create c", "create b", "create a"]);
    is_as_declared(&host, &spec);
    // Its clients' interfaces lead nowhere when it was made anew: they are attached again.
    host.qubes.destroy(&host.qubes.find("c").unwrap()).unwrap();
    assert_eq!(apply(&host, &spec), ["create c", "change b"]);
    is_as_declared(&host, &spec);
}

#[test]
fn what_fails_with_one_qube_does_not_keep_the_others_from_it() {
    let host = site();
    let spec = spec(&host, &[("vault", json!({})), ("work", json!({}))]);
    host.machine.fail(Some("xc_domain_create"), 0, xen::ErrorKind::Exhausted);
    let (done, failures) = apply_with(&host, &spec, false, 1);
    assert_eq!((done.len(), failures.len()), (2, 1), "{failures:?}");
    assert_eq!(names(&host), ["work"]);
    assert_eq!(apply(&host, &spec), ["create vault"]);
    is_as_declared(&host, &spec);
}

// --- kill -9

/// What a host is like that no apply has to do anything with, without what is drawn by lot or counted.
fn settled(host: &Site) -> (BTreeSet<String>, usize) {
    let qubes = host.qubes.list().unwrap();
    let qubes = qubes.iter().filter(|qube| qube.info.domid != DomId::DOM0);
    let state = qubes.map(|qube| {
        let kept = host.qubes.userdata.read(Kind::Nxl, qube.info.domid, qube.uuid()).unwrap();
        let kept: QubeConfig = serde_json::from_str(&kept.unwrap()).unwrap();
        let (memory, _) = host.qubes.memory(qube).unwrap();
        format!(
            "{} {} {memory:?} {:?} {} {}",
            qube.display_name(),
            qube.uuid(),
            host.qubes.wanted_vcpus(qube).unwrap(),
            kept.max_memory_mib,
            qube.info.paused
        )
    });
    (state.collect(), host.files())
}

#[test]
fn killed_at_fifty_moments_the_next_apply_comes_to_the_same_end() {
    // From two qubes to three: one is changed, one restarted, one made, one removed.
    let before = |host: &Site| spec(host, &[("grow", json!({})), ("anew", json!({})), ("gone", json!({}))]);
    let after = |host: &Site| {
        spec(
            host,
            &[
                ("grow", json!({ "memory": 192, "vcpus": 2 })),
                ("anew", json!({ "max_memory": 512 })),
                ("new", json!({})),
            ],
        )
    };
    // How many calls there are, and what it comes to when nobody is killed.
    let (calls, expected) = {
        let host = site();
        apply(&host, &before(&host));
        host.machine.reset_counts();
        let (done, failures) = apply_with(&host, &after(&host), true, 1);
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(done, ["remove gone", "change grow", "restart anew", "create new"]);
        let calls: u64 = host.machine.counts().calls.values().sum();
        (calls, settled(&host))
    };
    assert!(calls > 100, "{calls}");
    // 60 moments, from the first call to the last.
    let mut killed = 0;
    for number in 0..60u64 {
        let host = site();
        apply(&host, &before(&host));
        host.machine.kill_after(calls * number / 60);
        let spec = after(&host);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // Not the assertions of `apply_with`: killed, it fails in any way it likes.
            let lock = host.qubes.lock_apply().ok().flatten();
            let (Some(lock), Ok(configs)) = (lock, spec.configs()) else { return };
            let how = how(&host, 1);
            let Ok(plan) = Plan::of(&host.qubes, &spec, &configs, &how.policy, true) else { return };
            let hooks = Hooks { open: &|| open(&host), make_room: &|_, _| Ok(()), report: &|_| {} };
            let _ = plan.apply(&lock, &spec, &configs, &how, &hooks);
        }));
        killed += usize::from(result.is_err());
        let host = behind(next_program(host.host), host.kernel);
        let (_, failures) = apply_with(&host, &spec, true, 1);
        assert!(failures.is_empty(), "killed after {}: {failures:?}", calls * number / 60);
        assert_eq!(settled(&host), expected, "killed after {}", calls * number / 60);
        is_as_declared(&host, &spec);
        assert_eq!(host.qubes.leftovers().unwrap(), []);
        assert_eq!(host.qubes.userdata.restarts().unwrap(), []);
    }
    assert!(killed >= 50, "{killed}");
}
