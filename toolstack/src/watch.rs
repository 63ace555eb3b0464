//! The watcher: one process for all qubes of this host that carries out what their configurations say of their end,
//! `on_poweroff`, `on_reboot`, `on_watchdog`, `on_crash`. (`xl create` leaves a process behind for each.)
//!
//! It knows the qubes by the configurations that [`Qubes::create`] keeps beside libxl's, so that it can be started again
//! at any time. It ends when it has had none for a while ([`LINGER`]): the next one made by then needs no other.

use crate::config::{Action, QubeConfig};
use crate::create::CreateError;
use crate::events::{Event, Step};
use crate::qubes::{Qube, QubeError, Qubes};
use crate::userdata::Kind;
use std::time::{Duration, Instant};
use uuid::Uuid;
use xen::{DomId, ForeignMemory, ShutdownReason};

/// Held while a configuration is written, and while the watcher decides that there is none.
pub(crate) const RECORDS_LOCK: &str = "records.lock";
/// Held by the one watcher.
const WATCH_LOCK: &str = "watch.lock";
/// Set in a kept configuration that is newer than what was changed at run time.
const AS_GIVEN: &str = "as_given";
/// How long a watcher stays without a qube, unless it is told otherwise: for hosts on which qubes come and go, such as
/// disposables, starting a program for each would take longer than to make the qube.
pub const LINGER: Duration = Duration::from_secs(60);
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
    /// What it left in memory could not be kept.
    #[error("{name}: no core was written, and it goes all the same: {source}")]
    Core {
        /// Which qube.
        name: String,
        /// Why.
        source: QubeError,
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

/// How often it is looked whether a restart is over.
const RESTART_LOOK: Duration = Duration::from_millis(100);
/// How often it is looked whether a suspended qube goes on, or is gone.
const SUSPENDED_LOOK: Duration = Duration::from_secs(1);

impl Qubes {
    /// From now on no watcher makes a qube again that ends. One that is at it right now is waited for, so long at most.
    ///
    /// # Errors
    /// When the qubes or what is kept of them cannot be read.
    pub fn unattend(&self, uuid: Uuid, limit: Duration) -> Result<(), QubeError> {
        let begun = Instant::now();
        while self.userdata.restarts()?.iter().any(|(other, _)| *other == uuid) && begun.elapsed() < limit {
            std::thread::sleep(RESTART_LOOK);
        }
        for qube in self.list()?.iter().filter(|qube| qube.uuid() == uuid) {
            self.userdata.forget(Kind::Nxl, qube.info.domid, uuid)?;
        }
        Ok(())
    }

    /// Sets what the watcher makes a qube of when it restarts; its UUID stays. `false` when no watcher is to do so.
    ///
    /// # Errors
    /// When the configuration cannot be kept.
    pub fn keep_config(&self, qube: &Qube, config: QubeConfig) -> Result<bool, WatchError> {
        let (domid, uuid) = (qube.info.domid, qube.uuid());
        let _lock = self.userdata.lock(RECORDS_LOCK, true)?;
        if self.userdata.read(Kind::Nxl, domid, uuid)?.is_none() {
            return Ok(false);
        }
        let kept = serde_json::to_value(QubeConfig { uuid, ..config });
        let mut kept = kept.map_err(|source| WatchError::Config { domid, source })?;
        kept[AS_GIVEN] = true.into();
        self.userdata.write(Kind::Nxl, domid, uuid, &kept.to_string())?;
        Ok(true)
    }

    /// What is kept of a qube to make it again.
    fn kept_config(&self, qube: &Qube) -> Result<QubeConfig, WatchError> {
        let (domid, uuid) = (qube.info.domid, qube.uuid());
        let text = self.userdata.read(Kind::Nxl, domid, uuid)?.unwrap_or_default();
        let error = |source| WatchError::Config { domid, source };
        let kept: serde_json::Value = serde_json::from_str(&text).map_err(error)?;
        let as_given = kept.get(AS_GIVEN).is_some();
        let config: QubeConfig = serde_json::from_value(kept).map_err(error)?;
        if as_given { Ok(config) } else { self.as_it_is(qube, &config) }
    }

    /// The configuration with what was changed since: its name, its memory, its vCPUs.
    fn as_it_is(&self, qube: &Qube, config: &QubeConfig) -> Result<QubeConfig, WatchError> {
        let mut config = config.clone();
        if let Some(name) = &qube.name {
            config.name.clone_from(name);
        }
        // What does not come out at whole MiB is what it was made with.
        let mib = |kib: Option<u64>| kib.filter(|kib| kib.is_multiple_of(1 << 10)).map(|kib| kib >> 10);
        let (memory, max_memory) = self.memory(qube)?;
        config.memory_mib = mib(memory).unwrap_or(config.memory_mib);
        config.max_memory_mib = mib(max_memory).unwrap_or(config.max_memory_mib).max(config.memory_mib);
        if let Some(vcpus) = self.wanted_vcpus(qube)?.filter(|vcpus| (1..=config.max_vcpus).contains(vcpus)) {
            config.vcpus = vcpus;
        }
        Ok(config)
    }

    /// What is kept of a qube to make it again, if anything is, with what was changed since.
    pub(crate) fn known_config(&self, qube: &Qube) -> Result<Option<QubeConfig>, WatchError> {
        let (domid, uuid) = (qube.info.domid, qube.uuid());
        let Some(text) = self.userdata.read(Kind::Nxl, domid, uuid)? else { return Ok(None) };
        let config = serde_json::from_str(&text).map_err(|source| WatchError::Config { domid, source })?;
        self.as_it_is(qube, &config).map(Some)
    }

    /// Whether a watcher is at work. It then knows, or is about to see, every qube that was created attended before this
    /// question; when there is none, the answer holds only until somebody starts one.
    ///
    /// # Errors
    /// When the watcher's lock is not to be looked at.
    pub fn is_watched(&self) -> Result<bool, QubeError> {
        self.userdata.is_locked(WATCH_LOCK)
    }

    /// How many qubes count on a watcher.
    ///
    /// # Errors
    /// When the folder of configurations cannot be read.
    pub fn attended(&self) -> Result<usize, QubeError> {
        Ok(self.userdata.known()?.len())
    }
}

/// Carries out what is due.
pub struct Watcher<'a> {
    qubes: &'a Qubes,
    foreign: &'a dyn ForeignMemory,
    restarted: Option<Instant>,
    /// Whether those that are made again are for whoever watches all.
    attended: bool,
    /// How long it stays when no qube is left.
    linger: Duration,
}

impl<'a> Watcher<'a> {
    /// A watcher of these qubes.
    #[must_use]
    pub fn new(qubes: &'a Qubes, foreign: &'a dyn ForeignMemory) -> Self {
        Self { qubes, foreign, restarted: None, attended: true, linger: LINGER }
    }

    /// The same, but it stays only so long when no qube is left.
    #[must_use]
    pub fn with_linger(self, linger: Duration) -> Self {
        Self { linger, ..self }
    }

    /// Watches until no qube that it knows was left for as long as it lingers; ends at once when another watcher is at work. What is done, or could not
    /// be, is told to `report`.
    ///
    /// # Errors
    /// When it cannot go on: xenstore or the folder of configurations is not to be had.
    pub fn run(&mut self, mut report: impl FnMut(Result<Done, WatchError>)) -> Result<(), WatchError> {
        let userdata = &self.qubes.userdata;
        let Some(watching) = userdata.lock(WATCH_LOCK, false)? else { return Ok(()) };
        self.qubes.store.watch("@releaseDomain", "watcher")?;
        self.catch_up(&mut report)?;
        let mut idle_since: Option<Instant> = None;
        loop {
            self.carry_out(&mut report)?;
            let mut left = None;
            if userdata.known()?.is_empty() {
                let idle = idle_since.get_or_insert_with(Instant::now).elapsed();
                left = Some(self.linger.saturating_sub(idle));
            } else {
                idle_since = None;
            }
            if left == Some(Duration::ZERO) {
                let _records = userdata.lock(RECORDS_LOCK, true)?;
                if userdata.known()?.is_empty() {
                    // Before the other lock: whoever writes a configuration after this finds no watcher.
                    drop(watching);
                    break;
                }
                // A qube's configuration came while the lock was waited for.
                continue;
            }
            self.qubes.wait_for_watch(left)?;
        }
        Ok(self.qubes.store.unwatch("@releaseDomain", "watcher")?)
    }

    /// Makes again what a watcher was about to make again when it died.
    fn catch_up(&mut self, report: &mut impl FnMut(Result<Done, WatchError>)) -> Result<(), WatchError> {
        for (uuid, text) in self.qubes.userdata.restarts()? {
            if let Ok(config) = serde_json::from_str::<QubeConfig>(&text) {
                self.qubes.end_unfinished(uuid)?;
                // Whole already: all that was missing may be that it runs.
                let made = self.qubes.list()?.into_iter().find(|qube| qube.uuid() == uuid);
                let result = match made {
                    Some(qube) if qube.info.paused && qube.info.cpu_time == 0 => {
                        self.qubes.unpause(&qube).map_err(WatchError::from)
                    }
                    Some(_) => Ok(()),
                    None => self.restart(&config).map(drop),
                };
                result.unwrap_or_else(|error| report(Err(error)));
            }
            self.qubes.userdata.forget_restart(uuid)?;
        }
        Ok(())
    }

    /// Carries out what is due now.
    fn carry_out(&mut self, report: &mut impl FnMut(Result<Done, WatchError>)) -> Result<(), WatchError> {
        for (domid, uuid) in self.qubes.userdata.known()? {
            let qube = match self.qubes.get(domid) {
                Ok(qube) if qube.uuid() == uuid => qube,
                // Ended by somebody who does not know of our file, or before a restart of the host.
                Ok(_) | Err(QubeError::NotFound { .. }) => {
                    self.qubes.userdata.remove(domid, uuid)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            // Of one that is suspended, whoever asked for that goes on from here.
            if let Some(reason) = qube.info.shutdown.filter(|reason| *reason != ShutdownReason::Suspend) {
                let done =
                    self.qubes.kept_config(&qube).and_then(|config| self.end(&qube, reason, &config, report));
                report(done.map(|(done, _)| done).inspect_err(|_| {
                    // Not to be tried for ever: the domain stays as it ended, for somebody to look at.
                    let _ = self.qubes.userdata.forget(Kind::Nxl, domid, uuid);
                }));
            }
        }
        Ok(())
    }

    /// Stays with one qube, made of `config`, and with those that are made in its place, until there is none: what
    /// [`Self::run`] does for all. Nobody else is to know of it.
    ///
    /// # Errors
    /// When it cannot go on, or something due could not be done.
    pub fn attend(
        &mut self,
        mut qube: Qube,
        config: &QubeConfig,
        mut report: impl FnMut(Result<Done, WatchError>),
    ) -> Result<(), WatchError> {
        self.attended = false;
        loop {
            self.qubes.wait_for_shutdown(&qube, None)?;
            let Some(reason) = self.qubes.get(qube.info.domid).ok().and_then(|now| {
                qube.name.clone_from(&now.name);
                now.info.shutdown.filter(|_| now.info.uuid == qube.info.uuid)
            }) else {
                return Ok(());
            };
            if reason == ShutdownReason::Suspend {
                // Nobody tells when it goes on.
                std::thread::sleep(SUSPENDED_LOOK);
                continue;
            }
            let config = self.qubes.as_it_is(&qube, config)?;
            let (done, next) = self.end(&qube, reason, &config, &mut report)?;
            report(Ok(done));
            match next {
                Some(next) => qube = next,
                None => return Ok(()),
            }
        }
    }

    /// Carries out what `config` says of this end; the domain that was made in its place, if one was.
    fn end(
        &mut self,
        qube: &Qube,
        reason: ShutdownReason,
        config: &QubeConfig,
        report: &mut impl FnMut(Result<Done, WatchError>),
    ) -> Result<(Done, Option<Qube>), WatchError> {
        let domid = qube.info.domid;
        let action = match reason {
            ShutdownReason::Poweroff => config.actions.poweroff,
            ShutdownReason::Reboot => config.actions.reboot,
            ShutdownReason::Watchdog => config.actions.watchdog,
            ShutdownReason::Crash => config.actions.crash,
            ShutdownReason::SoftReset => config.actions.soft_reset,
            ShutdownReason::Suspend | ShutdownReason::Unknown(_) => Action::Preserve,
        };
        self.qubes.tell(qube, Step::shutdown(reason, action.name()));
        let mut left_behind = None;
        if matches!(action, Action::CoredumpDestroy | Action::CoredumpRestart) {
            let file = self.qubes.core_file(&config.name);
            if let Err(source) = file.and_then(|file| self.qubes.dump_core(qube, &file)) {
                // No reason to leave it lying there.
                report(Err(WatchError::Core { name: config.name.clone(), source }));
            }
        }
        let next = match action {
            Action::Destroy | Action::CoredumpDestroy => {
                left_behind = self.destroy(qube)?;
                None
            }
            Action::Restart | Action::CoredumpRestart => {
                self.note_restart(config)?;
                left_behind = self.destroy(qube)?;
                let next = self.restart(config);
                self.qubes.userdata.forget_restart(config.uuid)?;
                Some(next?)
            }
            Action::RenameRestart => {
                self.qubes.rename(qube, &format!("{}-{domid}", config.name))?;
                self.qubes.userdata.forget(Kind::Nxl, domid, qube.uuid())?;
                Some(self.restart(&QubeConfig { uuid: Uuid::new_v4(), ..config.clone() })?)
            }
            // A soft reset has nothing to keep of a PVH qube.
            Action::Preserve | Action::SoftReset => {
                self.qubes.userdata.forget(Kind::Nxl, domid, qube.uuid())?;
                None
            }
        };
        if let Some(next) = &next {
            self.qubes.tell(next, Step::Restarted { was: domid.0 });
        }
        Ok((Done { domid, name: config.name.clone(), reason, action, left_behind }, next))
    }

    /// What is left behind of a domain is no reason not to make it again.
    fn destroy(&self, qube: &Qube) -> Result<Option<String>, WatchError> {
        match self.qubes.destroy_attended(qube) {
            Ok(()) => Ok(None),
            Err(QubeError::LeftBehind { source, .. }) => Ok(Some(source.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    /// From here on it will be made again, whoever does it. (What is made again in the foreground ends with that.)
    fn note_restart(&self, config: &QubeConfig) -> Result<(), WatchError> {
        if self.attended {
            let text = serde_json::to_string(config)
                .map_err(|source| WatchError::Config { domid: DomId::DOM0, source })?;
            self.qubes.userdata.note_restart(config.uuid, &text)?;
        }
        Ok(())
    }

    fn restart(&mut self, config: &QubeConfig) -> Result<Qube, WatchError> {
        if let Some(last) = self.restarted {
            std::thread::sleep(RESTART_INTERVAL.saturating_sub(last.elapsed()));
        }
        self.restarted = Some(Instant::now());
        let started = self.qubes.start(config, self.attended, self.foreign);
        if let Err(error) = &started {
            let failed = Event::now(Step::Failed { error: format!("could not be restarted: {error}") });
            self.qubes.events.tell(&[failed.named(&config.name)]);
        }
        started.map_err(|source| WatchError::Restart { name: config.name.clone(), source })
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
    fn one_that_is_taken_from_the_watcher_is_not_made_again() {
        let host = host();
        let qube = running(&host, "");
        host.qubes.unattend(qube.uuid(), Duration::ZERO).unwrap();
        host.machine.shut_down(qube.info.domid, ShutdownReason::Reboot);
        assert_eq!(watch(&host), []);
        // Somebody is at it, or died at it: it is not waited for without end.
        host.qubes.userdata.note_restart(qube.uuid(), "{}").unwrap();
        let begun = Instant::now();
        host.qubes.unattend(qube.uuid(), Duration::from_millis(150)).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(150));
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
    fn what_was_changed_at_run_time_holds_after_a_restart() {
        let host = host();
        let qube = running(&host, "vcpus=1\nmaxvcpus=2\nmaxmem=1024");
        host.qubes.rename(&qube, "play").unwrap();
        host.qubes.set_memory(&qube, 640 << 10).unwrap();
        host.qubes.set_max_memory(&qube, 768 << 10).unwrap();
        host.qubes.set_vcpus(&qube, 2, false).unwrap();
        host.machine.shut_down(qube.info.domid, ShutdownReason::Reboot);
        assert_eq!(watch(&host)[0].name, "play");
        let again = host.qubes.find("play").unwrap();
        assert_eq!(host.qubes.memory(&again).unwrap(), (Some(640 << 10), Some(768 << 10)));
        assert_eq!(host.qubes.wanted_vcpus(&again).unwrap(), Some(2));
        // What is said later holds, whatever was changed before.
        host.qubes.set_memory(&again, 512 << 10).unwrap();
        assert!(host.qubes.keep_config(&again, host.config_with("other", "memory=256")).unwrap());
        host.machine.shut_down(again.info.domid, ShutdownReason::Reboot);
        assert_eq!(watch(&host)[0].action, Action::Restart);
        let last = host.qubes.find("other").unwrap();
        assert_eq!(host.qubes.memory(&last).unwrap(), (Some(256 << 10), Some(256 << 10)));
        assert_eq!(last.uuid(), qube.uuid());
        host.qubes.destroy(&last).unwrap();
        assert!(!host.qubes.keep_config(&last, host.config_with("other", "")).unwrap());
    }

    #[test]
    fn a_qube_that_crashes_leaves_a_core_and_goes_or_comes_back() {
        let host = host();
        let core = host.folder.path().join("userdata/dump/work");
        let qube = running(&host, "on_crash='coredump-restart'\non_watchdog='coredump-destroy'");
        host.machine.shut_down(qube.info.domid, ShutdownReason::Crash);
        assert_eq!(watch(&host)[0].action, Action::CoredumpRestart);
        let again = host.qubes.find("work").unwrap();
        assert_eq!(std::fs::read_to_string(&core).unwrap(), format!("domain {}, 1 vCPUs\n", qube.info.domid));
        std::fs::remove_file(&core).unwrap();
        // A core that cannot be written is told of, and keeps nobody.
        std::fs::create_dir(&core).unwrap();
        host.machine.shut_down(again.info.domid, ShutdownReason::Watchdog);
        let mut reports = Vec::new();
        Watcher::new(&host.qubes, &*host.foreign)
            .carry_out(&mut |result: Result<Done, WatchError>| {
                reports.push(result.map(|done| done.action).map_err(|error| error.to_string()));
            })
            .unwrap();
        assert!(reports[0].as_ref().unwrap_err().starts_with("work: no core was written"), "{reports:?}");
        assert_eq!(reports[1..], [Ok(Action::CoredumpDestroy)]);
        assert!(matches!(host.qubes.find("work"), Err(QubeError::NotFound { .. })));
    }

    #[test]
    fn killed_at_whichever_call_of_a_restart_the_next_watcher_makes_the_qube_again() {
        for nth in 0.. {
            let host = host();
            let qube = running(&host, "");
            host.machine.shut_down(qube.info.domid, ShutdownReason::Reboot);
            host.machine.kill_after(nth);
            let alive = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| watch(&host))).is_ok();
            host.machine.revive();
            let mut next = Watcher::new(&host.qubes, &*host.foreign);
            let mut report = |result: Result<Done, WatchError>| drop(result.unwrap());
            next.catch_up(&mut report).unwrap();
            next.carry_out(&mut report).unwrap();
            let again = host.qubes.find("work").unwrap_or_else(|error| panic!("after {nth} calls: {error}"));
            assert_eq!((again.info.paused, again.info.shutdown), (false, None), "after {nth} calls");
            assert_eq!(again.uuid(), qube.uuid());
            if alive {
                assert!(nth > 100, "{nth} calls");
                return;
            }
        }
    }

    #[test]
    fn in_the_foreground_one_qube_is_attended_until_there_is_none() {
        let host = host();
        let config = host.config_with("work", "");
        let qube = host.qubes.create(&config, false, &*host.foreign).unwrap();
        host.qubes.unpause(&qube).unwrap();
        host.machine.shut_down(qube.info.domid, ShutdownReason::Reboot);
        let mut actions = Vec::new();
        Watcher::new(&host.qubes, &*host.foreign)
            .attend(qube, &config, |result| {
                actions.push(result.unwrap().action);
                if let Ok(again) = host.qubes.find("work") {
                    host.machine.shut_down(again.info.domid, ShutdownReason::Poweroff);
                }
            })
            .unwrap();
        assert_eq!(actions, [Action::Restart, Action::Destroy]);
        assert_eq!((host.qubes.list().unwrap(), host.files()), (vec![], 0));
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
        let watcher = || Watcher::new(&host.qubes, &*host.foreign);
        watcher().with_linger(Duration::ZERO).run(|_| ()).unwrap();
        let linger = Duration::from_millis(50);
        let begun = Instant::now();
        watcher().with_linger(linger).run(|_| ()).unwrap();
        assert!(begun.elapsed() >= linger);
        running(&host, "");
        assert_eq!(host.qubes.attended().unwrap(), 1);
        assert!(!host.qubes.is_watched().unwrap());
        let _other = host.qubes.userdata.lock(WATCH_LOCK, false).unwrap().unwrap();
        assert!(host.qubes.is_watched().unwrap());
        watcher().run(|_| ()).unwrap();
    }

    #[test]
    fn a_watcher_that_lingers_attends_the_next_qube_and_stays() {
        let host = std::sync::Arc::new(host());
        let (reports, done) = std::sync::mpsc::channel();
        let theirs = std::sync::Arc::clone(&host);
        // Longer than any test: it ends with the process.
        let watcher = std::thread::spawn(move || {
            Watcher::new(&theirs.qubes, &*theirs.foreign)
                .with_linger(Duration::from_secs(3_600))
                .run(|result| reports.send(result.unwrap().action).unwrap())
        });
        while !host.qubes.is_watched().unwrap() {
            assert!(!watcher.is_finished(), "it took who looks whether there is a watcher for one");
            std::thread::yield_now();
        }
        for _ in 0..2 {
            let qube = running(&host, "");
            assert!(host.qubes.is_watched().unwrap(), "no other need be started");
            host.machine.shut_down(qube.info.domid, ShutdownReason::Poweroff);
            assert_eq!(done.recv_timeout(Duration::from_secs(60)), Ok(Action::Destroy));
        }
        assert_eq!(host.files(), 0);
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
