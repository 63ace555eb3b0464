//! `nexus-agent`: routes the calls within a qube.

use clap::Parser;
use nexus::agent::{Agent, Settings};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::process::ExitCode;

/// Routes the calls within a qube: from its containers and from itself, under the qube's own policy.
///
/// Every decision, and every call's end, is a line of JSON on stderr.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// A JSON file with the qube's name, its user, its sockets, and its containers.
    #[arg(long, value_name = "FILE", default_value = "/etc/nexus/agent.json")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { config } = Arguments::parse();
    let result = std::fs::read_to_string(&config)
        .and_then(|text| serde_json::from_str::<Settings>(&text).map_err(Into::into))
        .map_err(|error| format!("{}: {error}", config.display()))
        .and_then(|settings| Agent::open(settings, Box::new(line)).map_err(|error| error.to_string()))
        .and_then(|agent| {
            // Whoever calls from now on waits, at worst, until the loop turns.
            ready().and_then(|()| agent.run()).map_err(|error| error.to_string())
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody left to tell when stderr is gone, too.
            let _ = writeln!(io::stderr(), "nexus-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Tells systemd that the sockets are there (sd_notify(3)).
fn ready() -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(path)?,
    }
    socket.send(b"READY=1\n").map(|_| ())
}

fn line(record: &serde_json::Value) {
    // One write for a line: stderr has no buffer.
    let _ = io::stderr().write_all(format!("{record}\n").as_bytes());
}
