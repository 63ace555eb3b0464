//! A decision among 1,000 rules, in the worst order: the rule that matches is the last.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nexus::policy::{Call, Place, Policy, Principal, Service, System, rules};
use std::fmt::Write as _;
use std::hint::black_box;

/// 100 qubes with five tags each.
fn system() -> System {
    let qubes: serde_json::Map<_, _> = (0..100)
        .map(|n| {
            let tags: Vec<_> = (0..5).map(|tag| format!("tag{}", n % 20 + tag)).collect();
            (format!("qube{n}"), serde_json::json!({ "type": "AppVM", "tags": tags, "containers": ["web"] }))
        })
        .collect();
    serde_json::from_value(serde_json::json!({ "qubes": qubes })).expect("a system")
}

/// Rules that do not match, and one that does.
fn policy(count: usize, rule: impl Fn(usize) -> String) -> Policy {
    let mut text = String::new();
    for n in 1..count {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{}", rule(n));
    }
    text += "q.Service * qube1 qube2 allow\n";
    Policy::new(rules(&text, "bench.policy").expect("a policy"))
}

/// What 999 rules say.
type Kind = (&'static str, fn(usize) -> String);

fn decide(criterion: &mut Criterion) {
    let system = system();
    let call = Call {
        source: Principal::parse("qube1").expect("a caller"),
        target: Place::intended("qube2").expect("a target"),
        service: Service::parse("q.Service+argument").expect("a service"),
    };
    let mut group = criterion.benchmark_group("decide");
    let kinds: [Kind; 4] = [
        ("other services", |n| format!("q.Service{n} * qube1 qube2 deny")),
        ("one service, other qubes", |n| format!("q.Service * qube{} qube2 deny", n % 90 + 10)),
        ("one service, tags", |n| format!("q.Service * @tag:tag1 @tag:none{n} deny")),
        ("one service, disposables", |n| format!("q.Service * @anyvm @dispvm:@tag:none{n} deny")),
    ];
    for (name, rule) in kinds {
        let policy = policy(1_000, rule);
        group.bench_function(BenchmarkId::new("1000 rules", name), |bencher| {
            bencher.iter(|| policy.decide(black_box(&call), &system));
        });
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
