//! What an apply tells: lines on stdout of what is done and, where stderr is a terminal, below them a line for each thing that
//! is being done, with the time that it has taken so far, and a bar of all of it.

use crate::bar::style;
use crate::command::MannerOptions;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How often the times are drawn anew.
const TICK: Duration = Duration::from_millis(100);

const ALL: &str = "  [{bar:30}] {pos} of {len} done, {elapsed}";
const ONE: &str = "  {spinner} {msg} ({elapsed})";

pub(crate) struct Screen {
    /// Nothing is told at all.
    mute: bool,
    bars: MultiProgress,
    all: Mutex<Option<ProgressBar>>,
    going_on: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Screen {
    /// One that tells, unless it is to be mute.
    pub(crate) fn new(mute: bool) -> Self {
        let target = if mute { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self::on(target, mute)
    }

    /// One for a command that is asked to be so.
    pub(crate) fn of(manner: &MannerOptions) -> Self {
        Self::new(manner.quiet || manner.json)
    }

    fn on(target: ProgressDrawTarget, mute: bool) -> Self {
        Self {
            mute,
            bars: MultiProgress::with_draw_target(target),
            all: Mutex::new(None),
            going_on: Mutex::default(),
        }
    }

    /// Whether somebody sees what is going on, and need not be told of it by lines.
    pub(crate) fn is_live(&self) -> bool {
        !self.bars.is_hidden()
    }

    /// A line.
    pub(crate) fn say(&self, what: fmt::Arguments<'_>) {
        if !self.mute {
            // Whoever reads it may have gone: no reason to stop half way.
            self.bars.suspend(|| drop(writeln!(io::stdout(), "{what}")));
        }
    }

    /// So many things are to be done from now on.
    pub(crate) fn expect(&self, count: usize) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = all.take() {
            earlier.finish_and_clear();
        }
        if count > 1 {
            let style = style(ALL).progress_chars("=> ");
            let bar = self.bars.add(ProgressBar::new(count as u64).with_style(style));
            bar.enable_steady_tick(TICK);
            *all = Some(bar);
        }
    }

    /// One of them begins.
    pub(crate) fn begin(&self, what: String) {
        let bar = ProgressBar::new_spinner().with_style(style(ONE)).with_message(what.clone());
        let bar = self.bars.insert(0, bar);
        bar.enable_steady_tick(TICK);
        self.going_on.lock().unwrap_or_else(PoisonError::into_inner).insert(what, bar);
    }

    /// It is over.
    pub(crate) fn end(&self, what: &str) {
        if let Some(bar) = self.going_on.lock().unwrap_or_else(PoisonError::into_inner).remove(what) {
            bar.finish_and_clear();
            self.bars.remove(&bar);
        }
        if let Some(all) = &*self.all.lock().unwrap_or_else(PoisonError::into_inner) {
            all.inc(1);
            if all.length().is_some_and(|count| all.position() >= count) {
                all.finish_and_clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::{InMemoryTerm, ProgressStyle};

    #[test]
    fn indicatif_understands_the_templates() {
        for template in [ALL, ONE] {
            ProgressStyle::with_template(template).unwrap();
        }
    }

    #[test]
    fn what_goes_on_is_on_the_terminal_until_it_is_over() {
        let terminal = InMemoryTerm::new(10, 80);
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let screen = Screen::on(target, false);
        assert!(screen.is_live());
        let shows = |wanted: &str| {
            let mut tries = 0;
            while !terminal.contents().contains(wanted) {
                tries += 1;
                assert!(tries < 200, "{wanted:?} is not in {:?}", terminal.contents());
                std::thread::sleep(TICK / 4);
            }
        };
        screen.expect(2);
        screen.begin("create work".to_owned());
        screen.begin("create vault".to_owned());
        shows("create work (0s)");
        shows("create vault (");
        shows("0 of 2 done");
        screen.end("create work");
        shows("1 of 2 done");
        assert!(!terminal.contents().contains("create work"));
        screen.end("create vault");
        assert_eq!(terminal.contents(), "");
    }

    #[test]
    fn whoever_is_mute_shows_nothing() {
        let screen = Screen::new(true);
        assert!(!screen.is_live());
        screen.expect(2);
        screen.begin("create work".to_owned());
        screen.end("create work");
        assert!(!screen.is_live());
    }
}
