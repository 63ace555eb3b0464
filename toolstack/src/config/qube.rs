//! The typed configuration of a qube, out of settings or a closure.

use super::closure::{CLOSURE_MEMORY_MIB, Closure};
use super::keys::{self, Support};
use super::xl_cfg::{Data, Position, Setting, Settings, Value};
use crate::device::{self, DeviceError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use uuid::Uuid;

/// Memory when a file says nothing, in MiB: libxl's default.
pub const DEFAULT_MEMORY_MIB: u64 = 32;
/// The most memory of a guest, in MiB: 16 TiB, more than Xen supports.
pub const MEMORY_LIMIT_MIB: u64 = 16 << 20;
/// The most vCPUs of an HVM or PVH guest (`HVM_MAX_VCPUS`, xen/include/public/hvm/hvm_info_table.h).
pub const VCPUS_LIMIT: u32 = 128;
/// Bytes of a name. xenstore would take more, a file name (of a log, of a socket) would not.
const NAME_LIMIT: usize = 200;
/// The MMIO hole below 4 GiB, in MiB: what a PVH guest needs at least, and what `xl` allows an HVM guest at most.
const MMIO_HOLE_MIB: (i64, i64) = (64, 3840);

/// What is wrong with a configuration. Each message begins with the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A key that nobody knows.
    #[error("{position}: unknown key `{key}'{}", suggestion(.nearest))]
    UnknownKey {
        /// Where.
        position: Position,
        /// As it was written.
        key: String,
        /// What may have been meant.
        nearest: Option<&'static str>,
    },
    /// A key of `xl` that says something about another kind of guest.
    #[error("{position}: `{key}' is for {guest} guests, this is a {this} guest")]
    OtherGuest {
        /// Where.
        position: Position,
        /// The key.
        key: String,
        /// The kind.
        guest: &'static str,
        /// Which guests this is one of.
        this: &'static str,
    },
    /// A key of `xl` that is not supported.
    #[error("{position}: `{key}' is not supported")]
    NotSupported {
        /// Where.
        position: Position,
        /// The key.
        key: String,
    },
    /// A key of `xl` of which other values are not supported.
    #[error("{position}: `{key}' can only be {}, not {given}", .possible.join(" or "))]
    OnlyValues {
        /// Where the value is.
        position: Position,
        /// The key.
        key: String,
        /// What it may be.
        possible: &'static [&'static str],
        /// What it is.
        given: String,
    },
    /// A list where one value is wanted.
    #[error("{position}: `{key}' is one value, not a list")]
    NotOneValue {
        /// Where the value is.
        position: Position,
        /// The key.
        key: String,
    },
    /// Something else than a number.
    #[error("{position}: `{key}' is a number, not {given:?}")]
    NotANumber {
        /// Where the value is.
        position: Position,
        /// The key.
        key: String,
        /// What it is.
        given: String,
    },
    /// A number that is too small or too large.
    #[error("{position}: `{key}' is {min} to {max}, not {given}")]
    Range {
        /// Where the value is.
        position: Position,
        /// The key.
        key: String,
        /// The least.
        min: i64,
        /// The most.
        max: i64,
        /// What it is.
        given: i64,
    },
    /// A word that is none of those that the key takes.
    #[error("{position}: `{key}' is {expected}, not {given:?}")]
    Word {
        /// Where the value is.
        position: Position,
        /// The key.
        key: String,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        given: String,
    },
    /// A number that must not be below another.
    #[error("{position}: `{key}' is {given}, less than `{other}', which is {least}")]
    Below {
        /// Where the value is.
        position: Position,
        /// The key.
        key: &'static str,
        /// What it is.
        given: u64,
        /// The key of the other.
        other: &'static str,
        /// The other's value.
        least: u64,
    },
    /// A key without which there is no qube.
    #[error("{source_name}: `{key}' is missing{hint}")]
    Missing {
        /// The file.
        source_name: String,
        /// The key.
        key: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A line that describes no device that could be attached.
    #[error("{position}: `{key}': {problem}")]
    Device {
        /// Where the line is.
        position: Position,
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A key that a closure answers itself.
    #[error("{position}: `{key}' comes from the closure")]
    FromClosure {
        /// Where.
        position: Position,
        /// The key.
        key: String,
    },
}

fn suggestion(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |key| format!(" (did you mean `{key}'?)"))
}

/// Something that `xl` too does not do, but only warns of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWarning {
    /// Where.
    pub position: Position,
    /// What.
    pub message: String,
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.position, self.message)
    }
}

/// What happens when a qube ends (`libxl_action_on_shutdown`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// `destroy`: it is taken away.
    Destroy,
    /// `restart`: another is made from the same configuration.
    Restart,
    /// `rename-restart`: the same, and the old one is kept under another name.
    RenameRestart,
    /// `preserve`: it stays as it ended.
    Preserve,
    /// `coredump-destroy`: its memory is written to a file first.
    CoredumpDestroy,
    /// `coredump-restart`
    CoredumpRestart,
    /// `soft-reset`: the same domain begins anew.
    SoftReset,
}

impl Action {
    const ALL: [Self; 7] = [
        Self::Destroy,
        Self::Restart,
        Self::RenameRestart,
        Self::Preserve,
        Self::CoredumpDestroy,
        Self::CoredumpRestart,
        Self::SoftReset,
    ];

    /// Whether [`Watcher`](crate::watch::Watcher) does it.
    fn is_carried_out(self) -> bool {
        self != Self::SoftReset
    }

    /// As it is written in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Destroy => "destroy",
            Self::Restart => "restart",
            Self::RenameRestart => "rename-restart",
            Self::Preserve => "preserve",
            Self::CoredumpDestroy => "coredump-destroy",
            Self::CoredumpRestart => "coredump-restart",
            Self::SoftReset => "soft-reset",
        }
    }
}

/// What happens when the qube ends, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actions {
    /// `on_poweroff`
    pub poweroff: Action,
    /// `on_reboot`
    pub reboot: Action,
    /// `on_watchdog`
    pub watchdog: Action,
    /// `on_crash`
    pub crash: Action,
    /// `on_soft_reset`
    pub soft_reset: Action,
}

impl Default for Actions {
    /// `xl`'s.
    fn default() -> Self {
        Self {
            poweroff: Action::Destroy,
            reboot: Action::Restart,
            watchdog: Action::Destroy,
            crash: Action::Destroy,
            soft_reset: Action::SoftReset,
        }
    }
}

/// What becomes of timer ticks while a vCPU does not run (`HVMPTM_*`, xen/include/public/hvm/params.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum TimerMode {
    /// The guest's time stands still.
    DelayForMissedTicks = 0,
    /// Time goes on, missed ticks are delivered late. libxl's default.
    NoDelayForMissedTicks = 1,
    /// Time goes on, missed ticks are dropped.
    NoMissedTicksPending = 2,
    /// Time goes on, one of the missed ticks is delivered.
    OneMissedTickPending = 3,
}

impl TimerMode {
    const NAMES: [(&'static str, Self); 4] = [
        ("delay_for_missed_ticks", Self::DelayForMissedTicks),
        ("no_delay_for_missed_ticks", Self::NoDelayForMissedTicks),
        ("no_missed_ticks_pending", Self::NoMissedTicksPending),
        ("one_missed_tick_pending", Self::OneMissedTickPending),
    ];

    /// libxl's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

/// The kinds of guests that can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestType {
    /// In hardware, without a device model.
    #[default]
    Pvh,
    /// By hypercalls: for machines without hardware virtualisation.
    Pv,
}

impl GuestType {
    /// libxl's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pvh => "pvh",
            Self::Pv => "pv",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Pvh => "PVH",
            Self::Pv => "PV",
        }
    }
}

/// Everything that one has to know to make a qube.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QubeConfig {
    /// The kind of guest.
    #[serde(default)]
    pub guest: GuestType,
    /// Unique on the host; 1 to 200 bytes without `/` and control characters.
    pub name: String,
    /// Made up when the configuration gives none.
    pub uuid: Uuid,
    /// The kernel's file, or a unified kernel image, or a lanzaboote stub.
    pub kernel: PathBuf,
    /// The initrd's file. Without one, that of a unified kernel image is used.
    pub ramdisk: Option<PathBuf>,
    /// A program that appends secrets to a copy of the initrd. It runs in dom0, as whoever creates the qube.
    #[serde(default)]
    pub initrd_secrets: Option<PathBuf>,
    /// The kernel's command line; has no NUL. When it is empty, that of a unified kernel image is used.
    pub cmdline: String,
    /// Memory at the start, in MiB.
    pub memory_mib: u64,
    /// Memory to which it may grow, in MiB; at least `memory_mib`.
    pub max_memory_mib: u64,
    /// vCPUs at the start; 1 to 128.
    pub vcpus: u32,
    /// vCPUs that it may have; at least `vcpus`, at most 128.
    pub max_vcpus: u32,
    /// What happens when it ends.
    pub actions: Actions,
    /// The highest event-channel port.
    pub max_event_channels: u32,
    /// Frames of its grant table; `None` for the hypervisor's default.
    pub max_grant_frames: Option<u32>,
    /// Frames for tracking the grants that it maps; `None` for the hypervisor's default.
    pub max_maptrack_frames: Option<u32>,
    /// What becomes of missed timer ticks.
    pub timer_mode: TimerMode,
    /// Memory for its nested page tables, in MiB (`shadow_memory`); `None` for what libxl would compute.
    pub paging_memory_mib: Option<u64>,
    /// The range below 4 GiB that holds no memory, in MiB (`mmio_hole`, which `xl` reads for HVM guests); `None` for the
    /// 64 MiB of a PVH guest.
    pub mmio_hole_mib: Option<u64>,
    /// It will have backends: xenstore gets places for them.
    pub driver_domain: bool,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<device::Disk>,
    /// Its network interfaces.
    #[serde(default)]
    pub nics: Vec<device::Nic>,
}

impl QubeConfig {
    /// Reads the settings of a file, `source_name`, and of the command line.
    ///
    /// `type` must be there and be `"pvh"` or `"pv"`: without it, `xl` makes a PV guest.
    ///
    /// # Errors
    /// The first thing that is wrong; no key is passed over.
    pub fn from_settings(
        source_name: &str,
        settings: &Settings,
    ) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        Reader { source_name, settings }.read(None)
    }

    /// Takes kernel, initrd, command line and name from a closure, and the rest from `settings`: those of the command
    /// line. `extra` is appended to the closure's command line, `cmdline` replaces it, `name` replaces the name.
    ///
    /// Without `memory` it has [`CLOSURE_MEMORY_MIB`].
    ///
    /// # Errors
    /// The first thing that is wrong; no key is passed over. That the closure's files exist is for
    /// [`Closure::check`].
    pub fn from_closure(
        closure: &Closure,
        settings: &Settings,
    ) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        let source_name = closure.toplevel.display().to_string();
        Reader { source_name: &source_name, settings }.read(Some(closure))
    }
}

struct Reader<'a> {
    source_name: &'a str,
    settings: &'a Settings,
}

impl Reader<'_> {
    fn read(self, closure: Option<&Closure>) -> Result<(QubeConfig, Vec<ConfigWarning>), ConfigError> {
        let guest = self.guest(closure.is_some());
        for setting in self.settings.iter() {
            // What is wrong with the type itself is said below, where nothing else is wrong before it.
            check_key(setting, closure.is_some(), *guest.as_ref().unwrap_or(&GuestType::Pvh))?;
        }
        let guest = guest?;
        let (kernel, ramdisk) = match closure {
            Some(closure) => (closure.kernel.clone(), closure.initrd.clone()),
            None => (
                self.path("kernel")?
                    .ok_or_else(|| self.missing("kernel", " (a file with the guest's kernel)"))?,
                self.path("ramdisk")?,
            ),
        };
        let name = match self.text("name")? {
            Some((setting, name)) => checked_name(setting, name)?,
            None => closure.and_then(Closure::name).ok_or_else(|| self.missing("name", ""))?,
        };
        let (memory_mib, max_memory_mib) = self.memory(closure.is_some())?;
        let (vcpus, max_vcpus) = self.vcpus()?;
        let (cmdline, warnings) = self.cmdline(closure)?;
        let frames = |key| {
            let frames = self.number(key, 0, i32::MAX.into())?;
            // 0..=i32::MAX
            Ok(frames.map(|(_, frames)| frames as u32))
        };
        let config = QubeConfig {
            guest,
            name,
            uuid: self.uuid()?,
            kernel,
            ramdisk,
            initrd_secrets: closure.and_then(|closure| closure.initrd_secrets.clone()),
            cmdline,
            memory_mib,
            max_memory_mib,
            vcpus,
            max_vcpus,
            actions: self.actions()?,
            max_event_channels: match self.number("max_event_channels", 1, i32::MAX.into())? {
                Some((_, channels)) => channels as u32,
                // libxl's
                None => 1_023,
            },
            max_grant_frames: frames("max_grant_frames")?,
            max_maptrack_frames: frames("max_maptrack_frames")?,
            timer_mode: self.timer_mode()?,
            paging_memory_mib: self.mebibytes("shadow_memory")?.map(|(_, mib)| mib),
            mmio_hole_mib: self
                .number("mmio_hole", MMIO_HOLE_MIB.0, MMIO_HOLE_MIB.1)?
                .map(|(_, mib)| mib.unsigned_abs()),
            driver_domain: self
                .number("driver_domain", i64::MIN, i64::MAX)?
                .is_some_and(|(_, flag)| flag != 0),
            disks: self.devices("disk", |spec| device::spec::disk(&[spec]))?,
            nics: self.devices("vif", |spec| device::spec::nic(&spec.split(',').collect::<Vec<_>>()))?,
        };
        Ok((config, warnings))
    }

    fn guest(&self, by_closure: bool) -> Result<GuestType, ConfigError> {
        match self.text("type")? {
            Some((_, "pvh")) => Ok(GuestType::Pvh),
            Some((_, "pv")) => Ok(GuestType::Pv),
            Some((setting, given)) => {
                Err(word(setting, "\"pvh\" or \"pv\" (other guests are not supported)", given))
            }
            None if by_closure => Ok(GuestType::Pvh),
            None => Err(self.missing("type", " (write type = \"pvh\"; without it, `xl' makes a PV guest)")),
        }
    }

    fn memory(&self, by_closure: bool) -> Result<(u64, u64), ConfigError> {
        let memory = self.mebibytes("memory")?;
        let max = self.mebibytes("maxmem")?;
        // As libxl: the one stands for the other.
        let default = if by_closure { CLOSURE_MEMORY_MIB } else { DEFAULT_MEMORY_MIB };
        let mib = memory.or(max).map_or(default, |(_, mib)| mib);
        match max {
            Some((setting, max)) if max < mib => Err(below(setting, "maxmem", max, "memory", mib)),
            Some((_, max)) => Ok((mib, max)),
            None => Ok((mib, mib)),
        }
    }

    fn vcpus(&self) -> Result<(u32, u32), ConfigError> {
        // 1..=VCPUS_LIMIT
        let count =
            |key| Ok(self.number(key, 1, VCPUS_LIMIT.into())?.map(|(setting, n)| (setting, n as u32)));
        let vcpus = count("vcpus")?.map_or(1, |(_, vcpus)| vcpus);
        match count("maxvcpus")? {
            Some((setting, max)) if max < vcpus => {
                Err(below(setting, "maxvcpus", max.into(), "vcpus", vcpus.into()))
            }
            Some((_, max)) => Ok((vcpus, max)),
            None => Ok((vcpus, vcpus)),
        }
    }

    /// The command line, and a warning for each key that has no part in it.
    fn cmdline(&self, closure: Option<&Closure>) -> Result<(String, Vec<ConfigWarning>), ConfigError> {
        let (cmdline, root, extra) = (self.text("cmdline")?, self.text("root")?, self.text("extra")?);
        if let Some((_, cmdline)) = cmdline {
            let ignored = [root, extra].into_iter().flatten();
            let warnings = ignored.map(|(setting, _)| ConfigWarning {
                position: setting.position.clone(),
                message: format!("`{}' is ignored in favour of `cmdline'", setting.name),
            });
            return Ok((cmdline.to_owned(), warnings.collect()));
        }
        let words = [
            closure.map(Closure::cmdline),
            root.map(|(_, root)| format!("root={root}")),
            extra.map(|(_, extra)| extra.to_owned()),
        ];
        Ok((words.into_iter().flatten().collect::<Vec<_>>().join(" "), Vec::new()))
    }

    fn uuid(&self) -> Result<Uuid, ConfigError> {
        let Some((setting, text)) = self.text("uuid")? else { return Ok(Uuid::new_v4()) };
        // The crate knows more notations than uuid_parse(3), which libxl uses.
        Uuid::parse_str(text)
            .ok()
            .filter(|_| text.len() == 36)
            .ok_or_else(|| word(setting, "a UUID (12345678-1234-1234-1234-123456789abc)", text))
    }

    fn actions(&self) -> Result<Actions, ConfigError> {
        let default = Actions::default();
        let action = |key, default| {
            let Some((setting, text)) = self.text(key)? else { return Ok(default) };
            let found = Action::ALL.into_iter().find(|action| action.name() == text);
            // xl knows more of them; what is not carried out is refused here rather than forgotten when it is due.
            let found = found.filter(|action| action.is_carried_out() || *action == default);
            let expected = "destroy, restart, rename-restart, preserve, coredump-destroy or coredump-restart";
            found.ok_or_else(|| word(setting, expected, text))
        };
        Ok(Actions {
            poweroff: action("on_poweroff", default.poweroff)?,
            reboot: action("on_reboot", default.reboot)?,
            watchdog: action("on_watchdog", default.watchdog)?,
            crash: action("on_crash", default.crash)?,
            soft_reset: action("on_soft_reset", default.soft_reset)?,
        })
    }

    fn timer_mode(&self) -> Result<TimerMode, ConfigError> {
        let Some((setting, text)) = self.text("timer_mode")? else {
            return Ok(TimerMode::NoDelayForMissedTicks);
        };
        let number = parse_number(text);
        TimerMode::NAMES
            .into_iter()
            .find(|(name, mode)| *name == text || number == Some(*mode as i64))
            .map(|(_, mode)| mode)
            .ok_or_else(|| {
                let expected = "delay_for_missed_ticks, no_delay_for_missed_ticks, no_missed_ticks_pending or \
                                one_missed_tick_pending";
                word(setting, expected, text)
            })
    }

    fn path(&self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        match self.text(key)? {
            // libxl too takes an empty ramdisk for none; an empty kernel is a missing one.
            Some((_, "")) | None => Ok(None),
            Some((_, path)) => Ok(Some(path.into())),
        }
    }

    /// A list of devices.
    fn devices<T>(
        &self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, DeviceError>,
    ) -> Result<Vec<T>, ConfigError> {
        let Some(setting) = self.settings.get(key) else { return Ok(Vec::new()) };
        let not_strings = |given| word(setting, "a list of strings", given);
        let list = match &setting.value.data {
            Data::List(list) => list,
            Data::Text(text) => return Err(not_strings(text)),
        };
        let device = |value: &Value| {
            let Data::Text(spec) = &value.data else { return Err(not_strings("a list in the list")) };
            read(spec).map_err(|error| ConfigError::Device {
                position: value.position.clone(),
                key: setting.name.clone(),
                problem: error.to_string(),
            })
        };
        list.iter().map(device).collect()
    }

    fn mebibytes(&self, key: &'static str) -> Result<Option<(&Setting, u64)>, ConfigError> {
        // At most 2^24.
        let number = self.number(key, 1, MEMORY_LIMIT_MIB as i64)?;
        Ok(number.map(|(setting, mib)| (setting, mib.unsigned_abs())))
    }

    fn number(&self, key: &'static str, min: i64, max: i64) -> Result<Option<(&Setting, i64)>, ConfigError> {
        let Some((setting, text)) = self.text(key)? else { return Ok(None) };
        let (position, key) = (setting.value.position.clone(), key.to_owned());
        match parse_number(text).filter(|_| !setting.added) {
            Some(given) if (min..=max).contains(&given) => Ok(Some((setting, given))),
            Some(given) => Err(ConfigError::Range { position, key, min, max, given }),
            None => Err(ConfigError::NotANumber { position, key, given: text.to_owned() }),
        }
    }

    fn text(&self, key: &'static str) -> Result<Option<(&Setting, &str)>, ConfigError> {
        let Some(setting) = self.settings.get(key) else { return Ok(None) };
        match &setting.value.data {
            Data::Text(text) => Ok(Some((setting, text))),
            Data::List(_) => {
                let position = setting.value.position.clone();
                Err(ConfigError::NotOneValue { position, key: key.to_owned() })
            }
        }
    }

    fn missing(&self, key: &'static str, hint: &'static str) -> ConfigError {
        ConfigError::Missing { source_name: self.source_name.to_owned(), key, hint }
    }
}

fn word(setting: &Setting, expected: &'static str, given: &str) -> ConfigError {
    let (position, key) = (setting.value.position.clone(), setting.name.clone());
    ConfigError::Word { position, key, expected, given: given.to_owned() }
}

fn below(setting: &Setting, key: &'static str, given: u64, other: &'static str, least: u64) -> ConfigError {
    ConfigError::Below { position: setting.value.position.clone(), key, given, other, least }
}

/// Refuses what is not read.
fn check_key(setting: &Setting, by_closure: bool, this: GuestType) -> Result<(), ConfigError> {
    let (position, key) = (setting.position.clone(), setting.name.clone());
    let support = keys::support(&key);
    match support {
        Some(Support::Read) if this == GuestType::Pv && keys::PVH_ALONE.contains(&key.as_str()) => {
            Err(ConfigError::OtherGuest { position, key, guest: "PVH", this: this.title() })
        }
        Some(Support::Read) if by_closure && matches!(key.as_str(), "kernel" | "ramdisk" | "root") => {
            Err(ConfigError::FromClosure { position, key })
        }
        Some(Support::Read) => Ok(()),
        Some(_) if keys::asks_for_nothing(&setting.value.data) => Ok(()),
        Some(Support::Only(possible)) => {
            let position = setting.value.position.clone();
            let Data::Text(given) = &setting.value.data else {
                return Err(ConfigError::NotOneValue { position, key });
            };
            let same = |value: &&str| {
                *value == given || parse_number(value).is_some_and(|n| parse_number(given) == Some(n))
            };
            if possible.iter().any(same) {
                return Ok(());
            }
            Err(ConfigError::OnlyValues { position, key, possible, given: given.clone() })
        }
        Some(Support::For("PV")) if this == GuestType::Pv => Err(ConfigError::NotSupported { position, key }),
        Some(Support::For(guest)) => {
            Err(ConfigError::OtherGuest { position, key, guest, this: this.title() })
        }
        Some(Support::Missing) => Err(ConfigError::NotSupported { position, key }),
        None => Err(ConfigError::UnknownKey { position, nearest: keys::nearest(&key), key }),
    }
}

fn checked_name(setting: &Setting, name: &str) -> Result<String, ConfigError> {
    let bad =
        name.is_empty() || name.len() > NAME_LIMIT || name.contains(|c: char| c == '/' || c.is_control());
    if bad {
        Err(word(setting, "1 to 200 bytes without slashes and control characters", name))
    } else {
        Ok(name.to_owned())
    }
}

/// A number as strtol(3) reads it with base 0: blanks, a sign, `0x` or `0` in front; nothing may follow.
fn parse_number(text: &str) -> Option<i64> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (base, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    // from_str_radix would take another sign.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    let number = i128::from_str_radix(digits, base).ok()?;
    i64::try_from(if negative { -number } else { number }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const NONE: &[&str] = &[];
    const BASE: &str = "type='pvh'\nname='work'\nkernel='/boot/vmlinuz'\n";

    fn read(text: &str) -> Result<(QubeConfig, Vec<ConfigWarning>), ConfigError> {
        QubeConfig::from_settings("work.cfg", &Settings::parse("work.cfg", text.as_bytes(), NONE).unwrap())
    }

    /// With the keys that must be there, on lines of their own.
    fn with(text: &str) -> Result<QubeConfig, ConfigError> {
        read(&format!("{BASE}{text}")).map(|(config, _)| config)
    }

    fn error(text: &str) -> String {
        with(text).unwrap_err().to_string()
    }

    #[test]
    fn a_pv_guest_has_no_keys_of_hardware_virtualisation() {
        let read = |text: &str| {
            let settings = Settings::parse("pv.cfg", text.as_bytes(), &[""; 0]).unwrap();
            QubeConfig::from_settings("pv.cfg", &settings)
        };
        let base = "type='pv'\nname='work'\nkernel='/k'\n";
        let (config, _) = read(&format!("{base}memory=256\nmaxmem=512")).unwrap();
        assert_eq!((config.guest, config.memory_mib, config.max_memory_mib), (GuestType::Pv, 256, 512));
        for key in keys::PVH_ALONE {
            let error = read(&format!("{base}{key}=100")).unwrap_err().to_string();
            assert_eq!(error, format!("pv.cfg:4:1: `{key}' is for PVH guests, this is a PV guest"));
        }
        let error = read(&format!("{base}e820_host=1")).unwrap_err().to_string();
        assert_eq!(error, "pv.cfg:4:1: `e820_host' is not supported");
        let error = read(&format!("{base}vnc=1")).unwrap_err().to_string();
        assert_eq!(error, "pv.cfg:4:1: `vnc' is for HVM guests, this is a PV guest");
    }

    #[test]
    fn the_least_configuration_has_libxls_defaults() {
        let config = with("").unwrap();
        let expected = QubeConfig {
            guest: GuestType::Pvh,
            name: "work".to_owned(),
            uuid: config.uuid,
            kernel: "/boot/vmlinuz".into(),
            ramdisk: None,
            initrd_secrets: None,
            cmdline: String::new(),
            memory_mib: 32,
            max_memory_mib: 32,
            vcpus: 1,
            max_vcpus: 1,
            actions: Actions::default(),
            max_event_channels: 1023,
            max_grant_frames: None,
            max_maptrack_frames: None,
            timer_mode: TimerMode::NoDelayForMissedTicks,
            paging_memory_mib: None,
            mmio_hole_mib: None,
            driver_domain: false,
            disks: Vec::new(),
            nics: Vec::new(),
        };
        assert_eq!(config, expected);
        assert_ne!(config.uuid, with("").unwrap().uuid);
    }

    #[test]
    fn actions_that_nobody_carries_out_are_refused() {
        for action in ["soft-reset", "coredump"] {
            let settings = Settings::parse(
                "work.cfg",
                format!("type='pvh'\nname='work'\nkernel='/k'\non_crash='{action}'\n").as_bytes(),
                &[""; 0],
            )
            .unwrap();
            let error = QubeConfig::from_settings("work.cfg", &settings).unwrap_err().to_string();
            assert!(error.starts_with("work.cfg:4:10: `on_crash' is destroy, restart,"), "{error}");
        }
    }

    #[test]
    fn every_key_is_read() {
        let config = with(
            "uuid='12345678-1234-1234-1234-123456789ABC'\nramdisk='/boot/initrd'\nroot='/dev/xvda'\nextra='quiet'\n\
             memory=512\nmaxmem='0x400'\nvcpus=2\nmaxvcpus=010\non_poweroff='preserve'\non_reboot='destroy'\n\
             on_watchdog='restart'\non_crash='preserve'\non_soft_reset='rename-restart'\n\
             max_event_channels=2047\nmax_grant_frames=64\nmax_maptrack_frames=0\n\
             timer_mode='no_missed_ticks_pending'\nshadow_memory=9\nmmio_hole=2048\ndriver_domain=1\n",
        )
        .unwrap();
        let expected = QubeConfig {
            guest: GuestType::Pvh,
            name: "work".to_owned(),
            uuid: Uuid::from_u128(0x12345678_1234_1234_1234_123456789abc),
            kernel: "/boot/vmlinuz".into(),
            ramdisk: Some("/boot/initrd".into()),
            initrd_secrets: None,
            cmdline: "root=/dev/xvda quiet".to_owned(),
            memory_mib: 512,
            max_memory_mib: 1024,
            vcpus: 2,
            max_vcpus: 8,
            actions: Actions {
                poweroff: Action::Preserve,
                reboot: Action::Destroy,
                watchdog: Action::Restart,
                crash: Action::Preserve,
                soft_reset: Action::RenameRestart,
            },
            max_event_channels: 2047,
            max_grant_frames: Some(64),
            max_maptrack_frames: Some(0),
            timer_mode: TimerMode::NoMissedTicksPending,
            paging_memory_mib: Some(9),
            mmio_hole_mib: Some(2048),
            driver_domain: true,
            disks: Vec::new(),
            nics: Vec::new(),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn the_command_line_is_put_together_as_xl_does() {
        let cmdline = |text: &str| with(text).unwrap().cmdline;
        assert_eq!(cmdline("root='/dev/xvda'"), "root=/dev/xvda");
        assert_eq!(cmdline("extra='a b'"), "a b");
        assert_eq!(cmdline("cmdline='c'"), "c");
        let (config, warnings) = read(&format!("{BASE}cmdline='c'\nroot='r'; extra='e'")).unwrap();
        assert_eq!(config.cmdline, "c");
        let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        let ignored = |at, key| format!("work.cfg:5:{at}: `{key}' is ignored in favour of `cmdline'");
        assert_eq!(warnings, [ignored(1, "root"), ignored(11, "extra")]);
    }

    #[test]
    fn memory_and_vcpus_stand_for_their_maxima() {
        let sizes = |text: &str| {
            let config = with(text).unwrap();
            (config.memory_mib, config.max_memory_mib, config.vcpus, config.max_vcpus)
        };
        assert_eq!(sizes("memory=100"), (100, 100, 1, 1));
        assert_eq!(sizes("maxmem=100"), (100, 100, 1, 1));
        assert_eq!(sizes("vcpus=4"), (32, 32, 4, 4));
        assert_eq!(sizes("maxvcpus=4"), (32, 32, 1, 4));
        assert_eq!(
            error("memory=200\nmaxmem = 100"),
            "work.cfg:5:10: `maxmem' is 100, less than `memory', which is 200"
        );
        assert_eq!(
            error("vcpus=3\nmaxvcpus=2"),
            "work.cfg:5:10: `maxvcpus' is 2, less than `vcpus', which is 3"
        );
    }

    #[test]
    fn wrong_values_name_key_and_place() {
        assert_eq!(error("memory = 'lots'"), "work.cfg:4:10: `memory' is a number, not \"lots\"");
        assert_eq!(error("memory=08"), "work.cfg:4:8: `memory' is a number, not \"08\"");
        assert_eq!(error("memory+=1"), "work.cfg:4:9: `memory' is a number, not \"1\"");
        assert_eq!(error("memory='-5'"), "work.cfg:4:8: `memory' is 1 to 16777216, not -5");
        assert_eq!(error("memory=0"), "work.cfg:4:8: `memory' is 1 to 16777216, not 0");
        assert_eq!(
            error("memory=99999999999999999999"),
            "work.cfg:4:8: `memory' is a number, not \"99999999999999999999\""
        );
        assert_eq!(error("vcpus=129"), "work.cfg:4:7: `vcpus' is 1 to 128, not 129");
        assert_eq!(error("memory=[512]"), "work.cfg:4:8: `memory' is one value, not a list");
        assert_eq!(error("mmio_hole=63"), "work.cfg:4:11: `mmio_hole' is 64 to 3840, not 63");
        assert!(error("on_crash='explode'").starts_with("work.cfg:4:10: `on_crash' is destroy, restart,"));
        assert!(error("uuid='1234'").starts_with("work.cfg:4:6: `uuid' is a UUID"));
        assert!(error("uuid='12345678123412341234123456789abc'").contains("is a UUID"));
        assert!(error("timer_mode=4").starts_with("work.cfg:4:12: `timer_mode' is delay_for_missed_ticks,"));
        assert!(error("name='a/b'").contains("without slashes"));
        assert!(error("name=''").contains("1 to 200 bytes"));
        assert!(error("name=\"a\\nb\"").contains("control characters"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |text: &str| read(text).unwrap_err().to_string();
        assert_eq!(
            error("type='pvh'\nname='a'"),
            "work.cfg: `kernel' is missing (a file with the guest's kernel)"
        );
        assert_eq!(
            error("type='pvh'\nname='a'\nkernel=''"),
            "work.cfg: `kernel' is missing (a file with the guest's kernel)"
        );
        assert_eq!(error("type='pvh'\nkernel='k'"), "work.cfg: `name' is missing");
        assert!(
            error("name='a'\nkernel='k'").starts_with("work.cfg: `type' is missing (write type = \"pvh\"")
        );
    }

    #[test]
    fn keys_that_are_not_read_are_refused() {
        assert_eq!(error("memry=1"), "work.cfg:4:1: unknown key `memry' (did you mean `memory'?)");
        assert_eq!(error("frobnicate=1"), "work.cfg:4:1: unknown key `frobnicate'");
        assert_eq!(error("vnc=1"), "work.cfg:4:1: `vnc' is for HVM guests, this is a PVH guest");
        assert_eq!(error("e820_host=1"), "work.cfg:4:1: `e820_host' is for PV guests, this is a PVH guest");
        assert_eq!(error("vtpm=['x']"), "work.cfg:4:1: `vtpm' is not supported");
        let qcow = error("disk=['/x,qcow2,xvda']");
        assert!(qcow.starts_with("work.cfg:4:7: `disk': "), "{qcow}");
        assert_eq!(error("vif='mac=x'"), "work.cfg:4:5: `vif' is a list of strings, not \"mac=x\"");
        assert!(error("vif=[['x']]").ends_with("not \"a list in the list\""));
        let config = with("disk=['/a,raw,xvda,r']\nvif=['bridge=br0']").unwrap();
        assert_eq!((config.disks[0].target.as_str(), config.nics[0].bridge()), ("/a", "br0"));
        assert_eq!(error("acpi=0"), "work.cfg:4:6: `acpi' can only be 1, not 0");
        assert_eq!(
            error("tsc_mode='native'"),
            "work.cfg:4:10: `tsc_mode' can only be default or 0, not native"
        );
        assert_eq!(error("hap=[1]"), "work.cfg:4:5: `hap' is one value, not a list");
        let type_error = read("type='hvm'\nname='a'\nkernel='k'").unwrap_err().to_string();
        assert_eq!(
            type_error,
            "work.cfg:1:6: `type' is \"pvh\" or \"pv\" (other guests are not supported), not \"hvm\""
        );
        with("acpi='0x1'\ntsc_mode='default'\ndisk=[]\nvif=[]\nnestedhvm=0").unwrap();
    }

    fn closure() -> Closure {
        Closure {
            toplevel: "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-vault-25.05".into(),
            label: String::new(),
            kernel: "/k".into(),
            initrd: Some("/i".into()),
            initrd_secrets: None,
            init: "/init".into(),
            kernel_params: vec!["quiet".to_owned()],
            specialisations: BTreeMap::new(),
        }
    }

    fn from_closure(arguments: &[&str]) -> Result<QubeConfig, ConfigError> {
        let settings = Settings::parse("", b"", arguments).unwrap();
        QubeConfig::from_closure(&closure(), &settings).map(|(config, _)| config)
    }

    #[test]
    fn a_closure_is_a_configuration() {
        let config = from_closure(&[]).unwrap();
        assert_eq!((config.name.as_str(), config.memory_mib, config.vcpus), ("vault", 512, 1));
        assert_eq!((config.kernel, config.ramdisk), ("/k".into(), Some("/i".into())));
        assert_eq!(config.cmdline, "quiet init=/init");
    }

    #[test]
    fn arguments_change_what_a_closure_leaves_open() {
        let config = from_closure(&["memory=1024", "name='v2'", "extra='debug'", "vcpus=2"]).unwrap();
        assert_eq!((config.name.as_str(), config.memory_mib, config.vcpus), ("v2", 1024, 2));
        assert_eq!(config.cmdline, "quiet init=/init debug");
        assert_eq!(from_closure(&["cmdline='c'"]).unwrap().cmdline, "c");
        from_closure(&["type='pvh'"]).unwrap();
        let error = |argument| from_closure(&["vcpus=2", argument]).unwrap_err().to_string();
        assert_eq!(error("kernel='/x'"), "command line:2:1: `kernel' comes from the closure");
        assert_eq!(error("memry=1"), "command line:2:1: unknown key `memry' (did you mean `memory'?)");
        assert!(error("type='hvm'").contains("other guests are not supported"));
    }

    #[test]
    fn numbers_are_read_as_strtol_reads_them() {
        for (text, number) in [
            ("0", Some(0)),
            ("010", Some(8)),
            ("0x1F", Some(31)),
            (" \t+7", Some(7)),
            ("-0x10", Some(-16)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("-9223372036854775808", Some(i64::MIN)),
            ("08", None),
            ("0x", None),
            ("", None),
            ("-", None),
            ("+-1", None),
            ("1 ", None),
            ("1k", None),
            ("é", None),
        ] {
            assert_eq!(parse_number(text), number, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_settings_never_panic(key in "[a-z][a-z_]{0,10}", value in "[^\\x00\\n'\\\\]{0,12}") {
            let text = format!("{BASE}{key}='{value}'\nmemory='{value}'");
            let _ = read(&text);
        }

        #[test]
        fn every_known_key_is_read_or_refused(value in "[0-9a-z]{0,6}") {
            for key in ["memory", "vif", "vnc", "hap", "uuid", "on_crash", "timer_mode", "pvshim"] {
                let _ = with(&format!("{key}='{value}'"));
            }
        }
    }
}
