//! Calls to qubes of other hosts, by the qube that is their relay.

use super::world::{Got, NEXUS, UNTRUSTED, WORK, World, limits};
use nexus::broker::Outcome;
use nexus::name::Name;

const POLICY: &str = "\
q.A * work far allow
q.B * work @default allow target=far
q.No * work far allow autostart=no
q.User * work far allow user=root
q.A * work farther allow
q.A * untrusted far allow
";

fn world() -> World {
    let mut world = World::with_policy(limits(), 1, POLICY);
    world.agent(WORK, NEXUS);
    world
}

#[test]
fn a_call_goes_to_the_relay_with_all_of_the_request_in_its_argument() {
    for version in [NEXUS, 4] {
        let mut world = world();
        world.agent(UNTRUSTED, version);
        for (target, service, relayed) in [
            ("far", "q.A+x", "test.Relay+far+q.A+x"),
            ("far", "q.No", "test.Relay+far+q.No+"),
            ("", "q.B+x", "test.Relay+far+q.B+x"),
        ] {
            world.request(WORK, 4, "r", "", target, service);
            let heard = world.heard(UNTRUSTED);
            match &heard[..] {
                [Got::Run { words, .. }] => {
                    let wish = if target.is_empty() { "@default" } else { target };
                    assert_eq!(words, &["", "", relayed, "work", wish]);
                }
                [Got::Exec { command, .. }] => assert_eq!(*command, format!("user:QUBESRPC {relayed} work")),
                other => panic!("{other:?}"),
            }
            assert!(matches!(world.heard(WORK)[..], [Got::Join { domain: UNTRUSTED, .. }]));
            // The log has what was asked for.
            assert_eq!(world.last().to.as_deref(), Some("far"));
            assert!(world.last().service.starts_with(service));
        }
    }
}

#[test]
fn without_a_way_there_it_fails() {
    let mut world = world();
    world.agent(UNTRUSTED, NEXUS);
    world.request(WORK, 4, "r", "", "farther", "q.A");
    world.refused(WORK, "r", Outcome::Fail, "no relayvm and transport_rpc");
    world.request(WORK, 4, "r", "", "far", "q.User");
    world.refused(WORK, "r", Outcome::Fail, "user=");
    world.request(WORK, 4, "r", "", "far", &format!("q.A+{}", "a".repeat(64_990)));
    world.refused(WORK, "r", Outcome::Fail, "on another host");
    // The relay itself has to go another way.
    world.request(UNTRUSTED, 4, "r", "", "far", "q.A");
    world.refused(UNTRUSTED, "r", Outcome::Fail, "is in the domain that calls");
}

#[test]
fn a_relay_that_does_not_run_is_started() {
    let mut world = world();
    let relay = Name::new("untrusted").unwrap();
    world.running.remove(&relay);
    world.broker.set_running(world.running.clone(), world.now);
    world.request(WORK, 4, "r", "", "far", "q.No");
    world.refused(WORK, "r", Outcome::Deny, "autostart=no");
    world.request(WORK, 4, "r", "", "far", "q.A");
    assert_eq!(world.started, std::slice::from_ref(&relay));
    world.start(&relay, UNTRUSTED);
    world.agent(UNTRUSTED, NEXUS);
    let heard = world.heard(UNTRUSTED);
    assert!(matches!(&heard[..], [Got::Run { words, .. }] if words[2] == "test.Relay+far+q.A+"), "{heard:?}");
}
