//! One end of a conversation that checks every byte; the other end is this program, or `tests/peer/peer.c`, which says
//! and understands the same over libxenvchan.
//!
//! ```text
//! vchan-peer ROLE DOMID PATH LEFT_MIN RIGHT_MIN BYTES SEED [--progress]
//! ```
//! | role | what it does |
//! |---|---|
//! | `server` | receives BYTES, sends BYTES (of SEED + 1), receives the client's word, gives its own, sees the end |
//! | `client` | the other side of that |
//! | `returning` | a client that sees its first server go, and comes back to its successor |
//! | `drain` | a server that receives until the end, which must come after BYTES |
//! | `burst` | a client that sends BYTES and leaves at once |
//! | `impatient` | the same (only this program), but it waits no longer than 20 ms at a time, and goes on after that |
//!
//! The bytes of a seed are those of SplitMix64's numbers, each as 8 bytes, the lowest first. The parts that are sent have
//! lengths of their own: see `lengths`. A client ignores the minimums. Prints one line, `ok sent=N received=N left_order=A
//! right_order=B`, and exits with 0 only if every byte was as it had to be; otherwise the line says what was not. With
//! `--progress` it says on standard error when a server is `listening`, and when it is `connected`.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;
use vchan::{Channel, ConnectOptions, Connector, Error, ListenOptions, Listener, Ring};
use xen::DomId;
use xen::host::Host;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: vchan-peer server|client|returning|drain|burst|impatient DOMID PATH LEFT_MIN RIGHT_MIN BYTES SEED [--progress]";
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The client has everything.
const ACKNOWLEDGE: u8 = 0x06;
/// The server knows that.
const FAREWELL: u8 = 0x04;
/// Bytes that are received at once.
const PART: usize = 50_000;

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// The bytes of a seed, from the first on.
struct Bytes {
    numbers: Numbers,
    left: std::iter::Take<std::array::IntoIter<u8, 8>>,
}

impl Bytes {
    fn of(seed: u64) -> Self {
        Self { numbers: Numbers(seed), left: [0; 8].into_iter().take(0) }
    }
}

impl Iterator for Bytes {
    type Item = u8;
    fn next(&mut self) -> Option<u8> {
        self.left.next().or_else(|| {
            self.left = self.numbers.next().to_le_bytes().into_iter().take(8);
            self.left.next()
        })
    }
}

/// The lengths of the parts: of every size up to 64 KiB, each power of 2 as likely as the next.
fn lengths(seed: u64) -> impl Iterator<Item = usize> {
    let mut numbers = Numbers(!seed);
    std::iter::repeat_with(move || {
        let power = numbers.next() % 17;
        1 + (numbers.next() % (1 << power)) as usize
    })
}

fn send(channel: &mut Channel, bytes: usize, seed: u64) -> Outcome<()> {
    let mut source = Bytes::of(seed);
    let mut left = bytes;
    for length in lengths(seed) {
        let part: Vec<u8> = source.by_ref().take(length.min(left)).collect();
        channel.send_all(&part)?;
        left -= part.len();
        if left == 0 {
            break;
        }
    }
    Ok(())
}

/// Sends although the peer takes nothing for longer than the timeout, of which it says so.
fn send_impatiently(
    channel: &mut Channel,
    bytes: usize,
    seed: u64,
    said: impl Fn() -> io::Result<()>,
) -> Outcome<()> {
    channel.set_timeout(Some(Duration::from_millis(20)));
    let all: Vec<u8> = Bytes::of(seed).take(bytes).collect();
    let mut left = &all[..];
    while !left.is_empty() {
        match channel.send(left) {
            Ok(n) => left = &left[n..],
            Err(Error::TimedOut(_)) => said()?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives at most so many bytes, up to the end if that is sooner; returns how many.
fn receive(channel: &mut Channel, bytes: usize, seed: u64) -> Outcome<usize> {
    let mut expected = Bytes::of(seed);
    let mut part = vec![0; PART];
    let mut done = 0;
    while done < bytes {
        let wanted = part.len().min(bytes - done);
        let n = channel.recv(&mut part[..wanted])?;
        if n == 0 {
            break;
        }
        for (i, (got, expected)) in part[..n].iter().zip(&mut expected).enumerate() {
            if *got != expected {
                return Err(format!("byte {} is {got:#04x}, not {expected:#04x}", done + i).into());
            }
        }
        done += n;
    }
    Ok(done)
}

fn receive_all(channel: &mut Channel, bytes: usize, seed: u64) -> Outcome<()> {
    match receive(channel, bytes, seed)? {
        n if n == bytes => Ok(()),
        n => Err(format!("the end came after {n} of {bytes} bytes").into()),
    }
}

fn receive_word(channel: &mut Channel, word: u8) -> Outcome<()> {
    let mut got = [0];
    channel.recv_exact(&mut got)?;
    if got[0] == word { Ok(()) } else { Err(format!("the word is {:#04x}, not {word:#04x}", got[0]).into()) }
}

fn see_end(channel: &mut Channel) -> Outcome<()> {
    match channel.recv(&mut [0; 100])? {
        0 => Ok(()),
        n => Err(format!("{n} bytes more than there should be").into()),
    }
}

fn run() -> Outcome<String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (progress, args) = match args.split_last() {
        Some((last, args)) if last == "--progress" => (true, args),
        _ => (false, &args[..]),
    };
    let [role, domid, path, left_min, right_min, bytes, seed] = args else {
        return Err(USAGE.into());
    };
    let say = |what| if progress { writeln!(io::stderr(), "{what}") } else { Ok(()) };
    let (domid, bytes, seed): (_, usize, u64) = (DomId(domid.parse()?), bytes.parse()?, seed.parse()?);
    let serve = || -> Outcome<Channel> {
        let (read_min, write_min) = (left_min.parse()?, right_min.parse()?);
        let options = ListenOptions { read_min, write_min, ..ListenOptions::default() };
        let listener = Listener::open(&Host, domid, path, &options)?;
        say("listening")?;
        listener.wait(Some(PATIENCE))?;
        Ok(listener.into_channel())
    };
    let connector = || {
        let options = ConnectOptions { wait: Some(PATIENCE), ..ConnectOptions::default() };
        Connector::new(&Host, domid, path, &options)
    };
    let mut channel = match role.as_str() {
        "server" | "drain" => serve()?,
        "client" | "burst" | "impatient" => connector()?.connect()?,
        "returning" => {
            let connector = connector()?;
            let mut first = connector.connect()?;
            say("met the first server")?;
            see_end(&mut first)?;
            drop(first);
            say("lost the first server")?;
            connector.connect()?
        }
        _ => return Err(format!("{role} is no role").into()),
    };
    channel.set_timeout(Some(PATIENCE));
    say("connected")?;

    let (mut sent, mut received) = (bytes, bytes);
    match role.as_str() {
        "server" => {
            receive_all(&mut channel, bytes, seed)?;
            send(&mut channel, bytes, seed.wrapping_add(1))?;
            receive_word(&mut channel, ACKNOWLEDGE)?;
            channel.send_all(&[FAREWELL])?;
            see_end(&mut channel)?;
        }
        "client" | "returning" => {
            send(&mut channel, bytes, seed)?;
            receive_all(&mut channel, bytes, seed.wrapping_add(1))?;
            channel.send_all(&[ACKNOWLEDGE])?;
            receive_word(&mut channel, FAREWELL)?;
        }
        "drain" => {
            sent = 0;
            receive_all(&mut channel, bytes, seed)?;
            see_end(&mut channel)?;
        }
        "impatient" => {
            received = 0;
            send_impatiently(&mut channel, bytes, seed, || say("timed out"))?;
        }
        _ => {
            received = 0;
            send(&mut channel, bytes, seed)?;
        }
    }
    let orders = channel.orders();
    channel.close()?;
    let (left, right) = (orders.order(Ring::Left), orders.order(Ring::Right));
    Ok(format!("ok sent={sent} received={received} left_order={left} right_order={right}"))
}

fn main() -> ExitCode {
    let (line, status) = match run() {
        Ok(line) => (line, ExitCode::SUCCESS),
        Err(error) => (error.to_string(), ExitCode::FAILURE),
    };
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}
