//! Two qubes with agents, and a broker.

use crate::broker::{Broker, Rules};
use crate::host::{Host, PATIENCE, Process};
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The qubes and their domains.
pub(crate) const WORK: (&str, u16) = ("work", 1);
pub(crate) const VAULT: (&str, u16) = ("vault", 2);

/// A host on which qube `work` has containers `mail` and `web`, and qube `vault` has `gpg` and `http`.
pub(crate) struct Stage {
    folder: tempfile::TempDir,
    pub(crate) broker: Broker,
    host: Host,
    agents: Vec<(u16, Option<Child>)>,
    pub(crate) settings: serde_json::Value,
}

impl Stage {
    pub(crate) fn new(name: &str, rules: Rules) -> Self {
        Self::with(name, rules, &serde_json::json!({}))
    }

    /// With settings for both agents.
    pub(crate) fn with(name: &str, rules: Rules, settings: &serde_json::Value) -> Self {
        Self::of(
            name,
            rules,
            settings,
            &[(WORK.0, WORK.1, &["mail", "web"]), (VAULT.0, VAULT.1, &["gpg", "http"])],
        )
    }

    /// With these qubes, their domains and containers.
    pub(crate) fn of(
        name: &str,
        rules: Rules,
        settings: &serde_json::Value,
        qubes: &[(&str, u16, &[&str])],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut stage = Self {
            broker: Broker::new(folder.path(), rules),
            folder,
            host: Host::new(&format!("qubes-{name}")),
            agents: Vec::new(),
            settings: settings.clone(),
        };
        for &(qube, domid, containers) in qubes {
            for folder in ["", "/policy", "/services", "/rpc-config"]
                .map(String::from)
                .into_iter()
                .chain(containers.iter().map(|container| format!("/{container}")))
            {
                fs::create_dir(stage.path(&format!("{qube}{folder}"))).unwrap();
            }
            stage.configure(qube, containers);
            if settings.get("control").is_none() {
                stage.broker.listen(qube, domid);
            }
            stage.start(qube, domid);
        }
        if settings.get("control").is_none() {
            stage.until(|| qubes.iter().all(|(qube, ..)| stage.broker.has(qube)));
        }
        stage
    }

    fn configure(&self, qube: &str, containers: &[&str]) {
        let path = |name: &str| self.path(&format!("{qube}/{name}"));
        let of = |name: &&str| {
            let of = serde_json::json!({ "socket": path(&format!("{name}.sock")), "services": path(name) });
            ((*name).to_owned(), of)
        };
        let containers: serde_json::Map<_, _> = containers.iter().map(of).collect();
        let mut settings = serde_json::json!({
            "qube": qube,
            "user": "user",
            "socket": path("qube.sock"),
            "services": [path("services")],
            "rpc_config": path("rpc-config"),
            "policy": [path("policy")],
            "containers": containers,
            "control": { "socket": self.broker.socket(qube) },
        });
        for (key, value) in self.settings.as_object().unwrap() {
            settings[key] = value.clone();
        }
        fs::write(path("agent.json"), settings.to_string()).unwrap();
    }

    /// An agent more, with a broker of its own.
    pub(crate) fn add(&mut self, qube: &str, domid: u16, control: &serde_json::Value) {
        for folder in ["", "/policy", "/services", "/rpc-config"] {
            fs::create_dir(self.path(&format!("{qube}{folder}"))).unwrap();
        }
        self.settings["control"] = control.clone();
        self.configure(qube, &[]);
        self.start(qube, domid);
    }

    pub(crate) fn start(&mut self, qube: &str, domid: u16) {
        let log =
            fs::File::options().append(true).create(true).open(self.path(&format!("{qube}/log"))).unwrap();
        let mut command = self.host.command(domid, env!("CARGO_BIN_EXE_nexus-agent"));
        command.arg("--config").arg(self.path(&format!("{qube}/agent.json"))).stderr(log);
        self.agents.push((domid, Some(command.spawn().unwrap())));
    }

    /// kill -9.
    pub(crate) fn kill_agent(&mut self, domid: u16) {
        for (of, agent) in &mut self.agents {
            if *of == domid
                && let Some(mut agent) = agent.take()
            {
                agent.kill().unwrap();
                agent.wait().unwrap();
            }
        }
    }

    pub(crate) fn agent(&self, domid: u16) -> &Child {
        let of = |(of, agent): &(u16, Option<Child>)| *of == domid && agent.is_some();
        self.agents.iter().find(|agent| of(agent)).unwrap().1.as_ref().unwrap()
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn until(&self, condition: impl Fn() -> bool) {
        self.within(PATIENCE, condition);
    }

    /// Waits, at most so long.
    pub(crate) fn within(&self, time: Duration, condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < time, "{}", self.logs());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn logs(&self) -> String {
        [WORK.0, VAULT.0].map(|qube| self.log(qube)).join("\n")
    }

    pub(crate) fn log(&self, qube: &str) -> String {
        format!("{qube}:\n{}", fs::read_to_string(self.path(&format!("{qube}/log"))).unwrap_or_default())
    }

    /// A program of a qube as a service.
    pub(crate) fn service(&self, qube: &str, name: &str, script: &str) {
        let path = self.path(&format!("{qube}/services/{name}"));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn caller(&self, from: &str, target: &str, service: &str) -> Command {
        self.caller_of("work", from, target, service)
    }

    /// A caller in another qube.
    pub(crate) fn caller_of(&self, qube: &str, from: &str, target: &str, service: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nexus-call"));
        command
            .arg("--agent")
            .arg(self.path(&format!("{qube}/{from}.sock")))
            .args([target, service])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn start_call(&self, from: &str, target: &str, service: &str) -> Process {
        let mut command = self.caller(from, target, service);
        command.stdin(Stdio::null());
        Process::start(&mut command)
    }

    pub(crate) fn call(&self, from: &str, target: &str, service: &str, input: &[u8]) -> Output {
        let mut child = self.caller(from, target, service).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // A call that is refused reads nothing.
            scope.spawn(move || _ = stdin.write_all(input));
            child.wait_with_output().unwrap()
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.logs());
        }
        for (_, agent) in &mut self.agents {
            if let Some(agent) = agent {
                let _ = agent.kill();
                let _ = agent.wait();
            }
        }
    }
}
