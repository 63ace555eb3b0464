//! Calls between qubes, over vchans of a simulated host: agents, callers and services are processes.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says why it fails")]

mod broker;
mod calls;
mod cold;
mod counts;
mod deaths;
#[path = "../../../vchan/tests/sim/host.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is vchan's, whose tests use all of it")]
mod host;
mod hostile;
mod many;
mod nexusd;
mod stage;
mod stock;
