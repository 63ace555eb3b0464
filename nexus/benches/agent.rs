//! A call within a qube, from a container to a socket of the qube: one after the other, 16 callers at once, and in bulk.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nexus::agent::{Agent, Settings};
use nexus::client::OutgoingCall;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;

/// How many bytes go each way in bulk.
const BULK: usize = 16 << 20;

/// An agent and a service that gives back what it gets. They end with the process.
fn qube(folder: &Path) -> PathBuf {
    let path = |name: &str| folder.join(name);
    for name in ["policy", "services", "rpc-config"] {
        fs::create_dir(path(name)).expect("a folder");
    }
    fs::write(path("policy/1.policy"), "q.Echo * work:web work allow\n").expect("a policy");
    let settings: Settings = serde_json::from_value(serde_json::json!({
        "qube": "work", "user": "user", "socket": path("qube.sock"), "services": [path("services")],
        "rpc_config": path("rpc-config"), "policy": [path("policy")],
        "containers": { "web": { "socket": path("web.sock"), "services": path("web") } },
    }))
    .expect("settings");
    let agent = Agent::open(settings, Box::new(|_| ())).expect("an agent");
    thread::spawn(move || agent.run());
    let service = UnixListener::bind(path("services/q.Echo")).expect("a service");
    thread::spawn(move || {
        for mut socket in service.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut reading = socket.try_clone()?;
                io::copy(&mut reading, &mut socket)
            });
        }
    });
    path("web.sock")
}

fn call(agent: &Path, input: impl Read + Send + 'static, output: &mut impl Write) {
    let call = OutgoingCall::start(agent, "work", "q.Echo").expect("an agent");
    assert_eq!(call.run(input, output, &mut io::sink()).expect("a service"), 0);
}

fn calls(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let agent = qube(folder.path());
    let mut group = criterion.benchmark_group("agent");
    group.bench_function("a call", |bencher| {
        bencher.iter(|| call(&agent, &b"hello"[..], &mut io::sink()));
    });
    group.throughput(Throughput::Elements(16 * 10));
    group.bench_function("16 callers", |bencher| {
        bencher.iter(|| {
            thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| (0..10).for_each(|_| call(&agent, &b"hello"[..], &mut io::sink())));
                }
            });
        });
    });
    group.sample_size(10).throughput(Throughput::Bytes(BULK as u64));
    group.bench_function("there and back", |bencher| {
        bencher.iter(|| {
            let mut output = Vec::with_capacity(BULK);
            call(&agent, io::repeat(7).take(BULK as u64), &mut output);
            assert!(output.len() > BULK);
        });
    });
    group.finish();
}

criterion_group!(benches, calls);
criterion_main!(benches);
