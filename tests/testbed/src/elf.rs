//! Which shared libraries a set of programs needs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use goblin::elf::Elf;

use crate::error::At as _;
use crate::{Error, Result};

/// The libraries that `binaries` need, directly or through one another: from soname to file. Each is looked for
/// in `folders`, in order, and one that is in none of them is an error.
pub fn libraries(binaries: &[PathBuf], folders: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut queue = binaries.to_vec();
    while let Some(binary) = queue.pop() {
        for library in needed(&binary)? {
            if found.contains_key(&library) {
                continue;
            }
            let Some(path) = locate(&library, folders) else {
                return Err(Error::NoLibrary { binary, library });
            };
            queue.push(path.clone());
            found.insert(library, path);
        }
    }
    Ok(found)
}

/// Where `library` is in `folders`.
pub fn locate(library: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    folders.iter().map(|folder| folder.join(library)).find(|path| path.is_file())
}

/// `DT_NEEDED` and, for a program, the base name of its interpreter. Scripts need nothing that is asked for here.
fn needed(path: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(path).at(path)?;
    if bytes.starts_with(b"#!") {
        return Ok(Vec::new());
    }
    let elf = Elf::parse(&bytes).map_err(|source| Error::Elf { path: path.to_owned(), source })?;
    let mut names: Vec<_> = elf.libraries.iter().map(|name| (*name).to_owned()).collect();
    let interpreter = elf.interpreter.and_then(|path| path.rsplit('/').next());
    names.extend(interpreter.map(str::to_owned));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_itself_needs_libc_and_its_interpreter() {
        let folders = [PathBuf::from("/lib/x86_64-linux-gnu")];
        let found = libraries(&[std::env::current_exe().unwrap()], &folders).unwrap();
        assert!(found.contains_key("libc.so.6") && found.contains_key("ld-linux-x86-64.so.2"), "{found:?}");
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = libraries(&[std::env::current_exe().unwrap()], &[]).unwrap_err();
        assert!(matches!(error, Error::NoLibrary { .. }), "{error}");
    }
}
