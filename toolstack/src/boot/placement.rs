//! Where a qube's vCPUs run, and how much of the CPUs they get.

use xen::{CpuSet, CpuShare, DomId, DomainControl};

/// A scheduler under which each domain has a part of the CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShareScheduler {
    /// credit
    Credit,
    /// credit2, Xen's default
    Credit2,
}

/// What a qube is to have of its pool's CPUs; what is `None` stays as the scheduler has it for a new domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// The pool's scheduler.
    pub scheduler: ShareScheduler,
    /// Relative to the other domains': 1 to 65,535.
    pub weight: Option<u16>,
    /// The most it may use, in per cent of one CPU; 0 for no limit.
    pub cap: Option<u16>,
}

/// Where a qube's vCPUs run, and how much of the CPUs they get. By default anywhere in the first pool, and as much as any
/// other qube; that takes no hypercall.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Placement {
    /// The pool of CPUs, by number.
    pub pool: u32,
    /// By vCPU: the CPUs that it may run on. A vCPU that is not there may run on all of the pool's.
    pub hard: Vec<CpuSet>,
    /// By vCPU: the CPUs that it would rather run on.
    pub soft: Vec<CpuSet>,
    /// How much it gets, where that is not what any qube gets.
    pub share: Option<Share>,
}

impl Placement {
    /// Tells Xen of all but the pool, which a domain has from its beginning. Its vCPUs are there.
    pub(super) fn apply(&self, domid: DomId, control: &dyn DomainControl) -> Result<(), xen::Error> {
        for vcpu in 0..self.hard.len().max(self.soft.len()) {
            let (hard, soft) = (self.hard.get(vcpu), self.soft.get(vcpu));
            // Not more vCPUs than a domain can have.
            control.set_vcpu_affinity(domid, vcpu as u32, hard, soft, false)?;
        }
        let Some(Share { scheduler, weight, cap }) = self.share else { return Ok(()) };
        let changed =
            |now: CpuShare| CpuShare { weight: weight.unwrap_or(now.weight), cap: cap.unwrap_or(now.cap) };
        match scheduler {
            ShareScheduler::Credit => control.set_credit(domid, changed(control.credit(domid)?)),
            ShareScheduler::Credit2 => control.set_credit2(domid, changed(control.credit2(domid)?)),
        }
    }
}
