//! A qube whose agent breaks the rules: it loses its channel, and nobody else anything.

use crate::calls::serve;
use crate::host::{Process, beside};
use crate::stage::{Stage, VAULT, WORK};
use std::fs;
use std::io::{Read, Write};

const EVIL: (&str, u16) = ("evil", 3);

fn allow(_: &str, _: &str, _: &str) -> bool {
    true
}

/// The qubes `work` and `vault`, and a place for the third.
fn stage(name: &str) -> Stage {
    let stage = Stage::new(name, allow);
    stage.broker.listen(EVIL.0, EVIL.1);
    serve(stage.path("vault/gpg/q.Hold"), |mut socket| {
        let mut byte = [1];
        while byte != [0] {
            socket.read_exact(&mut byte).unwrap();
        }
        socket.write_all(b"held").unwrap();
        let _ = std::io::copy(&mut socket.try_clone().unwrap(), &mut socket);
    });
    stage
}

fn evil(stage: &Stage, peer: u16, role: &str, misdeed: &str) -> Process {
    let mut command = stage.host().command(EVIL.1, beside("../examples/hostile-agent"));
    command
        .arg(stage.broker.socket(EVIL.0))
        .args([EVIL.1.to_string(), peer.to_string(), role.to_owned(), misdeed.to_owned()])
        .envs([("SOURCE", "evil"), ("TARGET", "vault:gpg"), ("SERVICE", "q.Hold")]);
    Process::start(&mut command)
}

/// A call between the other two, that is held meanwhile.
struct Honest(Process);

impl Honest {
    fn begin(stage: &Stage) -> Self {
        let mut process = Process::start(&mut stage.caller("mail", "vault:gpg", "q.Hold"));
        process.await_text("held");
        Self(process)
    }

    fn goes_on(mut self) {
        let mut stdin = self.0.child.stdin.take().unwrap();
        stdin.write_all(b"and is heard").unwrap();
        self.0.await_text("and is heard");
    }
}

/// Kibibytes of memory that were used at once, at most.
fn peak(stage: &Stage, domid: u16) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", stage.agent(domid).id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_service_that_breaks_the_rules_loses_its_channel() {
    for misdeed in ["overrun", "credit", "kind", "length", "part"] {
        let stage = stage(&format!("service-{misdeed}"));
        let mut evil = evil(&stage, WORK.1, "service", misdeed);
        stage.until(|| stage.broker.has(EVIL.0));
        let honest = Honest::begin(&stage);
        let before = peak(&stage, WORK.1);
        let output = stage.call("mail", "evil", "q.Any", b"");
        assert_eq!(output.status.code(), Some(125), "{misdeed}: {}", stage.logs());
        evil.await_text("closed");
        honest.goes_on();
        let more = peak(&stage, WORK.1) - before;
        assert!(more < 8 << 10, "{misdeed}: {more} KiB");
    }
}

#[test]
fn a_caller_that_breaks_the_rules_loses_its_channel() {
    for misdeed in ["early", "parked", "twice", "kind"] {
        let stage = stage(&format!("caller-{misdeed}"));
        let honest = Honest::begin(&stage);
        let before = peak(&stage, VAULT.1);
        let mut evil = evil(&stage, VAULT.1, "caller", misdeed);
        evil.await_text("closed");
        honest.goes_on();
        let more = peak(&stage, VAULT.1) - before;
        assert!(more < 8 << 10, "{misdeed}: {more} KiB");
    }
}

#[test]
fn calls_that_dom0_knows_nothing_of_take_no_room() {
    let stage = stage("flood");
    let honest = Honest::begin(&stage);
    let before = peak(&stage, VAULT.1);
    let mut evil = evil(&stage, VAULT.1, "caller", "flood");
    evil.await_text("done");
    let more = peak(&stage, VAULT.1) - before;
    assert!(more < 8 << 10, "{more} KiB");
    honest.goes_on();
    let output = stage.call("mail", "vault:gpg", "q.None", b"");
    assert_eq!(output.status.code(), Some(127), "others are served");
}
