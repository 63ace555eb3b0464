//! Builds Xen domains from kernels and NixOS closures, without libxl.

pub mod boot;
pub mod bootloader;
mod cache;
mod cache_folder;
pub mod checkup;
pub mod closure_disk;
pub mod config;
pub mod create;
pub mod device;
pub mod doctor;
pub mod events;
pub mod generations;
pub mod host;
pub mod image;
mod lock;
pub mod memory;
pub mod pciback;
pub mod pool;
pub mod progress;
pub mod qubes;
pub mod ready;
pub mod scheduler;
mod secrets;
mod sources;
pub mod spec;
pub mod store;
pub mod store_path;
mod userdata;
pub mod vcpus;
pub mod volume;
pub mod watch;
pub mod whole_file;

pub use cache::{CacheError, Entry, KERNEL_CACHE, KERNEL_CACHE_LIMIT, KernelCache, Pruned};
pub use secrets::SecretsError;
pub use sources::{HashMismatch, SourceError};
pub use userdata::UserData;
