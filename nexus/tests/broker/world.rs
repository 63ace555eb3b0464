//! A broker with agents around it, in memory.

use nexus::broker::{
    Asking, Broker, Connection, DecisionRecord, Effect, EndRecord, Limits, Notice, Outcome, Parting, Record,
};
use nexus::name::Name;
use nexus::policy::{Current, Policy, System, rules};
use nexus::wire::control::Failure;
use nexus::wire::{Channel, Decoder, Ident, Link, Message, Source, Trigger};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) const NEXUS: u32 = 0x4e58_0001;
pub(crate) const WORK: u16 = 1;
pub(crate) const VAULT: u16 = 2;
pub(crate) const UNTRUSTED: u16 = 3;

pub(crate) const POLICY: &str = "\
test.Allowed   *  work           vault      allow
test.User      *  work           vault      allow user=root
test.Redirect  *  work           @default   allow target=vault
test.Disp      *  work           @dispvm    allow
test.Ask       *  work           @anyvm     ask default_target=vault
test.Dom0      *  work           @adminvm   allow
test.FromDom0  *  dom0           vault      allow
test.Container *  work:mail      vault:gpg  allow
test.Container *  work           vault:gpg  deny
test.ToMail    *  vault          work:mail  allow
test.Remote    *  far            vault      allow
test.Denied    *  *              *          deny
test.Both      *  @anyvm         @anyvm     allow
";

pub(crate) fn system() -> System {
    serde_json::from_str(
        r#"{ "qubes": {
            "work": { "type": "AppVM", "default_dispvm": "dvm", "containers": ["mail", "web"] },
            "vault": { "type": "AppVM", "containers": ["gpg"] },
            "untrusted": { "type": "AppVM", "containers": ["mail"] },
            "asleep": { "type": "AppVM" },
            "far": { "type": "RemoteVM", "relayvm": "untrusted", "transport_rpc": "test.Relay" },
            "farther": { "type": "RemoteVM", "relayvm": "untrusted" },
            "dvm": { "type": "AppVM", "template_for_dispvms": true, "containers": ["web"] }
        } }"#,
    )
    .unwrap()
}

/// What an agent was sent, with its strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Got {
    Hello(u32),
    Connect { domain: u16, port: u32, ident: String },
    Exec { domain: u16, port: u32, command: String },
    Refused(String),
    Failed(String, Failure),
    Join { call: u64, domain: u16, port: Option<u32>, ident: String },
    Run { call: u64, domain: u16, port: Option<u32>, words: [String; 5] },
    Gone(u16),
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn got(message: &Message<'_>) -> Got {
    match message {
        Message::Hello(number) => Got::Hello(*number),
        Message::ServiceConnect(link, ident) => {
            Got::Connect { domain: link.domain, port: link.port, ident: ident.to_string() }
        }
        Message::ExecCmdline(execute) => {
            Got::Exec { domain: execute.link.domain, port: execute.link.port, command: text(execute.command) }
        }
        Message::ServiceRefused(ident) => Got::Refused(ident.to_string()),
        Message::Failed(ident, failure) => Got::Failed(ident.to_string(), *failure),
        Message::Join(join) => Got::Join {
            call: join.call,
            domain: join.via.domain,
            port: join.via.port,
            ident: join.ident.to_string(),
        },
        Message::Run(run) => Got::Run {
            call: run.call,
            domain: run.via.domain,
            port: run.via.port,
            words: [run.container, run.user, run.service, run.source, run.wish].map(text),
        },
        Message::Gone(domain) => Got::Gone(*domain),
        other => panic!("{other:?} to an agent"),
    }
}

pub(crate) struct World {
    pub(crate) broker: Broker,
    pub(crate) now: Instant,
    pub(crate) running: BTreeMap<Name, u16>,
    agents: BTreeMap<u16, (Connection, Decoder, Vec<Got>)>,
    pub(crate) closed: Vec<(u16, Parting)>,
    pub(crate) decisions: Vec<DecisionRecord>,
    pub(crate) ends: Vec<EndRecord>,
    pub(crate) asked: Vec<Asking>,
    pub(crate) made: Vec<(Name, Name)>,
    pub(crate) destroyed: Vec<Name>,
    pub(crate) started: Vec<Name>,
    pub(crate) notices: Vec<Notice>,
}

pub(crate) fn limits() -> Limits {
    Limits {
        calls: 10,
        asks: true,
        notifies: true,
        start: Some(Duration::from_secs(60)),
        default_user: "user".to_owned(),
        disposables: BTreeMap::from([(Name::new("dvm").unwrap(), Duration::from_secs(60))]),
        declared_disposables: None,
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(limits(), 7)
    }

    pub(crate) fn with(limits: Limits, seed: u32) -> Self {
        Self::with_policy(limits, seed, POLICY)
    }

    pub(crate) fn with_policy(limits: Limits, seed: u32, policy: &str) -> Self {
        let policy = Arc::new(Policy::new(rules(policy, "30-test.policy").unwrap()));
        let mut world = Self {
            broker: Broker::new(limits, move || Current::Policy(policy.clone()), seed),
            now: Instant::now(),
            running: BTreeMap::new(),
            agents: BTreeMap::new(),
            closed: Vec::new(),
            decisions: Vec::new(),
            ends: Vec::new(),
            asked: Vec::new(),
            made: Vec::new(),
            destroyed: Vec::new(),
            started: Vec::new(),
            notices: Vec::new(),
        };
        world.broker.set_system(system());
        for (name, domain) in [("work", WORK), ("vault", VAULT), ("untrusted", UNTRUSTED)] {
            world.running.insert(Name::new(name).unwrap(), domain);
        }
        world.broker.set_running(world.running.clone(), world.now);
        world
    }

    /// A domain is there, too.
    pub(crate) fn start(&mut self, name: &Name, domain: u16) {
        self.running.insert(name.clone(), domain);
        self.broker.set_running(self.running.clone(), self.now);
    }

    /// An agent connects, and has said nothing yet.
    pub(crate) fn connect(&mut self, domain: u16) {
        let connection = self.broker.connected(domain, self.now).expect("a domain that runs");
        self.settle();
        self.agents.insert(domain, (connection, Decoder::new(Channel::ToAgent), Vec::new()));
    }

    /// An agent connects, and says hello with this number.
    pub(crate) fn agent(&mut self, domain: u16, number: u32) {
        self.connect(domain);
        self.say(domain, &Message::Hello(number));
        self.deliver(domain);
        let hello = self.agents.get_mut(&domain).expect("an agent").2.remove(0);
        let answer = if number < NEXUS { number.min(4) } else { NEXUS };
        assert_eq!(hello, Got::Hello(answer));
    }

    pub(crate) fn hang_up(&mut self, domain: u16) {
        let (connection, ..) = self.agents.remove(&domain).expect("an agent");
        self.broker.disconnected(connection, self.now);
        self.settle();
    }

    pub(crate) fn say(&mut self, domain: u16, message: &Message<'_>) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        self.say_bytes(domain, &bytes);
    }

    pub(crate) fn say_bytes(&mut self, domain: u16, bytes: &[u8]) {
        let Some((connection, ..)) = self.agents.get(&domain) else { return };
        self.broker.received(*connection, bytes, self.now);
        self.settle();
    }

    /// A request in the words of that agent's version.
    pub(crate) fn request(
        &mut self,
        domain: u16,
        version: u32,
        ident: &str,
        source: &str,
        target: &str,
        service: &str,
    ) {
        let trigger = Trigger {
            ident: Ident::new(ident.as_bytes()).unwrap(),
            target: target.as_bytes(),
            service: service.as_bytes(),
        };
        let message = match version {
            2 => Message::TriggerService(trigger),
            3 => Message::TriggerService3(trigger),
            _ => Message::TriggerService4(Source(source.as_bytes()), trigger),
        };
        self.say(domain, &message);
    }

    /// What an agent was sent since it was last asked.
    pub(crate) fn heard(&mut self, domain: u16) -> Vec<Got> {
        self.deliver(domain);
        self.agents.get_mut(&domain).map_or_else(Vec::new, |agent| std::mem::take(&mut agent.2))
    }

    fn deliver(&mut self, domain: u16) {
        let Some((connection, decoder, heard)) = self.agents.get_mut(&domain) else { return };
        let bytes = self.broker.outgoing(*connection);
        let mut input = &bytes[..];
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            heard.push(got(&Message::parse(&frame).unwrap()));
        }
    }

    /// Has the effects take effect. Nobody reads by itself.
    pub(crate) fn settle(&mut self) {
        while let Some(effect) = self.broker.next_effect() {
            match effect {
                Effect::Wake(_) => {}
                Effect::Close(connection, parting) => {
                    let domain =
                        *self.agents.iter().find(|(_, agent)| agent.0 == connection).expect("an agent").0;
                    self.agents.remove(&domain);
                    self.closed.push((domain, parting));
                }
                Effect::Ask(asking) => self.asked.push(asking),
                Effect::Make { base, name } => self.made.push((base, name)),
                Effect::Destroy { name } => self.destroyed.push(name),
                Effect::Start { name } => self.started.push(name),
                Effect::Notify(notice) => self.notices.push(notice),
                Effect::Record(Record::Decision(decision)) => self.decisions.push(decision),
                Effect::Record(Record::End(end)) => self.ends.push(end),
            }
        }
    }

    pub(crate) fn tick(&mut self, passed: Duration) {
        self.now += passed;
        self.broker.tick(self.now);
        self.settle();
    }

    pub(crate) fn last(&self) -> &DecisionRecord {
        self.decisions.last().expect("a decision")
    }

    #[track_caller]
    pub(crate) fn refused(&mut self, domain: u16, ident: &str, outcome: Outcome, reason: &str) {
        match self.heard(domain).as_slice() {
            [Got::Refused(found) | Got::Failed(found, _)] => assert_eq!(found, ident),
            other => panic!("{other:?}"),
        }
        let last = self.last();
        assert_eq!(last.verdict, outcome, "{last:?}");
        assert!(last.reason.as_ref().is_some_and(|found| found.contains(reason)), "{last:?}");
    }

    pub(crate) fn patience(&mut self, domain: u16) -> Duration {
        let connection = self.agents[&domain].0;
        self.broker.wait(connection, self.now)
    }
}

pub(crate) fn terminated(domain: u16, port: u32) -> Message<'static> {
    Message::ConnectionTerminated(Link { domain, port })
}
