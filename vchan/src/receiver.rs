//! The receiving half of a channel.

use crate::deadline::Deadline;
use crate::half::{Half, HasHalf};
use crate::link::Link;
use crate::metrics::Metrics;
use crate::ring::{Consumer, End};
use crate::sender::{part_of, within};
use crate::wait::Task;
use crate::wire::Pages;
use crate::{Error, Partial, Result, State};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use xen::VolatileSlice;

/// The receiving half of a channel.
///
/// The room of bytes that were received goes back to the sender when all that had come were received, at the latest
/// after a quarter of the ring, before this half waits, and (of a channel that is not split) before anything is sent;
/// with every operation, if they do not block. A receiver that stops in the midst of what has come, to wait elsewhere for
/// something that depends on the sender's progress, calls [`give_back`](Self::give_back).
///
/// When it is dropped, the peer's bytes are no longer taken; the channel is closed when both halves are gone.
#[derive(Debug)]
pub struct Receiver {
    pub(crate) consumer: Consumer<Arc<Pages>>,
    pub(crate) half: Half,
    /// So many bytes are given back at once.
    part: u32,
}

impl Receiver {
    pub(crate) fn new(consumer: Consumer<Arc<Pages>>, link: Arc<Link>) -> Self {
        let part = part_of(consumer.size());
        Self { consumer, half: Half::new(link), part }
    }

    /// Receives at least one byte, and as many as are there and fit into `bytes`; returns how many. Waits while there
    /// are none. 0 means that the peer has gone and that all it sent was received (or that `bytes` is empty).
    ///
    /// # Errors
    /// * [`WouldBlock`](Error::WouldBlock) and [`TimedOut`](Error::TimedOut) when nothing has come;
    /// * [`PeerDied`](Error::PeerDied) after the last byte that came;
    /// * [`Violation`](Error::Violation), or a failed call.
    #[inline]
    pub fn recv(&mut self, bytes: &mut [u8]) -> Result<usize> {
        if self.recv_short(bytes) {
            return Ok(bytes.len());
        }
        let mut deadline = self.half.deadline();
        self.recv_some(bytes, &mut deadline)
    }

    /// Fills `bytes`. The timeout is for the whole.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), with the number of bytes that were received before; [`Closed`](Error::Closed) when the
    /// peer has gone and sent fewer.
    #[inline]
    pub fn recv_exact(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Partial> {
        if self.recv_short(bytes) {
            return self.half.said().map_err(|error| Partial { done: bytes.len(), error });
        }
        self.recv_long(bytes)
    }

    fn recv_long(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Partial> {
        let mut deadline = self.half.deadline();
        let mut done = 0;
        while done < bytes.len() {
            match self.recv_some(&mut bytes[done..], &mut deadline) {
                Ok(0) => return Err(Partial { done, error: Error::Closed }),
                Ok(n) => done += n,
                Err(error) => return Err(Partial { done, error }),
            }
        }
        self.half.said().map_err(|error| Partial { done, error })
    }

    /// As [`recv`](Self::recv), for a task of any executor; never blocks. The task is woken by the thread of the
    /// [`Hub`](crate::Hub); with a channel of its own see [`Channel::event_waker`](crate::Channel::event_waker).
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn poll_recv(&mut self, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<Result<usize>> {
        self.poll(context, |receiver| receiver.recv(bytes))
    }

    /// Whether a server's client has come.
    pub(crate) fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll(context, |receiver| {
            receiver.half.link.waiter().drain()?;
            if receiver.state()? == State::Waiting { Err(Error::WouldBlock) } else { Ok(()) }
        })
    }

    /// Receives into several buffers one after another; returns how many bytes. Waits only while there are none.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> Result<usize> {
        let mut deadline = self.half.deadline();
        let mut done = 0;
        for buffer in buffers.iter_mut().filter(|buffer| !buffer.is_empty()) {
            if done > 0 && self.half.link.check(self.consumer.ready(1))? == 0 {
                break;
            }
            match self.recv_some(buffer, &mut deadline) {
                Ok(n) if n == buffer.len() => done += n,
                Ok(n) => return Ok(done + n),
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Waits until `want` bytes have come, at most the ring's size, and gives out all that are known to be there then:
    /// to be looked at in place, and [consumed](ReadChunk::consume). Fewer than `want` when the peer has gone; none at
    /// the end.
    ///
    /// # Errors
    /// As [`recv`](Self::recv); [`RingTooSmall`](Error::RingTooSmall) for more bytes than the ring ever holds.
    pub fn peek(&mut self, want: usize) -> Result<ReadChunk<'_>> {
        self.half.begin()?;
        let want = within(want, self.consumer.size())?;
        let mut deadline = self.half.deadline();
        let ready = self.half.obtain(&mut self.consumer, want, want, &mut deadline)?.bytes();
        Ok(ReadChunk { receiver: self, ready })
    }

    /// Writes what has come straight from the ring to a descriptor: at most `max` bytes, once, and returns how many; 0 at
    /// the end (or when `max` is 0). Waits for bytes, and, as the descriptor does, for room.
    ///
    /// # Errors
    /// As [`recv`](Self::recv); [`System`](Error::System) when the descriptor cannot be written to.
    pub fn write_to_fd(&mut self, fd: impl AsFd, max: usize) -> Result<usize> {
        if max == 0 {
            return Ok(0);
        }
        let chunk = self.peek(1)?;
        if chunk.is_empty() {
            return Ok(0);
        }
        let n = chunk.write_to_fd(0, fd, max)?;
        chunk.consume(n);
        Ok(n)
    }

    /// Gives the room of all that was received back to the sender.
    ///
    /// # Errors
    /// When the peer could not be signalled.
    pub fn give_back(&mut self) -> Result<()> {
        self.half.publish(&mut self.consumer);
        self.half.said()
    }

    /// Gives back what is held back, if there is any; an error is told by the next operation of this half.
    #[inline]
    pub(crate) fn settle(&mut self) {
        self.half.publish(&mut self.consumer);
    }

    /// How many bytes can be received without waiting.
    ///
    /// # Errors
    /// [`Violation`](Error::Violation).
    pub fn ready(&mut self) -> Result<usize> {
        self.half.link.check_open()?;
        let size = self.consumer.size();
        Ok(self.half.link.check(self.consumer.ready(size))? as usize)
    }

    /// Whether the peer is there. (When it has gone there may still be bytes to receive.)
    ///
    /// # Errors
    /// [`Violation`](Error::Violation), [`PeerDied`](Error::PeerDied), [`ClosedHere`](Error::ClosedHere).
    pub fn state(&self) -> Result<State> {
        self.half.link.state()
    }

    /// The descriptor to wait for; see [`Channel::event_fd`](crate::Channel::event_fd).
    #[must_use]
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.half.link.waiter().event_fd()
    }

    /// Lets operations of this half return [`WouldBlock`](Error::WouldBlock) where they would wait.
    pub fn set_nonblocking(&mut self, nonblocking: bool) {
        self.half.nonblocking = nonblocking;
    }

    /// The longest time that an operation of this half may wait. None, as at first: for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.half.timeout = timeout;
    }

    /// Whether this half looks for some microseconds whether bytes come before it sleeps, where there is more than one
    /// processor, and gives the processor away once (sched_yield(2)): as at first.
    pub fn set_spinning(&mut self, spinning: bool) {
        self.half.set_spinning(spinning);
    }

    /// What this half has done so far.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.half.metrics
    }

    /// Closes the channel, for the other half as well, which from then on says [`ClosedHere`](Error::ClosedHere); also
    /// if it sleeps just now.
    ///
    /// # Errors
    /// When the peer could not be told, or the keys of a server not be removed. The channel is closed all the same.
    pub fn close(mut self) -> Result<()> {
        self.settle();
        self.half.link.close()
    }

    /// Fills a small buffer if that much is known to be there: the usual case, in as few steps as possible. False: nothing
    /// was done.
    #[inline]
    fn recv_short(&mut self, bytes: &mut [u8]) -> bool {
        let n = bytes.len() as u32;
        if bytes.len() > self.part.min(self.consumer.known()) as usize || n == 0 || !self.half.is_clear() {
            return false;
        }
        self.consumer.peek(0, bytes);
        self.consume(n);
        self.half.metrics.operations += 1;
        true
    }

    fn recv_some(&mut self, bytes: &mut [u8], deadline: &mut Deadline) -> Result<usize> {
        self.half.begin()?;
        if bytes.is_empty() {
            return Ok(0);
        }
        let wanted = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(self.consumer.size());
        let ready = self.half.obtain(&mut self.consumer, 1, wanted, deadline)?.bytes();
        let all = ready.min(wanted);
        let mut done = 0;
        while done < all {
            let n = (all - done).min(self.part);
            self.consumer.peek(0, &mut bytes[done as usize..(done + n) as usize]);
            self.consume(n);
            done += n;
        }
        self.half.metrics.operations += 1;
        Ok(done as usize)
    }

    /// Counts bytes as received, and gives their room back when it is time.
    #[inline]
    fn consume(&mut self, n: u32) {
        self.half.metrics.bytes += u64::from(n);
        self.consumer.consume(n);
        if self.consumer.held_back() >= self.part || self.consumer.known() == 0 || self.half.nonblocking {
            self.half.publish(&mut self.consumer);
        }
    }
}

impl HasHalf for Receiver {
    const TASK: Task = Task::Receiver;

    fn half(&mut self) -> &mut Half {
        &mut self.half
    }
}

/// Gives back what was held back: the sender may be the other half's concern still.
impl Drop for Receiver {
    fn drop(&mut self) {
        if self.half.link.check_open().is_ok() {
            self.half.publish(&mut self.consumer);
        }
    }
}

/// Bytes in the ring, to be looked at in place. When it is dropped they are still there.
#[derive(Debug)]
pub struct ReadChunk<'a> {
    receiver: &'a mut Receiver,
    ready: u32,
}

impl ReadChunk<'_> {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ready as usize
    }

    /// Whether there are none: the peer has gone, and all it sent was received.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready == 0
    }

    /// The bytes: up to the end of the ring, and from its start (empty if there are no more).
    #[must_use]
    pub fn segments(&self) -> [VolatileSlice<'_>; 2] {
        self.receiver.consumer.unread(0..self.ready)
    }

    /// Copies bytes out, from behind the first `skip` bytes.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn copy_to(&self, skip: usize, bytes: &mut [u8]) {
        let end = skip.checked_add(bytes.len());
        assert!(
            end.is_some_and(|end| end <= self.len()),
            "{} bytes behind {skip} of {}",
            bytes.len(),
            self.len()
        );
        self.receiver.consumer.peek(skip as u32, bytes);
    }

    /// Writes bytes straight to a descriptor, from behind the first `skip` bytes: at most `max`, once, and returns how many.
    /// They are still there, to be [consumed](Self::consume).
    ///
    /// # Errors
    /// [`System`](Error::System) when the descriptor cannot be written to.
    ///
    /// # Panics
    /// When `skip` is more than [`len`](Self::len).
    pub fn write_to_fd(&self, skip: usize, fd: impl AsFd, max: usize) -> Result<usize> {
        let end = self.len().min(skip.saturating_add(max));
        assert!(skip <= self.len(), "{skip} bytes skipped of {}", self.len());
        if skip == end {
            return Ok(0);
        }
        let parts = self.receiver.consumer.unread(skip as u32..end as u32);
        xen::write_to_fd(fd.as_fd(), &parts).map_err(|source| Error::System { call: "writev", source })
    }

    /// Counts the first `n` of them as received.
    ///
    /// # Panics
    /// When `n` is more than [`len`](Self::len).
    pub fn consume(self, n: usize) {
        assert!(n <= self.len(), "{n} bytes consumed of {}", self.len());
        self.receiver.half.metrics.operations += 1;
        self.receiver.consume(n as u32);
    }
}

impl Read for Receiver {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(self.recv(bytes)?)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(self.recv_vectored(buffers)?)
    }
}
