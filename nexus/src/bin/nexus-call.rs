//! `nexus-call`: calls a service.

use clap::Parser;
use nexus::client::{CallError, OutgoingCall};
use nexus::listen::listen;
use nexus::programs::CallArguments;
use nexus::wire::EXIT_PROBLEM;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Why it ends without the service's exit code.
enum Failure {
    Call(CallError),
    Command(OsString, io::Error),
    Listen(PathBuf, io::Error),
}

fn main() -> ExitCode {
    let arguments = CallArguments::parse();
    let result = match (&arguments.listen, arguments.command.split_first()) {
        (Some(path), _) => present(&arguments, path),
        (None, Some((program, rest))) => join(&arguments, program, rest),
        (None, None) => start(&arguments).and_then(|call| {
            call.run(io::stdin(), &mut io::stdout(), &mut io::stderr()).map_err(Failure::Call)
        }),
    };
    let (code, message) = match result {
        // A process has eight bits of it.
        Ok(code) => return ExitCode::from(u8::try_from(code).unwrap_or(EXIT_PROBLEM)),
        Err(Failure::Call(error)) => {
            (error.exit_code(), format!("{}: {}: {error}", arguments.target, arguments.service))
        }
        Err(Failure::Command(program, error)) => {
            (EXIT_PROBLEM, format!("{}: {error}", program.to_string_lossy()))
        }
        Err(Failure::Listen(path, error)) => (EXIT_PROBLEM, format!("{}: {error}", path.display())),
    };
    complain(&message);
    ExitCode::from(code)
}

fn complain(message: &str) {
    // There is nobody left to tell when stderr is gone, too.
    let _ = writeln!(io::stderr(), "nexus-call: {message}");
}

fn start(arguments: &CallArguments) -> Result<OutgoingCall, Failure> {
    OutgoingCall::start(&arguments.agent, &arguments.target, &arguments.service).map_err(Failure::Call)
}

/// Calls, and has a program talk to the service. The program is not run before the agent is there; that the call is
/// refused it sees as the end of its stdin.
fn join(arguments: &CallArguments, program: &OsString, rest: &[OsString]) -> Result<i32, Failure> {
    let failed = |error| Failure::Command(program.clone(), error);
    let call = start(arguments)?;
    let mut child = Command::new(program)
        .args(rest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (mut stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let Some(stdout) = stdout else { return Err(failed(io::ErrorKind::BrokenPipe.into())) };
    let called = call.carry(
        stdout,
        |data| {
            if data.is_empty() {
                stdin = None;
            } else if let Some(pipe) = &mut stdin
                && pipe.write_all(data).is_err()
            {
                // It does not listen; what it has to say still counts.
                stdin = None;
            }
            Ok(())
        },
        &mut io::stderr(),
    );
    drop(stdin);
    let status = child.wait().map_err(failed)?;
    called.map_err(Failure::Call)?;
    Ok(status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(EXIT_PROBLEM.into()))
}

/// Is a socket, until the process ends.
fn present(arguments: &CallArguments, path: &Path) -> Result<i32, Failure> {
    let failed = |error| Failure::Listen(path.to_owned(), error);
    let listener = listen(path, None).map_err(failed)?;
    let (agent, target, service) = (&arguments.agent, &arguments.target, &arguments.service);
    let call = Arc::new((agent.clone(), target.clone(), service.clone()));
    loop {
        match listener.accept() {
            Ok((socket, _)) => {
                let call = call.clone();
                // Without a thread the socket is closed, and the client told so.
                let _ = std::thread::Builder::new().name("call".to_owned()).spawn(move || {
                    if let Err(error) = connect(&call, &socket) {
                        complain(&format!("{}: {}: {error}", call.1, call.2));
                    }
                });
            }
            // No descriptors, or the client has gone: others come.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn connect(
    (agent, target, service): &(PathBuf, String, String),
    socket: &UnixStream,
) -> Result<i32, CallError> {
    OutgoingCall::start(agent, target, service)?.join(socket, &mut io::stderr())
}
