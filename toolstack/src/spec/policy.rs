//! dom0's policy files as they are declared: a folder in which those that an apply wrote are told from all others by
//! their first line.

use crate::whole_file;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The first line of what is written here.
const MARK: &str = "# Written by `nxl apply': the next one writes it anew.\n";

/// What becomes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyChange {
    /// It is written; the text without the mark.
    Write {
        /// Its name.
        file: String,
        /// What is in it.
        text: String,
        /// Whether it is there, with another text.
        there: bool,
    },
    /// It was written by an earlier apply, and is no longer declared.
    Remove {
        /// Its name.
        file: String,
    },
}

/// Where declared policy files go.
#[derive(Debug, Clone)]
pub struct PolicyFolder(pub PathBuf);

impl Default for PolicyFolder {
    /// `/run/qubes/policy.d`: what was applied holds until the host boots. Until it is applied again, every call that
    /// only it allows is denied.
    fn default() -> Self {
        Self("/run/qubes/policy.d".into())
    }
}

impl PolicyFolder {
    /// What has to be done so that the folder has these files, and no others that an apply wrote.
    ///
    /// # Errors
    /// A file cannot be read, or is somebody else's (`AlreadyExists`).
    pub(super) fn changes(&self, declared: &BTreeMap<String, String>) -> io::Result<Vec<PolicyChange>> {
        let mut changes = Vec::new();
        for (file, text) in declared {
            let there = match fs::read_to_string(self.0.join(file)) {
                Ok(there) => Some(there),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            match &there {
                Some(there) if there.strip_prefix(MARK) == Some(text) => {}
                Some(there) if !there.starts_with(MARK) => {
                    let said = format!(
                        "{} is declared, and was not written by `nxl apply': remove one of them",
                        self.0.join(file).display()
                    );
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, said));
                }
                _ => changes.push(PolicyChange::Write {
                    file: file.clone(),
                    text: text.clone(),
                    there: there.is_some(),
                }),
            }
        }
        for file in self.written()? {
            if !declared.contains_key(&file) {
                changes.push(PolicyChange::Remove { file });
            }
        }
        Ok(changes)
    }

    /// The files that an apply wrote.
    fn written(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut written = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.ends_with(".policy") && begins_with_mark(&entry.path())? {
                written.push(name);
            }
        }
        written.sort();
        Ok(written)
    }

    pub(super) fn carry_out(&self, change: &PolicyChange) -> io::Result<()> {
        match change {
            PolicyChange::Remove { file } => match fs::remove_file(self.0.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            PolicyChange::Write { file, text, .. } => {
                // Half written, it has a name that no policy is read from.
                whole_file::replace(&self.0.join(file), format!("{MARK}{text}").as_bytes(), 0o644)
            }
        }
    }
}

fn begins_with_mark(path: &Path) -> io::Result<bool> {
    match fs::read(path) {
        Ok(text) => Ok(text.starts_with(MARK.as_bytes())),
        // Removed just now, or a folder of that name: nobody's file.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_once_and_those_of_others_are_left() {
        let folder = tempfile::tempdir().unwrap();
        let policy = PolicyFolder(folder.path().join("policy.d"));
        let declared = |files: &[(&str, &str)]| {
            files
                .iter()
                .map(|(file, text)| ((*file).to_owned(), (*text).to_owned()))
                .collect::<BTreeMap<_, _>>()
        };
        let apply = |files: &[(&str, &str)]| {
            let changes = policy.changes(&declared(files)).unwrap();
            changes.iter().for_each(|change| policy.carry_out(change).unwrap());
            changes.len()
        };
        assert_eq!(apply(&[("50-a.policy", "* * * dom0 deny\n"), ("60-b.policy", "")]), 2);
        assert_eq!(apply(&[("50-a.policy", "* * * dom0 deny\n"), ("60-b.policy", "")]), 0);
        fs::write(policy.0.join("30-user.policy"), "mine\n").unwrap();
        assert_eq!(apply(&[("50-a.policy", "")]), 2, "one is written, one removed");
        let there: Vec<_> =
            fs::read_dir(&policy.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(there.len(), 2, "{there:?}");
        assert_eq!(fs::read_to_string(policy.0.join("50-a.policy")).unwrap(), MARK);
        let error = policy.changes(&declared(&[("30-user.policy", "ours")])).unwrap_err();
        assert!(error.to_string().ends_with("remove one of them"), "{error}");
    }
}
