//! A vchan between two threads, each of which is a domain of a machine in memory: it needs no Xen.
//!
//! ```text
//! cargo run -p tesseraqt-vchan --example two-qubes
//! ```
//! Work sends a line and numbers, the vault answers with their sum: the line by `Read` and `Write`, the numbers made and looked
//! at in the ring itself.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "it says what it does")]

use std::io::{BufRead, BufReader, Read, Write};
use std::thread;
use vchan::{Channel, ConnectOptions, ListenOptions, Listener, Ring};
use xen::DomId;
use xen::mock::Machine;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const VAULT: DomId = DomId(1);
const WORK: DomId = DomId(2);
/// Of the server's home in xenstore.
const PATH: &str = "data/vchan/2/512";

fn main() -> Outcome<()> {
    let machine = Machine::new();
    // On a Xen host, both are `xen::host::Host`, each in its own qube.
    let (vault, work) = (machine.domain(VAULT), machine.domain(WORK));
    let listener = Listener::open(&vault, WORK, PATH, &ListenOptions::default())?;
    let server = thread::spawn(move || serve(listener.accept()?));
    ask(Channel::connect(&work, VAULT, PATH, &ConnectOptions::default())?)?;
    server.join().map_err(|_| "the vault's thread has panicked")?
}

/// Work: 100,000 numbers go through a ring of 64 KiB, which has room for them as the vault takes them.
fn ask(mut channel: Channel) -> Outcome<()> {
    println!("work: to the vault by a ring of {} bytes", channel.orders().size(Ring::Left));
    writeln!(channel, "sum 100000")?;
    for number in 0..100_000_u32 {
        let mut room = channel.reserve(4)?;
        room.fill(0, &number.to_le_bytes());
        room.commit(4)?;
    }
    let mut answer = String::new();
    channel.read_to_string(&mut answer)?;
    println!("work: the vault says {answer:?}");
    Ok(())
}

/// The vault. What it drops at the end closes the channel, and work reads to that.
fn serve(mut channel: Channel) -> Outcome<()> {
    let mut line = String::new();
    BufReader::with_capacity(1, &mut channel).read_line(&mut line)?;
    let count: u32 = line.trim_end().strip_prefix("sum ").ok_or("only sums are known here")?.parse()?;
    let mut sum = 0_u64;
    for _ in 0..count {
        let chunk = channel.peek(4)?;
        let mut number = [0; 4];
        chunk.copy_to(0, &mut number);
        chunk.consume(4);
        sum += u64::from(u32::from_le_bytes(number));
    }
    Ok(write!(channel, "{sum}")?)
}
