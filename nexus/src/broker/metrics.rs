//! Figures, as Prometheus reads them.

use super::record::Outcome;
use std::fmt::Write as _;
use std::time::Duration;

/// The upper ends of the histogram's buckets, in microseconds.
const BUCKETS: [u64; 10] = [5, 10, 20, 50, 100, 200, 500, 1_000, 10_000, 100_000];

/// Counters since nexusd started, and what there is now.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Metrics {
    /// Requests that were allowed and begun.
    pub allowed: u64,
    /// Requests that were refused.
    pub denied: u64,
    /// Requests that were allowed and could not be begun.
    pub failed: u64,
    /// Decisions by how long they took.
    buckets: [u64; BUCKETS.len()],
    decisions: u64,
    microseconds: u64,
    /// Bytes of calls that are over: to services and to callers, as the agents say.
    pub to_service: u64,
    /// The other way.
    pub to_caller: u64,
    /// Calls that are open.
    pub open: usize,
    /// Control connections whose agent has said hello.
    pub connections: usize,
    /// Control connections that were closed because the agent broke the protocol or did not read.
    pub broken: u64,
    /// Messages of agents about calls that are not theirs.
    pub strange: u64,
    /// Faults of the policy at the moment; with one, everything is denied.
    pub policy_errors: usize,
    /// Disposable qubes that there are.
    pub disposables: usize,
}

/// As figures and the log have it.
pub(super) fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

impl Metrics {
    pub(super) fn decided(&mut self, outcome: Outcome, took: Duration) {
        match outcome {
            Outcome::Allow => self.allowed += 1,
            Outcome::Deny => self.denied += 1,
            Outcome::Fail => self.failed += 1,
        }
        let took = micros(took);
        if let Some(bucket) = BUCKETS.iter().position(|most| took <= *most) {
            self.buckets[bucket] += 1;
        }
        self.decisions += 1;
        self.microseconds = self.microseconds.saturating_add(took);
    }

    /// A call is over that has carried so much.
    pub(super) fn carried(&mut self, (to_service, to_caller): (u64, u64)) {
        // What agents say: a counter that stands still is the worst that comes of it.
        self.to_service = self.to_service.saturating_add(to_service);
        self.to_caller = self.to_caller.saturating_add(to_caller);
    }

    /// In Prometheus' text format, version 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, lines: &[(String, String)]| {
            // Writing to a string does not fail.
            let _ = writeln!(out, "# HELP nexus_{name} {help}\n# TYPE nexus_{name} {kind}");
            for (suffix, value) in lines {
                let _ = writeln!(out, "nexus_{name}{suffix} {value}");
            }
        };
        let one = |value: &dyn ToString| vec![(String::new(), value.to_string())];
        let verdicts = [("allow", self.allowed), ("deny", self.denied), ("fail", self.failed)]
            .map(|(verdict, count)| (format!("{{verdict=\"{verdict}\"}}"), count.to_string()));
        family("calls_total", "counter", "Requests by what became of them.", &verdicts);
        family("open_calls", "gauge", "Calls that are open.", &one(&self.open));
        let bytes = [("service", self.to_service), ("caller", self.to_caller)]
            .map(|(to, bytes)| (format!("{{to=\"{to}\"}}"), bytes.to_string()));
        family("call_bytes_total", "counter", "Bytes of calls that are over, as agents say.", &bytes);
        let mut lines = Vec::new();
        let mut sum = 0;
        for (most, count) in BUCKETS.iter().zip(self.buckets) {
            sum += count;
            lines.push((format!("_bucket{{le=\"{}\"}}", *most as f64 / 1e6), sum.to_string()));
        }
        lines.push(("_bucket{le=\"+Inf\"}".to_owned(), self.decisions.to_string()));
        lines.push(("_sum".to_owned(), (self.microseconds as f64 / 1e6).to_string()));
        lines.push(("_count".to_owned(), self.decisions.to_string()));
        family("decision_seconds", "histogram", "How long decisions took.", &lines);
        family("control_connections", "gauge", "Agents that are connected.", &one(&self.connections));
        family("broken_connections_total", "counter", "Agents that were hung up on.", &one(&self.broken));
        family(
            "strange_messages_total",
            "counter",
            "What agents said of calls that are not theirs.",
            &one(&self.strange),
        );
        family(
            "policy_errors",
            "gauge",
            "Faults of the policy; with one, all is denied.",
            &one(&self.policy_errors),
        );
        family("disposables", "gauge", "Disposable qubes that there are.", &one(&self.disposables));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_adds_up() {
        let mut metrics = Metrics::default();
        for took in [3, 5, 7, 600, 1_000_000] {
            metrics.decided(Outcome::Allow, Duration::from_micros(took));
        }
        metrics.decided(Outcome::Deny, Duration::from_micros(11));
        metrics.carried((40, 2));
        metrics.carried((u64::MAX, 3));
        let text = metrics.text();
        for line in [
            "nexus_calls_total{verdict=\"allow\"} 5",
            "nexus_calls_total{verdict=\"deny\"} 1",
            "nexus_decision_seconds_bucket{le=\"0.000005\"} 2",
            "nexus_decision_seconds_bucket{le=\"0.00001\"} 3",
            "nexus_decision_seconds_bucket{le=\"0.1\"} 5",
            "nexus_decision_seconds_bucket{le=\"+Inf\"} 6",
            "nexus_decision_seconds_count 6",
            "nexus_call_bytes_total{to=\"service\"} 18446744073709551615",
            "nexus_call_bytes_total{to=\"caller\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
