//! One turn of the broker: a request's bytes in, both agents' messages out, among 1,000 rules; and the call's end.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nexus::broker::{Broker, Connection, Effect, Limits};
use nexus::name::Name;
use nexus::policy::{Current, Policy, System, rules};
use nexus::wire::control::{Ended, Role};
use nexus::wire::{Channel, Decoder, Ident, Link, Message, Source, Trigger};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

struct Qube {
    connection: Connection,
    incoming: Decoder,
}

/// What is needed of what an agent hears.
enum Heard {
    Call(u64),
    Port(u32),
    Other,
}

fn hear(broker: &mut Broker, qube: &mut Qube) -> Heard {
    let bytes = broker.outgoing(qube.connection);
    let mut input = &bytes[..];
    let mut heard = Heard::Other;
    while let Some(frame) = qube.incoming.decode(&mut input).expect("the protocol") {
        heard = match Message::parse(&frame).expect("a message") {
            Message::Join(join) => Heard::Call(join.call),
            Message::ServiceConnect(link, _) => Heard::Port(link.port),
            _ => Heard::Other,
        };
    }
    heard
}

fn effects(broker: &mut Broker) {
    while let Some(effect) = broker.next_effect() {
        assert!(matches!(effect, Effect::Wake(_) | Effect::Record(_)), "{effect:?}");
    }
}

fn say(broker: &mut Broker, qube: &Qube, bytes: &[u8], now: Instant) {
    broker.received(qube.connection, bytes, now);
}

fn encoded(message: &Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).expect("a message");
    bytes
}

/// A broker among 100 qubes and 1,000 rules, of which the last one allows the call; and two qubes of that version.
fn world(version: u32) -> (Broker, Qube, Qube) {
    let mut text = String::new();
    for n in 1..1_000 {
        // Writing to a String does not fail.
        let _ = writeln!(text, "q.Service * qube{} qube2 deny", n % 90 + 10);
    }
    text += "q.Service * qube1 qube2 allow\n";
    let policy = Arc::new(Policy::new(rules(&text, "bench.policy").expect("a policy")));
    let limits = Limits {
        calls: 1_000,
        asks: false,
        notifies: false,
        start: None,
        default_user: "user".to_owned(),
        disposables: [].into(),
        declared_disposables: None,
    };
    let mut broker = Broker::new(limits, move || Current::Policy(policy.clone()), 1);
    let qubes: serde_json::Map<_, _> =
        (0..100).map(|n| (format!("qube{n}"), serde_json::json!({ "type": "AppVM" }))).collect();
    let system: System = serde_json::from_value(serde_json::json!({ "qubes": qubes })).expect("a system");
    broker.set_system(system);
    let now = Instant::now();
    let running = (1..100).map(|n| (Name::new(&format!("qube{n}")).expect("a name"), n));
    broker.set_running(running.collect(), now);
    let mut qube = |domain| {
        let connection = broker.connected(domain, now).expect("it runs");
        let mut qube = Qube { connection, incoming: Decoder::new(Channel::ToAgent) };
        say(&mut broker, &qube, &encoded(&Message::Hello(version)), now);
        hear(&mut broker, &mut qube);
        qube
    };
    let (caller, target) = (qube(1), qube(2));
    (broker, caller, target)
}

fn turn(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("broker");
    for (name, version) in [("ours", 0x4e58_0001), ("stock", 4)] {
        let (mut broker, mut caller, mut target) = world(version);
        let trigger = Trigger {
            ident: Ident::new(b"SOCKET1").expect("an identifier"),
            target: b"qube2",
            service: b"q.Service+argument",
        };
        let request = encoded(&Message::TriggerService4(Source(b""), trigger));
        group.bench_function(BenchmarkId::new("a call from request to end", name), |bencher| {
            bencher.iter(|| {
                let now = Instant::now();
                say(&mut broker, &caller, &request, now);
                hear(&mut broker, &mut target);
                let (mine, other) = match hear(&mut broker, &mut caller) {
                    Heard::Call(call) => {
                        let ended =
                            |role| Message::Ended(Ended { call, exit: 0, role, to_service: 1, to_caller: 1 });
                        (ended(Role::Caller), ended(Role::Service))
                    }
                    Heard::Port(port) => (
                        Message::ConnectionTerminated(Link { domain: 2, port }),
                        Message::ConnectionTerminated(Link { domain: 1, port }),
                    ),
                    Heard::Other => panic!("it is refused"),
                };
                say(&mut broker, &caller, &encoded(&mine), now);
                say(&mut broker, &target, &encoded(&other), now);
                effects(&mut broker);
            });
        });
        assert_eq!(broker.metrics().open, 0);
    }
    group.finish();
}

criterion_group!(benches, turn);
criterion_main!(benches);
