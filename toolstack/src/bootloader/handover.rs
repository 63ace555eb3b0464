//! What libxl is given: copies of kernel and initrd in its folder, and a text that names them.
//!
//! libxl maps both files and unlinks them (`parse_bootloader_result` in libxl_bootloader.c): none may be a file that
//! anybody still needs.

use super::BootloaderError;
use super::volume::FILE_LIMIT;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The longest item that libxl takes, in bytes; it drops a longer one, and goes on without (`PATH_MAX * 2`, and a NUL).
const ITEM_LIMIT: usize = 8191;

/// How the text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// An item a line.
    #[default]
    Simple,
    /// NUL behind each item: what libxl asks for.
    Simple0,
}

/// Files in libxl's folder that go with this value unless they are handed over.
#[derive(Debug)]
pub struct Handover {
    folder: PathBuf,
    /// Those that nothing was copied to yet.
    empty: Vec<Copy>,
    kept: bool,
}

/// A file that is being copied to, of at most [`FILE_LIMIT`] bytes: a hostile file system can make any number of zeros.
#[derive(Debug)]
pub(super) struct Copy {
    file: File,
    path: PathBuf,
    left: u64,
}

impl Copy {
    pub(super) fn path(self) -> PathBuf {
        self.path
    }

    /// All that a file of this host has. Where both are on one file system that can share blocks, they do.
    pub(super) fn take_file(&mut self, file: &mut File) -> io::Result<()> {
        let len = file.metadata()?.len();
        self.left = self.left.checked_sub(len).ok_or(io::ErrorKind::FileTooLarge)?;
        io::copy(&mut file.take(len), &mut self.file).map(drop)
    }
}

impl Write for Copy {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let written = self.file.write(part)?;
        self.left = self.left.checked_sub(written as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The names of the files, before a dot.
const NAMES: [&str; 2] = ["kernel", "ramdisk"];

impl Handover {
    /// Makes two empty files in `folder`, which must be there: whoever gives up the right to do so keeps the files.
    ///
    /// # Errors
    /// [`BootloaderError::Write`]
    pub fn new(folder: &Path) -> Result<Self, BootloaderError> {
        let mut handover = Self { folder: folder.to_owned(), empty: Vec::new(), kept: false };
        for name in NAMES {
            let path = handover.path(name);
            // Of a process of that number that was killed; libxl's folder is its own.
            let _ = fs::remove_file(&path);
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let file = file.map_err(|source| BootloaderError::Write { path: path.clone(), source })?;
            handover.empty.push(Copy { file, path, left: FILE_LIMIT });
        }
        Ok(handover)
    }

    /// Where the copy is made; `name` is `kernel` or `ramdisk`.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.{}", std::process::id()))
    }

    /// The empty file of that name, which is there once.
    pub(super) fn begin(&mut self, name: &'static str) -> Result<Copy, BootloaderError> {
        let path = self.path(name);
        let at = self.empty.iter().position(|copy| copy.path == path);
        let at =
            at.ok_or_else(|| BootloaderError::Write { path, source: io::ErrorKind::AlreadyExists.into() })?;
        Ok(self.empty.swap_remove(at))
    }

    /// The copies are libxl's from now on; what nothing was copied to goes.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        for name in NAMES {
            let path = self.path(name);
            if !self.kept || self.empty.iter().any(|copy| copy.path == path) {
                // Why they are not handed over is what there is to report; and libxl removes what is in its folder.
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// What libxl is to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    /// The kernel's copy.
    pub kernel: PathBuf,
    /// The initrd's, if it has one.
    pub ramdisk: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
}

impl Copies {
    /// The text that names them.
    ///
    /// # Errors
    /// [`BootloaderError::Item`] for what libxl could not read.
    pub fn to_bytes(&self, format: Format) -> Result<Vec<u8>, BootloaderError> {
        let end = match format {
            Format::Simple => '\n',
            Format::Simple0 => '\0',
        };
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let ramdisk = self.ramdisk.as_deref().map(path);
        let items = [
            ("kernel", Some(path(&self.kernel))),
            ("ramdisk", ramdisk),
            ("args", Some(self.cmdline.clone())),
        ];
        let mut text = String::new();
        for (what, value) in items {
            let Some(value) = value.filter(|value| !value.is_empty()) else { continue };
            let item = format!("{what} {value}");
            if item.len() > ITEM_LIMIT || item.contains(end) {
                return Err(BootloaderError::Item { what, len: item.len(), limit: ITEM_LIMIT });
            }
            text.push_str(&item);
            text.push(end);
        }
        // One empty item ends them.
        text.push(end);
        Ok(text.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_pygrubs() {
        let copies =
            Copies { kernel: "/d/kernel.1".into(), ramdisk: Some("/d/r".into()), cmdline: "a b".into() };
        assert_eq!(
            copies.to_bytes(Format::Simple0).unwrap(),
            b"kernel /d/kernel.1\0ramdisk /d/r\0args a b\0\0"
        );
        assert_eq!(
            copies.to_bytes(Format::Simple).unwrap(),
            b"kernel /d/kernel.1\nramdisk /d/r\nargs a b\n\n"
        );
        let least = Copies { ramdisk: None, cmdline: String::new(), ..copies.clone() };
        assert_eq!(least.to_bytes(Format::Simple0).unwrap(), b"kernel /d/kernel.1\0\0");
        for cmdline in ["a\0b".to_owned(), "a".repeat(ITEM_LIMIT)] {
            let error = Copies { cmdline, ..copies.clone() }.to_bytes(Format::Simple0).unwrap_err();
            assert!(matches!(error, BootloaderError::Item { what: "args", .. }), "{error}");
        }
    }

    #[test]
    fn copies_go_unless_they_are_handed_over() {
        let folder = tempfile::tempdir().unwrap();
        let count = || fs::read_dir(folder.path()).unwrap().count();
        let mut handover = Handover::new(folder.path()).unwrap();
        handover.begin("kernel").unwrap().write_all(b"k").unwrap();
        assert_eq!(count(), 2);
        drop(handover);
        assert_eq!(count(), 0);
        let mut handover = Handover::new(folder.path()).unwrap();
        let path = handover.begin("kernel").unwrap().path();
        handover.keep();
        assert!(path.exists());
        assert_eq!(count(), 1, "there is no initrd");
    }
}
