//! `nxl watch`, and how `create` starts it.

use crate::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::Duration;
use toolstack::KernelCache;
use toolstack::config::QubeConfig;
use toolstack::qubes::{Qube, Qubes};
use toolstack::watch::{Done, LINGER, WatchError, Watcher};
use xen::host::Dom0;
use xen::{ForeignMemory, Platform};

/// Where the watcher tells what it did, beside `xl`'s logs.
const LOG_FOLDER: &str = "/var/log/xen";
const LOG: &str = "/var/log/xen/nxl-watch.log";

pub(crate) fn watch(qubes: Qubes, linger: Option<u64>) -> Result<(), Error> {
    // Not to end with the terminal or the session that it was started from; already a leader is fine.
    let _ = rustix::process::setsid();
    let foreign = Dom0.foreign_memory().map_err(Error::of_opening)?;
    // A full disk is no reason to leave the qubes alone: what cannot be written to the log is lost.
    let qubes = qubes.with_kernel_cache(KernelCache::default().on_problem(|error| {
        let _ = writeln!(io::stderr(), "kernels are not cached: {error}");
    }));
    let linger = linger.map_or(LINGER, Duration::from_secs);
    Watcher::new(&qubes, &*foreign).with_linger(linger).run(tell)?;
    Ok(())
}

/// Does for one qube, in the foreground, what the watcher does for all.
pub(crate) fn attend(
    qubes: &Qubes,
    foreign: &dyn ForeignMemory,
    qube: Qube,
    config: &QubeConfig,
) -> Result<(), Error> {
    Ok(Watcher::new(qubes, foreign).attend(qube, config, tell)?)
}

fn tell(result: Result<Done, WatchError>) {
    let line = match result {
        Ok(done) => {
            let left = done.left_behind.map_or_else(String::new, |left| format!("; {left}"));
            format!("{} (domain {}): {:?}, {}{left}", done.name, done.domid, done.reason, done.action.name())
        }
        Err(error) => format!("failed: {error}"),
    };
    let _ = writeln!(io::stderr(), "{line}");
}

/// Sees to it that a watcher is at work: starts one in the background, if there is none.
pub(crate) fn ensure(qubes: &Qubes) -> Result<(), Error> {
    // One that is starting is not seen. That costs a second program, which finds the first at work and ends.
    if qubes.is_watched()? {
        return Ok(());
    }
    start().map_err(Error::Watcher)
}

fn start() -> io::Result<()> {
    fs::create_dir_all(LOG_FOLDER)?;
    let log = OpenOptions::new().append(true).create(true).open(LOG)?;
    Command::new(std::env::current_exe()?)
        .arg("watch")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(())
}
