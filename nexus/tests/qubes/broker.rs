//! What nexusd does with agents, after a script: it allows what the test says.

use nexus::wire::control::{Ended, Join, OpenCall, Run, Via};
use nexus::wire::{Channel, Decoder, Message, Version};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Whether a caller may call a target for a service.
pub(crate) type Rules = fn(source: &str, target: &str, service: &str) -> bool;

#[derive(Default)]
struct State {
    agents: HashMap<String, (u16, UnixStream)>,
    calls: u64,
    ended: Vec<Ended>,
    open: Vec<OpenCall>,
    asked: usize,
    /// Requests are left without an answer.
    silent: bool,
    /// How long after the service's agent the caller's is told.
    later: Duration,
}

/// A broker that is the agents' control sockets.
pub(crate) struct Broker {
    folder: PathBuf,
    rules: Rules,
    state: Arc<Mutex<State>>,
}

impl Broker {
    pub(crate) fn new(folder: &Path, rules: Rules) -> Self {
        Self { folder: folder.to_owned(), rules, state: Arc::default() }
    }

    pub(crate) fn socket(&self, qube: &str) -> PathBuf {
        self.folder.join(format!("{qube}-control.sock"))
    }

    /// Is there for a qube's agent.
    pub(crate) fn listen(&self, qube: &str, domid: u16) {
        let path = self.socket(qube);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        let (state, qube, rules) = (self.state.clone(), qube.to_owned(), self.rules);
        thread::spawn(move || {
            // One at a time, until the broker dies.
            let Ok((socket, _)) = listener.accept() else { return };
            drop(listener);
            converse(&socket, &qube, domid, rules, &state);
            state.lock().unwrap().agents.remove(&qube);
        });
    }

    pub(crate) fn has(&self, qube: &str) -> bool {
        self.state.lock().unwrap().agents.contains_key(qube)
    }

    /// Dies.
    pub(crate) fn die(&self) {
        for (qube, (_, socket)) in self.state.lock().unwrap().agents.drain() {
            let _ = std::fs::remove_file(self.socket(&qube));
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn ended(&self) -> Vec<Ended> {
        self.state.lock().unwrap().ended.clone()
    }

    pub(crate) fn open(&self) -> Vec<OpenCall> {
        self.state.lock().unwrap().open.clone()
    }

    pub(crate) fn asked(&self) -> usize {
        self.state.lock().unwrap().asked
    }

    pub(crate) fn tell_callers_later(&self, by: Duration) {
        self.state.lock().unwrap().later = by;
    }

    pub(crate) fn set_silent(&self) {
        self.state.lock().unwrap().silent = true;
    }
}

fn send(mut socket: &UnixStream, message: &Message<'_>) {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    // An agent that was killed is not told.
    let _ = socket.write_all(&bytes);
}

fn converse(mut socket: &UnixStream, qube: &str, domid: u16, rules: Rules, state: &Mutex<State>) {
    let mut decoder = Decoder::new(Channel::FromAgent);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let Ok(read @ 1..) = socket.read(&mut buffer) else { return };
        let mut input = &buffer[..read];
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            let mut state = state.lock().unwrap();
            match Message::parse(&frame).unwrap() {
                Message::Hello(_) => {
                    send(socket, &Message::Hello(Version::Nexus.number()));
                    state.agents.insert(qube.to_owned(), (domid, socket.try_clone().unwrap()));
                }
                Message::TriggerService4(source, trigger) => {
                    state.asked += 1;
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    let (source, target, service) =
                        (text(source.0), text(trigger.target), text(trigger.service));
                    assert_eq!(source.split(':').next(), Some(qube));
                    let (to, container) = target.split_once(':').unwrap_or((&target, ""));
                    if state.silent {
                        continue;
                    }
                    if !rules(&source, &target, &service) || !state.agents.contains_key(to) {
                        send(socket, &Message::ServiceRefused(trigger.ident));
                        continue;
                    }
                    state.calls += 1;
                    let call = 0x5eed_0000_0000 + state.calls;
                    let (domain, to) = &state.agents[to];
                    send(
                        to,
                        &Message::Run(Run {
                            call,
                            via: Via { domain: domid, port: None },
                            container: container.as_bytes(),
                            user: b"",
                            service: trigger.service,
                            source: source.as_bytes(),
                            wish: trigger.target,
                        }),
                    );
                    let via = Via { domain: *domain, port: None };
                    thread::sleep(state.later);
                    send(socket, &Message::Join(Join { call, via, ident: trigger.ident }));
                }
                Message::Ended(ended) => state.ended.push(ended),
                Message::Open(open) => state.open.push(open),
                other => panic!("{other:?} from {qube}"),
            }
        }
    }
}
