//! Messages over a Unix socket: what client and agent have in common.

use crate::wire::{Channel, Decoder, MAX_CHUNK, Message, Version, WireError};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Why a conversation ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum ConversationError {
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other end breaks the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The other end is gone, though there was more to say.
    #[error("the other end hung up")]
    HungUp,
}

/// The reading half.
#[derive(Debug)]
pub(crate) struct Incoming {
    socket: UnixStream,
    decoder: Decoder,
    buffer: Box<[u8]>,
    filled: std::ops::Range<usize>,
}

impl Incoming {
    pub(crate) fn new(socket: UnixStream, channel: Channel) -> Self {
        Self { socket, decoder: Decoder::new(channel), buffer: vec![0; MAX_CHUNK].into(), filled: 0..0 }
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// How many bytes the other end takes in a message, after its hello.
    pub(crate) fn max_chunk(&self) -> usize {
        self.decoder.version().unwrap_or(Version::V2).max_chunk()
    }

    /// Waits for the next message, and has it looked at.
    pub(crate) fn next<T>(&mut self, look: impl FnOnce(Message<'_>) -> T) -> Result<T, ConversationError> {
        loop {
            let mut input = &self.buffer[self.filled.clone()];
            let before = input.len();
            let decoded = self.decoder.decode(&mut input)?;
            self.filled.start += before - input.len();
            if let Some(frame) = decoded {
                return Ok(look(Message::parse(&frame)?));
            }
            let read = match self.socket.read(&mut self.buffer) {
                Ok(0) => return Err(ConversationError::HungUp),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error.into()),
            };
            self.filled = 0..read;
        }
    }
}

/// Sends one message.
pub(crate) fn send(socket: &mut impl Write, message: &Message<'_>) -> Result<(), ConversationError> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes)?;
    Ok(socket.write_all(&bytes)?)
}
