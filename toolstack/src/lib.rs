//! Builds Xen domains from kernels and NixOS closures, without libxl.

pub mod boot;
pub mod bootloader;
mod cache;
mod cache_folder;
pub mod closure_disk;
pub mod config;
pub mod create;
pub mod device;
pub mod doctor;
pub mod host;
pub mod image;
mod lock;
pub mod memory;
pub mod pciback;
pub mod pool;
pub mod qubes;
pub mod scheduler;
mod secrets;
mod sources;
pub mod store;
mod store_path;
mod userdata;
pub mod vcpus;
pub mod watch;

pub use cache::{CacheError, Entry, KERNEL_CACHE, KERNEL_CACHE_LIMIT, KernelCache, Pruned};
pub use secrets::SecretsError;
pub use sources::{HashMismatch, SourceError};
pub use userdata::UserData;
