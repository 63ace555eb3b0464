//! Calls between qubes over a simulated host, with agents as processes: one after the other, 16 callers at once, and in
//! bulk, beside a raw vchan in the same run.
//!
//! `cargo bench -p tesseraqt-nexus --bench calls [-- latency|rate|bulk]`
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench says what it measures, and why it fails"
)]

#[path = "../tests/qubes/broker.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use all of it")]
mod broker;
#[path = "../../vchan/tests/sim/host.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use all of it")]
mod host;
#[path = "../tests/qubes/stage.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use all of it")]
mod stage;

use nexus::client::AsyncCall;
use stage::Stage;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use vchan::{ConnectOptions, ListenOptions, Listener};
use xen::DomId;
use xen::host::Host;

/// How many bytes go in bulk.
const BULK: usize = 1 << 30;
const CHUNK: usize = 64 << 10;
/// An end of the raw vchan, in a process of its own.
const RAW: &str = "NEXUS_BENCH_RAW";

fn main() {
    if let Ok(role) = env::var(RAW) {
        return raw_end(&role);
    }
    let wanted: Vec<String> = env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let stage = Stage::with("bench", |_, _, _| true, &serde_json::json!({}));
    fs::write(stage.path("vault/rpc-config/q.Echo"), "skip-service-descriptor=true\n").unwrap();
    fs::write(stage.path("vault/rpc-config/q.Bulk"), "exit-on-service-eof=true\n").unwrap();
    services(&stage);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let agent = stage.path("work/mail.sock");
    // The channel is made.
    runtime.block_on(echo(&agent));
    if wants("latency") {
        runtime.block_on(latency(&agent));
    }
    if wants("rate") {
        runtime.block_on(tokio::task::LocalSet::new().run_until(rate(&agent)));
    }
    if wants("bulk") {
        let raw = raw(&stage);
        println!("raw vchan: {:.2} GB/s", raw / 1e9);
        for (name, service) in [("to the service", "q.Bulk+sink"), ("to the caller", "q.Bulk+source")] {
            let speed = runtime.block_on(bulk(&agent, service));
            println!("{name}: {:.2} GB/s, {:.0} % of raw", speed / 1e9, 100.0 * speed / raw);
        }
    }
}

/// The services, in a thread of their own.
fn services(stage: &Stage) {
    let paths = ["q.Echo", "q.Bulk"].map(|name| stage.path(&format!("vault/gpg/{name}")));
    let (ready, is_ready) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let [echo, bulk] = paths.map(|path| UnixListener::bind(path).unwrap());
            ready.send(()).unwrap();
            loop {
                tokio::select! {
                    Ok((mut socket, _)) = echo.accept() => { tokio::spawn(async move {
                        let mut bytes = [0; 64];
                        while let Ok(read @ 1..) = socket.read(&mut bytes).await {
                            socket.write_all(&bytes[..read]).await?;
                        }
                        std::io::Result::Ok(())
                    }); }
                    Ok((mut socket, _)) = bulk.accept() => { tokio::spawn(async move {
                        let mut bytes = vec![0; CHUNK];
                        let read = socket.read(&mut bytes).await?;
                        if bytes[..read].starts_with(b"q.Bulk+sink") {
                            while socket.read(&mut bytes).await? > 0 {}
                            socket.write_all(b"all").await?;
                        } else {
                            for _ in 0..BULK / CHUNK {
                                socket.write_all(&bytes).await?;
                            }
                        }
                        std::io::Result::Ok(())
                    }); }
                }
            }
        });
    });
    is_ready.recv().unwrap();
}

async fn echo(agent: &Path) {
    let mut call = AsyncCall::start(agent, "vault:gpg", "q.Echo").await.unwrap();
    call.write_all(b"hello").await.unwrap();
    call.shutdown().await.unwrap();
    let mut answer = Vec::with_capacity(8);
    call.read_to_end(&mut answer).await.unwrap();
    assert_eq!((&answer[..], call.exit_code().await.unwrap()), (&b"hello"[..], 0));
}

async fn latency(agent: &Path) {
    const CALLS: usize = 2000;
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let begin = Instant::now();
        echo(agent).await;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    let at = |percent: usize| times[(CALLS - 1) * percent / 100].as_micros();
    println!("a call: median {} us, 90 % {} us, 99 % {} us", at(50), at(90), at(99));
}

async fn rate(agent: &Path) {
    const TIME: Duration = Duration::from_secs(3);
    let begin = Instant::now();
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let agent = agent.to_owned();
            tokio::task::spawn_local(async move {
                let mut calls = 0_u32;
                while begin.elapsed() < TIME {
                    echo(&agent).await;
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.unwrap();
    }
    println!("16 callers: {:.0} calls/s", f64::from(calls) / begin.elapsed().as_secs_f64());
}

/// Bytes per second.
async fn bulk(agent: &Path, service: &str) -> f64 {
    let mut call = AsyncCall::start(agent, "vault:gpg", service).await.unwrap();
    let mut bytes = vec![7; CHUNK];
    let begin = Instant::now();
    let received = if service.ends_with("sink") {
        for _ in 0..BULK / CHUNK {
            call.write_all(&bytes).await.unwrap();
        }
        call.shutdown().await.unwrap();
        call.read_to_end(&mut Vec::new()).await.unwrap() - 3 + BULK
    } else {
        let mut received = 0;
        loop {
            match call.read(&mut bytes).await.unwrap() {
                0 => break received,
                read => received += read,
            }
        }
    };
    assert_eq!(received, BULK);
    BULK as f64 / begin.elapsed().as_secs_f64()
}

/// Bytes per second by a vchan between the same domains, with rings as large.
fn raw(stage: &Stage) -> f64 {
    let end = |domid: u16, role: &str| {
        let mut command = stage.host().command(domid, env::current_exe().unwrap());
        command.env(RAW, role).stdin(Stdio::null()).spawn().unwrap()
    };
    // The other domain has granted half of what it may.
    let (server, client) = (end(stage::VAULT.1, "server"), end(stage::WORK.1, "client"));
    assert!(server.wait_with_output().unwrap().status.success());
    let output = client.wait_with_output().unwrap();
    let nanoseconds: f64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    BULK as f64 / nanoseconds * 1e9
}

fn raw_end(role: &str) {
    let path = format!("data/vchan/{}/9", stage::WORK.1);
    let mut bytes = vec![7; CHUNK];
    if role == "server" {
        let options = ListenOptions { read_min: 1 << 20, write_min: 1 << 20, ..ListenOptions::default() };
        let listener = Listener::open(&Host, DomId(stage::WORK.1), &path, &options).unwrap();
        let mut channel = listener.accept().unwrap();
        for _ in 0..BULK / CHUNK {
            channel.send_all(&bytes).unwrap();
        }
        channel.wait_until_read().unwrap();
    } else {
        let options = ConnectOptions { wait: Some(Duration::from_secs(60)), ..ConnectOptions::default() };
        let path = format!("/local/domain/{}/{path}", stage::VAULT.1);
        let mut channel = vchan::Channel::connect(&Host, DomId(stage::VAULT.1), &path, &options).unwrap();
        channel.recv(&mut bytes[..1]).unwrap();
        let begin = Instant::now();
        for part in (1..BULK).step_by(CHUNK) {
            let length = CHUNK.min(BULK - part);
            channel.recv_exact(&mut bytes[..length]).unwrap();
        }
        println!("{}", begin.elapsed().as_nanos());
    }
}
