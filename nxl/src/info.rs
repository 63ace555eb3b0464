//! `nxl info`, in `xl info`'s lines.

use crate::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write};
use toolstack::qubes::Qubes;
use xen::{HostInfo, PAGE_SHIFT, PhysInfo, XenVersion};

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

pub(crate) fn info(qubes: &Qubes) -> Result<(), Error> {
    let control = qubes.control();
    let text = text(&control.phys_info()?, &control.host_info()?, &control.version()?);
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

fn virt_caps(capabilities: u32) -> String {
    let has = |bit: u32| capabilities & 1 << bit != 0;
    VIRT_CAPS
        .iter()
        .filter(|(bit, needed, _)| has(*bit) && needed.is_none_or(has))
        .map(|(_, _, name)| format!(" {name}"))
        .collect()
}

fn text(host: &PhysInfo, more: &HostInfo, xen: &XenVersion) -> String {
    let system = rustix::system::uname();
    let mib = |pages: u64| pages >> (20 - PAGE_SHIFT);
    let caps: Vec<String> = host.hw_caps.iter().map(|word| format!("{word:08x}")).collect();
    let mut text = String::new();
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{key:<23}: {value}");
    };
    line("host", &system.nodename().to_string_lossy());
    line("release", &system.release().to_string_lossy());
    line("version", &system.version().to_string_lossy());
    line("machine", &system.machine().to_string_lossy());
    line("nr_cpus", &host.cpus);
    line("max_cpu_id", &host.max_cpu_id);
    line("nr_nodes", &host.nodes);
    line("cores_per_socket", &host.cores_per_socket);
    line("threads_per_core", &host.threads_per_core);
    line("cpu_mhz", &format_args!("{}.{:03}", host.cpu_khz / 1_000, host.cpu_khz % 1_000));
    line("hw_caps", &caps.join(":"));
    line("virt_caps", &virt_caps(host.capabilities).trim_start());
    line("total_memory", &mib(host.total_pages));
    line("free_memory", &mib(host.free_pages.saturating_sub(host.outstanding_pages)));
    line("sharing_freed_memory", &mib(more.sharing_freed_pages));
    line("sharing_used_memory", &mib(more.sharing_used_frames));
    line("outstanding_claims", &mib(host.outstanding_pages));
    line("free_cpus", &more.free_cpus);
    line("xen_major", &xen.major);
    line("xen_minor", &xen.minor);
    line("xen_extra", &xen.extra);
    line("xen_version", &format_args!("{}.{}{}", xen.major, xen.minor, xen.extra));
    line("xen_caps", &xen.capabilities);
    line("xen_scheduler", &more.scheduler_name());
    line("xen_pagesize", &xen.page_size);
    line("platform_params", &format_args!("virt_start=0x{:x}", xen.virt_start));
    line("xen_changeset", &xen.changeset);
    line("xen_commandline", &xen.command_line);
    line("cc_compiler", &xen.compiler);
    line("cc_compile_by", &xen.compile_by);
    line("cc_compile_domain", &xen.compile_domain);
    line("cc_compile_date", &xen.compile_date);
    line("build_id", &xen.build_id);
    line("xend_config_format", &4);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named_as_xl_names_them() {
        // hvm, pv, directio, hap, shadow
        assert_eq!(virt_caps(0b1_1111), " pv hvm hvm_directio pv_directio hap shadow");
        assert_eq!(virt_caps(0b10), " pv");
        assert_eq!(virt_caps(0b110), " pv pv_directio");
    }
}
