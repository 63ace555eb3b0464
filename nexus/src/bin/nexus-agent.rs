//! `nexus-agent`: routes the calls within a qube.

use clap::Parser;
use nexus::agent::{Agent, Settings};
use std::io::Write;
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
        .and_then(|agent| agent.run().map_err(|error| error.to_string()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody left to tell when stderr is gone, too.
            let _ = writeln!(std::io::stderr(), "nexus-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn line(record: &serde_json::Value) {
    // One write for a line: stderr has no buffer.
    let _ = std::io::stderr().write_all(format!("{record}\n").as_bytes());
}
