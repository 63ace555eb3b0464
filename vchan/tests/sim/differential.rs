//! Our library beside Debian's libxenvchan, call by call: the same schedule between two ends of libxenvchan, which is the
//! reference, and between two of which one or both are ours. Every answer has to be the same, and what remains in the
//! shared pages; where not, `difference` says why.
//!
//! The schedules are drawn from seeds: always the same ones, unless `VCHAN_SCHEDULES` has a number, from which others
//! are drawn. What fails says its seed.

mod difference;
mod schedule;

use crate::host::{CLIENT, Host, Kind, PATIENCE, SERVER};
use difference::Difference;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use schedule::{Call, Random, Schedule, Step, Who};
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

/// Who serves and who connects; the first pair is the reference.
const PAIRS: [(Kind, Kind); 4] =
    [(Kind::C, Kind::C), (Kind::Ours, Kind::Ours), (Kind::Ours, Kind::C), (Kind::C, Kind::Ours)];

/// A scripted end.
struct Actor {
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

    fn ask(&mut self, call: Call) -> Result<String, String> {
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
struct Stage {
    pair: (Kind, Kind),
    server: Actor,
    client: Actor,
    observer: Actor,
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
            answers.push(answer);
        }
        (answers, Ok(()))
    }
}

fn short(answer: &str) -> String {
    if answer.len() < 200 { answer.to_owned() } else { format!("{}…", &answer[..200]) }
}

/// The four pairs, side by side.
struct Theatre([Stage; 4]);

impl Theatre {
    fn new(name: &str) -> Self {
        Self(PAIRS.map(|pair| Stage::new(name, pair)))
    }

    /// Runs a schedule between each pair; all have to answer as the first does.
    fn compare(&mut self, seed: u64, orders: (u16, u16), calls: usize) {
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
}

/// The seeds of a test.
fn seeds(test: u64) -> Random {
    let drawn = env::var("VCHAN_SCHEDULES").map_or(0, |number| number.parse().expect("a number"));
    Random(Random(drawn).next() ^ test)
}

/// All pairs of orders that a server can choose.
fn order_pairs() -> Vec<(u16, u16)> {
    let all = (10..=20).flat_map(|left| (10..=20).map(move |right| (left, right)));
    // The page has one place for a ring of order 10 and one for order 11; a ring of order 10 is only chosen if both fit there.
    let pairs: Vec<_> =
        all.filter(|&(left, right)| left != right && left + right == 21 || left.min(right) > 10).collect();
    pairs.into_iter().filter(|&pair| pair != (11, 11)).collect()
}

#[test]
fn every_pair_of_rings_answers_as_libxenvchans_do() {
    let pairs = order_pairs();
    assert_eq!(pairs.len(), 101);
    let mut theatre = Theatre::new("orders");
    let mut seeds = seeds(1);
    for orders in pairs {
        theatre.compare(seeds.next(), orders, 60);
    }
}

#[test]
fn long_schedules_answer_as_libxenvchans_do() {
    let mut theatre = Theatre::new("long");
    let mut seeds = seeds(2);
    for orders in [(10, 11), (11, 10), (11, 12), (12, 11), (12, 12), (13, 16), (16, 16)] {
        theatre.compare(seeds.next(), orders, 3000);
    }
}

/// The bytes of a control page.
#[derive(Clone)]
struct Page {
    bytes: Vec<u8>,
}

impl Page {
    /// From the observer's answer.
    fn parse(text: &str) -> Option<Self> {
        let digits = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
        let bytes: Vec<u8> = (0..text.len()).step_by(2).map(digits).collect::<Option<_>>()?;
        (bytes.len() == 4096).then_some(Self { bytes })
    }

    /// The references that rings of these orders need.
    fn references_mut(&mut self) -> &mut [[u8; 4]] {
        let count: usize = [16, 18].map(|at| (1 << self.bytes[at]) >> 12).iter().sum();
        let (words, _) = self.bytes[24..].as_chunks_mut();
        &mut words[..count]
    }

    /// The references of the left ring, and of the right one, from the first of either on; and the page without them.
    fn divided(&self) -> ([Vec<u32>; 2], Vec<u8>) {
        let mut rest = self.clone();
        let references: Vec<u32> =
            rest.references_mut().iter_mut().map(|gref| u32::from_ne_bytes(std::mem::take(gref))).collect();
        let (left, right) = references.split_at((1 << self.bytes[16]) >> 12);
        let from_first = |references: &[u32]| references.iter().map(|gref| gref - references[0]).collect();
        ([from_first(left), from_first(right)], rest.bytes)
    }
}

/// The page as each pair has it after the server set it up, and with its client.
#[test]
fn the_control_page_is_libxenvchans_byte_for_byte() {
    let mut theatre = Theatre::new("page");
    let mut seeds = seeds(3);
    for (left, right) in order_pairs() {
        let steps = Schedule::new(seeds.next(), (left, right), 0).steps;
        let Some(Step::Do(Who::Server, Call::Serve { left_min, right_min, .. }, _)) = steps.first() else {
            panic!("a schedule begins with its server");
        };
        let serve = Call::Serve { left_min: *left_min, right_min: *right_min, persist: false };
        let pages = theatre.0.each_mut().map(|stage| {
            assert_eq!(stage.server.ask(serve).unwrap(), format!("orders {left} {right}"));
            let page = |stage: &mut Stage| Page::parse(&stage.observer.ask(Call::Page).unwrap()).unwrap();
            let set_up = page(stage);
            assert_eq!(stage.client.ask(Call::Connect).unwrap(), format!("orders {left} {right}"));
            let connected = page(stage);
            for who in [Who::Client, Who::Server] {
                assert_eq!(stage.actor(who).ask(Call::Close).unwrap(), "done");
            }
            ([set_up, connected], rings)
        });
        let [(reference, reference_rings), others @ ..] = &pages;
        let shown = format!("{left_min}, {right_min}");
        let expected = |client: [u8; 4]| {
            let mut bytes = vec![0; 4096];
            (bytes[16], bytes[18]) = (left as u8, right as u8);
            bytes[20..24].copy_from_slice(&client);
            bytes
        };
        for (page, live_and_notify) in reference.iter().zip([[2, 1, 1, 0], [1, 1, 1, 1]]) {
            let (references, rest) = page.divided();
            // Both makes take the references of a ring in a row, but share the page before the rings or after them.
            for (references, order) in references.iter().zip([left, right]) {
                assert_eq!(references.len(), (1 << order) >> 12, "{shown}");
                assert!(references.iter().copied().eq(0..references.len() as u32), "{shown}");
            }
            assert_eq!(rest, expected(live_and_notify), "{shown}");
        }
        for ((pages, rings), pair) in others.iter().zip(&PAIRS[1..]) {
            for (page, reference) in pages.iter().zip(reference) {
                assert_eq!(page.divided(), reference.divided(), "{pair:?}, {shown}");
            }
            assert_eq!(rings, reference_rings, "{pair:?}, {shown}");
        }
    }
}

/// What cannot begin does not with either.
#[test]
fn what_libxenvchan_refuses_is_refused() {
    let mut theatre = Theatre::new("refused");
    for stage in &mut theatre.0 {
        for (left_min, right_min) in [((1 << 20) + 1, 0), (0, (1 << 20) + 1)] {
            let serve = Call::Serve { left_min, right_min, persist: false };
            assert_eq!(stage.server.ask(serve).unwrap(), "refused", "{:?}", stage.pair);
        }
        assert_eq!(stage.client.ask(Call::Connect).unwrap(), "refused", "{:?}: no server", stage.pair);
        let serve = Call::Serve { left_min: 0, right_min: 0, persist: false };
        assert_eq!(stage.server.ask(serve).unwrap(), "orders 10 11");
        assert_eq!(stage.client.ask(Call::Connect).unwrap(), "orders 10 11");
        assert_eq!(
            stage.observer.ask(Call::Connect).unwrap(),
            "refused",
            "{:?}: a second client",
            stage.pair
        );
        assert_eq!(stage.server.ask(Call::Close).unwrap(), "done");
        assert_eq!(stage.client.ask(Call::Close).unwrap(), "done");
        assert_eq!(stage.client.ask(Call::Connect).unwrap(), "refused", "{:?}: no longer", stage.pair);
    }
}
