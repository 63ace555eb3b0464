//! qrexec's data messages over something that carries bytes, piece by piece.
//!
//! A message is not put together before it is handed on: 64 KiB that come in 16 reads are 16 pieces.

use crate::conversation::ConversationError;
use crate::wire::{Channel, Decoder, HEADER, Header, Kind, Message, Version, WireError};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::rc::Rc;
use tokio::net::UnixStream;

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
    pub(super) fn outstanding(&mut self) -> Option<(Kind, usize)> {
        if self.current.is_none() && self.filled.len() == HEADER {
            let begun = self.filled.clone();
            let header = Header::parse(self.take(), self.channel, Some(self.version));
            match header {
                Ok(Header { kind: kind @ Kind::Stdin, length: length @ 1.. }) => {
                    self.current = Some((kind, length))
                }
                // What is no data, or wrong, is for `next`.
                _ => self.filled = begun,
            }
        }
        self.current.filter(|_| self.filled.is_empty())
    }

    /// The beginning of what comes next was read by somebody else, who has read all before it.
    pub(super) fn begin_with(&mut self, begun: &[u8]) {
        let room = self.room.get();
        room[..begun.len()].copy_from_slice(begun);
        self.filled = 0..begun.len();
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
                let header = self.take::<HEADER>();
                let Header { kind, length: left } = Header::parse(header, self.channel, Some(self.version))?;
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
            let header = Header { kind, length: chunk.len() };
            self.to.write(&header.encode(), chunk).await?;
            rest = after;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// What was promised by a header that somebody else wrote.
    pub(super) async fn raw(&mut self, data: &[u8]) -> io::Result<()> {
        self.to.write(&[], data).await
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// What was heard: data of one kind that came together is one.
    type Heard = Vec<(Kind, Vec<u8>)>;

    fn hear(heard: &mut Heard, kind: Kind, data: &[u8]) {
        match heard.last_mut() {
            Some((last, bytes)) if *last == kind && !bytes.is_empty() && !data.is_empty() => {
                bytes.extend(data);
            }
            _ => heard.push((kind, data.to_vec())),
        }
    }

    /// By whole messages.
    fn whole(bytes: &[u8]) -> (Heard, Option<WireError>) {
        let mut stream = Vec::new();
        Message::Hello(3).encode(&mut stream).unwrap();
        stream.extend(bytes);
        let (mut decoder, mut input, mut heard) = (Decoder::new(Channel::ToCaller), &stream[..], Vec::new());
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(frame)) if frame.kind == Kind::Hello => {}
                Ok(Some(frame)) => hear(&mut heard, frame.kind, frame.payload),
                Ok(None) => return (heard, None),
                Err(error) => return (heard, Some(error)),
            }
        }
    }

    /// By pieces, as they come out of a socket.
    fn pieces(bytes: Vec<u8>, cut: usize) -> (Heard, Option<WireError>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            // Whoever has seen a breach reads no more.
            let _ = bytes.chunks(cut).try_for_each(|part| theirs.write_all(part));
        });
        runtime.block_on(async {
            let socket = Bytes::Socket(Rc::new(UnixStream::from_std(ours).unwrap()));
            let mut reading = Reading::new(socket, Channel::ToCaller, Version::V3, &[]);
            let mut heard = Vec::new();
            loop {
                match reading.next().await {
                    Ok(Piece::Data(kind, data)) => hear(&mut heard, kind, data),
                    Ok(Piece::End(kind)) => heard.push((kind, Vec::new())),
                    Ok(Piece::Exit(code)) => hear(&mut heard, Kind::ExitCode, &code.to_le_bytes()),
                    Err(ConversationError::Wire(error)) => return (heard, Some(error)),
                    Err(_) => return (heard, None),
                }
            }
        })
    }

    fn message() -> impl Strategy<Value = Vec<u8>> {
        let data = prop::collection::vec(any::<u8>(), 0..6000);
        prop_oneof![
            4 => (0x191_u32..=0x192, data).prop_map(|(kind, data)| {
                [&kind.to_le_bytes()[..], &(data.len() as u32).to_le_bytes(), &data].concat()
            }),
            1 => any::<i32>().prop_map(|code| {
                [&0x193_u32.to_le_bytes()[..], &[4, 0, 0, 0], &code.to_le_bytes()].concat()
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What a hostile peer sends on a call's own vchan means the same to both who read messages: whole ones, and then
        /// any bytes that may be the header of another one.
        #[test]
        fn pieces_say_what_messages_say(
            messages in prop::collection::vec(message(), 0..6),
            header in prop_oneof![
                any::<[u8; HEADER]>(),
                (0x18f_u32..0x195, prop_oneof![0..9_u32, 65_530..65_545_u32, any::<u32>()]).prop_map(|(kind, length)| {
                    let [a, b, c, d] = kind.to_le_bytes();
                    let [e, f, g, h] = length.to_le_bytes();
                    [a, b, c, d, e, f, g, h]
                }),
            ],
            cut in 1..4000_usize,
        ) {
            let bytes = [messages.concat(), header.to_vec()].concat();
            prop_assert_eq!(pieces(bytes.clone(), cut), whole(&bytes));
        }
    }
}
