//! vchan between two threads, over the mocked machine: what the library itself costs, without Xen and without a process
//! switch. The comparison with libxenvchan is between processes, over `xen-sim`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::thread;
use vchan::{Channel, ConnectOptions, ListenOptions, Listener};
use xen::DomId;
use xen::mock::Machine;

/// Bytes that are carried in one measured run.
const BYTES: usize = 4 << 20;

fn pair(ring: usize) -> (Channel, Channel) {
    let machine = Machine::new();
    let (one, two) = (machine.domain(DomId(1)), machine.domain(DomId(2)));
    let options = ListenOptions { read_min: ring, write_min: ring, ..ListenOptions::default() };
    let listener = Listener::open(&one, DomId(2), "data/bench", &options).expect("a listener");
    let client =
        Channel::connect(&two, DomId(1), "data/bench", &ConnectOptions::default()).expect("a client");
    (client, listener.accept().expect("a server"))
}

/// Sends `BYTES` in writes of `size`, while another thread receives them.
fn carry(from: &mut Channel, to: &mut Channel, size: usize) {
    let data = vec![0x5a; size];
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            let mut left = BYTES;
            while left > 0 {
                left -= to.recv(&mut buffer).expect("bytes");
                black_box(&buffer);
            }
        });
        for _ in 0..BYTES / size {
            from.send_all(&data).expect("room");
        }
    });
}

fn throughput(criterion: &mut Criterion) {
    for (name, ring) in [("4 KiB rings", 4 << 10), ("64 KiB rings", 64 << 10), ("1 MiB rings", 1 << 20)] {
        let mut group = criterion.benchmark_group(format!("one way, {name}"));
        group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(10);
        for size in [64, 1 << 10, 4 << 10, 64 << 10] {
            let (mut client, mut server) = pair(ring);
            group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
                bencher.iter(|| carry(&mut client, &mut server, size));
            });
        }
    }
}

fn set_up(criterion: &mut Criterion) {
    criterion.bench_function("listen, connect, accept and close, 64 KiB rings", |bencher| {
        bencher.iter(|| pair(64 << 10));
    });
}

criterion_group!(benches, throughput, set_up);
criterion_main!(benches);
