//! Calls between qubes and between containers, in the formats of Qubes' qrexec.
//!
//! - [`policy`]: who may call what where, in policy format 5.0, with containers as principals.
//! - [`wire`]: qrexec's messages, versions 2 and 3, read from bytes that a hostile qube may have written.
//!
//! Nothing here trusts a qube: names, lengths and orders that come from one are checked before they are used.

#![forbid(unsafe_code)]

pub mod name;
pub mod policy;
pub mod wire;
