//! Event channels: `xenevtchn_*`.

use super::link::Link;
use crate::memory::SlotTable;
use crate::wire::{Domid, Port, Reply, Request, Role, SlotId};
use parking_lot::{Mutex, RwLock};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, FdFlags, fcntl_setfd, read, retry_on_intr, write};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// A port that the handle has bound.
#[derive(Debug)]
struct Local {
    slot: SlotId,
    /// Who the peer was when we last asked.
    peer: Option<Peer>,
}

#[derive(Debug)]
struct Peer {
    slot: SlotId,
    port: Port,
    /// The pipe of the handle that has bound it.
    ports: Arc<OwnedFd>,
}

/// An open `/dev/xen/evtchn`.
///
/// Notifying and unmasking take a read lock of this process, an atomic operation in shared memory, and, if the peer has to
/// be woken, one write(2). The host is asked when a port is bound or closed, and once for each new peer.
#[derive(Debug)]
pub(crate) struct EventHandle {
    link: Link,
    slots: SlotTable,
    /// Where this handle's ports arrive.
    arrivals: OwnedFd,
    /// The other end of that.
    own: OwnedFd,
    /// Written while a port is being bound, so that nobody can unmask a port whose slot is not known yet.
    bound: RwLock<HashMap<Port, Local>>,
    /// The pipes of the handles that our ports' peers are bound by: one descriptor each, however many ports.
    pipes: Mutex<HashMap<u64, Weak<OwnedFd>>>,
}

fn deliver(ports: impl AsFd, port: Port) -> Result<(), Errno> {
    retry_on_intr(|| write(&ports, &port.to_ne_bytes())).map(drop)
}

impl EventHandle {
    /// With `inherited`, the descriptor stays open across exec.
    pub(crate) fn open(inherited: bool) -> Result<Self, Errno> {
        let (link, fds) = Link::open(Role::Events)?;
        let [slots, arrivals, own] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| Errno::PROTO)?;
        if inherited {
            fcntl_setfd(&arrivals, FdFlags::empty())?;
        }
        let slots = SlotTable::map(slots)?;
        Ok(Self { link, slots, arrivals, own, bound: RwLock::new(HashMap::new()), pipes: Mutex::default() })
    }

    fn bind(&self, request: &Request) -> Result<Port, Errno> {
        let mut bound = self.bound.write();
        let (Reply::Bound { port, slot }, _) = self.link.ask(request)? else { return Err(Errno::PROTO) };
        bound.insert(port, Local { slot, peer: None });
        Ok(port)
    }

    pub(crate) fn bind_unbound(&self, remote: Domid) -> Result<Port, Errno> {
        self.bind(&Request::BindUnbound { remote })
    }

    pub(crate) fn bind_interdomain(&self, remote: Domid, port: Port) -> Result<Port, Errno> {
        self.bind(&Request::BindInterdomain { remote, port })
    }

    pub(crate) fn bind_virq(&self, virq: u32) -> Result<Port, Errno> {
        self.bind(&Request::BindVirq { virq })
    }

    pub(crate) fn unbind(&self, port: Port) -> Result<(), Errno> {
        let mut bound = self.bound.write();
        self.link.tell(&Request::Unbind { port })?;
        bound.remove(&port);
        Ok(())
    }

    pub(crate) fn restrict(&self, domid: Domid) -> Result<(), Errno> {
        self.link.tell(&Request::Restrict { domid })
    }

    /// Sends an event through a port. While nobody is bound to the other end it is lost, as in Xen.
    ///
    /// # Errors
    /// `NOTCONN`: this handle has not bound the port.
    pub(crate) fn notify(&self, port: Port) -> Result<(), Errno> {
        {
            let bound = self.bound.read();
            let local = bound.get(&port).ok_or(Errno::NOTCONN)?;
            let Some(peer) = self.slots.slot(local.slot.index).and_then(|slot| slot.peer()) else {
                return Ok(());
            };
            if let Some(known) = local.peer.as_ref().filter(|known| known.slot == peer) {
                return self.raise(known);
            }
        }
        // A new peer: the first event to it.
        let mut bound = self.bound.write();
        let local = bound.get_mut(&port).ok_or(Errno::NOTCONN)?;
        let (Reply::Peer(peer), fds) = self.link.ask(&Request::Peer { port })? else {
            return Err(Errno::PROTO);
        };
        local.peer = peer.zip(fds.into_iter().next()).map(|((slot, port, handle), ports)| {
            let mut pipes = self.pipes.lock();
            let known = pipes.get(&handle).and_then(Weak::upgrade);
            let ports = known.unwrap_or_else(|| {
                pipes.retain(|_, pipe| pipe.strong_count() > 0);
                let pipe = Arc::new(ports);
                pipes.insert(handle, Arc::downgrade(&pipe));
                pipe
            });
            Peer { slot, port, ports }
        });
        local.peer.as_ref().map_or(Ok(()), |peer| self.raise(peer))
    }

    fn raise(&self, peer: &Peer) -> Result<(), Errno> {
        let slot = self.slots.slot(peer.slot.index).ok_or(Errno::PROTO)?;
        if slot.raise(peer.slot.generation) { deliver(&peer.ports, peer.port) } else { Ok(()) }
    }

    /// Waits for an event, and returns its port, which is masked from then on.
    ///
    /// # Errors
    /// Those of read(2): `INTR`; `AGAIN` if the descriptor was made not to block.
    pub(crate) fn pending(&self) -> Result<Port, Errno> {
        let mut port = [0; 4];
        match read(&self.arrivals, &mut port)? {
            4 => Ok(Port::from_ne_bytes(port)),
            _ => Err(Errno::NODEV),
        }
    }

    /// Makes a port ready for the next event. One that this handle has not bound is ignored, as by the kernel.
    pub(crate) fn unmask(&self, port: Port) -> Result<(), Errno> {
        let bound = self.bound.read();
        let Some(local) = bound.get(&port) else { return Ok(()) };
        let slot = self.slots.slot(local.slot.index).ok_or(Errno::PROTO)?;
        if slot.unmask(local.slot.generation) { deliver(&self.own, port) } else { Ok(()) }
    }
}

impl AsFd for EventHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.arrivals.as_fd()
    }
}
