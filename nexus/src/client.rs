//! Whoever calls: from a container or a qube, through the socket of its agent.

pub mod containers;
mod tasks;

pub use crate::conversation::ConversationError;
pub use crate::wire::control::Failure;
pub use tasks::AsyncCall;

use crate::conversation::{Incoming, send};
use crate::wire::{Channel, EXIT_PROBLEM, EXIT_REFUSED, Ident, Message, Trigger};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Where the agent listens.
pub const CALL_SOCKET: &str = "/run/nexus/call.sock";

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The agent is not there.
    #[error("{}: {source}: does nexus-agent run, and is its socket here?", path.display())]
    NoAgent {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Policy refused it.
    #[error("refused")]
    Refused,
    /// It was not made, or came to nothing.
    #[error("{0}")]
    Failed(Failure),
    /// Target or service do not fit a message.
    #[error("a target has 63 bytes at most, a service 65000, and neither has a NUL")]
    TooLong,
    /// The agent.
    #[error("the agent: {0}")]
    Conversation(#[from] ConversationError),
    /// Reading what is to be sent.
    #[error("stdin: {0}")]
    Input(#[source] io::Error),
    /// Writing what came back.
    #[error("stdout: {0}")]
    Output(#[source] io::Error),
}

impl CallError {
    /// What a program's exit status is that ends by it: 126 where the call was refused, 125 where anything else failed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused => EXIT_REFUSED,
            Self::Failed(failure) => failure.exit_code(),
            _ => EXIT_PROBLEM,
        }
    }

    /// For those who read and write.
    fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Refused => io::ErrorKind::PermissionDenied,
            Self::Failed(failure) if failure.exit_code() == EXIT_REFUSED => io::ErrorKind::PermissionDenied,
            Self::Failed(_) => io::ErrorKind::ConnectionAborted,
            Self::TooLong => io::ErrorKind::InvalidInput,
            Self::Conversation(ConversationError::HungUp) => io::ErrorKind::UnexpectedEof,
            Self::Conversation(ConversationError::Wire(_)) => io::ErrorKind::InvalidData,
            Self::NoAgent { source: error, .. }
            | Self::Conversation(ConversationError::Io(error))
            | Self::Input(error)
            | Self::Output(error) => error.kind(),
        };
        io::Error::new(kind, self)
    }

    fn from_io(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => error,
            Err(error) => ConversationError::Io(error).into(),
        }
    }
}

/// What a client says at first: hello, and what it wants. The agent says hello without being asked, so there is nothing to
/// wait for.
fn request(target: &str, service: &str) -> Result<Vec<u8>, CallError> {
    let mut bytes = Vec::new();
    let ident = Ident::new(b"call").ok_or(CallError::TooLong)?;
    let trigger = Trigger { ident, target: target.as_bytes(), service: service.as_bytes() };
    Message::Hello(Channel::FromClient.version().number())
        .encode(&mut bytes)
        .and_then(|()| Message::TriggerService3(trigger).encode(&mut bytes))
        .map_err(|_| CallError::TooLong)?;
    Ok(bytes)
}

/// A call whose request is on its way.
#[derive(Debug)]
pub struct OutgoingCall {
    incoming: Incoming,
}

impl OutgoingCall {
    /// Asks the agent behind a socket for a service: `target` and `service` as in a policy.
    ///
    /// # Errors
    /// The agent is not there, or the request does not fit a message. That it is refused is known in [`Self::run`].
    pub fn start(agent: &Path, target: &str, service: &str) -> Result<Self, CallError> {
        let request = request(target, service)?;
        let connected = UnixStream::connect(agent);
        let mut socket = connected.map_err(|source| CallError::NoAgent { path: agent.to_owned(), source })?;
        // An agent that does not want to hear more has said why.
        let _ = socket.write_all(&request);
        // Its hello is read with what comes after it: nobody need wait for that.
        Ok(Self { incoming: Incoming::new(socket, Channel::ToClient) })
    }

    /// Carries the call to its end: `input` goes to the service, what it writes comes back. Returns its exit code.
    ///
    /// What of `input` is not read by then is left; the thread that reads it ends with its next byte.
    ///
    /// # Errors
    /// It was refused, or an end is gone.
    pub fn run(
        self,
        input: impl Read + Send + 'static,
        output: &mut impl Write,
        errors: &mut impl Write,
    ) -> Result<i32, CallError> {
        self.carry(input, |data| output.write_all(data).and_then(|()| output.flush()), errors)
    }

    /// The same with a socket for both, such as a client's that knows nothing of calls: either end may say that it has no
    /// more to say, and still listen.
    ///
    /// # Errors
    /// As those of [`Self::run`].
    pub fn join(self, socket: &UnixStream, errors: &mut impl Write) -> Result<i32, CallError> {
        let input = socket.try_clone().map_err(CallError::Input)?;
        let result = self.carry(
            input,
            |data| match data {
                [] => socket.shutdown(Shutdown::Write),
                data => (&*socket).write_all(data),
            },
            errors,
        );
        // Whatever happened: there is nobody at the other end any more.
        let _ = socket.shutdown(Shutdown::Both);
        result
    }

    /// The same with a function that gets what the service writes, and nothing when that is all.
    ///
    /// # Errors
    /// As those of [`Self::run`].
    pub fn carry(
        mut self,
        input: impl Read + Send + 'static,
        output: impl FnMut(&[u8]) -> io::Result<()>,
        errors: &mut impl Write,
    ) -> Result<i32, CallError> {
        let socket = self.incoming.socket().try_clone().map_err(ConversationError::Io)?;
        let chunk = Channel::ToClient.version().max_chunk();
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || forward(input, socket, chunk))
            .map_err(CallError::Input)?;
        let result = self.receive(output, errors);
        // The thread that forwards stops when it writes again.
        let _ = self.incoming.socket().shutdown(Shutdown::Both);
        result
    }

    fn receive(
        &mut self,
        mut output: impl FnMut(&[u8]) -> io::Result<()>,
        errors: &mut impl Write,
    ) -> Result<i32, CallError> {
        loop {
            let end = self.incoming.next(|message| match message {
                Message::Stdout(data) => output(data).map(|()| None).map_err(CallError::Output),
                Message::Stderr(data) => {
                    errors.write_all(data).and_then(|()| errors.flush()).map_err(CallError::Output)?;
                    Ok(None)
                }
                Message::ServiceRefused(_) => Err(CallError::Refused),
                Message::Failed(_, failure) => Err(CallError::Failed(failure)),
                Message::ExitCode(code) => Ok(Some(code)),
                _ => Ok(None),
            })?;
            if let Some(code) = end? {
                return Ok(code);
            }
        }
    }
}

/// Gives a socket by which much is sent as much room as whoever is not privileged may have: the other end then finds
/// more each time that it looks.
fn widen(socket: &impl AsFd) {
    // What it had is as good as that otherwise.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, 1 << 20);
}

/// Sends what there is to read, and its end.
fn forward(mut input: impl Read, mut socket: UnixStream, chunk: usize) {
    let mut buffer = vec![0; chunk];
    let mut wide = false;
    loop {
        match input.read(&mut buffer) {
            Ok(read) => {
                if read == chunk && !std::mem::replace(&mut wide, true) {
                    widen(&socket);
                }
                // The agent is gone: whoever receives from it tells of that.
                if send(&mut socket, &Message::Stdin(&buffer[..read])).is_err() || read == 0 {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // There is no more to read, and the service is not to wait for it.
            Err(_) => {
                let _ = send(&mut socket, &Message::Stdin(&[]));
                return;
            }
        }
    }
}
