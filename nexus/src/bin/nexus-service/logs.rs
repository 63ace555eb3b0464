//! `nexus.Logs`: the end of the journal, or of what busybox' syslogd writes.

use super::Failure;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The most lines.
const MOST: u32 = 1_000_000;
const MESSAGES: &str = "/var/log/messages";

/// Runs what shows it, in this process' place.
pub(crate) fn logs(argument: &str) -> Result<(), Failure> {
    let (lines, follow) = wanted(argument)?;
    let lines = lines.to_string();
    let mut journal = Command::new("journalctl");
    journal.args(["--quiet", "--no-pager", "--output=short-iso", "--lines", &lines]);
    if follow {
        journal.arg("--follow");
    }
    let error = journal.exec();
    if error.kind() != io::ErrorKind::NotFound {
        return Err(Failure::of(format!("journalctl: {error}")));
    }
    if !Path::new(MESSAGES).exists() {
        return Err(Failure::of(format!("there are neither journalctl nor {MESSAGES} here")));
    }
    let mut tail = Command::new("tail");
    tail.args(["-n", &lines]);
    if follow {
        tail.arg("-f");
    }
    Err(Failure::of(format!("tail: {}", tail.arg(MESSAGES).exec())))
}

/// `LINES` or `LINES.follow`.
fn wanted(argument: &str) -> Result<(u32, bool), Failure> {
    let (lines, follow) = match argument.strip_suffix(".follow") {
        Some(lines) => (lines, true),
        None => (argument, false),
    };
    match lines.parse() {
        Ok(lines @ 0..=MOST) => Ok((lines, follow)),
        _ => Err(Failure::of(format!(
            "{argument:?} is not a number of lines up to {MOST}, and perhaps .follow"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_and_followed() {
        assert!(matches!(wanted("100"), Ok((100, false))));
        assert!(matches!(wanted("0.follow"), Ok((0, true))));
        for wrong in ["", "-1", "1000001", "10.all", ".follow", "10 --root=/"] {
            assert!(wanted(wrong).is_err(), "{wrong}");
        }
    }
}
