//! How long something takes, for tests that a long text takes no longer than its length. The processor's time: how busy the
//! machine is otherwise does not count.

use rustix::time::{ClockId, clock_gettime};

/// Fails when it takes more than so many seconds.
pub(super) fn assert_takes_at_most(seconds: i64, what: impl FnOnce()) {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    };
    let begin = now();
    what();
    let nanoseconds = now() - begin;
    assert!(nanoseconds < seconds * 1_000_000_000, "{nanoseconds} ns");
}
