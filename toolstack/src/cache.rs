//! The kernel cache: kernels as they are when they are unpacked, so that the next qube with the same kernel has nothing
//! to unpack.
//!
//! A kernel of a store path is known by that path, since what has one never changes; any other by the SHA-256 of its
//! packed bytes. An entry is two files of the folder: `KEY.kernel`, the unpacked ELF file and nothing else, and
//! `KEY.json`, what is known of it. The time of `KEY.json` is that of its last use; the least recently used go first when
//! the folder has more than its limit, or than half of what the file system could give it.
//!
//! - **One unpacks, the others wait.** An entry is made in `KEY.new`, under its lock (flock). The record is there before
//!   `KEY.new` becomes `KEY.kernel`: so long as an entry is not complete, whoever looks for it finds the lock. Who has
//!   waited for it looks again.
//! - **Its first qube does not wait for the entry**: the kernel is unpacked straight into a PVH guest, and written to
//!   `KEY.new` from there ([`NewEntry::keep`]); a PV guest's, of which more must be known beforehand, is unpacked into `KEY.new`
//!   and booted from it. The check sum and the record are made, and `KEY.new` renamed, when that qube runs
//!   ([`NewEntry`] is dropped).
//! - **A crash** ends the lock. What is left in `KEY.new` is begun anew by the next who wants that kernel, or removed
//!   when the cache is pruned.
//! - **Damage** is found by length and CRC-32. To compare that for every qube would take longer than to copy the kernel;
//!   so the record keeps inode, modification time and boot of the host at which the file was right, and it is compared
//!   again when one of them has changed. (After a crash of the host as well, then: nothing is ever synced.) Damaged
//!   entries are made anew.
//! - **Nobody else reaches it.** The folder must be its user's alone (root's, mode 0700), or is not used; no name in it
//!   comes from a qube.
//!
//! A cache that cannot be used is told of once ([`KernelCache::on_problem`]), and kernels are unpacked without it.

use crate::cache_folder;
use crate::image::{Format, ImageError, Kernel, MappedFile, hex};
use crate::lock;
use crate::sources::Bytes;
use crate::store_path;
use rustix::fs::{FlockOperation, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

/// Where the kernels of this host are.
pub const KERNEL_CACHE: &str = "/var/cache/nxl";
/// What the folder may hold, in bytes: some ten kernels of distributions.
pub const KERNEL_CACHE_LIMIT: u64 = 1 << 30;
const STORE: &str = "/nix/store";
const KERNEL: &str = "kernel";
const RECORD: &str = "json";
const NEW: &str = "new";
/// A record on its way; it is renamed at once.
const RECORD_NEW: &str = "tmp";

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file or the folder cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could have put something there.
    #[error(
        "{path} is {what}; it must be a folder of user {user} with mode 0700: remove it, and it is made anew",
        path = .path.display()
    )]
    NotPrivate {
        /// The folder.
        path: PathBuf,
        /// What it is instead.
        what: String,
        /// Who runs this.
        user: u32,
    },
    /// The kernel alone is larger than the cache may be.
    #[error("the kernel unpacks to more than the {limit} bytes that the cache may hold")]
    TooLarge {
        /// Bytes.
        limit: u64,
    },
}

type Result<T, E = CacheError> = std::result::Result<T, E>;

/// A kernel of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What its files are called.
    pub key: String,
    /// The file that it was unpacked from.
    pub source: PathBuf,
    /// How it was packed.
    pub format: Format,
    /// Bytes.
    pub size: u64,
    /// When it was last booted.
    pub used: SystemTime,
}

/// What was removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Kernels.
    pub entries: Vec<Entry>,
    /// Files that a crash has left.
    pub leftovers: Vec<PathBuf>,
}

/// What is kept beside a kernel.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    source: PathBuf,
    format: Format,
    /// The packed kernel's ([`Footprint::cmdline_limit`](crate::image::Footprint::cmdline_limit)).
    cmdline_limit: Option<u32>,
    size: u64,
    crc32: u32,
    /// When the file last had that CRC-32.
    right: Stamp,
}

/// A file that has not been written to since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    /// The kernel's boot id: what the page cache had not yet written when the host crashed is gone.
    boot: String,
    inode: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// A kernel by which name, and from where.
#[derive(Debug)]
struct Key {
    name: String,
    source: PathBuf,
}

/// What the cache has of a kernel.
#[derive(Debug)]
pub(crate) enum Lookup<'a> {
    /// All of it.
    Found(CachedKernel<'a>),
    /// Nothing: whoever boots it is to leave it here.
    Missing(NewEntry<'a>),
}

/// An unpacked kernel, mapped.
#[derive(Debug)]
pub(crate) struct CachedKernel<'a> {
    file: MappedFile,
    format: Format,
    cmdline_limit: Option<u32>,
    /// It was unpacked for this very qube, and is mapped from there.
    _new: Option<NewEntry<'a>>,
}

impl CachedKernel<'_> {
    pub(crate) fn open(&self) -> Result<Kernel<'_>, ImageError> {
        Ok(Kernel::open_unpacked(&self.file, self.format, self.cmdline_limit)?.read_from(&self.file))
    }
}

/// An entry that is to be made: what is unpacked in `KEY.new` becomes one when this is dropped. What that takes, a check sum of
/// all of it above all, the guest that boots the kernel need not wait for.
pub(crate) struct NewEntry<'a> {
    cache: &'a KernelCache,
    /// `KEY.new`, locked.
    file: File,
    key: Key,
    /// What the folder may hold, in bytes.
    allowed: u64,
    /// What is in the file; nothing yet for `None`.
    unpacked: Cell<Option<Unpacked>>,
}

/// An unpacked kernel.
#[derive(Debug, Clone, Copy)]
struct Unpacked {
    format: Format,
    cmdline_limit: Option<u32>,
    /// Bytes.
    size: u64,
}

impl fmt::Debug for NewEntry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewEntry").field("key", &self.key).finish_non_exhaustive()
    }
}

impl<'a> NewEntry<'a> {
    fn path(&self) -> PathBuf {
        self.cache.path(&self.key.name, NEW)
    }

    /// Keeps a kernel that was unpacked elsewhere. Where that cannot be, it is unpacked anew for the next qube.
    pub(crate) fn keep(&self, format: Format, cmdline_limit: Option<u32>, unpacked: &[u8]) {
        let size = unpacked.len() as u64;
        let error = |source| CacheError::File { path: self.path(), source };
        let kept = if Kernel::open_unpacked(unpacked, format, cmdline_limit).is_err() {
            // What cannot be booted is not kept; whoever tries to boot it says why.
            return;
        } else if size > self.allowed {
            Err(CacheError::TooLarge { limit: self.allowed })
        } else {
            // A crash may have left something.
            self.file.set_len(0).and_then(|()| self.file.write_all_at(unpacked, 0)).map_err(error)
        };
        match kept {
            Ok(()) => self.unpacked.set(Some(Unpacked { format, cmdline_limit, size })),
            Err(error) => self.cache.tell(&error),
        }
    }

    /// Unpacks the kernel into the entry. `None` when the cache cannot be used.
    pub(crate) fn unpack(self, packed: &[u8]) -> Result<Option<CachedKernel<'a>>, ImageError> {
        let cache = self.cache;
        cache.or_tell(self.unpack_from(packed))
    }

    fn unpack_from(self, packed: &[u8]) -> Result<CachedKernel<'a>, Failure> {
        let limit = self.allowed;
        let error = |source| Failure::Cache(CacheError::File { path: self.path(), source });
        let kernel = Kernel::open(packed)?;
        let (format, cmdline_limit) = (kernel.format(), kernel.footprint().cmdline_limit);
        if kernel.said_size().is_some_and(|size| size > limit) {
            // Not found out by unpacking as much as there is room for.
            return Err(CacheError::TooLarge { limit }.into());
        }
        // A crash may have left something.
        self.file.set_len(0).map_err(error)?;
        let mut room = limit;
        let size = kernel.unpack(|part| {
            room = room.checked_sub(part.len() as u64).ok_or(CacheError::TooLarge { limit })?;
            (&self.file).write_all(part).map_err(error)
        })?;
        let map = MappedFile::map(&self.file).map_err(error)?;
        // What cannot be booted is not kept.
        Kernel::open_unpacked(&map, format, cmdline_limit)?;
        self.unpacked.set(Some(Unpacked { format, cmdline_limit, size }));
        Ok(CachedKernel { file: map, format, cmdline_limit, _new: Some(self) })
    }

    fn record(&self, Unpacked { format, cmdline_limit, size }: Unpacked) -> Result<()> {
        let Self { cache, key, .. } = self;
        let error = |source| CacheError::File { path: self.path(), source };
        let record = Record {
            source: key.source.clone(),
            format,
            cmdline_limit,
            size,
            crc32: crc32(&self.file).map_err(error)?,
            right: Stamp::of(&self.file).map_err(error)?,
        };
        cache.write_record(&key.name, &record)?;
        let path = cache.path(&key.name, KERNEL);
        fs::rename(self.path(), &path).map_err(|source| CacheError::File { path, source })
    }
}

impl Drop for NewEntry<'_> {
    fn drop(&mut self) {
        let recorded = match self.unpacked.get() {
            Some(unpacked) => self.record(unpacked).inspect_err(|error| self.cache.tell(error)).is_ok(),
            None => false,
        };
        if !recorded {
            // Under the lock, so that it is ours. The error that led here is the one to tell of.
            let _ = fs::remove_file(self.path());
        }
        // The kernel is here: that others cannot be removed is for whoever prunes.
        let _ = self.cache.prune_but(self.allowed, Some(&self.key.name));
    }
}

/// Of a whole file, read piece by piece: to map its pages takes longer.
fn crc32(file: &File) -> io::Result<u32> {
    let mut crc = flate2::Crc::new();
    let mut part = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        match file.read_at(&mut part, at) {
            Ok(0) => return Ok(crc.sum()),
            Ok(len) => {
                crc.update(&part[..len]);
                at += len as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Why a kernel could not be put into the cache: for want of a cache, or of a kernel.
enum Failure {
    Cache(CacheError),
    Image(ImageError),
}

impl From<CacheError> for Failure {
    fn from(error: CacheError) -> Self {
        Self::Cache(error)
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

/// The folder of unpacked kernels.
pub struct KernelCache {
    folder: PathBuf,
    limit: u64,
    store: PathBuf,
    problem: Box<dyn Fn(&CacheError) + Send + Sync>,
    told: AtomicBool,
}

impl Default for KernelCache {
    /// This host's.
    fn default() -> Self {
        Self::new(KERNEL_CACHE, KERNEL_CACHE_LIMIT)
    }
}

impl KernelCache {
    /// A cache in `folder`, which is made when it is first used, of at most `limit` bytes.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, limit: u64) -> Self {
        let (folder, store) = (folder.into(), STORE.into());
        Self { folder, limit, store, problem: Box::new(|_| ()), told: AtomicBool::new(false) }
    }

    /// Whom to tell, once, that the cache cannot be used.
    #[must_use]
    pub fn on_problem(self, problem: impl Fn(&CacheError) + Send + Sync + 'static) -> Self {
        Self { problem: Box::new(problem), ..self }
    }

    /// The kernels, the last used first.
    ///
    /// # Errors
    /// When the folder cannot be read, or others could have put something there.
    pub fn list(&self) -> Result<Vec<Entry>> {
        if !self.exists()? {
            return Ok(Vec::new());
        }
        let mut entries: Vec<Entry> = self.files()?.into_keys().filter_map(|key| self.entry(key)).collect();
        entries.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.key.cmp(&b.key)));
        Ok(entries)
    }

    /// Removes what a crash has left, and the least recently used kernels until all others have at most `limit` bytes
    /// ([`Self::new`]'s for `None`). Qubes that are being made from one of them are not disturbed.
    ///
    /// # Errors
    /// As [`Self::list`], and when something cannot be removed.
    pub fn prune(&self, limit: Option<u64>) -> Result<Pruned> {
        self.prune_but(limit.unwrap_or(self.limit), None)
    }

    /// What a crash has left, which [`Self::prune`] removes.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn leftovers(&self) -> Result<Vec<PathBuf>> {
        if self.exists()? { self.sweep(None, false) } else { Ok(Vec::new()) }
    }

    /// The unpacked kernel of a packed one, or where it is to be. `None` for a kernel that is not packed, and when the cache
    /// cannot be used.
    pub(crate) fn look(&self, path: &Path, packed: &Bytes) -> Result<Option<Lookup<'_>>, ImageError> {
        if packed.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        self.or_tell(self.find_or_begin(path, packed))
    }

    fn or_tell<T>(&self, found: Result<T, Failure>) -> Result<Option<T>, ImageError> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(Failure::Image(error)) => Err(error),
            Err(Failure::Cache(error)) => {
                self.tell(&error);
                Ok(None)
            }
        }
    }

    fn tell(&self, error: &CacheError) {
        if !self.told.swap(true, Ordering::Relaxed) {
            (self.problem)(error);
        }
    }

    fn find_or_begin(&self, path: &Path, packed: &Bytes) -> Result<Lookup<'_>, Failure> {
        self.make_folder()?;
        let key = self.key(path, packed);
        loop {
            if let Some(kernel) = self.find(&key)? {
                return Ok(Lookup::Found(kernel));
            }
            // Whoever had the lock has just made the entry, or failed to.
            let Some(file) = self.begin(&key)? else { continue };
            // Dropped as it is, it removes its file.
            let new = |allowed, key| NewEntry { cache: self, file, key, allowed, unpacked: Cell::new(None) };
            return match self.find(&key) {
                // It was made between our look and our lock.
                Ok(Some(kernel)) => {
                    let _ = fs::remove_file(self.path(&key.name, NEW));
                    Ok(Lookup::Found(kernel))
                }
                Ok(None) => Ok(Lookup::Missing(new(self.allowed()?, key))),
                Err(error) => {
                    let _ = fs::remove_file(self.path(&key.name, NEW));
                    Err(error.into())
                }
            };
        }
    }

    fn key(&self, path: &Path, packed: &Bytes) -> Key {
        if let Bytes::Mapped(file, range) = packed
            && let Some(source) = self.unchanging(path)
        {
            // A part of an image is another kernel than the image.
            let part = if range.len() == file.len() { String::new() } else { format!("{range:?}") };
            let hash = Sha256::new().chain_update(source.as_os_str().as_encoded_bytes()).chain_update(part);
            return Key { name: format!("store-{}", hex(&hash.finalize())), source };
        }
        let hash = match packed {
            Bytes::Read(_, sha256) => *sha256,
            Bytes::Mapped(..) => Sha256::digest(&**packed).into(),
        };
        Key { name: format!("sha256-{}", hex(&hash)), source: path.to_owned() }
    }

    /// The store path of a file, if it has one: `/nix/store/HASH-NAME/…`, written by root and never again.
    fn unchanging(&self, path: &Path) -> Option<PathBuf> {
        let path = path.canonicalize().ok()?;
        store_path::hash(path.strip_prefix(&self.store).ok()?.iter().next()?)?;
        let metadata = path.metadata().ok()?;
        let ours = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
        (ours && metadata.mode() & 0o222 == 0).then_some(path)
    }

    fn path(&self, key: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{key}.{extension}"))
    }

    /// Whether there is a folder; an error when it is not ours alone.
    fn exists(&self) -> Result<bool> {
        let metadata = match fs::symlink_metadata(&self.folder) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(CacheError::File { path: self.folder.clone(), source }),
        };
        let user = rustix::process::geteuid().as_raw();
        let Some(what) = cache_folder::openness(&metadata, user) else { return Ok(true) };
        Err(CacheError::NotPrivate { path: self.folder.clone(), what, user })
    }

    fn make_folder(&self) -> Result<()> {
        if self.exists()? {
            return Ok(());
        }
        let error = |source| CacheError::File { path: self.folder.clone(), source };
        if let Some(parent) = self.folder.parent() {
            fs::create_dir_all(parent).map_err(error)?;
        }
        match DirBuilder::new().mode(0o700).create(&self.folder) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(error(source)),
            _ => self.exists().map(|_| ()),
        }
    }

    fn open(&self, path: &Path, options: &mut OpenOptions) -> Result<Option<File>> {
        match options.mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CacheError::File { path: path.to_owned(), source }),
        }
    }

    /// The record of an entry; `None` when there is none, or it is damaged.
    fn record(&self, key: &str) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.path(key, RECORD)).ok()?).ok()
    }

    /// The entry as it should be; `None` when it is not there or damaged.
    fn find(&self, key: &Key) -> Result<Option<CachedKernel<'_>>> {
        let path = self.path(&key.name, KERNEL);
        let error = |source| CacheError::File { path: path.clone(), source };
        let Some(mut record) = self.record(&key.name) else { return Ok(None) };
        let Some(file) = self.open(&path, OpenOptions::new().read(true))? else { return Ok(None) };
        if file.metadata().map_err(error)?.len() != record.size {
            return Ok(None);
        }
        let map = MappedFile::map(&file).map_err(error)?;
        let stamp = Stamp::of(&file).map_err(error)?;
        if stamp == record.right {
            self.touch(&key.name);
        } else {
            if crc32(&file).map_err(error)? != record.crc32 {
                return Ok(None);
            }
            record.right = stamp;
            // Without it the file is compared again next time.
            let _ = self.write_record(&key.name, &record);
        }
        let Record { format, cmdline_limit, .. } = record;
        Ok(Some(CachedKernel { file: map, format, cmdline_limit, _new: None }))
    }

    /// The entry was used.
    fn touch(&self, key: &str) {
        let touched = File::options().write(true).open(self.path(key, RECORD));
        // When the record is gone or cannot be written to: an entry that is removed too early is no reason to fail.
        let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
    }

    fn write_record(&self, key: &str, record: &Record) -> Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let new = self.path(key, &format!("{}-{number}.{RECORD_NEW}", std::process::id()));
        let path = self.path(key, RECORD);
        let written = serde_json::to_vec_pretty(record).map_err(io::Error::from).and_then(|json| {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?.write_all(&json)?;
            fs::rename(&new, &path)
        });
        written.map_err(|source| {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&new);
            CacheError::File { path, source }
        })
    }

    /// The locked file of an entry that is to be made; `None` when it had to wait for somebody who made it.
    fn begin(&self, key: &Key) -> Result<Option<File>> {
        let path = self.path(&key.name, NEW);
        let error = |source| CacheError::File { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let Some(file) = self.open(&path, options.read(true).write(true).create(true).truncate(false))?
        else {
            return Ok(None);
        };
        let lock = || rustix::fs::flock(&file, FlockOperation::LockExclusive);
        rustix::io::retry_on_intr(lock).map_err(|errno| error(errno.into()))?;
        Ok(is_at(&file, &path).then_some(file))
    }

    /// What the folder may hold now, in bytes: the limit, or half of what it has and could have where the file system has
    /// less to give.
    fn allowed(&self) -> Result<u64> {
        let held = self.list()?.iter().map(|entry| entry.size).sum();
        cache_folder::allowed(&self.folder, self.limit, held)
            .map_err(|source| CacheError::File { path: self.folder.clone(), source })
    }

    /// The keys of the folder, and which of an entry's files each has.
    fn files(&self) -> Result<BTreeMap<String, Vec<PathBuf>>> {
        let error = |source| CacheError::File { path: self.folder.clone(), source };
        let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let Some((key, rest)) = name.split_once('.') else { continue };
            let extension = rest.rsplit('.').next().unwrap_or_default();
            // Whatever else is there is not ours.
            if [KERNEL, RECORD, NEW, RECORD_NEW].contains(&extension) {
                files.entry(key.to_owned()).or_default().push(path.clone());
            }
        }
        Ok(files)
    }

    /// `None` when it is not complete.
    fn entry(&self, key: String) -> Option<Entry> {
        let record = self.record(&key)?;
        let size = fs::symlink_metadata(self.path(&key, KERNEL)).ok()?.len();
        let used = fs::metadata(self.path(&key, RECORD)).ok()?.modified().ok()?;
        Some(Entry { key, source: record.source, format: record.format, size, used })
    }

    /// What a crash has left, but nothing of `keep`; removes it on demand.
    fn sweep(&self, keep: Option<&str>, removing: bool) -> Result<Vec<PathBuf>> {
        let mut leftovers = Vec::new();
        for (key, files) in self.files()? {
            let new = self.path(&key, NEW);
            let lock = self.open(&new, OpenOptions::new().read(true))?;
            let locked =
                |file: &File| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_err();
            // Somebody makes it just now.
            if lock.as_ref().is_some_and(locked) || keep == Some(key.as_str()) {
                continue;
            }
            let whole = self.entry(key).is_some();
            for path in files {
                let extension = path.extension().unwrap_or_default();
                let of_entry = [KERNEL, RECORD].iter().any(|of_entry| extension == *of_entry);
                // Another may have been begun after the listing, but then it is not the one that is locked.
                let begun_anew = path == new && !lock.as_ref().is_some_and(|file| is_at(file, &new));
                if !(whole && of_entry || begun_anew) {
                    if removing {
                        remove(&path)?;
                    }
                    leftovers.push(path);
                }
            }
        }
        Ok(leftovers)
    }

    fn prune_but(&self, limit: u64, keep: Option<&str>) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        if !self.exists()? {
            return Ok(pruned);
        }
        pruned.leftovers = self.sweep(keep, true)?;
        let mut entries = self.list()?;
        let mut total: u64 = entries.iter().map(|entry| entry.size).sum();
        while total > limit
            && let Some(at) = entries.iter().rposition(|entry| Some(entry.key.as_str()) != keep)
        {
            let entry = entries.remove(at);
            // The record first: without it there is no entry.
            remove(&self.path(&entry.key, RECORD))?;
            remove(&self.path(&entry.key, KERNEL))?;
            total -= entry.size;
            pruned.entries.push(entry);
        }
        Ok(pruned)
    }
}

/// Whether the file is (still) the one of that name, for certain.
fn is_at(file: &File, path: &Path) -> bool {
    lock::is_at(file, path).unwrap_or(false)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CacheError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
