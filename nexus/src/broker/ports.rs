//! Ports of data vchans.

use crate::wire::FIRST_DATA_PORT;
use std::collections::{BTreeMap, HashMap};

/// How many data vchans two qubes may have: stock agents count no further (`MAX_CLIENTS`, libqrexec/qrexec.h).
const EACH: u32 = 256;

/// The ports in use between any two qubes, whoever of the two calls, and for what.
#[derive(Debug)]
pub(super) struct Ports<T> {
    used: HashMap<(u16, u16), BTreeMap<u32, T>>,
    /// Where the search begins. One that has just become free is not taken again at once: of the vchans of a nexusd before
    /// this one, between two stock agents, nobody tells.
    next: u32,
}

fn pair(one: u16, other: u16) -> (u16, u16) {
    (one.min(other), one.max(other))
}

impl<T> Ports<T> {
    pub(super) fn new(seed: u32) -> Self {
        Self { used: HashMap::new(), next: seed % EACH }
    }

    /// A port that is free, and no more so. None: all are taken.
    pub(super) fn allot(&mut self, one: u16, other: u16, holder: T) -> Option<u32> {
        let used = self.used.entry(pair(one, other)).or_default();
        let port = (0..EACH)
            .map(|step| FIRST_DATA_PORT + (self.next + step) % EACH)
            .find(|port| !used.contains_key(port))?;
        self.next = (port - FIRST_DATA_PORT + 1) % EACH;
        used.insert(port, holder);
        Some(port)
    }

    /// Who holds a port; to be held by somebody, too.
    pub(super) fn entry(&mut self, one: u16, other: u16, port: u32) -> Option<&mut T> {
        self.used.get_mut(&pair(one, other))?.get_mut(&port)
    }

    /// Notes that a port is in use, if it can be one of ours.
    pub(super) fn take(&mut self, one: u16, other: u16, port: u32, holder: T) {
        if (FIRST_DATA_PORT..FIRST_DATA_PORT + EACH).contains(&port) {
            self.used.entry(pair(one, other)).or_default().insert(port, holder);
        }
    }

    pub(super) fn free(&mut self, one: u16, other: u16, port: u32) {
        let pair = pair(one, other);
        if let Some(used) = self.used.get_mut(&pair) {
            used.remove(&port);
            if used.is_empty() {
                self.used.remove(&pair);
            }
        }
    }

    /// How many are in use.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.used.values().map(BTreeMap::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_qubes_share_their_ports_whoever_calls() {
        let mut ports = Ports::new(250);
        let first = ports.allot(1, 2, 'a').unwrap();
        let second = ports.allot(2, 1, 'b').unwrap();
        assert_ne!(first, second);
        assert_eq!(ports.entry(1, 2, second), Some(&mut 'b'));
        assert!(ports.allot(1, 3, 'c').is_some());
        for _ in 2..EACH {
            let port = ports.allot(1, 2, 'x').unwrap();
            assert!((513..769).contains(&port));
        }
        assert_eq!(ports.allot(1, 2, 'y'), None);
        ports.free(2, 1, first);
        assert_eq!(ports.allot(1, 2, 'y'), Some(first));
        ports.take(1, 2, 5000, 'z');
        assert_eq!(ports.count(), EACH as usize + 1);
    }
}
