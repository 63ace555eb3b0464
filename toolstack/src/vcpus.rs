//! The vCPUs of a domain: where they are, where they may be, and how many of them the guest is to use.

use crate::config::{self, CpusError, HostCpus};
use crate::qubes::{Qube, QubeError, Qubes};
use crate::store::home;
use xen::{Affinity, CpuSet, VcpuInfo};

/// Why vCPUs could not be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// What names no CPUs of this host.
    #[error(transparent)]
    Cpus(#[from] CpusError),
    /// More than the domain was made with, or none.
    #[error("domain {domid} can have 1 to {most} vCPUs, not {given} (maxvcpus is set when it is created)", domid = domid.0)]
    Count {
        /// Which domain.
        domid: xen::DomId,
        /// How many it can have.
        most: u32,
        /// How many were asked for.
        given: u32,
    },
    /// More than the host has CPUs.
    #[error("this host has {cpus} CPUs, and {given} vCPUs are asked for; --ignore-host lets them")]
    Overcommitted {
        /// The host's CPUs.
        cpus: u32,
        /// How many were asked for.
        given: u32,
    },
    /// The domain could not be found or handled.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// A vCPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vcpu {
    /// Its number.
    pub number: u32,
    /// What Xen says of it.
    pub info: VcpuInfo,
    /// Where it may run.
    pub affinity: Affinity,
}

impl Qubes {
    /// The vCPUs of a domain, by number: two hypercalls each.
    ///
    /// # Errors
    /// What Xen says.
    pub fn vcpus(&self, qube: &Qube) -> Result<Vec<Vcpu>, VcpuError> {
        let domid = qube.info.domid;
        (0..vcpu_count(qube))
            .map(|number| {
                let info = self.control.vcpu(domid, number)?;
                Ok(Vcpu { number, info, affinity: self.control.vcpu_affinity(domid, number)? })
            })
            .collect()
    }

    /// How many CPUs a set of this host's CPUs speaks of: one more than the last one's number.
    ///
    /// # Errors
    /// What Xen says.
    pub fn cpu_count(&self) -> Result<u32, VcpuError> {
        Ok(self.control.phys_info()?.max_cpu_id + 1)
    }

    /// CPUs in `xl`'s notation, as in a configuration's `cpus`. What the host has not got does not count.
    ///
    /// # Errors
    /// [`VcpuError::Cpus`], or what Xen says.
    pub fn cpu_set(&self, text: &str) -> Result<CpuSet, VcpuError> {
        let host = HostCpus::of(&*self.control)?;
        Ok(config::cpu_set(text, Some(&host))?.into_iter().collect())
    }

    /// Says where a vCPU, or with `None` each of them, may run; a set that is `None` stays as it is. `force` overrides what
    /// the guest's kernel pinned for a moment.
    ///
    /// # Errors
    /// What Xen says.
    pub fn pin(
        &self,
        qube: &Qube,
        vcpu: Option<u32>,
        hard: Option<&CpuSet>,
        soft: Option<&CpuSet>,
        force: bool,
    ) -> Result<(), VcpuError> {
        let vcpus = vcpu.map_or(0..vcpu_count(qube), |vcpu| vcpu..vcpu + 1);
        for vcpu in vcpus {
            self.control.set_vcpu_affinity(qube.info.domid, vcpu, hard, soft, force)?;
        }
        Ok(())
    }

    /// Asks the guest to use the first `count` of its vCPUs. It may take its time, or not listen at all. With `within_host`
    /// no more than the host has CPUs, or than are in use now.
    ///
    /// # Errors
    /// [`VcpuError::Count`], [`VcpuError::Overcommitted`], or what Xen or xenstored says.
    pub fn set_vcpus(&self, qube: &Qube, count: u32, within_host: bool) -> Result<(), VcpuError> {
        let (domid, most) = (qube.info.domid, vcpu_count(qube));
        if within_host {
            let cpus = self.cpu_count()?;
            if count > qube.info.online_vcpus && count > cpus {
                return Err(VcpuError::Overcommitted { cpus, given: count });
            }
        }
        if !(1..=most).contains(&count) {
            return Err(VcpuError::Count { domid, most, given: count });
        }
        xen::transaction(&*self.store, |tx| {
            (0..most).try_for_each(|vcpu| {
                let path = format!("{}/cpu/{vcpu}/availability", home(domid));
                self.store.write(tx, &path, if vcpu < count { b"online" } else { b"offline" })
            })
        })
        .map_err(|error: xen::Error| error.into())
    }

    /// How many vCPUs the guest is asked to use; `None` where xenstore does not say.
    pub(crate) fn wanted_vcpus(&self, qube: &Qube) -> Result<Option<u32>, xen::Error> {
        let mut wanted = None;
        for vcpu in 0..vcpu_count(qube) {
            match self.read(&format!("{}/cpu/{vcpu}/availability", home(qube.info.domid)))?.as_deref() {
                Some("online") => wanted = Some(wanted.unwrap_or(0) + 1),
                Some(_) => wanted = Some(wanted.unwrap_or(0)),
                None => return Ok(None),
            }
        }
        Ok(wanted)
    }
}

/// How many vCPUs a domain was made with.
fn vcpu_count(qube: &Qube) -> u32 {
    qube.info.max_vcpu_id.map_or(0, |last| last.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::tests::host;

    #[test]
    fn vcpus_take_two_hypercalls_each() {
        let host = host();
        let config = host.config_with("work", "vcpus=2");
        let qube = host.qubes.create(&config, false, &*host.foreign).unwrap();
        host.machine.reset_counts();
        let vcpus = host.qubes.vcpus(&qube).unwrap();
        assert_eq!(vcpus.iter().map(|vcpu| vcpu.number).collect::<Vec<_>>(), [0, 1]);
        assert_eq!((host.machine.counts().hypercalls, host.machine.counts().xenstore_requests()), (4, 0));
    }

    #[test]
    fn cpus_are_those_of_this_host() {
        let host = host();
        let set = |text: &str| host.qubes.cpu_set(text).map(|set| set.display(2).to_string());
        assert_eq!(set("all,^0").unwrap(), "1");
        assert_eq!(set("node:0,^1").unwrap(), "0");
        assert_eq!(set("1-15").unwrap(), "1", "what the host has not got does not count");
        assert!(matches!(set("0x1"), Err(VcpuError::Cpus(CpusError::Range(_)))));
        assert!(matches!(set("7"), Err(VcpuError::Cpus(CpusError::Empty(_)))));
    }

    #[test]
    fn a_pinned_vcpu_stays_where_it_was_put() {
        let host = host();
        let config = host.config_with("work", "vcpus=2");
        let qube = host.qubes.create(&config, false, &*host.foreign).unwrap();
        let (first, second) = (host.qubes.cpu_set("0").unwrap(), host.qubes.cpu_set("1").unwrap());
        host.qubes.pin(&qube, None, Some(&first), None, false).unwrap();
        host.machine.reset_counts();
        host.qubes.pin(&qube, Some(1), None, Some(&second), false).unwrap();
        assert_eq!(host.machine.counts().hypercalls, 1);
        let shown: Vec<String> = host
            .qubes
            .vcpus(&qube)
            .unwrap()
            .iter()
            .map(|vcpu| format!("{} / {}", vcpu.affinity.hard.display(2), vcpu.affinity.soft.display(2)))
            .collect();
        assert_eq!(shown, ["0 / all", "0 / 1"]);
    }

    #[test]
    fn the_guest_is_asked_in_one_transaction_to_use_fewer_vcpus() {
        let host = host();
        let config = host.config_with("work", "vcpus=2\nmaxvcpus=4");
        let qube = host.qubes.create(&config, false, &*host.foreign).unwrap();
        assert_eq!(host.qubes.wanted_vcpus(&qube).unwrap(), Some(2));
        host.machine.reset_counts();
        host.qubes.set_vcpus(&qube, 1, false).unwrap();
        let counts = host.machine.counts();
        assert_eq!((counts.hypercalls, counts.xenstore_transactions(), counts.of("xs_write")), (0, 1, 4));
        assert_eq!(host.qubes.wanted_vcpus(&qube).unwrap(), Some(1));
        for (count, within_host) in [(0, false), (5, false)] {
            let error = host.qubes.set_vcpus(&qube, count, within_host).unwrap_err();
            assert!(matches!(error, VcpuError::Count { most: 4, .. }), "{error}");
        }
        let error = host.qubes.set_vcpus(&qube, 3, true).unwrap_err();
        assert!(matches!(error, VcpuError::Overcommitted { cpus: 2, given: 3 }), "{error}");
        host.qubes.set_vcpus(&qube, 3, false).unwrap();
    }
}
