//! Commands that are the host's `xl`'s: it runs in our place, with the same arguments.

use crate::error::Error;
use clap::{Arg, ArgMatches, Command, FromArgMatches, Subcommand};
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

/// The commands of `xl` 4.17 (and what 4.20 has beyond) that nxl has not got itself, by name.
const COMMANDS: &[&str] = &[
    "button-press",
    "cd-eject",
    "cd-insert",
    "cpupool-cpu-add",
    "cpupool-cpu-remove",
    "cpupool-create",
    "cpupool-destroy",
    "cpupool-list",
    "cpupool-migrate",
    "cpupool-numa-split",
    "cpupool-rename",
    "dt-overlay",
    "getenforce",
    "loadpolicy",
    "migrate",
    "migrate-receive",
    "psr-cat-set",
    "psr-cat-show",
    "psr-cmt-attach",
    "psr-cmt-detach",
    "psr-cmt-show",
    "psr-hwinfo",
    "psr-mba-set",
    "psr-mba-show",
    "qemu-monitor-command",
    "remus",
    "sched-credit",
    "sched-rtds",
    "set-parameters",
    "setenforce",
    "usb-list",
    "usbctrl-attach",
    "usbctrl-detach",
    "usbdev-attach",
    "usbdev-detach",
    "vdispl-attach",
    "vdispl-detach",
    "vdispl-list",
    "vkb-attach",
    "vkb-detach",
    "vkb-list",
    "vncviewer",
    "vsnd-attach",
    "vsnd-detach",
    "vsnd-list",
    "vtpm-attach",
    "vtpm-detach",
    "vtpm-list",
];

/// What hides a command in our own help, where it would look like one of ours.
const MARK: &str = "A command of the host's xl.";
/// How wide the list in the help is.
const WIDTH: usize = 96;

/// A command that is `xl`'s.
#[derive(Debug)]
pub(crate) struct Stock {
    name: String,
}

impl Stock {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl FromArgMatches for Stock {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let name = matches.subcommand_name().unwrap_or_default().to_owned();
        Ok(Self { name })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for Stock {
    fn augment_subcommands(command: Command) -> Command {
        COMMANDS.iter().fold(command, |command, name| {
            // Whatever follows is xl's to understand, -h included.
            let rest = Arg::new("arguments")
                .num_args(0..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true)
                .value_parser(clap::value_parser!(OsString));
            command.subcommand(Command::new(*name).about(MARK).hide(true).disable_help_flag(true).arg(rest))
        })
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        COMMANDS.contains(&name)
    }
}

/// Whether a subcommand is `xl`'s in this description.
fn is_stock(command: &Command) -> bool {
    command.get_about().is_some_and(|about| about.to_string() == MARK)
}

/// The part of the help that names them.
pub(crate) fn list(command: &Command) -> String {
    let mut text =
        "Commands that are xl's, which is run with the same arguments (nxl help COMMAND asks it, too):"
            .to_owned();
    let mut column = WIDTH;
    for command in command.get_subcommands().filter(|command| is_stock(command)) {
        let name = command.get_name();
        if column + name.len() + 2 > WIDTH {
            text += "\n ";
            column = 1;
        }
        // Writing to a String does not fail.
        let _ = write!(text, " {name},");
        column += name.len() + 2;
    }
    text.truncate(text.trim_end_matches(',').len());
    text
}

/// The command of `xl` that `help` was asked of, if it was that.
pub(crate) fn asked_for_help() -> Option<String> {
    let line: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = line.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    let ["help", name] = words[..] else { return None };
    let description = crate::command::description();
    description.find_subcommand(name).filter(|command| is_stock(command)).map(|_| name.to_owned())
}

/// The host's `xl`: the first in `path` that is not this very program under another name.
fn find(path: &OsStr, this: Option<&Path>) -> Option<PathBuf> {
    env::split_paths(path).map(|folder| folder.join("xl")).find(|file| {
        let real = fs::canonicalize(file).ok();
        real.is_some_and(|real| real.is_file() && Some(real.as_path()) != this)
    })
}

/// Becomes `xl`, with the arguments of this process; comes back only with why not.
pub(crate) fn exec(command: &str) -> Result<Infallible, Error> {
    let no_xl = |reason: String| Error::NoStock { command: command.to_owned(), reason };
    // sbin is not on everybody's path.
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let this = env::current_exe().ok().and_then(|file| fs::canonicalize(file).ok());
    let xl = find(&path, this.as_deref()).ok_or_else(|| no_xl("this host has not got".to_owned()))?;
    let error = process::Command::new(&xl).arg0("xl").args(env::args_os().skip(1)).exec();
    Err(no_xl(format!("could not be run as {}: {error}", xl.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn our_own_program_under_xls_name_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        fs::create_dir(&first).unwrap();
        fs::create_dir(&second).unwrap();
        let this = fs::canonicalize(folder.path()).unwrap().join("nxl");
        fs::write(&this, "").unwrap();
        symlink(&this, first.join("xl")).unwrap();
        let path = env::join_paths([&first, &second]).unwrap();
        assert_eq!(find(&path, Some(&this)), None);
        fs::write(second.join("xl"), "").unwrap();
        assert_eq!(find(&path, Some(&this)), Some(second.join("xl")));
    }
}
