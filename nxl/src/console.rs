//! `nxl console`: this terminal, joined to the pseudo-terminal on which xenconsoled offers a qube's console.

use crate::error::Error;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use toolstack::qubes::Qubes;

/// What ends the connection: Ctrl-].
const ESCAPE: u8 = 0x1d;
/// How long xenconsoled may take for a qube that was just made.
const TTY_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) fn attach(qubes: &Qubes, which: &str) -> Result<(), Error> {
    let qube = qubes.find(which)?;
    let tty =
        qubes.wait_for_console(&qube, TTY_TIMEOUT)?.ok_or(Error::NoConsole { domid: qube.info.domid })?;
    join(&tty).map_err(|source| Error::Console { tty, source })
}

/// The terminal's settings, put back when this goes.
struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Raw<'a> {
    fn new(terminal: BorrowedFd<'a>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Flush, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // A terminal that is gone has no settings to put back.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// Carries bytes both ways until Ctrl-], until the qube is gone, or until there is no more input and the console is
/// silent.
fn join(tty: &str) -> io::Result<()> {
    let console = rustix::fs::open(tty, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    // Our side of the pair: without this it would echo what the guest prints back to the guest.
    let mut settings = tcgetattr(&console)?;
    settings.make_raw();
    tcsetattr(&console, OptionalActions::Now, &settings)?;
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let (stdin, stdout) = (stdin.as_fd(), stdout.as_fd());
    let _raw = if isatty(stdin) { Some(Raw::new(stdin)?) } else { None };

    let mut buffer = [0; 4_096];
    let mut input = true;
    loop {
        let mut fds = [PollFd::new(&console, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
        let watched = if input { &mut fds[..] } else { &mut fds[..1] };
        match poll(watched, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let (from_qube, from_us) =
            (fds[0].revents(), if input { fds[1].revents() } else { PollFlags::empty() });
        if !from_qube.is_empty() {
            match rustix::io::read(&console, &mut buffer) {
                // xenconsoled closed its end: the qube is gone.
                Ok(0) | Err(Errno::IO) => return Ok(()),
                Ok(len) => write_all(stdout, &buffer[..len])?,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if !from_us.is_empty() {
            match rustix::io::read(stdin, &mut buffer) {
                Ok(0) => input = false,
                Ok(len) => {
                    let part = buffer[..len].iter().position(|byte| *byte == ESCAPE);
                    write_all(console.as_fd(), &buffer[..part.unwrap_or(len)])?;
                    if part.is_some() {
                        return Ok(());
                    }
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_terminal_is_an_error() {
        assert_eq!(join("/nonexistent/tty").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
