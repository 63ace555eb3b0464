//! What dom0 says on the second serial port.
//!
//! Lines that begin with `@@ ` are the runner's own; everything that a check or a guest wrote is sent with `| ` in
//! front. The port belongs to dom0 alone (Xen and the guests' consoles are on the first), so a guest cannot write
//! a verdict, neither there nor through a console log that a check prints.

/// One line from dom0.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// dom0 is up: xenstored, xenconsoled and the modules are there.
    Up {
        /// Seconds since its kernel started.
        seconds: f64,
    },
    /// A check starts.
    Begin {
        /// Its name.
        name: String,
    },
    /// A check showed what it says.
    Pass {
        /// Its name.
        name: String,
        /// How long it took.
        seconds: f64,
    },
    /// A check did not.
    Fail {
        /// Its name.
        name: String,
        /// How long it took.
        seconds: f64,
        /// What was wrong, in one line.
        reason: String,
    },
    /// Everything was run; dom0 powers off.
    End,
    /// Output, of a check or of dom0's start.
    Output(String),
}

/// Reads one line.
pub fn parse(line: &str) -> Event {
    let line = line.trim_end_matches(['\r', '\n']);
    let Some(message) = line.strip_prefix("@@ ") else {
        return Event::Output(line.strip_prefix("| ").unwrap_or(line).to_owned());
    };
    let mut words = message.splitn(4, ' ');
    let (kind, name, seconds) = (words.next(), words.next(), words.next());
    let reason = words.next();
    let number = |word: Option<&str>| word.and_then(|word| word.parse::<f64>().ok());
    let event = match (kind, name) {
        (Some("up"), seconds) => number(seconds).map(|seconds| Event::Up { seconds }),
        (Some("begin"), Some(name)) => Some(Event::Begin { name: name.to_owned() }),
        (Some("pass"), Some(name)) => {
            number(seconds).map(|seconds| Event::Pass { name: name.to_owned(), seconds })
        }
        (Some("fail"), Some(name)) => number(seconds).map(|seconds| Event::Fail {
            name: name.to_owned(),
            seconds,
            reason: reason.unwrap_or("no reason given").to_owned(),
        }),
        (Some("end"), None) => Some(Event::End),
        _ => None,
    };
    event.unwrap_or_else(|| Event::Output(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read() {
        assert_eq!(parse("@@ up 4.5\r\n"), Event::Up { seconds: 4.5 });
        assert_eq!(parse("@@ begin a_check"), Event::Begin { name: "a_check".to_owned() });
        assert_eq!(parse("@@ pass a_check 1.25"), Event::Pass { name: "a_check".to_owned(), seconds: 1.25 });
        assert_eq!(
            parse("@@ fail a_check 2 xl list: no such domain"),
            Event::Fail {
                name: "a_check".to_owned(),
                seconds: 2.0,
                reason: "xl list: no such domain".to_owned()
            }
        );
        assert_eq!(parse("@@ end"), Event::End);
    }

    #[test]
    fn quoted_output_is_never_a_verdict() {
        assert_eq!(parse("| @@ pass a_check 1"), Event::Output("@@ pass a_check 1".to_owned()));
        assert_eq!(parse("@@ pass a_check"), Event::Output("@@ pass a_check".to_owned()));
        assert_eq!(parse("@@ pass a_check soon"), Event::Output("@@ pass a_check soon".to_owned()));
    }
}
