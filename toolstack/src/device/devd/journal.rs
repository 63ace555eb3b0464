//! What was begun of a device, and how it ended: a file that outlives whoever wrote it.
//!
//! Its first line is a [`Begun`]; each that follows is `add` or `remove`, when that script is started, or `ended STATUS`,
//! which is written by the shell that waits for the script. That shell has the file as its standard input, and with it its lock: so
//! the lock is held as long as a script runs, also when who started it is no more.

use crate::device::script::LIMIT;
use crate::device::{Action, Address, DeviceError, Kind, Script};
use crate::lock;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use xen::DomId;

/// How often it is looked whether a script has ended that another process started.
const AGAIN: Duration = Duration::from_millis(50);
/// Of a script that was ended because it took too long.
const TOO_LONG: &str = "ended 124";

/// Which device it is about, and with which script.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Begun {
    /// What its backend's half says, too.
    pub(super) mark: String,
    pub(super) script: String,
    pub(super) gatewaydev: Option<String>,
}

/// How far it got.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Nothing was done.
    New,
    /// A script was started, and interrupted with whoever waited for it.
    Interrupted,
    /// The script that connects it has ended, well or not.
    Added(Result<(), String>),
    /// That which takes it away has ended.
    Removed,
}

/// The account of one device, locked.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// The lock.
    file: File,
    begun: Option<Begun>,
    phase: Phase,
}

/// The name of a device's file.
fn name(address: Address) -> String {
    format!("{}-{}-{}", address.kind.name(), address.domid, address.devid)
}

/// The device whose file has that name.
pub(super) fn device_of(file: &str, backend: DomId) -> Option<Address> {
    let mut parts = file.split('-');
    let kind = parts.next()?;
    let kind = [Kind::Vbd, Kind::Vif].into_iter().find(|known| known.name() == kind)?;
    let (domid, devid) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let address = Address { domid: DomId(domid), kind, devid, backend };
    (name(address) == file).then_some(address)
}

impl Journal {
    /// Opens a device's file, which is made if there is none. A script that another process has started is waited for, for as
    /// long as it may take.
    pub(super) fn open(folder: &Path, address: Address) -> io::Result<Self> {
        let path = folder.join(name(address));
        let begun = Instant::now();
        let mut file = loop {
            if let Some(file) = lock::attempt(&path)? {
                break file;
            }
            if begun.elapsed() > LIMIT {
                return Err(io::Error::other("its script does not end"));
            }
            thread::sleep(AGAIN);
        };
        let mut text = String::new();
        // That of somebody who is no more; a line that has no end was not written to its end.
        file.read_to_string(&mut text)?;
        file.seek(SeekFrom::End(0))?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut lines = whole.lines();
        let begun = lines.next().and_then(|line| serde_json::from_str(line).ok());
        let phase = if begun.is_some() { phase(lines) } else { Phase::New };
        Ok(Self { path, file, begun, phase })
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.clone()
    }

    pub(super) fn begun(&self) -> Option<&Begun> {
        self.begun.as_ref()
    }

    /// Forgets what is in it.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        (self.begun, self.phase) = (None, Phase::New);
        Ok(())
    }

    /// Forgets what is in it for something new.
    pub(super) fn begin(&mut self, begun: Begun) -> io::Result<()> {
        self.restart()?;
        let mut line = serde_json::to_string(&begun)?;
        line.push('\n');
        self.file.write_all(line.as_bytes())?;
        self.begun = Some(begun);
        Ok(())
    }

    /// Runs a script and waits for its end.
    pub(super) fn run(&mut self, script: &Script, action: Action) -> Result<(), DeviceError> {
        let path = self.path.display().to_string();
        let system = |source| DeviceError::System { what: path.clone(), source };
        writeln!(self.file, "{}", word(action)).map_err(system)?;
        let ended = script.run_recorded(action, self.file.try_clone().map_err(system)?);
        if ended.is_err() {
            // Of one that took too long, the shell was ended, too; what it did write comes first.
            writeln!(self.file, "{TOO_LONG}").map_err(system)?;
        }
        ended
    }

    /// Nothing is left to tell.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Add => "add",
        Action::Remove => "remove",
    }
}

fn phase<'a>(lines: impl Iterator<Item = &'a str>) -> Phase {
    let mut running = None;
    let mut phase = Phase::New;
    for line in lines {
        match (line.strip_prefix("ended "), running.take()) {
            (None, _) => {
                running = Some(line == word(Action::Remove));
                phase = Phase::Interrupted;
            }
            (Some("0"), Some(false)) => phase = Phase::Added(Ok(())),
            (Some(status), Some(false)) => {
                phase = Phase::Added(Err(format!("it ended with status {status}")))
            }
            (Some(_), Some(true)) => phase = Phase::Removed,
            (Some(_), None) => {}
        }
    }
    phase
}
