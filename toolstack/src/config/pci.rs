//! A PCI device as `pci = [ "…" ]` and `pci-attach` describe it (xl-pci-configuration(5)).

use serde::{Deserialize, Serialize};
use std::fmt;

/// What is wrong with a PCI device's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// No address.
    #[error(
        "a PCI device's address is [DOMAIN:]BUS:DEVICE.FUNCTION in hexadecimal digits, with * for all functions, not {0:?}"
    )]
    Address(String),
    /// No slot.
    #[error("`vslot' of a PCI device is 0 to 1f, not {0:?}")]
    Slot(String),
    /// Something that is no parameter.
    #[error("a PCI device has no parameter `{0}'")]
    Parameter(String),
    /// A parameter's value that is none of those that it takes.
    #[error("`{parameter}' of a PCI device is {expected}, not {given:?}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        given: String,
    },
    /// Neither an address nor a name, or both.
    #[error("a PCI device is given by its address or by its name, and not by both")]
    Which,
}

/// Where a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciAddress {
    /// The PCI domain, or segment.
    pub domain: u16,
    /// The bus.
    pub bus: u8,
    /// The device; 0 to 31.
    pub device: u8,
    /// The function, 0 to 7; `None` for all that the device has.
    pub function: Option<u8>,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.", self.domain, self.bus, self.device)?;
        match self.function {
            Some(function) => write!(f, "{function:x}"),
            None => f.write_str("*"),
        }
    }
}

/// Which device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PciDevice {
    /// By its address.
    Address(PciAddress),
    /// By the name that `pci-assignable-add` gave it.
    Name(String),
}

/// What happens to memory that the host's firmware reserved for a device (`libxl_rdm_reserve_policy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RdmPolicy {
    /// It must be reserved in the guest, too.
    #[default]
    Strict,
    /// It is reserved if that can be done.
    Relaxed,
}

/// The parameters that a file's keys `pci_…` set for all devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PciOptions {
    /// Whether the guest may write all of the configuration space.
    pub permissive: bool,
    /// Whether MSIs are shown to the guest as interrupts of a line.
    pub msitranslate: bool,
    /// Whether the guest may change the power state.
    pub power_mgmt: bool,
    /// Whether the device is taken from its driver in dom0 if it has one.
    pub seize: bool,
}

/// A PCI device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciConfig {
    /// Which one.
    pub device: PciDevice,
    /// The slot in the guest, 0 to 31; `None` for the next one that is free.
    pub slot: Option<u8>,
    /// How it is passed through.
    pub options: PciOptions,
    /// What happens to memory that the firmware reserved for it.
    pub rdm_policy: RdmPolicy,
}

impl PciConfig {
    /// Reads a PCI device's text. `options` are those that it does not set itself.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// ```
    /// use toolstack::config::{PciConfig, PciDevice, PciOptions};
    ///
    /// let pci = PciConfig::parse("03:10.1@4,permissive=1", PciOptions::default())?;
    /// assert!(matches!(pci.device, PciDevice::Address(address) if address.to_string() == "0000:03:10.1"));
    /// assert_eq!((pci.slot, pci.options.permissive), (Some(4), true));
    /// # Ok::<(), toolstack::config::PciError>(())
    /// ```
    pub fn parse(text: &str, options: PciOptions) -> Result<Self, PciError> {
        let (mut at, mut name, mut slot, mut options) = (None, None, None, options);
        let mut rdm_policy = RdmPolicy::default();
        for (place, part) in text.split(',').enumerate() {
            let Some((key, value)) = part.split_once('=') else {
                match part {
                    // A comma at the end is allowed, one at the beginning is not.
                    "" if place > 0 && text.ends_with(',') && text.split(',').count() == place + 1 => {
                        continue;
                    }
                    _ if place > 0 => return Err(PciError::Parameter(part.to_owned())),
                    _ => (),
                }
                let (bdf, vslot) = part.split_once('@').map_or((part, None), |(bdf, slot)| (bdf, Some(slot)));
                at = Some(address(bdf)?);
                slot = vslot.map(self::slot).transpose()?;
                continue;
            };
            match key {
                "bdf" => at = Some(address(value)?),
                "name" => name = Some(value.to_owned()),
                "vslot" => slot = Some(self::slot(value)?),
                "permissive" => options.permissive = flag("permissive", value)?,
                "msitranslate" => options.msitranslate = flag("msitranslate", value)?,
                "power_mgmt" => options.power_mgmt = flag("power_mgmt", value)?,
                "seize" => options.seize = flag("seize", value)?,
                "rdm_policy" => rdm_policy = policy(value)?,
                _ => return Err(PciError::Parameter(key.to_owned())),
            }
        }
        let device = match (at, name) {
            (Some(address), None) => PciDevice::Address(address),
            (None, Some(name)) => PciDevice::Name(name),
            _ => return Err(PciError::Which),
        };
        Ok(Self { device, slot, options, rdm_policy })
    }
}

fn address(text: &str) -> Result<PciAddress, PciError> {
    let parse = || {
        let (rest, function) = text.split_once('.')?;
        let mut parts = rest.split(':').rev();
        let (device, bus) = (hex(parts.next()?, 0x1f)?, hex(parts.next()?, 0xff)?);
        let domain = parts.next().map_or(Some(0), |domain| hex(domain, 0xffff))?;
        let function = if function == "*" { None } else { Some(hex(function, 7)?) };
        let whole = parts.next().is_none();
        // Each is within the limit that was asked for.
        whole.then_some(PciAddress {
            domain: domain as u16,
            bus: bus as u8,
            device: device as u8,
            function: function.map(|function| function as u8),
        })
    };
    parse().ok_or_else(|| PciError::Address(text.to_owned()))
}

fn slot(text: &str) -> Result<u8, PciError> {
    // At most 0x1f.
    hex(text, 0x1f).map(|slot| slot as u8).ok_or_else(|| PciError::Slot(text.to_owned()))
}

fn hex(text: &str, max: u32) -> Option<u32> {
    let digits = (1..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u32::from_str_radix(text, 16).ok().filter(|number| digits && *number <= max)
}

fn flag(parameter: &'static str, text: &str) -> Result<bool, PciError> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(PciError::Value { parameter, expected: "0 or 1", given: text.to_owned() }),
    }
}

fn policy(text: &str) -> Result<RdmPolicy, PciError> {
    match text.to_ascii_lowercase().as_str() {
        "strict" => Ok(RdmPolicy::Strict),
        "relaxed" => Ok(RdmPolicy::Relaxed),
        _ => {
            let (parameter, given) = ("rdm_policy", text.to_owned());
            Err(PciError::Value { parameter, expected: "strict or relaxed", given })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pci(text: &str) -> PciConfig {
        PciConfig::parse(text, PciOptions::default()).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    fn error(text: &str) -> String {
        PciConfig::parse(text, PciOptions::default()).unwrap_err().to_string()
    }

    #[test]
    fn one_device_can_be_written_in_many_ways() {
        for text in ["01:1f.7", "0000:01:1f.7", "1:1F.7,", "bdf=01:1f.7", "seize=0,bdf=0:1:1f.7"] {
            let PciDevice::Address(address) = pci(text).device else { panic!("{text:?}") };
            assert_eq!(address.to_string(), "0000:01:1f.7", "{text:?}");
        }
        assert_eq!(pci("name=gpu").device, PciDevice::Name("gpu".to_owned()));
    }

    #[test]
    fn every_parameter_is_read() {
        let read = pci("ffff:ff:1f.*@1f,permissive=1,msitranslate=1,power_mgmt=1,seize=1,rdm_policy=Relaxed");
        let address = PciAddress { domain: 0xffff, bus: 0xff, device: 0x1f, function: None };
        let options = PciOptions { permissive: true, msitranslate: true, power_mgmt: true, seize: true };
        let device = PciDevice::Address(address);
        assert_eq!(read, PciConfig { device, slot: Some(31), options, rdm_policy: RdmPolicy::Relaxed });
        let given = PciConfig::parse("1:0.0,seize=0,vslot=a", options).unwrap();
        assert_eq!((given.options, given.slot), (PciOptions { seize: false, ..options }, Some(10)));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for wrong in [
            "",
            "1",
            "01:1f",
            "01:1f.8",
            "01:20.0",
            "100:00.0",
            "10000:0:0.0",
            "0:0:0:0.0",
            "g:0.0",
            " 1:0.0",
            "1:0.0x",
            "+1:0.0",
            "1:0.",
            "0x1:0.0",
            ",1:0.0",
        ] {
            assert!(error(wrong).starts_with("a PCI device's address is"), "{wrong}");
        }
        assert!(error("1:0.0@20").starts_with("`vslot' of a PCI device is 0 to 1f"));
        assert!(error("1:0.0,vslot=").starts_with("`vslot' of a PCI device is 0 to 1f"));
        assert_eq!(error("1:0.0,rom=0"), "a PCI device has no parameter `rom'");
        assert_eq!(error("1:0.0,,seize=1"), "a PCI device has no parameter `'");
        assert_eq!(error("1:0.0,seize"), "a PCI device has no parameter `seize'");
        assert_eq!(error("1:0.0,seize=yes"), "`seize' of a PCI device is 0 or 1, not \"yes\"");
        assert!(
            error("1:0.0,rdm_policy=host").starts_with("`rdm_policy' of a PCI device is strict or relaxed")
        );
        assert!(error("1:0.0,name=gpu").contains("not by both"));
        assert!(error("seize=1").contains("by its address or by its name"));
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text in any::<String>(), near in "[0-9a-f:.*@,=]{0,20}") {
            let _ = PciConfig::parse(&text, PciOptions::default());
            let _ = PciConfig::parse(&near, PciOptions::default());
        }

        #[test]
        fn an_address_is_read_as_it_is_printed(domain: u16, bus: u8, device in 0_u8..32, function in proptest::option::of(0_u8..8)) {
            let address = PciAddress { domain, bus, device, function };
            prop_assert_eq!(pci(&address.to_string()).device, PciDevice::Address(address));
        }
    }
}
