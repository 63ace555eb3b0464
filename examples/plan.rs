//! Where everything of a PVH qube goes, decided before Xen is asked for anything.
//!
//! ```text
//! cargo run --example plan              # a qube of 512 MiB
//! cargo run --example plan -- 6144      # one that has memory on both sides of the hole below 4 GiB
//! ```
//! A plan is a plain value: this needs neither Xen nor a kernel, only to know what memory a kernel wants.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "it says what is planned")]

use std::ops::Range;
use tesseraqt::toolstack::boot::{Guest, Placement, Plan, PvhOptions, Request};
use tesseraqt::toolstack::image::Footprint;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mib: u64 = std::env::args().nth(1).map_or(Ok(512), |text| text.parse())?;
    // What a kernel's headers say; `image::Kernel::open` reads it from a file.
    let kernel = Footprint { memory: 0x100_0000..0x4a0_0000, cmdline_limit: Some(2_047), relocation: None };
    let request = Request {
        memory_kib: mib << 10,
        max_memory_kib: mib << 10,
        vcpus: 2,
        max_vcpus: 4,
        cmdline: "console=hvc0",
        kernel: &kernel,
        initrd: Some(16 << 20),
        placement: Placement::default(),
        guest: Guest::Pvh(PvhOptions { timer_mode: 1, paging_memory_mib: None, mmio_hole_mib: None }),
    };
    let plan = Plan::new(&request)?;
    println!("{mib} MiB, for which the host needs {} KiB", plan.needed_kib());
    println!("what the guest is told of its memory:");
    for entry in plan.memory_map() {
        line(&(entry.start..entry.start + entry.size), &format!("{:?}", entry.kind));
    }
    if let Plan::Pvh(plan) = &plan {
        println!("what it finds there:");
        let module = &plan.start_info;
        line(&plan.kernel, "kernel");
        line(&(module.address..module.address + module.bytes.len() as u64), "start_info");
        plan.initrd.iter().for_each(|initrd| line(initrd, "initrd"));
        for extents in &plan.extents {
            println!("in {} extents of {} KiB", extents.gfns.len(), 4 << extents.order);
        }
    }
    Ok(())
}

fn line(range: &Range<u64>, what: &str) {
    println!("  {:#011x} to {:#011x}  {what}", range.start, range.end);
}
