//! Calls to other qubes and from them.

use super::Shared;
use super::ends::{Heard, Hearing, Saying};
use super::pair::Straight;
use super::plain::Plain;
use super::service::{self, Ended, GONE, Wanted};
use crate::name::Name;
use crate::policy::Service;
use crate::wire::control::{CallId, Join, Role, Run, Via};
use crate::wire::{HEADER, Kind, Link, pair};
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long a call that dom0 announced may take to come by the pair channel.
const COMING: Duration = Duration::from_secs(10);
/// So much of a message is worth a read of its own, straight into the ring.
const WORTH_IT: usize = 2 << 10;

/// Carries a client's call by the pair channel.
pub(super) async fn join(
    shared: &Rc<Shared>,
    join: &Join,
    hearing: &mut Hearing,
    saying: &mut Saying,
) -> Ended {
    let mut known = shared.control.know(join.call, join.via, Role::Caller);
    let ended = match join.via.port {
        Some(port) => connect(shared, Link { domain: join.via.domain, port }, hearing, saying).await,
        None => match by_pair(shared, join, hearing, saying).await {
            Ok(ended) => ended,
            Err(error) => Ended::problem(error),
        },
    };
    known.ended(ended.exit, ended.to_service, ended.to_caller);
    ended
}

async fn by_pair(
    shared: &Rc<Shared>,
    join: &Join,
    hearing: &mut Hearing,
    saying: &mut Saying,
) -> io::Result<Ended> {
    let pair = shared.pairs.get(join.via.domain, Role::Caller).await?;
    let end = pair.call(join.call)?;
    let call = end.call();
    call.open().await?;
    call.set_straight(saying.socket().cloned().map(Straight::Framed));
    let mut ended = relay(hearing, saying, &mut Hearing::pair(call), &mut Saying::Pair(call.clone())).await;
    call.set_straight(None);
    ended.to_caller += call.went_straight();
    Ok(ended)
}

/// Carries a client's call by a vchan of its own.
pub(super) async fn connect(
    shared: &Rc<Shared>,
    link: Link,
    hearing: &mut Hearing,
    saying: &mut Saying,
) -> Ended {
    let watch = hearing.watch();
    let met = tokio::select! {
        biased;
        met = Plain::meet(shared, link, Role::Caller) => met,
        () = watch.gone() => return Ended::problem(GONE),
    };
    match met {
        Ok(mut plain) => {
            let ended = relay(hearing, saying, &mut plain.hearing, &mut plain.saying).await;
            plain.leave(None).await;
            ended
        }
        Err(error) => Ended::problem(error),
    }
}

/// A call that was allowed, and whose client is gone.
pub(super) fn nobody_joins(shared: &Rc<Shared>, join: &Join) {
    if join.via.port.is_none()
        && let Some(pair) = shared.pairs.existing(join.via.domain, Role::Caller)
    {
        pair.disown(join.call);
    }
    drop(shared.control.know(join.call, join.via, Role::Caller));
}

/// Hands messages on between a client and whoever has its service, until there is an exit code.
pub(super) async fn relay(
    client: &mut Hearing,
    to_client: &mut Saying,
    service: &mut Hearing,
    to_service: &mut Saying,
) -> Ended {
    let (sent, received) = (Cell::new(0_u64), Cell::new(0_u64));
    let watch = client.watch();
    let count = |counter: &Cell<u64>, bytes: usize| counter.set(counter.get() + bytes as u64);
    if let (Hearing::Messages(reading), Saying::Pair(_)) = (&mut *client, &*to_service) {
        reading.read_little();
    }
    let inward = async {
        let mut over = false;
        loop {
            // The rest of a long message goes straight into the ring.
            if let (Hearing::Messages(reading), Saying::Pair(call), Some(socket)) =
                (&mut *client, &*to_service, to_client_socket(&watch))
                && let Some((Kind::Stdin, left)) = reading.outstanding()
                && left >= WORTH_IT
            {
                let mut header = [0; HEADER];
                let read = tokio::select! {
                    biased;
                    read = call.data_from(pair::Kind::Stdin, socket, left, &mut header) => read,
                    () = watch.gone() => return GONE,
                };
                match read {
                    Ok(0) => return GONE,
                    Ok(read) => {
                        reading.skip(read.min(left));
                        reading.begin_with(&header[..read.saturating_sub(left)]);
                        count(&sent, read.min(left));
                        continue;
                    }
                    // It does not listen; how it ends is still to come.
                    Err(_) => return std::future::pending().await,
                }
            }
            let data = match client.next().await {
                Ok(Heard::Data(Kind::Stdin, data)) if !over => data,
                Ok(Heard::End(Kind::Stdin)) if !over => {
                    over = true;
                    &[]
                }
                Ok(_) => return "the caller breaks the protocol",
                Err(_) => return GONE,
            };
            let said = tokio::select! {
                biased;
                said = to_service.data(Kind::Stdin, data) => said,
                () = watch.gone() => return GONE,
            };
            if said.is_err() {
                return std::future::pending().await;
            }
            count(&sent, data.len());
        }
    };
    let outward = async {
        loop {
            let said = match service.next().await {
                Ok(Heard::Data(kind @ (Kind::Stdout | Kind::Stderr), data)) => {
                    count(&received, data.len());
                    to_client.data(kind, data).await
                }
                Ok(Heard::Raw(data)) => {
                    count(&received, data.len());
                    to_client.raw(data).await
                }
                Ok(Heard::End(kind @ (Kind::Stdout | Kind::Stderr))) => to_client.data(kind, &[]).await,
                Ok(Heard::Exit(code, ends)) => {
                    to_client.ends_with_exit(ends);
                    return Ok(code);
                }
                Ok(_) => return Err("the other qube breaks the protocol".to_owned()),
                Err(error) => return Err(error.to_string()),
            };
            if said.is_err() {
                return Err(GONE.to_owned());
            }
        }
    };
    let ended = tokio::select! {
        biased;
        ended = outward => ended,
        gone = inward => Err(gone.to_owned()),
    };
    let ended = match ended {
        Ok(exit) => Ended { exit, ..Ended::default() },
        Err(reason) => Ended::problem(reason),
    };
    Ended { to_service: sent.get(), to_caller: received.get(), ..ended }
}

fn to_client_socket(watch: &super::ends::Watch) -> Option<&tokio::net::UnixStream> {
    match watch {
        super::ends::Watch::Bytes(super::frames::Bytes::Socket(socket)) => Some(socket),
        _ => None,
    }
}

/// What dom0 wants run.
pub(super) fn wanted(run: &Run<'_>) -> Result<Wanted, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let name = |bytes: &[u8]| Name::new(&text(bytes)).map_err(|error| error.to_string());
    Ok(Wanted {
        container: Some(run.container).filter(|name| !name.is_empty()).map(name).transpose()?,
        user: Some(text(run.user)).filter(|user| !user.is_empty()),
        service: Service::parse(&text(run.service)).map_err(|error| error.to_string())?,
        source: text(run.source),
        wish: text(run.wish),
    })
}

/// Does what dom0 wants done for a qube.
pub(super) async fn run(shared: &Rc<Shared>, call: CallId, via: Via, wanted: Result<Wanted, String>) {
    let begin = Instant::now();
    let mut known = shared.control.know(call, via, Role::Service);
    let shown = match &wanted {
        Ok(wanted) => format!("{} {}", wanted.service, wanted.source),
        Err(reason) => reason.clone(),
    };
    let ended = match via.port {
        Some(port) => {
            let link = Link { domain: via.domain, port };
            match Plain::meet(shared, link, Role::Service).await {
                Ok(mut plain) => {
                    let ended = serve(shared, &wanted, &mut plain.hearing, &mut plain.saying).await;
                    say_ends(&mut plain.saying).await;
                    plain.leave(Some(ended.exit)).await;
                    ended
                }
                Err(error) => Ended::problem(error),
            }
        }
        None => match run_by_pair(shared, call, via, &wanted).await {
            Ok(ended) => ended,
            Err(error) => Ended::problem(error),
        },
    };
    known.ended(ended.exit, ended.to_service, ended.to_caller);
    shared.audit_end(Some(call), &shown, &ended, begin);
}

async fn run_by_pair(
    shared: &Rc<Shared>,
    id: CallId,
    via: Via,
    wanted: &Result<Wanted, String>,
) -> io::Result<Ended> {
    let begin = Instant::now();
    let end = loop {
        let pair = shared.pairs.get(via.domain, Role::Service).await?;
        let end = match pair.call(id) {
            Ok(end) => end,
            Err(error) => {
                pair.disown(id);
                return Err(error);
            }
        };
        match timeout(COMING.saturating_sub(begin.elapsed()), end.call().accept()).await? {
            Ok(()) => break end,
            // The caller's agent ends a channel that was idle for long enough, and makes another for this call.
            Err(_) if !pair.lives() => {}
            Err(error) => return Err(error),
        }
    };
    let call = end.call();
    let (mut hearing, mut saying) = (Hearing::pair(call), Saying::Pair(call.clone()));
    call.welcome();
    let ended = serve(shared, wanted, &mut hearing, &mut saying).await;
    // A caller that is gone wants to know nothing.
    let _ = saying.exit(ended.exit).await;
    Ok(ended)
}

async fn serve(
    shared: &Shared,
    wanted: &Result<Wanted, String>,
    hearing: &mut Hearing,
    saying: &mut Saying,
) -> Ended {
    let opened = match wanted {
        Ok(wanted) => shared.open_for(hearing, wanted).await,
        Err(reason) => Err(Ended::problem(reason)),
    };
    match opened {
        Ok(opened) => service::carry(opened, hearing, saying).await,
        Err(ended) => {
            say_ends(saying).await;
            ended
        }
    }
}

/// The ends of both streams, where they were not said: a stock agent waits for them.
pub(super) async fn say_ends(saying: &mut Saying) {
    for kind in [Kind::Stdout, Kind::Stderr] {
        // Whoever is gone waits for nothing.
        let _ = saying.data(kind, &[]).await;
    }
}
