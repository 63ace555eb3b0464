//! The systemd units, and what else is installed beside the programs, say what nexusd's defaults say; and all of our units
//! are right in systemd's eyes.

use nexus::broker::Settings;
use nexus::broker::confine::USER;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn packaged(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

fn unit(name: &str) -> String {
    packaged(&format!("systemd/{name}"))
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

#[test]
fn the_user_the_folders_and_the_log_are_those_of_nexusd() {
    let lines = |path: &str| -> Vec<Vec<String>> {
        let text = packaged(path);
        let lines = text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect());
        lines.filter(|words: &Vec<String>| words.first().is_some_and(|word| word != "#")).collect()
    };
    let users = lines("systemd/nexus.conf");
    assert_eq!(users.iter().map(|words| &words[..2]).collect::<Vec<_>>(), [["u", USER]]);
    // Whom nexusd becomes is whose dom0's agent is: else it would be turned away.
    assert_eq!(values(&unit("nexus-agent-dom0.service"), "User"), [USER]);
    // A group of the user's name is made with it: that of Xen's devices in a qube.
    assert!(unit("70-nexus-agent.rules").contains("GROUP=\"nexus\""));
    let groups = unit("nexus-agent.service");
    assert!(values(&groups, "SupplementaryGroups")[0].split(' ').any(|group| group == "nexus"));

    let defaults = Settings::default();
    let folders: Vec<_> = lines("tmpfiles.d/nexus.conf").into_iter().map(|words| words[1].clone()).collect();
    let made = |path: &Path| folders.iter().any(|folder| Path::new(folder) == path);
    assert!(made(Path::new("/etc/nexus")), "{folders:?}");
    assert!(defaults.policy.iter().filter(|path| path.starts_with("/etc")).all(|path| made(path)));

    let rotated = lines("logrotate.d/nexus");
    assert_eq!(rotated[0], [&*defaults.log.display().to_string(), "{"]);
    assert!(rotated.iter().any(|words| words[..] == ["su", "nexus", "nexus"]));
    assert!(rotated.iter().any(|words| words.join(" ").ends_with("systemctl reload nexusd.service")));
    assert_eq!(values(&unit("nexusd.service"), "ExecReload"), ["kill -HUP $MAINPID"]);
}

#[test]
fn the_page_has_the_defaults() {
    let page = packaged("../docs/nexusd.md");
    let block = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    let mut keys: serde_json::Map<_, _> = serde_json::from_str(block).expect("JSON");
    for key in ["ask", "notify", "user", "disposables"] {
        assert!(keys.remove(key).is_some(), "the page has no {key}");
    }
    let count = keys.len();
    let settings: Settings = serde_json::from_value(keys.into()).expect("settings");
    assert_eq!(format!("{settings:?}"), format!("{:?}", Settings::default()));
    assert_eq!(count, 12, "a key is on the page twice, or not at all");
}

/// Where systemd is not installed, the tests above are all there is.
#[test]
fn systemd_finds_no_fault() {
    let folder = tempfile::tempdir().expect("a folder");
    let names = [
        "nexusd.socket",
        "nexusd.service",
        "nexus-agent-dom0.service",
        "nexus-container.socket",
        "nexus-container@.service",
        "nexus-as-user.socket",
        "nexus-as-user@.service",
    ];
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no", "--recursive-errors=one"]);
    for name in names {
        // The programs are not installed here: those that were built are looked at.
        let text = unit(name)
            .replace("=/usr/sbin/nexusd", concat!("=", env!("CARGO_BIN_EXE_nexusd")))
            .replace("=/usr/sbin/nexus-agent", concat!("=", env!("CARGO_BIN_EXE_nexus-agent")))
            .replace("=/usr/bin/nexus-service", concat!("=", env!("CARGO_BIN_EXE_nexus-service")));
        let path = folder.path().join(name);
        fs::write(&path, text).expect("a unit");
        command.arg(path);
    }
    match command.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let ours: Vec<_> = said.lines().filter(|line| line.contains("nexus")).collect();
            assert!(output.status.success() && ours.is_empty(), "{said}");
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
    }
}
