//! What a call asks of the kernel.

use crate::stage::{Stage, VAULT, WORK};
use nexus::client::AsyncCall;
use std::fs;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::{LocalSet, spawn_local};

fn allow(_: &str, _: &str, _: &str) -> bool {
    true
}

/// How often both agents have written something other than a message to nexusd: to a socket, to their logs, or to an event
/// channel's device. (write and writev of proc(5): `syscw`; send(2) is not among them.)
fn writes(stage: &Stage) -> [u64; 2] {
    [WORK.1, VAULT.1].map(|domid| {
        let io = fs::read_to_string(format!("/proc/{}/io", stage.agent(domid).id())).unwrap();
        let line = io.lines().find(|line| line.starts_with("syscw: ")).unwrap();
        line["syscw: ".len()..].parse().unwrap()
    })
}

/// With a service at `vault:gpg` that reads all, and then says how many bytes it were.
fn with_service(test: impl AsyncFnOnce(&Stage)) {
    let stage = Stage::new("counts", allow);
    let settings = "skip-service-descriptor=true\nexit-on-service-eof=true\n";
    fs::write(stage.path("vault/rpc-config/q.Count"), settings).unwrap();
    let path = stage.path("vault/gpg/q.Count");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let listener = UnixListener::bind(path).unwrap();
        spawn_local(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await.unwrap();
                socket.write_all(&(all.len() as u64).to_le_bytes()).await.unwrap();
            }
        });
        test(&stage).await;
    });
}

async fn call(stage: &Stage, bytes: &[u8]) {
    let mut call = AsyncCall::start(&stage.path("work/mail.sock"), "vault:gpg", "q.Count").await.unwrap();
    call.write_all(bytes).await.unwrap();
    call.shutdown().await.unwrap();
    let mut answer = Vec::new();
    call.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, (bytes.len() as u64).to_le_bytes());
    assert_eq!(call.exit_code().await.unwrap(), 0);
}

#[test]
fn a_short_call_is_one_event_there_and_one_back() {
    with_service(async |stage| {
        call(stage, b"warm").await;
        const CALLS: u64 = 100;
        let before = writes(stage);
        for _ in 0..CALLS {
            call(stage, b"how many bytes are these?").await;
        }
        let after = writes(stage);
        let [work, vault] = [0, 1].map(|agent| after[agent] - before[agent]);
        // To its client: hello, the answer, and its end with the exit code. An event with the whole request; a line of the
        // log; and the runtime tells itself of an earlier timer. Where somebody is slow, one more now and then.
        assert!((4 * CALLS..13 * CALLS / 2).contains(&work), "{work} writes of the caller's agent");
        // The request, an event with the answer and the exit code, a line of the log, and the timer.
        assert!((3 * CALLS..9 * CALLS / 2).contains(&vault), "{vault} writes of the service's agent");
    });
}

#[test]
fn a_stream_is_few_frames_and_fewer_events() {
    with_service(async |stage| {
        const MIB: usize = 64;
        let bytes = vec![7; MIB << 20];
        call(stage, b"warm").await;
        let before = writes(stage);
        call(stage, &bytes).await;
        let after = writes(stage);
        let [work, vault] = [0, 1].map(|agent| (after[agent] - before[agent]) as usize);
        // All that the caller's agent writes are events.
        assert!(work < 32 * MIB, "{work} events for {MIB} MiB");
        // 16 frames of 64 KiB, if none is parted: by what was there, by what the socket had room for, or by a credit's end.
        assert!((16 * MIB..64 * MIB).contains(&vault), "{vault} writes of the service's agent for {MIB} MiB");
    });
}
