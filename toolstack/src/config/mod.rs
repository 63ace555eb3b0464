//! What a qube is to be: configuration files of `xl` and NixOS closures, read into one [`QubeConfig`].
//!
//! ```
//! use toolstack::config::{QubeConfig, Settings};
//!
//! let text = b"type = 'pvh'\nname = 'work'\nkernel = '/boot/vmlinuz'\nmemory = 512\n";
//! let settings = Settings::parse("work.cfg", text, &["vcpus=2"])?;
//! let (config, warnings) = QubeConfig::from_settings("work.cfg", &settings)?;
//! assert_eq!((config.memory_mib, config.vcpus), (512, 2));
//! assert!(warnings.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod closure;
#[cfg(test)]
pub(crate) mod folder;
mod keys;
mod libxl_json;
mod profile;
mod qube;
mod xl_cfg;

pub use closure::{CLOSURE_MEMORY_MIB, Closure, ClosureError};
pub use profile::generation;
pub use qube::{
    Action, Actions, ConfigError, ConfigWarning, DEFAULT_MEMORY_MIB, GuestType, MEMORY_LIMIT_MIB, QubeConfig,
    TimerMode, VCPUS_LIMIT,
};
pub use xl_cfg::{Data, Position, Setting, Settings, SyntaxError, SyntaxErrorKind, Value};
