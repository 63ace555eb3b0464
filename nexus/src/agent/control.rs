//! The connection with nexusd, or with a stock qrexec-daemon: requests go there, and what dom0 allows comes from there.
//!
//! It is made again when it ends. Requests that were not answered by then are not going to be; calls that are carried go
//! on, and a nexusd that comes is told of them.

use super::{Shared, plain, remote};
use crate::conversation::ConversationError;
use crate::policy::Principal;
use crate::wire::control::{Ended, Failure, Join, OpenCall, Role, Via};
use crate::wire::{
    CONTROL_PATH, Channel, Decoder, Ident, Link, Message, Source, Trigger, Version, WireError,
};
use serde::Deserialize;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::{sleep, timeout};
use vchan::{AsyncChannel, ListenOptions, Listener};
use xen::DomId;
use xen::host::Host;

/// How long after the end of one connection the next is tried.
const AGAIN: Duration = Duration::from_millis(200);

/// How long the end of a call may wait for company, and how many bytes of it.
const LATER: Duration = Duration::from_millis(10);
const ENDS: usize = 1 << 10;

/// Where dom0 is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ControlSettings {
    /// In dom0: nexusd's Unix socket.
    Socket(PathBuf),
    /// In a qube: `true`, a vchan that this agent offers to dom0.
    Vchan(bool),
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Answer {
    Join(Join),
    Connect(Link),
    /// With the reason, if dom0 gave one.
    Refused(Option<Failure>),
}

/// Why dom0 cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("dom0 is not there: nexusd does not run")]
    Absent,
    #[error("dom0's daemon is qrexec's, which knows no containers")]
    Stock,
    #[error("the request does not fit the version that dom0 speaks")]
    Unsendable,
}

impl AskError {
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Absent => Failure::NoDom0,
            Self::Stock | Self::Unsendable => Failure::Problem,
        }
    }
}

type Halves = (Box<dyn AsyncRead + Unpin>, Box<dyn AsyncWrite + Unpin>);

/// The connection, as calls see it.
#[derive(Debug, Default)]
pub(super) struct Control {
    connected: RefCell<Option<Connected>>,
    /// The ends of calls that are here.
    open: RefCell<HashMap<(u64, Role), Via>>,
    requests: Cell<u64>,
    /// Ends of calls that are not told yet.
    ended: RefCell<Vec<u8>>,
    has_ended: Notify,
}

#[derive(Debug)]
struct Connected {
    version: Version,
    out: mpsc::UnboundedSender<Vec<u8>>,
    asked: HashMap<Ident, oneshot::Sender<Answer>>,
}

/// A request that is on its way; taken back when it is dropped.
#[derive(Debug)]
pub(super) struct Request {
    control: Rc<Control>,
    ident: Ident,
    answer: oneshot::Receiver<Answer>,
}

impl Request {
    /// What became of it; nothing: dom0 is gone.
    pub(super) async fn answer(&mut self) -> Option<Answer> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(connected) = &mut *self.control.connected.borrow_mut() {
            connected.asked.remove(&self.ident);
        }
    }
}

/// An end of a call, as nexusd knows it, until this is dropped.
#[derive(Debug)]
pub(super) struct Known {
    control: Rc<Control>,
    ended: Ended,
}

impl Known {
    pub(super) fn ended(&mut self, exit: i32, to_service: u64, to_caller: u64) {
        (self.ended.exit, self.ended.to_service, self.ended.to_caller) = (exit, to_service, to_caller);
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.control.open.borrow_mut().remove(&(self.ended.call, self.ended.role));
        self.control.tell_later(&Message::Ended(self.ended));
    }
}

impl Control {
    /// Whether containers' calls can be asked for: a stock daemon does not know of them.
    ///
    /// # Errors
    /// Why it cannot be asked for.
    pub(super) fn ask(
        self: &Rc<Self>,
        source: &Principal,
        target: &[u8],
        service: &[u8],
    ) -> Result<Request, AskError> {
        let number = self.requests.replace(self.requests.get() + 1);
        let ident = Ident::new(format!("nexus-{number:x}").as_bytes()).ok_or(AskError::Unsendable)?;
        let trigger = Trigger { ident, target, service };
        let mut connected = self.connected.borrow_mut();
        let connected = connected.as_mut().ok_or(AskError::Absent)?;
        let source = source.to_string();
        let message = match connected.version {
            Version::Nexus => Message::TriggerService4(Source(source.as_bytes()), trigger),
            _ if source.contains(':') => {
                return Err(AskError::Stock);
            }
            Version::V4 => Message::TriggerService4(Source(b""), trigger),
            Version::V3 => Message::TriggerService3(trigger),
            Version::V2 => Message::TriggerService(trigger),
        };
        let mut bytes = Vec::new();
        message.encode(&mut bytes).map_err(|_| AskError::Unsendable)?;
        let (sender, answer) = oneshot::channel();
        connected.asked.insert(ident, sender);
        // Its receiver lives as long as the connection.
        let _ = connected.out.send(bytes);
        Ok(Request { control: self.clone(), ident, answer })
    }

    /// An end of a call is here from now on.
    pub(super) fn know(self: &Rc<Self>, call: u64, via: Via, role: Role) -> Known {
        self.open.borrow_mut().insert((call, role), via);
        let exit = crate::wire::EXIT_PROBLEM.into();
        let ended = Ended { call, exit, role, to_service: 0, to_caller: 0 };
        Known { control: self.clone(), ended }
    }

    /// Tells a stock daemon that a vchan is closed.
    pub(super) fn terminated(&self, link: Link) {
        self.send(&Message::ConnectionTerminated(link));
    }

    /// Sends what is to be told and not answered; nobody is told when there is nobody.
    fn send(&self, message: &Message<'_>) {
        if let Some(connected) = &*self.connected.borrow() {
            let ours = matches!(message, Message::Open(_));
            let mut bytes = Vec::new();
            if (!ours || connected.version == Version::Nexus) && message.encode(&mut bytes).is_ok() {
                let _ = connected.out.send(bytes);
            }
        }
    }

    /// Sends what nobody waits for with what goes next, or soon.
    fn tell_later(&self, message: &Message<'_>) {
        let ours = |connected: &Connected| connected.version == Version::Nexus;
        if self.connected.borrow().as_ref().is_some_and(ours)
            // An end of a call fits a message.
            && message.encode(&mut self.ended.borrow_mut()).is_ok()
        {
            self.has_ended.notify_one();
        }
    }

    fn answered(&self, ident: &Ident, answer: Answer) -> Result<(), Answer> {
        let sender = self.connected.borrow_mut().as_mut().and_then(|connected| connected.asked.remove(ident));
        match sender {
            Some(sender) => sender.send(answer),
            None => Err(answer),
        }
    }
}

/// Keeps the connection, for ever.
pub(super) async fn maintain(shared: &Rc<Shared>, settings: &ControlSettings) {
    let mut complained = String::new();
    loop {
        let why = match connect(settings).await {
            Ok(halves) => {
                let why = converse(shared, halves).await;
                complained.clear();
                *shared.control.connected.borrow_mut() = None;
                why.to_string()
            }
            Err(error) => error.to_string(),
        };
        // Once for each reason, and not five times a second.
        if why != complained {
            super::complain(&format!("dom0: {why}"));
            complained = why;
        }
        sleep(AGAIN).await;
    }
}

async fn connect(settings: &ControlSettings) -> io::Result<Halves> {
    match settings {
        ControlSettings::Socket(path) => {
            let (read, write) = UnixStream::connect(path).await?.into_split();
            Ok((Box::new(read), Box::new(write)))
        }
        ControlSettings::Vchan(_) => {
            let open = || Listener::open(&Host, DomId(0), CONTROL_PATH, &ListenOptions::default());
            let channel = AsyncChannel::accept(spawn_blocking(open).await??).await?;
            let (read, write) = tokio::io::split(channel);
            Ok((Box::new(read), Box::new(write)))
        }
    }
}

/// Speaks until the connection ends, and says why.
async fn converse(shared: &Rc<Shared>, (read, mut write): Halves) -> ConversationError {
    let (out, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
    // What ended before is none of this nexusd's.
    shared.control.ended.borrow_mut().clear();
    let writing = async {
        let mut bytes = Vec::new();
        let hello = Message::Hello(Channel::FromAgent.version().number()).encode(&mut bytes);
        if let Err(error) = hello {
            return error.into();
        }
        loop {
            // What came together goes together.
            while let Ok(message) = queue.try_recv() {
                bytes.extend(message);
            }
            if let Err(error) = write.write_all(&bytes).await {
                return ConversationError::Io(error);
            }
            bytes.clear();
            let message = tokio::select! {
                biased;
                message = queue.recv() => Some(message),
                () = soon(&shared.control) => None,
            };
            // Ends go before requests: a place that has become free can be taken.
            bytes.append(&mut shared.control.ended.borrow_mut());
            match message {
                Some(Some(message)) => bytes.extend(message),
                Some(None) => return ConversationError::HungUp,
                None => {}
            }
        }
    };
    tokio::select! { why = writing => why, why = listen(shared, read, out) => why }
}

/// Waits until the ends of calls should be told: each alone would wake dom0.
async fn soon(control: &Control) {
    control.has_ended.notified().await;
    let enough = async {
        while control.ended.borrow().len() < ENDS {
            control.has_ended.notified().await;
        }
    };
    // Late or many: both are reasons.
    let _ = timeout(LATER, enough).await;
}

async fn listen(
    shared: &Rc<Shared>,
    mut read: Box<dyn AsyncRead + Unpin>,
    out: mpsc::UnboundedSender<Vec<u8>>,
) -> ConversationError {
    let mut decoder = Decoder::new(Channel::ToAgent);
    let mut buffer = vec![0; 16 << 10];
    loop {
        let filled = match read.read(&mut buffer).await {
            Ok(0) => return ConversationError::HungUp,
            Ok(filled) => filled,
            Err(error) => return error.into(),
        };
        let mut input = &buffer[..filled];
        loop {
            let message = match decoder.decode(&mut input) {
                Ok(Some(frame)) => Message::parse(&frame),
                Ok(None) => break,
                Err(error) => return error.into(),
            };
            match message {
                Ok(Message::Hello(number)) => match Version::of_peer(number) {
                    Ok(version) => {
                        let version = version.min(Channel::ToAgent.version());
                        let asked = HashMap::new();
                        *shared.control.connected.borrow_mut() =
                            Some(Connected { version, out: out.clone(), asked });
                        for ((call, role), via) in &*shared.control.open.borrow() {
                            shared.control.send(&Message::Open(OpenCall {
                                call: *call,
                                via: *via,
                                role: *role,
                            }));
                        }
                    }
                    Err(error) => return error.into(),
                },
                Ok(message) => {
                    if let Err(error) = hear(shared, &message) {
                        return error.into();
                    }
                }
                Err(error) => return error.into(),
            }
        }
    }
}

fn hear(shared: &Rc<Shared>, message: &Message<'_>) -> Result<(), WireError> {
    let control = &shared.control;
    match *message {
        // Who asked is gone, and needs no answer.
        Message::ServiceRefused(ident) => _ = control.answered(&ident, Answer::Refused(None)),
        Message::Failed(ident, failure) => _ = control.answered(&ident, Answer::Refused(Some(failure))),
        Message::Join(join) => {
            if control.answered(&join.ident, Answer::Join(join)).is_err() {
                remote::nobody_joins(shared, &join);
            }
        }
        Message::ServiceConnect(link, ident) => {
            if control.answered(&ident, Answer::Connect(link)).is_err() {
                control.terminated(link);
            }
        }
        Message::Run(run) => {
            let (shared, call, via) = (shared.clone(), run.call, run.via);
            let wanted = remote::wanted(&run);
            spawn_local(async move { remote::run(&shared, call, via, wanted).await });
        }
        Message::ExecCmdline(execute) => execute_command(shared, execute, true),
        Message::JustExec(execute) => execute_command(shared, execute, false),
        Message::Gone(domain) => shared.pairs.gone(domain),
        _ => return Err(WireError::Misplaced { kind: message.kind(), channel: Channel::ToAgent }),
    }
    Ok(())
}

fn execute_command(shared: &Rc<Shared>, execute: crate::wire::Execute<'_>, listens: bool) {
    let (shared, link) = (shared.clone(), execute.link);
    let command = String::from_utf8_lossy(execute.command).into_owned();
    spawn_local(async move {
        plain::execute(&shared, link, &command, listens).await;
        shared.control.terminated(link);
    });
}
