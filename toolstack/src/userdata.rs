//! The folder where libxl keeps what belongs to a domain but not into xenstore, `/var/lib/xen`: one file a domain and
//! kind, `userdata-d.DOMID.UUID.KIND` (libxl__userdata_path). Its `libxl-json` is what `xl list -l` shows. Ours,
//! `nxl-json`, is what the [watcher](crate::watch) makes a qube from again; it goes with libxl's own when anybody
//! destroys the domain.

use crate::lock;
use crate::qubes::QubeError;
use crate::whole_file::make_folder;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use xen::DomId;

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// The configuration in libxl's JSON.
    Libxl,
    /// The configuration in our own.
    Nxl,
    /// The same, of a qube that waits in a [pool](crate::pool).
    Pool,
}

impl Kind {
    fn suffix(self) -> &'static str {
        match self {
            Self::Libxl => "libxl-json",
            Self::Nxl => "nxl-json",
            Self::Pool => "nxl-pool",
        }
    }
}

/// Files of the folder for locks: a domain that is being made, and one that is to be made again.
const BEGUN: &str = "begun-";
const RESTART: &str = "restart-";

/// A domain that is being made: the lock is held by who makes it.
#[derive(Debug)]
pub(crate) struct Beginning {
    path: PathBuf,
    _lock: File,
}

impl Beginning {
    /// The domain is whole, or gone.
    pub(crate) fn end(&self) -> Result<(), QubeError> {
        remove_file(&self.path)
    }
}

/// The folder, and the one for locks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserData {
    folder: PathBuf,
    locks: PathBuf,
}

impl Default for UserData {
    fn default() -> Self {
        Self { folder: "/var/lib/xen".into(), locks: "/run/nxl".into() }
    }
}

impl UserData {
    /// In another folder than libxl's: for tests.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        let folder = folder.into();
        Self { locks: folder.join("locks"), folder }
    }

    /// A folder for files that do not outlive this boot of the host.
    pub(crate) fn scratch(&self) -> &Path {
        &self.locks
    }

    /// Where the cores of domains go that crashed.
    pub(crate) fn dump_folder(&self) -> PathBuf {
        self.folder.join("dump")
    }

    fn path(&self, kind: Kind, domid: DomId, uuid: Uuid) -> PathBuf {
        self.folder.join(format!("userdata-d.{domid}.{uuid}.{}", kind.suffix()))
    }

    /// Waits for the lock of that name; `None` when somebody else has it and `wait` is false.
    pub(crate) fn lock(&self, name: &str, wait: bool) -> Result<Option<File>, QubeError> {
        let path = self.locks.join(name);
        let lock = if wait { lock::wait(&path).map(Some) } else { lock::attempt(&path) };
        lock.map_err(|source| QubeError::UserData { path, source })
    }

    /// Whether somebody has the lock of that name.
    pub(crate) fn is_locked(&self, name: &str) -> Result<bool, QubeError> {
        let path = self.locks.join(name);
        lock::is_held(&path).map_err(|source| QubeError::UserData { path, source })
    }

    /// Waits for the lock under which libxl changes the configuration of a domain
    /// (libxl__lock_domain_userdata).
    pub(crate) fn lock_domain(&self, domid: DomId, uuid: Uuid) -> Result<DomainLock, QubeError> {
        let path = self.folder.join(format!("userdata-l.{domid}.{uuid}.domain-userdata-lock"));
        match lock::wait(&path) {
            Ok(file) => Ok(DomainLock { path, _file: file }),
            Err(source) => Err(QubeError::UserData { path, source }),
        }
    }

    /// Notes that a domain of that UUID is being made, for as long as the file is open and on disk: whoever dies leaves it,
    /// unlocked, for the [doctor](crate::doctor).
    pub(crate) fn begin(&self, uuid: Uuid) -> Result<Beginning, QubeError> {
        let path = self.locks.join(format!("{BEGUN}{uuid}"));
        // Somebody waited for is the doctor, or another who makes a domain of the same UUID.
        match lock::wait(&path) {
            Ok(lock) => Ok(Beginning { path, _lock: lock }),
            Err(source) => Err(QubeError::UserData { path, source }),
        }
    }

    /// The UUIDs of domains whose makers are dead.
    pub(crate) fn begun(&self) -> Result<Vec<(Uuid, Beginning)>, QubeError> {
        let mut begun = Vec::new();
        for name in names_in(&self.locks)? {
            let Some(uuid) = name.strip_prefix(BEGUN).and_then(|uuid| Uuid::parse_str(uuid).ok()) else {
                continue;
            };
            let path = self.locks.join(name);
            // Not to be made anew: whoever had it may just have come to its end.
            if let Ok(Some(lock)) = lock::attempt_existing(&path) {
                begun.push((uuid, Beginning { path, _lock: lock }));
            }
        }
        Ok(begun)
    }

    /// Keeps what is to be made again, until [`Self::forget_restart`]: longer than the domain whose place it takes.
    pub(crate) fn note_restart(&self, uuid: Uuid, json: &str) -> Result<(), QubeError> {
        let path = self.locks.join(format!("{RESTART}{uuid}"));
        let new = self.locks.join(format!("{RESTART}{uuid}.new"));
        let written = make_folder(&self.locks, 0o755).and_then(|()| write_new(&new, json));
        written.and_then(|()| fs::rename(&new, &path)).map_err(|source| QubeError::UserData { path, source })
    }

    /// What was to be made again by somebody who did not come to it.
    pub(crate) fn restarts(&self) -> Result<Vec<(Uuid, String)>, QubeError> {
        let mut restarts = Vec::new();
        for name in names_in(&self.locks)? {
            let Some(uuid) = name.strip_prefix(RESTART).and_then(|uuid| Uuid::parse_str(uuid).ok()) else {
                continue;
            };
            let path = self.locks.join(name);
            let text = fs::read_to_string(&path).map_err(|source| QubeError::UserData { path, source })?;
            restarts.push((uuid, text.trim_end_matches('\0').to_owned()));
        }
        Ok(restarts)
    }

    pub(crate) fn forget_restart(&self, uuid: Uuid) -> Result<(), QubeError> {
        remove_file(&self.locks.join(format!("{RESTART}{uuid}")))
    }

    /// All files that belong to a domain, whoever wrote them, with the domain's id and UUID.
    pub(crate) fn files(&self) -> Result<Vec<(DomId, Uuid, PathBuf)>, QubeError> {
        let parse = |name: &str| {
            let rest = name.strip_prefix("userdata-d.").or_else(|| name.strip_prefix("userdata-l."))?;
            let mut parts = rest.splitn(3, '.');
            let domid = DomId(parts.next()?.parse().ok()?);
            Some((domid, Uuid::parse_str(parts.next()?).ok()?, self.folder.join(name)))
        };
        Ok(self.names()?.iter().filter_map(|name| parse(name)).collect())
    }

    /// All domains that the watcher is to know.
    pub(crate) fn known(&self) -> Result<Vec<(DomId, Uuid)>, QubeError> {
        self.having(Kind::Nxl)
    }

    /// All domains that have a file of that kind.
    pub(crate) fn having(&self, kind: Kind) -> Result<Vec<(DomId, Uuid)>, QubeError> {
        let suffix = format!(".{}", kind.suffix());
        let names = self.names()?;
        Ok(names
            .iter()
            .filter_map(|name| {
                let (domid, uuid) =
                    name.strip_prefix("userdata-d.")?.strip_suffix(&suffix)?.split_once('.')?;
                Some((DomId(domid.parse().ok()?), Uuid::parse_str(uuid).ok()?))
            })
            .collect())
    }

    fn names(&self) -> Result<Vec<String>, QubeError> {
        names_in(&self.folder)
    }

    /// Stores a domain's configuration: it is there whole, or not at all.
    pub(crate) fn write(&self, kind: Kind, domid: DomId, uuid: Uuid, json: &str) -> Result<(), QubeError> {
        let path = self.path(kind, domid, uuid);
        let new = path.with_extension("new");
        let written = write_new(&new, json).and_then(|()| fs::rename(&new, &path));
        written.map_err(|source| {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&new);
            QubeError::UserData { path, source }
        })
    }

    pub(crate) fn read(&self, kind: Kind, domid: DomId, uuid: Uuid) -> Result<Option<String>, QubeError> {
        let path = self.path(kind, domid, uuid);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end_matches('\0').to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(QubeError::UserData { path, source }),
        }
    }

    /// Removes a file, if it is there.
    pub(crate) fn forget(&self, kind: Kind, domid: DomId, uuid: Uuid) -> Result<(), QubeError> {
        remove_file(&self.path(kind, domid, uuid))
    }

    /// Removes all files of a domain, of whatever kind: other toolstacks put theirs beside ours.
    pub(crate) fn remove(&self, domid: DomId, uuid: Uuid) -> Result<(), QubeError> {
        // Of whatever class, too: libxl has `d' for data and `l' for locks.
        let part = format!(".{domid}.{uuid}.");
        self.names()?
            .iter()
            .filter(|name| {
                let rest =
                    name.strip_prefix("userdata-").map(|rest| rest.trim_start_matches(char::is_alphabetic));
                rest.is_some_and(|rest| rest.starts_with(&part))
            })
            .try_for_each(|name| remove_file(&self.folder.join(name)))
    }
}

/// The lock of a domain's configuration.
pub(crate) struct DomainLock {
    path: PathBuf,
    _file: File,
}

impl Drop for DomainLock {
    fn drop(&mut self) {
        // As libxl leaves it: without the file, which whoever waits for it will notice. A file that stays locks nobody out.
        let _ = fs::remove_file(&self.path);
    }
}

/// What is in a folder; nothing when there is none.
fn names_in(folder: &Path) -> Result<Vec<String>, QubeError> {
    let error = |source| QubeError::UserData { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(source)),
    };
    entries.map(|entry| Ok(entry.map_err(error)?.file_name().to_string_lossy().into_owned())).collect()
}

pub(crate) fn remove_file(path: &Path) -> Result<(), QubeError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(QubeError::UserData { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn write_new(path: &Path, json: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(json.as_bytes())?;
    // libxl reads it as a C string.
    file.write_all(&[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domains_files_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let data = UserData::in_folder(folder.path());
        let (uuid, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        data.write(Kind::Libxl, DomId(3), uuid, "{}").unwrap();
        data.write(Kind::Nxl, DomId(3), other, "{1}").unwrap();
        fs::write(folder.path().join(format!("userdata-d.3.{uuid}.xl")), "name='x'").unwrap();
        fs::write(folder.path().join(format!("userdata-l.3.{uuid}.domain-userdata-lock")), "").unwrap();
        drop(data.lock_domain(DomId(3), other).unwrap());
        assert_eq!(data.read(Kind::Libxl, DomId(3), uuid).unwrap().as_deref(), Some("{}"));
        assert_eq!(data.known().unwrap(), [(DomId(3), other)]);
        data.remove(DomId(3), uuid).unwrap();
        assert_eq!(data.read(Kind::Libxl, DomId(3), uuid).unwrap(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "another domain's file stays");
    }

    #[test]
    fn a_lock_is_held_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let data = UserData::in_folder(folder.path());
        let held = data.lock("watch", false).unwrap();
        assert!(held.is_some());
        assert!(data.lock("watch", false).unwrap().is_none());
        drop(held);
        assert!(data.lock("watch", true).unwrap().is_some());
    }

    #[test]
    fn who_dies_while_making_a_domain_leaves_its_uuid() {
        let folder = tempfile::tempdir().unwrap();
        let data = UserData::in_folder(folder.path());
        let begun = || data.begun().unwrap().iter().map(|(uuid, _)| *uuid).collect::<Vec<_>>();
        assert!(begun().is_empty());
        let first = data.begin(Uuid::from_u128(1)).unwrap();
        let second = data.begin(Uuid::from_u128(2)).unwrap();
        assert!(begun().is_empty(), "both are alive");
        drop(first);
        assert_eq!(begun(), [Uuid::from_u128(1)]);
        second.end().unwrap();
        data.begun().unwrap()[0].1.end().unwrap();
        drop(second);
        assert!(begun().is_empty());
    }

    #[test]
    fn an_unwritable_folder_is_named() {
        let data = UserData::in_folder("/nonexistent/folder");
        let error = data.write(Kind::Libxl, DomId(3), Uuid::from_u128(1), "{}").unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/folder/userdata-d.3."), "{error}");
        assert!(data.remove(DomId(3), Uuid::from_u128(1)).is_ok(), "nothing to remove");
    }
}
