//! A hostile peer, without a fuzzer: the inputs that were kept, and others for some seconds.

mod bodies;
#[path = "../../../fuzz/replay.rs"]
mod replay;

use std::time::Duration;

/// How long each body is tried with new inputs.
const TIME: Duration = Duration::from_secs(5);

#[test]
fn a_client_survives_any_page() {
    replay::run("page", TIME, bodies::page);
}

#[test]
fn both_ends_survive_any_scribble() {
    replay::run("traffic", TIME, bodies::traffic);
}
