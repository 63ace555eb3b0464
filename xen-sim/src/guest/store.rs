//! Xenstore: `xs_*`.

use super::link::Link;
use crate::wire::{Domid, Permission, Reply, Request, Role, STORE_PAYLOAD_MAX, StoreRequest};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, retry_on_intr};

/// An open connection to xenstored.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    link: Link,
    /// Readable while a watch event waits.
    readable: OwnedFd,
    /// `XS_UNWATCH_FILTER`.
    forget_unwatched: bool,
}

/// A transaction's id: `xs_transaction_t`. 0 is none.
pub(crate) type Transaction = u32;

/// Every request has to fit into one of xenstore's messages, its strings with their NULs.
fn fits(bytes: usize) -> Result<(), Errno> {
    if bytes > STORE_PAYLOAD_MAX { Err(Errno::TOOBIG) } else { Ok(()) }
}

/// A path as the host takes it. Bytes that are no UTF-8 are no valid path either.
fn text(path: &[u8]) -> Result<String, Errno> {
    fits(path.len() + 1)?;
    std::str::from_utf8(path).map(str::to_owned).map_err(|_| Errno::INVAL)
}

impl StoreHandle {
    pub(crate) fn open(forget_unwatched: bool) -> Result<Self, Errno> {
        let (link, fds) = Link::open(Role::Store)?;
        let readable = fds.into_iter().next().ok_or(Errno::PROTO)?;
        Ok(Self { link, readable, forget_unwatched })
    }

    fn ask(&self, transaction: Transaction, request: StoreRequest) -> Result<Reply, Errno> {
        self.link.ask(&Request::Store { transaction, request }).map(|(reply, _)| reply)
    }

    fn tell(&self, transaction: Transaction, request: StoreRequest) -> Result<(), Errno> {
        match self.ask(transaction, request)? {
            Reply::Done => Ok(()),
            _ => Err(Errno::PROTO),
        }
    }

    pub(crate) fn read(&self, t: Transaction, path: &[u8]) -> Result<Vec<u8>, Errno> {
        match self.ask(t, StoreRequest::Read { path: text(path)? })? {
            Reply::Value(value) => Ok(value),
            _ => Err(Errno::PROTO),
        }
    }

    pub(crate) fn write(&self, t: Transaction, path: &[u8], value: &[u8]) -> Result<(), Errno> {
        fits(path.len() + 1 + value.len())?;
        self.tell(t, StoreRequest::Write { path: text(path)?, value: value.to_vec() })
    }

    pub(crate) fn mkdir(&self, t: Transaction, path: &[u8]) -> Result<(), Errno> {
        self.tell(t, StoreRequest::Mkdir { path: text(path)? })
    }

    pub(crate) fn remove(&self, t: Transaction, path: &[u8]) -> Result<(), Errno> {
        self.tell(t, StoreRequest::Remove { path: text(path)? })
    }

    pub(crate) fn list(&self, t: Transaction, path: &[u8]) -> Result<Vec<String>, Errno> {
        match self.ask(t, StoreRequest::List { path: text(path)? })? {
            Reply::Names(names) => Ok(names),
            _ => Err(Errno::PROTO),
        }
    }

    pub(crate) fn permissions(&self, t: Transaction, path: &[u8]) -> Result<Vec<Permission>, Errno> {
        match self.ask(t, StoreRequest::Permissions { path: text(path)? })? {
            Reply::Permissions(permissions) => Ok(permissions),
            _ => Err(Errno::PROTO),
        }
    }

    pub(crate) fn set_permissions(
        &self,
        t: Transaction,
        path: &[u8],
        permissions: Vec<Permission>,
    ) -> Result<(), Errno> {
        self.tell(t, StoreRequest::SetPermissions { path: text(path)?, permissions })
    }

    pub(crate) fn begin(&self) -> Result<Transaction, Errno> {
        match self.ask(0, StoreRequest::Begin)? {
            Reply::Transaction(id) => Ok(id),
            _ => Err(Errno::PROTO),
        }
    }

    pub(crate) fn end(&self, t: Transaction, commit: bool) -> Result<(), Errno> {
        self.tell(t, StoreRequest::End { commit })
    }

    pub(crate) fn watch(&self, path: &[u8], token: &[u8]) -> Result<(), Errno> {
        fits(path.len() + token.len() + 2)?;
        self.tell(0, StoreRequest::Watch { path: text(path)?, token: token.to_vec() })
    }

    pub(crate) fn unwatch(&self, path: &[u8], token: &[u8]) -> Result<(), Errno> {
        let forget = self.forget_unwatched;
        self.tell(0, StoreRequest::Unwatch { path: text(path)?, token: token.to_vec(), forget })
    }

    /// The path and the token of the next watch event.
    ///
    /// # Errors
    /// `AGAIN`: there is none.
    pub(crate) fn event(&self) -> Result<(String, Vec<u8>), Errno> {
        match self.ask(0, StoreRequest::NextEvent)? {
            Reply::Event { path, token } => Ok((path, token)),
            _ => Err(Errno::PROTO),
        }
    }

    /// As `event`, waiting for one.
    pub(crate) fn wait_event(&self) -> Result<(String, Vec<u8>), Errno> {
        loop {
            match self.event() {
                Err(Errno::AGAIN) => {
                    // The connection is there to be told of the host's end.
                    let mut fds = [
                        PollFd::new(&self.readable, PollFlags::IN),
                        PollFd::new(&self.link, PollFlags::RDHUP),
                    ];
                    retry_on_intr(|| poll(&mut fds, None))?;
                }
                result => return result,
            }
        }
    }

    pub(crate) fn introduce(&self, domid: Domid) -> Result<(), Errno> {
        self.tell(0, StoreRequest::Introduce { domid })
    }

    pub(crate) fn release(&self, domid: Domid) -> Result<(), Errno> {
        self.tell(0, StoreRequest::Release { domid })
    }

    pub(crate) fn resume(&self, domid: Domid) -> Result<(), Errno> {
        self.tell(0, StoreRequest::Resume { domid })
    }

    pub(crate) fn set_target(&self, domid: Domid, target: Domid) -> Result<(), Errno> {
        self.tell(0, StoreRequest::SetTarget { domid, target })
    }

    pub(crate) fn is_introduced(&self, domid: Domid) -> Result<bool, Errno> {
        match self.ask(0, StoreRequest::IsIntroduced { domid })? {
            Reply::Truth(truth) => Ok(truth),
            _ => Err(Errno::PROTO),
        }
    }
}

impl AsFd for StoreHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }
}
