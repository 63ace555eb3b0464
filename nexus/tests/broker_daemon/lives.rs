//! Deaths, and what comes after.

use super::host::{Agent, Host, NEXUS};
use nexus::wire::Message;
use nexus::wire::control::{OpenCall, Role, Via};

const POLICY: &str = "test.Allowed * @anyvm @anyvm allow\n";

/// A call that both agents know of, and its number.
fn call(host: &Host) -> (Agent, Agent, u64) {
    let mut work = host.agent("work", 1, NEXUS);
    let mut vault = host.agent("vault", 2, NEXUS);
    work.request("", "vault", "test.Allowed");
    let call = work.joined();
    vault.runs(call);
    (work, vault, call)
}

#[test]
fn an_agent_that_is_killed_is_missed_and_welcome_again() {
    let mut host = Host::new(POLICY);
    host.start();
    let (mut work, mut vault, call) = call(&host);
    vault.kill();
    work.hear(|message| assert_eq!(*message, Message::Gone(2)));
    work.ends(call, Role::Caller, 125);
    host.becomes("nexus_open_calls", "0");
    work.request("", "vault", "test.Allowed");
    work.refused();
    let mut vault = host.agent("vault", 2, NEXUS);
    work.request("", "vault", "test.Allowed");
    let call = work.joined();
    vault.runs(call);
}

#[test]
fn nexusd_is_killed_and_picks_up_what_is_open() {
    let mut host = Host::new(POLICY);
    host.start();
    let (mut work, mut vault, call) = call(&host);
    host.kill();
    assert_eq!(work.try_hear(|_| ()), None, "the agents notice");
    assert_eq!(vault.try_hear(|_| ()), None);
    host.start();
    let mut work = host.agent("work", 1, NEXUS);
    let mut vault = host.agent("vault", 2, NEXUS);
    work.say(&Message::Open(OpenCall { call, via: Via { domain: 2, port: None }, role: Role::Caller }));
    vault.say(&Message::Open(OpenCall { call, via: Via { domain: 1, port: None }, role: Role::Service }));
    host.becomes("nexus_open_calls", "2");
    work.ends(call, Role::Caller, 0);
    vault.ends(call, Role::Service, 0);
    host.becomes("nexus_open_calls", "0");
    work.request("", "vault", "test.Allowed");
    assert_ne!(work.joined() >> 32, call >> 32);
}

#[test]
fn agents_that_are_there_first_are_found() {
    let mut host = Host::new(POLICY);
    let socket = host.path("early.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    let child = host.agent_command("work", 1, &socket).spawn().expect("an agent");
    let (socket, _) = listener.accept().expect("an agent");
    host.start();
    let mut work = Agent::new(socket, Some(child));
    work.greet(4);
    work.request("", "vault", "test.Allowed");
    work.refused();
}
