//! The end of a call that speaks in messages: a client's socket, a call's own vchan, or its place on a pair channel.

use super::frames::{Bytes, Piece, Reading, Writing};
use super::pair::{PairCall, Straight, Taken};
use crate::conversation::ConversationError;
use crate::wire::{Header, Kind, pair};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::future::{pending, poll_fn};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::sleep;
use vchan::State;

/// How often it is looked after an end that tells of its going only to those who read.
const LOOK: Duration = Duration::from_millis(250);

/// The half that is heard.
#[derive(Debug)]
pub(super) enum Hearing {
    Messages(Reading),
    Pair { call: Rc<PairCall>, buffer: Vec<u8> },
}

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard<'a> {
    Data(Kind, &'a [u8]),
    /// What belongs to the message before it.
    Raw(&'a [u8]),
    End(Kind),
    /// How it ended, and whether stdout and stderr end with it.
    Exit(i32, [bool; 2]),
}

impl Hearing {
    pub(super) fn pair(call: &Rc<PairCall>) -> Self {
        Self::Pair { call: call.clone(), buffer: Vec::new() }
    }

    /// The next piece; what was given out before has gone where it belongs.
    pub(super) async fn next(&mut self) -> Result<Heard<'_>, ConversationError> {
        match self {
            Self::Messages(reading) => Ok(match reading.next().await? {
                Piece::Data(kind, data) => Heard::Data(kind, data),
                Piece::End(kind) => Heard::End(kind),
                Piece::Exit(code) => Heard::Exit(code, [false; 2]),
            }),
            Self::Pair { call, buffer } => {
                Ok(match poll_fn(|context| call.poll_next(context, buffer)).await? {
                    Taken::Data(kind) => Heard::Data(kind_of(kind), buffer),
                    Taken::Raw => Heard::Raw(buffer),
                    Taken::End(kind) => Heard::End(kind_of(kind)),
                    Taken::Exit(code, ends) => Heard::Exit(code, ends),
                })
            }
        }
    }

    /// Who can tell that this end is gone while nobody listens to it.
    pub(super) fn watch(&self) -> Watch {
        match self {
            Self::Messages(reading) => Watch::Bytes(reading.bytes().clone()),
            Self::Pair { call, .. } => Watch::Pair(call.clone()),
        }
    }

    /// How many bytes went there by themselves.
    pub(super) fn went_straight(&self) -> u64 {
        match self {
            Self::Messages(_) => 0,
            Self::Pair { call, .. } => call.went_straight(),
        }
    }

    /// Lets bytes that come go there from where they are, where that can be done.
    pub(super) fn set_straight(&self, straight: Option<Straight>) {
        if let Self::Pair { call, .. } = self {
            call.set_straight(straight);
        }
    }
}

/// The half that is spoken to.
#[derive(Debug)]
pub(super) enum Saying {
    Messages {
        writing: Writing,
        /// What goes before the exit code, and with it.
        last: Vec<u8>,
        /// Whether stdout and stderr have ended: they do so once.
        ended: [bool; 2],
    },
    Pair(Rc<PairCall>),
}

impl Saying {
    pub(super) fn messages(writing: Writing) -> Self {
        Self::Messages { writing, last: Vec::new(), ended: [false; 2] }
    }

    /// stdout and stderr end with the call.
    pub(super) fn ends_with_exit(&mut self, ends: [bool; 2]) {
        if let Self::Messages { last, ended, .. } = self {
            for ((kind, ended), ends) in [Kind::Stdout, Kind::Stderr].into_iter().zip(ended).zip(ends) {
                if ends && !std::mem::replace(ended, true) {
                    last.extend(Header { kind, length: 0 }.encode());
                }
            }
        }
    }

    /// Data of a stream; nothing: its end.
    pub(super) async fn data(&mut self, kind: Kind, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Messages { writing, ended, .. } => {
                let stream = match kind {
                    Kind::Stdout => Some(&mut ended[0]),
                    Kind::Stderr => Some(&mut ended[1]),
                    _ => None,
                };
                if let Some(ended) = stream.filter(|_| data.is_empty())
                    && std::mem::replace(ended, true)
                {
                    return Ok(());
                }
                writing.data(kind, data).await
            }
            Self::Pair(call) if data.is_empty() => call.end_of(frame_of(kind)).await,
            Self::Pair(call) => call.data(frame_of(kind), data).await,
        }
    }

    pub(super) async fn exit(&mut self, code: i32) -> io::Result<()> {
        match self {
            Self::Messages { writing, last, .. } => {
                last.extend(Header { kind: Kind::ExitCode, length: 4 }.encode());
                last.extend(code.to_le_bytes());
                writing.raw(last).await
            }
            Self::Pair(call) => call.send_exit(code).await,
        }
    }

    /// What belongs to the message before it.
    pub(super) async fn raw(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Messages { writing, .. } => writing.raw(data).await,
            Self::Pair(_) => Ok(()),
        }
    }

    /// The socket behind it, if it is one.
    pub(super) fn socket(&self) -> Option<&Rc<UnixStream>> {
        match self {
            Self::Messages { writing, .. } => match writing.bytes() {
                Bytes::Socket(socket) => Some(socket),
                Bytes::Vchan(_) => None,
            },
            Self::Pair(_) => None,
        }
    }
}

fn kind_of(kind: pair::Kind) -> Kind {
    match kind {
        pair::Kind::Stdout => Kind::Stdout,
        pair::Kind::Stderr => Kind::Stderr,
        _ => Kind::Stdin,
    }
}

fn frame_of(kind: Kind) -> pair::Kind {
    match kind {
        Kind::Stdout => pair::Kind::Stdout,
        Kind::Stderr => pair::Kind::Stderr,
        _ => pair::Kind::Stdin,
    }
}

/// Who sees that an end is gone.
#[derive(Debug)]
pub(super) enum Watch {
    Bytes(Bytes),
    Pair(Rc<PairCall>),
}

impl Watch {
    /// Waits until it is gone.
    pub(super) async fn gone(&self) {
        match self {
            Self::Bytes(Bytes::Socket(socket)) => hung_up(socket).await,
            Self::Bytes(Bytes::Vchan(channel)) => loop {
                let state = channel.borrow().state();
                if !matches!(state, Ok(State::Open | State::Waiting)) {
                    return;
                }
                sleep(LOOK).await;
            },
            Self::Pair(call) => call.gone().await,
        }
    }
}

/// Waits until both directions of a socket are shut down: its other end is closed. That one of them is says nothing.
async fn hung_up(socket: &UnixStream) {
    // An interest that is ready when the other end has shut down something, and not whenever there are bytes.
    if socket.ready(Interest::PRIORITY).await.is_err() {
        return;
    }
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::empty())];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return,
            // Without an answer nobody is to wait for one.
            Err(_) => return pending().await,
        }
        sleep(LOOK / 4).await;
    }
}
