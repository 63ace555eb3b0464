//! One end of a measurement; the C program that understands the same is `xen-sim/tests/c/peer.c`.
//!
//! ```text
//! vchan-speed server DOMID PATH LEFT_MIN RIGHT_MIN COMMAND…
//! vchan-speed client DOMID PATH COMMAND…
//! ```
//! | command, the same for both ends | what it does |
//! |---|---|
//! | `pump BYTES CHUNK` | the client sends BYTES in writes of CHUNK; the server prints the time it took, in seconds |
//! | `ping COUNT BYTES` | the client prints the mean time of a round trip of BYTES, in seconds |
//!
//! The server prints `ready` when a client can connect, both print `connected ORDER_LEFT ORDER_RIGHT`.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::time::Instant;
use vchan::{Channel, ConnectOptions, ListenOptions, Listener, Ring};
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
        say(&format!("{:.9}", start.elapsed().as_secs_f64()))?;
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
    Ok(())
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
        say(&format!("{:.9}", start.elapsed().as_secs_f64() / count as f64))?;
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
        ["ping", count, size] => ping(&mut channel, server, count.parse()?, size.parse()?),
        _ => Err(USAGE.into()),
    }
}
