//! Devices in a configuration that is stored in libxl's JSON.

use crate::config::laid_out;
use serde_json::{Map, Value};

/// A list of devices in a configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum List {
    /// `disks`, known by their `vdev`.
    Disks,
    /// `nics`, known by their `devid`.
    Nics,
    /// `pcidevs`, known by their `name`, or by their address where they have none.
    Pcis,
}

impl List {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disks => "disks",
            Self::Nics => "nics",
            Self::Pcis => "pcidevs",
        }
    }

    fn is_keyed(self, device: &Value, key: &str) -> bool {
        match self {
            Self::Disks => device["vdev"] == key,
            Self::Nics => device["devid"].as_u64().is_some_and(|devid| devid.to_string() == key),
            Self::Pcis => {
                let part = |name: &str| device[name].as_u64().unwrap_or(0);
                let (bus, dev, func) = (part("bus"), part("dev"), part("func"));
                match device["name"].as_str() {
                    Some(name) => name == key,
                    None => format!("{:04x}:{bus:02x}:{dev:02x}.{func:x}", part("domain")) == key,
                }
            }
        }
    }
}

/// A stored configuration with a device in the place of one of that key, or without one.
pub(super) fn change(
    text: &str,
    list: List,
    key: &str,
    device: Option<Value>,
) -> Result<String, serde_json::Error> {
    let mut config: Map<String, Value> = serde_json::from_str(text)?;
    let mut devices = match config.get_mut(list.name()) {
        Some(Value::Array(devices)) => std::mem::take(devices),
        _ => Vec::new(),
    };
    devices.retain(|other| !list.is_keyed(other, key));
    devices.extend(device);
    if devices.is_empty() {
        config.shift_remove(list.name());
    } else {
        config.insert(list.name().to_owned(), devices.into());
    }
    Ok(laid_out(&config.into()))
}

#[cfg(test)]
mod tests {
    use super::super::{Disk, Nic, Vdev};
    use super::*;
    use crate::config::{disk_record, nic_record};
    use serde_json::json;

    #[test]
    fn defaults_are_left_out() {
        let plain = Disk::new("/img", Vdev::parse("xvda").unwrap());
        let expected = r#"{"pdev_path":"/img","vdev":"xvda","format":"raw","readwrite":1,"colo_restore_enable":"False"}"#;
        assert_eq!(disk_record(&(&plain).into()).to_string(), expected);
        let other = Disk { readonly: true, discard: Some(false), trusted: false, ..plain };
        let expected = r#"{"pdev_path":"/img","vdev":"xvda","format":"raw","discard_enable":"False","colo_restore_enable":"False","trusted":"False"}"#;
        assert_eq!(disk_record(&(&other).into()).to_string(), expected);
        let plain = Nic { devid: Some(0), bridge: Some("xenbr0".into()), ..Nic::default() };
        assert_eq!(nic_record(&(&plain).into()).to_string(), r#"{"devid":0,"bridge":"xenbr0"}"#);
    }

    #[test]
    fn a_stored_configuration_is_changed_in_one_place() {
        let stored = r#"{"c_info":{},"disks":[{"vdev":"xvda","x":1}],"on_reboot":"restart"}"#;
        let with = change(stored, List::Disks, "xvdb", Some(json!({"vdev": "xvdb"}))).unwrap();
        let compact = |text: &str| serde_json::from_str::<Value>(text).unwrap().to_string();
        assert_eq!(
            compact(&with),
            r#"{"c_info":{},"disks":[{"vdev":"xvda","x":1},{"vdev":"xvdb"}],"on_reboot":"restart"}"#
        );
        assert_eq!(compact(&change(&with, List::Disks, "xvdb", None).unwrap()), stored);
        let without = change(stored, List::Disks, "xvda", None).unwrap();
        assert_eq!(compact(&without), r#"{"c_info":{},"on_reboot":"restart"}"#);
        let with = change(&without, List::Nics, "3", Some(json!({"devid": 3}))).unwrap();
        assert_eq!(compact(&change(&with, List::Nics, "3", None).unwrap()), compact(&without));
        assert!(change("[]", List::Nics, "3", None).is_err());
    }
}
