//! What nexusd does while it runs.

use super::host::{Host, NEXUS, until};
use nexus::broker::{Outcome, Record};
use nexus::wire::control::{Ended, Role};
use nexus::wire::{Link, Message};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

const POLICY: &str = "\
test.Allowed  *  work       vault      allow
test.Mail     *  work:mail  vault:gpg  allow
test.Dom0     *  work       @adminvm   allow
";

#[test]
fn a_call_is_decided_told_and_written_down() {
    let mut host = Host::new(POLICY);
    host.start();
    let mut work = host.agent("work", 1, NEXUS);
    let mut vault = host.agent("vault", 2, 3);
    work.request("", "vault", "test.Allowed+x");
    let port = vault.hear(|message| match message {
        Message::ExecCmdline(execute) => {
            assert_eq!(execute.command, b"user:QUBESRPC test.Allowed+x work");
            assert_eq!(execute.link.domain, 1);
            execute.link.port
        }
        other => panic!("{other:?}"),
    });
    let call = work.joined();
    assert_eq!(host.figure("nexus_open_calls"), "1");
    assert_eq!(host.figure("nexus_control_connections"), "2");
    work.say(&Message::Ended(Ended { call, exit: 3, role: Role::Caller, to_service: 10, to_caller: 20 }));
    vault.say(&Message::ConnectionTerminated(Link { domain: 1, port }));
    host.becomes("nexus_open_calls", "0");
    work.request("", "vault", "test.Unheard");
    work.refused();
    let log = host.log();
    let [allowed, ended, denied] = &log[..] else { panic!("{log:?}") };
    let Record::Decision(allowed) = &allowed.record else { panic!("{allowed:?}") };
    assert_eq!(
        (allowed.verdict, allowed.source.as_str(), allowed.to.as_deref()),
        (Outcome::Allow, "work", Some("vault"))
    );
    assert!(allowed.rule.as_ref().is_some_and(|rule| rule.ends_with("/30-test.policy:1")), "{allowed:?}");
    let Record::End(end) = &ended.record else { panic!("{ended:?}") };
    assert_eq!((&end.call, end.exit, end.bytes_to_caller), (&allowed.call, Some(3), Some(20)));
    assert!(ended.time.ends_with('Z'), "{}", ended.time);
    let Record::Decision(denied) = &denied.record else { panic!("{denied:?}") };
    assert_eq!(denied.verdict, Outcome::Deny);
    assert_eq!(host.figure("nexus_calls_total{verdict=\"deny\"}"), "1");
    assert_eq!(host.figure("nexus_decision_seconds_count"), "2");
}

#[test]
fn dom0_has_a_socket() {
    let mut host = Host::new(POLICY);
    host.start();
    let mut dom0 = host.dom0();
    let mut work = host.agent("work", 1, NEXUS);
    work.request("", "@adminvm", "test.Dom0");
    let call = work.joined();
    dom0.runs(call);
}

#[test]
fn policy_and_qubes_are_read_anew_and_the_log_is_opened_anew() {
    let mut host = Host::new(POLICY);
    host.start();
    let mut work = host.agent("work", 1, NEXUS);
    let mut vault = host.agent("vault", 2, NEXUS);
    work.request("work:mail", "vault:gpg", "test.Mail");
    let call = work.joined();
    vault.runs(call);

    let mut verdict = |allowed: bool| {
        until("what was written counts", || {
            work.request("work:mail", "vault:gpg", "test.Mail");
            let joined = work.hear(|message| match message {
                Message::Join(join) => Some(join.call),
                _ => None,
            });
            if let Some(call) = joined {
                vault.runs(call);
                for (agent, role) in [(&mut work, Role::Caller), (&mut vault, Role::Service)] {
                    agent.say(&Message::Ended(Ended { call, exit: 0, role, to_service: 0, to_caller: 0 }));
                }
            }
            joined.is_some() == allowed
        });
    };
    host.write("policy/10-first.policy", "* * work:mail vault:gpg deny\n");
    verdict(false);
    host.write("policy/10-first.policy", "this is no rule\n");
    host.becomes("nexus_policy_errors", "1");
    verdict(false);
    host.write("policy/10-first.policy", "# nothing\n");
    verdict(true);
    // A container that dom0 has taken away.
    host.write("system.json", r#"{ "qubes": { "work": { "type": "AppVM" }, "vault": { "type": "AppVM", "containers": ["gpg"] } } }"#);
    verdict(false);
    host.write("system.json", "{");
    verdict(false);
    host.write("system.json", r#"{ "qubes": { "work": { "type": "AppVM", "containers": ["mail"] }, "vault": { "type": "AppVM", "containers": ["gpg"] } } }"#);
    verdict(true);

    let (log, old) = (host.path("log/calls.jsonl"), host.path("log/calls.jsonl.1"));
    std::fs::rename(&log, &old).expect("a log");
    host.signal("HUP");
    until("the log is opened anew", || log.exists());
    verdict(true);
    assert!(!host.log().is_empty());
}

#[test]
fn dom0_has_one_agent_and_no_stranger_is_it() {
    let mut host = Host::new(POLICY);
    host.start();
    // Who is neither cannot open the socket.
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(host.path("control.sock")).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o007, 0, "{mode:o}");
    // A second agent of dom0 takes the first one's place.
    let mut first = host.dom0();
    let _second = host.dom0();
    assert_eq!(first.try_hear(|_| ()), None);
}

#[test]
fn it_has_given_up_what_it_does_not_need() {
    let mut host = Host::new(POLICY);
    let root = rustix::process::geteuid().is_root();
    if root {
        host.settings["user"] = "nobody".into();
    }
    host.start();
    assert_eq!(host.status("Seccomp"), "2");
    assert_eq!(host.status("NoNewPrivs"), "1");
    if root {
        assert_eq!(host.status("CapEff"), "0000000000000000");
        assert_eq!(host.status("CapPrm"), "0000000000000000");
        let user = host.status("Uid");
        assert!(user.split_whitespace().all(|uid| uid == "65534"), "{user}");
        assert_eq!(host.status("Groups"), "65534");
    }
    let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid())).expect("nexusd runs");
    for task in tasks {
        let status =
            std::fs::read_to_string(task.expect("a thread").path().join("status")).expect("a thread");
        assert!(status.contains("Seccomp:\t2"), "{status}");
        assert!(!root || status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
        assert!(!root || status.contains("CapPrm:\t0000000000000000"), "{status}");
    }
    // And it works: also what is opened anew.
    let mut work = host.agent("work", 1, NEXUS);
    let mut vault = host.agent("vault", 2, NEXUS);
    work.request("", "vault", "test.Allowed");
    let call = work.joined();
    vault.runs(call);
    host.write("policy/10-first.policy", "* * * * deny\n");
    until("the policy is read anew", || {
        work.request("", "vault", "test.Allowed");
        work.hear(|message| matches!(message, Message::ServiceRefused(_)))
    });
    let (log, old) = (host.path("log/calls.jsonl"), host.path("log/calls.jsonl.1"));
    std::fs::rename(&log, &old).expect("a log");
    host.signal("HUP");
    until("the log is opened anew", || log.exists());
}

#[test]
fn a_file_that_is_named_has_to_be_there() {
    let host = Host::new(POLICY);
    let missing = host.path("no.json");
    let output =
        Command::new(env!("CARGO_BIN_EXE_nexusd")).arg("--config").arg(&missing).output().expect("nexusd");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&missing.display().to_string()), "{said}");
}

#[test]
fn a_flood_does_not_stall_the_others() {
    let mut host = Host::new(POLICY);
    host.start();
    let mut work = host.agent("work", 1, NEXUS);
    let mut vault = host.agent("vault", 2, NEXUS);
    let untrusted = host.agent("untrusted", 3, NEXUS);
    let memory = |host: &Host| -> usize {
        let text = host.status("VmRSS");
        text.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a size")
    };
    let before = memory(&host);
    let mut bytes = Vec::new();
    for _ in 0..100 {
        super::host::request("", "vault", "test.Allowed").encode(&mut bytes).expect("a request");
    }
    let (mut writing, mut reading) =
        (untrusted.socket.try_clone().expect("a socket"), untrusted.socket.try_clone().expect("a socket"));
    writing.set_nonblocking(true).expect("a socket");
    reading.set_nonblocking(true).expect("a socket");
    let begin = Instant::now();
    let mut worst = Duration::ZERO;
    let mut calls = 0;
    let (mut sent, mut sunk) = (0, vec![0; 1 << 16]);
    while begin.elapsed() < Duration::from_secs(3) {
        use std::io::{Read, Write};
        while let Ok(written) = writing.write(&bytes[sent..]) {
            sent = (sent + written) % bytes.len();
        }
        while matches!(reading.read(&mut sunk), Ok(1..)) {}
        let asked = Instant::now();
        work.request("", "vault", "test.Allowed");
        let call = work.joined();
        worst = worst.max(asked.elapsed());
        vault.runs(call);
        for (agent, role) in [(&mut work, Role::Caller), (&mut vault, Role::Service)] {
            agent.say(&Message::Ended(Ended { call, exit: 0, role, to_service: 0, to_caller: 0 }));
        }
        calls += 1;
    }
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    assert!(calls > 30, "{calls}");
    let grown = memory(&host).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more");
}

#[test]
fn the_figures_answer_nothing_else() {
    let mut host = Host::new(POLICY);
    host.start();
    for (request, status) in [
        ("GET /other HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("\r\n\r\n", "405"),
    ] {
        use std::io::{Read, Write};
        let mut socket = UnixStream::connect(host.path("metrics.sock")).expect("a socket");
        socket.write_all(request.as_bytes()).expect("a request");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
}
