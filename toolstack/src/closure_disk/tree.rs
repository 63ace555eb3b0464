//! What is in a store path, and reading it without being led elsewhere.

use super::ClosureDiskError;
use super::erofs::Node;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A store path, looked through.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) node: Node,
    /// The files that are not empty, by number, with their sizes.
    pub(super) files: Vec<(PathBuf, u64)>,
}

impl Tree {
    /// Looks through a store path. Links are noted, and never followed.
    ///
    /// # Errors
    /// [`ClosureDiskError::Special`] for what no store has: devices, sockets, FIFOs.
    pub(super) fn of(path: &Path) -> Result<Self, ClosureDiskError> {
        let mut files = Vec::new();
        let node = scan(path, &mut files)?;
        Ok(Self { node, files })
    }
}

fn scan(path: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<Node, ClosureDiskError> {
    let error = |source| ClosureDiskError::File { path: path.to_owned(), source };
    let metadata = fs::symlink_metadata(path).map_err(error)?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path).map_err(error)?;
        Ok(Node::Link(target.into_os_string().into_boxed_os_str()))
    } else if kind.is_file() {
        let size = metadata.len();
        let number = (size > 0).then(|| {
            files.push((path.to_owned(), size));
            files.len() - 1
        });
        Ok(Node::File { size, executable: metadata.mode() & 0o111 != 0, number })
    } else if kind.is_dir() {
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(error)? {
            names.push(entry.map_err(error)?.file_name());
        }
        names.sort_unstable();
        let entries = names.into_iter().map(|name| {
            let node = scan(&path.join(&name), files)?;
            Ok::<_, ClosureDiskError>((name.into_boxed_os_str(), node))
        });
        Ok(Node::Directory(entries.collect::<Result<_, _>>()?))
    } else {
        let what = match () {
            () if kind.is_block_device() || kind.is_char_device() => "a device",
            () if kind.is_socket() => "a socket",
            () => "a FIFO",
        };
        Err(ClosureDiskError::Special { path: path.to_owned(), what })
    }
}

/// Opens a file that was found to have that size, and nothing else that has its name since.
pub(super) fn open(path: &Path, size: u64) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() != size {
        return Err(changed());
    }
    Ok(file)
}

/// A store path never changes; what is one does not, either.
pub(super) fn changed() -> io::Error {
    io::Error::other("it changed while it was read")
}
