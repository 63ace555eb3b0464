//! A program as a service.

use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::spawn_local;

/// Who called, for the program's environment.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// `QUBE` or `QUBE:CONTAINER`.
    pub(super) source: String,
    /// `SERVICE+ARGUMENT`; nothing: a command of dom0's that is no service.
    pub(super) service: String,
    pub(super) argument: String,
    /// Whom the caller asked for, in its own words; nothing where it is not known.
    pub(super) wish: String,
}

impl Caller {
    /// Puts it where programs look for it.
    pub(super) fn describe(&self, command: &mut std::process::Command) {
        command.env("QREXEC_REMOTE_DOMAIN", &self.source);
        if !self.service.is_empty() {
            command
                .env("QREXEC_SERVICE_FULL_NAME", &self.service)
                .env("QREXEC_SERVICE_ARGUMENT", &self.argument);
        }
        match self.wish.strip_prefix('@') {
            Some(keyword) => {
                command
                    .env("QREXEC_REQUESTED_TARGET_TYPE", "keyword")
                    .env("QREXEC_REQUESTED_TARGET_KEYWORD", keyword);
            }
            None if self.wish.is_empty() => _ = command.env("QREXEC_REQUESTED_TARGET_TYPE", ""),
            None => {
                command
                    .env("QREXEC_REQUESTED_TARGET_TYPE", "name")
                    .env("QREXEC_REQUESTED_TARGET", &self.wish);
            }
        }
    }
}

/// A program in a process group of its own. It and what it started are killed when this is dropped.
#[derive(Debug)]
pub(super) struct Program {
    /// None when it was waited for.
    child: Option<Child>,
}

/// Its pipes.
#[derive(Debug)]
pub(super) struct Pipes {
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

impl Program {
    /// Runs a program, with pipes.
    pub(super) fn run(path: &OsStr, arguments: &[&str], caller: &Caller) -> io::Result<(Self, Pipes)> {
        let mut command = Command::new(path);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut program = Self::spawn(&mut command, caller)?;
        let pipes = program.child.as_mut().and_then(|child| {
            let (stdin, stdout, stderr) = (child.stdin.take()?, child.stdout.take()?, child.stderr.take()?);
            Some(Pipes { stdin, stdout, stderr })
        });
        Ok((program, pipes.ok_or(io::ErrorKind::BrokenPipe)?))
    }

    /// Runs a program that nobody listens to, and waits for it.
    pub(super) async fn run_alone(path: &OsStr, arguments: &[&str], caller: &Caller) -> io::Result<i32> {
        let mut command = Command::new(path);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self::spawn(&mut command, caller)?.wait().await
    }

    fn spawn(command: &mut Command, caller: &Caller) -> io::Result<Self> {
        // Of what whoever started the agent might have left there, nothing is to look like a call's.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"QREXEC") {
                command.env_remove(name);
            }
        }
        caller.describe(command.as_std_mut());
        Ok(Self { child: Some(command.process_group(0).spawn()?) })
    }

    /// Waits for its end: its exit code, or 128 and the number of the signal that ended it.
    pub(super) async fn wait(&mut self) -> io::Result<i32> {
        let Some(child) = &mut self.child else { return Err(io::ErrorKind::NotFound.into()) };
        let status = child.wait().await?;
        self.child = None;
        let signal = status.signal().map(|signal| 128 + signal);
        Ok(status.code().or(signal).unwrap_or(crate::wire::EXIT_PROBLEM.into()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Its id is its own for as long as it was not waited for.
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(group) = id {
            // It may have ended by itself just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
        spawn_local(async move { child.wait().await });
    }
}
