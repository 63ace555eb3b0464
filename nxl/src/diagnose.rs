//! `nxl dmesg`, `debug-keys`, `sysrq`, `trigger` and `dump-core`.

use crate::error::Error;
use clap::{Args, ValueEnum};
use std::io::{self, Write};
use std::path::PathBuf;
use toolstack::qubes::Qubes;
use xen::Trigger;

#[derive(Debug, Args)]
pub(crate) struct TriggerOptions {
    /// In which.
    qube: String,
    /// What.
    trigger: Kind,
    /// On which vCPU.
    #[arg(default_value_t = 0)]
    vcpu: u32,
}

/// What can be set off.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A non-maskable interrupt.
    Nmi,
    /// A reset, which no Xen knows.
    Reset,
    /// An INIT.
    Init,
    /// The power button, of HVM domains.
    Power,
    /// The sleep button, of HVM domains.
    Sleep,
    /// Waking up, for HVM domains.
    #[value(name = "s3resume")]
    S3Resume,
}

#[derive(Debug, Args)]
pub(crate) struct DumpOptions {
    /// Whose. It goes on meanwhile, unless it is paused.
    qube: String,
    /// Where to.
    file: PathBuf,
}

pub(crate) fn dmesg(qubes: &Qubes, clear: bool) -> Result<(), Error> {
    let text = qubes.control().console_ring(clear)?;
    io::stdout().write_all(&text).map_err(Error::Output)
}

pub(crate) fn debug_keys(qubes: &Qubes, keys: &str) -> Result<(), Error> {
    Ok(qubes.control().send_debug_keys(keys)?)
}

pub(crate) fn sysrq(qubes: &Qubes, which: &str, letter: char) -> Result<(), Error> {
    Ok(qubes.send_sysrq(&qubes.find(which)?, letter)?)
}

pub(crate) fn trigger(qubes: &Qubes, options: &TriggerOptions) -> Result<(), Error> {
    let trigger = match options.trigger {
        Kind::Nmi => Trigger::Nmi,
        Kind::Reset => Trigger::Reset,
        Kind::Init => Trigger::Init,
        Kind::Power => Trigger::Power,
        Kind::Sleep => Trigger::Sleep,
        Kind::S3Resume => return Err(Error::S3Resume),
    };
    let domid = qubes.find(&options.qube)?.info.domid;
    Ok(qubes.control().send_trigger(domid, trigger, options.vcpu)?)
}

pub(crate) fn dump_core(qubes: &Qubes, options: &DumpOptions) -> Result<(), Error> {
    Ok(qubes.dump_core(&qubes.find(&options.qube)?, &options.file)?)
}
