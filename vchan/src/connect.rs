//! The client's side of setting up a channel.

use crate::keys::{Rendezvous, find, own_domid, port_key};
use crate::link::Link;
use crate::listener::check_peer;
use crate::liveness::{Liveness, PROBE_INTERVAL};
use crate::notify::Notify;
use crate::page::{GRANTS_OFFSET, LIVE_HERE, Place};
use crate::ring::{Consumer, Producer};
use crate::wait::{BoundPort, Deadline, Waiter, poll_until};
use crate::wire::{Pages, RingMemory};
use crate::{Channel, Error, Orders, Result, Ring, Side, State};
use rustix::event::{PollFd, PollFlags};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use xen::{
    Access, DomId, EventChannels, GrantMap, GrantRef, Mapping, PAGE_SIZE, Platform, UnmapNotify, Xenstore,
};

/// What a client may choose.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// How long to wait for a server that is not there yet, or that left its keys behind when it was killed. None: not at
    /// all. [`Duration::MAX`]: for ever.
    pub wait: Option<Duration>,
    /// The server keeps its keys in xenstore as long as it lives, so their loss tells of the end of its domain. True of
    /// libxenvchan and of this library. Qubes' libvchan removes them soon after the client came; usually that is noticed,
    /// but to be safe this is to be set to false for servers that use it. Then, in a guest, the end of the server's
    /// domain is not noticed at all.
    pub server_keeps_keys: bool,
    /// How often it is looked whether the server's domain still exists, while an operation waits without an event.
    pub probe_interval: Duration,
}

/// Does not wait.
impl Default for ConnectOptions {
    fn default() -> Self {
        Self { wait: None, server_keeps_keys: true, probe_interval: PROBE_INTERVAL }
    }
}

impl Channel {
    /// Connects to the channel that the domain `server` has published under `path` in xenstore: absolute, or relative to
    /// the *server's* home. A server takes one client at a time; a second one finds its port taken
    /// ([`Invalid`](xen::ErrorKind::Invalid)).
    ///
    /// # Errors
    /// * [`NoServer`](Error::NoServer) when the keys are not there (and did not appear in time);
    /// * [`Closed`](Error::Closed) when they belong to a server that has gone;
    /// * [`Violation`](Error::Violation), [`BadKey`](Error::BadKey) when what it wrote makes no sense;
    /// * [`Loopback`](Error::Loopback), [`ReservedDomain`](Error::ReservedDomain), or a failed call to Xen.
    pub fn connect(
        platform: &dyn Platform,
        server: DomId,
        path: &str,
        options: &ConnectOptions,
    ) -> Result<Self> {
        let store = platform.xenstore()?;
        let own = own_domid(&*store)?;
        check_peer(own, server)?;
        let path =
            if path.starts_with('/') { path.to_owned() } else { format!("/local/domain/{server}/{path}") };
        let client = Client {
            own,
            server,
            events: platform.event_channels()?,
            map: platform.grant_map()?,
            store,
            path,
            options,
        };
        match options.wait {
            None => client.attempt(),
            Some(time) => client.wait(time),
        }
    }
}

/// Somebody who wants to connect.
struct Client<'a> {
    own: DomId,
    server: DomId,
    events: Arc<dyn EventChannels>,
    map: Arc<dyn GrantMap>,
    store: Arc<dyn Xenstore>,
    path: String,
    options: &'a ConnectOptions,
}

impl Client<'_> {
    /// Tries whenever the keys change.
    fn wait(&self, time: Duration) -> Result<Channel> {
        // The key that a server writes last; the directory may not be ours to read.
        let _watch = Watch::new(&self.store, port_key(&self.path))?;
        let mut deadline = Deadline::new(Some(time));
        loop {
            let error = match self.attempt() {
                Ok(channel) => return Ok(channel),
                // Keys that a killed server left behind fail in one of these ways; its successor will replace them.
                Err(error @ (Error::NoServer { .. } | Error::Closed | Error::Xen(_))) => error,
                Err(error) => return Err(error),
            };
            let event = PollFd::from_borrowed_fd(self.store.as_fd(), PollFlags::IN);
            if !poll_until(&mut [event], deadline.at())?[0] {
                return Err(error);
            }
            while self.store.watch_event()?.is_some() {}
        }
    }

    fn attempt(&self) -> Result<Channel> {
        let Rendezvous { gref, port } = find(&*self.store, self.server, &self.path)?;
        let port = self.events.bind_interdomain(self.server, port)?;
        let bound = BoundPort::new(Arc::clone(&self.events), port);

        let notify = UnmapNotify { clear_byte: Some(Side::Client.live_offset() as u16), event: Some(port) };
        let page = self.map.map(self.server, &[gref], Access::ReadWrite, Some(notify))?;
        let (orders, grefs) = read_header(&page)?;
        let left = self.map_ring(orders, Ring::Left, &grefs, Access::ReadWrite)?;
        // What we only read, nobody here can overwrite.
        let right = self.map_ring(orders, Ring::Right, &grefs, Access::ReadOnly)?;
        let pages = Arc::new(Pages::of_client(orders, page, (left, right)));
        if pages.peer()? == State::Closed {
            return Err(Error::Closed);
        }
        let sender = Producer::attach(Arc::clone(&pages), Ring::Left, orders.size(Ring::Left))?;
        let receiver = Consumer::attach(Arc::clone(&pages), Ring::Right, orders.size(Ring::Right))?;

        let key = self.options.server_keeps_keys.then(|| port_key(&self.path));
        let liveness = Liveness::new(
            self.own,
            self.server,
            Arc::clone(&self.events),
            Arc::clone(&self.store),
            key,
            self.options.probe_interval,
        );
        pages.set_own_live(LIVE_HERE);
        pages.reset_peer_notify(Notify::Write);
        bound.notify()?;
        let link = Link::new(pages, orders, Waiter::new(bound, self.own), liveness);
        Ok(Channel::new(sender, receiver, link))
    }

    /// Maps a ring that has pages of its own.
    fn map_ring(&self, orders: Orders, ring: Ring, grefs: &[GrantRef], access: Access) -> Result<RingMemory> {
        match orders.place(ring) {
            Place::Inline(start) => Ok(RingMemory::Inline(start)),
            Place::Pages { first, count } => {
                let grefs = &grefs[first..first + count];
                Ok(RingMemory::Own(self.map.map(self.server, grefs, access, None)?))
            }
        }
    }
}

/// Reads what a server wrote once, once: the orders, and as many references as they call for.
fn read_header(page: &Mapping) -> Result<(Orders, Vec<GrantRef>)> {
    let order = |ring: Ring| page.atomic_u16(ring.order_offset()).load(Relaxed);
    let orders = Orders::of_page(order(Ring::Left), order(Ring::Right))?;
    let mut list = [0; PAGE_SIZE];
    let list = &mut list[..4 * orders.grants()];
    page.copy_to(GRANTS_OFFSET, list);
    let (words, _) = list.as_chunks::<4>();
    Ok((orders, words.iter().map(|word| GrantRef(u32::from_ne_bytes(*word))).collect()))
}

/// A watch, ended when this is dropped.
struct Watch<'a> {
    store: &'a dyn Xenstore,
    path: String,
}

const TOKEN: &str = "vchan";

impl<'a> Watch<'a> {
    fn new(store: &'a Arc<dyn Xenstore>, path: String) -> Result<Self> {
        store.watch(&path, TOKEN)?;
        Ok(Self { store: &**store, path })
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // If it cannot be ended now, it ends with the connection.
        let _ = self.store.unwatch(&self.path, TOKEN);
    }
}
