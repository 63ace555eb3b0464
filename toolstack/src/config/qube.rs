//! The typed configuration of a qube, out of settings or a closure.

use super::closure::{CLOSURE_MEMORY_MIB, Closure};
use super::cpus::{self, CpusError, HostCpus};
use super::disk::{DiskConfig, DiskError};
use super::keys::{self, Support};
use super::nic::{NicConfig, NicError};
use super::parameters::{self, ChannelConfig, P9Config, ParameterError, VfbConfig, VkbConfig, VtpmConfig};
use super::pci::{PciConfig, PciError, PciOptions};
use super::resources::{self, IoMemory, IoPorts, ResourceError};
use super::xl_cfg::{Data, Position, Setting, Settings, Value};
use crate::device;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
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
    #[error("{position}: `{key}' is for {guest} guests, this is a {this} guest", this = .this.title())]
    OtherGuest {
        /// Where.
        position: Position,
        /// The key.
        key: String,
        /// The kind.
        guest: &'static str,
        /// What the qube is.
        this: GuestType,
    },
    /// A key of `xl` that is not supported.
    #[error("{position}: `{key}' is not supported: {why}")]
    NotSupported {
        /// Where.
        position: Position,
        /// The key.
        key: String,
        /// Why.
        why: &'static str,
    },
    /// A key of `xl` that is read, but with which no qube can be made.
    #[error("{position}: no qube can be made with `{key}', since {why}")]
    NotBuilt {
        /// Where.
        position: Position,
        /// The key.
        key: String,
        /// Why.
        why: &'static str,
    },
    /// A key that says nothing because of what other keys say.
    #[error("{position}: `{key}' says nothing without `{without}'")]
    SaysNothing {
        /// Where.
        position: Position,
        /// The key.
        key: String,
        /// What is missing.
        without: &'static str,
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
    /// One value where a list is wanted.
    #[error("{position}: `{key}' is a list ([ … ])")]
    NotAList {
        /// Where the value is.
        position: Position,
        /// The key.
        key: String,
    },
    /// A list in a list of strings.
    #[error("{position}: `{key}' is a list of strings, not of lists")]
    ListInList {
        /// Where the inner list is.
        position: Position,
        /// The key.
        key: String,
    },
    /// A device, or another part of the configuration with a grammar of its own.
    #[error("{position}: {error}")]
    Item {
        /// Where its text is.
        position: Position,
        /// What is wrong with it.
        error: ItemError,
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
    /// A key that a closure answers itself.
    #[error("{position}: `{key}' is for the closure to say")]
    FromClosure {
        /// Where.
        position: Position,
        /// The key.
        key: String,
    },
}

/// What is wrong with a text that has a grammar of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// An item of `disk`.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An item of `vif`.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// An item of `disk`, `vif`, `vkb` or `channel` that cannot be attached.
    #[error("{0}")]
    Device(String),
    /// An item of `pci`.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// An item of `channel`, `p9`, `vtpm`, `vfb` or `vkb`.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// `cpus`, `cpus_soft`, or an item of these.
    #[error(transparent)]
    Cpus(#[from] CpusError),
    /// An item of `ioports`, `irqs` or `iomem`.
    #[error(transparent)]
    Resource(#[from] ResourceError),
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

/// The kinds of guests (`libxl_domain_type`).
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

    /// As one speaks of it.
    fn title(self) -> &'static str {
        match self {
            Self::Pvh => "PVH",
            Self::Pv => "PV",
        }
    }
}

/// What a guest reads when it asks for the time stamp counter (`libxl_tsc_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TscMode {
    /// The processor's when it is fit for that, else Xen's.
    Default,
    /// Xen's.
    AlwaysEmulate,
    /// The processor's.
    Native,
    /// The processor's; the guest is told how to make up for another host.
    NativeParavirt,
}

impl TscMode {
    const NAMES: [(&'static str, Self); 4] = [
        ("default", Self::Default),
        ("always_emulate", Self::AlwaysEmulate),
        ("native", Self::Native),
        ("native_paravirt", Self::NativeParavirt),
    ];

    /// libxl's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }

    /// What Xen is asked for. The last one it has no longer; no qube is made with it.
    pub(crate) fn of_xen(self) -> xen::TscMode {
        match self {
            Self::Default => xen::TscMode::Default,
            Self::AlwaysEmulate => xen::TscMode::AlwaysEmulate,
            Self::Native | Self::NativeParavirt => xen::TscMode::Native,
        }
    }
}

/// Whether devices' accesses to memory are translated for the guest (`libxl_passthrough`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Passthrough {
    /// When it has PCI devices.
    Default,
    /// Never; it can have no devices.
    Disabled,
    /// Yes, with the tables that suit the host.
    Enabled,
    /// Yes, with tables of their own.
    SyncPt,
    /// Yes, with the tables that the processors use.
    SharePt,
}

impl Passthrough {
    const NAMES: [(&'static str, Self); 5] = [
        ("default", Self::Default),
        ("disabled", Self::Disabled),
        ("enabled", Self::Enabled),
        ("sync_pt", Self::SyncPt),
        ("share_pt", Self::SharePt),
    ];

    /// libxl's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

/// How much of the processors it gets (`libxl_domain_sched_params`); `None` leaves a parameter to the scheduler. Which of
/// them count depends on the host's scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SchedulingConfig {
    /// `cpu_weight`: its share in relation to others'.
    pub weight: Option<u32>,
    /// `cap`: the most, in per cent of one processor; 0 for no limit.
    pub cap: Option<u32>,
    /// `period`, in microseconds (RTDS).
    pub period: Option<u32>,
    /// `extratime` (RTDS): 1 when it may have what nobody else wants.
    pub extratime: Option<u32>,
    /// `slice`, of a scheduler that Xen no longer has.
    pub slice: Option<u32>,
    /// `latency`, of a scheduler that Xen no longer has.
    pub latency: Option<u32>,
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
    /// The kernel's file, or a unified kernel image, or a lanzaboote stub. Empty when the boot loader is to find one.
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
    /// The program that finds the kernel on the first disk.
    #[serde(default)]
    pub bootloader: Option<PathBuf>,
    /// Arguments for that program.
    #[serde(default)]
    pub bootloader_args: Vec<String>,
    /// How much of the processors it gets.
    #[serde(default)]
    pub scheduling: SchedulingConfig,
    /// By vCPU, the host's CPUs that it may run on. A vCPU beyond the end may run on all.
    #[serde(default)]
    pub hard_affinity: Vec<BTreeSet<u32>>,
    /// By vCPU, the host's CPUs that it had better run on. A vCPU beyond the end prefers none.
    #[serde(default)]
    pub soft_affinity: Vec<BTreeSet<u32>>,
    /// The pool of CPUs that it belongs to, by name or number; `None` for the first one.
    #[serde(default)]
    pub pool: Option<String>,
    /// The highest version of the grant table's interface that it may use; `None` for the hypervisor's default.
    #[serde(default)]
    pub max_grant_version: Option<u32>,
    /// Whether it stays on this host for good; `None` for the default, which is no.
    #[serde(default)]
    pub nomigrate: Option<bool>,
    /// What it reads when it asks for the time stamp counter.
    #[serde(default)]
    pub tsc_mode: Option<TscMode>,
    /// Whether devices' accesses to memory are translated for it.
    #[serde(default)]
    pub passthrough: Option<Passthrough>,
    /// The security label with which it is made (`init_seclabel`, or `seclabel` when that is not there).
    #[serde(default)]
    pub label: Option<String>,
    /// The security label with which it runs (`seclabel` when `init_seclabel` is there).
    #[serde(default)]
    pub running_label: Option<String>,
    /// Its disks.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Its network interfaces.
    #[serde(default)]
    pub nics: Vec<NicConfig>,
    /// The host's PCI devices that it gets.
    #[serde(default)]
    pub pcis: Vec<PciConfig>,
    /// The host's I/O ports that it may use.
    #[serde(default)]
    pub ioports: Vec<IoPorts>,
    /// The host's interrupts that it gets.
    #[serde(default)]
    pub irqs: Vec<u32>,
    /// The host's memory that it may map.
    #[serde(default)]
    pub iomem: Vec<IoMemory>,
    /// Its displays.
    #[serde(default)]
    pub vfbs: Vec<VfbConfig>,
    /// Its keyboards and pointers: first those that come with the displays.
    #[serde(default)]
    pub vkbs: Vec<VkbConfig>,
    /// Its TPMs.
    #[serde(default)]
    pub vtpms: Vec<VtpmConfig>,
    /// The folders that it may mount.
    #[serde(default)]
    pub p9s: Vec<P9Config>,
    /// Its consoles beyond the first one.
    #[serde(default)]
    pub channels: Vec<ChannelConfig>,
    /// Of keys that show in libxl's JSON when they are written, be it with their default: the number that they have there.
    #[serde(default)]
    pub stated: BTreeMap<String, i64>,
}

/// Flags that have no effect in the only state that a qube can be made with, and show in libxl's JSON.
const FLAGS: [&str; 12] = [
    "acpi",
    "dm_restrict",
    "driver_domain",
    "e820_host",
    "hap",
    "localtime",
    "msr_relaxed",
    "nestedhvm",
    "oos",
    "pvshim",
    "vpmu",
    "xend_suspend_evtchn_compat",
];

/// Numbers of that kind, and their ranges.
const NUMBERS: [(&str, i64, i64); 8] = [
    ("max_event_channels", 1, i32::MAX as i64),
    ("maxmem", 1, MEMORY_LIMIT_MIB as i64),
    ("maxvcpus", 1, VCPUS_LIMIT as i64),
    ("memory", 1, MEMORY_LIMIT_MIB as i64),
    ("rtc_timeoffset", i32::MIN as i64, i32::MAX as i64),
    ("vcpus", 1, VCPUS_LIMIT as i64),
    ("videoram", 0, MEMORY_LIMIT_MIB as i64),
    ("vmtrace_buf_kb", 0, i32::MAX as i64),
];

/// The keys of a PV guest's display, for those who have no `vfb`.
const DISPLAY_KEYS: [&str; 10] = [
    "vnc",
    "vnclisten",
    "vncpasswd",
    "vncdisplay",
    "vncunused",
    "sdl",
    "opengl",
    "display",
    "xauthority",
    "keymap",
];

impl QubeConfig {
    /// Reads the settings of a file, `source_name`, and of the command line.
    ///
    /// `type` must be there and be `"pvh"` or `"pv"`: without it, `xl` makes a PV guest. `host` tells which CPUs
    /// `cpus = "all"` and `cpus = "node:1"` stand for; without it such a text is refused.
    ///
    /// # Errors
    /// The first thing that is wrong; no key is passed over.
    pub fn from_settings(
        source_name: &str,
        settings: &Settings,
        host: Option<&HostCpus>,
    ) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        Reader { source_name, settings, host, build: true }.read(None)
    }

    /// What [`QubeConfig::from_settings`] reads, and besides what no qube can be made with: for [`QubeConfig::to_libxl_json`].
    ///
    /// As for `xl`, a file without a type describes a PV guest.
    ///
    /// # Errors
    /// The first thing that is wrong; no key is passed over.
    pub fn described(
        source_name: &str,
        settings: &Settings,
        host: Option<&HostCpus>,
    ) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        Reader { source_name, settings, host, build: false }.read(None)
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
        host: Option<&HostCpus>,
    ) -> Result<(Self, Vec<ConfigWarning>), ConfigError> {
        let source_name = closure.toplevel.display().to_string();
        Reader { source_name: &source_name, settings, host, build: true }.read(Some(closure))
    }
}

impl QubeConfig {
    /// Has its vCPUs keep to some of the host's CPUs, as `vm.cpumask` and its like in xl.conf do: those of which `cpus` says
    /// where they run, or all where it says nothing.
    ///
    /// # Errors
    /// What is wrong with the mask, or a vCPU for which it leaves no CPU.
    pub fn mask_cpus(&mut self, mask: &str, host: &HostCpus) -> Result<(), CpusError> {
        let mask_set = cpus::cpu_set(mask, Some(host))?;
        if self.hard_affinity.is_empty() {
            self.hard_affinity = vec![mask_set; self.max_vcpus as usize];
            return Ok(());
        }
        for set in &mut self.hard_affinity {
            set.retain(|cpu| mask_set.contains(cpu));
            if set.is_empty() {
                return Err(CpusError::Masked(mask.to_owned()));
            }
        }
        Ok(())
    }
}

struct Reader<'a> {
    source_name: &'a str,
    settings: &'a Settings,
    host: Option<&'a HostCpus>,
    /// Whether a qube is to be made, so that what cannot be made is an error.
    build: bool,
}

impl Reader<'_> {
    fn read(self, closure: Option<&Closure>) -> Result<(QubeConfig, Vec<ConfigWarning>), ConfigError> {
        let guest = self.guest(closure.is_some())?;
        for setting in self.settings.iter() {
            self.check_key(setting, guest, closure.is_some())?;
        }
        let bootloader = self.path("bootloader")?;
        let (kernel, ramdisk) = match closure {
            Some(closure) => (closure.kernel.clone(), closure.initrd.clone()),
            None => {
                let kernel = self.path("kernel")?;
                let found = kernel.or_else(|| bootloader.as_ref().map(|_| PathBuf::new()));
                let missing = || self.missing("kernel", " (a file with the guest's kernel)");
                (found.ok_or_else(missing)?, self.path("ramdisk")?)
            }
        };
        let name = match self.text("name")? {
            Some((setting, name)) => checked_name(setting, name)?,
            None => closure.and_then(Closure::name).ok_or_else(|| self.missing("name", ""))?,
        };
        let mut stated = self.stated()?;
        let (memory_mib, max_memory_mib) = self.memory(closure.is_some())?;
        if closure.is_some() {
            // libxl's default is another.
            stated.insert("memory".to_owned(), memory_mib.cast_signed());
        }
        let (vcpus, max_vcpus) = self.vcpus()?;
        let (cmdline, warnings) = self.cmdline(closure)?;
        let frames = |key| {
            let frames = self.number(key, 0, i32::MAX.into())?;
            // 0..=i32::MAX
            Ok(frames.map(|(_, frames)| frames as u32))
        };
        let timer_mode = self.timer_mode()?;
        if let Some(mode) = timer_mode {
            stated.insert("timer_mode".to_owned(), mode as i64);
        }
        let (hard_affinity, hard_list) = self.affinity("cpus", max_vcpus)?;
        let (soft_affinity, _) = self.affinity("cpus_soft", max_vcpus)?;
        if hard_list || self.settings.get("cpus_soft").is_some() {
            // Who places vCPUs by hand does not want libxl to choose a node.
            stated.insert("numa_placement".to_owned(), 0);
        }
        let (label, running_label) = self.labels()?;
        let (vfbs, vkbs) = self.displays(guest)?;
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
            max_event_channels: match stated.get("max_event_channels") {
                // 1..=i32::MAX
                Some(channels) => *channels as u32,
                // libxl's
                None => 1_023,
            },
            max_grant_frames: frames("max_grant_frames")?,
            max_maptrack_frames: frames("max_maptrack_frames")?,
            timer_mode: timer_mode.unwrap_or(TimerMode::NoDelayForMissedTicks),
            paging_memory_mib: self.mebibytes("shadow_memory")?.map(|(_, mib)| mib),
            mmio_hole_mib: self
                .number("mmio_hole", MMIO_HOLE_MIB.0, MMIO_HOLE_MIB.1)?
                .map(|(_, mib)| mib.unsigned_abs()),
            driver_domain: stated.get("driver_domain") == Some(&1),
            bootloader,
            bootloader_args: self.bootloader_args()?,
            scheduling: SchedulingConfig {
                weight: frames("cpu_weight")?,
                cap: frames("cap")?,
                period: frames("period")?,
                extratime: frames("extratime")?,
                slice: frames("slice")?,
                latency: frames("latency")?,
            },
            hard_affinity,
            soft_affinity,
            pool: self.string("pool")?,
            max_grant_version: frames("max_grant_version")?,
            nomigrate: self.flag("nomigrate")?,
            tsc_mode: self.one_of(
                "tsc_mode",
                "default, always_emulate, native or native_paravirt",
                &TscMode::NAMES,
                true,
            )?,
            passthrough: self.passthrough(guest)?,
            label,
            running_label,
            disks: self.attachable::<_, device::Disk, _>("disk", DiskConfig::parse)?,
            nics: self.attachable::<_, device::Nic, _>("vif", NicConfig::parse_paravirtual)?,
            pcis: self.pcis()?,
            ioports: self.items("ioports", IoPorts::parse)?,
            irqs: self.items("irqs", resources::irq)?,
            iomem: self.items("iomem", IoMemory::parse)?,
            vfbs,
            vkbs,
            vtpms: self.items("vtpm", VtpmConfig::parse)?,
            p9s: self.checked("p9", P9Config::parse, device::p9::check)?,
            channels: self.checked("channel", ChannelConfig::parse, device::channel::check)?,
            stated,
        };
        Ok((config, warnings))
    }

    fn guest(&self, by_closure: bool) -> Result<GuestType, ConfigError> {
        let guest = match self.text("type")? {
            Some((_, "pvh")) => Some(GuestType::Pvh),
            Some((_, "pv")) => Some(GuestType::Pv),
            Some((setting, given)) => {
                let expected = "\"pvh\" or \"pv\" (other guests are not supported)";
                return Err(word(setting, expected, given));
            }
            None if by_closure => Some(GuestType::Pvh),
            None if self.build => {
                return Err(
                    self.missing("type", " (write type = \"pvh\"; without it, `xl' makes a PV guest)")
                );
            }
            None => None,
        };
        // The older key.
        match self.text("builder")? {
            Some((_, "generic")) if guest != Some(GuestType::Pvh) => Ok(GuestType::Pv),
            Some((setting, given)) => {
                let expected =
                    "\"generic\", and that only for a PV guest (write type = \"pvh\" or \"pv\" instead)";
                Err(word(setting, expected, given))
            }
            None => Ok(guest.unwrap_or(GuestType::Pv)),
        }
    }

    fn stated(&self) -> Result<BTreeMap<String, i64>, ConfigError> {
        let mut stated = BTreeMap::new();
        for key in FLAGS {
            if let Some(flag) = self.flag(key)? {
                stated.insert(key.to_owned(), flag.into());
            }
        }
        for (key, min, max) in NUMBERS {
            if let Some((_, number)) = self.number(key, min, max)? {
                stated.insert(key.to_owned(), number);
            }
        }
        if let Some(mode) = self.one_of(
            "altp2m",
            "disabled, mixed, external or limited",
            &[("disabled", 0), ("mixed", 1), ("external", 2), ("limited", 3)],
            true,
        )? {
            stated.insert("altp2m".to_owned(), mode);
        }
        // Their being there shows even when they are empty.
        for (key, shows) in [
            ("cmdline", "cmdline"),
            ("root", "cmdline"),
            ("extra", "cmdline"),
            ("ramdisk", "ramdisk"),
            ("bootloader", "bootloader"),
        ] {
            if self.settings.get(key).is_some() {
                stated.insert(shows.to_owned(), 1);
            }
        }
        Ok(stated)
    }

    /// By vCPU, CPUs of the host; and whether they are given one vCPU after another, in a list.
    fn affinity(&self, key: &'static str, vcpus: u32) -> Result<(Vec<BTreeSet<u32>>, bool), ConfigError> {
        let Some(setting) = self.settings.get(key) else { return Ok((Vec::new(), false)) };
        let parse = |text: &str| cpus::cpu_set(text, self.host);
        match &setting.value.data {
            Data::Text(text) => {
                let item = |error: CpusError| item(&setting.value, error);
                Ok((vec![parse(text).map_err(item)?; vcpus as usize], false))
            }
            Data::List(_) => {
                let mut sets = self.items(key, parse)?;
                // Some files are for more vCPUs than there are.
                sets.truncate(vcpus as usize);
                Ok((sets, true))
            }
        }
    }

    fn labels(&self) -> Result<(Option<String>, Option<String>), ConfigError> {
        let (initial, label) = (self.string("init_seclabel")?, self.string("seclabel")?);
        Ok(if initial.is_some() { (initial, label) } else { (label, None) })
    }

    fn bootloader_args(&self) -> Result<Vec<String>, ConfigError> {
        match self.settings.get("bootloader_args").map(|setting| &setting.value.data) {
            // The older way.
            Some(Data::Text(text)) => {
                let words = text.split([' ', '\t', '\n']).filter(|word| !word.is_empty());
                Ok(words.map(str::to_owned).collect())
            }
            _ => self.items("bootloader_args", |text| Ok::<_, ItemError>(text.to_owned())),
        }
    }

    /// Refuses, when a qube is to be made, what libxl refuses later.
    fn passthrough(&self, guest: GuestType) -> Result<Option<Passthrough>, ConfigError> {
        let expected = "default, disabled, enabled, sync_pt or share_pt";
        let chosen = self.one_of("passthrough", expected, &Passthrough::NAMES, false)?;
        let with_devices =
            self.settings.get("pci").is_some_and(|pci| !keys::asks_for_nothing(&pci.value.data));
        let possible: &[&str] = match (guest, chosen) {
            (GuestType::Pvh, Some(Passthrough::Enabled | Passthrough::SyncPt | Passthrough::SharePt)) => {
                &["disabled", "default"]
            }
            (GuestType::Pv, Some(Passthrough::SharePt)) => &["disabled", "default", "enabled", "sync_pt"],
            (GuestType::Pv, Some(Passthrough::Disabled)) if with_devices => {
                &["default", "enabled", "sync_pt"]
            }
            _ => return Ok(chosen),
        };
        let (true, Some((setting, given))) = (self.build, self.text("passthrough")?) else {
            return Ok(chosen);
        };
        let (position, key) = (setting.value.position.clone(), setting.name.clone());
        Err(ConfigError::OnlyValues { position, key, possible, given: given.to_owned() })
    }

    fn pcis(&self) -> Result<Vec<PciConfig>, ConfigError> {
        let flag = |key| Ok(self.flag(key)?.unwrap_or(false));
        let options = PciOptions {
            permissive: flag("pci_permissive")?,
            msitranslate: flag("pci_msitranslate")?,
            power_mgmt: flag("pci_power_mgmt")?,
            seize: flag("pci_seize")?,
        };
        self.items("pci", |text| PciConfig::parse(text, options))
    }

    /// Displays, and keyboards: one for each display, and those with a text of their own.
    fn displays(&self, guest: GuestType) -> Result<(Vec<VfbConfig>, Vec<VkbConfig>), ConfigError> {
        let mut vfbs = self.items("vfb", VfbConfig::parse)?;
        if guest == GuestType::Pv {
            if self.flag("vnc")? == Some(true) && vfbs.is_empty() {
                vfbs.push(self.display()?);
            } else if let Some(setting) = self.display_setting() {
                let without = if vfbs.is_empty() { "vnc = 1" } else { "vfb = []" };
                let (position, key) = (setting.position.clone(), setting.name.clone());
                return Err(ConfigError::SaysNothing { position, key, without });
            }
        }
        let mut vkbs = vec![VkbConfig::default(); vfbs.len()];
        vkbs.extend(self.checked("vkb", VkbConfig::parse, device::vkb::check)?);
        Ok((vfbs, vkbs))
    }

    /// A key of a PV guest's display that asks for something.
    fn display_setting(&self) -> Option<&Setting> {
        let asks =
            |setting: &&Setting| setting.name != "vnc" || self.flag("vnc").is_ok_and(|vnc| vnc == Some(true));
        DISPLAY_KEYS.iter().filter_map(|key| self.settings.get(key)).find(asks)
    }

    fn display(&self) -> Result<VfbConfig, ConfigError> {
        let display = self.number("vncdisplay", 0, i32::MAX.into())?;
        Ok(VfbConfig {
            vnc: self.flag("vnc")?,
            vnc_listen: self.string("vnclisten")?,
            vnc_password: self.string("vncpasswd")?,
            // 0..=i32::MAX
            vnc_display: display.map(|(_, display)| display as u32),
            vnc_unused: self.flag("vncunused")?,
            sdl: self.flag("sdl")?,
            opengl: self.flag("opengl")?,
            display: self.string("display")?,
            xauthority: self.string("xauthority")?,
            keymap: self.string("keymap")?,
        })
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
        parameters::parse_uuid(text)
            .ok_or_else(|| word(setting, "a UUID (12345678-1234-1234-1234-123456789abc)", text))
    }

    fn actions(&self) -> Result<Actions, ConfigError> {
        let default = Actions::default();
        let action = |key, default| {
            let Some((setting, text)) = self.text(key)? else { return Ok(default) };
            let found = Action::ALL.into_iter().find(|action| action.name() == text);
            // What is not carried out is refused here rather than forgotten when it is due.
            let found = found.filter(|action| !self.build || action.is_carried_out() || *action == default);
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

    fn timer_mode(&self) -> Result<Option<TimerMode>, ConfigError> {
        let expected = "delay_for_missed_ticks, no_delay_for_missed_ticks, no_missed_ticks_pending or \
                        one_missed_tick_pending";
        self.one_of("timer_mode", expected, &TimerMode::NAMES, true)
    }

    /// One of some words, be it in capitals; with `by_number` also its number among them, as older files have it.
    fn one_of<T: Copy>(
        &self,
        key: &'static str,
        expected: &'static str,
        names: &[(&str, T)],
        by_number: bool,
    ) -> Result<Option<T>, ConfigError> {
        let Some((setting, text)) = self.text(key)? else { return Ok(None) };
        let number = parse_number(text).filter(|_| by_number && !setting.added);
        let number = number.and_then(|number| usize::try_from(number).ok());
        let named = names.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        let found = named.or_else(|| names.get(number?));
        found.map(|(_, value)| Some(*value)).ok_or_else(|| word(setting, expected, text))
    }

    fn string(&self, key: &'static str) -> Result<Option<String>, ConfigError> {
        Ok(self.text(key)?.map(|(_, text)| text.to_owned()))
    }

    /// Any number but 0 is yes.
    fn flag(&self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        Ok(self.number(key, i64::MIN, i64::MAX)?.map(|(_, number)| number != 0))
    }

    /// Devices; when a qube is to be made, such as can be attached.
    fn attachable<T, D, E: Into<ItemError>>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, ConfigError>
    where
        for<'a> D: TryFrom<&'a T, Error = device::DeviceError>,
    {
        self.checked(key, parse, |device| D::try_from(device).map(drop))
    }

    /// The same, by what `check` says of them.
    fn checked<T, E: Into<ItemError>>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
        check: impl Fn(&T) -> Result<(), device::DeviceError>,
    ) -> Result<Vec<T>, ConfigError> {
        self.items(key, |text| {
            let device = parse(text).map_err(Into::into)?;
            if self.build {
                check(&device).map_err(|error| ItemError::Device(error.to_string()))?;
            }
            Ok::<_, ItemError>(device)
        })
    }

    /// A list of texts, each with a grammar of its own.
    fn items<T, E: Into<ItemError>>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>, ConfigError> {
        let Some(setting) = self.settings.get(key) else { return Ok(Vec::new()) };
        let Data::List(list) = &setting.value.data else {
            let position = setting.value.position.clone();
            return Err(ConfigError::NotAList { position, key: key.to_owned() });
        };
        list.iter()
            .map(|value| match &value.data {
                Data::Text(text) => parse(text).map_err(|error| item(value, error)),
                Data::List(_) => {
                    let position = value.position.clone();
                    Err(ConfigError::ListInList { position, key: key.to_owned() })
                }
            })
            .collect()
    }

    fn path(&self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        match self.text(key)? {
            // libxl too takes an empty ramdisk for none; an empty kernel is a missing one.
            Some((_, "")) | None => Ok(None),
            Some((_, path)) => Ok(Some(path.into())),
        }
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

    /// Refuses what is not read, and what is not built.
    fn check_key(&self, setting: &Setting, this: GuestType, by_closure: bool) -> Result<(), ConfigError> {
        let (position, key) = (setting.position.clone(), setting.name.clone());
        let Some((guests, support)) = keys::find(&key) else {
            return Err(ConfigError::UnknownKey { position, nearest: keys::nearest(&key), key });
        };
        if by_closure
            && matches!(key.as_str(), "bootloader" | "bootloader_args" | "kernel" | "ramdisk" | "root")
        {
            return Err(ConfigError::FromClosure { position, key });
        }
        if support != Support::Built && keys::asks_for_nothing(&setting.value.data) {
            return Ok(());
        }
        if let Some(guest) = guests.other_than(this) {
            return Err(ConfigError::OtherGuest { position, key, guest, this });
        }
        match support {
            Support::For(guest) => Err(ConfigError::OtherGuest { position, key, guest, this }),
            Support::Refused(why) => Err(ConfigError::NotSupported { position, key, why }),
            Support::BuiltForPv(why) if self.build && this == GuestType::Pvh => {
                Err(ConfigError::NotBuilt { position, key, why })
            }
            Support::Unbuilt(why) if self.build => Err(ConfigError::NotBuilt { position, key, why }),
            Support::Only(possible) if self.build => {
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
            _ => Ok(()),
        }
    }

    fn missing(&self, key: &'static str, hint: &'static str) -> ConfigError {
        ConfigError::Missing { source_name: self.source_name.to_owned(), key, hint }
    }
}

fn item(value: &Value, error: impl Into<ItemError>) -> ConfigError {
    ConfigError::Item { position: value.position.clone(), error: error.into() }
}

fn word(setting: &Setting, expected: &'static str, given: &str) -> ConfigError {
    let (position, key) = (setting.value.position.clone(), setting.name.clone());
    ConfigError::Word { position, key, expected, given: given.to_owned() }
}

fn below(setting: &Setting, key: &'static str, given: u64, other: &'static str, least: u64) -> ConfigError {
    ConfigError::Below { position: setting.value.position.clone(), key, given, other, least }
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
        QubeConfig::from_settings(
            "work.cfg",
            &Settings::parse("work.cfg", text.as_bytes(), NONE).unwrap(),
            None,
        )
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
            QubeConfig::from_settings("pv.cfg", &settings, None)
        };
        let base = "type='pv'\nname='work'\nkernel='/k'\n";
        let (config, _) = read(&format!("{base}memory=256\nmaxmem=512")).unwrap();
        assert_eq!((config.guest, config.memory_mib, config.max_memory_mib), (GuestType::Pv, 256, 512));
        for key in ["mmio_hole", "shadow_memory", "timer_mode"] {
            let error = read(&format!("{base}{key}=100")).unwrap_err().to_string();
            assert_eq!(error, format!("pv.cfg:4:1: `{key}' is for PVH guests, this is a PV guest"));
        }
        let error = read(&format!("{base}passthrough='share_pt'")).unwrap_err().to_string();
        assert!(error.starts_with("pv.cfg:4:13: `passthrough' can only be disabled or default"), "{error}");
        let error = read(&format!("{base}pci=['1:0.0']\npassthrough='disabled'")).unwrap_err().to_string();
        assert!(error.starts_with("pv.cfg:5:13: `passthrough' can only be default or"), "{error}");
        let error = read(&format!("{base}usb=1")).unwrap_err().to_string();
        assert_eq!(error, "pv.cfg:4:1: `usb' is for HVM guests, this is a PV guest");
    }

    /// What BASE says.
    fn least(uuid: Uuid) -> QubeConfig {
        QubeConfig {
            name: "work".to_owned(),
            uuid,
            guest: GuestType::Pvh,
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
            bootloader: None,
            bootloader_args: Vec::new(),
            scheduling: SchedulingConfig::default(),
            hard_affinity: Vec::new(),
            soft_affinity: Vec::new(),
            pool: None,
            max_grant_version: None,
            nomigrate: None,
            tsc_mode: None,
            passthrough: None,
            label: None,
            running_label: None,
            disks: Vec::new(),
            nics: Vec::new(),
            pcis: Vec::new(),
            ioports: Vec::new(),
            irqs: Vec::new(),
            iomem: Vec::new(),
            vfbs: Vec::new(),
            vkbs: Vec::new(),
            vtpms: Vec::new(),
            p9s: Vec::new(),
            channels: Vec::new(),
            stated: BTreeMap::new(),
        }
    }

    #[test]
    fn the_least_configuration_has_libxls_defaults() {
        let config = with("").unwrap();
        let expected = least(config.uuid);
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
            let error = QubeConfig::from_settings("work.cfg", &settings, None).unwrap_err().to_string();
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
        let stated = [
            ("cmdline", 1),
            ("driver_domain", 1),
            ("max_event_channels", 2047),
            ("maxmem", 1024),
            ("maxvcpus", 8),
            ("memory", 512),
            ("ramdisk", 1),
            ("timer_mode", 2),
            ("vcpus", 2),
        ];
        let expected = QubeConfig {
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
            stated: stated.map(|(key, number)| (key.to_owned(), number)).into(),
            ..least(Uuid::nil())
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
        assert_eq!(error("usb=1"), "work.cfg:4:1: `usb' is for HVM guests, this is a PVH guest");
        assert_eq!(error("e820_host=1"), "work.cfg:4:1: `e820_host' is for PV guests, this is a PVH guest");
        assert_eq!(
            error("cpuid='host'"),
            "work.cfg:4:1: `cpuid' is not supported: a qube has the CPU features that Xen gives to all of its kind"
        );
        assert_eq!(
            error("vtpm=['backend=t']"),
            "work.cfg:4:1: no qube can be made with `vtpm', since nxl attaches no TPMs"
        );
        let qcow2 = error("disk=['/x,qcow2,xvda']");
        assert!(qcow2.starts_with("work.cfg:4:7: ") && qcow2.contains("qcow2 is not supported"), "{qcow2}");
        assert!(
            error("vif='mac=x'").starts_with("work.cfg:4:5: `vif' is a list"),
            "{}",
            error("vif='mac=x'")
        );
        let config = with("disk=['/a,raw,xvda,r']\nvif=['bridge=br0']").unwrap();
        let (disk, nic) = (&config.disks[0], &config.nics[0]);
        assert_eq!((disk.target.as_deref(), nic.bridge.as_deref()), (Some("/a"), Some("br0")));
        assert_eq!(error("acpi=0"), "work.cfg:4:6: `acpi' can only be 1, not 0");
        assert_eq!(
            error("tsc_mode='native_paravirt'"),
            "work.cfg:4:10: `tsc_mode' can only be default or 0 or always_emulate or 1 or native or 2, not native_paravirt"
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
        QubeConfig::from_closure(&closure(), &settings, None).map(|(config, _)| config)
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
        assert_eq!(error("kernel='/x'"), "command line:2:1: `kernel' is for the closure to say");
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

    #[test]
    fn a_mask_is_for_vcpus_that_are_pinned_and_for_those_that_are_not() {
        let host = HostCpus::new(4, None);
        let masked = |text: &str, masks: &[&str]| {
            let mut config = with(text).unwrap();
            masks.iter().try_for_each(|mask| config.mask_cpus(mask, &host)).map(|()| config.hard_affinity)
        };
        assert_eq!(
            masked("vcpus=2", &["1-3", "^1,all,^3"]).unwrap(),
            [BTreeSet::from([1, 2]), [1, 2].into()]
        );
        assert_eq!(masked("vcpus=2\ncpus='0-2'", &["1-3"]).unwrap(), [BTreeSet::from([1, 2]), [1, 2].into()]);
        assert_eq!(masked("cpus='0'", &["1-3"]), Err(CpusError::Masked("1-3".to_owned())));
        assert_eq!(masked("", &["9"]), Err(CpusError::Empty("9".to_owned())));
    }

    #[test]
    fn what_no_qube_can_be_made_with_is_described() {
        let describe = |text: &str| {
            let settings = Settings::parse("work.cfg", text.as_bytes(), NONE).unwrap();
            QubeConfig::described("work.cfg", &settings, None).map(|(config, _)| config)
        };
        let text = format!(
            "{BASE}vcpus=2\ncpus='0-1,^0'\ncpu_weight=512\ndisk=['/d,,xvda']\nnomigrate=1\non_crash='soft-reset'"
        );
        let config = describe(&text).unwrap();
        assert_eq!(config.hard_affinity, [BTreeSet::from([1]), BTreeSet::from([1])]);
        assert_eq!((config.scheduling.weight, config.nomigrate), (Some(512), Some(true)));
        assert_eq!(config.disks[0].vdev, "xvda");
        assert_eq!(config.actions.crash, Action::SoftReset);
        assert_eq!(read(&text).unwrap_err().to_string(), "work.cfg:8:11: `nomigrate' can only be 0, not 1");
        assert_eq!(describe("name='work'\nkernel='/k'").unwrap().guest, GuestType::Pv, "as for xl");
        let error = |text: &str| describe(&format!("{BASE}{text}")).unwrap_err().to_string();
        assert_eq!(
            error("disk=['/d']"),
            "work.cfg:4:7: a disk needs a vdev (xvda for the first one in the guest)"
        );
        assert_eq!(error("disk='/d,,xvda'"), "work.cfg:4:6: `disk' is a list ([ … ])");
        assert_eq!(error("vif=['', ['']]"), "work.cfg:4:10: `vif' is a list of strings, not of lists");
        assert_eq!(
            error("cpus=['1','all']"),
            "work.cfg:4:11: which CPUs are in \"all\" can be said in dom0 alone"
        );
        let display = "name='work'\ntype='pv'\nkernel='/k'\nvnclisten='::'";
        let error = describe(display).unwrap_err().to_string();
        assert_eq!(error, "work.cfg:4:1: `vnclisten' says nothing without `vnc = 1'");
    }

    proptest! {
        #[test]
        fn what_can_be_made_can_be_described(
            keys in proptest::sample::subsequence(keys::known_keys().collect::<Vec<_>>(), 1..4),
            value in "[0-3]|'[a-z0-9=,/]{0,6}'|'(native|disabled|restart|preserve|Pool-0)'|\\[\\]|\\['/d,,xvda'\\]",
        ) {
            let settings: Vec<String> = keys.iter().map(|key| format!("{key}={value}")).collect();
            let uuid = "uuid='d5f1129b-3f6a-4d84-b438-cfa95b7402d7'";
            let text = format!("{}\n{BASE}{uuid}\n", settings.join("\n"));
            let settings = Settings::parse("work.cfg", text.as_bytes(), NONE).unwrap();
            let described = QubeConfig::described("work.cfg", &settings, None);
            if let Ok(made) = QubeConfig::from_settings("work.cfg", &settings, None) {
                prop_assert_eq!(Ok(made), described);
            } else if let Ok((config, _)) = described {
                let kept = serde_json::to_string(&config).unwrap();
                prop_assert_eq!(serde_json::from_str::<QubeConfig>(&kept).unwrap(), config);
            }
        }

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
