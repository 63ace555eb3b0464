//! Disposable qubes: made of a declared template, for as long as somebody has a use for one.
//!
//! Such a qube boots what its template would boot now, from the same store image, with the template's interfaces, read-only disks and
//! containers. Name, UUID and Ethernet addresses are its own. So is its private volume, which begins empty: its file has no name any
//! more as soon as the qube has it, and so it goes with the qube, whoever ends that, and however.

use super::addresses::Prefix;
use super::check::{disk_text, is_name};
use super::document::{Access, Private};
use super::places::member;
use super::{Fault, Qube as Declared, Spec, SpecError};
use crate::config::{Action, Actions, DiskConfig, NicConfig, QubeConfig};
use crate::create::{CreateError, Ending};
use crate::generations::Choice;
use crate::pool::PoolError;
use crate::qubes::{Qube, QubeError, Qubes};
use crate::userdata::Kind;
use crate::volume::{Format, Name, VolumeError, Volumes};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use xen::ForeignMemory;

/// The first bytes of the UUID of a disposable qube.
const DISPOSABLE: [u8; 4] = *b"nxld";
/// Where a volume's file is until its qube has it.
const IMAGES: &str = "/var/lib/nxl/disposables";
/// The lock of who makes a qube with that UUID.
const LOCK: &str = "disposable-";
/// And of who makes one with that address.
const ADDRESS: &str = "address-";
/// A UUID as text.
const UUID_LEN: usize = 36;

/// Why there is no disposable qube.
#[derive(Debug, thiserror::Error)]
pub enum DisposableError {
    /// It could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Its volume could not be made.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Those that were built ahead could not be looked at.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// It could not be found or handled.
    #[error(transparent)]
    Qube(#[from] QubeError),
    /// What others have left could not be taken away.
    #[error("{path}: {source}", path = .path.display())]
    Image {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All addresses of disposable qubes behind netvms are taken.
    #[error("no address of {0} is free: network.disposables is what they come from")]
    Addresses(Prefix),
    /// No name of a qube.
    #[error("{0:?} is not the name of a qube: a letter, then at most 30 letters, digits, '_' and '-'")]
    Name(String),
    /// There is a qube of that name, and it is another kind.
    #[error("{0} is no disposable qube: `nxl destroy {0}' ends it all the same")]
    Another(String),
}

/// Whether a qube of that UUID is a disposable one of a declared template, or a shell that waits to become one.
#[must_use]
pub fn is_disposable(uuid: Uuid) -> bool {
    uuid.as_bytes().starts_with(&DISPOSABLE) && uuid.get_version_num() == 8
}

fn new_uuid() -> Uuid {
    let mut bytes = Uuid::new_v4().into_bytes();
    bytes[..4].copy_from_slice(&DISPOSABLE);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

fn check_name(name: &str) -> Result<(), DisposableError> {
    if is_name(name) { Ok(()) } else { Err(DisposableError::Name(name.to_owned())) }
}

/// What the disposable qubes of a template are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disposable {
    /// The template's name, which is that of the pool, too.
    pub template: String,
    /// All that they have in common; to be completed with what the host says.
    pub config: QubeConfig,
    private: Option<Private>,
    images: PathBuf,
    /// What the addresses come from of those behind netvms.
    addresses: Option<Prefix>,
}

impl Spec {
    /// What disposable qubes of a template are made of, with the system that was chosen for the template.
    ///
    /// # Errors
    /// [`SpecError::NotDisposable`]: it is no template, or has what only one qube can have. As [`Spec::config`] otherwise.
    pub fn disposable(&self, template: &str, choice: Option<&Choice>) -> Result<Disposable, SpecError> {
        let attribute = member("qubes", template);
        let refused = |attribute: &str, fault| {
            let attribute = attribute.to_owned();
            SpecError::NotDisposable { attribute, fault: Box::new(fault) }
        };
        let Some(declared) = self.document.qubes.get(template) else {
            return Err(refused(&attribute, Fault::NotThere { kind: "qube", name: template.to_owned() }));
        };
        if !declared.disposable_template {
            return Err(refused(&attribute, Fault::NoTemplate(template.to_owned())));
        }
        if let Some(number) = declared.disks.iter().position(|disk| disk.access == Access::W) {
            return Err(refused(&format!("{attribute}.disks[{number}]"), Fault::OneQubes));
        }
        if !declared.pci.is_empty() {
            return Err(refused(&member(&attribute, "pci"), Fault::OneQubes));
        }
        let common = Declared { private: None, ..declared.clone() };
        let mut config = self.config_of(template, &common, choice)?;
        // Two that have one address cannot both be heard on a bridge, or behind a netvm.
        config.nics.iter_mut().for_each(|nic| (nic.mac, nic.ip) = (None, None));
        // Nobody makes it again: that would be another one.
        config.actions = Actions {
            poweroff: Action::Destroy,
            reboot: Action::Destroy,
            watchdog: Action::Destroy,
            crash: Action::Destroy,
            soft_reset: Action::Destroy,
        };
        let (private, images) = (declared.private.clone(), IMAGES.into());
        let addresses = self.document.network.as_ref().map(|network| network.disposables);
        Ok(Disposable { template: template.to_owned(), config, private, images, addresses })
    }
}

/// Something that a qube is to have, while it is being made: a lock says so.
struct Claim {
    path: PathBuf,
    _lock: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A file that is left is one that nobody holds.
        let _ = fs::remove_file(&self.path);
    }
}

/// The file of a volume until a qube has it.
struct Image {
    path: PathBuf,
    _claim: Claim,
}

impl Drop for Image {
    fn drop(&mut self) {
        // What is left after all is taken away by the next who makes one.
        let _ = fs::remove_file(&self.path);
    }
}

/// What a disposable qube is to have for itself: held until it has it, and then let go.
#[derive(Default)]
struct Held {
    _image: Option<Image>,
    _address: Option<Claim>,
}

impl Disposable {
    /// What an image's name says beside the UUID: two volumes are alike if that is.
    pub(super) fn kind(&self) -> Option<String> {
        let Private { size, format, .. } = self.private.as_ref()?;
        let format = format.map_or("plain", Format::name);
        Some(format!(".{size}-{format}"))
    }

    /// A configuration without what is each qube's own.
    fn common(&self, config: &QubeConfig) -> (QubeConfig, Option<String>) {
        let kind = |disk: &DiskConfig| {
            let path = Path::new(disk.target.as_deref()?);
            let stem = path.file_stem().filter(|_| path.parent() == Some(&*self.images))?;
            Some(stem.to_str()?.get(UUID_LEN..)?.to_owned())
        };
        let nics = config.nics.iter().map(|nic| NicConfig { mac: None, ip: None, ..nic.clone() });
        let common = QubeConfig {
            name: String::new(),
            uuid: Uuid::nil(),
            disks: config.disks.iter().filter(|disk| kind(disk).is_none()).cloned().collect(),
            nics: nics.collect(),
            stated: BTreeMap::new(),
            ..config.clone()
        };
        (common, config.disks.iter().find_map(kind))
    }

    /// Whether a shell was made of the same.
    fn fits(&self, shell: &Qube, kept: &QubeConfig) -> bool {
        is_disposable(shell.uuid()) && self.common(kept) == (self.common(&self.config).0, self.kind())
    }
}

impl Qubes {
    /// Claims what has that name for a qube that is to be made; `None` where another has.
    fn claim(&self, name: &str) -> Result<Option<Claim>, QubeError> {
        let path = self.userdata.scratch().join(name);
        Ok(self.userdata.lock(name, false)?.map(|lock| Claim { path, _lock: lock }))
    }

    /// An address that no interface of the host has, claimed until the qube has it. It is looked for what is taken when one is
    /// claimed, and not before: who had it as a claim then, has it as an interface's now.
    fn claimed_address(&self, prefix: Prefix, uuid: Uuid) -> Result<(Ipv4Addr, Claim), DisposableError> {
        let mut taken = BTreeSet::new();
        loop {
            let address = prefix.free(uuid, &taken).ok_or(DisposableError::Addresses(prefix))?;
            let claim = self.claim(&format!("{ADDRESS}{address}"))?;
            if let Some(claim) = claim {
                taken.extend(self.addresses_in_use()?);
                if !taken.contains(&address) {
                    return Ok((address, claim));
                }
            }
            taken.insert(address);
        }
    }

    /// The configuration of one disposable qube, and what it is to have, until it has that.
    fn individual(&self, disposable: &Disposable, name: &str) -> Result<(QubeConfig, Held), DisposableError> {
        let uuid = new_uuid();
        let mut held = Held::default();
        let mut config = QubeConfig { name: name.to_owned(), uuid, ..disposable.config.clone() };
        if let Some(prefix) = disposable.addresses
            && let Some(nic) = config.nics.iter_mut().find(|nic| nic.backend.is_some())
        {
            let (ip, claim) = self.claimed_address(prefix, uuid)?;
            nic.ip = Some(ip.to_string());
            held._address = Some(claim);
        }
        let (Some(private), Some(kind)) = (&disposable.private, disposable.kind()) else {
            return Ok((config, held));
        };
        let name: Name = format!("{uuid}{kind}").parse()?;
        let volumes = Volumes::new(&disposable.images).sharing(self.plumbing.clone());
        // The UUID is nobody else's.
        let claim = self.claim(&format!("{LOCK}{uuid}"))?;
        held._image = claim.map(|claim| Image { path: volumes.path(&name), _claim: claim });
        let volume = volumes.create(&name, private.size << 20, private.format)?;
        let text = disk_text(&volume.image.path.to_string_lossy(), &private.vdev, Access::W);
        let disk = DiskConfig::parse(&text).map_err(|error| DisposableError::Image {
            path: volume.image.path,
            source: io::Error::new(io::ErrorKind::InvalidInput, error.to_string()),
        })?;
        config.disks.push(disk);
        Ok((config, held))
    }

    /// Takes the files away that were left by those who were killed before a qube had them.
    fn sweep(&self, disposable: &Disposable) -> Result<(), DisposableError> {
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| DisposableError::Image { path, source }
        };
        let entries = match fs::read_dir(&disposable.images) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(error(&disposable.images))?,
        };
        for entry in entries {
            let path = entry.map_err(error(&disposable.images))?.path();
            let name = path.file_name().and_then(|name| name.to_str()?.get(..UUID_LEN));
            let Some(uuid) = name.and_then(|uuid| Uuid::parse_str(uuid).ok()) else { continue };
            if let Some(claim) = self.claim(&format!("{LOCK}{uuid}"))? {
                drop(Image { path, _claim: claim });
            }
        }
        Ok(())
    }

    /// Makes a disposable qube of that name, and lets it run.
    ///
    /// # Errors
    /// [`DisposableError`]; nothing is left then.
    pub fn start_disposable(
        &self,
        disposable: &Disposable,
        name: &str,
        foreign: &dyn ForeignMemory,
    ) -> Result<Qube, DisposableError> {
        check_name(name)?;
        self.sweep(disposable)?;
        let (config, _held) = self.individual(disposable, name)?;
        Ok(self.start(&config, true, foreign)?)
    }

    /// Builds some ahead, until so many wait in the template's pool; those that were made. Those of before that are not what would
    /// be made now are destroyed.
    ///
    /// # Errors
    /// [`DisposableError`]. What was made before stays.
    pub fn fill_disposables(
        &self,
        disposable: &Disposable,
        count: usize,
        foreign: &dyn ForeignMemory,
    ) -> Result<Vec<Qube>, DisposableError> {
        self.sweep(disposable)?;
        let template = &disposable.template;
        self.drain_pool_of(template, &|shell, kept| {
            is_disposable(shell.uuid()) && !disposable.fits(shell, kept)
        })?;
        self.fill_pool_with(
            template,
            count,
            |shell| is_disposable(shell.uuid()),
            |name| {
                let (config, _held) = self.individual(disposable, &name)?;
                Ok(self.make(&config, Some(Kind::Pool), Ending::Paused, foreign)?)
            },
        )
    }

    /// Names one that was built ahead, and lets it go; `None` when none is ready that is what would be made now.
    ///
    /// # Errors
    /// [`DisposableError`].
    pub fn take_disposable(
        &self,
        disposable: &Disposable,
        name: &str,
    ) -> Result<Option<Qube>, DisposableError> {
        check_name(name)?;
        let fits = |shell: &Qube, kept: &QubeConfig| disposable.fits(shell, kept);
        match self.take_from_pool_if(&disposable.template, name, true, &fits) {
            Ok(qube) => Ok(Some(qube)),
            Err(PoolError::Empty(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a disposable qube, and takes all that it had away.
    ///
    /// # Errors
    /// [`DisposableError::Another`] when it is no disposable qube, [`QubeError::NotFound`] when there is none.
    pub fn destroy_disposable(&self, which: &str) -> Result<(), DisposableError> {
        let qube = self.find(which)?;
        if !is_disposable(qube.uuid()) {
            return Err(DisposableError::Another(which.to_owned()));
        }
        match self.destroy(&qube) {
            // It ended meanwhile.
            Ok(()) | Err(QubeError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
impl Disposable {
    /// With volumes in another folder.
    pub(super) fn in_folder(self, images: impl Into<PathBuf>) -> Self {
        Self { images: images.into(), ..self }
    }
}
