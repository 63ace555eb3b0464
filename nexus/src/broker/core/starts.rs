//! Qubes that are started because they are called.

use super::refusal::Refusal;
use super::requests::{Request, Stage};
use super::{Broker, Effect};
use crate::name::Name;
use crate::policy::{Allowed, Denial};
use crate::wire::control::{CallId, Failure};
use std::time::{Duration, Instant};

/// How long a qube is left alone that could not be started: who calls it again and again has no program run each time.
const REST: Duration = Duration::from_secs(5);

/// The start of one qube, for all calls that wait for it.
#[derive(Debug)]
pub(super) enum Start {
    /// It is being started, or its agent has not said hello yet.
    Coming { until: Instant },
    /// It came to nothing.
    Failed { reason: String, until: Instant },
}

impl Broker {
    /// Whether a qube is being started.
    pub(super) fn is_coming(&self, qube: &Name) -> bool {
        matches!(self.starts.get(qube), Some(Start::Coming { .. }))
    }

    /// Has a call wait for a qube that does not run, or not yet; the first one has it started.
    pub(super) fn start(
        &mut self,
        id: CallId,
        request: Request,
        allowed: Allowed,
        qube: &Name,
        now: Instant,
    ) {
        if !allowed.autostart {
            // Those that do not run are denied when they are decided: this one has ended since, while the user was asked.
            let refusal = Refusal::denied(&Denial::NotRunning(allowed.target.clone()), true);
            return self.refuse(id, &request, Some(&allowed.target), refusal, now);
        }
        match self.starts.get(qube) {
            Some(Start::Coming { .. }) => {}
            Some(Start::Failed { reason, .. }) => {
                let refusal = Refusal::failed(Failure::NotStarted, reason.clone());
                return self.refuse(id, &request, Some(&allowed.target), refusal, now);
            }
            None => match self.limits.start.filter(|_| !self.disposables.contains_key(qube)) {
                Some(patience) => {
                    self.starts.insert(qube.clone(), Start::Coming { until: now + patience });
                    self.effects.push_back(Effect::Start { name: qube.clone() });
                }
                None => {
                    let reason = format!("{qube} does not run, and is not started");
                    let refusal = Refusal::failed(Failure::NotStarted, reason);
                    return self.refuse(id, &request, Some(&allowed.target), refusal, now);
                }
            },
        }
        self.calls.insert(id, (request, Stage::Starting { qube: qube.clone(), allowed }));
    }

    /// A qube was started, or why not.
    pub fn started(&mut self, qube: &Name, result: Result<(), String>, now: Instant) {
        if let Err(reason) = result {
            self.start_failed(qube, format!("{qube} could not be started: {reason}"), now);
        }
    }

    /// An agent said hello: those that wait for its qube go on.
    pub(super) fn start_done(&mut self, domain: u16, now: Instant) {
        let coming = |(name, start): (&Name, &Start)| {
            (matches!(start, Start::Coming { .. }) && self.running.get(name) == Some(&domain))
                .then(|| name.clone())
        };
        let Some(qube) = self.starts.iter().find_map(coming) else { return };
        self.starts.remove(&qube);
        for (call, request, allowed) in self.take_waiting(&qube) {
            self.begin(call, request, allowed, now);
        }
    }

    fn start_failed(&mut self, qube: &Name, reason: String, now: Instant) {
        if !self.is_coming(qube) {
            return;
        }
        for (call, request, allowed) in self.take_waiting(qube) {
            let refusal = Refusal::failed(Failure::NotStarted, reason.clone());
            self.refuse(call, &request, Some(&allowed.target), refusal, now);
        }
        self.starts.insert(qube.clone(), Start::Failed { reason, until: now + REST });
    }

    fn take_waiting(&mut self, qube: &Name) -> Vec<(CallId, Request, Allowed)> {
        let waits = |stage: &Stage| matches!(stage, Stage::Starting { qube: waited, .. } if waited == qube);
        let mut calls: Vec<_> =
            self.calls.iter().filter(|(_, (_, stage))| waits(stage)).map(|(id, _)| *id).collect();
        // As they came.
        calls.sort_unstable();
        let taken = calls.into_iter().filter_map(|id| match self.calls.remove(&id)? {
            (request, Stage::Starting { allowed, .. }) => Some((id, request, allowed)),
            _ => None,
        });
        taken.collect()
    }

    /// Ends what was waited for too long, and lets those that failed be tried again.
    pub(super) fn overdue_starts(&mut self, now: Instant) {
        let late = |(name, start): (&Name, &Start)| match start {
            Start::Coming { until } | Start::Failed { until, .. } => (*until <= now).then(|| name.clone()),
        };
        let late: Vec<_> = self.starts.iter().filter_map(late).collect();
        for qube in late {
            if self.is_coming(&qube) {
                let reason = if self.running.contains_key(&qube) {
                    format!("{qube} was started, but its agent does not answer")
                } else {
                    format!("{qube} could not be started in time")
                };
                self.start_failed(&qube, reason, now);
            } else {
                self.starts.remove(&qube);
            }
        }
    }
}
