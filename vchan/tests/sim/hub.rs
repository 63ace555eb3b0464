//! A thousand channels in one process.

use crate::host::{Host, Process, beside};
use crate::peers::CLIENT;

/// What a peer's line says of a cost.
fn cost(line: &str, of: &str) -> u64 {
    let field = line.split_whitespace().find_map(|field| field.strip_prefix(of)?.strip_prefix('='));
    field.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {of} in {line:?}"))
}

/// The server is in dom0: a guest's xenstored lets it have a thousand nodes, and a channel takes three.
#[test]
fn a_thousand_channels_talk_over_at_most_16_descriptors_and_cost_nothing_in_silence() {
    const SILENCE: u64 = 6;
    let host = Host::new("hub");
    let peer = |domid: u16, role: &str, other: u16, path: &str| {
        let mut command = host.command(domid, beside("../examples/vchan-hub"));
        command.args([role, &other.to_string(), path, "1000", "3", &SILENCE.to_string()]);
        Process::start(&mut command)
    };
    let server = peer(0, "server", CLIENT, "/local/domain/0/data/vchan");
    let client = peer(CLIENT, "client", 0, "data/vchan");
    let [client, _] = [client, server].map(|process| {
        let (success, line) = process.verdict();
        assert!(success && line.starts_with("ok channels=1000 "), "{line}");
        assert!(cost(&line, "descriptors") <= 16, "{line}");
        assert!(cost(&line, "threads") <= 3, "{line}");
        line
    });
    // A hundredth of a processor; a debug build needs a tenth of that.
    assert!(cost(&client, "silence_cpu_us") <= SILENCE * 10_000, "{client}");
}
