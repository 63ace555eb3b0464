//! How a service wants to be run: `/etc/qubes/rpc-config/SERVICE[+ARGUMENT]`.

use crate::policy::Service;
use std::fs;
use std::io;
use std::path::Path;

/// The settings of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RpcConfig {
    /// `force-user`: the user that it runs as, whatever policy says.
    pub force_user: Option<String>,
    /// `wait-for-session`: it wants a session of the user. The user who is logged in is the one that runs the agent.
    pub wait_for_session: bool,
    /// `skip-service-descriptor`: its socket gets the caller's bytes and nothing before them.
    pub skip_service_descriptor: bool,
    /// `exit-on-service-eof`: a call of a socket ends when the service has no more to say, and not only when the caller hasn't, either.
    pub exit_on_service_eof: bool,
    /// `exit-on-client-eof`: a call of a socket ends when the caller has no more to say.
    pub exit_on_client_eof: bool,
    /// `service-messages`: its socket speaks in messages, so it has a stderr and an exit code ([`crate::answer`]).
    pub service_messages: bool,
}

/// Why the settings of a service cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RpcConfigError {
    /// The file.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// A line.
    #[error("line {line}: {what}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl RpcConfig {
    /// The settings of a service: those of it with its argument, or else those of it.
    ///
    /// # Errors
    /// There are some, and they cannot be read or understood.
    pub fn of(service: &Service, folder: &Path) -> Result<Self, RpcConfigError> {
        for name in [service.to_string(), service.name().to_string()] {
            match fs::read_to_string(folder.join(name)) {
                Ok(text) => return Self::parse(&text),
                Err(error) if absent(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self::default())
    }

    fn parse(text: &str) -> Result<Self, RpcConfigError> {
        let mut config = Self::default();
        for (index, line) in text.lines().enumerate() {
            let error = |what| RpcConfigError::Line { line: index + 1, what };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| error("KEY=VALUE is missing"))?;
            let value = value.trim();
            let value = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap_or(value);
            let flag = || match value {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(error("it is true, false, 1 or 0")),
            };
            match key.trim() {
                "force-user" => config.force_user = Some(value.to_owned()),
                "wait-for-session" => config.wait_for_session = flag()?,
                "skip-service-descriptor" => config.skip_service_descriptor = flag()?,
                "exit-on-service-eof" => config.exit_on_service_eof = flag()?,
                "exit-on-client-eof" => config.exit_on_client_eof = flag()?,
                "service-messages" => config.service_messages = flag()?,
                _ => return Err(error("no service has such a setting")),
            }
        }
        Ok(config)
    }
}

/// There is none: also where the argument makes a name that no file can have.
pub(super) fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_for_the_argument_first() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("q.A", "# of all\nskip-service-descriptor = true\nforce-user='mail'\n");
        write("q.A+x", "exit-on-client-eof=1\nexit-on-service-eof=0\nwait-for-session=false\n");
        let of = |service: &str| RpcConfig::of(&Service::parse(service).unwrap(), folder.path());
        assert_eq!(
            of("q.A+y").unwrap(),
            RpcConfig {
                skip_service_descriptor: true,
                force_user: Some("mail".to_owned()),
                ..RpcConfig::default()
            }
        );
        assert_eq!(of("q.A+x").unwrap(), RpcConfig { exit_on_client_eof: true, ..RpcConfig::default() });
        assert_eq!(of("q.B").unwrap(), RpcConfig::default());
        assert_eq!(of(&format!("q.B+{}", "x".repeat(300))).unwrap(), RpcConfig::default());
        for (text, line) in [("a", 1), ("\nunknown=1", 2), ("exit-on-client-eof=yes", 1)] {
            write("q.C", text);
            match of("q.C") {
                Err(RpcConfigError::Line { line: found, .. }) => assert_eq!(found, line),
                other => panic!("{other:?}"),
            }
        }
    }
}
