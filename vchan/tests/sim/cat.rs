//! `vchan-cat`, as one uses it from a shell.

use crate::host::{Host, Process};
use crate::peers::{CLIENT, Kind, PATH, SERVER};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{env, fs, thread};

/// A file with bytes that do not repeat soon.
pub(crate) struct Input(PathBuf);

impl Input {
    fn new(name: &str, len: u32) -> (Self, Vec<u8>) {
        let bytes: Vec<u8> = (0..len / 4).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        (Self::of(name, &bytes), bytes)
    }

    pub(crate) fn of(name: &str, bytes: &[u8]) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Self(path)
    }

    pub(crate) fn open(&self) -> File {
        File::open(&self.0).unwrap()
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn a_file_crosses_in_either_direction() {
    let (file, bytes) = Input::new("file", 16 << 20);
    for server_sends in [true, false] {
        let host = Host::new(&format!("file-{server_sends}"));
        let mut server = host.cat_listen(&["--stats", if server_sends { "--send" } else { "--recv" }]);
        let mut client = host.cat_connect(&["--stats", if server_sends { "--recv" } else { "--send" }]);
        if server_sends { &mut server } else { &mut client }.stdin(file.open());
        let (server, client) = (Process::start(&mut server), Process::start(&mut client));
        let (server, client) = (server.finish(), client.finish());
        assert_eq!((server.status.code(), client.status.code()), (Some(0), Some(0)));
        let (sender, receiver) = if server_sends { (server, client) } else { (client, server) };
        assert!(receiver.stdout == bytes, "{} bytes arrived", receiver.stdout.len());
        assert!(sender.stdout.is_empty());
        for (output, expected) in
            [(sender, "sent 16777216 bytes in "), (receiver, "received 16777216 bytes in ")]
        {
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.starts_with(expected) && said.ends_with(" MB/s\n"), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
}

/// Two megabytes each way at the same time, through four threads.
#[test]
fn both_directions_at_once() {
    let (_file, bytes) = Input::new("both", 2 << 20);
    let host = Host::new("both");
    let mut ends = [host.cat_listen(&[]), host.cat_connect(&[])]
        .map(|mut command| command.stdin(Stdio::piped()).spawn().unwrap());
    let mut inputs = ends.each_mut().map(|end| end.stdin.take().unwrap());
    let mut outputs = ends.each_mut().map(|end| end.stdout.take().unwrap());
    thread::scope(|scope| {
        for input in &mut inputs {
            scope.spawn(|| input.write_all(&bytes).unwrap());
        }
        for output in &mut outputs {
            scope.spawn(|| {
                let mut got = vec![0; bytes.len()];
                output.read_exact(&mut got).unwrap();
                assert!(got == bytes);
            });
        }
    });
    // The end of one standard input is the end of the conversation; the other end does not wait for its own.
    let [input, _kept] = inputs;
    drop(input);
    for mut end in ends {
        assert_eq!(end.wait().unwrap().code(), Some(0));
    }
    let mut more = Vec::new();
    for mut output in outputs {
        output.read_to_end(&mut more).unwrap();
    }
    assert!(more.is_empty());
}

#[test]
fn a_path_may_be_longer_than_libxenvchan_can_say() {
    let host = Host::new("long");
    let path = format!("data/{}", "long-name/".repeat(20)) + "end";
    let (file, bytes) = Input::new("long", 1000);
    let program = env!("CARGO_BIN_EXE_vchan-cat");
    let sender =
        Process::start(host.command(1, program).args(["listen", "2", &path, "--send"]).stdin(file.open()));
    let receiver =
        Process::start(host.command(2, program).args(["connect", "1", &path, "--recv", "--wait", "60"]));
    assert_eq!(receiver.finish().stdout, bytes);
    assert!(sender.finish().status.success());
}

/// libxenvchan cuts both keys of such a path to the same 63 bytes, or to two that nobody else looks for.
#[test]
fn at_a_longer_path_libxenvchan_and_we_do_not_find_each_other() {
    for length in [60, 90] {
        let host = Host::new(&format!("cut-{length}"));
        let path = format!("data/{}", "x".repeat(length - 5));
        let mut server = host.peer_at(&path, Kind::C, "server", (0, 0), 1);
        server.await_text("listening");
        let program = env!("CARGO_BIN_EXE_vchan-cat");
        let client = Process::start(host.command(CLIENT, program).args(["connect", "1", &path])).finish();
        assert_eq!(client.status.code(), Some(2));
        let said = String::from_utf8(client.stderr).unwrap();
        assert!(said.starts_with("vchan-cat: domain 1 offers no vchan at "), "{said}");
        server.kill();

        let mut server = host.peer_at(&path, Kind::Ours, "server", (0, 0), 1);
        server.await_text("listening");
        // It tries again and again.
        let mut client = host.peer_at(&path, Kind::C, "client", (0, 0), 1);
        thread::sleep(Duration::from_millis(300));
        assert!(!client.has_ended() && !server.has_ended());
    }
}

fn complaint(host: &Host, args: &[&str]) -> (Option<i32>, String) {
    let output = Process::start(host.command(SERVER, env!("CARGO_BIN_EXE_vchan-cat")).args(args)).finish();
    assert!(output.stdout.is_empty());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn what_cannot_begin_is_said_in_one_line() {
    let host = Host::new("complaints");
    for (args, said) in [
        (
            &["connect", "3", "data/none"][..],
            "vchan-cat: domain 3 offers no vchan at /local/domain/3/data/none/event-channel (or not to this domain)\n",
        ),
        (
            &["connect", "3", "data/none", "--wait", "0"],
            "vchan-cat: domain 3 offers no vchan at /local/domain/3/data/none/event-channel (or not to this domain)\n",
        ),
        (&["listen", "1", "data/x"], "vchan-cat: domain 1 is this domain; a vchan needs two\n"),
        (
            &["listen", "2", "data/x", "--read-min", "1048577"],
            "vchan-cat: a ring of 1048577 bytes is too large (at most 1048576)\n",
        ),
        (&["connect", "40000", "data/x"], "vchan-cat: domain 40000 cannot exist (the largest id is 32751)\n"),
    ] {
        assert_eq!(complaint(&host, args), (Some(2), said.to_owned()), "{args:?}");
    }
    let (status, said) = complaint(&host, &["listen", "2", "data/x", "--send", "--recv"]);
    assert_eq!(status, Some(2));
    assert!(said.contains("cannot be used with"), "{said}");
}

#[test]
fn a_peer_that_leaves_too_early_is_a_broken_off_conversation() {
    let (file, _) = Input::new("early", 1 << 20);
    let host = Host::new("early");
    // Sends a little and leaves; nobody takes what comes from the other end.
    let client = Process::start(&mut host.cat_connect(&["--send"]));
    let server = Process::start(host.cat_listen(&["--send"]).stdin(file.open()));
    assert_eq!(client.finish().status.code(), Some(0));
    let output = server.finish();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().ends_with(" bytes unread\n"));
}

#[test]
fn with_half_close_the_answer_may_come_after_the_question_has_ended() {
    let (question, bytes) = Input::new("question", 300_000);
    let (answer, answered) = Input::new("answer", 3 << 20);
    let host = Host::new("half-close");
    let client = Process::start(host.cat_connect(&["--half-close", "--stats"]).stdin(question.open()));
    let mut server = host.cat_listen(&[]).stdin(Stdio::piped()).spawn().unwrap();
    let mut got = vec![0; bytes.len()];
    server.stdout.as_mut().unwrap().read_exact(&mut got).unwrap();
    assert!(got == bytes);
    std::io::copy(&mut answer.open(), &mut server.stdin.take().unwrap()).unwrap();
    assert_eq!(server.wait().unwrap().code(), Some(0));
    let output = client.finish();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == answered);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("sent 300000 bytes in ") && said.contains("received 3145728 bytes in "), "{said}");
}

#[test]
fn a_peer_that_closes_is_noticed_while_standard_input_is_silent() {
    for mode in [&[][..], &["--half-close"]] {
        let host = Host::new(&format!("silent{}", mode.concat()));
        let (file, bytes) = Input::new(&format!("silent{}", mode.concat()), 100_000);
        let server = Process::start(host.cat_listen(mode).stdin(Stdio::piped()));
        let client = Process::start(host.cat_connect(&[]).stdin(file.open()));
        assert_eq!(client.finish().status.code(), Some(0));
        let output = server.finish();
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
        assert!(output.stdout == bytes);
    }
    // Who only sends has not said all.
    let host = Host::new("silent--send");
    let mut server = Process::start(host.cat_listen(&["--send"]).stdin(Stdio::piped()));
    let mut client = Process::start(&mut host.cat_connect(&["--recv"]));
    server.child.stdin.as_mut().unwrap().write_all(b"here").unwrap();
    client.await_text("here");
    thread::sleep(Duration::from_millis(50));
    client.kill();
    let output = server.finish();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &said[..]), (Some(1), "vchan-cat: the peer left 0 bytes unread\n"));
}

#[test]
fn an_output_that_nobody_reads_is_said() {
    let host = Host::new("unread");
    let (file, _) = Input::new("unread", 1 << 20);
    let sender = Process::start(host.cat_connect(&[]).stdin(file.open()));
    let mut receiver = host.cat_listen(&[]).stdin(Stdio::piped()).spawn().unwrap();
    drop(receiver.stdout.take());
    let _silent = receiver.stdin.take();
    let said = receiver.wait_with_output().unwrap();
    assert_eq!(said.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(said.stderr).unwrap(),
        "vchan-cat: standard output: Broken pipe (os error 32)\n"
    );
    assert_eq!(sender.finish().status.code(), Some(1));
}

/// A terminal on both sides of one end: what is typed there is sent, and its end of the file ends the conversation.
#[test]
fn a_terminal_is_an_input_and_an_output() {
    let host = Host::new("terminal");
    let program = env!("CARGO_BIN_EXE_vchan-cat");
    let mut typing = host
        .command(SERVER, "script")
        .args(["--quiet", "--return", "--command", &format!("{program} listen 2 {PATH}"), "/dev/null"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("script is needed (Debian package bsdutils)");
    let mut client = host.cat_connect(&[]).stdin(Stdio::piped()).spawn().unwrap();
    client.stdin.as_mut().unwrap().write_all(b"to the terminal").unwrap();
    let mut shown = [0; 15];
    typing.stdout.as_mut().unwrap().read_exact(&mut shown).unwrap();
    assert_eq!(&shown, b"to the terminal");
    typing.stdin.as_mut().unwrap().write_all(b"typed\n\x04").unwrap();
    let mut said = String::new();
    client.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "typed\n");
    assert_eq!(typing.wait().unwrap().code(), Some(0));
    assert_eq!(client.wait().unwrap().code(), Some(0));
}
