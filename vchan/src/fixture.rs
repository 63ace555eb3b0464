//! Two domains of a machine in memory, and channels between them, for the unit tests.

use crate::wire::{Pages, RingMemory};
use crate::{Channel, ConnectOptions, Hub, ListenOptions, Listener, Orders, Ring};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xen::mock::{Domain, Machine};
use xen::{Access, DomId, GrantMap, GrantShare, Mapping, Platform, Transaction};

pub(crate) const SERVER: DomId = DomId(1);
pub(crate) const CLIENT: DomId = DomId(2);
pub(crate) const PATH: &str = "data/vchan/2/7";

/// Minimums for both rings, and the orders that a server chooses for them: those that the table of the protocol lists.
pub(crate) const SIZES: [(usize, usize, u16, u16); 11] = [
    (0, 0, 10, 11),
    (1024, 1024, 10, 11),
    (1024, 2048, 10, 11),
    (2048, 1024, 11, 10),
    (2048, 2048, 11, 12),
    (1025, 1025, 11, 12),
    (2048, 4096, 11, 12),
    (4096, 1024, 12, 11),
    (4096, 4096, 12, 12),
    (5000, 100, 13, 11),
    (1 << 20, 1 << 20, 20, 20),
];

/// The shared pages of a channel as both sides see them, and as somebody sees them who keeps no rules.
pub(crate) struct Shared {
    pub(crate) server: Arc<Pages>,
    pub(crate) client: Arc<Pages>,
    pub(crate) raw: Mapping,
}

/// Pages without a channel around them.
pub(crate) fn shared(left_min: usize, right_min: usize) -> Shared {
    let machine = Machine::new();
    let share = machine.domain(SERVER).grant_share().unwrap();
    let map = machine.domain(CLIENT).grant_map().unwrap();
    let orders = Orders::for_minimums(left_min, right_min).unwrap();
    let (left, left_mapped) = ring(&*share, &*map, orders, Ring::Left);
    let (right, right_mapped) = ring(&*share, &*map, orders, Ring::Right);
    let (gref, page) = share.share_pages(CLIENT, 1, Access::ReadWrite).unwrap().into_parts();
    let mapped = || map.map(SERVER, &gref, Access::ReadWrite, None).unwrap();
    Shared {
        client: Arc::new(Pages::of_client(orders, mapped(), (left_mapped, right_mapped))),
        raw: mapped(),
        server: Arc::new(Pages::of_server(orders, page, (left, right), &[], false)),
    }
}

fn ring(share: &dyn GrantShare, map: &dyn GrantMap, orders: Orders, ring: Ring) -> (RingMemory, RingMemory) {
    match orders.place(ring) {
        crate::page::Place::Inline(start) => (RingMemory::Inline(start), RingMemory::Inline(start)),
        crate::page::Place::Pages { count, .. } => {
            let (grefs, memory) = share.share_pages(CLIENT, count, Access::ReadWrite).unwrap().into_parts();
            let mapped = map.map(SERVER, &grefs, Access::ReadWrite, None).unwrap();
            (RingMemory::Own(memory), RingMemory::Own(mapped))
        }
    }
}

/// A machine with the two domains.
pub(crate) struct Host {
    pub(crate) machine: Machine,
    pub(crate) server: Domain,
    pub(crate) client: Domain,
}

impl Host {
    pub(crate) fn new() -> Self {
        let machine = Machine::new();
        let (server, client) = (machine.domain(SERVER), machine.domain(CLIENT));
        Self { machine, server, client }
    }

    pub(crate) fn listen(&self, options: &ListenOptions) -> Listener {
        Listener::open(&self.server, CLIENT, PATH, options).unwrap()
    }

    pub(crate) fn connect(&self) -> Channel {
        Channel::connect(&self.client, SERVER, PATH, &ConnectOptions::default()).unwrap()
    }

    /// Server and client, joined.
    pub(crate) fn pair(&self, options: &ListenOptions) -> (Channel, Channel) {
        let listener = self.listen(options);
        let client = self.connect();
        (listener.accept().unwrap(), client)
    }

    /// The same, each end through a hub.
    pub(crate) fn pair_of_hubs(&self, options: &ListenOptions) -> (Channel, Channel) {
        let [server, client] = [&self.server, &self.client].map(|domain| Hub::open(domain.clone()).unwrap());
        let listener = server.listen(CLIENT, PATH, options).unwrap();
        let client = client.connect(SERVER, PATH, &ConnectOptions::default()).unwrap();
        (listener.accept().unwrap(), client)
    }

    /// Waits until the machine is as it was: a warden may be looking at a port that has just been given up.
    #[track_caller]
    pub(crate) fn becomes(&self, before: &[String], when: &str) {
        let begin = Instant::now();
        while self.machine.inventory() != before {
            assert!(begin.elapsed() < Duration::from_secs(20), "{when}: {:?}", self.machine.inventory());
            std::thread::yield_now();
        }
    }

    /// The control page of the channel that is published, as the client maps it.
    pub(crate) fn control_page(&self) -> Mapping {
        let store = self.client.xenstore().unwrap();
        let key = format!("/local/domain/{SERVER}/{PATH}/ring-ref");
        let value = String::from_utf8(store.read(Transaction::NONE, &key).unwrap()).unwrap();
        let gref = xen::GrantRef(value.parse().unwrap());
        let map = self.client.grant_map().unwrap();
        map.map(SERVER, &[gref], Access::ReadWrite, None).unwrap()
    }
}

/// Options for rings that hold so many bytes; the life of the peer's domain is looked at often.
pub(crate) fn sizes(read_min: usize, write_min: usize) -> ListenOptions {
    ListenOptions {
        read_min,
        write_min,
        probe_interval: Duration::from_millis(20),
        ..ListenOptions::default()
    }
}

/// Bytes that differ from their neighbours and from those a ring's length away.
pub(crate) fn pattern(start: usize, len: usize) -> Vec<u8> {
    (start..start + len).map(|i| (i ^ i >> 8 ^ i >> 16).wrapping_mul(167) as u8).collect()
}
