//! Gives room back that a caller has left.
//!
//! libxenvchan gives the room of received bytes back with every read; we do so a quarter of the ring at a time, which is
//! what makes short reads fast. A caller that stops reading in the midst of what has come, and sleeps somewhere that we do
//! not see (in a read of a pipe, say) until its peer has got that room, would then sleep for ever. So whoever leaves room
//! unreturned is noted here, and if it has not touched the channel for a tick or two, a thread returns it. That thread
//! is there once there was such a caller, and sleeps while there is none.

use crate::Channel;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

/// Room is returned after one to two of these.
pub(crate) const TICK: Duration = Duration::from_millis(4);

struct Debtor {
    channel: Weak<Channel>,
    /// How many operations its receiving half had done at the last tick.
    operations: Option<u64>,
}

struct Debtors {
    list: Vec<Debtor>,
    /// Whether the thread runs.
    watched: bool,
}

static DEBTORS: Mutex<Debtors> = Mutex::new(Debtors { list: Vec::new(), watched: false });
static CAME: Condvar = Condvar::new();

/// This process was forked from one with such a thread, and has none.
static ORPHANED: AtomicBool = AtomicBool::new(false);

/// Whether room is to be returned at once, because nobody would do it later.
#[inline]
pub(crate) fn is_absent() -> bool {
    ORPHANED.load(Relaxed)
}

/// Looks after a channel that has left room unreturned. False if that is not possible.
pub(crate) fn note(channel: &Arc<Channel>) -> bool {
    if is_absent() {
        return false;
    }
    let mut debtors = DEBTORS.lock();
    if !debtors.watched {
        crate::boundary::on_fork(orphan);
        let thread = thread::Builder::new().name("vchan-returner".to_owned()).spawn(run);
        if thread.is_err() {
            return false;
        }
        debtors.watched = true;
    }
    debtors.list.push(Debtor { channel: Arc::downgrade(channel), operations: None });
    CAME.notify_one();
    true
}

/// Forgets a channel that is about to be closed; afterwards the thread does not touch it.
pub(crate) fn forget(channel: &Arc<Channel>) {
    if !is_absent() {
        DEBTORS.lock().list.retain(|debtor| debtor.channel.as_ptr() != Arc::as_ptr(channel));
    }
}

extern "C" fn orphan() {
    ORPHANED.store(true, Relaxed);
}

fn run() {
    loop {
        thread::sleep(TICK);
        let mut debtors = DEBTORS.lock();
        debtors.list.retain_mut(Debtor::still_owes);
        while debtors.list.is_empty() {
            CAME.wait(&mut debtors);
        }
    }
}

impl Debtor {
    fn still_owes(&mut self) -> bool {
        // Under the lock that `forget` takes: this is never the last to hold a channel.
        let Some(channel) = self.channel.upgrade() else { return false };
        let Some(operations) = channel.settle_if_left(self.operations) else { return false };
        self.operations = Some(operations);
        true
    }
}
