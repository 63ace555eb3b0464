//! The commands that do one thing to one qube (or to all).

use crate::command::RequestOptions;
use crate::error::Error;
use std::io::{self, Write};
use std::time::Duration;
use toolstack::qubes::{Qube, Qubes, Request};
use xen::DomId;

pub(crate) fn say(text: &str) -> Result<(), Error> {
    writeln!(io::stdout(), "{text}").map_err(Error::Output)
}

pub(crate) fn destroy(qubes: &Qubes, which: &str, _force: bool) -> Result<(), Error> {
    Ok(qubes.destroy(&qubes.find(which)?)?)
}

pub(crate) fn pause(qubes: &Qubes, which: &str) -> Result<(), Error> {
    Ok(qubes.pause(&qubes.find(which)?)?)
}

pub(crate) fn unpause(qubes: &Qubes, which: &str) -> Result<(), Error> {
    Ok(qubes.unpause(&qubes.find(which)?)?)
}

pub(crate) fn domid(qubes: &Qubes, which: &str) -> Result<(), Error> {
    say(&qubes.find(which)?.info.domid.to_string())
}

pub(crate) fn domname(qubes: &Qubes, domid: u16) -> Result<(), Error> {
    say(qubes.get(DomId(domid))?.display_name())
}

pub(crate) fn rename(qubes: &Qubes, which: &str, name: &str) -> Result<(), Error> {
    Ok(qubes.rename(&qubes.find(which)?, name)?)
}

pub(crate) fn shutdown(qubes: &Qubes, options: &RequestOptions) -> Result<(), Error> {
    request(qubes, options, Request::Poweroff, "Shutting down")
}

pub(crate) fn reboot(qubes: &Qubes, options: &RequestOptions) -> Result<(), Error> {
    request(qubes, options, Request::Reboot, "Rebooting")
}

fn request(qubes: &Qubes, options: &RequestOptions, request: Request, what: &str) -> Result<(), Error> {
    let selected: Vec<Qube> = match &options.qube {
        Some(which) => vec![qubes.find(which)?],
        None => qubes.list()?.into_iter().filter(|qube| qube.info.domid != DomId::DOM0).collect(),
    };
    for qube in &selected {
        writeln!(io::stderr(), "{what} domain {}", qube.info.domid).map_err(Error::Output)?;
        qubes.request(qube, request)?;
    }
    if options.wait {
        for qube in &selected {
            qubes.wait_for_shutdown(qube, options.timeout.map(Duration::from_secs))?;
        }
    }
    Ok(())
}
