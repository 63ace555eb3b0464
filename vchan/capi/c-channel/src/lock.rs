//! The lock of a half of a channel.
//!
//! A half is one thread's at a time: C's libraries rely on that, and have no lock. Here a second thread is safe, and waits. So
//! that the first hardly pays for it, the lock is taken by one atomic step and given back by a mere store; another
//! mutex needs a second such step then, to learn whether somebody waits, and two of them were a quarter of what it costs to
//! send 64 bytes. The price is that nobody is woken: whoever waits looks again, at intervals that grow to a millisecond.
#![allow(unsafe_code, reason = "lock_api's contract for a mutex")]

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::thread;
use std::time::Duration;

/// For data that hardly ever two threads want at a time.
pub(crate) type Mutex<T> = lock_api::Mutex<Lock, T>;

/// Whether it is taken.
pub(crate) struct Lock(AtomicBool);

/// The first sleep of those who wait, and the longest.
const SLEEPS: [Duration; 2] = [Duration::from_micros(8), Duration::from_millis(1)];

impl Lock {
    #[cold]
    fn wait(&self) {
        let [mut sleep, longest] = SLEEPS;
        while self.0.swap(true, Acquire) {
            thread::sleep(sleep);
            sleep = (sleep * 2).min(longest);
        }
    }
}

// SAFETY: whoever finds `false` in its exchange has the lock, and only its holder stores `false`: one thread at a time has it,
// and sees what the one before it did (acquire after release).
unsafe impl lock_api::RawMutex for Lock {
    #[allow(clippy::declare_interior_mutable_const, reason = "what lock_api wants: each use is a new lock")]
    const INIT: Self = Self(AtomicBool::new(false));

    type GuardMarker = lock_api::GuardSend;

    #[inline]
    fn lock(&self) {
        if self.0.swap(true, Acquire) {
            self.wait();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        !self.0.swap(true, Acquire)
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_at_a_time_has_it() {
        let count = Mutex::new(0_u32);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for i in 0..1000 {
                        let mut count = count.lock();
                        let before = *count;
                        if i % 100 == 0 {
                            thread::yield_now();
                        }
                        *count = before + 1;
                    }
                });
            }
        });
        assert_eq!(*count.lock(), 3000);
    }

    #[test]
    fn whoever_waits_gets_it() {
        let lock = Mutex::new(());
        let held = lock.lock();
        assert!(lock.try_lock().is_none());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| drop(lock.lock()));
            thread::sleep(4 * SLEEPS[1]);
            assert!(!waiter.is_finished());
            drop(held);
            waiter.join().unwrap();
        });
        assert!(lock.try_lock().is_some());
    }
}
