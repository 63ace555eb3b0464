//! The broker at work, on one thread: connections to agents, and whatever else it wants done.

use super::attendant::{Order, Report};
use super::core::{Broker, Connection, Effect, Limits, Notice};
use super::domains::{Change, Domains};
use super::figures;
use super::log::Log;
use super::settings::Settings;
use crate::listen::listen;
use crate::name::Name;
use crate::policy::{Place, PolicyFolders, PolicyStore, System};
use crate::wire::CONTROL_PATH;
use crate::wire::control::CallId;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use vchan::{AsyncChannel, ConnectOptions, Hub};
use xen::{DomId, Platform, Xenstore};

/// What is read of an agent in one turn; then it is the turn of the others.
const TURN: usize = 4 << 10;
/// How long to wait before an agent is connected to once more; it doubles each time, up to the longest, while the
/// connections are short.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_AT_MOST: Duration = Duration::from_secs(10);
/// Readers of the figures at once, and how long each may take.
const READERS: usize = 16;
const READING: Duration = Duration::from_secs(5);
/// Notices that may wait for the user to be told.
const NOTICES: usize = 16;
/// How much longer than the user's time the attendant may take to tell what came of a question.
const ANSWERING: Duration = Duration::from_secs(5);

/// What has to be opened by somebody who may: devices, sockets, files.
pub struct Opened {
    settings: Settings,
    policy: PolicyStore,
    store: Arc<dyn Xenstore>,
    hub: Hub,
    log: Log,
    control: StdListener,
    metrics: StdListener,
    attendant: Option<StdStream>,
}

/// Why nexusd cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file, folder or socket.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The policy's files cannot be watched.
    #[error("the policy's files cannot be watched: {0}")]
    Policy(#[source] io::Error),
    /// Xen's devices, or xenstored.
    #[error("nexusd runs in dom0, on Xen: {0}")]
    Xen(#[from] xen::Error),
    /// The same.
    #[error("nexusd runs in dom0, on Xen: {0}")]
    Vchan(#[from] vchan::Error),
}

impl Opened {
    /// Opens everything. Sockets that were passed in (by systemd) are taken as they are. Without an attendant, nobody is
    /// asked or told, and no qube is made or started.
    ///
    /// # Errors
    /// As [`OpenError`] says. A wrong policy is none: it denies.
    pub fn new(
        settings: Settings,
        platform: impl Platform + 'static,
        control: Option<StdListener>,
        metrics: Option<StdListener>,
        attendant: Option<StdStream>,
    ) -> Result<Self, OpenError> {
        let socket = |passed: Option<StdListener>, path: &Path| {
            passed.map_or_else(|| restricted_socket(path), Ok).map_err(|source| at(path, source))
        };
        let control = socket(control, &settings.socket)?;
        let metrics = socket(metrics, &settings.metrics)?;
        let log = Log::open(settings.log.clone()).map_err(|source| at(&settings.log, source))?;
        let folders = PolicyFolders::of(settings.policy.iter().cloned());
        let policy = PolicyStore::open(folders).map_err(OpenError::Policy)?;
        let store = platform.xenstore()?;
        let hub = Hub::open(platform)?;
        // The devices of those who connect are opened with the first connector: that is now, while we may.
        hub.connector(DomId(1), CONTROL_PATH, &ConnectOptions::default())?;
        Ok(Self { settings, policy, store, hub, log, control, metrics, attendant })
    }
}

fn at(path: &Path, source: io::Error) -> OpenError {
    OpenError::File { path: path.display().to_string(), source }
}

/// A socket for root and for nexusd's own group, in a folder that is made if it is not there.
fn restricted_socket(path: &Path) -> io::Result<StdListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    listen(path, Some(0o660))
}

/// What one task tells that of a connection.
#[derive(Default)]
struct Line {
    notify: Notify,
    closed: Cell<bool>,
}

struct Daemon {
    broker: RefCell<Broker>,
    lines: RefCell<HashMap<Connection, Rc<Line>>>,
    log: RefCell<Log>,
    /// There may be lines to be written.
    logged: Notify,
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    settings: Settings,
    /// Notices that are not told yet.
    notices: Cell<usize>,
    /// Whom nexusd runs as: besides root, he may be dom0's agent.
    owner: Cell<u32>,
}

/// Serves calls until it is told to stop (`SIGTERM`, `SIGINT`), or xenstored is gone. `ready` is called when all that will
/// ever be needed is open, and before anything is heard of a qube: whatever is to be given up, it gives up.
///
/// # Errors
/// The runtime, xenstored, or what `ready` says.
pub fn serve(opened: Opened, ready: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(run(opened, ready)))
}

async fn run(opened: Opened, ready: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let Opened { settings, policy, store, hub, log, control, metrics, attendant } = opened;
    let patience = |how: &super::DisposableSettings| Duration::from_secs(how.seconds);
    let limits = Limits {
        calls: settings.calls,
        asks: attendant.is_some() && !settings.ask.is_empty(),
        notifies: attendant.is_some() && !settings.notify.is_empty(),
        start: (attendant.is_some() && !settings.start.is_empty())
            .then(|| Duration::from_secs(settings.start_seconds)),
        default_user: settings.default_user.clone(),
        disposables: if attendant.is_some() {
            settings.disposables.iter().map(|(base, how)| (base.clone(), patience(how))).collect()
        } else {
            BTreeMap::new()
        },
        declared_disposables: settings
            .declared_disposables
            .as_ref()
            .filter(|_| attendant.is_some())
            .map(patience),
    };
    let (seed, ..) = uuid::Uuid::new_v4().as_fields();
    let broker = Broker::new(limits, move || policy.current(), seed);
    let (orders, queue) = tokio::sync::mpsc::unbounded_channel();
    let daemon = Rc::new(Daemon {
        broker: RefCell::new(broker),
        lines: RefCell::default(),
        log: RefCell::new(log),
        logged: Notify::new(),
        orders,
        settings,
        notices: Cell::new(0),
        owner: Cell::new(0),
    });
    spawn_local(daemon.clone().keep_log());
    let mut file = SystemFile::default();
    file.look(&daemon);
    if let Some(attendant) = attendant {
        attendant.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(attendant)?.into_split();
        spawn_local(daemon.clone().order(queue, writer));
        spawn_local(daemon.clone().hear(reader));
    }
    control.set_nonblocking(true)?;
    spawn_local(daemon.clone().accept(UnixListener::from_std(control)?));
    metrics.set_nonblocking(true)?;
    spawn_local(daemon.clone().tell_figures(UnixListener::from_std(metrics)?));

    let mut domains = Domains::new(store)?;
    let mut agents = Agents { daemon: daemon.clone(), hub, kept: BTreeMap::new() };
    agents.follow(&domains.list()?);
    let (mut hang_up, mut terminate, mut interrupt) =
        (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Nothing was waited for: no task has run yet.
    ready()?;
    daemon.owner.set(rustix::process::geteuid().as_raw());
    loop {
        tokio::select! {
            change = domains.change() => match change? {
                Change::Domains => agents.follow(&domains.list()?),
                Change::Agent(domain) => agents.came(domain),
            },
            _ = second.tick() => {
                file.look(&daemon);
                daemon.turn(|broker, now| broker.tick(now));
            }
            _ = hang_up.recv() => {
                daemon.flush_log();
                match daemon.log.borrow_mut().reopen() {
                    Ok(()) => tracing::info!("the log of calls was opened anew"),
                    Err(error) => tracing::error!(%error, "the log of calls cannot be opened anew; the old one goes on"),
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

impl Daemon {
    /// One turn of the broker, and what comes of it.
    fn turn<T>(self: &Rc<Self>, turn: impl FnOnce(&mut Broker, Instant) -> T) -> T {
        let result = turn(&mut self.broker.borrow_mut(), Instant::now());
        loop {
            let Some(effect) = self.broker.borrow_mut().next_effect() else { break };
            self.effect(effect);
        }
        self.logged.notify_one();
        result
    }

    /// Writes the log behind the messages that the same turn sends: the tasks that send them were woken before this one.
    async fn keep_log(self: Rc<Self>) {
        loop {
            self.logged.notified().await;
            self.flush_log();
        }
    }

    fn flush_log(&self) {
        if let Err(error) = self.log.borrow_mut().flush() {
            tracing::error!(%error, "a line of the log of calls is lost");
        }
    }

    fn effect(self: &Rc<Self>, effect: Effect) {
        match effect {
            Effect::Wake(connection) => {
                if let Some(line) = self.lines.borrow().get(&connection) {
                    line.notify.notify_one();
                }
            }
            Effect::Close(connection, parting) => {
                tracing::warn!(?connection, reason = %parting, "an agent is hung up on");
                if let Some(line) = self.lines.borrow_mut().remove(&connection) {
                    line.closed.set(true);
                    line.notify.notify_one();
                }
            }
            Effect::Ask(asking) => {
                if let Some(order) = Order::ask(&asking) {
                    self.give(order);
                }
                self.time_out(asking.call);
            }
            Effect::Make { base, name } => {
                tracing::info!(%base, %name, "a disposable qube is made");
                self.give(Order::Make { base, name });
            }
            Effect::Destroy { name } => {
                tracing::info!(%name, "a disposable qube is ended");
                self.give(Order::Destroy { name });
            }
            Effect::Start { name } => {
                tracing::info!(%name, "a qube is started");
                self.give(Order::Start { name });
            }
            Effect::Notify(notice) => self.notify(&notice),
            Effect::Record(record) => self.log.borrow_mut().add(record),
        }
    }

    /// Has the user told, if the program keeps up.
    fn notify(&self, notice: &Notice) {
        if self.notices.get() == NOTICES {
            return tracing::warn!(
                call = notice.decision.call,
                "the user is not told of a call: too many notices wait"
            );
        }
        if let Some(order) = Order::notify(notice) {
            self.notices.set(self.notices.get() + 1);
            self.give(order);
        }
    }

    fn give(&self, order: Order) {
        // Without an attendant: what is not answered times out.
        let _ = self.orders.send(order);
    }

    async fn order(
        self: Rc<Self>,
        mut queue: tokio::sync::mpsc::UnboundedReceiver<Order>,
        mut writer: tokio::net::unix::OwnedWriteHalf,
    ) {
        while let Some(order) = queue.recv().await {
            let Ok(mut line) = serde_json::to_vec(&order) else { continue };
            line.push(b'\n');
            if let Err(error) = writer.write_all(&line).await {
                return tracing::error!(%error, "the attendant is gone: nobody is asked or told, and no qube is made or started");
            }
        }
    }

    async fn hear(self: Rc<Self>, reader: tokio::net::unix::OwnedReadHalf) {
        let mut lines = BufReader::new(reader).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            match serde_json::from_str(&line) {
                Ok(report) => self.reported(report),
                Err(error) => tracing::error!(%error, "the attendant says what it should not"),
            }
        }
        tracing::error!("the attendant is gone: nobody is asked or told, and no qube is made or started");
    }

    fn reported(self: &Rc<Self>, report: Report) {
        self.turn(|broker, now| match report {
            Report::Found { name, base } => broker.found_disposables([(name, base)], now),
            Report::Made { name, error } => broker.made(&name, error.map_or(Ok(()), Err), now),
            Report::Destroyed { name, error } => {
                if let Some(error) = error {
                    tracing::error!(%name, error, "a disposable qube could not be ended");
                }
                broker.unmade(&name);
            }
            Report::Started { name, error } => broker.started(&name, error.map_or(Ok(()), Err), now),
            Report::Notified => self.notices.set(self.notices.get().saturating_sub(1)),
            Report::Answered { call, target } => {
                let place = target.and_then(|target| Place::redirect(&target).ok());
                broker.answered(call, place.as_ref(), now);
            }
        });
    }

    /// Denies a question that nobody has answered in time.
    fn time_out(self: &Rc<Self>, call: CallId) {
        let daemon = self.clone();
        let patience = Duration::from_secs(self.settings.ask_seconds) + ANSWERING;
        spawn_local(async move {
            sleep(patience).await;
            daemon.turn(|broker, now| broker.answered(call, None, now));
        });
    }

    /// Speaks with an agent until either hangs up.
    async fn converse(self: &Rc<Self>, domain: u16, stream: impl AsyncRead + AsyncWrite) {
        let Some(connection) = self.turn(|broker, now| broker.connected(domain, now)) else { return };
        let line = Rc::new(Line::default());
        self.lines.borrow_mut().insert(connection, line.clone());
        // However it ends, by an abort too.
        let _leaving = Leaving { daemon: self, connection };
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut buffer = [0; TURN];
        let (mut waiting, mut written) = (Vec::new(), 0);
        while !line.closed.get() {
            if written == waiting.len() {
                waiting = self.broker.borrow_mut().outgoing(connection);
                written = 0;
            }
            let pause = self.broker.borrow_mut().wait(connection, Instant::now());
            tokio::select! {
                () = line.notify.notified() => {}
                result = writer.write(&waiting[written..]), if written < waiting.len() => match result {
                    Ok(0) | Err(_) => return,
                    Ok(sent) => written += sent,
                },
                result = reader.read(&mut buffer), if pause.is_zero() => match result {
                    Ok(0) | Err(_) => return,
                    Ok(read) => {
                        self.turn(|broker, now| broker.received(connection, &buffer[..read], now));
                        tokio::task::yield_now().await;
                    }
                },
                () = sleep(pause), if !pause.is_zero() => {}
            }
        }
    }

    /// dom0's own agent.
    async fn accept(self: Rc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    let peer = socket.peer_cred().map(|peer| peer.uid());
                    match peer {
                        Ok(uid) if uid == 0 || uid == self.owner.get() => {
                            let daemon = self.clone();
                            spawn_local(async move { daemon.converse(0, socket).await });
                        }
                        _ => tracing::warn!(?peer, "somebody who is not root wants to be dom0's agent"),
                    }
                }
                // No descriptors, or the other has gone: others come.
                Err(_) => sleep(AGAIN).await,
            }
        }
    }

    async fn tell_figures(self: Rc<Self>, listener: UnixListener) {
        let readers = Arc::new(Semaphore::new(READERS));
        loop {
            let Ok(permit) = readers.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, _)) => {
                    let daemon = self.clone();
                    spawn_local(async move {
                        let text = || daemon.broker.borrow().metrics().text();
                        // Who does not read them does not get them.
                        let _ = timeout(READING, figures::answer(socket, text)).await;
                        drop(permit);
                    });
                }
                Err(_) => sleep(AGAIN).await,
            }
        }
    }
}

/// A conversation that is over, for the broker.
struct Leaving<'d> {
    daemon: &'d Rc<Daemon>,
    connection: Connection,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.daemon.lines.borrow_mut().remove(&self.connection);
        self.daemon.turn(|broker, now| broker.disconnected(self.connection, now));
    }
}

/// The agents of the domains that there are.
struct Agents {
    daemon: Rc<Daemon>,
    hub: Hub,
    kept: BTreeMap<u16, Kept>,
}

/// A task that connects to an agent, again and again.
struct Kept {
    came: Rc<Notify>,
    task: AbortHandle,
}

impl Agents {
    /// These domains there are now.
    fn follow(&mut self, running: &BTreeMap<Name, u16>) {
        self.daemon.turn(|broker, now| broker.set_running(running.clone(), now));
        self.kept.retain(|domain, kept| {
            let runs = running.values().any(|running| running == domain);
            if !runs {
                kept.task.abort();
            }
            runs
        });
        for (name, domain) in running {
            if !self.kept.contains_key(domain) {
                let came = Rc::new(Notify::new());
                let (daemon, hub) = (self.daemon.clone(), self.hub.clone());
                let task = spawn_local(keep(daemon, hub, name.clone(), *domain, came.clone())).abort_handle();
                self.kept.insert(*domain, Kept { came, task });
            }
        }
    }

    fn came(&self, domain: u16) {
        if let Some(kept) = self.kept.get(&domain) {
            kept.came.notify_one();
        }
    }
}

/// Connects to an agent whenever there is one.
async fn keep(daemon: Rc<Daemon>, hub: Hub, name: Name, domain: u16, came: Rc<Notify>) {
    // Qubes' libvchan takes its keys away when we have come. That the domain is gone, xenstored tells us.
    let options = ConnectOptions { server_keeps_keys: false, ..ConnectOptions::default() };
    let mut pause = AGAIN;
    loop {
        let begin = Instant::now();
        let connected = hub
            .connect(DomId(domain), CONTROL_PATH, &options)
            .map_err(io::Error::from)
            .and_then(AsyncChannel::new);
        match connected {
            Ok(channel) => {
                tracing::info!(%name, domain, "connected to an agent");
                daemon.converse(domain, channel).await;
                tracing::info!(%name, domain, "an agent is gone");
            }
            Err(error) => {
                tracing::debug!(%name, domain, %error, "there is no agent yet");
                came.notified().await;
            }
        }
        if begin.elapsed() > AGAIN_AT_MOST {
            pause = AGAIN;
        }
        sleep(pause).await;
        pause = (pause * 2).min(AGAIN_AT_MOST);
    }
}

/// The file that says what there is to know of the qubes.
#[derive(Default)]
struct SystemFile {
    /// Of what was read last: when it was changed, its size and its inode.
    seen: Option<Option<(SystemTime, u64, u64)>>,
}

impl SystemFile {
    /// Reads it, if it is not what was read last. While it is wrong there are no qubes, and all calls are denied.
    fn look(&mut self, daemon: &Rc<Daemon>) {
        let path = &daemon.settings.system;
        let state = fs::metadata(path)
            .ok()
            .and_then(|found| Some((found.modified().ok()?, found.len(), found.ino())));
        if self.seen == Some(state) {
            return;
        }
        self.seen = Some(state);
        let read = fs::read(path).and_then(|text| Ok(serde_json::from_slice::<System>(&text)?));
        let system = read.unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "no qube is known, and all calls are denied");
            System::default()
        });
        daemon.turn(|broker, _| broker.set_system(system));
    }
}
