//! `nxl events`: what happened in the life of qubes.

use crate::error::Error;
use crate::log_file::{AGAIN, LogFile};
use clap::Args;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use toolstack::events::{EVENT_LOG, Event};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nxl events --qube work
  nxl events --follow -n 0
  nxl events --json --event shutdown

Events: created, unpaused, paused, requested, shutdown, destroyed, restarted, renamed, attached, detached, applied, volume,
image, failed (docs/events.md). With a journal, journalctl -t nxl has them, too.")]
pub(crate) struct EventsOptions {
    /// Stay, and show what happens from now on.
    #[arg(short, long)]
    follow: bool,
    /// As the log has them: a JSON object each.
    #[arg(long)]
    json: bool,
    /// Only those of this qube, by its name then or by its domain id.
    #[arg(long, value_name = "QUBE")]
    qube: Option<String>,
    /// Only those of this kind.
    #[arg(long, value_name = "EVENT")]
    event: Option<String>,
    /// Only the last so many of those that there are.
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// The log.
    #[arg(long, value_name = "FILE", default_value = EVENT_LOG)]
    log: PathBuf,
}

pub(crate) fn events(options: &EventsOptions) -> Result<(), Error> {
    follow(options, &mut io::stdout(), || {
        thread::sleep(AGAIN);
        true
    })
}

/// Shows them as long as `wait` has more to wait for.
fn follow(
    options: &EventsOptions,
    out: &mut impl Write,
    mut wait: impl FnMut() -> bool,
) -> Result<(), Error> {
    // Before the first event there is none.
    let mut log = LogFile::awaited(&options.log);
    if !options.json {
        writeln!(out, "{}", row(["TIME", "QUBE", "ID", "EVENT", ""])).map_err(Error::Output)?;
    }
    let mut last = VecDeque::new();
    log.read(|line| {
        match (show(line, options), options.lines) {
            (None, _) => {}
            (Some(shown), None) => writeln!(out, "{shown}").map_err(Error::Output)?,
            (Some(shown), Some(lines)) => {
                last.push_back(shown);
                if last.len() > lines {
                    last.pop_front();
                }
            }
        }
        Ok(())
    })?;
    last.iter().try_for_each(|shown| writeln!(out, "{shown}")).map_err(Error::Output)?;
    if !options.follow {
        return Ok(());
    }
    loop {
        out.flush().map_err(Error::Output)?;
        if !wait() {
            return Ok(());
        }
        log.read(|line| match show(line, options) {
            Some(shown) => writeln!(out, "{shown}").map_err(Error::Output),
            None => Ok(()),
        })?;
    }
}

/// A line as it is to be shown, if it is.
fn show(line: &str, options: &EventsOptions) -> Option<String> {
    // What is no line of the log (a disk was full in the middle of it) is passed over.
    let event: Event = serde_json::from_str(line).ok()?;
    let is_of = |wanted: &String| {
        event.qube.as_ref() == Some(wanted) || event.domid.is_some_and(|domid| domid.to_string() == *wanted)
    };
    let wanted = options.qube.as_ref().is_none_or(is_of)
        && options.event.as_ref().is_none_or(|wanted| event.step.name() == wanted);
    wanted.then(|| if options.json { line.to_owned() } else { table(&event) })
}

fn row([time, qube, domid, event, detail]: [&str; 5]) -> String {
    format!("{time:<24}  {qube:<20}  {domid:>5}  {event:<9}  {detail}").trim_end().to_owned()
}

fn table(event: &Event) -> String {
    let time = event.time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
    let domid = event.domid.map_or_else(String::new, |domid| domid.to_string());
    let detail = event.step.detail().replace('\n', " ");
    row([&time, event.qube.as_deref().unwrap_or("-"), &domid, event.step.name(), &detail])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::path::Path;
    use toolstack::events::{EventLog, LogFile as Sink, Step};

    fn options(log: &Path) -> EventsOptions {
        EventsOptions {
            follow: false,
            json: false,
            qube: None,
            event: None,
            lines: None,
            log: log.to_owned(),
        }
    }

    fn shown(options: &EventsOptions, wait: impl FnMut() -> bool) -> Vec<String> {
        let mut out = Vec::new();
        follow(options, &mut out, wait).unwrap();
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    fn log(path: &Path) -> EventLog {
        EventLog::to([Box::new(Sink(path.to_owned()))])
    }

    /// Three events of two qubes, and half a line.
    fn written(path: &Path) {
        use std::io::Write as _;
        let at = |second: i64, step, qube: &str, domid| Event {
            time: format!("2026-11-22T15:00:{second:02}.5Z").parse().unwrap(),
            domid: Some(domid),
            ..Event::now(step).named(qube)
        };
        log(path).tell(&[at(1, Step::Created, "work", 3), at(2, Step::Unpaused, "work", 3)]);
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b"{\"time\":\n").unwrap();
        let shutdown = Step::Shutdown { reason: "crash".into(), action: "restart".into() };
        log(path).tell(&[at(3, shutdown, "vault", 4)]);
    }

    #[test]
    fn an_event_is_a_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        assert_eq!(
            shown(&options(&path), || false),
            ["TIME                      QUBE                     ID  EVENT"]
        );
        written(&path);
        assert_eq!(
            shown(&options(&path), || false)[1..],
            [
                "2026-11-22T15:00:01.500Z  work                      3  created",
                "2026-11-22T15:00:02.500Z  work                      3  unpaused",
                "2026-11-22T15:00:03.500Z  vault                     4  shutdown   crash, restart",
            ]
        );
    }

    #[test]
    fn only_what_is_asked_for_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        written(&path);
        let count = |change: &dyn Fn(&mut EventsOptions)| {
            let mut options = EventsOptions { json: true, ..options(&path) };
            change(&mut options);
            shown(&options, || false).len()
        };
        assert_eq!(count(&|_| ()), 3);
        assert_eq!(count(&|options| options.qube = Some("work".into())), 2);
        assert_eq!(count(&|options| options.qube = Some("4".into())), 1);
        assert_eq!(count(&|options| options.event = Some("created".into())), 1);
        assert_eq!(count(&|options| options.lines = Some(2)), 2);
        assert_eq!(count(&|options| options.lines = Some(0)), 0);
    }

    #[test]
    fn what_happens_meanwhile_is_followed_from_before_there_is_a_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let following = EventsOptions { follow: true, lines: Some(0), json: true, ..options(&path) };
        let mut times = 0;
        let lines = shown(&following, || {
            times += 1;
            match times {
                1 => written(&path),
                2 => std::fs::rename(&path, folder.path().join("events.jsonl.1")).unwrap(),
                3 => log(&path).tell(&[Event::now(Step::Destroyed).named("work")]),
                _ => return false,
            }
            true
        });
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[3].contains("destroyed"), "{lines:?}");
    }
}
