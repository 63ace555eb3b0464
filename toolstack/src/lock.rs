//! Locks that files stand for (flock(2)), each of them held as long as the file is open.
//!
//! Whoever holds one may remove its file, as libxl and its scripts do: so whoever got a lock looks whether the file that it
//! opened is still the one of that name.

use crate::whole_file::make_folder;
use rustix::fs::FlockOperation;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Waits for a lock; its file and folder are made if they are not there.
pub(crate) fn wait(path: &Path) -> io::Result<File> {
    loop {
        let file = open(path)?;
        match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
            Ok(()) if is_at(&file, path)? => return Ok(file),
            Ok(()) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The same, unless somebody has it.
pub(crate) fn attempt(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = open(path)?;
        match attempt_file(&file, path)? {
            Attempt::Held => return Ok(Some(file)),
            Attempt::Taken => return Ok(None),
            Attempt::Removed => {}
        }
    }
}

/// The same of a file that is there; none is made.
pub(crate) fn attempt_existing(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).open(path)?;
    Ok(match attempt_file(&file, path)? {
        Attempt::Held => Some(file),
        Attempt::Taken | Attempt::Removed => None,
    })
}

/// Whether somebody has that lock. To look is in nobody's way: neither an attempt nor another look takes it for a holder.
pub(crate) fn is_held(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    is_held_by_another(&file)
}

/// Who looks has it shared for a moment, so that another's look succeeds as well, and only a holder is in their way.
fn is_held_by_another(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// How an attempt ended.
enum Attempt {
    Held,
    /// By somebody else.
    Taken,
    /// By whoever had the lock before.
    Removed,
}

fn attempt_file(file: &File, path: &Path) -> io::Result<Attempt> {
    loop {
        return match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(file, path)? => Ok(Attempt::Held),
            Ok(()) => Ok(Attempt::Removed),
            Err(rustix::io::Errno::WOULDBLOCK) if is_held_by_another(file)? => Ok(Attempt::Taken),
            // Somebody looked at it just then.
            Err(rustix::io::Errno::WOULDBLOCK) => {
                std::thread::yield_now();
                continue;
            }
            Err(errno) => Err(errno.into()),
        };
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        // /run/nxl is one of them, and has what nexusd reads.
        make_folder(folder, 0o755)?;
    }
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Whether that name is still this file's.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_survives_that_its_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks/block");
        let held = wait(&path).unwrap();
        assert!(attempt(&path).unwrap().is_none());
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || wait(&path).map(|file| file.metadata().unwrap().ino())
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished());
        fs::remove_file(&path).unwrap();
        drop(held);
        let inode = waiting.join().unwrap().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "the lock is on the file that is there");
        assert!(attempt(&path).unwrap().is_some());
    }

    #[test]
    fn to_look_at_a_lock_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = &folder.path().join("lock");
        assert!(!is_held(path).unwrap());
        let over = &std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(move || {
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        is_held(path).unwrap();
                    }
                });
            }
            for round in 0..2_000 {
                let held = attempt(path).unwrap();
                let seen = is_held(path).unwrap();
                over.store(held.is_none() || !seen || round == 1_999, std::sync::atomic::Ordering::Relaxed);
                assert!(held.is_some(), "a look was taken for a holder in round {round}");
                assert!(seen, "a holder was not seen in round {round}");
            }
        });
        assert!(!is_held(path).unwrap());
    }

    #[test]
    fn a_lock_that_is_not_there_is_not_made_by_who_wants_an_existing_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert_eq!(attempt_existing(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let held = wait(&path).unwrap();
        assert!(attempt_existing(&path).unwrap().is_none());
        drop(held);
        assert!(attempt_existing(&path).unwrap().is_some());
    }
}
