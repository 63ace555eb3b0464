//! `nxl container`: the containers of a qube, by its own word.

use crate::command::{CALL_SOCKET, ContainerCommand};
use crate::error::Error;
use crate::exec::{failed, target};
use nexus::client::OutgoingCall;
use nexus::client::containers::{Container, MAX_LIST, parse};
use nexus::command::CONTAINER;
use nexus::policy::{DOM0, Service};
use serde_json::json;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a qube may take to say what its containers do, where nobody asked for that alone.
const PATIENCE: Duration = Duration::from_secs(5);
/// What of a qube's complaint is repeated.
const COMPLAINT: usize = 300;

pub(crate) fn container(command: &ContainerCommand) -> Result<(), Error> {
    match command {
        ContainerCommand::List { json, agent, qube } => {
            let (qube, container) = split(qube);
            let mut containers = list(agent, qube)?;
            containers.retain(|found| container.is_none_or(|name| name == found.name.as_str()));
            if let Some(name) = container.filter(|_| containers.is_empty()) {
                return Err(Error::NoContainer { qube: qube.to_owned(), container: name.to_owned() });
            }
            let shown = if *json { format!("{:#}\n", json!(containers)) } else { table(&containers) };
            io::stdout().write_all(shown.as_bytes()).map_err(Error::Output)
        }
        ContainerCommand::Start(which) => act("start", &which.agent, &which.container),
        ContainerCommand::Stop(which) => act("stop", &which.agent, &which.container),
        ContainerCommand::Restart(which) => act("restart", &which.agent, &which.container),
    }
}

fn split(text: &str) -> (&str, Option<&str>) {
    text.split_once(':').map_or((text, None), |(qube, container)| (qube, Some(container)))
}

fn act(verb: &str, agent: &Path, which: &str) -> Result<(), Error> {
    // Both are names, or it is no container.
    target(which)?;
    let (qube, Some(container)) = split(which) else { return Err(Error::NotAContainer(which.to_owned())) };
    call(agent, qube, &format!("{verb}+{container}")).map(drop)
}

/// What a qube says of its containers.
pub(crate) fn list(agent: &Path, qube: &str) -> Result<Vec<Container>, Error> {
    let said = call(agent, qube, "list")?;
    parse(&said).map_err(|source| Error::ContainerList { qube: qube.to_owned(), source })
}

/// What several qubes say of theirs, all at once. Nothing of a qube that does not say it in time, or may not be asked.
pub(crate) fn list_all(qubes: impl IntoIterator<Item = String>) -> Vec<(String, Vec<Container>)> {
    let (sender, receiver) = mpsc::channel();
    for qube in qubes {
        let sender = sender.clone();
        // One that cannot be started is as one that hears nothing. Those that wait too long end with the program.
        let _ = thread::Builder::new().spawn(move || {
            if let Ok(containers) = list(Path::new(CALL_SOCKET), &qube) {
                // Nobody waits any more.
                let _ = sender.send((qube, containers));
            }
        });
    }
    drop(sender);
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut said = Vec::new();
    while let Ok(of_one) =
        receiver.recv_timeout(deadline.saturating_duration_since(std::time::Instant::now()))
    {
        said.push(of_one);
    }
    said
}

/// Has a qube, or dom0, do something with its containers; what it writes.
fn call(agent: &Path, qube: &str, argument: &str) -> Result<Vec<u8>, Error> {
    // dom0 has none but containers to be asked for, and is asked as others are.
    let target = if qube == DOM0 { DOM0.to_owned() } else { target(qube)? };
    let service = Service::parse(&format!("{CONTAINER}+{argument}"))?;
    let (mut said, mut complaint) = (Vec::new(), Bounded::default());
    let call = OutgoingCall::start(agent, &target, &service.to_string());
    let ended = call.and_then(|call| {
        call.carry(
            io::empty(),
            |data| {
                said.extend_from_slice(data);
                // A qube decides what it says, and not how much of dom0's memory that takes.
                if said.len() > MAX_LIST { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
            },
            &mut complaint,
        )
    });
    match ended.map_err(|error| failed(&target, &service, error))? {
        0 => Ok(said),
        code => Err(Error::InQube { qube: qube.to_owned(), code, said: complaint.line() }),
    }
}

/// The beginning of what a qube complains of.
#[derive(Debug, Default)]
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = COMPLAINT.saturating_sub(self.0.len());
        self.0.extend_from_slice(&data[..data.len().min(room)]);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Bounded {
    /// Its first line, of characters that do nothing to a terminal.
    fn line(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let line = text.lines().next().unwrap_or_default().trim_start_matches("nexus-service: ");
        line.chars().map(|c| if matches!(c, ' '..='~') { c } else { '_' }).collect()
    }
}

fn table(containers: &[Container]) -> String {
    let width = containers.iter().map(|container| container.name.as_str().len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  {:<8}  {:>10}\n", "NAME", "STATE", "MEMORY");
    for Container { name, state, memory_kib } in containers {
        let memory = memory_kib.map_or_else(|| "-".to_owned(), |kib| format!("{} MiB", kib.div_ceil(1024)));
        // Writing to a String does not fail.
        let _ = writeln!(text, "{:width$}  {state:<8}  {memory:>10}", name.as_str());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexus::client::containers::State;
    use nexus::name::Name;

    #[test]
    fn a_table_has_a_row_for_each() {
        let container =
            |name: &str, state, memory_kib| Container { name: Name::new(name).unwrap(), state, memory_kib };
        let containers =
            [container("web", State::Running, Some(4097)), container("database", State::Unknown, None)];
        assert_eq!(
            table(&containers),
            "NAME      STATE         MEMORY\nweb       running        5 MiB\ndatabase  unknown            -\n"
        );
    }

    #[test]
    fn a_complaint_has_one_line_and_nothing_that_a_terminal_obeys() {
        let mut complaint = Bounded::default();
        complaint.write_all(b"nexus-service: \x1b[2Jno such unit\nand more").unwrap();
        assert_eq!(complaint.line(), "_[2Jno such unit");
        complaint.write_all(&[b'x'; 1000]).unwrap();
        assert_eq!(complaint.0.len(), COMPLAINT);
    }

    #[test]
    fn what_is_started_is_a_container() {
        for wrong in ["work", "work:", ":web", "work:*", "dom0", "work:a b"] {
            assert!(act("start", Path::new("/nonexistent"), wrong).is_err(), "{wrong}");
        }
        let error = act("start", Path::new("/nonexistent/call.sock"), "work:web").unwrap_err();
        assert!(error.to_string().contains("does nexus-agent run"), "{error}");
    }
}
