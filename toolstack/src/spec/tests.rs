//! The document, and what a host makes of it: on the mock.

use super::*;
use crate::config::Action;
use crate::create::tests::{Host as MockHost, host as mock_host, next_program};
use crate::device::tests::Kernel;
use crate::generations::{Reason, Variant};
use crate::qubes::{QubeError, Qubes};
use crate::ready::{Awaited, READY, Verdict};
use crate::userdata::Kind;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};
use xen::mock::Backends;
use xen::{DomId, Platform, Transaction};

const FULL: &str = include_str!("../../../nixos/tests/full.json");

fn full() -> Value {
    serde_json::from_str(FULL).unwrap()
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
fn a_call_may_go_to_a_qube_of_another_host() {
    let document = with("/qubes/shop/calls/0/target", json!("bank"));
    assert_eq!(parse(&document).unwrap().document().qubes["shop"].calls[0].target, "bank");
}

#[test]
fn a_fault_has_its_line() {
    let error =
        Spec::parse("qubes.json", FULL.replace("0000:03:00.0", "0000:03:00.9").as_bytes()).unwrap_err();
    let line = 1 + FULL[..FULL.find("\"0000:03:00.0\"").unwrap()].matches('\n').count();
    let error = error.to_string();
    assert!(error.starts_with(&format!("qubes.json:{line}:17: qubes.net.pci[0]: ")), "{error}");
}

#[test]
fn a_qube_is_written_down_as_xl_reads_it() {
    let spec = parse(&full()).unwrap();
    let text = |name: &str| {
        settings(name, &spec.document().qubes[name], spec.document().qubes[name].system.as_deref())
    };
    let net = text("net");
    let mac = full()["qubes"]["net"]["networks"][0]["mac"].as_str().unwrap().to_owned();
    let uuid = uuid_of("net");
    let store = |name: &str, vdev: &str| {
        let qube = &full()["qubes"][name];
        format!("\"script=block-nix,vdev={vdev},access=r,target={}\"", qube["system"].as_str().unwrap())
    };
    let store_of_net = store("net", "xvda");
    assert_eq!(
        net,
        format!(
            "name = \"net\"\nuuid = \"{uuid}\"\ntype = \"pv\"\nmemory = 256\nmaxmem = 256\nvcpus = 1\nmaxvcpus = 1\n\
             driver_domain = 1\ndisk = [ {store_of_net} ]\nvif = [ \"mac={mac},bridge=xenbr0\" ]\npci = [ \"0000:03:00.0\" ]\n"
        )
    );
    let store_of_shop = store("shop", "xvdf");
    assert!(text("shop").contains(&format!(
        "disk = [ {store_of_shop}, \"/var/lib/images/catalogue.img,raw,xvdc,r\", \"/var/lib/images/orders.img,raw,xvdd,w\", \
         \"/var/lib/images/shop.raw,raw,xvde,w\" ]\n"
    )));
    assert!(text("whonix").contains("cmdline = \"root=/dev/xvda1 console=hvc0\"\n"));
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
        ("/version", json!(6), "version 6 of qubes.json; this nxl reads 1 to 5"),
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
        (
            "/qubes/work-1-link",
            spare(json!({})),
            "qubes.work-1-link: ends like the link of a generation: -NUMBER-link",
        ),
        ("/version", json!(1), "qubes.net.ready: came with version 2 of the document"),
        ("/version", json!(1), "and 13 more"),
        ("/version", json!(2), "qubes.shop.networks[0].ip: came with version 4 of the document"),
        ("/version", json!(2), "and 4 more"),
        ("/version", json!(3), "and 3 more"),
        ("/version", json!(4), "dom0: came with version 5 of the document"),
        (
            "/dom0/containers/update/calls/1/target",
            json!("dom0:gone"),
            "dom0.containers.update.calls[1].target: there is no container \"dom0:gone\"",
        ),
        (
            "/dom0/containers/update/calls/1/service",
            json!("q.A"),
            "dom0.containers.update.calls[1].service: dom0:backup has no service \"q.A\"",
        ),
        (
            "/dom0/containers/a b",
            full()["dom0"]["containers"]["backup"].clone(),
            "dom0.containers.\"a b\": \"a b\" is not",
        ),
        ("/dom0/containers/backup/system", json!("/etc"), "dom0.containers.backup.system: \"/etc\" is not"),
        ("/dom0/policy/x", json!(""), "dom0.policy.x: \"x\" is not the name of a policy file"),
        ("/dom0/more", json!(1), "dom0.more: unknown field"),
        ("/remotes/shop", full()["remotes"]["bank"].clone(), "remotes.shop: shop is taken already"),
        (
            "/remotes/a b",
            full()["remotes"]["bank"].clone(),
            "remotes.\"a b\": \"a b\" is not the name of a qube",
        ),
        ("/remotes/bank/relay", json!("gone"), "remotes.bank.relay: there is no qube \"gone\""),
        ("/remotes/bank/relay", json!("bank"), "remotes.bank.relay: there is no qube \"bank\""),
        ("/remotes/bank/service", json!("q.A"), "remotes.bank.service: net has no service \"q.A\""),
        ("/remotes/bank/tags", json!(["a b"]), "remotes.bank.tags: \"a b\" is not a tag"),
        (
            "/qubes/shop/calls/0/target",
            json!("bank:gpg"),
            "qubes.shop.calls[0].target: there is no container \"bank:gpg\"",
        ),
        ("/qubes/shop/ready/timeout", json!(0), "qubes.shop.ready.timeout: 0 is not within 1 to 86400"),
        ("/qubes/shop/private/format", json!("ntfs"), "qubes.shop.private.format: unknown variant `ntfs`"),
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
            "/qubes/shop/networks/0/ip",
            json!("10.20.0"),
            "qubes.shop.networks[0].ip: invalid IPv4 address syntax",
        ),
        (
            "/qubes/shop/networks/0/ip",
            json!("10.21.0.7"),
            "qubes.shop.networks[0].ip: 10.21.0.7 is none that a qube can have: network.prefix is 10.20.0.0/16",
        ),
        (
            "/qubes/shop/networks/0/ip",
            full()["qubes"]["whonix"]["networks"][0]["ip"].clone(),
            "qubes.whonix.networks[0].ip: 10.20.244.70 (by shop) is taken already",
        ),
        (
            "/qubes/net/networks/0/ip",
            json!("10.20.0.9"),
            "qubes.net.networks[0].ip: is for an interface that leads to a qube",
        ),
        ("/network/prefix", json!("10.20.0.1/16"), "network.prefix: \"10.20.0.1/16\" is not a range"),
        (
            "/network/disposables",
            json!("10.20.4.0/22"),
            "network.disposables: 10.20.4.0/22 and network.prefix, 10.20.0.0/16, have addresses in common",
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
        ("/qubes/shop/store", json!("xvdd"), "qubes.shop.disks[1].vdev: xvdd is taken already"),
        ("/qubes/shop/store", json!("sda"), "qubes.shop.store: \"sda\" is not a virtual disk"),
        ("/qubes/whonix/store", json!("xvdf"), "qubes.whonix.store: a qube of class \"whonix\" has none"),
        ("/qubes/shop/disks/0/vdev", json!("sda"), "qubes.shop.disks[0].vdev: \"sda\" is not a virtual disk"),
        (
            "/qubes/shop/disks/1/target",
            json!("/var/lib/whonix/root.img"),
            "qubes.whonix.disks[0].target: /var/lib/whonix/root.img (written by shop) is taken already",
        ),
        ("/qubes/shop/private/size", json!(1), "qubes.shop.private.size: 1 is not within 16"),
        (
            "/qubes/shop/private/target",
            json!("/var/lib/shop.img"),
            "qubes.shop.private.target: \"/var/lib/shop.img\" is not a volume, FOLDER/NAME.raw, nor a block device",
        ),
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

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Whatever a byte is changed to: it is read, or an error says where.
    #[test]
    fn a_changed_document_is_read_or_refused(at in 0usize..9000, byte: u8, cut in 0usize..40) {
        let mut text = full().to_string().into_bytes();
        let at = at % text.len();
        text[at] = byte;
        text.drain(at..(at + cut).min(text.len()));
        match Spec::parse("x", &text) {
            Ok(spec) => proptest::prop_assert!((OLDEST_VERSION..=VERSION).contains(&spec.document().version)),
            Err(error) => proptest::prop_assert!(error.to_string().starts_with("x:")),
        }
    }
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
    let open = || closure("qubes.work.system", folder.path(), None).map_err(|error| error.to_string());
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
    let network = json!({ "prefix": "10.137.0.0/16", "disposables": "10.138.0.0/28" });
    let document = json!({ "version": 4, "host": { "memory": null }, "network": network, "qubes": qubes, "policy": policy });
    parse(&document).unwrap()
}

fn image(host: &Site, name: &str) -> Value {
    let path = host.folder.path().join(name);
    std::fs::write(&path, [0; 4096]).unwrap();
    path.display().to_string().into()
}

fn how(host: &Site, jobs: usize) -> Host {
    let policy = PolicyFolder(host.folder.path().join("policy.d"));
    let generations = Generations::in_folder(host.folder.path().join("generations"));
    Host { policy, generations, jobs, patience: Duration::ZERO }
}

fn wishes(prune: bool) -> Wishes {
    Wishes { prune, start: BTreeSet::new() }
}

/// The configurations of the qubes, with the systems that were chosen for them.
fn configs(host: &Site, spec: &Spec) -> BTreeMap<String, QubeConfig> {
    spec.configs(&spec.choices(&how(host, 1).generations).unwrap()).unwrap()
}

fn plan(host: &Site, spec: &Spec, prune: bool) -> Plan {
    Plan::of(&host.qubes, spec, &configs(host, spec), &how(host, 1).policy, &wishes(prune)).unwrap()
}

fn open(host: &Site) -> Result<(Qubes, std::sync::Arc<dyn xen::ForeignMemory>), xen::Error> {
    let dom0 = host.machine.domain(DomId::DOM0);
    let userdata = crate::UserData::in_folder(host.folder.path().join("userdata"));
    Ok((Qubes::open(&dom0, userdata)?.with_plumbing(host.kernel.clone()), dom0.foreign_memory()?))
}

/// Plans and applies; what was done, in the order in which it began.
fn apply_with(host: &Site, spec: &Spec, prune: bool, jobs: usize) -> (Vec<String>, Vec<(String, Failure)>) {
    let done = Mutex::new(Vec::new());
    let failures = apply_told(host, spec, prune, jobs, &|event| {
        if let Event::Begun(step) = event {
            done.lock().unwrap().push(format!("{} {}", step.work.name(), step.name));
        }
    });
    (done.into_inner().unwrap(), failures)
}

/// The same with somebody who is told.
fn apply_told(
    host: &Site,
    spec: &Spec,
    prune: bool,
    jobs: usize,
    report: &Report<'_>,
) -> Vec<(String, Failure)> {
    let lock = host.qubes.lock_apply().unwrap().expect("nobody else applies");
    let configs = configs(host, spec);
    let how = how(host, jobs);
    let plan = Plan::of(&host.qubes, spec, &configs, &how.policy, &wishes(prune)).unwrap();
    assert_eq!(plan.conflicts, []);
    let hooks = Hooks { open: &|| open(host), make_room: &|_, _| Ok(()), report };
    plan.apply(&lock, spec, &configs, &how, &hooks).unwrap().failures
}

/// Has a qube say that it is up.
fn say_ready(host: &Site, name: &str) {
    let path = format!("{}/{READY}", crate::store::home(host.qubes.find(name).unwrap().info.domid));
    host.qubes.store.write(Transaction::NONE, &path, b"/nix/store/x").unwrap();
}

/// The addresses of a qube's interfaces, by their backends' records.
fn addresses(host: &Site, name: &str) -> Vec<Option<String>> {
    let nics = host.qubes.list_nics(&host.qubes.find(name).unwrap()).unwrap();
    nics.iter().map(|nic| host.qubes.read(&format!("{}/ip", nic.backend_path)).unwrap()).collect()
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
                json!({ "private": { "size": 16, "target": host.folder.path().join("p/work.raw"), "vdev": "xvdb" } }),
            ),
            ("vault", json!({})),
            ("spare", json!({ "autostart": false })),
        ],
    );
    assert_eq!(apply(&host, &spec), ["create vault", "create work"]);
    assert_eq!(names(&host), ["vault", "work"]);
    assert_eq!(std::fs::metadata(host.folder.path().join("p/work.raw")).unwrap().len(), 16 << 20);
    let policy = std::fs::read_to_string(host.folder.path().join("policy.d/50-nexus.policy")).unwrap();
    assert!(policy.ends_with("\nq.A * work vault allow\n"), "{policy}");
    assert_eq!(plan(&host, &spec, false).halted, ["spare"]);
    is_as_declared(&host, &spec);
    assert_eq!(apply(&host, &spec), [""; 0]);
}

#[test]
fn a_qube_that_does_not_start_by_itself_is_started_when_that_is_asked_for() {
    let host = site();
    let spec = spec(&host, &[("spare", json!({ "autostart": false }))]);
    let asked = Wishes { start: BTreeSet::from(["spare".to_owned()]), ..Wishes::default() };
    let configs = spec.configs(&BTreeMap::new()).unwrap();
    let planned = Plan::of(&host.qubes, &spec, &configs, &how(&host, 1).policy, &asked).unwrap();
    assert_eq!((planned.steps[0].work.name(), planned.halted.len()), ("create", 0));
    // Once it runs, it is changed like any other.
    host.qubes.create(&configs["spare"], true, &*host.foreign).unwrap();
    assert_eq!(apply(&host, &spec), ["resume spare"]);
    is_as_declared(&host, &spec);
}

#[test]
fn one_that_never_ran_runs_when_it_is_changed() {
    let host = site();
    let before = spec(&host, &[("work", json!({}))]);
    host.qubes.create(&before.config("work").unwrap(), true, &*host.foreign).unwrap();
    let after = spec(&host, &[("work", json!({ "memory": 192 }))]);
    assert_eq!(apply(&host, &after), ["change work"]);
    is_as_declared(&host, &after);
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
fn a_private_volume_is_one_of_the_volumes_and_grows() {
    let host = site();
    let folder = host.folder.path().join("volumes");
    let declared = |size: u64| {
        let private = json!({ "size": size, "target": folder.join("work.raw"), "vdev": "xvdb" });
        spec(&host, &[("work", json!({ "private": private }))])
    };
    apply(&host, &declared(16));
    let volumes = crate::volume::Volumes::new(&folder).with_plumbing(host.kernel.clone());
    let volume = volumes.get(&"work".parse().unwrap()).unwrap();
    assert_eq!((volume.image.size, volume.loops.len()), (16 << 20, 1));
    let domid = host.qubes.find("work").unwrap().info.domid;
    let Work::Change(changes) = plan(&host, &declared(24), false).steps[0].work.clone() else { panic!() };
    assert_eq!(
        changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["private volume: 16 MiB -> 24 MiB"]
    );
    assert_eq!(apply(&host, &declared(24)), ["change work"]);
    assert_eq!(volumes.size(&"work".parse().unwrap()).unwrap(), Some(24 << 20));
    assert_eq!(host.qubes.find("work").unwrap().info.domid, domid, "it was not restarted");
    is_as_declared(&host, &declared(24));
    let found = plan(&host, &declared(16), false);
    assert_eq!(
        found.conflicts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["qubes.work.private.size: 16 MiB are declared, and the volume has 24 MiB: it does not get smaller"]
    );
    // What keeps it does not run: it grows when it is made.
    host.qubes.destroy(&host.qubes.find("work").unwrap()).unwrap();
    assert_eq!(apply(&host, &declared(32)), ["create work"]);
    assert_eq!(volumes.size(&"work".parse().unwrap()).unwrap(), Some(32 << 20));
    is_as_declared(&host, &declared(32));
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
fn memory_that_the_host_has_not_got_is_a_conflict() {
    let host = site();
    let large = json!({ "memory": 5000, "max_memory": 5000 });
    let found = plan(&host, &spec(&host, &[("work", large.clone()), ("vault", large)]), false);
    assert_eq!(found.conflicts, [Conflict::Memory { wanted_mib: 10_000, host_mib: 8192 }]);
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

/// What takes its network from `net` at this address, for [`spec`].
fn behind_net(number: u8) -> Value {
    let mac = format!("00:16:3e:00:00:{number:02}");
    let ip = format!("10.137.0.{number}");
    json!({ "netvm": "net", "networks": [{ "backend": "net", "bridge": null, "ip": ip, "mac": mac }] })
}

#[test]
fn a_client_is_made_when_its_netvm_says_that_it_is_up() {
    let host = site();
    let net = json!({ "driver_domain": true, "ready": { "timeout": 60 } });
    let spec = spec(&host, &[("net", net), ("work", behind_net(7))]);
    let waited = Mutex::new(Vec::new());
    let failures = apply_told(&host, &spec, false, 2, &|event| {
        if let Event::Waits(step, netvm) = event {
            waited.lock().unwrap().push(format!("{} for {netvm}", step.name));
            assert_eq!(names(&host), ["net"], "it was made before its netvm was up");
            say_ready(&host, netvm);
        }
    });
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(*waited.lock().unwrap(), ["work for net"]);
    is_as_declared(&host, &spec);
    assert_eq!(addresses(&host, "work"), [Some("10.137.0.7".to_owned())]);
}

#[test]
fn a_client_of_a_netvm_that_does_not_come_up_is_left_to_the_next_apply() {
    let host = site();
    let net = json!({ "driver_domain": true, "ready": { "timeout": 1 } });
    let spec = spec(&host, &[("net", net), ("work", behind_net(7))]);
    let (_, failures) = apply_with(&host, &spec, false, 2);
    let said: Vec<_> = failures.iter().map(|(name, failure)| format!("{name}: {failure}")).collect();
    assert_eq!(said, ["work: its netvm net did not report ready within 1 s"]);
    assert_eq!(names(&host), ["net"]);
    say_ready(&host, "net");
    assert_eq!(apply(&host, &spec), ["create work"]);
    is_as_declared(&host, &spec);
}

#[test]
fn another_address_is_another_interface() {
    let host = site();
    let net = || json!({ "driver_domain": true });
    let before = spec(&host, &[("net", net()), ("work", behind_net(7))]);
    assert_eq!(apply(&host, &before), ["create net", "create work"]);
    let mut moved = behind_net(7);
    moved["networks"][0]["ip"] = json!("10.137.0.8");
    let after = spec(&host, &[("net", net()), ("work", moved)]);
    let [Step { name, work: Work::Change(changes), .. }] = &*plan(&host, &after, false).steps else {
        panic!("work alone is changed")
    };
    let said: Vec<_> = changes.iter().map(ToString::to_string).collect();
    assert_eq!(name, "work");
    assert_eq!(
        said,
        ["interface 0: detached", "interface 0: attached, to net", "what a restart makes of it"]
    );
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
fn who_has_patience_applies_after_the_other() {
    let host = site();
    let held = host.qubes.lock_apply().unwrap().unwrap();
    let other = open(&host).unwrap().0;
    let (short, long) = (Duration::from_millis(120), Duration::from_secs(60));
    let begun = Instant::now();
    assert!(other.lock_apply_within(short).unwrap().is_none());
    assert!(begun.elapsed() >= short);
    let waiting = thread::spawn(move || other.lock_apply_within(long).unwrap().is_some());
    thread::sleep(short);
    assert!(!waiting.is_finished());
    drop(held);
    assert!(waiting.join().unwrap());
    assert!(begun.elapsed() < long, "it got the lock when the time was over");
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

// --- generations

/// A document with a qube `work` that runs the NixOS of that name, which the mock host has.
fn of_system(host: &Site, system: &str) -> Spec {
    let toplevel = host.folder.path().join(system);
    for folder in [toplevel.clone(), toplevel.join("specialisation/rescue")] {
        if !folder.exists() {
            std::fs::create_dir_all(&folder).unwrap();
            for file in ["kernel", "initrd"] {
                std::os::unix::fs::symlink(host.folder.path().join(file), folder.join(file)).unwrap();
            }
            for (file, text) in [("init", "x"), ("kernel-params", "quiet"), ("nixos-version", "25.11")] {
                std::fs::write(folder.join(file), text).unwrap();
            }
        }
    }
    let mut spec = spec(host, &[("work", json!({}))]);
    let work = spec.document.qubes.get_mut("work").unwrap();
    // Not in /nix/store, as a document's must be.
    (work.class, work.system, work.boot) = (Class::Nixos, Some(toplevel), None);
    work.ready = Some(Ready { timeout: 1 });
    spec
}

/// The system that a domain was made from, by its command line.
fn booted(host: &Site) -> String {
    let qube = host.qubes.find("work").unwrap();
    let kept = host.qubes.userdata.read(Kind::Nxl, qube.info.domid, qube.uuid()).unwrap().unwrap();
    let kept: QubeConfig = serde_json::from_str(&kept).unwrap();
    let init = kept.cmdline.split("init=").nth(1).unwrap().strip_suffix("/init").unwrap().to_owned();
    init.strip_prefix(&format!("{}/", host.folder.path().display())).unwrap().to_owned()
}

fn report_ready(host: &Site) {
    let path = format!("{}/{READY}", crate::store::home(host.qubes.find("work").unwrap().info.domid));
    host.qubes.store.write(Transaction::NONE, &path, b"/nix/store/x").unwrap();
}

/// What `nxl apply` does after it applied: what is on trial is waited for, and if it does not come up, what was before is
/// booted. Whether it came up.
fn judge(host: &Site, spec: &Spec) -> Option<bool> {
    let generations = how(host, 1).generations;
    generations.record("work").unwrap().trial.as_ref()?;
    let (name, limit) = ("work".to_owned(), Duration::from_millis(60));
    let awaited = Awaited { name, uuid: uuid_of("work"), limit };
    let verdicts = host.qubes.await_ready(vec![awaited], &mut |_, _| {}).unwrap();
    if let Verdict::Ready(_) = verdicts[0].1 {
        generations.confirm("work").unwrap();
        return Some(true);
    }
    let system = spec.document().qubes["work"].system.clone().unwrap();
    generations.fall_back("work", &system, &verdicts[0].1.to_string()).unwrap().unwrap();
    assert_eq!(apply(host, spec), ["restart work"]);
    Some(false)
}

#[test]
fn each_system_that_a_qube_gets_is_a_generation() {
    let host = site();
    let generations = how(&host, 1).generations;
    assert_eq!(apply(&host, &of_system(&host, "a")), ["create work"]);
    assert_eq!(judge(&host, &of_system(&host, "a")), None, "there is nothing to fall back to");
    is_as_declared(&host, &of_system(&host, "a"));
    let planned = plan(&host, &of_system(&host, "b"), false);
    let Work::Restart { why } = &planned.steps[0].work else { panic!("{planned:?}") };
    assert_eq!((why.len(), why[0].attribute), (1, "command line"));
    assert_eq!(apply(&host, &of_system(&host, "b")), ["restart work"]);
    report_ready(&host);
    assert_eq!(judge(&host, &of_system(&host, "b")), Some(true));
    assert_eq!(judge(&host, &of_system(&host, "b")), None);
    let numbers: Vec<_> = generations.list("work").unwrap().iter().map(|known| known.number).collect();
    assert_eq!((numbers, generations.default_of("work").unwrap()), (vec![1, 2], Some(2)));
    is_as_declared(&host, &of_system(&host, "b"));
    // Those that were made before there were generations have one from the next apply on.
    std::fs::remove_dir_all(host.folder.path().join("generations")).unwrap();
    assert_eq!(apply(&host, &of_system(&host, "b")), [""; 0]);
    assert_eq!(generations.list("work").unwrap()[0].system, host.folder.path().join("b"));
}

#[test]
fn a_generation_that_does_not_come_up_is_taken_back_and_not_tried_again() {
    let host = site();
    let generations = how(&host, 1).generations;
    for system in ["a", "b"] {
        apply(&host, &of_system(&host, system));
    }
    assert_eq!(judge(&host, &of_system(&host, "b")), Some(false));
    assert_eq!(booted(&host), "a");
    assert_eq!(generations.record("work").unwrap().failed[&2], "did not report ready within 0.06 s");
    // What is declared is as it was: nothing is done, however often it is applied.
    is_as_declared(&host, &of_system(&host, "b"));
    assert_eq!(apply(&host, &of_system(&host, "b")), [""; 0]);
    assert_eq!(judge(&host, &of_system(&host, "b")), None);
    // Something else is declared.
    assert_eq!(apply(&host, &of_system(&host, "c")), ["restart work"]);
    report_ready(&host);
    assert_eq!(judge(&host, &of_system(&host, "c")), Some(true));
    assert_eq!(booted(&host), "c");
}

#[test]
fn another_generation_is_run_for_as_long_as_the_same_is_declared() {
    let host = site();
    let generations = how(&host, 1).generations;
    let variant = |generation, special: Option<&str>| Variant {
        generation,
        specialisation: special.map(str::to_owned),
    };
    let b = of_system(&host, "b");
    let declared = host.folder.path().join("b");
    apply(&host, &of_system(&host, "a"));
    apply(&host, &b);
    report_ready(&host);
    judge(&host, &b);
    generations.hold("work", &declared, variant(1, None), Reason::RolledBack).unwrap();
    assert_eq!(apply(&host, &b), ["restart work"]);
    assert_eq!((booted(&host).as_str(), judge(&host, &b)), ("a", None));
    is_as_declared(&host, &b);
    generations.hold("work", &declared, variant(2, Some("rescue")), Reason::Switched).unwrap();
    assert_eq!(apply(&host, &b), ["restart work"]);
    assert_eq!(booted(&host), "b/specialisation/rescue");
    assert_eq!(judge(&host, &b), Some(false), "it says nothing, and what was before is booted");
    assert_eq!(booted(&host), "a");
    generations.release("work").unwrap();
    assert_eq!(apply(&host, &b), ["restart work"]);
    assert_eq!(booted(&host), "b");
    // A specialisation that there is not is no reason to end the qube.
    generations.hold("work", &declared, variant(2, Some("gone")), Reason::Switched).unwrap();
    let error = b.configs(&b.choices(&generations).unwrap()).unwrap_err().to_string();
    assert!(error.contains("no specialisation `gone'"), "{error}");
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

/// An apply on a machine that is to kill it: whether it did.
fn ends_in_the_middle(host: &Site, spec: &Spec, jobs: usize) -> bool {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // Not the assertions of `apply_with`: killed, it fails in any way it likes.
        let lock = host.qubes.lock_apply().ok().flatten();
        let (Some(lock), configs) = (lock, configs(host, spec)) else { return };
        let how = how(host, jobs);
        let Ok(plan) = Plan::of(&host.qubes, spec, &configs, &how.policy, &wishes(true)) else { return };
        let hooks = Hooks { open: &|| open(host), make_room: &|_, _| Ok(()), report: &|_| {} };
        let _ = plan.apply(&lock, spec, &configs, &how, &hooks);
    }));
    result.is_err()
}

#[test]
fn killed_while_three_threads_make_qubes_the_next_apply_makes_the_rest() {
    // Nothing is ended here: on the mock, who is made next gets the id of who just ended, which on Xen takes 32,000 others.
    let declared = |host: &Site| {
        spec(
            host,
            &[("a", json!({})), ("b", json!({})), ("c", json!({})), ("d", json!({})), ("e", json!({}))],
        )
    };
    let (calls, expected) = {
        let host = site();
        host.machine.reset_counts();
        let (_, failures) = apply_with(&host, &declared(&host), true, 3);
        assert!(failures.is_empty(), "{failures:?}");
        (host.machine.counts().calls.values().sum::<u64>(), settled(&host))
    };
    // Transactions that threads get in one another's way with are repeated: how many calls there are varies.
    let mut killed = 0;
    for number in 0..30u64 {
        let host = site();
        let spec = declared(&host);
        host.machine.kill_after(calls * number / 30);
        killed += usize::from(ends_in_the_middle(&host, &spec, 3));
        let host = behind(next_program(host.host), host.kernel);
        let (_, failures) = apply_with(&host, &spec, true, 3);
        assert!(failures.is_empty(), "killed after {}: {failures:?}", calls * number / 30);
        assert_eq!(settled(&host), expected, "killed after {}", calls * number / 30);
        is_as_declared(&host, &spec);
        assert_eq!(host.qubes.leftovers().unwrap(), []);
    }
    assert!(killed >= 20, "{killed}");
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
        killed += usize::from(ends_in_the_middle(&host, &spec, 1));
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

#[test]
fn killed_at_fifty_moments_of_an_upgrade_that_fails_the_qube_runs_what_it_ran() {
    let upgraded = |host: &Site| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let spec = of_system(host, "b");
            apply(host, &spec);
            judge(host, &spec);
        }));
        result.is_err()
    };
    let calls = {
        let host = site();
        apply(&host, &of_system(&host, "a"));
        host.machine.reset_counts();
        assert!(!upgraded(&host));
        assert_eq!(booted(&host), "a");
        host.machine.counts().calls.values().sum::<u64>()
    };
    let mut killed = 0;
    for number in 0..60u64 {
        let host = site();
        apply(&host, &of_system(&host, "a"));
        // How often it is looked whether it is up varies: not up to the last call.
        host.machine.kill_after(calls * number / 62);
        killed += usize::from(upgraded(&host));
        let host = behind(next_program(host.host), host.kernel);
        let spec = of_system(&host, "b");
        apply(&host, &spec);
        judge(&host, &spec);
        let when = format!("killed after {}", calls * number / 62);
        assert_eq!(booted(&host), "a", "{when}");
        let generations = how(&host, 1).generations;
        assert_eq!(generations.default_of("work").unwrap(), Some(1), "{when}");
        assert!(generations.record("work").unwrap().failed.contains_key(&2), "{when}");
        is_as_declared(&host, &spec);
        assert_eq!(host.qubes.leftovers().unwrap(), []);
        assert_eq!(host.qubes.userdata.restarts().unwrap(), []);
    }
    assert!(killed >= 50, "{killed}");
}

#[test]
fn of_command_lines_the_words_are_shown_that_differ() {
    let said = |attribute, running: &str, declared: &str| {
        Difference { attribute, running: running.to_owned(), declared: declared.to_owned() }.to_string()
    };
    assert_eq!(
        said(
            "command line",
            "console=hvc0 quiet init=/nix/store/a/init",
            "console=hvc0 init=/nix/store/b/init"
        ),
        "command line: quiet init=/nix/store/a/init -> init=/nix/store/b/init"
    );
    assert_eq!(said("command line", "quiet", "quiet panic=-1"), "command line: nothing -> panic=-1");
    assert_eq!(said("command line", "a b", "b a"), "command line: a b -> b a");
    assert_eq!(said("max_memory", "512 MiB", "768 MiB"), "max_memory: 512 MiB -> 768 MiB");
}

// --- disposable qubes

/// A document with a template `office` of disposables, whose qubes have a volume of 16 MiB.
fn with_template(host: &Site, more: Value) -> Spec {
    let mut office = json!({
        "disposable_template": true,
        "autostart": false,
        "private": { "size": 16, "target": host.folder.path().join("volumes/office.raw"), "vdev": "xvdb" },
        "disks": [{ "target": image(host, "shared"), "vdev": "xvdc", "access": "r" }],
        "networks": [{ "backend": null, "bridge": "xenbr0", "mac": "00:16:3e:00:00:01" }],
    });
    for (key, value) in more.as_object().unwrap() {
        office[key] = value.clone();
    }
    spec(host, &[("office", office), ("work", json!({}))])
}

fn disposable(host: &Site, spec: &Spec) -> Disposable {
    spec.disposable("office", None).unwrap().in_folder(images(host))
}

fn images(host: &Site) -> PathBuf {
    host.folder.path().join("disposables")
}

fn files_in(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[test]
fn a_disposable_qube_is_what_its_template_is_with_a_name_and_a_volume_of_its_own() {
    let host = site();
    let spec = with_template(&host, json!({}));
    let before = (host.inventory(), host.files());
    let made = disposable(&host, &spec);
    let qubes: Vec<_> = ["disp1", "disp2"]
        .into_iter()
        .map(|name| host.qubes.start_disposable(&made, name, &*host.foreign).unwrap())
        .collect();
    assert_eq!(names(&host), ["disp1", "disp2"]);
    assert_ne!(qubes[0].uuid(), qubes[1].uuid());
    let kept: Vec<QubeConfig> = qubes
        .iter()
        .map(|qube| {
            assert!(is_disposable(qube.uuid()) && !is_declared(qube.uuid()));
            assert!(!host.qubes.get(qube.info.domid).unwrap().info.paused);
            let kept = host.qubes.userdata.read(Kind::Nxl, qube.info.domid, qube.uuid()).unwrap();
            serde_json::from_str(&kept.unwrap()).unwrap()
        })
        .collect();
    let template = spec.config("office").unwrap();
    for config in &kept {
        assert_eq!((&config.kernel, &config.cmdline), (&template.kernel, &template.cmdline));
        assert_eq!((config.memory_mib, config.max_vcpus), (template.memory_mib, template.max_vcpus));
        assert_eq!(config.nics[0].bridge, template.nics[0].bridge);
        assert_ne!(config.nics[0].mac, template.nics[0].mac);
        // Whatever ends it, it is not made again.
        assert_eq!((config.actions.reboot, config.actions.crash), (Action::Destroy, Action::Destroy));
        let vdevs: Vec<_> = config.disks.iter().map(|disk| (disk.vdev.as_str(), disk.writable)).collect();
        assert_eq!(vdevs, [("xvdc", false), ("xvdb", true)]);
    }
    assert_ne!(kept[0].nics[0].mac, kept[1].nics[0].mac);
    assert_ne!(kept[0].disks[1].target, kept[1].disks[1].target);
    // Their volumes' files have no names any more, and that of the template was not made.
    assert_eq!((files_in(&images(&host)), files_in(&host.folder.path().join("volumes"))), (0, 0));
    assert_eq!(host.kernel.loop_count(), 4);

    // An apply leaves them alone, also one that prunes.
    assert_eq!(plan(&host, &spec, true).undeclared, ["disp1", "disp2"]);
    host.qubes.destroy_disposable("disp1").unwrap();
    let error = host.qubes.destroy_disposable("disp1").unwrap_err();
    assert!(matches!(error, DisposableError::Qube(QubeError::NotFound { .. })), "{error}");
    host.qubes.destroy_disposable("disp2").unwrap();
    assert_eq!((host.inventory(), host.files(), host.kernel.loop_count()), (before.0, before.1, 0));

    apply(&host, &spec);
    let error = host.qubes.destroy_disposable("work").unwrap_err().to_string();
    assert!(error.starts_with("work is no disposable qube"), "{error}");
    let error = host.qubes.start_disposable(&made, "work", &*host.foreign).unwrap_err().to_string();
    assert!(error.contains("the name work is taken"), "{error}");
    assert_eq!((files_in(&images(&host)), host.kernel.loop_count()), (0, 0), "nothing is left of it");
}

/// A template of disposables behind a netvm that runs.
fn template_behind_net(host: &Site) -> (Spec, Disposable) {
    let mut template = behind_net(7);
    template["disposable_template"] = json!(true);
    template["autostart"] = json!(false);
    let spec = spec(host, &[("net", json!({ "driver_domain": true })), ("office", template)]);
    assert_eq!(apply(host, &spec), ["create net"]);
    let made = disposable(host, &spec);
    (spec, made)
}

#[test]
fn disposable_qubes_that_are_made_at_the_same_moment_have_addresses_of_their_own() {
    let host = site();
    let (_, made) = template_behind_net(&host);
    let (qubes, foreign) = (&host.qubes, &*host.foreign);
    // As many as there are addresses but four: nobody is told that there are none.
    let names: Vec<String> = (0..10).map(|number| format!("disp{number}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(|| qubes.start_disposable(&made, name, foreign).unwrap());
        }
    });
    let given: BTreeSet<_> = names.iter().map(|name| addresses(&host, name).remove(0).unwrap()).collect();
    assert_eq!(given.len(), names.len(), "{given:?}");
    let claims = host.qubes.userdata.scratch().read_dir().unwrap();
    let claims =
        claims.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("address-"));
    assert_eq!(claims.count(), 0);
}

#[test]
fn disposable_qubes_behind_a_netvm_have_addresses_of_their_own() {
    let host = site();
    let (spec, made) = template_behind_net(&host);
    let prefix = spec.document().network.as_ref().unwrap().disposables;
    let mut given = BTreeSet::new();
    for number in 0..14 {
        let name = format!("disp{number}");
        if number % 2 == 0 {
            host.qubes.start_disposable(&made, &name, &*host.foreign).unwrap();
        } else {
            // One that was built ahead is what would be made now.
            assert_eq!(host.qubes.fill_disposables(&made, 1, &*host.foreign).unwrap().len(), 1);
            assert!(host.qubes.take_disposable(&made, &name).unwrap().is_some());
        }
        let address = addresses(&host, &name).remove(0).unwrap();
        assert!(prefix.has(address.parse().unwrap()), "{address}");
        assert!(given.insert(address), "two of {given:?}");
    }
    let error = host.qubes.start_disposable(&made, "more", &*host.foreign).unwrap_err().to_string();
    assert_eq!(error, "no address of 10.138.0.0/28 is free: network.disposables is what they come from");
}

#[test]
fn only_a_template_has_disposable_qubes_and_none_has_what_is_one_qubes_alone() {
    let host = site();
    for (more, says) in [
        (json!({ "disposable_template": false }), "qubes.office: office is no template of disposables"),
        (
            json!({ "disks": [{ "target": image(&host, "orders"), "vdev": "xvdd", "access": "w" }] }),
            "qubes.office.disks[0]: can be one qube's alone",
        ),
        (json!({ "type": "pv", "pci": ["0000:03:00.0"] }), "qubes.office.pci: can be one qube's alone"),
    ] {
        let error = with_template(&host, more).disposable("office", None).unwrap_err().to_string();
        assert!(error.starts_with(says), "{error}");
    }
    let error = with_template(&host, json!({})).disposable("gone", None).unwrap_err().to_string();
    assert_eq!(error, "qubes.gone: there is no qube \"gone\"");
}

#[test]
fn a_disposable_qube_runs_the_generation_that_its_template_would() {
    let host = site();
    let generations = how(&host, 1).generations;
    let mut spec = of_system(&host, "one");
    spec.document.qubes.get_mut("work").unwrap().disposable_template = true;
    apply(&host, &spec);
    let line = |spec: &Spec| {
        let choices = spec.choices(&generations).unwrap();
        spec.disposable("work", choices.get("work")).unwrap().config.cmdline
    };
    assert!(line(&spec).contains("/one/init"), "{}", line(&spec));
    let mut next = of_system(&host, "two");
    next.document.qubes.get_mut("work").unwrap().disposable_template = true;
    apply(&host, &next);
    assert!(line(&next).contains("/two/init"), "{}", line(&next));
    let declared = next.document.qubes["work"].system.clone().unwrap();
    let first = Variant { generation: 1, specialisation: None };
    generations.hold("work", &declared, first, Reason::RolledBack).unwrap();
    assert!(line(&next).contains("/one/init"), "{}", line(&next));
}

#[test]
fn one_that_was_built_ahead_is_taken_if_it_is_what_would_be_made() {
    let host = site();
    let (first, now) = (with_template(&host, json!({})), with_template(&host, json!({ "memory": 160 })));
    let (first, now) = (disposable(&host, &first), disposable(&host, &now));
    let before = (host.inventory(), host.files());
    assert!(host.qubes.take_disposable(&first, "disp1").unwrap().is_none());
    assert_eq!(host.qubes.fill_disposables(&first, 2, &*host.foreign).unwrap().len(), 2);
    assert_eq!(host.qubes.fill_disposables(&first, 2, &*host.foreign).unwrap().len(), 0);
    assert_eq!((files_in(&images(&host)), host.kernel.loop_count()), (0, 4));
    let taken = host.qubes.take_disposable(&first, "disp1").unwrap().unwrap();
    assert_eq!(
        (taken.display_name(), taken.info.paused, is_disposable(taken.uuid())),
        ("disp1", false, true)
    );
    assert_eq!(
        names(&host),
        ["office.warm-2", "disp1"].map(str::to_owned).into_iter().rev().collect::<Vec<_>>()
    );
    // What was declared since is not what waits: neither of other memory, nor of another volume.
    assert!(host.qubes.take_disposable(&now, "disp2").unwrap().is_none());
    let larger =
        json!({ "size": 24, "target": host.folder.path().join("volumes/office.raw"), "vdev": "xvdb" });
    let larger = disposable(&host, &with_template(&host, json!({ "private": larger })));
    assert!(host.qubes.take_disposable(&larger, "disp2").unwrap().is_none());
    // A shell that somebody built by hand is another matter, and stays.
    let by_hand = host.config_with("any", "");
    host.qubes.fill_pool("office", &by_hand, 2, &*host.foreign).unwrap();
    assert_eq!(host.qubes.fill_disposables(&now, 1, &*host.foreign).unwrap().len(), 1);
    assert!(host.qubes.take_disposable(&now, "disp2").unwrap().is_some());
    assert!(host.qubes.take_disposable(&now, "disp3").unwrap().is_none());
    assert_eq!(host.qubes.drain_pool("office").unwrap(), 1);
    for name in ["disp1", "disp2"] {
        host.qubes.destroy_disposable(name).unwrap();
    }
    assert_eq!((host.inventory(), host.files(), host.kernel.loop_count()), (before.0, before.1, 0));
}

#[test]
fn volumes_are_told_apart_by_size_and_file_system() {
    let host = site();
    let kinds = [Value::Null, json!("ext4"), json!("xfs"), json!("btrfs")].map(|format| {
        let target = host.folder.path().join("volumes/office.raw");
        let private = json!({ "size": 16, "target": target, "vdev": "xvdb", "format": format });
        let kind = disposable(&host, &with_template(&host, json!({ "private": private }))).kind().unwrap();
        // With a UUID before it, it is a volume's name.
        let name = format!("{}{kind}", Uuid::new_v4());
        assert!(name.parse::<crate::volume::Name>().is_ok(), "{name}");
        kind
    });
    assert_eq!(kinds, [".16-plain", ".16-ext4", ".16-xfs", ".16-btrfs"]);
}

#[test]
fn what_one_that_was_killed_has_left_the_next_takes_away() {
    let host = site();
    let made = disposable(&host, &with_template(&host, json!({})));
    std::fs::create_dir(images(&host)).unwrap();
    std::fs::set_permissions(images(&host), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let left = |uuid: Uuid| {
        let path = images(&host).join(format!("{uuid}.16-plain.raw"));
        std::fs::write(&path, [0; 4096]).unwrap();
        path
    };
    let (dead, alive) = (left(Uuid::new_v4()), Uuid::new_v4());
    let living = left(alive);
    let lock = host.qubes.userdata.lock(&format!("disposable-{alive}"), true).unwrap();
    host.qubes.start_disposable(&made, "disp1", &*host.foreign).unwrap();
    assert!(!dead.exists() && living.exists(), "that of somebody who is at work stays");
    drop(lock);
    host.qubes.start_disposable(&made, "disp2", &*host.foreign).unwrap();
    assert_eq!(files_in(&images(&host)), 0);
}
