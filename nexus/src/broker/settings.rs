//! What nexusd is told by its configuration.

use crate::name::Name;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What `nxl apply` writes of the qubes that are declared, and nexusd reads unless it is told otherwise.
pub const SYSTEM_FILE: &str = "/run/nxl/system.json";

/// Where nexusd's settings are, if nothing else is said. It need not be there.
pub const SETTINGS_FILE: &str = "/etc/nexus/nexusd.json";

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no JSON, or says what no key can mean.
    #[error("{path}: {source}", path = path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// What is in [`SETTINGS_FILE`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The folders of the policy.
    pub policy: Vec<PathBuf>,
    /// The file that says what there is to know of the qubes ([`System`](crate::policy::System)).
    pub system: PathBuf,
    /// The socket for dom0's own agent.
    pub socket: PathBuf,
    /// The log of calls.
    pub log: PathBuf,
    /// The socket on which the figures can be had.
    pub metrics: PathBuf,
    /// The program that asks the user, with its arguments. None: nobody is asked, and the answer is no.
    pub ask: Vec<String>,
    /// How long the user has to answer.
    pub ask_seconds: u64,
    /// The program that tells the user of calls (`notify=`), with its arguments. None: only the log does.
    pub notify: Vec<String>,
    /// The program that starts a qube that is called and does not run, with its arguments; `{name}` in one stands for the
    /// qube's name. None: no qube is started.
    pub start: Vec<String>,
    /// How long a qube may take from then until its agent says hello.
    pub start_seconds: u64,
    /// How many calls a qube, its containers included, may have open.
    pub calls: usize,
    /// Whom nexusd becomes. None: `nexus`, if there is that user ([`Identity::chosen`](super::confine::Identity::chosen)).
    pub user: Option<String>,
    /// Whom a stock agent runs services as when policy does not say.
    pub default_user: String,
    /// What disposable qubes may be made from.
    pub disposables: BTreeMap<Name, DisposableSettings>,
    /// How they are made of a template that is declared and not among those. None: of such there are none.
    pub declared_disposables: Option<DisposableSettings>,
    /// Where the maker of disposable qubes notes which there are.
    pub made: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: vec!["/run/qubes/policy.d".into(), "/etc/qubes/policy.d".into()],
            system: SYSTEM_FILE.into(),
            socket: "/run/nexus/control.sock".into(),
            log: "/var/log/nexus/calls.jsonl".into(),
            metrics: "/run/nexus/metrics.sock".into(),
            ask: Vec::new(),
            ask_seconds: 60,
            notify: Vec::new(),
            start: [
                "nxl",
                "apply",
                "--quiet",
                "--no-restart",
                "--lock-timeout=60",
                "--start",
                "{name}",
                "/etc/nexus/qubes.json",
            ]
            .map(str::to_owned)
            .into(),
            start_seconds: 60,
            calls: 1000,
            user: None,
            default_user: "user".to_owned(),
            disposables: BTreeMap::new(),
            declared_disposables: Some(DisposableSettings {
                take: Vec::new(),
                fill: Vec::new(),
                create: words(&["nxl", "disposable", "create", "--quiet", "--name", "{name}", "{template}"]),
                destroy: words(&["nxl", "disposable", "destroy", "--force", "{name}"]),
                seconds: patience(),
            }),
            made: "/var/lib/nexus/made".into(),
        }
    }
}

impl Settings {
    /// Reads a file that was named.
    ///
    /// # Errors
    /// It is not there, cannot be read, or is wrong.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = fs::read(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
        serde_json::from_slice(&text).map_err(|source| SettingsError::Wrong { path: path.to_owned(), source })
    }

    /// Reads the file that nobody has named: the defaults, where there is none.
    ///
    /// # Errors
    /// It is there, and cannot be read, or is wrong.
    pub fn of_host(path: &Path) -> Result<Self, SettingsError> {
        match Self::read(path) {
            Err(SettingsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            read => read,
        }
    }

    /// How disposable qubes of a template are made. That a template is declared, whoever asks has to know.
    #[must_use]
    pub fn disposables_of(&self, template: &str) -> Option<&DisposableSettings> {
        self.disposables.get(template).or(self.declared_disposables.as_ref())
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// How one kind of disposable qube is made. `{name}` in an argument stands for its name, but for that of `fill`; `{template}` for
/// what it is made from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisposableSettings {
    /// The program that names one that was built ahead, with its arguments; it fails where none is ready. None: none are
    /// built ahead.
    #[serde(default)]
    pub take: Vec<String>,
    /// The program that builds some ahead: run at the start, and after each that was taken.
    #[serde(default)]
    pub fill: Vec<String>,
    /// The program that makes one, with its arguments.
    pub create: Vec<String>,
    /// The program that ends one.
    #[serde(default = "destroy")]
    pub destroy: Vec<String>,
    /// How long it may take until its agent says hello.
    #[serde(default = "patience")]
    pub seconds: u64,
}

fn destroy() -> Vec<String> {
    words(&["nxl", "destroy", "{name}"])
}

fn patience() -> u64 {
    60
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_need_not_be_there_unless_it_was_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nexusd.json");
        let defaults = format!("{:?}", Settings::default());
        assert_eq!(format!("{:?}", Settings::of_host(&path).unwrap()), defaults);
        let error = Settings::read(&path).unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()), "{error}");

        fs::write(&path, "{}").unwrap();
        assert_eq!(format!("{:?}", Settings::of_host(&path).unwrap()), defaults, "every key may be left out");
        fs::write(&path, r#"{ "calls": 3, "user": "root" }"#).unwrap();
        for settings in [Settings::of_host(&path).unwrap(), Settings::read(&path).unwrap()] {
            assert_eq!((settings.calls, settings.user.as_deref()), (3, Some("root")));
        }
        // One that is wrong is none that is not there.
        fs::write(&path, r#"{ "call": 3 }"#).unwrap();
        let error = Settings::of_host(&path).unwrap_err().to_string();
        assert!(error.contains("call"), "{error}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(Settings::of_host(&path), Err(SettingsError::Read { .. })));
    }
}
