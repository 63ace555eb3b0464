//! The shape of `qubes.json`, as it is published in `nixos/qubes.schema.json`.

use super::addresses::Prefix;
use crate::config::GuestType;
use crate::volume::Format;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// The version of the format.
pub const VERSION: u64 = 5;
/// The oldest version that is read: 2 added how a qube says that it is ready, and a file system for its volume; 3 qubes of other
/// hosts; 4 addresses behind netvms; 5 dom0 and its containers.
pub const OLDEST_VERSION: u64 = 1;

/// All qubes of a host, and who may call what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// [`OLDEST_VERSION`] to [`VERSION`].
    pub version: u64,
    /// The machine.
    pub host: Host,
    /// Addresses of qubes behind netvms; `None` before version 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Addresses>,
    /// dom0 itself; `None` before version 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dom0: Option<Dom0>,
    /// By name.
    pub qubes: BTreeMap<String, Qube>,
    /// Qubes of other hosts, by the names that they have here; none before version 3.
    #[serde(default)]
    pub remotes: BTreeMap<String, Remote>,
    /// dom0's policy files, by name.
    pub policy: BTreeMap<String, String>,
}

/// What is declared of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Memory that there is for qubes, in MiB; `None` where that is not known.
    pub memory: Option<u64>,
}

/// Addresses of qubes behind netvms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Addresses {
    /// Of those that are declared.
    pub prefix: Prefix,
    /// Of disposable ones, each of which gets one that is free.
    pub disposables: Prefix,
}

/// dom0 itself, as to calls: its containers, which dom0's NixOS runs, and what its agent is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dom0 {
    /// Its containers.
    pub containers: BTreeMap<String, Container>,
    /// What its agent reads (nexus::agent::Settings).
    pub agent: serde_json::Map<String, serde_json::Value>,
    /// Its agent's policy's files.
    pub policy: BTreeMap<String, String>,
}

/// A qube of another host: a RemoteVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// The qube of this host that carries its calls.
    pub relay: String,
    /// The relay's service that takes on calls to it.
    pub service: String,
    /// Its tags.
    pub tags: Vec<String>,
}

/// What a qube is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A NixOS.
    Nixos,
    /// The one exception.
    Whonix,
}

/// A qube.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qube {
    /// What it is.
    pub class: Class,
    /// The toplevel of its NixOS.
    pub system: Option<PathBuf>,
    /// What a Whonix boots.
    pub boot: Option<Boot>,
    /// The kind of guest.
    #[serde(rename = "type")]
    pub guest: GuestType,
    /// Memory at the start, in MiB.
    pub memory: u64,
    /// Memory to which it may grow, in MiB.
    pub max_memory: u64,
    /// vCPUs at the start.
    pub vcpus: u32,
    /// vCPUs that it may be given.
    pub max_vcpus: u32,
    /// Whether it is started.
    pub autostart: bool,
    /// The qube that its first interface leads to.
    pub netvm: Option<String>,
    /// Whether it has backends for others.
    pub driver_domain: bool,
    /// Its network interfaces.
    pub networks: Vec<Network>,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// What it sees the image of its system's closure as.
    pub store: Option<String>,
    /// The volume for what it keeps.
    pub private: Option<Private>,
    /// How long it may take to say that it is up; `None` (and in version 1) of one that never does.
    pub ready: Option<Ready>,
    /// The host's PCI devices that it gets.
    pub pci: Vec<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether disposable qubes are made from it.
    pub disposable_template: bool,
    /// What `@dispvm` is made from when it calls.
    pub default_disposable: Option<String>,
    /// The services that it offers itself.
    pub services: Vec<String>,
    /// What it may call itself.
    pub calls: Vec<Call>,
    /// Its containers.
    pub containers: BTreeMap<String, Container>,
    /// What its agent reads (nexus::agent::Settings); passed on as it is.
    pub agent: serde_json::Map<String, serde_json::Value>,
    /// Its own policy's files.
    pub policy: BTreeMap<String, String>,
}

/// What a qube boots that is no NixOS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initrd.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The qube that it leads to; `None` for dom0.
    pub backend: Option<String>,
    /// The bridge there.
    pub bridge: Option<String>,
    /// The qube's address there; `None` on a bridge, and before version 4.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    /// Its Ethernet address.
    pub mac: String,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The image or block device.
    pub target: String,
    /// What the qube sees it as.
    pub vdev: String,
    /// Whether it may write.
    pub access: Access,
}

/// Whether a disk may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read only.
    R,
    /// Read and written.
    W,
}

/// The volume for what a qube keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Private {
    /// Its size, in MiB.
    pub size: u64,
    /// Its image.
    pub target: String,
    /// What the qube sees it as.
    pub vdev: String,
    /// The file system that it has from the beginning; `None` (and in version 1) where the qube makes it.
    pub format: Option<Format>,
}

/// How a qube says that it is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// Seconds.
    pub timeout: u64,
}

/// A call that somebody may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Which service.
    pub service: String,
    /// With which argument; `None` for any.
    pub argument: Option<String>,
    /// Whose.
    pub target: String,
    /// Whether the user of the machine is asked.
    pub ask: bool,
}

/// A container of a qube, or of dom0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// The toplevel of its system; `None` where the qube's own closure knows it.
    pub system: Option<PathBuf>,
    /// What it offers.
    pub services: Vec<String>,
    /// What it may call.
    pub calls: Vec<Call>,
    /// Whether it has no interface but lo.
    pub private_network: bool,
    /// The most memory, in MiB.
    pub memory: Option<u64>,
    /// Its share of the processors.
    pub cpu_weight: Option<u32>,
    /// The most processes and threads.
    pub tasks: Option<u32>,
    /// Folders that are kept.
    pub persist: Vec<PathBuf>,
    /// Its capabilities.
    pub capabilities: Vec<String>,
    /// Whether it starts with its qube.
    pub autostart: bool,
}

impl Document {
    /// The containers of dom0.
    pub fn dom0s_containers(&self) -> &BTreeMap<String, Container> {
        static NONE: BTreeMap<String, Container> = BTreeMap::new();
        self.dom0.as_ref().map_or(&NONE, |dom0| &dom0.containers)
    }
}
