//! The C libraries over a simulated Xen host: C programs and a program of Debian's, with our libraries and with Debian's.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says why it fails")]

mod channels;
mod exports;
mod functions;
mod host;
mod leaks;
mod proxy;
