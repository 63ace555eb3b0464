//! The format of `lzop`, in which Linux's build packs lzo kernels (`lzop -9`): a header, then blocks of LZO1X
//! instructions, each with the checksum of what it unpacks to, and a length of zero at the end.
//!
//! The instructions are those that the kernel's Documentation/staging/lzo.rst describes (bitstream version 0; what
//! `CONFIG_KERNEL_LZO` never has is the run-length variant of zram). No permissively licensed crate unpacks them from
//! hostile input: liblzo and its ports are GPL, and the port of lzokay subtracts distances unchecked.

use std::io::{self, Read};
use std::ops::Range;

pub(crate) const MAGIC: [u8; 9] = [0x89, b'L', b'Z', b'O', 0, b'\r', b'\n', 0x1a, b'\n'];
/// The version of lzop that brought three fields of the header.
const VERSION_LEVEL: u16 = 0x0940;
/// What a block unpacks to at most; lzop's own limit. Linux's build has blocks of 256 KiB.
const BLOCK_LIMIT: usize = 64 << 20;

// Flags of the header.
const ADLER32_UNPACKED: u32 = 0x1;
const ADLER32_PACKED: u32 = 0x2;
const EXTRA_FIELD: u32 = 0x40;
const CRC32_UNPACKED: u32 = 0x100;
const CRC32_PACKED: u32 = 0x200;
const FILTER: u32 = 0x800;
const CRC32_HEADER: u32 = 0x1000;

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it is cut off")
}

/// Takes `n` bytes off the front.
fn take<'a>(input: &mut &'a [u8], n: usize) -> io::Result<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(n).ok_or_else(cut)?;
    *input = rest;
    Ok(taken)
}

fn u8_of(input: &mut &[u8]) -> io::Result<u8> {
    let (first, rest) = input.split_first().ok_or_else(cut)?;
    *input = rest;
    Ok(*first)
}

/// Numbers of lzop are big-endian.
fn u16_of(input: &mut &[u8]) -> io::Result<u16> {
    Ok(u16::from_be_bytes([u8_of(input)?, u8_of(input)?]))
}

fn u32_of(input: &mut &[u8]) -> io::Result<u32> {
    Ok(u32::from(u16_of(input)?) << 16 | u32::from(u16_of(input)?))
}

/// Reads the header behind the magic number; returns its flags.
fn header(input: &mut &[u8]) -> io::Result<u32> {
    let start = *input;
    let version = u16_of(input)?;
    let _library_version = u16_of(input)?;
    if version >= VERSION_LEVEL {
        let _version_needed = u16_of(input)?;
    }
    // 1 to 3 are variants of one compressor, LZO1X.
    let method = u8_of(input)?;
    if !(1..=3).contains(&method) {
        return Err(damaged(format!("method {method} is not LZO1X")));
    }
    if version >= VERSION_LEVEL {
        let _level = u8_of(input)?;
    }
    let flags = u32_of(input)?;
    if flags & FILTER != 0 {
        return Err(damaged("it was filtered before it was packed, as no kernel is"));
    }
    let _mode_and_time = take(input, if version >= VERSION_LEVEL { 12 } else { 8 })?;
    let name = u8_of(input)?;
    take(input, name.into())?;
    let bytes = &start[..start.len() - input.len()];
    check("header", flags & CRC32_HEADER != 0, u32_of(input)?, bytes)?;
    if flags & EXTRA_FIELD != 0 {
        let size = u32_of(input)?;
        // Its checksum behind it.
        take(input, size as usize)?;
        take(input, 4)?;
    }
    Ok(flags)
}

fn check(what: &str, crc32: bool, said: u32, bytes: &[u8]) -> io::Result<()> {
    let is = if crc32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    } else {
        adler32(bytes)
    };
    if is == said {
        Ok(())
    } else {
        Err(damaged(format!("the checksum of its {what} is {is:#x}, not {said:#x}")))
    }
}

/// RFC 1950, 8.2.
fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    let (mut a, mut b) = (1_u32, 0_u32);
    // As many as can be added up before 32 bits overflow.
    for part in bytes.chunks(5_552) {
        for byte in part {
            a += u32::from(*byte);
            b += a;
        }
        (a, b) = (a % MODULUS, b % MODULUS);
    }
    b << 16 | a
}

/// A block as it is packed.
struct Block<'a> {
    packed: &'a [u8],
    /// Bytes that it unpacks to; as many as are packed when it is stored as it is.
    size: usize,
    adler32: Option<u32>,
    crc32: Option<u32>,
}

impl Block<'_> {
    /// `out` has the block's size.
    fn unpack(&self, out: &mut [u8]) -> io::Result<()> {
        if self.packed.len() == self.size {
            out.copy_from_slice(self.packed);
        } else {
            lzo1x(self.packed, out)?;
        }
        for (said, crc32) in [(self.adler32, false), (self.crc32, true)] {
            if let Some(said) = said {
                check("block", crc32, said, out)?;
            }
        }
        Ok(())
    }
}

/// Unpacks straight into the reader's buffer where that has room for a whole block.
pub(crate) struct Lzop<'a> {
    input: &'a [u8],
    flags: u32,
    ended: bool,
    /// A block that the reader's buffer had no room for.
    block: Vec<u8>,
    /// The part of `block` that is still to be read.
    left: Range<usize>,
}

impl<'a> Lzop<'a> {
    pub(crate) fn new(input: &'a [u8]) -> io::Result<Self> {
        let mut input =
            input.strip_prefix(&MAGIC).ok_or_else(|| damaged("it does not begin as lzop's files do"))?;
        let flags = header(&mut input)?;
        Ok(Self { input, flags, ended: false, block: Vec::new(), left: 0..0 })
    }

    /// `None` at the end.
    fn next_block(&mut self) -> io::Result<Option<Block<'a>>> {
        if self.ended {
            return Ok(None);
        }
        let input = &mut self.input;
        let size = u32_of(input)? as usize;
        if size == 0 {
            self.ended = true;
            return Ok(None);
        }
        let packed_size = u32_of(input)? as usize;
        if size > BLOCK_LIMIT || packed_size > size || packed_size == 0 {
            return Err(damaged(format!("a block of {packed_size} bytes that unpacks to {size}")));
        }
        let flags = self.flags;
        let mut number =
            |flag| Ok::<_, io::Error>(if flags & flag == 0 { None } else { Some(u32_of(input)?) });
        let (adler32, crc32) = (number(ADLER32_UNPACKED)?, number(CRC32_UNPACKED)?);
        if packed_size < size {
            // That of the packed bytes finds nothing that the other does not.
            number(ADLER32_PACKED)?;
            number(CRC32_PACKED)?;
        }
        Ok(Some(Block { packed: take(input, packed_size)?, size, adler32, crc32 }))
    }
}

impl Read for Lzop<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.left.is_empty() {
            let Some(block) = self.next_block()? else { return Ok(0) };
            if let Some(direct) = out.get_mut(..block.size) {
                block.unpack(direct)?;
                return Ok(block.size);
            }
            self.block.resize(block.size, 0);
            block.unpack(&mut self.block)?;
            self.left = 0..block.size;
        }
        let n = self.left.len().min(out.len());
        out[..n].copy_from_slice(&self.block[self.left.start..self.left.start + n]);
        self.left.start += n;
        Ok(n)
    }
}

/// Where an instruction stands: what the lowest of them mean depends on the literals that the one before has copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// A match without literals behind it, or nothing.
    Match,
    /// A match with 1 to 3 literals.
    FewLiterals,
    /// A run of literals.
    Literals,
}

/// What is being filled.
struct Output<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Output<'_> {
    fn room(&self, n: usize) -> io::Result<Range<usize>> {
        match self.at.checked_add(n) {
            Some(end) if end <= self.bytes.len() => Ok(self.at..end),
            _ => Err(damaged(format!("a block unpacks to more than {} bytes", self.bytes.len()))),
        }
    }

    fn literals(&mut self, input: &mut &[u8], n: usize) -> io::Result<()> {
        let room = self.room(n)?;
        self.at = room.end;
        self.bytes[room].copy_from_slice(take(input, n)?);
        Ok(())
    }

    /// Repeats `n` bytes that lie `distance` before the end; the repeated may reach into the repetition.
    fn repeat(&mut self, distance: usize, n: usize) -> io::Result<()> {
        let room = self.room(n)?;
        let from =
            self.at.checked_sub(distance).ok_or_else(|| damaged("a match before the start of its block"))?;
        // What lies between `from` and `self.at` grows with every copy.
        while self.at < room.end {
            let part = (self.at - from).min(room.end - self.at);
            self.bytes.copy_within(from..from + part, self.at);
            self.at += part;
        }
        Ok(())
    }
}

/// A length of which the instruction's own bits are zero: each zero byte is 255 more, the first other byte is added.
fn long_length(input: &mut &[u8], base: usize) -> io::Result<usize> {
    let zeros = input.iter().take_while(|byte| **byte == 0).count();
    take(input, zeros)?;
    // At most as many zeros as a block has bytes: no overflow.
    Ok(base + zeros * 255 + usize::from(u8_of(input)?))
}

/// Unpacks a block, which must fill `out`.
fn lzo1x(mut input: &[u8], out: &mut [u8]) -> io::Result<()> {
    let input = &mut input;
    let mut out = Output { bytes: out, at: 0 };
    let mut after = After::Match;
    // A first byte above 17 stands for literals alone.
    if let Some(first @ 18..) = input.first().copied() {
        take(input, 1)?;
        let count = usize::from(first) - 17;
        out.literals(input, count)?;
        after = if count < 4 { After::FewLiterals } else { After::Literals };
    }
    loop {
        let instruction = usize::from(u8_of(input)?);
        let (distance, length, literals) = match (instruction, after) {
            (0..=15, After::Match) => {
                let count = if instruction == 0 { long_length(input, 15)? } else { instruction };
                out.literals(input, count + 3)?;
                after = After::Literals;
                continue;
            }
            (0..=15, _) => {
                let (base, length) = if after == After::Literals { (2_049, 3) } else { (1, 2) };
                (base + (instruction >> 2) + (usize::from(u8_of(input)?) << 2), length, instruction)
            }
            (16..=31, _) => {
                let length = match instruction & 7 {
                    0 => long_length(input, 7)?,
                    length => length,
                };
                let operand = usize::from(u16_of(input)?.swap_bytes());
                let distance = (instruction & 8) << 11 | operand >> 2;
                if distance == 0 {
                    break;
                }
                (distance + 0x4000, length + 2, operand)
            }
            (32..=63, _) => {
                let length = match instruction & 31 {
                    0 => long_length(input, 31)?,
                    length => length,
                };
                let operand = usize::from(u16_of(input)?.swap_bytes());
                ((operand >> 2) + 1, length + 2, operand)
            }
            _ => {
                let distance = 1 + (instruction >> 2 & 7) + (usize::from(u8_of(input)?) << 3);
                (distance, (instruction >> 5) + 1, instruction)
            }
        };
        out.repeat(distance, length)?;
        // The two lowest bits of each count the literals behind it.
        let literals = literals & 3;
        out.literals(input, literals)?;
        after = if literals == 0 { After::Match } else { After::FewLiterals };
    }
    match (out.at, out.bytes.len(), input.len()) {
        (at, size, _) if at != size => {
            Err(damaged(format!("a block unpacks to {at} bytes instead of {size}")))
        }
        (_, _, 0) => Ok(()),
        (_, _, rest) => Err(damaged(format!("{rest} bytes behind the end of a block"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Codec;
    use crate::image::synthetic::{lzop, pack};
    use proptest::prelude::*;

    /// What makes every kind of instruction: literals in runs and in threes, matches near, 3 kB, 20 kB and 40 kB back,
    /// runs of one byte, and bytes that do not pack at all.
    fn varied() -> Vec<u8> {
        let mut seed = 12_345_u32;
        let mut noise = |n: usize| -> Vec<u8> {
            (0..n)
                .map(|_| {
                    seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                    (seed >> 16) as u8
                })
                .collect()
        };
        let mut plain = noise(45_000);
        for back in [3_000, 20_000, 40_000, 2_000, 9, 1] {
            for length in [3, 4, 8, 33, 34, 200, 700] {
                let from = plain.len() - back;
                for i in 0..length {
                    plain.push(plain[from + i]);
                }
                plain.extend(noise(length % 5));
            }
        }
        plain.extend([0; 5_000]);
        plain.extend(noise(300_000));
        plain.extend((0..100_000_u32).flat_map(|i| (i / 3).to_le_bytes()));
        plain
    }

    fn unpack(packed: &[u8], room: usize) -> io::Result<Vec<u8>> {
        let mut reader = Lzop::new(packed)?;
        let mut out = Vec::new();
        let mut part = vec![0; room];
        loop {
            match reader.read(&mut part)? {
                0 => return Ok(out),
                n => out.extend_from_slice(&part[..n]),
            }
        }
    }

    #[test]
    fn what_lzop_packs_comes_out_at_every_level_whatever_the_buffer() {
        let plain = varied();
        for options in ["-1", "-3", "-9", "-9 --crc32", "-9 --no-checksum"] {
            let packed = lzop(&plain, options);
            assert!(packed.len() < plain.len());
            for room in [1_000, 256 << 10, 1 << 20] {
                assert!(unpack(&packed, room).unwrap() == plain, "{options}, {room}");
            }
        }
    }

    #[test]
    fn every_cut_is_an_error() {
        let packed = pack(Codec::Lzo, &varied()[44_000..50_000]);
        for end in 0..packed.len() {
            assert!(unpack(&packed[..end], 4_096).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn damage_is_found_by_the_checksums() {
        let plain = varied();
        for options in ["-9", "-9 --crc32"] {
            let packed = lzop(&plain, options);
            for at in (9..packed.len() - 4).step_by(60_013) {
                let mut packed = packed.clone();
                packed[at] ^= 0x20;
                assert!(unpack(&packed, 1 << 20).is_err(), "{options} at {at}");
            }
        }
    }

    #[test]
    fn instructions_that_leave_the_block_are_errors() {
        let error = |instructions: &[u8]| lzo1x(instructions, &mut [0; 100]).unwrap_err().to_string();
        // Three literals and the end.
        let mut out = [0; 3];
        lzo1x(b"\x14abc\x11\0\0", &mut out).unwrap();
        assert_eq!(&out, b"abc");
        assert!(error(b"\x14abc\x11\0\0").contains("3 bytes instead of 100"));
        assert!(error(b"\x14abc\x21\xff\xff").contains("before the start"));
        assert!(error(b"\x14abc\x40\xff").contains("before the start"));
        assert!(error(&[&[0; 20][..], b"\x01", &[7; 6_000]].concat()).contains("more than 100 bytes"));
        assert!(error(&[0; 50]).contains("cut off"));
        assert!(error(&[]).contains("cut off"));
        let mut out = [0; 3];
        assert!(lzo1x(b"\x14abc\x11\0\0x", &mut out).unwrap_err().to_string().contains("1 bytes behind"));
    }

    #[test]
    fn headers_of_other_kinds_are_refused_by_name() {
        let packed = pack(Codec::Lzo, b"forty-two");
        let with = |at: usize, value: u8| {
            let mut packed = packed.clone();
            packed[at] = value;
            Lzop::new(&packed).map(|_| ()).unwrap_err().to_string()
        };
        assert!(with(15, 4).contains("method 4 is not LZO1X"));
        assert!(with(19, 8).contains("filtered"));
        assert!(with(25, 0x55).contains("checksum of its header"));
        assert!(with(3, b'0').contains("does not begin as"));
    }

    #[test]
    fn adler32_is_that_of_rfc_1950() {
        assert_eq!((adler32(b""), adler32(b"Wikipedia")), (1, 0x11e6_0398));
        assert_eq!(adler32(&vec![0xff; 1 << 20]), {
            let (mut a, mut b) = (1_u64, 0_u64);
            (0..1 << 20).for_each(|_| {
                a = (a + 255) % 65_521;
                b = (b + a) % 65_521;
            });
            (b << 16 | a) as u32
        });
    }

    proptest! {
        #[test]
        fn arbitrary_instructions_never_panic(
            instructions in proptest::collection::vec(any::<u8>(), 0..200),
            room in 0..3_000_usize,
        ) {
            let _ = lzo1x(&instructions, &mut vec![0; room]);
        }

        #[test]
        fn arbitrary_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = unpack(&[&MAGIC[..], &bytes].concat(), 1_000);
        }
    }
}
