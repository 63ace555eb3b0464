//! The pair channel: all calls from one qube to another, over one vchan.
//!
//! One task drives a channel: it reads the frames that come, and sends what has no task of its own (credit, resets). Calls
//! write their frames themselves, each whole, straight into the ring; the driver is told, and makes all that came together
//! in one turn of the loop known to the peer at once.
//!
//! Nothing that the peer sends is kept beyond the credit that it was given. Where a call's bytes can go on at once (its
//! socket has room, and nothing is before them) they go there from the ring.

mod call;
mod frames;

pub(super) use call::{PairCall, Straight, Taken};

use super::pairs::ChannelSettings;
use crate::readable::readable;
use crate::wire::control::{CallId, Role};
use crate::wire::pair::{HEADER, Header, Kind, Reset};
use call::Over;
use frames::Current;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::time::{Sleep, sleep};
use vchan::{Channel, State, WriteChunk};

/// The credit that a call gets at first.
pub(super) const FIRST_WINDOW: u32 = 64 << 10;
/// What all calls of an agent have been given, at most.
const ALL_WINDOWS: u64 = 128 << 20;
/// How many calls may wait for dom0's word, and for how long.
const PARKED: usize = 1024;
const PARKED_TIME: Duration = Duration::from_secs(10);
/// How long a peer may take to come to a channel.
const COMING: Duration = Duration::from_secs(10);
/// Frames that the driver has to send and cannot: a peer that lets them become more does not read.
const MOST_OWED: usize = 8 * PARKED;

/// The credit that was given out, of all channels of an agent.
#[derive(Debug, Default)]
pub(super) struct Windows(Cell<u64>);

impl Windows {
    /// Gives out more, or nothing.
    pub(super) fn take(&self, bytes: u32) -> bool {
        let all = self.0.get() + u64::from(bytes);
        let fits = all <= ALL_WINDOWS;
        if fits {
            self.0.set(all);
        }
        fits
    }

    pub(super) fn give_back(&self, bytes: u32) {
        self.0.set(self.0.get().saturating_sub(bytes.into()));
    }
}

/// Why a channel ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error(transparent)]
    Channel(#[from] vchan::Error),
    #[error(transparent)]
    Frame(#[from] crate::wire::pair::PairError),
    #[error("it sends {0:?}, which is not its part")]
    Part(Kind),
    #[error("call {0:#x}: opened twice")]
    Twice(CallId),
    #[error("call {0:#x}: more bytes than it was given credit for")]
    Overrun(CallId),
    #[error("call {0:#x}: more credit than there can be")]
    Credit(CallId),
    #[error("it does not read")]
    Deaf,
    #[error("it did not come")]
    Absent,
    #[error("it has been idle")]
    Idle,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A call that the peer opened and dom0 has not announced yet.
#[derive(Debug)]
struct Parked {
    credit: u32,
    since: Instant,
    /// What came with it, which is no more than [`EARLY`](crate::wire::pair::EARLY); and how much of that is still to come.
    early: Vec<u8>,
    to_come: usize,
    /// The end of it came, too.
    ended: bool,
}

/// One channel.
#[derive(Debug)]
pub(super) struct Pair {
    /// Which end of its calls is here.
    role: Role,
    settings: ChannelSettings,
    /// None when it has ended.
    channel: RefCell<Option<Channel>>,
    event: AsyncFd<OwnedFd>,
    /// The most data in a frame, so that several fit the ring.
    most: usize,
    windows: Rc<Windows>,
    calls: RefCell<HashMap<CallId, Rc<PairCall>>>,
    parked: RefCell<HashMap<CallId, Parked>>,
    current: Cell<Option<Current>>,
    /// Frames that the driver is to send.
    owed: RefCell<VecDeque<[u8; HEADER + 4]>>,
    /// Calls whose peer is to get credit.
    due: RefCell<VecDeque<Rc<PairCall>>>,
    /// Who waits for room in the ring, and for how much.
    waiting: RefCell<Vec<(usize, Waker)>>,
    driver: RefCell<Option<Waker>>,
    /// Since when bytes are left in the ring, and who wakes the driver when that was long enough.
    held: Cell<Option<Instant>>,
    alarm: RefCell<Pin<Box<Sleep>>>,
    since: Instant,
    busy: Cell<Instant>,
}

impl Pair {
    pub(super) fn new(
        mut channel: Channel,
        role: Role,
        settings: ChannelSettings,
        windows: &Rc<Windows>,
    ) -> io::Result<Rc<Self>> {
        channel.set_nonblocking(true);
        channel.set_corked(true);
        let event = channel.event_fd().map(readable).ok_or(io::ErrorKind::Unsupported)??;
        let orders = channel.orders();
        let smaller = orders.size(vchan::Ring::Left).min(orders.size(vchan::Ring::Right)) as usize;
        Ok(Rc::new(Self {
            role,
            settings,
            channel: RefCell::new(Some(channel)),
            event,
            most: crate::wire::pair::MAX_DATA.min(smaller / 4),
            windows: windows.clone(),
            calls: RefCell::default(),
            parked: RefCell::default(),
            current: Cell::new(None),
            owed: RefCell::default(),
            due: RefCell::default(),
            waiting: RefCell::default(),
            driver: RefCell::default(),
            held: Cell::new(None),
            alarm: RefCell::new(Box::pin(sleep(settings.hold()))),
            since: Instant::now(),
            busy: Cell::new(Instant::now()),
        }))
    }

    /// Whether it can carry calls still.
    pub(super) fn lives(&self) -> bool {
        let channel = self.channel.borrow();
        channel.as_ref().is_some_and(|channel| matches!(channel.state(), Ok(State::Open | State::Waiting)))
    }

    /// Whether the peer has come, and not gone.
    pub(super) fn is_connected(&self) -> bool {
        let channel = self.channel.borrow();
        channel.as_ref().is_some_and(|channel| matches!(channel.state(), Ok(State::Open)))
    }

    /// Carries calls until it ends, and says why.
    pub(super) async fn drive(self: &Rc<Self>) -> Broken {
        let broken = poll_fn(|context| self.poll(context)).await;
        self.end();
        broken
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Broken> {
        *self.driver.borrow_mut() = Some(context.waker().clone());
        match self.turn(context) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(vchan::Error::Closed.into()),
            Err(broken) => Poll::Ready(broken),
        }
    }

    fn turn(&self, context: &mut Context<'_>) -> Result<Poll<()>, Broken> {
        loop {
            let event = match self.event.poll_read_ready(context) {
                Poll::Ready(ready) => {
                    ready?.clear_ready();
                    true
                }
                Poll::Pending => false,
            };
            let mut channel = self.channel.borrow_mut();
            let Some(channel) = channel.as_mut() else { return Ok(Poll::Ready(())) };
            let read = self.read(channel, context)?;
            let left = channel.ready()?;
            self.send_owed(channel)?;
            self.wake_waiting(channel)?;
            channel.flush()?;
            // There is one event for bytes and for room: who finds no room has taken it for both.
            let event = event || channel.ready()? != left;
            match read {
                frames::Read::Ended => return Ok(Poll::Ready(())),
                frames::Read::Enough => {
                    // Others are to have their turn.
                    context.waker().wake_by_ref();
                    return Ok(Poll::Pending);
                }
                frames::Read::All | frames::Read::Held if event => {}
                frames::Read::All | frames::Read::Held => return Ok(Poll::Pending),
            }
        }
    }

    /// Has those look again for whom there is room now; asks for an event otherwise. Their own looks are no use to them any
    /// more: the driver has taken the event that followed, which may have been of room.
    fn wake_waiting(&self, channel: &mut Channel) -> Result<(), Broken> {
        let least = self.waiting.borrow().iter().map(|(bytes, _)| *bytes).min();
        let Some(least) = least else { return Ok(()) };
        match channel.reserve(least).map(drop) {
            Ok(()) => self.waiting.borrow_mut().drain(..).for_each(|(_, waker)| waker.wake()),
            Err(vchan::Error::WouldBlock) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Sends what has no task of its own, as far as there is room.
    fn send_owed(&self, channel: &mut Channel) -> Result<(), Broken> {
        let mut owed = self.owed.borrow_mut();
        if owed.len() > MOST_OWED {
            return Err(Broken::Deaf);
        }
        let mut due = self.due.borrow_mut();
        loop {
            let (frame, of_call) = match (owed.front(), due.front()) {
                (Some(frame), _) => (*frame, None),
                (None, Some(call)) => (call.credit_frame(), Some(call.clone())),
                (None, None) => return Ok(()),
            };
            match channel.reserve(frame.len()) {
                Ok(mut chunk) => {
                    chunk.fill(0, &frame);
                    chunk.commit(frame.len())?;
                }
                Err(vchan::Error::WouldBlock) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            match of_call {
                Some(call) => {
                    call.credit_sent();
                    due.pop_front();
                }
                None => _ = owed.pop_front(),
            }
        }
    }

    /// Something is to be sent, or to be made known: the driver does it when the tasks that are awake had their turn.
    fn kick(&self) {
        if let Some(driver) = self.driver.borrow_mut().take() {
            driver.wake();
        }
    }

    /// Waits for room for a frame, and has it written.
    fn poll_write<T>(
        &self,
        context: &Context<'_>,
        bytes: usize,
        write: impl FnOnce(WriteChunk<'_>) -> vchan::Result<T>,
    ) -> Poll<io::Result<T>> {
        // Whatever comes of it: the event of bytes that came may have been taken, and the driver is to look for them.
        self.kick();
        let mut channel = self.channel.borrow_mut();
        let Some(channel) = channel.as_mut() else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        };
        match channel.reserve(bytes) {
            Ok(chunk) => Poll::Ready(write(chunk).map_err(source_of)),
            Err(vchan::Error::WouldBlock) => {
                self.waiting.borrow_mut().push((bytes, context.waker().clone()));
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    /// Waits for room for a frame.
    fn poll_room(&self, context: &Context<'_>, bytes: usize) -> Poll<io::Result<()>> {
        // Room that is reserved and not committed is given back.
        self.poll_write(context, bytes, |_| Ok(()))
    }

    /// From time to time: whether the peer's domain is there, and what waits too long.
    pub(super) fn look(&self) -> Result<(), Broken> {
        let channel = self.channel.borrow();
        let Some(channel) = channel.as_ref() else { return Ok(()) };
        if matches!(channel.state()?, State::Waiting) {
            return if self.since.elapsed() > COMING { Err(Broken::Absent) } else { Ok(()) };
        }
        let mut parked = self.parked.borrow_mut();
        if self.calls.borrow().is_empty() && parked.is_empty() {
            let idle = self.busy.get().elapsed() > self.settings.keep() && matches!(self.role, Role::Caller);
            return if idle { Err(Broken::Idle) } else { Ok(()) };
        }
        self.busy.set(Instant::now());
        parked.retain(|call, parked| {
            let keep = parked.since.elapsed() < PARKED_TIME;
            if !keep {
                self.owe(*call, Reset::Unknown);
            }
            keep
        });
        Ok(channel.probe()?)
    }

    /// A reset is to be sent.
    fn owe(&self, call: CallId, reset: Reset) {
        let frame = Header::with_number(call, Kind::Reset, reset as u32);
        self.owed.borrow_mut().push_back(frame);
        self.kick();
    }

    /// Breaks a call off that has no end here.
    pub(super) fn disown(&self, call: CallId) {
        self.parked.borrow_mut().remove(&call);
        self.owe(call, Reset::Gone);
    }

    /// It carries nothing any more: its calls are over.
    pub(super) fn end(&self) {
        drop(self.channel.borrow_mut().take());
        let calls = std::mem::take(&mut *self.calls.borrow_mut());
        calls.values().for_each(|call| call.over(Over::Channel));
        self.parked.borrow_mut().clear();
        self.owed.borrow_mut().clear();
        self.due.borrow_mut().clear();
        self.waiting.borrow_mut().drain(..).for_each(|(_, waker)| waker.wake());
        self.kick();
    }

    /// Whether what comes is better left in the ring: it is all for one call, whose socket has no room just now.
    fn holds(&self, context: &mut Context<'_>) -> bool {
        let full = {
            let calls = self.calls.borrow();
            let mut calls = calls.values();
            matches!((calls.next(), calls.next()), (Some(call), None) if call.is_full(context))
        };
        if !full {
            self.held.set(None);
            return false;
        }
        let now = Instant::now();
        let mut alarm = self.alarm.borrow_mut();
        let since = match self.held.get() {
            Some(since) => since,
            None => {
                self.held.set(Some(now));
                alarm.as_mut().reset((now + self.settings.hold()).into());
                now
            }
        };
        now < since + self.settings.hold() && alarm.as_mut().poll(context).is_pending()
    }

    /// A call's socket may have room again, or it is not alone any more.
    fn release(&self) {
        if self.held.get().is_some() {
            self.kick();
        }
    }

    /// Ends a call's place: what comes for it now is passed over.
    fn forget(&self, call: CallId) {
        self.calls.borrow_mut().remove(&call);
        self.busy.set(Instant::now());
    }
}

/// The error of the descriptor itself, where one was read or written.
fn source_of(error: vchan::Error) -> io::Error {
    match error {
        vchan::Error::System { source, .. } => source,
        error => error.into(),
    }
}
