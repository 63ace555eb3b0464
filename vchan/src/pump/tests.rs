use super::*;
use crate::fixture::{CLIENT, Host, pattern, sizes};
use crate::{ListenOptions, Violation};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::ioctl_fionbio;
use rustix::pipe::pipe;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use xen::ErrorKind as XenErrorKind;

/// Long enough for a thread to fall asleep; a test that needs it passes without, too.
const SHORT: Duration = Duration::from_millis(20);
/// Long enough that only a hang lasts longer.
const LONG: Duration = Duration::from_secs(20);

/// More than a socket, a pipe and a ring of these tests hold together.
const MANY: usize = 1_000_003;

/// A channel through small rings: what the tests hold themselves waits no longer than `LONG`.
fn pair(host: &Host) -> (Channel, Channel) {
    let (mut server, client) = host.pair(&sizes(0, 0));
    server.set_timeout(Some(LONG));
    (server, client)
}

/// How to pump, and a pair of ends to pump through: with descriptors of their own, or over hubs.
type Way = (&'static str, fn(&Host) -> (Channel, Channel));

fn every_way() -> impl Iterator<Item = Way> {
    let over_hubs: fn(&Host) -> _ = |host| host.pair_of_hubs(&sizes(0, 0));
    ["run", "half-close", "send"]
        .into_iter()
        .flat_map(move |how| [(how, pair as fn(&Host) -> _), (how, over_hubs)])
}

/// What is wrong is wrong at once, and not after a time.
fn soon<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let begin = Instant::now();
    let result = body();
    assert!(begin.elapsed() < LONG);
    result
}

/// A pipe that is a File at either end.
fn files() -> (File, File) {
    let (from, to) = pipe().unwrap();
    (from.into(), to.into())
}

fn nonblocking(fd: impl AsFd) -> bool {
    fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
}

#[test]
fn both_directions_at_once_between_sockets() {
    for half_close in [false, true] {
        for quick in [false, true] {
            let host = Host::new();
            let (server, client) = host.pair(&sizes(0, 0));
            let expected = pattern(0, MANY);
            thread::scope(|scope| {
                for (channel, half_close) in [(server, half_close), (client, false)] {
                    let (mut program, socket) = UnixStream::pair().unwrap();
                    socket.set_nonblocking(quick).unwrap();
                    let mut writing = program.try_clone().unwrap();
                    let expected = &expected;
                    scope.spawn(move || {
                        let pumped = Pump::new(channel).half_close(half_close).run(&socket, &socket);
                        pumped.result.unwrap();
                        assert_eq!((pumped.sent, pumped.received), (MANY as u64, MANY as u64));
                        assert_eq!(pumped.unread, 0);
                        assert_eq!(nonblocking(&socket), quick, "left as it was");
                    });
                    let writing = scope.spawn(move || writing.write_all(expected).unwrap());
                    scope.spawn(move || {
                        let mut got = vec![0; MANY];
                        program.read_exact(&mut got).unwrap();
                        assert!(got == *expected, "what arrived is what was sent");
                        writing.join().unwrap();
                        program.shutdown(std::net::Shutdown::Write).unwrap();
                        assert_eq!(program.read(&mut [0]).unwrap(), 0, "the end is told");
                    });
                }
            });
        }
    }
}

#[test]
fn the_end_of_the_input_closes_when_all_was_taken() {
    let host = Host::new();
    let (mut server, client) = pair(&host);
    let (input, mut writer) = files();
    let (_reader, output) = files();
    thread::scope(|scope| {
        let pump = scope.spawn(move || Pump::new(client).run(input, output));
        writer.write_all(&pattern(0, 900)).unwrap();
        drop(writer);
        thread::sleep(SHORT);
        assert!(!pump.is_finished(), "the peer has not taken it");
        assert_eq!(server.state().unwrap(), State::Open);
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got, pattern(0, 900));
        let pumped = pump.join().unwrap();
        assert_eq!((pumped.sent, pumped.received, pumped.unread), (900, 0, 0));
        assert_eq!(pumped.ended_by, EndedBy::Input);
        pumped.result.unwrap();
    });
}

#[test]
fn with_half_close_the_answer_comes_after_the_end_of_the_input() {
    let host = Host::new();
    let (mut server, client) = pair(&host);
    let (mut program, socket) = UnixStream::pair().unwrap();
    let answer = pattern(0, MANY);
    thread::scope(|scope| {
        let pump = scope.spawn(move || Pump::new(client).half_close(true).run(&socket, &socket));
        program.write_all(b"question").unwrap();
        program.shutdown(std::net::Shutdown::Write).unwrap();
        server.recv_exact(&mut [0; 8]).unwrap();
        thread::sleep(SHORT);
        assert_eq!(server.state().unwrap(), State::Open);
        let answer = &answer;
        scope.spawn(move || {
            server.send_all(answer).unwrap();
            drop(server);
        });
        let mut got = Vec::new();
        program.read_to_end(&mut got).unwrap();
        assert!(got == *answer);
        let pumped = pump.join().unwrap();
        assert_eq!((pumped.sent, pumped.received), (8, MANY as u64));
        assert_eq!(pumped.ended_by, EndedBy::Input);
        pumped.result.unwrap();
    });
}

#[test]
fn with_half_close_a_program_that_has_left_ends_the_conversation() {
    let host = Host::new();
    let (mut server, client) = pair(&host);
    let (mut program, socket) = UnixStream::pair().unwrap();
    program.write_all(b"farewell").unwrap();
    thread::scope(|scope| {
        let pump = scope.spawn(move || Pump::new(client).half_close(true).run(&socket, &socket));
        server.recv_exact(&mut [0; 8]).unwrap();
        thread::sleep(SHORT);
        assert_eq!(server.state().unwrap(), State::Open);
        drop(program);
        assert_eq!(server.recv(&mut [0]).unwrap(), 0);
        pump.join().unwrap().result.unwrap();
    });
}

/// All ways to wait for an input that is silent after one byte.
fn with_silent_input(channel: Channel, how: &str) -> Pumped {
    let (input, mut open) = files();
    open.write_all(b"!").unwrap();
    let (_unread, output) = pipe().unwrap();
    match how {
        "run" => Pump::new(channel).run(input, output),
        "half-close" => Pump::new(channel).half_close(true).run(input, output),
        _ => Pump::new(channel).send(input),
    }
}

#[test]
fn the_close_of_the_peer_ends_a_pump_whose_input_is_silent() {
    for (how, pair) in every_way() {
        let host = Host::new();
        let (mut server, client) = pair(&host);
        let pump = thread::spawn(move || soon(|| with_silent_input(client, how)));
        server.recv_exact(&mut [0]).unwrap();
        thread::sleep(SHORT);
        assert!(!pump.is_finished());
        drop(server);
        let pumped = pump.join().unwrap();
        assert_eq!(pumped.ended_by, EndedBy::Channel);
        match how {
            "send" => assert!(matches!(pumped.result, Err(PumpError::Unread(0)))),
            _ => pumped.result.unwrap(),
        }
    }
}

#[test]
fn the_end_of_the_peers_domain_ends_a_pump_whose_input_is_silent() {
    for (how, pair) in every_way() {
        let host = Host::new();
        let (server, mut client) = pair(&host);
        let pump = thread::spawn(move || soon(|| with_silent_input(server, how)));
        // It runs, and all that it needs from Xen is there.
        client.recv_exact(&mut [0]).unwrap();
        host.machine.fail(Some("xenevtchn_bind_interdomain"), 0, XenErrorKind::NotFound);
        let pumped = pump.join().unwrap();
        assert_eq!(pumped.ended_by, EndedBy::Channel);
        assert!(matches!(pumped.result, Err(PumpError::Channel(Error::PeerDied(CLIENT)))), "{how}");
    }
}

#[test]
fn a_peer_that_breaks_the_protocol_ends_a_pump_whose_input_is_silent() {
    for how in ["run", "half-close"] {
        let host = Host::new();
        let (mut server, client) = pair(&host);
        let page = host.control_page();
        let pump = thread::spawn(move || soon(|| with_silent_input(client, how)));
        server.recv_exact(&mut [0]).unwrap();
        page.atomic_u32(crate::Ring::Right.prod_offset()).store(0x1234_5678, SeqCst);
        // It is signalled.
        let _ = server.send(b"x");
        page.atomic_u32(crate::Ring::Right.prod_offset()).store(0x1234_5678, SeqCst);
        let pumped = pump.join().unwrap();
        let violation = matches!(
            pumped.result,
            Err(PumpError::Channel(Error::Violation(Violation::Indices { prod: 0x1234_5678, .. })))
        );
        assert!(violation, "{:?}", pumped.result);
    }
}

#[test]
fn a_timeout_of_the_channel_is_in_force() {
    let host = Host::new();
    let (server, mut client) = pair(&host);
    client.set_timeout(Some(SHORT));
    let pumped = soon(|| with_silent_input(client, "run"));
    assert!(matches!(pumped.result, Err(PumpError::Channel(Error::TimedOut(SHORT)))), "{pumped:?}");
    assert_eq!(server.state().unwrap(), State::Closed);
}

#[test]
fn what_the_peer_left_is_counted() {
    let host = Host::new();
    let (mut server, client) = pair(&host);
    let (input, mut writer) = files();
    let (mut reader, output) = files();
    writer.write_all(&[7; 5000]).unwrap();
    let pump = thread::spawn(move || Pump::new(client).run(input, output));
    server.recv_exact(&mut [0; 100]).unwrap();
    server.send_all(b"enough").unwrap();
    drop(server);
    let pumped = pump.join().unwrap();
    let mut got = String::new();
    reader.read_to_string(&mut got).unwrap();
    assert_eq!((got.as_str(), pumped.received), ("enough", 6));
    assert_eq!(pumped.sent, 100 + pumped.unread as u64);
    assert!(matches!(pumped.result, Err(PumpError::Unread(n)) if n == pumped.unread && n > 0));
}

/// An output that nobody reads: a pipe, or a socket.
fn unread_output(socket: bool) -> OwnedFd {
    if socket { UnixStream::pair().unwrap().0.into() } else { pipe().unwrap().1 }
}

#[test]
fn an_output_that_nobody_reads_ends_the_conversation() {
    for socket in [false, true] {
        let host = Host::new();
        let (mut server, client) = pair(&host);
        let (input, _open) = pipe().unwrap();
        let pump = thread::spawn(move || soon(|| Pump::new(client).run(input, unread_output(socket))));
        server.send_all(b"to nobody").unwrap();
        assert_eq!(server.recv(&mut [0]).unwrap(), 0);
        let pumped = pump.join().unwrap();
        assert_eq!(pumped.ended_by, EndedBy::Output);
        let gone =
            matches!(&pumped.result, Err(PumpError::Output(error)) if error.kind() == ErrorKind::BrokenPipe);
        assert!(gone, "{pumped:?}");
        assert_eq!(pumped.received, 0);
    }
}

#[test]
fn with_half_close_sending_outlives_the_output() {
    for peer_closes in [false, true] {
        let host = Host::new();
        let (mut server, client) = pair(&host);
        let (input, writer) = files();
        let pump = thread::spawn(move || {
            soon(|| Pump::new(client).half_close(true).run(input, unread_output(false)))
        });
        server.send_all(b"to nobody").unwrap();
        thread::sleep(SHORT);
        let expected = pattern(0, MANY);
        let mut got = vec![0; MANY];
        // Not in a scope, which would wait for a writer that is blocked, should nothing arrive.
        let (mut other, copy) = (writer.try_clone().unwrap(), expected.clone());
        let written = thread::spawn(move || other.write_all(&copy));
        server.recv_exact(&mut got).unwrap();
        written.join().unwrap().unwrap();
        assert!(got == expected);
        thread::sleep(SHORT);
        assert!(!pump.is_finished());
        if peer_closes {
            drop(server);
        } else {
            drop(writer);
            assert_eq!(server.recv(&mut [0]).unwrap(), 0);
            assert_eq!(server.unread().unwrap(), 9, "it was not taken and thrown away");
        }
        let pumped = pump.join().unwrap();
        assert_eq!((pumped.sent, pumped.ended_by), (MANY as u64, EndedBy::Output));
        assert!(matches!(pumped.result, Err(PumpError::Output(_))), "{pumped:?}");
    }
}

#[test]
fn a_blocked_output_holds_the_peer_back_and_not_the_other_direction() {
    for quick in [false, true] {
        let host = Host::new();
        let (mut server, client) = pair(&host);
        let (input, mut writer) = files();
        let (mut reader, output) = files();
        for fd in [&input, &output] {
            ioctl_fionbio(fd, quick).unwrap();
        }
        let expected = pattern(0, MANY);
        thread::scope(|scope| {
            let pump = scope.spawn(|| Pump::new(client).run(&input, &output));
            // As much as the pipe and the ring take.
            server.set_timeout(Some(2 * SHORT));
            let stuck = server.send_all(&expected).unwrap_err();
            assert!(matches!(stuck.error, Error::TimedOut(_)), "{stuck:?}");
            server.set_timeout(Some(LONG));

            scope.spawn(|| writer.write_all(&expected).unwrap());
            let mut got = vec![0; MANY];
            server.recv_exact(&mut got).unwrap();
            assert!(got == expected);

            let reading = scope.spawn(move || {
                let mut got = vec![0; MANY];
                reader.read_exact(&mut got).unwrap();
                got
            });
            server.send_all(&expected[stuck.done..]).unwrap();
            drop(server);
            assert!(reading.join().unwrap() == expected);
            pump.join().unwrap().result.unwrap();
        });
        assert_eq!([nonblocking(&input), nonblocking(&output)], [quick; 2], "left as they were");
    }
}

#[test]
fn a_blocked_output_that_need_not_be_waited_for_delays_no_close() {
    let host = Host::new();
    let (mut server, client) = pair(&host);
    let (input, mut writer) = files();
    let (_unread, output) = files();
    ioctl_fionbio(&output, true).unwrap();
    let pump = thread::spawn(move || soon(|| Pump::new(client).run(input, output)));
    server.set_timeout(Some(2 * SHORT));
    let stuck = server.send_all(&[1; MANY]).unwrap_err();
    server.set_timeout(Some(LONG));
    writer.write_all(b"enough").unwrap();
    drop(writer);
    server.recv_exact(&mut [0; 6]).unwrap();
    assert_eq!(server.recv(&mut [0]).unwrap(), 0);
    let pumped = pump.join().unwrap();
    pumped.result.unwrap();
    assert_eq!(pumped.received as usize + server.unread().unwrap(), stuck.done, "written, or unread");
}

#[test]
fn a_file_goes_one_way() {
    let host = Host::new();
    let (server, client) = host.pair(&ListenOptions::default());
    let expected = pattern(0, MANY);
    let [mut from, mut to] = [(); 2].map(|()| temporary());
    from.write_all(&expected).unwrap();
    from.rewind().unwrap();
    thread::scope(|scope| {
        let sent = scope.spawn(|| Pump::new(server).send(&from));
        let received = Pump::new(client).receive(&to);
        let sent = sent.join().unwrap();
        assert_eq!((sent.sent, sent.received, sent.ended_by), (MANY as u64, 0, EndedBy::Input));
        assert_eq!((received.sent, received.received, received.ended_by), (0, MANY as u64, EndedBy::Channel));
        sent.result.and(received.result).unwrap();
    });
    to.rewind().unwrap();
    let mut got = Vec::new();
    to.read_to_end(&mut got).unwrap();
    assert!(got == expected);
}

/// A file without a name.
fn temporary() -> File {
    let fd = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    fd.into()
}

#[test]
fn an_input_that_cannot_be_read_ends_the_conversation() {
    for half_close in [false, true] {
        let host = Host::new();
        let (mut server, client) = pair(&host);
        let (_reader, output) = pipe().unwrap();
        let folder = File::open("/").unwrap();
        let pumped = soon(|| Pump::new(client).half_close(half_close).run(folder, output));
        assert_eq!(pumped.ended_by, EndedBy::Input);
        let message = pumped.result.unwrap_err().to_string();
        assert!(message.starts_with("input: Is a directory"), "{message}");
        assert_eq!(server.recv(&mut [0]).unwrap(), 0);
    }
}
