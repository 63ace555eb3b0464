//! `vchan-cat`: standard input and output through a vchan.
#![forbid(unsafe_code)]

use clap::Parser;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vchan::programs::{CatArguments, End, Mode};
use vchan::{Channel, ConnectOptions, ListenOptions, Listener, Pump, PumpError};
use xen::DomId;
use xen::host::Host;

/// Nothing was said because no channel could be had.
const NOT_BEGUN: u8 = 2;
/// The conversation ended too early.
const BROKEN_OFF: u8 = 1;

fn main() -> ExitCode {
    let arguments = CatArguments::parse();
    let (mode, channel) = match arguments.end {
        End::Listen { domid, path, read_min, write_min, mode } => {
            let options = ListenOptions { read_min, write_min, ..ListenOptions::default() };
            let listener = Listener::open(&Host, DomId(domid), &path, &options);
            (mode, listener.and_then(Listener::accept))
        }
        End::Connect { domid, path, wait, mode } => {
            let wait = wait.map(Duration::from_secs);
            let options = ConnectOptions { wait, ..ConnectOptions::default() };
            (mode, Channel::connect(&Host, DomId(domid), &path, &options))
        }
    };
    let channel = match channel {
        Ok(channel) => channel,
        Err(error) => return fail(NOT_BEGUN, &error),
    };
    let begin = Instant::now();
    let pump = Pump::new(channel).half_close(mode.half_close);
    let pumped = match mode {
        Mode { send: true, .. } => pump.send(io::stdin()),
        Mode { recv: true, .. } => pump.receive(io::stdout()),
        _ => pump.run(io::stdin(), io::stdout()),
    };
    if mode.stats {
        let seconds = begin.elapsed().as_secs_f64();
        for (unused, what, bytes) in
            [(mode.recv, "sent", pumped.sent), (mode.send, "received", pumped.received)]
        {
            if !unused {
                let rate = bytes as f64 / seconds / 1e6;
                let _ = writeln!(io::stderr(), "{what} {bytes} bytes in {seconds:.3} s, {rate:.1} MB/s");
            }
        }
    }
    match pumped.result {
        Ok(()) => ExitCode::SUCCESS,
        // "standard input", "standard output"
        Err(error @ (PumpError::Input(_) | PumpError::Output(_))) => {
            fail(BROKEN_OFF, &format!("standard {error}"))
        }
        Err(error) => fail(BROKEN_OFF, &error),
    }
}

/// One line on standard error. If that cannot be written, the status must do.
fn fail(status: u8, error: &dyn Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "vchan-cat: {error}");
    ExitCode::from(status)
}
