//! `nxl pci-assignable-add`, `pci-assignable-list` and `pci-assignable-remove`, in `xl`'s columns.

use crate::error::Error;
use std::io::{self, Write};
use toolstack::pciback::{self, Assignable, KernelSysfs, Pciback, PcibackError};
use toolstack::qubes::Qubes;

pub(crate) fn add(qubes: &Qubes, device: &str, name: Option<&str>) -> Result<(), Error> {
    let address = pciback::parse_address(device).ok_or_else(|| PcibackError::Unknown(device.to_owned()))?;
    Ok(Pciback::new(qubes, &KernelSysfs).add(address, name)?)
}

pub(crate) fn remove(qubes: &Qubes, device: &str, rebind: bool) -> Result<(), Error> {
    Ok(Pciback::new(qubes, &KernelSysfs).remove(device, rebind)?)
}

pub(crate) fn list(qubes: &Qubes, names: bool) -> Result<(), Error> {
    let assignable = Pciback::new(qubes, &KernelSysfs).list()?;
    let text: String = assignable.iter().map(|found| row(found, names)).collect();
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

/// The blank before no name is xl's.
fn row(found: &Assignable, names: bool) -> String {
    let name = found.name.as_deref().filter(|_| names).unwrap_or_default();
    format!("{} {name}\n", found.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_name_only_when_it_is_asked_for() {
        let device = pciback::parse_address("03:00.0").unwrap();
        let found = Assignable { device, name: Some("wan".to_owned()) };
        assert_eq!(
            (row(&found, false).as_str(), row(&found, true).as_str()),
            ("0000:03:00.0 \n", "0000:03:00.0 wan\n")
        );
        assert_eq!(row(&Assignable { name: None, ..found }, true), "0000:03:00.0 \n");
    }
}
