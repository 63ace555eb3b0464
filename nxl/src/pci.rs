//! `nxl pci-attach`, `pci-detach` and `pci-list`, and `pci-assignable-add`, `pci-assignable-list` and
//! `pci-assignable-remove`, in `xl`'s columns.

use crate::error::Error;
use serde_json::{Value, json};
use std::io::{self, Write};
use toolstack::config::{PciConfig, PciOptions};
use toolstack::device::{AttachedPci, Release};
use toolstack::pciback::{self, Assignable, KernelSysfs, Pciback, PcibackError};
use toolstack::qubes::Qubes;

pub(crate) fn add(qubes: &Qubes, device: &str, name: Option<&str>) -> Result<(), Error> {
    let address = pciback::parse_address(device).ok_or_else(|| PcibackError::Unknown(device.to_owned()))?;
    Ok(Pciback::new(qubes, &KernelSysfs).add(address, name)?)
}

pub(crate) fn remove(qubes: &Qubes, device: &str, rebind: bool) -> Result<(), Error> {
    Ok(Pciback::new(qubes, &KernelSysfs).remove(device, rebind)?)
}

pub(crate) fn list(qubes: &Qubes, names: bool, as_json: bool) -> Result<(), Error> {
    let assignable = Pciback::new(qubes, &KernelSysfs).list()?;
    let object = |found: &Assignable| json!({ "device": found.device.to_string(), "name": found.name });
    let text = match as_json {
        true => format!("{:#}\n", assignable.iter().map(object).collect::<Value>()),
        false => assignable.iter().map(|found| row(found, names)).collect(),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

pub(crate) fn attach(qubes: &Qubes, which: &str, device: &str) -> Result<(), Error> {
    let config = PciConfig::parse(device, PciOptions::default())?;
    Ok(qubes.attach_pci(&qubes.find(which)?, &config)?)
}

pub(crate) fn detach(qubes: &Qubes, which: &str, device: &str, force: bool) -> Result<(), Error> {
    let config = PciConfig::parse(device, PciOptions::default())?;
    let release = if force { Release::Forced } else { Release::Asked };
    Ok(qubes.detach_pci(&qubes.find(which)?, &config.device, release)?)
}

pub(crate) fn list_attached(qubes: &Qubes, as_json: bool, which: &str) -> Result<(), Error> {
    let attached = qubes.list_pcis(&qubes.find(which)?)?;
    let object = |pci: &AttachedPci| {
        let place = format!("{:02x}.{:x}", pci.vdevfn >> 3, pci.vdevfn & 7);
        json!({ "vdev": place, "device": pci.device.to_string(), "name": pci.name })
    };
    let text = match as_json {
        true => format!("{:#}\n", attached.iter().map(object).collect::<Value>()),
        false => table(&attached),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

/// As with xl, a qube without devices has no header either.
fn table(attached: &[AttachedPci]) -> String {
    let row = |pci: &AttachedPci| format!("{:02x}.{:x} {}\n", pci.vdevfn >> 3, pci.vdevfn & 7, pci.device);
    let header = if attached.is_empty() { "" } else { "Vdev Device\n" };
    header.to_owned() + &attached.iter().map(row).collect::<String>()
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
    fn a_device_is_listed_with_its_place_in_the_qube() {
        let device = pciback::parse_address("03:00.1").unwrap();
        let attached = AttachedPci { device, vdevfn: 0x29, name: None };
        assert_eq!(table(&[attached]), "Vdev Device\n05.1 0000:03:00.1\n");
        assert_eq!(table(&[]), "");
    }

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
