//! Creating a qube: from its specification to a paused domain that every toolstack knows.

use crate::boot::{self, BuildError, Payload, Plan, PlanError};
use crate::image::{ImageError, Kernel, MappedFile};
use crate::qubes::{Qube, QubeError, Qubes};
use crate::store::{self, Identity};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use uuid::Uuid;
use xen::{DomId, ForeignMemory};

/// What a qube is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Specification {
    /// Its name: unique on this host.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Memory at the start, in KiB.
    pub memory_kib: u64,
    /// The most memory that it may have later, in KiB.
    pub max_memory_kib: u64,
    /// vCPUs at the start.
    pub vcpus: u32,
    /// The most vCPUs that it may have later.
    pub max_vcpus: u32,
    /// The kernel: a bzImage, or an ELF file, packed or not.
    pub kernel: PathBuf,
    /// The initrd.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The configuration in libxl's JSON, to be stored for `xl list -l` and its like.
    pub stored: String,
}

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
    /// A file could not be opened.
    #[error("{path}: the {what} could not be opened: {source}")]
    Open {
        /// Which.
        path: PathBuf,
        /// What it is for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
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
    /// The domain could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The domain could not be recorded.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

fn open(path: &Path, what: &'static str) -> Result<File, CreateError> {
    File::open(path).map_err(|source| CreateError::Open { path: path.to_owned(), what, source })
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
        let _ = self.qubes.end(self.domid, self.uuid);
    }
}

impl Qubes {
    /// Creates a qube, paused.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(
        &self,
        specification: &Specification,
        foreign: &dyn ForeignMemory,
    ) -> Result<Qube, CreateError> {
        let Specification { name, uuid, kernel: kernel_path, .. } = specification;
        let file = MappedFile::open(kernel_path).map_err(|source| CreateError::Open {
            path: kernel_path.clone(),
            what: "kernel",
            source,
        })?;
        let kernel = Kernel::open(&file)
            .map_err(|source| CreateError::Kernel { path: kernel_path.clone(), source })?;
        let initrd = match &specification.initrd {
            None => None,
            Some(path) => Some((open(path, "initrd")?, path.clone())),
        };
        let initrd_len = match &initrd {
            None => None,
            Some((file, path)) => Some(
                file.metadata()
                    .map_err(|source| CreateError::Open { path: path.clone(), what: "initrd", source })?
                    .len(),
            ),
        };
        let plan = Plan::new(&boot::Request {
            memory_kib: specification.memory_kib,
            max_memory_kib: specification.max_memory_kib,
            vcpus: specification.vcpus,
            max_vcpus: specification.max_vcpus,
            cmdline: &specification.cmdline,
            kernel: kernel.footprint(),
            initrd: initrd_len,
        })?;

        for other in self.list()? {
            let domid = other.info.domid;
            if other.name.as_ref() == Some(name) {
                return Err(CreateError::NameTaken { name: name.clone(), domid });
            }
            if other.uuid() == *uuid {
                return Err(CreateError::UuidTaken { uuid: *uuid, domid });
            }
        }

        let daemons = (self.daemon_domid("xenstored")?, self.daemon_domid("xenconsoled")?);
        let payload = Payload { kernel: (kernel, kernel_path.clone()), initrd };
        let built = boot::build(&plan, *uuid.as_bytes(), payload, daemons, &*self.control, foreign)?;
        let unfinished = Unfinished { qubes: self, domid: built.domid, uuid: *uuid };

        let identity = Identity { name, uuid: *uuid, start: SystemTime::now(), console_domid: daemons.1 };
        store::write(&*self.store, &store::records(&identity, &plan, &built))?;
        self.userdata.write(built.domid, *uuid, &specification.stored)?;
        self.store.introduce(built.domid, boot::SpecialPage::Xenstore.gfn(), built.store_port)?;

        let info = self.control.domain_info(built.domid)?;
        std::mem::forget(unfinished);
        Ok(Qube { info, name: Some(name.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UserData;
    use crate::image::Codec;
    use crate::image::synthetic::{SyntheticElf, packed_bzimage};
    use xen::mock::Machine;
    use xen::{ErrorKind, Platform};

    struct Host {
        machine: Machine,
        folder: tempfile::TempDir,
        qubes: Qubes,
        foreign: std::sync::Arc<dyn ForeignMemory>,
    }

    fn host() -> Host {
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
        fn specification(&self, name: &str) -> Specification {
            Specification {
                name: name.to_owned(),
                uuid: Uuid::new_v4(),
                memory_kib: 512 << 10,
                max_memory_kib: 512 << 10,
                vcpus: 1,
                max_vcpus: 1,
                kernel: self.folder.path().join("kernel"),
                initrd: Some(self.folder.path().join("initrd")),
                cmdline: "console=hvc0".to_owned(),
                stored: "{}".to_owned(),
            }
        }

        fn create(&self, specification: &Specification) -> Result<Qube, CreateError> {
            self.qubes.create(specification, &*self.foreign)
        }

        fn files(&self) -> usize {
            std::fs::read_dir(self.folder.path().join("userdata")).unwrap().count()
        }

        /// All that exists but dom0's empty `backend` folder, which stays, as with `xl`.
        fn inventory(&self) -> Vec<String> {
            let mut inventory = self.machine.inventory();
            inventory.retain(|line| !line.starts_with("/local/domain/0/backend = "));
            inventory
        }
    }

    #[test]
    fn nxl_create_of_512_mib_takes_at_most_60_hypercalls_and_3_transactions() {
        let host = host();
        let qube = host.create(&host.specification("work")).unwrap();
        host.qubes.unpause(&qube).unwrap();
        let counts = host.machine.counts();
        assert!(counts.hypercalls <= 60, "{} hypercalls: {:?}", counts.hypercalls, counts.calls);
        assert!(counts.xenstore_transactions() <= 3);
        // What it is today, so that a change is noticed.
        assert_eq!((counts.hypercalls, counts.xenstore_transactions()), (34, 1), "{:?}", counts.calls);
    }

    #[test]
    fn what_was_created_is_found_and_destroyed_without_a_trace() {
        let host = host();
        let before = host.inventory();
        let qube = host.create(&host.specification("work")).unwrap();
        assert_eq!(host.qubes.find("work").unwrap().info, qube.info);
        assert_eq!(host.qubes.find(&qube.info.domid.to_string()).unwrap().name.as_deref(), Some("work"));
        assert_eq!(host.qubes.stored_config(&qube).unwrap().as_deref(), Some("{}"));
        host.qubes.destroy(&qube).unwrap();
        assert_eq!(host.inventory(), before);
        assert_eq!(host.files(), 0);
        assert!(matches!(host.qubes.find("work"), Err(QubeError::NotFound(_))));
    }

    #[test]
    fn a_name_or_uuid_that_is_taken_is_refused() {
        let host = host();
        let specification = host.specification("work");
        host.create(&specification).unwrap();
        let before = host.inventory();
        let error = host.create(&host.specification("work")).unwrap_err();
        assert!(matches!(error, CreateError::NameTaken { .. }), "{error}");
        let error = host.create(&Specification { name: "other".into(), ..specification }).unwrap_err();
        assert!(matches!(error, CreateError::UuidTaken { .. }), "{error}");
        assert_eq!(host.inventory(), before);
    }

    #[test]
    fn whichever_call_fails_nothing_is_left() {
        let calls: u64 = {
            let host = host();
            host.create(&host.specification("work")).unwrap();
            host.machine.counts().calls.values().sum()
        };
        assert!(calls > 100);
        for nth in 0..calls {
            let host = host();
            let before = host.inventory();
            host.machine.fail(None, nth, ErrorKind::Other);
            let result = host.create(&host.specification("work"));
            assert!(result.is_err(), "call {nth} of {calls}");
            assert_eq!(host.inventory(), before, "call {nth} of {calls}");
            assert_eq!(host.files(), 0, "call {nth} of {calls}");
        }
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
        let good = host.specification("work");
        for (bad, message) in [
            (Specification { kernel: path("text"), ..good.clone() }, "not a kernel"),
            (Specification { kernel: path("cut"), ..good.clone() }, "cut off"),
            (Specification { kernel: path("none"), ..good.clone() }, "could not be opened"),
            (Specification { initrd: Some(path("large")), ..good.clone() }, "does not fit"),
            (Specification { initrd: Some(path("none")), ..good.clone() }, "could not be opened"),
            (
                Specification { memory_kib: 1 << 30, max_memory_kib: 1 << 30, ..good.clone() },
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
        let qube = host.create(&host.specification("work")).unwrap();
        let vbd = format!("{}/device/vbd/51712", store::libxl_path(qube.info.domid));
        host.qubes.store.write(xen::Transaction::NONE, &vbd, b"").unwrap();
        let error = host.qubes.destroy(&qube).unwrap_err();
        assert!(error.to_string().contains("vbd"), "{error}");
        let dom0 = Qube { info: xen::DomainInfo { domid: DomId::DOM0, ..qube.info.clone() }, name: None };
        assert!(matches!(host.qubes.destroy(&dom0), Err(QubeError::Dom0(_))));
        assert!(matches!(host.qubes.pause(&dom0), Err(QubeError::Dom0(_))));
    }
}
