//! `nexus.Container`: the containers of this qube, which are units of systemd's.

use super::Failure;
use nexus::agent::Settings;
use nexus::client::containers::{Container, State};
use nexus::name::Name;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

/// There while systemd is what started the system (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

pub(crate) fn container(
    argument: &str,
    settings: impl FnOnce() -> Result<Settings, Failure>,
) -> Result<(), Failure> {
    let (verb, name) = match argument.split_once('+') {
        None if argument == "list" => {
            let text = format!("{}\n", serde_json::json!(list(&settings()?)?));
            return io::stdout().write_all(text.as_bytes()).map_err(Failure::of);
        }
        Some((verb @ ("start" | "stop" | "restart"), name)) => (verb, name),
        _ => {
            return Err(Failure::of(format!(
                "{argument:?} is none of list, start+NAME, stop+NAME and restart+NAME"
            )));
        }
    };
    let settings = settings()?;
    // Of its own names, and not of the caller's words, the command line is made.
    let name = settings.containers.keys().find(|known| known.as_str() == name);
    let name = name.ok_or_else(|| Failure::of("there is no such container here"))?;
    if !Path::new(BOOTED).exists() {
        return Err(Failure::of(format!("systemd, which would {verb} it, does not run here")));
    }
    let done = systemctl(&["--quiet", verb, &unit(name)])?;
    match done.status.success() {
        true => Ok(()),
        false => Err(Failure::of(first_line(&done.stderr))),
    }
}

/// What NixOS calls the unit of a container.
fn unit(name: &Name) -> String {
    format!("container@{name}.service")
}

fn systemctl(arguments: &[&str]) -> Result<std::process::Output, Failure> {
    let mut command = Command::new("systemctl");
    command.arg("--no-ask-password").arg("--no-pager").args(arguments);
    command.output().map_err(|error| Failure::of(format!("systemctl: {error}")))
}

fn first_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).lines().next().unwrap_or("systemctl failed").to_owned()
}

fn list(settings: &Settings) -> Result<Vec<Container>, Failure> {
    let names = || settings.containers.keys();
    let unknown = |name: &Name| Container { name: name.clone(), state: State::Unknown, memory_kib: None };
    if settings.containers.is_empty() || !Path::new(BOOTED).exists() {
        return Ok(names().map(unknown).collect());
    }
    let units: Vec<String> = names().map(unit).collect();
    let mut arguments = vec!["show", "--property=Id,LoadState,ActiveState,MemoryCurrent"];
    arguments.extend(units.iter().map(String::as_str));
    let shown = systemctl(&arguments)?;
    if !shown.status.success() {
        return Err(Failure::of(first_line(&shown.stderr)));
    }
    let text = String::from_utf8_lossy(&shown.stdout);
    let shown = properties(&text);
    Ok(names()
        .map(|name| shown.get(&unit(name)).map_or_else(|| unknown(name), |unit| described(name, unit)))
        .collect())
}

/// What `systemctl show` says of several units: by their ids.
fn properties(text: &str) -> BTreeMap<String, BTreeMap<&str, &str>> {
    let units = text.split("\n\n").map(|unit| unit.lines().filter_map(|line| line.split_once('=')).collect());
    units
        .filter_map(|unit: BTreeMap<_, _>| unit.get("Id").map(|id| (*id).to_owned()).map(|id| (id, unit)))
        .collect()
}

fn described(name: &Name, unit: &BTreeMap<&str, &str>) -> Container {
    let of = |property: &str| unit.get(property).copied().unwrap_or_default();
    let state = match (of("LoadState"), of("ActiveState")) {
        ("loaded", "active" | "reloading") => State::Running,
        ("loaded", "activating") => State::Starting,
        ("loaded", "deactivating") => State::Stopping,
        ("loaded", "inactive") => State::Stopped,
        ("loaded", "failed") => State::Failed,
        _ => State::Unknown,
    };
    // `[not set]' where nothing runs, and 2^64 - 1 in older versions.
    let memory = of("MemoryCurrent").parse::<u64>().ok().filter(|bytes| *bytes != u64::MAX);
    Container { name: name.clone(), state, memory_kib: memory.map(|bytes| bytes / 1024) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Result<Settings, Failure> {
        let text = r#"{ "qube": "work", "user": "user", "socket": "/run/nexus/call.sock",
            "containers": { "web": { "socket": "/a", "services": "/b" } } }"#;
        serde_json::from_str(text).map_err(Failure::of)
    }

    #[test]
    fn only_what_is_declared_is_touched() {
        for (argument, says) in [
            ("start+db", "there is no such container"),
            ("start+../web", "there is no such container"),
            ("start+", "there is no such container"),
            ("kill+web", "is none of list"),
            ("start", "is none of list"),
            ("list+web", "is none of list"),
        ] {
            let Err(failure) = container(argument, settings) else { panic!("{argument}") };
            assert!(failure.what.contains(says), "{argument}: {}", failure.what);
        }
    }

    #[test]
    fn what_systemctl_shows_is_read() {
        let text = "Id=container@web.service\nLoadState=loaded\nActiveState=active\nMemoryCurrent=4194304\n\n\
                    Id=container@db.service\nLoadState=not-found\nActiveState=inactive\nMemoryCurrent=[not set]\n\n\
                    Id=container@old.service\nLoadState=loaded\nActiveState=failed\nMemoryCurrent=18446744073709551615\n";
        let shown = properties(text);
        let of = |name: &str| {
            let name = Name::new(name).unwrap();
            described(&name, &shown[&unit(&name)])
        };
        assert_eq!((of("web").state, of("web").memory_kib), (State::Running, Some(4096)));
        assert_eq!((of("db").state, of("db").memory_kib), (State::Unknown, None));
        assert_eq!((of("old").state, of("old").memory_kib), (State::Failed, None));
    }
}
