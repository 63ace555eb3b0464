//! A network interface as `vif = [ "…" ]` and `network-attach` describe it (xl-network-configuration(5)).
//!
//! The text is a row of `key=value` with commas between them. `xl` passes over a part of a `vif` that it cannot read, with a
//! remark on its standard error; here that is an error, since the interface would not be the one that was asked for.

use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// The interval of a rate limit without `@`, in microseconds.
const DEFAULT_INTERVAL_USECS: u32 = 50_000;

/// What is wrong with an interface's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NicError {
    /// Something that is no parameter.
    #[error("an interface has no parameter `{0}'")]
    Parameter(String),
    /// A parameter's value that is none of those that it takes.
    #[error("`{parameter}' of an interface is {expected}, not {given:?}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        given: String,
    },
    /// An emulated card.
    #[error("`type=ioemu' of an interface is for HVM guests")]
    Emulated,
    /// A parameter of COLO, the replication of a running guest to a second host.
    #[error("`{0}' of an interface is for COLO replication, which nxl does not do")]
    Colo(String),
}

/// What the guest's interface is (`libxl_nic_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicType {
    /// A Xen network device alone.
    Vif,
    /// The same and an emulated card: for HVM guests.
    Ioemu,
}

impl NicType {
    /// As it is written in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vif => "vif",
            Self::Ioemu => "ioemu",
        }
    }
}

/// An Ethernet address: `00:16:3e:01:02:03` when printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// One drawn by lot below Xen's prefix, 00:16:3e, as libxl draws it.
    #[must_use]
    pub fn random() -> Self {
        let drawn = Uuid::new_v4().into_bytes();
        Self([0x00, 0x16, 0x3e, drawn[0] & 0x7f, drawn[1], drawn[2]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// How much the guest may send: so many bytes in each interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRate {
    /// Bytes in each interval.
    pub bytes_per_interval: u64,
    /// The interval's length, in microseconds; not 0.
    pub interval_usecs: u32,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NicConfig {
    /// Its number; `None` for its place in the list, or the next one that is free.
    pub devid: Option<u32>,
    /// Its address; `None` to make one up. The address 0 is none.
    pub mac: Option<Mac>,
    /// The bridge in the backend domain; `None` for the script's choice.
    pub bridge: Option<String>,
    /// The device that `vif-route` and `vif-nat` route to.
    pub gatewaydev: Option<String>,
    /// Addresses that the guest may use, for the script; separated by spaces.
    pub ip: Option<String>,
    /// The program that sets the backend's half up. A relative path is one below /etc/xen/scripts.
    pub script: Option<String>,
    /// The domain that serves it, by name or number; `None` for dom0.
    pub backend: Option<String>,
    /// The backend device's name (`vifname`); `None` for `vif`, domid, `.`, devid.
    pub name: Option<String>,
    /// What the guest's interface is; `None` for the default of the guest's type.
    pub kind: Option<NicType>,
    /// The emulated card, for HVM guests.
    pub model: Option<String>,
    /// The largest packet, in bytes; `None` for the backend's default.
    pub mtu: Option<u32>,
    /// How much the guest may send; `None` for no limit.
    pub rate: Option<NicRate>,
    /// Whether the guest trusts the backend; `None` for the default, which is to trust it.
    pub trusted: Option<bool>,
}

impl NicConfig {
    /// Reads an interface's text. An empty one is an interface with nothing but defaults.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// ```
    /// use toolstack::config::NicConfig;
    ///
    /// let nic = NicConfig::parse("mac=00:16:3e:01:02:03, bridge=xenbr0, rate=10Mb/s@20ms")?;
    /// assert_eq!(nic.mac.map(|mac| mac.to_string()).as_deref(), Some("00:16:3e:01:02:03"));
    /// assert_eq!(nic.rate.map(|rate| rate.bytes_per_interval), Some(25_000));
    /// # Ok::<(), toolstack::config::NicError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, NicError> {
        let mut nic = Self::default();
        for parameter in text.split(',') {
            nic.add(parameter.trim_start_matches(' '))?;
        }
        Ok(nic)
    }

    /// Reads an interface from several texts, as `network-attach` has them in its arguments: one parameter in each.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn parse_words<S: AsRef<str>>(texts: &[S]) -> Result<Self, NicError> {
        let mut nic = Self::default();
        texts.iter().try_for_each(|text| nic.add(text.as_ref()))?;
        Ok(nic)
    }

    /// Reads an interface's text for a guest without emulated hardware.
    pub(super) fn parse_paravirtual(text: &str) -> Result<Self, NicError> {
        let nic = Self::parse(text)?;
        if nic.kind == Some(NicType::Ioemu) { Err(NicError::Emulated) } else { Ok(nic) }
    }

    /// Reads one parameter. One that was there before is replaced.
    fn add(&mut self, parameter: &str) -> Result<(), NicError> {
        let unknown = || NicError::Parameter(parameter.to_owned());
        let Some((key, value)) = parameter.split_once('=') else {
            match parameter {
                "" => (),
                "trusted" => self.trusted = Some(true),
                "untrusted" => self.trusted = Some(false),
                _ => return Err(unknown()),
            }
            return Ok(());
        };
        let text = || Some(value.to_owned());
        match key {
            "type" => self.kind = Some(kind(value)?),
            "mac" => self.mac = Some(mac(value)?),
            "bridge" => self.bridge = text(),
            // Its name until Xen 4.3.
            "gatewaydev" | "netdev" => self.gatewaydev = text(),
            "ip" => self.ip = text(),
            "script" => self.script = text(),
            "backend" => self.backend = text(),
            "vifname" => self.name = text(),
            "model" => self.model = text(),
            "rate" => self.rate = Some(rate(value)?),
            "devid" => self.devid = Some(number("devid", value)?),
            "mtu" => self.mtu = Some(number("mtu", value)?),
            "forwarddev" => return Err(NicError::Colo(key.to_owned())),
            _ if key.starts_with("colo_") => return Err(NicError::Colo(key.to_owned())),
            _ => return Err(unknown()),
        }
        Ok(())
    }
}

fn wrong(parameter: &'static str, expected: &'static str, given: &str) -> NicError {
    NicError::Value { parameter, expected, given: given.to_owned() }
}

fn kind(text: &str) -> Result<NicType, NicError> {
    [NicType::Vif, NicType::Ioemu]
        .into_iter()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| wrong("type", "vif or ioemu", text))
}

/// Six numbers of one or two hexadecimal digits. (`xl` takes any character between them, and whatever `strtoul` takes.)
fn mac(text: &str) -> Result<Mac, NicError> {
    let byte = |text: &str| {
        let digits = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u8::from_str_radix(text, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.splitn(7, [':', '-']).map(byte).collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map(Mac)
        .ok_or_else(|| wrong("mac", "an address like 00:16:3e:01:02:03", text))
}

fn number(parameter: &'static str, text: &str) -> Result<u32, NicError> {
    // What libxl keeps it in.
    let number = text.parse().ok().filter(|number| i32::try_from(*number).is_ok());
    number
        .filter(|_| !text.starts_with('+'))
        .ok_or_else(|| wrong(parameter, "a number from 0 to 2147483647", text))
}

/// Reads a rate limit, `10Mb/s@20ms`, with the arithmetic of tools/libs/util/libxlu_vif.c.
fn rate(text: &str) -> Result<NicRate, NicError> {
    const EXPECTED: &str = "a limit like 10MB/s, 500Kb/s or 1GB/s@20ms";
    let parse = || {
        let (bytes, interval) = match text.split_once('@') {
            Some((bytes, interval)) => (bytes, Some(interval)),
            None => (text, None),
        };
        let bytes_per_second = bytes_per_second(bytes)?;
        let interval_usecs = interval.map_or(Some(DEFAULT_INTERVAL_USECS), interval_usecs)?;
        let bytes_per_interval = bytes_per_second.checked_mul(interval_usecs.into())? / 1_000_000;
        Some(NicRate { bytes_per_interval, interval_usecs })
    };
    parse().ok_or_else(|| wrong("rate", EXPECTED, text))
}

fn bytes_per_second(text: &str) -> Option<u64> {
    let (number, unit) = leading_number(text)?;
    let unit = unit.strip_suffix("/s")?;
    let (factor, unit) = match unit.as_bytes().first()? {
        b'G' => (1_000_000_000, &unit[1..]),
        b'M' => (1_000_000, &unit[1..]),
        b'K' => (1_000, &unit[1..]),
        _ => (1, unit),
    };
    match unit {
        "B" => Some(number * factor),
        "b" => Some(number * factor / 8),
        _ => None,
    }
}

fn interval_usecs(text: &str) -> Option<u32> {
    let (number, unit) = leading_number(text)?;
    let factor = match unit {
        "" | "s" => 1_000_000,
        "m" | "ms" => 1_000,
        "u" | "us" => 1,
        _ => return None,
    };
    (number * factor).try_into().ok()
}

/// A number from 1 to 2^32 - 1, so that no factor used here makes it overflow, and what follows it. As `strtoull` with base
/// 0 reads it, it is octal when it begins with 0.
fn leading_number(text: &str) -> Option<(u64, &str)> {
    let (digits, rest) = text.split_at(text.find(|byte: char| !byte.is_ascii_digit()).unwrap_or(text.len()));
    let radix = if digits.starts_with('0') { 8 } else { 10 };
    let number = u64::from_str_radix(digits, radix).ok()?;
    (1..=u32::MAX.into()).contains(&number).then_some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::super::cpu_time::assert_takes_at_most;
    use super::*;
    use proptest::prelude::*;

    fn nic(text: &str) -> NicConfig {
        NicConfig::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    fn error(text: &str) -> String {
        NicConfig::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn every_parameter_is_read() {
        let text = "devid=3,mac=00:16:3E:0:a:ff,bridge=xenbr0, gatewaydev=eth0,ip=10.0.0.2 10.0.0.3,script=vif-route,\
                    backend=net,vifname=work0,type=vif,model=e1000,mtu=9000,rate=1MB/s,untrusted";
        let text_of = |text: &str| Some(text.to_owned());
        let expected = NicConfig {
            devid: Some(3),
            mac: Some(Mac([0, 0x16, 0x3e, 0, 10, 255])),
            bridge: text_of("xenbr0"),
            gatewaydev: text_of("eth0"),
            ip: text_of("10.0.0.2 10.0.0.3"),
            script: text_of("vif-route"),
            backend: text_of("net"),
            name: text_of("work0"),
            kind: Some(NicType::Vif),
            model: text_of("e1000"),
            mtu: Some(9000),
            rate: Some(NicRate { bytes_per_interval: 50_000, interval_usecs: 50_000 }),
            trusted: Some(false),
        };
        assert_eq!(nic(text), expected);
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        assert_eq!(NicConfig::parse_words(&words), Ok(expected));
        assert_eq!(nic(""), NicConfig::default());
        assert_eq!(nic(",, ,bridge=a,bridge=b,").bridge, text_of("b"));
        assert_eq!(nic("netdev=eth1,trusted").gatewaydev, text_of("eth1"));
        assert_eq!(nic("type=ioemu").kind, Some(NicType::Ioemu));
    }

    #[test]
    fn rates_are_those_of_libxlutil() {
        let rate = |text: &str| {
            let rate = nic(&format!("rate={text}")).rate.unwrap();
            (rate.bytes_per_interval, rate.interval_usecs)
        };
        assert_eq!(rate("10Mb/s"), (62_500, 50_000));
        assert_eq!(rate("10MB/s@1"), (10_000_000, 1_000_000));
        assert_eq!(rate("1GB/s@20ms"), (20_000_000, 20_000));
        assert_eq!(rate("1000B/s@50us"), (0, 50));
        assert_eq!(rate("8b/s@4s"), (4, 4_000_000));
        assert_eq!(rate("010KB/s@010m"), (64, 8_000));
        assert_eq!(rate("4294967295GB/s@4u"), (17_179_869_180_000, 4));
        for wrong in [
            "",
            "10",
            "10MB",
            "MB/s",
            "0MB/s",
            "08MB/s",
            "-1MB/s",
            "1mB/s",
            "1.5MB/s",
            "1MB/s@",
            "1MB/s@0",
            "1MB/s@1h",
            "1MB/s@ms",
            "1MB/s@4295",
            "4294967296B/s",
            "4294967295GB/s@4294s",
            "1MB/sx",
            "1MB/s@1@1",
            "1é/s",
        ] {
            assert!(
                error(&format!("rate={wrong}")).starts_with("`rate' of an interface is a limit like"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(error("brigde=x"), "an interface has no parameter `brigde=x'");
        assert_eq!(error("xenbr0"), "an interface has no parameter `xenbr0'");
        assert_eq!(error("type=e1000"), "`type' of an interface is vif or ioemu, not \"e1000\"");
        for wrong in [
            "",
            "0",
            "1:2:3:4:5",
            "1:2:3:4:5:6:7",
            "1:2:3:4:5:100",
            "1:2:3:4:5:g",
            "1:2::4:5:6",
            "00163e010203",
        ] {
            assert!(
                error(&format!("mac={wrong}")).starts_with("`mac' of an interface is an address"),
                "{wrong}"
            );
        }
        assert!(error("mtu=big").starts_with("`mtu' of an interface is a number"));
        assert!(error("devid=-1").starts_with("`devid' of an interface is a number"));
        assert!(error("devid=+1").starts_with("`devid' of an interface is a number"));
        assert!(error("colo_checkpoint_host=x").contains("COLO"));
        assert!(error("forwarddev=x").contains("COLO"));
    }

    #[test]
    fn a_long_text_takes_no_longer_than_its_length() {
        assert_takes_at_most(4, || {
            for piece in [",", "a=", "rate=1", "mac=1:", " ", "bridge=x,", "1"] {
                let _ = NicConfig::parse(&piece.repeat(1 << 16));
            }
            let _ = NicConfig::parse(&format!("rate={}", "9".repeat(1 << 16)));
        });
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text in any::<String>(), value in "[0-9GMKBbus/@.:-]{0,12}") {
            let _ = NicConfig::parse(&text);
            let _ = NicConfig::parse(&format!("rate={value},mac={value},mtu={value}"));
        }

        #[test]
        fn an_address_is_read_as_it_is_printed(bytes: [u8; 6]) {
            prop_assert_eq!(nic(&format!("mac={}", Mac(bytes))).mac, Some(Mac(bytes)));
        }
    }
}
