//! One call, from its socket's hello to its exit code.

use super::running::{self, Ended};
use super::{RpcConfig, Shared, services};
use crate::conversation::{ConversationError, Incoming, send};
use crate::policy::{Call, Place, Principal, Service, Verdict};
use crate::wire::{Channel, EXIT_NO_SERVICE, EXIT_PROBLEM, Ident, Message, WireError};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a caller may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a caller wants, in its own words.
struct Request {
    ident: Ident,
    target: Result<Option<Place>, String>,
    service: Result<Service, String>,
}

/// Serves one call. Whatever the caller does, it ends.
pub(super) fn serve(mut socket: UnixStream, source: &Principal, shared: &Shared) {
    let (mut incoming, request) = match greet(&socket) {
        Ok(greeted) => greeted,
        Err(error) => {
            let reason = error.to_string();
            return (shared.audit)(
                &serde_json::json!({ "event": "broken", "source": source.to_string(), "reason": reason }),
            );
        }
    };
    let ident = request.ident;
    let Some((call, target, user)) = decide(request, source, shared) else {
        // Gone is as good as refused.
        let _ = send(&mut socket, &Message::ServiceRefused(ident));
        return;
    };
    let begin = Instant::now();
    let ended = run(&call, &target, user.as_deref(), &mut incoming, &socket, shared);
    (shared.audit)(&serde_json::json!({
        "event": "end",
        "source": source.to_string(),
        "target": target.to_string(),
        "service": call.service.to_string(),
        "exit": ended.exit,
        "reason": ended.reason,
        "bytes_to_service": ended.to_service,
        "bytes_to_caller": ended.to_caller,
        "seconds": begin.elapsed().as_secs_f64(),
    }));
    let _ = send(&mut socket, &Message::ExitCode(ended.exit));
    let _ = socket.shutdown(Shutdown::Both);
}

fn greet(socket: &UnixStream) -> Result<(Incoming, Request), ConversationError> {
    socket.set_read_timeout(Some(PATIENCE))?;
    send(&mut &*socket, &Message::Hello(Channel::ToClient.version().number()))?;
    let mut incoming = Incoming::new(socket.try_clone()?, Channel::FromClient);
    incoming.next(|_| ())?;
    let request = incoming.next(|message| match message {
        Message::TriggerService3(trigger) => Ok(Request {
            ident: trigger.ident,
            target: trigger.target().map_err(|error| error.to_string()),
            service: trigger.service().map_err(|error| error.to_string()),
        }),
        other => Err(WireError::Order(other.kind())),
    })??;
    socket.set_read_timeout(None)?;
    Ok((incoming, request))
}

/// Refuses without having heard what is wanted.
pub(super) fn refuse(mut socket: &UnixStream) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let refusal = Ident::new(b"call").map(Message::ServiceRefused);
    for message in [Message::Hello(Channel::ToClient.version().number())].into_iter().chain(refusal) {
        message.encode(&mut bytes).map_err(std::io::Error::other)?;
    }
    socket.write_all(&bytes)
}

/// The call, where it goes and as whom it runs, if policy lets it.
fn decide(
    request: Request,
    source: &Principal,
    shared: &Shared,
) -> Option<(Call, Place, Option<std::sync::Arc<str>>)> {
    let (target, service) = match (request.target, request.service) {
        (Ok(target), Ok(service)) => (target, service),
        (Err(reason), _) | (_, Err(reason)) => {
            (shared.audit)(&serde_json::json!({
                "event": "decision", "source": source.to_string(), "verdict": "deny", "reason": reason,
            }));
            return None;
        }
    };
    let call = Call { source: source.clone(), target, service };
    let mut decision = shared.policy.decide(&call, &shared.system);
    if let Verdict::Ask(_) = decision.verdict {
        // Nobody in a qube is asked: that is a no.
        decision = decision.answered(None);
    }
    let mut record = serde_json::json!({
        "event": "decision",
        "source": source.to_string(),
        "target": call.target.as_ref().map_or("@default".to_owned(), ToString::to_string),
        "service": call.service.to_string(),
        "rule": decision.rule.as_ref().map(ToString::to_string),
    });
    let allowed = match decision.verdict {
        Verdict::Allow(allowed) => {
            record["verdict"] = "allow".into();
            record["to"] = allowed.target.to_string().into();
            Some(allowed)
        }
        Verdict::Deny(denial) => {
            record["verdict"] = "deny".into();
            record["reason"] = denial.to_string().into();
            None
        }
        Verdict::Ask(_) => None,
    };
    (shared.audit)(&record);
    allowed.map(|allowed| (call, allowed.target, allowed.user))
}

fn run(
    call: &Call,
    target: &Place,
    user: Option<&str>,
    incoming: &mut Incoming,
    socket: &UnixStream,
    shared: &Shared,
) -> Ended {
    let settings = &shared.settings;
    let problem = |reason: String| Ended::early(EXIT_PROBLEM, reason);
    let container = match target {
        Place::Container { container, .. } => match settings.containers.get(container) {
            Some(container) => Some(container),
            None => return problem(format!("{target} is not here")),
        },
        _ => None,
    };
    let rpc_config = container.and_then(|container| container.rpc_config.as_ref());
    let config = match RpcConfig::of(&call.service, rpc_config.unwrap_or(&settings.rpc_config)) {
        Ok(config) => config,
        Err(error) => return problem(format!("rpc-config: {error}")),
    };
    let found = match container {
        // Whom a container's service runs as is the container's to say.
        Some(container) => services::of_container(&call.service, &container.services)
            .map(|found| found.map(services::Found::Socket)),
        None => {
            // The agent has one user. To run a service as another than the one that it is to have would be a grant.
            if let Some(user) = config.force_user.as_deref().or(user).filter(|user| *user != settings.user) {
                return problem(format!(
                    "it is to run as {user}, and everything here runs as {}",
                    settings.user
                ));
            }
            services::of_qube(&call.service, &settings.services)
        }
    };
    let found = match found {
        Ok(found) => found,
        Err(error) => return problem(error.to_string()),
    };
    match found {
        None => Ended::early(EXIT_NO_SERVICE, "there is no such service".to_owned()),
        Some(services::Found::Program(path)) => running::program(&path, call, incoming, socket),
        Some(services::Found::Socket(service)) => running::socket(service, &config, call, incoming, socket),
    }
}
