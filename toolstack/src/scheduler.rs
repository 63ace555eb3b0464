//! What the credit2 scheduler gives each domain, and the CPU pools that it does so in.

use crate::qubes::{Qube, QubeError, Qubes};
use xen::{CpuPool, Credit2};

/// credit2's number (`XEN_SCHEDULER_CREDIT2`, xen/include/public/domctl.h).
const CREDIT2: u32 = 6;

/// Why the scheduler could not be asked or told something.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// No pool of that name or number.
    #[error("there is no CPU pool {0}: `xl cpupool-list` lists them")]
    NoPool(String),
    /// The pool has another scheduler.
    #[error("CPU pool {pool} has the scheduler {scheduler}, not credit2")]
    OtherScheduler {
        /// Which pool.
        pool: u32,
        /// What it has.
        scheduler: &'static str,
    },
    /// A weight that there is none of.
    #[error("the weight is 1 to 65535, not {0}")]
    Weight(u32),
    /// A cap beyond what the vCPUs could use.
    #[error("the cap is 0 to {most} for a domain with that many vCPUs (100 for each), not {given}")]
    Cap {
        /// The most.
        most: u32,
        /// What was given.
        given: u32,
    },
    /// A rate limit that Xen does not take.
    #[error("the rate limit is 0, or 100 to 500000 microseconds, not {0}")]
    RateLimit(u32),
    /// The domain could not be found or handled.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

impl Qubes {
    /// The name of a CPU pool, as `xl cpupool-create` gave it.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn cpu_pool_name(&self, pool: u32) -> Result<String, SchedulerError> {
        let name = self.read(&format!("/local/pool/{pool}/name"))?;
        Ok(name.unwrap_or_else(|| format!("Pool-{pool}")))
    }

    /// The CPU pools that are under credit2, or the one of that name or number.
    ///
    /// # Errors
    /// [`SchedulerError::NoPool`], or what Xen or xenstored says.
    pub fn credit2_pools(&self, which: Option<&str>) -> Result<Vec<CpuPool>, SchedulerError> {
        let mut pools = self.control.cpu_pools()?;
        if let Some(which) = which {
            pools.retain(|pool| match self.cpu_pool_name(pool.id) {
                Ok(name) => name == which || which.parse() == Ok(pool.id),
                Err(_) => false,
            });
            if pools.is_empty() {
                return Err(SchedulerError::NoPool(which.to_owned()));
            }
        }
        pools.retain(|pool| pool.scheduler == CREDIT2);
        Ok(pools)
    }

    /// The part that a domain has under credit2.
    ///
    /// # Errors
    /// [`SchedulerError::OtherScheduler`], or what Xen says.
    pub fn credit2(&self, qube: &Qube) -> Result<Credit2, SchedulerError> {
        // Another scheduler would answer with numbers of its own, which have the same shape.
        let id = qube.info.cpupool;
        let pools = self.control.cpu_pools()?;
        if let Some(pool) = pools.iter().find(|pool| pool.id == id && pool.scheduler != CREDIT2) {
            let scheduler = xen::scheduler_name(pool.scheduler);
            return Err(SchedulerError::OtherScheduler { pool: id, scheduler });
        }
        Ok(self.control.credit2(qube.info.domid)?)
    }

    /// Gives a domain another part; what is `None` stays as it is.
    ///
    /// # Errors
    /// [`SchedulerError::Weight`], [`SchedulerError::Cap`], [`SchedulerError::OtherScheduler`], or what Xen says.
    pub fn set_credit2(
        &self,
        qube: &Qube,
        weight: Option<u32>,
        cap: Option<u32>,
    ) -> Result<(), SchedulerError> {
        let mut part = self.credit2(qube)?;
        if let Some(weight) = weight {
            let narrow = u16::try_from(weight).ok().filter(|weight| *weight > 0);
            part.weight = narrow.ok_or(SchedulerError::Weight(weight))?;
        }
        if let Some(cap) = cap {
            let most = qube.info.max_vcpu_id.map_or(0, |last| last.saturating_add(1).saturating_mul(100));
            let narrow = u16::try_from(cap).ok().filter(|_| cap <= most);
            part.cap = narrow.ok_or(SchedulerError::Cap { most, given: cap })?;
        }
        Ok(self.control.set_credit2(qube.info.domid, part)?)
    }

    /// Sets how long a vCPU runs undisturbed in the pools, in microseconds.
    ///
    /// # Errors
    /// [`SchedulerError::RateLimit`], or what Xen says.
    pub fn set_rate_limit(&self, pools: &[CpuPool], microseconds: u32) -> Result<(), SchedulerError> {
        if microseconds != 0 && !(100..=500_000).contains(&microseconds) {
            return Err(SchedulerError::RateLimit(microseconds));
        }
        for pool in pools {
            self.control.set_credit2_rate_limit(pool.id, microseconds)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::tests::host;

    #[test]
    fn a_domains_part_is_set_within_its_bounds() {
        let host = host();
        let qube = host.qubes.create(&host.config_with("work", "vcpus=2"), false, &*host.foreign).unwrap();
        host.qubes.set_credit2(&qube, Some(512), None).unwrap();
        host.machine.reset_counts();
        host.qubes.set_credit2(&qube, None, Some(150)).unwrap();
        // The pools, the part as it is, and as it will be.
        assert_eq!(host.machine.counts().hypercalls, 4);
        assert_eq!(host.qubes.credit2(&qube).unwrap(), Credit2 { weight: 512, cap: 150 });
        for (weight, cap) in [(Some(0), None), (Some(65_536), None), (None, Some(201))] {
            assert!(host.qubes.set_credit2(&qube, weight, cap).is_err(), "{weight:?} {cap:?}");
        }
    }

    #[test]
    fn a_pool_is_found_by_its_name_and_number() {
        let host = host();
        let ids =
            |which| host.qubes.credit2_pools(which).unwrap().iter().map(|pool| pool.id).collect::<Vec<_>>();
        assert_eq!((ids(None), ids(Some("0")), ids(Some("Pool-0"))), (vec![0], vec![0], vec![0]));
        let error = host.qubes.credit2_pools(Some("other")).unwrap_err();
        assert!(matches!(error, SchedulerError::NoPool(_)), "{error}");
        let pools = host.qubes.credit2_pools(None).unwrap();
        host.qubes.set_rate_limit(&pools, 2_000).unwrap();
        assert_eq!(host.qubes.control().credit2_rate_limit(0).unwrap(), 2_000);
        assert!(matches!(host.qubes.set_rate_limit(&pools, 50), Err(SchedulerError::RateLimit(50))));
    }
}
