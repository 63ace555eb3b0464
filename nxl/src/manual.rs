//! What a package ships beside the program, made from the command line's own description.

use crate::command::description;
use crate::error::Error;
use clap_complete::Shell;
use std::io;
use std::path::Path;

pub(crate) fn completions(shell: Shell) -> Result<(), Error> {
    clap_complete::generate(shell, &mut description(), "nxl", &mut io::stdout());
    Ok(())
}

pub(crate) fn man(folder: &Path) -> Result<(), Error> {
    clap_mangen::generate_to(description(), folder)
        .map_err(|source| Error::Read { path: folder.to_owned(), source })
}
