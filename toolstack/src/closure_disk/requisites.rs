//! What belongs to a closure: a store path, and all that it refers to.
//!
//! Nix' database knows (`nix-store --query --requisites`), where there is one. A store that was copied to a dom0 without
//! Nix has none; then the references are found as Nix itself finds them, by the hashes of store paths in names, links and
//! files. That may be a path more than Nix would list, never one less.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::store_path::is_digit;
pub(super) use crate::store_path::{HASH_LEN, hash};

/// Bytes that are searched at a time.
const CHUNK: usize = 256 << 10;

/// The store paths of a closure, that of `top` among them. `nix_store` is the program to ask.
pub(super) fn requisites(store: &Path, top: &Path, nix_store: &Path) -> io::Result<BTreeSet<PathBuf>> {
    if let Some(paths) = ask(top, nix_store).filter(|paths| paths.contains(top)) {
        return Ok(paths);
    }
    let mut known = HashMap::new();
    for entry in fs::read_dir(store)? {
        let name = entry?.file_name();
        if let Some(hash) = hash(&name) {
            known.insert(hash, store.join(name));
        }
    }
    let mut paths = BTreeSet::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(path) = waiting.pop() {
        if paths.insert(path.clone()) {
            let mut search = Search { known: &known, found: BTreeSet::new() };
            search.tree(&path)?;
            waiting.extend(search.found.into_iter().filter(|path| !paths.contains(path)));
        }
    }
    Ok(paths)
}

/// Nix' answer; `None` when there is no Nix, or it does not know the path.
fn ask(top: &Path, nix_store: &Path) -> Option<BTreeSet<PathBuf>> {
    let mut command = Command::new(nix_store);
    command.args(["--query", "--requisites"]).arg(top).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Some(lines.map(|line| PathBuf::from(OsStr::from_bytes(line))).collect())
}

struct Search<'a> {
    known: &'a HashMap<[u8; HASH_LEN], PathBuf>,
    found: BTreeSet<PathBuf>,
}

impl Search<'_> {
    fn tree(&mut self, path: &Path) -> io::Result<()> {
        let kind = fs::symlink_metadata(path)?.file_type();
        if kind.is_symlink() {
            self.bytes(fs::read_link(path)?.as_os_str().as_bytes());
        } else if kind.is_dir() {
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                self.bytes(entry.file_name().as_bytes());
                self.tree(&entry.path())?;
            }
        } else if kind.is_file() {
            self.file(&mut File::open(path)?)?;
        }
        Ok(())
    }

    fn file(&mut self, file: &mut dyn Read) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(CHUNK + HASH_LEN);
        loop {
            let read = (&mut *file).take(CHUNK as u64).read_to_end(&mut buffer)?;
            self.bytes(&buffer);
            if read < CHUNK {
                return Ok(());
            }
            // A hash may begin in this piece and end in the next.
            buffer.drain(..buffer.len() - (HASH_LEN - 1));
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while let Some(window) = bytes.get(at..at + HASH_LEN) {
            // From the end, so that what is no hash is mostly jumped over.
            if let Some(last) = window.iter().rposition(|byte| !is_digit(*byte)) {
                at += last + 1;
                continue;
            }
            if let Some(path) = self.known.get(window) {
                self.found.insert(path.clone());
            }
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn name(digit: char, name: &str) -> String {
        format!("{}-{name}", digit.to_string().repeat(HASH_LEN))
    }

    #[test]
    fn references_are_followed_through_files_links_and_names() {
        let store = tempfile::tempdir().unwrap();
        let at = |name: &str| store.path().join(name);
        let [top, by_link, by_text, by_name, by_chain, other] =
            ["0top", "1link", "2text", "3name", "4chain", "5other"].map(|text| {
                let (digit, rest) = text.split_at(1);
                name(digit.chars().next().unwrap(), rest)
            });
        fs::create_dir_all(at(&top).join("folder")).unwrap();
        symlink(format!("/nix/store/{by_link}"), at(&top).join("folder/link")).unwrap();
        // Across the border of two pieces.
        let mut text = vec![b'x'; CHUNK - 7];
        text.extend_from_slice(format!("/nix/store/{by_text}/bin").as_bytes());
        text.extend_from_slice(&vec![b'0'; CHUNK]);
        fs::write(at(&top).join("folder/text"), text).unwrap();
        fs::write(at(&top).join(&by_name), "").unwrap();
        fs::write(at(&by_link), by_chain.as_bytes()).unwrap();
        // Round in a circle.
        fs::write(at(&by_chain), top.as_bytes()).unwrap();
        fs::write(at(&by_text), "a5555555555555555555555555555555").unwrap();
        fs::create_dir(at(&by_name)).unwrap();
        fs::write(at(&other), "nobody refers to it").unwrap();
        fs::create_dir(at(".links")).unwrap();

        let none = Path::new("/nonexistent/nix-store");
        let paths = requisites(store.path(), &at(&top), none).unwrap();
        assert_eq!(paths, [&top, &by_link, &by_text, &by_name, &by_chain].map(|name| at(name)).into());
        assert_eq!(requisites(store.path(), &at(&other), none).unwrap(), [at(&other)].into());
        assert!(requisites(store.path(), &at("none"), none).is_err());

        let program = store.path().join("nix-store");
        for (script, known) in [
            (
                format!(
                    "[ $1 = --query ] && [ $2 = --requisites ] && echo {0}/x && echo $3",
                    store.path().display()
                ),
                true,
            ),
            ("exit 1".to_owned(), false),
            ("echo".to_owned(), false),
        ] {
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let paths = requisites(store.path(), &at(&other), &program).unwrap();
            let expected: BTreeSet<_> =
                if known { [at("x"), at(&other)].into() } else { [at(&other)].into() };
            assert_eq!(paths, expected, "{script}");
        }
    }
}
