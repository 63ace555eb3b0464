//! Agents that keep no rules.

use super::world::{Got, NEXUS, UNTRUSTED, VAULT, WORK, World};
use nexus::broker::Parting;
use nexus::wire::{Ident, Kind, Message, Source, Trigger, WireError};
use std::time::Duration;

/// The others are served as ever.
fn is_responsive(world: &mut World) {
    world.request(WORK, 4, "ok", "", "vault", "test.Allowed");
    assert!(matches!(&world.heard(WORK)[..], [.., Got::Join { .. }]));
    assert!(matches!(&world.heard(VAULT)[..], [.., Got::Run { .. }]));
}

fn world() -> World {
    let mut world = World::new();
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS);
    world
}

fn header(kind: u32, length: u32) -> Vec<u8> {
    [kind.to_le_bytes(), length.to_le_bytes()].concat()
}

#[test]
fn every_message_out_of_place_ends_the_connection_and_nothing_else() {
    for version in [None, Some(2), Some(3), Some(4), Some(NEXUS)] {
        for kind in [
            0x190,
            0x191,
            0x192,
            0x193,
            0x200,
            0x201,
            0x202,
            0x203,
            0x210,
            0x211,
            0x212,
            0x213,
            0x300,
            0x4e58_0200,
            0x4e58_0202,
            0x4e58_0203,
            0x4e58_0204,
            0x4e58_0211,
            0x4e58_0212,
            0,
            0x301,
            u32::MAX,
        ] {
            let good = match version {
                None => kind == 0x300,
                Some(2) => [0x210, 0x211].contains(&kind),
                Some(3) => [0x210, 0x211, 0x212].contains(&kind),
                Some(4) => [0x210, 0x211, 0x212, 0x213].contains(&kind),
                _ => [0x210, 0x211, 0x212, 0x213, 0x4e58_0211, 0x4e58_0212].contains(&kind),
            };
            let mut world = world();
            match version {
                None => world.connect(UNTRUSTED),
                Some(version) => world.agent(UNTRUSTED, version),
            }
            // Too long for any, too short for any, and as long as some are.
            for length in [u32::MAX, 0, 3] {
                world.say_bytes(UNTRUSTED, &header(kind, length));
                let [(UNTRUSTED, Parting::Breach(error))] = &world.closed[..] else {
                    panic!("{version:?} {kind:#x} {length}: {:?}", world.closed)
                };
                assert_eq!(matches!(error, WireError::Length { .. }), good, "{version:?} {kind:#x}: {error}");
                world.closed.clear();
                match version {
                    None => world.connect(UNTRUSTED),
                    Some(version) => world.agent(UNTRUSTED, version),
                }
            }
            is_responsive(&mut world);
        }
    }
}

#[test]
fn a_message_that_never_ends_takes_no_more_than_itself() {
    let mut world = world();
    world.agent(UNTRUSTED, 3);
    world.say_bytes(UNTRUSTED, &header(Kind::TriggerService3 as u32, 64 + 32 + 65_001));
    for _ in 0..64 + 32 + 65_000 {
        world.say_bytes(UNTRUSTED, b"x");
    }
    assert!(world.closed.is_empty(), "it is not whole yet");
    is_responsive(&mut world);
    world.say_bytes(UNTRUSTED, b"x");
    assert_eq!(world.closed.len(), 1, "none of its strings has an end");
    is_responsive(&mut world);
}

#[test]
fn who_does_not_read_is_hung_up_on() {
    let mut world = world();
    world.agent(UNTRUSTED, NEXUS);
    let trigger = Trigger { ident: Ident::new(b"flood").unwrap(), target: b"vault", service: b"test.Denied" };
    let mut bytes = Vec::new();
    Message::TriggerService4(Source(b""), trigger).encode(&mut bytes).unwrap();
    let mut sent = 0;
    while world.closed.is_empty() {
        world.say_bytes(UNTRUSTED, &bytes);
        sent += 1;
        assert!(sent < 10_000, "answers are kept without a bound");
    }
    assert!(matches!(world.closed[..], [(UNTRUSTED, Parting::Full(waiting))] if waiting < 300_000));
    is_responsive(&mut world);
}

#[test]
fn a_target_that_does_not_read_is_not_hung_up_on_for_others() {
    let mut world = World::new();
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS);
    let argument = "a".repeat(60_000);
    for _ in 0..3 {
        world.request(WORK, 4, "long", "", "vault", &format!("test.Allowed+{argument}"));
        assert!(matches!(world.heard(WORK)[..], [Got::Join { .. }]));
    }
    world.request(WORK, 4, "long", "", "vault", "test.Allowed");
    world.refused(WORK, "long", nexus::broker::Outcome::Fail, "does not read");
    assert!(world.closed.is_empty());
    assert_eq!(world.heard(VAULT).len(), 3);
    world.request(WORK, 4, "again", "", "vault", "test.Allowed");
    assert!(matches!(world.heard(WORK)[..], [Got::Join { .. }]));
}

#[test]
fn a_flood_has_to_wait_and_the_others_have_not() {
    let mut world = world();
    world.agent(UNTRUSTED, NEXUS);
    for _ in 0..5_000 {
        world.request(UNTRUSTED, 4, "f", "", "vault", "test.Denied");
        world.heard(UNTRUSTED);
    }
    let wait = world.patience(UNTRUSTED);
    assert!(wait > Duration::from_secs(10), "{wait:?}");
    assert_eq!(world.patience(WORK), Duration::ZERO);
    is_responsive(&mut world);
}

#[test]
fn repeated_answers_and_strangers_numbers_change_nothing() {
    let mut world = world();
    world.agent(UNTRUSTED, NEXUS);
    is_responsive(&mut world);
    for port in [513, 600, 768, u32::MAX] {
        world.say(UNTRUSTED, &super::world::terminated(WORK, port));
        world.say(UNTRUSTED, &super::world::terminated(VAULT, port));
    }
    assert_eq!(world.broker.metrics().open, 1);
    assert!(world.closed.is_empty());
}
