//! Bars are for whoever sees them: `nxl volume snapshot` of a volume that is copied, on a terminal and not.

#![allow(clippy::unwrap_used, reason = "what fails in here fails the test")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

const MIB: u64 = 40;

fn nxl(folder: &Path, arguments: &str) -> String {
    format!("{} volume --folder {} {arguments}", env!("CARGO_BIN_EXE_nxl"), folder.display())
}

fn succeeded(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert_eq!(errors, "");
    text
}

#[test]
fn a_long_copy_has_a_bar_on_a_terminal_and_none_elsewhere() {
    // A tmpfs: where blocks are shared nothing is copied.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let volumes = folder.path().join("volumes");
    let shell = |line: &str| Command::new("sh").args(["-c", line]).output().unwrap();
    succeeded(&shell(&nxl(&volumes, &format!("create work {MIB}m"))));
    // The rest is a hole: what is there for shared memory may be little.
    let image = File::options().write(true).open(volumes.join("work.raw")).unwrap();
    image.write_all_at(&[7; 1 << 20], 0).unwrap();

    let said = succeeded(&shell(&nxl(&volumes, "snapshot work one")));
    assert!(said.contains("Copied, 1.0 MiB"), "{said}");
    assert!(!said.contains('['), "{said}");

    let terminal = |term: &str| {
        let line = nxl(&volumes, "snapshot work two-") + term;
        let output = Command::new("script")
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .env("TERM", term)
            .output()
            .unwrap();
        succeeded(&output)
    };
    let seen = terminal("xterm");
    assert!(seen.contains("copy [") && seen.contains("of 40.00 MiB"), "{seen:?}");
    // It is gone before what came of it is told.
    let last = seen.rsplit("\u{1b}[2K").next().unwrap();
    assert!(last.contains("Copied, 1.0 MiB") && !last.contains("copy ["), "{seen:?}");
    // Nor is there one on a terminal that cannot take a line back.
    let seen = terminal("dumb");
    assert!(!seen.contains("copy ["), "{seen:?}");
}
