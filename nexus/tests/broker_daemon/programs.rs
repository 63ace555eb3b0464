//! Programs that nexusd has run: who asks the user, and who makes qubes.

use super::host::{Agent, Host, NEXUS, until};
use nexus::broker::{Outcome, Record};
use nexus::wire::Message;
use nexus::wire::control::{Ended, Role};
use serde_json::json;
use std::fs;
use std::os::unix::net::UnixListener;

const POLICY: &str = "\
test.Ask   *  work  @anyvm   ask default_target=vault
test.Disp  *  work  @dispvm  allow
";

fn last_reason(host: &Host) -> String {
    let log = host.log();
    match &log.last().expect("a line").record {
        Record::Decision(decision) => {
            assert_ne!(decision.verdict, Outcome::Allow);
            decision.reason.clone().expect("a reason")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_user_is_asked_by_a_program() {
    let mut host = Host::new(POLICY);
    let (question, answer) = (host.path("question"), host.path("answer"));
    let script = host.script(
        "ask",
        &format!("cat > {}; [ -e {1} ] || exit 1; cat {1}", question.display(), answer.display()),
    );
    host.settings["ask"] = json!([script]);
    host.start();
    let mut work = host.agent("work", 1, NEXUS);
    let mut vault = host.agent("vault", 2, NEXUS);
    work.request("", "", "test.Ask+now");
    work.refused();
    assert_eq!(last_reason(&host), "the user refused it");
    let asked: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(question).expect("a question")).expect("JSON");
    assert_eq!(asked["source"], "work");
    assert_eq!(asked["service"], "test.Ask");
    assert_eq!(asked["argument"], "now");
    assert_eq!(asked["requested"], "@default");
    assert_eq!(asked["default_target"], "vault");
    assert_eq!(asked["targets"], json!(["dvm", "untrusted", "vault", "@dispvm:dvm"]));

    for wrong in ["{\"target\": \"work\"}", "{\"target\": \"dom0\"}", "{}", "vault", "", "{\"target\": 3}"] {
        host.write("answer", wrong);
        work.request("", "", "test.Ask");
        work.refused();
    }
    host.write("answer", "{\"target\": \"vault\"}");
    work.request("", "", "test.Ask");
    let call = work.joined();
    vault.runs(call);
}

#[test]
fn a_question_that_nobody_answers_is_answered_with_no() {
    let mut host = Host::new(POLICY);
    let script = host.script("ask", "exec sleep 1000");
    host.settings["ask"] = json!([script]);
    host.settings["ask_seconds"] = json!(1);
    host.start();
    let mut work = host.agent("work", 1, NEXUS);
    work.request("", "", "test.Ask");
    work.request("", "", "test.Ask");
    work.refused();
    work.refused();
    assert_eq!(last_reason(&host), "the user refused it");
}

/// How qubes are made and ended here: an agent is one.
fn with_disposables(host: &mut Host) -> UnixListener {
    let socket = host.path("disposable.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let agent = host.agent_command("NAME", 50, &socket);
    let variables: Vec<_> = agent
        .get_envs()
        .map(|(key, value)| format!("{}='{}'", key.display(), value.expect("a value").display()))
        .collect();
    let words: Vec<_> = agent.get_args().map(|word| word.display().to_string()).collect();
    let program = agent.get_program().display().to_string();
    let create = host.script(
        "create",
        &format!(
            "[ -e {0}/broken ] && {{ echo no memory >&2; exit 1; }}\n{1} NEXUS_TEST_NAME=$1 {program} {2} > /dev/null 2>&1 &\necho $! > {0}/pid-$1",
            host.path("").display(),
            variables.join(" "),
            words.join(" ")
        ),
    );
    let destroy = host
        .script("destroy", &format!("kill -9 $(cat {0}/pid-$1) && rm {0}/pid-$1", host.path("").display()));
    host.settings["disposables"] =
        json!({ "dvm": { "create": [create, "{name}"], "destroy": [destroy, "{name}"], "seconds": 20 } });
    listener
}

fn made(host: &Host) -> Vec<String> {
    let entries = fs::read_dir(host.path("made")).expect("a folder");
    entries.map(|entry| entry.expect("a file").file_name().into_string().expect("a name")).collect()
}

#[test]
fn a_disposable_qube_is_made_called_and_ended() {
    let mut host = Host::new(POLICY);
    let listener = with_disposables(&mut host);
    host.start();
    let mut work = host.agent("work", 1, NEXUS);
    work.request("", "@dispvm", "test.Disp");
    let (socket, _) = listener.accept().expect("a disposable qube");
    let mut disposable = Agent::new(socket, None);
    disposable.greet(NEXUS);
    let call = work.joined();
    disposable.runs(call);
    let [name] = &made(&host)[..] else { panic!("{:?}", made(&host)) };
    assert_eq!(host.figure("nexus_disposables"), "1");
    disposable.say(&Message::Ended(Ended {
        call,
        exit: 0,
        role: Role::Service,
        to_service: 0,
        to_caller: 0,
    }));
    assert_eq!(disposable.try_hear(|_| ()), None, "it is ended");
    host.becomes("nexus_disposables", "0");
    assert!(made(&host).is_empty() && !host.path(&format!("pid-{name}")).exists());

    // One that cannot be made.
    host.write("broken", "");
    work.try_hear(|message| assert_eq!(*message, Message::Gone(50)));
    work.request("", "@dispvm", "test.Disp");
    work.refused();
    let reason = last_reason(&host);
    assert!(reason.contains("no memory"), "{reason}");
}

#[test]
fn disposables_outlive_nexusd_as_long_as_they_serve() {
    let mut host = Host::new(POLICY);
    let listener = with_disposables(&mut host);
    host.start();
    let mut work = host.agent("work", 1, NEXUS);
    work.request("", "@dispvm", "test.Disp");
    let (socket, _) = listener.accept().expect("a disposable qube");
    let mut disposable = Agent::new(socket, None);
    disposable.greet(NEXUS);
    let call = work.joined();
    disposable.runs(call);
    let name = made(&host).pop().expect("one");
    host.kill();
    assert_eq!(disposable.try_hear(|_| ()), None);
    host.start();
    host.becomes("nexus_disposables", "1");
    // Its agent is back.
    let socket = host.path("again.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let child = host.agent_command(&name, 50, &socket).spawn().expect("an agent");
    fs::write(host.path(&format!("pid-{name}")), child.id().to_string()).expect("a file");
    let (socket, _) = listener.accept().expect("the agent");
    let mut disposable = Agent::new(socket, Some(child));
    disposable.greet(NEXUS);
    let via = nexus::wire::control::Via { domain: 1, port: None };
    disposable.say(&Message::Open(nexus::wire::control::OpenCall { call, via, role: Role::Service }));
    host.becomes("nexus_open_calls", "1");
    disposable.say(&Message::Ended(Ended {
        call,
        exit: 0,
        role: Role::Service,
        to_service: 0,
        to_caller: 0,
    }));
    assert_eq!(disposable.try_hear(|_| ()), None, "it is ended");
    until("it is forgotten", || made(&host).is_empty());
}
