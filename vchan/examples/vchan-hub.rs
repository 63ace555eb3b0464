//! Many channels in one process, all talking, over one hub and without a runtime: what `poll_send` and `poll_recv` need of
//! an executor is a queue of those that were woken.
//!
//! ```text
//! vchan-hub server|client DOMID PATH CHANNELS ROUNDS [SILENCE]
//! ```
//! The server offers CHANNELS channels below PATH, and sends back what comes. On each the client sends ROUNDS messages of
//! up to 3,000 bytes, and checks what comes back; then it listens into the silence for so many seconds. Each prints one line
//! when it is done, `ok channels=N descriptors=N threads=N`: what this process had open while all channels were; the client
//! also `silence_cpu_us=N`, the processor time that the silence cost it.
#![forbid(unsafe_code)]

use rustix::time::{ClockId, clock_gettime};
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;
use vchan::{Channel, ConnectOptions, Hub, ListenOptions, Listener};
use xen::DomId;
use xen::host::Host;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: vchan-hub server|client DOMID PATH CHANNELS ROUNDS [SILENCE]";
/// Longer than any step here takes.
const PATIENCE: Duration = Duration::from_secs(100);
const LONGEST: usize = 3000;

/// The tasks that were woken, by their numbers.
struct Queue {
    woken: mpsc::Receiver<usize>,
    wakers: Vec<Waker>,
}

struct Task {
    number: usize,
    queue: mpsc::Sender<usize>,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        // Fails only when nobody runs tasks any more.
        let _ = self.queue.send(self.number);
    }
}

impl Queue {
    fn new(tasks: usize) -> Self {
        let (queue, woken) = mpsc::channel();
        let task = |number| Waker::from(Arc::new(Task { number, queue: queue.clone() }));
        Self { woken, wakers: (0..tasks).map(task).collect() }
    }

    /// Polls every task, and then those that are woken, until all have ended.
    fn run(&self, mut poll: impl FnMut(usize, &mut Context<'_>) -> Poll<Outcome<()>>) -> Outcome<()> {
        let mut left = self.wakers.len();
        self.wakers.iter().for_each(Waker::wake_by_ref);
        let mut ended = vec![false; left];
        while left > 0 {
            let number = self.woken.recv_timeout(PATIENCE)?;
            if ended[number] {
                continue;
            }
            if let Poll::Ready(result) = poll(number, &mut Context::from_waker(&self.wakers[number])) {
                result.map_err(|error| format!("channel {number}: {error}"))?;
                ended[number] = true;
                left -= 1;
            }
        }
        Ok(())
    }

    /// Waits so long for a task to be woken, which is an error.
    fn stay_silent(&self, time: Duration) -> Outcome<()> {
        match self.woken.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(number) => Err(format!("channel {number} was woken in the silence").into()),
        }
    }
}

/// What the client does on a channel.
struct Speaker {
    channel: Channel,
    round: usize,
    sent: usize,
    received: usize,
}

fn message(channel: usize, round: usize) -> Vec<u8> {
    let length = 1 + (channel * 7919 + round * 104_729) % LONGEST;
    (0..length).map(|i| (i ^ i >> 8).wrapping_add(channel ^ round).wrapping_mul(167) as u8).collect()
}

impl Speaker {
    /// Sends and receives until all rounds are over: of a message longer than the rings, both at once.
    fn poll(&mut self, number: usize, rounds: usize, context: &mut Context<'_>) -> Poll<Outcome<()>> {
        while self.round < rounds {
            let message = message(number, self.round);
            let mut moved = false;
            if self.sent < message.len()
                && let Poll::Ready(n) = self.channel.poll_send(context, &message[self.sent..])?
            {
                self.sent += n;
                moved = true;
            }
            let mut part = [0; LONGEST];
            if let Poll::Ready(n) = self.channel.poll_recv(context, &mut part)? {
                if n == 0 || message.get(self.received..self.received + n) != Some(&part[..n]) {
                    return Poll::Ready(Err(
                        format!("round {}: {n} bytes, and other ones", self.round).into()
                    ));
                }
                self.received += n;
                moved = true;
            }
            if self.received == message.len() {
                (self.round, self.sent, self.received) = (self.round + 1, 0, 0);
            } else if !moved {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What the server does on a channel: sends back what came.
struct Echo {
    listener: Option<Listener>,
    channel: Option<Channel>,
    held: Vec<u8>,
}

impl Echo {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Outcome<()>> {
        if let Some(listener) = &mut self.listener {
            ready!(listener.poll_accept(context))?;
            self.channel = self.listener.take().map(Listener::into_channel);
        }
        let Some(channel) = &mut self.channel else { return Poll::Ready(Ok(())) };
        loop {
            while !self.held.is_empty() {
                let n = ready!(channel.poll_send(context, &self.held))?;
                self.held.drain(..n);
            }
            let mut part = [0; LONGEST];
            match ready!(channel.poll_recv(context, &mut part))? {
                0 => return Poll::Ready(Ok(())),
                n => self.held.extend_from_slice(&part[..n]),
            }
        }
    }
}

/// What this process has open, and how many threads it has.
fn costs() -> io::Result<(usize, usize)> {
    // Less the descriptor by which the folder is read.
    Ok((std::fs::read_dir("/proc/self/fd")?.count() - 1, std::fs::read_dir("/proc/self/task")?.count()))
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn serve(hub: &Hub, client: DomId, path: &str, channels: usize) -> Outcome<(usize, usize)> {
    let options = ListenOptions { read_min: 0, write_min: 0, ..ListenOptions::default() };
    let mut tasks = Vec::with_capacity(channels);
    for number in 0..channels {
        let listener = hub.listen(client, &format!("{path}/{number}"), &options)?;
        tasks.push(Echo { listener: Some(listener), channel: None, held: Vec::new() });
    }
    writeln!(io::stderr(), "listening")?;
    let mut open = None;
    Queue::new(channels).run(|number, context| {
        let polled = tasks[number].poll(context);
        if polled.is_ready() && open.is_none() {
            open = Some(costs()?);
        }
        polled
    })?;
    open.ok_or_else(|| "there were no channels".into())
}

fn speak(
    hub: &Hub,
    server: DomId,
    path: &str,
    (channels, rounds): (usize, usize),
    silence: Duration,
) -> Outcome<((usize, usize), Duration)> {
    let options = ConnectOptions { wait: Some(PATIENCE), ..ConnectOptions::default() };
    let mut tasks = Vec::with_capacity(channels);
    for number in 0..channels {
        let channel = hub.connect(server, &format!("{path}/{number}"), &options)?;
        tasks.push(Speaker { channel, round: 0, sent: 0, received: 0 });
    }
    let queue = Queue::new(channels);
    queue.run(|number, context| tasks[number].poll(number, rounds, context))?;
    let open = costs()?;

    // All listen, and nobody speaks.
    for (speaker, waker) in tasks.iter_mut().zip(&queue.wakers) {
        let polled = speaker.channel.poll_recv(&mut Context::from_waker(waker), &mut [0]);
        assert!(polled.is_pending(), "{polled:?}");
    }
    // Wakes from before.
    while queue.woken.try_recv().is_ok() {}
    let before = processor_time();
    queue.stay_silent(silence)?;
    Ok((open, processor_time() - before))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(line) => {
            let _ = writeln!(io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Outcome<String> {
    let [role, domid, path, channels, rounds, silence @ ..] = arguments else { return Err(USAGE.into()) };
    let (domid, channels, rounds) = (DomId(domid.parse()?), channels.parse()?, rounds.parse()?);
    let silence = Duration::from_secs(silence.first().map_or(Ok(0), |seconds| seconds.parse())?);
    let hub = Hub::open(Host)?;
    let ((descriptors, threads), silence) = match role.as_str() {
        "server" => (serve(&hub, domid, path, channels)?, String::new()),
        "client" => {
            let (open, cpu) = speak(&hub, domid, path, (channels, rounds), silence)?;
            (open, format!(" silence_cpu_us={}", cpu.as_micros()))
        }
        _ => return Err(USAGE.into()),
    };
    Ok(format!("ok channels={channels} descriptors={descriptors} threads={threads}{silence}"))
}
