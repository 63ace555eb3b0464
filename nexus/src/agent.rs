//! Calls within one qube: from its containers and from itself, to its containers and to itself, under the qube's own
//! policy and without dom0.
//!
//! Each container has a Unix socket of its own, mounted into it; the qube has one, too. Who calls is known by the socket
//! that the call came in by, and never by what the caller says. Over it, client and agent speak qrexec's messages
//! ([`Channel::FromClient`](crate::wire::Channel), [`Channel::ToClient`](crate::wire::Channel)): hello, one request, and then data.
//!
//! A service of the qube is a program or a socket in its service folders. A service of a container is a socket in a
//! folder that the container writes and the agent reads: no program of a container is run outside it.

mod limits;
mod rpc_config;
mod running;
mod services;
mod session;

pub use rpc_config::{RpcConfig, RpcConfigError};

use crate::name::Name;
use crate::policy::{PolicyFolders, PolicyStore, Principal, QubeInfo, System};
use limits::Limit;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What an agent is told of its qube.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The qube's name.
    pub qube: Name,
    /// The user that the agent runs as, and so every program.
    pub user: String,
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
}

/// A container.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// The socket that it calls on.
    pub socket: PathBuf,
    /// The folder in which its services' sockets are.
    pub services: PathBuf,
    /// The folder of the settings of its services; none: that of the qube's.
    #[serde(default)]
    pub rpc_config: Option<PathBuf>,
}

fn service_folders() -> Vec<PathBuf> {
    ["/etc/nexus-rpc", "/usr/local/etc/qubes-rpc", "/etc/qubes-rpc"].map(PathBuf::from).into()
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

/// Where what was decided, and how each call ended, is written down: a JSON object for each.
pub type Audit = Box<dyn Fn(&serde_json::Value) + Send + Sync>;

/// An agent whose sockets are there.
#[derive(Debug)]
pub struct Agent {
    shared: Arc<Shared>,
    listeners: Vec<(Principal, UnixListener)>,
}

/// What all its calls share.
struct Shared {
    settings: Settings,
    system: System,
    policy: PolicyStore,
    audit: Audit,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Agent {
    /// Reads the policy and makes the sockets.
    ///
    /// # Errors
    /// A socket cannot be made, or the policy's files not be watched. A wrong policy is none: it denies.
    pub fn open(settings: Settings, audit: Audit) -> io::Result<Self> {
        let policy = PolicyStore::open(PolicyFolders::of(settings.policy.iter().cloned()))?;
        let mut listeners = vec![(Principal::Qube(settings.qube.clone()), listen(&settings.socket)?)];
        for (name, container) in &settings.containers {
            let principal = Principal::Container { qube: settings.qube.clone(), container: name.clone() };
            listeners.push((principal, listen(&container.socket)?));
        }
        let info =
            QubeInfo { containers: settings.containers.keys().cloned().collect(), ..QubeInfo::app_vm() };
        let system =
            System { qubes: [(settings.qube.clone(), info)].into(), within: Some(settings.qube.clone()) };
        Ok(Self { shared: Arc::new(Shared { settings, system, policy, audit }), listeners })
    }

    /// Serves calls until the process ends.
    ///
    /// # Errors
    /// A thread cannot be made.
    pub fn run(self) -> io::Result<()> {
        let mut threads = Vec::new();
        for (principal, listener) in self.listeners {
            let shared = self.shared.clone();
            let name = principal.to_string();
            threads.push(
                std::thread::Builder::new()
                    .name(name)
                    .spawn(move || accept(&principal, &listener, &shared))?,
            );
        }
        for thread in threads {
            // They do not end; one that did would have nobody to tell.
            let _ = thread.join();
        }
        Ok(())
    }
}

/// A socket at a path: whoever has it mounted may call. What an agent before this one left there is replaced.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let listener = UnixListener::bind(path).map_err(at)?;
    fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(at)?;
    Ok(listener)
}

fn accept(principal: &Principal, listener: &UnixListener, shared: &Arc<Shared>) {
    let limit = Limit::new(shared.settings.calls);
    loop {
        let socket = match listener.accept() {
            Ok((socket, _)) => socket,
            // No descriptors, or the caller has gone: others come.
            Err(_) => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        let Some(place) = limit.take() else {
            refuse_at_once(&socket, principal, shared, "it has as many calls open as it may");
            continue;
        };
        let (principal, shared_too) = (principal.clone(), shared.clone());
        let call = move || {
            let _place = place;
            session::serve(socket, &principal, &shared_too);
        };
        // Without a thread the socket is closed, and the caller told so.
        let _ = std::thread::Builder::new().name("call".to_owned()).spawn(call);
    }
}

/// Tells a caller so whose request was not read.
fn refuse_at_once(socket: &UnixStream, principal: &Principal, shared: &Shared, why: &str) {
    (shared.audit)(
        &serde_json::json!({ "event": "refused", "source": principal.to_string(), "reason": why }),
    );
    // A socket that was just opened has room for a few bytes; and if not, the caller sees that nobody is there.
    let _ = socket.set_nonblocking(true).and_then(|()| session::refuse(socket));
}
