use super::*;
use crate::Connector;
use crate::fixture::{CLIENT, Host, PATH, SERVER, SIZES, pattern, sizes};
use crate::{ConnectOptions, Error, ListenOptions, Listener, Ring, Violation};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Instant;
use xen::{DomId, ErrorKind, EventChannels, GrantRef, Platform, Port, Transaction, Xenstore};

/// Long enough that only a hang lasts longer.
const LONG: Duration = Duration::from_secs(20);
/// Long enough for a thread to fall asleep; a test that needs it passes without, too.
const SHORT: Duration = Duration::from_millis(20);

fn readable(fd: Option<BorrowedFd<'_>>) -> bool {
    let fd = fd.expect("it has a descriptor of its own");
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
}

/// Takes what has arrived so far out of a channel's descriptor.
fn quiet(channel: &mut Channel) {
    channel.set_nonblocking(true);
    assert!(matches!(channel.recv(&mut [0]), Err(Error::WouldBlock)));
    channel.set_nonblocking(false);
    assert!(!readable(channel.event_fd()));
}

/// Sends and receives so much in each direction at the same time, in parts of other sizes at either end.
fn exchange(server: Channel, client: Channel, bytes: usize) {
    let expected = pattern(0, bytes);
    thread::scope(|scope| {
        for (channel, step) in [(server, 1501), (client, 3307)] {
            let (mut sender, mut receiver) = channel.split().unwrap();
            sender.set_timeout(Some(LONG));
            receiver.set_timeout(Some(LONG));
            let expected = &expected;
            scope.spawn(move || {
                for part in expected.chunks(step) {
                    sender.send_all(part).unwrap();
                }
                sender.wait_until_read().unwrap();
            });
            scope.spawn(move || {
                let mut got = vec![0; expected.len()];
                for part in got.chunks_mut(step / 2 + 999) {
                    receiver.recv_exact(part).unwrap();
                }
                assert!(got == *expected, "what arrived is what was sent");
            });
        }
    });
}

#[test]
fn both_directions_at_once_through_every_pair_of_rings() {
    for (read_min, write_min, left, right) in SIZES {
        let host = Host::new();
        let (server, client) = host.pair(&sizes(read_min, write_min));
        assert_eq!(server.orders(), client.orders());
        assert_eq!((server.orders().order(Ring::Left), server.orders().order(Ring::Right)), (left, right));
        exchange(server, client, 300_000);
    }
}

#[test]
fn the_control_page_is_libxenvchans_byte_for_byte() {
    for (read_min, write_min, left, right) in SIZES {
        let host = Host::new();
        let listener = host.listen(&sizes(read_min, write_min));
        let page = host.control_page();
        // What libxenvchan's init_gnt_srv leaves there: the header, the references, zeros.
        let mut expected = vec![0; 16];
        expected.extend([left, right].iter().flat_map(|order: &u16| order.to_le_bytes()));
        expected.extend([2, 1, 1, 0]);
        let own_pages: usize = [left, right].iter().map(|order| (1_usize << order) >> 12).sum();
        // The mock hands out references from 8 on, in the order in which the pages are shared.
        expected.extend((8..).take(own_pages).flat_map(|gref: u32| gref.to_le_bytes()));
        expected.resize(4096, 0);
        let mut bytes = vec![0; 4096];
        page.copy_to(0, &mut bytes);
        assert_eq!(bytes, expected, "for {read_min}, {write_min}");

        let client = host.connect();
        // The client is there, and asks to be told of bytes.
        (expected[20], expected[23]) = (1, 1);
        page.copy_to(0, &mut bytes);
        assert_eq!(bytes, expected, "for {read_min}, {write_min}");
        drop(client);
        expected[20] = 0;
        drop(listener);
        expected[21] = 0;
        page.copy_to(0, &mut bytes);
        assert_eq!(bytes, expected, "for {read_min}, {write_min}");
    }
}

#[test]
fn set_up_and_close_leave_nothing_behind() {
    let host = Host::new();
    host.server.xenstore().unwrap().mkdir(Transaction::NONE, "data/vchan/2").unwrap();
    let before = host.machine.inventory();
    for server_first in [true, false] {
        let (server, client) = host.pair(&ListenOptions::default());
        let while_open = host.machine.inventory();
        assert!(while_open.len() > before.len() + 30, "{while_open:#?}");
        if server_first {
            server.close().unwrap();
            client.close().unwrap();
        } else {
            client.close().unwrap();
            server.close().unwrap();
        }
        host.becomes(&before, "closed");
    }
    drop(host.listen(&ListenOptions::default()));
    host.becomes(&before, "closed");
}

/// Fails each call of `set_up` in turn, and sees that it says so and leaves nothing. `looks` calls are those that look
/// whether the peer's domain lives: their failure tells nothing and is no error. (No others: a warden's calls would be
/// counted, and failed, in place of those of `set_up`.)
fn fail_every_call(host: &Host, looks: usize, set_up: impl Fn() -> Result<Channel>) {
    let before = host.machine.inventory();
    let mut passed_over = 0;
    for nth in 0.. {
        host.machine.fail(None, nth, ErrorKind::Other);
        let result = set_up();
        let failed = host.machine.clear_failures() == 0;
        if !failed {
            result.unwrap().close().unwrap();
            host.becomes(&before, "closed");
            assert_eq!(passed_over, looks);
            assert!(nth > 10, "only {nth} calls");
            return;
        }
        match result {
            Ok(channel) => {
                drop(channel);
                passed_over += 1;
            }
            Err(error) => assert!(matches!(error, Error::Xen(_)), "call {nth}: {error}"),
        }
        host.becomes(&before, &format!("after a failure of call {nth}"));
    }
}

#[test]
fn a_server_that_fails_at_any_call_leaves_nothing() {
    let host = Host::new();
    host.server.xenstore().unwrap().mkdir(Transaction::NONE, "data/vchan/2").unwrap();
    for (read_min, write_min) in [(0, 0), (65_536, 65_536)] {
        fail_every_call(&host, 2, || {
            let options = ListenOptions { probe_interval: Duration::MAX, ..sizes(read_min, write_min) };
            Ok(Listener::open(&host.server, CLIENT, PATH, &options)?.into_channel())
        });
    }
}

#[test]
fn a_client_that_fails_at_any_call_leaves_nothing() {
    for (read_min, write_min) in [(0, 0), (65_536, 65_536)] {
        let host = Host::new();
        // A server that outlives its clients, so that each attempt finds it.
        let options =
            ListenOptions { persist: true, probe_interval: Duration::MAX, ..sizes(read_min, write_min) };
        let _listener = host.listen(&options);
        fail_every_call(&host, 2, || {
            let options = ConnectOptions { probe_interval: Duration::MAX, ..ConnectOptions::default() };
            Channel::connect(&host.client, SERVER, PATH, &options)
        });
    }
}

#[test]
fn a_client_that_waits_and_fails_at_any_call_leaves_nothing() {
    let host = Host::new();
    let probe_interval = Duration::MAX;
    let options = ListenOptions { persist: true, probe_interval, ..sizes(0, 0) };
    let _listener = host.listen(&options);
    let before = host.machine.inventory();
    for nth in 0.. {
        host.machine.fail(None, nth, ErrorKind::Other);
        let options =
            ConnectOptions { wait: Some(Duration::ZERO), probe_interval, ..ConnectOptions::default() };
        let result = Channel::connect(&host.client, SERVER, PATH, &options);
        let failed = host.machine.clear_failures() == 0;
        assert!(result.is_ok() || failed);
        drop(result);
        if !failed {
            return;
        }
        // The one call that is not made good by dropping is the end of the watch: it ends with the connection.
        host.becomes(&before, &format!("after a failure of call {nth}"));
    }
}

#[test]
fn no_byte_before_a_close_is_lost() {
    for closing_server in [true, false] {
        for len in [0, 1, 5000, 65_536] {
            let host = Host::new();
            let (server, client) = host.pair(&ListenOptions::default());
            let (mut from, mut to) = if closing_server { (server, client) } else { (client, server) };
            from.send_all(&pattern(0, len)).unwrap();
            from.close().unwrap();
            assert_eq!(to.state().unwrap(), State::Closed);
            let mut got = Vec::new();
            to.read_to_end(&mut got).unwrap();
            assert!(got == pattern(0, len));
            assert_eq!(to.recv(&mut [0]).unwrap(), 0, "the end stays the end");
            assert!(matches!(to.send(b"x"), Err(Error::Closed)));
        }
    }
}

#[test]
fn no_byte_before_a_close_is_lost_while_the_reader_looks() {
    for round in 0..200 {
        let host = Host::new();
        let (mut server, mut client) = host.pair(&sizes(0, 0));
        thread::scope(|scope| {
            scope.spawn(move || {
                client.send_all(&pattern(round, 700)).unwrap();
                client.close().unwrap();
            });
            server.set_timeout(Some(LONG));
            let mut got = Vec::new();
            server.read_to_end(&mut got).unwrap();
            assert!(got == pattern(round, 700));
        });
    }
}

#[test]
fn the_end_an_error_and_having_to_wait_are_three_things() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&ListenOptions::default());
    server.set_nonblocking(true);
    assert!(matches!(server.recv(&mut [0; 9]), Err(Error::WouldBlock)));
    assert_eq!(server.read(&mut [0; 9]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    server.set_nonblocking(false);
    server.set_timeout(Some(SHORT));
    assert!(matches!(server.recv(&mut [0; 9]), Err(Error::TimedOut(SHORT))));
    client.send_all(b"bye").unwrap();
    drop(client);
    let partial = server.recv_exact(&mut [0; 9]).unwrap_err();
    assert!(matches!(partial, Partial { done: 3, error: Error::Closed }), "{partial}");
    assert_eq!(server.recv(&mut [0; 9]).unwrap(), 0);
    assert_eq!(server.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(server.send(b"").unwrap_err().to_string(), "the peer has closed the channel");
    assert!(matches!(server.send_all(b""), Err(Partial { done: 0, error: Error::Closed })));
}

#[test]
fn empty_buffers_neither_wait_nor_end() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&ListenOptions::default());
    assert_eq!(server.recv(&mut []).unwrap(), 0);
    assert_eq!(client.send(&[]).unwrap(), 0);
    client.send_all(&[]).unwrap();
    server.recv_exact(&mut []).unwrap();
    server.wait_until_read().unwrap();
}

#[test]
fn partial_progress_is_reported() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    client.set_nonblocking(true);
    assert_eq!(client.room().unwrap(), 1024);
    let partial = client.send_all(&pattern(0, 5000)).unwrap_err();
    assert!(matches!(partial, Partial { done: 1024, error: Error::WouldBlock }), "{partial}");
    assert_eq!(client.unread().unwrap(), 1024);
    assert!(matches!(client.send(b"x"), Err(Error::WouldBlock)));
    assert_eq!(server.ready().unwrap(), 1024);
    let mut some = [0; 100];
    assert_eq!(server.recv(&mut some).unwrap(), 100);
    assert_eq!(some, pattern(0, 100)[..]);
    assert!(matches!(client.send(b"x"), Err(Error::WouldBlock)), "held back: not a quarter of the ring yet");
    server.give_back().unwrap();
    assert_eq!(client.send(&pattern(1024, 5000)).unwrap(), 100);
    server.set_timeout(Some(SHORT));
    let partial = server.recv_exact(&mut [0; 1025]).unwrap_err();
    assert!(matches!(partial, Partial { done: 1024, error: Error::TimedOut(SHORT) }), "{partial}");
    client.set_nonblocking(false);
    client.set_timeout(Some(SHORT));
    let partial = client.send_all(&[0; 1025]).unwrap_err();
    assert!(matches!(partial, Partial { done: 1024, error: Error::TimedOut(SHORT) }), "{partial}");
    assert!(matches!(client.wait_until_read(), Err(Error::TimedOut(SHORT))));
    drop(server);
    let partial = client.send_all(&[0; 1025]).unwrap_err();
    assert!(matches!(partial, Partial { done: 0, error: Error::Closed }), "{partial}");
    assert!(matches!(client.wait_until_read(), Err(Error::Closed)));
    assert_eq!(client.unread().unwrap(), 1024, "what the peer has left");
}

#[test]
fn a_nonblocking_user_is_told_by_the_descriptor() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    quiet(&mut server);
    quiet(&mut client);
    server.set_nonblocking(true);
    client.set_nonblocking(true);

    client.send_all(b"one").unwrap();
    assert!(readable(server.event_fd()));
    client.send_all(b"two").unwrap();
    let mut bytes = [0; 9];
    assert_eq!(server.recv(&mut bytes).unwrap(), 6);
    assert!(matches!(server.recv(&mut bytes), Err(Error::WouldBlock)));
    assert!(!readable(server.event_fd()), "the event was taken");
    client.send_all(b"three").unwrap();
    assert!(readable(server.event_fd()));
    assert_eq!(server.recv(&mut bytes).unwrap(), 5);

    let _ = client.send_all(&[0; 2000]).unwrap_err();
    assert!(!readable(client.event_fd()));
    server.recv(&mut bytes).unwrap();
    assert!(readable(client.event_fd()));
    assert_eq!(client.send(&[0; 2000]).unwrap(), 9);
    assert!(matches!(client.send(&[0]), Err(Error::WouldBlock)));
    assert!(!readable(client.event_fd()));
    drop(server);
    assert!(readable(client.event_fd()), "the close is told, too");
}

#[test]
fn a_busy_peer_is_not_signalled() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&ListenOptions::default());
    quiet(&mut server);
    host.machine.reset_counts();
    for _ in 0..100 {
        client.send_all(&[1; 64]).unwrap();
    }
    assert_eq!(host.machine.counts().of("xenevtchn_notify"), 1, "one for a hundred writes");
    for _ in 0..100 {
        server.recv_exact(&mut [0; 64]).unwrap();
    }
    assert_eq!(host.machine.counts().of("xenevtchn_notify"), 1, "nobody waits for room");
    assert_eq!(host.machine.counts().of("xenevtchn_pending"), 0, "nothing had to be waited for");
}

#[test]
fn a_peer_that_could_not_be_signalled_is_told_of_and_counted() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&ListenOptions::default());
    quiet(&mut server);
    host.machine.fail(Some("xenevtchn_notify"), 0, ErrorKind::Other);
    assert_eq!(client.send(b"sent").unwrap(), 4, "the bytes are in the peer's reach");
    assert!(matches!(client.send(b"x"), Err(Error::Xen(_))));
    client.send_all(b"more").unwrap();
    server.recv_exact(&mut [0; 8]).unwrap();

    quiet(&mut server);
    host.machine.fail(Some("xenevtchn_notify"), 0, ErrorKind::Other);
    let partial = client.send_all(b"all").unwrap_err();
    assert!(matches!(partial, Partial { done: 3, error: Error::Xen(_) }), "{partial}");
}

#[test]
fn a_sleep_that_a_signal_interrupts_goes_on() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&ListenOptions::default());
    quiet(&mut server);
    server.set_timeout(Some(LONG));
    client.send_all(b"x").unwrap();
    server.recv_exact(&mut [0]).unwrap();
    // On a machine that is busy the byte may be there before it sleeps.
    let interrupted = (0..50).any(|_| {
        quiet(&mut server);
        host.machine.fail(Some("xenevtchn_pending"), 0, ErrorKind::Interrupted);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(SHORT);
                client.send_all(b"y").unwrap();
            });
            server.recv_exact(&mut [0]).unwrap();
        });
        host.machine.clear_failures() == 0
    });
    assert!(interrupted);
}

#[test]
fn one_half_can_close_while_the_other_sleeps() {
    for closing_sender in [true, false] {
        let host = Host::new();
        let before = host.machine.inventory();
        let (server, mut client) = host.pair(&sizes(0, 0));
        client.send_all(&[1; 1024]).unwrap();
        let (mut sender, mut receiver) = server.split().unwrap();
        thread::scope(|scope| {
            if closing_sender {
                receiver.recv_exact(&mut [0; 1024]).unwrap();
                let sleeper = scope.spawn(move || receiver.recv(&mut [0]));
                thread::sleep(SHORT);
                sender.close().unwrap();
                assert!(matches!(sleeper.join().unwrap(), Err(Error::ClosedHere)));
            } else {
                sender.send_all(&[2; 2048]).unwrap();
                let sleeper = scope.spawn(move || sender.send_all(&[2; 2048]));
                thread::sleep(SHORT);
                receiver.close().unwrap();
                let partial = sleeper.join().unwrap().unwrap_err();
                assert!(matches!(partial, Partial { done: 0, error: Error::ClosedHere }), "{partial}");
            }
        });
        assert_eq!(client.state().unwrap(), State::Closed);
        drop(client);
        assert_eq!(
            host.machine.inventory().len(),
            before.len() + 2,
            "only the directories above the channel's own are left"
        );
    }
}

#[test]
fn two_sleeping_halves_both_hear_what_is_for_them() {
    let host = Host::new();
    let (server, mut client) = host.pair(&sizes(0, 0));
    let (mut sender, mut receiver) = server.split().unwrap();
    sender.set_timeout(Some(LONG));
    receiver.set_timeout(Some(LONG));
    sender.send_all(&[0; 2048]).unwrap();
    client.set_timeout(Some(LONG));
    thread::scope(|scope| {
        let sending = scope.spawn(move || (0..500).for_each(|_| sender.send_all(&[7; 64]).unwrap()));
        let receiving =
            scope.spawn(move || (0..500).for_each(|_| receiver.recv_exact(&mut [0; 64]).unwrap()));
        thread::sleep(SHORT);
        // One direction moves at a time, so the event that comes is always for one of the two.
        for _ in 0..500 {
            client.send_all(&[9; 64]).unwrap();
        }
        receiving.join().unwrap();
        for _ in 0..(2048 / 64 + 500) {
            client.recv_exact(&mut [0; 64]).unwrap();
        }
        sending.join().unwrap();
    });
}

#[test]
fn a_half_that_times_out_leaves_the_other_asleep_and_awakable() {
    let host = Host::new();
    let (server, mut client) = host.pair(&sizes(0, 0));
    let (mut sender, mut receiver) = server.split().unwrap();
    sender.send_all(&[0; 2048]).unwrap();
    thread::scope(|scope| {
        // The first to sleep leads; it gives up while the other one waits on it.
        let first = scope.spawn(move || {
            sender.set_timeout(Some(3 * SHORT));
            let result = sender.send(&[0]);
            (sender, result)
        });
        thread::sleep(SHORT);
        let second = scope.spawn(move || {
            receiver.set_timeout(Some(LONG));
            receiver.recv_exact(&mut [0]).unwrap();
        });
        let (_sender, result) = first.join().unwrap();
        assert!(matches!(result, Err(Error::TimedOut(_))));
        client.send_all(&[1]).unwrap();
        second.join().unwrap();
    });
}

#[test]
fn a_server_may_send_before_its_client_comes() {
    let host = Host::new();
    let listener = host.listen(&ListenOptions::default());
    assert_eq!(listener.state().unwrap(), State::Waiting);
    assert!(matches!(listener.wait(Some(SHORT)), Err(Error::TimedOut(SHORT))));
    let mut server = listener.into_channel();
    assert_eq!(server.state().unwrap(), State::Waiting);
    server.send_all(b"welcome").unwrap();
    let mut client = host.connect();
    assert_eq!(server.state().unwrap(), State::Open);
    let mut bytes = [0; 7];
    client.recv_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"welcome");
}

#[test]
fn a_listener_sees_its_client_come_and_even_one_that_left_again() {
    let host = Host::new();
    let listener = host.listen(&ListenOptions::default());
    assert!(!readable(listener.event_fd()));
    let mut client = host.connect();
    assert!(readable(listener.event_fd()));
    assert_eq!(listener.state().unwrap(), State::Open);
    client.send_all(b"short visit").unwrap();
    drop(client);
    let mut server = listener.accept().unwrap();
    let mut said = String::new();
    server.read_to_string(&mut said).unwrap();
    assert_eq!(said, "short visit");
}

#[test]
fn a_client_waits_for_its_server() {
    let host = Host::new();
    let options = ConnectOptions { wait: Some(LONG), ..ConnectOptions::default() };
    thread::scope(|scope| {
        let client = scope.spawn(|| Channel::connect(&host.client, SERVER, PATH, &options).unwrap());
        thread::sleep(SHORT);
        let listener = host.listen(&ListenOptions::default());
        let mut server = listener.accept().unwrap();
        let mut client = client.join().unwrap();
        client.send_all(b"x").unwrap();
        server.recv_exact(&mut [0]).unwrap();
    });
    assert!(host.machine.inventory().iter().all(|line| !line.contains("watch")), "no watch is left");
}

#[test]
fn a_client_that_does_not_block_is_told_when_its_server_has_come_and_comes_back() {
    let host = Host::new();
    let connector = Connector::new(&host.client, SERVER, PATH, &ConnectOptions::default()).unwrap();
    for _ in 0..2 {
        assert!(matches!(connector.try_connect(), Err(Error::WouldBlock)));
        assert!(!readable(connector.event_fd()));
        let listener = host.listen(&sizes(0, 0));
        assert!(readable(connector.event_fd()));
        let mut client = connector.try_connect().unwrap();
        let mut server = listener.accept().unwrap();
        client.send_all(b"here").unwrap();
        server.recv_exact(&mut [0; 4]).unwrap();
        drop(server);
        assert_eq!(client.recv(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_client_that_waits_passes_over_a_killed_server() {
    let host = Host::new();
    let listener = host.listen(&ListenOptions::default());
    let keys: Vec<(String, Vec<u8>)> = ["ring-ref", "event-channel"]
        .map(|key| {
            let path = format!("/local/domain/{SERVER}/{PATH}/{key}");
            let value = host.client.xenstore().unwrap().read(Transaction::NONE, &path).unwrap();
            (path, value)
        })
        .into();
    drop(listener);
    let store = host.server.xenstore().unwrap();
    for (path, value) in keys {
        store.write(Transaction::NONE, &path, &value).unwrap();
        let readable = xen::Permissions::readable_by(SERVER, CLIENT);
        store.set_permissions(Transaction::NONE, &path, &readable).unwrap();
    }
    let now = Channel::connect(&host.client, SERVER, PATH, &ConnectOptions::default());
    assert!(matches!(now, Err(Error::Xen(_))), "{now:?}");
    let options = ConnectOptions { wait: Some(LONG), ..ConnectOptions::default() };
    thread::scope(|scope| {
        let client = scope.spawn(|| Channel::connect(&host.client, SERVER, PATH, &options).unwrap());
        thread::sleep(SHORT);
        let listener = host.listen(&ListenOptions::default());
        client.join().unwrap();
        listener.accept().unwrap();
    });
}

#[test]
fn without_a_server_there_is_an_error_at_once_or_in_time() {
    let host = Host::new();
    for wait in [None, Some(SHORT)] {
        let options = ConnectOptions { wait, ..ConnectOptions::default() };
        let result = Channel::connect(&host.client, SERVER, PATH, &options);
        let message = result.unwrap_err().to_string();
        assert_eq!(
            message,
            "domain 1 offers no vchan at /local/domain/1/data/vchan/2/7/event-channel (or not to this domain)"
        );
    }
}

#[test]
fn impossible_peers_are_refused_before_anything_is_shared() {
    let host = Host::new();
    for (domid, message) in [
        (SERVER, "domain 1 is this domain; a vchan needs two"),
        (DomId(0x7ff0), "domain 32752 cannot exist (the largest id is 32751)"),
    ] {
        let error = Listener::open(&host.server, domid, PATH, &ListenOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), message);
        let options = ConnectOptions { wait: Some(LONG), ..ConnectOptions::default() };
        let error = Channel::connect(&host.server, domid, PATH, &options).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    let options = ListenOptions { read_min: (1 << 20) + 1, ..ListenOptions::default() };
    let error = Listener::open(&host.server, CLIENT, PATH, &options).unwrap_err();
    assert_eq!(error.to_string(), "a ring of 1048577 bytes is too large (at most 1048576)");
    assert_eq!(host.machine.counts().of("xengntshr_open"), 0);
}

#[test]
fn a_second_client_finds_the_port_taken_and_disturbs_nobody() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&ListenOptions::default());
    let second = Channel::connect(&host.client, SERVER, PATH, &ConnectOptions::default());
    assert!(matches!(&second, Err(Error::Xen(error)) if error.kind() == ErrorKind::Invalid), "{second:?}");
    client.send_all(b"still here").unwrap();
    server.recv_exact(&mut [0; 10]).unwrap();
}

#[test]
fn a_client_without_the_right_gets_nothing() {
    let host = Host::new();
    let _listener = host.listen(&ListenOptions::default());
    let stranger = host.machine.domain(DomId(3));
    let result = Channel::connect(&stranger, SERVER, PATH, &ConnectOptions::default());
    assert!(matches!(result, Err(Error::NoServer { .. })));
}

#[test]
fn a_path_may_be_long_and_absolute() {
    let host = Host::new();
    let path = format!("/local/domain/{SERVER}/data/{}/here", "long-name".repeat(100));
    let listener = Listener::open(&host.server, CLIENT, &path, &ListenOptions::default()).unwrap();
    let mut client = Channel::connect(&host.client, SERVER, &path, &ConnectOptions::default()).unwrap();
    client.send_all(b"x").unwrap();
    listener.accept().unwrap().recv_exact(&mut [0]).unwrap();
}

#[test]
fn a_persistent_server_outlives_its_clients() {
    let host = Host::new();
    let options = ListenOptions { persist: true, ..sizes(0, 0) };
    let (mut server, mut first) = host.pair(&options);
    first.send_all(b"from the first, ").unwrap();
    drop(first);
    assert_eq!(server.state().unwrap(), State::Waiting);
    server.send_all(b"for whoever comes").unwrap();
    let mut second = host.connect();
    assert_eq!(server.state().unwrap(), State::Open);
    second.send_all(b"from the second").unwrap();
    let mut bytes = [0; 31];
    server.recv_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the first, from the second");
    let mut bytes = [0; 17];
    second.recv_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"for whoever comes");
    // The rings stand in the middle now, and go on from there.
    second.set_timeout(Some(LONG));
    server.set_timeout(Some(LONG));
    exchange(server, second, 50_000);
}

#[test]
fn an_ordinary_server_stays_closed_when_another_client_comes() {
    let host = Host::new();
    let (mut server, mut first) = host.pair(&ListenOptions::default());
    first.send_all(b"a").unwrap();
    drop(first);
    assert_eq!(server.state().unwrap(), State::Closed);
    let mut second = host.connect();
    second.send_all(b"b").unwrap();
    let mut got = [0; 9];
    assert_eq!(server.recv(&mut got[..1]).unwrap(), 1);
    assert!(matches!(server.send(b"x"), Err(Error::Closed)));
}

// ---- a peer that breaks the protocol ----

/// Every operation says the same from now on.
fn assert_spoiled(channel: &mut Channel, violation: Violation) {
    channel.set_timeout(Some(LONG));
    for _ in 0..2 {
        let same = |error: &Error| matches!(error, Error::Violation(seen) if *seen == violation);
        assert!(channel.recv(&mut [0; 10]).is_err_and(|error| same(&error)));
        assert!(channel.send(&[0; 10]).is_err_and(|error| same(&error)));
        assert!(channel.recv_exact(&mut [0; 10]).is_err_and(|partial| same(&partial.error)));
        assert!(channel.send_all(&[0; 10]).is_err_and(|partial| same(&partial.error)));
        assert!(channel.ready().is_err_and(|error| same(&error)));
        assert!(channel.room().is_err_and(|error| same(&error)));
        assert!(channel.unread().is_err_and(|error| same(&error)));
        assert!(channel.wait_until_read().is_err_and(|error| same(&error)));
        assert!(channel.state().is_err_and(|error| same(&error)));
    }
}

#[test]
fn corrupt_indices_are_an_error_and_no_hang() {
    for (read_min, write_min, ..) in SIZES {
        for (side, ring) in [(Side::Server, Ring::Left), (Side::Client, Ring::Right)] {
            let host = Host::new();
            let (server, client) = host.pair(&sizes(read_min, write_min));
            let page = host.control_page();
            let mut channel = if side == Side::Server { server } else { client };
            let size = channel.orders().size(ring);
            page.atomic_u32(ring.prod_offset()).store(size + 1, SeqCst);
            let violation = Violation::Indices { ring, prod: size + 1, cons: 0, size };
            assert!(matches!(channel.recv(&mut [0]), Err(Error::Violation(seen)) if seen == violation));
            page.atomic_u32(ring.prod_offset()).store(0, SeqCst);
            assert_spoiled(&mut channel, violation);
        }
        for (side, ring) in [(Side::Server, Ring::Right), (Side::Client, Ring::Left)] {
            let host = Host::new();
            let (server, client) = host.pair(&sizes(read_min, write_min));
            let page = host.control_page();
            let mut channel = if side == Side::Server { server } else { client };
            let size = channel.orders().size(ring);
            channel.send_all(&vec![0; size as usize]).unwrap();
            page.atomic_u32(ring.cons_offset()).store(size + 1, SeqCst);
            let violation = Violation::Indices { ring, prod: size, cons: size + 1, size };
            assert!(matches!(channel.send(&[0]), Err(Error::Violation(seen)) if seen == violation));
            page.atomic_u32(ring.cons_offset()).store(0, SeqCst);
            assert_spoiled(&mut channel, violation);
        }
    }
}

#[test]
fn an_index_that_goes_back_is_an_error() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    client.send_all(&[0; 100]).unwrap();
    server.recv_exact(&mut [0; 60]).unwrap();
    let page = host.control_page();
    page.atomic_u32(Ring::Left.prod_offset()).store(99, SeqCst);
    assert!(matches!(server.ready(), Err(Error::Violation(Violation::Indices { prod: 99, cons: 60, .. }))));
}

#[test]
fn a_sleeper_learns_of_a_violation() {
    let host = Host::new();
    let (mut server, client) = host.pair(&sizes(0, 0));
    let page = host.control_page();
    server.set_timeout(Some(LONG));
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(SHORT);
            page.atomic_u32(Ring::Left.prod_offset()).store(0x8000_0000, SeqCst);
            client.close().unwrap();
        });
        let error = server.recv(&mut [0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the peer broke the protocol: left ring of 1024 bytes: prod 0x80000000, cons 0x0"
        );
    });
}

#[test]
fn the_other_half_learns_of_a_violation_too() {
    let host = Host::new();
    let (server, client) = host.pair(&sizes(0, 0));
    let page = host.control_page();
    let (mut sender, mut receiver) = server.split().unwrap();
    sender.send_all(&[0; 2048]).unwrap();
    thread::scope(|scope| {
        let sleeper = scope.spawn(move || sender.send(&[0]));
        thread::sleep(SHORT);
        page.atomic_u32(Ring::Left.prod_offset()).store(1025, SeqCst);
        assert!(matches!(receiver.recv(&mut [0]), Err(Error::Violation(_))));
        assert!(matches!(
            sleeper.join().unwrap(),
            Err(Error::Violation(Violation::Indices { prod: 1025, .. }))
        ));
    });
    drop(client);
}

#[test]
fn live_bytes_have_two_values_and_a_third_at_the_start() {
    for value in 0..=u8::MAX {
        for side in [Side::Server, Side::Client] {
            let host = Host::new();
            let (server, client) = host.pair(&ListenOptions::default());
            let page = host.control_page();
            let mut channel = if side == Side::Server { server } else { client };
            page.atomic_u8(side.peer().live_offset()).store(value, SeqCst);
            match value {
                0 => assert_eq!(channel.state().unwrap(), State::Closed),
                1 => assert_eq!(channel.state().unwrap(), State::Open),
                _ => {
                    let violation = Violation::Live { side: side.peer(), value };
                    assert!(matches!(channel.state(), Err(Error::Violation(seen)) if seen == violation));
                    page.atomic_u8(side.peer().live_offset()).store(1, SeqCst);
                    assert_spoiled(&mut channel, violation);
                }
            }
        }
    }
}

#[test]
fn notify_bits_without_a_meaning_are_an_error() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&ListenOptions::default());
    let page = host.control_page();
    page.atomic_u8(Side::Client.notify_offset()).store(0x83, SeqCst);
    assert_eq!(client.send(b"sent").unwrap(), 4);
    assert_spoiled(&mut client, Violation::Notify { bits: 0x83 });
    let mut bytes = [0; 9];
    assert_eq!(server.recv(&mut bytes).unwrap(), 4, "the bytes themselves arrived");
}

/// A server that keeps no rules: publishes a control page of its own making.
struct Liar {
    _events: Arc<dyn EventChannels>,
    page: xen::SharedPages,
    store: Arc<dyn Xenstore>,
}

impl Liar {
    fn new(host: &Host, fill: impl FnOnce(&xen::Mapping)) -> Self {
        let events = host.server.event_channels().unwrap();
        let port = events.bind_unbound(CLIENT).unwrap();
        let share = host.server.grant_share().unwrap();
        let page = share.share_pages(CLIENT, 1, xen::Access::ReadWrite).unwrap();
        page.memory().atomic_u8(21).store(1, SeqCst);
        fill(page.memory());
        let store = host.server.xenstore().unwrap();
        let liar = Self { _events: events, page, store };
        liar.publish("ring-ref", &liar.page.grefs()[0].to_string());
        liar.publish("event-channel", &port.to_string());
        liar
    }

    fn publish(&self, key: &str, value: &str) {
        let path = format!("{PATH}/{key}");
        self.store.write(Transaction::NONE, &path, value.as_bytes()).unwrap();
        let permissions = xen::Permissions::readable_by(SERVER, CLIENT);
        self.store.set_permissions(Transaction::NONE, &path, &permissions).unwrap();
    }
}

fn meet(host: &Host, fill: impl FnOnce(&xen::Mapping)) -> Result<Channel> {
    let liar = Liar::new(host, fill);
    let before = host.machine.inventory();
    let result = Channel::connect(&host.client, SERVER, PATH, &ConnectOptions::default());
    if result.is_err() {
        host.becomes(&before, "a client that refused has nothing left");
    }
    drop(liar);
    result
}

fn orders(page: &xen::Mapping, left: u16, right: u16) {
    page.atomic_u16(16).store(left, SeqCst);
    page.atomic_u16(18).store(right, SeqCst);
}

#[test]
fn a_client_refuses_impossible_orders() {
    for (left, right) in [
        (0, 0),
        (9, 12),
        (12, 21),
        (10, 10),
        (11, 11),
        (10, 20),
        (20, 10),
        (u16::MAX, u16::MAX),
        (0x8000, 12),
    ] {
        let result = meet(&Host::new(), |page| orders(page, left, right));
        assert!(
            matches!(result, Err(Error::Violation(seen)) if seen == Violation::Orders { left, right }),
            "{left}, {right}: {result:?}"
        );
    }
}

#[test]
fn a_client_refuses_references_that_are_not_for_it() {
    let host = Host::new();
    for gref in [0, 1, 7, u32::MAX] {
        let result = meet(&host, |page| {
            orders(page, 12, 11);
            page.copy_from(24, &gref.to_ne_bytes());
        });
        assert!(matches!(&result, Err(Error::Xen(_))), "{gref}: {result:?}");
    }
    let other = host.server.grant_share().unwrap();
    let other = other.share_pages(DomId(3), 1, xen::Access::ReadWrite).unwrap();
    let GrantRef(gref) = other.grefs()[0];
    let result = meet(&host, |page| {
        orders(page, 12, 11);
        page.copy_from(24, &gref.to_ne_bytes());
    });
    assert!(matches!(&result, Err(Error::Xen(error)) if error.kind() == ErrorKind::PermissionDenied));
}

#[test]
fn a_client_refuses_impossible_indices_and_live_bytes() {
    let host = Host::new();
    let result = meet(&host, |page| {
        orders(page, 10, 11);
        page.atomic_u32(Ring::Right.prod_offset()).store(2049, SeqCst);
    });
    assert!(matches!(
        result,
        Err(Error::Violation(Violation::Indices { ring: Ring::Right, prod: 2049, .. }))
    ));
    let result = meet(&host, |page| {
        orders(page, 10, 11);
        page.atomic_u32(Ring::Left.cons_offset()).store(1, SeqCst);
    });
    assert!(matches!(result, Err(Error::Violation(Violation::Indices { ring: Ring::Left, cons: 1, .. }))));
    let result = meet(&host, |page| {
        orders(page, 10, 11);
        page.atomic_u8(21).store(2, SeqCst);
    });
    assert!(matches!(result, Err(Error::Violation(Violation::Live { side: Side::Server, value: 2 }))));
    let result = meet(&host, |page| {
        orders(page, 10, 11);
        page.atomic_u8(21).store(0, SeqCst);
    });
    assert!(matches!(result, Err(Error::Closed)), "a server that has gone: {result:?}");
}

#[test]
fn a_scribbler_over_the_whole_page_cannot_do_worse_than_end_the_channel() {
    let end = Instant::now() + Duration::from_secs(2);
    let mut seed = 1_u64;
    let mut rounds = 0;
    while Instant::now() < end {
        let host = Host::new();
        let (server, client) = host.pair(&sizes(0, 4096));
        let page = host.control_page();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let stop = &stop;
        let (mut sender, mut receiver) = server.split().unwrap();
        sender.set_timeout(Some(SHORT));
        receiver.set_timeout(Some(SHORT));
        seed += 1;
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut random = seed;
                while !stop.load(SeqCst) {
                    // xorshift64
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let offset = if random & 1 == 0 { random >> 8 & 31 } else { random >> 8 & 4095 };
                    page.copy_from(offset as usize, &[(random >> 40) as u8]);
                }
            });
            let sending = scope.spawn(move || while sender.send(&[1; 777]).is_ok() {});
            let mut bytes = [0; 777];
            while receiver.recv(&mut bytes).is_ok_and(|n| n > 0) {}
            sending.join().unwrap();
            stop.store(true, SeqCst);
        });
        drop(client);
        rounds += 1;
    }
    assert!(rounds > 10, "only {rounds} rounds");
}

// ---- the end of a domain ----

#[test]
fn a_server_notices_that_xen_no_longer_knows_the_clients_domain() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    client.send_all(b"last words").unwrap();
    // What Xen answers when it is asked for a port of a domain that does not exist.
    host.machine.fail(Some("xenevtchn_bind_interdomain"), 0, ErrorKind::NotFound);
    server.set_timeout(Some(LONG));
    let mut bytes = [0; 10];
    server.recv_exact(&mut bytes).unwrap();
    assert!(matches!(server.recv(&mut bytes), Err(Error::PeerDied(CLIENT))));
    assert!(matches!(server.send(&bytes), Err(Error::PeerDied(CLIENT))));
    assert!(matches!(server.state(), Err(Error::PeerDied(CLIENT))));
}

#[test]
fn both_halves_and_a_listener_notice_the_end_of_a_domain() {
    let host = Host::new();
    let (server, _client) = host.pair(&sizes(0, 0));
    let (mut sender, mut receiver) = server.split().unwrap();
    sender.send_all(&[0; 2048]).unwrap();
    host.machine.fail(Some("xenevtchn_bind_interdomain"), 0, ErrorKind::NotFound);
    thread::scope(|scope| {
        let sending = scope.spawn(move || sender.send(&[0]));
        assert!(matches!(receiver.recv(&mut [0]), Err(Error::PeerDied(CLIENT))));
        assert!(matches!(sending.join().unwrap(), Err(Error::PeerDied(CLIENT))));
    });

    let host = Host::new();
    let listener = host.listen(&sizes(0, 0));
    host.machine.fail(Some("xenevtchn_bind_interdomain"), 0, ErrorKind::NotFound);
    assert!(matches!(listener.accept(), Err(Error::PeerDied(CLIENT))));
}

#[test]
fn dom0_notices_that_xenstored_no_longer_knows_the_domain() {
    let host = Host::new();
    let dom0 = host.machine.domain(DomId::DOM0);
    let store = dom0.xenstore().unwrap();
    for domid in [DomId::DOM0, SERVER] {
        store.introduce(domid, xen::Gfn(0), Port(1)).unwrap();
    }
    let listener = Listener::open(&host.server, DomId::DOM0, PATH, &ListenOptions::default()).unwrap();
    let options = ConnectOptions { probe_interval: SHORT, server_keeps_keys: false, ..Default::default() };
    let mut client = Channel::connect(&dom0, SERVER, PATH, &options).unwrap();
    let _server = listener.accept().unwrap();
    client.set_timeout(Some(3 * SHORT));
    assert!(matches!(client.recv(&mut [0]), Err(Error::TimedOut(_))), "it lives");
    store.release(SERVER).unwrap();
    client.set_timeout(Some(LONG));
    assert!(matches!(client.recv(&mut [0]), Err(Error::PeerDied(SERVER))));
}

#[test]
fn a_client_in_a_guest_notices_the_loss_of_the_servers_keys() {
    let host = Host::new();
    let listener = host.listen(&ListenOptions::default());
    let options = ConnectOptions { probe_interval: SHORT, ..Default::default() };
    let mut client = Channel::connect(&host.client, SERVER, PATH, &options).unwrap();
    let _server = listener.accept().unwrap();
    client.probe().unwrap();
    // xenstored removes what a destroyed domain owned.
    let store = host.machine.domain(DomId::DOM0).xenstore().unwrap();
    store.remove(Transaction::NONE, "/local/domain/1/data").unwrap();
    client.set_timeout(Some(LONG));
    assert!(matches!(client.recv(&mut [0]), Err(Error::PeerDied(SERVER))));
}

#[test]
fn who_wants_an_unused_server_waits_for_the_next_one() {
    let host = Host::new();
    let options = ConnectOptions { unused_only: true, ..Default::default() };
    let connect = |options: &ConnectOptions| Channel::connect(&host.client, SERVER, PATH, options);
    let mut server = host.listen(&sizes(0, 0)).into_channel();
    let client = connect(&options).unwrap();
    assert_eq!(server.state().unwrap(), State::Open);
    drop(client);
    // The server has not looked meanwhile: to it the next one would be the same.
    assert!(matches!(connect(&options), Err(Error::Closed)));
    assert_eq!(server.recv(&mut [0]).unwrap(), 0, "it sees that the first has gone");
    drop(server);
    let waits = ConnectOptions { wait: Some(LONG), ..options.clone() };
    let mut next = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| connect(&waits).unwrap());
        let mut server = host.listen(&sizes(0, 0)).into_channel();
        let client = waiting.join().unwrap();
        server.send_all(b"next").unwrap();
        (server, client)
    });
    let mut bytes = [0; 4];
    next.1.recv_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"next");
}

#[test]
fn who_holds_a_waker_keeps_no_channel_open() {
    let host = Host::new();
    let (mut server, client) = host.pair(&sizes(0, 0));
    let waker = client.event_waker();
    drop(client);
    server.set_timeout(Some(LONG));
    assert_eq!(server.recv(&mut [0]).unwrap(), 0);
    waker.wake();
}

#[test]
fn it_may_be_looked_never_or_all_the_time() {
    for probe_interval in [Duration::MAX, Duration::ZERO] {
        let host = Host::new();
        let listener = host.listen(&ListenOptions { probe_interval, ..sizes(0, 0) });
        let options = ConnectOptions { probe_interval, ..Default::default() };
        let mut client = Channel::connect(&host.client, SERVER, PATH, &options).unwrap();
        let mut server = listener.accept().unwrap();
        client.set_timeout(Some(SHORT));
        assert!(matches!(client.recv(&mut [0]), Err(Error::TimedOut(SHORT))));
        server.send_all(b"x").unwrap();
        client.recv_exact(&mut [0]).unwrap();
    }
}

/// Although nobody has waited for the server yet, and nobody has probed.
#[test]
fn a_client_in_a_guest_misses_keys_that_were_there_soon_after_it_came() {
    let host = Host::new();
    let listener = host.listen(&ListenOptions::default());
    let options = ConnectOptions { probe_interval: SHORT, ..Default::default() };
    let mut client = Channel::connect(&host.client, SERVER, PATH, &options).unwrap();
    let _server = listener.accept().unwrap();
    thread::sleep(5 * SHORT);
    let store = host.machine.domain(DomId::DOM0).xenstore().unwrap();
    store.remove(Transaction::NONE, "/local/domain/1/data").unwrap();
    client.set_timeout(Some(LONG));
    assert!(matches!(client.recv(&mut [0]), Err(Error::PeerDied(SERVER))));
}

#[test]
fn keys_that_were_removed_early_are_no_sign_of_death() {
    for server_keeps_keys in [true, false] {
        let host = Host::new();
        let listener = host.listen(&ListenOptions::default());
        let options = ConnectOptions { probe_interval: SHORT, server_keeps_keys, ..Default::default() };
        let mut client = Channel::connect(&host.client, SERVER, PATH, &options).unwrap();
        let mut server = listener.accept().unwrap();
        let store = host.server.xenstore().unwrap();
        store.remove(Transaction::NONE, PATH).unwrap();
        client.probe().unwrap();
        client.probe().unwrap();
        client.set_timeout(Some(2 * SHORT));
        assert!(matches!(client.recv(&mut [0]), Err(Error::TimedOut(_))));
        server.send_all(b"x").unwrap();
        client.recv_exact(&mut [0]).unwrap();
    }
}

#[test]
fn a_poller_can_look_after_the_peers_domain_itself() {
    let host = Host::new();
    let (server, _client) = host.pair(&ListenOptions::default());
    server.probe().unwrap();
    host.machine.fail(Some("xenevtchn_bind_interdomain"), 0, ErrorKind::NotFound);
    assert!(matches!(server.probe(), Err(Error::PeerDied(CLIENT))));
    assert!(matches!(server.probe(), Err(Error::PeerDied(CLIENT))), "and it stays so");
}

// ---- in place, from and to descriptors, corked ----

#[test]
fn bytes_are_made_and_looked_at_in_the_ring_and_round_its_end() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    for round in 0..10 {
        let bytes = pattern(round, 700);
        let mut room = client.reserve(700).unwrap();
        assert!(room.len() >= 700);
        let [mut first, mut second] = room.segments();
        let len = first.len().min(700);
        first.copy_from(0, &bytes[..len]);
        second.copy_from(0, &bytes[len..]);
        room.commit(700).unwrap();

        let there = server.peek(700).unwrap();
        assert_eq!(there.len(), 700);
        let [first, second] = there.segments();
        let mut got = vec![0; 700];
        first.copy_to(0, &mut got[..first.len()]);
        second.copy_to(0, &mut got[first.len()..]);
        assert!(got == bytes, "round {round}");
        assert_eq!(first.bytes().chain(second.bytes()).collect::<Vec<_>>(), bytes);
        there.consume(700);
    }
    assert_eq!(client.metrics().bytes, 7000);
    assert_eq!(server.metrics().operations, 10);
}

#[test]
fn what_is_dropped_was_neither_sent_nor_received() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    assert!(client.reserve(10).unwrap().len() >= 10);
    assert_eq!(server.ready().unwrap(), 0);
    client.send_all(b"still there").unwrap();
    assert_eq!(server.peek(1).unwrap().len(), 11);
    let mut bytes = [0; 11];
    server.recv_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still there");
    assert!(matches!(client.reserve(1025), Err(Error::RingTooSmall { asked: 1025, size: 1024 })));
    assert!(matches!(server.peek(usize::MAX), Err(Error::RingTooSmall { .. })));
    client.send_all(b"last").unwrap();
    drop(client);
    assert_eq!(server.peek(5).unwrap().len(), 4, "fewer at the end");
    server.recv_exact(&mut [0; 4]).unwrap();
    assert!(server.peek(1).unwrap().is_empty());
    assert!(matches!(server.reserve(1), Err(Error::Closed)));
}

#[test]
#[should_panic(expected = "1025 bytes committed of 1024")]
fn no_more_is_committed_than_there_is_room_for() {
    let host = Host::new();
    let (_server, mut client) = host.pair(&sizes(0, 0));
    let _ = client.reserve(1).unwrap().commit(1025);
}

#[test]
fn descriptors_are_read_into_the_ring_and_written_from_it() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    let (from, to) = (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());
    let mut total = 0;
    for round in 0..20 {
        let bytes = pattern(total, 333);
        assert_eq!(rustix::io::write(&from.1, &bytes).unwrap(), 333);
        let mut moved = 0;
        while moved < 333 {
            moved += client.read_from_fd(&from.0, 200).unwrap();
        }
        let mut out = 0;
        while out < 333 {
            out += server.write_to_fd(&to.1, 150).unwrap();
        }
        let mut got = vec![0; 333];
        assert_eq!(rustix::io::read(&to.0, &mut got).unwrap(), 333);
        assert!(got == bytes, "round {round}");
        total += 333;
    }
    drop(from.1);
    assert_eq!(client.read_from_fd(&from.0, 10).unwrap(), 0, "the end of the file");
    assert_eq!(client.read_from_fd(&from.0, 0).unwrap(), 0);
    drop(to.0);
    client.send_all(b"kept").unwrap();
    assert!(matches!(server.write_to_fd(&to.1, 10), Err(Error::System { call: "writev", .. })));
    server.recv_exact(&mut [0; 4]).unwrap();
    drop(client);
    assert_eq!(server.write_to_fd(&to.1, 10).unwrap(), 0, "the end of the stream");
}

#[test]
fn what_follows_a_message_is_read_with_it_and_not_sent() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    let from = rustix::pipe::pipe().unwrap();
    // Round the ring several times; each message has 61 bytes, and 4 of the next are there, or fewer, or none.
    for round in 0..500 {
        let follow = round % 5;
        let bytes = pattern(round * 61, 61 + follow);
        assert_eq!(rustix::io::write(&from.1, &bytes).unwrap(), 61 + follow);
        let mut then = [0xee; 4];
        let mut chunk = client.reserve(61).unwrap();
        assert_eq!(chunk.read_from_fd_then(0, &from.0, 61, &mut then).unwrap(), 61 + follow);
        chunk.commit(61).unwrap();
        assert_eq!(then[..follow], bytes[61..]);
        assert!(then[follow..].iter().all(|byte| *byte == 0xee));
        let mut got = vec![0; 61];
        server.recv_exact(&mut got).unwrap();
        assert!(got == bytes[..61], "round {round}");
    }
}

#[test]
fn a_header_and_what_it_says_of_go_out_together() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    let (from, to) = (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());
    // The ring is gone round several times, so that every part of a frame lies across its end once.
    for round in 0..500 {
        let bytes = pattern(round * 61, 61);
        assert_eq!(rustix::io::write(&from.1, &bytes).unwrap(), 61);
        let mut chunk = client.reserve(4 + 100).unwrap();
        let n = chunk.read_from_fd(4, &from.0, 100).unwrap();
        assert_eq!(n, 61);
        chunk.fill(0, &(n as u32).to_le_bytes());
        chunk.commit(4 + n).unwrap();

        let chunk = server.peek(4 + n).unwrap();
        let mut header = [0; 4];
        chunk.copy_to(0, &mut header);
        assert_eq!(u32::from_le_bytes(header), 61);
        let (first, second) =
            (chunk.write_to_fd(4, &to.1, 20).unwrap(), chunk.write_to_fd(24, &to.1, 41).unwrap());
        assert_eq!((first, second), (20, 41));
        assert_eq!(chunk.write_to_fd(chunk.len(), &to.1, 1).unwrap(), 0);
        chunk.consume(4 + n);
        let mut got = vec![0; 61];
        assert_eq!(rustix::io::read(&to.0, &mut got).unwrap(), 61);
        assert!(got == bytes, "round {round}");
    }
    // What is not committed was not sent.
    client.reserve(10).unwrap().fill(3, b"never");
    client.send_all(b"x").unwrap();
    let mut one = [0];
    server.recv_exact(&mut one).unwrap();
    assert_eq!(&one, b"x");
}

#[test]
fn a_cork_holds_back_until_a_flush_a_part_of_the_ring_or_a_wait() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    quiet(&mut server);
    host.machine.reset_counts();
    client.set_corked(true);
    for _ in 0..10 {
        client.send_all(b"0123456789").unwrap();
    }
    assert_eq!(server.ready().unwrap(), 0);
    client.flush().unwrap();
    assert_eq!(server.ready().unwrap(), 100);
    assert_eq!(host.machine.counts().of("xenevtchn_notify"), 1, "one for ten messages");
    client.send_all(&[1; 300]).unwrap();
    assert!(server.ready().unwrap() >= 356, "a quarter of 1,024");
    client.send_all(b"x").unwrap();
    client.set_timeout(Some(SHORT));
    assert!(matches!(client.recv(&mut [0]), Err(Error::TimedOut(_))));
    assert_eq!(server.ready().unwrap(), 401, "who waits for an answer has asked");
    client.send_all(b"y").unwrap();
    client.set_corked(false);
    assert_eq!(server.ready().unwrap(), 402);
    client.set_corked(true);
    client.send_all(b"z").unwrap();
    client.close().unwrap();
    server.recv_exact(&mut [0; 403]).unwrap();
}

#[test]
fn several_buffers_are_one_message() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    quiet(&mut server);
    host.machine.reset_counts();
    let parts = [IoSlice::new(b"head"), IoSlice::new(b""), IoSlice::new(b"and body")];
    assert_eq!(client.send_vectored(&parts).unwrap(), 12);
    assert_eq!(host.machine.counts().of("xenevtchn_notify"), 1);
    let (mut head, mut body) = ([0; 4], [0; 100]);
    let n = server.recv_vectored(&mut [IoSliceMut::new(&mut head), IoSliceMut::new(&mut body)]).unwrap();
    assert_eq!((n, &head, &body[..8]), (12, b"head", &b"and body"[..]));
    let large = vec![7; 5000];
    client.set_nonblocking(true);
    assert_eq!(client.send_vectored(&[IoSlice::new(&large), IoSlice::new(b"more")]).unwrap(), 1024);
    assert!(matches!(client.send_vectored(&[IoSlice::new(b"x")]), Err(Error::WouldBlock)));
}

#[test]
fn no_buffer_follows_half_of_another_while_the_peer_makes_room() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    let expected = pattern(0, 2_000_000);
    thread::scope(|scope| {
        let expected = &expected;
        scope.spawn(move || {
            client.set_timeout(Some(LONG));
            let mut sent = 0;
            while sent < expected.len() {
                let (first, rest) = expected[sent..].split_at((expected.len() - sent).min(1300));
                sent += client.send_vectored(&[IoSlice::new(first), IoSlice::new(rest)]).unwrap();
            }
        });
        server.set_timeout(Some(LONG));
        let mut got = vec![0; expected.len()];
        for part in got.chunks_mut(17) {
            server.recv_exact(part).unwrap();
        }
        assert!(got == *expected);
    });
}

#[test]
fn the_room_of_what_was_received_is_back_before_anything_that_may_depend_on_it() {
    let host = Host::new();
    let (mut server, mut client) = host.pair(&sizes(0, 0));
    let room = |client: &mut Channel| client.room().unwrap();
    client.send_all(&[0; 1024]).unwrap();
    server.recv_exact(&mut [0; 100]).unwrap();
    assert_eq!(room(&mut client), 0, "held back");
    server.recv_exact(&mut [0; 156]).unwrap();
    assert_eq!(room(&mut client), 256, "a quarter of the ring");
    server.recv_exact(&mut [0; 10]).unwrap();
    server.send_all(b"x").unwrap();
    assert_eq!(room(&mut client), 266, "before something is sent");
    server.recv_exact(&mut [0; 10]).unwrap();
    server.set_nonblocking(true);
    server.recv_exact(&mut [0; 10]).unwrap();
    assert_eq!(room(&mut client), 286, "who does not block");
    server.set_nonblocking(false);
    server.recv_exact(&mut [0; 738]).unwrap();
    assert_eq!(room(&mut client), 1024, "when all was taken");
    client.send_all(&[0; 20]).unwrap();
    server.recv_exact(&mut [0; 10]).unwrap();
    let (_sender, receiver) = server.split().unwrap();
    drop(receiver);
    assert_eq!(room(&mut client), 1014, "and at the end");
}
