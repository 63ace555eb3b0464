//! `vchan-cat`: standard input and output through a vchan.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vchan::{Channel, ConnectOptions, ListenOptions, Listener, Pump, PumpError};
use xen::DomId;
use xen::host::Host;

/// Standard input and output through a vchan to another Xen domain.
///
/// Without --send or --recv both directions are used at once, until standard input ends (and the peer has taken all of
/// it) or the peer closes, whichever is first: a vchan cannot be closed in one direction alone. For a file, use --send
/// at one end and --recv at the other; for a protocol that says itself when it is over, --half-close.
///
/// Exit status: 0 all that was to be said was said and taken; 1 the conversation broke off; 2 it did not begin.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    end: End,
}

#[derive(Debug, Subcommand)]
enum End {
    /// Offer a vchan to a domain, and wait for it
    Listen {
        /// The domain that may connect
        domid: u16,
        /// Where in xenstore: absolute, or below this domain's home
        path: String,
        /// Bytes that the ring towards this end holds at least (up to 1 MiB)
        #[arg(long, value_name = "BYTES", default_value_t = 65_536)]
        read_min: usize,
        /// Bytes that the ring from this end holds at least (up to 1 MiB)
        #[arg(long, value_name = "BYTES", default_value_t = 65_536)]
        write_min: usize,
        #[command(flatten)]
        mode: Mode,
    },
    /// Connect to a vchan that a domain offers
    Connect {
        /// The domain that offers it
        domid: u16,
        /// Where in xenstore: absolute, or below that domain's home
        path: String,
        /// How long to wait for the other end to come into being
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u64>,
        #[command(flatten)]
        mode: Mode,
    },
}

#[derive(Clone, Copy, Debug, Args)]
struct Mode {
    /// Send standard input, until it ends and the peer has taken all
    #[arg(long, conflicts_with = "recv")]
    send: bool,
    /// Write what the peer sends to standard output, until it closes
    #[arg(long)]
    recv: bool,
    /// When standard input has ended, go on receiving until the peer closes
    #[arg(long, conflicts_with_all = ["send", "recv"])]
    half_close: bool,
    /// Say on standard error how much went through, and how fast
    #[arg(long)]
    stats: bool,
}

/// Nothing was said because no channel could be had.
const NOT_BEGUN: u8 = 2;
/// The conversation ended too early.
const BROKEN_OFF: u8 = 1;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
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
