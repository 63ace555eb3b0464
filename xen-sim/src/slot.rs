//! One event channel's end in shared memory: the pending and mask bits, and who hears when it notifies.
//!
//! This is all that the data path touches. A notification is one atomic operation on the peer's slot; only the one that
//! finds it neither pending nor masked also writes the port number, 4 bytes, into the peer's pipe, which is what makes
//! the descriptor of its handle readable.

use crate::wire::SlotId;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// An event waits for the port to be unmasked.
const PENDING: u64 = 1;
/// The port number is in the pipe, or was read from it and not unmasked since.
const MASKED: u64 = 2;
const FLAGS: u64 = PENDING | MASKED;

/// A slot of the [`SlotTable`](crate::memory::SlotTable), on a cache line of its own: two channels do not slow each
/// other down.
///
/// The zeroed slot is that of no port.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Generation in the upper bits, flags in the lower two. One word, so that a notifier with an outdated idea of
    /// who its peer is cannot mask the port that has the slot now.
    state: AtomicU64,
    /// The peer's `SlotId`, packed; 0 while nobody is bound. Written by the host alone.
    peer: AtomicU64,
}

fn pack(id: SlotId) -> u64 {
    u64::from(id.generation) << 32 | u64::from(id.index)
}

fn unpack(word: u64) -> Option<SlotId> {
    (word != 0).then_some(SlotId { index: word as u32, generation: (word >> 32) as u32 })
}

impl Slot {
    /// Starts a new use of the slot: not pending, not masked, nobody bound.
    pub(crate) fn reset(&self, generation: u32) {
        self.peer.store(0, SeqCst);
        self.state.store(u64::from(generation) << 2, SeqCst);
    }

    /// Who is bound to the other end.
    pub(crate) fn peer(&self) -> Option<SlotId> {
        unpack(self.peer.load(SeqCst))
    }

    /// Says who is bound to the other end.
    pub(crate) fn set_peer(&self, peer: Option<SlotId>) {
        self.peer.store(peer.map_or(0, pack), SeqCst);
    }

    /// An event for this port. True: the caller has to write the port into the pipe.
    ///
    /// Always a read-modify-write, even if it changes nothing: what the notifier wrote before must be visible to
    /// whoever finds the pending bit when it unmasks.
    pub(crate) fn raise(&self, generation: u32) -> bool {
        let raised = self.state.fetch_update(SeqCst, SeqCst, |state| match state & FLAGS {
            _ if state >> 2 != u64::from(generation) => None,
            0 => Some(state | MASKED),
            _ => Some(state | PENDING),
        });
        raised.is_ok_and(|before| before & FLAGS == 0)
    }

    /// The consumer has read the port and is ready for the next event. True: there is one already, and the caller has to
    /// write the port into the pipe again.
    pub(crate) fn unmask(&self, generation: u32) -> bool {
        let unmasked = self.state.fetch_update(SeqCst, SeqCst, |state| match state & FLAGS {
            _ if state >> 2 != u64::from(generation) => None,
            MASKED => Some(state & !FLAGS),
            FLAGS => Some(state & !PENDING),
            _ => None,
        });
        unmasked.is_ok_and(|before| before & PENDING != 0)
    }

    /// An event that must arrive whatever state the slot was left in: the caller always writes the port into the pipe.
    ///
    /// A process that is killed between `raise` and the write leaves a masked port that nobody will ever read. The host,
    /// which sends the events of the dead, therefore does not trust the mask; at worst the port is read twice, and a
    /// spurious event is legal.
    pub(crate) fn force(&self, generation: u32) {
        self.state.store(u64::from(generation) << 2 | MASKED, SeqCst);
    }

    /// Neither pending nor masked: nothing can have been lost.
    pub(crate) fn is_idle(&self) -> bool {
        self.state.load(SeqCst) & FLAGS == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    const GENERATION: u32 = 5;

    fn slot() -> Slot {
        let slot = Slot::default();
        slot.reset(GENERATION);
        slot
    }

    #[test]
    fn events_coalesce_until_the_port_is_unmasked() {
        let slot = slot();
        assert!(slot.raise(GENERATION), "the first event is delivered");
        assert!(!slot.raise(GENERATION), "masked: it waits");
        assert!(!slot.raise(GENERATION), "pending: it is the same event");
        assert!(slot.unmask(GENERATION), "the one that waited is delivered now");
        assert!(!slot.unmask(GENERATION), "and only once");
        assert!(slot.is_idle());
        assert!(slot.raise(GENERATION), "back at the start");
    }

    #[test]
    fn unmasking_what_is_not_masked_does_nothing() {
        let slot = slot();
        assert!(!slot.unmask(GENERATION));
        assert!(slot.raise(GENERATION));
    }

    #[test]
    fn an_earlier_use_of_the_slot_cannot_touch_this_one() {
        let slot = slot();
        assert!(!slot.raise(GENERATION - 1));
        assert!(slot.is_idle());
        assert!(slot.raise(GENERATION));
        assert!(!slot.raise(GENERATION));
        assert!(!slot.unmask(GENERATION - 1), "not its event");
        assert!(slot.unmask(GENERATION));
    }

    #[test]
    fn the_host_gets_through_a_mask_that_was_left_behind() {
        let slot = slot();
        assert!(slot.raise(GENERATION), "delivered, says the slot; but the notifier dies before it writes");
        assert!(!slot.raise(GENERATION), "nobody else would write");
        slot.force(GENERATION);
        assert!(!slot.unmask(GENERATION), "the forced delivery covers the event that waited");
        assert!(slot.raise(GENERATION));
    }

    #[test]
    fn a_peer_is_remembered_with_its_generation() {
        let slot = slot();
        assert_eq!(slot.peer(), None);
        let peer = SlotId { index: 0, generation: u32::MAX };
        slot.set_peer(Some(peer));
        assert_eq!(slot.peer(), Some(peer));
        slot.reset(GENERATION + 1);
        assert_eq!(slot.peer(), None);
    }

    /// Every event is followed by a delivery that happens after it: what was written before the last `raise` is seen by
    /// the consumer.
    #[test]
    fn no_wakeup_is_lost_between_two_threads() {
        const ROUNDS: u32 = 20_000;
        let slot = slot();
        let written = AtomicU32::new(0);
        let tokens = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    written.store(round, std::sync::atomic::Ordering::Relaxed);
                    if slot.raise(GENERATION) {
                        tokens.fetch_add(1, SeqCst);
                    }
                }
            });
            let mut seen = 0;
            while seen < ROUNDS {
                if tokens.load(SeqCst) == 0 {
                    std::hint::spin_loop();
                    continue;
                }
                tokens.fetch_sub(1, SeqCst);
                if slot.unmask(GENERATION) {
                    tokens.fetch_add(1, SeqCst);
                }
                seen = written.load(std::sync::atomic::Ordering::Relaxed);
            }
        });
        assert!(tokens.load(SeqCst) <= 1, "at most one delivery is outstanding");
    }
}
