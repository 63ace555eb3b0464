//! `vchan-cat`: standard input and output through a vchan.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use vchan::{Channel, ConnectOptions, Error, ListenOptions, Listener, Receiver, Sender};
use xen::DomId;
use xen::host::Host;

/// Standard input and output through a vchan to another Xen domain.
///
/// Without --send or --recv both directions are used at once, until standard input ends (and the peer has taken all of
/// it) or the peer closes, whichever is first: a vchan cannot be closed in one direction alone. For a file, use --send
/// at one end and --recv at the other.
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
    /// Say on standard error how much went through, and how fast
    #[arg(long)]
    stats: bool,
}

/// Bytes that are moved at once.
const PART: usize = 1 << 16;

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
    let mut moved = Moved::default();
    let result = converse(channel, mode, &mut moved);
    if mode.stats {
        moved.print(mode, begin.elapsed());
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(BROKEN_OFF, &error),
    }
}

/// One line on standard error. If that cannot be written, the status must do.
fn fail(status: u8, error: &dyn std::error::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "vchan-cat: {error}");
    ExitCode::from(status)
}

/// Bytes that went through.
#[derive(Debug, Default)]
struct Moved {
    sent: u64,
    received: u64,
}

impl Moved {
    /// A line for each direction that the mode has.
    fn print(&self, mode: Mode, time: Duration) {
        let seconds = time.as_secs_f64();
        for (unused, what, bytes) in [(mode.recv, "sent", self.sent), (mode.send, "received", self.received)]
        {
            if !unused {
                let rate = bytes as f64 / seconds / 1e6;
                let _ = writeln!(io::stderr(), "{what} {bytes} bytes in {seconds:.3} s, {rate:.1} MB/s");
            }
        }
    }
}

/// How a conversation broke off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Channel(#[from] Error),
    #[error("the peer left {0} bytes unread")]
    Unread(usize),
    #[error("standard input: {0}")]
    Input(io::Error),
    #[error("standard output: {0}")]
    Output(io::Error),
}

fn converse(channel: Channel, mode: Mode, moved: &mut Moved) -> std::result::Result<(), Broken> {
    let (mut sender, mut receiver) = channel.split()?;
    if mode.send {
        send_straight(&mut sender, &mut moved.sent)?;
        wait_until_read(&mut sender)?;
        Ok(sender.close()?)
    } else if mode.recv {
        receive(&mut receiver, &mut moved.received)?;
        Ok(receiver.close()?)
    } else {
        both(sender, receiver, moved)
    }
}

/// Both directions at once.
fn both(sender: Sender, mut receiver: Receiver, moved: &mut Moved) -> std::result::Result<(), Broken> {
    // The sending thread may be waiting for standard input when the peer closes. It cannot be woken, so it is left
    // behind, and what it has to say stands here. It never holds the lock while it reads.
    static SENDING: Mutex<Option<Sending>> = Mutex::new(None);
    let lock = || SENDING.lock().unwrap_or_else(PoisonError::into_inner);
    *lock() = Some(Sending { sender: Some(sender), sent: 0, result: Ok(()) });

    thread::spawn(move || {
        let mut sent = 0;
        let result = send(
            |bytes| {
                let mut sending = lock();
                let Some(Sending { sender: Some(sender), sent, .. }) = sending.as_mut() else {
                    return Err(Error::ClosedHere.into());
                };
                all_sent(sender, bytes)?;
                *sent += bytes.len() as u64;
                Ok(())
            },
            &mut sent,
        );
        let mut sending = lock();
        let Some(sending) = sending.as_mut() else { return };
        let Some(mut sender) = sending.sender.take() else { return };
        let finished = result.and_then(|()| wait_until_read(&mut sender));
        // However it went: closing wakes the receiving thread.
        let closed = sender.close();
        sending.result = finished.and(closed.map_err(Broken::from));
    });

    let received = receive(&mut receiver, &mut moved.received);
    let sending = lock().take();
    let Some(Sending { sender, sent, result }) = sending else { return received };
    moved.sent = sent;
    match received {
        // The peer closed first, so there is nothing to wait for: it has taken all, or it has not.
        Ok(()) => {
            let taken = sender.map_or(result, |mut sender| wait_until_read(&mut sender));
            let closed = receiver.close();
            taken.and(closed.map_err(Broken::from))
        }
        // The sending thread has closed.
        Err(Broken::Channel(Error::ClosedHere)) => result,
        Err(error) => Err(error),
    }
}

/// The sending direction of a conversation in both.
struct Sending {
    /// None: it has ended, with this result.
    sender: Option<Sender>,
    sent: u64,
    result: std::result::Result<(), Broken>,
}

fn all_sent(sender: &mut Sender, bytes: &[u8]) -> std::result::Result<(), Broken> {
    match sender.send_all(bytes) {
        Ok(()) => Ok(()),
        Err(partial) if matches!(partial.error, Error::Closed) => {
            Err(Broken::Unread(sender.unread()? + bytes.len() - partial.done))
        }
        Err(partial) => Err(partial.error.into()),
    }
}

fn wait_until_read(sender: &mut Sender) -> std::result::Result<(), Broken> {
    match sender.wait_until_read() {
        Err(Error::Closed) => Err(Broken::Unread(sender.unread()?)),
        result => Ok(result?),
    }
}

/// Sends standard input until it ends: straight into the ring.
fn send_straight(sender: &mut Sender, sent: &mut u64) -> std::result::Result<(), Broken> {
    let input = io::stdin();
    loop {
        match sender.read_from_fd(&input, usize::MAX) {
            Ok(0) => return Ok(()),
            Ok(n) => *sent += n as u64,
            Err(Error::Closed) => return Err(Broken::Unread(sender.unread()?)),
            Err(Error::System { call: "readv", source }) => return Err(Broken::Input(source)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Hands standard input to `sink` until it ends.
fn send(
    mut sink: impl FnMut(&[u8]) -> std::result::Result<(), Broken>,
    sent: &mut u64,
) -> std::result::Result<(), Broken> {
    // The descriptor itself: the handle of the standard library copies everything once more.
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(Broken::Input)?);
    let mut part = vec![0; PART];
    loop {
        match input.read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                sink(&part[..n])?;
                *sent += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Broken::Input(error)),
        }
    }
}

/// Writes what comes to standard output until the peer closes.
fn receive(receiver: &mut Receiver, received: &mut u64) -> std::result::Result<(), Broken> {
    // The descriptor itself: the bytes go there straight from the ring.
    let output = io::stdout();
    loop {
        match receiver.write_to_fd(&output, usize::MAX) {
            Ok(0) => return Ok(()),
            Ok(n) => *received += n as u64,
            Err(Error::System { call: "writev", source }) => return Err(Broken::Output(source)),
            Err(error) => return Err(error.into()),
        }
    }
}
