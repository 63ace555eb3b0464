//! How much memory a domain has and may have, once it runs: its guest's balloon driver follows `memory/target`.

use crate::qubes::{Qube, QubeError, Qubes};
use crate::store::{self, home, vm_path};
use std::time::{Duration, Instant};
use xen::{DomId, PAGE_SHIFT, Transaction};

/// What a domain may have beyond its target, for what Xen keeps in its memory (`LIBXL_MAXMEM_CONSTANT`), in KiB.
const SLACK_KIB: u64 = 1_024;
/// What dom0 is not to go below (`LIBXL_MIN_DOM0_MEM`), in KiB.
const LEAST_DOM0_KIB: u64 = 128 << 10;
/// What Xen itself may take of the host's memory for a new domain and its vCPUs, in KiB: without it a qube for which there
/// is just room enough does not come about.
const OVERHEAD_KIB: u64 = 8 << 10;
/// Where a guest says how much of its memory is in use, below its home in xenstore: KiB, in decimal (nexus-agent `--memory`).
pub const USED: &str = "data/nexus/memory";
/// How often it is looked for memory that dom0 gives back.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Why a domain's memory could not be set.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// xenstore does not say how much it has.
    #[error("domain {domid} has no {name} in xenstore: it is not one whose memory can be set")]
    Unknown {
        /// Which domain.
        domid: DomId,
        /// What is missing.
        name: &'static str,
    },
    /// More than it may have.
    #[error("{given_kib} KiB are more than domain {domid} may have, {max_kib} KiB; `nxl mem-max` sets that")]
    AboveMax {
        /// Which domain.
        domid: DomId,
        /// What was asked for.
        given_kib: u64,
        /// What it may have.
        max_kib: u64,
    },
    /// Less than it has.
    #[error("{given_kib} KiB are less than domain {domid} has, {target_kib} KiB; `nxl mem-set` sets that")]
    BelowTarget {
        /// Which domain.
        domid: DomId,
        /// What was asked for.
        given_kib: u64,
        /// What it has.
        target_kib: u64,
    },
    /// Too little for dom0 to go on.
    #[error("{given_kib} KiB are too little for domain 0, which needs {LEAST_DOM0_KIB} KiB")]
    TooLittle {
        /// What was asked for.
        given_kib: u64,
    },
    /// dom0 did not give enough back.
    #[error("{free_kib} KiB are free, and {needed_kib} KiB are needed: domain 0 has not given back enough within {} s", waited.as_secs())]
    NoRoom {
        /// What was to be free.
        needed_kib: u64,
        /// What is.
        free_kib: u64,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The domain could not be found or handled.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// A size in `xl`'s notation, in KiB: a number of MiB, or of what follows it, `b`, `k`, `m`, `g` or `t`.
#[must_use]
pub fn parse_size_kib(text: &str) -> Option<u64> {
    let (number, shift) = match text.to_ascii_lowercase().strip_suffix(|c: char| c.is_ascii_alphabetic()) {
        None => (text, 10),
        Some(_) => {
            let (number, unit) = text.split_at(text.len() - 1);
            let shift = match unit.to_ascii_lowercase().as_str() {
                "b" => return number.parse::<u64>().ok().map(|bytes| bytes >> 10),
                "k" => 0,
                "m" => 10,
                "g" => 20,
                "t" => 30,
                _ => return None,
            };
            (number, shift)
        }
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(1 << shift)
}

/// What xenstore says of a domain's memory, in KiB.
struct Known {
    max: u64,
    video: u64,
}

impl Qubes {
    /// What a guest says of its memory to be in use, in KiB, where it says anything that can be; it cannot be more than it has.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn memory_in_use(&self, qube: &Qube) -> Result<Option<u64>, QubeError> {
        let said = self.read(&format!("{}/{USED}", home(qube.info.domid)))?;
        let said = said.filter(|said| said.len() <= 20).and_then(|said| said.parse::<u64>().ok());
        let has = qube.info.pages << (PAGE_SHIFT - 10);
        Ok(said.map(|used| used.min(has)))
    }

    fn memory_node(&self, tx: Transaction, domid: DomId, name: &str) -> Result<Option<u64>, xen::Error> {
        let value = store::read_if_there(&*self.store, tx, &format!("{}/memory/{name}", home(domid)))?;
        Ok(value.and_then(|value| std::str::from_utf8(&value).ok()?.trim().parse().ok()))
    }

    /// dom0 has no records until somebody asks: what Xen says is written down then.
    fn known_memory(&self, tx: Transaction, qube: &Qube) -> Result<Known, MemoryError> {
        let domid = qube.info.domid;
        let number = |name: &'static str, pages: u64| match self.memory_node(tx, domid, name)? {
            Some(kib) => Ok(kib),
            None if domid == DomId::DOM0 => {
                let kib = pages << (PAGE_SHIFT - 10);
                let path = format!("{}/memory/{name}", home(domid));
                self.store.write(tx, &path, kib.to_string().as_bytes())?;
                Ok(kib)
            }
            None => Err(MemoryError::Unknown { domid, name }),
        };
        number("target", qube.info.pages)?;
        Ok(Known {
            max: number("static-max", qube.info.max_pages)?,
            video: self.memory_node(tx, domid, "videoram")?.unwrap_or(0),
        })
    }

    /// Asks the guest to get by with so much memory, and lets it have no more.
    ///
    /// # Errors
    /// [`MemoryError::AboveMax`], [`MemoryError::TooLittle`], [`MemoryError::Unknown`], or what Xen or xenstored says.
    pub fn set_memory(&self, qube: &Qube, kib: u64) -> Result<(), MemoryError> {
        let domid = qube.info.domid;
        xen::transaction(&*self.store, |tx| {
            let known = self.known_memory(tx, qube)?;
            let target = kib.saturating_sub(known.video);
            if target > known.max {
                return Err(MemoryError::AboveMax { domid, given_kib: kib, max_kib: known.max });
            }
            if domid == DomId::DOM0 && target < LEAST_DOM0_KIB {
                return Err(MemoryError::TooLittle { given_kib: kib });
            }
            self.control.set_max_mem(domid, target + known.video + SLACK_KIB)?;
            if qube.info.hvm {
                self.control.set_pod_target(domid, (target + SLACK_KIB) >> (PAGE_SHIFT - 10))?;
            }
            let write = |path: String, value: u64| self.store.write(tx, &path, value.to_string().as_bytes());
            write(format!("{}/memory/target", home(domid)), target)?;
            write(format!("{}/memory", vm_path(qube.uuid())), target >> 10)?;
            Ok(())
        })
    }

    /// Asks dom0 to give memory back until the host has enough for a new domain that needs so much, and waits for that.
    ///
    /// # Errors
    /// [`MemoryError::TooLittle`] when dom0 itself needs it, [`MemoryError::NoRoom`] after `patience`, or what Xen or
    /// xenstored says.
    pub fn make_room(&self, dom0: &Qube, kib: u64, patience: Duration) -> Result<(), MemoryError> {
        let kib = kib.saturating_add(OVERHEAD_KIB);
        let begun = Instant::now();
        let free = || -> Result<u64, xen::Error> {
            let host = self.control.phys_info()?;
            Ok(host.free_pages.saturating_sub(host.outstanding_pages) << (PAGE_SHIFT - 10))
        };
        let missing = kib.saturating_sub(free()?);
        if missing == 0 {
            return Ok(());
        }
        xen::transaction(&*self.store, |tx| {
            self.known_memory(tx, dom0)?;
            let target = self.memory_node(tx, dom0.info.domid, "target")?.unwrap_or_default();
            let given_kib = target.saturating_sub(missing);
            if given_kib < LEAST_DOM0_KIB {
                return Err(MemoryError::TooLittle { given_kib });
            }
            // Its maximum stays: this is not for good.
            let path = format!("{}/memory/target", home(dom0.info.domid));
            Ok(self.store.write(tx, &path, given_kib.to_string().as_bytes())?)
        })?;
        loop {
            let free_kib = free()?;
            if free_kib >= kib {
                return Ok(());
            }
            let waited = begun.elapsed();
            if waited >= patience {
                return Err(MemoryError::NoRoom { needed_kib: kib, free_kib, waited });
            }
            // Xen tells nobody of memory that came back.
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Sets how much memory a domain may have at most; what it has does not change.
    ///
    /// # Errors
    /// [`MemoryError::BelowTarget`], [`MemoryError::Unknown`], or what Xen or xenstored says.
    pub fn set_max_memory(&self, qube: &Qube, kib: u64) -> Result<(), MemoryError> {
        let domid = qube.info.domid;
        let target = self.memory_node(Transaction::NONE, domid, "target")?;
        let target_kib = target.ok_or(MemoryError::Unknown { domid, name: "target" })?;
        if kib < target_kib {
            return Err(MemoryError::BelowTarget { domid, given_kib: kib, target_kib });
        }
        self.control.set_max_mem(domid, kib + SLACK_KIB)?;
        let path = format!("{}/memory/static-max", home(domid));
        Ok(self.store.write(Transaction::NONE, &path, kib.to_string().as_bytes())?)
    }

    /// What xenstore says of a domain's memory in KiB: what it is to have, and what it may have.
    pub(crate) fn memory(&self, qube: &Qube) -> Result<(Option<u64>, Option<u64>), xen::Error> {
        let node = |name| self.memory_node(Transaction::NONE, qube.info.domid, name);
        Ok((node("target")?, node("static-max")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::tests::{Host, host};
    use xen::Platform;

    fn qube(host: &Host) -> Qube {
        let config = host.config_with("work", "maxmem=768");
        host.qubes.create(&config, false, &*host.foreign).unwrap()
    }

    #[test]
    fn what_a_guest_says_of_its_memory_is_a_number_and_no_more_than_it_has() {
        let host = host();
        let qube = qube(&host);
        let guest = host.machine.domain(qube.info.domid).xenstore().unwrap();
        let has = qube.info.pages << (PAGE_SHIFT - 10);
        assert_eq!(host.qubes.memory_in_use(&qube).unwrap(), None);
        let full = u64::MAX.to_string();
        for (said, used) in [
            ("200000", Some(200_000)),
            (&*full, Some(has)),
            ("18446744073709551616", None),
            ("-5", None),
            ("", None),
            ("0000000000000000000000001", None),
            ("1\n", None),
        ] {
            guest.write(Transaction::NONE, USED, said.as_bytes()).unwrap();
            assert_eq!(host.qubes.memory_in_use(&qube).unwrap(), used, "{said:?}");
        }
    }

    #[test]
    fn sizes_are_read_as_xl_reads_them() {
        for (text, kib) in [
            ("512", Some(512 << 10)),
            ("512m", Some(512 << 10)),
            ("1g", Some(1 << 20)),
            ("2T", Some(2 << 30)),
            ("8192k", Some(8_192)),
            ("1048576b", Some(1_024)),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1gb", None),
            ("1x", None),
            ("18446744073709551615t", None),
        ] {
            assert_eq!(parse_size_kib(text), kib, "{text}");
        }
    }

    #[test]
    fn memory_is_set_in_two_hypercalls_and_one_transaction() {
        let host = host();
        let qube = qube(&host);
        host.machine.reset_counts();
        host.qubes.set_memory(&qube, 640 << 10).unwrap();
        let counts = host.machine.counts();
        assert_eq!((counts.hypercalls, counts.xenstore_transactions()), (2, 1), "{:?}", counts.calls);
        assert_eq!(host.qubes.memory(&qube).unwrap(), (Some(640 << 10), Some(768 << 10)));
        let info = host.qubes.get(qube.info.domid).unwrap().info;
        assert_eq!(info.max_pages, 641 << 8);
        let vm = host.qubes.read(&format!("{}/memory", vm_path(qube.uuid()))).unwrap();
        assert_eq!(vm.as_deref(), Some("640"));
    }

    #[test]
    fn dom0_makes_room_when_it_can() {
        let host = host();
        let large = host.config_with("large", "memory=7000");
        let large = host.qubes.create(&large, false, &*host.foreign).unwrap();
        // Xen's word of dom0, which the mock has none of: 2 GiB.
        let info =
            xen::DomainInfo { domid: DomId::DOM0, pages: 2 << 18, max_pages: 2 << 18, ..large.info.clone() };
        let dom0 = Qube { info, name: None };
        let free = || host.qubes.control().phys_info().unwrap().free_pages << 2;
        host.machine.reset_counts();
        host.qubes.make_room(&dom0, free() - OVERHEAD_KIB, Duration::ZERO).unwrap();
        assert_eq!(host.machine.counts().xenstore_requests(), 0, "there is room");

        let wanted = free() + (1 << 20) - OVERHEAD_KIB;
        let error = host.qubes.make_room(&dom0, wanted, Duration::ZERO).unwrap_err();
        assert!(
            matches!(error, MemoryError::NoRoom { needed_kib, .. } if needed_kib == wanted + OVERHEAD_KIB),
            "{error}"
        );
        assert_eq!(host.qubes.memory(&dom0).unwrap(), (Some(1 << 20), Some(2 << 20)));
        // Another GiB would leave nothing.
        let error = host.qubes.make_room(&dom0, wanted, Duration::ZERO).unwrap_err();
        assert!(matches!(error, MemoryError::TooLittle { given_kib: 0 }), "{error}");

        host.qubes.store.write(Transaction::NONE, "/local/domain/0/memory/target", b"2097152").unwrap();
        std::thread::scope(|scope| {
            let making = scope.spawn(|| host.qubes.make_room(&dom0, wanted, Duration::from_secs(60)));
            while host.qubes.memory(&dom0).unwrap().0 == Some(2 << 20) {
                std::thread::yield_now();
            }
            host.qubes.control().destroy(large.info.domid).unwrap();
            making.join().unwrap().unwrap();
        });
    }

    #[test]
    fn what_is_more_than_the_maximum_changes_nothing() {
        let host = host();
        let qube = qube(&host);
        let before = host.inventory();
        let error = host.qubes.set_memory(&qube, 800 << 10).unwrap_err();
        assert!(matches!(error, MemoryError::AboveMax { max_kib: 786_432, .. }), "{error}");
        let error = host.qubes.set_max_memory(&qube, 300 << 10).unwrap_err();
        assert!(matches!(error, MemoryError::BelowTarget { target_kib: 524_288, .. }), "{error}");
        assert_eq!(host.inventory(), before);
        host.qubes.set_max_memory(&qube, 1 << 20).unwrap();
        host.qubes.set_memory(&qube, 800 << 10).unwrap();
    }
}
