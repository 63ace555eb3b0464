//! `nxl bootloader`, and the program `nxl-bootloader`, which is the same without Xen's libraries: a boot loader for
//! libxl's `bootloader=`, called as pygrub is.

use clap::{Args, ValueEnum};
use rustix::thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use toolstack::bootloader::{BootloaderError, Entry, Format, Handover, Menu, Wish, ask};
use toolstack::config::Closure;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Bootloader(#[from] BootloaderError),
    #[error(
        "`{0}' and a boot loader do not go together: the kernel and its initrd are those of the entry; remove `{0}' from the configuration"
    )]
    Given(&'static str),
    #[error("--interactive needs a terminal, and --runas and --quiet forbid to ask")]
    NotInteractive,
    #[error("the menu: {0}")]
    Menu(#[source] io::Error),
    #[error("{path}: {source}", path = path.display())]
    Output { path: PathBuf, source: io::Error },
    #[error("user {uid} cannot be become: {source}")]
    User { uid: u32, source: io::Error },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OutputFormat {
    /// An item a line.
    Simple,
    /// A NUL behind each item: what libxl asks for.
    Simple0,
}

#[derive(Debug, Args)]
#[command(after_help = "In a configuration of xl, for a PVH or PV guest:
  bootloader = \"nxl-bootloader\"
  bootloader_args = [ \"--generation=42\", \"--specialisation=rescue\" ]   # of what is on the first disk
  bootloader_args = [ \"--system=/nix/var/nix/profiles/work\" ]          # of dom0's store
Example by hand:
  nxl-bootloader --list-entries /img/work.img
  nxl-bootloader --output-directory=/tmp /nix/var/nix/profiles/system")]
pub(crate) struct BootloaderOptions {
    /// Refused: the configuration names a kernel, and the entry has one.
    #[arg(long, value_name = "FILE", hide = true)]
    kernel: Option<PathBuf>,
    /// Refused: the configuration names an initrd, and the entry may have one.
    #[arg(long, value_name = "FILE", hide = true)]
    ramdisk: Option<PathBuf>,
    /// More of the kernel's command line, behind the entry's.
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    args: String,
    /// Read the disk as this user, and group of the same number.
    #[arg(long, value_name = "UID")]
    runas: Option<u32>,
    /// Say nothing but errors, and do not ask.
    #[arg(short, long)]
    quiet: bool,
    /// Ask on the terminal which entry it shall be.
    #[arg(short, long)]
    interactive: bool,
    /// List the entries, the default with a star, and do nothing.
    #[arg(short, long)]
    list_entries: bool,
    /// Where to write which files were made; - is standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// How to write it.
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "simple")]
    output_format: OutputFormat,
    /// Where to put the copies of kernel and initrd.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    output_directory: PathBuf,
    /// Boot this system of dom0's store instead of what is on the disk: a closure, its boot.json, or a profile.
    #[arg(long, value_name = "PATH")]
    system: Option<PathBuf>,
    /// Boot this generation.
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
    /// Boot this specialisation of it, or of the default one.
    #[arg(long, value_name = "NAME")]
    specialisation: Option<String>,
    /// Boot this entry: its name, title, or number in the list.
    #[arg(long, value_name = "ENTRY", conflicts_with_all = ["generation", "specialisation"])]
    entry: Option<String>,
    /// Let the closure's program append its initrd secrets, to a copy in memory. It runs in dom0, with all that this
    /// program's user may do: only for systems whose author may do that.
    #[arg(long)]
    initrd_secrets: bool,
    /// The disk: a block device or an image, with a boot partition of NixOS (systemd-boot, extlinux or lanzaboote) on
    /// ext2, ext3, ext4 or FAT; or what --system names.
    disk: PathBuf,
}

/// Picks the system, and hands over.
pub(crate) fn bootloader(options: &BootloaderOptions) -> Result<(), BootError> {
    for (given, key) in [(&options.kernel, "kernel"), (&options.ramdisk, "ramdisk")] {
        if given.is_some() {
            return Err(BootError::Given(key));
        }
    }
    let forbidden = options.quiet || options.runas.is_some() || !io::stdin().is_terminal();
    if options.interactive && forbidden {
        return Err(BootError::NotInteractive);
    }
    if options.list_entries {
        let menu = Menu::open(options.source())?;
        return list(&menu).map_err(BootError::Menu);
    }
    // What takes rights comes before they are given up, and what reads a qube's disk behind.
    let mut output = options.open_output()?;
    let mut handover = Handover::new(&options.output_directory)?;
    let menu = if Closure::is_one(options.source()) {
        options.become_user()?;
        Menu::open(options.source())?
    } else {
        let path = options.source();
        let disk =
            File::open(path).map_err(|source| BootloaderError::Read { path: path.to_owned(), source })?;
        options.become_user()?;
        Menu::of_disk(disk, path)?
    };
    let entry = options.choose(&menu)?;
    if !options.quiet {
        // Nobody reads it: no reason not to boot.
        let _ = write!(io::stderr(), "{}: {}\r\n", entry.id, entry.title);
    }
    let copies = menu.hand_over(entry, &options.args, options.initrd_secrets, &mut handover)?;
    let text = copies.to_bytes(match options.output_format {
        OutputFormat::Simple => Format::Simple,
        OutputFormat::Simple0 => Format::Simple0,
    })?;
    let written = output.write_all(&text).and_then(|()| output.flush());
    written.map_err(|source| BootError::Output { path: options.output.clone(), source })?;
    handover.keep();
    Ok(())
}

impl BootloaderOptions {
    fn source(&self) -> &Path {
        self.system.as_deref().unwrap_or(&self.disk)
    }

    fn open_output(&self) -> Result<Box<dyn Write>, BootError> {
        if self.output == Path::new("-") {
            return Ok(Box::new(io::stdout()));
        }
        let error = |source| BootError::Output { path: self.output.clone(), source };
        // libxl has made it; it may be a pipe.
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&self.output);
        Ok(Box::new(file.map_err(error)?))
    }

    fn become_user(&self) -> Result<(), BootError> {
        let Some(uid) = self.runas else { return Ok(()) };
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        // This program has one thread.
        set_thread_groups(&[])
            .and_then(|()| set_thread_res_gid(group, group, group))
            .and_then(|()| set_thread_res_uid(user, user, user))
            .map_err(|errno| BootError::User { uid, source: errno.into() })
    }

    fn choose<'a>(&self, menu: &'a Menu) -> Result<&'a Entry, BootError> {
        if self.interactive {
            return ask(menu, &mut io::stdin(), &mut io::stdout()).map_err(BootError::Menu);
        }
        let wish = Wish {
            entry: self.entry.clone(),
            generation: self.generation,
            specialisation: self.specialisation.clone(),
        };
        Ok(menu.choose(&wish)?)
    }
}

fn list(menu: &Menu) -> io::Result<()> {
    let mut output = io::stdout().lock();
    for (place, entry) in menu.entries().iter().enumerate() {
        let mark = if place == menu.default() { '*' } else { ' ' };
        writeln!(output, "{mark}{place:3}  {}  {}", entry.id, entry.title)?;
    }
    Ok(())
}
