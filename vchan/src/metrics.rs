//! What a channel has done so far.

use std::ops::Add;

/// Counts of one half of a channel, or of both, since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Metrics {
    /// Bytes that were sent or received.
    pub bytes: u64,
    /// Operations that moved them.
    pub operations: u64,
    /// Events that were sent to the peer: a hypercall each.
    pub notifications_sent: u64,
    /// Times that bytes or room were published and the peer had not asked to be told.
    pub notifications_suppressed: u64,
    /// Times that this side slept until an event, the end of its time, or a look after the peer's domain.
    pub sleeps: u64,
    /// Waits that were over before a sleep.
    pub spins_won: u64,
    /// Times that a sleep followed although it was put off.
    pub spins_lost: u64,
    /// Waits that were over when others had had the processor once.
    pub yields_won: u64,
    /// The most bytes that were seen in the ring.
    pub high_water: u32,
}

impl Add for Metrics {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            operations: self.operations + other.operations,
            notifications_sent: self.notifications_sent + other.notifications_sent,
            notifications_suppressed: self.notifications_suppressed + other.notifications_suppressed,
            sleeps: self.sleeps + other.sleeps,
            spins_won: self.spins_won + other.spins_won,
            spins_lost: self.spins_lost + other.spins_lost,
            yields_won: self.yields_won + other.yields_won,
            high_water: self.high_water.max(other.high_water),
        }
    }
}
