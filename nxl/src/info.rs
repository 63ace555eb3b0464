//! `nxl info`, in `xl info`'s lines.

use crate::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write};
use toolstack::qubes::Qubes;
use xen::{Core, HostInfo, NumaNode, PAGE_SHIFT, PhysInfo, XenVersion};

/// The names of `XEN_SYSCTL_PHYSCAP_*`, by bit, in the order in which `xl` shows them, and the bit without which a name
/// is not shown.
const VIRT_CAPS: [(u32, Option<u32>, &str); 11] = [
    (1, None, "pv"),
    (0, None, "hvm"),
    (2, Some(0), "hvm_directio"),
    (2, Some(1), "pv_directio"),
    (3, None, "hap"),
    (4, None, "shadow"),
    (5, None, "iommu_hap_pt_share"),
    (6, None, "vmtrace"),
    (7, None, "vpmu"),
    (8, None, "gnttab-v1"),
    (9, None, "gnttab-v2"),
];

pub(crate) fn info(qubes: &Qubes, numa: bool, name: Option<&str>) -> Result<(), Error> {
    let control = qubes.control();
    let topology = if numa { topology(qubes)? } else { String::new() };
    let mut text = text(&control.phys_info()?, &control.host_info()?, &control.version()?, &topology);
    if let Some(name) = name {
        text = only(&text, name);
    }
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

/// The values of the lines that begin with `name`.
fn only(text: &str, name: &str) -> String {
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.split_once(": ")).map(|(_, value)| format!("{value}\n")).collect()
}

/// How CPUs, devices and memory lie on NUMA nodes.
fn topology(qubes: &Qubes) -> Result<String, Error> {
    let control = qubes.control();
    let mut text = "cpu_topology           :\ncpu:    core    socket     node\n".to_owned();
    for (cpu, core) in control.cpu_topology()?.iter().enumerate() {
        if let Some(Core { core, socket, node }) = core {
            text += &format!("{cpu:>3}:    {core:>4}     {socket:>4}     {node:>4}\n");
        }
    }
    text += "device topology        :\ndevice           node\n";
    let devices = qubes.pci_device_nodes()?;
    if devices.is_empty() {
        text += "No device topology data available\n";
    }
    for (device, node) in devices {
        text += &format!("{device}      {node}\n");
    }
    text += "numa_info              :\nnode:    memsize    memfree    distances\n";
    for (number, node) in control.numa_nodes()?.iter().enumerate() {
        if let Some(NumaNode { size, free, distances }) = node {
            let distances: Vec<String> = distances.iter().map(u32::to_string).collect();
            let (size, free) = (size >> 20, free >> 20);
            text += &format!("{number:>4}:    {size:>6}     {free:>6}      {}\n", distances.join(","));
        }
    }
    Ok(text)
}

fn virt_caps(capabilities: u32) -> String {
    let has = |bit: u32| capabilities & 1 << bit != 0;
    VIRT_CAPS
        .iter()
        .filter(|(bit, needed, _)| has(*bit) && needed.is_none_or(has))
        .map(|(_, _, name)| format!(" {name}"))
        .collect()
}

fn text(host: &PhysInfo, more: &HostInfo, xen: &XenVersion, topology: &str) -> String {
    let system = rustix::system::uname();
    let mib = |pages: u64| pages >> (20 - PAGE_SHIFT);
    let caps: Vec<String> = host.hw_caps.iter().map(|word| format!("{word:08x}")).collect();
    let mut text = String::new();
    let line = |text: &mut String, key: &str, value: &dyn std::fmt::Display| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{key:<23}: {value}");
    };
    line(&mut text, "host", &system.nodename().to_string_lossy());
    line(&mut text, "release", &system.release().to_string_lossy());
    line(&mut text, "version", &system.version().to_string_lossy());
    line(&mut text, "machine", &system.machine().to_string_lossy());
    line(&mut text, "nr_cpus", &host.cpus);
    line(&mut text, "max_cpu_id", &host.max_cpu_id);
    line(&mut text, "nr_nodes", &host.nodes);
    line(&mut text, "cores_per_socket", &host.cores_per_socket);
    line(&mut text, "threads_per_core", &host.threads_per_core);
    line(&mut text, "cpu_mhz", &format_args!("{}.{:03}", host.cpu_khz / 1_000, host.cpu_khz % 1_000));
    line(&mut text, "hw_caps", &caps.join(":"));
    line(&mut text, "virt_caps", &virt_caps(host.capabilities).trim_start());
    line(&mut text, "total_memory", &mib(host.total_pages));
    line(&mut text, "free_memory", &mib(host.free_pages.saturating_sub(host.outstanding_pages)));
    line(&mut text, "sharing_freed_memory", &mib(more.sharing_freed_pages));
    line(&mut text, "sharing_used_memory", &mib(more.sharing_used_frames));
    line(&mut text, "outstanding_claims", &mib(host.outstanding_pages));
    line(&mut text, "free_cpus", &more.free_cpus);
    text += topology;
    line(&mut text, "xen_major", &xen.major);
    line(&mut text, "xen_minor", &xen.minor);
    line(&mut text, "xen_extra", &xen.extra);
    line(&mut text, "xen_version", &format_args!("{}.{}{}", xen.major, xen.minor, xen.extra));
    line(&mut text, "xen_caps", &xen.capabilities);
    line(&mut text, "xen_scheduler", &more.scheduler_name());
    line(&mut text, "xen_pagesize", &xen.page_size);
    line(&mut text, "platform_params", &format_args!("virt_start=0x{:x}", xen.virt_start));
    line(&mut text, "xen_changeset", &xen.changeset);
    line(&mut text, "xen_commandline", &xen.command_line);
    line(&mut text, "cc_compiler", &xen.compiler);
    line(&mut text, "cc_compile_by", &xen.compile_by);
    line(&mut text, "cc_compile_domain", &xen.compile_domain);
    line(&mut text, "cc_compile_date", &xen.compile_date);
    line(&mut text, "build_id", &xen.build_id);
    line(&mut text, "xend_config_format", &4);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_its_value() {
        let text =
            "free_memory            : 512\nfree_cpus              : 0\nxen_caps               : a: b\n";
        assert_eq!(only(text, "free_memory"), "512\n");
        assert_eq!(only(text, "free"), "512\n0\n");
        assert_eq!(only(text, "xen_caps"), "a: b\n");
        assert_eq!(only(text, "nothing"), "");
    }

    #[test]
    fn capabilities_are_named_as_xl_names_them() {
        // hvm, pv, directio, hap, shadow
        assert_eq!(virt_caps(0b1_1111), " pv hvm hvm_directio pv_directio hap shadow");
        assert_eq!(virt_caps(0b10), " pv");
        assert_eq!(virt_caps(0b110), " pv pv_directio");
    }
}
