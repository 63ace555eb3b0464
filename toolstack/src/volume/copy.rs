//! Copies of volumes: blocks shared where the file system can, and otherwise written where there is something.

use crate::progress::Progress;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// Both have the same blocks of the disk until one of them is written (`FICLONE`: XFS, btrfs, bcachefs).
    Shared,
    /// So many bytes were written.
    Written(u64),
}

/// Lets `target` have the blocks of `source`, at one moment; `false` if their file system cannot.
pub(super) fn share(source: &File, target: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(target, source) {
        Ok(()) => Ok(true),
        // What file systems say that cannot (ioctl_ficlone(2)).
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Copies what is no hole and not all zeros, and tells of it; the answer is how many bytes that were.
pub(super) fn sparse(source: &File, target: &File, progress: &Progress) -> io::Result<u64> {
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let (mut at, mut written) = (0, 0);
    let mut buffer = vec![0; CHUNK];
    while at < size {
        match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(data) => at = data,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            // The file system does not tell.
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
        let len = (size.saturating_sub(at)).min(CHUNK as u64) as usize;
        let bytes = &mut buffer[..len];
        source.read_exact_at(bytes, at)?;
        if bytes.iter().any(|byte| *byte != 0) {
            target.write_all_at(bytes, at)?;
            written += len as u64;
        }
        at += len as u64;
        progress.tell(at, size);
    }
    progress.tell(size, size);
    Ok(written)
}
