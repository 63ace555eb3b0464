//! Qubes that are saved to a file and restored from it, as `xl save` and `xl restore` do it, with `xl`'s files.
//!
//! The guest is asked to suspend itself, libxenguest writes what Xen keeps of it and its memory, and the domain is destroyed when
//! the file is whole and on disk, not before. Whatever fails on the way, the guest goes on as it was.

mod file;
mod restore;
#[cfg(test)]
mod tests;

pub use file::FileError;
pub use restore::SavedQube;

use crate::config::QubeConfig;
use crate::device::Kind;
use crate::events::Step;
use crate::progress::Progress;
use crate::qubes::{Qube, QubeError, Qubes};
use crate::store::{self, home};
use crate::watch::WatchError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use xen::{DomId, PAGE_SIZE, ShutdownReason, Transaction};

/// How long a guest may take to take notice of the request, and again to follow it: libxl's 60 s.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked how much was written.
const LOOK: Duration = Duration::from_millis(200);
/// What is written to `control/shutdown`.
const SUSPEND: &str = "suspend";

/// What becomes of a qube that was saved.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Afterwards {
    /// It is destroyed.
    #[default]
    Destroy,
    /// It goes on.
    Resume,
    /// It goes on when somebody unpauses it.
    Pause,
}

/// Why a qube could not be saved, or not be restored. One that could not be saved goes on; of one that could not be restored
/// nothing is left but its file.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The guest does not listen.
    #[error(
        "domain {domid} did not {what} within {} s: its kernel may not be able to suspend itself (it goes on)",
        PATIENCE.as_secs()
    )]
    Timeout {
        /// Which domain.
        domid: DomId,
        /// What it did not do.
        what: &'static str,
    },
    /// It shut down for another reason.
    #[error("domain {domid} was to suspend itself, and shut down instead ({reason:?})")]
    Ended {
        /// Which domain.
        domid: DomId,
        /// Why.
        reason: ShutdownReason,
    },
    /// It does not run.
    #[error("domain {domid} has shut down ({reason:?}): there is nothing to be suspended")]
    Down {
        /// Which domain.
        domid: DomId,
        /// Why.
        reason: ShutdownReason,
    },
    /// It has what cannot be saved.
    #[error("domain {domid} has {what}, which cannot be saved: take it away before (`nxl pci-detach`)")]
    Device {
        /// Which domain.
        domid: DomId,
        /// What.
        what: &'static str,
    },
    /// It has devices that another toolstack has to make anew.
    #[error("domain {domid} has devices that nxl does not manage ({kinds}): `xl save' saves it")]
    ForeignDevices {
        /// Which domain.
        domid: DomId,
        /// The kinds of device, such as `vbd, vif`.
        kinds: String,
    },
    /// Its configuration forbids it.
    #[error("domain {domid} is not to be saved: its configuration has nomigrate=1")]
    Forbidden {
        /// Which domain.
        domid: DomId,
    },
    /// Nothing is known of how it was made.
    #[error(
        "nothing is kept of how domain {domid} was made: name its configuration, `nxl save {domid} FILE CONFIG`"
    )]
    NoConfig {
        /// Which domain.
        domid: DomId,
    },
    /// What is wrong with a file, or keeps it from being written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: FileError,
    },
    /// A configuration in a file.
    #[error("{path}: its configuration: {reason}")]
    Config {
        /// Which.
        path: PathBuf,
        /// Why it makes no qube.
        reason: String,
    },
    /// It was saved with its id, and another domain has that now.
    #[error("{path} is to be restored with the id {domid} (it was saved with -D), and a domain has it")]
    Taken {
        /// Which file.
        path: PathBuf,
        /// The id.
        domid: DomId,
    },
    /// It was saved, and is suspended, and neither gone nor going on.
    #[error("it is saved, and suspended, but not {what}: {source}")]
    Afterwards {
        /// What it should be now.
        what: &'static str,
        /// Why it is not.
        source: QubeError,
    },
    /// What is kept of a qube could not be read.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// A qube could not be found or handled.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// It could not be restored.
    #[error(transparent)]
    Create(#[from] crate::create::CreateError),
    /// A call failed.
    #[error(transparent)]
    Xen(#[from] xen::Error),
}

/// What nxl keeps of a qube in its file besides libxl's JSON, which has no word for some of it.
#[derive(Debug, Serialize, Deserialize)]
struct Ours {
    /// The configuration.
    config: QubeConfig,
    /// Pages that the domain had.
    pages: u64,
    /// Whether the watcher attends it.
    attended: bool,
}

impl Qubes {
    /// Has a guest suspend itself, and waits for that. Its domain stays, with all that it has.
    ///
    /// # Errors
    /// [`SaveError::Timeout`] and [`SaveError::Ended`], or what Xen or xenstored says; dom0 is refused. A guest that did not
    /// take notice is not asked any longer.
    pub fn suspend(&self, qube: &Qube) -> Result<(), SaveError> {
        let domid = qube.info.domid;
        if domid == DomId::DOM0 {
            return Err(QubeError::Dom0("suspended").into());
        }
        if let Some(reason) = qube.info.shutdown {
            return Err(SaveError::Down { domid, reason });
        }
        let path = format!("{}/control/shutdown", home(domid));
        self.store.write(Transaction::NONE, &path, SUSPEND.as_bytes())?;
        let noticed = |value: Option<&str>| value != Some(SUSPEND);
        let acknowledged =
            self.watched(&path, Some(PATIENCE), || Ok(noticed(self.read(&path)?.as_deref()).then_some(())));
        if acknowledged?.is_none() && self.take_back(&path, noticed)? {
            return Err(SaveError::Timeout { domid, what: "take notice of the request to suspend itself" });
        }
        let ended = self.watched("@releaseDomain", Some(PATIENCE), || {
            let info = self.control.domain_info(domid)?;
            Ok(info.shutdown.filter(|_| info.uuid == qube.info.uuid))
        })?;
        match ended {
            Some(ShutdownReason::Suspend) => {
                self.tell(qube, Step::Suspended);
                Ok(())
            }
            Some(reason) => Err(SaveError::Ended { domid, reason }),
            None => Err(SaveError::Timeout { domid, what: "suspend itself" }),
        }
    }

    /// Takes the request back, unless the guest took notice at the last moment.
    fn take_back(&self, path: &str, noticed: impl Fn(Option<&str>) -> bool) -> Result<bool, xen::Error> {
        xen::transaction(&*self.store, |tx| {
            let value = store::read_if_there(&*self.store, tx, path)?;
            let value = value.map(|value| String::from_utf8_lossy(&value).into_owned());
            if noticed(value.as_deref()) {
                return Ok(false);
            }
            self.store.write(tx, path, b"")?;
            Ok(true)
        })
    }

    /// Lets a suspended guest go on where it is.
    ///
    /// # Errors
    /// What Xen or xenstored says.
    pub fn resume(&self, qube: &Qube) -> Result<(), QubeError> {
        self.control.resume_domain(qube.info.domid)?;
        self.store.resume(qube.info.domid)?;
        self.tell(qube, Step::Resumed);
        Ok(())
    }

    /// Saves a qube to a file, which others than root cannot read: it has the guest's memory in it. A file of that name is
    /// replaced when the new one is whole; anything else of that name, such as a pipe, is written to. The configuration that it
    /// is restored with is `config`, or the one that it was made with and what was changed since. With `keeps_domid` it is
    /// restored with its id, or not at all.
    ///
    /// # Errors
    /// See [`SaveError`]. The guest goes on then, unless it says otherwise, and the file is as it was.
    pub fn save(
        &self,
        qube: &Qube,
        config: Option<&QubeConfig>,
        path: &Path,
        keeps_domid: bool,
        afterwards: Afterwards,
        progress: &Progress,
    ) -> Result<(), SaveError> {
        let domid = qube.info.domid;
        // Before the guest is bothered: all that is known to fail.
        let devices = self.destroyable(qube).map_err(|error| match error {
            QubeError::ForeignDevices { domid, kinds } => SaveError::ForeignDevices { domid, kinds },
            error => error.into(),
        })?;
        if devices.iter().any(|device| device.kind == Kind::Pci) {
            return Err(SaveError::Device { domid, what: "PCI devices" });
        }
        let known = self.known(qube)?;
        let (mut json, ours) = self.described(qube, config, known)?;
        if keeps_domid {
            json["c_info"]["domid"] = domid.0.into();
        }
        let json = crate::config::laid_out(&json);
        let at = |source: FileError| SaveError::File { path: path.to_owned(), source };
        let target = Target::open(path).map_err(|error| at(error.into()))?;

        let done = self.suspend(qube).and_then(|()| {
            self.write(qube, &target, &json, &ours, progress)
                .and_then(|()| target.finish().map_err(|error| at(error.into())))
                .inspect_err(|_| {
                    // The error that led here is the one to report.
                    let _ = self.resume(qube);
                })
        });
        if let Err(error) = done {
            target.discard();
            return Err(error);
        }
        self.tell(qube, Step::Saved { file: path.to_owned() });
        let (result, what) = match afterwards {
            Afterwards::Destroy => (self.destroy(qube), "destroyed"),
            Afterwards::Resume => (self.resume(qube), "resumed"),
            // In this order it does not run in between.
            Afterwards::Pause => (self.pause(qube).and_then(|()| self.resume(qube)), "resumed"),
        };
        result.map_err(|source| SaveError::Afterwards { what, source })
    }

    /// What the watcher would make it of again.
    fn known(&self, qube: &Qube) -> Result<Option<Ours>, SaveError> {
        let config = self.known_config(qube)?;
        Ok(config.map(|config| Ours { config, pages: qube.info.pages, attended: true }))
    }

    /// The configuration, in libxl's JSON and in ours.
    fn described(
        &self,
        qube: &Qube,
        config: Option<&QubeConfig>,
        known: Option<Ours>,
    ) -> Result<(Value, Vec<u8>), SaveError> {
        let domid = qube.info.domid;
        if let Some(config) = config {
            let config = QubeConfig { uuid: qube.uuid(), ..config.clone() };
            let json = config.libxl_record();
            let ours = Ours { config, pages: qube.info.pages, attended: known.is_some() };
            return Ok((json, encoded(&ours)));
        }
        let json = self.current_config(qube)?.ok_or(SaveError::NoConfig { domid })?;
        if json["b_info"]["disable_migrate"] == "True" {
            return Err(SaveError::Forbidden { domid });
        }
        // Of one that another toolstack made there is libxl's alone.
        Ok((json, known.as_ref().map(encoded).unwrap_or_default()))
    }

    fn write(
        &self,
        qube: &Qube,
        target: &Target,
        json: &str,
        ours: &[u8],
        progress: &Progress,
    ) -> Result<(), SaveError> {
        let at = |source| SaveError::File { path: target.path.clone(), source };
        let mut file = &target.file;
        file::write_head(&mut file, json, ours).map_err(at)?;
        let all = qube.info.pages * PAGE_SIZE as u64;
        watching(&target.file, all, progress, || {
            self.control.save_domain(qube.info.domid, target.file.as_fd())
        })?;
        file::write_end(&mut file).map_err(at)
    }
}

fn encoded(ours: &Ours) -> Vec<u8> {
    // Numbers, texts and lists of them: that has a form in JSON.
    serde_json::to_vec(ours).unwrap_or_default()
}

/// Does something that writes to a file or reads from it, and tells how far it has come.
fn watching<T>(file: &File, all: u64, progress: &Progress, work: impl FnOnce() -> T) -> T {
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::park_timeout(LOOK);
                // A pipe has no place to stand at.
                if let Ok(at) = rustix::fs::tell(file) {
                    progress.tell(at.min(all.saturating_sub(1)), all);
                }
            }
        });
        let result = work();
        over.store(true, Ordering::Relaxed);
        looking.thread().unpark();
        // It does not panic; and were it to, there would be nothing to be told of.
        let _ = looking.join();
        progress.tell(all, all);
        result
    })
}

/// Where a qube is saved to.
struct Target {
    file: File,
    /// Its name in messages, and in the end.
    path: PathBuf,
    /// The name under which it is written, if that is another.
    new: Option<PathBuf>,
}

impl Target {
    fn open(path: &Path) -> io::Result<Self> {
        let path = path.to_owned();
        if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            let file = OpenOptions::new().write(true).open(&path)?;
            return Ok(Self { file, path, new: None });
        }
        let mut new = path.file_name().map(OsString::from).ok_or(io::ErrorKind::InvalidInput)?;
        new.push(".new");
        let new = path.with_file_name(new);
        // Of one that was killed, or anything else: what follows is a file of our own.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        Ok(Self { file, path, new: Some(new) })
    }

    /// Has it on disk, and under its name.
    fn finish(&self) -> io::Result<()> {
        let Some(new) = &self.new else { return Ok(()) };
        self.file.sync_all()?;
        fs::rename(new, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn discard(&self) {
        if let Some(new) = &self.new {
            // Under its final name it is whole.
            let _ = fs::remove_file(new);
        }
    }
}
