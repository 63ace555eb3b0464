//! `nxl`: creates and manages qubes, with the commands of `xl`. It parses, calls `toolstack`, and prints.

mod block;
mod cache;
mod command;
mod console;
mod create;
mod error;
mod info;
mod list;
mod manage;
mod manual;
mod network;
mod watch;

use clap::Parser;
use command::{Arguments, Command};
use error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use toolstack::UserData;
use toolstack::qubes::Qubes;
use xen::host::Host;

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough of it.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody left to tell when stderr is gone, too.
            let _ = writeln!(io::stderr(), "nxl: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The qubes of the host that this runs on.
fn qubes() -> Result<Qubes, Error> {
    Qubes::open(&Host, UserData::default()).map_err(Error::NotDom0)
}

fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Create(options) => create::create(&options),
        Command::List { long, verbose, qubes: which } => list::list(&qubes()?, long, verbose, &which),
        Command::Destroy { force, qube } => manage::destroy(&qubes()?, &qube, force),
        Command::Shutdown(options) => manage::shutdown(&qubes()?, &options),
        Command::Reboot(options) => manage::reboot(&qubes()?, &options),
        Command::Pause { qube } => manage::pause(&qubes()?, &qube),
        Command::Unpause { qube } => manage::unpause(&qubes()?, &qube),
        Command::Console { qube } => console::attach(&qubes()?, &qube),
        Command::Domid { qube } => manage::domid(&qubes()?, &qube),
        Command::Domname { domid } => manage::domname(&qubes()?, domid),
        Command::BlockAttach { qube, disk } => block::attach(&qubes()?, &qube, &disk),
        Command::BlockDetach { force, qube, device } => block::detach(&qubes()?, &qube, &device, force),
        Command::BlockList { qubes: which } => block::list(&qubes()?, &which),
        Command::NetworkAttach { qube, nic } => network::attach(&qubes()?, &qube, &nic),
        Command::NetworkDetach { qube, device } => network::detach(&qubes()?, &qube, &device),
        Command::NetworkList { qubes: which } => network::list(&qubes()?, &which),
        Command::Info => info::info(&qubes()?),
        Command::Watch => watch::watch(qubes()?),
        Command::Cache(command) => cache::cache(&command),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { folder } => manual::man(&folder),
    }
}
