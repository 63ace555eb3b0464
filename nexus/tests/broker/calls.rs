//! Who may call whom, and what both agents are told.

use super::world::{Got, NEXUS, UNTRUSTED, VAULT, WORK, World, terminated};
use nexus::broker::Outcome;
use nexus::name::Name;
use nexus::policy::{Place, QubeInfo};
use nexus::wire::Message;
use nexus::wire::control::{Ended, Role};
use std::time::Duration;

fn ended(call: u64, role: Role, exit: i32, bytes: (u64, u64)) -> Message<'static> {
    Message::Ended(Ended { call, exit, role, to_service: bytes.0, to_caller: bytes.1 })
}

#[test]
fn two_stock_agents_of_any_version_get_a_data_vchan() {
    for (caller, target) in [(2, 2), (2, 3), (3, 4), (4, 3), (5, 99)] {
        let mut world = World::new();
        world.agent(WORK, caller);
        world.agent(VAULT, target);
        world.request(WORK, caller.min(3), "SOCKET1", "", "vault", "test.Allowed+arg");
        let executed = world.heard(VAULT);
        let [Got::Exec { domain: WORK, port, command }] = &executed[..] else { panic!("{executed:?}") };
        assert_eq!(command, "user:QUBESRPC test.Allowed+arg work");
        let port = *port;
        assert_eq!(world.heard(WORK), [Got::Connect { domain: VAULT, port, ident: "SOCKET1".into() }]);
        let last = world.last();
        assert_eq!(last.verdict, Outcome::Allow);
        assert_eq!(last.rule.as_deref(), Some("30-test.policy:1"));
        assert_eq!(world.broker.metrics().open, 1);

        world.now += Duration::from_millis(1500);
        world.say(WORK, &terminated(VAULT, port));
        assert!(world.ends.is_empty(), "the service's end is open");
        world.say(WORK, &terminated(VAULT, port));
        world.say(VAULT, &terminated(WORK, port));
        let [end] = &world.ends[..] else { panic!("{:?}", world.ends) };
        assert_eq!((end.seconds, end.exit, end.bytes_to_service), (Some(1.5), None, None));
        assert_eq!(end.call, world.last().call);
        assert_eq!(world.broker.metrics().open, 0);
        // Said again, it is of nobody's call.
        world.say(VAULT, &terminated(WORK, port));
        assert_eq!((world.ends.len(), world.closed.len()), (1, 0));
    }
}

#[test]
fn two_of_ours_get_a_number_and_no_port() {
    let mut world = World::new();
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS + 7);
    world.request(WORK, 4, "x", "work:mail", "vault:gpg", "test.Container+k");
    let run = world.heard(VAULT);
    let [Got::Run { call, domain: WORK, port: None, words }] = &run[..] else { panic!("{run:?}") };
    assert_eq!(
        words.each_ref().map(String::as_str),
        ["gpg", "", "test.Container+k", "work:mail", "vault:gpg"]
    );
    let call = *call;
    assert_eq!(world.heard(WORK), [Got::Join { call, domain: VAULT, port: None, ident: "x".into() }]);
    assert_eq!(call >> 32, 7, "the seed");

    // Nobody else can end it, nor an end that is not his.
    world.agent(UNTRUSTED, NEXUS);
    world.say(UNTRUSTED, &ended(call, Role::Caller, 0, (1, 1)));
    world.say(WORK, &ended(call, Role::Service, 0, (1, 1)));
    assert_eq!((world.broker.metrics().open, world.broker.metrics().strange), (1, 2));
    world.say(WORK, &ended(call, Role::Caller, 125, (10, 20)));
    world.say(VAULT, &ended(call, Role::Service, 3, (11, 19)));
    let [end] = &world.ends[..] else { panic!("{:?}", world.ends) };
    assert_eq!((end.exit, end.bytes_to_service, end.bytes_to_caller), (Some(3), Some(11), Some(20)));
    assert_eq!((end.source.as_str(), end.to.as_str()), ("work:mail", "vault:gpg"));
}

#[test]
fn ours_and_a_stock_agent_get_a_data_vchan() {
    let mut world = World::new();
    world.agent(WORK, NEXUS);
    world.agent(VAULT, 3);
    world.request(WORK, 4, "a", "work", "vault", "test.User");
    let executed = world.heard(VAULT);
    let [Got::Exec { domain: WORK, port, command }] = &executed[..] else { panic!("{executed:?}") };
    assert_eq!(command, "root:QUBESRPC test.User+ work");
    let joined = world.heard(WORK);
    let [Got::Join { call, domain: VAULT, port: Some(joined), .. }] = &joined[..] else {
        panic!("{joined:?}")
    };
    assert_eq!(joined, port);
    let (call, port) = (*call, *port);
    world.say(WORK, &ended(call, Role::Caller, 0, (5, 6)));
    world.say(VAULT, &terminated(WORK, port));
    assert_eq!((world.ends.len(), world.ends[0].bytes_to_caller), (1, Some(6)));

    // The other way round.
    world.request(VAULT, 3, "b", "", "work", "test.Both");
    let run = world.heard(WORK);
    let [Got::Run { domain: VAULT, port: Some(port), words, .. }] = &run[..] else { panic!("{run:?}") };
    assert_eq!(words[1], "", "the agent's default user");
    assert_eq!(world.heard(VAULT), [Got::Connect { domain: WORK, port: *port, ident: "b".into() }]);

    // A stock agent has no containers, neither to be called nor to call.
    world.request(WORK, 4, "c", "work:mail", "vault:gpg", "test.Container");
    world.refused(WORK, "c", Outcome::Fail, "knows no containers");
    world.agent(WORK, 4);
    world.request(WORK, 4, "d", "work:mail", "vault", "test.Container");
    world.refused(WORK, "d", Outcome::Deny, "work calls in the name of work:mail");
}

#[test]
fn what_policy_does_not_allow_is_refused_by_its_ident() {
    let mut world = World::new();
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS);
    let denied = [
        ("", "vault", "test.Denied", "a rule denies it"),
        ("work", "vault:gpg", "test.Container", "a rule denies it"),
        ("work:web", "vault:gpg", "test.Container", "no rule matches"),
        ("work:nobody", "vault:gpg", "test.Container", "is not known"),
        ("", "nowhere", "test.Allowed", "no rule matches"),
        ("", "vault", "test.Unheard", "no rule matches"),
        ("", "work", "test.Both", "own qube"),
        ("", "../vault", "test.Allowed", "a name has"),
        ("", "vault", "test/Allowed", "a name has"),
        ("", "vault", "", "a name is missing"),
        ("", "@anyvm", "test.Allowed", "cannot be"),
    ];
    for (index, (source, target, service, reason)) in denied.into_iter().enumerate() {
        let ident = format!("i{index}");
        world.request(WORK, 4, &ident, source, target, service);
        world.refused(WORK, &ident, Outcome::Deny, reason);
    }
    world.request(WORK, 4, "silent", "", "@adminvm", "test.Dom0");
    world.refused(WORK, "silent", Outcome::Fail, "does not answer");
    assert_eq!(world.heard(VAULT), []);
    assert_eq!(world.broker.metrics().open, 0);
    assert!(world.closed.is_empty());
}

#[test]
fn nobody_calls_in_the_name_of_another() {
    let mut world = World::new();
    world.agent(UNTRUSTED, NEXUS);
    world.agent(VAULT, NEXUS);
    for claim in
        ["work", "work:mail", "dom0", "@adminvm", "vault", "vault:gpg", "untrusted2", "\u{fffd}", "a b"]
    {
        for service in ["test.Allowed", "test.Container", "test.FromDom0", "test.Both"] {
            world.request(UNTRUSTED, 4, "spoof", claim, "vault", service);
            assert_eq!(world.heard(UNTRUSTED), [Got::Refused("spoof".into())], "{claim} {service}");
            assert_eq!((world.last().source.as_str(), world.last().verdict), ("untrusted", Outcome::Deny));
        }
    }
    // The name of one of its own containers is one of its own.
    world.request(UNTRUSTED, 4, "own", "untrusted:mail", "vault:gpg", "test.Container");
    world.refused(UNTRUSTED, "own", Outcome::Deny, "no rule matches");
    assert_eq!(world.last().source, "untrusted:mail");
    assert_eq!(world.heard(VAULT), []);
}

#[test]
fn a_relay_calls_for_the_qubes_that_are_behind_it() {
    let mut world = World::new();
    world.agent(UNTRUSTED, 4);
    world.agent(WORK, 4);
    world.agent(VAULT, 3);
    world.request(UNTRUSTED, 4, "far", "far", "vault", "test.Remote");
    let executed = world.heard(VAULT);
    assert!(
        matches!(&executed[..], [Got::Exec { domain: UNTRUSTED, command, .. }] if command.ends_with(" far"))
    );
    world.request(WORK, 4, "not", "far", "vault", "test.Remote");
    world.refused(WORK, "not", Outcome::Deny, "work calls in the name of far");
}

#[test]
fn a_rule_leads_elsewhere() {
    let mut world = World::new();
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS);
    for target in ["", "@default", "gone"] {
        world.request(WORK, 4, "r", "", target, "test.Redirect");
        let run = world.heard(VAULT);
        assert!(matches!(&run[..], [Got::Run { domain: WORK, .. }]), "{run:?}");
        assert!(matches!(&world.heard(WORK)[..], [Got::Join { domain: VAULT, .. }]));
        assert_eq!(world.last().to.as_deref(), Some("vault"));
    }
}

#[test]
fn dom0_calls_and_is_called() {
    let mut world = World::new();
    world.agent(0, NEXUS);
    world.agent(WORK, 3);
    world.agent(VAULT, NEXUS);
    world.request(WORK, 3, "a", "", "@adminvm", "test.Dom0+x");
    let run = world.heard(0);
    let [Got::Run { domain: WORK, port: Some(port), words, .. }] = &run[..] else { panic!("{run:?}") };
    assert_eq!(words.each_ref().map(String::as_str), ["", "", "test.Dom0+x", "work", "@adminvm"]);
    assert_eq!(world.heard(WORK), [Got::Connect { domain: 0, port: *port, ident: "a".into() }]);
    assert_eq!(world.last().to.as_deref(), Some("dom0"));
    world.request(0, 4, "b", "dom0", "vault", "test.FromDom0");
    assert!(matches!(&world.heard(VAULT)[..], [Got::Run { domain: 0, port: None, .. }]));
    assert!(matches!(&world.heard(0)[..], [Got::Join { domain: VAULT, .. }]));
}

#[test]
fn dom0s_containers_call_and_are_called() {
    let mut world = World::with_policy(
        super::world::limits(),
        7,
        "test.Get * dom0:update vault allow\ntest.Put * work:mail dom0:update allow\n",
    );
    let mut system = world.broker.system().clone();
    let containers = [Name::new("update").unwrap()].into();
    system.qubes.insert(Name::new("dom0").unwrap(), QubeInfo { containers, ..QubeInfo::app_vm() });
    world.broker.set_system(system);
    world.agent(0, NEXUS);
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS);
    world.request(0, 4, "a", "dom0:update", "vault", "test.Get");
    let run = world.heard(VAULT);
    let [Got::Run { domain: 0, port: None, words, .. }] = &run[..] else { panic!("{run:?}") };
    assert_eq!(words.each_ref().map(String::as_str), ["", "", "test.Get+", "dom0:update", "vault"]);
    assert!(matches!(&world.heard(0)[..], [Got::Join { domain: VAULT, .. }]));
    assert_eq!(world.last().source, "dom0:update");
    world.request(WORK, 4, "b", "work:mail", "dom0:update", "test.Put");
    let run = world.heard(0);
    let [Got::Run { domain: WORK, port: None, words, .. }] = &run[..] else { panic!("{run:?}") };
    assert_eq!(words.each_ref().map(String::as_str), ["update", "", "test.Put+", "work:mail", "dom0:update"]);
    assert!(matches!(&world.heard(WORK)[..], [Got::Join { domain: 0, .. }]));
    assert_eq!(world.last().to.as_deref(), Some("dom0:update"));
    // Nobody but dom0's agent speaks for them, and it for no qube's.
    world.request(WORK, 4, "c", "dom0:update", "vault", "test.Get");
    world.refused(WORK, "c", Outcome::Deny, "work calls in the name of dom0:update");
    world.request(0, 4, "d", "work:mail", "vault", "test.Get");
    world.refused(0, "d", Outcome::Deny, "dom0 calls in the name of work:mail");
    world.request(0, 4, "e", "dom0:other", "vault", "test.Get");
    world.refused(0, "e", Outcome::Deny, "is not known");
}

#[test]
fn a_question_is_answered_or_the_answer_is_no() {
    let mut world = World::new();
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS);
    let ask = |world: &mut World| {
        world.request(WORK, 4, "q", "", "", "test.Ask+now");
        world.asked.pop().expect("a question")
    };
    let asking = ask(&mut world);
    assert_eq!((asking.source.as_str(), asking.requested.as_str()), ("work", "@default"));
    assert_eq!((asking.service.as_str(), asking.argument.as_str()), ("test.Ask", "now"));
    assert_eq!(asking.default_target.as_deref(), Some("vault"));
    assert!(asking.targets.contains(&"vault".to_owned()) && !asking.targets.contains(&"work".to_owned()));
    assert_eq!(world.heard(WORK), []);
    world.broker.answered(asking.call, Some(&Place::redirect("vault").unwrap()), world.now);
    world.settle();
    assert!(matches!(&world.heard(VAULT)[..], [Got::Run { .. }]));
    assert!(matches!(&world.heard(WORK)[..], [Got::Join { .. }]));
    assert!(world.last().asked);
    // Twice is once.
    world.broker.answered(asking.call, Some(&Place::redirect("vault").unwrap()), world.now);
    world.settle();
    assert_eq!(world.heard(VAULT), []);

    for answer in [None, Some("dom0"), Some("work"), Some("vault:gpg"), Some("@dispvm:vault")] {
        let asking = ask(&mut world);
        let answer = answer.map(|answer| Place::redirect(answer).unwrap());
        world.broker.answered(asking.call, answer.as_ref(), world.now);
        world.settle();
        world.refused(WORK, "q", Outcome::Deny, "the user refused it");
    }

    // The user's time is not one qube's alone.
    let waiting: Vec<_> = (0..4).map(|_| ask(&mut world)).collect();
    world.request(WORK, 4, "q", "", "", "test.Ask");
    world.refused(WORK, "q", Outcome::Deny, "asked enough");
    // Who asked is gone before the answer is there.
    world.hang_up(WORK);
    for asking in waiting {
        world.broker.answered(asking.call, Some(&Place::redirect("vault").unwrap()), world.now);
    }
    world.settle();
    assert_eq!(world.heard(VAULT), [Got::Gone(WORK)]);
    assert_eq!(world.broker.metrics().open, 1, "the service that was run");
}

#[test]
fn without_a_program_to_ask_nobody_is_asked() {
    let mut world = World::with(nexus::broker::Limits { asks: false, ..super::world::limits() }, 1);
    world.agent(WORK, NEXUS);
    world.request(WORK, 4, "q", "", "", "test.Ask");
    world.refused(WORK, "q", Outcome::Deny, "no program");
    assert!(world.last().asked && world.asked.is_empty());
}

#[test]
fn one_call_more_than_the_limit_is_refused_and_says_why() {
    let mut world = World::new();
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS);
    let mut calls = Vec::new();
    for _ in 0..10 {
        world.request(WORK, 4, "n", "", "vault", "test.Allowed");
        let joined = world.heard(WORK);
        let [Got::Join { call, .. }] = &joined[..] else { panic!("{joined:?}") };
        calls.push(*call);
    }
    world.request(WORK, 4, "n", "", "vault", "test.Allowed");
    world.refused(WORK, "n", Outcome::Fail, "10 calls of this qube are open");
    // Others may.
    world.request(VAULT, 4, "m", "", "work", "test.Both");
    assert!(matches!(world.heard(WORK)[..], [Got::Run { .. }]));
    world.say(WORK, &ended(calls[3], Role::Caller, 0, (0, 0)));
    world.request(WORK, 4, "n", "", "vault", "test.Allowed");
    assert!(matches!(&world.heard(WORK)[..], [Got::Join { .. }]));
}

#[test]
fn an_agent_that_is_gone_takes_its_ends_with_it() {
    let mut world = World::new();
    world.agent(WORK, NEXUS);
    world.agent(VAULT, NEXUS);
    world.agent(UNTRUSTED, 3);
    world.request(WORK, 4, "n", "", "vault", "test.Allowed");
    let joined = world.heard(WORK);
    let [Got::Join { call, .. }] = &joined[..] else { panic!("{joined:?}") };
    world.heard(VAULT);
    world.hang_up(VAULT);
    assert_eq!(world.heard(WORK), [Got::Gone(VAULT)]);
    assert_eq!(world.heard(UNTRUSTED), [], "stock agents know no such message");
    world.say(WORK, &ended(*call, Role::Caller, 125, (0, 0)));
    assert_eq!(world.ends.len(), 1);
    assert_eq!(world.ends[0].reason.as_deref(), Some("the service's agent is gone"));

    // A qube that is destroyed: nobody hangs up.
    world.agent(VAULT, NEXUS);
    world.request(WORK, 4, "n", "", "vault", "test.Allowed");
    world.running.retain(|_, domain| *domain != VAULT);
    let running = world.running.clone();
    world.broker.set_running(running, world.now);
    world.settle();
    assert_eq!(world.closed.len(), 1);
    assert!(world.heard(WORK).contains(&Got::Gone(VAULT)));
    world.request(WORK, 4, "late", "", "vault", "test.Allowed");
    assert_eq!(world.started, [nexus::name::Name::new("vault").unwrap()], "it is called, and started anew");
}
