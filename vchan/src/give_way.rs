//! Giving the processor away once before sleeping.
//!
//! Where both ends of a channel are on one processor, spinning keeps the peer from its work; but to sleep, only to be woken
//! by the peer's answer, costs both a system call more than to let it run: who is woken had to ask for a signal, which the
//! other had to send. So a half that found nothing lets others run once (sched_yield(2)) and looks again.
//!
//! That helps in a channel within one domain (or under `xen-sim`). To a peer in another domain, of which this one's
//! scheduler knows nothing, it is lost time, if little: then others have nothing to do, and the call returns at once. A
//! processor with other work on it is worse: whoever gives way to that gets it back a time slice later, and a sleeper would
//! have been preferred. Both are learnt from ([`Backoff`]): the longer it was away in vain, the more waits do without.

use crate::backoff::Backoff;
use std::time::{Duration, Instant};

/// Whoever was away for so long gave way to something else than the peer.
const TOO_LONG: Duration = Duration::from_micros(100);
/// What a wait may lose on average by what was in vain: little beside the microsecond or two that giving way saves.
const LOSS: Duration = Duration::from_nanos(100);

/// The memory of a half that gives way.
#[derive(Debug)]
pub(crate) struct GiveWay {
    enabled: bool,
    backoff: Backoff,
}

impl GiveWay {
    pub(crate) fn new(enabled: bool) -> Self {
        Self { enabled, backoff: Backoff::default() }
    }

    /// Gives way, if that is worth trying, and looks. None: it did not, or there are fewer than `want` bytes still.
    pub(crate) fn look<E>(
        &mut self,
        want: u32,
        look: impl FnOnce() -> Result<u32, E>,
    ) -> Result<Option<u32>, E> {
        let give_way = || {
            let begin = Instant::now();
            std::thread::yield_now();
            begin.elapsed()
        };
        self.attempt(want, give_way, look)
    }

    /// With a way of giving way that says how long that took.
    fn attempt<E>(
        &mut self,
        want: u32,
        give_way: impl FnOnce() -> Duration,
        look: impl FnOnce() -> Result<u32, E>,
    ) -> Result<Option<u32>, E> {
        if !self.enabled {
            return Ok(None);
        }
        if !self.backoff.is_over() {
            self.backoff.skipped();
            return Ok(None);
        }
        let away = give_way();
        let found = Some(look()?).filter(|found| *found >= want);
        if found.is_some() && away <= TOO_LONG {
            self.backoff.succeeded();
        } else {
            self.backoff.failed((away.as_nanos() / LOSS.as_nanos()).try_into().unwrap_or(u32::MAX));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;

    /// Whether it gave way, and what came of it.
    fn attempt(half: &mut GiveWay, away: Duration, found: u32) -> (bool, Option<u32>) {
        let gave_way = Cell::new(false);
        let give_way = || {
            gave_way.set(true);
            away
        };
        let outcome = half.attempt(2, give_way, || Ok::<_, Infallible>(found)).unwrap();
        (gave_way.get(), outcome)
    }

    #[test]
    fn a_peer_that_answers_is_given_way_again() {
        let mut half = GiveWay::new(true);
        for _ in 0..3 {
            assert_eq!(attempt(&mut half, TOO_LONG, 2), (true, Some(2)));
        }
    }

    #[test]
    fn what_is_in_vain_becomes_rare() {
        let mut half = GiveWay::new(true);
        let tries = (0..10_000).filter(|_| attempt(&mut half, Duration::ZERO, 1) == (true, None)).count();
        assert!((15..=20).contains(&tries), "{tries} tries");
    }

    #[test]
    fn other_work_on_the_processor_makes_it_rare() {
        let mut half = GiveWay::new(true);
        assert_eq!(attempt(&mut half, 2 * TOO_LONG, 2), (true, Some(2)), "what is there is taken");
        for _ in 0..2 * TOO_LONG.as_nanos() / LOSS.as_nanos() {
            assert_eq!(attempt(&mut half, Duration::ZERO, 2), (false, None));
        }
    }

    #[test]
    fn it_can_be_switched_off_and_an_error_is_told() {
        assert_eq!(attempt(&mut GiveWay::new(false), Duration::ZERO, 2), (false, None));
        assert_eq!(GiveWay::new(true).look(1, || Err("broken")), Err("broken"));
    }
}
