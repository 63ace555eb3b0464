//! Attempts that are made the less often the longer they fail.

/// Attempts that are left out after many failures in a row, before the next one.
pub(crate) const MOST_SKIPPED: u32 = 1 << 10;

/// When the next attempt is made.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Backoff {
    /// In a row.
    failures: u32,
    /// Attempts that are still to be left out.
    skip: u32,
}

impl Backoff {
    /// Whether this attempt is to be made.
    #[inline]
    pub(crate) fn is_over(self) -> bool {
        self.skip == 0
    }

    /// This attempt was left out.
    pub(crate) fn skipped(&mut self) {
        self.skip = self.skip.saturating_sub(1);
    }

    /// Twice as many are left out as after the failure before, and at least so many.
    pub(crate) fn failed(&mut self, at_least: u32) {
        self.failures = (self.failures + 1).min(MOST_SKIPPED.ilog2());
        self.skip = at_least.max(1 << self.failures);
    }

    /// None is left out any more.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many attempts are left out before the next one.
    fn skips(backoff: &mut Backoff) -> u32 {
        (0..)
            .take_while(|_| {
                let skips = !backoff.is_over();
                backoff.skipped();
                skips
            })
            .count() as u32
    }

    #[test]
    fn each_failure_doubles_what_is_left_out() {
        let mut backoff = Backoff::default();
        assert_eq!(skips(&mut backoff), 0);
        for skipped in (1..=MOST_SKIPPED.ilog2()).map(|n| 1 << n).chain([MOST_SKIPPED; 3]) {
            backoff.failed(0);
            assert_eq!(skips(&mut backoff), skipped);
        }
        backoff.succeeded();
        assert_eq!(skips(&mut backoff), 0);
        backoff.failed(0);
        assert_eq!(skips(&mut backoff), 2, "the failures before are forgotten");
        backoff.failed(5000);
        assert_eq!(skips(&mut backoff), 5000);
    }
}
