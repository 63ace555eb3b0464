//! Who runs where and how much: vCPUs, their affinities, the scheduler's parameters, and the host's topology.

use crate::{CpuSet, DomId, Result};
use std::fmt;

/// What Xen says of a vCPU (`XEN_DOMCTL_getvcpuinfo`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuInfo {
    /// The guest uses it.
    pub online: bool,
    /// It waits for an event.
    pub blocked: bool,
    /// It is on a CPU.
    pub running: bool,
    /// CPU time, in nanoseconds.
    pub cpu_time: u64,
    /// The CPU that it is or was on.
    pub cpu: u32,
}

/// Where a vCPU may run and where it would rather run (`XEN_DOMCTL_getvcpuaffinity`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Affinity {
    /// Nowhere else.
    pub hard: CpuSet,
    /// There first.
    pub soft: CpuSet,
}

/// A pool of CPUs with a scheduler of its own (`XEN_SYSCTL_CPUPOOL_OP_INFO`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuPool {
    /// Its number.
    pub id: u32,
    /// Its scheduler (`XEN_SCHEDULER_*`).
    pub scheduler: u32,
    /// Domains in it.
    pub domains: u32,
    /// Its CPUs.
    pub cpus: CpuSet,
}

/// A domain's part of the CPUs under the schedulers credit and credit2 (`xen_domctl_sched_credit`,
/// `xen_domctl_sched_credit2`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuShare {
    /// Relative to the other domains': 1 to 65,535, 256 by default.
    pub weight: u16,
    /// The most it may use, in per cent of one CPU; 0 for no limit.
    pub cap: u16,
}

/// Where a CPU sits (`XEN_SYSCTL_cputopoinfo`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Core {
    /// Its core.
    pub core: u32,
    /// Its socket.
    pub socket: u32,
    /// Its NUMA node.
    pub node: u32,
}

/// A NUMA node (`XEN_SYSCTL_numainfo`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NumaNode {
    /// Memory, in bytes.
    pub size: u64,
    /// Free memory, in bytes.
    pub free: u64,
    /// To each node, in tens of the way to the own memory.
    pub distances: Vec<u32>,
}

/// A PCI device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PciAddress {
    /// Segment (domain).
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31, in the upper five bits; function in the lower three.
    pub devfn: u8,
}

/// Such as `0000:00:1f.2`.
impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus, self.devfn >> 3, self.devfn & 7)
    }
}

impl PciAddress {
    /// As hypercalls have it: segment, bus, device and function in one number.
    pub(crate) fn sbdf(self) -> u32 {
        u32::from(self.segment) << 16 | u32::from(self.bus) << 8 | u32::from(self.devfn)
    }

    /// From the notation of `/sys/bus/pci/devices`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (segment, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let number =
            |text: &str, limit: u16| u16::from_str_radix(text, 16).ok().filter(|number| *number <= limit);
        Some(Self {
            segment: number(segment, u16::MAX)?,
            bus: number(bus, 0xff)? as u8,
            devfn: (number(device, 0x1f)? << 3 | number(function, 7)?) as u8,
        })
    }
}

/// The name of a scheduler's number (`XEN_SCHEDULER_*`, xen/include/public/domctl.h).
#[must_use]
pub fn scheduler_name(scheduler: u32) -> &'static str {
    match scheduler {
        4 => "sedf",
        5 => "credit",
        6 => "credit2",
        7 => "arinc653",
        8 => "rtds",
        9 => "null",
        _ => "unknown",
    }
}

/// What dom0's toolstack may ask the scheduler, and tell it. One method is one hypercall of libxenctrl unless it says
/// otherwise; the number of the host's CPUs, which sets have to be as long as, is asked for once more in a process.
pub trait Scheduling {
    /// What Xen says of a vCPU; [`NotFound`](crate::ErrorKind::NotFound) when the domain has none of that number.
    fn vcpu(&self, domid: DomId, vcpu: u32) -> Result<VcpuInfo>;
    /// Where a vCPU may run.
    fn vcpu_affinity(&self, domid: DomId, vcpu: u32) -> Result<Affinity>;
    /// Says where a vCPU may run; `None` leaves that part as it is. `force` overrides what a kernel pinned for a moment.
    fn set_vcpu_affinity(
        &self,
        domid: DomId,
        vcpu: u32,
        hard: Option<&CpuSet>,
        soft: Option<&CpuSet>,
        force: bool,
    ) -> Result<()>;
    /// The NUMA nodes that a domain's memory comes from.
    fn node_affinity(&self, domid: DomId) -> Result<CpuSet>;
    /// All CPU pools, by number. One hypercall for each, and one more.
    fn cpu_pools(&self) -> Result<Vec<CpuPool>>;
    /// A domain's part under credit; [`Invalid`](crate::ErrorKind::Invalid) when its pool has another scheduler.
    fn credit(&self, domid: DomId) -> Result<CpuShare>;
    /// Gives a domain its part under credit.
    fn set_credit(&self, domid: DomId, part: CpuShare) -> Result<()>;
    /// A domain's part under credit2; [`Invalid`](crate::ErrorKind::Invalid) when its pool has another scheduler.
    fn credit2(&self, domid: DomId) -> Result<CpuShare>;
    /// Gives a domain its part under credit2.
    fn set_credit2(&self, domid: DomId, part: CpuShare) -> Result<()>;
    /// How long credit2 lets a vCPU of the pool run undisturbed, in microseconds.
    fn credit2_rate_limit(&self, pool: u32) -> Result<u32>;
    /// Sets how long credit2 lets a vCPU run undisturbed: 0 for as short as may be, else 100 to 500,000 microseconds.
    fn set_credit2_rate_limit(&self, pool: u32, microseconds: u32) -> Result<()>;
    /// Where each CPU sits, by number; `None` for one that is not on line. Two hypercalls.
    fn cpu_topology(&self) -> Result<Vec<Option<Core>>>;
    /// The NUMA nodes, by number; `None` for one without memory. Two hypercalls.
    fn numa_nodes(&self) -> Result<Vec<Option<NumaNode>>>;
    /// Each PCI device's NUMA node, where Xen knows it. A hypercall for each device that it does not know, and one.
    fn device_nodes(&self, devices: &[PciAddress]) -> Result<Vec<Option<u32>>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_address_is_read_and_written() {
        let address = PciAddress::parse("0000:3a:1f.2").unwrap();
        assert_eq!(address, PciAddress { segment: 0, bus: 0x3a, devfn: 0xfa });
        assert_eq!((address.to_string().as_str(), address.sbdf()), ("0000:3a:1f.2", 0x3afa));
        for bad in ["", "0000:00:20.0", "0000:00:00.8", "00:00.0", "0000:100:00.0", "0000:00:00"] {
            assert_eq!(PciAddress::parse(bad), None, "{bad}");
        }
    }
}
