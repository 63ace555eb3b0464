//! Hostile bytes, without a fuzzer: the inputs that were kept, and others for some seconds.

mod bodies;

use proptest::prelude::*;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long each body is tried with new inputs.
const TIME: Duration = Duration::from_secs(3);

/// Runs a body over the inputs in `fuzz/corpus/NAME`, and over mutations of them.
fn run(name: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&folder).expect("the kept inputs") {
        inputs.push(fs::read(entry.expect("an entry").path()).expect("an input"));
    }
    assert!(!inputs.is_empty(), "no inputs are kept in {}", folder.display());
    inputs.iter().for_each(|input| body(input));

    // xorshift64
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let begin = Instant::now();
    let mut rounds = 0;
    while begin.elapsed() < TIME {
        let mut input = inputs[next() as usize % inputs.len()].clone();
        for _ in 0..=next() % 8 {
            let at = next() as usize % input.len().max(1);
            match next() % 4 {
                0 => input.extend(next().to_le_bytes()),
                1 => input.truncate(at.max(4)),
                2 => input[at..].iter_mut().take(4).for_each(|byte| *byte = next() as u8),
                _ => input[at] ^= 1 << (next() % 8),
            }
        }
        body(&input);
        rounds += 1;
    }
    assert!(rounds > 100, "only {rounds} inputs");
}

#[test]
fn any_text_is_a_policy_or_wrong() {
    run("policy", bodies::policy);
}

#[test]
fn any_bytes_are_messages_or_a_breach() {
    run("messages", bodies::messages);
}

proptest! {
    /// Lines of the right words in any order.
    #[test]
    fn any_words_are_a_policy_or_wrong(lines in prop::collection::vec(prop::collection::vec(word(), 0..9), 0..20)) {
        let text: Vec<_> = lines.iter().map(|line| line.join(" ")).collect();
        bodies::policy(text.join("\n").as_bytes());
    }
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(vec![
            "*", "+", "+x", "q.A", "@anyvm", "@default", "@dispvm", "@dispvm:dvm", "@dispvm:@tag:t", "@tag:t", "@type:AppVM",
            "@adminvm", "dom0", "work", "vault", "work:mail", "work:*", "vault:gpg", "allow", "deny", "ask", "target=vault",
            "target=@dispvm", "target=vault:gpg", "default_target=dom0", "user=u", "notify=yes", "autostart=no", "!include",
            "!include-dir", "!include-service", "!compat-4.0", "#",
        ]).prop_map(str::to_owned),
        1 => "\\PC{0,8}",
    ]
}
