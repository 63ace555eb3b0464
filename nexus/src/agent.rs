//! Calls within one qube: from its containers and from itself, to its containers and to itself, under the qube's own
//! policy and without dom0.
//!
//! Each container has a Unix socket of its own, mounted into it; the qube has one, too. Who calls is known by the socket
//! that the call came in by, and never by what the caller says. Over it, client and agent speak qrexec's messages
//! ([`Channel::FromClient`](crate::wire::Channel), [`Channel::ToClient`](crate::wire::Channel)): hello, one request, and then data.
//!
//! A service of the qube is a program or a socket in its service folders. A service of a container is a socket in a
//! folder that the container writes and the agent reads: no program of a container is run outside it.

mod as_user;
mod control;
mod ends;
mod frames;
mod limits;
mod memory;
mod pair;
mod pairs;
mod plain;
mod program;
mod ready;
mod remote;
mod rpc_config;
mod service;
mod services;
mod session;
mod starter;

pub use control::ControlSettings;
pub use memory::report_memory;
pub use pairs::ChannelSettings;
pub use ready::report_ready;
pub use rpc_config::{RpcConfig, RpcConfigError};
pub use starter::{Start, StartError, asked_to_start};

use crate::listen::listen;
use crate::name::Name;
use crate::policy::{DOM0, PolicyFolders, PolicyStore, Principal, QubeInfo, System};
use crate::wire::control::CallId;
use control::Control;
use limits::Limit;
use pairs::Pairs;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Deserialize;
use service::Ended;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;
use tokio::task::{LocalSet, spawn_local};
use vchan::Hub;

/// What an agent is told of its qube.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The qube's name.
    pub qube: Name,
    /// The user that the agent runs as, and so every program that is to run as nobody else.
    pub user: String,
    /// Whom a service may run as besides, where a rule or its settings say so; `*`: everybody. The starter reads it, too.
    #[serde(default)]
    pub users: Vec<String>,
    /// The socket of the starter, by which they run so.
    #[serde(default = "starter_socket")]
    pub starter: PathBuf,
    /// The socket that the qube itself calls on.
    pub socket: PathBuf,
    /// The folders of the qube's services, the first one first.
    #[serde(default = "service_folders")]
    pub services: Vec<PathBuf>,
    /// The folder of the settings of services.
    #[serde(default = "rpc_config")]
    pub rpc_config: PathBuf,
    /// The folders of the qube's own policy.
    #[serde(default = "policy_folders")]
    pub policy: Vec<PathBuf>,
    /// The containers.
    #[serde(default)]
    pub containers: BTreeMap<Name, Container>,
    /// How many calls each of them, and the qube itself, may have open.
    #[serde(default = "limit")]
    pub calls: usize,
    /// How the channels to other qubes are kept and used.
    #[serde(default)]
    pub channels: ChannelSettings,
    /// Where dom0 is; none: there are calls within the qube alone.
    #[serde(default)]
    pub control: Option<ControlSettings>,
}

/// A container.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// The socket that it calls on. The folder that it is in is what the container has mounted, not the socket itself: an
    /// agent that comes back makes a new one.
    pub socket: PathBuf,
    /// The folder in which its services' sockets are; in the same one, if the container is to find it there.
    pub services: PathBuf,
    /// The folder of the settings of its services; none: that of the qube's.
    #[serde(default)]
    pub rpc_config: Option<PathBuf>,
}

fn service_folders() -> Vec<PathBuf> {
    ["/etc/nexus-rpc", "/usr/local/etc/qubes-rpc", "/etc/qubes-rpc"].map(PathBuf::from).into()
}

fn starter_socket() -> PathBuf {
    "/run/nexus-as-user.sock".into()
}

fn rpc_config() -> PathBuf {
    "/etc/qubes/rpc-config".into()
}

fn policy_folders() -> Vec<PathBuf> {
    ["/run/nexus/policy.d", "/etc/nexus/policy.d"].map(PathBuf::from).into()
}

fn limit() -> usize {
    256
}

impl Settings {
    /// Whether a service may run as this user, who is not the agent's.
    #[must_use]
    pub fn permits(&self, user: &str) -> bool {
        self.users.iter().any(|permitted| permitted == user || permitted == "*")
    }
}

/// Where what was decided, and how each call ended, is written down: a JSON object for each.
pub type Audit = Box<dyn Fn(&serde_json::Value) + Send + Sync>;

/// An agent whose sockets are there.
pub struct Agent {
    settings: Settings,
    policy: PolicyStore,
    audit: Audit,
    listeners: Vec<(Principal, UnixListener)>,
}

/// What all its calls share.
struct Shared {
    settings: Settings,
    system: System,
    policy: PolicyStore,
    audit: Audit,
    control: Rc<Control>,
    pairs: Rc<Pairs>,
    /// For vchans with stock agents.
    hub: OnceCell<Hub>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Shared {
    /// Writes down how a call ended that another qube made here.
    fn audit_end(&self, call: Option<CallId>, shown: &str, ended: &Ended, begin: Instant) {
        (self.audit)(&serde_json::json!({
            "event": "served",
            "call": call,
            "service": shown,
            "exit": ended.exit,
            "reason": ended.reason,
            "bytes_to_service": ended.to_service,
            "bytes_to_caller": ended.to_caller,
            "seconds": begin.elapsed().as_secs_f64(),
        }));
    }
}

impl Agent {
    /// Reads the policy and makes the sockets.
    ///
    /// # Errors
    /// A socket cannot be made, or the policy's files not be watched. A wrong policy is none: it denies.
    pub fn open(settings: Settings, audit: Audit) -> io::Result<Self> {
        let policy = PolicyStore::open(PolicyFolders::of(settings.policy.iter().cloned()))?;
        let (itself, mode) = match &settings.qube {
            // Whoever may call as dom0 may do anything, if policy lets dom0: that is for the agent's group, and for root.
            name if name == DOM0 => (Principal::AdminVm, 0o660),
            name => (Principal::Qube(name.clone()), 0o666),
        };
        let mut listeners = vec![(itself, call_socket(&settings.socket, mode)?)];
        for (name, container) in &settings.containers {
            let principal = Principal::Container { qube: settings.qube.clone(), container: name.clone() };
            listeners.push((principal, call_socket(&container.socket, 0o666)?));
        }
        Ok(Self { settings, policy, audit, listeners })
    }

    /// Serves calls until the process ends: all of them in this thread.
    ///
    /// # Errors
    /// The kernel gives no epoll instance.
    pub fn run(self) -> io::Result<()> {
        let Self { settings, policy, audit, listeners } = self;
        let info =
            QubeInfo { containers: settings.containers.keys().cloned().collect(), ..QubeInfo::app_vm() };
        let system =
            System { qubes: [(settings.qube.clone(), info)].into(), within: Some(settings.qube.clone()) };
        let control = settings.control.clone();
        let pairs = Pairs::new(settings.channels);
        raise_descriptors();
        let shared = Rc::new(Shared {
            settings,
            system,
            policy,
            audit,
            control: Rc::default(),
            pairs: Rc::new(pairs),
            hub: OnceCell::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async {
            for (principal, listener) in listeners {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::UnixListener::from_std(listener)?;
                spawn_local(accept(principal, listener, shared.clone()));
            }
            match control {
                Some(control) => control::maintain(&shared, &control).await,
                None => std::future::pending().await,
            }
            Ok(())
        })
    }
}

/// A call takes up to four descriptors: as many as may be had.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Nobody may be refused more than the hard limit has.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// A socket at a path: whoever has it mounted, and may connect, may call.
fn call_socket(path: &Path, mode: u32) -> io::Result<UnixListener> {
    listen(path, Some(mode))
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

async fn accept(principal: Principal, listener: tokio::net::UnixListener, shared: Rc<Shared>) {
    let limit = Limit::new(shared.settings.calls);
    let principal = Rc::new(principal);
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            // No descriptors, or the caller has gone: others come.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Some(place) = limit.take() else {
            let why = "it has as many calls open as it may";
            (shared.audit)(
                &serde_json::json!({ "event": "refused", "source": principal.to_string(), "reason": why }),
            );
            // A socket that was just opened has room for a few bytes: this is over at once.
            session::refuse_unheard(socket).await;
            continue;
        };
        let (principal, shared) = (principal.clone(), shared.clone());
        spawn_local(async move {
            let _place = place;
            session::serve(socket, &principal, &shared).await;
        });
    }
}

/// Says what is wrong to whoever keeps the log; there is nobody left to tell when stderr is gone, too.
fn complain(what: &str) {
    let _ = writeln!(io::stderr(), "nexus-agent: {what}");
}
