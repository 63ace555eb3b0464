//! The server's side of setting up a channel.

use crate::deadline::Deadline;
use crate::hub::Switchboard;
use crate::keys::{Published, Rendezvous, own_domid};
use crate::link::Link;
use crate::liveness::{Liveness, PROBE_INTERVAL, Traced};
use crate::page::Place;
use crate::port::BoundPort;
use crate::ring::{Consumer, Producer};
use crate::wire::{Pages, RingMemory};
use crate::{Channel, Error, Orders, Result, Ring, Side, State};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use xen::{Access, DomId, GrantRef, GrantShare, Platform, UnmapNotify, Xenstore};

/// What a server may choose.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// The ring that the server reads (the left one) holds at least so many bytes, at most [`MAX_RING`](crate::MAX_RING).
    pub read_min: usize,
    /// The same for the ring that the server writes (the right one).
    pub write_min: usize,
    /// The channel outlives its clients (`server_persist` in libxenvchan): when one leaves, the server finds itself
    /// [waiting](State::Waiting) again instead of at the end, and another one may come. The rings stay as they are, so
    /// that one gets what the first one left unread, and the other way round; nothing marks the border.
    pub persist: bool,
    /// How often it is looked whether the client's domain still exists, while an operation waits without an event.
    pub probe_interval: Duration,
}

/// Rings of at least 64 KiB; for one client.
impl Default for ListenOptions {
    fn default() -> Self {
        Self { read_min: 1 << 16, write_min: 1 << 16, persist: false, probe_interval: PROBE_INTERVAL }
    }
}

/// A channel that a client may come to.
///
/// ```
/// use std::io::{Read, Write};
/// use vchan::{Channel, ConnectOptions, ListenOptions, Listener};
/// use xen::{DomId, mock::Machine};
///
/// // On a Xen host, `xen::host::Host` takes the place of the two domains of a machine in memory.
/// let machine = Machine::new();
/// let (vault, work) = (machine.domain(DomId(1)), machine.domain(DomId(2)));
///
/// let listener = Listener::open(&vault, DomId(2), "data/vchan/2/512", &ListenOptions::default())?;
/// let mut client = Channel::connect(&work, DomId(1), "data/vchan/2/512", &ConnectOptions::default())?;
/// let mut server = listener.accept()?;
///
/// client.write_all(b"open sesame")?;
/// drop(client);
/// let mut said = String::new();
/// server.read_to_string(&mut said)?;
/// assert_eq!(said, "open sesame");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Listener {
    channel: Channel,
}

impl Listener {
    /// Sets up a channel for the domain `client` and publishes it under `path` in xenstore: absolute, or relative to
    /// this domain's home. Of the directories above `path` those that are missing are made.
    ///
    /// # Errors
    /// [`RingTooLarge`](Error::RingTooLarge), [`Loopback`](Error::Loopback), [`ReservedDomain`](Error::ReservedDomain),
    /// or a failed call to Xen, whose kind [`Exhausted`](xen::ErrorKind::Exhausted) tells of too many shared pages
    /// (Linux: the parameter `limit` of the module gntalloc). Nothing is left behind.
    pub fn open(platform: &dyn Platform, client: DomId, path: &str, options: &ListenOptions) -> Result<Self> {
        Self::open_through(platform, None, client, path, options)
    }

    /// With handles of its own, or a hub's.
    pub(crate) fn open_through(
        platform: &dyn Platform,
        hub: Option<&Arc<Switchboard>>,
        client: DomId,
        path: &str,
        options: &ListenOptions,
    ) -> Result<Self> {
        let orders = Orders::for_minimums(options.read_min, options.write_min)?;
        let (store, own) = begin(platform, hub, client)?;

        let events = platform.event_channels()?;
        let bound = BoundPort::new(Arc::clone(&events), events.bind_unbound(client)?);
        let port = bound.port();

        let share = platform.grant_share()?;
        let left = share_ring(&*share, client, orders, Ring::Left)?;
        let right = share_ring(&*share, client, orders, Ring::Right)?;
        let notify = UnmapNotify { clear_byte: Some(Side::Server.live_offset() as u16), event: Some(port) };
        let (page_gref, page) = share.share_page_notify(client, Access::ReadWrite, notify)?.into_parts();
        let gref = page_gref[0];

        let grefs: Vec<GrantRef> = left.0.into_iter().chain(right.0).collect();
        let pages = Pages::of_server(orders, page, (left.1, right.1), &grefs, options.persist);
        let pages = Arc::new(pages);
        let sender = Producer::attach(Arc::clone(&pages), Ring::Right, orders.size(Ring::Right))?;
        let receiver = Consumer::attach(Arc::clone(&pages), Ring::Left, orders.size(Ring::Left))?;

        let interval = options.probe_interval;
        let sighting = hub.map(|hub| hub.sighting(client));
        let liveness =
            Liveness::new((own, client), events, Arc::clone(&store), Traced::Client, interval, sighting);
        let link = Link::new(pages, orders, (bound, own), liveness, hub);
        let channel = Channel::new(sender, receiver, Arc::clone(&link));

        // From here on a client may come.
        link.keep(Published::new(store, path, (own, client), Rendezvous { gref, port })?);
        tracing::debug!(client = client.0, path, "published");
        Ok(Self { channel })
    }

    /// Waits until the client has come.
    ///
    /// # Errors
    /// As [`wait`](Self::wait). The listener is closed then; who wants to go on calls that instead.
    pub fn accept(self) -> Result<Channel> {
        self.wait(None)?;
        Ok(self.channel)
    }

    /// Waits until the client has come, at most so long; may be repeated. [`into_channel`](Self::into_channel) then
    /// gives the channel. A client that came and left counts, too, unless the server persists.
    ///
    /// # Errors
    /// [`TimedOut`](Error::TimedOut), [`PeerDied`](Error::PeerDied), [`Violation`](Error::Violation).
    pub fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        let link = self.channel.link();
        let mut deadline = Deadline::new(timeout);
        loop {
            let ticket = link.waiter().ticket();
            if link.state()? != State::Waiting {
                return Ok(());
            }
            link.sleep(ticket, &mut deadline)?;
        }
    }

    /// As [`wait`](Self::wait), for a task; see [`Receiver::poll_recv`](crate::Receiver::poll_recv) for who wakes it.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.channel.poll_accept(context)
    }

    /// The descriptor that becomes readable when the client has come; see [`Channel::event_fd`].
    #[must_use]
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.event_fd()
    }

    /// Whether the client has come. For those who wait for the descriptor.
    ///
    /// # Errors
    /// [`PeerDied`](Error::PeerDied), [`Violation`](Error::Violation).
    pub fn state(&self) -> Result<State> {
        self.channel.link().waiter().drain()?;
        self.channel.state()
    }

    /// The sizes of the two rings.
    #[must_use]
    pub fn orders(&self) -> Orders {
        self.channel.orders()
    }

    /// The channel, whether the client has come or not: what is sent before waits for it in the ring.
    #[must_use]
    pub fn into_channel(self) -> Channel {
        self.channel
    }
}

/// What both sides begin with: xenstore and the own domain. A channel is between two domains that can exist.
pub(crate) fn begin(
    platform: &dyn Platform,
    hub: Option<&Arc<Switchboard>>,
    peer: DomId,
) -> Result<(Arc<dyn Xenstore>, DomId)> {
    let store = platform.xenstore()?;
    let own = hub.map_or_else(|| own_domid(&*store), |hub| Ok(hub.own()))?;
    if peer.0 >= DomId::FIRST_RESERVED {
        return Err(Error::ReservedDomain(peer));
    }
    if peer == own {
        return Err(Error::Loopback(peer));
    }
    Ok((store, own))
}

/// Shares the pages of a ring that has some of its own.
///
/// Both rings are shared for writing, as libxenvchan's server does: a ring that the client only reads could be shared
/// read-only, but ocaml-vchan maps both for writing.
fn share_ring(
    share: &dyn GrantShare,
    client: DomId,
    orders: Orders,
    ring: Ring,
) -> Result<(Vec<GrantRef>, RingMemory)> {
    match orders.place(ring) {
        Place::Inline(start) => Ok((Vec::new(), RingMemory::Inline(start))),
        Place::Pages { count, .. } => {
            let (grefs, memory) = share.share_pages(client, count, Access::ReadWrite)?.into_parts();
            Ok((grefs, RingMemory::Own(memory)))
        }
    }
}
