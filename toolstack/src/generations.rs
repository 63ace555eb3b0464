//! Generations of declared qubes: each system that a qube was booted from, kept as a Nix profile keeps those of a host.
//!
//! The links have the layout of nix-env and `nix profile`: `QUBE` is a link to `QUBE-7-link` beside it, and that one to a
//! system. Below Nix' own profiles they are roots of its garbage collector, and `nxl create …/QUBE --generation 7` reads
//! them, too. What no link says, [`Record`] does: which one runs, whether it is on trial, and what was chosen by hand.

use crate::config::{self, ClosureError};
use crate::whole_file;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Nix' profiles: what is below is kept from its garbage collector.
const NIX_PROFILES: &str = "/nix/var/nix/profiles";
/// Where the records are; the links, too, where there is no Nix.
const FOLDER: &str = "/var/lib/nxl/generations";

/// Why generations cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record is none.
    #[error("{path}: {source}; `nxl generations' forgets which of them runs when it is removed", path = .path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// There is no such generation. The message says which there are.
    #[error(transparent)]
    None(ClosureError),
    /// The qube has none yet.
    #[error("{0} has no generations: it never ran as a declared qube")]
    NoneYet(String),
    /// There is none before.
    #[error("{qube} has no generation before {number}")]
    NoneBefore {
        /// The qube.
        qube: String,
        /// The generation that it is at.
        number: u64,
    },
    /// It is needed.
    #[error("generation {number} of {qube} is {why}: it is kept")]
    Needed {
        /// The qube.
        qube: String,
        /// The generation.
        number: u64,
        /// What it is.
        why: &'static str,
    },
}

/// A generation, or a specialisation of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its number.
    pub generation: u64,
    /// The specialisation; none for the system itself.
    pub specialisation: Option<String>,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.generation)?;
        self.specialisation.as_ref().map_or(Ok(()), |name| write!(f, ", specialisation {name}"))
    }
}

/// Why a qube runs another system than is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// `nxl switch` asked for it.
    Switched,
    /// `nxl rollback` did.
    RolledBack,
    /// What is declared did not come up.
    FellBack,
}

impl Reason {
    /// As people say it.
    #[must_use]
    pub fn said(self) -> &'static str {
        match self {
            Self::Switched => "switched",
            Self::RolledBack => "rolled back",
            Self::FellBack => "fell back",
        }
    }
}

/// What a qube runs instead of what is declared, for as long as that is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// What it runs.
    pub variant: Variant,
    /// The system that was declared. When another one is, that one is booted.
    pub against: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// What was booted and has not reported ready yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// What is booted when it does not.
    pub previous: Variant,
}

/// What is known of a qube's generations besides the links.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What it was made from last.
    pub booted: Option<Variant>,
    /// Whether that has yet to report ready.
    pub trial: Option<Trial>,
    /// What it runs instead of what is declared.
    pub held: Option<Held>,
    /// Generations that did not come up, and why.
    #[serde(default)]
    pub failed: BTreeMap<u64, String>,
}

/// A generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// Its system.
    pub system: PathBuf,
    /// When it was recorded.
    pub made: SystemTime,
}

/// The system that a qube is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The toplevel.
    pub system: PathBuf,
    /// A specialisation of it.
    pub specialisation: Option<String>,
    /// Why it is not what is declared, if it is not.
    pub held: Option<Held>,
    /// Whether it runs and has yet to report ready.
    pub on_trial: bool,
}

/// The generations of this host's declared qubes. Whoever writes has the lock of `apply`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generations {
    links: PathBuf,
    records: PathBuf,
}

impl Default for Generations {
    /// Below Nix' profiles where there are any, and in `/var/lib/nxl/generations` otherwise.
    fn default() -> Self {
        let nix = Path::new(NIX_PROFILES);
        let links = if nix.is_dir() { nix.join("nexus") } else { FOLDER.into() };
        Self { links, records: FOLDER.into() }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> GenerationError {
    let path = path.to_owned();
    move |source| GenerationError::File { path, source }
}

impl Generations {
    /// In another folder: for tests.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self { links: folder.join("links"), records: folder }
    }

    /// The profile of a qube: a link to its default generation.
    #[must_use]
    pub fn profile(&self, qube: &str) -> PathBuf {
        self.links.join(qube)
    }

    fn link(&self, qube: &str, number: u64) -> PathBuf {
        self.links.join(format!("{qube}-{number}-link"))
    }

    /// All generations of a qube, in rising order.
    ///
    /// # Errors
    /// [`GenerationError::File`].
    pub fn list(&self, qube: &str) -> Result<Vec<Generation>, GenerationError> {
        let known = match config::generations(&self.profile(qube)) {
            Ok(known) => known,
            Err(ClosureError::NotAProfile { .. }) => Vec::new(),
            Err(ClosureError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(ClosureError::Read { path, source }) => return Err(GenerationError::File { path, source }),
            Err(error) => return Err(GenerationError::None(error)),
        };
        known
            .into_iter()
            .map(|(number, link)| {
                let system = fs::read_link(&link).map_err(at(&link))?;
                let made = fs::symlink_metadata(&link).and_then(|link| link.modified()).map_err(at(&link))?;
                Ok(Generation { number, system, made })
            })
            .collect()
    }

    /// One generation of a qube.
    ///
    /// # Errors
    /// [`GenerationError::None`] when there is no such one.
    pub fn get(&self, qube: &str, number: u64) -> Result<Generation, GenerationError> {
        let known = self.list(qube)?;
        if known.is_empty() {
            return Err(GenerationError::NoneYet(qube.to_owned()));
        }
        let numbers = known.iter().map(|generation| generation.number).collect();
        known.into_iter().find(|generation| generation.number == number).ok_or_else(|| {
            GenerationError::None(ClosureError::Generation {
                profile: self.profile(qube),
                wanted: number,
                known: numbers,
            })
        })
    }

    /// The number of the default generation: that of the profile's link.
    ///
    /// # Errors
    /// [`GenerationError::File`].
    pub fn default_of(&self, qube: &str) -> Result<Option<u64>, GenerationError> {
        let profile = self.profile(qube);
        match fs::read_link(&profile) {
            Ok(link) => {
                let name = link.file_name().and_then(|name| name.to_str());
                let number = name.and_then(|name| {
                    name.strip_prefix(qube)?.strip_prefix('-')?.strip_suffix("-link")?.parse().ok()
                });
                Ok(number)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&profile)(error)),
        }
    }

    /// The generation before the one that a qube is at.
    ///
    /// # Errors
    /// [`GenerationError::NoneBefore`], [`GenerationError::NoneYet`].
    pub fn before(&self, qube: &str) -> Result<Generation, GenerationError> {
        let booted = self.record(qube)?.booted.map(|variant| variant.generation);
        let number = match booted {
            Some(number) => number,
            None => self.default_of(qube)?.ok_or_else(|| GenerationError::NoneYet(qube.to_owned()))?,
        };
        let before = self.list(qube)?.into_iter().rev().find(|generation| generation.number < number);
        before.ok_or_else(|| GenerationError::NoneBefore { qube: qube.to_owned(), number })
    }

    /// Sees to it that a system is a generation: the default one, if that is it, the last one, if that is it, and otherwise
    /// a new one, as nix-env has it. Its number.
    fn add(&self, qube: &str, system: &Path) -> Result<u64, GenerationError> {
        let (known, default) = (self.list(qube)?, self.default_of(qube)?);
        let is_it = |generation: &&Generation| generation.system == system;
        let of_default = known.iter().find(|generation| Some(generation.number) == default).filter(is_it);
        if let Some(found) = of_default.or_else(|| known.last().filter(is_it)) {
            return Ok(found.number);
        }
        let number = known.last().map_or(1, |last| last.number + 1);
        let link = self.link(qube, number);
        fs::create_dir_all(&self.links).map_err(at(&self.links))?;
        symlink(system, &link).map_err(at(&link))?;
        Ok(number)
    }

    /// Makes a generation the default one.
    fn point(&self, qube: &str, number: u64) -> Result<(), GenerationError> {
        if self.default_of(qube)? == Some(number) {
            return Ok(());
        }
        let (profile, new) = (self.profile(qube), self.links.join(format!(".{qube}.new")));
        let put = || {
            match fs::remove_file(&new) {
                // Left by somebody who was killed.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            symlink(format!("{qube}-{number}-link"), &new)?;
            fs::rename(&new, &profile)
        };
        put().map_err(at(&profile))
    }

    fn record_path(&self, qube: &str) -> PathBuf {
        self.records.join(format!("{qube}.json"))
    }

    /// What is known besides the links.
    ///
    /// # Errors
    /// [`GenerationError::File`], [`GenerationError::Record`].
    pub fn record(&self, qube: &str) -> Result<Record, GenerationError> {
        let path = self.record_path(qube);
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| GenerationError::Record { path, source })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(at(&path)(error)),
        }
    }

    fn write(&self, qube: &str, record: &Record) -> Result<(), GenerationError> {
        let path = self.record_path(qube);
        let text = serde_json::to_vec(record)
            .map_err(|source| GenerationError::Record { path: path.clone(), source })?;
        whole_file::replace(&path, &text, 0o600).map_err(at(&path))
    }

    /// The system that a qube is to run of which `declared` is declared: that one, unless another was chosen against it.
    ///
    /// # Errors
    /// [`GenerationError::File`], [`GenerationError::Record`].
    pub fn choice(&self, qube: &str, declared: &Path) -> Result<Choice, GenerationError> {
        let Record { held, trial, .. } = self.record(qube)?;
        let held = held.filter(|held| held.against == declared);
        let choice = Choice {
            system: declared.to_owned(),
            specialisation: None,
            held: None,
            on_trial: trial.is_some(),
        };
        let Some(held) = held else { return Ok(choice) };
        let chosen =
            self.list(qube)?.into_iter().find(|generation| generation.number == held.variant.generation);
        Ok(match chosen {
            Some(generation) => Choice {
                system: generation.system,
                specialisation: held.variant.specialisation.clone(),
                held: Some(held),
                ..choice
            },
            // Deleted by other means: what is declared is there.
            None => choice,
        })
    }

    /// A qube is about to be made from a choice, or runs already as it: the generation is recorded and the default. It is
    /// on trial if it is another than before and `tried` says that somebody will look whether it comes up.
    pub(crate) fn begin(&self, qube: &str, choice: &Choice, tried: bool) -> Result<(), GenerationError> {
        let generation = match &choice.held {
            Some(held) => held.variant.generation,
            None => self.add(qube, &choice.system)?,
        };
        let variant = Variant { generation, specialisation: choice.specialisation.clone() };
        let before = self.record(qube)?;
        let mut record = Record { held: choice.held.clone(), ..before.clone() };
        if before.booted.as_ref() != Some(&variant) {
            // What was on trial itself is nothing to go back to.
            let previous = before.trial.as_ref().map(|trial| &trial.previous).or(before.booted.as_ref());
            // Who goes back is not brought forward again.
            let forward = choice.held.as_ref().is_none_or(|held| held.reason == Reason::Switched);
            let previous = previous.filter(|previous| tried && forward && **previous != variant);
            record.trial = previous.map(|previous| Trial { previous: previous.clone() });
            record.failed.remove(&generation);
            record.booted = Some(variant);
        }
        // The record last: killed in between, the next apply comes here again.
        self.point(qube, generation)?;
        if record == before { Ok(()) } else { self.write(qube, &record) }
    }

    /// What is on trial reported ready.
    ///
    /// # Errors
    /// [`GenerationError::File`].
    pub fn confirm(&self, qube: &str) -> Result<(), GenerationError> {
        let record = self.record(qube)?;
        if record.trial.is_none() {
            return Ok(());
        }
        self.write(qube, &Record { trial: None, ..record })
    }

    /// What is on trial did not come up: from now on the qube is to run what it ran before, which is returned with what
    /// failed. `None` when nothing is on trial.
    ///
    /// # Errors
    /// [`GenerationError::File`].
    pub fn fall_back(
        &self,
        qube: &str,
        declared: &Path,
        why: &str,
    ) -> Result<Option<(Variant, Variant)>, GenerationError> {
        let mut record = self.record(qube)?;
        let (Some(trial), Some(booted)) = (record.trial.take(), record.booted.clone()) else {
            return Ok(None);
        };
        record.failed.insert(booted.generation, why.to_owned());
        record.held = self.held(qube, declared, trial.previous.clone(), Reason::FellBack)?;
        self.write(qube, &record)?;
        Ok(Some((booted, trial.previous)))
    }

    /// From the next apply on a qube runs this, for as long as `declared` is declared.
    ///
    /// # Errors
    /// [`GenerationError::None`] when there is no such generation.
    pub fn hold(
        &self,
        qube: &str,
        declared: &Path,
        variant: Variant,
        reason: Reason,
    ) -> Result<(), GenerationError> {
        let held = self.held(qube, declared, variant, reason)?;
        let record = self.record(qube)?;
        self.write(qube, &Record { held, ..record })
    }

    /// A choice against what is declared; `None` when it is just that.
    fn held(
        &self,
        qube: &str,
        declared: &Path,
        variant: Variant,
        reason: Reason,
    ) -> Result<Option<Held>, GenerationError> {
        let generation = self.get(qube, variant.generation)?;
        let is_declared = generation.system == declared && variant.specialisation.is_none();
        Ok((!is_declared).then(|| Held { variant, against: declared.to_owned(), reason }))
    }

    /// From the next apply on a qube runs what is declared.
    ///
    /// # Errors
    /// [`GenerationError::File`].
    pub fn release(&self, qube: &str) -> Result<(), GenerationError> {
        let record = self.record(qube)?;
        self.write(qube, &Record { held: None, ..record })
    }

    /// Forgets generations. Those that are needed are refused, and then none is forgotten.
    ///
    /// # Errors
    /// [`GenerationError::Needed`], [`GenerationError::None`].
    pub fn remove(&self, qube: &str, numbers: &[u64]) -> Result<(), GenerationError> {
        for number in numbers {
            self.get(qube, *number)?;
            if let Some(why) = self.need(qube, *number)? {
                return Err(GenerationError::Needed { qube: qube.to_owned(), number: *number, why });
            }
        }
        for number in numbers {
            let link = self.link(qube, *number);
            fs::remove_file(&link).map_err(at(&link))?;
        }
        let mut record = self.record(qube)?;
        let known = record.failed.len();
        record.failed.retain(|number, _| !numbers.contains(number));
        if record.failed.len() == known { Ok(()) } else { self.write(qube, &record) }
    }

    /// What a generation is needed as.
    ///
    /// # Errors
    /// [`GenerationError::File`].
    pub fn need(&self, qube: &str, number: u64) -> Result<Option<&'static str>, GenerationError> {
        let Record { booted, trial, held, .. } = self.record(qube)?;
        let is_it = |variant: Option<Variant>| variant.is_some_and(|variant| variant.generation == number);
        Ok(match () {
            () if self.default_of(qube)? == Some(number) => Some("the default one"),
            () if is_it(booted) => Some("the one that was booted"),
            () if is_it(trial.map(|trial| trial.previous)) => Some("the one to fall back to"),
            () if is_it(held.map(|held| held.variant)) => Some("the one that was chosen"),
            () => None,
        })
    }
}

#[cfg(test)]
mod tests;
