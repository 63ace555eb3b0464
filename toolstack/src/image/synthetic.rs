//! Small kernels made in code, for tests: ELF files with notes, packed and wrapped in every way.

use super::Codec;
use super::lz4;
use std::io::{Seek, Write};

/// Every codec.
pub(crate) const CODECS: [Codec; 7] =
    [Codec::Gzip, Codec::Bzip2, Codec::Lzma, Codec::Xz, Codec::Lzo, Codec::Lz4, Codec::Zstd];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    Elf32,
    Elf64,
}

/// Where the notes stand and what points at them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Notes {
    /// At the end of the first segment's bytes, named by a note segment.
    InSegment,
    /// Behind all segments, named by a note segment.
    Behind,
    /// At the end of the first segment's bytes, named by a note section.
    SectionInSegment,
    /// Behind all segments, named by a note section.
    SectionBehind,
}

#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) address: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) memory_size: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct SyntheticElf {
    pub(crate) class: Class,
    pub(crate) loads: Vec<Load>,
    pub(crate) notes: Vec<u8>,
    pub(crate) place: Notes,
    /// Each segment begins where in its page of the file it begins in memory, as linkers have it.
    pub(crate) paged: bool,
}

pub(crate) const ENTRY: u32 = 0x10_0040;
/// Where a PV kernel maps its first frame.
pub(crate) const PV_VIRT_BASE: u64 = 0xffff_ffff_8000_0000;
pub(crate) const PV_ENTRY: u64 = PV_VIRT_BASE + 0x10_0080;

impl SyntheticElf {
    /// Two segments with a gap between them and zeros behind each; notes as a Linux kernel has them.
    pub(crate) fn pvh() -> Self {
        let data = |seed: u8, len: usize| (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
        Self {
            class: Class::Elf64,
            loads: vec![
                Load { address: 0x10_0000, data: data(1, 0x1234), memory_size: 0x2000 },
                Load { address: 0x10_4000, data: data(2, 0x789), memory_size: 0x1800 },
            ],
            notes: [
                note(b"GNU\0", 3, &[7; 20]),
                xen_note(18, &ENTRY.to_le_bytes()),
                xen_note(6, b"linux\0"),
                xen_note(17, &0x8801_u32.to_le_bytes()),
            ]
            .concat(),
            place: Notes::Behind,
            paged: false,
        }
    }

    /// The same kernel in whole pages, as a linker would lay it out, and its second segment not at the start of one.
    pub(crate) fn paged() -> Self {
        let mut elf = Self { paged: true, ..Self::pvh() };
        elf.loads[1].address += 0x140;
        elf
    }

    /// The same kernel, which can be a PV guest, too: as Linux before 6.1.121, with a hypercall page.
    pub(crate) fn pv() -> Self {
        let mut elf = Self::pvh();
        let wide = |kind: u32, value: u64| xen_note(kind, &value.to_le_bytes());
        elf.notes.extend(
            [
                wide(1, PV_ENTRY),
                wide(2, PV_VIRT_BASE + 0x10_1000),
                wide(3, PV_VIRT_BASE),
                wide(15, 0x80_0000_0000),
                xen_note(16, &1_u32.to_le_bytes()),
            ]
            .concat(),
        );
        elf
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let wide = self.class == Class::Elf64;
        let (header_size, entry_size, section_size) = if wide { (64, 56, 64) } else { (52, 32, 40) };
        let in_segment = matches!(self.place, Notes::InSegment | Notes::SectionInSegment);
        let segment_notes = matches!(self.place, Notes::InSegment | Notes::Behind);
        let mut loads = self.loads.clone();
        if in_segment && let Some(load) = loads.first_mut() {
            load.data.resize(load.data.len().next_multiple_of(4), 0);
            load.data.extend_from_slice(&self.notes);
        }

        let count = loads.len() + usize::from(segment_notes);
        let mut file = vec![0xee; (header_size + count * entry_size).next_multiple_of(16) + 32];
        let mut headers = Vec::new();
        let mut notes_at = 0;
        for load in &loads {
            while self.paged && file.len() % 4096 != load.address as usize % 4096 {
                file.push(0xbb);
            }
            if headers.is_empty() && in_segment {
                notes_at = file.len() + load.data.len() - self.notes.len();
            }
            headers.push((1, file.len() as u64, load.address, load.data.len() as u64, load.memory_size));
            file.extend_from_slice(&load.data);
            file.resize(file.len().next_multiple_of(16) + 16, 0xdd);
        }
        if !in_segment {
            notes_at = file.len();
            file.extend_from_slice(&self.notes);
        }
        if segment_notes {
            headers.push((4, notes_at as u64, 0, self.notes.len() as u64, 0));
        }
        file.resize(file.len().next_multiple_of(16), 0xcc);
        let sections_at = file.len();
        for (kind, offset, size) in
            [(0, 0, 0), (if segment_notes { 1 } else { 7 }, notes_at, self.notes.len())]
        {
            let mut section = vec![0; section_size];
            put(&mut section, 4, 4, kind);
            put(&mut section, if wide { 24 } else { 16 }, if wide { 8 } else { 4 }, offset as u64);
            put(&mut section, if wide { 32 } else { 20 }, if wide { 8 } else { 4 }, size as u64);
            file.extend_from_slice(&section);
        }

        file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 1 + u8::from(wide), 1, 1, 0]);
        file[8..header_size].fill(0);
        let (word, rest) = if wide { (8, 52) } else { (4, 40) };
        put(&mut file, 16, 2, 2);
        put(&mut file, 18, 2, if wide { 62 } else { 3 });
        put(&mut file, 20, 4, 1);
        put(&mut file, 24 + word, word, header_size as u64);
        put(&mut file, 24 + 2 * word, word, sections_at as u64);
        let counts = [header_size, entry_size, count, section_size, 2, 0];
        for (i, value) in counts.into_iter().enumerate() {
            put(&mut file, rest + 2 * i, 2, value as u64);
        }
        for (i, (kind, offset, address, file_size, memory_size)) in headers.into_iter().enumerate() {
            let at = header_size + i * entry_size;
            file[at..at + entry_size].fill(0);
            let fields: [(usize, usize, u64); 7] = if wide {
                [
                    (0, 4, kind),
                    (4, 4, 7),
                    (8, 8, offset),
                    (16, 8, 0),
                    (24, 8, address),
                    (32, 8, file_size),
                    (40, 8, memory_size),
                ]
            } else {
                [
                    (0, 4, kind),
                    (24, 4, 7),
                    (4, 4, offset),
                    (8, 4, 0),
                    (12, 4, address),
                    (16, 4, file_size),
                    (20, 4, memory_size),
                ]
            };
            for (field, size, value) in fields {
                put(&mut file, at + field, size, value);
            }
        }
        file
    }
}

fn put(bytes: &mut [u8], at: usize, size: usize, value: u64) {
    bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// A note with its paddings.
pub(crate) fn note(name: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in [name.len() as u32, value.len() as u32, kind] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for part in [name, value] {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A note of Xen's.
pub(crate) fn xen_note(kind: u32, value: &[u8]) -> Vec<u8> {
    note(b"Xen\0", kind, value)
}

/// The payload behind one setup sector.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file[0x1f1] = 1;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    put(&mut file, 0x206, 2, 0x20f);
    put(&mut file, 0x238, 4, 2047);
    put(&mut file, 0x248, 4, 0x20);
    put(&mut file, 0x24c, 4, payload.len() as u64);
    file.resize(0x420, 0x90);
    file.extend_from_slice(payload);
    file
}

/// A kernel as Linux's build packs it: the packed file, and (but for gzip) its length.
pub(crate) fn packed_bzimage(codec: Codec, file: &[u8]) -> Vec<u8> {
    let mut payload = pack(codec, file);
    if codec.has_length_behind() {
        payload.extend_from_slice(&(file.len() as u32).to_le_bytes());
    }
    bzimage(&payload)
}

pub(crate) fn pack(codec: Codec, plain: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, LzmaOptions, Stream};
    let liblzma = |stream: Stream| {
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    };
    match codec {
        Codec::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Lzma => liblzma(Stream::new_lzma_encoder(&LzmaOptions::new_preset(6).unwrap()).unwrap()),
        Codec::Xz => liblzma(Stream::new_easy_encoder(6, Check::Crc32).unwrap()),
        Codec::Lz4 => lz4_legacy(plain),
        Codec::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 19).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Lzo => lzop(plain, "-9"),
    }
}

/// What lzop makes of `plain`, as Linux's build calls it but for the options.
pub(crate) fn lzop(plain: &[u8], options: &str) -> Vec<u8> {
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(plain).unwrap();
    input.rewind().unwrap();
    let output = std::process::Command::new("lzop").args(options.split(' ')).stdin(input).output();
    let output = output.expect("lzop, from Debian's package of that name");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

pub(crate) fn lz4_legacy(plain: &[u8]) -> Vec<u8> {
    let mut packed = lz4::MAGIC.to_vec();
    for block in plain.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
        packed.extend_from_slice(&block);
    }
    packed
}

/// A PE file with these sections, as objcopy adds them to a stub.
pub(crate) fn pe(sections: &[(&str, &[u8])]) -> Vec<u8> {
    const HEADER: usize = 0x80;
    const OPTIONAL_SIZE: usize = 0xf0;
    const ALIGNMENT: usize = 0x200;
    let mut file = vec![0; HEADER];
    file[..2].copy_from_slice(b"MZ");
    put(&mut file, 0x3c, 4, HEADER as u64);
    file.extend_from_slice(b"PE\0\0");
    let table = HEADER + 24 + OPTIONAL_SIZE;
    file.resize((table + 40 * sections.len()).next_multiple_of(ALIGNMENT), 0);
    put(&mut file, HEADER + 4, 2, 0x8664);
    put(&mut file, HEADER + 6, 2, sections.len() as u64);
    put(&mut file, HEADER + 20, 2, OPTIONAL_SIZE as u64);
    for (i, (name, bytes)) in sections.iter().enumerate() {
        let (entry, start) = (table + 40 * i, file.len());
        file[entry..entry + name.len()].copy_from_slice(name.as_bytes());
        file.extend_from_slice(bytes);
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        let size = file.len() - start;
        for (at, value) in [(8, bytes.len()), (12, 0x1000 * (i + 1)), (16, size), (20, start)] {
            put(&mut file, entry + at, 4, value as u64);
        }
    }
    file
}
