//! How long an operation may wait.

use crate::{Error, Result};
use rustix::event::{PollFd, Timespec, poll};
use std::time::{Duration, Instant};

/// When an operation has to end that may take `timeout`: counted from the first time that it has to wait, so that an
/// operation which need not wait does not look at the clock.
#[derive(Debug)]
pub(crate) struct Deadline {
    timeout: Option<Duration>,
    at: Option<Instant>,
}

impl Deadline {
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        Self { timeout, at: None }
    }

    /// The time; none if the operation may take for ever.
    pub(crate) fn at(&mut self) -> Option<Instant> {
        if self.at.is_none() {
            self.at = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        }
        self.at
    }

    /// The error when the time is up.
    pub(crate) fn passed(&mut self) -> Result<()> {
        match (self.at(), self.timeout) {
            (Some(at), Some(timeout)) if at <= Instant::now() => Err(Error::TimedOut(timeout)),
            _ => Ok(()),
        }
    }
}

/// Sleeps until a descriptor is ready or in error, or the time is up; says which are. Starts over after a signal.
pub(crate) fn poll_until<const N: usize>(
    fds: &mut [PollFd<'_>; N],
    until: Option<Instant>,
) -> Result<[bool; N]> {
    loop {
        let left = until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        match poll(fds, left.as_ref()) {
            Ok(_) => return Ok(fds.each_ref().map(|fd| !fd.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::System { call: "poll", source: errno.into() }),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn a_deadline_counts_from_the_first_wait() {
        let mut deadline = Deadline::new(Some(SHORT));
        thread::sleep(SHORT);
        deadline.passed().unwrap();
        thread::sleep(SHORT);
        assert!(matches!(deadline.passed(), Err(Error::TimedOut(SHORT))));
        for mut deadline in [Deadline::new(None), Deadline::new(Some(Duration::MAX))] {
            assert_eq!(deadline.at(), None);
            deadline.passed().unwrap();
        }
    }
}
