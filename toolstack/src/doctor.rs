//! What programs that were killed have left behind, and how it goes.
//!
//! Nothing is taken for a leftover because of its looks. A domain is half made when whoever made it noted so and holds
//! that note no longer (the kernel gives a dead program's locks back). A record or a file is left over when it is of a
//! domain that Xen does not know: they are read first and the domains are listed afterwards, so that none is missed
//! that is just being made.

use crate::cache::CacheError;
use crate::pciback;
use crate::qubes::{QubeError, Qubes};
use crate::store::{self, home, libxl_path, vm_path};
use crate::userdata::{self, Beginning};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use uuid::Uuid;
use xen::{DomId, DomainInfo, Transaction};

/// Something that nobody will take away any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leftover {
    /// A domain that was not finished; without an id when it was not even begun.
    Domain {
        /// The UUID that it was to have.
        uuid: Uuid,
        /// Its id.
        domid: Option<DomId>,
    },
    /// Records in xenstore of a domain that is gone.
    Records {
        /// The node, with all below it.
        path: String,
    },
    /// A file of a domain that is gone.
    File {
        /// Which.
        path: PathBuf,
    },
    /// A file in the kernel cache that is no kernel.
    Cache {
        /// Which.
        path: PathBuf,
    },
}

impl Leftover {
    /// One word for what it is: `domain`, `records`, `file`, `cache`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Domain { .. } => "domain",
            Self::Records { .. } => "records",
            Self::File { .. } => "file",
            Self::Cache { .. } => "cache",
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain { uuid, domid: Some(domid) } => {
                write!(f, "domain {domid} (UUID {uuid}) was never finished: who made it is dead")
            }
            Self::Domain { uuid, domid: None } => {
                write!(f, "a domain with UUID {uuid} was never made: who was about to is dead")
            }
            Self::Records { path } => write!(f, "xenstore: {path} is of a domain that is gone"),
            Self::File { path } => write!(f, "{} is of a domain that is gone", path.display()),
            Self::Cache { path } => write!(f, "{} is half a kernel", path.display()),
        }
    }
}

/// Why the host could not be examined or repaired.
#[derive(Debug, thiserror::Error)]
pub enum DoctorError {
    /// Something of a domain.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// The kernel cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// A node that is of one domain.
struct Owned {
    path: String,
    owner: Owner,
}

enum Owner {
    Domain(DomId),
    Uuid(Uuid),
}

impl Qubes {
    /// Everything on this host that was left over. Nothing is changed.
    ///
    /// # Errors
    /// See [`DoctorError`].
    pub fn leftovers(&self) -> Result<Vec<Leftover>, DoctorError> {
        let begun = self.userdata.begun()?;
        let files = self.userdata.files()?;
        let nodes = self.owned_nodes()?;
        let domains = self.control.domains()?;

        let mut found: Vec<Leftover> = Vec::new();
        for (uuid, _) in &begun {
            let domain = domains.iter().find(|domain| is_half_made(domain, *uuid));
            found.push(Leftover::Domain { uuid: *uuid, domid: domain.map(|domain| domain.domid) });
        }

        let mut alive: BTreeSet<DomId> = domains.iter().map(|domain| domain.domid).collect();
        // Where this runs, whatever the hypervisor lists.
        alive.insert(DomId::DOM0);
        let mut uuids: BTreeSet<Uuid> = domains.iter().map(|domain| Uuid::from_bytes(domain.uuid)).collect();
        // A domain that was kept under another name has its records under another UUID than its own.
        for domid in &alive {
            let vm = self.read(&format!("{}/vm", home(*domid)))?;
            uuids.extend(vm.and_then(|vm| Uuid::parse_str(vm.strip_prefix("/vm/")?).ok()));
        }
        for Owned { path, owner } in nodes {
            let left = match owner {
                Owner::Domain(domid) => !alive.contains(&domid),
                Owner::Uuid(uuid) => !uuids.contains(&uuid),
            };
            if left {
                found.push(Leftover::Records { path });
            }
        }
        for (domid, uuid, path) in files {
            let lives = |domain: &DomainInfo| domain.domid == domid && domain.uuid == *uuid.as_bytes();
            if domid != DomId::DOM0 && !domains.iter().any(lives) {
                found.push(Leftover::File { path });
            }
        }
        if let Some(kernels) = &self.kernels {
            found.extend(kernels.leftovers()?.into_iter().map(|path| Leftover::Cache { path }));
        }
        Ok(found)
    }

    /// The topmost nodes that are of one domain each.
    fn owned_nodes(&self) -> Result<Vec<Owned>, xen::Error> {
        let mut nodes = Vec::new();
        for name in self.directory("/local/domain")? {
            let Ok(domid) = name.parse().map(DomId) else { continue };
            nodes.push(Owned { path: home(domid), owner: Owner::Domain(domid) });
            // The halves of other domains' devices.
            let backends = format!("{}/backend", home(domid));
            for kind in self.directory(&backends)? {
                for name in self.directory(&format!("{backends}/{kind}"))? {
                    let Ok(frontend) = name.parse().map(DomId) else { continue };
                    let path = format!("{backends}/{kind}/{name}");
                    nodes.push(Owned { path, owner: Owner::Domain(frontend) });
                }
            }
        }
        for name in self.directory("/libxl")? {
            let Ok(domid) = name.parse().map(DomId) else { continue };
            nodes.push(Owned { path: libxl_path(domid), owner: Owner::Domain(domid) });
        }
        for (_, domid, path) in pciback::claims(self)? {
            nodes.push(Owned { path, owner: Owner::Domain(domid) });
        }
        for name in self.directory("/vm")? {
            let Ok(uuid) = Uuid::parse_str(&name) else { continue };
            nodes.push(Owned { path: vm_path(uuid), owner: Owner::Uuid(uuid) });
        }
        Ok(nodes)
    }

    /// Takes a leftover away; one that is gone by now is no error.
    ///
    /// # Errors
    /// See [`DoctorError`].
    pub fn repair(&self, leftover: &Leftover) -> Result<(), DoctorError> {
        match leftover {
            Leftover::Domain { uuid, .. } => Ok(self.end_unfinished(*uuid)?),
            Leftover::Records { path } => Ok(self.remove_records(path)?),
            Leftover::File { path } => Ok(userdata::remove_file(path)?),
            Leftover::Cache { .. } => {
                // All at once, and only what is still left over; kernels stay, however large they are.
                if let Some(kernels) = &self.kernels {
                    kernels.prune(Some(u64::MAX))?;
                }
                Ok(())
            }
        }
    }

    /// Ends the domain of that UUID if whoever made it died over it.
    pub(crate) fn end_unfinished(&self, uuid: Uuid) -> Result<(), QubeError> {
        for (begun, note) in self.userdata.begun()? {
            if begun == uuid {
                self.end_begun(uuid, &note)?;
            }
        }
        Ok(())
    }

    fn end_begun(&self, uuid: Uuid, note: &Beginning) -> Result<(), QubeError> {
        if let Some(domain) = self.control.domains()?.iter().find(|domain| is_half_made(domain, uuid)) {
            self.end_half_made(domain.domid, uuid, &self.devices(domain.domid)?.managed)?;
        }
        note.end()
    }

    /// Removes a node, and the folder that it was the last in.
    fn remove_records(&self, path: &str) -> Result<(), xen::Error> {
        let store = &*self.store;
        xen::transaction(store, |tx: Transaction| {
            store::remove_if_there(store, tx, path)?;
            let mut folder = path;
            // `/local/domain`, `/vm` and `/libxl` stay; the folders of backends and of PCI devices go with their last.
            while let Some((parent, _)) = folder.rsplit_once('/')
                && (parent.contains("/backend") || parent.starts_with("/libxl/pci"))
                && store::directory_if_there(store, tx, parent)?.is_some_and(|names| names.is_empty())
            {
                store::remove_if_there(store, tx, parent)?;
                folder = parent;
            }
            Ok(())
        })
    }
}

/// Whether a domain that was begun under this UUID is one that was not finished. One that ran was whole, or somebody made
/// it so.
fn is_half_made(domain: &DomainInfo, uuid: Uuid) -> bool {
    domain.uuid == *uuid.as_bytes() && domain.paused && domain.cpu_time == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::tests::{Host, host, next_program};

    /// What came of it, unless the machine killed it.
    fn killed<T>(what: impl FnOnce() -> T) -> std::thread::Result<T> {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(what))
    }

    fn repair(host: &Host) {
        for leftover in host.qubes.leftovers().unwrap() {
            host.qubes.repair(&leftover).unwrap();
        }
    }

    /// All but the folder that other toolstacks leave, too.
    fn inventory(host: &Host) -> Vec<String> {
        let mut inventory = host.inventory();
        inventory.retain(|line| !line.starts_with("/libxl = ") && !line.starts_with("/vm = "));
        inventory
    }

    #[test]
    fn killed_at_whichever_call_of_create_the_doctor_takes_away_what_is_left() {
        let calls: u64 = {
            let host = host();
            host.qubes.create(&host.config_with("work", ""), true, &*host.foreign).unwrap();
            host.machine.counts().calls.values().sum()
        };
        let mut found = 0;
        for nth in 0..calls {
            let host = host();
            let before = inventory(&host);
            let config = host.config_with("work", "");
            host.machine.kill_after(nth);
            killed(|| host.qubes.create(&config, true, &*host.foreign)).unwrap_err();
            let host = next_program(host);
            let left = inventory(&host);
            found += usize::from(left != before);
            repair(&host);
            // Of the end of one that was not introduced, xenconsoled would not hear.
            let recorded = left.iter().any(|line| line.starts_with("/local/domain/1/console/ring-ref"));
            let introduced = host.machine.counts().calls.contains_key("xs_introduce_domain");
            assert_eq!(introduced, recorded, "killed after {nth} of {calls} calls");
            assert_eq!(host.qubes.leftovers().unwrap(), [], "killed after {nth} of {calls} calls");
            assert_eq!(inventory(&host), before, "killed after {nth} of {calls} calls");
            assert_eq!(host.files(), 0, "killed after {nth} of {calls} calls");
        }
        assert!(found > 80, "something was left {found} times only: they were not killed");
    }

    #[test]
    fn killed_at_whichever_call_of_destroy_the_doctor_takes_away_what_is_left() {
        for nth in 0.. {
            let host = host();
            let before = inventory(&host);
            let qube = host.qubes.create(&host.config_with("work", ""), true, &*host.foreign).unwrap();
            host.machine.kill_after(nth);
            let done = killed(|| host.qubes.destroy(&qube)).is_ok();
            let host = next_program(host);
            repair(&host);
            // Either nothing had begun, or all of it is gone.
            if let Ok(qube) = host.qubes.find("work") {
                host.qubes.destroy(&qube).unwrap();
            }
            assert_eq!(host.qubes.leftovers().unwrap(), [], "killed after {nth} calls");
            assert_eq!(inventory(&host), before, "killed after {nth} calls");
            assert_eq!(host.files(), 0, "killed after {nth} calls");
            if done {
                assert!(nth > 5, "{nth} calls");
                return;
            }
        }
    }

    #[test]
    fn what_is_alive_is_left_alone() {
        let host = host();
        let qube = host.qubes.create(&host.config_with("work", ""), true, &*host.foreign).unwrap();
        assert_eq!(host.qubes.leftovers().unwrap(), []);
        // Being made by somebody who lives.
        let making = host.qubes.userdata.begin(Uuid::from_u128(5)).unwrap();
        assert_eq!(host.qubes.leftovers().unwrap(), []);
        drop(making);
        assert_eq!(
            host.qubes.leftovers().unwrap(),
            [Leftover::Domain { uuid: Uuid::from_u128(5), domid: None }]
        );
        repair(&host);
        // Finished, whatever a note says, as it runs.
        host.qubes.unpause(&qube).unwrap();
        drop(host.qubes.userdata.begin(qube.uuid()).unwrap());
        repair(&host);
        assert_eq!(host.qubes.leftovers().unwrap(), []);
        assert_eq!(host.qubes.find("work").unwrap().info.domid, qube.info.domid);
        assert_eq!(host.files(), 2);
    }

    #[test]
    fn records_and_files_of_a_domain_that_is_gone_are_found_by_what_they_are() {
        let host = host();
        let before = inventory(&host);
        let qube = host.qubes.create(&host.config_with("work", ""), true, &*host.foreign).unwrap();
        let (domid, uuid) = (qube.info.domid, qube.uuid());
        host.qubes.control.destroy(domid).unwrap();
        let found = host.qubes.leftovers().unwrap();
        let count = |kind| found.iter().filter(|leftover| leftover.kind() == kind).count();
        assert_eq!((count("records"), count("file"), found.len()), (4, 2, 6), "{found:?}");
        assert!(found.contains(&Leftover::Records { path: vm_path(uuid) }));
        assert!(found.iter().all(|leftover| !leftover.to_string().contains('\n')));
        repair(&host);
        assert_eq!((inventory(&host), host.files()), (before, 0));
    }
}
