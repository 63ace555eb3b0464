//! The end of a call that is a service: found, opened, and joined with whoever calls.

use super::ends::{Heard, Hearing, Saying, Watch};
use super::frames::{Bytes, Opening, Room, read};
use super::pair::{PairCall, Straight};
use super::program::{Caller, Pipes, Program};
use super::{RpcConfig, Shared, as_user, remote, services};
use crate::conversation::ConversationError;
use crate::name::Name;
use crate::policy::Service;
use crate::wire::control::Failure;
use crate::wire::{Channel, EXIT_NO_SERVICE, EXIT_PROBLEM, Kind, pair};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::thread::sched_yield;
use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::time::sleep;

/// How long it takes until it is tried again to connect to a service that has no place for one more caller.
const FULL: Duration = Duration::from_millis(2);

/// What is less may be a whole answer.
const SHORT: usize = 4 << 10;

/// Why a call ended whose caller did not stay.
pub(super) const GONE: &str = "the caller is gone";

/// How a call ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) exit: i32,
    /// Why, if it was not the service's own end.
    pub(super) reason: Option<String>,
    /// What the caller is told of that; none: its exit code says it.
    pub(super) failure: Option<Failure>,
    pub(super) to_service: u64,
    pub(super) to_caller: u64,
}

impl Ended {
    pub(super) fn early(exit: u8, reason: String) -> Self {
        Self { exit: exit.into(), reason: Some(reason), ..Self::default() }
    }

    pub(super) fn problem(reason: impl ToString) -> Self {
        Self::failed(Failure::Problem, reason)
    }

    pub(super) fn failed(failure: Failure, reason: impl ToString) -> Self {
        Self { failure: Some(failure), ..Self::early(failure.exit_code(), reason.to_string()) }
    }
}

/// What is wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    /// None: a service of the qube itself.
    pub(super) container: Option<Name>,
    /// As whom it is to run; none: as the default user.
    pub(super) user: Option<String>,
    pub(super) service: Service,
    pub(super) source: String,
    pub(super) wish: String,
}

/// A service that is there.
#[derive(Debug)]
pub(super) enum Opened {
    Program(Program, Box<Pipes>),
    Socket {
        socket: Rc<UnixStream>,
        config: RpcConfig,
    },
    /// A socket that speaks in messages, and whose it is.
    Messages {
        socket: Rc<UnixStream>,
        whose: &'static str,
    },
}

impl Shared {
    /// Finds a service, and runs it or connects to it.
    pub(super) async fn open(&self, wanted: &Wanted) -> Result<Opened, Ended> {
        let settings = &self.settings;
        let container = match &wanted.container {
            Some(name) => match settings.containers.get(name) {
                Some(container) => Some(container),
                None => return Err(Ended::problem(format!("there is no container {name}"))),
            },
            None => None,
        };
        let service = &wanted.service;
        let rpc_config = container.and_then(|container| container.rpc_config.as_ref());
        let config = RpcConfig::of(service, rpc_config.unwrap_or(&settings.rpc_config))
            .map_err(|error| Ended::problem(format!("rpc-config: {error}")))?;
        let found = match container {
            // Whom a container's service runs as is the container's to say.
            Some(_) if wanted.user.is_some() => {
                return Err(Ended::problem(
                    "a container's service runs as the container says, and the rule has user=",
                ));
            }
            Some(container) => services::of_container(service, &container.services),
            None => {
                let user = config.force_user.as_deref().or(wanted.user.as_deref());
                if let Some(user) = self.another_user(user) {
                    return as_user::open(settings, user, wanted).await;
                }
                services::of_qube(service, &settings.services)
            }
        };
        match found.map_err(Ended::problem)? {
            None => Err(Ended::early(EXIT_NO_SERVICE, "there is no such service".to_owned())),
            Some(services::Found::Program(path)) => {
                let caller = Caller {
                    source: wanted.source.clone(),
                    service: service.to_string(),
                    argument: service.argument().to_owned(),
                    wish: wanted.wish.clone(),
                };
                let argument = Some(service.argument()).filter(|argument| !argument.is_empty());
                let run = Program::run(path.as_os_str(), argument.as_slice(), &caller);
                let (program, pipes) =
                    run.map_err(|error| Ended::problem(format!("{}: {error}", path.display())))?;
                Ok(Opened::Program(program, Box::new(pipes)))
            }
            Some(services::Found::Socket(place)) => {
                let socket = Rc::new(connect(&place.path()).await.map_err(Ended::problem)?);
                if !config.skip_service_descriptor {
                    // SERVICE+ARGUMENT SOURCE, as a program would find them in its environment.
                    let descriptor = format!("{service} {}\0", wanted.source);
                    let bytes = Bytes::Socket(socket.clone());
                    bytes.write(&[], descriptor.as_bytes()).await.map_err(Ended::problem)?;
                }
                match config.service_messages {
                    true => Ok(Opened::Messages { socket, whose: "the service" }),
                    false => Ok(Opened::Socket { socket, config }),
                }
            }
        }
    }

    /// The same for a caller who may go before the service is there.
    pub(super) async fn open_for(&self, hearing: &Hearing, wanted: &Wanted) -> Result<Opened, Ended> {
        let watch = hearing.watch();
        tokio::select! {
            biased;
            opened = self.open(wanted) => opened,
            () = watch.gone() => Err(Ended::problem(GONE)),
        }
    }

    /// The user, if it is another than the agent's.
    pub(super) fn another_user<'a>(&self, user: Option<&'a str>) -> Option<&'a str> {
        user.filter(|user| *user != self.settings.user)
    }
}

/// Connects to a socket. One whose listener has its queue full is waited for: whoever called may go meanwhile.
pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // A Unix socket is connected at once or not at all: there is nothing to wait for.
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return UnixStream::from_std(socket.into()),
            Err(Errno::AGAIN) => sleep(FULL).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Where a service reads.
#[derive(Debug)]
enum Ear {
    Pipe(ChildStdin),
    Socket(Rc<UnixStream>),
}

impl Ear {
    async fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(data).await,
            Self::Socket(socket) => Bytes::Socket(socket.clone()).write(&[], data).await,
        }
    }
}

/// What both directions count.
#[derive(Debug, Default)]
struct Counted {
    to_service: Cell<u64>,
    to_caller: Cell<u64>,
}

impl Counted {
    fn ended(&self, exit: i32, reason: Option<String>) -> Ended {
        let failure = reason.as_ref().map(|_| Failure::Problem);
        Ended { exit, reason, failure, to_service: self.to_service.get(), to_caller: self.to_caller.get() }
    }
}

/// Carries a call to its end. The exit code is the caller's to be told by whoever asked for this.
pub(super) async fn carry(opened: Opened, hearing: &mut Hearing, saying: &mut Saying) -> Ended {
    match opened {
        Opened::Program(program, pipes) => carry_program(program, *pipes, hearing, saying).await,
        Opened::Messages { socket, whose } => carry_messages(socket, whose, hearing, saying).await,
        Opened::Socket { socket, config } => carry_socket(&socket, &config, hearing, saying).await,
    }
}

async fn carry_program(
    mut program: Program,
    pipes: Pipes,
    hearing: &mut Hearing,
    saying: &mut Saying,
) -> Ended {
    let counted = Counted::default();
    let watch = hearing.watch();
    let mut ear = Some(Ear::Pipe(pipes.stdin));
    let inward = async {
        let reason = hear(hearing, &mut ear, &watch, &counted.to_service).await;
        drop(ear.take());
        match reason {
            // What comes now is that the caller goes.
            None => after_the_end(hearing).await,
            Some(reason) => reason,
        }
    };
    let outward = async {
        if say_all(pipes.stdout, pipes.stderr, saying, &counted.to_caller).await.is_err() {
            // The caller is gone, and whoever hears it knows why.
            watch.gone().await;
        }
        program.wait().await
    };
    tokio::select! {
        biased;
        exit = outward => match exit {
            Ok(exit) => counted.ended(exit, None),
            Err(error) => counted.ended(EXIT_PROBLEM.into(), Some(error.to_string())),
        },
        reason = inward => counted.ended(EXIT_PROBLEM.into(), Some(reason)),
    }
}

/// Hands on what the caller says, until it says no more (nothing) or is gone (why). A service that does not listen is not
/// told, and the caller not held up.
async fn hear(
    hearing: &mut Hearing,
    ear: &mut Option<Ear>,
    watch: &Watch,
    bytes: &Cell<u64>,
) -> Option<String> {
    loop {
        match hearing.next().await {
            Ok(Heard::Data(Kind::Stdin, data)) => {
                bytes.set(bytes.get() + data.len() as u64);
                let Some(listening) = ear else { continue };
                tokio::select! {
                    biased;
                    written = listening.write(data) => if written.is_err() { *ear = None },
                    () = watch.gone() => return Some(GONE.to_owned()),
                }
            }
            Ok(Heard::End(Kind::Stdin)) => return None,
            Ok(_) => return Some("the caller breaks the protocol".to_owned()),
            Err(error) => return Some(error.to_string()),
        }
    }
}

/// A caller that has said all may say nothing more.
async fn after_the_end(hearing: &mut Hearing) -> String {
    match hearing.next().await {
        Ok(_) => "the caller breaks the protocol".to_owned(),
        Err(_) => GONE.to_owned(),
    }
}

/// Hands on what a program says, until it has closed both.
async fn say_all(
    mut stdout: ChildStdout,
    mut stderr: ChildStderr,
    saying: &mut Saying,
    bytes: &Cell<u64>,
) -> io::Result<()> {
    let (mut room, mut room_too) = (Room::default(), Room::default());
    let mut open = [true, true];
    while open != [false, false] {
        let (kind, read) = tokio::select! {
            read = some(&mut stdout, &mut room), if open[0] => (Kind::Stdout, read),
            read = some(&mut stderr, &mut room_too), if open[1] => (Kind::Stderr, read),
        };
        let index = usize::from(kind == Kind::Stderr);
        // A pipe that fails has no more to say.
        let read = read.unwrap_or(0);
        let room = [&mut room, &mut room_too].into_iter().nth(index);
        let Some(room) = room else { continue };
        saying.data(kind, &room.get()[..read]).await?;
        room.read(read);
        bytes.set(bytes.get() + read as u64);
        open[index] = read > 0;
    }
    Ok(())
}

async fn some(from: &mut (impl AsyncRead + Unpin), room: &mut Room) -> io::Result<usize> {
    from.read(room.get()).await
}

/// Joins the caller with a socket.
async fn carry_socket(
    service: &Rc<UnixStream>,
    config: &RpcConfig,
    hearing: &mut Hearing,
    saying: &mut Saying,
) -> Ended {
    let counted = Counted::default();
    let (caller_done, service_done) = (Cell::new(false), Cell::new(false));
    let watch = hearing.watch();
    let mut ear = Some(Ear::Socket(service.clone()));
    hearing.set_straight(Some(Straight::Plain(service.clone())));
    let inward = async {
        let reason = hear(hearing, &mut ear, &watch, &counted.to_service).await;
        if let Some(reason) = reason {
            return Some(reason);
        }
        caller_done.set(true);
        let how = if config.exit_on_client_eof { Shutdown::Both } else { Shutdown::Write };
        // The service may have closed it first.
        let _ = rustix::net::shutdown(service, how);
        if service_done.get() { None } else { Some(after_the_end(hearing).await) }
    };
    let outward = async {
        let said = match saying {
            Saying::Pair(call) => say_straight(call, service, &caller_done, &counted.to_caller).await,
            Saying::Messages { .. } => say_socket(service, saying, &counted.to_caller).await,
        };
        if said.is_err() {
            watch.gone().await;
            return Some(GONE.to_owned());
        }
        service_done.set(true);
        if config.exit_on_service_eof || caller_done.get() {
            return None;
        }
        // A service that says no more may still listen.
        std::future::pending().await
    };
    let reason = tokio::select! {
        biased;
        reason = outward => reason,
        reason = inward => reason,
    };
    // Whatever happened, it gets no more.
    let _ = rustix::net::shutdown(service, Shutdown::Both);
    hearing.set_straight(None);
    let direct = hearing.went_straight();
    counted.to_service.set(counted.to_service.get() + direct);
    counted.ended(if reason.is_some() { EXIT_PROBLEM.into() } else { 0 }, reason)
}

/// Joins the caller with a socket that speaks in messages, as the other end of a call's own vchan does. What comes from
/// there is a container's: it is read by the same rules.
async fn carry_messages(
    socket: Rc<UnixStream>,
    whose: &str,
    hearing: &mut Hearing,
    saying: &mut Saying,
) -> Ended {
    let watch = hearing.watch();
    let met = tokio::select! {
        biased;
        met = meet(&socket) => met.map_err(|error| Ended::problem(format!("{whose}: {error}"))),
        () = watch.gone() => Err(Ended::problem(GONE)),
    };
    let ended = match met {
        Ok(mut service) => remote::relay(hearing, saying, &mut service.0, &mut service.1).await,
        Err(ended) => ended,
    };
    // Whatever happened, it gets no more.
    let _ = rustix::net::shutdown(&*socket, Shutdown::Both);
    ended
}

/// The hellos with a socket that speaks in messages.
async fn meet(socket: &Rc<UnixStream>) -> Result<(Hearing, Saying), ConversationError> {
    let mut opening = Opening::new(Bytes::Socket(socket.clone()), Channel::ToCaller);
    opening.say_hello(Channel::ToService).await?;
    opening.next(|_| ()).await?;
    let (reading, writing) = opening.into_halves();
    Ok((Hearing::Messages(reading), Saying::messages(writing)))
}

async fn say_socket(service: &UnixStream, saying: &mut Saying, bytes: &Cell<u64>) -> io::Result<()> {
    let mut room = Room::default();
    loop {
        // A service that resets its socket has no more to say.
        let read = read(service, room.get()).await.unwrap_or(0);
        saying.data(Kind::Stdout, &room.get()[..read]).await?;
        room.read(read);
        bytes.set(bytes.get() + read as u64);
        if read == 0 {
            return Ok(());
        }
    }
}

/// From the socket into the ring.
async fn say_straight(
    call: &PairCall,
    service: &UnixStream,
    caller_done: &Cell<bool>,
    bytes: &Cell<u64>,
) -> io::Result<()> {
    loop {
        let read = match call.data_from(pair::Kind::Stdout, service, usize::MAX, &mut []).await {
            Ok(read) => read,
            Err(_) if call.is_open() => 0,
            Err(error) => return Err(error),
        };
        bytes.set(bytes.get() + read as u64);
        if read == 0 {
            return call.end_of(pair::Kind::Stdout).await;
        }
        if caller_done.get() && read < SHORT {
            // An answer, which may have been all: where the service shares the processor, it says so now, and one event
            // tells the other qube of both.
            sched_yield();
        }
    }
}

/// Lets a service run to its end with nobody who speaks or listens.
pub(super) async fn let_run(opened: Opened) {
    match opened {
        Opened::Program(mut program, pipes) => {
            let Pipes { stdin, mut stdout, mut stderr } = *pipes;
            drop(stdin);
            let (mut out, mut errors) = (tokio::io::sink(), tokio::io::sink());
            // Read, so that it is not ended by writing.
            let drained = tokio::join!(
                tokio::io::copy(&mut stdout, &mut out),
                tokio::io::copy(&mut stderr, &mut errors),
                program.wait()
            );
            drop(drained);
        }
        Opened::Messages { socket, whose } => {
            if let Err(error) = drain(&socket).await {
                super::complain(&format!("{whose}: {error}"));
            }
        }
        // What it was told is all that it hears.
        Opened::Socket { .. } => {}
    }
}

/// Hears a service out: its program would be killed when nobody did.
async fn drain(socket: &Rc<UnixStream>) -> Result<(), ConversationError> {
    let (mut hearing, mut saying) = meet(socket).await?;
    saying.data(Kind::Stdin, &[]).await?;
    while !matches!(hearing.next().await?, Heard::Exit(..)) {}
    Ok(())
}
