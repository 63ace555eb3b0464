//! Images of closures, kept: a squashfs file system for each, with the store paths of the closure at its root.
//!
//! An image is known by its store path, which never changes. It is made once, under a lock, as `NAME.new`, written to
//! the disk, and renamed to `NAME.squashfs`: what has that name is whole, whatever crashes. The time of an image is that
//! of its last use; the least recently used go when all have more than their share. A loop device keeps what it has, so
//! that no qube minds.

use super::ClosureDiskError;
use super::requisites::{hash, requisites};
use crate::cache_folder;
use crate::lock;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// Where the images of this host are.
pub const CLOSURE_IMAGES: &str = "/var/cache/nxl/images";
/// What the folder may hold, in bytes, where the file system has twice that to give.
pub const CLOSURE_IMAGES_LIMIT: u64 = 64 << 30;
const STORE: &str = "/nix/store";
const IMAGE: &str = "squashfs";
const NEW: &str = "new";
const LOCK: &str = "lock";

/// A store path of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePath {
    path: PathBuf,
    name: String,
}

/// The folder of images, and what they are made with.
#[derive(Debug, Clone)]
pub struct ClosureImages {
    folder: PathBuf,
    limit: u64,
    store: PathBuf,
    pub(super) packer: PathBuf,
    nix_store: PathBuf,
}

impl Default for ClosureImages {
    fn default() -> Self {
        Self::new(CLOSURE_IMAGES, STORE)
    }
}

impl ClosureImages {
    /// Images in `folder` of what is in `store`.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, store: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            limit: CLOSURE_IMAGES_LIMIT,
            store: store.into(),
            packer: "mksquashfs".into(),
            nix_store: "nix-store".into(),
        }
    }

    /// The store path that a disk's target means: one, something in it, or a link to it, such as a profile.
    ///
    /// # Errors
    /// [`ClosureDiskError::Target`]
    pub fn store_path(&self, target: &Path) -> Result<StorePath, ClosureDiskError> {
        let refuse = |reason: String| ClosureDiskError::Target { target: target.to_owned(), reason };
        let real = target.canonicalize().map_err(|error| refuse(error.to_string()))?;
        let first = real.strip_prefix(&self.store).ok().and_then(|inside| inside.iter().next());
        let name = first.filter(|name| hash(name).is_some()).and_then(|name| name.to_str());
        let name = name.ok_or_else(|| refuse(format!("it is no path of {}", self.store.display())))?;
        Ok(StorePath { path: self.store.join(name), name: name.to_owned() })
    }

    fn path(&self, store_path: &StorePath, extension: &str) -> PathBuf {
        self.folder.join(format!("{}.{extension}", store_path.name))
    }

    /// The image of a store path, if there is one; it is used now.
    pub fn find(&self, store_path: &StorePath) -> Option<PathBuf> {
        let path = self.path(store_path, IMAGE);
        let file = File::options().write(true).open(&path).ok()?;
        // An image that is removed too early is made anew.
        let _ = file.set_modified(SystemTime::now());
        Some(path)
    }

    /// The image of a store path, made when there is none. Whoever comes while it is being made waits.
    ///
    /// # Errors
    /// [`ClosureDiskError::File`] and [`ClosureDiskError::Packer`]
    pub fn make(&self, store_path: &StorePath) -> Result<PathBuf, ClosureDiskError> {
        self.make_folder()?;
        let lock_path = self.path(store_path, LOCK);
        let lock = lock::wait(&lock_path)
            .map_err(|source| ClosureDiskError::File { path: lock_path.clone(), source })?;
        let made = self.find(store_path).map_or_else(|| self.pack(store_path), Ok);
        if made.is_err() {
            // What is wrong is the packer's to say.
            let _ = fs::remove_file(self.path(store_path, NEW));
        }
        // Under the lock: whoever waits for it sees that its file is gone, and makes another.
        let _ = fs::remove_file(&lock_path);
        drop(lock);
        let path = made?;
        // The image is here: that others cannot be removed is no reason to fail.
        let _ = self.prune(&path);
        Ok(path)
    }

    fn make_folder(&self) -> Result<(), ClosureDiskError> {
        let error = |source| ClosureDiskError::File { path: self.folder.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(error)?;
        let metadata = fs::symlink_metadata(&self.folder).map_err(error)?;
        let user = rustix::process::geteuid().as_raw();
        if cache_folder::openness(&metadata, user).is_some() {
            return Err(ClosureDiskError::NotPrivate { path: self.folder.clone(), user });
        }
        Ok(())
    }

    fn pack(&self, store_path: &StorePath) -> Result<PathBuf, ClosureDiskError> {
        let (new, path) = (self.path(store_path, NEW), self.path(store_path, IMAGE));
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| ClosureDiskError::File { path, source }
        };
        match fs::remove_file(&new) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(&new)(source)),
            _ => {}
        }
        let contents =
            requisites(&self.store, &store_path.path, &self.nix_store).map_err(error(&store_path.path))?;
        let mut command = Command::new(&self.packer);
        command.args(contents).arg(&new);
        // Each store path by its name, one or many; owners and times as in a store; the same input, the same image.
        command.args([
            "-keep-as-directory",
            "-noappend",
            "-no-progress",
            "-quiet",
            "-all-root",
            "-no-xattrs",
        ]);
        command.args(["-all-time", "1", "-mkfs-time", "1", "-comp", "zstd", "-Xcompression-level", "3"]);
        let packer_error = |reason| ClosureDiskError::Packer { program: self.packer.clone(), reason };
        let output = command.env_remove("SOURCE_DATE_EPOCH").stdin(Stdio::null()).output();
        let output = output.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                packer_error("it is not installed: the Debian package squashfs-tools has it".to_owned())
            }
            _ => packer_error(source.to_string()),
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            let said = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            return Err(packer_error(format!("{}: {said}", output.status)));
        }
        // What has the name is whole, even if the host crashes now.
        let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all());
        sync(&new).map_err(error(&new))?;
        fs::rename(&new, &path).map_err(error(&path))?;
        sync(&self.folder).map_err(error(&self.folder))?;
        Ok(path)
    }

    /// Removes the least recently used images but `keep` until the others have their share of the disk: at most half of
    /// what it could give; and what a crash has left.
    fn prune(&self, keep: &Path) -> Result<(), ClosureDiskError> {
        let error = |source| ClosureDiskError::File { path: self.folder.clone(), source };
        let (mut images, mut begun) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.folder).map_err(error)? {
            let path = entry.map_err(error)?.path();
            // Gone since.
            let Ok(metadata) = path.symlink_metadata() else { continue };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(IMAGE) => images.push((metadata.modified().map_err(error)?, metadata.len(), path)),
                Some(NEW) => begun.push(path),
                _ => {}
            }
        }
        for path in begun {
            // Who makes an image has its lock; of a crash the lock's file may be left.
            let lock_path = path.with_extension(LOCK);
            let lock = match lock::attempt_existing(&lock_path) {
                Ok(None) => continue,
                Ok(lock) => lock,
                Err(_) => None,
            };
            fs::remove_file(&path).map_err(error)?;
            if lock.is_some() {
                fs::remove_file(&lock_path).map_err(error)?;
            }
        }
        let mut held: u64 = images.iter().map(|(_, size, _)| size).sum();
        let allowed = cache_folder::allowed(&self.folder, self.limit, held).map_err(error)?;
        images.sort();
        for (_, size, path) in images {
            if held > allowed && path != keep {
                fs::remove_file(&path).map_err(error)?;
                held -= size;
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn with_packer(self, packer: impl Into<PathBuf>, limit: u64) -> Self {
        Self { packer: packer.into(), limit, nix_store: "/nonexistent/nix-store".into(), ..self }
    }
}
