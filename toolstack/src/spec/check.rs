//! What a document says wrong although it has the right shape. dom0 believes no generator: what the evaluation
//! refuses is refused here again, and so is what no evaluation yields.

use super::addresses::Prefix;
use super::document::{Access, Call, Class, Container, Document, Dom0, Qube, Remote};
use super::places::member;
use super::volume;
use crate::config::is_generation;
use crate::config::{DiskConfig, GuestType, MEMORY_LIMIT_MIB, Mac, PciConfig, PciOptions, VCPUS_LIMIT};
use crate::store_path;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;

/// Bytes of a qube's name: with a container's and a colon they fill the 63 that qrexec's messages have.
const NAME_LIMIT: usize = 31;
/// Bytes of a service's name and of an argument (nexus::name).
const SERVICE_LIMIT: usize = 63;
/// MiB below which no kernel of ours starts.
const LEAST_MEMORY_MIB: u64 = 32;
/// Seconds that a qube may take to say that it is up: a day.
const READY_LIMIT: u64 = 86_400;
/// What names a qube.
const QUBE: &str = "the name of a qube: a letter, then at most 30 letters, digits, '_' and '-'";
/// Names that mean something else to the policy or to Xen.
const RESERVED: [&str; 4] = ["dom0", "Domain-0", "default", "none"];

/// What is wrong with an attribute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It does not have the shape that it should; serde's words.
    #[error("{0}")]
    Shape(String),
    /// libxl gives PVH guests no PCI devices, and nor does nxl.
    #[error("only a qube of type \"pv\" gets PCI devices")]
    PciOfPvh,
    /// It is there twice.
    #[error("is there twice")]
    Twice,
    /// Something that names a thing cannot be a name.
    #[error("{given:?} is not {expected}")]
    Word {
        /// What it is.
        given: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A number that is too small or too large.
    #[error("{given} is not within {least} to {most}")]
    Range {
        /// What it is.
        given: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// A number that must not be below another.
    #[error("{given} is less than {other}, which is {least}")]
    Below {
        /// What it is.
        given: u64,
        /// The other's attribute.
        other: &'static str,
        /// The other.
        least: u64,
    },
    /// What the class must have is not there.
    #[error("is missing: a qube of class \"{0}\" boots from it")]
    Missing(&'static str),
    /// What the class cannot have is there.
    #[error("a qube of class \"{0}\" has none")]
    NotOfClass(&'static str),
    /// More memory than there is.
    #[error("{wanted} MiB cannot be met: there are {there} MiB for qubes")]
    Memory {
        /// What is wanted.
        wanted: u64,
        /// What there is.
        there: u64,
    },
    /// A name that nobody has.
    #[error("there is no {kind} {name:?}")]
    NotThere {
        /// qube, container, service or netvm.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A service that its target does not offer.
    #[error("{target} has no service {service:?}")]
    NotOffered {
        /// The target.
        target: String,
        /// The service.
        service: String,
    },
    /// A qube of which no disposables are made.
    #[error("{0} is no template of disposables")]
    NoTemplate(String),
    /// A disposable qube cannot have what one qube alone can have.
    #[error("can be one qube's alone, and so no disposable one's")]
    OneQubes,
    /// A circle of netvms.
    #[error("{} is a cycle", .0.join(" -> "))]
    Cycle(Vec<String>),
    /// It is of a later version than the document says to have.
    #[error("came with version {0} of the document, and this one says that it is older")]
    Later(u64),
    /// Ends as the links of another qube's generations do.
    #[error("ends like the link of a generation: -NUMBER-link is no end of a qube's name")]
    GenerationLink,
    /// Two of something of which there can be one.
    #[error("{0} is taken already")]
    Taken(String),
    /// An address of an interface on a bridge.
    #[error("is for an interface that leads to a qube")]
    OnABridge,
    /// An address that nobody behind a netvm can have.
    #[error("{ip} is none that a qube can have: network.prefix is {prefix}")]
    Outside {
        /// What it is.
        ip: Ipv4Addr,
        /// What it should be of.
        prefix: Prefix,
    },
    /// Two ranges that must not have addresses in common.
    #[error("{0} and network.prefix, {1}, have addresses in common")]
    Overlap(Prefix, Prefix),
    /// An interface leads to a qube that has no backends.
    #[error("is no driver domain: its `driver_domain' is false")]
    NotDriverDomain,
}

/// Finds what is wrong: attributes and faults.
pub(super) fn faults(document: &Document) -> Vec<(String, Fault)> {
    let mut check = Check {
        document,
        found: Vec::new(),
        macs: BTreeMap::new(),
        ips: BTreeMap::new(),
        written: BTreeMap::new(),
    };
    check.document();
    check.found
}

struct Check<'a> {
    document: &'a Document,
    found: Vec<(String, Fault)>,
    /// By address, whose it is.
    macs: BTreeMap<&'a str, &'a str>,
    /// By address behind netvms, whose it is.
    ips: BTreeMap<Ipv4Addr, &'a str>,
    /// By image, who writes it.
    written: BTreeMap<&'a str, &'a str>,
}

pub(super) fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        && text.len() <= NAME_LIMIT
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && text.len() <= SERVICE_LIMIT
}

fn is_policy_file(text: &str) -> bool {
    text.ends_with(".policy")
        && !text.starts_with(['.', '-'])
        && text.len() <= 128
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte))
}

/// Whether it may stand in quotes in a configuration: what does is no text that ends them.
fn is_quotable(text: &str) -> bool {
    !text.contains(['"', '\'', '\\']) && !text.chars().any(char::is_control)
}

fn is_path(path: &Path) -> bool {
    path.is_absolute() && path.to_str().is_some_and(is_quotable)
}

impl<'a> Check<'a> {
    fn fault(&mut self, attribute: impl Into<String>, fault: Fault) {
        self.found.push((attribute.into(), fault));
    }

    fn word(&mut self, is_one: bool, attribute: impl Into<String>, given: &str, expected: &'static str) {
        if !is_one {
            self.fault(attribute, Fault::Word { given: given.to_owned(), expected });
        }
    }

    fn within(&mut self, attribute: String, given: u64, least: u64, most: u64) {
        if !(least..=most).contains(&given) {
            self.fault(attribute, Fault::Range { given, least, most });
        }
    }

    fn document(&mut self) {
        let document = self.document;
        let mut wanted = 0u64;
        for (name, qube) in &document.qubes {
            self.qube(name, qube);
            if qube.autostart {
                wanted = wanted.saturating_add(qube.memory);
            }
        }
        if let Some(there) = document.host.memory.filter(|there| wanted > *there) {
            self.fault("qubes", Fault::Memory { wanted, there });
        }
        for (name, remote) in &document.remotes {
            self.remote(name, remote);
        }
        self.ranges();
        self.policy_files("policy", &document.policy);
        if let Some(dom0) = &document.dom0 {
            self.dom0(dom0);
        }
    }

    fn dom0(&mut self, dom0: &'a Dom0) {
        if self.document.version < 5 {
            self.fault("dom0", Fault::Later(5));
        }
        self.containers("dom0", "dom0", &dom0.containers);
        self.policy_files("dom0.policy", &dom0.policy);
    }

    /// Files of a policy, by name.
    fn policy_files(&mut self, here: &str, files: &BTreeMap<String, String>) {
        for file in files.keys() {
            self.word(is_policy_file(file), member(here, file), file, "the name of a policy file");
        }
    }

    /// The containers of a qube, or of dom0.
    fn containers(&mut self, owner: &str, here: &str, containers: &BTreeMap<String, Container>) {
        for (container, what) in containers {
            let here = member(&member(here, "containers"), container);
            self.word(is_name(container), here.clone(), container, "the name of a container");
            if let Some(system) = &what.system {
                let given = system.to_string_lossy();
                let is_one = store_path::is_one(system);
                self.word(is_one, member(&here, "system"), &given, "a path in /nix/store");
            }
            for (number, call) in what.calls.iter().enumerate() {
                self.call(&format!("{here}.calls[{number}]"), owner, call);
            }
        }
    }

    fn qube(&mut self, name: &'a str, qube: &'a Qube) {
        let here = member("qubes", name);
        let of = |attribute: &str| member(&here, attribute);
        let is_one = is_name(name) && !RESERVED.contains(&name);
        self.word(is_one, here.clone(), name, QUBE);
        if is_generation(name) {
            self.fault(here.clone(), Fault::GenerationLink);
        }
        self.class(&here, qube);
        self.version(&here, qube);
        self.within(of("memory"), qube.memory, LEAST_MEMORY_MIB, MEMORY_LIMIT_MIB);
        self.within(of("max_memory"), qube.max_memory, LEAST_MEMORY_MIB, MEMORY_LIMIT_MIB);
        if qube.max_memory < qube.memory {
            let fault = Fault::Below { given: qube.max_memory, other: "memory", least: qube.memory };
            self.fault(of("max_memory"), fault);
        }
        self.within(of("vcpus"), qube.vcpus.into(), 1, VCPUS_LIMIT.into());
        self.within(of("max_vcpus"), qube.max_vcpus.into(), 1, VCPUS_LIMIT.into());
        if qube.max_vcpus < qube.vcpus {
            let fault =
                Fault::Below { given: qube.max_vcpus.into(), other: "vcpus", least: qube.vcpus.into() };
            self.fault(of("max_vcpus"), fault);
        }
        if let Some(there) = self.document.host.memory.filter(|there| qube.memory > *there) {
            self.fault(of("memory"), Fault::Memory { wanted: qube.memory, there });
        }
        self.networks(name, &here, qube);
        self.disks(name, &here, qube);
        if !qube.pci.is_empty() && qube.guest != GuestType::Pv {
            self.fault(of("pci"), Fault::PciOfPvh);
        }
        for (number, device) in qube.pci.iter().enumerate() {
            if let Err(error) = PciConfig::parse(device, PciOptions::default()) {
                self.fault(format!("{here}.pci[{number}]"), Fault::Shape(error.to_string()));
            }
        }
        for tag in &qube.tags {
            self.word(!tag.is_empty() && is_word(tag), of("tags"), tag, "a tag");
        }
        if let Some(template) = &qube.default_disposable {
            self.disposable(of("default_disposable"), template);
        }
        for service in &qube.services {
            self.word(
                !service.is_empty() && is_word(service),
                of("services"),
                service,
                "the name of a service",
            );
        }
        for (number, call) in qube.calls.iter().enumerate() {
            self.call(&format!("{}[{number}]", of("calls")), name, call);
        }
        self.containers(name, &here, &qube.containers);
        self.policy_files(&of("policy"), &qube.policy);
    }

    fn remote(&mut self, name: &'a str, remote: &'a Remote) {
        let here = member("remotes", name);
        let of = |attribute: &str| member(&here, attribute);
        if self.document.version < 3 {
            self.fault(here.clone(), Fault::Later(3));
        }
        self.word(is_name(name) && !RESERVED.contains(&name), here.clone(), name, QUBE);
        if self.document.qubes.contains_key(name) {
            self.fault(here.clone(), Fault::Taken(name.to_owned()));
        }
        match self.document.qubes.get(&remote.relay) {
            None => {
                let name = remote.relay.clone();
                self.fault(of("relay"), Fault::NotThere { kind: "qube", name });
            }
            Some(relay) if !relay.services.contains(&remote.service) => {
                let (target, service) = (remote.relay.clone(), remote.service.clone());
                self.fault(of("service"), Fault::NotOffered { target, service });
            }
            Some(_) => {}
        }
        for tag in &remote.tags {
            self.word(!tag.is_empty() && is_word(tag), of("tags"), tag, "a tag");
        }
    }

    /// What version 1 had not.
    fn version(&mut self, here: &str, qube: &Qube) {
        let format = qube.private.as_ref().and_then(|private| private.format);
        for (is_there, attribute) in [
            (qube.ready.is_some(), "ready"),
            (qube.store.is_some(), "store"),
            (format.is_some(), "private.format"),
        ] {
            if is_there && self.document.version < 2 {
                self.fault(format!("{here}.{attribute}"), Fault::Later(2));
            }
        }
        if let Some(ready) = qube.ready {
            self.within(format!("{here}.ready.timeout"), ready.timeout, 1, READY_LIMIT);
        }
    }

    fn class(&mut self, here: &str, qube: &Qube) {
        let system = member(here, "system");
        match (qube.class, &qube.system, &qube.boot) {
            (Class::Nixos, None, _) => self.fault(system, Fault::Missing("nixos")),
            (Class::Nixos, Some(path), None) => {
                self.word(store_path::is_one(path), system, &path.to_string_lossy(), "a path in /nix/store");
            }
            (Class::Nixos, Some(_), Some(_)) => {
                self.fault(member(here, "boot"), Fault::NotOfClass("nixos"));
            }
            (Class::Whonix, Some(_), _) => self.fault(system, Fault::NotOfClass("whonix")),
            (Class::Whonix, None, None) => self.fault(member(here, "boot"), Fault::Missing("whonix")),
            (Class::Whonix, None, Some(boot)) => {
                let of = |attribute: &str| member(&member(here, "boot"), attribute);
                for (attribute, path) in [("kernel", Some(&boot.kernel)), ("initrd", boot.initrd.as_ref())] {
                    let Some(path) = path else { continue };
                    self.word(is_path(path), of(attribute), &path.to_string_lossy(), "an absolute path");
                }
                self.word(is_quotable(&boot.cmdline), of("cmdline"), &boot.cmdline, "a line without quotes");
            }
        }
        if qube.class == Class::Whonix && !qube.containers.is_empty() {
            self.fault(member(here, "containers"), Fault::NotOfClass("whonix"));
        }
    }

    fn networks(&mut self, name: &'a str, here: &str, qube: &'a Qube) {
        if let Some(netvm) = &qube.netvm {
            let attribute = member(here, "netvm");
            match self.document.qubes.get(netvm) {
                None => {
                    self.fault(attribute, Fault::NotThere { kind: "qube", name: netvm.clone() });
                }
                Some(_) => {
                    if let Some(cycle) = self.cycle(name) {
                        self.fault(attribute, Fault::Cycle(cycle));
                    }
                }
            }
        }
        for (number, network) in qube.networks.iter().enumerate() {
            let of = |attribute: &str| format!("{here}.networks[{number}].{attribute}");
            match network.backend.as_ref().map(|backend| (backend, self.document.qubes.get(backend))) {
                Some((backend, None)) => {
                    self.fault(of("backend"), Fault::NotThere { kind: "qube", name: backend.clone() });
                }
                Some((_, Some(backend))) if !backend.driver_domain => {
                    self.fault(of("backend"), Fault::NotDriverDomain);
                }
                _ => {}
            }
            if let Some(bridge) = &network.bridge {
                let is_one = !bridge.is_empty() && bridge.len() <= 15 && is_word(bridge);
                self.word(is_one, of("bridge"), bridge, "the name of an interface");
            }
            self.word(network.mac.parse::<Mac>().is_ok(), of("mac"), &network.mac, "a MAC address");
            if let Some(ip) = network.ip {
                self.address(of("ip"), name, ip, network.backend.is_some());
            }
            if let Some(other) = self.macs.insert(&network.mac, name) {
                self.fault(of("mac"), Fault::Taken(format!("{} (by {other})", network.mac)));
            }
        }
    }

    /// An address behind a netvm.
    fn address(&mut self, attribute: String, name: &'a str, ip: Ipv4Addr, leads_to_a_qube: bool) {
        if self.document.version < 4 {
            self.fault(attribute.clone(), Fault::Later(4));
        }
        if !leads_to_a_qube {
            self.fault(attribute.clone(), Fault::OnABridge);
        }
        let prefix = self.document.network.as_ref().map(|network| network.prefix);
        if let Some(prefix) = prefix.filter(|prefix| !prefix.has(ip)) {
            self.fault(attribute.clone(), Fault::Outside { ip, prefix });
        }
        if let Some(other) = self.ips.insert(ip, name) {
            self.fault(attribute, Fault::Taken(format!("{ip} (by {other})")));
        }
    }

    /// The ranges of addresses.
    fn ranges(&mut self) {
        let Some(network) = &self.document.network else { return };
        if self.document.version < 4 {
            self.fault("network", Fault::Later(4));
        }
        if network.prefix.overlaps(network.disposables) {
            self.fault("network.disposables", Fault::Overlap(network.disposables, network.prefix));
        }
    }

    /// The way along netvm back to where it began.
    fn cycle(&self, begin: &str) -> Option<Vec<String>> {
        let mut way = vec![begin.to_owned()];
        let mut passed = BTreeSet::from([begin]);
        let mut next = self.document.qubes.get(begin)?.netvm.as_deref();
        while let Some(name) = next {
            way.push(name.to_owned());
            if !passed.insert(name) {
                // A circle that it only leads to is told of where it is.
                return (name == begin).then_some(way);
            }
            next = self.document.qubes.get(name)?.netvm.as_deref();
        }
        None
    }

    fn disks(&mut self, name: &'a str, here: &str, qube: &'a Qube) {
        let mut vdevs = BTreeSet::new();
        let private = qube.private.as_ref().map(|private| {
            (format!("{here}.private"), private.target.as_str(), private.vdev.as_str(), Access::W)
        });
        let disks = qube.disks.iter().enumerate().map(|(number, disk)| {
            (format!("{here}.disks[{number}]"), disk.target.as_str(), disk.vdev.as_str(), disk.access)
        });
        if let Some(vdev) = &qube.store {
            let store = member(here, "store");
            if qube.class == Class::Whonix {
                self.fault(store, Fault::NotOfClass("whonix"));
            } else {
                self.word(is_vdev(vdev), store, vdev, VDEV);
                vdevs.insert(vdev.as_str());
            }
        }
        for (here, target, vdev, access) in disks.chain(private) {
            let is_one = target.starts_with('/') && is_quotable(target) && !target.contains(',');
            self.word(is_one, member(&here, "target"), target, "an absolute path without commas and quotes");
            self.word(is_vdev(vdev), member(&here, "vdev"), vdev, VDEV);
            if is_one
                && is_vdev(vdev)
                && let Err(error) = DiskConfig::parse(&disk_text(target, vdev, access))
            {
                self.fault(here.clone(), Fault::Shape(error.to_string()));
            }
            if !vdevs.insert(vdev) {
                self.fault(member(&here, "vdev"), Fault::Taken(vdev.to_owned()));
            }
            if access == Access::W
                && let Some(other) = self.written.insert(target, name)
            {
                self.fault(member(&here, "target"), Fault::Taken(format!("{target} (written by {other})")));
            }
        }
        if let Some(private) = &qube.private {
            self.word(
                volume::is_one(&private.target),
                format!("{here}.private.target"),
                &private.target,
                "a volume, FOLDER/NAME.raw, nor a block device below /dev",
            );
            self.within(format!("{here}.private.size"), private.size, 16, MEMORY_LIMIT_MIB);
        }
    }

    fn disposable(&mut self, attribute: String, template: &str) -> Option<&'a Qube> {
        let document = self.document;
        match document.qubes.get(template) {
            None => {
                self.fault(attribute, Fault::NotThere { kind: "qube", name: template.to_owned() });
                None
            }
            Some(qube) if !qube.disposable_template => {
                self.fault(attribute, Fault::NoTemplate(template.to_owned()));
                None
            }
            found => found,
        }
    }

    fn call(&mut self, here: &str, caller: &str, call: &Call) {
        let (service, target) = (member(here, "service"), member(here, "target"));
        let is_service = !call.service.is_empty() && is_word(&call.service);
        self.word(is_service, service.clone(), &call.service, "the name of a service");
        if let Some(argument) = &call.argument {
            self.word(is_word(argument), member(here, "argument"), argument, "an argument");
        }
        let document = self.document;
        let (qube, container) = match call.target.split_once(':') {
            Some(("@dispvm", template)) => (self.disposable(target, template), None),
            _ if call.target == "@dispvm" => {
                let template = document.qubes.get(caller).and_then(|qube| qube.default_disposable.as_deref());
                match template {
                    None => {
                        self.fault(
                            target,
                            Fault::NotThere { kind: "default_disposable", name: "@dispvm".to_owned() },
                        );
                        return;
                    }
                    // What is wrong with it is told where it stands.
                    Some(template) => (document.qubes.get(template), None),
                }
            }
            _ if call.target == "dom0" => return,
            Some(("dom0", container)) => {
                match document.dom0s_containers().get(container) {
                    Some(container) => self.offers(service, call, &container.services),
                    None => {
                        self.fault(target, Fault::NotThere { kind: "container", name: call.target.clone() });
                    }
                }
                return;
            }
            // What a qube of another host offers, that host knows.
            _ if document.remotes.contains_key(&call.target) => return,
            parts => {
                let (name, container) =
                    parts.map_or((&*call.target, None), |(qube, container)| (qube, Some(container)));
                let qube = document.qubes.get(name);
                if qube.is_none() && document.remotes.contains_key(name) {
                    self.fault(target, Fault::NotThere { kind: "container", name: call.target.clone() });
                } else if qube.is_none() {
                    self.fault(target, Fault::NotThere { kind: "qube", name: name.to_owned() });
                } else if let Some(container) = container
                    && let Some(qube) = qube
                    && !qube.containers.contains_key(container)
                {
                    self.fault(target, Fault::NotThere { kind: "container", name: call.target.clone() });
                    return;
                }
                (qube, container)
            }
        };
        let Some(qube) = qube.filter(|qube| qube.class == Class::Nixos) else { return };
        let offered = match container.and_then(|container| qube.containers.get(container)) {
            Some(container) => &container.services,
            None => &qube.services,
        };
        self.offers(service, call, offered);
    }

    fn offers(&mut self, attribute: String, call: &Call, offered: &[String]) {
        if !offered.contains(&call.service) {
            let fault = Fault::NotOffered { target: call.target.clone(), service: call.service.clone() };
            self.fault(attribute, fault);
        }
    }
}

const VDEV: &str = "a virtual disk: xvda to xvdz";

fn is_vdev(vdev: &str) -> bool {
    vdev.strip_prefix("xvd").is_some_and(|rest| matches!(rest.as_bytes(), [b'a'..=b'z']))
}

/// A disk as a configuration has it.
pub(super) fn disk_text(target: &str, vdev: &str, access: Access) -> String {
    let access = match access {
        Access::R => "r",
        Access::W => "w",
    };
    format!("{target},raw,{vdev},{access}")
}
