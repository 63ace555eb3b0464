//! A NixOS system closure: the directory `/nix/store/…-nixos-system-NAME-VERSION` (or a link to it, such as a profile), or
//! the bootspec document in it, `boot.json` (RFC 125).
//!
//! A generation without a `boot.json` is read from the links that every NixOS generation has. Extensions of the document
//! are none of this module's business, and it never changes what it reads: secrets that a generation appends to its
//! initrd ([`Closure::initrd_secrets`]) are for whoever has a copy of the initrd to write to.

use super::keys::nearest_of;
use super::profile::ranges;
use bootspec::v1::{BootSpecV1, GenerationV1};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

const V1: &str = "org.nixos.bootspec.v1";
const VERSION_PREFIX: &str = "org.nixos.bootspec.";
/// Memory of a qube whose closure says nothing about it, in MiB. (`xl` gives 32 when a file says nothing, in which no
/// NixOS boots.)
pub const CLOSURE_MEMORY_MIB: u64 = 512;
/// Bytes of a program that appends secrets; NixOS' have a thousand.
const SECRETS_PROGRAM_LIMIT: u64 = 64 << 10;
/// Bytes of a `boot.json`; real ones have some thousands.
const DOCUMENT_LIMIT: u64 = 16 << 20;

/// Why a closure cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum ClosureError {
    /// A file or directory of the closure cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory is no system closure.
    #[error("{path}: no NixOS system closure: it has neither boot.json nor kernel", path = .path.display())]
    NotAClosure {
        /// Which.
        path: PathBuf,
    },
    /// The document is no JSON, or no bootspec.
    #[error("{path}: {source}", path = .path.display())]
    Document {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A document of other versions of bootspec.
    #[error("{path}: bootspec {found}; only {V1} is known", path = .path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// The versions that it has, or that it has none.
        found: String,
    },
    /// The document is too long to be one.
    #[error("{path}: {size} bytes are more than a boot.json has", path = .path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// A system of another architecture.
    #[error("{path}: a system for {system} (need x86_64-linux or i686-linux)", path = .path.display())]
    System {
        /// Which.
        path: PathBuf,
        /// Nix's name of it.
        system: String,
    },
    /// A file that the closure names does not exist.
    #[error("{toplevel}: its {what} {path} is missing: {source}", toplevel = .toplevel.display(), path = .path.display())]
    Missing {
        /// The closure.
        toplevel: PathBuf,
        /// `kernel`, `initrd`, `init` or `initrdSecrets`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What looking for it gave.
        source: io::Error,
    },
    /// There is no specialisation of that name.
    #[error("{toplevel}: no specialisation `{name}' ({known})", toplevel = .toplevel.display(), known = known_names(.name, .known))]
    Specialisation {
        /// The closure.
        toplevel: PathBuf,
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// There are no generations.
    #[error("{path}: no profile: nothing beside it is a generation (such as system-42-link)", path = .path.display())]
    NotAProfile {
        /// What was taken for a profile.
        path: PathBuf,
    },
    /// There is no generation of that number.
    #[error("{profile}: no generation {wanted} (it has {known})", profile = .profile.display(), known = ranges(.known))]
    Generation {
        /// The profile.
        profile: PathBuf,
        /// What was asked for.
        wanted: u64,
        /// Those that there are, in rising order; at least one.
        known: Vec<u64>,
    },
}

fn known_names(name: &str, known: &[String]) -> String {
    if known.is_empty() {
        return "it has none".to_owned();
    }
    let meant = nearest_of(name, known.iter().map(String::as_str));
    let meant = meant.map_or_else(String::new, |meant| format!("did you mean `{meant}'? "));
    format!("{meant}it has {}", known.join(", "))
}

/// What a closure says of its boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure {
    /// The closure itself.
    pub toplevel: PathBuf,
    /// For people: `NixOS 25.05 (Linux 6.12.40)`.
    pub label: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initrd, if it has one.
    pub initrd: Option<PathBuf>,
    /// A program that appends secrets to a copy of the initrd, which it takes as its only argument.
    pub initrd_secrets: Option<PathBuf>,
    /// The first program of the system.
    pub init: PathBuf,
    /// The kernel's parameters, without `init=`.
    pub kernel_params: Vec<String>,
    /// Variants of the system, by name.
    pub specialisations: BTreeMap<String, Closure>,
}

impl Closure {
    /// Whether a path is one of a closure rather than of a configuration file: a directory, or a file called `boot.json`.
    #[must_use]
    pub fn is_one(path: &Path) -> bool {
        path.is_dir() || path.file_name().is_some_and(|name| name == bootspec::JSON_FILENAME)
    }

    /// Reads a closure: its directory or its `boot.json`.
    ///
    /// # Errors
    /// See [`ClosureError`]. That the files which it names exist is checked by [`Self::check`], for the variant that is
    /// wanted.
    pub fn open(path: &Path) -> Result<Self, ClosureError> {
        Self::read(path, true)
    }

    /// A variant's variants are not read: they are undefined (RFC 125), and might lead round in a circle.
    fn read(path: &Path, with_specialisations: bool) -> Result<Self, ClosureError> {
        let is_dir =
            path.metadata().map_err(|source| ClosureError::Read { path: path.to_owned(), source })?.is_dir();
        let document = if is_dir { path.join(bootspec::JSON_FILENAME) } else { path.to_owned() };
        if is_dir && !document.exists() {
            return synthesize(path, with_specialisations);
        }
        let closure = read_document(&document)?;
        Ok(if with_specialisations { closure } else { Self { specialisations: BTreeMap::new(), ..closure } })
    }

    /// The variant of that name.
    ///
    /// # Errors
    /// [`ClosureError::Specialisation`]
    pub fn specialisation(&self, name: &str) -> Result<&Self, ClosureError> {
        self.specialisations.get(name).ok_or_else(|| ClosureError::Specialisation {
            toplevel: self.toplevel.clone(),
            name: name.to_owned(),
            known: self.specialisations.keys().cloned().collect(),
        })
    }

    /// Makes sure that kernel, initrd and init exist.
    ///
    /// # Errors
    /// [`ClosureError::Missing`]
    pub fn check(&self) -> Result<(), ClosureError> {
        let files =
            [("kernel", Some(&self.kernel)), ("initrd", self.initrd.as_ref()), ("init", Some(&self.init))];
        for (what, path) in files {
            let Some(path) = path else { continue };
            path.metadata().map_err(|source| ClosureError::Missing {
                toplevel: self.toplevel.clone(),
                what,
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// The program that appends secrets to the initrd, if there are secrets to append.
    ///
    /// Every NixOS has one. Without `boot.initrd.secrets` it is a script that exits at once, with a line `exit 0` of its
    /// own in front of whatever it would do: nobody need run that in dom0.
    ///
    /// # Errors
    /// [`ClosureError::Missing`] when it cannot be read.
    pub fn secrets(&self) -> Result<Option<&Path>, ClosureError> {
        let Some(program) = &self.initrd_secrets else { return Ok(None) };
        let mut text = Vec::new();
        let file = std::fs::File::open(program)
            .and_then(|file| file.take(SECRETS_PROGRAM_LIMIT).read_to_end(&mut text));
        file.map_err(|source| ClosureError::Missing {
            toplevel: self.toplevel.clone(),
            what: "initrdSecrets",
            path: program.clone(),
            source,
        })?;
        let mut lines = text.split(|byte| *byte == b'\n').take_while(|line| !line.starts_with(b"export "));
        let exits = text.starts_with(b"#!") && lines.any(|line| line == b"exit 0");
        Ok(if exits { None } else { Some(program) })
    }

    /// The kernel's command line: the parameters, and `init=` as a boot loader adds it.
    #[must_use]
    pub fn cmdline(&self) -> String {
        let init = format!("init={}", self.init.display());
        let params = self.kernel_params.iter().map(String::as_str);
        params.chain([init.as_str()]).collect::<Vec<_>>().join(" ")
    }

    /// A name for a qube of this system: the host name out of `…-nixos-system-NAME-VERSION`, or the directory's name.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let directory = self.toplevel.file_name()?.to_str()?;
        // 32 characters of hash in a store path.
        let (hash, rest) = directory.split_once('-').unwrap_or(("", directory));
        let rest = if hash.len() == 32 { rest } else { directory };
        let rest = rest.strip_prefix("nixos-system-").unwrap_or(rest);
        let version = rest.match_indices('-').map(|(at, _)| at).find(|at| is_release(&rest[at + 1..]));
        Some(rest[..version.unwrap_or(rest.len())].to_owned()).filter(|name| !name.is_empty())
    }

    fn from_bootspec(bootspec: BootSpecV1, specialisations: BTreeMap<String, Self>) -> Self {
        let BootSpecV1 { label, kernel, kernel_params, init, initrd, initrd_secrets, toplevel, .. } =
            bootspec;
        Self {
            toplevel: toplevel.0,
            label,
            kernel,
            initrd,
            initrd_secrets,
            init,
            kernel_params,
            specialisations,
        }
    }
}

/// Whether a text begins as a NixOS release does: `25.05`, with the month in two digits.
fn is_release(text: &str) -> bool {
    let digits = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_digit);
    matches!(text.as_bytes(), [y1, y2, b'.', m1, m2, ..] if digits(&[*y1, *y2, *m1, *m2]))
}

fn read(path: &Path) -> Result<String, ClosureError> {
    std::fs::read_to_string(path).map_err(|source| ClosureError::Read { path: path.to_owned(), source })
}

fn read_document(path: &Path) -> Result<Closure, ClosureError> {
    let document_error = |source| ClosureError::Document { path: path.to_owned(), source };
    let read_error = |source| ClosureError::Read { path: path.to_owned(), source };
    let size = path.metadata().map_err(read_error)?.len();
    if size > DOCUMENT_LIMIT {
        return Err(ClosureError::TooLarge { path: path.to_owned(), size });
    }
    let document: serde_json::Value = serde_json::from_str(&read(path)?).map_err(document_error)?;
    // Before it is read as version 1: "missing field" would be a poor way to say "a newer version".
    if document.get(V1).is_none() {
        let keys = document.as_object().into_iter().flat_map(|object| object.keys());
        let versions: Vec<&str> =
            keys.filter(|key| key.starts_with(VERSION_PREFIX) || *key == "v1").map(String::as_str).collect();
        let found = if versions.is_empty() { "of no version".to_owned() } else { versions.join(", ") };
        return Err(ClosureError::Version { path: path.to_owned(), found });
    }
    let generation: GenerationV1 = serde_json::from_value(document).map_err(document_error)?;
    check_system(path, &generation.bootspec.system)?;
    let specialisations = generation
        .specialisations
        .into_iter()
        .map(|(name, inner)| (name.0, Closure::from_bootspec(inner.generation.bootspec, BTreeMap::new())))
        .collect();
    Ok(Closure::from_bootspec(generation.bootspec, specialisations))
}

fn check_system(path: &Path, system: &str) -> Result<(), ClosureError> {
    if matches!(system, "x86_64-linux" | "i686-linux") {
        return Ok(());
    }
    Err(ClosureError::System { path: path.to_owned(), system: system.to_owned() })
}

/// Reads a generation without a document, as bootspec's own `synthesize` does, but for a generation that lacks what a
/// boot does not need: version, system, modules.
fn synthesize(directory: &Path, with_specialisations: bool) -> Result<Closure, ClosureError> {
    let toplevel = directory
        .canonicalize()
        .map_err(|source| ClosureError::Read { path: directory.to_owned(), source })?;
    let file = |name: &str| toplevel.join(name);
    if std::fs::symlink_metadata(file("kernel")).is_err() {
        return Err(ClosureError::NotAClosure { path: directory.to_owned() });
    }
    let present = |name: &str| Some(file(name)).filter(|path| std::fs::symlink_metadata(path).is_ok());
    let line = |name: &str| Some(read(&file(name)).ok()?.trim().to_owned()).filter(|line| !line.is_empty());
    let kernel_params = read(&file("kernel-params"))?.split_whitespace().map(str::to_owned).collect();

    let mut specialisations = BTreeMap::new();
    if let Some(folder) = present("specialisation").filter(|_| with_specialisations) {
        let read_error = |source| ClosureError::Read { path: folder.clone(), source };
        for entry in std::fs::read_dir(&folder).map_err(read_error)? {
            let entry = entry.map_err(read_error)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // A variant is a closure of its own, and may have a document.
            specialisations.insert(name, Closure::read(&entry.path(), false)?);
        }
    }
    if let Some(system) = line("system") {
        check_system(&file("system"), &system)?;
    }
    let mut label =
        line("nixos-version").map_or_else(|| "NixOS".to_owned(), |version| format!("NixOS {version}"));
    if let Some(version) = linux_version(&file("kernel-modules/lib/modules")) {
        label += &format!(" (Linux {version})");
    }
    // Whoever keeps kernels by their store paths wants those. A link that leads nowhere is for `Closure::check`.
    let store_path = |path: PathBuf| path.canonicalize().unwrap_or(path);
    Ok(Closure {
        label,
        kernel: store_path(file("kernel")),
        initrd: present("initrd").map(store_path),
        initrd_secrets: present("append-initrd-secrets"),
        init: file("init"),
        kernel_params,
        specialisations,
        toplevel,
    })
}

/// The kernel's version: the only folder among its modules.
fn linux_version(modules: &Path) -> Option<String> {
    std::fs::read_dir(modules).ok()?.next()?.ok()?.file_name().into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::folder::Folder;
    use serde_json::json;

    fn bootspec(folder: &Folder) -> serde_json::Value {
        let path = |name: &str| folder.path(name).to_str().unwrap().to_owned();
        json!({
            "system": "x86_64-linux",
            "init": path("init"),
            "initrd": path("initrd"),
            "kernel": path("kernel"),
            "kernelParams": ["console=hvc0", "loglevel=4"],
            "label": "NixOS 25.05 (Linux 6.12.40)",
            "toplevel": path(""),
        })
    }

    /// The closure of a folder with this document.
    fn open(folder: &Folder, document: &serde_json::Value) -> Result<Closure, ClosureError> {
        folder.write("boot.json", document.to_string().as_bytes());
        Closure::open(&folder.path(""))
    }

    fn folder() -> Folder {
        let folder = Folder::new();
        for name in ["kernel", "initrd", "init"] {
            folder.write(name, b"x");
        }
        folder
    }

    #[test]
    fn a_document_is_read() {
        let folder = folder();
        let mut special = bootspec(&folder);
        special["kernelParams"] = json!(["single"]);
        let document = json!({
            V1: bootspec(&folder),
            "org.nixos.specialisation.v1": {"rescue": {V1: special}},
            "org.xenproject.bootspec.v2": {"efiPath": "/x"},
        });
        let closure = open(&folder, &document).unwrap();
        closure.check().unwrap();
        assert_eq!(closure, Closure::open(&folder.path("boot.json")).unwrap());
        let init = folder.path("init");
        assert_eq!(closure.cmdline(), format!("console=hvc0 loglevel=4 init={}", init.display()));
        assert_eq!(closure.initrd, Some(folder.path("initrd")));
        assert_eq!(closure.initrd_secrets, None);
        let rescue = closure.specialisation("rescue").unwrap();
        assert_eq!(rescue.cmdline(), format!("single init={}", init.display()));
        let error = closure.specialisation("debug").unwrap_err().to_string();
        assert!(error.ends_with("no specialisation `debug' (it has rescue)"), "{error}");
        let error = closure.specialisation("resuce").unwrap_err().to_string();
        assert!(error.ends_with("`resuce' (did you mean `rescue'? it has rescue)"), "{error}");
        let error = rescue.specialisation("debug").unwrap_err().to_string();
        assert!(error.ends_with("no specialisation `debug' (it has none)"), "{error}");
    }

    #[test]
    fn missing_files_are_named() {
        for (what, file) in [("kernel", "kernel"), ("initrd", "initrd"), ("init", "init")] {
            let folder = folder();
            let closure = open(&folder, &json!({ V1: bootspec(&folder) })).unwrap();
            std::fs::remove_file(folder.path(file)).unwrap();
            let error = closure.check().unwrap_err();
            assert!(matches!(&error, ClosureError::Missing { what: found, .. } if *found == what), "{error}");
            let message = error.to_string();
            assert!(
                message.contains(&format!("its {what} {} is missing", folder.path(file).display())),
                "{message}"
            );
        }
    }

    #[test]
    fn documents_of_other_versions_are_refused_by_name() {
        let folder = folder();
        let error = |document| open(&folder, &document).unwrap_err().to_string();
        let message = error(json!({"org.nixos.bootspec.v2": {}, "org.nixos.bootspec.v9": {}}));
        assert!(
            message.ends_with(
                "bootspec org.nixos.bootspec.v2, org.nixos.bootspec.v9; only org.nixos.bootspec.v1 is known"
            ),
            "{message}"
        );
        assert!(error(json!({"v1": {}})).contains("bootspec v1; only"));
        assert!(error(json!({"kernel": "x"})).contains("bootspec of no version; only"));
        assert!(error(json!(7)).contains("bootspec of no version; only"));
    }

    #[test]
    fn documents_that_are_none_are_refused_with_the_reason() {
        let folder = folder();
        let error = |document: &str| {
            folder.write("boot.json", document.as_bytes());
            let message = Closure::open(&folder.path("boot.json")).unwrap_err().to_string();
            assert!(!message.contains('\n'), "{message}");
            message
        };
        assert!(error("").contains("EOF while parsing a value at line 1 column 0"));
        assert!(error("{\n\"a\": ]").contains("at line 2 column 6"));
        let mut incomplete = bootspec(&folder);
        incomplete.as_object_mut().unwrap().remove("kernel");
        assert!(error(&json!({ V1: incomplete }).to_string()).contains("missing field `kernel`"));
        let mut foreign = bootspec(&folder);
        foreign["system"] = json!("aarch64-linux");
        assert!(error(&json!({ V1: foreign }).to_string()).contains("a system for aarch64-linux"));
        folder.write("boot.json", &[0xff]);
        assert!(matches!(Closure::open(&folder.path("boot.json")), Err(ClosureError::Read { .. })));
        std::fs::File::create(folder.path("boot.json")).unwrap().set_len(DOCUMENT_LIMIT + 1).unwrap();
        assert!(matches!(Closure::open(&folder.path("")), Err(ClosureError::TooLarge { .. })));
    }

    #[test]
    fn a_generation_without_a_document_is_read_from_its_links() {
        let folder = folder();
        folder.write("kernel-params", b"console=hvc0  quiet\n");
        folder.write("nixos-version", b"25.05.20251121\n");
        folder.write("append-initrd-secrets", b"");
        for name in ["kernel", "init", "kernel-params"] {
            folder.write(&format!("specialisation/rescue/{name}"), b"rescue");
        }
        std::os::unix::fs::symlink(
            folder.path("specialisation"),
            folder.path("specialisation/rescue/specialisation"),
        )
        .unwrap();
        let closure = Closure::open(&folder.path("")).unwrap();
        closure.check().unwrap();
        assert_eq!(closure.label, "NixOS 25.05.20251121");
        assert_eq!(
            closure.cmdline(),
            format!("console=hvc0 quiet init={}", closure.toplevel.join("init").display())
        );
        assert_eq!(closure.initrd, Some(closure.toplevel.join("initrd")));
        assert_eq!(closure.initrd_secrets, Some(closure.toplevel.join("append-initrd-secrets")));
        let rescue = closure.specialisation("rescue").unwrap();
        assert_eq!(
            (rescue.initrd.as_ref(), rescue.kernel_params.as_slice()),
            (None, &["rescue".to_owned()][..])
        );
    }

    #[test]
    fn a_generation_without_a_document_is_read_as_bootspec_reads_it() {
        let folder = folder();
        for (name, text) in [
            ("kernel-params", "console=hvc0 quiet"),
            ("nixos-version", "25.05.20251121"),
            ("system", "x86_64-linux"),
            ("append-initrd-secrets", ""),
            ("kernel-modules/lib/modules/6.12.40/modules.dep", ""),
            ("store/bzImage", "x"),
        ] {
            folder.write(name, text.as_bytes());
        }
        std::fs::remove_file(folder.path("kernel")).unwrap();
        std::os::unix::fs::symlink("store/bzImage", folder.path("kernel")).unwrap();
        let ours = Closure::open(&folder.path("")).unwrap();
        let theirs = bootspec::v1::GenerationV1::synthesize(&folder.path("")).unwrap().bootspec;
        assert_eq!(ours, Closure::from_bootspec(theirs, BTreeMap::new()));
        assert_eq!(ours.label, "NixOS 25.05.20251121 (Linux 6.12.40)");
        folder.write("system", b"aarch64-linux\n");
        let error = Closure::open(&folder.path("")).unwrap_err().to_string();
        assert!(error.contains("a system for aarch64-linux"), "{error}");
    }

    #[test]
    fn a_program_without_secrets_need_not_be_run() {
        let folder = folder();
        let closure = Closure { initrd_secrets: Some(folder.path("program")), ..dummy() };
        let has_secrets = |text: &str| {
            folder.write("program", text.as_bytes());
            closure.secrets().unwrap().is_some()
        };
        // As NixOS writes it.
        let head = "#!/nix/store/x/bin/bash -e\nfunction usage {\n  echo \"USAGE: $0 INITRD_FILE\" >&2\n}\n\n\
                    if [ \"$1\"x = \"--helpx\" ]; then\n  usage\n  exit 0\nfi\n\n";
        let tail = "\n\nexport PATH=/nix/store/y/bin\n\ntmp=$(mktemp -d)\n";
        assert!(!has_secrets(&format!("{head}exit 0{tail}")));
        assert!(has_secrets(&format!("{head}{tail}cp -a /key $tmp\n")));
        assert!(has_secrets(&format!("{head}{tail}cp -a /key $tmp\nexit 0\n")));
        assert!(has_secrets("\x7fELF\nexit 0\n"));
        std::fs::remove_file(folder.path("program")).unwrap();
        let error = closure.secrets().unwrap_err();
        assert!(matches!(error, ClosureError::Missing { what: "initrdSecrets", .. }), "{error}");
        assert_eq!(dummy().secrets().unwrap(), None);
    }

    #[test]
    fn what_is_no_closure_is_refused() {
        let folder = Folder::new();
        assert!(matches!(Closure::open(&folder.path("")), Err(ClosureError::NotAClosure { .. })));
        assert!(matches!(Closure::open(&folder.path("none")), Err(ClosureError::Read { .. })));
        folder.write("kernel", b"x");
        let error = Closure::open(&folder.path("")).unwrap_err().to_string();
        assert!(error.contains("kernel-params: No such file"), "{error}");
        // A dangling link is a closure whose kernel is missing.
        folder.write("kernel-params", b"");
        std::fs::remove_file(folder.path("kernel")).unwrap();
        std::os::unix::fs::symlink("/nowhere/bzImage", folder.path("kernel")).unwrap();
        let error = Closure::open(&folder.path("")).unwrap().check().unwrap_err();
        assert!(matches!(error, ClosureError::Missing { what: "kernel", .. }), "{error}");
        assert!(Closure::is_one(&folder.path("")) && Closure::is_one(Path::new("/x/boot.json")));
        assert!(!Closure::is_one(&folder.path("kernel-params")));
    }

    #[test]
    fn the_name_comes_from_the_store_path() {
        let name = |toplevel: &str| {
            let closure = Closure { toplevel: toplevel.into(), ..dummy() };
            closure.name()
        };
        let store = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz";
        assert_eq!(
            name(&format!("{store}-nixos-system-work-25.05.20251121.abcdef0")).as_deref(),
            Some("work")
        );
        assert_eq!(name(&format!("{store}-nixos-system-web-1-24.11pre-git")).as_deref(), Some("web-1"));
        assert_eq!(name(&format!("{store}-nixos-system-vault")).as_deref(), Some("vault"));
        assert_eq!(name("/closures/my-qube").as_deref(), Some("my-qube"));
        assert_eq!(name("/"), None);
    }

    fn dummy() -> Closure {
        Closure {
            toplevel: PathBuf::new(),
            label: String::new(),
            kernel: PathBuf::new(),
            initrd: None,
            initrd_secrets: None,
            init: PathBuf::new(),
            kernel_params: Vec::new(),
            specialisations: BTreeMap::new(),
        }
    }
}
