//! The testbed by hand: `run` some checks, show the `demo`, `assemble` the cache, or get a `shell` in dom0.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::suite::{Testbed, Verdict, log};
use testbed::{Result, checks};

/// Real Xen in QEMU, for tests and for the demo.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the checks inside dom0.
    Run {
        /// Only the checks whose name matches, any of them if given several times; `*` stands for anything.
        #[arg(long, default_value = "*")]
        check: Vec<String>,
        /// Leave the logs, and say where they are.
        #[arg(long)]
        keep: bool,
    },
    /// Two qubes and three containers of one Nix file, and data between qubes: the whole story, with timings.
    Demo,
    /// Fetch and build all that a boot needs, and boot nothing.
    Assemble,
    /// A shell in dom0, on this terminal.
    Shell,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            log(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<bool> {
    match verb {
        Verb::Run { check, keep } => {
            let mut selected = checks::all()?;
            selected.retain(|known| check.iter().any(|check| checks::matches(check, &known.name)));
            if selected.is_empty() {
                log(&format!("no check is named '{}'", check.join("' or '")));
                return Ok(false);
            }
            let mut testbed = Testbed::assemble()?;
            if keep {
                log(&format!("the logs stay in {}", testbed.keep().display()));
            }
            let (mut passed, mut failed) = (0, 0);
            testbed.run(&selected, |check, verdict| match verdict {
                Verdict::Passed { first_failure: None, .. } => passed += 1,
                Verdict::Passed { first_failure: Some(reason), .. } => {
                    log(&format!("{} passed the second time; the first: {reason}", check.name));
                    passed += 1;
                }
                Verdict::Failed { reasons: [first, second] } => {
                    log(&format!("RED {}: {first}; and again: {second}", check.name));
                    failed += 1;
                }
            })?;
            log(&format!("{passed} passed, {failed} failed"));
            Ok(failed == 0)
        }
        Verb::Demo if Testbed::is_dom0() => Testbed::assemble_for_this_dom0()?.demo_here(),
        Verb::Demo => Testbed::assemble()?.demo(),
        Verb::Assemble => Testbed::assemble().map(|_| true),
        Verb::Shell => Testbed::assemble()?.shell().map(|()| true),
    }
}
