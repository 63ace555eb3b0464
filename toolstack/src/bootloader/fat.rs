//! FAT12, FAT16 and FAT32, read-only (Microsoft, "FAT: General Overview of On-Disk Format", 1.03).
//!
//! An own reader, because the disk may be hostile: every number is checked before it is used, and a chain of clusters
//! has no more of them than the file system.

use super::volume::{Partition, number};
use std::io::{self, Write};
use std::path::{Component, Path};

const ENTRY_SIZE: usize = 32;
const ATTRIBUTE_VOLUME: u8 = 0x08;
const ATTRIBUTE_FOLDER: u8 = 0x10;
/// Read-only, hidden, system and volume at once: a part of a long name.
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;
/// Bytes of a folder, by the specification.
const FOLDER_LIMIT: usize = 65_536 * ENTRY_SIZE;
/// Names are in pieces of 13 characters.
const LONG_NAME_PIECES: usize = 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Bits12,
    Bits16,
    Bits32,
}

/// A file system.
pub(super) struct Fat {
    part: Partition,
    width: Width,
    /// In bytes.
    table: u64,
    cluster_size: u64,
    first_cluster: u64,
    clusters: u64,
    root: Start,
}

/// Where a folder or a file begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    /// FAT12 and FAT16 have the root folder before the clusters: first byte and length.
    Fixed(u64, u64),
    Cluster(u64),
}

/// An entry of a folder.
#[derive(Clone)]
struct Entry {
    name: String,
    short: String,
    is_folder: bool,
    cluster: u64,
    size: u64,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a damaged FAT file system: {what}"))
}

impl Fat {
    pub(super) fn open(part: Partition) -> io::Result<Self> {
        let sector = part.bytes(0, 512)?;
        let field = |at, size| number(&sector, at, size);
        let (sector_size, per_cluster) = (field(11, 2), field(13, 1));
        if ![512, 1024, 2048, 4096].contains(&sector_size) || !per_cluster.is_power_of_two() {
            return Err(damaged("sizes of sectors and clusters"));
        }
        let or = |short: u64, long: u64| if short == 0 { long } else { short };
        let (reserved, tables, root_entries) = (field(14, 2), field(16, 1), field(17, 2));
        let (sectors, table_sectors) = (or(field(19, 2), field(32, 4)), or(field(22, 2), field(36, 4)));
        // All are of at most 32 bits.
        let root_sectors = (root_entries * ENTRY_SIZE as u64).div_ceil(sector_size);
        let before = reserved + tables * table_sectors + root_sectors;
        let data_sectors = sectors.checked_sub(before).filter(|_| reserved > 0 && tables > 0);
        let clusters =
            data_sectors.ok_or_else(|| damaged("its tables are longer than itself"))? / per_cluster;
        let width = match clusters {
            ..4085 => Width::Bits12,
            4085..65_525 => Width::Bits16,
            _ => Width::Bits32,
        };
        let root = match width {
            Width::Bits32 => Start::Cluster(field(44, 4)),
            _ => Start::Fixed(
                (reserved + tables * table_sectors) * sector_size,
                root_entries * ENTRY_SIZE as u64,
            ),
        };
        Ok(Self {
            width,
            table: reserved * sector_size,
            cluster_size: per_cluster * sector_size,
            first_cluster: before * sector_size,
            clusters,
            root,
            part,
        })
    }

    /// The cluster behind one; `None` at the end of the chain.
    fn next(&self, cluster: u64) -> io::Result<Option<u64>> {
        let (at, size) = match self.width {
            Width::Bits12 => (cluster + cluster / 2, 2),
            Width::Bits16 => (cluster * 2, 2),
            Width::Bits32 => (cluster * 4, 4),
        };
        let value = number(&self.part.bytes(self.table + at, size)?, 0, size);
        let (value, end) = match self.width {
            Width::Bits12 if cluster % 2 == 1 => (value >> 4, 0xff8),
            Width::Bits12 => (value & 0xfff, 0xff8),
            Width::Bits16 => (value, 0xfff8),
            Width::Bits32 => (value & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((value < end).then_some(value))
    }

    /// Gives at most `limit` bytes to `sink`; an end of the chain before that ends them, too.
    fn read_from(&self, start: Start, limit: u64, sink: &mut dyn Write) -> io::Result<u64> {
        let piece = |at: u64, len: u64, sink: &mut dyn Write| {
            let len = usize::try_from(len).map_err(|_| damaged("a cluster"))?;
            sink.write_all(&self.part.bytes(at, len)?)
        };
        let mut cluster = match start {
            Start::Fixed(at, len) => {
                let len = len.min(limit);
                piece(at, len, sink)?;
                return Ok(len);
            }
            Start::Cluster(cluster) => cluster,
        };
        let (mut given, mut steps) = (0, 0);
        while given < limit {
            let index = cluster.checked_sub(2).filter(|index| *index < self.clusters);
            let index = index.ok_or_else(|| damaged("a chain leads to no cluster"))?;
            steps += 1;
            if steps > self.clusters {
                return Err(damaged("a chain leads round in a circle"));
            }
            let len = self.cluster_size.min(limit - given);
            piece(self.first_cluster + index * self.cluster_size, len, sink)?;
            given += len;
            match self.next(cluster)? {
                Some(next) => cluster = next,
                None => break,
            }
        }
        Ok(given)
    }

    fn folder(&self, start: Start) -> io::Result<Vec<Entry>> {
        let mut bytes = Vec::new();
        self.read_from(start, FOLDER_LIMIT as u64, &mut bytes)?;
        let mut entries = Vec::new();
        let mut long: Vec<u16> = Vec::new();
        for entry in bytes.chunks_exact(ENTRY_SIZE) {
            match (entry[0], entry[11]) {
                (0, _) => break,
                // Removed.
                (0xe5, _) => long.clear(),
                (order, attributes) if attributes & 0x3f == ATTRIBUTE_LONG_NAME => {
                    // The last piece comes first.
                    if order & 0x40 != 0 || long.len() >= LONG_NAME_PIECES * 13 {
                        long.clear();
                    }
                    let units = [1..11, 14..26, 28..32].map(|range| &entry[range]).concat();
                    let units = units.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
                    long.splice(0..0, units.take_while(|unit| ![0, 0xffff].contains(unit)));
                }
                (_, attributes) if attributes & ATTRIBUTE_VOLUME != 0 => long.clear(),
                (_, attributes) => {
                    let short = short_name(entry);
                    let name = if long.is_empty() { short.clone() } else { String::from_utf16_lossy(&long) };
                    long.clear();
                    entries.push(Entry {
                        name,
                        short,
                        is_folder: attributes & ATTRIBUTE_FOLDER != 0,
                        cluster: number(entry, 26, 2) | number(entry, 20, 2) << 16,
                        size: number(entry, 28, 4),
                    });
                }
            }
        }
        Ok(entries)
    }

    /// The entry of a path from the root; `None` for the root itself.
    fn find(&self, path: &Path) -> io::Result<Option<Entry>> {
        let mut found: Option<Entry> = None;
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let name = name.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
            let start = match &found {
                None => self.root,
                Some(entry) => entry.start()?,
            };
            let is_it = |entry: &Entry| {
                let same = |other: &str| other.to_lowercase() == name.to_lowercase();
                same(&entry.name) || same(&entry.short)
            };
            let entry = self.folder(start)?.into_iter().find(is_it);
            found = Some(entry.ok_or(io::ErrorKind::NotFound)?);
        }
        Ok(found)
    }

    /// The names in a folder.
    pub(super) fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let start = self.find(folder)?.map_or(Ok(self.root), |entry| entry.start())?;
        Ok(self.folder(start)?.into_iter().map(|entry| entry.name).collect())
    }

    /// Gives all of a file to `sink`.
    pub(super) fn read(&self, path: &Path, sink: &mut dyn Write) -> io::Result<u64> {
        let entry = self.find(path)?.filter(|entry| !entry.is_folder).ok_or(io::ErrorKind::IsADirectory)?;
        if entry.size == 0 {
            return Ok(0);
        }
        let given = self.read_from(Start::Cluster(entry.cluster), entry.size, sink)?;
        if given < entry.size { Err(damaged("a file is shorter than it says")) } else { Ok(given) }
    }
}

impl Entry {
    fn start(&self) -> io::Result<Start> {
        if self.is_folder {
            Ok(Start::Cluster(self.cluster))
        } else {
            Err(io::ErrorKind::NotADirectory.into())
        }
    }
}

/// `NAME.EXT` of eight and three characters. Those that are no ASCII are of a code page that nobody knows.
fn short_name(entry: &[u8]) -> String {
    let text = |bytes: &[u8], lower: bool| {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let text = text.trim_end().to_owned();
        if lower { text.to_ascii_lowercase() } else { text }
    };
    // Windows NT's way to keep a short name's case.
    let (name, extension) =
        (text(&entry[..8], entry[12] & 0x08 != 0), text(&entry[8..11], entry[12] & 0x10 != 0));
    if extension.is_empty() { name } else { format!("{name}.{extension}") }
}
