//! `nxl-bootloader`: `nxl bootloader` as a program of its own. It needs none of Xen's libraries, and so runs wherever a
//! disk or a closure is to be looked at.

#[path = "../bootloader.rs"]
mod bootloader;

use clap::Parser;
use std::io::{self, Write};
use std::process::ExitCode;

/// Picks a NixOS system from a disk or a closure, for libxl's bootloader=.
#[derive(Debug, Parser)]
#[command(name = "nxl-bootloader", version)]
struct Arguments {
    #[command(flatten)]
    options: bootloader::BootloaderOptions,
}

fn main() -> ExitCode {
    match bootloader::bootloader(&Arguments::parse().options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // libxl shows it on the guest's console, in a terminal without line discipline.
            let _ = write!(io::stderr(), "nxl-bootloader: {error}\r\n");
            ExitCode::FAILURE
        }
    }
}
