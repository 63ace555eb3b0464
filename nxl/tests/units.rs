//! The unit that applies the declaration at boot: right in systemd's eyes, and under what nexusd is under.

use std::path::Path;
use std::process::Command;
use std::{fs, io};

const NAME: &str = "nexus-apply.service";

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// The lines that take something from a service's processes.
fn sandbox(unit: &str) -> Vec<&str> {
    let takes = |line: &&str| {
        [
            "CapabilityBoundingSet=",
            "LockPersonality=",
            "Memory",
            "NoNew",
            "Private",
            "Protect",
            "Restrict",
            "SystemCall",
        ]
        .iter()
        .any(|beginning| line.starts_with(beginning) && !line.starts_with("Restart"))
    };
    let mut lines: Vec<_> = unit.lines().filter(takes).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_qube_is_made_under_the_same_whoever_has_it_made() {
    let (ours, nexusd) = (file("systemd/nexus-apply.service"), file("../nexus/systemd/nexusd.service"));
    assert!(sandbox(&ours).len() > 10, "{ours}");
    assert_eq!(sandbox(&ours), sandbox(&nexusd));
    // It takes all devices but the clock away, Xen's included, until systemd 253.
    assert!(!ours.contains("ProtectClock"));
    // The watcher is theirs, and stays.
    assert!([ours, nexusd].iter().all(|unit| unit.contains("\nKillMode=process\n")));
}

/// Where systemd is not installed, the test above is all there is.
#[test]
fn systemd_finds_no_fault() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(NAME);
    // The program is not installed here: that which was built is looked at.
    let text = file("systemd/nexus-apply.service")
        .replace("=/usr/sbin/nxl ", concat!("=", env!("CARGO_BIN_EXE_nxl"), " "));
    assert!(text.contains(env!("CARGO_BIN_EXE_nxl")));
    fs::write(&path, text).expect("a unit");
    let mut command = Command::new("systemd-analyze");
    match command.args(["verify", "--man=no", "--recursive-errors=one"]).arg(&path).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !said.contains("nexus-apply"), "{said}");
        }
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
    }
}
