//! Calls between qubes over a simulated host, with agents as processes: one after the other, 16 callers at once, and in
//! bulk, beside what it is made of in the same run.
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
#[path = "calls/bulk.rs"]
mod bulk;
#[path = "../../vchan/tests/sim/host.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use all of it")]
mod host;
#[path = "../tests/qubes/stage.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use all of it")]
mod stage;

use nexus::client::AsyncCall;
use stage::Stage;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

/// How many bytes go in bulk, and how many of them a program makes or looks at in one go.
const BULK: usize = 1 << 30;
const CHUNK: usize = 64 << 10;
/// Of each row in bulk, so many in turn; the middle one counts.
const ROUNDS: usize = 3;
/// An end of a raw vchan or a copier, in a process of its own.
const ROLE: &str = "NEXUS_BENCH_ROLE";

fn main() {
    if let Ok(role) = env::var(ROLE) {
        return bulk::end(&role);
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
        bulk::rows(&stage, &runtime, &agent);
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
                        // What it is asked for, and a NUL.
                        let mut asked = Vec::with_capacity(64);
                        while socket.read_u8().await.map(|byte| asked.push(byte)).is_ok() {
                            if asked.ends_with(&[0]) {
                                break;
                            }
                        }
                        if asked.starts_with(b"q.Bulk+sink") {
                            bulk::take(&mut socket).await;
                            socket.write_all(b"all").await
                        } else {
                            bulk::give(&mut socket).await;
                            Ok(())
                        }
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
