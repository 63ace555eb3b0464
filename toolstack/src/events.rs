//! What happens in the life of the qubes of this host: one event for each step, of whatever program it was, in a file of JSON
//! lines that all of them append to, and in systemd's journal where there is one.
//!
//! An event is told when the step is done, and nothing waits for it or fails with it: the log costs a step one `open` and one
//! `write` (and the journal, one datagram), never a call to Xen or xenstored. A line is written by one `write` to a file that
//! is open for appending, so that lines of several programs do not mix; the file is opened for each, so that logrotate may
//! rename it at any time.

use crate::qubes::Qube;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;
use xen::ShutdownReason;

/// Where the events of this host are.
pub const EVENT_LOG: &str = "/var/log/nxl/events.jsonl";
/// Where systemd's journal takes entries in its own form (systemd's JOURNAL_NATIVE_PROTOCOL).
const JOURNAL: &str = "/run/systemd/journal/socket";

/// A step of a life.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Step {
    /// A domain was made of a configuration.
    Created,
    /// Its vCPUs were let run.
    Unpaused,
    /// Its vCPUs were stopped.
    Paused,
    /// The guest was asked to power off or to restart: `poweroff`, `reboot`.
    Requested {
        /// What.
        request: String,
    },
    /// It ended, by itself or because it was asked to: `poweroff`, `reboot`, `suspend`, `crash`, `watchdog`, `soft-reset`.
    Shutdown {
        /// Why.
        reason: String,
        /// What is done then, as the configuration has it: `destroy`, `restart` …
        action: String,
    },
    /// It suspended itself, as it was asked to.
    Suspended,
    /// It goes on after that, where it is.
    Resumed,
    /// It is in that file as it was then.
    Saved {
        /// Which.
        file: PathBuf,
    },
    /// It was made out of that file.
    Restored {
        /// Which.
        file: PathBuf,
    },
    /// The domain is gone, and all that was made for it.
    Destroyed,
    /// The watcher made it again.
    Restarted {
        /// The id of the domain in whose place it is.
        was: u16,
    },
    /// It has another name.
    Renamed {
        /// The one that it had.
        was: String,
    },
    /// A device was attached.
    Attached {
        /// Its kind and name, such as `disk xvdb`.
        device: String,
    },
    /// A device was taken away.
    Detached {
        /// Its kind and name.
        device: String,
    },
    /// A step of an apply was done: `create`, `change`, `restart` …
    Applied {
        /// Which.
        work: String,
    },
    /// It said that it is up to an apply that waited for that.
    Ready,
    /// Another generation was chosen for it, by `nxl switch`.
    Switched {
        /// Which: `generation 4`, `generation 4, specialisation rescue`, or `what is declared`.
        to: String,
    },
    /// The generation before was chosen for it, by `nxl rollback`.
    RolledBack {
        /// Which.
        to: String,
    },
    /// A generation did not come up, and another one was booted in its place: nobody asked for that.
    FellBack {
        /// Which did not.
        from: String,
        /// Which was.
        to: String,
        /// Why.
        why: String,
    },
    /// A volume was made, grew, was kept or given back, or removed.
    Volume {
        /// Which.
        volume: String,
        /// What was done: `create`, `resize`, `snapshot`, `restore`, `remove`.
        work: String,
    },
    /// An image was made of a closure.
    Image {
        /// Its file.
        path: PathBuf,
    },
    /// Something that was due was not done.
    Failed {
        /// Why.
        error: String,
    },
}

impl Step {
    /// An end, with what is done then.
    pub(crate) fn shutdown(reason: ShutdownReason, action: &str) -> Self {
        let reason = match reason {
            ShutdownReason::Poweroff => "poweroff".to_owned(),
            ShutdownReason::Reboot => "reboot".to_owned(),
            ShutdownReason::Suspend => "suspend".to_owned(),
            ShutdownReason::Crash => "crash".to_owned(),
            ShutdownReason::Watchdog => "watchdog".to_owned(),
            ShutdownReason::SoftReset => "soft-reset".to_owned(),
            ShutdownReason::Unknown(code) => format!("reason {code}"),
        };
        Self::Shutdown { reason, action: action.to_owned() }
    }

    /// Its name in the log, and what else there is to say of it.
    fn words(&self) -> (&'static str, String) {
        match self {
            Self::Created => ("created", String::new()),
            Self::Unpaused => ("unpaused", String::new()),
            Self::Paused => ("paused", String::new()),
            Self::Requested { request } => ("requested", request.clone()),
            Self::Shutdown { reason, action } => ("shutdown", format!("{reason}, {action}")),
            Self::Suspended => ("suspended", String::new()),
            Self::Resumed => ("resumed", String::new()),
            Self::Saved { file } => ("saved", file.display().to_string()),
            Self::Restored { file } => ("restored", file.display().to_string()),
            Self::Destroyed => ("destroyed", String::new()),
            Self::Restarted { was } => ("restarted", format!("was domain {was}")),
            Self::Renamed { was } => ("renamed", format!("was {was}")),
            Self::Attached { device } => ("attached", device.clone()),
            Self::Detached { device } => ("detached", device.clone()),
            Self::Applied { work } => ("applied", work.clone()),
            Self::Ready => ("ready", String::new()),
            Self::Switched { to } => ("switched", format!("to {to}")),
            Self::RolledBack { to } => ("rolled-back", format!("to {to}")),
            Self::FellBack { from, to, why } => ("fell-back", format!("from {from} to {to}: {why}")),
            Self::Volume { volume, work } => ("volume", format!("{work} {volume}")),
            Self::Image { path } => ("image", path.display().to_string()),
            Self::Failed { error } => ("failed", error.clone()),
        }
    }

    /// Its name in the log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.words().0
    }

    /// What there is to say of it beyond its name; empty if nothing is.
    #[must_use]
    pub fn detail(&self) -> String {
        self.words().1
    }
}

/// A line of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// When, in UTC.
    pub time: Timestamp,
    /// What.
    #[serde(flatten)]
    pub step: Step,
    /// Whose name it was then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qube: Option<String>,
    /// The domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domid: Option<u16>,
    /// Its UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// The process that did it.
    pub pid: u32,
}

impl Event {
    /// Something that happens now, to no domain.
    #[must_use]
    pub fn now(step: Step) -> Self {
        Self { time: Timestamp::now(), step, qube: None, domid: None, uuid: None, pid: std::process::id() }
    }

    /// The same, to a qube of that name.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { qube: Some(name.into()), ..self }
    }

    /// Something that happens to that domain now.
    #[must_use]
    pub fn of(qube: &Qube, step: Step) -> Self {
        Self {
            qube: qube.name.clone(),
            domid: Some(qube.info.domid.0),
            uuid: Some(qube.uuid()),
            ..Self::now(step)
        }
    }
}

impl fmt::Display for Event {
    /// In words: `work (domain 3): shutdown, reboot, restart`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, detail) = self.step.words();
        match (&self.qube, self.domid) {
            (Some(qube), Some(domid)) => write!(f, "{qube} (domain {domid}): ")?,
            (Some(qube), None) => write!(f, "{qube}: ")?,
            (None, Some(domid)) => write!(f, "domain {domid}: ")?,
            (None, None) => {}
        }
        f.write_str(name)?;
        if detail.is_empty() { Ok(()) } else { write!(f, ", {detail}") }
    }
}

/// Takes events.
pub trait Sink: Send + Sync {
    /// Takes what happened in one go. What cannot be written is lost.
    fn tell(&self, events: &[Event]);
}

/// Where programs tell of events.
#[derive(Clone)]
pub struct EventLog(Arc<[Box<dyn Sink>]>);

impl Default for EventLog {
    /// This host's: the file [`EVENT_LOG`], and the journal if there is one.
    fn default() -> Self {
        Self::to([Box::new(LogFile(EVENT_LOG.into())), Box::new(Journal(JOURNAL.into()))])
    }
}

impl EventLog {
    /// Events of which nobody is told.
    #[must_use]
    pub fn nowhere() -> Self {
        Self::to([])
    }

    /// Other places: for tests.
    #[must_use]
    pub fn to<const N: usize>(sinks: [Box<dyn Sink>; N]) -> Self {
        Self(sinks.into_iter().collect())
    }

    /// Tells of what happened, in its order.
    pub fn tell(&self, events: &[Event]) {
        self.0.iter().for_each(|sink| sink.tell(events));
    }
}

/// A file of JSON lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogFile(
    /// Where.
    pub PathBuf,
);

impl LogFile {
    fn open(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o640);
        match (options.open(&self.0), self.0.parent()) {
            // Once in the life of a host.
            (Err(error), Some(folder)) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder)?;
                options.open(&self.0)
            }
            (opened, _) => opened,
        }
    }
}

impl Sink for LogFile {
    fn tell(&self, events: &[Event]) {
        let mut lines = Vec::new();
        for event in events {
            if serde_json::to_writer(&mut lines, event).is_ok() {
                lines.push(b'\n');
            }
        }
        let Ok(mut file) = self.open() else { return };
        // One write: another program's line is before or behind it, never in it. Of a disk that is full, half a line would
        // take the next one with it.
        if file.write(&lines).is_ok_and(|written| written < lines.len()) {
            let _ = file.write(b"\n");
        }
    }
}

/// systemd's journal.
struct Journal(PathBuf);

impl Sink for Journal {
    fn tell(&self, events: &[Event]) {
        let _ = send(&self.0, events);
    }
}

/// A datagram for each. A journal that does not keep up, or is not there, is not waited for.
fn send(socket: &Path, events: &[Event]) -> io::Result<()> {
    let journal = UnixDatagram::unbound()?;
    journal.set_nonblocking(true)?;
    for event in events {
        journal.send_to(&entry(event), socket)?;
    }
    Ok(())
}

/// An entry in the journal's own form: fields, those with line breaks by their length.
fn entry(event: &Event) -> Vec<u8> {
    let mut entry = Vec::new();
    let mut field = |name: &str, value: &str| {
        entry.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            entry.push(b'\n');
            entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend_from_slice(value.as_bytes());
        entry.push(b'\n');
    };
    let failed = matches!(event.step, Step::Failed { .. } | Step::FellBack { .. });
    field("MESSAGE", &event.to_string());
    // Error, and informational (syslog(3)).
    field("PRIORITY", if failed { "3" } else { "6" });
    field("SYSLOG_IDENTIFIER", "nxl");
    field("NXL_EVENT", event.step.name());
    let detail = event.step.detail();
    let (domid, uuid) = (event.domid.map(|domid| domid.to_string()), event.uuid.map(|uuid| uuid.to_string()));
    let named =
        [("NXL_QUBE", event.qube.as_deref()), ("NXL_DOMID", domid.as_deref()), ("NXL_UUID", uuid.as_deref())];
    for (name, value) in named {
        if let Some(value) = value {
            field(name, value);
        }
    }
    if !detail.is_empty() {
        field("NXL_DETAIL", &detail);
    }
    entry
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::create::tests::{Host, host};
    use crate::qubes::Request;
    use crate::watch;
    use std::sync::{Mutex, PoisonError};
    use std::thread;
    use xen::DomId;

    /// Keeps each time that it is told something.
    #[derive(Clone, Default)]
    pub(crate) struct Told(Arc<Mutex<Vec<Vec<Event>>>>);

    impl Sink for Told {
        fn tell(&self, events: &[Event]) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(events.to_vec());
        }
    }

    impl Told {
        /// What came, in words, and forgets it.
        pub(crate) fn words(&self) -> Vec<String> {
            let told = std::mem::take(&mut *self.0.lock().unwrap());
            told.iter().flatten().map(ToString::to_string).collect()
        }
    }

    fn told_host() -> (Host, Told) {
        let (mut host, told) = (host(), Told::default());
        host.qubes.events = EventLog::to([Box::new(told.clone())]);
        (host, told)
    }

    #[test]
    fn each_step_of_a_life_is_an_event() {
        let (host, told) = told_host();
        let qube = host.qubes.start(&host.config_with("work", ""), true, &*host.foreign).unwrap();
        assert_eq!(told.words(), ["work (domain 1): created", "work (domain 1): unpaused"]);
        host.qubes.pause(&qube).unwrap();
        host.qubes.unpause(&qube).unwrap();
        host.qubes.rename(&qube, "play").unwrap();
        let qube = host.qubes.find("play").unwrap();
        host.qubes.request(&qube, Request::Reboot).unwrap();
        assert_eq!(
            told.words(),
            [
                "work (domain 1): paused",
                "work (domain 1): unpaused",
                "play (domain 1): renamed, was work",
                "play (domain 1): requested, reboot",
            ]
        );
        host.machine.shut_down(qube.info.domid, ShutdownReason::Reboot);
        watch::tests::watch(&host);
        assert_eq!(
            told.words(),
            [
                "play (domain 1): shutdown, reboot, restart",
                "play (domain 1): destroyed",
                "play (domain 1): created",
                "play (domain 1): unpaused",
                "play (domain 1): restarted, was domain 1",
            ]
        );
        host.machine.shut_down(DomId(1), ShutdownReason::Crash);
        watch::tests::watch(&host);
        assert_eq!(told.words(), ["play (domain 1): shutdown, crash, destroy", "play (domain 1): destroyed"]);
    }

    #[test]
    fn a_creation_is_told_in_one_go_and_asks_xen_and_xenstored_nothing() {
        let counts = |told: bool| {
            let (mut host, kept) = told_host();
            if !told {
                host.qubes.events = EventLog::nowhere();
            }
            host.machine.reset_counts();
            host.qubes.start(&host.config_with("work", ""), true, &*host.foreign).unwrap();
            let times = kept.0.lock().unwrap().len();
            let counts = host.machine.counts();
            ((counts.hypercalls, counts.xenstore_requests()), times)
        };
        let (silent, told) = (counts(false), counts(true));
        assert_eq!(silent.0, told.0);
        assert_eq!((silent.1, told.1), (0, 1), "one go is one open and one write");
    }

    #[test]
    fn what_could_not_be_made_is_no_event() {
        let (host, told) = told_host();
        host.machine.fail(None, 40, xen::ErrorKind::Other);
        host.qubes.start(&host.config_with("work", ""), true, &*host.foreign).unwrap_err();
        assert_eq!(told.words(), [""; 0]);
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log/events.jsonl");
        let event = Event {
            time: "2026-11-22T15:00:00.25Z".parse().unwrap(),
            domid: Some(3),
            uuid: Some(Uuid::from_u128(5)),
            pid: 7,
            ..Event::now(Step::Shutdown { reason: "crash".into(), action: "restart".into() }).named("work")
        };
        let log = EventLog::to([Box::new(LogFile(path.clone()))]);
        log.tell(std::slice::from_ref(&event));
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"time\":\"2026-11-22T15:00:00.25Z\",\"event\":\"shutdown\",\"reason\":\"crash\",\"action\":\"restart\",\"qube\":\"work\",\
             \"domid\":3,\"uuid\":\"00000000-0000-0000-0000-000000000005\",\"pid\":7}\n"
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        // Renamed by logrotate: the next line makes the file anew.
        fs::rename(&path, folder.path().join("log/events.jsonl.1")).unwrap();
        log.tell(&[event]);
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn lines_of_many_programs_do_not_mix() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        thread::scope(|scope| {
            for writer in 0..8 {
                let path = path.clone();
                scope.spawn(move || {
                    for _ in 0..50 {
                        let event = || Event::now(Step::Created).named("q".repeat(100 * (writer + 1)));
                        LogFile(path.clone()).tell(&[event(), event()]);
                    }
                });
            }
        });
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|line| serde_json::from_str::<Event>(line).is_ok()).count(), 800);
        assert_eq!(text.lines().count(), 800);
    }

    #[test]
    fn what_cannot_be_written_fails_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let (mut host, _) = told_host();
        host.qubes.events = EventLog::to([
            Box::new(LogFile(file.join("events.jsonl"))),
            Box::new(LogFile("/dev/full".into())),
            Box::new(Journal(folder.path().join("none"))),
        ]);
        host.qubes.start(&host.config_with("work", ""), true, &*host.foreign).unwrap();
    }

    #[test]
    fn the_journal_gets_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let event =
            Event { domid: Some(3), ..Event::now(Step::Failed { error: "a\nb".into() }).named("work") };
        Journal(path).tell(&[event]);
        let mut buffer = [0; 4_096];
        let read = journal.recv(&mut buffer).unwrap();
        let length = 3_u64.to_le_bytes();
        let message = "work (domain 3): failed, a\nb";
        let wanted = [
            b"MESSAGE\n".as_slice(),
            &(message.len() as u64).to_le_bytes(),
            message.as_bytes(),
            b"\nPRIORITY=3\nSYSLOG_IDENTIFIER=nxl\nNXL_EVENT=failed\nNXL_QUBE=work\nNXL_DOMID=3\nNXL_DETAIL\n",
            &length,
            b"a\nb\n",
        ]
        .concat();
        assert_eq!(&buffer[..read], wanted, "{}", String::from_utf8_lossy(&buffer[..read]));
    }
}
