//! A channel: its two halves, in one hand.

use crate::link::Link;
use crate::metrics::Metrics;
use crate::ring::{Consumer, Producer};
use crate::wire::Pages;
use crate::{Orders, Partial, ReadChunk, Receiver, Result, Sender, Side, Signals, State, WriteChunk};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Both directions of a channel, at either end.
///
/// Made by [`Listener::accept`](crate::Listener::accept) and [`Channel::connect`]. Dropping it closes the channel: the
/// peer can still receive all that was sent.
///
/// It blocks, or not ([`set_nonblocking`](Self::set_nonblocking), with [`event_fd`](Self::event_fd) for waiting), or is
/// polled by tasks ([`poll_recv`](Self::poll_recv), `AsyncChannel`).
#[derive(Debug)]
pub struct Channel {
    sender: Sender,
    receiver: Receiver,
}

impl Channel {
    pub(crate) fn new(sender: Producer<Arc<Pages>>, receiver: Consumer<Arc<Pages>>, link: Arc<Link>) -> Self {
        Self { sender: Sender::new(sender, Arc::clone(&link)), receiver: Receiver::new(receiver, link) }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.sender.half.link
    }

    /// Sends at least one byte; see [`Sender::send`].
    ///
    /// # Errors
    /// As [`Sender::send`].
    #[inline]
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        self.receiver.settle();
        self.sender.send(bytes)
    }

    /// Sends all of `bytes`; see [`Sender::send_all`].
    ///
    /// # Errors
    /// As [`Sender::send_all`].
    #[inline]
    pub fn send_all(&mut self, bytes: &[u8]) -> std::result::Result<(), Partial> {
        self.receiver.settle();
        self.sender.send_all(bytes)
    }

    /// Receives at least one byte; 0 is the end. See [`Receiver::recv`].
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub fn recv(&mut self, bytes: &mut [u8]) -> Result<usize> {
        self.sender.settle();
        self.receiver.recv(bytes)
    }

    /// Fills `bytes`; see [`Receiver::recv_exact`].
    ///
    /// # Errors
    /// As [`Receiver::recv_exact`].
    pub fn recv_exact(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Partial> {
        self.sender.settle();
        self.receiver.recv_exact(bytes)
    }

    /// As [`send`](Self::send), for a task; see [`Sender::poll_send`].
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn poll_send(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.receiver.settle();
        self.sender.poll_send(context, bytes)
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
        self.receiver.settle();
        self.sender.poll_send_vectored(context, buffers)
    }

    /// As [`recv`](Self::recv), for a task; see [`Receiver::poll_recv`].
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn poll_recv(&mut self, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<Result<usize>> {
        self.sender.settle();
        self.receiver.poll_recv(context, bytes)
    }

    /// As [`wait_until_read`](Self::wait_until_read), for a task.
    ///
    /// # Errors
    /// As [`Sender::wait_until_read`].
    pub fn poll_until_read(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.receiver.settle();
        self.sender.poll_until_read(context)
    }

    /// Sends several buffers as one; see [`Sender::send_vectored`].
    ///
    /// # Errors
    /// As [`Sender::send_vectored`].
    pub fn send_vectored(&mut self, buffers: &[IoSlice<'_>]) -> Result<usize> {
        self.receiver.settle();
        self.sender.send_vectored(buffers)
    }

    /// Receives into several buffers; see [`Receiver::recv_vectored`].
    ///
    /// # Errors
    /// As [`Receiver::recv_vectored`].
    pub fn recv_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> Result<usize> {
        self.sender.settle();
        self.receiver.recv_vectored(buffers)
    }

    /// Room in the ring, to be filled in place; see [`Sender::reserve`].
    ///
    /// # Errors
    /// As [`Sender::reserve`].
    pub fn reserve(&mut self, want: usize) -> Result<WriteChunk<'_>> {
        self.receiver.settle();
        self.sender.reserve(want)
    }

    /// What has come, to be looked at in place; see [`Receiver::peek`].
    ///
    /// # Errors
    /// As [`Receiver::peek`].
    pub fn peek(&mut self, want: usize) -> Result<ReadChunk<'_>> {
        self.sender.settle();
        self.receiver.peek(want)
    }

    /// Reads from a descriptor straight into the ring; see [`Sender::read_from_fd`].
    ///
    /// # Errors
    /// As [`Sender::read_from_fd`].
    pub fn read_from_fd(&mut self, fd: impl AsFd, max: usize) -> Result<usize> {
        self.receiver.settle();
        self.sender.read_from_fd(fd, max)
    }

    /// Writes what has come straight to a descriptor; see [`Receiver::write_to_fd`].
    ///
    /// # Errors
    /// As [`Receiver::write_to_fd`].
    pub fn write_to_fd(&mut self, fd: impl AsFd, max: usize) -> Result<usize> {
        self.sender.settle();
        self.receiver.write_to_fd(fd, max)
    }

    /// Holds sent bytes back; see [`Sender::set_corked`].
    pub fn set_corked(&mut self, corked: bool) {
        self.sender.set_corked(corked);
    }

    /// Puts what was held back into the peer's reach; see [`Sender::flush`].
    ///
    /// # Errors
    /// As [`Sender::flush`].
    pub fn flush(&mut self) -> Result<()> {
        self.sender.flush()
    }

    /// Gives the room of all that was received back to the peer; see [`Receiver::give_back`].
    ///
    /// # Errors
    /// As [`Receiver::give_back`].
    pub fn give_back(&mut self) -> Result<()> {
        self.receiver.give_back()
    }

    /// How many bytes can be sent without waiting.
    ///
    /// # Errors
    /// [`Violation`](crate::Error::Violation).
    pub fn room(&mut self) -> Result<usize> {
        self.sender.room()
    }

    /// How many bytes can be received without waiting.
    ///
    /// # Errors
    /// [`Violation`](crate::Error::Violation).
    pub fn ready(&mut self) -> Result<usize> {
        self.receiver.ready()
    }

    /// How many bytes the peer has not taken out of its ring yet.
    ///
    /// # Errors
    /// [`Violation`](crate::Error::Violation).
    pub fn unread(&mut self) -> Result<usize> {
        self.sender.unread()
    }

    /// Waits until the peer has taken all that was sent; see [`Sender::wait_until_read`].
    ///
    /// # Errors
    /// As [`Sender::wait_until_read`].
    pub fn wait_until_read(&mut self) -> Result<()> {
        self.receiver.settle();
        self.sender.wait_until_read()
    }

    /// Whether the peer is there. (When it has gone there may still be bytes to receive.)
    ///
    /// # Errors
    /// [`Violation`](crate::Error::Violation), [`PeerDied`](crate::Error::PeerDied).
    pub fn state(&self) -> Result<State> {
        self.link().state()
    }

    /// Looks whether the peer's domain still exists: for those who wait for the descriptor, from time to time while it
    /// is silent. (Operations that wait do so themselves.)
    ///
    /// # Errors
    /// [`PeerDied`](crate::Error::PeerDied).
    pub fn probe(&self) -> Result<()> {
        self.link().probe()
    }

    /// The descriptor to wait for (poll, epoll; level-triggered or not). It becomes readable when something may have
    /// changed, after an operation said [`WouldBlock`](crate::Error::WouldBlock); then the operation is tried again, until
    /// it says so once more. That also takes the event, so nothing else is to be done with the descriptor.
    ///
    /// None of a [`Hub`](crate::Hub)'s channel.
    #[must_use]
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link().waiter().event_fd()
    }

    /// What a reactor is to wake when [`event_fd`](Self::event_fd) is readable, for those who use `poll_send` and
    /// `poll_recv` with a channel of its own: it wakes the tasks that wait for this channel, and
    /// does not keep it open. (A hub does so itself.)
    #[must_use]
    pub fn event_waker(&self) -> Waker {
        Waker::from(Arc::clone(self.link().waiter()))
    }

    /// Whether a server's client has come, for a task.
    pub(crate) fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.receiver.poll_accept(context)
    }

    /// Which end this is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.link().pages().side()
    }

    /// The sizes of the two rings.
    #[must_use]
    pub fn orders(&self) -> Orders {
        self.link().orders()
    }

    /// Lets operations return [`WouldBlock`](crate::Error::WouldBlock) where they would wait.
    pub fn set_nonblocking(&mut self, nonblocking: bool) {
        self.sender.set_nonblocking(nonblocking);
        self.receiver.set_nonblocking(nonblocking);
    }

    /// The longest time that an operation may wait. None, as at first: for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.sender.set_timeout(timeout);
        self.receiver.set_timeout(timeout);
    }

    /// Whether operations look for some microseconds before they sleep; see [`Sender::set_spinning`].
    pub fn set_spinning(&mut self, spinning: bool) {
        self.sender.set_spinning(spinning);
        self.receiver.set_spinning(spinning);
    }

    /// What both halves have done so far.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.sender.metrics() + self.receiver.metrics()
    }

    /// Parts the channel into halves that two threads can use at the same time.
    ///
    /// They share the one event channel: while both wait, one of them sleeps on the descriptor for both, and wakes the
    /// other. No wake-up is lost, and nobody polls.
    ///
    /// # Errors
    /// When an event channel more (by which one half ends the sleep of the other) cannot be had; the channel is closed
    /// then.
    pub fn split(self) -> Result<(Sender, Receiver)> {
        self.link().waiter().allow_interruption()?;
        Ok((self.sender, self.receiver))
    }

    /// Parts the channel into its halves, and its signals for who asks for them and waits for them by itself: see
    /// [`Signals`]. The halves can be used by two threads, as those of [`split`](Self::split); if no event channel more
    /// can be had, closing does not end the sleep of another thread.
    #[must_use]
    pub fn into_parts(self) -> (Sender, Receiver, Signals) {
        let signals = Signals::new(Arc::clone(self.link()));
        (self.sender, self.receiver, signals)
    }

    /// Closes the channel. The peer can still receive what was sent.
    ///
    /// # Errors
    /// When the peer could not be told, or the keys of a server not be removed. The channel is closed all the same.
    pub fn close(mut self) -> Result<()> {
        self.receiver.settle();
        self.sender.close()
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.send(bytes)?)
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(self.send_vectored(buffers)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(Self::flush(self)?)
    }
}

impl Read for Channel {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(self.recv(bytes)?)
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        Ok(self.recv_vectored(buffers)?)
    }
}

#[cfg(test)]
mod tests;
