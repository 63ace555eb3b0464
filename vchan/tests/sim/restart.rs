//! A server that is restarted under a client that connects again.

use crate::host::Host;
use crate::peers::Kind;

#[test]
fn a_client_comes_back_to_a_restarted_server() {
    for first in [Kind::Ours, Kind::C] {
        let host = Host::new(&format!("returning-{first:?}"));
        let mut killed = host.peer(first, "server", (0, 0), 1);
        let mut client = host.peer(Kind::Ours, "returning", (0, 0), 10_000);
        client.await_text("met the first server");
        killed.kill();
        client.await_text("lost the first server");
        let second = host.peer(Kind::Ours, "server", (5000, 100), 10_000);
        let ok = "ok sent=10000 received=10000 left_order=13 right_order=11";
        assert_eq!(client.verdict(), (true, ok.to_owned()));
        assert_eq!(second.verdict(), (true, ok.to_owned()));
    }
}
