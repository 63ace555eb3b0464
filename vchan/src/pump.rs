//! Between a channel and descriptors, in both directions, until the conversation is over.
//!
//! Each direction has a thread: the sending one is the caller's, the receiving one is made for the time of the run. They
//! meet in three places. A thread that waits in the channel is woken by whatever ends the channel; the sending thread also
//! waits for its input, and polls beside it a descriptor that the receiving one makes readable when it ends; and who ends
//! the conversation from here closes the channel (and makes that descriptor readable, for a receiving thread that waits for
//! its output). So none is left behind.

use crate::deadline::poll_until;
use crate::wait::Task;
use crate::{Channel, Error, Receiver, Sender, State};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::net::Shutdown;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::result::Result;
use std::sync::{Arc, OnceLock};
use std::task::{Wake, Waker};
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

/// Moves bytes between a [`Channel`] and descriptors until the conversation is over.
///
/// What the input gives is sent, what comes is written to the output; both may be the same descriptor. The kernel moves
/// the bytes between descriptor and ring ([`Sender::read_from_fd`], [`Receiver::write_to_fd`]): no byte is copied in
/// between, and none is taken from the input that is not in the ring then.
///
/// Pipes, sockets, files and terminals will do, blocking or not; whether they block is left as it is, since others may
/// share them. They are not closed at the end, but if the output is a socket, it is shut down for writing, so that who
/// reads at its other end sees the end of what came.
///
/// # The end
/// The wire has no word for the end of one direction alone, so what the end of the input means is a choice:
///
/// | | at first | with [`half_close`](Self::half_close) |
/// |---|---|---|
/// | the input ends | waits until the peer has taken all, and closes | goes on receiving until the peer closes, or nobody reads the output any more |
/// | the output cannot be written | closes | goes on sending; then as at first. What comes is left to the peer as unread |
/// | the input cannot be read | closes | closes |
/// | the peer closes | writes what has come, and stops reading | the same |
///
/// The second column suits protocols that themselves say when a direction ends, as qrexec does; somebody has to close at
/// last, so it does not suit both ends where neither program leaves by itself. With the first one, bytes that come between
/// the end of the input and the close may not be written; the peer counts them as unread.
///
/// Before the pump closes, it waits for a write to a blocking output that has begun: bytes that were written are never
/// counted as unread. Timeouts of the channel ([`Channel::set_timeout`]) are in force: each wait for bytes, or for room, may
/// last so long. A server that [persists](crate::ListenOptions::persist) sees no end of its peer, and pumps for one client
/// after the other.
///
/// # What it cannot do
/// * A write to a pipe or a socket whose reader is gone sends SIGPIPE to the thread. Rust's `main` ignores it, and then it is
///   the error EPIPE. In a program that does not, let the caller's thread block it: the receiving thread inherits that.
///   (writev has no flag against it, as sendmsg has.)
/// * Others may read the same input. If it blocks, and they take what the pump has seen there, the pump sits in the read
///   until there is more, or the input ends, even if the peer has closed in the meantime.
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::Shutdown;
/// use std::os::unix::net::UnixStream;
/// use std::thread;
/// use vchan::{Channel, ConnectOptions, EndedBy, ListenOptions, Listener, Pump};
/// use xen::{DomId, mock::Machine};
///
/// let machine = Machine::new();
/// let (vault, work) = (machine.domain(DomId(1)), machine.domain(DomId(2)));
/// let listener = Listener::open(&vault, DomId(2), "data/vchan/2/512", &ListenOptions::default())?;
/// let client = Channel::connect(&work, DomId(1), "data/vchan/2/512", &ConnectOptions::default())?;
/// let mut server = listener.accept()?;
///
/// // In the client's domain a program talks to a socket, as if the server were at its other end.
/// let (mut program, socket) = UnixStream::pair()?;
/// let pump = thread::spawn(move || Pump::new(client).half_close(true).run(&socket, &socket));
/// program.write_all(b"open sesame\n")?;
/// program.shutdown(Shutdown::Write)?;
///
/// let mut said = [0; 12];
/// server.read_exact(&mut said)?;
/// server.write_all(b"no such cave")?;
/// drop(server);
///
/// let mut answer = String::new();
/// program.read_to_string(&mut answer)?;
/// assert_eq!(answer, "no such cave");
/// let pumped = pump.join().unwrap();
/// assert_eq!((pumped.sent, pumped.received, pumped.ended_by), (12, 12, EndedBy::Input));
/// pumped.result?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Pump {
    channel: Channel,
    half_close: bool,
}

/// What a [`Pump`] has done.
#[derive(Debug)]
#[must_use = "whether all went well is in `result`"]
pub struct Pumped {
    /// Bytes from the input that were sent.
    pub sent: u64,
    /// Bytes that came and were written to the output.
    pub received: u64,
    /// Bytes of those sent that the peer had not taken when it closed, or when its domain ended.
    pub unread: usize,
    /// Which end came first.
    pub ended_by: EndedBy,
    /// What went wrong first, if anything did.
    pub result: Result<(), PumpError>,
}

/// Whose end a [`Pump`] saw first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndedBy {
    /// The input ended, or could not be read.
    Input,
    /// The output could not be written.
    Output,
    /// The peer closed the channel, or that failed.
    Channel,
}

/// Why a [`Pump`] broke off.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PumpError {
    /// The input cannot be read.
    #[error("input: {0}")]
    Input(#[source] io::Error),
    /// The output cannot be written to. Where its reader is gone, that is [`BrokenPipe`](ErrorKind::BrokenPipe).
    #[error("output: {0}")]
    Output(#[source] io::Error),
    /// The channel failed.
    #[error(transparent)]
    Channel(#[from] Error),
    /// The peer closed the channel, and left so many of the bytes that were sent. From [`Pump::send`] also with 0: the peer
    /// closed before the input ended.
    #[error("the peer left {0} bytes unread")]
    Unread(usize),
}

impl PumpError {
    /// Whether the other direction may go on: it ends by itself, if it has to, and not before all that came was written.
    fn leaves_the_other_half(&self, half_close: bool) -> bool {
        match self {
            Self::Output(_) => half_close,
            Self::Channel(error) => matches!(error, Error::PeerDied(_) | Error::Violation(_)),
            Self::Input(_) | Self::Unread(_) => false,
        }
    }
}

/// How the sending direction ended, if nothing failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// The input ended, and the peer has taken everything.
    All,
    /// The channel, or the receiving direction, ended before.
    Cut,
}

/// An eventfd to be polled beside a descriptor.
struct Flag(OwnedFd);

impl Flag {
    /// Makes it readable. Cannot fail: nobody does so often enough for the counter to overflow.
    fn raise(&self) {
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// To be called when it is readable; it is not, then.
    fn lower(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.raise();
    }
}

/// What both directions have in common.
struct Course {
    /// Raised once one of two directions is over. For a direction alone: when something happened in a hub's channel.
    over: Arc<Flag>,
    /// Which end came first.
    first: OnceLock<EndedBy>,
    /// Held from a write until its bytes are given back as taken: a close in between would let the peer count bytes as
    /// unread that are in the output already.
    writing: Mutex<()>,
}

impl Course {
    fn new() -> Result<Self, Error> {
        let over = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|errno| Error::System { call: "eventfd", source: errno.into() })?;
        Ok(Self { over: Arc::new(Flag(over)), first: OnceLock::new(), writing: Mutex::new(()) })
    }

    /// Waits until one of the two is as asked for: `fd` (the first), or a direction over (the second).
    fn poll(&self, fd: BorrowedFd<'_>, events: PollFlags) -> Result<[bool; 2], Error> {
        let over = PollFd::new(&self.over.0, PollFlags::IN);
        poll_until(&mut [PollFd::from_borrowed_fd(fd, events), over], None)
    }

    fn ends(&self, by: EndedBy) {
        self.first.get_or_init(|| by);
    }
}

/// How both directions ended.
struct Ends {
    sent: Result<Sent, PumpError>,
    received: Result<(), PumpError>,
    unread: usize,
    closed: Result<(), Error>,
}

impl Pump {
    /// A pump over a channel, which it closes at the end.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self { channel, half_close: false }
    }

    /// Whether one direction may end before the other; see [above](Self#the-end). Concerns [`run`](Self::run) alone.
    #[must_use]
    pub fn half_close(mut self, half_close: bool) -> Self {
        self.half_close = half_close;
        self
    }

    /// Sends what `input` gives, and writes what comes to `output`, at the same time.
    pub fn run(self, input: impl AsFd, output: impl AsFd) -> Pumped {
        let (input, output, half_close) = (input.as_fd(), output.as_fd(), self.half_close);
        self.over_halves(|sender, receiver, course| {
            let receive = || {
                let received = drain(receiver, output, course);
                if received.as_ref().is_err_and(|error| !error.leaves_the_other_half(half_close)) {
                    // Wakes the sending direction where it waits for room.
                    let _ = receiver.half.link.close();
                }
                course.over.raise();
                received
            };
            thread::scope(|scope| {
                let receiving = thread::Builder::new().name("vchan-pump".to_owned());
                let receiving = receiving
                    .spawn_scoped(scope, receive)
                    .map_err(|source| Error::System { call: "clone", source })?;
                let mut sent = feed(sender, input, false, course);
                let ends_by_itself = match &sent {
                    // Over, or with POLLERR or POLLHUP, which are always told: nobody reads the output any more.
                    Ok(Sent::All) => {
                        half_close && course.poll(output, PollFlags::empty()).is_ok_and(|[_, over]| over)
                    }
                    Ok(Sent::Cut) => true,
                    Err(error) => error.leaves_the_other_half(half_close),
                };
                if !ends_by_itself {
                    let (unread, closed) = close(sender, course);
                    return Ok(Ends { sent, received: join(receiving), unread, closed });
                }
                let received = join(receiving);
                let deaf = half_close && matches!(received, Err(PumpError::Output(_)));
                if deaf && matches!(sent, Ok(Sent::Cut)) {
                    sent = feed(sender, input, true, course);
                }
                let (unread, closed) = close(sender, course);
                Ok(Ends { sent, received, unread, closed })
            })
        })
    }

    /// Sends what `input` gives until it ends and the peer has taken all. What comes is left to the peer as unread. Makes no
    /// thread.
    pub fn send(self, input: impl AsFd) -> Pumped {
        self.over_halves(|sender, _, course| {
            let sent = feed(sender, input.as_fd(), true, course);
            let (unread, closed) = close(sender, course);
            let sent = match sent {
                Ok(Sent::Cut) => Err(PumpError::Unread(unread)),
                sent => sent,
            };
            Ok(Ends { sent, received: Ok(()), unread, closed })
        })
    }

    /// Writes what comes to `output` until the peer closes. Makes no thread.
    pub fn receive(self, output: impl AsFd) -> Pumped {
        self.over_halves(|sender, receiver, course| {
            let received = drain(receiver, output.as_fd(), course);
            let (unread, closed) = close(sender, course);
            Ok(Ends { sent: Ok(Sent::All), received, unread, closed })
        })
    }

    fn over_halves(
        mut self,
        body: impl FnOnce(&mut Sender, &mut Receiver, &Course) -> Result<Ends, Error>,
    ) -> Pumped {
        self.channel.set_nonblocking(false);
        let mut first = None;
        let mut moved = (0, 0);
        let ends = self.channel.split().and_then(|(mut sender, mut receiver)| {
            let bytes =
                |sender: &Sender, receiver: &Receiver| (sender.metrics().bytes, receiver.metrics().bytes);
            let course = Course::new()?;
            let before = bytes(&sender, &receiver);
            let ends = body(&mut sender, &mut receiver, &course);
            let after = bytes(&sender, &receiver);
            moved = (after.0 - before.0, after.1 - before.1);
            first = course.first.into_inner();
            ends
        });
        let ended_by = first.unwrap_or(EndedBy::Channel);
        let (unread, result) = match ends {
            Ok(Ends { sent, received, unread, closed }) => {
                let sent = sent.map(|_| ());
                let result = if ended_by == EndedBy::Input { sent.and(received) } else { received.and(sent) };
                let taken = if unread == 0 { Ok(()) } else { Err(PumpError::Unread(unread)) };
                (unread, result.and(taken).and(closed.map_err(PumpError::from)))
            }
            Err(error) => (0, Err(error.into())),
        };
        Pumped { sent: moved.0, received: moved.1, unread, ended_by, result }
    }
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Sends the input until it ends and the peer has taken all; or until the channel ends, or the other direction. If `alone`,
/// there is no other one.
fn feed(sender: &mut Sender, input: BorrowedFd<'_>, alone: bool, course: &Course) -> Result<Sent, PumpError> {
    let mut pour = || {
        while wait_for_input(sender, input, alone, course)? {
            match sender.read_from_fd(input, usize::MAX) {
                Ok(0) => {
                    course.ends(EndedBy::Input);
                    sender.wait_until_read()?;
                    return Ok(Sent::All);
                }
                Err(Error::System { call: "readv", source }) if source.kind() != ErrorKind::WouldBlock => {
                    course.ends(EndedBy::Input);
                    return Err(PumpError::Input(source));
                }
                Ok(_) | Err(Error::System { call: "readv", .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Sent::Cut)
    };
    let sent = match pour() {
        Err(PumpError::Channel(Error::Closed | Error::ClosedHere)) => Ok(Sent::Cut),
        sent => sent,
    };
    course.ends(EndedBy::Channel);
    sent
}

/// Waits until the input can be read. False: the channel has ended, or the other direction.
fn wait_for_input(
    sender: &Sender,
    input: BorrowedFd<'_>,
    alone: bool,
    course: &Course,
) -> Result<bool, Error> {
    if !alone {
        return Ok(!course.poll(input, PollFlags::IN)?[1]);
    }
    let link = &sender.half.link;
    loop {
        let event = match sender.event_fd() {
            Some(event) => event,
            None => {
                let waker = Waker::from(Arc::clone(&course.over));
                // What happened before, the look below sees.
                while !link.waiter().wake_later(link.waiter().ticket(), Task::Sender, &waker) {}
                course.over.0.as_fd()
            }
        };
        if link.state()? == State::Closed {
            return Ok(false);
        }
        let mut fds = [input, event].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll_until(&mut fds, Instant::now().checked_add(link.liveness().interval()))? {
            [true, _] => return Ok(true),
            [false, true] if sender.event_fd().is_some() => link.waiter().drain()?,
            [false, true] => course.over.lower(),
            [false, false] => link.probe()?,
        }
    }
}

/// Writes what comes to the output until the channel ends, and then, if the output is a socket, its end.
fn drain(receiver: &mut Receiver, output: BorrowedFd<'_>, course: &Course) -> Result<(), PumpError> {
    let received = loop {
        match write_some(receiver, output, course) {
            Ok(0) | Err(Error::ClosedHere) => break Ok(()),
            Ok(_) => {}
            Err(Error::System { call: "writev", source }) if source.kind() == ErrorKind::WouldBlock => {
                // Or until the channel was closed, which the next round sees.
                if let Err(error) = course.poll(output, PollFlags::OUT) {
                    break Err(error.into());
                }
            }
            Err(Error::System { call: "writev", source }) => break Err(PumpError::Output(source)),
            Err(error) => break Err(error.into()),
        }
    };
    let failed = matches!(received, Err(PumpError::Output(_)));
    course.ends(if failed { EndedBy::Output } else { EndedBy::Channel });
    // Of what is no socket, or not connected any more, there is no other end to be told.
    let _ = rustix::net::shutdown(output, Shutdown::Write);
    received
}

/// Waits for bytes, and writes those that have come.
fn write_some(receiver: &mut Receiver, output: BorrowedFd<'_>, course: &Course) -> Result<usize, Error> {
    if receiver.peek(1)?.is_empty() {
        return Ok(0);
    }
    let _begun = course.writing.lock();
    // Does not wait for bytes, but refuses when the channel was closed in the meantime.
    let n = receiver.write_to_fd(output, usize::MAX)?;
    receiver.settle();
    Ok(n)
}

/// Closes the channel; says also how many bytes the peer, if it has gone, left unread.
fn close(sender: &mut Sender, course: &Course) -> (usize, Result<(), Error>) {
    let _none_begun = course.writing.lock();
    let gone = matches!(sender.state(), Ok(State::Closed) | Err(Error::PeerDied(_)));
    let unread = if gone { sender.unread().unwrap_or(0) } else { 0 };
    let closed = sender.half.link.close();
    course.over.raise();
    (unread, closed)
}

#[cfg(test)]
mod tests;
