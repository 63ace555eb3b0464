//! `nxl`: creates and manages qubes, with the commands of `xl`. It parses, calls `toolstack`, and prints.

mod apply;
mod bar;
mod block;
mod block_nix;
mod bootloader;
mod cache;
mod calls;
mod command;
mod console;
mod containers;
mod create;
mod devd;
mod diagnose;
mod diff;
mod disposable;
mod doctor;
mod error;
mod events;
mod exec;
mod generations;
mod host;
mod info;
mod list;
mod log_file;
mod manage;
mod manual;
mod memory;
mod network;
mod pci;
mod plan;
mod policy;
mod pool;
mod remote;
mod save;
mod scheduler;
mod screen;
mod spec;
mod stock;
mod terminal;
mod top;
mod tree;
mod vcpu;
mod volume;
mod watch;
mod xl_conf;

use command::{Arguments, Command};
use error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use toolstack::UserData;
use toolstack::events::EventLog;
use toolstack::qubes::Qubes;
use xen::host::Dom0;

fn main() -> ExitCode {
    if let Some(command) = stock::asked_for_help() {
        return finish(stock::exec(&command).map(|never| match never {}));
    }
    let arguments = Arguments::of(std::env::args_os()).unwrap_or_else(|error| error.exit());
    finish(run(arguments))
}

fn finish(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (status, tell) = error.status();
            if tell {
                // There is nobody left to tell when stderr is gone, too.
                let _ = writeln!(io::stderr(), "nxl: {error}");
            }
            ExitCode::from(status)
        }
    }
}

/// The qubes of the host that this runs on.
fn qubes() -> Result<Qubes, Error> {
    let qubes = Qubes::open(&Dom0, UserData::default()).map_err(Error::of_opening)?;
    Ok(qubes.with_events(EventLog::default()))
}

fn run(Arguments { global, command }: Arguments) -> Result<(), Error> {
    let dryrun = global.dryrun;
    match command {
        Command::Create(options) => create::create(&options, dryrun),
        Command::Apply(options) => apply::apply(&options, dryrun),
        Command::ConfigUpdate(options) => create::update(&options, dryrun),
        Command::VcpuPin(options) => vcpu::pin(&qubes()?, &options, dryrun),
        Command::Bootloader(options) => Ok(bootloader::bootloader(&options)?),
        Command::Stock(command) => match stock::exec(command.name())? {},
        _ if dryrun => Err(Error::NoDryRun),
        Command::Plan(options) => plan::run(&options),
        Command::Diff(options) => diff::diff(&options),
        Command::Generations(options) => generations::generations(&qubes()?, &options),
        Command::Switch(options) => generations::switch(&options),
        Command::Rollback(options) => generations::rollback(&options),
        Command::Tree(options) => tree::tree(&qubes()?, &options),
        Command::Exec(options) => exec::exec(&options),
        Command::Logs(options) => exec::logs(&options),
        Command::Container(command) => containers::container(&command),
        Command::List(options) => list::list(&qubes()?, &options),
        Command::Destroy(options) => manage::destroy(&qubes()?, &options.qube, options.force),
        Command::Shutdown(options) => manage::shutdown(&qubes()?, &options),
        Command::Reboot(options) => manage::reboot(&qubes()?, &options),
        Command::Pause { qube } => manage::pause(&qubes()?, &qube),
        Command::Unpause { qube } => manage::unpause(&qubes()?, &qube),
        Command::Console { qube } => console::attach(&qubes()?, &qube),
        Command::Domid { qube } => manage::domid(&qubes()?, &qube),
        Command::Domname { domid } => manage::domname(&qubes()?, domid),
        Command::Info { numa, name } => info::info(&qubes()?, numa, name.as_deref()),
        Command::Rename { qube, name } => manage::rename(&qubes()?, &qube, &name),
        Command::Uptime { short, qubes: which } => host::uptime(&qubes()?, short, &which),
        Command::VmList { json } => host::vm_list(&qubes()?, json),
        Command::VcpuList { json, qubes: which } => vcpu::list(&qubes()?, json, &which),
        Command::VcpuSet(options) => vcpu::set(&qubes()?, &options),
        Command::MemSet(options) => memory::set(&qubes()?, &options),
        Command::MemMax(options) => memory::set_max(&qubes()?, &options),
        Command::Claims => memory::claims(&qubes()?),
        Command::Sharing { qube } => memory::sharing(&qubes()?, qube.as_deref()),
        Command::SchedCredit2(options) => scheduler::credit2(&qubes()?, &options),
        Command::Dmesg { clear } => diagnose::dmesg(&qubes()?, clear),
        Command::DebugKeys { keys } => diagnose::debug_keys(&qubes()?, &keys),
        Command::Sysrq { qube, letter } => diagnose::sysrq(&qubes()?, &qube, &letter),
        Command::Trigger(options) => diagnose::trigger(&qubes()?, &options),
        Command::DumpCore(options) => diagnose::dump_core(&qubes()?, &options),
        Command::Save(options) => save::save(&qubes()?, &options),
        Command::Restore(options) => save::restore(&qubes()?, &options),
        Command::Suspend { qube } => save::suspend(&qubes()?, &qube),
        Command::Resume { qube } => save::resume(&qubes()?, &qube),
        Command::ChannelList(options) => host::channel_list(&qubes()?, &options),
        Command::PciAssignableAdd { name, device } => pci::add(&qubes()?, &device, name.as_deref()),
        Command::PciAssignableRemove { rebind, device } => pci::remove(&qubes()?, &device, rebind),
        Command::PciAssignableList { show_names, json } => pci::list(&qubes()?, show_names, json),
        Command::PciAttach { qube, device } => pci::attach(&qubes()?, &qube, &device),
        Command::PciDetach { force, qube, device } => pci::detach(&qubes()?, &qube, &device, force),
        Command::PciList { json, qube } => pci::list_attached(&qubes()?, json, &qube),
        Command::Top(options) => top::top(qubes()?, &options),
        Command::Doctor(options) => doctor::doctor(&options),
        Command::Pool(command) => pool::pool(qubes()?, &command),
        Command::Disposable(command) => disposable::disposable(qubes()?, &command),
        Command::BlockAttach { qube, disk } => block::attach(&qubes()?, &qube, &disk),
        Command::BlockDetach { force, qube, device } => block::detach(&qubes()?, &qube, &device, force),
        Command::BlockList(options) => block::list(&qubes()?, &options),
        Command::NetworkAttach { qube, nic } => network::attach(&qubes()?, &qube, &nic),
        Command::NetworkDetach { qube, device } => network::detach(&qubes()?, &qube, &device),
        Command::NetworkList(options) => network::list(&qubes()?, &options),
        Command::Watch(options) => watch::watch(qubes()?, options.linger),
        Command::Devd(options) => devd::devd(&options),
        Command::Volume(options) => volume::volume(&options),
        Command::Cache(command) => cache::cache(&command),
        Command::Policy(command) => policy::policy(&command),
        Command::Calls(options) => calls::calls(&options),
        Command::Events(options) => events::events(&options),
        Command::Completions { shell, program } => manual::completions(shell, &program),
        Command::Man { folder } => manual::man(&folder),
        Command::Reference { programs } => manual::reference(programs),
    }
}
