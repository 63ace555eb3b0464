//! The "legacy" lz4 format of Linux's build (`lz4 -l`): a magic number, then blocks of a 32-bit length and that many
//! compressed bytes. Blocks do not refer to each other, and each but the last unpacks to 8 MiB.

use super::bytes::u32_at;
use lz4_flex::block::decompress_into;
use std::io::{self, Read};
use std::ops::Range;

pub(crate) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What a block unpacks to at most.
const BLOCK: usize = 8 << 20;
/// `LZ4_COMPRESSBOUND(BLOCK)`: a longer block is a damaged length.
const COMPRESSED_BLOCK: usize = BLOCK + BLOCK / 255 + 16;

/// Unpacks straight into the reader's buffer where that has room for a whole block.
pub(crate) struct Lz4Legacy<'a> {
    input: &'a [u8],
    /// Room for a block that the reader's buffer has no room for; none before the first such block.
    block: Vec<u8>,
    /// The part of `block` that is still to be read.
    left: Range<usize>,
}

impl<'a> Lz4Legacy<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { input, block: Vec::new(), left: 0..0 }
    }

    /// The next block as it is packed; `None` at the end.
    fn next_block(&mut self) -> io::Result<Option<&'a [u8]>> {
        // A second stream may follow the first: kernels with a built-in initramfs have had that.
        while let Some(rest) = self.input.strip_prefix(&MAGIC) {
            self.input = rest;
        }
        if self.input.is_empty() {
            return Ok(None);
        }
        let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "a block is cut off");
        let size = u32_at(self.input, 0).ok_or_else(cut)? as usize;
        if size > COMPRESSED_BLOCK {
            let message = format!("a block of {size} bytes, more than a block can have");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let block = self.input.get(4..4 + size).ok_or_else(cut)?;
        self.input = &self.input[4 + size..];
        Ok(Some(block))
    }
}

fn unpack(block: &[u8], out: &mut [u8]) -> io::Result<usize> {
    decompress_into(block, out).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

impl Read for Lz4Legacy<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !out.is_empty() {
            if !self.left.is_empty() {
                let n = self.left.len().min(out.len());
                out[..n].copy_from_slice(&self.block[self.left.start..self.left.start + n]);
                self.left.start += n;
                return Ok(n);
            }
            let Some(block) = self.next_block()? else { return Ok(0) };
            if let Some(direct) = out.get_mut(..BLOCK) {
                match unpack(block, direct)? {
                    0 => continue,
                    n => return Ok(n),
                }
            }
            if self.block.is_empty() {
                self.block = vec![0; BLOCK];
            }
            self.left = 0..unpack(block, &mut self.block)?;
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::synthetic::lz4_legacy;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7) as u8).collect()
    }

    #[test]
    fn blocks_come_out_whole_whatever_the_buffer() {
        let plain = bytes(BLOCK + BLOCK / 2);
        let packed = lz4_legacy(&plain);
        for room in [1_000_003, BLOCK, 3 * BLOCK] {
            let mut reader = Lz4Legacy::new(&packed);
            let mut out = vec![0; plain.len() + 1];
            let mut at = 0;
            loop {
                let end = (at + room).min(out.len());
                match reader.read(&mut out[at..end]).unwrap() {
                    0 => break,
                    n => at += n,
                }
            }
            assert_eq!(at, plain.len());
            assert!(out[..at] == plain);
        }
    }

    #[test]
    fn a_stream_may_follow_another() {
        let packed = [lz4_legacy(b"first "), lz4_legacy(b"second")].concat();
        let mut out = String::new();
        Lz4Legacy::new(&packed).read_to_string(&mut out).unwrap();
        assert_eq!(out, "first second");
    }

    #[test]
    fn every_cut_inside_of_a_block_is_an_error() {
        let packed = lz4_legacy(&bytes(100));
        for end in MAGIC.len() + 1..packed.len() {
            let error = Lz4Legacy::new(&packed[..end]).read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {end}");
        }
    }

    #[test]
    fn damaged_blocks_are_errors() {
        let mut packed = lz4_legacy(&bytes(100));
        packed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Lz4Legacy::new(&packed).read_to_end(&mut Vec::new()).is_err());
        // A match before the start of the block.
        let block = [0x10, b'x', 0xff, 0xff, 0x00];
        let packed = [&MAGIC[..], &5_u32.to_le_bytes(), &block].concat();
        assert!(Lz4Legacy::new(&packed).read_to_end(&mut Vec::new()).is_err());
    }
}
