//! Containers of qubes, by their qubes' own word. They are asked in the background, since a qube may take its time.

use nexus::client::containers::Container;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How old an answer may be before it is asked again: each is a call, and has its line in the log of calls.
const AGE: Duration = Duration::from_secs(5);

/// Asks these qubes, and waits for them; one that does not say is left out.
pub type Ask = dyn Fn(Vec<String>) -> Vec<(String, Vec<Container>)> + Send + Sync;

/// What qubes said last, by name.
pub type Said = BTreeMap<String, Vec<Container>>;

#[derive(Default)]
struct Known {
    said: Said,
    /// When the last answer came.
    at: Option<Instant>,
    asking: bool,
}

/// Asks qubes again and again.
pub struct Asker {
    ask: Arc<Ask>,
    known: Arc<Mutex<Known>>,
}

impl Asker {
    /// One that asks so.
    #[must_use]
    pub fn new(ask: impl Fn(Vec<String>) -> Vec<(String, Vec<Container>)> + Send + Sync + 'static) -> Self {
        Self { ask: Arc::new(ask), known: Arc::default() }
    }

    /// What they say, which is waited for.
    #[must_use]
    pub fn now(&self, qubes: Vec<String>) -> Said {
        (self.ask)(qubes).into_iter().collect()
    }

    /// What they said last. If that is some time ago, they are asked.
    #[must_use]
    pub fn last(&self, qubes: Vec<String>) -> Said {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.asking && known.at.is_none_or(|at| at.elapsed() >= AGE) {
            let (ask, answer) = (self.ask.clone(), self.known.clone());
            let asks = move || {
                let said = ask(qubes).into_iter().collect();
                *answer.lock().unwrap_or_else(PoisonError::into_inner) =
                    Known { said, at: Some(Instant::now()), asking: false };
            };
            // Where no thread can be had, it is tried again.
            known.asking = thread::Builder::new().spawn(asks).is_ok();
        }
        known.said.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn an_answer_is_there_when_it_has_come() {
        let (answer, answers) = mpsc::channel();
        let answers = Mutex::new(answers);
        let asker = Asker::new(move |qubes| {
            answers.lock().unwrap().recv().unwrap();
            qubes.into_iter().map(|qube| (qube, Vec::new())).collect()
        });
        let work = || vec!["work".to_owned()];
        assert!(asker.last(work()).is_empty());
        assert!(asker.last(work()).is_empty(), "it is not asked twice");
        answer.send(()).unwrap();
        let begun = Instant::now();
        while asker.last(work()).is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(20), "no answer");
            thread::yield_now();
        }
        answer.send(()).unwrap();
        assert!(asker.now(work()).contains_key("work"));
    }
}
