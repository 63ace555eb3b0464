//! Disks and network interfaces of a configuration as what is attached, and back.

use super::{DeviceError, Disk, Nic, Vdev};
use crate::config::{DiskBackend, DiskConfig, DiskFormat, DiskSpecification, NicConfig, NicType};

/// Reads a disk from one or several texts, as `block-attach` has them.
///
/// # Errors
/// [`DeviceError::Spec`], or [`DeviceError::Vdev`].
pub fn disk<T: AsRef<str>>(specs: &[T]) -> Result<Disk, DeviceError> {
    let config = DiskConfig::parse_words(specs).map_err(|error| wrong(specs, &error))?;
    Disk::try_from(&config)
}

/// Reads a network interface from its parts, as `network-attach` has them.
///
/// # Errors
/// [`DeviceError::Spec`].
pub fn nic<T: AsRef<str>>(parts: &[T]) -> Result<Nic, DeviceError> {
    let config = NicConfig::parse_words(parts).map_err(|error| wrong(parts, &error))?;
    Nic::try_from(&config)
}

fn wrong<T: AsRef<str>>(specs: &[T], error: &dyn std::error::Error) -> DeviceError {
    let spec = specs.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
    DeviceError::Spec { spec, problem: error.to_string() }
}

impl TryFrom<&DiskConfig> for Disk {
    type Error = DeviceError;

    /// Refuses what takes a QEMU.
    fn try_from(config: &DiskConfig) -> Result<Self, DeviceError> {
        let error = |problem: String| DeviceError::Spec { spec: config.vdev.clone(), problem };
        if config.cdrom {
            return Err(error(
                "a PVH or PV qube has no CD drive: attach the image as a disk, read-only".to_owned(),
            ));
        }
        if config.format != DiskFormat::Raw {
            let format = config.format.name();
            return Err(error(format!(
                "format {format} is not supported: raw is (xl starts qemu for the others)"
            )));
        }
        if let Some(backend) = config.backend_type.filter(|backend| *backend != DiskBackend::Phy) {
            let backend = backend.name();
            return Err(error(format!(
                "backendtype {backend} is not supported: phy is (xl starts qemu for qdisk)"
            )));
        }
        if config.specification == Some(DiskSpecification::Virtio) {
            return Err(error("specification virtio is not supported: xen is".to_owned()));
        }
        let target = config.target.as_deref().filter(|target| !target.is_empty());
        let target = target.ok_or_else(|| error("the target is missing".to_owned()))?;
        Ok(Self {
            readonly: !config.writable,
            backend: config.backend.clone(),
            script: config.script.clone(),
            discard: config.discard,
            direct_io_safe: config.direct_io_safe,
            trusted: config.trusted.unwrap_or(true),
            ..Self::new(target, Vdev::parse(&config.vdev)?)
        })
    }
}

impl From<&Disk> for DiskConfig {
    fn from(disk: &Disk) -> Self {
        Self {
            target: Some(disk.target.clone()),
            vdev: disk.vdev.name().to_owned(),
            format: DiskFormat::Raw,
            backend_type: None,
            backend: disk.backend.clone(),
            script: disk.script.clone(),
            writable: !disk.readonly,
            cdrom: false,
            direct_io_safe: disk.direct_io_safe,
            discard: disk.discard,
            specification: None,
            trusted: (!disk.trusted).then_some(false),
        }
    }
}

impl TryFrom<&NicConfig> for Nic {
    type Error = DeviceError;

    /// Refuses what takes a QEMU. What an emulated card would be is of no matter.
    fn try_from(config: &NicConfig) -> Result<Self, DeviceError> {
        if config.kind == Some(NicType::Ioemu) {
            let problem = "a PVH or PV qube has only interfaces of type vif".to_owned();
            return Err(DeviceError::Spec { spec: "type=ioemu".to_owned(), problem });
        }
        Ok(Self {
            devid: config.devid,
            mac: config.mac.filter(|mac| mac.0 != [0; 6]),
            bridge: config.bridge.clone(),
            ip: config.ip.clone(),
            vifname: config.name.clone(),
            backend: config.backend.clone(),
            script: config.script.clone(),
            gatewaydev: config.gatewaydev.clone(),
            rate: config.rate,
            mtu: config.mtu,
            trusted: config.trusted.unwrap_or(true),
        })
    }
}

impl From<&Nic> for NicConfig {
    fn from(nic: &Nic) -> Self {
        Self {
            devid: nic.devid,
            mac: nic.mac,
            bridge: nic.bridge.clone(),
            gatewaydev: nic.gatewaydev.clone(),
            ip: nic.ip.clone(),
            script: nic.script.clone(),
            backend: nic.backend.clone(),
            name: nic.vifname.clone(),
            kind: None,
            model: None,
            mtu: nic.mtu,
            rate: nic.rate,
            trusted: (!nic.trusted).then_some(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NicRate;

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
            ("/img/a,raw", "needs a vdev"),
            (",raw,xvda", "the target is missing"),
            ("/img/a,qcow2,xvda", "qcow2 is not supported"),
            ("/img/a,rwa,xvda", "`format' of a disk is"),
            ("/img/a,raw,xvda,x", "`access' of a disk is"),
            ("/img/a,raw,xvda,r,more", "one too many"),
            ("/img/a,raw,xvda,cdrom", "no CD drive"),
            ("/img/a,raw,hdc:cdrom,r", "no CD drive"),
            ("/img/a,raw,xvda,backendtype=qdisk", "qdisk is not supported"),
            ("/img/a,raw,xvda,colour=red", "no parameter `colour'"),
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
        assert_eq!(nic.rate, Some(NicRate { bytes_per_interval: 20_000, interval_usecs: 20_000 }));
        assert!(!nic.trusted);
        assert_eq!(super::nic(&[""]).unwrap(), Nic::default());
        for bad in ["mac=x", "type=ioemu", "mtu=big", "rate=fast", "rate=1", "colour=red", "rate=0b/s"] {
            assert!(super::nic(&[bad]).is_err(), "{bad}");
        }
    }
}
