//! The image of a qube's private volume: made when it is not there, grown when it is too small, never shrunk. Its file
//! system is the qube's own affair.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a volume is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct VolumeError {
    /// Its image.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Sees to it that a volume has at least so many MiB; a block device has what it has.
pub(super) fn ensure(path: &Path, size_mib: u64) -> Result<(), VolumeError> {
    make(path, size_mib << 20).map_err(|source| VolumeError { path: path.to_owned(), source })
}

fn make(path: &Path, size: u64) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(there) if there.file_type().is_block_device() => return Ok(()),
        Ok(there) if there.len() >= size => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
        }
        Err(error) => return Err(error),
    }
    // Whoever is killed in between leaves an empty file, which is grown the next time.
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?.set_len(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_grows_and_does_not_shrink() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("private/work.img");
        let size = || fs::metadata(&path).unwrap().len();
        ensure(&path, 16).unwrap();
        assert_eq!(size(), 16 << 20);
        fs::write(&path, b"x").unwrap();
        ensure(&path, 16).unwrap();
        assert_eq!((size(), fs::read(&path).unwrap()[0]), (16 << 20, b'x'));
        ensure(&path, 8).unwrap();
        assert_eq!(size(), 16 << 20);
        let error = ensure(&folder.path().join("private/work.img/x"), 8).unwrap_err();
        assert!(error.to_string().contains("work.img/x: "), "{error}");
    }
}
