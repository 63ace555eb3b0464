//! The agent's end of the starter's socket: a service of the qube as another user.

use super::frames::Bytes;
use super::service::{Ended, Opened, Wanted, connect};
use super::{Settings, services};
use crate::wire::EXIT_NO_SERVICE;
use std::io;
use std::rc::Rc;

/// Whose end it is where it hangs up instead of running anything.
const STARTER: &str = "the starter (its log, nexus-as-user, says why)";

/// Has the starter run a service, if the user is one of the agent's list. The starter looks for itself, at that and at all else.
pub(super) async fn open(settings: &Settings, user: &str, wanted: &Wanted) -> Result<Opened, Ended> {
    if !settings.permits(user) {
        let ours = &settings.user;
        return Err(Ended::problem(format!(
            "it is to run as {user}, and everything here runs as {ours}: \"users\" of the agent's settings has not got {user}"
        )));
    }
    let service = &wanted.service;
    match services::of_qube(service, &settings.services).map_err(Ended::problem)? {
        Some(services::Found::Program(_)) => {}
        Some(services::Found::Socket(_)) => {
            let why = format!("it is to run as {user}, and a socket's service runs as whoever made it");
            return Err(Ended::problem(why));
        }
        None => return Err(Ended::early(EXIT_NO_SERVICE, "there is no such service".to_owned())),
    }
    let fields = [user, &service.to_string(), &wanted.source, &wanted.wish];
    if fields.iter().any(|field| field.contains('\0')) {
        return Err(Ended::problem("a name has a NUL"));
    }
    let begin = fields.map(|field| format!("{field}\0")).concat();
    let start = async {
        let socket = Rc::new(connect(&settings.starter).await?);
        Bytes::Socket(socket.clone()).write(&[], begin.as_bytes()).await?;
        Ok(socket)
    };
    match start.await {
        Ok(socket) => Ok(Opened::Messages { socket, whose: STARTER }),
        Err(error) => Err(unreached(settings, user, &error)),
    }
}

fn unreached(settings: &Settings, user: &str, error: &io::Error) -> Ended {
    let starter = settings.starter.display();
    Ended::problem(format!("it is to run as {user}, and the starter cannot be reached: {starter}: {error}"))
}
