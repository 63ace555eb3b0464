//! The command line: spelled as `xl` spells it.

use crate::bootloader::BootloaderOptions;
use crate::diagnose::{DumpOptions, TriggerOptions};
use crate::doctor::DoctorOptions;
use crate::error::Error;
use crate::events::EventsOptions;
use crate::memory::MemoryOptions;
use crate::remote::Destination;
use crate::scheduler::Credit2Options;
use crate::stock::{self, Stock};
use crate::top::TopOptions;
use crate::vcpu::{PinOptions, SetOptions};
use crate::volume::VolumeOptions;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toolstack::qubes::Qubes;
use toolstack::spec::{ApplyLock, Wishes};

/// Creates and manages Xen qubes, with the commands of xl.
#[derive(Debug, Parser)]
#[command(version, infer_subcommands = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What `xl` takes before the command. Commands that are `xl`'s get them, too.
#[derive(Debug, Default, Args)]
pub(crate) struct Global {
    /// Say what the command would do and do nothing: create, apply, config-update, vcpu-pin.
    #[arg(short = 'N')]
    pub(crate) dryrun: bool,
    /// More of xl's messages, in its commands.
    #[arg(short = 'v', action = ArgAction::Count)]
    verbose: u8,
    /// Go on where xl would not, in its commands.
    #[arg(short = 'f')]
    force: bool,
    /// Progress in one line, in xl's commands.
    #[arg(short = 't')]
    one_line: bool,
    /// Times in xl's messages, in its commands.
    #[arg(short = 'T')]
    times: bool,
}

/// The description of the command line: help, manual pages and completions are made of it.
pub(crate) fn description() -> clap::Command {
    let command = Arguments::command();
    let help = format!(
        "QUBE is a name or a domain id. Exit status: 0 done, 1 it failed (one line on stderr says why), 2 wrong usage.\n\n{}",
        stock::list(&command)
    );
    command.after_help(help)
}

impl Arguments {
    /// What was typed, or why it is none; that ends the program with help, or with status 2.
    pub(crate) fn of(line: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let line: Vec<OsString> = line.into_iter().collect();
        if let Some(command) = alone(&line) {
            return Ok(Self { global: Global::default(), command });
        }
        let parsed =
            Self::command().try_get_matches_from(&line).and_then(|matches| Self::from_arg_matches(&matches));
        // All that help says is put together only for those who get to read it.
        parsed.map_err(|error| match description().try_get_matches_from(line) {
            Ok(_) => error.format(&mut description()),
            Err(error) => error,
        })
    }
}

/// Reads a line of one of the commands that are run the most, by the description of that command alone: to describe all
/// sixty takes longer than to list the domains. A line that is not understood so is left to the whole description.
fn alone(line: &[OsString]) -> Option<Command> {
    /// The command with its arguments, and nothing of the program's.
    fn arguments<T: Args>(line: &[OsString]) -> Option<T> {
        let description = T::augment_args(clap::Command::new("nxl"));
        T::from_arg_matches(&description.try_get_matches_from(line).ok()?).ok()
    }
    let line = line.get(1..)?;
    match line.first()?.to_str()? {
        "create" => arguments(line).map(Command::Create),
        "list" | "ls" => arguments(line).map(Command::List),
        "destroy" => arguments(line).map(Command::Destroy),
        "watch" => arguments(line).map(Command::Watch),
        "pool" => {
            let description = PoolCommand::augment_subcommands(clap::Command::new("nxl"));
            let matches = description.try_get_matches_from(line).ok()?;
            PoolCommand::from_arg_matches(&matches).ok().map(Command::Pool)
        }
        _ => None,
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make this host what a qubes.json says: create, change, restart what must be; remove only with --prune.
    Apply(ApplyOptions),
    /// Say what apply would do, and why.
    Plan(PlanOptions),
    /// Show in what this host differs from what a qubes.json says: - runs and is not declared, + is declared and does not
    /// run, ~ differs.
    Diff(DiffOptions),
    /// Show dom0, its qubes, their containers, and the calls that are allowed between them.
    Tree(TreeOptions),
    /// List the generations of a declared qube: the systems that it was booted from.
    #[command(after_help = "Examples:
  nxl generations work
  nxl generations work --delete 3,4
  nxl generations work --delete-older-than 30d")]
    Generations(GenerationsOptions),
    /// Restart a declared qube with another of its generations; without one, with what is declared.
    #[command(after_help = "Examples:
  nxl switch work 7
  nxl switch work --specialisation rescue
  nxl switch work")]
    Switch(SwitchOptions),
    /// Restart a declared qube with the generation before the one that it runs.
    #[command(after_help = "Example:\n  nxl rollback work")]
    Rollback(RollbackOptions),
    /// Run a command in a qube or container: its stdin, stdout, stderr and exit status are this one's.
    Exec(ExecOptions),
    /// Show the end of the journal of a qube or container.
    Logs(LogsOptions),
    /// List, start and stop the containers of a qube.
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Create a qube from an xl.cfg file, a NixOS system closure, a boot.json or a unified kernel image.
    Create(CreateOptions),
    /// List the domains of this host.
    #[command(visible_alias = "ls")]
    List(ListOptions),
    /// End a qube at once, as pulling the plug would.
    #[command(after_help = "Example:\n  nxl destroy work")]
    Destroy(DestroyOptions),
    /// Ask a qube to power off.
    #[command(after_help = "Examples:\n  nxl shutdown -w work\n  nxl shutdown -a -w")]
    Shutdown(RequestOptions),
    /// Ask a qube to restart.
    #[command(after_help = "Example:\n  nxl reboot work")]
    Reboot(RequestOptions),
    /// Stop a qube's vCPUs.
    #[command(after_help = "Example:\n  nxl pause work")]
    Pause {
        /// Which.
        qube: String,
    },
    /// Let a qube's vCPUs run.
    #[command(after_help = "Example:\n  nxl unpause work")]
    Unpause {
        /// Which.
        qube: String,
    },
    /// Attach this terminal to a qube's console; Ctrl-] detaches.
    #[command(after_help = "Example:\n  nxl console work")]
    Console {
        /// Which.
        qube: String,
    },
    /// The domain id of a qube's name.
    #[command(after_help = "Example:\n  nxl domid work")]
    Domid {
        /// Which.
        qube: String,
    },
    /// The name of a domain id.
    #[command(after_help = "Example:\n  nxl domname 3")]
    Domname {
        /// Which.
        domid: u16,
    },
    /// Give a qube another disk.
    #[command(after_help = "Example:\n  nxl block-attach work /img/data.img,raw,xvdb,w")]
    BlockAttach {
        /// Which.
        qube: String,
        /// The disk, as in xl.cfg: target, format, vdev, access; or KEY=VALUE. Several strings are one disk.
        #[arg(required = true, value_name = "DISK")]
        disk: Vec<String>,
    },
    /// Take a disk from a qube.
    #[command(after_help = "Example:\n  nxl block-detach work xvdb")]
    BlockDetach {
        /// Do not wait for the qube to release it.
        #[arg(short, long)]
        force: bool,
        /// Which.
        qube: String,
        /// The disk: xvdb, or the number that block-list shows.
        device: String,
    },
    /// List the disks of qubes.
    #[command(after_help = "Examples:\n  nxl block-list work vault\n  nxl block-list --json work")]
    BlockList(AttachedOptions),
    /// Give a qube another network interface.
    #[command(after_help = "Example:\n  nxl network-attach work bridge=xenbr0 mac=00:16:3e:12:34:56")]
    NetworkAttach {
        /// Which.
        qube: String,
        /// The interface, as in xl.cfg, each part by itself.
        #[arg(value_name = "KEY=VALUE")]
        nic: Vec<String>,
    },
    /// Take a network interface from a qube.
    #[command(after_help = "Example:\n  nxl network-detach work 0")]
    NetworkDetach {
        /// Which.
        qube: String,
        /// The interface: its number, or its MAC address.
        device: String,
    },
    /// List the network interfaces of qubes.
    #[command(after_help = "Examples:\n  nxl network-list work\n  nxl network-list --json work")]
    NetworkList(AttachedOptions),
    /// What Xen says of this host and of itself.
    #[command(after_help = "Examples:\n  nxl info\n  nxl info free_memory")]
    Info {
        /// How CPUs, memory and devices lie on NUMA nodes, too.
        #[arg(short, long)]
        numa: bool,
        /// Only the values of the lines that begin so, such as free_memory.
        #[arg(value_name = "NAME", conflicts_with = "numa")]
        name: Option<String>,
    },
    /// Give a qube another name.
    #[command(after_help = "Example:\n  nxl rename work office")]
    Rename {
        /// Which.
        qube: String,
        /// Its new name.
        name: String,
    },
    /// How long domains have been there.
    #[command(after_help = "Examples:\n  nxl uptime\n  nxl uptime work")]
    Uptime {
        /// As uptime(1) says it.
        #[arg(short)]
        short: bool,
        /// Only these.
        #[arg(value_name = "QUBE")]
        qubes: Vec<String>,
    },
    /// List the domains that are no stub domains, by UUID.
    #[command(after_help = "Examples:\n  nxl vm-list\n  nxl vm-list --json")]
    VmList {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// List vCPUs: where they are, and where they may be.
    #[command(after_help = "Examples:\n  nxl vcpu-list work\n  nxl vcpu-list --json")]
    VcpuList {
        /// As JSON: times in nanoseconds.
        #[arg(long)]
        json: bool,
        /// Only those of these.
        #[arg(value_name = "QUBE")]
        qubes: Vec<String>,
    },
    /// Say where a vCPU may run.
    #[command(after_help = "Examples:\n  nxl vcpu-pin work all 0-1\n  nxl vcpu-pin work 0 2 -")]
    VcpuPin(PinOptions),
    /// Ask a qube to use so many of its vCPUs.
    #[command(after_help = "Example:\n  nxl vcpu-set work 2")]
    VcpuSet(SetOptions),
    /// Ask a qube to get by with so much memory.
    #[command(after_help = "Example:\n  nxl mem-set work 1g")]
    MemSet(MemoryOptions),
    /// Set how much memory a qube may have at most.
    #[command(after_help = "Example:\n  nxl mem-max work 2g")]
    MemMax(MemoryOptions),
    /// List domains with the memory that is claimed for them.
    #[command(after_help = "Example:\n  nxl claims")]
    Claims,
    /// List domains with the memory that they share.
    #[command(after_help = "Example:\n  nxl sharing")]
    Sharing {
        /// Only this one.
        qube: Option<String>,
    },
    /// Show or set what the credit2 scheduler gives a domain.
    #[command(name = "sched-credit2")]
    #[command(after_help = "Examples:\n  nxl sched-credit2\n  nxl sched-credit2 -d work -w 512")]
    SchedCredit2(Credit2Options),
    /// Show Xen's messages.
    #[command(after_help = "Example:\n  nxl dmesg")]
    Dmesg {
        /// Forget them, too.
        #[arg(short, long)]
        clear: bool,
    },
    /// Press keys on Xen's console; h makes it write down what each does.
    #[command(after_help = "Example:\n  nxl debug-keys q")]
    DebugKeys {
        /// Which.
        keys: String,
    },
    /// Press a magic system request key in a qube.
    #[command(after_help = "Example:\n  nxl sysrq work s")]
    Sysrq {
        /// Which.
        qube: String,
        /// The key.
        letter: String,
    },
    /// Set off an interrupt or press a button in a qube.
    #[command(after_help = "Example:\n  nxl trigger work nmi")]
    Trigger(TriggerOptions),
    /// Write a qube's memory to a file.
    #[command(after_help = "Example:\n  nxl dump-core work /var/lib/nxl/work.core")]
    DumpCore(DumpOptions),
    /// Save a qube to a file, and end it. `nxl restore' and `xl restore' make it again out of that, as it was.
    #[command(
        after_help = "Examples:\n  nxl save work /var/lib/nxl/work.saved\n  nxl save -c work /var/lib/nxl/work.saved"
    )]
    Save(SaveOptions),
    /// Make a qube out of the file that it was saved to, by `nxl save' or `xl save'.
    #[command(
        after_help = "Examples:\n  nxl restore /var/lib/nxl/work.saved\n  nxl restore -p work.cfg /var/lib/nxl/work.saved"
    )]
    Restore(RestoreOptions),
    /// Have a qube suspend itself; its memory stays.
    #[command(after_help = "Example:\n  nxl suspend work")]
    Suspend {
        /// Which.
        qube: String,
    },
    /// Let a suspended qube go on.
    #[command(after_help = "Example:\n  nxl resume work")]
    Resume {
        /// Which.
        qube: String,
    },
    /// List the channels of qubes.
    #[command(after_help = "Example:\n  nxl channel-list work")]
    ChannelList(AttachedOptions),
    /// Take a PCI device from its driver, so that a qube can be given it.
    #[command(after_help = "Example:\n  nxl pci-assignable-add 03:00.0")]
    PciAssignableAdd {
        /// Call it so, for pci-assignable-remove and in a configuration's pci.
        #[arg(short, long)]
        name: Option<String>,
        /// Its address: 03:00.0 or 0000:03:00.0.
        device: String,
    },
    /// Take a PCI device back, so that no qube can be given it.
    #[command(after_help = "Example:\n  nxl pci-assignable-remove -r 03:00.0")]
    PciAssignableRemove {
        /// Give it to the driver that it was taken from.
        #[arg(short)]
        rebind: bool,
        /// Its address or name.
        device: String,
    },
    /// List the PCI devices that a qube can be given.
    #[command(after_help = "Examples:\n  nxl pci-assignable-list\n  nxl pci-assignable-list --json")]
    PciAssignableList {
        /// With their names.
        #[arg(short = 'n', long)]
        show_names: bool,
        /// As JSON, with their names.
        #[arg(long)]
        json: bool,
    },
    /// Give a PV qube that runs a PCI device.
    #[command(after_help = "Example:\n  nxl pci-attach work 03:00.0")]
    PciAttach {
        /// Whose it becomes.
        qube: String,
        // No doc comment: rustdoc takes what is in brackets for links.
        #[arg(
            help = "The device, as in a configuration's pci: [DOMAIN:]BUS:DEVICE.FUNCTION[@SLOT][,KEY=VALUE...]"
        )]
        device: String,
    },
    /// Take a PCI device from a qube.
    #[command(after_help = "Example:\n  nxl pci-detach work 03:00.0")]
    PciDetach {
        /// Even if the qube does not let go of it.
        #[arg(short)]
        force: bool,
        /// Whose it is.
        qube: String,
        /// The device, by its address on the host, or name=NAME.
        device: String,
    },
    /// List the PCI devices that a qube has.
    #[command(after_help = "Example:\n  nxl pci-list work")]
    PciList {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// Whose.
        qube: String,
    },
    /// Watch the domains as top(1) does processes.
    Top(TopOptions),
    /// Set what a qube is made of when it restarts.
    #[command(after_help = "Example:\n  nxl config-update work work.cfg memory=1024")]
    ConfigUpdate(UpdateOptions),
    /// Look whether this host is fit for qubes: Xen, its devices and daemons, folders, policy; and find what killed programs
    /// have left of domains.
    Doctor(DoctorOptions),
    /// Carry out on_poweroff, on_reboot and on_crash of the qubes that nxl made, until a minute after the last of them is
    /// gone. `create` starts it where none runs; a second one ends at once.
    #[command(after_help = "Example:\n  nxl watch")]
    Watch(WatchOptions),
    /// Connect the disks and network interfaces whose backends are in this domain, by their scripts, and take them away when
    /// they end: for a driver domain, whose devices the toolstack of dom0 only records. Nothing is twice or forgotten when it
    /// is killed and started again. It says on stderr what it does, and in the background in /var/log/xen/nxl-devd.log. Disks
    /// that QEMU would have to serve are left alone. nxl-devd.service runs it, where that is enabled. (In dom0, xl and nxl
    /// connect devices themselves.)
    #[command(after_help = "Examples:
  nxl devd -p /run/nxl-devd.pid
  nxl devd -F")]
    Devd(DevdOptions),
    /// Warm shells: qubes that are built ahead, to be named and let go on demand.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Disposable qubes: made of a template that is declared, and gone when they end, with all that they had.
    #[command(subcommand)]
    Disposable(DisposableCommand),
    /// Manage what qubes keep: private volumes, their growth and their snapshots.
    Volume(VolumeOptions),
    /// The unpacked kernels that `create` keeps in /var/cache/nxl, for the next qube with the same kernel.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Who may call what in which qube or container: the policy in /run/qubes/policy.d and /etc/qubes/policy.d.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Show the calls between qubes: what was decided, and how each ended.
    #[command(after_help = "Example:\n  nxl calls --follow --denied")]
    Calls(CallsOptions),
    /// Show what happened to qubes: created, unpaused, ended, restarted, devices attached, and so on.
    Events(EventsOptions),
    /// Pick a NixOS system from a disk or a closure, as `bootloader=' of a configuration wants it; also a program of its
    /// own, nxl-bootloader.
    Bootloader(Box<BootloaderOptions>),
    /// Print a shell's completions.
    #[command(after_help = "Example:\n  nxl completions bash > /etc/bash_completion.d/nxl")]
    Completions {
        /// For which shell.
        shell: Shell,
        /// Of which program.
        #[arg(default_value = "nxl", value_parser = crate::manual::PROGRAMS)]
        program: String,
    },
    /// Write the manual pages into a folder.
    #[command(hide = true)]
    Man {
        /// Where.
        folder: PathBuf,
    },
    /// Print the page of the documents that has every command and option.
    #[command(hide = true)]
    Reference {
        /// That of the other programs.
        #[arg(long)]
        programs: bool,
    },
    /// A command of the host's xl. Last: what stands above is ours.
    #[command(flatten)]
    Stock(Stock),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl plan qubes.json
  nxl apply qubes.json
  nxl apply --prune --no-restart qubes.json
  nix-instantiate --eval --strict --json nixos -A spec --arg declaration 'import ./qubes.nix' | nxl apply -
  nxl apply --host root@berlin.example.org qubes.json
  nxl apply --host berlin --host oslo --in-turn --wait %h.json
  NXL_SSHOPTS='-p 2222 -o ConnectTimeout=10' nxl apply --copy-closures --host berlin qubes.json

Interrupted at any moment, the next apply finishes the job. Exit status 1 if anything could not be done, and if qubes
were left that would have had to be restarted (--no-restart). With --host: what nxl ended with there; 255 if ssh failed,
and 127 if there is no nxl (126: none that can be run); of several hosts, the highest. NXL_SSHOPTS has options for ssh,
separated by blanks.")]
pub(crate) struct ApplyOptions {
    #[command(flatten)]
    pub(crate) hosts: HostOptions,
    #[command(flatten)]
    wishes: WishOptions,
    /// Leave qubes as they are that would have to be restarted.
    #[arg(long)]
    pub(crate) no_restart: bool,
    /// Do so many things at the same time.
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = jobs)]
    pub(crate) jobs: usize,
    #[command(flatten)]
    pub(crate) manner: MannerOptions,
    /// Wait until all declared qubes that run report ready, so long at most; without SECONDS, as long as each is declared
    /// to take (ready.timeout). Unasked, only those are waited for that run a new generation.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "0", conflicts_with = "no_wait")]
    pub(crate) wait: Option<u64>,
    /// The declaration, as Nix evaluates it (docs/declaring-qubes.md); - is stdin.
    #[arg(value_name = "QUBES.JSON")]
    pub(crate) spec: PathBuf,
}

impl ApplyOptions {
    /// What is asked for beyond the document.
    pub(crate) fn wishes(&self) -> Wishes {
        self.wishes.wishes()
    }

    /// The arguments of an nxl that does the same on its own host, with the document from stdin.
    pub(crate) fn line(&self, dryrun: bool) -> Vec<String> {
        let MannerOptions { timeout, lock_timeout, no_wait, json, quiet } = self.manner;
        let mut line = given([("-N", dryrun), ("apply", true)]);
        line.extend(self.wishes.line());
        line.extend(given([("--no-restart", self.no_restart)]));
        line.extend([format!("--jobs={}", self.jobs), format!("--timeout={timeout}")]);
        line.extend((lock_timeout > 0).then(|| format!("--lock-timeout={lock_timeout}")));
        line.extend(self.wait.map(|seconds| match seconds {
            0 => "--wait".to_owned(),
            seconds => format!("--wait={seconds}"),
        }));
        line.extend(given([("--no-wait", no_wait), ("--json", json), ("--quiet", quiet), ("-", true)]));
        line
    }
}

/// The words that are there.
fn given<const N: usize>(words: [(&str, bool); N]) -> Vec<String> {
    words.into_iter().filter(|(_, is_there)| *is_there).map(|(word, _)| word.to_owned()).collect()
}

/// On which hosts.
#[derive(Debug, Args)]
pub(crate) struct HostOptions {
    /// Do it on this host instead, by ssh; there may be several. The document goes there by stdin; %h in its name stands for
    /// the name of the host, so that each has its own. Lines of several hosts begin with the host's name, and their JSON
    /// is one object of all.
    #[arg(long = "host", value_name = "[USER@]HOST")]
    pub(crate) hosts: Vec<Destination>,
    /// One host after another, in the order in which they are given, and none after one that failed. Otherwise all go on
    /// at the same time, and ssh asks for no password.
    #[arg(long, requires = "hosts")]
    pub(crate) in_turn: bool,
    /// Before that, copy the closures that the document names to the host, by nix-copy-closure.
    #[arg(long, requires = "hosts")]
    pub(crate) copy_closures: bool,
    /// How nxl is called there: a path, or words of a shell such as 'sudo -n nxl'.
    #[arg(long, value_name = "COMMAND", default_value = "nxl", requires = "hosts")]
    pub(crate) remote_program: String,
}

impl HostOptions {
    pub(crate) fn are_given(&self) -> bool {
        !self.hosts.is_empty()
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl plan qubes.json
  nxl plan --check qubes.json
  nxl plan --host berlin --host oslo %h.json

With --host, the exit status is that of `nxl apply --host'.")]
pub(crate) struct PlanOptions {
    #[command(flatten)]
    pub(crate) hosts: HostOptions,
    #[command(flatten)]
    pub(crate) wishes: WishOptions,
    /// Only check the document; this can be done anywhere.
    #[arg(long, conflicts_with_all = ["prune", "start", "json"])]
    pub(crate) check: bool,
    /// Say it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The declaration, as Nix evaluates it (docs/declaring-qubes.md); - is stdin.
    #[arg(value_name = "QUBES.JSON")]
    pub(crate) spec: PathBuf,
}

impl PlanOptions {
    /// The arguments of an nxl that does the same on its own host, with the document from stdin.
    pub(crate) fn line(&self) -> Vec<String> {
        let mut line = given([("plan", true)]);
        line.extend(self.wishes.line());
        line.extend(given([("--check", self.check), ("--json", self.json), ("-", true)]));
        line
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl diff qubes.json
  nxl diff --host root@berlin qubes.json

With --host, the exit status is that of `nxl apply --host'.")]
pub(crate) struct DiffOptions {
    #[command(flatten)]
    pub(crate) hosts: HostOptions,
    /// Say it as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The declaration, as Nix evaluates it (docs/declaring-qubes.md); - is stdin.
    #[arg(value_name = "QUBES.JSON")]
    pub(crate) spec: PathBuf,
}

impl DiffOptions {
    /// The arguments of an nxl that does the same on its own host, with the document from stdin.
    pub(crate) fn line(&self) -> Vec<String> {
        given([("diff", true), ("--json", self.json), ("-", true)])
    }
}

/// How qubes are restarted, and what is said of it.
#[derive(Debug, Args)]
pub(crate) struct MannerOptions {
    /// Give a qube that is to be restarted or removed so many seconds to power off; with 0 it is not asked.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u64,
    /// Wait so long for another apply, switch or rollback that is at work; with 0, fail at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) lock_timeout: u64,
    /// Wait for nobody: whether a new generation came up is judged by the next apply.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Say what was done as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Say nothing but errors.
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

impl MannerOptions {
    /// Keeps others from applying meanwhile.
    pub(crate) fn lock(&self, qubes: &Qubes) -> Result<ApplyLock, Error> {
        qubes.lock_apply_within(Duration::from_secs(self.lock_timeout))?.ok_or(Error::Applying)
    }
}

#[derive(Debug, Args)]
pub(crate) struct GenerationsOptions {
    /// Forget these, so that Nix' garbage collector may have their systems.
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "delete_older_than")]
    pub(crate) delete: Vec<u64>,
    /// Forget those that were no longer the newest so many days ago, but for those that are needed.
    #[arg(long, value_name = "DAYS")]
    pub(crate) delete_older_than: Option<String>,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Which qube.
    pub(crate) qube: String,
}

#[derive(Debug, Args)]
pub(crate) struct SwitchOptions {
    /// Boot this specialisation of it.
    #[arg(long, value_name = "NAME")]
    pub(crate) specialisation: Option<String>,
    #[command(flatten)]
    pub(crate) manner: MannerOptions,
    /// Which qube.
    pub(crate) qube: String,
    /// Its number, as `nxl generations' has it.
    pub(crate) generation: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct RollbackOptions {
    #[command(flatten)]
    pub(crate) manner: MannerOptions,
    /// Which qube.
    pub(crate) qube: String,
}

/// What is asked for beyond a document.
#[derive(Debug, Args)]
pub(crate) struct WishOptions {
    /// Remove qubes that an apply made and that are no longer declared. Others are never removed.
    #[arg(long)]
    prune: bool,
    /// Start this qube, too, which does not start by itself.
    #[arg(long, value_name = "QUBE")]
    start: Vec<String>,
}

impl WishOptions {
    pub(crate) fn wishes(&self) -> Wishes {
        Wishes { prune: self.prune, start: self.start.iter().cloned().collect() }
    }

    fn line(&self) -> Vec<String> {
        let mut line = given([("--prune", self.prune)]);
        line.extend(self.start.iter().map(|name| format!("--start={name}")));
        line
    }
}

/// A number of threads.
fn jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=64) => Ok(jobs),
        _ => Err("1 to 64".to_owned()),
    }
}

/// Whose devices are listed, and how.
#[derive(Debug, Args)]
pub(crate) struct AttachedOptions {
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Whose.
    #[arg(required = true, value_name = "QUBE")]
    pub(crate) qubes: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl list
  nxl list -l work
  nxl list --json | jq -r '.[] | select(.state == \"running\") | .name'")]
pub(crate) struct ListOptions {
    /// The configuration of each as it is now, as JSON.
    #[arg(short, long)]
    pub(crate) long: bool,
    /// The rows as JSON, with all columns: memory in KiB, CPU time in nanoseconds.
    #[arg(long, conflicts_with_all = ["long", "verbose", "context", "cpupool", "numa"])]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) columns: ListColumns,
    /// Only these.
    #[arg(value_name = "QUBE")]
    pub(crate) qubes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DestroyOptions {
    /// Accepted for xl's sake; domain 0 is never destroyed.
    #[arg(short)]
    pub(crate) force: bool,
    /// Which.
    pub(crate) qube: String,
}

#[derive(Debug, Args)]
pub(crate) struct WatchOptions {
    /// Stay so long after the last of them is gone.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) linger: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct DevdOptions {
    /// Stay in the foreground.
    #[arg(short = 'F')]
    pub(crate) foreground: bool,
    /// Write the process id there, in the background.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) pidfile: Option<PathBuf>,
    /// It is what was started in the background.
    #[arg(long, hide = true, requires = "foreground")]
    pub(crate) daemon: bool,
}

/// What `list` shows beyond its usual columns.
#[derive(Debug, Args, Clone, Copy, Default)]
pub(crate) struct ListColumns {
    /// UUID, shutdown reason and security label, too.
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// The security label, too.
    #[arg(short = 'Z', long)]
    pub(crate) context: bool,
    /// The CPU pool, too.
    #[arg(short, long)]
    pub(crate) cpupool: bool,
    /// The NUMA nodes that it is on, too.
    #[arg(short, long)]
    pub(crate) numa: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateOptions {
    /// Which.
    pub(crate) qube: String,
    /// Print the configuration, as JSON.
    #[arg(short)]
    pub(crate) debug: bool,
    /// The configuration's file, instead of the argument.
    #[arg(short = 'f', long, value_name = "FILE")]
    defconfig: Option<PathBuf>,
    /// An xl.cfg file.
    #[arg(required_unless_present = "defconfig")]
    config: Option<PathBuf>,
    /// Settings that override the file's.
    #[arg(value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

impl UpdateOptions {
    /// The file, and the settings of the command line.
    pub(crate) fn source(&self) -> (&Path, Vec<&str>) {
        source(self.defconfig.as_deref(), self.config.as_deref(), &self.settings)
    }
}

/// With a file from an option, the first argument is a setting.
fn source<'a>(
    defconfig: Option<&'a Path>,
    config: Option<&'a Path>,
    settings: &'a [String],
) -> (&'a Path, Vec<&'a str>) {
    let settings = settings.iter().map(String::as_str);
    match (defconfig, config) {
        (Some(file), first) => (file, first.and_then(Path::to_str).into_iter().chain(settings).collect()),
        // One of them is required.
        (None, config) => (config.unwrap_or(Path::new("")), settings.collect()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Build qubes until so many wait in a pool. They are paused, and named POOL.warm-1 and so on.
    Fill {
        /// Which.
        pool: String,
        /// How many are to wait.
        #[arg(long, value_name = "N", default_value_t = 1)]
        count: usize,
        /// What they are made of, as for create; its options for a running qube mean nothing here.
        #[command(flatten)]
        options: Box<CreateOptions>,
    },
    /// Name one of those that wait, and let it go. Prints its domain id.
    #[command(after_help = "Example:\n  nxl pool take disposable work")]
    Take {
        /// Out of which.
        pool: String,
        /// The name that it is to have.
        name: String,
        /// Let nobody carry out on_poweroff, on_reboot and on_crash.
        #[arg(short = 'e')]
        unattended: bool,
    },
    /// List those that wait.
    #[command(visible_alias = "ls")]
    #[command(after_help = "Example:\n  nxl pool list")]
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Destroy those that wait.
    #[command(after_help = "Example:\n  nxl pool drain disposable")]
    Drain {
        /// Which.
        pool: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DisposableCommand {
    /// Make one as its template was applied last, of the generation that the template would boot now, and let it run; one that was
    /// built ahead, where one is ready. Prints its name.
    #[command(after_help = "Examples:
  nxl disposable create office
  nxl disposable create --name disp7 office

Of the template it has the system, the store, memory, vCPUs, interfaces, read-only disks and containers; name, UUID and Ethernet
addresses are its own. A private volume, if the template has one, begins empty and goes with it. When it powers off,
reboots or crashes, it is destroyed.")]
    Create {
        /// What it is to be called; by itself, disp and a number to 9999.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Do not print its name.
        #[arg(short, long)]
        quiet: bool,
        /// The template: a declared qube that has disposableTemplate.
        template: String,
    },
    /// End one: nothing is left of it.
    #[command(visible_alias = "rm")]
    #[command(after_help = "Example:\n  nxl disposable destroy disp7")]
    Destroy {
        /// That there is no qube of that name is no error: it may have ended by itself.
        #[arg(short, long)]
        force: bool,
        /// Which. One that is no disposable qube is left alone.
        qube: String,
    },
    /// Build some ahead, until so many wait in the pool that has the template's name (nxl pool list). What waits and is not what
    /// would be made now is destroyed: after an apply, fill again.
    #[command(after_help = "Example:\n  nxl disposable fill office --count 2")]
    Fill {
        /// The template.
        template: String,
        /// How many are to wait.
        #[arg(long, value_name = "N", default_value_t = 1)]
        count: usize,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List the kernels, the last used first.
    #[command(visible_alias = "ls")]
    #[command(after_help = "Example:\n  nxl cache list")]
    List {
        /// As JSON: sizes in bytes, times in seconds since 1970.
        #[arg(long)]
        json: bool,
    },
    /// Remove what a crash has left, and the least recently used kernels until the others have at most 1024 MiB.
    /// Qubes that run, or are just being created, need none of them.
    #[command(after_help = "Example:\n  nxl cache prune --max-size 512")]
    Prune {
        /// Remove all kernels.
        #[arg(short, long, conflicts_with = "max_size")]
        all: bool,
        /// Leave kernels of at most so many MiB.
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(..=1 << 40))]
        max_size: Option<u64>,
        /// Say what was removed as JSON: sizes in bytes, times in seconds since 1970.
        #[arg(long)]
        json: bool,
    },
}

/// Where the agent of dom0 listens, and where nexusd writes down what it decides.
pub(crate) const CALL_SOCKET: &str = nexus::client::CALL_SOCKET;
pub(crate) const CALLS_LOG: &str = "/var/log/nexus/calls.jsonl";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl tree
  nxl tree --svg > qubes.svg
  nxl tree --json qubes.json

What containers do and have is asked of their qubes, by a call of dom0's (service nexus.Container), on which policy decides. A
qube that does not say within 5 s is shown without.")]
pub(crate) struct TreeOptions {
    /// As JSON.
    #[arg(long, conflicts_with = "svg")]
    pub(crate) json: bool,
    /// As a drawing.
    #[arg(long)]
    pub(crate) svg: bool,
    /// Ask no qube what its containers do.
    #[arg(long)]
    pub(crate) no_ask: bool,
    /// What is declared, instead of what was applied last; - is stdin.
    #[arg(value_name = "QUBES.JSON")]
    pub(crate) spec: Option<PathBuf>,
}

/// Whom to call.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// The socket of dom0's agent.
    #[arg(long, value_name = "SOCKET", default_value = CALL_SOCKET)]
    pub(crate) agent: PathBuf,
    /// Where: a qube, a container of one, or @dispvm:QUBE for a new disposable qube made from that one.
    #[arg(value_name = "QUBE[:CONTAINER]")]
    pub(crate) target: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl exec work -- uname -r
  nxl exec work:mail -- cat /etc/hostname
  nxl exec --user root work -- systemctl --failed
  nxl exec work -- sh -s < script
  tar c files | nxl exec work -- tar x -C /home/user

The words of the command reach the qube as they are: no shell takes them apart unless the command is one. There is no
terminal in the qube; `nxl console' has one.

It is a call of dom0's (service qubes.VMExec, as in Qubes; with --user nexus.ExecAs), and policy decides. Exit status:
that of the command; 126 refused, 127 the qube has no such service or command, 125 anything else. What ends this
program ends the command.")]
pub(crate) struct ExecOptions {
    /// Run it as this user of the qube's, if commands may be run as others there.
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Let a terminal have the bytes as they come. Otherwise it is shown what is printable ASCII, and the rest as \xNN: what
    /// a qube writes could make a terminal do things.
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) place: Where,
    /// The command.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl logs work
  nxl logs -n 20 --follow work:mail

It is a call of dom0's (service nexus.Logs), and policy decides. Exit status as of `nxl exec'.")]
pub(crate) struct LogsOptions {
    /// Go on with what comes.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// How many lines of what there is.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) lines: u32,
    /// Let a terminal have the bytes as they come.
    #[arg(long)]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) place: Where,
}

/// A container.
#[derive(Debug, Args)]
pub(crate) struct ContainerOptions {
    /// The socket of dom0's agent.
    #[arg(long, value_name = "SOCKET", default_value = CALL_SOCKET)]
    pub(crate) agent: PathBuf,
    /// Which.
    #[arg(value_name = "QUBE:CONTAINER")]
    pub(crate) container: String,
}

/// Calls of dom0's (service nexus.Container), on which policy decides.
#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// List them, by the qube's own word: name, state and memory.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  nxl container list work\n  nxl container list --json work:mail"
    )]
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// The socket of dom0's agent.
        #[arg(long, value_name = "SOCKET", default_value = CALL_SOCKET)]
        agent: PathBuf,
        /// Whose, or which.
        #[arg(value_name = "QUBE[:CONTAINER]")]
        qube: String,
    },
    /// Start one.
    #[command(after_help = "Example:\n  nxl container start work:mail")]
    Start(ContainerOptions),
    /// Stop one.
    #[command(after_help = "Example:\n  nxl container stop work:mail")]
    Stop(ContainerOptions),
    /// Stop one if it runs, and start it.
    #[command(after_help = "Example:\n  nxl container restart work:mail")]
    Restart(ContainerOptions),
}

/// Which lines of the log of calls, and how.
#[derive(Debug, Args)]
pub(crate) struct CallsOptions {
    /// Go on with those that come.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// As the log has them, a JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// The log.
    #[arg(long, value_name = "FILE", default_value = CALLS_LOG)]
    pub(crate) log: PathBuf,
    /// Calls of this qube and its containers, of this container, or of dom0.
    #[arg(long, value_name = "QUBE")]
    pub(crate) source: Option<String>,
    /// Calls to it, wherever policy led them.
    #[arg(long, value_name = "QUBE")]
    pub(crate) target: Option<String>,
    /// Calls of this service, with any argument or with this one.
    #[arg(long, value_name = "SERVICE[+ARGUMENT]")]
    pub(crate) service: Option<String>,
    /// Those that came to nothing.
    #[arg(long)]
    pub(crate) denied: bool,
}

/// Which policy, and of which qubes.
#[derive(Debug, Args)]
pub(crate) struct PolicySource {
    /// A folder of .policy files instead of the host's; several are read together, the first one's file before another's
    /// of the same name.
    #[arg(long = "dir", value_name = "FOLDER")]
    pub(crate) folders: Vec<PathBuf>,
    /// A JSON file that says what qubes there are, with type, tags and containers (docs/policy.md). Without it they are
    /// those that the policy names.
    #[arg(long, value_name = "FILE")]
    pub(crate) system: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say what is wrong with a policy, by file, line and column. Exit status 1 if anything is.
    #[command(after_help = "Example:\n  nxl policy check")]
    Check {
        /// Folders of .policy files, instead of the host's.
        #[arg(value_name = "FOLDER")]
        folders: Vec<PathBuf>,
        /// A JSON file of the qubes that there are: names in the policy that are none of theirs are told of, too.
        #[arg(long, value_name = "FILE")]
        system: Option<PathBuf>,
        /// Say it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what is decided of a call, by which rule, and why those before it do not match.
    #[command(after_help = "Example:\n  nxl policy explain work:mail vault:gpg nexus.Sign+key")]
    Explain {
        #[command(flatten)]
        policy: PolicySource,
        /// Say it as JSON.
        #[arg(long)]
        json: bool,
        /// Who calls: QUBE, QUBE:CONTAINER or dom0.
        source: String,
        /// Whom: QUBE, QUBE:CONTAINER, dom0, @dispvm, @dispvm:QUBE or @default.
        target: String,
        /// What: SERVICE or SERVICE+ARGUMENT.
        service: String,
    },
    /// Draw who may call whom, as Graphviz's text. Lines are broken where somebody is asked first; a service * is one
    /// that no rule names.
    #[command(after_help = "Example:\n  nxl policy graph > policy.dot")]
    Graph {
        #[command(flatten)]
        policy: PolicySource,
        /// Have Graphviz draw it.
        #[arg(long)]
        svg: bool,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl create work.cfg
  nxl create work.cfg memory=1024 vcpus=2
  nxl create /nix/var/nix/profiles/system name=work memory=512
  nxl create /nix/var/nix/profiles/system --generation 42 --specialisation rescue name=work
  nxl create /boot/EFI/Linux/nixos-generation-42.efi name=work
  nxl create -n /nix/store/…-nixos-system-work/boot.json name=work")]
pub(crate) struct CreateOptions {
    #[command(flatten)]
    pub(crate) start: StartOptions,
    /// The configuration's file, instead of the argument.
    #[arg(short = 'f', long, value_name = "FILE")]
    defconfig: Option<PathBuf>,
    /// Leave vm.cpumask and its like in xl.conf out of account.
    #[arg(long)]
    pub(crate) ignore_global_affinity_masks: bool,
    /// Say what would be created, as JSON, and create nothing.
    #[arg(short = 'n', long)]
    pub(crate) dryrun: bool,
    /// Say nothing but errors.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Boot this generation of the profile.
    #[arg(long, value_name = "N")]
    pub(crate) generation: Option<u64>,
    /// Boot this specialisation of the closure.
    #[arg(long, value_name = "NAME")]
    pub(crate) specialisation: Option<String>,
    /// Let the closure's program append its initrd secrets, to a copy in memory. It runs in dom0, as root, and reads
    /// dom0's files: only for systems whose author may do that.
    #[arg(long)]
    pub(crate) initrd_secrets: bool,
    /// An xl.cfg file, a NixOS system closure (a folder with boot.json, or kernel, init and kernel-params), a profile of
    /// such, a boot.json, or a unified kernel image or lanzaboote stub (which the `kernel' of an xl.cfg may be, too).
    #[arg(required_unless_present = "defconfig")]
    config: Option<PathBuf>,
    /// Settings that override the file's, in the syntax of xl.cfg: memory=512 or name="work".
    #[arg(value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

impl CreateOptions {
    /// What it is made of, and the settings of the command line.
    pub(crate) fn source(&self) -> (&Path, Vec<&str>) {
        source(self.defconfig.as_deref(), self.config.as_deref(), &self.settings)
    }
}

/// What `create` and `restore` do with the qube that they have made.
#[derive(Debug, Args)]
pub(crate) struct StartOptions {
    /// Leave it paused.
    #[arg(short, long)]
    pub(crate) paused: bool,
    /// Attach to its console.
    #[arg(short = 'c')]
    pub(crate) console: bool,
    /// Print its configuration, as JSON.
    #[arg(short)]
    pub(crate) debug: bool,
    /// Stay until it is gone, and carry out on_poweroff, on_reboot and on_crash meanwhile.
    #[arg(short = 'F', conflicts_with_all = ["console", "paused", "unattended"])]
    pub(crate) foreground: bool,
    /// Let nobody carry out on_poweroff, on_reboot and on_crash.
    #[arg(short = 'e')]
    pub(crate) unattended: bool,
    /// Refused: nxl has no VNC viewer.
    #[arg(short = 'V', long, hide = true)]
    pub(crate) vncviewer: bool,
    /// Refused: nxl has no VNC viewer.
    #[arg(short = 'A', long, hide = true)]
    pub(crate) vncviewer_autopass: bool,
}

impl StartOptions {
    /// Whether the watcher is to attend it.
    pub(crate) fn attended(&self) -> bool {
        !self.unattended && !self.foreground
    }

    /// Whether somebody is to look at a screen that it has not got.
    pub(crate) fn wants_viewer(&self) -> bool {
        self.vncviewer || self.vncviewer_autopass
    }
}

#[derive(Debug, Args)]
pub(crate) struct SaveOptions {
    /// Let it go on when it is saved.
    #[arg(short = 'c')]
    pub(crate) checkpoint: bool,
    /// Let it go on when it is saved, paused.
    #[arg(short)]
    pub(crate) paused: bool,
    /// Have it restored with the id that it has now. If a domain has that one then, it is not restored.
    #[arg(short = 'D')]
    pub(crate) domid: bool,
    /// Which.
    pub(crate) qube: String,
    /// Where to. It is root's alone: it has the qube's memory in it. A file of that name is replaced when the new one is whole.
    pub(crate) file: PathBuf,
    /// What it is to be restored with: an xl.cfg, instead of what it was made with and what was changed since.
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreOptions {
    #[command(flatten)]
    pub(crate) start: StartOptions,
    /// An xl.cfg, instead of the configuration that is in the file; then the file.
    #[arg(value_names = ["CONFIG", "FILE"], num_args = 1..=2, required = true)]
    files: Vec<PathBuf>,
}

impl RestoreOptions {
    /// The configuration, if one is named, and the file.
    pub(crate) fn files(&self) -> (Option<&Path>, &Path) {
        match &*self.files {
            [config, file] => (Some(config), file),
            [file] => (None, file),
            // clap takes one or two.
            _ => (None, Path::new("")),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RequestOptions {
    /// All qubes.
    #[arg(short, long, conflicts_with = "qube")]
    pub(crate) all: bool,
    /// Wait until it is done.
    #[arg(short, long)]
    pub(crate) wait: bool,
    /// With --wait: give up after so many seconds.
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    pub(crate) timeout: Option<u64>,
    /// Accepted for xl's sake: a PVH qube has no ACPI buttons to press.
    #[arg(short = 'F', hide = true)]
    pub(crate) fallback: bool,
    /// Which.
    #[arg(required_unless_present = "all")]
    pub(crate) qube: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        description().debug_assert();
    }

    #[test]
    fn the_nxl_of_another_host_is_told_what_this_one_was() {
        // The description of a command without the hosts and the document, which are this end's.
        let without = |command: &Command| {
            let text = format!("{command:?}");
            let (before, rest) = text.split_once("HostOptions {").unwrap();
            let (_, after) = rest.split_once("remote_program: \"nxl\" }").unwrap();
            format!("{before}{}", &after[..after.rfind("spec:").unwrap()])
        };
        for line in [
            "nxl apply --host a q.json",
            "nxl -N apply --host a q.json",
            "nxl apply --host a --host b@c --in-turn --prune --start x --start y --no-restart -j 2 --timeout 0 --no-wait --json q.json",
            "nxl apply --host a --wait --quiet q.json",
            "nxl apply --host a --wait=7 q.json",
            "nxl plan --host a --prune --start x --json q.json",
            "nxl plan --host a --check q.json",
            "nxl plan --host a q.json",
            "nxl diff --host a q.json",
            "nxl diff --host a --json q.json",
        ] {
            let here = Arguments::of(line.split(' ').map(OsString::from)).unwrap();
            let dryrun = here.global.dryrun;
            let line = match &here.command {
                Command::Apply(options) => options.line(dryrun),
                Command::Plan(options) => options.line(),
                Command::Diff(options) => options.line(),
                _ => unreachable!(),
            };
            let there = [OsString::from("nxl")].into_iter().chain(line.iter().map(OsString::from));
            let there = Arguments::of(there).unwrap();
            assert_eq!(there.global.dryrun, dryrun, "{line:?}");
            assert_eq!(without(&there.command), without(&here.command), "{line:?}");
            assert_eq!(line.last().unwrap(), "-");
        }
        let refused = ["nxl", "apply", "--host=-oProxyCommand=true", "q.json"].map(OsString::from);
        assert_eq!(Arguments::of(refused).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn help_says_which_commands_are_xls() {
        let help = description().render_help().to_string();
        let (ours, xls) = help.split_once("xl's").unwrap();
        for command in ["create", "save", "vcpu-list", "sched-credit2", "doctor"] {
            assert!(ours.contains(&format!("\n  {command} ")), "{command}: {ours}");
            assert!(!xls.contains(&format!(" {command},")), "{command}: {xls}");
        }
        for command in ["migrate", "cpupool-list", "sched-credit,"] {
            assert!(xls.contains(command), "{command}: {xls}");
        }
    }

    #[test]
    fn a_line_means_the_same_by_the_description_of_its_command_alone() {
        let mut understood = 0;
        for line in [
            "nxl create -p -q work.cfg memory=512",
            "nxl create -d -f work.cfg memory=512",
            "nxl create /nix/var/nix/profiles/system --generation 42 --specialisation rescue",
            "nxl create -F -p work.cfg",
            "nxl create",
            "nxl list",
            "nxl ls -l work vault",
            "nxl list -Zvcn",
            "nxl list --frobnicate",
            "nxl destroy -f 3",
            "nxl destroy",
            "nxl destroy --help",
            "nxl destroy --version",
            "nxl watch",
            "nxl watch --linger 0",
            "nxl watch --linger soon",
            "nxl pool fill work --count 3 work.cfg memory=512",
            "nxl pool take work mail",
            "nxl pool",
        ] {
            let line: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let whole = Arguments::command().try_get_matches_from(&line);
            let whole = whole.and_then(|matches| Arguments::from_arg_matches(&matches));
            let alone = alone(&line);
            understood += usize::from(alone.is_some());
            assert_eq!(
                alone.map(|command| format!("{command:?}")),
                whole.ok().map(|whole| format!("{:?}", whole.command)),
                "{line:?}"
            );
        }
        assert_eq!(understood, 11);
    }

    #[test]
    fn a_command_is_known_by_its_beginning() {
        let command = |line: &str| Arguments::of(line.split(' ').map(OsString::from)).unwrap().command;
        assert!(matches!(command("nxl vcpu-l"), Command::VcpuList { .. }));
        assert!(matches!(command("nxl sched-credit -d work"), Command::Stock(_)));
        assert!(matches!(command("nxl sched-credit2 -d work"), Command::SchedCredit2(_)));
    }

    #[test]
    fn nexusd_has_a_qube_started_by_a_command_that_there_is_and_that_waits_its_turn() {
        let line = nexus::broker::Settings::default().start;
        let line = line.iter().map(|word| word.replace("{name}", "work").into());
        let Command::Apply(options) = Arguments::of(line).unwrap().command else {
            panic!("no apply");
        };
        assert_eq!(options.wishes().start.into_iter().collect::<Vec<_>>(), ["work"]);
        assert!(options.no_restart);
        // Another apply may be at work when a call comes.
        assert!(options.manner.lock_timeout > 0);
        let there = format!("--lock-timeout={}", options.manner.lock_timeout);
        assert!(options.line(false).contains(&there), "another host's nxl waits as long");
    }

    #[test]
    fn a_file_from_an_option_leaves_the_arguments_to_settings() {
        let line = ["nxl", "create", "-f", "work.cfg", "memory=512", "vcpus=2"];
        let Command::Create(options) = Arguments::of(line.map(OsString::from)).unwrap().command else {
            panic!()
        };
        assert_eq!(options.source(), (Path::new("work.cfg"), vec!["memory=512", "vcpus=2"]));
    }

    #[test]
    fn xls_spellings_are_understood() {
        for line in [
            "nxl create -p -q work.cfg memory=512",
            "nxl create -c work.cfg",
            "nxl create -n -e work.cfg",
            "nxl create /nix/var/nix/profiles/system --generation 42 --specialisation rescue",
            "nxl create --initrd-secrets system name=work",
            "nxl list",
            "nxl list -l work",
            "nxl list -v",
            "nxl destroy -f 3",
            "nxl shutdown -w work",
            "nxl shutdown -a -w",
            "nxl reboot -F work",
            "nxl pause work",
            "nxl unpause work",
            "nxl console work",
            "nxl domid work",
            "nxl domname 3",
            "nxl block-attach work /img/data.img,raw,xvdb,w",
            "nxl block-attach 3 vdev=xvdb target=/img/data.img",
            "nxl block-detach work xvdb",
            "nxl block-detach --force 3 51728",
            "nxl block-list work vault",
            "nxl network-attach work",
            "nxl network-attach work bridge=xenbr0 mac=00:16:3e:12:34:56",
            "nxl network-detach work 0",
            "nxl network-detach work 00:16:3e:12:34:56",
            "nxl network-list work",
            "nxl info",
            "nxl -N -f -vvv -t -T create work.cfg",
            "nxl create -F work.cfg",
            "nxl create -d -q --defconfig=work.cfg memory=512",
            "nxl list -Z",
            "nxl list -c -n work",
            "nxl info -n",
            "nxl info free_memory",
            "nxl rename work play",
            "nxl uptime -s work",
            "nxl vm-list",
            "nxl vcpu-list",
            "nxl vcpu-pin work 0 0-1",
            "nxl vcpu-pin work all - 1",
            "nxl vcpu-pin -f work 0 all",
            "nxl vcpu-set -i work 2",
            "nxl mem-set work 512m",
            "nxl mem-max work 1g",
            "nxl claims",
            "nxl sharing",
            "nxl sched-credit2",
            "nxl sched-credit2 -d work -w 512 -c 50",
            "nxl sched-credit2 -s -r 1000 -p Pool-0",
            "nxl sched-credit2 --domain=work --weight=512",
            "nxl dmesg -c",
            "nxl debug-keys h",
            "nxl sysrq work h",
            "nxl trigger work nmi 1",
            "nxl dump-core work /tmp/core",
            "nxl save work /tmp/saved",
            "nxl save -c -p work /tmp/saved work.cfg",
            "nxl restore /tmp/saved",
            "nxl restore -p -c -d -e work.cfg /tmp/saved",
            "nxl suspend work",
            "nxl resume work",
            "nxl channel-list work",
            "nxl pci-assignable-add -n wan 03:00.0",
            "nxl pci-assignable-remove -r wan",
            "nxl pci-assignable-list --show-names",
            "nxl pci-attach work 03:00.0@5,permissive=1",
            "nxl pci-detach -f work name=wan",
            "nxl pci-list work",
            "nxl config-update work work.cfg memory=512",
            "nxl doctor --repair --json",
            "nxl pool fill work --count 3 work.cfg memory=512",
            "nxl pool take work mail",
            "nxl pool ls",
            "nxl pool drain work",
            "nxl migrate -s ssh work host",
            "nxl cpupool-list -c",
            "nxl policy check",
            "nxl policy check /a /b --system /s --json",
            "nxl policy explain --dir /a --dir /b --json work:mail @default q.A+x",
            "nxl policy graph --svg --system /s",
            "nxl volume list --json",
            "nxl volume --folder /v ls work",
            "nxl volume create work 20g --format ext4 --if-missing",
            "nxl volume resize work 40g --json",
            "nxl volume snapshot work before",
            "nxl volume restore work before",
            "nxl volume rm work@before",
            "nxl volume remove work --snapshots",
            "nxl cache list --json",
            "nxl cache ls",
            "nxl cache prune --all --json",
            "nxl cache prune --max-size 256",
            "nxl bootloader --output=/o --output-format=simple0 --output-directory=/d --args=-x --generation=4 /disk",
            "nxl bootloader --runas=1000 --quiet --output=/o --output-format=simple0 --output-directory=/d /disk",
            "nxl bootloader -l /disk",
            "nxl apply qubes.json",
            "nxl apply --prune --no-restart -j 2 --timeout 0 --lock-timeout 30 -q qubes.json",
            "nxl apply --json --start work --start vault qubes.json",
            "nxl plan --prune --json qubes.json",
            "nxl plan --check qubes.json",
            "nxl diff --json qubes.json",
            "nxl tree",
            "nxl tree --svg qubes.json",
            "nxl disposable create office",
            "nxl disposable create -q --name disp7 office",
            "nxl disposable destroy -f disp7",
            "nxl disposable rm disp7",
            "nxl disposable fill office --count 3",
            "nxl top",
            "nxl top -b -n 1 -d 0.5 -s memory -f work",
            "nxl events",
            "nxl events --follow --json --qube work --event shutdown -n 10",
            "nxl completions bash",
            "nxl completions fish nxl-bootloader",
        ] {
            Arguments::of(line.split(' ').map(OsString::from))
                .unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "nxl",
            "nxl frobnicate",
            "nxl shutdown",
            "nxl shutdown -a work",
            "nxl domname work",
            "nxl create -F -p work.cfg",
            "nxl info -n free_memory",
            "nxl vcpu-set work",
            "nxl vcpu-pin work 0",
            "nxl mem-set work",
            "nxl sched-credit2 -w 512",
            "nxl sched-credit2 -d work -p Pool-0",
            "nxl sched-credit2 -r 1000",
            "nxl block-attach work",
            "nxl block-detach work",
            "nxl block-list",
            "nxl network-detach work",
            "nxl sysrq work",
            "nxl pci-assignable-add",
            "nxl pci-attach work",
            "nxl pci-detach work",
            "nxl pci-list",
            "nxl trigger work",
            "nxl save work",
            "nxl restore",
            "nxl restore -F -p /tmp/saved",
            "nxl restore a b c",
            "nxl create",
            "nxl apply",
            "nxl apply -j 0 qubes.json",
            "nxl apply -j 65 qubes.json",
            "nxl apply -q --json qubes.json",
            "nxl plan",
            "nxl plan --check --prune qubes.json",
            "nxl diff a b",
            "nxl tree --svg --json",
            "nxl policy",
            "nxl policy explain work vault",
            "nxl disposable",
            "nxl disposable create",
            "nxl disposable create a b",
            "nxl disposable fill office --count -1",
            "nxl volume",
            "nxl volume create work",
            "nxl volume snapshot work",
            "nxl cache",
            "nxl cache prune --all --max-size 1",
            "nxl cache prune --max-size -1",
            "nxl bootloader",
            "nxl bootloader --entry a --generation 4 /disk",
            "nxl bootloader --output-format=sxp /disk",
        ] {
            assert_eq!(
                Arguments::of(line.split(' ').map(OsString::from)).unwrap_err().exit_code(),
                2,
                "{line}"
            );
        }
    }
}
