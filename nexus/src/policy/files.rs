//! The files of a policy: which, in which order, and what they include.

use super::compiled::Policy;
use super::error::{Fault, PolicyError};
use super::parser::{self, Include, Language, Statement};
use super::rule::{Action, Origin, Rule};
use super::service::{ArgumentColumn, ServiceColumn};
use super::token::Token;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How deep files may include one another.
const DEPTH: usize = 32;
/// The most text of one policy, in bytes: include files that multiply are cut off here.
const SIZE: u64 = 64 << 20;

/// Where the files of a policy are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFolders {
    /// Folders of `.policy` files. Of two files with one name, that of the earlier folder is read first.
    pub folders: Vec<PathBuf>,
    /// The folder of the older format, which `!compat-4.0` brings in.
    pub older: PathBuf,
}

impl Default for PolicyFolders {
    /// `/run/qubes/policy.d` before `/etc/qubes/policy.d`, and `/etc/qubes-rpc/policy`.
    fn default() -> Self {
        Self {
            folders: vec!["/run/qubes/policy.d".into(), "/etc/qubes/policy.d".into()],
            older: "/etc/qubes-rpc/policy".into(),
        }
    }
}

/// What was read.
#[derive(Debug)]
pub struct Reading {
    /// The policy; or every fault that was found, and then everything is denied.
    pub policy: Result<Policy, Vec<PolicyError>>,
    /// Every file and folder that was looked at, whether it was there or not: where a change makes the reading old.
    pub seen: BTreeSet<PathBuf>,
    /// What is no fault, and most probably not meant.
    pub warnings: Vec<String>,
}

impl PolicyFolders {
    /// Only these folders of `.policy` files; the older format's folder stays where it is.
    pub fn of(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { folders: folders.into_iter().collect(), ..Self::default() }
    }

    /// Reads everything. A folder of `.policy` files that does not exist has none.
    pub fn read(&self) -> Reading {
        let mut reader = Reader { folders: self, ..Reader::new(self) };
        let mut files = Vec::new();
        for (rank, folder) in self.folders.iter().enumerate() {
            for name in reader.policy_files(folder, true) {
                files.push((name.clone(), rank, folder.join(name)));
            }
        }
        // Bytes of ASCII names: the order of the C locale.
        files.sort();
        for (_, rank, path) in files {
            reader.file(&path, &Base { folder: rank, depth: 0 }, &Language::Five, None);
        }
        let Reader { rules, errors, seen, warnings, .. } = reader;
        let policy = if errors.is_empty() { Ok(Policy::new(rules)) } else { Err(errors) };
        Reading { policy, seen, warnings }
    }
}

struct Reader<'f> {
    folders: &'f PolicyFolders,
    rules: Vec<Rule>,
    errors: Vec<PolicyError>,
    seen: BTreeSet<PathBuf>,
    warnings: Vec<String>,
    left: u64,
}

/// Which of the folders a file came in by, and through how many others.
#[derive(Clone, Copy)]
struct Base {
    folder: usize,
    depth: usize,
}

impl Base {
    fn deeper(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }
}

/// The line that asked for a file or folder; a fault that is not in its text is told of there.
type Asked<'a> = Option<(&'a Arc<Path>, (usize, usize))>;

impl<'f> Reader<'f> {
    fn new(folders: &'f PolicyFolders) -> Self {
        Self {
            folders,
            rules: Vec::new(),
            errors: Vec::new(),
            seen: BTreeSet::new(),
            warnings: Vec::new(),
            left: SIZE,
        }
    }

    fn fault(&mut self, fault: Fault, path: &Path, asked: Asked<'_>) {
        self.errors.push(match asked {
            Some((file, (line, column))) => match fault {
                Fault::Unreadable(reason) => {
                    Fault::Unreadable(format!("{}: {reason}", path.display())).at(file, line, column)
                }
                fault @ Fault::Depth(_) => fault.at(file, line, column),
                fault => fault.of(path),
            },
            None => fault.of(path),
        });
    }

    /// The names of the `.policy` files of a folder, sorted; hidden files and others are none.
    fn policy_files(&mut self, folder: &Path, may_be_absent: bool) -> Vec<String> {
        self.seen.insert(folder.to_owned());
        let mut names = Vec::new();
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if may_be_absent && error.kind() == std::io::ErrorKind::NotFound => return names,
            Err(error) => {
                self.errors.push(Fault::io(&error).of(folder));
                return names;
            }
        };
        for entry in entries {
            let name = match entry {
                Ok(entry) => entry.file_name(),
                Err(error) => {
                    self.errors.push(Fault::io(&error).of(folder));
                    continue;
                }
            };
            let bytes = name.as_encoded_bytes();
            if bytes.starts_with(b".") || !bytes.ends_with(b".policy") {
                continue;
            }
            let good =
                |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(byte);
            match name.to_str().filter(|_| bytes.iter().all(good)) {
                Some(name) => names.push(name.to_owned()),
                None => self.errors.push(Fault::FileName.of(folder.join(&name))),
            }
        }
        names.sort();
        names
    }

    fn file(&mut self, path: &Path, base: &Base, language: &Language, asked: Asked<'_>) {
        self.seen.insert(path.to_owned());
        if base.depth > DEPTH {
            return self.fault(Fault::Depth(DEPTH), path, asked);
        }
        let text = match self.text(path) {
            Ok(text) => text,
            Err(fault) => return self.fault(fault, path, asked),
        };
        let file: Arc<Path> = path.into();
        let statements = match parser::parse(&text, &file, language) {
            Ok(statements) => statements,
            Err(errors) => return self.errors.extend(errors),
        };
        for statement in statements {
            match statement {
                Statement::Rule(rule) => self.rules.push(rule),
                Statement::Include { what, place } => {
                    // What is wrong is wrong once: a file that includes itself would say it for every round.
                    if self.errors.len() >= 100 {
                        return;
                    }
                    self.include(what, base.deeper(), language, (&file, place));
                }
            }
        }
    }

    fn text(&mut self, path: &Path) -> Result<String, Fault> {
        let file = File::open(path).map_err(|error| Fault::io(&error))?;
        if !file.metadata().map_err(|error| Fault::io(&error))?.is_file() {
            return Err(Fault::Unreadable("not a file".to_owned()));
        }
        let mut bytes = Vec::new();
        file.take(self.left + 1).read_to_end(&mut bytes).map_err(|error| Fault::io(&error))?;
        // An empty file counts, too: or files that multiply would never come to an end.
        self.left = self.left.checked_sub(bytes.len() as u64 + 1).ok_or(Fault::TooLarge(SIZE))?;
        String::from_utf8(bytes).map_err(|error| Fault::NotText(error.utf8_error().valid_up_to()))
    }

    fn include(
        &mut self,
        what: Include,
        base: Base,
        language: &Language,
        (file, place): (&Arc<Path>, (usize, usize)),
    ) {
        let asked = Some((file, place));
        match what {
            Include::File(path) => {
                let path = self.find(&path, base, language);
                self.file(&path, &base, language, asked);
            }
            Include::Service { service, argument, file: path } => {
                let language = Language::ForService(service, argument);
                let path = self.find(&path, base, &Language::Five);
                self.file(&path, &base, &language, asked);
            }
            Include::Folder(path) => {
                let folder = self.find(&path, base, language);
                let before = self.errors.len();
                let names = self.policy_files(&folder, false);
                if names.is_empty() && self.errors.len() == before {
                    let (line, column) = place;
                    self.warnings.push(format!(
                        "{}:{line}:{column}: {} has no .policy files",
                        file.display(),
                        folder.display()
                    ));
                }
                for name in names {
                    self.file(&folder.join(name), &base, language, asked);
                }
            }
            Include::Compat40 => self.older(base, asked),
        }
    }

    /// An absolute path, or one relative to a policy folder: that which the including file came in by, or else the first
    /// that has it. In the older language it is relative to the older folder.
    fn find(&mut self, path: &Path, base: Base, language: &Language) -> PathBuf {
        if let Language::ForService(..) = language {
            return self.folders.older.join(path);
        }
        let own = self.folders.folders[base.folder].join(path);
        self.seen.insert(own.clone());
        if own.exists() {
            return own;
        }
        let others = self.folders.folders.iter().map(|folder| folder.join(path));
        others.into_iter().find(|path| path.exists()).unwrap_or(own)
    }

    /// Every file of the older folder, those of an argument first, each with the denial that it had implied. Those of a
    /// service alone imply none here: it would hide the rules that follow.
    fn older(&mut self, base: Base, asked: Asked<'_>) {
        let folder = self.folders.older.clone();
        self.seen.insert(folder.clone());
        let mut names = BTreeSet::new();
        match fs::read_dir(&folder) {
            // Nobody has older files: nothing to be compatible with.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return self.fault(Fault::io(&error), &folder, asked),
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(entry) if entry.path().is_dir() => {}
                        // No service can have another name: such a file was never read.
                        Ok(entry) => names.extend(entry.file_name().into_string().ok()),
                        Err(error) => self.fault(Fault::io(&error), &folder, asked),
                    }
                }
            }
        }
        let (mut of_argument, mut of_service) = (Vec::new(), Vec::new());
        for name in names.iter().filter(|name| !name.starts_with('.')) {
            let (service, argument) = match name.split_once('+') {
                Some((service, argument)) => (service, Some(format!("+{argument}"))),
                None => (name.as_str(), None),
            };
            let Ok(service @ ServiceColumn::One(_)) = ServiceColumn::parse(service) else { continue };
            match argument {
                None => of_service.push((service, ArgumentColumn::Any, folder.join(name))),
                Some(text) => {
                    if let Ok(argument @ ArgumentColumn::One(_)) = ArgumentColumn::parse(&text, &service) {
                        of_argument.push((service, argument, folder.join(name)));
                    }
                }
            }
        }
        for (service, argument, path) in of_argument {
            let language = Language::ForService(service.clone(), argument.clone());
            self.file(&path, &base, &language, asked);
            let lines = fs::read_to_string(&path).map_or(0, |text| text.lines().count());
            self.rules.push(Rule {
                service,
                argument,
                source: Token::Any,
                target: Token::Any,
                action: Action::Deny { notify: true },
                // After the last line: it is not written.
                origin: Origin { file: path.into(), line: lines + 1 },
            });
        }
        for (service, argument, path) in of_service {
            self.file(&path, &base, &Language::ForService(service, argument), asked);
        }
    }
}
