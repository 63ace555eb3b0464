//! A Unix socket of ours at a path where one of ours from before may be.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Makes a socket at a path. A socket that is there is replaced: whoever made it is gone, or is to be. Any other file
/// stays, and is an error.
///
/// `mode`: who may connect; none: as the process' umask says.
///
/// # Errors
/// The socket cannot be made, or its mode not be set.
pub fn listen(path: &Path, mode: Option<u32>) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_replaced_and_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("call.sock");
        drop(listen(&path, None).unwrap());
        let listener = listen(&path, Some(0o660)).unwrap();
        let state = fs::metadata(&path).unwrap();
        assert_eq!(state.permissions().mode() & 0o777, 0o660);
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        drop(listener);
        let file = folder.path().join("file");
        fs::write(&file, "kept").unwrap();
        assert_eq!(listen(&file, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }
}
