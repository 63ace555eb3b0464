use super::*;
use crate::image::synthetic::pe;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::symlink;
use std::process::Command;

const MIB: usize = 1 << 20;

/// Writes files below a folder.
fn write(folder: &Path, files: &[(&str, &[u8])]) {
    for (path, bytes) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// A FAT file system of `size` bytes with these files.
fn fat(size: usize, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut disk = Cursor::new(vec![0; size]);
    fatfs::format_volume(&mut disk, fatfs::FormatVolumeOptions::new()).unwrap();
    disk.set_position(0);
    let volume = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
    for (path, bytes) in files {
        let mut folder = volume.root_dir();
        let (above, name) = path.rsplit_once('/').unwrap();
        for part in above.split('/') {
            folder = folder.create_dir(part).unwrap();
        }
        folder.create_file(name).unwrap().write_all(bytes).unwrap();
    }
    drop(volume);
    disk.into_inner()
}

/// An ext4 file system with these files, by e2fsprogs.
fn ext4(files: &[(&str, &[u8])]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (tree, image) = (folder.path().join("tree"), folder.path().join("image"));
    fs::create_dir(&tree).unwrap();
    write(&tree, files);
    let mut make = Command::new("mke2fs");
    make.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&image);
    assert!(make.arg("8M").output().expect("mke2fs, of the package e2fsprogs").status.success());
    fs::read(image).unwrap()
}

/// Puts a number into bytes, little-endian.
fn put(bytes: &mut [u8], at: usize, size: usize, value: u64) {
    bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// A disk with a GUID partition table.
fn gpt(partitions: &[Vec<u8>]) -> Vec<u8> {
    let mut disk = vec![0; MIB];
    put(&mut disk, 510, 2, 0xaa55);
    disk[512..520].copy_from_slice(b"EFI PART");
    for (at, size, value) in [(72, 8, 2), (80, 4, 128), (84, 4, 128)] {
        put(&mut disk, 512 + at, size, value);
    }
    for (index, partition) in partitions.iter().enumerate() {
        // One entry is left free between two.
        let entry = 1024 + 2 * 128 * index;
        let (first, last) = (disk.len() / 512, (disk.len() + partition.len()) / 512 - 1);
        disk[entry..entry + 16].fill(0x11);
        put(&mut disk, entry + 32, 8, first as u64);
        put(&mut disk, entry + 40, 8, last as u64);
        disk.extend_from_slice(partition);
    }
    disk
}

/// A disk with a master boot record.
fn mbr(partition: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; MIB];
    put(&mut disk, 510, 2, 0xaa55);
    put(&mut disk, 446 + 4, 1, 0x83);
    put(&mut disk, 446 + 8, 4, (MIB / 512) as u64);
    put(&mut disk, 446 + 12, 4, (partition.len() / 512) as u64);
    disk.extend_from_slice(partition);
    disk
}

/// What systemd-boot has of three generations, of which the second has a specialisation and is the default.
const SYSTEMD_BOOT: [(&str, &[u8]); 9] = [
    ("loader/loader.conf", b"timeout 5\ndefault nixos-generation-2.conf\n"),
    ("loader/entries/nixos-generation-1.conf", b"title NixOS\nversion Generation 1\nlinux /EFI/nixos/k1.efi\n"),
    (
        "loader/entries/nixos-generation-2.conf",
        b"# made by NixOS\ntitle NixOS\nversion Generation 2\nlinux /EFI/nixos/k2.efi\ninitrd /EFI/nixos/ucode\n\
          initrd /EFI/nixos/i2.efi\noptions init=/nix/store/2/init quiet\nmachine-id 0\n",
    ),
    (
        "loader/entries/nixos-generation-2-specialisation-rescue.conf",
        b"title NixOS (rescue)\nlinux /EFI/nixos/k2.efi\noptions rescue\n",
    ),
    ("loader/entries/nixos-generation-10+3.conf", b"title NixOS\nlinux /EFI/nixos/k1.efi\noptions ten\n"),
    ("EFI/nixos/k1.efi", b"kernel 1"),
    ("EFI/nixos/k2.efi", b"kernel 2"),
    ("EFI/nixos/i2.efi", b"initrd 2"),
    ("EFI/nixos/ucode", b"microcode "),
];

/// Kernel, initrd and command line that are handed over.
type Booted = (Vec<u8>, Option<Vec<u8>>, String);

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn disk(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("disk.img");
        fs::write(&path, bytes).unwrap();
        path
    }

    fn copies(&self) -> usize {
        let names = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| !name.to_str().unwrap().starts_with("disk")).count()
    }

    fn boot(&self, path: &Path, wish: &Wish) -> Result<Booted, BootloaderError> {
        let menu = Menu::open(path)?;
        let mut handover = Handover::new(self.0.path())?;
        let Copies { kernel, ramdisk, cmdline } =
            menu.hand_over(menu.choose(wish)?, "", false, &mut handover)?;
        assert_eq!(ramdisk.is_none(), fs::metadata(handover.path("ramdisk")).unwrap().len() == 0);
        Ok((fs::read(kernel).unwrap(), ramdisk.map(|path| fs::read(path).unwrap()), cmdline))
    }

    fn refused(&self, path: &Path, wish: &Wish) -> String {
        let error = self.boot(path, wish).unwrap_err().to_string();
        assert_eq!(self.copies(), 0, "{error}");
        assert!(!error.contains('\n'), "{error}");
        error
    }
}

fn wish(entry: &str, generation: u64, specialisation: &str) -> Wish {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Wish {
        entry: text(entry),
        generation: Some(generation).filter(|number| *number > 0),
        specialisation: text(specialisation),
    }
}

#[test]
fn systemd_boots_entries_are_read_from_each_kind_of_disk() {
    let place = Place::new();
    let volume = fat(4 * MIB, &SYSTEMD_BOOT);
    let large = fat(40 * MIB, &SYSTEMD_BOOT);
    let other = vec![0; MIB];
    for disk in [volume.clone(), mbr(&volume), gpt(&[other, volume]), gpt(&[large]), ext4(&SYSTEMD_BOOT)] {
        let disk = place.disk(&disk);
        let menu = Menu::open(&disk).unwrap();
        let ids: Vec<&str> = menu.entries().iter().map(|entry| entry.id.as_str()).collect();
        let rescue = "nixos-generation-2-specialisation-rescue";
        assert_eq!(ids, ["nixos-generation-10", "nixos-generation-2", "nixos-generation-1", rescue]);
        assert_eq!(menu.entries()[menu.default()].title, "NixOS, Generation 2");
        drop(menu);

        let (kernel, initrd, cmdline) = place.boot(&disk, &Wish::default()).unwrap();
        assert_eq!(kernel, b"kernel 2");
        assert_eq!(initrd.as_deref(), Some(&b"microcode initrd 2"[..]));
        assert_eq!(cmdline, "init=/nix/store/2/init quiet");
        for (wish, expected) in [
            (wish("", 0, "rescue"), "rescue"),
            (wish("", 2, "rescue"), "rescue"),
            (wish("", 10, ""), "ten"),
            (wish("nixos-generation-10", 0, ""), "ten"),
            (wish("nixos-generation-10.conf", 0, ""), "ten"),
            (wish("0", 0, ""), "ten"),
            (wish("NixOS (rescue)", 0, ""), "rescue"),
        ] {
            assert_eq!(place.boot(&disk, &wish).unwrap().2, expected, "{wish:?}");
        }
        let error = place.refused(&disk, &wish("", 10, "rescue"));
        assert!(
            error.contains("no entry of generation 10, of specialisation `rescue' (it has nixos-gen"),
            "{error}"
        );
        assert!(place.refused(&disk, &wish("4", 0, "")).contains("no entry `4'"));
    }
}

#[test]
fn extlinux_entries_are_read_in_boot_and_at_the_root() {
    let conf = b"# Generated file\nDEFAULT nixos-default\nMENU TITLE ----\nTIMEOUT 50\n\n\
        LABEL nixos-default\n  MENU LABEL NixOS - Default\n  LINUX ../nixos/abc-Image\n  INITRD ../nixos/abc-initrd\n  \
        APPEND init=/nix/store/d/init loglevel=4\n  FDTDIR ../nixos/dtbs\n\n\
        LABEL nixos-3-default\n  MENU LABEL NixOS - 3\n  LINUX /nixos/abc-Image\n  APPEND three\n\n\
        LABEL nixos-3-rescue\n  LINUX ../nixos/abc-Image\n  APPEND rescue\n\nLABEL local\n  LOCALBOOT 0\n";
    let place = Place::new();
    for root in ["", "boot/"] {
        let (conf_path, kernel, initrd) = (
            format!("{root}extlinux/extlinux.conf"),
            format!("{root}nixos/abc-Image"),
            format!("{root}nixos/abc-initrd"),
        );
        let kernel_2 = "nixos/abc-Image";
        let mut files: Vec<(&str, &[u8])> =
            vec![(&conf_path, conf), (&kernel, b"kernel"), (&initrd, b"initrd")];
        if !root.is_empty() {
            files.push((kernel_2, b"kernel"));
        }
        let disk = place.disk(&mbr(&ext4(&files)));
        let booted = place.boot(&disk, &Wish::default()).unwrap();
        let expected =
            (b"kernel".to_vec(), Some(b"initrd".to_vec()), "init=/nix/store/d/init loglevel=4".to_owned());
        assert_eq!(booted, expected);
        assert_eq!(
            place.boot(&disk, &wish("", 3, "")).unwrap(),
            (b"kernel".to_vec(), None, "three".to_owned())
        );
        assert_eq!(place.boot(&disk, &wish("", 3, "rescue")).unwrap().2, "rescue");
        assert_eq!(Menu::open(&disk).unwrap().entries().len(), 3, "what boots no kernel is no entry");
    }
}

#[test]
fn images_and_stubs_are_read_from_the_boot_partition() {
    let place = Place::new();
    let hash = |bytes: &[u8]| Sha256::digest(bytes).to_vec();
    let stub = pe(&[
        (".cmdline", b"seven"),
        (".linux", br"\EFI\nixos\kernel.efi"),
        (".linuxh", &hash(b"kernel 7")),
        (".initrd", br"\EFI\nixos\initrd.efi"),
        (".initrdh", &hash(b"initrd 7")),
    ]);
    let unified = pe(&[(".cmdline", b"six"), (".linux", b"kernel 6")]);
    let name = format!("EFI/Linux/nixos-generation-7-{}.efi", "a".repeat(52));
    let with = |initrd: &[u8]| {
        fat(
            4 * MIB,
            &[
                (&name, &stub),
                ("EFI/Linux/nixos-generation-6.efi", &unified),
                ("EFI/nixos/kernel.efi", b"kernel 7"),
                ("EFI/nixos/initrd.efi", initrd),
            ],
        )
    };
    let disk = place.disk(&with(b"initrd 7"));
    let booted = place.boot(&disk, &Wish::default()).unwrap();
    assert_eq!(booted, (b"kernel 7".to_vec(), Some(b"initrd 7".to_vec()), "seven".to_owned()));
    let booted = place.boot(&disk, &wish("", 6, "")).unwrap();
    assert_eq!(booted, (b"kernel 6".to_vec(), None, "six".to_owned()));

    let other = Place::new();
    let error = other.refused(&other.disk(&with(b"initrd 8")), &Wish::default());
    assert!(error.starts_with("/EFI/nixos/initrd.efi: its SHA-256 is "), "{error}");
}

#[test]
fn closures_and_profiles_are_copied_and_stay() {
    let place = Place::new();
    let store = tempfile::tempdir().unwrap();
    let at = |path: &str| store.path().join(path);
    for system in ["one", "two", "two/specialisation/rescue"] {
        let file = |name: &str| format!("{system}/{name}");
        let files = [file("kernel"), file("initrd"), file("init"), file("kernel-params")];
        write(store.path(), &files.each_ref().map(|file| (file.as_str(), system.as_bytes())));
    }
    symlink("one", at("system-1-link")).unwrap();
    symlink("two", at("system-3-link")).unwrap();
    symlink("system-1-link", at("system")).unwrap();

    for path in ["system", "one", ""] {
        let (kernel, initrd, cmdline) = place.boot(&at(path), &Wish::default()).unwrap();
        assert_eq!((kernel, initrd), (b"one".to_vec(), Some(b"one".to_vec())), "{path}");
        assert!(cmdline.starts_with("one init="), "{cmdline}");
    }
    let rescue = place.boot(&at("system"), &wish("", 3, "rescue")).unwrap();
    assert!(rescue.2.starts_with("two/specialisation/rescue init="), "{}", rescue.2);
    let menu = Menu::open(&at("system")).unwrap();
    let ids: Vec<&str> = menu.entries().iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(
        ids,
        ["nixos-generation-3", "nixos-generation-3-specialisation-rescue", "nixos-generation-1",]
    );
    assert_eq!(menu.entries()[menu.default()].id, "nixos-generation-1");
    assert_eq!(fs::read(at("one/kernel")).unwrap(), b"one");

    let other = Place::new();
    let error = other.refused(&at("system"), &wish("", 2, ""));
    assert!(error.ends_with("system: no generation 2 (it has 1, 3)"), "{error}");
    fs::remove_file(at("one/init")).unwrap();
    let error = other.refused(&at("system"), &Wish::default());
    assert!(error.contains("its init ") && error.contains("is missing"), "{error}");
    write(store.path(), &[("one/append-initrd-secrets", b"#!/bin/sh\necho >> $1\n"), ("one/init", b"i")]);
    let error = other.refused(&at("system"), &Wish::default());
    assert!(error.ends_with("--initrd-secrets lets it"), "{error}");
}

#[test]
fn disks_with_nothing_to_boot_are_described() {
    let place = Place::new();
    let refused = |bytes: &[u8]| place.refused(&place.disk(bytes), &Wish::default());
    assert!(refused(&[0; 4096]).ends_with("neither a file system nor partitions"));
    assert!(refused(b"").ends_with("neither a file system nor partitions"));
    let mixed = gpt(&[fat(4 * MIB, &[("EFI/BOOT/BOOTX64.EFI", b"MZ")]), vec![0; MIB]]);
    let error = refused(&mixed);
    assert!(error.ends_with("partition 1: FAT; partition 3: neither ext2, ext3 or ext4 nor FAT"), "{error}");
    let dangling = fat(4 * MIB, &[("loader/entries/a.conf", b"linux /EFI/none.efi\n")]);
    let error = refused(&dangling);
    assert!(error.starts_with("/EFI/none.efi, of the disk's entry a: "), "{error}");
    let outside = fat(4 * MIB, &[("loader/entries/a.conf", b"linux ../../../etc/shadow\n")]);
    assert!(refused(&outside).contains("no boot entries"));
}

#[test]
fn broken_file_systems_end() {
    let place = Place::new();
    for whole in [fat(4 * MIB, &SYSTEMD_BOOT), ext4(&SYSTEMD_BOOT)] {
        let mut seed = 1_u64;
        for _ in 0..200 {
            let mut disk = whole.clone();
            for _ in 0..64 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // The structures are at the beginning.
                let at = usize::try_from(seed >> 33).unwrap() % (64 << 10);
                disk[at] = seed.to_be_bytes()[0];
            }
            // Whatever comes of it: no panic, and an end.
            let _ = place.boot(&place.disk(&disk), &Wish::default());
        }
    }
}

#[test]
fn the_menu_asks_until_it_is_answered() {
    let place = Place::new();
    let menu = Menu::open(&place.disk(&fat(4 * MIB, &SYSTEMD_BOOT))).unwrap();
    for (typed, id) in [("9\rx\r2\r", "nixos-generation-1"), ("\n", "nixos-generation-2")] {
        let mut shown = Vec::new();
        assert_eq!(ask(&menu, &mut typed.as_bytes(), &mut shown).unwrap().id, id);
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("*  1  nixos-generation-2  NixOS, Generation 2\r\n"), "{shown}");
        assert!(shown.contains("entry [1]: "), "{shown}");
    }
    let error = ask(&menu, &mut &b"9\r"[..], &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}
