//! A broker that comes back, and agents that tell it what is open.

use super::world::{Got, NEXUS, UNTRUSTED, VAULT, WORK, World, limits};
use nexus::broker::Parting;
use nexus::name::Name;
use nexus::wire::Message;
use nexus::wire::control::{Ended, OpenCall, Role, Via};
use std::time::Duration;

fn open(call: u64, domain: u16, port: Option<u32>, role: Role) -> Message<'static> {
    Message::Open(OpenCall { call, via: Via { domain, port }, role })
}

fn ended(call: u64, role: Role) -> Message<'static> {
    Message::Ended(Ended { call, exit: 4, role, to_service: 1, to_caller: 2 })
}

#[test]
fn calls_of_before_are_known_again() {
    let mut world = World::with(limits(), 8);
    let call = 7 << 32 | 3;
    world.agent(WORK, NEXUS);
    world.say(WORK, &open(call, VAULT, None, Role::Caller));
    world.agent(VAULT, NEXUS);
    world.say(VAULT, &open(call, WORK, None, Role::Service));
    assert_eq!(world.broker.metrics().open, 2);
    // Another qube knows the number, and cannot end it.
    world.agent(UNTRUSTED, NEXUS);
    world.say(UNTRUSTED, &ended(call, Role::Service));
    world.say(UNTRUSTED, &open(call, VAULT, None, Role::Caller));
    assert_eq!(world.broker.metrics().open, 3);
    world.say(WORK, &ended(call, Role::Caller));
    assert!(world.ends.is_empty());
    world.say(VAULT, &ended(call, Role::Service));
    let [end] = &world.ends[..] else { panic!("{:?}", world.ends) };
    assert_eq!((end.source.as_str(), end.to.as_str(), end.exit), ("work", "vault", Some(4)));
    world.say(UNTRUSTED, &ended(call, Role::Caller));
    assert_eq!(world.broker.metrics().open, 0);
    // New calls have other numbers.
    world.request(WORK, 4, "n", "", "vault", "test.Allowed");
    assert!(matches!(&world.heard(WORK)[..], [Got::Join { call, .. }] if call >> 32 == 8));
}

#[test]
fn ports_of_before_are_not_given_out() {
    let mut world = World::new();
    world.agent(WORK, NEXUS);
    world.agent(VAULT, 3);
    for port in 513..513 + 15 {
        world.say(WORK, &open(u64::from(port), VAULT, Some(port), Role::Caller));
    }
    world.request(WORK, 4, "n", "", "vault", "test.Allowed");
    assert!(matches!(&world.heard(WORK)[..], [Got::Join { port: Some(528), .. }]));
}

#[test]
fn claims_have_a_bound() {
    let mut world = World::new();
    world.agent(UNTRUSTED, NEXUS);
    for call in 0..20 {
        world.say(UNTRUSTED, &open(call, VAULT, None, Role::Service));
        world.say(UNTRUSTED, &open(call, VAULT, None, Role::Service));
    }
    assert_eq!(world.broker.metrics().open, 20);
    world.say(UNTRUSTED, &open(20, VAULT, None, Role::Service));
    assert_eq!(world.closed, [(UNTRUSTED, Parting::Claims(20))]);
    assert_eq!(world.broker.metrics().open, 0);
}

#[test]
fn disposables_of_before_are_kept_for_their_calls() {
    let mut world = World::new();
    let name = |text: &str| Name::new(text).unwrap();
    world.broker.found_disposables([(name("disp1"), name("dvm")), (name("disp2"), name("dvm"))], world.now);
    world.start(&name("disp1"), 51);
    world.start(&name("disp2"), 52);
    world.agent(51, NEXUS);
    world.agent(52, NEXUS);
    world.say(51, &open(1, WORK, None, Role::Service));
    world.say(52, &open(2, WORK, None, Role::Caller));
    world.tick(Duration::from_secs(29));
    assert!(world.destroyed.is_empty());
    world.tick(Duration::from_secs(2));
    assert_eq!(world.destroyed, [name("disp2")], "it serves nobody");
    world.say(51, &ended(1, Role::Service));
    assert_eq!(world.destroyed, [name("disp2"), name("disp1")]);
}
