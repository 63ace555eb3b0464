//! The command line of `block-nix`, for the program and for its manual page.

use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Makes a qube's disk of a NixOS closure: a read-only erofs image with its store paths, kept in /var/cache/nxl/images.
/// A hotplug script of libxl's.
#[derive(Debug, Parser)]
#[command(
    name = "block-nix",
    version,
    after_help = "In a configuration of xl or nxl:
  disk = [ 'script=block-nix,vdev=xvdb,access=r,target=/nix/store/…-nixos-system-work-25.05' ]"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Connect the disk whose backend XENBUS_PATH names; libxl calls it so.
    Add,
    /// Take it away; libxl calls it so.
    Remove,
    /// Make the image of a store path, or of what leads to one, ahead of the first qube that wants it; print its record's
    /// path, what identifies its bytes, and what it took.
    Prepare {
        /// The store path.
        target: PathBuf,
    },
    /// Write the image of a store path to a file of its own, in one piece.
    Export {
        /// The store path.
        target: PathBuf,
        /// The file.
        file: PathBuf,
    },
}
