//! Whether a host is fit for qubes: what dom0's files say of Xen's devices, modules, daemons and folders, and what can be
//! done about it. Everything is looked at below one root folder, so that a test can have a host of its own.
//!
//! Nothing is changed by looking. What may be done without asking back ([`Remedy`]) is what a package's installation or a
//! boot would have done: a module is loaded, a folder made or closed to others, a module's limit raised.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Pages that xen-gntalloc should let dom0 share: a thousand channels with rings of 8 KiB both ways take 5,000.
const GRANTS: u64 = 8_192;
/// Where that limit is, in pages of all programs together; 1,024 unless the module was told otherwise.
const GRANT_LIMIT: &str = "/sys/module/xen_gntalloc/parameters/limit";
/// What a file system should have left, in bytes.
const ROOM: u64 = 256 << 20;
/// The permissions of those who are neither a device's user nor of its group: it is read and written by nobody else.
const OTHERS: u32 = 0o006;

/// Xen's devices, the module that makes each (none: it is part of every kernel), and what stands still without it.
const NODES: [(&str, Option<&str>, &str); 5] = [
    ("privcmd", Some("xen-privcmd"), "no domain can be made or listed"),
    ("evtchn", Some("xen-evtchn"), "no vchan can notify, and xenstored cannot serve a qube"),
    ("gntdev", Some("xen-gntdev"), "no vchan that a qube offers can be opened"),
    ("gntalloc", Some("xen-gntalloc"), "dom0 can offer no vchan"),
    ("xenbus", None, "programs that do not find xenstored's socket have no other way to it"),
];

/// The folders that nxl keeps something in, and the mode of each; none: it is not for nxl alone.
const FOLDERS: [(&str, Option<u32>); 5] = [
    ("/var/lib/xen", None),
    ("/var/lib/nxl/volumes", Some(0o700)),
    ("/var/cache/nxl", Some(0o700)),
    ("/run/nxl", None),
    ("/var/log/nxl", None),
];

/// What this machine is to Xen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// No Xen runs below.
    Bare,
    /// A domain of a Xen host that may not control others.
    Qube,
    /// The domain that controls a Xen host.
    Dom0,
}

/// How something is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// As it should be.
    Well,
    /// Not there, and not everybody needs it.
    Unused,
    /// Not as it should be.
    Wrong,
}

impl State {
    /// One word: `ok`, `unused`, `wrong`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Unused => "unused",
            Self::Wrong => "wrong",
        }
    }
}

/// What can be done safely about something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// Load a module of the kernel.
    LoadModule(&'static str),
    /// Make a folder with that mode.
    MakeFolder {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Give a file or folder that mode.
    SetMode {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Write a number into a parameter of the kernel's; it lasts until the next boot.
    SetParameter {
        /// Which.
        path: PathBuf,
        /// The number.
        value: u64,
    },
}

impl fmt::Display for Remedy {
    /// The command that does the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoadModule(module) => write!(f, "modprobe {module}"),
            Self::MakeFolder { path, mode } => write!(f, "mkdir -p -m {mode:o} {}", path.display()),
            Self::SetMode { path, mode } => write!(f, "chmod {mode:o} {}", path.display()),
            Self::SetParameter { path, value } => write!(f, "echo {value} > {}", path.display()),
        }
    }
}

/// Something that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What: a path, or the name of a daemon or of a part of Xen.
    pub subject: String,
    /// How it is.
    pub state: State,
    /// What was seen, in a few words.
    pub said: String,
    /// What to do, if there is something to do.
    pub advice: Option<String>,
    /// What can be done about it without asking back.
    pub remedy: Option<Remedy>,
}

impl Finding {
    /// It is as it should be.
    pub fn well(subject: impl Into<String>, said: impl Into<String>) -> Self {
        Self { subject: subject.into(), state: State::Well, said: said.into(), advice: None, remedy: None }
    }

    /// It is not there, and that may be meant so; `advice` says how it would come about.
    pub fn unused(subject: impl Into<String>, said: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: State::Unused, advice: Some(advice.into()), ..Self::well(subject, said) }
    }

    /// It is not as it should be, and `advice` says what to do.
    pub fn wrong(subject: impl Into<String>, said: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { state: State::Wrong, advice: Some(advice.into()), ..Self::well(subject, said) }
    }

    /// It is not as it should be, and can be repaired.
    fn curable(subject: impl Into<String>, said: impl Into<String>, remedy: Remedy) -> Self {
        let advice = remedy.to_string();
        Self { remedy: Some(remedy), ..Self::wrong(subject, said, advice) }
    }
}

/// A host's files.
#[derive(Clone, Debug)]
pub struct HostFiles {
    root: PathBuf,
    modprobe: PathBuf,
}

impl Default for HostFiles {
    fn default() -> Self {
        Self { root: "/".into(), modprobe: "modprobe".into() }
    }
}

impl HostFiles {
    /// The files below another root, with another program that loads modules: for tests.
    #[must_use]
    pub fn below(root: impl Into<PathBuf>, modprobe: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), modprobe: modprobe.into() }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok().map(|text| text.trim().to_owned())
    }

    /// What this machine is: the kernel says whether Xen runs below it, and then whether it controls others.
    #[must_use]
    pub fn machine(&self) -> Machine {
        if let Some(capabilities) = self.text("/proc/xen/capabilities").filter(|text| !text.is_empty()) {
            return if capabilities.contains("control_d") { Machine::Dom0 } else { Machine::Qube };
        }
        if self.text("/sys/hypervisor/type").as_deref() != Some("xen") {
            return Machine::Bare;
        }
        // Linux 6.3 and newer say it without xenfs.
        if let Some(flag) = self.text("/sys/hypervisor/start_flags/initdomain") {
            return if flag == "1" { Machine::Dom0 } else { Machine::Qube };
        }
        // Xen makes dom0 without a UUID, and toolstacks make qubes with one.
        let uuid = self.text("/sys/hypervisor/uuid").unwrap_or_default();
        if uuid.chars().all(|digit| matches!(digit, '0' | '-')) { Machine::Dom0 } else { Machine::Qube }
    }

    /// Looks at the devices, modules, daemons and folders of dom0.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<Finding> =
            NODES.iter().map(|(name, module, without)| self.node(name, *module, without)).collect();
        findings.extend(self.grant_limit());
        findings.push(self.event_channels());
        findings.push(self.xenconsoled());
        findings.extend(self.quotas());
        findings.extend(FOLDERS.iter().map(|(path, mode)| self.folder(path, *mode)));
        findings.extend(self.room());
        findings
    }

    fn node(&self, name: &str, module: Option<&'static str>, without: &str) -> Finding {
        let subject = format!("/dev/xen/{name}");
        let path = self.at(&subject);
        let mode = match fs::metadata(&path) {
            Ok(metadata) => metadata.mode() & 0o7777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let said = format!("is not there: {without}");
                return match module {
                    Some(module) => Finding::curable(subject, said, Remedy::LoadModule(module)),
                    None => Finding::unused(subject, said, "a kernel with CONFIG_XEN_BACKEND has it"),
                };
            }
            Err(error) => return Finding::wrong(subject, error.to_string(), "run the doctor as root"),
        };
        if mode & OTHERS != 0 {
            let (said, mode) = (format!("is open to all users (mode {mode:04o})"), mode & !OTHERS);
            return Finding::curable(subject, said, Remedy::SetMode { path, mode });
        }
        // Opening a device is what a program does first: the driver says whether it is at work.
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(_) => Finding::well(subject, format!("mode {mode:04o}")),
            Err(error) => Finding::wrong(
                subject,
                format!("cannot be opened: {error}"),
                "run the doctor as root; else see `dmesg`",
            ),
        }
    }

    /// What xen-gntalloc lets dom0 share; nothing is said when the module is not there.
    fn grant_limit(&self) -> Option<Finding> {
        let text = self.text(GRANT_LIMIT)?;
        let subject = "xen-gntalloc's limit";
        Some(match text.parse::<u64>() {
            Ok(limit) if limit >= GRANTS => Finding::well(subject, format!("{limit} pages")),
            Ok(limit) => {
                let said = format!("{limit} pages: too few for a thousand channels, which take {GRANTS}");
                let path = self.at(GRANT_LIMIT);
                let advice = format!(
                    "{path}; `options xen-gntalloc limit={GRANTS}' in /etc/modprobe.d keeps it over a boot",
                    path = Remedy::SetParameter { path: path.clone(), value: GRANTS }
                );
                Finding {
                    advice: Some(advice),
                    ..Finding::curable(subject, said, Remedy::SetParameter { path, value: GRANTS })
                }
            }
            Err(_) => Finding::wrong(subject, format!("{text:?} is no number"), "see `modinfo xen-gntalloc`"),
        })
    }

    /// The event channels that dom0's kernel has bound: what /proc/interrupts has of kinds `xen-dyn`, `xen-percpu`, `xen-pirq`.
    fn event_channels(&self) -> Finding {
        const SUBJECT: &str = "event channels";
        let text = self.text("/proc/interrupts").unwrap_or_default();
        match text.lines().filter(|line| line.contains(" xen-")).count() {
            0 => Finding::wrong(SUBJECT, "dom0's kernel has none", "see `dmesg | grep -i xen'"),
            bound => Finding::well(SUBJECT, format!("{bound} are bound by dom0's kernel")),
        }
    }

    /// The command line of the process of that name, if there is one.
    fn process(&self, name: &str) -> Option<Vec<String>> {
        let processes = fs::read_dir(self.at("/proc")).ok()?.flatten();
        let numbered = processes.filter(|entry| {
            entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        });
        let mut paths = numbered.map(|entry| entry.path());
        let path = paths
            .find(|path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name))?;
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        Some(line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
    }

    fn xenconsoled(&self) -> Finding {
        match self.process("xenconsoled") {
            Some(_) => Finding::well("xenconsoled", "runs"),
            None => Finding::wrong(
                "xenconsoled",
                "does not run: qubes have no console, and creation waits for none",
                "systemctl start xenconsoled (Debian: service xen start)",
            ),
        }
    }

    /// What xenstored lets each qube have, where its command line says it or leaves it at the default.
    fn quotas(&self) -> Option<Finding> {
        let line = self.process("xenstored")?;
        let said = |short: &str, long: &str, default: u32| {
            let mut words = line.iter().skip(1);
            let mut value = default;
            while let Some(word) = words.next() {
                let given = if word == short || word == long {
                    words.next().map(String::as_str)
                } else {
                    word.strip_prefix(long)
                        .and_then(|rest| rest.strip_prefix('='))
                        .or_else(|| word.strip_prefix(short))
                };
                value = given.and_then(|given| given.parse().ok()).unwrap_or(value);
            }
            value
        };
        // The defaults are those of xenstored_core.c.
        let (nodes, watches, transactions) =
            (said("-E", "--entry-nb", 1_000), said("-W", "--watch-nb", 128), said("-t", "--transaction", 10));
        let text = format!("a qube has {nodes} nodes, {watches} watches, {transactions} transactions");
        // Some 40 nodes are a PVH qube's own, and each vchan that it offers takes two.
        Some(if nodes >= 200 && watches >= 16 && transactions >= 2 {
            Finding::well("xenstored's quotas", text)
        } else {
            Finding::wrong(
                "xenstored's quotas",
                format!("{text}: too few"),
                "start it without --entry-nb, --watch-nb and --transaction",
            )
        })
    }

    fn folder(&self, subject: &str, mode: Option<u32>) -> Finding {
        let path = self.at(subject);
        match (fs::metadata(&path), mode) {
            (Ok(metadata), _) if !metadata.is_dir() => {
                Finding::wrong(subject, "is no folder", format!("move {subject} out of the way"))
            }
            (Ok(metadata), mode) => {
                let (user, found) = (rustix::process::geteuid().as_raw(), metadata.mode() & 0o7777);
                let closed = mode.map_or(found & !0o022, |mode| found & mode);
                if metadata.uid() != user {
                    let said = format!("is user {}'s", metadata.uid());
                    Finding::wrong(subject, said, format!("chown {user} {subject}"))
                } else if found != closed {
                    let said = format!("is open to others (mode {found:04o})");
                    Finding::curable(subject, said, Remedy::SetMode { path, mode: closed })
                } else {
                    Finding::well(subject, format!("mode {found:04o}"))
                }
            }
            (Err(error), mode) if error.kind() == io::ErrorKind::NotFound => {
                let mode = mode.unwrap_or(0o755);
                // It is made by whoever needs it first; /var/lib/xen is the exception, and comes with Xen's tools.
                let remedy = Remedy::MakeFolder { path, mode };
                if subject == "/var/lib/xen" {
                    Finding::curable(subject, "is not there: no qube's configuration can be kept", remedy)
                } else {
                    let advice = "made when it is needed";
                    Finding { remedy: Some(remedy), ..Finding::unused(subject, "is not there", advice) }
                }
            }
            (Err(error), _) => Finding::wrong(subject, error.to_string(), "run the doctor as root"),
        }
    }

    /// What the file systems of those folders have left.
    fn room(&self) -> Vec<Finding> {
        let mut seen = Vec::new();
        let mut findings = Vec::new();
        for subject in ["/var/lib/nxl", "/var/cache/nxl", "/var/log", "/run"] {
            // A folder that is not there yet will be where the next one up is.
            let path = self.at(subject);
            let there = path.ancestors().find(|path| path.is_dir()).unwrap_or(&self.root);
            let (Ok(space), Ok(metadata)) = (rustix::fs::statvfs(there), fs::metadata(there)) else {
                continue;
            };
            if seen.contains(&metadata.dev()) {
                continue;
            }
            seen.push(metadata.dev());
            findings.push(room(
                subject,
                space.f_bavail.saturating_mul(space.f_frsize),
                space.f_blocks.saturating_mul(space.f_frsize),
            ));
        }
        findings
    }

    /// Whether somebody listens at a socket. `unused` says what its daemon is for: where it was never set up, nothing is wrong.
    #[must_use]
    pub fn socket(&self, name: &str, path: &Path, unused: &str) -> Finding {
        let subject = format!("{name} ({})", path.display());
        let place = self.at(&path.to_string_lossy());
        match UnixStream::connect(&place) {
            Ok(_) => Finding::well(subject, "answers"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Finding::unused(subject, "is not there", unused)
            }
            Err(error) => Finding::wrong(
                subject,
                format!("does not answer: {error}"),
                "the daemon that left the socket is gone: start it again",
            ),
        }
    }

    /// Does what is to be done about something that is wrong.
    ///
    /// # Errors
    /// What the kernel, or the program that loads modules, says.
    pub fn carry_out(&self, remedy: &Remedy) -> io::Result<()> {
        match remedy {
            Remedy::LoadModule(module) => {
                let output = Command::new(&self.modprobe).arg(module).output()?;
                if output.status.success() {
                    return Ok(());
                }
                let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
                Err(io::Error::other(if said.is_empty() { output.status.to_string() } else { said }))
            }
            Remedy::MakeFolder { path, mode } => DirBuilder::new().recursive(true).mode(*mode).create(path),
            Remedy::SetMode { path, mode } => fs::set_permissions(path, Permissions::from_mode(*mode)),
            Remedy::SetParameter { path, value } => {
                // Never to make a file where the kernel has none.
                let file = File::options().write(true).open(path)?;
                io::Write::write_all(&mut &file, format!("{value}\n").as_bytes())
            }
        }
    }
}

/// A file system with so many bytes left, of so many.
fn room(subject: &str, left: u64, size: u64) -> Finding {
    let subject = format!("room for {subject}");
    let said = format!("{} of {} MiB are free", left >> 20, size >> 20);
    // A small one, such as /run in memory, may have less in all.
    if left >= ROOM.min(size / 4) {
        Finding::well(subject, said)
    } else {
        Finding::wrong(
            subject,
            said,
            "`nxl cache prune --all` gives back what unpacked kernels take; `nxl volume list` shows what qubes keep",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A host on which everything is as it should be.
    fn host() -> (tempfile::TempDir, HostFiles) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let put = |path: &str, text: &str, mode: u32| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        };
        put("proc/xen/capabilities", "control_d\n", 0o644);
        for (name, ..) in NODES {
            put(&format!("dev/xen/{name}"), "", 0o600);
        }
        put("sys/module/xen_gntalloc/parameters/limit", "8192\n", 0o644);
        let interrupts = " 17: 0 0 IO-APIC 9-fasteoi acpi\n 48: 5 0 xen-percpu -virq timer0\n 64: 7 0 xen-dyn -event evtchn:xenstored\n";
        put("proc/interrupts", interrupts, 0o644);
        put("proc/17/comm", "xenconsoled\n", 0o644);
        put("proc/18/comm", "xenstored\n", 0o644);
        put("proc/18/cmdline", "xenstored\0--pid-file\0/run/xenstored.pid\0", 0o644);
        for (path, mode) in FOLDERS {
            let path = root.join(&path[1..]);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode.unwrap_or(0o755))).unwrap();
        }
        put(
            "modprobe",
            "#!/bin/sh\necho \"$1\" >> \"$(dirname \"$0\")/loaded\"\n[ \"$1\" != xen-gntdev ] || { echo 'no such module' >&2; exit 1; }\n",
            0o755,
        );
        let files = HostFiles::below(root, root.join("modprobe"));
        (folder, files)
    }

    /// What is not well, but for the room, which is this machine's.
    fn unwell(files: &HostFiles) -> Vec<Finding> {
        let all = files.findings().into_iter();
        all.filter(|found| found.state != State::Well && !found.subject.starts_with("room")).collect()
    }

    #[test]
    fn a_host_that_is_well_is_told_of_as_such() {
        let (_folder, files) = host();
        assert_eq!(unwell(&files), []);
        let findings = files.findings();
        assert!(findings.len() >= 13, "{findings:?}");
        assert!(findings.iter().any(|found| found.said == "2 are bound by dom0's kernel"));
        let quotas = findings.iter().find(|found| found.subject == "xenstored's quotas").unwrap();
        assert_eq!(quotas.said, "a qube has 1000 nodes, 128 watches, 10 transactions");
    }

    #[test]
    fn a_machine_is_known_for_what_it_is() {
        let (folder, files) = host();
        let root = folder.path();
        assert_eq!(files.machine(), Machine::Dom0);
        fs::write(root.join("proc/xen/capabilities"), "x\n").unwrap();
        assert_eq!(files.machine(), Machine::Qube);
        fs::remove_file(root.join("proc/xen/capabilities")).unwrap();
        assert_eq!(files.machine(), Machine::Bare);
        let hypervisor = root.join("sys/hypervisor");
        fs::create_dir_all(hypervisor.join("start_flags")).unwrap();
        fs::write(hypervisor.join("type"), "kvm\n").unwrap();
        assert_eq!(files.machine(), Machine::Bare);
        fs::write(hypervisor.join("type"), "xen\n").unwrap();
        assert_eq!(files.machine(), Machine::Dom0, "dom0 need not have a UUID");
        fs::write(hypervisor.join("uuid"), "00000000-0000-0000-0000-000000000000\n").unwrap();
        assert_eq!(files.machine(), Machine::Dom0);
        fs::write(hypervisor.join("uuid"), "5a1f3f0a-0000-0000-0000-000000000000\n").unwrap();
        assert_eq!(files.machine(), Machine::Qube);
        fs::write(hypervisor.join("start_flags/initdomain"), "1\n").unwrap();
        assert_eq!(files.machine(), Machine::Dom0);
    }

    #[test]
    fn what_is_wrong_is_repaired_and_then_well() {
        let (folder, files) = host();
        let root = folder.path();
        let chmod = |path: &str, mode| {
            fs::set_permissions(root.join(path), Permissions::from_mode(mode)).unwrap();
        };
        chmod("dev/xen/privcmd", 0o666);
        chmod("var/cache/nxl", 0o755);
        chmod("run/nxl", 0o777);
        fs::remove_dir_all(root.join("var/lib/xen")).unwrap();
        fs::remove_dir_all(root.join("var/log/nxl")).unwrap();
        fs::write(root.join("sys/module/xen_gntalloc/parameters/limit"), "1024\n").unwrap();
        let found = unwell(&files);
        let subjects: Vec<_> = found.iter().map(|found| (&*found.subject, found.state)).collect();
        assert_eq!(
            subjects,
            [
                ("/dev/xen/privcmd", State::Wrong),
                ("xen-gntalloc's limit", State::Wrong),
                ("/var/lib/xen", State::Wrong),
                ("/var/cache/nxl", State::Wrong),
                ("/run/nxl", State::Wrong),
                ("/var/log/nxl", State::Unused),
            ]
        );
        for finding in &found {
            files.carry_out(finding.remedy.as_ref().unwrap()).unwrap();
        }
        assert_eq!(unwell(&files), []);
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().mode() & 0o777;
        assert_eq!((mode("dev/xen/privcmd"), mode("var/cache/nxl"), mode("run/nxl")), (0o660, 0o700, 0o755));
    }

    #[test]
    fn a_missing_module_is_loaded_and_what_modprobe_says_is_told() {
        let (folder, files) = host();
        let root = folder.path();
        for name in ["gntalloc", "gntdev", "xenbus"] {
            fs::remove_file(root.join("dev/xen").join(name)).unwrap();
        }
        let found = unwell(&files);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0].remedy, Some(Remedy::LoadModule("xen-gntdev")));
        assert_eq!(found[1].advice.as_deref(), Some("modprobe xen-gntalloc"));
        assert_eq!((found[2].state, &found[2].remedy), (State::Unused, &None));
        files.carry_out(found[1].remedy.as_ref().unwrap()).unwrap();
        assert_eq!(fs::read_to_string(root.join("loaded")).unwrap(), "xen-gntalloc\n");
        let error = files.carry_out(found[0].remedy.as_ref().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "no such module");
    }

    #[test]
    fn daemons_that_do_not_run_or_are_held_too_short_are_told_of() {
        let (folder, files) = host();
        let root = folder.path();
        fs::remove_dir_all(root.join("proc/17")).unwrap();
        fs::write(root.join("proc/interrupts"), "17: 0 IO-APIC acpi\n").unwrap();
        fs::write(root.join("proc/18/cmdline"), "xenstored\0-E\x00100\0--watch-nb=8\0").unwrap();
        let found = unwell(&files);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!((&*found[0].subject, &*found[1].subject), ("event channels", "xenconsoled"));
        assert_eq!(found[2].said, "a qube has 100 nodes, 8 watches, 10 transactions: too few");
        // Another xenstored, or one in a domain of its own, has quotas that are not known here.
        fs::remove_dir_all(root.join("proc/18")).unwrap();
        assert!(files.findings().iter().all(|found| found.subject != "xenstored's quotas"));
    }

    #[test]
    fn a_socket_answers_is_dead_or_was_never_there() {
        let (folder, files) = host();
        let path = Path::new("/run/nexus/control.sock");
        let state = || files.socket("nexusd", path, "calls need it").state;
        assert_eq!(state(), State::Unused);
        fs::create_dir_all(folder.path().join("run/nexus")).unwrap();
        let listener = UnixListener::bind(folder.path().join("run/nexus/control.sock")).unwrap();
        assert_eq!(state(), State::Well);
        drop(listener);
        assert_eq!(state(), State::Wrong);
    }

    #[test]
    fn little_room_is_wrong_unless_there_never_was_much() {
        let state = |left: u64, size: u64| room("/run", left << 20, size << 20).state;
        assert_eq!(state(300, 10_000), State::Well);
        assert_eq!(state(200, 10_000), State::Wrong);
        assert_eq!(state(100, 200), State::Well);
        assert_eq!(state(10, 200), State::Wrong);
    }
}
