//! Scripts that connect a device instead of what is done in this process, run as libxl runs them (libxl_linux.c).

use super::{Address, DeviceError, Kind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a script may take (`LIBXL_HOTPLUG_TIMEOUT`).
pub(super) const LIMIT: Duration = Duration::from_secs(40);

/// What a script is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Connect the device.
    Add,
    /// Take it away.
    Remove,
}

/// A script and what it is run for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Script {
    /// The device.
    pub address: Address,
    /// The script's absolute path.
    pub path: String,
    /// The record `gatewaydev` of an interface.
    pub gatewaydev: Option<String>,
}

impl Script {
    fn arguments(&self, action: Action) -> &'static [&'static str] {
        match (self.address.kind, action) {
            (Kind::Vbd, Action::Add) => &["add"],
            (Kind::Vbd, Action::Remove) => &["remove"],
            (Kind::Vif, Action::Add) => &["online", "type_if=vif"],
            (Kind::Vif, Action::Remove) => &["offline", "type_if=vif"],
            // Nothing stands behind them that a script could set up.
            (Kind::Vkb | Kind::Channel | Kind::P9 | Kind::Pci, _) => &[],
        }
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("script", self.path.clone()),
            ("XENBUS_TYPE", self.address.kind.name().to_owned()),
            ("XENBUS_PATH", self.address.script_path()),
            ("XENBUS_BASE_PATH", "backend".to_owned()),
        ];
        if self.address.kind == Kind::Vif {
            variables.push(("netdev", self.gatewaydev.clone().unwrap_or_default()));
            variables.push(("vif", self.address.vif()));
        }
        variables
    }

    /// Runs it and waits for its end, 40 s at most. Its output goes to stderr.
    pub(super) fn run(&self, action: Action) -> Result<(), DeviceError> {
        self.run_within(action, LIMIT)
    }

    /// The same by a shell that lives as long as the script, has `record` open all that time, and writes there how it ended,
    /// whatever became of this process meanwhile.
    pub(super) fn run_recorded(&self, action: Action, record: File) -> Result<(), DeviceError> {
        let mut shell = Command::new("/bin/sh");
        let waits = r#""$@" < /dev/null; status=$?; echo "ended $status" >&0; exit $status"#;
        shell.args(["-c", waits, "sh", &self.path]).stdin(Stdio::from(record));
        self.run_as(shell, action, LIMIT)
    }

    fn run_within(&self, action: Action, limit: Duration) -> Result<(), DeviceError> {
        let mut command = Command::new(&self.path);
        command.stdin(Stdio::null());
        self.run_as(command, action, limit)
    }

    fn run_as(&self, mut command: Command, action: Action, limit: Duration) -> Result<(), DeviceError> {
        let failed =
            |reason| DeviceError::Script { address: self.address, script: self.path.clone(), reason };
        let run = || {
            let mut child = command
                .args(self.arguments(action))
                .envs(self.variables())
                .stdout(io::stderr())
                // What it leaves behind is ended with it when it takes too long.
                .process_group(0)
                .spawn()?;
            // What it was given is open in it alone.
            drop(command);
            wait(&mut child, limit)
        };
        match run() {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(failed(format!("{} ended with {status}", self.arguments(action)[0]))),
            Ok(None) => Err(failed(format!("it took more than {} s", limit.as_secs()))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// Waits for a child's end; ends it, and its process group, after `limit`.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(child);
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let begun = Instant::now();
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if left.is_zero() => {
                kill_process_group(pid, Signal::KILL)?;
                child.wait()?;
                return Ok(None);
            }
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return child.wait().map(Some),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use xen::DomId;

    fn script(folder: &tempfile::TempDir, text: &str, kind: Kind) -> Script {
        let path = folder.path().join("script");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let address = Address { domid: DomId(3), kind, devid: 1, backend: DomId::DOM0 };
        Script { address, path: path.to_str().unwrap().to_owned(), gatewaydev: None }
    }

    #[test]
    fn a_script_has_libxls_arguments_and_environment() {
        let folder = tempfile::tempdir().unwrap();
        let seen = folder.path().join("seen");
        let text = format!(
            "echo \"$*|$script|$XENBUS_TYPE|$XENBUS_PATH|$XENBUS_BASE_PATH|${{netdev-none}}|${{vif-none}}\" > {}",
            seen.display()
        );
        let path = folder.path().join("script").display().to_string();
        for (kind, action, expected) in [
            (Kind::Vbd, Action::Add, format!("add|{path}|vbd|backend/vbd/3/1|backend|none|none\n")),
            (Kind::Vbd, Action::Remove, format!("remove|{path}|vbd|backend/vbd/3/1|backend|none|none\n")),
            (
                Kind::Vif,
                Action::Add,
                format!("online type_if=vif|{path}|vif|backend/vif/3/1|backend||vif3.1\n"),
            ),
            (
                Kind::Vif,
                Action::Remove,
                format!("offline type_if=vif|{path}|vif|backend/vif/3/1|backend||vif3.1\n"),
            ),
        ] {
            script(&folder, &text, kind).run(action).unwrap();
            assert_eq!(fs::read_to_string(&seen).unwrap(), expected);
        }
    }

    #[test]
    fn a_script_that_fails_hangs_or_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = script(&folder, "exit 3", Kind::Vbd).run(Action::Add).unwrap_err().to_string();
        assert!(error.contains("/script: add ended with exit status: 3"), "{error}");
        let hanging = script(&folder, "sleep 600 & wait", Kind::Vif);
        let error = hanging.run_within(Action::Add, Duration::from_millis(100)).unwrap_err().to_string();
        assert!(error.contains("took more than"), "{error}");
        let none = Script { path: "/nonexistent/script".into(), ..hanging };
        assert!(none.run(Action::Add).unwrap_err().to_string().contains("No such file"));
    }
}
