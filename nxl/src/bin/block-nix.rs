//! `block-nix`: a hotplug script of libxl's that makes a disk of a NixOS closure (`script=block-nix` in a disk line).
//!
//! libxl ends a script that takes more than 40 s, and packing a large closure takes longer. So the image is made by
//! another process of this program, `block-nix prepare`, that outlives the script.

use clap::{Parser, Subcommand};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use toolstack::closure_disk::{ClosureDisk, ClosureDiskError, ClosureImages};
use toolstack::device::Dom0;
use xen::Platform;
use xen::host::Host;

/// How long the script waits for an image: less than the 40 s that libxl waits for the script (`LIBXL_HOTPLUG_TIMEOUT`).
const PATIENCE: Duration = Duration::from_secs(33);

/// Makes a qube's disk of a NixOS closure: a read-only squashfs image with its store paths, kept in
/// /var/cache/nxl/images. A hotplug script of libxl's.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "In a configuration of xl, libvirt or nxl:
  disk = [ 'script=block-nix,vdev=xvdb,access=r,target=/nix/store/…-nixos-system-work-25.05' ]"
)]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Connect the disk whose backend XENBUS_PATH names; libxl calls it so.
    Add,
    /// Take it away; libxl calls it so.
    Remove,
    /// Make the image of a store path, or of what leads to one, ahead of the first qube that wants it; print its path.
    Prepare {
        /// The store path.
        target: PathBuf,
    },
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "XENBUS_PATH names no device: libxl runs this program, as script= of a disk; by hand there is `prepare'"
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
    if let Verb::Prepare { target } = verb {
        let images = ClosureImages::default();
        let image = images.make(&images.store_path(target)?)?;
        // Who asked may be gone.
        return match writeln!(io::stdout(), "{}", image.display()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
            _ => Ok(()),
        };
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

/// The image of a target, which another process makes when there is none.
fn image(target: &Path) -> Result<PathBuf, ClosureDiskError> {
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
