//! `nxl devd`: the device backend daemon of the domain that it runs in, in the foreground or not.

use crate::command::DevdOptions;
use crate::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use toolstack::device::{DEVD_FOLDER, Devd, Told};
use xen::host::Dom0;

/// Beside `xl`'s logs.
const LOG: &str = "/var/log/xen/nxl-devd.log";
/// What the daemon says to whoever started it, on its standard output.
const READY: &str = "ready";

pub(crate) fn devd(options: &DevdOptions) -> Result<(), Error> {
    if options.foreground { serve(options) } else { start(options) }
}

/// Serves until xenstored is gone.
fn serve(options: &DevdOptions) -> Result<(), Error> {
    if options.daemon {
        // Not to end with the terminal or the session that it was started from; already a leader is fine.
        let _ = rustix::process::setsid();
    }
    let folder = Path::new(DEVD_FOLDER);
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(|source| Error::Read { path: folder.to_owned(), source })?;
    let devd = Devd::open(&Dom0, folder)?;
    let tell = |told: Told| {
        // What cannot be written to the log is lost, and no reason to leave the devices alone.
        let _ = writeln!(io::stderr(), "{told}");
    };
    let written = |result: io::Result<()>, path: &Path| {
        result.map_err(|source| Error::Read { path: path.to_owned(), source })
    };
    if let Some(file) = options.pidfile.as_deref().filter(|_| options.daemon) {
        written(fs::write(file, format!("{}\n", std::process::id())), file)?;
    }
    let ready = || {
        if options.daemon {
            // Whoever started it need not wait.
            let _ = writeln!(io::stdout(), "{READY}");
        }
    };
    Ok(devd.run(ready, &tell, || true)?)
}

/// Starts the daemon, and waits until it serves.
fn start(options: &DevdOptions) -> Result<(), Error> {
    let log = || -> io::Result<_> {
        fs::create_dir_all(Path::new(LOG).parent().unwrap_or(Path::new("/")))?;
        OpenOptions::new().append(true).create(true).open(LOG)
    };
    let log = log().map_err(|source| Error::Read { path: PathBuf::from(LOG), source })?;
    let run = || {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["devd", "-F", "--daemon"]);
        if let Some(file) = &options.pidfile {
            command.arg("-p").arg(std::path::absolute(file)?);
        }
        let mut daemon = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut line = String::new();
        if let Some(said) = daemon.stdout.take() {
            BufReader::new(said).read_line(&mut line)?;
        }
        Ok::<_, io::Error>(line.trim_end() == READY)
    };
    match run() {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::NoDevd { source: io::Error::other(format!("{LOG} says why")) }),
        Err(source) => Err(Error::NoDevd { source }),
    }
}
