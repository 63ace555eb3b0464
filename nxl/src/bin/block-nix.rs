//! `block-nix`: a hotplug script of libxl's that makes a disk of a NixOS closure (`script=block-nix` in a disk line).
//!
//! libxl ends a script that takes more than 40 s, and packing a large closure takes longer. So the image is made by
//! another process of this program, `block-nix prepare`, that outlives the script.

#[path = "../bar.rs"]
mod bar;
#[path = "../block_nix.rs"]
mod block_nix;

use block_nix::{Arguments, Verb};
use clap::Parser;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use toolstack::closure_disk::{ClosureDisk, ClosureDiskError, ClosureImage, ClosureImages};
use toolstack::device::Dom0;
use toolstack::events::{Event, EventLog, Step};
use xen::Platform;
use xen::host::Host;

/// How long the script waits for an image: less than the 40 s that libxl waits for the script (`LIBXL_HOTPLUG_TIMEOUT`).
const PATIENCE: Duration = Duration::from_secs(33);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "XENBUS_PATH names no device: libxl runs this program, as script= of a disk; by hand there are `prepare' and `export'"
    )]
    NoDevice,
    #[error("this is not dom0 of a Xen host, or xenstored does not run: {0}")]
    NoXenstore(#[source] xen::Error),
    #[error(transparent)]
    Disk(#[from] ClosureDiskError),
    #[error("output: {0}")]
    Output(#[source] io::Error),
}

fn main() -> ExitCode {
    match run(&Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Who waited for it may be gone.
            let _ = writeln!(io::stderr(), "block-nix: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<(), Error> {
    match verb {
        Verb::Prepare { target } => return prepare(target),
        Verb::Export { target, file } => return export(target, file),
        Verb::Add | Verb::Remove => {}
    }
    let path = std::env::var("XENBUS_PATH").ok().filter(|path| !path.is_empty()).ok_or(Error::NoDevice)?;
    let store = Host.xenstore().map_err(Error::NoXenstore)?;
    let disk = ClosureDisk { store: &*store, plumbing: &Dom0, path: &path };
    if matches!(verb, Verb::Remove) {
        return Ok(disk.remove()?);
    }
    disk.add(image).map_err(|error| {
        // What went wrong is the thing to say, also when xenstored does not want to hear it.
        let _ = disk.report(&error);
        error.into()
    })
}

fn prepare(target: &Path) -> Result<(), Error> {
    let images = ClosureImages::default().with_progress(bar::of_bytes("image"));
    let image = make(&images, target)?;
    let (path, digest, size) = (image.path().display(), image.digest(), image.size());
    let took = image.made().map_or_else(
        || "it was there".to_owned(),
        |made| format!("{} bytes written, {} reused", made.written, made.reused),
    );
    let paths = image.store_paths();
    // Who asked may be gone.
    match writeln!(io::stdout(), "{path}\nsha256 {digest}\n{paths} store paths, {size} bytes: {took}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

/// The image, and an event if it was not there yet.
fn make(images: &ClosureImages, target: &Path) -> Result<ClosureImage, ClosureDiskError> {
    let image = images.make(&images.store_path(target)?)?;
    if image.made().is_some() {
        EventLog::default().tell(&[Event::now(Step::Image { path: image.path().to_owned() })]);
    }
    Ok(image)
}

fn export(target: &Path, file: &Path) -> Result<(), Error> {
    let images = ClosureImages::default().with_progress(bar::of_bytes("image"));
    let image = make(&images, target)?;
    let copy = || {
        let file = File::create(file)?;
        image.copy_to(&file, &bar::of_bytes("export"))?;
        file.sync_all()
    };
    Ok(copy().map_err(|source| ClosureDiskError::File { path: file.to_owned(), source })?)
}

/// The image of a target, which another process makes when there is none.
fn image(target: &Path) -> Result<ClosureImage, ClosureDiskError> {
    let images = ClosureImages::default();
    let store_path = images.store_path(target)?;
    if let Some(image) = images.find(&store_path) {
        return Ok(image);
    }
    let this = PathBuf::from("/proc/self/exe");
    let failed = |source| ClosureDiskError::File { path: this.clone(), source };
    let mut maker = Command::new(&this)
        .arg("prepare")
        .arg(target)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // nxl ends what a script leaves behind when it takes too long, and this is to go on.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    match wait(&mut maker, PATIENCE).map_err(failed)? {
        None => Err(ClosureDiskError::Unfinished { target: target.to_owned(), seconds: PATIENCE.as_secs() }),
        Some(true) => images.find(&store_path).ok_or_else(|| failed(io::ErrorKind::NotFound.into())),
        Some(false) => {
            let mut said = String::new();
            if let Some(mut stderr) = maker.stderr.take() {
                // What could be read says more than that the rest could not.
                let _ = stderr.read_to_string(&mut said);
            }
            let said = said.trim().trim_start_matches("block-nix: ").to_owned();
            Err(ClosureDiskError::Preparation { target: target.to_owned(), reason: said })
        }
    }
}

/// Waits for a child's end, and says whether it was successful; `None` when it goes on after `limit`.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<bool>> {
    let handle = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let begun = Instant::now();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(None),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(Some(child.wait()?.success())),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maker_is_waited_for_and_left_alone() {
        let shell = |script: &str| Command::new("sh").args(["-c", script]).spawn().unwrap();
        assert_eq!(wait(&mut shell("exit 0"), Duration::from_secs(60)).unwrap(), Some(true));
        assert_eq!(wait(&mut shell("exit 1"), Duration::from_secs(60)).unwrap(), Some(false));
        let mut slow = shell("exec sleep 600");
        assert_eq!(wait(&mut slow, Duration::from_millis(50)).unwrap(), None);
        assert!(slow.try_wait().unwrap().is_none(), "it goes on");
        slow.kill().unwrap();
        slow.wait().unwrap();
    }

    #[test]
    fn libxls_arguments_are_understood() {
        for line in [
            "block-nix add",
            "block-nix remove",
            "block-nix prepare /nix/store/x",
            "block-nix export /nix/store/x /tmp/x",
        ] {
            Arguments::try_parse_from(line.split(' ')).unwrap();
        }
        for line in ["block-nix", "block-nix online", "block-nix prepare"] {
            Arguments::try_parse_from(line.split(' ')).unwrap_err();
        }
    }
}
