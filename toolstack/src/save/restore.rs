//! Restoring a qube from its file.

use super::file::{self, Config, FileError, Head};
use super::{Ours, SaveError, watching};
use crate::boot::{self, Loaded, Saved, Sizes};
use crate::config::{GuestType, QubeConfig};
use crate::create::{self, Domain, Ending};
use crate::events::Step;
use crate::progress::Progress;
use crate::qubes::{Qube, Qubes};
use crate::userdata::Kind;
use serde_json::Value;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use xen::{DomId, GuestKind, PAGE_SHIFT};

/// A file of a saved qube, read up to the guest's state.
#[derive(Debug)]
pub struct SavedQube {
    path: PathBuf,
    file: File,
    head: Head,
}

impl SavedQube {
    /// Opens one.
    ///
    /// # Errors
    /// [`SaveError::File`]: it is none, or none that can be restored here.
    pub fn open(path: &Path) -> Result<Self, SaveError> {
        let at = |source| SaveError::File { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(|error| at(error.into()))?;
        let head = file::read_head(&mut file).map_err(at)?;
        Ok(Self { path: path.to_owned(), file, head })
    }

    /// The configuration that is in it: nxl's own, or what `xl` has kept. With it the pages that the domain had, if that is
    /// known.
    fn config(&self) -> Result<(QubeConfig, Option<u64>), SaveError> {
        let wrong = |reason: String| SaveError::Config { path: self.path.clone(), reason };
        if let Some(ours) = self.head.ours.as_ref().filter(|ours| !ours.is_empty()) {
            let ours: Ours = serde_json::from_slice(ours).map_err(|error| wrong(error.to_string()))?;
            return Ok((ours.config, Some(ours.pages)));
        }
        let source_name = self.path.display().to_string();
        let config = match &self.head.config {
            None => return Err(SaveError::File { path: self.path.clone(), source: FileError::NoConfig }),
            Some(Config::Json(json)) => {
                QubeConfig::from_libxl_json(&source_name, json).map_err(|error| wrong(error.to_string()))?
            }
            Some(Config::Text(text)) => {
                QubeConfig::from_text(&source_name, text).map_err(|error| wrong(error.to_string()))?
            }
        };
        Ok((config, None))
    }

    /// The id that it is to be restored with, if it was saved so.
    fn domid(&self) -> Option<DomId> {
        let Some(Config::Json(json)) = &self.head.config else { return None };
        let json: Value = serde_json::from_slice(json).ok()?;
        let domid = u16::try_from(json.pointer("/c_info/domid")?.as_u64()?).ok()?;
        // What is no guest's id stands for none.
        (1..DomId::FIRST_RESERVED).contains(&domid).then_some(DomId(domid))
    }
}

impl Qubes {
    /// Restores a qube, paused, with the configuration of its file or another one: it can change what the guest does not see,
    /// such as the files behind its disks. With `attended` the configuration is kept for the [watcher](crate::watch), which is
    /// to be started when none runs.
    ///
    /// # Errors
    /// See [`SaveError`].
    pub fn restore(
        &self,
        saved: SavedQube,
        config: Option<QubeConfig>,
        attended: bool,
        progress: &Progress,
    ) -> Result<(Qube, QubeConfig), SaveError> {
        let (config, pages) = match config {
            Some(config) => {
                // It is the same qube, whatever is chosen for it by lot.
                let kept = saved.config().ok();
                let uuid = kept.as_ref().map_or(config.uuid, |(kept, _)| kept.uuid);
                (QubeConfig { uuid, ..config }, kept.and_then(|(_, pages)| pages))
            }
            None => saved.config()?,
        };
        let settled = self.settled(&config)?;
        let config = &settled.config;
        let kind = match config.guest {
            GuestType::Pvh => GuestKind::Pvh,
            GuestType::Pv => GuestKind::Pv,
        };
        let sizes = Sizes {
            vcpus: config.vcpus,
            max_vcpus: config.max_vcpus,
            memory_kib: config.memory_mib << 10,
            max_memory_kib: config.max_memory_mib << 10,
        };
        let spec = Saved {
            kind,
            sizes,
            // libxl gives a domain no more than that.
            pages: pages.unwrap_or(sizes.max_mem_kib() >> (PAGE_SHIFT - 10)),
            placement: self.placement(config).map_err(create::CreateError::from)?,
            paging_memory_mib: config.paging_memory_mib,
            timer_mode: config.timer_mode as u64,
            domid: saved.domid(),
        };
        if let Some(domid) = spec.domid
            && self.control.domain_info(domid).is_ok()
        {
            return Err(SaveError::Taken { path: saved.path, domid });
        }
        let domain = Domain {
            settled: &settled,
            kind,
            sizes,
            kernel: &config.kernel,
            ramdisk: config.ramdisk.as_deref(),
            cmdline: &config.cmdline,
        };
        let mut file = &saved.file;
        let all = file.metadata().map_or(0, |found| found.len());
        let mut after = Ok(());
        let kept = attended.then_some(Kind::Nxl);
        let qube = self.bring_about(&domain, kept, Ending::Paused, |daemons| {
            let (uuid, limits) = (*config.uuid.as_bytes(), create::limits(config));
            let built = watching(&saved.file, all, progress, || {
                boot::restore(&spec, saved.file.as_fd(), uuid, limits, daemons, &*self.control)
            })?;
            after = file::read_end(&mut file);
            Ok((built, Loaded::default()))
        })?;
        if let Err(source) = after {
            // What followed the guest's state is not what belongs there: it may be another's.
            self.destroy(&qube)?;
            return Err(SaveError::File { path: saved.path, source });
        }
        self.tell(&qube, Step::Restored { file: saved.path });
        let config = config.clone();
        Ok((qube, config))
    }
}
