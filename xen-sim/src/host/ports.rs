//! Event channels: which port is bound to which, and whose pipe a notification goes to.
//!
//! The rules are Xen's (xen/common/event_channel.c) and Linux' (drivers/xen/evtchn.c). The notifications themselves do
//! not pass through here: processes raise each other's [slots](crate::slot).

use super::ConnectionId;
use crate::memory::{SLOTS, SlotTable};
use crate::wire::{Domid, Port, SlotId};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, write};
use rustix::pipe::{PipeFlags, pipe_with};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::rc::Rc;

/// A port and whose it is.
pub(super) type PortKey = (Domid, Port);

/// Ports a domain may have: `max_event_channels` of a guest's configuration (docs/man/xl.cfg.5).
const PORTS_PER_DOMAIN: usize = 1023;
/// Virtual interrupts: `NR_VIRQS` (xen/xen.h).
const NR_VIRQS: u32 = 24;

/// The pipe that carries port numbers, 4 bytes each in native order, to the handle that bound them.
///
/// A port is in it once until it is unmasked, so the pipe never fills.
#[derive(Debug)]
pub(super) struct Bell {
    /// What the handle reads.
    reader: OwnedFd,
    /// What notifiers write. Open for reading too: the write of a notifier whose peer has just gone must not raise
    /// SIGPIPE.
    writer: OwnedFd,
    /// The host's own, which does not block.
    ours: OwnedFd,
}

impl Bell {
    pub(super) fn new() -> Result<Self, Errno> {
        let (reader, _) = pipe_with(PipeFlags::CLOEXEC)?;
        let again = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let writer = open(&again, flags, Mode::empty())?;
        let ours = open(&again, flags | OFlags::NONBLOCK, Mode::empty())?;
        Ok(Self { reader, writer, ours })
    }

    pub(super) fn reader(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    pub(super) fn writer(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }

    fn ring(&self, port: Port) {
        // Full: the reader has thousands of ports to wake up for.
        let _ = write(&self.ours, &port.to_ne_bytes());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binding {
    /// Waits for that domain to bind.
    Unbound(Domid),
    Interdomain(PortKey),
    /// A virtual interrupt. None ever fires here.
    Virq(u32),
}

#[derive(Debug)]
struct Entry {
    slot: SlotId,
    binding: Binding,
    /// The handle that bound it; None when that one is done with it.
    handle: Option<ConnectionId>,
    bell: Rc<Bell>,
    /// Unmap notifications that will go through this port. They keep it open after its handle, as the kernel's count
    /// of an event channel's users does (`evtchn_get`).
    holds: u32,
}

/// All event channels of a host.
#[derive(Debug)]
pub(super) struct Ports {
    table: SlotTable,
    free: Vec<u32>,
    generation: u32,
    ports: BTreeMap<PortKey, Entry>,
}

/// The other end of a port.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) slot: SlotId,
    pub(super) port: Port,
    pub(super) handle: ConnectionId,
    pub(super) bell: Rc<Bell>,
}

/// The lowest port a domain has. Not the same for all: code that takes the local port for the remote one shall not work
/// by luck.
fn first_port(domid: Domid) -> Port {
    16 + u32::from(domid % 64)
}

impl Ports {
    pub(super) fn new(table: SlotTable) -> Self {
        Self { table, free: (0..SLOTS).rev().collect(), generation: 0, ports: BTreeMap::new() }
    }

    fn of(&self, domid: Domid) -> impl Iterator<Item = &Entry> {
        self.ports.range((domid, 0)..=(domid, Port::MAX)).map(|(_, entry)| entry)
    }

    fn open(
        &mut self,
        handle: ConnectionId,
        bell: &Rc<Bell>,
        domid: Domid,
        binding: Binding,
    ) -> Result<(Port, SlotId), Errno> {
        if self.of(domid).count() >= PORTS_PER_DOMAIN {
            return Err(Errno::NOSPC);
        }
        // The lowest free one, as in Xen.
        let port = (first_port(domid)..).find(|port| !self.ports.contains_key(&(domid, *port)));
        let port = port.ok_or(Errno::NOSPC)?;
        let index = self.free.pop().ok_or(Errno::NOSPC)?;
        // Wraps after 2^32 ports; 0 is left out because it means "nobody".
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let slot = SlotId { index, generation: self.generation };
        if let Some(shared) = self.table.slot(index) {
            shared.reset(slot.generation);
        }
        let entry = Entry { slot, binding, handle: Some(handle), bell: Rc::clone(bell), holds: 0 };
        self.ports.insert((domid, port), entry);
        Ok((port, slot))
    }

    /// `EVTCHNOP_alloc_unbound`: a port for `remote` to bind to.
    ///
    /// # Errors
    /// `NOSPC`: no port is left.
    pub(super) fn bind_unbound(
        &mut self,
        handle: ConnectionId,
        bell: &Rc<Bell>,
        domid: Domid,
        remote: Domid,
    ) -> Result<(Port, SlotId), Errno> {
        self.open(handle, bell, domid, Binding::Unbound(remote))
    }

    /// `EVTCHNOP_bind_interdomain`. The new port is pending at once: the remote side may have notified before.
    ///
    /// # Errors
    /// `INVAL`: the remote port is not open, not unbound or not for this domain; `NOSPC`: no port is left.
    pub(super) fn bind_interdomain(
        &mut self,
        handle: ConnectionId,
        bell: &Rc<Bell>,
        domid: Domid,
        remote: PortKey,
    ) -> Result<(Port, SlotId), Errno> {
        let theirs = self.ports.get(&remote).ok_or(Errno::INVAL)?;
        if theirs.binding != Binding::Unbound(domid) {
            return Err(Errno::INVAL);
        }
        let their_slot = theirs.slot;
        let (port, slot) = self.open(handle, bell, domid, Binding::Interdomain(remote))?;
        if let Some(theirs) = self.ports.get_mut(&remote) {
            theirs.binding = Binding::Interdomain((domid, port));
        }
        for (this, other) in [(slot, their_slot), (their_slot, slot)] {
            if let Some(shared) = self.table.slot(this.index) {
                shared.set_peer(Some(other));
            }
        }
        self.deliver((domid, port));
        Ok((port, slot))
    }

    /// `EVTCHNOP_bind_virq`.
    ///
    /// # Errors
    /// `INVAL`: no such interrupt; `EXIST`: the domain has it bound; `NOSPC`: no port is left.
    pub(super) fn bind_virq(
        &mut self,
        handle: ConnectionId,
        bell: &Rc<Bell>,
        domid: Domid,
        virq: u32,
    ) -> Result<(Port, SlotId), Errno> {
        if virq >= NR_VIRQS {
            return Err(Errno::INVAL);
        }
        if self.of(domid).any(|entry| entry.binding == Binding::Virq(virq)) {
            return Err(Errno::EXIST);
        }
        self.open(handle, bell, domid, Binding::Virq(virq))
    }

    /// Gives a port up.
    ///
    /// # Errors
    /// `NOTCONN`: the handle has not bound it.
    pub(super) fn unbind(&mut self, handle: ConnectionId, key: PortKey) -> Result<(), Errno> {
        let entry =
            self.ports.get_mut(&key).filter(|entry| entry.handle == Some(handle)).ok_or(Errno::NOTCONN)?;
        entry.handle = None;
        self.close_unused(key);
        Ok(())
    }

    /// Gives all ports of a handle up. Unless it said goodbye, a notification of its may have stopped half-way: peers
    /// that could have missed one get an event.
    pub(super) fn unbind_all(&mut self, handle: ConnectionId, clean: bool) {
        let own: Vec<PortKey> = self
            .ports
            .iter()
            .filter(|(_, entry)| entry.handle == Some(handle))
            .map(|(key, _)| *key)
            .collect();
        for key in own {
            if !clean
                && let Some(Binding::Interdomain(peer)) = self.ports.get(&key).map(|entry| entry.binding)
            {
                let slot = self.ports.get(&peer).and_then(|entry| self.table.slot(entry.slot.index));
                if slot.is_some_and(|slot| !slot.is_idle()) {
                    self.deliver(peer);
                }
            }
            // The port is this handle's: it cannot fail.
            let _ = self.unbind(handle, key);
        }
    }

    /// `EVTCHNOP_close` for a port that neither a handle nor an unmap notification needs: the peer's waits for somebody
    /// new.
    fn close_unused(&mut self, key: PortKey) {
        if self.ports.get(&key).is_none_or(|entry| entry.handle.is_some() || entry.holds > 0) {
            return;
        }
        let Some(entry) = self.ports.remove(&key) else { return };
        if let Some(shared) = self.table.slot(entry.slot.index) {
            // Not a generation that any port has: late notifications are lost, as on a closed port they are.
            shared.reset(0);
        }
        self.free.push(entry.slot.index);
        if let Binding::Interdomain(peer) = entry.binding
            && let Some(theirs) = self.ports.get_mut(&peer)
        {
            theirs.binding = Binding::Unbound(key.0);
            if let Some(shared) = self.table.slot(theirs.slot.index) {
                shared.set_peer(None);
            }
        }
    }

    /// The other end of a port; None while there is nobody.
    ///
    /// # Errors
    /// `NOTCONN`: the handle has not bound it.
    pub(super) fn peer(&self, handle: ConnectionId, key: PortKey) -> Result<Option<Peer>, Errno> {
        let entry =
            self.ports.get(&key).filter(|entry| entry.handle == Some(handle)).ok_or(Errno::NOTCONN)?;
        let Binding::Interdomain(peer) = entry.binding else { return Ok(None) };
        Ok(self.ports.get(&peer).and_then(|theirs| {
            let (slot, port, bell) = (theirs.slot, peer.1, Rc::clone(&theirs.bell));
            theirs.handle.map(|handle| Peer { slot, port, handle, bell })
        }))
    }

    /// Keeps a port open for an unmap notification.
    ///
    /// # Errors
    /// `INVAL`: no handle of the domain has the port open.
    pub(super) fn hold(&mut self, key: PortKey) -> Result<(), Errno> {
        let entry = self.ports.get_mut(&key).filter(|entry| entry.handle.is_some()).ok_or(Errno::INVAL)?;
        entry.holds += 1;
        Ok(())
    }

    /// Ends what `hold` began.
    pub(super) fn unhold(&mut self, key: PortKey) {
        if let Some(entry) = self.ports.get_mut(&key) {
            entry.holds = entry.holds.saturating_sub(1);
        }
        self.close_unused(key);
    }

    /// Notifies through a port, on behalf of a process that may be gone; on an unbound one that does nothing.
    pub(super) fn notify(&self, key: PortKey) {
        if let Some(Entry { binding: Binding::Interdomain(peer), .. }) = self.ports.get(&key) {
            self.deliver(*peer);
        }
    }

    fn deliver(&self, key: PortKey) {
        if let Some(entry) = self.ports.get(&key)
            && let Some(shared) = self.table.slot(entry.slot.index)
        {
            shared.force(entry.slot.generation);
            entry.bell.ring(key.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::read;

    const SERVER: ConnectionId = 1;
    const CLIENT: ConnectionId = 2;

    struct Host {
        ports: Ports,
        server: Rc<Bell>,
        client: Rc<Bell>,
    }

    fn host() -> Host {
        let table = SlotTable::map(SlotTable::create().unwrap()).unwrap();
        let bell = || Rc::new(Bell::new().unwrap());
        Host { ports: Ports::new(table), server: bell(), client: bell() }
    }

    impl Host {
        fn unbound(&mut self) -> PortKey {
            (1, self.ports.bind_unbound(SERVER, &self.server, 1, 2).unwrap().0)
        }

        fn bound(&mut self, server: PortKey) -> PortKey {
            (2, self.ports.bind_interdomain(CLIENT, &self.client, 2, server).unwrap().0)
        }

        /// A process' side of a notification.
        fn raise(&self, handle: ConnectionId, key: PortKey) -> bool {
            let peer = self.ports.peer(handle, key).unwrap().unwrap();
            self.ports.table.slot(peer.slot.index).unwrap().raise(peer.slot.generation)
        }

        fn unmask(&self, key: PortKey) -> bool {
            let slot = self.ports.ports[&key].slot;
            self.ports.table.slot(slot.index).unwrap().unmask(slot.generation)
        }
    }

    fn rung(bell: &Bell) -> Vec<Port> {
        let mut bytes = [0; 64];
        let got = read(&bell.ours, &mut bytes).unwrap_or(0);
        bytes[..got].chunks(4).map(|port| Port::from_ne_bytes(port.try_into().unwrap())).collect()
    }

    #[test]
    fn only_the_domain_that_is_waited_for_binds_and_only_once() {
        let mut host = host();
        let server = host.unbound();
        let mut bind = |domid, remote| {
            let bell = Rc::clone(&host.client);
            host.ports.bind_interdomain(CLIENT, &bell, domid, remote).map(|(port, _)| port)
        };
        assert_eq!(bind(3, server), Err(Errno::INVAL), "not for domain 3");
        assert_eq!(bind(2, (1, server.1 + 1)), Err(Errno::INVAL), "no such port");
        let port = bind(2, server).unwrap();
        assert_ne!(port, server.1, "local and remote numbers differ");
        assert_eq!(bind(2, server), Err(Errno::INVAL), "bound already");
    }

    #[test]
    fn binding_marks_the_local_port_pending_and_not_the_remote_one() {
        let mut host = host();
        let server = host.unbound();
        let client = host.bound(server);
        assert_eq!(rung(&host.client), [client.1]);
        assert_eq!(rung(&host.server), []);
        assert!(!host.unmask(client));
    }

    #[test]
    fn peers_find_each_other() {
        let mut host = host();
        let server = host.unbound();
        assert!(host.ports.peer(SERVER, server).unwrap().is_none());
        assert_eq!(host.ports.peer(CLIENT, server).unwrap_err(), Errno::NOTCONN, "not that handle's");
        let client = host.bound(server);
        assert_eq!(host.ports.peer(SERVER, server).unwrap().unwrap().port, client.1);
        assert_eq!(host.ports.peer(CLIENT, client).unwrap().unwrap().port, server.1);
        assert!(host.raise(CLIENT, client));
        assert!(!host.raise(CLIENT, client));
        assert!(host.unmask(server));
    }

    #[test]
    fn a_closed_end_leaves_the_other_unbound_for_the_next_client() {
        let mut host = host();
        let server = host.unbound();
        let client = host.bound(server);
        host.ports.unbind(CLIENT, client).unwrap();
        assert_eq!(host.ports.unbind(CLIENT, client), Err(Errno::NOTCONN));
        assert!(host.ports.peer(SERVER, server).unwrap().is_none());
        let again = host.bound(server);
        assert_eq!(again.1, client.1, "the lowest free port, as in Xen");
        assert!(host.ports.peer(SERVER, server).unwrap().is_some());
    }

    #[test]
    fn a_handle_that_died_in_the_middle_of_a_notification_leaves_nobody_asleep() {
        let mut host = host();
        let server = host.unbound();
        let client = host.bound(server);
        assert!(host.raise(CLIENT, client), "and now the client should write, but it is killed");
        host.ports.unbind_all(CLIENT, false);
        assert_eq!(rung(&host.server), [server.1]);

        let client = host.bound(server);
        host.unmask(server);
        host.ports.unbind_all(CLIENT, false);
        assert_eq!(rung(&host.server), [], "nothing can have been lost: no spurious event");
        assert!(!host.ports.ports.contains_key(&client));
    }

    #[test]
    fn an_unmap_notification_keeps_its_port_open_after_the_handle() {
        let mut host = host();
        let server = host.unbound();
        let client = host.bound(server);
        assert_eq!(host.ports.hold((2, 999)), Err(Errno::INVAL));
        host.ports.hold(client).unwrap();
        host.ports.unbind_all(CLIENT, true);
        assert_eq!(host.ports.hold(client), Err(Errno::INVAL), "the handle is done with it");
        assert!(host.ports.peer(SERVER, server).unwrap().is_none(), "and nobody would take an event");
        host.ports.notify(client);
        assert_eq!(rung(&host.server), [server.1]);
        host.ports.unhold(client);
        assert!(host.ports.peer(SERVER, server).unwrap().is_none());
        host.ports.notify(server);
        assert_eq!(rung(&host.server), [], "nobody there: Xen drops it");
    }

    #[test]
    fn ports_run_out_at_the_domains_limit_and_come_back() {
        let mut host = host();
        let mut last = (1, 0);
        for _ in 0..PORTS_PER_DOMAIN {
            last = host.unbound();
        }
        let full = host.ports.bind_unbound(SERVER, &Rc::clone(&host.server), 1, 2);
        assert_eq!(full.unwrap_err(), Errno::NOSPC);
        host.ports.unbind(SERVER, (1, last.1 - 5)).unwrap();
        assert_eq!(host.unbound(), (1, last.1 - 5));
        host.ports.unbind_all(SERVER, true);
        assert_eq!(host.ports.free.len(), SLOTS as usize);
    }

    #[test]
    fn a_virtual_interrupt_is_bound_once_a_domain() {
        let mut host = host();
        let bell = Rc::clone(&host.server);
        let mut bind = |domid, virq| host.ports.bind_virq(SERVER, &bell, domid, virq).map(drop);
        assert_eq!(bind(1, 3), Ok(()));
        assert_eq!(bind(1, 3), Err(Errno::EXIST));
        assert_eq!(bind(2, 3), Ok(()));
        assert_eq!(bind(1, NR_VIRQS), Err(Errno::INVAL));
    }
}
