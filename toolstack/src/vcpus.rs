//! The vCPUs of a domain: where they are, where they may be, and how many of them the guest is to use.

use crate::qubes::{Qube, QubeError, Qubes};
use crate::store::home;
use xen::{Affinity, CpuSet, VcpuInfo};

/// Why vCPUs could not be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// Nothing that names CPUs.
    #[error("{given:?} names no CPUs: CPUs are all, 3, 0-3, ^2, node:1, or several of these with commas")]
    NoCpus {
        /// What was given.
        given: String,
    },
    /// None of them is a CPU of this host.
    #[error("no CPU of this host is in {given:?}: they are 0 to {max_cpu}")]
    NotHere {
        /// What was given.
        given: String,
        /// The host's last.
        max_cpu: u32,
    },
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

    /// CPUs in `xl`'s notation: `all`, numbers, ranges and `node:N`, from left to right, with `^` before what is taken
    /// away. What the host has not got does not count.
    ///
    /// # Errors
    /// [`VcpuError::NoCpus`], [`VcpuError::NotHere`], or what Xen says.
    pub fn cpu_set(&self, text: &str) -> Result<CpuSet, VcpuError> {
        let no_cpus = || VcpuError::NoCpus { given: text.to_owned() };
        let count = self.cpu_count()?;
        let mut set = CpuSet::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (away, part) = part.strip_prefix('^').map_or((false, part), |part| (true, part));
            let nodes = part.strip_prefix("nodes:").or_else(|| part.strip_prefix("node:"));
            let range = nodes.unwrap_or(part);
            let cpus: Vec<u32> = match (range, nodes) {
                ("all", _) if away => return Err(no_cpus()),
                ("all", _) => (0..count).collect(),
                (range, None) => parse_range(range).ok_or_else(no_cpus)?.filter(|cpu| *cpu < count).collect(),
                (range, Some(_)) => {
                    let nodes: CpuSet = parse_range(range).ok_or_else(no_cpus)?.collect();
                    let cores = self.control.cpu_topology()?;
                    let on = |core: &Option<xen::Core>| core.is_some_and(|core| nodes.contains(core.node));
                    (0..).zip(&cores).filter(|(_, core)| on(core)).map(|(cpu, _)| cpu).collect()
                }
            };
            for cpu in cpus {
                if away { set.remove(cpu) } else { set.insert(cpu) }
            }
        }
        if set.is_empty() {
            return Err(VcpuError::NotHere { given: text.to_owned(), max_cpu: count - 1 });
        }
        Ok(set)
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

/// `3` or `0-3`.
fn parse_range(text: &str) -> Option<std::ops::RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    // What is beyond any host's CPUs is not worth being counted through.
    (first <= last && last <= 1 << 20).then_some(first..=last)
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
    fn cpus_are_named_as_xl_names_them() {
        let host = host();
        let set = |text: &str| host.qubes.cpu_set(text).map(|set| set.display(9).to_string());
        assert_eq!(set("all").unwrap(), "0-1");
        assert_eq!(set("0").unwrap(), "0");
        assert_eq!(set("0-1").unwrap(), "0-1");
        assert_eq!(set("all,^0").unwrap(), "1");
        assert_eq!(set("node:0,^1").unwrap(), "0");
        assert_eq!(set("nodes:all").unwrap(), "0-1");
        assert_eq!(set("1-15").unwrap(), "1", "what the host has not got does not count");
        for bad in ["x", "1-", "-1", "2-1", "^all", "node:", "0x1"] {
            assert!(matches!(set(bad), Err(VcpuError::NoCpus { .. })), "{bad}");
        }
        for nowhere in ["", "7", "node:3", "0,^0"] {
            assert!(matches!(set(nowhere), Err(VcpuError::NotHere { max_cpu: 1, .. })), "{nowhere}");
        }
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
