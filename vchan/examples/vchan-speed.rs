//! One end of a measurement; the C program that understands the same is `xen-sim/tests/c/peer.c`.
//!
//! ```text
//! vchan-speed server DOMID PATH LEFT_MIN RIGHT_MIN COMMAND…
//! vchan-speed client DOMID PATH COMMAND…
//! ```
//! | command, the same for both ends | what it does |
//! |---|---|
//! | `pump BYTES CHUNK` | the client sends BYTES in writes of CHUNK; the server prints `seconds` and the time it took, both print `notifications` and how many they sent |
//! | `place BYTES CHUNK` | as `pump`; the client makes the bytes in the ring, and the server looks at them there |
//! | `ping COUNT BYTES` | the client prints `seconds` and the mean time of a round trip of BYTES |
//!
//! The server prints `ready` when a client can connect, both print `connected ORDER_LEFT ORDER_RIGHT`.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::time::Instant;
use vchan::{Channel, ConnectOptions, ListenOptions, Listener, Ring, VolatileSlice};
use xen::DomId;
use xen::host::Host;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn say(line: &str) -> Outcome<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}

fn pump(channel: &mut Channel, server: bool, total: usize, chunk: usize) -> Outcome<()> {
    let mut buffer = vec![0; chunk];
    let mut go = [0];
    if server {
        channel.send_all(&go)?;
        channel.recv_exact(&mut buffer)?;
        let start = Instant::now();
        let mut left = total;
        while left > 0 {
            let part = left.min(chunk);
            left -= channel.recv(&mut buffer[..part])?;
        }
        say(&format!("seconds {:.9}", start.elapsed().as_secs_f64()))?;
        channel.send_all(&go)?;
    } else {
        channel.recv_exact(&mut go)?;
        channel.send_all(&buffer)?;
        let mut left = total;
        while left > 0 {
            let part = left.min(chunk);
            channel.send_all(&buffer[..part])?;
            left -= part;
        }
        channel.recv_exact(&mut go)?;
    }
    say(&format!("notifications {}", channel.metrics().notifications_sent))
}

/// Words that differ from chunk to chunk, made in the ring; and a sum of them all, which both ends must agree on.
fn place(channel: &mut Channel, server: bool, total: usize, chunk: usize) -> Outcome<()> {
    let mut sum = 0_u64;
    let mut done = 0;
    if server {
        channel.send_all(&[0])?;
        let start = Instant::now();
        while done < total {
            let there = channel.peek(8)?;
            let n = there.len().min(chunk) / 8 * 8;
            let [first, second] = there.segments();
            let len = first.len().min(n);
            sum = sum.wrapping_add(sum_of(first.split_at(len).0));
            sum = sum.wrapping_add(sum_of(second.split_at(n - len).0));
            there.consume(n);
            done += n;
        }
        say(&format!("seconds {:.9}", start.elapsed().as_secs_f64()))?;
        channel.send_all(&sum.to_ne_bytes())?;
    } else {
        channel.recv_exact(&mut [0])?;
        let mut value = 0_u8;
        while done < total {
            let n = chunk.min(total - done);
            let mut room = channel.reserve(n)?;
            let [mut first, mut second] = room.segments();
            let len = first.len().min(n);
            first.fill(0, len, value);
            second.fill(0, n - len, value);
            room.commit(n)?;
            sum = sum.wrapping_add(u64::from_ne_bytes([value; 8]).wrapping_mul(n as u64 / 8));
            value = value.wrapping_add(1);
            done += n;
        }
        let mut theirs = [0; 8];
        channel.recv_exact(&mut theirs)?;
        if u64::from_ne_bytes(theirs) != sum {
            return Err("what was looked at is not what was made".into());
        }
    }
    say(&format!("notifications {}", channel.metrics().notifications_sent))
}

/// The sum of all words.
fn sum_of(bytes: VolatileSlice<'_>) -> u64 {
    let (whole, rest) = bytes.split_at(bytes.len() / 64 * 64);
    let mut sums = [0_u64; 8];
    for line in whole.lines() {
        for (sum, word) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(word);
        }
    }
    let rest = (0..rest.len() / 8).map(|at| u64::from_ne_bytes(rest.array(8 * at)));
    sums.into_iter().chain(rest).fold(0, u64::wrapping_add)
}

fn ping(channel: &mut Channel, server: bool, count: usize, size: usize) -> Outcome<()> {
    let mut buffer = vec![0; size];
    let start = Instant::now();
    for _ in 0..count {
        if server {
            channel.recv_exact(&mut buffer)?;
            channel.send_all(&buffer)?;
        } else {
            channel.send_all(&buffer)?;
            channel.recv_exact(&mut buffer)?;
        }
    }
    if !server {
        say(&format!("seconds {:.9}", start.elapsed().as_secs_f64() / count as f64))?;
    }
    Ok(())
}

fn main() -> Outcome<()> {
    const USAGE: &str =
        "usage: vchan-speed (server DOMID PATH LEFT_MIN RIGHT_MIN | client DOMID PATH) COMMAND A B";
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (server, mut channel, rest) = match words.as_slice() {
        ["server", domid, path, left, right, rest @ ..] => {
            let options = ListenOptions {
                read_min: left.parse()?,
                write_min: right.parse()?,
                ..ListenOptions::default()
            };
            let listener = Listener::open(&Host, DomId(domid.parse()?), path, &options)?;
            say("ready")?;
            (true, listener.accept()?, rest)
        }
        ["client", domid, path, rest @ ..] => {
            (false, Channel::connect(&Host, DomId(domid.parse()?), path, &ConnectOptions::default())?, rest)
        }
        _ => return Err(USAGE.into()),
    };
    let orders = channel.orders();
    say(&format!("connected {} {}", orders.order(Ring::Left), orders.order(Ring::Right)))?;
    match *rest {
        ["pump", total, chunk] => pump(&mut channel, server, total.parse()?, chunk.parse()?),
        ["place", total, chunk] => place(&mut channel, server, total.parse()?, chunk.parse()?),
        ["ping", count, size] => ping(&mut channel, server, count.parse()?, size.parse()?),
        _ => Err(USAGE.into()),
    }
}
