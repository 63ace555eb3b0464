//! What dom0 tells of itself and of its domains that is neither memory nor scheduling, and what it can poke them with.

use crate::qubes::{Qube, QubeError, Qubes};
use crate::store::{home, libxl_path};
use std::fs;
use std::path::{Path, PathBuf};
use xen::{PciAddress, Transaction};

/// Where Linux lists the PCI devices.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// A console with a name, which a guest knows as a channel (docs/man/xen-pv-channel.7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Channel {
    /// Its number, from 0.
    pub number: u32,
    /// The domain of its backend.
    pub backend: u32,
    /// The frontend's state; -1 where there is none. (So the next two.)
    pub state: i64,
    /// Its event channel.
    pub port: i64,
    /// The frame of its ring.
    pub ring: i64,
    /// `pty` or `socket`.
    pub connection: String,
    /// Of a `pty`: which.
    pub tty: Option<String>,
}

impl Qubes {
    /// When a domain was made, in seconds since 1970; `None` where xenstore does not say.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn start_time(&self, qube: &Qube) -> Result<Option<u64>, QubeError> {
        let Some(vm) = self.read(&format!("{}/vm", home(qube.info.domid)))? else { return Ok(None) };
        let time = self.read(&format!("{vm}/start_time"))?;
        Ok(time.and_then(|time| time.split('.').next()?.parse().ok()))
    }

    /// The configuration in libxl's JSON that was stored when the domain was made, with what was changed since: its name,
    /// its memory, the vCPUs that it is to use. `None` when nobody stored any.
    ///
    /// # Errors
    /// [`QubeError::UserData`] when it cannot be read or is damaged, or what xenstored says.
    pub fn current_config(&self, qube: &Qube) -> Result<Option<serde_json::Value>, QubeError> {
        let Some(stored) = self.stored_config(qube)? else { return Ok(None) };
        let mut config: serde_json::Value = serde_json::from_str(&stored).map_err(|error| {
            QubeError::UserData { path: qube.display_name().into(), source: error.into() }
        })?;
        let mut set = |part: &str, key: &str, value: serde_json::Value| {
            if let Some(part) = config.get_mut(part).and_then(serde_json::Value::as_object_mut) {
                part.insert(key.to_owned(), value);
            }
        };
        if let Some(name) = &qube.name {
            set("c_info", "name", name.as_str().into());
        }
        let (target, max) = self.memory(qube)?;
        if let Some(max) = max {
            set("b_info", "max_memkb", max.into());
        }
        if let Some(target) = target {
            set("b_info", "target_memkb", target.into());
        }
        if let Some(vcpus) = self.wanted_vcpus(qube)? {
            set("b_info", "avail_vcpus", (0..vcpus).collect());
        }
        Ok(Some(config))
    }

    /// Whether the domain is there for another's device model alone: a stub domain.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn is_stub_domain(&self, qube: &Qube) -> Result<bool, QubeError> {
        let target = self.read(&format!("{}/target", home(qube.info.domid)))?;
        Ok(target.is_some_and(|target| target.parse::<u16>().is_ok()))
    }

    /// The channels of a domain, by number.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn channels(&self, qube: &Qube) -> Result<Vec<Channel>, QubeError> {
        let consoles = format!("{}/device/console", libxl_path(qube.info.domid));
        let mut named = 0;
        for console in self.directory(&consoles)? {
            named += u32::from(self.read(&format!("{consoles}/{console}/name"))?.is_some());
        }
        let mut channels = Vec::new();
        // libxl counts them from the console after the first, which is no channel.
        for number in 0..named {
            let device = format!("device/console/{}", number + 1);
            let frontend = format!("{}/{device}", home(qube.info.domid));
            let libxl = format!("{}/{device}", libxl_path(qube.info.domid));
            let Some(backend) = self.read(&format!("{libxl}/backend"))? else { continue };
            let backend =
                backend.strip_prefix("/local/domain/").and_then(|path| path.split('/').next()?.parse().ok());
            let number_of = |name: &str| -> Result<i64, xen::Error> {
                let value = self.read(&format!("{frontend}/{name}"))?;
                Ok(value.and_then(|value| value.parse().ok()).unwrap_or(-1))
            };
            let connection = self.read(&format!("{libxl}/connection"))?.unwrap_or_default();
            channels.push(Channel {
                number,
                backend: backend.unwrap_or(0),
                state: number_of("state")?,
                port: number_of("port")?,
                ring: number_of("ring-ref")?,
                tty: if connection == "pty" { self.read(&format!("{frontend}/tty"))? } else { None },
                connection,
            });
        }
        Ok(channels)
    }

    /// Presses a magic system request key in a guest (Documentation/admin-guide/sysrq.rst): `h` for help.
    ///
    /// # Errors
    /// What xenstored says.
    pub fn send_sysrq(&self, qube: &Qube, key: char) -> Result<(), QubeError> {
        let path = format!("{}/control/sysrq", home(qube.info.domid));
        Ok(self.store.write(Transaction::NONE, &path, key.to_string().as_bytes())?)
    }

    /// Writes a domain's memory and vCPUs to a file, which is nobody else's to read.
    ///
    /// # Errors
    /// What Xen or the file system says.
    pub fn dump_core(&self, qube: &Qube, file: &Path) -> Result<(), QubeError> {
        Ok(self.control.dump_core(qube.info.domid, file)?)
    }

    /// Where the core of a qube goes that is to leave one when it ends: libxl's `XEN_DUMP_DIR`.
    pub(crate) fn core_file(&self, name: &str) -> Result<PathBuf, QubeError> {
        use std::os::unix::fs::DirBuilderExt;
        let folder = self.userdata.dump_folder();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| QubeError::UserData { path: folder.clone(), source })?;
        // A name has no slash in it, or xenstore would take it for two.
        Ok(folder.join(name.replace('/', "_")))
    }

    /// The host's PCI devices that Xen knows to belong to a NUMA node, by address.
    ///
    /// # Errors
    /// What Xen says.
    pub fn pci_device_nodes(&self) -> Result<Vec<(PciAddress, u32)>, QubeError> {
        let mut devices: Vec<PciAddress> = fs::read_dir(PCI_DEVICES)
            .into_iter()
            .flatten()
            .filter_map(|entry| PciAddress::parse(entry.ok()?.file_name().to_str()?))
            .collect();
        devices.sort_by_key(|device| (device.segment, device.bus, device.devfn));
        if devices.is_empty() {
            return Ok(Vec::new());
        }
        let nodes = self.control.device_nodes(&devices)?;
        Ok(devices.into_iter().zip(nodes).filter_map(|(device, node)| Some((device, node?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::tests::host;

    #[test]
    fn a_qube_has_a_start_and_no_channels() {
        let host = host();
        let qube = host.qubes.create(&host.config_with("work", ""), false, &*host.foreign).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let start = host.qubes.start_time(&qube).unwrap().unwrap();
        assert!((now - 60..=now).contains(&start), "{start}");
        assert!(!host.qubes.is_stub_domain(&qube).unwrap());
        assert_eq!(host.qubes.channels(&qube).unwrap(), []);
    }

    #[test]
    fn a_channel_is_a_console_with_a_name() {
        let host = host();
        let qube = host.qubes.create(&host.config_with("work", ""), false, &*host.foreign).unwrap();
        let libxl = format!("{}/device/console/1", libxl_path(qube.info.domid));
        let frontend = format!("{}/device/console/1", home(qube.info.domid));
        for (path, value) in [
            (format!("{libxl}/name"), "org.example.channel"),
            (format!("{libxl}/connection"), "pty"),
            (format!("{libxl}/backend"), "/local/domain/0/backend/console/1/1"),
            (format!("{frontend}/state"), "4"),
            (format!("{frontend}/port"), "9"),
            (format!("{frontend}/tty"), "/dev/pts/3"),
        ] {
            host.qubes.store.write(Transaction::NONE, &path, value.as_bytes()).unwrap();
        }
        let expected = Channel {
            number: 0,
            backend: 0,
            state: 4,
            port: 9,
            ring: -1,
            connection: "pty".to_owned(),
            tty: Some("/dev/pts/3".to_owned()),
        };
        assert_eq!(host.qubes.channels(&qube).unwrap(), [expected]);
    }

    #[test]
    fn a_configuration_is_shown_as_it_is_now() {
        let host = host();
        let config = host.config_with("work", "vcpus=1\nmaxvcpus=2\nmaxmem=768");
        let qube = host.qubes.create(&config, false, &*host.foreign).unwrap();
        let stored: serde_json::Value =
            serde_json::from_str(&host.qubes.stored_config(&qube).unwrap().unwrap()).unwrap();
        assert_eq!(host.qubes.current_config(&qube).unwrap(), Some(stored.clone()));
        host.qubes.rename(&qube, "play").unwrap();
        host.qubes.set_memory(&qube, 640 << 10).unwrap();
        host.qubes.set_vcpus(&qube, 2, false).unwrap();
        let mut expected = stored;
        expected["c_info"]["name"] = "play".into();
        expected["b_info"]["target_memkb"] = (640 << 10).into();
        expected["b_info"]["avail_vcpus"] = vec![0, 1].into();
        let qube = host.qubes.find("play").unwrap();
        assert_eq!(host.qubes.current_config(&qube).unwrap(), Some(expected));
    }

    #[test]
    fn a_key_reaches_the_guest_and_a_name_is_taken_once() {
        let host = host();
        let qube = host.qubes.create(&host.config_with("work", ""), false, &*host.foreign).unwrap();
        host.qubes.send_sysrq(&qube, 'h').unwrap();
        let key = host.qubes.read(&format!("{}/control/sysrq", home(qube.info.domid))).unwrap();
        assert_eq!(key.as_deref(), Some("h"));
        let config = host.config_with("other", "");
        let other = host.qubes.create(&config, false, &*host.foreign).unwrap();
        host.machine.reset_counts();
        host.qubes.rename(&qube, "play").unwrap();
        assert_eq!((host.machine.counts().hypercalls, host.machine.counts().xenstore_transactions()), (1, 1));
        assert_eq!(host.qubes.find("play").unwrap().info.domid, qube.info.domid);
        host.qubes.rename(&qube, "play").unwrap();
        for (name, holder) in [("other", Some(other.info.domid)), ("", None), ("7", None), ("a/b", None)] {
            let error = host.qubes.rename(&qube, name).unwrap_err();
            assert!(matches!(&error, QubeError::Name { holder: found, .. } if *found == holder), "{error}");
        }
    }
}
