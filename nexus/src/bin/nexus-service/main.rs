//! `nexus-service`: what every qube and container does for whoever administers it.

mod container;
mod exec;
mod logs;
mod start;

use clap::Parser;
use nexus::agent::Settings;
use nexus::answer::{Asked, answer, asked, refuse};
use nexus::client::ConversationError;
use nexus::command::{EXEC, EXEC_AS, LOGS};
use nexus::programs::{AGENT_SETTINGS, SERVICES, ServiceArguments, ServiceCommand};
use nexus::wire::{EXIT_NO_SERVICE, EXIT_PROBLEM};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let mut line = std::env::args_os();
    let called = line.next().unwrap_or_default();
    let name = Path::new(&called).file_name().and_then(OsStr::to_str).unwrap_or_default();
    if SERVICES.contains(&name) {
        let argument = line.next().unwrap_or_default();
        return finish(be(name, &argument.to_string_lossy(), Path::new(AGENT_SETTINGS)));
    }
    let ServiceArguments { config, what } = ServiceArguments::parse();
    match what {
        ServiceCommand::Be { service, argument } => finish(be(&service, &argument, &config)),
        ServiceCommand::Answer { service, program } => over(reply(&service, &program, &config)),
        ServiceCommand::AsUser => over(start::start(&config)),
        ServiceCommand::Become { user, program } => finish(exec::become_program(&user, &program)),
    }
}

/// The end of a process that has answered a call.
fn over(answered: io::Result<i32>) -> ExitCode {
    match answered {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Why a service does not do what it is for: an exit code, and what is said on stderr.
struct Failure {
    code: u8,
    what: String,
}

impl Failure {
    /// What was asked for is wrong, or cannot be had.
    fn of(what: impl ToString) -> Self {
        Self { code: 1, what: what.to_string() }
    }
}

fn finish(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, what }) => {
            complain(&what);
            ExitCode::from(code)
        }
    }
}

fn complain(what: &str) {
    // There is nobody left to tell when stderr is gone, too.
    let _ = writeln!(io::stderr(), "nexus-service: {what}");
}

fn be(service: &str, argument: &str, config: &Path) -> Result<(), Failure> {
    match service {
        EXEC => exec::exec(argument),
        EXEC_AS => exec::exec_as(argument),
        LOGS => logs::logs(argument),
        _ => container::container(argument, || settings(config)),
    }
}

fn settings(path: &Path) -> Result<Settings, Failure> {
    fs::read_to_string(path)
        .and_then(|text| serde_json::from_str(&text).map_err(Into::into))
        .map_err(|error| Failure::of(format!("{}: {error}", path.display())))
}

/// The connection that stdin is.
fn connection() -> io::Result<UnixStream> {
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

/// Answers the call on stdin.
fn reply(service: &str, program: &[OsString], config: &Path) -> io::Result<i32> {
    let socket = connection()?;
    let Asked { service: wanted, source } = asked(&socket)?;
    if wanted.name().as_str() != service {
        let why = format!("nexus-service: this is {service}, and not {}", wanted.name());
        return refuse(socket, EXIT_NO_SERVICE, &why).map_err(io::Error::other);
    }
    let mut command = match program.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest);
            if !wanted.argument().is_empty() {
                command.arg(wanted.argument());
            }
            command
        }
        None => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("--config").arg(config).args(["be", service, wanted.argument()]);
            command
        }
    };
    command
        .env("QREXEC_REMOTE_DOMAIN", source)
        .env("QREXEC_SERVICE_FULL_NAME", wanted.to_string())
        .env("QREXEC_SERVICE_ARGUMENT", wanted.argument());
    run(socket, &mut command)
}

/// Runs a command for whoever is at the other end.
fn run(socket: UnixStream, command: &mut Command) -> io::Result<i32> {
    match answer(socket, command) {
        // The caller wanted no more of it, and its program is over.
        Err(ConversationError::HungUp) => Ok(EXIT_PROBLEM.into()),
        ended => ended.map_err(io::Error::other),
    }
}
