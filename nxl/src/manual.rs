//! What a package ships beside the program, made from the command line's own description.

use crate::command::description;
use crate::error::Error;
use clap_complete::Shell;
use std::io;
use std::path::Path;

pub(crate) fn completions(shell: Shell, program: &str) -> Result<(), Error> {
    let mut description = description();
    // A program that is a command of nxl's, too, and called after both.
    let command = program.strip_prefix("nxl-").and_then(|command| description.find_subcommand(command));
    if let Some(command) = command {
        description = command.clone();
    }
    clap_complete::generate(shell, &mut description, program, &mut io::stdout());
    Ok(())
}

pub(crate) fn man(folder: &Path) -> Result<(), Error> {
    clap_mangen::generate_to(description(), folder)
        .map_err(|source| Error::Read { path: folder.to_owned(), source })
}
