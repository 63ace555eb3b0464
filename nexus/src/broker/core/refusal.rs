//! Why a call is not begun: for the log, and for its caller.

use crate::broker::record::Outcome;
use crate::policy::Denial;
use crate::wire::control::Failure;

/// One reason.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) outcome: Outcome,
    /// For the log.
    pub(super) reason: String,
    /// For the caller; none: nothing but that it is refused.
    pub(super) failure: Option<Failure>,
}

impl Refusal {
    /// Policy denies it, by a rule or because there is none.
    pub(super) fn denied(denial: &Denial, by_rule: bool) -> Self {
        let failure = Failure::of_denial(denial, by_rule);
        Self { outcome: Outcome::Deny, reason: denial.to_string(), failure }
    }

    /// A question that cannot be asked is answered with no.
    pub(super) fn unasked(reason: &str) -> Self {
        Self { outcome: Outcome::Deny, reason: reason.to_owned(), failure: None }
    }

    /// It is allowed, and cannot be.
    pub(super) fn failed(failure: Failure, reason: impl Into<String>) -> Self {
        Self { outcome: Outcome::Fail, reason: reason.into(), failure: Some(failure) }
    }
}
