//! Private volumes: what a qube keeps when its root goes.
//!
//! A volume is a sparse file with a raw image, `NAME.raw`, in a folder that is root's; a snapshot of it is another,
//! `NAME@SNAPSHOT.raw`. What is in it is the qube's: no file system of a qube is ever mounted, or read, in dom0. It is
//! formatted once, when it is empty, by the qube at its first start or by mkfs right here.
//!
//! What has a volume's name is whole: everything that takes its time is written as `.new`, put on the disk, and renamed. A
//! volume's lock is held meanwhile, and the lock of disks (that of libxl's block script) while it is looked who uses a
//! volume and something is done about it.

mod copy;

use crate::device::{DeviceError, Dom0, Plumbing};
use crate::progress::Progress;
use crate::{cache_folder, lock};
pub use copy::Copied;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;

/// Where the volumes of this host are.
pub const VOLUMES: &str = "/var/lib/nxl/volumes";
/// The least that a volume has, in bytes: file systems have no room in less.
pub const LEAST: u64 = 1 << 20;
/// Sizes are multiples of that many bytes.
const UNIT: u64 = 4096;
/// A name's most bytes: two of them and an extension are a file's name.
const NAME_LEN: usize = 100;
/// The ending of a volume's file.
pub(crate) const RAW: &str = "raw";
const NEW: &str = "new";
const LOCK: &str = "lock";

/// Why a volume is not what was wanted.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No name.
    #[error(
        "{0:?} is no name of a volume or snapshot: letters, digits, and behind the first of them . _ - (at most {NAME_LEN})"
    )]
    Name(String),
    /// Too small, or too large for the file system.
    #[error("a volume of {0} bytes cannot be: it has at least {LEAST} and at most 2^63 - 4096")]
    Size(u64),
    /// There is none of that name.
    #[error("there is no volume {0}")]
    None(String),
    /// There is one of that name.
    #[error("there is a volume {0} already")]
    Exists(String),
    /// A volume does not get smaller: what would be cut off is the qube's.
    #[error("volume {name} has {size} bytes, and does not get smaller")]
    Smaller {
        /// Which.
        name: String,
        /// What it has.
        size: u64,
    },
    /// A qube has it.
    #[error("volume {name} is in use, as {node}: {remedy}")]
    InUse {
        /// Which.
        name: String,
        /// The loop device.
        node: String,
        /// What can be done.
        remedy: &'static str,
    },
    /// It has snapshots.
    #[error("volume {name} has {count} snapshots, which would go with it; --snapshots says that they may")]
    Snapshots {
        /// Which.
        name: String,
        /// How many.
        count: usize,
    },
    /// It was written while it was copied.
    #[error("volume {0} was written while it was copied; nothing came of the copy")]
    Written(String),
    /// Nobody formats as that.
    #[error("{0:?} is no file system that volumes are formatted with: ext4, xfs, btrfs")]
    Format(String),
    /// The program that formats failed.
    #[error("{program} made no file system: {reason}")]
    Mkfs {
        /// Which.
        program: String,
        /// What it said.
        reason: String,
    },
    /// Others could have put something there.
    #[error("{path} must be a folder of user {user} with mode 0700 (chmod 700 {path} makes it one)", path = .path.display())]
    NotPrivate {
        /// The folder.
        path: PathBuf,
        /// Who runs this.
        user: u32,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Loop devices.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The name of a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl FromStr for Name {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if first && rest && text.len() <= NAME_LEN {
            Ok(Self(text.to_owned()))
        } else {
            Err(VolumeError::Name(text.to_owned()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A file system that a new volume gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// By mkfs.ext4 of e2fsprogs.
    Ext4,
    /// By mkfs.xfs of xfsprogs.
    Xfs,
    /// By mkfs.btrfs of btrfs-progs.
    Btrfs,
}

impl FromStr for Format {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        Ok(match text {
            "ext4" => Self::Ext4,
            "xfs" => Self::Xfs,
            "btrfs" => Self::Btrfs,
            _ => return Err(VolumeError::Format(text.to_owned())),
        })
    }
}

impl Format {
    /// Its name, as it is declared.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The program, the Debian package that has it, and the option by which it does not ask.
    fn program(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Ext4 => ("mkfs.ext4", "e2fsprogs", "-F"),
            Self::Xfs => ("mkfs.xfs", "xfsprogs", "-f"),
            Self::Btrfs => ("mkfs.btrfs", "btrfs-progs", "-f"),
        }
    }

    fn make(self, path: &Path) -> Result<(), VolumeError> {
        let (program, package, force) = self.program();
        let error = |reason| VolumeError::Mkfs { program: program.to_owned(), reason };
        let output = Command::new(program).args(["-q", force]).arg(path).stdin(Stdio::null()).output();
        let output = output.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                error(format!("it is not installed: the Debian package {package} has it"))
            }
            _ => error(source.to_string()),
        })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        Err(error(format!("{}: {said}", output.status)))
    }
}

/// A file of a volume or of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// What the qube sees, in bytes.
    pub size: u64,
    /// What it has of the disk, in bytes; what it shares with others is counted in each.
    pub allocated: u64,
    /// When it was made, or last written: seconds since 1970.
    pub modified: i64,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: Name,
    /// Its file.
    pub image: Image,
    /// The loop devices by which it is in use.
    pub loops: Vec<u32>,
    /// Its snapshots, by name.
    pub snapshots: Vec<(Name, Image)>,
}

/// The folder of volumes.
pub struct Volumes {
    folder: PathBuf,
    plumbing: Arc<dyn Plumbing>,
    progress: Progress,
}

impl Default for Volumes {
    fn default() -> Self {
        Self::new(VOLUMES)
    }
}

/// A volume's lock; its file goes with it.
struct Locked {
    path: PathBuf,
    _file: File,
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Under the lock: whoever waits for it sees that its file is gone, and makes another.
        let _ = fs::remove_file(&self.path);
    }
}

impl Volumes {
    /// Volumes in a folder.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), plumbing: Arc::new(Dom0), progress: Progress::default() }
    }

    /// What stands behind disks is there instead of in the domain that this runs in.
    #[must_use]
    pub fn with_plumbing(self, plumbing: impl Plumbing + 'static) -> Self {
        self.sharing(Arc::new(plumbing))
    }

    /// The same, with what somebody else has, too.
    pub(crate) fn sharing(self, plumbing: Arc<dyn Plumbing>) -> Self {
        Self { plumbing, ..self }
    }

    /// Who is told of the bytes where a volume is copied.
    #[must_use]
    pub fn with_progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// Where a volume's file is; a disk line names it.
    #[must_use]
    pub fn path(&self, name: &Name) -> PathBuf {
        self.file(&name.0, RAW)
    }

    fn snapshot_path(&self, name: &Name, snapshot: &Name) -> PathBuf {
        self.file(&format!("{name}@{snapshot}"), RAW)
    }

    fn file(&self, stem: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{stem}.{extension}"))
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// [`VolumeError::File`] and [`VolumeError::Device`].
    pub fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(at(&self.folder))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let path = entry.map_err(at(&self.folder))?.path();
            if path.extension() == Some(OsStr::new(RAW)) {
                // What has no name of ours is none of ours.
                names.extend(path.file_stem().and_then(OsStr::to_str).and_then(|stem| stem.parse().ok()));
            }
        }
        names.sort();
        let mut volumes = Vec::new();
        for name in names {
            match self.get(&name) {
                // Removed since.
                Err(VolumeError::None(_)) => {}
                volume => volumes.push(volume?),
            }
        }
        Ok(volumes)
    }

    /// A volume.
    ///
    /// # Errors
    /// [`VolumeError::None`], [`VolumeError::File`] and [`VolumeError::Device`].
    pub fn get(&self, name: &Name) -> Result<Volume, VolumeError> {
        let path = self.path(name);
        let (image, loops) = (image(&path, name)?, self.loops(&path, name)?);
        let prefix = format!("{name}@");
        let mut snapshots = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(at(&self.folder))? {
            let path = entry.map_err(at(&self.folder))?.path();
            let stem = path
                .file_stem()
                .and_then(OsStr::to_str)
                .filter(|_| path.extension() == Some(OsStr::new(RAW)));
            let snapshot = stem.and_then(|stem| stem.strip_prefix(&prefix)?.parse::<Name>().ok());
            let Some(snapshot) = snapshot else { continue };
            match self::image(&path, name) {
                Err(VolumeError::None(_)) => {}
                image => snapshots.push((snapshot, image?)),
            }
        }
        snapshots.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Volume { name: name.clone(), image, loops, snapshots })
    }

    /// The bytes that a volume has; `None` when there is none.
    ///
    /// # Errors
    /// [`VolumeError::File`].
    pub fn size(&self, name: &Name) -> Result<Option<u64>, VolumeError> {
        match image(&self.path(name), name) {
            Ok(image) => Ok(Some(image.size)),
            Err(VolumeError::None(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a volume of at least `size` bytes, with a file system if one is asked for.
    ///
    /// # Errors
    /// [`VolumeError::Exists`], [`VolumeError::Size`], [`VolumeError::Mkfs`]; nothing is left then.
    pub fn create(&self, name: &Name, size: u64, format: Option<Format>) -> Result<Volume, VolumeError> {
        let (_lock, path) = (self.lock(name)?, self.path(name));
        if path.symlink_metadata().is_ok() {
            return Err(VolumeError::Exists(name.0.clone()));
        }
        self.make(name, size, format)
    }

    /// The volume of that name, made if there is none: what is there stays as it is.
    ///
    /// # Errors
    /// As [`create`](Self::create), but for [`VolumeError::Exists`].
    pub fn ensure(&self, name: &Name, size: u64, format: Option<Format>) -> Result<Volume, VolumeError> {
        let (_lock, path) = (self.lock(name)?, self.path(name));
        if path.symlink_metadata().is_ok() { self.get(name) } else { self.make(name, size, format) }
    }

    fn make(&self, name: &Name, size: u64, format: Option<Format>) -> Result<Volume, VolumeError> {
        let size = whole(size)?;
        self.replace(
            &name.0,
            || self.path(name),
            |file, new| {
                file.set_len(size).map_err(at(new))?;
                format.map_or(Ok(()), |format| format.make(new))
            },
        )?;
        self.get(name)
    }

    /// Lets a volume grow to at least `size` bytes. A qube that has it sees it at once; the file system in it is the qube's
    /// to grow. Asked for what it has, it only tells the qube again.
    ///
    /// # Errors
    /// [`VolumeError::None`], [`VolumeError::Smaller`], [`VolumeError::Size`].
    pub fn resize(&self, name: &Name, size: u64) -> Result<Volume, VolumeError> {
        let (_lock, path) = (self.lock(name)?, self.path(name));
        let (size, now) = (whole(size)?, image(&path, name)?.size);
        if size < now {
            return Err(VolumeError::Smaller { name: name.0.clone(), size: now });
        }
        let file = File::options().write(true).open(&path).map_err(at(&path))?;
        file.set_len(size).and_then(|()| file.sync_all()).map_err(at(&path))?;
        let _disks = self.plumbing.lock_disks()?;
        for number in self.loops(&path, name)? {
            self.plumbing.grow_loop(number)?;
        }
        self.get(name)
    }

    /// Keeps what a volume has now. Where the file system shares blocks between files, it takes no time and no room, and the
    /// qube may go on writing; the snapshot is then as after a power failure. Elsewhere the volume is copied, and may not be
    /// in use.
    ///
    /// # Errors
    /// [`VolumeError::None`], [`VolumeError::Exists`], [`VolumeError::InUse`], [`VolumeError::Written`].
    pub fn snapshot(&self, name: &Name, snapshot: &Name) -> Result<Copied, VolumeError> {
        let (_lock, path) = (self.lock(name)?, self.path(name));
        let target = self.snapshot_path(name, snapshot);
        image(&path, name)?;
        if target.symlink_metadata().is_ok() {
            return Err(VolumeError::Exists(format!("{name}@{snapshot}")));
        }
        let source = File::open(&path).map_err(at(&path))?;
        self.replace(
            &format!("{name}@{snapshot}"),
            || target,
            |file, new| {
                if copy::share(&source, file).map_err(at(new))? {
                    return Ok(Copied::Shared);
                }
                let idle = || {
                    let _disks = self.plumbing.lock_disks()?;
                    let remedy =
                        "its file system cannot share blocks between files, so shut its qube down first";
                    self.refuse_in_use(&path, name, remedy)
                };
                let stamp = || {
                    let metadata = source.metadata().map_err(at(&path))?;
                    Ok::<_, VolumeError>((metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
                };
                idle()?;
                let before = stamp()?;
                let bytes = copy::sparse(&source, file, &self.progress).map_err(at(new))?;
                idle()?;
                if stamp()? != before {
                    return Err(VolumeError::Written(name.0.clone()));
                }
                Ok(Copied::Written(bytes))
            },
        )
    }

    /// Gives a volume back what a snapshot has; the snapshot stays.
    ///
    /// # Errors
    /// [`VolumeError::None`], [`VolumeError::InUse`].
    pub fn restore(&self, name: &Name, snapshot: &Name) -> Result<Copied, VolumeError> {
        let (_lock, path) = (self.lock(name)?, self.path(name));
        let source = self.snapshot_path(name, snapshot);
        image(&path, name)?;
        image(&source, &Name(format!("{name}@{snapshot}")))?;
        let source = File::open(&source).map_err(at(&source))?;
        let remedy = "shut its qube down first";
        // Before anything is copied, and, since that takes its time, again.
        self.refuse_in_use(&path, name, remedy)?;
        let new = self.file(&name.0, NEW);
        let (file, copied) = self.write(&new, |file, new| {
            if copy::share(&source, file).map_err(at(new))? {
                Ok(Copied::Shared)
            } else {
                copy::sparse(&source, file, &self.progress).map(Copied::Written).map_err(at(new))
            }
        })?;
        let put = || {
            let _disks = self.plumbing.lock_disks()?;
            self.refuse_in_use(&path, name, remedy)?;
            self.put(&file, &new, &path)
        };
        put().inspect_err(|_| drop(fs::remove_file(&new)))?;
        Ok(copied)
    }

    /// Removes a volume; with `snapshots`, those, too.
    ///
    /// # Errors
    /// [`VolumeError::None`], [`VolumeError::InUse`], [`VolumeError::Snapshots`].
    pub fn remove(&self, name: &Name, snapshots: bool) -> Result<(), VolumeError> {
        let (_lock, path) = (self.lock(name)?, self.path(name));
        let volume = self.get(name)?;
        if !snapshots && !volume.snapshots.is_empty() {
            return Err(VolumeError::Snapshots { name: name.0.clone(), count: volume.snapshots.len() });
        }
        let _disks = self.plumbing.lock_disks()?;
        self.refuse_in_use(&path, name, "shut its qube down, or detach it, first")?;
        // First the snapshots: what is left by a crash is a volume that can be removed again.
        for (_, image) in &volume.snapshots {
            fs::remove_file(&image.path).map_err(at(&image.path))?;
        }
        fs::remove_file(&path).map_err(at(&path))
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// [`VolumeError::None`], [`VolumeError::InUse`].
    pub fn remove_snapshot(&self, name: &Name, snapshot: &Name) -> Result<(), VolumeError> {
        let _lock = self.lock(name)?;
        let (path, name) = (self.snapshot_path(name, snapshot), Name(format!("{name}@{snapshot}")));
        image(&path, &name)?;
        let _disks = self.plumbing.lock_disks()?;
        self.refuse_in_use(&path, &name, "detach it first")?;
        fs::remove_file(&path).map_err(at(&path))
    }

    /// Waits for a volume's lock, and removes what a crash has left of the volume.
    fn lock(&self, name: &Name) -> Result<Locked, VolumeError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(at(&self.folder))?;
        let metadata = fs::symlink_metadata(&self.folder).map_err(at(&self.folder))?;
        let user = rustix::process::geteuid().as_raw();
        if cache_folder::openness(&metadata, user).is_some() {
            return Err(VolumeError::NotPrivate { path: self.folder.clone(), user });
        }
        let path = self.file(&name.0, LOCK);
        let locked = Locked { _file: lock::wait(&path).map_err(at(&path))?, path };
        for entry in fs::read_dir(&self.folder).map_err(at(&self.folder))? {
            let path = entry.map_err(at(&self.folder))?.path();
            let stem = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
            let volume = stem.split('@').next().unwrap_or_default();
            if path.extension() == Some(OsStr::new(NEW)) && volume == name.0 {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(locked)
    }

    /// Writes a file and gives it its name when it is whole; nothing is left if that fails.
    fn replace<T>(
        &self,
        stem: &str,
        path: impl FnOnce() -> PathBuf,
        write: impl FnOnce(&File, &Path) -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        let new = self.file(stem, NEW);
        let (file, written) = self.write(&new, write)?;
        self.put(&file, &new, &path()).inspect_err(|_| drop(fs::remove_file(&new)))?;
        Ok(written)
    }

    fn write<T>(
        &self,
        new: &Path,
        write: impl FnOnce(&File, &Path) -> Result<T, VolumeError>,
    ) -> Result<(File, T), VolumeError> {
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(new);
        let file = file.map_err(at(new))?;
        match write(&file, new).and_then(|written| file.sync_all().map_err(at(new)).map(|()| written)) {
            Ok(written) => Ok((file, written)),
            Err(error) => {
                // Why it could not be written is the thing to say.
                let _ = fs::remove_file(new);
                Err(error)
            }
        }
    }

    fn put(&self, file: &File, new: &Path, path: &Path) -> Result<(), VolumeError> {
        file.sync_all().map_err(at(new))?;
        fs::rename(new, path).map_err(at(path))?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(at(&self.folder))
    }

    /// The loop devices that have a file.
    fn loops(&self, path: &Path, name: &Name) -> Result<Vec<u32>, VolumeError> {
        let metadata = metadata(path, name)?;
        let file = (metadata.dev(), metadata.ino());
        let loops = self.plumbing.loops()?.into_iter().filter(|other| other.file == file);
        Ok(loops.map(|other| other.number).collect())
    }

    fn refuse_in_use(&self, path: &Path, name: &Name, remedy: &'static str) -> Result<(), VolumeError> {
        match self.loops(path, name)?.first() {
            None => Ok(()),
            Some(number) => {
                Err(VolumeError::InUse { name: name.0.clone(), node: format!("/dev/loop{number}"), remedy })
            }
        }
    }
}

/// A size that a volume can have, not less than that.
fn whole(size: u64) -> Result<u64, VolumeError> {
    let whole = size.checked_next_multiple_of(UNIT).filter(|whole| i64::try_from(*whole).is_ok());
    whole.filter(|whole| *whole >= LEAST).ok_or(VolumeError::Size(size))
}

fn metadata(path: &Path, name: &Name) -> Result<fs::Metadata, VolumeError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(metadata),
        Ok(_) => Err(at(path)(io::Error::other("it is no regular file"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(VolumeError::None(name.0.clone())),
        Err(error) => Err(at(path)(error)),
    }
}

fn image(path: &Path, name: &Name) -> Result<Image, VolumeError> {
    let metadata = metadata(path, name)?;
    Ok(Image {
        path: path.to_owned(),
        size: metadata.len(),
        // In units of 512 bytes, whatever the file system has (stat(2)).
        allocated: metadata.blocks() * 512,
        modified: metadata.mtime(),
    })
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::File { path, source }
}

#[cfg(test)]
mod tests;
