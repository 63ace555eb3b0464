//! What a qube is to be: configuration files of `xl` and NixOS closures, read into one [`QubeConfig`].
//!
//! ```
//! use toolstack::config::{QubeConfig, Settings};
//!
//! let text = b"type = 'pvh'\nname = 'work'\nkernel = '/boot/vmlinuz'\nmemory = 512\n";
//! let settings = Settings::parse("work.cfg", text, &["vcpus=2"])?;
//! let (config, warnings) = QubeConfig::from_settings("work.cfg", &settings, None)?;
//! assert_eq!((config.memory_mib, config.vcpus), (512, 2));
//! assert!(warnings.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod closure;
#[cfg(test)]
mod cpu_time;
mod cpus;
mod disk;
#[cfg(test)]
pub(crate) mod folder;
mod from_libxl;
mod keys;
mod libxl_json;
mod nic;
mod parameters;
mod pci;
mod profile;
mod qube;
mod resources;
mod xl_cfg;

pub use closure::{CLOSURE_MEMORY_MIB, Closure, ClosureError};
pub(crate) use cpus::cpu_set;
pub use cpus::{CpusError, HostCpus};
pub use disk::{DiskBackend, DiskConfig, DiskError, DiskFormat, DiskSpecification};
pub use from_libxl::LibxlJsonError;
pub use keys::known_keys;
pub(crate) use keys::nearest_of;
pub(crate) use libxl_json::{disk_record, laid_out, nic_record, pci_record};
pub use nic::{Mac, NicConfig, NicError, NicRate, NicType};
pub use parameters::{ChannelConfig, P9Config, ParameterError, VfbConfig, VkbBackend, VkbConfig, VtpmConfig};
pub use pci::{PciAddress, PciConfig, PciDevice, PciError, PciOptions, RdmPolicy};
pub(crate) use profile::is_generation;
pub use profile::{generation, generations};
pub use qube::{
    Action, Actions, ConfigError, ConfigWarning, DEFAULT_MEMORY_MIB, GuestType, ItemError, MEMORY_LIMIT_MIB,
    Passthrough, QubeConfig, SchedulingConfig, TimerMode, TscMode, VCPUS_LIMIT,
};
pub use resources::{IoMemory, IoPorts, ResourceError};
pub use xl_cfg::{Data, Position, Setting, Settings, SyntaxError, SyntaxErrorKind, Value};
