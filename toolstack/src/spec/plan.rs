//! What has to be done so that a host is what a document says: found out by reading alone.

use super::policy::{PolicyChange, PolicyFolder};
use super::volume::PrivateVolume;
use super::{Document, Spec, is_declared, uuid_of};
use crate::config::{NicConfig, QubeConfig};
use crate::device::{Disk, Nic, Vdev};
use crate::doctor::{DoctorError, Leftover};
use crate::qubes::{Qube, QubeError, Qubes};
use crate::userdata::Kind;
use crate::volume::VolumeError;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use uuid::Uuid;
use xen::{DomId, PAGE_SHIFT};

/// Why it could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A qube could not be looked at.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// What is left over could not be looked for.
    #[error(transparent)]
    Doctor(#[from] DoctorError),
    /// A policy file could not be read, or is somebody else's.
    #[error("policy: {0}")]
    Policy(#[from] io::Error),
    /// A private volume could not be looked at.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// An attribute that runs as something else than it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The attribute of the qube: `memory`.
    pub attribute: &'static str,
    /// What runs.
    pub running: String,
    /// What is declared.
    pub declared: String,
}

/// The attribute of which only those words are shown that differ: a system is one of many in it.
const COMMAND_LINE: &str = "command line";

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attribute, running, declared } = self;
        let (left, right) = (words_without(running, declared), words_without(declared, running));
        if *attribute == COMMAND_LINE && !(left.is_empty() && right.is_empty()) {
            let shown = |words: &str| if words.is_empty() { "nothing".to_owned() } else { words.to_owned() };
            return write!(f, "{attribute}: {} -> {}", shown(&left), shown(&right));
        }
        write!(f, "{attribute}: {running} -> {declared}")
    }
}

/// The words of a text that another has not.
fn words_without(text: &str, other: &str) -> String {
    let own = text.split_whitespace().filter(|word| !other.split_whitespace().any(|known| known == *word));
    own.collect::<Vec<_>>().join(" ")
}

/// Something about a qube that is changed while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Its name.
    Name {
        /// What it is called.
        running: String,
    },
    /// The memory that its guest is asked to get by with, in KiB.
    Memory {
        /// What it is asked for now; `None` when nobody wrote it down.
        running: Option<u64>,
        /// What it is to be.
        declared: u64,
    },
    /// The vCPUs that its guest is asked to use.
    Vcpus {
        /// What it is asked for now.
        running: Option<u32>,
        /// What it is to be.
        declared: u32,
    },
    /// The private volume grows; in bytes.
    Volume {
        /// What it has.
        running: u64,
        /// What it is to have.
        declared: u64,
    },
    /// A disk goes.
    DetachDisk(Vdev),
    /// A disk comes.
    AttachDisk(Box<Disk>),
    /// An interface goes; forced, when its backend is gone.
    DetachNic {
        /// Its number.
        devid: u32,
        /// Whether nobody is asked.
        forced: bool,
    },
    /// An interface comes.
    AttachNic(Box<Nic>),
    /// What the watcher makes it of when it restarts.
    Kept,
    /// It is whole, and never ran.
    Resumed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |kib: u64| {
            if kib.is_multiple_of(1024) { format!("{} MiB", kib >> 10) } else { format!("{kib} KiB") }
        };
        match self {
            Self::Name { running } => write!(f, "name: it is called {running}"),
            Self::Memory { running, declared } => {
                let running = running.map_or_else(|| "unknown".to_owned(), mib);
                write!(f, "memory: {running} -> {}", mib(*declared))
            }
            Self::Vcpus { running, declared } => {
                let running = running.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
                write!(f, "vcpus: {running} -> {declared}")
            }
            Self::Volume { running, declared } => {
                write!(f, "private volume: {} -> {}", mib(running >> 10), mib(declared >> 10))
            }
            Self::DetachDisk(vdev) => write!(f, "disk {}: detached", vdev.name()),
            Self::AttachDisk(disk) => write!(f, "disk {}: attached, {}", disk.vdev.name(), disk.target),
            Self::DetachNic { devid, .. } => write!(f, "interface {devid}: detached"),
            Self::AttachNic(nic) => {
                let devid = nic.devid.unwrap_or_default();
                let backend = nic.backend.as_deref().unwrap_or("dom0");
                write!(f, "interface {devid}: attached, to {backend}")
            }
            Self::Kept => f.write_str("what a restart makes of it"),
            Self::Resumed => f.write_str("it was made, and never ran"),
        }
    }
}

/// What is done with a qube.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// It is made, and runs.
    Create,
    /// It is whole, and never ran: who made it died over that.
    Resume,
    /// It is changed while it runs.
    Change(Vec<Change>),
    /// It is ended and made anew.
    Restart {
        /// Why; at least one.
        why: Vec<Difference>,
    },
    /// It is ended: it was declared once, and is no longer.
    Remove,
}

impl Work {
    /// One word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Resume => "resume",
            Self::Change(_) => "change",
            Self::Restart { .. } => "restart",
            Self::Remove => "remove",
        }
    }
}

/// One qube's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// What is done with it.
    pub work: Work,
    /// Steps of one wave go on at the same time, after those of all lower ones.
    pub wave: usize,
}

/// Something that has to be settled by hand first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// A domain that was not declared has the name.
    Name {
        /// The name.
        name: String,
        /// Who has it.
        domid: DomId,
    },
    /// A private volume has more than is declared: what would be cut off is the qube's.
    Volume {
        /// The qube.
        name: String,
        /// What is declared, in MiB.
        declared_mib: u64,
        /// What it has, in bytes.
        there: u64,
    },
    /// The qubes that are to run want more memory than the host has, Xen's and dom0's included.
    Memory {
        /// What they want, in MiB.
        wanted_mib: u64,
        /// What the host has, in MiB.
        host_mib: u64,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory { wanted_mib, host_mib } => {
                write!(f, "the qubes that are to run want {wanted_mib} MiB, and this host has {host_mib} MiB")
            }
            Self::Volume { name, declared_mib, there } => {
                let mib = there.div_ceil(1 << 20);
                write!(
                    f,
                    "qubes.{name}.private.size: {declared_mib} MiB are declared, and the volume has {mib} MiB: it does not get smaller"
                )
            }
            Self::Name { name, domid } => {
                write!(
                    f,
                    "{name} is declared, and domain {domid} has that name, which no `nxl apply' made: rename or destroy it"
                )
            }
        }
    }
}

/// What is asked for beyond the document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Qubes that an apply made and that are no longer declared are removed.
    pub prune: bool,
    /// Declared qubes that are started although they do not start by themselves.
    pub start: BTreeSet<String>,
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What must be settled first: nothing is done while there is any.
    pub conflicts: Vec<Conflict>,
    /// What killed programs left, and is taken away first.
    pub leftovers: Vec<Leftover>,
    /// dom0's policy files.
    pub policy: Vec<PolicyChange>,
    /// The qubes, by wave and name.
    pub steps: Vec<Step>,
    /// Declared qubes with which nothing has to be done.
    pub unchanged: Vec<String>,
    /// Declared qubes that do not run, and are not to be started.
    pub halted: Vec<String>,
    /// Qubes that run and are not declared: they are left alone.
    pub undeclared: Vec<String>,
}

impl Plan {
    /// Looks at the host. `configs` are the document's ([`Spec::configs`]), completed with what the host says.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn of(
        qubes: &Qubes,
        spec: &Spec,
        configs: &BTreeMap<String, QubeConfig>,
        policy: &PolicyFolder,
        wishes: &Wishes,
    ) -> Result<Self, PlanError> {
        let document = spec.document();
        let mut plan = Self {
            conflicts: Vec::new(),
            leftovers: qubes.leftovers()?.into_iter().filter(|left| left.kind() != "cache").collect(),
            policy: policy.changes(&document.policy)?,
            steps: Vec::new(),
            unchanged: Vec::new(),
            halted: Vec::new(),
            undeclared: Vec::new(),
        };
        let half_made: BTreeSet<Uuid> = plan
            .leftovers
            .iter()
            .filter_map(|left| match left {
                Leftover::Domain { uuid, .. } => Some(*uuid),
                _ => None,
            })
            .collect();
        // What an apply, or a watcher, was about to make again when it died.
        let restarts: BTreeSet<Uuid> = qubes.userdata.restarts()?.into_iter().map(|(uuid, _)| uuid).collect();
        let running: Vec<Qube> = qubes
            .list()?
            .into_iter()
            .filter(|qube| qube.info.domid != DomId::DOM0 && !half_made.contains(&qube.uuid()))
            .collect();
        // By name, the domain that a netvm is; none when it is yet to be made.
        let mut netvms: BTreeMap<&str, DomId> = BTreeMap::new();
        for (name, depth) in by_depth(document) {
            let Some(config) = configs.get(name) else { continue };
            let uuid = uuid_of(name);
            let holder =
                running.iter().find(|qube| qube.name.as_deref() == Some(name) && qube.uuid() != uuid);
            if let Some(holder) = holder {
                plan.conflicts.push(Conflict::Name { name: name.to_owned(), domid: holder.info.domid });
                continue;
            }
            let wanted = document.qubes.get(name).is_some_and(|qube| qube.autostart)
                || wishes.start.contains(name)
                || restarts.contains(&uuid)
                || half_made.contains(&uuid);
            let private = document.qubes.get(name).and_then(|qube| qube.private.as_ref());
            let volume = private.and_then(|private| PrivateVolume::of(qubes, private));
            let difference = volume.as_ref().map_or(Ok(None), PrivateVolume::difference)?;
            if let Some((there, declared)) = difference.filter(|(there, declared)| there > declared) {
                let name = name.to_owned();
                plan.conflicts.push(Conflict::Volume { name, declared_mib: declared >> 20, there });
                continue;
            }
            let step = |work, wave| Step { name: name.to_owned(), uuid, work, wave };
            let Some(qube) = running.iter().find(|qube| qube.uuid() == uuid && !qube.info.dying) else {
                match wanted {
                    true => plan.steps.push(step(Work::Create, 2 + depth)),
                    false => plan.halted.push(name.to_owned()),
                }
                continue;
            };
            if qube.info.shutdown.is_some() && !wanted {
                plan.halted.push(name.to_owned());
                continue;
            }
            let running = Running::of(qubes, qube)?;
            let never_ran = qube.info.paused && qube.info.cpu_time == 0;
            let mut compared = running.compare(name, config, &netvms);
            if let Some((running, declared)) = difference {
                compared.also(Change::Volume { running, declared });
            }
            match compared {
                Compared::Same if never_ran => plan.steps.push(step(Work::Resume, 2 + depth)),
                Compared::Same => plan.unchanged.push(name.to_owned()),
                Compared::Change(mut changes) => {
                    changes.extend(never_ran.then_some(Change::Resumed));
                    let after_netvms = changes.iter().any(|change| matches!(change, Change::AttachNic(_)));
                    let wave = if after_netvms { 2 + depth } else { 1 };
                    plan.steps.push(step(Work::Change(changes), wave));
                }
                Compared::Restart(why) => {
                    plan.steps.push(step(Work::Restart { why }, 2 + depth));
                    continue;
                }
            }
            netvms.insert(name, qube.info.domid);
        }
        for qube in &running {
            let name = qube.display_name().to_owned();
            if document.qubes.keys().any(|name| uuid_of(name) == qube.uuid()) {
                continue;
            }
            if wishes.prune && is_declared(qube.uuid()) {
                plan.steps.push(Step { name, uuid: qube.uuid(), work: Work::Remove, wave: 0 });
            } else {
                plan.undeclared.push(name);
            }
        }
        plan.check_memory(qubes, configs)?;
        plan.steps.sort_by(|a, b| (a.wave, &a.name).cmp(&(b.wave, &b.name)));
        Ok(plan)
    }

    /// What the host has not got is not found out half way.
    fn check_memory(
        &mut self,
        qubes: &Qubes,
        configs: &BTreeMap<String, QubeConfig>,
    ) -> Result<(), PlanError> {
        let stays = self.steps.iter().filter(|step| step.work != Work::Remove).map(|step| &step.name);
        let wanted = stays.chain(&self.unchanged).filter_map(|name| configs.get(name));
        let wanted_mib = wanted.map(|config| config.memory_mib).fold(0, u64::saturating_add);
        if self.steps.is_empty() {
            return Ok(());
        }
        let host_mib = qubes.control.phys_info()?.total_pages >> (20 - PAGE_SHIFT);
        if wanted_mib > host_mib {
            self.conflicts.push(Conflict::Memory { wanted_mib, host_mib });
        }
        Ok(())
    }

    /// Whether nothing has to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conflicts.is_empty()
            && self.leftovers.is_empty()
            && self.policy.is_empty()
            && self.steps.is_empty()
    }
}

/// The qubes, those first that others have their network from; each with how many there are between it and the outside.
fn by_depth(document: &Document) -> Vec<(&str, usize)> {
    let depth = |name: &str| {
        let mut depth = 0;
        let mut next = document.qubes.get(name).and_then(|qube| qube.netvm.as_ref());
        // Without cycles: the document was checked.
        while let Some(netvm) = next {
            depth += 1;
            next = document.qubes.get(netvm).and_then(|qube| qube.netvm.as_ref());
        }
        depth
    };
    let mut names: Vec<_> = document.qubes.keys().map(|name| (name.as_str(), depth(name))).collect();
    names.sort_by_key(|(_, depth)| *depth);
    names
}

/// What is known of a declared qube that is there.
struct Running {
    name: Option<String>,
    ended: bool,
    /// What it was made of, with the devices that came and went since.
    kept: Option<QubeConfig>,
    memory: Option<u64>,
    vcpus: Option<u32>,
    /// By number, whatever its configuration says.
    disks: BTreeSet<u32>,
    /// By number, the domains of their backends.
    nics: BTreeMap<u32, DomId>,
}

enum Compared {
    Same,
    Change(Vec<Change>),
    Restart(Vec<Difference>),
}

impl Compared {
    /// Something else is changed. What is made anew has it by then.
    fn also(&mut self, change: Change) {
        match self {
            Self::Same => *self = Self::Change(vec![change]),
            Self::Change(changes) => changes.insert(0, change),
            Self::Restart(_) => {}
        }
    }
}

impl Running {
    fn of(qubes: &Qubes, qube: &Qube) -> Result<Self, PlanError> {
        let kept = qubes.userdata.read(Kind::Nxl, qube.info.domid, qube.uuid())?;
        Ok(Self {
            name: qube.name.clone(),
            ended: qube.info.shutdown.is_some(),
            kept: kept.and_then(|text| serde_json::from_str(&text).ok()),
            memory: qubes.memory(qube)?.0,
            vcpus: qubes.wanted_vcpus(qube)?,
            disks: qubes.list_disks(qube)?.into_iter().map(|disk| disk.address.devid).collect(),
            nics: qubes
                .list_nics(qube)?
                .into_iter()
                .map(|nic| (nic.address.devid, nic.address.backend))
                .collect(),
        })
    }

    fn compare(&self, name: &str, declared: &QubeConfig, netvms: &BTreeMap<&str, DomId>) -> Compared {
        let Some(kept) = &self.kept else {
            let why = Difference {
                attribute: "configuration",
                running: "unknown: nobody keeps it".to_owned(),
                declared: "as in the document".to_owned(),
            };
            return Compared::Restart(vec![why]);
        };
        let mut why = differences(kept, declared);
        if self.ended {
            let (running, declared) = ("shut down".to_owned(), "running".to_owned());
            why.push(Difference { attribute: "state", running, declared });
        }
        if !why.is_empty() {
            return Compared::Restart(why);
        }
        let mut changes = Vec::new();
        if let Some(running) = self.name.as_ref().filter(|running| *running != name) {
            changes.push(Change::Name { running: running.clone() });
        }
        let memory = declared.memory_mib << 10;
        if self.memory != Some(memory) {
            changes.push(Change::Memory { running: self.memory, declared: memory });
        }
        if self.vcpus.is_some_and(|vcpus| vcpus != declared.vcpus) {
            changes.push(Change::Vcpus { running: self.vcpus, declared: declared.vcpus });
        }
        self.compare_disks(kept, declared, &mut changes);
        self.compare_nics(kept, declared, netvms, &mut changes);
        if !changes.is_empty() || comparable(kept) != comparable(declared) {
            changes.push(Change::Kept);
        }
        if changes.is_empty() { Compared::Same } else { Compared::Change(changes) }
    }

    fn compare_disks(&self, kept: &QubeConfig, declared: &QubeConfig, changes: &mut Vec<Change>) {
        let (kept, declared) = (disks(kept), disks(declared));
        for devid in &self.disks {
            // One that is there without being kept is of somebody who died in between: it is attached again.
            if (!declared.contains_key(devid) || declared.get(devid) != kept.get(devid))
                && let Some(vdev) = declared.get(devid).or(kept.get(devid)).map(|disk| disk.vdev.clone())
            {
                changes.push(Change::DetachDisk(vdev));
            }
        }
        for (devid, disk) in declared {
            if !self.disks.contains(&devid) || kept.get(&devid) != Some(&disk) {
                changes.push(Change::AttachDisk(Box::new(disk)));
            }
        }
    }

    fn compare_nics(
        &self,
        kept: &QubeConfig,
        declared: &QubeConfig,
        netvms: &BTreeMap<&str, DomId>,
        changes: &mut Vec<Change>,
    ) {
        let (kept, declared) = (nics(kept), nics(declared));
        // Whether the domain behind an interface is the one that is now called so.
        let leads_on = |nic: &Nic, backend: DomId| match nic.backend.as_deref() {
            Some(name) => netvms.get(name) == Some(&backend),
            None => true,
        };
        let same = |devid: &u32| match (self.nics.get(devid), declared.get(devid)) {
            (Some(backend), Some(nic)) => kept.get(devid) == Some(nic) && leads_on(nic, *backend),
            _ => false,
        };
        for devid in self.nics.keys().filter(|devid| !same(devid)) {
            let forced = kept.get(devid).is_some_and(|nic| nic.backend.is_some());
            changes.push(Change::DetachNic { devid: *devid, forced });
        }
        for (devid, nic) in &declared {
            if !same(devid) {
                changes.push(Change::AttachNic(Box::new(nic.clone())));
            }
        }
    }
}

/// The disks by number. One that nxl could not attach is none: it is refused where it comes from.
fn disks(config: &QubeConfig) -> BTreeMap<u32, Disk> {
    let disks = config.disks.iter().filter_map(|disk| Disk::try_from(disk).ok());
    disks.map(|disk| (disk.vdev.devid(), disk)).collect()
}

/// The interfaces by number.
fn nics(config: &QubeConfig) -> BTreeMap<u32, Nic> {
    let nics = config.nics.iter().filter_map(|nic| Nic::try_from(nic).ok());
    nics.filter_map(|nic| Some((nic.devid?, nic))).collect()
}

/// What cannot be changed while a qube runs.
fn differences(kept: &QubeConfig, declared: &QubeConfig) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut differs = |attribute, running: String, declared: String| {
        if running != declared {
            found.push(Difference { attribute, running, declared });
        }
    };
    let shown = |path: &Option<std::path::PathBuf>| {
        path.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string())
    };
    differs("type", kept.guest.name().to_owned(), declared.guest.name().to_owned());
    differs("kernel", kept.kernel.display().to_string(), declared.kernel.display().to_string());
    differs("initrd", shown(&kept.ramdisk), shown(&declared.ramdisk));
    differs(COMMAND_LINE, kept.cmdline.clone(), declared.cmdline.clone());
    let mib = |mib: u64| format!("{mib} MiB");
    differs("max_memory", mib(kept.max_memory_mib), mib(declared.max_memory_mib));
    differs("max_vcpus", kept.max_vcpus.to_string(), declared.max_vcpus.to_string());
    differs("driver_domain", kept.driver_domain.to_string(), declared.driver_domain.to_string());
    if found.is_empty() {
        let fixed = |config: &QubeConfig| QubeConfig {
            memory_mib: 0,
            vcpus: 0,
            actions: declared.actions,
            disks: Vec::new(),
            nics: Vec::new(),
            ..comparable(config)
        };
        if fixed(kept) != fixed(declared) {
            let (running, declared) = ("other settings".to_owned(), "as in the document".to_owned());
            found.push(Difference { attribute: "configuration", running, declared });
        }
    }
    found
}

/// The same without what says nothing: how often a default was written down, in which order devices stand.
fn comparable(config: &QubeConfig) -> QubeConfig {
    QubeConfig {
        name: String::new(),
        disks: disks(config).values().map(Into::into).collect(),
        nics: nics(config).values().map(NicConfig::from).collect(),
        stated: BTreeMap::new(),
        ..config.clone()
    }
}
