//! `nxl save`, `restore`, `suspend` and `resume`.

use crate::bar;
use crate::command::{RestoreOptions, SaveOptions};
use crate::create;
use crate::error::Error;
use crate::watch;
use std::io::{self, Write};
use toolstack::boot::BuildError;
use toolstack::create::CreateError;
use toolstack::qubes::Qubes;
use toolstack::save::{Afterwards, SaveError, SavedQube};
use xen::Platform;
use xen::host::Dom0;

pub(crate) fn save(qubes: &Qubes, options: &SaveOptions) -> Result<(), Error> {
    let qube = qubes.find(&options.qube)?;
    let config = options.config.as_deref().map(|path| create::read_xl_cfg(path, &[])).transpose()?;
    let afterwards = match (options.checkpoint, options.paused) {
        (_, true) => Afterwards::Pause,
        (true, false) => Afterwards::Resume,
        (false, false) => Afterwards::Destroy,
    };
    let progress = bar::of_bytes(format!("saving {}", qube.display_name()));
    Ok(qubes.save(&qube, config.as_ref(), &options.file, options.domid, afterwards, &progress)?)
}

pub(crate) fn restore(qubes: &Qubes, options: &RestoreOptions) -> Result<(), Error> {
    let start = &options.start;
    if start.wants_viewer() {
        return Err(Error::NoViewer);
    }
    let (config, file) = options.files();
    let config = config.map(|path| create::read_xl_cfg(path, &[])).transpose()?;
    let attended = start.attended();
    let foreign = Dom0.foreign_memory().map_err(Error::of_opening)?;
    let progress = bar::of_bytes(format!("restoring {}", file.display()));
    let restore = || qubes.restore(SavedQube::open(file)?, config.clone(), attended, &progress);
    let (qube, config) = match restore() {
        Err(SaveError::Create(CreateError::Build(BuildError::Memory { needed_kib, .. }))) => {
            create::make_room(qubes, needed_kib)?;
            restore()?
        }
        restored => restored?,
    };
    if start.debug {
        write!(io::stdout(), "{}", config.to_libxl_json()).map_err(Error::Output)?;
    }
    if !start.paused {
        qubes.unpause(&qube)?;
    }
    if attended {
        watch::ensure(qubes)?;
    }
    create::stay(qubes, &*foreign, qube, &config, start)
}

pub(crate) fn suspend(qubes: &Qubes, which: &str) -> Result<(), Error> {
    Ok(qubes.suspend(&qubes.find(which)?)?)
}

pub(crate) fn resume(qubes: &Qubes, which: &str) -> Result<(), Error> {
    Ok(qubes.resume(&qubes.find(which)?)?)
}
