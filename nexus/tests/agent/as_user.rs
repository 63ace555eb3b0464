//! Services as another user than the agent's, by the starter, which is root's.
//!
//! To become somebody else takes root. Where the tests are not run by it, those that want it say so, and how many they are.

use crate::qube::{Qube, accept, text};
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Whether the tests are run by root; a test that is not is counted on stderr.
fn root() -> bool {
    static PASSED_OVER: AtomicUsize = AtomicUsize::new(0);
    let root = rustix::process::geteuid().is_root();
    if !root {
        let count = PASSED_OVER.fetch_add(1, Ordering::Relaxed) + 1;
        // Not captured, as what is printed would be.
        let said =
            writeln!(std::io::stderr(), "NOT TESTED without root: services as another user ({count} tests)");
        said.expect("stderr");
    }
    root
}

/// A qube whose agent is root's, with a starter beside it.
struct Started {
    qube: Qube,
}

impl Started {
    fn new(policy: &str, users: &[&str]) -> Self {
        let settings = serde_json::json!({ "user": "root", "users": users });
        let started = Self { qube: Qube::with(policy, &settings) };
        let qube = &started.qube;
        // So that somebody else comes by.
        fs::set_permissions(qube.path(""), Permissions::from_mode(0o755)).expect("the folder");
        let (settings, log) = (qube.path("agent.json"), qube.path("starter.log"));
        accept(qube.path("starter.sock"), move || starter(&settings, &log));
        started
    }

    fn starter_log(&self) -> String {
        fs::read_to_string(self.qube.path("starter.log")).unwrap_or_default()
    }
}

/// The process for one connection.
fn starter(settings: &Path, log: &Path) -> Command {
    let log = File::options().append(true).create(true).open(log).expect("a log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-service"));
    command.arg("--config").arg(settings).arg("as-user").env("QREXEC_LEFTOVER", "1").stderr(log);
    command
}

#[test]
fn a_service_runs_as_the_user_that_a_rule_or_its_settings_name() {
    if !root() {
        return;
    }
    let started = Started::new(
        "q.Who * work:web work allow user=nobody\nq.Force * work:web work allow\nq.Own * work:web work allow user=root\n",
        &["nobody"],
    );
    let qube = &started.qube;
    let script = "read line; echo \"$line $1 $(id -un) $(id -Gn) $(id -ru) $HOME $USER $LOGNAME $(pwd)\"; \
        echo \"$QREXEC_REMOTE_DOMAIN $QREXEC_SERVICE_FULL_NAME $QREXEC_SERVICE_ARGUMENT ${QREXEC_LEFTOVER-none} $QREXEC_REQUESTED_TARGET_TYPE\"; \
        echo bad >&2; cat; exit 9";
    for service in ["q.Who", "q.Force"] {
        qube.service(service, script);
    }
    fs::write(qube.path("rpc-config/q.Force"), "force-user=nobody\n").expect("settings");
    for service in ["q.Who", "q.Force"] {
        let output = qube.call("web", "work", &format!("{service}+-x"), b"hello\nand more");
        let expected = format!(
            "hello -x nobody nogroup 65534 /nonexistent nobody nobody /\nwork:web {service}+-x -x none \nand more"
        );
        assert_eq!(text(&output.stdout), expected, "{}{}", qube.log(), started.starter_log());
        assert_eq!((text(&output.stderr).as_str(), output.status.code()), ("bad\n", Some(9)));
    }
    let record = serde_json::json!({ "event": "start", "service": "q.Who+-x", "source": "work:web", "user": "nobody" });
    let log = started.starter_log();
    assert!(
        log.lines().any(|line| line.parse::<serde_json::Value>().is_ok_and(|line| line == record)),
        "{log}"
    );
    // Many bytes, both ways.
    qube.service("q.Who", "exec cat");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    assert!(qube.call("web", "work", "q.Who", &bytes).stdout == bytes);
    // Its own user is the agent's to be.
    qube.service("q.Own", "id -un");
    assert_eq!(text(&qube.call("web", "work", "q.Own", b"").stdout), "root\n");
    assert!(!started.starter_log().contains("q.Own"));
    // What the agent finds none of is none; and what cannot be run has failed.
    assert_eq!(qube.call("web", "work", "q.Who+gone", b"").status.code(), Some(0));
    fs::remove_file(qube.path("services/q.Who")).expect("a service");
    assert_eq!(qube.call("web", "work", "q.Who", b"").status.code(), Some(127));
    fs::write(qube.path("services/q.Who"), "no program").expect("a file");
    assert_eq!(qube.call("web", "work", "q.Who", b"").status.code(), Some(125));
}

#[test]
fn a_service_runs_as_nobody_who_is_not_listed() {
    if !root() {
        return;
    }
    let started = Started::new(
        "q.Daemon * work:web work allow user=daemon\nq.Socket * work:web work allow user=nobody\n\
         q.Nobody * work:web work allow user=nobody\n",
        &["nobody"],
    );
    let qube = &started.qube;
    for service in ["q.Daemon", "q.Nobody"] {
        qube.service(service, "echo ran; id -un");
    }
    let _listener = UnixListener::bind(qube.path("services/q.Socket")).expect("a service");
    let refused = |service, why: &str| {
        let output = qube.call("web", "work", service, b"");
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str()),
            (Some(125), ""),
            "{service}: {}",
            qube.log()
        );
        // What is written down is so behind the answer.
        qube.until(|| qube.log().contains(why));
    };
    refused("q.Daemon", r#"\"users\" of the agent's settings has not got daemon"#);
    refused("q.Socket", "a socket's service runs as whoever made it");
    assert_eq!(started.starter_log(), "", "the starter was not even asked");
    assert_eq!(text(&qube.call("web", "work", "q.Nobody", b"").stdout), "ran\nnobody\n");
    // It looks for itself, whatever the agent has read when it began.
    let settings = fs::read_to_string(qube.path("agent.json")).expect("settings");
    fs::write(qube.path("agent.json"), settings.replace(r#"["nobody"]"#, "[]")).expect("settings");
    refused("q.Nobody", "the starter (its log, nexus-as-user, says why): ");
    assert!(started.starter_log().contains(r#"nothing is run as "nobody""#), "{}", started.starter_log());
    // Everybody: who is there.
    let everybody = Started::new(
        "q.Daemon * work:web work allow user=daemon\nq.None * work:web work allow user=no.such.user\n",
        &["*"],
    );
    everybody.qube.service("q.Daemon", "id -un");
    everybody.qube.service("q.None", "id -un");
    assert_eq!(text(&everybody.qube.call("web", "work", "q.Daemon", b"").stdout), "daemon\n");
    assert_eq!(everybody.qube.call("web", "work", "q.None", b"").status.code(), Some(125));
    assert!(everybody.starter_log().contains(r#"there is no user "no.such.user" here"#));
}

#[test]
fn without_a_starter_a_service_does_not_run_and_the_log_says_why() {
    let settings = serde_json::json!({ "users": ["*"] });
    let qube = Qube::with("q.Nobody * work:web work allow user=nobody\n", &settings);
    qube.service("q.Nobody", "echo ran");
    let output = qube.call("web", "work", "q.Nobody", b"");
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(125), ""));
    qube.until(|| qube.log().contains("it is to run as nobody, and the starter cannot be reached"));
}

#[test]
fn a_caller_that_goes_takes_along_what_runs_as_another() {
    if !root() {
        return;
    }
    let started = Started::new("q.Wait * work:web work allow user=nobody\n", &["nobody"]);
    let qube = &started.qube;
    let pid = qube.path("pid");
    File::create(&pid).expect("a file");
    chown(&pid, Some(65_534), None).expect("a file");
    qube.service("q.Wait", &format!("echo $$ > {}; sleep 1000 & wait", pid.display()));
    let mut caller = qube.command("web", "work", "q.Wait").spawn().expect("a caller");
    let read = || fs::read_to_string(&pid).expect("a file").trim().to_owned();
    qube.until(|| fs::read_to_string(&pid).expect("a file").ends_with('\n'));
    let process = PathBuf::from("/proc").join(read());
    let status = fs::read_to_string(process.join("status")).expect("a process");
    assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    assert!(status.contains("Gid:\t65534\t65534\t65534\t65534"), "{status}");
    caller.kill().and_then(|()| caller.wait()).expect("the caller");
    qube.until(|| !process.exists());
}

/// What the starter says to one who asks by himself: nothing, and the log says why.
fn hung_up(started: &Started, settings: &Path, asks: &[u8], why: &str) {
    let (mut ours, theirs) = UnixStream::pair().expect("a socket");
    let log = started.qube.path("hostile.log");
    let mut child =
        starter(settings, &log).stdin(std::os::fd::OwnedFd::from(theirs)).spawn().expect("a starter");
    // It may have hung up before.
    let _ = ours.write_all(asks);
    ours.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
    let mut answer = Vec::new();
    // Some of what was asked may be left behind, which resets the socket.
    let _ = ours.read_to_end(&mut answer);
    assert_eq!(text(&answer), "", "{why}");
    assert!(!child.wait().expect("a starter").success(), "{why}");
    let said = fs::read_to_string(&log).expect("a log");
    fs::remove_file(&log).expect("a log");
    assert!(said.contains(why), "{why}: {said}");
}

#[test]
fn who_asks_the_starter_himself_gets_no_more_than_the_agent() {
    if !root() {
        return;
    }
    let started = Started::new("", &["nobody"]);
    let qube = &started.qube;
    let settings = qube.path("agent.json");
    qube.service("q.A", "echo ran");
    let _listener = UnixListener::bind(qube.path("services/q.Socket")).expect("a service");
    let no = |asks: &[u8], why: &str| hung_up(&started, &settings, asks, why);
    no(b"daemon\0q.A\0work\0\0", "nothing is run as \"daemon\"");
    no(b"root\0q.A\0work\0\0", "nothing is run as \"root\"");
    no(b"*\0q.A\0work\0\0", "nothing is run as \"*\"");
    no(b"65534\0q.A\0work\0\0", "nothing is run as \"65534\"");
    no(b"nobody\0/bin/sh\0work\0\0", "no service");
    no(b"nobody\0../services/q.A\0work\0\0", "no service");
    no(b"nobody\0..\0work\0\0", "no service");
    no(b"nobody\0q.A+/../../x\0work\0\0", "no service");
    no(b"nobody\0q.None\0work\0\0", "there is no service q.None+");
    no(b"nobody\0q.Socket\0work\0\0", "q.Socket+ is a socket");
    no(b"nobody\0\xff\0work\0\0", "invalid utf-8");
    no(&[b'x'; 600], "no NUL");
    no(b"nobody\0q.A", "Resource temporarily unavailable");
    // Nobody is the agent but the agent's user.
    let text = fs::read_to_string(&settings).expect("settings");
    let others = qube.path("others.json");
    fs::write(&others, text.replace(r#""user":"root""#, r#""user":"daemon""#)).expect("settings");
    hung_up(
        &started,
        &others,
        b"nobody\0q.A\0work\0\0",
        "user 0 asks, and services are started for \"daemon\"",
    );
    // What others than root may write is not believed, and not run.
    let writable = "somebody else than root may write there";
    for (path, mode, owner) in [
        ("agent.json", 0o664, 0),
        ("agent.json", 0o644, 65_534),
        ("services", 0o777, 0),
        ("services/q.A", 0o757, 0),
        ("services/q.A", 0o755, 65_534),
        ("", 0o775, 0),
    ] {
        let path = qube.path(path);
        let before = fs::metadata(&path).expect("a file").permissions();
        chown(&path, Some(owner), None).expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a file");
        no(b"nobody\0q.A\0work\0\0", writable);
        chown(&path, Some(0), None).expect("a file");
        fs::set_permissions(&path, before).expect("a file");
    }
    // Nor what is linked to.
    fs::write(qube.path("mine"), "#!/bin/sh\necho ran\n").expect("a program");
    fs::set_permissions(qube.path("mine"), Permissions::from_mode(0o755)).expect("a program");
    chown(qube.path("mine"), Some(65_534), None).expect("a program");
    std::os::unix::fs::symlink(qube.path("mine"), qube.path("services/q.Link")).expect("a link");
    no(b"nobody\0q.Link\0work\0\0", writable);
}

#[test]
fn nobody_becomes_another_by_the_starters_program() {
    if !root() {
        return;
    }
    let become_user = |from: &[&str], name: &str| {
        let mut words = from.to_vec();
        words.extend([env!("CARGO_BIN_EXE_nexus-service"), "become", name, "id", "-un"]);
        Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output().expect("a program")
    };
    let output = become_user(&[], "nobody");
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("nobody\n", Some(0)));
    let output = become_user(&[env!("CARGO_BIN_EXE_nexus-service"), "become", "nobody"], "root");
    assert_eq!(
        (text(&output.stdout).as_str(), output.status.code()),
        ("", Some(125)),
        "{}",
        text(&output.stderr)
    );
}
