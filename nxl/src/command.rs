//! The command line: spelled as `xl` spells it.

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;

/// Creates and manages Xen qubes, with the commands of xl.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "QUBE is a name or a domain id. Exit status: 0 done, 1 it failed (one line on stderr says why), 2 wrong usage."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a qube from an xl.cfg file, a NixOS system closure, a boot.json or a unified kernel image.
    Create(CreateOptions),
    /// List the domains of this host.
    #[command(visible_alias = "ls")]
    List {
        /// All that is known of each, as JSON.
        #[arg(short, long)]
        long: bool,
        /// UUID, shutdown reason and security label, too.
        #[arg(short, long)]
        verbose: bool,
        /// Only these.
        #[arg(value_name = "QUBE")]
        qubes: Vec<String>,
    },
    /// End a qube at once, as pulling the plug would.
    Destroy {
        /// Accepted for xl's sake; domain 0 is never destroyed.
        #[arg(short)]
        force: bool,
        /// Which.
        qube: String,
    },
    /// Ask a qube to power off.
    Shutdown(RequestOptions),
    /// Ask a qube to restart.
    Reboot(RequestOptions),
    /// Stop a qube's vCPUs.
    Pause {
        /// Which.
        qube: String,
    },
    /// Let a qube's vCPUs run.
    Unpause {
        /// Which.
        qube: String,
    },
    /// Attach this terminal to a qube's console; Ctrl-] detaches.
    Console {
        /// Which.
        qube: String,
    },
    /// The domain id of a qube's name.
    Domid {
        /// Which.
        qube: String,
    },
    /// The name of a domain id.
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
    BlockList {
        /// Which.
        #[arg(required = true, value_name = "QUBE")]
        qubes: Vec<String>,
    },
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
    NetworkDetach {
        /// Which.
        qube: String,
        /// The interface: its number, or its MAC address.
        device: String,
    },
    /// List the network interfaces of qubes.
    NetworkList {
        /// Which.
        #[arg(required = true, value_name = "QUBE")]
        qubes: Vec<String>,
    },
    /// What Xen says of this host and of itself.
    Info,
    /// Carry out on_poweroff, on_reboot and on_crash of the qubes that nxl made, until the last of them is gone.
    /// `create` starts it; a second one ends at once.
    Watch,
    /// The unpacked kernels that `create` keeps in /var/cache/nxl, for the next qube with the same kernel.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Print a shell's completions.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Write the manual pages into a folder.
    #[command(hide = true)]
    Man {
        /// Where.
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List the kernels, the last used first.
    #[command(visible_alias = "ls")]
    List {
        /// As JSON: sizes in bytes, times in seconds since 1970.
        #[arg(long)]
        json: bool,
    },
    /// Remove what a crash has left, and the least recently used kernels until the others have at most 1024 MiB.
    /// Qubes that run, or are just being created, need none of them.
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

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl create work.cfg
  nxl create work.cfg memory=1024 vcpus=2
  nxl create /nix/var/nix/profiles/system name=work memory=512
  nxl create /nix/var/nix/profiles/system --generation 42 --specialisation rescue name=work
  nxl create /boot/EFI/Linux/nixos-generation-42.efi name=work
  nxl create -n /nix/store/…-nixos-system-work/boot.json name=work")]
pub(crate) struct CreateOptions {
    /// Leave it paused.
    #[arg(short, long)]
    pub(crate) paused: bool,
    /// Attach to its console.
    #[arg(short = 'c')]
    pub(crate) console: bool,
    /// Say what would be created, as JSON, and create nothing.
    #[arg(short = 'n', long)]
    pub(crate) dryrun: bool,
    /// Say nothing but errors.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Let nobody carry out on_poweroff, on_reboot and on_crash.
    #[arg(short = 'e')]
    pub(crate) unattended: bool,
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
    pub(crate) config: PathBuf,
    /// Settings that override the file's, in the syntax of xl.cfg: memory=512 or name="work".
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
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
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
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
            "nxl cache list --json",
            "nxl cache ls",
            "nxl cache prune --all --json",
            "nxl cache prune --max-size 256",
        ] {
            Arguments::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "nxl",
            "nxl frobnicate",
            "nxl shutdown",
            "nxl shutdown -a work",
            "nxl domname work",
            "nxl block-attach work",
            "nxl block-detach work",
            "nxl block-list",
            "nxl network-detach work",
            "nxl create",
            "nxl cache",
            "nxl cache prune --all --max-size 1",
            "nxl cache prune --max-size -1",
        ] {
            assert_eq!(Arguments::try_parse_from(line.split(' ')).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
