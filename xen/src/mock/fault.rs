//! Counting calls, and failing them on demand.

use crate::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

/// What was asked of a [`Machine`](super::Machine).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Calls by the C function's name.
    pub calls: BTreeMap<&'static str, u64>,
    /// Hypercalls that libxenctrl, libxenguest and libxenforeignmemory would have made, mappings of foreign memory
    /// (an ioctl that is a hypercall) included, unmappings not.
    pub hypercalls: u64,
}

impl Counts {
    /// How often a C function was called.
    #[must_use]
    pub fn of(&self, call: &str) -> u64 {
        self.calls.get(call).copied().unwrap_or(0)
    }

    /// Requests to xenstored.
    #[must_use]
    pub fn xenstore_requests(&self) -> u64 {
        self.calls
            .iter()
            .filter(|(call, _)| call.starts_with("xs_") && **call != "xs_open")
            .map(|(_, n)| n)
            .sum()
    }

    /// Transactions of xenstore that were opened.
    #[must_use]
    pub fn xenstore_transactions(&self) -> u64 {
        self.of("xs_transaction_start")
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    counts: Counts,
    planned: Vec<Planned>,
    /// How many calls there will be before the caller is dead.
    life: Option<u64>,
}

#[derive(Debug)]
struct Planned {
    call: Option<&'static str>,
    left: u64,
    kind: ErrorKind,
}

impl Faults {
    pub(super) fn counts(&self) -> Counts {
        self.counts.clone()
    }

    pub(super) fn reset_counts(&mut self) {
        self.counts = Counts::default();
    }

    pub(super) fn add(&mut self, call: Option<&'static str>, nth: u64, kind: ErrorKind) {
        self.planned.push(Planned { call, left: nth, kind });
    }

    pub(super) fn clear(&mut self) -> usize {
        std::mem::take(&mut self.planned).len()
    }

    pub(super) fn set_life(&mut self, calls: Option<u64>) {
        self.life = calls;
    }

    pub(super) fn enter(
        &mut self,
        call: &'static str,
        hypercalls: u64,
        args: impl FnOnce() -> String,
    ) -> Result<()> {
        match &mut self.life {
            None => {}
            // What its destructors would still do.
            Some(0) if std::thread::panicking() => return Err(Error::errno(call, args(), libc::EIO)),
            Some(0) => std::panic::resume_unwind(Box::new("killed")),
            Some(left) => *left -= 1,
        }
        *self.counts.calls.entry(call).or_default() += 1;
        if call.starts_with("xc_") && !call.starts_with("xc_interface")
            || call.starts_with("xenforeignmemory_map")
            || call.starts_with("XEN_DOMCTL_")
        {
            self.counts.hypercalls += hypercalls;
        }
        let mut failing = None;
        for (i, planned) in self.planned.iter_mut().enumerate() {
            if planned.call.is_none_or(|name| name == call) {
                match planned.left.checked_sub(1) {
                    Some(left) => planned.left = left,
                    None => failing = Some(i),
                }
            }
        }
        match failing {
            None => Ok(()),
            Some(i) => Err(Error::errno(call, args(), errno(self.planned.swap_remove(i).kind))),
        }
    }
}

/// An errno of that kind.
fn errno(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::Unavailable => libc::ENODEV,
        ErrorKind::PermissionDenied => libc::EACCES,
        ErrorKind::NotFound => libc::ENOENT,
        ErrorKind::AlreadyExists => libc::EEXIST,
        ErrorKind::Again => libc::EAGAIN,
        ErrorKind::Interrupted => libc::EINTR,
        ErrorKind::Exhausted => libc::ENOMEM,
        ErrorKind::Invalid => libc::EINVAL,
        ErrorKind::Other => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::Machine;
    use crate::{DomId, Platform};

    #[test]
    fn the_nth_call_fails_once() {
        let machine = Machine::new();
        let events = machine.domain(DomId(1)).event_channels().unwrap();
        machine.fail(Some("xenevtchn_bind_unbound_port"), 1, ErrorKind::Exhausted);
        events.bind_unbound(DomId(2)).unwrap();
        let error = events.bind_unbound(DomId(2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted);
        assert_eq!(error.call(), "xenevtchn_bind_unbound_port");
        assert!(error.to_string().contains("domid 2"), "{error}");
        events.bind_unbound(DomId(2)).unwrap();
        assert_eq!(machine.counts().of("xenevtchn_bind_unbound_port"), 3);
        assert_eq!(machine.clear_failures(), 0);
    }

    #[test]
    fn a_dead_caller_changes_nothing_any_more() {
        let machine = Machine::new();
        let events = machine.domain(DomId(1)).event_channels().unwrap();
        let before = machine.inventory();
        machine.kill_after(1);
        let port = events.bind_unbound(DomId(2)).unwrap();
        let held = machine.inventory();
        assert_ne!(held, before);
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| events.unbind(port)));
        assert!(killed.is_err());
        assert_eq!(machine.inventory(), held);
        machine.revive();
        events.unbind(port).unwrap();
        assert_eq!(machine.inventory(), before);
    }

    #[test]
    fn every_kind_survives_the_way_through_an_errno() {
        for kind in [
            ErrorKind::Unavailable,
            ErrorKind::PermissionDenied,
            ErrorKind::NotFound,
            ErrorKind::AlreadyExists,
            ErrorKind::Again,
            ErrorKind::Interrupted,
            ErrorKind::Exhausted,
            ErrorKind::Invalid,
            ErrorKind::Other,
        ] {
            assert_eq!(Error::errno("call", "", errno(kind)).kind(), kind);
        }
    }
}
