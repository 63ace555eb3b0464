//! How calls end.

use super::requests::{Ends, Request, Stage, call_number, place};
use super::{Broker, Connection, Effect, Holder};
use crate::broker::bucket;
use crate::broker::record::{EndRecord, Outcome, Record};
use crate::wire::Link;
use crate::wire::control::{CallId, Ended, Role};
use std::time::Instant;

impl Broker {
    /// `MSG_CONNECTION_TERMINATED`: an end of the call that has this port.
    pub(super) fn terminated(&mut self, connection: Connection, link: Link, now: Instant) {
        let Some(agent) = self.agents.get(&connection) else { return };
        let domain = agent.domain;
        match self.ports.entry(domain, link.domain, link.port).copied() {
            Some(Holder::Call(call)) => {
                if let Some((request, Stage::Open(ends))) = self.calls.get(&call) {
                    let role = if request.connection == connection {
                        Role::Caller
                    } else if ends.service == connection {
                        Role::Service
                    } else {
                        return;
                    };
                    self.end(call, role, None, now);
                }
            }
            // Its other end is one of ours, which tells by the call's number.
            Some(Holder::Recovered(_)) | None => {}
        }
    }

    /// `NEXUS_ENDED`.
    pub(super) fn ended(&mut self, connection: Connection, ended: &Ended, now: Instant) {
        let Some(agent) = self.agents.get(&connection) else { return };
        let domain = agent.domain;
        match self.calls.get(&ended.call) {
            Some((request, Stage::Open(ends))) => {
                let whose = match ended.role {
                    Role::Caller => request.connection,
                    Role::Service => ends.service,
                };
                if whose == connection {
                    self.end(ended.call, ended.role, Some(ended), now);
                } else {
                    self.strange(connection, "says that another qube's call has ended", now);
                }
            }
            // It cannot know of one that is not open yet.
            Some(_) => {}
            None => self.end_recovered(domain, ended),
        }
    }

    /// An end is no more; said twice, it is still one.
    fn end(&mut self, call: CallId, role: Role, told: Option<&Ended>, now: Instant) {
        let Some((request, Stage::Open(ends))) = self.calls.get_mut(&call) else { return };
        let open = match role {
            Role::Caller => &mut ends.caller_open,
            Role::Service => &mut ends.service_open,
        };
        if !std::mem::take(open) {
            return;
        }
        if let Some(told) = told {
            // Who ran the service knows best how it ended.
            if role == Role::Service || ends.exit.is_none() {
                ends.exit = Some(told.exit);
            }
            let (to_service, to_caller) = ends.bytes.unwrap_or_default();
            ends.bytes = Some((to_service.max(told.to_service), to_caller.max(told.to_caller)));
        }
        let pair = (request.domain, ends.service_domain);
        let caller = request.connection;
        let over = !ends.caller_open && !ends.service_open;
        let disposable = if role == Role::Service { ends.disposable.clone() } else { None };
        if role == Role::Caller
            && let Some(agent) = self.agents.get_mut(&caller)
        {
            agent.open -= 1;
        }
        if role == Role::Caller && !over {
            *self.lingering.entry(pair).or_default() += 1;
        }
        if role == Role::Service && over {
            self.settle(pair);
        }
        if let Some(name) = disposable {
            self.end_disposable(&name);
        }
        if over && let Some((request, Stage::Open(ends))) = self.calls.remove(&call) {
            self.over(call, &request, ends, now);
        }
    }

    /// What an agent has no business to say. It is passed over and written down, as seldom as refusals may be.
    fn strange(&mut self, connection: Connection, what: &'static str, now: Instant) {
        if let Some(agent) = self.agents.get_mut(&connection) {
            tracing::warn!(qube = %agent.itself(), domain = agent.domain, what, "an agent says what it should not");
            agent.bucket.spend(bucket::REFUSED, now);
            self.metrics.strange += 1;
        }
    }

    fn settle(&mut self, pair: (u16, u16)) {
        if let Some(count) = self.lingering.get_mut(&pair) {
            *count -= 1;
            if *count == 0 {
                self.lingering.remove(&pair);
            }
        }
    }

    fn over(&mut self, call: CallId, request: &Request, ends: Ends, now: Instant) {
        if let Some(port) = ends.port {
            self.ports.free(request.domain, ends.service_domain, port);
        }
        self.metrics.carried(ends.bytes.unwrap_or_default());
        self.effects.push_back(Effect::Record(Record::End(EndRecord {
            call: call_number(call),
            source: request.source.to_string(),
            to: place(&ends.to),
            service: Some(request.service.to_string()),
            exit: ends.exit,
            bytes_to_service: ends.bytes.map(|bytes| bytes.0),
            bytes_to_caller: ends.bytes.map(|bytes| bytes.1),
            seconds: Some(now.saturating_duration_since(ends.began).as_secs_f64()),
            reason: ends.reason.map(str::to_owned),
        })));
    }

    /// An agent is gone, and its ends of calls with it.
    pub(super) fn lose_calls(&mut self, connection: Connection, domain: u16, now: Instant) {
        let concerned = |(request, stage): &(Request, Stage)| {
            request.connection == connection
                || matches!(stage, Stage::Open(ends) if ends.service == connection)
        };
        let calls: Vec<_> =
            self.calls.iter().filter(|(_, call)| concerned(call)).map(|(id, _)| *id).collect();
        for id in calls {
            match self.calls.get_mut(&id) {
                Some((request, Stage::Open(ends))) => {
                    let role = if request.connection == connection { Role::Caller } else { Role::Service };
                    ends.reason.get_or_insert(match role {
                        Role::Caller => "the caller's agent is gone",
                        Role::Service => "the service's agent is gone",
                    });
                    self.end(id, role, None, now);
                }
                Some(_) => {
                    if let Some((request, stage)) = self.calls.remove(&id) {
                        self.decided(
                            id,
                            &request,
                            Outcome::Fail,
                            None,
                            Some("the caller is gone".to_owned()),
                            now,
                        );
                        if let Stage::Waiting { disposable, .. } = stage {
                            self.end_disposable(&disposable);
                        }
                    }
                }
                None => {}
            }
        }
        self.lose_recovered(domain);
    }
}
