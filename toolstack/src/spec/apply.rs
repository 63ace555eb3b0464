//! Doing what a plan says: wave after wave, the steps of each at the same time.

use super::document::Private;
use super::plan::{Change, Plan, Step, Work};
use super::policy::PolicyFolder;
use super::volume::PrivateVolume;
use super::{Spec, uuid_of};
use crate::boot::BuildError;
use crate::config::QubeConfig;
use crate::create::CreateError;
use crate::device::Release;
use crate::doctor::DoctorError;
use crate::generations::{GenerationError, Generations};
use crate::memory::MemoryError;
use crate::qubes::{Qube, QubeError, Qubes, Request};
use crate::ready::{Awaited, Verdict};
use crate::userdata::Kind;
use crate::vcpus::VcpuError;
use crate::volume::VolumeError;
use crate::watch::WatchError;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};
use xen::ForeignMemory;

/// The lock that an apply holds.
const LOCK: &str = "apply";

/// How a host is reached: each thread has connections of its own, as a watch is for whoever set it.
pub type Open<'a> = dyn Fn() -> Result<(Qubes, Arc<dyn ForeignMemory>), xen::Error> + Sync + 'a;
/// Has dom0 give so many KiB back, where it may.
pub type MakeRoom<'a> = dyn Fn(&Qubes, u64) -> Result<(), MemoryError> + Sync + 'a;
/// What is told of the progress.
pub type Report<'a> = dyn Fn(Event<'_>) + Sync + 'a;

/// What an apply leaves to whoever calls it.
pub struct Hooks<'a> {
    /// Opens the host.
    pub open: &'a Open<'a>,
    /// Makes room for a qube.
    pub make_room: &'a MakeRoom<'a>,
    /// Hears of the progress, from several threads.
    pub report: &'a Report<'a>,
}

/// How it is to be gone about.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where the policy goes.
    pub policy: PolicyFolder,
    /// Where generations are recorded.
    pub generations: Generations,
    /// How many steps go on at the same time; at least 1.
    pub jobs: usize,
    /// How long a qube that is to be restarted or removed may take to power off; with zero it is not asked.
    pub patience: Duration,
}

impl Default for Host {
    /// Four at a time, and a minute.
    fn default() -> Self {
        let (policy, generations) = (PolicyFolder::default(), Generations::default());
        Self { policy, generations, jobs: 4, patience: Duration::from_secs(60) }
    }
}

/// How a step went.
#[derive(Debug)]
pub enum Event<'a> {
    /// It begins.
    Begun(&'a Step),
    /// It waits until its netvm says that it is up.
    Waits(&'a Step, &'a str),
    /// It is done.
    Done(&'a Step, Duration),
    /// It failed.
    Failed(&'a Step, &'a Failure),
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A qube could not be found or handled.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// It could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Its memory could not be set.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its vCPUs could not be set.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// What a restart makes of it could not be kept.
    #[error(transparent)]
    Keep(#[from] WatchError),
    /// Its volume could not be made.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// What was left over could not be taken away.
    #[error(transparent)]
    Doctor(#[from] DoctorError),
    /// Its generation could not be recorded.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The policy could not be written.
    #[error("policy: {0}")]
    Policy(#[source] io::Error),
    /// Something that it needs failed.
    #[error("its netvm {0} could not be made")]
    Netvm(String),
    /// What it needs is there, and cannot serve it.
    #[error("its netvm {0} {1}")]
    NetvmLate(String, Verdict),
    /// It changed since it was looked at.
    #[error("it is no longer there")]
    Gone,
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What could not be done, by qube. The rest was.
    pub failures: Vec<(String, Failure)>,
}

/// Keeps others from applying at the same time, for as long as it is there.
#[derive(Debug)]
pub struct ApplyLock(#[allow(dead_code, reason = "the lock is held while the file is open")] File);

impl Qubes {
    /// Takes the lock of an apply; `None` when somebody has it.
    ///
    /// # Errors
    /// When the folder of locks is not to be had.
    pub fn lock_apply(&self) -> Result<Option<ApplyLock>, QubeError> {
        Ok(self.userdata.lock(LOCK, false)?.map(ApplyLock))
    }

    /// Takes the lock of an apply; `None` when somebody has it, and still has it after so long.
    ///
    /// # Errors
    /// When the folder of locks is not to be had.
    pub fn lock_apply_within(&self, patience: Duration) -> Result<Option<ApplyLock>, QubeError> {
        let begun = Instant::now();
        loop {
            let lock = self.lock_apply()?;
            // Whoever has it works for seconds.
            let left = patience.saturating_sub(begun.elapsed()).min(Duration::from_millis(50));
            if lock.is_some() || left.is_zero() {
                return Ok(lock);
            }
            thread::sleep(left);
        }
    }
}

impl Plan {
    /// Does it. The plan must have been made under the same lock, and have no conflicts.
    ///
    /// Whoever is killed meanwhile leaves a host from which another plan leads to the same end.
    ///
    /// # Errors
    /// [`Failure`] when nothing of the qubes was done yet; what fails with one of them is in the outcome.
    pub fn apply(
        &self,
        _lock: &ApplyLock,
        spec: &Spec,
        configs: &BTreeMap<String, QubeConfig>,
        host: &Host,
        hooks: &Hooks<'_>,
    ) -> Result<Outcome, Failure> {
        {
            let (qubes, _) = (hooks.open)()?;
            for leftover in &self.leftovers {
                qubes.repair(leftover)?;
            }
        }
        // Before the qubes: none is to run by an older policy than its own.
        for change in &self.policy {
            host.policy.carry_out(change).map_err(Failure::Policy)?;
        }
        let mut failures: Vec<(String, Failure)> = Vec::new();
        // What runs already as it is to be is a generation, too: of qubes that were made before there were any, or whose
        // maker was killed before it wrote that down.
        let made = |step: &&Step| matches!(step.work, Work::Resume | Work::Change(_));
        let stay = self.steps.iter().filter(made).map(|step| &step.name);
        for name in self.unchanged.iter().chain(stay) {
            if let Err(failure) = begin(spec, host, name) {
                failures.push((name.clone(), failure));
            }
        }
        let mut steps: &[Step] = &self.steps;
        while let Some(first) = steps.first() {
            let (wave, rest) = steps.split_at(steps.partition_point(|step| step.wave <= first.wave));
            steps = rest;
            let failed: BTreeSet<&str> = failures.iter().map(|(name, _)| name.as_str()).collect();
            let found = wave_of(wave, &failed, spec, configs, host, hooks);
            failures.extend(found);
        }
        Ok(Outcome { failures })
    }
}

/// Records what a qube runs, or is about to be made from.
fn begin(spec: &Spec, host: &Host, name: &str) -> Result<(), Failure> {
    let Some(qube) = spec.document().qubes.get(name) else { return Ok(()) };
    let Some(system) = &qube.system else { return Ok(()) };
    let choice = host.generations.choice(name, system)?;
    Ok(host.generations.begin(name, &choice, qube.ready.is_some())?)
}

/// Does the steps of a wave.
fn wave_of(
    wave: &[Step],
    failed: &BTreeSet<&str>,
    spec: &Spec,
    configs: &BTreeMap<String, QubeConfig>,
    host: &Host,
    hooks: &Hooks<'_>,
) -> Vec<(String, Failure)> {
    let queue: Mutex<VecDeque<&Step>> = Mutex::new(wave.iter().collect());
    let failures = Mutex::new(Vec::new());
    // A thread that panicked did so with neither lock held.
    let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
    let work = || {
        while let Some(step) = next() {
            (hooks.report)(Event::Begun(step));
            let begun = Instant::now();
            let netvm = spec.document().qubes.get(&step.name).and_then(|qube| qube.netvm.as_deref());
            let result = match netvm.filter(|netvm| failed.contains(netvm)) {
                Some(netvm) => Err(Failure::Netvm(netvm.to_owned())),
                None => (hooks.open)().map_err(Failure::from).and_then(|(qubes, foreign)| {
                    Worker { qubes, foreign, spec, configs, host, hooks }.carry_out(step)
                }),
            };
            match result {
                Ok(()) => (hooks.report)(Event::Done(step, begun.elapsed())),
                Err(failure) => {
                    (hooks.report)(Event::Failed(step, &failure));
                    let mut failures = failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    failures.push((step.name.clone(), failure));
                }
            }
        }
    };
    match host.jobs.min(wave.len()) {
        // Without a thread: its panics are the caller's.
        0 | 1 => work(),
        jobs => std::thread::scope(|scope| (0..jobs).for_each(|_| drop(scope.spawn(work)))),
    }
    failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Worker<'a> {
    qubes: Qubes,
    foreign: Arc<dyn ForeignMemory>,
    spec: &'a Spec,
    configs: &'a BTreeMap<String, QubeConfig>,
    host: &'a Host,
    hooks: &'a Hooks<'a>,
}

impl Worker<'_> {
    fn carry_out(&self, step: &Step) -> Result<(), Failure> {
        let config = || self.configs.get(&step.name).ok_or(Failure::Gone);
        match &step.work {
            Work::Create => {
                self.await_netvm(step)?;
                self.create(step, config()?)
            }
            Work::Resume => Ok(self.qubes.unpause(&self.find(step)?)?),
            Work::Change(changes) => {
                let (qube, config) = (self.find(step)?, config()?);
                // What an interface led to goes first, so that the guest has noticed by the time when it leads to another.
                let (first, then): (Vec<_>, Vec<_>) =
                    changes.iter().partition(|change| matches!(change, Change::DetachNic { .. }));
                first.into_iter().try_for_each(|change| self.change(&qube, change, config))?;
                self.await_netvm(step)?;
                then.into_iter().try_for_each(|change| self.change(&qube, change, config))
            }
            Work::Restart { .. } => {
                let config = config()?;
                self.await_netvm(step)?;
                // From here on it will be made again, whoever does it.
                let text = serde_json::to_string(config).map_err(|error| QubeError::UserData {
                    path: step.name.clone().into(),
                    source: error.into(),
                })?;
                self.qubes.userdata.note_restart(step.uuid, &text)?;
                self.end(&self.find(step)?)?;
                self.create(step, config)
            }
            Work::Remove => self.end(&self.find(step)?),
        }
    }

    /// Waits until a step's interface has somebody to serve it: the netvm's word is that it does.
    fn await_netvm(&self, step: &Step) -> Result<(), Failure> {
        let attaches = match &step.work {
            Work::Create | Work::Restart { .. } => true,
            Work::Change(changes) => changes.iter().any(|change| matches!(change, Change::AttachNic(_))),
            Work::Resume | Work::Remove => false,
        };
        let declared = &self.spec.document().qubes;
        let netvm = declared.get(&step.name).and_then(|qube| qube.netvm.as_deref());
        let Some(name) = netvm.filter(|_| attaches) else { return Ok(()) };
        let Some(ready) = declared.get(name).and_then(|qube| qube.ready) else { return Ok(()) };
        let uuid = uuid_of(name);
        let is_up = |qube: &Qube| qube.uuid() == uuid && !qube.info.dying && qube.info.shutdown.is_none();
        // That there is none is said by what wants it.
        let Some(netvm) = self.qubes.list()?.into_iter().find(is_up) else { return Ok(()) };
        if self.qubes.is_ready(&netvm)? {
            return Ok(());
        }
        (self.hooks.report)(Event::Waits(step, name));
        let limit = Duration::from_secs(ready.timeout);
        let awaited = vec![Awaited { name: name.to_owned(), uuid, limit }];
        match self.qubes.await_ready(awaited, &mut |_, _| ())?.into_iter().next() {
            Some((_, Verdict::Ready(_))) | None => Ok(()),
            Some((_, verdict)) => Err(Failure::NetvmLate(name.to_owned(), verdict)),
        }
    }

    fn find(&self, step: &Step) -> Result<Qube, Failure> {
        let is_it = |qube: &Qube| qube.uuid() == step.uuid && !qube.info.dying;
        self.qubes.list()?.into_iter().find(is_it).ok_or(Failure::Gone)
    }

    fn create(&self, step: &Step, config: &QubeConfig) -> Result<(), Failure> {
        self.ensure_volume(&step.name, |_| true)?;
        begin(self.spec, self.host, &step.name)?;
        // What was made room for may be taken by another that is made at the same time.
        let mut tries = self.host.jobs;
        let qube = loop {
            match self.qubes.create(config, true, &*self.foreign) {
                Err(CreateError::Build(BuildError::Memory { needed_kib, .. })) if tries > 0 => {
                    (self.hooks.make_room)(&self.qubes, needed_kib)?;
                    tries -= 1;
                }
                made => break made?,
            }
        };
        self.qubes.unpause(&qube)?;
        Ok(self.qubes.userdata.forget_restart(step.uuid)?)
    }

    /// Makes a qube's private volume what is declared of it, if it is the one that is meant.
    fn ensure_volume(&self, name: &str, meant: impl Fn(&Private) -> bool) -> Result<(), Failure> {
        let private = self.spec.document().qubes.get(name).and_then(|qube| qube.private.as_ref());
        let volume = private
            .filter(|private| meant(private))
            .and_then(|private| PrivateVolume::of(&self.qubes, private));
        volume.map_or(Ok(()), |volume| Ok(volume.ensure()?))
    }

    /// Ends a qube: asks it to power off, and waits no longer than that makes sense.
    fn end(&self, qube: &Qube) -> Result<(), Failure> {
        let patience = self.host.patience;
        if !patience.is_zero() && qube.info.shutdown.is_none() && qube.info.cpu_time > 0 {
            // The watcher shall not take for its own affair what is about to end.
            self.qubes.userdata.forget(Kind::Nxl, qube.info.domid, qube.uuid())?;
            self.qubes.request(qube, Request::Poweroff)?;
            match self.qubes.wait_for_shutdown(qube, Some(patience)) {
                Ok(()) | Err(QubeError::Timeout { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match self.qubes.destroy(qube) {
            Ok(()) | Err(QubeError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn change(&self, qube: &Qube, change: &Change, config: &QubeConfig) -> Result<(), Failure> {
        let qubes = &self.qubes;
        match change {
            Change::Name { .. } => qubes.rename(qube, &config.name)?,
            Change::Memory { running, declared } => {
                if let Some(more) = running.and_then(|running| declared.checked_sub(running)) {
                    (self.hooks.make_room)(qubes, more)?;
                }
                qubes.set_memory(qube, *declared)?;
            }
            Change::Vcpus { declared, .. } => qubes.set_vcpus(qube, *declared, false)?,
            Change::DetachDisk(vdev) => qubes.detach_disk(qube, vdev, Release::Asked)?,
            Change::AttachDisk(disk) => {
                self.ensure_volume(&config.name, |private| private.target == disk.target)?;
                qubes.attach_disk(qube, disk)?;
            }
            Change::DetachNic { devid, forced } => {
                let release = if *forced { Release::Forced } else { Release::Asked };
                qubes.detach_nic(qube, *devid, release)?;
            }
            Change::AttachNic(nic) => qubes.attach_nic(qube, nic)?,
            Change::Volume { .. } => self.ensure_volume(&config.name, |_| true)?,
            Change::Kept => drop(qubes.keep_config(qube, config.clone())?),
            Change::Resumed => qubes.unpause(qube)?,
        }
        Ok(())
    }
}
