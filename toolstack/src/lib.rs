//! Builds Xen domains from kernels and NixOS closures, without libxl.

pub mod config;
pub mod image;
