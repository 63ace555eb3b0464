//! Why a command failed, in one line.

use std::io;
use std::path::PathBuf;
use toolstack::CacheError;
use toolstack::config::{ClosureError, ConfigError, SyntaxError};
use toolstack::create::CreateError;
use toolstack::device::DeviceError;
use toolstack::qubes::QubeError;
use toolstack::watch::WatchError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "this is not dom0 of a Xen host, or its daemons do not run ({0}); nxl is to be run there, as root"
    )]
    NotDom0(#[source] xen::Error),
    #[error(transparent)]
    Qube(#[from] QubeError),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Xen(#[from] xen::Error),
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{toplevel} has initrd secrets, which its program {program} appends: in dom0, with all that root may do; --initrd-secrets lets it", toplevel = toplevel.display(), program = program.display())]
    InitrdSecrets { toplevel: PathBuf, program: PathBuf },
    #[error("{path} is no NixOS closure, which {option} is for", path = path.display())]
    NotAClosure { path: PathBuf, option: &'static str },
    #[error("{0}")]
    Syntax(#[from] SyntaxError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Closure(#[from] ClosureError),
    #[error("domain {domid} has no console yet: is xenconsoled running?")]
    NoConsole { domid: xen::DomId },
    #[error("console {tty}: {source}")]
    Console { tty: String, source: io::Error },
    #[error(
        "the watcher could not be started ({0}): the qube runs, but nobody carries out its on_poweroff, on_reboot and on_crash; `nxl watch` does"
    )]
    Watcher(#[source] io::Error),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error("{path}: stored configuration: {source}")]
    Stored { path: String, source: serde_json::Error },
    #[error("output: {0}")]
    Output(#[source] io::Error),
}
