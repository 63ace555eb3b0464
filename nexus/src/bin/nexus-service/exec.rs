//! `qubes.VMExec` and `nexus.ExecAs`: become the command that the argument is.

use super::Failure;
use nexus::command::decode;
use nexus::wire::EXIT_PROBLEM;
use nix::unistd::{Uid, User, geteuid, initgroups, setgid, setuid};
use std::env;
use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Where commands are, beside what the environment says: a unit of systemd's has less than a login.
const FOLDERS: [&str; 8] = [
    "/run/wrappers/bin",
    "/run/current-system/sw/bin",
    "/usr/local/bin",
    "/usr/bin",
    "/bin",
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
];

/// What a shell says of a command that cannot be run, and of one that is not there.
const CANNOT: u8 = 126;
const NOT_FOUND: u8 = 127;

pub(crate) fn exec(argument: &str) -> Result<(), Failure> {
    let user = User::from_uid(geteuid()).ok().flatten();
    become_command(&decode(argument).map_err(Failure::of)?, user)
}

/// The first word is the user.
pub(crate) fn exec_as(argument: &str) -> Result<(), Failure> {
    let words = decode(argument).map_err(Failure::of)?;
    let (name, command) = match words.split_first() {
        Some((name, command)) if !command.is_empty() => (name.to_string_lossy(), command),
        _ => return Err(Failure::of("a user and a command are wanted")),
    };
    let user = user_of(&name)?;
    if user.uid != geteuid() {
        turn_into(&user).map_err(|error| Failure {
            code: CANNOT,
            what: format!("{name}: {error}: commands run here as {}", own_name()),
        })?;
    }
    become_command(command, Some(user))
}

/// Root's own: a program as this user.
pub(crate) fn become_program(name: &str, words: &[OsString]) -> Result<(), Failure> {
    let user = user_of(name)?;
    turn_into(&user).map_err(|error| Failure { code: EXIT_PROBLEM, what: format!("{name}: {error}") })?;
    become_command(words, Some(user)).map_err(|failure| Failure { code: EXIT_PROBLEM, ..failure })
}

fn user_of(name: &str) -> Result<User, Failure> {
    let user = User::from_name(name).map_err(|error| Failure::of(format!("{name}: {error}")))?;
    user.ok_or_else(|| Failure::of(format!("there is no user {name:?} here")))
}

fn own_name() -> String {
    let user = User::from_uid(geteuid()).ok().flatten();
    user.map_or_else(|| Uid::effective().to_string(), |user| user.name)
}

fn turn_into(user: &User) -> io::Result<()> {
    initgroups(&CString::new(user.name.as_str())?, user.gid)?;
    setgid(user.gid)?;
    Ok(setuid(user.uid)?)
}

/// Runs it in this process' place; whom it runs as is not always somebody whom the system knows.
fn become_command(words: &[OsString], user: Option<User>) -> Result<(), Failure> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(Failure::of("a command is wanted"));
    };
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path(&env::var("PATH").unwrap_or_default()));
    if let Some(user) = user {
        // For the command alone: that there is no home is no reason not to run it.
        let _ = env::set_current_dir(&user.dir).or_else(|_| env::set_current_dir("/"));
        command.env("HOME", &user.dir).env("SHELL", &user.shell);
        command.env("USER", &user.name).env("LOGNAME", &user.name);
    }
    let error = command.exec();
    let code = if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT };
    Err(Failure { code, what: format!("{}: {error}", program.to_string_lossy()) })
}

/// The environment's folders, and those that it lacks.
fn path(given: &str) -> String {
    let mut folders: Vec<&str> = given.split(':').filter(|folder| !folder.is_empty()).collect();
    folders.extend(FOLDERS.iter().filter(|folder| !given.split(':').any(|there| there == **folder)));
    folders.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_commands_are_added_once() {
        assert_eq!(path(""), FOLDERS.join(":"));
        let found = path("/opt/bin:/bin");
        assert!(found.starts_with("/opt/bin:/bin:/run/wrappers/bin"), "{found}");
        assert_eq!(found.split(':').filter(|folder| *folder == "/bin").count(), 1);
    }

    #[test]
    fn who_is_not_there_is_told_of() {
        for (argument, says) in [
            ("nobody-here-at-all+id", "a - is followed"),
            ("no.such.user+id", "there is no user \"no.such.user\" here"),
            ("root", "a user and a command"),
        ] {
            let Err(failure) = exec_as(argument) else { panic!("{argument}") };
            assert!(failure.what.contains(says), "{}", failure.what);
        }
    }

    #[test]
    fn a_command_that_is_not_there_is_127() {
        let Err(failure) = exec("no.such.command") else { panic!() };
        assert_eq!(failure.code, NOT_FOUND);
    }
}
