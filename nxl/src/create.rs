//! `nxl create`.

use crate::command::CreateOptions;
use crate::console;
use crate::error::Error;
use crate::watch;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::time::Instant;
use toolstack::config::{Closure, ConfigWarning, QubeConfig, Settings};
use xen::Platform;
use xen::host::Host;

/// What the settings of the command line are called in messages.
const COMMAND_LINE: &str = "command line";

pub(crate) fn create(options: &CreateOptions) -> Result<(), Error> {
    if options.dryrun {
        let config = read(options)?;
        return writeln!(io::stdout(), "{}", config.to_libxl_json()).map_err(Error::Output);
    }
    // Before anything is read: elsewhere than in dom0 that is the first thing to know.
    let qubes = crate::qubes()?;
    let foreign = Host.foreign_memory().map_err(Error::NotDom0)?;
    let begun = Instant::now();
    let config = read(options)?;
    if !options.quiet {
        // As xl does, on stdout.
        writeln!(io::stdout(), "Parsing config from {}", options.config.display()).map_err(Error::Output)?;
    }
    let qube = qubes.create(&config, !options.unattended, &*foreign)?;
    if !options.paused {
        qubes.unpause(&qube)?;
    }
    if !options.unattended {
        watch::start().map_err(Error::Watcher)?;
    }
    if !options.quiet && io::stderr().is_terminal() {
        let _ = writeln!(
            io::stderr(),
            "domain {}, {}: created in {:.0} ms",
            qube.info.domid,
            config.name,
            begun.elapsed().as_secs_f64() * 1e3
        );
    }
    if options.console {
        console::attach(&qubes, &qube.info.domid.to_string())?;
    }
    Ok(())
}

/// The configuration out of whatever was named, and of the settings of the command line.
fn read(options: &CreateOptions) -> Result<QubeConfig, Error> {
    let (config, warnings) = read_with_warnings(options)?;
    for warning in warnings {
        // Nobody reads stderr: no reason not to create the qube.
        let _ = writeln!(io::stderr(), "nxl: warning: {warning}");
    }
    Ok(config)
}

fn read_with_warnings(options: &CreateOptions) -> Result<(QubeConfig, Vec<ConfigWarning>), Error> {
    let path = &options.config;
    if Closure::is_one(path) {
        let system = Closure::open(path)?;
        let closure = match &options.specialisation {
            None => &system,
            Some(name) => system.specialisation(name)?,
        };
        closure.check()?;
        if let Some(program) = &closure.initrd_secrets {
            return Err(Error::InitrdSecrets {
                toplevel: closure.toplevel.clone(),
                program: program.clone(),
            });
        }
        let settings = Settings::parse(COMMAND_LINE, b"", &options.settings)?;
        return Ok(QubeConfig::from_closure(closure, &settings)?);
    }
    if let Some(name) = &options.specialisation {
        return Err(Error::NoSpecialisation { path: path.clone(), name: name.clone() });
    }
    let text = fs::read(path).map_err(|source| Error::Read { path: path.clone(), source })?;
    let source_name = path.display().to_string();
    let settings = Settings::parse(&source_name, &text, &options.settings)?;
    Ok(QubeConfig::from_settings(&source_name, &settings)?)
}
