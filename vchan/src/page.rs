//! The control page: where everything stands in it, and which ring sizes a server chooses.
//!
//! `struct vchan_interface` of xen/include/public/io/libxenvchan.h: one page, granted by the server, in native byte
//! order. The left ring carries bytes from the client to the server, the right ring from the server to the client.

use crate::{Error, Result, Violation};
use std::fmt;
use xen::{PAGE_SHIFT, PAGE_SIZE};

/// One of the two ends of a channel. Each has its own half of the control page's live and notify bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// Granted the pages and published them in xenstore.
    Server,
    /// Mapped them.
    Client,
}

impl Side {
    /// The other end.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::Server => Self::Client,
            Self::Client => Self::Server,
        }
    }

    /// The ring that this side fills.
    #[must_use]
    pub fn sends(self) -> Ring {
        match self {
            Self::Server => Ring::Right,
            Self::Client => Ring::Left,
        }
    }

    /// The ring that this side empties.
    #[must_use]
    pub fn receives(self) -> Ring {
        self.peer().sends()
    }

    /// Where this side's live byte stands: `cli_live` or `srv_live`.
    pub(crate) const fn live_offset(self) -> usize {
        match self {
            Self::Client => 20,
            Self::Server => 21,
        }
    }

    /// Where the bits stand that ask this side for a signal: `cli_notify` or `srv_notify`.
    pub(crate) const fn notify_offset(self) -> usize {
        match self {
            Self::Client => 22,
            Self::Server => 23,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Client => "client",
        })
    }
}

/// One of the two rings of a channel, by its name in the control page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ring {
    /// From the client to the server.
    Left,
    /// From the server to the client.
    Right,
}

impl Ring {
    /// Where the consumer's index stands: `left.cons` or `right.cons`.
    pub(crate) const fn cons_offset(self) -> usize {
        match self {
            Self::Left => 0,
            Self::Right => 8,
        }
    }

    /// Where the producer's index stands: `left.prod` or `right.prod`.
    pub(crate) const fn prod_offset(self) -> usize {
        self.cons_offset() + 4
    }

    /// Where the ring's order stands: `left_order` or `right_order`.
    pub(crate) const fn order_offset(self) -> usize {
        match self {
            Self::Left => 16,
            Self::Right => 18,
        }
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "left",
            Self::Right => "right",
        })
    }
}

/// Where the list of grant references begins: `grants`, 4 bytes each, the left ring's first.
pub(crate) const GRANTS_OFFSET: usize = 24;

/// A live byte: nobody has come yet (the client's only), here, gone.
pub(crate) const LIVE_AWAITED: u8 = 2;
pub(crate) const LIVE_HERE: u8 = 1;
pub(crate) const LIVE_GONE: u8 = 0;

/// The order of a ring that lies in the control page from byte 1,024 on, and of one that lies there from byte 2,048 on.
const SMALL_ORDER: u16 = 10;
const LARGE_ORDER: u16 = 11;
/// A ring of this order or a larger one has pages of its own.
const PAGE_ORDER: u16 = PAGE_SHIFT as u16;
/// The largest order: with two such rings the list of references still fits into the page.
const MAX_ORDER: u16 = 20;

/// Bytes of the largest ring: 1 MiB.
pub const MAX_RING: usize = 1 << MAX_ORDER;

/// The sizes of a channel's two rings, each log2 of bytes, 10 to 20.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Orders {
    left: u16,
    right: u16,
}

/// Where a ring's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// In the control page, from this byte on.
    Inline(usize),
    /// In pages of their own: the references `first..first + count` of the list.
    Pages { first: usize, count: usize },
}

impl Orders {
    /// The orders that libxenvchan's server chooses for rings that hold at least `left_min` and `right_min` bytes.
    /// Small rings go into the control page where the two places there (1 KiB and 2 KiB) suffice.
    ///
    /// # Errors
    /// [`Error::RingTooLarge`] above [`MAX_RING`].
    pub fn for_minimums(left_min: usize, right_min: usize) -> Result<Self> {
        for asked in [left_min, right_min] {
            if asked > MAX_RING {
                return Err(Error::RingTooLarge { asked });
            }
        }
        let (small, large) = (1 << SMALL_ORDER, 1 << LARGE_ORDER);
        let mut orders = Self { left: page_order(left_min), right: page_order(right_min) };
        if left_min <= small && right_min <= large {
            orders = Self { left: SMALL_ORDER, right: LARGE_ORDER };
        } else if left_min <= large && right_min <= small {
            orders = Self { left: LARGE_ORDER, right: SMALL_ORDER };
        } else if left_min <= large {
            orders.left = LARGE_ORDER;
        } else if right_min <= large {
            orders.right = LARGE_ORDER;
        }
        Ok(orders)
    }

    /// The orders that a server's page gives.
    ///
    /// Refused are: an order outside of 10 to 20; two equal orders below 12, which would share their place; and a list
    /// of references so long that it runs into a ring in the same page (order 10 beside order 20), which libxenvchan's
    /// client does not notice.
    pub(crate) fn of_page(left: u16, right: u16) -> std::result::Result<Self, Violation> {
        let orders = Self { left, right };
        let valid = |order| (SMALL_ORDER..=MAX_ORDER).contains(&order);
        if !valid(left) || !valid(right) || (left == right && left < PAGE_ORDER) {
            return Err(Violation::Orders { left, right });
        }
        let list_end = GRANTS_OFFSET + 4 * orders.grants();
        for ring in [Ring::Left, Ring::Right] {
            if let Place::Inline(start) = orders.place(ring)
                && list_end > start
            {
                return Err(Violation::Orders { left, right });
            }
        }
        Ok(orders)
    }

    /// The order of a ring.
    #[must_use]
    pub fn order(self, ring: Ring) -> u16 {
        match ring {
            Ring::Left => self.left,
            Ring::Right => self.right,
        }
    }

    /// The size of a ring in bytes: a power of 2.
    #[must_use]
    pub fn size(self, ring: Ring) -> u32 {
        1 << self.order(ring)
    }

    /// Pages of a ring's own.
    fn pages(self, ring: Ring) -> usize {
        match self.order(ring) {
            order if order < PAGE_ORDER => 0,
            order => 1 << (order - PAGE_ORDER),
        }
    }

    /// How many references the page lists.
    pub(crate) fn grants(self) -> usize {
        self.pages(Ring::Left) + self.pages(Ring::Right)
    }

    pub(crate) fn place(self, ring: Ring) -> Place {
        match (self.order(ring), ring) {
            (SMALL_ORDER, _) => Place::Inline(1 << SMALL_ORDER),
            (LARGE_ORDER, _) => Place::Inline(1 << LARGE_ORDER),
            (_, Ring::Left) => Place::Pages { first: 0, count: self.pages(ring) },
            (_, Ring::Right) => Place::Pages { first: self.pages(Ring::Left), count: self.pages(ring) },
        }
    }
}

/// The smallest order of a ring with pages of its own that holds `min` bytes.
fn page_order(min: usize) -> u16 {
    (min.next_power_of_two().ilog2() as u16).max(PAGE_ORDER)
}

const _: () = assert!(GRANTS_OFFSET + 2 * 4 * (MAX_RING / PAGE_SIZE) <= PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(left_min: usize, right_min: usize) -> (u16, u16) {
        let orders = Orders::for_minimums(left_min, right_min).unwrap();
        (orders.left, orders.right)
    }

    #[test]
    fn a_server_chooses_what_libxenvchan_chooses() {
        for (left_min, right_min, expected) in [
            (0, 0, (10, 11)),
            (1024, 1024, (10, 11)),
            (1024, 2048, (10, 11)),
            (2048, 1024, (11, 10)),
            (2048, 2048, (11, 12)),
            (1025, 1025, (11, 12)),
            (2048, 4096, (11, 12)),
            (4096, 1024, (12, 11)),
            (4096, 2048, (12, 11)),
            (4096, 4096, (12, 12)),
            (5000, 100, (13, 11)),
            (100, 5000, (11, 13)),
            (65_536, 65_537, (16, 17)),
            (MAX_RING, MAX_RING, (20, 20)),
            (MAX_RING, 0, (20, 11)),
        ] {
            assert_eq!(orders(left_min, right_min), expected, "for {left_min}, {right_min}");
        }
    }

    #[test]
    fn a_ring_of_more_than_1_mib_is_refused() {
        for (left, right) in [(MAX_RING + 1, 0), (0, MAX_RING + 1), (usize::MAX, usize::MAX)] {
            assert!(matches!(Orders::for_minimums(left, right), Err(Error::RingTooLarge { .. })));
        }
    }

    #[test]
    fn what_a_server_chooses_passes_the_clients_check_and_holds_what_was_asked_for() {
        let sizes: Vec<usize> = (0..=20).flat_map(|order| [(1 << order) - 1, 1 << order]).collect();
        for left_min in &sizes {
            for right_min in &sizes {
                let chosen = Orders::for_minimums(*left_min, *right_min).unwrap();
                assert_eq!(Orders::of_page(chosen.left, chosen.right), Ok(chosen));
                assert!(chosen.size(Ring::Left) as usize >= *left_min);
                assert!(chosen.size(Ring::Right) as usize >= *right_min);
            }
        }
    }

    #[test]
    fn every_pair_of_orders_is_judged() {
        for left in 0..=40 {
            for right in 0..=40 {
                let in_range = (10..=20).contains(&left) && (10..=20).contains(&right);
                let same_place = left == right && left < 12;
                let overlap = (left, right) == (10, 20) || (left, right) == (20, 10);
                assert_eq!(
                    Orders::of_page(left, right).is_ok(),
                    in_range && !same_place && !overlap,
                    "{left}, {right}"
                );
            }
        }
        assert_eq!(
            Orders::of_page(u16::MAX, 12),
            Err(Violation::Orders { left: u16::MAX, right: 12 }),
            "the error has the values"
        );
    }

    #[test]
    fn no_two_parts_of_a_valid_layout_overlap() {
        for left in 10..=20 {
            for right in 10..=20 {
                let Ok(orders) = Orders::of_page(left, right) else { continue };
                let list = GRANTS_OFFSET..GRANTS_OFFSET + 4 * orders.grants();
                let mut parts = vec![0..GRANTS_OFFSET, list];
                let mut grants = Vec::new();
                for ring in [Ring::Left, Ring::Right] {
                    match orders.place(ring) {
                        Place::Inline(at) => parts.push(at..at + orders.size(ring) as usize),
                        Place::Pages { first, count } => {
                            assert_eq!(count * PAGE_SIZE, orders.size(ring) as usize);
                            grants.extend(first..first + count);
                        }
                    }
                }
                assert!(grants.iter().copied().eq(0..orders.grants()), "each reference is used once");
                parts.sort_by_key(|part| part.start);
                assert!(
                    parts.windows(2).all(|pair| pair[0].end <= pair[1].start),
                    "{left}, {right}: {parts:?}"
                );
                assert!(parts.iter().all(|part| part.end <= PAGE_SIZE));
            }
        }
    }
}
