//! Times calls, one after the other, of a service that sends back what it gets: `call-latency SOCKET TARGET SERVICE CALLS`.
//! `call-latency serve SOCKET` is such a service: one process that is there already.
//!
//! A call is timed from the connection to the agent to the service's exit code; its program is not, which is started once.
#![allow(clippy::print_stdout, reason = "it says what it measured")]

use nexus::client::OutgoingCall;
use std::error::Error;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [serve, socket] = arguments.as_slice()
        && serve == "serve"
    {
        for stream in UnixListener::bind(socket)?.incoming() {
            let stream = stream?;
            // Who hangs up early is not to end it.
            let _ = std::io::copy(&mut &stream, &mut &stream);
        }
        return Ok(());
    }
    let [agent, target, service, calls] = arguments.as_slice() else {
        return Err("SOCKET TARGET SERVICE CALLS, or serve SOCKET".into());
    };
    let mut times = Vec::new();
    for call in 0..calls.parse()? {
        let line = format!("call {call}\n");
        let (mut back, mut errors) = (Vec::new(), Vec::new());
        let begin = Instant::now();
        let outgoing = OutgoingCall::start(Path::new(agent), target, service)?;
        let exit = outgoing.run(std::io::Cursor::new(line.clone()), &mut back, &mut errors)?;
        times.push(begin.elapsed());
        if exit != 0 || back != line.as_bytes() {
            return Err(format!("exit code {exit}, {:?} for {line:?}", String::from_utf8_lossy(&back)).into());
        }
    }
    times.sort();
    let at = |part: usize| times.get(times.len() * part / 100).map_or(0, Duration::as_micros);
    println!("median-us {}\np99-us {}", at(50), at(99));
    Ok(())
}
