//! Xen's ELF notes: what a kernel tells the builder about itself (xen/include/public/elfnote.h).
//!
//! A note is a header of three 32-bit numbers (size of the name, size of the value, type), the name, and the value, each
//! padded to 4 bytes. Xen's have the name "Xen". They are found in note segments (`PT_NOTE`) or, in kernels that were
//! linked without one, in note sections (`SHT_NOTE`).

use super::bytes::{u32_at, u64_at};
use std::ops::Range;

/// Notes of one kernel, others than Xen's included (libelf: `ELF_MAX_TOTAL_NOTE_COUNT`).
const NOTES_LIMIT: usize = 65_536;
/// Bytes of a text value.
const TEXT_LIMIT: usize = 1_024;

const ENTRY: u32 = 1;
const HYPERCALL_PAGE: u32 = 2;
const VIRT_BASE: u32 = 3;
const PADDR_OFFSET: u32 = 4;
const XEN_VERSION: u32 = 5;
const GUEST_OS: u32 = 6;
const GUEST_VERSION: u32 = 7;
const LOADER: u32 = 8;
const PAE_MODE: u32 = 9;
const FEATURES: u32 = 10;
const HV_START_LOW: u32 = 12;
const SUSPEND_CANCEL: u32 = 14;
const INIT_P2M: u32 = 15;
const MOD_START_PFN: u32 = 16;
const SUPPORTED_FEATURES: u32 = 17;
const PHYS32_ENTRY: u32 = 18;
const PHYS32_RELOC: u32 = 19;

/// The names that the `FEATURES` note uses, by bit (`XENFEAT_*`, xen/include/public/features.h).
const FEATURE_NAMES: [(&str, u32); 7] = [
    ("writable_page_tables", 0),
    ("writable_descriptor_tables", 1),
    ("auto_translated_physmap", 2),
    ("supervisor_mode_kernel", 3),
    ("pae_pgdir_above_4gb", 4),
    ("hvm_callback_vector", 8),
    ("dom0", 11),
];

/// `XENFEAT_dom0`: the kernel can be (or, when required, insists on being) the control domain.
pub const FEATURE_DOM0: u32 = 11;
/// `XENFEAT_linux_rsdp_unrestricted`: finds the ACPI tables through start_info, wherever they are.
pub const FEATURE_RSDP_UNRESTRICTED: u32 = 15;

/// What is wrong with a kernel's notes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// A note's sizes lead outside of what holds the notes.
    #[error("the note at byte {offset} of {size} bytes of notes is cut off")]
    Truncated {
        /// Where the note begins.
        offset: usize,
        /// Bytes of the segment or section.
        size: usize,
    },
    /// More notes than any kernel has.
    #[error("more than {NOTES_LIMIT} notes")]
    TooMany,
    /// A value has a size that its type does not have.
    #[error("the Xen note of type {kind} has a value of {size} bytes")]
    Size {
        /// The note's type.
        kind: u32,
        /// Bytes of its value.
        size: usize,
    },
    /// A value is out of range.
    #[error("the Xen note of type {kind} has the value {value:#x}, which is out of range")]
    Value {
        /// The note's type.
        kind: u32,
        /// Its value.
        value: u64,
    },
    /// The kernel insists on a feature of which nobody knows.
    #[error("the kernel requires the feature `{0}', which Xen does not know")]
    UnknownFeature(String),
}

/// Where a kernel may be put instead of where it was linked (note `PHYS32_RELOC`, Xen 4.20 and newer).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phys32Reloc {
    /// The start's alignment, in bytes.
    pub align: u32,
    /// The lowest start.
    pub min: u32,
    /// The highest last byte.
    pub max: u32,
}

/// A kernel's Xen notes. Unknown types are passed over; of two of a type the later counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XenNotes {
    /// How many Xen notes there were.
    pub count: usize,
    /// The entry of a PVH guest: 32-bit, physical, without paging.
    pub phys32_entry: Option<u32>,
    /// Where a PVH kernel may be moved.
    pub phys32_reloc: Option<Phys32Reloc>,
    /// Such as `linux`.
    pub guest_os: Option<String>,
    /// Such as `2.6`.
    pub guest_version: Option<String>,
    /// Such as `xen-3.0`.
    pub xen_version: Option<String>,
    /// Such as `generic`.
    pub loader: Option<String>,
    /// Features that the kernel can live with, a bit each (`XENFEAT_*`).
    pub supported_features: u32,
    /// Features without which it does not start.
    pub required_features: u32,
    /// PV: the entry, a virtual address.
    pub entry: Option<u64>,
    /// PV: where the hypercall page goes. Absent in newer Linux.
    pub hypercall_page: Option<u64>,
    /// PV: the virtual address that physical address 0 has.
    pub virt_base: Option<u64>,
    /// PV: subtracted from the segments' physical addresses.
    pub paddr_offset: Option<u64>,
    /// PV: where the list of frames may be mapped.
    pub init_p2m: Option<u64>,
    /// PV: the lowest address that the kernel leaves to Xen.
    pub hv_start_low: Option<u64>,
    /// PV: `yes`, `bimodal` …
    pub pae_mode: Option<String>,
    /// PV: the initrd need not be mapped.
    pub mod_start_pfn: bool,
    /// The kernel can undo a suspend that did not happen.
    pub suspend_cancel: bool,
}

impl Phys32Reloc {
    /// The lowest place for a kernel that was linked for `linked`, which is above it, and for which nothing is to lie
    /// below `floor`. What the kernel's start is aligned to stays.
    #[must_use]
    pub fn lowest(&self, linked: &Range<u64>, floor: u64) -> Option<Range<u64>> {
        let room = linked.start.checked_sub(floor.max(self.min.into()))?;
        let down = room / u64::from(self.align) * u64::from(self.align);
        let end = linked.end - down;
        (end <= u64::from(self.max) + 1).then(|| linked.start - down..end)
    }
}

impl XenNotes {
    /// Takes in the notes of one segment or section.
    ///
    /// # Errors
    /// See [`NoteError`]. What was read before the error stays.
    pub fn read(&mut self, notes: &[u8]) -> Result<(), NoteError> {
        let mut at = 0;
        let mut seen = 0;
        // Fewer bytes than a header are the padding of the last note.
        while notes.len() - at >= 12 {
            let truncated = || NoteError::Truncated { offset: at, size: notes.len() };
            let number = |at| u32_at(notes, at).ok_or_else(truncated);
            let (name_size, value_size, kind) = (number(at)?, number(at + 4)?, number(at + 8)?);
            let name_at = at + 12;
            let value_at = padded_end(name_at, name_size).ok_or_else(truncated)?;
            let next = padded_end(value_at, value_size).ok_or_else(truncated)?;
            let name = notes.get(name_at..name_at + name_size as usize).ok_or_else(truncated)?;
            let value = notes.get(value_at..value_at + value_size as usize).ok_or_else(truncated)?;
            if name == b"Xen\0" {
                self.note(kind, value)?;
                self.count += 1;
            }
            seen += 1;
            if seen > NOTES_LIMIT {
                return Err(NoteError::TooMany);
            }
            // The last note's padding may be missing.
            at = next.min(notes.len());
        }
        Ok(())
    }

    /// Whether the kernel says that it can live with feature `bit` (`XENFEAT_*`).
    #[must_use]
    pub fn supports(&self, bit: u32) -> bool {
        self.supported_features & 1 << bit != 0
    }

    /// Whether the kernel insists on feature `bit`.
    #[must_use]
    pub fn requires(&self, bit: u32) -> bool {
        self.required_features & 1 << bit != 0
    }

    fn note(&mut self, kind: u32, value: &[u8]) -> Result<(), NoteError> {
        match kind {
            ENTRY => self.entry = Some(number(kind, value)?),
            HYPERCALL_PAGE => self.hypercall_page = Some(number(kind, value)?),
            VIRT_BASE => self.virt_base = Some(number(kind, value)?),
            PADDR_OFFSET => self.paddr_offset = Some(number(kind, value)?),
            XEN_VERSION => self.xen_version = Some(text(kind, value)?),
            GUEST_OS => self.guest_os = Some(text(kind, value)?),
            GUEST_VERSION => self.guest_version = Some(text(kind, value)?),
            LOADER => self.loader = Some(text(kind, value)?),
            PAE_MODE => self.pae_mode = Some(text(kind, value)?),
            FEATURES => self.features(&text(kind, value)?)?,
            HV_START_LOW => self.hv_start_low = Some(number(kind, value)?),
            SUSPEND_CANCEL => self.suspend_cancel = number(kind, value)? != 0,
            INIT_P2M => self.init_p2m = Some(number(kind, value)?),
            MOD_START_PFN => self.mod_start_pfn = number(kind, value)? != 0,
            SUPPORTED_FEATURES => {
                self.supported_features |=
                    u32_at(value, 0).ok_or(NoteError::Size { kind, size: value.len() })?;
            }
            PHYS32_ENTRY => {
                let value = number(kind, value)?;
                let entry = u32::try_from(value).map_err(|_| NoteError::Value { kind, value })?;
                self.phys32_entry = Some(entry);
            }
            PHYS32_RELOC => self.phys32_reloc = Some(relocation(kind, value)?),
            _ => {}
        }
        Ok(())
    }

    /// The `FEATURES` note: names separated by `|`, with `!` before one that the kernel requires.
    fn features(&mut self, names: &str) -> Result<(), NoteError> {
        for name in names.split('|').filter(|name| !name.is_empty()) {
            let (required, name) = name.strip_prefix('!').map_or((false, name), |name| (true, name));
            match FEATURE_NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, bit)) => {
                    self.supported_features |= 1 << bit;
                    self.required_features |= u32::from(required) << bit;
                }
                None if required => return Err(NoteError::UnknownFeature(name.to_owned())),
                None => {}
            }
        }
        Ok(())
    }
}

/// Where something of `size` bytes at `at` ends, padding included.
fn padded_end(at: usize, size: u32) -> Option<usize> {
    at.checked_add(size as usize)?.checked_next_multiple_of(4)
}

fn number(kind: u32, value: &[u8]) -> Result<u64, NoteError> {
    match value.len() {
        4 => u32_at(value, 0).map(u64::from),
        8 => u64_at(value, 0),
        _ => None,
    }
    .ok_or(NoteError::Size { kind, size: value.len() })
}

/// The text up to the first NUL.
fn text(kind: u32, value: &[u8]) -> Result<String, NoteError> {
    if value.len() > TEXT_LIMIT {
        return Err(NoteError::Size { kind, size: value.len() });
    }
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    Ok(String::from_utf8_lossy(&value[..end]).into_owned())
}

/// Alignment, minimum and maximum; what is missing has the default of the header.
fn relocation(kind: u32, value: &[u8]) -> Result<Phys32Reloc, NoteError> {
    if value.len() > 12 || !value.len().is_multiple_of(4) {
        return Err(NoteError::Size { kind, size: value.len() });
    }
    let align = u32_at(value, 0).unwrap_or(2 << 20);
    if !align.is_power_of_two() {
        return Err(NoteError::Value { kind, value: align.into() });
    }
    Ok(Phys32Reloc { align, min: u32_at(value, 4).unwrap_or(0), max: u32_at(value, 8).unwrap_or(u32::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::synthetic::{note, xen_note};
    use proptest::prelude::*;

    fn read(notes: &[u8]) -> Result<XenNotes, NoteError> {
        let mut read = XenNotes::default();
        read.read(notes).map(|()| read)
    }

    #[test]
    fn the_notes_of_a_linux_kernel() {
        // Debian's 6.12 cloud kernel.
        let bytes = [
            xen_note(19, &[0, 0, 0x20, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0x3f]),
            xen_note(18, &0x100_0a30_u64.to_le_bytes()),
            xen_note(6, b"linux\0"),
            xen_note(5, b"xen-3.0\0"),
            xen_note(3, &0xffff_ffff_8000_0000_u64.to_le_bytes()),
            xen_note(10, b"!writable_page_tables\0"),
            xen_note(17, &0x8001_u32.to_le_bytes()),
            xen_note(8, b"generic\0"),
            note(b"GNU\0", 3, &[0xfe; 20]),
        ]
        .concat();
        let notes = read(&bytes).unwrap();
        assert_eq!(notes.count, 8);
        assert_eq!(notes.phys32_entry, Some(0x100_0a30));
        let reloc = Phys32Reloc { align: 0x20_0000, min: 0x100_0000, max: 0x3fff_ffff };
        assert_eq!(notes.phys32_reloc, Some(reloc));
        assert_eq!(notes.guest_os.as_deref(), Some("linux"));
        assert_eq!(notes.loader.as_deref(), Some("generic"));
        assert_eq!(notes.virt_base, Some(0xffff_ffff_8000_0000));
        assert!(notes.supports(FEATURE_RSDP_UNRESTRICTED) && notes.supports(0) && notes.requires(0));
        assert!(!notes.supports(FEATURE_DOM0) && !notes.requires(FEATURE_DOM0));
        assert_eq!(notes.hypercall_page, None);
    }

    #[test]
    fn the_lowest_place_of_a_kernel_keeps_its_alignment() {
        let reloc = Phys32Reloc { align: 0x20_0000, min: 0x100_0000, max: 0x3fff_ffff };
        assert_eq!(reloc.lowest(&(0x4000_0000..0x4300_0000), 0x10_0000), Some(0x100_0000..0x400_0000));
        assert_eq!(
            reloc.lowest(&(0x4000_1000..0x4300_0000), 0x10_0000),
            Some(0x100_1000..0x3ff_f000 + 0x1000)
        );
        assert_eq!(reloc.lowest(&(0x10_0000..0x20_0000), 0x10_0000), None, "below the minimum already");
        let low = Phys32Reloc { max: 0x1ff_ffff, ..reloc };
        assert_eq!(low.lowest(&(0x4000_0000..0x4100_0000), 0), Some(0x100_0000..0x200_0000));
        assert_eq!(low.lowest(&(0x4000_0000..0x4100_1000), 0), None, "beyond the maximum");
    }

    #[test]
    fn other_peoples_notes_are_passed_over() {
        let bytes =
            [note(b"Xenon\0", 18, &[1; 4]), note(b"Xen", 18, &[1; 4]), xen_note(99, &[1; 5])].concat();
        assert_eq!(read(&bytes).unwrap(), XenNotes { count: 1, ..XenNotes::default() });
    }

    #[test]
    fn wrong_values_are_errors() {
        let error = |kind, value: &[u8]| read(&xen_note(kind, value)).unwrap_err();
        assert_eq!(error(18, &[1, 2]), NoteError::Size { kind: 18, size: 2 });
        let wide = (1_u64 << 32).to_le_bytes();
        assert_eq!(error(18, &wide), NoteError::Value { kind: 18, value: 1 << 32 });
        assert_eq!(error(19, &[0, 0, 3, 0]), NoteError::Value { kind: 19, value: 0x3_0000 });
        assert_eq!(error(19, &[0; 16]), NoteError::Size { kind: 19, size: 16 });
        assert_eq!(error(6, &[b'a'; 1025]), NoteError::Size { kind: 6, size: 1025 });
        assert_eq!(error(10, b"a|!teleport"), NoteError::UnknownFeature("teleport".to_owned()));
        assert_eq!(read(&xen_note(10, b"teleport|dom0")).unwrap().supported_features, 1 << FEATURE_DOM0);
    }

    #[test]
    fn every_cut_is_noticed_unless_it_is_in_the_padding() {
        let whole = [xen_note(6, b"linux\0"), xen_note(18, &[4, 3, 2, 1])].concat();
        let first = xen_note(6, b"linux\0").len();
        for end in 0..whole.len() {
            match read(&whole[..end]) {
                Ok(notes) => {
                    // Too short for another header, or only padding is missing.
                    let rest = end - if end >= first - 2 { first.min(end) } else { 0 };
                    assert!(rest < 12, "cut at {end}");
                    assert_eq!(notes.phys32_entry, None);
                }
                Err(error) => assert!(matches!(error, NoteError::Truncated { .. }), "{error}"),
            }
        }
        assert_eq!(read(&whole).unwrap().phys32_entry, Some(0x0102_0304));
    }

    #[test]
    fn sizes_that_overflow_are_truncated_notes() {
        for (name, value) in [(u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX), (4, 1 << 31)] {
            let mut bytes = xen_note(18, &[0; 4]);
            bytes[..4].copy_from_slice(&name.to_le_bytes());
            bytes[4..8].copy_from_slice(&value.to_le_bytes());
            let size = bytes.len();
            assert_eq!(read(&bytes), Err(NoteError::Truncated { offset: 0, size }));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read(&bytes);
        }

        #[test]
        fn arbitrary_values_never_panic(kind in 0..32_u32, value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = read(&xen_note(kind, &value));
        }
    }
}
