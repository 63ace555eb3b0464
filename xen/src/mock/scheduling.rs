//! Scheduling of the mock: two CPUs on one node, in one pool under credit2 until a test makes others.

use super::State;
use super::control::Control;
use crate::{
    Affinity, Core, CpuPool, CpuSet, CpuShare, DomId, Error, NumaNode, PAGE_SIZE, PciAddress, Result,
    Scheduling, VcpuInfo,
};
use std::collections::BTreeMap;

/// The machine's CPUs.
pub(super) const CPUS: u32 = 2;
/// What credit2 begins with, in microseconds.
const DEFAULT_RATE_LIMIT: u32 = 1_000;
/// The schedulers that give each domain a part.
const CREDIT: u32 = xen_sys::XEN_SCHEDULER_CREDIT;
const CREDIT2: u32 = xen_sys::XEN_SCHEDULER_CREDIT2;

/// The pools, by number.
#[derive(Debug)]
pub(super) struct Pools(BTreeMap<u32, Pool>);

#[derive(Debug)]
struct Pool {
    scheduler: u32,
    rate_limit: u32,
}

impl Default for Pools {
    fn default() -> Self {
        let mut pools = Self(BTreeMap::new());
        pools.add(CREDIT2);
        pools
    }
}

impl Pools {
    pub(super) fn add(&mut self, scheduler: u32) -> u32 {
        let id = self.0.len() as u32;
        self.0.insert(id, Pool { scheduler, rate_limit: DEFAULT_RATE_LIMIT });
        id
    }

    pub(super) fn scheduler(&self, id: u32) -> Option<u32> {
        self.0.get(&id).map(|pool| pool.scheduler)
    }
}

/// What the scheduler knows of a domain.
#[derive(Debug)]
pub(super) struct Part {
    share: CpuShare,
    /// Where it differs from "anywhere".
    affinities: BTreeMap<u32, Affinity>,
}

impl Default for Part {
    fn default() -> Self {
        Self { share: CpuShare { weight: 256, cap: 0 }, affinities: BTreeMap::new() }
    }
}

fn anywhere() -> Affinity {
    Affinity { hard: CpuSet::first(CPUS), soft: CpuSet::first(CPUS) }
}

impl Control {
    fn in_pool<T>(
        &self,
        call: &'static str,
        pool: u32,
        body: impl FnOnce(&mut u32) -> std::result::Result<T, i32>,
    ) -> Result<T> {
        let args = || format!("pool {pool}");
        self.0.enter(call, args)?;
        let mut state = self.0.0.state.lock();
        let limit = state.pools.0.get_mut(&pool).map(|pool| &mut pool.rate_limit);
        let result = limit.map_or(Err(libc::ESRCH), body);
        result.map_err(|errno| Error::errno(call, args(), errno))
    }

    /// A domain's part, when its pool has that scheduler: another has other parameters.
    fn share<T>(
        &self,
        call: &'static str,
        domid: DomId,
        scheduler: u32,
        body: impl FnOnce(&mut CpuShare) -> T,
    ) -> Result<T> {
        let args = || format!("domid {domid}");
        self.0.enter(call, args)?;
        let mut state = self.0.0.state.lock();
        let State { domains, pools, .. } = &mut *state;
        let result = match domains.get_mut(&domid) {
            None => Err(libc::ESRCH),
            Some(domain) if pools.scheduler(domain.cpupool) != Some(scheduler) => Err(libc::EINVAL),
            Some(domain) => Ok(body(&mut domain.scheduling.share)),
        };
        result.map_err(|errno| Error::errno(call, args(), errno))
    }
}

impl Scheduling for Control {
    fn vcpu(&self, domid: DomId, vcpu: u32) -> Result<VcpuInfo> {
        self.on_domain("xc_vcpu_getinfo", domid, &format!("vCPU {vcpu}"), |domain, _| {
            if vcpu >= domain.vcpus {
                return Err(libc::ESRCH);
            }
            let running = domain.pauses == 0;
            Ok(VcpuInfo { online: running, blocked: running, running: false, cpu_time: 0, cpu: vcpu % CPUS })
        })
    }

    fn vcpu_affinity(&self, domid: DomId, vcpu: u32) -> Result<Affinity> {
        self.on_domain("xc_vcpu_getaffinity", domid, &format!("vCPU {vcpu}"), |domain, _| {
            if vcpu >= domain.vcpus {
                return Err(libc::ESRCH);
            }
            Ok(domain.scheduling.affinities.get(&vcpu).cloned().unwrap_or_else(anywhere))
        })
    }

    fn set_vcpu_affinity(
        &self,
        domid: DomId,
        vcpu: u32,
        hard: Option<&CpuSet>,
        soft: Option<&CpuSet>,
        force: bool,
    ) -> Result<()> {
        self.on_domain("xc_vcpu_setaffinity", domid, &format!("vCPU {vcpu}"), |domain, _| {
            if vcpu >= domain.vcpus {
                return Err(libc::ESRCH);
            }
            let here = CpuSet::first(CPUS);
            // Xen takes no set without a CPU of the pool to run on, and nothing that says nothing.
            if hard.is_some_and(|hard| hard.intersection(&here).is_empty())
                || hard.is_none() && soft.is_none() && !force
            {
                return Err(libc::EINVAL);
            }
            let affinity = domain.scheduling.affinities.entry(vcpu).or_insert_with(anywhere);
            if let Some(hard) = hard {
                affinity.hard = hard.intersection(&here);
            }
            if let Some(soft) = soft {
                affinity.soft = soft.clone();
            }
            Ok(())
        })
    }

    fn node_affinity(&self, domid: DomId) -> Result<CpuSet> {
        self.on_domain("xc_domain_node_getaffinity", domid, "", |_, _| Ok(CpuSet::first(1)))
    }

    fn cpu_pools(&self) -> Result<Vec<CpuPool>> {
        let count = self.0.0.state.lock().pools.0.len() as u64;
        self.0.enter_hypercalls("xc_cpupool_getinfo", count + 1, String::new)?;
        let state = self.0.0.state.lock();
        let pool = |(id, pool): (&u32, &Pool)| CpuPool {
            id: *id,
            scheduler: pool.scheduler,
            domains: state.domains.values().filter(|domain| domain.cpupool == *id).count() as u32,
            cpus: CpuSet::first(CPUS),
        };
        Ok(state.pools.0.iter().map(pool).collect())
    }

    fn credit(&self, domid: DomId) -> Result<CpuShare> {
        self.share("xc_sched_credit_domain_get", domid, CREDIT, |share| *share)
    }

    fn set_credit(&self, domid: DomId, part: CpuShare) -> Result<()> {
        self.share("xc_sched_credit_domain_set", domid, CREDIT, |share| *share = part)
    }

    fn credit2(&self, domid: DomId) -> Result<CpuShare> {
        self.share("xc_sched_credit2_domain_get", domid, CREDIT2, |share| *share)
    }

    fn set_credit2(&self, domid: DomId, part: CpuShare) -> Result<()> {
        self.share("xc_sched_credit2_domain_set", domid, CREDIT2, |share| *share = part)
    }

    fn credit2_rate_limit(&self, pool: u32) -> Result<u32> {
        self.in_pool("xc_sched_credit2_params_get", pool, |limit| Ok(*limit))
    }

    fn set_credit2_rate_limit(&self, pool: u32, microseconds: u32) -> Result<()> {
        self.in_pool("xc_sched_credit2_params_set", pool, |limit| {
            if microseconds != 0 && !(100..=500_000).contains(&microseconds) {
                return Err(libc::EINVAL);
            }
            *limit = microseconds;
            Ok(())
        })
    }

    fn cpu_topology(&self) -> Result<Vec<Option<Core>>> {
        self.0.enter_hypercalls("xc_cputopoinfo", 2, String::new)?;
        Ok((0..CPUS).map(|core| Some(Core { core, socket: 0, node: 0 })).collect())
    }

    fn numa_nodes(&self) -> Result<Vec<Option<NumaNode>>> {
        self.0.enter_hypercalls("xc_numainfo", 2, String::new)?;
        let state = self.0.0.state.lock();
        let (size, free) = state.host.bytes(PAGE_SIZE as u64);
        Ok(vec![Some(NumaNode { size, free, distances: vec![10] })])
    }

    fn device_nodes(&self, devices: &[PciAddress]) -> Result<Vec<Option<u32>>> {
        self.0.enter("xc_pcitopoinfo", || format!("{} devices", devices.len()))?;
        Ok(vec![None; devices.len()])
    }
}

#[cfg(test)]
mod tests {
    use crate::mock::Machine;
    use crate::{CpuSet, CreateDomain, DomId, ErrorKind, Platform};

    #[test]
    fn a_vcpu_is_pinned_to_what_there_is() {
        let machine = Machine::new();
        let control = machine.domain(DomId::DOM0).domain_control().unwrap();
        let create = CreateDomain::new(crate::GuestKind::Pvh, [7; 16], 1);
        let domid = control.create_domain(&create).unwrap();
        control.set_max_vcpus(domid, 1).unwrap();
        let set = |cpus: &[u32]| cpus.iter().copied().collect::<CpuSet>();
        control.set_vcpu_affinity(domid, 0, Some(&set(&[1, 7])), None, false).unwrap();
        let affinity = control.vcpu_affinity(domid, 0).unwrap();
        assert_eq!((affinity.hard, affinity.soft), (set(&[1]), set(&[0, 1])));
        let kind = |result: crate::Result<()>| result.err().map(|error| error.kind());
        let nowhere = control.set_vcpu_affinity(domid, 0, Some(&set(&[7])), None, false);
        assert_eq!(kind(nowhere), Some(ErrorKind::Invalid));
        let nothing = control.set_vcpu_affinity(domid, 0, None, None, false);
        assert_eq!(kind(nothing), Some(ErrorKind::Invalid));
        assert_eq!(kind(control.vcpu(domid, 1).map(drop)), Some(ErrorKind::NotFound));
        assert_eq!(kind(control.set_credit2_rate_limit(0, 50)), Some(ErrorKind::Invalid));
    }
}
