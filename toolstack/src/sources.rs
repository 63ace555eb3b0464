//! What a qube boots, opened: kernel, initrd and command line, wherever the configuration's `kernel` has them.
//!
//! That file is a kernel, a unified kernel image, or a lanzaboote stub. What the configuration says itself (`ramdisk`,
//! and a command line that is not empty) goes before what such an image has. With a `bootloader`, all three are what that
//! program says.

use crate::bootloader::{self, ProgramError};
use crate::config::QubeConfig;
use crate::image::{EspFile, ImageError, Kernel, MappedFile, Part, Unified, hex};
use crate::secrets::{self, SecretsError};
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file could not be opened.
    #[error("{path}: the {what} could not be opened: {source}")]
    Open {
        /// Which.
        path: PathBuf,
        /// What it is for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The boot loader found no kernel.
    #[error(transparent)]
    Bootloader(#[from] ProgramError),
    /// The image cannot be booted.
    #[error("{path}: {source}")]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
    /// A file on the EFI system partition is not the one that the stub was made for.
    #[error(transparent)]
    Hash(#[from] Box<HashMismatch>),
    /// The initrd could not be given its secrets.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
}

/// A file that is not the one that a lanzaboote stub names.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path}: its SHA-256 is {is}, but {stub} was made for the {what} with {said}: install the generation's boot files anew",
    path = .path.display(), stub = .stub.display()
)]
pub struct HashMismatch {
    /// Which file.
    pub path: PathBuf,
    /// `kernel` or `initrd`.
    pub what: &'static str,
    /// The stub.
    pub stub: PathBuf,
    /// The file's hash, in hexadecimal digits.
    pub is: String,
    /// The stub's, in hexadecimal digits.
    pub said: String,
}

/// A file's bytes, or a part of them.
#[derive(Debug)]
pub(crate) enum Bytes {
    Mapped(Arc<MappedFile>, Range<usize>),
    /// In memory, so that what was compared with its hash is what is booted, whatever becomes of the file. And that hash,
    /// SHA-256.
    Read(Vec<u8>, [u8; 32]),
}

impl Bytes {
    /// The kernel that these are.
    pub(crate) fn kernel(&self) -> Result<Kernel<'_>, ImageError> {
        let kernel = Kernel::open(self)?;
        Ok(match self {
            Self::Mapped(file, _) => kernel.read_from(file),
            Self::Read(..) => kernel,
        })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(file, range) => &file[range.clone()],
            Self::Read(bytes, _) => bytes,
        }
    }
}

/// An initrd and its name for messages.
#[derive(Debug)]
pub(crate) enum InitrdSource {
    File(File, PathBuf),
    Bytes(Bytes, PathBuf),
}

impl InitrdSource {
    /// In bytes.
    pub(crate) fn len(&self) -> Result<u64, SourceError> {
        match self {
            Self::File(file, path) => {
                Ok(file.metadata().map_err(|source| open_error(path, "initrd", source))?.len())
            }
            Self::Bytes(bytes, _) => Ok(bytes.len() as u64),
        }
    }
}

/// What a qube boots.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) kernel: Bytes,
    /// Where the kernel is, for messages.
    pub(crate) kernel_path: PathBuf,
    pub(crate) initrd: Option<InitrdSource>,
    pub(crate) cmdline: String,
}

fn open_error(path: &Path, what: &'static str, source: io::Error) -> SourceError {
    SourceError::Open { path: path.to_owned(), what, source }
}

impl Sources {
    /// Opens, and verifies where there are hashes. Programs that append secrets get `scratch`, a folder for temporary
    /// files.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub(crate) fn open(config: &QubeConfig, scratch: &Path) -> Result<Self, SourceError> {
        let chosen = bootloader::run(config, scratch)?;
        // What it chose is instead of what it was told.
        let (path, ramdisk, cmdline) = match &chosen {
            Some(chosen) => (&chosen.kernel, chosen.ramdisk.as_ref(), &chosen.cmdline),
            None => (&config.kernel, config.ramdisk.as_ref(), &config.cmdline),
        };
        let file = MappedFile::open(path).map_err(|source| open_error(path, "kernel", source))?;
        let file = Arc::new(file);
        let unified = Unified::open(&file)
            .map_err(|source| SourceError::Image { path: path.clone(), source: source.into() })?;

        let mut cmdline = cmdline.clone();
        let mut initrd = match ramdisk {
            Some(path) => {
                let file = File::open(path).map_err(|source| open_error(path, "initrd", source))?;
                Some(InitrdSource::File(file, path.clone()))
            }
            None => None,
        };
        let whole = 0..file.len();
        let (kernel, kernel_path) = match unified {
            None => (Bytes::Mapped(Arc::clone(&file), whole), path.clone()),
            Some(unified) => {
                if cmdline.is_empty() {
                    cmdline = unified.cmdline.unwrap_or_default();
                }
                if let (None, Some(part)) = (&initrd, &unified.initrd) {
                    let (bytes, path) = open_part(part, "initrd", &file, path)?;
                    initrd = Some(InitrdSource::Bytes(bytes, path));
                }
                open_part(&unified.kernel, "kernel", &file, path)?
            }
        };
        if let Some(program) = &config.initrd_secrets
            && let Some(source) = initrd.take()
        {
            let (file, path) = match source {
                InitrdSource::File(mut file, path) => (secrets::append(program, &mut file, scratch)?, path),
                InitrdSource::Bytes(bytes, path) => (secrets::append(program, &mut &*bytes, scratch)?, path),
            };
            initrd = Some(InitrdSource::File(file, path));
        }
        Ok(Self { kernel, kernel_path, initrd, cmdline })
    }
}

/// A part of an image, and the path of the file that it is in.
fn open_part(
    part: &Part<'_>,
    what: &'static str,
    image: &Arc<MappedFile>,
    image_path: &Path,
) -> Result<(Bytes, PathBuf), SourceError> {
    match part {
        Part::Embedded(bytes) => {
            // A slice of the mapping: its offset is that of its address.
            let start = bytes.as_ptr().addr() - image.as_ptr().addr();
            Ok((Bytes::Mapped(Arc::clone(image), start..start + bytes.len()), image_path.to_owned()))
        }
        Part::OnEsp(file) => {
            let path = find_on_esp(file, image_path);
            // A copy of the mapping, which is of a regular file for certain: see `Bytes::Read`.
            let bytes = MappedFile::open(&path).map_err(|source| open_error(&path, what, source))?.to_vec();
            if let Some(is) = file.mismatch(&bytes) {
                let (is, said) = (hex(&is), hex(&file.sha256));
                let stub = image_path.to_owned();
                return Err(Box::new(HashMismatch { path, what, stub, is, said }).into());
            }
            Ok((Bytes::Read(bytes, file.sha256), path))
        }
    }
}

/// The path of a stub's file, relative to the EFI system partition that the stub is on: the folder that has the stub's
/// own `EFI`, or else where the file system is mounted. Which one it is need not be trusted, since the hash decides.
fn find_on_esp(file: &EspFile, stub: &Path) -> PathBuf {
    let stub = stub.canonicalize().unwrap_or_else(|_| stub.to_owned());
    let is_efi = |folder: &&Path| folder.file_name().is_some_and(|name| name.eq_ignore_ascii_case("EFI"));
    let above_efi = stub.ancestors().skip(1).filter(is_efi).filter_map(Path::parent);
    let device = |folder: &Path| folder.metadata().map(|metadata| metadata.st_dev()).ok();
    let own = stub.parent().and_then(device);
    let mount_point = stub.ancestors().skip(1).take_while(|folder| device(folder) == own).last();
    let mut candidates = above_efi.chain(mount_point).map(|root| root.join(&file.path));
    let first = candidates.next().unwrap_or_else(|| file.path.clone());
    if first.exists() { first } else { candidates.find(|path| path.exists()).unwrap_or(first) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::image::Codec;
    use crate::image::synthetic::{SyntheticElf, packed_bzimage, pe};
    use sha2::{Digest, Sha256};
    use std::io::Read;

    const KERNEL: &str = "EFI/nixos/kernel.efi";
    const INITRD: &str = "EFI/nixos/initrd.efi";

    struct Esp {
        folder: tempfile::TempDir,
        kernel: Vec<u8>,
    }

    impl Esp {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(folder.path().join("EFI/nixos")).unwrap();
            std::fs::create_dir_all(folder.path().join("EFI/Linux")).unwrap();
            let kernel = packed_bzimage(Codec::Zstd, &SyntheticElf::pvh().build());
            std::fs::write(folder.path().join(KERNEL), &kernel).unwrap();
            std::fs::write(folder.path().join(INITRD), b"070701 initrd").unwrap();
            Self { folder, kernel }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().canonicalize().unwrap().join(name)
        }

        fn stub(&self, name: &str) -> PathBuf {
            let hash = |bytes: &[u8]| Sha256::digest(bytes).to_vec();
            let stub = pe(&[
                (".osrel", b"ID=nixos"),
                (".cmdline", b"quiet init=/init"),
                (".linux", br"\EFI\nixos\kernel.efi"),
                (".linuxh", &hash(&self.kernel)),
                (".initrd", br"\EFI\nixos\initrd.efi"),
                (".initrdh", &hash(b"070701 initrd")),
            ]);
            std::fs::write(self.path(name), stub).unwrap();
            self.path(name)
        }

        fn unified(&self) -> PathBuf {
            let path = self.path("EFI/Linux/unified.efi");
            let image =
                pe(&[(".linux", &self.kernel), (".initrd", b"the initrd"), (".cmdline", b"from image")]);
            std::fs::write(&path, image).unwrap();
            path
        }
    }

    fn open(kernel: &Path, more: &str) -> Result<Sources, SourceError> {
        let text = format!("type='pvh'\nname='work'\nkernel='{}'\n{more}\n", kernel.display());
        let settings = Settings::parse("test.cfg", text.as_bytes(), &[""; 0]).unwrap();
        Sources::open(
            &QubeConfig::from_settings("test.cfg", &settings, None).unwrap().0,
            Path::new("/nonexistent"),
        )
    }

    fn initrd(sources: &mut Sources) -> Vec<u8> {
        match sources.initrd.as_mut().unwrap() {
            InitrdSource::Bytes(bytes, _) => bytes.to_vec(),
            InitrdSource::File(file, _) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).unwrap();
                bytes
            }
        }
    }

    #[test]
    fn a_plain_kernel_is_what_it_is() {
        let esp = Esp::new();
        let sources = open(&esp.path(KERNEL), "").unwrap();
        assert!(*sources.kernel == esp.kernel);
        assert!(sources.initrd.is_none() && sources.cmdline.is_empty());
    }

    #[test]
    fn a_unified_image_has_all_that_is_booted() {
        let esp = Esp::new();
        let mut sources = open(&esp.unified(), "").unwrap();
        assert!(*sources.kernel == esp.kernel);
        assert_eq!((sources.cmdline.as_str(), &sources.kernel_path), ("from image", &esp.unified()));
        assert_eq!(initrd(&mut sources), b"the initrd");
        assert_eq!(sources.initrd.as_ref().unwrap().len().unwrap(), 10);
    }

    #[test]
    fn the_configuration_goes_before_the_image() {
        let esp = Esp::new();
        let more = format!("cmdline='mine'\nramdisk='{}'", esp.path(INITRD).display());
        let mut sources = open(&esp.unified(), &more).unwrap();
        assert_eq!(sources.cmdline, "mine");
        assert_eq!(initrd(&mut sources), b"070701 initrd");
    }

    #[test]
    fn a_stubs_files_are_found_on_its_partition() {
        let esp = Esp::new();
        for place in ["EFI/Linux/nixos-generation-3.efi", "EFI/Linux/STUB.EFI"] {
            let mut sources = open(&esp.stub(place), "").unwrap();
            assert!(*sources.kernel == esp.kernel);
            assert_eq!(sources.kernel_path, esp.path(KERNEL));
            assert_eq!(sources.cmdline, "quiet init=/init");
            assert_eq!(initrd(&mut sources), b"070701 initrd");
        }
    }

    #[test]
    fn files_that_do_not_have_their_hash_are_refused() {
        for (file, what) in [(KERNEL, "kernel"), (INITRD, "initrd")] {
            let esp = Esp::new();
            let stub = esp.stub("EFI/Linux/stub.efi");
            std::fs::write(esp.path(file), b"something else").unwrap();
            let error = open(&stub, "").unwrap_err();
            let text = error.to_string();
            assert!(matches!(&error, SourceError::Hash(mismatch) if mismatch.what == what), "{text}");
            assert!(
                text.contains(&hex(&Sha256::digest(b"something else"))) && !text.contains('\n'),
                "{text}"
            );
            std::fs::remove_file(esp.path(file)).unwrap();
            let text = open(&stub, "").unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("{}: the {what} could not be opened", esp.path(file).display())),
                "{text}"
            );
        }
    }

    #[test]
    fn other_efi_programs_are_refused() {
        let esp = Esp::new();
        std::fs::write(esp.path("shell.efi"), pe(&[(".text", b"code")])).unwrap();
        let text = open(&esp.path("shell.efi"), "").unwrap_err().to_string();
        assert!(text.contains("a PE file without a kernel"), "{text}");
    }
}
