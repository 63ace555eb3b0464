//! What `/etc/xen/xl.conf` says to commands of ours. A host without one says nothing.

use crate::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use toolstack::config::Settings;

const FILE: &str = "/etc/xen/xl.conf";

fn read(path: &Path) -> Result<Option<Settings>, Error> {
    match fs::read(path) {
        Ok(text) => Ok(Some(Settings::parse(&path.display().to_string(), &text, &[""; 0])?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

/// The CPUs that vCPUs are to keep to, of a PV or of a hardware-virtualised domain: each set of them.
pub(crate) fn cpu_masks(hvm: bool) -> Result<Vec<String>, Error> {
    masks_in(Path::new(FILE), hvm)
}

fn masks_in(path: &Path, hvm: bool) -> Result<Vec<String>, Error> {
    let settings = read(path)?;
    let names = ["vm.cpumask", if hvm { "vm.hvm.cpumask" } else { "vm.pv.cpumask" }];
    Ok(settings
        .iter()
        .flat_map(|settings| names.map(|name| settings.text(name)))
        .flatten()
        .map(str::to_owned)
        .collect())
}

/// Whether memory is claimed before it is given to a new domain; by default it is.
pub(crate) fn claims_memory() -> Result<bool, Error> {
    Ok(read(Path::new(FILE))?.is_none_or(|settings| settings.text("claim_mode") != Some("0")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_by_kind_of_domain() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("xl.conf");
        assert!(masks_in(&path, true).unwrap().is_empty());
        fs::write(&path, "#vm.cpumask=\"0\"\nvm.cpumask=\"0-3\"\nvm.pv.cpumask=\"2\"\n").unwrap();
        assert_eq!(masks_in(&path, true).unwrap(), ["0-3"]);
        assert_eq!(masks_in(&path, false).unwrap(), ["0-3", "2"]);
    }
}
