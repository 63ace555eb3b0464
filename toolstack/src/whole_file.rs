//! Files that are there whole, or as they were: written under another name, and renamed.

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Gives a file these contents and that mode, and makes its folder if there is none; whatever the umask, as some of them are for
/// nexusd, which is not root. The name under which it is written begins with a dot:
/// whoever reads all files of a folder by their ending does not see it, and the next to write the file takes it over from
/// one that was killed.
///
/// # Errors
/// What the file system says; the file is as it was then.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no name"));
    };
    make_folder(folder, 0o755)?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let new = folder.join(hidden);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.write_all(contents))
        .and_then(|()| fs::rename(&new, path))
        .inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Makes a folder of that mode, and those above it; those that are there stay as they are.
pub(crate) fn make_folder(folder: &Path, mode: u32) -> io::Result<()> {
    // Of a relative path, what is above the first folder is empty.
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent() {
        make_folder(above, mode)?;
    }
    match fs::create_dir(folder) {
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(mode)),
        // By somebody else, in between.
        Err(_) if folder.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.json");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"2", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        // A folder cannot be replaced by a file.
        let taken = folder.path().join("a");
        assert!(replace(&taken, b"x", 0o600).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left of it");
        assert!(replace(Path::new("/"), b"x", 0o600).is_err());
    }

    #[test]
    fn others_can_read_what_is_for_them_whatever_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.json");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // No umask would have left that.
        replace(&path, b"one", 0o666).unwrap();
        assert_eq!(mode(&path), 0o666);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        let deep = folder.path().join("c/d");
        make_folder(&deep, 0o777).unwrap();
        assert_eq!([mode(&deep), mode(deep.parent().unwrap())], [0o777; 2]);
        make_folder(&deep, 0o700).unwrap();
        assert_eq!(mode(&deep), 0o777, "one that is there stays as it is");
        assert!(make_folder(&path, 0o755).is_err(), "a file is no folder");
    }
}
