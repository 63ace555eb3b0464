//! The ELF headers of a kernel: which parts of the file go where in guest-physical memory.
//!
//! Only the file's head is needed, so that a compressed kernel can be laid out before it is unpacked. Both classes are
//! read: PVH kernels of 32 bits exist (test kernels, small unikernels), and the entry is 32-bit code in either case.
//! Every number is hostile: sums are checked, counts and sizes are limited.
//!
//! Source of the layouts: System V ABI, chapter 4 and 5 (`Elf32_Ehdr`, `Elf64_Phdr`, …).

use super::bytes::{u16_at, u32_at, u64_at};
use std::ops::Range;

/// Guest-physical addresses end here for a kernel: it starts in 32-bit mode without paging.
const ADDRESS_LIMIT: u64 = 1 << 32;
/// The most memory that a kernel's segments may span, in bytes (libxc: `XC_DOM_DECOMPRESS_MAX`).
pub(crate) const SPAN_LIMIT: u64 = 1 << 30;
/// More program headers than any kernel has.
const SEGMENTS_LIMIT: u16 = 256;
/// The program headers must end within this many bytes of the file's start; linkers put them after the ELF header.
pub(crate) const HEAD_LIMIT: u64 = 1 << 20;
/// Bytes of one note segment or section.
const NOTES_LIMIT: u64 = 1 << 20;

const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const SHT_NOTE: u32 = 7;

/// What is wrong with an ELF file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// The file does not begin with an ELF header.
    #[error("no ELF header")]
    NoHeader,
    /// An ELF file, but not of a kind that an x86 guest can run.
    #[error(
        "{what} {value} is not one of an x86 kernel (need a little-endian executable for i386 or x86-64)"
    )]
    Unsuitable {
        /// The header's field.
        what: &'static str,
        /// Its value.
        value: u16,
    },
    /// A table of the file is not where or what it may be.
    #[error("{what}: {count} entries of {size} bytes at offset {offset:#x}")]
    Table {
        /// Program headers or section headers.
        what: &'static str,
        /// Where.
        offset: u64,
        /// How many entries.
        count: u16,
        /// Bytes of each.
        size: u16,
    },
    /// Nothing to load.
    #[error("no loadable segment")]
    NothingToLoad,
    /// A segment's numbers contradict each other or leave the 32-bit address space.
    #[error(
        "segment {index}: {file_size:#x} bytes of the file at {file_offset:#x}, {memory_size:#x} bytes of memory at {address:#x}"
    )]
    Segment {
        /// The index of its program header.
        index: usize,
        /// `p_offset`
        file_offset: u64,
        /// `p_filesz`
        file_size: u64,
        /// `p_paddr`
        address: u64,
        /// `p_memsz`
        memory_size: u64,
    },
    /// Two segments claim the same memory or the same bytes of the file.
    #[error("segments {first} and {second} overlap")]
    Overlap {
        /// The index of the one's program header.
        first: usize,
        /// The index of the other's.
        second: usize,
    },
    /// The segments lie too far apart.
    #[error("segments span {span} bytes of memory, the limit is {SPAN_LIMIT}")]
    Span {
        /// From the lowest byte to the highest.
        span: u64,
    },
}

/// A loadable segment (`PT_LOAD`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The index of its program header.
    pub index: usize,
    /// The bytes of the (unpacked) file; may be empty.
    pub file: Range<u64>,
    /// Guest-physical addresses, below 4 GiB; never empty, never shorter than `file`. What `file` does not fill is zero.
    pub memory: Range<u64>,
}

/// The head of an ELF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Elf {
    class: u8,
    /// Sorted by where they are in the file.
    pub(crate) segments: Vec<Segment>,
    /// The bytes of the file that `PT_NOTE` headers name.
    pub(crate) notes: Vec<Range<u64>>,
    section_table: Option<Table>,
}

/// Entries of one size, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Table {
    offset: u64,
    count: u16,
    size: u16,
}

impl Table {
    fn error(self, what: &'static str) -> ElfError {
        ElfError::Table { what, offset: self.offset, count: self.count, size: self.size }
    }

    fn end(self) -> Option<u64> {
        self.offset.checked_add(u64::from(self.count) * u64::from(self.size))
    }
}

/// The bytes of an ELF header of either class.
pub(crate) const HEADER_SIZE: usize = 64;

/// How many bytes of the file's start [`Elf::parse`] needs, from the first [`HEADER_SIZE`] bytes (fewer for a file that
/// is shorter).
pub(crate) fn head_size(header: &[u8]) -> Result<u64, ElfError> {
    let (_, table) = program_headers(header)?;
    table.end().filter(|end| *end <= HEAD_LIMIT).ok_or_else(|| table.error("program headers"))
}

/// The class, and where the program headers are.
fn program_headers(header: &[u8]) -> Result<(u8, Table), ElfError> {
    if !header.starts_with(b"\x7fELF") {
        return Err(ElfError::NoHeader);
    }
    let class = *header.get(4).ok_or(ElfError::NoHeader)?;
    let (offset, size_at, size) = match class {
        CLASS_32 => (u32_at(header, 28).map(u64::from), 42, 32),
        CLASS_64 => (u64_at(header, 32), 54, 56),
        other => return Err(ElfError::Unsuitable { what: "class", value: other.into() }),
    };
    if header.get(5) != Some(&LITTLE_ENDIAN) {
        let value = header.get(5).copied().unwrap_or_default().into();
        return Err(ElfError::Unsuitable { what: "byte order", value });
    }
    let field = |at| u16_at(header, at).ok_or(ElfError::NoHeader);
    match field(16)? {
        ET_EXEC | ET_DYN => {}
        value => return Err(ElfError::Unsuitable { what: "file type", value }),
    }
    match field(18)? {
        EM_386 | EM_X86_64 => {}
        value => return Err(ElfError::Unsuitable { what: "machine", value }),
    }
    let table = Table {
        offset: offset.ok_or(ElfError::NoHeader)?,
        count: field(size_at + 2)?,
        size: field(size_at)?,
    };
    if table.size != size || table.count > SEGMENTS_LIMIT {
        return Err(table.error("program headers"));
    }
    Ok((class, table))
}

impl Elf {
    /// Reads the headers from the file's first [`head_size`] bytes.
    pub(crate) fn parse(head: &[u8]) -> Result<Self, ElfError> {
        let (class, table) = program_headers(head)?;
        let bad_table = || table.error("program headers");
        let end = table.end().and_then(|end| usize::try_from(end).ok()).ok_or_else(bad_table)?;
        let entries = head.get(table.offset as usize..end).ok_or_else(bad_table)?;

        let mut segments = Vec::new();
        let mut notes = Vec::new();
        for (index, entry) in entries.chunks_exact(table.size.into()).enumerate() {
            let header = ProgramHeader::read(class, entry).ok_or_else(bad_table)?;
            match header.kind {
                // As libelf does: a segment that may not even be read is not loaded.
                PT_LOAD if header.memory_size > 0 && header.flags & 7 != 0 => {
                    segments.push(header.segment(index)?);
                }
                // Some linkers write an offset of 0 for notes that are not there.
                PT_NOTE if header.file_offset != 0 => notes.push(header.notes(index)?),
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(ElfError::NothingToLoad);
        }
        segments.sort_by_key(|segment| segment.memory.start);
        overlap(&segments, |segment| segment.memory.clone())?;
        segments.sort_by_key(|segment| segment.file.start);
        let in_file: Vec<Segment> =
            segments.iter().filter(|segment| !segment.file.is_empty()).cloned().collect();
        overlap(&in_file, |segment| segment.file.clone())?;

        let elf = Self { class, segments, notes, section_table: section_table(class, head) };
        let range = elf.memory();
        let span = range.end - range.start;
        if span > SPAN_LIMIT { Err(ElfError::Span { span }) } else { Ok(elf) }
    }

    /// From the lowest byte of memory that a segment wants to the highest.
    pub(crate) fn memory(&self) -> Range<u64> {
        let start = self.segments.iter().map(|segment| segment.memory.start).min().unwrap_or_default();
        let end = self.segments.iter().map(|segment| segment.memory.end).max().unwrap_or_default();
        start..end
    }

    /// Whether the file is one of 64 bits.
    pub(crate) fn is_64_bit(&self) -> bool {
        self.class == CLASS_64
    }

    /// The bytes of the file that hold the section headers, if there are any.
    pub(crate) fn section_headers(&self) -> Result<Option<Range<u64>>, ElfError> {
        let Some(table) = self.section_table else { return Ok(None) };
        let size = if self.class == CLASS_32 { 40 } else { 64 };
        match table.end() {
            Some(end) if table.size == size => Ok(Some(table.offset..end)),
            _ => Err(table.error("section headers")),
        }
    }

    /// The bytes of the file that sections of notes hold. `table` is what [`Self::section_headers`] named.
    pub(crate) fn note_sections(&self, table: &[u8]) -> Vec<Range<u64>> {
        let (kind_at, size) = (4, if self.class == CLASS_32 { 40 } else { 64 });
        table
            .chunks_exact(size)
            .filter(|entry| u32_at(entry, kind_at) == Some(SHT_NOTE))
            .filter_map(|entry| {
                let (offset, size) = if self.class == CLASS_32 {
                    (u32_at(entry, 16)?.into(), u32_at(entry, 20)?.into())
                } else {
                    (u64_at(entry, 24)?, u64_at(entry, 32)?)
                };
                (size <= NOTES_LIMIT).then_some(offset..offset.checked_add(size)?)
            })
            .collect()
    }
}

/// The section headers' place, when the file has sections at all.
fn section_table(class: u8, head: &[u8]) -> Option<Table> {
    let (offset, size_at) =
        if class == CLASS_32 { (u32_at(head, 32)?.into(), 46) } else { (u64_at(head, 40)?, 58) };
    let table = Table { offset, count: u16_at(head, size_at + 2)?, size: u16_at(head, size_at)? };
    (table.offset != 0 && table.count != 0).then_some(table)
}

/// Finds neighbours that overlap; `segments` are sorted by the start of `range`.
fn overlap(segments: &[Segment], range: impl Fn(&Segment) -> Range<u64>) -> Result<(), ElfError> {
    match segments.windows(2).find(|pair| range(&pair[0]).end > range(&pair[1]).start) {
        Some(pair) => Err(ElfError::Overlap { first: pair[0].index, second: pair[1].index }),
        None => Ok(()),
    }
}

struct ProgramHeader {
    kind: u32,
    flags: u32,
    file_offset: u64,
    file_size: u64,
    address: u64,
    memory_size: u64,
}

impl ProgramHeader {
    fn read(class: u8, entry: &[u8]) -> Option<Self> {
        let word = |at| u32_at(entry, at);
        let wide = |at| u64_at(entry, at);
        Some(if class == CLASS_32 {
            Self {
                kind: word(0)?,
                flags: word(24)?,
                file_offset: word(4)?.into(),
                file_size: word(16)?.into(),
                address: word(12)?.into(),
                memory_size: word(20)?.into(),
            }
        } else {
            Self {
                kind: word(0)?,
                flags: word(4)?,
                file_offset: wide(8)?,
                file_size: wide(32)?,
                address: wide(24)?,
                memory_size: wide(40)?,
            }
        })
    }

    fn error(&self, index: usize) -> ElfError {
        ElfError::Segment {
            index,
            file_offset: self.file_offset,
            file_size: self.file_size,
            address: self.address,
            memory_size: self.memory_size,
        }
    }

    fn file(&self) -> Option<Range<u64>> {
        Some(self.file_offset..self.file_offset.checked_add(self.file_size)?)
    }

    fn segment(&self, index: usize) -> Result<Segment, ElfError> {
        let end = self.address.checked_add(self.memory_size).filter(|end| *end <= ADDRESS_LIMIT);
        match (self.file(), end) {
            (Some(file), Some(end)) if self.file_size <= self.memory_size => {
                Ok(Segment { index, file, memory: self.address..end })
            }
            _ => Err(self.error(index)),
        }
    }

    fn notes(&self, index: usize) -> Result<Range<u64>, ElfError> {
        self.file().filter(|_| self.file_size <= NOTES_LIMIT).ok_or_else(|| self.error(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::synthetic::{Class, Load, SyntheticElf};
    use proptest::prelude::*;

    fn parse(file: &[u8]) -> Result<Elf, ElfError> {
        let size = head_size(&file[..file.len().min(HEADER_SIZE)])? as usize;
        Elf::parse(&file[..size.min(file.len())])
    }

    #[test]
    fn both_classes_give_the_same_segments() {
        let build = |class| SyntheticElf { class, ..SyntheticElf::pvh() }.build();
        let (narrow, wide) = (build(Class::Elf32), build(Class::Elf64));
        let (narrow, wide) = (parse(&narrow).unwrap(), parse(&wide).unwrap());
        assert_eq!(narrow.memory(), wide.memory());
        assert_eq!(narrow.segments.len(), 2);
        let memory = |elf: &Elf| elf.segments.iter().map(|s| s.memory.clone()).collect::<Vec<_>>();
        assert_eq!(memory(&narrow), memory(&wide));
        assert_eq!((narrow.notes.len(), wide.notes.len()), (1, 1));
    }

    #[test]
    fn segments_may_stand_in_any_order_in_the_file() {
        let mut elf = SyntheticElf::pvh();
        elf.loads.reverse();
        let parsed = parse(&elf.build()).unwrap();
        assert_eq!(parsed.memory(), parse(&SyntheticElf::pvh().build()).unwrap().memory());
        assert!(parsed.segments.windows(2).all(|pair| pair[0].file.end <= pair[1].file.start));
    }

    #[test]
    fn what_is_no_x86_kernel_is_refused_by_name() {
        let good = SyntheticElf::pvh().build();
        let with = |at: usize, value: u8| {
            let mut bad = good.clone();
            bad[at] = value;
            parse(&bad)
        };
        assert_eq!(parse(b"MZ"), Err(ElfError::NoHeader));
        assert_eq!(with(4, 3), Err(ElfError::Unsuitable { what: "class", value: 3 }));
        assert_eq!(with(5, 2), Err(ElfError::Unsuitable { what: "byte order", value: 2 }));
        assert_eq!(with(16, 1), Err(ElfError::Unsuitable { what: "file type", value: 1 }));
        assert_eq!(with(18, 183), Err(ElfError::Unsuitable { what: "machine", value: 183 }));
        assert!(matches!(with(54, 32), Err(ElfError::Table { what: "program headers", size: 32, .. })));
        assert!(matches!(with(57, 0xff), Err(ElfError::Table { what: "program headers", .. })));
        assert!(matches!(with(36, 0xff), Err(ElfError::Table { what: "program headers", .. })));
    }

    fn loads(loads: Vec<Load>) -> Result<Elf, ElfError> {
        parse(&SyntheticElf { loads, ..SyntheticElf::pvh() }.build())
    }

    fn load(address: u64, data: usize, memory_size: u64) -> Load {
        Load { address, data: vec![1; data], memory_size }
    }

    #[test]
    fn impossible_segments_are_refused() {
        assert_eq!(loads(vec![]), Err(ElfError::NothingToLoad));
        assert_eq!(loads(vec![load(0x1000, 0, 0)]), Err(ElfError::NothingToLoad));
        assert!(matches!(loads(vec![load(0x1000, 9, 8)]), Err(ElfError::Segment { index: 0, .. })));
        assert!(matches!(loads(vec![load(u64::MAX - 1, 4, 4)]), Err(ElfError::Segment { .. })));
        assert!(matches!(loads(vec![load((1 << 32) - 4, 4, 5)]), Err(ElfError::Segment { .. })));
        assert!(loads(vec![load((1 << 32) - 4, 4, 4)]).is_ok());
        assert_eq!(
            loads(vec![load(0x1000, 4, 0x1001), load(0x2000, 4, 4)]),
            Err(ElfError::Overlap { first: 0, second: 1 })
        );
        assert!(loads(vec![load(0x1000, 4, 0x1000), load(0x2000, 4, 4)]).is_ok());
        assert_eq!(
            loads(vec![load(0, 4, 4), load(SPAN_LIMIT, 4, 4)]),
            Err(ElfError::Span { span: SPAN_LIMIT + 4 })
        );
    }

    #[test]
    fn segments_that_share_bytes_of_the_file_are_refused() {
        let mut file = SyntheticElf::pvh().build();
        // The second program header's p_offset becomes the first's.
        let (first, second) = (64 + 8, 64 + 56 + 8);
        file.copy_within(first..first + 8, second);
        assert_eq!(parse(&file), Err(ElfError::Overlap { first: 0, second: 1 }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut file in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = parse(&file);
            let magic = b"\x7fELF\x02\x01";
            let n = magic.len().min(file.len());
            file[..n].copy_from_slice(&magic[..n]);
            let _ = parse(&file);
        }

        #[test]
        fn damaged_headers_never_panic(at in 0..232_usize, value in any::<u8>(), class in 0..2) {
            let class = if class == 0 { Class::Elf32 } else { Class::Elf64 };
            let mut file = SyntheticElf { class, ..SyntheticElf::pvh() }.build();
            file[at] = value;
            if let Ok(elf) = parse(&file) {
                prop_assert!(elf.memory().end <= ADDRESS_LIMIT);
                let _ = elf.section_headers();
                prop_assert!(elf.note_sections(&file).iter().all(|range| range.start <= range.end));
            }
        }
    }
}
