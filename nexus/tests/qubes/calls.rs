//! What a call between qubes is, and how it ends.

use crate::stage::Stage;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

fn allow(source: &str, target: &str, _: &str) -> bool {
    source == "work:mail" && ["vault", "vault:gpg", "vault:http"].contains(&target)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A service behind a socket, for any number of callers.
pub(crate) fn serve(path: PathBuf, with: impl Fn(UnixStream) + Send + Clone + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (with, socket) = (with.clone(), socket.unwrap());
            thread::spawn(move || with(socket));
        }
    });
}

#[test]
fn a_container_calls_a_container_of_another_qube() {
    let stage = Stage::new("container", allow);
    serve(stage.path("vault/gpg/q.Upper"), |mut socket| {
        let mut said = Vec::new();
        socket.read_to_end(&mut said).unwrap();
        socket.write_all(&said.to_ascii_uppercase()).unwrap();
    });
    for _ in 0..3 {
        let output = stage.call("mail", "vault:gpg", "q.Upper+x", b"hello");
        assert_eq!(text(&output.stdout), "Q.UPPER+X WORK:MAIL\0HELLO", "{}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(0));
    }
    // Who is not allowed is told so; what is not there, too.
    for from in ["web", "qube"] {
        let output = stage.call(from, "vault:gpg", "q.Upper", b"hello");
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(126), String::new()));
    }
    assert_eq!(stage.call("mail", "vault:gpg", "q.None", b"").status.code(), Some(127));
    assert_eq!(stage.call("mail", "vault", "q.None", b"").status.code(), Some(127));
    assert_eq!(stage.broker.asked(), 7);
}

#[test]
fn a_program_of_another_qube_has_stdin_stdout_stderr_and_an_exit_code() {
    let stage = Stage::new("program", allow);
    stage.service(
        "vault",
        "q.Program",
        "read line; echo \"$line $1 $QREXEC_REMOTE_DOMAIN $QREXEC_REQUESTED_TARGET\"; echo bad >&2; cat; exit 3",
    );
    let output = stage.call("mail", "vault", "q.Program+arg", b"hello\nand more");
    assert_eq!(text(&output.stdout), "hello arg work:mail vault\nand more");
    assert_eq!(text(&output.stderr), "bad\n");
    assert_eq!(output.status.code(), Some(3));
    stage.until(|| stage.broker.ended().len() == 2);
    for ended in stage.broker.ended() {
        assert_eq!((ended.exit, ended.to_service, ended.to_caller), (3, 14, 34 + 4), "{ended:?}");
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    text(&child.wait_with_output().unwrap().stdout)[..64].to_owned()
}

#[test]
fn a_hundred_mebibytes_go_both_ways_as_they_are() {
    let stage = Stage::new("bulk", allow);
    let bytes: Vec<u8> = (0..100_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let expected = sha256(&bytes);
    // A program; and a socket that gives back what it gets while it gets it.
    stage.service("vault", "q.Cat", "exec cat");
    fs::write(stage.path("vault/rpc-config/q.Echo"), "skip-service-descriptor=true\n").unwrap();
    serve(stage.path("vault/gpg/q.Echo"), |mut socket| {
        let mut reading = socket.try_clone().unwrap();
        std::io::copy(&mut reading, &mut socket).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
    });
    for (target, service) in [("vault", "q.Cat"), ("vault:gpg", "q.Echo")] {
        let output = stage.call("mail", target, service, &bytes);
        assert_eq!(output.stdout.len(), bytes.len(), "{service}: {}", text(&output.stderr));
        assert_eq!(sha256(&output.stdout), expected, "{service}");
        assert_eq!(output.status.code(), Some(0));
    }
    stage.until(|| stage.broker.ended().len() == 4);
    for ended in stage.broker.ended() {
        assert_eq!((ended.to_service, ended.to_caller), (100 << 20, 100 << 20));
    }
}

#[test]
fn either_end_may_say_no_more_and_still_listen() {
    let stage = Stage::new("half-close", allow);
    fs::write(stage.path("vault/rpc-config/q.First"), "skip-service-descriptor=true\n").unwrap();
    let (heard, hears) = std::sync::mpsc::channel();
    serve(stage.path("vault/gpg/q.First"), move |mut socket| {
        socket.write_all(b"all I say").unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = Vec::new();
        socket.read_to_end(&mut said).unwrap();
        heard.send(said).unwrap();
    });
    let mut child = stage.caller("mail", "vault:gpg", "q.First").spawn().unwrap();
    let mut answer = [0; 9];
    child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"all I say");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"after that").unwrap();
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", stage.logs());
    assert_eq!(hears.recv().unwrap(), b"after that");
}

#[test]
fn curl_fetches_from_an_http_server_in_another_qube() {
    let stage = Stage::new("curl", allow);
    fs::write(
        stage.path("vault/rpc-config/q.Http"),
        "skip-service-descriptor=true\nexit-on-service-eof=true\n",
    )
    .unwrap();
    serve(stage.path("vault/http/q.Http"), |mut socket| {
        let (mut request, mut byte) = (Vec::new(), [0]);
        while !request.ends_with(b"\r\n\r\n") {
            if socket.read(&mut byte).unwrap() == 0 {
                return;
            }
            request.push(byte[0]);
        }
        let path = text(&request).split(' ').nth(1).unwrap().to_owned();
        let body = path.repeat(20_000);
        write!(
            socket,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
    });
    let socket = stage.path("work/http.sock");
    let mut listening = stage.caller("mail", "vault:http", "q.Http");
    let mut listening = listening.arg("--listen").arg(&socket).spawn().unwrap();
    stage.until(|| socket.exists());
    for path in ["/a", "/bc"] {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--max-time", "60", "--unix-socket"])
            .arg(&socket)
            .arg(format!("http://http{path}"))
            .output()
            .expect("curl is needed (Debian package curl)");
        assert!(output.status.success(), "{}\n{}", text(&output.stderr), stage.logs());
        assert!(text(&output.stdout) == path.repeat(20_000), "{} bytes", output.stdout.len());
    }
    listening.kill().unwrap();
    listening.wait().unwrap();
}
