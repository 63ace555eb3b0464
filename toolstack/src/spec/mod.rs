//! `qubes.json`: the qubes of a host as Nix declares them (`nixos/`), and what makes a host have them.
//!
//! [`Spec`] is the document, read and checked; [`Plan`] what has to be done so that the host is what it says; and
//! [`apply`](Plan::apply) does it.
//!
//! ```
//! use toolstack::spec::Spec;
//!
//! let text = br#"{ "version": 1, "host": { "memory": null }, "qubes": {}, "policy": {} }"#;
//! assert!(Spec::parse("qubes.json", text)?.document().qubes.is_empty());
//! let error = Spec::parse("qubes.json", br#"{ "version": 1, "qubes": {}, "polcy": {} }"#).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "qubes.json:1:30: polcy: unknown field `polcy`, expected one of `version`, `host`, `network`, `dom0`, `qubes`, `remotes`, `policy`"
//! );
//! # Ok::<(), toolstack::spec::SpecError>(())
//! ```

mod addresses;
mod apply;
mod check;
mod disposable;
mod document;
mod places;
mod plan;
mod policy;
mod volume;

pub use addresses::{Prefix, PrefixError};
pub use apply::{ApplyLock, Event, Failure, Hooks, Host, MakeRoom, Open, Outcome, Report};
pub use check::Fault;
pub use disposable::{Disposable, DisposableError, is_disposable};
pub use document::{
    Access, Addresses, Boot, Call, Class, Container, Disk, Document, Dom0, Host as HostMemory, Network,
    OLDEST_VERSION, Private, Qube, Ready, Remote, VERSION,
};
pub use places::Place;
pub use plan::{Change, Conflict, Difference, Plan, PlanError, Step, Wishes, Work};
pub use policy::{PolicyChange, PolicyFolder};

use crate::config::{Closure, ClosureError, ConfigError, QubeConfig, Settings, SyntaxError};
use crate::generations::{Choice, GenerationError, Generations};
use check::disk_text;
use places::{Places, member};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Bytes that a document may have: some thousand qubes.
const SIZE_LIMIT: u64 = 16 << 20;

/// The first bytes of the UUID of a qube that was declared. The rest comes from its name, and so a qube is known again
/// whatever it is called now, and whoever died while making it.
const DECLARED: [u8; 4] = *b"nxla";

/// Something wrong in a document, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The attribute: `qubes.work.memory`.
    pub attribute: String,
    /// Where it stands.
    pub place: Place,
    /// What is wrong.
    pub fault: Fault,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { attribute, place, fault } = self;
        match &**attribute {
            "" => write!(f, "{place}: {fault}"),
            attribute => write!(f, "{place}: {attribute}: {fault}"),
        }
    }
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large to be one.
    #[error("{path}: more than {SIZE_LIMIT} bytes")]
    Size {
        /// Which.
        path: PathBuf,
    },
    /// It is no JSON.
    #[error("{source_name}:{place}: {message}")]
    Syntax {
        /// Which.
        source_name: String,
        /// Where.
        place: Place,
        /// What serde_json says.
        message: String,
    },
    /// It has another version than this program reads.
    #[error(
        "{source_name}: version {found} of qubes.json; this nxl reads {OLDEST_VERSION} to {VERSION}: evaluate it with the nixos/ of the same release"
    )]
    Version {
        /// Which.
        source_name: String,
        /// What it says, as JSON.
        found: String,
    },
    /// It says something wrong: all that was found.
    #[error("{source_name}:{}{}", .problems.first().map(ToString::to_string).unwrap_or_default(), more(.problems.len()))]
    Invalid {
        /// Which.
        source_name: String,
        /// What; at least one.
        problems: Vec<Problem>,
    },
    /// A system is no closure that could be booted.
    #[error("{attribute}: {source}")]
    Closure {
        /// The attribute.
        attribute: String,
        /// Why.
        source: ClosureError,
    },
    /// A system is no NixOS.
    #[error("{attribute}: {} is no NixOS: it has no nixos-version (a qube that is not NixOS has class \"whonix\")", system.display())]
    NotNixos {
        /// The attribute.
        attribute: String,
        /// The system.
        system: PathBuf,
    },
    /// A system has secrets, which a program of its own would append in dom0.
    #[error("{attribute}: {} has initrd secrets, which a program of its own would append in dom0, with all that root may do", system.display())]
    InitrdSecrets {
        /// The attribute.
        attribute: String,
        /// The system.
        system: PathBuf,
    },
    /// No disposable qube can be made of it.
    #[error("{attribute}: {fault}")]
    NotDisposable {
        /// The attribute.
        attribute: String,
        /// Why.
        fault: Box<Fault>,
    },
    /// What a qube comes to cannot be made. The message begins with the attribute.
    #[error("{source}")]
    Config {
        /// The attribute.
        attribute: String,
        /// Why.
        source: Box<ConfigError>,
    },
    /// The same, of the text.
    #[error("{source}")]
    Text {
        /// The attribute.
        attribute: String,
        /// Why.
        source: Box<SyntaxError>,
    },
}

/// How many problems there are beyond the first.
fn more(problems: usize) -> String {
    match problems {
        0 | 1 => String::new(),
        problems => format!(" (and {} more)", problems - 1),
    }
}

/// A document that was read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    document: Document,
}

impl Spec {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`SpecError`]; what needs the systems' files is found by [`Spec::config`].
    pub fn read(path: &Path) -> Result<Self, SpecError> {
        let file =
            std::fs::File::open(path).map_err(|source| SpecError::Read { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &Self::text(path, file)?)
    }

    /// The text of a document, for [`Spec::parse`], from what is open already; `name` is for errors.
    ///
    /// # Errors
    /// [`SpecError::Read`], and [`SpecError::Size`] when there is more than a document may have.
    pub fn text(name: &Path, source: impl Read) -> Result<Vec<u8>, SpecError> {
        let mut text = Vec::new();
        let read = source.take(SIZE_LIMIT + 1).read_to_end(&mut text);
        read.map_err(|source| SpecError::Read { path: name.to_owned(), source })?;
        if text.len() as u64 > SIZE_LIMIT {
            return Err(SpecError::Size { path: name.to_owned() });
        }
        Ok(text)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn parse(source_name: &str, text: &[u8]) -> Result<Self, SpecError> {
        let syntax = |error: &serde_json::Error| SpecError::Syntax {
            source_name: source_name.to_owned(),
            place: Place { line: error.line(), column: error.column() },
            message: said(error),
        };
        let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| syntax(&error))?;
        // Another version may have another shape: that it is one is to be said first.
        match value.get("version") {
            Some(version)
                if version.as_u64().is_some_and(|version| (OLDEST_VERSION..=VERSION).contains(&version)) => {}
            Some(version) => {
                let found = version.to_string();
                return Err(SpecError::Version { source_name: source_name.to_owned(), found });
            }
            None => {
                return Err(SpecError::Version {
                    source_name: source_name.to_owned(),
                    found: "null".to_owned(),
                });
            }
        }
        // serde_json read it, and so it is UTF-8.
        let text = std::str::from_utf8(text).unwrap_or_default();
        let places = Places::of(text);
        let invalid = |problems| SpecError::Invalid { source_name: source_name.to_owned(), problems };
        if let Some((attribute, place)) = &places.doubled {
            return Err(invalid(vec![Problem {
                attribute: attribute.clone(),
                place: *place,
                fault: Fault::Twice,
            }]));
        }
        let document: Document = serde_json::from_str(text).map_err(|error| {
            let end = Place { line: error.line(), column: error.column() };
            let attribute = places.attribute_at(end).to_owned();
            let place = places.of_attribute(&attribute);
            invalid(vec![Problem { attribute, place, fault: Fault::Shape(said(&error)) }])
        })?;
        let problems: Vec<_> = check::faults(&document)
            .into_iter()
            .map(|(attribute, fault)| Problem { place: places.of_attribute(&attribute), attribute, fault })
            .collect();
        if problems.is_empty() { Ok(Self { document }) } else { Err(invalid(problems)) }
    }

    /// What it says.
    #[must_use]
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// What `nxl create` would make of a configuration that says the same of a qube as the document.
    ///
    /// # Errors
    /// [`SpecError`]: what is wrong with its system.
    pub fn config(&self, name: &str) -> Result<QubeConfig, SpecError> {
        self.config_with(name, None)
    }

    /// The same with the system that was chosen for it, whatever is declared.
    ///
    /// # Errors
    /// [`SpecError`]: what is wrong with that system.
    pub fn config_with(&self, name: &str, choice: Option<&Choice>) -> Result<QubeConfig, SpecError> {
        let attribute = member("qubes", name);
        let Some(qube) = self.document.qubes.get(name) else {
            return Err(SpecError::Invalid {
                source_name: String::new(),
                problems: vec![Problem {
                    attribute,
                    place: Place { line: 1, column: 1 },
                    fault: Fault::NotThere { kind: "qube", name: name.to_owned() },
                }],
            });
        };
        self.config_of(name, qube, choice)
    }

    /// The same of a qube that is declared so.
    fn config_of(&self, name: &str, qube: &Qube, choice: Option<&Choice>) -> Result<QubeConfig, SpecError> {
        let attribute = member("qubes", name);
        let system = choice.map(|choice| &*choice.system).or(qube.system.as_deref());
        let text = settings(name, qube, system);
        let config_error =
            |source| SpecError::Config { attribute: attribute.clone(), source: Box::new(source) };
        let settings = Settings::parse(&attribute, text.as_bytes(), &[""; 0])
            .map_err(|source| SpecError::Text { attribute: attribute.clone(), source: Box::new(source) })?;
        let (config, _) = match &qube.system {
            Some(declared) => {
                let (system, specialisation) = match choice {
                    Some(choice) => (&choice.system, choice.specialisation.as_deref()),
                    None => (declared, None),
                };
                let closure = closure(&member(&attribute, "system"), system, specialisation)?;
                QubeConfig::from_closure(&closure, &settings, None).map_err(config_error)?
            }
            None => QubeConfig::from_settings(&attribute, &settings, None).map_err(config_error)?,
        };
        let mut config = config;
        for (devid, nic) in (0..).zip(&mut config.nics) {
            nic.devid = Some(devid);
        }
        Ok(config)
    }

    /// The systems that the qubes are to run, by name: those that are declared, but for those against which others were
    /// chosen.
    ///
    /// # Errors
    /// [`GenerationError`].
    pub fn choices(&self, generations: &Generations) -> Result<BTreeMap<String, Choice>, GenerationError> {
        let systems =
            self.document.qubes.iter().filter_map(|(name, qube)| Some((name, qube.system.as_ref()?)));
        systems.map(|(name, system)| Ok((name.clone(), generations.choice(name, system)?))).collect()
    }

    /// The configurations of all qubes with these systems, by name.
    ///
    /// # Errors
    /// See [`Spec::config`].
    pub fn configs(
        &self,
        choices: &BTreeMap<String, Choice>,
    ) -> Result<BTreeMap<String, QubeConfig>, SpecError> {
        let names = self.document.qubes.keys();
        names.map(|name| Ok((name.clone(), self.config_with(name, choices.get(name))?))).collect()
    }
}

/// The closure of a NixOS that can be booted without running any of its programs here.
fn closure(attribute: &str, system: &Path, specialisation: Option<&str>) -> Result<Closure, SpecError> {
    let error = |source| SpecError::Closure { attribute: attribute.to_owned(), source };
    let mut closure = Closure::open(system).map_err(error)?;
    if let Some(name) = specialisation {
        closure = closure.specialisation(name).map_err(error)?.clone();
    }
    closure.check().map_err(error)?;
    if !system.join("nixos-version").is_file() {
        return Err(SpecError::NotNixos { attribute: attribute.to_owned(), system: system.to_owned() });
    }
    if closure.secrets().map_err(error)?.is_some() {
        return Err(SpecError::InitrdSecrets { attribute: attribute.to_owned(), system: system.to_owned() });
    }
    Ok(Closure { initrd_secrets: None, ..closure })
}

/// The qube in the syntax of xl.cfg: so everything that a configuration is checked for is checked here, too.
fn settings(name: &str, qube: &Qube, system: Option<&Path>) -> String {
    let Qube { guest, memory, max_memory, vcpus, max_vcpus, .. } = qube;
    let mut text = String::new();
    let mut line = |what: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{what}");
    };
    line(format_args!("name = \"{name}\""));
    line(format_args!("uuid = \"{}\"", uuid_of(name)));
    line(format_args!("type = \"{}\"", guest.name()));
    line(format_args!("memory = {memory}"));
    line(format_args!("maxmem = {max_memory}"));
    line(format_args!("vcpus = {vcpus}"));
    line(format_args!("maxvcpus = {max_vcpus}"));
    if qube.driver_domain {
        line(format_args!("driver_domain = 1"));
    }
    if let Some(boot) = &qube.boot {
        line(format_args!("kernel = \"{}\"", boot.kernel.display()));
        if let Some(initrd) = &boot.initrd {
            line(format_args!("ramdisk = \"{}\"", initrd.display()));
        }
        line(format_args!("cmdline = \"{}\"", boot.cmdline));
    }
    let disks = qube.disks.iter().map(|disk| disk_text(&disk.target, &disk.vdev, disk.access));
    let private = qube.private.iter().map(|private| disk_text(&private.target, &private.vdev, Access::W));
    // Both are there or neither is: `check` has seen to it.
    let store =
        qube.store.iter().zip(system).map(|(vdev, system)| {
            format!("script=block-nix,vdev={vdev},access=r,target={}", system.display())
        });
    let disks: Vec<_> = store.chain(disks).chain(private).map(|disk| format!("\"{disk}\"")).collect();
    line(format_args!("disk = [ {} ]", disks.join(", ")));
    let nics = qube.networks.iter().map(|network| {
        let part = |key: &str, value: &Option<String>| {
            value.as_ref().map_or_else(String::new, |value| format!(",{key}={value}"))
        };
        let (backend, bridge) = (part("backend", &network.backend), part("bridge", &network.bridge));
        let ip = network.ip.map_or_else(String::new, |ip| format!(",ip={ip}"));
        format!("\"mac={}{backend}{bridge}{ip}\"", network.mac)
    });
    line(format_args!("vif = [ {} ]", nics.collect::<Vec<_>>().join(", ")));
    if !qube.pci.is_empty() {
        let devices: Vec<_> = qube.pci.iter().map(|device| format!("\"{device}\"")).collect();
        line(format_args!("pci = [ {} ]", devices.join(", ")));
    }
    text
}

/// The UUID of the declared qube of a name.
#[must_use]
pub fn uuid_of(name: &str) -> Uuid {
    let hash = Sha256::digest(name.as_bytes());
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&DECLARED);
    bytes[4..].copy_from_slice(&hash[..12]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// Whether a qube of that UUID was made because it was declared.
#[must_use]
pub fn is_declared(uuid: Uuid) -> bool {
    uuid.as_bytes().starts_with(&DECLARED) && uuid.get_version_num() == 8
}

/// What serde_json says, without the place: that is said in front.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(&*text, |(said, _)| said).to_owned()
}

#[cfg(test)]
pub(crate) mod tests;
