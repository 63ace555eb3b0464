//! Programs that nexusd has run: who asks the user, and who makes qubes.

use super::host::{Agent, Host, NEXUS, until};
use nexus::broker::{Outcome, Record};
use nexus::wire::Message;
use nexus::wire::control::{OpenCall, Role, Via};
use serde_json::json;
use std::fs;
use std::os::unix::net::UnixListener;

const POLICY: &str = "\
test.Ask   *  work  @anyvm   ask default_target=vault
test.Disp  *  work  @dispvm  allow
test.Start *  work  vault    allow
test.Tell  *  work  untrusted allow notify=yes
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

#[test]
fn a_qube_that_is_called_is_started_by_a_program() {
    let mut host = Host::new(POLICY);
    let socket = host.path("started.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let started = host.path("started");
    let start = host.script(
        "start",
        &format!(
            "echo $1 >> {0}\nsleep 0.2\n[ -e {1} ] || {{ echo it has no memory >&2; exit 1; }}",
            started.display(),
            host.path("good").display()
        ),
    );
    host.settings["start"] = json!([start, "{name}"]);
    host.start();
    let mut work = host.agent("work", 1, NEXUS);
    work.request("", "vault", "test.Start");
    work.refused();
    let reason = last_reason(&host);
    assert!(reason.starts_with("vault could not be started: ") && reason.contains("no memory"), "{reason}");
    assert_eq!(fs::read_to_string(&started).expect("a file"), "vault\n");

    // Two calls have one qube started, once; both go on when its agent is there.
    fs::remove_file(&started).expect("a file");
    host.write("good", "");
    let denials = || host.log().len();
    until("it may be tried again", || {
        let before = denials();
        work.request("", "vault", "test.Start");
        // One or the other becomes of it, however long that takes.
        until("it is started or refused", || started.exists() || denials() > before);
        started.exists() || {
            work.refused();
            false
        }
    });
    work.request("", "vault", "test.Start");
    let child = host.agent_command("vault", 2, &socket).spawn().expect("an agent");
    let (socket, _) = listener.accept().expect("an agent");
    let mut vault = Agent::new(socket, Some(child));
    vault.greet(NEXUS);
    for _ in 0..2 {
        let call = work.joined();
        vault.runs(call);
    }
    assert_eq!(fs::read_to_string(&started).expect("a file"), "vault\n");
}

#[test]
fn a_program_tells_the_user() {
    let mut host = Host::new(POLICY);
    let told = host.path("told");
    let notify = host.script("tell", &format!("cat >> {}", told.display()));
    host.settings["notify"] = json!([notify]);
    host.start();
    let mut work = host.agent("work", 1, NEXUS);
    let mut untrusted = host.agent("untrusted", 3, NEXUS);
    work.request("", "untrusted", "test.Nothing");
    work.refused();
    work.request("", "untrusted", "test.Tell");
    let call = work.joined();
    untrusted.runs(call);
    let lines = || {
        let text = fs::read_to_string(&told).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let mut lines: Vec<serde_json::Value> = lines.collect();
        // Each is told by a process of its own.
        lines.sort_by_key(|line| line["call"].to_string());
        lines
    };
    until("both are told", || lines().len() == 2);
    let lines = lines();
    assert_eq!(lines[0]["verdict"], "deny");
    assert_eq!(lines[1]["verdict"], "allow");
    assert_eq!(lines[1]["to"], "untrusted");
    assert_eq!(lines[1]["missed"], 0);
    assert!(host.log().iter().all(|entry| matches!(&entry.record, Record::Decision(said) if said.notify)));
}

fn made(host: &Host) -> Vec<String> {
    let entries = fs::read_dir(host.path("made")).expect("a folder");
    entries.map(|entry| entry.expect("a file").file_name().into_string().expect("a name")).collect()
}

/// A call that has come to its disposable qube: the agents of both qubes, and its number.
fn call_disposable(host: &Host, listener: &UnixListener) -> (Agent, Agent, u64) {
    let mut work = host.agent("work", 1, NEXUS);
    let (disposable, call) = call_disposable_from(&mut work, listener);
    (work, disposable, call)
}

fn call_disposable_from(work: &mut Agent, listener: &UnixListener) -> (Agent, u64) {
    work.request("", "@dispvm", "test.Disp");
    let (socket, _) = listener.accept().expect("a disposable qube");
    let mut disposable = Agent::new(socket, None);
    disposable.greet(NEXUS);
    let call = work.joined();
    disposable.runs(call);
    (disposable, call)
}

#[test]
fn a_disposable_qube_is_made_called_and_ended() {
    let mut host = Host::new(POLICY);
    let listener = with_disposables(&mut host);
    host.start();
    let (mut work, mut disposable, call) = call_disposable(&host, &listener);
    let [name] = &made(&host)[..] else { panic!("{:?}", made(&host)) };
    assert_eq!(host.figure("nexus_disposables"), "1");
    disposable.ends(call, Role::Service, 0);
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
fn a_disposable_qube_of_a_declared_template_is_made_and_ended_by_nxl() {
    let mut host = Host::new(POLICY);
    let listener = with_disposables(&mut host);
    // The settings say nothing of it. What stands for nxl does what the scripts do that they named before.
    host.settings.as_object_mut().expect("settings").remove("disposables");
    fs::create_dir(host.path("bin")).expect("a folder");
    let folder = host.path("").display().to_string();
    host.script(
        "bin/nxl",
        &format!(
            "echo \"$*\" >> {folder}/said
case \"$1 $2\" in
    'disposable create') exec {folder}/create $5 ;;
    'disposable destroy') exec {folder}/destroy $4 ;;
    *) exit 1 ;;
esac"
        ),
    );
    let system = fs::read_to_string(host.path("system.json")).expect("a file");
    let template = "\"template_for_dispvms\": true";
    host.write("system.json", &system.replace(template, &format!("{template}, \"declared\": true")));
    host.start();
    let (mut work, mut disposable, call) = call_disposable(&host, &listener);
    let [name] = &made(&host)[..] else { panic!("{:?}", made(&host)) };
    let said = || fs::read_to_string(host.path("said")).expect("nxl was run");
    assert_eq!(said(), format!("disposable create --quiet --name {name} dvm\n"));
    disposable.ends(call, Role::Service, 0);
    host.becomes("nexus_disposables", "0");
    assert_eq!(said().lines().last(), Some(&*format!("disposable destroy --force {name}")));
    assert!(made(&host).is_empty());
    work.ends(call, Role::Caller, 0);
    work.hear(|message| assert_eq!(*message, Message::Gone(50)));
}

#[test]
fn a_disposable_qube_that_was_built_ahead_is_taken() {
    let mut host = Host::new(POLICY);
    let listener = with_disposables(&mut host);
    // One is ready after each time that the pool was filled; who takes it does what making one does.
    let filled = host.path("filled");
    let fill = host.script("fill", &format!("echo >> {0}; touch {0}-ready", filled.display()));
    let take = host.script(
        "take",
        &format!(
            "rm {0}-ready || exit 1; echo $1 >> {0}-taken; exec {1} $1",
            filled.display(),
            host.path("create").display()
        ),
    );
    host.settings["disposables"]["dvm"]["fill"] = json!([fill]);
    host.settings["disposables"]["dvm"]["take"] = json!([take, "{name}"]);
    host.start();
    let count = |name: &str| fs::read_to_string(host.path(name)).unwrap_or_default().lines().count();
    until("it is filled at the start", || host.path("filled-ready").exists());
    let (mut work, mut disposable, call) = call_disposable(&host, &listener);
    assert_eq!(count("filled-taken"), 1);
    until("it is filled again", || count("filled") == 2 && host.path("filled-ready").exists());
    disposable.ends(call, Role::Service, 0);
    host.becomes("nexus_disposables", "0");
    work.ends(call, Role::Caller, 0);
    work.hear(|message| assert_eq!(*message, Message::Gone(50)));

    // Where none is ready, one is made.
    fs::remove_file(host.path("filled-ready")).expect("a file");
    let _disposable = call_disposable_from(&mut work, &listener);
    assert_eq!(count("filled-taken"), 1);
    until("it is filled once more", || count("filled") == 3);
}

#[test]
fn disposables_outlive_nexusd_as_long_as_they_serve() {
    let mut host = Host::new(POLICY);
    let listener = with_disposables(&mut host);
    host.start();
    let (_work, mut disposable, call) = call_disposable(&host, &listener);
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
    let via = Via { domain: 1, port: None };
    disposable.say(&Message::Open(OpenCall { call, via, role: Role::Service }));
    host.becomes("nexus_open_calls", "1");
    disposable.ends(call, Role::Service, 0);
    assert_eq!(disposable.try_hear(|_| ()), None, "it is ended");
    until("it is forgotten", || made(&host).is_empty());
}
