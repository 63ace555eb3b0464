//! The whole path: nexusd in dom0, agents in two qubes and in dom0, and control vchans.

use crate::calls::serve;
use crate::host::Process;
use crate::stage::{Stage, VAULT, WORK};
use serde_json::json;
use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{env, fs};
use xen::{Platform, Transaction};

const SOON: Duration = Duration::from_secs(2);
/// What a domain is called, for the process that says so in xenstore.
const NAME: &str = "NEXUS_TEST_QUBE";

/// A stage with nexusd.
pub(crate) struct Whole {
    stage: Stage,
    nexusd: Option<Child>,
}

impl Whole {
    fn new(name: &str, policy: &str) -> Self {
        Self::of(name, policy, &[WORK.0, VAULT.0])
    }

    /// With agents of ours in these of the qubes.
    pub(crate) fn of(name: &str, policy: &str, ours: &[&str]) -> Self {
        let all: [(&str, u16, &[&str]); 2] =
            [(WORK.0, WORK.1, &["mail", "web"]), (VAULT.0, VAULT.1, &["gpg", "http"])];
        let qubes: Vec<_> = all.into_iter().filter(|(qube, ..)| ours.contains(qube)).collect();
        let control = json!({ "control": { "vchan": true } });
        let stage = Stage::of(&format!("whole-{name}"), |_, _, _| false, &control, &qubes);
        let mut whole = Self { stage, nexusd: None };
        for (qube, domid, _) in qubes {
            let mut command = whole.host().command(domid, env::current_exe().unwrap());
            command.args(["--ignored", "--exact", "nexusd::a_domain_is_named"]).env(NAME, qube);
            assert!(command.status().unwrap().success());
        }
        for folder in ["dom0-policy", "dom0-log"] {
            fs::create_dir(whole.path(folder)).unwrap();
        }
        fs::write(whole.path("dom0-policy/30-test.policy"), policy).unwrap();
        let system = json!({ "qubes": {
            WORK.0: { "type": "AppVM", "containers": ["mail", "web"] },
            VAULT.0: { "type": "AppVM", "containers": ["gpg", "http"] },
        } });
        fs::write(whole.path("system.json"), system.to_string()).unwrap();
        let settings = json!({
            "policy": [whole.path("dom0-policy")],
            "system": whole.path("system.json"),
            "socket": whole.path("control.sock"),
            "log": whole.path("dom0-log/calls.jsonl"),
            "metrics": whole.path("metrics.sock"),
            "made": whole.path("made"),
            "calls": 8,
        });
        fs::write(whole.path("nexusd.json"), settings.to_string()).unwrap();
        whole.start_nexusd();
        let control = json!({ "socket": whole.path("control.sock") });
        whole.stage.add("dom0", 0, &control);
        whole.is_served(ours);
        whole
    }

    fn start_nexusd(&mut self) {
        let log = fs::File::options().append(true).create(true).open(self.path("nexusd.err")).unwrap();
        let mut command = self.host().command(0, env!("CARGO_BIN_EXE_nexusd"));
        command.arg("--config").arg(self.path("nexusd.json")).stderr(log);
        self.nexusd = Some(command.spawn().unwrap());
    }

    fn kill_nexusd(&mut self) {
        let mut nexusd = self.nexusd.take().unwrap();
        nexusd.kill().unwrap();
        nexusd.wait().unwrap();
    }

    /// Waits until these qubes and dom0 are heard: what is not allowed is refused then, and not a problem.
    fn is_served(&self, ours: &[&str]) {
        let heard = [(WORK.0, "vault:http"), (VAULT.0, "work:web"), ("dom0", "work:web")];
        for (qube, target) in heard.into_iter().filter(|(qube, _)| *qube == "dom0" || ours.contains(qube)) {
            self.until(|| {
                let mut command = self.caller_of(qube, "qube", target, "q.Nobody");
                let output = command.stdin(std::process::Stdio::null()).output().unwrap();
                output.status.code() == Some(126)
            });
        }
    }

    fn ends(&self) -> Vec<serde_json::Value> {
        let log = fs::read_to_string(self.path("dom0-log/calls.jsonl")).unwrap_or_default();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Deref for Whole {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl DerefMut for Whole {
    fn deref_mut(&mut self) -> &mut Stage {
        &mut self.stage
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(self.path("nexusd.err")).unwrap_or_default());
            println!("{:#?}", self.ends());
        }
        if let Some(nexusd) = &mut self.nexusd {
            let _ = nexusd.kill();
            let _ = nexusd.wait();
        }
    }
}

#[test]
#[ignore = "the other tests run it, in a domain"]
fn a_domain_is_named() {
    let store = xen::host::Host.xenstore().unwrap();
    store.write(Transaction::NONE, "name", env::var(NAME).unwrap().as_bytes()).unwrap();
}

fn upper(stage: &Stage, path: &str) {
    serve(stage.path(path), |mut socket| {
        let mut said = Vec::new();
        socket.read_to_end(&mut said).unwrap();
        socket.write_all(&said.to_ascii_uppercase()).unwrap();
    });
}

const POLICY: &str = "q.Upper * work:mail vault:gpg allow
q.Upper * work:mail dom0 allow
q.Upper * dom0 vault:gpg allow
q.Hold * work:mail vault:gpg allow
";

pub(crate) fn run(command: &mut Command, input: &[u8]) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    // A call that is refused reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn dom0_lets_calls_through_and_refuses_others() {
    let whole = Whole::new("policy", POLICY);
    upper(&whole, "vault/gpg/q.Upper");
    whole.service("dom0", "q.Upper", "tr a-z A-Z; echo $QREXEC_REMOTE_DOMAIN");
    let call = |from: &str, target: &str, service: &str| {
        run(&mut whole.caller("mail", target, service), from.as_bytes())
    };
    assert_eq!(call("one", "vault:gpg", "q.Upper"), (Some(0), "Q.UPPER+ WORK:MAIL\0ONE".to_owned()));
    assert_eq!(call("two", "dom0", "q.Upper"), (Some(0), "TWOwork:mail\n".to_owned()));
    let from_dom0 = run(&mut whole.caller_of("dom0", "qube", "vault:gpg", "q.Upper"), b"three");
    assert_eq!(from_dom0, (Some(0), "Q.UPPER+ DOM0\0THREE".to_owned()));
    assert_eq!(call("", "vault:http", "q.Upper"), (Some(126), String::new()));
    assert_eq!(run(&mut whole.caller("web", "vault:gpg", "q.Upper"), b""), (Some(126), String::new()));
    assert_eq!(call("", "vault:gpg", "q.Hold"), (Some(127), String::new()));
    whole.until(|| whole.ends().iter().filter(|entry| entry.to_string().contains("\"exit\":")).count() >= 4);
}

#[test]
fn the_death_of_nexusd_takes_no_call_along_that_is_carried() {
    let mut whole = Whole::new("death", POLICY);
    fs::write(whole.path("vault/rpc-config/q.Hold"), "exit-on-service-eof=true\n").unwrap();
    let (sender, sockets) = std::sync::mpsc::channel();
    serve(whole.path("vault/gpg/q.Hold"), move |mut socket| {
        socket.write_all(b"held").unwrap();
        sender.send(socket).unwrap();
    });
    let mut held = Process::start(&mut whole.caller("mail", "vault:gpg", "q.Hold"));
    held.await_text("held");
    let mut socket = sockets.recv().unwrap();
    whole.kill_nexusd();
    let begin = Instant::now();
    let output = whole.call("mail", "vault:gpg", "q.Hold", b"");
    assert_eq!(output.status.code(), Some(125), "nobody to ask");
    assert!(begin.elapsed() < SOON);
    socket.write_all(b"and still").unwrap();
    held.await_text("and still");
    whole.start_nexusd();
    whole.is_served(&[WORK.0, VAULT.0]);
    // Others come through, and the old one ends as it should.
    let mut another = whole.start_call("mail", "vault:gpg", "q.Hold");
    another.await_text("held");
    drop(sockets.recv().unwrap());
    assert_eq!(another.wait().code(), Some(0));
    drop(socket);
    assert_eq!(held.wait().code(), Some(0));
}

#[test]
fn a_qube_that_has_as_many_calls_as_it_may_is_refused_one_more() {
    let whole = Whole::new("limit", POLICY);
    let (sender, sockets) = std::sync::mpsc::channel();
    serve(whole.path("vault/gpg/q.Hold"), move |mut socket| {
        socket.write_all(b"held").unwrap();
        sender.send(socket).unwrap();
    });
    let mut held: Vec<_> =
        (0..8).map(|_| Process::start(&mut whole.caller("mail", "vault:gpg", "q.Hold"))).collect();
    held.iter_mut().for_each(|process| process.await_text("held"));
    assert_eq!(whole.call("mail", "vault:gpg", "q.Hold", b"").status.code(), Some(126));
    held[0].kill();
    let _sockets: Vec<_> = sockets.try_iter().collect();
    whole.until(|| {
        let mut next = whole.start_call("mail", "vault:gpg", "q.Hold");
        while !next.has_ended() && sockets.try_recv().is_err() {
            std::thread::sleep(Duration::from_millis(2));
        }
        !next.has_ended()
    });
}

#[test]
fn dom0_runs_commands_in_qubes_and_containers_and_nobody_else_does() {
    let policy = include_str!("../../policy.d/90-nexus.policy");
    let whole = Whole::new("administration", &format!("{policy}qubes.VMExec * @adminvm vault:gpg allow\n"));
    let service = env!("CARGO_BIN_EXE_nexus-service");
    // A program of the qube's, and a socket of the container's, for which systemd starts a process each time.
    std::os::unix::fs::symlink(service, whole.path("vault/services/qubes.VMExec")).unwrap();
    fs::write(whole.path("vault/rpc-config/qubes.VMExec"), "service-messages=true\n").unwrap();
    serve(whole.path("vault/gpg/qubes.VMExec"), move |socket| {
        let socket = std::os::fd::OwnedFd::from(socket);
        let mut answering = Command::new(service);
        answering.args(["answer", "qubes.VMExec"]).stdin(socket).status().unwrap();
    });
    let exec = |from: &str, target: &str, words: &[&str]| {
        let service = nexus::command::service(None, words).unwrap().to_string();
        whole.caller_of(from, "qube", target, &service)
    };
    for target in ["vault", "vault:gpg"] {
        let said =
            run(&mut exec("dom0", target, &["sh", "-c", "cat; echo \"$1\"; exit 5", "sh", "a  b"]), b"in ");
        assert_eq!(said, (Some(5), "in a  b\n".to_owned()), "{target}");
        let bytes = vec![b'x'; 3 << 20];
        assert_eq!(run(&mut exec("dom0", target, &["wc", "-c"]), &bytes).1, "3145728\n", "{target}");
        let back = run(&mut exec("dom0", target, &["head", "-c", "3145728", "/dev/zero"]), b"").1;
        assert_eq!(back.len(), 3 << 20, "{target}");
        assert_eq!(run(&mut exec("dom0", target, &["no.such.command"]), b"").0, Some(127), "{target}");
        assert_eq!(run(&mut exec("work", target, &["true"]), b"").0, Some(126), "{target}");
        // Who called and goes takes the command along.
        let mark = whole.path("pid");
        let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000", mark.display());
        let mut caller = exec("dom0", target, &["sh", "-c", &script]).spawn().unwrap();
        whole.until(|| mark.exists());
        let command =
            std::path::PathBuf::from(format!("/proc/{}", fs::read_to_string(&mark).unwrap().trim()));
        assert!(command.exists());
        caller.kill().unwrap();
        caller.wait().unwrap();
        whole.until(|| !command.exists());
        fs::remove_file(mark).unwrap();
    }
    assert_eq!(
        run(&mut exec("dom0", "work:mail", &["true"]), b"").0,
        Some(126),
        "a container of another qube"
    );
}
