//! What the user is told of calls (`notify=`).

use super::{Agent, Broker, Connection, Effect};
use crate::broker::record::DecisionRecord;
use serde::Serialize;
use std::time::{Duration, Instant};

/// How many notices of one qube's calls may come together.
const TOGETHER: u32 = 10;
/// How long until there may be one more.
const PAUSE: Duration = Duration::from_secs(2);

/// A notice for the user.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notice {
    /// What was decided.
    #[serde(flatten)]
    pub decision: DecisionRecord,
    /// Of how many calls of that qube the user was not told since the notice before this one: they came too fast. All of
    /// them are in the log.
    pub missed: u64,
}

/// How many notices there have been of late.
#[derive(Debug)]
pub(super) struct Noticed {
    count: u32,
    since: Instant,
    missed: u64,
}

impl Noticed {
    pub(super) fn new(now: Instant) -> Self {
        Self { count: 0, since: now, missed: 0 }
    }

    /// Whether there may be one; of how many there was none before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since);
        let back = u32::try_from(passed.as_micros() / PAUSE.as_micros()).unwrap_or(u32::MAX);
        self.count = self.count.saturating_sub(back);
        self.since += PAUSE.saturating_mul(back);
        if self.count == TOGETHER {
            self.missed += 1;
            return None;
        }
        self.count += 1;
        Some(std::mem::take(&mut self.missed))
    }
}

impl Broker {
    /// Has the user told of a decision, if policy says so and there is a way. The log has it in any case.
    pub(super) fn notify(&mut self, connection: Connection, decision: &DecisionRecord, now: Instant) {
        if !decision.notify || !self.limits.notifies {
            return;
        }
        let noticed = self.agents.get_mut(&connection).map(|Agent { noticed, .. }| noticed);
        if let Some(missed) = noticed.and_then(|noticed| noticed.take(now)) {
            self.effects.push_back(Effect::Notify(Notice { decision: decision.clone(), missed }));
        }
    }
}
