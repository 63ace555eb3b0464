//! `nexus-agent`: routes the calls within a qube.

use clap::Parser;
use nexus::agent::{Agent, Settings};
use nexus::programs::AgentArguments;
use nexus::sd_notify::Notifier;
use std::io::{self, Write};
use std::process::ExitCode;

fn main() -> ExitCode {
    let AgentArguments { config, ready, memory } = AgentArguments::parse();
    if ready || memory {
        let report = if ready { nexus::agent::report_ready } else { nexus::agent::report_memory };
        return match report() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(io::stderr(), "nexus-agent: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let result = std::fs::read_to_string(&config)
        .and_then(|text| serde_json::from_str::<Settings>(&text).map_err(Into::into))
        .map_err(|error| format!("{}: {error}", config.display()))
        .and_then(|settings| Agent::open(settings, Box::new(line)).map_err(|error| error.to_string()))
        .and_then(|agent| {
            // Whoever calls from now on waits, at worst, until the loop turns.
            tell_ready().and_then(|()| agent.run()).map_err(|error| error.to_string())
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

/// Tells systemd, if it waits, that the sockets are there.
fn tell_ready() -> io::Result<()> {
    Notifier::from_env()?.map_or(Ok(()), |notifier| notifier.ready())
}

fn line(record: &serde_json::Value) {
    // One write for a line: stderr has no buffer.
    let _ = io::stderr().write_all(format!("{record}\n").as_bytes());
}
