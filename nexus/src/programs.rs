//! The command lines of this crate's programs: what they are started with, and what their help, manual pages and
//! completions are made of.

use crate::client::CALL_SOCKET;
use clap::{CommandFactory, Parser};
use std::ffi::OsString;
use std::path::PathBuf;

/// Routes the calls within a qube: from its containers and from itself, under the qube's own policy.
///
/// Every decision, and every call's end, is a line of JSON on stderr.
#[derive(Debug, Parser)]
#[command(name = "nexus-agent", version)]
pub struct AgentArguments {
    /// A JSON file with the qube's name, its user, its sockets, and its containers.
    #[arg(long, value_name = "FILE", default_value = "/etc/nexus/agent.json")]
    pub config: PathBuf,
    /// Tell dom0 that this qube is up, and which system it runs; and do nothing else.
    #[arg(long)]
    pub ready: bool,
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
    /// A JSON file.
    #[arg(long, value_name = "FILE", default_value = "/etc/nexus/nexusd.json")]
    pub config: PathBuf,
    /// Keep the system calls: for those who look for a fault with a debugger.
    #[arg(long)]
    pub no_seccomp: bool,
    /// Run programs for a nexusd, whose socket stdin is.
    #[arg(long, hide = true)]
    pub attendant: bool,
}

/// The descriptions of all of them.
pub fn descriptions() -> [clap::Command; 4] {
    [AgentArguments::command(), AskArguments::command(), CallArguments::command(), DaemonArguments::command()]
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
        assert_eq!(names, ["nexus-agent", "nexus-ask", "nexus-call", "nexusd"]);
    }
}
