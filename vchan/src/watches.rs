//! Watches on keys in xenstore, by any number of threads over one connection.
//!
//! A connection hands each event out once. So of those who wait one, the leader, sleeps on the descriptor, and hands on what
//! is not for it by the watch's token.

use crate::Result;
use crate::deadline::poll_until;
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags};
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;
use xen::Xenstore;

/// The watches of a connection.
pub(crate) struct Watches {
    store: Arc<dyn Xenstore>,
    table: Mutex<Table>,
    /// The leader left, or watches fired.
    turned: Condvar,
}

#[derive(Default)]
struct Table {
    /// The watches by their tokens, and whether they fired.
    fired: HashMap<String, bool>,
    made: u64,
    led: bool,
}

impl Watches {
    pub(crate) fn new(store: Arc<dyn Xenstore>) -> Arc<Self> {
        Arc::new(Self { store, table: Mutex::default(), turned: Condvar::new() })
    }

    /// The descriptor that is readable when a watch has fired.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.store.as_fd()
    }

    /// Takes what has come, and notes whose it is.
    fn collect(&self) -> Result<()> {
        while let Some(event) = self.store.watch_event()? {
            if let Some(fired) = self.table.lock().fired.get_mut(&event.token) {
                *fired = true;
            }
        }
        Ok(())
    }
}

/// A watch, ended when this is dropped. It fires once as soon as it is made.
pub(crate) struct Watch {
    watches: Arc<Watches>,
    path: String,
    token: String,
}

impl Watch {
    pub(crate) fn new(watches: &Arc<Watches>, path: String) -> Result<Self> {
        let token = {
            let mut table = watches.table.lock();
            table.made += 1;
            let token = format!("vchan{}", table.made);
            table.fired.insert(token.clone(), false);
            token
        };
        let watch = Self { watches: Arc::clone(watches), path, token };
        watches.store.watch(&watch.path, &watch.token)?;
        Ok(watch)
    }

    /// Whether it has fired since it was last asked.
    pub(crate) fn has_fired(&self) -> Result<bool> {
        self.watches.collect()?;
        Ok(self.taken(&mut self.watches.table.lock()))
    }

    /// Sleeps until it fires; false when the time is up before.
    pub(crate) fn wait(&self, until: Option<Instant>) -> Result<bool> {
        let watches = &*self.watches;
        let mut table = watches.table.lock();
        while !self.taken(&mut table) {
            if until.is_some_and(|until| until <= Instant::now()) {
                return Ok(false);
            }
            if table.led {
                match until {
                    None => watches.turned.wait(&mut table),
                    Some(until) => _ = watches.turned.wait_until(&mut table, until),
                }
                continue;
            }
            table.led = true;
            drop(table);
            let event = PollFd::from_borrowed_fd(watches.as_fd(), PollFlags::IN);
            let collected = poll_until(&mut [event], until).and_then(|_| watches.collect());
            table = watches.table.lock();
            table.led = false;
            watches.turned.notify_all();
            collected?;
        }
        Ok(true)
    }

    fn taken(&self, table: &mut Table) -> bool {
        table.fired.get_mut(&self.token).is_some_and(std::mem::take)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // If it cannot be ended now, it ends with the connection.
        let _ = self.watches.store.unwatch(&self.path, &self.token);
        self.watches.table.lock().fired.remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;
    use xen::mock::Machine;
    use xen::{DomId, Platform, Transaction};

    #[test]
    fn each_waits_for_its_own_key_over_one_connection() {
        const LONG: Duration = Duration::from_secs(20);
        let domain = Machine::new().domain(DomId(1));
        let watches = Watches::new(domain.xenstore().unwrap());
        let other = domain.xenstore().unwrap();
        let watch: Vec<_> = (0..8).map(|n| Watch::new(&watches, format!("data/{n}")).unwrap()).collect();
        for watch in &watch {
            assert!(watch.wait(Some(Instant::now() + LONG)).unwrap(), "it fires when it is made");
            assert!(!watch.has_fired().unwrap());
            assert!(!watch.wait(Some(Instant::now() + Duration::from_millis(1))).unwrap());
        }
        thread::scope(|scope| {
            let waiting: Vec<_> = watch
                .iter()
                .map(|watch| scope.spawn(move || watch.wait(Some(Instant::now() + LONG)).unwrap()))
                .collect();
            // Those first that do not lead.
            for (n, waiting) in waiting.into_iter().enumerate().rev() {
                thread::sleep(Duration::from_millis(2));
                other.write(Transaction::NONE, &format!("data/{n}"), b"").unwrap();
                assert!(waiting.join().unwrap());
            }
        });
        assert!(watch.iter().all(|watch| !watch.has_fired().unwrap()));
    }
}
