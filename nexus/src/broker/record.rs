//! What is written down of each call: a line of JSON when it is decided, and one when it is over.

use serde::{Deserialize, Serialize};

/// A line of the log of calls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When, by RFC 3339 in UTC.
    pub time: String,
    /// What.
    #[serde(flatten)]
    pub record: Record,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Record {
    /// A call was decided.
    Decision(DecisionRecord),
    /// A call that was allowed is over.
    End(EndRecord),
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was allowed, and both agents were told.
    Allow,
    /// It was refused: by policy, by the user, or because it was none.
    Deny,
    /// It was allowed, and could not be begun.
    Fail,
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    /// The call's number; the line of its end has the same.
    pub call: String,
    /// Who calls: dom0, QUBE or QUBE:CONTAINER.
    pub source: String,
    /// Whom the caller named; `@default` if nobody.
    pub target: String,
    /// What it wants.
    pub service: String,
    /// What became of it.
    pub verdict: Outcome,
    /// Where it went, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The rule that matched: FILE:LINE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Whether the user was to be asked.
    #[serde(default)]
    pub asked: bool,
    /// Whether policy wants the user told (`notify=`).
    #[serde(default)]
    pub notify: bool,
    /// How long the decision took, in microseconds: without the time in which the user was asked.
    pub microseconds: u64,
}

/// The end of a call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndRecord {
    /// The call's number.
    pub call: String,
    /// Who called.
    pub source: String,
    /// Whom.
    pub to: String,
    /// What.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Its exit code, if an agent told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// Bytes from the caller, as far as agents tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_to_service: Option<u64>,
    /// Bytes from the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_to_caller: Option<u64>,
    /// How long it was open; none for a call that was open before nexusd was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Why it ended, if not by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
