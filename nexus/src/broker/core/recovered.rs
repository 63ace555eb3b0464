//! Calls that are older than this broker, as their agents tell of them.

use super::requests::call_number;
use super::{Broker, Connection, Effect, Holder, Parting};
use crate::broker::record::{EndRecord, Record};
use crate::policy::DOM0;
use crate::wire::control::{CallId, Ended, OpenCall, Role, Via};

/// One end of a call, as its agent told of it. Each agent is believed of its own ends alone: of a call that only one
/// of them has heard of, there is only that end.
#[derive(Debug)]
pub(super) struct Recovered {
    via: Via,
}

/// For each call that a qube may have open, there may be one that it serves.
const ENDS: usize = 2;

impl Broker {
    /// `NEXUS_OPEN`.
    pub(super) fn recover(&mut self, connection: Connection, open: &OpenCall) -> Result<(), Parting> {
        // What we know ourselves is not to be recovered: the agent tells of it because it is connected anew.
        let Some(agent) = self.agents.get_mut(&connection) else { return Ok(()) };
        let domain = agent.domain;
        let key = (domain, open.call, open.role);
        if self.recovered.contains_key(&key) {
            return Ok(());
        }
        let most = ENDS * self.limits.calls;
        if agent.claims >= most {
            return Err(Parting::Claims(most));
        }
        agent.claims += 1;
        if let Some(port) = open.via.port {
            match self.ports.entry(domain, open.via.domain, port) {
                Some(Holder::Recovered(count)) => *count = count.saturating_add(1),
                Some(Holder::Call(_)) => {}
                None => self.ports.take(domain, open.via.domain, port, Holder::Recovered(1)),
            }
        }
        self.recovered.insert(key, Recovered { via: open.via });
        if open.role == Role::Service {
            self.disposable_serves(domain);
        }
        Ok(())
    }

    /// `NEXUS_ENDED` for a call that is not one of ours.
    pub(super) fn end_recovered(&mut self, domain: u16, ended: &Ended) {
        let key = (domain, ended.call, ended.role);
        if self.recovered.contains_key(&key) {
            self.drop_recovered(key, Some(ended));
        }
    }

    pub(super) fn lose_recovered(&mut self, domain: u16) {
        let keys: Vec<_> = self.recovered.keys().filter(|key| key.0 == domain).copied().collect();
        for key in keys {
            self.drop_recovered(key, None);
        }
    }

    /// Whether a domain serves a call that was recovered.
    pub(super) fn serves_recovered(&self, domain: u16) -> bool {
        self.recovered.keys().any(|key| key.0 == domain && key.2 == Role::Service)
    }

    fn drop_recovered(&mut self, key: (u16, CallId, Role), ended: Option<&Ended>) {
        let Some(Recovered { via }) = self.recovered.remove(&key) else { return };
        let (domain, call, role) = key;
        if let Some(agent) =
            self.of_domain.get(&domain).and_then(|connection| self.agents.get_mut(connection))
        {
            agent.claims -= 1;
        }
        if let Some(port) = via.port
            && let Some(Holder::Recovered(count)) = self.ports.entry(domain, via.domain, port)
        {
            *count -= 1;
            if *count == 0 {
                self.ports.free(domain, via.domain, port);
            }
        }
        // One line for a call: its service's end says it, and the caller's where the service's agent told of none.
        let other = match role {
            Role::Caller => Role::Service,
            Role::Service => Role::Caller,
        };
        if !self.recovered.contains_key(&(via.domain, call, other)) {
            let (caller, service) =
                if role == Role::Caller { (domain, via.domain) } else { (via.domain, domain) };
            self.effects.push_back(Effect::Record(Record::End(EndRecord {
                call: call_number(call),
                source: self.domain_name(caller),
                to: self.domain_name(service),
                service: None,
                exit: ended.map(|ended| ended.exit),
                bytes_to_service: ended.map(|ended| ended.to_service),
                bytes_to_caller: ended.map(|ended| ended.to_caller),
                seconds: None,
                reason: Some("it was open before nexusd began".to_owned()),
            })));
        }
        if role == Role::Service {
            self.disposable_idle(domain);
        }
    }

    fn domain_name(&self, domain: u16) -> String {
        let name =
            self.running.iter().find(|(_, running)| **running == domain).map(|(name, _)| name.to_string());
        match domain {
            0 => DOM0.to_owned(),
            _ => name.unwrap_or_else(|| format!("domain {domain}")),
        }
    }
}
