//! `nixos/` by plain Nix: its tests pass, and every file of it parses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../nixos")
}

/// What nix-instantiate says to stdout; it needs neither a store nor a network.
fn instantiate(arguments: &[&str], file: &Path) -> String {
    let output = Command::new("nix-instantiate")
        .env("NIX_CONFIG", "build-users-group =")
        .args(["--store", "dummy://"])
        .args(arguments)
        .arg(file)
        .output()
        .expect("nix-instantiate (the Debian package nix-bin has it)");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", file.display());
    String::from_utf8(output.stdout).expect("text")
}

fn nix_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a file").path();
        if path.is_dir() {
            nix_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "nix") {
            found.push(path);
        }
    }
}

#[test]
fn the_tests_in_nix_pass() {
    let text = instantiate(&["--eval", "--strict", "--json"], &folder().join("tests"));
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    let failures = result["failures"].as_array().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
    // The list of tests was not lost on the way.
    assert!(result["passed"].as_u64().unwrap() > 100, "{}", result["passed"]);
}

#[test]
fn every_file_parses() {
    let mut files = Vec::new();
    nix_files(&folder(), &mut files);
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        assert!(!instantiate(&["--parse"], &file).is_empty(), "{}", file.display());
    }
}
