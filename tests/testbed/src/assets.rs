//! What checks need besides closures: the same kernels and initrds, as other installations keep them, what calls between
//! qubes are tried with, and the tutorial.
//!
//! A check asks for assets in its header (`# with: NAME…`), and finds each in dom0 at `/testbed/assets/NAME`. Those
//! that are booted hold one system's files: those of `vault`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::cache::{Cache, checkout};
use crate::closure::{Builder, Closure};
use crate::debian::{Debian, Tree};
use crate::error::At as _;
use crate::products::{OF_CALLS, Products};
use crate::{Error, Result, elf, packages, process};

/// The system whose files they hold; its kernel is the one that is unpacked fastest.
const SYSTEM: &str = "vault";

/// Where systemd's stub is in its package: what a unified kernel image starts with on real firmware.
const STUB: (&str, &str) = ("systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxx64.efi.stub");

/// The assets, by name.
pub const NAMES: [&str; 11] = [
    "unified",
    "esp",
    "disk",
    "calls",
    DECLARED[0],
    DECLARED[1],
    DECLARED[2],
    DECLARED[3],
    TUTORIAL,
    PACKAGES,
    LIBVIRT,
];

/// Those that are a `qubes.json` with the systems that it names, which `nixos/testing` builds: dom0 has all of their store paths.
pub const DECLARED: [&str; 4] = ["demo", "demo-next", "demo-disposable", "network"];

/// The one that is the tutorial, and the documents that its commands for a machine with Nix make.
pub const TUTORIAL: &str = "tutorial";

/// The one that is our Debian packages, with Debian's programs that install them.
pub const PACKAGES: &str = "packages";

/// The one that is libvirt's daemon with its driver for libxl, and virsh.
pub const LIBVIRT: &str = "libvirt";

/// Their packages, and where they lie there.
const OF_LIBVIRT: [(&str, &str); 3] = [
    ("libvirt-daemon", "usr/sbin/libvirtd"),
    ("libvirt-clients", "usr/bin/virsh"),
    (
        "libvirt-daemon-driver-xen",
        "usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_libxl.so",
    ),
];

/// What libvirt knows of processors.
const LIBVIRTS_PROCESSORS: &str = "usr/share/libvirt/cpu_map";

/// What installs packages, and what theirs ask for then: where it lies in Debian 12.
const INSTALLERS: [&str; 5] =
    ["usr/bin/dpkg", "usr/bin/dpkg-deb", "usr/bin/dpkg-query", "usr/bin/dpkg-split", "usr/bin/tar"];
const USERS_AND_FOLDERS: [&str; 2] = ["usr/bin/systemd-sysusers", "usr/bin/systemd-tmpfiles"];
const LINKER_CACHE: (&str, &str) = ("libc-bin", "usr/sbin/ldconfig");

/// What our packages depend on: what of these dom0 needs, it has.
const DEPENDENCIES: [&str; 6] =
    ["libc6", "libgcc-s1", "libxenevtchn1", "libxengnttab1", "libxenmisc4.17", "libxenstore4"];

/// How a block of such commands is marked.
const WHERE_NIX_IS: &str = "```sh nix";

/// Programs that know nothing of calls, at both ends of one: their packages, and where they lie there.
const STRANGERS: [(&str, &str); 2] = [("curl", "usr/bin/curl"), ("socat", "usr/bin/socat")];

/// Where the added sections of an image begin: behind those of the stub.
const FIRST_ADDRESS: u64 = 0x100_0000;

/// The folder with one folder for each asset.
#[derive(Debug)]
pub struct Assets {
    folder: PathBuf,
}

impl Assets {
    /// Makes them below `folder`.
    pub fn make(
        cache: &Cache,
        debian: &Debian,
        products: &Products,
        closures: &[Closure],
        folder: &Path,
    ) -> Result<Self> {
        let folder = folder.join("assets");
        let system = closures
            .iter()
            .find(|closure| closure.name == SYSTEM)
            .ok_or_else(|| Error::NotPackaged { path: format!("system {SYSTEM}") })?;
        let files = Files::of(system)?;
        let stub = Tree::of_package(cache, STUB.0)?.file(STUB.1)?;
        make_unified(&stub, &files, &folder.join(NAMES[0]))?;
        make_esp(&stub, &files, &folder.join(NAMES[1]))?;
        make_disk(&files, &folder.join(NAMES[2]))?;
        let strangers = Tree::of_packages(cache, NAMES[3], &STRANGERS.map(|(package, _)| package))?;
        make_calls(&strangers, debian, products, &folder.join(NAMES[3]))?;
        Ok(Self { folder })
    }

    /// Makes [`TUTORIAL`], which takes a build: runs the page's commands for a machine with Nix.
    pub fn make_tutorial(&self, builder: &Builder) -> Result<()> {
        let page = checkout().join("docs/tutorial.md");
        let text = fs::read_to_string(&page).at(&page)?;
        let place = self.path(TUTORIAL);
        fs::create_dir_all(&place).at(&place)?;
        let copy = place.join("tutorial.md");
        fs::write(&copy, &text).at(&copy)?;
        for block in blocks(&text, WHERE_NIX_IS) {
            for (name, document) in builder.documented(&block)? {
                // Not with what a store says of who may write it.
                let copy = place.join(name);
                fs::write(&copy, fs::read(&document).at(&document)?).at(&copy)?;
            }
        }
        Ok(())
    }

    /// Makes [`PACKAGES`], which takes a build: `debs`, and `bin` and `lib` to install them with, and `status`, by which dpkg knows
    /// what dom0 has of Debian.
    pub fn make_packages(&self, cache: &Cache, debian: &Debian, folder: &Path) -> Result<()> {
        let place = self.path(PACKAGES);
        let debs = place.join("debs");
        fs::create_dir_all(&debs).at(&debs)?;
        let built = folder.join("debian-packages");
        process::run(Command::new(checkout().join("packaging/build")).arg(&built))?;
        for file in fs::read_dir(&built).at(&built)? {
            let path = file.at(&built)?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                fs::copy(&path, debs.join(path.file_name().unwrap_or_default())).at(&path)?;
            }
        }

        let guests = packages::debian_tree(cache)?;
        let mut binaries = vec![Tree::of_package(cache, LINKER_CACHE.0)?.file(LINKER_CACHE.1)?];
        for (tree, paths) in [(&debian.tree, &INSTALLERS[..]), (&guests, &USERS_AND_FOLDERS)] {
            for path in paths {
                binaries.push(tree.file(path)?);
            }
        }
        let folders: Vec<_> = [&debian.tree, &guests].into_iter().flat_map(packages::folders).collect();
        let libraries = elf::libraries(&binaries, &folders)?;
        copy_flat(&place, binaries, libraries)?;

        let mut status = String::new();
        for (name, tree) in
            DEPENDENCIES.map(|name| (name, &debian.tree)).into_iter().chain([("systemd", &guests)])
        {
            let version = tree.version(name)?;
            status.push_str(&format!(
                "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\
                 Maintainer: Debian\nDescription: what the testbed's dom0 has of it\n\n"
            ));
        }
        let path = place.join("status");
        fs::write(&path, status).at(&path)
    }

    /// Makes [`LIBVIRT`], which takes a download: `bin` and, flat, `lib`, the driver in `bin`, too.
    pub fn make_libvirt(&self, cache: &Cache, debian: &Debian) -> Result<()> {
        let tree = Tree::of_packages(cache, LIBVIRT, &OF_LIBVIRT.map(|(package, _)| package))?;
        let mut binaries = Vec::new();
        for (_, path) in OF_LIBVIRT {
            binaries.push(tree.file(path)?);
        }
        let folders: Vec<_> = [&debian.tree, &tree].into_iter().flat_map(Tree::library_folders).collect();
        let libraries = elf::libraries(&binaries, &folders)?;
        let place = self.path(LIBVIRT);
        copy_flat(&place, binaries, libraries)?;
        let (source, target) = (tree.file(LIBVIRTS_PROCESSORS)?, place.join("cpu_map"));
        process::run(Command::new("cp").arg("-r").arg(source).arg(target))
    }

    /// The folder of an asset.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// What stands between a line that is the mark and the end of the block.
fn blocks(text: &str, mark: &str) -> Vec<String> {
    let (mut found, mut lines) = (Vec::new(), text.lines());
    while lines.by_ref().any(|line| line == mark) {
        found
            .push(lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect());
    }
    found
}

/// What a system boots.
struct Files {
    kernel: PathBuf,
    initrd: PathBuf,
    cmdline: String,
}

impl Files {
    fn of(closure: &Closure) -> Result<Self> {
        let here = |path: &Path| closure.root.join(path.strip_prefix("/").unwrap_or(path));
        let toplevel = here(Path::new(&closure.toplevel));
        let target = |name: &str| {
            let link = toplevel.join(name);
            fs::read_link(&link).at(&link)
        };
        let params = toplevel.join("kernel-params");
        let params = fs::read_to_string(&params).at(&params)?;
        Ok(Self {
            kernel: here(&target("kernel")?),
            initrd: here(&target("initrd")?),
            cmdline: format!("{params} init={}", target("init")?.display()),
        })
    }
}

/// `NAME/vault.efi`: a unified kernel image, put together as systemd's manual shows it, by objcopy.
fn make_unified(stub: &Path, files: &Files, place: &Path) -> Result<()> {
    let [osrel, cmdline] = texts(files, place)?;
    let sections = [
        (".osrel", osrel),
        (".cmdline", cmdline),
        (".initrd", files.initrd.clone()),
        (".linux", files.kernel.clone()),
    ];
    add_sections(stub, &sections, &place.join("vault.efi"))
}

/// An EFI system partition as lanzaboote leaves it: a stub for generation 7, and what it names.
fn make_esp(stub: &Path, files: &Files, place: &Path) -> Result<()> {
    let nixos = place.join("EFI/nixos");
    let linux = place.join("EFI/Linux");
    for folder in [&nixos, &linux] {
        fs::create_dir_all(folder).at(folder)?;
    }
    let [osrel, cmdline] = texts(files, place)?;
    let mut sections = vec![(".osrel", osrel), (".cmdline", cmdline)];
    for (source, name, path_section, hash_section) in [
        (&files.kernel, "kernel.efi", ".linux", ".linuxh"),
        (&files.initrd, "initrd.efi", ".initrd", ".initrdh"),
    ] {
        let bytes = fs::read(source).at(source)?;
        let copy = nixos.join(name);
        fs::write(&copy, &bytes).at(&copy)?;
        sections.push((path_section, text(place, path_section, format!("\\EFI\\nixos\\{name}"))?));
        sections.push((hash_section, text(place, hash_section, Sha256::digest(&bytes))?));
    }
    add_sections(stub, &sections, &linux.join("nixos-generation-7.efi"))
}

/// `boot.img`: a disk with one partition, the EFI system partition of a NixOS with systemd-boot. Of its generations 7
/// and 8 the newer one is the default; its command line begins with `generation=8`, and that of its specialisation
/// `rescue` with `rescue`.
fn make_disk(files: &Files, place: &Path) -> Result<()> {
    let entry = |options: &str| {
        format!(
            "title NixOS\nlinux /EFI/nixos/kernel.efi\ninitrd /EFI/nixos/initrd.efi\noptions {options}{}\n",
            files.cmdline
        )
    };
    let [kernel, initrd] = [&files.kernel, &files.initrd].map(|path| fs::read(path).at(path));
    let (kernel, initrd) = (kernel?, initrd?);
    let [seven, eight, rescue] = ["", "generation=8 ", "rescue "].map(entry);
    // Room for the file system's own.
    let size = (kernel.len() + initrd.len() + (2 << 20)).next_multiple_of(1 << 20);
    let contents: [(&[&str], &str, &[u8]); 6] = [
        (&["loader"], "loader.conf", b"timeout 5\ndefault nixos-generation-8.conf\n"),
        (&["loader", "entries"], "nixos-generation-7.conf", seven.as_bytes()),
        (&["loader", "entries"], "nixos-generation-8.conf", eight.as_bytes()),
        (&["loader", "entries"], "nixos-generation-8-specialisation-rescue.conf", rescue.as_bytes()),
        (&["EFI", "nixos"], "kernel.efi", &kernel),
        (&["EFI", "nixos"], "initrd.efi", &initrd),
    ];
    fs::create_dir_all(place).at(place)?;
    let image = place.join("boot.img");
    let write = || -> io::Result<()> {
        let mut partition = Cursor::new(vec![0; size]);
        fatfs::format_volume(&mut partition, fatfs::FormatVolumeOptions::new())?;
        let volume = fatfs::FileSystem::new(&mut partition, fatfs::FsOptions::new())?;
        for (folders, name, bytes) in contents {
            let mut folder = volume.root_dir();
            for name in folders {
                folder = folder.create_dir(name)?;
            }
            folder.create_file(name)?.write_all(bytes)?;
        }
        drop(volume);
        // A master boot record: one partition of type 0xef from the second MiB on.
        let mut disk = vec![0; 1 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[450] = 0xef;
        disk[454..458].copy_from_slice(&(1_u32 << 11).to_le_bytes());
        disk[458..462].copy_from_slice(&u32::try_from(size / 512).unwrap_or(u32::MAX).to_le_bytes());
        disk.extend_from_slice(&partition.into_inner());
        fs::write(&image, disk)
    };
    write().at(&image)
}

/// `calls.tar`: `bin/` and, flat, `lib/`, for a qube that calls. As a disk it needs no file system's module.
fn make_calls(strangers: &Tree, debian: &Debian, products: &Products, place: &Path) -> Result<()> {
    let mut binaries = Vec::new();
    for path in OF_CALLS {
        let product = products.at(path).ok_or_else(|| Error::NotPackaged { path: path.to_owned() })?;
        binaries.push(product.to_owned());
    }
    for (_, path) in STRANGERS {
        binaries.push(strangers.file(path)?);
    }
    let folders: Vec<_> = [&debian.tree, strangers].into_iter().flat_map(Tree::library_folders).collect();
    let libraries = elf::libraries(&binaries, &folders)?;
    let contents = place.with_extension("contents");
    copy_flat(&contents, binaries, libraries)?;
    fs::create_dir_all(place).at(place)?;
    let tar = place.join("calls.tar");
    // xen-blkback wants whole sectors, and tar writes whole blocks of 10 KiB.
    process::run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&contents).args(["bin", "lib"]))
}

/// Programs in `bin/` of a folder, and their libraries in its `lib/`.
fn copy_flat(place: &Path, binaries: Vec<PathBuf>, libraries: BTreeMap<String, PathBuf>) -> Result<()> {
    for (folder, files) in [("bin", binaries), ("lib", libraries.into_values().collect())] {
        let folder = place.join(folder);
        fs::create_dir_all(&folder).at(&folder)?;
        for file in files {
            fs::copy(&file, folder.join(file.file_name().unwrap_or_default())).at(&file)?;
        }
    }
    Ok(())
}

fn texts(files: &Files, place: &Path) -> Result<[PathBuf; 2]> {
    Ok([
        text(place, ".osrel", "ID=nixos\nPRETTY_NAME=\"NixOS 22.11.testing\"\n")?,
        text(place, ".cmdline", &files.cmdline)?,
    ])
}

/// A section's contents, in a file beside `place`, which goes into dom0.
fn text(place: &Path, section: &str, contents: impl AsRef<[u8]>) -> Result<PathBuf> {
    fs::create_dir_all(place).at(place)?;
    let path = place.with_extension(section.trim_start_matches('.'));
    fs::write(&path, contents).at(&path)?;
    Ok(path)
}

/// Writes the stub with more sections to `target`.
fn add_sections(stub: &Path, sections: &[(&str, PathBuf)], target: &Path) -> Result<()> {
    let mut objcopy = Command::new("objcopy");
    let mut address = FIRST_ADDRESS;
    for (name, file) in sections {
        objcopy.arg("--add-section").arg(format!("{name}={}", file.display()));
        objcopy.arg("--change-section-vma").arg(format!("{name}={address:#x}"));
        address = (address + file.metadata().at(file)?.len()).next_multiple_of(0x1000);
    }
    process::run(objcopy.arg(stub).arg(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocks_of_a_mark_are_found() {
        let text = "a\n```sh nix\nb\nc\n```\n```sh\nd\n```\n```sh nix\ne\n```\n";
        assert_eq!(blocks(text, WHERE_NIX_IS), ["b\nc\n", "e\n"]);
        assert_eq!(blocks(text, "```text"), [""; 0]);
    }
}
