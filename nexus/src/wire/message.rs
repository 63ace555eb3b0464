//! What a message says, both ways.

use super::channel::{IDENT, Kind, SERVICE, SOURCE4, TARGET, TARGET3};
use super::control::{Ended, Failure, Join, NAME, OpenCall, Role, Run, Via};
use super::decoder::Frame;
use super::error::WireError;
use super::header::{HEADER, Header};
use super::{FIRST_DATA_PORT, MAX_COMMAND};
use crate::name::NameError;
use crate::policy::service::MAX_SERVICE;
use crate::policy::token::TokenError;
use crate::policy::{Place, Service};
use std::fmt;

/// The first domain id that no qube has (`DOMID_FIRST_RESERVED`, xen/include/public/xen.h).
const RESERVED: u32 = 0x7ff0;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// `MSG_HELLO`, `struct peer_info`: the version that its sender speaks.
    Hello(u32),
    /// `MSG_EXEC_CMDLINE`: run this, and be a client of that vchan.
    ExecCmdline(Execute<'a>),
    /// `MSG_JUST_EXEC`: run this. The vchan is one that tells of its end.
    JustExec(Execute<'a>),
    /// `MSG_SERVICE_CONNECT`: the request was allowed; be a server of that vchan.
    ServiceConnect(Link, Ident),
    /// `MSG_SERVICE_REFUSED`: it was not.
    ServiceRefused(Ident),
    /// `MSG_TRIGGER_SERVICE`: a request, as of version 2.
    TriggerService(Trigger<'a>),
    /// `MSG_TRIGGER_SERVICE3`: a request, as of version 3.
    TriggerService3(Trigger<'a>),
    /// `MSG_TRIGGER_SERVICE4`: a request, as of version 4.
    TriggerService4(Source<'a>, Trigger<'a>),
    /// `MSG_CONNECTION_TERMINATED`: that vchan is closed.
    ConnectionTerminated(Link),
    /// `MSG_DATA_STDIN`; nothing: its end.
    Stdin(&'a [u8]),
    /// `MSG_DATA_STDOUT`; nothing: its end.
    Stdout(&'a [u8]),
    /// `MSG_DATA_STDERR`; nothing: its end.
    Stderr(&'a [u8]),
    /// `MSG_DATA_EXIT_CODE`: 0 to 255 from a process that ended; a peer may say anything.
    ExitCode(i32),
    /// `NEXUS_RUN`: a call was allowed; run its service.
    Run(Run<'a>),
    /// `NEXUS_JOIN`: a call was allowed; it was asked for here.
    Join(Join),
    /// `NEXUS_FAILED`: a call was not made, or came to nothing.
    Failed(Ident, Failure),
    /// `NEXUS_GONE`, `u32 domain`: that qube is gone, or its agent.
    Gone(u16),
    /// `NEXUS_ENDED`: an end of a call is no more.
    Ended(Ended),
    /// `NEXUS_OPEN`: an end of a call is open.
    Open(OpenCall),
}

/// Who asks, in the words of the agent: the name of a qube behind its own, or of a container in it. Without the NUL; at
/// most 63 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a>(pub &'a [u8]);

/// A vchan for data (`struct exec_params`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link {
    /// The qube at the other end; below 0x7ff0.
    pub domain: u16,
    /// Its port; 513 or more.
    pub port: u32,
}

/// A command and its vchan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execute<'a> {
    /// The vchan.
    pub link: Link,
    /// `USER:COMMAND` or `USER:QUBESRPC SERVICE+ARGUMENT SOURCE`, without its NUL and without any other; at most 65534
    /// bytes.
    pub command: &'a [u8],
}

/// What an agent calls a request of one of its clients (`struct service_params`): 1 to 31 of `A-Z a-z 0-9 _ . : -`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ident {
    bytes: [u8; IDENT],
    length: u8,
}

/// A request (`struct trigger_service_params`, or the one of version 3 or 4). That target and service are none is no breach of
/// the protocol: the request is refused, by its identifier, and others go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trigger<'a> {
    /// Whose request the answer is for.
    pub ident: Ident,
    /// The target's bytes, without the NUL; at most 31 (version 2) or 63.
    pub target: &'a [u8],
    /// The service's bytes, without the NUL; at most 63 (version 2) or 65000.
    pub service: &'a [u8],
}

impl Trigger<'_> {
    /// What the caller asked for; `None` if it named nothing.
    ///
    /// # Errors
    /// It is no target.
    pub fn target(&self) -> Result<Option<Place>, TokenError> {
        Place::intended(&String::from_utf8_lossy(self.target))
    }

    /// The service.
    ///
    /// # Errors
    /// It is none.
    pub fn service(&self) -> Result<Service, NameError> {
        Service::parse(&String::from_utf8_lossy(self.service))
    }
}

impl Ident {
    /// Checks an identifier.
    pub fn new(text: &[u8]) -> Option<Self> {
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(byte);
        if text.is_empty() || text.len() >= IDENT || !text.iter().all(good) {
            return None;
        }
        let mut bytes = [0; IDENT];
        bytes[..text.len()].copy_from_slice(text);
        Some(Self { bytes, length: text.len() as u8 })
    }

    /// Its bytes, without the NUL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Debug for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// The fields of a payload, from the front.
struct Fields<'a> {
    kind: Kind,
    left: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, left) = self.left.split_at_checked(length).ok_or(WireError::Length {
            kind: self.kind,
            length: self.left.len() as u32,
            least: length,
            most: length,
        })?;
        self.left = left;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, WireError> {
        let bytes = self.take(4)?;
        Ok(bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)))
    }

    /// A string in a field of that width. What is behind its NUL says nothing: C's strings leave there what was before.
    fn fixed(&mut self, width: usize) -> Result<&'a [u8], WireError> {
        let field = self.take(width)?;
        let end = field.iter().position(|byte| *byte == 0).ok_or(WireError::Unterminated(self.kind))?;
        Ok(&field[..end])
    }

    /// The string that all that is left is: one NUL, at its end.
    fn rest(&mut self) -> Result<&'a [u8], WireError> {
        match self.left.split_last() {
            Some((0, text)) if !text.contains(&0) => {
                self.left = &[];
                Ok(text)
            }
            _ => Err(WireError::Unterminated(self.kind)),
        }
    }

    /// The string up to the next NUL.
    fn next(&mut self) -> Result<&'a [u8], WireError> {
        let end = self.left.iter().position(|byte| *byte == 0).ok_or(WireError::Unterminated(self.kind))?;
        let (text, left) = self.left.split_at(end);
        self.left = &left[1..];
        Ok(text)
    }

    /// One of at most so many bytes with its NUL.
    fn next_of(&mut self, most: usize) -> Result<&'a [u8], WireError> {
        self.next().and_then(|text| {
            if text.len() < most { Ok(text) } else { Err(WireError::Unterminated(self.kind)) }
        })
    }

    fn long(&mut self) -> Result<u64, WireError> {
        let (low, high) = (self.number()?, self.number()?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn role(&mut self) -> Result<Role, WireError> {
        Role::of(self.number()?).ok_or(WireError::Role(self.kind))
    }

    fn domain(&mut self) -> Result<u16, WireError> {
        let (kind, domain) = (self.kind, self.number()?);
        let valid = u16::try_from(domain).ok().filter(|_| domain < RESERVED);
        valid.ok_or(WireError::Domain { kind, domain })
    }

    fn via(&mut self) -> Result<Via, WireError> {
        let (kind, domain, port) = (self.kind, self.domain()?, self.number()?);
        if (1..FIRST_DATA_PORT).contains(&port) {
            return Err(WireError::Port { kind, port });
        }
        Ok(Via { domain, port: (port != 0).then_some(port) })
    }

    fn ident(&mut self, width: usize) -> Result<Ident, WireError> {
        let text = self.fixed(width)?;
        Ident::new(text).ok_or(WireError::Ident(self.kind))
    }

    fn link(&mut self) -> Result<Link, WireError> {
        let (kind, domain, port) = (self.kind, self.domain()?, self.number()?);
        if port < FIRST_DATA_PORT {
            return Err(WireError::Port { kind, port });
        }
        Ok(Link { domain, port })
    }

    fn end(&self) -> Result<(), WireError> {
        if self.left.is_empty() { Ok(()) } else { Err(WireError::Unterminated(self.kind)) }
    }
}

impl<'a> Message<'a> {
    /// What a frame says.
    ///
    /// # Errors
    /// It breaks the protocol.
    pub fn parse(frame: &Frame<'a>) -> Result<Self, WireError> {
        let kind = frame.kind;
        let mut fields = Fields { kind, left: frame.payload };
        let message = match kind {
            Kind::Stdin => return Ok(Message::Stdin(frame.payload)),
            Kind::Stdout => return Ok(Message::Stdout(frame.payload)),
            Kind::Stderr => return Ok(Message::Stderr(frame.payload)),
            Kind::ExitCode => Message::ExitCode(fields.number()?.cast_signed()),
            Kind::Hello => Message::Hello(fields.number()?),
            Kind::ExecCmdline => {
                Message::ExecCmdline(Execute { link: fields.link()?, command: fields.rest()? })
            }
            Kind::JustExec => Message::JustExec(Execute { link: fields.link()?, command: fields.rest()? }),
            Kind::ServiceConnect => {
                let link = fields.link()?;
                let width = fields.left.len();
                Message::ServiceConnect(link, fields.ident(width)?)
            }
            Kind::ServiceRefused => Message::ServiceRefused(fields.ident(IDENT)?),
            Kind::TriggerService => {
                let (service, target) = (fields.fixed(SERVICE)?, fields.fixed(TARGET)?);
                Message::TriggerService(Trigger { ident: fields.ident(IDENT)?, target, service })
            }
            Kind::TriggerService3 => {
                let (target, ident) = (fields.fixed(TARGET3)?, fields.ident(IDENT)?);
                Message::TriggerService3(Trigger { ident, target, service: fields.rest()? })
            }
            Kind::TriggerService4 => {
                let (source, target) = (fields.fixed(SOURCE4)?, fields.fixed(TARGET3)?);
                let ident = fields.ident(IDENT)?;
                Message::TriggerService4(Source(source), Trigger { ident, target, service: fields.rest()? })
            }
            Kind::ConnectionTerminated => Message::ConnectionTerminated(fields.link()?),
            Kind::Run => Message::Run(Run {
                call: fields.long()?,
                via: fields.via()?,
                container: fields.next_of(NAME)?,
                user: fields.next_of(NAME)?,
                service: fields.next_of(MAX_SERVICE + 1)?,
                source: fields.next_of(NAME)?,
                wish: fields.next_of(NAME)?,
            }),
            Kind::Join => {
                Message::Join(Join { call: fields.long()?, via: fields.via()?, ident: fields.ident(IDENT)? })
            }
            Kind::Failed => Message::Failed(fields.ident(IDENT)?, Failure::of(fields.number()?)),
            Kind::Gone => Message::Gone(fields.domain()?),
            Kind::Ended => Message::Ended(Ended {
                call: fields.long()?,
                exit: fields.number()?.cast_signed(),
                role: fields.role()?,
                to_service: fields.long()?,
                to_caller: fields.long()?,
            }),
            Kind::Open => {
                Message::Open(OpenCall { call: fields.long()?, via: fields.via()?, role: fields.role()? })
            }
        };
        fields.end()?;
        Ok(message)
    }

    /// Its type.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Hello(_) => Kind::Hello,
            Message::ExecCmdline(_) => Kind::ExecCmdline,
            Message::JustExec(_) => Kind::JustExec,
            Message::ServiceConnect(..) => Kind::ServiceConnect,
            Message::ServiceRefused(_) => Kind::ServiceRefused,
            Message::TriggerService(_) => Kind::TriggerService,
            Message::TriggerService3(_) => Kind::TriggerService3,
            Message::TriggerService4(..) => Kind::TriggerService4,
            Message::ConnectionTerminated(_) => Kind::ConnectionTerminated,
            Message::Run(_) => Kind::Run,
            Message::Join(_) => Kind::Join,
            Message::Failed(..) => Kind::Failed,
            Message::Gone(_) => Kind::Gone,
            Message::Ended(_) => Kind::Ended,
            Message::Open(_) => Kind::Open,
            Message::Stdin(_) => Kind::Stdin,
            Message::Stdout(_) => Kind::Stdout,
            Message::Stderr(_) => Kind::Stderr,
            Message::ExitCode(_) => Kind::ExitCode,
        }
    }

    /// Appends it to `out`. That data fits the version that is spoken is the sender's to see to
    /// ([`Version::max_chunk`](super::Version::max_chunk)).
    ///
    /// # Errors
    /// [`WireError::Unsendable`]; `out` is as it was then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        let begin = out.len();
        out.extend([0; HEADER]);
        let payload = out.len();
        if self.payload(out).is_none() {
            out.truncate(begin);
            return Err(WireError::Unsendable(self.kind()));
        }
        let header = Header { kind: self.kind(), length: out.len() - payload };
        out[begin..payload].copy_from_slice(&header.encode());
        Ok(())
    }

    fn payload(&self, out: &mut Vec<u8>) -> Option<()> {
        match self {
            Message::Hello(version) => out.extend(version.to_le_bytes()),
            Message::ExecCmdline(execute) | Message::JustExec(execute) => {
                link(out, execute.link)?;
                terminated(out, execute.command, MAX_COMMAND)?;
            }
            Message::ServiceConnect(to, ident) => {
                link(out, *to)?;
                out.extend(ident.bytes);
            }
            Message::ServiceRefused(ident) => out.extend(ident.bytes),
            Message::TriggerService(trigger) => {
                fixed(out, trigger.service, SERVICE)?;
                fixed(out, trigger.target, TARGET)?;
                out.extend(trigger.ident.bytes);
            }
            Message::TriggerService3(trigger) => {
                fixed(out, trigger.target, TARGET3)?;
                out.extend(trigger.ident.bytes);
                terminated(out, trigger.service, MAX_SERVICE + 1)?;
            }
            Message::TriggerService4(source, trigger) => {
                fixed(out, source.0, SOURCE4)?;
                fixed(out, trigger.target, TARGET3)?;
                out.extend(trigger.ident.bytes);
                terminated(out, trigger.service, MAX_SERVICE + 1)?;
            }
            Message::ConnectionTerminated(of) => link(out, *of)?,
            Message::Run(run) => {
                out.extend(run.call.to_le_bytes());
                via(out, run.via)?;
                terminated(out, run.container, NAME)?;
                terminated(out, run.user, NAME)?;
                terminated(out, run.service, MAX_SERVICE + 1)?;
                terminated(out, run.source, NAME)?;
                terminated(out, run.wish, NAME)?;
            }
            Message::Join(join) => {
                out.extend(join.call.to_le_bytes());
                via(out, join.via)?;
                out.extend(join.ident.bytes);
            }
            Message::Failed(ident, failure) => {
                out.extend(ident.bytes);
                out.extend((*failure as u32).to_le_bytes());
            }
            Message::Gone(domain) => {
                out.extend(u32::from(*domain).to_le_bytes());
                (u32::from(*domain) < RESERVED).then_some(())?;
            }
            Message::Ended(ended) => {
                out.extend(ended.call.to_le_bytes());
                out.extend(ended.exit.to_le_bytes());
                out.extend((ended.role as u32).to_le_bytes());
                out.extend(ended.to_service.to_le_bytes());
                out.extend(ended.to_caller.to_le_bytes());
            }
            Message::Open(open) => {
                out.extend(open.call.to_le_bytes());
                via(out, open.via)?;
                out.extend((open.role as u32).to_le_bytes());
            }
            Message::Stdin(data) | Message::Stdout(data) | Message::Stderr(data) => {
                if data.len() > super::version::MAX_CHUNK {
                    return None;
                }
                out.extend_from_slice(data);
            }
            Message::ExitCode(code) => out.extend(code.to_le_bytes()),
        }
        Some(())
    }
}

fn link(out: &mut Vec<u8>, Link { domain, port }: Link) -> Option<()> {
    if u32::from(domain) >= RESERVED || port < FIRST_DATA_PORT {
        return None;
    }
    out.extend(u32::from(domain).to_le_bytes());
    out.extend(port.to_le_bytes());
    Some(())
}

fn via(out: &mut Vec<u8>, via: Via) -> Option<()> {
    let port = via.port.unwrap_or(0);
    if u32::from(via.domain) >= RESERVED || (1..FIRST_DATA_PORT).contains(&port) || via.port == Some(0) {
        return None;
    }
    out.extend(u32::from(via.domain).to_le_bytes());
    out.extend(port.to_le_bytes());
    Some(())
}

/// A string that takes at most so many bytes with its NUL.
fn terminated(out: &mut Vec<u8>, text: &[u8], most: usize) -> Option<()> {
    if text.len() >= most || text.contains(&0) {
        return None;
    }
    out.extend_from_slice(text);
    out.push(0);
    Some(())
}

fn fixed(out: &mut Vec<u8>, text: &[u8], width: usize) -> Option<()> {
    let begin = out.len();
    terminated(out, text, width)?;
    out.resize(begin + width, 0);
    Some(())
}
