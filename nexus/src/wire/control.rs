//! What nexusd and our agents say to each other on top of qrexec: calls by number, and containers.

use super::message::Ident;
use super::{EXIT_PROBLEM, EXIT_REFUSED};
use crate::policy::Denial;

/// The bytes of a domain, port and call (`u64 call`, `u32 domain`, `u32 port`).
pub(super) const OF_CALL: usize = 16;
/// The longest container, user, caller or wish in a [`Run`], its NUL included: `QUBE:CONTAINER` of two names.
pub(super) const NAME: usize = 128;

/// The number of a call: nexusd gives each its own. The upper half is chosen when nexusd starts, so that calls of
/// before are not taken for new ones.
pub type CallId = u64;

/// The qube at the other end of a call, and how its bytes go there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Via {
    /// Its domain id; below 0x7ff0.
    pub domain: u16,
    /// The port of a data vchan of the call's own, 513 or more; none: the [pair channel](super::pair).
    pub port: Option<u32>,
}

/// `NEXUS_RUN`, to the target's agent: a call that was allowed.
///
/// `u64 call`, `u32 domain`, `u32 port` (0: none), then container, user, service, source and wish, each with its NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<'a> {
    /// The call.
    pub call: CallId,
    /// The caller's qube. A data vchan's client is the target.
    pub via: Via,
    /// The container that is called; nothing: the qube itself.
    pub container: &'a [u8],
    /// As whom the service runs; nothing: as the default user.
    pub user: &'a [u8],
    /// `SERVICE` or `SERVICE+ARGUMENT`; at most 65000 bytes.
    pub service: &'a [u8],
    /// Who calls: `QUBE`, `QUBE:CONTAINER` or `dom0`.
    pub source: &'a [u8],
    /// Whom the caller asked for, in its own words; nothing: nobody.
    pub wish: &'a [u8],
}

/// `NEXUS_JOIN`, to the caller's agent: its request was allowed.
///
/// `u64 call`, `u32 domain`, `u32 port` (0: none), `char ident[32]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    /// The call.
    pub call: CallId,
    /// The target's qube. A data vchan's server is the caller.
    pub via: Via,
    /// Which request it was.
    pub ident: Ident,
}

/// Which end of a call an agent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Role {
    /// The caller's.
    Caller = 0,
    /// The service's.
    Service = 1,
}

/// `NEXUS_ENDED`, from an agent: one of its ends of calls is no more.
///
/// `u64 call`, `u32 exit`, `u32 role`, `u64 to_service`, `u64 to_caller`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The call.
    pub call: CallId,
    /// How it ended, as far as this end knows.
    pub exit: i32,
    /// Which end.
    pub role: Role,
    /// Bytes of the caller's that came by here.
    pub to_service: u64,
    /// Bytes of the service's, stdout and stderr, that came by here.
    pub to_caller: u64,
}

/// `NEXUS_OPEN`, from an agent, for each call that is open when nexusd comes (back).
///
/// `u64 call`, `u32 domain`, `u32 port` (0: none), `u32 role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenCall {
    /// The call.
    pub call: CallId,
    /// The qube at its other end.
    pub via: Via,
    /// Which end this is.
    pub role: Role,
}

/// Why a call was not made, or came to nothing, where nobody minds that its caller knows. What policy refuses is refused
/// without a word, so that a caller does not learn by it what there is.
///
/// `NEXUS_FAILED`, to the caller's agent, and from there to the client: `char ident[32]`, `u32 why`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u32)]
pub enum Failure {
    /// A rule allows it, and leads nowhere.
    #[error("refused: there is no such target")]
    NoTarget = 1,
    /// `autostart=no`.
    #[error("refused: the target does not run, and is not to be started")]
    NotRunning = 2,
    /// Of the caller, or between the two qubes.
    #[error("refused: as many calls are open as may be")]
    Limit = 3,
    /// Or a disposable qube could not be made.
    #[error("failed: the target does not run, and could not be started")]
    NotStarted = 4,
    /// It runs.
    #[error("failed: the target runs, but its agent does not answer")]
    NoAgent = 5,
    /// nexusd does not run, or has ended before it decided.
    #[error("failed: dom0 does not decide; nexusd does not run")]
    NoDom0 = 6,
    /// Anything else.
    #[error("failed: the log of the agent, or of dom0, says why")]
    Problem = 7,
}

impl Failure {
    /// By number; those that are not known here are as good as [`Failure::Problem`].
    pub(super) fn of(number: u32) -> Self {
        let known = [
            Self::NoTarget,
            Self::NotRunning,
            Self::Limit,
            Self::NotStarted,
            Self::NoAgent,
            Self::NoDom0,
            Self::Problem,
        ];
        known.into_iter().find(|failure| *failure as u32 == number).unwrap_or(Self::Problem)
    }

    /// What its caller may know of a denial, if anything: what a rule that allows the call says of its target, and nothing of
    /// what there is otherwise.
    #[must_use]
    pub fn of_denial(denial: &Denial, by_rule: bool) -> Option<Self> {
        match denial {
            Denial::NoTarget | Denial::NoSuchTarget(_) if by_rule => Some(Self::NoTarget),
            Denial::NotRunning(_) => Some(Self::NotRunning),
            _ => None,
        }
    }

    /// The exit code of a call that ends so: 126 where it was refused, 125 where it was allowed and failed.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::NoTarget | Self::NotRunning | Self::Limit => EXIT_REFUSED,
            Self::NotStarted | Self::NoAgent | Self::NoDom0 | Self::Problem => EXIT_PROBLEM,
        }
    }
}

impl Role {
    pub(super) fn of(number: u32) -> Option<Self> {
        [Self::Caller, Self::Service].into_iter().find(|role| *role as u32 == number)
    }
}
