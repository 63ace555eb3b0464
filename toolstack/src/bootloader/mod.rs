//! A boot loader for libxl's `bootloader=`: picks a NixOS system, and hands libxl copies of its kernel and initrd.
//!
//! The system comes from dom0's own store (a closure, or a profile's generation) or out of the qube's disk, where
//! NixOS' boot loaders have left entries. Nothing here needs Xen. libxl's side of it is
//! `make_bootloader_args` and `parse_bootloader_result` in libxl_bootloader.c; pygrub's options are understood. That side
//! is here, too: a configuration's `bootloader` is [run](ProgramError) as libxl runs it.

mod entries;
mod fat;
mod handover;
mod program;
mod volume;

use crate::config::{Closure, ClosureError, generation, generations};
use crate::image::{EspFile, Part, Unified, UnifiedError, hex};
use crate::secrets::{self, SecretsError};
use entries::{Boots, Found};
pub use handover::{Copies, Format, Handover};
pub use program::ProgramError;
pub(crate) use program::run;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use volume::{FILE_LIMIT, Volume};

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum BootloaderError {
    /// A file of this host cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A copy cannot be made.
    #[error("{path} cannot be written: {source}", path = .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The closure or profile is none, or has not got what was asked for.
    #[error(transparent)]
    Closure(#[from] ClosureError),
    /// The disk has nothing to boot.
    #[error(
        "{disk}: no boot entries of NixOS (systemd-boot's, extlinux' or lanzaboote's) on a file system that can be read: {found}",
        disk = .disk.display()
    )]
    NoEntries {
        /// Which.
        disk: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// No entry is the one that was asked for.
    #[error("{disk}: no entry {wanted} (it has {known})", disk = .disk.display())]
    NoEntry {
        /// The disk, closure or profile.
        disk: PathBuf,
        /// What was asked for.
        wanted: String,
        /// Those that there are.
        known: String,
    },
    /// A file on the disk cannot be read, or not be copied.
    #[error("{path}, of the disk's entry {entry}: {source}", path = .path.display())]
    OnDisk {
        /// Of which entry.
        entry: String,
        /// The file's path on its file system.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A unified kernel image of the disk cannot be booted.
    #[error("{path}, of the disk's entry {entry}: {source}", path = .path.display())]
    Image {
        /// Of which entry.
        entry: String,
        /// The image's path on its file system.
        path: PathBuf,
        /// Why.
        source: UnifiedError,
    },
    /// A file is not the one that lanzaboote's stub names.
    #[error("{path}: its SHA-256 is {is}, but the stub of entry {entry} was made for {said}", path = .path.display())]
    Hash {
        /// Of which entry.
        entry: String,
        /// The file's path on its file system.
        path: PathBuf,
        /// Its hash.
        is: String,
        /// The stub's.
        said: String,
    },
    /// The initrd has secrets, and nobody said that its program may append them.
    #[error("{toplevel} has initrd secrets, which its program {program} appends: in dom0, with all that its user may do; --initrd-secrets lets it", toplevel = .toplevel.display(), program = .program.display())]
    SecretsRefused {
        /// The closure.
        toplevel: PathBuf,
        /// Its program.
        program: PathBuf,
    },
    /// The initrd could not be given its secrets.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// libxl would not take an item.
    #[error(
        "{what} has {len} bytes, or a separator in it: libxl reads at most {limit}, and boots without a longer one"
    )]
    Item {
        /// `kernel`, `ramdisk` or `args`.
        what: &'static str,
        /// Bytes.
        len: usize,
        /// Bytes.
        limit: usize,
    },
}

/// What is asked for; nothing means what boots by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// An entry's name, title, or place in the menu.
    pub entry: Option<String>,
    /// A generation.
    pub generation: Option<u64>,
    /// A specialisation of it, or of the default generation.
    pub specialisation: Option<String>,
}

/// An entry of the menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, such as `nixos-generation-42`.
    pub id: String,
    /// For people.
    pub title: String,
    generation: Option<u64>,
    specialisation: Option<String>,
    boots: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Closure(Box<Closure>),
    /// On the volume of that number.
    OnDisk(usize, Boots),
}

/// What can be booted.
#[derive(Debug)]
pub struct Menu {
    path: PathBuf,
    volumes: Vec<Volume>,
    entries: Vec<Entry>,
    default: usize,
}

impl Menu {
    /// Reads what can be booted from a disk image, a system closure (its folder, or its `boot.json`), a profile, or the
    /// folder of the profile `system`.
    ///
    /// # Errors
    /// [`BootloaderError::Read`], [`BootloaderError::NoEntries`], and [`BootloaderError::Closure`].
    pub fn open(path: &Path) -> Result<Self, BootloaderError> {
        if Closure::is_one(path) {
            return Self::of_closures(path);
        }
        let file =
            File::open(path).map_err(|source| BootloaderError::Read { path: path.to_owned(), source })?;
        Self::of_disk(file, path)
    }

    /// The same of a disk that is open; `path` is its name in messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_disk(disk: File, path: &Path) -> Result<Self, BootloaderError> {
        let volumes = volume::volumes(disk)
            .map_err(|source| BootloaderError::Read { path: path.to_owned(), source })?;
        let (found, default) = entries::find(&volumes);
        if found.is_empty() {
            let found: Vec<String> = volumes.iter().map(Volume::describe).collect();
            let found = if found.is_empty() {
                "neither a file system nor partitions".to_owned()
            } else {
                found.join("; ")
            };
            return Err(BootloaderError::NoEntries { disk: path.to_owned(), found });
        }
        let entry = |Found { volume, id, title, generation, specialisation, boots }| Entry {
            id,
            title,
            generation,
            specialisation,
            boots: What::OnDisk(volume, boots),
        };
        let entries = found.into_iter().map(entry).collect();
        Ok(Self { path: path.to_owned(), volumes, entries, default })
    }

    fn of_closures(path: &Path) -> Result<Self, BootloaderError> {
        let has = |name: &str| path.join(name).symlink_metadata().is_ok();
        let in_folder = path.join("system");
        let path = if !has("kernel") && !has("boot.json") && in_folder.is_dir() { &in_folder } else { path };

        let current = Closure::open(path)?;
        let links = match generations(path) {
            Ok(links) => links,
            Err(ClosureError::NotAProfile { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let this = path.canonicalize().ok();
        let mut entries = Vec::new();
        let mut default = 0;
        // The newest first, as boot loaders show them.
        for (number, link) in links.into_iter().rev() {
            if link.canonicalize().ok() == this {
                default = entries.len();
            }
            // One that cannot be read is none of the others' business.
            if let Ok(closure) = Closure::open(&link) {
                add_closure(&mut entries, Some(number), closure);
            }
        }
        if entries.is_empty() {
            add_closure(&mut entries, None, current);
        }
        Ok(Self { path: path.to_owned(), volumes: Vec::new(), entries, default })
    }

    /// All entries, in the order of the menu.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Which of them is booted when nobody chooses.
    #[must_use]
    pub fn default(&self) -> usize {
        self.default
    }

    /// The entry that is asked for.
    ///
    /// # Errors
    /// [`BootloaderError::NoEntry`], and [`BootloaderError::Closure`] for a generation that a profile has not got.
    pub fn choose(&self, wish: &Wish) -> Result<&Entry, BootloaderError> {
        let default = &self.entries[self.default];
        let is_it = |entry: &&Entry| match &wish.entry {
            Some(wanted) => {
                *wanted == entry.id
                    || wanted.strip_suffix(".conf") == Some(&entry.id)
                    || *wanted == entry.title
            }
            None => {
                // Of a disk's entries some are no generation, but the default is what boots by itself.
                let generation = wish.generation.or(default.generation);
                entry.generation == generation && entry.specialisation == wish.specialisation
            }
        };
        let by_place = || self.entries.get(wish.entry.as_deref()?.parse::<usize>().ok()?);
        if *wish == Wish::default() {
            return Ok(default);
        }
        if let Some(entry) = self.entries.iter().find(is_it).or_else(by_place) {
            return Ok(entry);
        }
        if let (Some(wanted), What::Closure(_)) = (wish.generation, &default.boots) {
            // Says which there are, or what is wrong with that one.
            Closure::open(&generation(&self.path, wanted)?)?;
        }
        let wanted = [
            wish.entry.as_ref().map(|entry| format!("`{entry}'")),
            wish.generation.map(|generation| format!("of generation {generation}")),
            wish.specialisation.as_ref().map(|name| format!("of specialisation `{name}'")),
        ];
        let known: Vec<&str> = self.entries.iter().map(|entry| entry.id.as_str()).collect();
        Err(BootloaderError::NoEntry {
            disk: self.path.clone(),
            wanted: wanted.into_iter().flatten().collect::<Vec<_>>().join(", "),
            known: known.join(", "),
        })
    }

    /// Copies what an entry boots; `more` stands behind its command line. With `initrd_secrets` a closure's program may
    /// append to the initrd.
    ///
    /// # Errors
    /// See [`BootloaderError`].
    pub fn hand_over(
        &self,
        entry: &Entry,
        more: &str,
        initrd_secrets: bool,
        handover: &mut Handover,
    ) -> Result<Copies, BootloaderError> {
        let mut copies = match &entry.boots {
            What::Closure(closure) => copy_closure(closure, initrd_secrets, handover)?,
            What::OnDisk(volume, boots) => {
                let disk = Disk { volume: &self.volumes[*volume], entry: &entry.id };
                match boots {
                    Boots::Kernel { kernel, initrds, cmdline } => {
                        disk.copy_kernel(kernel, initrds, cmdline, handover)?
                    }
                    Boots::Image { path } => disk.copy_image(path, handover)?,
                }
            }
        };
        if !more.is_empty() {
            copies.cmdline = [copies.cmdline.as_str(), more].join(" ").trim().to_owned();
        }
        Ok(copies)
    }
}

fn add_closure(entries: &mut Vec<Entry>, generation: Option<u64>, closure: Closure) {
    let id = generation.map_or_else(
        || closure.name().unwrap_or_else(|| "nixos".to_owned()),
        |number| format!("nixos-generation-{number}"),
    );
    let specialisations = closure.specialisations.clone();
    let entry = |id, specialisation, closure: Closure| Entry {
        id,
        title: closure.label.clone(),
        generation,
        specialisation,
        boots: What::Closure(Box::new(closure)),
    };
    entries.push(entry(id.clone(), None, closure));
    for (name, closure) in specialisations {
        entries.push(entry(format!("{id}-specialisation-{name}"), Some(name), closure));
    }
}

fn copy_closure(
    closure: &Closure,
    initrd_secrets: bool,
    handover: &mut Handover,
) -> Result<Copies, BootloaderError> {
    closure.check()?;
    let secrets = closure.secrets()?;
    if let Some(program) = secrets.filter(|_| !initrd_secrets) {
        let (toplevel, program) = (closure.toplevel.clone(), program.to_owned());
        return Err(BootloaderError::SecretsRefused { toplevel, program });
    }
    let mut copy = |what, path: &Path, secrets: Option<&Path>| {
        let read_error = |source| BootloaderError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read_error)?;
        if let Some(program) = secrets {
            file = secrets::append(program, &mut file, &std::env::temp_dir())?;
        }
        let mut copy = handover.begin(what)?;
        copy.take_file(&mut file).map_err(read_error)?;
        Ok::<_, BootloaderError>(copy.path())
    };
    let kernel = copy("kernel", &closure.kernel, None)?;
    let initrd = closure.initrd.as_ref();
    let ramdisk = initrd.map(|path| copy("ramdisk", path, secrets)).transpose()?;
    Ok(Copies { kernel, ramdisk, cmdline: closure.cmdline() })
}

/// Where an entry's files are.
struct Disk<'a> {
    volume: &'a Volume,
    entry: &'a str,
}

impl Disk<'_> {
    fn error(&self, path: &Path, source: io::Error) -> BootloaderError {
        BootloaderError::OnDisk { entry: self.entry.to_owned(), path: path.to_owned(), source }
    }

    fn copy_kernel(
        &self,
        kernel: &Path,
        initrds: &[PathBuf],
        cmdline: &str,
        handover: &mut Handover,
    ) -> Result<Copies, BootloaderError> {
        let mut copy = |what, files: &[PathBuf]| {
            let mut copy = handover.begin(what)?;
            for path in files {
                self.volume.read(path, &mut copy).map_err(|source| self.error(path, source))?;
            }
            Ok::<_, BootloaderError>(copy.path())
        };
        let kernel = copy("kernel", &[kernel.to_owned()])?;
        let ramdisk = if initrds.is_empty() { None } else { Some(copy("ramdisk", initrds)?) };
        Ok(Copies { kernel, ramdisk, cmdline: cmdline.to_owned() })
    }

    fn copy_image(&self, path: &Path, handover: &mut Handover) -> Result<Copies, BootloaderError> {
        let bytes = self.volume.bytes(path, FILE_LIMIT).map_err(|source| self.error(path, source))?;
        let image_error =
            |source| BootloaderError::Image { entry: self.entry.to_owned(), path: path.to_owned(), source };
        let unified = Unified::open(&bytes).map_err(image_error)?;
        // A kernel with an EFI stub may be an entry's `efi`, too.
        let Some(unified) = unified else { return self.copy_kernel(path, &[], "", handover) };
        let mut copy = |what, part: &Part<'_>| {
            let read;
            let bytes = match part {
                Part::Embedded(bytes) => *bytes,
                Part::OnEsp(file) => {
                    read = self.esp_file(path, file)?;
                    &read
                }
            };
            let mut copy = handover.begin(what)?;
            copy.write_all(bytes).map_err(|source| self.error(path, source))?;
            Ok::<_, BootloaderError>(copy.path())
        };
        let kernel = copy("kernel", &unified.kernel)?;
        let ramdisk = unified.initrd.as_ref().map(|part| copy("ramdisk", part)).transpose()?;
        Ok(Copies { kernel, ramdisk, cmdline: unified.cmdline.unwrap_or_default() })
    }

    /// A file that a stub names, which is on its partition: beside the folder EFI that the stub is in.
    fn esp_file(&self, stub: &Path, file: &EspFile) -> Result<Vec<u8>, BootloaderError> {
        let is_efi = |folder: &&Path| folder.file_name().is_some_and(|name| name.eq_ignore_ascii_case("EFI"));
        let root = stub.ancestors().find(is_efi).and_then(Path::parent).unwrap_or(Path::new("/"));
        let path = root.join(&file.path);
        let bytes = self.volume.bytes(&path, FILE_LIMIT).map_err(|source| self.error(&path, source))?;
        match file.mismatch(&bytes) {
            None => Ok(bytes),
            Some(is) => {
                let (is, said) = (hex(&is), hex(&file.sha256));
                Err(BootloaderError::Hash { entry: self.entry.to_owned(), path, is, said })
            }
        }
    }
}

/// Shows the menu and asks which entry it shall be; an empty line means the default.
///
/// # Errors
/// What reading and writing give; an end of the input is one.
pub fn ask<'a>(menu: &'a Menu, input: &mut dyn Read, output: &mut dyn Write) -> io::Result<&'a Entry> {
    for (place, entry) in menu.entries.iter().enumerate() {
        let mark = if place == menu.default { '*' } else { ' ' };
        write!(output, "{mark}{place:3}  {}  {}\r\n", entry.id, entry.title)?;
    }
    loop {
        write!(output, "entry [{}]: ", menu.default)?;
        output.flush()?;
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            input.read_exact(&mut byte)?;
            match byte[0] {
                b'\r' | b'\n' => break,
                byte if line.len() < 80 => line.push(byte),
                _ => {}
            }
        }
        write!(output, "\r\n")?;
        let line = String::from_utf8_lossy(&line);
        let place = if line.trim().is_empty() { Some(menu.default) } else { line.trim().parse().ok() };
        if let Some(entry) = place.and_then(|place: usize| menu.entries.get(place)) {
            return Ok(entry);
        }
    }
}

#[cfg(test)]
mod tests;
