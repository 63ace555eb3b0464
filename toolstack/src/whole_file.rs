//! Files that are there whole, or as they were: written under another name, and renamed.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Gives a file these contents, and makes its folder if there is none. The name under which it is written begins with a dot:
/// whoever reads all files of a folder by their ending does not see it, and the next to write the file takes it over from
/// one that was killed.
///
/// # Errors
/// What the file system says; the file is as it was then.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no name"));
    };
    fs::create_dir_all(folder)?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let new = folder.join(hidden);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&new)?;
    file.write_all(contents)
        .and_then(|()| fs::rename(&new, path))
        .inspect_err(|_| drop(fs::remove_file(&new)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
}
