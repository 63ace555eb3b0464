//! Calls within a qube, with the agent, its callers and its services as processes.

use crate::qube::{Qube, accept, text};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

#[test]
fn a_container_calls_a_program_of_its_qube() {
    let qube = Qube::new("q.Echo * work:web work allow\nq.Echo + work work allow\n");
    qube.service(
        "q.Echo",
        "read line; echo \"$line $1 $QREXEC_REMOTE_DOMAIN $QREXEC_SERVICE_FULL_NAME ${QREXEC_LEFTOVER-none}\"; echo bad >&2; exit 3",
    );
    let output = qube.call("web", "work", "q.Echo+arg", b"hello\n");
    assert_eq!(text(&output.stdout), "hello arg work:web q.Echo+arg none\n");
    assert_eq!(text(&output.stderr), "bad\n");
    assert_eq!(output.status.code(), Some(3));
    // One with an argument goes before that without.
    qube.service("q.Echo+other", "echo other; kill -TERM $$");
    let output = qube.call("web", "work", "q.Echo+other", b"");
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("other\n", Some(128 + 15)));
    // The qube itself, on its own socket.
    assert_eq!(text(&qube.call("qube", "work", "q.Echo", b"x\n").stdout), "x  work q.Echo+ none\n");
}

#[test]
fn what_policy_does_not_allow_is_refused_and_written_down() {
    let qube = Qube::new("q.A * work:web work allow\nq.A * work:db work ask\n");
    qube.service("q.A", "echo ran");
    for (from, target, service) in [
        ("mail", "work", "q.A"),
        ("qube", "work", "q.A"),
        ("db", "work", "q.A"),
        ("web", "work", "q.B"),
        ("web", "vault", "q.A"),
        ("web", "", "q.A"),
        ("web", "@anyvm", "q.A"),
        ("web", "work", "../q.A"),
        ("web", "work\nx", "q.A"),
    ] {
        let output = qube.call(from, target, service, b"");
        assert_eq!(output.status.code(), Some(126), "{from} {target} {service}");
        assert_eq!(text(&output.stdout), "");
    }
    // Who calls is the socket's to say; and what does not fit a message is not sent.
    assert_eq!(qube.call("web", &"x".repeat(64), "q.A", b"").status.code(), Some(125));
    assert_eq!(qube.call("gone", "work", "q.A", b"").status.code(), Some(125));
    let records: Vec<serde_json::Value> =
        qube.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let denied = |source: &str, reason: &str| {
        records.iter().any(|record| {
            record["verdict"] == "deny"
                && record["source"] == source
                && record["reason"].as_str().is_some_and(|text| text.contains(reason))
        })
    };
    assert!(denied("work:mail", "no rule matches"), "{records:?}");
    assert!(denied("work:db", "the user refused it"), "{records:?}");
    assert!(denied("work:web", "cannot be the target of a call"), "{records:?}");
    // A policy that is made wrong denies what it allowed.
    assert_eq!(qube.call("web", "work", "q.A", b"").status.code(), Some(0));
    fs::write(qube.path("policy/40.policy"), "wrong").expect("a file");
    qube.until(|| qube.call("web", "work", "q.A", b"").status.code() == Some(126));
}

/// A service behind a socket: it keeps what it reads to the end, and answers.
fn serve(
    path: PathBuf,
    answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static,
) -> std::thread::JoinHandle<Vec<u8>> {
    let listener = UnixListener::bind(path).expect("a service");
    std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a call");
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).expect("what the caller says");
        socket.write_all(&answer(&bytes)).expect("a caller");
        bytes
    })
}

#[test]
fn a_container_calls_a_container() {
    let qube = Qube::new("q.Query * work:web work:db allow\n");
    let heard = serve(qube.path("db/q.Query"), |bytes| bytes.to_ascii_uppercase());
    let output = qube.call("web", "work:db", "q.Query+orders", b"select");
    assert_eq!(text(&output.stdout), "Q.QUERY+ORDERS WORK:WEB\0SELECT");
    assert_eq!(output.status.code(), Some(0), "{}", qube.log());
    assert_eq!(heard.join().expect("a service"), b"q.Query+orders work:web\0select");
    // Not the other way round, and not another container.
    assert_eq!(qube.call("db", "work:web", "q.Query", b"").status.code(), Some(126));
    assert_eq!(qube.call("mail", "work:db", "q.Query", b"").status.code(), Some(126));
}

#[test]
fn bytes_come_through_as_they_are() {
    let qube = Qube::new("q.Copy * work:web @default allow target=work:db\nq.Cat * work:web work allow\n");
    qube.service("q.Cat", "exec cat");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let output = qube.call("web", "work", "q.Cat", &bytes);
    assert!(output.stdout == bytes, "{} bytes of {}", output.stdout.len(), bytes.len());
    let heard = serve(qube.path("db/q.Copy"), <[u8]>::to_vec);
    let output = qube.call("web", "@default", "q.Copy", &bytes);
    let sent = [b"q.Copy+ work:web\0", &bytes[..]].concat();
    assert!(output.stdout == sent && heard.join().expect("a service") == sent);
}

#[test]
fn a_service_that_is_none_is_told_apart_from_a_refusal() {
    let qube = Qube::new("* * work:web work allow\n* * work:web work:db allow\n");
    let long = format!("q.None+{}", "x".repeat(1_000));
    let code = |target, service| qube.call("web", target, service, b"").status.code();
    assert_eq!(code("work", "q.None"), Some(127));
    assert_eq!(code("work:db", "q.None"), Some(127));
    assert_eq!(code("work", &long), Some(127));
    fs::write(qube.path("services/q.Text"), "no program").expect("a file");
    assert_eq!(code("work", "q.Text"), Some(125));
    // A container's folder is the container's: no program of it is run, and no link leads out of it.
    fs::write(qube.path("db/q.Program"), "#!/bin/sh\necho out").expect("a file");
    fs::set_permissions(qube.path("db/q.Program"), Permissions::from_mode(0o755)).expect("a program");
    assert_eq!(code("work:db", "q.Program"), Some(125));
    let _listener = UnixListener::bind(qube.path("secret.sock")).expect("a socket");
    symlink(qube.path("secret.sock"), qube.path("db/q.Link")).expect("a link");
    assert_eq!(code("work:db", "q.Link"), Some(125));
    symlink("/dev/null", qube.path("db/q.Null")).expect("a link");
    assert_eq!(code("work:db", "q.Null"), Some(125));
}

#[test]
fn a_service_runs_as_nobody_else() {
    let qube = Qube::new(
        "q.User * work:web work allow user=root\nq.Own * work:web work allow user=user\nq.Force * work:web work allow\n",
    );
    for service in ["q.User", "q.Own", "q.Force"] {
        qube.service(service, "echo ran");
    }
    fs::write(qube.path("rpc-config/q.Force"), "force-user = root\n").expect("settings");
    let call = |service| qube.call("web", "work", service, b"");
    assert_eq!(call("q.Own").status.code(), Some(0));
    for service in ["q.User", "q.Force"] {
        let output = call(service);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(125), ""), "{service}");
    }
}

#[test]
fn a_caller_that_goes_takes_its_program_along() {
    let qube = Qube::new("q.Wait * work:web work allow\n");
    qube.service(
        "q.Wait",
        &format!("echo $$ > {0}.new; mv {0}.new {0}; sleep 1000 & wait", qube.path("pid").display()),
    );
    // One that may say more, one that has said all, and one that says more than the program ever reads.
    for says in [Some(0), None, Some(1 << 20)] {
        let mut caller = qube.command("web", "work", "q.Wait").spawn().expect("a caller");
        let stdin = caller.stdin.take();
        let stdin = says.and_then(|bytes| stdin.map(|stdin| (stdin, vec![0; bytes])));
        let stdin = std::thread::spawn(move || {
            stdin.map(|(mut stdin, bytes)| {
                // The caller is killed before it has read all.
                let _ = stdin.write_all(&bytes);
                stdin
            })
        });
        qube.until(|| qube.path("pid").exists());
        let pid = fs::read_to_string(qube.path("pid")).expect("a number").trim().to_owned();
        fs::remove_file(qube.path("pid")).expect("a file");
        assert!(Path::new("/proc").join(&pid).exists());
        caller.kill().and_then(|()| caller.wait()).expect("the caller");
        qube.until(|| !Path::new("/proc").join(&pid).exists());
        stdin.join().expect("a writer");
    }
    let ends = || qube.log().lines().filter(|line| line.contains(r#""event":"end""#)).count();
    qube.until(|| ends() == 3);
}

#[test]
fn one_container_cannot_take_the_places_of_another() {
    let qube = Qube::new("q.Wait * work:* work allow\nq.A * work:* work allow\n");
    qube.service("q.Wait", "exec sleep 1000");
    qube.service("q.A", "echo ran");
    let mut callers: Vec<_> =
        (0..4).map(|_| qube.command("web", "work", "q.Wait").spawn().expect("a caller")).collect();
    // The fifth is told so, and not held up; others are served.
    let started = || qube.log().matches(r#""verdict":"allow""#).count();
    qube.until(|| started() == 4);
    assert_eq!(qube.call("web", "work", "q.A", b"").status.code(), Some(126));
    assert_eq!(qube.call("db", "work", "q.A", b"").status.code(), Some(0));
    for caller in &mut callers {
        caller.kill().and_then(|()| caller.wait()).expect("a caller");
    }
    qube.until(|| qube.call("web", "work", "q.A", b"").status.code() == Some(0));
}

#[test]
fn a_caller_that_breaks_the_protocol_hurts_nobody() {
    let qube = Qube::new("q.A * work:web work allow\n");
    qube.service("q.A", "cat > /dev/null; echo ran");
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 3, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0], &[0xff; 100]] {
        let mut socket = UnixStream::connect(qube.path("web.sock")).expect("the agent");
        socket.write_all(bytes).expect("the agent");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
        let mut answer = Vec::new();
        // It is hung up, with what was not read left behind.
        let _ = socket.read_to_end(&mut answer);
        assert_eq!(answer, [0, 3, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0]);
    }
    assert_eq!(qube.broken(), 1 + 3, "{}", qube.log());
    assert_eq!(text(&qube.call("web", "work", "q.A", b"x").stdout), "ran\n");
}

#[test]
fn a_program_talks_to_the_service() {
    let qube = Qube::new("q.Upper * work:web work allow\n");
    qube.service("q.Upper", "tr a-z A-Z; exit 9");
    let run = |service: &str, script: &str| {
        let mut command = qube.command("web", "work", service);
        command.args(["--", "sh", "-c", script]).output().expect("a caller")
    };
    let output = run("q.Upper", "echo hello; exec >&-; cat >&2; exit 4");
    assert_eq!(text(&output.stderr), "HELLO\n");
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(run("q.None+refused", "cat").status.code(), Some(126));
    let output = qube.command("web", "work", "q.Upper").args(["--", "/nonexistent"]).output();
    assert_eq!(output.expect("a caller").status.code(), Some(125));
}

/// An HTTP server that answers one request on each connection, as such do.
fn http(path: PathBuf) {
    let listener = UnixListener::bind(path).expect("a service");
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("a call");
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") && socket.read_exact(&mut byte).is_ok() {
                request.push(byte[0]);
            }
            let request = text(&request);
            let path = request.split(' ').nth(1).unwrap_or_default();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
            // A client that has gone is not told.
            let _ = socket.write_all(answer.as_bytes());
        }
    });
}

#[test]
fn a_client_that_knows_nothing_of_calls_is_connected() {
    let qube = Qube::new("q.Http * work:web work:db allow\n");
    // A container's socket, which wants nothing but HTTP.
    fs::write(qube.path("rpc-config/q.Http"), "skip-service-descriptor = true\nexit-on-service-eof = true\n")
        .expect("settings");
    http(qube.path("db/q.Http"));
    let mut forwarder = qube
        .command("web", "work:db", "q.Http")
        .arg("--listen")
        .arg(qube.path("local.sock"))
        .spawn()
        .expect("a caller");
    qube.until(|| UnixStream::connect(qube.path("local.sock")).is_ok());
    std::thread::scope(|scope| {
        for n in 0..3 {
            let qube = &qube;
            scope.spawn(move || {
                let mut socket = UnixStream::connect(qube.path("local.sock")).expect("a socket");
                write!(socket, "GET /{n} HTTP/1.1\r\nHost: web\r\n\r\n").expect("a server");
                let mut answer = String::new();
                socket.read_to_string(&mut answer).expect("an answer");
                assert_eq!(answer, format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n/{n}"));
            });
        }
    });
    forwarder.kill().and_then(|()| forwarder.wait()).expect("the forwarder");
}

#[tokio::test]
async fn a_task_calls() {
    use nexus::client::{AsyncCall, CallError};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, split};

    let qube = Qube::new("q.Cat * work:web work allow\n");
    qube.service("q.Cat", "echo begun >&2; cat; echo ended >&2; exit 7");
    let start =
        async |service| AsyncCall::start(&qube.path("web.sock"), "work", service).await.expect("an agent");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (mut reading, mut writing) = split(start("q.Cat").await);
    let said = bytes.clone();
    let writer = tokio::spawn(async move {
        for part in said.chunks(70_001) {
            writing.write_all(part).await.expect("a service");
        }
        writing.shutdown().await.expect("a service");
        writing
    });
    let mut back = Vec::new();
    reading.read_to_end(&mut back).await.expect("a service");
    let mut call = reading.unsplit(writer.await.expect("a writer"));
    assert!(back == bytes, "{} bytes", back.len());
    assert_eq!(call.exit_code().await.expect("an end"), 7);
    assert_eq!(text(&call.stderr()), "begun\nended\n");
    // Refused, by what is read or by its end.
    let refused = start("q.None").await.read(&mut [0]).await.expect_err("a refusal");
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(matches!(start("q.None").await.exit_code().await, Err(CallError::Refused)));
}

/// What `nexus-call` says on stderr, behind the target and the service.
fn said(output: &Output) -> String {
    text(&output.stderr)
        .trim_end()
        .rsplit_once(": q.")
        .expect("a message")
        .1
        .split_once(": ")
        .expect("a reason")
        .1
        .to_owned()
}

#[test]
fn a_caller_is_told_why_it_failed() {
    let qube =
        Qube::new("q.Open * work:web @default allow target=work:nobody\nq.Text * work:web work allow\n");
    fs::write(qube.path("services/q.Text"), "no program").expect("a file");
    let output = qube.call("web", "work:db", "q.Denied", b"");
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(126), "refused"));
    let output = qube.call("web", "@default", "q.Open", b"");
    assert_eq!(
        (output.status.code(), said(&output).as_str()),
        (Some(126), "refused: there is no such target")
    );
    let output = qube.call("web", "work", "q.Text", b"");
    let reason = "failed: the log of the agent, or of dom0, says why";
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(125), reason));
    // As many as it may have.
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let mut socket = UnixStream::connect(qube.path("web.sock")).expect("the agent");
            // Its place is taken when it says hello.
            socket.read_exact(&mut [0; 12]).expect("a hello");
            socket
        })
        .collect();
    let output = qube.call("web", "work", "q.Text", b"");
    let reason = "refused: as many calls are open as may be";
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(126), reason));
    drop(waiting);
}

#[test]
fn the_agent_comes_back_and_the_container_sees_its_new_socket() {
    let mut qube = Qube::new("q.Echo * work:web work allow\n");
    qube.service("q.Echo", "exec cat");
    // What a container has mounted: the folder. And what it would have with the socket alone: that very file.
    let folder = qube.path("mounted");
    fs::create_dir(&folder).expect("a folder");
    let mounted = fs::File::open(qube.path("")).expect("the folder");
    let through = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), mounted.as_raw_fd()));
    fs::hard_link(qube.path("web.sock"), folder.join("web.sock")).expect("a link");
    let call = |socket: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-call"));
        command.arg("--agent").arg(socket).args(["work", "q.Echo"]).stdin(Stdio::null());
        command.status().expect("a caller").code()
    };
    assert_eq!(call(&through.join("web.sock")), Some(0));
    assert_eq!(call(&folder.join("web.sock")), Some(0));
    qube.restart();
    assert_eq!(call(&through.join("web.sock")), Some(0));
    assert_eq!(call(&folder.join("web.sock")), Some(125), "a file is that of the dead one");
}

#[test]
fn it_says_when_it_can_be_called() {
    let qube = Qube::new("");
    let notice = std::os::unix::net::UnixDatagram::bind(qube.path("notify")).expect("a socket");
    notice.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
    let mut agent = Command::new(env!("CARGO_BIN_EXE_nexus-agent"))
        .arg("--config")
        .arg(qube.path("agent.json"))
        .env("NOTIFY_SOCKET", qube.path("notify"))
        .stderr(Stdio::null())
        .spawn()
        .expect("an agent");
    let mut said = [0; 64];
    let length = notice.recv(&mut said).expect("a word");
    assert_eq!(&said[..length], b"READY=1\n");
    assert_eq!(qube.call("web", "work", "q.A", b"").status.code(), Some(126));
    agent.kill().and_then(|()| agent.wait()).expect("an agent");
}

fn answers(service: &'static str, program: &'static [&str]) -> impl FnMut() -> Command {
    move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-service"));
        command.args(["answer", service]).args(program);
        command
    }
}

#[test]
fn a_command_runs_in_a_container_with_its_streams_and_its_exit_code() {
    let qube = Qube::new(
        "qubes.VMExec * work work:db allow\nq.Query * work work:db allow\nq.Other * work work:db allow\n",
    );
    for service in ["qubes.VMExec", "q.Query", "q.Other"] {
        fs::write(qube.path("rpc-config").join(service), "service-messages = true\n").expect("settings");
    }
    accept(qube.path("db/qubes.VMExec"), answers("qubes.VMExec", &[]));
    accept(
        qube.path("db/q.Query"),
        answers("q.Query", &["sh", "-c", "echo $1 $QREXEC_REMOTE_DOMAIN; exit 4", "sh"]),
    );
    accept(qube.path("db/q.Other"), answers("q.Query", &[]));
    let service = |words: &[&str]| nexus::command::service(None, words).expect("a service").to_string();
    let run = |words: &[&str], input: &[u8]| qube.call("qube", "work:db", &service(words), input);
    let output = run(&["sh", "-c", "cat; echo 'to -- $1' \"$1\" >&2; exit 9", "-", "a b\n+"], b"input");
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("input", Some(9)), "{}", qube.log());
    assert_eq!(text(&output.stderr), "to -- $1 a b\n+\n");
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| (number / 7) as u8).collect();
    assert!(run(&["cat"], &bytes).stdout == bytes);
    assert_eq!(run(&["no.such.command"], b"").status.code(), Some(127));
    // With an argument longer than a file's name may be.
    let long = "x".repeat(20_000);
    assert_eq!(text(&run(&["echo", &long], b"").stdout), format!("{long}\n"));
    let output = qube.call("qube", "work:db", "q.Query+orders", b"");
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("orders work\n", Some(4)));
    // Behind a socket there is the service that it is for, and no other.
    let output = qube.call("qube", "work:db", "q.Other+rm", b"");
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).contains("this is q.Query, and not q.Other"), "{}", text(&output.stderr));
}

#[test]
fn a_container_that_speaks_in_wrong_messages_ends_its_own_call() {
    let qube = Qube::new("q.A * work work:db allow\n");
    fs::write(qube.path("rpc-config/q.A"), "service-messages=1\n").expect("settings");
    let listener = UnixListener::bind(qube.path("db/q.A")).expect("a service");
    let hello = [&0x300_u32.to_le_bytes()[..], &4_u32.to_le_bytes(), &4_u32.to_le_bytes()].concat();
    let message = |kind: u32, length: u32| [&kind.to_le_bytes()[..], &length.to_le_bytes()].concat();
    let wrong = [
        b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
        hello.clone(),
        [&hello[..], &message(0x190, 1), b"x"].concat(),
        [&hello[..], &message(0x191, 65_537)].concat(),
        [&hello[..], &message(0x193, 5)].concat(),
        [&hello[..], &message(0x200, 20)].concat(),
        [&hello[..], &hello[..]].concat(),
    ];
    for bytes in wrong {
        let listener = listener.try_clone().expect("a socket");
        let said = bytes.clone();
        let service = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a call");
            let mut descriptor = [0; 10];
            socket.read_exact(&mut descriptor).expect("a descriptor");
            assert_eq!(&descriptor, b"q.A+ work\0");
            socket.write_all(&said).expect("an agent");
        });
        let output = qube.call("qube", "work:db", "q.A", b"");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(125), 0), "{bytes:?}");
        service.join().expect("a service");
    }
    // Its agent is none the worse.
    accept(qube.path("db/q.A+well"), answers("q.A", &["true"]));
    assert_eq!(qube.call("qube", "work:db", "q.A+well", b"").status.code(), Some(0), "{}", qube.log());
}
