//! `nxl watch`, and how `create` starts it.

use crate::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::process::{Command, Stdio};
use toolstack::KernelCache;
use toolstack::config::QubeConfig;
use toolstack::qubes::{Qube, Qubes};
use toolstack::watch::{Done, WatchError, Watcher};
use xen::host::Host;
use xen::{ForeignMemory, Platform};

/// Where the watcher tells what it did, beside `xl`'s logs.
const LOG_FOLDER: &str = "/var/log/xen";
const LOG: &str = "/var/log/xen/nxl-watch.log";

pub(crate) fn watch(qubes: Qubes) -> Result<(), Error> {
    // Not to end with the terminal or the session that it was started from; already a leader is fine.
    let _ = rustix::process::setsid();
    let foreign = Host.foreign_memory().map_err(Error::NotDom0)?;
    // A full disk is no reason to leave the qubes alone: what cannot be written to the log is lost.
    let qubes = qubes.with_kernel_cache(KernelCache::default().on_problem(|error| {
        let _ = writeln!(io::stderr(), "kernels are not cached: {error}");
    }));
    Watcher::new(&qubes, &*foreign).run(tell)?;
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

/// Starts a watcher in the background. One that finds another at work ends at once.
pub(crate) fn start() -> io::Result<()> {
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
