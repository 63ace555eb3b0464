//! An agent that breaks the rules of the pair channel, for the tests.
//!
//! ```text
//! hostile-agent CONTROL OWN PEER service MISDEED    waits for a call, takes it, and misbehaves
//! hostile-agent CONTROL OWN PEER caller MISDEED     calls TARGET:SERVICE of the environment, and misbehaves
//! ```
//! CONTROL is the broker's socket, OWN and PEER are domain ids. It prints `done` when it has misbehaved, and then `closed` when
//! the peer has closed the channel.
#![forbid(unsafe_code)]

use nexus::wire::pair::{EARLY, Header, Kind, MAX_DATA, PAIR_PORT, Reset};
use nexus::wire::{Channel, Decoder, Ident, Message, Source, Trigger};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vchan::{ConnectOptions, ListenOptions, Listener};
use xen::DomId;
use xen::host::Host;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const PATIENCE: Duration = Duration::from_secs(100);
const USAGE: &str = "usage: hostile-agent CONTROL OWN PEER service|caller MISDEED";

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [control, own, peer, role, misdeed] = arguments.as_slice() else { return Err(USAGE.into()) };
    let (own, peer): (u16, u16) = (own.parse()?, peer.parse()?);
    let mut control = Control::connect(control)?;
    let (call, mut channel) = match role.as_str() {
        "service" => {
            let call = control.call()?;
            let options = ConnectOptions { wait: Some(PATIENCE), ..ConnectOptions::default() };
            let path = format!("data/vchan/{own}/{PAIR_PORT}");
            (call, vchan::Channel::connect(&Host, DomId(peer), &path, &options)?)
        }
        "caller" => {
            let options = ListenOptions { read_min: 1 << 16, write_min: 1 << 16, ..ListenOptions::default() };
            let listener =
                Listener::open(&Host, DomId(peer), &format!("data/vchan/{peer}/{PAIR_PORT}"), &options)?;
            control.ask(&std::env::var("TARGET")?, &std::env::var("SERVICE")?)?;
            let call = control.call()?;
            (call, listener.accept()?)
        }
        _ => return Err(USAGE.into()),
    };
    channel.set_timeout(Some(PATIENCE));
    misbehave(&mut channel, call, misdeed)?;
    say("done")?;
    // What comes is read, to the end.
    let mut bytes = vec![0; 1 << 16];
    while channel.recv(&mut bytes)? > 0 {}
    say("closed")
}

fn say(what: &str) -> Outcome<()> {
    writeln!(io::stdout(), "{what}")?;
    Ok(io::stdout().flush()?)
}

fn misbehave(channel: &mut vchan::Channel, call: u64, misdeed: &str) -> Outcome<()> {
    let open = |call: u64| Header::with_number(call, Kind::Open, 1 << 16);
    let mut send = |bytes: &[u8]| match channel.send_all(bytes) {
        // Closed in the midst of it.
        Err(partial) if matches!(partial.error, vchan::Error::Closed) => Ok(()),
        sent => sent.map_err(|partial| partial.error),
    };
    let data = |kind: Kind, length: usize| {
        let mut frame = Header { call, kind, length: length as u32 }.encode().to_vec();
        frame.resize(frame.len() + length, b'x');
        frame
    };
    match misdeed {
        // More than it has credit for: 64 KiB, or what a caller gets that was never welcomed. The frames appear together:
        // one by one they would get their credit back in between.
        "overrun" => send(&data(Kind::Stdout, MAX_DATA).repeat(3))?,
        "early" => {
            send(&open(call))?;
            (0..100).try_for_each(|_| send(&data(Kind::Stdin, MAX_DATA)))?;
        }
        "credit" => {
            (0..3).try_for_each(|_| send(&Header::with_number(call, Kind::Credit, u32::MAX / 2)))?;
        }
        "kind" => send(&[0xff; 64])?,
        "length" => {
            let mut header = Header { call, kind: Kind::Stdout, length: 1 }.encode();
            header[12..].copy_from_slice(&u32::MAX.to_le_bytes());
            send(&header)?;
        }
        "part" => send(&open(call))?,
        // Calls that nobody announced, and more than they may begin with.
        "parked" => {
            send(&open(call ^ 1 << 20))?;
            for _ in 0..2 {
                let header = Header { call: call ^ 1 << 20, kind: Kind::Stdin, length: EARLY };
                send(&[&header.encode()[..], &[b'x'; EARLY as usize]].concat())?;
            }
        }
        "twice" => {
            send(&open(call))?;
            send(&open(call))?;
        }
        // Calls that nobody announced, more than are kept; and frames of others that there never were.
        "flood" => {
            send(&open(call))?;
            for n in 0..100_000_u64 {
                let other = call ^ (n + 1) << 20;
                send(&open(other))?;
                // As many bytes as a call may begin with.
                if n % 16 == 0 {
                    let header = Header { call: other, kind: Kind::Stdin, length: EARLY };
                    send(&[&header.encode()[..], &[b'x'; EARLY as usize]].concat())?;
                }
                send(&Header { call: other ^ 1, kind: Kind::Stdin, length: 0 }.encode())?;
                send(&Header::with_number(other ^ 2, Kind::Reset, Reset::Gone as u32))?;
            }
        }
        other => return Err(format!("{other}?").into()),
    }
    Ok(())
}

/// The connection with the broker.
struct Control {
    socket: UnixStream,
    decoder: Decoder,
    kept: Vec<u8>,
}

impl Control {
    fn connect(path: &str) -> Outcome<Self> {
        let socket = UnixStream::connect(path)?;
        let mut control = Self { socket, decoder: Decoder::new(Channel::ToAgent), kept: Vec::new() };
        control.send(&Message::Hello(Channel::FromAgent.version().number()))?;
        Ok(control)
    }

    fn send(&mut self, message: &Message<'_>) -> Outcome<()> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes)?;
        Ok(self.socket.write_all(&bytes)?)
    }

    fn ask(&mut self, target: &str, service: &str) -> Outcome<()> {
        let ident = Ident::new(b"hostile").ok_or("an identifier")?;
        let trigger = Trigger { ident, target: target.as_bytes(), service: service.as_bytes() };
        let source = std::env::var("SOURCE")?;
        self.send(&Message::TriggerService4(Source(source.as_bytes()), trigger))
    }

    /// Waits for a call.
    fn call(&mut self) -> Outcome<u64> {
        loop {
            let mut input = &self.kept[..];
            let before = input.len();
            let found = match self.decoder.decode(&mut input)? {
                Some(frame) => match Message::parse(&frame)? {
                    Message::Run(run) => Some(Some(run.call)),
                    Message::Join(join) => Some(Some(join.call)),
                    Message::ServiceRefused(_) => return Err("refused".into()),
                    _ => Some(None),
                },
                None => None,
            };
            let taken = before - input.len();
            self.kept.drain(..taken);
            match found {
                Some(Some(call)) => return Ok(call),
                Some(None) => {}
                None => {
                    let mut bytes = [0; 4096];
                    let read = self.socket.read(&mut bytes)?;
                    if read == 0 {
                        return Err("the broker is gone".into());
                    }
                    self.kept.extend(&bytes[..read]);
                }
            }
        }
    }
}
