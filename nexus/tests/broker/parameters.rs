//! What a rule's parameters make of a call, and what its caller is told.

use super::world::{Got, NEXUS, VAULT, WORK, World, limits};
use nexus::broker::{Limits, Outcome};
use nexus::name::Name;
use nexus::policy::Place;
use nexus::wire::Message;
use nexus::wire::control::{Ended, Failure, Role};
use std::time::Duration;

/// A qube that does not run at first.
const ASLEEP: u16 = 9;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn world(policy: &str) -> World {
    let mut world = World::with_policy(limits(), 1, policy);
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS);
    world
}

/// The words of the one service that an agent is told to run: container, user, service, source, wish.
#[track_caller]
fn run(world: &mut World, domain: u16) -> [String; 5] {
    match world.heard(domain).as_slice() {
        [Got::Run { words, .. }] => words.clone(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn joined(world: &mut World) -> u16 {
    match world.heard(WORK).as_slice() {
        [Got::Join { domain, .. }] => *domain,
        other => panic!("{other:?}"),
    }
}

#[test]
fn target_of_an_allow_leads_the_call_there() {
    let mut world =
        world("q.A * work untrusted allow target=vault\nq.B * work @default allow target=vault:gpg\n");
    world.request(WORK, 4, "a", "", "untrusted", "q.A");
    assert_eq!(joined(&mut world), VAULT);
    // The service hears whom the caller named.
    assert_eq!(run(&mut world, VAULT), ["", "", "q.A+", "work", "untrusted"]);
    world.request(WORK, 4, "b", "", "", "q.B");
    assert_eq!(joined(&mut world), VAULT);
    assert_eq!(run(&mut world, VAULT), ["gpg", "", "q.B+", "work", "@default"]);
    assert_eq!(world.last().to.as_deref(), Some("vault:gpg"));
}

#[test]
fn target_of_an_ask_is_the_only_choice_and_proposed() {
    let mut world = world("q.A * work @anyvm ask target=vault\n");
    world.request(WORK, 4, "a", "", "untrusted", "q.A");
    let asking = world.asked.pop().unwrap();
    assert_eq!(asking.targets, ["vault"]);
    assert_eq!(asking.default_target.as_deref(), Some("vault"));
    world.broker.answered(asking.call, Some(&Place::redirect("untrusted").unwrap()), world.now);
    world.settle();
    world.refused(WORK, "a", Outcome::Deny, "the user refused it");
}

#[test]
fn default_target_is_proposed_and_another_may_be_chosen() {
    let mut world = world("q.A * work @anyvm ask default_target=vault\n");
    world.request(WORK, 4, "a", "", "untrusted", "q.A");
    let asking = world.asked.pop().unwrap();
    assert_eq!(asking.default_target.as_deref(), Some("vault"));
    assert!(asking.targets.contains(&"asleep".to_owned()), "{asking:?}");
    world.broker.answered(asking.call, Some(&Place::redirect("vault").unwrap()), world.now);
    world.settle();
    assert_eq!(joined(&mut world), VAULT);
}

#[test]
fn user_is_whom_the_service_runs_as() {
    let policy = "q.A * work vault allow user=root\nq.B * work @anyvm ask target=vault user=root\n";
    // For an agent of ours, and in the command line for a stock one.
    for version in [NEXUS, 3] {
        let mut world = world(policy);
        world.agent(VAULT, version);
        world.heard(WORK);
        for service in ["q.A", "q.B"] {
            world.request(WORK, 4, "a", "", "vault", service);
            if let Some(asking) = world.asked.pop() {
                world.broker.answered(asking.call, Some(&Place::redirect("vault").unwrap()), world.now);
                world.settle();
            }
            match world.heard(VAULT).as_slice() {
                [Got::Run { words, .. }] => assert_eq!(words[1], "root"),
                [Got::Exec { command, .. }] => {
                    assert_eq!(*command, format!("root:QUBESRPC {service}+ work"));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn user_of_a_container_is_refused_where_it_cannot_be_refused_in_the_rule() {
    // Which container this leads to is known when the user has chosen.
    let mut world = world("q.A * work @default ask user=root\nq.A * work vault:gpg allow\n");
    world.request(WORK, 4, "a", "", "", "q.A");
    let asking = world.asked.pop().unwrap();
    assert_eq!(asking.targets, ["vault:gpg"]);
    world.broker.answered(asking.call, Some(&Place::redirect("vault:gpg").unwrap()), world.now);
    world.settle();
    world.refused(WORK, "a", Outcome::Fail, "user=");
    assert_eq!(world.heard(VAULT), []);
}

#[test]
fn notify_tells_the_user_or_does_not() {
    let policy = "\
q.Yes  * work vault allow notify=yes
q.No   * work vault allow notify=no
q.Plain * work vault allow
q.DenyNo * work vault deny notify=no
q.DenyYes * work vault deny notify=yes
q.Ask  * work vault ask notify=yes
";
    let mut world = world(policy);
    for (service, told) in [
        ("q.Yes", true),
        ("q.No", false),
        ("q.Plain", false),
        ("q.DenyNo", false),
        ("q.DenyYes", true),
        ("q.Unknown", true),
    ] {
        world.request(WORK, 4, "n", "", "vault", service);
        assert_eq!(world.last().notify, told, "in the log: {service}");
        let notice = world.notices.pop();
        assert_eq!(notice.is_some(), told, "{service}");
        if let Some(notice) = notice {
            assert_eq!(&notice.decision, world.last());
            assert_eq!(notice.missed, 0);
        }
    }
    world.request(WORK, 4, "n", "", "vault", "q.Ask");
    assert!(world.notices.is_empty(), "nothing is decided yet");
    world.broker.answered(world.asked[0].call, None, world.now);
    world.settle();
    assert_eq!(world.notices.pop().unwrap().decision.verdict, Outcome::Deny);
}

#[test]
fn a_flood_of_denials_is_not_one_of_notices() {
    let mut world = world("q.A * work vault deny\n");
    for _ in 0..100 {
        world.request(WORK, 4, "n", "", "vault", "q.A");
    }
    assert_eq!(world.decisions.len(), 100);
    assert_eq!(world.notices.len(), 10);
    world.tick(Duration::from_secs(3));
    world.request(WORK, 4, "n", "", "vault", "q.A");
    world.request(WORK, 4, "n", "", "vault", "q.A");
    assert_eq!(world.notices.len(), 11);
    assert_eq!(world.notices[10].missed, 90, "it says how many were left out");
    // Those of others are counted apart.
    world.request(VAULT, 4, "n", "", "work", "q.A");
    assert_eq!(world.notices.len(), 12);
    // Without a program nobody is told.
    let mut world = World::with(Limits { notifies: false, ..limits() }, 1);
    world.agent(WORK, NEXUS);
    world.request(WORK, 4, "n", "", "vault", "test.Denied");
    assert!(world.notices.is_empty() && world.last().notify);
}

const AUTOSTART: &str = "\
q.A * work asleep allow
q.Yes * work asleep allow autostart=yes
q.No * work asleep allow autostart=no
q.Ask * work @anyvm ask autostart=no
";

#[test]
fn autostart_is_yes_and_starts_a_qube_once_for_all_that_call_it() {
    let mut world = world(AUTOSTART);
    world.request(WORK, 4, "one", "", "asleep", "q.A");
    world.request(WORK, 4, "two", "", "asleep", "q.Yes");
    assert_eq!(world.started, [name("asleep")], "once");
    assert_eq!(world.heard(WORK), [], "they wait");
    world.broker.started(&name("asleep"), Ok(()), world.now);
    world.start(&name("asleep"), ASLEEP);
    // It runs, and its agent is not there yet.
    world.request(WORK, 4, "three", "", "asleep", "q.A");
    assert_eq!(world.heard(WORK), []);
    world.agent(ASLEEP, NEXUS);
    let joined: Vec<_> = world
        .heard(WORK)
        .into_iter()
        .map(|got| match got {
            Got::Join { domain: ASLEEP, ident, .. } => ident,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(joined, ["one", "two", "three"]);
    assert_eq!(world.heard(ASLEEP).len(), 3);
    // Now it runs.
    world.request(WORK, 4, "four", "", "asleep", "q.A");
    assert_eq!(world.heard(ASLEEP).len(), 1);
    assert_eq!(world.started.len(), 1);
}

#[test]
fn autostart_no_refuses_a_qube_that_does_not_run() {
    let mut world = world(AUTOSTART);
    world.request(WORK, 4, "no", "", "asleep", "q.No");
    world.refused(WORK, "no", Outcome::Deny, "does not run, and the rule has autostart=no");
    assert!(world.started.is_empty());
    // ask offers only what runs; and what has ended since is not started.
    world.request(WORK, 4, "ask", "", "asleep", "q.Ask");
    let asking = world.asked.pop().unwrap();
    assert_eq!(asking.targets, ["far", "farther", "untrusted", "vault"], "a way there is enough");
    world.hang_up(VAULT);
    world.running.remove(&name("vault"));
    world.broker.set_running(world.running.clone(), world.now);
    world.heard(WORK);
    world.broker.answered(asking.call, Some(&Place::redirect("vault").unwrap()), world.now);
    world.settle();
    world.refused(WORK, "ask", Outcome::Deny, "does not run, and the rule has autostart=no");
    assert!(world.started.is_empty());
    // It is called when it runs.
    world.start(&name("asleep"), ASLEEP);
    world.agent(ASLEEP, NEXUS);
    world.request(WORK, 4, "yes", "", "asleep", "q.No");
    assert!(matches!(world.heard(WORK).as_slice(), [Got::Join { .. }]));
}

#[test]
fn a_start_that_fails_is_told_and_not_tried_again_at_once() {
    let mut world = world(AUTOSTART);
    world.request(WORK, 4, "one", "", "asleep", "q.A");
    world.broker.started(&name("asleep"), Err("no memory".to_owned()), world.now);
    world.settle();
    world.refused(WORK, "one", Outcome::Fail, "asleep could not be started: no memory");
    world.request(WORK, 4, "two", "", "asleep", "q.A");
    world.refused(WORK, "two", Outcome::Fail, "no memory");
    assert_eq!(world.started.len(), 1);
    world.tick(Duration::from_secs(6));
    world.request(WORK, 4, "three", "", "asleep", "q.A");
    assert_eq!(world.started.len(), 2);

    // It starts, and its agent never comes.
    world.start(&name("asleep"), ASLEEP);
    world.tick(Duration::from_secs(59));
    assert_eq!(world.heard(WORK), []);
    world.tick(Duration::from_secs(2));
    world.refused(WORK, "three", Outcome::Fail, "its agent does not answer");
}

#[test]
fn who_waits_for_a_qube_and_goes_is_forgotten() {
    let mut world = world(AUTOSTART);
    world.request(WORK, 4, "one", "", "asleep", "q.A");
    world.hang_up(WORK);
    assert_eq!(world.last().reason.as_deref(), Some("the caller is gone"));
    world.start(&name("asleep"), ASLEEP);
    world.agent(ASLEEP, NEXUS);
    assert_eq!(world.heard(ASLEEP), []);
    // Its calls count until then.
    assert_eq!(world.broker.metrics().open, 0);
    world.agent(WORK, NEXUS);
    world.request(WORK, 4, "again", "", "asleep", "q.A");
    let [Got::Run { call, .. }] = world.heard(ASLEEP)[..] else { panic!("it runs") };
    let ended = |role| Message::Ended(Ended { call, exit: 0, role, to_service: 0, to_caller: 0 });
    world.say(ASLEEP, &ended(Role::Service));
    world.say(WORK, &ended(Role::Caller));
    assert_eq!(world.broker.metrics().open, 0);
}

#[test]
fn without_a_program_no_qube_is_started() {
    let mut world = World::with_policy(Limits { start: None, ..limits() }, 1, AUTOSTART);
    world.agent(WORK, NEXUS);
    world.request(WORK, 4, "one", "", "asleep", "q.A");
    world.refused(WORK, "one", Outcome::Fail, "asleep does not run, and is not started");
}

#[test]
fn a_caller_is_told_what_it_may_know() {
    let policy = "\
q.Away  * work @default allow target=nowhere
q.None  * work @anyvm   allow
q.No    * work asleep   allow autostart=no
q.A     * work asleep   allow
q.Mute  * work untrusted allow
q.Disp  * work @dispvm:dvm allow
q.Ask   * work vault    ask
";
    let mut world = World::with_policy(Limits { start: None, disposables: [].into(), ..limits() }, 1, policy);
    world.agent(WORK, NEXUS);
    for (target, service, told) in [
        // Nobody learns by a denial what there is.
        ("vault", "q.Nothing", None),
        ("no-such-qube", "q.Nothing", None),
        ("@dispvm:no-such-qube", "q.Disp", None),
        ("", "q.Away", Some(Failure::NoTarget)),
        ("", "q.None", Some(Failure::NoTarget)),
        ("no-such-qube", "q.None", Some(Failure::NoTarget)),
        ("asleep", "q.No", Some(Failure::NotRunning)),
        ("asleep", "q.A", Some(Failure::NotStarted)),
        ("@dispvm:dvm", "q.Disp", Some(Failure::NotStarted)),
        ("untrusted", "q.Mute", Some(Failure::NoAgent)),
    ] {
        world.request(WORK, 4, "i", "", target, service);
        let expected = match told {
            Some(failure) => Got::Failed("i".to_owned(), failure),
            None => Got::Refused("i".to_owned()),
        };
        assert_eq!(world.heard(WORK), [expected], "{target} {service}");
    }
    // What the user refuses is refused.
    world.request(WORK, 4, "i", "", "vault", "q.Ask");
    world.broker.answered(world.asked[0].call, None, world.now);
    world.settle();
    assert_eq!(world.heard(WORK), [Got::Refused("i".to_owned())]);
    // A stock agent has no word for it.
    world.agent(WORK, 4);
    world.request(WORK, 4, "i", "", "asleep", "q.A");
    assert_eq!(world.heard(WORK), [Got::Refused("i".to_owned())]);
}

#[test]
fn one_call_too_many_is_told_so() {
    let mut world = World::with(Limits { calls: 1, ..limits() }, 1);
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS);
    world.request(WORK, 4, "one", "", "vault", "test.Allowed");
    world.heard(WORK);
    world.request(WORK, 4, "two", "", "vault", "test.Allowed");
    assert_eq!(world.heard(WORK), [Got::Failed("two".to_owned(), Failure::Limit)]);
}
