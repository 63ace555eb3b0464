//! Why a command failed, in one line.

use crate::bootloader::BootError;
use nexus::wire::EXIT_REFUSED;
use nxl_top::terminal::TopError;
use std::io;
use std::path::PathBuf;
use toolstack::CacheError;
use toolstack::checkup::Machine;
use toolstack::config::{ClosureError, ConfigError, SyntaxError};
use toolstack::create::CreateError;
use toolstack::device::DeviceError;
use toolstack::qubes::QubeError;
use toolstack::watch::WatchError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "this is not dom0 of a Xen host, or its daemons do not run ({0}); nxl is to be run there, as root"
    )]
    NotDom0(#[source] xen::Error),
    #[error("{0}")]
    WrongRelease(xen::WrongRelease),
    #[error("{}", elsewhere(*.0))]
    NoXenHost(Machine),
    #[error(transparent)]
    Qube(#[from] QubeError),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Bootloader(#[from] BootError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Xen(#[from] xen::Error),
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{toplevel} has initrd secrets, which its program {program} appends: in dom0, with all that root may do; --initrd-secrets lets it", toplevel = toplevel.display(), program = program.display())]
    InitrdSecrets { toplevel: PathBuf, program: PathBuf },
    #[error("{path} is no NixOS closure, which {option} is for", path = path.display())]
    NotAClosure { path: PathBuf, option: &'static str },
    #[error("{0}")]
    Syntax(#[from] SyntaxError),
    #[error("{path}: `{key}' is {expected}, not {given:?}", path = path.display())]
    XlConf { path: PathBuf, key: &'static str, expected: &'static str, given: String },
    #[error("/etc/xen/xl.conf: {0}; --ignore-global-affinity-masks passes it over")]
    Mask(#[from] toolstack::config::CpusError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Closure(#[from] ClosureError),
    #[error("domain {domid} has no console yet: is xenconsoled running?")]
    NoConsole { domid: xen::DomId },
    #[error("console {tty}: {source}")]
    Console { tty: String, source: io::Error },
    #[error(
        "the watcher could not be started ({0}): the qube runs, but nobody carries out its on_poweroff, on_reboot and on_crash; `nxl watch` does"
    )]
    Watcher(#[source] io::Error),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error("nxl devd could not be started: {source}")]
    NoDevd { source: io::Error },
    #[error(transparent)]
    Devd(#[from] toolstack::device::DevdError),
    #[error("{path}: stored configuration: {source}")]
    Stored { path: String, source: serde_json::Error },
    #[error(transparent)]
    Vcpu(#[from] toolstack::vcpus::VcpuError),
    #[error(transparent)]
    Memory(#[from] toolstack::memory::MemoryError),
    #[error("{0:?} is no size: it is a number of MiB, or of what follows it (b, k, m, g, t)")]
    Size(String),
    #[error(transparent)]
    Save(#[from] toolstack::save::SaveError),
    #[error(transparent)]
    Scheduler(#[from] toolstack::scheduler::SchedulerError),
    #[error(transparent)]
    Pci(#[from] toolstack::config::PciError),
    #[error(transparent)]
    Pciback(#[from] toolstack::pciback::PcibackError),
    #[error(transparent)]
    Doctor(#[from] toolstack::doctor::DoctorError),
    #[error(transparent)]
    Volume(#[from] toolstack::volume::VolumeError),
    #[error(transparent)]
    Pool(#[from] toolstack::pool::PoolError),
    #[error(transparent)]
    Disposable(#[from] toolstack::spec::DisposableError),
    #[error("all names of disposable qubes are taken, disp0 to disp9999")]
    NoFreeName,
    #[error("{0} left over; `nxl doctor --repair` removes it")]
    LeftOver(usize),
    #[error("{0} wrong: each line says what to do, and `nxl doctor --repair` does what is safe")]
    Unwell(usize),
    #[error("{0} could not be removed")]
    NotRepaired(usize),
    #[error("{0:?} is neither a vCPU's number nor all")]
    NoVcpu(String),
    #[error("--force is for one vCPU, not for all")]
    ForceAll,
    #[error("nxl opens no VNC viewer: `xl vncviewer QUBE` does, once the qube is there")]
    NoViewer,
    #[error("the command does not implement -N (dry run): create, apply, config-update and vcpu-pin do")]
    NoDryRun,
    #[error("{command} is a command of xl, which {reason}; the Debian package xen-utils-common has it")]
    NoStock { command: String, reason: String },
    #[error(
        "domain {domid} was not made by nxl, or is attended by nobody: `xl config-update` is for those of xl"
    )]
    NotKept { domid: xen::DomId },
    #[error("{0:?} is no key: a magic system request is one letter")]
    NoKey(String),
    #[error("{0:?} cannot be set off: that are nmi, reset, init, power and sleep")]
    NoTrigger(String),
    #[error("s3resume is for HVM domains, which have a device model to be resumed: `xl trigger` does that")]
    S3Resume,
    #[error("{0} faults: with one of them, every call is denied")]
    WrongPolicy(usize),
    #[error("{first}{}", more(*.others))]
    Policy { first: String, others: usize },
    #[error(transparent)]
    Token(#[from] nexus::policy::token::TokenError),
    #[error(transparent)]
    Name(#[from] nexus::name::NameError),
    #[error("dot: {source}; the Debian package graphviz has it, and without --svg its input is printed")]
    Graphviz { source: io::Error },
    #[error(transparent)]
    Spec(#[from] toolstack::spec::SpecError),
    #[error("{source_name}: {attribute}: {problem}")]
    Declared { source_name: String, attribute: String, problem: String },
    #[error(transparent)]
    Plan(#[from] toolstack::spec::PlanError),
    #[error(transparent)]
    Apply(#[from] toolstack::spec::Failure),
    #[error("another `nxl apply' (or switch, or rollback) is at work; --lock-timeout waits for it")]
    Applying,
    #[error("--host: {0} is given twice")]
    HostTwice(String),
    #[error("{} of {of} hosts failed: {}{}", failed.len(), failed.join(", "), left_alone(left))]
    Hosts { status: u8, of: usize, failed: Vec<String>, left: Vec<String> },
    #[error("{first}{}; nothing was done", and_more(*.others))]
    Conflict { first: String, others: usize },
    #[error("{first}{}; the rest was done, and another apply tries again", and_more(*.others))]
    NotApplied { first: String, others: usize },
    #[error("there is no qube {0:?} in the document")]
    NotDeclared(String),
    #[error(transparent)]
    Generation(#[from] toolstack::generations::GenerationError),
    #[error("{0} is no NixOS: it has no generations")]
    NoNixos(String),
    #[error("{0:?} is no age: it is a number of days, 30d")]
    Age(String),
    #[error("{first}{}; `nxl generations' has what became of it", and_more(*.others))]
    FellBack { first: String, others: usize },
    #[error("not restarted, as was asked for: {0}")]
    HeldBack(String),
    #[error("nothing was applied since this host booted ({path}): name a qubes.json", path = path.display())]
    NothingApplied { path: PathBuf },
    #[error("what was called ended with {0}")]
    Exit(u8),
    #[error("refused: {service} in {target}: {reason}")]
    Refused { target: String, service: String, reason: String },
    #[error("{service} in {target}: {source}")]
    Call { target: String, service: String, source: nexus::client::CallError },
    #[error("{qube}: {said} (exit status {code})")]
    InQube { qube: String, code: i32, said: String },
    #[error("{qube} says no list of containers: {source}")]
    ContainerList { qube: String, source: serde_json::Error },
    #[error("{qube} says that it has no container {container}")]
    NoContainer { qube: String, container: String },
    #[error("{0:?} is no container: that is QUBE:CONTAINER")]
    NotAContainer(String),
    #[error("{0:?} is no target: that is QUBE, QUBE:CONTAINER or @dispvm:QUBE")]
    NoTarget(String),
    #[error("dom0 is where you are: nothing has to be called for what is to run here")]
    IsDom0,
    #[error(
        "the command is a service of {0} bytes, and 65000 are the most: hand it over by stdin, as in `nxl exec QUBE -- sh -s < FILE'"
    )]
    LongCommand(usize),
    #[error(transparent)]
    Top(TopError),
    #[error("output: {0}")]
    Output(#[source] io::Error),
}

impl Error {
    /// Why Xen is not to be had, or xenstored: this is another release of it, or not dom0.
    pub(crate) fn of_opening(error: xen::Error) -> Self {
        match error.wrong_release() {
            Some(wrong) => Self::WrongRelease(wrong.clone()),
            None => Self::NotDom0(error),
        }
    }

    /// The status that the program ends with, and whether it has something to say.
    pub(crate) fn status(&self) -> (u8, bool) {
        match self {
            // Whoever read our output has had enough of it.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => (0, false),
            Self::Exit(code) => (*code, false),
            Self::Refused { .. } => (EXIT_REFUSED, true),
            Self::Call { source, .. } => (source.exit_code(), true),
            Self::NoXenHost(_) => (3, true),
            Self::HostTwice(_) => (2, true),
            Self::Hosts { status, .. } => (*status, true),
            _ => (1, true),
        }
    }
}

/// The hosts whose turn did not come.
fn left_alone(left: &[String]) -> String {
    if left.is_empty() { String::new() } else { format!("; left alone: {}", left.join(", ")) }
}

/// What a machine is that is not dom0.
fn elsewhere(machine: Machine) -> &'static str {
    match machine {
        Machine::Qube => "this is a qube, and not dom0 of its Xen host: there is nothing to look at here",
        Machine::Bare | Machine::Dom0 => {
            "this is no Xen host: the kernel runs on no Xen, and so not in its dom0"
        }
    }
}

/// What else a policy has wrong.
fn more(others: usize) -> String {
    match others {
        0 => String::new(),
        others => format!(" (and {others} more; `nxl policy check` has them all)"),
    }
}

/// How many there are beyond the first.
fn and_more(others: usize) -> String {
    match others {
        0 => String::new(),
        others => format!(" (and {others} more)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_no_dom0_has_a_status_of_its_own() {
        assert_eq!(Error::NoXenHost(Machine::Bare).status(), (3, true));
        assert_eq!(Error::LeftOver(1).status(), (1, true));
        assert!(Error::NoXenHost(Machine::Qube).to_string().starts_with("this is a qube"));
    }

    #[test]
    fn another_release_of_xen_is_not_told_as_a_host_without_it() {
        let here = xen::Here::Running("4.99".to_owned());
        let wrong = xen::WrongRelease { needed: "4.17", here };
        let error = Error::of_opening(wrong.into());
        let said = error.to_string();
        assert!(
            said.starts_with("this program was built for Xen 4.17, and Xen 4.99 runs here: install "),
            "{said}"
        );
        assert_eq!(error.status(), (1, true));
        let closed = xen::Error::errno("xs_open", "", 111);
        assert!(Error::of_opening(closed).to_string().starts_with("this is not dom0 of a Xen host"));
    }
}
