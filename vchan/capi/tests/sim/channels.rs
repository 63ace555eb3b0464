//! Conversations in which every byte is checked (`tests/peer/peer.c`), with either library at either end.

use crate::host::{Host, Library, Process, compile};
use std::thread;
use std::time::Duration;

use Library::{Debian, Ours};

/// Minimums, and the orders that they lead to.
const SIZES: [(usize, usize, u16, u16); 5] = [
    (0, 0, 10, 11),
    (2048, 2048, 11, 12),
    (4096, 1024, 12, 11),
    (65_536, 65_536, 16, 16),
    (1 << 20, 1 << 20, 20, 20),
];

fn peer(host: &Host, library: Library, role: &str, sizes: (usize, usize), bytes: usize) -> Process {
    let program = compile("tests/peer/peer.c", &["-lxenvchan"]);
    let (own, other, path) = match role {
        "server" | "drain" => (1, "2", "data/vchan/2/7"),
        _ => (2, "1", "/local/domain/1/data/vchan/2/7"),
    };
    let numbers = [sizes.0, sizes.1, bytes, bytes ^ 0x5eed].map(|number| number.to_string());
    Process::start(
        host.command(own, library, program).args([role, other, path]).args(numbers).arg("--progress"),
    )
}

#[test]
fn every_byte_arrives_in_both_directions() {
    for (server, client) in [(Ours, Ours), (Ours, Debian), (Debian, Ours)] {
        for (left_min, right_min, left, right) in SIZES {
            let host = Host::new("peers");
            let bytes = (3 << left.max(right)).max(150_000) + 12_345;
            let server = peer(&host, server, "server", (left_min, right_min), bytes);
            let client = peer(&host, client, "client", (0, 0), bytes);
            let expected =
                format!("ok sent={bytes} received={bytes} left_order={left} right_order={right}\n");
            assert_eq!((client.succeed(), server.succeed()), (expected.clone(), expected));
        }
    }
}

/// Who sleeps in poll is woken whenever there is something to do, by either library.
#[test]
fn pollers_are_woken() {
    let program = compile("vchan/capi/tests/c/poller.c", &["-lxenvchan"]);
    for (server, client) in [(Ours, Ours), (Ours, Debian), (Debian, Ours)] {
        for styles in [["asks", "asks"], ["short", "short"], ["asks", "short"]] {
            let host = Host::new("pollers");
            let [server, client] = [("server", 1, server, styles[0]), ("client", 2, client, styles[1])].map(
                |(role, domid, library, style)| {
                    Process::start(host.command(domid, library, &program).args([role, style, "4000000", "5"]))
                },
            );
            assert_eq!((client.succeed(), server.succeed()), ("ok\n".to_owned(), "ok\n".to_owned()));
        }
    }
}

/// libxenvchan's server may lose what its client sent right before it left; ours does not.
#[test]
fn what_a_client_sent_before_it_left_arrives() {
    for client in [Ours, Debian] {
        let host = Host::new("burst");
        for round in 0..12 {
            let bytes = 1 + 700 * round;
            let server = peer(&host, Ours, "drain", (4096, 0), bytes);
            let client = peer(&host, client, "burst", (0, 0), bytes);
            let expected =
                |sent, received| format!("ok sent={sent} received={received} left_order=12 right_order=11\n");
            assert_eq!((client.succeed(), server.succeed()), (expected(bytes, 0), expected(0, bytes)));
        }
    }
}

/// Kills one side in the midst of a conversation; what the other one says of that.
fn survivor(server: Library, client: Library, victim: &str) -> String {
    let host = Host::new("kill");
    let mut ends = [("server", server), ("client", client)]
        .map(|(role, library)| peer(&host, library, role, (65_536, 65_536), 1 << 40));
    ends.iter_mut().for_each(Process::await_connection);
    thread::sleep(Duration::from_millis(50));
    let [mut dies, survives] = if victim == "server" {
        ends
    } else {
        let [server, client] = ends;
        [client, server]
    };
    dies.child.kill().unwrap();
    let output = survives.finish();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_killed_peer_is_the_end() {
    for (server, client) in [(Ours, Ours), (Ours, Debian), (Debian, Ours)] {
        let said = survivor(server, client, "client");
        assert!(said.starts_with("libxenvchan_read returned -1 after "), "{said}");
        let said = survivor(server, client, "server");
        assert!(said.starts_with("libxenvchan_write of "), "{said}");
    }
}
