//! Where services are, and what kind each is.

use super::rpc_config::absent;
use crate::policy::Service;
use rustix::fs::{CWD, FileType, Mode, OFlags, openat};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A service that was found.
#[derive(Debug)]
pub(super) enum Found {
    /// A program.
    Program(PathBuf),
    /// A socket.
    Socket(Socket),
}

/// Where a socket is.
#[derive(Debug)]
pub(super) enum Socket {
    /// By name.
    Named(PathBuf),
    /// The very file that was looked at.
    Opened(OwnedFd),
}

impl Socket {
    /// The path to connect to, for as long as this lives.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Named(path) => path.clone(),
            Self::Opened(file) => format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
        }
    }
}

/// A service of the qube itself: the first of these folders that has `SERVICE+ARGUMENT`, or else the first that has
/// `SERVICE`. Symbolic links are followed: the folders are root's.
///
/// # Errors
/// It is there and can be neither run nor connected to.
pub(super) fn of_qube(service: &Service, folders: &[PathBuf]) -> io::Result<Option<Found>> {
    for name in [service.to_string(), service.name().to_string()] {
        for folder in folders {
            let path = folder.join(&name);
            match fs::symlink_metadata(&path) {
                Ok(_) => return open(path).map(Some),
                Err(error) if absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

fn open(path: PathBuf) -> io::Result<Found> {
    let metadata = fs::metadata(&path)?;
    if metadata.file_type().is_socket() {
        return Ok(Found::Socket(Socket::Named(path)));
    }
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        return Ok(Found::Program(path));
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "neither a program nor a socket"))
}

/// A service of a container: a socket in its folder. The container writes there: nothing but a socket that stands right
/// there is connected to. A symbolic link would lead to any socket of the qube, and a program of the container's is not
/// run outside it.
///
/// # Errors
/// It is there and is no socket.
pub(super) fn of_container(service: &Service, folder: &Path) -> io::Result<Option<Found>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let folder = openat(CWD, folder, flags | OFlags::DIRECTORY, Mode::empty())?;
    for name in [service.to_string(), service.name().to_string()] {
        match openat(&folder, name.as_str(), flags, Mode::empty()).map_err(io::Error::from) {
            Ok(found) => return socket(found).map(Some),
            Err(error) if absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn socket(found: OwnedFd) -> io::Result<Found> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    if kind != FileType::Socket {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a container's service is a socket"));
    }
    Ok(Found::Socket(Socket::Opened(found)))
}
