//! Real Xen for the tests: a hypervisor, a dom0 and guests put together from Debian packages, booted in QEMU
//! (software emulation unless the machine can nest virtualisation), and a list of checks run inside dom0.
//!
//! The way of a run, one module a step:
//!
//! 1. [`apt`] and [`debian`]: the packages of a [`release`], in a folder of their own; nothing is installed on the machine.
//! 2. [`dom0`]: Xen, the dom0 kernel and an initrd of a cached base and a small overlay.
//! 3. [`products`]: our own programs, built when they are not.
//! 4. [`closure`]: the guests, as NixOS-shaped closures built by Nix from `nixos/testing`.
//!    [`spec`]: what checks declare of them.
//!    [`assets`]: the same systems as other installations keep them, for the checks that ask for it.
//! 5. [`checks`] and [`suite`]: which checks share a boot, and their verdicts.
//! 6. [`qemu`] and [`protocol`]: one boot, and what its dom0 says on the second serial port.
//!
//! What is expensive lies in the [`cache`], under names that carry a hash of the recipe, so that two checkouts
//! or two runs never disagree about it. What belongs to one run lies in that run's scratch folder.

pub mod apt;
pub mod archive;
pub mod assets;
pub mod cache;
pub mod checks;
pub mod closure;
pub mod debian;
pub mod dom0;
pub mod elf;
pub mod error;
pub mod packages;
pub mod process;
pub mod products;
pub mod protocol;
pub mod qemu;
pub mod release;
pub mod spec;
pub mod suite;

pub use error::{Error, Result};
