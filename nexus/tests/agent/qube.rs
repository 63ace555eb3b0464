//! A qube's agent as a process, and who calls.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A qube `work` with containers `web`, `db` and `mail`, in a folder.
pub(crate) struct Qube {
    root: tempfile::TempDir,
    agent: Child,
}

impl Qube {
    pub(crate) fn new(policy: &str) -> Self {
        Self::with(policy, &serde_json::json!({}))
    }

    /// With settings of the agent's.
    pub(crate) fn with(policy: &str, more: &serde_json::Value) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let path = |name: &str| root.path().join(name);
        for folder in ["policy", "services", "rpc-config", "web", "db", "mail"] {
            fs::create_dir(path(folder)).expect("a folder");
        }
        fs::write(path("policy/30-user.policy"), policy).expect("a policy");
        let container = |name: &str| serde_json::json!({ "socket": path(&format!("{name}.sock")), "services": path(name) });
        let mut settings = serde_json::json!({
            "qube": "work",
            "user": "user",
            "socket": path("qube.sock"),
            "services": [path("services")],
            "rpc_config": path("rpc-config"),
            "policy": [path("policy")],
            "containers": { "web": container("web"), "db": container("db"), "mail": container("mail") },
            "calls": 4,
            "starter": path("starter.sock"),
        });
        for (key, value) in more.as_object().expect("settings") {
            settings[key] = value.clone();
        }
        fs::write(path("agent.json"), settings.to_string()).expect("a configuration");
        let agent = Self::agent(root.path());
        let qube = Self { root, agent };
        // The last of its sockets. That somebody called and hung up is over when it is written down.
        qube.until(|| UnixStream::connect(qube.path("web.sock")).is_ok());
        qube.until(|| qube.broken() > 0);
        qube
    }

    fn agent(root: &Path) -> Child {
        let log = fs::File::options().append(true).create(true).open(root.join("log")).expect("a log");
        Command::new(env!("CARGO_BIN_EXE_nexus-agent"))
            .arg("--config")
            .arg(root.join("agent.json"))
            .env("QREXEC_LEFTOVER", "1")
            .stderr(log)
            .spawn()
            .expect("an agent")
    }

    /// kill -9, and another one.
    pub(crate) fn restart(&mut self) {
        self.agent.kill().and_then(|()| self.agent.wait()).expect("the agent");
        self.agent = Self::agent(self.root.path());
        self.until(|| UnixStream::connect(self.path("web.sock")).is_ok());
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Waits, for 20 s at most.
    pub(crate) fn until(&self, condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).expect("a log")
    }

    /// How many callers broke off before they had said what they want.
    pub(crate) fn broken(&self) -> usize {
        self.log().matches(r#""event":"broken""#).count()
    }

    pub(crate) fn service(&self, name: &str, script: &str) {
        let path = self.path("services").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a service");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("a program");
    }

    pub(crate) fn command(&self, from: &str, target: &str, service: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-call"));
        command
            .arg("--agent")
            .arg(self.path(&format!("{from}.sock")))
            .args([target, service])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn call(&self, from: &str, target: &str, service: &str, input: &[u8]) -> Output {
        let mut child = self.command(from, target, service).spawn().expect("a caller");
        let mut stdin = child.stdin.take().expect("stdin");
        std::thread::scope(|scope| {
            // A call that is refused reads nothing.
            scope.spawn(move || _ = stdin.write_all(input));
            child.wait_with_output().expect("its output")
        })
    }
}

impl Drop for Qube {
    fn drop(&mut self) {
        self.agent.kill().and_then(|()| self.agent.wait()).expect("the agent");
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What systemd does for a socket unit with Accept=yes: a process for each connection, which has it as stdin.
pub(crate) fn accept(path: PathBuf, mut command: impl FnMut() -> Command + Send + 'static) {
    let listener = UnixListener::bind(path).expect("a service");
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let socket = std::os::fd::OwnedFd::from(socket.expect("a call"));
            command().stdin(socket).spawn().and_then(|mut child| child.wait()).expect("a service");
        }
    });
}
