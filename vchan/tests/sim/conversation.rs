//! Both directions, byte for byte, through rings of every size, with libxenvchan at either end.

use crate::cat::Input;
use crate::host::{Host, Process};
use crate::peers::Kind;

/// Minimums, and the orders that they lead to: the table of the protocol.
const SIZES: [(usize, usize, u16, u16); 11] = [
    (0, 0, 10, 11),
    (1024, 1024, 10, 11),
    (1024, 2048, 10, 11),
    (2048, 1024, 11, 10),
    (2048, 2048, 11, 12),
    (1025, 1025, 11, 12),
    (2048, 4096, 11, 12),
    (4096, 1024, 12, 11),
    (4096, 4096, 12, 12),
    (5000, 100, 13, 11),
    (1 << 20, 1 << 20, 20, 20),
];

/// A server and a client have the whole conversation through rings of every pair of sizes.
fn converse(server: Kind, client: Kind) {
    for (left_min, right_min, left, right) in SIZES {
        let host = Host::new(&format!("{server:?}-{client:?}-{left_min}-{right_min}"));
        // Several times round the larger ring, and not a multiple of it.
        let bytes = (3 << left.max(right)).max(150_000) + 12_345;
        let server = host.peer(server, "server", (left_min, right_min), bytes);
        let client = host.peer(client, "client", (0, 0), bytes);
        let expected = format!("ok sent={bytes} received={bytes} left_order={left} right_order={right}");
        assert_eq!(client.verdict(), (true, expected.clone()), "client, {left_min}, {right_min}");
        assert_eq!(server.verdict(), (true, expected), "server, {left_min}, {right_min}");
    }
}

#[test]
fn ours_with_ours() {
    converse(Kind::Ours, Kind::Ours);
}

#[test]
fn our_server_with_libxenvchans_client() {
    converse(Kind::Ours, Kind::C);
}

#[test]
fn libxenvchans_server_with_our_client() {
    converse(Kind::C, Kind::Ours);
}

/// A client that leaves as soon as it has sent; libxenvchan's server may lose the last bytes then, ours must not.
#[test]
fn what_a_client_sent_before_it_left_arrives() {
    for client in [Kind::Ours, Kind::C] {
        let host = Host::new(&format!("burst-{client:?}"));
        for round in 0..12 {
            let bytes = 1 + 700 * round;
            let server = host.peer(Kind::Ours, "drain", (4096, 0), bytes);
            let client = host.peer(client, "burst", (0, 0), bytes);
            let expected = |sent, received| {
                (true, format!("ok sent={sent} received={received} left_order=12 right_order=11"))
            };
            assert_eq!(client.verdict(), expected(bytes, 0));
            assert_eq!(server.verdict(), expected(0, bytes));
        }
    }
}

/// A C peer may lose what is sent right before a close; not if the close waits until it has taken it, as a pump does.
#[test]
fn libxenvchan_gets_all_that_a_pump_sends_before_it_closes() {
    let host = Host::new("pump-burst");
    for round in 0..12 {
        let bytes = 1 + 700 * round;
        let input = Input::of(&format!("pump-{bytes}"), &seeded(bytes ^ 0x5eed, bytes));
        let server = host.peer(Kind::C, "drain", (4096, 0), bytes);
        let client = Process::start(host.cat_connect(&["--send"]).stdin(input.open())).finish();
        assert_eq!(client.status.code(), Some(0));
        let expected = format!("ok sent=0 received={bytes} left_order=12 right_order=11");
        assert_eq!(server.verdict(), (true, expected));
    }
}

/// The bytes of a seed, as the peers count them: SplitMix64's numbers.
fn seeded(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64;
    let numbers = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    });
    numbers.flat_map(u64::to_le_bytes).take(len).collect()
}

/// Our end of a conversation, all of the process that it is.
#[test]
#[ignore = "takes half a minute and needs valgrind: `make valgrind`"]
fn valgrind_sees_no_wrong_access_and_no_leak() {
    let (inline, own_pages) = ((0, 0, 10, 11), (4096, 65_536, 12, 16));
    for (server, client, (left_min, right_min, left, right)) in [
        (Kind::Ours, Kind::Ours, inline),
        (Kind::Ours, Kind::Ours, own_pages),
        (Kind::Ours, Kind::C, own_pages),
        (Kind::C, Kind::Ours, own_pages),
    ] {
        let host = Host::new(&format!("valgrind-{server:?}-{client:?}-{left_min}"));
        let bytes = 200_000;
        let start = |kind, role| match kind {
            Kind::Ours => host.peer_in_valgrind(kind, role, (left_min, right_min), bytes),
            Kind::C => host.peer(kind, role, (left_min, right_min), bytes),
        };
        let (server, client) = (start(server, "server"), start(client, "client"));
        let expected = format!("ok sent={bytes} received={bytes} left_order={left} right_order={right}");
        assert_eq!(client.verdict(), (true, expected.clone()));
        assert_eq!(server.verdict(), (true, expected));
    }
}

/// The peers themselves are to be believed: they see a byte that is wrong, and bytes that do not come.
#[test]
fn a_peer_that_expects_other_bytes_says_where() {
    for kind in [Kind::Ours, Kind::C] {
        let host = Host::new(&format!("differ-{kind:?}"));
        // The number of bytes is in the seed, so two that expect different numbers expect different bytes.
        let server = host.peer(kind, "server", (0, 0), 5000);
        let client = host.peer(Kind::Ours, "client", (0, 0), 5001);
        let (success, line) = server.verdict();
        assert!(!success && line.starts_with("byte 0 is 0x"), "{line}");
        let (success, line) = client.verdict();
        assert!(!success && line.contains("the end came") || line.contains("closed"), "{line}");
    }
}
