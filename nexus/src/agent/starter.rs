//! The starter: runs a service of the qube as another user than the agent's. It is root's, and the agent is not.
//!
//! It is a process for each connection to its socket. What the agent says there first is USER, SERVICE+ARGUMENT, SOURCE and whom the caller
//! asked for, a NUL behind each; after that both speak in messages ([`crate::answer`]). Who says it may be any program of the
//! agent's user. So of all that, only names are used: the user must be in a list of root's, and the service one of the qube's folders.

use super::program::Caller;
use super::{Settings, services};
use crate::answer::text_to_nul;
use crate::name::NameError;
use crate::policy::Service;
use crate::policy::service::MAX_SERVICE;
use nix::unistd::{Uid, User};
use rustix::net::sockopt::socket_peercred;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long the agent may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest name of a user (`LOGIN_NAME_MAX`), and the longest of who calls and of whom he asks for.
const MAX_USER: usize = 256;
const MAX_PRINCIPAL: usize = 256;

/// What is to be run.
#[derive(Debug)]
pub struct Start {
    /// As whom.
    pub user: User,
    /// The program of the service.
    pub program: PathBuf,
    /// Of which, with its argument.
    pub service: Service,
    caller: Caller,
}

/// Why nothing is run.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The connection, or the system's users.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The settings, a folder or a program.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Who connected is not the agent.
    #[error("user {uid} asks, and services are started for {agent:?} alone")]
    Peer {
        /// Who it is.
        uid: u32,
        /// Whom the settings name.
        agent: String,
    },
    /// The settings do not let a service run as this user.
    #[error("nothing is run as {0:?}: \"users\" of the agent's settings has not got it")]
    Unlisted(String),
    /// The qube has no such user.
    #[error("there is no user {0:?} here")]
    NoUser(String),
    /// No service has such a name.
    #[error("no service: {0}")]
    Name(#[from] NameError),
    /// The folders have no such service.
    #[error("there is no service {0}")]
    NoService(Service),
    /// It is a socket.
    #[error("{0} is a socket, and runs as whoever made it")]
    Socket(Service),
    /// Others than root may change what would be run, or what says so.
    #[error("{0}: somebody else than root may write there")]
    Writable(PathBuf),
}

impl Start {
    /// Puts what the program is to know of its caller into its environment, and nothing else.
    pub fn describe(&self, command: &mut Command) {
        command.env_clear();
        self.caller.describe(command);
    }

    /// Who calls.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.caller.source
    }
}

/// Hears what the agent wants run, and as whom, and looks whether that may be. The settings are the agent's, and root's alone to write.
///
/// # Errors
/// Nothing may be run.
pub fn asked_to_start(socket: &UnixStream, settings: &Path) -> Result<Start, StartError> {
    let settings = read(settings)?;
    let uid = socket_peercred(socket).map_err(io::Error::from)?.uid;
    let agent = user(&settings.user)?;
    if agent.uid != Uid::from_raw(uid.as_raw()) {
        return Err(StartError::Peer { uid: uid.as_raw(), agent: settings.user });
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = text_to_nul(socket, MAX_USER)?;
    let service = Service::parse(&text_to_nul(socket, MAX_SERVICE)?)?;
    let caller = Caller {
        source: text_to_nul(socket, MAX_PRINCIPAL)?,
        service: service.to_string(),
        argument: service.argument().to_owned(),
        wish: text_to_nul(socket, MAX_PRINCIPAL)?,
    };
    socket.set_read_timeout(None)?;
    if !settings.permits(&name) {
        return Err(StartError::Unlisted(name));
    }
    let user = user(&name)?;
    let program = match services::of_qube(&service, &settings.services)? {
        Some(services::Found::Program(program)) => program,
        Some(services::Found::Socket(_)) => return Err(StartError::Socket(service)),
        None => return Err(StartError::NoService(service)),
    };
    is_roots_alone(&program)?;
    Ok(Start { user, program, service, caller })
}

fn user(name: &str) -> Result<User, StartError> {
    User::from_name(name).map_err(io::Error::from)?.ok_or_else(|| StartError::NoUser(name.to_owned()))
}

fn of(path: &Path, source: io::Error) -> StartError {
    StartError::File { path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<Settings, StartError> {
    is_roots_alone(path)?;
    let settings = std::fs::read_to_string(path).map_err(|error| of(path, error))?;
    serde_json::from_str(&settings).map_err(|error| of(path, error.into()))
}

/// Neither a file nor a folder above it, by its own name and by that of what it links to, is anybody's but root's to write. In a folder
/// with the sticky bit nobody replaces what is root's.
fn is_roots_alone(path: &Path) -> Result<(), StartError> {
    let resolved = path.canonicalize().map_err(|error| of(path, error))?;
    for path in path.ancestors().chain(resolved.ancestors()).filter(|path| !path.as_os_str().is_empty()) {
        let metadata = path.metadata().map_err(|error| of(path, error))?;
        if !is_roots(&metadata) {
            return Err(StartError::Writable(path.to_owned()));
        }
    }
    Ok(())
}

fn is_roots(metadata: &Metadata) -> bool {
    let mode = metadata.mode();
    metadata.uid() == 0 && (mode & 0o022 == 0 || metadata.is_dir() && mode & 0o1000 != 0)
}
