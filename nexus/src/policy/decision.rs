//! What becomes of a call.

use super::call::{Call, Principal};
use super::compiled::Policy;
use super::error::PolicyError;
use super::rule::{Action, Origin};
use super::system::System;
use super::token::Place;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// What was decided, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the call.
    pub verdict: Verdict,
    /// The rule that matched, if one did.
    pub rule: Option<Origin>,
    /// Whether the user of the machine is to be told.
    pub notify: bool,
    /// How many rules the call was compared with.
    pub compared: usize,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Allow(Allowed),
    /// The user of the machine is asked.
    Ask(Question),
    /// It is refused.
    Deny(Denial),
}

/// Where an allowed call goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// A place that there is, by name: neither a UUID nor plain `@dispvm`.
    pub target: Place,
    /// The user that the service runs as; none: the target's default user.
    pub user: Option<Arc<str>>,
    /// Whether a target that does not run is started.
    pub autostart: bool,
}

/// What the user of the machine is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The targets to choose from: at least one.
    pub targets: BTreeSet<Place>,
    /// The one that is proposed; one of `targets`.
    pub proposed: Option<Place>,
    /// As for an allowed call.
    pub user: Option<Arc<str>>,
    /// As for an allowed call.
    pub autostart: bool,
}

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// A rule says so.
    #[error("a rule denies it")]
    Rule,
    /// No rule matches.
    #[error("no rule matches")]
    NoRule,
    /// The caller is not known.
    #[error("the caller {0} is not known")]
    UnknownCaller(Principal),
    /// The rule allows the call, but neither it nor the caller says where to.
    #[error("the caller named no target that there is, and the rule has no target=")]
    NoTarget,
    /// The rule leads to a place that does not exist, or to no template of disposable qubes.
    #[error("{0} does not exist, or is no template of disposable qubes")]
    NoSuchTarget(Place),
    /// `autostart=no`, and it does not run.
    #[error("{0} does not run, and the rule has autostart=no")]
    NotRunning(Place),
    /// A qube would call itself through dom0.
    #[error("{0} is in the caller's own qube: such calls are its agent's, not dom0's")]
    SameQube(Place),
    /// A qube's own policy would send a call out of the qube.
    #[error("{0} is not in this qube: such calls are dom0's")]
    OtherQube(Place),
    /// There is nothing to choose from.
    #[error("the rule asks, and there is no target to choose")]
    NothingToAsk,
    /// The user of the machine said no, or chose what was not offered.
    #[error("the user refused it")]
    Refused,
    /// The policy is wrong or cannot be read.
    #[error("the policy is wrong: {}", .0.first().map_or_else(String::new, ToString::to_string))]
    WrongPolicy(Arc<[PolicyError]>),
}

impl Decision {
    fn deny(reason: Denial, rule: Option<Origin>, notify: bool, compared: usize) -> Self {
        Self { verdict: Verdict::Deny(reason), rule, notify, compared }
    }

    /// The denial of everything, because a policy is wrong.
    pub fn wrong_policy(errors: &Arc<[PolicyError]>) -> Self {
        Self::deny(Denial::WrongPolicy(errors.clone()), None, true, 0)
    }

    /// What becomes of a call after its question was answered: by one of the targets, or not at all. Anything but
    /// [`Verdict::Ask`] stays as it is.
    #[must_use]
    pub fn answered(self, answer: Option<&Place>) -> Self {
        let Verdict::Ask(question) = self.verdict else { return self };
        let verdict = match answer.filter(|target| question.targets.contains(target)) {
            Some(target) => Verdict::Allow(Allowed {
                target: target.clone(),
                user: question.user,
                autostart: question.autostart,
            }),
            None => Verdict::Deny(Denial::Refused),
        };
        Self { verdict, ..self }
    }
}

impl Policy {
    /// Decides a call.
    pub fn decide(&self, call: &Call, system: &System) -> Decision {
        if !known(&call.source, system) {
            return Decision::deny(Denial::UnknownCaller(call.source.clone()), None, true, 0);
        }
        // Who names a kind of disposable that there is not is not taken for one who names nothing.
        if let Some(place @ Place::DispVmOf(_)) = &call.target
            && !exists(place, &call.source, system)
        {
            return Decision::deny(Denial::NoSuchTarget(place.clone()), None, true, 0);
        }
        // A place that does not exist is no place, as if the caller had named none.
        let target = call.target.as_ref().filter(|place| exists(place, &call.source, system));
        let call = &Call { target: target.cloned(), ..call.clone() };
        let mut prepared = self.prepare(call, system);
        let (matched, compared) = self.first_match(&prepared);
        let Some(rule) = matched.map(|rule| &self.rules()[rule]) else {
            return Decision::deny(Denial::NoRule, None, true, compared);
        };
        let origin = Some(rule.origin.clone());
        match &rule.action {
            Action::Deny { notify } => Decision::deny(Denial::Rule, origin, *notify, compared),
            Action::Allow { target, user, notify, autostart } => {
                let place = target.as_ref().or(call.target.as_ref());
                let verdict = match usable(place, &call.source, system, *autostart) {
                    Ok(target) => {
                        Verdict::Allow(Allowed { target, user: user.clone(), autostart: *autostart })
                    }
                    Err(reason) => return Decision::deny(reason, origin, true, compared),
                };
                Decision { verdict, rule: origin, notify: *notify, compared }
            }
            Action::Ask { target, default_target, user, notify, autostart } => {
                let targets = match target {
                    Some(target) => match usable(Some(target), &call.source, system, *autostart) {
                        Ok(target) => [target].into(),
                        Err(reason) => return Decision::deny(reason, origin, true, compared),
                    },
                    None => self.choices(&mut prepared, call, system, *autostart),
                };
                if targets.is_empty() {
                    return Decision::deny(Denial::NothingToAsk, origin, true, compared);
                }
                // With target= there is one choice, and it is proposed.
                let proposed = target
                    .as_ref()
                    .or(default_target.as_ref())
                    .and_then(|place| system.resolve(place, &call.source))
                    .filter(|place| targets.contains(place));
                let verdict =
                    Verdict::Ask(Question { targets, proposed, user: user.clone(), autostart: *autostart });
                Decision { verdict, rule: origin, notify: *notify, compared }
            }
        }
    }

    /// The targets that would lead this caller to ask or allow.
    fn choices(
        &self,
        prepared: &mut super::compiled::Prepared<'_>,
        call: &Call,
        system: &System,
        autostart: bool,
    ) -> BTreeSet<Place> {
        let places = system.places();
        // No target is one of those that the caller could have named.
        let named = std::iter::once(None).chain(places.iter().map(Some));
        named
            .filter_map(|place| {
                if place.is_some_and(|place| !exists(place, &call.source, system)) {
                    return None;
                }
                self.retarget(prepared, place, &call.source, system);
                let (matched, _) = self.first_match(prepared);
                match &self.rules()[matched?].action {
                    Action::Deny { .. } => None,
                    action => usable(action.redirect().or(place), &call.source, system, autostart).ok(),
                }
            })
            .collect()
    }
}

fn known(source: &Principal, system: &System) -> bool {
    match source {
        Principal::AdminVm => true,
        Principal::Qube(qube) => system.qubes.contains_key(qube),
        Principal::Container { qube, container } => {
            system.qubes.get(qube).is_some_and(|info| info.containers.contains(container))
        }
    }
}

/// Whether a caller may name it. `@dispvm` always may be: a rule can say what it is made from.
fn exists(place: &Place, source: &Principal, system: &System) -> bool {
    *place == Place::DispVm || system.resolve(place, source).is_some()
}

/// Where a call can go: the place by name, or why it cannot go there.
fn usable(
    place: Option<&Place>,
    source: &Principal,
    system: &System,
    autostart: bool,
) -> Result<Place, Denial> {
    let place = place.ok_or(Denial::NoTarget)?;
    let target = system.resolve(place, source).ok_or_else(|| Denial::NoSuchTarget(place.clone()))?;
    let qube = target.qube_name();
    match &system.within {
        Some(within) if qube != Some(within.as_str()) => return Err(Denial::OtherQube(target)),
        None if qube == Some(source.qube_name()) => return Err(Denial::SameQube(target)),
        _ => {}
    }
    if !autostart && !system.runs(&target) {
        return Err(Denial::NotRunning(target));
    }
    Ok(target)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Allow(allowed) => {
                write!(f, "allow target={}", allowed.target)?;
                allowed.user.as_ref().map_or(Ok(()), |user| write!(f, " user={user}"))?;
                if allowed.autostart { Ok(()) } else { f.write_str(" autostart=no") }
            }
            Verdict::Ask(question) => {
                f.write_str("ask targets=")?;
                for (index, target) in question.targets.iter().enumerate() {
                    if index > 0 {
                        f.write_str(",")?;
                    }
                    target.fmt(f)?;
                }
                if let Some(proposed) = &question.proposed {
                    write!(f, " default_target={proposed}")?;
                }
                question.user.as_ref().map_or(Ok(()), |user| write!(f, " user={user}"))?;
                if question.autostart { Ok(()) } else { f.write_str(" autostart=no") }
            }
            Verdict::Deny(denial) => write!(f, "deny: {denial}"),
        }
    }
}
