//! A vchan as C callers use it: what libxenvchan.so and libvchan-xen.so have in common.
//!
//! Both libraries are translations of this crate's [`Channel`], and that one of `vchan`'s halves. What C callers may rely on,
//! and Rust callers need not:
//!
//! * **Blocking or not is said with each call**, since it is a field that the caller may poke at any time. 0 means that nothing
//!   can be done now; the end is an error.
//! * **Events are the caller's.** A call that does not block takes none: the descriptor stays readable until [`Channel::wait`].
//! * **Whoever got less than it wanted is signalled**: libxenvchan asks for a signal whenever there is less to read, or less
//!   room, than the caller wanted, and whenever it is asked how much there is. A caller may then sleep on the descriptor. One
//!   that blocks and never asked for the descriptor can sleep only in our hands; such a request is kept (*owed*) until it waits, which
//!   spares the peer most signals.
//! * **Room is given back**, if not at once then soon (`returner.rs`).
//! * **A signal ends a sleep** with `EINTR`, unless something was done already.
//! * **A server's client may be followed by another one**, after the end of the first was seen.

mod boundary;
mod failure;
mod lock;
mod returner;
mod tap;

pub use boundary::{Handles, bytes, bytes_mut, descriptor, guard, last_error, text};
pub use failure::{Failure, Outcome};
pub use tap::Raw;
pub use vchan::State;
pub use xen::DomId;

use lock::Mutex;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tap::Tap;
use vchan::{ConnectOptions, ListenOptions, Listener, Orders, Receiver, Ring, Sender, Side, Signals};
use xen::host::{Events, Host};
use xen::{EventChannels, Platform, Transaction, Xenstore};

/// Either end of a vchan, for C. Every method may be called from every thread.
pub struct Channel {
    sender: Mutex<Sender>,
    receiver: Mutex<Receiver>,
    signals: Signals,
    events: Arc<dyn EventChannels>,
    store: Arc<dyn Xenstore>,
    side: Side,
    orders: Orders,
    /// Where a server has published.
    path: Option<String>,
    persist: AtomicBool,
    /// The caller has the descriptor, and may sleep on it.
    polled: AtomicBool,
    /// The caller was promised a signal for which the peer was not asked yet: of bytes, of room.
    owed: [AtomicBool; 2],
    /// The returner knows that room is held back.
    noted: AtomicBool,
}

const BYTES: usize = 0;
const ROOM: usize = 1;

/// A domain's id as C has it.
pub fn domid(domain: i32) -> Outcome<DomId> {
    let domid =
        u16::try_from(domain).map_err(|_| Failure::new(libc::EINVAL, format!("{domain} is no domain")))?;
    Ok(DomId(domid))
}

impl Channel {
    /// A server for the domain `client`, published under `path`.
    pub fn listen(client: DomId, path: &str, read_min: usize, write_min: usize) -> Outcome<(Arc<Self>, Raw)> {
        let tap = Tap::default();
        let options = ListenOptions { read_min, write_min, ..ListenOptions::default() };
        let channel = Listener::open(&tap, client, path, &options)?.into_channel();
        Self::new(channel, Some(path.to_owned()), &tap)
    }

    /// A client of the domain `server`, which has published under `path`.
    pub fn connect(server: DomId, path: &str) -> Outcome<(Arc<Self>, Raw)> {
        let tap = Tap::default();
        // The server may be Qubes' library, which removes its keys.
        let options = ConnectOptions { server_keeps_keys: false, ..ConnectOptions::default() };
        Self::new(vchan::Channel::connect(&tap, server, path, &options)?, None, &tap)
    }

    fn new(channel: vchan::Channel, path: Option<String>, tap: &Tap) -> Outcome<(Arc<Self>, Raw)> {
        let (Some(events), Some(store)) = (tap.events(), tap.store()) else {
            return Err(Failure::new(libc::EIO, "a channel without event channels"));
        };
        let (side, orders) = (channel.side(), channel.orders());
        let (sender, receiver, signals) = channel.into_parts();
        signals.set_reopens();
        let channel = Self {
            sender: Mutex::new(sender),
            receiver: Mutex::new(receiver),
            signals,
            events,
            store,
            side,
            orders,
            path,
            persist: AtomicBool::new(false),
            polled: AtomicBool::new(false),
            owed: [const { AtomicBool::new(false) }; 2],
            noted: AtomicBool::new(false),
        };
        Ok((Arc::new(channel), tap.raw(orders.order(Ring::Left) >= 12)))
    }

    /// Which end this is.
    #[must_use]
    pub fn side(&self) -> Side {
        self.side
    }

    /// The sizes of the two rings.
    #[must_use]
    pub fn orders(&self) -> Orders {
        self.orders
    }

    /// Whether a server outlives its clients, from now on.
    pub fn set_persist(&self, persist: bool) {
        self.signals.set_persist(persist);
        self.persist.store(persist, Relaxed);
    }

    /// What was set last.
    #[inline]
    #[must_use]
    pub fn persists(&self) -> bool {
        self.persist.load(Relaxed)
    }

    /// Receives what there is, at most the buffer's size. If nothing is there: 0, or, if blocking, waits.
    ///
    /// # Errors
    /// `EPIPE` at the end; `EINTR`, `ECONNRESET`, `EPROTO`, or what a call to Xen said.
    #[inline]
    pub fn read(self: &Arc<Self>, into: &mut [u8], blocking: bool) -> Outcome<usize> {
        let mut receiver = self.receiver.lock();
        if self.is_eager(blocking) || into.is_empty() {
            return self.read_eagerly(&mut receiver, into, blocking);
        }
        let got = receiver.recv(into)?;
        if got < into.len() {
            if got == 0 {
                return Err(Failure::closed());
            }
            self.owe(BYTES);
        }
        self.after_receiving(&mut receiver)?;
        Ok(got)
    }

    /// Reads for a caller that may sleep on the descriptor next.
    fn read_eagerly(&self, receiver: &mut Receiver, into: &mut [u8], blocking: bool) -> Outcome<usize> {
        while ask_for(receiver, into.len())? == 0 {
            if never_has(receiver, 1)? {
                return Err(Failure::closed());
            }
            if receiver.known() == 0 {
                if !blocking || into.is_empty() {
                    return Ok(0);
                }
                // Waits, and takes nothing yet: what else has come by then belongs to this call, too.
                receiver.peek(1)?;
            }
        }
        let got = receiver.known().min(into.len());
        receiver.recv_exact(&mut into[..got])?;
        receiver.give_back()?;
        Ok(got)
    }

    /// Fills the whole buffer or, not blocking, receives nothing.
    ///
    /// # Errors
    /// As [`read`](Self::read); `EMSGSIZE` if the ring never holds so much. What came before the end stays readable.
    #[inline]
    pub fn recv(self: &Arc<Self>, into: &mut [u8], blocking: bool) -> Outcome<usize> {
        let mut receiver = self.receiver.lock();
        let eager = self.is_eager(blocking);
        while receiver.known() < into.len() {
            let there =
                if eager { ask_for(&mut *receiver, into.len())? } else { receiver.available(into.len())? };
            if there < into.len() {
                if never_has(&mut receiver, into.len())? {
                    return Err(Failure::closed());
                }
                if receiver.known() < into.len() {
                    if !blocking {
                        return Ok(0);
                    }
                    receiver.peek(into.len())?;
                }
            }
        }
        receiver.recv_exact(into)?;
        if eager {
            receiver.give_back()?
        } else {
            self.after_receiving(&mut receiver)?
        }
        Ok(into.len())
    }

    /// Sends what there is room for or, if blocking, all.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    #[inline]
    pub fn write(&self, bytes: &[u8], blocking: bool) -> Outcome<usize> {
        let mut sender = self.sender.lock();
        if blocking && !self.noted.load(Relaxed) && sender.send_at_once(bytes)? {
            return Ok(bytes.len());
        }
        self.before_sending(&sender)?;
        if !blocking {
            let room = ask_for(&mut *sender, bytes.len())?.min(bytes.len());
            return if room == 0 { Ok(0) } else { Ok(sender.send(&bytes[..room])?) };
        }
        let mut done = 0;
        while let Err(partial) = sender.send_all(&bytes[done..]) {
            done += partial.done;
            let failure = Failure::from(partial);
            // Whoever is told of a signal begins anew: only before anything was done.
            if failure.errno() != libc::EINTR || done == 0 {
                return Err(failure);
            }
        }
        Ok(bytes.len())
    }

    /// Sends all, in one piece: the peer finds all of it or nothing. Not blocking: 0 if there is no room for it.
    ///
    /// # Errors
    /// As [`read`](Self::read); `EMSGSIZE` if the ring never holds so much.
    #[inline]
    pub fn send(&self, bytes: &[u8], blocking: bool) -> Outcome<usize> {
        let mut sender = self.sender.lock();
        self.before_sending(&sender)?;
        if sender.known() < bytes.len() {
            let room = if self.is_eager(blocking) {
                ask_for(&mut *sender, bytes.len())?
            } else {
                sender.available(bytes.len())?
            };
            if room < bytes.len() && !blocking {
                return Ok(0);
            }
        }
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut chunk = sender.reserve(bytes.len())?;
        let [mut first, mut second] = chunk.segments();
        let (head, tail) = bytes.split_at(first.len().min(bytes.len()));
        first.copy_from(0, head);
        second.copy_from(0, tail);
        chunk.commit(bytes.len())?;
        Ok(bytes.len())
    }

    /// How many bytes are ready. The peer is asked for a signal when there are more.
    ///
    /// # Errors
    /// `EPROTO`, or what a call to Xen said.
    pub fn data_ready(&self, blocking: bool) -> Outcome<usize> {
        let mut receiver = self.receiver.lock();
        if self.is_eager(blocking) {
            return Ok(receiver.ask()?);
        }
        self.owe(BYTES);
        Ok(receiver.ready()?)
    }

    /// How much room there is. The peer is asked for a signal when there is more.
    ///
    /// # Errors
    /// `EPROTO`, or what a call to Xen said.
    pub fn buffer_space(&self, blocking: bool) -> Outcome<usize> {
        self.return_room();
        let mut sender = self.sender.lock();
        if self.is_eager(blocking) {
            return Ok(sender.ask()?);
        }
        self.owe(ROOM);
        Ok(sender.room()?)
    }

    /// Waits for an event and takes it. May return without one.
    ///
    /// # Errors
    /// As [`read`](Self::read); `ETIMEDOUT`.
    pub fn wait(&self, timeout: Option<Duration>) -> Outcome<()> {
        if self.settle()? {
            return Ok(());
        }
        Ok(self.signals.wait(timeout)?)
    }

    /// The descriptor that is readable while there is an event. From now on the caller may sleep there.
    ///
    /// # Errors
    /// What a call to Xen said.
    pub fn descriptor(&self) -> Outcome<i32> {
        if !self.polled.swap(true, Relaxed) && self.settle()? {
            self.ring_at_home()?;
        }
        Ok(self.events.as_fd().as_raw_fd())
    }

    /// Whether the peer is there.
    ///
    /// # Errors
    /// `EPROTO`, `ECONNRESET`.
    pub fn state(&self) -> Outcome<State> {
        Ok(self.signals.state()?)
    }

    /// Looks whether the peer's domain still exists.
    ///
    /// # Errors
    /// `ECONNRESET`.
    pub fn probe(&self) -> Outcome<()> {
        Ok(self.signals.probe()?)
    }

    /// Reads from a descriptor straight into the ring, at most `max` bytes, once; 0 at the end of the file, or if there is no
    /// room and it does not block (then `EAGAIN`).
    ///
    /// # Errors
    /// As [`write`](Self::write), and what the descriptor says.
    pub fn read_from_fd(&self, fd: BorrowedFd<'_>, max: usize, blocking: bool) -> Outcome<usize> {
        let mut sender = self.sender.lock();
        self.before_sending(&sender)?;
        if max > 0 && !blocking && ask_for(&mut *sender, max)? == 0 {
            return Err(vchan::Error::WouldBlock.into());
        }
        Ok(sender.read_from_fd(fd, max)?)
    }

    /// Writes what has come straight to a descriptor, at most `max` bytes, once; 0 at the end.
    ///
    /// # Errors
    /// As [`read`](Self::read) (`EAGAIN` if nothing is there and it does not block), and what the descriptor says.
    pub fn write_to_fd(&self, fd: BorrowedFd<'_>, max: usize, blocking: bool) -> Outcome<usize> {
        let mut receiver = self.receiver.lock();
        if max == 0 {
            return Ok(0);
        }
        while ask_for(&mut *receiver, max)? == 0 {
            if never_has(&mut receiver, 1)? {
                return Ok(0);
            }
            if receiver.known() == 0 {
                if !blocking {
                    return Err(vchan::Error::WouldBlock.into());
                }
                receiver.peek(1)?;
            }
        }
        let wrote = receiver.write_to_fd(fd, max)?;
        receiver.give_back()?;
        Ok(wrote)
    }

    /// Takes a server's keys out of xenstore, so that no other client comes.
    ///
    /// # Errors
    /// What xenstored said.
    pub fn unpublish(&self) -> Outcome<()> {
        let Some(path) = &self.path else { return Ok(()) };
        match self.store.remove(Transaction::NONE, path) {
            Err(error) if error.kind() != xen::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Removes the directory above a server's, if nothing else is in it.
    ///
    /// # Errors
    /// What xenstored said; `ENOSPC` if it grants no transaction more (then the directory stays).
    pub fn prune(&self) -> Outcome<()> {
        let Some((parent, _)) = self.path.as_deref().and_then(|path| path.rsplit_once('/')) else {
            return Ok(());
        };
        let store = &*self.store;
        // In a transaction: another server may come into the directory just now.
        xen::transaction(store, |tx| match store.directory(tx, parent) {
            Ok(names) if names.is_empty() => store.remove(tx, parent),
            Err(error) if error.kind() != xen::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })?;
        Ok(())
    }

    /// Closes the channel. The peer can still receive what was sent.
    pub fn close(self: Arc<Self>) {
        returner::forget(&self);
    }

    /// Whether the caller may sleep without telling us.
    #[inline]
    fn is_eager(&self, blocking: bool) -> bool {
        !blocking || self.polled.load(Relaxed) || returner::is_absent()
    }

    #[inline]
    fn owe(&self, what: usize) {
        // A look first: the line of a flag that is set already is not to be written.
        if !self.owed[what].load(Relaxed) {
            self.owed[what].store(true, Relaxed);
        }
    }

    /// Nothing is sent into a closed channel, where the next client would find it.
    #[inline]
    fn before_sending(&self, sender: &Sender) -> Outcome<()> {
        if self.noted.load(Relaxed) {
            self.return_room();
        }
        if sender.is_open() { Ok(()) } else { check_open(sender) }
    }

    /// Gives back what is held back, before the peer's next move is waited for.
    #[cold]
    fn return_room(&self) {
        if let Some(mut receiver) = self.receiver.try_lock() {
            // A failure to signal is one that every later call meets, too.
            let _ = receiver.give_back();
        }
    }

    /// Has the returner look after room that is held back.
    #[inline]
    fn after_receiving(self: &Arc<Self>, receiver: &mut Receiver) -> Outcome<()> {
        if receiver.held_back() > 0 && !self.noted.load(Relaxed) {
            self.note(receiver)?;
        }
        Ok(())
    }

    #[cold]
    fn note(self: &Arc<Self>, receiver: &mut Receiver) -> Outcome<()> {
        if returner::note(self) {
            self.noted.store(true, Relaxed);
        } else {
            receiver.give_back()?;
        }
        Ok(())
    }

    /// Returns the room that was left since the operation of that number; none if there is nothing more to look after,
    /// otherwise the number of the last operation.
    fn settle_if_left(&self, operations: Option<u64>) -> Option<u64> {
        let Some(mut receiver) = self.receiver.try_lock() else { return operations.or(Some(0)) };
        let now = receiver.metrics().operations;
        if receiver.held_back() > 0 {
            if operations != Some(now) {
                return Some(now);
            }
            let _ = receiver.give_back();
        }
        self.noted.store(false, Relaxed);
        None
    }

    /// What is due before the caller sleeps: gives room back, and asks for the signals that were promised. Whether there is
    /// something of which one was promised and did not come.
    fn settle(&self) -> Outcome<bool> {
        let mut news = false;
        // Whoever is at a half just now does this for it.
        if let Some(mut receiver) = self.receiver.try_lock() {
            receiver.give_back()?;
            if self.owed[BYTES].swap(false, Relaxed) {
                news |= receiver.known() < receiver.ask()?;
            }
        }
        if let Some(mut sender) = self.sender.try_lock()
            && self.owed[ROOM].swap(false, Relaxed)
        {
            news |= sender.known() < sender.ask()?;
        }
        Ok(news)
    }

    /// Makes the own descriptor readable: a port that is bound to one of the own domain is pending at once. Both are closed
    /// with the handle.
    fn ring_at_home(&self) -> Outcome<()> {
        let id = self.store.read(Transaction::NONE, "domid")?;
        let id = str::from_utf8(&id).ok().and_then(|id| id.parse().ok()).map(DomId);
        let own =
            id.ok_or_else(|| Failure::new(libc::EPROTO, "the key domid in xenstore is no domain's id"))?;
        let arrival = self.events.bind_unbound(own)?;
        self.events.bind_interdomain(own, arrival)?;
        Ok(())
    }
}

/// Whether a domain exists.
///
/// # Errors
/// What a call to Xen said.
pub fn is_alive(domain: DomId) -> Outcome<bool> {
    // Nobody offers port 0: what differs is why it cannot be bound.
    let events = Events::open()?;
    if let Err(error) = events.bind_interdomain(domain, xen::Port(0))
        && error.kind() == xen::ErrorKind::NotFound
    {
        return Ok(false);
    }
    // A destroyed domain is a shell while somebody maps its pages. xenstored has forgotten it, but tells dom0 alone.
    let store = Host.xenstore()?;
    Ok(!store.is_introduced(DomId(0))? || store.is_introduced(domain)?)
}

/// A half that can say how much there is.
trait End {
    fn available(&mut self, want: usize) -> vchan::Result<usize>;
    fn ask(&mut self) -> vchan::Result<usize>;
}

impl End for Receiver {
    fn available(&mut self, want: usize) -> vchan::Result<usize> {
        Receiver::available(self, want)
    }

    fn ask(&mut self) -> vchan::Result<usize> {
        Receiver::ask(self)
    }
}

impl End for Sender {
    fn available(&mut self, want: usize) -> vchan::Result<usize> {
        Sender::available(self, want)
    }

    fn ask(&mut self) -> vchan::Result<usize> {
        Sender::ask(self)
    }
}

#[cold]
fn check_open(sender: &Sender) -> Outcome<()> {
    match sender.state()? {
        State::Closed => Err(Failure::closed()),
        State::Open | State::Waiting => Ok(()),
    }
}

/// How much there is; if that is less than `want`, the peer signals when there is more.
fn ask_for(end: &mut impl End, want: usize) -> vchan::Result<usize> {
    let there = end.available(want)?;
    if there < want { end.ask() } else { Ok(there) }
}

/// Whether the peer has gone and left less than `want`. What it sent right before it went counts.
fn never_has(receiver: &mut Receiver, want: usize) -> Outcome<bool> {
    Ok(receiver.state()? == State::Closed && receiver.ready()? < want)
}
