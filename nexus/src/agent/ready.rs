//! What a qube says to dom0 when it is up: a node of its own xenstore folder, with the path of the system that it runs.

use std::io;
use std::path::Path;
use xen::host::Host;
use xen::{Platform, Transaction, Xenstore};

/// The node, as the guest names it (toolstack's `ready::READY`).
const READY: &str = "data/nexus/ready";
/// NixOS' link to the system that was booted.
const BOOTED: &str = "/run/booted-system";

/// Says that this qube is up.
///
/// # Errors
/// xenstored cannot be reached, or refuses.
pub fn report_ready() -> io::Result<()> {
    let store = Host.xenstore().map_err(io::Error::other)?;
    write(&*store, Path::new(BOOTED)).map_err(io::Error::other)
}

fn write(store: &dyn Xenstore, booted: &Path) -> xen::Result<()> {
    // What it runs is for people to read: that there is no such link is no reason to be taken for dead.
    let system = booted.read_link().ok().and_then(|path| path.into_os_string().into_string().ok());
    store.write(Transaction::NONE, READY, system.as_deref().unwrap_or("unknown").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::DomId;
    use xen::mock::Machine;

    #[test]
    fn what_runs_is_written_or_that_it_is_unknown() {
        let machine = Machine::new();
        let store = machine.domain(DomId(3)).xenstore().unwrap();
        let read = || store.read(Transaction::NONE, READY).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("booted-system");
        write(&*store, &link).unwrap();
        assert_eq!(read(), b"unknown");
        std::os::unix::fs::symlink("/nix/store/x", &link).unwrap();
        write(&*store, &link).unwrap();
        assert_eq!(read(), b"/nix/store/x");
    }
}
