//! `nexusd`: decides calls between qubes.

use clap::Parser;
use listenfd::ListenFd;
use nexus::broker::confine::{self, Identity};
use nexus::broker::{Opened, SETTINGS_FILE, Settings, attend, serve};
use nexus::programs::DaemonArguments;
use nexus::sd_notify::Notifier;
use std::error::Error;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use xen::host::Host;

fn main() -> ExitCode {
    let arguments = DaemonArguments::parse();
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(tracing::Level::INFO)
        .without_time()
        .init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody left to tell when stderr is gone, too.
            let _ = writeln!(io::stderr(), "nexusd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &DaemonArguments) -> Result<(), Box<dyn Error>> {
    let config = arguments.config.as_deref();
    let settings = match config {
        Some(path) => Settings::read(path)?,
        None => Settings::of_host(Path::new(SETTINGS_FILE))?,
    };
    if arguments.attendant {
        let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        return Ok(attend(socket, settings)?);
    }
    let identity = Identity::chosen(settings.user.as_deref())?;
    let programs = [&settings.ask, &settings.notify, &settings.start].iter().any(|words| !words.is_empty())
        || !settings.disposables.is_empty()
        || settings.declared_disposables.is_some();
    let attendant = if programs { Some(attendant(config)?) } else { None };
    let (control, metrics) = sockets(&settings)?;
    let paths = [&settings.log, &settings.socket, &settings.metrics].map(Clone::clone);
    if let Some(folder) = settings.log.parent() {
        fs::create_dir_all(folder)?;
    }
    let opened = Opened::new(settings, Host, control, metrics, attendant)?;
    // systemd may have gone away; nexusd can do without it.
    let notifier = Notifier::from_env().ok().flatten();
    let no_seccomp = arguments.no_seccomp;
    serve(opened, move || {
        if let Some(identity) = &identity {
            become_user(identity, &paths)?;
        }
        if !no_seccomp {
            confine::filter().map_err(io::Error::other)?;
        }
        tracing::info!("calls are served");
        if let Some(notifier) = &notifier {
            let _ = notifier.ready();
        }
        Ok(())
    })?;
    Ok(())
}

/// What it has to open anew, and whom it answers, is its user's.
fn become_user(identity: &Identity, paths: &[PathBuf]) -> io::Result<()> {
    for path in paths.iter().map(PathBuf::as_path).chain(paths[0].parent()) {
        chown(path, Some(identity.uid()), Some(identity.gid()))?;
    }
    identity.assume().map_err(io::Error::other)
}

/// Starts the process that runs programs, while we may.
fn attendant(config: Option<&Path>) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("--attendant").stdin(OwnedFd::from(theirs)).env_remove("NOTIFY_SOCKET");
    if let Some(path) = config {
        command.arg("--config").arg(path);
    }
    command.spawn()?;
    Ok(ours)
}

/// The sockets that systemd made for us, by their paths.
fn sockets(settings: &Settings) -> io::Result<(Option<UnixListener>, Option<UnixListener>)> {
    let mut passed = ListenFd::from_env();
    let (mut control, mut metrics) = (None, None);
    for index in 0..passed.len() {
        let Some(listener) = passed.take_unix_listener(index)? else { continue };
        let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
        if path.as_deref() == Some(&settings.socket) {
            control = Some(listener);
        } else if path.as_deref() == Some(&settings.metrics) {
            metrics = Some(listener);
        } else {
            return Err(io::Error::other(format!(
                "systemd passed the socket {path:?}; those of the configuration are {} and {}",
                settings.socket.display(),
                settings.metrics.display()
            )));
        }
    }
    Ok((control, metrics))
}
