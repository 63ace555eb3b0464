//! Writes initrds: cpio archives of the `newc` kind (Documentation/driver-api/early-userspace/buffer-format.rst
//! in Linux).
//!
//! An own writer because it needs no root for files owned by root, and the same input gives the same bytes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::Result;
use crate::error::At as _;

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;

/// An archive under construction. Paths are relative to its root, without a leading `/`.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: BTreeSet<String>,
}

impl Archive {
    /// Adds a directory, and those above it, unless they are there.
    pub fn directory(&mut self, path: &str) {
        if path.is_empty() || self.entries.contains(path) {
            return;
        }
        self.parents(path);
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, SYMLINK, target.as_bytes());
    }

    /// Adds a file of the given contents. `mode` is its permission bits.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.parents(path);
        self.entry(path, REGULAR | mode, contents);
    }

    /// Adds what `source` is on this machine: a file with its permissions, a link, or a folder with all that is
    /// in it.
    pub fn copy(&mut self, path: &str, source: &Path) -> Result<()> {
        let metadata = fs::symlink_metadata(source).at(source)?;
        if metadata.is_symlink() {
            let target = fs::read_link(source).at(source)?;
            self.link(path, &target.to_string_lossy());
        } else if metadata.is_dir() {
            self.directory(path);
            let mut names = Vec::new();
            for child in fs::read_dir(source).at(source)? {
                names.push(child.at(source)?.file_name());
            }
            names.sort();
            for name in names {
                self.copy(&format!("{path}/{}", name.to_string_lossy()), &source.join(&name))?;
            }
        } else {
            let contents = fs::read(source).at(source)?;
            self.file(path, metadata.permissions().mode() & 0o777, &contents);
        }
        Ok(())
    }

    /// The finished archive, padded so that another may follow it.
    pub fn finish(mut self) -> Vec<u8> {
        self.append("TRAILER!!!", 0, &[]);
        // The kernel looks for the next archive at a multiple of 4; 512 is what cpio itself writes.
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    /// The first of two entries for one path wins, as in the kernel the last would, silently.
    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        if self.entries.insert(path.to_owned()) {
            self.append(path, mode, contents);
        }
    }

    fn append(&mut self, name: &str, mode: u32, contents: &[u8]) {
        let inode = self.entries.len();
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let header = format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            0, // uid
            0, // gid
            0, // mtime
            contents.len(),
            0, // device major and minor
            0,
            0, // the node's own
            0,
            name.len() + 1,
            0, // checksum, unused
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn cpio_reads_back_what_was_written() {
        let mut archive = Archive::default();
        archive.file("usr/bin/tool", 0o755, b"#!/bin/sh\n");
        archive.link("bin", "usr/bin");
        archive.directory("usr");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);

        let mut cpio = Command::new("busybox")
            .args(["cpio", "-t", "-v"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = cpio.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = listing.lines().collect();
        assert_eq!(lines.len(), 4, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" usr"), "{listing}");
        assert!(lines[1].ends_with(" usr/bin"), "{listing}");
        assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].ends_with(" usr/bin/tool"), "{listing}");
        assert!(lines[3].ends_with(" bin -> usr/bin"), "{listing}");
    }

    #[test]
    fn the_first_of_two_entries_wins() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"first");
        let before = archive.bytes.len();
        archive.file("a", 0o644, b"second");
        assert_eq!(archive.bytes.len(), before);
    }
}
