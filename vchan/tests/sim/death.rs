//! `kill -9` of either side is noticed by the other, whichever library it has.

use crate::host::{Host, Process};
use crate::peers::{CLIENT, Kind, PATH};
use std::fs::File;
use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

/// More than can be said before the other side is dead.
const ENDLESS: usize = 1 << 40;

/// Kills one side while the two talk, and gives what the other one says of that.
fn survivor(server: Kind, client: Kind, victim: &str) -> String {
    let host = Host::new(&format!("kill-{server:?}-{client:?}-{victim}"));
    let mut server = host.peer(server, "server", (65_536, 65_536), ENDLESS);
    let mut client = host.peer(client, "client", (0, 0), ENDLESS);
    server.await_text("connected");
    client.await_text("connected");
    thread::sleep(Duration::from_millis(100));
    assert!(!server.has_ended() && !client.has_ended());
    let (mut victim, survivor) = if victim == "server" { (server, client) } else { (client, server) };
    victim.kill();
    let (success, line) = survivor.verdict();
    assert!(!success);
    line
}

#[test]
fn a_killed_client_is_the_end_of_the_stream_for_our_server() {
    for client in [Kind::Ours, Kind::C] {
        let line = survivor(Kind::Ours, client, "client");
        assert!(line.starts_with("the end came after "), "{line}");
    }
}

#[test]
fn our_client_cannot_send_to_a_killed_server() {
    for server in [Kind::Ours, Kind::C] {
        let line = survivor(server, Kind::Ours, "server");
        assert!(line.ends_with("the peer has closed the channel"), "{line}");
    }
}

#[test]
fn libxenvchan_notices_that_we_were_killed() {
    let line = survivor(Kind::C, Kind::Ours, "client");
    assert!(line.starts_with("libxenvchan_read returned -1 after "), "{line}");
    let line = survivor(Kind::Ours, Kind::C, "server");
    assert!(line.starts_with("libxenvchan_write of "), "{line}");
}

/// Starts a server where a killed one has left its keys, and a client that waited from before.
#[test]
fn a_new_server_replaces_a_killed_one() {
    for killed in [Kind::Ours, Kind::C] {
        let host = Host::new(&format!("restart-{killed:?}"));
        let mut first = host.peer(killed, "server", (0, 0), 1);
        first.await_text("listening");
        // libxenvchan publishes before it says so, as we do.
        first.kill();
        let mut client = host.peer(Kind::Ours, "client", (0, 0), 10_000);
        thread::sleep(Duration::from_millis(100));
        assert!(!client.has_ended(), "it waits for a server that lives");
        let second = host.peer(Kind::Ours, "server", (0, 0), 10_000);
        let ok = "ok sent=10000 received=10000 left_order=10 right_order=11";
        assert_eq!(client.verdict(), (true, ok.to_owned()));
        assert_eq!(second.verdict(), (true, ok.to_owned()));
    }
}

#[test]
fn a_sender_that_waits_for_room_notices_a_killed_receiver() {
    let host = Host::new("full");
    // Takes nothing, but says that it is there.
    let mut silent = host.cat_listen(&["--send"]);
    let mut silent = Process::start(silent.stdin(Stdio::piped()));
    let zeros = File::open("/dev/zero").unwrap();
    let mut sender = Process::start(host.cat_connect(&[]).stdin(zeros));
    silent.child.stdin.as_mut().unwrap().write_all(b"here").unwrap();
    sender.await_text("here");
    thread::sleep(Duration::from_millis(50));
    silent.kill();
    let output = sender.finish();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("vchan-cat: the peer left ") && said.ends_with(" bytes unread\n"), "{said}");
}

/// A paused domain is no dead one: nothing times out, nothing is lost.
#[test]
fn a_side_that_stands_still_for_a_while_is_waited_for() {
    let bytes = 8 << 20;
    for stopped in ["server", "client"] {
        let host = Host::new(&format!("pause-{stopped}"));
        let mut server = host.peer(Kind::Ours, "server", (4096, 4096), bytes);
        let mut client = host.peer(Kind::Ours, "client", (0, 0), bytes);
        server.await_text("connected");
        client.await_text("connected");
        let one = if stopped == "server" { &server } else { &client };
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(30));
            one.signal("-STOP");
            thread::sleep(Duration::from_millis(300));
            one.signal("-CONT");
        }
        let expected = (true, format!("ok sent={bytes} received={bytes} left_order=12 right_order=12"));
        assert_eq!(client.verdict(), expected);
        assert_eq!(server.verdict(), expected);
    }
}

#[test]
fn timeouts_pass_while_the_peer_stands_still_and_then_it_goes_on() {
    let host = Host::new("still");
    let bytes = 1 << 20;
    let mut server = host.peer(Kind::Ours, "drain", (4096, 0), bytes);
    server.await_text("listening");
    server.signal("-STOP");
    // It can come, and fill the ring.
    let mut client = host.peer(Kind::Ours, "impatient", (0, 0), bytes);
    client.await_text("timed out");
    thread::sleep(Duration::from_secs(1));
    assert!(!client.has_ended() && !server.has_ended());
    server.signal("-CONT");
    let ok = |sent, received| format!("ok sent={sent} received={received} left_order=12 right_order=11");
    assert_eq!(client.verdict(), (true, ok(bytes, 0)));
    assert_eq!(server.verdict(), (true, ok(0, bytes)));
}

#[test]
fn a_killed_server_is_the_end_of_the_stream_for_our_client() {
    let host = Host::new("kill-sending");
    let mut server = Process::start(host.cat_listen(&["--send"]).stdin(Stdio::piped()));
    let mut client = Process::start(&mut host.cat_connect(&["--recv"]));
    server.child.stdin.as_mut().unwrap().write_all(b"last words").unwrap();
    client.await_text("last words");
    server.kill();
    let output = client.finish();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"last words"[..]));
}

#[test]
fn a_second_client_is_refused_and_disturbs_nobody() {
    for server in [Kind::Ours, Kind::C] {
        let host = Host::new(&format!("second-{server:?}"));
        let bytes = 8 << 20;
        let server = host.peer(server, "server", (4096, 4096), bytes);
        let mut client = host.peer(Kind::Ours, "client", (0, 0), bytes);
        client.await_text("connected");
        // So that there is still somebody to disturb when the second one has been refused.
        client.signal("-STOP");
        let program = env!("CARGO_BIN_EXE_vchan-cat");
        let second = Process::start(host.command(CLIENT, program).args(["connect", "1", PATH])).finish();
        assert_eq!(second.status.code(), Some(2));
        let said = String::from_utf8(second.stderr).unwrap();
        let refused = "vchan-cat: xenevtchn_bind_interdomain";
        assert!(said.starts_with(refused) && said.lines().count() == 1, "{said}");
        client.signal("-CONT");
        let expected = (true, format!("ok sent={bytes} received={bytes} left_order=12 right_order=12"));
        assert_eq!(client.verdict(), expected);
        assert_eq!(server.verdict(), expected);
    }
}
