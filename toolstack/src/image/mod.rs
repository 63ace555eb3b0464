//! Kernel images: from a file to the bytes of a guest's memory, unpacking straight into it.
//!
//! A kernel comes as a bzImage (setup header, packed ELF file behind it), as an ELF file, or as a packed ELF file; each of
//! them may be a part of a PE file, or named by one ([`Unified`]). Its
//! memory layout is in the ELF file's head, but the notes that tell the entry are not: in Debian's kernels they stand
//! 24 MB into 65 MB of unpacked file, and every format but lz4 must be unpacked from the start. So the work has two
//! steps, and nothing is unpacked twice or kept in a buffer in between:
//!
//! 1. [`Kernel::open`] unpacks the head (a few hundred bytes) and learns the memory that the kernel wants. That is all a
//!    [`Plan`](crate::boot::Plan) needs; a domain can be made and its memory mapped.
//! 2. [`Kernel::unpack_in_place`] unpacks the whole file into that memory, mapped in the file's order ([`FilePages`]). Where
//!    that cannot be, [`Kernel::load_into`] goes on where the decoder stopped, and unpacks each segment to its place; what
//!    lies between the segments (and may hold notes or section headers) is kept aside. The notes are read at the end,
//!    from the memory itself.
//!
//! Files are hostile: a damaged one ends in an [`ImageError`], never in a panic or in unlimited memory.

mod bytes;
mod bzimage;
mod codec;
mod elf;
mod file;
mod file_pages;
mod lz4;
mod lzo;
mod notes;
mod pv;
#[cfg(test)]
pub(crate) mod synthetic;
mod unified;

pub use codec::Codec;
pub use elf::{ElfError, Segment};
pub use file::MappedFile;
pub use file_pages::FilePages;
pub use notes::{FEATURE_DOM0, FEATURE_RSDP_UNRESTRICTED, NoteError, Phys32Reloc, XenNotes};
pub use pv::PvKernel;
pub(crate) use unified::hex;
pub use unified::{EspFile, Part, Unified, UnifiedError};

use elf::Elf;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::io::{self, Cursor, Read};
use std::ops::Range;
use xen::PAGE_SIZE;

/// What a kernel may unpack to, in bytes (libxc: `XC_DOM_DECOMPRESS_MAX`).
const UNPACKED_LIMIT: u64 = 1 << 30;
/// Bytes that are handed on at once: few enough to be in a processor's cache still when they are looked at.
const UNPACKED_PART: usize = 512 << 10;
/// Bytes outside of segments that are kept for the sake of notes. Debian's kernels have 6 MB.
const ASIDE_LIMIT: usize = 64 << 20;

/// Why a file cannot be started as a guest's kernel.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file begins like nothing that is known.
    #[error("not a kernel: {found} (expected a bzImage, an ELF file or a packed ELF file)")]
    NotAKernel {
        /// What it seems to be.
        found: &'static str,
    },
    /// The file ends too early.
    #[error("the {what} is cut off: it ends at byte {needed}, the file has {have}")]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Where the part should end, in bytes from the file's start (the unpacked file's, for segments).
        needed: u64,
        /// Where the file ends.
        have: u64,
    },
    /// A bzImage of before Linux 2.6.26.
    #[error("boot protocol {major}.{minor:02} has no payload field (2.08, Linux 2.6.26, has)")]
    OldBootProtocol {
        /// Version.
        major: u8,
        /// Version.
        minor: u8,
    },
    /// The packed kernel is damaged, or cut off.
    #[error("the {codec} payload is damaged: {source}")]
    Damaged {
        /// How it is packed.
        codec: Codec,
        /// What the decoder says.
        source: io::Error,
    },
    /// What was unpacked is not as long as the image says.
    #[error("the payload unpacks to {unpacked} bytes, the image says {said}")]
    Length {
        /// Bytes.
        unpacked: u64,
        /// Bytes, from the payload's last four.
        said: u64,
    },
    /// A decompression bomb.
    #[error("the kernel unpacks to more than {UNPACKED_LIMIT} bytes")]
    TooLarge,
    /// The ELF file is not one of a kernel.
    #[error("not a kernel's ELF file: {0}")]
    Elf(#[from] ElfError),
    /// The PE file is not one that a guest can boot.
    #[error(transparent)]
    Unified(#[from] UnifiedError),
    /// The notes are damaged.
    #[error("damaged ELF notes: {0}")]
    Notes(#[from] NoteError),
    /// A program header names notes where the file has none.
    #[error("the ELF notes at {start:#x} to {end:#x} are in no part of the file", start = .0.start, end = .0.end)]
    NotesOutside(
        /// Bytes of the unpacked file.
        Range<u64>,
    ),
    /// The kernel cannot be a PVH guest.
    #[error("the kernel has no PVH entry (note PHYS32_ENTRY; Linux: CONFIG_PVH)")]
    NotPvh,
    /// The file cannot be read any more.
    #[error("it could not be read: {0}")]
    Read(#[source] io::Error),
    /// The kernel cannot be a PV guest.
    #[error("the kernel has no PV entry (note ENTRY; Linux: CONFIG_XEN_PV): make the qube a PVH guest")]
    NotPv,
    /// The kernel is one of 32 bits.
    #[error("the kernel is one of 32 bits: a PV guest's is one of 64 (make the qube a PVH guest)")]
    Pv32Bit,
    /// A note of a PV kernel leads outside of it.
    #[error("the Xen note {note} has the value {value:#x}, which is not a place in the kernel")]
    PvNote {
        /// Which.
        note: &'static str,
        /// An address.
        value: u64,
    },
    /// The kernel can be the control domain only.
    #[error("the kernel runs as dom0 only (it requires the feature `dom0')")]
    Dom0Only,
    /// The entry is in no segment.
    #[error("the entry {entry:#x} is in no segment of the kernel")]
    EntryOutside {
        /// A guest-physical address.
        entry: u32,
    },
    /// The file was another when its head was read.
    #[error("the file changed while it was read")]
    Changed,
    /// The memory given is not the [`Footprint`]'s.
    #[error("the kernel loads into {footprint} bytes, not into {given}")]
    Destination {
        /// Bytes.
        footprint: u64,
        /// Bytes.
        given: u64,
    },
}

/// Result of reading an image.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// How a kernel is wrapped and packed; `bzImage, xz` when printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    /// Behind Linux's setup header.
    pub bzimage: bool,
    /// `None` for a plain ELF file.
    pub codec: Option<Codec>,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let container = if self.bzimage { "bzImage" } else { "ELF" };
        match self.codec {
            Some(codec) => write!(f, "{container}, {codec}"),
            None => f.write_str(container),
        }
    }
}

/// What the layout of a guest has to know of its kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    /// Guest-physical addresses that the segments touch, in whole pages, below 4 GiB.
    pub memory: Range<u64>,
    /// The longest command line that the kernel reads, in bytes without the NUL; `None` when it does not say.
    pub cmdline_limit: Option<u32>,
    /// Where a PVH guest may have the kernel instead, where that can be told without unpacking.
    pub relocation: Option<Phys32Reloc>,
}

impl Footprint {
    /// Bytes of memory: what [`Kernel::load_into`] takes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.memory.end - self.memory.start
    }
}

/// A kernel of which the head was read.
pub struct Kernel<'a> {
    format: Format,
    footprint: Footprint,
    elf: Elf,
    source: Source<'a>,
    notes: Option<XenNotes>,
    keep: Option<Keep<'a>>,
}

/// Gets the unpacked file.
type Keep<'a> = Box<dyn FnOnce(&[u8]) + 'a>;

enum Source<'a> {
    /// Not packed; and the file that is to be read, if the bytes are a part of one.
    Plain(&'a [u8], Option<&'a MappedFile>),
    Packed {
        codec: Codec,
        packed: &'a [u8],
        /// The unpacked file from its first byte.
        stream: Box<dyn Read + Send + 'a>,
        /// How long the image says that it is.
        length: Option<u64>,
    },
}

/// What is known of a kernel when it is in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// All of the kernel's Xen notes.
    pub notes: XenNotes,
    /// Bytes of the unpacked file.
    pub unpacked: u64,
    segments: Vec<Segment>,
}

impl Loaded {
    /// Where a PVH guest's first vCPU starts: a guest-physical address in a segment.
    ///
    /// # Errors
    /// When the kernel cannot be a PVH guest.
    pub fn pvh_entry(&self) -> Result<u32> {
        pvh_entry(&self.segments, &self.notes)
    }
}

impl fmt::Debug for Kernel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("format", &self.format)
            .field("footprint", &self.footprint)
            .field("segments", &self.elf.segments)
            .field("notes", &self.notes)
            .finish_non_exhaustive()
    }
}

impl<'a> Kernel<'a> {
    /// Recognises a kernel and reads its head. `image` is the whole file.
    ///
    /// # Errors
    /// See [`ImageError`]. A plain ELF file is checked to the end, and is that of a kernel that some kind of guest can start; for a packed one, damage behind the head is found by
    /// [`Self::load_into`].
    pub fn open(image: &'a [u8]) -> Result<Self> {
        let (file, bzimage) = if bzimage::is_bzimage(image) {
            let bzimage = bzimage::parse(image)?;
            (bzimage.payload, Some(bzimage))
        } else {
            (image, None)
        };
        let codec = Codec::detect(file);
        let format = Format { bzimage: bzimage.is_some(), codec };
        let (elf, source) = match codec {
            None if file.starts_with(b"\x7fELF") => (plain_head(file)?, Source::Plain(file, None)),
            None => return Err(ImageError::NotAKernel { found: guess(image, format.bzimage) }),
            Some(codec) => {
                let with_length = format.bzimage && codec.has_length_behind();
                let (packed, length) = if with_length { split_length(file)? } else { (file, None) };
                let (elf, stream) = packed_head(codec, codec.unpack(packed)?)?;
                (elf, Source::Packed { codec, packed, stream, length })
            }
        };
        let cmdline_limit = bzimage.map(|bzimage| bzimage.cmdline_limit).filter(|limit| *limit > 0);
        Self::new(format, elf, source, cmdline_limit)
    }

    /// The kernel whose unpacked file `file` is ([`Self::unpack`]); the rest is as the packed kernel had it.
    ///
    /// # Errors
    /// As [`Self::open`] of a plain ELF file.
    pub fn open_unpacked(file: &'a [u8], format: Format, cmdline_limit: Option<u32>) -> Result<Self> {
        Self::new(format, plain_head(file)?, Source::Plain(file, None), cmdline_limit)
    }

    fn new(format: Format, elf: Elf, source: Source<'a>, cmdline_limit: Option<u32>) -> Result<Self> {
        let notes = match source {
            Source::Plain(file, _) => Some(elf_notes(&elf, |range| slice(file, range).map(Cow::Borrowed))?),
            Source::Packed { .. } => None,
        };
        if let Some(notes) = &notes
            && let (Err(error), Err(_)) = (pvh_entry(&elf.segments, notes), PvKernel::new(&elf, notes))
        {
            return Err(error);
        }
        let memory = elf.memory();
        let page = PAGE_SIZE as u64;
        let footprint = Footprint {
            memory: memory.start / page * page..memory.end.next_multiple_of(page),
            cmdline_limit,
            relocation: notes.as_ref().and_then(|notes| notes.phys32_reloc),
        };
        Ok(Self { format, footprint, elf, source, notes, keep: None })
    }

    /// How the kernel is wrapped and packed.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The memory that the kernel wants.
    #[must_use]
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }

    /// The parts of the kernel, in the order of the file.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.elf.segments
    }

    /// The kernel's notes, where they can be read without unpacking: in a plain ELF file.
    #[must_use]
    pub fn notes(&self) -> Option<&XenNotes> {
        self.notes.as_ref()
    }

    /// Where a PVH guest's first vCPU starts, where that can be told without unpacking.
    #[must_use]
    pub fn pvh_entry(&self) -> Option<Result<u32>> {
        self.notes.as_ref().map(|notes| pvh_entry(&self.elf.segments, notes))
    }

    /// What the kernel says of itself as a PV guest, where that can be told without unpacking.
    #[must_use]
    pub fn pv(&self) -> Option<Result<PvKernel>> {
        self.notes.as_ref().map(|notes| PvKernel::new(&self.elf, notes))
    }

    /// Bytes that it unpacks to by its own word, which unpacking checks; `None` when it does not say.
    #[must_use]
    pub fn said_size(&self) -> Option<u64> {
        match &self.source {
            Source::Plain(file, _) => Some(file.len() as u64),
            Source::Packed { length, .. } => *length,
        }
    }

    /// Unpacks the kernel's file to its end, and hands it on part by part. Returns its length in bytes.
    ///
    /// # Errors
    /// See [`ImageError`], and what `sink` returns.
    pub fn unpack<E: From<ImageError>>(self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<u64, E> {
        let (codec, mut stream, length) = match self.source {
            Source::Plain(file, _) => return sink(file).map(|()| file.len() as u64),
            Source::Packed { codec, stream, length, .. } => (codec, stream, length),
        };
        let mut part = vec![0; UNPACKED_PART];
        let mut unpacked = 0;
        loop {
            let n = fill(&mut stream, &mut part).map_err(|source| ImageError::Damaged { codec, source })?;
            unpacked += n as u64;
            if unpacked > UNPACKED_LIMIT {
                return Err(ImageError::TooLarge.into());
            }
            sink(&part[..n])?;
            if n < part.len() {
                break;
            }
        }
        match length.filter(|said| *said != unpacked) {
            Some(said) => Err(ImageError::Length { unpacked, said }.into()),
            None => Ok(unpacked),
        }
    }

    /// What is not packed is to be read from `file`, of whose bytes it was opened, rather than copied from its mapping: a
    /// page that was never touched is a fault, and under Xen a fault of dom0's costs more than its page's bytes.
    #[must_use]
    pub fn read_from(mut self, file: &'a MappedFile) -> Self {
        if let Source::Plain(_, mapped) = &mut self.source {
            *mapped = Some(file);
        }
        self
    }

    /// The unpacked file is to be given to `keep` when it has been loaded.
    #[must_use]
    pub fn keep_with(self, keep: impl FnOnce(&[u8]) + 'a) -> Self {
        Self { keep: Some(Box::new(keep)), ..self }
    }

    /// Which pages of a guest's memory are which of the unpacked file's; `None` where the file is not packed, does not say
    /// how long it is, or does not divide into pages as the memory does.
    #[must_use]
    pub fn file_pages(&self) -> Option<FilePages> {
        match self.source {
            Source::Packed { length: Some(length), .. } => FilePages::new(length, &self.elf.segments),
            _ => None,
        }
    }

    /// Unpacks the kernel's file into `memory`, whose pages are those that [`Self::file_pages`] names. What is in them and in
    /// no segment is zero in the end.
    ///
    /// # Errors
    /// See [`ImageError`]; `memory` has then been written in part.
    pub fn unpack_in_place(mut self, pages: &FilePages, memory: &mut [u8]) -> Result<Loaded> {
        let keep = self.keep.take();
        let given = memory.len() as u64;
        let file = usize::try_from(pages.length()).ok().and_then(|length| memory.get_mut(..length));
        let file = file.ok_or(ImageError::Destination { footprint: pages.length(), given })?;
        let loaded = self.unpack_whole(file)?;
        if let Some(keep) = keep {
            keep(file);
        }
        pages.clear(memory);
        Ok(loaded)
    }

    /// Unpacks the file to its end into `file`, which is as long as it says that it is.
    fn unpack_whole(self, file: &mut [u8]) -> Result<Loaded> {
        let Self { elf, source, .. } = self;
        if let Source::Packed { codec, packed, mut stream, .. } = source {
            let damaged = |source| ImageError::Damaged { codec, source };
            let said = file.len() as u64;
            let unpacked = match codec.unpack_at_once(packed, file) {
                Some(unpacked) => unpacked.map_err(damaged)? as u64,
                None => {
                    let mut unpacked = fill(&mut stream, file).map_err(damaged)? as u64;
                    // To the end: that is where the decoders compare their checksums.
                    let mut more = vec![0; 4 << 10];
                    while unpacked >= said {
                        match fill(&mut stream, &mut more).map_err(damaged)? as u64 {
                            0 => break,
                            n => unpacked += n,
                        }
                        if unpacked > UNPACKED_LIMIT {
                            return Err(ImageError::TooLarge);
                        }
                    }
                    unpacked
                }
            };
            if unpacked != said {
                return Err(ImageError::Length { unpacked, said });
            }
        }
        // It was read twice where it was unpacked at once; where its segments go was decided by the first reading.
        if plain_head(file)? != elf {
            return Err(ImageError::Changed);
        }
        let notes = elf_notes(&elf, |range| slice(file, range).map(Cow::Borrowed))?;
        Ok(Loaded { notes, unpacked: file.len() as u64, segments: elf.segments })
    }

    /// Unpacks the kernel into `memory`, which is the guest-physical memory of the [`Footprint`], first byte first. All of
    /// it is written: what no segment fills becomes zero.
    ///
    /// # Errors
    /// See [`ImageError`]; `memory` has then been written in part.
    pub fn load_into(mut self, memory: &mut [u8]) -> Result<Loaded> {
        if let Some(keep) = self.keep.take() {
            let (format, cmdline_limit) = (self.format, self.footprint.cmdline_limit);
            let mut file = Vec::new();
            self.unpack(|part| {
                file.extend_from_slice(part);
                Ok::<_, ImageError>(())
            })?;
            let kernel = Kernel::open_unpacked(&file, format, cmdline_limit)?;
            keep(&file);
            return kernel.load_into(memory);
        }
        let Self { footprint, elf, source, notes, .. } = self;
        if memory.len() as u64 != footprint.size() {
            return Err(ImageError::Destination { footprint: footprint.size(), given: memory.len() as u64 });
        }
        let base = footprint.memory.start;
        zero_the_rest(&elf, base, memory);
        let (notes, unpacked) = match source {
            Source::Plain(file, mapped) => {
                for segment in &elf.segments {
                    let (bytes, place) = (segment_of(file, segment)?, destination(segment, base, memory));
                    match mapped {
                        Some(mapped) => mapped.read(bytes, place).map_err(ImageError::Read)?,
                        None => place.copy_from_slice(bytes),
                    }
                }
                (notes, file.len() as u64)
            }
            Source::Packed { codec, stream, length, .. } => {
                let mut unpacking = Unpacking { codec, stream, at: 0, aside: Vec::new(), room: ASIDE_LIMIT };
                unpacking.place(&elf, base, memory)?;
                if let Some(said) = length.filter(|said| *said != unpacking.at) {
                    return Err(ImageError::Length { unpacked: unpacking.at, said });
                }
                let find = |range| unpacking.collect(&elf, base, memory, range).map(Cow::Owned);
                (Some(elf_notes(&elf, find)?), unpacking.at)
            }
        };
        let notes = notes.unwrap_or_default();
        Ok(Loaded { notes, unpacked, segments: elf.segments })
    }
}

/// What else a file may be, for the error message.
fn guess(image: &[u8], bzimage: bool) -> &'static str {
    match image {
        _ if bzimage => "a bzImage whose payload is packed in no known format",
        [b'M', b'Z', ..] => {
            "a PE file without Linux's setup header (a unified kernel image or an EFI program)"
        }
        [b'#', b'!', ..] => "a script",
        [b'0', b'7', b'0', b'7', b'0', ..] => "a cpio archive (an initrd)",
        [] => "an empty file",
        _ => "unknown contents",
    }
}

fn slice(bytes: &[u8], range: Range<u64>) -> Option<&[u8]> {
    bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}

/// Takes the unpacked length off a bzImage's payload.
fn split_length(payload: &[u8]) -> Result<(&[u8], Option<u64>)> {
    let truncated = ImageError::Truncated { what: "bzImage payload", needed: 4, have: payload.len() as u64 };
    let (packed, length) = payload.split_last_chunk().ok_or(truncated)?;
    let length = u64::from(u32::from_le_bytes(*length));
    if length > UNPACKED_LIMIT { Err(ImageError::TooLarge) } else { Ok((packed, Some(length))) }
}

fn plain_head(file: &[u8]) -> Result<Elf> {
    let needed = elf::head_size(file)?;
    let have = file.len() as u64;
    let head =
        slice(file, 0..needed).ok_or(ImageError::Truncated { what: "ELF program headers", needed, have })?;
    let elf = Elf::parse(head)?;
    for segment in &elf.segments {
        segment_of(file, segment)?;
    }
    Ok(elf)
}

fn segment_of<'a>(file: &'a [u8], segment: &Segment) -> Result<&'a [u8]> {
    let (needed, have) = (segment.file.end, file.len() as u64);
    // A segment without bytes may have any offset.
    if segment.file.is_empty() {
        return Ok(&[]);
    }
    slice(file, segment.file.clone()).ok_or(ImageError::Truncated { what: "kernel segment", needed, have })
}

/// Unpacks as much as the ELF headers take, and gives back the stream with those bytes in front again.
fn packed_head<'a>(
    codec: Codec,
    mut stream: Box<dyn Read + Send + 'a>,
) -> Result<(Elf, Box<dyn Read + Send + 'a>)> {
    let mut head = vec![0; elf::HEADER_SIZE];
    let have = fill(&mut stream, &mut head).map_err(|source| ImageError::Damaged { codec, source })?;
    let needed = elf::head_size(&head[..have])?.max(have as u64) as usize;
    // At most HEAD_LIMIT.
    head.resize(needed, 0);
    let have = have
        + fill(&mut stream, &mut head[have..]).map_err(|source| ImageError::Damaged { codec, source })?;
    if have < needed {
        let (needed, have) = (needed as u64, have as u64);
        return Err(ImageError::Truncated { what: "ELF program headers", needed, have });
    }
    let elf = Elf::parse(&head)?;
    Ok((elf, Box::new(Cursor::new(head).chain(stream))))
}

/// Reads until `out` is full or the stream ends.
fn fill(stream: &mut dyn Read, out: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < out.len() {
        match stream.read(&mut out[at..]) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

/// The part of `memory` that the file fills.
fn destination<'a>(segment: &Segment, base: u64, memory: &'a mut [u8]) -> &'a mut [u8] {
    let at = (segment.memory.start - base) as usize;
    &mut memory[at..at + (segment.file.end - segment.file.start) as usize]
}

/// Zeroes what no segment's bytes of the file will fill.
fn zero_the_rest(elf: &Elf, base: u64, memory: &mut [u8]) {
    let mut filled: Vec<Range<usize>> = elf
        .segments
        .iter()
        .map(|segment| {
            let at = (segment.memory.start - base) as usize;
            at..at + (segment.file.end - segment.file.start) as usize
        })
        .collect();
    filled.sort_by_key(|range| range.start);
    let mut at = 0;
    for range in filled {
        memory[at..range.start].fill(0);
        at = range.end;
    }
    memory[at..].fill(0);
}

/// A packed kernel on its way into memory.
struct Unpacking<'a> {
    codec: Codec,
    stream: Box<dyn Read + Send + 'a>,
    /// Bytes of the unpacked file that were read.
    at: u64,
    /// What lies outside of the segments: where it is in the file, and the bytes.
    aside: Vec<(u64, Vec<u8>)>,
    /// How many more bytes may be kept aside.
    room: usize,
}

impl Unpacking<'_> {
    fn place(&mut self, elf: &Elf, base: u64, memory: &mut [u8]) -> Result<()> {
        for segment in elf.segments.iter().filter(|segment| !segment.file.is_empty()) {
            self.set_aside(Some(segment.file.start))?;
            if segment.file.end > UNPACKED_LIMIT {
                return Err(ImageError::TooLarge);
            }
            if self.at == segment.file.start {
                let out = destination(segment, base, memory);
                self.at += self.read(out)? as u64;
            }
            if self.at != segment.file.end {
                let (needed, have) = (segment.file.end, self.at);
                return Err(ImageError::Truncated { what: "kernel segment", needed, have });
            }
        }
        // To the end, for the sections and because the decoders compare their checksums there.
        self.set_aside(None)
    }

    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        fill(&mut self.stream, out).map_err(|source| ImageError::Damaged { codec: self.codec, source })
    }

    /// Reads up to byte `end` of the file, or to its end, and keeps what there is room for.
    fn set_aside(&mut self, end: Option<u64>) -> Result<()> {
        let start = self.at;
        let mut kept = Vec::new();
        let mut part = vec![0; 256 << 10];
        loop {
            let len = end.map_or(part.len(), |end| (end - self.at).min(part.len() as u64) as usize);
            let n = self.read(&mut part[..len])?;
            let keep = n.min(self.room);
            kept.extend_from_slice(&part[..keep]);
            self.room -= keep;
            self.at += n as u64;
            if self.at > UNPACKED_LIMIT {
                return Err(ImageError::TooLarge);
            }
            if n < len || n == 0 {
                break;
            }
        }
        if !kept.is_empty() {
            self.aside.push((start, kept));
        }
        Ok(())
    }

    /// Bytes of the unpacked file, from wherever they went: into a segment's memory or aside, or partly each.
    fn collect(&self, elf: &Elf, base: u64, memory: &[u8], range: Range<u64>) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let in_segment = elf.segments.iter().find(|segment| segment.file.contains(&at)).map(|segment| {
                let start = segment.memory.start - base;
                (segment.file.start, slice(memory, start..start + (segment.file.end - segment.file.start)))
            });
            let in_part = || {
                self.aside
                    .iter()
                    .map(|(start, part)| (*start, Some(&part[..])))
                    .rfind(|(start, _)| *start <= at)
            };
            let (start, part) = in_segment.or_else(in_part)?;
            let rest = part?.get((at - start) as usize..).filter(|rest| !rest.is_empty())?;
            let rest = &rest[..rest.len().min((range.end - at) as usize)];
            bytes.extend_from_slice(rest);
            at += rest.len() as u64;
        }
        Some(bytes)
    }
}

/// Reads the Xen notes of an ELF file: those of its note segments, or else those of its note sections.
fn elf_notes<'a>(elf: &Elf, find: impl Fn(Range<u64>) -> Option<Cow<'a, [u8]>>) -> Result<XenNotes> {
    let mut notes = XenNotes::default();
    for range in elf.notes.iter().filter(|range| !range.is_empty()) {
        notes.read(&find(range.clone()).ok_or_else(|| ImageError::NotesOutside(range.clone()))?)?;
    }
    if notes.count == 0
        && let Some(table) = elf.section_headers()?.and_then(&find)
    {
        for range in elf.note_sections(&table).into_iter().filter(|range| !range.is_empty()) {
            notes.read(&find(range.clone()).ok_or(ImageError::NotesOutside(range))?)?;
        }
    }
    Ok(notes)
}

/// The PVH entry, when the kernel can be a PVH guest.
fn pvh_entry(segments: &[Segment], notes: &XenNotes) -> Result<u32> {
    if notes.requires(FEATURE_DOM0) {
        return Err(ImageError::Dom0Only);
    }
    let entry = notes.phys32_entry.ok_or(ImageError::NotPvh)?;
    if segments.iter().any(|segment| segment.memory.contains(&entry.into())) {
        Ok(entry)
    } else {
        Err(ImageError::EntryOutside { entry })
    }
}

#[cfg(test)]
mod tests;
