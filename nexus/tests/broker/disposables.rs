//! A qube for one call.

use super::world::{Got, NEXUS, WORK, World};
use nexus::broker::Outcome;
use nexus::name::Name;
use nexus::wire::Message;
use nexus::wire::control::{Ended, Role};
use std::time::Duration;

fn wanted(world: &mut World) -> Name {
    world.agent(WORK, NEXUS);
    world.request(WORK, 4, "d", "", "@dispvm", "test.Disp");
    let (base, name) = world.made.pop().expect("one is made");
    assert_eq!(base.as_str(), "dvm");
    assert!(world.decisions.is_empty() && world.heard(WORK).is_empty());
    name
}

#[test]
fn it_is_made_called_and_destroyed() {
    for version in [3, NEXUS] {
        let mut world = World::new();
        let name = wanted(&mut world);
        world.broker.made(&name, Ok(()), world.now);
        world.start(&name, 50);
        world.agent(50, version);
        let joined = world.heard(WORK);
        let [Got::Join { call, domain: 50, port, .. }] = &joined[..] else { panic!("{joined:?}") };
        assert_eq!(port.is_none(), version == NEXUS);
        assert_eq!(world.last().to.as_deref(), Some(name.as_str()));
        assert!(world.broker.system().qubes[&name].running);
        assert_eq!(world.broker.system().qubes[&name].class.as_str(), "DispVM");
        let (call, port) = (*call, *port);
        world.say(
            WORK,
            &Message::Ended(Ended { call, exit: 0, role: Role::Caller, to_service: 0, to_caller: 0 }),
        );
        assert!(world.destroyed.is_empty(), "its service still runs");
        match port {
            Some(port) => world.say(50, &super::world::terminated(WORK, port)),
            None => {
                let ended = Ended { call, exit: 0, role: Role::Service, to_service: 0, to_caller: 0 };
                world.say(50, &Message::Ended(ended));
            }
        }
        assert_eq!(world.destroyed, std::slice::from_ref(&name));
        world.broker.unmade(&name);
        assert!(!world.broker.system().qubes.contains_key(&name));
        assert_eq!(world.broker.metrics().disposables, 0);
    }
}

#[test]
fn whatever_fails_it_is_destroyed_once() {
    // It cannot be made.
    let mut world = World::new();
    let name = wanted(&mut world);
    world.broker.made(&name, Err("no memory".into()), world.now);
    world.settle();
    world.refused(WORK, "d", Outcome::Fail, "no memory");
    assert_eq!(world.destroyed, [name]);

    // Its agent never comes.
    let mut world = World::new();
    let name = wanted(&mut world);
    world.broker.made(&name, Ok(()), world.now);
    world.start(&name, 50);
    world.tick(Duration::from_secs(59));
    assert!(world.destroyed.is_empty());
    world.tick(Duration::from_secs(2));
    world.refused(WORK, "d", Outcome::Fail, "does not answer");
    world.tick(Duration::from_secs(2));
    assert_eq!(world.destroyed, [name]);

    // The caller has gone before.
    let mut world = World::new();
    let name = wanted(&mut world);
    world.hang_up(WORK);
    world.broker.made(&name, Ok(()), world.now);
    world.settle();
    assert_eq!(world.destroyed, std::slice::from_ref(&name));
    world.start(&name, 50);
    world.agent(50, NEXUS);
    assert_eq!(world.heard(50), [], "it has nothing to do any more");

    // Its agent goes in the middle of the call.
    let mut world = World::new();
    let name = wanted(&mut world);
    world.start(&name, 50);
    world.agent(50, NEXUS);
    assert!(matches!(&world.heard(50)[..], [Got::Run { .. }]));
    world.hang_up(50);
    assert_eq!(world.destroyed, [name]);
}

#[test]
fn only_what_is_configured_is_made() {
    let mut world =
        World::with(nexus::broker::Limits { disposables: [].into(), ..super::world::limits() }, 1);
    world.agent(WORK, NEXUS);
    world.request(WORK, 4, "d", "", "@dispvm", "test.Disp");
    world.refused(WORK, "d", Outcome::Fail, "configuration does not say");
    assert!(world.made.is_empty());
}

#[test]
fn one_of_a_declared_template_is_made_unless_that_is_configured_otherwise() {
    let declared = || nexus::broker::Limits {
        disposables: [].into(),
        declared_disposables: Some(Duration::from_secs(10)),
        ..super::world::limits()
    };
    let mut system = super::world::system();
    system.qubes.get_mut("dvm").expect("a template").declared = true;
    // Not when nobody has declared it.
    let mut world = World::with(declared(), 1);
    world.agent(WORK, NEXUS);
    world.request(WORK, 4, "d", "", "@dispvm", "test.Disp");
    world.refused(WORK, "d", Outcome::Fail, "was not declared");

    let mut world = World::with(declared(), 1);
    world.broker.set_system(system.clone());
    let name = wanted(&mut world);
    assert!(!world.broker.system().qubes[&name].declared);
    world.broker.made(&name, Ok(()), world.now);
    world.tick(Duration::from_secs(11));
    world.refused(WORK, "d", Outcome::Fail, "does not answer");

    // What the configuration says of it comes first: there, it may take longer.
    let limits = nexus::broker::Limits { disposables: super::world::limits().disposables, ..declared() };
    let mut world = World::with(limits, 1);
    world.broker.set_system(system);
    let name = wanted(&mut world);
    world.broker.made(&name, Ok(()), world.now);
    world.tick(Duration::from_secs(11));
    assert!(world.decisions.is_empty());
    world.start(&name, 50);
    world.agent(50, NEXUS);
    assert!(matches!(&world.heard(WORK)[..], [Got::Join { .. }]));
}

#[test]
fn its_agent_has_its_templates_name_for_itself_and_nobody_elses() {
    let mut world = World::new();
    let name = wanted(&mut world);
    world.start(&name, 50);
    world.agent(50, NEXUS);
    assert!(matches!(&world.heard(50)[..], [Got::Run { .. }]));
    let disposable = name.as_str();
    for (claim, source) in [
        ("dvm", disposable.to_owned()),
        ("dvm:web", format!("{disposable}:web")),
        (disposable, disposable.to_owned()),
        ("", disposable.to_owned()),
    ] {
        world.request(50, 4, "a", claim, "vault", "test.Nothing");
        assert_eq!((world.last().source.as_str(), world.last().verdict), (&*source, Outcome::Deny));
        assert!(world.last().reason.as_ref().is_some_and(|reason| reason == "no rule matches"), "{claim}");
        world.heard(50);
    }
    // Rules for the template are not for it.
    for claim in ["work", "vault:gpg", "dom0"] {
        world.request(50, 4, "b", claim, "vault", "test.Allowed");
        world.refused(50, "b", Outcome::Deny, "in the name of");
    }
    // And the template's name is nobody else's.
    world.heard(WORK);
    world.request(WORK, 4, "c", "dvm:web", "vault", "test.Allowed");
    world.refused(WORK, "c", Outcome::Deny, "in the name of");
}
