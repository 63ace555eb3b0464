//! What nexusd and our agents say to each other on top of qrexec: calls by number, and containers.

use super::message::Ident;

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

impl Role {
    pub(super) fn of(number: u32) -> Option<Self> {
        [Self::Caller, Self::Service].into_iter().find(|role| *role as u32 == number)
    }
}
