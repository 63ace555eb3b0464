//! `nexus-ask`: asks the user on a terminal whether a call is to be let through.

use clap::Parser;
use nexus::programs::AskArguments;
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// What nexusd asks. All of it was checked by nexusd: none of these strings has a character that a terminal obeys.
#[derive(Deserialize)]
struct Question {
    source: String,
    requested: String,
    service: String,
    argument: String,
    targets: Vec<String>,
    default_target: Option<String>,
}

/// What nexusd tells: a line of its log of calls, and how many were left out before it.
#[derive(Deserialize)]
struct Notice {
    source: String,
    target: String,
    service: String,
    verdict: String,
    to: Option<String>,
    reason: Option<String>,
    missed: u64,
}

fn main() -> ExitCode {
    let AskArguments { terminal, tell } = AskArguments::parse();
    let answer = if tell { announce(&terminal).map(|()| None) } else { ask(&terminal) };
    match answer {
        Ok(None) if tell => ExitCode::SUCCESS,
        Ok(Some(target)) => {
            let answer = serde_json::json!({ "target": target });
            match writeln!(io::stdout(), "{answer}") {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Ok(None) => ExitCode::FAILURE,
        Err(error) => {
            // There is nobody left to tell when stderr is gone, too.
            let _ = writeln!(io::stderr(), "nexus-ask: {}: {error}", terminal.display());
            ExitCode::FAILURE
        }
    }
}

fn ask(terminal: &PathBuf) -> io::Result<Option<String>> {
    let question: Question = serde_json::from_reader(io::stdin().lock())?;
    let mut output = OpenOptions::new().read(true).write(true).open(terminal)?;
    // One question at a time: the others wait for the terminal.
    rustix::fs::flock(&output, rustix::fs::FlockOperation::LockExclusive)?;
    let mut input = BufReader::new(File::open(terminal)?);
    output.write_all(text(&question).as_bytes())?;
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(choice(line.trim(), &question))
}

fn announce(terminal: &PathBuf) -> io::Result<()> {
    let notice: Notice = serde_json::from_reader(io::stdin().lock())?;
    let mut output = OpenOptions::new().write(true).open(terminal)?;
    // Not in the middle of a question.
    rustix::fs::flock(&output, rustix::fs::FlockOperation::LockExclusive)?;
    output.write_all(news(&notice).as_bytes())
}

fn news(notice: &Notice) -> String {
    let Notice { source, target, service, verdict, to, reason, missed } = notice;
    let became = match verdict.as_str() {
        "allow" => "was let call",
        "deny" => "was not let call",
        _ => "could not call",
    };
    let mut text = format!("\n{source} {became} {service} in {}", to.as_ref().unwrap_or(target));
    if let Some(reason) = reason {
        text += &format!(": {reason}");
    }
    if *missed > 0 {
        text += &format!(" (and {missed} calls before it that are in the log alone)");
    }
    // Reasons quote what callers said.
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect::<String>() + "\n"
}

fn text(question: &Question) -> String {
    let Question { source, requested, service, argument, targets, default_target } = question;
    let mut text = format!("\n{source} wants to call {service}+{argument} in {requested}.\n");
    for (index, target) in targets.iter().enumerate() {
        text += &format!("  {}  {target}\n", index + 1);
    }
    text += "Let it call which? A number or a name; ";
    match default_target {
        Some(target) => text += &format!("y for {target}; "),
        None if targets.len() == 1 => text += "y for that one; ",
        None => {}
    }
    text + "anything else is no: "
}

fn choice(line: &str, question: &Question) -> Option<String> {
    let Question { targets, default_target, .. } = question;
    let only = || targets.first().filter(|_| targets.len() == 1);
    if line == "y" || line == "yes" {
        return default_target.as_ref().or_else(only).cloned();
    }
    let numbered = line.parse::<usize>().ok().and_then(|number| targets.get(number.checked_sub(1)?));
    // A qube may have a number for a name.
    targets.iter().find(|target| *target == line).or(numbered).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(default_target: Option<&str>, targets: &[&str]) -> Question {
        Question {
            source: "work".into(),
            requested: "@default".into(),
            service: "nexus.Sign".into(),
            argument: "key".into(),
            targets: targets.iter().map(ToString::to_string).collect(),
            default_target: default_target.map(str::to_owned),
        }
    }

    #[test]
    fn a_notice_is_a_line_that_a_terminal_does_not_obey() {
        let line = r#"{"call":"1","source":"work:web","target":"vault","service":"nexus.Sign+key","verdict":"deny",
            "reason":"no \u001b[2J rule","asked":false,"notify":true,"microseconds":3,"missed":4}"#;
        let notice: Notice = serde_json::from_str(line).unwrap();
        assert_eq!(
            news(&notice),
            "\nwork:web was not let call nexus.Sign+key in vault: no ?[2J rule (and 4 calls before it that are in the log alone)\n"
        );
    }

    #[test]
    fn only_what_is_offered_can_be_chosen() {
        let many = question(Some("vault"), &["dom1", "vault", "1"]);
        let chosen = |line: &str| choice(line, &many);
        assert_eq!(chosen("2").as_deref(), Some("vault"));
        assert_eq!(chosen("y").as_deref(), Some("vault"));
        assert_eq!(chosen("dom1").as_deref(), Some("dom1"));
        assert_eq!(chosen("1").as_deref(), Some("1"), "a name comes before a number");
        for no in ["", "n", "no", "0", "4", "-1", "work", "Y es", "99999999999999999999"] {
            assert_eq!(chosen(no), None, "{no}");
        }
        assert_eq!(choice("y", &question(None, &["vault", "work"])), None, "which?");
        assert_eq!(choice("y", &question(None, &["vault"])).as_deref(), Some("vault"));
        assert!(text(&many).contains("work wants to call nexus.Sign+key in @default."));
    }
}
