//! The metadata of an erofs file system (fs/erofs/erofs_fs.h of Linux): superblock, inodes and directories.
//!
//! The data of files follow behind it, uncompressed, each file in blocks of its own from a block that the caller names. So
//! the metadata is all that differs between two images that have a store path in common, and what is in a file's blocks
//! does not depend on where they are.
//!
//! There is one way to write a tree down: inodes breadth first, names in the order of their bytes, all owned by root, all
//! times 1, as in a Nix store. What it says of the tree are names, sizes, links, and who may be run.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Bytes of a block (`EROFS_BLKSIZ`): what kernels before 6.4 take.
pub(super) const BLOCK: u64 = 4096;
const BLOCK_BITS: u8 = 12;
/// `EROFS_SUPER_OFFSET`
const SUPERBLOCK: usize = 1024;
/// `sizeof(struct erofs_super_block)`
const SUPERBLOCK_LEN: usize = 128;
/// `EROFS_SUPER_MAGIC_V1`
const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`
const CHECKSUM_FEATURE: u32 = 1;
/// Where the inodes begin; an inode's number counts slots of that many bytes from there (`EROFS_ISLOTBITS`).
const SLOT: u64 = 32;
/// `sizeof(struct erofs_inode_compact)` and `sizeof(struct erofs_inode_extended)`
const COMPACT: u64 = 32;
const EXTENDED: u64 = 64;
/// `sizeof(struct erofs_dirent)`
const DIRENT: usize = 12;
/// `EROFS_INODE_FLAT_PLAIN` and `EROFS_INODE_FLAT_INLINE`
const PLAIN: u16 = 0;
const INLINE: u16 = 2;
/// Seconds since 1970 of all times, as Nix sets them.
const TIME: u64 = 1;
/// What the image says it is; blkid shows it as the label.
const LABEL: &[u8; 16] = b"nix-store\0\0\0\0\0\0\0";
/// Offsets in the superblock of what is known last.
const CHECKSUM_AT: usize = SUPERBLOCK + 4;
const UUID_AT: usize = SUPERBLOCK + 48;

/// Something in a store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// Its entries, by name in the order of bytes.
    Directory(Vec<(Box<OsStr>, Node)>),
    File {
        /// In bytes.
        size: u64,
        executable: bool,
        /// Its number among the files of the store path that are not empty.
        number: Option<usize>,
    },
    /// Where to.
    Link(Box<OsStr>),
}

/// A store path in the image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Root<'a> {
    pub(super) name: &'a OsStr,
    pub(super) node: &'a Node,
    /// The block where its data begin, counted from the end of the metadata.
    pub(super) base: u64,
    /// Of each file that is not empty, by number, its first block, counted from the base.
    pub(super) blocks: &'a [u64],
}

/// An image cannot be written down, since it would have more blocks than an erofs file system can, 16 TiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLarge;

struct Inode<'a> {
    node: &'a Node,
    root: Option<Root<'a>>,
    parent: usize,
    /// Of a directory, the inode of the first entry: the others follow.
    first: usize,
    /// In bytes: of a directory, of what is written for it.
    size: u64,
    /// Where the inode is, in bytes.
    at: u64,
    /// The block where its metadata are that do not fit behind the inode.
    block: u64,
}

/// The metadata of the file system whose root directory has these store paths, in the order of their names, and whose data
/// are `data_blocks`. `identify` makes the UUID of metadata that have none yet.
pub(super) fn metadata(
    roots: &[Root<'_>],
    data_blocks: u64,
    identify: impl FnOnce(&[u8]) -> [u8; 16],
) -> Result<Vec<u8>, TooLarge> {
    let top = Node::Directory(Vec::new());
    let mut inodes = vec![Inode::new(&top, None, 0)];
    inodes[0].first = 1;
    inodes.extend(roots.iter().map(|root| Inode::new(root.node, Some(*root), 0)));
    let mut at = 1;
    while at < inodes.len() {
        if let Node::Directory(entries) = inodes[at].node {
            let (first, root) = (inodes.len(), inodes[at].root);
            inodes[at].first = first;
            inodes.extend(entries.iter().map(|(_, node)| Inode::new(node, root, at)));
        }
        at += 1;
    }

    let directories: Vec<Option<Directory<'_>>> =
        (0..inodes.len()).map(|inode| Directory::of(&inodes, roots, inode)).collect();
    for (inode, directory) in inodes.iter_mut().zip(&directories) {
        inode.size = match (inode.node, directory) {
            (Node::File { size, .. }, _) => *size,
            (Node::Link(target), _) => target.len() as u64,
            (Node::Directory(_), directory) => directory.as_ref().map_or(0, Directory::size),
        };
    }

    let mut end = (SUPERBLOCK + SUPERBLOCK_LEN) as u64;
    for (inode, directory) in inodes.iter_mut().zip(&directories) {
        let len = inode.len(directory.as_ref()) + inode.tail();
        // An inode and what stands behind it are in one block.
        if end % BLOCK + len > BLOCK {
            end = end.next_multiple_of(BLOCK);
        }
        inode.at = end;
        end = (end + len).next_multiple_of(SLOT);
    }
    let mut blocks = end.div_ceil(BLOCK);
    for inode in &mut inodes {
        inode.block = blocks;
        blocks += inode.own_blocks();
    }

    let all = blocks + data_blocks;
    let mut bytes = vec![0; usize::try_from(blocks * BLOCK).map_err(|_| TooLarge)?];
    for (number, inode) in inodes.iter().enumerate() {
        inode.write(&mut bytes, number, &inodes, directories[number].as_ref(), blocks)?;
    }
    let mut superblock = Writer { bytes: &mut bytes, at: SUPERBLOCK };
    superblock.u32(MAGIC).u32(0).u32(CHECKSUM_FEATURE);
    superblock.u8(BLOCK_BITS).u8(0).u16((inodes[0].at / SLOT) as u16);
    superblock.u64(inodes.len() as u64).u64(TIME).u32(0);
    superblock.u32(u32::try_from(all).map_err(|_| TooLarge)?).u32(0).u32(0);
    superblock.slice(&[0; 16]).slice(LABEL);

    let uuid = identify(&bytes);
    bytes[UUID_AT..UUID_AT + 16].copy_from_slice(&uuid);
    let checksum = crc32c(&bytes[SUPERBLOCK..BLOCK as usize]);
    bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

impl<'a> Inode<'a> {
    fn new(node: &'a Node, root: Option<Root<'a>>, parent: usize) -> Self {
        Self { node, root, parent, first: 0, size: 0, at: 0, block: 0 }
    }

    /// Bytes of the inode itself: the small one lacks room for large sizes and many links.
    fn len(&self, directory: Option<&Directory<'_>>) -> u64 {
        let many_links = directory.is_some_and(|directory| directory.links > u32::from(u16::MAX));
        if many_links || u32::try_from(self.size).is_err() { EXTENDED } else { COMPACT }
    }

    /// Bytes that stand behind the inode: what does not fill a block, if there is room for it in the inode's.
    fn tail(&self) -> u64 {
        let tail = self.size % BLOCK;
        // That the inode may be the large one keeps it simple: a file has no tail, and no directory is that large.
        if self.is_file() || tail + EXTENDED > BLOCK { 0 } else { tail }
    }

    /// Blocks of metadata that do not stand behind the inode.
    fn own_blocks(&self) -> u64 {
        if self.is_file() { 0 } else { (self.size - self.tail()).div_ceil(BLOCK) }
    }

    fn is_file(&self) -> bool {
        matches!(self.node, Node::File { .. })
    }

    /// `enum` of erofs_fs.h: EROFS_FT_REG_FILE, EROFS_FT_DIR, EROFS_FT_SYMLINK
    fn file_type(&self) -> u8 {
        match self.node {
            Node::File { .. } => 1,
            Node::Directory(_) => 2,
            Node::Link(_) => 7,
        }
    }

    /// `st_mode` as in a Nix store.
    fn mode(&self) -> u16 {
        match self.node {
            Node::File { executable: false, .. } => 0o100_444,
            Node::File { executable: true, .. } => 0o100_555,
            Node::Directory(_) => 0o040_555,
            Node::Link(_) => 0o120_777,
        }
    }

    fn write(
        &self,
        bytes: &mut [u8],
        number: usize,
        inodes: &[Inode<'_>],
        directory: Option<&Directory<'_>>,
        data: u64,
    ) -> Result<(), TooLarge> {
        let block = match (self.node, &self.root) {
            (Node::File { number: Some(number), .. }, Some(root)) => {
                data + root.base + root.blocks.get(*number).copied().unwrap_or_default()
            }
            (Node::File { .. }, _) => 0,
            _ => self.block,
        };
        let block = u32::try_from(block).map_err(|_| TooLarge)?;
        let ino = u32::try_from(number + 1).map_err(|_| TooLarge)?;
        let links = directory.map_or(1, |directory| directory.links);
        let len = self.len(directory);
        let layout = if self.tail() > 0 { INLINE } else { PLAIN };
        let format = layout << 1 | u16::from(len == EXTENDED);

        let mut inode = Writer { bytes, at: self.at as usize };
        inode.u16(format).u16(0).u16(self.mode());
        if len == COMPACT {
            inode.u16(links as u16).u32(self.size as u32).u32(0).u32(block).u32(ino);
        } else {
            inode.u16(0).u64(self.size).u32(block).u32(ino).u32(0).u32(0).u64(TIME).u32(0).u32(links);
        }

        let contents = match self.node {
            Node::File { .. } => return Ok(()),
            Node::Link(target) => target.as_bytes().to_vec(),
            Node::Directory(_) => directory.map(|directory| directory.bytes(inodes)).unwrap_or_default(),
        };
        let (whole, tail) = contents.split_at(contents.len() - self.tail() as usize);
        Writer { bytes, at: (self.block * BLOCK) as usize }.slice(whole);
        Writer { bytes, at: (self.at + len) as usize }.slice(tail);
        Ok(())
    }
}

/// A directory as it is written: blocks that each begin with the entries whose names are in it.
struct Directory<'a> {
    blocks: Vec<Vec<(&'a [u8], usize)>>,
    links: u32,
}

impl<'a> Directory<'a> {
    fn of(inodes: &[Inode<'a>], roots: &[Root<'a>], inode: usize) -> Option<Self> {
        let Node::Directory(entries) = inodes[inode].node else { return None };
        let first = inodes[inode].first;
        let names: Vec<&[u8]> = match inode {
            0 => roots.iter().map(|root| root.name.as_bytes()).collect(),
            _ => entries.iter().map(|(name, _)| name.as_bytes()).collect(),
        };
        let mut all: Vec<(&[u8], usize)> = names.into_iter().zip(first..).collect();
        let directories =
            all.iter().filter(|(_, entry)| matches!(inodes[*entry].node, Node::Directory(_))).count();
        all.extend([(&b"."[..], inode), (&b".."[..], inodes[inode].parent)]);
        // The kernel searches by halves.
        all.sort_unstable();

        let mut blocks: Vec<Vec<(&[u8], usize)>> = Vec::new();
        let mut room = 0;
        for entry in all {
            let len = DIRENT + entry.0.len();
            match blocks.last_mut() {
                Some(block) if len <= room => block.push(entry),
                _ => {
                    blocks.push(vec![entry]);
                    room = BLOCK as usize;
                }
            }
            room -= len;
        }
        // What nobody can have on a disk, st_nlink need not count.
        Some(Self { blocks, links: u32::try_from(directories + 2).unwrap_or(u32::MAX) })
    }

    fn size(&self) -> u64 {
        let last: usize = self.blocks.last().into_iter().flatten().map(|(name, _)| DIRENT + name.len()).sum();
        (self.blocks.len() as u64 - 1) * BLOCK + last as u64
    }

    fn bytes(&self, inodes: &[Inode<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for block in &self.blocks {
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
            let mut name_at = DIRENT * block.len();
            for (name, entry) in block {
                let entry = &inodes[*entry];
                bytes.extend_from_slice(&(entry.at / SLOT).to_le_bytes());
                bytes.extend_from_slice(&(name_at as u16).to_le_bytes());
                bytes.extend_from_slice(&[entry.file_type(), 0]);
                name_at += name.len();
            }
            block.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
        }
        bytes
    }
}

/// Writes numbers, low byte first, one behind the other.
struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn slice(&mut self, slice: &[u8]) -> &mut Self {
        self.bytes[self.at..self.at + slice.len()].copy_from_slice(slice);
        self.at += slice.len();
        self
    }
    fn u8(&mut self, value: u8) -> &mut Self {
        self.slice(&[value])
    }
    fn u16(&mut self, value: u16) -> &mut Self {
        self.slice(&value.to_le_bytes())
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.slice(&value.to_le_bytes())
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.slice(&value.to_le_bytes())
    }
}

/// CRC-32C as the kernel's `crc32c(~0, …)` has it: without the inversion at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (POLYNOMIAL & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        // B.4: 32 bytes of zeros, and 32 of ones.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn more_than_16_tib_are_refused() {
        assert_eq!(metadata(&[], u64::from(u32::MAX), |_| [0; 16]), Err(TooLarge));
        let bytes = metadata(&[], u64::from(u32::MAX) - 1, |_| [7; 16]).unwrap();
        assert_eq!(bytes.len() as u64, BLOCK);
        assert_eq!(bytes[UUID_AT..UUID_AT + 16], [7; 16]);
    }
}
