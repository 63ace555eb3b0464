//! Calls between qubes and between containers, in the formats of Qubes' qrexec.
//!
//! - [`policy`]: who may call what where, in policy format 5.0, with containers as principals.
//! - [`wire`]: qrexec's messages, versions 2 and 3, read from bytes that a hostile qube may have written.
//! - [`broker`]: dom0's part of a call from one qube to another: who may, and by which way.
//! - [`agent`]: calls within one qube, from container to container, without dom0.
//! - [`client`]: whoever calls.
//! - [`command`]: what is run on behalf of dom0.
//! - [`answer`]: a program that is called by a socket.
//!
//! Nothing here trusts a qube: names, lengths and orders that come from one are checked before they are used.

#![forbid(unsafe_code)]

pub mod agent;
pub mod answer;
pub mod broker;
pub mod client;
pub mod command;
mod conversation;
pub mod listen;
pub mod name;
pub mod policy;
pub mod programs;
mod readable;
pub mod sd_notify;
pub mod wire;
