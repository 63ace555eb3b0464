//! Looks after the peers of those who sleep.
//!
//! The end of a domain is told to nobody ([`liveness`](crate::liveness)), and who sleeps in a read cannot look. So one
//! thread of the process looks for all its channels: at those on which somebody has slept without an event since it
//! looked last, and wakes the sleepers of a dead peer. Channels with traffic, and those that nobody waits for, cost
//! nothing but that thread's glance at them; without channels there is no thread.

use crate::liveness::Liveness;
use crate::wait::{Ticket, Waiter};
use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{process, thread};

/// A channel that is looked after.
struct Ward {
    // Of the channel no more than this: whoever drops it while it is looked at has closed it at once.
    waiter: Weak<Waiter>,
    liveness: Weak<Liveness>,
    /// When it is looked at next: not before the first of the two, if another one is due then, and else at the second. So
    /// any number of them soon have the thread wake once an interval.
    due: (Instant, Instant),
    /// What its waiter said last time, if somebody slept.
    before: Option<Ticket>,
    /// Whether it was looked at yet.
    known: bool,
}

struct Warden {
    wards: Mutex<Wards>,
    /// There is one ward more.
    came: Condvar,
}

struct Wards {
    list: Vec<Ward>,
    /// When the thread looks next.
    next: Option<Instant>,
    /// The process in which the thread runs; 0: it does not. (A child that was forked has the list, but not the thread.)
    watched_by: u32,
}

static WARDEN: Warden =
    Warden { wards: Mutex::new(Wards { list: Vec::new(), next: None, watched_by: 0 }), came: Condvar::new() };

/// Looks after a channel from now on, until it is dropped.
pub(crate) fn look_after(waiter: &Arc<Waiter>, liveness: &Arc<Liveness>) {
    // The first look is at the traces that will be missed: soon after the peer came, but not so soon that it may be about
    // to remove its keys.
    let Some(due) = due(Instant::now(), liveness.interval() / 5 * 2) else { return };
    let mut wards = WARDEN.wards.lock();
    let (waiter, liveness) = (Arc::downgrade(waiter), Arc::downgrade(liveness));
    wards.list.push(Ward { waiter, liveness, due, before: None, known: false });
    if wards.watched_by == process::id() {
        if wards.next.is_some_and(|next| due.1 < next) {
            WARDEN.came.notify_one();
        }
    } else {
        let thread = thread::Builder::new().name("vchan-warden".to_owned()).spawn(|| WARDEN.watch());
        // Without a thread nobody looks; the channels themselves work, and the next one tries again.
        wards.watched_by = if thread.is_ok() { process::id() } else { 0 };
    }
}

/// When to look after such an interval; None: never.
fn due(now: Instant, interval: Duration) -> Option<(Instant, Instant)> {
    Some((now.checked_add(interval - interval / 4)?, now.checked_add(interval)?))
}

impl Warden {
    fn watch(&self) {
        let mut wards = self.wards.lock();
        loop {
            wards.list.retain(|ward| ward.waiter.strong_count() > 0);
            wards.next = wards.list.iter().map(|ward| ward.due.1).min();
            let Some(first) = wards.next else {
                wards.watched_by = 0;
                return;
            };
            if first > Instant::now() {
                self.came.wait_until(&mut wards, first);
                continue;
            }
            // Looking asks Xen and xenstored: not under the lock. The time is asked once: under emulation that is dear.
            let mut due = Vec::new();
            let now = Instant::now();
            let mut at = 0;
            while at < wards.list.len() {
                if wards.list[at].due.0 <= now { due.push(wards.list.swap_remove(at)) } else { at += 1 }
            }
            drop(wards);
            due.retain_mut(|ward| ward.look(now));
            wards = self.wards.lock();
            wards.list.append(&mut due);
        }
    }
}

impl Ward {
    /// Looks; false when there is nothing more to look after.
    fn look(&mut self, now: Instant) -> bool {
        let (Some(waiter), Some(liveness)) = (self.waiter.upgrade(), self.liveness.upgrade()) else {
            return false;
        };
        let asleep = waiter.asleep();
        let quiet = asleep.is_some() && asleep == self.before;
        self.before = asleep;
        let first = !std::mem::replace(&mut self.known, true);
        if (quiet || first) && liveness.probe(now) {
            // Fails only where no event channel is to be had for it: then it is tried again.
            let _ = waiter.interrupt();
        }
        due(now, liveness.interval()).map(|due| self.due = due).is_some()
    }
}
