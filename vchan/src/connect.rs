//! The client's side of setting up a channel.

use crate::deadline::Deadline;
use crate::hub::Switchboard;
use crate::keys::{Rendezvous, find, port_key};
use crate::link::Link;
use crate::listener::begin;
use crate::liveness::{Liveness, PROBE_INTERVAL, Traced};
use crate::notify::Notify;
use crate::page::{GRANTS_OFFSET, LIVE_HERE, Place};
use crate::port::BoundPort;
use crate::ring::{Consumer, Producer};
use crate::watches::{Watch, Watches};
use crate::wire::{Pages, RingMemory};
use crate::{Channel, Error, Orders, Result, Ring, Side, State};
use parking_lot::Mutex;
use std::fmt;
use std::os::fd::BorrowedFd;
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
    /// To connect only to a server that no client has been at: else it is waited for another one, as for one that has gone. A
    /// server that a client has just left may not have seen that yet, takes the next one for it, and has bytes in its rings that
    /// were the other's. Default: false, as libxenvchan's client.
    pub unused_only: bool,
    /// How often it is looked whether the server's domain still exists, while an operation waits without an event.
    pub probe_interval: Duration,
}

/// Does not wait.
impl Default for ConnectOptions {
    fn default() -> Self {
        Self { wait: None, server_keeps_keys: true, unused_only: false, probe_interval: PROBE_INTERVAL }
    }
}

impl Channel {
    /// Connects to the channel that the domain `server` has published under `path` in xenstore: absolute, or relative to
    /// the *server's* home. A server takes one client at a time; a second one finds its port taken
    /// ([`Invalid`](xen::ErrorKind::Invalid)).
    ///
    /// # Errors
    /// * [`NoServer`](Error::NoServer) when the keys are not there (and did not appear in time);
    /// * [`Closed`](Error::Closed) when they belong to a server that has gone, or that another client was at
    ///   ([`unused_only`](ConnectOptions::unused_only));
    /// * [`Violation`](Error::Violation), [`BadKey`](Error::BadKey) when what it wrote makes no sense;
    /// * [`Loopback`](Error::Loopback), [`ReservedDomain`](Error::ReservedDomain), or a failed call to Xen.
    pub fn connect(
        platform: &dyn Platform,
        server: DomId,
        path: &str,
        options: &ConnectOptions,
    ) -> Result<Self> {
        Connector::new(platform, server, path, options)?.connect()
    }
}

/// Who connects to a server, and connects again when it was restarted, or does not want to block meanwhile.
///
/// A server that is restarted has new rings: what the old one had not read is lost, and what it had sent is to be received
/// before. So a client that wants to go on does so knowingly:
///
/// ```no_run
/// # use std::time::Duration;
/// # use vchan::{Channel, ConnectOptions, Connector};
/// # fn converse(channel: &mut Channel) {}
/// let options = ConnectOptions { wait: Some(Duration::MAX), ..ConnectOptions::default() };
/// let connector = Connector::new(&xen::host::Host, xen::DomId(3), "data/vchan/0/512", &options)?;
/// loop {
///     let mut channel = connector.connect()?;
///     converse(&mut channel); // until it says Closed
/// }
/// # #[allow(unreachable_code)]
/// # Ok::<(), vchan::Error>(())
/// ```
pub struct Connector {
    own: DomId,
    server: DomId,
    events: Arc<dyn EventChannels>,
    map: Arc<dyn GrantMap>,
    store: Arc<dyn Xenstore>,
    path: String,
    options: ConnectOptions,
    watches: Arc<Watches>,
    /// Of those who do not block.
    watch: Mutex<Option<Watch>>,
    hub: Option<Arc<Switchboard>>,
}

impl Connector {
    /// Makes ready to connect, as [`Channel::connect`] does.
    ///
    /// # Errors
    /// [`Loopback`](Error::Loopback), [`ReservedDomain`](Error::ReservedDomain), or a failed call to Xen.
    pub fn new(platform: &dyn Platform, server: DomId, path: &str, options: &ConnectOptions) -> Result<Self> {
        Self::through(platform, None, server, path, options)
    }

    /// With handles of its own, or a hub's.
    pub(crate) fn through(
        platform: &dyn Platform,
        hub: Option<&Arc<Switchboard>>,
        server: DomId,
        path: &str,
        options: &ConnectOptions,
    ) -> Result<Self> {
        let (store, own) = begin(platform, hub, server)?;
        let path =
            if path.starts_with('/') { path.to_owned() } else { format!("/local/domain/{server}/{path}") };
        Ok(Self {
            own,
            server,
            events: platform.event_channels()?,
            map: platform.grant_map()?,
            watches: hub.map_or_else(|| Watches::new(Arc::clone(&store)), |hub| Arc::clone(hub.watches())),
            store,
            path,
            options: options.clone(),
            watch: Mutex::new(None),
            hub: hub.cloned(),
        })
    }

    /// Connects; waits for the server as long as the options say.
    ///
    /// # Errors
    /// As [`Channel::connect`].
    pub fn connect(&self) -> Result<Channel> {
        let mut result = self.attempt();
        let Some(time) = self.options.wait else { return result };
        if !matches!(&result, Err(error) if is_not_yet(error)) {
            return result;
        }
        let watch = self.watch()?;
        let mut deadline = Deadline::new(Some(time));
        // The watch fires as soon as it is made, so nothing that happened before is missed.
        while matches!(&result, Err(error) if is_not_yet(error)) && watch.wait(deadline.at())? {
            result = self.attempt();
        }
        result
    }

    /// Connects, if that can be done without waiting for the server. Otherwise [`WouldBlock`](Error::WouldBlock), and the
    /// [descriptor](Self::event_fd) becomes readable when it is worth trying again.
    ///
    /// # Errors
    /// As [`Channel::connect`], but for [`NoServer`](Error::NoServer) and [`Closed`](Error::Closed).
    pub fn try_connect(&self) -> Result<Channel> {
        let mut watch = self.watch.lock();
        if watch.is_none() {
            *watch = Some(self.watch()?);
        }
        if let Some(watch) = &*watch {
            watch.has_fired()?;
        }
        match self.attempt() {
            Err(error) if is_not_yet(&error) => Err(Error::WouldBlock),
            result => {
                *watch = None;
                result
            }
        }
    }

    /// The descriptor for [`try_connect`](Self::try_connect). None of a hub's.
    #[must_use]
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.hub.is_none().then(|| self.watches.as_fd())
    }

    /// Watches the key that a server writes last; the directory may not be ours to read.
    fn watch(&self) -> Result<Watch> {
        Watch::new(&self.watches, port_key(&self.path))
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
        if pages.peer()? == State::Closed || (self.options.unused_only && !pages.is_awaited()) {
            return Err(Error::Closed);
        }
        let sender = Producer::attach(Arc::clone(&pages), Ring::Left, orders.size(Ring::Left))?;
        let receiver = Consumer::attach(Arc::clone(&pages), Ring::Right, orders.size(Ring::Right))?;

        let key = self.options.server_keeps_keys.then(|| port_key(&self.path));
        let liveness = Liveness::new(
            (self.own, self.server),
            Arc::clone(&self.events),
            Arc::clone(&self.store),
            Traced::Server { key },
            self.options.probe_interval,
            self.hub.as_ref().map(|hub| hub.sighting(self.server)),
        );
        pages.set_own_live(LIVE_HERE);
        pages.reset_peer_notify(Notify::Write);
        bound.notify()?;
        let link = Link::new(pages, orders, (bound, self.own), liveness, self.hub.as_ref());
        tracing::debug!(server = self.server.0, path = self.path, "connected");
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

/// Whether a server may come yet. Keys that a killed one left behind fail in one of these ways, too; its successor will
/// replace them.
fn is_not_yet(error: &Error) -> bool {
    matches!(error, Error::NoServer { .. } | Error::Closed | Error::Xen(_))
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("server", &self.server)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
