//! Which messages there are, where each may be sent, and how long it may be.

use super::MAX_COMMAND;
use super::control::{NAME, OF_CALL};
use super::error::WireError;
use super::version::Version;
use crate::policy::service::MAX_SERVICE;
use std::fmt;
use std::ops::RangeInclusive;

/// The types of messages (`MSG_*`, libqrexec/qrexec.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Kind {
    /// Data for a service's stdin; without bytes: its end.
    Stdin = 0x190,
    /// Data of its stdout; without bytes: its end.
    Stdout = 0x191,
    /// Data of its stderr; without bytes: its end.
    Stderr = 0x192,
    /// How it ended; the last message.
    ExitCode = 0x193,
    /// dom0 wants a command run, with a data vchan.
    ExecCmdline = 0x200,
    /// dom0 wants a command run, and nothing of it.
    JustExec = 0x201,
    /// A request was allowed: its data vchan.
    ServiceConnect = 0x202,
    /// A request was refused.
    ServiceRefused = 0x203,
    /// A qube requests a service, as of version 2.
    TriggerService = 0x210,
    /// A data vchan is closed; its port is free.
    ConnectionTerminated = 0x211,
    /// A qube requests a service, as of version 3.
    TriggerService3 = 0x212,
    /// A qube requests a service, as of version 4: in the name of one behind it, or of a container.
    TriggerService4 = 0x213,
    /// The first message of either end.
    Hello = 0x300,
    /// nexusd has allowed a call: its service.
    Run = 0x4e58_0200,
    /// nexusd has allowed a call: its request.
    Join = 0x4e58_0202,
    /// A call was not made, and the caller may know why.
    Failed = 0x4e58_0203,
    /// A qube is gone, or its agent.
    Gone = 0x4e58_0204,
    /// An end of a call is no more.
    Ended = 0x4e58_0211,
    /// An end of a call is open.
    Open = 0x4e58_0212,
}

impl Kind {
    /// By number.
    ///
    /// # Errors
    /// [`WireError::Type`] if there is none.
    pub fn of(number: u32) -> Result<Self, WireError> {
        const ALL: [Kind; 19] = [
            Kind::Stdin,
            Kind::Stdout,
            Kind::Stderr,
            Kind::ExitCode,
            Kind::ExecCmdline,
            Kind::JustExec,
            Kind::ServiceConnect,
            Kind::ServiceRefused,
            Kind::TriggerService,
            Kind::ConnectionTerminated,
            Kind::TriggerService3,
            Kind::TriggerService4,
            Kind::Hello,
            Kind::Run,
            Kind::Join,
            Kind::Failed,
            Kind::Gone,
            Kind::Ended,
            Kind::Open,
        ];
        ALL.into_iter().find(|kind| *kind as u32 == number).ok_or(WireError::Type(number))
    }
}

/// One direction of a vchan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The control vchan, to a qube's agent.
    ToAgent,
    /// The control vchan, from a qube's agent.
    FromAgent,
    /// A call's data vchan, from the caller to the service.
    ToService,
    /// A call's data vchan, from the service to the caller.
    ToCaller,
    /// A call's Unix socket, from a client to the agent of its qube: one request as of version 3, then data.
    FromClient,
    /// The same, from the agent: a refusal, or data.
    ToClient,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Channel::ToAgent => "from dom0 to an agent",
            Channel::FromAgent => "from an agent to dom0",
            Channel::ToService => "from a caller to a service",
            Channel::ToCaller => "from a service to its caller",
            Channel::FromClient => "from a client to an agent",
            Channel::ToClient => "from an agent to a client",
        })
    }
}

/// The bytes of a request's identifier, its NUL included (`struct service_params`).
pub(super) const IDENT: usize = 32;
/// `target_domain` in `struct trigger_service_params`, and in the one of version 3.
pub(super) const TARGET: usize = 32;
pub(super) const TARGET3: usize = 64;
/// `source_domain` in `struct trigger_service_params4`.
pub(super) const SOURCE4: usize = 64;
/// `service_name` in `struct trigger_service_params`.
pub(super) const SERVICE: usize = 64;
/// `connect_domain` and `connect_port` in `struct exec_params`.
pub(super) const LINK: usize = 8;

impl Channel {
    /// The newest version that we speak there.
    #[must_use]
    pub fn version(self) -> Version {
        match self {
            Channel::ToAgent | Channel::FromAgent => Version::Nexus,
            Channel::ToService | Channel::ToCaller => Version::V4,
            Channel::FromClient | Channel::ToClient => Version::V3,
        }
    }

    /// How many bytes a message may have here. `version` is none before the other end has said hello.
    ///
    /// # Errors
    /// The message may not be sent here, or not now.
    pub fn lengths(self, kind: Kind, version: Option<Version>) -> Result<RangeInclusive<usize>, WireError> {
        let version = match (version, kind) {
            (None, Kind::Hello) => return Ok(4..=4),
            (None, _) | (Some(_), Kind::Hello) => return Err(WireError::Order(kind)),
            (Some(version), _) => version,
        };
        let command = LINK + 1..=LINK + MAX_COMMAND;
        Ok(match (self, kind) {
            (Channel::ToAgent, Kind::ExecCmdline | Kind::JustExec) => command,
            (Channel::ToAgent, Kind::ServiceConnect) => LINK + 2..=LINK + IDENT,
            (Channel::ToAgent | Channel::ToClient, Kind::ServiceRefused) => IDENT..=IDENT,
            (Channel::FromAgent, Kind::TriggerService) => SERVICE + TARGET + IDENT..=SERVICE + TARGET + IDENT,
            (Channel::FromAgent | Channel::FromClient, Kind::TriggerService3) if version >= Version::V3 => {
                TARGET3 + IDENT + 1..=TARGET3 + IDENT + MAX_SERVICE + 1
            }
            (Channel::FromAgent, Kind::TriggerService4) if version >= Version::V4 => {
                SOURCE4 + TARGET3 + IDENT + 1..=SOURCE4 + TARGET3 + IDENT + MAX_SERVICE + 1
            }
            (Channel::FromAgent, Kind::ConnectionTerminated) => LINK..=LINK,
            (Channel::ToAgent, Kind::Run) if version == Version::Nexus => {
                OF_CALL + 5..=OF_CALL + 4 * NAME + MAX_SERVICE + 1
            }
            (Channel::ToAgent, Kind::Join) if version == Version::Nexus => OF_CALL + IDENT..=OF_CALL + IDENT,
            (Channel::ToAgent, Kind::Failed) if version == Version::Nexus => IDENT + 4..=IDENT + 4,
            (Channel::ToClient, Kind::Failed) => IDENT + 4..=IDENT + 4,
            (Channel::ToAgent, Kind::Gone) if version == Version::Nexus => 4..=4,
            (Channel::FromAgent, Kind::Ended) if version == Version::Nexus => 32..=32,
            (Channel::FromAgent, Kind::Open) if version == Version::Nexus => OF_CALL + 4..=OF_CALL + 4,
            (Channel::ToService | Channel::FromClient, Kind::Stdin)
            | (Channel::ToCaller | Channel::ToClient, Kind::Stdout | Kind::Stderr) => 0..=version.max_chunk(),
            (Channel::ToCaller | Channel::ToClient, Kind::ExitCode) => 4..=4,
            _ => return Err(WireError::Misplaced { kind, channel: self }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of which message goes where, worked out from the protocol's text.
    #[test]
    fn a_message_has_one_place() {
        use Channel::{FromAgent, FromClient, ToAgent, ToCaller, ToClient, ToService};
        let table = [
            (0x190, vec![ToService, FromClient]),
            (0x191, vec![ToCaller, ToClient]),
            (0x192, vec![ToCaller, ToClient]),
            (0x193, vec![ToCaller, ToClient]),
            (0x200, vec![ToAgent]),
            (0x201, vec![ToAgent]),
            (0x202, vec![ToAgent]),
            (0x203, vec![ToAgent, ToClient]),
            (0x210, vec![FromAgent]),
            (0x211, vec![FromAgent]),
            (0x212, vec![FromAgent, FromClient]),
            (0x213, vec![FromAgent]),
            (0x4e58_0200, vec![ToAgent]),
            (0x4e58_0202, vec![ToAgent]),
            (0x4e58_0203, vec![ToAgent, ToClient]),
            (0x4e58_0204, vec![ToAgent]),
            (0x4e58_0211, vec![FromAgent]),
            (0x4e58_0212, vec![FromAgent]),
        ];
        for (number, places) in table {
            let kind = Kind::of(number).unwrap();
            for channel in [ToAgent, FromAgent, ToService, ToCaller, FromClient, ToClient] {
                let lengths = channel.lengths(kind, Some(Version::Nexus));
                assert_eq!(lengths.is_ok(), places.contains(&channel), "{kind:?} {channel}");
                assert_eq!(channel.lengths(kind, None), Err(WireError::Order(kind)));
            }
        }
        let again = ToAgent.lengths(Kind::Hello, Some(Version::V2));
        assert_eq!(again, Err(WireError::Order(Kind::Hello)));
        assert!(FromAgent.lengths(Kind::TriggerService3, Some(Version::V2)).is_err());
        assert!(FromAgent.lengths(Kind::TriggerService4, Some(Version::V3)).is_err());
        for (channel, kind) in [
            (ToAgent, Kind::Run),
            (ToAgent, Kind::Join),
            (ToAgent, Kind::Failed),
            (ToAgent, Kind::Gone),
            (FromAgent, Kind::Ended),
            (FromAgent, Kind::Open),
        ] {
            let misplaced = Err(WireError::Misplaced { kind, channel });
            assert_eq!(channel.lengths(kind, Some(Version::V4)), misplaced);
        }
        assert_eq!(ToService.lengths(Kind::Stdin, Some(Version::V2)), Ok(0..=4_096));
        for none in [0, 0x18f, 0x194, 0x204, 0x214, 0x301, 0x4e58_0201, u32::MAX] {
            assert_eq!(Kind::of(none), Err(WireError::Type(none)));
        }
    }
}
