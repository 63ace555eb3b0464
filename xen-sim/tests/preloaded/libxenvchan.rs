//! Debian's libxenvchan between two ordinary processes.

use crate::sim::{Process, Sim, eventually, library, program, stderr_of};
use std::fs;
use std::process::Stdio;

const PATH: &str = "data/vchan";
const SEEN_BY_CLIENT: &str = "/local/domain/1/data/vchan";

/// A server in domain 1 for domain 2, ready for it.
fn server(sim: &Sim, left_min: &str, right_min: &str, command: &[&str]) -> Process {
    let args = [&["server", "2", PATH, left_min, right_min], command].concat();
    let server = sim.start(1, &program("peer"), &args);
    server.says("ready");
    server
}

fn client(sim: &Sim, command: &[&str]) -> Process {
    sim.start(2, &program("peer"), &[&["client", "1", SEEN_BY_CLIENT], command].concat())
}

/// The orders that the real library chooses for these sizes, and data through rings of these orders, in chunks that wrap
/// and that do not.
fn exchange(left_min: &str, right_min: &str, orders: &str, bytes: &str) {
    let sim = Sim::new(&format!("exchange-{left_min}-{right_min}"));
    for chunk in ["1000", "4096", "70001"] {
        let command = ["exchange", bytes, chunk];
        let mut server = server(&sim, left_min, right_min, &command);
        let mut client = client(&sim, &command);
        for end in [&mut server, &mut client] {
            end.says(&format!("connected {orders}"));
            end.says("exchanged");
            end.succeeds();
        }
    }
}

#[test]
fn rings_in_the_page() {
    exchange("0", "0", "10 11", "200000");
    exchange("2048", "1024", "11 10", "200000");
}

#[test]
fn one_ring_in_the_page() {
    exchange("2048", "4096", "11 12", "300000");
    exchange("4096", "1024", "12 11", "300000");
}

#[test]
fn rings_of_some_pages() {
    exchange("4096", "4096", "12 12", "1000000");
    exchange("5000", "100", "13 11", "400000");
    exchange("65536", "65536", "16 16", "3000000");
}

#[test]
fn the_largest_rings_whose_references_need_more_than_one_message() {
    exchange("1048576", "1048576", "20 20", "5000000");
}

#[test]
fn the_preloaded_library_is_what_libxenvchan_binds_to() {
    let sim = Sim::new("bindings");
    let trace = sim.dir().with_extension("trace");
    let server_args = ["server", "2", PATH, "4096", "4096", "keep"];
    let mut child = sim
        .command(1, &program("peer"))
        .args(server_args)
        .env("LD_DEBUG", "bindings")
        .env("LD_DEBUG_OUTPUT", &trace)
        .env("LD_BIND_NOW", "1")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let trace = trace.with_extension(format!("trace.{}", child.id()));
    // "binding file LIBRARY [0] to LIBRARY [0]: normal symbol `NAME' [VERSION]"
    let of_libxenvchan = || -> Vec<(String, String)> {
        let text = fs::read_to_string(&trace).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once("binding file ")).map(|(_, line)| line);
        let parts = lines.filter(|line| line.contains("libxenvchan.so.4.17 [0] to")).filter_map(|line| {
            let (_, rest) = line.split_once(" to ")?;
            let (library, rest) = rest.split_once(" [0]: ")?;
            Some((rest.split(['`', '\'']).nth(1)?.to_owned(), library.to_owned()))
        });
        parts.collect()
    };
    let is_ours = |name: &str| name.starts_with("xen") || name.starts_with("xs_") || name == "munmap";
    // All of them are bound before main, the server's first word comes after.
    eventually("a channel in the store", || sim.dir().join("host.sock").exists());
    let bindings = of_libxenvchan();
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_file(&trace).unwrap();

    let preloaded = library();
    let ours: Vec<&str> = bindings
        .iter()
        .filter(|(_, to)| *to == preloaded.to_str().unwrap())
        .map(|(name, _)| name.as_str())
        .collect();
    let others: Vec<_> =
        bindings.iter().filter(|(name, to)| is_ours(name) && *to != preloaded.to_str().unwrap()).collect();
    assert!(others.is_empty(), "bound elsewhere: {others:?}");
    for name in
        ["xengntshr_share_pages", "xengnttab_map_domain_grant_refs", "xenevtchn_notify", "xs_write", "munmap"]
    {
        assert!(ours.contains(&name), "{name} is not bound to {}: {bindings:?}", preloaded.display());
    }
    // All that Debian's library needs of the three: 27 functions, and munmap.
    assert_eq!(ours.iter().filter(|name| is_ours(name)).count(), 28, "{ours:?}");
}

#[test]
fn a_clean_close_is_seen_by_either_end() {
    let sim = Sim::new("close");
    // "exchange" of nothing: connect and close.
    let quick = ["exchange", "0", "1"];
    let mut holding = server(&sim, "4096", "4096", &["hold"]);
    client(&sim, &quick).succeeds();
    holding.says("connected 12 12");
    holding.says("closed");
    holding.succeeds();

    let mut closing = server(&sim, "4096", "4096", &quick);
    let mut holding = client(&sim, &["hold"]);
    closing.succeeds();
    holding.says("connected 12 12");
    holding.says("closed");
    holding.succeeds();
}

#[test]
fn a_server_that_is_killed_is_noticed_by_its_client() {
    let sim = Sim::new("kill-server");
    for size in ["0", "65536"] {
        let mut killed = server(&sim, size, size, &["keep"]);
        let mut survivor = client(&sim, &["hold"]);
        survivor.line();
        killed.line();
        killed.kill();
        survivor.says("closed");
        survivor.succeeds();
    }
}

#[test]
fn a_client_that_is_killed_is_noticed_by_its_server() {
    let sim = Sim::new("kill-client");
    for size in ["0", "65536"] {
        let mut survivor = server(&sim, size, size, &["hold"]);
        let mut killed = client(&sim, &["keep"]);
        killed.line();
        survivor.line();
        killed.kill();
        survivor.says("closed");
        survivor.succeeds();
    }
}

#[test]
fn a_process_that_is_killed_in_the_middle_of_a_transfer_is_noticed_too() {
    let sim = Sim::new("kill-busy");
    // Each end is killed while both notify as fast as they can; the survivor sees the end of the channel as an error.
    let endless = ["ping", "1000000000", "64"];
    for server_dies in [true, false].into_iter().cycle().take(20) {
        let peer = program("peer");
        let args = [&["server", "2", PATH, "4096", "4096"], &endless[..]].concat();
        let mut server = sim.start_silenced(1, &peer, &args);
        server.says("ready");
        let args = [&["client", "1", SEEN_BY_CLIENT], &endless[..]].concat();
        let mut client = sim.start_silenced(2, &peer, &args);
        server.line();
        client.line();
        let (killed, survivor) =
            if server_dies { (&mut server, &mut client) } else { (&mut client, &mut server) };
        killed.kill();
        assert_eq!(survivor.wait().code(), Some(1), "reads -1");
    }
}

#[test]
fn another_domain_cannot_connect() {
    let sim = Sim::new("stranger");
    let _server = server(&sim, "4096", "4096", &["keep"]);
    let args = ["client", "1", SEEN_BY_CLIENT, "hold"];
    let mut stranger = sim.command(3, &program("peer"));
    stranger.args(args);
    let (status, error) = stderr_of(stranger);
    assert_eq!(status.code(), Some(1));
    assert_eq!(error, "init: Permission denied\n");
}
