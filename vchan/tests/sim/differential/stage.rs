//! The pairs of ends that run a schedule.

use super::difference::Difference;
use super::schedule::{Call, Schedule, Step, Who};
use crate::host::{Host, PATIENCE};
use crate::peers::{CLIENT, Kind, SERVER};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::mem::{Discriminant, discriminant};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

/// Who serves and who connects; the first pair is the reference.
pub(super) const PAIRS: [(Kind, Kind); 4] =
    [(Kind::C, Kind::C), (Kind::Ours, Kind::Ours), (Kind::Ours, Kind::C), (Kind::C, Kind::Ours)];

/// A scripted end.
pub(super) struct Actor {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Actor {
    fn start(host: &Host, kind: Kind, domid: u16) -> Self {
        let mut command = host.command(domid, kind.scripted());
        // Four times the pages that the largest rings need.
        command.env("XENSIM_GRANT_LIMIT", "2100");
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let (commands, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, commands, answers: BufReader::new(answers) }
    }

    fn call(&mut self, call: Call) {
        // One that has ended gives no answer, which says more.
        let _ = self.commands.write_all(format!("{call}\n").as_bytes());
    }

    /// Whether it answers within this time. (There is never more than one answer.)
    fn answers_within(&self, time: Duration) -> bool {
        let time = Timespec::try_from(time).unwrap();
        poll(&mut [PollFd::new(self.answers.get_ref(), PollFlags::IN)], Some(&time)).unwrap() == 1
    }

    fn answer(&mut self) -> Result<String, String> {
        if !self.answers_within(PATIENCE) {
            return Err("does not answer".into());
        }
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.pop().ok_or("ends")?;
        Ok(line)
    }

    pub(super) fn ask(&mut self, call: Call) -> Result<String, String> {
        self.call(call);
        self.answer()
    }

    fn ask_until(&mut self, call: Call, expected: &str) -> Result<String, String> {
        let start = Instant::now();
        loop {
            let answer = self.ask(call)?;
            if answer == expected || start.elapsed() > PATIENCE {
                return Ok(answer);
            }
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pair that runs one schedule after the other, and who looks on.
pub(super) struct Stage {
    pub(super) pair: (Kind, Kind),
    pub(super) server: Actor,
    pub(super) client: Actor,
    pub(super) observer: Actor,
    /// The differences that there were.
    differed: HashSet<Discriminant<Difference>>,
    _host: Host,
}

impl Stage {
    fn new(name: &str, pair: (Kind, Kind)) -> Self {
        let host = Host::new(&format!("{name}-{:?}-{:?}", pair.0, pair.1));
        Self {
            pair,
            server: Actor::start(&host, pair.0, SERVER),
            client: Actor::start(&host, pair.1, CLIENT),
            observer: Actor::start(&host, Kind::C, CLIENT),
            differed: HashSet::new(),
            _host: host,
        }
    }

    fn actor(&mut self, who: Who) -> &mut Actor {
        match who {
            Who::Server => &mut self.server,
            Who::Client => &mut self.client,
            Who::Observer => &mut self.observer,
        }
    }

    /// The make of who is called, and of the other end.
    fn makes(&self, who: Who) -> (Kind, Kind) {
        match who {
            Who::Server => self.pair,
            Who::Client | Who::Observer => (self.pair.1, self.pair.0),
        }
    }

    /// Runs a schedule; the answers, and what was wrong with the next one, if there was something. Without a reference
    /// nothing is but silence.
    fn run(&mut self, steps: &[Step], reference: Option<&[String]>) -> (Vec<String>, Result<(), String>) {
        let mut answers = Vec::new();
        for step in steps {
            let (who, answer, difference) = match *step {
                Step::Do(who, call, difference) => (who, self.actor(who).ask(call), difference),
                Step::Begin(who, call) => {
                    let actor = self.actor(who);
                    actor.call(call);
                    // It does not matter whether it sleeps yet; but most do after this time.
                    let early = actor.answers_within(Duration::from_micros(300));
                    (who, if early { Err("does not wait".into()) } else { Ok("…".into()) }, Difference::None)
                }
                Step::Until(who, call, number) => {
                    (who, self.actor(who).ask_until(call, &number.to_string()), Difference::None)
                }
                Step::Finish(who, difference) => (who, self.actor(who).answer(), difference),
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(what) => return (answers, Err(what)),
            };
            let expected = reference.map_or(&answer, |reference| &reference[answers.len()]);
            if !difference.allows(self.makes(who), expected, &answer) {
                let what = format!("answers {}, libxenvchan {}", short(&answer), short(expected));
                return (answers, Err(what));
            }
            if answer != *expected {
                self.differed.insert(discriminant(&difference));
            }
            answers.push(answer);
        }
        (answers, Ok(()))
    }
}

fn short(answer: &str) -> String {
    if answer.len() < 200 { answer.to_owned() } else { format!("{}…", &answer[..200]) }
}

/// The four pairs, side by side.
pub(super) struct Theatre(pub(super) [Stage; 4]);

impl Theatre {
    pub(super) fn new(name: &str) -> Self {
        Self(PAIRS.map(|pair| Stage::new(name, pair)))
    }

    /// Runs a schedule between each pair; all have to answer as the first does.
    pub(super) fn compare(&mut self, seed: u64, orders: (u16, u16), calls: usize) {
        let steps = Schedule::new(seed, orders, calls).steps;
        let mut reference: Option<Vec<String>> = None;
        for stage in &mut self.0 {
            let (answers, verdict) = stage.run(&steps, reference.as_deref());
            if let Err(what) = verdict {
                // Stopped at this step.
                let at = answers.len();
                for (step, answer) in steps.iter().zip(&answers) {
                    println!("{step:?}: {}", short(answer));
                }
                panic!(
                    "{:?}, orders {orders:?}, seed {seed:#x}, step {at}, {:?}: {what}",
                    stage.pair, steps[at]
                );
            }
            let expected = format!("orders {} {}", orders.0, orders.1);
            assert_eq!(answers[0], expected, "{:?}, seed {seed:#x}", stage.pair);
            reference.get_or_insert(answers);
        }
    }

    /// How many kinds of differences there were.
    pub(super) fn kinds_of_differences(&self) -> usize {
        self.0.iter().flat_map(|stage| &stage.differed).collect::<HashSet<_>>().len()
    }
}
