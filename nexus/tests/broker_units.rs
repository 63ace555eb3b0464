//! The systemd units say what nexusd's defaults say, and are right in systemd's eyes.

use nexus::broker::Settings;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn unit(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)).expect("a unit")
}

fn values<'t>(text: &'t str, key: &str) -> Vec<&'t str> {
    text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn the_sockets_and_folders_are_those_of_the_defaults() {
    let defaults = Settings::default();
    let (socket, service) = (unit("nexusd.socket"), unit("nexusd.service"));
    let paths: Vec<_> = values(&socket, "ListenStream").into_iter().map(Path::new).collect();
    assert_eq!(paths, [&defaults.socket, &defaults.metrics]);
    let folder = |below: &str, key: &str| Path::new(below).join(values(&service, key)[0]);
    assert_eq!(defaults.log.parent(), Some(&*folder("/var/log", "LogsDirectory")));
    assert_eq!(defaults.made.parent(), Some(&*folder("/var/lib", "StateDirectory")));
    assert_eq!(defaults.socket.parent(), Some(&*folder("/run", "RuntimeDirectory")));
    assert_eq!(values(&service, "Type"), ["notify"]);
}

/// Where systemd is not installed, the test above is all there is.
#[test]
fn systemd_finds_no_fault() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["nexusd.socket", "nexusd.service"] {
        // The program is not installed here: the one that was built is looked at.
        let text = unit(name)
            .replace("ExecStart=/usr/sbin/nexusd", concat!("ExecStart=", env!("CARGO_BIN_EXE_nexusd")));
        fs::write(folder.path().join(name), text).expect("a unit");
    }
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=one"]).arg(folder.path().join("nexusd.service"));
    match command.arg(folder.path().join("nexusd.socket")).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let ours: Vec<_> = said.lines().filter(|line| line.contains("nexusd")).collect();
            assert!(output.status.success() && ours.is_empty(), "{said}");
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
    }
}
