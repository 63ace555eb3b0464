//! Calls with a qube that has a stock agent: a vchan for each, with qrexec's messages.

use super::ends::{Hearing, Saying};
use super::frames::{Bytes, Opening};
use super::program::{Caller, Program};
use super::service::{self, Ended, Opened, Wanted};
use super::{Shared, remote};
use crate::conversation::ConversationError;
use crate::policy::Service;
use crate::wire::control::Role;
use crate::wire::{Channel, Link};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use vchan::{ConnectOptions, Hub, ListenOptions};
use xen::DomId;
use xen::host::Host;

/// How long the other end may take to come: a qube may be starting.
const COMING: Duration = Duration::from_secs(120);
/// How long it may take to take the last bytes.
const LEAVING: Duration = Duration::from_secs(5);
/// The user that dom0 names when it means the qube's own.
const DEFAULT_USER: &str = "DEFAULT";

/// A vchan of a call's own, after the hellos.
#[derive(Debug)]
pub(super) struct Plain {
    channel: Rc<RefCell<vchan::Channel>>,
    pub(super) hearing: Hearing,
    pub(super) saying: Saying,
}

impl Plain {
    /// The caller's end offers the vchan, the service's comes to it.
    ///
    /// # Errors
    /// The other end does not come, or speaks something else.
    pub(super) async fn meet(shared: &Shared, link: Link, role: Role) -> Result<Self, ConversationError> {
        let open_hub = || async { Ok::<_, io::Error>(spawn_blocking(|| Hub::open(Host)).await??) };
        let hub = shared.hub.get_or_try_init(open_hub).await?.clone();
        let own = shared.pairs.own().await?;
        let open = move || {
            let (peer, port) = (DomId(link.domain), link.port);
            match role {
                Role::Caller => {
                    let path = format!("data/vchan/{}/{port}", link.domain);
                    hub.listen(peer, &path, &ListenOptions::default()).map(vchan::Listener::into_channel)
                }
                Role::Service => {
                    // A stock server removes its keys when its client has come.
                    let options = ConnectOptions {
                        wait: Some(COMING),
                        server_keeps_keys: false,
                        ..ConnectOptions::default()
                    };
                    hub.connect(peer, &format!("data/vchan/{own}/{port}"), &options)
                }
            }
        };
        let channel = spawn_blocking(open).await.map_err(io::Error::from)?.map_err(io::Error::from)?;
        let channel = Rc::new(RefCell::new(channel));
        let (in_by, out_by) = match role {
            Role::Caller => (Channel::ToCaller, Channel::ToService),
            Role::Service => (Channel::ToService, Channel::ToCaller),
        };
        let mut opening = Opening::new(Bytes::Vchan(channel.clone()), in_by);
        let hellos = async {
            opening.say_hello(out_by).await?;
            opening.next(|_| ()).await
        };
        match timeout(COMING, hellos).await {
            Ok(met) => met?,
            Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
        let (reading, writing) = opening.into_halves();
        Ok(Self { channel, hearing: Hearing::Messages(reading), saying: Saying::messages(writing) })
    }

    /// Sends what is last, and waits until it is read: libxenvchan loses what is in the ring when its server leaves.
    pub(super) async fn leave(mut self, exit: Option<i32>) {
        let leave = async {
            if let Some(exit) = exit {
                self.saying.exit(exit).await?;
            }
            poll_fn(|context| self.channel.borrow_mut().poll_until_read(context)).await?;
            Ok::<_, io::Error>(())
        };
        // An end that is gone needs no last word.
        let _ = timeout(LEAVING, leave).await;
    }
}

/// What a stock daemon's command asks for.
enum Command<'a> {
    Service(Wanted),
    Shell { user: Option<&'a str>, command: &'a str },
}

/// Reads `USER:COMMAND`, or `USER:QUBESRPC SERVICE+ARGUMENT SOURCE [keyword|name TARGET]`.
fn parse(command: &str) -> Result<Command<'_>, String> {
    let (user, command) = command.split_once(':').ok_or("a command without a user")?;
    let user = Some(user).filter(|user| *user != DEFAULT_USER);
    // What has no window is no different here.
    let command = command.strip_prefix("nogui:").unwrap_or(command);
    let Some(request) = command.strip_prefix("QUBESRPC ") else {
        return Ok(Command::Shell { user, command });
    };
    let mut words = request.split(' ');
    let service = Service::parse(words.next().unwrap_or_default()).map_err(|error| error.to_string())?;
    let source = words.next().filter(|source| !source.is_empty()).ok_or("a request without a source")?;
    let wish = match (words.next(), words.next()) {
        (None, _) => String::new(),
        (Some("keyword"), Some(target)) => format!("@{}", target.trim_start_matches('@')),
        (Some("name"), Some(target)) => target.to_owned(),
        (Some(_), _) => return Err("a request whose target is none".to_owned()),
    };
    Ok(Command::Service(Wanted {
        container: None,
        user: user.map(str::to_owned),
        service,
        source: source.to_owned(),
        wish,
    }))
}

/// Does what a stock daemon wants done, and tells its caller how that ended.
pub(super) async fn execute(shared: &Rc<Shared>, link: Link, command: &str, listens: bool) {
    let begin = Instant::now();
    let met = Plain::meet(shared, link, Role::Service).await;
    let (ended, plain) = match met {
        Ok(mut plain) => {
            let ended = match parse(command) {
                Ok(command) => perform(shared, command, listens, &mut plain).await,
                Err(reason) => Ended::problem(reason),
            };
            (ended, Some(plain))
        }
        Err(error) => (Ended::problem(error), None),
    };
    if let Some(mut plain) = plain {
        if listens {
            remote::say_ends(&mut plain.saying).await;
        }
        plain.leave(Some(ended.exit)).await;
    }
    shared.audit_end(None, command, &ended, begin);
}

async fn perform(shared: &Shared, command: Command<'_>, listens: bool, plain: &mut Plain) -> Ended {
    let opened = match command {
        Command::Service(wanted) => shared.open(&wanted).await,
        Command::Shell { user, command } => {
            if let Some(user) = shared.another_user(user) {
                // The starter runs services, and no command that somebody says.
                return Ended::problem(format!("it is to run as {user}, and is no service"));
            }
            let caller = Caller {
                source: crate::policy::DOM0.to_owned(),
                service: String::new(),
                argument: String::new(),
                wish: String::new(),
            };
            let (shell, arguments) = (OsStr::new("/bin/sh"), ["-l", "-c", command]);
            if !listens {
                // Nobody waits for it.
                let arguments = arguments.map(str::to_owned);
                tokio::task::spawn_local(async move {
                    let arguments = arguments.each_ref().map(String::as_str);
                    if let Err(error) = Program::run_alone(shell, &arguments, &caller).await {
                        super::complain(&format!("{}: {error}", arguments[2]));
                    }
                });
                return Ended::default();
            }
            Program::run(shell, &arguments, &caller)
                .map(|(program, pipes)| Opened::Program(program, Box::new(pipes)))
                .map_err(Ended::problem)
        }
    };
    match opened {
        Ok(opened) if listens => service::carry(opened, &mut plain.hearing, &mut plain.saying).await,
        Ok(opened) => {
            tokio::task::spawn_local(service::let_run(opened));
            Ended::default()
        }
        Err(ended) => ended,
    }
}
