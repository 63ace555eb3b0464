//! An end of a channel that does what it is told; the other make of it is `tests/peer/scripted.c`, over libxenvchan, which
//! understands and answers the same: its first lines list the commands. The two are what the differential test
//! compares.
//!
//! What libxenvchan has no word for: `too-large` are bytes that the ring never holds at once.
#![forbid(unsafe_code)]

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, BufRead, Write};
use vchan::{Channel, ConnectOptions, Error, ListenOptions, Listener, Ring, State};
use xen::DomId;
use xen::host::Host;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Longer than any event takes.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// The first bytes of a seed: those of SplitMix64's numbers, the lowest first.
fn bytes_of(count: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; count];
    for part in bytes.chunks_mut(8) {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        part.copy_from_slice(&(z ^ z >> 31).to_le_bytes()[..part.len()]);
    }
    bytes
}

/// Each number of 8 bytes (the last one filled up with zeros) and each bit of it counts, and where it stands.
fn sum_of(bytes: &[u8]) -> u64 {
    let mut sum = bytes.len() as u64;
    for part in bytes.chunks(8) {
        let mut number = [0; 8];
        number[..part.len()].copy_from_slice(part);
        sum = (sum ^ u64::from_le_bytes(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^= sum >> 29;
    }
    sum
}

/// A channel, and whether its operations wait: a blocking `write` of libxenvchan is `send_all` here.
struct End {
    channel: Channel,
    blocking: bool,
}

impl End {
    fn new(mut channel: Channel) -> Self {
        channel.set_nonblocking(true);
        Self { channel, blocking: false }
    }

    fn orders(&self) -> String {
        let orders = self.channel.orders();
        format!("orders {} {}", orders.order(Ring::Left), orders.order(Ring::Right))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<String, Error> {
        if !self.blocking {
            return Ok(self.channel.send(bytes)?.to_string());
        }
        self.channel.send_all(bytes).map_err(|partial| partial.error)?;
        Ok(bytes.len().to_string())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<String, Error> {
        let mut room = self.channel.reserve(bytes.len())?;
        let [mut first, mut second] = room.segments();
        let (head, rest) = bytes.split_at(first.len().min(bytes.len()));
        first.copy_from(0, head);
        second.copy_from(0, rest);
        room.commit(bytes.len())?;
        Ok(bytes.len().to_string())
    }

    fn read(&mut self, count: usize) -> Result<String, Error> {
        let mut bytes = vec![0; count];
        match self.channel.recv(&mut bytes)? {
            0 if count > 0 => Err(Error::Closed),
            n => Ok(received(&bytes[..n])),
        }
    }

    fn recv(&mut self, count: usize) -> Result<String, Error> {
        let there = self.channel.peek(count)?;
        if there.len() < count {
            return Err(Error::Closed);
        }
        let mut bytes = vec![0; count];
        let [first, second] = there.segments();
        let (head, rest) = bytes.split_at_mut(first.len().min(count));
        first.copy_to(0, head);
        second.copy_to(0, rest);
        there.consume(count);
        Ok(received(&bytes))
    }

    /// The number that libxenvchan has for it.
    fn state(&self) -> Result<String, Error> {
        let number = match self.channel.state()? {
            State::Closed => 0,
            State::Open => 1,
            State::Waiting => 2,
        };
        Ok(number.to_string())
    }

    fn wait(&self) -> Outcome<String> {
        let event = self.channel.event_fd().ok_or("a hub's channel")?;
        match poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&PATIENCE))? {
            0 => Err("no event".into()),
            _ => Ok("woken".into()),
        }
    }
}

fn received(bytes: &[u8]) -> String {
    match bytes.len() {
        0 => "0".into(),
        n => format!("{n} {:016x}", sum_of(bytes)),
    }
}

fn told(result: Result<String, Error>) -> Outcome<String> {
    match result {
        Ok(answer) => Ok(answer),
        Err(Error::WouldBlock) => Ok("would-block".into()),
        Err(Error::Closed) => Ok("closed".into()),
        Err(Error::RingTooSmall { .. }) => Ok("too-large".into()),
        Err(error) => Err(error.into()),
    }
}

/// Does what a line says, and gives the answer.
fn obey(line: &str, end: &mut Option<End>) -> Outcome<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let opened = match words[..] {
        ["serve", domid, path, left_min, right_min, ref more @ ..] => {
            let options = ListenOptions {
                read_min: left_min.parse()?,
                write_min: right_min.parse()?,
                persist: more == ["persist"],
                ..ListenOptions::default()
            };
            Some(Listener::open(&Host, DomId(domid.parse()?), path, &options).map(Listener::into_channel))
        }
        ["connect", domid, path] => {
            Some(Channel::connect(&Host, DomId(domid.parse()?), path, &ConnectOptions::default()))
        }
        _ => None,
    };
    if let Some(opened) = opened {
        *end = opened.ok().map(End::new);
        return Ok(end.as_ref().map_or("refused".into(), End::orders));
    }
    let there = end.as_mut().ok_or("there is no channel")?;
    let done = |()| "done".to_owned();
    match words[..] {
        ["blocking", on] => {
            there.blocking = on == "1";
            there.channel.set_nonblocking(!there.blocking);
            Ok(done(()))
        }
        ["write", count, seed] => told(there.write(&bytes_of(count.parse()?, seed.parse()?))),
        ["send", count, seed] => told(there.send(&bytes_of(count.parse()?, seed.parse()?))),
        ["read", count] => told(there.read(count.parse()?)),
        ["recv", count] => told(there.recv(count.parse()?)),
        ["ready"] => told(there.channel.ready().map(|n| n.to_string())),
        ["space"] => told(there.channel.room().map(|n| n.to_string())),
        ["open"] => told(there.state()),
        ["give-back"] => told(there.channel.give_back().map(done)),
        ["wait"] => there.wait(),
        ["close"] => told(end.take().map_or(Ok(()), |end| end.channel.close()).map(done)),
        _ => Err("no such command".into()),
    }
}

fn main() -> io::Result<()> {
    let mut end = None;
    for line in io::stdin().lock().lines() {
        let answer = obey(&line?, &mut end);
        let failed = answer.is_err();
        let answer = answer.unwrap_or_else(|error| format!("error: {error}"));
        writeln!(io::stdout(), "{answer}")?;
        if failed {
            break;
        }
    }
    Ok(())
}
