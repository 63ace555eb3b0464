//! The policy of a running program: read again whenever a file changes, and swapped as a whole.

use super::call::Call;
use super::compiled::Policy;
use super::decision::Decision;
use super::error::{Fault, PolicyError};
use super::files::{PolicyFolders, Reading};
use super::system::System;
use super::watch::Watch;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

/// What decides at the moment.
#[derive(Debug, Clone)]
pub enum Current {
    /// A policy.
    Policy(Arc<Policy>),
    /// A wrong one, which denies everything.
    Wrong(Arc<[PolicyError]>),
}

impl Current {
    fn of(reading: Result<Policy, Vec<PolicyError>>) -> Self {
        match reading {
            Ok(policy) => Self::Policy(policy.into()),
            Err(errors) => Self::Wrong(errors.into()),
        }
    }

    /// Decides a call.
    pub fn decide(&self, call: &Call, system: &System) -> Decision {
        match self {
            Self::Policy(policy) => policy.decide(call, system),
            Self::Wrong(errors) => Decision::wrong_policy(errors),
        }
    }
}

/// A policy that follows its files. A decision sees the policy of one reading, never parts of two.
///
/// While a file is wrong, everything is denied; what was right before is not kept.
#[derive(Debug)]
pub struct PolicyStore {
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    folders: PolicyFolders,
    current: RwLock<Current>,
    /// One reading at a time: an older one does not replace a newer.
    reading: Mutex<()>,
}

impl PolicyStore {
    /// Reads the policy and begins to watch its files.
    ///
    /// # Errors
    /// The kernel gives no inotify instance, no watch or no thread. A wrong policy is none: it denies.
    pub fn open(folders: PolicyFolders) -> io::Result<Self> {
        let watch = Arc::new(Watch::new()?);
        let shared = Arc::new(Shared {
            folders,
            current: RwLock::new(Current::Wrong(Arc::new([]))),
            reading: Mutex::new(()),
        });
        shared.read(&watch)?;
        let thread = std::thread::Builder::new().name("policy".to_owned()).spawn({
            let (shared, watch) = (shared.clone(), watch.clone());
            move || {
                // Without watches a change would go unseen: nothing is allowed by what may be old.
                let lost = |error: &io::Error| {
                    let file = shared.folders.folders.first().cloned().unwrap_or_default();
                    shared.swap(Current::Wrong([Fault::io(error).of(file)].into()));
                };
                loop {
                    match watch.wait() {
                        Ok(true) => shared.read(&watch).unwrap_or_else(|error| lost(&error)),
                        Ok(false) => return,
                        Err(error) => return lost(&error),
                    }
                }
            }
        })?;
        Ok(Self { shared, watch, thread: Some(thread) })
    }

    /// What decides now.
    pub fn current(&self) -> Current {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Decides a call by the current policy.
    pub fn decide(&self, call: &Call, system: &System) -> Decision {
        self.current().decide(call, system)
    }

    /// Reads the files now, whether they changed or not.
    ///
    /// # Errors
    /// As [`PolicyStore::open`] has them.
    pub fn reload(&self) -> io::Result<()> {
        self.shared.read(&self.watch)
    }
}

impl Drop for PolicyStore {
    fn drop(&mut self) {
        self.watch.stop();
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, there is nothing to be done here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn turn(&self) -> MutexGuard<'_, ()> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn swap(&self, current: Current) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
    }

    /// Reads the files, and watches what was read. What changed between reading a file and watching its folder would be
    /// missed: whatever is watched anew is therefore read once more.
    fn read(&self, watch: &Watch) -> io::Result<()> {
        let _turn = self.turn();
        loop {
            let Reading { policy, seen, .. } = self.folders.read();
            if !watch.set(&seen)? {
                self.swap(Current::of(policy));
                return Ok(());
            }
        }
    }
}
