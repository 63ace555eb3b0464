//! A program that is called by a socket, as services of containers are, and has a stderr and an exit code all the same: the socket
//! speaks in qrexec's messages (`service-messages=true` of its settings, docs/calls.md).
//!
//! It gets `SERVICE+ARGUMENT SOURCE` and a NUL, as every service's socket does; then either end says hello, and there are
//! `MSG_DATA_STDIN` one way, `STDOUT`, `STDERR` and at last `EXIT_CODE` the other, version 4 as on a call's own vchan.

use crate::conversation::{ConversationError, Incoming, send};
use crate::policy::Service;
use crate::policy::service::MAX_SERVICE;
use crate::wire::{Channel, EXIT_NO_SERVICE, EXIT_PROBLEM, Message};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

/// The longest that stands before the first NUL: a service, a blank and `QUBE:CONTAINER`.
const MAX_DESCRIPTOR: usize = MAX_SERVICE + 1 + crate::name::MAX_NAME + 1;

/// What is wanted, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The service, with its argument.
    pub service: Service,
    /// `QUBE`, `QUBE:CONTAINER` or `dom0`.
    pub source: String,
}

/// Reads what the agent says before the caller is heard, and nothing beyond it.
///
/// # Errors
/// It hangs up, or that is no descriptor (`InvalidData`).
pub fn asked(socket: &UnixStream) -> io::Result<Asked> {
    let text = text_to_nul(socket, MAX_DESCRIPTOR)?;
    let (service, source) =
        text.split_once(' ').ok_or_else(|| invalid("a service without a source".to_owned()))?;
    let service = Service::parse(service).map_err(|error| invalid(error.to_string()))?;
    Ok(Asked { service, source: source.to_owned() })
}

/// Reads a text of at most so many bytes, the NUL behind it, and nothing beyond that.
pub(crate) fn text_to_nul(mut socket: &UnixStream, most: usize) -> io::Result<String> {
    let mut text = Vec::new();
    let mut chunk = [0; 512];
    loop {
        let (there, _) = recv(socket, &mut chunk, RecvFlags::PEEK)?;
        if there == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = chunk[..there].iter().position(|byte| *byte == 0);
        let taken = end.map_or(there, |end| end + 1);
        socket.read_exact(&mut chunk[..taken])?;
        text.extend_from_slice(&chunk[..taken - usize::from(end.is_some())]);
        if text.len() > most {
            return Err(invalid(format!("more than {most} bytes and no NUL")));
        }
        if end.is_some() {
            return String::from_utf8(text).map_err(|error| invalid(error.to_string()));
        }
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Runs a program for a caller, and tells how it ended. When the caller goes first, the program and what it started are killed.
///
/// There may be a thread left that waits for the caller or the program's stdin: the process is to end when this returns.
///
/// # Errors
/// The caller is gone, or breaks the protocol.
pub fn answer(socket: UnixStream, command: &mut Command) -> Result<i32, ConversationError> {
    let mut incoming = greet(&socket)?;
    let most = incoming.max_chunk();
    let saying = Arc::new(Mutex::new(socket));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let program = command.get_program().to_string_lossy().into_owned();
            let code = if error.kind() == io::ErrorKind::NotFound { EXIT_NO_SERVICE } else { EXIT_PROBLEM };
            return end(&saying, code, &format!("{program}: {error}"));
        }
    };
    let group = Arc::new(Mutex::new(Some(Pid::from_child(&child))));
    let (events, heard) = mpsc::channel();
    // Whoever finds the caller gone says so; what waits for the program's own end is not held up then by what the program started.
    let gone = {
        let (group, events) = (group.clone(), events.clone());
        move || {
            kill(&group);
            // It may be over already.
            let _ = events.send(Event::Gone);
        }
    };
    thread::spawn({
        let (gone, socket) = (gone.clone(), locked(&saying).try_clone()?);
        move || {
            watch(&socket);
            gone();
        }
    });
    let stdin = child.stdin.take();
    thread::spawn({
        let gone = gone.clone();
        move || {
            hear(&mut incoming, stdin);
            gone();
        }
    });
    let says = |from: Option<Box<dyn Read + Send>>, kind: fn(&[u8]) -> Message<'_>| {
        let (saying, gone, events) = (saying.clone(), gone.clone(), events.clone());
        thread::spawn(move || match from.map(|from| say(from, kind, most, &saying)) {
            Some(Err(_)) => gone(),
            _ => _ = events.send(Event::SaidAll),
        });
    };
    says(child.stdout.take().map(|pipe| Box::new(pipe) as _), |data| Message::Stdout(data));
    says(child.stderr.take().map(|pipe| Box::new(pipe) as _), |data| Message::Stderr(data));
    for _ in 0..2 {
        if heard.recv() != Ok(Event::SaidAll) {
            child.wait()?;
            return Err(ConversationError::HungUp);
        }
    }
    // Its id is its own until it was waited for.
    waitid(WaitId::Pid(Pid::from_child(&child)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        .map_err(io::Error::from)?;
    locked(&group).take();
    let status = child.wait()?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(EXIT_PROBLEM.into());
    send(&mut *locked(&saying), &Message::ExitCode(code))?;
    Ok(code)
}

/// What the threads of a call tell.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// stdout or stderr has ended.
    SaidAll,
    /// The caller is gone.
    Gone,
}

/// Answers without a program: why, for the caller's stderr, and an exit code.
///
/// # Errors
/// As those of [`answer`].
pub fn refuse(socket: UnixStream, code: u8, why: &str) -> Result<i32, ConversationError> {
    greet(&socket)?;
    end(&Mutex::new(socket), code, why)
}

fn greet(socket: &UnixStream) -> Result<Incoming, ConversationError> {
    send(&mut &*socket, &Message::Hello(Channel::ToCaller.version().number()))?;
    let mut incoming = Incoming::new(socket.try_clone()?, Channel::ToService);
    incoming.next(|_| ())?;
    Ok(incoming)
}

fn end(saying: &Mutex<UnixStream>, code: u8, why: &str) -> Result<i32, ConversationError> {
    let mut socket = locked(saying);
    send(&mut *socket, &Message::Stdout(&[]))?;
    send(&mut *socket, &Message::Stderr(format!("{why}\n").as_bytes()))?;
    send(&mut *socket, &Message::Stderr(&[]))?;
    send(&mut *socket, &Message::ExitCode(code.into()))?;
    Ok(code.into())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn kill(group: &Mutex<Option<Pid>>) {
    if let Some(group) = *locked(group) {
        // It may have ended by itself just now.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Waits until the caller is gone: also while nobody reads from it.
fn watch(socket: &UnixStream) {
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::empty())];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

/// Hands on what the caller says, until it is gone. A program that does not listen is not told, and the caller not held up.
fn hear(incoming: &mut Incoming, mut stdin: Option<ChildStdin>) {
    loop {
        let heard = incoming.next(|message| {
            let Message::Stdin(data) = message else { return };
            let closed = data.is_empty() || stdin.as_mut().is_some_and(|pipe| pipe.write_all(data).is_err());
            if closed {
                stdin = None;
            }
        });
        if heard.is_err() {
            return;
        }
    }
}

fn say(
    mut from: Box<dyn Read + Send>,
    kind: fn(&[u8]) -> Message<'_>,
    most: usize,
    to: &Mutex<UnixStream>,
) -> Result<(), ConversationError> {
    let mut buffer = vec![0; most];
    loop {
        let read = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A pipe that fails has no more to say.
            read => read.unwrap_or(0),
        };
        send(&mut *locked(to), &kind(&buffer[..read]))?;
        if read == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a caller hears of a program: stdout, stderr, exit code.
    fn called(script: &str, input: &[u8]) -> (Vec<u8>, Vec<u8>, i32) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let script = script.to_owned();
        let answering =
            thread::spawn(move || answer(theirs, Command::new("sh").args(["-c", &script])).unwrap());
        let mut incoming = Incoming::new(ours.try_clone().unwrap(), Channel::ToCaller);
        send(&mut ours, &Message::Hello(4)).unwrap();
        incoming.next(|_| ()).unwrap();
        send(&mut ours, &Message::Stdin(input)).unwrap();
        if !input.is_empty() {
            send(&mut ours, &Message::Stdin(&[])).unwrap();
        }
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            let exit = incoming.next(|message| match message {
                Message::Stdout(data) => {
                    out.extend_from_slice(data);
                    None
                }
                Message::Stderr(data) => {
                    err.extend_from_slice(data);
                    None
                }
                Message::ExitCode(code) => Some(code),
                other => panic!("{other:?}"),
            });
            if let Some(code) = exit.unwrap() {
                assert_eq!(answering.join().unwrap(), code);
                return (out, err, code);
            }
        }
    }

    #[test]
    fn a_program_has_its_streams_and_its_exit_code() {
        assert_eq!(called("cat; echo bad >&2; exit 3", b"in"), (b"in".to_vec(), b"bad\n".to_vec(), 3));
        assert_eq!(called("kill -TERM $$", b"").2, 128 + 15);
        // It ends without having read what it was told.
        assert_eq!(called("exit 0", &[7; 60_000]), (vec![], vec![], 0));
        let many = called("head -c 300000 /dev/zero", b"");
        assert_eq!((many.0.len(), many.2), (300_000, 0));
    }

    #[test]
    fn what_was_started_dies_with_the_caller() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("pid");
        for reads in [true, false] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            // What it starts leaves its group, and has its stdout.
            let script = format!(
                "setsid sleep 60 & echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000",
                mark.display()
            );
            let answering = thread::spawn(move || answer(theirs, Command::new("sh").args(["-c", &script])));
            send(&mut ours, &Message::Hello(4)).unwrap();
            if !reads {
                // More than a pipe holds: whoever hands it on waits.
                send(&mut ours, &Message::Stdin(&[0; 65_536])).unwrap();
                send(&mut ours, &Message::Stdin(&[0; 65_536])).unwrap();
            }
            while !mark.exists() {
                thread::yield_now();
            }
            drop(ours);
            assert!(answering.join().unwrap().is_err(), "there is nobody to tell");
            std::fs::remove_file(&mark).unwrap();
        }
    }

    #[test]
    fn what_is_asked_is_read_to_its_nul_and_no_further() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"q.A+b work:mail\0rest").unwrap();
        let found = asked(&theirs).unwrap();
        assert_eq!((found.service.to_string().as_str(), found.source.as_str()), ("q.A+b", "work:mail"));
        let mut rest = [0; 4];
        (&theirs).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"rest");
        for wrong in [&b"q.A+b\0"[..], b"../a work\0", b"\xff work\0"] {
            ours.write_all(wrong).unwrap();
            assert_eq!(asked(&theirs).unwrap_err().kind(), io::ErrorKind::InvalidData, "{wrong:?}");
        }
        let writer = thread::spawn(move || ours.write_all(&vec![b'a'; MAX_DESCRIPTOR + 600]));
        assert_eq!(asked(&theirs).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(theirs);
        writer.join().unwrap().ok();
    }

    #[test]
    fn a_program_that_is_not_there_is_told_of() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let answering = thread::spawn(move || answer(theirs, &mut Command::new("/nonexistent/program")));
        send(&mut ours, &Message::Hello(4)).unwrap();
        assert_eq!(answering.join().unwrap().unwrap(), i32::from(EXIT_NO_SERVICE));
    }
}
