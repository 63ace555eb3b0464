//! The layouts that bindgen wrote down, beside what the C compiler says of the same headers.

use std::mem::{offset_of, size_of};
use std::path::PathBuf;
use std::process::Command;

/// Each entry: a C expression and what Rust says it is.
macro_rules! layouts {
    ($($type:ident { $($field:ident),* $(,)? })*) => {
        vec![$(
            (concat!("sizeof(struct ", stringify!($type), ")").to_owned(), size_of::<xen_sys::$type>()),
            $((
                concat!("offsetof(struct ", stringify!($type), ", ", stringify!($field), ")").to_owned(),
                offset_of!(xen_sys::$type, $field),
            ),)*
        )*]
    };
}

#[test]
fn layouts_are_those_of_the_c_compiler() {
    let layouts = layouts! {
        xen_domctl_createdomain { handle, flags, max_vcpus, max_evtchn_port, grant_opts, cpupool_id, arch }
        xen_domctl_getdomaininfo { domain, flags, tot_pages, cpu_time, max_vcpu_id, handle, cpupool, arch_config }
        xen_domctl { cmd, interface_version, domain, u }
        xen_sysctl { cmd, interface_version, u }
        xen_sysctl_getdomaininfolist { first_domain, max_domains, buffer, num_domains }
        mmuext_op { cmd, arg1 }
        start_info { magic, nr_pages, shared_info, flags, store_mfn, store_evtchn, console, pt_base, nr_pt_frames,
            mfn_list, mod_start, mod_len, cmd_line, first_p2m_pfn, nr_p2m_frames }
        shared_info { vcpu_info, evtchn_pending }
        vcpu_info { evtchn_upcall_mask }
        xen_sysctl_physinfo { nr_cpus, cpu_khz, capabilities, total_pages, free_pages, hw_cap }
        xs_permissions { id, perms }
        grant_entry_v1 { flags, domid, frame }
        e820entry { addr, size }
        hvm_save_descriptor { typecode, instance, length }
        hvm_save_header { magic, version, changeset, cpuid, gtsc_khz }
        hvm_hw_cpu { rax, rip, rflags, cr0, cr4, cs_sel, cs_limit, cs_base, cs_arbytes, tr_arbytes, msr_efer, tsc, flags }
        hvm_hw_mtrr { msr_pat_cr, msr_mtrr_var, msr_mtrr_fixed, msr_mtrr_cap, msr_mtrr_def_type }
        hvm_start_info { magic, version, flags, nr_modules, modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr,
            memmap_entries }
        hvm_modlist_entry { paddr, size, cmdline_paddr }
        hvm_memmap_table_entry { addr, size, type_ }
        vchan_interface { left, right, left_order, right_order, cli_live, srv_live, cli_notify, srv_notify, grants }
        ring_shared { cons, prod }
    };

    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (folder.join("layout.c"), folder.join("layout"));
    let lines: String = layouts
        .iter()
        .map(|(expression, _)| {
            format!("    printf(\"%zu\\n\", (size_t){});\n", expression.replace("type_", "type"))
        })
        .collect();
    let text = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include \"{}\"\nint main(void) {{\n{lines}    return 0;\n}}\n",
        concat!(env!("CARGO_MANIFEST_DIR"), "/wrapper.h"),
    );
    std::fs::write(&source, text).unwrap();
    let compiled = Command::new("cc").arg("-o").arg(&program).arg(&source).status().unwrap();
    assert!(compiled.success(), "the C compiler refused {}", source.display());
    let output = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
    let theirs: Vec<usize> = output.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(theirs.len(), layouts.len());
    for ((expression, ours), theirs) in layouts.iter().zip(theirs) {
        assert_eq!(*ours, theirs, "{expression}");
    }
}
