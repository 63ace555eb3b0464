//! A request, until both agents know of the call that comes of it.

use super::refusal::Refusal;
use super::{ASKED, Agent, Asking, Broker, Connection, Effect, Holder, LINGERING, ROOM_FOR_OTHERS};
use crate::broker::bucket;
use crate::broker::metrics::micros;
use crate::broker::record::{DecisionRecord, Outcome, Record};
use crate::name::Name;
use crate::policy::{Allowed, Call, DOM0, Decision, Denial, Place, Principal, Qube, Service, Verdict};
use crate::wire::control::{CallId, Failure, Join, Run, Via};
use crate::wire::{Execute, Ident, Link, Message, Trigger, Version};
use std::time::{Duration, Instant};

/// What an agent asked for.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) connection: Connection,
    /// The domain of that connection.
    pub(super) domain: u16,
    ident: Ident,
    pub(super) source: Principal,
    /// Whom the caller named.
    wish: String,
    pub(super) service: Service,
    /// What its relay is asked for, if it goes to another host.
    relayed: Option<Service>,
    rule: Option<String>,
    notify: bool,
    asked: bool,
    took: Duration,
}

/// How far a call is.
#[derive(Debug)]
pub(super) enum Stage {
    /// The user is asked.
    Asked(Decision),
    /// It waits for a disposable qube.
    Waiting { disposable: Name, allowed: Allowed },
    /// It waits for a qube that is being started.
    Starting { qube: Name, allowed: Allowed },
    /// Both agents know of it.
    Open(Ends),
}

/// The two ends of a call.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) service: Connection,
    pub(super) service_domain: u16,
    pub(super) to: Place,
    pub(super) port: Option<u32>,
    pub(super) caller_open: bool,
    pub(super) service_open: bool,
    pub(super) began: Instant,
    pub(super) exit: Option<i32>,
    pub(super) bytes: Option<(u64, u64)>,
    pub(super) reason: Option<&'static str>,
    pub(super) disposable: Option<Name>,
}

/// Where a place is.
enum Where {
    Domain {
        domain: u16,
        container: Option<Name>,
    },
    Disposable(Name),
    /// It does not run, or not yet.
    Asleep(Name),
}

impl Broker {
    pub(super) fn request(
        &mut self,
        connection: Connection,
        claim: &[u8],
        trigger: &Trigger<'_>,
        now: Instant,
    ) {
        let begin = Instant::now();
        let Some(agent) = self.agents.get(&connection) else { return };
        let itself = agent.itself();
        let domain = agent.domain;
        let full = agent.open >= self.limits.calls;
        let understood = self.caller(agent, claim).and_then(|source| {
            let target = trigger.target().map_err(|error| error.to_string())?;
            let service = trigger.service().map_err(|error| error.to_string())?;
            Ok((source, target, service))
        });
        let id = self.number_call();
        let (source, target, service) = match understood {
            Ok(understood) => understood,
            Err(reason) => {
                return self.refuse_unknown(id, connection, itself, trigger, reason, begin, now);
            }
        };
        let call = Call { source: source.clone(), target, service };
        let wish = call.target.as_ref().map_or_else(|| "@default".to_owned(), ToString::to_string);
        let mut request = Request {
            connection,
            domain,
            ident: trigger.ident,
            source,
            wish,
            service: call.service.clone(),
            relayed: None,
            rule: None,
            notify: true,
            asked: false,
            took: Duration::ZERO,
        };
        if let Some(agent) = self.agents.get_mut(&connection) {
            agent.open += 1;
        }
        if full {
            let reason = format!("{} calls of this qube are open, and no more may be", self.limits.calls);
            return self.refuse(id, &request, None, Refusal::failed(Failure::Limit, reason), now);
        }
        let decision = (self.policy)().decide(&call, &self.system);
        request.rule = decision.rule.as_ref().map(ToString::to_string);
        request.notify = decision.notify;
        request.took = begin.elapsed();
        match &decision.verdict {
            Verdict::Allow(allowed) => {
                let allowed = allowed.clone();
                self.begin(id, request, allowed, now);
            }
            Verdict::Deny(denial) => {
                let refusal = Refusal::denied(denial, decision.rule.is_some());
                self.refuse(id, &request, None, refusal, now);
            }
            Verdict::Ask(question) => {
                request.asked = true;
                let waiting = self.agents.get(&connection).map_or(0, |agent| agent.asked);
                let reason = match waiting {
                    _ if !self.limits.asks => "the rule asks, and there is no program that could",
                    ASKED.. => "the user is being asked enough on behalf of this qube",
                    _ => {
                        let asking = Asking {
                            call: id,
                            source: request.source.to_string(),
                            requested: request.wish.clone(),
                            service: request.service.name().to_string(),
                            argument: request.service.argument().to_owned(),
                            targets: question.targets.iter().map(ToString::to_string).collect(),
                            default_target: question.proposed.as_ref().map(ToString::to_string),
                        };
                        if let Some(agent) = self.agents.get_mut(&connection) {
                            agent.asked += 1;
                        }
                        self.calls.insert(id, (request, Stage::Asked(decision)));
                        return self.effects.push_back(Effect::Ask(asking));
                    }
                };
                self.refuse(id, &request, None, Refusal::unasked(reason), now);
            }
        }
    }

    fn number_call(&mut self) -> CallId {
        let id = self.next_call;
        // The upper half stays.
        self.next_call = id & !0xffff_ffff | u64::from((id as u32).wrapping_add(1));
        id
    }

    /// Who an agent says it asks for, if it may ask for that one: its qube or dom0, a container in it, or a qube that it relays for.
    fn caller(&self, agent: &Agent, claim: &[u8]) -> Result<Principal, String> {
        let own = agent.itself();
        if claim.is_empty() {
            return Ok(own);
        }
        let text = String::from_utf8_lossy(claim);
        let claimed = Principal::parse(&text).map_err(|error| error.to_string())?;
        let source = self.by_own_name(agent.name.as_ref(), claimed);
        if source == own {
            return Ok(source);
        }
        let good = match &source {
            Principal::AdminVm => false,
            Principal::Container { .. } => {
                source.qube_name() == own.qube_name() && agent.version == Some(Version::Nexus)
            }
            Principal::Qube(name) => {
                let relay = self.system.qubes.get(name).and_then(|info| info.relayvm.as_ref());
                relay.is_some() && relay == agent.name.as_ref()
            }
        };
        if good { Ok(source) } else { Err(format!("{own} calls in the name of {source}")) }
    }

    /// Answered by the user; `None`: not at all, or with nothing that is a target.
    pub fn answered(&mut self, call: CallId, answer: Option<&Place>, now: Instant) {
        if !matches!(self.calls.get(&call), Some((_, Stage::Asked(_)))) {
            // The caller has gone meanwhile.
            return;
        }
        let Some((request, Stage::Asked(decision))) = self.calls.remove(&call) else { return };
        if let Some(agent) = self.agents.get_mut(&request.connection) {
            agent.asked -= 1;
        }
        match decision.answered(answer).verdict {
            Verdict::Allow(allowed) => self.begin(call, request, allowed, now),
            Verdict::Deny(denial) => {
                self.refuse(call, &request, None, Refusal::denied(&denial, true), now);
            }
            // An answered question is none.
            Verdict::Ask(_) => {
                self.refuse(call, &request, None, Refusal::denied(&Denial::Refused, true), now);
            }
        }
    }

    /// A call that is allowed: goes on at once, or when its qube is there.
    pub(super) fn begin(&mut self, id: CallId, mut request: Request, allowed: Allowed, now: Instant) {
        let found = self.relayed(&allowed, &request.service).and_then(|relayed| {
            let Some((relay, service)) = relayed else { return self.find(&allowed.target) };
            request.relayed = Some(service);
            self.find(&Place::Qube(Qube::Name(relay)))
        });
        match found {
            Ok(Where::Domain { domain, container }) => {
                self.open(id, request, &allowed, domain, container, None, now);
            }
            Ok(Where::Disposable(base)) => match self.make(id, &base, now) {
                Ok(disposable) => {
                    self.calls.insert(id, (request, Stage::Waiting { disposable, allowed }));
                }
                Err(refusal) => self.refuse(id, &request, Some(&allowed.target), refusal, now),
            },
            Ok(Where::Asleep(qube)) => self.start(id, request, allowed, &qube, now),
            Err(refusal) => self.refuse(id, &request, Some(&allowed.target), refusal, now),
        }
    }

    /// A call to a qube of another host goes to its relay, as a call of the relay's `transport_rpc` with all of the request
    /// in its argument (qrexec's doc/qrexec-remotevm.rst): which relay, and which service.
    fn relayed(&self, allowed: &Allowed, service: &Service) -> Result<Option<(Name, Service)>, Refusal> {
        let target = &allowed.target;
        let name = match target {
            Place::Qube(Qube::Name(name)) | Place::Container { qube: name, .. } => name,
            _ => return Ok(None),
        };
        let Some(info) = self.system.qubes.get(name).filter(|info| info.is_remote()) else { return Ok(None) };
        let fail = |reason: String| Err(Refusal::failed(Failure::Problem, reason));
        if allowed.user.is_some() {
            return fail(format!("{target} is on another host, where nobody heeds user= of this policy"));
        }
        let here = |relay: &&Name| self.system.qubes.get(*relay).is_some_and(|info| !info.is_remote());
        let relay = info.relayvm.as_ref().filter(here);
        let (Some(relay), Some(transport), Place::Qube(_)) = (relay, &info.transport_rpc, target) else {
            return fail(format!(
                "{target} is on another host, and there is no relayvm and transport_rpc to it"
            ));
        };
        match Service::parse(&format!("{transport}+{name}+{service}")) {
            Ok(service) => Ok(Some((relay.clone(), service))),
            Err(error) => fail(format!("{target} is on another host: {error}")),
        }
    }

    fn find(&self, place: &Place) -> Result<Where, Refusal> {
        let in_qube = |qube: &Name, container| match self.running.get(qube) {
            Some(domain) if !self.is_coming(qube) => Where::Domain { domain: *domain, container },
            _ => Where::Asleep(qube.clone()),
        };
        match place {
            Place::AdminVm => Ok(Where::Domain { domain: 0, container: None }),
            Place::Qube(Qube::Name(name)) => Ok(in_qube(name, None)),
            Place::Container { qube, container } if qube == DOM0 => {
                Ok(Where::Domain { domain: 0, container: Some(container.clone()) })
            }
            Place::Container { qube, container } => Ok(in_qube(qube, Some(container.clone()))),
            Place::DispVmOf(Qube::Name(base)) => Ok(Where::Disposable(base.clone())),
            // Decisions name qubes by their names.
            Place::Qube(_) | Place::DispVm | Place::DispVmOf(_) => {
                Err(Refusal::failed(Failure::NoTarget, format!("{place} is nowhere")))
            }
        }
    }

    /// Tells both agents.
    #[allow(clippy::too_many_arguments, reason = "what a call consists of")]
    pub(super) fn open(
        &mut self,
        id: CallId,
        request: Request,
        allowed: &Allowed,
        domain: u16,
        container: Option<Name>,
        disposable: Option<Name>,
        now: Instant,
    ) {
        let to = &allowed.target;
        let told = self.tell(id, &request, allowed, domain, container.as_ref(), now);
        let (service, port) = match told {
            Ok(told) => told,
            Err(refusal) => {
                if let Some(name) = disposable {
                    self.end_disposable(&name);
                }
                return self.refuse(id, &request, Some(to), refusal, now);
            }
        };
        let place = match &disposable {
            Some(name) => Place::Qube(Qube::Name(name.clone())),
            None => to.clone(),
        };
        self.decided(id, &request, Outcome::Allow, Some(&place), None, now);
        let via = Via { domain, port };
        let caller = request.connection;
        let stock = self.agents.get(&caller).is_some_and(|agent| agent.version != Some(Version::Nexus));
        let message = match port {
            Some(port) if stock => Message::ServiceConnect(Link { domain, port }, request.ident),
            _ => Message::Join(Join { call: id, via, ident: request.ident }),
        };
        let ends = Ends {
            service,
            service_domain: domain,
            to: place,
            port,
            caller_open: true,
            service_open: true,
            began: now,
            exit: None,
            bytes: None,
            reason: None,
            disposable,
        };
        self.calls.insert(id, (request, Stage::Open(ends)));
        // Last: should the caller be hung up on for it, the call is there to be lost.
        self.send(caller, &message, now);
    }

    /// Tells the target's agent, if there is a way to it.
    fn tell(
        &mut self,
        id: CallId,
        request: &Request,
        allowed: &Allowed,
        domain: u16,
        container: Option<&Name>,
        now: Instant,
    ) -> Result<(Connection, Option<u32>), Refusal> {
        let to = &allowed.target;
        let fail = |failure, reason| Err(Refusal::failed(failure, reason));
        if domain == request.domain {
            return fail(Failure::NoTarget, format!("{to} is in the domain that calls"));
        }
        let service = self.of_domain.get(&domain).copied();
        let agent = service.and_then(|connection| self.agents.get(&connection));
        let (Some(service), Some(agent), Some(version)) = (service, agent, agent.and_then(|a| a.version))
        else {
            return fail(Failure::NoAgent, format!("{to} runs, but its agent does not answer"));
        };
        // One message more is not more than there is room for: the target is not hung up on for what others want of it.
        if agent.outgoing.len() > ROOM_FOR_OTHERS {
            return fail(Failure::NoAgent, format!("the agent of {to} does not read"));
        }
        if container.is_some() && version != Version::Nexus {
            return fail(Failure::Problem, format!("{to} has a stock agent, which knows no containers"));
        }
        if container.is_some() && allowed.user.is_some() {
            let reason =
                format!("{to} is a container, whose services run as it says, and the rule has user=");
            return fail(Failure::Problem, reason);
        }
        if self.lingering.get(&(request.domain, domain)).is_some_and(|count| *count >= LINGERING) {
            return fail(Failure::Limit, format!("{LINGERING} calls to {to} go on without their callers"));
        }
        let caller = self.agents.get(&request.connection).and_then(|agent| agent.version);
        let port = if version == Version::Nexus && caller == Some(Version::Nexus) {
            None
        } else {
            let port = self.ports.allot(request.domain, domain, Holder::Call(id));
            let taken = || format!("all ports for data between the caller and {to} are in use");
            Some(port.ok_or_else(|| Refusal::failed(Failure::Limit, taken()))?)
        };
        let source = request.source.to_string();
        let called = request.relayed.as_ref().unwrap_or(&request.service).to_string();
        match port {
            Some(port) if version != Version::Nexus => {
                let user = allowed.user.as_deref().unwrap_or(&self.limits.default_user);
                // Only dom0's services are told whom the caller named.
                let wish = match (domain, request.wish.strip_prefix('@')) {
                    (0, Some(keyword)) => format!(" keyword {keyword}"),
                    (0, None) => format!(" name {}", request.wish),
                    _ => String::new(),
                };
                let command = format!("{user}:QUBESRPC {called} {source}{wish}");
                let link = Link { domain: request.domain, port };
                let execute = Execute { link, command: command.as_bytes() };
                self.send(service, &Message::ExecCmdline(execute), now);
            }
            port => {
                let run = Run {
                    call: id,
                    via: Via { domain: request.domain, port },
                    container: container.map_or(b"", |name| name.as_str().as_bytes()),
                    user: allowed.user.as_deref().unwrap_or_default().as_bytes(),
                    service: called.as_bytes(),
                    source: source.as_bytes(),
                    wish: request.wish.as_bytes(),
                };
                self.send(service, &Message::Run(run), now);
            }
        }
        Ok((service, port))
    }

    /// Tells the agent that its request came to nothing. Only those of ours can be told why.
    pub(super) fn refuse(
        &mut self,
        id: CallId,
        request: &Request,
        to: Option<&Place>,
        refusal: Refusal,
        now: Instant,
    ) {
        let Refusal { outcome, reason, failure } = refusal;
        self.decided(id, request, outcome, to, Some(reason), now);
        let mut message = Message::ServiceRefused(request.ident);
        if let Some(agent) = self.agents.get_mut(&request.connection) {
            agent.open -= 1;
            agent.bucket.spend(bucket::REFUSED, now);
            if let Some(failure) = failure.filter(|_| agent.version == Some(Version::Nexus)) {
                message = Message::Failed(request.ident, failure);
            }
        }
        self.send(request.connection, &message, now);
    }

    /// The same for a request that is none.
    #[allow(clippy::too_many_arguments, reason = "what is known of it")]
    fn refuse_unknown(
        &mut self,
        id: CallId,
        connection: Connection,
        source: Principal,
        trigger: &Trigger<'_>,
        reason: String,
        begin: Instant,
        now: Instant,
    ) {
        let took = begin.elapsed();
        self.metrics.decided(Outcome::Deny, took);
        let shown = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            crate::name::shown(&text)
        };
        let decision = DecisionRecord {
            call: call_number(id),
            source: source.to_string(),
            target: shown(trigger.target),
            service: shown(trigger.service),
            verdict: Outcome::Deny,
            to: None,
            reason: Some(reason),
            rule: None,
            asked: false,
            notify: true,
            microseconds: micros(took),
        };
        self.notify(connection, &decision, now);
        self.effects.push_back(Effect::Record(Record::Decision(decision)));
        if let Some(agent) = self.agents.get_mut(&connection) {
            agent.bucket.spend(bucket::REFUSED, now);
        }
        self.send(connection, &Message::ServiceRefused(trigger.ident), now);
    }

    pub(super) fn decided(
        &mut self,
        id: CallId,
        request: &Request,
        verdict: Outcome,
        to: Option<&Place>,
        reason: Option<String>,
        now: Instant,
    ) {
        self.metrics.decided(verdict, request.took);
        let decision = DecisionRecord {
            call: call_number(id),
            source: request.source.to_string(),
            target: request.wish.clone(),
            service: request.service.to_string(),
            verdict,
            to: to.map(place),
            reason,
            rule: request.rule.clone(),
            asked: request.asked,
            notify: request.notify,
            microseconds: micros(request.took),
        };
        self.notify(request.connection, &decision, now);
        self.effects.push_back(Effect::Record(Record::Decision(decision)));
    }
}

/// In the log, dom0 has its name.
pub(super) fn place(place: &Place) -> String {
    if *place == Place::AdminVm { DOM0.to_owned() } else { place.to_string() }
}

/// A call's number, as it stands in the log.
pub(super) fn call_number(call: CallId) -> String {
    format!("{call:016x}")
}
