//! A network interface: what is attached, and its records.

use super::address::Entries;
use super::{DeviceError, script_path, state};
use crate::config::{Mac, NicRate};
use std::str::FromStr;
use xen::DomId;

/// The script that libxl runs for an interface unless another is named. Here its work is done in this process; it is
/// recorded, so that libxl can detach what nxl attached.
pub(super) const SCRIPT: &str = "vif-bridge";
/// libxl's.
pub(super) const BRIDGE: &str = "xenbr0";
/// libxl's `LIBXL_DEVICE_NIC_MTU_DEFAULT`, at which the backend is told nothing.
const MTU: u32 = 1500;

impl FromStr for Mac {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let error = || DeviceError::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| (1..=2).contains(&part.len())).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() || text.contains('+') {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

/// A network interface to be attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// Its number; `None` for the next that is free.
    pub devid: Option<u32>,
    /// Its address; `None` for one drawn by lot.
    pub mac: Option<Mac>,
    /// The bridge that it is put on; `None` for xenbr0.
    pub bridge: Option<String>,
    /// The guest's addresses, separated by blanks: those that it may send from. The script enforces it.
    pub ip: Option<String>,
    /// The interface's name in the backend's domain, instead of vifDOMID.DEVID.
    pub vifname: Option<String>,
    /// The name or id of the domain with the backend; `None` for dom0.
    pub backend: Option<String>,
    /// The script that connects the interface, instead of what is done here.
    pub script: Option<String>,
    /// What the script `vif-route` is told of the way out.
    pub gatewaydev: Option<String>,
    /// The most that it may send; `None` for no limit.
    pub rate: Option<NicRate>,
    /// Its MTU; `None` for the bridge's.
    pub mtu: Option<u32>,
    /// Whether the guest trusts the backend.
    pub trusted: bool,
}

impl Default for Nic {
    /// libxl's.
    fn default() -> Self {
        Self {
            devid: None,
            mac: None,
            bridge: None,
            ip: None,
            vifname: None,
            backend: None,
            script: None,
            gatewaydev: None,
            rate: None,
            mtu: None,
            trusted: true,
        }
    }
}

impl Nic {
    /// The same with number and address, where they are not given.
    #[must_use]
    pub fn settled(&self, devid: u32) -> Self {
        Self {
            devid: Some(self.devid.unwrap_or(devid)),
            mac: Some(self.mac.unwrap_or_else(Mac::random)),
            ..self.clone()
        }
    }

    /// The bridge that it is put on.
    #[must_use]
    pub fn bridge(&self) -> &str {
        self.bridge.as_deref().unwrap_or(BRIDGE)
    }

    /// The script that is run for it. Filters for the guest's addresses are the default script's to make.
    pub(super) fn script_to_run(&self) -> Option<String> {
        match (&self.script, &self.ip) {
            (Some(script), _) => Some(script_path(script)),
            (None, Some(_)) => Some(script_path(SCRIPT)),
            (None, None) => None,
        }
    }

    /// As libxl writes it (libxl_nic.c, libxl__set_xenstore_nic). It must be [settled](Self::settled).
    pub(super) fn entries(&self, domid: DomId, backend: DomId) -> Entries {
        let word = |word: &str| word.to_owned();
        let devid = self.devid.unwrap_or_default().to_string();
        let mac = self.mac.unwrap_or(Mac([0; 6])).to_string();
        let mtu = self.mtu.unwrap_or(MTU);
        let mut back = vec![
            ("frontend-id", domid.to_string()),
            ("online", word("1")),
            ("state", word(state::INITIALISING)),
            ("script", script_path(self.script.as_deref().unwrap_or(SCRIPT))),
        ];
        back.extend(self.vifname.clone().map(|name| ("vifname", name)));
        back.push(("mac", mac.clone()));
        back.extend(self.ip.clone().map(|ip| ("ip", ip)));
        back.extend(self.gatewaydev.clone().map(|device| ("gatewaydev", device)));
        back.extend(
            self.rate.map(|rate| ("rate", format!("{},{}", rate.bytes_per_interval, rate.interval_usecs))),
        );
        back.extend(Some(mtu).filter(|mtu| *mtu != MTU).map(|mtu| ("mtu", mtu.to_string())));
        back.push(("bridge", word(self.bridge())));
        back.push(("handle", devid.clone()));
        back.push(("type", word("vif")));
        // netback waits with the connection until this says that the interface is where it belongs.
        back.push(("hotplug-status", String::new()));
        let front = vec![
            ("backend-id", backend.to_string()),
            ("state", word(state::INITIALISING)),
            ("handle", devid),
            ("mac", mac),
            ("trusted", word(if self.trusted { "1" } else { "0" })),
        ];
        Entries { front, read_only_front: vec![("mtu", mtu.to_string())], back, hotplug: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_six_bytes() {
        assert_eq!("00:16:3e:00:ab:CD".parse::<Mac>().unwrap().to_string(), "00:16:3e:00:ab:cd");
        assert_eq!("0:16:3e:0:1:2".parse::<Mac>().unwrap().0, [0, 0x16, 0x3e, 0, 1, 2]);
        for bad in [
            "",
            "00:16:3e:00:00",
            "00:16:3e:00:00:00:00",
            "00:16:3e:00:00:0g",
            "00:16:3e:00:00:",
            "+1:1:1:1:1:1",
        ] {
            assert!(matches!(bad.parse::<Mac>(), Err(DeviceError::Mac(_))), "{bad}");
        }
    }

    #[test]
    fn drawn_addresses_are_xens_and_differ() {
        let drawn: Vec<Mac> = (0..8).map(|_| Mac::random()).collect();
        assert!(drawn.iter().all(|mac| mac.0[..3] == [0x00, 0x16, 0x3e] && mac.0[3] < 0x80));
        assert!(drawn.iter().any(|mac| *mac != drawn[0]));
    }
}
