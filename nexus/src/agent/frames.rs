//! qrexec's data messages over something that carries bytes, piece by piece.
//!
//! A message is not put together before it is handed on: 64 KiB that come in 16 reads are 16 pieces.

use crate::conversation::ConversationError;
use crate::wire::{Channel, Decoder, Kind, Message, Version, WireError};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;
use tokio::net::UnixStream;

/// `struct msg_header`.
const HEADER: usize = 8;
/// Room for what is read at once, at first and at most: a call that says little takes little.
const LEAST_ROOM: usize = 4 << 10;
const MOST_ROOM: usize = 64 << 10;

/// A socket or a vchan, for the two halves of a conversation.
#[derive(Debug, Clone)]
pub(super) enum Bytes {
    /// A client's socket.
    Socket(Rc<UnixStream>),
    /// A call's own vchan.
    Vchan(Rc<RefCell<vchan::Channel>>),
}

impl Bytes {
    /// At least one byte; 0 at the end.
    pub(super) async fn read(&self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => read(socket, to).await,
            Self::Vchan(channel) => {
                poll_fn(|context| channel.borrow_mut().poll_recv(context, to)).await.map_err(io::Error::from)
            }
        }
    }

    /// All of both.
    pub(super) async fn write(&self, header: &[u8], data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < header.len() + data.len() {
            let rest = [
                IoSlice::new(&header[done.min(header.len())..]),
                IoSlice::new(&data[done.saturating_sub(header.len())..]),
            ];
            done += match self {
                Self::Socket(socket) => match socket.try_write_vectored(&rest) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        socket.writable().await?;
                        0
                    }
                    written => written?,
                },
                Self::Vchan(channel) => {
                    poll_fn(|context| channel.borrow_mut().poll_send_vectored(context, &rest)).await?
                }
            };
        }
        Ok(())
    }
}

/// Reads from a socket that may be shared by tasks.
pub(super) async fn read(socket: &UnixStream, to: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.try_read(to) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
            read => return read,
        }
    }
}

/// A buffer for reads that grows with what comes.
#[derive(Debug, Default)]
pub(super) struct Room(Vec<u8>);

impl Room {
    pub(super) fn get(&mut self) -> &mut [u8] {
        if self.0.is_empty() {
            self.0.resize(LEAST_ROOM, 0);
        }
        &mut self.0
    }

    /// So many bytes came: the next read may bring more.
    pub(super) fn read(&mut self, bytes: usize) {
        if bytes == self.0.len() && bytes < MOST_ROOM {
            self.0.resize((4 * bytes).min(MOST_ROOM), 0);
        }
    }
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// At least one byte of a stream.
    Data(Kind, &'a [u8]),
    /// The end of a stream.
    End(Kind),
    /// The last message of a service.
    Exit(i32),
}

/// The reading half, once both ends have said hello.
#[derive(Debug)]
pub(super) struct Reading {
    from: Bytes,
    channel: Channel,
    version: Version,
    room: Room,
    filled: Range<usize>,
    /// What is to come of the current message's data.
    current: Option<(Kind, usize)>,
    /// Read little at once: somebody else takes the rest of a message from where it is.
    little: bool,
}

impl Reading {
    /// `begun`: what was read already.
    pub(super) fn new(from: Bytes, channel: Channel, version: Version, begun: &[u8]) -> Self {
        let mut room = Room(begun.to_vec());
        room.0.resize(begun.len().max(LEAST_ROOM), 0);
        Self { from, channel, version, room, filled: 0..begun.len(), current: None, little: false }
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.from
    }

    /// Waits until there are so many bytes, at most those of a header. False at the end.
    async fn fill(&mut self, bytes: usize) -> io::Result<bool> {
        while self.filled.len() < bytes {
            let room = self.room.get();
            room.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
            let read = self.from.read(&mut room[self.filled.end..]).await?;
            if read == 0 {
                return Ok(false);
            }
            self.filled.end += read;
            if !self.little {
                self.room.read(self.filled.end);
            }
        }
        Ok(true)
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let bytes = self.room.0[self.filled.clone()].first_chunk().copied();
        self.filled.start += N;
        bytes.unwrap_or([0; N])
    }

    pub(super) fn read_little(&mut self) {
        self.little = true;
    }

    /// Of a message whose data is to come next, how much, if none of it was read yet.
    pub(super) fn outstanding(&self) -> Option<(Kind, usize)> {
        self.current.filter(|_| self.filled.is_empty())
    }

    /// So much of it was read by somebody else.
    pub(super) fn skip(&mut self, bytes: usize) {
        self.current = self.current.map(|(kind, left)| (kind, left - bytes)).filter(|(_, left)| *left > 0);
    }

    /// The next piece.
    pub(super) async fn next(&mut self) -> Result<Piece<'_>, ConversationError> {
        let (kind, left) = match self.current {
            Some(current) => current,
            None => {
                if !self.fill(HEADER).await? {
                    return Err(ConversationError::HungUp);
                }
                let kind = Kind::of(u32::from_le_bytes(self.take()))?;
                let length = u32::from_le_bytes(self.take());
                let lengths = self.channel.lengths(kind, Some(self.version))?;
                let fits = usize::try_from(length).ok().filter(|length| lengths.contains(length));
                let (least, most) = lengths.into_inner();
                let left = fits.ok_or(WireError::Length { kind, length, least, most })?;
                match kind {
                    Kind::ExitCode => {
                        if !self.fill(4).await? {
                            return Err(ConversationError::HungUp);
                        }
                        return Ok(Piece::Exit(i32::from_le_bytes(self.take())));
                    }
                    Kind::Stdin | Kind::Stdout | Kind::Stderr if left == 0 => return Ok(Piece::End(kind)),
                    Kind::Stdin | Kind::Stdout | Kind::Stderr => *self.current.insert((kind, left)),
                    // A second request.
                    kind => return Err(WireError::Order(kind).into()),
                }
            }
        };
        if !self.fill(1).await? {
            return Err(ConversationError::HungUp);
        }
        let taken = self.filled.len().min(left);
        let data = self.filled.start..self.filled.start + taken;
        self.filled.start += taken;
        self.skip(taken);
        Ok(Piece::Data(kind, &self.room.0[data]))
    }
}

/// The writing half.
#[derive(Debug)]
pub(super) struct Writing {
    to: Bytes,
    most: usize,
}

impl Writing {
    pub(super) fn new(to: Bytes, version: Version) -> Self {
        Self { to, most: version.max_chunk() }
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.to
    }

    /// Data of a stream; none: its end.
    pub(super) async fn data(&mut self, kind: Kind, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        loop {
            let (chunk, after) = rest.split_at(rest.len().min(self.most));
            self.to.write(&header(kind, chunk.len()), chunk).await?;
            rest = after;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    pub(super) async fn exit(&mut self, code: i32) -> io::Result<()> {
        self.to.write(&header(Kind::ExitCode, 4), &code.to_le_bytes()).await
    }

    /// What was promised by a header that somebody else wrote.
    pub(super) async fn raw(&mut self, data: &[u8]) -> io::Result<()> {
        self.to.write(&[], data).await
    }
}

/// `struct msg_header`.
pub(super) fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&(kind as u32).to_le_bytes());
    // A message has 64 KiB at most.
    header[4..].copy_from_slice(&(length as u32).to_le_bytes());
    header
}

/// The first messages of a conversation: hello, and perhaps a request. What was read beyond them is the beginning of the
/// rest.
#[derive(Debug)]
pub(super) struct Opening {
    from: Bytes,
    channel: Channel,
    decoder: Decoder,
    room: Room,
    filled: Range<usize>,
}

impl Opening {
    /// `channel`: what comes this way.
    pub(super) fn new(from: Bytes, channel: Channel) -> Self {
        Self { from, channel, decoder: Decoder::new(channel), room: Room::default(), filled: 0..0 }
    }

    /// Says hello by the other direction.
    pub(super) async fn say_hello(&self, by: Channel) -> Result<(), ConversationError> {
        let mut bytes = Vec::new();
        Message::Hello(by.version().number()).encode(&mut bytes)?;
        Ok(self.from.write(&[], &bytes).await?)
    }

    /// Waits for the next message, and has it looked at.
    pub(super) async fn next<T>(
        &mut self,
        look: impl FnOnce(Message<'_>) -> T,
    ) -> Result<T, ConversationError> {
        loop {
            let room = self.room.get();
            let mut input = &room[self.filled.clone()];
            let before = input.len();
            let decoded = self.decoder.decode(&mut input)?;
            self.filled.start += before - input.len();
            if let Some(frame) = decoded {
                return Ok(look(Message::parse(&frame)?));
            }
            let read = self.from.read(room).await?;
            if read == 0 {
                return Err(ConversationError::HungUp);
            }
            self.filled = 0..read;
        }
    }

    /// The conversation after that.
    pub(super) fn into_halves(mut self) -> (Reading, Writing) {
        let version = self.decoder.version().unwrap_or(Version::V2);
        let begun = &self.room.get()[self.filled.clone()];
        let reading = Reading::new(self.from.clone(), self.channel, version, begun);
        (reading, Writing::new(self.from, version))
    }
}
