//! What guests with systemd are made of beside the kernel: programs of Debian 12, a folder for each package of
//! `nixos/testing/packages.nix`, with the libraries that its programs load. Nix makes store paths of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::Cache;
use crate::debian::Tree;
use crate::error::At as _;
use crate::products::Products;
use crate::{Error, Result, elf, process};

/// A package for guests: its name, and what of Debian's files is in it: where it lies there, and where in the package.
type Package = (&'static str, &'static [(&'static str, &'static str)]);

/// What apt is asked for; what these depend on comes along.
const DEBIAN: [&str; 17] = [
    "systemd",
    "systemd-container",
    "bash",
    "util-linux",
    "mount",
    "e2fsprogs",
    "patchelf",
    "iproute2",
    "nftables",
    "curl",
    "sqlite3",
    "gpg",
    "gpg-agent",
    "htop",
    "xenstore-utils",
    "libxengnttab1",
    "libxenevtchn1",
];

const PACKAGES: [Package; 12] = [
    (
        "systemd",
        &[
            ("lib/systemd/system", "example/systemd/system"),
            ("lib/systemd/systemd", "lib/systemd/systemd"),
            ("lib/systemd/systemd-journald", "lib/systemd/systemd-journald"),
            ("lib/systemd/systemd-shutdown", "lib/systemd/systemd-shutdown"),
            ("lib/systemd/systemd-sulogin-shell", "lib/systemd/systemd-sulogin-shell"),
            ("lib/systemd/systemd-sysctl", "lib/systemd/systemd-sysctl"),
            ("usr/bin/journalctl", "bin/journalctl"),
            ("usr/bin/systemctl", "bin/systemctl"),
            ("usr/bin/systemd-analyze", "bin/systemd-analyze"),
            ("usr/bin/systemd-cat", "bin/systemd-cat"),
            ("usr/bin/systemd-cgls", "bin/systemd-cgls"),
            ("usr/bin/systemd-notify", "bin/systemd-notify"),
            ("usr/bin/systemd-nspawn", "bin/systemd-nspawn"),
            ("usr/bin/systemd-run", "bin/systemd-run"),
            ("usr/bin/systemd-tmpfiles", "bin/systemd-tmpfiles"),
        ],
    ),
    ("bash", &[("usr/bin/bash", "bin/bash"), ("usr/bin/bash", "bin/sh")]),
    (
        "util-linux",
        &[
            ("usr/bin/mount", "bin/mount"),
            ("usr/bin/umount", "bin/umount"),
            ("usr/bin/nsenter", "bin/nsenter"),
            ("usr/bin/setpriv", "bin/setpriv"),
        ],
    ),
    (
        "e2fsprogs",
        &[
            ("usr/sbin/mke2fs", "bin/mkfs.ext4"),
            ("usr/sbin/e2fsck", "bin/e2fsck"),
            ("usr/sbin/resize2fs", "bin/resize2fs"),
            ("usr/sbin/dumpe2fs", "bin/dumpe2fs"),
        ],
    ),
    ("iproute2", &[("usr/bin/ip", "bin/ip")]),
    ("nftables", &[("usr/sbin/nft", "bin/nft")]),
    ("patchelf", &[("usr/bin/patchelf", "bin/patchelf")]),
    ("curl", &[("usr/bin/curl", "bin/curl")]),
    ("sqlite", &[("usr/bin/sqlite3", "bin/sqlite3")]),
    ("gnupg", &[("usr/bin/gpg", "bin/gpg"), ("usr/bin/gpg-agent", "bin/gpg-agent")]),
    ("htop", &[("usr/bin/htop", "bin/htop")]),
    (
        "xenstore",
        &[
            ("usr/bin/xenstore-list", "bin/xenstore-list"),
            ("usr/bin/xenstore-read", "bin/xenstore-read"),
            ("usr/bin/xenstore-rm", "bin/xenstore-rm"),
            ("usr/bin/xenstore-watch", "bin/xenstore-watch"),
            ("usr/bin/xenstore-write", "bin/xenstore-write"),
            // It cancels its thread when it closes, and that loads this one, which no header names.
            ("usr/lib/x86_64-linux-gnu/libgcc_s.so.1", "lib/libgcc_s.so.1"),
        ],
    ),
];

/// Our own programs in a qube.
const OURS: (&str, [&str; 3]) =
    ("nexus", ["usr/bin/nexus-agent", "usr/bin/nexus-call", "usr/bin/nexus-service"]);

/// What of libc6 all others load: a package of its own.
const GLIBC: [&str; 12] = [
    "ld-linux-x86-64.so.2",
    "libanl.so.1",
    "libc.so.6",
    "libdl.so.2",
    "libm.so.6",
    "libnss_compat.so.2",
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
    "libutil.so.1",
];

/// Raised when what this file does changes otherwise than by the lists above.
const REVISION: u32 = 1;

/// Puts a folder for each package below `folder`: `bin/`, `lib/` and, of some, more. Nothing in them is patched yet.
pub fn gather(cache: &Cache, products: &Products, folder: &Path) -> Result<PathBuf> {
    let tree = debian_tree(cache)?;
    let recipe = format!("{REVISION} {DEBIAN:?} {PACKAGES:?} {GLIBC:?} {}", tree.root().display());
    let debian = cache.entry("guest-programs", &recipe, |place| {
        PACKAGES.iter().try_for_each(|(name, files)| {
            let package = place.join(name);
            for (source, target) in *files {
                copy(&tree.file(source)?, &package.join(target))?;
            }
            add_libraries(&package, &tree)
        })?;
        let folders = folders(&tree);
        for library in GLIBC {
            let source = elf::locate(library, &folders).ok_or_else(|| not_there(library))?;
            copy(&source, &place.join("glibc/lib").join(library))?;
        }
        Ok(())
    })?;

    let place = folder.join("packages");
    copy(&debian, &place)?;
    let (name, programs) = OURS;
    let package = place.join(name);
    for program in programs {
        let source = products.at(program).ok_or_else(|| Error::NotPackaged { path: program.to_owned() })?;
        copy(source, &package.join("bin").join(source.file_name().unwrap_or_default()))?;
    }
    add_libraries(&package, &tree)?;
    copy(
        &elf::locate("libgcc_s.so.1", &folders(&tree)).ok_or_else(|| not_there("libgcc_s.so.1"))?,
        &package.join("lib/libgcc_s.so.1"),
    )?;
    Ok(place)
}

/// The packages of Debian that they are made of.
pub fn debian_tree(cache: &Cache) -> Result<Tree> {
    Tree::of_packages(cache, "guest-packages", &DEBIAN)
}

/// systemd has libraries of its own in a folder of its own.
pub fn folders(tree: &Tree) -> Vec<PathBuf> {
    let mut folders = tree.library_folders();
    let own: Vec<_> = folders.iter().map(|folder| folder.join("systemd")).collect();
    folders.extend(own);
    folders
}

fn not_there(library: &str) -> Error {
    Error::NoLibrary { binary: "the guests' programs".into(), library: library.to_owned() }
}

/// The libraries of all programs in `package`, but for glibc's, in its `lib/`.
fn add_libraries(package: &Path, tree: &Tree) -> Result<()> {
    let mut programs = Vec::new();
    find_elf(package, &mut programs)?;
    for (name, path) in elf::libraries(&programs, &folders(tree))? {
        if !GLIBC.contains(&name.as_str()) {
            copy(&path, &package.join("lib").join(name))?;
        }
    }
    Ok(())
}

fn find_elf(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).at(folder)? {
        let path = entry.at(folder)?.path();
        let kind = fs::symlink_metadata(&path).at(&path)?;
        if kind.is_dir() {
            find_elf(&path, found)?;
        } else if kind.is_file() && fs::read(&path).at(&path)?.starts_with(b"\x7fELF") {
            found.push(path);
        }
    }
    Ok(())
}

/// Copies a file, through a link, or a folder, whose links stay links.
fn copy(source: &Path, target: &Path) -> Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).at(parent)?;
    }
    let mut command = Command::new("cp");
    command.arg(if source.is_dir() { "-rP" } else { "-L" });
    process::run(command.arg(source).arg(target))
}
