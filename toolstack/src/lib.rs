//! Builds Xen domains from kernels and NixOS closures, without libxl.

pub mod image;
