//! What `/etc/xen/xl.conf` says to commands of ours (xl.conf(5)). A host without one says nothing.

use crate::error::Error;
use rustix::fs::FlockOperation;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use toolstack::config::{NicConfig, QubeConfig, Settings};
use toolstack::device::Nic;
use xen::DomainControl;

const FILE: &str = "/etc/xen/xl.conf";
/// What `xl create` locks unless `lockfile` says otherwise (`XL_LOCK_FILE`).
const LOCK: &str = "/var/lock/xl";

/// The file, read.
pub(crate) struct XlConf {
    path: PathBuf,
    settings: Option<Settings>,
}

impl XlConf {
    pub(crate) fn open() -> Result<Self, Error> {
        Self::open_at(Path::new(FILE))
    }

    fn open_at(path: &Path) -> Result<Self, Error> {
        let settings = match fs::read(path) {
            Ok(text) => Some(Settings::parse(&path.display().to_string(), &text, &[""; 0])?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
        };
        Ok(Self { path: path.to_owned(), settings })
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.settings.as_ref()?.text(key)
    }

    fn wrong(&self, key: &'static str, expected: &'static str, given: &str) -> Error {
        Error::XlConf { path: self.path.clone(), key, expected, given: given.to_owned() }
    }

    fn number(&self, key: &'static str) -> Result<Option<u32>, Error> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| i32::try_from(*number).is_ok());
        number.map(Some).ok_or_else(|| self.wrong(key, "a number from 0 to 2147483647", text))
    }

    /// The CPUs that vCPUs are to keep to, of a PV or of a hardware-virtualised domain: each set of them.
    pub(crate) fn cpu_masks(&self, hvm: bool) -> Vec<String> {
        let names = ["vm.cpumask", if hvm { "vm.hvm.cpumask" } else { "vm.pv.cpumask" }];
        names.iter().filter_map(|name| self.text(name)).map(str::to_owned).collect()
    }

    /// Whether memory is claimed before it is given to a new domain; by default it is. nxl always does so.
    pub(crate) fn claims_memory(&self) -> bool {
        self.text("claim_mode") != Some("0")
    }

    /// What a configuration leaves to the host.
    pub(crate) fn complete(&self, config: &mut QubeConfig) -> Result<(), Error> {
        for NicConfig { script, bridge, gatewaydev, backend, .. } in &mut config.nics {
            self.complete_nic_parts([script, bridge, gatewaydev, backend]);
        }
        config.max_grant_frames = config.max_grant_frames.or(self.number("max_grant_frames")?);
        config.max_maptrack_frames = config.max_maptrack_frames.or(self.number("max_maptrack_frames")?);
        if config.max_grant_version.is_none() {
            config.max_grant_version = match self.number("max_grant_version")? {
                None | Some(1 | 2) => self.number("max_grant_version")?,
                Some(other) => return Err(self.wrong("max_grant_version", "1 or 2", &other.to_string())),
            };
        }
        Ok(())
    }

    /// What the words of an interface leave to the host.
    pub(crate) fn complete_nic(&self, nic: &mut Nic) {
        let Nic { script, bridge, gatewaydev, backend, .. } = nic;
        self.complete_nic_parts([script, bridge, gatewaydev, backend]);
    }

    /// Script, bridge, gateway's device and backend; the first two have older keys as well, which count less.
    fn complete_nic_parts(&self, parts: [&mut Option<String>; 4]) {
        let keys: [&[&str]; 4] = [
            &["vif.default.script", "vifscript"],
            &["vif.default.bridge", "defaultbridge"],
            &["vif.default.gatewaydev"],
            &["vif.default.backend"],
        ];
        for (part, keys) in parts.into_iter().zip(keys) {
            if part.is_none() {
                *part = keys.iter().find_map(|key| self.text(key)).map(str::to_owned);
            }
        }
    }

    /// Whether dom0 gives memory to new domains: as `autoballoon` says, which is by default that it does unless Xen's
    /// command line has set dom0's memory.
    pub(crate) fn balloons_dom0(&self, control: &dyn DomainControl) -> Result<bool, Error> {
        match self.text("autoballoon") {
            Some("on" | "1") => Ok(true),
            Some("off" | "0") => Ok(false),
            Some("auto") | None => Ok(!sets_dom0_memory(&control.version()?.command_line)),
            Some(other) => Err(self.wrong("autoballoon", "on, off or auto", other)),
        }
    }

    /// Waits for the lock under which xl, too, makes room for a domain.
    pub(crate) fn lock(&self) -> Result<File, Error> {
        let path = PathBuf::from(self.text("lockfile").unwrap_or(LOCK));
        let lock = || -> io::Result<File> {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o200).open(&path)?;
            // As xl does it: not flock(2), which would not see its lock.
            rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        lock().map_err(|source| Error::Read { path: path.clone(), source })
    }
}

/// Whether a word of Xen's command line sets dom0's memory.
fn sets_dom0_memory(command_line: &str) -> bool {
    command_line.split(' ').any(|word| word.strip_prefix("dom0_mem=").is_some_and(|size| !size.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xen::Platform;
    use xen::mock::Machine;

    fn conf(text: &str) -> (tempfile::TempDir, XlConf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("xl.conf");
        fs::write(&path, text).unwrap();
        let conf = XlConf::open_at(&path).unwrap();
        (folder, conf)
    }

    fn config(text: &str) -> QubeConfig {
        let text = format!("type='pvh'\nname='work'\nkernel='/k'\n{text}");
        let settings = Settings::parse("work.cfg", text.as_bytes(), &[""; 0]).unwrap();
        QubeConfig::from_settings("work.cfg", &settings, None).unwrap().0
    }

    #[test]
    fn masks_are_read_by_kind_of_domain() {
        let (folder, conf) = conf("#vm.cpumask=\"0\"\nvm.cpumask=\"0-3\"\nvm.pv.cpumask=\"2\"\n");
        assert_eq!(conf.cpu_masks(true), ["0-3"]);
        assert_eq!(conf.cpu_masks(false), ["0-3", "2"]);
        let none = XlConf::open_at(&folder.path().join("none")).unwrap();
        assert!(none.cpu_masks(true).is_empty() && none.claims_memory());
    }

    #[test]
    fn what_a_configuration_leaves_open_is_the_hosts() {
        let (_folder, conf) = conf(
            "vif.default.bridge=\"br7\"\ndefaultbridge=\"old\"\nvifscript=\"vif-route\"\nvif.default.gatewaydev=\"eth0\"\nvif.default.backend=\"net\"\nmax_grant_frames=128\nmax_maptrack_frames=256\nmax_grant_version=1\n",
        );
        let mut work = config("vif=['', 'bridge=mine,script=vif-bridge,backend=0']\nmax_maptrack_frames=64");
        conf.complete(&mut work).unwrap();
        let part = |nic: &NicConfig| {
            [&nic.bridge, &nic.script, &nic.gatewaydev, &nic.backend]
                .map(|part| part.clone().unwrap_or_default())
        };
        assert_eq!(part(&work.nics[0]), ["br7", "vif-route", "eth0", "net"]);
        assert_eq!(part(&work.nics[1]), ["mine", "vif-bridge", "eth0", "0"]);
        assert_eq!(
            (work.max_grant_frames, work.max_maptrack_frames, work.max_grant_version),
            (Some(128), Some(64), Some(1))
        );
        let mut nic = Nic::default();
        conf.complete_nic(&mut nic);
        assert_eq!((nic.bridge(), nic.backend.as_deref()), ("br7", Some("net")));
    }

    #[test]
    fn what_makes_no_sense_is_told_by_its_key() {
        let (_folder, conf) = conf("max_grant_frames=\"many\"\nautoballoon=\"perhaps\"\n");
        let error = conf.complete(&mut config("")).unwrap_err().to_string();
        assert!(
            error.ends_with("`max_grant_frames' is a number from 0 to 2147483647, not \"many\""),
            "{error}"
        );
        let control = Machine::new().domain(xen::DomId::DOM0).domain_control().unwrap();
        let error = conf.balloons_dom0(&*control).unwrap_err().to_string();
        assert!(error.ends_with("`autoballoon' is on, off or auto, not \"perhaps\""), "{error}");
    }

    #[test]
    fn dom0_gives_memory_unless_it_was_set() {
        assert!(!sets_dom0_memory("com1=115200 console=com1 dom0_max_vcpus=2 dom0_mem="));
        assert!(sets_dom0_memory("dom0_mem=1024M,max:1024M"));
        assert!(sets_dom0_memory("console=vga dom0_mem=max:4G"));
    }

    #[test]
    fn the_lock_is_xls() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let conf = XlConf::open_at(&folder.path().join("none")).unwrap();
        assert_eq!(conf.text("lockfile"), None);
        fs::write(folder.path().join("xl.conf"), format!("lockfile=\"{}\"\n", path.display())).unwrap();
        let conf = XlConf::open_at(&folder.path().join("xl.conf")).unwrap();
        let held = conf.lock().unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&held.metadata().unwrap());
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let ours = |line: &&str| line.contains("POSIX") && line.contains("WRITE");
        let inodes = locks.lines().filter(ours).filter_map(|line| line.split([' ', ':']).nth_back(2));
        assert!(inodes.into_iter().any(|locked| locked.parse() == Ok(inode)), "{locks}");
    }
}
