//! How much of the broker's time a qube may take.

use std::time::{Duration, Instant};

/// Tokens that come back with time. What was spent beyond them is a debt, and whoever has one waits: the price of a
/// request is known only when it was decided.
#[derive(Debug)]
pub(super) struct Bucket {
    /// In tokens; below zero is debt.
    level: f64,
    seen: Instant,
}

/// How many tokens come back in a second.
const RATE: f64 = 20_000.0;
/// The most that there are: a burst.
const ROOM: f64 = 20_000.0;

/// A message that was understood.
pub(super) const MESSAGE: f64 = 1.0;
/// A request that came to nothing: it has cost a line of the log, and nobody gained by it.
pub(super) const REFUSED: f64 = 100.0;

impl Bucket {
    pub(super) fn new(now: Instant) -> Self {
        Self { level: ROOM, seen: now }
    }

    pub(super) fn spend(&mut self, tokens: f64, now: Instant) {
        self.refill(now);
        self.level -= tokens;
    }

    /// How long until there is no debt.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        self.refill(now);
        if self.level >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.level / RATE) }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.seen).as_secs_f64();
        self.level = (self.level + passed * RATE).min(ROOM);
        self.seen = self.seen.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_spent_too_much_waits_for_it() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        bucket.spend(ROOM, start);
        assert_eq!(bucket.wait(start), Duration::ZERO);
        bucket.spend(RATE / 2.0, start);
        assert_eq!(bucket.wait(start), Duration::from_millis(500));
        assert_eq!(bucket.wait(start + Duration::from_millis(200)), Duration::from_millis(300));
        assert_eq!(bucket.wait(start + Duration::from_millis(500)), Duration::ZERO);
        // What was not spent is not kept for ever.
        let later = start + Duration::from_secs(3600);
        bucket.spend(ROOM + RATE, later);
        assert_eq!(bucket.wait(later), Duration::from_secs(1));
    }
}
