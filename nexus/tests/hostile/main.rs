//! Hostile bytes, without a fuzzer: the inputs that were kept, and others for some seconds.

mod bodies;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use proptest::prelude::*;
use std::time::Duration;

/// How long each body is tried with new inputs.
const TIME: Duration = Duration::from_secs(3);

#[test]
fn any_text_is_a_policy_or_wrong() {
    replay::run("policy", TIME, bodies::policy);
}

#[test]
fn any_bytes_are_messages_or_a_breach() {
    replay::run("messages", TIME, bodies::messages);
}

#[test]
fn any_bytes_are_frames_or_none() {
    replay::run("pair", TIME, bodies::pair);
}

#[test]
fn any_argument_is_a_command_or_none() {
    replay::run("command", TIME, bodies::command);
}

#[test]
fn whatever_agents_say_the_broker_keeps_its_accounts() {
    replay::run("broker", TIME, bodies::broker);
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
