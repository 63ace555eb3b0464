//! What a process and the host say to each other: one request, one reply, over a SEQPACKET socket.
//!
//! Every handle that a program opens is a connection of its own, as it is a file descriptor of its own in the kernel's
//! drivers: when the connection goes, for whatever reason, the host takes back what was done through it.

use rustix::cmsg_space;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::mem::MaybeUninit;

/// A domain's id: `domid_t` (xen/xen.h).
pub(crate) type Domid = u16;
/// A grant reference: `grant_ref_t` (xen/grant_table.h).
pub(crate) type Gref = u32;
/// A port of an event channel: `evtchn_port_t` (xen/event_channel.h).
pub(crate) type Port = u32;

/// The first domid that is no domain's: `DOMID_FIRST_RESERVED` (xen/xen.h).
pub(crate) const DOMID_FIRST_RESERVED: Domid = 0x7FF0;
/// Bytes of a page; the C libraries know no other size (`XC_PAGE_SIZE`).
pub(crate) const PAGE_SIZE: usize = 4096;
/// The longest payload of a xenstore request: `XENSTORE_PAYLOAD_MAX` (xen/io/xs_wire.h).
pub(crate) const STORE_PAYLOAD_MAX: usize = 4096;

/// References in one `Map` request: each may need a descriptor of its own, and the kernel passes 253 at most
/// (`SCM_MAX_FD`).
pub(crate) const MAX_REFS: usize = 250;
/// Longest message. Below the default send buffer of a Unix socket, so that one always fits.
const MAX_MESSAGE: usize = 128 * 1024;

/// What a handle is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// `/dev/xen/gntdev` and `/dev/xen/gntalloc`.
    Grants,
    /// `/dev/xen/evtchn`.
    Events,
    /// The connection to xenstored.
    Store,
}

/// What happens when a page is unmapped or no longer shared (`*_SET_UNMAP_NOTIFY`, xen/sys/gntdev.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notify {
    /// Offset in bytes of the byte to be zeroed.
    pub(crate) clear_byte: Option<u32>,
    /// Port, of the domain that asks, through which an event is sent.
    pub(crate) event: Option<Port>,
}

/// Names one use of a slot of the [`SlotTable`](crate::memory::SlotTable): the generation tells it from earlier uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotId {
    pub(crate) index: u32,
    /// From 1.
    pub(crate) generation: u32,
}

/// One entry of a node's permissions. In the first one `domid` is the owner and the rights are everybody's who is not
/// listed (`struct xs_permissions`, xenstore_lib.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Permission {
    pub(crate) domid: Domid,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// Consecutive pages of one memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Which of the descriptors that came with the reply.
    pub(crate) file: u32,
    pub(crate) page: u32,
    pub(crate) count: u32,
}

/// What a process asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// First request on a connection. `Done` for grants; for events with three descriptors (slot table, ports to read,
    /// ports to write); for the store with one (readable while a watch event waits).
    Open {
        domid: Domid,
        role: Role,
    },
    /// Last request: everything that the handle holds is given back before the reply.
    Close,

    /// Grants zeroed pages to a domain. `Shared`, with one descriptor: the memory.
    Share {
        grantee: Domid,
        count: u32,
        writable: bool,
        notify: Notify,
    },
    /// Maps granted pages. `Mapped`, with descriptors.
    Map {
        refs: Vec<(Domid, Gref)>,
        writable: bool,
        notify: Notify,
    },
    /// Undoes a `Share` or a `Map`.
    Release {
        id: u64,
    },

    /// `Bound`.
    BindUnbound {
        remote: Domid,
    },
    /// `Bound`.
    BindInterdomain {
        remote: Domid,
        port: Port,
    },
    /// `Bound`.
    BindVirq {
        virq: u32,
    },
    Unbind {
        port: Port,
    },
    /// Who hears when this port notifies. `Peer`, with one descriptor: the other side's ports to write.
    Peer {
        port: Port,
    },
    /// From now on this handle may bind ports with that domain alone.
    Restrict {
        domid: Domid,
    },

    /// `transaction` 0 is none.
    Store {
        transaction: u32,
        request: StoreRequest,
    },
}

/// What a process asks xenstore for (xen/io/xs_wire.h, docs/misc/xenstore.txt).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum StoreRequest {
    Read {
        path: String,
    },
    Write {
        path: String,
        value: Vec<u8>,
    },
    Mkdir {
        path: String,
    },
    Remove {
        path: String,
    },
    List {
        path: String,
    },
    Permissions {
        path: String,
    },
    SetPermissions {
        path: String,
        permissions: Vec<Permission>,
    },
    Begin,
    End {
        commit: bool,
    },
    Watch {
        path: String,
        token: Vec<u8>,
    },
    /// With `forget`, events of this watch that nobody fetched yet are dropped.
    Unwatch {
        path: String,
        token: Vec<u8>,
        forget: bool,
    },
    /// The next watch event. `Event`, or EAGAIN.
    NextEvent,
    Introduce {
        domid: Domid,
    },
    Release {
        domid: Domid,
    },
    Resume {
        domid: Domid,
    },
    SetTarget {
        domid: Domid,
        target: Domid,
    },
    IsIntroduced {
        domid: Domid,
    },
}

/// What the host answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    /// An errno.
    Failed(i32),
    /// The references are `first..first + count`.
    Shared {
        id: u64,
        first: Gref,
    },
    Mapped {
        id: u64,
        runs: Vec<Run>,
    },
    Bound {
        port: Port,
        slot: SlotId,
    },
    /// None: nobody is bound to the port. The number is that of the handle that has bound it.
    Peer(Option<(SlotId, Port, u64)>),
    Value(Vec<u8>),
    Names(Vec<String>),
    Permissions(Vec<Permission>),
    Transaction(u32),
    Event {
        path: String,
        token: Vec<u8>,
    },
    Truth(bool),
}

/// Room for the longest message.
pub(crate) fn buffer() -> Vec<u8> {
    vec![0; MAX_MESSAGE]
}

/// Sends a message with descriptors.
///
/// # Errors
/// `E2BIG` for a message that is too long to be sent at all; else those of sendmsg(2).
pub(crate) fn send(
    socket: impl AsFd,
    buffer: &mut [u8],
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let bytes = postcard::to_slice(message, buffer).map_err(|_| Errno::TOOBIG)?;
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_REFS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)).map(drop)
}

/// Receives a message and its descriptors, which are closed on exec. None: the other side has closed.
///
/// # Errors
/// `BADMSG` for bytes that are no message; else those of recvmsg(2).
pub(crate) fn receive<M: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<Option<(M, Vec<OwnedFd>)>, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_REFS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut *buffer)], &mut control, flags)
            .map(|message| message.bytes)
    })?;
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received == 0 {
        return Ok(None);
    }
    let bytes = buffer.get(..received).ok_or(Errno::BADMSG)?;
    let message = postcard::from_bytes(bytes).map_err(|_| Errno::BADMSG)?;
    Ok(Some((message, fds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_message_arrives_with_as_many_descriptors_as_a_map_needs() {
        let (a, b) = pair();
        let mut buffer = buffer();
        let request =
            Request::Map { refs: vec![(7, 9); MAX_REFS], writable: true, notify: Notify::default() };
        let fds = vec![a.as_fd(); MAX_REFS];
        send(&a, &mut buffer, &request, &fds).unwrap();
        let (received, fds) = receive::<Request>(&b, &mut buffer, RecvFlags::empty()).unwrap().unwrap();
        assert!(matches!(received, Request::Map { refs, writable: true, .. } if refs == [(7, 9); MAX_REFS]));
        assert_eq!(fds.len(), MAX_REFS);
    }

    #[test]
    fn the_longest_message_fits_into_the_socket_and_a_longer_one_is_refused() {
        let (a, b) = pair();
        let mut buffer = buffer();
        let value = vec![0xa5; MAX_MESSAGE - 16];
        send(&a, &mut buffer, &Reply::Value(value.clone()), &[]).unwrap();
        let (received, _) = receive::<Reply>(&b, &mut buffer, RecvFlags::empty()).unwrap().unwrap();
        assert!(matches!(received, Reply::Value(bytes) if bytes == value));
        let refused = send(&a, &mut buffer, &Reply::Value(vec![0; MAX_MESSAGE]), &[]);
        assert_eq!(refused, Err(Errno::TOOBIG));
    }

    #[test]
    fn a_closed_connection_and_garbage_are_told_apart() {
        let (a, b) = pair();
        let mut buffer = buffer();
        rustix::net::send(&a, &[0xff; 40], SendFlags::NOSIGNAL).unwrap();
        assert_eq!(receive::<Request>(&b, &mut buffer, RecvFlags::empty()).unwrap_err(), Errno::BADMSG);
        drop(a);
        assert!(receive::<Request>(&b, &mut buffer, RecvFlags::empty()).unwrap().is_none());
    }
}
