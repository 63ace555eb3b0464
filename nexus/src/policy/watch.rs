//! Notice of changes to files, those that do not exist yet among them.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr, OsString};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long files are left alone after a change: who installs a package changes several.
const QUIET: Duration = Duration::from_millis(20);

/// How long at most: who changes files for ever does not keep the others from being read.
const PATIENCE: Duration = Duration::from_millis(200);

/// Symbolic links that lead to one file, at most; as the kernel has it.
const LINKS: usize = 40;

/// Everything but being read.
const CHANGES: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// An inotify instance that watches folders.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: OwnedFd,
    stop: OwnedFd,
    folders: Mutex<BTreeMap<PathBuf, Folder>>,
}

/// A folder that is watched.
#[derive(Debug)]
struct Folder {
    watch: i32,
    names: Names,
}

/// What of a folder counts.
#[derive(Debug, Default)]
struct Names {
    /// Everything in it.
    all: bool,
    /// These.
    some: BTreeSet<OsString>,
    /// What is in one of these, too: it is a file, and not a folder or a link on the way to one.
    contents: bool,
}

impl Names {
    /// What happens elsewhere in the folder wakes nobody: beside /run/nexus much is written.
    fn flags(&self) -> WatchFlags {
        // The same folder may be wanted by another name.
        let flags = CHANGES | WatchFlags::MASK_ADD;
        if self.all || self.contents { flags } else { flags - WatchFlags::MODIFY - WatchFlags::CLOSE_WRITE }
    }
}

/// The folders that are to be watched.
type Wanted = BTreeMap<PathBuf, Names>;

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            stop: eventfd(0, EventfdFlags::CLOEXEC)?,
            folders: Mutex::default(),
        })
    }

    fn folders(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Folder>> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches for changes of these paths and of no others. Says whether one of their folders was not watched before.
    pub(super) fn set(&self, paths: &BTreeSet<PathBuf>) -> io::Result<bool> {
        let mut wanted = Wanted::new();
        for path in paths {
            follow(path, &mut wanted);
        }
        let mut folders = self.folders();
        let mut new = false;
        let mut watched = BTreeMap::new();
        for (path, names) in wanted {
            // A folder that was replaced has a new inode, and the old watch goes with the old one: it is added each time.
            let watch = match inotify::add_watch(&self.inotify, &path, names.flags()) {
                Ok(watch) => watch,
                // It has just gone; its parent is among those wanted, and tells of it when it comes back.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => return Err(error.into()),
            };
            let known = folders.get(&path).is_some_and(|folder| {
                folder.watch == watch
                    && (folder.names.all || !names.all)
                    && (folder.names.all || names.some.is_subset(&folder.names.some))
            });
            new |= !known;
            watched.insert(path, Folder { watch, names });
        }
        let needed: BTreeSet<i32> = watched.values().map(|folder| folder.watch).collect();
        let old: BTreeSet<i32> = folders.values().map(|folder| folder.watch).collect();
        for watch in old.difference(&needed) {
            // The kernel may have taken it away already.
            let _ = inotify::remove_watch(&self.inotify, *watch);
        }
        *folders = watched;
        Ok(new)
    }

    /// Waits for a change, and until there is none for a while. False: it was stopped.
    pub(super) fn wait(&self) -> io::Result<bool> {
        let mut until: Option<Instant> = None;
        let mut latest = None;
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(true);
            }
            // A duration that short is one of the kernel's, too.
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(&self.inotify, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) if !fds[0].revents().is_empty() => return Ok(false),
                Ok(_) => {
                    // Files that do not count (in /tmp there may always be some) do not make it longer.
                    if self.drain()? {
                        let now = Instant::now();
                        let latest = *latest.get_or_insert(now + PATIENCE);
                        until = Some((now + QUIET).min(latest));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the events that are there. Whether one of them is of a file that counts; which does not matter, for
    /// everything is read anew.
    fn drain(&self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut counts = false;
        loop {
            match reader.next() {
                Ok(event) => counts |= self.counts(event.wd(), event.file_name().map(CStr::to_bytes)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(counts),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Events without a name are of the folder itself, or say that some were lost.
    fn counts(&self, watch: i32, name: Option<&[u8]>) -> bool {
        let Some(name) = name else { return true };
        let of = |folder: &Folder| folder.watch == watch;
        self.folders()
            .values()
            .filter(|folder| of(folder))
            .any(|Folder { names, .. }| names.all || names.some.contains(OsStr::from_bytes(name)))
    }

    pub(super) fn stop(&self) {
        // An eventfd that is 0 has room for a 1.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }
}

/// The folders in which a change can make a path lead elsewhere, and which of their names: that of each component, and those
/// of each symbolic link on the way (NixOS has nothing else in /etc). Of a folder at the end, everything.
fn follow(path: &Path, wanted: &mut Wanted) {
    let mut left: Vec<PathBuf> = parts(path);
    let mut at = PathBuf::from(".");
    let mut links = 0;
    while let Some(part) = left.pop() {
        match part.components().next() {
            Some(Component::RootDir) => {
                at = PathBuf::from("/");
                continue;
            }
            Some(Component::ParentDir) => {
                at.push("..");
                continue;
            }
            Some(Component::Normal(name)) => {
                wanted.entry(at.clone()).or_default().some.insert(name.to_owned());
            }
            _ => continue,
        }
        let next = at.join(&part);
        match fs::read_link(&next) {
            Ok(_) if links == LINKS => return,
            Ok(target) => {
                links += 1;
                left.extend(parts(&target));
            }
            Err(_) if fs::symlink_metadata(&next).is_ok() => at = next,
            // It is not there. Whether what would follow is: that is known when it comes.
            Err(_) => return,
        }
    }
    if at.is_dir() {
        wanted.entry(at).or_default().all = true;
    } else if let Some(names) = at.parent().and_then(|folder| wanted.get_mut(folder)) {
        names.contents = true;
    }
}

/// The components of a path, the first one last.
fn parts(path: &Path) -> Vec<PathBuf> {
    let mut parts: Vec<_> = path.components().map(|part| PathBuf::from(part.as_os_str())).collect();
    parts.reverse();
    parts
}
