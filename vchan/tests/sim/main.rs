//! Channels between two processes on a simulated host: ours with ours, and with Debian's libxenvchan in each role.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says why it fails")]

mod cat;
mod conversation;
mod death;
mod differential;
mod host;
mod hub;
mod peers;
mod restart;
