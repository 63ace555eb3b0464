//! `nxl dmesg`, `debug-keys`, `sysrq`, `trigger` and `dump-core`.

use crate::error::Error;
use clap::Args;
use std::io::{self, Write};
use std::path::PathBuf;
use toolstack::qubes::Qubes;
use xen::Trigger;

#[derive(Debug, Args)]
pub(crate) struct TriggerOptions {
    /// In which.
    qube: String,
    /// nmi, reset, init, power or sleep: Xen knows no reset, and only HVM domains have buttons.
    trigger: String,
    /// On which vCPU.
    #[arg(default_value_t = 0)]
    vcpu: u32,
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

pub(crate) fn sysrq(qubes: &Qubes, which: &str, letter: &str) -> Result<(), Error> {
    let qube = qubes.find(which)?;
    let mut letters = letter.chars();
    match (letters.next(), letters.next()) {
        (Some(key), None) => Ok(qubes.send_sysrq(&qube, key)?),
        _ => Err(Error::NoKey(letter.to_owned())),
    }
}

pub(crate) fn trigger(qubes: &Qubes, options: &TriggerOptions) -> Result<(), Error> {
    let trigger = match options.trigger.as_str() {
        "nmi" => Trigger::Nmi,
        "reset" => Trigger::Reset,
        "init" => Trigger::Init,
        "power" => Trigger::Power,
        "sleep" => Trigger::Sleep,
        "s3resume" => return Err(Error::S3Resume),
        other => return Err(Error::NoTrigger(other.to_owned())),
    };
    let domid = qubes.find(&options.qube)?.info.domid;
    Ok(qubes.control().send_trigger(domid, trigger, options.vcpu)?)
}

pub(crate) fn dump_core(qubes: &Qubes, options: &DumpOptions) -> Result<(), Error> {
    Ok(qubes.dump_core(&qubes.find(&options.qube)?, &options.file)?)
}
