//! A simulated host with nexusd in dom0, and agents that say what a test wants them to.

use nexus::broker::Entry;
use nexus::wire::control::{Ended, Role};
use nexus::wire::{CONTROL_PATH, Channel, Decoder, Ident, Message, Source, Trigger};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use vchan::{ListenOptions, Listener};
use xen::{DomId, Platform, Transaction, host};

pub(crate) const NEXUS: u32 = 0x4e58_0001;
/// How long something may take that happens at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where an agent's process finds the test that speaks for it, and what its qube is called.
const SOCKET: &str = "NEXUS_TEST_SOCKET";
const NAME: &str = "NEXUS_TEST_NAME";

pub(crate) struct Host {
    root: tempfile::TempDir,
    pub(crate) settings: Value,
    nexusd: Option<Child>,
}

impl Host {
    /// A host on which nothing runs yet.
    pub(crate) fn new(policy: &str) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        // Whoever nexusd runs as has to get here.
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(root.path(), mode(0o755)).expect("a folder");
        let path = |name: &str| root.path().join(name);
        for folder in ["policy", "log"] {
            fs::create_dir(path(folder)).expect("a folder");
        }
        let settings = json!({
            "policy": [path("policy")],
            "system": path("system.json"),
            "socket": path("control.sock"),
            "log": path("log/calls.jsonl"),
            "metrics": path("metrics.sock"),
            "made": path("made"),
            "start": [],
            "calls": 50,
        });
        let host = Self { root, settings, nexusd: None };
        host.write("policy/30-test.policy", policy);
        host.write(
            "system.json",
            r#"{ "qubes": {
                "work": { "type": "AppVM", "containers": ["mail"], "default_dispvm": "dvm" },
                "vault": { "type": "AppVM", "containers": ["gpg"] },
                "untrusted": { "type": "AppVM" },
                "dvm": { "type": "AppVM", "template_for_dispvms": true }
            } }"#,
        );
        host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A file that is there as a whole or not at all.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let new = self.path("new");
        fs::write(&new, text).expect("a file");
        fs::rename(&new, self.path(name)).expect("a file");
    }

    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a script");
        path
    }

    fn environment(&self, domain: u16, command: &mut Command) {
        let exe = env::current_exe().expect("this program");
        command
            .env("LD_PRELOAD", exe.with_file_name("libxensim.so"))
            .env("XENSIM_DIR", self.path("xen"))
            .env("XENSIM_DOMID", domain.to_string());
    }

    /// Starts nexusd, and waits until it serves.
    pub(crate) fn start(&mut self) {
        self.write("nexusd.json", &self.settings.to_string());
        let _ = fs::remove_file(self.path("notify"));
        let notify = std::os::unix::net::UnixDatagram::bind(self.path("notify")).expect("a socket");
        notify.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexusd"));
        self.environment(0, &mut command);
        command.arg("--config").arg(self.path("nexusd.json")).env("NOTIFY_SOCKET", self.path("notify"));
        // A test may put programs of its own before those of this machine.
        let path = format!("{}:{}", self.path("bin").display(), env::var("PATH").unwrap_or_default());
        command.env("PATH", path);
        self.nexusd = Some(command.spawn().expect("nexusd"));
        let mut ready = [0; 64];
        let read = notify.recv(&mut ready).expect("nexusd says that it is ready");
        assert_eq!(&ready[..read], b"READY=1\n");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.nexusd.as_ref().expect("nexusd").id()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut nexusd = self.nexusd.take().expect("nexusd");
        nexusd.kill().expect("nexusd");
        nexusd.wait().expect("nexusd");
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    /// A line of nexusd's /proc/PID/status.
    pub(crate) fn status(&self, key: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("nexusd runs");
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.expect("such a line").trim().to_owned()
    }

    /// An agent that has said hello, and was answered.
    pub(crate) fn agent(&self, name: &str, domain: u16, number: u32) -> Agent {
        let mut agent = self.come(name, domain);
        agent.greet(number);
        agent
    }

    /// An agent whose vchan is there; it has said nothing.
    pub(crate) fn come(&self, name: &str, domain: u16) -> Agent {
        let socket = self.path(&format!("agent-{domain}.sock"));
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("a socket");
        let child = self.agent_command(name, domain, &socket).spawn().expect("an agent");
        let (socket, _) = listener.accept().expect("an agent");
        Agent::new(socket, Some(child))
    }

    /// This program, as an agent.
    pub(crate) fn agent_command(&self, name: &str, domain: u16, socket: &Path) -> Command {
        let mut command = Command::new(env::current_exe().expect("this program"));
        self.environment(domain, &mut command);
        command
            .args(["--ignored", "--exact", "broker_daemon::host::the_process_of_an_agent"])
            .env(SOCKET, socket)
            .env(NAME, name)
            .stdout(Stdio::null());
        command
    }

    /// dom0's own agent.
    pub(crate) fn dom0(&self) -> Agent {
        let mut agent = Agent::new(UnixStream::connect(self.path("control.sock")).expect("nexusd"), None);
        agent.greet(NEXUS);
        agent
    }

    pub(crate) fn log(&self) -> Vec<Entry> {
        // Agents are told first, and the log is written in the same turn. Who is served next is served after that.
        if self.nexusd.is_some() {
            self.figures();
        }
        let text = fs::read_to_string(self.path("log/calls.jsonl")).expect("a log");
        text.lines().map(|line| serde_json::from_str(line).expect("a line of the log")).collect()
    }

    /// The figures, as curl would get them.
    pub(crate) fn figures(&self) -> String {
        let mut socket = UnixStream::connect(self.path("metrics.sock")).expect("a socket");
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: nexusd\r\n\r\n").expect("a request");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        body.to_owned()
    }

    pub(crate) fn figure(&self, name: &str) -> String {
        let figures = self.figures();
        let line = figures.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name}: {figures}")).to_owned()
    }

    /// Waits until a figure is that.
    #[track_caller]
    pub(crate) fn becomes(&self, name: &str, value: &str) {
        until(&format!("{name} {value}"), || self.figure(name) == value);
    }
}

#[track_caller]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(nexusd) = &mut self.nexusd {
            let _ = nexusd.kill();
            let _ = nexusd.wait();
        }
    }
}

/// An agent, or whoever takes himself for one.
pub(crate) struct Agent {
    pub(crate) socket: UnixStream,
    decoder: Decoder,
    unread: Vec<u8>,
    child: Option<Child>,
}

impl Agent {
    pub(crate) fn new(socket: UnixStream, child: Option<Child>) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self { socket, decoder: Decoder::new(Channel::ToAgent), unread: Vec::new(), child }
    }

    pub(crate) fn greet(&mut self, number: u32) {
        self.say(&Message::Hello(number));
        let answer = if number < NEXUS { number.min(4) } else { NEXUS };
        self.hear(|message| assert_eq!(*message, Message::Hello(answer)));
    }

    pub(crate) fn say(&mut self, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).expect("a message");
        self.socket.write_all(&bytes).expect("nexusd reads");
    }

    /// A request in the words of version 4.
    pub(crate) fn request(&mut self, source: &str, target: &str, service: &str) {
        self.say(&request(source, target, service));
    }

    /// The next message; panics at the end of the stream.
    pub(crate) fn hear<T>(&mut self, look: impl FnOnce(&Message<'_>) -> T) -> T {
        self.try_hear(look).expect("a message, and not the end")
    }

    /// The next message; none at the end of the stream.
    pub(crate) fn try_hear<T>(&mut self, look: impl FnOnce(&Message<'_>) -> T) -> Option<T> {
        loop {
            let mut input = &self.unread[..];
            let before = input.len();
            let frame = self.decoder.decode(&mut input).expect("nexusd keeps the rules");
            let taken = before - input.len();
            if let Some(frame) = frame {
                let seen = look(&Message::parse(&frame).expect("a message"));
                self.unread.drain(..taken);
                return Some(seen);
            }
            self.unread.clear();
            let mut buffer = [0; 4096];
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(read) => self.unread.extend(&buffer[..read]),
                Err(error) => panic!("nexusd says nothing: {error}"),
            }
        }
    }

    /// Joined: the call's number.
    #[track_caller]
    pub(crate) fn joined(&mut self) -> u64 {
        self.hear(|message| match message {
            Message::Join(join) => join.call,
            other => panic!("{other:?}"),
        })
    }

    #[track_caller]
    pub(crate) fn refused(&mut self) {
        let refused =
            |message: &Message<'_>| matches!(message, Message::ServiceRefused(_) | Message::Failed(..));
        self.hear(|message| assert!(refused(message), "{message:?}"));
    }

    #[track_caller]
    pub(crate) fn runs(&mut self, call: u64) {
        self.hear(|message| assert!(matches!(message, Message::Run(run) if run.call == call), "{message:?}"));
    }

    /// Says that its end of a call is no more.
    pub(crate) fn ends(&mut self, call: u64, role: Role, exit: i32) {
        self.say(&Message::Ended(Ended { call, exit, role, to_service: 1, to_caller: 2 }));
    }

    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("a process");
        child.kill().expect("a process");
        child.wait().expect("a process");
    }
}

pub(crate) fn request<'a>(source: &'a str, target: &'a str, service: &'a str) -> Message<'a> {
    let ident = Ident::new(b"test").expect("an identifier");
    let trigger = Trigger { ident, target: target.as_bytes(), service: service.as_bytes() };
    Message::TriggerService4(Source(source.as_bytes()), trigger)
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Serves the control vchan of its domain, and has a test speak through it.
#[test]
#[ignore = "the other tests run it, in processes of their own"]
fn the_process_of_an_agent() {
    let (Some(socket), Ok(name)) = (env::var_os(SOCKET), env::var(NAME)) else {
        panic!("it is for the other tests to run");
    };
    let store = host::Host.xenstore().expect("a simulated host");
    store.write(Transaction::NONE, "name", name.as_bytes()).expect("a name");
    let options = ListenOptions { read_min: 4096, write_min: 4096, ..ListenOptions::default() };
    let listener = Listener::open(&host::Host, DomId(0), CONTROL_PATH, &options).expect("a vchan");
    let mut socket = UnixStream::connect(socket).expect("the test");
    let channel = loop {
        match listener.wait(Some(Duration::from_millis(200))) {
            Ok(()) => break listener.into_channel(),
            // The test may have ended before nexusd came.
            Err(vchan::Error::TimedOut(_)) => assert!(!is_gone(&socket), "the test is gone"),
            Err(error) => panic!("{error}"),
        }
    };
    let (mut sender, mut receiver) = channel.split().expect("two halves");
    let mut reading = socket.try_clone().expect("a socket");
    thread::spawn(move || {
        // Either end's end is that of the process.
        let _ = std::io::copy(&mut reading, &mut sender);
        std::process::exit(0);
    });
    let _ = std::io::copy(&mut receiver, &mut socket);
    std::process::exit(0);
}

fn is_gone(socket: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}
