//! What a pump leaves behind. Alone in its process, whose threads and descriptors it counts.
#![allow(clippy::unwrap_used, reason = "a test says why it fails")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use std::{fs, thread};
use vchan::{Channel, ConnectOptions, ListenOptions, Listener, Pump, Pumped};
use xen::DomId;
use xen::mock::Machine;

fn count(what: &str) -> usize {
    fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
}

#[test]
fn a_pump_leaves_no_thread_and_no_descriptor_behind() {
    let machine = Machine::new();
    let (near, far) = (machine.domain(DomId(1)), machine.domain(DomId(2)));
    // Keeps the thread that looks after channels.
    let _other = Listener::open(&near, DomId(2), "data/other", &ListenOptions::default()).unwrap();
    let before = (count("task"), count("fd"));
    for how in ["run", "half-close", "send", "receive"] {
        for peer_first in [true, false] {
            let listener = Listener::open(&near, DomId(2), "data/it", &ListenOptions::default()).unwrap();
            let client = Channel::connect(&far, DomId(1), "data/it", &ConnectOptions::default()).unwrap();
            let mut server = listener.accept().unwrap();
            let (input, mut writer) = std::io::pipe().unwrap();
            let (mut reader, output) = std::io::pipe().unwrap();
            let pump = thread::spawn(move || pump(client, how, input.into(), output.into()));
            if how != "receive" {
                writer.write_all(b"there").unwrap();
                server.read_exact(&mut [0; 5]).unwrap();
            }
            if how != "send" {
                server.write_all(b"back").unwrap();
                reader.read_exact(&mut [0; 4]).unwrap();
            }
            let begin = Instant::now();
            match (peer_first, how) {
                (true, _) => drop(server),
                (false, "run" | "send") => drop(writer),
                // Nobody listens any more.
                (false, "half-close") => drop((writer, reader)),
                (false, _) => {
                    drop(reader);
                    server.write_all(b"back").unwrap();
                }
            }
            let pumped = pump.join().unwrap();
            assert!(begin.elapsed() < Duration::from_secs(20), "{how}: {pumped:?}");
        }
        // The kernel lets a thread be joined a moment before it forgets it.
        let begin = Instant::now();
        while (count("task"), count("fd")) != before && begin.elapsed() < Duration::from_secs(5) {
            thread::yield_now();
        }
        assert_eq!((count("task"), count("fd")), before, "{how}");
    }
}

fn pump(channel: Channel, how: &str, input: OwnedFd, output: OwnedFd) -> Pumped {
    match how {
        "run" => Pump::new(channel).run(input, output),
        "half-close" => Pump::new(channel).half_close(true).run(input, output),
        "send" => Pump::new(channel).send(input),
        _ => Pump::new(channel).receive(output),
    }
}
