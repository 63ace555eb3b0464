//! The starter's process for one service: root, until the program is somebody else.

use super::{connection, run};
use nexus::agent::asked_to_start;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

/// Does what the agent on stdin asks for, if that may be; else it is hung up, and the log says why.
pub(crate) fn start(settings: &Path) -> io::Result<i32> {
    let socket = connection()?;
    let start = asked_to_start(&socket, settings).map_err(io::Error::other)?;
    let record = serde_json::json!({
        "event": "start", "user": start.user.name, "service": start.service.to_string(), "source": start.source(),
    });
    // There is nobody left to tell when stderr is gone.
    let _ = writeln!(io::stderr(), "{record}");
    let mut command = Command::new(std::env::current_exe()?);
    start.describe(&mut command);
    command.arg("become").arg(&start.user.name).arg(&start.program);
    let argument = start.service.argument();
    if !argument.is_empty() {
        command.arg(argument);
    }
    run(socket, &mut command)
}
