//! Event channels of the mock: ports, their states, and a descriptor that can be polled.

use super::Domain;
use crate::{DomId, Error, EventChannels, Port, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// Waits for this domain to bind.
    Unbound(DomId),
    /// Joined to that port.
    Interdomain(DomId, Port),
}

#[derive(Debug)]
struct Channel {
    end: End,
    /// Who takes its events; nobody for a port that a toolstack allocated.
    handle: Option<u64>,
    /// Taken and not unmasked, or on its way to be taken.
    masked: bool,
    /// An event arrived while it was masked.
    pending: bool,
}

#[derive(Debug)]
struct Queue {
    ready: VecDeque<Port>,
    /// Readable while `ready` is not empty.
    signal: Arc<OwnedFd>,
}

/// The ports of all domains.
#[derive(Debug, Default)]
pub(super) struct Ports {
    channels: BTreeMap<(DomId, Port), Channel>,
    queues: BTreeMap<u64, Queue>,
    next_handle: u64,
}

impl Ports {
    pub(super) fn inventory(&self) -> Vec<String> {
        self.channels
            .iter()
            .map(|((domid, port), channel)| format!("port {port} of domain {domid}, {:?}", channel.end))
            .collect()
    }

    /// The lowest free port of a domain, in this state.
    pub(super) fn allocate(&mut self, domid: DomId, remote: DomId) -> Port {
        self.open(domid, End::Unbound(remote), None)
    }

    fn open(&mut self, domid: DomId, end: End, handle: Option<u64>) -> Port {
        let mut port = Port(1);
        while self.channels.contains_key(&(domid, port)) {
            port.0 += 1;
        }
        self.channels.insert((domid, port), Channel { end, handle, masked: false, pending: false });
        port
    }

    /// Joins a new port of `domid` to a port that `remote` holds open for it.
    fn bind(&mut self, domid: DomId, remote: DomId, remote_port: Port, handle: u64) -> Option<Port> {
        let channel = self.channels.get(&(remote, remote_port))?;
        if channel.end != End::Unbound(domid) {
            return None;
        }
        let port = self.open(domid, End::Interdomain(remote, remote_port), Some(handle));
        if let Some(channel) = self.channels.get_mut(&(remote, remote_port)) {
            channel.end = End::Interdomain(domid, port);
        }
        // Events sent before there was an other end are lost; so Xen lets the new end look once.
        self.deliver(domid, port);
        Some(port)
    }

    /// Closes a port; the other end waits for the same domain again.
    pub(super) fn close(&mut self, domid: DomId, port: Port) -> bool {
        let Some(channel) = self.channels.remove(&(domid, port)) else { return false };
        if let End::Interdomain(remote, remote_port) = channel.end
            && let Some(other) = self.channels.get_mut(&(remote, remote_port))
        {
            other.end = End::Unbound(domid);
        }
        if let Some(queue) = channel.handle.and_then(|handle| self.queues.get_mut(&handle)) {
            queue.ready.retain(|ready| *ready != port);
            settle(queue);
        }
        true
    }

    /// Closes all ports of a domain that is no more.
    pub(super) fn close_all(&mut self, domid: DomId) {
        let ports: Vec<Port> =
            self.channels.keys().filter(|(owner, _)| *owner == domid).map(|(_, port)| *port).collect();
        ports.into_iter().for_each(|port| {
            self.close(domid, port);
        });
    }

    /// Sends an event to the other end of a port; false when the port does not exist. An unbound port swallows it.
    pub(super) fn notify(&mut self, domid: DomId, port: Port) -> bool {
        let Some(channel) = self.channels.get(&(domid, port)) else { return false };
        if let End::Interdomain(remote, remote_port) = channel.end {
            self.deliver(remote, remote_port);
        }
        true
    }

    fn deliver(&mut self, domid: DomId, port: Port) {
        let Some(channel) = self.channels.get_mut(&(domid, port)) else { return };
        if channel.masked {
            channel.pending = true;
            return;
        }
        channel.masked = true;
        if let Some(queue) = channel.handle.and_then(|handle| self.queues.get_mut(&handle)) {
            queue.ready.push_back(port);
            settle(queue);
        }
    }
}

/// Makes the descriptor readable when, and only when, a port is ready.
fn settle(queue: &Queue) {
    let mut counter = [0; 8];
    // An eventfd in non-blocking mode: reading an empty one, the only failure there is, changes nothing.
    let _ = rustix::io::read(&queue.signal, &mut counter);
    if !queue.ready.is_empty() {
        let _ = rustix::io::write(&queue.signal, &1_u64.to_ne_bytes());
    }
}

pub(super) struct Events {
    domain: Domain,
    handle: u64,
    signal: Arc<OwnedFd>,
}

impl Events {
    pub(super) fn new(domain: Domain) -> Result<Self> {
        let signal = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| Error::new("xenevtchn_open", "", errno.into()))?;
        let signal = Arc::new(signal);
        let handle = {
            let mut state = domain.machine.0.state.lock();
            let handle = state.events.next_handle;
            state.events.next_handle += 1;
            let queue = Queue { ready: VecDeque::new(), signal: Arc::clone(&signal) };
            state.events.queues.insert(handle, queue);
            handle
        };
        Ok(Self { domain, handle, signal })
    }

    /// Runs `body` on a port of this handle.
    fn on_port<T>(&self, call: &'static str, port: Port, body: impl FnOnce(&mut Ports) -> T) -> Result<T> {
        let args = || format!("port {port}");
        self.domain.machine.enter(call, args)?;
        let mut state = self.domain.machine.0.state.lock();
        let channel = state.events.channels.get(&(self.domain.domid, port));
        if channel.is_none_or(|channel| channel.handle != Some(self.handle)) {
            return Err(Error::errno(call, args(), libc::ENOTCONN));
        }
        Ok(body(&mut state.events))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut state = self.domain.machine.0.state.lock();
        let owner = self.domain.domid;
        let ports: Vec<Port> = state
            .events
            .channels
            .iter()
            .filter(|(_, channel)| channel.handle == Some(self.handle))
            .map(|((_, port), _)| *port)
            .collect();
        ports.into_iter().for_each(|port| {
            state.events.close(owner, port);
        });
        state.events.queues.remove(&self.handle);
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

impl EventChannels for Events {
    fn bind_unbound(&self, remote: DomId) -> Result<Port> {
        self.domain.machine.enter("xenevtchn_bind_unbound_port", || format!("domid {remote}"))?;
        let mut state = self.domain.machine.0.state.lock();
        Ok(state.events.open(self.domain.domid, End::Unbound(remote), Some(self.handle)))
    }

    fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port> {
        let args = || format!("domid {remote}, port {remote_port}");
        self.domain.machine.enter("xenevtchn_bind_interdomain", args)?;
        let mut state = self.domain.machine.0.state.lock();
        let bound = state.events.bind(self.domain.domid, remote, remote_port, self.handle);
        bound.ok_or_else(|| Error::errno("xenevtchn_bind_interdomain", args(), libc::EINVAL))
    }

    fn unbind(&self, port: Port) -> Result<()> {
        let domid = self.domain.domid;
        self.on_port("xenevtchn_unbind", port, |events| {
            events.close(domid, port);
        })
    }

    fn notify(&self, port: Port) -> Result<()> {
        let domid = self.domain.domid;
        self.on_port("xenevtchn_notify", port, |events| {
            events.notify(domid, port);
        })
    }

    fn pending(&self) -> Result<Port> {
        self.domain.machine.enter("xenevtchn_pending", String::new)?;
        loop {
            {
                let mut state = self.domain.machine.0.state.lock();
                if let Some(queue) = state.events.queues.get_mut(&self.handle)
                    && let Some(port) = queue.ready.pop_front()
                {
                    settle(queue);
                    return Ok(port);
                }
            }
            poll(&mut [PollFd::new(&self.signal, PollFlags::IN)], None)
                .map_err(|errno| Error::new("xenevtchn_pending", "", errno.into()))?;
        }
    }

    fn unmask(&self, port: Port) -> Result<()> {
        let domid = self.domain.domid;
        self.on_port("xenevtchn_unmask", port, |events| {
            let Some(channel) = events.channels.get_mut(&(domid, port)) else { return };
            channel.masked = false;
            if std::mem::take(&mut channel.pending) {
                events.deliver(domid, port);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::Machine;
    use crate::{ErrorKind, Platform};
    use rustix::time::Timespec;

    const ALICE: DomId = DomId(1);
    const BOB: DomId = DomId(2);

    fn pair(machine: &Machine) -> (Arc<dyn EventChannels>, Port, Arc<dyn EventChannels>, Port) {
        let alice = machine.domain(ALICE).event_channels().unwrap();
        let bob = machine.domain(BOB).event_channels().unwrap();
        let port = alice.bind_unbound(BOB).unwrap();
        let remote = bob.bind_interdomain(ALICE, port).unwrap();
        assert_eq!(bob.pending().unwrap(), remote);
        bob.unmask(remote).unwrap();
        (alice, port, bob, remote)
    }

    fn readable(events: &Arc<dyn EventChannels>) -> bool {
        let fd = events.as_fd();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn events_coalesce_while_the_port_is_masked() {
        let machine = Machine::new();
        let (alice, port, bob, remote) = pair(&machine);
        assert!(!readable(&bob));
        for _ in 0..3 {
            alice.notify(port).unwrap();
        }
        assert!(readable(&bob));
        assert_eq!(bob.pending().unwrap(), remote);
        assert!(!readable(&bob), "masked until unmasked");
        bob.unmask(remote).unwrap();
        assert!(readable(&bob), "what came meanwhile is one event");
        assert_eq!(bob.pending().unwrap(), remote);
        bob.unmask(remote).unwrap();
        assert!(!readable(&bob));
    }

    #[test]
    fn only_the_named_domain_may_bind_and_only_once() {
        let machine = Machine::new();
        let alice = machine.domain(ALICE).event_channels().unwrap();
        let port = alice.bind_unbound(BOB).unwrap();
        let eve = machine.domain(DomId(3)).event_channels().unwrap();
        assert_eq!(eve.bind_interdomain(ALICE, port).unwrap_err().kind(), ErrorKind::Invalid);
        let bob = machine.domain(BOB).event_channels().unwrap();
        bob.bind_interdomain(ALICE, port).unwrap();
        assert!(bob.bind_interdomain(ALICE, port).is_err());
    }

    #[test]
    fn a_closed_end_lets_the_domain_bind_again() {
        let machine = Machine::new();
        let (alice, port, bob, _) = pair(&machine);
        drop(bob);
        alice.notify(port).unwrap();
        let bob = machine.domain(BOB).event_channels().unwrap();
        let remote = bob.bind_interdomain(ALICE, port).unwrap();
        bob.notify(remote).unwrap();
        assert_eq!(alice.pending().unwrap(), port);
    }

    #[test]
    fn a_port_of_another_handle_is_not_ours() {
        let machine = Machine::new();
        let (alice, port, bob, _) = pair(&machine);
        assert!(bob.notify(Port(99)).is_err());
        let other = machine.domain(ALICE).event_channels().unwrap();
        assert!(other.notify(port).is_err());
        assert!(other.unbind(port).is_err());
        drop((alice, bob, other));
        assert!(machine.inventory().iter().all(|line| !line.starts_with("port")));
    }
}
