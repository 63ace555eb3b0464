//! A file as a slice of bytes, without a copy.
#![allow(unsafe_code, reason = "mmap")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A kernel or initrd, mapped read-only.
///
/// Whoever can shorten or rewrite the file while it is mapped can end this process (SIGBUS behind the new end) or mix
/// old bytes with new ones. That is accepted, as other builders do: the files are those of dom0's administrator, store
/// paths never change, and package managers replace a file by renaming a new one over it, which leaves the mapped one
/// as it was. What such a rewrite does to the bytes is found by the same checks that find a damaged file.
#[derive(Debug)]
pub struct MappedFile {
    map: memmap2::Mmap,
    file: File,
}

impl MappedFile {
    /// Maps a regular file.
    ///
    /// # Errors
    /// Those of opening and mapping; [`io::ErrorKind::InvalidInput`] for what is no regular file or is empty.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Before it is opened: opening a pipe would wait for its writer.
        let metadata = std::fs::metadata(path)?;
        let refused = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if !metadata.is_file() {
            return refused("not a regular file");
        }
        if metadata.len() == 0 {
            return refused("the file is empty");
        }
        Self::map(&File::open(path)?)
    }

    /// Maps an open file, which has at least one byte.
    ///
    /// # Errors
    /// Those of mapping.
    pub(crate) fn map(file: &File) -> io::Result<Self> {
        // SAFETY: a private read-only mapping of a regular file. Nothing in this process writes to the file; that others
        // might is the risk described above: bytes are only ever parsed, by code for which every value is valid input.
        let map = unsafe { memmap2::MmapOptions::new().map_copy_read_only(file) }?;
        // Read-ahead; a kernel that cannot do it is no reason to fail.
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(Self { map, file: file.try_clone()? })
    }

    /// Reads `part`, which is a part of this mapping, from the file.
    ///
    /// # Errors
    /// Those of reading; [`io::ErrorKind::InvalidInput`] for bytes that are none of this file's, or `into` has another
    /// length.
    pub(crate) fn read(&self, part: &[u8], into: &mut [u8]) -> io::Result<()> {
        let offset = (part.as_ptr() as usize).checked_sub(self.map.as_ptr() as usize);
        match offset {
            Some(offset) if offset + part.len() <= self.map.len() && part.len() == into.len() => {
                self.file.read_exact_at(into, offset as u64)
            }
            _ if part.is_empty() && into.is_empty() => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "bytes of another file")),
        }
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_kernel_is_refused() {
        let folder = std::env::temp_dir().join(format!("toolstack-mapped-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("file");
        std::fs::write(&path, b"bytes").unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), b"bytes");
        let file = MappedFile::open(&path).unwrap();
        let mut read = [0; 3];
        file.read(&file[1..4], &mut read).unwrap();
        assert_eq!(&read, b"yte");
        for (part, len) in [(&b"yte"[..], 3), (&file[..4], 3)] {
            let error = file.read(part, &mut read[..len]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        std::fs::write(&path, b"").unwrap();
        assert_eq!(MappedFile::open(&path).unwrap_err().to_string(), "the file is empty");
        assert_eq!(MappedFile::open(&folder).unwrap_err().to_string(), "not a regular file");
        assert_eq!(MappedFile::open(&folder.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
