//! Unified kernel images and lanzaboote's stubs: PE files whose sections hold, or name, what a boot needs.
//!
//! A [unified kernel image] has the kernel in `.linux`, and may have an initrd in `.initrd` and a command line in
//! `.cmdline`, each as the file that it was made from. What its other sections hold (`.osrel`, `.uname`, `.splash`,
//! `.dtb`, `.ucode`, `.pcrsig`, …) is for firmware and people, not for a guest. Of an image with several profiles the
//! first is booted, as systemd-stub does when nobody chooses.
//!
//! A stub of [lanzaboote] is the same but for size: it names kernel and initrd by their paths on the EFI system
//! partition (`\EFI\nixos\…`) and by their SHA-256, in `.linux` and `.linuxh`, `.initrd` and `.initrdh` (before version
//! 0.4: `.kernelp` and `.kernelh`, `.initrdp` and `.initrdh`).
//!
//! Layout of the headers: Microsoft's "PE Format". Signatures are not checked: whether a file may be started is for
//! firmware to say, of this host's boot and not of a guest's.
//!
//! [unified kernel image]: https://uapi-group.org/specifications/specs/unified_kernel_image/
//! [lanzaboote]: https://github.com/nix-community/lanzaboote

use super::bytes::{u16_at, u32_at};
use super::bzimage;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;

/// Where the DOS header says that the PE header is.
const PE_OFFSET: usize = 0x3c;
/// Bytes of the signature and of the COFF header behind it.
const COFF_END: usize = 4 + 20;
const SECTION_SIZE: usize = 40;
const MACHINE_I386: u16 = 0x14c;
const MACHINE_X86_64: u16 = 0x8664;
/// Bytes of a path or command line; Linux reads 2 KiB of it at most.
const TEXT_LIMIT: usize = 64 << 10;

/// What is wrong with a PE file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnifiedError {
    /// The headers are not whole.
    #[error("the PE file's {what} is cut off: it ends at byte {needed}, the file has {have}")]
    Truncated {
        /// Which part.
        what: &'static str,
        /// Where it should end.
        needed: u64,
        /// Where the file ends.
        have: u64,
    },
    /// No `PE\0\0` where the DOS header says.
    #[error("no PE header at byte {at:#x}, where the DOS header has it")]
    NoHeader {
        /// Where.
        at: u32,
    },
    /// Made for other machines.
    #[error("a PE file for machine {machine:#x} (need x86-64 or i386)")]
    Machine {
        /// `IMAGE_FILE_MACHINE_*`
        machine: u16,
    },
    /// An EFI program of another kind.
    #[error(
        "a PE file without a kernel: it has no section .linux, as a unified kernel image or a lanzaboote stub has"
    )]
    NoKernel,
    /// A section's bytes are not in the file.
    #[error("section {name} ends at byte {end:#x}, the file has {have:#x}")]
    Section {
        /// Which.
        name: &'static str,
        /// Where it should end.
        end: u64,
        /// Where the file ends.
        have: u64,
    },
    /// A section that belongs to another is missing.
    #[error("section {0} is missing, without which the stub names no {1}")]
    Missing(
        /// Which.
        &'static str,
        /// `kernel` or `initrd`.
        &'static str,
    ),
    /// A hash of another size than SHA-256's.
    #[error("section {name} has {size} bytes, a SHA-256 has 32")]
    HashSize {
        /// Which.
        name: &'static str,
        /// Bytes.
        size: usize,
    },
    /// A section of text holds something else.
    #[error("section {0} is no UTF-8 text of at most {TEXT_LIMIT} bytes")]
    Text(
        /// Which.
        &'static str,
    ),
    /// A path that is not one of the EFI system partition.
    #[error("section {name} names {path:?}, which is no path on the EFI system partition")]
    Path {
        /// Which.
        name: &'static str,
        /// As it is there.
        path: String,
    },
}

/// What a PE file boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unified<'a> {
    /// The kernel: what [`Kernel::open`](super::Kernel::open) reads.
    pub kernel: Part<'a>,
    /// The initrd, if it has one.
    pub initrd: Option<Part<'a>>,
    /// The command line, if it has one; without control characters, as systemd-stub hands it on.
    pub cmdline: Option<String>,
}

/// A file that a PE file has or names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<'a> {
    /// In a section.
    Embedded(&'a [u8]),
    /// On the EFI system partition.
    OnEsp(EspFile),
}

/// A file of the EFI system partition that a lanzaboote stub names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EspFile {
    /// Relative to the partition's root; without `.` and `..`.
    pub path: PathBuf,
    /// What the file's contents must hash to.
    pub sha256: [u8; 32],
}

impl EspFile {
    /// The hash of `contents` when it is not the one that the stub has.
    #[must_use]
    pub fn mismatch(&self, contents: &[u8]) -> Option<[u8; 32]> {
        let is: [u8; 32] = Sha256::digest(contents).into();
        (is != self.sha256).then_some(is)
    }
}

/// A hash as `sha256sum` prints it.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl<'a> Unified<'a> {
    /// Reads a PE file's sections; `None` for what is no PE file, and for a bzImage, which is one besides.
    ///
    /// # Errors
    /// See [`UnifiedError`].
    pub fn open(file: &'a [u8]) -> Result<Option<Self>, UnifiedError> {
        if !file.starts_with(b"MZ") || bzimage::is_bzimage(file) {
            return Ok(None);
        }
        let sections = Sections::read(file)?;
        let named_with_hash = |path, hash, what| -> Result<Option<EspFile>, UnifiedError> {
            match (sections.find(path)?, sections.find(hash)?) {
                (Some(bytes), Some(sha256)) => Ok(Some(EspFile {
                    path: esp_path(path, bytes)?,
                    sha256: sha256
                        .try_into()
                        .map_err(|_| UnifiedError::HashSize { name: hash, size: sha256.len() })?,
                })),
                (None, None) => Ok(None),
                (None, Some(_)) => Err(UnifiedError::Missing(path, what)),
                (Some(_), None) => Err(UnifiedError::Missing(hash, what)),
            }
        };
        let old_stub = sections.has(".kernelp") || sections.has(".kernelh");
        let stub = old_stub || sections.has(".linuxh") || sections.has(".initrdh");
        let (kernel, initrd) = if stub {
            let (kernel, hash) = if old_stub { (".kernelp", ".kernelh") } else { (".linux", ".linuxh") };
            let initrd = if old_stub { ".initrdp" } else { ".initrd" };
            let kernel = named_with_hash(kernel, hash, "kernel")?.map(Part::OnEsp);
            (kernel, named_with_hash(initrd, ".initrdh", "initrd")?.map(Part::OnEsp))
        } else {
            let embedded = |name| Ok::<_, UnifiedError>(sections.find(name)?.map(Part::Embedded));
            let initrd = embedded(".initrd")?.filter(|part| *part != Part::Embedded(&[]));
            (embedded(".linux")?, initrd)
        };
        let cmdline = sections.find(".cmdline")?.map(cmdline).transpose()?;
        Ok(Some(Self { kernel: kernel.ok_or(UnifiedError::NoKernel)?, initrd, cmdline }))
    }
}

/// Text up to its NUL, if it has one.
fn text<'a>(name: &'static str, bytes: &'a [u8]) -> Result<&'a str, UnifiedError> {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    match str::from_utf8(bytes) {
        Ok(text) if text.len() <= TEXT_LIMIT => Ok(text),
        _ => Err(UnifiedError::Text(name)),
    }
}

/// Line ends and other control characters are blanks in a command line (systemd-stub's rule).
fn cmdline(bytes: &[u8]) -> Result<String, UnifiedError> {
    let blank = |c: char| if c.is_control() { ' ' } else { c };
    Ok(text(".cmdline", bytes)?.chars().map(blank).collect::<String>().trim().to_owned())
}

/// A path with backslashes, made one of ours.
fn esp_path(name: &'static str, bytes: &[u8]) -> Result<PathBuf, UnifiedError> {
    let text = text(name, bytes)?;
    let components: Vec<&str> = text.split('\\').filter(|component| !component.is_empty()).collect();
    let possible = |component: &&str| {
        !matches!(*component, "." | "..")
            && !component.contains(|c: char| c == '/' || c == ':' || c.is_control())
    };
    if components.is_empty() || !components.iter().all(possible) {
        return Err(UnifiedError::Path { name, path: text.to_owned() });
    }
    Ok(components.into_iter().collect())
}

/// The section table of a PE file.
struct Sections<'a> {
    file: &'a [u8],
    /// 40 bytes each: those that belong to no profile, and those of the first profile.
    common: &'a [u8],
    profile: &'a [u8],
}

impl<'a> Sections<'a> {
    fn read(file: &'a [u8]) -> Result<Self, UnifiedError> {
        let have = file.len() as u64;
        let truncated = |what, needed| UnifiedError::Truncated { what, needed, have };
        let at = u32_at(file, PE_OFFSET).ok_or_else(|| truncated("DOS header", PE_OFFSET as u64 + 4))?;
        let header = part(file, u64::from(at)..u64::from(at) + COFF_END as u64)
            .ok_or_else(|| truncated("header", u64::from(at) + COFF_END as u64))?;
        if !header.starts_with(b"PE\0\0") {
            return Err(UnifiedError::NoHeader { at });
        }
        // All are within COFF_END.
        let field = |at| u16_at(header, at).unwrap_or_default();
        let (machine, count, optional_size) = (field(4), field(6), field(20));
        if !matches!(machine, MACHINE_I386 | MACHINE_X86_64) {
            return Err(UnifiedError::Machine { machine });
        }
        let start = u64::from(at) + COFF_END as u64 + u64::from(optional_size);
        let end = start + u64::from(count) * SECTION_SIZE as u64;
        let table = part(file, start..end).ok_or_else(|| truncated("section table", end))?;

        // Sections before the first `.profile` are every profile's; those up to the next one are the first profile's.
        let mut profiles =
            (0..table.len()).step_by(SECTION_SIZE).filter(|at| is_named(&table[*at..], ".profile"));
        let first = profiles.next().unwrap_or(table.len());
        let second = profiles.next().unwrap_or(table.len());
        Ok(Self { file, common: &table[..first], profile: &table[first..second] })
    }

    fn entry(&self, name: &str) -> Option<&'a [u8]> {
        [self.profile, self.common]
            .iter()
            .find_map(|table| table.chunks_exact(SECTION_SIZE).find(|entry| is_named(entry, name)))
    }

    fn has(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// The bytes of a section.
    fn find(&self, name: &'static str) -> Result<Option<&'a [u8]>, UnifiedError> {
        let Some(entry) = self.entry(name) else { return Ok(None) };
        let field = |at| u64::from(u32_at(entry, at).unwrap_or_default());
        let (virtual_size, size, start) = (field(8), field(16), field(20));
        // The size in the file is rounded up; the size in memory is that of the contents, or more.
        let end = start + size.min(virtual_size);
        let have = self.file.len() as u64;
        part(self.file, start..end).map(Some).ok_or(UnifiedError::Section { name, end, have })
    }
}

fn part(file: &[u8], range: Range<u64>) -> Option<&[u8]> {
    file.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}

/// Names are eight bytes, with zeros behind shorter ones.
fn is_named(entry: &[u8], name: &str) -> bool {
    let mut padded = [0; 8];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    entry.starts_with(&padded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::synthetic::{bzimage, pe};
    use proptest::prelude::*;

    fn open(file: &[u8]) -> Result<Unified<'_>, UnifiedError> {
        Unified::open(file).map(|unified| unified.expect("a PE file"))
    }

    fn embedded(part: &Part<'_>) -> Vec<u8> {
        match part {
            Part::Embedded(bytes) => bytes.to_vec(),
            Part::OnEsp(file) => panic!("{file:?}"),
        }
    }

    #[test]
    fn sections_are_found_by_name() {
        let file = pe(&[
            (".text", b"code"),
            (".osrel", b"ID=nixos\n"),
            (".cmdline", b" console=hvc0\nquiet \0"),
            (".initrd", b"070701 initrd"),
            (".linux", b"the kernel"),
        ]);
        let unified = open(&file).unwrap();
        assert_eq!(embedded(&unified.kernel), b"the kernel");
        assert_eq!(embedded(unified.initrd.as_ref().unwrap()), b"070701 initrd");
        assert_eq!(unified.cmdline.as_deref(), Some("console=hvc0 quiet"));
        let least = pe(&[(".linux", b"k"), (".initrd", b"")]);
        assert_eq!(
            open(&least).unwrap(),
            Unified { kernel: Part::Embedded(b"k"), initrd: None, cmdline: None }
        );
    }

    #[test]
    fn the_first_profile_is_booted() {
        let file = pe(&[
            (".linux", b"k"),
            (".cmdline", b"common"),
            (".profile", b"ID=main"),
            (".cmdline", b"main"),
            (".profile", b"ID=rescue"),
            (".cmdline", b"rescue"),
            (".initrd", b"rescue"),
        ]);
        let unified = open(&file).unwrap();
        assert_eq!((unified.cmdline.as_deref(), unified.initrd), (Some("main"), None));
    }

    #[test]
    fn stubs_name_files_and_their_hashes() {
        let hash = |byte| [byte; 32];
        for names in
            [[".linux", ".linuxh", ".initrd", ".initrdh"], [".kernelp", ".kernelh", ".initrdp", ".initrdh"]]
        {
            let file = pe(&[
                (names[0], br"\EFI\nixos\kernel-6.12-abc.efi"),
                (names[1], &hash(1)),
                (names[2], br"\EFI\nixos\initrd-abc.efi"),
                (names[3], &hash(2)),
                (".cmdline", b"init=/nix/store/x/init"),
            ]);
            let unified = open(&file).unwrap();
            let esp =
                |name: &str, byte| EspFile { path: format!("EFI/nixos/{name}").into(), sha256: hash(byte) };
            assert_eq!(unified.kernel, Part::OnEsp(esp("kernel-6.12-abc.efi", 1)));
            assert_eq!(unified.initrd, Some(Part::OnEsp(esp("initrd-abc.efi", 2))));
            assert_eq!(unified.cmdline.as_deref(), Some("init=/nix/store/x/init"));
        }
        let file = EspFile { path: "x".into(), sha256: Sha256::digest(b"contents").into() };
        assert_eq!(file.mismatch(b"contents"), None);
        assert_eq!(
            file.mismatch(b"abc").map(|is| hex(&is)).as_deref(),
            Some("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        );
    }

    #[test]
    fn stubs_that_name_nothing_whole_are_refused() {
        let error = |sections: &[(&str, &[u8])]| open(&pe(sections)).unwrap_err();
        let kernel: (&str, &[u8]) = (".linux", br"\EFI\k");
        assert_eq!(error(&[kernel, (".initrdh", &[0; 32])]), UnifiedError::Missing(".linuxh", "kernel"));
        assert_eq!(error(&[(".linuxh", &[0; 32])]), UnifiedError::Missing(".linux", "kernel"));
        assert_eq!(
            error(&[kernel, (".linuxh", &[0; 32]), (".initrd", b"x")]),
            UnifiedError::Missing(".initrdh", "initrd")
        );
        assert_eq!(
            error(&[kernel, (".linuxh", &[0; 31])]),
            UnifiedError::HashSize { name: ".linuxh", size: 31 }
        );
        for path in [r"\EFI\..\..\etc\shadow", r"..", r"\", "", r"\EFI/../x", r"C:\x", "\\EFI\\a\nb", r"\.\x"]
        {
            let error = error(&[(".linux", path.as_bytes()), (".linuxh", &[0; 32])]);
            assert!(matches!(error, UnifiedError::Path { name: ".linux", .. }), "{path}: {error}");
        }
        assert_eq!(error(&[(".linux", &[0xff]), (".linuxh", &[0; 32])]), UnifiedError::Text(".linux"));
    }

    #[test]
    fn what_is_no_unified_image_is_told_from_a_damaged_one() {
        assert_eq!(Unified::open(b"\x7fELF").unwrap(), None);
        let mut signed = bzimage(b"payload");
        signed[..2].copy_from_slice(b"MZ");
        assert_eq!(Unified::open(&signed).unwrap(), None);
        assert_eq!(open(&pe(&[(".text", b"code")])).unwrap_err(), UnifiedError::NoKernel);
        assert!(matches!(open(b"MZ").unwrap_err(), UnifiedError::Truncated { what: "DOS header", .. }));
        let good = pe(&[(".linux", b"k")]);
        let with = |at: usize, value: u8| {
            let mut file = good.clone();
            file[at] = value;
            open(&file).unwrap_err()
        };
        let header = u32_at(&good, PE_OFFSET).unwrap() as usize;
        assert_eq!(with(header, b'N'), UnifiedError::NoHeader { at: header as u32 });
        assert_eq!(with(header + 4, 0xaa), UnifiedError::Machine { machine: 0x86aa });
        assert!(matches!(with(header + 7, 0xff), UnifiedError::Truncated { what: "section table", .. }));
        assert_eq!(
            open(&pe(&[(".linux", b"k"), (".cmdline", &[0xc0])])),
            Err(UnifiedError::Text(".cmdline"))
        );
        let long = vec![b'x'; TEXT_LIMIT + 1];
        assert_eq!(open(&pe(&[(".linux", b"k"), (".cmdline", &long)])), Err(UnifiedError::Text(".cmdline")));
    }

    #[test]
    fn every_cut_is_an_error() {
        let file = pe(&[(".text", b"code"), (".cmdline", b"quiet"), (".linux", b"the kernel")]);
        let end = file.len() - file.iter().rev().take_while(|byte| **byte == 0).count();
        for cut in 2..end {
            assert!(open(&file[..cut]).is_err(), "cut at {cut} of {end}");
        }
        assert!(open(&file[..end]).is_ok());
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 0..0x200_usize, value in any::<u8>(), stub in any::<bool>()) {
            let hash: (&str, &[u8]) = if stub { (".linuxh", &[7; 32]) } else { (".osrel", b"ID=x") };
            let mut file = pe(&[(".linux", br"\EFI\k"), hash, (".cmdline", b"quiet")]);
            let at = at % file.len();
            file[at] = value;
            let _ = Unified::open(&file);
        }

        #[test]
        fn arbitrary_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0..0x80_u32) {
            let mut file = [b"MZ", &bytes[..]].concat();
            let _ = Unified::open(&file);
            if file.len() > 0x100 {
                file[PE_OFFSET..PE_OFFSET + 4].copy_from_slice(&at.to_le_bytes());
                file[at as usize..at as usize + 6].copy_from_slice(b"PE\0\0\x64\x86");
                let _ = Unified::open(&file);
            }
        }
    }
}
