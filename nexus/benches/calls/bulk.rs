//! A gigabyte from program to program: by a call, and by the parts that a call is made of.
//!
//! In every row but one there are the same two programs at the ends: one makes each byte that it sends, the other looks at each
//! that it gets. What differs is what lies between them. The one without programs is there because it is the figure that a
//! vchan is usually known by, and nobody gets: the same 64 KiB go round in a processor's cache.

use super::stage::{self, Stage};
use super::{BULK, CHUNK, ROLE, ROUNDS};
use nexus::client::AsyncCall;
use std::env;
use std::io::{Read, Write};
use std::os::unix::net as blocking;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use vchan::{Channel, ConnectOptions, ListenOptions, Listener};
use xen::DomId;
use xen::host::Host;

/// What a program does to send: it makes the bytes.
fn make(bytes: &mut [u8], number: usize) {
    for (word, value) in bytes.chunks_exact_mut(8).zip(number as u64..) {
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// What a program does that receives: it looks at them.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Looked {
    bytes: usize,
    sum: u8,
}

impl Looked {
    fn at(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.sum = bytes.iter().fold(self.sum, |sum, byte| sum.wrapping_add(*byte));
    }

    /// Whether all was there.
    fn check(&self) {
        let mut bytes = vec![0; CHUNK];
        let mut all = Self::default();
        for number in 0..BULK / CHUNK {
            make(&mut bytes, number);
            all.at(&bytes);
        }
        assert_eq!(*self, all);
    }
}

pub(super) async fn give(to: &mut (impl AsyncWrite + Unpin)) {
    let mut bytes = vec![0; CHUNK];
    for number in 0..BULK / CHUNK {
        make(&mut bytes, number);
        to.write_all(&bytes).await.unwrap();
    }
    to.flush().await.unwrap();
}

pub(super) async fn take(from: &mut (impl AsyncRead + Unpin)) -> Looked {
    let mut bytes = vec![0; CHUNK];
    let mut looked = Looked::default();
    loop {
        match from.read(&mut bytes).await.unwrap() {
            0 => break looked,
            read => looked.at(&bytes[..read]),
        }
    }
}

/// All rows, each after the others in turn.
pub(super) fn rows(stage: &Stage, runtime: &Runtime, agent: &Path) {
    let mut times = vec![Vec::new(); 6];
    let mut costs = [Vec::new(), Vec::new()];
    let counted = |service, costs: &mut Vec<Cost>| {
        let before = Cost::of_agents(stage);
        let time = runtime.block_on(call(agent, service));
        costs.push(Cost::of_agents(stage).since(&before));
        time
    };
    for _ in 0..ROUNDS {
        let round = [
            raw(stage, "idle"),
            raw(stage, "busy"),
            runtime.block_on(sockets(stage, 0)),
            runtime.block_on(sockets(stage, 1)),
            counted("q.Bulk+sink", &mut costs[0]),
            counted("q.Bulk+source", &mut costs[1]),
        ];
        for (times, time) in times.iter_mut().zip(round) {
            times.push(time);
        }
    }
    let speeds = times.iter_mut().map(|times| {
        times.sort_unstable();
        BULK as f64 / times[ROUNDS / 2].as_secs_f64() / 1e9
    });
    let names = [
        "vchan whose bytes nobody makes or looks at",
        "vchan",
        "socket",
        "two sockets and a program that copies",
        "call, to the service",
        "call, to the caller",
    ];
    let speeds: Vec<_> = speeds.collect();
    for (name, speed) in names.iter().zip(&speeds) {
        let [of_vchan, of_sockets] = [1, 3].map(|row| 100.0 * speed / speeds[row]);
        println!("{name}: {speed:.2} GB/s, {of_vchan:.0} % of a vchan, {of_sockets:.0} % of two sockets");
    }
    for (name, costs) in names[4..].iter().zip(&mut costs) {
        costs.sort_unstable_by_key(|cost| cost.busy);
        let Cost { busy, switches } = &costs[ROUNDS / 2];
        let per_mib = *switches as f64 / (BULK >> 20) as f64;
        println!("{name}: the agents were busy for {busy:.0?}, and slept {per_mib:.1} times for a MiB");
    }
}

/// What both agents have had of the processors, and how often they slept.
#[derive(Clone, Copy)]
struct Cost {
    busy: Duration,
    switches: u64,
}

impl Cost {
    fn of_agents(stage: &Stage) -> Self {
        let mut all = Self { busy: Duration::ZERO, switches: 0 };
        for domid in [stage::WORK.1, stage::VAULT.1] {
            let of_agent = |name: &str| {
                std::fs::read_to_string(format!("/proc/{}/{name}", stage.agent(domid).id())).unwrap()
            };
            let busy = of_agent("schedstat").split(' ').next().unwrap().parse().unwrap();
            all.busy += Duration::from_nanos(busy);
            let status = of_agent("status");
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
            all.switches += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
        all
    }

    fn since(&self, before: &Self) -> Self {
        Self { busy: self.busy - before.busy, switches: self.switches - before.switches }
    }
}

async fn call(agent: &Path, service: &str) -> Duration {
    let begin = Instant::now();
    let mut call = AsyncCall::start(agent, "vault:gpg", service).await.unwrap();
    if service.ends_with("sink") {
        give(&mut call).await;
        call.shutdown().await.unwrap();
        let mut answer = Vec::new();
        call.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"all");
        begin.elapsed()
    } else {
        let looked = take(&mut call).await;
        let time = begin.elapsed();
        looked.check();
        time
    }
}

fn start(role: &str, arguments: &[&Path], command: &mut std::process::Command) -> Child {
    command.env(ROLE, role).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

/// From a thread to this one by Unix sockets, with so many programs between them that copy.
async fn sockets(stage: &Stage, copiers: usize) -> Duration {
    let path = |number: usize| stage.path(&format!("hop-{number}"));
    let listener = UnixListener::bind(path(copiers)).unwrap();
    let mut children = Vec::new();
    for copier in 0..copiers {
        let this = env::current_exe().unwrap();
        let mut child =
            start("copy", &[&path(copier), &path(copier + 1)], &mut std::process::Command::new(this));
        // It says when it is there.
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        children.push(child);
    }
    let first = path(0);
    let giver = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { give(&mut UnixStream::connect(first).await.unwrap()).await });
    });
    let (mut socket, _) = listener.accept().await.unwrap();
    let begin = Instant::now();
    let looked = take(&mut socket).await;
    let time = begin.elapsed();
    looked.check();
    giver.join().unwrap();
    children.iter_mut().for_each(|child| assert!(child.wait().unwrap().success()));
    (0..=copiers).for_each(|number| std::fs::remove_file(path(number)).unwrap());
    time
}

/// By a vchan between the same domains, with rings as large.
fn raw(stage: &Stage, role: &str) -> Duration {
    let end = |domid: u16, end: &str| {
        let mut command = stage.host().command(domid, env::current_exe().unwrap());
        start(&format!("{end} {role}"), &[], &mut command)
    };
    // The other domain has granted half of what it may.
    let (server, client) = (end(stage::VAULT.1, "server"), end(stage::WORK.1, "client"));
    assert!(server.wait_with_output().unwrap().status.success());
    let output = client.wait_with_output().unwrap();
    Duration::from_nanos(String::from_utf8(output.stdout).unwrap().trim().parse().unwrap())
}

/// What a process of this bench's is that is not the bench.
pub(super) fn end(role: &str) {
    match role.split_once(' ') {
        Some(("server", how)) => raw_server(how == "busy"),
        Some((_, how)) => raw_client(how == "busy"),
        None => copier(),
    }
}

fn path() -> String {
    format!("data/vchan/{}/9", stage::WORK.1)
}

fn raw_server(busy: bool) {
    let options = ListenOptions { read_min: 1 << 20, write_min: 1 << 20, ..ListenOptions::default() };
    let listener = Listener::open(&Host, DomId(stage::WORK.1), &path(), &options).unwrap();
    let mut channel = listener.accept().unwrap();
    let mut bytes = vec![0; CHUNK];
    for number in 0..BULK / CHUNK {
        if busy {
            make(&mut bytes, number);
        }
        channel.send_all(&bytes).unwrap();
    }
    channel.wait_until_read().unwrap();
}

fn raw_client(busy: bool) {
    let options = ConnectOptions { wait: Some(Duration::from_secs(60)), ..ConnectOptions::default() };
    let path = format!("/local/domain/{}/{}", stage::VAULT.1, path());
    let mut channel = Channel::connect(&Host, DomId(stage::VAULT.1), &path, &options).unwrap();
    let mut bytes = vec![0; CHUNK];
    let mut looked = Looked::default();
    channel.recv_exact(&mut bytes[..1]).unwrap();
    looked.at(&bytes[..1]);
    let begin = Instant::now();
    for part in (1..BULK).step_by(CHUNK) {
        let part = &mut bytes[..CHUNK.min(BULK - part)];
        channel.recv_exact(part).unwrap();
        if busy {
            looked.at(part);
        }
    }
    println!("{}", begin.elapsed().as_nanos());
    if busy {
        looked.check();
    }
}

/// From one socket to another, and that is all.
fn copier() {
    let [from, to] = [1, 2].map(|number| env::args_os().nth(number).unwrap());
    let listener = blocking::UnixListener::bind(from).unwrap();
    print!("!");
    std::io::stdout().flush().unwrap();
    let (mut from, mut to) = (listener.accept().unwrap().0, blocking::UnixStream::connect(to).unwrap());
    let mut bytes = vec![0; CHUNK];
    loop {
        match from.read(&mut bytes).unwrap() {
            0 => return,
            read => to.write_all(&bytes[..read]).unwrap(),
        }
    }
}
