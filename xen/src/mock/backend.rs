//! The backend drivers of a mock machine: what blkback and netback do with the states of their devices.

use super::Machine;

/// What drives the backends of devices (`/local/domain/B/backend/KIND/D/I/state`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backends {
    /// Nothing: no state ever changes by itself, as without the drivers' modules.
    #[default]
    Absent,
    /// Drivers that answer at once: a new device is ready for its frontend (1 becomes 2), one that is to close is closed
    /// (5 becomes 6). pciback's guests answer at once, too (1 and 7 become 4).
    Prompt,
    /// Drivers whose frontends never come: a new device waits (1 becomes 2), one that is to close is closed (5 becomes 6)
    /// when the guest's half of it is gone.
    Alone,
    /// Drivers that take a device (1 becomes 4), and never let go of it: their frontend does not.
    Clinging,
}

impl Backends {
    /// What becomes of a state that was written to `path`; `None` when it stays. `exists` knows what else there is.
    pub(super) fn answer(
        self,
        path: &str,
        state: &[u8],
        exists: impl Fn(&str) -> bool,
    ) -> Option<&'static [u8]> {
        let inside = path.strip_prefix("/local/domain/")?.strip_suffix("/state")?;
        let parts: Vec<&str> = inside.split('/').collect();
        let [_, "backend", kind, domid, devid] = parts[..] else { return None };
        if kind == "console" {
            return None;
        }
        let has_frontend = || exists(&format!("/local/domain/{domid}/device/{kind}/{devid}"));
        match (self, state) {
            // pciback changes what the guest has while it is connected, and so does its frontend here.
            (Self::Prompt, b"1" | b"7") if kind == "pci" => Some(b"4"),
            (Self::Clinging, b"1") if kind == "pci" => Some(b"3"),
            (Self::Prompt | Self::Alone, b"1") => Some(b"2"),
            (Self::Clinging, b"1") => Some(b"4"),
            (Self::Prompt, b"5") => Some(b"6"),
            (Self::Alone, b"5") if !has_frontend() => Some(b"6"),
            _ => None,
        }
    }
}

impl Machine {
    /// Lets backend drivers of that kind run from now on. Their own requests to xenstored are not counted and do not
    /// fail.
    pub fn run_backends(&self, backends: Backends) {
        self.0.state.lock().store.backends = backends;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DomId, Platform, Transaction};

    #[test]
    fn a_device_is_taken_and_let_go() {
        let machine = Machine::new();
        let store = machine.domain(DomId::DOM0).xenstore().unwrap();
        let state = "/local/domain/0/backend/vbd/1/51712/state";
        let write = |value: &[u8]| {
            store.write(Transaction::NONE, state, value).unwrap();
            store.read(Transaction::NONE, state).unwrap()
        };
        assert_eq!(write(b"1"), b"1", "there is no driver");
        machine.run_backends(Backends::Prompt);
        assert_eq!((write(b"1"), write(b"5")), (b"2".to_vec(), b"6".to_vec()));
        machine.run_backends(Backends::Clinging);
        assert_eq!((write(b"1"), write(b"5")), (b"4".to_vec(), b"5".to_vec()));
        machine.run_backends(Backends::Alone);
        let frontend = "/local/domain/1/device/vbd/51712";
        store.write(Transaction::NONE, frontend, b"").unwrap();
        assert_eq!((write(b"1"), write(b"5")), (b"2".to_vec(), b"5".to_vec()));
        store.remove(Transaction::NONE, frontend).unwrap();
        assert_eq!(write(b"5"), b"6");
        let console = "/local/domain/0/backend/console/1/0/state";
        store.write(Transaction::NONE, console, b"1").unwrap();
        assert_eq!(store.read(Transaction::NONE, console).unwrap(), b"1", "xenconsoled has no such states");
    }
}
