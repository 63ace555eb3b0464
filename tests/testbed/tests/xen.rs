//! The checks that need real Xen, each as one test. They share a few boots of QEMU, which start when the first
//! verdict is asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use testbed::checks::{self, Check};
use testbed::suite::{Testbed, Verdict, log};

/// The verdicts so far, and why there will be no more of them.
#[derive(Default)]
struct Verdicts {
    known: BTreeMap<String, Verdict>,
    ended: Option<String>,
}

#[derive(Default)]
struct Board {
    verdicts: Mutex<Verdicts>,
    changed: Condvar,
}

impl Board {
    fn update(&self, change: impl FnOnce(&mut Verdicts)) {
        change(&mut self.verdicts.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits for the verdict on `name`.
    fn verdict(&self, name: &str) -> Result<(), Failed> {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match verdicts.known.get(name) {
                Some(Verdict::Passed { first_failure, .. }) => {
                    if let Some(reason) = first_failure {
                        log(&format!("{name} passed the second time; the first: {reason}"));
                    }
                    return Ok(());
                }
                Some(Verdict::Failed { reasons: [first, second] }) => {
                    return Err(format!("first run: {first}\nsecond run: {second}").into());
                }
                None => {}
            }
            if let Some(reason) = &verdicts.ended {
                return Err(format!("no verdict: {reason}").into());
            }
            verdicts = self.changed.wait(verdicts).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends the waiting for verdicts when the boots are over, however they ended.
struct Ending(Arc<Board>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.update(|verdicts| {
            verdicts.ended.get_or_insert_with(|| "the testbed stopped before this check".to_owned());
        });
    }
}

fn run(checks: &[Check], board: &Arc<Board>) {
    let ending = Ending(Arc::clone(board));
    let report = |check: &Check, verdict| {
        board.update(|verdicts| {
            verdicts.known.insert(check.name.clone(), verdict);
        });
    };
    if let Err(error) = Testbed::assemble().and_then(|testbed| testbed.run(checks, report)) {
        board.update(|verdicts| verdicts.ended = Some(error.to_string()));
    }
    drop(ending);
}

/// Whether the command line selects `name`, by the rules of libtest.
fn selected(arguments: &Arguments, name: &str) -> bool {
    let fits = |pattern: &String| if arguments.exact { pattern == name } else { name.contains(pattern) };
    arguments.filter.as_ref().is_none_or(fits) && !arguments.skip.iter().any(fits)
}

fn main() {
    let arguments = Arguments::from_args();
    let mut checks = match checks::all() {
        Ok(checks) => checks,
        Err(error) => {
            log(&error.to_string());
            std::process::exit(1);
        }
    };
    checks.retain(|check| selected(&arguments, &check.name));

    let board = Arc::new(Board::default());
    let trials = checks.iter().map(|check| {
        let (board, name) = (Arc::clone(&board), check.name.clone());
        Trial::test(check.name.clone(), move || board.verdict(&name))
            .with_ignored_flag(check.ignored.is_some())
    });
    let trials = trials.collect();
    if !arguments.include_ignored {
        checks.retain(|check| {
            let ignored = check.ignored.is_some();
            let wanted = ignored == arguments.ignored;
            if let (Some(reason), false) = (&check.ignored, wanted) {
                log(&format!("NOT RUN: {}: {reason}", check.name));
            }
            wanted
        });
    }
    if !arguments.list && !checks.is_empty() {
        let board = Arc::clone(&board);
        std::thread::spawn(move || run(&checks, &board));
    }
    libtest_mimic::run(&arguments, trials).exit();
}
