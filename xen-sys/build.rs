//! Generates the bindings from the installed Xen headers, for an allow-list of names, so that the generated file stays
//! small enough to read: `target/<profile>/build/tesseraqt-xen-sys-*/out/bindings.rs`.

use std::env;
use std::path::PathBuf;
use std::process::exit;

/// pkg-config name and the functions that are used of each library.
const LIBRARIES: &[(&str, &str)] = &[
    (
        "xengnttab",
        "xen(gnttab|gntshr)_(open|close|fd|set_max_grants|map_domain_grant_refs|map_grant_ref_notify|unmap\
                   |share_pages|share_page_notify|unshare)",
    ),
    (
        "xenevtchn",
        "xenevtchn_(open|close|fd|notify|bind_unbound_port|bind_interdomain|unbind|pending|unmask)",
    ),
    (
        "xenstore",
        "xs_(open|close|directory|read|write|mkdir|rm|get_permissions|set_permissions|watch|unwatch|fileno|check_watch\
         |transaction_start|transaction_end|introduce_domain|release_domain|resume_domain|is_domain_introduced|get_domain_path)",
    ),
    // vsnprintf, for who is given a message's format and arguments.
    ("xentoollog", "xtl_log|vsnprintf"),
];

/// Of the two libraries whose ABI is another in each release of Xen (the name of the file, pkg-config's, and the functions):
/// opened at run time, so that who meets the wrong release can say so.
const CONTROL: &str = "xenctrl";
const CONTROL_PACKAGE: &str = "xencontrol";
const CONTROL_FUNCTIONS: &str = "xc_(interface_(open|close)|version|physinfo|domain_(create|destroy|pause|unpause|getinfolist|max_vcpus|setmaxmem\
    |set_memory_map|set_tsc_info|claim_pages|populate_physmap|set_pod_target|hvm_[gs]etcontext)|set_paging_mempool_size\
    |hvm_param_[gs]et|evtchn_alloc_unbound|vcpu_setcontext|mmuext_op|sched_id|sharing_(freed_pages|used_frames)|get_cpumap_size|cpupool_freeinfo\
    |vcpu_(getinfo|getaffinity|setaffinity)|domain_(node_getaffinity|send_trigger)|get_nodemap_size|cpupool_(getinfo|infofree)\
    |(assign|deassign)_device|domain_(ioport|iomem|irq)_permission|physdev_(map|unmap)_pirq|get_machine_memory_map|sched_credit_domain_[gs]et|sched_credit2_(domain|params)_[gs]et|cputopoinfo|numainfo|pcitopoinfo|readconsolering|send_debug_keys|flask_sid_to_context)";
/// What xenguest.h declares, and some of what xenctrl.h does. The library brings three codecs along, which every run of a program would load for
/// the few that call it.
const GUEST: &str = "xenguest";
const GUEST_FUNCTIONS: &str = "xc_(cpuid_apply_policy|domain_(dumpcore|save|restore|resume))";

/// Opened at run time, too, though its ABI is one for all releases: of a toolstack's commands, only those that build a domain
/// map anything.
const FOREIGN: &str = "xenforeignmemory";
const FOREIGN_LIBRARY: &str = "libxenforeignmemory.so.1";
const FOREIGN_FUNCTIONS: &str = "xenforeignmemory_(open|close|map|unmap|map_resource|unmap_resource)";

const TYPES: &str = "xenforeignmemory_(resource_)?handle|xen_sysctl|xen_sysctl_getdomaininfolist|domid_t|xentoollog_logger|xc_interface|xc_(cpumap|nodemap|vcpuinfo|cpupoolinfo|cputopo|meminfo)_t|xen_domctl_sched_credit2?|xen_sysctl_credit2_schedule|physdev_pci_device_t|xc_evtchn_port_or_error_t|xc_xend_cpuid|xc_msr|(save|restore)_callbacks|xc_stream_type_t|xsd_sockmsg_type|xc_physinfo_t|xc_domaininfo_t|xen_domctl|xen_domctl_(createdomain|getdomaininfo|hypercall_init)|mmuext_op|vcpu_guest_context_any_t|start_info|shared_info|xen_sysctl_physinfo|xen_arch_domainconfig\
    |grant_entry_v1|e820entry|hvm_(save_descriptor|save_header|hw_cpu|hw_mtrr|hw_lapic|start_info|modlist_entry|memmap_table_entry)\
    |vchan_interface|ring_shared|xs_permissions|xen_extraversion_t|xen_compile_info_t|xen_capabilities_info_t|xen_changeset_info_t|xen_commandline_t|xen_platform_parameters_t";

const CONSTANTS: &str = "XEN_DOMCTL_CDF_.*|XEN_DOMCTL_(INTERFACE_VERSION|hypercall_init)|XEN_DOMCTL_(destroy|pause|unpause)domain|XEN_SYSCTL_(INTERFACE_VERSION|getdomaininfolist)|__HYPERVISOR_(domctl|sysctl|xen_version)|MMUEXT_PIN_L4_TABLE|VGCF_.*|FLAT_RING3_.*|SIF_.*|MAX_GUEST_CMDLINE|XEN_LEGACY_MAX_VCPUS|XEN_DOMCTL_GRANT_.*|XEN_X86_EMU_LAPIC|XEN_DOMINF_.*|HVM_PARAM_.*|XENMEM_resource_grant_table.*|XENMEMF_populate_on_demand\
    |XENSTORE_PAYLOAD_MAX|GTF_.*|GNTTAB_RESERVED_.*|XENVER_.*|XS_PERM_.*|XS_OPEN_.*|XEN_HVM_.*|E820_.*|VCHAN_NOTIFY_.*|PROT_(READ|WRITE)|XEN_SYSCTL_PHYSCAP_.*\
    |XEN_VCPUAFFINITY_.*|XEN_DOMCTL_SENDTRIGGER_.*|XEN_SCHEDULER_.*|XEN_DOMCTL_DEV_RDM_RELAXED|XEN_DOMCTL_IOMMU_no_sharept\
    |__XEN_LATEST_INTERFACE_VERSION__";

fn main() {
    println!("cargo::rerun-if-changed=wrapper.h");
    println!("cargo::rerun-if-changed=build.rs");

    let mut includes = Vec::new();
    for (name, _) in LIBRARIES {
        match pkg_config::Config::new().probe(name) {
            Ok(library) => includes.extend(library.include_paths),
            Err(_) => fail(&format!(
                "Xen's library {name} was not found by pkg-config: install the Debian packages libxen-dev and pkg-config"
            )),
        }
    }

    includes.extend(release(FOREIGN).1);
    let (release, include) = release(CONTROL_PACKAGE);
    includes.extend(include);
    println!("cargo::rustc-env=XEN_SYS_RELEASE={release}");
    for (variable, name) in [("CONTROL", CONTROL), ("GUEST", GUEST)] {
        println!("cargo::rustc-env=XEN_SYS_{variable}_LIBRARY=lib{name}.so.{release}");
    }

    println!("cargo::rustc-env=XEN_SYS_FOREIGN_LIBRARY={FOREIGN_LIBRARY}");

    // bindgen panics where it cannot load libclang; a panic's text is no error message.
    std::panic::set_hook(Box::new(|_| ()));
    let clang = std::panic::catch_unwind(bindgen::clang_version);
    let _ = std::panic::take_hook();
    if clang.is_err() {
        fail(
            "bindgen needs libclang: install the Debian package libclang-dev (or point LIBCLANG_PATH at one)",
        );
    }

    let functions = LIBRARIES.iter().map(|(_, f)| *f).filter(|f| !f.is_empty()).collect::<Vec<_>>().join("|");
    write(
        "bindings.rs",
        builder(&includes)
            .allowlist_function(functions)
            .allowlist_type(TYPES)
            .allowlist_var(CONSTANTS)
            .opaque_type("xc_xend_cpuid|xc_msr")
            .layout_tests(true)
            .derive_default(true),
    );
    // The types are those of the other file.
    for (file, library, functions) in [
        ("control.rs", "ControlLibrary", CONTROL_FUNCTIONS),
        ("guest.rs", "GuestLibrary", GUEST_FUNCTIONS),
        ("foreign.rs", "ForeignLibrary", FOREIGN_FUNCTIONS),
    ] {
        write(
            file,
            builder(&includes)
                .allowlist_function(functions)
                .allowlist_recursively(false)
                .dynamic_library_name(library)
                .dynamic_link_require_all(true),
        );
    }
}

fn builder(includes: &[PathBuf]) -> bindgen::Builder {
    bindgen::Builder::default()
        .header("wrapper.h")
        .clang_args(includes.iter().map(|path| format!("-I{}", path.display())))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .wrap_unsafe_ops(true)
        .generate_comments(false)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
}

fn write(name: &str, builder: bindgen::Builder) {
    match builder.generate() {
        Ok(bindings) => {
            let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join(name);
            if let Err(error) = bindings.write_to_file(&out) {
                fail(&format!("{} cannot be written: {error}", out.display()));
            }
        }
        Err(error) => fail(&format!(
            "Xen's headers were not understood ({}): install the Debian package libxen-dev",
            one_line(&error.to_string())
        )),
    }
}

/// Xen's release, as the files of its unstable libraries have it in their names and pkg-config in their versions: `4.17`; and
/// where the headers are.
fn release(name: &str) -> (String, Vec<PathBuf>) {
    match pkg_config::Config::new().cargo_metadata(false).probe(name) {
        Ok(library) => {
            let release: Vec<&str> = library.version.split('.').take(2).collect();
            (release.join("."), library.include_paths)
        }
        Err(_) => fail(&format!(
            "Xen's library {name} was not found by pkg-config: install the Debian packages libxen-dev and pkg-config"
        )),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
