//! Disks and network interfaces as `xl` spells them (xl-disk-configuration.5, xl-network-configuration.5).

use super::{DeviceError, Disk, Nic, Rate, Vdev};

/// Reads a disk from one or several strings, whose parts are `KEY=VALUE` or stand in the order target, format, vdev,
/// access; a `target=` is the rest of its string.
///
/// # Errors
/// [`DeviceError::Spec`], or [`DeviceError::Vdev`].
pub fn disk<T: AsRef<str>>(specs: &[T]) -> Result<Disk, DeviceError> {
    let mut parts = DiskParts::default();
    for spec in specs {
        let error = |problem: String| DeviceError::Spec { spec: spec.as_ref().to_owned(), problem };
        let mut rest = spec.as_ref().trim_start();
        while !rest.is_empty() {
            let (part, after) = match rest.strip_prefix("target=") {
                Some(_) => (rest, ""),
                None => rest.split_once(',').unwrap_or((rest, "")),
            };
            parts.take(part.trim_end()).map_err(error)?;
            rest = after.trim_start();
        }
    }
    let spec = || specs.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
    let missing = |what: &str| DeviceError::Spec { spec: spec(), problem: format!("{what} is missing") };
    let vdev = parts.vdev.ok_or_else(|| missing("the virtual disk (vdev=xvda)"))?;
    let target = parts.target.filter(|target| !target.is_empty());
    Ok(Disk {
        readonly: parts.readonly.unwrap_or(false),
        backend: parts.backend,
        script: parts.script,
        discard: parts.discard,
        direct_io_safe: parts.direct_io_safe,
        trusted: parts.trusted.unwrap_or(true),
        ..Disk::new(target.ok_or_else(|| missing("the target"))?, Vdev::parse(&vdev)?)
    })
}

#[derive(Default)]
struct DiskParts {
    target: Option<String>,
    format: Option<()>,
    vdev: Option<String>,
    readonly: Option<bool>,
    backend: Option<String>,
    script: Option<String>,
    discard: Option<bool>,
    direct_io_safe: bool,
    trusted: Option<bool>,
}

impl DiskParts {
    fn take(&mut self, part: &str) -> Result<(), String> {
        match part.split_once('=') {
            Some(("target", target)) => self.target = Some(target.to_owned()),
            Some(("format", format)) => self.format(format)?,
            Some(("vdev", vdev)) => self.vdev(vdev)?,
            Some(("access", access)) => self.access(access)?,
            Some(("backend", backend)) => self.backend = Some(backend.to_owned()),
            Some(("script", script)) => self.script = Some(script.to_owned()),
            Some(("devtype", "disk")) | Some(("backendtype", "phy")) | Some(("specification", "xen")) => {}
            Some(("devtype", "cdrom")) => return Err(NO_CDROM.to_owned()),
            Some(("backendtype", other)) => {
                return Err(format!(
                    "backendtype {other} is not supported: phy is (xl starts qemu for qdisk)"
                ));
            }
            Some((key, _)) => return Err(format!("`{key}' is not supported")),
            None => self.word(part)?,
        }
        Ok(())
    }

    fn word(&mut self, part: &str) -> Result<(), String> {
        match part {
            "cdrom" => Err(NO_CDROM.to_owned()),
            "discard" => self.set_discard(true),
            "no-discard" => self.set_discard(false),
            "direct-io-safe" => {
                self.direct_io_safe = true;
                Ok(())
            }
            "trusted" | "untrusted" => {
                self.trusted = Some(part == "trusted");
                Ok(())
            }
            part if self.target.is_none() => {
                let prefixed = ["phy:", "file:", "raw:"].iter().find_map(|prefix| part.strip_prefix(prefix));
                if prefixed.is_some_and(|target| target.starts_with('/')) {
                    self.format = Some(());
                }
                self.target = Some(prefixed.unwrap_or(part).to_owned());
                Ok(())
            }
            part if self.format.is_none() => self.format(part),
            part if self.vdev.is_none() => self.vdev(part),
            part if self.readonly.is_none() => self.access(part),
            part => Err(format!("`{part}' is one part too many")),
        }
    }

    fn set_discard(&mut self, discard: bool) -> Result<(), String> {
        self.discard = Some(discard);
        Ok(())
    }

    fn format(&mut self, format: &str) -> Result<(), String> {
        match format {
            "" | "raw" => {
                self.format = Some(());
                Ok(())
            }
            "qcow" | "qcow2" | "vhd" | "qed" => {
                Err(format!("format {format} is not supported: raw is (xl starts qemu for the others)"))
            }
            other => Err(format!("`{other}' is no format")),
        }
    }

    fn vdev(&mut self, vdev: &str) -> Result<(), String> {
        let vdev = match vdev.rsplit_once(':') {
            Some((_, "cdrom")) => return Err(NO_CDROM.to_owned()),
            Some((vdev, "disk")) => vdev,
            _ => vdev,
        };
        self.vdev = Some(vdev.to_owned());
        Ok(())
    }

    fn access(&mut self, access: &str) -> Result<(), String> {
        self.readonly = Some(match access {
            "r" | "ro" => true,
            "" | "w" | "rw" => false,
            other => return Err(format!("access is r, ro, w or rw, not `{other}'")),
        });
        Ok(())
    }
}

const NO_CDROM: &str = "a PVH or PV qube has no CD drive: attach the image as a disk, read-only";

/// Reads a network interface from its parts, which `vif=['…']` separates by commas.
///
/// # Errors
/// [`DeviceError::Spec`], or [`DeviceError::Mac`].
pub fn nic<T: AsRef<str>>(parts: &[T]) -> Result<Nic, DeviceError> {
    let mut nic = Nic::default();
    for part in parts {
        let part = part.as_ref().trim();
        let error = |problem: &str| DeviceError::Spec { spec: part.to_owned(), problem: problem.to_owned() };
        let number = |text: &str| text.parse().map_err(|_| error("it is no number"));
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let text = || Some(value.to_owned());
        match key {
            "" if value.is_empty() => {}
            "type" if value == "vif" => {}
            "type" => return Err(error("a PVH or PV qube has only interfaces of type vif")),
            "mac" => nic.mac = Some(value.parse()?),
            "bridge" => nic.bridge = text(),
            "ip" => nic.ip = text(),
            "script" => nic.script = text(),
            "backend" => nic.backend = text(),
            "vifname" => nic.vifname = text(),
            "gatewaydev" | "netdev" => nic.gatewaydev = text(),
            "rate" => {
                nic.rate = Some(rate(value).ok_or_else(|| error("it is no rate: 10Mb/s, or 1MB/s@20ms"))?)
            }
            "mtu" => nic.mtu = Some(number(value)?),
            "devid" => nic.devid = Some(number(value)?),
            // What an emulated card would be is of no matter here.
            "model" | "accel" => {}
            "trusted" | "untrusted" if value.is_empty() => nic.trusted = key == "trusted",
            _ => return Err(error("xl knows no such part of an interface")),
        }
    }
    Ok(nic)
}

/// `10Mb/s`, `1GB/s@20ms`: bits or bytes, in thousands (libxlu_vif.c); the interval is 50 ms unless it is said.
fn rate(text: &str) -> Option<Rate> {
    let (amount, interval) = text.split_once('@').unwrap_or((text, "50ms"));
    let unit = |text: &str, units: &[(&str, u64)]| {
        let (name, factor) =
            units.iter().filter(|(name, _)| text.ends_with(name)).max_by_key(|(name, _)| name.len())?;
        text.strip_suffix(name)?.parse::<u64>().ok()?.checked_mul(*factor)
    };
    let (bits, bytes) = (amount.strip_suffix("b/s"), amount.strip_suffix("B/s"));
    const THOUSANDS: [(&str, u64); 4] = [("", 1), ("K", 1_000), ("M", 1_000_000), ("G", 1_000_000_000)];
    let bytes_per_second = match (bits, bytes) {
        (Some(bits), _) => unit(bits, &THOUSANDS)? / 8,
        (_, Some(bytes)) => unit(bytes, &THOUSANDS)?,
        _ => return None,
    };
    let microseconds = unit(interval, &[("us", 1), ("ms", 1_000), ("s", 1_000_000)])?;
    let bytes = u128::from(bytes_per_second) * u128::from(microseconds) / 1_000_000;
    let rate = Rate { bytes: bytes.try_into().ok()?, microseconds: microseconds.try_into().ok()? };
    (rate.bytes > 0 && rate.microseconds > 0).then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_of(spec: &str) -> Result<Disk, String> {
        disk(&[spec]).map_err(|error| error.to_string())
    }

    #[test]
    fn all_spellings_of_a_disk_are_one() {
        let expected = Disk { readonly: true, ..Disk::new("/img/a", Vdev::parse("xvda").unwrap()) };
        for spec in [
            "/img/a,raw,xvda,r",
            "/img/a, raw, xvda, ro",
            "/img/a,,xvda,r",
            "format=raw,vdev=xvda,access=ro,target=/img/a",
            "vdev=xvda, access=r, /img/a",
            "phy:/img/a,xvda,r",
            "file:/img/a,xvda,r",
            "/img/a,raw,xvda:disk,r,devtype=disk,backendtype=phy",
        ] {
            assert_eq!(disk_of(spec).as_ref(), Ok(&expected), "{spec}");
        }
        assert_eq!(disk(&["/img/a", "raw,xvda", "r"]).unwrap(), expected);
        assert_eq!(disk_of("vdev=xvda,target=/a,b=c").unwrap().target, "/a,b=c");
        assert_eq!(
            disk_of("script=block-nix,vdev=xvda,target=x:y").unwrap().script.as_deref(),
            Some("block-nix")
        );
        let other = disk_of("/a,raw,xvdb,rw,no-discard,direct-io-safe,untrusted,backend=sys-disk").unwrap();
        assert_eq!((other.discard, other.direct_io_safe, other.trusted), (Some(false), true, false));
        assert_eq!((other.readonly, other.backend.as_deref()), (false, Some("sys-disk")));
    }

    #[test]
    fn what_describes_no_disk_is_refused() {
        for (spec, problem) in [
            ("/img/a,raw", "virtual disk (vdev=xvda) is missing"),
            (",raw,xvda", "the target is missing"),
            ("/img/a,qcow2,xvda", "qcow2 is not supported"),
            ("/img/a,rwa,xvda", "no format"),
            ("/img/a,raw,xvda,x", "access is"),
            ("/img/a,raw,xvda,r,more", "one part too many"),
            ("/img/a,raw,xvda,cdrom", "no CD drive"),
            ("/img/a,raw,hdc:cdrom,r", "no CD drive"),
            ("/img/a,raw,xvda,backendtype=qdisk", "qdisk is not supported"),
            ("/img/a,raw,xvda,colour=red", "`colour' is not supported"),
            ("/img/a,raw,vda", "no virtual disk"),
        ] {
            let error = disk_of(spec).unwrap_err();
            assert!(error.contains(problem), "{spec}: {error}");
        }
    }

    #[test]
    fn interfaces_are_read() {
        let parts = [
            "mac=00:16:3e:00:00:01",
            "bridge=br1",
            "vifname=work0",
            "mtu=1400",
            "rate=1MB/s@20ms",
            "untrusted",
        ];
        let nic = nic(&parts).unwrap();
        assert_eq!(nic.mac.unwrap().to_string(), "00:16:3e:00:00:01");
        assert_eq!((nic.bridge(), nic.vifname.as_deref(), nic.mtu), ("br1", Some("work0"), Some(1400)));
        assert_eq!(nic.rate, Some(Rate { bytes: 20_000, microseconds: 20_000 }));
        assert!(!nic.trusted);
        assert_eq!(super::nic(&[""]).unwrap(), Nic::default());
        for bad in ["mac=x", "type=ioemu", "mtu=big", "rate=fast", "rate=1", "colour=red", "rate=0b/s"] {
            assert!(super::nic(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(rate("10Mb/s"), Some(Rate { bytes: 62_500, microseconds: 50_000 }));
    }
}
