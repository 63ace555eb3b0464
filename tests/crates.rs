//! The crates that are for others: their manifests say what crates.io wants to know, each has an example that needs no Xen
//! and does what it says, and `make install` leaves nothing of them out. (`make publish-check` packs them, and `make deb`
//! fails for a file that `make install` installs and no package has.)

#![allow(clippy::unwrap_used, reason = "what fails in here fails the test")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each crate, an example of it with its arguments, and what that has to print.
const EXAMPLES: [(&str, &[&str], &[&str]); 10] = [
    (
        "tesseraqt",
        &["plan", "6144"],
        &[
            "6144 MiB, for which the host needs ",
            "  0x100000000 to ",
            "  0x001000000 to 0x004a00000  kernel",
            "initrd",
        ],
    ),
    ("tesseraqt-xen-sys", &["release"], &["made from the headers of Xen 4.", "libxenctrl.so.4."]),
    ("tesseraqt-xen", &["share-a-page"], &["other: ", "and the page says \"sign this\"", "left behind: 0 "]),
    ("tesseraqt-vchan", &["two-qubes"], &["work: the vault says \"4999950000\""]),
    ("tesseraqt-toolstack", &["describe"], &["\"name\": \"work\"", "\"bridge\": \"xenbr0\""]),
    (
        "tesseraqt-nexus",
        &["decide"],
        &["allow target=vault:gpg", "vault:gpg is a container, and @anyvm is for qubes", "ask "],
    ),
    (
        "tesseraqt-nexus",
        &["decide", "work:web", "vault:gpg", "nexus.Sign"],
        &["work:web calls nexus.Sign+ in vault:gpg", "work:web is not work:mail", "deny: no rule matches"],
    ),
    ("nxl", &["view"], &["Xen 4.17.5  4 CPUs, 2400 MHz", "work ", "vault ", "2 calls open"]),
    ("tesseraqt", &["plan"], &["512 MiB, for which the host needs "]),
    ("tesseraqt-toolstack", &["describe", "FILE", "memory=1024"], &["\"max_memkb\": 1048576"]),
];

/// The members of the workspace that may be published, as cargo tells of them.
fn public() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version", "1", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.filter(|package| package["publish"].is_null()).cloned().collect()
}

fn names() -> BTreeSet<String> {
    public().iter().map(|package| package["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_public_crate_says_what_it_is() {
    let mut wrong = Vec::new();
    for package in public() {
        let name = package["name"].as_str().unwrap();
        let texts = ["description", "license", "repository", "readme", "rust_version"];
        let mut missing: Vec<_> = texts.into_iter().filter(|key| package[key].as_str().is_none()).collect();
        // crates.io takes five at most.
        missing.extend(["keywords", "categories"].into_iter().filter(|key| {
            let count = package[key].as_array().map_or(0, Vec::len);
            !(1..=5).contains(&count)
        }));
        if !Path::new(package["manifest_path"].as_str().unwrap()).with_file_name("LICENSE").is_file() {
            missing.push("LICENSE");
        }
        // A path leads nowhere on crates.io. (cargo leaves a dependency of tests alone out, if that is all it has.)
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        missing.extend(dependencies.filter_map(|dependency| {
            let tests_alone = dependency["kind"] == "dev";
            let path_alone = dependency["path"].is_string() && dependency["req"] == "*";
            (path_alone && !tests_alone).then(|| dependency["name"].as_str().unwrap())
        }));
        wrong.extend(missing.iter().map(|what| format!("{name}: {what}")));
    }
    assert!(wrong.is_empty(), "missing, empty, or a path without a version:\n{}", wrong.join("\n"));
}

#[test]
fn every_public_crate_has_an_example_and_it_runs() {
    let shown: BTreeSet<String> = EXAMPLES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(shown, names());
    // Beside this program's folder; `cargo test --workspace` makes them.
    let folder: PathBuf = std::env::current_exe().unwrap().parent().unwrap().join("../examples");
    let config = tempfile();
    for (name, line, expected) in EXAMPLES {
        let program = folder.join(line[0]);
        let arguments =
            line[1..].iter().map(|&word| if word == "FILE" { config.as_os_str() } else { word.as_ref() });
        let output = Command::new(&program).args(arguments).output().unwrap_or_else(|error| {
            panic!("{}: {error}: `cargo build --examples -p {name}` makes it", program.display())
        });
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {line:?}: {}: {errors}", output.status);
        for part in expected {
            assert!(said.contains(part), "{name}: {line:?} does not say {part:?}:\n{said}");
        }
    }
}

#[test]
fn every_program_and_every_file_of_the_system_is_installed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let makefile = std::fs::read_to_string(root.join("Makefile")).unwrap();
    let mut wanted = Vec::new();
    for package in public() {
        for target in package["targets"].as_array().unwrap() {
            if target["kind"][0] == "bin" {
                wanted.push(format!("$(RELEASE)/{}", target["name"].as_str().unwrap()));
            }
        }
    }
    assert!(wanted.len() > 8, "{wanted:?}");
    for folder in [
        "nexus/systemd",
        "nexus/policy.d",
        "nexus/logrotate.d",
        "nexus/tmpfiles.d",
        "nxl/logrotate",
        "nxl/systemd",
    ] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            wanted.push(format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()));
        }
    }
    let words: BTreeSet<&str> = makefile.split_whitespace().collect();
    wanted.retain(|path| !words.contains(path.as_str()));
    assert!(wanted.is_empty(), "the Makefile does not install {wanted:?}");
}

/// A configuration that one of the examples is given.
fn tempfile() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("example.cfg");
    std::fs::write(&path, "type = 'pvh'\nname = 'file'\nkernel = '/boot/vmlinuz'\nmemory = 512\n").unwrap();
    path
}
