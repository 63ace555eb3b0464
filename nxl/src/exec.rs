//! `nxl exec` and `nxl logs`: what runs in a qube or container, and what its journal has, by calls of dom0's.

use crate::command::{ExecOptions, LogsOptions, Where};
use crate::error::Error;
use crate::terminal::Harmless;
use nexus::broker::{DecisionRecord, Entry, Outcome, Record};
use nexus::client::{CallError, OutgoingCall};
use nexus::command;
use nexus::name::NameError;
use nexus::policy::{DOM0, Place, Service};
use nexus::wire::EXIT_PROBLEM;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// So much of the end of the log of calls is looked through for a call that was refused just now.
const RECENT: u64 = 64 << 10;

pub(crate) fn exec(options: &ExecOptions) -> Result<(), Error> {
    let service =
        command::service(options.user.as_deref(), &options.command).map_err(|error| match error {
            NameError::TooLong(bytes) => Error::LongCommand(bytes),
            other => Error::Name(other),
        })?;
    carry(&options.place, &service, io::stdin(), options.raw)
}

pub(crate) fn logs(options: &LogsOptions) -> Result<(), Error> {
    let follow = if options.follow { ".follow" } else { "" };
    let service = Service::parse(&format!("{}+{}{follow}", command::LOGS, options.lines))?;
    carry(&options.place, &service, io::empty(), options.raw)
}

/// Calls, and hands on what comes back. An exit code that is not 0 is an error.
fn carry(
    place: &Where,
    service: &Service,
    input: impl Read + Send + 'static,
    raw: bool,
) -> Result<(), Error> {
    let target = target(&place.target)?;
    let mut out = Harmless::new(io::stdout(), raw);
    let mut errors = Harmless::new(io::stderr(), raw);
    let code = OutgoingCall::start(&place.agent, &target, &service.to_string())
        .and_then(|call| call.run(input, &mut out, &mut errors))
        .map_err(|error| failed(&target, service, error))?;
    match u8::try_from(code).unwrap_or(EXIT_PROBLEM) {
        0 => Ok(()),
        code => Err(Error::Exit(code)),
    }
}

/// A target as calls have it: dom0 itself is no such.
pub(crate) fn target(text: &str) -> Result<String, Error> {
    match Place::intended(text)? {
        Some(Place::AdminVm) => Err(Error::IsDom0),
        Some(place) => Ok(place.to_string()),
        None => Err(Error::NoTarget(text.to_owned())),
    }
}

/// Whether it is dom0, or a container there.
fn is_in_dom0(target: &str) -> bool {
    target.split(':').next() == Some(DOM0)
}

/// Why a call failed; that it was refused is in the log of calls, with the reason.
pub(crate) fn failed(target: &str, service: &Service, source: CallError) -> Error {
    let shown = service.name().to_string();
    match source {
        CallError::Refused => {
            let log = Path::new(crate::command::CALLS_LOG);
            let reason = if is_in_dom0(target) {
                "dom0's agent decides it, by its own policy (/etc/nexus/dom0-policy.d): its journal says why"
                    .to_owned()
            } else {
                refusal(log, target, service).unwrap_or_else(|| {
                    format!("`nxl policy explain dom0 {target} {shown}' and `nxl calls --denied' say why")
                })
            };
            Error::Refused { target: target.to_owned(), service: shown, reason }
        }
        source => Error::Call { target: target.to_owned(), service: shown, source },
    }
}

/// What nexusd wrote down of the last such call, if that came to nothing.
fn refusal(log: &Path, target: &str, service: &Service) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(RECENT))).ok()?;
    let mut text = Vec::new();
    file.take(RECENT).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let entries = text.lines().rev().filter_map(|line| serde_json::from_str::<Entry>(line).ok());
    let decision = entries.filter_map(|entry| match entry.record {
        Record::Decision(decision) => Some(decision),
        Record::End(_) => None,
    });
    let mut of_this = decision.filter(|decision| {
        decision.source == "dom0" && decision.target == target && decision.service == service.to_string()
    });
    let DecisionRecord { verdict, reason, rule, .. } = of_this.next()?;
    match verdict {
        Outcome::Allow => None,
        Outcome::Deny | Outcome::Fail => {
            let rule = rule.map(|rule| format!(" ({rule})")).unwrap_or_default();
            Some(format!("{}{rule}", reason?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_target_is_a_qube_or_a_container_or_a_disposable() {
        for good in ["work", "work:mail", "dom0:update", "@dispvm:office"] {
            assert_eq!(target(good).unwrap(), good);
        }
        assert!(matches!(target("dom0"), Err(Error::IsDom0)));
        for wrong in ["", "@default", "@anyvm", "work:", "work:*", "../work", "wo rk"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn why_a_call_was_refused_is_read_from_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("calls.jsonl");
        let line = |target: &str, verdict: &str, reason: &str, rule: &str| {
            format!(
                "{{\"time\":\"2026-11-22T15:00:01Z\",\"event\":\"decision\",\"call\":\"08\",\"source\":\"dom0\",\"target\":\"{target}\",\
                 \"service\":\"nexus.Logs+9\",\"verdict\":\"{verdict}\"{reason}{rule},\"microseconds\":7}}\n"
            )
        };
        let denied =
            line("work", "deny", ",\"reason\":\"a rule denies it\"", ",\"rule\":\"30-user.policy:3\"");
        let dead = line("vault", "fail", ",\"reason\":\"vault does not run\"", "");
        fs::write(&log, format!("{{\"time\":\n{denied}{dead}{}", line("mail", "allow", "", ""))).unwrap();
        let service = Service::parse("nexus.Logs+9").unwrap();
        let of = |target: &str| refusal(&log, target, &service);
        assert_eq!(of("work").as_deref(), Some("a rule denies it (30-user.policy:3)"));
        assert_eq!(of("vault").as_deref(), Some("vault does not run"));
        assert_eq!((of("mail"), of("other")), (None, None));
        assert_eq!(refusal(Path::new("/nonexistent"), "work", &service), None);
    }
}
