//! Many calls at once, and what one more costs.

use crate::stage::{Stage, VAULT, WORK};
use nexus::client::{CallError, Failure, OutgoingCall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::{fs, thread};

fn allow(_: &str, _: &str, _: &str) -> bool {
    true
}

/// A service that lets its callers wait.
fn waiting_room(path: &Path) -> Arc<Mutex<Vec<UnixStream>>> {
    let listener = UnixListener::bind(path).unwrap();
    let callers = Arc::new(Mutex::new(Vec::new()));
    let waiting = callers.clone();
    thread::spawn(move || {
        for socket in listener.incoming() {
            waiting.lock().unwrap().push(socket.unwrap());
        }
    });
    callers
}

#[test]
fn a_thousand_calls_are_open_at_once_and_one_more_is_refused() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let stage = Stage::with("many", allow, &serde_json::json!({ "calls": 1000 }));
    fs::write(
        stage.path("vault/rpc-config/q.Wait"),
        "skip-service-descriptor=true\nexit-on-service-eof=true\n",
    )
    .unwrap();
    let callers = waiting_room(&stage.path("vault/gpg/q.Wait"));
    let start = || OutgoingCall::start(&stage.path("work/mail.sock"), "vault:gpg", "q.Wait").unwrap();
    let calls: Vec<_> = (0..1000).map(|_| start()).collect();
    stage.until(|| callers.lock().unwrap().len() == 1000);
    let refused = start().run(io::empty(), &mut io::sink(), &mut io::sink());
    assert!(matches!(refused, Err(CallError::Failed(Failure::Limit))), "{refused:?}");
    assert!(stage.log(WORK.0).contains("as many calls open as it may"));
    // All are served, whatever the order.
    for (number, mut caller) in callers.lock().unwrap().drain(..).enumerate() {
        writeln!(caller, "{number}").unwrap();
    }
    let mut answers: Vec<usize> = calls
        .into_iter()
        .map(|call| {
            let mut answer = Vec::new();
            assert_eq!(call.run(io::empty(), &mut answer, &mut io::sink()).unwrap(), 0);
            String::from_utf8(answer).unwrap().trim().parse().unwrap()
        })
        .collect();
    answers.sort_unstable();
    assert_eq!(answers, (0..1000).collect::<Vec<_>>());
}

/// How often the simulated host was woken: by each grant, port and request to xenstore of any process, and by nothing
/// else.
fn requests(stage: &Stage) -> u64 {
    let folder = stage.host().dir().as_os_str().as_encoded_bytes().to_vec();
    let is_host = |pid: &Path| {
        let read = |name: &str| fs::read(pid.join(name)).unwrap_or_default();
        let environment = read("environ");
        environment.windows(folder.len()).any(|part| part == folder)
            && environment.windows(12).any(|part| part == b"XENSIM_HOST=")
    };
    let pids = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let host: Vec<_> = pids.filter(|pid| is_host(pid)).collect();
    // It begins with the first request.
    let Some(host) = host.first() else { return 0 };
    let tasks = fs::read_dir(host.join("task")).unwrap();
    let switches = |task: &Path| {
        let status = fs::read_to_string(task.join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    tasks.map(|task| switches(&task.unwrap().path())).sum()
}

/// Threads, and page faults of children that have ended: a program that was run leaves hundreds.
fn threads_and_children(agent: u32) -> (usize, u64) {
    let stat = fs::read_to_string(format!("/proc/{agent}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // num_threads and cminflt of proc(5).
    (fields[17].parse().unwrap(), fields[8].parse().unwrap())
}

#[test]
fn a_warm_call_makes_no_vchan_no_grant_no_request_to_xenstore_and_no_process() {
    let stage = Stage::new("warm", allow);
    // With a descriptor, a service that hangs up before it has it would be one that failed.
    fs::write(
        stage.path("vault/rpc-config/q.Wait"),
        "skip-service-descriptor=true\nexit-on-service-eof=true\n",
    )
    .unwrap();
    let callers = waiting_room(&stage.path("vault/gpg/q.Wait"));
    let call = || {
        let call = OutgoingCall::start(&stage.path("work/mail.sock"), "vault:gpg", "q.Wait").unwrap();
        stage.until(|| !callers.lock().unwrap().is_empty());
        callers.lock().unwrap().clear();
        assert_eq!(call.run(io::empty(), &mut io::sink(), &mut io::sink()).unwrap(), 0);
    };
    let cold = requests(&stage);
    call();
    assert!(requests(&stage) > cold, "the first call makes the channel");
    let agents = [WORK.1, VAULT.1].map(|domid| stage.agent(domid).id());
    // Threads that set the channel up end by themselves.
    let before = (requests(&stage), agents.map(threads_and_children));
    const CALLS: u64 = 100;
    (0..CALLS).for_each(|_| call());
    let after = (requests(&stage), agents.map(threads_and_children));
    // Each agent looks once a second whether the other's domain lives.
    assert!(after.0 - before.0 < CALLS / 4, "{} requests for {CALLS} calls", after.0 - before.0);
    for (before, after) in before.1.iter().zip(after.1) {
        assert!(after.0 <= before.0, "no thread: {before:?} {after:?}");
        assert_eq!(after.1, before.1, "no process");
    }
    // What is counted would be seen.
    stage.service("vault", "q.Program", "exit 0");
    assert_eq!(stage.call("mail", "vault", "q.Program", b"").status.code(), Some(0));
    assert!(threads_and_children(agents[1]).1 > after.1[1].1);
}
