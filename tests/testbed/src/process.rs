//! Running the programs that the testbed is put together with.

use std::process::{Command, Output, Stdio};

use crate::{Error, Result};

/// How many of a failed program's last lines go into the error.
const KEPT_LINES: usize = 30;

/// Runs `command` and returns what it wrote to stdout. Its stderr is shown only if it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let output = spawn(command)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` for its effect.
pub fn run(command: &mut Command) -> Result<()> {
    spawn(command).map(drop)
}

fn spawn(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| Error::NoProgram {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = said.lines().collect();
    Err(Error::Command {
        command: format!("{command:?}"),
        status: output.status,
        output: lines[lines.len().saturating_sub(KEPT_LINES)..].join("\n"),
    })
}

/// Runs `command` with its own stdin and stdout as the caller set them.
pub fn run_connected(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|source| Error::NoProgram {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command { command: format!("{command:?}"), status, output: String::new() })
}
