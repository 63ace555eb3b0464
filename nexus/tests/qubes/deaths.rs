//! What dies in the midst of a call, and who hears of it.

use crate::calls::serve;
use crate::host::Process;
use crate::stage::{Stage, VAULT, WORK};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Within which everybody is to know.
const SOON: Duration = Duration::from_secs(2);

fn allow(source: &str, _: &str, _: &str) -> bool {
    source == "work:mail"
}

/// A service that holds its callers, and gives the test their sockets.
fn held(stage: &Stage) -> Receiver<UnixStream> {
    std::fs::write(stage.path("vault/rpc-config/q.Hold"), "exit-on-service-eof=true\n").unwrap();
    let (sender, sockets) = channel();
    serve(stage.path("vault/gpg/q.Hold"), move |mut socket| {
        // To the end of the descriptor.
        let mut byte = [1];
        while byte != [0] {
            socket.read_exact(&mut byte).unwrap();
        }
        socket.write_all(b"held").unwrap();
        sender.send(socket).unwrap();
    });
    sockets
}

/// A call that has come to its service.
fn hold(stage: &Stage, sockets: &Receiver<UnixStream>) -> (Process, UnixStream) {
    let mut command = stage.caller("mail", "vault:gpg", "q.Hold");
    let mut process = Process::start(&mut command);
    process.await_text("held");
    (process, sockets.recv().unwrap())
}

fn ends_soon(mut process: Process, code: i32) {
    let begin = Instant::now();
    assert_eq!(process.wait().code(), Some(code));
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

/// The service sees the end of its caller.
fn is_left_soon(mut socket: UnixStream) {
    socket.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_agent_that_is_killed_takes_its_calls_along_and_no_others() {
    let mut stage = Stage::new("agent-dies", allow);
    let sockets = held(&stage);
    let (mut process, mut socket) = hold(&stage, &sockets);
    // The service's, and the caller's.
    for (qube, domid) in [VAULT, WORK] {
        stage.kill_agent(domid);
        ends_soon(process, 125);
        is_left_soon(socket);
        // It comes back, and so do calls.
        stage.broker.listen(qube, domid);
        stage.start(qube, domid);
        stage.until(|| stage.broker.has(qube));
        (process, socket) = hold(&stage, &sockets);
    }
    drop(socket);
    ends_soon(process, 0);
}

#[test]
fn a_broker_that_dies_takes_what_is_not_decided_and_leaves_what_is_carried() {
    let stage = Stage::new("broker-dies", allow);
    let sockets = held(&stage);
    let mut held = stage.caller("mail", "vault:gpg", "q.Hold");
    let mut held = Process::start(&mut held);
    held.await_text("held");
    let mut socket = sockets.recv().unwrap();
    stage.broker.set_silent();
    let undecided = stage.start_call("mail", "vault:gpg", "q.Hold");
    stage.until(|| stage.broker.asked() == 2);
    stage.broker.die();
    ends_soon(undecided, 125);
    assert_eq!(stage.call("mail", "vault:gpg", "q.Hold", b"").status.code(), Some(125), "nobody to ask");
    // The call is carried still.
    socket.write_all(b"and still").unwrap();
    held.await_text("and still");
    // One that comes back is told of it, by both ends.
    stage.broker.listen(WORK.0, WORK.1);
    stage.broker.listen(VAULT.0, VAULT.1);
    stage.until(|| stage.broker.open().len() == 2);
    drop(socket);
    ends_soon(held, 0);
    stage.until(|| stage.broker.ended().len() == 2);
}

#[test]
fn a_client_that_is_killed_leaves_its_service_and_a_service_its_client() {
    let stage = Stage::new("client-dies", allow);
    let sockets = held(&stage);
    let (mut process, socket) = hold(&stage, &sockets);
    process.kill();
    is_left_soon(socket);
    // A program goes with its caller, and one that is killed tells its caller.
    stage.service(
        "vault",
        "q.Pid",
        &format!(
            "echo $$ > {0}.new; mv {0}.new {0}; echo held; sleep 1000 & wait",
            stage.path("pid").display()
        ),
    );
    let run = || {
        let mut process = Process::start(&mut stage.caller("mail", "vault", "q.Pid"));
        process.await_text("held");
        let pid = std::fs::read_to_string(stage.path("pid")).unwrap().trim().to_owned();
        (process, pid)
    };
    let (mut process, pid) = run();
    process.kill();
    stage.within(SOON, || !std::path::Path::new("/proc").join(&pid).exists());
    let (process, pid) = run();
    // With what it started, which holds its stdout.
    let group = format!("-{pid}");
    assert!(std::process::Command::new("kill").args(["-9", "--", &group]).status().unwrap().success());
    ends_soon(process, 128 + 9);
}
