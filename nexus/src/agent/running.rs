//! A service at work: its bytes there and back, and its end.

use super::RpcConfig;
use crate::conversation::{Incoming, send};
use crate::policy::Call;
use crate::wire::{EXIT_PROBLEM, Message};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::net::SendFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// How a call ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) exit: i32,
    /// Why, if it was not the service's own end.
    pub(super) reason: Option<String>,
    pub(super) to_service: u64,
    pub(super) to_caller: u64,
}

impl Ended {
    pub(super) fn early(exit: u8, reason: String) -> Self {
        Self { exit: exit.into(), reason: Some(reason), ..Self::default() }
    }
}

/// The socket to the caller, for the threads that write to it.
struct ToCaller<'s>(Mutex<&'s UnixStream>);

impl ToCaller<'_> {
    fn send(&self, message: &Message<'_>) -> bool {
        let socket: MutexGuard<'_, &UnixStream> = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        send(&mut &**socket, message).is_ok()
    }

    /// Everything there is to read, and its end. How many bytes that were; it ends early when the caller is gone.
    fn forward(&self, mut from: impl Read, chunk: usize, wrap: impl Fn(&[u8]) -> Message<'_>) -> u64 {
        let (mut buffer, mut bytes) = (vec![0; chunk], 0);
        loop {
            match from.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A service that resets its socket has no more to say.
                Ok(0) | Err(_) => {
                    self.send(&wrap(&[]));
                    return bytes;
                }
                Ok(read) if self.send(&wrap(&buffer[..read])) => bytes += read as u64,
                Ok(_) => return bytes,
            }
        }
    }
}

/// How the caller's side ended.
#[derive(PartialEq, Eq)]
enum CallerEnd {
    /// It has no more to say.
    Eof,
    /// It is gone, or breaks the protocol.
    Gone,
}

/// What became of some bytes.
enum Handed {
    On,
    /// The service does not read any more.
    Deaf,
    /// The caller is gone.
    Gone,
}

/// Where a service reads. Its writes do not wait.
trait Ear: AsFd {
    fn write(&mut self, data: &[u8]) -> io::Result<usize>;
}

impl Ear for UnixStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // Of this call alone: whoever reads from it may wait.
        Ok(rustix::net::send(self, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }
}

/// A pipe that was made not to wait ([`not_waiting`]).
impl Ear for ChildStdin {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        Write::write(self, data)
    }
}

/// The end of a pipe that is ours alone: the program's is not changed.
fn not_waiting(pipe: &ChildStdin) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(pipe)?;
    Ok(rustix::fs::fcntl_setfl(pipe, flags | OFlags::NONBLOCK)?)
}

/// Writes to a service that may read slowly or never, without missing that the caller goes.
fn hand_on(mut data: &[u8], caller: &UnixStream, service: &mut impl Ear) -> Handed {
    while !data.is_empty() {
        match service.write(data) {
            Ok(written) => data = &data[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds =
                    [PollFd::new(caller, PollFlags::empty()), PollFd::new(&*service, PollFlags::OUT)];
                match poll(&mut fds, None) {
                    Ok(_) if !fds[0].revents().is_empty() => return Handed::Gone,
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return Handed::Deaf,
                }
            }
            Err(_) => return Handed::Deaf,
        }
    }
    Handed::On
}

/// Hands on what the caller says, until it says no more. A service that does not listen is not told, and the caller not
/// held up.
fn receive(incoming: &mut Incoming, caller: &UnixStream, service: &mut impl Ear) -> (CallerEnd, u64) {
    let (mut bytes, mut listens) = (0, true);
    loop {
        let more = incoming.next(|message| match message {
            Message::Stdin([]) => Some(false),
            Message::Stdin(data) => {
                bytes += data.len() as u64;
                match if listens { hand_on(data, caller, service) } else { Handed::Deaf } {
                    Handed::On => Some(true),
                    Handed::Deaf => {
                        listens = false;
                        Some(true)
                    }
                    Handed::Gone => None,
                }
            }
            // A second request.
            _ => None,
        });
        match more {
            Ok(Some(true)) => {}
            Ok(Some(false)) => return (CallerEnd::Eof, bytes),
            Ok(None) | Err(_) => return (CallerEnd::Gone, bytes),
        }
    }
}

/// A program in a process group of its own, until it is reaped.
struct Running {
    group: Pid,
    ended: Mutex<bool>,
}

impl Running {
    /// Kills it and what it started. Its id is its own for as long as it is not reaped.
    fn kill(&self) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if !*ended {
            // It may have ended by itself just now.
            let _ = kill_process_group(self.group, Signal::KILL);
        }
    }

    fn reap(&self, child: &mut Child) -> io::Result<ExitStatus> {
        loop {
            match waitid(WaitId::Pid(self.group), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        child.wait()
    }
}

/// Runs a program with the caller as its stdin, stdout and stderr.
pub(super) fn program(path: &Path, call: &Call, incoming: &mut Incoming, socket: &UnixStream) -> Ended {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"QREXEC") {
            command.env_remove(name);
        }
    }
    if !call.service.argument().is_empty() {
        command.arg(call.service.argument());
    }
    command
        .env("QREXEC_REMOTE_DOMAIN", call.source.to_string())
        .env("QREXEC_SERVICE_FULL_NAME", call.service.to_string())
        .env("QREXEC_SERVICE_ARGUMENT", call.service.argument())
        .env("QREXEC_REQUESTED_TARGET_TYPE", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Ended::early(EXIT_PROBLEM, format!("{}: {error}", path.display())),
    };
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) else {
        return Ended::early(EXIT_PROBLEM, "a process without an id".to_owned());
    };
    let running = Running { group, ended: Mutex::new(false) };
    let caller = ToCaller(Mutex::new(socket));
    let chunk = incoming.max_chunk();
    let mut ended = Ended::default();
    thread::scope(|scope| {
        let to_service = scope.spawn(|| {
            let Some(mut stdin) = stdin else { return 0 };
            if not_waiting(&stdin).is_err() {
                // It has no reason to fail; and if it does, the program has no stdin.
                return 0;
            }
            let (end, bytes) = receive(incoming, socket, &mut stdin);
            drop(stdin);
            if end == CallerEnd::Eof {
                // What comes now is that the caller goes.
                let _ = incoming.next(|_| ());
            }
            running.kill();
            bytes
        });
        let errors = scope
            .spawn(|| stderr.map_or(0, |from| caller.forward(from, chunk, |data| Message::Stderr(data))));
        let output = stdout.map_or(0, |from| caller.forward(from, chunk, |data| Message::Stdout(data)));
        ended.to_caller = output + errors.join().unwrap_or(0);
        match running.reap(&mut child) {
            Ok(status) => {
                let signal = status.signal().map(|signal| 128 + signal);
                ended.exit = status.code().or(signal).unwrap_or(EXIT_PROBLEM.into());
            }
            Err(error) => {
                ended.exit = EXIT_PROBLEM.into();
                ended.reason = Some(error.to_string());
            }
        }
        // The caller has nobody to talk to any more.
        let _ = socket.shutdown(Shutdown::Read);
        ended.to_service = to_service.join().unwrap_or(0);
    });
    ended
}

/// Joins the caller with a socket.
pub(super) fn socket(
    mut service: UnixStream,
    config: &RpcConfig,
    call: &Call,
    incoming: &mut Incoming,
    socket: &UnixStream,
) -> Ended {
    let problem = |error: io::Error| Ended::early(EXIT_PROBLEM, error.to_string());
    if !config.skip_service_descriptor {
        // SERVICE+ARGUMENT SOURCE, as a program would find them in its environment.
        let descriptor = format!("{} {}\0", call.service, call.source);
        if let Err(error) = service.write_all(descriptor.as_bytes()) {
            return problem(error);
        }
    }
    let mut writing = match service.try_clone() {
        Ok(writing) => writing,
        Err(error) => return problem(error),
    };
    let caller = ToCaller(Mutex::new(socket));
    let chunk = incoming.max_chunk();
    let (caller_done, service_done) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut ended = Ended::default();
    thread::scope(|scope| {
        let to_service = scope.spawn(|| {
            let (end, bytes) = receive(incoming, socket, &mut writing);
            let both = end == CallerEnd::Gone || config.exit_on_client_eof;
            let how = if both { Shutdown::Both } else { Shutdown::Write };
            // The service may have closed it first.
            let _ = writing.shutdown(how);
            caller_done.store(true, Ordering::SeqCst);
            if end == CallerEnd::Eof && !service_done.load(Ordering::SeqCst) {
                let _ = incoming.next(|_| ());
                let _ = writing.shutdown(Shutdown::Both);
            }
            bytes
        });
        ended.to_caller = caller.forward(&service, chunk, |data| Message::Stdout(data));
        // A service that says no more may still listen. Of the two threads, the later one sees that the other is done.
        service_done.store(true, Ordering::SeqCst);
        if config.exit_on_service_eof || caller_done.load(Ordering::SeqCst) {
            let _ = socket.shutdown(Shutdown::Read);
        }
        ended.to_service = to_service.join().unwrap_or(0);
    });
    ended
}
