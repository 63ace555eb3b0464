//! What a scheduler gives each domain, and the CPU pools that it does so in.

use crate::boot::{Placement, Share, ShareScheduler};
use crate::config::QubeConfig;
use crate::qubes::{Qube, QubeError, Qubes};
use std::collections::BTreeSet;
use xen::{CpuPool, CpuSet, CpuShare};

/// The numbers of credit and credit2 (`XEN_SCHEDULER_*`, xen/include/public/domctl.h).
const CREDIT: u32 = 5;
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
    /// The pool's scheduler has neither weight nor cap.
    #[error(
        "CPU pool {pool} has the scheduler {scheduler}: cpu_weight and cap are parameters of credit and credit2"
    )]
    NoShares {
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

    /// The one of that name, or of that number when it is one, as libxl has it.
    fn cpu_pool(&self, pools: Vec<CpuPool>, which: &str) -> Result<CpuPool, SchedulerError> {
        let number = which.bytes().all(|byte| byte.is_ascii_digit()).then(|| which.parse().ok()).flatten();
        for pool in pools {
            if number == Some(pool.id) || number.is_none() && self.cpu_pool_name(pool.id)? == which {
                return Ok(pool);
            }
        }
        Err(SchedulerError::NoPool(which.to_owned()))
    }

    /// Where a qube of that configuration is to run, and how much of the CPUs it gets. Xen is asked only where the
    /// configuration says something of it.
    ///
    /// # Errors
    /// [`SchedulerError::NoPool`], [`SchedulerError::NoShares`], [`SchedulerError::Weight`], [`SchedulerError::Cap`], or
    /// what Xen or xenstored says.
    pub(crate) fn placement(&self, config: &QubeConfig) -> Result<Placement, SchedulerError> {
        let sets = |sets: &[BTreeSet<u32>]| sets.iter().map(|set| set.iter().copied().collect()).collect();
        let (hard, soft): (Vec<CpuSet>, _) = (sets(&config.hard_affinity), sets(&config.soft_affinity));
        let placement = Placement { hard, soft, ..Placement::default() };
        let (weight, cap) = (config.scheduling.weight, config.scheduling.cap);
        if config.pool.is_none() && weight.is_none() && cap.is_none() {
            return Ok(placement);
        }
        let pool = self.cpu_pool(self.control.cpu_pools()?, config.pool.as_deref().unwrap_or("0"))?;
        let placement = Placement { pool: pool.id, ..placement };
        if weight.is_none() && cap.is_none() {
            return Ok(placement);
        }
        let scheduler = match pool.scheduler {
            CREDIT => ShareScheduler::Credit,
            CREDIT2 => ShareScheduler::Credit2,
            other => {
                return Err(SchedulerError::NoShares {
                    pool: pool.id,
                    scheduler: xen::scheduler_name(other),
                });
            }
        };
        let weight = weight.map(checked_weight).transpose()?;
        let cap = cap.map(|cap| checked_cap(cap, config.max_vcpus)).transpose()?;
        Ok(Placement { share: Some(Share { scheduler, weight, cap }), ..placement })
    }

    /// The CPU pools that are under credit2, or the one of that name or number.
    ///
    /// # Errors
    /// [`SchedulerError::NoPool`], or what Xen or xenstored says.
    pub fn credit2_pools(&self, which: Option<&str>) -> Result<Vec<CpuPool>, SchedulerError> {
        let mut pools = self.control.cpu_pools()?;
        if let Some(which) = which {
            pools = vec![self.cpu_pool(pools, which)?];
        }
        pools.retain(|pool| pool.scheduler == CREDIT2);
        Ok(pools)
    }

    /// The part that a domain has under credit2.
    ///
    /// # Errors
    /// [`SchedulerError::OtherScheduler`], or what Xen says.
    pub fn credit2(&self, qube: &Qube) -> Result<CpuShare, SchedulerError> {
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
            part.weight = checked_weight(weight)?;
        }
        if let Some(cap) = cap {
            part.cap = checked_cap(cap, qube.info.max_vcpu_id.map_or(0, |last| last.saturating_add(1)))?;
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

fn checked_weight(weight: u32) -> Result<u16, SchedulerError> {
    u16::try_from(weight).ok().filter(|weight| *weight > 0).ok_or(SchedulerError::Weight(weight))
}

fn checked_cap(cap: u32, vcpus: u32) -> Result<u16, SchedulerError> {
    let most = vcpus.saturating_mul(100);
    u16::try_from(cap).ok().filter(|_| cap <= most).ok_or(SchedulerError::Cap { most, given: cap })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::CreateError;
    use crate::create::tests::{Host, host};
    use xen::ErrorKind;

    #[test]
    fn a_domains_part_is_set_within_its_bounds() {
        let host = host();
        let qube = host.qubes.create(&host.config_with("work", "vcpus=2"), false, &*host.foreign).unwrap();
        host.qubes.set_credit2(&qube, Some(512), None).unwrap();
        host.machine.reset_counts();
        host.qubes.set_credit2(&qube, None, Some(150)).unwrap();
        // The pools, the part as it is, and as it will be.
        assert_eq!(host.machine.counts().hypercalls, 4);
        assert_eq!(host.qubes.credit2(&qube).unwrap(), CpuShare { weight: 512, cap: 150 });
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

    fn create(host: &Host, more: &str) -> Result<Qube, CreateError> {
        host.qubes.create(&host.config_with("work", more), false, &*host.foreign)
    }

    #[test]
    fn a_qube_is_made_where_its_configuration_says_and_with_its_part() {
        let host = host();
        let credit = host.machine.add_cpu_pool(CREDIT);
        let name = format!("/local/pool/{credit}/name");
        host.qubes.store.write(xen::Transaction::NONE, &name, b"slow").unwrap();
        host.machine.reset_counts();
        create(&host, "vcpus=2\nmaxvcpus=3\ncpus=['0','1']\ncpus_soft='1'\ncpu_weight=512\ncap=150").unwrap();
        // Beside what every qube takes: three vCPUs, three questions for pools, the part as it is and as it will be.
        let counts = host.machine.counts();
        assert_eq!(counts.hypercalls, 33 + 3 + 3 + 2, "{:?}", counts.calls);
        let qube = host.qubes.find("work").unwrap();
        let shown = |vcpu: &crate::vcpus::Vcpu| {
            format!("{} / {}", vcpu.affinity.hard.display(2), vcpu.affinity.soft.display(2))
        };
        let shown: Vec<String> = host.qubes.vcpus(&qube).unwrap().iter().map(shown).collect();
        assert_eq!(shown, ["0 / 1", "1 / 1", "all / 1"]);
        assert_eq!(host.qubes.credit2(&qube).unwrap(), CpuShare { weight: 512, cap: 150 });
        host.qubes.destroy(&qube).unwrap();

        let qube = create(&host, "pool='slow'\ncpu_weight=100").unwrap();
        assert_eq!(qube.info.cpupool, credit);
        assert_eq!(host.qubes.control().credit(qube.info.domid).unwrap(), CpuShare { weight: 100, cap: 0 });
        host.qubes.destroy(&qube).unwrap();
        assert_eq!(create(&host, "pool='1'").unwrap().info.cpupool, 1);
    }

    #[test]
    fn what_the_host_cannot_give_is_refused_before_anything_is_made() {
        let host = host();
        host.machine.add_cpu_pool(8);
        let before = host.inventory();
        for (more, expected) in [
            ("pool='other'", "there is no CPU pool other"),
            ("pool='7'", "there is no CPU pool 7"),
            ("pool='1'\ncap=10", "CPU pool 1 has the scheduler rtds"),
            ("cpu_weight=0", "the weight is 1 to 65535, not 0"),
            ("cap=201\nvcpus=2", "the cap is 0 to 200"),
        ] {
            let error = create(&host, more).unwrap_err().to_string();
            assert!(error.contains(expected), "{more}: {error}");
            assert_eq!(host.inventory(), before, "{more}");
        }
        // Nowhere to run: Xen itself says so, and the domain goes.
        let error = create(&host, "cpus='9'").unwrap_err();
        assert!(error.to_string().contains("vCPU 0"), "{error}");
        assert_eq!(host.inventory(), before);
    }

    #[test]
    fn whichever_call_for_the_placement_fails_nothing_is_left() {
        let more = "vcpus=2\ncpus='0'\ncpu_weight=512";
        for call in [
            "xc_cpupool_getinfo",
            "xc_vcpu_setaffinity",
            "xc_sched_credit2_domain_get",
            "xc_sched_credit2_domain_set",
        ] {
            for nth in 0.. {
                let host = host();
                let before = host.inventory();
                host.machine.fail(Some(call), nth, ErrorKind::Other);
                let result = create(&host, more);
                if host.machine.clear_failures() == 1 {
                    assert!(nth > 0, "{call} is not called");
                    break;
                }
                assert!(result.unwrap_err().to_string().contains(call), "{call}");
                assert_eq!(host.inventory(), before, "{call} {nth}");
            }
        }
    }
}
