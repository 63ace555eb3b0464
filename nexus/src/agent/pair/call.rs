//! One call of a pair channel.

use super::{Broken, FIRST_WINDOW, Pair};
use crate::wire::control::{CallId, Role};
use crate::wire::pair::{EARLY, HEADER, Header, Kind, MAX_CREDIT, Reset};
use rustix::net::sockopt::set_socket_send_buffer_size;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::io::Interest;
use tokio::net::UnixStream;
use vchan::ReadChunk;

/// A call whose credit grows beyond this is a stream.
const STREAM: u32 = 2 * FIRST_WINDOW;

/// Why a call has no more to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum Over {
    /// The other end broke it off.
    Reset(Reset),
    /// The channel has ended.
    Channel,
}

/// Where bytes may go straight from the ring.
#[derive(Debug, Clone)]
pub(in crate::agent) enum Straight {
    /// A service's socket: the bytes of stdin alone.
    Plain(Rc<UnixStream>),
    /// A client's: whole messages. A frame's header ends as a message's begins.
    Framed(Rc<UnixStream>),
}

/// What has come and not gone on.
#[derive(Debug, Default)]
struct Arrived {
    /// stdin or stdout, and stderr.
    streams: [Vec<u8>; 2],
    ended: [bool; 2],
    exit: Option<i32>,
    /// The rest of a message whose beginning went straight to the client.
    raw: Vec<u8>,
    /// How much of it is still to come.
    raw_left: usize,
    straight: Option<Straight>,
    /// How much of it is of a header, and so cost no credit.
    raw_free: usize,
    /// The call's task has some of it in hand, which cost so much credit: nothing overtakes that.
    in_hand: Option<u32>,
}

/// What a call's task gets.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::agent) enum Taken {
    /// Bytes of a stream; they are in the buffer.
    Data(Kind),
    /// Bytes that belong to the last message.
    Raw,
    End(Kind),
    /// How it ended, and whether stdout and stderr did with it.
    Exit(i32, [bool; 2]),
}

/// One call.
pub(in crate::agent) struct PairCall {
    id: CallId,
    pair: Rc<Pair>,
    /// How much may be sent.
    credit: Cell<u32>,
    sender: Cell<Option<Waker>>,
    arrived: RefCell<Arrived>,
    receiver: Cell<Option<Waker>>,
    watcher: Cell<Option<Waker>>,
    /// The credit that the peer gets in all at a time, how much of it it has, and how much it is to get back.
    window: Cell<u32>,
    lent: Cell<u32>,
    due: Cell<u32>,
    queued: Cell<bool>,
    straight: Cell<u64>,
    over: Cell<Option<Over>>,
    opened: Cell<bool>,
    done: Cell<bool>,
}

impl std::fmt::Debug for PairCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PairCall").field("id", &self.id).finish_non_exhaustive()
    }
}

/// An end of a call: when it is dropped before the call's own end, the call is broken off.
#[derive(Debug)]
pub(in crate::agent) struct End(Rc<PairCall>);

impl End {
    pub(in crate::agent) fn call(&self) -> &Rc<PairCall> {
        &self.0
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let call = &self.0;
        call.pair.windows.give_back(call.window.get());
        call.pair.forget(call.id);
        if call.opened.get() && !call.done.get() && call.over.get().is_none() {
            call.pair.owe(call.id, Reset::Gone);
        }
    }
}

impl Pair {
    /// A new call. The caller's end opens it; the target's end expects it, or finds it parked.
    ///
    /// # Errors
    /// There is no credit to give, or the channel has ended.
    pub(in crate::agent) fn call(self: &Rc<Self>, id: CallId) -> io::Result<End> {
        if self.channel.borrow().is_none() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.calls.borrow().contains_key(&id) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if !self.windows.take(FIRST_WINDOW) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let call = Rc::new(PairCall {
            id,
            pair: self.clone(),
            credit: Cell::new(if self.role == Role::Caller { EARLY } else { 0 }),
            sender: Cell::default(),
            arrived: RefCell::default(),
            receiver: Cell::default(),
            watcher: Cell::default(),
            window: Cell::new(FIRST_WINDOW),
            lent: Cell::new(if self.role == Role::Service { EARLY } else { 0 }),
            due: Cell::new(0),
            queued: Cell::new(false),
            straight: Cell::new(0),
            over: Cell::new(None),
            opened: Cell::new(false),
            done: Cell::new(false),
        });
        self.calls.borrow_mut().insert(id, call.clone());
        self.release();
        if let Some(parked) = self.parked.borrow_mut().remove(&id) {
            call.credit.set(parked.credit);
            call.opened.set(true);
            // What is still to come of it was paid for when it began.
            let came = parked.early.len() + parked.to_come;
            call.lent.set(EARLY.saturating_sub(came as u32));
            let mut arrived = call.arrived.borrow_mut();
            let index = stream(Kind::Stdin);
            (arrived.streams[index], arrived.ended[index]) = (parked.early, parked.ended);
        }
        Ok(End(call))
    }
}

/// Which of the two streams of a direction it is.
fn stream(kind: Kind) -> usize {
    usize::from(kind == Kind::Stderr)
}

impl PairCall {
    // What the driver does.

    pub(super) fn begin_data(&self, kind: Kind, length: u32, chunk: &ReadChunk<'_>) -> Result<(), Broken> {
        if length == 0 {
            self.arrived.borrow_mut().ended[stream(kind)] = true;
            wake(&self.receiver);
            return Ok(());
        }
        let lent = self.lent.get().checked_sub(length).ok_or(Broken::Overrun(self.id))?;
        self.lent.set(lent);
        let there = (chunk.len() - HEADER).min(length as usize);
        let mut arrived = self.arrived.borrow_mut();
        let idle = arrived.in_hand.is_none()
            && arrived.raw.is_empty()
            && arrived.streams.iter().all(Vec::is_empty)
            && !arrived.ended.contains(&true);
        let framed = match &arrived.straight {
            Some(Straight::Framed(socket)) if idle => Some(socket.clone()),
            _ => None,
        };
        if let Some(socket) = framed {
            // Both headers end with type and length.
            let message = HEADER / 2 + length as usize;
            let whole = HEADER / 2 + there;
            match write_straight(chunk, HEADER / 2, &socket, whole) {
                0 => {}
                written => {
                    arrived.raw_left = message - written;
                    let rest = whole - written;
                    if rest > 0 {
                        keep(&mut arrived.raw, chunk, HEADER / 2 + written, rest);
                        arrived.raw_left -= rest;
                        arrived.raw_free = (HEADER / 2).saturating_sub(written);
                        wake(&self.receiver);
                    }
                    drop(arrived);
                    self.straight.set(self.straight.get() + written.saturating_sub(HEADER / 2) as u64);
                    self.gone_on(written.saturating_sub(HEADER / 2) as u32, rest == 0);
                    return Ok(());
                }
            }
        }
        drop(arrived);
        self.more_data(kind, HEADER, there, chunk);
        Ok(())
    }

    /// Bytes of the current frame, from there on in the chunk.
    pub(super) fn more_data(&self, kind: Kind, skip: usize, bytes: usize, chunk: &ReadChunk<'_>) {
        let mut arrived = self.arrived.borrow_mut();
        let raw = arrived.raw_left > 0;
        let before_it = if raw { !arrived.raw.is_empty() } else { !arrived.streams[stream(kind)].is_empty() };
        let socket = match &arrived.straight {
            Some(Straight::Plain(socket)) => Some(socket.clone()),
            Some(Straight::Framed(socket)) if raw => Some(socket.clone()),
            _ => None,
        };
        let written = match socket.filter(|_| !before_it && arrived.in_hand.is_none()) {
            Some(socket) => write_straight(chunk, skip, &socket, bytes),
            None => 0,
        };
        if raw {
            arrived.raw_left = arrived.raw_left.saturating_sub(bytes);
        }
        if written < bytes {
            let into = if raw { &mut arrived.raw } else { &mut arrived.streams[stream(kind)] };
            keep(into, chunk, skip + written, bytes - written);
        }
        drop(arrived);
        if written > 0 {
            self.straight.set(self.straight.get() + written as u64);
            self.gone_on(written as u32, written == bytes);
        }
        if written < bytes {
            wake(&self.receiver);
        }
    }

    pub(super) fn more_credit(&self, more: u32) -> Result<(), Broken> {
        let credit = self.credit.get().checked_add(more).filter(|credit| *credit <= MAX_CREDIT);
        self.credit.set(credit.ok_or(Broken::Credit(self.id))?);
        wake(&self.sender);
        Ok(())
    }

    pub(super) fn opened(&self, credit: u32) -> Result<(), Broken> {
        if self.opened.replace(true) {
            return Err(Broken::Twice(self.id));
        }
        self.credit.set(credit);
        wake(&self.sender);
        Ok(())
    }

    pub(super) fn exit(&self, code: i32) {
        self.arrived.borrow_mut().exit = Some(code);
        self.done.set(true);
        wake(&self.receiver);
        wake(&self.sender);
    }

    pub(super) fn over(&self, over: Over) {
        self.over.set(Some(over));
        wake(&self.receiver);
        wake(&self.sender);
        wake(&self.watcher);
    }

    pub(super) fn credit_frame(&self) -> [u8; HEADER + 4] {
        Header::with_number(self.id, Kind::Credit, self.due.get())
    }

    pub(super) fn credit_sent(&self) {
        self.lent.set(self.lent.get() + self.due.take());
        self.queued.set(false);
    }

    /// Whether bytes that come now would have to be kept, though they are to go straight on.
    pub(super) fn is_full(&self, context: &mut Context<'_>) -> bool {
        let arrived = self.arrived.borrow();
        let Some(Straight::Plain(socket) | Straight::Framed(socket)) = &arrived.straight else {
            return false;
        };
        arrived.in_hand.is_some()
            || !arrived.raw.is_empty()
            || arrived.streams.iter().any(|stream| !stream.is_empty())
            || socket.poll_write_ready(context).is_pending()
    }

    // What the call's task does.

    /// Bytes went where they belong. The peer gets credit for them when it has used half of what it has: and more of it if
    /// they all went at once, since then it is the window that it waits for.
    fn gone_on(&self, bytes: u32, at_once: bool) {
        self.due.set(self.due.get() + bytes);
        let window = self.window.get();
        if self.due.get() < window / 2 || self.done.get() || self.over.get().is_some() {
            return;
        }
        if at_once && window < MAX_CREDIT && self.pair.windows.take(window) {
            self.window.set(2 * window);
            self.due.set(self.due.get() + window);
            if window == STREAM {
                self.widen();
            }
        }
        self.queue_credit();
    }

    /// A stream: the more its socket takes at once, the fewer are the turns that this end and the reader take.
    fn widen(&self) {
        if let Some(Straight::Plain(socket) | Straight::Framed(socket)) = &self.arrived.borrow().straight {
            // As much as whoever is not privileged may have; what it had is as good as that otherwise.
            let _ = set_socket_send_buffer_size(socket, MAX_CREDIT as usize);
        }
    }

    fn queue_credit(self: &PairCall) {
        if !self.queued.replace(true) {
            // The call is in the map for as long as it can get anything.
            let call = self.pair.calls.borrow().get(&self.id).cloned();
            match call {
                Some(call) => self.pair.due.borrow_mut().push_back(call),
                None => self.queued.set(false),
            }
        }
        self.pair.kick();
    }

    /// The caller's first frame.
    pub(in crate::agent) async fn open(&self) -> io::Result<()> {
        let window = self.window.get();
        self.lent.set(window);
        self.frame(&Header::with_number(self.id, Kind::Open, window)).await?;
        self.opened.set(true);
        Ok(())
    }

    /// Waits for the caller's first frame, and lets it send.
    pub(in crate::agent) async fn accept(&self) -> io::Result<()> {
        poll_fn(|context| match () {
            () if self.over.get().is_some() => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            () if self.opened.get() => Poll::Ready(Ok(())),
            () => {
                self.sender.set(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }

    /// The target's first frame: the caller may send. One that has said all needs no credit for more.
    pub(in crate::agent) fn welcome(&self) {
        if self.arrived.borrow().ended[stream(Kind::Stdin)] {
            return;
        }
        self.due.set(self.due.get() + self.window.get() - EARLY);
        self.queue_credit();
    }

    /// From now on bytes may go there without the task.
    pub(in crate::agent) fn set_straight(&self, straight: Option<Straight>) {
        self.arrived.borrow_mut().straight = straight;
    }

    /// How many bytes went there.
    pub(in crate::agent) fn went_straight(&self) -> u64 {
        self.straight.get()
    }

    /// Whether there is somebody at the other end.
    pub(in crate::agent) fn is_open(&self) -> bool {
        self.over.get().is_none() && !self.done.get()
    }

    fn ended(&self) -> Option<io::Error> {
        self.over.get().map(|over| match over {
            Over::Reset(reset) => io::Error::new(
                io::ErrorKind::ConnectionReset,
                match reset {
                    Reset::Gone => "the other end is gone",
                    Reset::Unknown => "the other qube does not know the call",
                    Reset::Busy => "the other qube has as many calls as it takes",
                },
            ),
            Over::Channel => {
                io::Error::new(io::ErrorKind::ConnectionReset, "the channel to the other qube has ended")
            }
        })
    }

    /// What came next. The bytes are swapped into `buffer`; what was in it has gone where it belongs.
    pub(in crate::agent) fn poll_next(
        &self,
        context: &Context<'_>,
        buffer: &mut Vec<u8>,
    ) -> Poll<io::Result<Taken>> {
        let gone_on = self.arrived.borrow_mut().in_hand.take();
        if let Some(bytes) = gone_on {
            self.gone_on(bytes, false);
            self.pair.release();
        }
        buffer.clear();
        let mut arrived = self.arrived.borrow_mut();
        let [first, second] = match self.pair.role {
            Role::Caller => [Kind::Stdout, Kind::Stderr],
            Role::Service => [Kind::Stdin, Kind::Stderr],
        };
        let arrived = &mut *arrived;
        if !arrived.raw.is_empty() {
            std::mem::swap(buffer, &mut arrived.raw);
            arrived.in_hand = Some((buffer.len() - std::mem::take(&mut arrived.raw_free)) as u32);
            return Poll::Ready(Ok(Taken::Raw));
        }
        if arrived.raw_left == 0 {
            // What came together goes together.
            if arrived.streams.iter().all(Vec::is_empty)
                && let Some(code) = arrived.exit.take()
            {
                return Poll::Ready(Ok(Taken::Exit(code, std::mem::take(&mut arrived.ended))));
            }
            for (index, kind) in [first, second].into_iter().enumerate() {
                if !arrived.streams[index].is_empty() {
                    std::mem::swap(buffer, &mut arrived.streams[index]);
                    arrived.in_hand = Some(buffer.len() as u32);
                    return Poll::Ready(Ok(Taken::Data(kind)));
                }
                if std::mem::take(&mut arrived.ended[index]) {
                    arrived.in_hand = Some(0);
                    return Poll::Ready(Ok(Taken::End(kind)));
                }
            }
        }
        if let Some(error) = self.ended() {
            return Poll::Ready(Err(error));
        }
        self.receiver.set(Some(context.waker().clone()));
        Poll::Pending
    }

    /// Waits until the other end is gone.
    pub(in crate::agent) async fn gone(&self) {
        poll_fn(|context| {
            if self.over.get().is_some() {
                return Poll::Ready(());
            }
            self.watcher.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    async fn frame(&self, frame: &[u8]) -> io::Result<()> {
        poll_fn(|context| {
            if let Some(error) = self.ended() {
                return Poll::Ready(Err(error));
            }
            self.pair.poll_write(context, frame.len(), |mut chunk| {
                chunk.fill(0, frame);
                chunk.commit(frame.len())
            })
        })
        .await
    }

    /// Sends the end of a stream.
    pub(in crate::agent) async fn end_of(&self, kind: Kind) -> io::Result<()> {
        self.frame(&Header { call: self.id, kind, length: 0 }.encode()).await
    }

    /// Sends the last frame.
    pub(in crate::agent) async fn send_exit(&self, code: i32) -> io::Result<()> {
        self.frame(&Header::with_number(self.id, Kind::Exit, code.cast_unsigned())).await?;
        self.done.set(true);
        Ok(())
    }

    /// How much may be sent now; at least one byte.
    fn poll_credit(&self, context: &Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(error) = self.ended() {
            return Poll::Ready(Err(error));
        }
        if self.done.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match self.credit.get() {
            0 => {
                self.sender.set(Some(context.waker().clone()));
                Poll::Pending
            }
            credit => Poll::Ready(Ok(self.pair.most.min(credit as usize))),
        }
    }

    /// Sends bytes of a stream, at least one.
    pub(in crate::agent) async fn data(&self, kind: Kind, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let sent = poll_fn(|context| {
                let credit = std::task::ready!(self.poll_credit(context))?;
                let (now, _) = data.split_at(data.len().min(credit));
                self.pair.poll_write(context, HEADER + now.len(), |mut chunk| {
                    chunk.fill(0, &Header { call: self.id, kind, length: now.len() as u32 }.encode());
                    chunk.fill(HEADER, now);
                    chunk.commit(HEADER + now.len())?;
                    Ok(now.len())
                })
            })
            .await?;
            self.credit.set(self.credit.get() - sent as u32);
            data = &data[sent..];
        }
        Ok(())
    }

    /// Reads once from a socket straight into the ring, at most so many bytes; and, if it were all of them, what follows
    /// into `then`. How many bytes; 0 at its end.
    pub(in crate::agent) async fn data_from(
        &self,
        kind: Kind,
        socket: &UnixStream,
        most: usize,
        then: &mut [u8],
    ) -> io::Result<usize> {
        loop {
            socket.readable().await?;
            let room = poll_fn(|context| {
                let credit = std::task::ready!(self.poll_credit(context))?.min(most);
                // Whether there is room; what is read is known below.
                std::task::ready!(self.pair.poll_room(context, HEADER + credit))?;
                Poll::Ready(Ok::<_, io::Error>(credit))
            })
            .await?;
            let read = socket.try_io(Interest::READABLE, || {
                let mut channel = self.pair.channel.borrow_mut();
                let channel = channel.as_mut().ok_or(io::ErrorKind::ConnectionReset)?;
                let mut chunk = channel.reserve(HEADER + room)?;
                let read = if room == most {
                    chunk.read_from_fd_then(HEADER, socket, room, then)
                } else {
                    chunk.read_from_fd(HEADER, socket, room)
                }
                .map_err(super::source_of)?;
                let data = read.min(room);
                if data > 0 {
                    chunk.fill(0, &Header { call: self.id, kind, length: data as u32 }.encode());
                    chunk.commit(HEADER + data)?;
                }
                Ok(read)
            });
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(read) => {
                    self.credit.set(self.credit.get() - read.min(room) as u32);
                    self.pair.kick();
                    return Ok(read);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn wake(waker: &Cell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// Copies bytes out of the ring, behind those that wait already.
pub(super) fn keep(into: &mut Vec<u8>, chunk: &ReadChunk<'_>, skip: usize, bytes: usize) {
    let begin = into.len();
    into.resize(begin + bytes, 0);
    chunk.copy_to(skip, &mut into[begin..]);
}

/// Writes bytes from the ring to a socket, once; how many. A socket that fails has its task to find out.
fn write_straight(chunk: &ReadChunk<'_>, skip: usize, socket: &UnixStream, bytes: usize) -> usize {
    let write = || chunk.write_to_fd(skip, socket, bytes).map_err(super::source_of);
    socket.try_io(Interest::WRITABLE, write).unwrap_or(0)
}
