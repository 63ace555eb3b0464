//! The command lines of this crate's programs: what they are started with, and what their help, manual pages and
//! completions are made of.

use crate::client::CALL_SOCKET;
use crate::command::{CONTAINER, EXEC, EXEC_AS, LOGS};
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Routes the calls within a qube: from its containers and from itself, under the qube's own policy.
///
/// Every decision, and every call's end, is a line of JSON on stderr.
#[derive(Debug, Parser)]
#[command(name = "nexus-agent", version)]
pub struct AgentArguments {
    /// A JSON file with the qube's name, its user, its sockets, and its containers.
    #[arg(long, value_name = "FILE", default_value = AGENT_SETTINGS)]
    pub config: PathBuf,
    /// Tell dom0 that this qube is up, and which system it runs; and do nothing else.
    #[arg(long)]
    pub ready: bool,
    /// Tell dom0 how much of this qube's memory is in use, again when that has changed; and do nothing else.
    #[arg(long, conflicts_with = "ready")]
    pub memory: bool,
}

/// Asks on a terminal whether a call is to be let through, and where to.
///
/// nexusd runs it, with a question as one line of JSON on stdin; the answer is one on stdout. Exit status: 0 if the user
/// chose a target, 1 if not.
///
/// With --tell it asks nothing: it reads what nexusd has to tell the user of a call (notify=), and writes it there.
#[derive(Debug, Parser)]
#[command(name = "nexus-ask", version)]
pub struct AskArguments {
    /// The terminal.
    #[arg(long, value_name = "DEVICE", default_value = "/dev/tty")]
    pub terminal: PathBuf,
    /// Tell the user of a call, and ask nothing.
    #[arg(long)]
    pub tell: bool,
}

/// Calls a service of a qube or container: stdin goes there, its stdout and stderr come back.
///
/// Exit status: that of the service (128 and the signal's number if one ended it), or with COMMAND, its own; 126 if the call
/// is refused, 127 if there is no such service, 125 if something else fails. What was refused or has failed, and as far as
/// the caller may know it, why, stands on stderr.
#[derive(Debug, Parser)]
#[command(
    name = "nexus-call",
    version,
    after_help = "Examples:
  nexus-call work:db nexus.Query+orders < query.sql
  nexus-call work:db nexus.Query -- sh -c 'echo select; cat >&2'
  nexus-call --listen /run/web.sock work:web nexus.Http & curl --unix-socket /run/web.sock http://web/"
)]
pub struct CallArguments {
    /// The agent's socket.
    #[arg(long, value_name = "SOCKET", default_value = CALL_SOCKET)]
    pub agent: PathBuf,
    /// Be this Unix socket, for programs that know nothing of calls: whoever connects to it is connected to the service, by
    /// a call of its own.
    #[arg(long, value_name = "SOCKET", conflicts_with = "command")]
    pub listen: Option<PathBuf>,
    /// Whom: QUBE, QUBE:CONTAINER, or @default for whom policy says.
    pub target: String,
    /// What: SERVICE or SERVICE+ARGUMENT.
    pub service: String,
    /// A program whose stdin and stdout are joined with the service, instead of one's own.
    #[arg(last = true)]
    pub command: Vec<OsString>,
}

/// Decides calls from one qube to another, by policy, and tells the agents of both.
///
/// SIGHUP: opens the log of calls anew. The policy and the file of the qubes are read anew when they change.
#[derive(Debug, Parser)]
#[command(name = "nexusd", version)]
pub struct DaemonArguments {
    /// A JSON file. Without it, /etc/nexus/nexusd.json, which need not be there.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Keep the system calls: for those who look for a fault with a debugger.
    #[arg(long)]
    pub no_seccomp: bool,
    /// Run programs for a nexusd, whose socket stdin is.
    #[arg(long, hide = true)]
    pub attendant: bool,
}

/// Runs commands, shows the journal, and looks after containers: the services qubes.VMExec, nexus.ExecAs, nexus.Logs and
/// nexus.Container of a qube or container.
///
/// Under the name of one of them it is that service, with its argument as the only one.
#[derive(Debug, Parser)]
#[command(name = "nexus-service", version)]
pub struct ServiceArguments {
    /// The agent's settings, which say what containers there are.
    #[arg(long, value_name = "FILE", default_value = AGENT_SETTINGS)]
    pub config: PathBuf,
    /// What it is to do.
    #[command(subcommand)]
    pub what: ServiceCommand,
}

/// What `nexus-service` does.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Be this service.
    Be {
        /// Which.
        #[arg(value_parser = SERVICES)]
        service: String,
        /// Its argument, without the +.
        #[arg(default_value = "", allow_hyphen_values = true)]
        argument: String,
    },
    /// Answer a call on the socket that stdin is, in messages: stdout, stderr and exit code are the service's.
    #[command(after_help = "Examples:
  nexus-service answer qubes.VMExec
  nexus-service answer nexus.Query /run/current-system/sw/bin/query")]
    Answer {
        /// Of which service. A call of another one is refused.
        service: String,
        /// The program that it is, which gets the service's argument as its last one. Without it, the service is one of
        /// nexus-service's own.
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        program: Vec<OsString>,
    },
    /// Run a service as another user, for the agent at the other end of the socket that stdin is: root's part
    /// (nexus-as-user@.service). Whom it may run as is "users" of the agent's settings.
    AsUser,
    /// Become a program that root runs as this user.
    #[command(hide = true)]
    Become {
        /// As whom.
        user: String,
        /// The program and its arguments.
        #[arg(required = true, allow_hyphen_values = true, trailing_var_arg = true)]
        program: Vec<OsString>,
    },
}

/// Where an agent's settings are, if nothing else is said.
pub const AGENT_SETTINGS: &str = "/etc/nexus/agent.json";

/// The services that `nexus-service` is.
pub const SERVICES: [&str; 4] = [EXEC, EXEC_AS, LOGS, CONTAINER];

/// The descriptions of all of them.
pub fn descriptions() -> [clap::Command; 5] {
    [
        AgentArguments::command(),
        AskArguments::command(),
        CallArguments::command(),
        ServiceArguments::command(),
        DaemonArguments::command(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_called_as_they_are_installed() {
        for command in descriptions() {
            command.clone().debug_assert();
        }
        let names = descriptions().map(|command| command.get_name().to_owned());
        assert_eq!(names, ["nexus-agent", "nexus-ask", "nexus-call", "nexus-service", "nexusd"]);
    }
}
