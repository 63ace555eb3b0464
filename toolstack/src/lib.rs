//! Builds Xen domains from kernels and NixOS closures, without libxl.

pub mod boot;
pub mod config;
pub mod create;
pub mod image;
pub mod qubes;
pub mod store;
mod userdata;
pub mod watch;

pub use userdata::UserData;
