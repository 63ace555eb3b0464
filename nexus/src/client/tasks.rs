//! Calls for tokio's tasks.

use super::CallError;
use crate::conversation::ConversationError;
use crate::wire::{Channel, Decoder, EXIT_PROBLEM, Frame, HEADER, Header, Kind, Message, Version, WireError};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// How much of stderr is kept: its end.
const ERRORS: usize = 64 << 10;
/// How much is read at once.
const READ: usize = 16 << 10;

/// A call: what is written goes to the service's stdin, what is read is its stdout.
///
/// Its end is told apart from the end of its stdout: [`exit_code`](Self::exit_code). That it was refused is known when
/// something is read: an error of the kind [`PermissionDenied`](io::ErrorKind::PermissionDenied), whose source is
/// [`CallError::Refused`] or [`CallError::Failed`]. [`shutdown`](tokio::io::AsyncWriteExt::shutdown) tells the service that there is no more to
/// come. All operations are cancel-safe; what was written is on its way when it is flushed, or when something is read.
///
/// ```no_run
/// use nexus::client::{AsyncCall, CALL_SOCKET};
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// # async fn query() -> Result<(), Box<dyn std::error::Error>> {
/// let mut call = AsyncCall::start(CALL_SOCKET.as_ref(), "work:db", "nexus.Query+orders").await?;
/// call.write_all(b"select").await?;
/// call.shutdown().await?;
/// let mut answer = Vec::new();
/// call.read_to_end(&mut answer).await?;
/// assert_eq!(call.exit_code().await?, 0, "{}", String::from_utf8_lossy(&call.stderr()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AsyncCall {
    socket: UnixStream,
    /// The agent's hello, and nothing after it.
    hello: Option<Decoder>,
    buffer: Box<[u8]>,
    filled: std::ops::Range<usize>,
    /// What is to come of the current message.
    current: Option<(Kind, usize)>,
    /// Messages that are on their way.
    unsent: VecDeque<u8>,
    errors: VecDeque<u8>,
    /// stdout has ended.
    ended: bool,
    exit: Option<i32>,
    /// Who waits until they are: a socket wakes the last task alone that asked it to.
    writer: Option<Waker>,
    /// The end of stdin was sent.
    said_all: bool,
    /// More was written than the socket had room for, and it got more.
    wide: bool,
}

impl AsyncCall {
    /// Asks the agent behind a socket for a service: `target` and `service` as in a policy.
    ///
    /// # Errors
    /// The agent is not there, or the request does not fit a message.
    pub async fn start(agent: &Path, target: &str, service: &str) -> Result<Self, CallError> {
        let request = super::request(target, service)?;
        let connected = UnixStream::connect(agent).await;
        let socket = connected.map_err(|source| CallError::NoAgent { path: agent.to_owned(), source })?;
        let mut call = Self {
            socket,
            hello: Some(Decoder::new(Channel::ToClient)),
            buffer: vec![0; READ].into(),
            filled: 0..0,
            current: None,
            unsent: request.into(),
            errors: VecDeque::new(),
            ended: false,
            exit: None,
            writer: None,
            said_all: false,
            wide: false,
        };
        // An agent that does not want to hear more has said why.
        let _ = std::future::poll_fn(|context| call.poll_send(context)).await;
        Ok(call)
    }

    /// Reads what the service still says, and waits for its exit code.
    ///
    /// # Errors
    /// It was refused, or the agent is gone.
    pub async fn exit_code(&mut self) -> Result<i32, CallError> {
        let mut unread = vec![0; READ];
        while self.exit.is_none() {
            self.ended = false;
            self.read(&mut unread).await.map_err(CallError::from_io)?;
        }
        self.ended = true;
        Ok(self.exit.unwrap_or(EXIT_PROBLEM.into()))
    }

    /// What it wrote to stderr, as far as that was read: the last 64 KiB.
    #[must_use]
    pub fn stderr(&self) -> Vec<u8> {
        self.errors.iter().copied().collect()
    }

    /// Sends what is on its way.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let (bytes, _) = self.unsent.as_slices();
            let sent = ready!(Pin::new(&mut self.socket).poll_write(context, bytes))?;
            self.unsent.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }

    /// The same for who waits for it.
    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.poll_send(context);
        self.writer = sent.is_pending().then(|| context.waker().clone());
        sent
    }

    /// Reads more from the agent.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffer.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        let mut room = ReadBuf::new(&mut self.buffer[self.filled.end..]);
        ready!(Pin::new(&mut self.socket).poll_read(context, &mut room))?;
        let read = room.filled().len();
        if read == 0 {
            return Poll::Ready(Err(CallError::Conversation(ConversationError::HungUp).into_io()));
        }
        self.filled.end += read;
        Poll::Ready(Ok(()))
    }

    /// Takes what the buffer has before the next data of stdout. False: more is to be read first.
    fn advance(&mut self) -> Result<bool, CallError> {
        let broken = |error| CallError::Conversation(ConversationError::Wire(error));
        if let Some(decoder) = &mut self.hello {
            let mut input = &self.buffer[self.filled.clone()];
            let before = input.len();
            let done = decoder.decode(&mut input).map_err(broken)?.is_some();
            self.filled.start += before - input.len();
            if !done {
                return Ok(false);
            }
            self.hello = None;
        }
        loop {
            match self.current {
                Some((Kind::Stderr, left)) => {
                    let there = left.min(self.filled.len());
                    self.errors.extend(&self.buffer[self.filled.start..self.filled.start + there]);
                    let surplus = self.errors.len().saturating_sub(ERRORS);
                    self.errors.drain(..surplus);
                    self.take(there);
                    if there < left {
                        return Ok(false);
                    }
                }
                Some(_) => return Ok(true),
                None => {
                    let Some(header) = self.buffer[self.filled.clone()].first_chunk::<HEADER>() else {
                        return Ok(false);
                    };
                    let Header { kind, length: left } =
                        Header::parse(*header, Channel::ToClient, Some(Version::V3)).map_err(broken)?;
                    match kind {
                        Kind::Failed => {
                            let message = &self.buffer[self.filled.clone()][HEADER..];
                            let Some(payload) = message.get(..left) else { return Ok(false) };
                            return match Message::parse(&Frame { kind, payload }).map_err(broken)? {
                                Message::Failed(_, failure) => Err(CallError::Failed(failure)),
                                other => Err(broken(WireError::Order(other.kind()))),
                            };
                        }
                        Kind::ExitCode => {
                            let message = &self.buffer[self.filled.clone()];
                            let Some(code) = message[HEADER..].first_chunk() else {
                                return Ok(false);
                            };
                            self.exit = Some(i32::from_le_bytes(*code));
                            return Ok(true);
                        }
                        Kind::Stdout | Kind::Stderr => {
                            self.filled.start += HEADER;
                            match (kind, left) {
                                (Kind::Stdout, 0) => {
                                    self.ended = true;
                                    return Ok(true);
                                }
                                (_, 0) => {}
                                current => self.current = Some(current),
                            }
                        }
                        _ => return Err(CallError::Refused),
                    }
                }
            }
        }
    }

    fn take(&mut self, bytes: usize) {
        self.filled.start += bytes;
        self.took(bytes);
    }

    fn took(&mut self, bytes: usize) {
        self.current = self.current.map(|(kind, left)| (kind, left - bytes)).filter(|(_, left)| *left > 0);
    }
}

fn stdin_header(length: usize) -> [u8; HEADER] {
    Header { kind: Kind::Stdin, length }.encode()
}

impl AsyncRead for AsyncCall {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.unsent.is_empty() {
            // An agent that does not listen has said why.
            if this.poll_send(context).is_ready()
                && let Some(writer) = this.writer.take()
            {
                writer.wake();
            }
        }
        loop {
            if this.ended || this.exit.is_some() || to.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if !this.advance().map_err(CallError::into_io)? {
                ready!(this.poll_fill(context))?;
                continue;
            }
            let Some((_, left)) = this.current else { continue };
            if this.filled.is_empty() {
                // Straight to where it is wanted.
                let room = left.min(to.remaining());
                let mut room = ReadBuf::new(to.initialize_unfilled_to(room));
                ready!(Pin::new(&mut this.socket).poll_read(context, &mut room))?;
                let read = room.filled().len();
                if read == 0 {
                    return Poll::Ready(Err(CallError::Conversation(ConversationError::HungUp).into_io()));
                }
                to.advance(read);
                this.took(read);
            } else {
                let there = left.min(this.filled.len()).min(to.remaining());
                to.put_slice(&this.buffer[this.filled.start..this.filled.start + there]);
                this.take(there);
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for AsyncCall {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_sent(context))?;
        let data = &data[..data.len().min(Version::V3.max_chunk())];
        if !data.is_empty() {
            let header = stdin_header(data.len());
            let message = [IoSlice::new(&header), IoSlice::new(data)];
            let sent = Pin::new(&mut this.socket).poll_write_vectored(context, &message);
            if sent.is_pending() && !this.wide {
                this.wide = true;
                super::widen(&this.socket);
            }
            this.writer = sent.is_pending().then(|| context.waker().clone());
            let sent = ready!(sent)?;
            // The rest goes with the next operation.
            this.unsent.extend(&header[sent.min(header.len())..]);
            this.unsent.extend(&data[sent.saturating_sub(header.len())..]);
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_sent(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_sent(context))?;
        if !this.said_all {
            this.said_all = true;
            this.unsent.extend(stdin_header(0));
        }
        this.poll_sent(context)
    }
}
