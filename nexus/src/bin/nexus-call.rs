//! `nexus-call`: calls a service.

use clap::Parser;
use nexus::client::{CALL_SOCKET, CallError, OutgoingCall};
use nexus::wire::{EXIT_PROBLEM, EXIT_REFUSED};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Calls a service of a qube or container: stdin goes there, its stdout and stderr come back.
///
/// Exit status: that of the service (128 and the signal's number if one ended it); 126 if policy refuses the call, 127 if
/// there is no such service, 125 if something else fails.
#[derive(Parser)]
#[command(version, after_help = "Example:\n  nexus-call work:db nexus.Query+orders < query.sql")]
struct Arguments {
    /// The agent's socket.
    #[arg(long, value_name = "SOCKET", default_value = CALL_SOCKET)]
    agent: PathBuf,
    /// Whom: QUBE, QUBE:CONTAINER, or @default for whom policy says.
    target: String,
    /// What: SERVICE or SERVICE+ARGUMENT.
    service: String,
}

fn main() -> ExitCode {
    let Arguments { agent, target, service } = Arguments::parse();
    let called = OutgoingCall::start(&agent, &target, &service)
        .and_then(|call| call.run(io::stdin(), &mut io::stdout(), &mut io::stderr()));
    match called {
        // A process has eight bits of it.
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(EXIT_PROBLEM)),
        Err(error) => {
            let refused = matches!(error, CallError::Refused);
            // There is nobody left to tell when stderr is gone, too.
            let _ = writeln!(io::stderr(), "nexus-call: {target}: {service}: {error}");
            ExitCode::from(if refused { EXIT_REFUSED } else { EXIT_PROBLEM })
        }
    }
}
