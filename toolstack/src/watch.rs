//! The watcher: one process for all qubes of this host that carries out what their configurations say of their end,
//! `on_poweroff`, `on_reboot`, `on_watchdog`, `on_crash`. (`xl create` leaves a process behind for each.)
//!
//! It knows the qubes by the configurations that [`Qubes::create`] keeps beside libxl's, so that it can be started again
//! at any time, and ends when none is left.

use crate::config::{Action, QubeConfig};
use crate::create::CreateError;
use crate::qubes::{Qube, QubeError, Qubes};
use crate::userdata::Kind;
use std::time::{Duration, Instant};
use uuid::Uuid;
use xen::{DomId, ForeignMemory, ShutdownReason};

/// Held while a configuration is written, and while the watcher decides that there is none.
pub(crate) const RECORDS_LOCK: &str = "records.lock";
/// Held by the one watcher.
const WATCH_LOCK: &str = "watch.lock";
/// A qube that restarts faster than this is held back, so that one that cannot boot does not take the host's time.
const RESTART_INTERVAL: Duration = Duration::from_secs(2);

/// Why something due was not done.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kept configuration is not ours, or is damaged.
    #[error("domain {domid}: the kept configuration cannot be read: {source}")]
    Config {
        /// Which domain.
        domid: DomId,
        /// Why.
        source: serde_json::Error,
    },
    /// It could not be made again.
    #[error("{name} could not be restarted: {source}")]
    Restart {
        /// Which qube.
        name: String,
        /// Why.
        source: CreateError,
    },
    /// The old or new domain could not be handled.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// Something that was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Done {
    /// The domain that ended.
    pub domid: DomId,
    /// Its name.
    pub name: String,
    /// Why it ended.
    pub reason: ShutdownReason,
    /// What was done.
    pub action: Action,
    /// What is left of the domain all the same.
    pub left_behind: Option<String>,
}

/// Carries out what is due.
pub struct Watcher<'a> {
    qubes: &'a Qubes,
    foreign: &'a dyn ForeignMemory,
    restarted: Option<Instant>,
}

impl<'a> Watcher<'a> {
    /// A watcher of these qubes.
    #[must_use]
    pub fn new(qubes: &'a Qubes, foreign: &'a dyn ForeignMemory) -> Self {
        Self { qubes, foreign, restarted: None }
    }

    /// Watches until no qube is left that it knows; at once when another watcher is at work. What is done, or could not
    /// be, is told to `report`.
    ///
    /// # Errors
    /// When it cannot go on: xenstore or the folder of configurations is not to be had.
    pub fn run(&mut self, mut report: impl FnMut(Result<Done, WatchError>)) -> Result<(), WatchError> {
        let userdata = &self.qubes.userdata;
        let Some(watching) = userdata.lock(WATCH_LOCK, false)? else { return Ok(()) };
        self.qubes.store.watch("@releaseDomain", "watcher")?;
        loop {
            self.carry_out(&mut report)?;
            {
                let _records = userdata.lock(RECORDS_LOCK, true)?;
                if userdata.known()?.is_empty() {
                    // Before the other lock: whoever writes a configuration after this finds no watcher.
                    drop(watching);
                    break;
                }
            }
            self.qubes.wait_for_watch(None)?;
        }
        Ok(self.qubes.store.unwatch("@releaseDomain", "watcher")?)
    }

    /// Carries out what is due now.
    fn carry_out(&mut self, report: &mut impl FnMut(Result<Done, WatchError>)) -> Result<(), WatchError> {
        for (domid, uuid) in self.qubes.userdata.known()? {
            let qube = match self.qubes.get(domid) {
                Ok(qube) if qube.uuid() == uuid => qube,
                // Ended by somebody who does not know of our file, or before a restart of the host.
                Ok(_) | Err(QubeError::NotFound(_)) => {
                    self.qubes.userdata.remove(domid, uuid)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(reason) = qube.info.shutdown {
                report(self.end(&qube, reason).inspect_err(|_| {
                    // Not to be tried for ever: the domain stays as it ended, for somebody to look at.
                    let _ = self.qubes.userdata.forget(Kind::Nxl, domid, uuid);
                }));
            }
        }
        Ok(())
    }

    fn end(&mut self, qube: &Qube, reason: ShutdownReason) -> Result<Done, WatchError> {
        let domid = qube.info.domid;
        let text = self.qubes.userdata.read(Kind::Nxl, domid, qube.uuid())?.unwrap_or_default();
        let config: QubeConfig =
            serde_json::from_str(&text).map_err(|source| WatchError::Config { domid, source })?;
        let action = match reason {
            ShutdownReason::Poweroff => config.actions.poweroff,
            ShutdownReason::Reboot => config.actions.reboot,
            ShutdownReason::Watchdog => config.actions.watchdog,
            ShutdownReason::Crash => config.actions.crash,
            ShutdownReason::SoftReset => config.actions.soft_reset,
            // Suspended: whoever asked for that goes on from here.
            ShutdownReason::Suspend | ShutdownReason::Unknown(_) => Action::Preserve,
        };
        let mut left_behind = None;
        match action {
            Action::Destroy => left_behind = self.destroy(qube)?,
            Action::Restart => {
                left_behind = self.destroy(qube)?;
                self.restart(&config)?;
            }
            Action::RenameRestart => {
                self.qubes.rename(qube, &format!("{}-{domid}", config.name))?;
                self.qubes.userdata.forget(Kind::Nxl, domid, qube.uuid())?;
                self.restart(&QubeConfig { uuid: Uuid::new_v4(), ..config.clone() })?;
            }
            // The configuration reader lets only the first of these through; the rest means the same to a PVH qube,
            // which has nothing that a soft reset could keep.
            Action::Preserve | Action::SoftReset | Action::CoredumpDestroy | Action::CoredumpRestart => {
                self.qubes.userdata.forget(Kind::Nxl, domid, qube.uuid())?;
            }
        }
        Ok(Done { domid, name: config.name, reason, action, left_behind })
    }

    /// What is left behind of a domain is no reason not to make it again.
    fn destroy(&self, qube: &Qube) -> Result<Option<String>, WatchError> {
        match self.qubes.destroy(qube) {
            Ok(()) => Ok(None),
            Err(QubeError::LeftBehind { source, .. }) => Ok(Some(source.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    fn restart(&mut self, config: &QubeConfig) -> Result<(), WatchError> {
        if let Some(last) = self.restarted {
            std::thread::sleep(RESTART_INTERVAL.saturating_sub(last.elapsed()));
        }
        self.restarted = Some(Instant::now());
        let created = self.qubes.create(config, true, self.foreign);
        let qube = created.map_err(|source| WatchError::Restart { name: config.name.clone(), source })?;
        Ok(self.qubes.unpause(&qube)?)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::create::tests::{Host, host};

    pub(crate) fn watch(host: &Host) -> Vec<Done> {
        let mut done = Vec::new();
        Watcher::new(&host.qubes, &*host.foreign)
            .carry_out(&mut |result: Result<Done, WatchError>| done.push(result.unwrap()))
            .unwrap();
        done
    }

    fn running(host: &Host, more: &str) -> Qube {
        let qube = host.qubes.create(&host.config_with("work", more), true, &*host.foreign).unwrap();
        host.qubes.unpause(&qube).unwrap();
        qube
    }

    #[test]
    fn a_qube_that_powers_off_goes_and_one_that_reboots_comes_back() {
        let host = host();
        let before = host.inventory();
        let qube = running(&host, "");
        assert_eq!(watch(&host), []);
        host.machine.shut_down(qube.info.domid, ShutdownReason::Reboot);
        let done = watch(&host);
        assert_eq!((done.len(), done[0].action), (1, Action::Restart));
        let again = host.qubes.find("work").unwrap();
        assert_eq!((again.uuid(), again.info.shutdown), (qube.uuid(), None));
        assert!(!again.info.paused);
        host.machine.shut_down(again.info.domid, ShutdownReason::Poweroff);
        assert_eq!(watch(&host)[0].action, Action::Destroy);
        assert_eq!(host.inventory(), before);
        assert_eq!(host.files(), 0);
    }

    #[test]
    fn a_preserved_qube_stays_and_a_renamed_one_leaves_its_name() {
        let host = host();
        let qube = running(&host, "on_crash='preserve'\non_reboot='rename-restart'");
        host.machine.shut_down(qube.info.domid, ShutdownReason::Reboot);
        assert_eq!(watch(&host)[0].action, Action::RenameRestart);
        assert_eq!(host.qubes.find("work-1").unwrap().info.domid, qube.info.domid);
        let again = host.qubes.find("work").unwrap();
        assert_ne!(again.uuid(), qube.uuid());
        host.machine.shut_down(again.info.domid, ShutdownReason::Crash);
        assert_eq!(watch(&host)[0].action, Action::Preserve);
        assert_eq!(host.qubes.find("work").unwrap().info.shutdown, Some(ShutdownReason::Crash));
        assert_eq!(watch(&host), [], "and is left alone from then on");
    }

    #[test]
    fn files_of_domains_that_are_gone_are_removed() {
        let host = host();
        let qube = running(&host, "");
        host.qubes.control.destroy(qube.info.domid).unwrap();
        assert_eq!(watch(&host), []);
        assert_eq!(host.files(), 0);
    }

    #[test]
    fn the_watcher_ends_when_there_is_nothing_to_watch_or_another_does() {
        let host = host();
        Watcher::new(&host.qubes, &*host.foreign).run(|_| ()).unwrap();
        running(&host, "");
        let _other = host.qubes.userdata.lock(WATCH_LOCK, false).unwrap().unwrap();
        Watcher::new(&host.qubes, &*host.foreign).run(|_| ()).unwrap();
    }

    #[test]
    fn what_cannot_be_restarted_is_told_once() {
        let host = host();
        let qube = running(&host, "");
        std::fs::remove_file(host.folder.path().join("kernel")).unwrap();
        host.machine.shut_down(qube.info.domid, ShutdownReason::Reboot);
        let mut failures = Vec::new();
        let mut watcher = Watcher::new(&host.qubes, &*host.foreign);
        watcher
            .carry_out(&mut |result: Result<Done, WatchError>| failures.push(result.unwrap_err()))
            .unwrap();
        assert_eq!(failures.len(), 1);
        assert!(failures[0].to_string().contains("could not be restarted"), "{}", failures[0]);
        assert_eq!(watch(&host), []);
    }
}
