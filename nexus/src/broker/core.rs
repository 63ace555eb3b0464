//! What the broker knows, and how it changes.

mod disposables;
mod ends;
mod notices;
mod recovered;
mod refusal;
mod requests;
mod starts;

use super::bucket::{self, Bucket};
use super::metrics::Metrics;
use super::ports::Ports;
use super::record::Record;
use crate::name::Name;
use crate::policy::{Current, DOM0, Principal, System};
use crate::wire::control::{CallId, Role};
use crate::wire::{Channel, Decoder, Message, Version, WireError};
use disposables::Disposable;
use notices::Noticed;
use recovered::Recovered;
use requests::{Request, Stage};
use serde::Serialize;
use starts::Start;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

pub use notices::Notice;

/// A control connection. Each has a number of its own: what is said of one that is no more is said of none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection(u64);

/// What is to be done outside of the broker.
#[derive(Debug, PartialEq)]
pub enum Effect {
    /// There is something to be sent: [`Broker::outgoing`].
    Wake(Connection),
    /// A connection is no more for the broker, and to be closed.
    Close(Connection, Parting),
    /// The user is to be asked: [`Broker::answered`].
    Ask(Asking),
    /// A disposable qube is to be made: [`Broker::made`].
    Make {
        /// What from.
        base: Name,
        /// Its name.
        name: Name,
    },
    /// A disposable qube is to be ended: [`Broker::unmade`].
    Destroy {
        /// Its name.
        name: Name,
    },
    /// A qube that does not run is to be started: [`Broker::started`].
    Start {
        /// Its name.
        name: Name,
    },
    /// The user is to be told.
    Notify(Notice),
    /// A line of the log of calls.
    Record(Record),
}

/// Why a connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Parting {
    /// The agent broke the protocol.
    #[error("{0}")]
    Breach(#[from] WireError),
    /// It does not read what it is sent.
    #[error("it does not read, and {0} bytes wait for it")]
    Full(usize),
    /// It said of more calls that they are open than a qube may have.
    #[error("it says of more than {0} calls that they are open")]
    Claims(usize),
    /// Another connection of the same domain took its place.
    #[error("another connection of the same domain took its place")]
    Replaced,
    /// Its domain is gone, or has another name.
    #[error("its domain is gone")]
    Gone,
}

/// A question for the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asking {
    /// Which call's.
    #[serde(skip)]
    pub call: CallId,
    /// Who calls.
    pub source: String,
    /// Whom it named.
    pub requested: String,
    /// What it wants.
    pub service: String,
    /// With which argument.
    pub argument: String,
    /// Whom it may be let call.
    pub targets: Vec<String>,
    /// Which of them policy proposes.
    pub default_target: Option<String>,
}

/// What bounds a broker.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Calls that a qube may have open, requests that are not decided among them.
    pub calls: usize,
    /// Whether there is somebody to ask.
    pub asks: bool,
    /// Whether there is somebody who tells the user.
    pub notifies: bool,
    /// How long a qube that is started may take until its agent says hello; none: no qube is started.
    pub start: Option<Duration>,
    /// As whom stock agents run services by default.
    pub default_user: String,
    /// What disposable qubes can be made from, and how long each may take until its agent says hello.
    pub disposables: BTreeMap<Name, Duration>,
    /// The same of templates that are declared and not among them; none: of such none can be made.
    pub declared_disposables: Option<Duration>,
}

/// Questions of one qube that wait for an answer: it is the user's time.
const ASKED: usize = 4;
/// Calls between two qubes of which the caller's end is no more, and the service goes on.
const LINGERING: usize = 256;
/// Bytes that may wait for an agent: answers to what it asked.
const ROOM: usize = 256 << 10;
/// Bytes beyond which no call of another qube's is added to them.
const ROOM_FOR_OTHERS: usize = 128 << 10;

/// A qube's agent.
#[derive(Debug)]
struct Agent {
    domain: u16,
    /// None: dom0's.
    name: Option<Name>,
    /// None while it is being read from.
    decoder: Option<Decoder>,
    /// From when it has said hello.
    version: Option<Version>,
    outgoing: Vec<u8>,
    bucket: Bucket,
    /// Its calls whose caller's end is open, and requests that are not decided.
    open: usize,
    asked: usize,
    /// Ends that it said are open, of calls before this broker.
    claims: usize,
    noticed: Noticed,
}

impl Agent {
    fn itself(&self) -> Principal {
        self.name.clone().map_or(Principal::AdminVm, Principal::Qube)
    }
}

/// Decides calls, and keeps account of them.
pub struct Broker {
    limits: Limits,
    policy: Box<dyn Fn() -> Current + Send>,
    /// What dom0 has configured.
    configured: System,
    /// Who runs.
    running: BTreeMap<Name, u16>,
    /// Both, and the disposables.
    system: System,
    agents: HashMap<Connection, Agent>,
    of_domain: HashMap<u16, Connection>,
    connections: u64,
    calls: HashMap<CallId, (Request, Stage)>,
    next_call: CallId,
    lingering: HashMap<(u16, u16), usize>,
    recovered: HashMap<(u16, CallId, Role), Recovered>,
    ports: Ports<Holder>,
    disposables: BTreeMap<Name, Disposable>,
    starts: BTreeMap<Name, Start>,
    effects: VecDeque<Effect>,
    metrics: Metrics,
}

/// Whose a port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Call(CallId),
    /// So many agents have said that it is in use.
    Recovered(u8),
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("agents", &self.agents)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl Broker {
    /// A broker that knows nobody yet. `seed` makes its calls' numbers others than those of the broker before it.
    pub fn new(limits: Limits, policy: impl Fn() -> Current + Send + 'static, seed: u32) -> Self {
        Self {
            limits,
            policy: Box::new(policy),
            configured: System::default(),
            running: BTreeMap::new(),
            system: System::default(),
            agents: HashMap::new(),
            of_domain: HashMap::new(),
            connections: 0,
            calls: HashMap::new(),
            next_call: u64::from(seed) << 32,
            lingering: HashMap::new(),
            recovered: HashMap::new(),
            ports: Ports::new(seed),
            disposables: BTreeMap::new(),
            starts: BTreeMap::new(),
            effects: VecDeque::new(),
            metrics: Metrics::default(),
        }
    }

    /// What there is to know of the qubes by dom0's configuration. Who runs is not taken from there.
    pub fn set_system(&mut self, system: System) {
        self.configured = system;
        self.combine();
    }

    /// Which domains there are besides dom0, by name.
    pub fn set_running(&mut self, running: BTreeMap<Name, u16>, now: Instant) {
        self.running = running;
        self.combine();
        let stale = |(connection, agent): (&Connection, &Agent)| {
            let same = agent.name.as_ref().is_none_or(|name| self.running.get(name) == Some(&agent.domain));
            (!same).then_some(*connection)
        };
        let stale: Vec<_> = self.agents.iter().filter_map(stale).collect();
        for connection in stale {
            self.close(connection, Parting::Gone, now);
        }
    }

    /// What decisions are made by, of the qubes.
    pub fn system(&self) -> &System {
        &self.system
    }

    fn combine(&mut self) {
        let mut system = self.configured.clone();
        system.within = None;
        for (name, disposable) in &self.disposables {
            if let Some(info) = disposable.info(&system) {
                system.qubes.insert(name.clone(), info);
            }
        }
        for (name, info) in &mut system.qubes {
            // A qube of another host is there as far as the way to it is.
            let way = if info.is_remote() { info.relayvm.as_ref() } else { Some(name) };
            info.running = name == DOM0 || way.is_some_and(|name| self.running.contains_key(name));
        }
        self.system = system;
    }

    /// An agent can be talked to. None: no such domain is known. A connection that its domain has already is closed.
    pub fn connected(&mut self, domain: u16, now: Instant) -> Option<Connection> {
        let name = match domain {
            0 => None,
            _ => Some(self.running.iter().find(|(_, running)| **running == domain)?.0.clone()),
        };
        if let Some(old) = self.of_domain.get(&domain) {
            self.close(*old, Parting::Replaced, now);
        }
        self.connections += 1;
        let connection = Connection(self.connections);
        self.of_domain.insert(domain, connection);
        self.agents.insert(
            connection,
            Agent {
                domain,
                name,
                decoder: Some(Decoder::new(Channel::FromAgent)),
                version: None,
                outgoing: Vec::new(),
                bucket: Bucket::new(now),
                open: 0,
                asked: 0,
                claims: 0,
                noticed: Noticed::new(now),
            },
        );
        Some(connection)
    }

    /// Bytes came from an agent.
    pub fn received(&mut self, connection: Connection, mut bytes: &[u8], now: Instant) {
        let Some(mut decoder) = self.agents.get_mut(&connection).and_then(|agent| agent.decoder.take())
        else {
            return;
        };
        loop {
            let result = match decoder.decode(&mut bytes) {
                Ok(None) => break,
                Ok(Some(frame)) => Message::parse(&frame).map_err(Parting::from),
                Err(error) => Err(error.into()),
            };
            let result = result.and_then(|message| self.message(connection, &message, now));
            if let Err(parting) = result {
                return self.close(connection, parting, now);
            }
            // What it was sent may have been too much.
            if !self.agents.contains_key(&connection) {
                return;
            }
        }
        if let Some(agent) = self.agents.get_mut(&connection) {
            agent.decoder = Some(decoder);
        }
    }

    fn message(
        &mut self,
        connection: Connection,
        message: &Message<'_>,
        now: Instant,
    ) -> Result<(), Parting> {
        let Some(agent) = self.agents.get_mut(&connection) else { return Ok(()) };
        agent.bucket.spend(bucket::MESSAGE, now);
        match message {
            Message::Hello(number) => {
                let version = Version::of_peer(*number)?.min(Channel::FromAgent.version());
                agent.version = Some(version);
                let domain = agent.domain;
                self.send(connection, &Message::Hello(version.number()), now);
                self.disposable_greeted(domain, now);
                self.start_done(domain, now);
            }
            Message::TriggerService(trigger) | Message::TriggerService3(trigger) => {
                self.request(connection, b"", trigger, now);
            }
            Message::TriggerService4(source, trigger) => self.request(connection, source.0, trigger, now),
            Message::ConnectionTerminated(link) => self.terminated(connection, *link, now),
            Message::Ended(ended) => self.ended(connection, ended, now),
            Message::Open(open) => self.recover(connection, open)?,
            // The decoder lets nothing else through in this direction.
            _ => {}
        }
        Ok(())
    }

    /// What is to be sent to an agent, all of it.
    pub fn outgoing(&mut self, connection: Connection) -> Vec<u8> {
        self.agents.get_mut(&connection).map_or_else(Vec::new, |agent| std::mem::take(&mut agent.outgoing))
    }

    /// How long nothing is to be read from an agent: it has had more than its share.
    pub fn wait(&mut self, connection: Connection, now: Instant) -> Duration {
        self.agents.get_mut(&connection).map_or(Duration::ZERO, |agent| agent.bucket.wait(now))
    }

    /// The agent hung up.
    pub fn disconnected(&mut self, connection: Connection, now: Instant) {
        self.forget(connection, now);
    }

    fn close(&mut self, connection: Connection, parting: Parting, now: Instant) {
        if self.agents.contains_key(&connection) {
            if !matches!(parting, Parting::Gone | Parting::Replaced) {
                self.metrics.broken += 1;
            }
            self.effects.push_back(Effect::Close(connection, parting));
            self.forget(connection, now);
        }
    }

    /// What a connection had goes with it, and the others are told.
    fn forget(&mut self, connection: Connection, now: Instant) {
        let Some(agent) = self.agents.remove(&connection) else { return };
        if self.of_domain.get(&agent.domain) == Some(&connection) {
            self.of_domain.remove(&agent.domain);
        }
        self.lose_calls(connection, agent.domain, now);
        if agent.version == Some(Version::Nexus) {
            let others: Vec<_> = self
                .agents
                .iter()
                .filter(|(_, other)| other.version == Some(Version::Nexus))
                .map(|(connection, _)| *connection)
                .collect();
            for other in others {
                self.send(other, &Message::Gone(agent.domain), now);
            }
        }
    }

    /// Sends what an agent has to get. One that has left too much unread is hung up on.
    fn send(&mut self, connection: Connection, message: &Message<'_>, now: Instant) {
        let Some(agent) = self.agents.get_mut(&connection) else { return };
        let was_empty = agent.outgoing.is_empty();
        // All that is sent was made of checked names, and fits.
        let encoded = message.encode(&mut agent.outgoing);
        debug_assert_eq!(encoded, Ok(()));
        let waiting = agent.outgoing.len();
        if waiting > ROOM {
            self.close(connection, Parting::Full(waiting), now);
        } else if was_empty {
            self.effects.push_back(Effect::Wake(connection));
        }
    }

    /// What is to be done now, in this order.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The figures.
    pub fn metrics(&self) -> Metrics {
        let policy_errors = match (self.policy)() {
            Current::Policy(_) => 0,
            Current::Wrong(errors) => errors.len().max(1),
        };
        let connections = self.agents.values().filter(|agent| agent.version.is_some()).count();
        let mut metrics = self.metrics.clone();
        metrics.open = self.calls.len() + self.recovered.len();
        metrics.connections = connections;
        metrics.policy_errors = policy_errors;
        metrics.disposables = self.disposables.len();
        metrics
    }

    /// Time has passed: what was waited for too long is ended. To be called about once a second.
    pub fn tick(&mut self, now: Instant) {
        self.overdue_disposables(now);
        self.overdue_starts(now);
    }
}
