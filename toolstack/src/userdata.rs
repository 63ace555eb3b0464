//! The folder where libxl keeps what belongs to a domain but not into xenstore, `/var/lib/xen`: one file a domain and
//! kind, `userdata-d.DOMID.UUID.KIND` (libxl__userdata_path). Its `libxl-json` is what `xl list -l` shows.

use crate::qubes::QubeError;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use xen::DomId;

/// The folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserData {
    folder: PathBuf,
}

impl Default for UserData {
    fn default() -> Self {
        Self::in_folder("/var/lib/xen")
    }
}

impl UserData {
    /// In another folder than libxl's: for tests.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn path(&self, domid: DomId, uuid: Uuid) -> PathBuf {
        self.folder.join(format!("userdata-d.{domid}.{uuid}.libxl-json"))
    }

    /// Stores a domain's configuration: it is there whole, or not at all.
    pub(crate) fn write(&self, domid: DomId, uuid: Uuid, json: &str) -> Result<(), QubeError> {
        let path = self.path(domid, uuid);
        let new = path.with_extension("libxl-json.new");
        let written = write_new(&new, json).and_then(|()| fs::rename(&new, &path));
        written.map_err(|source| {
            // The error that led here is the one to report.
            let _ = fs::remove_file(&new);
            QubeError::UserData { path, source }
        })
    }

    pub(crate) fn read(&self, domid: DomId, uuid: Uuid) -> Result<Option<String>, QubeError> {
        let path = self.path(domid, uuid);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end_matches('\0').to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(QubeError::UserData { path, source }),
        }
    }

    /// Removes all files of a domain, of whatever kind: other toolstacks put theirs beside ours.
    pub(crate) fn remove(&self, domid: DomId, uuid: Uuid) -> Result<(), QubeError> {
        let error = |path: &Path, source| QubeError::UserData { path: path.to_owned(), source };
        let prefix = format!("userdata-d.{domid}.{uuid}.");
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(error(&self.folder, source)),
        };
        for entry in entries {
            let entry = entry.map_err(|source| error(&self.folder, source))?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let path = entry.path();
                match fs::remove_file(&path) {
                    Err(source) if source.kind() != io::ErrorKind::NotFound => {
                        return Err(error(&path, source));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
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
        data.write(DomId(3), uuid, "{}").unwrap();
        data.write(DomId(3), other, "{1}").unwrap();
        fs::write(folder.path().join(format!("userdata-d.3.{uuid}.xl")), "name='x'").unwrap();
        assert_eq!(data.read(DomId(3), uuid).unwrap().as_deref(), Some("{}"));
        data.remove(DomId(3), uuid).unwrap();
        assert_eq!(data.read(DomId(3), uuid).unwrap(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "another domain's file stays");
    }

    #[test]
    fn an_unwritable_folder_is_named() {
        let data = UserData::in_folder("/nonexistent/folder");
        let error = data.write(DomId(3), Uuid::from_u128(1), "{}").unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/folder/userdata-d.3."), "{error}");
        assert!(data.remove(DomId(3), Uuid::from_u128(1)).is_ok(), "nothing to remove");
    }
}
