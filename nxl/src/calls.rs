//! `nxl calls`: the log of calls that nexusd writes.

use crate::command::CallsOptions;
use crate::error::Error;
use crate::log_file::{AGAIN, LogFile};
use nexus::broker::{DecisionRecord, EndRecord, Entry, Outcome, Record};
use std::io::{self, Write};
use std::thread;

pub(crate) fn calls(options: &CallsOptions) -> Result<(), Error> {
    let mut out = io::stdout();
    let mut log = LogFile::open(&options.log)?;
    if !options.json {
        writeln!(out, "{}", row(["TIME", "SOURCE", "TARGET", "SERVICE", "WHAT", "WHY"]))
            .map_err(Error::Output)?;
    }
    loop {
        log.read(|line| match show(line, options) {
            Some(shown) => writeln!(out, "{shown}").map_err(Error::Output),
            None => Ok(()),
        })?;
        if !options.follow {
            return Ok(());
        }
        out.flush().map_err(Error::Output)?;
        thread::sleep(AGAIN);
    }
}

/// A line as it is to be shown, if it is.
fn show(line: &str, options: &CallsOptions) -> Option<String> {
    // What is no line of the log (nexusd was killed in the middle of it) is passed over.
    let entry: Entry = serde_json::from_str(line).ok()?;
    if !is_wanted(&entry.record, options) {
        return None;
    }
    Some(if options.json { line.to_owned() } else { table(&entry) })
}

fn is_wanted(record: &Record, options: &CallsOptions) -> bool {
    let (source, targets, service, denied) = match record {
        Record::Decision(decision) => (
            &decision.source,
            [Some(&decision.target), decision.to.as_ref()],
            Some(&decision.service),
            decision.verdict != Outcome::Allow,
        ),
        Record::End(end) => (&end.source, [Some(&end.to), None], end.service.as_ref(), false),
    };
    // A qube's name means its containers, too: who looks for what a qube did wants to see all of it.
    let is = |wanted: &str, name: &str| {
        name == wanted || name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(':'))
    };
    let is_service = |wanted: &str, service: &str| {
        service == wanted
            || service.split('+').next() == Some(wanted)
            || service.strip_suffix('+') == Some(wanted)
    };
    options.source.as_ref().is_none_or(|wanted| is(wanted, source))
        && options.target.as_ref().is_none_or(|wanted| targets.iter().flatten().any(|name| is(wanted, name)))
        && options.service.as_ref().is_none_or(|wanted| service.is_some_and(|name| is_service(wanted, name)))
        && (!options.denied || denied)
}

fn row([time, source, target, service, what, why]: [&str; 6]) -> String {
    format!("{time:<24}  {source:<20}  {target:<20}  {service:<28}  {what:<6}  {why}").trim_end().to_owned()
}

fn table(Entry { time, record }: &Entry) -> String {
    // Thousandths suffice for who reads it.
    let time = match (time.get(..23), time.ends_with('Z')) {
        (Some(short), true) => format!("{short}Z"),
        _ => time.clone(),
    };
    match record {
        Record::Decision(decision) => {
            let DecisionRecord { source, target, service, verdict, to, reason, rule, asked, .. } = decision;
            let what = match verdict {
                Outcome::Allow => "allow",
                Outcome::Deny => "deny",
                Outcome::Fail => "fail",
            };
            let target = match to {
                Some(to) if to != target => format!("{target} > {to}"),
                _ => target.clone(),
            };
            let asked = asked.then(|| "asked".to_owned());
            let why: Vec<_> = [asked, reason.clone(), rule.clone()].into_iter().flatten().collect();
            row([&time, source, &target, service, what, &why.join(", ")])
        }
        Record::End(end) => {
            let EndRecord {
                source,
                to,
                service,
                exit,
                bytes_to_service,
                bytes_to_caller,
                seconds,
                reason,
                ..
            } = end;
            let mut why = Vec::new();
            why.extend(exit.map(|exit| format!("exit {exit}")));
            why.extend(seconds.map(|seconds| format!("{seconds:.3} s")));
            if let (Some(there), Some(back)) = (bytes_to_service, bytes_to_caller) {
                why.push(format!("{there} bytes there, {back} back"));
            }
            why.extend(reason.clone());
            row([&time, source, to, service.as_deref().unwrap_or("-"), "end", &why.join(", ")])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: &str = r#"{"time":"2026-11-22T15:00:00.123456789Z","event":"decision","call":"07","source":"work:mail","target":"@default","service":"nexus.Sign+key","verdict":"allow","to":"vault:gpg","rule":"30-user.policy:3","asked":true,"microseconds":7}"#;
    const DENIED: &str = r#"{"time":"2026-11-22T15:00:01Z","event":"decision","call":"08","source":"untrusted","target":"vault","service":"nexus.Sign+","verdict":"deny","reason":"no rule matches","microseconds":7}"#;
    const ENDED: &str = r#"{"time":"2026-11-22T15:00:02.5Z","event":"end","call":"07","source":"work:mail","to":"vault:gpg","service":"nexus.Sign+key","exit":0,"bytes_to_service":10,"bytes_to_caller":20,"seconds":1.5}"#;

    fn options() -> CallsOptions {
        CallsOptions {
            follow: false,
            json: false,
            log: "calls.jsonl".into(),
            source: None,
            target: None,
            service: None,
            denied: false,
        }
    }

    #[test]
    fn a_call_is_a_row() {
        let shown = |line| show(line, &options()).unwrap();
        let words = |line| shown(line).split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        assert_eq!(
            words(ALLOWED),
            "2026-11-22T15:00:00.123Z work:mail @default > vault:gpg nexus.Sign+key allow asked, 30-user.policy:3"
        );
        assert_eq!(words(DENIED), "2026-11-22T15:00:01Z untrusted vault nexus.Sign+ deny no rule matches");
        assert_eq!(
            words(ENDED),
            "2026-11-22T15:00:02.5Z work:mail vault:gpg nexus.Sign+key end exit 0, 1.500 s, 10 bytes there, 20 back"
        );
        assert_eq!(show("{\"time\":\"20", &options()), None);
    }

    #[test]
    fn only_what_is_asked_for_is_shown() {
        let count = |options: &CallsOptions| {
            [ALLOWED, DENIED, ENDED].iter().filter(|line| show(line, options).is_some()).count()
        };
        let with = |change: fn(&mut CallsOptions)| {
            let mut options = options();
            change(&mut options);
            count(&options)
        };
        assert_eq!(with(|_| ()), 3);
        assert_eq!(with(|options| options.denied = true), 1);
        assert_eq!(with(|options| options.source = Some("work".into())), 2);
        assert_eq!(with(|options| options.source = Some("work:web".into())), 0);
        assert_eq!(with(|options| options.target = Some("vault:gpg".into())), 2);
        assert_eq!(with(|options| options.target = Some("vault".into())), 3);
        assert_eq!(with(|options| options.service = Some("nexus.Sign".into())), 3);
        assert_eq!(with(|options| options.service = Some("nexus.Sign+key".into())), 2);
        let json = CallsOptions { json: true, ..options() };
        assert_eq!(show(DENIED, &json).as_deref(), Some(DENIED));
    }
}
