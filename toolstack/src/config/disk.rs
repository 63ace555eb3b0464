//! A disk as `disk = [ "…" ]` and `block-attach` describe it (xl-disk-configuration(5)).
//!
//! The text is a row of parameters with commas between them: `key=value`, flags, and without a key target, format, vdev and
//! access in this order. What is accepted is what tools/libs/util/libxlu_disk_l.l accepts (a test asks libxlutil), but for
//! three things that nobody can want: a stray `=` as the last character, a line end within a parameter, an empty vdev.

use serde::{Deserialize, Serialize};

/// What is wrong with a disk's text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// A `key=value` of which nobody knows the key.
    #[error("a disk has no parameter `{0}'")]
    Parameter(String),
    /// Something like `nfs:/path`.
    #[error("`{0}:' is no kind of disk (a target with a colon is written as the last parameter, target=…)")]
    Prefix(String),
    /// A parameter's value that is none of those that it takes.
    #[error("`{parameter}' of a disk is {expected}, not {given:?}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        given: String,
    },
    /// A parameter that was there before, with another value.
    #[error("`{0}' of a disk is given twice")]
    Twice(&'static str),
    /// More than target, format, vdev and access.
    #[error("a disk has four parameters without a key (target, format, vdev, access); {0:?} is one too many")]
    TooMany(String),
    /// Text that is no parameter at all.
    #[error("a disk cannot be read from {0:?} on")]
    Syntax(String),
    /// A parameter of COLO, the replication of a running guest to a second host.
    #[error("`{0}' of a disk is for COLO replication, which nxl does not do")]
    Colo(String),
    /// There is no `vdev`.
    #[error("a disk needs a vdev (xvda for the first one in the guest)")]
    NoVdev,
    /// There is no target, and nothing that could do without one.
    #[error("a disk needs a target (the device or file that holds its contents) unless it is a cdrom")]
    NoTarget,
}

/// How the contents lie in the target (`libxl_disk_format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Sector by sector.
    Raw,
    /// An image of QEMU's first format.
    Qcow,
    /// An image of QEMU's second format.
    Qcow2,
    /// A Microsoft virtual hard disk.
    Vhd,
    /// An image of QEMU's format `qed`.
    Qed,
    /// There is no medium in the drive.
    Empty,
}

impl DiskFormat {
    const NAMES: [(&'static str, Self); 6] = [
        ("raw", Self::Raw),
        ("qcow", Self::Qcow),
        ("qcow2", Self::Qcow2),
        ("vhd", Self::Vhd),
        ("qed", Self::Qed),
        ("empty", Self::Empty),
    ];

    /// As it is written in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

/// What serves the disk in the backend domain (`libxl_disk_backend`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskBackend {
    /// The kernel's xen-blkback, on a block device.
    Phy,
    /// Blktap, which Xen no longer has.
    Tap,
    /// QEMU.
    Qdisk,
    /// Somebody who reads xenstore; the toolstack starts nothing.
    Standalone,
}

impl DiskBackend {
    const NAMES: [(&'static str, Self); 4] =
        [("phy", Self::Phy), ("tap", Self::Tap), ("qdisk", Self::Qdisk), ("standalone", Self::Standalone)];

    /// As it is written in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

/// What the guest sees (`libxl_disk_specification`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskSpecification {
    /// A Xen block device.
    Xen,
    /// A virtio block device.
    Virtio,
}

impl DiskSpecification {
    const NAMES: [(&'static str, Self); 2] = [("xen", Self::Xen), ("virtio", Self::Virtio)];

    /// As it is written in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// The block device or file, or whatever `script` understands. `None` or empty: a drive without a medium.
    pub target: Option<String>,
    /// The name in the guest: `xvda`, `sdb3`, `hdc`, `d0p1`. Not checked here.
    pub vdev: String,
    /// How the contents lie in the target.
    pub format: DiskFormat,
    /// What serves it; `None` to choose by target and format.
    pub backend_type: Option<DiskBackend>,
    /// The domain that serves it, by name or number; `None` for dom0.
    pub backend: Option<String>,
    /// The program that makes the target a block device. A relative path is one below /etc/xen/scripts.
    pub script: Option<String>,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether it is a CD-ROM drive: removable and not writable.
    pub cdrom: bool,
    /// `direct-io-safe`: the target's memory may be used until a request is done, so direct I/O is allowed.
    pub direct_io_safe: bool,
    /// Whether the guest may discard ranges; `None` leaves that to the backend.
    pub discard: Option<bool>,
    /// What the guest sees; `None` for a Xen block device.
    pub specification: Option<DiskSpecification>,
    /// Whether the guest trusts the backend; `None` for the default, which is to trust it.
    pub trusted: Option<bool>,
}

impl DiskConfig {
    /// Reads a disk's text.
    ///
    /// # Errors
    /// What is wrong with it.
    ///
    /// ```
    /// use toolstack::config::{DiskConfig, DiskFormat};
    ///
    /// let disk = DiskConfig::parse("/dev/vg/root,,xvda,r")?;
    /// assert_eq!((disk.target.as_deref(), disk.vdev.as_str()), (Some("/dev/vg/root"), "xvda"));
    /// assert_eq!((disk.format, disk.writable), (DiskFormat::Raw, false));
    /// assert_eq!(disk, DiskConfig::parse("vdev=xvda, access=ro, target=/dev/vg/root")?);
    /// # Ok::<(), toolstack::config::DiskError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, DiskError> {
        Self::parse_words(&[text])
    }

    /// Reads a disk from several texts, as `block-attach` has them in its arguments. Each goes on where the one before ended.
    ///
    /// # Errors
    /// As [`DiskConfig::parse`].
    pub fn parse_words<S: AsRef<str>>(texts: &[S]) -> Result<Self, DiskError> {
        let mut reader = Reader { writable: true, ..Reader::default() };
        texts.iter().try_for_each(|text| reader.text(text.as_ref()))?;
        reader.finish()
    }
}

/// What may stand before the target, from the days of xend. Some say the format, some the script, most say nothing.
const PREFIXES: [(&str, Prefix); 15] = [
    ("raw", Prefix::Format(DiskFormat::Raw)),
    ("qcow", Prefix::Format(DiskFormat::Qcow)),
    ("qcow2", Prefix::Format(DiskFormat::Qcow2)),
    ("vhd", Prefix::Format(DiskFormat::Vhd)),
    ("iscsi", Prefix::Script("block-iscsi")),
    ("nbd", Prefix::Script("block-nbd")),
    ("enbd", Prefix::Script("block-enbd")),
    ("drbd", Prefix::Script("block-drbd")),
    ("tapdisk", Prefix::Nothing),
    ("tap", Prefix::Nothing),
    ("tap2", Prefix::Nothing),
    ("aio", Prefix::Nothing),
    ("ioemu", Prefix::Nothing),
    ("file", Prefix::Nothing),
    ("phy", Prefix::Nothing),
];

#[derive(Clone, Copy)]
enum Prefix {
    Format(DiskFormat),
    Script(&'static str),
    Nothing,
}

#[derive(Default)]
struct Reader {
    target: Option<String>,
    vdev: Option<String>,
    format: Option<DiskFormat>,
    backend_type: Option<DiskBackend>,
    backend: Option<String>,
    script: Option<String>,
    writable: bool,
    cdrom: bool,
    direct_io_safe: bool,
    discard: Option<bool>,
    specification: Option<DiskSpecification>,
    trusted: Option<bool>,
    /// The positional access was there.
    access: bool,
    /// A prefix was there, so that no positional format follows.
    prefix: bool,
}

impl Reader {
    fn text(&mut self, text: &str) -> Result<(), DiskError> {
        let mut rest = text;
        loop {
            rest = rest.trim_start_matches([' ', '\t', '\n']);
            if rest.is_empty() {
                return Ok(());
            }
            rest = self.parameter(rest)?;
        }
    }

    /// Takes one parameter off the text.
    fn parameter<'a>(&mut self, rest: &'a str) -> Result<&'a str, DiskError> {
        // A key may have a dash in it, a prefix may not.
        let word = run(rest, |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if let Some(value) = rest[word.len()..].strip_prefix('=').filter(|_| !word.is_empty()) {
            if word == "target" {
                // The only parameter that may have commas in it: it is the last one.
                let value = value.strip_suffix(',').unwrap_or(value);
                once("target", &mut self.target, one_line(value)?)?;
                return Ok("");
            }
            let (value, rest) = value.split_once(',').unwrap_or((value, ""));
            self.key(word, one_line(value)?)?;
            return Ok(rest);
        }
        let word = run(word, |byte| byte != b'-');
        if let Some(after) = rest[word.len()..].strip_prefix(':').filter(|_| !word.is_empty()) {
            if let Some((_, prefix)) = PREFIXES.iter().find(|(name, _)| *name == word) {
                self.prefix = true;
                match prefix {
                    Prefix::Format(format) => set("format", &mut self.format, *format)?,
                    Prefix::Script(script) => once("script", &mut self.script, script)?,
                    Prefix::Nothing => (),
                }
                return Ok(after);
            }
            // hdc:cdrom is no prefix, host:/path would be one.
            if !after.starts_with(|next: char| next.is_ascii_lowercase() || next.is_ascii_digit()) {
                return Err(DiskError::Prefix(word.to_owned()));
            }
        }
        let end = rest.find([',', '=']).unwrap_or(rest.len());
        if rest[end..].starts_with('=') {
            return Err(DiskError::Syntax(rest.to_owned()));
        }
        let value = one_line(&rest[..end])?;
        if !self.flag(value)? {
            self.positional(value)?;
        }
        Ok(rest.get(end + 1..).unwrap_or(""))
    }

    fn key(&mut self, key: &str, value: &str) -> Result<(), DiskError> {
        match key {
            "format" => self.set_format(value),
            "devtype" => self.set_devtype(value),
            "access" => self.set_access(value),
            "backend" => once("backend", &mut self.backend, value),
            "backendtype" => {
                let kind =
                    one_of("backendtype", "phy, qdisk, tap or standalone", &DiskBackend::NAMES, value)?;
                set("backendtype", &mut self.backend_type, kind)
            }
            "specification" => {
                let specification =
                    one_of("specification", "xen or virtio", &DiskSpecification::NAMES, value)?;
                set("specification", &mut self.specification, specification)
            }
            "vdev" => once("vdev", &mut self.vdev, value),
            "script" => once("script", &mut self.script, value),
            "colo-host" | "colo-port" | "colo-export" | "active-disk" | "hidden-disk" => {
                Err(DiskError::Colo(key.to_owned()))
            }
            _ => Err(DiskError::Parameter(key.to_owned())),
        }
    }

    /// Whether it was a flag.
    fn flag(&mut self, flag: &str) -> Result<bool, DiskError> {
        match flag {
            "cdrom" => self.cdrom = true,
            "direct-io-safe" => self.direct_io_safe = true,
            "discard" => self.discard = Some(true),
            "no-discard" => self.discard = Some(false),
            "trusted" => self.trusted = Some(true),
            "untrusted" => self.trusted = Some(false),
            "colo" | "no-colo" => return Err(DiskError::Colo(flag.to_owned())),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn positional(&mut self, value: &str) -> Result<(), DiskError> {
        if self.target.is_none() {
            self.target = Some(value.to_owned());
        } else if !self.prefix && self.format.is_none() {
            // A drive without a medium has no format either: `,hdc:cdrom`.
            let no_target = self.target.as_deref() == Some("");
            if no_target && self.set_vdev_and_devtype(value)? {
                self.format = Some(DiskFormat::Empty);
            } else {
                self.set_format(value)?;
            }
        } else if self.vdev.is_none() {
            if !self.set_vdev_and_devtype(value)? {
                self.vdev = Some(value.to_owned());
            }
        } else if !self.access {
            self.access = true;
            self.set_access(value)?;
        } else {
            return Err(DiskError::TooMany(value.to_owned()));
        }
        Ok(())
    }

    /// Reads `hdc:cdrom`. Whether it was that.
    fn set_vdev_and_devtype(&mut self, value: &str) -> Result<bool, DiskError> {
        let Some((vdev, devtype)) = value.rsplit_once(':') else { return Ok(false) };
        once("vdev", &mut self.vdev, vdev)?;
        self.set_devtype(devtype)?;
        Ok(true)
    }

    fn set_devtype(&mut self, value: &str) -> Result<(), DiskError> {
        self.cdrom = one_of("devtype", "disk or cdrom", &[("disk", false), ("cdrom", true)], value)?;
        Ok(())
    }

    fn set_format(&mut self, value: &str) -> Result<(), DiskError> {
        let format = match value {
            "" => DiskFormat::Raw,
            _ => one_of("format", "raw, qcow, qcow2, vhd, qed or empty", &DiskFormat::NAMES, value)?,
        };
        set("format", &mut self.format, format)
    }

    fn set_access(&mut self, value: &str) -> Result<(), DiskError> {
        const NAMES: [(&str, bool); 5] = [("r", false), ("ro", false), ("w", true), ("rw", true), ("", true)];
        self.writable = one_of("access", "r, ro, w or rw", &NAMES, value)?;
        Ok(())
    }

    fn finish(self) -> Result<DiskConfig, DiskError> {
        let no_medium = self.target.as_deref().is_none_or(str::is_empty);
        let format = match self.format {
            _ if self.cdrom && no_medium => DiskFormat::Empty,
            Some(format) => format,
            None => DiskFormat::Raw,
        };
        let vdev = self.vdev.filter(|vdev| !vdev.is_empty()).ok_or(DiskError::NoVdev)?;
        if self.target.is_none() && !self.cdrom {
            return Err(DiskError::NoTarget);
        }
        Ok(DiskConfig {
            target: self.target,
            vdev,
            format,
            backend_type: self.backend_type,
            backend: self.backend,
            script: self.script,
            writable: self.writable && !self.cdrom,
            cdrom: self.cdrom,
            direct_io_safe: self.direct_io_safe,
            discard: self.discard,
            specification: self.specification,
            trusted: self.trusted,
        })
    }
}

/// The letters and digits at the beginning, which is a small letter; else nothing.
fn run(text: &str, goes_on: impl Fn(u8) -> bool) -> &str {
    if !text.starts_with(|first: char| first.is_ascii_lowercase()) {
        return "";
    }
    &text[..text.bytes().position(|byte| !goes_on(byte)).unwrap_or(text.len())]
}

/// libxlutil takes a line end for a part of a name, or for the end of the target and the beginning of something else.
fn one_line(value: &str) -> Result<&str, DiskError> {
    if value.contains('\n') { Err(DiskError::Syntax(value.to_owned())) } else { Ok(value) }
}

/// Sets a string that is not set or empty.
fn once(parameter: &'static str, to: &mut Option<String>, value: &str) -> Result<(), DiskError> {
    if to.as_deref().is_some_and(|before| !before.is_empty()) {
        return Err(DiskError::Twice(parameter));
    }
    *to = Some(value.to_owned());
    Ok(())
}

/// Sets what is not set, or set to the same.
fn set<T: Copy + PartialEq>(parameter: &'static str, to: &mut Option<T>, value: T) -> Result<(), DiskError> {
    if to.is_some_and(|before| before != value) {
        return Err(DiskError::Twice(parameter));
    }
    *to = Some(value);
    Ok(())
}

fn one_of<T: Copy>(
    parameter: &'static str,
    expected: &'static str,
    names: &[(&str, T)],
    given: &str,
) -> Result<T, DiskError> {
    let found = names.iter().find(|(name, _)| *name == given);
    let error = || DiskError::Value { parameter, expected, given: given.to_owned() };
    found.map(|(_, value)| *value).ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::super::cpu_time::assert_takes_at_most;
    use super::*;
    use proptest::prelude::*;

    fn disk(text: &str) -> DiskConfig {
        DiskConfig::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    fn error(text: &str) -> String {
        DiskConfig::parse(text).unwrap_err().to_string()
    }

    /// A writable raw disk xvda on /d.
    fn plain() -> DiskConfig {
        DiskConfig {
            target: Some("/d".to_owned()),
            vdev: "xvda".to_owned(),
            format: DiskFormat::Raw,
            backend_type: None,
            backend: None,
            script: None,
            writable: true,
            cdrom: false,
            direct_io_safe: false,
            discard: None,
            specification: None,
            trusted: None,
        }
    }

    #[test]
    fn one_disk_can_be_written_in_many_ways() {
        for text in [
            "/d,raw,xvda,rw",
            "/d,raw,xvda,w",
            "/d,,xvda",
            "/d,,xvda,",
            "/d,raw,xvda:disk,w",
            "phy:/d,xvda,w",
            "file:/d,xvda",
            "tap:aio:/d,xvda",
            "raw:/d,xvda,w",
            " /d,\t,xvda",
            "format=raw, vdev=xvda, access=rw, target=/d",
            "vdev=xvda,target=/d,",
            "vdev=xvda,/d",
            "format=raw,/d,xvda",
            "devtype=disk,/d,,xvda",
            "vdev=,vdev=xvda,target=/d",
        ] {
            assert_eq!(disk(text), plain(), "{text:?}");
        }
    }

    #[test]
    fn every_parameter_is_read() {
        let text = "format=qcow2,vdev=xvdb,access=ro,backend=disks,backendtype=qdisk,specification=virtio,script=block-x,\
                    direct-io-safe,no-discard,untrusted,target=a,b=c";
        let expected = DiskConfig {
            target: Some("a,b=c".to_owned()),
            vdev: "xvdb".to_owned(),
            format: DiskFormat::Qcow2,
            backend_type: Some(DiskBackend::Qdisk),
            backend: Some("disks".to_owned()),
            script: Some("block-x".to_owned()),
            writable: false,
            cdrom: false,
            direct_io_safe: true,
            discard: Some(false),
            specification: Some(DiskSpecification::Virtio),
            trusted: Some(false),
        };
        assert_eq!(disk(text), expected);
        assert_eq!(disk("iscsi:iqn,xvda").script.as_deref(), Some("block-iscsi"));
        assert_eq!(disk("/d,,xvda,discard,trusted").trusted, Some(true));
    }

    #[test]
    fn a_drive_may_be_empty() {
        for text in [
            ",hdc:cdrom",
            ",,hdc:cdrom",
            ",empty,hdc:cdrom,r",
            "vdev=hdc,cdrom",
            "vdev=hdc,devtype=cdrom,target=",
        ] {
            let disk = disk(text);
            assert_eq!(
                (disk.vdev.as_str(), disk.format, disk.cdrom),
                ("hdc", DiskFormat::Empty, true),
                "{text:?}"
            );
            assert!(!disk.writable && disk.target.is_none_or(|target| target.is_empty()));
        }
        assert_eq!(disk("/c.iso,,hdc:cdrom,w").format, DiskFormat::Raw);
    }

    #[test]
    fn several_texts_are_one_disk() {
        let disk = DiskConfig::parse_words(&["/d,raw", "xvda", "r"]).unwrap();
        assert_eq!(disk, DiskConfig { writable: false, ..plain() });
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(error("/d"), "a disk needs a vdev (xvda for the first one in the guest)");
        assert_eq!(error(""), error("/d"));
        assert_eq!(error("/d,,,w"), error("/d"));
        assert!(error("vdev=xvda").starts_with("a disk needs a target"));
        assert!(error("/d,,xvda,w,x").contains("\"x\" is one too many"));
        assert_eq!(error("/d,,xvda,rwx"), "`access' of a disk is r, ro, w or rw, not \"rwx\"");
        assert!(error("/d,zfs,xvda").starts_with("`format' of a disk is raw,"));
        assert!(error("/d,,xvda:floppy").starts_with("`devtype' of a disk is disk or cdrom"));
        assert_eq!(error("vdev=xvda,vdev=xvdb,target=/d"), "`vdev' of a disk is given twice");
        assert_eq!(error("qcow2:/d,format=raw,vdev=xvda"), "`format' of a disk is given twice");
        assert_eq!(error("bus=ide,vdev=xvda,target=/d"), "a disk has no parameter `bus'");
        assert!(error("nfs:/d,xvda").starts_with("`nfs:' is no kind of disk"));
        assert!(error("/d=e,,xvda").contains("cannot be read from \"/d=e,,xvda\" on"));
        assert!(error("/d,,xvda,w=").contains("no parameter `w'"));
        assert!(error("/d,,xv\nda").contains("cannot be read"));
        assert!(error("colo,vdev=xvda,target=/d").contains("COLO"));
        assert!(error("active-disk=/x,vdev=xvda,target=/d").contains("COLO"));
    }

    #[test]
    fn names_stand_at_their_places() {
        assert!(DiskFormat::NAMES.iter().all(|(name, format)| format.name() == *name));
        assert!(DiskBackend::NAMES.iter().all(|(name, backend)| backend.name() == *name));
        assert!(DiskSpecification::NAMES.iter().all(|(name, specification)| specification.name() == *name));
    }

    #[test]
    fn a_long_text_takes_no_longer_than_its_length() {
        assert_takes_at_most(4, || {
            for piece in [",", "cdrom,", " ", "phy:", "a", "vdev=,", "a:b", " cdrom,", "=", "discard, "] {
                let _ = DiskConfig::parse(&piece.repeat(1 << 16));
            }
        });
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text in any::<String>()) {
            let _ = DiskConfig::parse(&text);
        }

        #[test]
        fn what_was_written_is_read(target in "/[a-z0-9=:, é]{0,20}[a-z]", vdev in "xvd[a-z]", writable: bool) {
            let access = if writable { "rw" } else { "ro" };
            let read = disk(&format!("vdev={vdev},access={access},target={target}"));
            prop_assert_eq!(read, DiskConfig { target: Some(target), vdev, writable, ..plain() });
        }
    }
}
