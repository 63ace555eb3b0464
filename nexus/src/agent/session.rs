//! One client's call, from its socket's hello to its exit code.

use super::control::Answer;
use super::ends::{Hearing, Saying};
use super::frames::{Bytes, Opening};
use super::service::{self, Ended, GONE, Wanted};
use super::{Shared, remote};
use crate::conversation::ConversationError;
use crate::policy::{Call, Denial, Place, Principal, Service, Verdict};
use crate::wire::control::Failure;
use crate::wire::{Channel, Ident, Message, WireError};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a caller may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a caller wants, in its own words.
struct Request {
    ident: Ident,
    target: Result<Option<Place>, String>,
    service: Result<Service, String>,
    /// As they came.
    words: (Box<[u8]>, Box<[u8]>),
}

/// What became of a request.
enum Route {
    /// It is for this qube.
    Here { target: Place, user: Option<Arc<str>> },
    /// It is dom0's to decide.
    Dom0,
    /// With what the caller may know of the reason.
    Refused(Option<Failure>),
}

/// Serves one call. Whatever the caller does, it ends.
pub(super) async fn serve(socket: UnixStream, source: &Principal, shared: &Rc<Shared>) {
    let bytes = Bytes::Socket(Rc::new(socket));
    let mut opening = Opening::new(bytes.clone(), Channel::FromClient);
    let greeted = match timeout(PATIENCE, greet(&mut opening)).await {
        Ok(greeted) => greeted,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    };
    let request = match greeted {
        Ok(request) => request,
        Err(error) => {
            let reason = error.to_string();
            return (shared.audit)(
                &serde_json::json!({ "event": "broken", "source": source.to_string(), "reason": reason }),
            );
        }
    };
    let ident = request.ident;
    let (reading, writing) = opening.into_halves();
    let (mut hearing, mut saying) = (Hearing::Messages(reading), Saying::messages(writing));
    let begin = Instant::now();
    let (target, service, ended) = match decide(&request, source, shared) {
        Ok((call, Route::Here { target, user })) => {
            let wanted = Wanted {
                container: match &target {
                    Place::Container { container, .. } => Some(container.clone()),
                    _ => None,
                },
                user: user.as_deref().map(str::to_owned),
                service: call.service.clone(),
                source: source.to_string(),
                wish: String::new(),
            };
            let ended = match shared.open_for(&hearing, &wanted).await {
                Ok(opened) => service::carry(opened, &mut hearing, &mut saying).await,
                Err(ended) => ended,
            };
            (target.to_string(), call.service, Ok(ended))
        }
        Ok((call, Route::Dom0)) => {
            let target = call.target.as_ref().map_or("@default".to_owned(), ToString::to_string);
            let ended = ask_dom0(&request, source, &mut hearing, &mut saying, shared).await;
            (target, call.service, ended)
        }
        Ok((_, Route::Refused(failure))) => return refuse(&bytes, ident, failure).await,
        Err(()) => return refuse(&bytes, ident, None).await,
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(failure) => return refuse(&bytes, ident, failure).await,
    };
    // Gone is as good as told. Nobody waits for the log.
    match ended.failure {
        Some(failure) => refuse(&bytes, ident, Some(failure)).await,
        None => _ = saying.exit(ended.exit).await,
    }
    (shared.audit)(&serde_json::json!({
        "event": "end",
        "source": source.to_string(),
        "target": target,
        "service": service.to_string(),
        "exit": ended.exit,
        "reason": ended.reason,
        "bytes_to_service": ended.to_service,
        "bytes_to_caller": ended.to_caller,
        "seconds": begin.elapsed().as_secs_f64(),
    }));
}

/// Has dom0 decide, and carries the call.
///
/// # Errors
/// It was refused, perhaps with a reason.
async fn ask_dom0(
    request: &Request,
    source: &Principal,
    hearing: &mut Hearing,
    saying: &mut Saying,
    shared: &Rc<Shared>,
) -> Result<Ended, Option<Failure>> {
    let (target, service) = &request.words;
    let mut asked = match shared.control.ask(source, target, service) {
        Ok(asked) => asked,
        Err(error) => return Ok(Ended::failed(error.failure(), error)),
    };
    let watch = hearing.watch();
    let answer = tokio::select! {
        biased;
        answer = asked.answer() => answer,
        () = watch.gone() => return Ok(Ended::problem(GONE)),
    };
    match answer {
        Some(Answer::Join(join)) => Ok(remote::join(shared, &join, hearing, saying).await),
        Some(Answer::Connect(link)) => {
            let ended = remote::connect(shared, link, hearing, saying).await;
            shared.control.terminated(link);
            Ok(ended)
        }
        Some(Answer::Refused(failure)) => Err(failure),
        None => Ok(Ended::failed(Failure::NoDom0, "dom0 has gone before it decided")),
    }
}

async fn greet(opening: &mut Opening) -> Result<Request, ConversationError> {
    opening.say_hello(Channel::ToClient).await?;
    opening.next(|_| ()).await?;
    let request = opening.next(|message| match message {
        Message::TriggerService3(trigger) => Ok(Request {
            ident: trigger.ident,
            target: trigger.target().map_err(|error| error.to_string()),
            service: trigger.service().map_err(|error| error.to_string()),
            words: (trigger.target.into(), trigger.service.into()),
        }),
        other => Err(WireError::Order(other.kind())),
    });
    Ok(request.await??)
}

/// Refuses one call too many, without having heard what is wanted.
pub(super) async fn refuse_unheard(socket: UnixStream) {
    let opening = Opening::new(Bytes::Socket(Rc::new(socket)), Channel::FromClient);
    if opening.say_hello(Channel::ToClient).await.is_ok()
        && let Some(ident) = Ident::new(b"call")
    {
        let (_, writing) = opening.into_halves();
        refuse(writing.bytes(), ident, Some(Failure::Limit)).await;
    }
}

async fn refuse(to: &Bytes, ident: Ident, why: Option<Failure>) {
    let mut bytes = Vec::new();
    let message = match why {
        Some(failure) => Message::Failed(ident, failure),
        None => Message::ServiceRefused(ident),
    };
    if message.encode(&mut bytes).is_ok() {
        // Gone is as good as refused.
        let _ = to.write(&[], &bytes).await;
    }
}

/// What becomes of a request. A request that is none is refused.
fn decide(request: &Request, source: &Principal, shared: &Shared) -> Result<(Call, Route), ()> {
    let (target, service) = match (&request.target, &request.service) {
        (Ok(target), Ok(service)) => (target.clone(), service.clone()),
        (Err(reason), _) | (_, Err(reason)) => {
            (shared.audit)(&serde_json::json!({
                "event": "decision", "source": source.to_string(), "verdict": "deny", "reason": reason,
            }));
            return Err(());
        }
    };
    let call = Call { source: source.clone(), target, service };
    let dom0 = shared.settings.control.is_some();
    if dom0 && is_elsewhere(call.target.as_ref(), shared) {
        return Ok((call, Route::Dom0));
    }
    let mut decision = shared.policy.decide(&call, &shared.system);
    if let Verdict::Ask(_) = decision.verdict {
        // Nobody in a qube is asked: that is a no.
        decision = decision.answered(None);
    }
    if dom0 && call.target.is_none() && matches!(decision.verdict, Verdict::Deny(Denial::NoRule)) {
        // The qube has no place of its own for it.
        return Ok((call, Route::Dom0));
    }
    let mut record = serde_json::json!({
        "event": "decision",
        "source": source.to_string(),
        "target": call.target.as_ref().map_or("@default".to_owned(), ToString::to_string),
        "service": call.service.to_string(),
        "rule": decision.rule.as_ref().map(ToString::to_string),
        "notify": decision.notify,
    });
    let route = match decision.verdict {
        Verdict::Allow(allowed) => {
            record["verdict"] = "allow".into();
            record["to"] = allowed.target.to_string().into();
            Route::Here { target: allowed.target, user: allowed.user }
        }
        Verdict::Deny(denial) => {
            record["verdict"] = "deny".into();
            record["reason"] = denial.to_string().into();
            Route::Refused(Failure::of_denial(&denial, decision.rule.is_some()))
        }
        Verdict::Ask(_) => Route::Refused(None),
    };
    (shared.audit)(&record);
    Ok((call, route))
}

/// Whether a target is not in this qube.
fn is_elsewhere(target: Option<&Place>, shared: &Shared) -> bool {
    target.is_some_and(|target| target.qube_name() != Some(shared.settings.qube.as_str()))
}
