//! A handle's connection to the host.

use crate::start::{Door, Place, complain};
use crate::wire::{self, Reply, Request, Role};
use parking_lot::Mutex;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{Pid, getpid};

/// One handle's connection, closed with everything that was done through it on drop.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    /// The buffer for one request and its reply: whoever has it has the connection.
    turn: Mutex<Vec<u8>>,
    /// The process that opened it. A forked child inherits the descriptor, not the handle.
    opener: Pid,
}

impl Link {
    /// Opens a handle in the place that the environment names, and returns the descriptors that come with it.
    ///
    /// # Errors
    /// `INVAL` for a missing or wrong environment, `NODEV` when there is no host and none can be started; the reason is
    /// on stderr.
    pub(super) fn open(role: Role) -> Result<(Self, Vec<OwnedFd>), Errno> {
        let place = Place::from_environment().map_err(|line| {
            complain(&line);
            Errno::INVAL
        })?;
        // Nearly always the host is there. If it is just leaving, the connection ends, and the next one is made under
        // the folder's lock.
        if let Ok(door) = Door::knock(&place.dir)
            && let Ok(opened) = Self::enter(door, &place, role)
        {
            return Ok(opened);
        }
        Door::open(&place.dir)
            .map_err(|error| error.to_string())
            .and_then(|door| {
                Self::enter(door, &place, role)
                    .map_err(|error| format!("it does not answer ({error}), see host.log there"))
            })
            .map_err(|error| {
                complain(&format!("no host in {}: {error}", place.dir.display()));
                Errno::NODEV
            })
    }

    fn enter(door: Door, place: &Place, role: Role) -> Result<(Self, Vec<OwnedFd>), Errno> {
        let mut buffer = wire::buffer();
        wire::send(&door, &mut buffer, &Request::Open { domid: place.domid, role }, &[])?;
        match wire::receive(&door, &mut buffer, RecvFlags::empty())? {
            Some((Reply::Done, fds)) => {
                let link = Self { socket: door.into_socket(), turn: Mutex::new(buffer), opener: getpid() };
                Ok((link, fds))
            }
            Some((Reply::Failed(error), _)) => Err(Errno::from_raw_os_error(error)),
            Some(_) => Err(Errno::PROTO),
            None => Err(Errno::CONNRESET),
        }
    }

    /// Asks the host.
    ///
    /// # Errors
    /// What the host says; `NODEV` when it is gone; `CHILD` in a forked child.
    pub(super) fn ask(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), Errno> {
        if !self.is_ours() {
            return Err(Errno::CHILD);
        }
        let mut buffer = self.turn.lock();
        let gone = |error| if error == Errno::TOOBIG { error } else { Errno::NODEV };
        wire::send(&self.socket, &mut buffer, request, &[]).map_err(gone)?;
        match wire::receive(&self.socket, &mut buffer, RecvFlags::empty()).map_err(gone)? {
            Some((Reply::Failed(error), _)) => Err(Errno::from_raw_os_error(error)),
            Some(answer) => Ok(answer),
            None => Err(Errno::NODEV),
        }
    }

    /// Asks for something to be done.
    pub(super) fn tell(&self, request: &Request) -> Result<(), Errno> {
        match self.ask(request)? {
            (Reply::Done, _) => Ok(()),
            _ => Err(Errno::PROTO),
        }
    }

    /// Whether this process opened the handle.
    pub(super) fn is_ours(&self) -> bool {
        getpid() == self.opener
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Waits for the host: what comes after a close finds everything given back. In a forked child, and when the host
        // is gone, it is just the descriptor.
        let _ = self.tell(&Request::Close);
    }
}
