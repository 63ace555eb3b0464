//! A channel, and its two halves.

use crate::link::Link;
use crate::ring::{Consumer, Outlook, Producer};
use crate::wait::Deadline;
use crate::wire::Pages;
use crate::{Error, Orders, Partial, Result, Side, State};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// How long the operations of a half may wait.
#[derive(Clone, Copy, Debug, Default)]
struct Patience {
    nonblocking: bool,
    timeout: Option<Duration>,
}

/// The sending half of a channel.
///
/// Bytes that were sent are in the peer's reach at once; nothing is held back here. They stay there when this half is
/// dropped. The channel is closed when both halves are gone, or by [`close`](Self::close); the wire has no word for one
/// direction alone.
#[derive(Debug)]
pub struct Sender {
    producer: Producer<Arc<Pages>>,
    link: Arc<Link>,
    patience: Patience,
    /// The peer could not be signalled of bytes that were counted as sent: told by the next operation.
    unsaid: Option<Error>,
}

impl Sender {
    /// Sends at least one byte, and as many as there is room for; returns how many. Waits while there is no room.
    ///
    /// (libxenvchan's blocking write waits until all are sent; that is [`send_all`](Self::send_all).)
    ///
    /// # Errors
    /// * [`Closed`](Error::Closed) when the peer has gone;
    /// * [`WouldBlock`](Error::WouldBlock) and [`TimedOut`](Error::TimedOut) when nothing was sent;
    /// * [`PeerDied`](Error::PeerDied), [`Violation`](Error::Violation), or a failed call.
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        self.send_until(bytes, &mut Deadline::new(self.patience.timeout))
    }

    /// Sends all of `bytes`. The timeout is for the whole.
    ///
    /// # Errors
    /// As [`send`](Self::send), with the number of bytes that were sent before.
    pub fn send_all(&mut self, bytes: &[u8]) -> std::result::Result<(), Partial> {
        let mut deadline = Deadline::new(self.patience.timeout);
        let mut done = 0;
        while done < bytes.len() {
            match self.send_until(&bytes[done..], &mut deadline) {
                Ok(n) => done += n,
                Err(error) => return Err(Partial { done, error }),
            }
        }
        match self.unsaid.take() {
            Some(error) => Err(Partial { done, error }),
            None => Ok(()),
        }
    }

    /// How many bytes can be sent without waiting.
    ///
    /// # Errors
    /// [`Violation`](Error::Violation).
    pub fn room(&mut self) -> Result<usize> {
        self.link.check_open()?;
        let size = self.producer.size();
        Ok(self.link.check(self.producer.room(size))? as usize)
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
        self.begin()?;
        let size = self.producer.size();
        if self.link.check(self.producer.room(size))? < size {
            self.wait_for_room(size, &mut Deadline::new(self.patience.timeout))?;
        }
        Ok(())
    }

    /// Whether the peer is there.
    ///
    /// # Errors
    /// [`Violation`](Error::Violation), [`PeerDied`](Error::PeerDied), [`ClosedHere`](Error::ClosedHere).
    pub fn state(&self) -> Result<State> {
        self.link.state()
    }

    /// Lets operations of this half return [`WouldBlock`](Error::WouldBlock) where they would wait.
    pub fn set_nonblocking(&mut self, nonblocking: bool) {
        self.patience.nonblocking = nonblocking;
    }

    /// The longest time that an operation of this half may wait. None, as at first: for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.patience.timeout = timeout;
    }

    /// Closes the channel, for the other half as well, which from then on says [`ClosedHere`](Error::ClosedHere); also
    /// if it sleeps just now. The peer can still receive what was sent.
    ///
    /// # Errors
    /// When the peer could not be told, or the keys of a server not be removed. The channel is closed all the same.
    pub fn close(self) -> Result<()> {
        self.link.close()
    }

    /// What every operation begins with.
    fn begin(&mut self) -> Result<()> {
        self.link.check_open()?;
        match self.unsaid.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn send_until(&mut self, bytes: &[u8], deadline: &mut Deadline) -> Result<usize> {
        self.begin()?;
        if self.link.state()? == State::Closed {
            return Err(Error::Closed);
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let wanted = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(self.producer.size());
        let room = match self.link.check(self.producer.room(wanted))? {
            0 => self.wait_for_room(1, deadline)?,
            room => room,
        };
        let n = room.min(wanted);
        self.producer.fill(0, &bytes[..n as usize]);
        self.producer.commit(n);
        if let Err(error) = self.signal() {
            self.unsaid = Some(error);
        }
        Ok(n as usize)
    }

    fn signal(&mut self) -> Result<()> {
        if self.link.check(self.producer.notify_due())? {
            self.link.waiter().bound().notify()
        } else {
            Ok(())
        }
    }

    /// Waits until there are `want` bytes of room, at most the ring's size; returns how many.
    fn wait_for_room(&mut self, want: u32, deadline: &mut Deadline) -> Result<u32> {
        loop {
            if self.patience.nonblocking {
                self.link.waiter().drain()?;
            }
            let ticket = self.link.waiter().ticket();
            match self.link.check(self.producer.before_sleep(want))? {
                Outlook::Enough(room) => return Ok(room),
                Outlook::Final(_) => return Err(Error::Closed),
                Outlook::Wait => {}
            }
            self.link.check_open()?;
            self.link.check_alive()?;
            if self.patience.nonblocking {
                return Err(Error::WouldBlock);
            }
            self.link.sleep(ticket, deadline)?;
        }
    }
}

/// The receiving half of a channel.
///
/// When it is dropped, the peer's bytes are no longer taken; the channel is closed when both halves are gone.
#[derive(Debug)]
pub struct Receiver {
    consumer: Consumer<Arc<Pages>>,
    link: Arc<Link>,
    patience: Patience,
    /// The peer could not be signalled of bytes that were taken: told by the next operation.
    unsaid: Option<Error>,
}

impl Receiver {
    /// Receives at least one byte, and as many as are there and fit into `bytes`; returns how many. Waits while there
    /// are none. 0 means that the peer has gone and that all it sent was received (or that `bytes` is empty).
    ///
    /// # Errors
    /// * [`WouldBlock`](Error::WouldBlock) and [`TimedOut`](Error::TimedOut) when nothing has come;
    /// * [`PeerDied`](Error::PeerDied) after the last byte that came;
    /// * [`Violation`](Error::Violation), or a failed call.
    pub fn recv(&mut self, bytes: &mut [u8]) -> Result<usize> {
        self.recv_until(bytes, &mut Deadline::new(self.patience.timeout))
    }

    /// Fills `bytes`. The timeout is for the whole.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), with the number of bytes that were received before; [`Closed`](Error::Closed) when the
    /// peer has gone and sent fewer.
    pub fn recv_exact(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Partial> {
        let mut deadline = Deadline::new(self.patience.timeout);
        let mut done = 0;
        while done < bytes.len() {
            match self.recv_until(&mut bytes[done..], &mut deadline) {
                Ok(0) => return Err(Partial { done, error: Error::Closed }),
                Ok(n) => done += n,
                Err(error) => return Err(Partial { done, error }),
            }
        }
        match self.unsaid.take() {
            Some(error) => Err(Partial { done, error }),
            None => Ok(()),
        }
    }

    /// How many bytes can be received without waiting.
    ///
    /// # Errors
    /// [`Violation`](Error::Violation).
    pub fn ready(&mut self) -> Result<usize> {
        self.link.check_open()?;
        let size = self.consumer.size();
        Ok(self.link.check(self.consumer.ready(size))? as usize)
    }

    /// Whether the peer is there. (When it has gone there may still be bytes to receive.)
    ///
    /// # Errors
    /// [`Violation`](Error::Violation), [`PeerDied`](Error::PeerDied), [`ClosedHere`](Error::ClosedHere).
    pub fn state(&self) -> Result<State> {
        self.link.state()
    }

    /// Lets operations of this half return [`WouldBlock`](Error::WouldBlock) where they would wait.
    pub fn set_nonblocking(&mut self, nonblocking: bool) {
        self.patience.nonblocking = nonblocking;
    }

    /// The longest time that an operation of this half may wait. None, as at first: for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.patience.timeout = timeout;
    }

    /// Closes the channel, for the other half as well, which from then on says [`ClosedHere`](Error::ClosedHere); also
    /// if it sleeps just now.
    ///
    /// # Errors
    /// When the peer could not be told, or the keys of a server not be removed. The channel is closed all the same.
    pub fn close(self) -> Result<()> {
        self.link.close()
    }

    fn recv_until(&mut self, bytes: &mut [u8], deadline: &mut Deadline) -> Result<usize> {
        self.link.check_open()?;
        if let Some(error) = self.unsaid.take() {
            return Err(error);
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let wanted = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(self.consumer.size());
        let ready = match self.link.check(self.consumer.ready(wanted))? {
            0 => self.wait_for_bytes(1, deadline)?,
            ready => ready,
        };
        let n = ready.min(wanted);
        if n == 0 {
            return Ok(0);
        }
        self.consumer.peek(0, &mut bytes[..n as usize]);
        self.consumer.consume(n);
        if let Err(error) = self.signal() {
            self.unsaid = Some(error);
        }
        Ok(n as usize)
    }

    fn signal(&mut self) -> Result<()> {
        if self.link.check(self.consumer.notify_due())? {
            self.link.waiter().bound().notify()
        } else {
            Ok(())
        }
    }

    /// Waits until `want` bytes are there, at most the ring's size; returns how many. Fewer than `want`: the peer has
    /// gone, and those are the last.
    fn wait_for_bytes(&mut self, want: u32, deadline: &mut Deadline) -> Result<u32> {
        loop {
            if self.patience.nonblocking {
                self.link.waiter().drain()?;
            }
            let ticket = self.link.waiter().ticket();
            match self.link.check(self.consumer.before_sleep(want))? {
                Outlook::Enough(ready) | Outlook::Final(ready) => return Ok(ready),
                Outlook::Wait => {}
            }
            self.link.check_open()?;
            self.link.check_alive()?;
            if self.patience.nonblocking {
                return Err(Error::WouldBlock);
            }
            self.link.sleep(ticket, deadline)?;
        }
    }
}

/// Both directions of a channel, at either end.
///
/// Made by [`Listener::accept`](crate::Listener::accept) and [`Channel::connect`]. Dropping it closes the channel: the
/// peer can still receive all that was sent.
///
/// The descriptor of [`as_fd`](AsFd::as_fd) is for waiting alone (poll, epoll; level-triggered or not). It becomes
/// readable when something may have changed, after an operation said [`WouldBlock`](Error::WouldBlock); then the
/// operation is tried again, until it says so once more. That also takes the event, so nothing else is to be done with
/// the descriptor.
#[derive(Debug)]
pub struct Channel {
    sender: Sender,
    receiver: Receiver,
}

impl Channel {
    pub(crate) fn new(sender: Producer<Arc<Pages>>, receiver: Consumer<Arc<Pages>>, link: Arc<Link>) -> Self {
        let patience = Patience::default();
        Self {
            sender: Sender { producer: sender, link: Arc::clone(&link), patience, unsaid: None },
            receiver: Receiver { consumer: receiver, link, patience, unsaid: None },
        }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.sender.link
    }

    /// Sends at least one byte; see [`Sender::send`].
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize> {
        self.sender.send(bytes)
    }

    /// Sends all of `bytes`; see [`Sender::send_all`].
    ///
    /// # Errors
    /// As [`Sender::send_all`].
    pub fn send_all(&mut self, bytes: &[u8]) -> std::result::Result<(), Partial> {
        self.sender.send_all(bytes)
    }

    /// Receives at least one byte; 0 is the end. See [`Receiver::recv`].
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub fn recv(&mut self, bytes: &mut [u8]) -> Result<usize> {
        self.receiver.recv(bytes)
    }

    /// Fills `bytes`; see [`Receiver::recv_exact`].
    ///
    /// # Errors
    /// As [`Receiver::recv_exact`].
    pub fn recv_exact(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Partial> {
        self.receiver.recv_exact(bytes)
    }

    /// How many bytes can be sent without waiting.
    ///
    /// # Errors
    /// [`Violation`](Error::Violation).
    pub fn room(&mut self) -> Result<usize> {
        self.sender.room()
    }

    /// How many bytes can be received without waiting.
    ///
    /// # Errors
    /// [`Violation`](Error::Violation).
    pub fn ready(&mut self) -> Result<usize> {
        self.receiver.ready()
    }

    /// How many bytes the peer has not taken out of its ring yet.
    ///
    /// # Errors
    /// [`Violation`](Error::Violation).
    pub fn unread(&mut self) -> Result<usize> {
        self.sender.unread()
    }

    /// Waits until the peer has taken all that was sent; see [`Sender::wait_until_read`].
    ///
    /// # Errors
    /// As [`Sender::wait_until_read`].
    pub fn wait_until_read(&mut self) -> Result<()> {
        self.sender.wait_until_read()
    }

    /// Whether the peer is there. (When it has gone there may still be bytes to receive.)
    ///
    /// # Errors
    /// [`Violation`](Error::Violation), [`PeerDied`](Error::PeerDied).
    pub fn state(&self) -> Result<State> {
        self.link().state()
    }

    /// Looks whether the peer's domain still exists: for those who wait for the descriptor, from time to time while it
    /// is silent. (Operations that wait do so themselves.)
    ///
    /// # Errors
    /// [`PeerDied`](Error::PeerDied).
    pub fn probe(&self) -> Result<()> {
        self.link().probe()
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

    /// Lets operations return [`WouldBlock`](Error::WouldBlock) where they would wait.
    pub fn set_nonblocking(&mut self, nonblocking: bool) {
        self.sender.set_nonblocking(nonblocking);
        self.receiver.set_nonblocking(nonblocking);
    }

    /// The longest time that an operation may wait. None, as at first: for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.sender.set_timeout(timeout);
        self.receiver.set_timeout(timeout);
    }

    /// Parts the channel into halves that two threads can use at the same time.
    ///
    /// They share the one event channel: while both wait, one of them sleeps on the descriptor for both, and wakes the
    /// other. No wake-up is lost, and nobody polls.
    ///
    /// # Errors
    /// When a descriptor more (an eventfd, by which one half ends the sleep of the other) cannot be had; the channel is
    /// closed then.
    pub fn split(self) -> Result<(Sender, Receiver)> {
        self.link().waiter().allow_interruption()?;
        Ok((self.sender, self.receiver))
    }

    /// Closes the channel. The peer can still receive what was sent.
    ///
    /// # Errors
    /// When the peer could not be told, or the keys of a server not be removed. The channel is closed all the same.
    pub fn close(self) -> Result<()> {
        self.link().close()
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.waiter().as_fd()
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.waiter().as_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link().waiter().as_fd()
    }
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.send(bytes)?)
    }

    /// Does nothing: what was written is in the peer's reach.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Receiver {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(self.recv(bytes)?)
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sender.write(bytes)
    }

    /// Does nothing: what was written is in the peer's reach.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Channel {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.receiver.read(bytes)
    }
}

#[cfg(test)]
mod tests;
