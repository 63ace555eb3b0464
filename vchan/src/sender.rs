//! The sending half of a channel.

use crate::deadline::Deadline;
use crate::half::{Half, HasHalf};
use crate::link::Link;
use crate::metrics::Metrics;
use crate::ring::{End, Outlook, Producer};
use crate::wait::Task;
use crate::wire::Pages;
use crate::{Error, Partial, Result, State};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use xen::VolatileSliceMut;

/// The sending half of a channel.
///
/// Bytes that were sent are in the peer's reach at once, unless the half is [corked](Self::set_corked). They stay there
/// when it is dropped. The channel is closed when both halves are gone, or by [`close`](Self::close); the wire has no
/// word for one direction alone.
#[derive(Debug)]
pub struct Sender {
    pub(crate) producer: Producer<Arc<Pages>>,
    pub(crate) half: Half,
    corked: bool,
    /// So many bytes are published at once: a part of the ring, so that the peer takes some while others are filled in.
    part: u32,
}

impl Sender {
    pub(crate) fn new(producer: Producer<Arc<Pages>>, link: Arc<Link>) -> Self {
        let part = part_of(producer.size());
        Self { producer, half: Half::new(link), corked: false, part }
    }

    /// Sends at least one byte, and as many as there is room for; returns how many. Waits while there is no room.
    ///
    /// (libxenvchan's blocking write waits until all are sent; that is [`send_all`](Self::send_all).)
    ///
    /// # Errors
    /// * [`Closed`](Error::Closed) when the peer has gone;
    /// * [`WouldBlock`](Error::WouldBlock) and [`TimedOut`](Error::TimedOut) when nothing was sent;
    /// * [`PeerDied`](Error::PeerDied), [`Violation`](Error::Violation), or a failed call.
    #[inline]
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        if self.send_short(bytes) {
            return Ok(bytes.len());
        }
        let mut deadline = self.half.deadline();
        self.send_some(bytes, &mut deadline)
    }

    /// Sends all of `bytes`. The timeout is for the whole.
    ///
    /// # Errors
    /// As [`send`](Self::send), with the number of bytes that were sent before.
    #[inline]
    pub fn send_all(&mut self, bytes: &[u8]) -> std::result::Result<(), Partial> {
        if self.send_short(bytes) {
            return self.half.said().map_err(|error| Partial { done: bytes.len(), error });
        }
        self.send_long(bytes)
    }

    fn send_long(&mut self, bytes: &[u8]) -> std::result::Result<(), Partial> {
        let mut deadline = self.half.deadline();
        let mut done = 0;
        // Once for no bytes, too: an end is an end.
        loop {
            match self.send_some(&bytes[done..], &mut deadline) {
                Ok(n) => done += n,
                Err(error) => return Err(Partial { done, error }),
            }
            if done == bytes.len() {
                break;
            }
        }
        self.half.said().map_err(|error| Partial { done, error })
    }

    /// As [`send`](Self::send), for a task of any executor; never blocks. The task is woken by the thread of the
    /// [`Hub`](crate::Hub); with a channel of its own see [`Channel::event_waker`](crate::Channel::event_waker).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn poll_send(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.poll(context, |sender| sender.send(bytes))
    }

    /// Sends several buffers one after another as one: what is sent by one call reaches the peer together, as far as
    /// there is room for it at once. Returns how many bytes; at least one.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_vectored(&mut self, buffers: &[IoSlice<'_>]) -> Result<usize> {
        let corked = std::mem::replace(&mut self.corked, true);
        let result = self.send_buffers(buffers);
        self.corked = corked;
        if !corked {
            self.half.publish(&mut self.producer);
        }
        result
    }

    fn send_buffers(&mut self, buffers: &[IoSlice<'_>]) -> Result<usize> {
        let mut deadline = self.half.deadline();
        let mut done = 0;
        for buffer in buffers.iter().filter(|buffer| !buffer.is_empty()) {
            // Only the first may wait: after that, what was sent is told.
            if done > 0 && self.half.link.check(self.producer.room(1))? == 0 {
                break;
            }
            match self.send_some(buffer, &mut deadline) {
                Ok(n) if n == buffer.len() => done += n,
                // The next one must not follow half a buffer, even if there is room again by now.
                Ok(n) => return Ok(done + n),
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// As [`send_vectored`](Self::send_vectored), for a task.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn poll_send_vectored(
        &mut self,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.poll(context, |sender| sender.send_vectored(buffers))
    }

    /// Waits until there is room for `want` bytes, at most the ring's size, and gives out all the room that is known
    /// then: to be filled in place, and [committed](WriteChunk::commit).
    ///
    /// # Errors
    /// As [`send`](Self::send); [`RingTooSmall`](Error::RingTooSmall) for more bytes than the ring ever holds.
    pub fn reserve(&mut self, want: usize) -> Result<WriteChunk<'_>> {
        self.half.begin()?;
        self.half.link.check_peer()?;
        let want = within(want, self.producer.size())?;
        let mut deadline = self.half.deadline();
        let Outlook::Enough(room) = self.half.obtain(&mut self.producer, want, want, &mut deadline)? else {
            return Err(Error::Closed);
        };
        Ok(WriteChunk { sender: self, room })
    }

    /// Reads from a descriptor straight into the ring: at most `max` bytes, once, and returns how many; 0 at the end of
    /// the file (or when `max` is 0). Waits for room, and, as the descriptor does, for bytes.
    ///
    /// # Errors
    /// As [`send`](Self::send); [`System`](Error::System) when the descriptor cannot be read.
    pub fn read_from_fd(&mut self, fd: impl AsFd, max: usize) -> Result<usize> {
        if max == 0 {
            return Ok(0);
        }
        let mut chunk = self.reserve(1)?;
        let n = chunk.read_from_fd(0, fd, max)?;
        chunk.commit(n)?;
        Ok(n)
    }

    /// Holds bytes back from the peer, until a part of the ring has come together, until [`flush`](Self::flush), until
    /// this half has to wait, until something is received from the same [`Channel`](crate::Channel), or until it is
    /// uncorked: for many small messages that nobody waits for one by one.
    pub fn set_corked(&mut self, corked: bool) {
        self.corked = corked;
        if !corked {
            self.half.publish(&mut self.producer);
        }
    }

    /// Puts all that was sent into the peer's reach. Has something to do only when the half is
    /// [corked](Self::set_corked).
    ///
    /// # Errors
    /// When the peer could not be signalled.
    pub fn flush(&mut self) -> Result<()> {
        self.half.publish(&mut self.producer);
        self.half.said()
    }

    /// Publishes what is held back, if there is any; an error is told by the next operation of this half.
    #[inline]
    pub(crate) fn settle(&mut self) {
        self.half.publish(&mut self.producer);
    }

    /// How many bytes can be sent without waiting.
    ///
    /// # Errors
    /// [`Violation`](Error::Violation).
    pub fn room(&mut self) -> Result<usize> {
        self.half.link.check_open()?;
        let size = self.producer.size();
        Ok(self.half.link.check(self.producer.room(size))? as usize)
    }

    /// How many bytes the peer has not taken out of the ring yet.
    ///
    /// # Errors
    /// [`Violation`](Error::Violation).
    pub fn unread(&mut self) -> Result<usize> {
        Ok(self.producer.size() as usize - self.room()?)
    }

    /// Waits until the peer has taken all that was sent.
    ///
    /// # Errors
    /// As [`send`](Self::send). [`Closed`](Error::Closed) when the peer has gone and left bytes, which
    /// [`unread`](Self::unread) counts.
    pub fn wait_until_read(&mut self) -> Result<()> {
        self.half.begin()?;
        let size = self.producer.size();
        let mut deadline = self.half.deadline();
        match self.half.obtain(&mut self.producer, size, size, &mut deadline)? {
            Outlook::Enough(_) => Ok(()),
            Outlook::Final(_) | Outlook::Wait => Err(Error::Closed),
        }
    }

    /// As [`wait_until_read`](Self::wait_until_read), for a task.
    ///
    /// # Errors
    /// As [`wait_until_read`](Self::wait_until_read).
    pub fn poll_until_read(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll(context, Self::wait_until_read)
    }

    /// Whether the peer is there.
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

    /// Whether this half looks for some microseconds whether there is room before it sleeps, where there is more than one
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
    /// if it sleeps just now. The peer can still receive what was sent.
    ///
    /// # Errors
    /// When the peer could not be told, or the keys of a server not be removed. The channel is closed all the same.
    pub fn close(mut self) -> Result<()> {
        self.half.publish(&mut self.producer);
        self.half.link.close()
    }

    /// Sends all of a few bytes if there is nothing to look at: the usual case, in as few steps as possible. False: nothing
    /// was done.
    #[inline]
    pub(crate) fn send_short(&mut self, bytes: &[u8]) -> bool {
        let n = bytes.len() as u32;
        if bytes.len() > self.part.min(self.producer.known()) as usize
            || n == 0
            || !self.half.is_clear()
            || !self.half.link.is_peer_here()
        {
            return false;
        }
        self.producer.fill(0, bytes);
        self.commit(n);
        self.half.metrics.operations += 1;
        true
    }

    fn send_some(&mut self, bytes: &[u8], deadline: &mut Deadline) -> Result<usize> {
        self.half.begin()?;
        if bytes.is_empty() {
            return self.half.link.check_peer().map(|()| 0);
        }
        let wanted = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(self.producer.size());
        let Outlook::Enough(room) = self.half.obtain(&mut self.producer, 1, wanted, deadline)? else {
            return Err(Error::Closed);
        };
        let mut done = 0;
        let all = room.min(wanted);
        while done < all {
            let n = (all - done).min(self.part);
            self.producer.fill(0, &bytes[done as usize..(done + n) as usize]);
            self.commit(n);
            done += n;
        }
        self.half.metrics.operations += 1;
        self.check_peer()?;
        Ok(done as usize)
    }

    /// An error when the peer has gone and did not take all before.
    ///
    /// Looked at after bytes were published: then the line with the indices is here, and a look costs nothing.
    #[inline]
    fn check_peer(&mut self) -> Result<()> {
        match self.half.link.check_peer() {
            Err(Error::Closed) if self.unread()? == 0 => Ok(()),
            result => result,
        }
    }

    /// Counts bytes that were filled in as sent, and publishes them when it is time.
    #[inline]
    fn commit(&mut self, n: u32) {
        self.producer.commit(n);
        if !self.corked || self.producer.held_back() >= self.part {
            self.half.publish(&mut self.producer);
        }
        self.half.metrics.bytes += u64::from(n);
    }
}

impl HasHalf for Sender {
    const TASK: Task = Task::Sender;

    fn half(&mut self) -> &mut Half {
        &mut self.half
    }
}

/// Publishes what a cork held back.
impl Drop for Sender {
    fn drop(&mut self) {
        if self.half.link.check_open().is_ok() {
            self.half.publish(&mut self.producer);
        }
    }
}

/// Room in the ring, to be filled in place. When it is dropped nothing has happened.
#[derive(Debug)]
pub struct WriteChunk<'a> {
    sender: &'a mut Sender,
    room: u32,
}

impl WriteChunk<'_> {
    /// Bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "there is at least the room that was asked for")]
    pub fn len(&self) -> usize {
        self.room as usize
    }

    /// The room: up to the end of the ring, and from its start (empty if the first suffices).
    pub fn segments(&mut self) -> [VolatileSliceMut<'_>; 2] {
        self.sender.producer.reserved(0..self.room)
    }

    /// Copies bytes into it, behind the first `skip` bytes.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn fill(&mut self, skip: usize, bytes: &[u8]) {
        let end = skip.checked_add(bytes.len());
        assert!(
            end.is_some_and(|end| end <= self.len()),
            "{} bytes behind {skip} of {}",
            bytes.len(),
            self.len()
        );
        self.sender.producer.fill(skip as u32, bytes);
    }

    /// Reads from a descriptor straight into it, behind the first `skip` bytes: at most `max` bytes, once, and returns how
    /// many; 0 at the end of the file (or when there is no room). Nothing is sent before [`commit`](Self::commit): what
    /// says how many bytes follow can be filled in before them when that is known.
    ///
    /// # Errors
    /// [`System`](Error::System) when the descriptor cannot be read.
    ///
    /// # Panics
    /// When `skip` is more than [`len`](Self::len).
    pub fn read_from_fd(&mut self, skip: usize, fd: impl AsFd, max: usize) -> Result<usize> {
        let end = self.len().min(skip.saturating_add(max));
        assert!(skip <= self.len(), "{skip} bytes skipped of {}", self.len());
        if skip == end {
            return Ok(0);
        }
        let mut parts = self.sender.producer.reserved(skip as u32..end as u32);
        xen::read_from_fd(fd.as_fd(), &mut parts).map_err(|source| Error::System { call: "readv", source })
    }

    /// The same with room for exactly `max` bytes, and in the same system call what follows into `then`: where messages
    /// come with headers of their own, the next one's. Returns how many bytes it were in all.
    ///
    /// # Errors
    /// As [`read_from_fd`](Self::read_from_fd).
    ///
    /// # Panics
    /// When there is no such room.
    pub fn read_from_fd_then(
        &mut self,
        skip: usize,
        fd: impl AsFd,
        max: usize,
        then: &mut [u8],
    ) -> Result<usize> {
        let end = skip.checked_add(max).filter(|end| *end <= self.len());
        assert!(end.is_some(), "{max} bytes behind {skip} of {}", self.len());
        let mut parts = self.sender.producer.reserved(skip as u32..(skip + max) as u32);
        xen::read_from_fd_then(fd.as_fd(), &mut parts, then)
            .map_err(|source| Error::System { call: "readv", source })
    }

    /// Sends the first `n` bytes of it.
    ///
    /// # Errors
    /// [`Closed`](Error::Closed) when the peer has gone; and as [`Sender::send`].
    ///
    /// # Panics
    /// When `n` is more than [`len`](Self::len).
    pub fn commit(self, n: usize) -> Result<()> {
        assert!(n <= self.len(), "{n} bytes committed of {}", self.len());
        if n > 0 {
            self.sender.commit(n as u32);
            self.sender.half.metrics.operations += 1;
        }
        self.sender.check_peer()
    }
}

/// How much of a ring is published at once.
pub(crate) fn part_of(size: u32) -> u32 {
    size / 4
}

/// A number of bytes that a ring of `size` can hold at once.
pub(crate) fn within(want: usize, size: u32) -> Result<u32> {
    match u32::try_from(want) {
        Ok(want) if want <= size => Ok(want),
        _ => Err(Error::RingTooSmall { asked: want, size }),
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.send(bytes)?)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(self.send_vectored(buffers)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(Sender::flush(self)?)
    }
}
