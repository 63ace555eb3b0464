use super::*;
use crate::fixture::{CLIENT, Host, SERVER, pattern, sizes};
use crate::{Receiver, Sender};
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use xen::Transaction;

/// Long enough that only a hang lasts longer.
const LONG: Duration = Duration::from_secs(20);
/// Long enough for a thread to fall asleep; a test that needs it passes without, too.
const SHORT: Duration = Duration::from_millis(20);

fn hubs(host: &Host) -> (Hub, Hub) {
    (Hub::open(host.server.clone()).unwrap(), Hub::open(host.client.clone()).unwrap())
}

fn path(n: usize) -> String {
    format!("data/vchan/2/{n}")
}

/// Server and client of the N-th channel.
fn pair((vault, work): &(Hub, Hub), n: usize, options: &ListenOptions) -> (Channel, Channel) {
    let listener = vault.listen(CLIENT, &path(n), options).unwrap();
    let connect = ConnectOptions { probe_interval: options.probe_interval, ..ConnectOptions::default() };
    let client = work.connect(SERVER, &path(n), &connect).unwrap();
    let [mut server, mut client] = [listener.accept().unwrap(), client];
    server.set_timeout(Some(LONG));
    client.set_timeout(Some(LONG));
    (server, client)
}

fn send(mut sender: Sender, bytes: &[u8], step: usize) {
    bytes.chunks(step).for_each(|part| sender.send_all(part).unwrap());
    sender.wait_until_read().unwrap();
}

fn receive(mut receiver: Receiver, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    receiver.recv_exact(&mut got).unwrap();
    assert!(got == expected);
}

#[test]
fn threads_talk_over_many_channels_of_one_hub() {
    const CHANNELS: usize = 6;
    let host = Host::new();
    let hubs = hubs(&host);
    let ends: Vec<_> = (0..CHANNELS).map(|n| pair(&hubs, n, &sizes(n * 900, 0))).collect();
    let bytes = pattern(0, 60_000);
    std::thread::scope(|scope| {
        for (n, (server, client)) in ends.into_iter().enumerate() {
            for end in [server, client] {
                let (sender, receiver) = end.split().unwrap();
                let bytes = &bytes;
                scope.spawn(move || send(sender, bytes, 700 + n));
                scope.spawn(move || receive(receiver, bytes));
            }
        }
    });
}

#[test]
fn one_handle_of_each_kind_serves_all_and_nothing_is_left() {
    let host = Host::new();
    host.server.xenstore().unwrap().mkdir(Transaction::NONE, "data/vchan/2").unwrap();
    let before = host.machine.inventory();
    host.machine.reset_counts();
    let hubs = hubs(&host);
    let options = ListenOptions { probe_interval: LONG, ..sizes(0, 0) };
    let ends: Vec<_> = (0..50).map(|n| pair(&hubs, n, &options)).collect();
    let counts = host.machine.counts();
    for (call, handles) in
        [("xenevtchn_open", 2), ("xs_open", 2), ("xengntshr_open", 1), ("xengnttab_open", 1)]
    {
        assert_eq!(counts.of(call), handles, "{call}");
    }
    assert_eq!(counts.xenstore_transactions(), 0);
    // Each client reads two keys, each hub its domain's number; each hub has a bell, and looks once at the other's domain.
    assert_eq!(counts.of("xs_read"), 2 * 50 + 2);
    assert_eq!(counts.of("xenevtchn_bind_interdomain"), 50 + 2 + 2);
    for (server, client) in &ends {
        assert!(server.event_fd().is_none() && client.event_fd().is_none());
    }
    // The channels keep the hubs alive.
    drop(hubs);
    for (mut server, mut client) in ends {
        client.send_all(b"still here").unwrap();
        drop(client);
        let mut said = [0; 11];
        server.recv_exact(&mut said[..10]).unwrap();
        assert_eq!(&said[..10], b"still here");
        assert_eq!(server.recv(&mut said).unwrap(), 0);
    }
    host.becomes(&before, "closed");
}

#[test]
fn a_sleeper_is_woken_by_a_close_by_its_other_half_and_by_a_violation() {
    let host = Host::new();
    let hubs = hubs(&host);
    let (server, client) = pair(&hubs, 1, &sizes(0, 0));
    let (sender, mut receiver) = server.split().unwrap();
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(move || receiver.recv(&mut [0]));
        std::thread::sleep(SHORT);
        sender.close().unwrap();
        assert!(matches!(sleeping.join().unwrap(), Err(Error::ClosedHere)));
    });
    drop(client);

    let (mut server, client) = pair(&hubs, 2, &sizes(0, 0));
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(move || server.recv(&mut [0]));
        std::thread::sleep(SHORT);
        drop(client);
        assert_eq!(sleeping.join().unwrap().unwrap(), 0);
    });

    let (mut server, _client) = pair(&hubs, 3, &sizes(0, 0));
    server.set_timeout(Some(SHORT));
    assert!(matches!(server.recv(&mut [0]), Err(Error::TimedOut(SHORT))));
}

/// An executor as small as can be: the tasks that were woken come through a channel.
struct Tasks {
    woken: mpsc::Receiver<usize>,
    wakers: Vec<Waker>,
    wakes: Arc<AtomicUsize>,
}

struct Task {
    number: usize,
    woken: mpsc::SyncSender<usize>,
    wakes: Arc<AtomicUsize>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, SeqCst);
        let _ = self.woken.send(self.number);
    }
}

impl Tasks {
    fn new(count: usize) -> Self {
        let (sender, woken) = mpsc::sync_channel(1 << 16);
        let wakes = Arc::new(AtomicUsize::new(0));
        let task = |number| Arc::new(Task { number, woken: sender.clone(), wakes: Arc::clone(&wakes) });
        let wakers = (0..count).map(|number| Waker::from(task(number))).collect();
        (0..count).for_each(|number| sender.send(number).unwrap());
        Self { woken, wakers, wakes }
    }

    /// Runs tasks until so many have ended.
    fn run(&self, mut left: usize, mut poll: impl FnMut(usize, &mut Context<'_>) -> Poll<()>) {
        while left > 0 {
            let number = self.woken.recv_timeout(LONG).expect("no wake-up is lost");
            if poll(number, &mut Context::from_waker(&self.wakers[number])).is_ready() {
                left -= 1;
            }
        }
    }
}

/// Each task sends a message back and forth; both ends in one thread, without a reactor.
#[test]
fn tasks_of_any_executor_are_woken() {
    const CHANNELS: usize = 40;
    const ROUNDS: usize = 25;
    let host = Host::new();
    let hubs = hubs(&host);
    let (mut servers, mut clients): (Vec<_>, Vec<_>) =
        (0..CHANNELS).map(|n| pair(&hubs, n, &sizes(0, 0))).unzip();
    let tasks = Tasks::new(2 * CHANNELS);
    // Of each task, how many messages it has sent and received; the clients begin.
    let mut done = vec![(0, 0); 2 * CHANNELS];
    tasks.run(2 * CHANNELS, |number, context| {
        let (sent, received) = &mut done[number];
        let server = number >= CHANNELS;
        let end = if server { &mut servers[number - CHANNELS] } else { &mut clients[number] };
        while *received < ROUNDS || *sent < ROUNDS {
            let speaks = if server { *sent < *received } else { *sent == *received };
            if speaks {
                let Poll::Ready(result) = end.poll_send(context, &[*sent as u8]) else {
                    return Poll::Pending;
                };
                assert_eq!(result.unwrap(), 1);
                *sent += 1;
            } else {
                let mut said = [0];
                let Poll::Ready(result) = end.poll_recv(context, &mut said) else { return Poll::Pending };
                assert_eq!((result.unwrap(), said), (1, [*received as u8]));
                *received += 1;
            }
        }
        Poll::Ready(())
    });
}

/// Two tasks at each end fill and empty small rings; a third looks whether all was read.
#[test]
fn a_task_is_woken_for_room_for_a_client_and_for_the_end() {
    let host = Host::new();
    let (vault, work) = hubs(&host);
    let mut listener = vault.listen(CLIENT, &path(1), &sizes(0, 0)).unwrap();
    let tasks = Tasks::new(1);
    let mut client = None;
    tasks.run(1, |_, context| {
        let polled = listener.poll_accept(context);
        if client.is_none() {
            assert!(polled.is_pending());
            client = Some(work.connect(SERVER, &path(1), &ConnectOptions::default()).unwrap());
        }
        polled.map(Result::unwrap)
    });
    let mut client = client.unwrap();
    let mut server = listener.into_channel();

    let bytes = pattern(0, 20_000);
    let (mut sent, mut got) = (0, Vec::new());
    Tasks::new(2).run(2, |number, context| {
        if number == 0 {
            while sent < bytes.len() {
                let Poll::Ready(result) = client.poll_send(context, &bytes[sent..]) else {
                    return Poll::Pending;
                };
                sent += result.unwrap();
            }
            return client.poll_until_read(context).map(Result::unwrap);
        }
        let mut part = [0; 900];
        while got.len() < bytes.len() {
            let Poll::Ready(result) = server.poll_recv(context, &mut part) else { return Poll::Pending };
            got.extend_from_slice(&part[..result.unwrap()]);
        }
        Poll::Ready(())
    });
    assert!(got == bytes);

    let mut client = Some(client);
    Tasks::new(1).run(1, |_, context| {
        let polled = server.poll_recv(context, &mut [0]);
        drop(client.take());
        polled.map(|result| assert_eq!(result.unwrap(), 0))
    });
}

#[test]
fn silent_channels_cost_one_question_for_all() {
    const CHANNELS: usize = 20;
    let host = Host::new();
    let hubs = hubs(&host);
    let options = ListenOptions { probe_interval: 10 * SHORT, ..ListenOptions::default() };
    let (mut servers, _clients): (Vec<_>, Vec<_>) = (0..CHANNELS).map(|n| pair(&hubs, n, &options)).unzip();
    let tasks = Tasks::new(CHANNELS);
    let mut waiting = 0;
    tasks.run(0, |_, _| Poll::Pending);
    while waiting < CHANNELS {
        let number = tasks.woken.recv_timeout(LONG).unwrap();
        let context = &mut Context::from_waker(&tasks.wakers[number]);
        assert!(servers[number].poll_recv(context, &mut [0]).is_pending());
        waiting += 1;
    }
    // The hubs have yet to take the events of the set-up.
    std::thread::sleep(SHORT);
    let woken = tasks.wakes.load(SeqCst);
    host.machine.reset_counts();
    let begin = std::time::Instant::now();
    std::thread::sleep(40 * SHORT);
    let looks = begin.elapsed().as_millis() / (10 * SHORT).as_millis() + 1;
    let asked = u128::from(host.machine.counts().of("xenevtchn_bind_interdomain"));
    // Should two of the looks meet the end of an interval from both sides, each asks.
    assert!((1..=2 * looks).contains(&asked), "{asked} questions in {looks} intervals");
    assert_eq!(host.machine.counts().of("xenevtchn_pending"), 0);
    assert_eq!(tasks.wakes.load(SeqCst), woken, "nobody was woken in vain");
}

#[test]
fn tasks_and_threads_learn_of_the_end_of_a_domain() {
    let host = Host::new();
    let hubs = hubs(&host);
    let (mut first, _client) = pair(&hubs, 1, &sizes(0, 0));
    let (mut second, _other) = pair(&hubs, 2, &sizes(0, 0));
    for _ in 0..100 {
        host.machine.fail(Some("xenevtchn_bind_interdomain"), 0, ErrorKind::NotFound);
    }
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(move || first.recv(&mut [0]));
        Tasks::new(1).run(1, |_, context| {
            second
                .poll_recv(context, &mut [0])
                .map(|result| assert!(matches!(result, Err(Error::PeerDied(CLIENT)))))
        });
        assert!(matches!(sleeping.join().unwrap(), Err(Error::PeerDied(CLIENT))));
    });
}

#[test]
fn a_hub_that_cannot_take_events_any_more_says_so() {
    let host = Host::new();
    let hubs = hubs(&host);
    let (mut server, mut client) = pair(&hubs, 1, &sizes(0, 0));
    // For the hub's thread, for the sleeper that takes its place, and perhaps for the other hub's thread.
    for _ in 0..3 {
        host.machine.fail(Some("xenevtchn_pending"), 0, ErrorKind::Other);
    }
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(move || {
            loop {
                match server.recv(&mut [0]) {
                    Ok(1) => {}
                    result => return result,
                }
            }
        });
        // Until it has given up, and dropped its end.
        while client.send_all(&[0]).is_ok() {
            std::thread::sleep(SHORT);
        }
        let result = sleeping.join().unwrap();
        assert!(
            matches!(&result, Err(Error::Xen(error)) if error.call() == "xenevtchn_pending"),
            "{result:?}"
        );
    });
}

#[test]
fn those_who_wait_for_their_servers_share_one_connection() {
    let host = Host::new();
    let (vault, work) = hubs(&host);
    let options = ConnectOptions { wait: Some(LONG), ..ConnectOptions::default() };
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .map(|n| {
                let (work, options) = (&work, &options);
                scope.spawn(move || work.connect(SERVER, &path(n), options).unwrap())
            })
            .collect();
        std::thread::sleep(SHORT);
        let listeners: Vec<_> =
            (0..4).rev().map(|n| vault.listen(CLIENT, &path(n), &sizes(0, 0)).unwrap()).collect();
        for listener in listeners {
            listener.accept().unwrap();
        }
        waiting.into_iter().for_each(|client| drop(client.join().unwrap()));
    });
}
