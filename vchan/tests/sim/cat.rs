//! `vchan-cat`, as one uses it from a shell.

use crate::host::{Host, Process, SERVER};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{env, fs, thread};

/// A file with bytes that do not repeat soon.
struct Input(PathBuf);

impl Input {
    fn new(name: &str, len: u32) -> (Self, Vec<u8>) {
        let bytes: Vec<u8> = (0..len / 4).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::write(&path, &bytes).unwrap();
        (Self(path), bytes)
    }

    fn open(&self) -> File {
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
