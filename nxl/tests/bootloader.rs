//! `nxl-bootloader` as libxl runs it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_nxl-bootloader");

/// A profile of one generation, and what libxl makes before it runs a boot loader.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |path: &str| folder.path().join(path);
    for path in ["nixos/specialisation/rescue", "out.d"] {
        fs::create_dir_all(at(path)).unwrap();
    }
    for file in ["kernel", "initrd", "init", "kernel-params"] {
        for system in ["nixos", "nixos/specialisation/rescue"] {
            fs::write(at(system).join(file), format!("{system} {file}")).unwrap();
        }
    }
    symlink("nixos", at("system-4-link")).unwrap();
    symlink("system-4-link", at("system")).unwrap();
    fs::write(at("out"), "what was there before, and is longer than what is written").unwrap();
    fs::write(at("disk"), [0; 4096]).unwrap();
    folder
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let at = |name: &str| folder.join(name).display().to_string();
    Command::new(PROGRAM)
        .arg(format!("--output={}", at("out")))
        .arg("--output-format=simple0")
        .arg(format!("--output-directory={}", at("out.d")))
        .args(arguments)
        .arg(at("disk"))
        .output()
        .unwrap()
}

#[test]
fn libxl_reads_what_is_written() {
    let place = place();
    let folder = place.path();
    let system = format!("--system={}", folder.join("system").display());
    let said = run(folder, &["--args=more -v", &system, "--specialisation=rescue"]);
    assert!(said.status.success(), "{said:?}");
    let text = String::from_utf8(fs::read(folder.join("out")).unwrap()).unwrap();
    let items: Vec<&str> = text.split('\0').collect();
    let [kernel, ramdisk, args, "", ""] = items[..] else { panic!("{text:?}") };
    for (item, word, contents) in [
        (kernel, "kernel ", "nixos/specialisation/rescue kernel"),
        (ramdisk, "ramdisk ", "nixos/specialisation/rescue initrd"),
    ] {
        let path = Path::new(item.strip_prefix(word).unwrap());
        assert!(path.starts_with(folder.join("out.d")), "{item}: libxl unlinks it");
        assert_eq!(fs::read_to_string(path).unwrap(), contents);
        fs::remove_file(path).unwrap();
    }
    let init = folder.join("nixos/specialisation/rescue/init").display().to_string();
    assert_eq!(args, format!("args nixos/specialisation/rescue kernel-params init={init} more -v"));
    assert!(
        folder.join("nixos/kernel").exists() && folder.join("nixos/specialisation/rescue/kernel").exists()
    );
}

#[test]
fn a_failure_leaves_nothing_and_says_why() {
    let place = place();
    let folder = place.path();
    let system = format!("--system={}", folder.join("system").display());
    for (arguments, why) in [
        (vec![], "neither a file system nor partitions"),
        (vec![system.as_str(), "--generation=5"], "no generation 5 (it has 4)"),
        (vec![system.as_str(), "--kernel=/boot/vmlinuz"], "remove `kernel' from the configuration"),
        (vec![system.as_str(), "--interactive"], "--quiet forbid to ask"),
    ] {
        let said = run(folder, &arguments);
        let stderr = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("nxl-bootloader: ") && stderr.trim_end().ends_with(why), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert_eq!(fs::read_dir(folder.join("out.d")).unwrap().count(), 0, "{arguments:?}");
    }
}

#[test]
fn it_needs_none_of_xens_libraries() {
    let program = fs::read(PROGRAM).unwrap();
    let text = String::from_utf8_lossy(&program);
    assert!(text.contains("libc.so.6"), "the names of the libraries that it needs are there to be found");
    for library in ["libxenctrl.so", "libxenstore.so", "libxengnttab.so", "libxenevtchn.so"] {
        assert!(!text.contains(library), "{library}");
    }
}
