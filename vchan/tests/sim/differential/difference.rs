//! Where this library answers otherwise than libxenvchan, and why: all of it, and as narrow as it is.

use super::page::Page;
use crate::peers::Kind;

/// What a call may answer otherwise than libxenvchan does between two of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Difference {
    /// Nothing: the two answer the same.
    None,
    /// A message of more bytes than its ring ever holds. libxenvchan lets those wait for ever that do not block, and says
    /// of an open channel that it is closed to those that do; here it is an error of its own.
    TooLarge,
    /// Room that a receiver which blocks has not given back yet. libxenvchan publishes its index with every read, and here
    /// that is done each quarter of a ring (and at once by those that do not block); until `give-back`.
    RoomHeldBack {
        /// Bytes: less than that is held back.
        quarter: usize,
    },
    /// The state of a server that persists, while no client is there. libxenvchan says "open" whether or not, here it is
    /// "waiting".
    PersistentServer,
    /// Reading no bytes from an empty ring of a peer that has gone: libxenvchan sees the end; here, as with read(2),
    /// nothing was asked.
    NothingAtTheEnd,
    /// The room in the ring to a peer that has gone, after bytes were refused because of that. Here they may have been put
    /// into the ring before the live byte was looked at, which nobody will read.
    RoomAtTheEnd,
    /// The notify bits after traffic: libxenvchan asks for signals also when it does not wait. (And which references
    /// the grants have, which are not used twice.)
    NotifyBits,
}

impl Difference {
    /// How many kinds there are, without [`None`](Self::None).
    pub(super) const KINDS: usize = 6;

    /// Whether an end of this make may answer `answer` where libxenvchan with libxenvchan answered `reference`.
    pub(super) fn allows(self, (caller, peer): (Kind, Kind), reference: &str, answer: &str) -> bool {
        if reference == answer {
            return true;
        }
        let number = |text: &str| text.parse::<usize>().ok();
        match self {
            Self::None => false,
            Self::TooLarge => {
                caller == Kind::Ours
                    && ["would-block", "closed"].contains(&reference)
                    && answer == "too-large"
            }
            Self::RoomHeldBack { quarter } => {
                let held_back =
                    number(reference).zip(number(answer)).and_then(|(all, some)| all.checked_sub(some));
                peer == Kind::Ours && held_back.is_some_and(|bytes| bytes < quarter)
            }
            Self::PersistentServer => caller == Kind::Ours && (reference, answer) == ("1", "2"),
            Self::NothingAtTheEnd => caller == Kind::Ours && (reference, answer) == ("closed", "0"),
            Self::RoomAtTheEnd => caller == Kind::Ours && number(answer) < number(reference),
            Self::NotifyBits => without_notify_bits(reference) == without_notify_bits(answer),
        }
    }
}

/// A control page (as the observer says it) without its notify bytes and its references: only how many there are, and that
/// they are, remains.
fn without_notify_bits(page: &str) -> Option<Vec<u8>> {
    let mut page = Page::parse(page)?;
    page.bytes[22..24].fill(0);
    for gref in page.references_mut() {
        *gref = [u8::from(*gref != [0; 4]); 4];
    }
    Some(page.bytes)
}
