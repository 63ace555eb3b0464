//! Disposable qubes: made for one call, and ended with it.

use super::refusal::Refusal;
use super::requests::Stage;
use super::{Broker, Effect};
use crate::name::Name;
use crate::policy::{Principal, QubeInfo, System};
use crate::wire::control::{CallId, Failure};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long a disposable of a nexusd before this one is left alone while nobody says that it serves a call.
const GRACE: Duration = Duration::from_secs(30);
/// The numbers that their names may have.
const NUMBERS: u32 = 10_000;
/// How many there may be at once.
const MOST: usize = 64;

/// One of them.
#[derive(Debug)]
pub(super) struct Disposable {
    base: Name,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It is being made, or its agent has not said hello yet.
    Coming { call: CallId, until: Instant },
    /// It serves the call that it was made for.
    Serving,
    /// It was there before this broker.
    Found { until: Instant },
    /// It is to be ended.
    Ending,
}

impl Disposable {
    /// What policy knows of it.
    pub(super) fn info(&self, system: &System) -> Option<QubeInfo> {
        let base = system.qubes.get(&self.base)?;
        Some(QubeInfo {
            class: Name::from_static("DispVM"),
            uuid: None,
            tags: BTreeSet::new(),
            template_for_dispvms: false,
            declared: false,
            disposable_of: Some(self.base.clone()),
            ..base.clone()
        })
    }
}

impl Broker {
    /// Disposable qubes that are there from before, by name and what they were made from.
    pub fn found_disposables(&mut self, found: impl IntoIterator<Item = (Name, Name)>, now: Instant) {
        for (name, base) in found {
            self.disposables.insert(name, Disposable { base, state: State::Found { until: now + GRACE } });
        }
        self.combine();
    }

    pub(super) fn make(&mut self, call: CallId, base: &Name, now: Instant) -> Result<Name, Refusal> {
        let declared = self.system.qubes.get(base).is_some_and(|info| info.declared);
        let of_declared = self.limits.declared_disposables.filter(|_| declared);
        let Some(patience) = self.limits.disposables.get(base).copied().or(of_declared) else {
            let reason = format!(
                "{base} was not declared, and nexusd's configuration does not say how a disposable qube is made from it"
            );
            return Err(Refusal::failed(Failure::NotStarted, reason));
        };
        if self.disposables.len() >= MOST {
            return Err(Refusal::failed(Failure::Limit, format!("there are {MOST} disposable qubes")));
        }
        let first = call as u32;
        let name = (0..NUMBERS)
            .filter_map(|step| Name::new(&format!("disp{}", first.wrapping_add(step) % NUMBERS)).ok())
            .find(|name| !self.system.qubes.contains_key(name) && !self.running.contains_key(name))
            .ok_or_else(|| Refusal::failed(Failure::Limit, "all names of disposable qubes are taken"))?;
        let state = State::Coming { call, until: now + patience };
        self.disposables.insert(name.clone(), Disposable { base: base.clone(), state });
        self.combine();
        self.effects.push_back(Effect::Make { base: base.clone(), name: name.clone() });
        Ok(name)
    }

    /// A disposable qube was made, or why not.
    pub fn made(&mut self, name: &Name, result: Result<(), String>, now: Instant) {
        if let Err(reason) = result {
            self.fail(name, &format!("{name} could not be made: {reason}"), now);
        }
    }

    /// A disposable qube was ended, as far as that was possible.
    pub fn unmade(&mut self, name: &Name) {
        self.disposables.remove(name);
        self.combine();
    }

    /// An agent said hello: perhaps somebody waits for it.
    pub(super) fn disposable_greeted(&mut self, domain: u16, now: Instant) {
        let coming = self.disposables.iter().find_map(|(name, disposable)| match disposable.state {
            State::Coming { call, .. } if self.running.get(name) == Some(&domain) => {
                Some((name.clone(), call))
            }
            _ => None,
        });
        let Some((name, call)) = coming else { return };
        if let Some((request, Stage::Waiting { allowed, .. })) = self.calls.remove(&call) {
            if let Some(disposable) = self.disposables.get_mut(&name) {
                disposable.state = State::Serving;
            }
            self.open(call, request, &allowed, domain, None, Some(name), now);
        }
    }

    fn fail(&mut self, name: &Name, reason: &str, now: Instant) {
        let Some(Disposable { state: State::Coming { call, .. }, .. }) = self.disposables.get(name) else {
            return;
        };
        let call = *call;
        if let Some((request, Stage::Waiting { allowed, .. })) = self.calls.remove(&call) {
            let refusal = Refusal::failed(Failure::NotStarted, reason);
            self.refuse(call, &request, Some(&allowed.target), refusal, now);
        }
        self.end_disposable(name);
    }

    /// Has it ended, once.
    pub(super) fn end_disposable(&mut self, name: &Name) {
        if let Some(disposable) = self.disposables.get_mut(name)
            && !matches!(disposable.state, State::Ending)
        {
            disposable.state = State::Ending;
            self.effects.push_back(Effect::Destroy { name: name.clone() });
        }
    }

    /// The same principal under the name that dom0 has for it. A disposable qube's agent was built as its template's, and to itself
    /// it has that one's name.
    pub(super) fn by_own_name(&self, agent: Option<&Name>, claimed: Principal) -> Principal {
        let Some(own) = agent else { return claimed };
        let Some(base) = self.disposables.get(own).map(|disposable| &disposable.base) else { return claimed };
        match claimed {
            Principal::Qube(name) if name == *base => Principal::Qube(own.clone()),
            Principal::Container { qube, container } if qube == *base => {
                Principal::Container { qube: own.clone(), container }
            }
            claimed => claimed,
        }
    }

    fn of_domain(&self, domain: u16) -> Option<Name> {
        self.disposables.keys().find(|name| self.running.get(*name) == Some(&domain)).cloned()
    }

    /// A domain says that it serves a call of before.
    pub(super) fn disposable_serves(&mut self, domain: u16) {
        if let Some(name) = self.of_domain(domain)
            && let Some(disposable) = self.disposables.get_mut(&name)
            && matches!(disposable.state, State::Found { .. })
        {
            disposable.state = State::Serving;
        }
    }

    /// It has served one of them.
    pub(super) fn disposable_idle(&mut self, domain: u16) {
        if let Some(name) = self.of_domain(domain)
            && !self.serves_recovered(domain)
        {
            self.end_disposable(&name);
        }
    }

    /// Ends what was waited for too long.
    pub(super) fn overdue_disposables(&mut self, now: Instant) {
        let overdue: Vec<_> = self
            .disposables
            .iter()
            .filter(|(_, disposable)| match disposable.state {
                State::Coming { until, .. } | State::Found { until } => until <= now,
                State::Serving | State::Ending => false,
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in overdue {
            self.fail(&name, &format!("{name} was made, but its agent does not answer"), now);
            self.end_disposable(&name);
        }
    }
}
