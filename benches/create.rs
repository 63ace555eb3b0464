//! What the toolstack itself does for a qube, without Xen: the plan.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use toolstack::boot::{Guest, Placement, Plan, PvhOptions, Request};
use toolstack::image::Footprint;

fn plan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    for gib in [1_u64, 16, 256] {
        let kernel =
            Footprint { memory: 0x100_0000..0x4a0_0000, cmdline_limit: Some(2_047), relocation: None };
        let request = Request {
            memory_kib: gib << 20,
            max_memory_kib: gib << 20,
            vcpus: 4,
            max_vcpus: 4,
            cmdline: "console=hvc0",
            kernel: &kernel,
            initrd: Some(16 << 20),
            placement: Placement::default(),
            guest: Guest::Pvh(PvhOptions { timer_mode: 1, paging_memory_mib: None, mmio_hole_mib: None }),
        };
        group.bench_function(BenchmarkId::new("GiB", gib), |bencher| {
            bencher.iter(|| Plan::new(black_box(&request)));
        });
    }
}

criterion_group!(benches, plan);
criterion_main!(benches);
