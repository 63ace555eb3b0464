//! Without warm channels: a channel ends as soon as it has no call, and no byte is left in a ring.

use crate::calls::serve;
use crate::stage::{Stage, VAULT, WORK};
use serde_json::json;
use std::io::{Read, Write};
use std::time::{Duration, Instant};
use std::{env, thread};
use xen::host::Host;
use xen::{Platform, Transaction};

fn allow(_: &str, _: &str, _: &str) -> bool {
    true
}

/// Bytes of no pattern.
fn bytes(count: u32) -> Vec<u8> {
    (0..count).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Where the channel is, in the caller's domain.
fn channels() -> Vec<String> {
    let store = Host.xenstore().unwrap();
    store.directory(Transaction::NONE, &format!("data/vchan/{}", VAULT.1)).unwrap_or_default()
}

#[test]
#[ignore = "the test below runs it, in the caller's domain"]
fn the_channel_ends() {
    let begin = Instant::now();
    while channels().iter().any(|port| port == "510") {
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", channels());
        thread::sleep(Duration::from_millis(20));
    }
}

fn no_channel(stage: &Stage) {
    let mut command = stage.host().command(WORK.1, env::current_exe().unwrap());
    let output = command.args(["--ignored", "--exact", "cold::the_channel_ends"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn calls_go_on_without_warm_channels() {
    let settings = json!({ "channels": { "keep_seconds": 0, "hold_milliseconds": 0 } });
    let stage = Stage::with("cold", allow, &settings);
    serve(stage.path("vault/gpg/q.Upper"), |mut socket| {
        let mut said = Vec::new();
        socket.read_to_end(&mut said).unwrap();
        socket.write_all(&said.to_ascii_uppercase()).unwrap();
    });
    stage.service("vault", "q.Cat", "cat; exit 7");
    stage.service("work", "q.Cat", "cat; exit 7");
    // Each of these calls finds no channel, and makes one.
    for _ in 0..3 {
        no_channel(&stage);
        let output = stage.call("mail", "vault:gpg", "q.Upper+x", b"hello");
        assert_eq!(output.stdout, b"Q.UPPER+X WORK:MAIL\0HELLO", "{}", stage.logs());
    }
    // The channel ends when the service's agent has heard of a call, and before the caller's: the next one carries it.
    stage.broker.tell_callers_later(Duration::from_millis(2_500));
    let begin = Instant::now();
    let output = stage.call("mail", "vault:gpg", "q.Upper+x", b"hello");
    assert_eq!(output.stdout, b"Q.UPPER+X WORK:MAIL\0HELLO", "{}", stage.logs());
    assert!(begin.elapsed() < Duration::from_secs(8), "it was waited for");
    stage.broker.tell_callers_later(Duration::ZERO);
    // Many bytes, both ways at once, and a reader that takes its time: what is not held in the ring is kept.
    let many = bytes(8 << 20);
    for target in ["vault", "vault:gpg"] {
        let service = if target == "vault" { "q.Cat" } else { "q.Upper" };
        let mut caller = stage.caller("mail", target, service).spawn().unwrap();
        let mut stdin = caller.stdin.take().unwrap();
        let mut stdout = caller.stdout.take().unwrap();
        let mut back = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                stdin.write_all(&many).unwrap();
                drop(stdin);
            });
            let mut part = vec![0; 1 << 20];
            loop {
                let read = stdout.read(&mut part).unwrap();
                if read == 0 {
                    break;
                }
                back.extend_from_slice(&part[..read]);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let code = caller.wait().unwrap().code();
        match target {
            "vault" => assert!(back == many && code == Some(7), "{} bytes, {code:?}", back.len()),
            _ => {
                assert!(back.ends_with(&many.to_ascii_uppercase()) && code == Some(0), "{} bytes", back.len())
            }
        }
    }
    // Callers of both qubes, in whose calls the channels are looked after, once a second.
    let begin = Instant::now();
    thread::scope(|scope| {
        for number in 0..6_u64 {
            let stage = &stage;
            scope.spawn(move || {
                let mut calls = 0;
                while begin.elapsed() < Duration::from_secs(12) {
                    let (from, to) = if number % 3 == 0 { ("vault", "work") } else { ("work", "vault") };
                    let mut caller = stage.caller_of(from, "qube", to, "q.Cat").spawn().unwrap();
                    caller.stdin.take().unwrap().write_all(b"x").unwrap();
                    let output = caller.wait_with_output().unwrap();
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert_eq!(
                        (output.status.code(), &output.stdout[..]),
                        (Some(7), &b"x"[..]),
                        "{said}{}",
                        stage.logs()
                    );
                    calls += 1;
                    thread::sleep(Duration::from_millis(990 + (calls * 7 + number * 3) % 40));
                }
            });
        }
    });
}
