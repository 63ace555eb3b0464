//! The file systems of a disk image: where they begin, and files of those that can be read, which are ext2, ext3, ext4
//! and FAT.
//!
//! The image is a qube's, and may have been made by its enemy: it is read, never written, never mounted; whatever its
//! structures say, no more than [`READ_LIMIT`] bytes are read of it, which also ends what leads round in a circle.

use ext4_view::{Ext4, Ext4Read};
use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

/// Bytes that are read of an image in all.
const READ_LIMIT: u64 = 4 << 30;
/// Bytes of a file that is kept in memory: a unified kernel image with kernel and initrd.
pub(super) const FILE_LIMIT: u64 = 1 << 30;
/// Partitions of a table; a usual GPT has room for 128.
const PARTITION_LIMIT: u32 = 1024;
/// Names in a folder of a boot partition.
const NAME_LIMIT: usize = 10_000;

/// The bytes of one partition.
#[derive(Clone)]
struct Partition {
    file: Rc<File>,
    start: u64,
    len: u64,
    at: u64,
    budget: Rc<Cell<u64>>,
}

impl Partition {
    fn spend(&self, bytes: usize) -> io::Result<()> {
        let left = self.budget.get().checked_sub(bytes as u64);
        let left = left.ok_or_else(|| io::Error::other("the file system leads round in a circle"))?;
        self.budget.set(left);
        Ok(())
    }

    /// Bytes from `at` of the partition; what is behind its end is not there.
    fn bytes(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_whole(at, &mut bytes)?;
        Ok(bytes)
    }

    fn read_whole(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(into.len() as u64).filter(|end| *end <= self.len);
        if end.is_none() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.spend(into.len())?;
        self.file.read_exact_at(into, self.start + at)
    }
}

impl Ext4Read for Partition {
    fn read(
        &mut self,
        start_byte: u64,
        into: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.read_whole(start_byte, into)?)
    }
}

impl Read for Partition {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = into.len().min(left);
        self.spend(len)?;
        let read = self.file.read_at(&mut into[..len], self.start + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Partition {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Demanded by fatfs, which writes nothing when nothing is written to its files.
impl Write for Partition {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum FileSystem {
    Ext(Ext4),
    Fat(Box<fatfs::FileSystem<Partition>>),
}

/// A file system of a disk image.
pub(super) struct Volume {
    name: String,
    /// Or why it cannot be read.
    files: Result<FileSystem, String>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Volume({})", self.name)
    }
}

/// All of them, in the order of the partition table; the image itself where it has none.
pub(super) fn volumes(mut file: File) -> io::Result<Vec<Volume>> {
    // Of a block device, too.
    let len = file.seek(SeekFrom::End(0))?;
    let budget = Rc::new(Cell::new(READ_LIMIT));
    let whole = Partition { file: Rc::new(file), start: 0, len, at: 0, budget };
    let partitions = match gpt(&whole) {
        Some(partitions) => partitions,
        None if kind(&whole).is_some() => return Ok(vec![Volume::open("the image".to_owned(), whole)]),
        None => mbr(&whole).unwrap_or_default(),
    };
    let volumes = partitions.into_iter().map(|(number, start, len)| {
        let part = Partition { start, len: len.min(whole.len.saturating_sub(start)), ..whole.clone() };
        Volume::open(format!("partition {number}"), part)
    });
    Ok(volumes.collect())
}

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let bytes = bytes.get(at..at + size).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The partitions (number, first byte, bytes) of a GUID partition table (UEFI specification, 5.3), of sectors of either
/// size.
fn gpt(image: &Partition) -> Option<Vec<(u32, u64, u64)>> {
    [512, 4096].into_iter().find_map(|sector: u64| {
        let header = image.bytes(sector, 92).ok()?;
        if !header.starts_with(b"EFI PART") {
            return None;
        }
        let (table, count, size) = (number(&header, 72, 8), number(&header, 80, 4), number(&header, 84, 4));
        let (size, table) = (usize::try_from(size).ok()?, table.checked_mul(sector)?);
        let count = u32::try_from(count).ok()?.min(PARTITION_LIMIT);
        if !(128..=4096).contains(&size) {
            return None;
        }
        let mut partitions = Vec::new();
        for index in 0..count {
            let Ok(entry) = image.bytes(table.checked_add(u64::from(index) * size as u64)?, size) else {
                break;
            };
            let (first, last) = (number(&entry, 32, 8), number(&entry, 40, 8));
            // An entry whose type is all zeros is none.
            if entry[..16].iter().all(|byte| *byte == 0) || last < first {
                continue;
            }
            let len = (last - first).checked_add(1).and_then(|sectors| sectors.checked_mul(sector));
            if let (Some(start), Some(len)) = (first.checked_mul(sector), len) {
                partitions.push((index + 1, start, len));
            }
        }
        Some(partitions)
    })
}

/// The primary partitions of a master boot record.
fn mbr(image: &Partition) -> Option<Vec<(u32, u64, u64)>> {
    let record = image.bytes(0, 512).ok()?;
    if number(&record, 510, 2) != 0xaa55 {
        return None;
    }
    let entry = |index: u32| {
        let at = 446 + 16 * index as usize;
        let (start, sectors) = (number(&record, at + 8, 4), number(&record, at + 12, 4));
        (record[at + 4] != 0 && sectors > 0).then_some((index + 1, start * 512, sectors * 512))
    };
    Some((0..4).filter_map(entry).collect())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ext,
    Fat,
}

/// By the magic numbers: ext's superblock has one, and a FAT's boot sector says its name in one of two places.
fn kind(part: &Partition) -> Option<Kind> {
    if part.bytes(1024, 1024).is_ok_and(|superblock| number(&superblock, 56, 2) == 0xef53) {
        return Some(Kind::Ext);
    }
    let sector = part.bytes(0, 512).ok()?;
    let fat = sector[54..].starts_with(b"FAT1") || sector[82..].starts_with(b"FAT32");
    (fat && number(&sector, 510, 2) == 0xaa55).then_some(Kind::Fat)
}

/// A path below the file system's root, without links back; `None` for what leads out of it.
pub(super) fn inside(path: &Path) -> Option<PathBuf> {
    let mut inside = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::ParentDir if !inside.pop() => return None,
            _ => {}
        }
    }
    Some(inside)
}

impl Volume {
    fn open(name: String, part: Partition) -> Self {
        let files = match kind(&part) {
            Some(Kind::Ext) => {
                Ext4::load(Box::new(part)).map(FileSystem::Ext).map_err(|error| error.to_string())
            }
            Some(Kind::Fat) => fatfs::FileSystem::new(part, fatfs::FsOptions::new())
                .map(|fat| FileSystem::Fat(Box::new(fat)))
                .map_err(|error| error.to_string()),
            None => Err("neither ext2, ext3 or ext4 nor FAT".to_owned()),
        };
        Self { name, files }
    }

    /// Where it is, and why it cannot be read if that is so.
    pub(super) fn describe(&self) -> String {
        match &self.files {
            Ok(FileSystem::Ext(_)) => format!("{}: ext", self.name),
            Ok(FileSystem::Fat(_)) => format!("{}: FAT", self.name),
            Err(why) => format!("{}: {why}", self.name),
        }
    }

    fn files(&self) -> io::Result<&FileSystem> {
        self.files.as_ref().map_err(|why| io::Error::other(why.clone()))
    }

    /// The names of the files in a folder; none when there is no such folder.
    pub(super) fn names(&self, folder: &Path) -> Vec<String> {
        let Ok(files) = self.files() else { return Vec::new() };
        let mut names: Vec<String> = match files {
            FileSystem::Ext(ext) => {
                let Some(entries) = folder.to_str().and_then(|folder| ext.read_dir(folder).ok()) else {
                    return Vec::new();
                };
                entries
                    .map_while(Result::ok)
                    .take(NAME_LIMIT)
                    .filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned))
                    .collect()
            }
            FileSystem::Fat(fat) => {
                let Some(folder) = fat_path(folder).and_then(|folder| fat.root_dir().open_dir(&folder).ok())
                else {
                    return Vec::new();
                };
                folder.iter().map_while(Result::ok).take(NAME_LIMIT).map(|entry| entry.file_name()).collect()
            }
        };
        names.sort();
        names
    }

    /// Gives all of a file to `sink`, which has it in pieces.
    pub(super) fn read(&self, path: &Path, sink: &mut dyn Write) -> io::Result<u64> {
        match self.files()? {
            FileSystem::Ext(ext) => {
                let path = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
                let mut file = ext.open(path).map_err(io::Error::other)?;
                io::copy(&mut file, sink)
            }
            FileSystem::Fat(fat) => {
                let path = fat_path(path).ok_or(io::ErrorKind::InvalidFilename)?;
                let mut file = fat.root_dir().open_file(&path)?;
                io::copy(&mut file, sink)
            }
        }
    }

    /// A file that is read as a whole, of at most `limit` bytes.
    pub(super) fn bytes(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Bounded { bytes: Vec::new(), limit };
        self.read(path, &mut bytes)?;
        Ok(bytes.bytes)
    }
}

/// fatfs wants paths from the root, without a slash in front.
fn fat_path(path: &Path) -> Option<String> {
    Some(path.to_str()?.trim_start_matches('/').to_owned())
}

struct Bounded {
    bytes: Vec<u8>,
    limit: u64,
}

impl Write for Bounded {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + part.len()) as u64 > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
