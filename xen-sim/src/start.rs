//! How a process comes to a host: it connects to the one that is there, or starts it.
//!
//! The host is this library again: `sh` with `libxensim.so` preloaded and `XENSIM_HOST` set, in which case the library's
//! constructor serves the folder and never lets `sh` begin. So there is one file to find and to install, and the host
//! starts from a clean process instead of a fork of whatever program happened to come first.
//!
//! Who starts a host holds the lock of the folder, and makes the listening socket itself: it can connect before the
//! host has begun to run. A host that leaves holds the same lock until it has exited.
#![allow(unsafe_code, reason = "runs before main, where the process becomes the host by fork(2)")]

use crate::host;
use crate::wire::Domid;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};
use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

/// The folder of the simulated host.
const DIR: &str = "XENSIM_DIR";
/// The domain that this process is in.
const DOMID: &str = "XENSIM_DOMID";
/// Set in the process that is to become the host: the folder.
const HOST: &str = "XENSIM_HOST";
/// Pages that one domain may grant at a time; read when the host is started.
const GRANT_LIMIT: &str = "XENSIM_GRANT_LIMIT";

pub(crate) const LOCK_FILE: &str = "lock";
pub(crate) const SOCKET_FILE: &str = "host.sock";
pub(crate) const STORE_FILE: &str = "xenstore";
const LOG_FILE: &str = "host.log";

/// Which host and which domain this process belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    pub(crate) domid: Domid,
}

impl Place {
    /// What the environment says now.
    ///
    /// # Errors
    /// The line to be shown to the user.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let dir = env::var_os(DIR).filter(|dir| !dir.is_empty());
        let dir = dir.ok_or_else(|| format!("{DIR} is not set: name the folder of the simulated host"))?;
        let domid = match env::var_os(DOMID) {
            None => 0,
            Some(text) => text
                .to_str()
                .and_then(|text| text.parse().ok())
                .filter(|domid| *domid < crate::wire::DOMID_FIRST_RESERVED)
                .ok_or_else(|| format!("{DOMID} is {text:?}: it must be a domid, 0 to 32751"))?,
        };
        // The host may outlive a change of directory.
        let dir = std::path::absolute(&dir).map_err(|error| format!("{DIR} is {dir:?}: {error}"))?;
        Ok(Self { dir, domid })
    }
}

/// The connection of a new handle to the host in a folder.
#[derive(Debug)]
pub(crate) struct Door {
    socket: OwnedFd,
    /// Held while it is not certain that a host which was just started will answer.
    _lock: Option<OwnedFd>,
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Door {
    pub(crate) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// Connects to the host that is there. It may be about to leave: then the connection ends without an answer.
    pub(crate) fn knock(dir: &Path) -> Result<Self, Errno> {
        let folder = open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let socket = dial(&folder)?;
        Ok(Self { socket, _lock: None })
    }

    /// Connects to the host, and starts it when there is none.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let lock =
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK_FILE))?;
        retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))?;
        let lock = Some(lock.into());
        let folder = open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let socket = match dial(&folder) {
            Ok(socket) => socket,
            Err(Errno::NOENT | Errno::CONNREFUSED) => {
                let listener = listener(&folder, dir)?;
                let socket = dial(&folder)?;
                start(dir, listener)?;
                socket
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { socket, _lock: lock })
    }
}

/// The socket's address, short whatever the folder's path is: the kernel allows 108 bytes.
fn address(folder: &OwnedFd) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET_FILE}", folder.as_raw_fd()))
}

fn socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

fn dial(folder: &OwnedFd) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    let address = address(folder)?;
    retry_on_intr(|| connect(&socket, &address))?;
    Ok(socket)
}

fn listener(folder: &OwnedFd, dir: &Path) -> io::Result<OwnedFd> {
    // Left behind by a host that was killed.
    match fs::remove_file(dir.join(SOCKET_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = socket()?;
    bind(&socket, &address(folder)?)?;
    listen(&socket, 128)?;
    Ok(socket)
}

fn start(dir: &Path, listener: OwnedFd) -> io::Result<()> {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join(LOG_FILE))?;
    let mut command = Command::new("/bin/sh");
    command
        .arg0("xensim-host")
        .args(["-c", "echo xensim: this shell should have become the host >&2; exit 1"])
        .arg(dir)
        .current_dir("/")
        .env_clear()
        .env("LD_PRELOAD", own_path()?)
        .env(HOST, dir)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log));
    for kept in ["LD_LIBRARY_PATH", GRANT_LIMIT] {
        if let Some(value) = env::var_os(kept) {
            command.env(kept, value);
        }
    }
    // It forks at once, so this does not wait for the host, and the program gets no child that it does not know of.
    match command.status() {
        Ok(_) => Ok(()),
        // The program ignores SIGCHLD: the kernel has reaped it.
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The file that this library was loaded from.
fn own_path() -> io::Result<OsString> {
    let here = own_path as *const () as usize;
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        // from-to perms offset device inode path
        let mut fields = line.splitn(6, ' ');
        let range = fields.next().and_then(|range| range.split_once('-'));
        let Some((from, to)) = range else { continue };
        let address = |text| usize::from_str_radix(text, 16).unwrap_or(0);
        if (address(from)..address(to)).contains(&here)
            && let Some(path) = fields.nth(4)
        {
            return Ok(path.trim_start().into());
        }
    }
    Err(io::Error::other("libxensim.so is not in /proc/self/maps"))
}

/// Called by the dynamic loader before `main`.
#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static BECOME_HOST: extern "C" fn() = become_host;

/// In a process with `XENSIM_HOST`: serves, and exits. In any other: nothing.
#[cfg_attr(test, expect(dead_code, reason = "the test program is no host"))]
extern "C" fn become_host() {
    let Some(dir) = env::var_os(HOST) else { return };
    // SAFETY: no other thread exists before `main`, so the child may go on as any program.
    match unsafe { libc::fork() } {
        0 => {}
        // SAFETY: ends the process without running what its libraries left to be run at exit, which is the child's now.
        child => unsafe { libc::_exit(i32::from(child < 0)) },
    }
    let status = std::panic::catch_unwind(|| i32::from(settle_down(Path::new(&dir)).is_err()));
    // SAFETY: as above. The panic, if any, is in the log.
    unsafe { libc::_exit(status.unwrap_or(2)) }
}

fn settle_down(dir: &Path) -> io::Result<()> {
    // A session of its own: Ctrl-C is for the program that came first.
    setsid()?;
    // What the program left open across exec, a pipe to whoever waits for its output for example, is not the host's to
    // keep open.
    // SAFETY: the process has opened nothing yet but its standard descriptors: nobody owns one of those from 3 on.
    unsafe { libc::close_range(3, u32::MAX, 0) };
    let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)?;
    // Each end of a channel takes a dozen descriptors here: as many as the machine allows.
    let most = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: most.maximum, ..most })?;
    let served = listener.try_clone().and_then(|listener| host::serve(dir, listener, grant_limit()?));
    // Before the listener goes: who waits for an answer shall find the reason when the connection ends.
    if let Err(error) = &served {
        complain(&format!("the host of {} ends: {error}", dir.display()));
    }
    drop(listener);
    served
}

fn grant_limit() -> io::Result<u32> {
    let Some(text) = env::var_os(GRANT_LIMIT) else { return Ok(host::DEFAULT_GRANT_LIMIT) };
    let limit = text.to_str().and_then(|text| text.parse().ok());
    limit.ok_or_else(|| io::Error::other(format!("{GRANT_LIMIT} is {text:?}: it must be a number of pages")))
}

/// Says a line on stderr. There is nobody to tell if that fails.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "xensim: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_where_this_code_is() {
        assert_eq!(own_path().unwrap(), env::current_exe().unwrap());
    }

    #[test]
    fn a_host_answers_whatever_the_length_of_its_path() {
        let dir = env::temp_dir().join(format!("xensim-{}", std::process::id())).join("x".repeat(200));
        fs::create_dir_all(&dir).unwrap();
        let folder = open(&dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(dial(&folder).unwrap_err(), Errno::NOENT);
        let first = listener(&folder, &dir).unwrap();
        dial(&folder).unwrap();
        drop(first);
        assert_eq!(dial(&folder).unwrap_err(), Errno::CONNREFUSED, "the socket of a host that was killed");
        let _second = listener(&folder, &dir).unwrap();
        dial(&folder).unwrap();
        fs::remove_dir_all(dir.parent().unwrap()).unwrap();
    }
}
