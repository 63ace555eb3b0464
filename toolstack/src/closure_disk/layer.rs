//! Layers: files of this host that hold the data of store paths, each store path's once.
//!
//! What a store path brings to an image is its segment: its files one behind the other, each from a block on, in the order
//! of their names, and files of the same contents once. A segment is the same in every image and on every host. A layer is
//! a file with the segments that no layer had when it was made, so that an image is its metadata and parts of layers. It is
//! known by its contents, and never changes.

use super::ClosureDiskError;
use super::erofs::BLOCK;
use super::tree::{self, Tree};
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are read at a time.
const CHUNK: usize = 256 << 10;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Where a segment is in its layer, and what is where in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Segment {
    /// The store path's name.
    pub(super) name: String,
    /// Its first block in the layer.
    pub(super) at: u64,
    /// How many it has.
    pub(super) blocks: u64,
    /// SHA-256 of its bytes.
    pub(super) sha256: String,
    /// Of each file that is not empty, its first block, counted from that of the segment.
    pub(super) files: Vec<u64>,
}

/// A layer as it is written.
pub(super) struct LayerWriter<'a> {
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
    pub(super) blocks: u64,
    pub(super) segments: Vec<Segment>,
    /// Who is told how many of the bytes are there.
    pub(super) progress: &'a Progress,
    pub(super) bytes: u64,
    pub(super) of_bytes: u64,
}

impl LayerWriter<'_> {
    /// Adds a store path's segment.
    pub(super) fn add(&mut self, name: &str, tree: &Tree) -> Result<(), ClosureDiskError> {
        let mut sum = Sha256::new();
        let mut known: HashMap<(u64, [u8; 32]), u64> = HashMap::new();
        let mut sizes: HashMap<u64, u32> = HashMap::new();
        for (_, size) in &tree.files {
            *sizes.entry(*size).or_default() += 1;
        }
        let (mut files, mut blocks) = (Vec::with_capacity(tree.files.len()), 0);
        for (path, size) in &tree.files {
            let error = |source| ClosureDiskError::File { path: path.clone(), source };
            // Only what has another's size can have its contents.
            let hash = match sizes.get(size) {
                Some(2..) => Some(hash(path, *size).map_err(error)?),
                _ => None,
            };
            if let Some(block) = hash.and_then(|hash| known.get(&(*size, hash))) {
                files.push(*block);
                self.gone_through(*size);
                continue;
            }
            known.extend(hash.map(|hash| ((*size, hash), blocks)));
            let target = (self.blocks + blocks) * BLOCK;
            self.copy(path, *size, target, &mut sum)?;
            files.push(blocks);
            blocks += size.div_ceil(BLOCK);
        }
        let sha256 = hex(&sum.finalize().into());
        self.segments.push(Segment { name: name.to_owned(), at: self.blocks, blocks, sha256, files });
        self.blocks += blocks;
        Ok(())
    }

    fn gone_through(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.progress.tell(self.bytes, self.of_bytes);
    }

    fn copy(
        &mut self,
        path: &Path,
        size: u64,
        mut at: u64,
        sum: &mut Sha256,
    ) -> Result<(), ClosureDiskError> {
        let error = |path: &Path, source| ClosureDiskError::File { path: path.to_owned(), source };
        let mut file = tree::open(path, size).map_err(|source| error(path, source))?;
        read(&mut file, size, |bytes| {
            sum.update(bytes);
            // Zeros are what a file has where nothing was written.
            let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            self.file.write_all_at(&bytes[..written], at).map_err(|source| error(self.path, source))?;
            at += bytes.len() as u64;
            self.gone_through(bytes.len() as u64);
            Ok::<_, ClosureDiskError>(())
        })
        .map_err(|source| error(path, source))??;
        sum.update(&ZEROS[..(size.next_multiple_of(BLOCK) - size) as usize]);
        Ok(())
    }

    /// What the layer is known by: whose segments it has, and their contents.
    pub(super) fn id(&self) -> String {
        let mut sum = Sha256::new();
        for segment in &self.segments {
            sum.update(format!("{} {}\n", segment.sha256, segment.name));
        }
        hex(&sum.finalize().into())
    }
}

fn hash(path: &Path, size: u64) -> io::Result<[u8; 32]> {
    let mut sum = Sha256::new();
    let Ok(()) = read(&mut tree::open(path, size)?, size, |bytes| {
        sum.update(bytes);
        Ok::<_, std::convert::Infallible>(())
    })?;
    Ok(sum.finalize().into())
}

/// Reads a file of that size, and hands on what it has; the file's error is the outer one.
fn read<E>(
    file: &mut File,
    size: u64,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> io::Result<Result<(), E>> {
    let mut buffer = Vec::with_capacity(CHUNK);
    let mut left = size;
    while left > 0 {
        buffer.clear();
        let read = file.take((CHUNK as u64).min(left)).read_to_end(&mut buffer)?;
        if read == 0 {
            return Err(tree::changed());
        }
        left -= read as u64;
        if let Err(error) = take(&buffer) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

/// A hash as text.
pub(super) fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
