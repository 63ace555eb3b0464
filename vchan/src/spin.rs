//! Looking again and again for a short time before sleeping.
//!
//! A sleep and the wake-up that ends it cost two system calls and two switches: some microseconds on any machine, tens
//! of them under Xen. A peer that is at work on another processor mostly answers sooner. But who spins while nothing
//! comes wastes a processor, and who spins on the one that the peer needs waits for himself. So a spin
//!
//! * is bounded by the clock ([`BUDGET`]: about what a sleep costs, so it at most doubles that);
//! * learns: each one that finds nothing doubles the number of waits that do without ([`Backoff`]);
//! * counts a find after the thread itself was off the processor as a failure: then the peer needed it;
//! * is off where there is one processor only;
//! * costs an idle channel nothing: it comes once before a sleep, however long that lasts.
//!
//! Between two looks it pauses, for each look takes the cache line with the indices away from the peer that is about to
//! write to it. Behind a busy sender a longer *lull* finds many messages at once, which speeds up both; in a conversation
//! there is one message to find and a lull only delays it. So its length is found by trial: it stays doubled if more was
//! found for it.

use crate::backoff::Backoff;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The longest time that one spin takes.
const BUDGET: Duration = Duration::from_micros(25);
/// Whoever was away for so long was not spinning but waiting for a processor.
const DESCHEDULED: Duration = Duration::from_micros(100);
/// Pauses between two looks (some tens of nanoseconds each), at most.
const LONGEST_LULL: u32 = 64;
/// How many times as long, or as short, the lull is that is tried next.
const LULL_STEP: u32 = 4;
/// Bytes beside which the handing over of a line is a small thing.
const PLENTY: u32 = 32768;
/// Finds by which a lull is judged.
const GROUP: u32 = 16;
/// Pauses between two looks at the clock.
const CLOCK_INTERVAL: u32 = 32;

/// The memory of a side's spins at one ring.
#[derive(Debug)]
pub(crate) struct Spin {
    enabled: bool,
    backoff: Backoff,
    lull: Lull,
}

/// How a spin ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Spun {
    /// So many bytes were there at the first look.
    AtOnce(u32),
    /// It found so many bytes.
    Found(u32),
    /// It found nothing.
    Failed,
    /// There was none, after the first look.
    Skipped,
}

impl Spin {
    /// Spins if there is more than one processor.
    pub(crate) fn new() -> Self {
        Self { enabled: processors() > 1, backoff: Backoff::default(), lull: Lull::default() }
    }

    /// Whether there are spins at all.
    pub(crate) fn enable(&mut self, enabled: bool) {
        *self = Self { enabled, ..Self::new() };
    }

    /// Looks until there are at least `want` bytes, for a short time; at least once.
    #[inline]
    pub(crate) fn look<E>(&mut self, want: u32, mut look: impl FnMut() -> Result<u32, E>) -> Result<Spun, E> {
        let spins = self.enabled && self.backoff.is_over();
        if spins {
            self.lull.pause();
        }
        let found = look()?;
        if found >= want {
            if spins {
                self.lull.learn(found);
            }
            return Ok(Spun::AtOnce(found));
        }
        if !spins {
            self.backoff.skipped();
            return Ok(Spun::Skipped);
        }
        self.spin(want, look)
    }

    fn spin<E>(&mut self, want: u32, mut look: impl FnMut() -> Result<u32, E>) -> Result<Spun, E> {
        let begin = Instant::now();
        let mut until_clock = CLOCK_INTERVAL;
        loop {
            self.lull.pause();
            let found = look()?;
            if found >= want {
                // The clock is looked at only when the spin took long enough for that to be a small part of it.
                if until_clock < CLOCK_INTERVAL / 2 && begin.elapsed() > DESCHEDULED {
                    self.fail();
                } else {
                    self.backoff.succeeded();
                    self.lull.learn(found);
                }
                return Ok(Spun::Found(found));
            }
            until_clock = until_clock.saturating_sub(self.lull.pauses);
            if until_clock == 0 {
                if begin.elapsed() > BUDGET {
                    self.fail();
                    return Ok(Spun::Failed);
                }
                until_clock = CLOCK_INTERVAL;
            }
        }
    }

    fn fail(&mut self) {
        self.backoff.failed(0);
        self.lull = Lull::default();
    }
}

/// How long to pause before a look.
#[derive(Debug)]
struct Lull {
    pauses: u32,
    /// Finds of this group, and the bytes of them all.
    finds: u32,
    sum: u64,
    /// While another lull is tried: the one before it, and the bytes of a group then.
    trial: Option<(u32, u64)>,
    /// Whether a longer one is tried next, or a shorter one.
    longer: bool,
}

impl Default for Lull {
    fn default() -> Self {
        Self { pauses: 1, finds: 0, sum: 0, trial: None, longer: true }
    }
}

impl Lull {
    fn pause(&self) {
        for _ in 0..self.pauses {
            std::hint::spin_loop();
        }
    }

    /// A look found so many bytes.
    fn learn(&mut self, found: u32) {
        if found >= PLENTY {
            // Nothing is to be gained; and a lull before much work is time lost.
            *self = Self::default();
            return;
        }
        self.finds += 1;
        self.sum += u64::from(found);
        if self.finds == GROUP {
            self.finds = 0;
            let sum = std::mem::take(&mut self.sum);
            self.judge(sum);
        }
    }

    fn judge(&mut self, sum: u64) {
        if let Some((before, sum_before)) = self.trial.take() {
            // The longer of the two must have found a quarter more to be worth it.
            let (long, short) = if self.longer { (sum, sum_before) } else { (sum_before, sum) };
            let longer_is_better = long * 4 >= short * 5;
            if longer_is_better != self.longer {
                self.pauses = before;
            }
            self.longer = longer_is_better;
        } else {
            let tried = if self.longer { self.pauses * LULL_STEP } else { self.pauses / LULL_STEP };
            if (1..=LONGEST_LULL).contains(&tried) {
                self.trial = Some((self.pauses, sum));
                self.pauses = tried;
            } else {
                self.longer = !self.longer;
            }
        }
    }
}

/// How many processors there are. (How many this process may use says nothing: its peer may use others.)
fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| {
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online");
        // Not known: then a spin could be a wait for oneself.
        online.ok().and_then(|list| count_of(&list)).unwrap_or(1)
    })
}

/// How many numbers a list such as `0-3,5` has.
fn count_of(list: &str) -> Option<usize> {
    let mut count = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        count += last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn spin() -> Spin {
        Spin { enabled: true, backoff: Backoff::default(), lull: Lull::default() }
    }

    fn nothing() -> Result<u32, Infallible> {
        Ok(0)
    }

    #[test]
    fn a_spin_ends_when_enough_is_there() {
        let mut looks = 0;
        let spun = spin().look(3, || {
            looks += 1;
            Ok::<_, Infallible>(looks)
        });
        assert_eq!((spun, looks), (Ok(Spun::Found(3)), 3));
        assert_eq!(spin().look(1, || Err::<u32, _>("broken")), Err("broken"));
    }

    #[test]
    fn a_spin_that_finds_nothing_is_short_and_makes_the_next_ones_rare() {
        let mut spin = spin();
        let mut spins = 0;
        for _ in 0..10_000 {
            match spin.look(1, nothing).unwrap() {
                Spun::Failed => spins += 1,
                other => assert_eq!(other, Spun::Skipped),
            }
        }
        // 2 + 4 + ... + 1,024 are skipped at first, and then 1,024 each time.
        assert!((15..=20).contains(&spins), "{spins} spins");
    }

    #[test]
    fn a_find_brings_the_spins_back() {
        let mut spin = spin();
        for _ in 0..3 {
            while spin.look(1, nothing) != Ok(Spun::Failed) {}
        }
        let mut second = || {
            let mut looks = 0;
            spin.look(1, move || {
                looks += 1;
                Ok::<_, Infallible>(looks - 1)
            })
        };
        while second() == Ok(Spun::Skipped) {}
        assert_eq!(second(), Ok(Spun::Found(1)));
        assert_eq!(second(), Ok(Spun::Found(1)), "no wait is skipped any more");
    }

    #[test]
    fn who_was_off_the_processor_did_not_win() {
        let mut spin = spin();
        let mut looks = 0;
        let spun = spin.look(1, || {
            looks += 1;
            if looks == CLOCK_INTERVAL {
                std::thread::sleep(2 * DESCHEDULED);
            }
            Ok::<_, Infallible>(u32::from(looks == CLOCK_INTERVAL))
        });
        assert_eq!(spun, Ok(Spun::Found(1)));
        assert!(!spin.backoff.is_over());
    }

    #[test]
    fn processors_are_counted() {
        assert_eq!(
            ["0\n", "0-1\n", "0,2-3,7-7", "", "x-1", "3-1"].map(count_of),
            [Some(1), Some(2), Some(4), None, None, None]
        );
    }

    #[test]
    fn a_disabled_spin_looks_once() {
        let mut spin = spin();
        spin.enable(false);
        let mut looks = 0;
        let spun = spin.look(9, || {
            looks += 1;
            Ok::<_, Infallible>(looks)
        });
        assert_eq!((spun, looks), (Ok(Spun::Skipped), 1));
        assert_eq!(spin.look(1, || Ok::<_, Infallible>(1)), Ok(Spun::AtOnce(1)));
    }

    /// The lull after many finds of what `there` says is there after so many pauses.
    fn lull_after(there: impl Fn(u32) -> u32) -> u32 {
        let mut lull = Lull::default();
        for _ in 0..GROUP * 40 {
            lull.learn(there(lull.pauses));
        }
        lull.trial.map_or(lull.pauses, |(before, _)| before)
    }

    #[test]
    fn the_lull_grows_behind_a_stream_and_not_in_a_conversation() {
        assert_eq!(lull_after(|pauses| 64 * (4 + pauses)), LONGEST_LULL);
        assert_eq!(lull_after(|_| 64), 1);
        // A sender with a message every two pauses.
        assert!(lull_after(|pauses| 64 * (1 + pauses / 2)) >= 16);
    }

    #[test]
    fn there_is_no_lull_before_much_work() {
        let mut lull = Lull { pauses: LONGEST_LULL, ..Lull::default() };
        lull.learn(PLENTY);
        assert_eq!(lull.pauses, 1);
        assert_eq!(lull_after(|pauses| PLENTY * (4 + pauses)), 1);
    }

    #[test]
    fn the_lull_shrinks_when_a_stream_becomes_a_conversation() {
        let mut lull = Lull { pauses: LONGEST_LULL, ..Lull::default() };
        for _ in 0..GROUP * 40 {
            lull.learn(64);
        }
        assert!(lull.pauses <= LULL_STEP);
    }
}
