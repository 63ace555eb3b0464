//! Creating a qube: from its configuration to a paused domain that every toolstack knows.

use crate::boot::{
    self, BuildError, Built, Guest, Initrd, Limits, Loaded, Payload, Plan, PlanError, PvhOptions, Sizes,
};
use crate::cache::{CachedKernel, Lookup};
use crate::config::{GuestType, NicConfig, QubeConfig};
use crate::device::{self, DeviceError, Devices, Disk, Nic, Requested, pci};
use crate::events::{Event, Step};
use crate::image::{ImageError, Kernel};
use crate::qubes::{Qube, QubeError, Qubes};
use crate::scheduler::SchedulerError;
use crate::sources::{InitrdSource, SourceError, Sources};
use crate::store::{self, Identity};
use crate::userdata::{Beginning, Kind};
use crate::watch;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use uuid::Uuid;
use xen::{DomId, ForeignMemory, GuestKind};

/// libxl's default on a host that has both versions of the grant table's interface.
const MAX_GRANT_VERSION: u32 = 2;

/// Why a qube could not be created. Whatever was made is gone.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name is taken.
    #[error("the name {name} is taken by domain {domid}: destroy it, or choose another (name=…)")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        domid: DomId,
    },
    /// The UUID is taken.
    #[error("the UUID {uuid} is taken by domain {domid}: leave it out, and one is made")]
    UuidTaken {
        /// The UUID.
        uuid: Uuid,
        /// Who has it.
        domid: DomId,
    },
    /// There is nothing to boot.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The kernel is none.
    #[error("{path}: {source}")]
    Kernel {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
    /// What was asked for is not possible.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// It cannot run where it is to run, or get what it is to get of the CPUs.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    /// The domain could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A device could not be attached.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The domain could not be recorded.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// How a qube is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// For somebody else to unpause.
    Paused,
    /// Unpaused.
    Running,
}

/// What a guest has of memory below 4 GiB whatever its `mmio_hole`, in bytes.
const LOW_MEMORY: u64 = 256 << 20;

/// Whether the kernel, which is packed, can be unpacked in the guest's memory. A PV guest's plan takes its kernel's notes, and so
/// does that of one that may have to be moved.
fn unpacks_in_place(config: &QubeConfig, sources: &Sources) -> Result<bool, ImageError> {
    let kernel = sources.kernel.kernel()?;
    let fits = kernel.footprint().memory.end <= LOW_MEMORY.min(config.memory_mib << 20);
    Ok(config.guest == GuestType::Pvh && fits && kernel.file_pages().is_some())
}

/// Takes back what a domain has beyond itself unless it was finished.
struct Unfinished<'a> {
    qubes: &'a Qubes,
    domid: DomId,
    uuid: Uuid,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // The error that led here is the one to report.
        let devices = self.qubes.devices(self.domid).unwrap_or_default();
        let _ = self.qubes.end_half_made(self.domid, self.uuid, &devices.managed);
    }
}

/// A configuration with all that is chosen or drawn by lot for its interfaces, which a qube that is made again keeps, and what
/// it comes to.
pub(crate) struct Settled {
    pub(crate) config: QubeConfig,
    disks: Vec<Disk>,
    nics: Vec<Nic>,
}

impl Settled {
    fn new(config: &QubeConfig) -> Result<Self, DeviceError> {
        let disks = config.disks.iter().map(Disk::try_from).collect::<Result<_, _>>()?;
        let settle = |(nic, devid)| Nic::try_from(nic).map(|nic| nic.settled(devid));
        let nics: Vec<Nic> = config.nics.iter().zip(0..).map(settle).collect::<Result<_, _>>()?;
        let chosen = config.nics.iter().zip(&nics).map(|(given, nic)| NicConfig {
            devid: nic.devid,
            mac: nic.mac,
            ..given.clone()
        });
        Ok(Self { config: QubeConfig { nics: chosen.collect(), ..config.clone() }, disks, nics })
    }
}

/// A domain that is to be a qube.
pub(crate) struct Domain<'a> {
    pub(crate) settled: &'a Settled,
    pub(crate) kind: GuestKind,
    pub(crate) sizes: Sizes,
    pub(crate) kernel: &'a Path,
    pub(crate) ramdisk: Option<&'a Path>,
    pub(crate) cmdline: &'a str,
}

/// What it may take of Xen's own tables.
pub(crate) fn limits(config: &QubeConfig) -> Limits {
    Limits {
        max_event_channel_port: config.max_event_channels,
        max_grant_frames: config.max_grant_frames,
        max_maptrack_frames: config.max_maptrack_frames,
        max_grant_version: config.max_grant_version.unwrap_or(MAX_GRANT_VERSION),
        iommu: config.wants_iommu(),
        tsc_mode: config.tsc_mode.map(|mode| mode.of_xen()).unwrap_or_default(),
    }
}

/// Notes for the [doctor](crate::doctor) that a domain is being made, until it is whole or gone.
struct Begun<'a> {
    qubes: &'a Qubes,
    uuid: Uuid,
    note: Beginning,
}

impl<'a> Begun<'a> {
    fn new(qubes: &'a Qubes, uuid: Uuid) -> Result<Self, QubeError> {
        Ok(Self { qubes, uuid, note: qubes.userdata.begin(uuid)? })
    }

    fn whole(self) -> Result<(), QubeError> {
        self.note.end()?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        // When not even that could be taken back, the note is what tells of it.
        if self.qubes.list().is_ok_and(|all| all.iter().all(|qube| qube.uuid() != self.uuid)) {
            let _ = self.note.end();
        }
    }
}

impl Qubes {
    /// Creates a qube, paused. With `attended` its configuration is kept for the [watcher](crate::watch), which is to
    /// be started when none runs.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(
        &self,
        config: &QubeConfig,
        attended: bool,
        foreign: &dyn ForeignMemory,
    ) -> Result<Qube, CreateError> {
        self.make(config, attended.then_some(Kind::Nxl), Ending::Paused, foreign)
    }

    /// The same, and lets it run as soon as it can: what is left to do here is done while the guest boots.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn start(
        &self,
        config: &QubeConfig,
        attended: bool,
        foreign: &dyn ForeignMemory,
    ) -> Result<Qube, CreateError> {
        self.make(config, attended.then_some(Kind::Nxl), Ending::Running, foreign)
    }

    /// As [`Self::create`], with the configuration kept in a file of that kind.
    pub(crate) fn make(
        &self,
        config: &QubeConfig,
        kept: Option<Kind>,
        ending: Ending,
        foreign: &dyn ForeignMemory,
    ) -> Result<Qube, CreateError> {
        let settled = self.settled(config)?;
        let config = &settled.config;
        let placement = self.placement(config)?;
        let sources = Sources::open(config, self.userdata.scratch())?;
        let kernel_path = &sources.kernel_path;
        let kernel_error = |source| CreateError::Kernel { path: kernel_path.clone(), source };
        let unpacked;
        let (mut cached, mut new_entry) = (None, None);
        if let Some(cache) = &self.kernels {
            match cache.look(kernel_path, &sources.kernel).map_err(kernel_error)? {
                Some(Lookup::Found(kernel)) => cached = Some(kernel),
                Some(Lookup::Missing(entry)) => {
                    if unpacks_in_place(config, &sources).map_err(kernel_error)? {
                        new_entry = Some(entry);
                    } else {
                        cached = entry.unpack(&sources.kernel).map_err(kernel_error)?;
                    }
                }
                None => {}
            }
        }
        let kernel = cached.as_ref().map_or_else(|| sources.kernel.kernel(), CachedKernel::open);
        let mut kernel = kernel.map_err(kernel_error)?;
        if let Some(entry) = &new_entry {
            let (format, limit) = (kernel.format(), kernel.footprint().cmdline_limit);
            kernel = kernel.keep_with(move |file| entry.keep(format, limit, file));
        }
        let pv = match config.guest {
            GuestType::Pvh => {
                kernel.pvh_entry().transpose().map_err(kernel_error)?;
                None
            }
            GuestType::Pv => {
                // Everything of a PV guest depends on its kernel's notes. The cache has them at hand.
                if kernel.notes().is_none() {
                    let (format, limit) = (kernel.format(), kernel.footprint().cmdline_limit);
                    let mut file = Vec::new();
                    let keep = |part: &[u8]| {
                        file.extend_from_slice(part);
                        Ok::<_, ImageError>(())
                    };
                    kernel.unpack(keep).map_err(kernel_error)?;
                    unpacked = file;
                    kernel = Kernel::open_unpacked(&unpacked, format, limit).map_err(kernel_error)?;
                }
                Some(kernel.pv().unwrap_or(Err(ImageError::NotPv)).map_err(kernel_error)?)
            }
        };
        let guest = match &pv {
            Some(pv) => Guest::Pv(pv),
            None => Guest::Pvh(PvhOptions {
                timer_mode: config.timer_mode as u64,
                paging_memory_mib: config.paging_memory_mib,
                mmio_hole_mib: config.mmio_hole_mib,
            }),
        };
        let initrd_len = sources.initrd.as_ref().map(InitrdSource::len).transpose()?;
        let plan = Plan::new(&boot::Request {
            memory_kib: config.memory_mib << 10,
            max_memory_kib: config.max_memory_mib << 10,
            vcpus: config.vcpus,
            max_vcpus: config.max_vcpus,
            cmdline: &sources.cmdline,
            kernel: kernel.footprint(),
            initrd: initrd_len,
            placement,
            guest,
        })?;
        let plan = match config.sees_host_map() {
            true => plan.with_host_map(&self.control.machine_memory_map()?),
            false => plan,
        };

        let initrd = sources.initrd.as_ref().map(|initrd| match initrd {
            InitrdSource::File(file, path) => (Initrd::File(file), path.clone()),
            InitrdSource::Bytes(bytes, path) => (Initrd::Bytes(bytes), path.clone()),
        });
        let payload = Payload { kernel: (kernel, kernel_path.clone()), initrd };
        let domain = Domain {
            settled: &settled,
            kind: plan.kind(),
            sizes: *plan.sizes(),
            kernel: kernel_path,
            ramdisk: sources.ramdisk.as_deref(),
            cmdline: &sources.cmdline,
        };
        self.bring_about(&domain, kept, ending, |daemons| {
            boot::build(
                &plan,
                *config.uuid.as_bytes(),
                limits(config),
                payload,
                daemons,
                &*self.control,
                foreign,
            )
        })
    }

    /// The configuration with all that is chosen here, after a look whether a qube of it is refused: a kernel may take seconds
    /// to unpack.
    pub(crate) fn settled(&self, config: &QubeConfig) -> Result<Settled, CreateError> {
        let settled = Settled::new(config)?;
        let QubeConfig { name, uuid, .. } = config;
        // One without a name that is dying is gone but for what somebody has of its memory: its records are removed.
        for other in self.list()?.into_iter().filter(|other| !other.info.dying || other.name.is_some()) {
            let domid = other.info.domid;
            if other.name.as_ref() == Some(name) {
                return Err(CreateError::NameTaken { name: name.clone(), domid });
            }
            if other.uuid() == *uuid {
                return Err(CreateError::UuidTaken { uuid: *uuid, domid });
            }
        }
        device::check(&*self.plumbing, &settled.disks, &settled.nics)?;
        pci::check(self, &settled.config)?;
        Ok(settled)
    }

    /// Has a domain built, and makes it a qube: known to xenstore and to other toolstacks, with its devices. Whatever fails,
    /// nothing is left of it. `build` is given where xenstored and xenconsoled run.
    pub(crate) fn bring_about(
        &self,
        domain: &Domain<'_>,
        kept: Option<Kind>,
        ending: Ending,
        build: impl FnOnce((DomId, DomId)) -> Result<(Built, Loaded), BuildError>,
    ) -> Result<Qube, CreateError> {
        let Settled { config, disks, nics } = domain.settled;
        let QubeConfig { name, uuid, .. } = config;
        let xenstored = if self.store.is_local() { DomId::DOM0 } else { self.daemon_domid("xenstored")? };
        let daemons = (xenstored, self.daemon_domid("xenconsoled")?);
        let begun = Begun::new(self, *uuid)?;
        let (built, loaded) = build(daemons)?;
        let unfinished = Unfinished { qubes: self, domid: built.domid, uuid: *uuid };
        // Behind it, and so dropped before it: a domain of which something is mapped does not go.
        let _loaded = loaded;

        let identity = Identity {
            kind: domain.kind,
            sizes: domain.sizes,
            name,
            uuid: *uuid,
            start: SystemTime::now(),
            console_domid: daemons.1,
            driver_domain: config.driver_domain,
            kernel: domain.kernel,
            ramdisk: domain.ramdisk,
            cmdline: domain.cmdline,
        };
        let (vkbs, channels, p9s) = (&*config.vkbs, &*config.channels, &*config.p9s);
        let requested = Requested { pv: domain.kind == GuestKind::Pv, disks, nics, vkbs, channels, p9s };
        let mut devices = Devices::prepare(self, built.domid, requested)?;
        let mut pcis = pci::Given::prepare(self, built.domid, &config.pcis)?;
        let mut records = store::records(&identity, &built);
        records.extend(devices.records());
        records.extend(pcis.records(name));
        store::write(&*self.store, &records)?;
        pcis.recorded();
        devices.recorded()?;
        self.userdata.write(Kind::Libxl, built.domid, *uuid, &config.to_libxl_record())?;
        if let Some(kind) = kept {
            // Against a watcher that is about to end for want of qubes.
            let _lock = self.userdata.lock(watch::RECORDS_LOCK, true)?;
            let text = serde_json::to_string(config).map_err(|error| QubeError::UserData {
                path: config.name.clone().into(),
                source: error.into(),
            })?;
            self.userdata.write(kind, built.domid, *uuid, &text)?;
        }
        self.store.introduce(built.domid, built.store_ring, built.store_port)?;
        devices.connect()?;
        pcis.connect()?;

        let qube = Qube { info: self.control.domain_info(built.domid)?, name: Some(name.clone()) };
        begun.whole()?;
        let mut events = vec![Event::of(&qube, Step::Created)];
        if ending == Ending::Running {
            self.control.unpause(built.domid)?;
            events.push(Event::of(&qube, Step::Unpaused));
        }
        std::mem::forget(unfinished);
        // While the guest boots.
        self.events.tell(&events);
        Ok(qube)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{Settings, TscMode};
    use crate::image::Codec;
    use crate::image::synthetic::{Class, SyntheticElf, packed_bzimage, pe, xen_note};
    use crate::{KernelCache, UserData};
    use std::fs::File;
    use xen::mock::{Guest, Machine};
    use xen::{ErrorKind, Platform};

    pub(crate) struct Host {
        pub(crate) machine: Machine,
        pub(crate) folder: tempfile::TempDir,
        pub(crate) qubes: Qubes,
        pub(crate) foreign: std::sync::Arc<dyn ForeignMemory>,
    }

    pub(crate) fn host() -> Host {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("userdata")).unwrap();
        let image = packed_bzimage(Codec::Xz, &SyntheticElf::pvh().build());
        std::fs::write(folder.path().join("kernel"), image).unwrap();
        std::fs::write(folder.path().join("initrd"), b"070701").unwrap();
        let machine = Machine::new();
        let dom0 = machine.domain(DomId::DOM0);
        let qubes = Qubes::open(&dom0, UserData::in_folder(folder.path().join("userdata"))).unwrap();
        let foreign = dom0.foreign_memory().unwrap();
        machine.reset_counts();
        Host { machine, folder, qubes, foreign }
    }

    impl Host {
        fn config(&self, name: &str) -> QubeConfig {
            self.config_with(name, "")
        }

        pub(crate) fn config_with(&self, name: &str, more: &str) -> QubeConfig {
            let folder = self.folder.path().display();
            let text = format!(
                "type='pvh'\nname='{name}'\nmemory=512\nkernel='{folder}/kernel'\nramdisk='{folder}/initrd'\n{more}\n"
            );
            let settings = Settings::parse("test.cfg", text.as_bytes(), &[""; 0]).unwrap();
            QubeConfig::from_settings("test.cfg", &settings, None).unwrap().0
        }

        fn create(&self, config: &QubeConfig) -> Result<Qube, CreateError> {
            self.qubes.create(config, true, &*self.foreign)
        }

        /// The domains' files.
        pub(crate) fn files(&self) -> usize {
            let entries = std::fs::read_dir(self.folder.path().join("userdata")).unwrap();
            entries.filter(|entry| entry.as_ref().unwrap().path().is_file()).count()
        }

        /// All that exists but dom0's empty `backend` folder, which stays, as with `xl`.
        pub(crate) fn inventory(&self) -> Vec<String> {
            let mut inventory = self.machine.inventory();
            inventory.retain(|line| !line.starts_with("/local/domain/0/backend = "));
            inventory
        }
    }

    /// The next program on the same host: what the last one had open is closed.
    pub(crate) fn next_program(host: Host) -> Host {
        host.machine.revive();
        let Host { machine, folder, qubes, foreign } = host;
        drop((qubes, foreign));
        // A program that another test is just starting has this one's descriptors until it runs, and the locks with them.
        for lock in std::fs::read_dir(folder.path().join("userdata/locks")).into_iter().flatten() {
            let file = File::open(lock.unwrap().path()).unwrap();
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        }
        let dom0 = machine.domain(DomId::DOM0);
        let userdata = UserData::in_folder(folder.path().join("userdata"));
        let qubes = Qubes::open(&dom0, userdata).unwrap();
        let foreign = dom0.foreign_memory().unwrap();
        Host { machine, folder, qubes, foreign }
    }

    /// Where the start_info of the synthetic kernel is: behind its segments.
    fn start_info() -> u64 {
        let elf = SyntheticElf::pvh();
        let end = elf.loads.iter().map(|load| load.address + load.memory_size).max().unwrap();
        end.next_multiple_of(4096)
    }

    fn number(guest: &Guest, at: u64) -> u64 {
        u64::from_le_bytes(guest.read(at, 8).try_into().unwrap())
    }

    /// Address and size of the first module that start_info names (docs/misc/pvh.pandoc): the initrd.
    fn first_module(guest: &Guest) -> (u64, u64) {
        let module = number(guest, start_info() + 16);
        (number(guest, module), number(guest, module + 8))
    }

    #[test]
    fn nxl_create_of_512_mib_takes_at_most_40_hypercalls_and_60_xenstore_requests() {
        let host = host();
        let qube = host.create(&host.config("work")).unwrap();
        host.qubes.unpause(&qube).unwrap();
        let counts = host.machine.counts();
        assert!(counts.hypercalls <= 40, "{} hypercalls: {:?}", counts.hypercalls, counts.calls);
        assert!(
            counts.xenstore_requests() <= 60,
            "{} requests: {:?}",
            counts.xenstore_requests(),
            counts.calls
        );
        assert!(counts.xenstore_transactions() <= 2);
        // What it is today, so that a change is noticed. (On a host, each domain's name is read, too.)
        assert_eq!(
            (counts.hypercalls, counts.xenstore_requests(), counts.xenstore_transactions()),
            (34, 60, 1),
            "{:?}",
            counts.calls
        );
    }

    #[test]
    fn what_was_created_is_found_and_destroyed_without_a_trace() {
        let host = host();
        let before = host.inventory();
        let qube = host.create(&host.config("work")).unwrap();
        assert_eq!(host.qubes.find("work").unwrap().info, qube.info);
        assert_eq!(host.qubes.find(&qube.info.domid.to_string()).unwrap().name.as_deref(), Some("work"));
        let stored = host.qubes.stored_config(&qube).unwrap().unwrap();
        assert!(stored.contains("\"name\": \"work\""), "{stored}");
        assert_eq!(host.files(), 2);
        let error = host.qubes.find("wrok").unwrap_err().to_string();
        assert!(error.ends_with("name or id; did you mean `work'? (see `nxl list`)"), "{error}");
        host.qubes.destroy(&qube).unwrap();
        assert_eq!(host.inventory(), before);
        assert_eq!(host.files(), 0);
        assert!(matches!(host.qubes.find("work"), Err(QubeError::NotFound { .. })));
    }

    #[test]
    fn twenty_qubes_at_once_share_one_unpacked_kernel() {
        let Host { machine: _, folder, qubes: _, foreign: _ } = host();
        let machine = Machine::with_memory(64 << 18);
        let dom0 = machine.domain(DomId::DOM0);
        let path = folder.path().join("cache");
        let cache = || KernelCache::new(&path, 1 << 30);
        let userdata = UserData::in_folder(folder.path().join("userdata"));
        let qubes = Qubes::open(&dom0, userdata).unwrap().with_kernel_cache(cache());
        let foreign = dom0.foreign_memory().unwrap();
        let host = Host { machine, folder, qubes, foreign };
        let elf = SyntheticElf::paged();
        std::fs::write(host.folder.path().join("kernel"), packed_bzimage(Codec::Zstd, &elf.build())).unwrap();
        std::thread::scope(|scope| {
            for i in 0..20 {
                let (host, elf) = (&host, &elf);
                scope.spawn(move || {
                    let qube = host.create(&host.config(&format!("work-{i}"))).unwrap();
                    let guest = host.machine.guest(qube.info.domid).unwrap();
                    for load in &elf.loads {
                        assert_eq!(guest.read(load.address, load.data.len()), load.data);
                    }
                });
            }
        });
        assert_eq!(host.qubes.list().unwrap().len(), 20);
        let kernels = cache().list().unwrap();
        assert_eq!((kernels.len(), kernels[0].size), (1, elf.build().len() as u64));
    }

    #[test]
    fn a_guest_reads_the_time_stamp_counter_that_is_asked_for() {
        let host = host();
        let modes = [
            (None, xen::TscMode::Default),
            (Some(TscMode::Default), xen::TscMode::Default),
            (Some(TscMode::AlwaysEmulate), xen::TscMode::AlwaysEmulate),
            (Some(TscMode::Native), xen::TscMode::Native),
        ];
        for (tsc_mode, expected) in modes {
            let qube = host.create(&QubeConfig { tsc_mode, ..host.config("work") }).unwrap();
            assert_eq!(host.machine.guest(qube.info.domid).unwrap().tsc_mode, expected);
            host.qubes.destroy(&qube).unwrap();
        }
    }

    #[test]
    fn a_unified_image_is_booted_with_its_own_initrd_and_command_line() {
        let host = host();
        let kernel = std::fs::read(host.folder.path().join("kernel")).unwrap();
        let image = pe(&[(".linux", &kernel), (".initrd", b"070701 its own"), (".cmdline", b"its own line")]);
        let path = host.folder.path().join("unified.efi");
        std::fs::write(&path, image).unwrap();
        let qube = host.create(&QubeConfig { kernel: path, ramdisk: None, ..host.config("work") }).unwrap();
        let guest = host.machine.guest(qube.info.domid).unwrap();
        let elf = SyntheticElf::pvh();
        assert_eq!(guest.read(elf.loads[0].address, elf.loads[0].data.len()), elf.loads[0].data);
        assert_eq!(guest.read(number(&guest, start_info() + 24), 13), b"its own line\0");
        let (address, size) = first_module(&guest);
        assert_eq!(guest.read(address, size as usize), b"070701 its own");
    }

    #[test]
    fn initrd_secrets_are_in_the_guest_and_nowhere_else() {
        let host = host();
        let program = host.folder.path().join("append-initrd-secrets");
        std::fs::write(&program, "#!/bin/sh\nprintf ' and a secret' >> $1\n").unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let config = QubeConfig { initrd_secrets: Some(program.clone()), ..host.config("work") };
        let qube = host.create(&config).unwrap();
        let guest = host.machine.guest(qube.info.domid).unwrap();
        assert_eq!(guest.read(first_module(&guest).0, 19), b"070701 and a secret");
        assert_eq!(first_module(&guest).1, 19);
        assert_eq!(std::fs::read(host.folder.path().join("initrd")).unwrap(), b"070701");
        std::fs::write(&program, "#!/bin/sh\necho no key >&2; exit 1\n").unwrap();
        let error =
            host.create(&QubeConfig { name: "other".into(), uuid: Uuid::new_v4(), ..config }).unwrap_err();
        assert!(error.to_string().ends_with("no key"), "{error}");
    }

    #[test]
    fn a_name_or_uuid_that_is_taken_is_refused() {
        let host = host();
        let config = host.config("work");
        host.create(&config).unwrap();
        let before = host.inventory();
        let error = host.create(&host.config("work")).unwrap_err();
        assert!(matches!(error, CreateError::NameTaken { .. }), "{error}");
        let error = host.create(&QubeConfig { name: "other".into(), ..config }).unwrap_err();
        assert!(matches!(error, CreateError::UuidTaken { .. }), "{error}");
        assert_eq!(host.inventory(), before);
    }

    #[test]
    fn a_domain_that_is_dead_and_not_gone_takes_no_uuid() {
        let host = host();
        let config = host.config("work");
        let dead = host.create(&config).unwrap();
        host.machine.hold(dead.info.domid);
        host.qubes.destroy(&dead).unwrap();
        assert!(host.qubes.list().unwrap().iter().any(|qube| qube.info.dying && qube.uuid() == config.uuid));
        let alive = host.create(&config).unwrap();
        assert_ne!(alive.info.domid, dead.info.domid);
        assert_eq!(host.qubes.find("work").unwrap().info.domid, alive.info.domid);
    }

    #[test]
    fn a_qube_is_left_paused_or_running() {
        let host = host();
        let paused = host.create(&host.config("paused")).unwrap();
        let running = host.qubes.start(&host.config("running"), true, &*host.foreign).unwrap();
        let runs = |qube: &Qube| host.machine.guest(qube.info.domid).unwrap().running;
        assert_eq!((runs(&paused), runs(&running)), (false, true));
    }

    #[test]
    fn whichever_call_fails_nothing_is_left() {
        let calls: u64 = {
            let host = host();
            host.qubes.start(&host.config("work"), true, &*host.foreign).unwrap();
            host.machine.counts().calls.values().sum()
        };
        assert!(calls > 80, "{calls}");
        for nth in 0..calls {
            let host = host();
            let before = host.inventory();
            host.machine.fail(None, nth, ErrorKind::Other);
            let result = host.qubes.start(&host.config("work"), true, &*host.foreign);
            assert!(result.is_err(), "call {nth} of {calls}");
            assert_eq!(host.inventory(), before, "call {nth} of {calls}");
            assert_eq!(host.files(), 0, "call {nth} of {calls}");
            assert!(host.qubes.userdata.begun().unwrap().is_empty(), "call {nth} of {calls}");
        }
    }

    /// A host with a packed kernel that can be a PV guest, and a configuration that boots it as one.
    fn pv_host() -> (Host, QubeConfig) {
        let host = host();
        let kernel = host.folder.path().join("pv-kernel");
        std::fs::write(&kernel, packed_bzimage(Codec::Zstd, &SyntheticElf::pv().build())).unwrap();
        let more = format!("type='pv'\nkernel='{}'\nmemory=16\nmaxmem=24", kernel.display());
        let config = host.config_with("para", &more);
        host.machine.reset_counts();
        (host, config)
    }

    #[test]
    fn a_pv_qube_is_made_of_a_packed_kernel_with_and_without_a_cache() {
        for cached in [false, true] {
            let (mut host, config) = pv_host();
            if cached {
                host.qubes.kernels = Some(KernelCache::new(host.folder.path().join("cache"), 1 << 30));
            }
            let qube = host.create(&config).unwrap();
            assert!(!qube.info.hvm);
            assert_eq!(qube.info.pages, 16 << 8);
            let guest = host.machine.guest(qube.info.domid).unwrap();
            let elf = SyntheticElf::pv();
            assert_eq!(guest.read(elf.loads[0].address, 64), elf.loads[0].data[..64]);
            let read = |path: &str| {
                let path = format!("{}/{path}", store::home(qube.info.domid));
                let value = host.qubes.store.read(xen::Transaction::NONE, &path).unwrap();
                String::from_utf8(value).unwrap()
            };
            assert_eq!((read("memory/static-max"), read("memory/target")), ("24576".into(), "16384".into()));
            // xenstored and xenconsoled are told frames of the machine, which lead to the guest's pages.
            let ring = |path: &str| guest.frame(xen::Gfn(read(path).parse().unwrap())).unwrap();
            assert_eq!(ring("console/ring-ref").0, ring("store/ring-ref").0 + 1);
            host.qubes.destroy(&qube).unwrap();
        }
    }

    #[test]
    fn whichever_call_of_a_pv_qube_fails_nothing_is_left() {
        let calls: u64 = {
            let (host, config) = pv_host();
            host.create(&config).unwrap();
            host.machine.counts().calls.values().sum()
        };
        assert!(calls > 80, "{calls}");
        for nth in 0..calls {
            let (host, config) = pv_host();
            let before = host.inventory();
            host.machine.fail(None, nth, ErrorKind::Other);
            assert!(host.create(&config).is_err(), "call {nth} of {calls}");
            assert_eq!(host.inventory(), before, "call {nth} of {calls}");
            assert_eq!(host.files(), 0, "call {nth} of {calls}");
        }
    }

    #[test]
    fn a_kernel_of_the_other_kind_alone_is_refused_before_anything_is_made() {
        let (host, config) = pv_host();
        let before = host.inventory();
        for (elf, more, message) in [
            (SyntheticElf::pvh(), "type='pv'", "no PV entry"),
            (SyntheticElf { class: Class::Elf32, ..SyntheticElf::pv() }, "type='pv'", "32 bits"),
            (SyntheticElf { notes: pv_notes_alone(), ..SyntheticElf::pv() }, "", "no PVH entry"),
        ] {
            std::fs::write(&config.kernel, elf.build()).unwrap();
            let more = format!("kernel='{}'\n{more}", config.kernel.display());
            let error = host.create(&host.config_with("other", &more)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert_eq!(host.inventory(), before);
        }
    }

    /// The notes of a PV kernel that cannot be a PVH guest.
    fn pv_notes_alone() -> Vec<u8> {
        let base = 0xffff_ffff_8000_0000_u64;
        [xen_note(1, &(base + 0x10_0080).to_le_bytes()), xen_note(3, &base.to_le_bytes())].concat()
    }

    #[test]
    fn bad_files_are_named_and_leave_nothing() {
        let host = host();
        let before = host.inventory();
        let path = |name: &str| host.folder.path().join(name);
        std::fs::write(path("text"), "this is no kernel").unwrap();
        let whole = std::fs::read(path("kernel")).unwrap();
        std::fs::write(path("cut"), &whole[..whole.len() / 2]).unwrap();
        let large = File::create(path("large")).unwrap();
        large.set_len(600 << 20).unwrap();
        let good = host.config("work");
        for (bad, message) in [
            (QubeConfig { kernel: path("text"), ..good.clone() }, "not a kernel"),
            (QubeConfig { kernel: path("cut"), ..good.clone() }, "cut off"),
            (QubeConfig { kernel: path("none"), ..good.clone() }, "could not be opened"),
            (QubeConfig { ramdisk: Some(path("large")), ..good.clone() }, "does not fit"),
            (QubeConfig { ramdisk: Some(path("none")), ..good.clone() }, "could not be opened"),
            (
                QubeConfig { memory_mib: 1 << 20, max_memory_mib: 1 << 20, ..good.clone() },
                "not enough memory",
            ),
        ] {
            let text = host.create(&bad).unwrap_err().to_string();
            assert!(text.contains(message) && !text.contains('\n'), "{text}");
            assert_eq!(host.inventory(), before);
        }
    }

    #[test]
    fn dom0_is_left_alone_and_foreign_devices_to_their_toolstack() {
        let host = host();
        let qube = host.create(&host.config("work")).unwrap();
        let vfb = format!("{}/device/vfb/0", store::libxl_path(qube.info.domid));
        host.qubes.store.write(xen::Transaction::NONE, &vfb, b"").unwrap();
        let error = host.qubes.destroy(&qube).unwrap_err();
        assert!(error.to_string().contains("vfb"), "{error}");
        let dom0 = Qube { info: xen::DomainInfo { domid: DomId::DOM0, ..qube.info.clone() }, name: None };
        assert!(matches!(host.qubes.destroy(&dom0), Err(QubeError::Dom0(_))));
        assert!(matches!(host.qubes.pause(&dom0), Err(QubeError::Dom0(_))));
    }
}
