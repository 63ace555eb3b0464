//! What the folders of both caches have in common, that of kernels and that of closures' images: each is its user's alone,
//! and takes no more than its share of the disk.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Why others than `user` could have put something into what should be a folder; `None` if they could not.
pub(crate) fn openness(metadata: &Metadata, user: u32) -> Option<String> {
    let mode = metadata.mode() & 0o7777;
    match () {
        () if !metadata.is_dir() => Some("no folder".to_owned()),
        () if metadata.uid() != user => Some(format!("user {}'s", metadata.uid())),
        () if mode & 0o077 != 0 => Some(format!("open to others (mode {mode:04o})")),
        () => None,
    }
}

/// What a folder may hold that holds `held` bytes: the limit, or half of what it has and could have where the file system
/// has less to give.
pub(crate) fn allowed(folder: &Path, limit: u64, held: u64) -> io::Result<u64> {
    let space = rustix::fs::statvfs(folder)?;
    Ok(share(limit, held, space.f_bavail.saturating_mul(space.f_frsize)))
}

/// The most that may be held: never more than half of what a file system can give, so that nobody else is starved.
fn share(limit: u64, held: u64, available: u64) -> u64 {
    limit.min(held.saturating_add(available) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_small_file_system_is_left_to_others() {
        assert_eq!(share(1 << 30, 0, 10 << 30), 1 << 30);
        assert_eq!(share(1 << 30, 0, 200 << 20), 100 << 20);
        assert_eq!(share(1 << 30, 100 << 20, 100 << 20), 100 << 20, "the same when half is taken");
        assert_eq!(share(1 << 30, u64::MAX, u64::MAX), 1 << 30);
        assert_eq!(share(1 << 30, 0, 0), 0);
    }
}
