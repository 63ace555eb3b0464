//! Whether qubes are up, by their own word: a node that the guest writes when its services run.
//!
//! What is in it is a claim of the guest's, whatever it is. It is good for one question, whether the guest came up, which
//! nobody but the guest can answer; nothing else is decided by it.

use crate::qubes::{Qube, QubeError, Qubes};
use crate::store::home;
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Where a guest says that it is up, below its home in xenstore: the path of the system that it runs (nexus-agent
/// `--ready`).
pub const READY: &str = "data/nexus/ready";
/// The most that is taken for a path.
const CLAIM_LIMIT: usize = 256;
/// How long a domain may be gone, as it is while the watcher restarts it, before it is given up.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked at least.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks: a guest that writes without end takes no more of dom0's time than that.
const PAUSE: Duration = Duration::from_millis(20);

/// A qube that is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    /// Its name.
    pub name: String,
    /// Its UUID: it may be restarted meanwhile.
    pub uuid: Uuid,
    /// How long, from the beginning of the wait.
    pub limit: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It reported ready, so long after the beginning of the wait.
    Ready(Duration),
    /// It did not, in that time.
    Late(Duration),
    /// It ended, and did not come back.
    Ended,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(after) => write!(f, "is ready after {:.1} s", after.as_secs_f64()),
            Self::Late(limit) => write!(f, "did not report ready within {} s", limit.as_secs_f64()),
            Self::Ended => f.write_str("ended before it reported ready"),
        }
    }
}

/// Hears of a verdict, if there is a new one, and how many are still waited for.
pub type Report<'a> = dyn FnMut(Option<(&str, Verdict)>, usize) + 'a;

/// Whether a node's value says that its guest is up.
fn is_claim(value: &str) -> bool {
    !value.is_empty() && value.len() <= CLAIM_LIMIT && value.bytes().all(|byte| byte.is_ascii_graphic())
}

impl Qubes {
    /// Whether a qube says that it is up.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn is_ready(&self, qube: &Qube) -> Result<bool, xen::Error> {
        let value = self.read(&format!("{}/{READY}", home(qube.info.domid)))?;
        Ok(value.is_some_and(|value| is_claim(&value)))
    }

    /// Waits until each of them says that it is up, ended or is late. `report` hears of each as it is known, and, in
    /// between, at least once in a second, how many are waited for.
    ///
    /// # Errors
    /// What Xen or xenstored says.
    pub fn await_ready(
        &self,
        awaited: Vec<Awaited>,
        report: &mut Report<'_>,
    ) -> Result<Vec<(String, Verdict)>, QubeError> {
        const TOKEN: &str = "nxl-ready";
        let begun = Instant::now();
        let mut left: Vec<(Awaited, Option<Instant>)> =
            awaited.into_iter().map(|qube| (qube, None)).collect();
        let mut verdicts = Vec::new();
        let mut watched: Vec<String> = Vec::new();
        while !left.is_empty() {
            let running = self.list()?;
            let mut waiting = Vec::new();
            for (qube, gone) in left {
                let found = running.iter().find(|other| other.uuid() == qube.uuid && !other.info.dying);
                let found = found.filter(|found| found.info.shutdown.is_none());
                let gone = if found.is_some() { None } else { gone.or(Some(Instant::now())) };
                let verdict = match found {
                    Some(found) if self.is_ready(found)? => Some(Verdict::Ready(begun.elapsed())),
                    _ if gone.is_some_and(|since| since.elapsed() >= GONE_LIMIT.min(qube.limit / 2)) => {
                        Some(Verdict::Ended)
                    }
                    _ if begun.elapsed() >= qube.limit => Some(Verdict::Late(qube.limit)),
                    _ => None,
                };
                if let Some(verdict) = verdict {
                    report(Some((&qube.name, verdict)), waiting.len());
                    verdicts.push((qube.name, verdict));
                    continue;
                }
                let path = found.map(|found| format!("{}/{READY}", home(found.info.domid)));
                if let Some(path) = path.filter(|path| !watched.contains(path)) {
                    self.store.watch(&path, TOKEN)?;
                    watched.push(path);
                }
                waiting.push((qube, gone));
            }
            left = waiting;
            let nearest = left.iter().map(|(qube, _)| qube.limit.saturating_sub(begun.elapsed())).min();
            if let Some(nearest) = nearest {
                report(None, left.len());
                thread::sleep(PAUSE.min(nearest));
                self.wait_for_watch(Some(nearest.min(LOOK)))?;
            }
        }
        for path in watched {
            self.store.unwatch(&path, TOKEN)?;
        }
        Ok(verdicts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::tests::{Host, host};
    use xen::{DomId, Transaction};

    fn start(host: &Host, name: &str) -> Qube {
        host.qubes.start(&host.config_with(name, ""), true, &*host.foreign).unwrap()
    }

    fn say(host: &Host, domid: DomId, value: &[u8]) {
        let path = format!("{}/{READY}", home(domid));
        host.qubes.store.write(Transaction::NONE, &path, value).unwrap();
    }

    fn awaited(qube: &Qube, milliseconds: u64) -> Awaited {
        let (name, limit) = (qube.display_name().to_owned(), Duration::from_millis(milliseconds));
        Awaited { name, uuid: qube.uuid(), limit }
    }

    #[test]
    fn a_claim_is_short_and_of_letters() {
        assert!(is_claim("/nix/store/x") && is_claim("1"));
        for wrong in ["", "a b", "a\n", "\u{1b}[2J", "\u{fffd}", &"x".repeat(257)] {
            assert!(!is_claim(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn who_says_so_is_ready_and_who_does_not_is_late() {
        let host = host();
        let (work, vault) = (start(&host, "work"), start(&host, "vault"));
        assert!(!host.qubes.is_ready(&work).unwrap());
        say(&host, work.info.domid, b"/nix/store/x");
        say(&host, vault.info.domid, &[b'x'; 300]);
        let mut heard = Vec::new();
        let mut report =
            |verdict: Option<(&str, Verdict)>, _| heard.extend(verdict.map(|(name, _)| name.to_owned()));
        let verdicts =
            host.qubes.await_ready(vec![awaited(&work, 5000), awaited(&vault, 100)], &mut report).unwrap();
        assert!(matches!(&verdicts[0], (name, Verdict::Ready(_)) if name == "work"), "{verdicts:?}");
        assert_eq!(verdicts[1], ("vault".to_owned(), Verdict::Late(Duration::from_millis(100))));
        assert_eq!(heard, ["work", "vault"]);
        assert_eq!(verdicts[1].1.to_string(), "did not report ready within 0.1 s");
    }

    #[test]
    fn who_says_so_in_between_is_heard_at_once_and_who_ended_is_given_up() {
        let host = host();
        let (work, vault) = (start(&host, "work"), start(&host, "vault"));
        host.machine.shut_down(vault.info.domid, xen::ShutdownReason::Crash);
        let mut looks = 0;
        let mut report = |_: Option<(&str, Verdict)>, _| {
            looks += 1;
            if looks == 3 {
                say(&host, work.info.domid, b"1");
            }
        };
        let verdicts =
            host.qubes.await_ready(vec![awaited(&work, 60_000), awaited(&vault, 2500)], &mut report).unwrap();
        let of = |name: &str| verdicts.iter().find(|(found, _)| found == name).unwrap().1;
        assert!(matches!(of("work"), Verdict::Ready(after) if after < Duration::from_secs(30)));
        assert_eq!(of("vault"), Verdict::Ended);
    }
}
