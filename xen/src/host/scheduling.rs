//! Scheduling through libxenctrl.
#![allow(unsafe_code, reason = "calls of the C libraries")]

use super::control::{Control, done};
use crate::{
    Affinity, Core, CpuPool, CpuSet, CpuShare, DomId, Error, ErrorKind, NumaNode, PciAddress, Result,
    Scheduling, VcpuInfo,
};
use std::ptr::{self, NonNull};
use xen_sys as sys;

/// `XEN_INVALID_CORE_ID`, `XEN_INVALID_MEM_SZ` and `XEN_INVALID_NODE_ID` (xen/include/public/sysctl.h): nothing is there.
const NOTHING: u32 = u32::MAX;
/// `XEN_INVALID_DEV` (ibid.): Xen does not know the device.
const UNKNOWN_DEVICE: u32 = u32::MAX - 1;

impl Control {
    /// The bytes of a set of CPUs on this host.
    fn cpu_set_bytes(&self) -> Result<usize> {
        let xc = self.libxenctrl()?;
        // SAFETY: an open handle.
        let size = unsafe { xc.xc_get_cpumap_size(xc.handle()) };
        done(size, "xc_get_cpumap_size", String::new)?;
        Ok(size as usize)
    }

    /// The first CPU pool from that number on.
    fn cpu_pool(&self, from: u32, bytes: usize) -> Result<Option<CpuPool>> {
        let xc = self.libxenctrl()?;
        // SAFETY: an open handle; the answer is from malloc, or null.
        let raw = unsafe { xc.xc_cpupool_getinfo(xc.handle(), from) };
        let Some(raw) = NonNull::new(raw) else {
            let error = Error::last("xc_cpupool_getinfo", format!("from {from}"));
            return if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) };
        };
        // SAFETY: what was returned is whole, and its set has as many bytes as the host's sets have.
        let pool = unsafe {
            let raw = raw.as_ref();
            CpuPool {
                id: raw.cpupool_id,
                scheduler: raw.sched_id,
                domains: raw.n_dom,
                cpus: CpuSet::from_bytes(std::slice::from_raw_parts(raw.cpumap, bytes)),
            }
        };
        // SAFETY: came from xc_cpupool_getinfo, and is not used afterwards.
        unsafe { xc.xc_cpupool_infofree(xc.handle(), raw.as_ptr()) };
        Ok(Some(pool))
    }
}

impl Scheduling for Control {
    fn vcpu(&self, domid: DomId, vcpu: u32) -> Result<VcpuInfo> {
        let xc = self.libxenctrl()?;
        let mut raw = sys::xen_domctl_getvcpuinfo::default();
        // SAFETY: `raw` is live and of the type that the function writes.
        let result = unsafe { xc.xc_vcpu_getinfo(xc.handle(), domid.0.into(), vcpu, &raw mut raw) };
        done(result, "xc_vcpu_getinfo", || format!("domid {domid}, vCPU {vcpu}"))?;
        Ok(VcpuInfo {
            online: raw.online != 0,
            blocked: raw.blocked != 0,
            running: raw.running != 0,
            cpu_time: raw.cpu_time,
            cpu: raw.cpu,
        })
    }

    fn vcpu_affinity(&self, domid: DomId, vcpu: u32) -> Result<Affinity> {
        let xc = self.libxenctrl()?;
        let bytes = self.cpu_set_bytes()?;
        let (mut hard, mut soft) = (vec![0; bytes], vec![0; bytes]);
        // SAFETY: both sets are as long as the host's are.
        let result = unsafe {
            xc.xc_vcpu_getaffinity(
                xc.handle(),
                domid.0.into(),
                vcpu as libc::c_int,
                hard.as_mut_ptr(),
                soft.as_mut_ptr(),
                sys::XEN_VCPUAFFINITY_HARD | sys::XEN_VCPUAFFINITY_SOFT,
            )
        };
        done(result, "xc_vcpu_getaffinity", || format!("domid {domid}, vCPU {vcpu}"))?;
        Ok(Affinity { hard: CpuSet::from_bytes(&hard), soft: CpuSet::from_bytes(&soft) })
    }

    fn set_vcpu_affinity(
        &self,
        domid: DomId,
        vcpu: u32,
        hard: Option<&CpuSet>,
        soft: Option<&CpuSet>,
        force: bool,
    ) -> Result<()> {
        let xc = self.libxenctrl()?;
        let bytes = self.cpu_set_bytes()?;
        let mut flags = if force { sys::XEN_VCPUAFFINITY_FORCE } else { 0 };
        // Xen writes back what it made of them.
        let mut hard = hard.map(|set| set.to_bytes(bytes));
        let mut soft = soft.map(|set| set.to_bytes(bytes));
        flags |= if hard.is_some() { sys::XEN_VCPUAFFINITY_HARD } else { 0 };
        flags |= if soft.is_some() { sys::XEN_VCPUAFFINITY_SOFT } else { 0 };
        let pointer =
            |set: &mut Option<Vec<u8>>| set.as_mut().map_or(ptr::null_mut(), |set| set.as_mut_ptr());
        // SAFETY: each set is as long as the host's are, or null and not flagged.
        let result = unsafe {
            xc.xc_vcpu_setaffinity(
                xc.handle(),
                domid.0.into(),
                vcpu as libc::c_int,
                pointer(&mut hard),
                pointer(&mut soft),
                flags,
            )
        };
        done(result, "xc_vcpu_setaffinity", || format!("domid {domid}, vCPU {vcpu}"))
    }

    fn node_affinity(&self, domid: DomId) -> Result<CpuSet> {
        let xc = self.libxenctrl()?;
        // SAFETY: an open handle.
        let size = unsafe { xc.xc_get_nodemap_size(xc.handle()) };
        done(size, "xc_get_nodemap_size", String::new)?;
        let mut nodes = vec![0; size as usize];
        // SAFETY: the set is as long as the host's sets of nodes are.
        let result =
            unsafe { xc.xc_domain_node_getaffinity(xc.handle(), domid.0.into(), nodes.as_mut_ptr()) };
        done(result, "xc_domain_node_getaffinity", || format!("domid {domid}"))?;
        Ok(CpuSet::from_bytes(&nodes))
    }

    fn cpu_pools(&self) -> Result<Vec<CpuPool>> {
        let bytes = self.cpu_set_bytes()?;
        let mut pools: Vec<CpuPool> = Vec::new();
        loop {
            let from = pools.last().map_or(0, |last| last.id + 1);
            match self.cpu_pool(from, bytes)? {
                Some(pool) => pools.push(pool),
                None => return Ok(pools),
            }
        }
    }

    fn credit(&self, domid: DomId) -> Result<CpuShare> {
        let xc = self.libxenctrl()?;
        let mut raw = sys::xen_domctl_sched_credit::default();
        // SAFETY: `raw` is live and of the type that the function writes.
        let result = unsafe { xc.xc_sched_credit_domain_get(xc.handle(), domid.0.into(), &raw mut raw) };
        done(result, "xc_sched_credit_domain_get", || format!("domid {domid}"))?;
        Ok(CpuShare { weight: raw.weight, cap: raw.cap })
    }

    fn set_credit(&self, domid: DomId, part: CpuShare) -> Result<()> {
        let xc = self.libxenctrl()?;
        let mut raw = sys::xen_domctl_sched_credit { weight: part.weight, cap: part.cap };
        // SAFETY: `raw` is live and of the type that the function reads.
        let result = unsafe { xc.xc_sched_credit_domain_set(xc.handle(), domid.0.into(), &raw mut raw) };
        done(result, "xc_sched_credit_domain_set", || format!("domid {domid}, {part:?}"))
    }

    fn credit2(&self, domid: DomId) -> Result<CpuShare> {
        let xc = self.libxenctrl()?;
        let mut raw = sys::xen_domctl_sched_credit2::default();
        // SAFETY: `raw` is live and of the type that the function writes.
        let result = unsafe { xc.xc_sched_credit2_domain_get(xc.handle(), domid.0.into(), &raw mut raw) };
        done(result, "xc_sched_credit2_domain_get", || format!("domid {domid}"))?;
        Ok(CpuShare { weight: raw.weight, cap: raw.cap })
    }

    fn set_credit2(&self, domid: DomId, part: CpuShare) -> Result<()> {
        let xc = self.libxenctrl()?;
        let mut raw = sys::xen_domctl_sched_credit2 { weight: part.weight, cap: part.cap };
        // SAFETY: `raw` is live and of the type that the function reads.
        let result = unsafe { xc.xc_sched_credit2_domain_set(xc.handle(), domid.0.into(), &raw mut raw) };
        done(result, "xc_sched_credit2_domain_set", || format!("domid {domid}, {part:?}"))
    }

    fn credit2_rate_limit(&self, pool: u32) -> Result<u32> {
        let xc = self.libxenctrl()?;
        let mut raw = sys::xen_sysctl_credit2_schedule::default();
        // SAFETY: `raw` is live and of the type that the function writes.
        let result = unsafe { xc.xc_sched_credit2_params_get(xc.handle(), pool, &raw mut raw) };
        done(result, "xc_sched_credit2_params_get", || format!("pool {pool}"))?;
        Ok(raw.ratelimit_us)
    }

    fn set_credit2_rate_limit(&self, pool: u32, microseconds: u32) -> Result<()> {
        let xc = self.libxenctrl()?;
        let mut raw = sys::xen_sysctl_credit2_schedule { ratelimit_us: microseconds };
        // SAFETY: `raw` is live and of the type that the function reads.
        let result = unsafe { xc.xc_sched_credit2_params_set(xc.handle(), pool, &raw mut raw) };
        done(result, "xc_sched_credit2_params_set", || format!("pool {pool}, {microseconds} us"))
    }

    fn cpu_topology(&self) -> Result<Vec<Option<Core>>> {
        let xc = self.libxenctrl()?;
        let mut count = 0;
        // SAFETY: without room for answers the function says how many there are.
        let result = unsafe { xc.xc_cputopoinfo(xc.handle(), &raw mut count, ptr::null_mut()) };
        done(result, "xc_cputopoinfo", String::new)?;
        let mut raw = vec![sys::xen_sysctl_cputopo::default(); count as usize];
        // SAFETY: room for `count` answers.
        let result = unsafe { xc.xc_cputopoinfo(xc.handle(), &raw mut count, raw.as_mut_ptr()) };
        done(result, "xc_cputopoinfo", || format!("{count} CPUs"))?;
        let core = |raw: &sys::xen_sysctl_cputopo| {
            (raw.core != NOTHING).then_some(Core { core: raw.core, socket: raw.socket, node: raw.node })
        };
        Ok(raw.iter().take(count as usize).map(core).collect())
    }

    fn numa_nodes(&self) -> Result<Vec<Option<NumaNode>>> {
        let xc = self.libxenctrl()?;
        let mut count = 0;
        // SAFETY: without room for answers the function says how many there are.
        let result = unsafe { xc.xc_numainfo(xc.handle(), &raw mut count, ptr::null_mut(), ptr::null_mut()) };
        done(result, "xc_numainfo", String::new)?;
        let nodes = count as usize;
        let mut memory = vec![sys::xen_sysctl_meminfo::default(); nodes];
        let mut distances = vec![0; nodes * nodes];
        // SAFETY: room for `count` answers, and for the distance of each to each.
        let result = unsafe {
            xc.xc_numainfo(xc.handle(), &raw mut count, memory.as_mut_ptr(), distances.as_mut_ptr())
        };
        done(result, "xc_numainfo", || format!("{nodes} nodes"))?;
        let node = |(raw, distances): (&sys::xen_sysctl_meminfo, &[u32])| {
            (raw.memsize != u64::from(NOTHING)).then(|| NumaNode {
                size: raw.memsize,
                free: raw.memfree,
                distances: distances.to_vec(),
            })
        };
        // No node at all has no distances to be cut into pieces of none.
        Ok(memory.iter().zip(distances.chunks(nodes.max(1))).take(count as usize).map(node).collect())
    }

    fn device_nodes(&self, devices: &[PciAddress]) -> Result<Vec<Option<u32>>> {
        let xc = self.libxenctrl()?;
        let mut raw: Vec<sys::physdev_pci_device_t> = devices
            .iter()
            .map(|device| sys::physdev_pci_device {
                seg: device.segment,
                bus: device.bus,
                devfn: device.devfn,
            })
            .collect();
        let mut nodes = vec![0; raw.len()];
        // SAFETY: as many devices as answers.
        let result =
            unsafe { xc.xc_pcitopoinfo(xc.handle(), raw.len() as u32, raw.as_mut_ptr(), nodes.as_mut_ptr()) };
        done(result, "xc_pcitopoinfo", || format!("{} devices", devices.len()))?;
        let known = |node: u32| node != NOTHING && node != UNKNOWN_DEVICE;
        Ok(nodes.into_iter().map(|node| known(node).then_some(node)).collect())
    }
}
